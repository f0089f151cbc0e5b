"""How fast photos become batches: from the store, and the first time, when they are decoded.

Both end in normalised float32 batches; ours lie in memory that is used again, as in training.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from harness import Contestant, Cost, Options, Row, Target, cost_of, in_turn, rates
from material import Collection, collection, new_folder, recipe_of
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fieldguide import Recipe
from fieldguide.fitting.jobs import pictures
from fieldguide.photos.augment import Normaliser
from fieldguide.photos.batches import Loader, training_plan
from fieldguide.recipe import ResolvedRecipe
from fieldguide.storage import files

SIZES = (128, 224)


def cached(options: Options) -> Iterator[Row]:
    """An epoch over photos that the store holds, against ImageFolder and transforms.v2."""
    photos = _photos(options)
    for recipe in _recipes(options):
        found = in_turn([ours(recipe, photos), peer(recipe, photos)], options.rounds)
        yield _row("data-cached", "from the store", recipe, photos, found, Target("≥", 15))


def first(options: Options) -> Iterator[Row]:
    """The epoch that decodes every photo and fills the store, against the same."""
    photos = _photos(options)
    for recipe in _recipes(options):

        def anew(recipe: Recipe = recipe) -> Cost:
            return ours(recipe.replace(cache=str(new_folder(options))), photos)()

        found = in_turn([anew, peer(recipe, photos)], options.rounds)
        yield _row("data-first", "decoded and stored", recipe, photos, found, Target("≥", 2))


def _photos(options: Options) -> Collection:
    usual = 128 if options.large else 1000
    return collection(options, options.photos or usual, large=options.large)


def _recipes(options: Options) -> list[Recipe]:
    """One a size; each with its own store, in which nothing is yet."""
    sizes = SIZES[:1] if options.quick else SIZES
    return [recipe_of(options, size, cache=str(new_folder(options))) for size in sizes]


def _row(
    name: str,
    how: str,
    recipe: Recipe,
    photos: Collection,
    found: list[list[Cost]],
    target: Target,
) -> Row:
    a, b = (rates(costs, "cpu", len(photos.files)) for costs in found)
    what = f"{how}, crop, flip, normalise vs ImageFolder + v2"
    return Row(f"{name}-{recipe.size}", what, a, b, "photos/s", "cpu", target, photos=photos.about)


def ours(asked: Recipe, photos: Collection) -> Contestant:
    """Our way, as `train` goes it: every call is an epoch with random changes of its own."""
    plain = {"eval_size": asked.size, "precision": "float32", "layout": "contiguous"}
    plain |= {"compile": "off", "workers": 0, "co_tuning": 0.0}
    recipe = ResolvedRecipe.model_validate(asked.model_dump() | plain)
    keys = [files.sha256(path) for path in photos.files]
    shown = pictures(recipe, photos.files, keys=keys)
    normalise = Normaliser(recipe.mean, recipe.std, torch.device("cpu"))
    rows, epochs = np.arange(len(keys)), itertools.count()

    def read() -> None:
        plan = training_plan(rows, recipe.batch_size, seed=0, replica=0, epoch=next(epochs))
        for batch in Loader(shown, 0).batches(plan):
            normalise(batch.images)

    return lambda: cost_of(read)


def peer(recipe: Recipe, photos: Collection) -> Contestant:
    """The usual way: torchvision's folder and transforms, torch's loader without processes."""
    steps = [
        v2.RandomResizedCrop(recipe.size, scale=recipe.crop_scale, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(recipe.mean, recipe.std),
    ]
    dataset = ImageFolder(photos.root, transform=v2.Compose(steps))
    loader = DataLoader(dataset, batch_size=recipe.batch_size, shuffle=True)
    return lambda: cost_of(lambda: [None for _ in loader])
