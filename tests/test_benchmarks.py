"""The speed benchmarks: their arithmetic and words, and that every cheap part runs at all."""

import io
import itertools
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fieldguide as fg
from fieldguide.photos.forms.known import KNOWN

ROOT = Path(__file__).parents[1]
SPEED = ROOT / "benchmarks" / "speed"
sys.path.insert(0, str(SPEED))

import commands  # noqa: E402
import gate  # noqa: E402
import harness  # noqa: E402
import material  # noqa: E402
import merges  # noqa: E402
import parts  # noqa: E402
import peers  # noqa: E402
import start  # noqa: E402
import steps  # noqa: E402
from harness import Cost, Options, Row, Target  # noqa: E402


@pytest.fixture
def quick(tmp_path: Path) -> Options:
    return Options(tmp_path, rounds=1, quick=True)


@pytest.fixture
def usual(tmp_path: Path) -> Options:
    return Options(tmp_path)


ROW = Row("step", "ours vs theirs", (6.0, 1.0, 8.0), (2.0, 2.0, 2.0), "photos/s", "cpu")


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def contestant(name: str) -> Callable[[], Cost]:
        def run() -> Cost:
            calls.append(name)
            return Cost(len(calls), 0.0)

        return run

    found = harness.in_turn([contestant("a"), contestant("b")], 3)
    assert "".join(calls) == "ab" * 4
    assert [[cost.wall for cost in costs] for costs in found] == [[3, 5, 7], [4, 6, 8]]
    calls.clear()
    harness.in_turn([contestant("a"), contestant("b")], 2, warm=False)
    assert "".join(calls) == "abab"


