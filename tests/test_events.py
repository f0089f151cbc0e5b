"""One answer for the photos of an event, and its accuracy out of fold."""

import csv
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer
from fits import small_fit
from PIL import Image

import fieldguide as fg
from fieldguide import cli
from fieldguide.analysis import events
from fieldguide.errors import DataError, UsageError
from fieldguide.predict import events as of_events
from fieldguide.predict.inputs import Input
from fieldguide.predict.model import Machine
from fieldguide.predict.tables import Predictions
from fieldguide.report import trust
from fieldguide.runs import scores

CPU = Machine("cpu", workers=0)


def test_an_event_has_the_geometric_mean_of_its_photos() -> None:
    probabilities = np.array([[0.8, 0.2], [0.1, 0.9], [0.4, 0.6], [1.0, 0.0]])
    found = events.combined(probabilities, np.array([1, 0, 1, 0]))
    product = np.sqrt([0.8 * 0.4, 0.2 * 0.6])
    np.testing.assert_allclose(found[1], product / product.sum())
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[0, 0] > 0.999  # one photo rules the other class out


def test_a_single_photo_answers_as_it_is() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(4), size=6)
    np.testing.assert_allclose(events.combined(rows, np.arange(6)), rows)


def test_events_of_several_classes_are_left_out_and_counted() -> None:
    sure, unsure = [0.9, 0.1], [0.45, 0.55]
    probabilities = np.array([sure, unsure, sure, sure, unsure])
    targets = np.array([0, 0, 0, 1, 0])
    found = scores.by_event(probabilities, targets, ["a", "a", "b", "b", "c"])
    assert found is not None
    assert (found.events, found.photos, found.mixed) == (2, 3, 1)
    assert (found.accuracy, found.single) == (0.5, 1 / 3)
    assert found.interval[0] < 0.5 < found.interval[1]
    assert scores.by_event(probabilities[2:4], targets[2:4], ["b", "b"]) is None


@pytest.fixture
def bursts(tmp_path: Path, draw_collection: Callable[..., Path]) -> Path:
    """Discs in bursts of two, by the times in their EXIF, in a flat folder of their own."""
    drawn = draw_collection(tmp_path / "drawn", each=6)
    out = tmp_path / "bursts"
    out.mkdir()
    time = datetime(2026, 5, 1, 6)
    for number, path in enumerate(sorted(drawn.rglob("*.jpg"))):
        with Image.open(path) as picture:
            exif = picture.getexif()
            taken = time + timedelta(minutes=number // 2, seconds=10 * (number % 2))
            exif.get_ifd(0x8769)[0x9003] = taken.strftime("%Y:%m:%d %H:%M:%S")
            picture.save(out / f"{path.parent.name}_{path.stem}.jpg", exif=exif)
    return out


def inputs(folder: Path) -> list[Input]:
    return [Input(path.name, path) for path in sorted(folder.glob("*.jpg"))]


def test_events_are_named_by_times_names_folders_or_columns(bursts: Path, tmp_path: Path) -> None:
    found = inputs(bursts)
    by_time = of_events.named(bursts, found, "event", gap=30.0)
    assert len(set(by_time)) == 9 and by_time[0] == by_time[1] != by_time[2]
    assert len(set(of_events.named(bursts, found, "event", gap=90.0))) == 1
    by_name = of_events.named(bursts, found, "stem:^([a-z]+)_")
    assert sorted({*by_name}) == ["amber", "blue", "crimson"]
    table = tmp_path / "table.csv"
    rows = [f"bursts/{each.name},{number // 6}" for number, each in enumerate(found)]
    table.write_text("\n".join(["path,visit", *rows]))
    listed = [Input(f"bursts/{each.name}", each.file) for each in found]
    assert of_events.named(table, listed, "visit") == [str(n // 6) for n in range(18)]


def test_what_names_no_event_is_refused(bursts: Path, discs: Path) -> None:
    with pytest.raises(UsageError, match="no columns, and so no `visit`"):
        of_events.named(bursts, inputs(bursts), "visit")
    with pytest.raises(UsageError, match="has no events"):
        of_events.named(bursts, inputs(bursts), "none")
    with pytest.raises(DataError, match="no photo says in its EXIF"):
        of_events.named(discs, [Input("a", next(discs.rglob("*.jpg")))], "event")


def test_the_table_of_events_leaves_out_what_was_not_read(tmp_path: Path) -> None:
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan], [0.3, 0.7], [np.nan, np.nan]])
    seen = Predictions(("a", "b", "c", "d"), ("", "gone", "", "gone"), ("x", "y"), probabilities)
    chunks = [seen.rows(range(3)), seen.rows(range(3, 4))]
    told: list[int] = []
    passed = list(of_events.beside(chunks, ["1", "1", "2", "3"], tmp_path / "e.csv", told))
    assert passed == chunks and told == [2, 2]
    with (tmp_path / "e.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in rows] == [
        ("1", "1", "x", "0.9", "y", "0.1", "a"),
        ("2", "1", "y", "0.7", "x", "0.3", "c"),
    ]


def test_formulas_are_made_safe_for_spreadsheets(tmp_path: Path) -> None:
    seen = Predictions(("=a",), ("",), ("x", "y"), np.array([[0.9, 0.1]]))
    list(of_events.beside([seen], ["=E1"], tmp_path / "e.csv", [], spreadsheet=True))
    assert "\n'=E1,1,x,0.9,y,0.1,'=a" in (tmp_path / "e.csv").read_text()


