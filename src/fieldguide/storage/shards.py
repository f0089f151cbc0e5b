"""Photos inside large files: an index of where each lies, and reading any of them by it.

A sharded collection is a folder of tar files as WebDataset has them: for each photo a file
`KEY.jpg`, and `KEY.json` or `KEY.cls` with its label. Or it is a folder of Parquet files. Their
photos cannot be read without a whole row group, often 100 MB: so they are copied once into the
user's cache folder, and read there.

The index has one line a photo, sorted by path, and is bisected on disk: no process holds it in
memory. A photo's path is `INDEX/PATH`, as if the index were a folder. The index of our own shards
lies beside them (`pack` writes it), that of others' in the user's cache folder.

Format of the tar files: A. Aizman, G. Maltby, T. Breuel, "High Performance I/O For Large Scale Deep
Learning", IEEE Big Data 2019. Knows nothing of catalogs, nor of what pictures hold.
"""

import errno
import hashlib
import json
import mmap
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter

from fieldguide.errors import DataError, ResourceError
from fieldguide.storage import cache_folder, files, parquet
from fieldguide.words import simple_name

INDEX = "photos.index"
FORMAT = 1

_LABEL_BYTES = 1 << 20  # a file beside a photo that is larger says something else (taste)
_OTHERS = 4 * 3600.0  # seconds that another process may take to read the shards (taste)
_RULE = 4  # of what a photo of others' tar files is: an index made by another rule is made again
_OWN = (
    "photos whose names hold dots have labels of their own: a sample is what shares the name up to"
    " the ending, where WebDataset's own rule would join all up to the first dot"
)
_ENDINGS = frozenset({".json", ".cls"})
_SHARDS = frozenset({".tar", parquet.ENDING})


Natural = Annotated[int, Field(ge=0, le=1 << 62)]


class Entry(NamedTuple):
    """A photo of an index: its labels and the position of its bytes."""

    path: str
    label: str | None
    group: str | None
    split: Annotated[str, Field(pattern="^(train|val|test)$")]
    fold: Natural | None
    row: Natural | None  # in the catalog that was packed; None: nobody gave an order
    shard: Natural  # number in the index's list
    offset: (
        Natural  # bytes from the start of the tar file, or of the copy of a Parquet file's photos
    )
    size: Natural
    sha256: str


class Shard(NamedTuple):
    """A tar or Parquet file as it was indexed. `modified` is 0 where only the size is compared."""

    name: str  # relative to the collection, with `/`
    bytes: Natural
    modified: int = 0  # nanoseconds


_ENTRY = TypeAdapter(Entry)


class _Header(BaseModel):
    """The first line of an index."""

    format: int
    folder: str
    photos: Natural
    notes: list[str]
    shards: list[Shard]
    rule: int = 0


