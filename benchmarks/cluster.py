"""A cluster of several machines on this one: is a fit equal to a sequential one, and what dies?

    OMP_NUM_THREADS=1 python benchmarks/cluster.py --photos ../shared/data/nature100/train

Fits the first classes of a collection in sequence, then on a Ray cluster of a machine without cores
and two of one core each (Ray's own cluster utility), of which one is killed in the middle of a
fold. Prints one JSON line: whether weights and out-of-fold predictions are equal to the byte, the
steps in all and those that were trained again. Needs the extra `cluster`.
"""

import argparse
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

from fieldguide import Recipe, Run, scan
from fieldguide import recipe as recipes
from fieldguide.fitting.fit import fit
from fieldguide.fitting.progress import Plan, Watcher

EQUAL = ("weights.safetensors", "predictions.npz")


def main() -> None:
    """Fits twice and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--weights", default="none", help="a file, or none")
    parser.add_argument("--die-at", type=float, default=0.4, help="share of all steps done by then")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = folder / "photos"
        for place in sorted(options.photos.iterdir())[: options.classes]:
            shutil.copytree(place, photos / place.name)
        recipe = recipes.build(
            {
                **{"backbone": "resnet18", "weights": options.weights, "size": 64, "folds": 4},
                **{"eval_resize": 72, "epochs": 3, "mix": "none", "conflicts": "drop"},
                **{"layout": "contiguous", "device": "cpu", "workers": 1},
            }
        )
        began = time.monotonic()
        one = fit(scan(photos), recipe, folder / "sequence")
        seconds = time.monotonic() - began
        print(json.dumps(beside(one, recipe, photos, folder / "cluster", options.die_at, seconds)))


def beside(
    one: Run, recipe: Recipe, photos: Path, out: Path, share: float, seconds: float
) -> dict[str, object]:
    """The same fit on a cluster that loses a machine, beside the first."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    plans: list[Plan] = []
    steps: list[float] = []
    notices: list[str] = []

    def on_step() -> None:
        steps.append(time.monotonic())
        if len(steps) == round(share * plans[0].steps):
            cluster.remove_node(nodes[0], allow_graceful=False)

    watcher = Watcher(on_plan=plans.append, on_step=on_step, notice=notices.append)
    began = time.monotonic()
    try:
        there = recipe.replace(cluster=cluster.address)
        two = fit(scan(photos), there, out, watcher=watcher)
        took = time.monotonic() - began
    finally:
        cluster.shutdown()
    again = [re.findall(r"(\d+) steps are trained again", notice) for notice in notices]
    files = [f"folds/{fold}/{name}" for fold in one.done for name in EQUAL] + ["oof.csv"]
    return {
        "photos": len(one.catalog),
        "equal": all((one.folder / f).read_bytes() == (two.folder / f).read_bytes() for f in files),
        "steps": plans[0].steps,
        "steps again": [int(found[0]) for found in again if found],
        "seconds in sequence": round(seconds, 1),
        "seconds on the cluster": round(took, 1),
    }


if __name__ == "__main__":
    main()
