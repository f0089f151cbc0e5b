"""The catalog of photos that a CSV or TSV table lists, and other tables in plain text.

Labels are never converted: `01`, `1.0`, `NA` and ` oak` stay as they are. Knows nothing of pixels.
"""

import codecs
import csv
import difflib
import gzip
import io
import math
import os
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fieldguide.errors import DataError, PhotosAway
from fieldguide.photos import crops, groups
from fieldguide.photos.catalog import (
    EXTENSIONS,
    SPLIT_FOLDERS,
    USUAL_NAMES,
    VIDEO_ENDINGS,
    Catalog,
    Note,
    Occasions,
    Photo,
    Split,
    in_columns,
    is_video,
    similar_classes,
    told,
    videos_note,
)
from fieldguide.photos.folders import answer_of, is_hidden
from fieldguide.photos.groups import simplified
from fieldguide.storage import addresses, files, parquet
from fieldguide.storage.columns import Records
from fieldguide.words import count, first_line, listed, quoted

_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or a spreadsheet such as .xlsx",
    b"\xd0\xcf\x11\xe0": "a spreadsheet such as .xls",
    b"\x1f\x8b": "compressed by gzip",
}
NO_HEADER = "the first row is a photo, not names of columns: all rows are read"

# Darwin Core's names of ranks, from wide to narrow. Beside others of them `class` is a rank.
RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
BINOMIAL = "genus + species"  # a column made of both, where `species` holds epithets alone

# Column names of boxes and of a detector's confidences, as usual names are compared.
BOXES, CONFIDENCES = ("box", "bbox"), ("confidence", "conf", "detectionconf", "score")

TABLE_EXTENSIONS = frozenset({".csv", ".tsv", ".txt", ".tab"})


