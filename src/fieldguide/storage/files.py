"""Files that are written whole or not at all, manifests of their SHA-256, and the lock of a folder.

A reader, or the same command after a crash, finds the old file or the new one, never half of one:
a file is written under a temporary name, forced to disk, and renamed. Knows nothing of what the
files hold, nor of the layout of a run folder.
"""

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

import filelock
from safetensors import SafetensorError

from fieldguide.errors import FieldguideError, ResourceError, UsageError
from fieldguide.words import first_line, os_reason

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
LOCK = ".lock"  # locked by its holder, and says who that is

# Seconds between looks at a folder that is gone: a disk elsewhere may come back (taste).
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)

# Seconds between looks at a lock that another process holds (taste).
LOOK = 0.2

_MOST_MANIFEST = 1 << 26  # bytes: some 300,000 files (taste)
_RESTORE = "restore it from a copy, or make it again"

# What reading a file of unknown content by csv, json, numpy, pydantic and safetensors may raise.
_DAMAGE = (
    *(FieldguideError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(EOFError, MemoryError, RecursionError, csv.Error, zipfile.BadZipFile, SafetensorError),
)

# What stands escaped in a table, and what only looks so.
_ESCAPE = r"x(?:[89a-f][0-9a-f]|5c)"
_TO_ESCAPE = re.compile(rf"[\udc80-\udcff]|\\(?={_ESCAPE})")
_ESCAPED = re.compile(rf"\\x([89a-f][0-9a-f]|5c(?={_ESCAPE}))")

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")

# Errors of a file system that cannot, or may not, force a folder to disk.
_CANNOT_SYNC = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EPERM}

_HINTS = {
    errno.ENOSPC: "free some space there, or choose a folder on another disk",
    errno.EDQUOT: "free some of your quota there, or choose a folder on another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "this file system is read-only: choose a folder on another one",
    errno.ENOTDIR: "a part of this path is a file: choose another folder",
    errno.ENOENT: "its folder is missing: create it, or bring it back",
}


# --- writing ---------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path, *, size: int | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends well.

    After an error, in the block too, `path` is as before; only a killed process leaves a temporary
    file, which the next that writes `path` uses (see also `remove_temporaries`). Permissions follow
    the umask. An OSError, in the block too, becomes a ResourceError naming `path` and the bytes
    needed if `size` gives them.
    """
    with _telling(path, size):
        temporary, opened = _temporary(path)
        try:
            with opened as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl:  # under the lock: else another may take the temporary file for left over
                    temporary.replace(path)
            if not fcntl:  # Windows renames no open file
                temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Return a temporary file beside `path`, open and locked: a new one, or a killed process's.

    Names are short, as `path` may fill 255 bytes, and follow from `path`, so that what was left is
    found. A file that is locked, linked or another user's is not touched.
    """
    stem = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:14]
    with suppress(io.UnsupportedOperation):
        for number in range(256) if fcntl else ():
            place = path.with_name(f".{stem}{number:02x}.tmp")
            if (file := _claimed(place)) is not None:
                return place, file
    place = path.with_name(f".{secrets.token_hex(8)}.tmp")
    return place, place.open("xb")  # unlike mkstemp, which makes files for the owner alone


