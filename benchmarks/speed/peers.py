"""The data paths of fastai and DALI, where the interpreter named by --peer-python has them."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import data
from harness import Contestant, Cost, Options, Row, in_turn, not_measured, rates
from material import Collection, collection, new_folder, recipe_of

from fieldguide import Recipe

LOOP = Path(__file__).with_name("peer_loop.py")
MODULES = {"fastai": "fastai.vision.all", "dali": "nvidia.dali"}
SIZE = 224


def peer(name: str, options: Options) -> Iterator[Row]:
    """An epoch from the store against an epoch of that library's loader."""
    what = f"from the store, crop, flip, normalise vs {name}"
    python = str(options.peer_python or sys.executable)
    if not installed(python, MODULES[name]):
        yield not_measured(name, what, f"not installed: {MODULES[name]}")
        return
    photos = collection(options, options.photos or 1000, large=options.large)
    recipe = recipe_of(options, SIZE, cache=str(new_folder(options)))
    contestants = [_whole(data.ours(recipe, photos), photos), _loop(python, name, photos, recipe)]
    a, b = (rates(costs, "cpu") for costs in in_turn(contestants, options.rounds))
    yield Row(name, f"{recipe.size} px {what}", a, b, "photos/s", "cpu", photos=photos.about)


def installed(python: str, module: str) -> bool:
    """Whether that interpreter can import the module."""
    tried = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
    return tried.returncode == 0


def _whole(contestant: Contestant, photos: Collection) -> Contestant:
    count = len(photos.files)
    return lambda: contestant().scaled(1 / count)


def _loop(python: str, name: str, photos: Collection, recipe: Recipe) -> Contestant:
    """Seconds a photo of an epoch, which the process measures itself: imports do not count."""

    def run() -> Cost:
        how = [name, str(photos.root), str(recipe.size), str(recipe.batch_size)]
        told = subprocess.run(
            [python, str(LOOP), *how], check=True, stdout=subprocess.PIPE, text=True
        )
        wall, cpu = (float(word) for word in told.stdout.split()[-2:])
        return Cost(wall, cpu)

    return run


fastai = partial(peer, "fastai")
dali = partial(peer, "dali")
