"""The verdict: one honest sentence, what was chosen on what, and advice that follows from facts."""

import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fits import small_fit, small_recipe
from pages import words

import fieldguide as fg
from fieldguide.analysis.intervals import share_interval
from fieldguide.photos import check
from fieldguide.photos.sources import read
from fieldguide.report import verdict
from fieldguide.report.verdict import Findings, advice
from fieldguide.runs.run import Run, summary
from fieldguide.study.holdout_scores import Worth

QUIET = Findings(
    run="runs/a",
    fit="fieldguide fit photos --out runs/a",
    longer="fieldguide fit photos --out runs/a-20-epochs --epochs 20",
    folds=5,
    done=5,
    outside=100,
    scored=True,
    models=1,
)


def worth(name: str, accuracy: float = 0.9, *, networks: int = 1, reach: float = 0.02) -> Worth:
    return Worth(
        name=name,
        accuracy=accuracy,
        interval=(accuracy - reach, accuracy + reach),
        log_loss=0.3,
        calibration_error=0.02,
        unscaled_error=0.05,
        parameters=1000 * networks,
        bytes=4000 * networks,
        photos_per_second=100 / networks,
    )


def left_scores(run: Run, rows: list[Worth], photos: int) -> None:
    record = {"key": "", "photos": photos, "rows": [asdict(row) for row in rows]}
    (run.folder / "scores.json").write_text(json.dumps(record))


def table(run: Run) -> list[Worth]:
    names = [*(f"fold {fold}" for fold in run.done), "mean of folds", "ensemble", *run.models()]
    return [worth(name, networks=3 if name == "ensemble" else 1) for name in names]


@pytest.fixture
def copied(trained: fg.Run, tmp_path: Path) -> fg.Run:
    shutil.copytree(trained.folder, tmp_path / "run")
    return fg.Run(tmp_path / "run", photos=trained.environment["photos"])


def test_the_sentence_gives_accuracy_interval_photos_and_folds(trained: fg.Run) -> None:
    scores = trained.scores
    text = words(verdict.section(trained))
    low, high = (f"{100 * value:.1f} %" for value in scores.interval)
    assert f"{100 * scores.accuracy:.1f} % of photos are classified correctly" in text
    assert f"95 % interval: {low} to {high}" in text
    assert "each of 24 training photos was judged by the one of 3 folds" in text


