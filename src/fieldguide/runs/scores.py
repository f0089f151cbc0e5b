"""Out-of-fold scores from the logits, targets and groups of each fold. Numbers only, no files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fieldguide.analysis import calibration, events, metrics, paired
from fieldguide.analysis.intervals import new_group_interval, share_interval
from fieldguide.errors import DataError

Logits = Mapping[int, Float[np.ndarray, " _ classes"]]  # by fold, a row a photo of its test part
Numbers = Mapping[int, Int[np.ndarray, " _"]]  # by fold, one a photo of its test part


@dataclass(frozen=True)
class Scores:
    """Out-of-fold scores: each photo judged by the fold that did not train on it.

    With `stop = fold` the epoch was chosen on the fold's own test part. Then `selected_accuracy`
    is that of the weights that were kept, which flatters; all else is cross-fitted: judged at the
    epoch that is best on average in the *other* folds. `interval` is 95 %, and so are
    `intervals`, by the names of the scores (`metrics.score_intervals`). `top_5_accuracy` is None
    with five classes or fewer. `temperature` is fitted on all these photos; the `scaled` scores
    are those of probabilities at temperatures that the *other* folds gave.
    """

    accuracy: float
    interval: tuple[float, float]
    accuracy_per_fold: dict[int, float]
    selected_accuracy: float | None
    balanced_accuracy: float
    macro_f1: float
    top_5_accuracy: float | None
    log_loss: float
    calibration_error: float
    temperature: float
    scaled_log_loss: float
    scaled_calibration_error: float
    intervals: dict[str, tuple[float, float]]
    photos: int


def cross_fitted(
    logits: Mapping[int, Float[np.ndarray, " _ _ classes"]], targets: Numbers
) -> dict[int, Float[np.ndarray, " _ classes"]]:
    """Return each fold's logits at the epoch with the best mean accuracy in the other folds.

    `logits` are those of each epoch (epochs, photos, classes), by fold. Only epochs that every fold
    went through are candidates. A single fold has no others: its last epoch chooses nothing.
    """
    epochs = min(len(values) for values in logits.values())
    accuracies = {
        fold: [metrics.accuracy(values[epoch], targets[fold]) for epoch in range(epochs)]
        for fold, values in logits.items()
    }
    chosen = {}
    for fold, values in logits.items():
        others = [accuracies[other] for other in logits if other != fold]
        chosen[fold] = values[int(np.mean(others, axis=0).argmax()) if others else epochs - 1]
    return chosen


def accuracy(
    judged: Logits, targets: Numbers, groups: Numbers
) -> tuple[float, tuple[float, float]]:
    """Return the out-of-fold accuracy alone, and its interval."""
    correct = _joined(judged).argmax(axis=1) == _joined(targets)
    return float(correct.mean()), share_interval(correct, _joined(groups))


def out_of_fold(
    judged: Logits, targets: Numbers, groups: Numbers, *, saved: Logits | None = None
) -> Scores:
    """Return the scores of `judged`, logits that nothing was chosen on.

    `saved` are those of the weights that were kept, where their epoch was chosen on these photos.
    """
    logits, labels = _joined(judged), _joined(targets)
    probabilities = metrics.softmax(logits)
    fold_of = np.repeat(list(judged), [len(values) for values in judged.values()])
    scaled = calibration.cross_fitted(logits, labels, fold_of)
    intervals = metrics.score_intervals(probabilities, labels, _joined(groups))
    return Scores(
        accuracy=metrics.accuracy(probabilities, labels),
        interval=intervals["accuracy"],
        accuracy_per_fold={
            fold: metrics.accuracy(values, targets[fold]) for fold, values in judged.items()
        },
        selected_accuracy=None if saved is None else metrics.accuracy(_joined(saved), labels),
        balanced_accuracy=metrics.balanced_accuracy(probabilities, labels),
        macro_f1=metrics.macro_f1(probabilities, labels),
        top_5_accuracy=(
            metrics.top_k_accuracy(probabilities, labels, k=5) if logits.shape[1] > 5 else None
        ),
        log_loss=metrics.log_loss(probabilities, labels),
        calibration_error=metrics.calibration_error(probabilities, labels),
        temperature=calibration.fit_temperature(logits, labels),
        scaled_log_loss=metrics.log_loss(scaled, labels),
        scaled_calibration_error=metrics.calibration_error(scaled, labels),
        intervals=intervals,
        photos=len(labels),
    )


@dataclass(frozen=True)
class GroupScore:
    """The accuracy on one group's photos, with the 95 % interval of so many single photos."""

    name: str
    photos: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class GroupScores:
    """The accuracy by groups, such as places: how many there are, and those that it is lowest on.

    `photos` are those in groups. `new` is the 95 % interval for one new group, None where none has
    two photos, which would show how alike they are. The `worst` are those whose interval ends
    lowest: a group of one photo that is wrong says little.
    """

    groups: int
    photos: int
    new: tuple[float, float] | None
    worst: tuple[GroupScore, ...]


