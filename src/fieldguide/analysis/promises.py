"""Answers that are right as often as promised: those above a threshold of confidence.

The threshold is found on photos out of fold, and holds for photos like these: with a chance of
`DOUBT` at most their answers are right less often than asked. Arrays in, numbers out.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray

from fieldguide.analysis.intervals import share_interval
from fieldguide.analysis.metrics import rows_of

# The thresholds that are tried, whatever the photos: each test is corrected for their number.
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
DOUBT = 0.05
NONE = -1  # the level of a photo that gets no answer

Confidences = Float[np.ndarray, "n levels"]
Rights = Bool[np.ndarray, "n levels"]
Groups = Shaped[np.ndarray, " n"]


@dataclass(frozen=True)
class Promise:
    """A threshold of confidence, from which answers are right in a share `asked` of photos.

    `threshold` is None where none can be promised; it was found on so many `photos`. `answered` and
    `right` are the shares there.
    """

    asked: float
    threshold: float | None
    photos: int
    answered: float = 0.0
    right: float = 0.0


@dataclass(frozen=True)
class Kept:
    """What became of promises: thresholds of the other folds on each fold's photos.

    `answered` is the share of photos with an answer, `right` that of the answers which were right,
    with its 95 % interval; NaN, and the whole range, without any. `levels` are the shares of photos
    answered at each level.
    """

    answered: float
    right: float
    interval: tuple[float, float]
    levels: tuple[float, ...]


def fewest(asked: float) -> int:
    """Return the fewest single photos, all of them right, of which anything can be promised."""
    return math.ceil(math.log(DOUBT / len(THRESHOLDS)) / math.log(asked))


def answered(confidences: Confidences, threshold: float | None) -> Int[np.ndarray, " n"]:
    """Return the finest level of each photo whose confidence reaches the threshold, or `NONE`."""
    if threshold is None:
        return np.full(len(confidences), NONE)
    sure = confidences >= threshold
    found: NDArray[np.int64] = np.where(sure.any(axis=1), sure.argmax(axis=1), NONE)
    return found


def promise(confidences: Confidences, right: Rights, groups: Groups, asked: float) -> Promise:
    """Return the lowest threshold at which answers are right in a share `asked` of photos.

    Each threshold is tested by the exact binomial tail of the number of wrong answers, or by the
    end of `share_interval` where photos come in groups, which is the same for single photos;
    `DOUBT` is divided by the number of thresholds (Bonferroni). Source:
    Angelopoulos, Bates, Candès, Jordan, Lei, Learn then Test, Annals of Applied Statistics 19, 2025
    (the risk of selective classification). Raises ValueError for a share outside 0 … 1.
    """
    if not 0 < asked < 1:
        raise ValueError(f"the share must lie between 0 and 1: {asked}")
    for threshold in THRESHOLDS:
        level = answered(confidences, threshold)
        rows = np.flatnonzero(level != NONE)
        if not len(rows):
            break
        good = right[rows, level[rows]]
        if _holds(good, groups[rows], asked, DOUBT / len(THRESHOLDS)):
            share = len(rows) / len(right)
            return Promise(asked, threshold, len(right), share, float(good.mean()))
    return Promise(asked, None, len(right))


def _holds(good: Bool[np.ndarray, " n"], groups: Groups, asked: float, doubt: float) -> bool:
    """Return whether answers are right in a share, with that chance of being mistaken."""
    if good.mean() < asked:
        return False
    if len(np.unique(groups)) < len(groups):
        return share_interval(good, groups, share=1 - 2 * doubt)[0] >= asked
    photos, wrong = len(good), int(len(good) - good.sum())
    times = np.arange(1, wrong + 1)  # log of the binomial coefficients, one after the other
    ways = np.cumsum(np.log(photos - times + 1) - np.log(times))
    logs = np.append(0.0, ways + times * math.log1p(-asked)) + (
        photos - np.arange(wrong + 1)
    ) * math.log(asked)
    return float(np.exp(logs).sum()) <= doubt


def kept(
    confidences: Confidences,
    right: Rights,
    groups: Groups,
    fold_of: Int[np.ndarray, " n"],
    asked: float,
) -> Kept:
    """Return what becomes of each fold's photos by the promise of the other folds."""
    level = np.full(len(right), NONE)
    for fold in np.unique(fold_of):
        own, others = fold_of == fold, fold_of != fold
        if others.any():
            found = promise(confidences[others], right[others], groups[others], asked)
            level[own] = answered(confidences[own], found.threshold)
    return judged(level, right, groups)


def judged(level: Int[np.ndarray, " n"], right: Rights, groups: Groups) -> Kept:
    """Return how many photos were answered at these levels, and how many answers were right."""
    rows = np.flatnonzero(level != NONE)
    levels = np.bincount(level[rows], minlength=right.shape[1]) / max(len(level), 1)
    if not len(rows):
        return Kept(0.0, math.nan, (0.0, 1.0), tuple(levels.tolist()))
    good = right[rows, level[rows]]
    interval = share_interval(good, groups[rows])
    return Kept(len(rows) / len(level), float(good.mean()), interval, tuple(levels.tolist()))


def by_class(
    confidences: Confidences,
    right: Rights,
    groups: Groups,
    predicted: Int[np.ndarray, " n"],
    classes: int,
    asked: float,
) -> list[Promise]:
    """Return the promise for each class: of the photos that are predicted as it, at level 0."""
    return [
        promise(confidences[rows, :1], right[rows, :1], groups[rows], asked)
        for rows in rows_of(predicted, classes)
    ]
