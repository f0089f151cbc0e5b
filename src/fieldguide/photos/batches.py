"""Batches of photos whose content depends only on the request.

The caller lists the draws of a batch; threads turn draws into pixels and know nothing of epochs,
replicas or folds. So any number of threads and any resume give the same pixels.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from fieldguide.errors import DataError, ResourceError, UnreadablePhoto, UsageError
from fieldguide.machine.cores import in_order
from fieldguide.photos.decoding import Decoding, Picture, size_if_small
from fieldguide.seeds import derive_seed
from fieldguide.storage import files
from fieldguide.storage.columns import Column
from fieldguide.storage.decoded import Store

# Batches that each thread may be ahead of their use.
AHEAD = 2

_NO_IMAGES = torch.empty((0, 3, 1, 1), dtype=torch.uint8)


class Draw(NamedTuple):
    """A photo by its number in the collection, and the seed of its random changes."""

    photo: int
    seed: int | None  # None: for evaluation, without changes


@dataclass
class Batch:
    """The photos of one step, in the order of the request."""

    images: UInt8[Tensor, "n *views 3 size size"]
    photos: Int[Tensor, " n"]  # numbers in the collection
    missing: int = 0  # training photos, now unreadable, replaced by another of the batch
    unreadable: tuple[tuple[int, str], ...] = ()  # those left out, if allowed, with the reason
    small: tuple[tuple[int, str], ...] = ()  # those that show nothing, then, with their size


@dataclass(frozen=True)
class Pictures:
    """The photos of a collection as batches of pixels: `pictures[draws]`.

    `lenient`: unreadable photos are left out of their batch and named in it. A `store` keeps
    decoded photos under their `keys`, one for each file. If `folder`, which holds all photos, is
    gone, readers call `notice` and wait, then raise `ResourceError`.
    """

    files: Sequence[Path]
    training: Callable[[Picture, int], UInt8[Tensor, "3 size size"]]
    evaluation: Callable[[Picture], UInt8[Tensor, "*views 3 size size"]]
    decoding: Decoding
    lenient: bool = False
    store: Store | None = None
    keys: Sequence[str] = ()
    folder: Path | None = None
    notice: Callable[[str], None] = lambda message: None

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:
        """Return one batch, of all draws or, if lenient, of the readable ones."""
        return self._readable(draws) if self.lenient else self._complete(draws)

    def _readable(self, draws: Sequence[Draw]) -> Batch:
        """Return a batch without the photos that cannot be read."""
        images, photos, unreadable, small = [], [], [], []
        for draw in draws:
            try:
                picture = self._decoded(draw.photo)
            except UnreadablePhoto as error:
                unreadable.append((draw.photo, error.message))
                continue
            images.append(self._image(draw, picture))
            photos.append(draw.photo)
            if size := size_if_small(picture):
                small.append((draw.photo, size))
        stacked = torch.stack(images) if images else _NO_IMAGES
        numbers = torch.tensor(photos, dtype=torch.int64)
        return Batch(stacked, numbers, unreadable=tuple(unreadable), small=tuple(small))

    def _complete(self, draws: Sequence[Draw]) -> Batch:
        """Return a batch of all draws; a lost training photo is replaced by its successor."""
        if not draws:
            return Batch(_NO_IMAGES, torch.empty(0, dtype=torch.int64))
        images, photos, missing = [], [], 0
        for position in range(len(draws)):
            draw, image = self._first_readable([*draws[position:], *draws[:position]])
            images.append(image)
            photos.append(draw.photo)
            missing += draw != draws[position]
        return Batch(torch.stack(images), torch.tensor(photos), missing)

    def _first_readable(self, draws: Sequence[Draw]) -> tuple[Draw, Tensor]:
        reasons = []
        for draw in draws:
            try:
                return draw, self._image(draw, self._decoded(draw.photo))
            except UnreadablePhoto as error:
                reasons.append(f"`{self.files[draw.photo]}`: {error}")
                if draw.seed is None:
                    break
        raise DataError(
            f"a photo cannot be read any more: {reasons[0]}",
            hint="bring the photos back; the same command then resumes from the last checkpoint",
        )

    def _image(self, draw: Draw, picture: Picture) -> Tensor:
        return self.evaluation(picture) if draw.seed is None else self.training(picture, draw.seed)

    def _decoded(self, photo: int) -> Picture:
        """Return the photo's pixels, from the store if it has them."""
        if self.store is None:
            return self._read(self.files[photo])
        key = self.keys[photo]
        if (kept := self.store.get(key)) is None:
            kept = self._read(self.files[photo])
            self.store.put(key, kept)
        return kept

    def _read(self, path: Path) -> Picture:
        """Return the photo's pixels; wait for its folder if that is gone."""
        for wait in (*files.WAITS, None):
            try:
                return self.decoding(path)
            except UnreadablePhoto as error:
                if self.folder is None or not _is_gone(self.folder):
                    raise
                if wait is None:
                    raise ResourceError(
                        f"the photos' folder `{self.folder}` is gone",
                        hint="bring it back; the same command then resumes from the last"
                        " checkpoint",
                    ) from error
                self.notice(f"`{self.folder}` is gone: looking again in {wait:g} s")
                time.sleep(wait)
        raise AssertionError


