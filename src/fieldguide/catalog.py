"""Which photographs there are and what they are called: one row a photo, from folders or tables.

A catalog is read from file names and tables alone. What is odd on the way becomes a `Note` and is
not lost; what makes the rest unusable is a DataError. Nothing is written beside the photos, and
labels are never converted: `01`, `1.0`, `NA` and ` oak` stay as they are. A folder of shards reads
as the folder or table that was packed. Knows nothing of pixels: whether a file holds a picture is
found out by `check`.
"""

import codecs
import csv
import difflib
import io
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

from fieldguide import columns, files, parquet, remote, shards
from fieldguide.columns import Records, Shared
from fieldguide.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# Endings of the files that `pixels` can decode, lower case; the content decides later.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif"}
    | {".tif", ".tiff", ".webp", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc"}
    | {".heic", ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm"}
)
TABLE_EXTENSIONS = frozenset({".csv", ".tsv", ".txt", ".tab"})

_SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_SHOWN = 5  # names that a message gives before it counts the rest (taste)


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph."""

    path: str  # POSIX, relative to the catalog's root where it lies below it, else absolute
    label: str | None  # the exact string; None where unlabelled
    group: str | None = None  # photos of one specimen, site or day; None: it stands alone
    split: Split = "train"
    fold: int | None = None  # the user's own fold
    sha256: str = ""  # of the file's bytes; filled in by `check`


def in_columns(photos: Iterable[Photo] = ()) -> Records[Photo]:
    """Photos as catalogs hold them: a sequence of about 110 bytes a photo, hash included."""
    return Records(
        Photo,
        {
            "path": columns.texts,
            "label": Shared,
            "group": columns.texts,
            "split": Shared,
            "fold": Shared,
            "sha256": columns.digests,
        },
        photos,
    )


def group_names(photos: Records[Photo]) -> list[str]:
    """The group of each photo; its path where it stands alone."""
    pairs = zip(photos.column("group"), photos.column("path"), strict=True)
    return [group or path for group, path in pairs]


@dataclass(frozen=True, slots=True)
class Note:
    """Something noticed while reading. `kind` is a short slug such as `empty-class`."""

    kind: str
    path: str
    message: str
    hint: str = ""
    fatal: bool = False  # nothing can be trained before this is put right


@dataclass(frozen=True)
class Catalog:
    """Photos in an order that does not depend on the file system, and what was noticed about them.

    From folders: by split, label and path in code-point order. From a table: in its order.
    """

    root: Path
    photos: Sequence[Photo]
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.photos)

    @cached_property
    def table(self) -> Records[Photo]:
        """The photos in columns, for what looks at single fields of all of them."""
        return self.photos if isinstance(self.photos, Records) else in_columns(self.photos)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The labels of the training part in code-point order: the outputs of a model."""
        return tuple(sorted(_labels(self, "train")))

    def part(self, split: Split) -> "Catalog":
        """The photos of one split, in the same order, without the notes."""
        splits = enumerate(self.table.column("split"))
        return Catalog(self.root, self.table.take(row for row, its in splits if its == split))

    def file(self, photo: Photo) -> Path:
        """Where the photo lies."""
        return self.root / photo.path

    @property
    def files(self) -> "Files":
        """Where the photos lie, in catalog order."""
        return Files(self.root, self.table.column("path"))


@dataclass(frozen=True)
class Files(Sequence[Path]):
    """Where photos lie. A `Path` takes much more room than a text: each is made when asked for."""

    root: Path
    paths: Sequence[str]  # as in `Photo.path`

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.paths)

    @overload
    def __getitem__(self, which: int) -> Path: ...

    @overload
    def __getitem__(self, which: slice) -> "Files": ...

    def __getitem__(self, which: int | slice) -> "Path | Files":
        """The path of one photo, or those of several."""
        if isinstance(which, slice):
            return Files(self.root, self.paths[which])
        return self.root / self.paths[which]


