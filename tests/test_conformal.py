import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.analysis import conformal, metrics
from fieldguide.analysis.conformal import Method, Sets, nonconformity, prediction_sets
from fieldguide.errors import UsageError

METHODS: tuple[Method, ...] = ("split", "adaptive")


def random_photos(
    random: np.random.Generator, photos: int, classes: int = 5, skill: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and targets of a model that is right more often than not, and too sure."""
    targets = random.integers(0, classes, photos)
    logits = random.normal(size=(photos, classes))
    logits[np.arange(photos), targets] += skill
    return metrics.softmax(2 * logits), targets


def own(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.take_along_axis(scores, targets[:, None], axis=1)[:, 0]


class Several:
    """Members' scores of new photos and of known ones, each known photo judged by one member."""

    def __init__(self, seed: int, *, members: int = 3, known: int = 40, new: int = 12) -> None:
        random = np.random.default_rng(seed)
        self.scores = random.integers(0, 20, (members, new, 4)) / 20  # with ties
        self.known = random.integers(0, 20, known) / 20
        self.members = random.integers(0, members, known)
        self.targets = random.integers(0, 3, known)  # the last class has no known photo

    def sets(self, coverage: float, *, per_class: bool = False) -> np.ndarray:
        columns = self.scores, self.known, self.members, self.targets
        return prediction_sets(*columns, coverage=coverage, per_class=per_class)


several = st.builds(
    Several, st.integers(0, 2**32), members=st.integers(1, 4), known=st.integers(1, 60)
)


def split_sets(
    new: np.ndarray,
    known: np.ndarray,
    targets: np.ndarray,
    method: Method,
    coverage: float,
    *,
    per_class: bool = False,
) -> np.ndarray:
    """The sets of one model, from probabilities."""
    return prediction_sets(
        nonconformity(new, method)[None],
        own(nonconformity(known, method), targets),
        np.zeros(len(known), dtype=np.int64),
        targets,
        coverage=coverage,
        per_class=per_class,
    )


def mass_before(row: np.ndarray) -> list[float]:
    """Straight from the definition: what is more probable, and what is equal and comes first."""
    return [
        math.fsum(p for c, p in enumerate(row) if p > row[y] or (p == row[y] and c < y))
        for y in range(len(row))
    ]


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_adaptive_scores_are_the_mass_of_what_is_more_probable(seed: int, classes: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 4, (6, classes)) + np.eye(6, classes)
    probabilities = counts / counts.sum(axis=1, keepdims=True).clip(1)
    probabilities[counts.sum(axis=1) == 0] = 1 / classes
    expected = [mass_before(row) for row in probabilities]
    np.testing.assert_allclose(nonconformity(probabilities, "adaptive"), expected, atol=1e-15)


def test_scores_of_one_photo() -> None:
    row = np.array([[0.25, 0.5, 0.0, 0.25]])
    assert nonconformity(row, "split").tolist() == [[0.75, 0.5, 1, 0.75]]
    assert nonconformity(row, "adaptive").tolist() == [[0.5, 0, 1, 0.75]]


@pytest.mark.parametrize("method", METHODS)
def test_scores_rank_classes_as_probabilities_do_whatever_the_axes(method: Method) -> None:
    probabilities, _ = random_photos(np.random.default_rng(0), 24)
    scores = nonconformity(probabilities, method)
    np.testing.assert_array_equal(scores.argsort(axis=1), (-probabilities).argsort(axis=1))
    assert (scores >= 0).all() and (scores <= 1 + 1e-12).all()
    stacked = nonconformity(probabilities.reshape(2, 3, 4, 5), method)
    np.testing.assert_array_equal(stacked.reshape(24, 5), scores)
    single = nonconformity(probabilities.astype(np.float32), method)
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, scores, atol=1e-6)
    assert nonconformity(np.empty((0, 5)), method).shape == (0, 5)


# --- against MAPIE ---------------------------------------------------------------------------


class Given:
    """What MAPIE takes for a fitted classifier: photos are row numbers of known probabilities."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self.probabilities = probabilities
        self.classes_ = np.arange(probabilities.shape[1])
        self.n_features_in_ = 1  # MAPIE and scikit-learn take it for a sign of having been fitted

    def fit(self, rows: np.ndarray, targets: np.ndarray) -> "Given":
        raise AssertionError("it is fitted")

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return self.probabilities[np.asarray(rows)[:, 0].astype(np.int64)]

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.predict_proba(rows).argmax(axis=1)


class WithoutChance(np.random.RandomState):
    """APS subtracts u times a class's own mass, u at random: u = 1 leaves what comes before."""

    def uniform(self, *_: Any, size: Any = None, **__: Any) -> Any:
        return np.ones(size)