def test_a_cost_is_what_the_clocks_went_on(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([Cost(10, 5), Cost(13, 7)])
    monkeypatch.setattr(harness, "_clocks", lambda: next(readings))
    worked: list[int] = []
    assert harness.cost_of(lambda: worked.append(1)) == Cost(3, 2)
    assert worked == [1]


def test_rates_are_amounts_over_seconds() -> None:
    costs = [Cost(2, 4), Cost(5, 10)]
    assert harness.rates(costs, "wall", 20) == (10, 4)
    assert harness.rates(costs, "cpu", 20) == (5, 2)
    assert harness.seconds(costs, "cpu") == (4, 10)
    assert harness.rates([costs[0].scaled(1 / 20)], "wall") == pytest.approx((10,))


def test_a_row_compares_pair_by_pair() -> None:
    assert ROW.results == (3, 0.5, 4)
    assert ROW.result == 3  # the median of ratios, not the ratio of medians
    minus = Row("start", "", ROW.ours, ROW.peer, difference=True)
    assert minus.results == (4, -1, 6)
    assert minus.result == 4
    assert Row("gate", "", ROW.ours, ROW.peer, difference=True, mean=True).result == 3


@pytest.mark.parametrize(
    ("sign", "value", "met"),
    [("≥", 3, True), ("≥", 3.1, False), ("≤", 3, True), ("≤", 2.9, False)],
)
def test_a_target_is_met_when_it_is_reached(sign: Any, value: float, met: bool) -> None:
    row = Row("step", "", ROW.ours, ROW.peer, target=Target(sign, value))
    assert row.met is met
    assert ("yes" if met else "NO") in harness.line(row).split()


def test_without_target_or_measurement_nothing_is_met() -> None:
    assert ROW.met is None
    assert Row("gpu", "", target=Target("≥", 1), missing="no GPU").met is None


def test_a_line_shows_medians_ratio_and_span() -> None:
    told = harness.line(ROW)
    words = "step ours vs theirs, cpu 6.00 2.00 photos/s 3.00 (0.500 … 4.00) - -"
    assert " ".join(told.split()) == words
    assert harness.header().index("target") == told.index("-")  # columns


def test_what_was_not_measured_says_why() -> None:
    told = harness.line(harness.not_measured("gpu", "steps", "no GPU"))
    assert told.endswith("not measured: no GPU")


@pytest.mark.parametrize("value", [0.0123, 0.999, 1.0, 3.14159, 42.42, 99.94, 123.4, 54321.0, -2.5])
def test_shown_numbers_are_near_and_plain(value: float) -> None:
    assert float(harness.shown(value).replace(",", "")) == pytest.approx(value, rel=0.05, abs=5e-4)
    assert "e" not in harness.shown(value)


def test_a_record_holds_all_values_and_what_they_depend_on(usual: Options) -> None:
    read = json.loads(harness.record(ROW, harness.machine(usual)))
    assert (read["ours"], read["peer"]) == ([*ROW.ours], [*ROW.peer])
    assert (read["results"], read["result"], read["met"]) == ([*ROW.results], ROW.result, None)
    assert torch.__version__.startswith(read["versions"]["torch"])
    assert {"date", "processor", "cores", "threads", "platform", "rounds"} <= read.keys()
    nothing = json.loads(harness.record(harness.not_measured("gpu", "", "no GPU"), {}))
    assert nothing["missing"] == "no GPU" and "result" not in nothing


def test_composed_photos_are_as_many_as_asked_for_and_no_two_alike(usual: Options) -> None:
    photos = material.composed(usual, 40, material.SMALL)
    contents = {path.read_bytes() for path in photos.files}
    assert len(contents) == len(photos.files) == 40
    assert {Image.open(io.BytesIO(content)).size for content in contents} == {material.SMALL}
    counts = [len(list(folder.iterdir())) for folder in photos.root.iterdir()]
    assert min(counts) >= material.CLASS_PHOTOS


def test_composed_photos_are_the_same_every_time() -> None:
    one, again, other = (np.asarray(material.compose(n, material.SMALL)) for n in (7, 7, 8))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_real_photos_are_taken_where_they_are(nature100: Path, usual: Options) -> None:
    photos = material.collection(usual, 40)
    assert len(photos.files) == 40
    for path in photos.files:
        real = nature100 / "train" / path.relative_to(photos.root)
        assert path.read_bytes() == real.read_bytes()
    assert material.collection(usual, 40).files == photos.files
    assert "composed" in material.collection(usual, 3, large=True).about


def test_more_real_photos_than_there_are_is_an_error(nature100: Path, usual: Options) -> None:
    with pytest.raises(SystemExit, match="100 classes: 100000"):
        material.collection(usual, 100_000)


def test_memory_is_the_commands_and_not_this_processs() -> None:
    """Linux counts what a process held before it became the command; this one holds torch."""
    little = commands.spent(["-c", "pass"]).mebibytes
    much = commands.spent(["-c", "kept = bytes(bytearray(b'1') * (64 << 20))"]).mebibytes
    assert little < 64 < much - little


def test_a_command_that_fails_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        commands.spent(["-c", "raise SystemExit('no photos')"])
    assert "no photos" in capfd.readouterr().err


def test_what_is_not_installed_is_not_measured(quick: Options) -> None:
    assert peers.installed(sys.executable, "json")
    assert not peers.installed(sys.executable, "fieldguide.no_such_module")
    [row] = peers.peer("fastai", quick)
    assert row.missing.startswith("not installed") == (
        not peers.installed(sys.executable, "fastai")
    )


def test_the_plain_loop_merges_as_we_do() -> None:
    network = merges._network("test_resnet")
    copies = [merges._moved(merges.weights_of(network), seed) for seed in range(3)]
    found = []
    for how in (merges.ours, merges.naive):
        how(network, copies)
        found.append(merges.weights_of(network))
    torch.testing.assert_close(*found)
    assert any(not torch.equal(tensor, copies[0][name]) for name, tensor in found[0].items())


def test_right_answers_are_those_of_the_runs_scores(trained: fg.Run) -> None:
    right = gate.right(trained)
    rows = np.concatenate([trained.folds[fold].test for fold in trained.done])
    assert right[rows].mean() == pytest.approx(trained.scores.accuracy)
    assert not right[np.setdiff1d(np.arange(len(right)), rows)].any()


CHEAP = ("data-cached", "data-first", "step", "merge", "predict", "epoch")


@pytest.mark.parametrize("name", CHEAP)
def test_a_part_gives_its_rows(name: str, quick: Options) -> None:
    rows = list(parts.PARTS[name](quick))
    assert rows
    for row in rows:
        assert row.id.startswith(name)
        assert not row.missing and row.target is not None and row.unit
        assert len(row.ours) == len(row.peer) == quick.rounds
        assert min(*row.ours, *row.peer) > 0
        assert row.result in row.results


def test_the_step_is_measured_in_both_layouts(quick: Options) -> None:
    """What is done on a GPU, on the CPU, where compiling would take too long."""
    recipe = material.recipe_of(quick, 224, "resnet50", folds=2)
    rows = list(itertools.islice(steps.in_every_way(quick, recipe), 2))
    assert [row.what.split(", ")[1] for row in rows] == ["contiguous", "channels_last"]
    assert all("eager" in row.what and row.result > 0 for row in rows)


def test_the_start_of_the_command_line(quick: Options) -> None:
    row = start.help_row(quick)
    assert row.difference and row.result > 0


def test_every_part_has_a_line_in_the_readme() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    for name in parts.PARTS:
        assert sum(f"`{name}`" in line.split("|")[1] for line in lines) == 1, name
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert all(sum(f"`{name}`" in line for line in lines) == 1 for name in scripts)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "FIELDGUIDE_CACHE"):
        monkeypatch.setenv(name, "1")  # so that what it sets is taken back
    called: Callable[..., None] = runpy.run_path(str(SPEED / "__main__.py"))["main"]
    return called


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is measured, for minutes")
def test_rows_go_to_the_terminal_and_to_a_file(
    main: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "bench.jsonl"
    main(["gpu", "--quick", "--out", str(out)])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading == harness.header()
    records = [json.loads(text) for text in out.read_text("utf-8").splitlines()]
    assert [record["what"] in text for record, text in zip(records, lines, strict=True)]
    assert {record["missing"] for record in records} == {"no GPU"}
    assert {record["rounds"] for record in records} == {1}


def test_an_unknown_part_is_refused_before_anything_is_measured(
    main: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="there is no part `stepp`: data-cached"):
        main(["step", "stepp", "--out", str(tmp_path / "bench.jsonl")])
    assert not capsys.readouterr().out


def test_long_parts_run_only_when_they_are_named() -> None:
    assert {"kfold", "gate", "shares", "growth"} == parts.LONG.keys()
    assert not parts.LONG.keys() & parts.USUAL.keys()
    assert parts.PARTS.keys() == parts.LONG.keys() | parts.USUAL.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_scale_of_many_photos_is_measured_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "scale"
    script = str(ROOT / "benchmarks" / "scale.py")
    done = subprocess.run(
        [sys.executable, script, "--photos", "500", "--folder", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    stages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [stage["stage"] for stage in stages][:3] == ["index tar files", "pack", "catalog"]
    assert stages[-1]["stage"] == "all draws of an epoch"
    assert all(stage["seconds"] >= 0 and stage["photos"] == 500 for stage in stages)
    assert not folder.exists()


def test_a_sample_of_every_form_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy", reason="needs the extra mat")
    script = runpy.run_path(str(ROOT / "benchmarks" / "forms.py"))
    script["table"](None)
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split("`")[1] for line in lines] == [known.name for known in KNOWN]
    assert all(" class" in line for line in lines)