@dataclass(frozen=True)
class Table:
    """A table as text: `rows` are (number, cells), and the header has the number 1.

    Where the first row is a photo, `header` holds numbers from 1.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    separator: str = ","
    headless: bool = False


def read_table(
    csv: str | Path,
    *,
    path: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
    fold: str | None = None,
    root: str | Path | None = None,
    encoding: str | None = None,
    labelled: bool = True,
    event_gap: float | None = None,
    crop: str | None = None,
) -> Catalog:
    """Return the photos that a CSV or TSV file lists, in its order.

    `path` to `fold` name its columns; without them the usual names are recognised (path, file,
    image, ...; label, class, species, ...; group, event, seq_id, ...; split; fold). `group` may be
    several columns, `A,B`, or, if no column is called so, `event` (by times within `event_gap`,
    60 seconds, at a place, where no column names it), `place`, `none`, or a choice of
    `groups.grouped`. Separators `,` `;` tab and `|` are detected, UTF-16 by its mark, all else is
    UTF-8 unless `encoding` is given. Paths are absolute, relative to `root`, or to the table's
    folder; a file's ending may be left out, and a backslash may stand for `/`. `labelled=False`
    reads a list of photos to predict, without labels. `crop` (`crops.Crop.of`) takes a row for a
    box, from columns `box` and, if there is one, `confidence`. Rows without a label or a file are
    left out and noted. Raises DataError with the row for a table that cannot be read, and with the
    nearest name for a missing column.
    """
    place = addresses.local(csv)
    table = with_binomials(read_cells(place, encoding))
    if not table.rows:
        raise DataError(f"the table has a header and no rows: {place}")
    wanted = {"path": path, "label": label, "split": split, "fold": fold}
    base = Path(place.parent if root is None else root).resolve()
    return catalog_of(table, base, wanted, group, labelled=labelled, event_gap=event_gap, crop=crop)


def catalog_of(
    table: Table,
    base: Path,
    wanted: Mapping[str, str | None],
    group: str | None = None,
    *,
    labelled: bool = True,
    event_gap: float | None = None,
    crop: str | None = None,
    form: str = "",
    timed: str = "",
) -> Catalog:
    """Return the photos of a table whose paths start from `base`; see `read_table`.

    `wanted` are columns by role, None where the usual names are to be recognised. `form` says in
    words what form the table had; in its column `timed`, events come from times. Raises UsageError
    for an `event_gap` that makes no groups.
    """
    width = len(table.header)
    by_path = group if groups.is_by_path(group) and group not in table.header else None
    table, column, made_of = _with_groups(
        table, None if by_path else group, groups.gap_of(event_gap)
    )
    wanted = {**wanted, "group": column}
    columns = _find_columns(table, wanted, required=("path", "label") if labelled else ("path",))
    if not labelled:
        columns.pop("label", None)
    if by_path or (group == "none" and column is None):
        columns.pop("group", None)
    used = {columns.get("group"), *made_of}
    by_time = {at for at, name in enumerate(table.header) if name == timed}
    by_time |= {width} if group == "event" and len(table.header) > width else set()
    if not used & by_time:
        at = columns.get("group")
        groups.refuse_gap(
            event_gap, by_path or ("none" if at is None else f"column {table.header[at]}")
        )
    if not base.is_dir():
        raise DataError(
            f"no such folder: {base}", hint="`root` is where the photos of the table lie"
        )
    finder = Finder(base)
    notes: list[Note] = [Note("no-header", "", NO_HEADER)] if table.headless else []
    rule = crops.Crop.of(crop) if crop else None
    cut, of_boxes = boxes_of(table, columns["path"], rule) if rule else ({}, ())
    if rule and not cut:
        raise DataError(f"{table.name}: none of its boxes counts: {rule.name}")
    timed_table, event = table, None
    if labelled and not by_path and "group" not in columns:
        timed_table, event = _with_occasions(table, set(columns.values()))
    roles = columns if event is None else {**columns, "group": event}
    photos = _photos_of_rows(timed_table, roles, finder, notes, labelled, cut, rule)
    videos = next((note for note in notes if note.kind == "videos"), None)
    occasions = None
    if event is not None:
        sizes = Counter(photo.group for photo in photos)
        shared = {p.path: p.group for p in photos if p.group and sizes[p.group] > 1}
        occasions = Occasions(timed_table.header[event], shared)
        photos = [replace(photo, group=None) for photo in photos]
    missing = [note.path for note in notes if note.kind == "missing-file"]
    if not photos and not missing and videos:
        raise DataError(f"{table.name}: no row is a photo, but {videos.message}", hint=videos.hint)
    if not photos and not missing:
        raise DataError(f"{table.name}: no row has a label")
    if not photos:
        windows = re.match(r"[A-Za-z]:[\\/]", missing[0])
        raise PhotosAway(
            f"{table.name}: none of the {count(len(missing), 'file')} was found below {base}:"
            f" {quoted(missing)}",
            hint="the paths are those of a Windows machine: write them from the photos' folder on"
            if windows and os.name != "nt"
            else "give the folder that the paths start from as `root`",
        )
    notes += similar_classes({p.label for p in photos if p.label is not None})
    if finder.recased:
        message = f"names in other case than the files': {quoted(finder.recased)}"
        notes.append(Note("other-case", finder.recased[0], message))
    notes += finder.without_row()
    where = _usual(table, groups.PLACES) if labelled else None
    if where is not None and where not in used:
        notes += _shared_places(table, where)
    found = in_columns(photos)
    names = {role: f"column {table.header[column]}" for role, column in columns.items()}
    if by_path:
        found, names["group"] = groups.grouped(found, by_path)
    if rule:
        found = groups.by_photo(found)
        names.setdefault("group", groups.BY_PHOTO)
    said = _told(table, {*columns.values(), *made_of, *of_boxes}, names, found, base, notes)
    if rule:
        unsure = ", no confidences" * (len(of_boxes) < 2)
        rows = f"{len(cut):,} of {count(len(table.rows), 'row')}{unsure}"
        said = f"crops: {rule.name} ({rows}); {said}"
    said = f"{form}; {said}" if form else said
    return Catalog(base, found, tuple(notes), said, rule.name if rule else "", occasions)


def _with_groups(
    table: Table, group: str | None, gap: float
) -> tuple[Table, str | None, tuple[int, ...]]:
    """Return the table, perhaps with a column of groups more, its name and what it is made of."""
    if group is None or group in table.header:
        return table, group, ()
    if group == "none":
        return table, None, ()
    parts = [part.strip() for part in group.split(",")]
    if len(parts) > 1:
        made_of = tuple(_named(table, part) for part in parts)
        joined = [" | ".join(cells[place] for place in made_of) for _, cells in table.rows]
        return _with_column(table, " + ".join(parts), joined), " + ".join(parts), made_of
    usual = {"event": groups.EVENTS, "place": groups.PLACES}.get(group)
    if usual is None:
        return table, group, ()  # which is told to be no column
    if (known := _usual(table, usual)) is not None:
        return table, table.header[known], ()
    when = _usual(table, groups.TIMES)
    if group == "place" or when is None:
        raise DataError(
            f"{table.name}: no column for the {group}; columns found: {_all_names(table)}",
            hint="say which with --group COLUMN (`group` in Python)"
            + "; a column `time` serves for events too" * (group == "event"),
        )
    return _with_events(table, when, _usual(table, groups.PLACES), gap)


def _with_events(
    table: Table, when: int, where: int | None, gap: float
) -> tuple[Table, str, tuple[int, ...]]:
    """Return the table with a column of events by times, its name and what it is made of."""
    name = f"{table.header[when]} within {gap:g} s"
    places = [""] * len(table.rows)
    if where is not None:
        name += f" at {table.header[where]}"
        places = [cells[where] for _, cells in table.rows]
    times = [groups.time_of(cells[when]) for _, cells in table.rows]
    if not any(times):
        raise DataError(
            f"{table.name}: no cell of `{table.header[when]}` is a time of day",
            hint="such as 2026-05-31 06:59:58",
        )
    found = [event or "" for event in groups.events(times, places, gap)]
    return _with_column(table, name, found), name, (when,) if where is None else (when, where)


def _with_occasions(table: Table, taken: set[int]) -> tuple[Table, int | None]:
    """Return the table with a column of the events that `event` would group, and its number."""
    events = _usual(table, groups.EVENTS)
    if events is not None:
        return table, None if events in taken else events
    when = _usual(table, groups.TIMES)
    if when is None or when in taken:
        return table, None
    with suppress(DataError):  # no cell is a time of day
        timed, name, _ = _with_events(table, when, _usual(table, groups.PLACES), groups.EVENT_GAP)
        return timed, timed.header.index(name)
    return table, None


def _usual(table: Table, names: Sequence[str]) -> int | None:
    plain = simplified(table.header)
    return next((plain.index(name) for name in names if name in plain), None)


def _shared_places(table: Table, place: int) -> list[Note]:
    """Return a note on photos that share their place, which makes no groups, with others."""
    name = table.header[place]
    counts = Counter(cells[place] for _, cells in table.rows if cells[place])
    shared = sum(number for number in counts.values() if number > 1)
    if not shared:
        return []
    message = (
        f"{shared / len(table.rows):.0%} of rows share `{name}` ({count(len(counts), 'value')})"
        " with others: folds are tested at places that they were trained on"
    )
    return [Note("shared-place", "", message, f"--group {name} for a figure at new places")]


def _with_column(table: Table, name: str, cells: Sequence[str]) -> Table:
    rows = tuple(
        (number, (*row, cell)) for (number, row), cell in zip(table.rows, cells, strict=True)
    )
    return replace(table, header=(*table.header, name), rows=rows)


def read_cells(
    place: Path,
    encoding: str | None = None,
    most: int = -1,
    dialect: Mapping[str, Any] | None = None,
) -> Table:
    """Return a table in plain text, perhaps without rows; DataError with the row of a fault.

    With `most`, it is read only as far as the last line that ends within that many bytes. `dialect`
    has options of `csv.reader`, of which the separator is else detected.
    """
    if place.suffix == parquet.ENDING:
        raise DataError(
            f"not a table in plain text: {place}",
            hint="name the folder that the Parquet files lie in",
        )
    if place.suffix.lower() in {".json", ".xml"}:
        raise DataError(
            f"in no form that is known: {place}", hint="write its photos as a CSV table"
        )
    text = decoded(content_of(place, most), place.name, encoding)
    if not text.strip():
        raise DataError(f"the table is empty: {place}")
    if said := re.match(r"sep=(.)\r?\n", text):  # a spreadsheet's own line
        separator, text = said[1], text[said.end() - 1 :]
    else:
        separator = "\t" if place.suffix.lower() in (".tsv", ".tab") else _separator(text)
    rows = list(_parsed(place, text, {"delimiter": separator, **(dialect or {})}))
    if not rows:
        raise DataError(f"the table is empty: {place}")
    rows = _without_empty_columns(rows)
    header = rows[0][1]
    headless = any(Path(cell.strip()).suffix.lower() in EXTENSIONS for cell in header)
    if headless:
        header = tuple(str(number) for number in range(1, len(header) + 1))
        rows.insert(0, (0, header))
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{place.name}, row 1: column `{twice[0]}` stands there twice")
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise DataError(
                f"{place.name}, row {number}: {count(len(cells), 'cell')},"
                f" the header has {len(header)}",
                hint="put cells that hold the separator into double quotes",
            )
    return Table(place.name, header, tuple(rows[1:]), separator, headless)


def _without_empty_columns(
    rows: list[tuple[int, tuple[str, ...]]],
) -> list[tuple[int, tuple[str, ...]]]:
    """Return the rows without columns at the right that have no name and no cell."""
    width = len(rows[0][1])
    while width > 1 and not rows[0][1][width - 1]:
        width -= 1
    if any(any(cells[width:]) for _, cells in rows):
        return rows
    return [(number, cells[:width]) for number, cells in rows]


def content_of(place: Path, most: int = -1) -> bytes:
    """Return the bytes of a table or list, or `most` of them without the line that they cut.

    Raises DataError if it cannot be read.
    """
    try:
        with gzip.open(place) if place.suffix == ".gz" else place.open("rb") as file:
            data = file.read(most)
        return data.rpartition(b"\n")[0] or data if len(data) == most else data
    except (OSError, EOFError, zlib.error) as error:
        if not place.exists():
            raise PhotosAway(f"no such file or folder: {place}") from error
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{reason.lower()}: {place}") from error


def decoded(data: bytes, name: str, encoding: str | None = None, errors: str = "strict") -> str:
    """Return the text of a table or list called `name`, without a mark at its start.

    UTF-16 is known by its mark, all else is UTF-8 unless `encoding` is given. Raises DataError with
    the row for anything else.
    """
    for magic, what in _NO_TEXT.items():
        if data.startswith(magic):
            raise DataError(
                f"{name}: {what}, not a table in plain text",
                hint="save it as CSV in UTF-8, as a spreadsheet program can",
            )
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    codec = encoding or ("utf-16" if utf16 else "utf-8-sig")
    try:
        text = data.decode(codec, errors).removeprefix("\ufeff")
    except LookupError as error:
        raise DataError(
            f"unknown encoding: `{codec}`", hint="such as `utf-8` or `latin-1`"
        ) from error
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        row = data.count(b"\n", 0, start) + 1
        raise DataError(
            f"{name}, row {row}: not text in {codec.removesuffix('-sig').upper()}",
            hint="give the encoding: `latin-1` for many older tables",
        ) from error
    before, nul, _ = text.partition("\0")
    if nul:
        row = before.count("\n") + 1
        raise DataError(
            f"{name}, row {row}: a NUL byte, so this is not a table in plain text",
            hint="save it as CSV in UTF-8",
        )
    return text if "\n" in text else text.replace("\r", "\n")  # as old Macintoshes end lines


def _separator(text: str) -> str:
    """Return the separator that cuts the header into most cells; a comma if none cuts it."""
    header = text.partition("\n")[0]
    with suppress(csv.Error):  # of a cell too long: who reads the rows says so
        counts = {s: len(next(csv.reader([header], delimiter=s), [])) for s in ",;\t|"}
        return max(counts, key=lambda s: counts[s])
    return ","


def _parsed(
    place: Path, text: str, dialect: Mapping[str, Any]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), **{"strict": True, **dialect})
    except (TypeError, ValueError) as error:  # of what describes the table
        raise DataError(f"{place.name}: cannot be read as described: {error}") from error
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            if any(cells):  # blank lines and rows of nothing but separators
                yield number, tuple(map(files.unescaped, cells))
    except csv.Error as error:
        raise DataError(f"{place.name}, row {number + 1}: {error}") from error


def path_column(table: Table, name: str | None = None) -> int:
    """Return the number of the column of that name, or of paths by usual names; else DataError."""
    return _find_columns(table, {"path": name}, required=("path",))["path"]


def _find_columns(
    table: Table, wanted: Mapping[str, str | None], required: Sequence[str]
) -> dict[str, int]:
    """Map roles to column numbers: by the user's names, usual names, or as the only choice."""
    columns = {role: _named(table, name) for role, name in wanted.items() if name is not None}
    plain = simplified(table.header)
    for role, names in USUAL_NAMES.items():
        usual = [plain.index(name) for name in names if name in plain]
        free = [column for column in usual if column not in columns.values()]
        if role == "label":
            free = _labels_among(table, free, plain) if role in required else free
        if role not in columns and free:
            columns[role] = free[0]
    for role in required:
        if role not in columns:
            columns |= _only_sensible(table, role, set(columns.values()))
    missing = [role for role in required if role not in columns]
    if missing:
        raise DataError(
            f"{table.name}: no column for the {missing[0]}; columns found: {_all_names(table)}",
            hint=f"say which column is the {missing[0]}; the first row must name the columns",
        )
    return columns


