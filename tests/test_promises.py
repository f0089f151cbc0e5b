"""Promises: thresholds from which answers are right as often as asked."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from fieldguide.analysis import promises
from fieldguide.analysis.promises import DOUBT, NONE, THRESHOLDS, answered, promise


def of(confidence: list[float], right: list[bool], asked: float = 0.95) -> promises.Promise:
    groups = np.arange(len(right))
    return promise(np.array(confidence)[:, None], np.array(right, bool)[:, None], groups, asked)


def test_the_finest_level_that_reaches_the_threshold_answers() -> None:
    confidences = np.array([[0.9, 0.95], [0.4, 0.85], [0.2, 0.3]])
    assert answered(confidences, 0.8).tolist() == [0, 1, NONE]
    assert answered(confidences, 0.0).tolist() == [0, 0, 0]
    assert answered(confidences, None).tolist() == [NONE] * 3


@pytest.mark.parametrize("asked", [0.8, 0.9, 0.95, 0.99])
def test_fewer_photos_than_the_fewest_promise_nothing(asked: float) -> None:
    least = promises.fewest(asked)
    assert of([0.999] * (least - 1), [True] * (least - 1), asked).threshold is None
    assert of([0.999] * least, [True] * least, asked).threshold == 0.0
    assert asked**least <= DOUBT / len(THRESHOLDS) < asked ** (least - 1)


@pytest.mark.parametrize("wrong", [0, 1, 3, 10])
def test_the_test_is_the_exact_binomial_tail_of_whole_numbers(wrong: int) -> None:
    tail = DOUBT / len(THRESHOLDS)
    photos = next(n for n in range(20, 2000) if binom.cdf(wrong, n, 0.05) <= tail)
    for count, expected in ((photos, 0.0), (photos - 1, None)):
        found = of([0.999] * count, [False] * wrong + [True] * (count - wrong))
        assert found.threshold == expected, count


def test_the_lowest_threshold_that_holds_is_taken() -> None:
    sure = of([0.97] * 400 + [0.5] * 400, [True] * 400 + [True, False] * 200)
    assert (sure.threshold, sure.answered, sure.right) == (0.6, 0.5, 1.0)
    assert of([0.97] * 100, [False] * 100).threshold is None
    assert of([], []).threshold is None


def test_photos_of_one_group_promise_as_little_as_one() -> None:
    confidences, right = np.full((400, 1), 0.99), np.ones((400, 1), bool)
    assert promise(confidences, right, np.arange(400), 0.95).threshold == 0.0
    assert promise(confidences, right, np.zeros(400, int), 0.95).threshold is None
    assert promise(confidences, right, np.arange(400) // 40, 0.95).threshold is None


@pytest.mark.parametrize("asked", [0.0, 1.0, math.nan])
def test_shares_outside_are_refused(asked: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        of([0.9], [True], asked)


def drawn(photos: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos of a species and a genus: how sure each is (a little too much) and what is right."""
    rng = np.random.default_rng(seed)
    genus = rng.beta(6, 1, photos)
    confidences = np.stack([genus * rng.beta(5, 1, photos), genus], axis=1)
    draws = rng.uniform(size=photos)[:, None]  # a species that is right has the right genus
    return confidences, draws < confidences**1.05


def test_promises_are_kept() -> None:
    """Of 400 collections, the promise of at most 5 % (here 20, and three deviations) is broken."""
    known, broken, given = drawn(400_000, 0), 0, 0
    for seed in range(1, 401):
        found = promise(*drawn(300, seed), np.arange(300), 0.9)
        level = answered(known[0], found.threshold)
        rows = np.flatnonzero(level != NONE)
        given += len(rows) > 0
        broken += len(rows) > 0 and known[1][rows, level[rows]].mean() < 0.9
    assert given > 100
    assert broken <= 20 + 3 * math.sqrt(20)


def test_each_fold_is_answered_by_the_promise_of_the_others() -> None:
    confidences, right = drawn(900, 5)
    fold_of, groups = np.arange(900) % 3, np.arange(900)
    level = np.full(900, NONE)
    for fold in range(3):
        own = fold_of == fold
        found = promise(confidences[~own], right[~own], groups[~own], 0.9)
        level[own] = answered(confidences[own], found.threshold)
    rows = np.flatnonzero(level != NONE)
    kept = promises.kept(confidences, right, groups, fold_of, 0.9)
    assert kept.answered == len(rows) / 900 > 0.2
    assert kept.right == right[rows, level[rows]].mean()
    assert kept.interval[0] < kept.right < kept.interval[1]
    assert sum(kept.levels) == pytest.approx(kept.answered)
    assert kept.levels[1] == (level == 1).mean() > 0
    nothing = promises.kept(confidences, right, groups, np.zeros(900, int), 0.9)
    assert nothing.answered == 0 and math.isnan(nothing.right) and nothing.interval == (0.0, 1.0)


def test_each_class_has_a_promise_of_its_own() -> None:
    confidences, right = np.full((300, 1), 0.97), np.ones((300, 1), bool)
    predicted = np.repeat([0, 2], [200, 100])
    found = promises.by_class(confidences, right, np.arange(300), predicted, 3, 0.95)
    assert [(each.threshold, each.photos) for each in found] == [(0.0, 200), (None, 0), (None, 100)]
