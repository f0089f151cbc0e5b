"""The table that `fieldguide score` left in a run, and whether it is of the run as it stands now.

Old numbers under the names of new models would mislead, so a table that does not fit is not shown,
and the reason is told. Knows nothing of how classifiers are scored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fieldguide.runs.run import Run
from fieldguide.storage import files

if TYPE_CHECKING:
    from fieldguide.study.holdout_scores import Worth

SCORES = "scores.json"  # as `study.holdout_scores` calls it, which would bring torch

ELSEWHERE = (
    "These were scored on another device, or with another precision or batch size, than"
    " `fieldguide score` takes here by itself. That they are of these very models is told by the"
    " dates of the files alone."
)


@dataclass(frozen=True)
class Kept:
    """The table as far as it is to be shown.

    `stale` says why one that is there is not, and `doubt` what could not be made sure of one that
    is; each is a sentence, or empty.
    """

    rows: tuple["Worth", ...] = ()
    stale: str = ""
    doubt: str = ""


def read(run: Run) -> Kept:
    """The run's table, if it has one.

    It fits where its key is the one that `fieldguide score` would look for here: of the same
    photos, folds and merged models, by their hashes, on the same device. The key of another device
    cannot be made here; then the table fits unless a fold or a model was written after it.
    """
    try:
        content = json.loads((run.folder / SCORES).read_bytes())
    except (OSError, ValueError):  # none yet, or cut short
        return Kept()
    try:
        key, photos, rows = content["key"], content["photos"], _parsed(content["rows"])
    except (LookupError, TypeError):
        return Kept(stale=f"{SCORES} is of another version.")
    if not isinstance(photos, int) or not all(isinstance(row.name, str) for row in rows):
        return Kept(stale=f"{SCORES} is damaged.")
    stale = _other_photos(run, photos) or _other_names(run, [row.name for row in rows])
    if stale:
        return Kept(stale=stale)
    if key == _key(run):
        return Kept(rows)
    changed = _younger(run)
    if changed:
        return Kept(stale=f"Written after {SCORES}: {', '.join(changed)}.")
    return Kept(rows, doubt=ELSEWHERE)


def _parsed(rows: Sequence[Mapping[str, Any]]) -> tuple["Worth", ...]:
    from fieldguide.study.holdout_scores import Worth  # brings torch

    return tuple(Worth(**{**row, "interval": tuple(row["interval"])}) for row in rows)


def _other_photos(run: Run, photos: int) -> str:
    now = len(run.outside)
    return "" if photos == now else f"{SCORES} is of {photos:,} photos, and there are {now:,} now."


def _other_names(run: Run, names: Sequence[str]) -> str:
    """What the table lacks, or tells of though it is gone."""
    now = [*(f"fold {fold}" for fold in run.done), "mean of folds", "ensemble", *run.models()]
    lacks = [name for name in now if name not in names]
    gone = [name for name in names if name not in now]
    said = [f"{SCORES} does not know {', '.join(lacks)}."] if lacks else []
    said += [f"{SCORES} knows what is gone: {', '.join(gone)}."] if gone else []
    return " ".join(said)


def _key(run: Run) -> str:
    """What `fieldguide score` would find the table by, on this machine and without flags."""
    from fieldguide.predict.inference import Machine
    from fieldguide.study import holdout_scores

    return holdout_scores.key_of(run, Machine())


def _younger(run: Run) -> list[str]:
    """Folds and merged models that were written after the table."""
    folds = {f"fold {fold}": run.fold_folder(fold) for fold in run.done}
    written = (run.folder / SCORES).stat().st_mtime_ns
    return [
        name
        for name, place in (folds | run.models()).items()
        if (place / files.MANIFEST).stat().st_mtime_ns > written
    ]
