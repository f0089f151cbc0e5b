"""A fit's metrics as they come: into the run folder, and to whom the recipe's `track` names.

    RUN/events.jsonl   one JSON object for each row of history.csv, as it happens
    tensorboard        event files in RUN/tensorboard, one folder a fold and model
    mlflow             a run of the experiment `fieldguide` (or MLFLOW_EXPERIMENT_NAME)
    wandb              a run of the project `fieldguide` (or WANDB_PROJECT)

A fit does not depend on any of it. What can fail or hang runs in a thread of its own that nobody
waits for, but `close` for a limited time; after the first failure, which is told once, the tracker
is off. Numbers, the recipe and the run folder's name are sent, and neither paths nor classes.
Knows nothing of training, and imports a tracker's package only where it is asked for.
"""

import hashlib
import importlib
import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from fieldguide import recipe as recipes
from fieldguide.errors import UsageError

Track = Literal["none", "tensorboard", "mlflow", "wandb"]
Row = Mapping[str, Any]
T = TypeVar("T")

EVENTS = "events.jsonl"
EXTRA = "track"  # of this package, with what the trackers need
PROJECT = "fieldguide"

# Rows that may wait for a tracker: an hour of quick epochs. More wait only where it hangs.
QUEUE = 256
# Seconds that one call, or all that is left at the end, may take: as long as a slow network needs,
# and short beside a fit.
LIMIT = 30.0

_KEY = ("fold", "epoch", "model")
_PACKAGES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


@runtime_checkable  # for the checks while testing
class Tracker(Protocol):
    """Whoever is told of a fit's rows."""

    def row(self, row: Row) -> None:
        """One more row of the history."""

    def close(self) -> None:
        """No more rows come."""


def start(track: Track, folder: Path, notice: Callable[[str], None]) -> Tracker:
    """The tracker of a run in `folder`: its events, and what `track` names.

    Nothing is written, and nobody called, before the first row, when the run must exist. Raises
    `UsageError` where the package for `track` cannot be imported, so call it before training. What
    goes wrong later is told to `notice`, in the caller's thread.
    """
    if track == "none":
        return Tracking(Events(folder / EVENTS, notice), None)
    package = _package(track)
    open_remote = _REMOTES[track]
    return Tracking(
        Events(folder / EVENTS, notice),
        Guarded(track, lambda: open_remote(package, folder), notice),
    )


def _package(track: str) -> ModuleType:
    """The tracker's package. Whatever its import raises is better told before the training."""
    try:
        return importlib.import_module(_PACKAGES[track])
    except Exception as error:
        raise UsageError(
            f"`track` = {track!r}: its package cannot be imported: {_reason(error)}",
            hint=f"install it with `pip install 'fieldguide[{EXTRA}]'`, or leave `track` out",
        ) from error


class Tracking:
    """Rows to the events, and those that are new there to a remote tracker."""

    def __init__(self, events: "Events", remote: Tracker | None) -> None:
        self.events, self.remote = events, remote

    def row(self, row: Row) -> None:
        """Tells everybody of a row that a resumed fit has not told before."""
        if self.events.add(row) and self.remote is not None:
            self.remote.row(row)

    def close(self) -> None:
        """Waits a limited time for what is still on its way."""
        if self.remote is not None:
            self.remote.close()


# --- in the run folder -----------------------------------------------------------------------


