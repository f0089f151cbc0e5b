"""Intervals for what a sample of photos says of all photos like them, which may come in groups.

Photos of one group are right or wrong together, so that few groups say less than as many photos.
Arrays in, numbers out. Knows nothing of models, folds or files.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray

Groups = Shaped[np.ndarray, " n"]
Counts = Int[np.ndarray, " kinds"]

# Intra-class correlations that are weighed, dense near 0, where large groups tell them apart.
_NODES = (np.arange(24) + 0.5) / 24
_CORRELATIONS, _WEIGHTS = _NODES**3, 3 * _NODES**2 / len(_NODES)
# Log-odds among which a share is looked for, ever closer to the likely ones; a log of likelihood
# that far below the highest is nothing.
_FARTHEST, _POINTS, _NOTHING = 40.0, (81, 81, 400), 30.0
_EXACT = 32


def share_interval(
    correct: Bool[np.ndarray, " n"], groups: Groups, *, share: float = 0.95
) -> tuple[float, float]:
    """Return the interval for the share of photos that are right, of photos like these.

    For single photos it is Clopper and Pearson's (Biometrika 26, 1934): with k of n right it ends
    where the posteriors of the priors Beta(0, 1) and Beta(1, 0) leave (1 - share) / 2 outside. Here
    the same priors meet the beta-binomial likelihood of groups, whose correlation (0: as if single,
    1: all of a group alike) is integrated out, before the data uniform. So it is as wide as the
    correlation that the groups show, and where few groups have mistakes, as those that they could
    have. Not one mistake in G groups of s photos gives a limit between those of G and of G · s.
    The likelihood takes a group's size to say nothing of its photos; where it does, the interval is
    extended to the share that was seen. With one group its width says how little that is: 39 of 40
    right give 0.04 to 1.00.

    Deterministic. Time follows the largest group. Raises ValueError for no photos, as many groups
    as photos missing, or a share outside 0 … 1 (both excluded).
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1: {share}")
    if len(correct) == 0 or len(correct) != len(groups):
        raise ValueError(f"need as many groups as photos, and one: {len(groups)}, {len(correct)}")
    group_of = np.unique(groups, return_inverse=True)[1]
    right = np.bincount(group_of, weights=correct).astype(np.int64)
    wrong = np.bincount(group_of) - right
    most = int(wrong.max()) + 1
    kinds, times = np.unique(right * most + wrong, return_counts=True)  # groups alike, once
    low, high = _limits(*(tuple(each.tolist()) for each in (*np.divmod(kinds, most), times)), share)
    value = float(correct.mean())
    return min(low, value), max(high, value)


@lru_cache(4096)  # small classes are often alike
def _limits(
    right: tuple[int, ...], wrong: tuple[int, ...], times: tuple[int, ...], share: float
) -> tuple[float, float]:
    """Return both limits, of so many times each number of photos right and wrong in a group."""
    well, ill, number = (np.array(each, dtype=np.int64) for each in (right, wrong, times))
    outside = (1 - share) / 2
    low = _lower(_Likelihood(well, ill, number), outside) if well.any() else 0.0
    high = 1 - _lower(_Likelihood(ill, well, number), outside) if ill.any() else 1.0
    return low, high


def _lower(likelihood: "_Likelihood", outside: float) -> float:
    """Return the lower limit of the share right, which is not 0."""
    first, last = -_FARTHEST, _FARTHEST
    for points in _POINTS:
        odds = np.linspace(first, last, points)
        logs = likelihood.logs(odds)
        density = np.exp(logs - logs.max()).sum(axis=0)
        likely = np.flatnonzero(density > np.exp(-_NOTHING))
        first, last = odds[max(likely[0] - 1, 0)], odds[min(likely[-1] + 1, points - 1)]
    below = np.cumsum(density) - density / 2
    at = float(np.interp(outside, below / density.sum(), odds))
    return float(1 / (1 + np.exp(-at)))


class _Likelihood:
    """The beta-binomial likelihood of groups, by how many of them have more than i photos right."""

    def __init__(self, right: Counts, wrong: Counts, times: Counts) -> None:
        sizes = right + wrong
        counts = (right, wrong, sizes)
        self.right, self.wrong, self.size = (_more_than(each, times) for each in counts)
        single = sizes.max() == 1
        correlations = np.zeros(1) if single else _CORRELATIONS
        self.weights = np.ones(1) if single else _WEIGHTS
        self.steps = (correlations / (1 - correlations))[:, None, None]

    def logs(self, odds: Float[np.ndarray, " points"]) -> Float[np.ndarray, "nodes points"]:
        """Return the log of weight · likelihood · prior at each correlation and log-odds.

        With t = r / (1 - r) of a correlation r, a group with m of s right has the probability
        Π (p + i t) Π (1 - p + j t) / Π (1 + k t), over i < m, j < s - m, k < s. The prior 1 / p dp
        is 1 - p over log-odds.
        """
        p, q = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(odds))
        own = self._rising(p, self.right) + self._rising(q, self.wrong)
        whole = self._rising(np.ones(1), self.size)
        logs: NDArray[np.float64] = np.log(self.weights)[:, None] + own - whole + np.log(q)
        return logs

    def _rising(
        self, start: Float[np.ndarray, " points"], times: Float[np.ndarray, " most"]
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
        self, start: Float[np.ndarray, " points"], at: Float[np.ndarray, " ends"]
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