@pytest.fixture(scope="module")
def pairs(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """A run of photos in groups of two, without any outside its folds; read only."""
    catalog = fg.scan(discs)
    photos = tuple(replace(p, group=f"{p.label}{n // 2}") for n, p in enumerate(catalog.photos))
    return small_fit(replace(catalog, photos=photos), tmp_path_factory.mktemp("pairs") / "run")


def test_groups_are_counted_where_photos_come_in_groups(pairs: fg.Run) -> None:
    text = words(verdict.section(pairs))
    assert "24 training photos in 12 groups" in text


@pytest.fixture(scope="module")
def places(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """A run of photos of six places, from a table; read only."""
    folder = tmp_path_factory.mktemp("places")
    photos = sorted(discs.rglob("*.jpg"))
    lines = [f"{p},{p.parent.name},{'abcdef'[int(p.stem) % 6]}" for p in photos]
    (folder / "t.csv").write_text("\n".join(["path,label,site", *lines]))
    return small_fit(read(folder / "t.csv", group="site"), folder / "run")


def test_accuracy_is_told_by_place_and_for_a_new_one(places: fg.Run) -> None:
    found, told = places.by_group, summary(places)["groups"]
    assert found is not None and places.unit == "place"
    assert found.groups == 6 and sum(each.photos for each in found.worst) == 24
    with (places.folder / "oof.csv").open(newline="") as file:
        rows = [each for each in csv.DictReader(file) if int(Path(each["path"]).stem) % 6 == 2]
    right = [row["label"] == row["predicted"] for row in rows]
    [own] = [each for each in found.worst if each.name == "c"]
    assert own.accuracy == pytest.approx(np.mean(right))
    assert own.interval == share_interval(np.array(right), np.arange(len(right)))
    assert told["unit"] == "place" and tuple(told["new"]) == found.new
    assert [each["name"] for each in told["worst"]] == [each.name for each in found.worst]
    text = words(verdict.section(places))
    assert "One new place may be easier or harder" in text
    assert "Accuracy by place: the lowest of 6" in text
    assert any("One new place" in said for said in verdict.told_after(places))


def test_photos_without_a_group_are_no_places(
    places: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"a", "b"}
    asked = places.given or places.catalog
    photos = [p if p.group in known else replace(p, group=None) for p in asked.photos]
    monkeypatch.setattr(fg.Run, "given", replace(asked, photos=photos))
    run = fg.Run(places.folder)
    found = run.by_group
    assert found is not None and {each.name for each in found.worst} == known
    assert found.groups == 2 and found.photos == sum(each.photos for each in found.worst) == 12
    [said] = verdict.about_groups(run)
    assert "(2 places are known; 12 photos in none are left out)" in said


def test_places_of_one_photo_do_not_say_how_a_new_one_may_be(
    places: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = places.given or places.catalog
    photos = [replace(photo, group=photo.path) for photo in asked.photos]
    monkeypatch.setattr(fg.Run, "given", replace(asked, photos=photos))
    run = fg.Run(places.folder)
    assert run.by_group is not None and run.by_group.groups == 24 and run.by_group.new is None
    assert verdict.about_groups(run) == []


def test_without_groups_nothing_is_told_of_them(trained: fg.Run) -> None:
    assert trained.by_group is None and summary(trained)["groups"] is None
    assert "One new" not in words(verdict.section(trained))


def test_events_that_folds_may_share_are_told_beside_the_accuracy(copied: fg.Run) -> None:
    note = "80% of photos share their event (times in names) with others"
    found = [check.Finding("shared-event", "", note, "--group stem keeps each event in one fold")]
    check.write_findings(copied.folder / "findings.csv", found)
    said = f"The accuracy may flatter: {note}; --group stem keeps each event in one fold."
    assert said in words(verdict.section(copied)) and said in verdict.told_after(copied)


def test_an_unfinished_run_says_how_far_it_is(copied: fg.Run) -> None:
    shutil.rmtree(copied.folder / "folds/2")
    (copied.folder / "manifest.json").unlink()
    text = words(verdict.section(fg.Run(copied.folder)))
    assert "16 of 24 training photos" in text
    assert "2 of 3 folds are done so far" in text


def test_the_commonest_class_is_the_bar_to_clear(trained: fg.Run) -> None:
    assert "largest class would reach 33.3 %" in words(verdict.section(trained))


def test_each_way_to_stop_says_what_chose_the_epoch(trained: fg.Run) -> None:
    selected = replace(trained.scores, selected_accuracy=0.987)
    (plain,) = verdict.choices(small_recipe(), trained.scores, 0)
    (inner,) = verdict.choices(small_recipe(stop="inner", inner_share=0.2), trained.scores, 0)
    (fold,) = verdict.choices(small_recipe(stop="fold"), selected, 0)
    assert "Nothing was chosen" in plain and "number 2" in plain
    assert "20\N{NO-BREAK SPACE}% of its training photos" in inner
    assert "98.7\N{NO-BREAK SPACE}%, which is optimistic" in fold and "cross-fitted" in fold


def test_watch_val_and_holdout_are_told() -> None:
    watched = verdict.choices(small_recipe(stop="fold", watch_val=True), None, 0)
    held = verdict.choices(small_recipe(holdout=0.1), None, 37)
    assert "val part helped to choose" in watched[1]
    assert held[1].startswith("37 photos (10\N{NO-BREAK SPACE}% asked for)")


def test_every_score_has_its_value_and_interval(trained: fg.Run) -> None:
    rows = {row.name: row for row in verdict.score_rows(trained.scores)}
    low, high = trained.scores.intervals["log_loss"]
    assert rows["log loss"].value == f"{trained.scores.log_loss:.3f}"
    assert rows["log loss"].interval == f"{low:.3f} to {high:.3f}"
    assert "top-5 accuracy" not in rows  # of three classes
    assert {"accuracy of fold 0", "accuracy of fold 1", "accuracy of fold 2"} <= set(rows)


def test_a_table_that_fits_the_run_is_shown_with_a_chart(copied: fg.Run) -> None:
    rows = table(copied)
    left_scores(copied, rows, len(copied.outside))
    body = verdict.section(copied)
    assert "scored on another device" in words(body)
    assert 'figure class="chart"' in body
    assert "ensemble: 90.0 %, 3 networks" in body.replace("\xa0", " ")


def test_old_scores_are_not_shown_and_it_is_said_why(copied: fg.Run) -> None:
    left_scores(copied, table(copied)[1:], len(copied.outside))
    body = verdict.section(copied)
    assert 'figure class="chart"' not in body
    said = words(body)
    assert "old scores are not shown. scores.json does not contain fold 0. fieldguide score" in said
    assert "Measure the accuracy" not in said  # nothing is merged yet: that comes first


def test_without_scores_it_is_said_how_to_get_them(copied: fg.Run) -> None:
    text = words(verdict.section(copied))
    assert "current models have not been scored: fieldguide score" in text


def test_without_outside_photos_nothing_is_claimed_of_the_ensemble(pairs: fg.Run) -> None:
    text = words(verdict.section(pairs))
    assert "this run has none" in text and "--holdout 0.1" in text


def test_what_paired_tests_show_is_said() -> None:
    near = [worth("fold 0", 0.1), worth("mean of folds", 0.9), worth("ensemble", 0.92)]
    ensemble = replace(worth("ensemble", 0.89), better_than=("mean of folds", "soup"))
    far = [worth("mean of folds", 0.8), worth("soup", 0.85), ensemble]
    assert "do not show any of them to be better" in verdict.comparison(near)
    assert verdict.comparison(far) == (
        "Shown by paired tests on these photos: ensemble better than mean of folds and soup."
    )
    assert verdict.comparison([]) == ""


def test_the_chart_leaves_single_folds_out_and_begins_with_the_cheapest() -> None:
    rows = [
        *(worth("fold 0", 0.99), worth("ensemble", 0.95, networks=5)),
        *(worth("soup", 0.92), worth("mean of folds", 0.93)),
    ]
    shown = verdict.cost_rows(rows)
    assert [row["name"] for row in shown] == ["mean of folds", "soup", "ensemble"]
    assert [row["networks"] for row in shown] == ["1 network", "1 network", "5 networks"]
    assert shown[-1]["milliseconds"] == pytest.approx(1000 * 5 / 100)


def test_a_speed_that_was_not_measured_is_not_drawn() -> None:
    (row,) = verdict.cost_rows([replace(worth("soup"), photos_per_second=0.0)])
    assert row["milliseconds"] is None


def test_a_run_without_findings_is_to_be_used() -> None:
    (step,) = advice(QUIET)
    assert step.command.startswith("fieldguide predict runs/a PHOTOS")


def test_an_unfinished_run_is_to_be_finished_before_anything_else() -> None:
    steps = advice(replace(QUIET, done=3, suspects=4, outside=0))
    assert "2 of 5 folds are not trained" in steps[0].text
    assert steps[0].command == QUIET.fit
    assert len(steps) == 1
    (python,) = advice(replace(QUIET, done=4, fit=""))
    assert "1 of 5 fold" in python.text and "fieldguide.fit" in python.text
    assert not python.command


@pytest.mark.parametrize(
    ("finding", "text", "command"),
    [
        ({"rise": 0.021}, "rose in the last epoch, by 2.1 points", QUIET.longer),
        ({"disturbed": 2}, "lower backbone_rate", ""),
        ({"suspects": 3}, "3 labels look wrong", "fieldguide labels runs/a"),
        ({"suspects": 1, "labels_listed": True}, "1 label looks wrong", ""),
        ({"thin": (("lynx", 4),)}, "lynx (4)", ""),
        ({"error": 0.08}, "off by 8 points", ""),
        ({"outside": 0}, "--holdout 0.1", "fieldguide score runs/a LABELLED-PHOTOS"),
        (
            {"models": 0},
            "Merge the folds",
            "fieldguide soup runs/a && fieldguide score runs/a",
        ),
        ({"scored": False}, "Measure the accuracy", "fieldguide score runs/a"),
    ],
)
def test_each_finding_brings_one_step_of_its_own(
    finding: dict[str, object], text: str, command: str
) -> None:
    steps = advice(replace(QUIET, **finding))  # type: ignore[arg-type]
    assert len(steps) == 2
    assert text in steps[0].text
    assert steps[0].command == command


def test_many_thin_classes_are_counted_not_listed() -> None:
    thin = tuple((f"class {n}", n) for n in range(1, 9))
    (step, _) = advice(replace(QUIET, thin=thin))
    assert step.text.endswith("class 1 (1), class 2 (2), class 3 (3) and 5 more.")


def rows_of(*accuracies: tuple[float, ...]) -> list[dict[str, str]]:
    return [
        {"fold": str(fold), "epoch": str(epoch), "model": model, "test_accuracy": f"{value:.6g}"}
        for fold, values in enumerate(accuracies)
        for epoch, value in enumerate(values)
        for model in ("replica-1", "merged")
    ]


def test_a_rise_counts_if_all_folds_share_it() -> None:
    assert verdict.last_rise(rows_of((0.5, 0.6), (0.5, 0.61), (0.5, 0.59))) == pytest.approx(0.1)
    assert verdict.last_rise(rows_of((0.5, 0.6), (0.6, 0.5), (0.5, 0.52))) == 0
    assert verdict.last_rise(rows_of((0.5, 0.501), (0.5, 0.501))) == 0  # too little to train for
    assert verdict.last_rise(rows_of((0.5,), (0.5,))) == 0
    assert verdict.last_rise(rows_of((0.1, 0.9))) == 0  # one fold tells no chance
    assert verdict.last_rise(rows_of((0.5, 0.6), (0.5, float("nan")))) == 0
    assert verdict.last_rise([]) == 0


def test_findings_are_those_of_the_run(trained: fg.Run) -> None:
    found = verdict.findings(trained, scored=False)
    assert (found.folds, found.done, found.outside, found.models) == (3, 3, 12, 0)
    assert found.thin == (("amber", 8), ("blue", 8), ("crimson", 8))
    assert found.fit == found.longer == ""  # begun from Python
    assert found.error == trained.scores.scaled_calibration_error
    assert found.disturbed == 0


def test_a_folder_s_name_is_quoted_for_the_shell(copied: fg.Run, tmp_path: Path) -> None:
    odd = copied.folder.rename(tmp_path / "a run; rm -rf")
    assert verdict.findings(fg.Run(odd), scored=True).run == f"'{odd}'"