@dataclass(frozen=True)
class Index:
    """An index on disk. `folder` is where the shards lie; `notes` is what was left out, and why."""

    path: Path
    folder: Path
    shards: tuple[Shard, ...]
    photos: int
    notes: tuple[str, ...]
    lines: mmap.mmap = field(repr=False, compare=False)
    start: int  # of the first photo's line, in bytes
    rule: int = 0

    def entries(self) -> Iterator[Entry]:
        """Yield every photo by path in code-point order; ResourceError if the index is damaged."""
        found, position = 0, self.start
        while position < len(self.lines):
            end = self.lines.find(b"\n", position) + 1
            if not end:
                break
            yield self._entry(position)
            found, position = found + 1, end
        if found != self.photos:
            raise _damaged(self.path, f"{found:,} of {self.photos:,} photos")

    def find(self, path: str) -> Entry | None:
        """Return the photo of that path, or None, in about log2(photos) looks at the index."""
        low, high = self.start, len(self.lines)
        while low < high:
            line = self.lines.rfind(b"\n", low - 1, (low + high) // 2) + 1
            if self._entry(line).path < path:
                low = self.lines.find(b"\n", line) + 1
            else:
                high = line
        entry = self._entry(low) if low < len(self.lines) else None
        return entry if entry and entry.path == path else None

    def read(self, path: str) -> bytes:
        """Return the bytes of a photo; OSError with the reason if they are not as indexed."""
        entry = self.find(path)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "No such photo", path)
        name = self.shards[entry.shard].name
        try:
            with self.holder(entry.shard).open("rb") as holder:
                data = _cut(holder, entry.offset, entry.size)
        except FileNotFoundError as error:
            raise OSError(errno.EIO, f"the shard `{name}` is missing", path) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise OSError(errno.EIO, f"`{name}` holds other bytes than its index says", path)
        return data

    def holder(self, shard: int) -> Path:
        """Return the file with the bytes of a shard's photos: the tar file, or a Parquet's copy."""
        name = self.shards[shard].name
        return _copy(self.path, shard) if name.endswith(parquet.ENDING) else self.folder / name

    def places(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """Return shard and offset of each photo, (n, 2); DataError for one not in the index."""
        found = np.empty((len(paths), 2), np.int64)
        entries = self.entries()
        entry = next(entries, None)
        for row in sorted(range(len(paths)), key=paths.__getitem__):
            path = paths[row]
            while entry and entry.path < path:
                entry = next(entries, None)
            if not entry or entry.path != path:
                raise DataError(f"`{path}` is none of the photos that {self.path} lists")
            found[row] = entry.shard, entry.offset
        return found

    def require_shards(self) -> None:
        """Raise DataError if a shard is gone or has another size than when it was indexed."""
        faults = [
            f"  `{shard.name}`: {fault}"
            for shard in self.shards
            if (fault := _fault(self.folder / shard.name, shard))
        ]
        if faults:
            count = f"{len(faults)} of {len(self.shards)} shards in {self.folder}"
            raise DataError(
                "\n".join([f"{count} cannot be used:", *faults[:5]]),
                hint="copy these shards again",
            )

    def _entry(self, position: int) -> Entry:
        line = self.lines[position : self.lines.find(b"\n", position)]
        try:
            entry = _ENTRY.validate_python(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise _damaged(self.path, f"byte {position:,}") from error
        if not entry.path:
            raise _damaged(self.path, f"byte {position:,}: a photo without a path")
        if entry.shard >= len(self.shards):
            raise _damaged(self.path, f"byte {position:,}: there is no shard {entry.shard}")
        return entry


def _fault(path: Path, shard: Shard) -> str:
    try:
        with files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
    return "" if size == shard.bytes else f"{size:,} bytes, indexed with {shard.bytes:,}"


def _damaged(path: Path, what: str) -> ResourceError:
    return ResourceError(
        f"the index of shards is damaged: {path}: {what}", hint="pack the photos again"
    )


def read(path: Path) -> bytes:
    """Return the bytes of the photo at `INDEX/PATH`; OSError without such a photo or index."""
    for parent in path.parents:
        if parent.name == INDEX and parent.is_file():
            return opened(parent).read(path.relative_to(parent).as_posix())
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))


def opened(path: Path) -> Index:
    """Return the index in a file, kept open; ResourceError if it is none."""
    status = path.stat()
    return _opened(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=16)