def read(
    source: str | Path,
    *,
    path: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
    fold: str | None = None,
    root: str | Path | None = None,
    encoding: str | None = None,
) -> Catalog:
    """The catalog of a folder (`scan`) or of a table (`read_table`, for which the options are).

    What is at an address, such as `s3://bucket/photos`, is fetched first: see `remote.local`.
    Raises DataError, also where an option for tables is given with a folder.
    """
    place = remote.local(source)
    if not place.is_dir():
        return read_table(
            place,
            path=path,
            label=label,
            group=group,
            split=split,
            fold=fold,
            root=root,
            encoding=encoding,
        )
    options = {"path": path, "label": label, "group": group, "split": split, "fold": fold}
    given = [
        name for name, value in {**options, "root": root, "encoding": encoding}.items() if value
    ]
    if given:
        raise DataError(
            f"`{given[0]}` is for tables, and this is a folder: {place}",
            hint=f"leave `{given[0]}` out, or give the CSV file instead of the folder",
        )
    return scan(place)


def require_trainable(catalog: Catalog) -> None:
    """Raises DataError where nothing can be learned: no photos, one class, a class not in train."""
    for note in trainable_notes(catalog):
        raise DataError(note.message, hint=note.hint)


def trainable_notes(catalog: Catalog) -> list[Note]:
    """What stops a fit whatever the pixels are; all notes are fatal."""
    found = []
    classes = _labels(catalog, "train")
    if "train" not in catalog.table.column("split"):
        found.append(_fatal("no-photos", "no photographs to train on"))
    elif not classes:
        found.append(
            _fatal("one-class", "at least two classes are needed, and no photo has a label")
        )
    elif len(classes) == 1:
        message = f"at least two classes are needed, found one: `{next(iter(classes))}`"
        found.append(
            _fatal("one-class", message, "put the photos of each class into a folder of its own")
        )
    unknown = sorted(_labels(catalog, "val") - classes) if classes else []
    if unknown:
        message = f"classes in the validation part that the training part lacks: {listed(unknown)}"
        found.append(
            _fatal("unknown-class", message, "add photos of them to train, or leave them out")
        )
    return found


def _fatal(kind: str, message: str, hint: str = "") -> Note:
    return Note(kind, "", message, hint, fatal=True)


def listed(names: Sequence[str]) -> str:
    """The first five names in backticks and the count of the others."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _labels(catalog: Catalog, split: Split) -> set[str]:
    pairs = zip(catalog.table.column("label"), catalog.table.column("split"), strict=True)
    return {label for label, its in pairs if its == split and label is not None}


# --- folders --------------------------------------------------------------------------------------


def scan(folder: str | Path) -> Catalog:
    """The labelled photos of a folder that holds one folder a class.

    Or that holds `train`, and perhaps `val` (`valid`, `validation`) and `test`, each with one
    folder a class; `test` may also hold unlabelled photos directly. Photos deeper down belong to
    the class folder above them. Links are followed, hidden files are not looked at.

    Or that holds shards (see `shards`), whose catalog is that of the photos that were packed.

    Raises DataError where there is no such folder, no photo, or no class folder.
    """
    root = _existing_folder(folder)
    index = _index(root)
    if index:
        return _of_shards(index)
    walk = _Walk(root)
    splits = _split_folders(walk)
    if "train" in splits.values():
        photos = [photo for name, split in splits.items() for photo in _tree(walk, name, split)]
        _note_beside_splits(walk, splits)
    else:
        photos = list(_tree(walk, "", "train"))
    if not photos:
        raise _nothing_found(walk)
    photos.sort(key=lambda p: (SPLITS.index(p.split), p.label or "", p.path))
    walk.notes += _similar_classes({p.label for p in photos if p.label is not None})
    return Catalog(root, in_columns(photos), tuple(walk.all_notes()))


def scan_unlabelled(folder: str | Path, recursive: bool = True) -> Catalog:
    """All photos of a folder, without labels, as a test part: what a model is to predict.

    Raises DataError where there is no such folder or no photo in it.
    """
    root = _existing_folder(folder)
    index = _index(root)
    if index:
        found = (Photo(entry.path, None, split="test") for entry in index.entries())
        return Catalog(index.path, in_columns(found), _left_out(index))
    walk = _Walk(root)
    paths = sorted(walk.below("") if recursive else walk.images(""))
    if not paths:
        raise _nothing_found(walk)
    found = (Photo(path, None, split="test") for path in paths)
    return Catalog(root, in_columns(found), tuple(walk.all_notes()))


def list_pictures(folder: str | Path, recursive: bool = True) -> tuple[Path, dict[str, str]]:
    """The folder, and all that is called like a picture in it: path to what is wrong with it.

    The paths are those of `scan_unlabelled` in the same order, and with them what it leaves out:
    links to nothing ("file not found") and folders that cannot be listed. Raises DataError where
    there is no such folder, it cannot be listed, or nothing is found in it.
    """
    root = _existing_folder(folder)
    index = _index(root)
    if index:
        return index.path, dict.fromkeys((entry.path for entry in index.entries()), "")
    walk = _Walk(root)
    found = dict.fromkeys(walk.below("") if recursive else walk.images(""), "") | walk.lost
    if "" in walk.lost:
        raise DataError(f"{walk.lost['']}: {folder}")
    if not found:
        raise _nothing_found(walk)
    return root, {path: found[path] for path in sorted(found)}


def _existing_folder(folder: str | Path) -> Path:
    root = remote.local(folder).resolve()
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"not a folder: {folder}", hint="a CSV file is read with `read_table`")
    raise DataError(f"no such folder: {folder}")


def root_of(place: Path) -> Path:
    """What photos' paths are relative to: the folder itself, or the index of its shards."""
    index = _index(place.resolve()) if place.is_dir() else None
    return index.path if index else place


