"""What classifiers are worth on photos outside all folds, and what they cost.

A fold is judged out of fold. An ensemble or a soup has seen every photo of the folds, so it is
judged here: on the collection's `val` part, on what `holdout` set aside, or on another labelled
set, of which no photo may have been trained on. Merged models are written into the run from here.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from fieldguide import combine, files, inference, metrics
from fieldguide.catalog import Catalog, listed
from fieldguide.classifier import Classifier, combined, member_probabilities
from fieldguide.combine import BatchNorm, Outside, Rule
from fieldguide.errors import DataError, ResourceError
from fieldguide.inference import Machine
from fieldguide.runs import MODELS, Run

SCORES = "scores.json"  # of the run: the table of its own outside photos

# Photos that the speed is measured on, after a batch that is not counted (taste).
TIMED_PHOTOS = 256

CROSS_FITTED = "chosen by these photos: judged cross-fitted, each half by the other half's choice"
FLATTERED = "some of these photos chose this soup, which flatters it"


@dataclass(frozen=True)
class Worth:
    """One classifier on photos outside all folds. Probabilities are those that `predict` gives.

    `interval` is 95 %, by bootstrap over groups; `unscaled_error` is the calibration error without
    the temperature; `photos_per_second` is from file to answer; `note` is what else must be known.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    log_loss: float
    calibration_error: float
    unscaled_error: float
    parameters: int
    bytes: int
    photos_per_second: float = 0.0
    note: str = ""


def merge_into_run(
    run: Run, rule: Rule, *, batch_norm: BatchNorm = "recalibrate", machine: Machine = Machine()
) -> Path:
    """Merges the run's folds into one model in the run; its folder, named by rule and batch norm.

    A model that is there already is left as it is. Raises `UsageError` for a run with folds to
    come, and what `combine.soup` raises.
    """
    run.require_complete()
    name = combine.model_name(rule, batch_norm)
    folder = run.folder / MODELS / name
    if name in run.models():
        return folder
    ingredients = run.ingredients()
    greedy = (
        combine.greedy(ingredients, batch_norm=batch_norm, machine=machine)
        if rule == "greedy"
        else None
    )
    model = combine.soup(ingredients, rule, batch_norm=batch_norm, machine=machine, chosen=greedy)
    if greedy is not None:
        worth = _worth(name, model, greedy.logits[None], ingredients.outside)
        model = _with_record(model, {"cross_fitted": asdict(worth)})
    with files.lock(run.folder):
        shutil.rmtree(folder, ignore_errors=True)  # of a merge that was killed
        model.save(folder)
    return folder


def worths(run: Run, machine: Machine = Machine()) -> list[Worth]:
    """Each fold, their mean, ensemble and merged models, on the run's own outside photos.

    Empty where there are none. The table is kept in the run and read again while nothing changes.
    """
    ingredients = run.ingredients()
    if not len(ingredients.outside):
        return []
    key = _key(run, machine)
    kept = _kept(run.folder / SCORES, key)
    if kept:
        return kept
    rows = worths_on(run, ingredients.outside, machine)
    record = {"key": key, "photos": len(ingredients.outside), "rows": [asdict(row) for row in rows]}
    with suppress(ResourceError):  # a run that cannot be written to has scores all the same
        files.write_json(run.folder / SCORES, record)
    return rows


def worths_on(run: Run, outside: Outside, machine: Machine = Machine()) -> list[Worth]:
    """The same on any labelled photos that no fold has seen (`unseen`).

    A greedy soup is judged cross-fitted where these are the photos that chose it, and marked where
    some of them are.
    """
    ingredients = run.ingredients()
    ensemble = combine.ensemble(ingredients)
    logits = combine.outside_logits(ingredients, ensemble.members, outside, machine)
    folds = [combine.one_fold(ingredients, fold) for fold in ingredients.judged]
    one, all_of_them = (speed(model, outside.files, machine) for model in (folds[0], ensemble))
    rows = [
        _worth(model.card.members[0], model, logits[[n]], outside, one)
        for n, model in enumerate(folds)
    ]
    rows.append(_mean(rows, logits, outside))
    rows.append(_worth("ensemble", ensemble, logits, outside, all_of_them))
    for name, folder in run.models().items():
        model = Classifier.load(folder)
        record = model.card.provenance["made"].get("cross_fitted")
        choosers = set(ingredients.outside.hashes if record else ())
        if choosers and choosers == set(outside.hashes):
            rows.append(replace(_parsed(record), photos_per_second=one, note=CROSS_FITTED))
        else:
            found = combine.outside_logits(ingredients, model.members, outside, machine)
            row = _worth(name, model, found, outside, one)
            rows.append(replace(row, note=FLATTERED) if choosers & set(outside.hashes) else row)
    return rows


