"""The photos of the folds that are done, each judged by the fold that did not train on it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from fieldguide.analysis import calibration, metrics
from fieldguide.analysis.metrics import Scores
from fieldguide.runs.run import Run


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Judged:
    """The out-of-fold predictions of a run, a row a photo; `photos` are numbers in the catalog."""

    photos: Int[np.ndarray, " n"]
    fold_of: Int[np.ndarray, " n"]
    targets: Int[np.ndarray, " n"]
    logits: Scores

    @cached_property
    def probabilities(self) -> Float[np.ndarray, "n classes"]:
        """The probabilities of `oof.csv`, without the temperature."""
        return metrics.softmax(self.logits)

    @cached_property
    def scaled(self) -> Float[np.ndarray, "n classes"]:
        """The probabilities at the temperatures of the other folds; unscaled with one fold done."""
        return calibration.cross_fitted(self.logits, self.targets, self.fold_of)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each photo."""
        numbers: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return numbers


def judge(run: Run) -> Judged:
    """Return the photos of the folds that are done; there must be one."""
    photos, fold_of, logits = run.pooled
    return Judged(photos, fold_of, run.targets[photos], logits)


def groups(run: Run, photos: NDArray[np.int64]) -> list[str]:
    """Return the group of each photo; one without a group is a group of its own."""
    chosen = [run.catalog.photos[number] for number in photos]
    return [photo.group or photo.path for photo in chosen]
