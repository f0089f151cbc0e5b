"""Ranks are forks of the test's process, which have met at a free port of this machine."""

import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import SMALL, Killed, killer, results, small_fit
from forks import EVERY_STEP, as_rank, curves, fitted_on_ranks, free_port, needs_fork, on_ranks

import fieldguide as fg
from fieldguide import cli
from fieldguide.errors import DataError, ResourceError, Stopped, UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.machine import ranks as ranking
from fieldguide.machine.ranks import ALONE, Ranks, joined
from fieldguide.machine.torchrun import Launch, launch
from fieldguide.train import evaluate, loop
from fieldguide.train import job as jobs
from fieldguide.train import step as steps

pytestmark = needs_fork


def test_a_process_alone_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launch() == Launch(0, 1, 0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert launch() == Launch()


def test_what_torchrun_tells_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert launch() == Launch(5, 8, 1, 4)
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(UsageError, match="RANK = 8 is none of 0 to 7"):
        launch()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UsageError, match="RANK = 'first' is no number"):
        launch()


def test_alone_everything_is_as_it_was_given() -> None:
    weights = {"w": torch.ones(2)}
    assert ALONE.first and ALONE.exchange(3) == ALONE.collect(3) == [3]
    assert ALONE.announce(3) == 3 and ALONE.agree(None, True) == (None, True)
    assert ALONE.gather(weights) == [weights] and ALONE.same(weights) == weights


