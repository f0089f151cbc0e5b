import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fits import results, small_fit, small_recipe
from side_folds import made

import fieldguide as fg
from fieldguide.compare.compare import compare
from fieldguide.compare.results import rebuilt
from fieldguide.compare.trials import trials
from fieldguide.errors import ResourceError, Stopped, TrainingError, UsageError
from fieldguide.fitting import places
from fieldguide.fitting.progress import Plan, Watcher
from fieldguide.machine import ray_jobs
from fieldguide.machine.controls import Controls, TrainFold
from fieldguide.machine.ray_jobs import _Heard, train_on_cluster
from fieldguide.storage import files

ONE_CORE = {"num_cpus": 1.0}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, with two cores."""
    pytest.importorskip("ray")
    found = ray_jobs._imported()
    with pytest.MonkeyPatch.context() as patch:  # processes are started with what is here now
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        found.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield found
    found.shutdown()


def test_what_a_job_does_again_is_told_once() -> None:
    told: list[Any] = []
    notices: list[str] = []
    heard = _Heard(
        Controls(
            on_resume=lambda steps: told.append(("resume", steps)),
            on_step=lambda: told.append("step"),
            on_row=lambda row: told.append(row["epoch"]),
            notice=notices.append,
        )
    )
    row = (0, "on_row", ({"epoch": 1, "model": "merged"},))
    step = (0, "on_step", ())
    heard.pass_on([(0, "on_resume", (4,)), step, step, row, step])  # at step 7; then it dies
    heard.pass_on([(0, "on_resume", (5,)), step, row, step, step, step])  # from step 5
    assert told == [("resume", 4), "step", "step", 1, "step", "step", "step"]
    heard.pass_on([(0, "on_resume", (12,)), (1, "on_resume", (0,)), (1, "on_step", ())])
    assert told[7:] == [("resume", 3), "step"]
    assert [notice.split(": ")[1] for notice in notices] == [
        "2 steps are trained again",
        "0 steps are trained again",
    ]


@pytest.mark.parametrize("address", ["nowhere", "host:", ":6379", "ray://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="is no address"):
        ray_jobs.require_address(address)


def test_an_address_where_nobody_listens_is_told_before_any_work(
    discs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ResourceError, match=f"no Ray cluster at `127.0.0.1:{port}`: .*refused"):
        small_fit(discs, tmp_path / "run", cluster=f"127.0.0.1:{port}")
    assert not (tmp_path / "run" / "setup.json").exists()


def test_an_address_that_never_answers_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_jobs, "JOIN", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ResourceError, match=f"no Ray cluster at `{address}`: no answer"):
            ray_jobs._require_cluster(address)
    assert time.monotonic() - started < 30


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match="Ray, which is not installed") as error:
        ray_jobs._imported()
    assert "fieldguide[cluster]" in error.value.hint


class NotThere:
    """What another machine cannot make sense of."""

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, ("no_such_module",)

    def __call__(self, controls: Controls) -> TrainFold:
        raise AssertionError


def test_every_fold_is_a_job_and_what_it_tells_is_heard(ray: Any, tmp_path: Path) -> None:
    rows: list[int] = []
    steps: list[None] = []
    notices: list[str] = []
    controls = Controls(
        on_row=lambda row: rows.append(row["fold"]),
        on_step=lambda: steps.append(None),
        notice=notices.append,
    )
    train_on_cluster(partial(made, "ends", tmp_path), [0, 1, 2, 4], "local", ONE_CORE, controls)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["0", "1", "2", "4"]
    assert sorted(rows) == [0, 1, 2, 4]
    assert len(steps) == 4 * 3
    assert sorted(notices) == [f"fold {fold} is done" for fold in (0, 1, 2, 4)]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("fails", TrainingError, "fold 1 diverged"),
        ("is mistaken", KeyError, "no such thing"),
        ("dies", ResourceError, "what trained fold 1 died 4 times"),
    ],
)
def test_what_goes_wrong_in_one_stops_all(
    how: str, error: type[Exception], message: str, ray: Any, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=message):
        train_on_cluster(partial(made, how, tmp_path), [0, 1], "local", ONE_CORE, Controls())
    begun = [path.name for path in tmp_path.iterdir() if path.name.startswith("1-")]
    assert len(begun) == (ray_jobs.RETRIES + 1 if how == "dies" else 1)
    assert time.monotonic() - started < 45  # fold 0 would take a minute


def test_whoever_wants_to_stop_is_heard(ray: Any, tmp_path: Path) -> None:
    heard: list[None] = []

    def check_stop() -> None:
        if heard:
            raise Stopped(signal.SIGINT)

    controls = Controls(on_step=lambda: heard.append(None), check_stop=check_stop)
    started = time.monotonic()
    with pytest.raises(Stopped) as error:
        train_on_cluster(partial(made, "goes on", tmp_path), [0, 1, 2], "local", ONE_CORE, controls)
    assert error.value.exit_code == 130
    assert time.monotonic() - started < 30


def test_a_machine_that_lacks_the_code_is_no_crash(ray: Any) -> None:
    with pytest.raises(ResourceError, match=r"fold 3 could not be begun .*: .*no_such_module"):
        train_on_cluster(NotThere(), [3], "local", ONE_CORE, Controls())


def test_a_cluster_without_such_a_machine_is_refused(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"no machine of the cluster .* needs: 99 CPU"):
        train_on_cluster(
            partial(made, "ends", tmp_path), [0], "local", {"num_cpus": 99.0}, Controls()
        )


def test_a_fit_on_a_cluster_has_the_bits_of_one_in_sequence(
    ray: Any, discs: Path, tmp_path: Path
) -> None:
    one = small_fit(discs, tmp_path / "one", folds=3, workers=1)
    two = small_fit(discs, tmp_path / "two", folds=3, cluster="local")
    assert one.environment["threads"] == two.environment["threads"]
    assert results(two) == results(one)


def test_trials_are_trained_at_the_same_time_as_in_sequence(
    ray: Any, discs: Path, tmp_path: Path
) -> None:
    here, there = small_recipe(workers=1), small_recipe(cluster="local")
    vary = {"head_rate": [1e30, 0.003]}
    catalog = fg.scan(discs)
    one = compare(catalog, trials(here, vary), tmp_path / "one")
    rows: list[Any] = []
    plans: list[Plan] = []
    steps: list[int] = []
    notices: list[str] = []
    watcher = Watcher(
        on_row=rows.append,
        on_plan=plans.append,
        on_step=lambda: steps.append(1),
        notice=notices.append,
    )
    tried = trials(there, vary)
    two = compare(catalog, tried, tmp_path / "two", watcher=watcher)
    assert [row.status for row in two.rows] == ["complete", "failed", "complete"]
    for trial in (tried[0], tried[2]):
        runs = [fg.Run(tmp_path / name / trial.folder) for name in ("one", "two")]
        assert results(runs[0]) == results(runs[1])
    assert [row.contrast for row in two.rows] == [row.contrast for row in one.rows]
    assert {row["trial"] for row in rows} == {trial.name for trial in tried}
    assert [(plan.trials, len(plan.folds)) for plan in plans] == [(3, 6)]
    assert plans[0].steps * 2 / 3 <= len(steps) < plans[0].steps
    assert any(text.endswith("of the whole cluster") for text in notices)
    # What is over is not trained again, and needs no cluster.
    gone = [replace(trial, recipe=trial.recipe.replace(cluster="h:1")) for trial in tried]
    assert compare(catalog, gone, tmp_path / "two").rows == two.rows


def test_a_comparison_that_is_stopped_keeps_what_its_trials_have_done(
    ray: Any, discs: Path, tmp_path: Path
) -> None:
    tried = trials(small_recipe(cluster="local", epochs=40), {"seed": [1]})
    steps: list[int] = []

    def check_stop() -> None:
        if len(steps) >= 6:
            raise Stopped(signal.SIGINT)

    watcher = Watcher(on_step=lambda: steps.append(1), check_stop=check_stop)
    with pytest.raises(Stopped) as error:
        compare(fg.scan(discs), tried, tmp_path / "out", watcher=watcher)
    assert error.value.exit_code in {130, 143}
    saved = list((tmp_path / "out").glob("*/folds/*/checkpoint/*"))
    assert len({path.parent for path in saved}) >= 2
    assert [row.status for row in rebuilt(tmp_path / "out").rows] == ["unfinished"] * 2


def test_a_machine_with_other_photos_is_refused(ray: Any, discs: Path, tmp_path: Path) -> None:
    run = small_fit(discs, tmp_path / "run", fold=0, epochs=1, warmup=0.0)
    recipe, expected = run.recipe, places._fingerprint(run, discs)
    assert places._fingerprint(run, discs) == expected
    other = {**expected, "photos": "0123456789ab", "torch": "1.0"}
    with pytest.raises(ResourceError, match=r"differs .*photos: .*, not 0123456789ab; torch: "):
        places._distant_trainer(run.folder, discs, recipe, other, Controls())
    with pytest.raises(ResourceError, match="does not see the run's folder"):
        places._distant_trainer(tmp_path / "no", discs, recipe, expected, Controls())


def test_a_fold_is_trained_by_one_job_at_a_time(
    monkeypatch: pytest.MonkeyPatch, discs: Path, tmp_path: Path
) -> None:
    run = small_fit(discs, tmp_path / "run", fold=0, epochs=1, warmup=0.0)
    told: list[object] = []
    expected = places._fingerprint(run, discs)
    monkeypatch.setattr(places, "TAKEN_FOR_DEAD", 0.2)
    train = places._distant_trainer(
        run.folder, discs, run.recipe, expected, Controls(on_row=told.append)
    )
    train(0)  # one that was taken for dead has ended it
    assert not told
    place = run.fold_folder(1)
    place.mkdir()
    with files.lock(place), pytest.raises(ResourceError, match="is in use"):
        train(1)  # or is still at it
    assert not told
    train(1)
    assert told
    assert run.done == [0, 1]


def test_a_machine_that_dies_costs_no_fold(discs: Path, tmp_path: Path) -> None:
    """Three machines, one of them for this process alone; one of the others is killed at work."""
    utils = pytest.importorskip("ray.cluster_utils")
    ray = ray_jobs._imported()
    ray.shutdown()
    machines = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [machines.add_node(num_cpus=1) for _ in range(2)]
    one = small_fit(discs, tmp_path / "one", folds=3, workers=1, epochs=3)
    steps: list[None] = []
    plans: list[Plan] = []

    def on_step() -> None:
        steps.append(None)
        if len(steps) == 8:
            machines.remove_node(nodes[0], allow_graceful=False)

    try:
        watcher = Watcher(on_step=on_step, on_plan=plans.append)
        two = small_fit(
            discs, tmp_path / "two", folds=3, epochs=3, cluster=machines.address, watcher=watcher
        )
    finally:
        ray.shutdown()
        machines.shutdown()
    assert results(two) == results(one)
    assert len(steps) == plans[0].steps
