"""The contents of the cache folder, listed, verified and removed.

It keeps decoded photos, features of photos, and copies of photos, runs and shards, which are made
again when needed.
Knows nothing of how they are used.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from fieldguide.errors import FieldguideError, ResourceError
from fieldguide.storage import addresses, cache_folder, decoded, files, mirror, shards
from fieldguide.storage.cache_folder import Kept
from fieldguide.words import count, os_reason

_KINDS: dict[str, Literal["features", "photos", "run", "shards"]] = {  # by folder
    "features": "features",
    "remote": "photos",
    "runs": "run",
    "shards": "shards",
}
_NAME = re.compile(r"[0-9a-f]{32}(\.gone)?")  # the latter: its removal was interrupted


def kept(root: Path) -> list[Kept]:
    """Return all that a cache folder keeps: decoded photos by store, then copies."""
    return decoded.kept(root) + copies(root)


def copies(root: Path) -> list[Kept]:
    """Return the copies in a cache folder by kind and source; links and other names are none."""
    found = []
    for name, kind in _KINDS.items():
        with suppress(OSError):
            for folder in (root / name).iterdir():
                if _NAME.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir():
                    found.append(_copy(folder, kind))
    return sorted(found, key=lambda copy: (copy.kind, copy.name, copy.path))


def _copy(folder: Path, kind: Literal["features", "photos", "run", "shards"]) -> Kept:
    sizes = [size for path in folder.rglob("*") if (size := files.size_of(path)) is not None]
    source, used = cache_folder.source_of(folder)
    return Kept(folder, kind, source or folder.name, len(sizes), sum(sizes), used)


def faults(copy: Kept) -> list[str]:
    """Return what is damaged: photos by size, runs and photos of Parquet files by SHA-256.

    Decoded photos and features have no faults here: their readers compare checksums.
    """
    find = {"photos": _faults_of_photos, "run": _faults_of_run, "shards": _faults_of_shards}
    try:
        return list(find[copy.kind](copy.path)) if copy.kind in find else []
    except FieldguideError as error:
        return [error.message]


def _faults_of_photos(folder: Path) -> Iterator[str]:
    if not (folder / "files.json").exists():  # a single file, a folder for each of its contents
        return
    for name, (size, _) in addresses.recorded(folder).items():
        found = files.size_of(folder / "files" / name)
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
    if not (folder / shards.INDEX).exists():
        return
    index = shards.opened(folder / shards.INDEX)
    for entry in index.entries():
        if index.holder(entry.shard).parent == folder:
            try:
                index.read(entry.path)
            except OSError as error:
                yield f"{entry.path}: {error.strerror}"


def remove(each: Kept) -> str:
    """Remove a kept thing; return the reason if it stays, an empty text if it is gone.

    It stays while a process uses it, and a run also while its address lacks files of it.
    """
    try:
        if each.kind == "decoded":
            decoded.remove(each.path)
            return ""
        with cache_folder.unused(each.path), files.lock(each.path):
            missing = mirror.unsent(each.path) if each.kind == "run" else []
            if missing:
                return f"{count(len(missing), 'file')} of the run not sent yet: `fit` sends them"
            gone = each.path.with_suffix(".gone")
            if each.path != gone:
                shutil.rmtree(gone, ignore_errors=True)  # of a removal that was interrupted
                each.path.rename(gone)  # else half a copy might be found
            shutil.rmtree(gone)
    except (BlockingIOError, ResourceError):
        return "a process uses it"
    except OSError as error:
        return os_reason(error).lower()
    return ""
