"""Probabilities that mean what they say: one temperature for all logits, and how well it fits.

Arrays in, numbers out, computed in float64. Logits are one row a photo and one column a class; a
logit of -inf rules a class out. Knows nothing of models, of run folders or of sets of classes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from fieldguide.analysis import metrics
from fieldguide.analysis.metrics import Scores, Targets

# Without bounds, a few photos that are all right would drive the temperature to 0, where the first
# mistake costs without limit; photos at odds with the model would drive it to infinity. A factor of
# 4 and of 8 leaves room for networks trained on mixed pictures or soft labels, which are too
# modest, and for long training (taste).
COLDEST, HOTTEST = 0.25, 8.0

_STEPS = 60  # halving alone narrows the bounds to float64's precision in 52
_CLOSE = 1e-10  # relative; no probability is shown to as many digits


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Reliability:
    """One value a bin of confidence, from low to high; 0 in a bin without photos.

    confidence: the mean probability of the predicted class; accuracy: the share of photos whose
    class it was; photos: how many photos the bin holds.
    """

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    photos: Int[np.ndarray, " bins"]


def fit_temperature(logits: Scores, targets: Targets) -> float:
    """Return the temperature T in [1/4, 8] with the least mean log loss of softmax(logits / T).

    T > 1 makes a model less sure, T < 1 more so; what it predicts stays. The loss is convex in 1/T,
    with the slope mean(E_p[z] - z_target), p = softmax(z / T): Newton's steps between bounds that
    close in find its root. If the loss does not depend on T (all logits of a row equal), T = 1. A
    photo whose own class has a logit of -inf costs the same at every T: it has no say.

    Judge the result on other photos: `cross_fitted` does. Raises ValueError as `metrics.accuracy`
    does. Source: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017,
    section 4.2.
    """
    metrics.check_scores(logits, targets)
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    own = metrics.own(wide, targets)
    possible = np.isfinite(own)
    if not possible.any():
        return 1.0
    return 1 / _best_inverse(wide[possible], own[possible])


def scaled(logits: Scores, temperature: float) -> Float[np.ndarray, "n classes"]:
    """Return softmax(logits / temperature): 1 changes nothing, more makes rows more even.

    Raises ValueError as `metrics.softmax` does, and for a temperature not positive and finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"the temperature must be positive and finite: {temperature}")
    return metrics.softmax(logits.astype(np.float64) / temperature)


def cross_fitted(
    logits: Scores, targets: Targets, fold_of: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n classes"]:
    """Return each fold's probabilities at the temperature that fits the *other* folds best.

    `fold_of` holds any integers, one a photo. With one fold T = 1. Raises ValueError as
    `fit_temperature` does, and if there is not one fold a photo.
    """
    metrics.check_scores(logits, targets)
    if len(fold_of) != len(targets):
        raise ValueError(f"{len(fold_of)} fold numbers for {len(targets)} photos")
    probabilities = np.empty(logits.shape, dtype=np.float64)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        alone = inside.all()
        temperature = 1.0 if alone else fit_temperature(logits[~inside], targets[~inside])
        probabilities[inside] = scaled(logits[inside], temperature)
    return probabilities


def reliability(probabilities: Scores, targets: Targets, *, bins: int = 15) -> Reliability:
    """Return confidence, accuracy and number of photos by equally wide bins of confidence.

    The bins are those of `metrics.calibration_error`, which is Σ |accuracy - confidence| · photos /
    n over them. Raises ValueError as it does.
    """
    metrics.check_probabilities(probabilities, targets)
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == targets
    bin_of = metrics.confidence_bins(confidence, bins)
    photos = np.bincount(bin_of, minlength=bins)
    return Reliability(
        confidence=np.bincount(bin_of, weights=confidence, minlength=bins) / np.maximum(photos, 1),
        accuracy=np.bincount(bin_of, weights=right, minlength=bins) / np.maximum(photos, 1),
        photos=photos,
    )


def _best_inverse(wide: NDArray[np.float64], own: NDArray[np.float64]) -> float:
    """Return 1/T with the least mean loss, for logits whose largest of each row is 0."""
    finite = np.where(np.isneginf(wide), 0, wide)  # their power is 0, and 0 · inf would be NaN
    low, high = 1 / HOTTEST, 1 / COLDEST
    at_low, at_high = (_slope(wide, finite, own, end)[0] for end in (low, high))
    if at_low == 0 == at_high:
        return 1.0
    if at_low >= 0 or at_high <= 0:
        return low if at_low >= 0 else high
    inverse = 1.0
    for _ in range(_STEPS):
        slope, curvature = _slope(wide, finite, own, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / curvature if curvature > 0 else low - 1
        before, inverse = inverse, newton if low <= newton <= high else (low + high) / 2
        if abs(inverse - before) <= _CLOSE * before:
            break
    return inverse


def _slope(
    wide: NDArray[np.float64], finite: NDArray[np.float64], own: NDArray[np.float64], inverse: float
) -> tuple[float, float]:
    """Return two derivatives of the mean loss by 1/T: mean and variance of z under p."""
    powers = np.exp(inverse * wide)
    powers /= powers.sum(axis=1, keepdims=True)
    mean = np.einsum("nc,nc->n", powers, finite)
    powers *= finite
    square = np.einsum("nc,nc->n", powers, finite)
    return float(np.mean(mean - own)), float(np.mean(square - mean**2))
