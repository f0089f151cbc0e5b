"""One classifier from the networks of a run's folds: an ensemble, one fold, or a merged model.

All folds share one start, so their weights can be averaged into a soup of one network's cost. A
soup has seen every photo of the folds: only photos outside of them can judge it.

    soup     the plain mean of all folds (Wortsman et al., "Model soups", ICML 2022)
    greedy   folds in the order of their out-of-fold accuracy, each kept if the mean with it is no
             worse on photos outside all folds (the same paper's recipe 1)
    stock    pulled towards the start by the angle between folds (`merge.model_stock`)

Knows nothing of run folders: `Ingredients` holds what it needs of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from fieldguide import merge
from fieldguide.analysis import calibration, conformal, metrics, unknown
from fieldguide.analysis.taxa import Taxonomy
from fieldguide.errors import DataError, UsageError
from fieldguide.merge import Weights
from fieldguide.network.batch_norm import RECALIBRATION_PHOTOS
from fieldguide.photos import pixels
from fieldguide.predict import inference
from fieldguide.predict.card import Architecture, Card, OutOfFold
from fieldguide.predict.card import Combine as Together
from fieldguide.predict.classifier import Classifier, as_tensors
from fieldguide.predict.model import Machine
from fieldguide.recipe import Recipe
from fieldguide.seeds import derive_seed
from fieldguide.storage import files

Rule = Literal["soup", "greedy", "stock"]
BatchNorm = Literal["average", "recalibrate"]
RULES: tuple[Rule, ...] = ("soup", "greedy", "stock")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Outside:
    """The labelled photos that no fold trained on and on which nothing was chosen.

    `groups` name what belongs together; `hashes` are the SHA-256 of the files.
    """

    files: tuple[Path, ...]
    targets: Int[np.ndarray, " n"]
    groups: tuple[str, ...]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.files)

    def part(self, rows: NDArray[np.int64]) -> "Outside":
        """Return some of the photos, by number."""
        return Outside(
            tuple(self.files[row] for row in rows),
            self.targets[rows],
            tuple(self.groups[row] for row in rows),
            tuple(self.hashes[row] for row in rows),
        )


@dataclass(frozen=True, eq=False)
class Ingredients:
    """The parts of a run that make a classifier.

    `weights` reads a fold's, or (None) the common start's; `judged` and `targets` are each done
    fold's out-of-fold logits and classes, and `groups` the numbers of the photos' groups;
    `training` are the files of all folds; `taxonomy` has the taxa of the classes.
    """

    recipe: Recipe
    classes: tuple[str, ...]
    weights: Callable[[int | None], Arrays]
    judged: Mapping[int, Float[np.ndarray, "_ classes"]]
    targets: Mapping[int, Int[np.ndarray, " _"]]
    groups: Mapping[int, Int[np.ndarray, " _"]]
    taxonomy: Taxonomy
    training: tuple[Path, ...]
    outside: Outside
    license: str
    crop: str
    provenance: Mapping[str, Any]

    @cached_property
    def architecture(self) -> Architecture:
        """The architecture that all folds have in common."""
        recipe = self.recipe
        settings = {
            name: getattr(recipe, name)
            for name in Architecture.__dataclass_fields__
            if name != "classes"
        }
        return Architecture(classes=len(self.classes), **settings | {"size": recipe.eval_size})

    @property
    def pooled(self) -> tuple[Float[np.ndarray, "n classes"], Int[np.ndarray, " n"]]:
        """The out-of-fold logits and classes of all folds that are done."""
        both = self.judged, self.targets
        logits, targets = (np.concatenate(list(by_fold.values())) for by_fold in both)
        return logits, targets

    @cached_property
    def temperature(self) -> float:
        """The temperature that fits the pooled logits."""
        return calibration.fit_temperature(*self.pooled)

    def fold_weights(self, folds: Sequence[int]) -> list[Weights]:
        """Return each fold's weights as tensors."""
        members = [as_tensors(self.weights(fold)) for fold in folds]
        for fold, weights in zip(folds, members, strict=True):
            with files.parsing(Path(f"weights of fold {fold}")):
                inference.require_weights(self.architecture, weights)
        return members


