import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.analysis import calibration, metrics


def random_case(
    seed: int, *, photos: int = 400, classes: int = 6, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times too sure: targets are drawn from what they should be."""
    random = np.random.default_rng(seed)
    logits = 2 * temperature * random.normal(size=(photos, classes))
    chances = metrics.softmax(logits / temperature).cumsum(axis=1)
    return logits, (chances < random.random((photos, 1))).sum(axis=1).clip(0, classes - 1)


def loss(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    return metrics.log_loss(calibration.scaled(logits, temperature), targets)


cases = st.builds(
    random_case,
    st.integers(0, 2**32),
    photos=st.integers(60, 200),
    temperature=st.floats(0.6, 4),
)


@pytest.mark.parametrize("seed", range(6))
def test_the_temperature_is_where_a_minimiser_finds_the_least_loss(seed: int) -> None:
    from scipy.optimize import minimize_scalar

    logits, targets = random_case(seed, photos=100, temperature=0.5 + seed / 3)
    found = minimize_scalar(
        lambda log: loss(logits, targets, np.exp(log)),
        bounds=(np.log(0.25), np.log(8)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    assert calibration.fit_temperature(logits, targets) == pytest.approx(np.exp(found.x), rel=1e-4)


def test_classes_ruled_out_are_as_if_they_were_not_there() -> None:
    logits, targets = random_case(1, temperature=2)
    wider = np.concatenate([logits, np.full((len(logits), 2), -np.inf)], axis=1)
    assert calibration.fit_temperature(wider, targets) == pytest.approx(
        calibration.fit_temperature(logits, targets)
    )


def test_a_photo_whose_own_class_is_ruled_out_has_no_say() -> None:
    logits, targets = random_case(2, temperature=2)
    ruled_out = logits.copy()
    ruled_out[np.arange(50), targets[:50]] = -np.inf
    assert calibration.fit_temperature(ruled_out, targets) == pytest.approx(
        calibration.fit_temperature(logits[50:], targets[50:])
    )
    assert calibration.fit_temperature(ruled_out[:50], targets[:50]) == 1


@pytest.mark.parametrize(
    ("logits", "targets", "expected"),
    [
        (np.eye(3), [0, 1, 2], 0.25),  # all right: colder is always better
        (1000 * np.eye(3), [0, 1, 2], 0.25),
        (np.eye(3), [1, 2, 0], 8),  # all wrong: hotter is always better
        (1e5 * np.eye(3), [1, 2, 0], 8),
        (np.zeros((3, 3)), [0, 1, 2], 1),  # no temperature changes a thing
        (np.zeros((3, 1)), [0, 0, 0], 1),
        ([[0, -np.inf], [-np.inf, 0]], [0, 1], 1),
        ([[0, -np.inf], [-np.inf, 0]], [1, 0], 1),
    ],
)
def test_extremes_stay_within_bounds(
    logits: np.ndarray, targets: list[int], expected: float
) -> None:
    assert calibration.fit_temperature(np.array(logits, float), np.array(targets)) == expected


def test_half_precision_and_narrow_targets() -> None:
    logits, targets = random_case(3)
    half, narrow = logits.astype(np.float16), targets.astype(np.int8)
    expected = calibration.fit_temperature(half.astype(np.float64), targets)
    assert calibration.fit_temperature(half, narrow) == expected
    assert calibration.cross_fitted(half, narrow, targets % 3).dtype == np.float64


def test_scaling_keeps_the_order_of_classes_and_one_changes_nothing() -> None:
    logits, _ = random_case(4)
    np.testing.assert_array_equal(calibration.scaled(logits, 1.0), metrics.softmax(logits))
    for temperature in (0.25, 3.0):
        rows = calibration.scaled(logits, temperature)
        np.testing.assert_array_equal(rows.argsort(axis=1), logits.argsort(axis=1))
        np.testing.assert_allclose(rows, metrics.softmax(logits / temperature))
    assert calibration.scaled(np.empty((0, 3)), 2.0).shape == (0, 3)


def test_each_fold_is_scaled_as_fits_the_others() -> None:
    logits, targets = random_case(5, temperature=2)
    fold_of = np.random.default_rng(0).integers(0, 3, len(targets)) * 5 - 2
    probabilities = calibration.cross_fitted(logits, targets, fold_of)
    for fold in (-2, 3, 8):
        inside = fold_of == fold
        temperature = calibration.fit_temperature(logits[~inside], targets[~inside])
        np.testing.assert_array_equal(
            probabilities[inside], calibration.scaled(logits[inside], temperature)
        )


def test_one_fold_alone_is_left_as_it_is() -> None:
    logits, targets = random_case(8, temperature=3)
    np.testing.assert_array_equal(
        calibration.cross_fitted(logits, targets, np.full(len(targets), 4)),
        metrics.softmax(logits),
    )


@given(cases, st.integers(1, 20))
def test_the_gaps_of_the_bins_sum_to_the_calibration_error(
    case: tuple[np.ndarray, np.ndarray], bins: int
) -> None:
    probabilities, targets = metrics.softmax(case[0]), case[1]
    found = calibration.reliability(probabilities, targets, bins=bins)
    gaps = np.abs(found.accuracy - found.confidence) * found.photos
    assert gaps.sum() / len(targets) == pytest.approx(
        metrics.calibration_error(probabilities, targets, bins=bins)
    )
    assert found.photos.sum() == len(targets)
    assert (found.accuracy * found.photos).sum() == pytest.approx(
        len(targets) * metrics.accuracy(probabilities, targets)
    )


def test_bins_from_low_to_high_each_with_its_upper_edge() -> None:
    probabilities = np.array([[0.5, 0.5], [0.4, 0.6], [0.75, 0.25], [0.0, 1.0]])
    found = calibration.reliability(probabilities, np.array([0, 0, 0, 1]), bins=4)
    assert found.photos.tolist() == [0, 1, 2, 1]
    assert found.confidence.tolist() == pytest.approx([0, 0.5, (0.6 + 0.75) / 2, 1])
    assert found.accuracy.tolist() == [0, 1, 0.5, 1]


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.empty((0, 3)), [], r"nothing to measure: scores of shape \(0, 3\)"),
        (np.eye(2), [0, 2], "targets from 0 to 2 for 2 classes"),
        ([[1.0, 0], [np.nan, 1]], [0, 1], "1 of 2 rows are not finite, the first: row 1, nan"),
        ([[-np.inf, -np.inf]], [0], "1 of 1 rows are not finite, the first: row 0, -inf"),
    ],
)
def test_what_cannot_be_calibrated(logits: np.ndarray, targets: list[int], message: str) -> None:
    rows, columns = np.array(logits, float), np.array(targets, dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        calibration.fit_temperature(rows, columns)
    with pytest.raises(ValueError, match=message):
        calibration.cross_fitted(rows, columns, columns)
    with pytest.raises(ValueError, match=message):
        calibration.reliability(rows, columns)


def test_settings_and_lengths_that_cannot_be() -> None:
    for temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"must be positive and finite: {temperature}"):
            calibration.scaled(np.eye(2), temperature)
    with pytest.raises(ValueError, match="bins must be at least 1: 0"):
        calibration.reliability(np.eye(2), np.arange(2), bins=0)
    with pytest.raises(ValueError, match="not probabilities: rows sum to 1 within"):
        calibration.reliability(2 * np.eye(2), np.arange(2))


def test_arguments_are_left_unchanged() -> None:
    logits, targets = random_case(9)
    fold_of = np.arange(len(targets)) % 3
    before = logits.copy(), targets.copy(), fold_of.copy()
    calibration.fit_temperature(logits, targets)
    calibration.cross_fitted(logits, targets, fold_of)
    calibration.reliability(metrics.softmax(logits), targets)
    for each, old in zip((logits, targets, fold_of), before, strict=True):
        np.testing.assert_array_equal(each, old)
