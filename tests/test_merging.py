import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer
from safetensors import safe_open
from shell import CPU, ON_CPU, table

from fieldguide.predict import combine
from fieldguide.predict.classifier import Classifier
from fieldguide.runs import run as runs
from fieldguide.storage import files

Command = Callable[..., Answer]


def test_a_soup_is_kept_in_the_run_where_predict_reads_it(
    own: Path, parts: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = command("soup", own, *ON_CPU)
    assert said.code == 0 and said.err == ""
    assert str(own / "models" / "soup") in said.out and "--combine soup" in said.out
    monkeypatch.setattr(combine, "soup", None)  # not made again
    out = tmp_path / "p.csv"
    asked = ["predict", own, parts / "val", "--out", out, "--combine", "soup"]
    assert command(*asked, *ON_CPU).code == 0
    expected = Classifier.load(own / "models" / "soup").predict(parts / "val", machine=CPU)
    assert tuple(row["label"] for row in table(out)) == expected.labels
    assert command("soup", own, *ON_CPU).code == 0


def test_the_next_commands_that_soup_tells_work(
    own: Path, parts: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("soup", own, "--rule", "stock", "--batch-norm", "recalibrate", *ON_CPU)
    assert said.code == 0
    lines = [line.split() for line in said.out.splitlines()]
    commands = [words[1:] for words in lines if words[:1] == ["fieldguide"]]
    assert [words[0] for words in commands] == ["score", "predict"]
    for words in commands:
        ready = [parts / "val" if word == "PHOTOS" else word for word in words]
        assert command(*ready, *ON_CPU).code == 0
    assert len(table(tmp_path / "predictions.csv")) == 12


def test_merge_of_a_run_is_soup_and_says_so_in_one_line(own: Path, command: Command) -> None:
    more = ["--rule", "stock", "--batch-norm", "recalibrate", *ON_CPU]
    said = command("merge", own, *more)
    note, _, rest = said.err.partition("fieldguide soup ")
    assert said.code == 0 and note.startswith("note: ") and rest.endswith(" ")
    again = command("soup", *rest.split())
    assert again.code == 0 and again.out == said.out
    assert rest.split() == [str(own), *more]
    assert (own / "models" / "stock-recal").is_dir()


def test_soups_find_photos_that_were_moved(
    own: Path, parts: Path, tmp_path: Path, command: Command
) -> None:
    moved = shutil.copytree(parts, tmp_path / "moved")
    root = ["--photos-root", moved]
    run = relocated(own, tmp_path / "nowhere")
    anew = ["soup", run, "--batch-norm", "recalibrate"]
    said = command(*anew, *ON_CPU)
    assert said.code == 3 and "--photos-root" in said.err
    said = command("score", run, *ON_CPU)
    assert said.code == 3 and "--photos-root" in said.err and "out-of-fold accuracy" in said.out
    save = ["save", run, "--out", tmp_path / "saved"]
    for words in (anew, save, ["merge", run], ["score", run]):
        assert command(*words, *ON_CPU, *root).code == 0
    shutil.rmtree(run / "models")
    asked = ["predict", run, moved / "val", "--out", tmp_path / "p.csv", "--combine", "soup"]
    assert command(*asked, *ON_CPU).code == 0  # averages need no photos


def relocated(run: Path, place: Path) -> Path:
    """Changes the run: its photos are said to lie elsewhere."""
    environment = json.loads((run / "environment.json").read_bytes())
    files.write_json(run / "environment.json", environment | {"photos": str(place)})
    files.write_manifest(run, runs.SETUP_FILES, name=runs.SETUP)
    return run


def test_merged_checkpoints_name_each_file_they_come_from(
    own: Path, tmp_path: Path, command: Command
) -> None:
    """Here all have one name, in folders of their own, which are nobody else's business."""
    copies = [own / "folds" / str(fold) / "weights.safetensors" for fold in range(3)]
    start, out = own / "start.safetensors", tmp_path / "merged.safetensors"
    asked = ["merge", *copies, "--anchor", start, "--rule", "stock", "--out", out]
    said = command(*asked)
    assert said.code == 0 and str(out) in said.out
    with safe_open(out, "pt") as file:
        record = json.loads(file.metadata()["provenance"])
    assert record["rule"] == "stock"
    assert [each["file"] for each in record["copies"]] == ["weights.safetensors"] * 3
    assert [each["sha256"] for each in record["copies"]] == [files.sha256(each) for each in copies]
    assert record["anchor"] == {"file": "start.safetensors", "sha256": files.sha256(start)}
    said = command(*asked)
    assert said.code == 2 and "is there already" in said.err


@pytest.mark.parametrize("combine", ["ensemble", "geometric", "fold-2", "soup"])
def test_a_saved_classifier_answers_as_its_run(
    combine: str, own: Path, parts: Path, tmp_path: Path, command: Command
) -> None:
    place = tmp_path / "saved"
    said = command("save", own, "--out", place, "--combine", combine, *ON_CPU)
    assert said.code == 0 and str(place) in said.out
    one, other = tmp_path / "run.csv", tmp_path / "saved.csv"
    more = [parts / "val", "--probabilities", *ON_CPU]
    assert command("predict", own, *more, "--out", one, "--combine", combine).code == 0
    shutil.rmtree(own)
    assert command("predict", place, *more, "--out", other).code == 0
    assert one.read_bytes() == other.read_bytes()
