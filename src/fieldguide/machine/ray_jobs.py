"""Folds trained on a Ray cluster: each is one job, started where there is room for it.

Ray does the scheduling and restarts a job, from its own checkpoint, if its process or machine dies.
This module finds the cluster, passes on the jobs' messages, and stops them. Knows nothing of run
folders: the caller supplies a fold's training.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fieldguide.errors import ResourceError, Stopped, UsageError, portable
from fieldguide.machine.controls import Controls, Make, relayed
from fieldguide.machine.processes import signals_kept
from fieldguide.words import first_line

LOCAL = "local"  # a cluster of this machine alone, for as long as it is needed

# Restarts of a job after its process or machine has died (taste).
RETRIES = 3

# Seconds: between two looks at what has happened; between a job's looks at whether to stop;
# for the jobs' last checkpoints; until an address counts as one that does not answer.
PATIENCE, LOOK, GRACE = 0.2, 1.0, 60.0
ANSWER, JOIN = 5.0, 40.0

Message = tuple[int, str, tuple[Any, ...]]  # fold, name of the control, its arguments


def train_on_cluster(
    make: Make, folds: Sequence[int], address: str, needs: dict[str, float], controls: Controls
) -> None:
    """Train each fold as a job that `needs` a part of a machine (`num_cpus`, `num_gpus`).

    `make` is called in each job. The first error stops the others, which save a checkpoint, and is
    raised; so is an error of `controls.check_stop`. Raises `ResourceError` for a cluster that does
    not answer or has no such machine, and for a job that died too often.
    """
    with connected(address) as ray:
        if not jobs_at_once(ray, needs):
            needed = ", ".join(f"{count:g} {name}" for name, count in _by_resource(needs).items())
            raise ResourceError(
                f"no machine of the cluster at `{address}` has what a fold needs: {needed}",
                hint="`ray status` lists what there is",
            )
        here = ray.get_runtime_context().get_node_id()
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=strategy)(_Mailbox).remote()
        job = ray.remote(max_retries=RETRIES, scheduling_strategy="SPREAD", **needs)(_train)
        waiting = {job.remote(make, fold, mailbox): fold for fold in folds}
        heard = _Heard(controls)
        try:
            while waiting:
                controls.check_stop()
                _hear(ray, waiting, mailbox, heard)
        except BaseException:
            ray.get(mailbox.ask_to_stop.remote())
            _end(ray, waiting, mailbox, heard)
            raise


def _hear(ray: Any, waiting: dict[Any, int], mailbox: Any, heard: "_Heard") -> None:
    """Pass on the jobs' messages, and remove ended jobs from `waiting`."""
    ended, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=PATIENCE)
    heard.pass_on(ray.get(mailbox.take.remote()))
    for result in ended:
        fold = waiting.pop(result)
        try:
            error = ray.get(result)
        except ray.exceptions.RayTaskError as problem:  # another fieldguide there, or none
            reason = str(problem).strip().splitlines()[-1]
            raise ResourceError(
                f"fold {fold} could not be begun on a machine of the cluster: {reason}",
                hint="all machines need the same versions of Python and fieldguide",
            ) from problem
        except ray.exceptions.RayError as problem:
            raise ResourceError(
                f"what trained fold {fold} died {RETRIES + 1} times: {first_line(problem)}",
                hint="the same command resumes from the last checkpoint",
            ) from problem
        if error is not None:
            raise error


def _end(ray: Any, waiting: dict[Any, int], mailbox: Any, heard: "_Heard") -> None:
    """Wait until jobs that were asked to stop have saved, and kill those that do not answer."""
    until = time.monotonic() + GRACE
    while waiting and time.monotonic() < until:
        try:
            _hear(ray, waiting, mailbox, heard)
        except Exception:  # one error is under way already, or this is the stop asked for
            continue
    for result in waiting:
        ray.cancel(result, force=True)


