"""Familiarity of photos, and what it is worth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from fieldguide.analysis import unknown


def test_doubt_is_the_entropy() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(unknown.doubt(rows), entropy(rows, axis=1), atol=1e-12)
    assert unknown.doubt(rows[None]).shape == (1, 3)


def test_familiarity_is_the_share_of_known_photos_below() -> None:
    known = np.array([0.1, 0.2, 0.2, 0.4])
    found = unknown.familiarity(np.array([[0.05, 0.2, 0.3, 9.0]]), known, np.zeros(4, int))
    np.testing.assert_allclose(found, np.array([5, 4, 2, 1]) / 5)


def test_each_member_is_compared_with_the_photos_it_judged() -> None:
    known, members = np.array([0.1, 0.3, 10.0, 30.0]), np.array([0, 0, 1, 1])
    found = unknown.familiarity(np.array([[0.2], [20.0]]), known, members)
    assert found.tolist() == [(1 + 1 + 1) / 5]


def test_known_photos_are_marked_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    shares = [
        (
            unknown.familiarity(
                rng.gamma(2, size=(1, 200)), rng.gamma(2, size=99), np.zeros(99, int)
            )
            <= 0.05
        )
        for _ in range(400)
    ]
    assert np.mean(shares) == pytest.approx(0.05, abs=0.005)


def test_no_known_photos_are_refused() -> None:
    with pytest.raises(ValueError, match="no known photos"):
        unknown.familiarity(np.zeros((1, 3)), np.empty(0), np.empty(0, int))


def test_the_area_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    known, strange = rng.normal(size=500), rng.normal(1, 1, size=60)
    familiar = unknown.familiarity(strange[None], known, np.zeros(500, int))
    found = unknown.worth(familiar, np.arange(60) // 6, np.full(60, 500))
    area = roc_auc_score(np.repeat([0, 1], [500, 60]), np.concatenate([known, strange]))
    assert found.auroc == pytest.approx(area, abs=0.003)  # the photo itself is counted as known
    assert found.found == (strange >= np.quantile(known, 1 - 0.05 * 501 / 500 + 1 / 500)).mean()
    assert (found.photos, found.groups) == (60, 10)
    assert found.auroc_interval[0] < found.auroc < found.auroc_interval[1]
    assert found.found_interval[0] < found.found < found.found_interval[1]


def test_few_known_photos_do_not_lower_the_worth() -> None:
    """Perfectly told apart, from 15 known photos, of which none can be marked at 5 %."""
    familiar = unknown.familiarity(np.full((1, 8), 9.0), np.arange(15.0) / 15, np.zeros(15, int))
    found = unknown.worth(familiar, np.arange(8) // 2, np.full(8, 15))
    assert found.auroc == 1 and found.auroc_interval[1] == 1
    assert found.found is None and found.found_interval is None
    both = unknown.worth(np.append(familiar, 0.01), np.arange(9), np.append(np.full(8, 15), 99))
    assert both.found == 1 and both.photos == 9  # that of the one which could be marked


@given(st.integers(0, 40), st.integers(3, 6))
def test_blocks_leave_each_class_out_once(classes: int, most: int) -> None:
    found = unknown.blocks(classes, most)
    if classes < 3:
        assert found == []
        return
    assert sorted(number for block in found for number in block) == list(range(classes))
    assert all(classes - len(block) >= 2 for block in found)
    assert len(found) == min(most, classes)


def test_classes_left_out_are_compared_with_the_others() -> None:
    targets = np.array([0, 0, 1, 1, 2, 2])
    doubts = np.array([[5, 0], [6, 0], [1, 7], [2, 8], [9, 3], [9, 4]], float)
    found = unknown.left_out(doubts, targets, [[0, 2], [1]])
    assert [each.tolist() for each in found[0]] == [[1 / 3] * 4, [0, 0, 2, 2], [2] * 4]
    assert [each.tolist() for each in found[1]] == [[1 / 5] * 2, [1, 1], [4, 4]]
    assert unknown.left_out(doubts[:2], targets[:2], [[0, 2], [1]]) == []
