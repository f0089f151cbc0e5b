"""The list of a run's labels that look wrong: RUN/labels.csv.

Two things cast doubt on a label: a picture that looks the same and is labelled otherwise, and a
model that did not train on the photo and is sure of another class. Nothing is changed: the list is
for somebody who knows the subject. Knows nothing of how it is shown, nor of torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from fieldguide.analysis import metrics
from fieldguide.analysis.suspects import (
    JUDGES,
    ConfusedPair,
    UnsteadyClass,
    confused_pairs,
    suspects,
    unsteady_classes,
)
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.inspect import Facts, inspect
from fieldguide.photos.near_copies import duplicates
from fieldguide.photos.pixels import Reading
from fieldguide.runs.run import Run
from fieldguide.storage import files

TABLE = "labels.csv"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A label that looks wrong, and why. Probabilities are the out-of-fold ones."""

    path: str
    label: str
    suggested: str  # the class that is most probable, or the label of the look-alike
    given_probability: float
    suggested_probability: float
    fold: int
    reason: str
    other: str = ""  # the path of the look-alike, if that is the reason


HEADER = ("rank", *(field.name for field in fields(Doubt)))


@dataclass(frozen=True)
class Doubts:
    """The labels that look wrong, the most suspicious first, and the photos searched for them.

    `photos` are the training photos of the `folds` that are done. Of these `unseen` could not be
    compared with others, because the file is gone or changed. `confused` and `unsteady` are as
    `analysis.suspects` finds them.
    """

    ranked: tuple[Doubt, ...]
    photos: int
    folds: tuple[int, ...]
    planned_folds: int
    unseen: int
    accuracy: float = 1.0  # out of fold
    confused: tuple[ConfusedPair, ...] = ()
    unsteady: tuple[UnsteadyClass, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences on what the list does not cover."""
        notes = []
        if len(self.folds) < self.planned_folds:
            are, their = ("is", "its") if len(self.folds) == 1 else ("are", "their")
            notes.append(
                f"{len(self.folds)} of {self.planned_folds} folds {are} done:"
                f" only {their} photos were looked at"
            )
        if self.unseen:
            notes.append(
                f"{self.unseen:,} of {self.photos:,} photos are not there or not as they were:"
                " not compared for pictures under two labels"
            )
        if self.accuracy < JUDGES:
            notes.append(
                f"the network classifies {self.accuracy:.0%} of the photos correctly: it cannot"
                " judge labels, so only pictures under two labels are listed; train longer first"
            )
        return tuple(notes)


@dataclass(frozen=True, eq=False)
class _Judged:
    """The training photos of the folds that are done, with what their folds say of them."""

    catalog: Catalog
    classes: tuple[str, ...]
    fold_of: NDArray[np.int64]
    targets: NDArray[np.int64]
    probabilities: Float[np.ndarray, "n classes"]


def doubts(run: Run, *, progress: Callable[[int], None] | None = None) -> Doubts:
    """Return the labels of a run that look wrong: first look-alikes, then the model's suspects.

    The photos are read again to compare them; one that is gone or has changed is judged by its
    prediction alone. `progress` gets the number of photos read. Raises ResourceError if no fold is
    done.
    """
    judged = _judged(run)
    catalog = judged.catalog
    read = inspect(catalog, reading=Reading.of(run.recipe), progress=progress)
    facts = [  # none of a file that is not the one that the run was trained on
        fact if fact.sha256 == photo.sha256 else Facts()
        for photo, fact in zip(catalog.photos, read, strict=True)
    ]
    alike = list(_look_alikes(judged, facts))
    listed = {doubt.path for doubt in alike}
    suspected = [doubt for doubt in _suspected(judged) if doubt.path not in listed]
    correct = judged.probabilities.argmax(axis=1) == judged.targets
    unsteady = unsteady_classes(correct, judged.targets, judged.fold_of, seed=run.recipe.seed)
    return Doubts(
        ranked=(*alike, *suspected),
        photos=len(catalog),
        folds=tuple(run.judged),
        planned_folds=run.recipe.folds,
        accuracy=float(correct.mean()),
        unseen=sum(not fact.fingerprint for fact in facts),
        confused=tuple(confused_pairs(judged.probabilities, judged.targets)),
        unsteady=tuple(unsteady),
    )


def write(path: Path, found: Doubts) -> None:
    """Write the list as CSV, whole or not at all; labels and paths are kept exactly."""
    rows = (
        (rank, *(f"{v:.6g}" if isinstance(v, float) else v for v in astuple(doubt)))
        for rank, doubt in enumerate(found.ranked, start=1)
    )
    files.write_csv(path, HEADER, rows)


def _judged(run: Run) -> _Judged:
    rows, fold_of, logits = run.pooled
    return _Judged(
        catalog=replace(run.catalog, photos=tuple(run.catalog.photos[row] for row in rows)),
        classes=run.classes,
        fold_of=fold_of,
        targets=run.targets[rows],
        probabilities=metrics.softmax(logits),
    )


# --- look-alikes ----------------------------------------------------------------------------------


def _look_alikes(judged: _Judged, facts: Sequence[Facts]) -> Iterator[Doubt]:
    """Yield photos of one picture under several labels, the least probable label first."""
    photos = judged.catalog.photos
    own = judged.probabilities[np.arange(len(photos)), judged.targets]
    clusters = [
        sorted(cluster, key=lambda row: (own[row], row))
        for cluster in duplicates(judged.catalog, facts)
        if len({photos[row].label for row in cluster}) > 1
    ]
    for cluster in sorted(clusters, key=lambda rows: (own[rows[0]], rows[0])):
        for row in cluster:
            others = [each for each in cluster if photos[each].label != photos[row].label]
            copies = [each for each in others if facts[each].sha256 == facts[row].sha256]
            likeness = "is the same file as" if copies else "looks like"
            other = min(copies or others)
            path, label = photos[other].path, int(judged.targets[other])
            reason = f"{likeness} {path}, which is labelled `{judged.classes[label]}`"
            yield _doubt(judged, row, label, reason, path)


# --- suspects -------------------------------------------------------------------------------------


def _suspected(judged: _Judged) -> Iterator[Doubt]:
    for suspect in suspects(judged.probabilities, judged.targets):
        reason = (
            f"`{judged.classes[suspect.suggested]}` at {percent(suspect.suggested_probability)},"
            f" its own label at {percent(suspect.given_probability)}"
        )
        yield _doubt(judged, suspect.photo, suspect.suggested, reason)


def _doubt(judged: _Judged, row: int, suggested: int, reason: str, other: str = "") -> Doubt:
    probabilities, given = judged.probabilities[row], int(judged.targets[row])
    return Doubt(
        path=judged.catalog.photos[row].path,
        label=judged.classes[given],
        suggested=judged.classes[suggested],
        given_probability=float(probabilities[given]),
        suggested_probability=float(probabilities[suggested]),
        fold=int(judged.fold_of[row]),
        reason=reason,
        other=other,
    )


def percent(probability: float) -> str:
    """Return a probability such as `97 %` or `0.4 %`, never as a certainty."""
    if probability < 0.0001:
        return "under 0.01 %"
    if probability >= 0.995:
        return "over 99 %"
    return f"{100 * probability:.0f} %" if probability >= 0.01 else f"{100 * probability:.1g} %"
