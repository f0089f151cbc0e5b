import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.analysis import metrics
from fieldguide.analysis.intervals import class_mean_interval, mean_interval, share_interval


def random_case(seed: int, *, photos: int = 200, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than not; the last class is never true, sometimes chosen."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes - 1, photos)
    logits = random.normal(size=(photos, classes))
    logits[np.arange(photos), targets] += 1
    return logits, targets


cases = st.builds(random_case, st.integers(0, 2**32), photos=st.integers(1, 60))


# --- against scikit-learn --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("photos", [3, 300])
def test_equal_to_scikit_learn(seed: int, photos: int) -> None:
    from sklearn import metrics as reference

    logits, targets = random_case(seed, photos=photos)
    predicted, labels = logits.argmax(axis=1), list(range(7))
    with warnings.catch_warnings():  # it warns of predicted classes without a photo: there is one
        warnings.simplefilter("ignore")
        balanced = reference.balanced_accuracy_score(targets, predicted)
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        targets, predicted, labels=labels, zero_division=0
    )
    ours = metrics.per_class(logits, targets)

    assert metrics.accuracy(logits, targets) == reference.accuracy_score(targets, predicted)
    assert metrics.balanced_accuracy(logits, targets) == pytest.approx(balanced)
    assert metrics.macro_f1(logits, targets) == pytest.approx(
        reference.f1_score(targets, predicted, average="macro", zero_division=0)
    )
    assert metrics.log_loss(metrics.softmax(logits), targets) == pytest.approx(
        reference.log_loss(targets, metrics.softmax(logits), labels=labels)
    )
    for k in (1, 2, 5):
        assert metrics.top_k_accuracy(logits, targets, k=k) == reference.top_k_accuracy_score(
            targets, logits, k=k, labels=labels
        )
    np.testing.assert_allclose(ours.precision, precision)
    np.testing.assert_allclose(ours.recall, recall)
    np.testing.assert_allclose(ours.f1, f1)
    np.testing.assert_array_equal(ours.support, support)


def test_the_case_has_a_class_that_is_predicted_and_never_true() -> None:
    logits, targets = random_case(0)
    assert 6 not in targets
    assert 6 in logits.argmax(axis=1)


