"""Words: counts, lists, shares and times as messages and pages show them."""

import errno

import pytest

from fieldguide import words


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "photo", "1 photo"),
        (0, "photo", "0 photos"),
        (1200, "photo", "1,200 photos"),
        (2, "class", "2 classes"),
        (2, "epoch", "2 epochs"),
        (2, "copy", "2 copies"),
        (2, "day", "2 days"),
    ],
)
def test_one_thing_is_singular_and_all_else_plural(number: int, noun: str, text: str) -> None:
    assert words.count(number, noun) == text


def test_lists_end_with_and_and_long_ones_with_a_number() -> None:
    assert [words.listed("abc"[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert words.some(["a", "b", "c"]) == "a, b, c"
    assert words.some(list("abcdefgh")) == "a, b, c and 5 more"


def test_a_share_is_a_percentage_in_one_piece() -> None:
    assert words.percent(0.9281) == "92.8\N{NO-BREAK SPACE}%"
    assert words.percent(0.05, 0) == "5\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.0, "3 s"), (89.0, "89 s"), (90.0, "2 min"), (5340.0, "89 min"), (5400.0, "1 h 30 min")],
)
def test_a_time_is_in_seconds_minutes_or_hours_and_minutes(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("count", "more"), [(0, ""), (1, ""), (5, ""), (6, " and 1 more")])
def test_the_first_five_are_named_and_the_others_counted(count: int, more: str) -> None:
    names = [str(n) for n in range(count)]
    assert words.some(names, words.SHOWN) == ", ".join(names[:5]) + more
    assert words.quoted(names) == ", ".join(f"`{name}`" for name in names[:5]) + more


def test_a_size_is_in_megabytes_below_a_gigabyte() -> None:
    sizes = (0, 4_000_000, 999_900_000, 1_000_000_000, 1_234_500_000_000)
    shown = ["0.0 MB", "4.0 MB", "999.9 MB", "1.0 GB", "1,234.5 GB"]
    assert [words.shown_bytes(size) for size in sizes] == shown


@pytest.mark.parametrize("text", ["no room", "\n no room\nat all", "no room\r\n"])
def test_an_error_is_told_by_its_first_line(text: str) -> None:
    assert words.first_line(ValueError(text)) == "no room"


@pytest.mark.parametrize("error", [ValueError(), ValueError(" \n")])
def test_an_error_without_a_message_is_told_by_its_name(error: ValueError) -> None:
    assert words.first_line(error) == "ValueError"


def test_an_error_of_the_system_is_told_in_its_words() -> None:
    assert words.os_reason(OSError(errno.ENOSPC, "No space left")) == "No space left"
    assert words.os_reason(OSError("odd")) == "odd"