def test_predict_writes_events_beside_photos(
    trained: fg.Run, bursts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    asked = ["predict", str(trained.folder), str(bursts), "--out", str(out), "--workers", "0"]
    assert cli.run([*asked, "--event-gap", "30"]) == 2
    assert "--event-gap has no effect without --group" in capsys.readouterr().err
    assert cli.run([*asked, "--group", "event", "--event-gap", "30"]) == 0
    assert "9 events of 18 photos" in capsys.readouterr().err
    with (tmp_path / "p.events.csv").open(newline="") as file:
        assert [row["photos"] for row in csv.DictReader(file)] == ["2"] * 9
    assert cli.run([*asked, "--overwrite", "--group", "event", str(bursts)]) == 2
    assert "--group is for one source" in capsys.readouterr().err


def test_a_run_of_events_tells_their_accuracy(discs: Path, tmp_path: Path) -> None:
    catalog = fg.scan(discs)
    rows = [
        f"{catalog.file(photo)},{photo.label},{photo.label}{number // 2}"
        for number, photo in enumerate(catalog.photos)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,event", *rows]))
    run = small_fit(fg.read(tmp_path / "t.csv"), tmp_path / "run", epochs=1)
    assert run.unit == "event" and run.by_event is not None
    assert (run.by_event.events, run.by_event.photos, run.by_event.mixed) == (12, 24, 0)
    assert run.by_event.single == run.scores.accuracy
    assert json.loads((run.folder / "summary.json").read_text())["events"]["events"] == 12
    assert "of 12 events are right out of fold" in trust.section(run)


def test_without_events_it_is_said_why(trained: fg.Run) -> None:
    assert trained.by_event is None
    assert "would flatter" in trust.section(trained)


def test_events_are_answered_in_python_too(bursts: Path, trained: fg.Run, tmp_path: Path) -> None:
    model = trained.classifier(0)
    found = model.predict(bursts, group="event", event_gap=5.0, machine=CPU)
    assert found.event_of is not None
    pairs = [(event, found.event_of.count(event)) for event in dict.fromkeys(found.event_of)]
    assert [(each.name, each.photos) for each in found.events] == pairs
    rows = [n for n, event in enumerate(found.event_of) if event == pairs[0][0]]
    logs = np.log(found.probabilities[rows]).mean(axis=0)
    np.testing.assert_allclose(found.events[0].probabilities, np.exp(logs) / np.exp(logs).sum())
    assert found.events[0].first_photo == found.names[rows[0]]
    with pytest.raises(ValueError, match="no events were asked for"):
        model.predict(bursts, machine=CPU).events  # noqa: B018
    with pytest.raises(UsageError, match="for one folder"):
        model.predict([bursts], group="event", machine=CPU)
    with pytest.raises(UsageError, match="no effect without `group`"):
        model.predict(bursts, event_gap=5.0, machine=CPU)


def test_each_photo_is_in_one_event_once(trained: fg.Run, tmp_path: Path) -> None:
    for name in "ABCD":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    table = tmp_path / "t.csv"
    lines = ["path,event", "A.png,e1", "B.png,e1", "B.png,e1", "C.png,", "C.png,", "D.png,C.png"]
    table.write_text("\n".join(lines) + "\n")
    found = trained.classifier(0).predict(table, group="event", machine=CPU)
    expected = [("e1", 2), ("C.png (no event)", 1), ("C.png", 1)]
    assert [(each.name, each.photos) for each in found.events] == expected
    parts = [found.rows(range(3)), found.rows(range(3, 6))]
    assert Predictions.concatenate(parts).event_of == found.event_of


def test_unread_photos_are_in_no_event(trained: fg.Run) -> None:
    found = Predictions(
        ("a", "b", "c"),
        ("", "gone", ""),
        ("x", "y"),
        np.array([[0.5, 0.5], [np.nan, np.nan], [0.1, 0.9]]),
        event_of=("1", "1", "2"),
    )
    assert [(each.name, each.photos, each.first_photo) for each in found.events] == [
        ("1", 1, "a"),
        ("2", 1, "c"),
    ]


# --- lists of what can occur ----------------------------------------------------------------------


def test_a_list_changes_the_accuracy_of_its_classes_alone() -> None:
    probabilities = np.array([[0.5, 0.4, 0.1], [0.1, 0.5, 0.4], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    targets, groups = np.array([0, 2, 2, 1]), np.arange(4)
    found = scores.listed(probabilities, targets, groups, np.array([1.0, 0.0, 1.0]))
    assert (found.classes, found.photos) == (2, 3)
    assert (found.before, found.accuracy) == (1 / 3, 1.0)
    assert found.gain == pytest.approx(2 / 3)
    assert found.interval[0] < found.gain < found.interval[1]
    rare = scores.listed(probabilities, targets, groups, np.array([1.0, 1.0, 0.1]))
    assert (rare.photos, rare.accuracy) == (4, 0.25)
    with pytest.raises(DataError, match="no photo of the run"):
        scores.listed(probabilities[:1], targets[:1], groups[:1], np.array([0.0, 1.0, 0.0]))


def test_score_tells_what_a_list_changes(
    trained: fg.Run, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    (tmp_path / "here.txt").write_text("\n".join(trained.classes[:2]) + "\nunheard of\n")
    said = command("score", trained.folder, "--only", tmp_path / "here.txt")
    assert said.code == 0 and "2 of 3 classes can occur" in said.err
    assert "with here.txt" in said.out and "classes that can occur" in said.out
    said = command("score", trained.folder, "--only", tmp_path / "here.txt", "--json")
    record = json.loads(said.out)["only"]
    weights = np.array([1.0, 1.0, 0.0])
    assert record["accuracy"] == trained.listed(weights).accuracy >= record["before"]
