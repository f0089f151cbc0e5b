import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import binomtest, false_discovery_control

from fieldguide.analysis import paired
from fieldguide.analysis.intervals import share_interval

Answers = NDArray[np.bool_]


def answers(*shape: int, share: float = 0.8, seed: int = 0) -> Answers:
    return np.random.default_rng(seed).random(shape) < share


def numbers(n: int, groups: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, groups, n)


@st.composite
def three(draw: st.DrawFn) -> tuple[Answers, Answers, NDArray[np.int64]]:
    """One's answers, the other's, and groups of one photo or more."""
    n = draw(st.integers(1, 12))
    bits = st.lists(st.booleans(), min_size=n, max_size=n)
    groups = st.lists(st.integers(-2, 5), min_size=n, max_size=n)
    return np.array(draw(bits)), np.array(draw(bits)), np.array(draw(groups))


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 1), (3, 3), (1, 9), (40, 61), (700, 800)])
def test_mcnemar_is_the_binomial_test_of_photos_that_one_alone_gets_right(
    one: int, other: int
) -> None:
    first = np.repeat([True, False, True, False], [one, other, 50, 7])
    second = np.repeat([False, True, True, False], [one, other, 50, 7])
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert paired.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@given(three())
def test_sign_flip_is_what_trying_all_signs_gives(
    case: tuple[Answers, Answers, NDArray[np.int64]],
) -> None:
    one, other, groups = case
    sums = [
        int(one[groups == group].sum()) - int(other[groups == group].sum())
        for group in np.unique(groups)
    ]
    all_signs = list(itertools.product((-1, 1), repeat=len(sums)))
    totals = [abs(np.dot(signs, sums)) for signs in all_signs]
    expected = np.mean([total >= abs(sum(sums)) for total in totals])
    assert paired.sign_flip(one, other, groups) == pytest.approx(expected)


@given(three())
def test_alone_in_their_groups_photos_are_judged_by_mcnemar(
    case: tuple[Answers, Answers, NDArray[np.int64]],
) -> None:
    one, other, _ = case
    own = np.arange(len(one))[::-1].copy() * 7
    assert paired.sign_flip(one, other, own) == paired.mcnemar(one, other)


def test_a_hundred_thousand_photos_are_counted_exactly() -> None:
    one, other = answers(100_000, seed=5), answers(100_000, share=0.799, seed=6)
    expected = binomtest(int((one & ~other).sum()), int((one ^ other).sum())).pvalue
    assert paired.sign_flip(one, other, np.arange(100_000)) == pytest.approx(expected, rel=1e-9)


def test_without_answers_nothing_is_compared() -> None:
    with pytest.raises(ValueError, match="no answers"):
        paired.mcnemar(answers(0), answers(0))


def test_difference_is_that_of_the_accuracies_within_its_interval() -> None:
    one, other, groups = answers(400, seed=1), answers(400, share=0.7, seed=2), numbers(400, 200)
    mean, low, high = paired.difference(one, other, groups)
    assert mean == pytest.approx(one.mean() - other.mean())
    assert low < mean < high
    back = paired.difference(other, one, groups)
    assert back[0] == pytest.approx(-mean)


def test_all_pairs_are_tested_on_whole_groups() -> None:
    random, groups = np.random.default_rng(0), np.repeat(np.arange(100), 3)
    one = 2 * (random.random(300) < 0.9)
    answers = {"worse": 2 * (random.random(300) < 0.6), "one": one, "other": one.copy()}
    answers["mean"] = (answers["worse"] + one) // 2
    found = paired.better(answers, groups)
    assert set(found["one"]) == set(found["other"]) == {"worse", "mean"}
    assert found["mean"] == ("worse",) and found["worse"] == ()
    assert paired.better({"one": one}, groups) == {"one": ()}


def test_pairing_narrows_the_interval() -> None:
    one = answers(1000, seed=1)
    other = one ^ answers(1000, share=0.02, seed=2)  # wrong on other photos than one, now and then
    _, low, high = paired.difference(one, other, np.arange(1000))
    alone = share_interval(one, np.arange(1000))
    assert high - low < (alone[1] - alone[0]) / 2


def test_copies_do_not_narrow_the_interval() -> None:
    one, other, groups = answers(60, seed=1), answers(60, share=0.6, seed=2), np.arange(60)
    single = paired.difference(one, other, groups)
    copied = paired.difference(*(np.repeat(values, 9) for values in (one, other, groups)))
    assert copied[0] == pytest.approx(single[0])
    assert copied[2] - copied[1] > 0.8 * (
        single[2] - single[1]
    )  # the ninth part if they were photos