def _claimed(place: Path) -> BinaryIO | None:
    """Open and lock a temporary file for this process alone, emptied; None if it is in use.

    Raises `io.UnsupportedOperation` on a file system without locks.
    """
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.ELOOP} and os.path.lexists(place):
            return None
        raise
    file = os.fdopen(descriptor, "wb")
    status = os.fstat(descriptor)
    own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if own and os.path.samestat(status, place.lstat()):
            file.truncate(0)
            return file
    except (BlockingIOError, FileNotFoundError):  # its holder writes, or has just renamed it
        pass
    except OSError as error:
        file.close()
        if own and not status.st_size:  # made just now
            place.unlink(missing_ok=True)
        raise io.UnsupportedOperation from error
    file.close()
    return None


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; ResourceError if it cannot be."""
    with replacing(path, size=len(data)) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all, with its line ends and lone surrogates kept."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all; ValueError for NaN and infinity."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return `value` as indented JSON; ValueError for NaN and infinity."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # What UTF-8 cannot hold, a lone surrogate, becomes `\\udcff`: JSON's own way to write it.
    return text.encode("utf-8", "backslashreplace")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    r"""Write a table as CSV (RFC 4180, but lines end in `\n`), whole or not at all.

    Text reads back exactly with `csv.reader` from a file opened with `newline=""`, names that are
    not UTF-8 by `unescaped`; floats keep all digits, None is empty. ValueError for a row whose
    length is not the header's.
    """
    with replacing(path) as file:
        for line in csv_lines(chain([header], rows)):
            file.write(line)


def csv_lines(rows: Iterable[Sequence[object]], separator: str = ",") -> Iterator[bytes]:
    """Yield the lines that `write_csv` writes; ValueError for rows of unequal length."""
    buffer = io.StringIO(newline="")
    # Before Python 3.13 a lone `\r` in a cell is quoted only if the line end holds one.
    writer = csv.writer(buffer, delimiter=separator, lineterminator="\r\n")
    columns = None
    for number, row in enumerate(rows):
        columns = len(row) if columns is None else columns
        if len(row) != columns:
            raise ValueError(f"row {number} has {len(row)} cells, the header {columns}")
        writer.writerow(row)
        line = buffer.getvalue().removesuffix("\r\n") + "\n"
        yield escaped(line).encode()
        buffer.seek(0)
        buffer.truncate()


def escaped(text: str) -> str:
    r"""Return the text as tables hold it: bytes of a file's name that are not UTF-8 as `\xff`.

    Python reads such bytes as lone surrogates, which UTF-8 cannot hold. A backslash that begins
    what only looks like an escape becomes `\x5c`, so that `unescaped` gives every text back.
    """
    return _TO_ESCAPE.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", text)


def unescaped(text: str) -> str:
    """Return the text that `escaped` was given."""
    return _ESCAPED.sub(_original, text) if "\\" in text else text


def _original(found: re.Match[str]) -> str:
    code = int(found[1][:2], 16)
    return "\\" if code == ord("\\") else chr(0xDC00 + code)


def no_formula(cell: str) -> str:
    """Return the cell, with a `'` in front if a spreadsheet would take it for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def as_written(cell: str) -> str:
    """Return what a cell was before `no_formula`."""
    return cell[1:] if cell == no_formula(cell[1:]) else cell


