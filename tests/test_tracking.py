import csv
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fits import Killed, results, small_fit
from hypothesis import given
from hypothesis import strategies as st

import fieldguide as fg
from fieldguide.crossval import Watcher
from fieldguide.errors import UsageError
from fieldguide.tracking import (
    EVENTS,
    About,
    Events,
    Guarded,
    figures,
    named_figures,
    read_events,
    start,
)

MODELS = ("replica-1", "replica-2", "merged")


def row(fold: int = 0, epoch: int = 1, model: str = "merged", **more: Any) -> dict[str, Any]:
    measured = {"train_loss": None, "test_loss": 1.5, "test_accuracy": 0.25, "diverged": False}
    return {"fold": fold, "epoch": epoch, "model": model, **measured, **more}


ROWS = st.lists(
    st.builds(row, st.integers(0, 2), st.integers(1, 3), st.sampled_from(MODELS)), max_size=30
)


def key(row: Any) -> tuple[Any, ...]:
    return row["fold"], row["epoch"], row["model"]


def refuse(message: str) -> None:
    raise AssertionError(message)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """One epoch of one fold; read only."""
    folder = tmp_path_factory.mktemp("tracked") / "owl <run>"
    return small_fit(discs, folder, fold=0, epochs=1, warmup=0.0)


@pytest.fixture
def folder(run: fg.Run, tmp_path: Path) -> Path:
    """What a tracker reads of a run, in a folder to write in."""
    place = tmp_path / run.folder.name
    place.mkdir()
    for name in ("setup.json", "recipe.toml"):
        (place / name).write_bytes((run.folder / name).read_bytes())
    return place


# --- events.jsonl


