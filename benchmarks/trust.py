"""Whether unknown things are found as estimated, and promises of taxa are kept.

Usage: python benchmarks/trust.py unknown NATURE100 WEIGHTS [--recipe quick] [--size 64] [--draws 3]
       python benchmarks/trust.py promise NATURE100 WEIGHTS [--recipe instant] [--size 128]
       python benchmarks/trust.py events RUN NATURE100 [--frames 5]
       python benchmarks/trust.py scores RUN …
       python benchmarks/trust.py review RUN …
       python benchmarks/trust.py label NATURE100 WEIGHTS [--draws 5] [--known 5] [--label 200]

NATURE100 is a folder with `train` and `val`, such as ../shared/data/nature100; WEIGHTS are those of
a resnet18.

`unknown` leaves 30 of the 100 classes out (drawn anew each time), fits the first 30 photos of each
other class, and judges a third of the left-out classes' photos (`train`), and the known classes'
photos of `val`: what the run estimates from classes left out of linear heads, what its ensemble
finds, and how many known photos it takes for unknown. Runs stay in --out. `scores` compares, on
such runs, ways to tell unknown photos by the logits of single folds.

`events` makes a sequence of each photo of `val`, frames that are cropped (to half of the area or
more), mirrored and lighter or darker by up to 40 %, and compares ways to answer once for all. Real
frames differ in more: in what the animal does.

`review` prints the share of the mistakes out of fold that is left after looking at 10, 20 and 30 %
of a run's photos, in several orders.

`label` fits a head to features of `--known` photos of each class, labels `--label` others, chosen
in several ways, fits anew, and prints how much more accurate that is on photos never seen than with
photos drawn from all, by draw.

`promise` fits four fifths of `train` with the taxa of nature100_taxa.csv and asks for answers that
are right in 90, 95 and 98 %: what held out of fold, and on the 1,600 photos never seen, by the
ensemble and by a fold.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accuracy import features_of, parts
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from safetensors.torch import load_file
from scipy.cluster.vq import kmeans2
from timm.data import create_transform

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.analysis import calibration, metrics, promises, unknown
from fieldguide.analysis.intervals import share_interval
from fieldguide.photos.catalog import Catalog, Photo, in_columns
from fieldguide.predict import inference, reviews
from fieldguide.predict.reviews import Review
from fieldguide.predict.tables import Predictions
from fieldguide.study import unknowns
from fieldguide.train.probe import fit_head

LEFT_OUT, EACH, EVERY = 30, 30, 3
TAXA = Path(__file__).with_name("nature100_taxa.csv")


def fitted(asked: argparse.Namespace, photos: Catalog, out: Path) -> fg.Run:
    """Fit photos with one thread, in the recipe asked for."""
    own = {"weights": asked.weights, "size": asked.size, "workers": 1, "backbone": "resnet18"}
    recipe = recipes.build(recipes.over(recipes.settings_of(asked.recipe), own))
    return fg.fit(photos, recipe, out=out)


def judge_unknown(asked: argparse.Namespace, draw: int) -> None:
    """Print what a run without some classes makes of their photos."""
    whole, val = fg.scan(asked.photos / "train"), fg.scan(asked.photos / "val")
    drawn = np.random.default_rng(draw).permutation(len(whole.classes))[:LEFT_OUT]
    strange = {whole.classes[number] for number in drawn}
    counts: Counter[str] = Counter()
    known: list[Photo] = []
    for photo in whole.photos:
        label = str(photo.label)
        counts[label] += 1
        if label not in strange and counts[label] <= EACH:
            known.append(photo)
    run = fitted(asked, whole.of(in_columns(known)), asked.out / f"unknown-{draw}")
    apart = [photo for photo in whole.photos if photo.label in strange][::EVERY]
    listed = asked.out / f"unknown-{draw}.txt"
    listed.write_text("".join(f"{whole.file(photo)}\n" for photo in apart))
    found = unknowns.worth(run, listed)
    same = [photo for photo in val.photos if photo.label not in strange]
    seen = run.classifier("ensemble").predict(val.of(in_columns(same)))
    line = {
        "draw": draw,
        "accuracy": run.scores.accuracy,
        "photos": run.scores.photos,
        "estimate": run.unknown and asdict(run.unknown),
        "truth": asdict(found),
        "false_alarms": float(seen.unknown.mean()),
        "known_photos": len(seen),
    }
    print(json.dumps(line), flush=True)
    np.savez(asked.out / f"unknown-{draw}.npz", strange=logits_of(run, listed))


def logits_of(run: fg.Run, listed: Path) -> NDArray[np.float32]:
    """Return the logits of the photos of a list by each fold, (folds, photos, classes)."""
    model = run.classifier("ensemble")
    paths = [Path(line) for line in listed.read_text().splitlines()]
    return inference.all_logits(model.card.architecture, model.members, paths)[0]


def doubts(logits: NDArray[np.floating]) -> Mapping[str, NDArray[np.float64]]:
    """Return ways to doubt photos, by their logits alone."""
    wide = logits.astype(np.float64)
    probabilities = metrics.softmax(wide)
    ordered, top = np.sort(wide, axis=1), wide.max(axis=1)
    return {
        "largest logit": -top,
        "energy": -(top - np.log(probabilities.max(axis=1))),
        "largest probability": -probabilities.max(axis=1),
        "margin": ordered[:, -2] - ordered[:, -1],
        "entropy": unknown.doubt(probabilities),
    }


def compare_scores(folders: list[Path]) -> None:
    """Print the area and the share found at 5 % false alarms of each way, over runs and folds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for folder in folders:
        run, strange = fg.Run(folder), np.load(folder.with_suffix(".npz"))["strange"]
        for member, fold in enumerate(run.done):
            known, others = doubts(run.judged[fold]), doubts(strange[member])
            for name, values in others.items():
                own = unknown.familiarity(
                    values[None], known[name], np.zeros(len(known[name]), int)
                )
                compared = np.full(len(own), len(known[name]))
                row = unknown.worth(own, np.arange(len(own)), compared)
                share = np.nan if row.found is None else row.found
                found.setdefault(name, []).append((row.auroc, share))
    for name, rows in found.items():
        area, share = np.mean(rows, axis=0)
        print(f"{name:20} area {area:.3f}, found {share:.3f} (n = {len(rows)} folds)")


