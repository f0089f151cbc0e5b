"""The table of photographs: one row a photo, with its labels.

Oddities found while reading become `Note`s; faults that make the rest unusable are DataErrors.
Knows nothing of where the rows come from, nor of pixels.
"""

import csv
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from fieldguide.errors import DataError
from fieldguide.storage import columns, files
from fieldguide.storage.columns import Column, Records, Shared
from fieldguide.words import count, listed, quoted, some

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# Pixels of the shorter side below which a photo shows nothing (taste).
TOO_SMALL = 16

# Endings of the files that `pixels` can decode, lower case; the content decides later.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif"}
    | {".tif", ".tiff", ".webp", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc"}
    | {".heic", ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm"}
)

# Endings of videos, lower case, and how to take frames from them.
VIDEO_ENDINGS = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".webm", ".wmv"}
)
FRAMES = "ffmpeg -i VIDEO -vf fps=1 VIDEO_%04d.jpg"
GROUP_OF_FRAMES = "--group 'stem:^(.+)_[0-9]{4}$' keeps the frames of a video together"

SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph."""

    path: str  # POSIX, relative to the catalog's root where it lies below it, else absolute
    label: str | None  # the exact string; None where unlabelled
    group: str | None = None  # photos of one specimen, site or day; None: it stands alone
    split: Split = "train"
    fold: int | None = None  # the user's own fold
    sha256: str = ""  # of the file's bytes; filled in by `inspect`


def in_columns(photos: Iterable[Photo] = ()) -> Records[Photo]:
    """Return photos as catalogs hold them: about 110 bytes a photo, hash included."""
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
    """Return the group of each photo, or its path if it stands alone."""
    pairs = zip(photos.column("group"), photos.column("path"), strict=True)
    return [group or path for group, path in pairs]


@dataclass(frozen=True, slots=True)
class Note:
    """An oddity for the user to know. `kind` is a short slug such as `empty-class`."""

    kind: str
    path: str
    message: str
    hint: str = ""
    fatal: bool = False  # it stops a fit


def is_video(path: str) -> bool:
    """Return whether a path has the ending of a video."""
    return f".{path.rpartition('.')[2].lower()}" in VIDEO_ENDINGS


def videos_left(paths: Sequence[str], base: Path) -> str:
    """Return in words which videos below a folder are left out, and how to take their frames."""
    away = "://" in paths[0]
    place = paths[0] if away else str(base / paths[0])
    stem = PurePosixPath(place).stem if away else place.rpartition(".")[0]
    frames = f"{stem.replace('%', '%%')}_%04d.jpg"
    command = FRAMES.replace("VIDEO_%04d.jpg", shlex.quote(frames))
    command = command.replace("VIDEO", shlex.quote(place), 1)
    named = listed([f"`{path}`" for path in paths[:2]])
    return f"videos such as {named}: take frames, one a second by `{command}`"


def videos_note(paths: Sequence[str], base: Path) -> Note:
    """Return the note on videos that are left out."""
    message = f"{videos_left(paths, base)} ({len(paths):,})"
    return Note("videos", "", message, GROUP_OF_FRAMES)


class Occasions(NamedTuple):
    """Events that no group is made of: where they come from, and those of more than one photo."""

    what: str  # such as `DateTime within 60 s at site`
    events: Mapping[str, str] | None  # by path; None where only the photos' EXIF may say


@dataclass(frozen=True)
class Catalog:
    """The photos: of folders by split, label and path (code points), of a table in its order.

    `told` says in one line what was taken for labels, groups, splits and folds. `crop` is the rule
    by which boxes were cut out (`crops.Crop.name`), if the photos are crops. `occasions` are what
    `--group event` would keep together, where nothing is grouped.
    """

    root: Path
    photos: Sequence[Photo]
    notes: tuple[Note, ...] = ()
    told: str = ""
    crop: str = ""
    occasions: Occasions | None = field(default=None, compare=False, repr=False)

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
        """Return the photos of one split, in the same order, without the notes."""
        splits = enumerate(self.table.column("split"))
        return self.of(self.table.take(row for row, its in splits if its == split))

    def of(self, photos: Sequence[Photo]) -> "Catalog":
        """Return a catalog of other rows of the same source, without the notes."""
        return replace(self, photos=photos, notes=())

    def file(self, photo: Photo) -> Path:
        """Return the path of a photo's file."""
        return self.root / photo.path

    @property
    def files(self) -> "Files":
        """The paths of all photos' files, in catalog order."""
        return Files(self.root, self.table.column("path"))


@dataclass(frozen=True, eq=False)
class Files(Column[Path]):
    """The paths of photos' files, made on demand: a `Path` takes much more room than a text."""

    root: Path
    paths: Column[str]  # as in `Photo.path`

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.paths)

    def take(self, rows: Iterable[int]) -> "Files":
        """Return the paths of some photos, by row."""
        return Files(self.root, self.paths.take(rows))

    def _at(self, row: int) -> Path:
        return self.root / self.paths[row]


