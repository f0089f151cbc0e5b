import itertools
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import vl_convert
from hypothesis import given
from sklearn.metrics import confusion_matrix

import fieldguide as fg
from fieldguide.report import confusion, page
from fieldguide.report.judged import Judged, judge


def graph(seed: int, count: int, share: float = 0.1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    half = np.triu(draw.integers(1, 9, (count, count)) * (draw.random((count, count)) < share), 1)
    return (half + half.T).astype(np.float64)


def some_judged(seed: int = 0, classes: int = 12, photos: int = 300) -> Judged:
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, classes, photos)
    logits = draw.normal(size=(photos, classes)) * 2
    return Judged(np.arange(photos) + 1000, np.zeros(photos, dtype=int), targets, logits)


def apart(similar: np.ndarray, order: np.ndarray) -> float:
    """How far apart similar things stand, on average."""
    place = np.argsort(order)
    distance = np.abs(place[:, None] - place[None])
    return float((similar * distance).sum() / similar.sum())


@given(st.integers(0, 1000), st.integers(1, 30))
def test_every_class_stands_in_the_order_once(seed: int, count: int) -> None:
    assert sorted(confusion.seriated(graph(seed, count)).tolist()) == list(range(count))


@given(st.integers(0, 1000))
def test_the_scale_does_not_matter_and_arguments_are_left_unchanged(seed: int) -> None:
    similar = graph(seed, 20)
    order = confusion.seriated(similar)
    assert np.array_equal(similar, graph(seed, 20))
    assert np.array_equal(confusion.seriated(4 * similar), order)
    assert np.array_equal(confusion.seriated(similar + np.diag(range(20))), order)


def test_groups_that_are_never_confused_with_each_other_stay_together() -> None:
    groups = np.random.default_rng(3).permutation(np.repeat(np.arange(4), 6))
    similar = graph(1, 24, 0.9) * (groups[:, None] == groups[None])
    in_order = groups[confusion.seriated(similar)]
    assert len(list(itertools.groupby(in_order))) == 4


def test_a_chain_is_found_again() -> None:
    # Each is confused with its neighbours, less with every step.
    chain = np.random.default_rng(0).permutation(9)
    distance = np.abs(chain[:, None] - chain[None])
    similar = np.where(distance == 1, 10.0 - np.minimum(chain[:, None], chain[None]), 0.0)
    found = chain[confusion.seriated(similar)].tolist()
    assert found in (list(range(9)), list(range(9))[::-1])


def test_planted_groups_stand_closer_than_by_name() -> None:
    draw = np.random.default_rng(5)
    group = draw.permutation(np.repeat(np.arange(10), 5))
    similar = graph(6, 50, 0.03) + 5 * graph(7, 50, 0.7) * (group[:, None] == group[None])
    assert apart(similar, confusion.seriated(similar)) < 0.5 * apart(similar, np.arange(50))


def test_what_is_confused_with_nothing_comes_last_by_name() -> None:
    similar = np.zeros((6, 6))
    similar[1, 4] = similar[4, 1] = 2
    assert confusion.seriated(similar).tolist() == [1, 4, 0, 2, 3, 5]
    assert confusion.seriated(np.zeros((0, 0))).tolist() == []


def test_the_cells_are_the_confusion_matrix_without_its_zeros() -> None:
    known = some_judged()
    found = confusion.matrix(known)
    expected = confusion_matrix(
        known.targets,
        known.probabilities.argmax(axis=1),
        labels=range(known.probabilities.shape[1]),
    )
    dense = np.zeros_like(expected)
    for row, column, photos in found.cells:
        assert photos > 0
        dense[row, column] += photos
    assert np.array_equal(dense, expected)
    assert found.support == tuple(expected.sum(axis=1))
    assert (found.left_out, sorted(found.order)) == (0, list(range(12)))


def test_of_too_many_classes_the_most_confused_are_drawn() -> None:
    known = some_judged()
    wrong = confusion_matrix(
        known.targets,
        known.probabilities.argmax(axis=1),
        labels=range(known.probabilities.shape[1]),
    )
    np.fill_diagonal(wrong, 0)
    by_class = wrong.sum(axis=0) + wrong.sum(axis=1)
    found = confusion.matrix(known, most=4)
    assert found.left_out == 8 and len(found.order) == 4
    assert min(by_class[list(found.order)]) >= np.sort(by_class)[-4]
    assert {number for cell in found.cells for number in cell[:2]} <= set(found.order)


