"""The plain table that a source in a known form becomes, and what its readers share.

Knows nothing of any form.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fieldguide.errors import DataError
from fieldguide.words import count, listed

# Columns of a form's table. Those that a form lacks are not there; others keep the form's names.
PATH, LABEL, SPLIT = "path", "label", "split"
EVENT = "event"  # photos of one occasion, which no fold may split
PLACE = "place"  # what a new place means
TIME = "time"  # when the photo was taken, ISO 8601 without zone
BOX = "box"  # left, top, width and height as shares of the picture, as in `crops`
CONFIDENCE = "confidence"  # a detector's, of the box


@dataclass(frozen=True)
class Form:
    """The photos that a source lists, one row each.

    Paths start from `base`. There is no column `label` where nothing decides between several that
    may be it. A row whose label is empty has none. `rules` say in words what was decided, such as
    which of several labels counts; `left_out` says why rows are missing, and how many.
    """

    name: str  # such as `Camtrap DP`
    base: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[str, ...] = ()
    left_out: Mapping[str, int] | None = None
    usual: bool = False  # labels are found by usual names, as in any table
    aside: tuple[tuple[str, ...], ...] = ()  # rows left out for their labels, to be predicted

    @property
    def told(self) -> str:
        """What was read and how, in one line."""
        gone = [f"{why} ({number:,})" for why, number in (self.left_out or {}).items() if number]
        said = [*self.rules, *(["left out: " + ", ".join(gone)] if gone else [])]
        return f"form: {self.name} ({count(len(self.rows), 'row')})" + "".join(
            f"; {s}" for s in said
        )


class Known(NamedTuple):
    """A known form: its name for `--format`, and its reader.

    One that is `boxed` has boxes: its reader takes `boxes=True` for a row each, not one a photo.
    The reader returns None for a file or folder that is not of the form, by content. It raises
    DataError with file, row or key and what was expected for one that claims to be and breaks it.
    """

    name: str
    read: Callable[..., Form | None]
    boxed: bool = False


def load_text(place: Path) -> str:
    """Return the text of a file; DataError if it is not in UTF-8 or cannot be read."""
    try:
        return place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place.name}: not text in UTF-8: byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{(error.strerror or '').lower()}: {place}") from error


def load_json(place: Path) -> Any:
    """Return the content of a JSON file; DataError with line and column if it is damaged."""
    try:
        return json.loads(load_text(place))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{place.name}, {where}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{place.name}: nested too deeply for JSON of any known form") from error


def require(value: Any, kind: type | tuple[type, ...], where: str, expected: str) -> Any:
    """Return the value; DataError that says `where` and what was `expected` for another type."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        shown = repr(value)[:60]
        raise DataError(f"{where}: expected {expected}, found {shown}")
    return value


def table_of(
    name: str,
    base: Path,
    rows: Sequence[Mapping[str, str]],
    *,
    names: Mapping[str, str] | None = None,
    rules: Sequence[str] = (),
    left_out: Mapping[str, int] | None = None,
    aside: Sequence[Mapping[str, str]] = (),
) -> Form:
    """Return rows by column as a form; columns that no row fills are left away.

    `names` are the names of columns that have others in `rows`.
    """
    filled = dict.fromkeys(key for row in rows for key in row if row[key])
    keys = {(names or {}).get(key, key): key for key in filled}
    order = [name for name in (PATH, LABEL, EVENT, PLACE, SPLIT, TIME) if name in keys]
    header = (*order, *(name for name in keys if name not in order))
    wanted = [keys[name] for name in header]
    cells, others = (
        tuple(tuple([row.get(key, "") for key in wanted]) for row in part) for part in (rows, aside)
    )
    return Form(name, base, header, cells, tuple(rules), left_out, aside=others)


def label_column(form: Form, name: str | None = None) -> str:
    """Return the name of the column of labels: the one asked for, else `label`.

    Raises DataError that names all columns if it is not there.
    """
    if (column := name or LABEL) in form.header:
        return column
    what = f"no column `{name}`" if name else "nothing decides which column is the label"
    shown = listed([f"`{each}`" for each in form.header if each != PATH]) or "none but paths"
    raise DataError(
        f"{form.name}: {what}; columns: {shown}", hint="say which is the label with --label-column"
    )
