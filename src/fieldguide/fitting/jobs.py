"""From a run to the jobs of its folds: network, loaders and the parts of the photos.

Knows nothing of where and when they are trained.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fieldguide import recipe as recipes
from fieldguide.errors import DataError
from fieldguide.fitting.settings import cache_of, readers
from fieldguide.machine.device import (
    choose_device,
    choose_layouts,
    choose_precision,
    memory_format,
)
from fieldguide.network import batch_norm
from fieldguide.network.network import (
    build,
    freeze,
)
from fieldguide.photos.augment import Augmentation
from fieldguide.photos.batches import Loader, Pictures
from fieldguide.photos.catalog import Catalog, Files, Photo
from fieldguide.photos.decoding import Decoding
from fieldguide.photos.folds import Fold, inner_split
from fieldguide.photos.pixels import Reading
from fieldguide.photos.transforms import evaluation, training
from fieldguide.recipe import Recipe, ResolvedRecipe
from fieldguide.runs.run import Run
from fieldguide.storage import decoded, shards
from fieldguide.storage.columns import Records
from fieldguide.storage.decoded import Store
from fieldguide.train.job import FoldJob, Source


def fold_jobs(
    run: Run,
    root: Path,
    machine: Recipe | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> Callable[[int], FoldJob]:
    """From a fold's number to its job, all with one network object and one set of loaders.

    `root` is where the photos lie. What changes no result (device, workers) is taken from
    `machine`.
    """
    machine = machine or run.recipe
    device = choose_device(machine.device)
    settings = {name: getattr(machine, name) for name in recipes.HARMLESS}
    settings |= {"device": str(device), "workers": readers(machine.workers, [device])}
    recipe = run.recipe.replace(**settings)
    network = build(
        recipe.backbone,
        weights="none",
        head=recipe.head,
        classes=len(run.classes),
        dropout=recipe.dropout,
        seed=recipe.seed,
    )
    freeze(network, recipe.freeze)
    choose_layouts(recipe.layout, device)  # a run may have been begun on another kind of device
    network.to(device).to(memory_format=memory_format(recipe.layout))
    absorbed = batch_norm.absorb(network)
    if recipe.compile == "on":
        network.compile()
    photos = run.catalog.table
    loader = loader_of(recipe, photos, root, device, notice)
    places = None
    if recipe.order == "shards":
        places = index_of(root).places([photo.path for photo in photos])

    def job(index: int) -> FoldJob:
        train, watch = parts_of(recipe, run.catalog, run.folds[index])
        start, logits = run.start(index)
        source = run.source(index)
        return FoldJob(
            fold=index,
            recipe=recipe,
            network=network,
            absorbed=absorbed,
            start={name: torch.from_numpy(array) for name, array in start.items()},
            start_logits=logits,
            loader=loader,
            device=device,
            precision=choose_precision(recipe.precision, device),
            classes=len(run.classes),
            targets=run.targets,
            train=train,
            test=run.folds[index].test,
            watch=watch,
            parts=run.parts,
            places=places,
            source=Source(*(torch.from_numpy(each).to(device) for each in source))
            if source
            else None,
        )

    return job


def loader_of(
    recipe: ResolvedRecipe,
    photos: Records[Photo],
    root: Path,
    device: torch.device,
    notice: Callable[[str], None] = lambda message: None,
) -> Loader:
    """Return the loader of a run's photos, which lie in `root`."""
    shown = pictures(
        recipe,
        Files(root, photos.column("path")),
        keys=photos.column("sha256"),
        folder=shards.opened(root).holder(0).parent if root.name == shards.INDEX else root,
        notice=notice,
    )
    return Loader(shown, recipe.workers, pin_memory=device.type == "cuda")


def index_of(root: Path) -> shards.Index:
    """The index of a sharded collection; `DataError` where the photos are not in shards."""
    if root.name != shards.INDEX:
        raise DataError(
            f"`order` = 'shards', and the photos are not in shards: {root}",
            hint="pack them with `fieldguide pack`, or leave `order` as it is",
        )
    return shards.opened(root)


def parts_of(
    recipe: Recipe, catalog: Catalog, fold: Fold
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The photos a fold trains on, and those that early stopping looks at."""
    photos, classes = catalog.photos, {*catalog.classes}
    if recipe.stop == "none":
        return fold.train, np.empty(0, dtype=np.int64)
    if recipe.stop == "fold":
        val = [n for n, p in enumerate(photos) if p.split == "val" and p.label in classes]
        extra = np.array(val if recipe.watch_val else [], dtype=np.int64)
        return fold.train, np.concatenate([fold.test, extra])
    return inner_split(
        [photo.label or "" for photo in photos],
        [photo.path for photo in photos],
        [photo.group or photo.path for photo in photos],
        fold.train,
        share=recipe.inner_share,
        seed=recipe.seed,
    )


def pictures(
    recipe: ResolvedRecipe,
    photos: Sequence[Path],
    *,
    keys: Sequence[str] = (),
    folder: Path | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> Pictures:
    """What training and evaluation make of the files, which lie in `folder`, by a resolved recipe.

    With `keys`, the SHA-256 of each file, decoded photos are kept where the recipe says.
    """
    decoding = Decoding.of(
        recipe.stored_side, recipe.eval_resize, recipe.interpolation, Reading.of(recipe)
    )
    shown = Augmentation(
        size=recipe.size,
        interpolation=recipe.interpolation,
        crop_scale=recipe.crop_scale,
        flip=recipe.flip,
        color_jitter=recipe.color_jitter,
        jitter=recipe.jitter,
        grayscale=recipe.grayscale,
        policy=recipe.augment,
        erasing=recipe.erasing,
    )
    return Pictures(
        files=photos,
        training=training(shown, recipe.mean),
        evaluation=evaluation(recipe.eval_size, recipe.eval_resize, recipe.interpolation),
        decoding=decoding,
        store=_store(recipe, decoding, notice) if keys else None,
        keys=keys,
        folder=folder,
        notice=notice,
    )


def _store(recipe: Recipe, decoding: Decoding, notice: Callable[[str], None]) -> Store | None:
    """Return the store of decoded photos; None if the recipe wants them decoded each time."""
    if decoding.side is None:
        return None
    place = cache_of(recipe, notice)
    if place is None:
        return None
    folder = decoded.folder_of(
        place,
        side=decoding.side,
        interpolation=decoding.interpolation,
        reading=decoding.reading.name,
    )
    limit = None if recipe.cache_gb == "auto" else round(1e9 * recipe.cache_gb)
    return Store(folder, limit=limit, notice=notice)
