"""The user's cache folder, for what can always be made or fetched again.

A folder in it that holds a copy says of what, in a file that is locked by the processes which use
the copy. Knows nothing of how what is kept there is read.
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
    """What is kept in the cache folder: a shard of decoded photos, or a folder of copies.

    `name` is that of the shard's store, or the address or folder that was copied, if that is known.
    `count` is the number of photos or files, `used` when a process last began to use it, in seconds
    since 1970.
    """

    path: Path
    kind: Literal["decoded", "photos", "run", "shards"]
    name: str
    count: int
    bytes: int
    used: float


def shown_bytes(count: int) -> str:
    """Such as `12.3 GB`, `4.0 MB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def root() -> Path:
    """The folder of all stores: FIELDGUIDE_CACHE, else the usual place of the platform.

    It need not exist. ResourceError if the user has no home and FIELDGUIDE_CACHE is not set.
    """
    chosen = os.environ.get("FIELDGUIDE_CACHE", "")
    chosen = "" if chosen in {"auto", "none"} else chosen  # words of the setting `cache`
    try:
        return Path(chosen).expanduser().absolute() if chosen else _platform_root()
    except RuntimeError as error:  # pathlib found no home
        raise ResourceError(
            "there is no home folder for decoded photos",
            hint="let FIELDGUIDE_CACHE name a folder",
        ) from error


def root_of(name: str) -> Path:
    """The folder of that name; `auto` is the user's, see `root`."""
    return root() if name in {"", "auto"} else Path(name).expanduser().absolute()


def folder_of(kind: str, source: str) -> Path:
    """Return the folder in the user's cache folder for a copy of an address or a folder."""
    name = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return root() / kind / name


def use(folder: Path, source: str) -> None:
    """Say what a folder holds a copy of, and that this process uses it, from now to its end.

    Nothing happens where that cannot be written; on Windows it is said but holds nobody up.
    """
    path = folder / _SOURCE
    with suppress(OSError):
        if path not in _in_use or not path.exists():
            path.write_text(source, "utf-8", "surrogateescape")
            _in_use[path] = os.open(path, os.O_RDONLY)
            lock_shared(_in_use[path])
        os.utime(path)


def source_of(folder: Path) -> tuple[str, float]:
    """What a folder holds a copy of, if it says so, and when that was last used, since 1970."""
    path = folder / _SOURCE
    with suppress(OSError):
        return path.read_text("utf-8", "surrogateescape"), path.stat().st_mtime
    return "", folder.stat().st_mtime


@contextmanager
def unused(folder: Path) -> Iterator[None]:
    """No process begins to use the copy in the block; BlockingIOError where one does already."""
    path = folder / _SOURCE
    if sys.platform == "win32" or not path.exists():
        yield
        return
    with path.open("rb") as file:
        lock_alone(file.fileno())
        yield


def lock_shared(descriptor: int) -> None:
    """Tell others that the file is in use, until it and all maps of it are closed.

    Nothing happens where the file system has no locks: whoever removes finds none to take either.
    """
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def lock_alone(descriptor: int) -> None:
    """Take the file for this process; BlockingIOError if it is in use, OSError without locks."""
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
