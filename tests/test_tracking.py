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
from fieldguide.errors import UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.runs.tracking import EVENTS, Guard, Tracker, about, figures, named_figures, start

MODELS = ("replica-1", "replica-2", "merged")
OTHERS = MODELS[1:]


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


def send(tracker: Tracker | Guard, *epochs: int) -> None:
    """Rows of these epochs, and the end."""
    for epoch in epochs:
        tracker.row(row(epoch=epoch))
    tracker.close()


class Recorder:
    """A tracker that remembers, and does at each call what it is asked to."""

    def __init__(self, act: Callable[[str, int], None] = lambda call, n: None) -> None:
        self.act = act
        self.calls: list[str] = []
        self.rows: list[Any] = []
        self.threads: set[int] = set()

    def __call__(self, rows: Iterator[Any]) -> None:
        self.note("open")
        for row in rows:
            self.note("row")
            self.rows.append(row)
        self.note("close")

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())
        self.act(call, self.calls.count(call))


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a hanging tracker waits for; set at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


def failing(where: str, nth: int, error: BaseException) -> Recorder:
    def act(call: str, n: int) -> None:
        if (call, n) == (where, nth):
            raise error

    return Recorder(act)


def hanging(where: str, never: threading.Event) -> Recorder:
    return Recorder(lambda call, n: None if call != where else assert_true(never.wait(60)))


def assert_true(value: bool) -> None:
    assert value


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