@dataclass(frozen=True, eq=False)
class Greedy:
    """The folds that a greedy soup chose, and the worth of that choice.

    `accuracy` is that on the photos that chose it, which flatters. `logits` are cross-fitted: each
    half of the outside photos is judged by the soup that the other half chose.
    """

    folds: tuple[int, ...]
    accuracy: float
    logits: Float[np.ndarray, "n classes"]


def by_name(
    ingredients: Ingredients, name: str, *, batch_norm: BatchNorm, machine: Machine
) -> Classifier:
    """Return the classifier called `name`: a way to answer together, a rule, or `fold-0`."""
    if name in get_args(Together):
        return ensemble(ingredients, cast(Together, name))
    if name in RULES:
        return soup(ingredients, name, batch_norm=batch_norm, machine=machine)
    return one_fold(ingredients, int(name.removeprefix("fold-")))


def ensemble(ingredients: Ingredients, together: Together = "ensemble") -> Classifier:
    """Return all folds that are done, each calibrated by the photos that it was judged on."""
    return _of_folds(ingredients, list(ingredients.judged), together)


def one_fold(ingredients: Ingredients, fold: int) -> Classifier:
    """Return one fold's merged weights; the photos it was judged on calibrate its sets."""
    if fold not in ingredients.judged:
        raise UsageError(
            f"fold {fold} is not trained",
            hint=f"the folds that are: {', '.join(map(str, ingredients.judged))}",
        )
    return _of_folds(ingredients, [fold], "ensemble")


def _of_folds(ingredients: Ingredients, folds: list[int], together: Together) -> Classifier:
    return Classifier(
        _card(ingredients, [f"fold {fold}" for fold in folds], together, {"folds": folds}),
        tuple(ingredients.fold_weights(folds)),
        _out_of_fold(ingredients, {fold: member for member, fold in enumerate(folds)}),
    )


def soup(
    ingredients: Ingredients,
    rule: Rule,
    *,
    batch_norm: BatchNorm = "average",
    machine: Machine = Machine(),
    chosen: Greedy | None = None,
) -> Classifier:
    """Return one network merged from all done folds. `chosen`: the result of `greedy`, if known.

    Its temperature and sets come from the folds' out-of-fold predictions: it has none of its own.
    Raises `DataError` where `greedy` has no photos outside all folds to choose by.
    """
    made: dict[str, Any] = {"rule": rule, "batch_norm": batch_norm}
    folds: tuple[int, ...] = tuple(ingredients.judged)
    if rule == "greedy":
        chosen = chosen or greedy(ingredients, batch_norm=batch_norm, machine=machine)
        folds = chosen.folds
        made |= {"chosen_on": len(ingredients.outside), "accuracy_where_chosen": chosen.accuracy}
    return Classifier(
        _card(ingredients, [rule], "ensemble", made | {"folds": list(folds)}),
        (merged(ingredients, folds, rule, batch_norm, machine),),
        _out_of_fold(ingredients, dict.fromkeys(ingredients.judged, 0)),
    )


def as_of_now(model: Classifier, ingredients: Ingredients) -> Classifier:
    """Return a merged model that was kept, with the taxa and the known photos that a run has now.

    A model of an older version has none, and taxa may have been given since.
    """
    if model.card.taxonomy == ingredients.taxonomy:
        return model
    return replace(
        model,
        card=replace(model.card, taxonomy=ingredients.taxonomy),
        out_of_fold=_out_of_fold(ingredients, dict.fromkeys(ingredients.judged, 0)),
    )


def model_name(rule: str, batch_norm: str) -> str:
    """Return a merged model's name in a run; `UsageError` for an unknown `batch_norm`."""
    if batch_norm not in get_args(BatchNorm):
        raise UsageError(f"`batch_norm` is none of {', '.join(get_args(BatchNorm))}: {batch_norm}")
    plain = batch_norm == "average" or rule not in RULES
    return rule if plain else f"{rule}-recal"


