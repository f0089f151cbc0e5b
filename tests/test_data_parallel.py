"""Ranks that share each batch of a replica, against one process that has the whole batch."""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import results, small_fit, small_recipe
from forks import EVERY_STEP, as_rank, curves, fitted_on_ranks, needs_fork, on_ranks
from torch import Tensor, nn

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.errors import ResourceError, UsageError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Watcher
from fieldguide.machine.ranks import ALONE, Ranks, joined
from fieldguide.machine.sync_batch_norm import Synchronised
from fieldguide.machine.torchrun import Launch
from fieldguide.network.network import load_weights
from fieldguide.photos.batches import Plan
from fieldguide.train import loop
from fieldguide.train import step as steps
from fieldguide.train.job import FoldJob
from fieldguide.train.loop import train_mode
from fieldguide.train.replica import Replica

pytestmark = needs_fork

# Three folds of 24 discs leave 16 to train on: batches of 6, 5 and 5, shares of 3 and of 2.
UNEVEN: dict[str, Any] = {
    "folds": 3,
    "fold": 0,
    "batch_size": 6,
    "mix": "none",
    "class_weights": "balanced",
    "label_smoothing": 0.1,
}


def furthest(one: fg.Run, other: fg.Run) -> float:
    """The largest difference between tensors of two runs' first folds."""
    weights = other.weights(0)
    return max(float(np.abs(w - weights[name]).max()) for name, w in one.weights(0).items())


def logits_of(run: fg.Run) -> np.ndarray:
    with np.load(run.fold_folder(0) / "predictions.npz") as file:
        return np.asarray(file["logits"])


@pytest.mark.parametrize("sizes", [(3, 4), (1, 1)])
def test_batch_norm_over_ranks_is_that_of_all_photos(
    sizes: tuple[int, int], tmp_path: Path
) -> None:
    def normed(images: Tensor, of_loss: Tensor, start: nn.Module) -> list[Tensor]:
        leaf = images.clone().requires_grad_()
        result = start(leaf)
        (result * of_loss).sum().backward()
        gradients = [leaf.grad, *(each.grad for each in start.parameters())]
        return [result.detach(), *(g for g in gradients if g is not None), *start.buffers()]

    def norm() -> nn.BatchNorm2d:
        made = nn.BatchNorm2d(2)
        nn.init.normal_(made.weight, 1.0, 0.5, generator=torch.Generator().manual_seed(3))
        return made

    draws = torch.Generator().manual_seed(0)
    # A mean far from zero: sums of squares would lose the variance.
    images = 1000 + torch.randn(sum(sizes), 2, 3, 1, generator=draws)
    of_loss = torch.randn(images.shape, generator=draws)

    def work(rank: int) -> Any:
        with joined("cpu", 1, 2) as ranks:
            place = slice(sizes[0], None) if rank else slice(sizes[0])
            with Synchronised(ranks.team):
                return [each.clone() for each in normed(images[place], of_loss[place], norm())]

    first, second = on_ranks(2, work, tmp_path / "ranks")
    whole = normed(images.double(), of_loss.double(), norm().double())
    together = [
        *(torch.cat(pair) for pair in zip(first[:2], second[:2], strict=True)),
        *(a + b for a, b in zip(first[2:4], second[2:4], strict=True)),  # of weight and bias
        *first[4:],
    ]
    for found, expected in zip(together, whole, strict=True):
        assert torch.allclose(found.double(), expected.double(), rtol=1e-4, atol=2e-3)
    assert all(torch.equal(*pair) for pair in zip(first[4:], second[4:], strict=True))


def gradients_of(job: FoldJob, rows: list[int], ranks: Ranks, parts: int = 1) -> dict[str, Tensor]:
    """The gradients, statistics and counts that a rank comes to, of a batch of these photos."""
    load_weights(job.network, job.start)
    job.network.zero_grad()
    train_mode(job.network)
    least = 1 if job.recipe.sync_batch_norm else 2
    plan = Plan([np.array(rows)], lambda row: row).shared(ranks.rank, ranks.world, least)
    batch = next(job.loader.batches(plan))
    replica = replace(Replica.of(job, ranks), parts=parts)
    torch.manual_seed(7)
    with steps._batch_norms_over(job, replica):
        measured = steps._backward(job, replica, batch, len(rows))
    batch.missing += ranks.rank
    loss, accuracy = steps._put_together(replica, batch, *measured, len(rows))
    found = {n: p.grad.clone() for n, p in job.network.named_parameters() if p.grad is not None}
    found |= {n: b.clone() for n, b in job.network.named_buffers() if "running" in n}
    return found | {"loss": loss, "accuracy": accuracy, "missing": torch.tensor(batch.missing)}


