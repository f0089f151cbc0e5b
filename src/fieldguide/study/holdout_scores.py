"""The scores of classifiers on photos outside all folds, and their costs.

An ensemble or a soup has seen every photo of the folds, so it is judged here: on the collection's
`val` part, on what `holdout` set aside, or on another labelled set without training photos. Merged
models are written into the run from here.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from fieldguide.analysis import metrics, paired
from fieldguide.analysis.intervals import share_interval
from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.machine.device import choose_device, device_name
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.check import of_one_photo
from fieldguide.photos.inspect import inspect
from fieldguide.photos.near_copies import duplicates
from fieldguide.photos.pixels import Reading
from fieldguide.predict import combine, inference
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.combine import BatchNorm, Ingredients, Outside, Rule
from fieldguide.predict.model import Machine, combined, member_probabilities
from fieldguide.runs.run import MODELS, TUNED, Run
from fieldguide.storage import files
from fieldguide.study import tuning
from fieldguide.words import quoted

SCORES = "scores.json"  # of the run: the table of its own outside photos
TEST_SCORES = "test_scores.json"  # that of the labelled photos of its test part

# Photos that the speed is measured on, after a batch that is not counted (taste).
TIMED_PHOTOS = 256

CROSS_FITTED = "chosen by these photos: judged cross-fitted, each half by the other half's choice"
FLATTERED = "some of these photos chose this soup, which flatters it"


@dataclass(frozen=True)
class Worth:
    """The scores of one classifier on photos outside all folds, by the probabilities of `predict`.

    `interval` is 95 % (`analysis.intervals`); `unscaled_error` is the calibration error without the
    temperature; `photos_per_second` is from file to answer.
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
    better_than: tuple[str, ...] = ()  # of the others but single folds: `analysis.paired.better`


@dataclass(frozen=True)
class Worths:
    """The scores of classifiers on the same `photos`; `unreadable` ones were left out."""

    rows: tuple[Worth, ...]
    photos: int
    unreadable: int = 0


def merge_into_run(
    run: Run,
    rule: Rule | Literal["tuned"],
    *,
    batch_norm: BatchNorm = "average",
    machine: Machine = Machine(),
    watcher: Watcher | None = None,
) -> Path:
    """Merge the run's folds into one model in the run; return its folder, named after the rule.

    A model that is there already stays. `tuned` trains, followed by `watcher`, and goes on from
    the last checkpoint of a call that was stopped. Raises `UsageError` for a run with folds to
    come, and what `combine.soup` and `tuning.tuned` raise.
    """
    run.require_complete()
    name = combine.model_name(rule, batch_norm)
    if rule == TUNED and batch_norm != "average":
        raise UsageError(f"`tuned` has statistics of its own: `batch_norm` = {batch_norm!r}")
    folder = run.folder / MODELS / name
    if name in run.models():
        return folder
    with files.lock(run.folder):  # first: a run that cannot be written fails before long work
        if name not in run.models():
            shutil.rmtree(folder, ignore_errors=True)  # of a merge that was killed
            if rule == TUNED:
                files.make_folder(folder.parent)
                checkpoints = folder.with_name(f"{TUNED}-checkpoint")
                tuning.tuned(run, machine, watcher, checkpoints).save(folder)
                shutil.rmtree(checkpoints, ignore_errors=True)
            else:
                _merged(run, name, rule, batch_norm, machine).save(folder)
    return folder


def _merged(run: Run, name: str, rule: Rule, batch_norm: BatchNorm, machine: Machine) -> Classifier:
    """Return the merged model; a greedy soup records its cross-fitted scores with it."""
    ingredients = run.ingredients()
    if rule != "greedy":
        return combine.soup(ingredients, rule, batch_norm=batch_norm, machine=machine)
    greedy = combine.greedy(ingredients, batch_norm=batch_norm, machine=machine)
    model = combine.soup(ingredients, rule, batch_norm=batch_norm, machine=machine, chosen=greedy)
    worth = _worth(name, model, greedy.logits[None], ingredients.outside)
    made = {**model.card.provenance["made"], "cross_fitted": asdict(worth)}
    provenance = {**model.card.provenance, "made": made}
    return replace(model, card=replace(model.card, provenance=provenance))