def told(
    photos: Records[Photo],
    sources: Mapping[str, str],
    *,
    paths: str = "",
    unused: Sequence[str] = (),
    notes: Sequence[Note] = (),
) -> str:
    """Return in one line what was read as what, with numbers.

    `sources` says for each of label, group, split and fold where it comes from; what it lacks is
    said to be none. `unused` are columns that nothing was taken from; of `notes` that on videos is
    told.
    """
    counts = {
        name: Counter(str(value) for value in photos.column(name) if value is not None)
        for name in ("label", "group", "split", "fold")
    }

    def most(name: str) -> str:
        return some([f"{value} {number:,}" for value, number in counts[name].most_common()], 3)

    classes = count(len(counts["label"]), "class")
    extents = {
        "label": f"({classes}: {most('label')})",
        "group": f"({len(counts['group']):,})",
        "split": f"({most('split')})",
        "fold": f"({len(counts['fold']):,})",
    }
    said = {
        name: f"{sources[name]} {extents[name]}" if name in sources and counts[name] else "none"
        for name in counts
    }
    parts = [f"labels: {said['label']}", f"groups: {said['group']}", f"split: {said['split']}"]
    parts[1:1] = [f"paths: {paths}"] if paths else []
    parts += [f"folds: {said['fold']}"] if "fold" in sources else []
    parts += [f"left out: {note.message}" for note in notes if note.kind == "videos"]
    return "; ".join(parts + ([f"not used: {', '.join(unused)}"] if unused else []))


def require_trainable(catalog: Catalog) -> None:
    """Raise DataError if nothing can be learned: no photos, one class, a class not in train."""
    for note in trainable_notes(catalog):
        raise DataError(note.message, hint=note.hint)


def trainable_notes(catalog: Catalog) -> list[Note]:
    """Return fatal notes of what stops a fit whatever the pixels are."""
    found = []
    classes = _labels(catalog, "train")
    if "train" not in catalog.table.column("split"):
        found.append(_fatal("no-photos", "no photographs to train on"))
    elif not classes:
        message = "at least two classes are needed, and no photo has a label"
        found.append(_fatal("one-class", message))
    elif len(classes) == 1:
        message = f"at least two classes are needed, found one: `{next(iter(classes))}`"
        hint = "put the photos of each class into a folder of its own"
        found.append(_fatal("one-class", message, hint))
    unknown = sorted(_labels(catalog, "val") - classes) if classes else []
    if unknown:
        message = f"classes in the validation part that the training part lacks: {quoted(unknown)}"
        hint = "add photos of them to train, or leave them out"
        found.append(_fatal("unknown-class", message, hint))
    return found


def _fatal(kind: str, message: str, hint: str = "") -> Note:
    return Note(kind, "", message, hint, fatal=True)


def _labels(catalog: Catalog, split: Split) -> set[str]:
    pairs = zip(catalog.table.column("label"), catalog.table.column("split"), strict=True)
    return {label for label, its in pairs if its == split and label is not None}


def similar_classes(labels: Iterable[str]) -> Iterator[Note]:
    """Yield a note for each set of labels that look the same."""

    def look(label: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", label).casefold().split())

    for names in looking_alike(sorted(labels), look):
        message = f"classes that differ only by case, blanks or Unicode form: {quoted(names)}"
        yield Note("similar-classes", "", message, "if they are one class, give them one name")


def looking_alike(names: Sequence[str], look: Callable[[str], str]) -> Iterator[list[str]]:
    """Yield names that look the same, two or more at a time."""
    if all(name.isascii() and name.islower() and " " not in name for name in names):
        return  # the usual case: nothing to normalise
    seen = defaultdict(list)
    for name in names:
        seen[look(name)].append(name)
    yield from (alike for alike in seen.values() if len(alike) > 1)


# Column names without case, blanks, `_` and `-`, the best first. Groups decide folds: only a group,
# or an event, one occasion of taking photos, counts as one unasked.
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "path": (
        *("path", "filepath", "imagepath", "photopath", "file", "filename", "imagefile"),
        *("imagename", "photo", "image", "img", "picture", "imageid", "photoid", "name", "id"),
    ),
    "label": ("label", "class", "classname", "species", "category", "target", "taxon", "labels"),
    "group": (
        *("group", "groupid", "event", "eventid", "seqid", "sequenceid", "sequence", "burst"),
        *("burstid", "occurrenceid", "observationid", "obsid", "specimen", "specimenid"),
    ),
    "split": ("split", "subset", "partition"),
    "fold": ("fold", "kfold"),
}

_HEADER = ("path", "label", "group", "split", "fold", "sha256")


def write_rows(path: Path, catalog: Catalog) -> None:
    """Write the photos of a catalog as CSV, whole or not at all; root and notes are not kept."""
    rows = zip(*(catalog.table.column(name) for name in _HEADER), strict=True)
    files.write_csv(path, _HEADER, rows)


def read_rows(path: Path, root: Path) -> Catalog:
    """Read a catalog that `write_rows` wrote; DataError if the file is not one."""
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
    path, label, group, split, fold, sha256 = map(files.unescaped, row)
    number = int(fold) if fold else None
    return Photo(path, label or None, group or None, SPLIT_FOLDERS[split], number, sha256)


def with_hashes(catalog: Catalog, hashes: Sequence[str]) -> Catalog:
    """Return the catalog with the SHA-256 of each photo filled in, in catalog order."""
    return replace(catalog, photos=catalog.table.with_column("sha256", hashes))
