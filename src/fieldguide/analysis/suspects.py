"""Labels that look wrong, photos that are hard, and classes that are confused or unsteady.

Out-of-fold probabilities in, one row a photo and one column a class, ranked lists out; photos,
classes and folds are numbers, `targets` each photo's labelled class. Each function raises
ValueError for no photos, rows that are no probabilities, or a target that is no column. Knows
nothing of files, catalogs or runs.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from fieldguide.analysis import metrics
from fieldguide.analysis.metrics import Scores, Targets
from fieldguide.seeds import derive_seed

_Floats: TypeAlias = NDArray[np.float64]
_Numbers: TypeAlias = NDArray[np.int64]

JUDGES = 0.5  # share of photos that a network must classify correctly to judge labels (taste)

# A mean of equal numbers may be rounded to just above them: as in cleanlab.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Suspect:
    """A photo whose label looks wrong: the class it has and the one that is most probable."""

    photo: int  # row of the probabilities
    given: int
    suggested: int
    given_probability: float
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class HardPhoto:
    """A photo that is predicted as another class; `place` of its own is 2 for the next best."""

    photo: int
    given: int
    predicted: int
    given_probability: float
    predicted_probability: float
    place: int


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Two classes, `one` < `other`, with photos that are predicted as the other."""

    one: int
    other: int
    one_as_other: int  # photos of `one` that are predicted as `other`
    other_as_one: int
    one_photos: int  # photos of `one`, whatever they are predicted as
    other_photos: int

    @property
    def photos(self) -> int:
        """The number of photos of either that are predicted as the other."""
        return self.one_as_other + self.other_as_one

    @property
    def rate(self) -> float:
        """The share of the photos of both classes that are predicted as the other."""
        return self.photos / (self.one_photos + self.other_photos)


@dataclass(frozen=True, slots=True)
class UnsteadyClass:
    """A class that some folds recognise better than others, by more than chance.

    `recalls` are those of the folds that test photos of it, by fold number. `p_value` is for this
    class alone, `adjusted` for all classes that were looked at.
    """

    label: int
    photos: int
    recalls: dict[int, float]
    p_value: float
    adjusted: float

    @property
    def spread(self) -> float:
        """The largest recall of a fold less the smallest."""
        return max(self.recalls.values()) - min(self.recalls.values())


# --- labels and photos ----------------------------------------------------------------------------


def suspects(probabilities: Scores, targets: Targets) -> list[Suspect]:
    """Return the photos whose label looks wrong, the most suspicious first.

    The confident joint says how many: the photos that it counts as another class, and that are
    predicted so. As many are listed by p(own label), the lowest first; of equal ones the surer of
    another class (cleanlab's `low_self_confidence`). Where classes are hard to tell apart, photos
    of perfectly labelled collections are listed too: somebody who knows must look at the list.

    Measured (benchmarks/labels.py) on 5,359 photos of 100 classes, 268 of them labelled otherwise
    at random; 3 folds of a resnet18, 128 pixels, 3 epochs, one seed. Listed / precision / recall:
    this rule 283 / 0.905 / 0.955; the photos off the joint's diagonal themselves (the paper's
    C_confusion) 283 / 0.686 / 0.724; the calibrated joint's prune by class 369 / 0.618 / 0.851, by
    noise rate 332 / 0.627 / 0.776, by both 272 / 0.743 / 0.754. Ranking all photos, p(own label)
    has an average precision of 0.981, the margin to the best class 0.839. Random labels are the
    easy case: photos mistaken for a similar class keep more of p(own label).

    There are none where fewer than `JUDGES` of the photos are classified as they are labelled.
    """
    own, best = _own_and_best(probabilities, targets)
    if metrics.accuracy(probabilities, targets) < JUDGES:
        return []
    counted = _confident_class(probabilities, targets)
    doubted = own < best
    count = int(np.sum(doubted & (counted >= 0) & (counted != targets)))
    ranked = _least_own_first(np.flatnonzero(doubted), own, best)[:count]
    predicted = probabilities.argmax(axis=1)
    return [
        Suspect(row, int(targets[row]), int(predicted[row]), float(own[row]), float(best[row]))
        for row in ranked.tolist()
    ]


