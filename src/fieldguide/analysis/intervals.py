"""Intervals for what a sample of photos says of all photos like them, which may come in groups.

Photos of one group are right or wrong together, so that few groups say less than as many photos.
Arrays in, numbers out. Knows nothing of models, folds or files.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray

Groups = Shaped[np.ndarray, " n"]
Counts = Int[np.ndarray, " kinds"]
Points = Float[np.ndarray, " points"]
Values = Float[np.ndarray, " n"]
Logs = Float[np.ndarray, "*nodes points"]

# Intra-class correlations that are weighed, dense near 0, where large groups tell them apart.
_NODES = (np.arange(24) + 0.5) / 24
_CORRELATIONS, _WEIGHTS = _NODES**3, 3 * _NODES**2 / len(_NODES)
# How much of the correlation's distribution lies below the one that is taken, and the fewest
# degrees of freedom: simulated (benchmarks/coverage.py).
_CAUTION, _LEAST_FREEDOM = 0.75, 5
# Log-odds among which a share is looked for, ever closer to the likely ones; a log of likelihood
# that far below the highest is nothing.
_FARTHEST, _POINTS, _NOTHING = 40.0, (81, 81, 400), 30.0
_BLOCK = 4_000_000  # counts in one block of bootstrap draws: 32 MB (taste)
_EXACT = 32  # terms of a sum before an integral stands for it


def share_interval(
    correct: Bool[np.ndarray, " n"], groups: Groups, *, share: float = 0.95
) -> tuple[float, float]:
    """Return the interval for the share of photos that are right, of photos like these.

    It is Clopper and Pearson's (Biometrika 26, 1934) of the effective numbers of photos, those
    divided by a design effect (Korn and Graubard, Survey Methodology 24, 1998), which is 1 for
    single photos. The effect is the larger of two. One is measured: the variance of the groups'
    sums over that of single photos. The other is what groups with few mistakes could have: that of
    the upper quartile of their correlation under the beta-binomial likelihood, before the data
    uniform. What exceeds 1 grows by the square of Student's quantile over the normal one, with as
    many degrees of freedom as groups with mistakes (or with right photos, if fewer), less one; at
    most until a group counts as one photo. So one group says as little as one photo.

    Where most mistakes come from very few groups that are wrong as a whole, a sample may hold none
    of them, and the interval cannot know.

    Deterministic. Raises ValueError for no photos, as many groups as photos missing, or a share
    outside 0 … 1 (both excluded).
    """
    _require(correct, groups, share)
    kinds = _kinds(correct, np.unique(groups, return_inverse=True)[1])
    return _limits(*(tuple(each.tolist()) for each in kinds), share)


def new_group_interval(
    correct: Bool[np.ndarray, " n"], groups: Groups, *, share: float = 0.95
) -> tuple[float, float]:
    """Return the interval for the share of photos that are right in one new group.

    Groups are taken to be drawn from those that the given ones were drawn from, and their shares to
    be spread as a beta distribution. It is averaged over its mean and correlation as they are
    likely, by the likelihood and prior of `share_interval`'s design effect (a posterior predictive
    interval): of few groups it is wide, of one next to everything. Raises as `share_interval` does.
    """
    _require(correct, groups, share)
    kinds = _kinds(correct, np.unique(groups, return_inverse=True)[1])
    odds, logs = _narrowed(_Likelihood(*kinds).logs)
    weights = np.exp(logs - logs.max())
    at = np.linspace(-_FARTHEST, _FARTHEST, 1601)  # log-odds of the new group's share
    spread = np.zeros_like(at)
    for correlation, likely in zip(_CORRELATIONS, weights, strict=True):
        some = likely > weights.max() * 1e-6
        scale = (1 - correlation) / correlation
        p, q = (scale / (1 + np.exp(sign * odds[some, None])) for sign in (-1, 1))
        own = -p * np.logaddexp(0, -at) - q * np.logaddexp(0, at)
        own = np.exp(own - own.max(axis=1, keepdims=True)) if some.any() else own
        spread += (likely[some] / own.sum(axis=1)) @ own
    below = np.cumsum(spread) - spread / 2
    limits = np.interp([(1 - share) / 2, (1 + share) / 2], below / spread.sum(), at)
    low, high = 1 / (1 + np.exp(-limits))
    return float(low), float(high)


def class_mean_interval(
    left_out: Float[np.ndarray, " means"],
    correct: Bool[np.ndarray, " n"],
    classes: Groups,
    groups: Groups,
    *,
    share: float = 0.95,
) -> tuple[float, float]:
    """Return the interval for a mean over classes of shares, of photos like these.

    `left_out` is the mean of all photos, and then without each group in the order of their names:
    the jackknife (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 11) of them
    gives its bias, which is taken off, and its variance. The interval is that of `share_interval`
    for such a share with this design effect: measured by that variance, and what groups could have,
    of the photos' answers, times Kish's effect of weights that are uneven, 1 over the photos of the
    class: n · Σ w² / (Σ w)² (Survey Sampling, 1965). It holds the mean. Raises as it does.
    """
    _require(correct, groups, share)
    group_of = np.unique(groups, return_inverse=True)[1]
    _, class_of, photos = np.unique(classes, return_inverse=True, return_counts=True)
    weights = 1 / photos[class_of]
    uneven = len(weights) * float(weights @ weights) / float(weights.sum()) ** 2
    mean, without = float(left_out[0]), left_out[1:]
    count, measured, value = len(without), 0.0, mean
    if count > 1:
        value = float(np.clip(mean - (count - 1) * (without.mean() - mean), 0, 1))
        spread = float(((without - without.mean()) ** 2).sum()) * (count - 1) / count
        if 0 < value < 1:
            measured = len(correct) * spread / (value * (1 - value))
    effect = _design_effect(*_kinds(correct, group_of), share, measured, uneven)
    low, high = _effective(value, len(correct) / effect, share)
    return min(low, mean), max(high, mean)


def mean_interval(
    values: Values,
    groups: Groups,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    share: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval for the mean of values of photos like these, within `bounds`.

    Whole groups are drawn with replacement, and each draw's mean less the sample's is divided by
    the draw's own standard error (studentised bootstrap: Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, ch. 12). Losses are skewed, which it allows for and intervals that are
    symmetric or of percentiles do not; `benchmarks/coverage.py means` has its coverage. Few photos
    without a mistake cannot tell what mistakes will cost. One group says nothing: the bounds.

    Time and memory follow the number of *different* groups. Raises ValueError for no values, one
    that is not finite, a share outside 0 … 1 (both excluded), or no draw.
    """
    _require(values, groups, share)
    if draws < 1 or not np.isfinite(values).all():
        raise ValueError(f"need finite values and a draw: {draws} draws")
    group_of = np.unique(groups, return_inverse=True)[1]
    totals = np.stack([np.bincount(group_of), np.bincount(group_of, weights=values)], axis=1)
    # Groups with the same sum and size are exchangeable: drawing how often each *kind* comes has
    # the very distribution of drawing groups.
    kinds, number = np.unique(totals, axis=0, return_counts=True)
    own, error = (float(each[0]) for each in _means(number[None, :], kinds))
    if len(totals) == 1:
        return bounds
    random, block = np.random.default_rng(seed), max(1, _BLOCK // len(kinds))
    scores = []
    for start in range(0, draws, block):
        size = min(block, draws - start)
        mean, spread = _means(random.multinomial(len(totals), number / len(totals), size), kinds)
        off = mean - own
        with np.errstate(divide="ignore", invalid="ignore"):
            scores.append(np.where(off == 0, 0.0, off / spread))
    least, most = np.quantile(  # scores may be infinite, between which nothing lies
        np.concatenate(scores), [(1 - share) / 2, (1 + share) / 2], method="closest_observation"
    )
    low, high = (own - float(each) * error if error else own for each in (most, least))
    return max(low, bounds[0]), min(high, bounds[1])


def _means(
    times: Int[np.ndarray, "draws kinds"], kinds: Float[np.ndarray, "kinds 2"]
) -> tuple[Points, Points]:
    """Return the mean of each draw and its standard error, of so many groups of each kind.

    It is the ratio of sums to sizes, both of which vary.
    """
    size, total = kinds.T
    photos, groups = times @ size, times.sum(axis=1)
    mean = times @ total / photos
    products = times @ np.stack([total * total, total * size, size * size], axis=1)
    squares = products[:, 0] - 2 * mean * products[:, 1] + mean**2 * products[:, 2]
    squares[squares < 1e-12 * products[:, 0]] = 0  # rounding
    return mean, np.sqrt(squares * groups / np.maximum(groups - 1, 1)) / photos


def _require(values: Shaped[np.ndarray, " m"], groups: Groups, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1: {share}")
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"need as many groups as photos, and one: {len(groups)}, {len(values)}")


def _kinds(
    correct: Bool[np.ndarray, " n"], group_of: Int[np.ndarray, " n"]
) -> tuple[Counts, Counts, Counts]:
    """Return photos right and wrong in a group, and how many groups have them; each pair once."""
    right = np.bincount(group_of, weights=correct).astype(np.int64)
    wrong = np.bincount(group_of) - right
    most = int(wrong.max()) + 1
    kinds, times = np.unique(right * most + wrong, return_counts=True)
    return *np.divmod(kinds, most), times


@lru_cache(4096)  # small classes are often alike
def _limits(
    right: tuple[int, ...], wrong: tuple[int, ...], times: tuple[int, ...], share: float
) -> tuple[float, float]:
    """Return both limits, of so many times each number of photos right and wrong in a group."""
    well, ill, number = (np.array(each, dtype=np.int64) for each in (right, wrong, times))
    effect, photos = _design_effect(well, ill, number, share), float((well + ill) @ number)
    return _effective(float(well @ number) / photos, photos / effect, share)


def _effective(value: float, photos: float, share: float) -> tuple[float, float]:
    """Return both limits of a share, of an effective number of photos."""
    outside, some, others = (1 - share) / 2, value * photos, (1 - value) * photos
    low = _lower(some, others, outside) if some else 0.0
    high = 1 - _lower(others, some, outside) if others else 1.0
    return low, high


def _lower(right: float, wrong: float, outside: float) -> float:
    """Return the lower limit of the share right, which is not 0: a quantile of a beta."""

    def logs(odds: Points) -> Points:  # the density of Beta(right, wrong + 1), over log-odds
        found: Points = -right * np.logaddexp(0, -odds) - (wrong + 1) * np.logaddexp(0, odds)
        return found

    odds, found = _narrowed(logs)
    density = np.exp(found - found.max())
    below = np.cumsum(density) - density / 2
    at = float(np.interp(outside, below / density.sum(), odds))
    return float(1 / (1 + np.exp(-at)))


def _narrowed(logs: Callable[[Points], Logs]) -> tuple[Points, Logs]:
    """Return log-odds that are likely and their logs, (points,) or (nodes, points)."""
    first, last = -_FARTHEST, _FARTHEST
    for points in _POINTS:
        odds = np.linspace(first, last, points)
        found = logs(odds)
        highest = found.reshape(-1, points).max(axis=0)
        likely = np.flatnonzero(highest > highest.max() - _NOTHING)
        first, last = odds[max(likely[0] - 1, 0)], odds[min(likely[-1] + 1, points - 1)]
    return odds, found


def _design_effect(
    right: Counts,
    wrong: Counts,
    times: Counts,
    share: float,
    measured: float | None = None,
    uneven: float = 1.0,
) -> float:
    """Return by how many photos in groups one single photo is matched; 1 if all are single.

    With photos of `uneven` weights their effect is multiplied by it; that of another statistic than
    the share right is `measured`.
    """
    sizes = right + wrong
    if sizes.max() == 1:
        return max(uneven, measured or 0.0)
    groups, photos = int(times.sum()), int(times @ sizes)
    value = float(times @ right) / photos
    if measured is None and groups > 1 and 0 < value < 1:
        spread = float(times @ (right - value * sizes) ** 2) * groups / (groups - 1)
        measured = spread / (photos * value * (1 - value))
    _, logs = _narrowed(_Likelihood(right, wrong, times).logs)
    below = np.cumsum(np.exp(logs - logs.max()).sum(axis=1))
    correlation = _CORRELATIONS[np.searchsorted(below, _CAUTION * below[-1])]
    most = float(times @ sizes**2) / photos  # as if a group were one photo
    expected = 1 + (most - 1) * float(correlation)
    fewer = int(min(times @ (right > 0), times @ (wrong > 0)))
    excess = max(measured or 0.0, uneven * expected) - uneven
    normal = NormalDist().inv_cdf((1 + share) / 2)
    student = student_quantile(float(max(fewer - 1, _LEAST_FREEDOM)), share) / normal
    wide = uneven + excess * student**2
    return min(wide, uneven * most)


def student_quantile(freedom: float, share: float) -> float:
    """Return Student's quantile: a score lies within ± it with the probability `share`."""
    angles, above = _student(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(share - 1, -above, angles)))