def _labels_among(table: Table, usual: list[int], plain: Sequence[str]) -> list[int]:
    """Return the column of the label, of all with usual names, or none; DataError if they compete.

    Of Darwin Core's ranks it is the species, as a binomial where its column holds epithets alone.
    Columns that stand for each other, as numbers and names of classes, do not compete.
    """
    if BINOMIAL in table.header:
        return [table.header.index(BINOMIAL)]
    if sum(name in plain for name in RANKS) > 1:
        usual = [column for column in usual if plain[column] != "class"]
    if len(usual) < 2:
        return usual
    first = [cells[usual[0]] for _, cells in table.rows]
    for column in usual[1:]:
        pairs = {*zip(first, (cells[column] for _, cells in table.rows), strict=True)}
        if not len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs}):
            names = listed([f"`{table.header[each]}`" for each in usual])
            raise DataError(
                f"{table.name}: {names} may each be the labels",
                hint=f"say which with --label-column, such as `{table.header[usual[0]]}`"
                " (`label` in Python)",
            )
    return usual


def with_binomials(table: Table) -> Table:
    """Return the table with a column of `genus + species`, where species are epithets alone."""
    plain = simplified(table.header)
    if not {"genus", "species"} <= {*plain}:
        return table
    genus, species = plain.index("genus"), plain.index("species")
    epithets = [cells[species].strip() for _, cells in table.rows]
    if any(" " in each or each[:1].isupper() for each in epithets):
        return table
    rows = tuple(
        (number, (*cells, f"{cells[genus].strip()} {epithet}" if epithet else ""))
        for (number, cells), epithet in zip(table.rows, epithets, strict=True)
    )
    return replace(table, header=(*table.header, BINOMIAL), rows=rows)


