import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer, draw_photo

import fieldguide as fg
from fieldguide.errors import DataError
from fieldguide.predict.model import Machine
from fieldguide.report import mistakes
from fieldguide.study import similar
from fieldguide.study.similar import nearest

CPU = Machine("cpu", workers=0)


def test_the_nearest_are_those_of_the_least_angle_whatever_their_length() -> None:
    others = np.array([[0.0, 2.0], [3.0, 3.0], [0.1, 0.0], [0.0, 0.0], [5.0, 0.0]])
    found = nearest(np.array([2.0, 0.0]), others, np.array([7, 8, 9, 10, 11]), 4)
    assert [like.photo for like in found] == [9, 11, 8, 7]  # of equal ones the first
    assert [like.similarity for like in found] == pytest.approx([1, 1, 0.5**0.5, 0])


def test_a_photo_is_most_like_the_one_it_was_made_from(trained: fg.Run, tmp_path: Path) -> None:
    photos = trained.catalog.photos
    row = next(n for n, photo in enumerate(photos) if photo.split == "train")
    again = tmp_path / "again.jpg"
    again.write_bytes(trained.catalog.file(photos[row]).read_bytes() + b"\0")  # another file
    same = shutil.copy(trained.catalog.file(photos[row]), tmp_path / "same.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    names = [str(tmp_path / name) for name in ("again.jpg", "broken.jpg", "gone.jpg")]
    found = similar.similar(trained, [*names, same], top=3, machine=CPU)
    assert [each.name for each in found] == [*names, str(same)]
    assert found[0].likes[0].photo == row
    assert found[0].likes[0].similarity == pytest.approx(1, abs=1e-6)
    assert len(found[0].likes) == 3
    assert [bool(each.problem) for each in found] == [False, True, True, False]
    assert found[1].likes == found[2].likes == ()
    assert row not in {like.photo for like in found[3].likes}  # itself says nothing
    assert found[3].likes[:2] == found[0].likes[1:]
    assert all(photos[like.photo].split == "train" for like in found[0].likes)
    similar.write(trained, found, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(each["photo"], each["place"]) for each in rows[:4]] == [
        *((names[0], str(place)) for place in (1, 2, 3)),
        (names[1], ""),
    ]
    assert (rows[0]["status"], rows[3]["status"]) == ("ok", found[1].problem)
    assert (rows[0]["path"], rows[0]["label"]) == (photos[row].path, photos[row].label)
    assert float(rows[0]["similarity"]) == 1


def test_those_of_a_class_are_the_nearest_that_the_fold_trained_on(trained: fg.Run) -> None:
    fold = trained.folds[1]
    asked = fold.test[:4].tolist()
    classes = [0, 1, 2, 0]
    found = similar.of_class(
        trained, 1, asked, classes, top=2, most=1000, ingredients=trained.ingredients()
    )
    few = similar.of_class(
        trained, 1, asked, classes, top=2, most=1, ingredients=trained.ingredients()
    )
    for number, likes, one in zip(classes, found, few, strict=True):
        rows = [like.photo for like in likes]
        assert len(rows) == 2 and {*rows} <= {*fold.train.tolist()}
        assert {*trained.targets[rows].tolist()} == {number}
        assert likes[0].similarity >= likes[1].similarity > 0
        assert len(one) == 1 and one[0].similarity <= likes[0].similarity


def test_photos_of_the_run_that_are_gone_are_told(trained: fg.Run, tmp_path: Path) -> None:
    draw_photo(tmp_path / "new.jpg", (200, 30, 30), 1)
    moved = fg.Run(trained.folder, photos=tmp_path / "nowhere")
    with pytest.raises(DataError, match="any more") as refused:
        similar.similar(moved, tmp_path / "new.jpg", machine=CPU)
    assert "--photos-root" in str(refused.value.hint)


def test_photos_set_aside_to_stop_by_are_no_training_photos(
    trained: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = trained.folds[0]
    aside = fold.train[::2]
    monkeypatch.setattr(similar, "parts_of", lambda *_: (np.setdiff1d(fold.train, aside), aside))
    (likes,) = similar.of_class(
        trained, 0, fold.test[:1].tolist(), [1], top=50, most=50, ingredients=trained.ingredients()
    )
    assert likes and not {like.photo for like in likes} & {*aside.tolist()}


def test_the_command_prints_or_writes(
    trained: fg.Run, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    draw_photo(tmp_path / "new.jpg", (200, 30, 30), 1)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    asked = ("similar", trained.folder, tmp_path, "--device", "cpu")
    said = command(*asked, "--top", "2")
    assert said.code == 0 and "broken.jpg: " in said.err
    assert said.out.splitlines()[0] == "new.jpg"
    assert len(said.out.strip().splitlines()) == 4  # the name, a header, two photos
    said = command(*asked, "--out", tmp_path / "o.csv")
    assert (said.code, said.out) == (0, "") and "2 photos, 1 of them unreadable: " in said.err
    for flags, told in ((("--out", tmp_path / "o.csv"), "o.csv"), (("--top", "0"), "below 1")):
        said = command(*asked, *flags)
        assert said.code == 2 and told in said.err
    said = command(*asked, "--batch-size", "8")
    assert said.code == 2 and "fixed size" in said.err


def test_mistakes_without_their_training_photos_say_so(
    hostile: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise DataError("the photos are gone")

    monkeypatch.setattr(similar, "of_class", gone)
    body = mistakes.section(hostile)
    assert "not shown beside all of them: the photos are gone." in body
    assert "most like it" not in body and "bright where fold 1 sees" in body
