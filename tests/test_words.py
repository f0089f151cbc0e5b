"""Numbers and names in words."""

import errno

import pytest

from fieldguide import words

# --- counts, names, sizes, reasons ----------------------------------------------------------------


def test_only_one_is_singular_and_thousands_are_separated() -> None:
    assert [words.counted(n, "photo") for n in (0, 1, 1200)] == [
        "0 photos",
        "1 photo",
        "1,200 photos",
    ]


@pytest.mark.parametrize(("count", "more"), [(0, ""), (1, ""), (5, ""), (6, " and 1 more")])
def test_the_first_five_are_named_and_the_others_counted(count: int, more: str) -> None:
    names = [str(n) for n in range(count)]
    assert words.some_of(names) == ", ".join(names[:5]) + more
    assert words.listed(names) == ", ".join(f"`{name}`" for name in names[:5]) + more


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
