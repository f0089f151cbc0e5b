"""What the cache folder keeps: decoded photos, copies of photos and runs at addresses, of shards.

Lists, verifies and removes it. Photos are decoded or fetched again when they are needed, runs are
fetched too, and shards are read through again. Knows nothing of how any of it is used.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from fieldguide.errors import FieldguideError, ResourceError
from fieldguide.storage import cache_folder, decoded, files, mirror, shards
from fieldguide.storage.cache_folder import Kept

_KINDS: dict[str, Literal["photos", "run", "shards"]] = {  # by folder
    "remote": "photos",
    "runs": "run",
    "shards": "shards",
}
_NAME = re.compile(r"[0-9a-f]{32}(\.gone)?")  # the latter: its removal was interrupted


def kept(root: Path) -> list[Kept]:
    """All that a cache folder keeps: decoded photos by store, then copies."""
    return decoded.kept(root) + copies(root)


def copies(root: Path) -> list[Kept]:
    """The copies in a cache folder, by kind and source. Links are none, nor what is named else."""
    found = []
    for name, kind in _KINDS.items():
        with suppress(OSError):
            for folder in (root / name).iterdir():
                if _NAME.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir():
                    sizes = [
                        size for path in folder.rglob("*") if (size := _size(path)) is not None
                    ]
                    source, used = cache_folder.source_of(folder)
                    named = source or folder.name
                    found.append(Kept(folder, kind, named, len(sizes), sum(sizes), used))
    return sorted(found, key=lambda copy: (copy.kind, copy.name, copy.path))


def _size(path: Path) -> int | None:
    """Bytes of a file; None of what is none, or of what another process has just removed."""
    with suppress(OSError):
        return None if path.is_dir() else path.lstat().st_size
    return None


def faults(copy: Kept) -> list[str]:
    """What is damaged: the files of photos by size, runs and photos of Parquet files by SHA-256.

    Nothing of decoded photos: whoever reads them compares their checksums.
    """
    find = {"photos": _faults_of_photos, "run": _faults_of_run, "shards": _faults_of_shards}
    try:
        return list(find[copy.kind](copy.path)) if copy.kind in find else []
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


def _faults_of_run(folder: Path) -> Iterator[str]:
    for name in ("setup.json", files.MANIFEST):
        for manifest in sorted((folder / "run").rglob(name)):
            try:
                files.verify(manifest.parent, name=name)
            except FieldguideError as error:
                yield error.message


def _faults_of_shards(folder: Path) -> Iterator[str]:
    place = folder / shards.INDEX
    index = shards.opened(place) if place.exists() else None
    for entry in index.entries() if index else ():
        if index and index.holder(entry.shard).parent == place.parent:
            try:
                index.read(entry.path)
            except OSError as error:
                yield f"{entry.path}: {error.strerror}"


def remove(each: Kept) -> str:
    """Remove what is kept; say why it stays, nothing if it is gone.

    It stays if a process uses it, and a run while its address has not all of it.
    """
    try:
        if each.kind == "decoded":
            decoded.remove(each.path)
            return ""
        with cache_folder.unused(each.path), files.lock(each.path):
            missing = mirror.unsent(each.path) if each.kind == "run" else []
            if missing:
                return f"{len(missing):,} files of the run were not sent yet: `fit` sends them"
            _remove_folder(each.path)
    except (BlockingIOError, ResourceError):
        return "a process uses it"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _remove_folder(folder: Path) -> None:
    gone = folder.with_suffix(".gone")
    if folder != gone:
        shutil.rmtree(gone, ignore_errors=True)  # of a removal that was interrupted
        folder.rename(gone)  # else half a copy might be found
    shutil.rmtree(gone)
