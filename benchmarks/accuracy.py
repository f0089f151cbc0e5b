"""How accurate fits are on photos never seen, against rivals of the same processor time.

Usage: python benchmarks/accuracy.py NATURE100 WEIGHTS TRIAL [TRIAL …]
           [--sets 10,butterflies,30,whole] [--seeds 3] [--recipe default] [--size 96]
           [--out FILE.jsonl]

NATURE100 is a folder with `train` and `val`, such as ../shared/data/nature100; WEIGHTS are those
of a resnet18, which all trials begin with. A fixed fifth of `train` (by a hash of the name) joins
`val` for scoring; of the rest a set has the first 10 or 30 photos of each class, all, or the
butterflies alone. A TRIAL is one of

    epochs=6,mix=cutmix   settings over the recipe at --size pixels, one thread: all
                          folds are trained, and their soup, that soup tuned (whose cost is in the
                          fit's) and their ensemble judged; with `fold=0` among them that fold.
                          What is `auto` is found by the fit, and its cache is new
    timm                  a plain loop on all photos of the set: timm's own transforms, AdamW with
                          two rates, cosine; `timm:1e-4,1e-2` has rates of backbone and head
    head                  the same loop from a head fitted by scikit-learn; `head:1e-4,1e-4`
    regression            that head alone

The first trial sets the cost: loops train as many processor-seconds as it took for the same set and
seed, with the schedule over that time (at most a step more). A JSON line a trial, set and seed goes
to --out, and those there are not repeated. In the end each trial's mean, and its gain on the last
trial, paired by seed, with Student's 95 % interval over the seeds.
"""

import argparse
import hashlib
import json
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats
from sklearn.linear_model import LogisticRegressionCV
from timm.data import create_transform
from torch import Tensor, nn

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.photos.catalog import Catalog, Photo, in_columns
from fieldguide.runs.run import TUNED
from fieldguide.study import holdout_scores

BASE = {"workers": 1, "backbone": "resnet18"}
RATES = {"timm": (3e-4, 3e-3), "head": (3e-4, 3e-4)}  # chosen on the set 30: docs/results.md
BATCH, DECAY, WARMUP = 64, 0.05, 0.05
SETS = ("10", "butterflies", "30", "whole")


def spent() -> float:
    """Return the processor-seconds of this process and its ended children."""
    return sum(os.times()[:4])


def parts(root: Path, name: str) -> tuple[Catalog, Catalog]:
    """Return the photos of a set to train on, and photos never seen."""
    whole = fg.scan(root / "train")
    most = int(name) if name.isdigit() else len(whole)
    counts: Counter[str | None] = Counter()
    train, judged = [], []
    for photo in whole.photos:
        if hashlib.sha256(photo.path.rpartition("/")[2].encode()).digest()[0] < 256 / 5:
            judged.append(photo)
        elif counts[photo.label] < most:
            counts[photo.label] += 1
            train.append(photo)
    val = fg.scan(root / "val")
    judged += [Photo(str(val.file(photo)), photo.label) for photo in val.photos]
    if name == "butterflies":
        train, judged = (
            [p for p in each if "butterfly" in str(p.label)] for each in (train, judged)
        )
    return whole.of(in_columns(train)), whole.of(in_columns(judged))


def scored(
    way: str, found: np.ndarray, classes: tuple[str, ...], judged: Catalog
) -> dict[str, Any]:
    """Return accuracy and log loss of probabilities."""
    own = found[np.arange(len(judged)), [classes.index(str(p.label)) for p in judged.photos]]
    right = own == found.max(1)
    return {way: float(right.mean()), f"{way}_loss": float(-np.log(own.clip(1e-12)).mean())}


# --- fieldguide -----------------------------------------------------------------------------------


