"""The user's cache folder, for data that can always be made or fetched again.

A copy's folder names its source in a file, which the processes that use the copy lock. Knows
nothing of how kept data are read.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fieldguide.errors import ResourceError

if sys.platform != "win32":
    import fcntl

_SOURCE = "source.txt"

_in_use: dict[Path, int] = {}  # descriptors, which stay open, and with them the locks


@dataclass(frozen=True)
class Kept:
    """A thing kept in the cache folder: a shard of decoded photos, or a folder of copies.

    `name` is that of the shard's store, or the copied address or folder if known. `count` is the
    number of photos or files, `used` the start of its last use in seconds since 1970.
    """

    path: Path
    kind: Literal["decoded", "features", "photos", "run", "shards"]
    name: str
    count: int
    bytes: int
    used: float


def root() -> Path:
    """Return FIELDGUIDE_CACHE, else the platform's usual folder; ResourceError without a home."""
    chosen = os.environ.get("FIELDGUIDE_CACHE", "")
    try:
        usual = chosen in {"", "auto", "none"}  # words of the setting `cache`
        return _platform_root() if usual else Path(chosen).expanduser().absolute()
    except RuntimeError as error:  # pathlib found no home
        raise ResourceError(
            "there is no home folder for decoded photos",
            hint="let FIELDGUIDE_CACHE name a folder",
        ) from error


def root_of(name: str) -> Path:
    """Return the folder of that name; `auto` is the user's, see `root`."""
    return root() if name in {"", "auto"} else Path(name).expanduser().absolute()


def folder_of(kind: str, source: str, place: Path | None = None) -> Path:
    """Return the folder, in `place` or the user's, for what is made from a source named so."""
    name = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return (place or root()) / kind / name


def use(folder: Path, source: str) -> None:
    """Record, if possible, a folder's source, and that this process uses the copy until it ends."""
    path = folder / _SOURCE
    with suppress(OSError):
        if path not in _in_use or not path.exists():
            path.write_text(source, "utf-8", "surrogateescape")
            _in_use[path] = os.open(path, os.O_RDONLY)
            lock_shared(_in_use[path])
        os.utime(path)


def source_of(folder: Path) -> tuple[str, float]:
    """Return a copy's source, empty if unknown, and its last use in seconds since 1970."""
    path = folder / _SOURCE
    with suppress(OSError):
        return path.read_text("utf-8", "surrogateescape"), path.stat().st_mtime
    return "", folder.stat().st_mtime


@contextmanager
def unused(folder: Path) -> Iterator[None]:
    """Keep other processes from a copy in the block; BlockingIOError if one uses it already."""
    path = folder / _SOURCE
    if sys.platform == "win32" or not path.exists():
        yield
        return
    with path.open("rb") as file:
        lock_alone(file.fileno())
        yield


def lock_shared(descriptor: int) -> None:
    """Mark the file as in use until it and all maps of it are closed."""
    if sys.platform != "win32":
        with suppress(OSError):  # without locks, none can be taken to remove it either
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def lock_alone(descriptor: int) -> None:
    """Lock the file for this process; BlockingIOError if it is in use, OSError without locks."""
    if sys.platform == "win32":
        raise OSError("open files are the locks there")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _platform_root() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / "fieldguide" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fieldguide"
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "fieldguide"
