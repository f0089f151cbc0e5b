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
from fieldguide import compare, files, recipe, runs
from fieldguide.analysis import paired
from fieldguide.catalog import Catalog
from fieldguide.compare import Cost, Trial, parse_vary, trials
from fieldguide.crossval import Watcher
from fieldguide.errors import ResourceError, Stopped, UsageError
from fieldguide.report import comparison
from fieldguide.report.comparison import Comparison, Row, Winner
from fieldguide.report.curves import Mean

BASE = small_recipe(mix="none", replicas=1, merge="none", batch_norm="average")


def names(found: Sequence[Trial]) -> list[str]:
    return [trial.name for trial in found]


def told() -> tuple[list[str], Watcher]:
    messages: list[str] = []
    return messages, Watcher(notice=messages.append)


# --- what is to vary ------------------------------------------------------------------------------


def test_values_are_read_as_the_settings_types() -> None:
    found = parse_vary(
        ["mix=none,cutmix", "epochs = 2, 3", "crop-scale=0.08 1,0.35 1", "mix=mixup"]
    )
    assert found == {
        "mix": ["none", "cutmix", "mixup"],
        "epochs": [2, 3],
        "crop_scale": [(0.08, 1.0), (0.35, 1.0)],
    }
    assert parse_vary([]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixx=none", "there is no setting `mixx` in --vary (did you mean `mix`"),
        ("mix", "`--vary mix` names no values"),
        ("mix=", "names no values"),
        ("=none", "names no values"),
        ("mix=none,cutmixx", "--vary mix = 'cutmixx'"),
        ("epochs=two", "--vary epochs = 'two'"),
        ("folds=3,5", "`folds` cannot vary: all trials have the same photos"),
    ],
)
def test_what_cannot_vary_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_vary([text])
    assert message in str(caught.value)


def test_a_grid_has_every_combination_and_the_base_first() -> None:
    found = trials(BASE, {"mix": ["cutmix", "none"], "head": ["linear", "se"]})
    assert names(found) == ["base", "mix=cutmix", "mix=cutmix, head=se", "head=se"]
    assert [trial.recipe for trial in found] == [
        BASE,
        BASE.replace(mix="cutmix"),
        BASE.replace(mix="cutmix", head="se"),
        BASE.replace(head="se"),
    ]
    assert found[2].changes == {"mix": "cutmix", "head": "se"}


def test_one_at_a_time_changes_one() -> None:
    found = trials(BASE, {"mix": ["none", "cutmix"], "head": ["se"]}, one_at_a_time=True)
    assert names(found) == ["base", "mix=cutmix", "head=se"]
    assert all(len(trial.changes) == 1 for trial in found[1:])


def test_without_anything_to_vary_there_is_the_base() -> None:
    assert trials(BASE, {}) == trials(BASE, {}, one_at_a_time=True) == [Trial("base", {}, BASE)]


def test_what_differs_in_name_only_is_one_trial() -> None:
    found = trials(BASE, {"mix_alpha": [0.5, 1.0], "mix": ["none", "cutmix"]})
    assert names(found) == ["base", "mix_alpha=0.5, mix=cutmix", "mix=cutmix"]
    assert found[0].twins == ("mix_alpha=0.5",)


def test_combinations_that_contradict_each_other_are_told() -> None:
    with pytest.raises(UsageError, match=r"mix=cutmix, batch_size=1: .*needs a `batch_size`"):
        trials(BASE, {"mix": ["cutmix"], "batch_size": [1]})
    with pytest.raises(UsageError, match="resnet1800"):
        trials(BASE, {"backbone": ["resnet1800"]})
    with pytest.raises(UsageError, match="`holdout` cannot vary"):
        trials(BASE, {"holdout": [0.1]})


def test_folders_are_plain_and_no_two_alike() -> None:
    values = ["a/b.pth", "a-b.pth", "A/b.pth", "../../x", "<script>\n", "é" * 300, "x" * 300]
    found = [Trial(f"weights={value}", {}, BASE) for value in values]
    found += trials(BASE, {"mix": ["cutmix"], "crop_scale": [(0.08, 1.0), (0.5, 1.0)]})
    folders = [trial.folder for trial in found]
    assert len({folder.lower() for folder in folders}) == len(folders)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for name in folders)
    assert all(0 < len(name) < 70 and name[0] not in ".-" for name in folders)