@given(ROWS)
def test_every_row_is_written_once_in_the_order_of_its_coming(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / EVENTS
        events = Events(path, refuse)
        new = [events.add(row) for row in rows]
        first = list({key(row): row for row in reversed(rows)}.values())
        assert sum(new) == len(first)
        if rows:
            assert {key(row) for row in lines(path)} == {key(row) for row in first}
            assert [key(row) for row, is_new in zip(rows, new, strict=True) if is_new] == [
                key(row) for row in lines(path)
            ]


def test_a_file_cut_at_any_byte_is_mended_by_coming_again_through_all_rows(tmp_path: Path) -> None:
    rows = [row(epoch=epoch, model=model) for epoch in (1, 2) for model in MODELS[1:]]
    path = tmp_path / EVENTS
    for each in rows:
        Events(path, refuse).add(each)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        events = Events(path, refuse)
        kept = whole[:cut].count(b"\n")
        assert [events.add(each) for each in rows] == [n >= kept for n in range(len(rows))]
        assert path.read_bytes() == whole


def test_nothing_is_written_before_the_first_row(tmp_path: Path) -> None:
    start("none", tmp_path / "run", refuse).close()
    assert list(tmp_path.iterdir()) == []


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    Events(tmp_path / EVENTS, refuse).add(row(test_loss=float("nan"), train_loss=float("inf")))
    assert "NaN" not in (tmp_path / EVENTS).read_text()
    (found,) = lines(tmp_path / EVENTS)
    assert found["test_loss"] is None and found["train_loss"] is None
    assert found["test_accuracy"] == 0.25


def test_lines_that_are_no_rows_are_passed_over() -> None:
    good = json.dumps(row()).encode()
    assert read_events(b"\xff\xfe\n[1]\n{half\n" + good + b"\n\n") == [row()]


def test_a_strange_file_is_added_to(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(b'\xff\n{"fold": [1], "epoch": {}}\nnull\n')
    assert Events(tmp_path / EVENTS, refuse).add(row())
    assert json.loads((tmp_path / EVENTS).read_bytes().splitlines()[-1]) == row()


def test_a_file_that_cannot_be_written_is_told_once_and_hinders_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    events = Events(tmp_path / "gone" / EVENTS, told.append)
    assert [events.add(row(epoch=epoch)) for epoch in (1, 2, 2)] == [True, True, False]
    assert len(told) == 1 and EVENTS in told[0]
    (tmp_path / "folder").mkdir()
    assert Events(tmp_path / "folder", told.append).add(row())
    assert len(told) == 2


def history(run: fg.Run) -> list[tuple[str, ...]]:
    found = []
    for fold in run.done:
        with (run.fold_folder(fold) / "history.csv").open(newline="") as file:
            found += [(r["fold"], r["epoch"], r["model"]) for r in csv.DictReader(file)]
    return found


def test_a_fit_that_is_killed_and_goes_on_has_each_row_of_its_history_once(
    discs: Path, tmp_path: Path
) -> None:
    folder, come = tmp_path / "run", []

    def watcher(last: int) -> Watcher:
        def on_row(row: Any) -> None:
            come.append(key(row))
            if len(come) == last:
                raise Killed

        return Watcher(on_row=on_row)

    for last in (2, 6):
        with pytest.raises(Killed):
            small_fit(discs, folder, watcher=watcher(last))
    run = small_fit(discs, folder, watcher=watcher(0))
    assert len(come) > len(set(come)) == len(history(run))  # some came again
    written = [tuple(str(value) for value in key(row)) for row in lines(folder / EVENTS)]
    assert written == history(run)


# --- guarded


class Recorder:
    """A tracker that remembers, and does at each call what it is told to."""

    def __init__(self, act: Callable[[str, int], None] = lambda call, n: None) -> None:
        self.act = act
        self.calls: list[str] = []
        self.rows: list[Any] = []
        self.threads: set[int] = set()

    def open(self) -> "Recorder":
        self.note("open")
        return self

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())
        self.act(call, self.calls.count(call))

    def row(self, row: Any) -> None:
        self.note("row")
        self.rows.append(row)

    def close(self) -> None:
        self.note("close")


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a hanging tracker waits for; set at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_all_rows_arrive_in_order_in_one_thread_that_is_not_the_fits() -> None:
    recorder = Recorder()
    tracker = Guarded("fake", recorder.open, refuse)
    rows = [row(epoch=epoch) for epoch in range(1, 50)]
    for each in rows:
        tracker.row(each)
    tracker.close()
    assert recorder.rows == rows
    assert recorder.calls == ["open", *["row"] * len(rows), "close"]
    assert len(recorder.threads) == 1 and threading.get_ident() not in recorder.threads


def test_a_row_that_is_changed_later_is_sent_as_it_was() -> None:
    gate = threading.Event()
    recorder = Recorder(lambda call, n: assert_true(gate.wait(10)) if call == "open" else None)
    tracker, changing = Guarded("fake", recorder.open, refuse), row()
    tracker.row(changing)
    changing["test_loss"] = 99.0
    gate.set()
    tracker.close()
    assert recorder.rows == [row()]


def assert_true(value: bool) -> None:
    assert value


def test_a_tracker_nobody_tells_a_row_is_never_opened() -> None:
    recorder = Recorder()
    Guarded("fake", recorder.open, refuse).close()
    assert recorder.calls == []


def failing(where: str, nth: int, error: BaseException) -> Callable[[str, int], None]:
    def act(call: str, n: int) -> None:
        if call == where and n == nth:
            raise error

    return act


@pytest.mark.parametrize(
    "error", [OSError("no route to host"), SystemExit(3), KeyboardInterrupt("login")]
)
@pytest.mark.parametrize("where", [("open", 1), ("row", 2), ("close", 1)])
def test_what_fails_is_told_once_and_then_off(where: tuple[str, int], error: BaseException) -> None:
    told: list[str] = []
    recorder = Recorder(failing(*where, error))
    tracker = Guarded("fake", recorder.open, told.append)
    for epoch in range(1, 5):
        tracker.row(row(epoch=epoch))
    tracker.close()
    tracker.row(row(epoch=5))
    tracker.close()
    (message,) = told
    assert "fake" in message and type(error).__name__ in message and str(error) in message
    assert recorder.calls[-1] == where[0]  # it is not called again


def test_a_failure_is_told_while_the_fit_goes_on_and_in_its_thread() -> None:
    told: list[tuple[str, int]] = []
    tracker = Guarded(
        "fake",
        Recorder(failing("open", 1, OSError("refused"))).open,
        lambda message: told.append((message, threading.get_ident())),
    )
    tracker.row(row())
    wait_until(lambda: bool(tracker.failure))
    tracker.row(row(epoch=2))
    assert [thread for _, thread in told] == [threading.get_ident()]


@pytest.mark.parametrize("where", ["open", "row", "close"])
def test_a_hanging_tracker_holds_up_no_row_and_the_end_no_longer_than_the_limit(
    where: str, never: threading.Event
) -> None:
    told: list[str] = []
    recorder = Recorder(lambda call, n: assert_true(never.wait(60)) if call == where else None)
    tracker = Guarded("fake", recorder.open, told.append, limit=0.2)
    begun = time.monotonic()
    for epoch in range(1, 20):
        tracker.row(row(epoch=epoch))
    tracker.close()
    assert time.monotonic() - begun < 20  # of 60 that it hangs
    assert len(told) == 1 and "no answer within 0.2 s" in told[0]


def test_a_hanging_tracker_is_told_of_at_a_later_row(never: threading.Event) -> None:
    told: list[str] = []
    tracker = Guarded(
        "fake", Recorder(lambda *_: assert_true(never.wait(60))).open, told.append, limit=0.1
    )
    tracker.row(row())
    wait_until(lambda: tracker.called is not None)
    time.sleep(0.15)
    tracker.row(row(epoch=2))
    assert len(told) == 1
    begun = time.monotonic()
    tracker.close()
    assert time.monotonic() - begun < 20
    assert len(told) == 1


def test_what_a_hanging_tracker_does_when_it_wakes_is_nothing_more(never: threading.Event) -> None:
    recorder = Recorder(
        lambda call, n: assert_true(never.wait(60)) if (call, n) == ("row", 1) else None
    )
    tracker = Guarded("fake", recorder.open, lambda message: None, limit=0.1)
    for epoch in range(1, 5):
        tracker.row(row(epoch=epoch))
    tracker.close()
    never.set()
    assert tracker.thread is not None
    tracker.thread.join(10)
    assert not tracker.thread.is_alive()
    assert recorder.calls == ["open", "row"]


def test_a_slow_tracker_gets_every_row_and_holds_up_none() -> None:
    recorder = Recorder(lambda call, n: time.sleep(0.02))
    tracker = Guarded("fake", recorder.open, refuse)
    for epoch in range(1, 21):
        tracker.row(row(epoch=epoch))
    assert len(recorder.rows) < 20
    tracker.close()
    assert len(recorder.rows) == 20


def test_rows_that_nobody_takes_do_not_fill_the_memory(never: threading.Event) -> None:
    told: list[str] = []
    hanging = Recorder(lambda *_: assert_true(never.wait(60)))
    tracker = Guarded("fake", hanging.open, told.append, size=4)
    for epoch in range(1, 100):
        tracker.row(row(epoch=epoch))
    assert tracker.rows.qsize() <= 4
    assert len(told) == 1 and "4 rows wait" in told[0]


def test_no_password_is_told() -> None:
    told: list[str] = []
    error = OSError("cannot reach https://anna:secret@example.com:80/api?x=1\nlong trace")
    tracker = Guarded("fake", Recorder(failing("open", 1, error)).open, told.append)
    tracker.row(row())
    tracker.close()
    assert "secret" not in told[0] and "anna" not in told[0] and "long trace" not in told[0]
    assert "example.com" in told[0]


def test_a_fit_whose_tracker_hangs_or_fails_has_the_same_bits(
    discs: Path, run: fg.Run, tmp_path: Path, never: threading.Event
) -> None:
    hanging = Recorder(lambda *_: assert_true(never.wait(60)))
    failing_ = Recorder(failing("row", 1, ValueError("no")))
    for number, recorder in enumerate((hanging, failing_)):
        tracker = Guarded("fake", recorder.open, lambda message: None, limit=0.1)
        same = small_fit(
            discs,
            tmp_path / str(number),
            fold=0,
            epochs=1,
            warmup=0.0,
            watcher=Watcher(on_row=tracker.row),
        )
        tracker.close()
        assert results(same) == results(run)


# --- what is sent


def test_figures_are_what_was_measured() -> None:
    full = row(steps=5, test_loss=float("nan"), diverged=True)
    assert figures(full) == {"test_accuracy": 0.25, "steps": 5, "diverged": True}
    assert figures({"fold": 3, "epoch": 1, "model": "merged"}) == {}


def test_names_tell_folds_and_models_apart() -> None:
    both = [named_figures(row(fold, model=model)) for fold in (0, 1) for model in MODELS]
    names = [name for figures in both for name in figures]
    assert len(set(names)) == len(names)
    assert "test_loss/fold-0/merged" in names


def test_a_run_is_known_by_an_id_of_its_own_and_its_place_stays_private(
    discs: Path, tmp_path: Path, run: fg.Run
) -> None:
    about = About.of(run.folder)
    assert about.name == run.folder.name
    (tmp_path / "moved").mkdir()
    for name in ("setup.json", "recipe.toml"):
        (tmp_path / "moved" / name).write_bytes((run.folder / name).read_bytes())
    assert About.of(tmp_path / "moved").id == about.id
    weights = tmp_path / "home" / "ann" / "first.safetensors"
    text = (run.folder / "recipe.toml").read_text().replace('"none"', json.dumps(str(weights)), 1)
    (tmp_path / "moved" / "recipe.toml").write_text(text)
    (tmp_path / "moved" / "setup.json").write_text("{}")
    other = About.of(tmp_path / "moved")
    assert other.id != about.id
    assert other.settings["weights"] == "first.safetensors"
    assert str(tmp_path) not in json.dumps(dict(other.settings))


# --- the packages


def test_a_module_that_is_read_imports_no_tracker_and_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from fieldguide import tracking;"
        "tracking.start('none', Path('nowhere'), print).close();"
        "print([n for n in ('torch', 'mlflow', 'wandb', 'tensorboard') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("track", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_told_before_the_training_with_the_extra(
    track: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it raises ImportError
    with pytest.raises(UsageError, match=f"`track` = '{track}'") as error:
        start(track, tmp_path / "run", refuse)
    assert "fieldguide[track]" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_package_whose_import_breaks_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("raise TypeError('descriptors cannot be created')")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="TypeError: descriptors cannot be created"):
        start("wandb", tmp_path, refuse)


