"""Decoded photos on disk: each is decoded once for all folds, replicas, epochs and processes.

    ROOT/                        `root()`: what FIELDGUIDE_CACHE names, else the user's cache folder
      pixels-1-256-bilinear-…/   a store, one for each definition of pixels: `folder_of`
        0f3c….pixels             a shard: RGB pictures, 8 bits a channel, one behind the other
        0f3c….index              its records: key, offset, height, width, two checksums

Every writing process appends to its own shard, first the pixels, then the record. Readers map
shards into memory and look from time to time for new records. It is a pure cache: the reader of a
picture that is torn, rotted, removed or never written decodes the photo and has the same pixels. So
nothing is ever forced to disk.

Users of a shard hold a shared lock on it (`flock`; on Windows an open file cannot be removed).
`make_room` and `remove` take only shards that nobody holds.

Knows nothing of how photos are decoded, of labels or of tensors.
"""

import io
import mmap
import os
import re
import secrets
import shutil
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fieldguide.storage.cache_folder import Kept, lock_alone, lock_shared
from fieldguide.storage.files import write_whole
from fieldguide.words import os_reason, shown_bytes

# The version of our decoding and of this layout: raise it when the same photo gives other bytes.
VERSION = 2

# Bytes to leave free on the disk: other programs fail in ugly ways on a full one (taste).
FREE_BYTES = 2 << 30
# Bytes that a process writes before it looks at the disk again: 16 of them overshoot by a GiB.
STRIDE = 64 << 20
# A shard that nobody writes is continued up to this size, so that hundreds of short runs leave few
# files: every shard in use takes one of the 1,024 files that a process may usually open (taste).
CONTINUED_BELOW = 256 << 20
# Shards of the own store make room only after so long without use: they may be of the same photos.
OWN_KEPT_SECONDS = 24 * 3600.0
# How often a process looks for what others have appended. A look took 0.02 ms, a decode takes 3.
LOOK_SECONDS = 0.25

_BODY = struct.Struct("<32sQIII")  # SHA-256 of the file, offset, height, width, CRC-32 of pixels
_CHECK = struct.Struct("<I")  # CRC-32 of the body
RECORD_BYTES = _BODY.size + _CHECK.size

_SHARD_FILE = re.compile(r"([0-9a-f]{16})\.(pixels|index)")
_STORE_NAME = re.compile(
    r"pixels-\d+-(\d+|full)-\w+-(refuse|keep)[\w.,=+-]*-pillow-[\w.+!]+-torchvision-[\w.+!]+"
)

Picture = UInt8[np.ndarray, "height width 3"]


# --- places ---------------------------------------------------------------------------------------


def folder_of(root: Path, *, side: int | None, interpolation: str, reading: str) -> Path:
    """Return the store of one definition of pixels, with the versions of the libraries in its name.

    `side`: pixels of the shorter side that pictures are shrunk to, None for full size;
    `interpolation`: how; `reading`: the name of a `pixels.Reading`.
    """
    name = (
        f"pixels-{VERSION}-{'full' if side is None else side}-{interpolation}-{reading}"
        f"-pillow-{metadata.version('pillow')}-torchvision-{metadata.version('torchvision')}"
    )
    assert _STORE_NAME.fullmatch(name), f"not a definition of pixels: {name}"
    return root / name


# --- what lies on disk ----------------------------------------------------------------------------


def kept(root: Path) -> list[Kept]:
    """Return the shards of all stores below `root`. Links and other names are no stores."""
    with suppress(OSError):
        return [
            piece
            for path in sorted(root.iterdir())
            if _STORE_NAME.fullmatch(path.name) and not path.is_symlink()
            for piece in pieces(path)
        ]
    return []


def pieces(folder: Path) -> list[Kept]:
    """Return the shards of one store by name, also those that lack a file."""
    found = []
    for stem in dict.fromkeys(match[1] for match in _shard_files(folder)):
        path = folder / f"{stem}.pixels"
        pixels, changed = _size_and_time(path)
        index, appended = _size_and_time(path.with_suffix(".index"))
        count = index // RECORD_BYTES  # of records: a few may be of the same photo
        used = max(changed, appended)
        found.append(Kept(path, "decoded", folder.name, count, pixels + index, used))
    return found