# --- settings without effect ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"mix": "none"}, {"mix_alpha": 3.0}),
        ({"stop": "none"}, {"patience": 9, "inner_share": 0.3}),
        ({"stop": "fold"}, {"inner_share": 0.3}),
        ({"color_jitter": 0.0}, {"jitter": (0.9, 0.9, 0.9, 0.1)}),
        ({}, {"device": "cpu", "workers": 3, "checkpoint_minutes": 1.0, "keep_replicas": True}),
        ({"merge": "average"}, {"anchor": "last_merge"}),
        ({"replicas": 1, "merge": "none"}, {"merge_every": 4, "batch_norm": "recalibrate"}),
        ({"replicas": 1, "merge": "none"}, {"moments": "average", "anchor": "last_merge"}),
        ({"replicas": 1, "merge": "none"}, {"merge": "average"}),
        ({"replicas": 1, "merge": "average"}, {"merge": "model_stock"}),
        ({"replicas": 1, "merge": "none"}, {"outer": "momentum", "replica_data": "share"}),
        ({"outer": "none"}, {"outer_rate": 0.1, "outer_momentum": 0.1}),
    ],
)
def test_settings_without_a_say_are_left_at_their_defaults(
    settings: dict[str, Any], changed: dict[str, Any]
) -> None:
    one = recipe.build(settings)
    other = one.replace(**changed)
    assert other != one
    assert recipe.effective(other) == recipe.effective(one)
    assert recipe.effective(recipe.effective(other)) == recipe.effective(other)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"mix": "cutmix"}, {"mix_alpha": 3.0}),
        ({"stop": "fold"}, {"patience": 9}),
        ({"merge": "model_stock"}, {"anchor": "last_merge"}),
        ({"replicas": 1, "merge": "average"}, {"batch_norm": "recalibrate"}),
        ({"replicas": 1, "merge": "none", "stop": "fold"}, {"merge_every": 4}),
        ({"replicas": 1, "merge": "none"}, {"moments": "reset"}),
        ({"replicas": 1, "merge": "none", "moments": "reset"}, {"merge_every": 4}),
        ({}, {"seed": 1}),
        ({}, {"replicas": 3}),
        ({}, {"replica_data": "share"}),
        ({"outer": "momentum"}, {"outer_rate": 0.1}),
        ({"replicas": 1, "merge": "average", "outer": "momentum"}, {"merge": "none"}),
    ],
)
def test_settings_with_a_say_stay(settings: dict[str, Any], changed: dict[str, Any]) -> None:
    one = recipe.build(settings)
    assert recipe.effective(one.replace(**changed)) != recipe.effective(one)


