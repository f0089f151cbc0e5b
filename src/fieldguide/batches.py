"""Batches of photos whose content depends on what is asked for alone.

A `Draw` names a photo and the seed of its random changes. Whoever asks for a batch says which draws
it consists of; loader processes turn draws into pixels and know nothing of epochs, replicas or
folds. So any number of loader processes and any resume give the same pixels.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fieldguide import pixels
from fieldguide.errors import DataError, ResourceError, UnreadablePhoto
from fieldguide.seeds import derive_seed

T = TypeVar("T")

_NO_IMAGES = torch.empty((0, 3, 1, 1), dtype=torch.uint8)


class Draw(NamedTuple):
    """A photo by its number in the collection, and the seed of its random changes.

    No seed: it is looked at for evaluation, without any.
    """

    photo: int
    seed: int | None


@dataclass
class Batch:
    """Photos of one step, in the order they were asked for.

    `photos`: numbers in the collection; `missing` counts training photos that could not be read any
    more and were replaced by another of the batch; `error` says which photo failed where none may;
    `unreadable` are photos that were left out, with the reason, where that is allowed.
    """

    images: UInt8[Tensor, "n *views 3 size size"]
    photos: Int[Tensor, " n"]
    missing: int = 0
    error: str = ""
    unreadable: tuple[tuple[int, str], ...] = ()

    def pin_memory(self) -> "Batch":
        """Called by the loader: copies to a GPU run beside its work."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class Pictures(Dataset[Batch]):
    """The photos of a collection as batches of pixels: `pictures[draws]`.

    `lenient`: photos that cannot be read are left out of their batch and named in it.
    """

    files: Sequence[Path]
    training: v2.Compose
    evaluation: v2.Compose
    shorter_side: int
    truncated: pixels.Truncated = "refuse"
    lenient: bool = False

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:
        """One batch, of what can be read or of what was asked for."""
        return self._readable(draws) if self.lenient else self._complete(draws)

    def _readable(self, draws: Sequence[Draw]) -> Batch:
        """A batch without the photos that cannot be read."""
        images, photos, unreadable = [], [], []
        for draw in draws:
            try:
                images.append(self._image(draw))
                photos.append(draw.photo)
            except UnreadablePhoto as error:
                unreadable.append((draw.photo, error.message))
        stacked = torch.stack(images) if images else _NO_IMAGES
        return Batch(stacked, torch.tensor(photos, dtype=torch.int64), unreadable=tuple(unreadable))

    def _complete(self, draws: Sequence[Draw]) -> Batch:
        """A batch of all draws. A vanished training photo is replaced by its successor in it."""
        images, photos, missing = [], [], 0
        for position in range(len(draws)):
            try:
                draw, image = self._first_readable([*draws[position:], *draws[:position]])
            except DataError as error:  # an exception of a loader process would lose its class
                return _failed(str(error))
            images.append(image)
            photos.append(draw.photo)
            missing += draw != draws[position]
        return Batch(torch.stack(images), torch.tensor(photos), missing)

    def _first_readable(self, draws: Sequence[Draw]) -> tuple[Draw, Tensor]:
        reasons = []
        for draw in draws:
            try:
                return draw, self._image(draw)
            except UnreadablePhoto as error:
                reasons.append(f"`{self.files[draw.photo]}`: {error}")
                if draw.seed is None:
                    break
        raise DataError(f"a photo cannot be read any more: {reasons[0]}")

    def _image(self, draw: Draw) -> Tensor:
        path = self.files[draw.photo]
        picture = pixels.load(path, shorter_side=self.shorter_side, truncated=self.truncated)
        if draw.seed is None:
            image: Tensor = self.evaluation(picture)
        else:
            torch.default_generator.manual_seed(draw.seed)  # leaves those of GPUs alone
            image = self.training(picture)
        return image


