from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

import fieldguide as fg
from fieldguide.report import classes


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_f1_lies_in_its_interval(right: int, wrongly: int, missed: int) -> None:
    correct = np.arange(right + wrongly + missed) < right
    share = classes.f1_share(correct, np.arange(len(correct)))
    if not len(correct):
        assert share is None
        return
    assert share is not None
    assert share.value == pytest.approx(2 * right / (2 * right + wrongly + missed))
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert share.high - share.low > 0.03  # even where all are right, or none


def test_intervals_of_f1_hold_the_true_one_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    chances = np.array([0.06, 0.06, 0.88])  # right, called wrongly or missed, others
    true = 2 * 0.06 / (2 * 0.06 + 0.06)
    held = 0
    for right, wrong, _ in draw.multinomial(600, chances, size=1000).tolist():
        share = classes.f1_share(np.arange(right + wrong) < right, np.arange(right + wrong))
        assert share is not None
        held += share.low <= true <= share.high
    assert 0.94 <= held / 1000 <= 0.98


@pytest.fixture(scope="module")
def judged() -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions of 7 classes, of which the last is never seen nor named."""
    draw = np.random.default_rng(1)
    targets = draw.integers(0, 6, 300)
    return targets, np.where(draw.random(300) < 0.6, targets, draw.integers(0, 5, 300))


def test_rows_agree_with_scikit_learn(judged: tuple[np.ndarray, np.ndarray]) -> None:
    rows = classes.class_rows(*judged, np.arange(300), 7)
    expected = reference.precision_recall_fscore_support(
        *judged, labels=range(7), zero_division=np.nan
    )
    for row, precision, recall, f1, support in zip(rows, *expected, strict=True):
        assert row.photos == support
        for got, value in ((row.precision, precision), (row.recall, recall), (row.f1, f1)):
            assert (got is None) == np.isnan(value)
            assert got is None or got.value == pytest.approx(value)
    assert rows[6] == classes.ClassRow(6, 0, None, None, None, None)


def test_the_most_confused_class_is_that_of_the_table(
    judged: tuple[np.ndarray, np.ndarray],
) -> None:
    table = reference.confusion_matrix(*judged, labels=range(7))
    np.fill_diagonal(table, 0)
    both = table + table.T
    found = classes.most_confused(*judged)
    assert sorted(found) == np.flatnonzero(both.sum(axis=1)).tolist()
    for number, confused in found.items():
        assert confused.other == both[number].argmax()
        assert confused.taken_for == table[number, confused.other]
        assert confused.taken_from == table[confused.other, number]


def test_nothing_is_confused_where_all_is_right() -> None:
    assert classes.most_confused(np.arange(4), np.arange(4)) == {}


def test_typical_photos_are_the_surest_of_their_class_one_a_group() -> None:
    targets = np.array([0, 0, 0, 1, 0])
    own = np.array([0.9, 0.8, 0.7, 0.1, 0.95])
    found = classes.typical_photos(targets, own, ["a", "a", "b", "c", "d"], 2)
    assert found == {0: [4, 0], 1: [3]}
    assert classes.typical_photos(targets, own, ["a", "a", "b", "c", "d"], 3)[0] == [4, 0, 2]


@pytest.mark.parametrize("number", [1, 100, 250, 600, 5000])
def test_thumbnails_stay_within_their_number(number: int) -> None:
    targets = np.arange(number)
    rows = classes.class_rows(targets, np.where(targets < 5, 0, targets), targets, number)
    each, pictured = classes.shown_classes(rows)
    assert 1 <= each <= 3 and each * len(pictured) <= 600
    assert len(pictured) == min(number, 600)
    assert set(range(min(number, 5))) <= set(pictured)  # the worst ones


def test_names_are_harmless_and_legible(hostile: fg.Run) -> None:
    body = classes.section(hostile)
    assert "<script" not in body
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in body
    assert "🌻" + "x" * 200 in body and "&#34;quoted&#34; &#39;" in body
    assert body.count("data:image/jpeg") == sum(
        min(3, row.photos) for row in classes.class_rows(*_judged(hostile), _groups(hostile), 3)
    )


def _judged(run: fg.Run) -> tuple[np.ndarray, np.ndarray]:
    return run.targets[run.folds[1].test], run.logits(1).argmax(axis=1)


def _groups(run: fg.Run) -> np.ndarray:
    return run.groups[run.folds[1].test]


def test_an_unfinished_run_says_which_folds_speak(hostile: fg.Run) -> None:
    assert "(1 of 2 folds are trained)" in classes.section(hostile)


def test_without_photos_the_numbers_are_the_same(trained: fg.Run, tmp_path: Path) -> None:
    body = classes.section(fg.Run(trained.folder, photos=tmp_path))
    assert "<img" not in body
    rows = classes.class_rows(
        np.concatenate([trained.targets[fold.test] for fold in trained.folds]),
        np.concatenate([trained.logits(fold).argmax(axis=1) for fold in range(3)]),
        np.concatenate([trained.groups[fold.test] for fold in trained.folds]),
        3,
    )
    for name, row in zip(trained.classes, rows, strict=True):
        assert f"<bdi>{name}</bdi>" in body and row.recall is not None
        assert f'data-sort="{row.recall.value:.6f}"' in body