@pytest.mark.parametrize(
    ("ranks", "photos", "parts", "backbone"),
    [
        (2, 5, 1, "test_resnet"),
        (3, 4, 1, "test_resnet"),
        (2, 8, 2, "test_resnet"),
        (2, 5, 1, "test_nfnet"),
    ],
    ids=["uneven", "one", "parts", "standardised weights"],
)
def test_a_shared_step_has_the_gradients_of_one_process(
    ranks: int, photos: int, parts: int, backbone: str, discs: Path, tmp_path: Path
) -> None:
    """Over five photos on two ranks, and over four on three, two of which have one."""
    settings = UNEVEN | {"replicas": 1, "epochs": 1, "warmup": 0.0, "backbone": backbone}
    recipe = {"batch_size": 8, "batch_ranks": ranks, "sync_batch_norm": True}
    run = small_fit(discs, tmp_path / "run", **settings)
    job = replace(fold_jobs(run, discs)(0), recipe=run.recipe.replace(**recipe))
    rows = job.train[:photos].tolist()

    def work(rank: int) -> Any:
        with joined("cpu", 1, ranks) as all_ranks:
            return gradients_of(job, rows, all_ranks.team, parts)

    first, *others = on_ranks(ranks, work, tmp_path / "ranks")
    # Parts have batch norms of their own: those of the ranks' first parts, then of their second.
    order = [0, 1, 4, 5, 2, 3, 6, 7] if parts == 2 else range(photos)
    alone = gradients_of(job, [rows[n] for n in order], ALONE, parts)
    assert int(first.pop("missing")) == sum(range(ranks)) and not alone.pop("missing")
    for name, tensor in alone.items():
        assert torch.allclose(first[name], tensor, rtol=1e-3, atol=1e-5), name
        assert all(torch.equal(each[name], first[name]) for each in others), name


def test_without_norms_over_ranks_a_step_has_the_gradients_of_parts(
    discs: Path, tmp_path: Path
) -> None:
    """Of seven photos on four ranks: 3, 2, 2, and none on the last. Statistics are their mean."""
    run = small_fit(discs, tmp_path / "run", **UNEVEN | {"epochs": 1, "warmup": 0.0})
    job = fold_jobs(run, discs)(0)
    rows = job.train[:7].tolist()

    def work(rank: int) -> Any:
        with joined("cpu", 1, 4) as ranks:
            return gradients_of(job, rows, ranks.team), torch.initial_seed()

    (first, *others), seeds = zip(*on_ranks(4, work, tmp_path / "ranks"), strict=True)
    assert seeds[0] == 7 and len(set(seeds[:3])) == 3  # of the dropout
    assert all(torch.equal(each[name], first[name]) for each in others for name in first)
    alone = gradients_of(job, rows, ALONE, parts=3)
    shares = [rows[:3], rows[3:5], rows[5:]]
    of_shares = [gradients_of(job, share, ALONE) for share in shares]
    for name in alone:
        if "running" in name:
            pairs = zip(of_shares, shares, strict=True)
            alone[name] = sum(len(share) / 7 * found[name] for found, share in pairs)
        if name != "missing":
            assert torch.allclose(first[name], alone[name], rtol=1e-4, atol=1e-6), name


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(
    discs: Path, tmp_path: Path
) -> None:
    """The scaling of float16 stays the same on all, also where there were no photos."""
    run = small_fit(discs, tmp_path / "run", **UNEVEN | {"epochs": 1, "warmup": 0.0})
    job = fold_jobs(run, discs)(0)
    rows = job.train[:7]

    def work(rank: int) -> Any:
        scaler = torch.GradScaler("cpu", init_scale=8.0)
        train_mode(job.network)
        with joined("cpu", 1, 4) as ranks:
            replica = replace(Replica.of(job, ranks.team), scaler=scaler)
            plan = Plan([rows], lambda row: row).shared(rank, 4)
            told: list[Any] = []
            for spoiled in (1, None):
                batch = next(job.loader.batches(plan))
                with pytest.MonkeyPatch.context() as patch:
                    if rank == spoiled:
                        patch.setattr(job.normalise, "factor", torch.full((3, 1, 1), np.inf))
                    step = steps.train_step(job, replica, batch, 5, whole=len(rows))
                weights = {name: tensor.clone() for name, tensor in state(job).items()}
                told.append((step, scaler.get_scale(), weights))
        return told

    def state(job: FoldJob) -> dict[str, Tensor]:
        found = job.network.state_dict()
        return {name: found[name] for name in found if not name.endswith("batches_tracked")}

    before = {name: tensor.clone() for name, tensor in state(job).items()}
    told = on_ranks(4, work, tmp_path / "ranks")
    for skipped, done in told:
        assert skipped[:2] == (None, 4.0)
        assert all(torch.equal(skipped[2][name], before[name]) for name in before)
        assert done[:2] == (told[0][1][0], 4.0) and done[0] is not None
        assert all(torch.equal(done[2][name], told[0][1][2][name]) for name in before)
    assert not torch.equal(told[0][1][2]["head.linear.bias"], before["head.linear.bias"])


