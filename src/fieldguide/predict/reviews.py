"""The order in which predictions are best looked at, and which to label, from their table."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fieldguide.errors import DataError
from fieldguide.photos.tables import read_cells
from fieldguide.storage import files

COLUMNS = ("path", "label", "confidence")
LEFT = "errors_left"


@dataclass(frozen=True, eq=False)
class Review:
    """Photos in the order of looking, and how probable it is that each is wrong.

    Photos without an answer come first and count as wrong: somebody has to look at them.
    """

    rows: tuple[Mapping[str, str], ...]
    wrong: Float[np.ndarray, " n"]

    @property
    def left(self) -> Float[np.ndarray, " looks"]:
        """The errors expected before each look, and 0 after all."""
        return np.append(self.wrong[::-1].cumsum()[::-1], 0.0)


def read(table: Path) -> Review:
    """Return the predictions of a table, the least sure first; of equal ones the first comes first.

    A photo is wrong with a probability of one less its confidence, if that is calibrated, as it is
    without --no-calibrated and --only: no other order then has fewer expected errors left. Raises
    DataError for a table that lacks a column or holds no number from 0 to 1.
    """
    found = read_cells(table)
    if lacking := [name for name in COLUMNS if name not in found.header]:
        raise DataError(
            f"{found.name}: no column `{lacking[0]}`",
            hint="give a table that `fieldguide predict` wrote",
        )
    rows = [dict(zip(found.header, cells, strict=True)) for _, cells in found.rows]
    for row in rows:
        row.pop(LEFT, None)  # of a review of this review
    wrong = np.array(
        [
            _wrong(row["confidence"], f"{found.name}, row {number}")
            for row, (number, _) in zip(rows, found.rows, strict=True)
        ]
    )
    order = np.argsort(-wrong, kind="stable")
    return Review(tuple(rows[row] for row in order), wrong[order])


def _wrong(cell: str, where: str) -> float:
    if not cell.strip():
        return 1.0
    try:
        confidence = float(cell)
    except ValueError:
        confidence = -1.0
    if not 0 <= confidence <= 1:
        raise DataError(f"{where}: `confidence` = {cell} is no probability")
    return 1 - confidence


def to_label(review: Review, photos: int) -> Review:
    """Return the photos that are best labelled and trained on next: doubtful ones of all kinds.

    They are the least sure of each predicted class in turn: those of all classes together are too
    much alike, and spreading them by features is no better (docs/results.md). Each photo is there
    once; those without an answer are left out.
    """
    taken: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    seen: set[str] = set()
    for row, cells in enumerate(review.rows):
        answered = cells["confidence"].strip() and cells["label"].strip()
        if answered and cells["path"] not in seen:
            seen.add(cells["path"])
            turns.append((taken[cells["label"]], row))
            taken[cells["label"]] += 1
    chosen = [row for _, row in sorted(turns)[:photos]]
    return Review(tuple(review.rows[row] for row in chosen), review.wrong[chosen])


def needed(review: Review, right: float | None) -> int:
    """Return how many photos to look at until a share of all is expected to be right; or all."""
    if right is None:
        return len(review.wrong)
    return int(np.flatnonzero(review.left <= (1 - right) * max(len(review.wrong), 1))[0])


def write(out: Path, review: Review, looked: int | None = None) -> None:
    """Write the first photos, each with the number of errors expected after it was looked at.

    Without `looked` all are written, as they stood in their table.
    """
    header = [*(review.rows[0] if review.rows else COLUMNS)]
    if looked is None:
        files.write_csv(out, header, (list(row.values()) for row in review.rows))
        return
    left = review.left[1:]
    files.write_csv(
        out,
        [*header, LEFT],
        ([*row.values(), f"{left[number]:.4g}"] for number, row in enumerate(review.rows[:looked])),
    )