def merged(
    ingredients: Ingredients,
    folds: Sequence[int],
    rule: Rule,
    batch_norm: BatchNorm,
    machine: Machine,
) -> Weights:
    """Return the folds' weights merged by a rule, batch norm averaged or re-estimated.

    Re-estimated on training photos, it cost soups 3 to 4 points in short fits of `quick` and gained
    nothing in longer ones (docs/results.md). Even then statistics of a backbone that was not
    trained stay: heads were fitted to what it gives with them (144 photos of 12 classes, resnet18
    at 128 px: 61 % of 72 others right after re-estimation, by folds 81 to 86 %).
    """
    copies = ingredients.fold_weights(sorted(folds))
    if rule == "stock":
        weights = merge.RULES["model_stock"](copies, anchor(ingredients))
    else:
        weights = merge.average(copies)
    if batch_norm == "average" or _untrained(ingredients, copies):
        return weights
    return inference.recalibrated(
        ingredients.architecture, weights, _calibration_photos(ingredients), machine
    )


def _untrained(ingredients: Ingredients, copies: Sequence[Weights]) -> bool:
    """Return whether all copies have the backbone that the folds started from."""
    start = as_tensors(ingredients.weights(None))
    names = [name for name in start if name.startswith("backbone.")]
    return all(bool((copy[name] == start[name]).all()) for copy in copies for name in names)


def greedy(ingredients: Ingredients, *, batch_norm: BatchNorm, machine: Machine) -> Greedy:
    """Return the greedy soup's folds, chosen by all outside photos and by each half of them."""
    outside = ingredients.outside
    if len(outside) < 2:
        raise DataError(
            "a greedy soup is chosen by labelled photos outside all folds, and this run has"
            f" {len(outside)}",
            hint="give the collection a `val` part, or begin a run with --holdout 0.1",
        )
    known: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def logits(folds: tuple[int, ...]) -> NDArray[np.float32]:
        if folds not in known:
            weights = merged(ingredients, folds, "greedy", batch_norm, machine)
            known[folds] = outside_logits(ingredients, [weights], outside, machine)[0]
        return known[folds]

    def choose(rows: NDArray[np.int64]) -> tuple[int, ...]:
        targets = outside.targets[rows]
        return add_greedily(
            by_accuracy(ingredients), lambda folds: metrics.accuracy(logits(folds)[rows], targets)
        )

    folds = choose(np.arange(len(outside)))
    cross_fitted = np.empty_like(logits(folds))
    for judged, by in halves(outside.groups):
        cross_fitted[judged] = logits(choose(by))[judged]
    return Greedy(folds, metrics.accuracy(logits(folds), outside.targets), cross_fitted)


def add_greedily(
    order: Sequence[int], accuracy: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...]:
    """Return the first of `order`, and each later one with which the mean is no worse."""
    chosen: tuple[int, ...] = (order[0],)
    for fold in order[1:]:
        more = tuple(sorted((*chosen, fold)))
        if accuracy(more) >= accuracy(chosen):
            chosen = more
    return chosen


def by_accuracy(ingredients: Ingredients) -> list[int]:
    """Return the folds by falling out-of-fold accuracy."""
    judged, targets = ingredients.judged, ingredients.targets
    return sorted(judged, key=lambda fold: -metrics.accuracy(judged[fold], targets[fold]))


