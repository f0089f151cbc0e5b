"""Columns: what was put in comes out, in few bytes."""

import pickle
import tracemalloc
from array import array
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.storage import columns
from fieldguide.storage.columns import Column, Packed, Records, Shared

ANY_TEXT = st.none() | st.text(st.characters())  # with NULs, the empty one and lone surrogates


@dataclass(frozen=True)
class Bird:
    name: str
    legs: int
    nest: str | None = None


def birds(*found: Bird) -> Records[Bird]:
    fields = {"name": columns.texts, "legs": partial(array, "i"), "nest": Shared}
    return Records(Bird, fields, found)


WREN, TIT, OWL = Bird("wren", 2, "hole"), Bird("tit", 2), Bird("owl", 1, "hole")


@given(st.lists(ANY_TEXT))
def test_every_text_comes_back(values: list[str | None]) -> None:
    assert list(columns.texts(values)) == values == Shared(values)


def test_digests_come_back_and_nothing_else_is_one() -> None:
    assert list(columns.digests(["", "00ff", "ab"])) == ["", "00ff", "ab"]
    with pytest.raises(ValueError, match="non-hexadecimal"):
        columns.digests(["an oak"])


@pytest.mark.parametrize("column", [columns.texts("abcde"), birds(WREN, TIT, OWL, TIT, WREN)])
def test_a_column_is_a_sequence(column: Column[Any]) -> None:
    values = list(column)
    assert len(column) == 5 and column == values and values == column
    assert column != values[:-1] and column != [*values[1:], values[1]] and column != 5
    for which in (0, 4, -1, -5, slice(1, 3), slice(None, None, -1), slice(9, 10)):
        assert column[which] == values[which]
    assert column[np.int64(2)] == values[2]
    for outside in (5, -6):
        with pytest.raises(IndexError):
            column[outside]
    assert column.take([3, 3, 0]) == [values[3], values[3], values[0]]
    assert pickle.loads(pickle.dumps(column)) == values


def test_what_was_taken_grows_alone() -> None:
    whole = birds(WREN, TIT)
    part = whole[:1]
    part.append(OWL)
    assert part == [WREN, OWL] and whole == [WREN, TIT]


def test_a_field_is_replaced() -> None:
    whole = birds(WREN, TIT)
    assert whole.with_column("legs", [3, 4]) == [Bird("wren", 3, "hole"), Bird("tit", 4)]
    assert whole == [WREN, TIT]
    assert list(whole.column("nest")) == ["hole", None]
    with pytest.raises(ValueError, match="1 values for 2 records"):
        whole.with_column("legs", [3])


def test_a_matrix_leaves_out_what_is_empty() -> None:
    bytes_of = partial(Packed, bytes, bytes)
    assert bytes_of([b"ab", b"", b"\xff\0"]).matrix(2).tolist() == [[97, 98], [255, 0]]
    assert bytes_of([b"", b""]).matrix(2).shape == (0, 2)


def test_a_table_takes_few_bytes_a_row() -> None:
    tracemalloc.start()
    whole = birds()
    for number in range(20_000):
        whole.append(Bird(f"bird {number:05}", 2, f"nest {number % 7}"))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / 20_000 < 40  # 10 + 8 + 4 + 8, and room to grow; as objects 190
