import csv
import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import Killed, killer, results, small_fit, small_recipe
from PIL import Image

import fieldguide as fg
from fieldguide.analysis import paired
from fieldguide.compare.compare import compare
from fieldguide.compare.results import FAILED, RECORD, collect, rebuilt, save_figures, write
from fieldguide.compare.trials import Trial, reference, trials
from fieldguide.errors import ResourceError, Stopped, UsageError
from fieldguide.fitting import fit as fitting
from fieldguide.fitting.progress import Watcher
from fieldguide.photos import catalog as catalogs
from fieldguide.report.comparison import Comparison
from fieldguide.runs import run as runs
from fieldguide.storage import files

BASE = small_recipe(mix="none", replicas=1, merge="none", batch_norm="average")
SHORT = BASE.replace(epochs=1, warmup=0.0)
VARY: dict[str, list[Any]] = {"mix": ["none", "cutmix"], "head": ["se"]}
TRIED = trials(BASE, VARY, one_at_a_time=True)


@pytest.fixture(scope="module")
def compared(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("compared") / "out"
    return compare(fg.scan(discs), TRIED, out), out


@pytest.fixture
def copied(compared: tuple[Comparison, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared[1], tmp_path / "copied"))


def the_runs(out: Path, found: Sequence[Trial] = TRIED) -> list[fg.Run]:
    return [fg.Run(out / trial.folder) for trial in found]


def collected(out: Path, found: Sequence[Trial] = TRIED) -> Comparison:
    return collect(out, found, catalogs.read_rows(out / "catalog.csv", root=Path()))


def statuses(found: Comparison) -> list[str]:
    return [row.status for row in found.rows]


def test_a_trial_is_the_fit_of_its_recipe(
    compared: tuple[Comparison, Path], discs: Path, tmp_path: Path
) -> None:
    run = fg.fit(fg.scan(discs), TRIED[1].recipe, tmp_path / "run")
    assert results(run) == results(the_runs(compared[1])[1])


def test_rows_and_contrasts_say_what_the_runs_say(compared: tuple[Comparison, Path]) -> None:
    found, out = compared
    right = []
    for row, run in zip(found.rows, the_runs(out), strict=True):
        assert row.status == "complete"
        assert out / row.folder == run.folder
        assert row.accuracy == pytest.approx(run.scores.accuracy)
        assert row.interval == pytest.approx(run.scores.interval)
        assert row.log_loss == pytest.approx(run.scores.log_loss)
        assert row.seconds == run.seconds
        assert [mean.epoch for mean in found.curves[row.name]] == [1, 2]
        with (run.folder / "oof.csv").open(newline="") as file:
            right.append([each["label"] == each["predicted"] for each in csv.DictReader(file)])
    base, *others = np.array(right)
    contrasts = paired.contrasts(base, others, np.arange(24))
    assert [row.contrast for row in found.rows] == [None, *contrasts]
    assert found.winner is not None
    best = int(np.sum(right, axis=1).argmax())
    assert (found.winner.name, found.winner.trials) == (found.rows[best].name, 3)
    assert found.winner.accuracy == found.rows[best].accuracy
    assert found.winner.corrected == paired.bias_corrected_best(
        np.array(right, float), np.arange(24)
    )


def test_table_record_and_page_are_written(compared: tuple[Comparison, Path]) -> None:
    found, out = compared
    with (out / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["base", "mix=cutmix", "head=se"]
    assert [float(row["accuracy"]) for row in rows] == [row.accuracy for row in found.rows]
    assert rows[0]["p"] == "" and 0 <= float(rows[1]["adjusted_p"]) <= 1
    assert rows[1]["verdict"] in {"better", "worse", "no difference shown"}
    record = json.loads((out / "compare.json").read_bytes())
    assert record["level"] == 0.05
    assert record["base"] == BASE.model_dump(mode="json")
    assert [row["changes"] for row in record["rows"]] == [{}, {"mix": "cutmix"}, {"head": "se"}]
    page = (out / "compare.html").read_text("utf-8")
    assert "head=se" in page and "vegaEmbed" in page
    assert "<title>Comparison of recipes: out</title>" in page
    with Image.open(out / "compare.png") as picture:
        assert picture.width > 1000
    assert (out / "compare.svg").read_text("utf-8").startswith("<svg")


def test_trials_are_added_to_what_is_there(copied: Path, discs: Path) -> None:
    more = trials(BASE, VARY | {"epochs": [1], "warmup": [0.25]}, one_at_a_time=True)
    before = [run.folder.stat().st_mtime_ns for run in the_runs(copied)]
    found = compare(fg.scan(discs), more, copied)
    assert [row.name for row in found.rows][-2:] == ["epochs=1", "warmup=0.25"]
    assert [run.folder.stat().st_mtime_ns for run in the_runs(copied)] == before


@pytest.mark.parametrize("step", [3, 16, 30])
def test_killed_and_resumed_ends_the_same(
    step: int, compared: tuple[Comparison, Path], discs: Path, tmp_path: Path
) -> None:
    """12 steps a trial; the first ones are timed for the forecast, which nobody watches."""
    found, undisturbed = compared
    catalog, out = fg.scan(discs), tmp_path / "out"
    with pytest.raises(Killed):
        compare(catalog, TRIED, out, watcher=Watcher(on_step=killer(step)))
    began = sum((out / trial.folder).exists() for trial in TRIED)
    assert began == 1 + step // 12
    so_far = collected(out)
    done = ["complete"] * (began - 1) + ["unfinished"] + ["not begun"] * (3 - began)
    assert statuses(so_far) == done
    assert rebuilt(out) == so_far
    resumed = compare(catalog, TRIED, out)
    for run, other in zip(the_runs(out), the_runs(undisturbed), strict=True):
        assert results(run) == results(other)
    seconds = [row.seconds for row in found.rows]
    rows = [replace(row, seconds=s) for row, s in zip(resumed.rows, seconds, strict=True)]
    assert rows == list(found.rows)


def test_a_stop_leaves_the_table_of_what_is_done(discs: Path, tmp_path: Path) -> None:
    rows: list[object] = []

    def stop() -> None:
        if len(rows) >= 5:  # the first fold of the second trial has ended: 2 rows an epoch
            raise Stopped(15)

    watcher = Watcher(on_row=rows.append, check_stop=stop)
    with pytest.raises(Stopped):
        compare(fg.scan(discs), trials(SHORT, {"head": ["se"]}), tmp_path, watcher=watcher)
    record = json.loads((tmp_path / "compare.json").read_bytes())
    assert [row["status"] for row in record["rows"]] == ["complete", "unfinished"]
    assert record["rows"][1]["folds"] == 1
    assert record["rows"][1]["contrast"] is None
    assert record["winner"] is None
    assert "unfinished: 1 of 2 folds" in (tmp_path / "compare.html").read_text("utf-8")


def test_what_diverges_is_recorded_and_the_others_go_on(discs: Path, tmp_path: Path) -> None:
    """The base, so that nothing can be compared to it."""
    found = trials(SHORT.replace(head_rate=1e30), {"head_rate": [1e-3, 1e-2]})
    out, messages = tmp_path / "out", list[str]()
    watcher = Watcher(notice=messages.append)
    done = compare(fg.scan(discs), found, out, watcher=watcher)
    assert statuses(done) == ["failed", "complete", "complete"]
    assert "diverged" in done.rows[0].note
    assert [row.contrast for row in done.rows] == [None] * 3
    assert done.winner is not None and done.winner.trials == 2
    assert "is not complete" in (out / "compare.html").read_text("utf-8")
    assert rebuilt(out) == done
    assert any(text.startswith("base: failed: ") for text in messages)
    own = [text.partition(": ")[2] for text in messages if not text.endswith("training begins")]
    assert len(own) == len(set(own)), "what trials have in common is told once"
    messages.clear()
    assert compare(fg.scan(discs), found, out, watcher=watcher) == done
    assert messages == []
    shutil.rmtree(out / found[0].folder)
    compare(fg.scan(discs), found, out, watcher=watcher)
    assert any("failed" in text for text in messages)


def test_seeds_vary_and_neither_folds_nor_what_is_set_aside(discs: Path, tmp_path: Path) -> None:
    found = trials(SHORT.replace(holdout=0.25), {"seed": [1]})
    compare(fg.scan(discs), found, tmp_path / "out")
    first, other = the_runs(tmp_path / "out", found)
    assert first.catalog.photos == other.catalog.photos
    assert len(first.outside) == 6
    assert first.outside.tolist() == other.outside.tolist()
    assert results(first) != results(other)


def test_trials_of_several_seeds_are_compared_over_them(discs: Path, tmp_path: Path) -> None:
    out, found = tmp_path / "out", trials(SHORT, {"head": ["se"]})
    one_seed = compare(fg.scan(discs), found, out)
    assert (one_seed.seeds, one_seed.rows[1].contrast is not None) == (1, True)
    done = compare(fg.scan(discs), found, out, seeds=2)
    all_runs = [
        [fg.Run(out / folder) for folder in pair]
        for pair in (("base", "base-seed-1"), ("head-se", "head-se-seed-1"))
    ]
    right = []
    for row, pair in zip(done.rows, all_runs, strict=True):
        assert [run.recipe.seed for run in pair] == [0, 1]
        assert pair[0].catalog.photos == pair[1].catalog.photos  # the same folds
        assert row.accuracies == pytest.approx([run.scores.accuracy for run in pair])
        assert row.accuracy == pytest.approx(np.mean(row.accuracies))
        assert (row.status, row.folds) == ("complete", 2 * done.folds)
        assert row.seconds == pytest.approx(sum(run.seconds for run in pair))
        answers = [
            csv.DictReader((run.folder / "oof.csv").read_text("utf-8").splitlines()) for run in pair
        ]
        right.append([[each["label"] == each["predicted"] for each in file] for file in answers])
    base, other = np.array(right)
    expected = paired.contrasts_over_seeds(base, [other], np.arange(24))
    assert [row.contrast for row in done.rows] == [None, *expected]
    assert rebuilt(out) == done
    with (out / "compare.csv").open(newline="") as file:
        assert [len(row["accuracy_by_seed"].split()) for row in csv.DictReader(file)] == [2, 2]
    assert "with 2 seeds each" in (out / "compare.html").read_text("utf-8")


def test_seeds_that_cannot_be_are_refused_before_any_work(discs: Path, tmp_path: Path) -> None:
    for tried, seeds, message in (
        (trials(SHORT, {"seed": [1]}), 2, "`seed` varies among the trials"),
        (trials(SHORT, {}), 0, "`seeds` = 0 is no number of seeds"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(fg.scan(discs), tried, tmp_path / "out", seeds=seeds)
        assert not (tmp_path / "out").exists()


def test_auto_and_what_it_stands_for_are_one_trial(discs: Path, tmp_path: Path) -> None:
    vary = {"interpolation": ["bilinear"], "backbone": ["test_resnet.r160_in1k"]}
    found = trials(SHORT.replace(interpolation="auto"), vary, one_at_a_time=True)
    assert len(found) == 3
    messages: list[str] = []
    watcher = Watcher(notice=messages.append)
    done = compare(fg.scan(discs), found, tmp_path / "out", watcher=watcher)
    assert [row.name for row in done.rows] == ["base"]
    expected = [
        f"{trial.name} would train the same networks as base, and is that trial"
        for trial in found[1:]
    ]
    assert [text for text in messages if "same networks" in text] == expected
    assert done.notes == tuple(f"{text}." for text in expected)
    assert rebuilt(tmp_path / "out") == done
    assert done.winner is None


def test_photos_of_one_group_count_as_one(
    draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    """Each disc is there twice: the copies join a group by themselves."""
    photos = draw_collection(tmp_path / "photos")
    for path in list(photos.rglob("*.jpg")):
        shutil.copy(path, path.with_stem(f"{path.stem}-copy"))
    done = compare(fg.scan(photos), trials(SHORT, {}), tmp_path / "out")
    assert (done.photos, done.groups) == (48, 24)


def test_batches_that_ranks_share_are_refused_before_any_work(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"batch_ranks=2: `batch_ranks` needs torchrun"):
        compare(fg.scan(discs), trials(BASE, {"batch_ranks": [2]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(discs: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds no comparison: notes\.txt"):
        compare(fg.scan(discs), TRIED, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_another_comparison_or_one_in_use_is_left_alone(copied: Path, discs: Path) -> None:
    for settings, message in (
        ({"folds": 3, "seed": 4}, r"folds: 2 there, 3 now\n  seed: 0 there, 4 now"),
        ({"epochs": 3}, "base` holds a run of another recipe: epochs: 2 there, 3 now"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(fg.scan(discs), trials(BASE.replace(**settings), VARY), copied)
    with files.lock(copied), pytest.raises(ResourceError, match="in use"):
        compare(fg.scan(discs), TRIED, copied)


def test_a_run_of_other_folds_is_refused(copied: Path, discs: Path) -> None:
    shutil.rmtree(copied / "head-se")
    small_fit(discs, copied / "head-se", **TRIED[2].recipe.model_dump() | {"seed": 9})
    recipe_file = copied / "head-se" / "recipe.toml"
    recipe_file.write_text(recipe_file.read_text().replace("seed = 9", "seed = 0"))
    files.write_manifest(copied / "head-se", runs.SETUP_FILES, name=runs.SETUP)
    with pytest.raises(UsageError, match="other photos or folds"):
        compare(fg.scan(discs), TRIED, copied)


def test_photos_that_changed_are_refused_also_when_all_is_trained(
    copied: Path, draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    photos = draw_collection(tmp_path / "photos")
    (photos / "amber" / "000.jpg").write_bytes((photos / "blue" / "000.jpg").read_bytes())
    with pytest.raises(UsageError, match=r"1 photo of other content, such as `amber/000\.jpg`"):
        compare(fg.scan(photos), TRIED, copied)
    with pytest.raises(UsageError, match=r"1 photo of other content, such as `amber/000\.jpg`"):
        compare(fg.scan(photos), trials(BASE, VARY | {"epochs": [1]}), copied)


def test_errors_that_the_user_must_mend_end_the_comparison(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(fitting, "fit", full)
    with pytest.raises(ResourceError, match="full"):
        compare(fg.scan(discs), TRIED, tmp_path / "out")


def test_a_comparison_is_rebuilt_from_its_folder_which_stays_as_it_is(
    compared: tuple[Comparison, Path],
) -> None:
    found, out = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert rebuilt(out) == found
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_a_record_of_failure_that_is_damaged_still_counts(
    compared: tuple[Comparison, Path], copied: Path
) -> None:
    (copied / "mix-cutmix" / files.MANIFEST).unlink()
    (copied / "mix-cutmix" / FAILED).write_text("{")
    _, failed, other = collected(copied).rows
    assert (failed.status, failed.folds, failed.contrast) == ("failed", 2, None)
    assert "cannot be read" in failed.note
    assert other.contrast is not None
    assert other.contrast.difference == compared[0].rows[2].contrast.difference  # type: ignore[union-attr]


def test_changes_keep_their_types_and_presets_their_names(copied: Path) -> None:
    more = [*trials(BASE, {"crop_scale": [(0.5, 1.0)]}), *reference({"folds": 2})[1:]]
    expected = collected(copied, more)
    write(expected, copied, BASE)
    found = rebuilt(copied)
    assert [row.name for row in found.rows] == [row.name for row in expected.rows]
    assert found.rows[1] == expected.rows[1]
    assert found.rows[1].changes == {"crop_scale": (0.5, 1.0)}


def test_a_record_that_is_missing_or_cannot_be_read_is_reported(copied: Path) -> None:
    (copied / RECORD).unlink()
    with pytest.raises(ResourceError, match=r"no trial of .* has begun yet") as caught:
        rebuilt(copied)
    assert caught.value.hint == "the same compare command resumes it"
    for text in ("", "{", "[]", "{}", '{"base": {"owl": 1}}', '{"base": {}, "rows": [3]}'):
        (copied / RECORD).write_text(text)
        with pytest.raises(ResourceError, match=r"compare\.json` cannot be read"):
            rebuilt(copied)


def test_only_a_comparison_can_be_rebuilt_and_only_an_undamaged_one(
    copied: Path, trained: fg.Run
) -> None:
    with pytest.raises(UsageError, match="holds no comparison"):
        rebuilt(trained.folder)
    with (copied / "catalog.csv").open("a") as file:
        file.write("more")
    with pytest.raises(ResourceError, match=r"catalog\.csv"):
        rebuilt(copied)


def test_figures_are_saved_with_the_table_and_overwrite_nothing(
    compared: tuple[Comparison, Path], tmp_path: Path
) -> None:
    found, out = compared
    places = save_figures(found, tmp_path / "figures")
    assert [place.name for place in places] == [
        *("compare.png", "compare.svg", "differences.png", "differences.svg", "compare.csv")
    ]
    assert places[0].read_bytes() == (out / "compare.png").read_bytes()
    assert places[4].read_bytes() == (out / "compare.csv").read_bytes()
    text = " ".join(ElementTree.parse(places[3]).getroot().itertext())
    assert "head=se" in text and "difference, percentage points" in text
    with pytest.raises(UsageError, match="is there already"):
        save_figures(found, tmp_path / "figures")