def test_an_example_is_the_surest_photo_of_the_confusion() -> None:
    known = some_judged()
    for one, other in itertools.product(range(12), repeat=2):
        found = confusion.example(known, one, other)
        assert found is not None
        row = found.row - 1000
        assert known.targets[row] == one == found.given
        assert known.predicted[row] == found.predicted
        assert found.probability == known.probabilities[row].max()
        of_this = (known.targets == one) & (known.predicted == other)
        if of_this.any():
            assert found.predicted == other
            assert found.probability == known.probabilities[of_this].max()


def test_without_a_confusion_the_example_is_correct_and_without_photos_there_is_none() -> None:
    logits = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0]])
    known = Judged(np.arange(3), np.zeros(3, dtype=int), np.array([0, 0, 0]), logits)
    found = confusion.example(known, 0, 2)
    assert found is not None and (found.row, found.predicted) == (0, 0)
    assert confusion.example(known, 2, 0) is None


@given(st.text())
def test_a_legible_name_is_one_short_visible_line(name: str) -> None:
    shown = confusion.legible(name)
    assert len(shown) <= confusion.NAME_LENGTH and len(shown.splitlines()) <= 1
    shown.encode()  # raises for lone surrogates
    assert confusion.legible(shown) == shown


@pytest.mark.parametrize("name", ["Vanessa atalanta", "Étoile «bleue»", "蝶", "👩‍👧", "x" * 60])
def test_a_name_that_is_legible_is_left_alone(name: str) -> None:
    assert confusion.legible(name) == name


def test_the_chart_draws_the_cells_in_their_order() -> None:
    known = some_judged()
    found = confusion.matrix(known)
    names = [f"class {number}" for number in range(12)]
    spec = confusion.chart(found, names).to_dict()
    rows = spec["datasets"][spec["data"]["name"]]
    cells = {
        (found.order[row["y"]], found.order[row["x"]]): (row["photos"], row["rate"]) for row in rows
    }
    assert cells.keys() == {cell[:2] for cell in found.cells}
    for given_, predicted, photos in found.cells:
        count, rate = cells[given_, predicted]
        assert count == photos
        assert rate == pytest.approx(photos / found.support[given_], rel=1e-3)
    svg = vl_convert.vegalite_to_svg(json.dumps(spec))
    assert all(f">{name}<" in svg for name in names)


@pytest.mark.parametrize("classes", [2, 300])
def test_few_and_many_classes_are_drawn(classes: int) -> None:
    known = some_judged(classes=classes, photos=600)
    names = [f"class {number}" for number in range(classes)]
    spec = confusion.chart(confusion.matrix(known), names).to_dict()
    assert vl_convert.vegalite_to_svg(json.dumps(spec)).count("<path") > 2


def test_hostile_names_stay_text(hostile: fg.Run) -> None:
    body = confusion.section(hostile)
    assert "<script>alert" not in body
    assert "alert(1)" in body  # legible all the same
    assert body.count("<script") == body.count("</script") == 1  # the chart's data
    assert "Most confused pairs" in body
    text = page.page("title", [page.Section("confusion", "Confusion", body)], "")
    assert "<script>alert" not in text
    found = confusion.matrix(judge(hostile))
    spec = confusion.chart(found, hostile.classes).to_dict()
    ElementTree.fromstring(vl_convert.vegalite_to_svg(json.dumps(spec)))


def test_pairs_come_with_a_photo_of_each_class(hostile: fg.Run) -> None:
    body = confusion.section(hostile)
    known = judge(hostile)
    pairs = confusion.confused_pairs(known.probabilities, known.targets)
    assert pairs and body.count("<img ") == 2 * len(pairs)


def test_without_the_photos_all_but_them_is_there(hostile: fg.Run, tmp_path: Path) -> None:
    body = confusion.section(fg.Run(hostile.folder, tmp_path))
    assert "<img " not in body and "no picture" in body and "Most confused pairs" in body


def test_only_the_folds_that_are_done_are_counted(hostile: fg.Run) -> None:
    body = confusion.section(hostile)
    assert "of 12 photos" in body and "1 of 2 folds are done" in body


def test_when_nothing_was_confused_it_says_so(
    trained: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = judge(trained)
    perfect = np.eye(len(trained.classes))[known.targets]
    monkeypatch.setattr(confusion, "judge", lambda run: replace(known, logits=perfect))
    body = confusion.section(trained)
    assert "All 24 photos are classified correctly" in body and "Most confused pairs" not in body
