import csv
import importlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import Killed, killer, results, small_fit, small_recipe
from forks import needs_fork, on_processes
from PIL import Image

import fieldguide as fg
from fieldguide.analysis import metrics
from fieldguide.errors import DataError, FieldguideError, ResourceError, Stopped, UsageError
from fieldguide.fitting.fit import fit
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Watcher
from fieldguide.network.network import Network
from fieldguide.report.build import build
from fieldguide.runs import run as runs
from fieldguide.runs import tracking
from fieldguide.storage import files
from fieldguide.train import state

EVERY_STEP = {"checkpoint_minutes": 1e-9}


@pytest.fixture(scope="module")
def undisturbed(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    return small_fit(discs, tmp_path_factory.mktemp("runs") / "undisturbed")


def test_oof_has_one_row_a_training_photo_in_catalog_order(undisturbed: fg.Run) -> None:
    with (undisturbed.folder / "oof.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    photos = undisturbed.catalog.photos
    assert [row["path"] for row in rows] == [photo.path for photo in photos]
    assert [row["label"] for row in rows] == [photo.label for photo in photos]
    columns = [f"p:{name}" for name in undisturbed.classes]
    assert list(rows[0]) == ["path", "label", "fold", "predicted", "confidence", *columns]
    for number, row in enumerate(rows):
        probabilities = np.array([float(row[column]) for column in columns])
        assert probabilities.sum() == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == undisturbed.classes[probabilities.argmax()]
        assert float(row["confidence"]) == probabilities.max()
        assert number in undisturbed.folds[int(row["fold"])].test


def test_summary_agrees_with_the_table(undisturbed: fg.Run) -> None:
    summary = json.loads((undisturbed.folder / "summary.json").read_bytes())
    with (undisturbed.folder / "oof.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = [row["label"] == row["predicted"] for row in rows]
    assert summary["accuracy"] == pytest.approx(np.mean(right))
    assert summary["accuracy_interval"][0] <= summary["accuracy"] <= summary["accuracy_interval"][1]
    for fold, accuracy in enumerate(summary["accuracy_per_fold"]):
        own = [r for r, row in zip(right, rows, strict=True) if int(row["fold"]) == fold]
        assert accuracy == pytest.approx(np.mean(own))
    assert {k: summary[k] for k in ("format", "complete", "classes", "photos", "folds")} == {
        "format": 1,
        "complete": True,
        "classes": 3,
        "photos": 24,
        "folds": 2,
    }
    assert summary["selected_accuracy"] is None
    assert summary["seconds"] > 0
    assert {"balanced_accuracy", "macro_f1", "log_loss", "calibration_error"} < set(summary)


def test_history_has_every_replica_and_the_merged_model(undisturbed: fg.Run) -> None:
    with (undisturbed.fold_folder(1) / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    models = [(row["epoch"], row["model"]) for row in rows]
    names = ("replica-1", "replica-2", "merged")
    assert models == [(epoch, model) for epoch in "12" for model in names]
    assert all(float(row["test_loss"]) > 0 for row in rows)
    assert all(0 <= float(row["ratio_mean"]) <= 1 for row in rows if row["model"] == "merged")


def test_merges_tell_of_every_tensor_of_the_backbone(undisturbed: fg.Run) -> None:
    with (undisturbed.fold_folder(0) / "merges.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tensors = {row["tensor"] for row in rows}
    start = undisturbed.weights()
    running = ("running_mean", "running_var", "num_batches_tracked")
    assert tensors == {n for n in start if n.startswith("backbone.") and not n.endswith(running)}
    assert len(rows) == 2 * len(tensors)
    assert all(float(row["distance"]) > 0 for row in rows)


def test_a_fold_alone_equals_that_fold_in_sequence(
    undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    alone = small_fit(discs, tmp_path / "run", fold=1)
    assert alone.done == [1]
    assert not alone.complete
    assert alone.scores.photos == len(alone.folds[1].test)
    expected = results(undisturbed)
    assert results(alone) == {name: expected[name] for name in results(alone)}
    whole = small_fit(discs, tmp_path / "run")
    assert results(whole) == expected


def test_the_way_from_a_fit_to_the_network_is_short(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In frames of our own, both ends included: for whoever reads how a fit comes about."""
    ways: list[list[tuple[str, str]]] = []
    source = str(Path(fg.__file__).parent)
    forward = Network.forward

    def followed(self: Network, images: torch.Tensor) -> torch.Tensor:
        frames = [(f.filename.removeprefix(source), f.name) for f in traceback.extract_stack()]
        if self.training:
            ways.append([frame for frame in frames if Path(source + frame[0]).is_file()])
        return forward(self, images)

    monkeypatch.setattr(Network, "forward", followed)
    small_fit(discs, tmp_path / "run", fold=0, workers=1)
    way = [*ways[-1], ("/network/network.py", "forward")]
    assert way[0] == ("/fitting/fit.py", "fit")
    assert len(way) <= 7, way
    assert len({file for file, _ in way}) <= 5, way


@pytest.mark.parametrize("step", [0, 4, 6, 13, 23])
def test_killed_in_an_epoch_and_resumed_ends_the_same(
    step: int, undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(step)), **EVERY_STEP)
    assert results(small_fit(discs, tmp_path / "run")) == results(undisturbed)


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("fieldguide.merge.moves", 0),  # in a merge
        ("fieldguide.merge.moves", 3),
        ("fieldguide.train.merging.recalibrate_network", 1),
        ("fieldguide.train.checkpoints.save_state", 0),  # before a checkpoint
        ("fieldguide.train.checkpoints.save_state", 1),
        ("fieldguide.runs.run.save_fold", 0),  # between folds
        ("fieldguide.runs.run.save_fold", 1),
        ("fieldguide.storage.files.write_manifest", 1),  # after a fold's files, before they count
        ("fieldguide.storage.files.write_manifest", 3),  # at the end of the run
    ],
)
def test_killed_between_epochs_and_resumed_ends_the_same(
    place: str,
    call: int,
    undisturbed: fg.Run,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, _, name = place.rpartition(".")
    original = getattr(importlib.import_module(module), name)
    kill = killer(call)

    def wrapped(*args: object, **options: object) -> object:
        kill()
        return original(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place, wrapped)
        small_fit(discs, tmp_path / "run")
    assert results(small_fit(discs, tmp_path / "run")) == results(undisturbed)


def in_a_fork(work: Callable[[], object]) -> int:
    """Runs `work` in a child without new imports; returns its wait status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a threaded process
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(99)
    return os.waitpid(child, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("syscall", ["fsync", "replace"])
@pytest.mark.parametrize("call", [2, 9, 25])
def test_sigkill_around_a_system_call_of_a_write_ends_the_same(
    syscall: str, call: int, undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    """A real SIGKILL right before and right after the call, in setup, checkpoints and results."""
    owner = os if syscall == "fsync" else Path
    original = getattr(owner, syscall)
    for when in ("before", "after"):
        count = iter(range(call))

        def wrapped(*args: object, when: str = when, count: object = count) -> object:
            last = next(count, None) is None  # type: ignore[call-overload]
            if last and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        def work(wrapped: object = wrapped, when: str = when) -> None:
            setattr(owner, syscall, wrapped)
            small_fit(discs, tmp_path / when, **EVERY_STEP)

        status = in_a_fork(work)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert results(small_fit(discs, tmp_path / when)) == results(undisturbed)
        assert not list((tmp_path / when).rglob("*.tmp"))


def test_stopping_saves_the_step_and_resumes(
    undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    steps: list[int] = []

    def stop_at_the_fourth() -> None:
        if len(steps) == 4:
            raise Stopped(signal.SIGTERM)

    watcher = Watcher(on_step=lambda: steps.append(1), check_stop=stop_at_the_fourth)
    with pytest.raises(Stopped) as stopped:
        small_fit(discs, tmp_path / "run", watcher=watcher)
    assert stopped.value.exit_code == 143
    more, before = list[int](), list[int]()
    watcher = Watcher(on_step=lambda: more.append(1), on_resume=before.append)
    run = small_fit(discs, tmp_path / "run", watcher=watcher)
    assert before == [4, 0]  # folds 0 and 1
    assert len(steps) + len(more) == 2 * 2 * 2 * 3  # folds, replicas, epochs, steps: none twice
    assert results(run) == results(undisturbed)


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "no digest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: str, undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(8)), **EVERY_STEP)
    newest = max((tmp_path / "run" / "folds" / "0" / "checkpoint").glob("*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    if damage == "no digest":
        newest.with_suffix(".sha256").unlink()
    else:
        broken = {"truncated": content[: len(content) // 2], "bit": content, "empty": b""}
        newest.write_bytes(broken[damage])
    notices: list[str] = []
    run = small_fit(discs, tmp_path / "run", watcher=Watcher(notice=notices.append))
    assert any(newest.name in notice and "SHA-256" in notice for notice in notices)
    assert results(run) == results(undisturbed)


def test_stopping_works_where_an_epoch_is_one_step(discs: Path, tmp_path: Path) -> None:
    rows: list[object] = []

    def stop_in_the_second_epoch() -> None:
        if len(rows) > 3:
            raise Stopped(signal.SIGINT)

    watcher = Watcher(on_row=rows.append, check_stop=stop_in_the_second_epoch)
    with pytest.raises(Stopped):
        small_fit(discs, tmp_path / "run", batch_size=64, epochs=9, watcher=watcher)
    assert len(rows) == 6  # two epochs of two replicas and their merges
    small_fit(discs, tmp_path / "run", batch_size=64, epochs=9)
    whole = small_fit(discs, tmp_path / "whole", batch_size=64, epochs=9)
    assert results(fg.Run(tmp_path / "run")) == results(whole)


@pytest.mark.parametrize("step", [1, 4, 8, 11])
def test_a_fit_with_channels_last_resumes_to_the_bit(
    discs: Path, tmp_path: Path, step: int
) -> None:
    """Checkpoints hold no layout, and sums run in the order of memory."""
    settings = EVERY_STEP | {
        "layout": "channels_last",
        "merge": "model_stock",
        "anchor": "last_merge",
    }
    whole = small_fit(discs, tmp_path / "whole", fold=0, **settings)
    with pytest.raises(Killed):
        small_fit(
            discs, tmp_path / "run", fold=0, watcher=Watcher(on_step=killer(step)), **settings
        )
    again = small_fit(discs, tmp_path / "run", fold=0, **settings)
    assert results(again) == results(whole)
    plain = small_fit(discs, tmp_path / "plain", fold=0, **settings | {"layout": "contiguous"})
    for name, array in whole.weights(0).items():
        np.testing.assert_allclose(array, plain.weights(0)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("gone", "error", "message"),
    [
        ("amber", DataError, r"(could not|cannot) be read any more"),
        (".", ResourceError, r"the photos' folder .* is gone"),  # as a disk that is unmounted
    ],
)
def test_photos_that_come_back_let_the_fit_go_on(
    gone: str,
    error: type[FieldguideError],
    message: str,
    undisturbed: fg.Run,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "WAITS", (0.0,))
    photos = shutil.copytree(discs, tmp_path / "photos")
    away, steps = tmp_path / "away", list[int]()

    def vanish() -> None:
        steps.append(1)
        if len(steps) == 8:
            (photos / gone).rename(away)

    settings = EVERY_STEP | {"cache": "none"}
    with pytest.raises(error, match=message) as caught:
        small_fit(photos, tmp_path / "run", watcher=Watcher(on_step=vanish), **settings)
    assert "back; the same command then resumes" in caught.value.hint
    away.rename(photos / gone)
    assert results(small_fit(photos, tmp_path / "run")) == results(undisturbed)


def test_a_run_folder_that_is_away_is_not_begun_anew(
    undisturbed: fg.Run, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WAITS", (0.0,))
    place, away, steps = tmp_path / "run", tmp_path / "away", list[int]()

    def vanish() -> None:
        steps.append(1)
        if len(steps) == 8:
            place.rename(away)

    with pytest.raises(ResourceError, match=r"`.*` is gone") as caught:
        small_fit(discs, place, watcher=Watcher(on_step=vanish), **EVERY_STEP)
    assert "resumes from the last checkpoint" in caught.value.hint
    assert not place.exists()
    away.rename(place)
    assert results(small_fit(discs, place)) == results(undisturbed)


def test_weights_may_move_or_vanish_once_a_run_is_begun(discs: Path, tmp_path: Path) -> None:
    first = small_fit(discs, tmp_path / "first", fold=0, epochs=1, warmup=0.0)
    place = tmp_path / "w.safetensors"
    shutil.copy(first.fold_folder(0) / "weights.safetensors", place)
    short: dict[str, Any] = {"epochs": 1, "warmup": 0.0}
    small_fit(discs, tmp_path / "run", fold=0, weights=str(place), **short)
    moved = place.rename(tmp_path / "moved.safetensors")
    run = small_fit(discs, tmp_path / "run", weights=str(moved), **short)
    assert run.complete
    shutil.copy(tmp_path / "first" / "start.safetensors", moved)
    with pytest.raises(UsageError, match="weights"):
        small_fit(discs, tmp_path / "run", weights=f"{moved}:backbone", **short)
    with pytest.raises(UsageError, match="weights"):
        small_fit(discs, tmp_path / "run", weights=str(moved), **short)
    moved.unlink()
    assert small_fit(discs, tmp_path / "run", weights=str(moved), **short).complete


@pytest.mark.skipif(sys.platform != "linux", reason="names are text on other systems")
def test_a_name_that_is_not_utf8_is_fitted_resumed_and_readable(
    discs: Path, tmp_path: Path
) -> None:
    photos, short = shutil.copytree(discs, tmp_path / "photos"), {"epochs": 1, "warmup": 0.0}
    first = next(path for path in sorted(photos.rglob("*.jpg")))
    name = first.relative_to(photos).with_name(os.fsdecode(b"caf\xe9.jpg")).as_posix()
    first.rename(photos / name)
    small_fit(photos, tmp_path / "run", fold=0, **short)
    run = small_fit(photos, tmp_path / "run", **short)
    assert run.complete and name in run.catalog.table.column("path")
    for table in ("catalog.csv", "given.csv", "oof.csv"):
        assert r"caf\xe9.jpg" in (run.folder / table).read_text("utf-8")
    assert r"caf\xe9.jpg" in build(run).read_text("utf-8")


def test_threads_are_those_the_run_was_begun_with(discs: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run = small_fit(discs, tmp_path / "run", fold=0)
    assert run.environment["threads"] == 1
    used: list[int] = []
    watcher = Watcher(on_step=lambda: used.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    small_fit(discs, tmp_path / "run", watcher=watcher)
    torch.set_num_threads(before)
    assert set(used) == {1}


def test_settings_without_effect_are_told(discs: Path, tmp_path: Path) -> None:
    notices: list[str] = []
    watcher = Watcher(notice=notices.append)
    idle: dict[str, Any] = {"mix": "none", "mix_alpha": 3.0, "patience": 7}
    small_fit(discs, tmp_path / "run", fold=0, watcher=watcher, **idle)
    assert "`mix_alpha` = 3.0 has no effect with mix = 'none'" in notices
    assert "`patience` = 7 has no effect with stop = 'none'" in notices


def test_two_checkpoints_are_kept_and_none_after_the_fold(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(11)), **EVERY_STEP)
    folder = tmp_path / "run" / "folds" / "0" / "checkpoint"
    assert len(list(folder.glob("*.safetensors"))) == 2
    small_fit(discs, tmp_path / "run")
    assert not folder.exists()


def test_disk_full_in_a_checkpoint_keeps_the_old_one(
    undisturbed: fg.Run, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if "checkpoint" in path.parts and path.stem == "000003":
            with files.replacing(path, size=len(data)) as file:
                file.write(data[:1000])
                raise OSError(28, "No space left on device")
        original(path, data)

    original = files.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", full)
        with pytest.raises(ResourceError, match="000003") as error:
            small_fit(discs, tmp_path / "run", **EVERY_STEP)
    assert error.value.exit_code == 4
    folder = tmp_path / "run" / "folds" / "0" / "checkpoint"
    assert [path.stem for path in folder.glob("*.safetensors")] == ["000002"]
    assert state.load_state(folder, lambda message: None) is not None
    assert results(small_fit(discs, tmp_path / "run")) == results(undisturbed)


def test_a_finished_run_is_left_alone(undisturbed: fg.Run, discs: Path) -> None:
    def stamps() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for path in undisturbed.folder.rglob("*")
            if path.is_file() and path.name != files.LOCK
        }

    before, notices = stamps(), list[str]()
    again = small_fit(discs, undisturbed.folder, watcher=Watcher(notice=notices.append))
    assert again.complete
    assert stamps() == before
    assert any("complete" in notice for notice in notices)


def test_another_recipe_is_refused_with_the_differences(undisturbed: fg.Run, discs: Path) -> None:
    with pytest.raises(UsageError) as error:
        small_fit(discs, undisturbed.folder, epochs=3, head="se")
    assert error.value.exit_code == 2
    assert "epochs: 2 there, 3 now" in str(error.value)
    assert "head: 'linear' there, 'se' now" in str(error.value)


def test_what_changes_no_result_may_differ_on_resuming(
    undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(7)))
    assert results(small_fit(discs, tmp_path / "run", workers=1)) == results(undisturbed)


def test_a_moved_run_resumes(undisturbed: fg.Run, discs: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(7)))
    photos = shutil.copytree(discs, tmp_path / "photos")
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert results(small_fit(photos, moved)) == results(undisturbed)


def refused(photos: Path, run: Path) -> str:
    """What a finished run says of other photos; it stays as it is."""
    before = results(fg.Run(run))
    with pytest.raises(UsageError) as error:
        small_fit(photos, run)
    assert results(fg.Run(run)) == before
    assert "--out" in error.value.hint
    return str(error.value)


def test_a_finished_run_says_how_its_photos_differ(
    undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed.folder, tmp_path / "run")
    photos = shutil.copytree(discs, tmp_path / "photos")
    assert small_fit(photos, run).complete
    first, second = photos / "amber" / "000.jpg", photos / "amber" / "001.jpg"
    content = first.read_bytes()
    first.unlink()
    assert "1 photo gone, such as `amber/000.jpg`" in refused(photos, run)
    (photos / "blue" / "100.jpg").write_bytes(content)
    said = refused(photos, run)
    assert "1 photo gone, such as" in said
    assert "1 photo added, such as `blue/100.jpg`" in said
    (photos / "blue" / "100.jpg").rename(first)
    assert small_fit(photos, run).complete
    first.write_bytes(second.read_bytes())
    assert "1 photo of other content, such as `amber/000.jpg`" in refused(photos, run)
    first.write_bytes(content)
    (photos / "amber").rename(photos / "yellow")
    said = refused(photos, run)
    amber = len([*(photos / "yellow").iterdir()])
    assert f"{amber} photos gone" in said
    assert f"{amber} photos added" in said


def test_a_finished_run_says_how_its_table_differs(discs: Path, tmp_path: Path) -> None:
    def table(**changed: dict[int, str]) -> Path:
        """The photos with groups, splits and folds, some cells of which are changed."""
        paths = sorted(path.relative_to(discs).as_posix() for path in discs.rglob("*.jpg"))
        cells = {
            "path": paths,
            "label": [path.split("/")[0] for path in paths],
            "group": [f"g{row // 2}" for row in range(len(paths))],
            "split": ["train"] * len(paths),
            "fold": [str(row // 2 % 2) for row in range(len(paths))],
        }
        for name, new in changed.items():
            for row, value in new.items():
                cells[name][row] = value
        path = tmp_path / "photos.csv"
        files.write_csv(path, [*cells], [*zip(*cells.values(), strict=True)])
        return path

    def fit_table(place: Path) -> fg.Run:
        catalog = fg.read_table(place, root=discs)
        return fit(catalog, small_recipe(epochs=1, warmup=0.0), tmp_path / "run")

    fit_table(table())
    assert fit_table(table()).complete
    for changed, said in (
        (
            {"group": {0: "g9", 1: "g9"}},
            "2 photos of another group, such as `amber/000.jpg`: `g0` ",
        ),
        (
            {"label": {0: "blue"}},
            "1 photo of another label, such as `amber/000.jpg`: `amber` there",
        ),
        (
            {"fold": {0: "1", 1: "1"}},
            "2 photos of another fold, such as `amber/000.jpg`: `0` there",
        ),
        ({"split": {0: "val"}, "fold": {0: ""}}, "1 photo of another split, such as"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            fit_table(table(**changed))


@pytest.mark.parametrize("lost", ["folder", "weights", "table", "other"])
def test_what_a_finished_run_has_lost_is_made_again(
    undisturbed: fg.Run, discs: Path, tmp_path: Path, lost: str
) -> None:
    run = fg.Run(shutil.copytree(undisturbed.folder, tmp_path / "run"))
    fold, whole = run.fold_folder(0), results(run)
    if lost == "folder":
        shutil.rmtree(fold)
    elif lost == "weights":
        place = fold / "weights.safetensors"
        place.write_bytes(place.read_bytes()[:-1] + b"x")
    elif lost == "table":
        (run.folder / "oof.csv").unlink()
    else:  # a fold of its own manifest, but not the run's
        shutil.rmtree(fold)
        shutil.copytree(run.fold_folder(1), fold)
    if lost in {"folder", "other"}:
        assert (run.done, run.complete) == ([1], False)
    notices = list[str]()
    again = small_fit(discs, run.folder, watcher=Watcher(notice=notices.append))
    assert again.complete
    assert results(again) == whole
    assert any("is damaged and made again" in notice for notice in notices)
    files.verify(run.folder)


def test_free_folds_are_trained_before_one_that_another_process_holds(
    discs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Killed):
        small_fit(discs, run, watcher=Watcher(on_step=killer(1)))
    with files.lock(run / "folds" / "0"):
        assert files.is_held(run / "folds" / "0")
        with pytest.raises(ResourceError, match=r"folds.0 is in use") as error:
            small_fit(discs, run)
    assert "the same command then trains what is left" in error.value.hint
    assert fg.Run(run).done == [1]
    assert not files.is_held(run / "folds" / "0")
    assert small_fit(discs, run).complete


def test_one_tracker_serves_free_folds_and_held_ones(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []

    class Noted(tracking.Tracker):
        def close(self) -> None:
            closed.append(len(self.known))

    monkeypatch.setattr(tracking, "start", lambda _, folder, notice: Noted(folder / "e", notice))
    monkeypatch.setattr(files, "is_held", lambda place: place.name == "0")  # and is free soon
    run = small_fit(discs, tmp_path / "run", epochs=1, warmup=0.0)
    assert run.complete
    assert closed == [len(run.table(0, "history.csv")) + len(run.table(1, "history.csv"))]


def test_a_damaged_run_of_other_photos_is_left_as_it_is(
    undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed.folder, tmp_path / "run")
    photos = shutil.copytree(discs, tmp_path / "photos")
    (photos / "amber" / "000.jpg").unlink()
    (run / "oof.csv").unlink()
    with pytest.raises(UsageError, match="1 photo gone"):
        small_fit(photos, run)
    assert (run / "manifest.json").is_file()
    assert small_fit(discs, run).complete and (run / "oof.csv").is_file()


def test_scores_are_of_the_folds_that_were_done_when_they_were_read(
    undisturbed: fg.Run, tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed.folder, tmp_path / "run")
    (run / "manifest.json").unlink()
    manifest = run / "folds" / "1" / "manifest.json"
    content = manifest.read_bytes()
    manifest.unlink()
    opened = fg.Run(run)
    assert list(opened.judged) == [0]
    manifest.write_bytes(content)
    assert opened.done == [0, 1]
    assert opened.scores.photos == len(opened.folds[0].test) == opened.per_class.support.sum()


def test_a_finished_run_without_its_start_is_refused(
    undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed.folder, tmp_path / "run")
    (run / "start.safetensors").unlink()
    with pytest.raises(ResourceError, match=r"start\.safetensors: missing"):
        small_fit(discs, run)


def test_changed_photos_are_refused(discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    with pytest.raises(Killed):
        small_fit(photos, tmp_path / "run", watcher=Watcher(on_step=killer(2)))
    first = photos / "amber" / "000.jpg"
    content = first.read_bytes()
    first.write_bytes(content + b"\0")
    with pytest.raises(UsageError, match=r"1 photo of other content.*amber/000\.jpg"):
        small_fit(photos, tmp_path / "run")
    first.rename(photos / "blue" / "100.jpg")
    with pytest.raises(UsageError, match=r"1 photo gone.*amber/000\.jpg"):
        small_fit(photos, tmp_path / "run")


def test_another_torch_is_refused_unless_forced(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=killer(2)))
    place = tmp_path / "run" / "environment.json"
    environment = json.loads(place.read_bytes())
    environment["versions"]["torch"] = "1.0"
    files.write_json(place, environment)
    files.write_manifest(place.parent, runs.SETUP_FILES, name=runs.SETUP)
    with pytest.raises(UsageError, match=r"torch 1\.0") as error:
        small_fit(discs, tmp_path / "run")
    assert "--force" in error.value.hint
    run = fit(fg.scan(discs), small_recipe(), tmp_path / "run", force=True)
    assert run.complete


def test_a_second_process_on_the_same_folder_is_refused(discs: Path, tmp_path: Path) -> None:
    errors: list[ResourceError] = []

    def intrude() -> None:
        with pytest.raises(ResourceError) as error:
            small_fit(discs, tmp_path / "run")
        errors.append(error.value)
        raise Killed

    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", watcher=Watcher(on_step=intrude))
    assert errors[0].exit_code == 4


@needs_fork
def test_folds_are_jobs_of_processes_that_begin_at_the_same_time(
    undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    """As the tasks of a scheduler's array: nobody has begun the run, and one has to end it."""
    out, told = tmp_path / "run", Path(tmp_path / "tables")

    def finish(run: fg.Run) -> None:
        with told.open("a") as file:
            file.write("written\n")
        _finish(run)

    _finish, runs.finish = runs.finish, finish
    try:
        outcomes = on_processes(3, lambda n: small_fit(discs, out, fold=n % 2).done, tmp_path / "o")
    finally:
        runs.finish = _finish
    refused = [each for each in outcomes if isinstance(each, ResourceError)]
    assert len(refused) == 1 and "is in use" in refused[0].message, outcomes  # two asked for fold 0
    assert told.read_text() == "written\n"
    assert results(fg.Run(out)) == results(undisturbed)


def test_a_run_that_another_process_begins_is_waited_for(
    undisturbed: fg.Run, discs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    told: list[str] = []

    def notice(message: str) -> None:
        told.append(message)
        if "waiting for it" in message:
            beginner.close()

    def holding() -> Iterator[None]:
        with files.lock(out):
            yield

    beginner = holding()
    next(beginner)
    run = small_fit(discs, out, watcher=Watcher(notice=notice))
    assert told[0].startswith(f"{out} is in use: process {os.getpid()} on host")
    assert sum("waiting" in message for message in told) == 1
    assert results(run) == results(undisturbed)


def test_whoever_waits_for_a_run_can_be_stopped(discs: Path, tmp_path: Path) -> None:
    def check_stop() -> None:
        raise Stopped(signal.SIGINT)

    with files.lock(tmp_path), pytest.raises(Stopped):
        small_fit(discs, tmp_path, watcher=Watcher(check_stop=check_stop))


def test_a_folder_that_is_no_run_is_left_alone(discs: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds no run: thesis\.txt"):
        small_fit(discs, tmp_path)
    with pytest.raises(ResourceError, match="is a file") as error:
        small_fit(discs, tmp_path / "thesis.txt")
    assert error.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_result_is_named_when_it_is_read(discs: Path, tmp_path: Path) -> None:
    run = small_fit(discs, tmp_path / "run", epochs=1, warmup=0.0)
    place = run.fold_folder(1) / "predictions.npz"
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    with pytest.raises(ResourceError, match=r"predictions\.npz"):
        _ = fg.Run(tmp_path / "run").scores


def test_photos_added_later_are_told_and_left_out(discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    with pytest.raises(Killed):
        watcher = Watcher(on_step=killer(2))
        small_fit(photos, tmp_path / "run", epochs=1, warmup=0.0, watcher=watcher)
    shutil.copy(photos / "blue" / "000.jpg", photos / "blue" / "100.jpg")
    notices: list[str] = []
    watcher = Watcher(notice=notices.append)
    small_fit(photos, tmp_path / "run", epochs=1, warmup=0.0, watcher=watcher)
    assert notices[0].startswith("1 photo added, such as `blue/100.jpg` since this run was begun")


def test_what_cannot_work_is_told_before_any_photo_is_read(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args: object, **options: object) -> None:
        raise AssertionError("a photo was read")

    monkeypatch.setattr("fieldguide.fitting.prepare.inspect", read)
    with pytest.raises(ResourceError, match="device `cuda:77`"):
        small_fit(discs, tmp_path / "1", device="cuda:77")
    with pytest.raises(UsageError, match="GPU only"):
        small_fit(discs, tmp_path / "2", precision="float16")
    with pytest.raises(UsageError, match="no such file"):
        small_fit(discs, tmp_path / "3", weights=str(tmp_path / "gone.safetensors"))


def test_unreadable_photos_are_left_out_and_told(discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    (photos / "amber" / "bad.jpg").write_bytes(b"")
    notices: list[str] = []
    run = small_fit(
        photos, tmp_path / "run", epochs=1, warmup=0.0, watcher=Watcher(notice=notices.append)
    )
    assert len(run.catalog) == 24
    assert "left out: amber/bad.jpg: empty file" in notices


def test_copies_stay_in_one_fold_and_conflicts_stop(discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    for number in range(6):
        source = photos / "blue" / f"{number:03d}.jpg"
        with Image.open(source) as picture:
            picture.resize((60, 60)).save(photos / "blue" / f"copy{number}.jpg", quality=70)
    run = small_fit(photos, tmp_path / "run", epochs=1, warmup=0.0)
    fold_of = {photo.path: photo.fold for photo in run.catalog.photos}
    for number in range(6):
        assert fold_of[f"blue/{number:03d}.jpg"] == fold_of[f"blue/copy{number}.jpg"]
    shutil.copy(photos / "blue" / "000.jpg", photos / "amber" / "wrong.jpg")
    with pytest.raises(DataError, match=r"several labels.*"):
        small_fit(photos, tmp_path / "other", epochs=1, warmup=0.0)
    dropped = small_fit(photos, tmp_path / "dropped", epochs=1, warmup=0.0, conflicts="drop")
    used = {photo.path for photo in dropped.catalog.photos}
    assert "amber/wrong.jpg" not in used and "blue/000.jpg" not in used


def test_whoever_watches_is_told_what_the_check_found(discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    (photos / "blue" / "empty.jpg").touch()
    found: list[Any] = []
    run = small_fit(
        photos,
        tmp_path / "run",
        fold=0,
        epochs=1,
        warmup=0.0,
        watcher=Watcher(on_findings=found.extend),
    )
    assert "blue/empty.jpg" in {finding.path for finding in found}
    assert "blue/empty.jpg" in (run.folder / "findings.csv").read_text()


def test_thin_classes_may_be_left_out(discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    for path in sorted((photos / "blue").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match="class `blue` has 1 photo"):
        small_fit(photos, tmp_path / "all", epochs=1, warmup=0.0)
    run = small_fit(photos, tmp_path / "run", epochs=1, warmup=0.0, min_per_class=4)
    assert run.classes == ("amber", "crimson")
    notices: list[str] = []
    watcher = Watcher(notice=notices.append)
    options = {"epochs": 1, "warmup": 0.0, "drop_thin_groups": True}
    run = small_fit(photos, tmp_path / "thin", watcher=watcher, **options)
    assert run.classes == ("amber", "crimson")
    assert "left out, as their photos lie in one group: `blue`" in notices


def test_photos_of_a_fixed_camera_can_be_trained_on(discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    scene = Image.open(photos / "blue" / "000.jpg")
    for quality, path in enumerate(sorted((photos / "blue").iterdir()), 80):
        scene.save(path, quality=quality)
    with pytest.raises(DataError, match="class `blue`: all 8 photos lie in one group") as error:
        small_fit(photos, tmp_path / "grouped", epochs=1, warmup=0.0)
    assert "--near-duplicates warn" in error.value.hint
    assert "--drop-thin-groups" in error.value.hint
    for near, told in (("warn", 7), ("off", 0)):
        options = {"epochs": 1, "warmup": 0.0, "near_duplicates": near}
        run = small_fit(photos, tmp_path / near, **options)
        blue = [photo for photo in run.catalog.photos if photo.label == "blue"]
        assert len({photo.fold for photo in blue}) == 2
        assert len({photo.group for photo in blue}) == 8
        findings = (run.folder / "findings.csv").read_text("utf-8")
        assert findings.count("near-duplicate") == told


def table(folder: Path, discs: Path, extra: str = "") -> Path:
    lines = ["file,species,part,site"]
    for path in sorted(discs.glob("*/*.jpg")):
        number = int(path.stem)
        lines.append(f"{path},{path.parent.name},{number % 4},{path.parent.name}{number // 2}")
    place = folder / "labels.csv"
    place.write_text("\n".join(lines) + extra + "\n")
    return place


def test_the_users_folds_are_obeyed(discs: Path, tmp_path: Path) -> None:
    catalog = fg.read_table(
        table(tmp_path, discs), path="file", label="species", fold="part", group=None
    )
    run = small_fit(catalog, tmp_path / "run", epochs=1, warmup=0.0, folds=5)
    assert run.recipe.folds == 4
    for photo in run.catalog.photos:
        assert photo.fold == int(Path(photo.path).stem) % 4
    notices: list[str] = []
    watcher = Watcher(notice=notices.append)
    small_fit(catalog, tmp_path / "run", epochs=1, warmup=0.0, folds=5, watcher=watcher)
    assert any("complete" in notice for notice in notices)


def set_aside(run: fg.Run) -> set[str]:
    return {run.catalog.photos[row].path for row in run.outside}


ONE_EPOCH: dict[str, Any] = {"epochs": 1, "warmup": 0.0, "replicas": 1, "merge": "none"}


def test_holdout_sets_a_share_of_each_class_aside_that_no_fold_sees(
    discs: Path, tmp_path: Path
) -> None:
    run = small_fit(discs, tmp_path / "run", holdout=0.25, **ONE_EPOCH)
    aside = set_aside(run)
    assert Counter(path.split("/")[0] for path in aside) == {"amber": 2, "blue": 2, "crimson": 2}
    assert len(run.catalog) == 24
    for fold in run.folds:
        rows = np.concatenate([fold.train, fold.test])
        assert not {run.catalog.photos[row].path for row in rows} & aside
        assert len(rows) == 18
    assert run.scores.photos == 18
    with (run.folder / "oof.csv").open(newline="") as file:
        assert not {row["path"] for row in csv.DictReader(file)} & aside
    job = fold_jobs(run, discs)(0)
    assert not {*job.train.tolist(), *job.test.tolist(), *job.watch.tolist()} & {*run.outside}
    again = small_fit(discs, tmp_path / "other", fold=0, holdout=0.25, seed=5, **ONE_EPOCH)
    assert set_aside(again) != aside


def test_what_is_set_aside_does_not_depend_on_the_order_of_files(
    discs: Path, tmp_path: Path
) -> None:
    catalog = fg.scan(discs)
    backwards = fg.Catalog(catalog.root, catalog.photos[::-1])
    one, other = (
        small_fit(each, tmp_path / name, fold=0, holdout=0.3, **ONE_EPOCH)
        for name, each in (("one", catalog), ("other", backwards))
    )
    assert set_aside(one) == set_aside(other)
    fold_of = [{p.path: p.fold for p in run.catalog.photos} for run in (one, other)]
    assert fold_of[0] == fold_of[1]


def test_holdout_keeps_groups_whole(discs: Path, tmp_path: Path) -> None:
    catalog = fg.read_table(
        table(tmp_path, discs), path="file", label="species", fold=None, group="site"
    )
    run = small_fit(catalog, tmp_path / "run", fold=0, holdout=0.25, **ONE_EPOCH)
    outside = {run.catalog.photos[row].group for row in run.outside}
    inside = {photo.group for photo in run.catalog.photos if photo.split == "train"}
    assert len(run.outside) == 6 and len(outside) == 3  # pairs
    assert not outside & inside


def test_the_users_folds_go_with_photos_set_aside(discs: Path, tmp_path: Path) -> None:
    catalog = fg.read_table(
        table(tmp_path, discs), path="file", label="species", fold="part", group=None
    )
    run = small_fit(catalog, tmp_path / "run", holdout=0.25, **ONE_EPOCH)
    assert run.recipe.folds == 4
    assert len(run.outside) == 6
    for row, photo in enumerate(run.catalog.photos):
        expected = None if row in run.outside else int(Path(photo.path).stem) % 4
        assert photo.fold == expected
    again = small_fit(catalog, tmp_path / "run", holdout=0.25, **ONE_EPOCH)
    assert again.complete


def test_a_killed_fit_with_photos_set_aside_goes_on(discs: Path, tmp_path: Path) -> None:
    whole = small_fit(discs, tmp_path / "whole", holdout=0.25)
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", holdout=0.25, watcher=Watcher(on_step=killer(6)))
    run = small_fit(discs, tmp_path / "run", holdout=0.25)
    assert results(run) == results(whole)
    assert set_aside(run) == set_aside(whole)
    with pytest.raises(UsageError, match=r"holdout: 0\.25 there, 0\.5 now"):
        small_fit(discs, tmp_path / "run", holdout=0.5)


def test_photos_set_aside_join_the_collections_own(parts: Path, tmp_path: Path) -> None:
    run = small_fit(parts, tmp_path / "run", fold=0, holdout=0.25, **ONE_EPOCH)
    own = {path for path in set_aside(run) if path.startswith("val/")}
    assert len(own) == 12
    assert len(set_aside(run)) == 18


def test_groups_are_kept_whole(discs: Path, tmp_path: Path) -> None:
    catalog = fg.read_table(table(tmp_path, discs), path="file", label="species", group="site")
    run = small_fit(catalog, tmp_path / "run", epochs=1, warmup=0.0)
    folds_of: dict[str, set[int | None]] = {}
    for photo in run.catalog.photos:
        folds_of.setdefault(photo.group or "", set()).add(photo.fold)
    assert len(folds_of) == 12
    assert all(len(folds) == 1 for folds in folds_of.values())


def test_val_is_never_trained_or_tested_but_can_be_watched(
    discs: Path, tmp_path: Path, draw_collection: Callable[..., Path]
) -> None:
    shutil.copytree(discs, tmp_path / "photos" / "train")
    draw_collection(tmp_path / "photos" / "val", each=11, classes=2)
    for place in (tmp_path / "photos" / "val").glob("*/00[0-7].jpg"):
        place.unlink()  # equal to the training photos
    run = small_fit(tmp_path / "photos", tmp_path / "run", epochs=1, warmup=0.0)
    val = {n for n, photo in enumerate(run.catalog.photos) if photo.split == "val"}
    assert len(val) == 6
    for fold in run.folds:
        assert not val & {*fold.train.tolist(), *fold.test.tolist()}
    watching = small_recipe(stop="fold", watch_val=True, epochs=1, warmup=0.0)
    again = fit(fg.scan(tmp_path / "photos"), watching, tmp_path / "watching")
    job = fold_jobs(again, tmp_path / "photos")(0)
    assert {*job.watch.tolist()} == val | {*again.folds[0].test.tolist()}
    assert again.logits(0).shape == (len(again.folds[0].test), 3)


def test_stopping_on_the_fold_reports_selected_and_cross_fitted_scores(
    discs: Path, tmp_path: Path
) -> None:
    run = small_fit(
        discs,
        tmp_path / "run",
        folds=3,
        epochs=6,
        stop="fold",
        patience=6,
        replicas=1,
        merge="none",
    )
    logits = {fold: run.epoch_logits(fold) for fold in run.done}
    targets = {fold: run.targets[run.folds[fold].test] for fold in run.done}
    accuracy = {
        fold: np.array([(values[e].argmax(1) == targets[fold]).mean() for e in range(6)])
        for fold, values in logits.items()
    }
    right = 0
    for fold in run.done:
        others = np.mean([accuracy[other] for other in run.done if other != fold], axis=0)
        right += (logits[fold][int(others.argmax())].argmax(1) == targets[fold]).sum()
        np.testing.assert_array_equal(run.logits(fold), logits[fold][accuracy[fold].argmax()])
    assert run.scores.accuracy == pytest.approx(right / 24)
    best = sum(accuracy[fold].max() * len(targets[fold]) for fold in run.done) / 24
    assert run.scores.selected_accuracy == pytest.approx(best)
    assert run.scores.selected_accuracy >= run.scores.accuracy
    with (run.folder / "oof.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = np.mean([row["label"] == row["predicted"] for row in rows])
    assert shown == pytest.approx(run.scores.accuracy)


def test_patience_ends_a_fold_early(discs: Path, tmp_path: Path) -> None:
    run = small_fit(
        discs,
        tmp_path / "run",
        epochs=9,
        stop="fold",
        patience=1,
        backbone_rate=1e-12,
        head_rate=1e-12,
    )
    assert all(len(run.epoch_logits(fold)) == 2 for fold in run.done)


def test_patience_counts_epochs_not_merges(discs: Path, tmp_path: Path) -> None:
    still = {"backbone_rate": 1e-12, "head_rate": 1e-12, "stop": "fold"}
    run = small_fit(discs, tmp_path / "run", fold=0, epochs=9, patience=4, merge_every=2, **still)
    assert len(run.epoch_logits(0)) == 3  # best in epoch 2; epochs 4 and 6 are no better


def test_inner_stopping_never_looks_at_the_test_part(discs: Path, tmp_path: Path) -> None:
    run = small_fit(discs, tmp_path / "run", stop="inner", inner_share=0.25, patience=2, epochs=2)
    assert run.scores.selected_accuracy is None
    for fold in run.folds:
        job = fold_jobs(run, discs)(fold.index)
        assert not {*job.watch.tolist()} & {*fold.test.tolist()}
        assert {*job.watch.tolist(), *job.train.tolist()} == {*fold.train.tolist()}
        assert len(job.watch) == 3


def test_nothing_is_written_beside_the_photos(discs: Path, undisturbed: fg.Run) -> None:
    assert {path.suffix for path in discs.rglob("*") if path.is_file()} == {".jpg"}
    assert len(list(discs.rglob("*.jpg"))) == 24


def test_scores_agree_with_metrics_over_all_folds(undisturbed: fg.Run) -> None:
    rows = np.concatenate([undisturbed.folds[fold].test for fold in undisturbed.done])
    logits = np.concatenate([undisturbed.logits(fold) for fold in undisturbed.done])
    targets = undisturbed.targets[rows]
    assert undisturbed.scores.accuracy == metrics.accuracy(logits, targets)
    assert undisturbed.scores.log_loss == metrics.log_loss(metrics.softmax(logits), targets)


@pytest.mark.parametrize("step", [3, 7, 11])
def test_shares_and_outer_momentum_resume_to_the_bit(
    step: int, discs: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "fold": 0,
        "replicas": 3,
        "replica_data": "share",
        "outer": "momentum",
        "batch_size": 2,
        "epochs": 3,
    }
    whole = small_fit(discs, tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        small_fit(
            discs, tmp_path / "run", watcher=Watcher(on_step=killer(step)), **settings, **EVERY_STEP
        )
    before: list[int] = []
    again = small_fit(discs, tmp_path / "run", watcher=Watcher(on_resume=before.append), **settings)
    assert before == [step]
    assert results(again) == results(whole)
