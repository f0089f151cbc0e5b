"""Intervals for shares of photos, single and in groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import betaln, comb

from fieldguide.analysis.intervals import (
    class_mean_interval,
    mean_interval,
    new_group_interval,
    share_interval,
    student_quantile,
    student_tails,
)


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


# --- means ----------------------------------------------------------------------------------------


def laid_out(values: np.ndarray, groups: np.ndarray, draws: int) -> tuple[float, float]:
    """The interval by drawing groups one by one, and photos laid out."""
    random = np.random.default_rng(1)
    members = [values[groups == group] for group in np.unique(groups)]

    def of_groups(drawn: list[np.ndarray]) -> tuple[float, float]:
        mean = float(np.concatenate(drawn).mean())
        off = np.array([(each - mean).sum() for each in drawn])
        spread = (off**2).sum() * len(drawn) / (len(drawn) - 1)
        return mean, float(np.sqrt(spread)) / sum(map(len, drawn))

    own, error = of_groups(members)
    found = [
        of_groups([members[n] for n in random.integers(0, len(members), len(members))])
        for _ in range(draws)
    ]
    scores = [(mean - own) / spread for mean, spread in found]
    low, high = np.quantile(scores, [0.025, 0.975])
    return own - high * error, own - low * error


def test_means_have_the_interval_of_drawing_groups_one_by_one() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 40, 120) * 7 - 100
    values = random.exponential(size=120)
    expected = laid_out(values, groups, draws=6000)
    found = mean_interval(values, groups, draws=6000)
    assert found == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))
    assert found[1] - values.mean() > values.mean() - found[0]  # skewed as the values are


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(8, 80))
def test_a_mean_lies_in_its_interval_which_widens_with_its_share(seed: int, photos: int) -> None:
    random = np.random.default_rng(seed)
    values, groups = random.normal(size=photos), random.integers(0, photos, photos)
    low, high = mean_interval(values, groups)
    wide = mean_interval(values, groups, share=0.999)
    assert wide[0] <= low <= values.mean() <= high <= wide[1]


def test_the_interval_of_a_mean_depends_on_values_and_seed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    values, groups, order = random.random(100), random.integers(0, 50, 100), random.permutation(100)
    expected = mean_interval(values, groups)
    assert mean_interval(values[order], groups[order] + 9) == pytest.approx(expected)
    assert mean_interval(values, groups, seed=1) != expected
    monkeypatch.setattr("fieldguide.analysis.intervals._BLOCK", 7 * 50)  # draws in small blocks
    assert mean_interval(values, groups) == pytest.approx(expected)


def test_means_that_say_little() -> None:
    assert mean_interval(np.ones(9), np.arange(9)) == (1, 1)
    one_group = np.array([1.0, 0.0]), np.zeros(2, dtype=np.int64)
    assert mean_interval(*one_group, bounds=(0.0, 36.0)) == (0, 36)
    low, high = mean_interval(np.array([0.1, 0.4]), np.arange(2), bounds=(0.0, 36.0))
    assert (low, high) == (0, 36)  # most draws of two groups are of one


def test_a_million_photos_have_a_mean_of_the_normal_distribution() -> None:
    right = (np.arange(1_000_000) % 10 > 0).astype(np.float64)
    spread = 1.96 * np.sqrt(0.9 * 0.1 / 1_000_000)
    found = mean_interval(right, np.arange(1_000_000))
    assert found == pytest.approx((0.9 - spread, 0.9 + spread), abs=0.1 * spread)


@pytest.mark.parametrize(
    ("values", "groups", "options", "message"),
    [
        ([], [], {}, "need as many groups as photos"),
        ([np.nan, 1.0], [0, 1], {}, "need finite values"),
        ([1.0], [0], {"share": 1.0}, "share must lie between 0 and 1: 1.0"),
        ([1.0], [0], {"draws": 0}, "a draw: 0 draws"),
    ],
)
def test_what_has_no_mean_is_refused(
    values: list[float], groups: list[int], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(np.array(values), np.array(groups, dtype=np.int64), **options)


def test_even_classes_without_mistakes_have_the_limits_of_the_share() -> None:
    classes, groups = np.arange(40) % 4, np.arange(40)
    right = np.ones(40, dtype=bool)
    found = class_mean_interval(np.ones(41), right, classes, groups)
    assert found == pytest.approx(of(40, 40))


def test_rare_classes_make_their_mean_less_sure() -> None:
    classes = np.repeat([0, 1], [90, 10])
    right, groups = np.ones(100, dtype=bool), np.arange(100)
    low, _ = class_mean_interval(np.ones(101), right, classes, groups)
    # Kish: 100 · (90 / 90² + 10 / 10²) / 2² = 2.78 photos count as one.
    assert low == pytest.approx(stats.beta.ppf(0.025, 36, 1), abs=1e-3)


@pytest.mark.parametrize("freedom", [1.0, 2.0, 5.3, 100.0, 999.0, 1001.0, 1e5])
def test_students_distribution_is_that_of_scipy(freedom: float) -> None:
    for share in (0.8, 0.95, 0.999):
        expected = stats.t.ppf((1 + share) / 2, freedom)
        assert student_quantile(freedom, share) == pytest.approx(expected, rel=1e-3)
    assert student_tails(-2.1, freedom) == pytest.approx(2 * stats.t.sf(2.1, freedom), rel=1e-3)


# --- one new group --------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "correlation"), [(0.8, 0.3), (0.95, 0.1), (0.7, 0.02)])
def test_a_new_group_lies_in_its_interval_as_often_as_promised(
    mean: float, correlation: float
) -> None:
    draw, scale = np.random.default_rng(0), (1 - correlation) / correlation
    held = []
    for _ in range(40):
        shares = draw.beta(mean * scale, (1 - mean) * scale, 40)
        right = draw.binomial(10, shares[:30])
        low, high = new_group_interval(
            (np.arange(10) < right[:, None]).ravel(), np.repeat(np.arange(30), 10)
        )
        held.append(np.mean((low <= shares[30:]) & (shares[30:] <= high)))
    assert np.mean(held) >= 0.92


def test_few_groups_say_little_of_a_new_one_and_many_what_they_are() -> None:
    low, high = new_group_interval(np.arange(10) < 9, np.zeros(10, dtype=np.int64))
    assert low < 0.1 and high > 0.99
    alike = new_group_interval(np.arange(4000) % 10 > 0, np.arange(4000) // 10)
    assert 0.85 < alike[0] < 0.9 < alike[1] < 0.95
    apart = new_group_interval(np.arange(4000) // 10 % 10 > 0, np.arange(4000) // 10)
    assert apart[0] < 0.01 and apart[1] > 0.99


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_new_group_is_at_least_as_unsure_as_the_mean(seed: int) -> None:
    draw = np.random.default_rng(seed)
    right, groups = draw.random(60) < draw.random(), draw.integers(0, 12, 60)
    low, high = new_group_interval(right, groups)
    assert 0 <= low < high <= 1
    assert low <= np.clip(right.mean(), 0.02, 0.98) <= high