class _Heard:
    """A filter of messages: steps and rows that a restarted job repeats are passed on once."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.steps: Counter[int] = Counter()  # of each fold, as they were passed on
        self.behind: Counter[int] = Counter()  # steps that are being done again
        self.rows: set[tuple[Any, ...]] = set()

    def pass_on(self, messages: Sequence[Message]) -> None:
        for fold, kind, values in messages:
            if kind == "on_resume":
                self._resumed(fold, *values)
            elif kind == "on_step" and self.behind[fold]:
                self.behind[fold] -= 1
            elif kind == "on_step":
                self.steps[fold] += 1
                self.controls.on_step()
            elif kind == "on_row":
                row = values[0]
                key = (fold, row.get("epoch"), row.get("model"))
                if key not in self.rows:
                    self.rows.add(key)
                    self.controls.on_row(row)
            else:
                getattr(self.controls, kind)(*values)

    def _resumed(self, fold: int, steps: int) -> None:
        done = self.steps[fold]
        self.behind[fold] = max(done - steps, 0)
        if done:
            self.controls.notice(
                f"fold {fold} was restarted after its process or machine had died:"
                f" {self.behind[fold]} steps are trained again"
            )
        if steps > done:
            self.steps[fold] = steps
            self.controls.on_resume(steps - done)


class _Mailbox:
    """An actor on the command's machine: jobs leave messages and learn whether to stop."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.stop = False

    def tell(self, message: Message) -> None:
        self.messages.append(message)

    def take(self) -> list[Message]:
        """Return all messages that were not taken yet."""
        taken, self.messages = self.messages, []
        return taken

    def ask_to_stop(self) -> None:
        self.stop = True

    def stopped(self) -> bool:
        return self.stop


def _train(make: Make, fold: int, mailbox: Any) -> Exception | None:
    """Train in a job; return an error, as a raised one would be taken for a machine's."""
    import ray

    try:
        if not ray.get(mailbox.stopped.remote()):
            make(_telling(fold, mailbox))(fold)
        return None
    except Exception as error:
        return portable(error)
    finally:
        ray.get(mailbox.stopped.remote())  # answered after all earlier messages


def _telling(fold: int, mailbox: Any) -> Controls:
    """Return controls that send messages to the mailbox."""
    import ray

    looked = time.monotonic()

    def tell(kind: str) -> Callable[..., None]:
        return lambda *values: mailbox.tell.remote((fold, kind, values))

    def check_stop() -> None:
        nonlocal looked
        if time.monotonic() - looked > LOOK:
            looked = time.monotonic()
            if ray.get(mailbox.stopped.remote()):
                raise Stopped(signal.SIGTERM)

    return relayed(tell, check_stop)


# --- the cluster ----------------------------------------------------------------------------------


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Give the block Ray, connected to the cluster; an earlier connection is used and stays.

    Raises `UsageError` without Ray and `ResourceError` for a cluster that does not answer.
    """
    ray = _imported()
    if ray.is_initialized():
        yield ray
        return
    if address != LOCAL:
        _require_cluster(address)
    try:
        with signals_kept():
            ray.init(
                address=address,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except Exception as error:  # whatever Ray's many layers raise
        raise _no_cluster(address, first_line(error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be; else it warns
    try:
        with signals_kept():
            import ray
            import ray.util.scheduling_strategies
    except ImportError as error:
        raise UsageError(
            "`cluster` needs Ray, which is not installed",
            hint="pip install 'fieldguide[cluster]', on all machines",
        ) from error
    return ray


def require_address(address: str) -> None:
    """Refuse, in seconds, a bad address, one where nobody listens, and a missing Ray."""
    _imported()
    if address in {LOCAL, "auto"}:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(
            f"`cluster` = {address!r} is no address",
            hint="`local`, `auto` (on a machine of the cluster), HOST:PORT or ray://HOST:PORT",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _require_cluster(address: str) -> None:
    """Refuse an address without a cluster, by another process: Ray itself may hang."""
    join = f"import ray; ray.init(address={address!r}, log_to_driver=False)"
    command = [sys.executable, "-c", join]
    try:
        tried = subprocess.run(command, timeout=JOIN, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(address, f"no answer in {JOIN:.0f} s") from error
    if tried.returncode:
        lines = tried.stderr.strip().splitlines() or ["Ray could not join it"]
        raise _no_cluster(address, lines[-1])


def _no_cluster(address: str, reason: str) -> ResourceError:
    return ResourceError(
        f"there is no Ray cluster at `{address}`: {reason}",
        hint="`ray status` on its first machine says whether it runs;"
        " `--cluster local` uses this machine alone",
    )


def jobs_at_once(ray: Any, needs: dict[str, float]) -> int:
    """Return the number of jobs of these needs that the whole cluster takes when it is free."""
    wanted = _by_resource(needs)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(m.get(k, 0) // n) for k, n in wanted.items()) for m in machines)


def _by_resource(needs: dict[str, float]) -> dict[str, float]:
    """Return the needs by Ray's names of resources."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    return {names[name]: count for name, count in needs.items() if count}
