"""The catalog of a folder that holds one folder a class, or shards, read without pixels.

Nothing is written beside the photos. Knows nothing of tables, nor of how photos are packed.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fieldguide.errors import DataError, PhotosAway, UsageError
from fieldguide.photos import groups
from fieldguide.photos.catalog import (
    EXTENSIONS,
    SPLIT_FOLDERS,
    SPLITS,
    USUAL_NAMES,
    Catalog,
    Note,
    Occasions,
    Photo,
    Split,
    in_columns,
    is_video,
    looking_alike,
    similar_classes,
    told,
    videos_note,
)
from fieldguide.photos.pixels import is_picture
from fieldguide.storage import addresses, shards
from fieldguide.words import SHOWN, count, os_reason, quoted

# Names in lower case that systems and programs keep beside photos: the second line are the bins and
# caches of Windows and of network disks, the third the deleted photos of a camera-trap program.
_SYSTEM_FILES = frozenset(
    {"thumbs.db", "desktop.ini", "__macosx", "lost+found", "system volume information"}
    | {"$recycle.bin", "recycler", "recycled", "#recycle", "@recycle", "@recently-snapshot"}
    | {"@eadir", "@tmp", "#snapshot", "~snapshot", "@__thumb", "network trash folder"}
    | {"temporary items", "deletedfiles"}
)

# Words that leave a name that of a split: `training_set`, `images_val`.
_OF_SPLITS = frozenset(
    {"set", "data", "dataset", "images", "image", "imgs", "img", "photos", "split"}
)


def scan(
    folder: str | Path,
    *,
    group: str | None = None,
    labels_from: str | None = None,
    event_gap: float | None = None,
) -> Catalog:
    """Return the labelled photos of a folder that holds one folder a class.

    Or the folder holds `train`, and perhaps `val` (`valid`, `validation`) and `test`, each with one
    folder a class; `test` may also hold unlabelled photos directly. Photos deeper down belong to
    the class folder above them. Links are followed, hidden files ignored. Or the folder holds
    shards (see `shards`) of packed photos.

    `group` is `event` (photos of one camera and folder, by the time in their EXIF each within
    `event_gap`, 60 seconds, of the one before), `none`, or a choice of `groups.grouped`.
    `labels_from` of `folder:N` takes labels from the Nth folder of a path, and of `folder:N,M` from
    two, joined by a blank, as genus and species; splits do not count. UsageError for others.

    Raises DataError if there is no such folder, no photo, or no class folder.
    """
    if group not in (None, "event", "none") and not groups.is_by_path(group):
        raise UsageError(
            f"groups of a folder cannot come from `{group}`",
            hint="give event, folder:N, stem, stem:REGEX or none; columns are those of a table",
        )
    if group != "event":
        groups.refuse_gap(event_gap, group or "none")
    root = _existing_folder(folder)
    if index := _index_of(root):
        if labels_from or group == "event":
            raise UsageError("shards say themselves what labels and events their photos have")
        return _read_shards(index, group)
    walk = _Walk(root)
    names = walk.folders("")
    splits = _splits(walk, names)
    inner = {} if splits else _inner_splits(walk, names)
    if inner:
        photos = [photo for each in inner.items() for photo in _split_class(walk, *each)]
    elif splits:
        photos = [photo for name, split in splits.items() for photo in _tree(walk, name, split)]
        beside = [name for name in names if name not in splits]
        if beside:
            message = f"folders beside the split folders, left out: {quoted(beside)}"
            walk.notes.append(Note("beside-splits", beside[0], message))
        if walk.images(""):
            _note_loose(walk, "", walk.images(""))
    else:
        photos = list(_tree(walk, "", "train"))
    if not photos:
        raise _nothing_found(walk)
    if labels_from:
        photos = _relabelled(photos, labels_from, walk)
    photos.sort(key=lambda p: (SPLITS.index(p.split), p.label or "", p.path))
    walk.notes += similar_classes({p.label for p in photos if p.label is not None})
    sources = {"label": labels_from or "folders"}
    if splits or inner:
        sources["split"] = f"folders {', '.join(splits)}" if splits else "folders in each class"
    table = in_columns(photos)
    if group == "event":
        gap = groups.gap_of(event_gap)
        table = groups.by_capture(table, [root / photo.path for photo in photos], gap)
        sources["group"] = f"EXIF times within {gap:g} s"
    elif groups.is_by_path(group):
        table, sources["group"] = groups.grouped(table, group)
    notes = walk.all_notes()
    return Catalog(
        root,
        table,
        tuple(notes),
        told(table, sources, notes=notes),
        occasions=None if "group" in sources else Occasions("EXIF", None),
    )


def _relabelled(photos: Sequence[Photo], labels_from: str, walk: "_Walk") -> list[Photo]:
    """Return the photos with labels from folders of their paths; note those without."""
    if not labels_from.startswith("folder:"):
        raise UsageError(f"labels cannot come from `{labels_from}`", hint="such as folder:2")
    numbers = [groups.folder_number(n) for n in labels_from.removeprefix("folder:").split(",")]
    found, others = [], []
    for photo in photos:
        names = groups.folders_of(photo.path)
        deep = len(names) >= max(numbers)
        if deep:
            found.append(replace(photo, label=" ".join(names[n - 1] for n in numbers)))
        elif photo.label is None:  # of an unlabelled test part
            found.append(photo)
        else:
            others.append(photo.path)
    if not found:
        raise UsageError(f"no photo lies in {max(numbers)} folders", hint="such as folder:1")
    if others:
        message = f"{count(len(others), 'photo')} in fewer folders than {labels_from}, left out"
        walk.notes.append(Note("no-label", others[0], message))
    return found


def scan_unlabelled(folder: str | Path, recursive: bool = True) -> Catalog:
    """Return all photos of a folder, without labels, as a test part for a model to predict.

    Raises DataError if there is no such folder or no photo in it.
    """
    root = _existing_folder(folder)
    if index := _index_of(root):
        found = (Photo(entry.path, None, split="test") for entry in index.entries())
        return Catalog(index.path, in_columns(found), tuple(_left_out(index)))
    walk = _Walk(root)
    paths = sorted(walk.below("") if recursive else walk.images(""))
    if not paths:
        raise _nothing_found(walk)
    found = (Photo(path, None, split="test") for path in paths)
    return Catalog(root, in_columns(found), tuple(walk.all_notes()))


def list_pictures(
    folder: str | Path, recursive: bool = True, notice: Callable[[str], None] = lambda message: None
) -> tuple[Path, dict[str, str]]:
    """Return the folder, and each path with a picture's name in it, with its fault if any.

    The paths are those of `scan_unlabelled` in the same order, with links to nothing ("file not
    found") and folders that cannot be listed. `notice` is told of videos. Raises DataError if there
    is no such folder, it cannot be listed, or it is empty.
    """
    root = _existing_folder(folder)
    if index := _index_of(root):
        return index.path, dict.fromkeys((entry.path for entry in index.entries()), "")
    walk = _Walk(root)
    found = dict.fromkeys(walk.below("") if recursive else walk.images(""), "") | walk.lost
    if "" in walk.lost:
        raise DataError(f"{walk.lost['']}: {folder}")
    if not found:
        raise _nothing_found(walk)
    if walk.videos:
        notice(f"left out: {videos_note(walk.videos, root).message}")
    return root, {path: found[path] for path in sorted(found)}


def _existing_folder(folder: str | Path) -> Path:
    root = addresses.local(folder).resolve()
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"not a folder: {folder}", hint="a CSV file is read with `read_table`")
    raise PhotosAway(f"no such folder: {folder}")


def root_of(place: Path) -> Path:
    """Return the root of photos' paths: the folder itself, or the index of its shards."""
    index = _index_of(place.resolve()) if place.is_dir() else None
    return index.path if index else place


# --- shards ---------------------------------------------------------------------------------------


def _index_of(root: Path) -> shards.Index | None:
    return shards.find_index(root, EXTENSIONS, SPLIT_FOLDERS, USUAL_NAMES)


def _read_shards(index: shards.Index, group: str | None) -> Catalog:
    """Return the photos in the order of the packed catalog, or else as from folders."""
    notes = _left_out(index)
    found = in_columns()
    rows: list[int | None] = []
    for entry in index.entries():
        if entry.label is None and entry.split != "test":
            notes.append(Note("empty-label", entry.path, "no label in the shard, left out"))
            continue
        split = SPLIT_FOLDERS[entry.split]
        found.append(Photo(entry.path, entry.label, entry.group, split, entry.fold))
        rows.append(entry.row)
    if not rows:
        raise DataError(
            f"no labelled photographs in the shards of {index.folder}",
            hint="tar files label them by folders, KEY.cls, or a key of KEY.json such as `label` or"
            " `species`, Parquet files by a column of such a name",
        )

    def turn(number: int) -> tuple[int, int, str, str]:
        if (row := rows[number]) is not None:
            return row, 0, "", ""
        photo = found[number]
        return 0, SPLITS.index(photo.split), photo.label or "", photo.path

    photos = found.take(sorted(range(len(rows)), key=turn))
    notes += similar_classes({each for each in photos.column("label") if each is not None})
    sources = dict.fromkeys(("label", "group", "split"), "shards")
    if group == "none":
        photos = photos.with_column("group", [None] * len(photos))
    elif groups.is_by_path(group):
        photos, sources["group"] = groups.grouped(photos, group)
    return Catalog(index.path, photos, tuple(notes), told(photos, sources))


def _left_out(index: shards.Index) -> list[Note]:
    """Return a note for what in the shards is no photo, or no sample by WebDataset's own rule."""
    return [
        Note("left-out" if what.startswith("left out") else "samples", "", what)
        for what in index.notes
    ]


# --- folders --------------------------------------------------------------------------------------


def _split_of(name: str) -> Split | None:
    """Return the split that a folder is called after, as `train` or `training_set`; else None."""
    words = re.findall(r"[A-Z]*[a-z]+|[A-Z]+", name)
    named = [word.lower() for word in words if word.lower() not in _OF_SPLITS]
    found = [SPLIT_FOLDERS[word] for word in named if word in SPLIT_FOLDERS]
    return found[0] if len(found) == len(named) == 1 else None


def _splits(walk: "_Walk", names: Sequence[str]) -> dict[str, Split]:
    """Return the split of each folder that is called after one; none without one for training.

    A `train` without folders in it is a class, beside others that are no splits.
    """
    found = {name: split for name in names if (split := _split_of(name))}
    trains = [name for name, split in found.items() if split == "train"]
    classes = len(found) < len(names) and not any(walk.folders(name) for name in trains)
    return found if trains and not classes else {}


def _inner_splits(walk: "_Walk", names: Sequence[str]) -> dict[str, dict[str, Split]]:
    """Return the splits inside each class folder, where every one holds these and nothing else."""
    inner: dict[str, dict[str, Split]] = {}
    for name in names:
        folders = walk.folders(name)
        splits = {each: _split_of(each.rpartition("/")[2]) for each in folders}
        inner[name] = {each: split for each, split in splits.items() if split}
        if walk.images(name) or len(inner[name]) < max(len(folders), 1):
            return {}
    return inner if any("train" in splits.values() for splits in inner.values()) else {}


def _split_class(walk: "_Walk", label: str, splits: Mapping[str, Split]) -> Iterator[Photo]:
    for folder, split in splits.items():
        yield from (Photo(path, label, split=split) for path in walk.below(folder))


class _Walk:
    """A reader of the folders below a root, once each and in name order, that notes oddities.

    Folders have their POSIX path relative to the root, the root the empty string.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[Note] = []
        self.endings: Counter[str] = Counter()  # of files that are not photographs
        self.systems: set[str] = set()  # names of bins and caches
        self.videos: list[str] = []
        self.bare: list[str] = []  # pictures by their content, whose names have no ending
        self.lost: dict[str, str] = {}  # what cannot be looked into, and why
        self._listed: dict[str, tuple[list[str], list[str]]] = {}

    def folders(self, folder: str) -> list[str]:
        """Return the visible folders in a folder."""
        return self._list(folder)[0]

    def images(self, folder: str) -> list[str]:
        """Return the files in a folder with names of pictures."""
        return self._list(folder)[1]

    def below(self, folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
        """Yield the pictures in and below a folder; a loop of links is entered once."""
        here = self._identity(folder)
        if here in above:
            self.notes.append(Note("link-loop", folder, "a link leads back to a folder above it"))
            return
        yield from self.images(folder)
        for name in self.folders(folder):
            yield from self.below(name, (*above, here))

    def all_notes(self) -> list[Note]:
        """Return the notes so far and one about the files that were left out."""
        notes = [*self.notes]
        if self.bare:
            message = f"read by their content, as their names have no ending: {quoted(self.bare)}"
            notes.append(Note("no-ending", self.bare[0], message))
        if self.systems:
            message = f"folders of a system or program, left out: {quoted(sorted(self.systems))}"
            notes.append(Note("system-folders", "", message))
        if self.videos:
            notes.append(videos_note(self.videos, self.root))
        if self.endings:
            message = f"files that are not photographs by their names: {self.endings_found()}"
            notes.append(Note("other-files", "", message))
        return notes

    def endings_found(self) -> str:
        """Return the five most frequent endings, such as "12 .nef, 1 .txt"."""
        ranked = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(
            f"{count} {ending or 'without ending'}" for ending, count in ranked[:SHOWN]
        )

    def _identity(self, folder: str) -> tuple[int, int]:
        status = (self.root / folder).stat()
        return status.st_dev, status.st_ino

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        if folder in self._listed:
            return self._listed[folder]
        folders, images = self._listed[folder] = [], []
        for entry in self._entries(folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            pictorial = Path(entry.name).suffix.lower() in EXTENSIONS
            if answer_of(entry.is_dir):  # no for a link to itself
                folders += [] if pictorial else [path]  # a folder called x.jpg is neither
            elif entry.is_symlink() and not answer_of((self.root / path).exists):
                message = "a link to a file that does not exist"
                self.notes.append(Note("dangling-link", path, message))
                self.lost |= {path: "file not found"} if pictorial else {}
            elif pictorial:
                images.append(path)
            elif _bare(entry.name) and is_picture(self.root / path):
                images.append(path)
                self.bare.append(path)
            elif is_video(entry.name):
                self.videos.append(path)
            else:
                self.endings[Path(entry.name).suffix.lower()] += 1
        for twins in looking_alike(images, lambda path: unicodedata.normalize("NFC", path)):
            message = f"{len(twins)} files whose names look the same, in different Unicode forms"
            hint = "keep one of them if they are copies"
            self.notes.append(Note("unicode-twins", twins[0], message, hint))
        return folders, images

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                found = list(entries)
        except OSError as error:
            reason = f"the folder cannot be read: {os_reason(error).lower()}"
            self.notes.append(Note("unreadable-folder", folder, reason))
            self.lost[folder] = reason
            return []
        for entry in found:
            name = entry.name
            if is_hidden(name) and name[0] not in "._" and answer_of(entry.is_dir):
                self.systems.add(name)
        return sorted((e for e in found if not is_hidden(e.name)), key=lambda e: e.name)


def _bare(name: str) -> bool:
    """Return whether a name has no ending, or the query of an address behind it."""
    return "?" in name or not Path(name).suffix


def answer_of(question: Callable[[], bool]) -> bool:
    """Return the answer of a look at a file; no if looking fails, as at too long a name."""
    try:
        return question()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or the system's own."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _tree(walk: _Walk, top: str, split: Split) -> Iterator[Photo]:
    """Yield the photos of one tree of class folders, in the test part unlabelled ones too."""
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
    message = f"{count(len(loose), 'photo')} in {where}, outside the class folders, left out"
    hint = "move them into class folders, or describe all photos in a CSV file"
    walk.notes.append(Note("loose-photos", loose[0], message, hint))


def _note_class(walk: _Walk, folder: str, label: str, paths: Sequence[str]) -> None:
    if not paths:
        message = f"class `{label}` has 0 photos and is left out"
        walk.notes.append(Note("empty-class", folder, message, "add photos, or remove the folder"))
    deep = sum(path.count("/") > folder.count("/") + 1 for path in paths)
    if deep:
        message = (
            f"class `{label}` has {count(len(walk.folders(folder)), 'folder')} inside;"
            f" their {count(deep, 'photo')} count as `{label}`"
        )
        hint = "if the inner folders are the classes, give the folder above them"
        walk.notes.append(Note("nested-folders", folder, message, hint))


def _nothing_found(walk: _Walk) -> DataError:
    loose = walk.images("")
    if loose:
        return DataError(
            f"no class folders: {walk.root} holds {count(len(loose), 'photo')} directly",
            hint="put each class into a folder of its own, or describe the photos in a CSV file",
        )
    if walk.videos:
        note = videos_note(walk.videos, walk.root)
        return DataError(f"no photographs below {walk.root}, but {note.message}", hint=note.hint)
    found = walk.endings_found()
    raised = DataError if any(walk.folders("")) or found else PhotosAway
    return raised(
        f"no photographs below {walk.root}; "
        + (f"found: {found}" if found else "the folders are empty"),
        hint="looked for " + " ".join(sorted(EXTENSIONS)),
    )
