"""A fit's metrics as they come: into the run folder, and to the tracker that `track` names.

    RUN/events.jsonl   one JSON object for each row of history.csv, as it happens
    tensorboard        event files in RUN/tensorboard, one folder a fold and model
    mlflow             a run of the experiment `fieldguide` (or MLFLOW_EXPERIMENT_NAME)
    wandb              a run of the project `fieldguide` (or WANDB_PROJECT)

A fit does not depend on any of it. What can fail or hang runs in a thread of its own that nobody
waits for, but `close` for a limited time; after the first failure, which is reported once, the
tracker is off. Numbers, the recipe and the run folder's name are sent, and neither paths nor
classes. Knows nothing of training, and imports a tracker's package only where it is asked for.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from fieldguide import recipe as recipes
from fieldguide.errors import UsageError

Track = Literal["none", "tensorboard", "mlflow", "wandb"]
Row = Mapping[str, Any]
Send = Callable[[Iterator[Row]], None]  # every row to a tracker, which it closes at the end
Notice = Callable[[str], None]

EVENTS = "events.jsonl"
EXTRA = "track"  # of this package, with what the trackers need
PROJECT = "fieldguide"

# Rows that may wait for a tracker: an hour of quick epochs. More wait only where it hangs.
QUEUE = 256
# Seconds that what is left at the end may take: enough for a slow network, short beside a fit.
LIMIT = 30.0

_KEY = ("fold", "epoch", "model")


def start(track: Track, folder: Path, notice: Notice) -> "Tracker":
    """Return the tracker of a run in `folder`: its events, and what `track` names.

    Nothing is written, and nobody called, before the first row, when the run must exist. Raises
    `UsageError` where the package for `track` cannot be imported, so call it before training. What
    goes wrong later is said to `notice`, in the caller's thread.
    """
    if track == "none":
        return Tracker(folder / EVENTS, notice)
    name, send = _ADAPTERS[track]
    try:
        package = importlib.import_module(name)
    except Exception as error:  # whatever its import raises
        raise UsageError(
            f"`track` = {track!r}: its package cannot be imported: {_reason(error)}",
            hint=f"install it with `pip install 'fieldguide[{EXTRA}]'`, or leave `track` out",
        ) from error
    return Tracker(folder / EVENTS, notice, Guard(track, partial(send, package, folder), notice))


class Tracker:
    """Each row of a fit, once: to `events.jsonl`, and to a remote tracker behind its guard.

    A fit that goes on from a checkpoint comes again through rows since that checkpoint; they are
    known by fold, epoch and model. Half a line that a killed process left is removed first.
    """

    def __init__(self, path: Path, notice: Notice, remote: "Guard | None" = None) -> None:
        self.path, self.notice, self.remote = path, notice, remote
        self.known: set[tuple[str, ...]] = set()
        self.read, self.works = False, True

    def row(self, row: Row) -> None:
        """Write the row and send it on, unless it came before; report once what hinders it."""
        key, new = _key(row), True
        try:
            if not self.read:
                self.read = True
                self.known = _mended(self.path)
            new = key not in self.known
            if new and self.works:
                _append(self.path, row)
        except OSError as error:
            self.works = False
            self.notice(f"`{self.path}` cannot be written and is left as it is: {_reason(error)}")
        self.known.add(key)
        if new and self.remote is not None:
            self.remote.row(row)

    def close(self) -> None:
        """Wait a limited time for what is still on its way."""
        if self.remote is not None:
            self.remote.close()


def _mended(path: Path) -> set[tuple[str, ...]]:
    """Return the keys of the file's rows, and remove half a line at its end; other lines stay."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    rows: list[Any] = []
    for line in content[:whole].splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return {_key(row) for row in rows if isinstance(row, dict)}