def halves(groups: Sequence[str]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return rows to judge and rows to choose by, twice; a group's name draws its half."""
    side = np.array([derive_seed("half", group) % 2 for group in groups])
    if side.min() == side.max():  # the first group goes to the other half
        side[np.array(groups) == groups[0]] = 1 - side[0]
    first, second = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    if not len(first) or not len(second):
        raise DataError("all photos outside the folds are of one group: they cannot be halved")
    return [(first, second), (second, first)]


def outside_logits(
    ingredients: Ingredients, members: Sequence[Weights], outside: Outside, machine: Machine
) -> Float[np.ndarray, "members n classes"]:
    """Return logits of the outside photos; `DataError` if one cannot be read any more."""
    found, rows = inference.all_logits(ingredients.architecture, members, outside.files, machine)
    if len(rows) < len(outside):
        lost = sorted(set(range(len(outside))) - set(rows.tolist()))
        raise DataError(
            f"{len(lost)} of {len(outside)} photos outside the folds cannot be read,"
            f" such as `{outside.files[lost[0]]}`",
            hint="bring them back; if they lie elsewhere now, name their folder with --photos-root",
        )
    return found


def anchor(ingredients: Ingredients) -> Weights:
    """Return the backbone's trained tensors at the start of all folds."""
    start = as_tensors(ingredients.weights(None))
    return {
        name: tensor
        for name, tensor in start.items()
        if name.startswith("backbone.") and tensor.is_floating_point() and ".running_" not in name
    }


def _calibration_photos(ingredients: Ingredients) -> list[Path]:
    """Return some training photos in random order."""
    draw = np.random.default_rng(derive_seed(ingredients.recipe.seed, "soup recalibration"))
    rows = draw.permutation(len(ingredients.training))[:RECALIBRATION_PHOTOS]
    photos = [ingredients.training[row] for row in rows]
    gone = [photo for photo in photos if not pixels.is_there(photo)]
    if 2 * len(gone) > len(photos):
        raise DataError(
            f"batch norm is re-estimated on training photos, and {len(gone)} of {len(photos)} are"
            f" gone, such as `{gone[0]}`",
            hint="name the folder where they lie now with --photos-root, or keep the folds' mean"
            " statistics, without --batch-norm",
        )
    return photos


def _card(
    ingredients: Ingredients, members: Sequence[str], together: Together, made: Mapping[str, Any]
) -> Card:
    return Card(
        architecture=ingredients.architecture,
        classes=ingredients.classes,
        members=tuple(members),
        combine=together,
        temperature=ingredients.temperature,
        license=ingredients.license,
        calibration=_calibration_record(ingredients),
        provenance={**ingredients.provenance, "made": dict(made)},
        crop=ingredients.crop,
        taxonomy=ingredients.taxonomy,
    )


def _calibration_record(ingredients: Ingredients) -> dict[str, Any]:
    """Return calibration out of fold before and after scaling; after is cross-fitted."""
    logits, targets = ingredients.pooled
    sizes = [len(part) for part in ingredients.judged.values()]
    fold_of = np.repeat(np.arange(len(sizes)), sizes)
    return {
        "photos": len(targets),
        "before": _calibration_figures(metrics.softmax(logits), targets),
        "after": _calibration_figures(calibration.cross_fitted(logits, targets, fold_of), targets),
    }


def _calibration_figures(
    probabilities: Float[np.ndarray, "n classes"], targets: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    curve = calibration.reliability(probabilities, targets)
    return {
        "log_loss": metrics.log_loss(probabilities, targets),
        "calibration_error": metrics.calibration_error(probabilities, targets),
        "reliability": {
            "confidence": [round(value, 6) for value in curve.confidence.tolist()],
            "accuracy": [round(value, 6) for value in curve.accuracy.tolist()],
            "photos": curve.photos.tolist(),
        },
    }


def _out_of_fold(ingredients: Ingredients, member_of: Mapping[int, int]) -> OutOfFold:
    """Return the scores of the folds named, each under the number of its member."""
    folds = list(member_of)
    both = ingredients.targets, ingredients.groups, ingredients.judged
    targets, groups, logits = (np.concatenate([each[fold] for fold in folds]) for each in both)
    probabilities = calibration.scaled(logits, ingredients.temperature)
    best = ingredients.taxonomy.best(probabilities)
    sizes = [len(ingredients.targets[fold]) for fold in folds]
    return OutOfFold(
        split=metrics.own(conformal.nonconformity(probabilities, "split"), targets),
        adaptive=metrics.own(conformal.nonconformity(probabilities, "adaptive"), targets),
        targets=targets,
        members=np.repeat([member_of[fold] for fold in folds], sizes),
        groups=groups,
        doubts=unknown.doubt(probabilities),
        confidences=best.confidences,
        right=ingredients.taxonomy.right(best, targets),
    )
