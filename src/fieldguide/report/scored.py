"""The table that `fieldguide score` left in a run, if it fits the run's present models.

Old numbers under the names of new models would mislead. Knows nothing of how they are scored.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fieldguide.runs.run import Run
from fieldguide.storage import files

if TYPE_CHECKING:
    from fieldguide.study.holdout_scores import Worth

SCORES = "scores.json"  # as in `study.holdout_scores`, which would bring torch

ELSEWHERE = (
    "These were scored on another device, or with another precision or batch size, than"
    " `fieldguide score` uses here by default. Only the dates of the files show that they belong"
    " to these models."
)


@dataclass(frozen=True)
class Kept:
    """The rows to show, with remarks: sentences, or empty."""

    rows: tuple["Worth", ...] = ()
    stale: str = ""  # why the table is not shown
    doubt: str = ""  # what is uncertain about one that is shown


def read(run: Run) -> Kept:
    """Return the run's table, if it has one that fits.

    It fits if its key, from the hashes of photos, folds and merged models and from the device, is
    that of `fieldguide score` here. The key of another device cannot be computed here; then the
    table fits unless a fold or a model was written after it.
    """
    try:
        content = json.loads((run.folder / SCORES).read_bytes())
    except (OSError, ValueError):  # none yet, or cut short
        return Kept()
    from fieldguide.predict.model import Machine  # both bring torch
    from fieldguide.study import holdout_scores

    try:
        key, photos = content["key"], content["photos"]
        rows = tuple(map(holdout_scores.parsed, content["rows"]))
    except (LookupError, TypeError):
        return Kept(stale=f"{SCORES} is of another version.")
    if not isinstance(photos, int) or not all(isinstance(row.name, str) for row in rows):
        return Kept(stale=f"{SCORES} is damaged.")
    if photos != (now := len(run.outside)):
        return Kept(stale=f"{SCORES} is of {photos:,} photos, and now there are {now:,}.")
    if stale := _other_names(run, [row.name for row in rows]):
        return Kept(stale=stale)
    if key == holdout_scores.key_of(run, Machine(), run.outside):
        return Kept(rows)
    if changed := _younger(run):
        return Kept(stale=f"Written after {SCORES}: {', '.join(changed)}.")
    return Kept(rows, doubt=ELSEWHERE)


def _other_names(run: Run, names: Sequence[str]) -> str:
    """Return the models that the table lacks, or has though they are gone."""
    now = [*(f"fold {fold}" for fold in run.done), "mean of folds", "ensemble", *run.models()]
    lacks = [name for name in now if name not in names]
    gone = [name for name in names if name not in now]
    said = [f"{SCORES} does not contain {', '.join(lacks)}."] if lacks else []
    said += [f"{SCORES} contains models that are gone: {', '.join(gone)}."] if gone else []
    return " ".join(said)


def _younger(run: Run) -> list[str]:
    """Return the folds and merged models that were written after the table."""
    folds = {f"fold {fold}": run.fold_folder(fold) for fold in run.done}
    written = (run.folder / SCORES).stat().st_mtime_ns
    return [
        name
        for name, place in (folds | run.models()).items()
        if (place / files.MANIFEST).stat().st_mtime_ns > written
    ]
