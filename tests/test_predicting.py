import csv
import io
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLORS, Answer
from PIL import Image
from shell import CPU, ON_CPU, table

import fieldguide as fg
from fieldguide.predict import inference

Command = Callable[..., Answer]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the table goes."""
    return tmp_path / "p.csv"


@pytest.fixture
def predict(trained: fg.Run, command: Command, out: Path) -> Command:
    """Asks the run, and writes `out`; what is given later counts."""
    return lambda *more: command("predict", trained.folder, *more, "--out", out, *ON_CPU)


@pytest.fixture
def submit(trained: fg.Run, flat: Path, command: Command, out: Path) -> Command:
    return lambda *more: command("submit", trained.folder, flat, *more, "--out", out, *ON_CPU)


@pytest.fixture
def mixed(parts: Path, tmp_path: Path) -> Path:
    """Three good photos, an empty file, a page, and a photo cut short, in one folder."""
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    for name in COLORS:
        shutil.copy(parts / "val" / name / "020.jpg", folder / f"{name}.jpg")
    (folder / "blank.jpg").write_bytes(b"")
    (folder / "below" / "page.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    whole = (folder / "blue.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    return folder


@pytest.fixture
def flat(parts: Path, tmp_path: Path) -> Path:
    """The photos outside the folds, under names of their own in one folder."""
    folder = tmp_path / "test"
    folder.mkdir()
    for number, path in enumerate(sorted((parts / "val").glob("*/*.jpg"))):
        shutil.copy(path, folder / f"{number:02d}.jpg")
    return folder


def test_every_input_has_one_row_in_order_and_bad_ones_their_reason(
    trained: fg.Run, mixed: Path, predict: Command, out: Path
) -> None:
    said = predict(mixed)
    assert (said.code, said.out) == (0, "")
    assert f"6 photos, 3 of them unreadable: {out}" in said.err
    rows = table(out)
    assert list(rows[0]) == ["path", "label", "confidence", "second", "second_confidence", "status"]
    assert {row["path"]: row["status"] for row in rows} == {
        "amber.jpg": "ok",
        "below/page.jpg": "unreadable: not an image (HTML)",
        "blank.jpg": "unreadable: empty file",
        "blue.jpg": "ok",
        "crimson.jpg": "ok",
        "cut.jpg": "unreadable: truncated",
    }
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    good = [row for row in rows if row["status"] == "ok"]
    expected = trained.classifier().predict([mixed / row["path"] for row in good], machine=CPU)
    assert tuple(row["label"] for row in good) == expected.labels
    shown = [float(row["confidence"]) for row in good]
    np.testing.assert_allclose(shown, expected.confidences, atol=1e-5)
    assert all(row["label"] == row["second"] == "" for row in rows if row["status"] != "ok")


def test_lists_and_folders_follow_one_another_and_name_what_is_missing(
    parts: Path, tmp_path: Path, predict: Command, out: Path
) -> None:
    names = ["blue/020.jpg", "gone.jpg", "amber/021.jpg", "blue/020.jpg"]
    place = tmp_path / "list.txt"
    place.write_text("\n".join(names))
    more = ["--root", parts / "val", "--batch-size", "2"]
    assert predict(place, parts / "val" / "blue", *more).code == 0
    rows = table(out)
    paths = [*names, *(str(parts / "val" / "blue" / f"02{n}.jpg") for n in range(4))]
    assert [row["path"] for row in rows] == paths
    lost = [row["path"] for row in rows if row["status"] == "unreadable: file not found"]
    assert lost == ["gone.jpg"]
    assert rows[0] == rows[3] == rows[4] | {"path": names[0]}


def test_standard_input_is_a_list(
    parts: Path, predict: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "".join(f"{path}\n" for path in sorted((parts / "val").glob("blue/*.jpg")))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    assert predict("-").code == 0
    assert [row["path"] for row in table(out)] == listed.splitlines()


def test_more_classes_and_all_probabilities_can_be_written(
    trained: fg.Run, parts: Path, predict: Command, out: Path
) -> None:
    more = ["--top", "1", "--probabilities", "--no-calibrated", "--combine", "fold-1"]
    assert predict(parts / "train", *more).code == 0
    rows = table(out)
    columns = [f"p:{name}" for name in COLORS]
    assert list(rows[0]) == ["path", "label", "confidence", "status", *columns]
    with (trained.folder / "oof.csv").open(newline="") as file:
        oof = {row["path"]: row for row in csv.DictReader(file) if row["fold"] == "1"}
    assert len(oof) == 8
    said = {f"train/{row['path']}": row for row in rows}
    for path, row in oof.items():
        for column in columns:
            assert float(said[path][column]) == pytest.approx(float(row[column]), abs=1e-5)


def test_sets_of_classes_and_doubts_are_columns(parts: Path, predict: Command, out: Path) -> None:
    found = []
    for coverage in ("0.3", "0.9"):
        for sets in ("split", "adaptive"):
            more = ["--coverage", coverage, "--sets", sets, "--overwrite"]
            assert predict(parts / "val", *more).code == 0
            rows = table(out)
            found.append([set(filter(None, row["set"].split("; "))) for row in rows])
            assert [row["unsure"] for row in rows] == [
                "no" if len(each) == 1 else "yes" for each in found[-1]
            ]
    for small, large in ((0, 2), (1, 3)):
        assert all(a <= b for a, b in zip(found[small], found[large], strict=True))
    assert found[0] != found[2]


def test_views_change_probabilities_and_not_rows(
    trained: fg.Run, parts: Path, predict: Command, out: Path
) -> None:
    assert predict(parts / "val", "--views", " crops, flips").code == 0
    rows = table(out)
    paths = sorted((parts / "val").rglob("*.jpg"))
    assert [parts / "val" / row["path"] for row in rows] == paths
    expected = trained.classifier().predict(paths, views=("flips", "crops"), machine=CPU)
    plain = trained.classifier().predict(paths, machine=CPU)
    shown = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(shown, expected.confidences, atol=1e-5)
    assert not np.allclose(shown, plain.confidences, atol=1e-4)


def test_an_interrupted_prediction_says_where_its_rows_are(
    parts: Path, predict: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = inference.logits

    def logits(*arguments: Any) -> Any:
        yield next(original(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "logits", logits)
    said = predict(parts / "val", "--batch-size", "4")
    assert said.code == 130
    assert f"the rows so far are in {out}.part" in said.err
    assert not out.exists()
    assert len(table(out.with_name("p.csv.part"))) == 4


def test_an_unfinished_run_answers_by_the_folds_that_are_done(
    unfinished: Path, parts: Path, command: Command, out: Path
) -> None:
    asked = ["predict", unfinished, parts / "val", "--out", out, "--overwrite", *ON_CPU]
    said = command(*asked)
    assert said.code == 0
    assert "2 of 3 folds are used: fold 2 is not trained" in said.err
    model = fg.Run(unfinished).classifier()
    assert model.card.members == ("fold 0", "fold 1")
    expected = model.predict(parts / "val", machine=CPU)
    assert tuple(row["label"] for row in table(out)) == expected.labels
    for fold in (0, 1):
        (unfinished / "folds" / str(fold) / "manifest.json").unlink()
    said = command(*asked)
    assert said.code == 4 and "no fold of" in said.err


def sample(place: Path, header: str, ids: list[str], rest: str) -> Path:
    place.write_text("\n".join([header, *(f"{each}{rest}" for each in ids)]) + "\n")
    return place


def test_a_submission_follows_its_sample(
    trained: fg.Run, flat: Path, tmp_path: Path, submit: Command, out: Path
) -> None:
    ids = [f"{n:02d}" for n in (5, 3, 11, 0, 1, 2, 4, 6, 7, 8, 9, 10)]
    expected = trained.classifier().predict([flat / f"{each}.jpg" for each in ids], machine=CPU)
    like = sample(tmp_path / "sample.csv", "image,label", ids, ",amber")
    assert submit("--sample", like).code == 0
    named = zip(ids, expected.labels, strict=True)
    lines = ["image,label", *(f"{each},{label}" for each, label in named)]
    assert out.read_text() == "\n".join(lines) + "\n"
    columns = "id," + ",".join(reversed(COLORS))
    like = sample(tmp_path / "shares.csv", columns, [f"{each}.jpg" for each in ids], ",0,0,1")
    assert submit("--sample", like, "--overwrite").code == 0
    rows = table(out)
    assert [row["id"] for row in rows] == [f"{each}.jpg" for each in ids]
    shares = [[float(row[name]) for name in trained.classes] for row in rows]
    np.testing.assert_allclose(shares, expected.probabilities, atol=1e-5)


def test_a_submission_may_have_columns_of_any_two_names(submit: Command, out: Path) -> None:
    more = ["--columns", "image_name,pred_label", "--id", "stem", "--zip"]
    assert submit(*more).code == 0
    rows = table(out)
    assert list(rows[0]) == ["image_name", "pred_label"]
    assert [row["image_name"] for row in rows] == [f"{n:02d}" for n in range(12)]
    packed = out.with_name("p.csv.zip")
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == ["p.csv"]
        assert archive.read("p.csv") == out.read_bytes()
    for each in (out, packed):
        each.write_text("mine")
    said = submit(*more)
    assert said.code == 2 and "--overwrite" in said.err
    assert out.read_text() == packed.read_text() == "mine"
    assert submit(*more, "--overwrite").code == 0
    assert table(out) == rows and packed.read_bytes()[:2] == b"PK"


def test_strict_writes_all_rows_and_then_fails(flat: Path, submit: Command, out: Path) -> None:
    more = ["--columns", "id,label", "--strict", "--zip", "--overwrite"]
    assert submit(*more).code == 0
    (flat / "12.jpg").write_bytes(b"")
    assert submit(*more).code == 3
    assert len(table(out)) == 13
    with zipfile.ZipFile(out.with_name("p.csv.zip")) as archive:
        assert archive.read("p.csv") == out.read_bytes()


def test_a_photo_that_shows_nothing_is_predicted_and_marked(
    trained: fg.Run, tmp_path: Path, command: Command
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("a.png", (1, 1)), ("b.png", (40, 15)), ("c.png", (16, 16))):
        Image.new("RGB", size, "red").save(photos / name)
    said = command("predict", trained.folder, photos, "--out", tmp_path / "p.csv", *ON_CPU)
    assert said.code == 0
    assert "3 photos, 2 of them too small to show anything" in said.err
    rows = table(tmp_path / "p.csv")
    assert [row["status"] for row in rows] == [
        "too small: 1 × 1 pixels",
        "too small: 40 × 15 pixels",
        "ok",
    ]
    assert all(row["label"] for row in rows)
