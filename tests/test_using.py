import csv
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLORS, draw_photo
from fits import small_fit
from PIL import Image
from safetensors import safe_open

import fieldguide as fg
from fieldguide import catalog, cli, combine, files, inference, outside, runs
from fieldguide.classifier import Classifier
from fieldguide.inference import Machine

pytestmark = pytest.mark.usefixtures("plain_consoles")

CPU = Machine("cpu", workers=0)
ON_CPU = ["--device", "cpu", "--workers", "0"]
CLASSES = tuple(COLORS)

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured on few photos."""
    monkeypatch.setattr(outside, "TIMED_PHOTOS", 8)


@pytest.fixture
def own(trained: fg.Run, tmp_path: Path) -> Path:
    """The folder of a copy of the run, to write into."""
    return shutil.copytree(trained.folder, tmp_path / "run")


@pytest.fixture
def unfinished(own: Path) -> Path:
    """The same before fold 2 was trained."""
    for place in (own, own / "folds" / "2"):
        (place / "manifest.json").unlink()
    return own


@pytest.fixture
def mixed(parts: Path, tmp_path: Path) -> Path:
    """Three good photos, an empty file, a page, and a photo cut short, in one folder."""
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    for name in CLASSES:
        shutil.copy(parts / "val" / name / "020.jpg", folder / f"{name}.jpg")
    (folder / "blank.jpg").write_bytes(b"")
    (folder / "below" / "page.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    whole = (folder / "blue.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    return folder


def predict(model: Path, *photos: Path | str, out: Path, more: tuple[str, ...] = ()) -> int:
    given = [str(each) for each in photos]
    return cli.run(["predict", str(model), *given, "--out", str(out), *ON_CPU, *more])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- refused before anything is done --------------------------------------------------------------

QUICK: list[tuple[list[str], int, str]] = [
    (["predict", "RUN", "VAL", "--sets", "adaptive"], 2, "--sets has no effect"),
    (["predict", "RUN", "VAL", "--sets-per-class"], 2, "--sets-per-class has no effect"),
    (["predict", "RUN", "VAL", "--coverage", "0"], 2, "not between 0 and 1"),
    (["predict", "RUN", "VAL", "--coverage", "1"], 2, "not between 0 and 1"),
    (["predict", "RUN", "VAL", "--coverage", "1.5"], 2, "not between 0 and 1"),
    (["predict", "RUN", "VAL", "--coverage", "nan"], 2, "not between 0 and 1"),
    (["predict", "RUN", "VAL", "--coverage", "0.9", "--no-calibrated"], 2, "--no-calibrated"),
    (["predict", "RUN", "VAL", "--id", "stem"], 2, "--id is for submissions"),
    (["predict", "RUN", "VAL", "--submission", "s.csv", "--top", "3"], 2, "--top has no place"),
    (["predict", "RUN", "VAL", "--columns", "a,b", "--probabilities"], 2, "--probabilities has no"),
    (["predict", "RUN", "VAL", "--columns", "a,b", "--coverage", "0.9"], 2, "--coverage has no"),
    (["predict", "RUN", "VAL", "--columns", "a,b", "--spreadsheet"], 2, "--spreadsheet has no"),
    (["predict", "RUN", "VAL", "--columns", "id"], 2, "not two names"),
    (["predict", "RUN", "VAL", "--columns", "a,b,c"], 2, "not two names"),
    (["predict", "RUN", "VAL", "--columns", "a,b", "--submission", "s.csv"], 2, "--columns"),
    (["predict", "RUN", "VAL", "--top", "0"], 2, "--top is below 1"),
    (["predict", "RUN", "VAL", "--views", "flips,tilts"], 2, "`tilts`"),
    (["predict", "RUN", "VAL", "--batch-size", "0"], 2, "--batch-size is below 1"),
    (["predict", "RUN", "VAL", "--workers", "-2"], 2, "`workers`"),
    (["predict", "RUN", "VAL", "--precision", "fp16"], 2, "--precision"),
    (["predict", "RUN", "VAL", "--out", "TABLE"], 2, "this file exists"),
    (["predict", "RUN", "VAL", "--out", "TABLE", "--coverage", "0.9"], 2, "this file exists"),
    (["predict", "RUN", "VAL", "--out", "VAL"], 2, "this is a folder"),
    (["predict", "RUN", "VAL", "--out", "GONE/p.csv"], 4, "no such folder"),
    (["predict", "RUN", "GONE"], 3, "no such file or folder"),
    (["predict", "RUN", "VAL", "--root", "VAL"], 2, "`root` is for tables and lists"),
    (["predict", "RUN", "VAL/blue/020.jpg", "--no-recursive"], 2, "`recursive` is for folders"),
    (["predict", "SAVED", "VAL", "--combine", "soup"], 2, "--combine is for runs"),
    (["predict", "SAVED", "VAL", "--photos-root", "VAL"], 2, "--photos-root is for runs"),
    (["predict", "VAL", "VAL"], 2, "neither a run's folder nor a classifier's"),
    (["predict", "RUN", "VAL", "--combine", "stok"], 2, "did you mean `stock`?"),
    (["predict", "RUN", "VAL", "--toop", "3"], 2, "unknown option: --toop (did you mean --top?)"),
    (["predict", "RUN", "--overwrit", "VAL"], 2, "(did you mean --overwrite?)"),
    (["predict", "RUN", "VAL", "--batch-sise=8"], 2, "--batch-sise=8 (did you mean --batch-size?)"),
    (["predict", "RUN", "VAL", "--wrokers", "0"], 2, "(did you mean --workers?)"),
    (["predict", "RUN", "VAL", "--devise", "cpu"], 2, "(did you mean --device?)"),
    (["predict", "RUN", "VAL", "--path-colum", "file"], 2, "(did you mean --path-column?)"),
    (["predict", "RUN", "VAL", "--zzzzzz"], 2, "unknown option: --zzzzzz  hint:"),
    (["predict", "RUN", "VAL", "--zzzzzz"], 2, "./NAME"),
    (["save", "RUN", "--out", "NEW", "--combine", "soop"], 2, "did you mean `soup`?"),
    (["predict", "GONE", "VAL"], 2, "neither a run's folder nor a classifier's"),
    (["save", "RUN", "--out", "VAL"], 2, "is there already"),
    (["save", "GONE", "--out", "NEW"], 2, "no run folder"),
    (["merge", "GONE"], 2, "`GONE`"),
    (["merge", "RUN", "--out", "new.safetensors"], 2, "--out is for checkpoints"),
    (["merge", "RUN", "--anchor", "TABLE"], 2, "--anchor is for checkpoints"),
    (["merge", "RUN", "--rule", "porridge"], 2, "porridge"),
    (["merge", "UNFINISHED"], 2, "2 of 3 folds are done"),
    (["labels", "GONE"], 2, "no run folder"),
    (["score", "RUN", "--label-column", "species"], 2, "--label-column is for tables"),
    (["score", "RUN", "--batch-size", "0"], 2, "--batch-size is below 1"),
    (["score", "RUN", "GONE"], 3, "GONE"),
]


@pytest.fixture(scope="module")
def quick(
    trained: fg.Run, parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of `QUICK` answers, and whether it asked for torch: in one other process."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "TABLE").write_text("mine")
    shutil.copytree(trained.folder, folder / "UNFINISHED")
    for place in ("manifest.json", "folds/2/manifest.json"):
        (folder / "UNFINISHED" / place).unlink()
    (folder / "RUN").symlink_to(trained.folder)
    trained.classifier(0).save(folder / "SAVED")
    (folder / "VAL").symlink_to(parts / "val")
    script = (
        "import contextlib, io, json, sys\n"
        "class Heavy(BaseException):\n"
        "    pass\n"
        "class Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in {'torch', 'timm', 'torchvision'}:\n"
        "            raise Heavy\n"
        "sys.meta_path.insert(0, Guard())\n"
        "from fieldguide.cli import run, terminal\n"
        "for arguments in json.load(sys.stdin):\n"
        "    said, heavy, code = io.StringIO(), False, None\n"
        "    terminal.stderr.file = terminal.stdout.file = said\n"
        "    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "        try:\n            code = run(arguments)\n"
        "        except Heavy:\n            heavy = True\n"
        "    print(json.dumps({'code': code, 'said': said.getvalue(), 'heavy': heavy}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([arguments for arguments, _, _ in QUICK]),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "TABLE").read_text() == "mine"
    assert not (folder / "predictions.csv").exists()
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(QUICK)), ids=lambda n: " ".join(QUICK[n][0]))
def test_what_cannot_work_is_refused_without_torch(
    number: int, quick: list[dict[str, Any]]
) -> None:
    _, code, said = QUICK[number]
    answer = quick[number]
    assert not answer["heavy"]
    assert said in answer["said"].replace("\n", " ")
    assert answer["code"] == code


# --- predict --------------------------------------------------------------------------------------


def test_every_input_has_one_row_in_order_and_bad_ones_their_reason(
    trained: fg.Run, mixed: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "p.csv"
    assert predict(trained.folder, mixed, out=out) == 0
    rows = table(out)
    names = ["amber.jpg", "below/page.jpg", "blank.jpg", "blue.jpg", "crimson.jpg", "cut.jpg"]
    assert [row["path"] for row in rows] == names
    assert list(rows[0]) == ["path", "label", "confidence", "second", "second_confidence", "status"]
    assert [row["status"] for row in rows] == [
        "ok",
        "unreadable: not an image (HTML)",
        "unreadable: empty file",
        "ok",
        "ok",
        "unreadable: truncated",
    ]
    good = [row for row in rows if row["status"] == "ok"]
    paths = [mixed / row["path"] for row in good]
    expected = trained.classifier().predict(paths, machine=CPU)
    assert tuple(row["label"] for row in good) == expected.labels
    shown = [float(row["confidence"]) for row in good]
    np.testing.assert_allclose(shown, expected.confidences, atol=1e-5)
    assert all(row["label"] == row["second"] == "" for row in rows if row["status"] != "ok")
    said = capsys.readouterr()
    assert said.out == ""
    assert f"6 photos, 3 of them unreadable: {out}" in said.err


def test_strict_writes_all_rows_and_then_fails(
    trained: fg.Run, mixed: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    assert predict(trained.folder, mixed, out=out, more=("--strict", "--zip")) == 3
    assert len(table(out)) == 6
    assert (tmp_path / "p.csv.zip").exists()
    again = tmp_path / "good.csv"
    assert predict(trained.folder, parts / "val", out=again, more=("--strict",)) == 0


def test_lists_name_what_is_missing_and_what_stands_twice(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    names = ["blue/020.jpg", "gone.jpg", "amber/021.jpg", "blue/020.jpg"]
    place = tmp_path / "list.txt"
    place.write_text("\n".join(names))
    out = tmp_path / "p.csv"
    root = ("--root", str(parts / "val"))
    assert predict(trained.folder, place, out=out, more=(*root, "--batch-size", "2")) == 0
    rows = table(out)
    assert [row["path"] for row in rows] == names
    assert [row["status"] for row in rows] == ["ok", "unreadable: file not found", "ok", "ok"]
    assert rows[0] == rows[3]


def test_standard_input_is_a_list(
    trained: fg.Run, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "".join(f"{path}\n" for path in sorted((parts / "val").glob("blue/*.jpg")))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    out = tmp_path / "p.csv"
    assert predict(trained.folder, "-", out=out) == 0
    assert [row["path"] for row in table(out)] == listed.splitlines()


def test_several_sources_follow_one_another(trained: fg.Run, parts: Path, tmp_path: Path) -> None:
    val, out = parts / "val", tmp_path / "p.csv"
    assert predict(trained.folder, val / "blue", val / "amber" / "020.jpg", out=out) == 0
    paths = [row["path"] for row in table(out)]
    expected = [str(val / "blue" / f"02{n}.jpg") for n in range(4)]
    assert paths == [*expected, str(val / "amber" / "020.jpg")]


def test_a_table_is_replaced_when_asked_only(
    trained: fg.Run, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "p.csv"
    out.write_text("mine")
    assert predict(trained.folder, parts / "val", out=out) == 2
    assert out.read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert predict(trained.folder, parts / "val", out=out, more=("--overwrite",)) == 0
    assert len(table(out)) == 12
    packed = tmp_path / "p.csv.zip"
    packed.write_text("mine")
    more = ("--overwrite", "--zip")
    (tmp_path / "q.csv.zip").write_text("mine")
    assert predict(trained.folder, parts / "val", out=tmp_path / "q.csv", more=("--zip",)) == 2
    assert not (tmp_path / "q.csv").exists()
    assert predict(trained.folder, parts / "val", out=out, more=more) == 0
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == ["p.csv"]
        assert archive.read("p.csv") == out.read_bytes()


def test_more_classes_and_all_probabilities_can_be_written(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    more = ("--top", "1", "--probabilities", "--no-calibrated", "--combine", "fold-1")
    assert predict(trained.folder, parts / "train", out=out, more=more) == 0
    rows = table(out)
    columns = [f"p:{name}" for name in CLASSES]
    assert list(rows[0]) == ["path", "label", "confidence", "status", *columns]
    with (trained.folder / "oof.csv").open(newline="") as file:
        oof = {row["path"]: row for row in csv.DictReader(file) if row["fold"] == "1"}
    assert len(oof) == 8
    said = {f"train/{row['path']}": row for row in rows}
    for path, row in oof.items():
        for column in columns:
            assert float(said[path][column]) == pytest.approx(float(row[column]), abs=1e-5)


def test_sets_of_classes_and_doubts_are_columns(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    found = []
    for coverage in ("0.3", "0.9"):
        for sets in ("split", "adaptive"):
            out = tmp_path / f"{coverage}-{sets}.csv"
            more = ("--coverage", coverage, "--sets", sets)
            assert predict(trained.folder, parts / "val", out=out, more=more) == 0
            rows = table(out)
            found.append([set(filter(None, row["set"].split("; "))) for row in rows])
            assert [row["unsure"] for row in rows] == [
                "no" if len(each) == 1 else "yes" for each in found[-1]
            ]
    for small, large in ((0, 2), (1, 3)):
        assert all(a <= b for a, b in zip(found[small], found[large], strict=True))
    assert found[0] != found[2]


def test_views_change_probabilities_and_not_rows(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    for name, more in (("plain", ()), ("views", ("--views", " crops, flips"))):
        assert predict(trained.folder, parts / "val", out=tmp_path / name, more=more) == 0
    plain, views = table(tmp_path / "plain"), table(tmp_path / "views")
    assert [row["path"] for row in plain] == [row["path"] for row in views]
    assert [row["confidence"] for row in plain] != [row["confidence"] for row in views]
    paths = [parts / "val" / row["path"] for row in views]
    expected = trained.classifier().predict(paths, views=("flips", "crops"), machine=CPU)
    shown = [float(row["confidence"]) for row in views]
    np.testing.assert_allclose(shown, expected.confidences, atol=1e-5)


def test_an_interrupted_prediction_says_where_its_rows_are(
    trained: fg.Run, parts: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = inference.logits

    def logits(*arguments: Any) -> Any:
        yield next(original(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "logits", logits)
    out = tmp_path / "p.csv"
    assert predict(trained.folder, parts / "val", out=out, more=("--batch-size", "4")) == 130
    assert f"the rows so far are in {out}.part" in capsys.readouterr().err.replace("\n", "")
    assert not out.exists()
    assert len(table(tmp_path / "p.csv.part")) == 4


@pytest.mark.parametrize("combine", ["folds", "fold-9", "soup-average", "7"])
def test_an_unknown_way_to_combine_folds_is_refused(
    combine: str, trained: fg.Run, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    more = ("--combine", combine)
    assert predict(trained.folder, parts / "val", out=tmp_path / "p.csv", more=more) == 2
    assert combine.removeprefix("fold-") in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


def test_an_unfinished_run_answers_by_the_folds_that_are_done(
    unfinished: Path, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert predict(unfinished, parts / "val", out=tmp_path / "p.csv") == 0
    assert "2 of 3 folds are done: these answer" in capsys.readouterr().err
    model = fg.Run(unfinished).classifier()
    assert model.card.members == ("fold 0", "fold 1")
    expected = model.predict(parts / "val", machine=CPU)
    assert tuple(row["label"] for row in table(tmp_path / "p.csv")) == expected.labels
    for fold in (0, 1):
        (unfinished / "folds" / str(fold) / "manifest.json").unlink()
    assert predict(unfinished, parts / "val", out=tmp_path / "q.csv") == 4
    assert "no fold of" in capsys.readouterr().err


# --- submissions ----------------------------------------------------------------------------------


def sample(place: Path, header: str, ids: list[str], rest: str) -> Path:
    place.write_text("\n".join([header, *(f"{each}{rest}" for each in ids)]) + "\n")
    return place


@pytest.fixture
def flat(parts: Path, tmp_path: Path) -> Path:
    """The photos outside the folds, under names of their own in one folder."""
    folder = tmp_path / "test"
    folder.mkdir()
    for number, path in enumerate(sorted((parts / "val").glob("*/*.jpg"))):
        shutil.copy(path, folder / f"{number:02d}.jpg")
    return folder


def test_a_submission_follows_its_sample(trained: fg.Run, flat: Path, tmp_path: Path) -> None:
    ids = [f"{n:02d}" for n in (5, 3, 11, 0, 1, 2, 4, 6, 7, 8, 9, 10)]
    out = tmp_path / "s.csv"
    expected = trained.classifier().predict([flat / f"{each}.jpg" for each in ids], machine=CPU)
    like = sample(tmp_path / "sample.csv", "image,label", ids, ",amber")
    assert predict(trained.folder, flat, out=out, more=("--submission", str(like))) == 0
    rows = table(out)
    assert list(rows[0]) == ["image", "label"]
    assert [row["image"] for row in rows] == ids
    assert tuple(row["label"] for row in rows) == expected.labels
    columns = "id," + ",".join(reversed(CLASSES))
    like = sample(tmp_path / "shares.csv", columns, [f"{each}.jpg" for each in ids], ",0,0,1")
    more = ("--submission", str(like), "--overwrite")
    assert predict(trained.folder, flat, out=out, more=more) == 0
    rows = table(out)
    assert [row["id"] for row in rows] == [f"{each}.jpg" for each in ids]
    shares = [[float(row[name]) for name in trained.classes] for row in rows]
    np.testing.assert_allclose(shares, expected.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([f"{n:02d}" for n in range(13)], "1 without a photo: `12`"),
        ([f"{n:02d}" for n in range(11)], "1 photo without an id: `11.jpg`"),
    ],
)
def test_missing_and_extra_ids_are_named(
    ids: list[str], said: str, trained: fg.Run, flat: Path, tmp_path: Path, capsys: Captured
) -> None:
    like = sample(tmp_path / "sample.csv", "image,label", ids, ",amber")
    out = tmp_path / "s.csv"
    assert predict(trained.folder, flat, out=out, more=("--submission", str(like))) == 3
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_submission_may_have_columns_of_any_two_names(
    trained: fg.Run, flat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.csv"
    more = ("--columns", "image_name,pred_label", "--id", "stem", "--zip")
    assert predict(trained.folder, flat, out=out, more=more) == 0
    rows = table(out)
    assert list(rows[0]) == ["image_name", "pred_label"]
    assert [row["image_name"] for row in rows] == [f"{n:02d}" for n in range(12)]
    with zipfile.ZipFile(tmp_path / "s.csv.zip") as archive:
        assert archive.read("s.csv") == out.read_bytes()


# --- save -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["ensemble", "geometric", "fold-2", "soup"])
def test_a_saved_classifier_answers_as_its_run(
    combine: str, own: Path, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    place = tmp_path / "saved"
    assert cli.run(["save", str(own), "--out", str(place), "--combine", combine, *ON_CPU]) == 0
    assert str(place) in capsys.readouterr().out
    one, other = tmp_path / "run.csv", tmp_path / "saved.csv"
    more = ("--combine", combine)
    assert predict(own, parts / "val", out=one, more=(*more, "--probabilities")) == 0
    shutil.rmtree(own)
    assert predict(place, parts / "val", out=other, more=("--probabilities",)) == 0
    assert one.read_bytes() == other.read_bytes()
    assert predict(place, parts / "val", out=tmp_path / "no.csv", more=more) == 2
    assert "--combine is for runs" in capsys.readouterr().err


def test_a_damaged_classifier_is_refused_by_name(
    own: Path, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    place = tmp_path / "saved"
    assert cli.run(["save", str(own), "--out", str(place), *ON_CPU]) == 0
    member = place / "member-1.safetensors"
    content = bytearray(member.read_bytes())
    content[-1] ^= 1
    member.write_bytes(content)
    assert predict(place, parts / "val", out=tmp_path / "p.csv") == 4
    assert "member-1.safetensors" in capsys.readouterr().err


# --- merge ----------------------------------------------------------------------------------------


def test_merge_keeps_a_model_that_predict_then_reads(
    own: Path, parts: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.run(["merge", str(own), *ON_CPU]) == 0
    said = capsys.readouterr().out
    assert str(own / "models" / "soup") in said and "--combine soup" in said
    monkeypatch.setattr(combine, "soup", None)  # not made again
    out = tmp_path / "p.csv"
    assert predict(own, parts / "val", out=out, more=("--combine", "soup")) == 0
    expected = Classifier.load(own / "models" / "soup").predict(parts / "val", machine=CPU)
    assert tuple(row["label"] for row in table(out)) == expected.labels
    assert cli.run(["merge", str(own), *ON_CPU]) == 0


def test_the_next_commands_that_merge_tells_work(
    own: Path, parts: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["merge", str(own), "--rule", "stock", "--batch-norm", "average", *ON_CPU]
    assert cli.run(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    commands = [line.split()[1:] for line in said if line.strip().startswith("fieldguide ")]
    assert [command[0] for command in commands] == ["score", "predict"]
    for command in commands:
        ready = [str(parts / "val") if word == "PHOTOS" else word for word in command]
        assert cli.run([*ready, *ON_CPU]) == 0
    assert len(table(tmp_path / "predictions.csv")) == 12


def test_merge_refuses_what_it_cannot_do(
    unfinished: Path, discs: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert cli.run(["merge", str(unfinished), *ON_CPU]) == 2
    assert "2 of 3 folds are done" in capsys.readouterr().err
    alone = small_fit(discs, tmp_path / "alone", epochs=1, warmup=0.0, replicas=1, merge="none")
    assert cli.run(["merge", str(alone.folder), "--rule", "greedy", *ON_CPU]) == 3
    assert "--holdout" in capsys.readouterr().err
    assert not (alone.folder / "models").exists()


def test_soups_find_photos_that_were_moved(
    own: Path, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    moved = shutil.copytree(parts, tmp_path / "moved")
    run = relocated(own, tmp_path / "nowhere")
    arguments = ["merge", str(run), *ON_CPU]
    assert cli.run(arguments) == 3
    assert "--photos-root" in capsys.readouterr().err
    out = tmp_path / "p.csv"
    for command in (["merge", str(run)], ["save", str(run), "--out", str(tmp_path / "saved")]):
        assert cli.run([*command, *ON_CPU, "--photos-root", str(moved)]) == 0
    shutil.rmtree(run / "models")
    more = ("--combine", "soup")
    assert predict(run, moved / "val", out=out, more=more) == 3
    assert predict(run, moved / "val", out=out, more=(*more, "--photos-root", str(moved))) == 0


def test_merged_checkpoints_name_each_file_they_come_from(
    own: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Here all have one name, in folders of their own, which are nobody else's business."""
    copies = [own / "folds" / str(fold) / "weights.safetensors" for fold in range(3)]
    start, out = own / "start.safetensors", tmp_path / "merged.safetensors"
    more = ["--anchor", str(start), "--rule", "stock", "--out", str(out)]
    assert cli.run(["merge", *map(str, copies), *more]) == 0
    assert str(out) in capsys.readouterr().out
    with safe_open(out, "pt") as file:
        record = json.loads(file.metadata()["provenance"])
    assert record["rule"] == "stock"
    assert [each["file"] for each in record["copies"]] == ["weights.safetensors"] * 3
    assert [each["sha256"] for each in record["copies"]] == [files.sha256(each) for each in copies]
    assert record["anchor"] == {"file": "start.safetensors", "sha256": files.sha256(start)}
    assert cli.run(["merge", *map(str, copies), *more]) == 2
    assert "is there already" in capsys.readouterr().err