def unseen(run: Run, catalog: Catalog) -> Outside:
    """The labelled photos of another collection, if no fold has seen one of them.

    Raises `DataError` for photos that the run trained on, by content, and for labels that are none
    of its classes.
    """
    photos = [photo for photo in catalog.photos if photo.label is not None]
    if not photos:
        raise DataError(f"no photo of `{catalog.root}` has a label to be scored by")
    numbers = {name: number for number, name in enumerate(run.classes)}
    unknown = sorted({str(photo.label) for photo in photos} - numbers.keys())
    if unknown:
        raise DataError(
            f"labels that are none of the run's {len(numbers)} classes: {listed(unknown)}",
            hint="leave these photos out: no answer could be right",
        )
    paths = tuple(catalog.file(photo) for photo in photos)
    with ThreadPoolExecutor() as pool:
        hashes = tuple(pool.map(_sha256, paths))
    _refuse_known(run, paths, hashes)
    return Outside(
        paths,
        np.array([numbers[str(photo.label)] for photo in photos]),
        tuple(photo.group or photo.path for photo in photos),
        hashes,
    )


def speed(classifier: Classifier, photos: Sequence[Path], machine: Machine = Machine()) -> float:
    """Photos a second from file to logits, after a first batch that starts whatever must start."""
    batch = min(machine.batch_size, TIMED_PHOTOS // 4)
    timed = (list(photos) * (1 + TIMED_PHOTOS // len(photos)))[:TIMED_PHOTOS]
    seen = inference.logits(
        classifier.card.architecture,
        classifier.members,
        timed[:batch] + timed,
        replace(machine, batch_size=batch),
    )
    next(seen)
    started, done = time.perf_counter(), 0
    for found in seen:
        done += len(found.photos)
    return done / (time.perf_counter() - started)


def _refuse_known(run: Run, paths: Sequence[Path], hashes: Sequence[str]) -> None:
    """Raises `DataError` for photos that the folds trained on, or that chose their epochs."""
    used = {"train": "were trained on by the folds"}
    if run.recipe.watch_val:
        used["val"] = "chose the epochs of the folds"
    for split, what in used.items():
        known = {p.sha256: p.path for p in run.catalog.photos if p.split == split}
        seen = [
            (path, known[digest])
            for path, digest in zip(paths, hashes, strict=True)
            if digest in known
        ]
        if seen:
            path, other = seen[0]
            raise DataError(
                f"{len(seen)} of {len(paths)} photos {what}, such as `{path}`, which is the run's"
                f" `{other}`: a score on them would flatter",
                hint="leave them out; without PHOTOS, each photo of the folds is judged by the fold"
                " that did not see it",
            )


def _sha256(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError:  # whoever looks at the photo will say so
        return ""


def _worth(
    name: str,
    classifier: Classifier,
    logits: Float[np.ndarray, "members n classes"],
    outside: Outside,
    photos_per_second: float = 0.0,
) -> Worth:
    """A classifier's scores from its members' logits."""
    wide, card = logits[:, :, None], classifier.card
    scaled, plain = (
        combined(wide, member_probabilities(wide, t), t, card.combine)
        for t in (card.temperature, 1.0)
    )
    correct = scaled.argmax(axis=1) == outside.targets
    return Worth(
        name=name,
        accuracy=float(correct.mean()),
        interval=metrics.bootstrap_interval(correct, _numbers(outside)),
        log_loss=metrics.log_loss(scaled, outside.targets),
        calibration_error=metrics.calibration_error(scaled, outside.targets),
        unscaled_error=metrics.calibration_error(plain, outside.targets),
        parameters=classifier.parameters,
        bytes=classifier.nbytes,
        photos_per_second=photos_per_second,
    )


def _mean(
    rows: Sequence[Worth], logits: Float[np.ndarray, "members n classes"], outside: Outside
) -> Worth:
    """What one fold is worth on average; the interval is that of the mean share right."""
    correct = (logits.argmax(axis=2) == outside.targets).mean(axis=0)

    def mean(score: Callable[[Worth], float]) -> float:
        return float(np.mean([score(row) for row in rows]))

    return replace(
        rows[0],
        name="mean of folds",
        accuracy=mean(lambda row: row.accuracy),
        interval=metrics.bootstrap_interval(correct, _numbers(outside)),
        log_loss=mean(lambda row: row.log_loss),
        calibration_error=mean(lambda row: row.calibration_error),
        unscaled_error=mean(lambda row: row.unscaled_error),
    )


def _numbers(outside: Outside) -> NDArray[np.int64]:
    return np.unique(outside.groups, return_inverse=True)[1].astype(np.int64)


def _with_record(model: Classifier, record: Mapping[str, Any]) -> Classifier:
    provenance = dict(model.card.provenance)
    provenance["made"] = {**provenance["made"], **record}
    return replace(model, card=replace(model.card, provenance=provenance))


def _key(run: Run, machine: Machine) -> str:
    """What the table depends on: the photos, the folds, the merged models, the precision."""
    photos = [run.catalog.photos[row].sha256 for row in run.outside]
    places = [run.fold_folder(fold) for fold in run.done] + list(run.models().values())
    manifests = [(place / files.MANIFEST).read_text("utf-8") for place in places]
    text = "\0".join([*photos, *manifests, str(machine.precision)])
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path, key: str) -> list[Worth]:
    try:
        content = json.loads(path.read_bytes())
        return [_parsed(row) for row in content["rows"]] if content["key"] == key else []
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or none that can be read
        return []


def _parsed(record: Mapping[str, Any]) -> Worth:
    return Worth(**{**record, "interval": tuple(record["interval"])})