def _index(root: Path) -> shards.Index | None:
    return shards.find_index(root, EXTENSIONS, _SPLIT_FOLDERS, _USUAL_NAMES)


def _of_shards(index: shards.Index) -> Catalog:
    """In the order of the catalog that was packed; where there was none, as from folders."""
    notes = [*_left_out(index)]
    found = in_columns()
    rows: list[int | None] = []
    for entry in index.entries():
        if entry.label is None and entry.split != "test":
            notes.append(Note("empty-label", entry.path, "no label in the shard, left out"))
            continue
        split = _SPLIT_FOLDERS[entry.split]
        found.append(Photo(entry.path, entry.label, entry.group, split, entry.fold))
        rows.append(entry.row)
    if not rows:
        raise DataError(
            f"no labelled photographs in the shards of {index.folder}",
            hint="tar files label them by folders, KEY.json or KEY.cls, Parquet files by a column"
            " such as `label`",
        )
    photos = found.take(sorted(range(len(rows)), key=lambda n: _place(rows[n], found, n)))
    notes += _similar_classes({each for each in photos.column("label") if each is not None})
    return Catalog(index.path, photos, tuple(notes))


def _place(row: int | None, photos: Sequence[Photo], number: int) -> tuple[int, int, str, str]:
    if row is not None:
        return row, 0, "", ""
    photo = photos[number]
    return 0, SPLITS.index(photo.split), photo.label or "", photo.path


def _left_out(index: shards.Index) -> tuple[Note, ...]:
    return tuple(Note("left-out", "", f"left out: {what}") for what in index.notes)