def fitted(
    trial: str, asked: argparse.Namespace, seed: int, train: Catalog, judged: Catalog
) -> dict[str, Any]:
    """Fit all folds, or one, and judge their soup and ensemble."""
    given = dict(pair.split("=", 1) for pair in trial.split(",") if pair)
    fold = int(given.pop("fold")) if "fold" in given else None
    settings = {name: recipes.from_text(name, value) for name, value in given.items()}
    with tempfile.TemporaryDirectory() as folder:
        own = {**BASE, "weights": asked.weights, "size": asked.size, "seed": seed}
        own["cache"] = f"{folder}/cache"
        base = recipes.over(recipes.settings_of(asked.recipe), own)
        began = spent()
        recipe = recipes.build(recipes.over(base, settings))
        run = fg.fit(train, recipe, out=Path(folder) / "run", fold=fold)
        line: dict[str, Any] = {"fit_cost": spent() - began}
        ways: tuple[str, ...] = (f"fold-{fold}",)
        if fold is None:
            ways = ("soup", "ensemble")
            if run.recipe.epochs:
                holdout_scores.merge_into_run(run, TUNED)
                ways = ("soup", TUNED, "ensemble")
        line["cost"] = spent() - began
        told = ("epochs", "batch_size", "precision", "layout", "compile")
        line |= {name: getattr(run.recipe, name) for name in told}
        for way in ways:
            began = spent()
            found = run.classifier(way).predict(judged, calibrated=False)
            called = "soup" if way.startswith("fold") else way
            line |= scored(called, found.probabilities, found.classes, judged)
            line[f"{called}_cost"] = spent() - began
    return line


# --- rivals ---------------------------------------------------------------------------------------


def loop(
    kind: str,
    asked: argparse.Namespace,
    seed: int,
    train: Catalog,
    judged: Catalog,
    budget: float,
) -> dict[str, Any]:
    """Train by a plain loop for a budget of processor-seconds, and judge."""
    began = spent()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    name, _, rates = kind.partition(":")
    backbone_rate, head_rate = map(float, rates.split(",")) if rates else RATES.get(name, (0, 0))
    labels = [train.classes.index(str(photo.label)) for photo in train.photos]
    body = timm.create_model("resnet18", pretrained=False)
    body.load_state_dict(load_file(asked.weights))
    body.reset_classifier(len(train.classes))
    body = body.to(memory_format=torch.channels_last)
    config = timm.data.resolve_data_config({"input_size": (3, asked.size, asked.size)}, model=body)
    plain = create_transform(**config)
    files = [train.file(photo) for photo in train.photos]
    line: dict[str, Any] = {}
    if name != "timm":
        line["C"] = _fit_head(body, features_of(body, files, plain), np.array(labels))
    if name != "regression":
        made = create_transform(**config, is_training=True)
        line["epochs"] = _train(
            body, files, labels, made, (backbone_rate, head_rate), began, budget
        )
    line["cost"] = spent() - began
    body.eval()
    seen = [judged.file(photo) for photo in judged.photos]
    with torch.inference_mode():
        logits = torch.cat([body(images) for images in _batches(seen, plain)])
    return line | scored("soup", logits.softmax(1).numpy(), train.classes, judged)


def _batches(paths: list[Path], transform: Any) -> Iterator[Tensor]:
    for start in range(0, len(paths), BATCH):
        images = [
            transform(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]
        ]
        yield torch.stack(images).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def features_of(body: Any, paths: list[Path], transform: Any) -> np.ndarray:
    """Return what the last layer sees of photos, (n, channels)."""
    body.eval()
    seen = [
        body.forward_head(body.forward_features(x), pre_logits=True)
        for x in _batches(paths, transform)
    ]
    return torch.cat(seen).numpy()


def _fit_head(body: Any, features: np.ndarray, labels: np.ndarray) -> float:
    """Change the head to scikit-learn's regression, its penalty chosen by cross-validation."""
    scale = features.std()
    folds = min(3, int(np.bincount(labels).min()))
    fit = LogisticRegressionCV(
        Cs=[0.01, 0.03, 0.1, 0.3, 1, 3],
        cv=folds,
        max_iter=300,
        scoring="neg_log_loss",
        l1_ratios=(0,),
        use_legacy_attributes=False,
    ).fit(features / scale, labels)
    with torch.no_grad():
        body.fc.weight.copy_(torch.from_numpy(fit.coef_ / scale))
        body.fc.bias.copy_(torch.from_numpy(fit.intercept_))
    return float(np.ravel(fit.C_)[0])


