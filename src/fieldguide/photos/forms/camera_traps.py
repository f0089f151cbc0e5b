"""What readers of camera traps share: one row a photo, times, boxes, and where files lie.

Rows of one photo with equal labels are one; photos under several labels, and photos without a label
where others have one, are left out and counted; so are videos. Where boxes are asked for, the same
holds for them. Events are those that the source names, else come from times (`form.with_events`).
Knows nothing of any form.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fieldguide.errors import DataError
from fieldguide.photos.catalog import is_video, videos_left
from fieldguide.photos.forms.form import BOX, LABEL, PATH, TIME, Form, table_of
from fieldguide.photos.forms.settle import head_of, header_of
from fieldguide.photos.groups import time_of
from fieldguide.photos.tables import read_cells
from fieldguide.storage.files import escaped
from fieldguide.words import count

LOOKED_AT = 50  # photos looked for, to find the folder that paths start from (taste)
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def photos_of(
    name: str,
    base: Path,
    rows: Iterable[dict[str, str]],
    *,
    rules: Sequence[str] = (),
    left: Counter[str],
    unnamed: str = "photos without a label",
    boxes: bool = False,
    unused: int = 0,
    videos: Sequence[str] = (),
    failed: Sequence[dict[str, str]] = (),
) -> Form:
    """Return rows, whose times are as the source has them, as a timed form, one row a photo.

    With `boxes` there is one a box; else `unused` boxes are told. `videos` are those that are no
    rows, `failed` rows of photos for prediction alone. The rows and `left`, which counts what is
    left out, are changed.
    """
    found = list(videos)
    kept, aside = _one_each(rows, left, unnamed, boxes, found)
    aside += failed
    if found:
        left[videos_left(found, base)] = len(found)
    unread = 0
    for row in kept:
        time = time_of(row.get(TIME, ""))
        unread += time is None and bool(row.get(TIME))
        row[TIME] = time.isoformat() if time else ""
    told = [*rules]
    if unused:
        told.append(f"{count(unused, 'box')} of its own not used, which `--crop box` takes")
    if unread:
        told.append(f"{count(unread, 'time')} of no known form, taken as none")
    needed = (PATH, BOX) if boxes else (PATH,)
    form = table_of(name, base, kept, rules=told, left_out=left, aside=aside, needed=needed)
    return replace(form, timed=True)


def _one_each(
    rows: Iterable[dict[str, str]],
    left: Counter[str],
    unnamed: str,
    boxes: bool,
    videos: list[str],
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return a row for each photo that has one label, or for each photo if none has a label.

    With `boxes`, it is for each box. The others come second; paths of videos are added to `videos`,
    once each.
    """
    named: dict[str, dict[str, str]] = {}
    bare: dict[str, dict[str, str]] = {}
    several: set[str] = set()
    empty: dict[str, dict[str, str]] = {}
    seen: dict[str, None] = {}
    for row in rows:
        path, label = row[PATH], row.get(LABEL)
        if is_video(path):
            seen.setdefault(path)
            continue
        if boxes and not row.get(BOX):
            empty.setdefault(path, row)
            continue
        key = f"{path} {row[BOX]}" if boxes else path
        if not label:
            bare.setdefault(key, row)
        elif named.setdefault(key, row)[LABEL] != label:
            several.add(key)
    videos += seen
    left["boxes under several labels" if boxes else "photos under several labels"] += len(several)
    if boxes:
        left["photos without a box"] += len(empty)
    if not named:
        return list(bare.values()), list(empty.values())
    unlabelled = [row for key, row in bare.items() if key not in named]
    left[unnamed] += len(unlabelled)
    kept = [row for key, row in named.items() if key not in several]
    return kept, [*unlabelled, *(named[key] for key in sorted(several)), *empty.values()]


def within(place: str, event: str) -> str:
    """Return an event's name that is its own in all places; an empty one stays empty."""
    return f"{place}/{event}" if place and event else event


def box_text(sides: Any, where: str, size: tuple[float, float] = (1, 1)) -> str:
    """Return the text of a box: left, top, width and height as shares of a picture of that size."""
    try:
        if isinstance(sides, str):
            raise ValueError("text")
        x, y, width, height = (float(side) for side in sides)
        wide, high = size
        return f"{x / wide:.6g} {y / high:.6g} {width / wide:.6g} {height / high:.6g}"
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a box of four numbers, found {sides!r:.60}") from error
    except ZeroDivisionError as error:
        raise DataError(f"{where}: a box in a picture of no size") from error


# --- tables ---------------------------------------------------------------------------------------


def names_of_columns(place: Path) -> frozenset[str]:
    """Return the names of a CSV file's columns; none for anything else."""
    return frozenset(header_of(head_of(place, ".csv")))


def rows_of(
    place: Path,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    encoding: str | None = None,
    dialect: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells, without blanks around them, of the columns asked for.

    A column that is not `needed` and not there has empty cells. Raises DataError with the row for a
    damaged table, and with its name for a missing column.
    """
    table = read_cells(place, encoding, dialect=dialect)
    header = [name.strip() for name in table.header]
    for name in needed:
        if header.count(name) != 1:
            times = "none" if name not in header else "several"
            raise DataError(f"{place.name}: expected one column `{name}`, found {times}")
    width = len(header)
    at = [header.index(name) if name in header else width for name in (*needed, *optional)]
    for number, cells in table.rows:
        filled = (*cells, "")
        yield number, [filled[column].strip() for column in at]


# --- files ----------------------------------------------------------------------------------------


def posix(path: str) -> str:
    """Return a path as a table has it, perhaps a Windows one, with `/` between its parts."""
    return escaped(path).replace("\\", "/").removeprefix("./")


def folder_of(path: str) -> str:
    """Return the folder of a photo's path, `.` for the first one."""
    return path.rpartition("/")[0] or "."


def base_of(folder: Path, paths: Iterable[str], inner: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the folder below which the first photos lie, and the rule if it is an inner one."""
    first = [path for path, _ in zip(paths, range(LOOKED_AT), strict=False)]
    found = {name: sum((folder / name / path).is_file() for path in first) for name in ("", *inner)}
    best = max(found, key=lambda name: found[name])
    return folder / best, [f"photos lie in `{best}/`"] if best else []


def last_parts(folder: Path, addresses: Iterable[str]) -> int:
    """Return how many last parts of addresses are paths below the folder; 0 if none is."""
    found: Counter[int] = Counter()
    for address, _ in zip(addresses, range(LOOKED_AT), strict=False):
        parts = parts_of(address)
        for last in range(1, len(parts) + 1):
            found[last] += folder.joinpath(*parts[-last:]).is_file()
    best = max(found, key=lambda last: (found[last], last), default=0)
    return best if found[best] else 0


def parts_of(address: str) -> list[str]:
    """Return the names in an address's path, as far as they may be names of files here."""
    path = re.split(r"[?#]", ADDRESS.sub("", address))[0]
    return [part for part in path.split("/") if part not in ("", ".", "..")]
