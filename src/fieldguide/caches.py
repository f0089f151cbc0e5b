"""Where the user's cache folder is: for what can always be made or fetched again.

A folder in it that holds a copy says of what, in a file that is locked by the processes which use
the copy. Knows nothing of what is kept there.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fieldguide.errors import ResourceError

if sys.platform != "win32":
    import fcntl

_SOURCE = "source.txt"

_in_use: dict[Path, int] = {}  # descriptors, which stay open, and with them the locks


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


def use(folder: Path, source: str) -> None:
    """Says what a folder holds a copy of, and that this process uses it, from now to its end.

    Nothing happens where that cannot be written; on Windows it is said but holds nobody up.
    """
    path = folder / _SOURCE
    with suppress(OSError):
        if path not in _in_use or not path.exists():
            path.write_text(source, "utf-8", "surrogateescape")
            _in_use[path] = os.open(path, os.O_RDONLY)
            if sys.platform != "win32":
                fcntl.flock(_in_use[path], fcntl.LOCK_SH | fcntl.LOCK_NB)
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
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _platform_root() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / "fieldguide" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fieldguide"
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "fieldguide"