def mapie_sets(
    new: np.ndarray, known: np.ndarray, targets: np.ndarray, score: str, coverage: float
) -> np.ndarray:
    from mapie.classification import SplitConformalClassifier

    rows = np.arange(len(known) + len(new))[:, None]
    model = SplitConformalClassifier(
        Given(np.concatenate([known, new])),  # type: ignore[arg-type]
        confidence_level=coverage,
        conformity_score=score,
        random_state=WithoutChance(),
    )
    model.conformalize(rows[: len(known)], targets)
    options = {"include_last_label": True} if score == "aps" else {}
    _, sets = model.predict_set(rows[len(known) :], conformity_score_params=options)
    return np.asarray(sets[:, :, 0])


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("photos", [30, 99, 250])
@pytest.mark.parametrize(("method", "score"), [("split", "lac"), ("adaptive", "aps")])
def test_equal_to_mapie(method: Method, score: str, photos: int, coverage: float) -> None:
    random = np.random.default_rng(photos)
    known, targets = random_photos(random, photos)
    new, _ = random_photos(random, 60)
    ours = split_sets(new, known, targets, method, coverage)
    assert 0 < ours.mean() < 1
    np.testing.assert_array_equal(ours, mapie_sets(new, known, targets, score, coverage))


# --- against the definitions -----------------------------------------------------------------


def in_cv_plus(case: Several, photo: int, column: int, coverage: float, per_class: bool) -> bool:
    """Straight from the paper, one known photo after the other."""
    below = photos = 0
    for score, member, target in zip(case.known, case.members, case.targets, strict=True):
        if per_class and target != column:
            continue
        photos += 1
        below += score < case.scores[member, photo, column]
    return below < round(coverage * (photos + 1), 9)


@pytest.mark.parametrize("per_class", [False, True])
@given(case=several, coverage=st.sampled_from([0.05, 0.3, 0.5, 0.55, 0.7, 0.9, 0.95]))
def test_sets_are_those_of_a_double_loop(case: Several, coverage: float, per_class: bool) -> None:
    found = case.sets(coverage, per_class=per_class)
    for (photo, column), inside in np.ndenumerate(found):
        assert inside == in_cv_plus(case, photo, column, coverage, per_class)