def _shard_files(folder: Path) -> list[re.Match[str]]:
    """Return the matched names of a store's files; none if there is no such folder."""
    with suppress(OSError):
        with os.scandir(folder) as entries:
            names = sorted(each.name for each in entries if each.is_file(follow_symlinks=False))
        return [match for name in names if (match := _SHARD_FILE.fullmatch(name))]
    return []


def _size_and_time(path: Path) -> tuple[int, float]:
    """Return size and time, zeros if another process has just removed the file."""
    with suppress(OSError):
        status = path.stat()
        return status.st_size, status.st_mtime
    return 0, 0.0


def remove(path: Path) -> None:
    """Remove the shard with this file of pixels, and its store if it was the last.

    BlockingIOError if a process has it open, OSError if the system does not allow its removal.
    """
    if sys.platform == "win32":  # neither while others have it open, nor while we have
        path.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError), path.open("r+b", buffering=0) as file:
            lock_alone(file.fileno())
            path.unlink()
    path.with_suffix(".index").unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        path.parent.rmdir()


def make_room(own: Path, wanted: int) -> None:
    """Remove shards that no process uses, least recently used first, for `wanted` bytes more.

    Shards of the store `own` stay if used within a day. All stay if they would not suffice.
    """
    latest = time.time() - OWN_KEPT_SECONDS
    found = [each for each in kept(own.parent) if each.path.parent != own or each.used < latest]
    if sum(piece.bytes for piece in found) < wanted:
        return
    for piece in sorted(found, key=lambda piece: piece.used):
        if wanted <= 0:
            break
        with suppress(OSError):
            remove(piece.path)
            wanted -= piece.bytes


def taken(own: Path) -> int:
    """Return the bytes of all stores beside `own` and of `own`, whatever its name."""
    return sum({piece.path: piece.bytes for piece in (*kept(own.parent), *pieces(own))}.values())


def _room(own: Path, limit: int | None) -> tuple[int, str]:
    """Return the bytes that may still be written, negative beyond the bound, and that bound."""
    own.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(own.parent).free  # `own` itself goes with the last shard of it
    bound = f"less than {shown_bytes(FREE_BYTES)} of the disk would stay free"
    bounds = [(free - FREE_BYTES, bound)]
    if limit is not None:
        bounds.append((limit - taken(own), f"the limit of {shown_bytes(limit)} is reached"))
    return min(bounds)


