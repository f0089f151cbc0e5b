import csv
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import HOSTILE, draw_photo

import fieldguide as fg
from fieldguide.analysis.suspects import hard_photos
from fieldguide.errors import ResourceError
from fieldguide.report import build, mistakes
from fieldguide.report.judged import judge
from fieldguide.study import activation, labels, similar


@pytest.fixture
def copied(hostile: fg.Run, tmp_path: Path) -> Callable[[], fg.Run]:
    """A copy to write into, opened when asked for."""
    shutil.copytree(hostile.folder, tmp_path / "run")
    return lambda: fg.Run(tmp_path / "run")


def some_probabilities(photos: int = 200, classes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.dirichlet(np.full(classes, 0.3), photos), draw.integers(0, classes, photos)


def test_the_surest_mistakes_come_first() -> None:
    probabilities, targets = some_probabilities()
    found = mistakes.surest_mistakes(hard_photos(probabilities, targets), 20)
    shown = [hard.photo for hard in found]
    confidence = probabilities.max(axis=1)
    assert len(shown) == 20 and np.all(np.diff(confidence[shown]) <= 0)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != targets)
    assert set(shown) <= set(wrong)
    assert confidence[np.setdiff1d(wrong, shown)].max() <= confidence[shown].min()


def test_hopeless_photos_have_their_class_beyond_the_first_places() -> None:
    probabilities, targets = some_probabilities()
    found = mistakes.hopeless(hard_photos(probabilities, targets), 5)
    places = (probabilities > probabilities[np.arange(200), targets][:, None]).sum(axis=1) + 1
    assert sorted(hard.photo for hard in found) == np.flatnonzero(places > 5).tolist()
    own = [hard.given_probability for hard in found]
    assert own == sorted(own)


@pytest.mark.parametrize(("classes", "first"), [(2, 1), (3, 2), (5, 4), (6, 5), (100, 5)])
def test_there_is_always_a_place_beyond_the_first(classes: int, first: int) -> None:
    assert mistakes.first_places(classes) == first < classes


def test_no_probability_is_told_as_a_certainty() -> None:
    for value in (0.0, 1e-9, 0.9999, 1.0):
        assert mistakes.percent(value).split("\N{NO-BREAK SPACE}")[0] in {"under", "over"}
    assert mistakes.percent(0.5) == "50\N{NO-BREAK SPACE}%"
    assert mistakes.percent(0.004) == "0.4\N{NO-BREAK SPACE}%"


def test_labels_csv_is_shown_where_it_is(copied: Callable[[], fg.Run]) -> None:
    run = copied()
    found = labels.doubts(run)
    labels.write(run.folder / labels.TABLE, found)
    listed, why = mistakes.doubtful(run, judge(run))
    assert why == ""
    assert [run.catalog.photos[d.photo].path for d in listed] == [d.path for d in found.ranked]
    assert [d.other for d in listed] == [d.suggested for d in found.ranked]
    assert [d.given_probability for d in listed] == pytest.approx(
        [d.given_probability for d in found.ranked], rel=1e-4
    )


def test_without_it_the_models_suspects_are_the_same(copied: Callable[[], fg.Run]) -> None:
    run = copied()
    listed, why = mistakes.doubtful(run, judge(run))
    assert why == "there is no labels.csv yet"
    paths = [run.catalog.photos[doubt.photo].path for doubt in listed]
    assert paths == [doubt.path for doubt in labels.doubts(run).ranked if not doubt.other]


def test_rows_of_photos_that_are_labelled_otherwise_now_are_dropped(
    copied: Callable[[], fg.Run],
) -> None:
    run = copied()
    photo = run.catalog.photos[0]
    row = [1, photo.path, photo.label, HOSTILE[1], 0.1, 0.8, 1, "looks like x", "x"]
    with (run.folder / labels.TABLE).open("w", newline="") as file:
        csv.writer(file).writerows(
            [labels.HEADER, row, [2, photo.path, "another", *row[3:]], [3, "gone.jpg", *row[2:]]]
        )
    listed, _ = mistakes.doubtful(run, judge(run))
    assert listed == [mistakes.Shown(0, HOSTILE[1], 0.1, 0.8, "looks like x")]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "{header}\n1,a,b,c,nan,2,0,r,\n", "\0"])
def test_a_table_that_is_none_is_named_and_left_aside(
    copied: Callable[[], fg.Run], text: str
) -> None:
    run = copied()
    text = text.replace("{header}", ",".join(labels.HEADER))
    if "nan" in text:
        photo = run.catalog.photos[0]
        text = text.replace("a,b", f'{photo.path},"{photo.label}"')
    (run.folder / labels.TABLE).write_text(text)
    listed, why = mistakes.doubtful(run, judge(run))
    assert why.startswith("labels.csv cannot be used: ")
    assert listed == mistakes._suspected(run, judge(run))


def wrong_photos(run: fg.Run) -> int:
    judged = judge(run)
    return int(np.sum(judged.probabilities.argmax(axis=1) != judged.targets))