def hard_photos(probabilities: Scores, targets: Targets) -> list[HardPhoto]:
    """Return the photos that are predicted as another class, the lowest p(own class) first.

    Suspects are among them: a photo is hard or wrongly labelled, and only a look can tell.
    """
    own, best = _own_and_best(probabilities, targets)
    predicted = probabilities.argmax(axis=1)
    ranked = _least_own_first(np.flatnonzero(predicted != targets), own, best)
    return [
        HardPhoto(
            row,
            int(targets[row]),
            int(predicted[row]),
            float(own[row]),
            float(best[row]),
            _place(probabilities[row], int(targets[row])),
        )
        for row in ranked.tolist()
    ]


def _least_own_first(rows: _Numbers, own: _Floats, best: _Floats) -> _Numbers:
    return rows[np.lexsort((rows, -best[rows], own[rows]))]


def _place(probabilities: NDArray[np.floating], label: int) -> int:
    """Return 1 for the most probable class; of equal ones the first is ahead, as for `argmax`."""
    own = probabilities[label]
    return 1 + int(np.sum(probabilities > own) + np.sum(probabilities[:label] == own))


def _confident_class(probabilities: Scores, targets: Targets) -> _Numbers:
    """Return the class that each photo is confidently of (the confident joint); -1 for none.

    t_j is the mean of p(j) over the photos labelled j, and a photo is of the most probable class
    among those with p(j) ≥ t_j: a class that the model is never sure of asks for less.

    Source: Northcutt, Jiang, Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels,
    JAIR 70, 2021, equations 1 and 2, not calibrated. cleanlab 2.9 differs where several classes
    reach their threshold and the most probable class does not: it counts the latter.
    """
    classes = probabilities.shape[1]
    own = metrics.own(probabilities, targets).astype(np.float64)
    photos = np.bincount(targets, minlength=classes)
    means = np.bincount(targets, weights=own, minlength=classes) / np.maximum(photos, 1)
    # Never so low that a probability of 0 reaches it; a class without a photo is out of reach.
    thresholds = np.where(photos > 0, means.clip(2 * _ROUNDING), np.inf)
    reached = probabilities >= thresholds - _ROUNDING
    best: _Numbers = np.where(reached, probabilities, -1).argmax(axis=1)
    return np.where(reached.any(axis=1), best, -1)


def _own_and_best(probabilities: Scores, targets: Targets) -> tuple[_Floats, _Floats]:
    """Return each photo's probabilities of its label and of the most probable class."""
    metrics.check_probabilities(probabilities, targets)
    own = metrics.own(probabilities, targets)
    return own.astype(np.float64), probabilities.max(axis=1).astype(np.float64)


# --- classes --------------------------------------------------------------------------------------