def judge_events(asked: argparse.Namespace) -> None:
    """Print the accuracy of single frames and of sequences, by ways to combine."""
    run, val = fg.Run(asked.run), fg.scan(asked.photos / "val")
    random, frames, targets = np.random.default_rng(0), [], []
    for photo in val.photos:
        with Image.open(val.file(photo)) as opened:
            picture = opened.convert("RGB")
        for _ in range(asked.frames):
            frames.append(_frame(picture, random))
            targets.append(run.classes.index(str(photo.label)))
    model, right = run.classifier(asked.combine), np.array(targets[:: asked.frames])
    found = model.predict(frames).probabilities
    each = found.reshape(-1, asked.frames, len(run.classes))
    print(f"frames one by one: {(found.argmax(axis=1) == np.array(targets)).mean():.4f}")
    logs = np.log(each.clip(1e-300))
    for name, answers in (
        ("mean of log-probabilities", logs.mean(axis=1)),
        ("mean of probabilities", each.mean(axis=1)),
        ("surest frame", each.max(axis=1)),
    ):
        low, high = share_interval(answers.argmax(axis=1) == right, np.arange(len(right)))
        accuracy = (answers.argmax(axis=1) == right).mean()
        print(f"{name}: {accuracy:.4f} [{low:.4f}, {high:.4f}] of {len(right)} sequences")