def _train(
    body: Any,
    paths: list[Path],
    labels: list[int],
    transform: Any,
    rates: tuple[float, float],
    began: float,
    budget: float,
) -> float:
    """Train until the budget is spent; return the epochs."""
    body.train()
    head = {id(each) for each in body.get_classifier().parameters()}
    groups = [
        {"params": own, "lr": rate, "peak": rate}
        for rate, own in (
            (rates[0], [each for each in body.parameters() if id(each) not in head]),
            (rates[1], list(body.get_classifier().parameters())),
        )
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY, fused=True)
    targets, order, done, first = torch.tensor(labels), [], 0, spent()
    while spent() - began < budget:
        if not order:
            order = torch.randperm(len(paths)).tolist()
        own, order = order[:BATCH], order[BATCH:]
        if len(own) == 1:
            continue
        share = (spent() - first) / (budget - (first - began))
        factor = min(share / WARMUP, 0.5 * (1 + np.cos(np.pi * min(share, 1)))) if share else 0.01
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        images = next(_batches([paths[row] for row in own], transform))
        nn.functional.cross_entropy(body(images), targets[own]).backward()
        optimizer.step()
        optimizer.zero_grad()
        done += len(own)
    return done / len(paths)


# --- all of it ------------------------------------------------------------------------------------


def measure(
    asked: argparse.Namespace, trial: str, data: tuple[Catalog, Catalog], seed: int, budget: float
) -> dict[str, Any]:
    """Return the line of a trial."""
    if trial.partition(":")[0] in {*RATES, "regression"}:
        return loop(trial, asked, seed, *data, budget)
    return fitted(trial, asked, seed, *data)


def told(trial: str, ours: np.ndarray, gains: np.ndarray, cost: float) -> str:
    """Return a line of the table: means over seeds and, paired, the gain on the last trial."""
    text = f"{trial:36} {ours.mean():.1%}  {cost:.0f} s  {100 * gains.mean():+.1f}"
    if len(gains) > 1:
        half = (
            100 * float(stats.t.ppf(0.975, len(gains) - 1)) * gains.std(ddof=1) / len(gains) ** 0.5
        )
        text += f" ± {half:.1f}"
    return f"{text} ({', '.join(f'{100 * gain:+.1f}' for gain in gains)})"


def main() -> None:
    """Measure what is not measured yet, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights")
    parser.add_argument("trials", nargs="+")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy.jsonl"))
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    keys = ("recipe", "size", "set", "seed", "trial")
    known = {tuple(line[key] for key in keys): line for line in map(json.loads, lines)}
    for name in asked.sets.split(","):
        data = parts(asked.photos, name)
        for seed in range(asked.seeds):
            budget = 0.0
            for trial in asked.trials:
                key = (asked.recipe, asked.size, name, seed, trial)
                if key not in known:
                    known[key] = dict(zip(keys, key, strict=True))
                    known[key] |= measure(asked, trial, data, seed, budget)
                    with asked.out.open("a") as file:
                        file.write(json.dumps(known[key]) + "\n")
                budget = budget or known[key]["cost"]
                print(json.dumps(known[key]), flush=True)
    print(
        f"n = {asked.seeds} seeds; torch {torch.__version__}, timm {timm.__version__},"
        f" {platform.machine()}, {os.cpu_count()} cores"
    )
    for name in asked.sets.split(","):
        sizes = [len(each) for each in parts(asked.photos, name)]
        print(f"set {name}: {sizes[0]} photos, judged on {sizes[1]} never seen")
        for trial in asked.trials:
            rows = [
                known[asked.recipe, asked.size, name, seed, trial] for seed in range(asked.seeds)
            ]
            last = [
                known[asked.recipe, asked.size, name, n, asked.trials[-1]]
                for n in range(asked.seeds)
            ]
            cost = float(np.mean([row["cost"] for row in rows]))
            for way in ("soup", TUNED, "ensemble"):
                if way in rows[0]:
                    ours = np.array([row[way] for row in rows])
                    gains = ours - np.array([row["soup"] for row in last])
                    print(
                        told(
                            f"{trial} {way}" if "ensemble" in rows[0] else trial, ours, gains, cost
                        )
                    )


if __name__ == "__main__":
    main()
