"""Folders at an address (`s3://bucket/photos`, any that fsspec knows) as folders of this machine.

Photos are fetched once, into the user's cache folder; everything else works on files. Fetched files
are identified by size and by etag, checksum or time, whichever the store has. fsspec is imported
when an address is given. Knows nothing of what the files hold.
"""

import errno
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fieldguide.errors import DataError, FieldguideError, ResourceError, UsageError
from fieldguide.storage import cache_folder, files
from fieldguide.words import first_line

REACH_SECONDS = 45.0  # for a first answer; fsspec's own limits may be minutes
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between tries, once it has answered (taste)
AT_ONCE = 16  # files fetched at the same time (taste)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters: `c:` is a drive
# What stores call the mark of a file's content, the surest first; else when it was written.
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "sha256", "blob_id", "sha")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
_WITH_FOLDER = frozenset({".csv", ".tsv", ".tab", ".txt", ".lst"})  # name files beside them
# Our own disk's fault, which no waiting mends.
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_T = TypeVar("_T")


def is_address(text: str | Path) -> bool:
    """Return whether this is an address and not a path of this machine."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None


@dataclass(frozen=True)
class Place:
    """A folder or file at an address: a file system, and its path there."""

    address: str
    system: Any  # fsspec.AbstractFileSystem, which has no types
    path: str
    notice: Callable[[str], None] = lambda message: None

    def tokens(self) -> dict[str, tuple[int, str]]:
        """Return size in bytes and mark of every file below, by relative path."""
        found = self.patiently(partial(self.system.find, self.path, detail=True))
        start = len(self.path.rstrip("/")) + 1
        return {
            name[start:]: token_of(info)
            for name, info in found.items()
            if files.stays_inside(name[start:])
        }

    def info(self, tries: int = 1 + len(WAITS)) -> Mapping[str, Any] | None:
        """Return the store's description of this place; None if nothing is there."""

        def look() -> Mapping[str, Any] | None:
            with suppress(FileNotFoundError):  # fsspec's `exists` is also false for a silent store
                found: Mapping[str, Any] = self.system.info(self.path)
                return found
            return None

        return self.patiently(look, tries)

    def below(self, name: str) -> str:
        """Return the path of a file there."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def patiently(self, action: Callable[[], _T], tries: int = 1 + len(WAITS)) -> _T:
        """Return the action's result, tried again after growing waits; ResourceError in the end."""
        for wait in (*WAITS[: tries - 1], None):
            try:
                self.system.invalidate_cache()
                return action()
            except FileNotFoundError as error:  # and it will be missing, or forbidden, later
                reason = "there is no such file or folder"
                raise _unreachable(self.address, reason) from error
            except FieldguideError:
                raise
            except Exception as error:  # each file system has its own
                reason = first_line(error)
                if wait is None or isinstance(error, PermissionError):
                    raise _unreachable(self.address, reason) from error
                self.notice(
                    f"`{self.address}` does not answer ({reason}): trying again in {wait:g} s"
                )
                time.sleep(wait)
        raise AssertionError


def token_of(info: Mapping[str, Any]) -> tuple[int, str]:
    """Return size and mark of a file from its store's description."""
    name = next((name for name in (*_MARKS, *_TIMES) if info.get(name)), "")
    mark = info.get(name)
    if isinstance(mark, datetime):  # where a list of the same file may have seconds
        mark = mark.timestamp()
    return int(info["size"] or 0), f"{name}={mark}"


def opened(address: str, notice: Callable[[str], None] = lambda message: None) -> Place:
    """Return the place at an address, whether something is there or not.

    UsageError if nothing here can read it, ResourceError without an answer in `REACH_SECONDS`.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UsageError(
            f"`{address}` needs fsspec", hint="pip install 'fieldguide[remote]'"
        ) from error
    try:
        system, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"`{address}` cannot be read: {error}",
            hint="such as `pip install s3fs` for s3://, gcsfs for gs://, adlfs for az://",
        ) from error
    try:
        act_within(REACH_SECONDS, partial(Place(address, system, path).info, tries=4))
    except TimeoutError as error:
        raise _unreachable(address, f"no answer in {REACH_SECONDS:g} s") from error
    return Place(address, system, path, notice)


def act_within(seconds: float, action: Callable[[], object]) -> None:
    """Act in a thread, as no library's time limit is reliable; TimeoutError if it hangs."""
    errors: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]