def test_shared_batches_are_those_of_one_process(discs: Path, tmp_path: Path) -> None:
    """With batch norm over all ranks, but for rounding, which AdamW makes larger."""
    settings = UNEVEN | {"replicas": 1, "batch_norm": "average", "merge": "none"}
    alone = small_fit(discs, tmp_path / "alone", **settings)
    shared = fitted_on_ranks(
        2, discs, tmp_path / "shared", batch_ranks=2, sync_batch_norm=True, **settings
    )
    assert np.abs(logits_of(shared) - logits_of(alone)).max() < 1e-4
    for one, other in zip(curves(shared, 0), curves(alone, 0), strict=True):
        for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), abs=1e-4)
        assert one["steps"] == other["steps"] and one["skipped"] == other["skipped"]


def test_without_it_shares_are_parts(discs: Path, tmp_path: Path) -> None:
    """Two ranks normalise their shares as one process does the two parts of a batch."""
    settings = UNEVEN | {"batch_norm": "recalibrate", "epochs": 1, "warmup": 0.0}
    alone = small_fit(discs, tmp_path / "alone", accumulate=2, **settings)
    shared = fitted_on_ranks(2, discs, tmp_path / "shared", batch_ranks=2, **settings)
    whole = small_fit(discs, tmp_path / "whole", **settings)
    assert np.array_equal(logits_of(shared), logits_of(alone))  # a sum of two has one order
    assert not np.allclose(logits_of(shared), logits_of(whole), atol=1e-3)