def _told(
    table: Table,
    used: set[int],
    names: Mapping[str, str],
    photos: Records[Photo],
    base: Path,
    notes: Sequence[Note],
) -> str:
    """Return what every column was taken for; `names` say where each field comes from."""
    if BINOMIAL in table.header:
        used |= {table.header.index(BINOMIAL)}
        if names.get("label") == f"column {BINOMIAL}":
            plain = simplified(table.header)
            used |= {plain.index("genus"), plain.index("species")}
    unused = [
        f"{name} ({count(len({cells[column] for _, cells in table.rows}), 'value')})"
        for column, name in enumerate(table.header)
        if column not in used
    ]
    return told(photos, names, paths=f"{names['path']} below {base}", unused=unused, notes=notes)


def _named(table: Table, name: str) -> int:
    if name in table.header:
        return table.header.index(name)
    near = difflib.get_close_matches(name, table.header, n=1, cutoff=0.5)
    raise DataError(
        f"{table.name}: no column `{name}`; columns found: {_all_names(table)}",
        hint=f"did you mean `{near[0]}`?" if near else "",
    )


def _all_names(table: Table) -> str:
    return ", ".join(f"`{name}`" for name in table.header)


def _only_sensible(table: Table, role: str, taken: set[int]) -> dict[str, int]:
    """Return the only possible column: of file names, or for the label the only one left."""
    free = [column for column in range(len(table.header)) if column not in taken]
    if role == "label":
        no_labels = (*BOXES, *CONFIDENCES)
        plain = simplified(table.header)
        free = [column for column in free if plain[column] not in no_labels]
    if role == "path":
        sample = [cells for _, cells in table.rows[:100]]
        media = EXTENSIONS | VIDEO_ENDINGS
        free = [c for c in free if all(Path(row[c]).suffix.lower() in media for row in sample)]
    return {role: free[0]} if len(free) == 1 else {}


