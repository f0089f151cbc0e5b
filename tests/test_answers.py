"""Answers to act on: taxa, unknown photos, classes that can occur, the order of looking."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fits import flags, small_fit
from PIL import Image

import fieldguide as fg
from fieldguide import cli
from fieldguide.analysis import unknown
from fieldguide.analysis.taxa import Taxonomy
from fieldguide.errors import DataError, UsageError
from fieldguide.predict import megadetector, occurrence, reviews
from fieldguide.predict.card import OutOfFold
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.model import Machine
from fieldguide.predict.tables import NO_BOX, Predictions, Taxon
from fieldguide.study import holdout_scores, unknowns

CPU = Machine("cpu", workers=0)
TAXA = "label,order,genus\namber,warm,Aurum\ncrimson,warm,Sanguis\nblue,cold,\n"
TREE = Taxonomy(("order", "genus"), (("warm", "Aurum"), ("cold", ""), ("warm", "Sanguis")))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    place = tmp_path / "taxa.csv"
    place.write_text(TAXA)
    return place


@pytest.fixture
def own(trained: fg.Run, table: Path, tmp_path: Path) -> fg.Run:
    """A copy of the run with a taxonomy."""
    run = fg.Run(shutil.copytree(trained.folder, tmp_path / "run"))
    run.set_taxonomy(table)
    return run


@pytest.fixture
def val(parts: Path) -> list[Path]:
    return sorted((parts / "val").glob("*/*.jpg"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- taxa -----------------------------------------------------------------------------------------


def test_a_taxonomy_is_kept_and_the_results_tell_of_it(own: fg.Run, trained: fg.Run) -> None:
    again = fg.Run(own.folder)
    assert again.complete and again.taxonomy == TREE
    summary = json.loads((own.folder / "summary.json").read_text())
    assert [rank["rank"] for rank in summary["ranks"]] == ["label", "genus", "order"]
    assert [rank["taxa"] for rank in summary["ranks"]] == [3, 3, 2]
    assert summary["ranks"][0]["accuracy"] == trained.scores.accuracy
    assert {**summary, "ranks": 0} == {
        **json.loads((trained.folder / "summary.json").read_text()),
        "ranks": 0,
        "promise": summary["promise"],
        "promise_kept": summary["promise_kept"],
    }
    before = (own.folder / "manifest.json").stat().st_mtime_ns
    own.set_taxonomy(own.folder / "taxonomy.csv")  # the same again changes nothing
    assert (own.folder / "manifest.json").stat().st_mtime_ns == before


def test_accuracy_of_a_rank_is_that_of_the_summed_probabilities(own: fg.Run) -> None:
    logits = np.concatenate([own.logits(fold) for fold in own.done])
    from fieldguide.report.judged import judge

    judged = judge(own)
    warm = judged.scaled[:, [0, 2]].sum(axis=1) > judged.scaled[:, 1]
    order = own.trust.ranks[2]
    assert order.accuracy == (warm == (judged.targets != 1)).mean()
    wrong = np.flatnonzero(logits.argmax(axis=1) != judged.targets)
    within = (judged.targets[wrong] != 1) & (logits.argmax(axis=1)[wrong] != 1)
    assert order.within == (within.mean() if len(wrong) else None)


def test_a_photo_is_answered_at_the_rank_that_is_asked_for(own: fg.Run, val: list[Path]) -> None:
    model = own.classifier("ensemble")
    found = model.predict(val, rank="order", machine=CPU)
    sums = found.probabilities @ np.array([[1, 0], [0, 1], [1, 0]])
    assert found.taxa == tuple(
        Taxon(("warm", "cold")[row.argmax()], "order", pytest.approx(row.max())) for row in sums
    )
    genus = model.predict(val, rank="genus", machine=CPU).taxa
    assert {each and (each.name, each.rank) for each in genus} <= {
        *(("Aurum", "genus"), ("Sanguis", "genus"), ("blue", "label"))
    }


def known(own: fg.Run, copies: int) -> Classifier:
    """The ensemble, as if it had been judged on more photos, of which all orders are right."""
    model = own.classifier("ensemble")
    held = model.out_of_fold
    confidences = np.tile([[0.75, 0.75, 0.96]], (copies, 1))
    right = np.tile([[True, True, True]], (copies, 1))
    right[::2, :2] = False
    more = OutOfFold(
        *(np.resize(each, copies) for each in (held.split, held.adaptive)),
        *(np.resize(each, copies) for each in (held.targets, held.members)),
        groups=np.arange(copies),
        confidences=confidences,
        right=right,
    )
    return replace(model, out_of_fold=more)


def test_the_finest_taxon_that_is_sure_enough_answers(own: fg.Run) -> None:
    model = known(own, 200)
    answering = model.answers_by(0.95)
    assert answering.promise is not None and answering.promise.threshold == 0.8
    probabilities = np.array([[0.9, 0.05, 0.05], [0.6, 0.1, 0.3], [0.4, 0.3, 0.3]])
    assert answering.of(probabilities, model.classes) == [
        Taxon("amber", "label", 0.9),
        Taxon("warm", "order", pytest.approx(0.9)),
        None,
    ]
    (genus,) = model.answers_by(0.95, "order").of(probabilities[1:2], model.classes)
    assert genus == Taxon("warm", "order", pytest.approx(0.9))
    assert model.answers_by(0.95, "label").promise is not None
    assert model.answers_by(0.95, "label").promise.threshold is None  # half of the classes wrong
    assert known(own, 20).answers_by(0.95).of(probabilities, model.classes) == [None] * 3


def test_names_with_other_separators_are_read_back(own: fg.Run, tmp_path: Path) -> None:
    odd = tmp_path / "odd.tsv"
    odd.write_text("label\ta;b;c\td\namber\tx;y\t1\nblue\tx;y\t2\ncrimson\tz\t3\n")
    own.set_taxonomy(odd)
    assert fg.Run(own.folder).taxonomy == Taxonomy(
        ("a;b;c", "d"), (("x;y", "1"), ("x;y", "2"), ("z", "3"))
    )


def test_what_a_kill_left_half_written_is_written_anew(own: fg.Run, table: Path) -> None:
    expected = {
        name: (own.folder / name).read_bytes() for name in ("summary.json", "manifest.json")
    }
    for left in ("summary.json", "manifest.json", "taxonomy.csv"):
        (own.folder / "taxonomy.begun").touch()
        (own.folder / left).write_text("{}" if left.endswith("json") else "label,x\nblue")
        (own.folder / "manifest.json").unlink()
        fg.Run(own.folder).set_taxonomy(table)
        found = {name: (own.folder / name).read_bytes() for name in expected}
        assert found == expected and not (own.folder / "taxonomy.begun").exists()


@pytest.mark.parametrize(
    ("right", "rank", "told"),
    [
        (0.95, "tribe", "no rank `tribe` in the taxonomy"),
        (None, "auto", "`rank` = 'auto' needs `right`"),
        (95.0, "auto", "`right` is not between 0 and 1"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    own: fg.Run, right: float | None, rank: str, told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        own.classifier("ensemble").answers_by(right, rank)


def test_a_saved_classifier_answers_alike(own: fg.Run, val: list[Path], tmp_path: Path) -> None:
    model = own.classifier("ensemble")
    found = Classifier.load(model.save(tmp_path / "saved")).predict(val, rank="order", machine=CPU)
    expected = model.predict(val, rank="order", machine=CPU)
    assert found.taxa == expected.taxa
    np.testing.assert_array_equal(found.familiarity, expected.familiarity)


def test_a_soup_that_was_kept_learns_of_taxa_that_came_later(
    trained: fg.Run, table: Path, val: list[Path], tmp_path: Path
) -> None:
    run = fg.Run(shutil.copytree(trained.folder, tmp_path / "later"))
    holdout_scores.merge_into_run(run, "soup", machine=CPU)
    before = run.classifier("soup").predict(val, machine=CPU)
    run.set_taxonomy(table)
    after = run.classifier("soup").predict(val, rank="order", machine=CPU)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    np.testing.assert_array_equal(after.familiarity, before.familiarity)
    assert {taxon and taxon.name for taxon in after.taxa} <= {"warm", "cold"}


def test_python_refuses_what_the_command_line_does(own: fg.Run, val: list[Path]) -> None:
    model = own.classifier(0)
    with pytest.raises(UsageError, match="`unknown` is not between 0 and 1"):
        model.predict(val, unknown=5.0, machine=CPU)
    with pytest.raises(UsageError, match="promises need calibrated"):
        model.predict(val, right=0.9, calibrated=False, machine=CPU)
    with pytest.raises(ValueError, match="no taxa were asked for"):
        model.predict(val[:1], machine=CPU).taxa  # noqa: B018


def test_a_classifier_of_an_older_version_says_what_it_lacks(
    own: fg.Run, val: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = own.classifier(0)
    bare = replace(model.out_of_fold, groups=None, doubts=None, confidences=None, right=None)
    place = replace(model, card=replace(model.card, taxonomy=None), out_of_fold=bare).save(
        tmp_path / "saved"
    )
    older = Classifier.load(place)
    assert older.predict(val, machine=CPU).labels == model.predict(val, machine=CPU).labels
    with pytest.raises(ValueError, match="no familiarity"):
        older.predict(val, machine=CPU).unknown  # noqa: B018
    with pytest.raises(UsageError, match="an older version"):
        older.answers_by(0.95)
    asked = ["predict", str(place), str(val[0]), "--out", str(tmp_path / "p.csv")]
    assert cli.run([*asked, "--unknown", "0.05"]) == 2
    assert "an older version" in capsys.readouterr().err


def test_predict_writes_taxa_and_unknown_photos(
    own: fg.Run, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    asked = ["predict", str(own.folder), str(parts / "val"), "--out", str(out), "--workers", "0"]
    assert cli.run([*asked, "--unknown", "0.5", "--rank", "order"]) == 0
    found = rows(out)
    assert [*found[0]][-5:] == ["unknown", "familiarity", "taxon", "rank", "taxon_confidence"]
    for row in found:
        assert (row["unknown"] == "yes") == (float(row["familiarity"]) <= 0.5)
        assert row["taxon"] in {"warm", "cold"} and row["rank"] == "order"
        assert float(row["taxon_confidence"]) >= float(row["confidence"]) - 1e-5
    told = capsys.readouterr().err
    marked = sum(row["unknown"] == "yes" for row in found)
    assert f"{marked} of 12 photos look like nothing known" in told
    assert "12 of 12 photos have a taxon" in told
    assert cli.run([*asked, "--overwrite", "--right", "0.95"]) == 0
    assert [(row["taxon"], row["rank"]) for row in rows(out)] == [("", "")] * 12
    assert "none is given (known photos out of fold: 24; at least 107" in capsys.readouterr().err


def test_fit_and_report_take_a_taxonomy(
    discs: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    asked = ["fit", str(discs), "--out", str(run), *flags(epochs=1), "--no-instant"]
    (tmp_path / "bad.csv").write_text(TAXA.replace("crimson", "red"))
    assert cli.run([*asked, "--taxonomy", str(tmp_path / "bad.csv")]) == 3
    assert "1 class of 3 without a row, such as crimson" in capsys.readouterr().err
    assert not run.exists()
    assert cli.run([*asked, "--taxonomy", str(table)]) == 0
    assert "ranks order > genus" in capsys.readouterr().err
    assert fg.Run(run).taxonomy == TREE
    assert '<th scope="row">genus</th>' in (run / "report.html").read_text()
    other = tmp_path / "other.csv"
    other.write_text("label,family\namber,A\nblue,B\ncrimson,A\n")
    assert cli.run(["report", str(run), "--taxonomy", str(other), "--no-heat-maps"]) == 0
    assert fg.Run(run).taxonomy.ranks == ("family",)
    assert '<th scope="row">family</th>' in (run / "report.html").read_text()


# --- unknown photos -------------------------------------------------------------------------------


def test_classes_left_out_tell_what_unknown_ones_would(discs: Path, tmp_path: Path) -> None:
    settings = {"head_start": "probe", "epochs": 0, "warmup": 0.0, "mix": "none", "replicas": 1}
    run = small_fit(discs, tmp_path / "run", **settings)
    assert run.unknown is not None
    assert (run.unknown.photos, run.unknown.groups) == (24, 3)
    assert json.loads((run.folder / "summary.json").read_text())["unknown"]["photos"] == 24
    doubts = run.probe(0)["left_out"]
    assert doubts.shape == (len(run.folds[0].test), 3)
    assert doubts.min() >= 0 and doubts.max() <= np.log(2) + 1e-6  # of two classes that are left
    assert small_fit(discs, tmp_path / "again", **settings).unknown == run.unknown


def test_without_fitted_heads_nothing_is_estimated(trained: fg.Run) -> None:
    assert trained.unknown is None or trained.probed


def test_a_photo_is_as_familiar_as_its_doubt_says(own: fg.Run, val: list[Path]) -> None:
    model = own.classifier(1)
    found = model.predict(val, machine=CPU, unknown=0.3)
    assert model.out_of_fold.doubts is not None and found.familiarity is not None
    known = model.out_of_fold.doubts
    mine = unknown.doubt(found.probabilities)
    expected = [(1 + (known >= each).sum()) / (len(known) + 1) for each in mine]
    np.testing.assert_allclose(found.familiarity, expected, atol=1.01 / len(known))
    np.testing.assert_array_equal(found.unknown, found.familiarity <= 0.3)


def test_an_alarm_that_no_photo_could_raise_is_refused(
    own: fg.Run, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["predict", str(own.folder), str(parts / "val"), "--out", str(tmp_path / "p.csv")]
    assert cli.run([*asked, "--unknown", "0.03"]) == 2
    assert "less than one of 24 known photos" in capsys.readouterr().err
    assert cli.run([*asked, "--unknown", "0.05", "--combine", "soup"]) == 0
    assert "may mark more of the known ones" in capsys.readouterr().err


def test_a_folder_of_unknown_things_is_judged(
    own: fg.Run,
    discs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    draw_collection: Callable[..., Path],
) -> None:
    strange = draw_collection(tmp_path / "strange", each=4, first=50)
    (strange / "blue" / "page.jpg").write_text("<html>")
    shutil.copy(next((own.catalog.root).rglob("*.jpg")), strange / "blue" / "known.jpg")
    told: list[str] = []
    found = unknowns.worth(own, strange, CPU, told.append)
    assert (found.photos, found.groups) == (12, 3)
    assert told == ["left out: 1 photo of the run itself", "left out: 1 photo that cannot be read"]
    predicted = own.classifier("ensemble").predict(strange, machine=CPU)
    assert predicted.familiarity is not None
    kept = ~np.isnan(predicted.familiarity) & (np.array(predicted.names) != "blue/known.jpg")
    below = (predicted.familiarity[kept] * 25 - 1) / 24  # without the photo itself
    assert found.auroc == pytest.approx(1 - below.mean())
    assert cli.run(["score", str(own.folder), "--unknowns", str(strange), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["unknowns"]["photos"] == 12 and record["out_of_fold"]["photos"] == 24
    assert cli.run(["score", str(own.folder), str(strange), "--unknowns", str(strange)]) == 2
    assert cli.run(["score", str(own.folder), "--unknowns", str(strange)]) == 0
    assert "12 photos: " in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(DataError, match="can be judged"):
        unknowns.worth(own, own.catalog.file(own.catalog.photos[0]), CPU)


# --- classes that can occur -----------------------------------------------------------------------


def test_classes_that_cannot_occur_are_never_answered(
    own: fg.Run, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here.txt").write_text("amber\ncrimson\ngnu\n")
    out = tmp_path / "p.csv"
    asked = ["predict", str(own.folder), str(parts / "val"), "--out", str(out), "--probabilities"]
    assert cli.run([*asked, "--only", str(tmp_path / "here.txt")]) == 0
    for row in rows(out):
        assert row["label"] in {"amber", "crimson"} and float(row["p:blue"]) == 0
        assert sum(float(row[f"p:{name}"]) for name in own.classes) == pytest.approx(1, abs=1e-5)
    assert "2 of 3 classes can occur; no class of the model: gnu" in capsys.readouterr().err
    more = [*asked, "--overwrite", "--only", str(tmp_path / "here.txt")]
    assert cli.run([*more, "--right", "0.9"]) == 2
    assert cli.run([*more, "--coverage", "0.9"]) == 2


def test_weights_are_those_of_bayes() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [np.nan] * 3])
    plain = Predictions(("a", "b", "c"), ("", "", "gone"), ("x", "y", "z"), probabilities)
    found = plain.weighed(np.array([1.0, 0.0, 3.0])).probabilities
    np.testing.assert_allclose(found[0], [0.5 / 1.1, 0, 0.6 / 1.1])
    np.testing.assert_allclose(found[1], [0.25, 0, 0.75])  # nothing possible is left
    assert np.isnan(found[2]).all()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("w.csv", "label,weight\nx,2\nz,0.5\n", [2, 0, 0.5]),
        ("w.txt", "y\n\n x \n", [1, 1, 0]),
        ("w.csv", "label,weight\nx,-1\n", "row 2: `weight` = -1 is no number from 0"),
        ("w.csv", "label,weight\nx,much\n", "`weight` = much"),
        ("w.csv", "label\nx\n", "no column `weight`"),
        ("w.txt", "x\nx\n", "`x` stands there twice"),
        ("w.txt", "gnu\n", "none of the 3 classes"),
    ],
)
def test_weights_are_read(tmp_path: Path, name: str, text: str, told: str | list[float]) -> None:
    (tmp_path / name).write_text(text)
    if isinstance(told, str):
        with pytest.raises(DataError, match=told):
            occurrence.read(tmp_path / name, ("x", "y", "z"))
    else:
        assert occurrence.read(tmp_path / name, ("x", "y", "z")).tolist() == told


# --- pictures in memory ---------------------------------------------------------------------------


def test_pictures_in_memory_are_answered_as_their_files(trained: fg.Run, val: list[Path]) -> None:
    model = trained.classifier(0)
    with Image.open(val[0]) as opened:
        picture = opened.convert("RGB")
    expected = model.predict(val[:2], machine=CPU)
    found = model.predict([picture, val[1], np.asarray(picture)], machine=CPU)
    assert found.names == ("picture 1", str(val[1]), "picture 3")
    np.testing.assert_allclose(found.probabilities[:2], expected.probabilities, atol=1e-5)
    np.testing.assert_array_equal(found.probabilities[0], found.probabilities[2])


def test_pictures_of_other_kinds_are_read_as_their_files(
    trained: fg.Run, val: list[Path], tmp_path: Path
) -> None:
    model = trained.classifier(0)
    with Image.open(val[0]) as opened:
        gray = np.asarray(opened.convert("L"))
        clear = opened.convert("RGBA")
    clear.putalpha(Image.fromarray(gray))
    deep = gray.astype(np.uint16) * 257
    kinds = [clear, clear.convert("LA"), Image.fromarray(deep), Image.fromarray(gray)]
    places = [tmp_path / f"{number}.png" for number in range(len(kinds))]
    for picture, place in zip(kinds, places, strict=True):
        picture.save(place)
    expected = model.predict(places, machine=CPU).probabilities
    np.testing.assert_array_equal(model.predict(kinds, machine=CPU).probabilities, expected)
    arrays = [np.asarray(clear), deep, gray]
    found = model.predict(arrays, machine=CPU).probabilities
    np.testing.assert_array_equal(found, expected[[0, 2, 3]])
    assert len(model.predict(np.asarray(clear), machine=CPU)) == 1
    assert len(model.predict(clear, machine=CPU)) == 1


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8, 1), np.uint8)]
)
def test_arrays_that_are_no_pictures_are_refused(trained: fg.Run, picture: np.ndarray) -> None:
    with pytest.raises(UsageError, match="is no picture"):
        trained.classifier(0).predict([picture], machine=CPU)


def test_a_truncated_picture_costs_its_own_answer_alone(trained: fg.Run, val: list[Path]) -> None:
    cut = io.BytesIO(val[0].read_bytes()[:700])
    found = trained.classifier(0).predict([Image.open(cut), val[1]], machine=CPU)
    assert found.problems[0] and not found.problems[1]


def test_a_picture_lies_as_its_orientation_says(trained: fg.Run, val: list[Path]) -> None:
    with Image.open(val[0]) as opened:
        picture = opened.convert("RGB")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned back when shown
    model = trained.classifier(0)
    one, other = model.predict([picture, turned], machine=CPU).probabilities
    np.testing.assert_array_equal(one, other)


# --- what to look at ------------------------------------------------------------------------------

PREDICTED = (
    "path,label,confidence,status\na,x,0.9,ok\nb,y,0.5,ok\nc,,,unreadable: gone\nd,x,0.99,ok\n"
)


def test_the_least_sure_are_looked_at_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text(PREDICTED)
    out = tmp_path / "review.csv"
    assert cli.run(["review", str(tmp_path / "p.csv"), "--out", str(out)]) == 0
    assert [row["path"] for row in rows(out)] == ["c", "b", "a", "d"]
    assert [float(row["errors_left"]) for row in rows(out)] == pytest.approx([0.61, 0.11, 0.01, 0])
    assert "4 photos: 2 are expected to be wrong (40.2 %)" in capsys.readouterr().err
    assert cli.run(["review", str(out), "--out", str(out), "--overwrite"]) == 0  # again
    assert [*rows(out)[0]] == ["path", "label", "confidence", "status", "errors_left"]
    assert cli.run(["review", str(tmp_path / "p.csv"), "--out", str(out)]) == 2  # it is there
    some = tmp_path / "some.csv"
    asked = ["review", str(tmp_path / "p.csv"), "--out", str(some), "--right", "0.9"]
    assert cli.run(asked) == 0
    assert [row["path"] for row in rows(some)] == ["c", "b"]  # 0.11 of 4 photos are left
    assert cli.run([*asked[:-1], "90"]) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label\na,x\n", "no column `confidence`"),
        (PREDICTED.replace("0.5", "much"), "row 3: `confidence` = much is no probability"),
        (PREDICTED.replace("0.5", "1.5"), "`confidence` = 1.5"),
    ],
)
def test_what_are_no_predictions_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        reviews.read(tmp_path / "p.csv")


def test_photos_to_label_are_doubtful_ones_of_all_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["path,label,confidence"]
    lines += [f"sure{n},{'ab'[n % 2]},0.99" for n in range(100)]
    lines += [
        f"{label}{n},{label},0.4"
        for label, many in (("a", 16), ("b", 3), ("c", 1))
        for n in range(many)
    ]
    lines += ["gone,,", "a0,a,0.4", "nameless,,0.3"]
    (tmp_path / "p.csv").write_text("\n".join(lines) + "\n")
    asked = ["review", str(tmp_path / "p.csv"), "--out", str(tmp_path / "next.csv")]
    assert cli.run([*asked, "--label-next", "2", "--right", "0.9"]) == 2
    assert cli.run([*asked, "--label-next", "0"]) == 2
    assert cli.run([*asked[:3], asked[1], "--overwrite", "--label-next", "2"]) == 2  # its own input
    assert cli.run([*asked, "--label-next", "2"]) == 0
    assert "2 photos to label next" in capsys.readouterr().err
    found = rows(tmp_path / "next.csv")
    assert [*found[0]] == ["path", "label", "confidence"]
    assert len({row["label"] for row in found}) == 2 and {row["confidence"] for row in found} == {
        "0.4"
    }
    whole = reviews.read(tmp_path / "p.csv")
    nine = [row["path"] for row in reviews.to_label(whole, 9).rows]
    assert nine == ["a0", "b0", "c0", "a1", "b1", "a2", "b2", "a3", "sure1"]
    assert len({row["path"] for row in reviews.to_label(whole, 500).rows}) == 120  # all but `gone`


# --- MegaDetector's form --------------------------------------------------------------------------


def test_results_are_written_in_megadetectors_form(
    own: fg.Run, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(parts / "val", tmp_path / "photos")
    (tmp_path / "photos" / "blue" / "bad.jpg").write_text("<html>")
    out, table = tmp_path / "r.json", tmp_path / "r.csv"
    asked = ["predict", str(own.folder), str(tmp_path / "photos"), "--workers", "0"]
    assert cli.run([*asked, "--out", str(out)]) == 0
    assert "13 photos, 1 of them unreadable" in capsys.readouterr().err
    assert cli.run([*asked, "--out", str(table)]) == 0
    found = json.loads(out.read_text())
    names = found["classification_categories"]
    assert names == {"0": "amber", "1": "blue", "2": "crimson"}
    described = found["classification_category_descriptions"]
    assert described["0"] == ";;warm;;aurum;;amber" and described["1"] == ";;cold;;;;blue"
    for image, row in zip(found["images"], rows(table), strict=True):
        assert image["file"] == row["path"]
        if row["status"] != "ok":
            assert image["failure"] and image["detections"] is None
            continue
        (detection,) = image["detections"]
        assert (detection["category"], detection["bbox"]) == ("1", [0, 0, 1, 1])
        ranked = [(names[key], value) for key, value in detection["classifications"]]
        assert [name for name, _ in ranked] == [row["label"], row["second"]]
        assert ranked[0][1] == pytest.approx(float(row["confidence"]), abs=1e-5)
    assert found["detection_categories"] == {"1": "animal"}
    for flag in ("--coverage=0.9", "--unknown=0.05", "--rank=order", "--probabilities"):
        assert cli.run([*asked, "--out", str(tmp_path / "n.json"), flag]) == 2
        assert "has no place for it" in capsys.readouterr().err


def test_crops_are_detections_of_their_boxes() -> None:
    results = megadetector.Results(("x", "y"), None, 1)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    names = ("a.jpg/box 0.1 0.2 0.5 0.25", "a.jpg/box 0 0 0.5 1")
    crops = Predictions(names, ("", ""), ("x", "y"), probabilities)
    photos = Predictions(
        ("a.jpg", "b.jpg"), ("", NO_BOX), ("x", "y"), np.array([[0.5] * 2, [np.nan] * 2])
    )
    list(results.crops([crops]))
    list(results.photos([photos]))
    first, second = results.images
    assert [each["bbox"] for each in first["detections"]] == [[0.1, 0.2, 0.5, 0.25], [0, 0, 0.5, 1]]
    assert [each["classifications"] for each in first["detections"]] == [[["0", 0.9]], [["1", 0.8]]]
    assert second == {"file": "b.jpg", "detections": []}