def test_teams_of_ranks_train_replicas_and_go_on_to_the_bit(discs: Path, tmp_path: Path) -> None:
    """Four ranks as two teams, two ranks as one, and either after a kill: always the same bits."""
    settings: dict[str, Any] = {
        "fold": 0,
        "batch_ranks": 2,
        "dropout": 0.2,
        "mix": "either",
        "moments": "average",
        "outer": "momentum",
        "batch_norm": "average",
        "keep_replicas": True,
    }
    two = fitted_on_ranks(2, discs, tmp_path / "two", **settings)
    four = fitted_on_ranks(4, discs, tmp_path / "four", **settings)
    assert results(four) == results(two)
    assert curves(four, 0) == curves(two, 0)

    def work(rank: int) -> Any:
        count = iter(range(4))  # in the second epoch

        def on_step() -> None:
            if rank == 3 and next(count, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        watcher = Watcher(on_step=on_step)
        return small_fit(discs, tmp_path / "run", watcher=watcher, **settings, **EVERY_STEP)

    *told, killed = on_ranks(4, work, tmp_path / "ranks")
    assert killed is None
    assert all(isinstance(each, ResourceError) for each in told)
    assert all(each.message.startswith("another rank has ended") for each in told)
    assert list((tmp_path / "run" / "folds" / "0" / "checkpoint").glob("*.safetensors"))
    assert results(fitted_on_ranks(2, discs, tmp_path / "run", **settings)) == results(two)


def run_out(of_rank: int, above: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """For a rank to call: its memory runs out in steps of less than so many parts."""
    original = steps._backward

    def backward(job: Any, replica: Replica, batch: Any, whole: int) -> Any:
        if replica.parts < above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(job, replica, batch, whole)

    def spoil(rank: int) -> None:
        if rank == of_rank:
            monkeypatch.setattr(steps, "_backward", backward)

    return spoil


def test_a_rank_whose_memory_runs_out_goes_on_in_parts_while_the_other_waits(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil = run_out(1, 2, monkeypatch)

    def work(rank: int) -> list[int]:
        spoil(rank)
        return small_fit(
            discs, tmp_path / "run", **UNEVEN | {"batch_size": 8, "batch_ranks": 2}
        ).done

    assert on_ranks(2, work, tmp_path / "ranks") == [[0], [0]]
    replica = [row for row in curves(fg.Run(tmp_path / "run"), 0) if row["model"] == "replica-1"]
    assert [row["parts"] for row in replica] == ["1", "2"]  # all know it after an epoch


def test_where_norms_wait_for_each_other_it_ends_all(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil = run_out(1, 2, monkeypatch)

    def work(rank: int) -> Any:
        spoil(rank)
        return small_fit(discs, tmp_path / "run", batch_ranks=2, sync_batch_norm=True, **UNEVEN)

    for found in on_ranks(2, work, tmp_path / "ranks"):
        assert isinstance(found, ResourceError)
        assert found.message.startswith("memory ran out on `cpu` where the ranks of a batch wait")
        assert "`accumulate`" in found.hint


@pytest.mark.parametrize(
    ("world", "replicas", "batch_ranks", "message", "hint"),
    [
        (1, 2, 2, "`batch_ranks` = 2 does not divide the number of ranks: 1", "start 2 or 4 of"),
        (3, 1, 2, "`batch_ranks` = 2 does not divide the number of ranks: 3", "start 2 of them"),
        (
            6,
            2,
            2,
            "6 ranks in teams of `batch_ranks` = 2 cannot share `replicas` = 2",
            "3 replicas",
        ),
        (4, 2, 1, "4 ranks cannot share `replicas` = 2", "or share batches: --batch-ranks 2"),
        (3, 1, 1, "3 ranks cannot share `replicas` = 1", "3 replicas, or share batches"),
    ],
)
def test_ranks_that_do_not_make_teams_are_refused(
    world: int,
    replicas: int,
    batch_ranks: int,
    message: str,
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in as_rank(0, world, 1).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UsageError, match=re.escape(message)) as caught,
        joined("cpu", replicas, batch_ranks),
    ):
        raise AssertionError
    assert hint in caught.value.hint


def test_settings_of_shared_batches_that_contradict_or_do_nothing_are_told() -> None:
    with pytest.raises(UsageError, match="`batch_size` = 4 leaves fewer than 2 photos for each of"):
        small_recipe(batch_size=4, batch_ranks=3)
    with pytest.raises(UsageError, match="`sync_batch_norm` cannot be compiled"):
        small_recipe(batch_ranks=2, sync_batch_norm=True, compile="on")
    told = recipes.without_effect(small_recipe(sync_batch_norm=True))
    assert "`sync_batch_norm` = True has no effect with batch_ranks = 1" in told
    assert not recipes.without_effect(small_recipe(sync_batch_norm=True, batch_ranks=2))
    assert recipes.effective(small_recipe(batch_ranks=2)).batch_ranks == 2


def test_norms_over_ranks_of_which_some_have_no_photos_are_refused(
    discs: Path, tmp_path: Path
) -> None:
    job = fold_jobs(small_fit(discs, tmp_path / "run", **UNEVEN), discs)(0)
    recipe = job.recipe.replace(batch_ranks=4, batch_size=8, sync_batch_norm=True)
    job = replace(job, recipe=recipe, train=job.train[:3])
    with pytest.raises(UsageError, match="on each of `batch_ranks` = 4, and one has 3 photos"):
        loop.own_share(job, job.plan(0, 0), Ranks(Launch(0, 4)))