def has_boxes(table: Table) -> bool:
    """Return whether a table has a column of boxes."""
    return _usual(table, BOXES) is not None


def boxes_of(
    table: Table, path: int, rule: crops.Crop
) -> tuple[dict[int, crops.Box], tuple[int, ...]]:
    """Return the box of each row that counts, by the row's number, and the columns of boxes."""
    box, sure = _usual(table, BOXES), _usual(table, CONFIDENCES)
    if box is None:
        raise DataError(
            f"{table.name}: no column of boxes; columns found: {_all_names(table)}",
            hint="a column `box` has left, top, width and height as shares of the picture, such as"
            " 0.1 0.2 0.3 0.4; or name the file that holds the boxes with --boxes",
        )
    boxes = [
        crops.box_of(cells[box], f"{table.name}, row {number}") if cells[box].strip() else None
        for number, cells in table.rows
    ]
    confidences = [
        math.nan
        if sure is None
        else crops.confidence_of(cells[sure], f"{table.name}, row {number}")
        for number, cells in table.rows
    ]
    photos = [cells[path] for _, cells in table.rows]
    kept = {}
    for row in crops.counting(photos, boxes, confidences, rule):
        if (found := boxes[row]) is not None:
            kept[table.rows[row][0]] = found
    return kept, (box,) if sure is None else (box, sure)