def _opened(path: Path, *_state: int) -> Index:
    try:
        with path.open("rb") as file:
            lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = lines.find(b"\n") + 1
        header = _Header.model_validate(json.loads(lines[:start]))
        if header.format != FORMAT:
            raise ValueError(f"format {header.format}")
        if any(not files.stays_inside(shard.name) for shard in header.shards):
            raise ValueError("a shard outside the folder")
        return Index(
            path,
            path.parent / header.folder,
            tuple(header.shards),
            header.photos,
            tuple(header.notes),
            lines,
            start,
            header.rule,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def write_index(
    path: Path,
    shards: Iterable[Shard],
    entries: Iterable[Entry],
    photos: int,
    *,
    folder: str = "",
    notes: Iterable[str] = (),
) -> None:
    """Write an index, whole or not at all; the `entries` come sorted by path.

    `folder` holds the shards; it is relative to the index or absolute.
    """
    header = {
        "format": FORMAT,
        "rule": _RULE,
        "folder": folder,
        "photos": photos,
        "notes": list(notes),
        "shards": list(shards),
    }
    with files.replacing(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        for entry in entries:
            file.write(json.dumps(entry).encode() + b"\n")


# --- shards of others -----------------------------------------------------------------------------

_Position = tuple[int, int, str]  # offset, size and SHA-256 of a photo's bytes
_Found = tuple[str, Mapping[str, Any], _Position]  # a photo: its name, and what is said of it
_Member = tuple[str, tarfile.TarInfo, Callable[[], bytes]]  # a file: its name, and its reader


def find_index(
    folder: Path,
    pictures: frozenset[str],
    splits: Mapping[str, str],
    columns: Mapping[str, Sequence[str]],
) -> Index | None:
    """Return the index of a sharded collection; None if the folder is none.

    Tar and Parquet files without an index are read once, and again when they have changed.
    `pictures` are endings of photos' names, `splits` maps words of a file's path
    (`train-0001.tar`, `val/1.parquet`) to the split of its photos. Labels, groups and splits come
    from keys of `KEY.json` with the usual names of `columns`, from `KEY.cls`, or from the folder
    within the tar file; in Parquet files from columns of these names, see `parquet.rows`.

    Raises DataError for a damaged file or missing shards, UsageError without a reader of Parquet
    files, ResourceError for a damaged index or one that does not fit, or no room for copies.
    """
    if (folder / INDEX).is_file():
        index = opened(folder / INDEX)
        if index.folder != folder:
            raise _damaged(index.path, f"its shards are said to lie in {index.folder}")
        index.require_shards()
        return index
    paths = _shard_files(folder, pictures)
    if not paths:
        return None
    shards = [
        Shard(path.relative_to(folder).as_posix(), *files.size_and_time(path)) for path in paths
    ]
    place = cache_folder.folder_of("shards", str(folder)) / INDEX
    files.make_folder(place.parent)
    cache_folder.use(place.parent, str(folder))
    with files.lock(place.parent, wait=_OTHERS):  # ranks of one machine come at the same time
        if not (place.is_file() and _fits(opened(place), shards)):
            _write_others_index(folder, place, shards, pictures, splits, columns)
    return opened(place)


def _write_others_index(
    folder: Path,
    place: Path,
    shards: Sequence[Shard],
    pictures: frozenset[str],
    splits: Mapping[str, str],
    columns: Mapping[str, Sequence[str]],
) -> None:
    """Write the index, and copies of the photos in Parquet files beside it."""
    files.remove_temporaries(place.parent)
    for copy in place.parent.glob("*.photos"):
        copy.unlink()
    found: list[Entry] = []
    left_out: Counter[str] = Counter()
    for number, shard in enumerate(shards):
        above = shard.name.rpartition(".")[0]
        words = re.split(r"[^a-z]+", shard.name.lower())
        split = next((splits[word] for word in words if word in splits), "train")
        if shard.name.endswith(parquet.ENDING):
            photos = _copied(folder / shard.name, _copy(place, number), columns, left_out)
        else:
            photos = _photos_of(folder / shard.name, pictures, columns, left_out)
        for name, says, position in photos:
            label, group = (
                None if says.get(role) is None else str(says[role]) for role in ("label", "group")
            )
            said = splits.get(str(says.get("split")).lower(), split)
            path = f"{above}/{name}"
            found.append(Entry(path, label, group, said, None, None, number, *position))
    found.sort(key=lambda entry: entry.path)
    own = left_out.pop(_OWN, 0)
    notes = [f"left out: {count:,} {what}" for what, count in sorted(left_out.items())]
    notes += [f"{own:,} {_OWN}"] if own else []
    write_index(place, shards, found, len(found), folder=str(folder), notes=notes)


def _copy(index: Path, shard: int) -> Path:
    """Return the file for the photos of a Parquet file, one after the other."""
    return index.with_name(f"{shard}.photos")


def _fits(index: Index, shards: Sequence[Shard]) -> bool:
    """Return whether this is the index of the shards as they are, with all photos in place."""
    return (index.rule, index.shards) == (_RULE, tuple(shards)) and all(
        index.holder(number).is_file() for number in range(len(shards))
    )


def _shard_files(folder: Path, pictures: frozenset[str]) -> list[Path]:
    """Return the shards of a folder that holds only shards, itself or in its folders."""
    try:
        visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:  # whoever reads it as a folder of photos will say so
        return []
    shards = [path for path in visible if path.suffix in _SHARDS and path.is_file()]
    if any(path.suffix.lower() in pictures for path in visible):
        return []
    for path in visible:
        if path.is_dir():
            below = sorted(found for found in path.glob("*") if found.suffix in _SHARDS)
            if not below:
                return []
            shards += below
    # Some tools put Parquet files of notes beside each tar file.
    return [path for path in shards if path.suffix != parquet.ENDING] or shards


def _copied(
    path: Path, copy: Path, columns: Mapping[str, Sequence[str]], left_out: Counter[str]
) -> Iterator[_Found]:
    """Yield the photos of a Parquet file and write their bytes to `copy`; change `left_out`."""
    with files.replacing(copy) as file:
        for name, says, data in parquet.rows(path, columns, left_out):
            yield name, says, (file.tell(), len(data), hashlib.sha256(data).hexdigest())
            file.write(data)


def _photos_of(
    path: Path,
    pictures: frozenset[str],
    usual: Mapping[str, Sequence[str]],
    left_out: Counter[str],
) -> Iterator[_Found]:
    """Yield the photos of a tar file; change `left_out`.

    WebDataset's sample is what shares a name up to its first dot. Names that hold more of them
    (`IMG.0001.jpg`, `IMG.crop_000.jpg`) make it several photos: labels belong to the photo whose
    whole name they share, up to the ending.
    """
    seen: set[str] = set()
    for key, members in groupby(_members(path, left_out), key=_key):
        found: list[tuple[str, _Position]] = []
        said: dict[str, dict[str, Any]] = {}  # by name without the ending
        for name, member, data in members:
            ending = PurePosixPath(name).suffix.lower()
            if ending in pictures:
                digest = hashlib.sha256(data()).hexdigest()
                found.append((name, (member.offset_data, member.size, digest)))
            elif ending in _ENDINGS and member.size <= _LABEL_BYTES:
                said.setdefault(_stem(name), {}).update(_said(ending, data(), usual, left_out))
        plain = any(_stem(name) == key for name, _ in found)
        for name, position in found:
            stem = _stem(name)
            if stem != key and stem not in said and plain and said:
                left_out["pictures beside the photo that their labels are of, such as masks"] += 1
                continue
            if stem != key and stem in said:
                left_out[_OWN] += 1
            near = (each for other, each in said.items() if other.startswith(f"{stem}."))
            says = said.get(stem) or said.get(key) or next(near, {})
            if name in seen:
                left_out["photos whose name stands twice in a tar file"] += 1
                continue
            seen.add(name)
            yield name, {"label": PurePosixPath(name).parent.name or None} | says, position


def _stem(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


def _key(member: _Member) -> str:
    """Return the key of a file: its name, but for folders, up to the first dot."""
    folder, slash, base = member[0].rpartition("/")
    return folder + slash + base.partition(".")[0]


def _members(path: Path, left_out: Counter[str]) -> Iterator[_Member]:
    """Yield the regular files of a tar file; one at a time in memory."""
    with _telling_damage(path), tarfile.open(path, "r:") as tar, path.open("rb") as file:
        size = path.stat().st_size
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # would grow with every file
            if member.isdir() or PurePosixPath(member.name).name.startswith("."):
                continue
            if not member.isreg() or member.issparse():
                left_out["links, devices and sparse files in tar files"] += 1
            elif not files.stays_inside(member.name):
                left_out["files in tar files whose names lead out of them"] += 1
            elif member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            else:
                data = partial(_cut, file, member.offset_data, member.size)
                yield member.name.removeprefix("./"), member, data
        # A damaged header ends the loop as well, and so does a file cut between two photos.
        if _cut(file, tar.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no file begins, and no end is marked, at byte {tar.offset:,}")


def _cut(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    data: bytes = file.read(size)
    return data


@contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"the tar file cannot be read: {path}: {error}",
            hint="copy it again; it must not be compressed",
        ) from error


def _said(
    ending: str, data: bytes, usual: Mapping[str, Sequence[str]], left_out: Counter[str]
) -> dict[str, Any]:
    """Return the label, group and split in the file beside a photo, if it can be read."""
    try:
        text = data.decode("utf-8").strip()
        said = {"label": text} if ending == ".cls" else json.loads(text)
    except ValueError:
        return {}
    known = said if isinstance(said, dict) else {}
    plain = {simple_name(name): parquet.only(value, left_out) for name, value in known.items()}
    return {
        role: next(plain[name] for name in usual[role] if plain.get(name) is not None)
        for role in ("label", "group", "split")
        if any(plain.get(name) is not None for name in usual[role])
    }
