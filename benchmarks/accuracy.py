"""How accurate recipes are on photos never seen, trial by trial, at what cost.

Usage: python benchmarks/accuracy.py NATURE100 WEIGHTS TRIAL [TRIAL …]
           [--per-class 10] [--seeds 3] [--out runs/accuracy.jsonl]

NATURE100 is a folder with `train` and `val`, such as ../shared/data/nature100, and a TRIAL is
settings over the recipe `quick` of one replica at 96 pixels, such as `epochs=6,mix=cutmix` or
`head_start=probe,head_rate=1e-4`. A fixed fifth of `train` (by a hash of the name) joins `val` for
scoring; of the rest the first photos of each class are trained on, in fold 0 of five. So a network
is judged, no ensemble. A JSON line a fit goes to --out, and fits whose line is there are not
repeated. In the end each trial's mean, and its gain over the first trial, paired by seed.
"""

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.photos.catalog import Catalog, Photo, in_columns

BASE = {"size": 96, "eval_resize": 110, "replicas": 1, "merge": "none", "folds": 5}
BASE |= {"layout": "channels_last", "precision": "float32", "compile": "off"}


def is_aside(photo: Photo) -> bool:
    """Whether a training photo joins those that trials are judged on."""
    return hashlib.sha256(photo.path.rpartition("/")[2].encode()).digest()[0] < 256 / 5


def parts(root: Path, per_class: int) -> tuple[Catalog, Catalog]:
    """Photos to train on, and photos never seen."""
    whole = fg.scan(root / "train")
    counts: Counter[str | None] = Counter()
    train, judged = [], []
    for photo in whole.photos:
        if is_aside(photo):
            judged.append(photo)
        elif counts[photo.label] < per_class:
            counts[photo.label] += 1
            train.append(photo)
    val = fg.scan(root / "val")
    judged += [Photo(str(val.file(photo)), photo.label) for photo in val.photos]
    return whole.of(in_columns(train)), whole.of(in_columns(judged))


def measure(trial: str, weights: str, seed: int, train: Catalog, judged: Catalog) -> dict:
    """Fit and judge one trial."""
    given = dict(pair.split("=", 1) for pair in trial.split(",") if pair)
    settings = {name: recipes.from_text(name, value) for name, value in given.items()}
    quick = recipes.settings_of("quick")
    base = {**quick, **BASE, "backbone": "resnet18", "weights": weights, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.monotonic(), time.process_time()
        recipe = recipes.build({**base, **recipes.without_min_steps(settings)})
        run = fg.fit(train, recipe, out=Path(folder) / "run", fold=0)
        cost = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - began}
        found = run.classifier("fold-0").predict(judged)
    labels = [found.classes.index(photo.label) for photo in judged.photos]
    own = found.probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": float(np.mean(found.probabilities.argmax(1) == labels)),
        "log_loss": float(-np.log(own.clip(1e-12)).mean()),
        "epochs": run.recipe.epochs,
        "batch_size": run.recipe.batch_size,
        **{name: round(value, 1) for name, value in cost.items()},
    }


def main() -> None:
    """Measure what is not measured yet, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights")
    parser.add_argument("trials", nargs="+")
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy.jsonl"))
    asked = parser.parse_args()
    train, judged = parts(asked.photos, asked.per_class)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    known = {(d["trial"], d["per_class"], d["seed"]): d for d in map(json.loads, lines)}
    for seed in range(asked.seeds):
        for trial in asked.trials:
            key = (trial, asked.per_class, seed)
            if key not in known:
                known[key] = dict(zip(("trial", "per_class", "seed"), key, strict=True))
                known[key] |= measure(trial, asked.weights, seed, train, judged)
                with asked.out.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
            print(json.dumps(known[key]), flush=True)
    print(
        f"{len(train)} photos in five folds, judged on {len(judged)} photos never seen,"
        f" n = {asked.seeds} seeds; torch {torch.__version__}, {platform.machine()},"
        f" {os.cpu_count()} cores"
    )

    def of(trial: str, name: str) -> np.ndarray:
        return np.array([known[trial, asked.per_class, n][name] for n in range(asked.seeds)])

    first = of(asked.trials[0], "accuracy")
    for trial in asked.trials:
        accuracy = of(trial, "accuracy")
        gains = ", ".join(f"{100 * gain:+.1f}" for gain in accuracy - first)
        print(
            f"{trial:40} {accuracy.mean():.1%}  log loss {of(trial, 'log_loss').mean():.3f}"
            f"  {of(trial, 'cpu').mean():.0f} s of processor"
            f"  {100 * (accuracy - first).mean():+.1f} ({gains})"
        )


if __name__ == "__main__":
    main()
