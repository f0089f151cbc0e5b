"""How fast a whole epoch is, data and all: against the bare step and against timm's loop."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import timm
import torch
from harness import Clock, Contestant, Cost, Options, Row, Target, cost_of, in_turn, rates
from material import Collection, collection, first_job, recipe_of
from steps import SIZE, bare_step, bare_steps, named, some_batches
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn

from fieldguide import Recipe
from fieldguide.machine.device import autocast
from fieldguide.photos.batches import Batch
from fieldguide.recipe import Precision
from fieldguide.train.job import FoldJob
from fieldguide.train.loop import train_fold

PHOTOS = 1280

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TimmFlags:
    """How a timm loop is run. Its loader has one process, which works on another core."""

    amp: bool
    channels_last: bool
    prefetcher: bool
    fused: bool
    color_jitter: float
    interpolation: str


DEFAULTS = TimmFlags(
    amp=False,
    channels_last=False,
    prefetcher=True,
    fused=False,
    color_jitter=0.4,
    interpolation="random",
)


def epoch(options: Options) -> Iterator[Row]:
    """An epoch of a fold with the store filled, against the bare step and timm's loop."""
    count = 24 if options.quick else options.photos or PHOTOS
    photos, as_many = collection(options, 2 * count), collection(options, count)
    job = first_job(options, photos, _one_epoch(options))
    job = replace(job, train=job.train[:count], test=job.test[:2])  # evaluation is not the matter
    batches = some_batches(job, len(job.train))
    contestants = [
        lambda: cost_of(lambda: train_fold(job, None)).scaled(1 / len(job.train)),
        per_photo(bare_steps(job, batches), batches),
        timm_epochs(job, as_many, best_flags(job, batches[0])),
        timm_epochs(job, as_many, DEFAULTS),
    ]
    ours, bare, best, defaults = in_turn(contestants, options.rounds)
    name = f"{named(job)}: an epoch"
    peers: list[tuple[str, list[Cost], Clock, float]] = [
        ("the bare step", bare, "cpu", 0.97),
        ("timm with its best flags", best, "wall", 1.15),
        ("timm with its defaults", defaults, "wall", 2.2),
    ]
    for what, costs, clock, target in peers:
        a, b = rates(ours, clock), rates(costs, clock)
        note = "" if clock == "cpu" else "timm's loader works on another core"
        row = Row("epoch", f"{name} vs {what}", a, b, "photos/s", clock, Target("≥", target))
        yield replace(row, photos=photos.about, note=note)


def _one_epoch(options: Options) -> Recipe:
    return recipe_of(options, SIZE, folds=2, replicas=1, epochs=1, replica_curves=False)


def per_photo(contestant: Contestant, batches: Iterable[Batch]) -> Contestant:
    """The cost of one photo of the batches that a contestant works through."""
    count = sum(len(batch.photos) for batch in batches)
    return lambda: contestant().scaled(1 / count)


def best_flags(job: FoldJob, batch: Batch) -> TimmFlags:
    """What makes timm's loop fastest here, the recipe being ours."""
    return TimmFlags(
        amp=job.precision == "bfloat16",
        channels_last=faster_channels_last(job, batch),
        prefetcher=False,  # its pixels of 8 bits pay on a GPU
        fused=True,
        color_jitter=0.0,
        interpolation="bilinear",
    )


def faster_channels_last(job: FoldJob, batch: Batch) -> bool:
    """Whether the layout makes steps faster here, by a trial of three steps each."""
    images = job.normalise(batch.images).clone()
    targets = torch.zeros(len(images), dtype=torch.int64)

    def trial(layout: torch.memory_format) -> Contestant:
        network = copy.deepcopy(job.network).train().to(memory_format=layout)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        shown = images.contiguous(memory_format=layout)
        return lambda: cost_of(
            partial(bare_step, network, optimizer, shown, targets, job.precision)
        )

    plain, last = in_turn([trial(torch.contiguous_format), trial(torch.channels_last)], 3)
    return min(cost.cpu for cost in last) < min(cost.cpu for cost in plain)


def timm_epochs(job: FoldJob, photos: Collection, flags: TimmFlags) -> Contestant:
    """Epochs as timm's train.py does them: its dataset, loader, network, optimiser, step."""
    recipe, size = job.recipe, job.recipe.size
    layout = torch.channels_last if flags.channels_last else torch.contiguous_format
    network = timm.create_model(recipe.backbone, num_classes=job.classes)
    network.to(memory_format=layout)
    optimizer = create_optimizer_v2(
        network, opt="adamw", lr=1e-4, weight_decay=0.05, fused=flags.fused
    )
    loader = create_loader(
        create_dataset("", root=str(photos.root), is_training=True),
        input_size=(3, size, size),
        batch_size=recipe.batch_size,
        is_training=True,
        use_prefetcher=flags.prefetcher,
        color_jitter=flags.color_jitter,
        interpolation=flags.interpolation,
        num_workers=1,
        device=CPU,
    )
    precision: Precision = "bfloat16" if flags.amp else "float32"

    def work(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        losses = 0.0
        network.train()
        for images, targets in batches:
            with autocast(CPU, precision):
                logits = network(images.contiguous(memory_format=layout))
                loss = nn.functional.cross_entropy(logits, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses += loss.item() * len(images)
            optimizer.zero_grad()
        return losses

    def one_epoch() -> Cost:
        seen = len(loader) * recipe.batch_size  # timm drops what fills no batch
        return cost_of(lambda: work(loader)).scaled(1 / seen)

    return one_epoch
