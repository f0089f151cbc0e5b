"""The photos of a catalog packed into shards: a few large files instead of many small ones.

Every photo goes into a tar file with its bytes as they are, as `KEY.jpg`, and its labels as
`KEY.json`, for all readers of WebDataset's format; see `shards` for the index beside them. Paths
decide the order: each shard is a sample of the collection. The same catalog gives the same bytes.
Knows nothing of what pictures hold.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldguide.errors import DataError, UnreadablePhoto, UsageError
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.storage import files
from fieldguide.storage.shards import INDEX, Entry, Shard, write_index

SHARD_BYTES = 256_000_000  # WebDataset's authors advise 256 MB to 1 GB

# The position of a photo; shard -1: it could not be read.
_PLACE = np.dtype([("shard", "i4"), ("offset", "i8"), ("size", "i8"), ("sha256", "S64")])


@dataclass(frozen=True)
class Packed:
    """The result of packing. `left_out` are unreadable photos, each with the reason."""

    photos: int
    shards: int
    left_out: tuple[tuple[str, str], ...]


def pack(
    catalog: Catalog,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] = lambda photos: None,
) -> Packed:
    """Write the photos of a catalog as shards into the new folder `out`.

    A shard ends before the photo that would make it larger than `shard_bytes`. Photos outside the
    catalog's root are packed under their path without its leading `/`. The folder is `OUT.part`
    until all is written; the next attempt replaces that. `progress` is called with the number of
    photos done. Memory: the catalog, some 100 bytes for each photo, and one photo.

    Raises UsageError if there is an `out` already, and for crops, DataError if two photos would get
    one path or none can be read, ResourceError if nothing can be written.
    """
    if catalog.crop:
        raise UsageError(
            "crops are not packed", hint="pack the photos; `fit` cuts them out with --boxes"
        )
    with files.new_folder(out) as part:
        return _write(catalog, part, shard_bytes, progress)


def _write(
    catalog: Catalog, part: Path, shard_bytes: int, progress: Callable[[int], None]
) -> Packed:
    left_out: list[tuple[str, str]] = []
    places = np.full(len(catalog), -1, _PLACE)
    shards: list[Shard] = []
    done = 0
    dealt = _dealt(catalog, shard_bytes, left_out)
    for number, photos in groupby(dealt, key=itemgetter(0)):
        name = f"shard-{number:06d}.tar"
        with files.replacing(part / name) as shard:
            for _, row, data, about in photos:
                stem = f"{done:09d}"
                ending = PurePath(catalog.photos[row].path).suffix.lower()
                shard.write(_header(stem + ending, len(data)))
                digest = hashlib.sha256(data).hexdigest().encode()
                places[row] = (number, shard.tell(), len(data), digest)
                shard.write(_padded(data))
                shard.write(_header(f"{stem}.json", len(about)) + _padded(about))
                done += 1
                progress(done + len(left_out))
            shard.write(bytes(2 * tarfile.BLOCKSIZE))
            shards.append(Shard(name, shard.tell()))
    if not done:
        raise DataError(f"none of the {len(catalog):,} photos can be read")
    write_index(part / INDEX, shards, _entries(catalog.photos, places), done)
    return Packed(done, len(shards), tuple(left_out))


def _dealt(
    catalog: Catalog, shard_bytes: int, left_out: list[tuple[str, str]]
) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield (shard, row, the photo's bytes, its labels), mixed; change `left_out`."""
    shard, filled = 0, 0
    for row in _mixed(catalog.photos):
        photo = catalog.photos[row]
        try:
            data = pixels.read(catalog.file(photo))
        except UnreadablePhoto as error:
            left_out.append((photo.path, error.message))
            continue
        known = {name: getattr(photo, name) for name in ("label", "group", "split", "fold")}
        about = json.dumps({"path": _packed_path(photo.path), **known}).encode()
        room = 2 * tarfile.BLOCKSIZE + len(_padded(data)) + len(_padded(about))
        if filled and filled + room > shard_bytes:
            shard, filled = shard + 1, 0
        filled += room
        yield shard, row, data, about


def _mixed(photos: Sequence[Photo]) -> NDArray[np.int64]:
    """Return rows in the order of their paths' hashes, whatever the order of the catalog."""
    keys = np.empty(len(photos), np.uint64)
    for row, photo in enumerate(photos):
        path = photo.path.encode("utf-8", "surrogateescape")
        keys[row] = int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big")
    return np.argsort(keys, kind="stable")


def _header(name: str, size: int) -> bytes:
    """Return a file's header, without owner or time."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _packed_path(path: str) -> str:
    pure = PurePath(path)
    return pure.relative_to(pure.anchor).as_posix() if pure.is_absolute() else path


def _entries(photos: Sequence[Photo], places: NDArray[Any]) -> Iterator[Entry]:
    """Yield the packed photos by path; DataError if two photos have the same."""
    rows = [row for row in range(len(photos)) if places[row]["shard"] >= 0]
    rows.sort(key=lambda row: _packed_path(photos[row].path))
    for one, other in pairwise(rows):
        same = _packed_path(photos[one].path) == _packed_path(photos[other].path)
        if same and places[one]["sha256"] != places[other]["sha256"]:
            raise DataError(
                f"two photos would be packed as `{_packed_path(photos[one].path)}`",
                hint="give a `root` that all photos lie below",
            )
    for row in rows:
        photo, (shard, offset, size, sha256) = photos[row], places[row].item()
        path, place = _packed_path(photo.path), (shard, offset, size, sha256.decode())
        yield Entry(path, photo.label, photo.group, photo.split, photo.fold, row, *place)