def boxes_by_photo(table: Table, path: int, rule: crops.Crop) -> dict[str, list[crops.Box]]:
    """Return the boxes that count of each photo, by its path as it stands there, each once."""
    kept, _ = boxes_of(table, path, rule)
    found: dict[str, list[crops.Box]] = {}
    for number, cells in table.rows:
        boxes = found.setdefault(cells[path], [])
        if number in kept and kept[number] not in boxes:
            boxes.append(kept[number])
    return found


def _photos_of_rows(
    table: Table,
    columns: Mapping[str, int],
    finder: "Finder",
    notes: list[Note],
    labelled: bool,
    cut: Mapping[int, crops.Box],
    rule: crops.Crop | None,
) -> list[Photo]:
    """Return the photos of usable rows, or their crops; add the others to `notes`."""
    photos: dict[tuple[str, str | None], Photo] = {}
    videos: list[str] = []
    for number, cells in table.rows:
        row = {role: cells[column] for role, column in columns.items()}
        where = f"{table.name}, row {number}"
        split = _split_of(row, where) if labelled else "test"
        label = row.get("label") or None
        if label is not None and not label.strip():
            label = None
        if is_video(row["path"].strip()):
            videos.append(row["path"].strip())
            continue
        path = finder.find(row["path"])
        if path is not None and rule:
            if number not in cut:
                continue
            path = rule.address(path, cut[number])
        if path is None:
            notes.append(Note("missing-file", row["path"], f"row {number}: file not found"))
        elif label is None and split != "test":
            notes.append(Note("empty-label", path, f"row {number}: no label, left out"))
        elif (path, label) in photos:
            message = f"row {number}: the same photo again, left out"
            notes.append(Note("repeated-row", path, message))
        else:
            fold = _fold_of(row, split, where)
            photos[path, label] = Photo(path, label, row.get("group") or None, split, fold)
    notes += [videos_note(videos, finder.base)] if videos else []
    return list(photos.values())


