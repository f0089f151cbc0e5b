import itertools
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from fieldguide.analysis import metrics
from fieldguide.analysis import suspects as analysis
from fieldguide.analysis.suspects import (
    confused_pairs,
    hard_photos,
    suspects,
    unsteady_classes,
)


def random_case(
    seed: int, *, photos: int = 300, classes: int = 6, swapped: float = 0.1, sure: float = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that mostly know the class, and labels of which a share was drawn anew.

    The last class has no photo.
    """
    random = np.random.default_rng(seed)
    true = random.integers(0, classes - 1, photos)
    logits = random.normal(size=(photos, classes)) * 1.5
    logits[np.arange(photos), true] += sure
    anew = random.random(photos) < swapped
    targets = np.where(anew, random.integers(0, classes - 1, photos), true)
    return metrics.softmax(logits), targets


def confident_joint(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The number of photos labelled i (row) that are confidently of class j (column)."""
    counted = analysis._confident_class(probabilities, targets)
    sure, classes = counted >= 0, probabilities.shape[1]
    joint = np.zeros((classes, classes), dtype=int)
    np.add.at(joint, (targets[sure], counted[sure]), 1)
    return joint


cases = st.builds(
    random_case,
    st.integers(0, 2**32),
    photos=st.integers(1, 60),
    swapped=st.sampled_from([0, 0.2, 1]),
    sure=st.sampled_from([0, 1, 4]),
)


# --- against cleanlab -----------------------------------------------------------------------------


def unlike_cleanlab(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rows where the paper and cleanlab count different classes.

    Several classes reach their threshold, but the most probable one does not.
    """
    from cleanlab.count import get_confident_thresholds

    reached = probabilities >= get_confident_thresholds(targets, probabilities) - 1e-6
    best = probabilities.argmax(axis=1)
    return (reached.sum(axis=1) > 1) & ~reached[np.arange(len(best)), best]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sure", [1, 4])
def test_the_joint_is_cleanlabs_but_for_rows_where_it_leaves_the_paper(
    seed: int, sure: float
) -> None:
    from cleanlab.count import compute_confident_joint, get_confident_thresholds

    probabilities, targets = random_case(seed, sure=sure)
    same = ~unlike_cleanlab(probabilities, targets)
    expected = compute_confident_joint(
        targets[same],
        probabilities[same],
        thresholds=get_confident_thresholds(targets, probabilities),
        calibrate=False,
    )
    counted = analysis._confident_class(probabilities, targets)
    ours = np.zeros_like(expected)
    sure_rows = same & (counted >= 0)
    np.add.at(ours, (targets[sure_rows], counted[sure_rows]), 1)
    np.fill_diagonal(ours, ours.diagonal().clip(min=1))  # cleanlab's own, for calibrating
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("seed", range(8))
def test_the_same_suspects_in_the_same_order_as_cleanlab(seed: int) -> None:
    from cleanlab.filter import find_label_issues

    probabilities, targets = random_case(seed)
    assert not unlike_cleanlab(probabilities, targets).any(), "choose another case"
    expected = find_label_issues(
        targets,
        probabilities,
        filter_by="low_self_confidence",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    assert len(expected) > 10
    assert [suspect.photo for suspect in suspects(probabilities, targets)] == expected.tolist()


def test_the_joint_of_small_numbers_is_the_papers() -> None:
    """Worked by hand: thresholds are 0.6 and 0.5; nothing reaches that of the empty class."""
    probabilities = np.array(
        [
            [0.90, 0.05, 0.05],  # labelled 0, is 0
            [0.30, 0.60, 0.10],  # labelled 0, is 1
            [0.60, 0.30, 0.10],  # labelled 1, is 0: 0.6 reaches the mean of 0.9 and 0.3
            [0.20, 0.70, 0.10],  # labelled 1, is 1
            [0.25, 0.50, 0.25],  # labelled 1, is 1: 0.5 reaches the mean of 0.3, 0.7 and 0.5
        ]
    )
    joint = confident_joint(probabilities, np.array([0, 0, 1, 1, 1]))
    np.testing.assert_array_equal(joint, [[1, 1, 0], [1, 2, 0], [0, 0, 0]])


def test_of_several_classes_that_reach_their_threshold_the_most_probable_counts() -> None:
    """Where cleanlab counts class 0, the most probable, though it stays below its threshold."""
    probabilities = np.array(
        [[0.9, 0.1, 0.0], [0.4, 0.35, 0.25], [0.75, 0.1, 0.15]], dtype=np.float64
    )
    targets = np.array([0, 2, 1])
    assert unlike_cleanlab(probabilities, targets).tolist() == [False, True, False]
    assert analysis._confident_class(probabilities, targets)[1] == 1


def test_a_class_that_is_never_thought_of_is_out_of_reach_of_a_probability_of_0() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.45, 0.55, 0.0]])
    joint = confident_joint(probabilities, np.array([0, 1, 2]))
    np.testing.assert_array_equal(joint, [[1, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_swapped_labels_are_found_first_and_named() -> None:
    probabilities, targets = random_case(0, photos=500, classes=10, swapped=0, sure=9)
    given_labels = targets.copy()
    swapped = [3, 77, 250, 400]
    given_labels[swapped] = (targets[swapped] + 1) % 9
    found = suspects(probabilities, given_labels)
    assert {suspect.photo for suspect in found[:4]} == set(swapped)
    assert all(suspect.suggested == targets[suspect.photo] for suspect in found[:4])
    assert all(suspect.given == given_labels[suspect.photo] for suspect in found)


def test_nothing_is_suspected_where_the_model_agrees_or_knows_nothing() -> None:
    targets = np.arange(12) % 3
    assert suspects(np.eye(3)[targets], targets) == []
    assert suspects(np.full((12, 3), 1 / 3), targets) == []


@given(cases)
def test_suspects_are_hard_photos_and_as_many_as_the_joint_says_at_most(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, targets = case
    found = suspects(probabilities, targets)
    joint = confident_joint(probabilities, targets)
    assert len(found) <= joint.sum() - joint.trace() <= len(targets)
    assert [s.photo for s in found] == [h.photo for h in hard_photos(probabilities, targets)][
        : len(found)
    ]
    for suspect in found:
        row = probabilities[suspect.photo]
        assert suspect.suggested == row.argmax() != suspect.given == targets[suspect.photo]
        assert suspect.given_probability == row[suspect.given] < suspect.suggested_probability


@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_photos_changes_nothing(
    case: tuple[np.ndarray, np.ndarray], shuffler: "object"
) -> None:
    probabilities, targets = case
    order = np.random.default_rng(shuffler.getrandbits(32)).permutation(len(targets))  # type: ignore[attr-defined]
    expected = [astuple(s)[1:] for s in suspects(probabilities, targets)]
    found = suspects(probabilities[order], targets[order])
    assert [astuple(s)[1:] for s in found] == expected
    assert all(targets[order][s.photo] == s.given for s in found)


def test_a_photo_that_is_predicted_as_labelled_does_not_count() -> None:
    """The joint counts photo 4 as class 1, of which it is surer than most; photo 5 as neither."""
    own = np.array([1.0, 0.95, 0.8, 0.1, 0.52, 0.4])
    targets = np.array([0, 0, 1, 1, 0, 1])
    probabilities = np.stack([np.where(targets == c, own, 1 - own) for c in (0, 1)], axis=1)
    joint = confident_joint(probabilities, targets)
    np.testing.assert_array_equal(joint, [[2, 1], [1, 1]])
    assert [suspect.photo for suspect in suspects(probabilities, targets)] == [3]


def test_of_equal_probabilities_the_surer_of_another_class_comes_first() -> None:
    probabilities = np.eye(4)[[0, 0, 1, 1, 2, 2]] * 0.96 + 0.01
    probabilities[1] = [0.01, 0.96, 0.02, 0.01]
    probabilities[3] = [0.97, 0.01, 0.01, 0.01]
    found = suspects(probabilities, np.array([0, 0, 1, 1, 2, 2]))
    assert [suspect.photo for suspect in found] == [3, 1]


def test_equal_photos_stay_in_their_order() -> None:
    probabilities = np.repeat([[0.1, 0.9], [0.9, 0.1]], 10, axis=0)
    targets = np.array([0, 0] + [1] * 8 + [0] * 10)
    assert [s.photo for s in suspects(probabilities, targets)] == [0, 1]


def test_arguments_stay_as_they_are_and_float32_will_do() -> None:
    probabilities, targets = random_case(1)
    narrow = probabilities.astype(np.float32)
    before = narrow.copy(), targets.copy()
    found = suspects(narrow, targets)
    np.testing.assert_array_equal(narrow, before[0])
    np.testing.assert_array_equal(targets, before[1])
    assert [s.photo for s in found] == [s.photo for s in suspects(probabilities, targets)]


@pytest.mark.parametrize("function", [suspects, hard_photos, confused_pairs])
@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        (np.empty((0, 3)), [], "nothing to measure"),
        ([[0.5, 0.5]], [2], "targets from 2 to 2 for 2 classes"),
        ([[0.5, 0.5], [np.nan, 1]], [0, 1], "1 of 2 rows are not finite"),
        ([[2.0, -3.0]], [0], "not probabilities"),
    ],
)
def test_what_is_no_prediction_is_refused(
    function: object, probabilities: object, targets: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(np.array(probabilities, dtype=float), np.array(targets, dtype=int))  # type: ignore[operator]


def test_hard_photos_are_the_wrong_ones_by_the_probability_of_their_class() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.1, 0.3, 0.6], [0.5, 0.5, 0.0]])
    found = hard_photos(probabilities, np.array([2, 1, 2, 2]))
    assert [astuple(photo) for photo in found] == [
        (3, 2, 0, 0.0, 0.5, 3),
        (0, 2, 0, 0.1, 0.7, 3),
        (1, 1, 0, 0.4, 0.4, 2),  # of equal classes the first is predicted
    ]


@given(cases)
def test_every_wrong_photo_is_hard_and_its_place_is_that_of_top_k(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, targets = case
    found = hard_photos(probabilities, targets)
    for k in (1, 2, 3):
        share = metrics.top_k_accuracy(probabilities, targets, k=k)
        beyond = sum(photo.place > k for photo in found)
        assert 1 - beyond / len(targets) == pytest.approx(share)
    own = [photo.given_probability for photo in found]
    assert own == sorted(own)


def test_pairs_of_a_small_case() -> None:
    predicted = np.array([1, 1, 0, 0, 2, 2, 3, 0])
    targets = np.array([0, 0, 0, 1, 2, 3, 3, 3])
    found = confused_pairs(np.eye(4)[predicted], targets)
    assert [astuple(pair) for pair in found] == [
        (0, 1, 2, 1, 3, 1),
        (2, 3, 0, 1, 1, 3),  # one of four photos
        (0, 3, 0, 1, 3, 3),  # one of six
    ]
    assert [pair.photos for pair in found] == [3, 1, 1]
    assert found[0].rate == 3 / 4


@given(cases)
def test_pairs_hold_every_photo_off_the_diagonal_of_the_confusion(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, targets = case
    table = confusion_matrix(
        targets, probabilities.argmax(axis=1), labels=range(probabilities.shape[1])
    )
    found = confused_pairs(probabilities, targets)
    for pair in found:
        assert pair.one < pair.other
        assert pair.one_as_other == table[pair.one, pair.other]
        assert pair.other_as_one == table[pair.other, pair.one]
        assert pair.one_photos == table[pair.one].sum()
        assert 0 < pair.rate <= 1
    assert sum(pair.photos for pair in found) == table.sum() - table.trace()
    counts = [pair.photos for pair in found]
    assert counts == sorted(counts, reverse=True)


def answers(*recalls: list[float], each: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every class one recall a fold, of `each` photos."""
    rows = [
        (number < round(recall * each), label, fold)
        for label, folds in enumerate(recalls)
        for fold, recall in enumerate(folds)
        for number in range(each)
    ]
    correct, targets, fold_of = zip(*rows, strict=True)
    return np.array(correct), np.array(targets), np.array(fold_of)


def test_the_class_that_one_fold_does_not_know_is_found() -> None:
    found = unsteady_classes(*answers([0.8, 0.8, 0.85], [0.9, 0.2, 0.9], [1, 1, 1]))
    assert [(c.label, c.photos, c.recalls) for c in found] == [(1, 60, {0: 0.9, 1: 0.2, 2: 0.9})]
    assert found[0].spread == pytest.approx(0.7)
    assert found[0].p_value == 1 / 10_000
    assert found[0].adjusted == 2 / 10_000  # of two classes that can tell


def test_the_surest_class_comes_first_and_of_equals_the_widest() -> None:
    found = unsteady_classes(*answers([0.9, 0.5, 0.9], [0.95, 0.1, 1], [0.95, 0.15, 1]))
    assert [c.label for c in found] == [1, 2, 0]
    assert found[0].p_value == found[1].p_value < found[2].p_value
    assert found[0].spread > found[1].spread


def test_p_is_the_share_of_all_shuffles_that_are_as_uneven() -> None:
    """Against all ways in which 6 right answers fall on 12 photos in folds of 5, 4 and 3."""
    fold_of = np.repeat([0, 1, 2], [5, 4, 3])
    correct = np.array([1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0], dtype=bool)

    def uneven(right: np.ndarray) -> float:
        expected = np.bincount(fold_of) * 6 / 12
        return sum((right - expected) ** 2 / expected + (right - expected) ** 2 / expected)

    observed = uneven(np.bincount(fold_of[correct], minlength=3))
    shuffles = [
        uneven(np.bincount(fold_of[list(rows)], minlength=3))
        for rows in itertools.combinations(range(12), 6)
    ]
    exact = float(np.mean([value >= observed - 1e-9 for value in shuffles]))
    (found,) = unsteady_classes(correct, np.zeros(12, int), fold_of, level=1.0, draws=20_000)
    error = 4 * np.sqrt(exact * (1 - exact) / 20_000)
    assert found.p_value == pytest.approx(exact, abs=error)
    assert found.adjusted == found.p_value


def test_p_values_are_adjusted_as_scipy_does() -> None:
    from scipy.stats import false_discovery_control

    random = np.random.default_rng(0)
    n = 3_000
    correct, targets, fold_of = random.random(n) < 0.7, random.integers(0, 40, n), np.arange(n) % 5
    found = unsteady_classes(correct, targets, fold_of, level=1.0, draws=300)
    assert len(found) == 40
    expected = false_discovery_control([c.p_value for c in found])
    np.testing.assert_allclose([c.adjusted for c in found], expected)


def test_classes_that_cannot_tell_are_left_out() -> None:
    correct, targets, fold_of = answers([1, 0], [1, 1], [0, 0], each=10)
    few = answers([1, 0], each=4)  # eight photos
    one_fold = answers([0.5], each=20)
    together = [
        np.concatenate(parts)
        for parts in zip((correct, targets, fold_of), few, one_fold, strict=True)
    ]
    together[1][60:68] = 3
    together[1][68:] = 4
    found = unsteady_classes(*together, level=1.0)
    assert [c.label for c in found] == [0]


def test_seed_order_and_other_classes_do_not_matter_where_they_should_not() -> None:
    case = answers([0.5, 0.9, 0.6], [0.9, 0.4, 0.7])
    both = unsteady_classes(*case, level=1.0, seed=3)
    assert unsteady_classes(*case, level=1.0, seed=3) == both
    order = np.random.default_rng(0).permutation(len(case[0]))
    assert unsteady_classes(*(part[order] for part in case), level=1.0, seed=3) == both
    first = case[1] == 0
    (alone,) = unsteady_classes(*(part[first] for part in case), level=1.0, seed=3)
    assert alone.p_value == next(c for c in both if c.label == 0).p_value
    other_seed = unsteady_classes(*case, level=1.0, seed=4)
    assert [c.p_value for c in other_seed] != [c.p_value for c in both]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1.5}, "level must lie between 0 and 1: 1.5"),
        ({"draws": 0}, "draws be at least 1: 0"),
        ({"targets": np.array([-1, 0])}, "a target is negative: -1"),
    ],
)
def test_unsteady_classes_refuses(change: dict[str, object], message: str) -> None:
    good = {
        "correct": np.array([True, False]),
        "targets": np.array([0, 0]),
        "fold_of": np.array([0, 1]),
    }
    with pytest.raises(ValueError, match=message):
        unsteady_classes(**(good | change))  # type: ignore[arg-type]


def test_no_photos_are_refused() -> None:
    with pytest.raises(ValueError, match="one photo: 0, 0, 0"):
        unsteady_classes(np.empty(0, bool), np.empty(0, int), np.empty(0, int))


@pytest.mark.parametrize(("right", "listed"), [(0.6, True), (0.4, False)])
def test_a_network_that_is_seldom_right_calls_no_label_wrong(right: float, listed: bool) -> None:
    targets = np.arange(100) % 4
    named = np.where(np.arange(100) < 100 * right, targets, (targets + 1) % 4)
    probabilities = np.full((100, 4), 0.02)
    probabilities[np.arange(100), named] = 0.94
    assert bool(suspects(probabilities, targets)) == listed