def worths(run: Run, machine: Machine = Machine(), *, test: bool = False) -> Worths:
    """Return scores of folds, their mean, ensemble and merged models on the run's outside photos.

    With `test` they are the labelled photos of its test part. There are no rows without such
    photos. The run keeps the table while nothing changes.
    """
    rows, place = (run.tested, TEST_SCORES) if test else (run.outside, SCORES)
    if not len(rows):
        return Worths((), 0)
    key = key_of(run, machine, rows)
    kept = _kept(run.folder / place, key)
    if kept:
        return kept
    found = worths_on(run, run.labelled(rows), machine)
    if not found.unreadable:
        with suppress(ResourceError):  # a run that cannot be written to has scores all the same
            files.write_json(run.folder / place, {"key": key, **asdict(found)})
    return found


def kept(run: Run, machine: Machine = Machine()) -> Worths:
    """Return the scores of `worths` that the run keeps and that still hold; no rows without any."""
    rows = run.outside
    found = _kept(run.folder / SCORES, key_of(run, machine, rows)) if len(rows) else None
    return found or Worths((), 0)


def worths_on(run: Run, outside: Outside, machine: Machine = Machine()) -> Worths:
    """Return the same scores on any labelled photos that no fold has seen (`unseen`).

    Photos that cannot be read are left out and counted. A greedy soup is judged cross-fitted if
    these are the photos that chose it, and marked if some of them are. `DataError` if none can be
    read.
    """
    ingredients = run.ingredients()
    there = np.array(
        [n for n, path in enumerate(outside.files) if pixels.is_there(path)], dtype=int
    )
    _require_some(outside, there)
    photos, ensemble = outside.part(there), combine.ensemble(ingredients)
    architecture = ingredients.architecture
    logits, seen = inference.all_logits(architecture, ensemble.members, photos.files, machine)
    _require_some(outside, seen)
    photos = photos.part(seen)
    answers: dict[str, NDArray[np.int64]] = {}
    rows = list(_rows(run, ingredients, ensemble, logits, photos, machine, answers))
    found = paired.better(answers, _numbers(photos))
    rows = [replace(row, better_than=found.get(row.name, ())) for row in rows]
    return Worths(tuple(rows), len(photos), len(outside) - len(photos))


def _require_some(outside: Outside, rows: NDArray[np.int64]) -> None:
    if not len(rows):
        raise DataError(
            f"none of {len(outside)} labelled photos outside the folds can be read, such as"
            f" `{outside.files[0]}`",
            hint="if the run's photos lie elsewhere now, name their folder with --photos-root",
        )


def _rows(
    run: Run,
    ingredients: Ingredients,
    ensemble: Classifier,
    logits: Float[np.ndarray, "members n classes"],
    photos: Outside,
    machine: Machine,
    answers: dict[str, NDArray[np.int64]],
) -> Iterator[Worth]:
    """Yield folds, their mean and the ensemble from members' logits; then each merged model.

    `answers` get how many of as many answers as there are folds are right, but for single folds.
    """
    folds = [
        replace(ensemble, card=replace(ensemble.card, members=(name,)), members=(weights,))
        for name, weights in zip(ensemble.card.members, ensemble.members, strict=True)
    ]
    one, all_of_them = (speed(model, photos.files, machine) for model in (folds[0], ensemble))
    rows = [
        _worth(model.card.members[0], model, logits[[n]], photos, one)
        for n, model in enumerate(folds)
    ]
    yield from rows
    right = logits.argmax(axis=2) == photos.targets
    answers["mean of folds"] = right.sum(axis=0)
    yield _mean(rows, right, photos)
    answers["ensemble"] = len(folds) * _right(ensemble, logits, photos)
    yield _worth("ensemble", ensemble, logits, photos, all_of_them)
    for name, folder in run.models().items():
        model = Classifier.load(folder)
        record = model.card.provenance["made"].get("cross_fitted")
        choosers = _labelled(ingredients.outside) if record else set()
        if choosers and choosers == _labelled(photos):
            row = parsed({"better_than": (), **record})  # cards are older than that
            yield replace(row, photos_per_second=one, note=CROSS_FITTED)
        else:
            found = combine.outside_logits(ingredients, model.members, photos, machine)
            row = _worth(name, model, found, photos, one)
            if choosers & _labelled(photos):
                yield replace(row, note=FLATTERED)
            else:
                answers[name] = len(folds) * _right(model, found, photos)
                yield row


