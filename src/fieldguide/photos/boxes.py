"""Boxes from a file of their own, such as a detector's results, for the photos of any source.

Knows nothing of labels and pixels.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fieldguide.errors import DataError
from fieldguide.photos import crops
from fieldguide.photos.catalog import Catalog, in_columns
from fieldguide.photos.crops import Box, Crop
from fieldguide.photos.forms import known
from fieldguide.photos.forms.form import PATH
from fieldguide.photos.groups import BY_PHOTO, by_photo
from fieldguide.photos.tables import Table, boxes_by_photo, path_column, read_cells
from fieldguide.words import count, quoted

_HINT = "its paths should start from the folder that the photos' paths start from"


class Boxes(NamedTuple):
    """The boxes of a file that count by a rule: its name, and the boxes by path as it has them."""

    name: str
    by_path: dict[str, list[Box]]


def read(file: Path, rule: Crop) -> Boxes:
    """Return the boxes that count, from a form that has some or a table; else DataError."""
    if not file.exists():
        raise DataError(f"no such file: {file}")
    form = known.find(file, boxes=True)
    if form is None:
        table = read_cells(file)
        path = path_column(table)
    else:
        rows = (*form.rows, *form.aside)  # also photos without a box
        table = Table(file.name, form.header, tuple(enumerate(rows, 1)))
        path = form.header.index(PATH)
    found: dict[str, list[Box]] = defaultdict(list)
    for name, boxes in boxes_by_photo(table, path, rule).items():
        found[_plain(name)] += [box for box in boxes if box not in found[_plain(name)]]
    return Boxes(file.name, dict(found))


def _plain(path: str) -> str:
    """Return a path as paths are compared."""
    slashed = unicodedata.normalize("NFC", path.strip().replace("\\", "/"))
    return PurePosixPath(slashed).as_posix()


def found_for(photos: Sequence[str], roots: Sequence[Path], boxes: Boxes) -> list[list[Box] | None]:
    """Return the boxes of each photo, by its path; None for a photo that the file does not name.

    Paths start from `roots`, one each, and may start from another folder in the file: one is the
    end of the other, and if the file's is longer and not absolute, the folder before it is called
    as the root is. Raises DataError where that leaves a choice, and where no photo is named.
    """
    ends: dict[str, list[str]] = defaultdict(list)
    for path in boxes.by_path:
        for end in _ends(path):
            ends[end].append(path)
    names = [
        _named(_plain(photo), root, boxes, ends) for photo, root in zip(photos, roots, strict=True)
    ]
    of_name: dict[str, str] = {}
    for photo, name in zip(photos, names, strict=True):
        if name is not None and of_name.setdefault(name, photo) != photo:
            raise DataError(
                f"{boxes.name}: `{name}` may be `{of_name[name]}` or `{photo}`",
                hint=_HINT,
            )
    if not of_name:
        raise DataError(
            f"{boxes.name}: none of its {count(len(boxes.by_path), 'path')} is one of these photos:"
            f" {quoted(list(boxes.by_path))}, and {quoted(list(photos))}",
            hint=_HINT,
        )
    return [None if name is None else boxes.by_path[name] for name in names]


def _ends(path: str) -> Iterator[str]:
    """Yield a path, and what is left of it without its first folders."""
    parts = path.split("/")
    for first in range(len(parts)):
        yield "/".join(parts[first:])


def _named(photo: str, root: Path, boxes: Boxes, ends: dict[str, list[str]]) -> str | None:
    """Return the path that a photo has in a file of boxes, of which `ends` are all paths' ends."""
    if photo in boxes.by_path:
        return photo
    within = f"{root.name}/{photo}"
    longer = [
        path
        for path in ends.get(photo, [])
        if path == within or path.endswith(f"/{within}") or re.match(r"/|[A-Za-z]:/", path)
    ]
    if len(longer) > 1:
        raise DataError(
            f"{boxes.name}: `{photo}` may be any of {quoted(longer)}",
            hint=_HINT,
        )
    return next(iter(longer), None) or next(
        (end for end in _ends(photo) if end in boxes.by_path), None
    )


def cut(catalog: Catalog, boxes: Boxes, rule: Crop) -> Catalog:
    """Return the crops of a catalog's photos; those without a box that counts are left out."""
    rows = []
    unnamed = empty = 0
    paths = catalog.table.column("path")
    named = found_for(paths, [catalog.root] * len(paths), boxes)
    for photo, found in zip(catalog.photos, named, strict=True):
        unnamed += found is None
        empty += found == []
        rows += [replace(photo, path=rule.address(photo.path, box)) for box in found or ()]
    if not rows:
        raise DataError(f"{boxes.name}: none of its boxes counts: {rule.name}")
    left = [f"{count(empty, 'photo')} without a box that counts"] * (empty > 0)
    left += [f"{count(unnamed, 'photo')} that it does not name"] * (unnamed > 0)
    said = f"crops: {rule.name} of {boxes.name} ({count(len(rows), 'box')})"
    said += f", left out: {' and '.join(left)}" * bool(left)
    grouped = any(group is not None for group in catalog.table.column("group"))
    told = f"{said}; {catalog.told}"
    if not grouped:
        photos = len({crops.parted(photo.path)[0] for photo in rows})
        told = told.replace("groups: none", f"groups: {BY_PHOTO} ({photos:,})")
    return replace(catalog, photos=by_photo(in_columns(rows)), told=told, crop=rule.name)
