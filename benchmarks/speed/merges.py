"""How fast replicas are merged, and what share of an epoch that is."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from harness import Contestant, Options, Row, Target, cost_of, in_turn, rates, seconds
from material import BATCH, collection, first_job, recipe_of
from steps import SIZE, named, our_steps, some_batches
from torch import Tensor, nn

from fieldguide.merge import RULES, Weights
from fieldguide.network.batch_norm import RECALIBRATION_PHOTOS
from fieldguide.network.network import build, load_weights, weights_of
from fieldguide.train.evaluate import evaluate
from fieldguide.train.job import FoldJob
from fieldguide.train.merging import recalibrate_network

# How often a merge is repeated: one is too short for the clock.
TIMES = 5

# The epoch of which merging is a share: 5 folds of 6,250 photos.
REPLICAS, TRAINING, TESTED = 2, 5000, 1250


def merge(options: Options) -> list[Row]:
    """Merging resnets, write-back included, against a loop over dictionaries; share of an epoch."""
    cases = product(("resnet18", "resnet50"), (2, 4))
    if options.quick:
        cases = product(("test_resnet",), (2,))
    return [
        *(_against_naive(options, backbone, count) for backbone, count in cases),
        share(options),
    ]


def _against_naive(options: Options, backbone: str, count: int) -> Row:
    network = _network(backbone)
    copies = [_moved(weights_of(network), seed) for seed in range(count)]
    contestants = [_repeated(partial(how, network, copies)) for how in (ours, naive)]
    a, b = (rates(costs, "cpu", TIMES) for costs in in_turn(contestants, options.rounds))
    what = f"{count} x {backbone}, written back: merge.average vs a plain loop"
    return Row("merge", what, a, b, "merges/s", "cpu", Target("≥", 2.5))


def _network(backbone: str) -> nn.Module:
    return build(backbone, weights="none", head="linear", classes=100, dropout=0.0, seed=0)


def _moved(weights: Weights, seed: int) -> dict[str, Tensor]:
    """A copy whose floating tensors went a little way of their own."""
    draws = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=draws)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def _repeated(work: partial[None]) -> Contestant:
    return lambda: cost_of(lambda: [work() for _ in range(TIMES)])


def ours(network: nn.Module, copies: Sequence[Weights]) -> None:
    """Changes the network: our mean, written back our way."""
    load_weights(network, RULES["average"](copies, {}))


def naive(network: nn.Module, copies: Sequence[Weights]) -> None:
    """Changes the network: tensor after tensor summed up into new ones, and loaded."""
    merged = dict(copies[0])
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            total = tensor
            for copy in copies[1:]:
                total = total + copy[name]
            merged[name] = total / len(copies)
    network.load_state_dict(merged)


# --- share of an epoch ----------------------------------------------------------------------------


def share(options: Options) -> Row:
    """Merging and measuring batch norm anew as a share of an epoch, by rates measured here.

    share = (m + 1,024 · c) / (2 · 5,000 · t + 1,250 · e + m + 1,024 · c) with m seconds for a merge
    of 2 replicas, c and e for a photo of a recalibration and of an evaluation, t for one of a
    training step.
    """
    steps = 2 if options.quick else 4
    photos = collection(options, 2 * steps * BATCH)
    job = first_job(options, photos, recipe_of(options, SIZE, folds=2))
    job = replace(job, train=job.train[: steps * job.recipe.batch_size])
    copies = [_moved(weights_of(job.network), seed) for seed in range(REPLICAS)]
    contestants = [
        lambda: cost_of(partial(ours, job.network, copies)),
        lambda: cost_of(partial(recalibrate_network, job)),
        lambda: cost_of(partial(evaluate, job, job.train)),
        our_steps(job, some_batches(job, steps)),
    ]
    costs = in_turn(contestants, options.rounds)
    found = zip(*(seconds(each, "cpu") for each in costs), strict=True)
    a, b = zip(*(_seconds_of_epoch(job, *each) for each in found), strict=True)
    what = f"{named(job)}: merge + batch norm on {RECALIBRATION_PHOTOS:,} photos vs an epoch"
    row = Row("merge-share", what, a, b, "s", "cpu", Target("≤", 0.01), photos=photos.about)
    return replace(row, note="computed from measured rates")


def _seconds_of_epoch(
    job: FoldJob, merging: float, recalibration: float, evaluation: float, steps: float
) -> tuple[float, float]:
    """Seconds of what merging adds to an epoch, and of that epoch."""
    measured = len(job.train)
    added = merging + RECALIBRATION_PHOTOS * recalibration / measured
    rest = (REPLICAS * TRAINING * steps + TESTED * evaluation) / measured
    return added, rest + added