# --- shards ---------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Shard:
    """A shard as this process knows it: mapped up to some length, its index read up to another."""

    pixels: Path
    mapped: mmap.mmap | bytes = b""
    indexed: int = 0  # bytes, of whole records

    @property
    def index(self) -> Path:
        return self.pixels.with_suffix(".index")

    def reaches(self, end: int) -> bool:
        """Return whether `end` bytes are there; map the shard again if it has grown."""
        if len(self.mapped) < end:
            with suppress(OSError, ValueError):  # removed; empty
                self.mapped = _mapped(self.pixels)
        return len(self.mapped) >= end

    def news(self) -> bytes:
        """Return whole records appended since the last call; open the index only if there are."""
        with suppress(OSError):
            if self.index.stat().st_size < self.indexed + RECORD_BYTES:
                return b""
            with self.index.open("rb", buffering=0) as file:
                file.seek(self.indexed)
                data = file.readall()
            whole = data[: len(data) // RECORD_BYTES * RECORD_BYTES]
            self.indexed += len(whole)
            return whole
        return b""


def _mapped(path: Path) -> mmap.mmap:
    """Map the whole file. The map keeps the file open and so its lock."""
    with path.open("rb", buffering=0) as file:
        lock_shared(file.fileno())
        with suppress(OSError):  # of another user
            os.utime(path)  # this was its last use
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@dataclass(slots=True, eq=False)
class _Place:
    """The position of a picture. `checked`: this process has compared its checksum."""

    shard: _Shard
    offset: int
    height: int
    width: int
    checksum: int
    other: "_Place | None" = None  # the same picture once more: two processes decoded it at once
    checked: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.height * self.width * 3

    def view(self) -> Picture:
        return np.ndarray((self.height, self.width, 3), np.uint8, self.shard.mapped, self.offset)


@dataclass(frozen=True, slots=True)
class _Writer:
    """The open files of the shard that this process appends to."""

    shard: _Shard
    pixels: io.FileIO
    index: io.FileIO

    def append(self, digest: bytes, picture: Picture, checksum: int) -> bytes:
        """Write a picture, then its record, and return that; OSError leaves no half record."""
        offset = self.pixels.seek(0, os.SEEK_END)
        write_whole(self.pixels, picture.data.cast("B"), offset)
        body = _BODY.pack(digest, offset, *picture.shape[:2], checksum)
        record = body + _CHECK.pack(zlib.crc32(body))
        # Behind the last whole record: a killed process may have left a part of one.
        start = self.index.seek(0, os.SEEK_END) // RECORD_BYTES * RECORD_BYTES
        write_whole(self.index, record, start)
        return record

    def close(self) -> None:
        self.pixels.close()
        self.index.close()


def _new_writer(folder: Path) -> _Writer:
    """Create a shard for this process; OSError if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{secrets.token_hex(8)}.pixels"
    with ExitStack() as files:
        pixels = files.enter_context(path.open("x+b", buffering=0))
        lock_shared(pixels.fileno())
        index = files.enter_context(path.with_suffix(".index").open("x+b", buffering=0))
        with suppress(OSError):  # without locks, nobody else takes it either
            lock_alone(index.fileno())
        files.pop_all()
    return _Writer(_Shard(path), pixels, index)


def _continued(shard: _Shard) -> _Writer | None:
    """Take over a small shard that nobody writes any more, such as a killed process's."""
    with suppress(OSError), ExitStack() as files:
        if shard.pixels.stat().st_size >= CONTINUED_BELOW:
            return None
        index = files.enter_context(shard.index.open("r+b", buffering=0))
        lock_alone(index.fileno())
        pixels = files.enter_context(shard.pixels.open("r+b", buffering=0))
        lock_shared(pixels.fileno())
        files.pop_all()
        return _Writer(shard, pixels, index)
    return None


# --- the store ------------------------------------------------------------------------------------


class Store:
    """Decoded pictures by the SHA-256 of their files, shared by all processes on this folder.

    `folder` (see `folder_of`) is created at the first write. `limit`: bytes for this store and all
    beside it. `notice` is called once if this process stops writing.

    Safe to call from many threads. A forked child keeps what its parent knows and writes to another
    shard; a pickled copy opens the folder itself and gives no notice.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit: int | None = None,
        notice: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._folder = folder.absolute()
        self._limit = limit
        self._notice = notice
        self._places: dict[bytes, _Place] = {}
        self._shards: dict[str, _Shard] = {}
        self._next_look = float("-inf")  # by the monotonic clock
        self._writer: _Writer | None = None
        self._allowed = 0  # bytes to be written before the disk is looked at again
        self._writes = True
        self._in_child()
        _stores.add(self)

    def _in_child(self) -> None:
        """Forget what belongs to the parent: its shard, and locks that its threads hold."""
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._allowed = 0
        self._close_writer()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Store, self._folder, limit=self._limit), ()

    def close(self) -> None:
        """Release files and unused maps. Pictures in use stay; none is found or kept any more."""
        with self._writing, self._reading:
            self._writes, self._next_look = False, float("inf")
            self._places, self._shards = {}, {}
            self._close_writer()

    def __del__(self) -> None:  # a loader that goes with its owner closes nothing
        self.close()

    # --- reading ----------------------------------------------------------------------------------

    def get(self, key: str) -> Picture | None:
        """Return a read-only view of the picture of the file with this SHA-256 (hex), else None.

        The first get in each process compares the checksum; a damaged picture counts as none.
        """
        digest = bytes.fromhex(key)
        if digest not in self._places:
            self._look()
        place = self._places.get(digest)
        while place is not None and not (place.checked or self._intact(place)):
            place = place.other
        if place is None:
            self._places.pop(digest, None)
            return None
        if not place.checked:
            place.checked = True
            self._places[digest] = place
        return place.view()

    def _intact(self, place: _Place) -> bool:
        with self._reading:  # of two threads, the later must not set the shorter map
            there = place.shard.reaches(place.end)
        return there and zlib.crc32(place.view().data) == place.checksum

    def _look(self) -> None:
        """Learn what other processes have appended, at most every `LOOK_SECONDS`."""
        if time.monotonic() < self._next_look:
            return
        with self._reading:
            if time.monotonic() >= self._next_look:  # no other thread came first
                self._learn_all()
                self._next_look = time.monotonic() + LOOK_SECONDS

    def _learn_all(self) -> None:
        for match in _shard_files(self._folder):
            if match[2] == "index":
                path = self._folder / f"{match[1]}.pixels"
                shard = self._shards.setdefault(match[1], _Shard(path))
                if self._writer is None or shard is not self._writer.shard:
                    self._learn(shard, shard.news())

    def _learn(self, shard: _Shard, records: bytes) -> None:
        """Remember the place of each intact record."""
        for start in range(0, len(records), RECORD_BYTES):
            body = records[start : start + _BODY.size]
            if zlib.crc32(body) != _CHECK.unpack_from(records, start + _BODY.size)[0]:
                continue
            digest, *where = _BODY.unpack(body)
            place = _Place(shard, *where)
            known = self._places.setdefault(digest, place)
            if known is not place:
                place.other, known.other = known.other, place

    # --- writing ----------------------------------------------------------------------------------

    def put(self, key: str, picture: Picture) -> None:
        """Keep the picture of the file with this SHA-256 (hex), if the disk allows it."""
        digest = bytes.fromhex(key)
        assert len(digest) == 32 and picture.size, f"no SHA-256 or no picture: {key}"
        if not self._writes or digest in self._places:
            return
        packed = np.ascontiguousarray(picture)
        checksum = zlib.crc32(packed.data)
        with self._writing:
            if not self._writes or digest in self._places:  # another thread came first
                return
            reason = self._keep(digest, packed, checksum)
            self._writes = not reason
        if reason:
            root = self._folder.parent
            self._notice(
                f"decoded photos are not kept any more: {reason}. `{root}` holds"
                f" {shown_bytes(taken(self._folder))} of them; `FIELDGUIDE_CACHE={root} fieldguide"
                " cache --clear` removes what no process uses, and the setting `cache` can name"
                " another disk"
            )

    def _keep(self, digest: bytes, picture: Picture, checksum: int) -> str:
        """Append a picture; return the reason if that fails, else an empty text."""
        try:
            if shortage := self._shortage(picture.nbytes + RECORD_BYTES):
                return shortage
            writer = self._writer or self._open_writer()
            record = writer.append(digest, picture, checksum)
        except OSError as error:
            return os_reason(error).lower()
        with self._reading:
            self._learn(writer.shard, record)
            writer.shard.indexed += len(record)
        return ""

    def _shortage(self, size: int) -> str:
        """Return why `size` bytes more must not be written, or an empty text."""
        if size > self._allowed:
            room, bound = _room(self._folder, self._limit)
            if room < size:
                make_room(self._folder, size - room)
                room, bound = _room(self._folder, self._limit)
            if room < size:
                return bound
            self._allowed = max(size, min(room, STRIDE))
        self._allowed -= size
        return ""

    def _open_writer(self) -> _Writer:
        with self._reading:
            self._learn_all()
            small = (found for shard in self._shards.values() if (found := _continued(shard)))
            self._writer = next(small, None) or _new_writer(self._folder)
            self._shards[self._writer.shard.pixels.stem] = self._writer.shard
            self._learn(self._writer.shard, self._writer.shard.news())
        return self._writer


def _in_children() -> None:
    for store in _stores:
        store._in_child()


_stores: weakref.WeakSet[Store] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_children)