def test_where_nothing_differs_the_difference_is_in_doubt_all_the_same() -> None:
    one = answers(100, seed=1)
    mean, low, high = paired.difference(one, one, np.arange(100))
    assert mean == 0 and low == -high
    assert high == pytest.approx(stats.beta.ppf(0.975, 1, 100), rel=1e-2)


@pytest.mark.parametrize("size", [1, 10])
def test_the_interval_of_a_difference_holds_the_true_one(size: int) -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), size)
    held = []
    for _ in range(300):  # a quarter of groups is hard for either: true difference 0.05
        hard, chance = random.random(30) < 0.25, random.random((2, 30 * size))
        right = chance > np.where(hard, 0.6, np.array([[0.1], [0.1667]]).repeat(30, 1)).repeat(
            size, 1
        )
        _, low, high = paired.difference(right[0], right[1], groups)
        held.append(low <= 0.75 * 0.0667 <= high)
    assert np.mean(held) >= 0.93


def holm_step_by_step(p_values: list[float], level: float) -> list[bool]:
    """Holm's procedure in his words: from the smallest on, until one is not small enough."""
    rejected = [False] * len(p_values)
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] > level / (len(p_values) - rank):
            break
        rejected[place] = True
    return rejected


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_his_procedure_rejects(p_values: list[float], level: float) -> None:
    adjusted = paired.holm(p_values)
    close = any(abs(p - level) < 1e-12 for p in adjusted)
    assert close or [p <= level for p in adjusted] == holm_step_by_step(p_values, level)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


def test_holm_of_one_changes_nothing_and_is_stricter_than_controlling_false_discoveries() -> None:
    assert paired.holm([]) == []
    assert paired.holm([0.03]) == [0.03]
    p = [0.01, 0.04, 0.03, 0.005]
    assert paired.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert all(np.array(paired.holm(p)) >= false_discovery_control(p) - 1e-12)


def test_contrasts_are_corrected_for_each_other_and_say_which_way() -> None:
    base = answers(2000, share=0.7, seed=1)
    better, worse = base | answers(2000, share=0.2, seed=2), base & answers(2000, seed=3)
    groups = np.arange(2000)
    found = paired.contrasts(base, [better, base.copy(), worse], groups)
    assert [each.verdict for each in found] == ["better", "no difference shown", "worse"]
    assert [each.adjusted for each in found] == paired.holm([each.p for each in found])
    assert found[0].p == paired.sign_flip(better, base, groups)
    assert (found[0].difference, found[0].low, found[0].high) == paired.difference(
        better, base, groups
    )
    assert paired.contrasts(base, [], groups) == []


def test_a_difference_that_is_shown_alone_may_not_be_among_many() -> None:
    base = np.zeros(200, dtype=bool)
    one = base.copy()
    one[:6] = True  # p = 2 / 2⁶
    alone = paired.contrasts(base, [one], np.arange(200))
    many = paired.contrasts(base, [one, base.copy(), base.copy()], np.arange(200))
    assert alone[0].verdict == "better"
    assert many[0].verdict == "no difference shown"


# --- over photos and seeds ------------------------------------------------------------------------


def trained(
    seeds: int, chance: NDArray[np.float64], luck: float, draw: np.random.Generator
) -> Answers:
    """Answers of networks whose seed is worth `luck` (a standard deviation, in accuracy)."""
    moved = chance + luck * draw.standard_normal((seeds, 1))
    return draw.random((seeds, len(chance))) < moved


@pytest.mark.parametrize(("groups", "luck"), [(400, 0.0), (400, 0.05), (80, 0.02)])
def test_recipes_that_are_alike_are_called_different_as_rarely_as_promised(
    groups: int, luck: float
) -> None:
    draw = np.random.default_rng(0)
    group_of = np.arange(400) % groups
    calls = 0
    for _ in range(400):
        chance = draw.beta(6, 2, groups)[group_of]
        base, other = (trained(3, chance, luck, draw) for _ in range(2))
        [found] = paired.contrasts_over_seeds(base, [other], group_of)
        calls += found.verdict != "no difference shown"
    assert 0.01 <= calls / 400 <= 0.08


