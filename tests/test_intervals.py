"""Intervals for shares of photos, single and in groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import betaln, comb

from fieldguide.analysis.intervals import share_interval


def of(right: int, photos: int, **options: float) -> tuple[float, float]:
    return share_interval(np.arange(photos) < right, np.arange(photos), **options)


def in_groups(right: list[int], sizes: list[int]) -> tuple[float, float]:
    within = np.concatenate([np.arange(size) for size in sizes])
    return share_interval(within < np.repeat(right, sizes), np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize("share", [0.8, 0.95, 0.99])
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=25, deadline=None)
def test_single_photos_have_the_exact_limits(share: float, count: tuple[int, int]) -> None:
    right, photos = count
    expected = stats.binomtest(right, photos).proportion_ci(share, method="exact")
    width = expected.high - expected.low
    found = of(right, photos, share=share)
    assert found == pytest.approx((expected.low, expected.high), abs=0.01 * width)


def test_mistakes_lower_the_promise_from_none_to_all() -> None:
    limits = np.array([of(right, 40) for right in range(40, -1, -1)])
    assert (np.diff(limits, axis=0) < 0).all(0)[0] and (np.diff(limits[:, 1]) <= 0).all()
    assert limits[0, 0] <= 0.93
    assert 0 < limits[0, 0] - limits[1, 0] < 0.05
    assert (limits[0, 1], limits[-1, 0]) == (1.0, 0.0)


def test_a_million_photos_have_the_limits_of_the_normal_distribution() -> None:
    low, high = of(900_000, 1_000_000)
    spread = 1.96 * np.sqrt(0.09 / 1_000_000)
    assert (low, high) == pytest.approx((0.9 - spread, 0.9 + spread), abs=0.02 * spread)


def test_groups_say_less_than_photos_and_at_least_what_a_photo_of_each_says() -> None:
    alike, single, few = in_groups([20] * 20, [20] * 20), of(400, 400), of(20, 20)
    assert few[0] <= alike[0] < single[0]
    mixed = in_groups([19] * 20, [20] * 20)  # nothing shows a correlation
    torn = in_groups([20] * 19 + [0], [20] * 20)  # everything does
    assert mixed[0] > torn[0] and mixed[1] < torn[1]
    assert torn == pytest.approx(of(19, 20))


def test_no_mistake_promises_most_in_groups_too() -> None:
    lows = [in_groups([20] * 19 + [20 - wrong], [20] * 20)[0] for wrong in (0, 1, 5, 20)]
    assert lows == sorted(lows, reverse=True)


def test_one_group_says_as_little_as_one_photo() -> None:
    assert in_groups([40], [40]) == pytest.approx(of(1, 1))
    low, high = in_groups([39], [40])
    assert low < 0.03 and high > 0.99


def test_the_share_lies_in_its_interval_where_sizes_speak() -> None:
    low, high = in_groups([1000, *[0] * 10], [1000, *[1] * 10])
    assert low < 0.5 and high >= 1000 / 1010


def test_order_and_names_of_groups_change_nothing() -> None:
    random = np.random.default_rng(0)
    right, groups = random.random(100) < 0.8, random.integers(0, 30, 100)
    order = random.permutation(100)
    expected = share_interval(right, groups)
    assert share_interval(right[order], groups[order] * 7 - 50) == expected
    assert share_interval(right[order], np.array([f"g{n}" for n in groups])[order]) == expected


def effect_by_scipy(right: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """The design effect from the formulas, with scipy's functions on a fine grid."""
    nodes = (np.arange(24) + 0.5) / 24
    p = 1 / (1 + np.exp(-np.linspace(-30, 30, 10_001)))
    chances = []
    for r, weight in zip(nodes**3, 3 * nodes**2, strict=True):
        a, b = p * (1 - r) / r, (1 - p) * (1 - r) / r
        logs = sum(
            np.log(comb(s, m)) + betaln(m + a, s - m + b) - betaln(a, b)
            for m, s in zip(right, sizes, strict=True)
        )
        chances.append(weight * (np.exp(logs) * np.sqrt(p * (1 - p))).sum())
    below = np.cumsum(chances) / sum(chances)
    most, photos = (sizes**2).sum() / sizes.sum(), sizes.sum()
    expected = (most - 1) * nodes[np.searchsorted(below, 0.75)] ** 3
    mean = right.sum() / photos
    variance = ((right - mean * sizes) ** 2).sum() * len(sizes) / (len(sizes) - 1)
    measured = variance / (photos * mean * (1 - mean)) - 1 if 0 < mean < 1 else 0.0
    freedom = max(min((right > 0).sum(), (right < sizes).sum()) - 1, 5)
    student = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
    return float(min(1 + max(expected, measured) * student**2, most))


@pytest.mark.parametrize(
    ("right", "sizes"),
    [
        ([5, 4, 0, 5, 1], [5, 5, 5, 5, 5]),
        ([90, 40, 3, 50, 50], [100, 60, 3, 50, 50]),
        ([50, 200], [70, 210]),
        ([20] * 30 + [17, 19], [20] * 32),
        ([5] * 40, [5] * 40),
    ],
)
def test_groups_have_the_exact_limits_of_fewer_photos(right: list[int], sizes: list[int]) -> None:
    effect = effect_by_scipy(np.array(right), np.array(sizes))
    some, photos = sum(right) / effect, sum(sizes) / effect
    low = stats.beta.ppf(0.025, some, photos - some + 1)
    high = stats.beta.ppf(0.975, some + 1, photos - some) if some < photos else 1.0
    assert in_groups(right, sizes) == pytest.approx((low, high), abs=0.01 * (high - low))


@pytest.mark.parametrize(("accuracy", "correlation"), [(0.8, 0.2), (0.97, 0.5), (0.99, 0.2)])
def test_the_truth_lies_in_the_interval_as_often_as_promised(
    accuracy: float, correlation: float
) -> None:
    random = np.random.default_rng(0)
    a, b = (p * (1 - correlation) / correlation for p in (accuracy, 1 - accuracy))
    held, below = 0, 0
    for _ in range(200):
        right = random.binomial(20, random.beta(a, b, 20))
        low, high = in_groups(right.tolist(), [20] * 20)
        held += low <= accuracy <= high
        below += accuracy < low
    assert held >= 0.92 * 200 and below <= 0.06 * 200


@pytest.mark.parametrize(("right", "groups", "share"), [([], [], 0.95), ([True], [0], 1.0)])
def test_what_is_no_sample_is_refused(right: list[bool], groups: list[int], share: float) -> None:
    with pytest.raises(ValueError, match=r"need as many groups|must lie between"):
        share_interval(np.array(right, dtype=np.bool_), np.array(groups), share=share)
