"""The processor cores of this process, and threads that work ahead on them. Needs no torch."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def count_cores() -> int:
    """Return the processor cores for this process: its share of them among ranks."""
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun
    return max(cores // int(beside), 1) if beside.isdecimal() and int(beside) else cores


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    *,
    ahead: int,
    start: Callable[..., object] | None = None,
    given: tuple[Any, ...] = (),
) -> Iterator[R]:
    """Yield what threads make of the items, in order, at most `ahead` of their use.

    Without threads the caller's makes it. Each thread begins with `start(*given)`.
    """
    if not threads:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads, initializer=start, initargs=given) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also where the caller wants no more
            pool.shutdown(wait=True, cancel_futures=True)
