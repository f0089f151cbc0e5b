"""Are wrong labels found? Some are made wrong, and the list of suspicious ones is counted.

    python benchmarks/labels.py ../shared/data/nature100 --out runs/flips \
        --weights ../shared/weights/resnet18_in1k.safetensors --epochs 3 --folds 3 --replicas 1

Labels of the training part are flipped to another class at random and written to OUT/flipped.csv
(path, label, true); a fit on them goes to OUT/run; both are taken as they are if they exist.
Prints one JSON line: for each way to rank photos, how many it lists, how many of the flipped ones
are among them, and where. `list` is what `fieldguide` says, look-alikes included; `suspects` its
part that comes from predictions; then cleanlab's filters, where it is installed, and all photos by
1 - p(label) and by the margin. Labels that were wrong before the flips count as falsely listed.
"""

import argparse
import csv
import io
import json
import platform
from pathlib import Path

import numpy as np

import fieldguide as fg
from fieldguide import recipe
from fieldguide.analysis import metrics
from fieldguide.analysis.suspects import suspects
from fieldguide.photos.folders import scan
from fieldguide.photos.tables import read_table
from fieldguide.storage import files
from fieldguide.study import labels

Rankings = dict[str, np.ndarray]

CLEANLAB = (
    "confident_learning",
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "low_self_confidence",
)


def main() -> None:
    """Does what is not done yet and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.05, help="of labels to flip")
    parser.add_argument("--seed", type=int, default=0, help="of the flips and of the fit")
    options = parser.parse_args()
    table = options.out / "flipped.csv"
    if not table.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        flip(options.photos, table, options.share, options.seed)
    run = trained(table, options)
    print(json.dumps(measured(run, table, options.photos)))


def flip(photos: Path, table: Path, share: float, seed: int) -> None:
    """Writes every training photo with its label, of which a share is another class at random."""
    training = scan(photos).part("train")
    draw = np.random.default_rng(seed)
    true = [photo.label for photo in training.photos]
    given = list(true)
    for row in draw.permutation(len(true))[: round(share * len(true))]:
        others = [name for name in training.classes if name != true[row]]
        given[row] = others[draw.integers(len(others))]
    paths = [photo.path for photo in training.photos]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "label", "true"), *zip(paths, given, true, strict=True)])
    files.write_text(table, text.getvalue())


def trained(table: Path, options: argparse.Namespace) -> fg.Run:
    """The run on the flipped labels: as it is if it is complete, else begun or gone on with."""
    folder = options.out / "run"
    if (folder / files.MANIFEST).exists():
        return fg.Run(folder)
    from fieldguide.fitting.fit import fit  # torch takes seconds to import
    from fieldguide.fitting.progress import Watcher

    settings = recipe.settings_of("quick") | {
        "backbone": options.backbone,
        "weights": options.weights,
        "size": options.size,
        "eval_resize": round(options.size / 0.875),
        "folds": options.folds,
        "epochs": options.epochs,
        "replicas": options.replicas,
        "conflicts": "drop",  # a flip may contradict a copy
        "seed": options.seed,
    }
    watcher = Watcher(on_row=lambda row: print(json.dumps(row), flush=True))
    photos = read_table(table, root=options.photos)
    return fit(photos, recipe.build(settings), folder, watcher=watcher)


def measured(run: fg.Run, table: Path, photos: Path) -> dict[str, object]:
    """What each ranking finds of the flipped labels."""
    rows = np.concatenate([run.folds[fold].test for fold in run.judged])
    probabilities = metrics.softmax(np.concatenate(list(run.judged.values())))
    targets = run.targets[rows]
    with table.open(newline="") as file:
        true = {row["path"]: row["true"] for row in csv.DictReader(file)}
    paths = [run.catalog.photos[row].path for row in rows]
    shown = np.array([run.classes.index(true[path]) for path in paths])
    doubted = labels.doubts(fg.Run(run.folder, photos=photos)).ranked
    rankings = {"list": np.array([paths.index(doubt.path) for doubt in doubted], dtype=int)}
    rankings |= ours(probabilities, targets) | cleanlabs(probabilities, targets)
    return {
        "photos": len(rows),
        "flipped": int(np.sum(shown != targets)),
        "accuracy_given": round(metrics.accuracy(probabilities, targets), 4),
        "accuracy_true": round(metrics.accuracy(probabilities, shown), 4),
        **{name: found(ranked, shown != targets) for name, ranked in rankings.items()},
        "recipe": {
            name: getattr(run.recipe, name)
            for name in ("backbone", "size", "folds", "replicas", "epochs", "seed")
        },
        "platform": platform.platform(),
    }


def ours(probabilities: np.ndarray, targets: np.ndarray) -> Rankings:
    """Our suspects, and all photos by what they are ranked by or could be."""
    own = probabilities[np.arange(len(targets)), targets]
    others = probabilities.copy()
    others[np.arange(len(targets)), targets] = -1
    return {
        "suspects": np.array([s.photo for s in suspects(probabilities, targets)], dtype=int),
        "all by 1 - p(label)": np.argsort(own, kind="stable"),
        "all by margin": np.argsort(own - others.max(axis=1), kind="stable"),
    }


def cleanlabs(probabilities: np.ndarray, targets: np.ndarray) -> Rankings:
    """What cleanlab's filters list, each ranked by p(label); none where it is not installed."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return {}
    ranked = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    return {
        f"cleanlab {rule}": find_label_issues(targets, probabilities, filter_by=rule, **ranked)
        for rule in CLEANLAB
    }


def found(ranked: np.ndarray, flipped: np.ndarray) -> dict[str, float]:
    """Precision and recall of a ranked list; photos that it does not list are never found."""
    hits = flipped[ranked]
    total = int(flipped.sum())
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return {
        "listed": len(ranked),
        "found": int(hits.sum()),
        "precision": round(float(hits.mean()), 3) if len(hits) else 0.0,
        "recall": round(float(hits.sum() / total), 3),
        "precision_at_flipped": round(float(hits[:total].sum() / total), 3),
        "average_precision": round(float(precisions[hits].sum() / total), 3),
    }


if __name__ == "__main__":
    main()