def _unreachable(address: str, reason: str) -> ResourceError:
    return ResourceError(
        f"`{address}` cannot be reached: {reason}",
        hint="check the address, the network and the credentials",
    )


# --- photos ---------------------------------------------------------------------------------------


def local(
    source: str | Path,
    *,
    notice: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, files: None,
) -> Path:
    """Return a local path for photos, a table or shards; fetch what is at an address first.

    For a table or list the whole folder is fetched, as the photos lie there. Only files that have
    changed are fetched again; those that are gone there are removed. `progress` is called with the
    number of files fetched and the number to fetch.

    Raises DataError if there is nothing, ResourceError if there is no room here, else as `opened`.
    """
    if not is_address(source):
        return Path(source)
    address = str(source).rstrip("/")
    place = opened(address, notice)
    info = place.info()
    if info is None:
        raise DataError(f"no such file or folder: {address}")
    name = ""
    if info["type"] == "file":
        name = PurePosixPath(place.path).name
        if PurePosixPath(name).suffix.lower() not in _WITH_FOLDER:
            # A folder of its own for each content of the file.
            size, mark = token_of(info)
            path = cache_folder.folder_of("remote", f"{address} {size} {mark}") / name
            if files.size_of(path) != size:
                fetch(place, "", path, size)
            cache_folder.use(path.parent, address)
            return path
        above = address.rpartition("/")[0]
        place = Place(above, place.system, place.path.rpartition("/")[0], notice)
    return _fetched_folder(place, progress) / name


def _fetched_folder(place: Place, progress: Callable[[int, int], None]) -> Path:
    """Return the local copy of a folder. A killed fetch is resumed: a file there is whole."""
    there = place.tokens()
    if not there:
        raise DataError(f"no files at {place.address}")
    folder = cache_folder.folder_of("remote", place.address)
    files.make_folder(folder / "files")
    cache_folder.use(folder, place.address)
    with files.lock(folder):
        before: dict[str, tuple[int, str]] = {}
        with suppress(ResourceError):  # else all is fetched again
            before = recorded(folder)
        if before != there:  # what has changed is removed before its new mark is recorded
            _remove_others(folder / "files", {n for n in there if before.get(n) == there[n]})
        files.write_json(folder / "files.json", there)
        missing = {
            name: size
            for name, (size, _) in there.items()
            if files.size_of(folder / "files" / name) != size
        }
        _fetch_all(place, folder / "files", missing, progress)
    return folder / "files"


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove all other files and then-empty folders, which would be empty classes."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir():
            with suppress(OSError):  # it is not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in kept:
            path.unlink()


def recorded(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and mark of the files of a fetched folder; ResourceError without a record."""
    try:
        found = json.loads((folder / "files.json").read_bytes())
        return {name: (int(size), mark) for name, (size, mark) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ResourceError(f"files.json cannot be read: {error}") from error


def _fetch_all(
    place: Place, folder: Path, sizes: Mapping[str, int], progress: Callable[[int, int], None]
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            fetched = pool.map(lambda name: fetch(place, name, folder / name, sizes[name]), sizes)
            for done, _ in enumerate(fetched, start=1):
                progress(done, len(sizes))
        except BaseException:  # Ctrl-C must not wait for a million photos
            pool.shutdown(cancel_futures=True)
            raise


def fetch(place: Place, name: str, path: Path, size: int) -> None:
    """Fetch one file, whole or not at all."""
    files.make_folder(path.parent)
    temporary = path.with_name(f"{path.name[:200]}.part")

    def get() -> None:
        try:
            place.system.get_file(place.below(name), str(temporary))
        except OSError as error:
            if error.errno in _DISK:
                raise ResourceError(f"cannot write {path}: {error.strerror}") from error
            raise
        found = temporary.stat().st_size
        if found != size:
            raise EOFError(f"{name}: {found:,} of {size:,} bytes came")

    try:
        place.patiently(get)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