class Events:
    """`events.jsonl`: a line is appended and forced to disk for each row that is not in it yet.

    A fit that goes on from a checkpoint comes again through rows since that checkpoint; they are
    known by fold, epoch and model. Half a line that a killed process left is removed first.
    """

    def __init__(self, path: Path, notice: Callable[[str], None]) -> None:
        """Touches no file before the first row."""
        self.path, self.notice = path, notice
        self.known: set[tuple[str, ...]] | None = None
        self.works = True

    def add(self, row: Row) -> bool:
        """Whether the row is new. It is written, or what hinders it is told once."""
        if self.known is None:
            self.known = {_key(known) for known in self._mended()}
        if _key(row) in self.known:
            return False
        self.known.add(_key(row))
        if self.works:
            self._append(row)
        return True

    def _append(self, row: Row) -> None:
        line = json.dumps({name: _plain(value) for name, value in row.items()}, allow_nan=False)
        try:
            with self.path.open("ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._give_up(error)

    def _mended(self) -> list[Row]:
        """The rows in the file, from which half a line at the end is taken away."""
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)
        except OSError as error:
            self._give_up(error)
            return []
        return read_events(content[:whole])

    def _give_up(self, error: OSError) -> None:
        self.works = False
        self.notice(f"`{self.path}` cannot be written and is left as it is: {_reason(error)}")


def read_events(content: bytes) -> list[Row]:
    """The rows of an events file, without lines that are none: whole ones may follow them."""
    rows: list[Row] = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in _KEY)


def _plain(value: Any) -> Any:
    """The value, or None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- elsewhere, guarded ----------------------------------------------------------------------


class Guarded:
    """A tracker that may fail, hang or be slow, behind a queue and a thread of its own.

    `open_tracker` is called in the thread too, with the first row. The thread is a daemon: one that
    hangs does not keep the process from ending.
    """

    def __init__(
        self,
        name: str,
        open_tracker: Callable[[], Tracker],
        notice: Callable[[str], None],
        *,
        limit: float = LIMIT,
        size: int = QUEUE,
    ) -> None:
        self.name, self.open_tracker, self.notice, self.limit = name, open_tracker, notice, limit
        self.rows: queue.Queue[Row | None] = queue.Queue(size)  # None: the last has come
        self.thread: threading.Thread | None = None
        self.called: float | None = None  # since when the tracker has not answered
        self.failure = ""
        self.off = False

    def row(self, row: Row) -> None:
        """Puts the row into the queue and returns at once."""
        if self.thread is None:
            self.thread = threading.Thread(
                target=self._work, name=f"track-{self.name}", daemon=True
            )
            self.thread.start()
        self._check()
        if not self.off:
            self._put(dict(row))

    def close(self) -> None:
        """Waits, no longer than the limit, until all rows are told and the tracker is closed."""
        if self.thread is None or self.off:
            return
        self._put(None)
        self.thread.join(0 if self.off else self.limit)
        if self.thread.is_alive():
            self.failure = self.failure or self._silence()
        self._check()
        self.off = True

    def _put(self, row: Row | None) -> None:
        try:
            self.rows.put_nowait(row)
        except queue.Full:
            self._turn_off(f"{self.rows.maxsize} rows wait for it")

    def _check(self) -> None:
        """Turns the tracker off where it has failed, or has not answered for too long."""
        called = self.called
        if called is not None and time.monotonic() - called > self.limit:
            self.failure = self.failure or self._silence()
        if self.failure:
            self._turn_off(self.failure)

    def _silence(self) -> str:
        return f"no answer within {self.limit:g} s"

    def _turn_off(self, why: str) -> None:
        if not self.off:
            self.off = True
            self.notice(
                f"tracking with {self.name} has failed and is off: {why};"
                f" the fit goes on, and {EVENTS} has every row"
            )

    def _work(self) -> None:
        """What the thread does. Whatever the tracker raises ends here and is told by `_check`."""
        try:
            tracker = self._timed(self.open_tracker)
            while (row := self.rows.get()) is not None and not self.off:
                self._timed(partial(tracker.row, row))
            if not self.off:
                self._timed(tracker.close)
        except BaseException as error:
            self.failure = _reason(error)

    def _timed(self, call: Callable[[], T]) -> T:
        self.called = time.monotonic()
        try:
            return call()
        finally:
            self.called = None


def _reason(error: BaseException) -> str:
    """The error's name and first line, without a password that stands in an address."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return re.sub(r"//[^/\s@]+@", "//…@", text)[:300]