@given(cases)
def test_softmax_rows_are_probabilities_in_the_order_of_the_logits(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    logits, _ = case
    probabilities = metrics.softmax(logits)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert (probabilities > 0).all()
    np.testing.assert_array_equal(probabilities.argsort(axis=1), logits.argsort(axis=1))
    np.testing.assert_allclose(metrics.softmax(logits + 1000), probabilities, rtol=1e-9)


@given(cases, st.integers(1, 9))
def test_more_guesses_are_never_worse(case: tuple[np.ndarray, np.ndarray], k: int) -> None:
    logits, targets = case
    ties = np.round(logits)
    assert metrics.top_k_accuracy(ties, targets, k=1) == metrics.accuracy(ties, targets)
    few, many = (metrics.top_k_accuracy(ties, targets, k=each) for each in (k, k + 1))
    assert few <= many
    assert metrics.top_k_accuracy(ties, targets, k=7) == 1


@given(cases, st.integers(1, 20))
def test_calibration_error_is_the_sum_over_bins(
    case: tuple[np.ndarray, np.ndarray], bins: int
) -> None:
    probabilities, targets = metrics.softmax(case[0]), case[1]
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    expected = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            gap = (predicted == targets)[inside].mean() - confidence[inside].mean()
            expected += inside.mean() * abs(gap)
    assert metrics.calibration_error(probabilities, targets, bins=bins) == pytest.approx(expected)


def test_all_right_and_all_wrong() -> None:
    sure, targets = np.eye(4), np.arange(4)
    wrong = (targets + 1) % 4
    for measure in (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1):
        assert measure(sure, targets) == 1
        assert measure(sure, wrong) == 0
    assert metrics.log_loss(sure, targets) == 0
    assert metrics.log_loss(sure, wrong) == pytest.approx(52 * np.log(2))
    assert metrics.calibration_error(sure, targets) == 0
    assert metrics.calibration_error(sure, wrong) == 1


def test_a_uniform_guess() -> None:
    guess = np.full((8, 4), 0.25)
    targets = np.arange(8) % 4
    assert metrics.log_loss(guess, targets) == pytest.approx(np.log(4))
    assert metrics.accuracy(guess, targets) == 0.25  # the first of equal scores wins
    assert metrics.calibration_error(guess, targets) == 0


def test_a_class_without_photos_counts_only_where_it_was_predicted() -> None:
    scores = np.array([[2.0, 1, 0], [2, 1, 0], [1, 2, 0]])
    targets = np.array([0, 0, 0])
    assert metrics.balanced_accuracy(scores, targets) == 2 / 3  # class 0 alone
    assert metrics.macro_f1(scores, targets) == pytest.approx((4 / 5 + 0) / 2)  # classes 0 and 1
    each = metrics.per_class(scores, targets)
    assert each.recall.tolist() == [2 / 3, 0, 0]
    assert each.precision.tolist() == [1, 0, 0]
    assert each.support.tolist() == [3, 0, 0]


def test_softmax_of_extreme_logits_and_of_no_rows() -> None:
    huge = np.array([[1e5, 0, -np.inf], [-1e38, -1e38, -1e38]], dtype=np.float32)
    assert metrics.softmax(huge).tolist() == [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert metrics.softmax(huge).dtype == np.float64
    assert metrics.softmax(np.empty((0, 3))).shape == (0, 3)


def test_half_precision_and_narrow_targets() -> None:
    logits, targets = random_case(3)
    half = metrics.softmax(logits).astype(np.float16)
    for measure in MEASURES:
        narrow = measure(half, targets.astype(np.int8))
        assert narrow == pytest.approx(measure(half.astype(np.float64), targets), abs=1e-3)


def test_arguments_are_left_unchanged() -> None:
    probabilities, targets = metrics.softmax(random_case(0)[0]), random_case(0)[1]
    before = probabilities.copy(), targets.copy()
    metrics.softmax(probabilities)
    for measure in MEASURES:
        measure(probabilities, targets)
    np.testing.assert_array_equal(probabilities, before[0])
    np.testing.assert_array_equal(targets, before[1])


MEASURES: list[Callable[[np.ndarray, np.ndarray], float]] = [
    metrics.accuracy,
    metrics.balanced_accuracy,
    metrics.macro_f1,
    metrics.top_k_accuracy,
    metrics.log_loss,
    metrics.calibration_error,
]


@pytest.mark.parametrize("measure", [*MEASURES, metrics.per_class])
@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.empty((0, 3)), [], r"nothing to measure: scores of shape \(0, 3\)"),
        (np.empty((1, 0)), [0], "nothing to measure"),
        (np.eye(2), [0, 2], "targets from 0 to 2 for 2 classes"),
        (np.eye(2), [-1, 1], "targets from -1 to 1 for 2 classes"),
        ([[1.0, 0], [np.nan, 1]], [0, 1], "1 of 2 rows are not finite, the first: row 1, nan"),
        ([[np.inf, 0]], [0], "1 of 1 rows are not finite, the first: row 0, inf"),
    ],
)
def test_what_cannot_be_measured(
    measure: Callable[[np.ndarray, np.ndarray], float],
    scores: np.ndarray,
    targets: list[int],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(np.array(scores), np.array(targets, dtype=np.int64))


@pytest.mark.parametrize("measure", [metrics.log_loss, metrics.calibration_error])
def test_logits_are_no_probabilities(measure: Callable[[np.ndarray, np.ndarray], float]) -> None:
    for rows in ([[2.0, 1.0]], [[1.5, -0.5]]):
        with pytest.raises(ValueError, match="not probabilities: rows sum to 1 within"):
            measure(np.array(rows), np.array([0]))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="k must be at least 1: 0"):
        metrics.top_k_accuracy(np.eye(2), np.arange(2), k=0)
    with pytest.raises(ValueError, match="bins must be at least 1: 0"):
        metrics.calibration_error(np.eye(2), np.arange(2), bins=0)
    with pytest.raises(ValueError, match="no classes"):
        metrics.softmax(np.empty((2, 0)))
    with pytest.raises(ValueError, match="not finite"):
        metrics.softmax(np.full((1, 2), -np.inf))


