"""Batches that two ranks share, on this machine: how long is an epoch, and how far apart is it?

    OMP_NUM_THREADS=1 python benchmarks/batch_ranks.py --photos ../shared/data/nature100/train

Fits one replica of one fold in a process alone, on ranks that share its batches, and on ranks whose
batch norms look at all of each batch, one after another, `--rounds` times. Prints one JSON line:
seconds of the last epoch of each (a list, with the replica's evaluation), and the largest
difference between the logits of each and those of the process alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

WAYS = {
    "alone": [],
    "shared": ["--batch-ranks", "{ranks}"],
    "synchronised": ["--batch-ranks", "{ranks}", "--sync-batch-norm"],
}


def main() -> None:
    """Fits in three ways and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="none", help="a file, or none")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place in sorted(options.photos.iterdir())[: options.classes]:
            shutil.copytree(place, folder / "photos" / place.name)
        names = [(way, f"{way}-{number}") for number in range(options.rounds) for way in WAYS]
        for way, run in names:
            fit(folder, folder / run, way, options)
        seconds = {
            way: [last_epoch(folder / run) for other, run in names if other == way] for way in WAYS
        }
        found = {way: logits(folder / f"{way}-0") for way in WAYS}
    apart = {way: float(np.abs(found[way] - found["alone"]).max()) for way in WAYS}
    print(json.dumps({"seconds": seconds, "apart": apart}))


def fit(folder: Path, out: Path, way: str, options: argparse.Namespace) -> None:
    """One fold, as the command line does it."""
    recipe = {
        **{"backbone": options.backbone, "weights": options.weights, "size": options.size},
        **{"eval-resize": options.size, "folds": 2, "fold": 0, "replicas": 1, "epochs": 2},
        **{"batch-size": 32, "mix": "none", "conflicts": "drop", "device": "cpu", "workers": 0},
        **{"layout": "contiguous", "precision": "float32", "compile": "off"},
    }
    flags = [f"--{name}={value}" for name, value in recipe.items()]
    flags += [flag.format(ranks=options.ranks) for flag in WAYS[way]]
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
    command = [sys.executable, *(start if WAYS[way] else []), "-m", "fieldguide", "fit"]
    command += [str(folder / "photos"), f"--out={out}", *flags, "--no-report"]
    cache = {"FIELDGUIDE_CACHE": str(folder / "cache")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **cache})


def last_epoch(run: Path) -> float:
    """Seconds of the replica's last epoch."""
    lines = (run / "folds" / "0" / "history.csv").read_text("utf-8").splitlines()
    return float([line for line in lines if "replica-1" in line][-1].split(",")[-1])


def logits(run: Path) -> np.ndarray:
    """Logits of the fold's test part."""
    with np.load(run / "folds" / "0" / "predictions.npz") as file:
        return np.asarray(file["logits"])


if __name__ == "__main__":
    main()
