"""Tables as competitions hand them out: photos in a folder beside, and a column for each class.

Source: the data pages of image competitions on Kaggle (2014 to 2026). Their tables name photos by
`id` without an ending, and some have labels as one column of 0 and 1 a class ("one-hot").
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from fieldguide.errors import DataError
from fieldguide.photos.catalog import EXTENSIONS, USUAL_NAMES
from fieldguide.photos.folders import answer_of, is_hidden
from fieldguide.photos.forms.form import LABEL, PATH, Form, Known
from fieldguide.photos.groups import simplified
from fieldguide.photos.tables import (
    TABLE_EXTENSIONS,
    Finder,
    Table,
    names_of,
    path_column,
    read_cells,
)
from fieldguide.words import count, listed, quoted

_BITS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_BEGINNING = 1 << 16  # bytes by which a table is known to be of these forms or not (taste)
_TRIED = 200  # rows that are sought in a folder before all are (taste)

_TABLES = ("train.csv", "labels.csv", "train_labels.csv")
_FOLDERS = ("train", "image", "img", "photo", "picture", "jpg", "jpeg", "png", "data")
_INNER = ("train", "training", "images", "image", "imgs", "img", "photos", "jpg", "jpeg", "png")


class _Read(NamedTuple):
    """A table with its labels in a column, the columns that they replace, and how it was read."""

    table: Table
    replaced: Sequence[int] = ()
    rules: tuple[str, ...] = ()
    left_out: Mapping[str, int] | None = None


def read_one_hot(place: Path) -> Form | None:
    """Return a table that has a column of 0 and 1 (0.0, true, ...) for each class.

    Columns with usual names, such as `fold`, are no classes, and a table with a usual column of
    labels is not of this form. Nor is one in which more rows have several classes than one. A row
    without a class or with several is left out; other columns are kept. Raises DataError for
    another cell in a column that begins with 0 and 1.
    """
    beginning = _beginning(place)
    if beginning is None or not _classes(beginning):
        return None
    if (read := _one_hot(read_cells(place))) is None:
        return None
    column = path_column(read.table)
    paths = [cells[column] for _, cells in read.table.rows]
    return _form("one-hot table", place.parent, read, column, paths)


def read_kaggle(place: Path) -> Form | None:
    """Return the photos of a table that lie in a folder beside it; they may lack their endings.

    `place` is the table, or the folder of `train.csv`, `labels.csv` or `train_labels.csv`. Photos
    are sought in each folder beside the table and in what it may hold, such as `train/images`; for
    a folder, only in those that are called after training or pictures. A table whose photos lie
    where it says is plain; where its folder is given it counts if they all lie in one. Numbers
    stand for names with zeros before them, as 1 for `0001.jpg`, if all rows have exactly one such
    photo. Columns keep their names, and labels are found as in any table, or by columns of 0 and 1
    as in `read_one_hot`. Rows without a photo are kept.

    Raises DataError where the photos are found in several folders, two photos have one id, the
    folder holds several such tables, or `train/` has photos but none of the table's.
    """
    if not place.is_dir():
        return _beside(place)
    tables = [table for name in _TABLES if (table := place / name).is_file()]
    found = {table.name: form for table in tables if (form := _beside(table, place))}
    if len(found) > 1:
        raise DataError(
            f"{listed([f'`{name}`' for name in found])} in {place} may each hold the labels",
            hint=f"give the table instead of its folder, such as {place / next(iter(found))}",
        )
    if tables and not found:
        _require_not_for_training(tables[0])
    return next(iter(found.values()), None)


def _beside(source: Path, given: Path | None = None) -> Form | None:
    """Return the photos of a table in a folder beside it; its own folder may be what was given."""
    beginning = _beginning(source)
    if beginning is None or (there := _lie_there(beginning, source)) is None:
        return None
    if there and given is None:
        return None
    table = read_cells(source)
    read = _one_hot(table) or _Read(table)
    column = path_column(read.table)
    ids = [cells[column].strip() for _, cells in read.table.rows]
    if there and given is not None:
        of_one_folder = len({name.replace("\\", "/").rpartition("/")[0] for name in ids}) == 1
        said = read._replace(rules=(f"table {source.name}", *read.rules))
        return _form("Kaggle", given, said, column, ids) if of_one_folder else None
    folders = {folder: _photos_in(folder) for folder in _folders(source, named=given is not None)}
    matches = {folder: _matched(ids, names) for folder, names in folders.items()}
    if not any(matches.values()):
        return None
    folder = _chosen({folder: match for folder, match in matches.items() if match}, source)
    paths = matches[folder]
    _require_one_each(ids, paths, read.table)
    where = folder.relative_to(source.parent).as_posix()
    rules = [f"table {source.name}, photos in {where}/", *read.rules, *_how_found(ids, paths)]
    if unread := _unlabelled(source, folder):
        rules.append(f"not read, without labels: {listed(unread)}")
    found = [match[0] if match else name for match, name in zip(paths, ids, strict=True)]
    said = read._replace(rules=tuple(rules))
    return _form("Kaggle", folder, said, column, found)


def _beginning(place: Path) -> Table | None:
    """Return the first rows of a table; None if it is none. Whoever reads all says why."""
    if place.suffix.lower() not in TABLE_EXTENSIONS or not place.is_file():
        return None
    for most in (_BEGINNING, -1):  # a cut in the middle of a quoted cell looks like damage
        try:
            return read_cells(place, most=most)
        except DataError:
            continue
    return None


def _classes(table: Table) -> list[int]:
    """Return the columns that may be classes by the first rows: two or more, and no labels."""
    roles = {name: role for role, names in USUAL_NAMES.items() for name in simplified(names)}
    plain = simplified(table.header)
    named = {column: plain[column] for column, name in enumerate(table.header) if name.strip()}
    if any(roles.get(name) == "label" for name in named.values()) or not table.rows:
        return []
    tried = [cells for _, cells in table.rows[:_TRIED]]
    free = [column for column, name in named.items() if name not in roles]
    classes = [column for column in free if all(_bit(cells[column]) in _BITS for cells in tried)]
    return classes if len(classes) > 1 else []


def _one_hot(table: Table) -> _Read | None:
    """Return the table with a column of labels in place of its columns of 0 and 1."""
    if not (classes := _classes(table)):
        return None
    cells_of = itemgetter(*classes)
    known: dict[tuple[str, ...], list[str]] = {}  # there are few patterns, so each is read once
    rows = []
    numbers: Counter[int] = Counter()
    broken = None
    for number, cells in table.rows:
        pattern = cells_of(cells)
        if pattern not in known:
            pairs = [(table.header[c], cell) for c, cell in zip(classes, pattern, strict=True)]
            known[pattern] = [name for name, cell in pairs if _BITS.get(_bit(cell))]
            for name, cell in pairs if broken is None else ():
                if _bit(cell) not in _BITS:
                    broken = f"row {number}: expected 0 or 1 in column `{name}`, found `{cell}`"
        names = known[pattern]
        numbers[min(len(names), 2)] += 1
        if len(names) == 1:
            rows.append((number, (*cells, names[0])))
    if numbers[1] == 0 or numbers[2] > numbers[1]:
        return None
    if broken:
        raise DataError(
            f"{table.name}, {broken}",
            hint="take out a column that is no class, or name one for labels and --format plain",
        )
    rule = f"labels: the one column that is 1 of {quoted([table.header[c] for c in classes])}"
    left_out = {"rows without a class": numbers[0], "rows with several classes": numbers[2]}
    table = replace(table, header=(*table.header, LABEL), rows=tuple(rows))
    return _Read(table, classes, (rule,), left_out)


def _bit(cell: str) -> str:
    return cell.strip().lower()


def _form(name: str, base: Path, read: _Read, column: int, paths: Sequence[str]) -> Form:
    """Return the table as a form, with the given paths first and the label, if any, second."""
    header = read.table.header
    rest = [c for c, its in enumerate(header) if c not in (column, *read.replaced) and its != LABEL]
    order = [header.index(LABEL), *rest] if LABEL in header else rest
    rows = tuple(
        (path, *map(cells.__getitem__, order))
        for path, (_, cells) in zip(paths, read.table.rows, strict=True)
    )
    names = (PATH, *(header[c] for c in order))
    return Form(name, base, names, rows, read.rules, read.left_out, usual=True)


def _lie_there(table: Table, source: Path) -> bool | None:
    """Return whether a table's photos lie where it says, by its first rows; None without any."""
    try:
        column = path_column(table)
    except DataError:  # a table of other things, or one that the reader of plain tables refuses
        return None
    finder = Finder(source.parent.resolve())
    tried = table.rows[:_TRIED]
    return any(finder.file(cells[column]) for _, cells in tried) if tried else None


