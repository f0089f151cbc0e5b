"""Sets of classes out of fold, and answering only when sure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.analysis import calibration, conformal, coverage


def predictions(
    photos: int, classes: int, folds: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are right more often than not, classes, and folds of equal kind."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, photos)
    logits = rng.normal(size=(photos, classes))
    logits[np.arange(photos), targets] += 1.5
    return logits, targets, rng.integers(0, folds, photos)


@pytest.mark.parametrize("method", ["split", "adaptive"])
def test_each_fold_is_calibrated_by_the_others_alone(method: conformal.Method) -> None:
    logits, targets, fold_of = predictions(300, 5, 3, seed=1)
    held, sizes = np.empty(300, bool), np.empty(300, int)
    for fold in range(3):
        inside, others = fold_of == fold, fold_of != fold
        temperature = calibration.fit_temperature(logits[others], targets[others])
        scores = conformal.nonconformity(calibration.scaled(logits, temperature), method)
        known = np.sort(scores[np.arange(300), targets][others])
        rank = int(np.ceil(0.9 * (len(known) + 1)))
        sets = scores[inside] <= known[rank - 1]
        held[inside] = sets[np.arange(inside.sum()), targets[inside]]
        sizes[inside] = sets.sum(axis=1)
    (found,) = coverage.out_of_fold(logits, targets, fold_of, coverages=(0.9,), method=method)
    assert found.held == held.mean()
    assert found.size == sizes.mean()
    assert found.empty == (sizes == 0).mean()
    assert found.single == (sizes == 1).mean()


def test_the_order_of_photos_and_the_names_of_folds_do_not_matter() -> None:
    logits, targets, fold_of = predictions(200, 4, 2)
    order = np.random.default_rng(3).permutation(200)
    renamed = 7 - 3 * fold_of
    expected = coverage.out_of_fold(logits, targets, fold_of, coverages=(0.5, 0.9))
    assert expected == coverage.out_of_fold(
        logits[order], targets[order], renamed[order], coverages=(0.5, 0.9)
    )


def test_one_fold_has_no_others_to_be_calibrated_by() -> None:
    logits, targets, _ = predictions(20, 3, 1)
    assert coverage.out_of_fold(logits, targets, np.full(20, 4), coverages=(0.9,)) == []


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=1),
    st.integers(1, 10),
)
def test_answered_is_what_a_threshold_gives(photos: list[tuple[float, bool]], points: int) -> None:
    confidence = np.array([value for value, _ in photos])
    correct = np.array([right for _, right in photos])
    found = coverage.answered(confidence, correct, points=points)
    for share, accuracy, threshold in zip(
        found.share, found.accuracy, found.confidence, strict=True
    ):
        sure = confidence >= threshold
        assert share == pytest.approx(sure.mean())
        assert accuracy == pytest.approx(correct[sure].mean())
    assert len(found.share) <= max(points, 1)
    assert found.share[-1] == 1
    assert (np.diff(found.share) > 0).all()


@pytest.mark.parametrize(("confidence", "correct"), [([], []), ([np.nan], [True])])
def test_answered_refuses_what_it_cannot_rank(confidence: list[float], correct: list[bool]) -> None:
    with pytest.raises(ValueError, match="confidence"):
        coverage.answered(np.array(confidence), np.array(correct, dtype=bool))
