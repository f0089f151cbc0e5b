"""Photos in, answers out, for many callers at once: photos of several callers share a batch.

At most so many photos are worked on; one more is refused. A caller that goes away takes its photo
along. Knows nothing of HTTP.
"""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from fieldguide.analysis.conformal import Sets
from fieldguide.errors import UnreadablePhoto
from fieldguide.photos.decoding import size_if_small
from fieldguide.predict.model import Model
from fieldguide.predict.tables import Predictions

BATCH = 16  # photos that are computed together, at most
PATIENCE = 0.005  # seconds that a photo waits for others to share its batch


class Busy(Exception):
    """A photo too many: others are still worked on."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer for one photo; `small`: its size if it shows nothing."""

    predictions: Predictions  # of this photo alone
    small: str = ""


@dataclass(eq=False)
class Counts:
    """What was done since the start."""

    answered: int = 0
    unreadable: int = 0
    refused: int = 0
    dropped: int = 0
    batches: int = 0
    seconds: float = 0.0  # from photo to answer, over all answered


@dataclass(frozen=True, eq=False)
class _Waiting:
    square: UInt8[np.ndarray, "side side 3"]
    small: str
    future: "Future[Answer]"
    began: float


@dataclass(eq=False)
class Service:
    """A model that answers for photos as they come. `most` are in work at a time."""

    model: Model
    most: int
    readers: int
    sets: Sets | None = None
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(max(self.readers, 1), "photos")
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    @property
    def inside(self) -> int:
        """The photos in work, also those that are still on their way."""
        return self._inside

    def enter(self) -> None:
        """Take a place for a photo; raise `Busy` if there is none. Each `enter` needs a `leave`."""
        with self._lock:
            if self._inside >= self.most:
                self.counts.refused += 1
                raise Busy
            self._inside += 1

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._inside -= 1

    def submit(self, data: bytes) -> "Future[Answer]":
        """Return the answer to come for the bytes of a photo's file.

        It raises `UnreadablePhoto` for what is none. Cancelled before it is computed, it is not.
        """
        future: Future[Answer] = Future()
        self._pool.submit(self._read, data, future, time.perf_counter())
        return future

    def close(self) -> None:
        """End the threads; photos that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._queue.put(None)
        self._thread.join()

    def _read(self, data: bytes, future: "Future[Answer]", began: float) -> None:
        if future.cancelled():
            self.count(dropped=1)
            return
        try:
            picture = self.model.card.architecture.decoding.of_bytes(data)
            square, small = self.model.square(picture), size_if_small(picture)
            waiting = _Waiting(square, small, future, began)
        except BaseException as error:  # goes to the caller, whose photo it is
            self.count(unreadable=int(isinstance(error, UnreadablePhoto)))
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        self._queue.put(waiting)

    def _work(self) -> None:
        """Compute batch after batch until the end is put into the queue."""
        while (first := self._queue.get()) is not None:
            batch, until = [first], time.monotonic() + PATIENCE
            last = False
            while len(batch) < BATCH and not last:
                try:
                    more = self._queue.get(timeout=max(until - time.monotonic(), 0))
                except queue.Empty:
                    break
                last = more is None
                batch += [] if more is None else [more]
            self._answer([each for each in batch if each.future.set_running_or_notify_cancel()])
            self.count(dropped=sum(each.future.cancelled() for each in batch))
            if last:
                return

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        try:
            found = self.model.answer([each.square for each in batch], sets=self.sets)
        except BaseException as error:
            for each in batch:
                each.future.set_exception(error)
            return
        now = time.perf_counter()
        took = sum(now - each.began for each in batch)
        self.count(answered=len(batch), batches=1, seconds=took)
        for row, each in enumerate(batch):
            each.future.set_result(Answer(found.rows(range(row, row + 1)), each.small))

    def count(self, **more: int | float) -> None:
        """Add to the counts."""
        with self._lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)