def _frame(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    share = random.uniform(0.5, 1) ** 0.5
    width, height = (round(share * side) for side in picture.size)
    left = random.integers(picture.width - width + 1)
    top = random.integers(picture.height - height + 1)
    shown = picture.crop((int(left), int(top), int(left) + width, int(top) + height))
    if random.uniform() < 0.5:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(shown).enhance(random.uniform(0.6, 1.4))


def judge_promises(asked: argparse.Namespace) -> None:
    """Print what is promised and what held, by share asked for."""
    train, judged = parts(asked.photos, "whole")
    run = fitted(asked, train, asked.out / "promise")
    run.set_taxonomy(TAXA)
    targets = np.array([run.classes.index(str(photo.label)) for photo in judged.photos])
    for way in ("ensemble", "fold-0"):
        model = run.classifier(way)
        for share in (0.9, 0.95, 0.98):
            seen = model.predict(judged, right=share)
            assert seen.answering is not None and seen.answering.promise is not None
            level, node = _levels(run, seen)
            rows = np.flatnonzero(level >= 0)
            right = run.taxonomy.nodes[level[rows], targets[rows]] == node[rows]
            low, high = share_interval(right, np.arange(len(right)))
            print(
                f"{way}: asked {share}, from {seen.answering.promise.threshold}; out of fold"
                f" {seen.answering.promise.right:.3f} of {seen.answering.promise.answered:.3f}; on"
                f" {len(judged)} photos never seen {right.mean():.3f} [{low:.3f}, {high:.3f}] of"
                f" {len(rows) / len(judged):.3f}"
            )


def _levels(run: fg.Run, seen: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the level and the number of each photo's taxon; -1 without one."""
    levels, best = run.taxonomy.levels, run.taxonomy.best(seen.probabilities)
    assert seen.answering is not None and seen.answering.promise is not None
    level = promises.answered(best.confidences, seen.answering.promise.threshold)
    assert [taxon is not None for taxon in seen.taxa] == (level >= 0).tolist()
    return level, best.nodes[np.arange(len(level)), level.clip(max=len(levels) - 1)]


def compare_orders(folders: list[Path]) -> None:
    """Print the mistakes left after looking at some photos, by the order of looking."""
    for folder in folders:
        run = fg.Run(folder)
        photos, fold_of, logits = run.pooled
        probabilities = calibration.cross_fitted(logits, run.targets[photos], fold_of)
        wrong = probabilities.argmax(axis=1) != run.targets[photos]
        ordered = np.sort(probabilities, axis=1)
        orders = {
            "least confident": ordered[:, -1],
            "smallest margin": ordered[:, -1] - ordered[:, -2],
            "highest entropy": -unknown.doubt(probabilities),
            "least sure class first": run.per_class.precision[probabilities.argmax(axis=1)],
        }
        print(f"{folder}: {wrong.sum()} of {len(wrong)} photos are wrong")
        for name, sure in orders.items():
            rows = np.argsort(sure, kind="stable")
            left = [wrong[rows[round(share * len(wrong)) :]].sum() for share in (0.1, 0.2, 0.3)]
            told = ", ".join(f"{count / wrong.sum():.1%}" for count in left)
            print(f"  {name:24} {told} are left")


def compare_labelling(asked: argparse.Namespace) -> None:
    """Print the gain of ways to choose photos to label over a draw."""
    train, judged = parts(asked.photos, "whole")
    body = timm.create_model("resnet18", pretrained=False)
    body.load_state_dict(load_file(asked.weights))
    size = {"input_size": (3, asked.size, asked.size)}
    plain = create_transform(**timm.data.resolve_data_config(size, model=body))
    features, seen = (
        features_of(body, [each.file(photo) for photo in each.photos], plain)
        for each in (train, judged)
    )
    targets, right = (
        np.array([train.classes.index(str(photo.label)) for photo in each.photos])
        for each in (train, judged)
    )

    def head(rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        own = torch.from_numpy(features[rows]), torch.from_numpy(targets[rows])
        return fit_head(*own, len(train.classes), strength=3.0)

    def found(head: tuple[torch.Tensor, torch.Tensor], rows: NDArray[Any]) -> NDArray[np.float64]:
        logits = torch.from_numpy(rows).double() @ head[0].T + head[1]
        return logits.softmax(1).numpy()

    gains: dict[str, list[float]] = {}
    for draw in range(asked.draws):
        random = np.random.default_rng(draw)
        each = [random.permutation(np.flatnonzero(targets == n)) for n in range(len(train.classes))]
        known = np.concatenate([rows[: asked.known] for rows in each])
        pool = np.setdiff1d(np.arange(len(targets)), known)
        answers = found(head(known), features[pool])
        cells = [
            {"path": str(row), "label": str(best), "confidence": "1"}
            for row, best in zip(pool, answers.argmax(1), strict=True)
        ]
        wrong = 1 - answers.max(1)
        order = np.argsort(-wrong, kind="stable")
        review = Review(tuple(cells[row] for row in order), wrong[order])
        doubtful = pool[order[: 10 * asked.label]]
        ways = {
            "drawn from all": random.permutation(pool),
            "least sure": pool[order],
            "drawn from ten times as many least sure": random.permutation(doubtful),
            "these, spread by features": _spread(features, doubtful, asked.label, draw),
            "least sure of each predicted class in turn (--label-next)": np.array(
                [int(row["path"]) for row in reviews.to_label(review, asked.label).rows]
            ),
        }
        reached = {
            way: (
                found(head(np.concatenate([known, rows[: asked.label]])), seen).argmax(1) == right
            ).mean()
            for way, rows in ways.items()
        }
        for way, accuracy in reached.items():
            gains.setdefault(way, []).append(100 * (accuracy - reached["drawn from all"]))
    for way, own in gains.items():
        error = np.std(own, ddof=1) / len(own) ** 0.5
        print(f"{way}: {np.mean(own):+.2f} (standard error {error:.2f}) points; {np.round(own, 1)}")


def _spread(
    features: NDArray[Any], rows: NDArray[np.int64], photos: int, seed: int
) -> NDArray[np.int64]:
    """Return the photo nearest to the centre of each of so many clusters of features."""
    unit = features[rows] / np.linalg.norm(features[rows], axis=1, keepdims=True)
    centres, cluster_of = kmeans2(unit, photos, minit="++", seed=seed, iter=20)
    chosen = []
    for number in np.unique(cluster_of):
        own = np.flatnonzero(cluster_of == number)
        chosen.append(own[np.linalg.norm(unit[own] - centres[number], axis=1).argmin()])
    return rows[[*chosen, *np.setdiff1d(np.arange(len(rows)), chosen)]]


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, recipe, size in (
        *(("unknown", "quick", 64), ("promise", "instant", 128), ("label", "instant", 96)),
    ):
        one = kinds.add_parser(kind)
        one.add_argument("photos", type=Path)
        one.add_argument("weights")
        one.add_argument("--recipe", default=recipe)
        one.add_argument("--size", type=int, default=size)
        one.add_argument("--draws", type=int, default=3)
        one.add_argument("--known", type=int, default=5)
        one.add_argument("--label", type=int, default=200)
        one.add_argument("--out", type=Path, default=Path("runs/trust"))
    events = kinds.add_parser("events")
    events.add_argument("run", type=Path)
    events.add_argument("photos", type=Path)
    events.add_argument("--frames", type=int, default=5)
    events.add_argument("--combine", default="ensemble")
    for kind in ("scores", "review"):
        kinds.add_parser(kind).add_argument("runs", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.kind == "scores":
        compare_scores(asked.runs)
        return
    if asked.kind == "review":
        compare_orders(asked.runs)
        return
    if asked.kind == "events":
        judge_events(asked)
        return
    if asked.kind == "label":
        compare_labelling(asked)
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.kind == "promise":
        judge_promises(asked)
        return
    for draw in range(asked.draws):
        judge_unknown(asked, draw)


if __name__ == "__main__":
    main()
