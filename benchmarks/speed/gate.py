"""Does the fast path cost accuracy? Out-of-fold, on the same folds, for several seeds."""

from collections.abc import Iterator

import numpy as np
from harness import Options, Row, Target
from material import NATURE, Collection, collection, new_folder, recipe_of

from fieldguide import compare, metrics
from fieldguide.runs import Run

SIZE, EPOCHS, FOLDS = 128, 3, 3
SEEDS = (0, 1, 2)


def gate(options: Options) -> Iterator[Row]:
    """Photos decoded once to the side of evaluation, against photos decoded for every crop."""
    photos = _photos(options)
    seeds = SEEDS[:1] if options.quick else SEEDS
    answers = [_answers(options, photos, seed) for seed in seeds]
    fast, plain = (np.array([each[n] for each in answers], dtype=float) for n in (0, 1))
    low, high = metrics.bootstrap_interval((fast - plain).mean(axis=0), answers[0][2])
    what = f"resnet18@{SIZE}, accuracy with stored_side auto minus 0, seeds {seeds[0]}–{seeds[-1]}"
    yield Row(
        "gate",
        what,
        tuple(fast.mean(axis=1)),
        tuple(plain.mean(axis=1)),
        "accuracy",
        target=Target("≥", -0.001),
        difference=True,
        mean=True,
        photos=photos.about,
        note=f"95 % interval over groups {low:+.4f} … {high:+.4f}",
    )


def _photos(options: Options) -> Collection:
    if options.quick or options.photos or not NATURE.is_dir():
        return collection(options, options.photos or 1000)
    return Collection(NATURE, "all training photos of nature100, shorter side 160")


Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]
Ints = np.ndarray[tuple[int], np.dtype[np.int64]]


def _answers(options: Options, photos: Collection, seed: int) -> tuple[Bools, Bools, Ints]:
    """Which photos the fast and the plain path name rightly, by path, and their groups."""
    epochs, folds = (1, 2) if options.quick else (EPOCHS, FOLDS)
    plain = recipe_of(options, SIZE, seed=seed, folds=folds, epochs=epochs, stored_side=0)
    trials = compare.trials(plain, {"stored_side": ["auto"]})
    folder = new_folder(options)
    compare.compare(photos.catalog, trials, folder)
    one, other = (Run(folder / trial.folder) for trial in trials)
    names = [photo.group or photo.path for photo in one.catalog.photos]
    return right(other), right(one), np.unique(names, return_inverse=True)[1]


def right(run: Run) -> Bools:
    """Whether the fold that tests each photo names it rightly, in catalog order."""
    rows = np.concatenate([run.folds[fold].test for fold in run.judged])
    named = np.concatenate([logits.argmax(axis=1) for logits in run.judged.values()])
    found = np.zeros(len(run.catalog), dtype=bool)
    found[rows] = named == run.targets[rows]
    return found
