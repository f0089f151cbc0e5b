"""Backbones ranked on a user's photos, by what recipe `instant` reaches with each, without a run.

    a sample of the photos, checked and put into folds once
    of each candidate: features, a regression in every fold, its answers out of fold; its speed here

Knows nothing of how features are made and heads are fitted (`fitting.probes`).
"""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fieldguide.analysis import paired
from fieldguide.analysis.intervals import share_interval
from fieldguide.analysis.paired import Contrast
from fieldguide.errors import ResourceError, TrainingError, UsageError
from fieldguide.fitting.prepare import prepare
from fieldguide.fitting.probes import probes_of
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.settings import cache_of, resolve, threads_of
from fieldguide.fitting.start import recorded_tone
from fieldguide.machine.device import (
    autocast,
    choose_device,
    choose_layouts,
    device_name,
    memory_format,
    training_threads,
)
from fieldguide.network.batch_norm import absorb
from fieldguide.network.network import Network, build_backbone, input_config, with_head
from fieldguide.photos.catalog import Catalog, group_names
from fieldguide.recipe import Recipe, ResolvedRecipe
from fieldguide.runs.run import folds_of, targets_of
from fieldguide.seeds import derive_seed
from fieldguide.train import trial

# Photos that candidates are compared on. An accuracy near 85 % has an interval of ± 1.6 points, and
# resnet50 at 128 px takes two minutes of one core for them (taste).
SAMPLE = 2000

STEPS = 1000  # of the fit that the trial of a training step is for: few seconds (taste)
ROUNDS = 3  # of the forward pass, of which the quickest counts, after one to warm up (taste)
MEASURED = 2  # photos of the step whose memory is added up


@dataclass(frozen=True)
class Candidate:
    """A backbone to try, with weights as a recipe names them."""

    backbone: str
    weights: str = "pretrained"


@dataclass(frozen=True)
class Cost:
    """What a network takes on this machine.

    `train` and `predict` are photos a second of one process, of training steps (None without a
    trial) and of forward passes. `memory` is that of a training step in bytes, about: weights,
    gradients, moments, and what the step keeps of a batch, in float32.
    """

    parameters: int
    memory: int
    train: float | None
    predict: float
    license: str


@dataclass(frozen=True)
class Tried:
    """A candidate's accuracy out of fold with its 95 % interval, and its cost.

    `contrast` is its difference to the best. `note` says why there is nothing of all this.
    """

    backbone: str
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    contrast: Contrast | None = None
    cost: Cost | None = None
    note: str = ""


@dataclass(frozen=True)
class Ranking:
    """Candidates, the best first, on `photos` of the `collection`'s photos for training.

    `classes` and `of_classes` are counted alike; `device` and `threads` are those of one process.
    """

    rows: tuple[Tried, ...]
    photos: int
    collection: int
    classes: int
    of_classes: int
    pixels: str
    batch_size: int
    device: str
    threads: int


def rank(
    catalog: Catalog, candidates: Sequence[Candidate], recipe: Recipe, watcher: Watcher
) -> Ranking:
    """Return the candidates by their accuracy on a sample of the photos, on the same folds.

    `recipe` is one without epochs, such as `instant`. Raises `DataError` for photos that cannot be
    used, and `ResourceError` where no candidate can be tried.
    """
    whole = catalog.part("train")
    sampled = sample(whole, recipe)
    if len(sampled) < len(whole):
        recipe = recipe.replace(min_per_class=0, drop_thin_groups=True)
    used = prepare(sampled, recipe, watcher)
    folds = 1 + max(fold or 0 for fold in used.table.column("fold"))
    recipe = recipe.replace(folds=folds, tone=recorded_tone(recipe, used, watcher))
    rows: list[Tried] = []
    answers: dict[str, NDArray[np.bool_]] = {}
    groups = np.unique(group_names(used.table), return_inverse=True)[1].astype(np.int64)
    for number, candidate in enumerate(candidates, start=1):
        watcher.check_stop()
        watcher.notice(f"{candidate.backbone} ({number} of {len(candidates)})")
        try:
            right, cost = _tried(candidate, used, recipe, watcher)
        except (UsageError, ResourceError, TrainingError) as error:
            rows.append(Tried(candidate.backbone, note=error.message))
            continue
        answers[candidate.backbone] = right
        interval = share_interval(right, groups)
        rows.append(Tried(candidate.backbone, float(right.mean()), interval, None, cost))
    if not answers:
        reasons = "\n".join(f"  {row.backbone}: {row.note}" for row in rows)
        raise ResourceError(
            f"none of the candidates could be tried:\n{reasons}",
            hint="go online once, or name files of weights: --try resnet50=FILE",
        )
    rows.sort(key=lambda row: math.inf if row.accuracy is None else -row.accuracy)
    best = rows[0].backbone
    others = [row.backbone for row in rows[1:] if row.backbone in answers]
    found = paired.contrasts(answers[best], [answers[name] for name in others], groups)
    contrasts = dict(zip(others, found, strict=True))
    device = choose_device(recipe.device)
    return Ranking(
        rows=tuple(replace(row, contrast=contrasts.get(row.backbone)) for row in rows),
        photos=len(used),
        collection=len(whole),
        classes=len(used.classes),
        of_classes=len(whole.classes),
        pixels="each one's own size" if recipe.size == "auto" else f"{recipe.size} pixels",
        batch_size=recipe.batch_size,
        device=device_name(device),
        threads=threads_of(recipe),
    )