def _append(path: Path, row: Row) -> None:
    """Add a line and force it to disk; a number that JSON does not have is null."""
    strange = {n: None for n, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    with path.open("ab") as file:
        file.write(json.dumps({**row, **strange}, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in _KEY)


class Guard:
    """A queue and a thread, so that a tracker that fails, hangs or is slow never hurts a fit.

    `send` is called in the thread with an iterator of the rows, at the first of them; it closes the
    tracker when they end. The thread is a daemon: one that hangs does not keep the process alive.
    """

    def __init__(
        self, name: str, send: Send, notice: Notice, *, limit: float = LIMIT, size: int = QUEUE
    ) -> None:
        self.name, self.send, self.notice, self.limit = name, send, notice, limit
        self.rows: queue.Queue[Row | None] = queue.Queue(size)  # None: the last has come
        self.thread = threading.Thread(target=self._work, name=f"track-{name}", daemon=True)
        self.failure = ""  # of the thread, reported by the caller's next call
        self.off = False

    def row(self, row: Row) -> None:
        """Put the row into the queue and return at once."""
        if self.thread.ident is None:
            self.thread.start()
        self._put(dict(row))

    def close(self) -> None:
        """Wait, no longer than the limit, until all rows are sent and the tracker is closed."""
        if self.thread.ident is not None and not self.off:
            self._put(None)
            self.thread.join(0 if self.off else self.limit)
            hangs = self.thread.is_alive()
            self._turn_off(self.failure or (f"no answer within {self.limit:g} s" if hangs else ""))
            self.off = True

    def _put(self, row: Row | None) -> None:
        self._turn_off(self.failure)
        if not self.off:
            try:
                self.rows.put_nowait(row)
            except queue.Full:
                self._turn_off(f"{self.rows.maxsize} rows wait for it")

    def _turn_off(self, why: str) -> None:
        """Report why, if there is a reason and none was reported, and send nothing more."""
        if why and not self.off:
            self.off = True
            self.notice(
                f"tracking with {self.name} has failed and is off: {why};"
                f" the fit goes on, and {EVENTS} has every row"
            )

    def _work(self) -> None:
        try:
            self.send(self._coming())
        except BaseException as error:
            self.failure = _reason(error)

    def _coming(self) -> Iterator[Row]:
        while True:
            row = self.rows.get()
            if self.off:
                raise TimeoutError  # given up: the tracker is not called again
            if row is None:
                return
            yield row


def _reason(error: BaseException) -> str:
    """Return the error's name and first line, without a password that stands in an address."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return re.sub(r"//[^/\s@]+@", "//…@", text)[:300]


# --- adapters: called in the guard's thread ---------------------------------------------------


def _to_tensorboard(package: ModuleType, folder: Path, rows: Iterator[Row]) -> None:
    """Write one folder a fold and model, so that a metric's curves share one picture."""
    writers: dict[str, Any] = {}
    for row in rows:
        place = f"fold-{row['fold']}/{row['model']}"
        if place not in writers:
            writers[place] = package.SummaryWriter(str(folder / "tensorboard" / place))
        for name, value in figures(row).items():
            writers[place].add_scalar(name, value, row["epoch"])
        writers[place].flush()  # readable at once
    for writer in writers.values():
        writer.close()


def _to_mlflow(package: ModuleType, folder: Path, rows: Iterator[Row]) -> None:
    """Send one MLflow run, found again by a tag when the fit goes on.

    Through its client: the fluent functions keep an active run for the whole process.
    """
    client, metric, param = package.MlflowClient(), package.entities.Metric, package.entities.Param
    own_id, name, settings = about(folder)
    title, tag = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), f"{PROJECT}_run"
    known = client.get_experiment_by_name(title)
    experiment = known.experiment_id if known else client.create_experiment(title)
    if found := client.search_runs([experiment], f"tags.{tag} = '{own_id}'"):
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(experiment, run_name=name, tags={tag: own_id}).info.run_id
        params = [param(setting, str(value)) for setting, value in settings.items()]
        client.log_batch(run_id, params=params)
    for row in rows:
        now, epoch = round(time.time() * 1000), row["epoch"]
        values = named_figures(row).items()
        metrics = [metric(name, float(value), now, epoch) for name, value in values]
        client.log_batch(run_id, metrics=metrics)
    client.set_terminated(run_id)


def _to_wandb(package: ModuleType, folder: Path, rows: Iterator[Row]) -> None:
    """Send one run of Weights & Biases, which goes on under its id when the fit does."""
    own_id, name, settings = about(folder)
    # Silent for the process, not the run alone: else it asks for a key on the terminal.
    package.setup(settings=package.Settings(silent=True))
    run = package.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=own_id,
        name=name,
        resume="allow",
        dir=str(folder),
        config=settings,
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
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    for row in rows:
        run.log({"epoch": row["epoch"], **named_figures(row)})
    run.finish()


# By the name of the tracker: its package, and what sends rows with it.
_ADAPTERS: Mapping[str, tuple[str, Callable[[ModuleType, Path, Iterator[Row]], None]]] = {
    "tensorboard": ("torch.utils.tensorboard", _to_tensorboard),
    "mlflow": ("mlflow", _to_mlflow),
    "wandb": ("wandb", _to_wandb),
}


def about(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Return what a tracker hears of a run: an id of its own, a name for people, its settings.

    The id stays when the folder is moved or its fit goes on.
    """
    recipe = recipes.load(str(folder / "recipe.toml"))
    settings = recipe.model_dump(mode="json") | {"weights": Path(recipe.weights).name}
    digest = hashlib.sha256((folder / "setup.json").read_bytes()).hexdigest()
    return digest[:16], folder.resolve().name, settings


def figures(row: Row, place: str = "") -> dict[str, float]:
    """Return what is measured in a row, without what is not finite, under names with the place."""
    return {
        name + place: value
        for name, value in row.items()
        if name not in _KEY and isinstance(value, int | float) and math.isfinite(value)
    }


def named_figures(row: Row) -> dict[str, float]:
    """Return the same under names with fold and model: `test_loss/fold-0/merged`."""
    return figures(row, f"/fold-{row['fold']}/{row['model']}")