def student_tails(score: float, freedom: float) -> float:
    """Return the probability of a score farther from 0, on either side."""
    return float(np.interp(math.atan(abs(score) / math.sqrt(freedom)), *_student(freedom)))


@lru_cache(256)
def _student(freedom: float) -> tuple[Points, Points]:
    """Return angles a from 0 to π/2, and the probability of |t| > √freedom · tan(a), to 1e-6.

    So the density of t is, over a, that of cos(a)^(freedom - 1).
    """
    angles = np.linspace(0, np.pi / 2, 20_001) if freedom < 1000 else np.linspace(0, 0.4, 20_001)
    density = np.exp((freedom - 1) * np.log(np.cos(angles).clip(1e-300)))
    middle = np.cumsum((density[1:] + density[:-1])[::-1])[::-1]
    above = np.append(middle, 0.0)
    return angles, above / above[0]


class _Likelihood:
    """The beta-binomial likelihood of groups, by how many of them have more than i photos right."""

    def __init__(self, right: Counts, wrong: Counts, times: Counts) -> None:
        counts = (right, wrong, right + wrong)
        self.right, self.wrong, self.size = (_more_than(each, times) for each in counts)
        self.steps = (_CORRELATIONS / (1 - _CORRELATIONS))[:, None, None]

    def logs(self, odds: Points) -> Float[np.ndarray, "nodes points"]:
        """Return the log of weight · likelihood · prior at each correlation and log-odds.

        With t = r / (1 - r) of a correlation r, a group with m of s right has the probability
        Π (p + i t) Π (1 - p + j t) / Π (1 + k t), over i < m, j < s - m, k < s. The prior of p is
        Jeffreys', which is √(p (1 - p)) over log-odds.
        """
        p, q = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(odds))
        own = self._rising(p, self.right) + self._rising(q, self.wrong)
        whole = self._rising(np.ones(1), self.size)
        prior = np.log(_WEIGHTS)[:, None] + np.log(p * q) / 2
        logs: NDArray[np.float64] = own - whole + prior
        return logs

    def _rising(
        self, start: Points, times: Float[np.ndarray, " most"]
    ) -> Float[np.ndarray, "nodes points"]:
        """Return Σ times_i · log(start + i · t) at each correlation; `times` never rise.

        From the `_EXACT`th term on, sums of equal `times` are integrals between the midpoints
        (Euler and Maclaurin), with their first correction: at most 1e-6 of a logarithm off.
        """
        first, rest = times[:_EXACT], times[_EXACT:]
        level = start[:, None] + self.steps * np.arange(len(first))
        total: NDArray[np.float64] = np.log(level) @ first
        drops = rest - np.append(rest[1:], 0)
        ends = np.flatnonzero(drops)
        for at in np.array_split(ends, len(ends) // 256 + 1) if len(ends) else ():  # memory
            begun = self._integral(start, np.array([_EXACT - 0.5]))
            total += (self._integral(start, _EXACT + at + 0.5) - begun) @ drops[at]
        return total

    def _integral(
        self, start: Points, at: Float[np.ndarray, " ends"]
    ) -> Float[np.ndarray, "nodes points ends"]:
        level = start[:, None] + self.steps * at
        found: NDArray[np.float64] = (
            level * (np.log(level) - 1) / self.steps - self.steps / level / 24
        )
        return found


def _more_than(counts: Counts, times: Counts) -> NDArray[np.float64]:
    """Return how many counts, each so many times, are more than 0, 1, 2, …"""
    found: NDArray[np.float64] = np.bincount(counts, weights=times)[::-1].cumsum()[::-1][1:]
    return found
