"""What a run's classifiers are worth on photos outside its folds, and what they cost.

    python benchmarks/classifiers.py runs/nature100

Merges the run's folds by every rule, with batch norm measured anew and averaged; then prints one
JSON line a result: scores of each fold, the ensemble and the soups; one view against four;
coverage of sets; the tolerance of the reduced precision; photos a second, in rounds A B A B.
"""

import argparse
import itertools
import json
import platform
from pathlib import Path

import numpy as np
import torch

import fieldguide as fg
from fieldguide.analysis import calibration as calibrations
from fieldguide.analysis import conformal, metrics, paired
from fieldguide.analysis.conformal import Sets
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.combine import RULES, Outside
from fieldguide.predict.model import Machine
from fieldguide.study import holdout_scores

ROUNDS = 5


def main() -> None:
    """Runs every part and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    run = fg.Run(options.run)
    tell("environment", versions=run.environment["versions"], machine=platform.machine())
    for part in options.parts:
        PARTS[part](run)


def scores(run: fg.Run) -> None:
    """Every fold, the ensemble and every soup."""
    for rule, batch_norm in itertools.product(RULES, ("recalibrate", "average")):
        folder = holdout_scores.merge_into_run(run, rule, batch_norm=batch_norm)
        made = Classifier.load(folder).card.provenance["made"]
        tell("merged", name=folder.name, made={k: made[k] for k in made if k != "cross_fitted"})
    for row in holdout_scores.worths(run).rows:
        tell("score", **vars(row))


def calibration(run: fg.Run) -> None:
    """Out of fold, before and after scaling by temperatures of the other folds."""
    card = run.classifier().card
    record = {when: dict(card.calibration[when]) for when in ("before", "after")}
    for figures in record.values():
        figures.pop("reliability")
    tell("calibration", temperature=card.temperature, **record)


def views(run: fg.Run) -> None:
    """One view against four, paired on the same photos."""
    photos = run.ingredients().outside
    for name in ("fold-0", "soup", "ensemble"):
        model = run.classifier(name)
        one = model.predict(photos.files).probabilities
        four = model.predict(photos.files, views=("flips", "scales")).probabilities
        right = (each.argmax(1) == photos.targets for each in (four, one))
        gain, low, high = paired.difference(*right, groups(photos))
        tell("views", name=name, one=judged(one, photos), four=judged(four, photos))
        tell("views", name=name, gain=gain, interval=(low, high))


def coverage(run: fg.Run) -> None:
    """How often sets hold the true class, and how large they are."""
    photos = run.ingredients().outside
    for name, share, method, per_class in itertools.product(
        ("fold-0", "soup", "ensemble"), (0.9, 0.95), ("split", "adaptive"), (False, True)
    ):
        asked = Sets(share, method, per_class)
        sets = run.classifier(name).predict(photos.files, sets=asked).sets
        assert sets is not None
        held = sets[np.arange(len(photos)), photos.targets]
        spread = 1.96 * (share * (1 - share) / len(photos)) ** 0.5
        tell(
            "coverage",
            name=name,
            **vars(asked),
            held=float(held.mean()),
            limits=(share - spread, share + spread),
            size=float(sets.sum(axis=1).mean()),
            empty=float((sets.sum(axis=1) == 0).mean()),
            single=float((sets.sum(axis=1) == 1).mean()),
        )


def coverage_out_of_fold(run: fg.Run) -> None:
    """The same on each fold's photos, calibrated by those of the other folds: photos alike."""
    folds, targets = list(run.judged), [run.targets[run.folds[fold].test] for fold in run.judged]
    temperature = run.scores.temperature
    scaled = [calibrations.scaled(run.judged[fold], temperature) for fold in folds]
    for share, method, per_class in itertools.product(
        (0.9, 0.95), ("split", "adaptive"), (False, True)
    ):
        every = [conformal.nonconformity(values, method) for values in scaled]
        own = [
            np.take_along_axis(values, true[:, None], axis=1)[:, 0]
            for values, true in zip(every, targets, strict=True)
        ]
        held, sizes = [], []
        for fold in range(len(folds)):
            others = [other for other in range(len(folds)) if other != fold]
            known = np.concatenate([own[other] for other in others])
            sets = conformal.prediction_sets(
                every[fold][None],
                known,
                np.zeros(len(known), dtype=np.int64),
                np.concatenate([targets[other] for other in others]),
                coverage=share,
                per_class=per_class,
            )
            held.append(sets[np.arange(len(sets)), targets[fold]])
            sizes.append(sets.sum(axis=1))
        photos, size = np.concatenate(held), np.concatenate(sizes)
        spread = 1.96 * (share * (1 - share) / len(photos)) ** 0.5
        tell(
            "coverage out of fold",
            coverage=share,
            method=method,
            per_class=per_class,
            held=float(photos.mean()),
            limits=(share - spread, share + spread),
            size=float(size.mean()),
            empty=float((size == 0).mean()),
            single=float((size == 1).mean()),
        )


def tolerance(run: fg.Run) -> None:
    """Largest difference of any probability: to the run's own, and between precisions."""
    rows = run.folds[0].test
    paths = [run.catalog.file(run.catalog.photos[row]) for row in rows]
    own = metrics.softmax(run.logits(0))
    model = run.classifier("fold-0")
    for precision, batch_size in itertools.product(("bfloat16", "float32"), (1, 64)):
        machine = Machine(precision=precision, batch_size=batch_size)
        found = model.predict(paths, calibrated=False, machine=machine).probabilities
        apart = np.abs(found - own)
        tell(
            "tolerance",
            precision=precision,
            trained_in=run.recipe.precision,
            batch_size=batch_size,
            largest=float(apart.max()),
            photos_99=float(np.quantile(apart.max(axis=1), 0.99)),
            other_label=int((found.argmax(1) != own.argmax(1)).sum()),
            photos=len(rows),
        )


def speed(run: fg.Run) -> None:
    """Photos a second from file to logits, in one process, in rounds of all three."""
    photos = run.ingredients().outside.files
    models = {name: run.classifier(name) for name in ("fold-0", "soup", "ensemble")}
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            rates[name].append(holdout_scores.speed(model, photos, Machine(workers=0)))
    for name, values in rates.items():
        ratio = np.array(values) / rates["fold-0"]
        tell(
            "speed",
            name=name,
            rounds=ROUNDS,
            threads=torch.get_num_threads(),
            photos_per_second=(float(np.median(values)), min(values), max(values)),
            ratio_to_one_fold=(float(np.median(ratio)), float(ratio.min()), float(ratio.max())),
        )


def judged(probabilities: np.ndarray, photos: Outside) -> dict[str, float]:
    """The usual scores of probabilities."""
    return {
        "accuracy": metrics.accuracy(probabilities, photos.targets),
        "log_loss": metrics.log_loss(probabilities, photos.targets),
        "calibration_error": metrics.calibration_error(probabilities, photos.targets),
    }


def groups(photos: Outside) -> np.ndarray:
    """Numbers of the photos' groups."""
    return np.unique(photos.groups, return_inverse=True)[1]


def tell(what: str, **values: object) -> None:
    """One JSON line."""
    print(json.dumps({"what": what, **values}, default=str), flush=True)


PARTS = {
    "scores": scores,
    "calibration": calibration,
    "views": views,
    "coverage": coverage,
    "coverage_out_of_fold": coverage_out_of_fold,
    "tolerance": tolerance,
    "speed": speed,
}

if __name__ == "__main__":
    main()