def by_group(
    correct: Bool[np.ndarray, " n"], names: Sequence[str], *, worst: int = 20
) -> GroupScores:
    """Return the accuracy by the photos' groups."""
    found, group_of = np.unique(np.array(names), return_inverse=True)
    photos, right = np.bincount(group_of), np.bincount(group_of, correct)
    counts = list(zip(photos.tolist(), right.tolist(), strict=True))
    # Of many thousand events most are alike.
    intervals = {(n, k): share_interval(np.arange(n) < k, np.arange(n)) for n, k in set(counts)}
    scores = [
        GroupScore(name, n, k / n, intervals[n, k])
        for name, (n, k) in zip(found.tolist(), counts, strict=True)
    ]
    lowest = sorted(scores, key=lambda each: (each.interval[1], each.accuracy, each.name))
    new = new_group_interval(correct, group_of) if photos.max() > 1 else None
    return GroupScores(len(found), len(correct), new, tuple(lowest[:worst]))


@dataclass(frozen=True)
class EventScores:
    """The accuracy of one answer for each event, with its 95 % interval over events.

    `photos` are those of these events, `single` their accuracy one by one. `mixed` events, whose
    photos are of several classes, have no right answer and are left out.
    """

    events: int
    photos: int
    accuracy: float
    interval: tuple[float, float]
    single: float
    mixed: int


def by_event(
    probabilities: Float[np.ndarray, "n classes"],
    targets: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> EventScores | None:
    """Return the accuracy by events (`analysis.events`); None if all are mixed."""
    event_of = np.unique(np.array(names), return_inverse=True)[1]
    least = np.full(event_of.max() + 1, targets.max() + 1)
    most = np.full(len(least), -1)
    np.minimum.at(least, event_of, targets)
    np.maximum.at(most, event_of, targets)
    pure = least == most
    rows = np.flatnonzero(pure[event_of])
    if not len(rows):
        return None
    numbers = np.cumsum(pure) - 1
    answers = events.combined(probabilities[rows], numbers[event_of[rows]]).argmax(axis=1)
    correct = answers == least[pure]
    return EventScores(
        events=len(correct),
        photos=len(rows),
        accuracy=float(correct.mean()),
        interval=share_interval(correct, np.arange(len(correct))),
        single=metrics.accuracy(probabilities[rows], targets[rows]),
        mixed=int((~pure).sum()),
    )


@dataclass(frozen=True)
class ListedScores:
    """The accuracy where some classes alone can occur, on the `photos` of these `classes`.

    `gain` is in accuracy over `before`, that without the list, with its 95 % interval.
    """

    classes: int
    photos: int
    accuracy: float
    before: float
    gain: float
    interval: tuple[float, float]


def listed(
    probabilities: Float[np.ndarray, "n classes"],
    targets: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, " classes"],
) -> ListedScores:
    """Return the accuracy of probabilities weighed by how common classes are.

    Raises DataError where no photo is of a class that can occur.
    """
    rows = weights[targets] > 0
    if not rows.any():
        raise DataError("no photo of the run is of a class that can occur")
    own = targets[rows]
    before = probabilities[rows].argmax(axis=1) == own
    after = (probabilities[rows] * weights).argmax(axis=1) == own
    gain, low, high = paired.difference(after, before, groups[rows])
    return ListedScores(
        classes=int(np.count_nonzero(weights)),
        photos=len(own),
        accuracy=float(after.mean()),
        before=float(before.mean()),
        gain=gain,
        interval=(low, high),
    )


def _joined(by_fold: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(by_fold.values()))