class _Walk:
    """Lists folders below a root once each, in name order, and notes what is odd.

    Folders are named by their POSIX path relative to the root, the root by the empty string.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[Note] = []
        self.endings: Counter[str] = Counter()  # of files that are not photographs
        self.lost: dict[str, str] = {}  # what cannot be looked into, and why
        self._listed: dict[str, tuple[list[str], list[str]]] = {}

    def folders(self, folder: str) -> list[str]:
        """The visible folders in a folder."""
        return self._list(folder)[0]

    def images(self, folder: str) -> list[str]:
        """The files in a folder that are called like pictures."""
        return self._list(folder)[1]

    def below(self, folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
        """The pictures in a folder and in all folders below it; a loop of links is entered once."""
        here = self._identity(folder)
        if here in above:
            self.notes.append(Note("link-loop", folder, "a link leads back to a folder above it"))
            return
        yield from self.images(folder)
        for name in self.folders(folder):
            yield from self.below(name, (*above, here))

    def all_notes(self) -> list[Note]:
        """The notes so far and one about the files that were left out."""
        if not self.endings:
            return self.notes
        message = f"files that are not photographs by their names: {self.endings_found()}"
        return [*self.notes, Note("other-files", "", message)]

    def endings_found(self) -> str:
        """Such as "12 .nef, 1 .txt", the most frequent first."""
        ranked = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(
            f"{count} {ending or 'without ending'}" for ending, count in ranked[:_SHOWN]
        )

    def _identity(self, folder: str) -> tuple[int, int]:
        status = (self.root / folder).stat()
        return status.st_dev, status.st_ino

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        if folder not in self._listed:
            self._listed[folder] = self._read(folder)
        return self._listed[folder]

    def _read(self, folder: str) -> tuple[list[str], list[str]]:
        folders, images = [], []
        for entry in self._entries(folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            pictorial = Path(entry.name).suffix.lower() in EXTENSIONS
            if _answer(entry.is_dir):  # no for a link to itself
                folders += [] if pictorial else [path]  # a folder called x.jpg is neither
            elif entry.is_symlink() and not _answer((self.root / path).exists):
                self.notes.append(
                    Note("dangling-link", path, "a link to a file that does not exist")
                )
                self.lost |= {path: "file not found"} if pictorial else {}
            elif pictorial:
                images.append(path)
            else:
                self.endings[Path(entry.name).suffix.lower()] += 1
        self.notes += _unicode_twins(images)
        return folders, images

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                visible = [e for e in entries if not _hidden(e.name)]
        except OSError as error:
            reason = f"the folder cannot be read: {(error.strerror or str(error)).lower()}"
            self.notes.append(Note("unreadable-folder", folder, reason))
            self.lost[folder] = reason
            return []
        return sorted(visible, key=lambda e: e.name)


def _answer(question: Callable[[], bool]) -> bool:
    """What a look at a file says; no where one may not or cannot look, such as a name too long."""
    try:
        return question()
    except OSError:
        return False


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _split_folders(walk: _Walk) -> dict[str, Split]:
    names = walk.folders("")
    return {n: _SPLIT_FOLDERS[n.lower()] for n in names if n.lower() in _SPLIT_FOLDERS}


def _tree(walk: _Walk, top: str, split: Split) -> Iterator[Photo]:
    """The photos of one tree of class folders; unlabelled ones too where it is the test part."""
    loose = walk.images(top)
    if split == "test":
        yield from (Photo(path, None, split=split) for path in loose)
    elif loose:
        _note_loose(walk, top, loose)
    above = (walk._identity(""), walk._identity(top)) if top else (walk._identity(""),)
    for folder in walk.folders(top):
        label = folder.rpartition("/")[2]
        paths = list(walk.below(folder, above))
        _note_class(walk, folder, label, paths)
        yield from (Photo(path, label, split=split) for path in paths)


def _note_loose(walk: _Walk, top: str, loose: Sequence[str]) -> None:
    where = f"`{top}`" if top else "the folder itself"
    message = f"{_count(len(loose), 'photo')} in {where}, outside the class folders, left out"
    hint = "move them into class folders, or describe all photos in a CSV file"
    walk.notes.append(Note("loose-photos", loose[0], message, hint))


def _note_class(walk: _Walk, folder: str, label: str, paths: Sequence[str]) -> None:
    if not paths:
        message = f"class `{label}` has 0 photos and is left out"
        walk.notes.append(Note("empty-class", folder, message, "add photos, or remove the folder"))
    inner = walk.folders(folder)
    deep = sum(path.count("/") > folder.count("/") + 1 for path in paths)
    if deep:
        message = (
            f"class `{label}` has {_count(len(inner), 'folder')} inside;"
            f" their {_count(deep, 'photo')} count as `{label}`"
        )
        hint = "if the inner folders are the classes, give the folder above them"
        walk.notes.append(Note("nested-folders", folder, message, hint))


def _note_beside_splits(walk: _Walk, splits: Mapping[str, Split]) -> None:
    beside = [name for name in walk.folders("") if name not in splits]
    if beside:
        message = f"folders beside the split folders, left out: {listed(beside)}"
        walk.notes.append(Note("beside-splits", beside[0], message))
    if walk.images(""):
        _note_loose(walk, "", walk.images(""))


def _nothing_found(walk: _Walk) -> DataError:
    loose = walk.images("")
    if loose:
        return DataError(
            f"no class folders: {walk.root} holds {_count(len(loose), 'photo')} directly",
            hint="put each class into a folder of its own, or describe the photos in a CSV file",
        )
    found = walk.endings_found()
    return DataError(
        f"no photographs below {walk.root}; "
        + (f"found: {found}" if found else "the folders are empty"),
        hint="looked for " + " ".join(sorted(EXTENSIONS)),
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _unicode_twins(paths: Sequence[str]) -> Iterator[Note]:
    for twins in _alike(paths, lambda path: unicodedata.normalize("NFC", path)):
        message = f"{len(twins)} files whose names look the same, in different Unicode forms"
        yield Note("unicode-twins", twins[0], message, "keep one of them if they are copies")


def _similar_classes(labels: Iterable[str]) -> Iterator[Note]:
    def look(label: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", label).casefold().split())

    for names in _alike(sorted(labels), look):
        message = f"classes that differ only by case, blanks or Unicode form: {listed(names)}"
        yield Note("similar-classes", "", message, "if they are one class, give them one name")


def _alike(names: Sequence[str], look: Callable[[str], str]) -> Iterator[list[str]]:
    """The names that look the same, two or more at a time."""
    if all(name.isascii() and name.islower() and " " not in name for name in names):
        return  # the usual case: nothing to normalise
    seen = defaultdict(list)
    for name in names:
        seen[look(name)].append(name)
    yield from (alike for alike in seen.values() if len(alike) > 1)


# --- tables ---------------------------------------------------------------------------------------


# Column names without case, blanks, `_` and `-`, the best first. Groups decide folds, so only a
# column that is called so is taken for one.
_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "path": (
        *("path", "filepath", "imagepath", "photopath", "file", "filename", "imagefile"),
        *("imagename", "photo", "image", "img", "picture", "imageid", "photoid", "name", "id"),
    ),
    "label": ("label", "class", "classname", "species", "category", "target", "taxon", "labels"),
    "group": ("group", "groupid"),
    "split": ("split", "subset", "partition"),
    "fold": ("fold", "kfold"),
}
_REQUIRED = ("path", "label")


@dataclass(frozen=True)
class Table:
    """A table as text: `rows` are (number, cells), the header having the number 1."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    separator: str = ","


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
) -> Catalog:
    """The photos that a CSV or TSV file lists, in its order.

    `path` to `fold` name its columns; without them the usual names are recognised (path, file,
    image, ...; label, class, species, ...; group; split; fold). Separators `,` `;` tab and `|` are
    detected, UTF-16 by its mark, all else is UTF-8 unless `encoding` says otherwise. Paths are
    absolute, relative to `root`, or to the table's folder; the ending of a file may be left out,
    and a backslash may stand for `/`. `labelled=False` reads a list of photos to predict: no label
    is needed or read.

    Rows without a label or without a file are left out and noted. Raises DataError with the row
    for a table that cannot be read, and with the nearest name for a column that is missing.
    """
    place = remote.local(csv)
    table = read_cells(place, encoding)
    if not table.rows:
        raise DataError(f"the table has a header and no rows: {place}")
    wanted = {"path": path, "label": label, "group": group, "split": split, "fold": fold}
    columns = _find_columns(table, wanted, required=_REQUIRED if labelled else ("path",))
    if not labelled:
        columns.pop("label", None)
    base = Path(place.parent if root is None else root).resolve()
    if not base.is_dir():
        raise DataError(
            f"no such folder: {root}", hint="`root` is where the photos of the table lie"
        )
    finder = Finder(base)
    notes: list[Note] = []
    photos = _photos_of_rows(table, columns, finder, notes, labelled)
    if not photos:
        raise _no_photo_found(table, notes, base)
    notes += _similar_classes({p.label for p in photos if p.label is not None})
    notes += finder.without_row()
    return Catalog(base, in_columns(photos), tuple(notes))