def _is_gone(folder: Path) -> bool:
    """Return whether a folder is missing, or empty as a mount point without its disk."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return not folder.is_file()  # an index stands for the photos in shards


@dataclass(frozen=True)
class Loader:
    """A maker of batches from lists of draws, ahead of their use.

    `workers` threads each make a batch at a time (the slow parts release Python's lock); with none,
    the caller's thread does. `pin_memory`: copies to a GPU run in parallel with its work.
    """

    pictures: Pictures
    workers: int
    pin_memory: bool = False

    def batches(self, plan: Sequence[Sequence[Draw]]) -> Iterator[Batch]:
        """Yield one batch for each list of draws, in order; `DataError` for a lost photo."""
        gpu = torch.cuda.current_device() if self.workers and self.pin_memory else None
        ahead = AHEAD * self.workers
        yield from in_order(
            self._batch, plan, self.workers, ahead=ahead, start=_as_the_caller, given=(gpu,)
        )

    def _batch(self, draws: Sequence[Draw]) -> Batch:
        batch = self.pictures[draws]
        return replace(batch, images=batch.images.pin_memory()) if self.pin_memory else batch


def _as_the_caller(gpu: int | None) -> None:
    """Pin memory for the caller's GPU, and make each picture by one thread."""
    if gpu is not None:  # a new thread would pin for the first one, which may be another rank's
        torch.cuda.set_device(gpu)
    # Torch's own threads would wait for each other over single pictures.
    torch.set_num_threads(1)  # of this thread alone, where torch uses OpenMP


@dataclass(frozen=True, eq=False)
class Plan(Column[list[Draw]]):
    """A sequence of batches as lists of draws, made on demand.

    `parts` are the rows of each batch; `seed_of` gives the seed of a row's random changes.
    """

    parts: Sequence[NDArray[np.int64]]
    seed_of: Callable[[int], int | None]

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.parts)

    def take(self, rows: Iterable[int]) -> "Plan":
        """Return the plan of some batches, by number."""
        return Plan([self.parts[row] for row in rows], self.seed_of)

    def _at(self, row: int) -> list[Draw]:
        return [Draw(photo, self.seed_of(photo)) for photo in self.parts[row].tolist()]

    def shared(self, rank: int, ranks: int, least: int = 2) -> "Plan":
        """Return one rank's share of each batch, in size as equal as can be.

        If a batch has fewer than `least` photos for each, the last ranks have none.
        """
        shared = []
        for part in self.parts:
            shares = np.array_split(part, max(min(ranks, len(part) // least), 1))
            shared.append(shares[rank] if rank < len(shares) else part[:0])
        return Plan(shared, self.seed_of)


def training_plan(
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int,
    replica: int,
    epoch: int,
    places: NDArray[np.int64] | None = None,
    buffer: int = 1,
) -> Plan:
    """Return an epoch's draws: every row once, in a random order by (seed, replica, epoch).

    All orders are equally probable; with `places`, the shard and offset of every photo of the
    collection, (n, 2), the order is that of `streamed`. Batches are `steps_in_epoch` in number and
    as equal as can be.
    """
    generator = np.random.default_rng(derive_seed(seed, "order", replica, epoch))
    if places is None:
        shuffled = generator.permutation(rows)
    else:
        shuffled = streamed(rows, places[rows], buffer, generator)
    return Plan(
        np.array_split(shuffled, steps_in_epoch(len(rows), batch_size)),
        lambda row: derive_seed(seed, "photo", replica, epoch, row),
    )


def streamed(
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    buffer: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the rows shard after shard, mixed within a buffer.

    The shards, `places[:, 0]`, come in a random order, each by offset, `places[:, 1]`. Each next
    row is drawn from `buffer` rows, and the following row takes its place: 1 leaves the order as it
    is, `len(rows)` mixes all. Source: A. Aizman, G. Maltby,
    T. Breuel, "High Performance I/O For Large Scale Deep Learning", IEEE Big Data 2019.
    """
    rank = generator.permutation(places[:, 0].max(initial=0) + 1)  # of each shard
    stream = rows[np.lexsort((rows, places[:, 1], rank[places[:, 0]]))]
    if buffer >= len(stream):
        return generator.permutation(stream)
    held, coming = stream[:buffer].tolist(), stream[buffer:]
    drawn = np.empty_like(stream)
    for step, place in enumerate(generator.integers(0, buffer, len(coming)).tolist()):
        drawn[step] = held[place]
        held[place] = coming[step]
    drawn[len(coming) :] = generator.permutation(held)
    return drawn


def steps_in_epoch(photos: int, batch_size: int) -> int:
    """Return the number of batches in an epoch.

    Unless `batch_size` is 1, no batch has a single photo, without variance for batch norm: of an
    odd number with `batch_size` = 2, one batch holds three.
    """
    steps = -(-photos // batch_size)
    return steps if batch_size == 1 else max(min(steps, photos // 2), 1)


def share_of(
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    seed: int,
    replica: int,
    replicas: int,
    epoch: int,
) -> NDArray[np.int64]:
    """Return the rows that a replica trains on in an epoch if replicas share the photos.

    The shares partition the rows (Stich, "Local SGD converges fast and communicates little", ICLR
    2019); in size, and in the number of each class, they differ by one at most: photos are dealt
    out class by class, in a new order each epoch. `targets` are class numbers by row.
    """
    generator = np.random.default_rng(derive_seed(seed, "shares", epoch))
    shuffled = generator.permutation(rows)
    turn = generator.permutation(targets.max() + 1)  # else rare classes met the same replica
    dealt = shuffled[np.argsort(turn[targets[shuffled]], kind="stable")]
    return np.sort(dealt[replica::replicas])


def epoch_steps(photos: int, batch_size: int, *, replicas: int, shares: bool) -> list[int]:
    """Return the number of batches in each replica's epoch, on all photos or on `shares` of them.

    Raises `UsageError` if a share would have fewer than two photos.
    """
    if not shares:
        return [steps_in_epoch(photos, batch_size)] * replicas
    if photos < 2 * replicas:
        raise UsageError(
            f"`replica_data` = 'share' leaves fewer than 2 of {photos} training photos"
            f" for each of `replicas` = {replicas}",
            hint="lower `replicas`, or set replica_data to `full`",
        )
    sizes = [len(range(replica, photos, replicas)) for replica in range(replicas)]
    return [steps_in_epoch(size, batch_size) for size in sizes]


def evaluation_plan(rows: NDArray[np.int64], batch_size: int) -> Plan:
    """Return every row once, in order, without random changes; batches as equal as in training.

    Batch norm is re-estimated on such batches too, and fails on one of a single photo.
    """
    parts = np.array_split(rows, steps_in_epoch(len(rows), batch_size)) if len(rows) else []
    return Plan(parts, lambda row: None)
