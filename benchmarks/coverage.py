"""Whether intervals hold what they promise.

Usage: python benchmarks/coverage.py simulation [--draws 4000] [--shape beta|normal|mixture]
           [--out runs/coverage.jsonl]
       python benchmarks/coverage.py means [--draws 1000]
       python benchmarks/coverage.py seeds [--draws 800] --photos NATURE100 --weights WEIGHTS
       python benchmarks/coverage.py fits [--draws 60] [--recipe quick|instant] […]

`simulation` draws photos that are right with a known probability, in groups of 1, 5 or 20 with a
known intra-class correlation, wherever there are at least 8 groups, and asks
`intervals.share_interval` for the 95 % interval each time. A line for each cell: how often it
holds the truth, how often the truth lies below it, and its mean width against the exact interval's
of a binomial at the true design effect (of draws with a mistake in at least 20 groups). Cells that
miss a target are marked: coverage at least 0.93, below at most 0.05, single photos at most 1.15 ×
as wide, groups 1.3 ×. A group's chance to be right is drawn from a beta distribution, is normal
under a probit, or (mixture) all of its photos are alike, with the correlation as the chance of it.
Cells that --out holds are not repeated.

`means` draws the scores of 10 classes, even or of 1 to 10 in frequency and unlike in how hard they
are, in groups of one class each, and does the same for balanced accuracy, macro F1 and log loss
(`metrics.score_intervals`). The truth is that of 400,000 photos; ratios are to twice 1.96 standard
deviations of the score itself over the draws.

`seeds` trains linear heads on a resnet18's features of 10 classes of 20 photos, drawn each time, in
two folds with three seeds (first head, order, dropout), and asks `compare`'s tests whether two
recipes differ: the same one twice, and one that trains shorter. A line each: how often a difference
is called over photos and seeds, and by the test of one seed, and how large the difference is.

`fits` fits collections of 5, 12 or 30 classes of 6, 10, 19 or 30 photos, drawn from NATURE100, at
64 pixels (`quick`: 3 epochs, 40 steps or more of 16), and judges each on 12 other photos of each
class: the folds' networks (what the out-of-fold accuracy promises) and the ensemble. Draws come
in pairs, of the same classes with other photos and another seed (30 photos: some of the same), so
that each tells what a classifier trained anew reaches. A JSON line each goes to --out, and those
there are not repeated. Held is how often the interval has the folds' accuracy on the other photos;
that is itself known to a standard error only, so also how often the interval has it that is made of
both (square and add). Biases are in points, on the out-of-fold accuracy, ± 1.96 standard errors
over draws.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.analysis import metrics, paired
from fieldguide.analysis.intervals import share_interval
from fieldguide.photos.catalog import Catalog, Photo, in_columns

PHOTOS = (20, 40, 100, 300, 1000, 5000)
ACCURACIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.998)
LEAST_GROUPS, ENOUGH_WRONG = 8, 20
LEAST_COVERAGE, MOST_BELOW, MOST_WIDTH, MOST_WIDTH_GROUPS = 0.93, 0.05, 1.15, 1.3


class Cell(NamedTuple):
    """What is drawn: photos, the chance of each to be right, photos a group, their correlation."""

    photos: int
    accuracy: float
    size: int
    correlation: float


def cells() -> list[Cell]:
    """Return all cells with enough groups; single photos are uncorrelated."""
    groups = [(1, 0.0), *itertools.product((5, 20), (0.0, 0.2, 0.5))]
    found = itertools.product(PHOTOS, ACCURACIES, groups)
    made = (Cell(n, accuracy, *group) for n, accuracy, group in found)
    return [cell for cell in made if cell.photos // cell.size >= LEAST_GROUPS]


def drawn(cell: Cell, shape: str, draws: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the photos right in each group of each draw."""
    count = (draws, cell.photos // cell.size)
    p, r = cell.accuracy, cell.correlation
    if r == 0:
        return random.binomial(cell.size, p, count)
    if shape == "beta":
        chances = random.beta(p * (1 - r) / r, (1 - p) * (1 - r) / r, count)
    elif shape == "normal":
        chances = _normal(p, r, count, random)
    else:
        alike = cell.size * (random.random(count) < p)
        return np.where(random.random(count) < r, alike, random.binomial(cell.size, p, count))
    return random.binomial(cell.size, chances)


def _normal(
    p: float, r: float, count: tuple[int, int], random: np.random.Generator
) -> NDArray[np.float64]:
    at = stats.norm.ppf(p)

    def off(latent: float) -> float:
        both = stats.multivariate_normal.cdf([at, at], cov=[[1, latent], [latent, 1]])
        return float((both - p * p) / (p * (1 - p)) - r)

    latent = optimize.brentq(off, 1e-3, 1 - 1e-6)
    moved = np.sqrt(latent) * random.standard_normal(count)
    return stats.norm.cdf((at - moved) / np.sqrt(1 - latent))


def measured(cell: Cell, shape: str, draws: int) -> dict[str, Any]:
    """Return the line of a cell."""
    random = np.random.default_rng([cell.photos, cell.size, round(1000 * cell.accuracy)])
    right = np.sort(drawn(cell, shape, draws, random), axis=1)
    kinds, kind_of = np.unique(right, axis=0, return_inverse=True)
    groups = np.repeat(np.arange(kinds.shape[1]), cell.size)
    within = np.tile(np.arange(cell.size), kinds.shape[1])
    limits = np.array(
        [share_interval(within < np.repeat(kind, cell.size), groups) for kind in kinds]
    )[kind_of.ravel()]
    low, high = limits.T
    effect = 1 + (cell.size - 1) * cell.correlation
    k, n = right.sum(1) / effect, cell.photos / effect
    exact_low = np.where(k > 0, stats.beta.ppf(0.025, np.maximum(k, 1e-9), n - k + 1), 0)
    exact_high = np.where(k < n, stats.beta.ppf(0.975, k + 1, np.maximum(n - k, 1e-9)), 1)
    judged = ((right < cell.size).sum(1) >= ENOUGH_WRONG) | (cell.size == 1)
    width, exact = (high - low)[judged], (exact_high - exact_low)[judged]
    return {
        **cell._asdict(),
        "shape": shape,
        "draws": draws,
        "coverage": float(np.mean((low <= cell.accuracy) & (cell.accuracy <= high))),
        "below": float(np.mean(cell.accuracy < low)),
        "width": float(np.mean(high - low)),
        "ratio": float(width.mean() / exact.mean()) if judged.any() else None,
        "judged": int(judged.sum()),
    }


def misses(line: dict[str, Any]) -> str:
    """Return the targets that a line misses, in words."""
    most = MOST_WIDTH if line["size"] == 1 else MOST_WIDTH_GROUPS
    found = {
        "coverage": line["coverage"] < LEAST_COVERAGE,
        "below": line["below"] > MOST_BELOW,
        "width": line["ratio"] is not None and line["ratio"] > most,
    }
    return ", ".join(name for name, missed in found.items() if missed)


# --- means over classes, and losses ---------------------------------------------------------------

CLASSES, SHARP, TRUTH = 10, 2.0, 400_000
MEANS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")


class Sample(NamedTuple):
    """What is drawn: photos, the logit of the own class, photos a group, frequencies."""

    photos: int
    margin: float
    size: int
    frequencies: str


def sample_of(cell: Sample, random: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """Return probabilities, classes and groups of photos."""
    shares = np.ones(CLASSES) if cell.frequencies == "even" else np.linspace(1, 10, CLASSES)
    groups = cell.photos // cell.size
    own = random.choice(CLASSES, groups, p=shares / shares.sum())
    place = random.standard_normal((groups, CLASSES)) * (cell.size > 1)
    targets, group_of = np.repeat(own, cell.size), np.repeat(np.arange(groups), cell.size)
    logits = (random.standard_normal((len(targets), CLASSES)) + place[group_of]) / np.sqrt(2)
    hard = np.linspace(-0.5, 0.5, CLASSES)
    logits[np.arange(len(targets)), targets] += cell.margin + hard[targets]
    return metrics.softmax(SHARP * logits), targets, group_of


def scores_of(probabilities: NDArray[Any], targets: NDArray[Any]) -> list[float]:
    """Return the scores of `MEANS`."""
    return [getattr(metrics, name)(probabilities, targets) for name in MEANS]


def simulate_means(draws: int) -> None:
    """Print a line for each cell and score."""
    print("photos margin size frequencies score              value  coverage  below  above  ratio")
    cells = itertools.product((40, 100, 300, 1000), (1.8, 3.0), (1, 5), ("even", "1 to 10"))
    for cell in itertools.starmap(Sample, cells):
        random = np.random.default_rng([cell.photos, round(10 * cell.margin), cell.size])
        whole = sample_of(cell._replace(photos=TRUTH), random)
        truth = scores_of(*whole[:2])
        found = []
        for _ in range(draws):
            drawn = sample_of(cell, random)
            limits = metrics.score_intervals(*drawn)
            values = scores_of(*drawn[:2])
            found.append(
                [(value, *limits[name]) for value, name in zip(values, MEANS, strict=True)]
            )
        for n, name in enumerate(MEANS):
            value, low, high = np.array(found)[:, n].T
            ratio = np.mean(high - low) / (2 * 1.96 * value.std())
            print(
                f"{cell.photos:6} {cell.margin:6} {cell.size:4} {cell.frequencies:11} {name:18}"
                f" {truth[n]:5.3f} {np.mean((low <= truth[n]) & (truth[n] <= high)):9.3f}"
                f" {np.mean(truth[n] < low):6.3f} {np.mean(truth[n] > high):6.3f} {ratio:6.2f}",
                flush=True,
            )


# --- seeds ----------------------------------------------------------------------------------------

OWN_CLASSES, OWN_PHOTOS, SEEDS, STEPS, BATCH, RATE = 10, 20, 3, 60, 16, 0.2


def out_of_fold(
    features: NDArray[Any], targets: NDArray[Any], steps: int, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Return right answers of heads that were trained with one seed on the other fold."""
    folds, right = np.arange(len(targets)) % 2, np.zeros(len(targets), dtype=bool)
    for fold in (0, 1):
        rows = np.flatnonzero(folds != fold)
        head = 0.05 * random.standard_normal((features.shape[1], OWN_CLASSES))
        for _ in range(steps):
            batch = random.choice(rows, BATCH, replace=False)
            seen = 2 * features[batch] * (random.random((BATCH, features.shape[1])) < 0.5)
            error = metrics.softmax(seen @ head)
            error[np.arange(BATCH), targets[batch]] -= 1
            head -= RATE * seen.T @ error / BATCH
        mine = folds == fold
        right[mine] = (features[mine] @ head).argmax(axis=1) == targets[mine]
    return right


def simulate_seeds(draws: int, photos: Path, weights: str) -> None:
    """Print a line for each pair of recipes."""
    import timm
    from accuracy import SIZE, features_of, parts
    from safetensors.torch import load_file
    from timm.data import create_transform, resolve_data_config

    body = timm.create_model("resnet18", pretrained=False)
    body.load_state_dict(load_file(weights))
    plain = create_transform(**resolve_data_config({"input_size": (3, SIZE, SIZE)}, model=body))
    train, _ = parts(photos, "30")
    features = features_of(body, [train.file(photo) for photo in train.photos], plain)
    features /= np.sqrt(np.square(features).sum(axis=1, keepdims=True) / 8)
    labels = np.array([train.classes.index(str(photo.label)) for photo in train.photos])
    enough = np.flatnonzero(np.bincount(labels) >= OWN_PHOTOS)
    groups = np.arange(OWN_CLASSES * OWN_PHOTOS)
    print("recipes                 difference   called over seeds   by one seed")
    for steps in (STEPS, STEPS * 4 // 5, STEPS * 7 // 10):
        random, found = np.random.default_rng(steps), []
        for _ in range(draws):
            classes = random.choice(enough, OWN_CLASSES, replace=False)
            rows = [random.choice(np.flatnonzero(labels == c), OWN_PHOTOS, False) for c in classes]
            own, targets = features[np.concatenate(rows)], np.repeat(range(OWN_CLASSES), OWN_PHOTOS)
            base, other = (
                np.stack([out_of_fold(own, targets, each, random) for _ in range(SEEDS)])
                for each in (STEPS, steps)
            )
            [over] = paired.contrasts_over_seeds(base, [other], groups)
            [one] = paired.contrasts(base[0], [other[0]], groups)
            called = (each.verdict != "no difference shown" for each in (over, one))
            found.append((over.difference, *called))
        difference, over_seeds, of_one = np.mean(found, axis=0)
        print(
            f"{STEPS} and {steps} steps of SGD  {100 * difference:9.1f}   {over_seeds:17.3f}"
            f"   {of_one:11.3f}   (n = {draws})",
            flush=True,
        )


# --- real fits ------------------------------------------------------------------------------------

ASIDE, LEFT = 12, 38  # photos of a class for judging, and at least as many to draw from


def drawn_parts(photos: Path, draw: int) -> tuple[Catalog, Catalog]:
    """Return the photos of a draw, and those to judge on; 2k and 2k + 1 are a pair."""
    whole, val = fg.scan(photos / "train"), fg.scan(photos / "val")
    of_class: dict[str, list[Photo]] = {name: [] for name in whole.classes}
    for part in (whole, val):
        for photo in part.photos:
            of_class[str(photo.label)].append(Photo(str(part.file(photo)), photo.label))
    random = np.random.default_rng([7, draw // 2])
    enough = sorted(name for name, own in of_class.items() if len(own) >= ASIDE + LEFT)
    names = random.choice(enough, random.choice((5, 12, 30)), replace=False)
    each = int(random.choice((6, 10, 19, 30)))
    train, judged = [], []
    for name in names:
        order = random.permutation(len(of_class[name]))
        judged += [of_class[name][n] for n in order[:ASIDE]]
        pool = np.roll(order[ASIDE : ASIDE + LEFT], -(draw % 2) * LEFT // 2)
        train += [of_class[name][n] for n in pool[:each]]
    return whole.of(in_columns(train)), whole.of(in_columns(judged))


def fit_once(draw: int, photos: Path, weights: str, recipe: str) -> dict[str, Any]:
    """Return the line of a draw."""
    train, judged = drawn_parts(photos, draw)
    settings: dict[str, Any] = {"weights": weights, "seed": draw, "size": 64, "workers": 1}
    settings |= {"backbone": "resnet18", "replica_curves": False}
    settings |= {"layout": "channels_last", "precision": "float32", "compile": "off"}
    if recipe == "quick":
        settings |= {"epochs": 3, "min_steps": 40, "batch_size": 16}
    with tempfile.TemporaryDirectory() as folder:
        asked = recipes.build(recipes.over(recipes.settings_of(recipe), settings))
        run = fg.fit(train, asked, out=Path(folder) / "run")
        scores = run.scores
        line: dict[str, Any] = {"recipe": recipe, "draw": draw, "classes": len(train.classes)}
        line |= {"photos": len(train), "accuracy": scores.accuracy, "interval": scores.interval}
        for way in (*(f"fold-{n}" for n in range(run.recipe.folds)), "ensemble"):
            found = run.classifier(way).predict(judged)
            numbers = [found.classes.index(str(photo.label)) for photo in judged.photos]
            right = found.probabilities.argmax(axis=1) == numbers
            line[way] = float(right.mean())
        folds = [line.pop(f"fold-{n}") for n in range(run.recipe.folds)]
        line |= {"folds": float(np.mean(folds)), "judged": len(judged)}
    return line


def judge_fits(draws: int, photos: Path, weights: str, recipe: str, out: Path) -> None:
    """Fit what is not fitted yet, and print how true the promises were."""
    lines = out.read_text().splitlines() if out.exists() else []
    found = [each for each in map(json.loads, lines) if each.get("recipe") == recipe]
    known = {each["draw"]: each for each in found}
    for draw in range(draws):
        if draw not in known:
            known[draw] = fit_once(draw, photos, weights, recipe)
            with out.open("a") as file:
                file.write(json.dumps(known[draw]) + "\n")
    rows = [known[draw] for draw in range(draws)]
    low, high = np.array([row["interval"] for row in rows]).T
    promised, folds = (np.array([row[name] for row in rows]) for name in ("accuracy", "folds"))
    error = np.sqrt(folds * (1 - folds) / [row["judged"] for row in rows]).clip(1e-9)
    down, up = (np.hypot(each, 1.96 * error) for each in (promised - low, high - promised))
    likely = (promised - down <= folds) & (folds <= promised + up)
    held = np.mean((low <= folds) & (folds <= high))
    print(f"{recipe}: {draws} draws; held {held:.3f}, with the judges' noise {likely.mean():.3f};")
    print(f"mean width {np.mean(high - low):.3f}; mean out-of-fold accuracy {promised.mean():.3f}")
    anew = np.array([known[draw ^ 1]["folds"] for draw in range(draws - draws % 2)])
    for name, values in (
        ("(a) the folds' networks", folds),
        ("(b) the ensemble", np.array([row["ensemble"] for row in rows])),
        ("(c) folds trained anew", anew),
    ):
        off = 100 * (values - promised[: len(values)])
        half = 1.96 * off.std(ddof=1) / len(off) ** 0.5
        inside = np.mean((low <= values) & (values <= high)) if len(values) == draws else np.nan
        print(
            f"{name:24} {off.mean():+.1f} ± {half:.1f} points, standard deviation"
            f" {off.std(ddof=1):.1f}; within the interval {inside:.3f},"
            f" at least its lower limit {np.mean(values >= low[: len(values)]):.3f}"
        )


def main() -> None:
    """Simulate the cells that are not known yet, and print all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=("simulation", "means", "seeds", "fits"))
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--shape", choices=("beta", "normal", "mixture"), default="beta")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--recipe", choices=("quick", "instant"), default="quick")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage.jsonl"))
    asked = parser.parse_args()
    if asked.part == "means":
        return simulate_means(asked.draws)
    if asked.part == "seeds":
        return simulate_seeds(asked.draws, asked.photos, asked.weights)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    if asked.part == "fits":
        return judge_fits(asked.draws, asked.photos, asked.weights, asked.recipe, asked.out)
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    keys = ("photos", "accuracy", "size", "correlation", "shape", "draws")
    known = {tuple(line[key] for key in keys): line for line in map(json.loads, lines)}
    print("photos accuracy  group  corr.  coverage  below  width  ratio  misses")
    missed = 0
    for cell in cells():
        key = (*cell, asked.shape, asked.draws)
        if key not in known:
            known[key] = measured(cell, asked.shape, asked.draws)
            with asked.out.open("a") as file:
                file.write(json.dumps(known[key]) + "\n")
        line = known[key]
        ratio = "     " if line["ratio"] is None else f"{line['ratio']:5.2f}"
        print(
            f"{cell.photos:6} {cell.accuracy:8} {cell.size:6} {cell.correlation:6}"
            f" {line['coverage']:9.3f} {line['below']:6.3f} {line['width']:6.3f}  {ratio}"
            f"  {misses(line)}",
            flush=True,
        )
        missed += bool(misses(line))
    print(
        f"{missed} of {len(cells())} cells miss a target; {asked.draws} draws each, {asked.shape}"
    )


if __name__ == "__main__":
    main()