def test_weights_are_gathered_in_order_with_shapes_and_types(tmp_path: Path) -> None:
    def weights(rank: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(rank)
        made = {
            "a": torch.randn(3, 4, generator=generator),
            "count": torch.tensor(rank),
            "half": torch.randn(5, generator=generator).bfloat16(),
            "b": torch.randn((), generator=generator),
        }
        return dict(reversed(made.items())) if rank else made  # in another order

    def work(rank: int) -> Any:
        with joined("cpu", 4) as ranks:
            return ranks.gather(weights(rank)), ranks.same(weights(rank))

    for copies, first in on_ranks(2, work, tmp_path / "ranks"):
        for found, expected in zip((*copies, first), map(weights, (0, 1, 0)), strict=True):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert all(found[name].dtype == expected[name].dtype for name in expected)


def test_values_are_exchanged_collected_and_announced(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        with joined("cpu", 2) as ranks:
            return ranks.exchange(f"r{rank}"), ranks.collect(rank), ranks.announce(rank + 7)

    assert on_ranks(2, work, tmp_path / "ranks") == [
        (["r0", "r1"], [0, 1], 7),
        (["r0", "r1"], [], 7),
    ]


def test_one_that_has_to_stop_stops_all_and_so_does_one_that_has_to_save(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        with joined("cpu", 2) as ranks:
            nothing = ranks.agree(None, False)
            due = ranks.agree(None, rank == 1)
            stop, _ = ranks.agree(Stopped(signal.SIGINT) if rank == 1 else None, False)
            assert isinstance(stop, Stopped)
            return nothing, due, stop.exit_code

    assert on_ranks(2, work, tmp_path / "ranks") == [((None, False), (None, True), 130)] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_ends_all_with_it(failing: int, tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        with joined("cpu", 2) as ranks:
            if rank == failing:
                raise DataError("the photos are gone", hint="bring them back")
            return ranks.exchange(rank)

    for found in on_ranks(2, work, tmp_path / "ranks"):
        assert isinstance(found, DataError)
        assert (found.message, found.hint) == ("the photos are gone", "bring them back")


def test_a_mistake_of_ours_is_told_with_its_rank(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        with joined("cpu", 2) as ranks:
            return ranks.exchange(1 // rank)

    found = on_ranks(2, work, tmp_path / "ranks")
    assert found[0].startswith("ZeroDivisionError")
    assert isinstance(found[1], ResourceError)
    assert found[1].message.startswith("rank 0 ended with ZeroDivisionError: ")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_noticed(killed: int, tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        with joined("cpu", 2) as ranks:
            ranks.exchange(rank)
            if rank == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            return ranks.exchange(rank)

    found = on_ranks(2, work, tmp_path / "ranks")
    assert found[killed] is None
    assert isinstance(found[1 - killed], ResourceError)
    assert found[1 - killed].message.startswith("another rank has ended without a word")


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_come_are_told_with_the_address(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    for name, value in as_rank(rank, 2, port).items():
        monkeypatch.setenv(name, value)
    assert timedelta(seconds=30) <= ranking.JOIN < timedelta(seconds=60)
    monkeypatch.setattr(ranking, "JOIN", timedelta(seconds=1))
    expected = f"rank {rank} did not meet all 2 ranks at `127.0.0.1:{port}` within 1 seconds"
    with pytest.raises(ResourceError, match=re.escape(expected)) as caught, joined("cpu", 2):
        raise AssertionError
    assert "MASTER_ADDR" in caught.value.hint


def test_ranks_without_an_address_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in as_rank(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ResourceError, match=r"at `127.0.0.1:\?`"), joined("cpu", 2):
        raise AssertionError


@pytest.mark.parametrize(("world", "replicas"), [(2, 1), (4, 2), (2, 3)])
def test_ranks_that_cannot_share_the_replicas_are_refused(
    world: int, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in as_rank(0, world, 1).items():
        monkeypatch.setenv(name, value)
    message = f"{world} ranks cannot share `replicas` = {replicas}"
    with pytest.raises(UsageError, match=message), joined("cpu", replicas):
        raise AssertionError


def test_a_gpu_for_all_ranks_or_too_few_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in as_rank(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    message = "'cuda:0' would be for every rank"
    with pytest.raises(UsageError, match=message), joined("cuda:0", 2):
        raise AssertionError
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ResourceError, match="rank 1 has no GPU of its own: LOCAL_RANK = 1, GPUs: 1"),
        joined("auto", 2),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_norm": "average"},
        {"merge": "model_stock"},  # with batch norm measured anew
        {"moments": "average", "merge_every": 2, "epochs": 3, "keep_replicas": True},
        {"replica_data": "share", "outer": "momentum", "batch_size": 5},
        {"stop": "fold", "patience": 1, "epochs": 4, "moments": "reset"},
    ],
    ids=["average", "model_stock", "moments", "shares", "stop"],
)
def test_two_ranks_end_with_the_bits_of_one(
    settings: dict[str, Any], discs: Path, tmp_path: Path
) -> None:
    alone = small_fit(discs, tmp_path / "alone", **settings)
    both = fitted_on_ranks(2, discs, tmp_path / "both", **settings)
    assert results(both) == results(alone)
    for fold in alone.done:
        assert curves(both, fold) == curves(alone, fold)
    if settings.get("keep_replicas"):
        for one, other in zip(alone.replicas(0), both.replicas(0), strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in one)


def test_four_ranks_and_two_replicas_each_end_with_the_bits_of_one(
    discs: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"fold": 0, "replicas": 4, "batch_size": 3, "replica_data": "share"}
    alone = small_fit(discs, tmp_path / "alone", merge="model_stock", **settings)
    four = fitted_on_ranks(4, discs, tmp_path / "four", merge="model_stock", **settings)
    two = fitted_on_ranks(2, discs, tmp_path / "two", merge="model_stock", **settings)
    assert results(four) == results(two) == results(alone)


def test_a_diverged_replica_is_left_out_on_all_ranks(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = steps.train_step

    def spoiled(job: Any, replica: Any, batch: Any, *rest: Any, **more: Any) -> Any:
        step = original(job, replica, batch, *rest, **more)
        return None if spoil and first_photo(batch) in spoil else step

    def first_photo(batch: Any) -> int:
        return int(batch.photos[0])

    # Replica 2's first epoch: its batches are those of a fit without faults.
    seen: list[tuple[int, int]] = []
    spoil: set[int] = set()
    plan = jobs.training_plan

    def spy(rows: Any, batch_size: int, **where: int) -> Any:
        found = plan(rows, batch_size, **where)
        spoil.clear()
        if (where["replica"], where["epoch"]) == (1, 0):
            spoil.update(part[0].photo for part in found)
            seen.append((1, 0))
        return found

    monkeypatch.setattr(jobs, "training_plan", spy)
    monkeypatch.setattr(loop, "train_step", spoiled)
    alone = small_fit(discs, tmp_path / "alone", fold=0)
    assert seen
    both = fitted_on_ranks(2, discs, tmp_path / "both", fold=0)
    assert results(both) == results(alone)
    assert [row["diverged"] for row in curves(both, 0)] == ["False", "True", *4 * ["False"]]


def test_progress_counts_a_ranks_own_steps_and_notices_come_once(
    discs: Path, tmp_path: Path
) -> None:
    def work(rank: int) -> Any:
        plans: list[int] = []
        steps: list[int] = []
        watcher = Watcher(
            on_plan=lambda plan: plans.append(plan.steps), on_step=lambda: steps.append(1)
        )
        small_fit(discs, tmp_path / "run", watcher=watcher)
        return plans, len(steps)

    assert on_ranks(2, work, tmp_path / "ranks") == [([2 * 2 * 3], 2 * 2 * 3)] * 2


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("again", [1, 2])
def test_killed_on_ranks_and_resumed_on_as_many_or_one_ends_the_same(
    killed: int, again: int, discs: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"replicas": 2, "outer": "momentum", "merge_every": 2, "epochs": 3}
    alone = small_fit(discs, tmp_path / "alone", **settings)

    def work(rank: int) -> Any:
        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        count = iter(range(5))  # in the second epoch
        on_step = (lambda: next(count, None) is None and die()) if rank == killed else lambda: None
        watcher = Watcher(on_step=on_step)
        return small_fit(discs, tmp_path / "run", watcher=watcher, **settings, **EVERY_STEP)

    outcomes = on_ranks(2, work, tmp_path / "ranks")
    assert outcomes[killed] is None and isinstance(outcomes[1 - killed], ResourceError)
    assert list((tmp_path / "run" / "folds" / "0" / "checkpoint").glob("*.safetensors"))
    if again == 1:
        run = small_fit(discs, tmp_path / "run", **settings)
    else:
        run = fitted_on_ranks(2, discs, tmp_path / "run", **settings)
    assert results(run) == results(alone)


@pytest.mark.parametrize("step", [4, 8, 10])
def test_killed_alone_and_resumed_on_two_ranks_ends_the_same(
    step: int, discs: Path, tmp_path: Path
) -> None:
    """Within the first replica's epoch, the second's, and between epochs."""
    alone = small_fit(discs, tmp_path / "alone")
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(step)), **EVERY_STEP)
    assert results(fitted_on_ranks(2, discs, tmp_path / "run")) == results(alone)


def test_a_stop_of_one_rank_saves_and_stops_all_at_the_same_step(
    discs: Path, tmp_path: Path
) -> None:
    alone = small_fit(discs, tmp_path / "alone", fold=0)

    def work(rank: int) -> Any:
        steps: list[int] = []

        def check_stop() -> None:
            if rank == 1 and len(steps) == 4:
                raise Stopped(signal.SIGINT)

        watcher = Watcher(on_step=lambda: steps.append(1), check_stop=check_stop)
        try:
            small_fit(discs, tmp_path / "run", fold=0, watcher=watcher)
        except Stopped as stopped:
            return len(steps), stopped.exit_code
        return None

    assert on_ranks(2, work, tmp_path / "ranks") == [(4, 130)] * 2
    steps: list[int] = []
    watcher = Watcher(on_step=lambda: steps.append(1))
    run = small_fit(discs, tmp_path / "run", fold=0, watcher=watcher)
    assert len(steps) == 2 * 2 * 3 - 2 * 4  # epochs, replicas, steps: none twice
    assert results(run) == results(alone)


def test_a_complete_run_is_left_alone_on_ranks_too(discs: Path, tmp_path: Path) -> None:
    run = small_fit(discs, tmp_path / "run")
    before = (run.folder / "manifest.json").read_bytes()
    fitted_on_ranks(2, discs, run.folder)
    assert (run.folder / "manifest.json").read_bytes() == before


def test_what_the_first_rank_refuses_ends_all(discs: Path, tmp_path: Path) -> None:
    small_fit(discs, tmp_path / "run", fold=0)

    def work(rank: int) -> Any:
        return small_fit(discs, tmp_path / "run", head="se")

    for found in on_ranks(2, work, tmp_path / "ranks"):
        assert isinstance(found, UsageError) and "another recipe" in found.message


def test_ranks_that_do_not_see_the_run_say_so(discs: Path, tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        return small_fit(discs, tmp_path / f"run-{rank}")

    for found in on_ranks(2, work, tmp_path / "ranks"):
        assert isinstance(found, ResourceError)
        assert found.message == f"rank 1 does not see the run in `{tmp_path / 'run-1'}`"


@pytest.mark.parametrize(("photos", "world"), [(12, 2), (11, 4), (3, 4)])
def test_evaluation_looks_at_each_photo_once(
    photos: int, world: int, discs: Path, tmp_path: Path
) -> None:
    from fieldguide.fitting.jobs import fold_jobs

    run = small_fit(discs, tmp_path / "run", fold=0, epochs=1, warmup=0.0)
    job = fold_jobs(run, discs)(0)
    rows = job.train[:photos]
    expected = evaluate.evaluate(job, rows)

    class Counting(Ranks):
        """The ranks one after another; each one's part is computed here."""

        def exchange(self, value: Any) -> list[Any]:
            return [value if rank == self.rank else parts[rank] for rank in range(self.world)]

    parts: dict[int, Any] = {}
    for rank in range(world):
        plan = evaluate.evaluation_plan(rows, job.recipe.batch_size)
        parts[rank] = evaluate._evaluate(job, plan[rank::world])
    assert sum(len(part) for part in parts.values()) == photos
    for rank in range(world):
        assert np.array_equal(evaluate.evaluate(job, rows, Counting(Launch(rank, world))), expected)


@pytest.mark.usefixtures("plain_consoles")
def test_commands_other_than_fit_are_refused_on_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in as_rank(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert cli.run(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "only `fit` works on several ranks" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_torchrun_fits_as_one_process_does_and_tells_once(discs: Path, tmp_path: Path) -> None:
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    place = ["--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", *place, "-m", "fieldguide"]
    fit = ["fit", str(discs), f"--out={tmp_path / 'run'}", *settings, "--no-report"]
    done = subprocess.run([*command, *fit], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("out-of-fold accuracy") == 1
    assert done.stderr.count("fold 1  epoch  2  merged") == 1
    assert results(fg.Run(tmp_path / "run")) == results(small_fit(discs, tmp_path / "alone"))
