"""Folds trained at the same time on one machine, each by its own process on its own device.

On a CPU two processes of one thread each are far faster than one of two threads, which wait for
each other at every layer. A process trains one fold after another and reports through its own pipe,
so that one that dies hurts no other. Knows nothing of run folders: the caller supplies a fold's
training.
"""

import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import ModuleType

from fieldguide.errors import ResourceError, Stopped, portable
from fieldguide.machine.controls import Controls, Make, TrainFold, relayed

# Seconds between two looks at whether the user wants to stop, while no process has news (taste).
PATIENCE = 0.2


def train_side_by_side(makes: Sequence[Make], folds: Sequence[int], controls: Controls) -> None:
    """Train folds in a process for each of `makes`, in order of their numbers as one is free.

    Each of `makes` can be pickled and is called once in its process, with its controls. The first
    error stops the others, which save a checkpoint, and is raised; so is an error of
    `controls.check_stop`. A process that dies is a `ResourceError`.
    """
    waiting = deque(folds)
    workers = [_Worker(make) for make, _ in zip(makes, folds, strict=False)]
    try:
        for worker in workers:
            worker.begin(waiting.popleft())
        while busy := [worker for worker in workers if worker.fold is not None]:
            controls.check_stop()
            news = wait([worker.connection for worker in busy], PATIENCE)
            for worker in (worker for worker in busy if worker.connection in news):
                worker.hear(controls)
                if worker.fold is None and waiting:
                    worker.begin(waiting.popleft())
    finally:
        for worker in workers:
            worker.ask_to_stop()
        for worker in workers:
            worker.join(controls)


class _Worker:
    """A process that trains folds, as its parent sees it. `fold` is the current one."""

    def __init__(self, make: Make) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_work, args=(make, far), daemon=True)
        # Schedulers' signals and Ctrl-C reach the whole process group; the parent decides.
        with _no_script_of_the_caller(), signals_kept(ignored=True):
            self.process.start()
        far.close()
        self.fold: int | None = None

    def begin(self, fold: int) -> None:
        self.fold = fold
        with suppress(OSError):  # a dead one is noticed when it is heard
            self.connection.send(fold)

    def hear(self, controls: Controls) -> None:
        """Pass on one message of the process; raise what went wrong in it."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError) as error:
            death = self._death()
            controls.check_stop()  # whoever stops it all may have ended the process as well
            raise death from error
        if kind == "done":
            self.fold = None
        elif kind == "error":
            self.fold = None
            raise value
        else:
            getattr(controls, kind)(*value)

    def ask_to_stop(self) -> None:
        """Ask the process to save a checkpoint and end, or to end at once if it is idle."""
        with suppress(OSError):
            self.connection.send(None)

    def join(self, controls: Controls) -> None:
        """Wait for the end, and pass on the process's last messages."""
        while self.fold is not None:
            try:
                self.hear(controls)
            except Exception:  # one error is under way already, or this is the stop asked for
                break
        self.connection.close()
        self.process.join()

    def _death(self) -> ResourceError:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        fold, self.fold = self.fold, None
        return ResourceError(
            f"the process that trained fold {fold} ended {how}",
            hint="often memory ran out; the same command resumes from the last checkpoint,"
            " with --workers 1 one fold at a time",
        )


@contextmanager
def signals_kept(*, ignored: bool = False) -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM after the block, in which they may be `ignored`.

    A process that is started while they are ignored ignores them from its first instruction on.
    Signals within the block are then lost and have to be sent again.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():  # which alone may set them
        before = {}
    try:
        for number in before if ignored else ():
            signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _no_script_of_the_caller() -> Iterator[None]:
    """Hide the main module, which a new process would import: a script might start again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(make: Make, connection: Connection) -> None:
    """Train the folds that come in and report; None, or the parent's end, ends the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    controls = _telling(connection)
    with suppress(EOFError, OSError):
        train: TrainFold | None = None
        while (fold := connection.recv()) is not None:
            try:
                train = train or make(controls)
                train(fold)
            except Exception as error:
                connection.send(("error", portable(error)))
            else:
                connection.send(("done", None))


def _telling(connection: Connection) -> Controls:
    """Return controls that send; threads that read photos have notices too."""
    lock = threading.Lock()

    def tell(kind: str) -> Callable[..., None]:
        def send(*values: object) -> None:
            with lock, suppress(OSError):  # that the parent has gone is noticed by `check_stop`
                connection.send((kind, values))

        return send

    def check_stop() -> None:
        if connection.poll():  # a message from the parent meanwhile, or its end, means stop
            raise Stopped(signal.SIGTERM)

    return relayed(tell, check_stop)