def test_a_lucky_seed_makes_no_recipe_better() -> None:
    draw = np.random.default_rng(0)
    base = draw.random((3, 1000)) < np.array([[0.9], [0.8], [0.8]])
    other = draw.random((3, 1000)) < np.array([[0.9], [0.9], [0.8]])
    groups = np.arange(1000)
    assert paired.contrasts(base[1], [other[1]], groups)[0].verdict == "better"
    [found] = paired.contrasts_over_seeds(base, [other], groups)
    assert found.verdict == "no difference shown" and found.low < 0 < found.high
    [sure] = paired.contrasts_over_seeds(base[1:], [draw.random((2, 1000)) < 0.97], groups)
    assert sure.verdict == "better" and 0.1 < sure.low < sure.difference < sure.high < 0.25


def test_without_a_seeds_luck_it_is_the_t_test_of_photos() -> None:
    """Both answer the same with every seed: what differs between photos is all that is left."""
    base, other = (np.tile(answers(1, 60, seed=seed), (3, 1)) for seed in (0, 1))
    [found] = paired.contrasts_over_seeds(base, [other], np.arange(60))
    expected = stats.ttest_rel(other[0].astype(float), base[0].astype(float))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-4)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)


def test_the_same_answers_are_no_difference_and_one_seed_no_sample() -> None:
    same = np.tile(answers(1, 50), (2, 1))
    [found] = paired.contrasts_over_seeds(same, [same], np.arange(50))
    assert (found.difference, found.p, found.verdict) == (0, 1, "no difference shown")
    with pytest.raises(ValueError, match="at least two of them: 1"):
        paired.contrasts_over_seeds(same[:1], [same[:1]], np.arange(50))


# --- the best of several --------------------------------------------------------------------------


def test_the_best_is_the_first_of_equals() -> None:
    right = answers(50)
    assert paired.best(np.stack([~right, right, right])) == 1


def test_choosing_from_one_is_worth_its_accuracy() -> None:
    right = answers(1, 500)
    found = paired.bias_corrected_best(right, np.arange(500))
    assert found == pytest.approx(right.mean(), abs=0.003)
    copies = np.repeat(right, 7, axis=0)
    assert paired.bias_corrected_best(copies, np.arange(500)) == found


def test_one_that_is_clearly_best_keeps_its_accuracy() -> None:
    right = np.stack([answers(2000, share=0.5), answers(2000, share=0.9, seed=1)])
    found = paired.bias_corrected_best(right, np.arange(2000), draws=200)
    assert found == pytest.approx(right[1].mean(), abs=0.004)


def test_what_is_chosen_is_judged_by_other_groups() -> None:
    """Each trial knows one group by heart: chosen by it, it is wrong on all others."""
    groups = np.repeat(np.arange(4), 10)
    right = np.arange(4)[:, None] == groups
    assert paired.bias_corrected_best(right, groups) == 0


def test_the_seed_decides_the_draws() -> None:
    right, groups = answers(3, 80, seed=2), numbers(80, 30)
    first, again, other = (
        paired.bias_corrected_best(right, groups, draws=50, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("trials", "groups", "draws"), [(0, 9, 10), (2, 1, 10), (2, 9, 0)], ids=str
)
def test_too_little_to_choose_from(trials: int, groups: int, draws: int) -> None:
    with pytest.raises(ValueError, match="too few"):
        paired.bias_corrected_best(answers(trials, 9), np.arange(9) % groups, draws=draws)


@pytest.mark.parametrize(
    ("groups", "gained"), [([0], [0]), ([0] * 10, range(3)), ([0] * 10 + [1] * 10, [0, 1, 10, 11])]
)
def test_few_groups_show_nothing_however_equal_their_gains(
    groups: list[int], gained: Sequence[int]
) -> None:
    base = np.zeros((2, len(groups)), dtype=bool)
    other = base.copy()
    other[:, gained] = True
    [found] = paired.contrasts_over_seeds(base, [other], np.array(groups))
    assert found.verdict == "no difference shown" and found.p >= 0.5
    assert found.low < found.difference <= found.high and found.high > found.low


def test_recipes_without_a_difference_still_have_an_interval() -> None:
    same = np.random.default_rng(1).random((3, 50)) < 0.9
    [found] = paired.contrasts_over_seeds(same, [same], np.arange(50))
    [single] = paired.contrasts(same[0], [same[0]], np.arange(50))
    assert found.p == 1.0 and found.low < 0 < found.high
    still = np.tile(same[:1], (3, 1))
    [found] = paired.contrasts_over_seeds(still, [still], np.arange(50))
    assert (found.low, found.high) == (single.low, single.high)
