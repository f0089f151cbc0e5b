"""How fast a training step is, against the bare one: six lines that any loop must do (`bare_step`).

On the CPU for the network of the other parts; on a GPU for the reference networks, in both layouts,
as they are and compiled.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from harness import Contestant, Options, Row, Target, cost_of, in_turn, not_measured, rates
from material import BATCH, collection, first_job, recipe_of
from torch import Tensor, nn

from fieldguide import Recipe
from fieldguide.machine.device import autocast
from fieldguide.photos.batches import Batch, training_plan
from fieldguide.recipe import Precision
from fieldguide.train.job import FoldJob
from fieldguide.train.replica import Replica
from fieldguide.train.step import train_step

SIZE = 128
STEPS = 4
STEP_AND_BARE = "train_step vs the bare step"

# The networks of the reference runs: backbone, pixels, photos in a step (taste: 8 to 20 GiB).
REFERENCE = (("resnet50", 224, 64), ("resnext101_64x4d", 224, 64), ("resnest200e", 320, 32))


def step(options: Options) -> Iterator[Row]:
    """Our step on batches in memory, against the bare one."""
    steps = 2 if options.quick else STEPS
    photos = collection(options, 2 * steps * BATCH)
    job = first_job(options, photos, recipe_of(options, SIZE, folds=2))
    batches = some_batches(job, steps)
    found = in_turn([our_steps(job, batches), bare_steps(job, batches)], options.rounds)
    count = sum(len(batch.photos) for batch in batches)
    a, b = (rates(costs, "cpu", count) for costs in found)
    what = f"{named(job)}: {STEP_AND_BARE}, data in memory"
    yield Row("step", what, a, b, "photos/s", "cpu", Target("≥", 0.98), photos=photos.about)


def named(job: FoldJob) -> str:
    """Network, size and precision of a job."""
    return f"{job.recipe.backbone}@{job.recipe.size} {job.precision}"


def some_batches(job: FoldJob, steps: int) -> list[Batch]:
    """The first batches of an epoch, as training gets them."""
    plan = training_plan(job.train, job.recipe.batch_size, seed=0, replica=0, epoch=0)
    return list(job.loader.batches(plan[:steps]))


def our_steps(job: FoldJob, batches: Sequence[Batch]) -> Contestant:
    """Every batch one step, by our own function."""
    network = job.network
    replica = Replica.of(job)

    def work() -> None:
        network.train()
        for seed, batch in enumerate(batches):
            train_step(job, replica, batch, seed)
        _finish(job.device)

    return lambda: cost_of(work)


def bare_steps(job: FoldJob, batches: Sequence[Batch], compiled: bool = False) -> Contestant:
    """Every batch one bare step of a copy of the network, on what is normalised already."""
    network = copy.deepcopy(job.network).train()
    if compiled:  # a copy is not
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    targets = torch.from_numpy(job.targets)
    ready = [
        (job.normalise(batch.images).clone(), targets[batch.photos].to(job.device))
        for batch in batches
    ]

    def work() -> None:
        for images, labels in ready:
            bare_step(network, optimizer, images, labels, job.precision)
        _finish(job.device)

    return lambda: cost_of(work)


def bare_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    precision: Precision,
) -> None:
    """What any training loop must do."""
    optimizer.zero_grad()
    with autocast(images.device, precision):
        logits = network(images)
    loss = nn.functional.cross_entropy(logits.float(), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- on a GPU -------------------------------------------------------------------------------------


def gpu(options: Options) -> Iterator[Row]:
    """Our step of the reference networks against the bare one, in both layouts, also compiled."""
    for backbone, size, batch_size in REFERENCE:
        if torch.cuda.is_available():
            recipe = recipe_of(options, size, backbone, folds=2, batch_size=batch_size)
            yield from in_every_way(options, recipe.replace(device="cuda"))
        else:
            yield not_measured("gpu", f"{backbone}@{size}: {STEP_AND_BARE}", "no GPU")


def in_every_way(options: Options, recipe: Recipe) -> Iterator[Row]:
    """A row for each layout, as the network is and compiled."""
    photos = collection(options, 2 * STEPS * recipe.batch_size)
    for compiled, layout in product(("off", "on"), ("contiguous", "channels_last")):
        way = recipe.replace(layout=layout, precision="bfloat16", compile=compiled)
        job = first_job(options, photos, way)
        batches = some_batches(job, STEPS)
        contestants = [our_steps(job, batches), bare_steps(job, batches, compiled == "on")]
        found = in_turn(contestants, options.rounds)
        count = sum(len(batch.photos) for batch in batches)
        a, b = (rates(costs, "wall", count) for costs in found)
        how = f"{named(job)}, {layout}, {'compiled' if compiled == 'on' else 'eager'}"
        row = Row("gpu", f"{how}: {STEP_AND_BARE}", a, b, "photos/s", "wall", Target("≥", 0.98))
        yield replace(row, photos=photos.about)