def unseen(
    run: Run,
    catalog: Catalog,
    *,
    notice: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] | None = None,
) -> Outside:
    """Return the labelled photos of another collection, if no fold has seen one of them.

    Photos that only look like a training photo (`check`) are left out, with a notice. Raises
    `DataError` for the very files that the run trained on, or that chose its epochs, and for labels
    that are none of its classes. `progress` is called with the number of photos compared so far.
    """
    photos = [photo for photo in catalog.photos if photo.label is not None]
    if not photos:
        raise DataError(f"no photo of `{catalog.root}` has a label to be scored by")
    numbers = {name: number for number, name in enumerate(run.classes)}
    unknown = sorted({str(photo.label) for photo in photos} - numbers.keys())
    if unknown:
        raise DataError(
            f"labels that are none of the run's {len(numbers)} classes: {quoted(unknown)}",
            hint="leave these photos out: no answer could be right",
        )
    labelled = replace(catalog, photos=tuple(photos))
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_sha256, map(catalog.file, photos)))
    _refuse_known(run, labelled, hashes)
    alike = _look_alikes(run, labelled, notice, progress)
    if alike:
        notice(f"{len(alike)} photos look like training photos and are left out")
    kept = [row for row in range(len(photos)) if row not in alike]
    if not kept:
        raise DataError(
            f"all {len(photos)} photos look like training photos: none is left to be scored",
            hint="give photos that the run was not trained on",
        )
    return Outside(
        tuple(map(catalog.file, photos)),
        np.array([numbers[str(photo.label)] for photo in photos], dtype=np.int64),
        tuple(photo.group or photo.path for photo in photos),
        tuple(hashes),
    ).part(np.array(kept))


def compared(run: Run, catalog: Catalog) -> int:
    """Return the number of photos that `unseen` compares."""
    return len(_used(run)) + sum(photo.label is not None for photo in catalog.photos)


