import itertools
import json
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from fits import Killed, killer, small_fit

import fieldguide as fg
from fieldguide.errors import ResourceError
from fieldguide.fitting.progress import Watcher
from fieldguide.report import curves
from fieldguide.report.curves import MEAN, MEASURES, MERGED, Curves, Point
from fieldguide.storage import files


@pytest.fixture(scope="module")
def run(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """Two folds of two replicas and three epochs; read only."""
    return small_fit(discs, tmp_path_factory.mktemp("curves") / "run", epochs=3)


def point(fold: int = 0, epoch: int = 1, model: str = "replica-1", **values: Any) -> Point:
    known: dict[str, Any] = {"train_loss": 1.0, "test_loss": 2.0, "test_accuracy": 0.5}
    known |= {"distance": None, "diverged": False}
    return Point(fold, epoch, model, **(known | values))


def some_points() -> list[Point]:
    draw = random.Random(0)
    models = ("replica-1", "replica-2", "replica-10", MERGED)
    return [
        point(
            fold,
            epoch,
            model,
            train_loss=None if model == MERGED else draw.uniform(0.1, 3),
            test_loss=draw.uniform(0.1, 3),
            test_accuracy=draw.random(),
        )
        for fold, epoch, model in itertools.product(range(4), range(1, 6), models)
    ]


def rows(spec: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """What a part of a chart draws."""
    found: list[dict[str, Any]] = spec["datasets"][data["name"]]
    return found


def shown(found: Curves) -> list[dict[str, Any]]:
    """The records that both charts draw as lines."""
    specs = [chart(found).to_dict() for chart in (curves.loss_chart, curves.accuracy_chart)]
    return [row for spec in specs for row in rows(spec, spec["data"])]


def test_the_mean_is_that_of_the_folds_and_lies_between_their_extremes() -> None:
    points = some_points()
    for mean in curves.averaged(points):
        values = [
            getattr(each, mean.measure)
            for each in points
            if (each.epoch, each.model) == (mean.epoch, mean.model)
        ]
        assert mean.mean == pytest.approx(statistics.fmean(values))
        assert (mean.low, mean.high, mean.folds) == (min(values), max(values), 4)
        assert mean.low <= mean.mean <= mean.high


def test_the_order_of_points_does_not_matter() -> None:
    points = some_points()
    shuffled = random.Random(1).sample(points, len(points))
    assert curves.averaged(shuffled) == curves.averaged(points)


def test_means_come_by_measure_model_and_epoch_the_merged_model_last() -> None:
    found = curves.averaged(some_points())
    assert [mean.measure for mean in found] == sorted(
        (mean.measure for mean in found), key=MEASURES.index
    )
    models = [mean.model for mean in found if mean.measure == "test_loss" and mean.epoch == 1]
    assert models == ["replica-1", "replica-2", "replica-10", MERGED]


def test_what_was_not_measured_is_not_averaged() -> None:
    points = [point(0, test_loss=1.0), point(1, test_loss=None, diverged=True)]
    (mean,) = [mean for mean in curves.averaged(points) if mean.measure == "test_loss"]
    assert (mean.mean, mean.folds) == (1.0, 1)
    assert not [
        mean
        for mean in curves.averaged(some_points())
        if (mean.model, mean.measure) == (MERGED, "train_loss")
    ]


def test_each_fold_is_taken_at_the_epoch_that_it_kept() -> None:
    points = [
        point(fold, epoch, test_accuracy=(10 * fold + epoch) / 100)
        for fold in range(2)
        for epoch in range(1, 4)
    ]
    found = curves.at_kept(Curves(tuple(points), {0: 1, 1: 3}, (), planned=3))
    accuracy = next(mean for mean in found if mean.measure == "test_accuracy")
    assert (accuracy.low, accuracy.high) == (0.01, 0.13)


def test_folds_under_way_are_not_averaged_with_folds_that_are_done() -> None:
    points = (point(0, test_accuracy=0.5), point(1, test_accuracy=0.7))
    known = Curves(points, {0: 1}, (1,), planned=1)
    assert known.judged == [points[0]]
    assert Curves(points, {}, (0, 1), planned=1).judged == list(points)


@pytest.mark.parametrize("value", [None, "", "nan", "inf", float("nan")])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert curves.number(value) is None


def test_the_curves_are_those_of_the_tables(run: fg.Run) -> None:
    found = curves.read(run)
    assert found.models == ["replica-1", "replica-2", MERGED]
    assert found.kept == {0: 3, 1: 3} and found.under_way == ()
    table = [
        row for fold in range(2) for row in curves.read_table(run.fold_folder(fold) / "history.csv")
    ]
    assert len(found.points) == len(table) == 2 * 3 * 3
    for each, row in zip(found.points, table, strict=True):
        assert (each.fold, each.epoch, each.model) == (
            int(row["fold"]),
            int(row["epoch"]),
            row["model"],
        )
        assert each.test_loss == float(row["test_loss"])
        assert (each.train_loss is None) == (each.model == MERGED)


def test_the_accuracy_at_the_kept_epoch_is_that_of_the_run(run: fg.Run) -> None:
    found = {(mean.model, mean.measure): mean.mean for mean in curves.at_kept(curves.read(run))}
    folds = run.scores.accuracy_per_fold.values()
    assert found[MERGED, "test_accuracy"] == pytest.approx(statistics.fmean(folds), abs=1e-5)


def test_a_run_of_one_replica_has_no_merged_model(trained: fg.Run) -> None:
    assert curves.read(trained).models == ["replica-1"]
    assert "Nothing was merged" in curves.section(trained)


def test_a_table_that_was_changed_is_refused(discs: Path, tmp_path: Path) -> None:
    run = small_fit(discs, tmp_path / "run", epochs=1)
    table = run.fold_folder(0) / "history.csv"
    table.write_text(table.read_text().replace("0,1,replica-1", "0,1,replica-3"))
    with pytest.raises(ResourceError, match=r"history\.csv"):
        curves.section(run)


def test_a_fold_under_way_is_shown_from_its_checkpoint(discs: Path, tmp_path: Path) -> None:
    killed = stopped(discs, tmp_path / "run", after_steps=8)
    found = curves.read(killed)
    assert found.under_way == (0,) and not found.kept
    assert {each.epoch for each in found.points} == {1}
    assert "fold 0" in curves.section(killed) and "0 of 2 folds are done" in (
        curves.section(killed)
    )


def test_done_folds_are_shown_without_the_others(hostile: fg.Run) -> None:
    assert list(curves.read(hostile).kept) == [1]
    assert "1 of 2 folds are done" in curves.section(hostile)


def stopped(photos: Path, out: Path, after_steps: int) -> fg.Run:
    """A run that was killed after some steps; an epoch of both replicas has six."""
    with pytest.raises(Killed):
        small_fit(photos, out, watcher=Watcher(on_step=killer(after_steps)), epochs=3)
    return fg.Run(out)


def test_the_lines_of_a_fold_are_its_history_and_those_of_the_mean_its_mean(run: fg.Run) -> None:
    found = curves.read(run)
    spec = curves.loss_chart(found).to_dict()
    drawn = {
        (row["view"], row["part"], row["model"], row["epoch"]): row["value"]
        for row in rows(spec, spec["data"])
    }
    for each in found.points:
        key = (f"fold {each.fold}", "test", each.model.replace("-", " "), each.epoch)
        assert drawn[key] == pytest.approx(each.test_loss, rel=1e-4)
        others = [drawn[f"fold {fold}", *key[1:]] for fold in range(2)]
        assert drawn[MEAN, *key[1:]] == pytest.approx(statistics.fmean(others), rel=1e-4)


def test_the_merged_model_has_no_training_loss_and_the_page_says_why(run: fg.Run) -> None:
    found = curves.read(run)
    parts = {(row["model"], row["part"]) for row in shown(found)}
    assert (MERGED, "test") in parts and (MERGED, "training") not in parts
    assert "no training loss of its own" in " ".join(curves.section(run).split())


@pytest.mark.parametrize("chart", [curves.loss_chart, curves.accuracy_chart])
@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_charts_are_drawn_with_a_choice_of_folds_and_whole_epochs(
    chart: Callable[[Curves], Any], epochs: int
) -> None:
    points = [
        point(fold, epoch, model, train_loss=None if model == MERGED else 0.0)
        for fold in range(2)
        for epoch in range(1, epochs + 1)
        for model in ("replica-1", MERGED)
    ]
    spec = chart(Curves(tuple(points), {0: 1, 1: epochs}, (), epochs)).to_dict()
    vega = vl_convert.vegalite_to_vega(json.dumps(spec))
    choice = next(signal for signal in vega["signals"] if signal["name"] == "folds")
    assert choice["bind"]["options"] == [MEAN, "fold 0", "fold 1"]
    (named,) = {tuple(layer["encoding"]["x"]["axis"]["values"]) for layer in spec["layer"]}
    assert all(isinstance(epoch, int) for epoch in named)
    assert len(set(named)) == len(named) <= 13 and set(named) <= set(range(1, epochs + 1))
    assert vl_convert.vegalite_to_svg(json.dumps(spec)).startswith("<svg")


def with_train_accuracy() -> list[Point]:
    return [
        replace(each, train_accuracy=None if each.model == MERGED else each.epoch / 10)
        for each in some_points()
    ]


def test_training_accuracy_is_drawn_beside_that_on_test_photos() -> None:
    found = Curves(tuple(with_train_accuracy()), dict.fromkeys(range(4), 5), (), planned=5)
    spec = curves.accuracy_chart(found).to_dict()
    drawn = {
        (row["model"], row["epoch"]): row["value"]
        for row in rows(spec, spec["data"])
        if (row["part"], row["view"]) == ("training", MEAN)
    }
    names = ("replica 1", "replica 2", "replica 10")
    assert drawn == {(name, epoch): epoch / 10 for name in names for epoch in range(1, 6)}
    svg = vl_convert.vegalite_to_svg(json.dumps(spec))
    assert ">training<" in svg and ">accuracy<" in svg


def test_without_training_accuracy_the_chart_is_of_test_photos_alone() -> None:
    found = Curves(tuple(some_points()), {}, (), planned=5)
    svg = vl_convert.vegalite_to_svg(json.dumps(curves.accuracy_chart(found).to_dict()))
    assert ">training<" not in svg and ">accuracy on test photos<" in svg


@pytest.mark.parametrize(
    ("cells", "value"),
    [({}, None), ({"train_accuracy": ""}, None), ({"train_accuracy": "0.5"}, 0.5)],
)
def test_rows_may_lack_training_accuracy(
    cells: dict[str, str], value: float | None, tmp_path: Path
) -> None:
    row = {"fold": "0", "epoch": "1", "model": "replica-1", "train_loss": "1", "test_loss": "2"}
    row |= {"test_accuracy": "0.25", "distance_mean": "", "diverged": "False"} | cells
    files.write_csv(tmp_path / "history.csv", list(row), [list(row.values())])
    files.write_manifest(tmp_path, ["history.csv"])
    (found,) = map(curves._point, curves.read_table(tmp_path / "history.csv"))
    assert found == point(test_accuracy=0.25, train_accuracy=value)


def test_the_page_explains_training_accuracy_where_there_is_some(
    run: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = curves.read(run)
    points = [replace(p, train_accuracy=None) for p in found.points]
    some = [p if p.model == MERGED else replace(p, train_accuracy=0.111) for p in points]
    bodies = []
    for each in (points, some):
        known = replace(found, points=tuple(each))
        monkeypatch.setattr(curves, "read", lambda run, known=known: known)
        bodies.append(" ".join(curves.section(run).split()))
    without, with_it = bodies
    assert "Training accuracy was not recorded" in without and "11.1%" not in without
    assert "training accuracy</th>" in with_it and "11.1%" in with_it
    assert "share of the target&#39;s mass under the highest logit" in with_it
    assert "share of the target" not in without and "not recorded" not in with_it


def test_losses_are_drawn_on_a_logarithmic_scale_unless_one_is_zero() -> None:
    def scale(loss: float) -> object:
        points = (point(test_loss=loss), point(epoch=2))
        spec = curves.loss_chart(Curves(points, {0: 2}, (), 2)).to_dict()
        return spec["layer"][1]["encoding"]["y"]["scale"].get("type")

    assert (scale(0.1), scale(0.0)) == ("log", None)


def test_kept_epochs_and_diverged_replicas_are_marked_in_their_fold_and_in_the_mean() -> None:
    lost = point(1, 2, "replica-2", train_loss=None, test_loss=None, test_accuracy=None)
    points = (point(0), point(1), replace(lost, diverged=True))
    found = Curves(points, {0: 1, 1: 2}, (), planned=2)
    spec = curves.accuracy_chart(found).to_dict()
    kept, diverged = (rows(spec, layer["data"]) for layer in spec["layer"][3:])
    assert {(mark["view"], mark["epoch"]) for mark in kept} == {
        (MEAN, 1),
        (MEAN, 2),
        ("fold 0", 1),
        ("fold 1", 2),
    }
    assert [(mark["view"], mark["epoch"], mark["model"]) for mark in diverged] == [
        (MEAN, 2, "replica 2"),
        ("fold 1", 2, "replica 2"),
    ]


def test_folds_that_stopped_early_are_told(discs: Path, tmp_path: Path) -> None:
    rates = {"backbone_rate": 1e-12, "head_rate": 1e-12}  # nothing ever gets better
    run = small_fit(discs, tmp_path / "run", epochs=4, stop="fold", patience=1, **rates)
    body = " ".join(curves.section(run).split())
    assert "Every fold stopped after 2 of 4 epochs" in body
    assert "chosen on these same test photos" in body
    assert set(curves.read(run).kept.values()) == {1}
