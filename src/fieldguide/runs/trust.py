"""Which of a run's answers to trust: by taxa, by class, above which confidence.

All of it is out of fold. Numbers only, no files.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fieldguide.analysis import calibration, promises
from fieldguide.analysis.intervals import share_interval
from fieldguide.analysis.promises import Kept, Promise
from fieldguide.analysis.taxa import Taxonomy

ASKED = 0.95  # share of answers that are to be right (taste)


@dataclass(frozen=True)
class RankScore:
    """The accuracy of the most probable taxon at a rank, with its 95 % interval.

    `taxa` is their number, and `within` the share of photos with a wrong class whose class lies in
    the same taxon: None where no class is wrong.
    """

    rank: str
    taxa: int
    accuracy: float
    interval: tuple[float, float]
    within: float | None


@dataclass(frozen=True)
class Trust:
    """The ranks from the finest, a promise over them, what is kept of it, and one for each class.

    `promise` is that of all folds, close to that by which `predict` answers (whose temperature is
    one for all); `kept` is what becomes of those of the other folds on each fold's photos: None
    with one fold. `classes` are for photos that are predicted as the class, by its own confidence.
    """

    ranks: tuple[RankScore, ...]
    promise: Promise
    kept: Kept | None
    classes: tuple[Promise, ...]


def trust(
    logits: Float[np.ndarray, "n classes"],
    targets: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    fold_of: Int[np.ndarray, " n"],
    taxonomy: Taxonomy,
    *,
    asked: float = ASKED,
) -> Trust:
    """Return which answers to trust, from logits that nothing was chosen on.

    Confidences are scaled by the temperatures of the other folds.
    """
    best = taxonomy.best(calibration.cross_fitted(logits, targets, fold_of))
    right = taxonomy.right(best, targets)
    parts = best.confidences, right, groups
    several = len(np.unique(fold_of)) > 1
    return Trust(
        ranks=tuple(
            _rank(rank, taxonomy.nodes[level], best.nodes[:, 0], targets, right[:, level], groups)
            for level, rank in enumerate(taxonomy.levels)
        ),
        promise=promises.promise(*parts, asked),
        kept=promises.kept(*parts, fold_of, asked) if several else None,
        classes=tuple(promises.by_class(*parts, best.nodes[:, 0], len(taxonomy.taxa), asked)),
    )


def _rank(
    rank: str,
    nodes: Int[np.ndarray, " classes"],
    predicted: Int[np.ndarray, " n"],
    targets: Int[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
) -> RankScore:
    wrong = predicted != targets
    within = nodes[predicted[wrong]] == nodes[targets[wrong]]
    return RankScore(
        rank,
        len(np.unique(nodes)),
        float(correct.mean()),
        share_interval(correct, groups),
        float(within.mean()) if len(within) else None,
    )