def read_cells(place: Path, encoding: str | None = None) -> Table:
    """A table in plain text, as `read_table` reads it; there may be no rows.

    Raises DataError with the row for what is no table.
    """
    if place.suffix == parquet.ENDING:
        raise DataError(
            f"not a table in plain text: {place}",
            hint="name the folder that the Parquet files lie in",
        )
    text = decoded(content_of(place), place.name, encoding)
    if not text.strip():
        raise DataError(f"the table is empty: {place}")
    separator = "\t" if place.suffix.lower() in (".tsv", ".tab") else _separator(text)
    rows = list(_parsed(place, text, separator))
    header = tuple(rows[0][1])
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{place.name}, row 1: column `{twice[0]}` stands there twice")
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise DataError(
                f"{place.name}, row {number}: {_count(len(cells), 'cell')},"
                f" the header has {len(header)}",
                hint="put cells that hold the separator into double quotes",
            )
    return Table(place.name, header, tuple(rows[1:]), separator)


def content_of(place: Path) -> bytes:
    """The bytes of a table or list; DataError where it cannot be read."""
    try:
        return place.read_bytes()
    except OSError as error:
        reason = "no such file or folder" if not place.exists() else (error.strerror or "").lower()
        raise DataError(f"{reason}: {place}") from error


