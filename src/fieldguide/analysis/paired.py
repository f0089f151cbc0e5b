"""Paired comparisons of classifiers on the same photos: which is better, and can that be told?

Answers right or wrong in, numbers out. Knows nothing of recipes or runs.

The rule for "a difference is shown": the exact sign-flip test of whole groups (`sign_flip`),
corrected by Holm for all comparisons with the base, gives at most `LEVEL`. Where every photo is a
group of its own, it *is* McNemar's exact test (Psychometrika 12, 1947). McNemar's on photos that
come in groups takes copies for independent evidence and finds differences where there are none. The
interval of the difference is not corrected.

These trained networks are compared. That another seed would have trained others is no part of the
doubt (Dietterich, "Approximate Statistical Tests for Comparing Supervised Classification Learning
Algorithms", Neural Computation 10, 1998; benchmarks/compare_aa.py has its size), unless each was
trained with several (`contrasts_over_seeds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray

from fieldguide.analysis.intervals import share_interval, student_quantile, student_tails

Right: TypeAlias = Bool[np.ndarray, " n"]
Seeds: TypeAlias = Bool[np.ndarray, "seeds n"]  # a row for each seed
Counts: TypeAlias = Int[np.ndarray, " n"]
Groups: TypeAlias = Int[np.ndarray, " n"]
Verdict = Literal["better", "worse", "no difference shown"]

LEVEL = 0.05  # the share of comparisons without a difference in which one may be called
_NOTHING = 1e-20  # a variance that is rounding


@dataclass(frozen=True)
class Contrast:
    """A classifier against the base, on the same photos.

    `difference` is in accuracy, with its 95 % interval (`low`, `high`); `p` is that of `sign_flip`,
    or over seeds of Student's test, `adjusted` after `holm` over all contrasts with this base.
    """

    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    verdict: Verdict


def contrasts(base: Right, others: Sequence[Right], groups: Groups) -> list[Contrast]:
    """Return each of `others` against the base, by the rule at the top of this file."""
    return _judged(
        [difference(other, base, groups) for other in others],
        [sign_flip(other, base, groups) for other in others],
    )


def contrasts_over_seeds(base: Seeds, others: Sequence[Seeds], groups: Groups) -> list[Contrast]:
    """Return each of `others` against the base, where each was trained with several seeds.

    So a difference is one between recipes, on other photos and with other seeds. Photos (in groups)
    and seeds are crossed: the variance of a difference is that of the photos' mean differences over
    seeds, and twice what seeds add to an accuracy, beyond what answers to single photos explain, as
    estimated over all trials together (Cornfield and Tukey, "Average Values of Mean Squares in
    Factorials", Annals of Mathematical Statistics 27, 1956). Student's test with Satterthwaite's
    degrees of freedom (Biometrics Bulletin 2, 1946); benchmarks/coverage.py has its false alarms.

    No p is less than the least of a sign-flip test of as many groups as differ, and gains that are
    equal in all groups, which show no spread, have the interval of the first seeds (`difference`).
    Seeds of different trials are taken as independent. ValueError for fewer than two seeds.
    """
    trials = [base, *others]
    seeds, photos = base.shape
    if seeds < 2:
        raise ValueError(f"a seed's luck needs at least two of them: {seeds}")
    group_of = np.unique(groups, return_inverse=True)[1]
    number = int(group_of.max()) + 1

    def variance(values: Float[np.ndarray, "rows n"]) -> float:  # of a mean, from deviations
        sums = [np.bincount(group_of, weights=row, minlength=number) for row in values]
        total = float(np.square(sums).sum())
        return total * number / (max(number - 1, 1) * float(photos) ** 2)

    luck, single = [], []  # of a seed's accuracy, and the part of it that is single photos'
    for answers in trials:
        by_seed, by_photo = answers.mean(axis=1), answers.mean(axis=0)
        luck.append(float(by_seed.var(ddof=1)))
        rest = answers - by_photo - by_seed[:, None] + by_seed.mean()
        single.append(variance(rest) / (seeds - 1))
    both, part = (2 * float(np.mean(each)) / seeds for each in (luck, single))
    free_seeds, free_photos = len(trials) * (seeds - 1), max(number - 1, 1)
    distances, p_values = [], []
    for other in others:
        counts = other.sum(axis=0, dtype=int) - base.sum(axis=0, dtype=int)
        gains = counts / seeds
        mean = float(gains.mean())
        own = variance((gains - mean)[None, :])
        error, freedom = own, float(free_photos)
        if both > part:
            error += both - part
            freedom = error**2 / (
                own**2 / free_photos + both**2 / free_seeds + part**2 / (free_seeds * free_photos)
            )
        if error > _NOTHING:
            down = up = student_quantile(freedom, 1 - LEVEL) * error**0.5
            p = student_tails(mean / error**0.5, freedom) if mean else 1.0
        else:
            first, low, high = difference(other[0], base[0], groups)
            down, up, p = first - low, high - first, 0.0 if mean else 1.0
        distances.append((mean, max(mean - down, -1.0), min(mean + up, 1.0)))
        differ = np.count_nonzero(np.bincount(group_of, counts))
        p_values.append(max(p, 2.0 ** (1 - differ)) if differ else 1.0)
    return _judged(distances, p_values)


def _judged(
    distances: Sequence[tuple[float, float, float]], p_values: Sequence[float]
) -> list[Contrast]:
    """Return the contrasts, by the rule at the top of this file."""
    found = []
    for distance, p, adjusted in zip(distances, p_values, holm(p_values), strict=True):
        shown: Verdict = "better" if distance[0] > 0 else "worse"
        verdict: Verdict = "no difference shown" if adjusted > LEVEL else shown
        found.append(Contrast(*distance, p, adjusted, verdict))
    return found


def mcnemar(one: Right, other: Right) -> float:
    """Return the two-sided p of McNemar's exact test: not for photos in groups (`sign_flip`)."""
    return sign_flip(one, other, np.arange(len(one)))


def sign_flip(one: Right | Counts, other: Right | Counts, groups: Groups) -> float:
    """Return the two-sided p of the exact sign-flip test of whole groups (any integers).

    Answers are right or wrong, or how many of several were right.

    d_g = (right answers of one) - (of other) in group g, and S = Σ d_g. If it did not matter in any
    group which of the two gave which answers, S would be as likely with each d_g's sign flipped: p
    = the share of all 2^groups choices of signs with |Σ ±d_g| ≥ |S|, counted without drawing; 1
    where the two differ nowhere.

    Of few groups p cannot be small: of five that differ, at least 1/16. Time is at most (Σ |d_g|)².
    ValueError without answers. Source: Fisher, The Design of Experiments, 1935, section 21, with
    whole groups as units.
    """
    if not len(one):
        raise ValueError("no answers to compare")
    group_of = np.unique(groups, return_inverse=True)[1]
    signed = np.rint(np.bincount(group_of, one.astype(np.int64) - other)).astype(np.int64)
    sums, observed = np.abs(signed), abs(int(signed.sum()))
    total = int(sums.sum())
    chances = _sum_chances(sums[sums > 0])
    # Σ ±d = 2 k - total, where k is what the positive ones add up to.
    extreme = np.abs(2 * np.arange(total + 1) - total) >= observed
    return min(1.0, float(chances[extreme].sum()))


def difference(one: Right, other: Right, groups: Groups) -> tuple[float, float, float]:
    """Return one's accuracy less the other's, and its 95 % interval: (mean, low, high).

    It is made of the intervals for the share that one alone has right and that of the other (square
    and add: Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17, 1998, with the intervals of
    `share_interval` for Wilson's and no correlation). So it has a width where both are always
    right.
    """
    alone, behind = one & ~other, other & ~one
    (low, high), (least, most) = (share_interval(each, groups) for each in (alone, behind))
    gained, lost = alone.mean(), behind.mean()
    mean = float(gained - lost)
    down = float(np.hypot(gained - low, most - lost))
    up = float(np.hypot(high - gained, lost - least))
    return mean, max(mean - down, -1.0), min(mean + up, 1.0)


def better(answers: Mapping[str, Counts], groups: Groups) -> dict[str, tuple[str, ...]]:
    """Return, by name, the others that each is shown to be better than, of all pairs.

    `answers` are how many of each photo's answers are right, of equally many.
    """
    pairs = list(combinations(answers, 2))
    found = [sign_flip(answers[one], answers[other], groups) for one, other in pairs]
    beaten: dict[str, list[str]] = {name: [] for name in answers}
    for pair, adjusted in zip(pairs, holm(found), strict=True):
        if adjusted <= LEVEL:
            worse, best = sorted(pair, key=lambda name: int(answers[name].sum()))
            beaten[best].append(worse)
    return {name: tuple(others) for name, others in beaten.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for asking several times, in the order given; none of them falls.

    The i-th smallest of k becomes max over j ≤ i of (k - j + 1) · p_j, at most 1. The differences
    called at a level then contain any false one with at most that probability, however they depend
    on each other. Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
    Scandinavian Journal of Statistics 6, 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(raised, 1.0)
    return [float(value) for value in adjusted]


def best(correct: Shaped[np.ndarray, "trials n"]) -> int:
    """Return the number of the trial that is right most often; of equals the first.

    Answers are right, 1, or wrong, 0, or their means over seeds.
    """
    return int(correct.sum(axis=1).argmax())


def bias_corrected_best(
    correct: Shaped[np.ndarray, "trials n"], groups: Groups, *, draws: int = 1000, seed: int = 0
) -> float:
    """Return the accuracy of *choosing the best of these*, judged by photos without a say in it.

    In each draw, groups are drawn with replacement; the trial that is best on them is scored on the
    groups that were not drawn (about 37 %), and these scores are averaged. With many trials that
    are alike it lies below the best one's, which was lucky. Slightly pessimistic, as fewer
    different photos choose than there are. Source: Tsamardinos, Greasidou, Borboudakis,
    "Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation",
    Machine Learning 107, 2018 (algorithm BBC-CV). We draw whole groups, and of equals take the
    first.

    Raises ValueError without trials, with fewer than two groups, or with fewer than one draw.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    if not len(correct) or len(names) < 2 or draws < 1:
        raise ValueError(f"{len(correct)} trials, {len(names)} groups, {draws} draws: too few")
    sizes = np.bincount(group_of)
    right = np.stack([np.bincount(group_of, weights=row) for row in correct])
    random = np.random.default_rng(seed)
    return float(np.mean([_chosen_outside(right, sizes, random) for _ in range(draws)]))


def _sum_chances(sizes: Int[np.ndarray, " groups"]) -> NDArray[np.float64]:
    """Return P(k) for k from 0 to Σ sizes, where each size counts with probability 1/2."""
    chances = np.ones(1)
    for size, number in zip(*np.unique(sizes, return_counts=True), strict=True):
        steps = np.zeros(size * number + 1)
        steps[::size] = _halves(int(number))
        chances = np.convolve(chances, steps)
    return chances


def _halves(number: int) -> NDArray[np.float64]:
    """Return Binomial(number, 1/2), by logarithms: 2^-number is 0 in float64 from 1,075 on."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, number + 1)))])
    log_counts = logs[-1] - logs - logs[::-1]
    chances: NDArray[np.float64] = np.exp(log_counts - number * np.log(2))
    return chances


def _chosen_outside(
    right: Float[np.ndarray, "trials groups"],
    sizes: Int[np.ndarray, " groups"],
    random: np.random.Generator,
) -> float:
    """Return the score of one draw, which is repeated if it took every group."""
    while True:
        times = np.bincount(random.integers(0, len(sizes), len(sizes)), minlength=len(sizes))
        outside = times == 0
        if outside.any():
            chosen = int((right @ times).argmax())
            return float(right[chosen, outside].sum() / sizes[outside].sum())