def grouped_case(
    seed: int, *, photos: int = 150, classes: int = 7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, targets = random_case(seed, photos=photos, classes=classes)
    groups = np.random.default_rng(seed).integers(0, photos // 2 + 1, photos) * 3 - 50
    return metrics.softmax(logits), targets, groups


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1"])
@pytest.mark.parametrize(("seed", "photos"), [(0, 12), (1, 40), (2, 150)])
def test_means_over_classes_have_the_limits_of_a_share_by_the_jackknife(
    name: str, seed: int, photos: int
) -> None:
    probabilities, targets, groups = grouped_case(seed, photos=photos)
    names = np.unique(groups)

    def measure(scores: np.ndarray, targets: np.ndarray) -> float:
        """The mean over the classes that have photos."""
        found = metrics.per_class(scores, targets)
        each = found.recall if name == "balanced_accuracy" else found.f1
        return float(each[found.support > 0].mean())

    kept = [groups != each for each in names]
    without = np.array([measure(probabilities[each], targets[each]) for each in kept])
    expected = class_mean_interval(
        np.append(measure(probabilities, targets), without),
        probabilities.argmax(axis=1) == targets,
        targets,
        groups,
        share=0.9,
    )
    found = metrics.score_intervals(probabilities, targets, groups, share=0.9)
    low = min(expected[0], getattr(metrics, name)(probabilities, targets))
    assert found[name] == pytest.approx((low, expected[1]), abs=1e-12)


def test_shares_and_means_over_photos_have_intervals_of_their_own() -> None:
    probabilities, targets, groups = grouped_case(3)
    found = metrics.score_intervals(probabilities, targets, groups, share=0.8)
    own = np.take_along_axis(probabilities, targets[:, None], axis=1)
    shares = {
        "accuracy": probabilities.argmax(axis=1) == targets,
        "top_5_accuracy": (probabilities > own).sum(axis=1) < 5,
    }
    for name, each in shares.items():
        assert found[name] == share_interval(each, groups, share=0.8)
    losses = -np.log(own[:, 0])
    bounds = (0.0, -np.log(np.finfo(np.float64).eps))
    expected = mean_interval(losses, groups, bounds=bounds, share=0.8)
    assert found["log_loss"] == expected


def test_every_interval_holds_its_score_and_widens_with_its_share() -> None:
    probabilities, targets, groups = grouped_case(4, photos=1000)
    found = metrics.score_intervals(probabilities, targets, groups)
    wider = metrics.score_intervals(probabilities, targets, groups, share=0.999)
    assert list(found) == [
        "accuracy",
        "log_loss",
        "balanced_accuracy",
        "macro_f1",
        "top_5_accuracy",
    ]
    for name, (low, high) in found.items():
        measure = metrics.top_k_accuracy if name == "top_5_accuracy" else getattr(metrics, name)
        assert wider[name][0] <= low <= measure(probabilities, targets) < high < wider[name][1]


def test_intervals_depend_on_values_alone() -> None:
    probabilities, targets, groups = grouped_case(5)
    order = np.random.default_rng(0).permutation(len(targets))
    expected = metrics.score_intervals(probabilities, targets, groups)
    shuffled = probabilities[order], targets[order].astype(np.int8), groups[order] + 9
    found = metrics.score_intervals(*shuffled)
    assert found == {name: pytest.approx(each) for name, each in expected.items()}


def test_five_classes_or_fewer_have_no_top_five() -> None:
    five = metrics.score_intervals(*grouped_case(6, classes=5))
    six = metrics.score_intervals(*grouped_case(6, classes=6))
    assert set(six) - set(five) == {"top_5_accuracy"}


def test_one_group_says_as_little_as_one_photo() -> None:
    probabilities, targets, _ = grouped_case(7, photos=20)
    found = metrics.score_intervals(probabilities, targets, np.zeros(20, dtype=np.int64))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert found[name][0] < 0.05 and found[name][1] > 0.95
    assert found["log_loss"] == pytest.approx((0, 36.04), abs=0.01)
    alone = metrics.score_intervals(np.eye(2)[:1], np.array([1]), np.array([4]))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert alone[name] == pytest.approx((0, 0.975), abs=1e-3)


def test_narrow_targets_of_many_classes() -> None:
    probabilities = np.full((200, 3000), 1 / 3000)
    probabilities[:, 2999] += 0.5
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    targets = np.full(200, 100, dtype=np.int8)
    found = metrics.score_intervals(probabilities, targets, np.arange(200))
    assert (
        found["balanced_accuracy"]
        == found["macro_f1"]
        == share_interval(targets < 0, targets + np.arange(200))
    )
    targets = np.where(np.arange(200) < 100, 2999, 0).astype(np.int16)
    found = metrics.score_intervals(probabilities, targets, np.arange(200))
    low, high = share_interval(targets > 0, np.arange(200))  # one class always found, one never
    assert found["balanced_accuracy"] == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("probabilities", "options", "message"),
    [
        (np.empty((0, 2)), {}, "nothing to measure"),
        ([[2.0, 1.0]], {}, "not probabilities: rows sum to 1 within"),
        ([[1.0, 0.0]], {"share": 1.0}, "share must lie between 0 and 1: 1.0"),
    ],
)
def test_score_intervals_that_cannot_be(
    probabilities: list[list[float]], options: dict[str, float], message: str
) -> None:
    rows = np.array(probabilities)
    zeros = np.zeros(len(rows), dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        metrics.score_intervals(rows, zeros, zeros, **options)


def test_each_confidence_has_one_bin() -> None:
    confidence = np.array([0.0, 0.2, 0.25, 0.26, 0.5, 0.99, 1.0])
    assert metrics.confidence_bins(confidence, 4).tolist() == [0, 0, 0, 1, 1, 3, 3]
    with pytest.raises(ValueError, match="bins must be at least 1: 0"):
        metrics.confidence_bins(confidence, 0)


def test_not_a_number_is_no_probability() -> None:
    metrics.check_probabilities(np.array([[0.25, 0.75]]))
    with pytest.raises(ValueError, match="not probabilities: rows sum to 1 within nan"):
        metrics.check_probabilities(np.array([[0.5, 0.5], [np.nan, 1]]))