def decoded(data: bytes, name: str, encoding: str | None = None, errors: str = "strict") -> str:
    """The text of a table or list called `name`, without a mark at its start.

    UTF-16 is known by its mark, all else is UTF-8 unless `encoding` says otherwise; `errors` is
    that of `bytes.decode`. Raises DataError with the row for what is not such text.
    """
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
    _refuse_nul(name, text)
    return text


def _refuse_nul(name: str, text: str) -> None:
    position = text.find("\0")
    if position >= 0:
        row = text.count("\n", 0, position) + 1
        raise DataError(
            f"{name}, row {row}: a NUL byte, so this is not a table in plain text",
            hint="save it as CSV in UTF-8",
        )


def _separator(text: str) -> str:
    """The separator that cuts the header into most cells; a comma where none cuts it."""
    header = text[: text.find("\n")] if "\n" in text else text
    counts = {s: len(next(csv.reader([header], delimiter=s), [])) for s in ",;\t|"}
    return max(counts, key=lambda s: counts[s])


def _parsed(place: Path, text: str, separator: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            if any(cells):  # blank lines and rows of nothing but separators
                yield number, tuple(cells)
    except csv.Error as error:
        raise DataError(f"{place.name}, row {number + 1}: {error}") from error


def path_column(table: Table, name: str | None = None) -> int:
    """The number of the column that holds paths: the one of that name, or found by usual names.

    Raises DataError where there is none.
    """
    return _find_columns(table, {"path": name}, required=("path",))["path"]


def _find_columns(
    table: Table, wanted: Mapping[str, str | None], required: Sequence[str]
) -> dict[str, int]:
    """Role to column number: as the user says, by the usual names, or the only sensible one."""
    columns = {role: _named(table, name) for role, name in wanted.items() if name is not None}
    for role in _USUAL_NAMES:
        if role not in columns:
            columns |= _usual(table, role, set(columns.values()))
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


def _usual(table: Table, role: str, taken: set[int]) -> dict[str, int]:
    plain = ["".join(c for c in name.casefold() if c.isalnum()) for name in table.header]
    for name in _USUAL_NAMES[role]:
        if name in plain and plain.index(name) not in taken:
            return {role: plain.index(name)}
    return {}


def _only_sensible(table: Table, role: str, taken: set[int]) -> dict[str, int]:
    """The one column that can be meant: of file names, or for the label the only one left."""
    free = [column for column in range(len(table.header)) if column not in taken]
    if role == "path":
        sample = [cells for _, cells in table.rows[:100]]
        free = [
            c for c in free if all(Path(cells[c]).suffix.lower() in EXTENSIONS for cells in sample)
        ]
    return {role: free[0]} if len(free) == 1 else {}


def _photos_of_rows(
    table: Table, columns: Mapping[str, int], finder: "Finder", notes: list[Note], labelled: bool
) -> list[Photo]:
    """The usable rows; the others go to `notes`, which is changed."""
    photos: dict[tuple[str, str | None], Photo] = {}
    for number, cells in table.rows:
        row = {role: cells[column] for role, column in columns.items()}
        where = f"{table.name}, row {number}"
        split = _split_of(row, where) if labelled else "test"
        label = row.get("label") or None
        path = finder.find(row["path"])
        if path is None:
            notes.append(Note("missing-file", row["path"], f"row {number}: file not found"))
        elif label is None and split != "test":
            notes.append(Note("empty-label", path, f"row {number}: no label, left out"))
        elif (path, label) in photos:
            notes.append(
                Note("repeated-row", path, f"row {number}: the same photo again, left out")
            )
        else:
            fold = _fold_of(row, split, where)
            photos[path, label] = Photo(path, label, row.get("group") or None, split, fold)
    return list(photos.values())


def _split_of(row: Mapping[str, str], where: str) -> Split:
    text = row.get("split", "").strip().lower()
    if text and text not in _SPLIT_FOLDERS:
        raise DataError(f"{where}: unknown split: `{text}`", hint="use train, val or test")
    return _SPLIT_FOLDERS[text] if text else "train"


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


def _no_photo_found(table: Table, notes: Sequence[Note], base: Path) -> DataError:
    missing = [note.path for note in notes if note.kind == "missing-file"]
    if not missing:
        return DataError(f"{table.name}: no row has a label")
    return DataError(
        f"{table.name}: none of the {_count(len(missing), 'file')} was found below {base}:"
        f" {listed(missing)}",
        hint="give the folder that the paths start from as `root`",
    )


class Finder:
    """Finds the files that a table means, listing each folder at most once.

    Paths are absolute or relative to `base`, an absolute path.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._names: dict[Path, dict[str, list[str]]] = {}
        self._found: set[Path] = set()

    def find(self, text: str) -> str | None:
        """The photo's path as the catalog keeps it, or None where there is no such file."""
        place = self.file(text)
        if place is None:
            return None
        self._found.add(place)
        return _relative(place, self._base)

    def file(self, text: str) -> Path | None:
        """Where the file lies, or None where there is none."""
        for spelling in dict.fromkeys((text, text.strip(), text.strip().replace("\\", "/"))):
            if spelling and (place := self._existing(spelling)) is not None:
                return place
        return None

    def without_row(self) -> list[Note]:
        """One note about photos that lie beside those found and that no row names."""
        others = [
            _relative(folder / name, self._base)
            for folder in sorted({place.parent for place in self._found})
            for name in _names_of(folder)
            if Path(name).suffix.lower() in EXTENSIONS and not _hidden(name)
            if folder / name not in self._found
        ]
        if not others:
            return []
        message = f"{_count(len(others), 'photo')} without a row in the table: {listed(others)}"
        return [Note("file-without-row", others[0], message)]

    def _existing(self, spelling: str) -> Path | None:
        place = Path(os.path.normpath(self._base / spelling))
        if _answer(place.is_file):
            return place
        names = self._names_in(place.parent)
        alike = names.get(_key(place.name), [])
        return place.with_name(alike[0]) if len(alike) == 1 else None

    def _names_in(self, folder: Path) -> dict[str, list[str]]:
        """What a name may mean in a folder: another Unicode form, or a photo without its ending."""
        if folder not in self._names:
            names: dict[str, list[str]] = defaultdict(list)
            for name in _names_of(folder):
                if Path(name).suffix.lower() in EXTENSIONS and _answer((folder / name).is_file):
                    names[_key(name)].append(name)
                    names[_key(Path(name).stem)].append(name)
            self._names[folder] = names
        return self._names[folder]


def _names_of(folder: Path) -> list[str]:
    try:
        return sorted(place.name for place in folder.iterdir())
    except OSError:  # there is no such folder, or it may not be read
        return []


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _relative(place: Path, base: Path) -> str:
    return (place.relative_to(base) if place.is_relative_to(base) else place).as_posix()


# --- run folders ----------------------------------------------------------------------------------


_HEADER = ("path", "label", "group", "split", "fold", "sha256")


def write_rows(path: Path, catalog: Catalog) -> None:
    """Write the photos of a catalog as CSV, whole or not at all; root and notes are not kept."""
    rows = zip(*(catalog.table.column(name) for name in _HEADER), strict=True)
    files.write_csv(path, _HEADER, rows)


def read_rows(path: Path, root: Path) -> Catalog:
    """The catalog that `write_rows` wrote; raises DataError where the file is not one."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if tuple(header) != _HEADER:
                raise ValueError(f"header {header}")
            return Catalog(root, in_columns(map(_photo_of, rows)))
    except (OSError, csv.Error, ValueError, KeyError) as error:
        raise DataError(f"not a catalog: {path}: {error}") from error


def _photo_of(row: Sequence[str]) -> Photo:
    path, label, group, split, fold, sha256 = row
    return Photo(
        path,
        label or None,
        group or None,
        _SPLIT_FOLDERS[split],
        int(fold) if fold else None,
        sha256,
    )


def with_hashes(catalog: Catalog, hashes: Sequence[str]) -> Catalog:
    """The catalog with the SHA-256 of each photo filled in, in catalog order."""
    return replace(catalog, photos=catalog.table.with_column("sha256", hashes))
