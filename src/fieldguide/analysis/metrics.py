"""The quality of predictions: accuracy and its relatives, calibration, and the doubt about a mean.

Arrays in, numbers out, computed in float64. `scores` are one row a photo and one column a class,
logits or probabilities: measures by rank take both. Of equal scores the first class wins. Each
function raises ValueError for no photos, a row whose largest score is not finite (NaN, or a
diverged model), and a target that is no column. Knows nothing of models, folds or files.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray

from fieldguide.analysis.intervals import class_mean_interval, mean_interval, share_interval

Scores: TypeAlias = Float[np.ndarray, "n classes"]
Targets: TypeAlias = Int[np.ndarray, " n"]
Values: TypeAlias = NDArray[np.float64]

_LEAST = float(np.finfo(np.float64).eps)  # of probabilities in a loss, as in scikit-learn


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class PerClass:
    """One value a class, in the order of the columns; 0 where a ratio would be 0 / 0.

    precision: the share right among the photos predicted as the class; recall: that among the
    photos of the class; f1: their harmonic mean; support: the number of photos of the class.
    """

    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]
    support: Int[np.ndarray, " classes"]


def rows_of(numbers: Int[np.ndarray, " n"], classes: int) -> list[Int[np.ndarray, " _"]]:
    """Return the rows with each number."""
    ends = np.bincount(numbers, minlength=classes).cumsum()
    return np.split(np.argsort(numbers, kind="stable"), ends[:-1])


def softmax(logits: Scores) -> Float[np.ndarray, "n classes"]:
    """Return exp(logit) / Σ exp(logits) over each row, for logits of any finite size.

    A logit of -inf gets probability 0. There may be no rows.
    """
    wide = logits.astype(np.float64)
    if wide.shape[1] == 0:
        raise ValueError("no classes")
    top = wide.max(axis=1, keepdims=True)
    _refuse_infinite(top[:, 0])
    powers: NDArray[np.float64] = np.exp(wide - top)  # the largest is 1: nothing overflows
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def accuracy(scores: Scores, targets: Targets) -> float:
    """Return the share of photos whose highest score is that of their class."""
    check_scores(scores, targets)
    return float(np.mean(scores.argmax(axis=1) == targets))


def balanced_accuracy(scores: Scores, targets: Targets) -> float:
    """Return the mean recall over the classes that have photos, as scikit-learn does."""
    found = per_class(scores, targets)
    return float(found.recall[found.support > 0].mean())


def macro_f1(scores: Scores, targets: Targets) -> float:
    """Return the mean over classes of F1 = 2 · right / (predicted + true).

    Classes that occur among targets or predictions are counted, as by scikit-learn's
    `f1_score(average="macro")`: a class that was predicted but has no photo counts as 0.
    """
    check_scores(scores, targets)
    right, predicted, true = _counts(scores, targets)
    occurs = predicted + true > 0
    return float(np.mean(2 * right[occurs] / (predicted + true)[occurs]))


def top_k_accuracy(scores: Scores, targets: Targets, *, k: int = 5) -> float:
    """Return the share of photos whose class is among the `k` highest scores."""
    if k < 1:
        raise ValueError(f"k must be at least 1: {k}")
    check_scores(scores, targets)
    return float(np.mean(_among_first(scores, targets, k)))


def log_loss(probabilities: Scores, targets: Targets) -> float:
    """Return the mean of -log p(class of the photo), in nats: 0 at best, log(classes) for guesses.

    Probabilities are clipped from below at 2^-52 (float64's epsilon, as in scikit-learn), so one
    photo costs at most 36.04. ValueError if rows are not probabilities.
    """
    check_probabilities(probabilities, targets)
    return float(_losses(probabilities, targets).mean())


def calibration_error(probabilities: Scores, targets: Targets, *, bins: int = 15) -> float:
    """Return the expected calibration error: Σ over bins of (photos / n) · |accuracy - confidence|.

    Confidence is the highest probability of a photo, averaged over a bin (`confidence_bins`). 0 is
    calibrated in every bin, 1 is sure and always wrong. Biased upwards for few photos. Source: Guo,
    Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, equation 3, with
    its 15 bins. ValueError if rows are not probabilities.
    """
    check_probabilities(probabilities, targets)
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == targets
    bin_of = confidence_bins(confidence, bins)
    # (photos / n) · |right / photos - Σ confidence / photos| = |Σ (right - confidence)| / n
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(targets))


def confidence_bins(confidence: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """Return the number, from 0, of each confidence's bin ((b - 1)/bins, b/bins], b from 1."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1: {bins}")
    return np.ceil(confidence.astype(np.float64) * bins).astype(np.int64).clip(1, bins) - 1


def per_class(scores: Scores, targets: Targets) -> PerClass:
    """Return precision, recall, F1 and number of photos of every class."""
    check_scores(scores, targets)
    right, predicted, true = _counts(scores, targets)
    return PerClass(
        precision=right / np.maximum(predicted, 1),
        recall=right / np.maximum(true, 1),
        f1=2 * right / np.maximum(predicted + true, 1),
        support=true,
    )


def score_intervals(
    probabilities: Scores, targets: Targets, groups: Int[np.ndarray, " n"], *, share: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the interval of each score by name.

    accuracy and, for more than 5 classes, top_5_accuracy by `intervals.share_interval`,
    balanced_accuracy and macro_f1 by `intervals.class_mean_interval`, log_loss by
    `intervals.mean_interval`. F1 is concave in the counts of a class, so that its value leans low
    where classes are small, which the interval allows for. Raises ValueError as they and
    `log_loss` do.
    """
    check_probabilities(probabilities, targets)
    predicted = probabilities.argmax(axis=1)
    correct = predicted == targets
    highest = float(-np.log(_LEAST))
    found = {
        "accuracy": share_interval(correct, groups, share=share),
        "log_loss": mean_interval(
            _losses(probabilities, targets), groups, bounds=(0.0, highest), share=share
        ),
    }
    for name, predictions in (("balanced_accuracy", 0), ("macro_f1", 1)):
        left_out = _left_out(predicted, targets, groups, predictions)
        found[name] = class_mean_interval(left_out, correct, targets, groups, share=share)
    low, high = found["macro_f1"]  # a class without photos counts as 0 in the score itself
    found["macro_f1"] = (min(low, macro_f1(probabilities, targets)), high)
    if probabilities.shape[1] > 5:
        among = _among_first(probabilities, targets, 5)
        found["top_5_accuracy"] = share_interval(among, groups, share=share)
    return found


def _left_out(
    predicted: Targets, targets: Targets, groups: Targets, predictions: int
) -> Float[np.ndarray, " means"]:
    """Return a mean over the classes that have photos: of all photos, and then without each group.

    Of each class it is (1 + k) · right / (true + k · predicted), where k = `predictions`: recall at
    0, F1 at 1.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    classes = 1 + max(int(targets.max()), int(predicted.max()))
    codes = np.concatenate([targets, predicted]) + classes * np.tile(group_of, 2).astype(np.int64)
    pairs, pair_of = np.unique(codes, return_inverse=True)  # of a group and a class
    group, class_of = np.divmod(pairs, classes)
    own_pair, seen_pair = pair_of[: len(targets)], pair_of[len(targets) :]
    true = np.bincount(own_pair, minlength=len(pairs))
    right = np.bincount(own_pair, predicted == targets, len(pairs))
    both = true + predictions * np.bincount(seen_pair, minlength=len(pairs))
    parts = [each.astype(np.float64) for each in (true, right, both)]
    whole = [np.bincount(class_of, part, classes).astype(np.float64) for part in parts]
    left = [all_[class_of] - part for all_, part in zip(whole, parts, strict=True)]

    def ratios(true: Values, right: Values, both: Values) -> Values:
        return np.where(true > 0, (1 + predictions) * right / np.maximum(both, 1), 0.0)

    own_ratios = ratios(*whole)
    sums = own_ratios.sum() + np.bincount(
        group, ratios(*left) - own_ratios[class_of], minlength=len(names)
    )
    number = int((whole[0] > 0).sum())
    gone = np.bincount(group, (left[0] == 0) & (whole[0][class_of] > 0), len(names))
    found: NDArray[np.float64] = np.append(own_ratios.sum(), sums) / np.append(
        number, np.maximum(number - gone, 1)
    )
    return found


def own(values: Shaped[np.ndarray, "n classes"], targets: Targets) -> Shaped[np.ndarray, " n"]:
    """Return each row's value in the column of its class, whatever its type."""
    found: NDArray[Any] = np.take_along_axis(values, targets[:, None], axis=1)[:, 0]
    return found


def _among_first(scores: Scores, targets: Targets, k: int) -> Bool[np.ndarray, " n"]:
    own_scores = own(scores, targets)[:, None]
    earlier = np.arange(scores.shape[1]) < targets[:, None]
    before = (scores > own_scores) | ((scores == own_scores) & earlier)
    among: NDArray[np.bool_] = before.sum(axis=1) < k
    return among


def _losses(probabilities: Scores, targets: Targets) -> Float[np.ndarray, " n"]:
    confidence = own(probabilities, targets).astype(np.float64)
    losses: NDArray[np.float64] = -np.log(confidence.clip(_LEAST, 1))
    return losses


def _counts(scores: Scores, targets: Targets) -> tuple[NDArray[np.int64], ...]:
    """Return by class the photos predicted correctly, the photos predicted, and the photos."""
    classes = scores.shape[1]
    predicted = scores.argmax(axis=1)
    return (
        np.bincount(targets[predicted == targets], minlength=classes),
        np.bincount(predicted, minlength=classes),
        np.bincount(targets, minlength=classes),
    )


def check_scores(scores: Scores, targets: Targets) -> None:
    """Raise ValueError unless there are photos, finite rows, and targets that are columns."""
    if scores.shape[0] != len(targets):
        raise ValueError(f"{scores.shape[0]} rows of scores for {len(targets)} targets")
    if scores.size == 0:
        raise ValueError(f"nothing to measure: scores of shape {scores.shape}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= scores.shape[1]:
        raise ValueError(f"targets from {low} to {high} for {scores.shape[1]} classes")
    _refuse_infinite(scores.max(axis=1))


def _refuse_infinite(values: NDArray[np.floating]) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(values)} rows are not finite, the first: row {bad[0]},"
            f" {values[bad[0]]}"
        )


def check_probabilities(values: Scores, targets: Targets | None = None) -> None:
    """Raise ValueError unless rows sum to 1, nothing is negative or NaN, and targets fit them."""
    if targets is not None:
        check_scores(values, targets)
    off = float(np.abs(values.sum(axis=1, dtype=np.float64) - 1).max())
    # Rounding to float16 moves a sum by up to 2^-11 = 5e-4. NaN fails both comparisons.
    if not (values.min() >= 0 and off <= 1e-3):
        raise ValueError(
            f"not probabilities: rows sum to 1 within {off:.3g}, lowest {values.min()}"
        )