def _split_of(row: Mapping[str, str], where: str) -> Split:
    text = row.get("split", "").strip().lower()
    if text and text not in SPLIT_FOLDERS:
        raise DataError(f"{where}: unknown split: `{text}`", hint="use train, val or test")
    return SPLIT_FOLDERS[text] if text else "train"


def _fold_of(row: Mapping[str, str], split: Split, where: str) -> int | None:
    text = row.get("fold", "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{where}: the fold is not a whole number: `{text}`")
    if split != "train":
        raise DataError(
            f"{where}: the photo is in split `{split}` and also in fold {text}",
            hint="folds divide the training part: leave the fold of this row empty",
        )
    return int(text)


class Finder:
    """A finder of the files that a table names; it lists each folder at most once."""

    def __init__(self, base: Path) -> None:
        self.base = base  # absolute; other paths are relative to it
        self._names: dict[Path, dict[str, list[str]]] = {}
        self._found: set[Path] = set()
        self.recased: list[str] = []  # names that are found in other case alone

    def find(self, text: str) -> str | None:
        """Return the photo's path as the catalog keeps it, or None if there is no such file."""
        if (place := self.file(text)) is None:
            return None
        self._found.add(place)
        return _relative(place, self.base)

    def file(self, text: str) -> Path | None:
        """Return the path of the file, or None if there is none."""
        bare = text.strip()
        # Of Windows' paths, where a folder may be called `xff`.
        slashed = (each.replace("\\", "/") for each in (bare, files.escaped(bare)))
        for spelling in dict.fromkeys((text, bare, files.escaped(bare), *slashed)):
            if spelling and (place := self._existing(spelling)) is not None:
                return place
        return None

    def without_row(self) -> list[Note]:
        """Return a note about photos beside those found that no row names."""
        others = [
            _relative(folder / name, self.base)
            for folder in sorted({place.parent for place in self._found})
            for name in names_of(folder)
            if Path(name).suffix.lower() in EXTENSIONS and not is_hidden(name)
            if folder / name not in self._found
        ]
        if not others:
            return []
        message = f"{count(len(others), 'photo')} without a row in the table: {quoted(others)}"
        return [Note("file-without-row", others[0], message)]

    def _existing(self, spelling: str) -> Path | None:
        place = Path(os.path.normpath(self.base / spelling))
        if answer_of(place.is_file):
            return place
        alike = self._names_in(place.parent).get(_key(place.name), [])
        if len(alike) != 1:
            return None
        if place.suffix and place.suffix not in alike[0]:
            self.recased.append(alike[0])
        return place.with_name(alike[0])

    def _names_in(self, folder: Path) -> dict[str, list[str]]:
        """Map names to photos in a folder: by another Unicode form or case, or no ending."""
        if folder not in self._names:
            names: dict[str, list[str]] = defaultdict(list)
            for name in names_of(folder):
                if Path(name).suffix.lower() in EXTENSIONS and answer_of((folder / name).is_file):
                    names[_key(name)].append(name)
                    names[_key(Path(name).stem)].append(name)
            self._names[folder] = names
        return self._names[folder]


def names_of(folder: Path) -> list[str]:
    """Return the names in a folder in code-point order; none if it cannot be read."""
    try:
        return sorted(place.name for place in folder.iterdir())
    except OSError:  # there is no such folder, or it may not be read
        return []


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _relative(place: Path, base: Path) -> str:
    return (place.relative_to(base) if place.is_relative_to(base) else place).as_posix()
