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
from fieldguide import merge, recipe
from fieldguide.analysis import metrics, paired
from fieldguide.analysis.intervals import share_interval
from fieldguide.fitting.fit import fit
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Watcher
from fieldguide.network.network import backbone_anchor, load_weights
from fieldguide.train.evaluate import evaluate
from fieldguide.train.job import FoldJob
from fieldguide.train.merging import recalibrate_network


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
                    "head_start": "random",
                    "head_rate": 1e-3,
                    "batch_norm": "recalibrate",
                    "seed": seed,
                }
                | FITS[name](options.epochs)
            )
            watcher = Watcher(on_row=lambda row: print(json.dumps(row), flush=True))
            run = fit(catalog, base, options.out / f"{name}-{seed}", watcher=watcher)
            models = {"result": {fold: run.logits(fold) for fold in run.done}}
            if run.recipe.keep_replicas:
                models |= merges(run, options.photos)
            tell(options.out, {"fit": name, "seed": seed, "epochs": base.epochs}, run, models)
        compare(options.out, seed)


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


def merges(run: fg.Run, root: Path) -> dict[str, dict[int, np.ndarray]]:
    """Logits of every fold's test part: of each replica, their ensemble, and all their merges."""
    job_of = fold_jobs(run, root)
    found: dict[str, dict[int, np.ndarray]] = {}
    for fold in run.done:
        job = job_of(fold)
        for name, logits in merges_of_fold(run, job).items():
            found.setdefault(name, {})[fold] = logits
    return found


def merges_of_fold(run: fg.Run, job: FoldJob) -> dict[str, np.ndarray]:
    """The same for one fold, by model."""
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


def tell(out: Path, about: dict[str, object], run: fg.Run, models: dict) -> None:
    """Prints and keeps accuracy with interval over all folds, and which photos were right."""
    rows = np.concatenate([run.folds[fold].test for fold in run.done])
    groups = np.unique([run.catalog.photos[row].group for row in rows], return_inverse=True)[1]
    right = {"rows": rows, "groups": groups}
    for model, logits in models.items():
        scores = np.concatenate([logits[fold] for fold in run.done])
        right[model] = scores.argmax(axis=1) == run.targets[rows]
        low, high = share_interval(right[model], groups)
        line = about | {
            "model": model,
            "photos": len(rows),
            "accuracy": round(float(right[model].mean()), 4),
            "interval": [round(low, 4), round(high, 4)],
            "log_loss": round(metrics.log_loss(metrics.softmax(scores), run.targets[rows]), 4),
            "seconds": run.seconds,
        }
        print(json.dumps(line | machine()), flush=True)
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(line | machine()) + "\n")
    np.savez(out / f"right-{about['fit']}-{about['seed']}.npz", **right)


def compare(out: Path, seed: int, against: str = "single-cosine") -> None:
    """Prints paired differences in accuracy to one replica at equal cost, with 95 % intervals."""
    place = out / f"right-{against}-{seed}.npz"
    if not place.exists():
        return
    base = np.load(place)
    for path in sorted(out.glob(f"right-*-{seed}.npz")):
        other = np.load(path)
        assert (other["rows"] == base["rows"]).all(), "not the same folds"
        for model in other.files[2:]:
            gain, low, high = paired.difference(other[model], base["result"], base["groups"])
            print(f"{path.stem} {model}: {gain:+.4f} [{low:+.4f}, {high:+.4f}]")


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
