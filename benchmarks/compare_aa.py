"""How often is a difference called where there is none? Simulated on stored predictions.

    python benchmarks/compare_aa.py RUN
    fieldguide compare PHOTOS --out OUT --vary seed=1,2,3,4,5,6,7
    python benchmarks/compare_aa.py OUT/base OUT/seed-*

Prints one JSON line: for each way to make two classifiers that are equally good, the share of
simulations in which `fieldguide compare` calls one better, with its 95 % interval, against
the stated level.

drawn     both answer each photo rightly with the probability that the run gives its class, scaled
          by temperature; photos of a group share their luck. Also with `--group-size` photos put
          together at random, and by McNemar's test, which takes them for single ones.
family    four such against a base, corrected by Holm: the share with any call
swapped   two runs, their answers swapped at random in each group: the test's own null
mixed     two runs, in each fold drawn from all at random: another seed in each
pairs     every two runs as they are: the same recipe, another seed. Here the luck of a seed, which
          all folds share, is in the difference; the stated level does not include it.
seeds     three runs against three others, drawn from all, by the test over photos and seeds
"""

import argparse
import itertools
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

import fieldguide as fg
from fieldguide.analysis import calibration, paired
from fieldguide.analysis.intervals import share_interval

FAMILY = 4


@dataclass(frozen=True, eq=False)
class Answers:
    """A run's answers to its training photos, in catalog order."""

    right: np.ndarray
    chance: np.ndarray  # scaled probability of each photo's own class
    fold: np.ndarray
    groups: np.ndarray
    photos: tuple[str, ...]


def main() -> None:
    """Simulates and prints the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--group-size", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = [answers(fg.Run(folder)) for folder in options.runs]
    if any(each.photos != found[0].photos for each in found):
        raise SystemExit("these runs have other photos or folds")
    rates = one_run(found[0], options)
    if len(found) > 1:
        rates |= several_runs(found, options)
    print(json.dumps(told(options, found) | rates))


def answers(run: fg.Run) -> Answers:
    """What a complete run says of its photos."""
    run.require_complete()
    rows = np.concatenate([run.folds[fold].test for fold in run.judged])
    order = np.argsort(rows)
    logits = np.concatenate(list(run.judged.values()))[order]
    targets = run.targets[np.sort(rows)]
    scaled = calibration.scaled(logits, run.scores.temperature)
    photos = [run.catalog.photos[row] for row in np.sort(rows)]
    names = [photo.group or photo.path for photo in photos]
    return Answers(
        right=logits.argmax(axis=1) == targets,
        chance=scaled[np.arange(len(targets)), targets],
        fold=np.array([photo.fold for photo in photos]),
        groups=np.unique(names, return_inverse=True)[1],
        photos=tuple(photo.path for photo in photos),
    )


def one_run(found: Answers, options: argparse.Namespace) -> dict[str, object]:
    """What a single run's probabilities can simulate."""
    random = np.random.default_rng(options.seed)
    pooled = random.permutation(len(found.right)) // options.group_size

    def pairs(groups: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for _ in range(options.simulations):
            yield drawn(found, groups, random), drawn(found, groups, random)

    def any_of_family() -> bool:
        base, *others = (drawn(found, found.groups, random) for _ in range(1 + FAMILY))
        contrasts = paired.contrasts(base, others, found.groups)
        return any(each.verdict != "no difference shown" for each in contrasts)

    return {
        "drawn": rate(called(*pair, found.groups) for pair in pairs(found.groups)),
        "drawn_grouped": rate(called(*pair, pooled) for pair in pairs(pooled)),
        "drawn_grouped_mcnemar": rate(
            paired.mcnemar(*pair) <= paired.LEVEL for pair in pairs(pooled)
        ),
        "family": rate(any_of_family() for _ in range(options.simulations)),
    }


def several_runs(found: list[Answers], options: argparse.Namespace) -> dict[str, object]:
    """What runs of one recipe with several seeds can simulate."""
    random = np.random.default_rng(options.seed)
    right = np.stack([each.right for each in found])
    groups, fold = found[0].groups, found[0].fold

    def swapped() -> bool:
        one, other = right[random.choice(len(right), 2, replace=False)]
        swap = (random.random(groups.max() + 1) < 0.5)[groups]
        return called(np.where(swap, other, one), np.where(swap, one, other), groups)

    def mixed() -> bool:
        chosen = np.stack([random.choice(len(right), 2, replace=False) for _ in np.unique(fold)])
        one, other = (right[chosen[fold, n], np.arange(len(fold))] for n in (0, 1))
        return called(one, other, groups)

    def over_seeds() -> bool:
        chosen = right[random.choice(len(right), 6, replace=False)]
        [found] = paired.contrasts_over_seeds(chosen[:3], [chosen[3:]], groups)
        return found.p <= paired.LEVEL

    differences = [
        (called(one, other, groups), (one.mean() - other.mean()) ** 2, expected(one, other, groups))
        for one, other in itertools.combinations(right, 2)
    ]
    calls, seen, by_chance = zip(*differences, strict=True)
    return {
        "swapped": simulated(swapped, options),
        "mixed": simulated(mixed, options),
        "pairs": rate(calls),
        "seeds": simulated(over_seeds, options) if len(right) >= 6 else None,
        # 1 where seeds differ by no more than the answers to single photos do
        "variance_ratio": round(float(np.sum(seen) / np.sum(by_chance)), 2),
        "accuracies": [round(float(value), 4) for value in right.mean(axis=1)],
    }


def drawn(found: Answers, groups: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Answers of a classifier that is as good as the run's, all of a group by the same luck."""
    return random.random(groups.max() + 1)[groups] < found.chance


def called(one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> bool:
    """Whether two alone would be called different."""
    return paired.sign_flip(one, other, groups) <= paired.LEVEL


def expected(one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> float:
    """The variance of the difference in accuracy if signs were flipped by groups."""
    sums = np.bincount(groups, weights=one.astype(int) - other)
    return float(np.sum(sums**2)) / len(one) ** 2


def simulated(call: Callable[[], bool], options: argparse.Namespace) -> dict[str, float]:
    """The rate of calls in so many simulations."""
    return rate(call() for _ in range(options.simulations))


def rate(calls: Iterable[bool]) -> dict[str, float]:
    """The share of calls with its interval."""
    values = list(calls)
    low, high = share_interval(np.array(values), np.arange(len(values)))
    return {
        "n": len(values),
        "rate": round(sum(values) / len(values), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def told(options: argparse.Namespace, found: list[Answers]) -> dict[str, object]:
    """What the simulations were made of."""
    return {
        "level": paired.LEVEL,
        "runs": len(found),
        "photos": len(found[0].right),
        "groups": int(found[0].groups.max()) + 1,
        "folds": int(found[0].fold.max()) + 1,
        "group_size": options.group_size,
        "accuracy": round(float(found[0].right.mean()), 4),
        "fieldguide": metadata.version("fieldguide"),
        "platform": platform.platform(),
    }


if __name__ == "__main__":
    main()
