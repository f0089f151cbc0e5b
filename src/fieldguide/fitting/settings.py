"""The settings of a run: the recipe that was asked for, with every `auto` resolved.

Knows nothing of photos.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from fieldguide.errors import ResourceError, UsageError
from fieldguide.machine.device import (
    choose_device,
    choose_precision,
    count_threads,
    count_workers,
    fold_places,
)
from fieldguide.machine.ranks import Ranks
from fieldguide.machine.torchrun import launch
from fieldguide.network.feature_map import require_size
from fieldguide.network.network import input_config
from fieldguide.photos.decoding import decoded_side
from fieldguide.predict.model import Machine
from fieldguide.recipe import MIX_FROM, R, Recipe, ResolvedRecipe
from fieldguide.storage import cache_folder
from fieldguide.train.job import replica_steps


def resolve(recipe: Recipe, backbone: nn.Module) -> ResolvedRecipe:
    """Return the recipe with every `auto` replaced by what the network and this machine make of it.

    Layout and compilation are the plain ones, unless a trial finds better.
    """
    config = input_config(backbone)
    size = config.size if recipe.size == "auto" else recipe.size
    seen = size if recipe.eval_size == "auto" else recipe.eval_size
    for side in {size, seen}:
        require_size(backbone, side)
    proportional = round(seen * config.eval_resize / config.size)
    resize = proportional if recipe.eval_resize == "auto" else recipe.eval_resize
    places = fold_places(recipe.device, recipe.workers)
    device = places[0]
    found = {
        "size": size,
        "eval_size": seen,
        "eval_resize": resize,
        # As much as is decoded at all: crops from less are blurred more than evaluation's pictures.
        "stored_side": decoded_side(resize),
        "mean": config.mean,
        "std": config.std,
        "interpolation": config.interpolation,
        "layout": "contiguous",
        "compile": "off",
        "mix": _mix(recipe.epochs, recipe.batch_size),
    }
    start = "probe" if recipe.head == "linear" else "random"
    found |= {"head_start": start if recipe.head_start == "auto" else recipe.head_start}
    found |= {"head_rate": recipe.backbone_rate if found["head_start"] == "probe" else DRAWN_RATE}
    probed = found["head_start"] == "probe" and recipe.head == "linear" and recipe.epochs
    found |= {"co_tuning": CO_TUNING if probed else 0.0}
    asked = recipe.model_dump()
    asked |= {name: value for name, value in found.items() if asked[name] == "auto"}
    asked |= {
        "device": ",".join(dict.fromkeys(str(place) for place in places)),
        "precision": choose_precision(recipe.precision, device),
        "workers": len(places) if device.type == "cpu" else readers(recipe.workers, places),
    }
    return ResolvedRecipe(**asked)


CO_TUNING = 0.5  # the weight where the recipe leaves it open: docs/results.md
DRAWN_RATE = 1e-3  # of a head that is drawn, where the recipe leaves it open
# Steps of an epoch that batches leave at least, where `min_steps` says so, and their least photos.
EPOCH_STEPS, SMALL_BATCH = 8, 8


def lengthened(recipe: R, photos: int, mix: str) -> R:
    """Return the recipe with batches and epochs for its `min_steps`, of folds of so many photos.

    A `mix` of `auto` follows the epochs.
    """
    found = recipe
    if recipe.min_steps and recipe.epochs:
        batch = min(recipe.batch_size, max(photos // EPOCH_STEPS, SMALL_BATCH))
        found = recipe.replace(batch_size=batch, min_steps=recipe.min_steps)
        epochs = -(-recipe.min_steps // max(min(replica_steps(found, photos)), 1))
        longer = max(epochs, recipe.epochs)
        found = found.replace(epochs=longer, min_steps=recipe.min_steps)
    return found.replace(mix=_mix(found.epochs, found.batch_size)) if mix == "auto" else found


def _mix(epochs: int, batch_size: int) -> str:
    return "cutmix" if epochs >= MIX_FROM and batch_size > 1 else "none"


def on_machine(recipe: ResolvedRecipe, machine: Machine) -> ResolvedRecipe:
    """Return a run's recipe with the device and the readers of another machine."""
    device = choose_device(machine.device)
    return recipe.replace(device=str(device), workers=readers(machine.workers, [device]))


def readers(asked: int | str, places: Sequence[torch.device]) -> int:
    """Return the threads that prepare photos for each of these devices.

    On a CPU it is 0: the thread that trains prepares them itself.
    """
    beside = len(places) * launch().beside
    return 0 if places[0].type == "cpu" else count_workers(asked, places[0], beside)


def threads_of(recipe: Recipe) -> int:
    """Return torch's threads for each fold, so that those at the same time share the cores."""
    if launch().world > 1:
        return 1
    return count_threads(min(len(fold_places(recipe.device, recipe.workers)), recipe.folds))


def on_rank(recipe: Recipe, ranks: Ranks) -> Recipe:
    """Return the recipe on the GPU that is the rank's own; `UsageError` beside a Ray cluster."""
    if ranks.world == 1:
        return recipe
    if recipe.cluster != "none":
        raise UsageError(
            f"`cluster` = {recipe.cluster!r} spreads folds, torchrun's ranks replicas",
            hint="leave one of them out",
        )
    if choose_device(recipe.device).type != "cuda":
        return recipe
    return recipe.replace(device=f"cuda:{torch.cuda.current_device()}")


def require_fold(fold: int | None, folds: int) -> None:
    """Raise `UsageError` for a fold that there is not."""
    if fold is not None and fold not in range(folds):
        raise UsageError(f"`fold` = {fold} is none of 0 to {folds - 1}")


def cache_of(recipe: Recipe, notice: Callable[[str], None] = lambda message: None) -> Path | None:
    """Return the folder for what is worth keeping from run to run, if there can be one."""
    try:
        return None if recipe.cache == "none" else cache_folder.root_of(recipe.cache)
    except ResourceError as error:
        notice(f"decoded photos are not kept: {error.message}")
        return None