@contextmanager
def growing(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Give the block a function that adds bytes to `PATH.part`, which becomes `path` at the end.

    For files that take hours to make: after an error in the block, `PATH.part` holds exactly the
    pieces that were added whole, or is removed if there are none. An earlier one is replaced.
    ResourceError if a file cannot be written, or another process began to write it.
    """
    part = path.with_name(f"{path.name}.part")
    with _telling(path):
        part.unlink(missing_ok=True)
        file = part.open("xb", buffering=0)  # what was added is in the file, not in a buffer
    added = 0

    def add(data: bytes) -> None:
        nonlocal added
        with _telling(path):
            write_whole(file, data, added)
        added += len(data)

    try:
        yield add
        with _telling(path):
            os.fsync(file.fileno())
        if not (part.exists() and os.path.samestat(part.stat(), os.fstat(file.fileno()))):
            raise ResourceError(f"cannot write {path}: another process writes {part.name} too")
    except BaseException:
        file.close()
        if not added:
            with suppress(OSError):  # the first error is the one to report
                part.unlink()
        raise
    file.close()
    with _telling(path):
        part.replace(path)
        _sync_folder(path.parent)


def write_whole(file: io.FileIO, data: bytes | memoryview, start: int) -> None:
    """Write all of `data` at `start`, or leave the file ending there."""
    rest = memoryview(data)
    file.seek(start)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:  # Ctrl-C as well
        with suppress(OSError):
            file.truncate(start)
        raise


@contextmanager
def _telling(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn an OSError in the block into a ResourceError naming `path` and the bytes needed."""
    try:
        yield
    except OSError as error:
        needed = "" if size is None else f" ({size:,} bytes needed)"
        hint = _HINTS.get(error.errno or 0, "")
        raise ResourceError(
            f"cannot write {path}{needed}: {os_reason(error)}", hint=hint
        ) from error


def require_new(*paths: Path, hint: str = "name a new folder with --out") -> None:
    """Raise `UsageError` if something lies at one of `paths`, even a broken link."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise UsageError(f"`{path}` is there already", hint=hint)


@contextmanager
def new_folder(out: Path, hint: str = "name a new folder with --out") -> Iterator[Path]:
    """Yield the locked, empty folder `OUT.part`, which becomes `out` if the block ends well.

    After an error it is removed; that of a killed process is used by the next one. Raises
    `UsageError` if there is something at `out`, or at `OUT.part` that no such process left.
    """
    if not out.is_dir() or any(out.iterdir()):
        require_new(out, hint=hint)
    part = out.with_name(f"{out.name}.part")
    if part.is_dir() and any(part.iterdir()) and not (part / LOCK).is_file():
        require_new(part, hint=hint)
    make_folder(part)
    with lock(part):
        try:
            for path in part.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
            yield part
            with _telling(out):
                part.replace(out)  # the lock goes with it
                _sync_folder(out.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    (out / LOCK).unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder and those above it; ResourceError if it cannot be, or is a file."""
    if folder.exists() and not folder.is_dir():
        raise ResourceError(f"`{folder}` is a file, not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"`{folder}` cannot be created: {error.strerror}") from error


def make_folder_within(folder: Path) -> None:
    """Create a folder, but not the one above it: its disk may be unmounted.

    If that one is gone, wait half a minute for it, then raise ResourceError.
    """
    for wait in (*WAITS, None):
        try:
            folder.mkdir(exist_ok=True)
            return
        except FileNotFoundError as error:
            if wait is None:
                raise ResourceError(
                    f"`{folder.parent}` is gone",
                    hint="bring it back; the same command then resumes from the last checkpoint",
                ) from error
            time.sleep(wait)
        except OSError as error:
            raise ResourceError(f"`{folder}` cannot be created: {error.strerror}") from error


def refuse_strange(folder: Path, known: Collection[str], *, mark: str, what: str) -> None:
    """Raise UsageError if a folder without the file `mark` of a `what` holds unknown names."""
    names = {path.name for path in folder.iterdir() if not is_temporary(path.name)}
    strange = sorted(names - set(known))
    if strange and not (folder / mark).is_file():
        raise UsageError(
            f"`{folder}` is not empty and holds no {what}: {', '.join(strange[:3])}",
            hint="name a new folder with --out",
        )


def size_and_time(path: Path) -> tuple[int, int]:
    """Return size and modification time (nanoseconds), to detect a changed file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def is_temporary(name: str) -> bool:
    """Return whether a name is that of a temporary file, which a killed process leaves."""
    return _TEMPORARY.fullmatch(name) is not None


def size_of(path: Path) -> int | None:
    """Return the bytes of a file or link itself; None for a folder, or if nothing can be found."""
    with suppress(OSError):
        return None if path.is_dir() else path.lstat().st_size
    return None


def remove_temporaries(folder: Path) -> int:
    """Remove temporary files directly in `folder` and return their number.

    Only the holder of the folder may call it: a living writer's file goes too. ResourceError if
    one cannot be removed.
    """
    with _telling(folder):
        found = [path for path in folder.iterdir() if is_temporary(path.name)]
        for path in found:
            path.unlink(missing_ok=True)
    return len(found)


def _sync_folder(folder: Path) -> None:
    """Force a rename in `folder` to disk if the system can."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


# --- manifests -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A file's entry in a manifest: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    bytes: int


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; OSError if it cannot be read."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; OSError for what is none, as a pipe, which would never end."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_member(folder: Path, name: str, *, manifest: str = MANIFEST) -> bytes:
    """Return the bytes of a file that the folder's manifest names, as they were when recorded.

    Raises ResourceError for one that is missing, not named, no regular file, or another than
    recorded. No more is read than is recorded.
    """
    recorded = read_manifest(folder, name=manifest).get(name)
    fault, data = "not in the manifest", b""
    if recorded:
        try:
            with open_regular(folder / name) as file:
                data = file.read(recorded.bytes + 1)
        except OSError as error:
            fault = "missing" if isinstance(error, FileNotFoundError) else os_reason(error)
        else:
            same = recorded == Recorded(hashlib.sha256(data).hexdigest(), len(data))
            fault = "" if same else "size or SHA-256 differs"
    if fault:
        raise ResourceError(
            f"{folder / name} is not as {manifest} records it: {fault}", hint=_RESTORE
        )
    return data


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turn whatever the content of a damaged or hostile file raises into a ResourceError."""
    try:
        yield
    except ResourceError:
        raise
    except _DAMAGE as error:
        raise ResourceError(f"{path} is damaged: {first_line(error)}", hint=_RESTORE) from error


def write_manifest(folder: Path, names: Iterable[str], *, name: str = MANIFEST) -> None:
    """Record size and SHA-256 of the files `names` of `folder` in its file `name`.

    Write it last: a folder with a manifest is complete. Names are relative, with `/`.
    ResourceError names a file that cannot be read.
    """
    files: dict[str, dict[str, str | int]] = {}
    for each in sorted(set(names)):
        assert stays_inside(each) and each != name, f"not a name for a manifest: {each}"
        path = folder / each
        try:
            files[each] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {os_reason(error)}") from error
    write_json(folder / name, {"format": MANIFEST_FORMAT, "files": files})


def read_manifest(folder: Path, *, name: str = MANIFEST) -> dict[str, Recorded]:
    """Return the entries of a folder's manifest by relative name; ResourceError if unreadable."""
    path = folder / name
    try:
        with open_regular(path) as file:
            content = json.loads(file.read(_MOST_MANIFEST))
    except FileNotFoundError as error:
        raise ResourceError(f"no {name} in {folder}: it was not finished") from error
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {os_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ResourceError(f"{path} is damaged: {error}") from error
    return _parsed(content, path)


def verify(folder: Path, names: Iterable[str] | None = None, *, name: str = MANIFEST) -> None:
    """Compare files with the manifest of `folder`: those of `names`, or all that it records.

    ResourceError names every file that is missing, not recorded, or of another size or SHA-256.
    """
    names = set(read_manifest(folder, name=name) if names is None else names)
    found = faults(folder, names, name=name)
    if found:
        raise ResourceError(
            f"{len(found)} of {len(names)} files in {folder} are not as {name} records them\n"
            + "\n".join(f"  {each}: {fault}" for each, fault in found.items()),
            hint=_RESTORE,
        )


def faults(
    folder: Path, names: Iterable[str] | None = None, *, name: str = MANIFEST
) -> dict[str, str]:
    """Return what is wrong with each file of which `verify` would complain, by name."""
    recorded = read_manifest(folder, name=name)
    wanted = sorted(recorded) if names is None else sorted(set(names))
    found = {each: _fault(folder, each, recorded.get(each)) for each in wanted}
    return {each: fault for each, fault in found.items() if fault}


def _fault(folder: Path, name: str, expected: Recorded | None) -> str:
    """Return what is wrong with a file, or an empty text."""
    if expected is None:
        return "not in the manifest"
    path = folder / name
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size != expected.bytes:
            return f"{size:,} bytes, recorded {expected.bytes:,}"
        found = sha256(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {os_reason(error)}"
    if found != expected.sha256:
        return f"SHA-256 {found[:12]}…, recorded {expected.sha256[:12]}…"
    return ""


def _parsed(content: object, path: Path) -> dict[str, Recorded]:
    """Return the files of a manifest that was read as JSON: it may hold anything."""
    if not isinstance(content, dict):
        raise ResourceError(f"{path} is no manifest: it holds no JSON object")
    if content.get("format") != MANIFEST_FORMAT:
        raise ResourceError(
            f"{path} has an unknown format: `{content.get('format')}`, not `{MANIFEST_FORMAT}`",
            hint="read it with the version of fieldguide that wrote it",
        )
    files = content.get("files")
    if not isinstance(files, dict):
        raise ResourceError(f"{path} is no manifest: it lists no files")
    recorded: dict[str, Recorded] = {}
    for name, entry in files.items():
        match entry:
            case {"sha256": str(digest), "bytes": int(size)} if (
                _HEX_SHA256.fullmatch(digest) and size >= 0 and stays_inside(name)
            ):
                recorded[name] = Recorded(digest, size)
            case _:
                raise ResourceError(
                    f"{path} is damaged: entry `{name}` is no file's size and SHA-256"
                )
    return recorded


def stays_inside(name: str) -> bool:
    """Return whether a name leads to a file below its folder, on any system."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


# --- the lock of a folder --------------------------------------------------------------------


@contextmanager
def lock(
    folder: Path,
    *,
    wait: float = 0.0,
    meanwhile: Callable[[str], None] = lambda reason: None,
    hint: str = "wait until it ends, or choose another folder",
) -> Iterator[None]:
    """Hold `folder` for this process alone while the block runs.

    ResourceError, naming host and process of the holder, if another one keeps it for `wait`
    seconds. Meanwhile `meanwhile` is called repeatedly with that reason, and may raise to end the
    wait. A dead process blocks nobody: the lock on the file `.lock` counts, which stays. (On a file
    system without locks filelock warns and goes by the file's existence.)
    """
    if not folder.is_dir():  # filelock would make it
        raise ResourceError(f"not a folder: {folder}")
    path = folder / LOCK
    # One lock for all threads of the process: a generator may be closed by another thread.
    held = filelock.FileLock(path, thread_local=False)
    until = time.monotonic() + wait
    while not _taken(held, path):
        reason = f"{folder} is in use: {_holder(path)}"
        if time.monotonic() >= until:
            raise ResourceError(reason, hint=hint)
        meanwhile(reason)
        time.sleep(min(LOOK, wait))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    try:
        _record_holder(held, path, json.dumps(holder))
        yield
    finally:
        _record_holder(held, path, "")
        held.release()


def is_held(folder: Path) -> bool:
    """Return whether another process, or thread, holds the lock of a folder at this moment."""
    path = folder / LOCK
    if not path.is_file():
        return False
    held = filelock.FileLock(path, thread_local=False)
    free = _taken(held, path)
    held.release()
    return not free


def _taken(held: filelock.BaseFileLock, path: Path) -> bool:
    """Take the lock if it is free; return whether it was. ResourceError if there can be none."""
    with _telling(path), suppress(filelock.Timeout):
        held.acquire(timeout=0)
    return held.is_locked


def _record_holder(held: filelock.BaseFileLock, path: Path, text: str) -> None:
    """Write in place: the lock is on this very file, and a renamed one would not be locked."""
    if isinstance(held, filelock.SoftFileLock):  # it keeps its own record there
        return
    with suppress(OSError):  # Windows, or a full disk: the record only serves a message
        path.write_text(text, "utf-8")


def _holder(path: Path) -> str:
    """Return the holder of the lock in words."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):  # no one, someone who has just begun, or no reading on Windows
        record = None
    match record:
        case {"host": host, "pid": pid, "started": started}:
            return f"process {pid} on host {host} since {started}"
    return "another process"
