"""What speed, and what shares of the photos, cost in accuracy: out of fold, for several seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from harness import Cost, Options, Row, Target, measured, seconds
from material import NATURE, Collection, collection, new_folder, recipe_of

from fieldguide.analysis import intervals
from fieldguide.fitting.fit import fit
from fieldguide.runs.run import Run

SIZE, EPOCHS, FOLDS = 96, 3, 2
SEEDS = (0, 1, 2)

# The road without what makes it fast.
PLAIN: Mapping[str, Any] = {
    "precision": "float32",
    "layout": "contiguous",
    "stored_side": 0,
    "cache": "none",
}

# Changes of a recipe that make it cheaper; none is a default.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "stem and first stage frozen": {"freeze": 2},
    f"{EPOCHS - 1} epochs": {"epochs": EPOCHS - 1},
}

# Replicas on shares of the photos, and what a merge does with them. They take fewer steps than one
# replica on all photos: in the last ones each is as many times as long.
SHARES: Mapping[str, Mapping[str, Any]] = {
    f"{replicas} shares, {name}": {
        "replicas": replicas,
        "merge": "average",
        "replica_data": "share",
        **change(replicas),
    }
    for name, change in {
        "mean": lambda replicas: {},
        "momentum": lambda replicas: {"outer": "momentum"},
        "mean, longer steps": lambda replicas: {
            "backbone_rate": replicas * 1e-4,
            "head_rate": replicas * 1e-3,
        },
    }.items()
    for replicas in (2, 4)
}

Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]
Groups = np.ndarray[tuple[int], np.dtype[np.int64]]


class Outcome(NamedTuple):
    """A fit: which photos it names rightly, whose groups they are, and what it cost."""

    right: Bools
    groups: Groups
    cost: Cost


def gate(options: Options) -> Iterator[Row]:
    """The fast road against the plain one, and each change of the recipe against none."""
    roads = {"the fast road": {}, "the plain road": PLAIN, **CHANGES}
    pairs = {"the fast road": "the plain road", **dict.fromkeys(CHANGES, "the fast road")}
    return _compared(options, "gate", roads, pairs, Target("≥", -0.001))


def shares(options: Options) -> Iterator[Row]:
    """Replicas on shares of the photos, merged each epoch, against one replica on all of them.

    Each epoch goes through every photo once on either side, so that both cost the same.
    """
    roads = {"one replica on all photos": {"replicas": 1, "merge": "none"}, **SHARES}
    pairs = dict.fromkeys(SHARES, "one replica on all photos")
    return _compared(options, "shares", roads, pairs)


def _compared(
    options: Options,
    part: str,
    roads: Mapping[str, Mapping[str, Any]],
    pairs: Mapping[str, str],
    target: Target | None = None,
) -> Iterator[Row]:
    """Fits of all roads for every seed, and the rows of the pairs."""
    photos = _photos(options)
    seeds = SEEDS[:1] if options.quick else SEEDS
    outcomes: dict[str, list[Outcome]] = {name: [] for name in roads}
    for seed in seeds:
        for name, changed in roads.items():
            outcomes[name].append(_outcome(options, photos, seed, changed))
    about = f"{photos.about}; resnet18@{SIZE}, {FOLDS} folds x {EPOCHS} epochs"
    for ours, peer in pairs.items():
        for row in _rows(outcomes[ours], outcomes[peer], part, f"{ours} vs {peer}", target):
            yield replace(row, photos=about)


def _photos(options: Options) -> Collection:
    if options.quick or options.photos or not NATURE.is_dir():
        return collection(options, options.photos or 1000)
    return Collection(NATURE, "all training photos of nature100, shorter side 160")


def _outcome(
    options: Options, photos: Collection, seed: int, changed: Mapping[str, Any]
) -> Outcome:
    plain = recipe_of(options, SIZE, seed=seed, folds=FOLDS, epochs=EPOCHS, replica_curves=False)
    recipe = plain.replace(**changed)
    run, cost = measured(partial(fit, photos.catalog, recipe, new_folder(options)))
    names = [photo.group or photo.path for photo in run.catalog.photos]
    return Outcome(right(run), np.unique(names, return_inverse=True)[1], cost)


def _rows(
    ours: Sequence[Outcome],
    peer: Sequence[Outcome],
    part: str,
    what: str,
    target: Target | None,
) -> Iterator[Row]:
    """How much accuracy is lost over the seeds, and how much time is saved."""
    a, b = (np.array([each.right for each in side], dtype=float) for side in (ours, peer))
    low, high = intervals.mean_interval((a - b).mean(axis=0), ours[0].groups)
    yield Row(
        f"{part}-accuracy",
        what,
        tuple(a.mean(axis=1)),
        tuple(b.mean(axis=1)),
        "accuracy",
        target=target,
        difference=True,
        mean=True,
        note=f"95 % interval over groups {low:+.4f} … {high:+.4f}",
    )
    times = (seconds([each.cost for each in side], "cpu") for side in (ours, peer))
    yield Row(f"{part}-seconds", what, *times, "s", "cpu")


def right(run: Run) -> Bools:
    """Whether the fold that tests each photo names it rightly, in catalog order."""
    rows = np.concatenate([run.folds[fold].test for fold in run.judged])
    named = np.concatenate([logits.argmax(axis=1) for logits in run.judged.values()])
    found = np.zeros(len(run.catalog), dtype=bool)
    found[rows] = named == run.targets[rows]
    return found