@given(ROWS)
def test_every_row_is_written_and_sent_once_in_order(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path, recorder = Path(name) / EVENTS, Recorder()
        tracker = Tracker(path, refuse, Guard("fake", recorder, refuse))
        for each in rows:
            tracker.row(each)
        tracker.close()
        first = list(dict.fromkeys(map(key, rows)))
        assert [key(each) for each in recorder.rows] == first
        assert not rows or [key(each) for each in lines(path)] == first


def test_a_file_cut_at_any_byte_is_mended_by_coming_again_through_all_rows(tmp_path: Path) -> None:
    rows = [row(epoch=epoch, model=model) for epoch in (1, 2) for model in OTHERS]
    path = tmp_path / EVENTS
    for each in rows:
        Tracker(path, refuse).row(each)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        tracker = Tracker(path, refuse)
        for each in rows:
            tracker.row(each)
        assert path.read_bytes() == whole


def test_nothing_is_written_or_opened_before_the_first_row(tmp_path: Path) -> None:
    recorder = Recorder()
    Tracker(tmp_path / "run" / EVENTS, refuse, Guard("fake", recorder, refuse)).close()
    assert list(tmp_path.iterdir()) == recorder.calls == []


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    Tracker(tmp_path / EVENTS, refuse).row(row(test_loss=float("nan"), train_loss=float("inf")))
    assert lines(tmp_path / EVENTS) == [row(test_loss=None, train_loss=None)]


def test_a_strange_file_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    strange = b'\xff\xfe\n[1]\n{half\n\n{"fold": [1], "epoch": {}}\nnull\n'
    path.write_bytes(strange + json.dumps(row()).encode() + b"\n")
    for epoch in (1, 2):
        Tracker(path, refuse).row(row(epoch=epoch))
    added = path.read_bytes().removeprefix(strange)
    assert [json.loads(line) for line in added.splitlines()] == [row(), row(epoch=2)]


@pytest.mark.parametrize("place", ["gone/events.jsonl", "."])
def test_a_file_that_cannot_be_written_is_reported_once_and_hinders_nothing(
    place: str, tmp_path: Path
) -> None:
    messages: list[str] = []
    recorder = Recorder()
    send(Tracker(tmp_path / place, messages.append, Guard("fake", recorder, refuse)), 1, 2, 2)
    assert [each["epoch"] for each in recorder.rows] == [1, 2]
    assert len(messages) == 1 and "cannot be written" in messages[0]


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


def test_all_rows_arrive_in_order_in_one_thread_that_is_not_the_fits() -> None:
    """A slow tracker gets every row, as it was, and holds up none."""
    recorder = Recorder(lambda call, n: time.sleep(0.02))
    guard = Guard("fake", recorder, refuse)
    rows = [row(epoch=epoch) for epoch in range(1, 21)]
    for each in rows:
        changing = dict(each)
        guard.row(changing)
        changing["test_loss"] = 99.0
    assert len(recorder.rows) < 20
    guard.close()
    assert recorder.rows == rows
    assert recorder.calls == ["open", *["row"] * len(rows), "close"]
    assert len(recorder.threads) == 1 and threading.get_ident() not in recorder.threads


@pytest.mark.parametrize(
    "error", [OSError("no route to host"), SystemExit(3), KeyboardInterrupt("login")]
)
@pytest.mark.parametrize("where", [("open", 1), ("row", 2), ("close", 1)])
def test_what_fails_is_reported_once_and_then_off(
    where: tuple[str, int], error: BaseException
) -> None:
    messages: list[str] = []
    recorder = failing(*where, error)
    guard = Guard("fake", recorder, messages.append)
    send(guard, 1, 2, 3, 4)
    send(guard, 5)
    (message,) = messages
    assert "fake" in message and type(error).__name__ in message and str(error) in message
    assert recorder.calls[-1] == where[0]  # it is not called again


def test_a_failure_is_reported_while_the_fit_goes_on_and_in_its_thread() -> None:
    threads: list[int] = []
    recorder = failing("open", 1, OSError("refused"))
    guard = Guard("fake", recorder, lambda message: threads.append(threading.get_ident()))
    guard.row(row())
    guard.thread.join(10)
    guard.row(row(epoch=2))
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("where", ["open", "row", "close"])
def test_a_hanging_tracker_holds_up_no_row_and_the_end_no_longer_than_the_limit(
    where: str, never: threading.Event
) -> None:
    messages: list[str] = []
    recorder = hanging(where, never)
    guard = Guard("fake", recorder, messages.append, limit=0.2)
    begun = time.monotonic()
    send(guard, 1, 2, 3)
    guard.close()
    assert time.monotonic() - begun < 20  # of 60 that it hangs
    assert len(messages) == 1 and "no answer within 0.2 s" in messages[0]
    calls = list(recorder.calls)
    never.set()
    guard.thread.join(10)
    assert not guard.thread.is_alive()
    assert recorder.calls == calls  # when it wakes it does nothing more


def test_rows_that_nobody_takes_do_not_fill_the_memory(never: threading.Event) -> None:
    messages: list[str] = []
    guard = Guard("fake", hanging("open", never), messages.append, size=4)
    begun = time.monotonic()
    send(guard, *range(1, 100))
    assert time.monotonic() - begun < 20
    assert guard.rows.qsize() <= 4
    assert len(messages) == 1 and "4 rows wait" in messages[0]


def test_no_password_is_reported() -> None:
    messages: list[str] = []
    error = OSError("cannot reach https://anna:secret@example.com:80/api?x=1\nlong trace")
    send(Guard("fake", failing("open", 1, error), messages.append), 1)
    (message,) = messages
    assert not [word for word in ("secret", "anna", "long trace") if word in message]
    assert "example.com" in message


def test_a_fit_whose_tracker_hangs_or_fails_has_the_same_bits(
    discs: Path, run: fg.Run, tmp_path: Path, never: threading.Event
) -> None:
    for number, recorder in enumerate((hanging("row", never), failing("row", 1, ValueError()))):
        guard = Guard("fake", recorder, lambda message: None, limit=0.1)
        same = small_fit(
            *(discs, tmp_path / str(number)),
            **{"fold": 0, "epochs": 1, "warmup": 0.0, "watcher": Watcher(on_row=guard.row)},
        )
        guard.close()
        assert results(same) == results(run)


def test_figures_are_what_was_measured() -> None:
    full = row(steps=5, test_loss=float("nan"), diverged=True)
    assert figures(full) == {"test_accuracy": 0.25, "steps": 5, "diverged": True}
    assert figures({"fold": 3, "epoch": 1, "model": "merged"}) == {}
    names = [name for fold in (0, 1) for m in MODELS for name in named_figures(row(fold, model=m))]
    assert len(set(names)) == len(names)
    assert "test_loss/fold-0/merged" in names


def test_a_run_is_known_by_an_id_of_its_own_and_its_place_stays_private(
    folder: Path, tmp_path: Path, run: fg.Run
) -> None:
    assert about(run.folder) == about(folder)  # wherever it lies
    own_id, name, _ = about(folder)
    assert name == run.folder.name
    weights = tmp_path / "home" / "ann" / "first.safetensors"
    text = (run.folder / "recipe.toml").read_text().replace('"none"', json.dumps(str(weights)), 1)
    (folder / "recipe.toml").write_text(text)
    (folder / "setup.json").write_text("{}")
    other_id, _, settings = about(folder)
    assert other_id != own_id
    assert settings["weights"] == "first.safetensors"
    assert str(tmp_path) not in json.dumps(settings)


def test_a_module_that_is_read_imports_no_tracker_and_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from fieldguide.runs import tracking;"
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


def fake(name: str, monkeypatch: pytest.MonkeyPatch, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_tensorboard_gets_a_folder_a_fold_and_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def writer(place: str) -> Any:
        name = Path(place).relative_to(folder / "tensorboard").as_posix()
        calls.append((name, "opened"))
        return SimpleNamespace(
            add_scalar=lambda *scalar: calls.append((name, *scalar)),
            flush=lambda: None,
            close=lambda: calls.append((name, "closed")),
        )

    fake("torch.utils.tensorboard", monkeypatch, SummaryWriter=writer)
    tracker = start("tensorboard", folder, refuse)
    for model in MODELS:
        for epoch in (1, 2):
            tracker.row(row(0, epoch, model))
    tracker.row(row(1, 1))
    tracker.close()
    places = [*(f"fold-0/{model}" for model in MODELS), "fold-1/merged"]
    for state in ("opened", "closed"):
        assert [call[0] for call in calls if call[1] == state] == places
    merged = [call for call in calls if call[0] == "fold-0/merged" and call[1] == "test_loss"]
    assert merged == [("fold-0/merged", "test_loss", 1.5, epoch) for epoch in (1, 2)]
    assert "train_loss" not in [call[1] for call in calls]  # not measured


class FakeMLflow(SimpleNamespace):
    """Client and server in one, with one experiment and one run."""

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return name

    def search_runs(self, experiments: list[str], query: str) -> list[Any]:
        assert experiments == self.experiments
        return [self] if query in self.tags else []

    def create_run(self, experiment: str, *, run_name: str, tags: dict[str, str]) -> Any:
        self.names.append((experiment, run_name))
        self.tags += [f"tags.{tag} = '{value}'" for tag, value in tags.items()]
        return self

    def update_run(self, run_id: str, *, status: str) -> None:
        self.statuses.append(status)

    def log_batch(self, run_id: str, *, metrics: Any = (), params: Any = ()) -> None:
        self.metrics += metrics
        self.params |= dict(params)

    def set_terminated(self, run_id: str) -> None:
        self.statuses.append("FINISHED")


def test_mlflow_gets_one_run_that_goes_on_when_the_fit_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    server = FakeMLflow(experiments=[], names=[], tags=[], statuses=[], metrics=[], params={})
    server.info = SimpleNamespace(run_id="own")
    entities = SimpleNamespace(
        Metric=lambda name, value, now, step: (name, value, step),
        Param=lambda name, value: (name, value),
    )
    fake("mlflow", monkeypatch, MlflowClient=lambda: server, entities=entities)
    for epochs in ((1, 2), (2, 3)):  # the second comes again through epoch 2
        send(start("mlflow", folder, refuse), *epochs)
    assert server.names == [("fieldguide", folder.name)]
    assert server.statuses == ["FINISHED", "RUNNING", "FINISHED"]
    assert server.params["backbone"] == "test_resnet"
    accuracies = [m for m in server.metrics if m[0] == "test_accuracy/fold-0/merged"]
    assert accuracies == [("test_accuracy/fold-0/merged", 0.25, epoch) for epoch in (1, 2, 3)]


def test_wandb_gets_one_run_under_one_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "owls")
    calls: list[tuple[str, Any]] = []

    def called(name: str) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            calls.append((name, values + ((named,) if named else ())))
            return run

        return call

    names = ("setup", "init", "define_metric", "log", "finish")
    run = SimpleNamespace(**{name: called(name) for name in names})
    fake("wandb", monkeypatch, init=run.init, setup=run.setup, Settings=dict)
    for epochs in ((1, 2), (2, 3)):
        send(start("wandb", folder, refuse), *epochs)
    # Silent before the run, or it would ask for a key.
    assert [name for name, _ in calls[:4]] == ["setup", "init", "define_metric", "define_metric"]
    assert [values for _, values in calls[2:4]] == [("epoch",), ("*", {"step_metric": "epoch"})]
    first, second = (values[0] for name, values in calls if name == "init")
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("owls", folder.name, "allow")
    assert first["dir"] == str(folder)
    assert first["settings"]["disable_code"] and first["settings"]["x_disable_meta"]
    logged = [values[0] for name, values in calls if name == "log"]
    assert [values["epoch"] for values in logged] == [1, 2, 3]
    assert logged[0]["test_loss/fold-0/merged"] == 1.5
    assert [name for name, _ in calls].count("finish") == 2


def test_an_adapter_that_fails_leaves_the_events(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    fake("wandb", monkeypatch)  # without anything in it
    send(start("wandb", folder, told.append), 1, 2)
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
            for model in OTHERS:
                tracker.row(row(epoch=epoch, model=model, test_accuracy=epoch / 4))
        tracker.close()


@theirs
def test_the_real_tensorboard_reads_what_was_written(folder: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tell("tensorboard", folder, (1, 2), (2, 3))
    for model in OTHERS:
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
    for model in OTHERS:
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
    assert kept.stem == f"run-{about(folder)[0]}"
    content = kept.read_bytes()  # records of its own kind, but names and values in plain letters
    for name in ("test_resnet", *(f"test_accuracy/fold-0/{model}" for model in OTHERS)):
        assert name.encode() in content
    assert str(tmp_path).encode() not in content