def speed(classifier: Classifier, photos: Sequence[Path], machine: Machine = Machine()) -> float:
    """Return photos a second from file to logits, in one process, after a first batch as warm-up.

    Threads would have batches ready when the clock starts, so none are used.
    """
    batch = min(machine.batch_size, TIMED_PHOTOS // 4)
    timed = (list(photos) * (1 + TIMED_PHOTOS // len(photos)))[:TIMED_PHOTOS]
    alone = replace(machine, batch_size=batch, workers=0)
    architecture, members = classifier.card.architecture, classifier.members
    seen = inference.logits(architecture, members, timed[:batch] + timed, alone)
    next(seen)
    started = time.perf_counter()
    done = sum(len(found.photos) for found in seen)
    return done / (time.perf_counter() - started)


def _labelled(photos: Outside) -> set[tuple[str, int]]:
    """Return photos by content and class."""
    return set(zip(photos.hashes, photos.targets.tolist(), strict=True))


def _used(run: Run) -> list[Photo]:
    """Return the photos that the folds trained on or, if they watched `val`, chose epochs by."""
    used = {"train", "val"} if run.recipe.watch_val else {"train"}
    return [photo for photo in run.catalog.photos if photo.split in used]


def _refuse_known(run: Run, catalog: Catalog, hashes: Sequence[str]) -> None:
    before = [photo for photo in run.older_photos if photo.split == "train"]
    known = {photo.sha256: photo.path for photo in [*before, *_used(run)]}
    pairs = zip(catalog.photos, hashes, strict=True)
    seen = [(photo.path, known[digest]) for photo, digest in pairs if digest in known]
    if seen:
        raise DataError(
            f"{len(seen)} of {len(hashes)} photos were used by the folds in training:"
            f" {quoted([path for path, _ in seen])}, the first as `{seen[0][1]}`",
            hint="leave them out: a score on them would flatter. Without PHOTOS, each photo of the"
            " folds is judged by the fold that did not see it",
        )


def _look_alikes(
    run: Run,
    catalog: Catalog,
    notice: Callable[[str], None],
    progress: Callable[[int], None] | None,
) -> set[int]:
    """Return photos, by number, that look like one that the folds used."""
    own = [replace(photo, path=str(run.catalog.file(photo))) for photo in _used(run)]
    given = [replace(photo, path=str(catalog.file(photo))) for photo in catalog.photos]
    both = Catalog(catalog.root, (*own, *given))
    facts = inspect(both, reading=Reading.of(run.recipe), progress=progress)
    gone = sum(not fact.sha256 for fact in facts[: len(own)])
    if gone:
        notice(f"{gone} of {len(own)} training photos are gone: copies of them are not recognised")
    return {
        row - len(own)
        for rows in (*duplicates(both, facts), *of_one_photo(facts))
        for row in rows
        if rows[0] < len(own) <= row  # ascending: a photo of the run comes first
    }


def _sha256(path: Path) -> str:
    try:
        return pixels.sha256(path)
    except OSError:  # whoever looks at the photo will say so
        return ""


def _worth(
    name: str,
    classifier: Classifier,
    logits: Float[np.ndarray, "members n classes"],
    outside: Outside,
    photos_per_second: float = 0.0,
) -> Worth:
    """Return a classifier's scores from its members' logits."""
    scaled, plain = (_together(classifier, logits, t) for t in (classifier.card.temperature, 1.0))
    correct = scaled.argmax(axis=1) == outside.targets
    return Worth(
        name=name,
        accuracy=float(correct.mean()),
        interval=share_interval(correct, _numbers(outside)),
        log_loss=metrics.log_loss(scaled, outside.targets),
        calibration_error=metrics.calibration_error(scaled, outside.targets),
        unscaled_error=metrics.calibration_error(plain, outside.targets),
        parameters=classifier.parameters,
        bytes=classifier.nbytes,
        photos_per_second=photos_per_second,
    )


def _right(
    classifier: Classifier, logits: Float[np.ndarray, "members n classes"], outside: Outside
) -> NDArray[np.int64]:
    """Return 1 for each photo whose class the classifier's members give together, else 0."""
    found = _together(classifier, logits, classifier.card.temperature)
    right: NDArray[np.int64] = (found.argmax(axis=1) == outside.targets).astype(np.int64)
    return right


def _together(
    classifier: Classifier, logits: Float[np.ndarray, "members n classes"], temperature: float
) -> Float[np.ndarray, "n classes"]:
    """Return the probabilities that the members give together at a temperature."""
    wide = logits[:, :, None]
    shares = member_probabilities(wide, temperature)
    return combined(wide, shares, temperature, classifier.card.combine)


def _mean(rows: Sequence[Worth], right: Bool[np.ndarray, "members n"], outside: Outside) -> Worth:
    """Return one fold's mean scores; the interval is of the share of all folds' answers right.

    Answers to one photo, and to those of its group, are right or wrong together.
    """
    interval = share_interval(right.ravel(), np.tile(_numbers(outside), len(right)))
    scores = ("accuracy", "log_loss", "calibration_error", "unscaled_error")
    means: dict[str, Any] = {
        score: float(np.mean([getattr(row, score) for row in rows])) for score in scores
    }
    return replace(rows[0], name="mean of folds", interval=interval, **means)


def _numbers(outside: Outside) -> NDArray[np.int64]:
    return np.unique(outside.groups, return_inverse=True)[1].astype(np.int64)


def key_of(run: Run, machine: Machine, rows: NDArray[np.int64]) -> str:
    """Return a hash of the table's sources: photos, folds, merged models and the device."""
    photos = [run.catalog.photos[row].sha256 for row in rows]
    places = [run.fold_folder(fold) for fold in run.done] + list(run.models().values())
    manifests = [(place / files.MANIFEST).read_text("utf-8") for place in places]
    place = device_name(choose_device(machine.device))
    text = "\0".join([*photos, *manifests, place, machine.precision, str(machine.batch_size)])
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path, key: str) -> Worths | None:
    try:
        content = json.loads(path.read_bytes())
        if content["key"] != key:
            return None
        return Worths(tuple(map(parsed, content["rows"])), content["photos"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or none that can be read
        return None


def parsed(record: Mapping[str, Any]) -> Worth:
    """Return a row from what a file keeps of it; KeyError for one of before paired tests."""
    tuples = {name: tuple(record[name]) for name in ("interval", "better_than")}
    return Worth(**{**record, **tuples})