def _folders(source: Path, named: bool) -> Iterator[Path]:
    """Yield folders beside a table and in these, perhaps only those called after photos."""
    for name in names_of(source.parent):
        folder = source.parent / name
        usual = not named or name.lower().startswith(_FOLDERS)
        if usual and not is_hidden(name) and answer_of(folder.is_dir):
            yield folder
            inner = (folder / each for each in dict.fromkeys((*_INNER, name)))
            yield from (each for each in inner if answer_of(each.is_dir))


def _photos_in(folder: Path) -> dict[str, list[str]]:
    """Map the names of a folder's photos, with and without their endings, to the photos."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in names_of(folder):
        stem, dot, ending = name.rpartition(".")
        if dot + ending.lower() in EXTENSIONS and not is_hidden(name):
            names[_key(name)].append(name)
            names[_key(stem)].append(name)
    return names


def _key(name: str) -> str:
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _matched(ids: Sequence[str], names: Mapping[str, list[str]]) -> list[list[str]]:
    """Return the photos of each id by name, or by number if so all have one; [] if none has."""
    if not names:
        return []
    numbers: dict[int, list[str]] = defaultdict(list)
    for stem, photos in names.items():
        if _is_number(stem):
            numbers[int(stem)] += photos
    tried = ids[:: max(1, len(ids) // _TRIED)]
    if not any(
        _key(each) in names or (_is_number(each) and int(each) in numbers) for each in tried
    ):
        return []
    found = [names.get(_key(each), []) for each in ids]
    if not all(found) and all(_is_number(each) and len(numbers[int(each)]) == 1 for each in ids):
        return [numbers[int(each)] for each in ids]
    return found if any(found) else []


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _chosen(matches: Mapping[Path, list[list[str]]], source: Path) -> Path:
    """Return the folder with most of the photos, or that called as the table; else DataError."""
    most = max(sum(map(bool, match)) for match in matches.values())
    best = [folder for folder, match in matches.items() if sum(map(bool, match)) == most]
    word = "test" if source.stem.lower().startswith("test") else "train"
    called = [f for f in best if word in f.relative_to(source.parent).as_posix().lower()]
    if len(best) > 1 and len(called) != 1:
        names = quoted([folder.relative_to(source.parent).as_posix() for folder in best])
        raise DataError(
            f"the photos of {source.name} lie in each of {names}",
            hint=f"say in which with --root, such as --root {best[0]} (`root` in Python)",
        )
    return called[0] if len(best) > 1 else best[0]


def _require_one_each(ids: Sequence[str], paths: Sequence[Sequence[str]], table: Table) -> None:
    for (number, _), name, photos in zip(table.rows, ids, paths, strict=True):
        if len(photos) > 1:
            raise DataError(
                f"{table.name}, row {number}: `{name}` may be {quoted(photos)}",
                hint="write the ending of each photo into the table, or move one kind away",
            )


def _how_found(ids: Sequence[str], paths: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield what was added to ids to find their photos."""
    pairs = [(name, photos[0]) for name, photos in zip(ids, paths, strict=True) if photos]
    bare = [(name, photo) for name, photo in pairs if _key(name) != _key(photo)]
    endings = sorted({Path(photo).suffix for _, photo in bare})
    if endings:
        yield f"ids without ending: {listed(endings)} by the files"
    padded = [(name, photo) for name, photo in bare if _key(name) != _key(Path(photo).stem)]
    if padded:
        yield f"ids without the zeros before them: {padded[0][0]} is {padded[0][1]}"
    if len(pairs) < len(ids):
        yield f"no photo for {count(len(ids) - len(pairs), 'row')}"


def _unlabelled(source: Path, folder: Path) -> list[str]:
    """Return the names of what lies beside a table of labels and is there to be predicted."""
    away = [
        name for name in names_of(source.parent) if name.startswith(("test", "sample_submission"))
    ]
    return [name for name in away if name not in (source.name, *folder.parts)]


def _require_not_for_training(source: Path) -> None:
    """Raise DataError if a folder for training has photos, where the table names none of them."""
    beginning = _beginning(source)
    if beginning is None or _lie_there(beginning, source) is not False:
        return
    for folder in _folders(source, named=True):
        if folder.name.lower().startswith("train") and _photos_in(folder):
            first = beginning.rows[0][1][path_column(beginning)]
            raise DataError(
                f"{source.name} names no photo in {folder.name}/: not `{first}` nor any other",
                hint="give the table, and the folder of the photos with --root (`root` in Python)",
            )


FORMS = (Known("kaggle", read_kaggle), Known("one-hot", read_one_hot))