def sample(catalog: Catalog, recipe: Recipe, most: int = SAMPLE) -> Catalog:
    """Return the photos, or of more than `most` a sample that is always the same.

    Each class keeps its share, and two photos a fold at least; where even that is too many, some
    classes are drawn. Classes below `min_per_class` are no part of it.
    """
    by_class: dict[str, list[int]] = defaultdict(list)
    labels, paths = catalog.table.column("label"), catalog.table.column("path")
    for row, label in enumerate(labels):
        if label is not None:
            by_class[label].append(row)
    kept = {name: rows for name, rows in by_class.items() if len(rows) >= recipe.min_per_class}
    total, least = sum(map(len, kept.values())), 2 * recipe.folds
    if total <= most:
        return catalog

    def drawn(name: str) -> int:
        return derive_seed(recipe.seed, "sample", name)

    classes = sorted(kept, key=drawn)[: max(most // least, 2)]
    total = sum(len(kept[name]) for name in classes)
    rows: list[int] = []
    for name in classes:
        own = kept[name]
        share = max(round(most * len(own) / total), least)
        rows += sorted(own, key=lambda row: drawn(paths[row]))[:share]
    return catalog.of(catalog.table.take(sorted(rows)))


def _tried(
    candidate: Candidate, used: Catalog, recipe: Recipe, watcher: Watcher
) -> tuple[NDArray[np.bool_], Cost]:
    """Return whether each photo is classified correctly out of fold, and the network's cost."""
    recipe = recipe.replace(backbone=candidate.backbone, weights=candidate.weights)
    body = build_backbone(
        recipe.backbone, weights=recipe.weights, seed=recipe.seed, tell=watcher.notice
    )
    device = choose_device(recipe.device)
    resolved = resolve(recipe, body).replace(layout=choose_layouts(recipe.layout, device)[-1])
    network = with_head(body, recipe.head, classes=len(used.classes), dropout=0.0, seed=recipe.seed)
    probes = probes_of(resolved, network, used, watcher, leave_out=False)
    targets, right = targets_of(used), np.zeros(len(used), dtype=np.bool_)
    for fold, probe in zip(folds_of(used, resolved.folds), probes, strict=True):
        right[fold.test] = probe["logits"].argmax(1) == targets[fold.test]
    file = candidate.weights != "pretrained"
    license = "your file" if file else input_config(body).license or "unknown"
    return right, cost_of(network, resolved, license)


def cost_of(network: Network, recipe: ResolvedRecipe, license: str) -> Cost:
    """Return what the network costs here, on the device that it is on."""
    device, classes = choose_device(recipe.device), network.head.linear.out_features  # type: ignore[union-attr]
    with training_threads(threads_of(recipe)):
        choice = trial.choose(
            network,
            size=recipe.size,
            batch_size=recipe.batch_size,
            classes=classes,  # type: ignore[arg-type]
            device=device,
            precision=recipe.precision,
            compile=False,
            steps_to_go=STEPS,
            cache=cache_of(recipe),
        )
        predict = _forward_speed(network, recipe, device)
    weights = sum(tensor.nbytes for tensor in network.parameters())
    return Cost(
        parameters=sum(tensor.numel() for tensor in network.backbone.parameters()),
        memory=4 * weights + recipe.batch_size * kept_bytes(network, recipe.size),
        train=1 / choice.seconds_per_photo if choice.seconds_per_photo else None,
        predict=predict,
        license=license,
    )


def _forward_speed(network: Network, recipe: ResolvedRecipe, device: torch.device) -> float:
    """Return photos a second of forward passes with norms absorbed, as evaluation makes them."""
    body, layout = absorb(network).network, memory_format(recipe.layout)
    images = torch.randn(16, 3, recipe.size, recipe.size, device=device)
    images = images.contiguous(memory_format=layout)
    times = []
    with torch.inference_mode(), autocast(device, recipe.precision):
        for _ in range(1 + ROUNDS):
            started = time.perf_counter()
            body(images)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            times.append(time.perf_counter() - started)
    return len(images) / min(times[1:])


def kept_bytes(network: nn.Module, size: int) -> int:
    """Return the bytes that a training step keeps of a photo for its backward pass, in float32.

    Found by a step without values; weights are not counted.
    """
    empty = copy.deepcopy(network).to("meta").train()
    own = {tensor.untyped_storage()._cdata for tensor in empty.state_dict(keep_vars=True).values()}
    kept: dict[int, Tensor] = {}  # by storage, each once; kept so that none is freed and reused

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        empty(torch.empty(MEASURED, 3, size, size, device="meta"))
    found = (each.untyped_storage().nbytes() for key, each in kept.items() if key not in own)
    return sum(found) // MEASURED
