"""Is merging worth it? Accuracy of replicas and merges, and of one replica at equal cost.

    python benchmarks/merging.py ../shared/data/nature100 --out runs/merging \
        --weights ../shared/weights/resnet18_in1k.safetensors --epochs 3 --seeds 0

For each seed four fits on the same folds: two merged replicas and one replica for twice the
epochs, each with a cosine schedule and a constant one. The replicas as they were before the last
merge are then merged by every rule, with batch norm averaged and measured anew: training does not
read the running statistics, so one training serves both. Prints one JSON line a result, and
appends them to OUT/results.jsonl.
"""

import argparse
import json
import os
import platform
import resource
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

import fieldguide as fg
from fieldguide import merge, metrics, recipe
from fieldguide.crossval import Watcher, fit, fold_jobs
from fieldguide.network import backbone_anchor, load_weights
from fieldguide.train import evaluate, recalibrate_network


def main() -> None:
    """Runs what is not done yet and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--mix", default="none")
    parser.add_argument(
        "--per-class", type=int, help="the first photos of each class in name order"
    )
    parser.add_argument("--only", default="", help="classes whose name starts so")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fits", nargs="+", default=list(FITS))
    options = parser.parse_args()
    catalog = subset(fg.scan(options.photos), options.per_class, options.only)
    for seed in options.seeds:
        for name in options.fits:
            base = recipe.build(
                recipe.settings_of("quick")
                | {
                    "backbone": options.backbone,
                    "weights": options.weights,
                    "size": options.size,
                    "eval_resize": round(options.size / 0.875),
                    "folds": options.folds,
                    "batch_size": options.batch_size,
                    "mix": options.mix,
                    "seed": seed,
                }
                | FITS[name](options.epochs)
            )
            out = options.out / f"{name}-{seed}"
            watcher = Watcher(on_row=lambda row: print(json.dumps(row), flush=True))
            run = fit(catalog, base, out, watcher=watcher)
            for result in results(run, options.photos):
                line = {"fit": name, "seed": seed, "epochs": base.epochs} | result | machine()
                print(json.dumps(line), flush=True)
                with (options.out / "results.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")


FITS = {
    f"{arm}-{schedule}": lambda epochs, arm=arm, schedule=schedule: (
        {"schedule": schedule}
        | (
            {"replicas": 2, "merge": "average", "keep_replicas": True, "epochs": epochs}
            if arm == "merged"
            else {"replicas": 1, "merge": "none", "epochs": 2 * epochs}
        )
    )
    for schedule in ("cosine", "constant")
    for arm in ("merged", "single")
}


def subset(catalog: fg.Catalog, per_class: int | None, only: str) -> fg.Catalog:
    """The training part, thinned out."""
    training = [p for p in catalog.part("train").photos if (p.label or "").startswith(only)]
    if per_class:
        classes = groupby(sorted(training, key=lambda p: (p.label, p.path)), lambda p: p.label)
        training = [photo for _, photos in classes for photo in list(photos)[:per_class]]
    return replace(catalog, photos=tuple(training), notes=())


def results(run: fg.Run, root: Path) -> list[dict[str, object]]:
    """Out-of-fold accuracy of what the fit ends with, and of all merges of its replicas."""
    found = [scored(run, "result", {fold: run.logits(fold) for fold in run.done})]
    if run.recipe.keep_replicas:
        job_of = fold_jobs(run, root)
        logits = {fold: merges(run, job_of(fold)) for fold in run.done}
        names = list(logits[0])
        found += [scored(run, name, {f: logits[f][name] for f in run.done}) for name in names]
    return found


def merges(run, job):
    """Logits of a fold's test part: each replica, their ensemble, and every merge of them."""
    copies = [
        {name: torch.from_numpy(array) for name, array in weights.items()}
        for weights in run.replicas(job.fold)
    ]
    found = {}
    for number, copy in enumerate(copies, start=1):
        load_weights(job.network, copy)
        found[f"replica-{number}"] = evaluate(job, job.test)
    mean = np.mean([metrics.softmax(logits) for logits in found.values()], axis=0)
    found["ensemble of replicas"] = np.log(mean)
    anchor = backbone_anchor(job.network, job.start)
    for rule, merged in merge.RULES.items():
        load_weights(job.network, merged(copies, anchor))
        found[f"{rule}, batch norm averaged"] = evaluate(job, job.test)
        recalibrate_network(job)
        found[f"{rule}, batch norm recalibrated"] = evaluate(job, job.test)
    return found


def scored(run, name, logits):
    """Accuracy with interval over all folds."""
    rows = np.concatenate([run.folds[fold].test for fold in logits])
    scores = np.concatenate(list(logits.values()))
    correct = scores.argmax(axis=1) == run.targets[rows]
    groups = np.unique([run.catalog.photos[row].group for row in rows], return_inverse=True)[1]
    low, high = metrics.bootstrap_interval(correct, groups)
    return {
        "model": name,
        "photos": len(rows),
        "accuracy": round(float(correct.mean()), 4),
        "interval": [round(low, 4), round(high, 4)],
        "log_loss": round(metrics.log_loss(metrics.softmax(scores), run.targets[rows]), 4),
        "seconds": run.seconds,
    }


def machine() -> dict[str, object]:
    """Where it was measured."""
    return {
        "threads": torch.get_num_threads(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "platform": platform.platform(),
    }


if __name__ == "__main__":
    main()
