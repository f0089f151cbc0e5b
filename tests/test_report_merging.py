import json
import random
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from fits import Killed, killer, small_fit

import fieldguide as fg
from fieldguide.fitting.progress import Watcher
from fieldguide.report import curves, merging
from fieldguide.report.curves import MERGED, Point
from fieldguide.report.merging import Moved
from fieldguide.study import landscape
from fieldguide.study.holdout_scores import Worth
from fieldguide.study.landscape import Landscape

TENSORS = (
    "conv1.weight",
    "bn1.bias",
    "layer1.0.conv1.weight",
    "layer1.0.bn1.weight",
    "layer1.10.conv3.weight",
    "layer2.0.downsample.0.weight",
    "layer4.1.bn2.bias",
)


@pytest.fixture(scope="module")
def run(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """Two folds of two replicas that were kept; read only."""
    return small_fit(discs, tmp_path_factory.mktemp("merging") / "run", keep_replicas=True)


def moves(epochs: int = 3, folds: int = 2) -> list[Moved]:
    draw = random.Random(0)
    return [
        Moved(fold, epoch, tensor, draw.uniform(0, 90), draw.random(), draw.random())
        for fold in range(folds)
        for epoch in range(1, epochs + 1)
        for tensor in TENSORS
    ]


def judged(fold: int, epoch: int, model: str, accuracy: float | None, **more: Any) -> Point:
    values: dict[str, Any] = {"train_loss": None, "test_loss": None, "distance": None}
    return Point(fold, epoch, model, test_accuracy=accuracy, **values, **{"diverged": False} | more)


def drawn(chart: Any) -> str:
    """The chart as SVG; it must compile."""
    return vl_convert.vegalite_to_svg(json.dumps(chart.to_dict()))


def some_landscape(loss: float | None = 0.5) -> Landscape:
    points = tuple(
        landscape.Point(t, norm, loss, 0.8)
        for t in landscape.PLACES
        for norm in ("average", "recalibrate")
    )
    kept = landscape.Point(0.5, "average", loss, 0.8)
    return Landscape(
        "replicas",
        0,
        "replica 1",
        "replica 2",
        12,
        "test photos",
        points,
        kept,
        "what is kept",
        1.0,
    )


def words(run: fg.Run) -> str:
    return " ".join(merging.section(run).unescape().split())


def test_tensors_belong_to_blocks_and_blocks_to_stages() -> None:
    blocks = ["stem", "stem", "layer1.0", "layer1.0", "layer1.10", "layer2.0", "layer4.1"]
    assert [merging.block(tensor) for tensor in TENSORS] == blocks
    stages = [block.partition(".")[0] for block in blocks]
    assert [merging.stage(tensor) for tensor in TENSORS] == stages
    assert merging.stage("conv1.0.weight") == "stem"  # a deep stem
    assert merging.block("stages.1.blocks.2.conv.weight") == "stages.1.2"


@pytest.mark.parametrize(("limit", "rows"), [(7, 7), (6, 5), (5, 5), (4, 4), (1, 4)])
def test_rows_are_as_fine_as_the_limit_allows(limit: int, rows: int) -> None:
    cells = merging.grouped(moves(), limit)
    assert len({cell.row for cell in cells}) == rows
    assert len(cells) == 3 * rows
    assert sum(cell.tensors for cell in cells if cell.epoch == 1) == len(TENSORS)


@pytest.mark.parametrize("limit", [7, 6, 4])
def test_a_cell_is_the_mean_of_its_tensors_and_folds(limit: int) -> None:
    known = moves()
    for cell in merging.grouped(known, limit):
        own = [
            move
            for move in known
            if move.epoch == cell.epoch
            and cell.row in (move.tensor, merging.block(move.tensor), merging.stage(move.tensor))
        ]
        for name in ("angle", "ratio", "distance"):
            expected = statistics.fmean(getattr(move, name) for move in own)
            assert getattr(cell, name) == pytest.approx(expected)


def test_rows_stand_in_the_order_of_the_network() -> None:
    rows = list(dict.fromkeys(cell.row for cell in merging.grouped(moves())))
    assert rows == list(TENSORS)


def test_distances_are_means_by_stage() -> None:
    known = moves()
    found = merging.travelled(known)
    assert set(found) == {
        (stage, epoch) for stage in ("stem", "layer1", "layer2", "layer4") for epoch in (1, 2, 3)
    }
    own = [m.distance for m in known if m.tensor in TENSORS[:2] and m.epoch == 2]
    assert found["stem", 2] == pytest.approx(statistics.fmean(own))


def test_a_gain_is_merged_minus_mean_replica() -> None:
    points = [
        judged(0, 1, "replica-1", 0.5),
        judged(0, 1, "replica-2", 0.7),
        judged(0, 1, MERGED, 0.75),
    ]
    for order in (points, points[::-1]):
        (gain,) = merging.gains(order)
        assert (gain.fold, gain.epoch) == (0, 1)
        assert gain.gain == pytest.approx(0.15)


def test_replicas_that_diverged_and_epochs_without_a_merge_are_left_out() -> None:
    points = [
        judged(0, 1, "replica-1", 0.5),
        judged(0, 1, "replica-2", None, diverged=True),
        judged(0, 1, MERGED, 0.5),
        judged(0, 2, "replica-1", 0.9),
        judged(1, 1, MERGED, 0.9),
    ]
    (gain,) = merging.gains(points)
    assert (gain.fold, gain.epoch, gain.gain) == (0, 1, 0)


def test_the_sentence_tells_the_kept_epochs() -> None:
    known = [
        merging.Gain(fold, epoch, gain)
        for fold, epoch, gain in ((0, 1, 0.02), (0, 2, 0.5), (1, 1, 0.5), (1, 2, -0.01))
    ]
    text = merging.gain_in_words(known, {0: 1, 1: 2})
    assert "+0.50 percentage points on average (−1.00 to +2.00)" in text
    assert "above zero in 1 of 2 folds" in text
    assert "−1.00 percentage points" in merging.gain_in_words(known[3:], {1: 2})
    assert "no replica was evaluated" in merging.gain_in_words(known[:1], {0: 7})


def test_gains_of_a_run_are_those_of_its_tables(run: fg.Run) -> None:
    points = curves.read(run).points
    accuracy = {(p.fold, p.epoch, p.model): p.test_accuracy for p in points}
    found = merging.gains(points)
    assert len(found) == 2 * 2
    for each in found:
        one, other, merged = (
            accuracy[each.fold, each.epoch, model] for model in ("replica-1", "replica-2", MERGED)
        )
        assert one is not None and other is not None and merged is not None
        assert each.gain == pytest.approx(merged - (one + other) / 2)


def score(name: str, accuracy: float) -> Worth:
    interval = (accuracy - 0.01, accuracy + 0.01)
    return Worth(name, accuracy, interval, 1 - accuracy, 0.02, 0.05, 1000, 4000)


def test_batch_norm_is_compared_where_both_were_scored() -> None:
    rows = [score("ensemble", 0.9), score("soup", 0.8), score("soup-recal", 0.7)]
    rows += [score("stock", 0.6), score("greedy-recal", 0.4)]
    (effect,) = merging.batch_norm_effect(rows)
    assert (effect.rule, effect.recalibrated, effect.averaged) == ("soup", 0.7, 0.8)
    assert merging.batch_norm_effect([]) == []


def test_old_scores_are_not_compared(trained: fg.Run, tmp_path: Path) -> None:
    own = fg.Run(shutil.copytree(trained.folder, tmp_path / "run"))
    assert "Not compared yet" in words(own)
    (own.folder / "scores.json").write_text("{}")
    assert "Old scores are not shown. scores.json is of another version." in words(own)


@pytest.mark.parametrize("epochs", [1, 30])
def test_charts_are_drawn(epochs: int) -> None:
    known = moves(epochs)
    svg = drawn(merging.map_chart(merging.grouped(known)))
    assert all(tensor in svg for tensor in TENSORS)
    assert "layer4" in drawn(merging.distance_chart(merging.travelled(known)))
    gains = [merging.Gain(fold, epoch, 0.01) for fold in (0, 1) for epoch in range(1, epochs + 1)]
    drawn(merging.gain_chart(gains))


@pytest.mark.parametrize("measure", ["loss", "accuracy"])
@pytest.mark.parametrize("loss", [0.5, None])
def test_the_landscape_is_drawn(measure: str, loss: float | None) -> None:
    svg = drawn(merging.landscape_chart(some_landscape(loss), measure))
    assert all(name in svg for name in ("replica 1", "middle", "replica 2"))
    text = merging.in_words(some_landscape(loss), measure)
    assert ("midway" in text) == (measure == "accuracy" or loss is not None)


def test_a_whole_run_has_every_part_and_says_how_to_get_what_is_missing(run: fg.Run) -> None:
    text = words(run)
    for part in ("merged minus mean replica", "Heat map of", "Line chart of distance"):
        assert part in text
    assert "fieldguide landscape RUN</pre>" in text  # it kept its replicas
    assert "photos outside" in text
    assert "Traceback" not in text and "nan" not in text.lower().split()


def test_the_landscape_is_shown_where_it_is(run: fg.Run, tmp_path: Path) -> None:
    own = fg.Run(shutil.copytree(run.folder, tmp_path / "run"))
    landscape.write(own, some_landscape())
    text = words(own)
    assert "0.500 and 0.500 at the ends and 0.500 midway" in text
    assert "fieldguide landscape" not in text


def test_a_run_of_single_replicas_was_not_merged(trained: fg.Run) -> None:
    text = words(trained)
    assert "Nothing was merged" in text and "Line chart of distance" in text
    assert "Heat map" not in text and "mean replica" not in text
    assert "fieldguide landscape RUN --between folds" in text


def test_a_run_under_way_tells_of_its_checkpoint(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(8)), epochs=3)
    assert "0 of 2 folds" in words(fg.Run(tmp_path / "run"))