@given(st.builds(Several, st.integers(0, 2**32), members=st.just(1)), st.integers(1, 99))
def test_one_member_is_the_order_statistic_of_split_conformal(case: Several, percent: int) -> None:
    rank = -(-percent * (len(case.known) + 1) // 100)  # in integers: rounded up without error
    ordered = np.sort(case.known)
    limit = ordered[rank - 1] if rank <= len(ordered) else np.inf
    np.testing.assert_array_equal(case.sets(percent / 100), case.scores[0] <= limit)


@pytest.mark.parametrize("percent", range(1, 100))
def test_whole_numbers_are_not_missed_by_rounding(percent: int) -> None:
    """Of 99 known photos, `percent` % mean the `percent`-th smallest score, not the next."""
    known = np.arange(99.0)
    columns = known, np.zeros(99, dtype=np.int64), np.zeros(99, dtype=np.int64)
    sets = prediction_sets(known[None, :, None], *columns, coverage=percent / 100)
    assert sets.sum() == percent
    computed = prediction_sets(known[None, :, None], *columns, coverage=1 - (100 - percent) / 100)
    np.testing.assert_array_equal(computed, sets)


def test_a_product_that_float64_puts_too_high() -> None:
    assert 0.28 * 25 > 7
    known, zeros = np.arange(24.0), np.zeros(24, dtype=np.int64)
    sets = prediction_sets(known[None, :, None], known, zeros, zeros, coverage=0.28)
    assert sets.sum() == 7


def test_no_new_photos() -> None:
    case = Several(0, new=0)
    assert case.sets(0.9).shape == (0, 4)
    assert case.sets(0.9, per_class=True).shape == (0, 4)


def test_arguments_are_left_unchanged() -> None:
    case, same = Several(3), Several(3)
    case.sets(0.9)
    case.sets(0.9, per_class=True)
    for name, value in vars(same).items():
        np.testing.assert_array_equal(getattr(case, name), value)
    probabilities, _ = random_photos(np.random.default_rng(0), 9)
    before = probabilities.copy()
    for method in METHODS:
        nonconformity(probabilities, method)
    np.testing.assert_array_equal(probabilities, before)


def spread(coverage: float, known: int, new: int, trials: int) -> float:
    """The standard deviation of the mean coverage: Beta for the known photos, binomial for new."""
    return math.sqrt(coverage * (1 - coverage) * (1 / (known + 2) + 1 / new) / trials)


def centres_trained(points: np.ndarray, targets: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Probabilities by the distance to the mean of each class: the quickest thing that learns."""
    centres = np.stack([points[targets == column].mean(axis=0) for column in range(3)])
    return metrics.softmax(-((new[:, None] - centres) ** 2).sum(axis=2))


@pytest.mark.parametrize("method", METHODS)
def test_models_of_folds_cover_together(method: Method) -> None:
    """CV+ from end to end: five models, each judging what it was not trained on."""
    random = np.random.default_rng(3)
    fold_of, targets = np.arange(60) % 5, np.arange(60) // 5 % 3
    covered = []
    for _ in range(150):
        points = random.normal(size=(60, 2)) + np.array([[0, 0], [1.5, 0], [0, 1.5]])[targets]
        truth = random.permutation(targets)
        new = random.normal(size=(60, 2)) + np.array([[0, 0], [1.5, 0], [0, 1.5]])[truth]
        scores, known = np.empty((5, 60, 3)), np.empty(60)
        for fold in range(5):
            train, test = fold_of != fold, fold_of == fold
            told = centres_trained(points[train], targets[train], np.concatenate([new, points]))
            every = nonconformity(told, method)
            scores[fold], known[test] = every[:60], own(every[60:], targets)[test]
        sets = prediction_sets(scores, known, fold_of, targets, coverage=0.8)
        covered.append(own(sets, truth).mean())
    doubt = 4 * spread(0.8, 60, 60, 150)
    assert np.mean(covered) > 0.8 - doubt  # 0.6 is proven
    assert method == "adaptive" or np.mean(covered) < 0.85 + doubt


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, math.nan, 90.0])
def test_coverage_that_cannot_be(coverage: float) -> None:
    with pytest.raises(ValueError, match=f"coverage must lie between 0 and 1: {coverage}"):
        Several(0).sets(coverage)


def test_probabilities_and_methods_that_cannot_be() -> None:
    for row in ([2.0, 1.0], [1.5, -0.5], [np.nan, 1.0]):
        for method in METHODS:
            with pytest.raises(ValueError, match="not probabilities: rows sum to 1 within"):
                nonconformity(np.array([[0.5, 0.5], row]), method)
    unchecked = conformal.nonconformity.__wrapped__  # type: ignore[attr-defined]  # as for users
    with pytest.raises(ValueError, match="no such method: `aps`; there are split, adaptive"):
        unchecked(np.eye(2), "aps")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"members": [3]}, "calibration members from 3 to 3, not 0 to 2"),
        ({"members": [-1]}, "calibration members from -1 to -1, not 0 to 2"),
        ({"targets": [4]}, "calibration targets from 4 to 4, not 0 to 3"),
        ({"known": [np.nan]}, "calibration scores hold a value that is not finite"),
        ({"scores": np.full((3, 2, 4), np.inf)}, "scores hold a value that is not finite"),
        (
            {"scores": np.empty((0, 2, 4))},
            r"scores must be members × photos × classes: \(0, 2, 4\)",
        ),
        ({"scores": np.empty((3, 2, 0))}, "scores must be members × photos × classes"),
        ({"known": [], "members": [], "targets": []}, "no calibration photos"),
    ],
)
def test_arrays_that_cannot_be(changed: dict[str, list[float]], message: str) -> None:
    case = Several(0, known=1)
    for name, values in changed.items():
        setattr(case, name, np.array(values, dtype=getattr(case, name).dtype))
    with pytest.raises(ValueError, match=message):
        case.sets(0.9)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_coverage_that_cannot_be_is_refused(coverage: float) -> None:
    with pytest.raises(UsageError, match=f"`coverage` is not between 0 and 1: {coverage}"):
        Sets(coverage)


def test_an_unknown_method_is_refused() -> None:
    """As users meet it: their types are not checked."""
    odd = object.__new__(Sets)
    vars(odd).update(coverage=0.9, method="guess")
    with pytest.raises(UsageError, match="`method` is none of split, adaptive: 'guess'"):
        Sets.__post_init__(odd)