def relocated(run: Path, place: Path) -> Path:
    """Changes the run: its photos are said to lie elsewhere."""
    environment = json.loads((run / "environment.json").read_bytes())
    files.write_json(run / "environment.json", environment | {"photos": str(place)})
    files.write_manifest(run, runs.SETUP_FILES, name=runs.SETUP)
    return run


# --- score ----------------------------------------------------------------------------------------


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
    own: Path, capsys: Captured, looks: list[int]
) -> None:
    score = ["score", str(own), *ON_CPU]
    assert cli.run(score) == 0
    first = capsys.readouterr().out
    assert looks
    assert "out-of-fold accuracy" in first
    assert "on 12 photos outside all folds" in first
    assert "ensemble" in first and "mean of folds" in first
    looks.clear()
    assert cli.run(score) == 0
    assert capsys.readouterr().out == first
    assert looks == []
    assert cli.run(["merge", str(own), "--rule", "greedy", *ON_CPU]) == 0
    capsys.readouterr()
    looks.clear()
    assert cli.run(score) == 0
    last = capsys.readouterr().out
    assert looks
    assert "greedy*" in last and "* chosen by these photos: judged cross-fitted" in last


def test_scores_as_json_hold_all_that_is_printed(own: Path, capsys: Captured) -> None:
    assert cli.run(["score", str(own), "--json", "--per-class", *ON_CPU]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["out_of_fold"] == json.loads((own / "summary.json").read_bytes())
    table = outside.worths(fg.Run(own), CPU)  # the one that was kept
    assert found["outside"] == json.loads(json.dumps(asdict(table)))
    assert list(found["outside"]) == ["rows", "photos", "unreadable"]
    assert found["outside"]["photos"] == 12
    names = [row["name"] for row in found["outside"]["rows"]]
    assert names == ["fold 0", "fold 1", "fold 2", "mean of folds", "ensemble"]
    assert list(found["classes"]) == list(CLASSES)
    assert sum(each["photos"] for each in found["classes"].values()) == 24
    shares = [each["recall"] * each["photos"] for each in found["classes"].values()]
    assert sum(shares) / 24 == pytest.approx(found["out_of_fold"]["accuracy"])


@pytest.mark.parametrize("as_json", [False, True])
def test_score_refuses_photos_that_were_trained_on_and_tells_the_folds_scores_all_the_same(
    as_json: bool, trained: fg.Run, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    photos = shutil.copytree(parts / "val", tmp_path / "photos")
    shutil.copy(parts / "train" / "blue" / "003.jpg", photos / "blue" / "other.jpg")
    more = ["--json"] if as_json else []
    assert cli.run(["score", str(trained.folder), str(photos), *more, *ON_CPU]) == 3
    said = capsys.readouterr()
    assert "1 of 13 photos were used by the folds in training" in said.err.replace("\n", " ")
    assert "other.jpg" in said.err and "003.jpg" in said.err
    if as_json:
        found = json.loads(said.out)
        assert found["out_of_fold"]["accuracy"] == trained.scores.accuracy
        assert found["outside"] is None
    else:
        assert f"out-of-fold accuracy {trained.scores.accuracy:.1%}" in said.out
        assert "outside" not in said.out


def test_score_tells_what_looks_like_a_training_photo(
    trained: fg.Run, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    photos = shutil.copytree(parts / "val", tmp_path / "photos")
    with Image.open(parts / "train" / "blue" / "003.jpg") as picture:
        picture.save(photos / "blue" / "again.jpg", quality=70)
    assert cli.run(["score", str(trained.folder), str(photos), *ON_CPU]) == 0
    said = capsys.readouterr()
    assert "1 photos look like training photos and are left out" in said.err.replace("\n", " ")
    assert "on 12 photos outside all folds" in said.out


def test_score_leaves_out_what_cannot_be_read(
    own: Path, parts: Path, tmp_path: Path, capsys: Captured
) -> None:
    moved = shutil.copytree(parts, tmp_path / "moved")
    (moved / "val" / "blue" / "021.jpg").unlink()
    (moved / "val" / "amber" / "022.jpg").write_bytes(b"")
    score = ["score", str(own), "--photos-root", str(moved), *ON_CPU]
    assert cli.run(score) == 0
    said = capsys.readouterr()
    assert "on 10 photos outside all folds" in said.out
    assert "2 photos cannot be read and are left out" in said.err.replace("\n", " ")
    assert cli.run([*score, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["outside"]
    assert (found["photos"], found["unreadable"]) == (10, 2)
    shutil.rmtree(moved / "val")
    assert cli.run(score) == 3
    said = capsys.readouterr()
    assert "out-of-fold accuracy" in said.out and "outside" not in said.out
    assert "none of 12 labelled photos outside the folds can be read" in said.err
    assert "--photos-root" in said.err


def test_score_judges_other_photos_and_leaves_no_table_of_them(
    own: Path, tmp_path: Path, capsys: Captured
) -> None:
    lines = ["file,species"]
    for number, (name, color) in enumerate(COLORS.items()):
        place = tmp_path / "others" / f"{name}.jpg"
        draw_photo(place, color, 9000 + number)
        lines.append(f"{place.name},{name}")
    listed = tmp_path / "others" / "labels.csv"
    listed.write_text("\n".join(lines))
    arguments = ["score", str(own), str(listed), "--label-column", "species", "--json", *ON_CPU]
    assert cli.run(arguments) == 0
    found = json.loads(capsys.readouterr().out)["outside"]
    assert found["photos"] == 3
    expected = catalog.read(listed, label="species")
    right = fg.Run(own).classifier().predict([expected.file(p) for p in expected.photos])
    accuracy = np.mean([a == p.label for a, p in zip(right.labels, expected.photos, strict=True)])
    ensemble = next(row for row in found["rows"] if row["name"] == "ensemble")
    assert ensemble["accuracy"] == pytest.approx(accuracy)
    assert not (own / "scores.json").exists()


def test_score_says_how_to_come_by_photos_outside_the_folds(
    discs: Path, tmp_path: Path, capsys: Captured
) -> None:
    run = small_fit(discs, tmp_path / "run", epochs=1, warmup=0.0, replicas=1, merge="none")
    assert cli.run(["score", str(run.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outside"] is None
    assert cli.run(["score", str(run.folder)]) == 0
    said = capsys.readouterr()
    assert "--holdout" in said.err.replace("\n", " ")
    assert "outside" not in said.out


def test_score_of_an_unfinished_run_tells_of_the_folds_that_are_done(
    unfinished: Path, capsys: Captured
) -> None:
    assert cli.run(["score", str(unfinished), *ON_CPU]) == 0
    said = capsys.readouterr().out
    assert "(2 of 3 folds done)" in said
    assert "fold 1" in said and "fold 2" not in said


# --- labels ---------------------------------------------------------------------------------------


def test_labels_lists_what_looks_wrong_in_the_run(parts: Path, own: Path, capsys: Captured) -> None:
    assert cli.run(["labels", str(own)]) == 0
    said = capsys.readouterr()
    rows = table(own / "labels.csv")
    header = (own / "labels.csv").read_text("utf-8").splitlines()[0].split(",")
    assert {"path", "label", "reason"} <= set(header)
    training = {photo.path for photo in fg.Run(own).catalog.photos if photo.split == "train"}
    assert {row["path"] for row in rows} <= training
    assert str(own / "labels.csv") in said.out.replace("\n", "")
    assert sorted(path.suffix for path in parts.rglob("*") if path.is_file()) == [".jpg"] * 36


def test_labels_can_go_to_another_file(own: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "odd.csv"
    before = sorted(own.rglob("*"))
    assert cli.run(["labels", str(own), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert sorted(own.rglob("*")) == before
    assert cli.run(["labels", str(own)]) == 0
    assert out.read_bytes() == (own / "labels.csv").read_bytes()
    assert cli.run(["labels", str(own)]) == 0  # its own table is made again


def test_labels_overwrites_no_file_of_somebody_else(
    own: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "mine.csv"
    out.write_text("mine")
    assert cli.run(["labels", str(own), "--out", str(out)]) == 2
    assert str(out) in capsys.readouterr().err
    assert out.read_text() == "mine"
