"""The worth, on photos out of fold, of sets of classes and of answering only where a model is sure.

Each fold's photos are judged by what the *other* folds' photos give: their temperature, their
quantile of nonconformity. Arrays in, numbers out. Knows nothing of runs, models or pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fieldguide.analysis import calibration, conformal, metrics
from fieldguide.analysis.conformal import Method
from fieldguide.analysis.metrics import Scores, Targets


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of sets that held the true class and their sizes, over all photos.

    `asked` is the coverage asked for, `held` the share of sets with the true class, `size` the mean
    number of classes, `empty` and `single` the shares of sets with none and one.
    """

    asked: float
    held: float
    size: float
    empty: float
    single: float


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Answered:
    """The accuracy when the surest photos alone are answered, from the surest few to all.

    At each point, all photos of at least this `confidence` are answered: a `share` of all.
    """

    share: Float[np.ndarray, " points"]
    accuracy: Float[np.ndarray, " points"]
    confidence: Float[np.ndarray, " points"]


def out_of_fold(
    logits: Scores,
    targets: Targets,
    fold_of: Int[np.ndarray, " n"],
    *,
    coverages: Sequence[float],
    method: Method = "split",
) -> list[Coverage]:
    """Return the coverage of each fold's sets, calibrated by the other folds, by coverage asked.

    This is split conformal prediction (`conformal.prediction_sets` with one member) once a fold:
    photos of all folds are exchangeable as far as the folds' networks are alike, so `held` is what
    was asked, but for the luck of the draw. `fold_of` holds any integers, one a photo. With one
    fold the list is empty. Raises ValueError as `calibration.cross_fitted` and `prediction_sets`.
    """
    metrics.check_scores(logits, targets)
    folds = np.unique(fold_of)
    if len(folds) < 2:
        return []
    held = np.empty((len(coverages), len(targets)), dtype=bool)
    size = np.empty((len(coverages), len(targets)), dtype=np.int64)
    for fold in folds:
        inside = fold_of == fold
        others = targets[~inside]
        temperature = calibration.fit_temperature(logits[~inside], others)
        scores = conformal.nonconformity(calibration.scaled(logits, temperature), method)
        known, member = metrics.own(scores[~inside], others), np.zeros_like(others)
        for number, asked in enumerate(coverages):
            sets = conformal.prediction_sets(
                scores[inside][None], known, member, others, coverage=asked
            )
            held[number, inside] = metrics.own(sets, targets[inside])
            size[number, inside] = sets.sum(axis=1)
    return [
        Coverage(
            asked=asked,
            held=float(held[number].mean()),
            size=float(size[number].mean()),
            empty=float((size[number] == 0).mean()),
            single=float((size[number] == 1).mean()),
        )
        for number, asked in enumerate(coverages)
    ]


def answered(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], *, points: int = 200
) -> Answered:
    """Return accuracy against the share of photos answered, the surest first.

    Photos of equal confidence are answered together. At most `points` points are kept, evenly over
    the share, always with the last: all photos. Source: El-Yaniv, Wiener, On the Foundations of
    Noise-free Selective Classification, JMLR 11, 2010 (the risk–coverage curve; here 1 - risk).
    Raises ValueError for no photos, unequal lengths, or confidence that is not finite.
    """
    if len(confidence) == 0 or len(confidence) != len(correct):
        raise ValueError(f"{len(confidence)} values of confidence for {len(correct)} photos")
    if not np.isfinite(confidence).all():
        raise ValueError("confidence is not finite")
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order].astype(np.float64)
    right = np.cumsum(correct[order])
    kept = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # the last of equals
    if len(kept) > points:  # evenly spaced by rank, with the last
        kept = kept[np.linspace(len(kept) - 1, 0, points).round().astype(np.int64)[::-1]]
    return Answered(
        share=(kept + 1) / len(falling),
        accuracy=right[kept] / (kept + 1),
        confidence=falling[kept],
    )
