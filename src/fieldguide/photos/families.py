"""Families of photos by file name: an original and what was made of it before it was shared.

Knows nothing of pixels.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from fieldguide.errors import UsageError
from fieldguide.photos import crops
from fieldguide.photos.catalog import SPLIT_FOLDERS, Photo
from fieldguide.storage.columns import Records
from fieldguide.words import count

STEM = "stem"

_WORDS = (
    "aug|augmented|augmentation|rot|rotate|rotated|rotation|flip|flipped|[hv]flip|flip[hv]|mirror"
    "|mirrored|crop|cropped|zoom|zoomed|shear|sheared|shift|shifted|scale|scaled|resize|resized"
    "|blur|blurred|noise|noisy|bright|brighter|brightness|dark|darker|contrast|sharp|sharpened"
    "|hue|saturation|horizontal|vertical|lr|ud|by|gr[ae]y|gr[ae]yscale|bw|jitter|cutout|distort|distorted|copy|kopie|copie"
)
# What tools and people append to the name of the photo that they copy. A number alone is only taken
# behind a digit (`IMG_0001_1`): `rose_1` and `rose_2`, `cam0_001` and `IMG_0002` number photos.
_ENDING = re.compile(
    rf"[ _.-]+(?:{_WORDS})[ _-]?\d{{0,4}}(?:deg|°)?"
    r"|[ _.-]+[+-]?\d{1,3}(?:deg|°|degrees)"
    r"| ?\(\d{1,2}\)"
    r"|(?<=\d)[_-][1-9]",
    re.IGNORECASE,
)
_LAST = re.compile(rf"(?:{_ENDING.pattern})\Z", re.IGNORECASE)
# Roboflow names every version `X_jpg.rf.<hash>`, the original too.
_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9a-z]{8,}\Z", re.IGNORECASE)


def families(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """Return sets of rows, of an original and its copies by name, ascending.

    Names without the endings of files are an original's, X, and X with one or more endings of
    augmentation (`_90deg`, `_rot15`, `_aug3`, `_flip`, `_crop`, ` (1)`, `-copy`, `_1` behind a
    digit); without an original nothing is a family, but names of Roboflow's with one X. All lie in
    one folder, or in that of another split.
    """
    wanted = set[tuple[str, str]]()
    for path in paths:
        folder, stem = _parts(path)
        for name in _originals(stem):
            wanted |= {(folder, name), (_joined(folder), name)}
    first: dict[tuple[str, str], int] = {}
    for row, path in enumerate(paths if wanted else ()):
        folder, stem = _parts(path)
        name = _roboflow(stem) or stem
        for key in {(folder, name), (_joined(folder), name)} & wanted:
            first.setdefault(key, row)
    members: dict[int, list[int]] = defaultdict(list)
    for row, path in enumerate(paths if wanted else ()):
        members[_root(row, path, first)].append(row)
    return sorted(tuple(rows) for rows in members.values() if len(rows) > 1)


def _root(row: int, path: str, first: Mapping[tuple[str, str], int]) -> int:
    """Return the row of the shortest name that a path's may be made from, else its own."""
    folder, stem = _parts(path)
    root = first.get((folder, stem), row)
    for name in _originals(stem):
        places = (_joined(folder),) if _roboflow(stem) else (_joined(folder), folder)
        for place in places:  # the own folder counts more
            root = first.get((place, name), root)
    return root


def _parts(path: str) -> tuple[str, str]:
    """Return a path's folder, and its name without ending."""
    folder, _, name = crops.parted(path)[0].rpartition("/")
    return folder, name.rpartition(".")[0] or name


def _joined(folder: str) -> str:
    """Return a folder without parts that are called after splits; it ends in `/`, as none does."""
    parts = [part for part in folder.split("/") if part.lower() not in SPLIT_FOLDERS]
    return "/".join(parts) + "/"


def _roboflow(stem: str) -> str:
    found = _ROBOFLOW.match(stem)
    return found[1] if found else ""


def _originals(stem: str) -> Iterator[str]:
    """Yield what is left of a name, with one ending less each time."""
    if name := _roboflow(stem):
        yield name
        return
    while (found := _LAST.search(stem)) and found.start():
        stem = stem[: found.start()]
        yield stem


def grouped(photos: Records[Photo], group: str) -> tuple[Records[Photo], str]:
    """Return photos with groups from their file names, and in words where these come from.

    `group` is `stem`, for families, or `stem:REGEX`: the first group of the regular expression, or
    all that it matches, of each name without ending names the group, whatever the folder. Raises
    UsageError for a bad one and for one that matches no name.
    """
    paths = photos.column("path")
    groups: list[str | None] = [None] * len(photos)
    if group == STEM:
        for rows in families(paths):
            for row in rows:
                groups[row] = paths[rows[0]]
        return photos.with_column("group", groups), f"families of file names, {_alone(groups)}"
    pattern = group.removeprefix(f"{STEM}:")
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UsageError(
            f"not a regular expression: `{pattern}`: {error}",
            hint="such as stem:^(.+)_[0-9]+$ for photos of one name that are numbered",
        ) from error
    for row, path in enumerate(paths):
        if found := search(_parts(path)[1]):
            groups[row] = (found[1] if found.re.groups else found[0]) or None
    if not any(groups):
        raise UsageError(
            f"no file name matches `{pattern}`",
            hint=f"it is searched in names without ending, such as `{_parts(paths[0])[1]}`",
        )
    return photos.with_column("group", groups), f"file names by {pattern}, {_alone(groups)}"


def _alone(groups: Sequence[str | None]) -> str:
    return f"{count(groups.count(None), 'photo')} alone"


def is_by_name(group: str | None) -> bool:
    """Return whether a choice of groups is `stem` or `stem:REGEX`."""
    return group is not None and (group == STEM or group.startswith(f"{STEM}:"))