def test_each_mistake_has_its_photo_and_its_heat(hostile: fg.Run) -> None:
    wrong = wrong_photos(hostile)
    assert wrong > 2  # else nothing is tested here
    body = mistakes.section(hostile)
    first = body[: body.index("Labels that look wrong")]
    assert f"{wrong} of 12 photos" in first and "(1 of 2 folds are trained)" in first
    assert first.count("<figure>") == wrong
    likes = first.count("a photo labelled") - wrong  # of the predicted class, below
    assert wrong <= likes <= mistakes.ALIKES * wrong
    assert first.count("most like it of what was labelled") == wrong
    assert first.count("data:image/jpeg") == 2 * wrong + likes
    assert first.count("bright where fold 1 sees") == wrong
    plain = mistakes.section(hostile, heat_maps=False)
    assert "There are no heat maps: not asked for." in plain and "bright where fold" not in plain


def test_names_and_paths_are_harmless_and_legible(hostile: fg.Run) -> None:
    body = mistakes.section(hostile, heat_maps=False)
    assert "<script" not in body and "<i>" not in body
    assert "&lt;i&gt;.jpg" in body  # the file's name
    assert "%3Ci%3E.jpg" in body  # its address
    assert any(text in body for text in ("&lt;script&gt;alert(1)&lt;b&gt;", "🌻" + "x" * 200))


def linked(page: str, folder: Path) -> set[Path]:
    """The files that links to pictures lead to from a page in `folder`."""
    addresses = re.findall(r'<a href="([^"#][^"]*)"><img', page)
    return {Path(os.path.normpath(folder / unquote(unescape(each)))) for each in addresses}


@pytest.mark.parametrize("place", ["run", "photos", "elsewhere/and deeper <b>"])
def test_links_lead_to_the_photos_from_wherever_the_page_lies(hostile: fg.Run, place: str) -> None:
    folder = hostile.folder.parent / place
    found = linked(mistakes.section(hostile, heat_maps=False, folder=folder), folder)
    assert len(found) >= wrong_photos(hostile)
    assert found <= {hostile.catalog.file(photo) for photo in hostile.catalog.photos}


def test_a_report_written_elsewhere_links_from_there(hostile: fg.Run, tmp_path: Path) -> None:
    own, other = hostile.folder, tmp_path / "page.html"
    page = build(hostile, other, heat_maps=False).read_text("utf-8")
    body = mistakes.section(hostile, heat_maps=False)
    assert linked(page, tmp_path) == linked(body, own) != set()


def test_without_photos_mistakes_are_told_in_words(hostile: fg.Run, tmp_path: Path) -> None:
    run = fg.Run(hostile.folder, photos=tmp_path)
    body = mistakes.section(run)
    assert "There are no heat maps: the photos are not there any more, or not as they were" in body
    assert "<img" not in body and "no picture: file not found" in body
    assert f"{wrong_photos(run)} of 12 photos" in body


def test_without_weights_there_is_no_heat(hostile: fg.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ResourceError("the weights are gone & forgotten")

    monkeypatch.setattr(activation.Activation, "__init__", refuse)
    body = mistakes.section(hostile)
    assert "There are no heat maps: the weights are gone &amp; forgotten." in body
    assert body.count("data:image/jpeg") >= wrong_photos(hostile)


def test_a_photo_that_has_changed_is_not_shown(hostile: fg.Run, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(hostile.catalog.root, photos)
    for path in photos.rglob("*.jpg"):
        draw_photo(path, (0, 0, 0), 1)
    body = mistakes.section(fg.Run(hostile.folder, photos=photos))
    assert "<img" not in body and "the file has changed since" in body


def test_a_fold_judges_with_its_own_weights(
    trained: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def heats(self: object, weights: object, files: list[Path], classes: list[int]) -> list[object]:
        seen[id(weights)] = files
        return []

    given = {}

    def fold_weights(self: object, folds: list[int]) -> list[object]:
        given[folds[0]] = object()
        return [given[folds[0]]]

    monkeypatch.setattr(activation.Activation, "heats", heats)
    monkeypatch.setattr("fieldguide.predict.combine.Ingredients.fold_weights", fold_weights)
    judged = judge(trained)
    every = hard_photos(np.roll(judged.probabilities, 1, axis=1), judged.targets)
    likes = lambda run, fold, photos, classes, **_: [()] * len(photos)  # noqa: E731
    monkeypatch.setattr(similar, "of_class", likes)
    mistakes._seen(trained, judged, every, [])
    assert sorted(given) == [0, 1, 2]
    for fold, weights in given.items():
        test = [trained.catalog.photos[n] for n in trained.folds[fold].test]
        assert set(seen[id(weights)]) <= {trained.catalog.file(photo) for photo in test}


def test_a_run_that_makes_no_mistake_says_so(
    trained: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = judge(trained)
    right = replace(judged, logits=99 * np.eye(3)[judged.targets])
    monkeypatch.setattr(mistakes, "judge", lambda run: right)
    body = mistakes.section(trained)
    assert "There is none." in body and "None was found." in body
    assert (
        "class of every photo is among the 2 most probable of 3" in body and "<figure>" not in body
    )
