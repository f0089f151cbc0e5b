"""The training photos that look most like a photo, to a network: by the angle between features.

Features are what the network's last layer sees; they are kept in the cache, so that a run's photos
go through a network once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from fieldguide.errors import DataError
from fieldguide.fitting.features import kept_features
from fieldguide.fitting.jobs import parts_of
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.settings import on_machine
from fieldguide.merge import Weights
from fieldguide.network.network import load_weights
from fieldguide.photos.catalog import Catalog, Photo, in_columns
from fieldguide.photos.inspect import inspect
from fieldguide.photos.pixels import Reading
from fieldguide.predict import combine, inputs
from fieldguide.predict.card import Architecture
from fieldguide.predict.combine import Ingredients
from fieldguide.predict.inference import precision_used, template
from fieldguide.predict.model import Machine
from fieldguide.recipe import ResolvedRecipe
from fieldguide.runs.run import Run
from fieldguide.seeds import derive_seed
from fieldguide.storage import files

HEADER = ("photo", "place", "path", "label", "similarity", "status")


@dataclass(frozen=True, slots=True)
class Like:
    """A photo of the run, by its number in the catalog, and the cosine between its features."""

    photo: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Similar:
    """What was asked about, the photos most like it, the nearest first, and why there are none."""

    name: str
    likes: tuple[Like, ...]
    problem: str = ""


def similar(
    run: Run,
    photos: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    boxes: str | Path | None = None,
    machine: Machine = Machine(),
    watcher: Watcher | None = None,
) -> list[Similar]:
    """Return the training photos most like each of these (`inputs.read`), to the folds' soup.

    The same picture in the run is not counted as like itself. A run of crops compares crops. Raises
    `DataError` where the run's photos cannot be read any more.
    """
    watcher = watcher or Watcher()
    _require_photos(run)
    found = inputs.read(photos, crop=run.crop, boxes=boxes, notice=watcher.notice)
    asked, _ = inputs.crops_of(found, run.crop)
    there = [each for each in asked if each.file is not None]
    looked = Catalog(Path(), in_columns(Photo(str(each.file), None) for each in there))
    facts = inspect(looked, reading=Reading.of(run.recipe))
    readable = [n for n, fact in enumerate(facts) if not fact.problem]
    likes: dict[int, tuple[Like, ...]] = {}
    if readable:
        seen = _by_soup(run, machine, watcher)
        rows = _training(run)
        own = seen(run.catalog, rows)
        queries = Catalog(
            Path(),
            in_columns(Photo(str(there[n].file), None, sha256=facts[n].sha256) for n in readable),
        )
        asked_features = seen(queries, np.arange(len(readable)))
        hashes = np.array([run.catalog.photos[row].sha256 for row in rows.tolist()])
        for place, number in enumerate(readable):
            other = hashes != facts[number].sha256
            likes[number] = nearest(asked_features[place], own[other], rows[other], top)
    answers = iter(
        Similar(each.name, likes.get(n, ()), facts[n].problem) for n, each in enumerate(there)
    )
    return [
        Similar(each.name, (), each.problem) if each.file is None else next(answers)
        for each in asked
    ]


def training_features(
    run: Run, machine: Machine = Machine(), watcher: Watcher | None = None
) -> tuple[Float[np.ndarray, "n channels"], Int[np.ndarray, " n"]]:
    """Return the features of the training photos, as the folds' soup has them, and their numbers.

    Raises `DataError` where the run's photos cannot be read any more.
    """
    _require_photos(run)
    rows = _training(run)
    return _by_soup(run, machine, watcher or Watcher())(run.catalog, rows), rows


def _require_photos(run: Run) -> None:
    if not run.catalog.root.exists():
        raise DataError(
            f"the run's photos are not in `{run.catalog.root}` any more",
            hint="name the folder where they lie now with --photos-root",
        )


def _training(run: Run) -> Int[np.ndarray, " n"]:
    return np.flatnonzero(np.array([photo.split == "train" for photo in run.catalog.photos]))


def _by_soup(
    run: Run, machine: Machine, watcher: Watcher
) -> Callable[[Catalog, Int[np.ndarray, " n"]], Float[np.ndarray, "n channels"]]:
    """Return the function from photos to what the folds' soup sees of them."""
    ingredients = run.ingredients()
    soup = combine.soup(ingredients, "soup").members[0]
    return partial(
        _features, run.recipe, ingredients.architecture, soup, machine=machine, watcher=watcher
    )


def of_class(
    run: Run,
    fold: int,
    photos: Sequence[int],
    classes: Sequence[int],
    *,
    top: int,
    most: int,
    ingredients: Ingredients,
) -> list[tuple[Like, ...]]:
    """Return for photos that a fold judged its training photos of a class each that are most alike.

    Of classes with more than `most` photos so many are drawn. `ingredients` are the run's.
    """
    train, _ = parts_of(run.recipe, run.catalog, run.folds[fold])
    members: dict[int, Int[np.ndarray, " _"]] = {}
    for number in set(classes):
        own = train[run.targets[train] == number]
        draw = np.random.default_rng(derive_seed("compared with mistakes", fold, number))
        members[number] = np.sort(draw.permutation(own)[:most])
    (weights,) = ingredients.fold_weights([fold])
    rows = np.unique(np.concatenate([np.array(photos), *members.values()])).astype(np.int64)
    features = _features(run.recipe, ingredients.architecture, weights, run.catalog, rows)
    place = {int(row): n for n, row in enumerate(rows)}
    return [
        nearest(
            features[place[photo]],
            features[[place[int(row)] for row in members[number]]],
            members[number],
            top,
        )
        for photo, number in zip(photos, classes, strict=True)
    ]


def nearest(
    photo: Float[np.ndarray, " channels"],
    others: Float[np.ndarray, "n channels"],
    rows: Int[np.ndarray, " n"],
    top: int,
) -> tuple[Like, ...]:
    """Return the first `top` of the others by their cosine with a photo; `rows` are their numbers.

    Of equal ones the first comes first; features that are all 0 are like nothing.
    """
    lengths = np.linalg.norm(others, axis=1) * np.linalg.norm(photo)
    cosines = np.divide(others @ photo, lengths, out=np.zeros(len(others)), where=lengths > 0)
    best = np.argsort(-cosines, kind="stable")[:top]
    return tuple(Like(int(rows[n]), float(min(cosines[n], 1.0))) for n in best)


def write(run: Run, found: Sequence[Similar], out: Path) -> None:
    """Write a row for each similar photo, by place from 1; a photo that has none has one row."""
    photos = run.catalog.photos
    rows: list[list[str]] = []
    for each in found:
        if not each.likes:
            rows.append([each.name, "", "", "", "", each.problem])
        for place, like in enumerate(each.likes, 1):
            photo = photos[like.photo]
            cells = [each.name, str(place), photo.path, str(photo.label), f"{like.similarity:.4f}"]
            rows.append([*cells, "ok"])
    files.write_csv(out, HEADER, rows)


def _features(
    recipe: ResolvedRecipe,
    architecture: Architecture,
    weights: Weights,
    catalog: Catalog,
    rows: Int[np.ndarray, " n"],
    machine: Machine = Machine(),
    watcher: Watcher | None = None,
) -> Float[np.ndarray, "n channels"]:
    here = on_machine(recipe, machine)
    here = here.replace(precision=precision_used(architecture, machine))
    network = template(architecture)
    load_weights(network, weights)
    found: Float[np.ndarray, "n channels"]
    found = (
        kept_features(here, network, catalog, rows, watcher or Watcher()).numpy().astype(np.float64)
    )
    return found
