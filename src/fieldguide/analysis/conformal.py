"""Sets of classes that hold the true one as often as asked, whatever the model is worth.

Conformal prediction: photos of known class that the model was not trained on say how strange a true
class may look; a set holds every class that looks no stranger. It promises coverage on average over
photos exchangeable with these, and nothing for another place, camera, season or more photos of one
specimen. Arrays in, arrays out. Knows nothing of models, of folders or of temperatures.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from fieldguide.analysis import metrics
from fieldguide.errors import UsageError

Method: TypeAlias = Literal["split", "adaptive"]

# coverage · (n + 1) is often meant to be a whole number, and float64 may put it just above
# (0.28 · 25 = 7.000000000000001). Its relative error is below 2^-52; this is ample, and costs no
# more coverage than itself.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Sets:
    """A choice of sets: they hold the true class of a share `coverage` of photos like these.

    `method` names the score (`nonconformity`); `per_class` calibrates each class by its own photos.
    With several views of a photo the coverage is not promised: calibration looked at each once.
    Raises `UsageError` for a share not between 0 and 1 or an unknown method.
    """

    coverage: float
    method: Method = "split"
    per_class: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise UsageError(f"`coverage` is not between 0 and 1: {self.coverage}")
        if self.method not in get_args(Method):
            raise UsageError(f"`method` is none of {', '.join(get_args(Method))}: {self.method!r}")


def nonconformity(
    probabilities: Float[np.ndarray, "*photos classes"], method: Method
) -> Float[np.ndarray, "*photos classes"]:
    """Return the strangeness of each class for each photo, from 0 (none) to 1.

    `split`: 1 - p. The smallest sets on average, fewer classes for all; the set of a photo that
    looks like nothing known may be empty (LAC: Sadinle, Lei, Wasserman, Least Ambiguous Set-Valued
    Classifiers with Bounded Error Levels, JASA 114, 2019).

    `adaptive`: the probability of all classes that are more probable; of equal ones the first comes
    first. Sets grow with the doubt about the photo. The top class scores 0, so one model's sets are
    never empty. This is the score of APS without its random part, taken before the class's own mass
    (Romano, Sesia, Candès, Classification with Valid and Adaptive Coverage, NeurIPS 2020, u = 1).
    Coverage may exceed what was asked, where top classes alone are right more often.

    Raises ValueError for another method and for rows that are no probabilities.
    """
    if method not in get_args(Method):
        raise ValueError(f"no such method: `{method}`; there are {', '.join(get_args(Method))}")
    wide = probabilities.astype(np.float64)
    if wide.size == 0:
        return wide
    metrics.check_probabilities(wide.reshape(-1, wide.shape[-1]))
    if method == "split":
        return 1 - wide
    order = np.argsort(-wide, axis=-1, kind="stable")
    sums = np.cumsum(np.take_along_axis(wide, order, axis=-1), axis=-1)
    # Shifted, not less the own mass: the first is 0 exactly, and no rounding unsettles the order.
    before = np.concatenate([np.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)
    masses = np.empty_like(wide)
    np.put_along_axis(masses, order, before, axis=-1)
    return masses


def prediction_sets(
    scores: Float[np.ndarray, "members m classes"],
    calibration_scores: Float[np.ndarray, " n"],
    calibration_members: Int[np.ndarray, " n"],
    calibration_targets: Int[np.ndarray, " n"],
    *,
    coverage: float,
    per_class: bool = False,
) -> Bool[np.ndarray, "m classes"]:
    """Return the classes in each photo's set: it holds the true one in `coverage` of photos.

    `scores` are the nonconformity of every class for m new photos, by each member (the model of a
    fold). Of n known photos, `calibration_scores` are those of the true class by a member that was
    not trained on the photo, `calibration_members` that member's number from 0, and
    `calibration_targets` the column of the true class.

    Class y is in if Σ over members k of #{i judged by k: s_i < s_k(x, y)} < coverage · (n + 1). For
    one member this is split conformal prediction: y is in if its score is at most the ⌈coverage ·
    (n + 1)⌉-th smallest of the known, and always if there are fewer. It covers as asked. For k
    members this is CV+ (Romano, Sesia, Candès, NeurIPS 2020): it covers about as asked, and is
    proven to cover at least 1 - 2 · (1 - coverage), but for a term that vanishes with many known
    photos a member. With `adaptive` scores sets are empty only if members disagree on the top one.

    With `per_class`, class y is judged by the known photos of class y alone (Mondrian: Vovk,
    Gammerman, Shafer, Algorithmic Learning in a Random World, 2005, chapter 4), which covers each
    class as asked. A class of fewer than coverage / (1 - coverage) known photos is in every set.

    Time is about m · classes · members · log n. Raises ValueError for a coverage outside 0 … 1
    (both excluded), no known photos, scores that are not finite, and shapes that do not fit.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1: {coverage}")
    _check(scores, calibration_scores, calibration_members, calibration_targets)
    known = calibration_scores.astype(np.float64)
    # The number of known photos less strange than each class, by the scores of their members.
    below = np.zeros(scores.shape[1:], dtype=np.int64)
    for member in np.unique(calibration_members).tolist():
        own = scores[member].astype(np.float64)
        judged = calibration_members == member
        if not per_class:
            below += np.searchsorted(np.sort(known[judged]), own)
            continue
        order = np.lexsort((known[judged], calibration_targets[judged]))
        columns, starts = np.unique(calibration_targets[judged][order], return_index=True)
        by_class = np.split(known[judged][order], starts[1:])
        for column, ordered in zip(columns.tolist(), by_class, strict=True):
            below[:, column] += np.searchsorted(ordered, own[:, column])
    photos = (
        np.bincount(calibration_targets, minlength=scores.shape[2]) if per_class else len(known)
    )
    inside: NDArray[np.bool_] = below < coverage * (photos + 1) * (1 - _ROUNDING)
    return inside


def threshold(known: Float[np.ndarray, " n"], coverage: float) -> float | None:
    """Return the largest score with which a class is in the set, for one member's known photos.

    None where these are so few that every class is. `prediction_sets` draws the same sets.
    """
    rank = math.ceil(coverage * (len(known) + 1) * (1 - _ROUNDING))
    return float(np.sort(known)[rank - 1]) if rank <= len(known) else None


def _check(
    scores: NDArray[np.floating],
    known: NDArray[np.floating],
    members: NDArray[np.integer],
    targets: NDArray[np.integer],
) -> None:
    """Raise ValueError for shapes, numbers and values that do not fit."""
    if scores.ndim != 3 or scores.shape[0] == 0 or scores.shape[2] == 0:
        raise ValueError(f"scores must be members × photos × classes: {scores.shape}")
    if known.ndim != 1 or not known.shape == members.shape == targets.shape:
        raise ValueError(
            "need one score, one member and one target a calibration photo:"
            f" {known.shape}, {members.shape}, {targets.shape}"
        )
    if len(known) == 0:
        raise ValueError("no calibration photos")
    for name, numbers, count in (
        ("members", members, scores.shape[0]),
        ("targets", targets, scores.shape[2]),
    ):
        if numbers.min() < 0 or numbers.max() >= count:
            raise ValueError(
                f"calibration {name} from {numbers.min()} to {numbers.max()}, not 0 to {count - 1}"
            )
    for name, values in (("scores", scores), ("calibration scores", known)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} hold a value that is not finite")
