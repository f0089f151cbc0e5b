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

from fieldguide.analysis.intervals import share_interval

Scores: TypeAlias = Float[np.ndarray, "n classes"]
Targets: TypeAlias = Int[np.ndarray, " n"]

# Counts in one block of bootstrap draws: 32 MB, a compromise of memory and speed (taste).
_BLOCK = 4_000_000


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


def bootstrap_interval(
    values: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    *,
    share: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval that holds the middle `share` of bootstrap means of `values`.

    There is one value a photo, no share (`intervals.share_interval`). Whole `groups` (any integers)
    are drawn with replacement, because photos of one group are alike; each mean is over the photos
    drawn. Percentile bootstrap of clusters (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, ch. 13; Field and Welsh, JRSS B 69, 2007). Too narrow for few groups (below about 30);
    with one group, or values that are all equal, it has no width despite the doubt.

    Time and memory follow the number of *different* groups (by size and sum). Raises ValueError for
    no values, a value that is not finite, a share outside 0 … 1 (both excluded), or no draw.
    """
    if not 0 < share < 1 or draws < 1:
        raise ValueError(f"share must lie between 0 and 1: {share}, draws be at least 1: {draws}")
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"need as many groups as values, and one: {len(groups)}, {len(values)}")
    wide = values.astype(np.float64)
    _refuse_infinite(wide)
    return _middle(_bootstrap_means(wide, groups, draws, np.random.default_rng(seed)), share)


def score_intervals(
    probabilities: Scores,
    targets: Targets,
    groups: Int[np.ndarray, " n"],
    *,
    share: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the interval of each score by name.

    accuracy and, for more than 5 classes, top_5_accuracy by `intervals.share_interval`; log_loss,
    balanced_accuracy and macro_f1 by bootstrap over groups. Each draw takes the two means over the
    classes that occur in it. F1 is concave in the counts of a class, so that its interval leans low
    where classes are small (simulated with 10 photos a class: by 0.8 of its standard error; with
    50: by 0.3). Time follows photos · draws, memory photos · classes. Raises ValueError as
    `bootstrap_interval` and `log_loss` do.
    """
    check_probabilities(probabilities, targets)
    predicted = probabilities.argmax(axis=1)
    losses = _losses(probabilities, targets)
    loss = bootstrap_interval(losses, groups, share=share, draws=draws, seed=seed)
    random = np.random.default_rng(seed)
    balanced, f1 = _bootstrap_by_class(predicted, targets, groups, draws, random)
    found = {
        "accuracy": share_interval(predicted == targets, groups, share=share),
        "balanced_accuracy": _middle(balanced, share),
        "macro_f1": _middle(f1, share),
        "log_loss": loss,
    }
    if probabilities.shape[1] > 5:
        among = _among_first(probabilities, targets, 5)
        found["top_5_accuracy"] = share_interval(among, groups, share=share)
    return found


def _middle(values: NDArray[np.float64], share: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _bootstrap_means(
    values: NDArray[np.float64], groups: Targets, draws: int, random: np.random.Generator
) -> NDArray[np.float64]:
    group_of = np.unique(groups, return_inverse=True)[1]
    totals = np.stack([np.bincount(group_of, weights=values), np.bincount(group_of)], axis=1)
    # Groups with the same sum and size are exchangeable: drawing how often each *kind* comes has
    # the very distribution of drawing groups, and a million photos right or wrong are two kinds.
    kinds, number = np.unique(totals, axis=0, return_counts=True)
    chances = number / len(totals)
    block = max(1, _BLOCK // len(kinds))
    blocks = [
        random.multinomial(len(totals), chances, size=min(block, draws - start)) @ kinds
        for start in range(0, draws, block)
    ]
    sums, sizes = np.concatenate(blocks).T
    means: NDArray[np.float64] = sums / sizes
    return means


def _bootstrap_by_class(
    predicted: Targets, targets: Targets, groups: Targets, draws: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return balanced accuracy and macro F1 of each draw of groups, over the classes it holds."""
    names, group_of = np.unique(groups, return_inverse=True)
    # Photos of one class that were predicted alike are counted together: of a hundred thousand
    # photos, some thousand pairs of classes remain.
    classes = 1 + max(int(targets.max()), int(predicted.max()))
    pairs, pair_of = np.unique(targets.astype(np.int64) * classes + predicted, return_inverse=True)
    true_of, predicted_of = np.divmod(pairs, classes)
    right_of = true_of == predicted_of
    balanced, f1 = np.empty(draws), np.empty(draws)
    for draw in range(draws):  # one at a time: a table of draws × groups could be gigabytes
        times = np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))
        photos = np.bincount(pair_of, weights=times[group_of])
        true = np.bincount(true_of, photos, classes)
        both = true + np.bincount(predicted_of, photos, classes)
        right = np.bincount(true_of, photos * right_of, classes)
        balanced[draw] = np.mean(right[true > 0] / true[true > 0])
        f1[draw] = np.mean(2 * right[both > 0] / both[both > 0])
    return balanced, f1


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
    losses: NDArray[np.float64] = -np.log(confidence.clip(np.finfo(np.float64).eps, 1))
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
