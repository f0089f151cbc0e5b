"""Tables in memory, column by column: some tens of bytes a row, where objects take many hundreds.

Columns are arrays of numbers, lists that hold equal values once, and `Packed` bytes for values that
differ. Records are made on demand and not kept. Knows nothing of what the values mean.
"""

from abc import abstractmethod
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)


class Column(Sequence[T], Generic[T]):
    """A sequence whose values are made on demand. It equals any sequence of equal values."""

    @abstractmethod
    def take(self, rows: Iterable[int]) -> "Column[T]":
        """Return a new column of the values in these rows, counted from 0, in their order."""

    @abstractmethod
    def _at(self, row: int) -> T: ...

    @overload
    def __getitem__(self, which: SupportsIndex) -> T: ...

    @overload
    def __getitem__(self, which: slice) -> "Column[T]": ...

    def __getitem__(self, which: SupportsIndex | slice) -> "T | Column[T]":
        rows = range(len(self))[which]
        return self.take(rows) if isinstance(rows, range) else self._at(rows)

    def __iter__(self) -> Iterator[T]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))


class Packed(Column[T]):
    """A column of mostly different values, as bytes in one buffer and 8 bytes a row.

    `pack` turns a value into bytes, and `unpack` bytes into an equal value.
    """

    def __init__(
        self, pack: Callable[[T], bytes], unpack: Callable[[bytearray], T], values: Iterable[T] = ()
    ) -> None:
        self._pack, self._unpack = pack, unpack
        self._content = bytearray()
        self._ends = array("q", [0])
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, value: T) -> None:
        """Add a value at the end."""
        self._content += self._pack(value)
        self._ends.append(len(self._content))

    def take(self, rows: Iterable[int]) -> "Packed[T]":
        """Return a new column of the values in these rows, counted from 0, in their order."""
        taken = Packed(self._pack, self._unpack)
        for row in rows:
            taken._content += self._content[self._ends[row] : self._ends[row + 1]]
            taken._ends.append(len(taken._content))
        return taken

    def matrix(self, width: int) -> NDArray[np.uint8]:
        """Return a view of the bytes, (n, width), where every value takes `width` bytes or none.

        Values of no bytes have no row. While the view lives, nothing can be added to the column.
        """
        return np.frombuffer(self._content, np.uint8).reshape(-1, width)

    def _at(self, row: int) -> T:
        return self._unpack(self._content[self._ends[row] : self._ends[row + 1]])


_NONE = b"\xff"  # no text in UTF-8 holds this byte


def texts(values: Iterable[str | None] = ()) -> Packed[str | None]:
    """Return a column of None or texts of any Unicode (file names hold lone surrogates)."""
    return Packed(_encoded, _decoded, values)


def _encoded(text: str | None) -> bytes:
    return _NONE if text is None else text.encode("utf-8", "surrogatepass")


def _decoded(content: bytearray) -> str | None:
    return None if content == _NONE else content.decode("utf-8", "surrogatepass")


def digests(values: Iterable[str] = ()) -> Packed[str]:
    """Return a column of hash values in lower-case hexadecimal; ValueError for other texts."""
    return Packed(bytes.fromhex, bytearray.hex, values)


class Shared(list[H]):
    """A list of few different values, 8 bytes a row: equal values are kept once."""

    def __init__(self, values: Iterable[H] = ()) -> None:
        self._first: dict[H, H] = {}
        super().__init__(self._first.setdefault(value, value) for value in values)

    def append(self, value: H) -> None:
        """Add a value at the end."""
        list.append(self, self._first.setdefault(value, value))


class Records(Column[T]):
    """A sequence of records of one class, each field a column.

    `fields` maps each field to the maker of its column, in the order of the arguments of `kind`.
    """

    def __init__(
        self,
        kind: Callable[..., T],
        fields: Mapping[str, Callable[[Iterable[Any]], Any]],
        records: Iterable[T] = (),
    ) -> None:
        self._kind, self._fields = kind, fields
        self._columns = {name: make(()) for name, make in fields.items()}
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __iter__(self) -> Iterator[T]:
        return map(self._kind, *self._columns.values())

    def append(self, record: T) -> None:
        """Add a record at the end."""
        for name, column in self._columns.items():
            column.append(getattr(record, name))

    def take(self, rows: Iterable[int]) -> "Records[T]":
        """Return new records: those in these rows, counted from 0, in their order."""
        chosen = array("q", rows)
        return self._of(
            {
                name: column.take(chosen)
                if isinstance(column, Packed)
                else self._fields[name](map(column.__getitem__, chosen))
                for name, column in self._columns.items()
            }
        )

    def column(self, name: str) -> Any:
        """Return the column of a field. Do not append to it alone."""
        return self._columns[name]

    def with_column(self, name: str, values: Iterable[Any]) -> "Records[T]":
        """Return new records with other values of a field, one a record, else ValueError.

        The columns of the other fields are shared: append to neither.
        """
        column = self._fields[name](values)
        if len(column) != len(self):
            raise ValueError(f"{len(column)} values for {len(self)} records")
        return self._of({**self._columns, name: column})

    def _of(self, columns: dict[str, Any]) -> "Records[T]":
        made = Records(self._kind, self._fields)
        made._columns = columns
        return made

    def _at(self, row: int) -> T:
        return self._kind(*(column[row] for column in self._columns.values()))
