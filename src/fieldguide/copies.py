"""Copies in the cache folder: of photos and runs at addresses; indexes and photos of shards.

Lists, verifies and removes them. Photos are fetched again when they are needed, runs too, and
shards are read through again. Knows nothing of decoded photos, which `store` keeps.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fieldguide import caches, files, mirror, shards
from fieldguide.errors import FieldguideError, ResourceError

Kind = Literal["photos", "run", "shards"]

_KINDS: dict[str, Kind] = {"remote": "photos", "runs": "run", "shards": "shards"}  # by folder
_NAME = re.compile(r"[0-9a-f]{32}(\.gone)?")  # the latter: its removal was interrupted


@dataclass(frozen=True)
class Copy:
    """A folder of copies. `source` is an address or a folder, empty where that is not recorded.

    `used` is when a process last began to use it, in seconds since 1970.
    """

    folder: Path
    kind: Kind
    source: str
    files: int
    bytes: int
    used: float


def copies(root: Path) -> list[Copy]:
    """The copies in a cache folder, by kind and source. Links are none, nor what is named else."""
    found = []
    for name, kind in _KINDS.items():
        with suppress(OSError):
            for folder in (root / name).iterdir():
                if _NAME.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir():
                    found.append(_copy(folder, kind))
    return sorted(found, key=lambda copy: (copy.kind, copy.source, copy.folder))


def _copy(folder: Path, kind: Kind) -> Copy:
    sizes = [size for path in folder.rglob("*") if (size := _size(path)) is not None]
    source, used = caches.source_of(folder)
    return Copy(folder, kind, source, len(sizes), sum(sizes), used)


def _size(path: Path) -> int | None:
    """Bytes of a file; None of what is none, or of what another process has just removed."""
    with suppress(OSError):
        return None if path.is_dir() else path.lstat().st_size
    return None


def faults(copy: Copy) -> list[str]:
    """What is damaged: the files of photos by size, runs and photos of Parquet files by SHA-256."""
    try:
        match copy.kind:
            case "photos":
                return list(_faults_of_photos(copy.folder))
            case "run":
                return list(_faults_of_run(copy.folder / "run"))
            case "shards":
                return list(_faults_of_shards(copy.folder / shards.INDEX))
    except FieldguideError as error:
        return [error.message]


def _faults_of_photos(folder: Path) -> Iterator[str]:
    record = folder / "files.json"
    if not record.exists():  # a single file, which has a folder for each of its contents
        return
    try:
        recorded = {name: int(size) for name, (size, _) in json.loads(record.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ResourceError(f"{record.name} cannot be read: {error}") from error
    for name, size in recorded.items():
        found = _size(folder / "files" / name)
        if found != size:
            yield f"{name}: missing" if found is None else f"{name}: {found:,} of {size:,} bytes"


def _faults_of_run(run: Path) -> Iterator[str]:
    for name in ("setup.json", files.MANIFEST):
        for manifest in sorted(run.rglob(name)):
            try:
                files.verify(manifest.parent, name=name)
            except FieldguideError as error:
                yield error.message


def _faults_of_shards(place: Path) -> Iterator[str]:
    index = shards.opened(place) if place.exists() else None
    for entry in index.entries() if index else ():
        if index and index.holder(entry.shard).parent == place.parent:
            try:
                index.read(entry.path)
            except OSError as error:
                yield f"{entry.path}: {error.strerror}"


def remove(copy: Copy) -> str:
    """Removes a copy; says why it stays, nothing if it is gone.

    It stays if a process uses it, and a run while its address has not all of it.
    """
    gone = copy.folder.with_suffix(".gone")
    try:
        with caches.unused(copy.folder), files.lock(copy.folder):
            missing = mirror.unsent(copy.folder) if copy.kind == "run" else []
            if missing:
                return f"{len(missing):,} files of the run were not sent yet: `fit` sends them"
            if copy.folder != gone:
                shutil.rmtree(gone, ignore_errors=True)  # of a removal that was interrupted
                copy.folder.rename(gone)  # else half a copy might be found
            shutil.rmtree(gone)
    except (BlockingIOError, ResourceError):
        return "a process uses it"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""