def test_batches_that_ranks_share_are_refused_before_any_work(discs: Path, tmp_path: Path) -> None:
    found = trials(BASE, {"batch_ranks": [2]})
    with pytest.raises(UsageError, match=r"batch_ranks=2: `batch_ranks` needs torchrun"):
        compare.compare(fg.scan(discs), found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recipes_of_one_effect_train_the_same_networks(discs: Path, tmp_path: Path) -> None:
    settings = {"replicas": 1, "batch_norm": "average", "mix": "none"}
    one = small_fit(discs, tmp_path / "one", merge="none", **settings)
    other = small_fit(
        discs, tmp_path / "other", merge="model_stock", merge_every=2, mix_alpha=2.0, **settings
    )
    same = [recipe.effective(run.recipe.replace(device="auto")) for run in (one, other)]
    assert same[0] == same[1]
    networks = [
        {name: data for name, data in results(run).items() if "merges" not in name}
        for run in (one, other)
    ]
    assert networks[0] == networks[1]


# --- the report's experiments ---------------------------------------------------------------------


def test_the_preset_repeats_the_experiments_of_the_report() -> None:
    found = compare.PRESETS["reference"]({})
    assert names(found) == [
        "none",
        "randaugment",
        "mixup",
        "cutmix",
        "augmix",
        "head se",
        "head attention",
        "no crop",
        "one replica, twice the epochs",
        "merged once at the end",
    ]
    base = found[0].recipe
    assert base == recipe.load("reference").replace(mix="none")
    assert [trial.recipe for trial in found] == [base.replace(**trial.changes) for trial in found]
    one = {trial.name: trial for trial in found}["one replica, twice the epochs"].recipe
    assert one.epochs * one.replicas == base.epochs * base.replicas
    assert len({trial.folder for trial in found}) == len(found)


def test_the_preset_follows_what_is_given_for_all_trials() -> None:
    found = compare.reference({"size": 96, "epochs": 4, "backbone": "resnet18", "folds": 3})
    recipes = {trial.name: trial.recipe for trial in found}
    assert {each.backbone for each in recipes.values()} == {"resnet18"}
    assert recipes["none"].eval_resize == round(96 * 512 / 320)
    assert recipes["no crop"].eval_resize == 96
    assert recipes["one replica, twice the epochs"].epochs == 8
    assert recipes["merged once at the end"].merge_every == 4
    chosen = compare.reference({"size": 96, "eval_resize": 128})
    assert chosen[0].recipe.eval_resize == 128
    with pytest.raises(UsageError, match="number of pixels"):
        compare.reference({"size": "auto"})


def test_the_presets_base_is_the_experiment_that_it_is() -> None:
    found = compare.reference({"mix": "cutmix", "epochs": 1})
    assert found[0].name == "cutmix"
    assert found[0].changes == {}
    assert found[0].twins == ("merged once at the end",)
    assert "none" in names(found)
    assert names(compare.reference({"mix": "cutmix", "augment": "randaugment"}))[0] == "randaugment"


# --- forecast and budget --------------------------------------------------------------------------


def test_the_forecast_counts_every_step_and_every_look() -> None:
    cost = Cost(step=2.0, photo=0.1)
    one = small_recipe(replicas=3, epochs=4, merge_every=3, batch_size=10, batch_norm="average")
    steps = 4 * 3 * (10 * 2.0)  # of 95 photos
    looks = (4 * 3 + 2) * 20 * 0.1
    assert compare.seconds_of(one, [(95, 20)], cost) == pytest.approx(steps + looks)
    both = compare.seconds_of(one, [(95, 20), (95, 20)], cost)
    assert both == pytest.approx(2 * (steps + looks))
    anew = one.replace(batch_norm="recalibrate")
    assert compare.seconds_of(anew, [(95, 20)], cost) == pytest.approx(steps + looks + 2 * 95 * 0.1)
    alone = one.replace(replicas=1, merge="none")
    assert compare.seconds_of(alone, [(95, 20)], cost) == pytest.approx(4 * (20 + 2))


@pytest.fixture
def an_hour_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_measured", lambda *_: Cost(step=3600.0, photo=0.0))


@pytest.mark.usefixtures("an_hour_a_step")
def test_what_does_not_fit_the_budget_is_left_out_in_order(discs: Path, tmp_path: Path) -> None:
    """Two folds of 3 steps an epoch: the base takes 6 h, the others 12 h and 6 h."""
    one = BASE.replace(epochs=1, warmup=0.0)
    found = trials(one, {"epochs": [2], "head": ["se"]}, one_at_a_time=True)
    messages, watcher = told()
    done = compare.compare(
        fg.scan(discs), found, tmp_path / "out", budget_hours=13.0, watcher=watcher
    )
    assert [row.status for row in done.rows] == ["complete", "not begun", "complete"]
    note = "epochs=2 is left out: it takes about 12.0 h, and 7.0 h of the budget are left"
    assert note in messages
    assert done.rows[1].note == note
    assert compare.rebuilt(tmp_path / "out") == done
    assert "forecast: 3 trials in all: 24.0 h" in messages
    assert not (tmp_path / "out" / "epochs-2").exists()
    later = compare.compare(fg.scan(discs), found, tmp_path / "out", budget_hours=13.0)
    assert [row.status for row in later.rows] == ["complete"] * 3


@pytest.mark.usefixtures("an_hour_a_step")
def test_a_budget_below_the_base_is_refused(discs: Path, tmp_path: Path) -> None:
    found = trials(BASE, {"head": ["se"]})
    with pytest.raises(UsageError, match=r"the budget of 2 h is too small: the base .* 12\.0 h"):
        compare.compare(fg.scan(discs), found, tmp_path / "out", budget_hours=2.0)


def test_a_trial_for_which_time_ran_out_is_left_out(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "_measured", lambda *_: Cost(step=1e-3, photo=0.0))
    messages, watcher = told()
    found = trials(BASE.replace(epochs=1, warmup=0.0), {"head": ["se"]})
    done = compare.compare(  # the forecast is of 0.012 s
        fg.scan(discs), found, tmp_path / "out", budget_hours=0.02 / 3600, watcher=watcher
    )
    assert [row.status for row in done.rows] == ["complete", "not begun"]
    assert "head=se is left out" in messages[-1]


# --- comparing ------------------------------------------------------------------------------------

VARY = {"mix": ["none", "cutmix"], "head": ["se"]}
TRIED = trials(BASE, VARY, one_at_a_time=True)


@pytest.fixture(scope="module")
def compared(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("compared") / "out"
    return compare.compare(fg.scan(discs), TRIED, out), out


def the_runs(out: Path, found: Sequence[Trial] = TRIED) -> list[fg.Run]:
    return [fg.Run(out / trial.folder) for trial in found]


def test_all_trials_have_the_same_photos_and_folds(compared: tuple[Comparison, Path]) -> None:
    _, out = compared
    catalogs = [(run.folder / "catalog.csv").read_bytes() for run in the_runs(out)]
    assert catalogs == [(out / "catalog.csv").read_bytes()] * 3
    assert {photo.fold for photo in the_runs(out)[0].catalog.photos} == {0, 1}


def test_a_trial_is_the_fit_of_its_recipe(
    compared: tuple[Comparison, Path], discs: Path, tmp_path: Path
) -> None:
    run = fg.fit(fg.scan(discs), TRIED[1].recipe, tmp_path / "run")
    assert results(run) == results(the_runs(compared[1])[1])


def test_rows_tell_what_the_runs_tell(compared: tuple[Comparison, Path]) -> None:
    found, out = compared
    for row, run in zip(found.rows, the_runs(out), strict=True):
        assert row.status == "complete"
        assert out / row.folder == run.folder
        assert row.accuracy == pytest.approx(run.scores.accuracy)
        assert row.interval == pytest.approx(run.scores.interval)
        assert row.log_loss == pytest.approx(run.scores.log_loss)
        assert row.seconds == run.seconds
        assert [mean.epoch for mean in found.curves[row.name]] == [1, 2]


def test_contrasts_are_those_of_the_answers(compared: tuple[Comparison, Path]) -> None:
    found, out = compared
    right = []
    for run in the_runs(out):
        with (run.folder / "oof.csv").open(newline="") as file:
            right.append([row["label"] == row["predicted"] for row in csv.DictReader(file)])
    base, *others = np.array(right)
    assert found.rows[0].contrast is None
    contrasts = paired.contrasts(base, others, np.arange(24))
    assert [row.contrast for row in found.rows[1:]] == contrasts
    assert found.winner is not None
    best = int(np.sum(right, axis=1).argmax())
    assert found.winner.name == found.rows[best].name
    assert found.winner.corrected == paired.bias_corrected_best(np.array(right), np.arange(24))


def test_table_record_and_page_are_written(compared: tuple[Comparison, Path]) -> None:
    found, out = compared
    with (out / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["base", "mix=cutmix", "head=se"]
    assert [float(row["accuracy"]) for row in rows] == [row.accuracy for row in found.rows]
    assert rows[0]["p"] == "" and 0 <= float(rows[1]["adjusted_p"]) <= 1
    record = json.loads((out / "compare.json").read_bytes())
    assert record["level"] == 0.05
    assert record["base"] == BASE.model_dump(mode="json")
    assert [row["changes"] for row in record["rows"]] == [{}, {"mix": "cutmix"}, {"head": "se"}]
    page = (out / "compare.html").read_text("utf-8")
    assert "head=se" in page and "vegaEmbed" in page
    with Image.open(out / "compare.png") as picture:
        assert picture.width > 1000
    assert (out / "compare.svg").read_text("utf-8").startswith("<svg")


def test_what_is_complete_is_not_done_again(
    compared: tuple[Comparison, Path], discs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, out = compared
    monkeypatch.setattr(compare.crossval, "fit", None)
    monkeypatch.setattr(compare, "_measured", None)
    assert compare.compare(fg.scan(discs), TRIED, out) == found


def test_trials_are_added_to_what_is_there(
    compared: tuple[Comparison, Path], discs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(compared[1], out)
    more = trials(BASE, VARY | {"epochs": [1], "warmup": [0.25]}, one_at_a_time=True)
    before = [run.folder.stat().st_mtime_ns for run in the_runs(out)]
    found = compare.compare(fg.scan(discs), more, out)
    assert [row.name for row in found.rows][-2:] == ["epochs=1", "warmup=0.25"]
    assert [run.folder.stat().st_mtime_ns for run in the_runs(out)] == before


@pytest.mark.parametrize("step", [3, 16, 30])
def test_killed_and_resumed_ends_the_same(
    step: int, compared: tuple[Comparison, Path], discs: Path, tmp_path: Path
) -> None:
    """12 steps a trial; the first ones are timed for the forecast, which nobody watches."""
    found, undisturbed = compared
    catalog, out = fg.scan(discs), tmp_path / "out"
    with pytest.raises(Killed):
        compare.compare(catalog, TRIED, out, watcher=Watcher(on_step=killer(step)))
    began = sum((out / trial.folder).exists() for trial in TRIED)
    assert began == 1 + step // 12
    so_far = compare.collect(out, TRIED, compare_catalog(out))
    done = ["complete"] * (began - 1) + ["unfinished"] + ["not begun"] * (3 - began)
    assert [row.status for row in so_far.rows] == done
    assert compare.rebuilt(out) == so_far
    resumed = compare.compare(catalog, TRIED, out)
    for run, other in zip(the_runs(out), the_runs(undisturbed), strict=True):
        assert results(run) == results(other)
    assert [replace(row, seconds=0.0) for row in resumed.rows] == [
        replace(row, seconds=0.0) for row in found.rows
    ]


def compare_catalog(out: Path) -> Catalog:
    return compare.catalogs.read_rows(out / "catalog.csv", root=Path())


def test_a_stop_leaves_the_table_of_what_is_done(discs: Path, tmp_path: Path) -> None:
    rows: list[object] = []

    def stop() -> None:
        if len(rows) >= 5:  # the first fold of the second trial has ended: 2 rows an epoch
            raise Stopped(15)

    watcher = Watcher(on_row=rows.append, check_stop=stop)
    one = BASE.replace(epochs=1, warmup=0.0)
    found = trials(one, {"head": ["se"]})
    with pytest.raises(Stopped):
        compare.compare(fg.scan(discs), found, tmp_path, watcher=watcher)
    record = json.loads((tmp_path / "compare.json").read_bytes())
    assert [row["status"] for row in record["rows"]] == ["complete", "unfinished"]
    assert record["rows"][1]["folds"] == 1
    assert record["rows"][1]["contrast"] is None
    assert record["winner"] is None
    assert "unfinished: 1 of 2 folds" in (tmp_path / "compare.html").read_text("utf-8")


def test_what_diverges_is_recorded_and_the_others_go_on(discs: Path, tmp_path: Path) -> None:
    found = trials(BASE, {"head_rate": [1e30], "head": ["se"]}, one_at_a_time=True)
    messages, watcher = told()
    done = compare.compare(fg.scan(discs), found, tmp_path / "out", watcher=watcher)
    assert [row.status for row in done.rows] == ["complete", "failed", "complete"]
    assert "diverged" in done.rows[1].note
    assert done.rows[1].contrast is None and done.rows[2].contrast is not None
    assert compare.rebuilt(tmp_path / "out") == done
    assert any(text.startswith("head_rate=1e+30: failed: ") for text in messages)
    messages.clear()
    again = compare.compare(fg.scan(discs), found, tmp_path / "out", watcher=watcher)
    assert again == done
    assert messages == []
    shutil.rmtree(tmp_path / "out" / found[1].folder)
    compare.compare(fg.scan(discs), found, tmp_path / "out", watcher=watcher)
    assert any("failed" in text for text in messages)


def test_a_base_that_fails_leaves_the_others_without_contrast(discs: Path, tmp_path: Path) -> None:
    found = trials(BASE.replace(head_rate=1e30), {"head_rate": [1e-3, 1e-2]})
    done = compare.compare(fg.scan(discs), found, tmp_path / "out")
    assert [row.status for row in done.rows] == ["failed", "complete", "complete"]
    assert [row.contrast for row in done.rows] == [None] * 3
    assert done.winner is not None and done.winner.trials == 2
    assert "is not complete" in comparison.lead(done)


def test_seeds_vary_and_folds_do_not(discs: Path, tmp_path: Path) -> None:
    one = BASE.replace(epochs=1, warmup=0.0)
    found = trials(one, {"seed": [0, 1]})
    compare.compare(fg.scan(discs), found, tmp_path / "out")
    first, other = the_runs(tmp_path / "out", found)
    assert first.catalog.photos == other.catalog.photos
    assert results(first) != results(other)


def test_what_is_set_aside_is_the_same_for_all(discs: Path, tmp_path: Path) -> None:
    one = BASE.replace(epochs=1, warmup=0.0, holdout=0.25)
    found = trials(one, {"seed": [1]})
    compare.compare(fg.scan(discs), found, tmp_path / "out")
    first, other = the_runs(tmp_path / "out", found)
    assert len(first.outside) == 6
    assert first.outside.tolist() == other.outside.tolist()


def test_auto_and_what_it_stands_for_are_one_trial(discs: Path, tmp_path: Path) -> None:
    one = BASE.replace(epochs=1, warmup=0.0, interpolation="auto")
    vary = {"interpolation": ["bilinear"], "backbone": ["test_resnet.r160_in1k"]}
    found = trials(one, vary, one_at_a_time=True)
    assert len(found) == 3
    messages, watcher = told()
    done = compare.compare(fg.scan(discs), found, tmp_path / "out", watcher=watcher)
    assert [row.name for row in done.rows] == ["base"]
    twins = ["interpolation=bilinear", "backbone=test_resnet.r160_in1k"]
    expected = [
        f"{name} would train the same networks as base, and is that trial" for name in twins
    ]
    assert [text for text in messages if "same networks" in text] == expected
    assert done.notes == tuple(f"{text}." for text in expected)
    assert compare.rebuilt(tmp_path / "out") == done
    assert done.winner is None


def test_photos_of_one_group_count_as_one(
    draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    """Each disc is there twice: the copies join a group by themselves."""
    photos = draw_collection(tmp_path / "photos")
    for path in list(photos.rglob("*.jpg")):
        shutil.copy(path, path.with_stem(f"{path.stem}-copy"))
    found = trials(BASE.replace(epochs=1, warmup=0.0), {"head": ["se"]})
    done = compare.compare(fg.scan(photos), found, tmp_path / "out")
    assert (done.photos, done.groups) == (48, 24)


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def copied(compared: tuple[Comparison, Path], tmp_path: Path) -> Path:
    shutil.copytree(compared[1], tmp_path / "copied")
    return tmp_path / "copied"


def test_a_folder_with_something_else_is_left_alone(discs: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds no comparison: notes\.txt"):
        compare.compare(fg.scan(discs), TRIED, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_other_folds_are_refused(copied: Path, discs: Path) -> None:
    other = trials(BASE.replace(folds=3, seed=4), VARY, one_at_a_time=True)
    with pytest.raises(UsageError, match=r"folds: 2 there, 3 now\n  seed: 0 there, 4 now"):
        compare.compare(fg.scan(discs), other, copied)


def test_another_recipe_under_the_same_name_is_refused(copied: Path, discs: Path) -> None:
    other = trials(BASE.replace(epochs=3), VARY, one_at_a_time=True)
    with pytest.raises(UsageError, match="base` holds a run of another recipe: epochs: 2 there"):
        compare.compare(fg.scan(discs), other, copied)


def test_a_run_of_other_folds_is_refused(copied: Path, discs: Path) -> None:
    shutil.rmtree(copied / "head-se")
    small_fit(discs, copied / "head-se", **TRIED[2].recipe.model_dump() | {"seed": 9})
    recipe_file = copied / "head-se" / "recipe.toml"
    recipe_file.write_text(recipe_file.read_text().replace("seed = 9", "seed = 0"))
    files.write_manifest(copied / "head-se", runs.SETUP_FILES, name=runs.SETUP)
    with pytest.raises(UsageError, match="other photos or folds"):
        compare.compare(fg.scan(discs), TRIED, copied)


def test_photos_that_changed_are_refused_where_there_is_something_to_train(
    copied: Path, draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    photos = draw_collection(tmp_path / "photos")
    (photos / "amber" / "000.jpg").write_bytes((photos / "blue" / "000.jpg").read_bytes())
    catalog = fg.scan(photos)
    assert len(compare.compare(catalog, TRIED, copied).rows) == 3
    with pytest.raises(UsageError, match=r"1 photos changed .* `amber/000\.jpg`"):
        compare.compare(catalog, trials(BASE, VARY | {"epochs": [1]}), copied)


def test_a_comparison_in_use_is_left_alone(copied: Path, discs: Path) -> None:
    with files.lock(copied), pytest.raises(ResourceError, match="in use"):
        compare.compare(fg.scan(discs), TRIED, copied)


def test_a_record_of_failure_that_is_damaged_still_counts(copied: Path) -> None:
    (copied / "head-se" / files.MANIFEST).unlink()
    (copied / "head-se" / compare.FAILED).write_text("{")
    found = compare.collect(copied, TRIED, compare_catalog(copied))
    assert found.rows[2].status == "failed"
    assert "cannot be read" in found.rows[2].note


def test_errors_that_the_user_must_mend_end_the_comparison(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(compare.crossval, "fit", full)
    with pytest.raises(ResourceError, match="full"):
        compare.compare(fg.scan(discs), TRIED, tmp_path / "out")


# --- rebuilt from the folder ----------------------------------------------------------------------


def test_a_comparison_is_rebuilt_from_its_folder_which_stays_as_it_is(
    compared: tuple[Comparison, Path],
) -> None:
    found, out = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert compare.rebuilt(out) == found
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_a_killed_trial_is_shown_as_far_as_it_got(copied: Path) -> None:
    (copied / "head-se" / files.MANIFEST).unlink()
    shutil.rmtree(copied / "head-se" / "folds" / "1")
    shutil.rmtree(copied / "mix-cutmix")
    found = compare.rebuilt(copied)
    assert [row.status for row in found.rows] == ["complete", "not begun", "unfinished"]
    assert [row.folds for row in found.rows] == [2, 0, 1]


def test_changes_keep_their_types_and_presets_their_names(copied: Path) -> None:
    more = [*trials(BASE, {"crop_scale": [(0.5, 1.0)]}), *compare.reference({"folds": 2})[1:]]
    expected = compare.collect(copied, more, compare_catalog(copied))
    compare.write(expected, copied, BASE)
    found = compare.rebuilt(copied)
    assert [row.name for row in found.rows] == [row.name for row in expected.rows]
    assert found.rows[1] == expected.rows[1]
    assert found.rows[1].changes == {"crop_scale": (0.5, 1.0)}


def test_a_comparison_none_of_whose_trials_has_begun_says_so(copied: Path) -> None:
    (copied / compare.RECORD).unlink()
    with pytest.raises(ResourceError, match=r"no trial of .* has begun yet") as caught:
        compare.rebuilt(copied)
    assert caught.value.hint == "the same compare command goes on with it"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"base": {"owl": 1}}', '{"base": {}, "rows": [3]}']
)
def test_a_record_that_cannot_be_read_is_told(text: str, copied: Path) -> None:
    (copied / compare.RECORD).write_text(text)
    with pytest.raises(ResourceError, match=r"compare\.json` cannot be read"):
        compare.rebuilt(copied)


def test_only_a_comparison_can_be_rebuilt_and_only_an_undamaged_one(
    copied: Path, trained: fg.Run
) -> None:
    with pytest.raises(UsageError, match="holds no comparison"):
        compare.rebuilt(trained.folder)
    with (copied / "catalog.csv").open("a") as file:
        file.write("more")
    with pytest.raises(ResourceError, match=r"catalog\.csv"):
        compare.rebuilt(copied)


def test_figures_are_saved_with_the_table_and_overwrite_nothing(
    compared: tuple[Comparison, Path], tmp_path: Path
) -> None:
    found, out = compared
    places = compare.save_figures(found, tmp_path / "figures")
    assert [place.name for place in places] == [
        *("compare.png", "compare.svg", "differences.png", "differences.svg", "compare.csv")
    ]
    assert places[0].read_bytes() == (out / "compare.png").read_bytes()
    assert places[4].read_bytes() == (out / "compare.csv").read_bytes()
    text = " ".join(ElementTree.parse(places[3]).getroot().itertext())
    assert "head=se" in text and "difference, percentage points" in text
    with pytest.raises(UsageError, match="is there already"):
        compare.save_figures(found, tmp_path / "figures")


def test_before_any_epoch_the_table_is_the_only_figure(tmp_path: Path) -> None:
    waiting = a_comparison(row("base", None, status="not begun", folds=0))
    (place,) = compare.save_figures(waiting, tmp_path)
    assert place.read_text("utf-8").splitlines()[1].startswith("base,,not begun,0,")


# --- the page -------------------------------------------------------------------------------------


def contrast(difference: float, p: float = 0.5) -> paired.Contrast:
    verdict: paired.Verdict = "no difference shown"
    if p <= paired.LEVEL:
        verdict = "better" if difference > 0 else "worse"
    return paired.Contrast(difference, difference - 0.01, difference + 0.01, p, p, verdict)


def row(name: str, accuracy: float | None = 0.9, **more: Any) -> Row:
    interval = None if accuracy is None else (accuracy - 0.02, accuracy + 0.02)
    settings = {"changes": {}, "folder": name, "status": "complete", "folds": 3} | more
    return Row(name, accuracy=accuracy, interval=interval, log_loss=0.3, seconds=60.0, **settings)


def a_comparison(*rows: Row, **more: Any) -> Comparison:
    curves = {
        each.name: tuple(
            Mean(epoch, "merged", "test_accuracy", 0.8 + 0.01 * epoch, 0.7, 0.95, 3)
            for epoch in (1, 2, 3)
        )
        for each in rows
        if each.accuracy is not None
    }
    return Comparison(rows, **{"photos": 500, "groups": 500, "folds": 3, "curves": curves} | more)


def body(found: Comparison) -> str:
    return str(comparison.section(found).body)


def test_the_lead_says_what_is_shown_and_what_is_not() -> None:
    found = a_comparison(
        row("base"),
        row("cutmix", contrast=contrast(0.021, 0.001)),
        row("mixup", contrast=contrast(0.004)),
        row("se", contrast=contrast(-0.03, 0.01)),
    )
    assert comparison.lead(found).replace("\N{NO-BREAK SPACE}", " ") == (
        "The base names 90.0 % of photos rightly."
        " Shown to be better: cutmix (+2.1 points). Shown to be worse: se (−3.0 points)."
        " No difference is shown for mixup."
    )
    alike = a_comparison(row("base"), row("a", contrast=contrast(0.1)))
    assert comparison.lead(alike).endswith("No difference to it is shown for the other trial.")
    assert comparison.lead(a_comparison(row("base"))).endswith("No other trial is complete yet.")


def test_the_winner_is_warned_of() -> None:
    found = a_comparison(
        row("base"), row("b", contrast=contrast(0.01)), winner=Winner("b", 0.91, 0.9, 2)
    )
    text = body(found).replace("\N{NO-BREAK SPACE}", " ")
    assert "The trial b is right most often of 2." in text
    assert "91.0 % is optimistic" in text and "is worth 90.0 %" in text
    assert "optimistic" not in body(a_comparison(row("base")))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.021, "+2.1"), (-0.003, "−0.3"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0004, "0.0")],
)
def test_differences_have_a_sign_unless_they_are_none(value: float, text: str) -> None:
    assert comparison.signed(value) == text


def test_p_is_never_shown_as_0() -> None:
    shown = [comparison.shown_p(p) for p in (0.0, 1e-9, 0.00123, 0.049, 0.3, 1.0)]
    assert shown == ["< 0.001", "< 0.001", "0.001", "0.049", "0.30", "1.00"]


HOSTILE = "<script>hurt()</script>\"'><img src=x>\n</script><!-- 🐞" + "x" * 200


def test_hostile_names_do_no_harm() -> None:
    found = a_comparison(
        row("base"),
        row(f"weights={HOSTILE}", contrast=contrast(0.1, 0.01), changes={"weights": HOSTILE}),
        row(f"{HOSTILE}2", status="failed", note=f"failed: {HOSTILE}"),
        notes=(HOSTILE,),
        winner=Winner(HOSTILE, 0.9, 0.9, 3),
    )
    text = body(found)
    assert "<script>hurt" not in text and "<img src=x" not in text and "<!--" not in text
    assert "&lt;script&gt;hurt" in text


def test_charts_name_trials_shortly_and_apart() -> None:
    rows = [row(f"{'x' * 300}{n}") for n in range(3)] + [row("a\nb"), row("c", folds=1)]
    found = comparison.labels(rows, 3)
    assert len(set(found.values())) == 5
    assert all(len(label) < 60 and "\n" not in label for label in found.values())
    assert found["c"] == "c (1 of 3 folds)"


def test_no_two_of_many_trials_look_alike() -> None:
    rows = [row("base"), *(row(f"t{n}") for n in range(42))]
    layer = comparison.epochs_chart(a_comparison(*rows)).to_dict()["layer"][1]
    colors, shapes = (layer["encoding"][key]["scale"]["range"] for key in ("color", "shape"))
    assert len(set(zip(colors, shapes, strict=True))) == 43


def test_the_luck_of_seeds_is_told_where_it_is_known() -> None:
    seeds = [row(f"seed={n}", 0.9 + n / 100, changes={"seed": n}) for n in (1, 2)]
    other = row("head=se, seed=1", 0.1, changes={"head": "se", "seed": 1})
    text = comparison.luck(a_comparison(row("base"), *seeds, other))
    assert "With 3 seeds the base is right for 90.0 % to 92.0 %" in text.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert comparison.luck(a_comparison(row("base"), other)) == ""
    assert comparison.luck(a_comparison(row("base", status="failed"), *seeds)) == ""


def test_whatever_is_missing_is_told() -> None:
    waiting = a_comparison(
        row("base", None, status="not begun", folds=0),
        row("b", None, status="not begun", folds=0, note="left out: no time"),
    )
    text = body(waiting)
    assert "is not complete yet" in text
    assert "No epoch of any trial is finished yet" in text
    assert "must be complete before differences can be told" in text
    assert "left out: no time" in text
    assert "None" not in text and "nan" not in text


def test_without_curves_no_figure_is_written(tmp_path: Path) -> None:
    comparison.build(a_comparison(row("base", None, status="not begun")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]


def test_the_axis_of_differences_has_signs_but_for_zero() -> None:
    found = a_comparison(row("base"), row("b", contrast=contrast(0.01)))
    chart = comparison.charts(found)[comparison.DIFFERENCES]
    svg = comparison.figures.drawn(chart)["svg"].decode()
    assert ">+1<" in svg and ">0<" in svg and ">+0<" not in svg


def test_a_page_is_written_elsewhere(tmp_path: Path) -> None:
    found = a_comparison(row("base"))
    place = comparison.write_page(found, tmp_path / "owls", tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert "<title>Comparison of recipes: owls</title>" in place.read_text("utf-8")


def test_few_groups_and_chosen_epochs_are_warned_of() -> None:
    rows = (row("base"), row("b", contrast=contrast(0.1)))
    text = body(a_comparison(*rows, groups=12, stop="fold"))
    assert "only 12 groups of photos" in text and "in 12 groups" in text
    assert "Epochs were chosen by these very test photos" in text
    plain = body(a_comparison(*rows))
    assert "only" not in plain and "chosen by these very" not in plain


def test_unequal_lengths_are_told() -> None:
    found = a_comparison(row("base"), row("b"))
    assert "same number of epochs" not in body(found)
    shorter = {**found.curves, "b": found.curves["b"][:2]}
    assert "Not all trials have the same number of epochs" in body(replace(found, curves=shorter))