# --- adapters: called in the guarded thread ---------------------------------------------------


class _TensorBoard:
    """Event files: one folder a fold and model, so that a metric's curves share one picture."""

    def __init__(self, package: ModuleType, folder: Path) -> None:
        self.package, self.folder = package, folder / "tensorboard"
        self.writers: dict[str, Any] = {}

    def row(self, row: Row) -> None:
        """Writes the row's figures, readable at once."""
        place = f"fold-{row['fold']}/{row['model']}"
        if place not in self.writers:
            self.writers[place] = self.package.SummaryWriter(str(self.folder / place))
        for name, value in figures(row).items():
            self.writers[place].add_scalar(name, value, row["epoch"])
        self.writers[place].flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class _MLflow:
    """One MLflow run, found again by a tag when the fit goes on.

    Through its client: the fluent functions keep an active run for the whole process.
    """

    def __init__(self, package: ModuleType, folder: Path) -> None:
        self.package, self.client = package, package.MlflowClient()
        self.run_id = self._run_id(About.of(folder))

    def _run_id(self, about: "About") -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        tag = f"{PROJECT}_run"
        runs = self.client.search_runs([experiment], f"tags.{tag} = '{about.id}'")
        if runs:
            run_id: str = runs[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        run_id = self.client.create_run(
            experiment, run_name=about.name, tags={tag: about.id}
        ).info.run_id
        param = self.package.entities.Param
        settings = [param(name, str(value)) for name, value in about.settings.items()]
        self.client.log_batch(run_id, params=settings)
        return run_id

    def row(self, row: Row) -> None:
        """Sends the row in one call."""
        now = round(time.time() * 1000)
        metric = self.package.entities.Metric
        self.client.log_batch(
            self.run_id,
            metrics=[
                metric(name, float(value), now, row["epoch"])
                for name, value in named_figures(row).items()
            ],
        )

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class _WandB:
    """One run of Weights & Biases, gone on with under its id when the fit goes on."""

    def __init__(self, package: ModuleType, folder: Path) -> None:
        about = About.of(folder)
        # Silent for the process, not the run alone: else it asks for a key on the terminal.
        package.setup(settings=package.Settings(silent=True))
        self.run = package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=about.id,
            name=about.name,
            resume="allow",
            dir=str(folder),
            config=about.settings,
            # It would take over the terminal and send the command, the code and the machine's name.
            # Without the times it would hold up the end of the process long after it was given up.
            settings=package.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_save_requirements=False,
                init_timeout=LIMIT,
                finish_timeout=LIMIT,
            ),
        )
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")

    def row(self, row: Row) -> None:
        self.run.log({"epoch": row["epoch"], **named_figures(row)})

    def close(self) -> None:
        self.run.finish()


_REMOTES: Mapping[str, Callable[[ModuleType, Path], Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run: a name for people, an id of its own, its settings."""

    id: str
    name: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "About":
        """Of an existing run. The id stays when the folder is moved or its fit goes on."""
        recipe = recipes.load(str(folder / "recipe.toml"))
        settings = recipe.model_dump(mode="json")
        return cls(
            id=hashlib.sha256((folder / "setup.json").read_bytes()).hexdigest()[:16],
            name=folder.resolve().name,
            settings={**settings, "weights": Path(recipe.weights).name},
        )


def figures(row: Row) -> dict[str, float]:
    """What is measured in a row, by name; what is not finite, or was not measured, is left out."""
    return {
        name: value
        for name, value in row.items()
        if name not in _KEY and isinstance(value, int | float) and math.isfinite(value)
    }


def named_figures(row: Row) -> dict[str, float]:
    """The same under names that tell folds and models apart: `test_loss/fold-0/merged`."""
    place = f"fold-{row['fold']}/{row['model']}"
    return {f"{name}/{place}": value for name, value in figures(row).items()}