@dataclass
class Loader:
    """Turns lists of draws into batches, ahead of their use.

    `workers` processes do it, kept for all epochs; with none, the process that asks.
    """

    pictures: Pictures
    workers: int
    pin_memory: bool = False
    _plan: "_Plan" = field(init=False)
    _loader: "DataLoader[Batch]" = field(init=False)

    def __post_init__(self) -> None:
        """Starts no process yet."""
        self._plan = _Plan()
        self._loader = DataLoader(
            self.pictures,
            sampler=self._plan,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=2 if self.workers else None,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),
        )

    def batches(self, plan: Sequence[Sequence[Draw]]) -> Iterator[Batch]:
        """One batch for each list of draws, in order."""
        self._plan.draws = plan
        iterator = self._explaining_deaths(lambda: iter(self._loader))
        if self.workers:
            _notice_deaths_when_waiting()
        for _ in plan:
            batch = self._explaining_deaths(lambda: next(iterator))
            if batch.error:
                raise DataError(batch.error)
            yield batch

    def _explaining_deaths(self, get: Callable[[], T]) -> T:
        """What `get` gives; what torch says of a dead process becomes our error."""
        try:
            with torch.random.fork_rng(devices=[]):
                return get()
        except (RuntimeError, EOFError, OSError) as error:
            if not self.workers or not _tells_of_a_death(error):
                raise
            reason = str(error) or type(error).__name__
            raise ResourceError(
                f"a process that prepares photos has died: {reason.splitlines()[0]}",
                hint="often memory ran out; the same command goes on from here,"
                " with --workers 0 in one process",
            ) from error


def _tells_of_a_death(error: Exception) -> bool:
    """Torch's own words, or a connection lost while a batch was handed over.

    An exception of a loader process that lives arrives with its class, as `Caught ...`.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader ")
    return not str(error).startswith("Caught ")


def _notice_deaths_when_waiting() -> None:
    """Takes torch's handler of SIGCHLD away.

    It raises RuntimeError wherever the main thread is when a loader process dies, mostly in a
    training step. Without it a death is noticed within 5 s, by whoever waits for a batch.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class _Plan(Iterable[Sequence[Draw]]):
    """What the loader's sampler yields; set before each pass."""

    draws: Sequence[Sequence[Draw]] = ()

    def __iter__(self) -> Iterator[Sequence[Draw]]:
        return iter(self.draws)

    def __len__(self) -> int:
        return len(self.draws)


def training_plan(
    rows: NDArray[np.int64], batch_size: int, *, seed: int, replica: int, epoch: int
) -> list[list[Draw]]:
    """An epoch's draws: every row once, in an order of its own for each (seed, replica, epoch).

    Batches are `steps_in_epoch` in number and as equal as can be.
    """
    generator = np.random.default_rng(derive_seed(seed, "order", replica, epoch))
    shuffled = generator.permutation(rows)
    return [
        [Draw(int(row), derive_seed(seed, "photo", replica, epoch, int(row))) for row in part]
        for part in np.array_split(shuffled, steps_in_epoch(len(rows), batch_size))
    ]


def steps_in_epoch(photos: int, batch_size: int) -> int:
    """How many batches an epoch has.

    None is left with a single photo, whose batch norm would have no variance, unless singles were
    asked for: with `batch_size` = 2 and an odd number of photos, one batch holds three.
    """
    steps = -(-photos // batch_size)
    return steps if batch_size == 1 else max(min(steps, photos // 2), 1)


def evaluation_plan(rows: NDArray[np.int64], batch_size: int) -> list[list[Draw]]:
    """Every row once, in order, without random changes; batches as equal as in training.

    Batch norm is measured on such batches too, and a last one of a single photo would fail it.
    """
    parts = np.array_split(rows, steps_in_epoch(len(rows), batch_size)) if len(rows) else []
    return [[Draw(int(row), None) for row in part] for part in parts]


def _failed(error: str) -> Batch:
    return Batch(_NO_IMAGES, torch.empty(0, dtype=torch.int64), error=error)


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the parent ends its loaders itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