class Writer:
    made: dict[str, "Writer"]

    def __init__(self, place: str) -> None:
        self.made[place] = self
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def fake(name: str, monkeypatch: pytest.MonkeyPatch, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_tensorboard_gets_a_folder_a_fold_and_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "made", {}, raising=False)
    fake("torch.utils.tensorboard", monkeypatch, SummaryWriter=Writer)
    tracker = start("tensorboard", folder, refuse)
    for model in MODELS:
        for epoch in (1, 2):
            tracker.row(row(0, epoch, model))
    tracker.row(row(1, 1))
    tracker.close()
    places = [f"fold-0/{model}" for model in MODELS] + ["fold-1/merged"]
    assert list(Writer.made) == [str(folder / "tensorboard" / place) for place in places]
    first = Writer.made[str(folder / "tensorboard" / "fold-0" / "merged")]
    assert [s for s in first.scalars if s[0] == "test_loss"] == [
        ("test_loss", 1.5, 1),
        ("test_loss", 1.5, 2),
    ]
    assert not [name for name, *_ in first.scalars if name == "train_loss"]  # not measured
    assert all(writer.closed for writer in Writer.made.values())


class FakeMLflow:
    """Its client and its server in one: runs by id, with tags, parameters and metrics."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: list[str] = []

    def get_experiment_by_name(self, name: str) -> Any:
        known = name in self.experiments
        return SimpleNamespace(experiment_id=self.experiments.index(name)) if known else None

    def create_experiment(self, name: str) -> int:
        self.experiments.append(name)
        return len(self.experiments) - 1

    def search_runs(self, experiments: list[int], query: str) -> list[Any]:
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=run_id))
            for run_id, run in self.runs.items()
            for tag, value in run["tags"].items()
            if run["experiment"] in experiments and query == f"tags.{tag} = '{value}'"
        ]

    def create_run(self, experiment: int, *, run_name: str, tags: dict[str, str]) -> Any:
        run_id = f"run-{len(self.runs)}"
        self.runs[run_id] = {
            "experiment": experiment,
            "name": run_name,
            "tags": tags,
            "params": {},
            "metrics": [],
            "status": "RUNNING",
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, *, status: str) -> None:
        self.runs[run_id]["status"] = status

    def log_batch(self, run_id: str, *, metrics: Any = (), params: Any = ()) -> None:
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] |= dict(params)

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id]["status"] = "FINISHED"


def test_mlflow_gets_one_run_that_goes_on_when_the_fit_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    server = FakeMLflow()
    entities = SimpleNamespace(
        Metric=lambda name, value, now, step: (name, value, step),
        Param=lambda name, value: (name, value),
    )
    fake("mlflow", monkeypatch, MlflowClient=lambda: server, entities=entities)
    for epochs in ((1, 2), (2, 3)):  # the second comes again through epoch 2
        tracker = start("mlflow", folder, refuse)
        for epoch in epochs:
            tracker.row(row(epoch=epoch))
        tracker.close()
    ((_, found),) = server.runs.items()
    assert server.experiments == ["fieldguide"]
    assert found["name"] == folder.name
    assert found["status"] == "FINISHED"
    assert found["params"]["backbone"] == "test_resnet"
    accuracies = [m for m in found["metrics"] if m[0] == "test_accuracy/fold-0/merged"]
    assert accuracies == [("test_accuracy/fold-0/merged", 0.25, epoch) for epoch in (1, 2, 3)]


class FakeWandB:
    def __init__(self) -> None:
        self.setups: list[Any] = []
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[Any] = []
        self.finished = 0

    def setup(self, settings: Any) -> None:
        self.setups.append(settings)

    def init(self, **arguments: Any) -> "FakeWandB":
        assert self.setups  # silent before the run, or it would ask for a key
        self.inits.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_one_run_under_one_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "owls")
    server = FakeWandB()
    fake("wandb", monkeypatch, init=server.init, setup=server.setup, Settings=dict)
    for epochs in ((1, 2), (2, 3)):
        tracker = start("wandb", folder, refuse)
        for epoch in epochs:
            tracker.row(row(epoch=epoch))
        tracker.close()
    first, second = server.inits
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("owls", folder.name, "allow")
    assert first["dir"] == str(folder)
    assert first["settings"]["disable_code"] and first["settings"]["x_disable_meta"]
    assert [values["epoch"] for values in server.logged] == [1, 2, 3]
    assert server.logged[0]["test_loss/fold-0/merged"] == 1.5
    assert server.metrics[:2] == [("epoch", None), ("*", "epoch")]
    assert server.finished == 2


def test_an_adapter_that_fails_leaves_the_events(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    fake("wandb", monkeypatch)  # without anything in it
    tracker = start("wandb", folder, told.append)
    for epoch in (1, 2):
        tracker.row(row(epoch=epoch))
    tracker.close()
    assert len(lines(folder / EVENTS)) == 2
    assert len(told) == 1 and "wandb" in told[0] and EVENTS in told[0]


# --- the real packages, where they are installed

# What they use of others in a way that will end is not for us to mend.
theirs = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MEASURED = [(1, 0.25), (2, 0.5), (3, 0.75)]  # epochs and accuracies


def tell(track: Any, folder: Path, *parts: tuple[int, ...]) -> None:
    """Rows of the epochs of each part of a fit that was cut short and went on."""
    for epochs in parts:
        tracker = start(track, folder, refuse)
        for epoch in epochs:
            for model in MODELS[1:]:
                tracker.row(row(epoch=epoch, model=model, test_accuracy=epoch / 4))
        tracker.close()


@theirs
def test_the_real_tensorboard_reads_what_was_written(folder: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tell("tensorboard", folder, (1, 2), (2, 3))
    for model in MODELS[1:]:
        events = reading.EventAccumulator(str(folder / "tensorboard" / "fold-0" / model))
        events.Reload()
        assert [(e.step, e.value) for e in events.Scalars("test_accuracy")] == MEASURED
        assert "train_loss" not in events.Tags()["scalars"]  # it was not measured


@theirs
@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_the_real_mlflow_reads_what_was_written(
    store: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = (
        f"sqlite:///{tmp_path / 'store.db'}" if store == "sqlite" else (tmp_path / "store").as_uri()
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    mlflow = pytest.importorskip("mlflow")
    if store == "sqlite":
        pytest.importorskip("sqlalchemy")  # the small package comes without
    tell("mlflow", folder, (1, 2), (2, 3))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fieldguide")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (folder.name, "FINISHED")
    assert found.data.params["backbone"] == "test_resnet"
    for model in MODELS[1:]:
        history = client.get_metric_history(found.info.run_id, f"test_accuracy/fold-0/{model}")
        assert [(metric.step, metric.value) for metric in history] == MEASURED
    assert not [name for name in found.data.metrics if "train_loss" in name]  # not measured


@theirs
def test_the_real_wandb_keeps_what_was_told_and_no_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    pytest.importorskip("wandb")
    tell("wandb", folder, (1, 2))
    (kept,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert kept.stem == f"run-{About.of(folder).id}"
    content = kept.read_bytes()  # records of its own kind, but names and values in plain letters
    for name in ("test_resnet", *(f"test_accuracy/fold-0/{model}" for model in MODELS[1:])):
        assert name.encode() in content
    assert str(tmp_path).encode() not in content