def confused_pairs(probabilities: Scores, targets: Targets) -> list[ConfusedPair]:
    """Return pairs of classes by the number of photos of either predicted as the other.

    Only pairs with such a photo; equal numbers are ranked by their share of the two classes'
    photos. Needs no table of classes × classes.
    """
    metrics.check_probabilities(probabilities, targets)
    predicted = probabilities.argmax(axis=1)
    support = np.bincount(targets, minlength=probabilities.shape[1]).tolist()
    wrong = predicted != targets
    ways = Counter(zip(targets[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    pairs = [
        ConfusedPair(a, b, ways[a, b], ways[b, a], support[a], support[b])
        for a, b in {(min(way), max(way)) for way in ways}
    ]
    return sorted(pairs, key=lambda pair: (-pair.photos, -pair.rate, pair.one, pair.other))


# Fewer photos show nothing: of ten in five folds, four right ones that fill two folds
# are the most uneven outcome, and have a chance of 1 in 21.
_LEAST_PHOTOS = 10


def unsteady_classes(
    correct: Bool[np.ndarray, " n"],
    targets: Targets,
    fold_of: Int[np.ndarray, " n"],
    *,
    level: float = 0.05,
    draws: int = 9_999,
    seed: int = 0,
) -> list[UnsteadyClass]:
    """Return classes whose recall differs between folds by more than chance, the surest first.

    For each class the photos' folds are shuffled `draws` times: p = (1 + draws at least as uneven)
    / (1 + draws), by Pearson's chi-square of right and wrong by fold, adjusted for the number of
    classes (Benjamini and Hochberg, Controlling the False Discovery Rate, JRSS B 57, 1995): of the
    classes listed, a share of `level` is expected to be there by chance. The least p is 1 / (1 +
    draws): 100 classes need draws above 100 / level for one to be found alone.

    Classes of fewer than ten photos, in one fold, or all right or all wrong are left out. Copies of
    one photo, which share a fold, make a class look unsteadier than it is. ValueError for no
    photos, unequal lengths, a negative target, a level outside 0 … 1 or no draw.
    """
    if not 0 <= level <= 1 or draws < 1:
        raise ValueError(f"level must lie between 0 and 1: {level}, draws be at least 1: {draws}")
    folds, photos, right = _by_fold(correct, targets, fold_of)
    total, right_total = photos.sum(axis=1), right.sum(axis=1)
    several_folds = (photos > 0).sum(axis=1) > 1
    uneven = (right_total > 0) & (right_total < total)
    tested = np.flatnonzero((total >= _LEAST_PHOTOS) & several_folds & uneven).tolist()
    p_values = np.array(
        [
            _p_value(photos[label], right[label], draws, derive_seed(seed, "unsteady", label))
            for label in tested
        ]
    )
    found = [
        UnsteadyClass(
            label,
            int(total[label]),
            {
                int(fold): int(found) / int(tried)
                for fold, found, tried in zip(folds, right[label], photos[label], strict=True)
                if tried
            },
            float(p_value),
            float(adjusted),
        )
        for label, p_value, adjusted in zip(tested, p_values, _adjusted(p_values), strict=True)
        if adjusted <= level
    ]
    return sorted(found, key=lambda c: (c.p_value, -c.spread, c.label))


def _by_fold(
    correct: NDArray[np.bool_], targets: Targets, fold_of: NDArray[np.integer]
) -> tuple[_Numbers, _Numbers, _Numbers]:
    """Return fold numbers, and tables (class, fold) of photos and of correct predictions."""
    if not len(correct) == len(targets) == len(fold_of) > 0:
        raise ValueError(
            "need one answer, target and fold a photo, and one photo:"
            f" {len(correct)}, {len(targets)}, {len(fold_of)}"
        )
    if targets.min() < 0:
        raise ValueError(f"a target is negative: {targets.min()}")
    folds, place = np.unique(fold_of, return_inverse=True)
    shape = (int(targets.max()) + 1, len(folds))
    cells = targets.astype(np.int64) * len(folds) + place
    photos = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    right = np.bincount(cells[correct], minlength=shape[0] * shape[1]).reshape(shape)
    return folds.astype(np.int64), photos, right


def _p_value(photos: _Numbers, right: _Numbers, draws: int, seed: int) -> float:
    """Return the share of shuffles of the class's photos over the folds at least as uneven."""
    photos, right = photos[photos > 0], right[photos > 0]
    random = np.random.default_rng(seed)
    # Shuffling deals the right answers to folds as balls of as many colours are drawn from an urn.
    dealt = random.multivariate_hypergeometric(photos, int(right.sum()), size=draws)
    # All else in chi-square is the same in every shuffle. The last bits depend on the order.
    least = (right**2 / photos).sum() * (1 - 1e-9)
    uneven = int(np.sum((dealt**2 / photos).sum(axis=1) >= least))
    return (1 + uneven) / (1 + draws)


def _adjusted(p_values: _Floats) -> _Floats:
    """Return p(i) · tests / i for the i-th smallest p, made to rise with p."""
    order = np.argsort(p_values)
    scaled = p_values[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return adjusted
