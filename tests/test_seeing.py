"""The commands that show and compare: report, landscape, compare, preview, find-rate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fits import flags
from PIL import Image

from fieldguide import cli
from fieldguide.errors import DataError

pytestmark = pytest.mark.usefixtures("plain_consoles")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, discs: Path) -> Path:
    run = tmp_path_factory.mktemp("seeing") / "run"
    assert cli.run(["fit", str(discs), "--out", str(run), *flags(keep_replicas=True)]) == 0
    return run


def test_a_fit_ends_with_a_report_findings_and_events(fitted: Path) -> None:
    page = (fitted / "report.html").read_text("utf-8")
    assert page.count("<section") == 9
    assert (fitted / "findings.csv").read_text().startswith("kind,path,reason,hint")
    events = [json.loads(line) for line in (fitted / "events.jsonl").read_text().splitlines()]
    assert len(events) == 2 * 2 * 3  # folds × epochs × (two replicas and the merged model)


def test_a_fit_ends_with_the_ensembles_accuracy_on_photos_that_no_fold_has_seen(
    parts: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("fit", parts, "--out", tmp_path / "run", *flags(epochs=1))
    done = command(*asked)
    assert "scoring classifiers on 12 photos that no fold has seen" in done.err
    kept = json.loads((tmp_path / "run" / "scores.json").read_text())
    [ensemble] = [row for row in kept["rows"] if row["name"] == "ensemble"]
    said = f"The ensemble of all folds reaches {100 * ensemble['accuracy']:.1f}"
    assert said in done.err and said in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "scoring" not in command(*asked).err  # it is done

    def lost(*_arguments: object, **_options: object) -> None:
        raise DataError("the photos are gone")

    monkeypatch.setattr("fieldguide.study.holdout_scores.worths", lost)
    failed = command("fit", parts, "--out", tmp_path / "other", *flags(epochs=1))
    assert failed.code == 0 and "not scored: the photos are gone" in failed.err
    assert "The ensemble of all folds learned from all these photos" in failed.err


def test_a_fit_can_do_without_a_report(discs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.run(["fit", str(discs), "--out", str(run), "--no-report", *flags(epochs=1)]) == 0
    assert not (run / "report.html").exists()


def test_a_report_that_fails_does_not_hurt_the_fit(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("a fault in a chart")

    monkeypatch.setattr("fieldguide.report.build", fail)
    assert cli.run(["fit", str(discs), "--out", str(tmp_path / "run"), *flags(epochs=1)]) == 0
    said = capsys.readouterr()
    assert "out-of-fold accuracy" in said.out
    assert "a fault in a chart" in said.err


def test_the_report_is_written_anew_with_figures(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures"
    asked = ["report", str(fitted), "--out", str(page), "--figures", str(figures)]
    assert cli.run([*asked, "--no-heat-maps"]) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert {path.suffix for path in figures.iterdir()} == {".png", ".svg"}


def test_the_landscape_between_replicas_is_measured_and_drawn(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["landscape", str(fitted), "--workers", "0"]) == 0
    assert "landscape.json" in capsys.readouterr().out
    assert json.loads((fitted / "landscape.json").read_bytes())["between"] == "replicas"


def test_compare_fits_on_the_same_folds_and_goes_on(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comparison"
    asked = ["compare", str(discs), "--out", str(out), "--vary", "mix=none,mixup", *flags(epochs=1)]
    assert cli.run(asked) == 0
    said = capsys.readouterr().out
    assert "mixup" in said and "compare.html" in said
    assert (out / "compare.html").is_file() and (out / "compare.csv").is_file()
    tables = {path.parent.name: path.read_text() for path in out.glob("*/catalog.csv")}
    assert len(tables) == 3 and len(set(tables.values())) == 1  # its own and two of runs
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/manifest.json")}
    assert cli.run(asked) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/manifest.json")}
    (out / "compare.html").unlink()
    capsys.readouterr()
    assert cli.run(["report", str(out), "--figures", str(tmp_path / "figures")]) == 0
    said = capsys.readouterr()
    assert str(out / "compare.html") in said.out and "differences.svg" in said.out
    assert "mix=mixup" in (out / "compare.html").read_text("utf-8")
    assert said.err == ""
    elsewhere = ["report", str(out), "--out", str(tmp_path / "page.html"), "--no-heat-maps"]
    assert cli.run(elsewhere) == 0
    assert "--no-heat-maps and --taxonomy have" in capsys.readouterr().err
    assert (tmp_path / "page.html").is_file()


def test_preview_draws_a_picture_and_overwrites_none(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "preview.png"
    assert cli.run(["preview", str(discs), "--out", str(out), *flags()]) == 0
    with Image.open(out) as picture:
        assert min(picture.size) > 100
    assert cli.run(["preview", str(discs), "--out", str(out), *flags()]) == 2
    assert "this file exists" in capsys.readouterr().err


def test_find_rate_suggests_rates(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rates"
    asked = ["find-rate", str(discs), "--out", str(out), "--sweep-steps", "20", *flags()]
    assert cli.run(asked) == 0
    said = capsys.readouterr().out
    assert "head_rate" in said and "backbone_rate" in said
    assert set(json.loads((out / "rates.json").read_bytes())) >= {"head", "backbone"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "PHOTOS", "--out", "OUT"], "nothing to compare"),
        (["compare", "PHOTOS", "--out", "OUT", "--vary", "mixx=none"], "mix"),
        (["compare", "PHOTOS", "--out", "OUT", "--vary", "mix=nones"], "mix"),
        (["compare", "PHOTOS", "--out", "OUT", "--vary", "folds=2,3"], "folds"),
        (["compare", "PHOTOS", "--out", "OUT", "--vary", "mix=none", "--budget", "0"], "--budget"),
        (
            ["compare", "PHOTOS", "--out", "OUT", "--preset", "reference", "--vary", "a=1"],
            "--preset",
        ),
        (["compare", "PHOTOS", "--out", "PHOTOS/in", "--vary", "mix=none"], "among the photos"),
        (["find-rate", "PHOTOS", "--out", "PHOTOS"], "there already"),
        (["find-rate", "PHOTOS", "--out", "OUT", "--sweep-steps", "3"], "--sweep-steps"),
        (["preview", "PHOTOS", "--out", "picture.gif"], "PNG"),
        (["report", "PHOTOS"], "no run folder"),
        (["landscape", "PHOTOS"], "no run folder"),
    ],
)
def test_what_cannot_work_is_refused(
    arguments: list[str],
    said: str,
    discs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"PHOTOS": str(discs), "OUT": str(tmp_path / "out"), "PHOTOS/in": str(discs / "in")}
    assert cli.run([places.get(text, text) for text in arguments]) == 2
    assert said in capsys.readouterr().err
