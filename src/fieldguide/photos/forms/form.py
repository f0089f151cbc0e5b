"""The plain table that a source in a known form becomes, and what its readers share.

Knows nothing of any form.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from fieldguide.errors import DataError
from fieldguide.photos.catalog import is_video, videos_left
from fieldguide.photos.groups import events, time_of
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
    timed: bool = False  # events that it does not name come from times: see `with_events`

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
    needed: Sequence[str] = (PATH,),
) -> Form:
    """Return rows by column as a form; columns that no row fills are left away, but `needed` ones.

    `names` are the names of columns that have others in `rows`.
    """
    named = dict.fromkeys(chain.from_iterable(chain([needed], rows, aside)))
    filled = [
        key for key in named if key in needed or any(row.get(key) for row in chain(rows, aside))
    ]
    keys = {(names or {}).get(key, key): key for key in filled}
    order = [name for name in (PATH, LABEL, EVENT, PLACE, SPLIT, TIME, BOX) if name in keys]
    header = (*order, *(name for name in keys if name not in order))
    wanted = [keys[name] for name in header]
    cells = [_cells(part, wanted) for part in (rows, aside)]
    return Form(name, base, header, cells[0], tuple(rules), left_out, aside=cells[1])


def _cells(rows: Sequence[Mapping[str, str]], wanted: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the wanted cells of rows; those that a row lacks are empty."""
    needed = {*wanted}
    if len(wanted) > 1 and all(row.keys() >= needed for row in rows):
        return tuple(map(itemgetter(*wanted), rows))  # three times as fast
    return tuple(tuple([row.get(key, "") for key in wanted]) for row in rows)


def without_videos(form: Form) -> Form:
    """Return a form without its rows of videos, which it counts as left out."""
    if PATH not in form.header or form.timed:  # whose readers left them out
        return form
    at = form.header.index(PATH)
    videos = [row[at] for row in form.rows if is_video(row[at])]
    if not videos:
        return form
    kept = tuple(row for row in form.rows if not is_video(row[at]))
    why = videos_left(videos, form.base)
    return replace(form, rows=kept, left_out={**(form.left_out or {}), why: len(videos)})


def with_events(form: Form, gap: float) -> Form:
    """Return a timed form with events by time at a place, within `gap` s, where it names none.

    It stays timed if any comes from times. Rows without time or place stay without an event.
    """
    if not form.timed:
        return form

    def cells(name: str) -> list[str]:
        at = form.header.index(name) if name in form.header else None
        return [""] * len(form.rows) if at is None else [row[at] for row in form.rows]

    named, places = cells(EVENT), cells(PLACE)
    each = zip(named, places, cells(TIME), strict=True)
    times = [None if event or not place else time_of(time) for event, place, time in each]
    made = [a or b or "" for a, b in zip(named, events(times, places, gap), strict=True)]
    told = [*form.rules]
    by_time, without = sum(time is not None for time in times), made.count("")
    if by_time:
        told.append(f"events by times within {gap:g} s at a place ({count(by_time, 'photo')})")
    if 0 < without < len(made):
        told.append(f"{count(without, 'photo')} without time or place, each an event of its own")
    form = replace(form, rules=tuple(told), timed=by_time > 0)
    if not by_time:
        return form
    at = form.header.index(EVENT if EVENT in form.header else PLACE)  # where events stand
    after = at + (EVENT in form.header)
    return replace(
        form,
        header=(*form.header[:at], EVENT, *form.header[after:]),
        rows=tuple(
            (*row[:at], event, *row[after:]) for row, event in zip(form.rows, made, strict=True)
        ),
        aside=tuple((*row[:at], "", *row[after:]) for row in form.aside),
    )


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
