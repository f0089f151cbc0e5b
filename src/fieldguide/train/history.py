"""The rows of a fold's history, and what else it tells of how training goes."""

from collections.abc import Mapping

import numpy as np

from fieldguide import merge
from fieldguide.analysis import metrics
from fieldguide.errors import TrainingError
from fieldguide.machine.controls import Controls
from fieldguide.train.job import FoldJob, Logits
from fieldguide.train.state import FoldState, Row, Tally


def note(job: FoldJob, state: FoldState, number: int, row: Row, controls: Controls) -> None:
    """Add a replica's row to the state's history, and the replica to those that diverged."""
    if row["diverged"]:
        state.diverged.append(number)
        controls.notice(
            f"fold {job.fold}: replica {number + 1} diverged"
            f" in epoch {row['epoch']} at step {row['steps']}"
        )
    record(state, row, controls)


def record(state: FoldState, row: Row, controls: Controls) -> None:
    """Add a row to the state's history and tell the outside world."""
    state.history.append(row)
    controls.on_row(row)


def history_row(
    job: FoldJob, state: FoldState, model: str, tally: Tally, logits: Logits | None
) -> Row:
    """Return one row of the history. What is not finite or not measured is None."""
    finite = logits is None or bool(np.isfinite(logits).all())
    row: Row = {
        "fold": job.fold,
        "epoch": state.epoch + 1,
        "model": model,
        "train_loss": tally.loss / tally.photos if tally.photos else None,
        "train_accuracy": tally.right / tally.photos if tally.photos else None,
        "test_loss": None,
        "test_accuracy": None,
        "steps": tally.steps,
        "skipped": tally.skipped,
        "missing": tally.missing,
        "diverged": not finite,
        "parts": max(state.parts, job.recipe.accumulate),
    }
    if logits is not None and finite:
        test, targets = logits[: len(job.test)], job.targets[job.test]
        row["test_loss"] = metrics.log_loss(metrics.softmax(test), targets)
        row["test_accuracy"] = metrics.accuracy(test, targets)
    return row


def means(moves: Mapping[str, merge.Move]) -> Row:
    """Return means over tensors, for the curves; the table of merges has every tensor's own."""
    if not moves:
        return {}
    values = np.array([(move.ratio, move.angle, move.distance) for move in moves.values()])
    names = ("ratio_mean", "angle_mean", "distance_mean")
    return dict(zip(names, values.mean(axis=0).tolist(), strict=True))


def diverged(job: FoldJob, state: FoldState, what: str = "") -> TrainingError:
    """Return the error of a fold that cannot go on."""
    what = what or f"replica {', '.join(str(n + 1) for n in state.diverged)}"
    steps = [row["steps"] for row in state.history if row["epoch"] == state.epoch + 1]
    return TrainingError(
        f"fold {job.fold}: training diverged: {what} in epoch {state.epoch + 1}"
        f" has no finite loss (last at step {max(steps, default=0)})",
        hint="begin a new run with lower backbone_rate and head_rate, or with precision"
        " `float32`; this one keeps its last good checkpoint, if it got that far",
    )
