"""The results of a comparison: collected from the runs of its trials, and written as files.

Knows nothing of how folds are trained, nor of the statistics (`analysis.paired`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fieldguide import recipe as recipes
from fieldguide.analysis import metrics, paired
from fieldguide.analysis.intervals import share_interval
from fieldguide.analysis.paired import Seeds
from fieldguide.compare.trials import Trial, described, varied, with_seeds
from fieldguide.errors import ResourceError, UsageError
from fieldguide.photos import catalog as catalogs
from fieldguide.photos.catalog import Catalog
from fieldguide.recipe import Recipe
from fieldguide.report import comparison, curves, figures
from fieldguide.report.comparison import PREPARED, Comparison, Row, Status, Winner
from fieldguide.report.curves import Mean
from fieldguide.runs import run as runs
from fieldguide.runs.run import Run
from fieldguide.storage import files

FAILED = "failed.json"
TABLE, RECORD = "compare.csv", "compare.json"

Right = Bool[np.ndarray, " n"]  # whether each training photo is classified correctly
Places = Int[np.ndarray, " n"]
Groups = Int[np.ndarray, " n"]


def collect(
    folder: str | Path,
    trials: Sequence[Trial],
    used: Catalog,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Comparison:
    """Return the comparison as far as it is done; `notes` are on trials, by name.

    `used` is the prepared catalog. Raises `UsageError` for a run of other photos or folds.
    """
    training = [photo for photo in used.photos if photo.split == "train"]
    names = [photo.group or photo.path for photo in training]
    groups = np.unique(names, return_inverse=True)[1].astype(np.int64)
    rows: list[Row] = []
    means: dict[str, tuple[Mean, ...]] = {}
    right: dict[str, Seeds] = {}  # of the complete trials
    for trial in (each for each in trials if not each.of):
        repeated = [each for each in trials if trial.name in (each.name, each.of)]
        read = [_read(Path(folder) / each.folder, each, used) for each in repeated]
        row = _over_seeds(read, groups)
        known = (notes.get(each.name, "") for each in repeated)
        rows.append(replace(row, note=row.note or next(filter(None, known), "")))
        means[trial.name] = read[0].curve
        if row.status == "complete":
            right[trial.name] = np.stack([each.right[np.argsort(each.photos)] for each in read])
    others = {name: each for name, each in right.items() if name != trials[0].name}
    contrasts: dict[str, paired.Contrast] = {}
    if trials[0].name in right:
        base, seeds = right[trials[0].name], len(right[trials[0].name])
        found = (
            paired.contrasts_over_seeds(base, list(others.values()), groups)
            if seeds > 1
            else paired.contrasts(base[0], [each[0] for each in others.values()], groups)
        )
        contrasts = dict(zip(others, found, strict=True))
    return Comparison(
        rows=tuple(replace(row, contrast=contrasts.get(row.name)) for row in rows),
        photos=len(training),
        groups=int(groups.max()) + 1,
        folds=len({photo.fold for photo in training}),
        seeds=sum(trials[0].name in (trial.name, trial.of) for trial in trials),
        stop=trials[0].recipe.stop,
        curves={row.name: means.get(row.name, ()) for row in rows},
        winner=_winner(right, groups),
        notes=tuple(f"{text}." for trial in trials for text in on_twins(trial)),
    )


def rebuilt(folder: str | Path) -> Comparison:
    """Return the comparison of the trials in a folder's compare.json, as its runs stand now.

    Raises `UsageError` where there is none, `ResourceError` if it is damaged or no trial has begun.
    """
    place = Path(folder)
    if not (place / PREPARED).is_file():
        raise UsageError(f"`{place}` holds no comparison: it has no {PREPARED}")
    files.verify(place, name=PREPARED)
    try:
        record = json.loads((place / RECORD).read_bytes())
        base = recipes.build(record["base"])
        tried = [varied(base, row["changes"], row["name"]) for row in record["rows"]]
        tried = with_seeds(tried, record.get("seeds", 1))
        # Why a trial failed is read from its own folder.
        notes = {row["name"]: row["note"] for row in record["rows"] if row["status"] != "failed"}
        twins = tuple(record["notes"])
    except FileNotFoundError as error:
        raise ResourceError(
            f"no trial of `{place}` has begun yet", hint="the same compare command resumes it"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, UsageError) as error:
        raise ResourceError(
            f"`{place / RECORD}` cannot be read: {error}",
            hint="the same compare command writes it again",
        ) from error
    used = catalogs.read_rows(place / "catalog.csv", root=place)
    return replace(collect(place, tried, used, notes), notes=twins)


def write(found: Comparison, folder: Path, base: Recipe) -> None:
    """Write the table, the record and the page."""
    files.write_bytes(folder / TABLE, table(found))
    record = {"format": 1, "level": paired.LEVEL, "base": base.model_dump(mode="json")}
    files.write_json(folder / RECORD, record | asdict(found))
    comparison.build(found, folder)


def save_figures(found: Comparison, folder: Path) -> list[Path]:
    """Write charts and table into `folder`; return their paths; `UsageError` if one exists."""
    return figures.write(comparison.charts(found), folder, {TABLE: table(found)})


COLUMNS = (
    *("trial", "changes", "status", "folds_done", "accuracy", "accuracy_low", "accuracy_high"),
    "accuracy_by_seed",
    *("log_loss", "seconds", "difference", "difference_low", "difference_high"),
    *("p", "adjusted_p", "verdict", "folder", "note"),
)


def table(found: Comparison) -> bytes:
    """Return the trials as CSV, a line each; what is not known is empty."""
    lines: list[Sequence[object]] = [COLUMNS]
    for row in found.rows:
        known = [row.name, described(row.changes), row.status, row.folds]
        by_seed = " ".join(f"{each:.6f}" for each in row.accuracies)
        scores = [row.accuracy, *(row.interval or (None, None)), by_seed, row.log_loss, row.seconds]
        contrast = astuple(row.contrast) if row.contrast else (None,) * 6
        lines.append([*known, *scores, *contrast, row.folder, row.note])
    return b"".join(files.csv_lines(lines))


def on_twins(trial: Trial) -> list[str]:
    """Return what to say of recipes that train the same networks as the trial."""
    same = f"would train the same networks as {trial.name}, and is that trial"
    return [f"{twin} {same}" for twin in trial.twins]


def _split(catalog: Catalog) -> list[tuple[object, ...]]:
    return [(p.path, p.label, p.fold) for p in catalog.photos if p.split == "train"]


class _Read(NamedTuple):
    """What a run says: its row, and right answers to photos, numbered among those of training."""

    row: Row
    right: Right = np.zeros(0, dtype=np.bool_)
    photos: Places = np.zeros(0, dtype=np.int64)
    curve: tuple[Mean, ...] = ()


def _read(place: Path, trial: Trial, used: Catalog) -> _Read:
    """Return what the run of a trial says over the folds that are done."""
    row = Row(trial.name, trial.changes, "", "not begun")
    if not (place / runs.SETUP).is_file():
        return _Read(row)
    run = Run(place, photos=used.root)
    if _split(run.catalog) != _split(used):
        raise UsageError(
            f"`{place}` was trained on other photos or folds than this comparison has",
            hint="remove it, and the same command trains it again",
        )
    failure = _failure(run.folder)
    status: Status = "complete" if run.complete else "failed" if failure else "unfinished"
    row = replace(row, folder=trial.folder, status=status, folds=len(run.done), note=failure)
    if not run.done:
        return _Read(row, curve=_curve(run))
    training = np.array([photo.split == "train" for photo in run.catalog.photos])
    photos, _, logits = run.pooled
    targets = run.targets[photos]
    right = logits.argmax(axis=1) == targets
    loss = metrics.log_loss(metrics.softmax(logits), targets)
    row = replace(row, accuracy=float(right.mean()), log_loss=loss, seconds=run.seconds)
    return _Read(row, right, (np.cumsum(training) - 1)[photos], _curve(run))


def _over_seeds(read: Sequence[_Read], groups: Groups) -> Row:
    """Return the row of a trial from those of its seeds: means, all their time and folds."""
    rows = [each.row for each in read]
    statuses = {row.status for row in rows}
    status: Status = "failed" if "failed" in statuses else "unfinished"
    row = replace(
        rows[0],
        status=rows[0].status if len(statuses) == 1 else status,
        folds=sum(row.folds for row in rows),
        note=next((row.note for row in rows if row.note), ""),
        accuracies=tuple(row.accuracy for row in rows if row.accuracy is not None),
    )
    if not row.accuracies:
        return row
    right, photos = (
        np.concatenate(each) for each in zip(*(each[1:3] for each in read), strict=True)
    )
    return replace(
        row,
        accuracy=float(np.mean(row.accuracies)),
        interval=share_interval(right, groups[photos]),
        log_loss=float(np.mean([row.log_loss for row in rows if row.log_loss is not None])),
        seconds=sum(row.seconds or 0.0 for row in rows),
    )


def _curve(run: Run) -> tuple[Mean, ...]:
    """Return the accuracy of the merged model by epoch, or of the only replica."""
    means = [m for m in curves.averaged(curves.read(run).judged) if m.measure == "test_accuracy"]
    merged = tuple(mean for mean in means if mean.model == curves.MERGED)
    return merged or tuple(mean for mean in means if mean.model == "replica-1")


def _winner(right: Mapping[str, Seeds], groups: Groups) -> Winner | None:
    """Return the best of the complete trials, where there is a choice."""
    if len(right) < 2 or len(np.unique(groups)) < 2:
        return None
    correct = np.stack([answers.mean(axis=0) for answers in right.values()])
    best = paired.best(correct)
    corrected = paired.bias_corrected_best(correct, groups)
    return Winner(list(right)[best], float(correct[best].mean()), corrected, len(right))


def _failure(place: Path) -> str:
    """Return why its training failed; empty where it did not."""
    try:
        return f"failed: {json.loads((place / FAILED).read_bytes())['message']}"
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "failed, for a reason that cannot be read"
