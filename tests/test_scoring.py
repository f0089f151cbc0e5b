import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLORS, Answer, draw_photo
from fits import small_fit
from PIL import Image
from shell import CPU, ON_CPU, table

import fieldguide as fg
from fieldguide.predict import inference
from fieldguide.study import holdout_scores

Command = Callable[..., Answer]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured on few photos."""
    monkeypatch.setattr(holdout_scores, "TIMED_PHOTOS", 8)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that outside photos were looked at."""
    seen: list[int] = []
    original: Callable[..., Any] = inference.all_logits

    def all_logits(*arguments: Any) -> Any:
        seen.append(len(arguments[2]))
        return original(*arguments)

    monkeypatch.setattr(inference, "all_logits", all_logits)
    return seen


def test_score_tells_what_ensembles_and_soups_are_worth_and_remembers_it(
    own: Path, command: Command, looks: list[int]
) -> None:
    first = command("score", own, *ON_CPU)
    assert first.code == 0
    assert looks
    assert "out-of-fold accuracy" in first.out
    assert "on 12 photos outside all folds" in first.out
    assert "ensemble" in first.out and "mean of folds" in first.out
    looks.clear()
    assert command("score", own, *ON_CPU) == first
    assert looks == []
    assert command("soup", own, "--rule", "greedy", *ON_CPU).code == 0
    looks.clear()
    last = command("score", own, *ON_CPU).out
    assert looks
    assert "greedy*" in last and "* chosen by these photos: judged cross-fitted" in last


def test_scores_as_json_hold_all_that_is_printed(own: Path, command: Command) -> None:
    said = command("score", own, "--json", "--per-class", *ON_CPU)
    found = json.loads(said.out)
    assert found["out_of_fold"] == json.loads((own / "summary.json").read_bytes())
    worths = holdout_scores.worths(fg.Run(own), CPU)  # the one that was kept
    assert found["outside"] == json.loads(json.dumps(asdict(worths)))
    assert list(found["outside"]) == ["rows", "photos", "unreadable"]
    assert found["outside"]["photos"] == 12
    names = [row["name"] for row in found["outside"]["rows"]]
    assert names == ["fold 0", "fold 1", "fold 2", "mean of folds", "ensemble"]
    assert list(found["classes"]) == list(COLORS)
    assert sum(each["photos"] for each in found["classes"].values()) == 24
    shares = [each["recall"] * each["photos"] for each in found["classes"].values()]
    assert sum(shares) / 24 == pytest.approx(found["out_of_fold"]["accuracy"])


@pytest.mark.parametrize("as_json", [False, True])
def test_score_refuses_photos_that_were_trained_on_and_tells_the_folds_scores_all_the_same(
    as_json: bool, trained: fg.Run, parts: Path, tmp_path: Path, command: Command
) -> None:
    photos = shutil.copytree(parts / "val", tmp_path / "photos")
    shutil.copy(parts / "train" / "blue" / "003.jpg", photos / "blue" / "other.jpg")
    more = ["--json"] if as_json else []
    said = command("score", trained.folder, photos, *more, *ON_CPU)
    assert said.code == 3
    assert "1 of 13 photos were used by the folds in training" in said.err
    assert "other.jpg" in said.err and "003.jpg" in said.err
    if as_json:
        found = json.loads(said.out)
        assert found["out_of_fold"]["accuracy"] == trained.scores.accuracy
        assert found["outside"] is None
    else:
        assert f"out-of-fold accuracy {trained.scores.accuracy:.1%}" in said.out
        assert "outside" not in said.out


def test_score_judges_other_photos_and_leaves_no_table_of_them(
    own: Path, parts: Path, tmp_path: Path, command: Command
) -> None:
    """One of these cannot be read, and one looks like a training photo."""
    place = tmp_path / "others"
    for number, (name, color) in enumerate(COLORS.items()):
        draw_photo(place / f"{name}.jpg", color, 9000 + number)
    (place / "empty.jpg").write_bytes(b"")
    with Image.open(parts / "train" / "blue" / "003.jpg") as picture:
        picture.save(place / "again.jpg", quality=70)
    lines = ["file,species", *(f"{name}.jpg,{name}" for name in COLORS)]
    listed = place / "labels.csv"
    listed.write_text("\n".join([*lines, "empty.jpg,blue", "again.jpg,blue"]))
    said = command("score", own, listed, "--label-column", "species", "--json", *ON_CPU)
    assert said.code == 0
    assert "1 photos look like training photos and are left out" in said.err
    assert "1 photos cannot be read and are left out" in said.err
    found = json.loads(said.out)["outside"]
    assert (found["photos"], found["unreadable"]) == (3, 1)
    answered = fg.Run(own).classifier().predict([place / f"{name}.jpg" for name in COLORS])
    accuracy = np.mean([label == name for label, name in zip(answered.labels, COLORS, strict=True)])
    ensemble = next(row for row in found["rows"] if row["name"] == "ensemble")
    assert ensemble["accuracy"] == pytest.approx(accuracy)
    assert not (own / "scores.json").exists()


def test_labels_lists_what_looks_wrong_in_the_run(parts: Path, own: Path, command: Command) -> None:
    said = command("labels", own)
    assert said.code == 0
    rows = table(own / "labels.csv")
    header = (own / "labels.csv").read_text("utf-8").splitlines()[0].split(",")
    assert {"path", "label", "reason"} <= set(header)
    training = {photo.path for photo in fg.Run(own).catalog.photos if photo.split == "train"}
    assert {row["path"] for row in rows} <= training
    assert str(own / "labels.csv") in said.out.replace("\n", "")
    assert sorted(path.suffix for path in parts.rglob("*") if path.is_file()) == [".jpg"] * 36


def test_labels_can_go_to_another_file(own: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "odd.csv"
    before = sorted(own.rglob("*"))
    said = command("labels", own, "--out", out)
    assert said.code == 0 and str(out) in said.out
    assert sorted(own.rglob("*")) == before
    for _ in range(2):  # its own table is made again
        assert command("labels", own).code == 0
        assert out.read_bytes() == (own / "labels.csv").read_bytes()


def test_a_labelled_test_part_is_scored_too_and_chooses_nothing(
    parts: Path, tmp_path: Path, command: Command, looks: list[int]
) -> None:
    photos = shutil.copytree(parts, tmp_path / "photos")
    for number, (name, color) in enumerate(COLORS.items()):
        draw_photo(photos / "test" / name / "new.jpg", color, 7000 + number)
    shutil.copy(photos / "train" / "blue" / "003.jpg", photos / "test" / "blue" / "copy.jpg")
    run = small_fit(photos, tmp_path / "run", epochs=1, warmup=0.0)
    assert {run.catalog.photos[row].split for row in run.outside} == {"val"}
    said = command("score", run.folder, *ON_CPU)
    assert said.code == 0
    assert "on 12 photos outside all folds" in said.out
    assert f"on {len(COLORS)} photos of the test part" in said.out
    assert "1 photos of the test part are left out: copies of training photos" in said.err
    looks.clear()
    assert command("score", run.folder, *ON_CPU) == said
    found = json.loads(command("score", run.folder, "--json", *ON_CPU).out)
    assert looks == []
    assert (found["outside"]["photos"], found["test"]["photos"]) == (12, len(COLORS))
