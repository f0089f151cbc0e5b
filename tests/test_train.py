import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import SMALL, results, small_fit, small_recipe

import fieldguide as fg
from fieldguide.errors import DataError, ResourceError, TrainingError, UsageError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Watcher
from fieldguide.machine.ranks import ALONE
from fieldguide.network.network import Network, load_weights, weights_of
from fieldguide.photos.batches import Draw
from fieldguide.train import job as jobs
from fieldguide.train import loop
from fieldguide.train import step as steps
from fieldguide.train.job import FoldJob
from fieldguide.train.loop import train_fold, train_mode
from fieldguide.train.merging import merge_replicas
from fieldguide.train.replica import Replica
from fieldguide.train.state import FoldState
from fieldguide.train.together import Together


@pytest.fixture
def job(discs: Path, tmp_path: Path) -> FoldJob:
    run = small_fit(discs, tmp_path / "job", fold=0, epochs=1, warmup=0.0, mix="none")
    found = fold_jobs(run, discs)(0)
    load_weights(found.network, found.start)
    return found


def history(run_folder: Path, fold: int = 0) -> list[dict[str, str]]:
    with (run_folder / "folds" / str(fold) / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_same_seed_same_bits_other_seed_other_bits(discs: Path, tmp_path: Path) -> None:
    one = results(small_fit(discs, tmp_path / "1", fold=0, seed=0))
    two = results(small_fit(discs, tmp_path / "2", fold=0, seed=0))
    other = results(small_fit(discs, tmp_path / "3", fold=0, seed=1))
    assert one == two
    assert one["0/weights.safetensors"] != other["0/weights.safetensors"]


def test_training_leaves_the_global_generator_alone(job: FoldJob) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_fold(job, None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop", ["none", "inner"])
def test_it_learns(stop: str, discs: Path, tmp_path: Path) -> None:
    run = small_fit(
        discs,
        tmp_path / "run",
        fold=0,
        epochs=12,
        backbone_rate=2e-3,
        head_rate=1e-2,
        mix="none",
        color_jitter=0.0,
        stop=stop,
        inner_share=0.3,
        patience=12,
    )
    assert run.scores.accuracy > 0.8  # chance: 0.33


def test_a_rate_of_1e20_ends_with_the_place_named(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as error:
        small_fit(discs, tmp_path / "run", backbone_rate=1e20, head_rate=1e20, epochs=4, folds=3)
    assert error.value.exit_code == 5
    assert "fold 0" in str(error.value)
    assert "replica 1, 2" in str(error.value)
    assert "epoch" in str(error.value) and "step" in str(error.value)
    for path in (tmp_path / "run").rglob("*.csv"):
        assert "nan" not in path.read_text().lower().replace("fountain", "")
        assert "inf" not in path.read_text().lower()


def spoil(monkeypatch: pytest.MonkeyPatch, replica: int, at: set[int]) -> None:
    """One replica's pictures become infinite at some steps of every epoch."""
    original = jobs.training_plan
    count = {"step": 0, "replica": -1}

    def plan(*args: Any, **options: Any) -> Any:
        count.update(step=0, replica=options["replica"])
        return original(*args, **options)

    mix = steps.mix_batch

    def spoilt(images: torch.Tensor, *args: Any, **options: Any) -> Any:
        bad = count["replica"] == replica and count["step"] in at
        count["step"] += 1
        mixed, shares = mix(images, *args, **options)
        return (mixed * float("inf") if bad else mixed), shares

    monkeypatch.setattr(jobs, "training_plan", plan)
    monkeypatch.setattr(steps, "mix_batch", spoilt)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, replica=1, at={1})
    run = small_fit(discs, tmp_path / "run", fold=0)
    rows = history(tmp_path / "run")
    assert [(row["model"], row["skipped"]) for row in rows[:2]] == [
        ("replica-1", "0"),
        ("replica-2", "1"),
    ]
    assert all(row["diverged"] == "False" for row in rows)
    assert all(np.isfinite(array).all() for array in run.weights(0).values())


def test_a_skipped_step_changes_nothing(job: FoldJob, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: tensor.clone() for name, tensor in job.network.state_dict().items()}
    replica = Replica.of(job)
    batch = next(job.loader.batches([[Draw(0, 1), Draw(1, 2)]]))
    train_mode(job.network)
    with monkeypatch.context() as patch:
        patch.setattr(job.normalise, "centre", torch.full((3, 1, 1), float("inf")))
        assert steps.train_step(job, replica, batch, seed=1) is None
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in job.network.state_dict().items()
    )
    assert steps.train_step(job, replica, batch, seed=1) is not None
    assert not torch.equal(job.network.state_dict()["head.linear.bias"], before["head.linear.bias"])


@pytest.mark.parametrize("mix", ["none", "cutmix"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_tells_the_share_of_the_target_under_the_highest_logit(
    job: FoldJob, mix: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job, recipe=job.recipe.replace(mix=mix))
    replica = Replica.of(job)
    batch = next(job.loader.batches([[Draw(row, row) for row in range(12)]]))
    replica.parts = parts
    job.network.eval()  # so that parts are normalised alike
    original, mixed = steps.mix_batch, []

    def spy(*args: Any, **settings: Any) -> Any:
        mixed.append(original(*args, **settings))
        return mixed[-1]

    monkeypatch.setattr(steps, "mix_batch", spy)
    with torch.no_grad():
        torch.manual_seed(1)
        images, shares = original(
            job.normalise(batch.images),
            torch.from_numpy(job.targets)[batch.photos],
            classes=job.classes,
            mix=job.recipe.mix,
            alpha=job.recipe.mix_alpha,
        )
        best = job.network(images).argmax(dim=1)
    step = steps.train_step(job, replica, batch, seed=1)
    assert step is not None
    assert torch.equal(mixed[0][1], shares)
    assert step.accuracy == pytest.approx(float(shares[torch.arange(12), best].mean()))


def test_a_diverged_replica_is_left_out_and_flagged(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[str] = []
    spoil(monkeypatch, replica=1, at={0, 1, 2})
    run = small_fit(
        discs,
        tmp_path / "run",
        fold=0,
        replicas=3,
        watcher=Watcher(notice=notices.append),
    )
    rows = history(tmp_path / "run")
    flags = {(row["epoch"], row["model"]): row["diverged"] for row in rows}
    assert {key for key, flag in flags.items() if flag == "True"} == {
        ("1", "replica-2"),
        ("2", "replica-2"),
    }
    assert "fold 0: replica 2 diverged in epoch 1 at step 3" in notices
    assert all(np.isfinite(array).all() for array in run.weights(0).values())
    with (run.fold_folder(0) / "merges.csv").open() as file:
        assert "nan" not in file.read()


def test_curves_follow_the_period_of_merging(discs: Path, tmp_path: Path) -> None:
    small_fit(discs, tmp_path / "run", fold=0, replicas=3, merge_every=2, epochs=5)
    rows = history(tmp_path / "run")
    assert [int(row["epoch"]) for row in rows if row["model"] == "merged"] == [2, 4, 5]
    assert sum(row["model"] == "replica-3" for row in rows) == 5


def test_replicas_part_between_merges_and_meet_in_them(discs: Path, tmp_path: Path) -> None:
    """Merged at the end alone, replicas have moved further than when they meet every epoch."""
    often = small_fit(discs, tmp_path / "often", fold=0, epochs=4, keep_replicas=True)
    once = small_fit(discs, tmp_path / "once", fold=0, epochs=4, merge_every=4, keep_replicas=True)

    def distance(run: fg.Run) -> float:
        one, two = run.replicas(0)
        return sum(float(((one[n] - two[n]) ** 2).sum()) for n in one if n.endswith("weight"))

    assert distance(once) > 1.5 * distance(often) > 0
    merged = once.weights(0)
    one, two = once.replicas(0)
    for name in merged:
        if name.endswith(("weight", "bias")):
            np.testing.assert_allclose(merged[name], (one[name] + two[name]) / 2, atol=1e-6)


@pytest.mark.parametrize("moments", ["keep", "average", "reset"])
def test_moments_at_a_merge(moments: str, job: FoldJob) -> None:
    job = replace(job, recipe=job.recipe.replace(moments=moments))
    replicas = {number: Replica.of(job) for number in range(2)}
    start = {name: tensor.clone() for name, tensor in job.start.items()}
    state = FoldState(merged=start, copies=[start] * 2, moments=[{}] * 2)
    for number, replica in replicas.items():
        load_weights(job.network, start)
        batch = next(job.loader.batches([[Draw(4 * number + n, n) for n in range(4)]]))
        steps.train_step(job, replica, batch, seed=number)
        state.copies[number] = weights_of(job.network)
    merge_replicas(job, state, replicas, Together(ALONE, 2))
    one, two = (replica.moments(job.device) for replica in replicas.values())
    name = next(iter(job.network.named_parameters()))[0]
    if moments == "reset":
        assert not one and not two
    else:
        same = torch.equal(one[name]["exp_avg"], two[name]["exp_avg"])
        assert same == (moments == "average")


@pytest.mark.parametrize("several", [2, 3, 4])
def test_accumulated_gradients_equal_the_whole_batch(
    several: int, job: FoldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batch norm in evaluation mode, as its statistics depend on the part at hand.

    In float64: gradients of first layers are small sums of large terms, which round coarsely.
    """
    batch = next(job.loader.batches([[Draw(n, n) for n in range(4)]]))
    mix = steps.mix_batch

    def doubled(*args: Any, **settings: Any) -> Any:
        return tuple(tensor.double() for tensor in mix(*args, **settings))

    monkeypatch.setattr(steps, "mix_batch", doubled)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the loss's own
    job.network.double()
    gradients = []
    for parts in (1, several):
        job.network.eval()
        job.network.zero_grad()
        replica = replace(Replica.of(job), parts=parts)
        loss, _ = steps._backward(job, replica, batch, len(batch.photos))
        gradients.append([p.grad.clone() for p in job.network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(job.network.parameters()))
    for whole, parted in zip(*gradients, strict=True):
        torch.testing.assert_close(parted, whole, rtol=1e-9, atol=1e-12)
    assert float(loss) > 0


def out_of_memory_above(photos: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network runs out of memory for more photos at once, in training mode."""
    original = Network.forward

    def forward(self: Network, images: torch.Tensor) -> torch.Tensor:
        if self.training and len(images) > photos:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, images)

    monkeypatch.setattr(Network, "forward", forward)


def test_out_of_memory_halves_the_parts_and_changes_no_result(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the backbone frozen, batch norm too: else each part has statistics of its own."""
    settings: dict[str, Any] = {"freeze": 9, "head_rate": 1e-2}
    whole = small_fit(discs, tmp_path / "1", fold=0, **settings)
    notices: list[str] = []
    out_of_memory_above(1, monkeypatch)
    watcher = Watcher(notice=notices.append)
    parted = small_fit(discs, tmp_path / "2", fold=0, watcher=watcher, **settings)
    assert [notice for notice in notices if "memory" in notice] == [
        "memory ran out: each batch is now computed in 2 parts",
        "memory ran out: each batch is now computed in 4 parts",
    ]
    assert parted.parts == 4 and whole.parts == 1
    notices.clear()
    small_fit(discs, tmp_path / "2", fold=1, watcher=watcher, **settings)
    assert not [notice for notice in notices if "memory" in notice]  # the run remembers
    one, two, start = whole.weights(0), parted.weights(0), whole.weights()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-6)
    assert not np.allclose(one["head.linear.weight"], start["head.linear.weight"], atol=1e-3)


def test_out_of_memory_for_one_photo_ends_with_hints(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(ResourceError, match="single photo of 32 pixels") as error:
        small_fit(discs, tmp_path / "run")
    assert error.value.exit_code == 4
    assert "`backbone`" in error.value.hint


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({}, 3),
        ({"replica_curves": False}, 1),
        ({"replicas": 1, "batch_norm": "average"}, 1),
        ({"replicas": 1, "batch_norm": "recalibrate"}, 2),
        ({"replicas": 1, "merge": "none"}, 1),
    ],
)
def test_nothing_is_evaluated_twice_or_in_vain(
    settings: dict[str, Any],
    evaluations: int,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, seen = loop.evaluate, []

    def evaluate(job: FoldJob, rows: Any, *ranks: Any) -> Any:
        seen.append(len(rows))
        return original(job, rows, *ranks)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    small_fit(discs, tmp_path / "run", fold=0, epochs=1, warmup=0.0, **settings)
    assert len(seen) == evaluations
    rows = {row["model"]: row for row in history(tmp_path / "run")}
    assert float(rows["merged"]["test_accuracy"]) >= 0
    replica = rows["replica-1"]
    assert (replica["test_accuracy"] == "") == (settings.get("replica_curves") is False)
    assert replica["diverged"] == "False" and float(replica["train_accuracy"]) >= 0


def test_a_step_that_fails_in_the_optimiser_changes_nothing(
    job: FoldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica.of(job)
    batch = next(job.loader.batches([[Draw(n, n) for n in range(4)]]))
    before = {name: tensor.clone() for name, tensor in job.network.state_dict().items()}
    train_mode(job.network)

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with monkeypatch.context() as patch:
        patch.setattr(replica.optimizer, "step", broken)
        with pytest.raises(RuntimeError, match="launch failure"):
            steps.train_step(job, replica, batch, seed=1)
    assert all(tensor.grad is None for tensor in job.network.parameters())
    assert all(torch.equal(t, before[name]) for name, t in job.network.state_dict().items())


def test_evaluation_halves_its_batches_and_gives_the_same(
    job: FoldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loop.evaluate(job, job.test)
    original, largest = Network.forward, [1]

    def forward(self: Network, images: torch.Tensor) -> torch.Tensor:
        if len(images) > largest[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, images)

    monkeypatch.setattr(Network, "forward", forward)
    np.testing.assert_allclose(loop.evaluate(job, job.test), expected, atol=1e-5)
    largest[0] = 0
    with pytest.raises(ResourceError, match="single photo"):
        loop.evaluate(job, job.test)


def test_a_batch_larger_than_the_collection_and_tiny_folds(discs: Path, tmp_path: Path) -> None:
    run = small_fit(discs, tmp_path / "run", folds=8, batch_size=512, epochs=1, warmup=0.0)
    assert {len(fold.test) for fold in run.folds} <= {1, 2, 3, 4, 5, 6}
    assert run.complete and run.scores.photos == 24


def test_batch_norm_policy_changes_statistics_alone(discs: Path, tmp_path: Path) -> None:
    measured = small_fit(discs, tmp_path / "1", fold=0, epochs=1, warmup=0.0)
    averaged = small_fit(discs, tmp_path / "2", fold=0, epochs=1, warmup=0.0, batch_norm="average")
    one, two = measured.weights(0), averaged.weights(0)
    differing = {name for name in one if not np.array_equal(one[name], two[name])}
    assert differing == {name for name in one if name.endswith(("running_mean", "running_var"))}


def test_balanced_class_weights_weigh_classes_alike(job: FoldJob) -> None:
    weights = replace(job, recipe=job.recipe.replace(class_weights="balanced")).class_weights
    assert weights is not None
    counts = np.bincount(job.targets[job.train], minlength=3)
    np.testing.assert_allclose(weights.numpy() * counts, len(job.train) / 3, rtol=1e-6)
    assert job.class_weights is None


def test_frozen_stages_do_not_change(discs: Path, tmp_path: Path) -> None:
    run = small_fit(discs, tmp_path / "run", fold=0, freeze=2)
    start, end = run.weights(), run.weights(0)
    changed = {name for name in start if not np.array_equal(start[name], end[name])}
    assert not any(
        name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1.")) for name in changed
    )
    assert any(name.startswith("backbone.layer2.") for name in changed)


def test_vanished_photos_are_replaced_up_to_a_share(
    discs: Path, tmp_path: Path, draw_collection: Any
) -> None:
    photos = draw_collection(tmp_path / "photos")
    steps: list[int] = []

    def remove() -> None:
        steps.append(1)
        if len(steps) == 1:
            for path in (photos / "amber").iterdir():
                path.unlink()

    with pytest.raises(DataError, match="could not be read any more") as error:
        small_fit(photos, tmp_path / "run", cache="none", watcher=Watcher(on_step=remove))
    assert error.value.exit_code == 3


def test_heads_and_mixes_run_end_to_end(discs: Path, tmp_path: Path) -> None:
    for number, settings in enumerate(
        (
            {"head": "se", "mix": "mixup", "augment": "randaugment"},
            {"head": "attention", "mix": "either", "augment": "augmix", "erasing": 1.0},
            {"merge": "model_stock", "anchor": "last_merge", "class_weights": "balanced"},
            {"augment": "trivialaugment", "grayscale": 1.0, "label_smoothing": 0.1},
            {"merge": "none", "replicas": 1, "schedule": "constant", "accumulate": 2},
        )
    ):
        run = small_fit(
            discs, tmp_path / str(number), fold=0, epochs=1, **{"warmup": 0.0} | settings
        )
        assert np.isfinite(run.logits(0)).all()


def test_a_single_replica_is_evaluated_once(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = loop.evaluate

    def counted(*args: Any) -> Any:
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(loop, "evaluate", counted)
    small_fit(discs, tmp_path / "run", fold=0, merge="none", replicas=1)
    assert len(calls) == SMALL["epochs"]
    rows = history(tmp_path / "run")
    assert rows[0]["test_loss"] == rows[1]["test_loss"]


def test_no_more_steps_than_planned(discs: Path, tmp_path: Path) -> None:
    plans, steps = [], []
    watcher = Watcher(on_plan=plans.append, on_step=lambda: steps.append(1))
    small_fit(discs, tmp_path / "run", watcher=watcher)
    assert [plan.steps for plan in plans] == [len(steps)]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["complete"]
    assert small_recipe().epochs == plans[0].recipe.epochs


def test_replicas_on_shares_go_through_all_photos_together(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[int, int], list[int]] = {}
    original = jobs.training_plan

    def spy(rows: Any, batch_size: int, **where: int) -> Any:
        plan = original(rows, batch_size, **where)
        seen[where["epoch"], where["replica"]] = [draw.photo for part in plan for draw in part]
        return plan

    monkeypatch.setattr(jobs, "training_plan", spy)
    run = small_fit(discs, tmp_path / "run", fold=0, replicas=3, replica_data="share", batch_size=3)
    for epoch in range(2):
        parts = [seen[epoch, replica] for replica in range(3)]
        assert sorted(n for part in parts for n in part) == sorted(run.folds[0].train.tolist())
        assert [len(part) for part in parts] == [4, 4, 4]
    assert seen[0, 0] != seen[1, 0]
    assert {row["steps"] for row in history(run.folder) if row["model"] != "merged"} == {"2"}


def test_rates_follow_a_replicas_own_steps(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    original = loop.rate_factor

    def spy(step: int, steps: int, **settings: Any) -> float:
        asked.append((step, steps))
        return original(step, steps, **settings)

    monkeypatch.setattr(loop, "rate_factor", spy)
    small_fit(discs, tmp_path / "run", fold=0, replicas=5, replica_data="share", batch_size=2)
    # Shares of 3, 3, 2, 2, 2 photos are one batch each.
    assert asked == [(epoch, 2) for epoch in range(2) for _ in range(5)]


def test_the_plan_counts_the_steps_of_shares(discs: Path, tmp_path: Path) -> None:
    plans: list[Any] = []
    steps: list[int] = []
    watcher = Watcher(on_plan=plans.append, on_step=lambda: steps.append(1))
    settings = {"replicas": 2, "replica_data": "share", "batch_size": 2}
    small_fit(discs, tmp_path / "run", watcher=watcher, **settings)
    assert [plan.steps for plan in plans] == [len(steps)] == [2 * 2 * 2 * 3]


def test_shares_of_too_few_photos_are_refused(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of 12 training photos for each of `replicas` = 7"):
        small_fit(discs, tmp_path / "run", replicas=7, replica_data="share")
    assert not (tmp_path / "run" / "setup.json").exists()


def test_an_outer_step_all_the_way_is_the_plain_mean(discs: Path, tmp_path: Path) -> None:
    plain = small_fit(discs, tmp_path / "plain", fold=0)
    outer = small_fit(
        discs, tmp_path / "outer", fold=0, outer="momentum", outer_rate=1.0, outer_momentum=0.0
    )
    assert results(outer) == results(plain)


def test_outer_momentum_moves_what_is_merged(discs: Path, tmp_path: Path) -> None:
    """After one merge, by rate · (1 + momentum) of the way that the mean went."""
    settings: dict[str, Any] = {"fold": 0, "epochs": 1, "warmup": 0.0}
    mean = small_fit(discs, tmp_path / "plain", **settings).weights(0)
    run = small_fit(discs, tmp_path / "outer", outer="momentum", **settings)
    start, stepped = run.weights(), run.weights(0)
    for name in start:
        if name.endswith(("weight", "bias")):
            expected = start[name] + 0.7 * 1.9 * (mean[name] - start[name])
            np.testing.assert_allclose(stepped[name], expected, rtol=1e-5, atol=1e-7)


def test_a_single_replica_with_an_outer_step_is_evaluated_where_the_step_led(
    discs: Path, tmp_path: Path
) -> None:
    one = {"replicas": 1, "merge": "average", "batch_norm": "average", "outer": "momentum"}
    run = small_fit(discs, tmp_path / "run", fold=0, outer_rate=0.1, **one)
    losses = {row["model"]: row["test_loss"] for row in history(run.folder)[-2:]}
    assert losses["merged"] != losses["replica-1"]
