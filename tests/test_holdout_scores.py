import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLORS, draw_photo
from fits import small_fit
from PIL import Image

import fieldguide as fg
from fieldguide.analysis import metrics
from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.fitting.progress import Plan, Watcher
from fieldguide.photos.folders import scan_unlabelled
from fieldguide.predict import combine, inference
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.model import Machine
from fieldguide.storage import files
from fieldguide.study import holdout_scores, tuning
from fieldguide.study.holdout_scores import CROSS_FITTED, FLATTERED, Worth, Worths

CPU = Machine("cpu", workers=0)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured on few photos."""
    monkeypatch.setattr(holdout_scores, "TIMED_PHOTOS", 8)


@pytest.fixture
def own(trained: fg.Run, tmp_path: Path) -> fg.Run:
    """A copy of the run to write into."""
    return fg.Run(shutil.copytree(trained.folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def rows(trained: fg.Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Worth]:
    """What each classifier is worth on the run's own photos, with all kinds of soups merged."""
    run = fg.Run(shutil.copytree(trained.folder, tmp_path_factory.mktemp("merged") / "run"))
    for rule in combine.RULES:
        holdout_scores.merge_into_run(run, rule, machine=CPU)
    holdout_scores.merge_into_run(run, "soup", batch_norm="recalibrate", machine=CPU)
    found = holdout_scores.worths(run, CPU)
    assert (found.photos, found.unreadable) == (12, 0)
    return {row.name: row for row in found.rows}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that outside photos were looked at."""
    seen: list[int] = []
    original = inference.all_logits

    def all_logits(*arguments: Any) -> object:
        seen.append(len(arguments[2]))
        return original(*arguments)

    monkeypatch.setattr(inference, "all_logits", all_logits)
    return seen


def others(folder: Path, each: int = 2) -> Path:
    """Photos that nobody has seen."""
    for number, (name, color) in enumerate(COLORS.items()):
        for index in range(each):
            draw_photo(folder / name / f"new{index}.jpg", color, 7000 + 100 * number + index)
    return folder


def predicted(run: fg.Run, combine: str | int) -> np.ndarray:
    paths = [run.catalog.file(run.catalog.photos[row]) for row in run.outside]
    return run.classifier(combine, machine=CPU).predict(paths, machine=CPU).probabilities


def test_there_is_a_row_for_each_fold_their_mean_the_ensemble_and_each_soup(
    rows: dict[str, Worth],
) -> None:
    folds = ["fold 0", "fold 1", "fold 2", "mean of folds", "ensemble"]
    assert list(rows) == [*folds, "greedy", "soup", "soup-recal", "stock"]


@pytest.mark.parametrize(
    ("name", "combine"), [("fold 1", 1), ("ensemble", "ensemble"), ("soup", "soup")]
)
def test_scores_are_those_of_what_predict_says(
    name: str, combine: str | int, rows: dict[str, Worth], trained: fg.Run
) -> None:
    probabilities, row = predicted(trained, combine), rows[name]
    targets = trained.targets[trained.outside]
    assert row.accuracy == metrics.accuracy(probabilities, targets)
    assert row.log_loss == pytest.approx(metrics.log_loss(probabilities, targets), abs=1e-5)
    error = metrics.calibration_error(probabilities, targets)
    assert row.calibration_error == pytest.approx(error, abs=1e-5)
    low, high = row.interval
    assert low <= row.accuracy <= high
    model = trained.classifier(combine, machine=CPU)
    assert (row.parameters, row.bytes) == (model.parameters, model.nbytes)
    assert row.photos_per_second > 0


def test_the_unscaled_error_is_that_without_the_temperature(
    rows: dict[str, Worth], trained: fg.Run
) -> None:
    paths = [trained.catalog.file(trained.catalog.photos[row]) for row in trained.outside]
    plain = trained.classifier("ensemble").predict(paths, calibrated=False, machine=CPU)
    targets = trained.targets[trained.outside]
    expected = metrics.calibration_error(plain.probabilities, targets)
    assert rows["ensemble"].unscaled_error == pytest.approx(expected, abs=1e-5)
    assert rows["ensemble"].unscaled_error != pytest.approx(rows["ensemble"].calibration_error)


def test_the_mean_of_folds_is_the_mean_of_their_rows(rows: dict[str, Worth]) -> None:
    folds = [rows[f"fold {fold}"] for fold in range(3)]
    for score in ("accuracy", "log_loss", "calibration_error", "unscaled_error", "parameters"):
        expected = np.mean([getattr(row, score) for row in folds])
        assert getattr(rows["mean of folds"], score) == pytest.approx(expected), score
    low, high = rows["mean of folds"].interval
    assert low <= rows["mean of folds"].accuracy <= high


def test_a_soup_costs_what_a_fold_costs_and_an_ensemble_as_much_as_all(
    rows: dict[str, Worth],
) -> None:
    for name in ("soup", "greedy", "stock", "soup-recal"):
        assert rows[name].parameters == rows["fold 0"].parameters
        assert rows[name].bytes == rows["fold 0"].bytes
    assert rows["ensemble"].parameters == 3 * rows["fold 0"].parameters


def test_intervals_take_groups_for_one(trained: fg.Run) -> None:
    one = trained.ingredients().outside
    alone = {row.name: row for row in holdout_scores.worths_on(trained, one, CPU).rows}
    assert alone["fold 1"].interval[0] < alone["fold 1"].interval[1]
    grouped = replace(one, groups=("specimen",) * len(one))
    for row in holdout_scores.worths_on(trained, grouped, CPU).rows:
        (low, high), (least, most) = row.interval, alone[row.name].interval
        assert low < least <= row.accuracy <= most <= high
        assert row.accuracy == alone[row.name].accuracy


def test_an_unfinished_run_is_judged_by_the_folds_that_are_done(own: fg.Run) -> None:
    (own.folder / files.MANIFEST).unlink()
    (own.fold_folder(1) / files.MANIFEST).unlink()
    names = [row.name for row in holdout_scores.worths(fg.Run(own.folder), CPU).rows]
    assert names == ["fold 0", "fold 2", "mean of folds", "ensemble"]


def test_the_table_is_read_again_while_nothing_changes(own: fg.Run, looks: list[int]) -> None:
    first = holdout_scores.worths(own, CPU)
    assert looks
    looks.clear()
    assert holdout_scores.worths(fg.Run(own.folder), CPU) == first
    assert holdout_scores.worths(own, replace(CPU, workers=1)) == first
    assert looks == []
    record = json.loads((own.folder / holdout_scores.SCORES).read_bytes())
    assert list(record) == ["key", "rows", "photos", "unreadable"]
    assert record == {"key": record["key"], **json.loads(json.dumps(asdict(first)))}
    assert (record["photos"], record["unreadable"]) == (12, 0)


def merged(run: fg.Run) -> None:
    holdout_scores.merge_into_run(run, "soup", batch_norm="recalibrate", machine=CPU)


def cut(run: fg.Run) -> None:
    place = run.folder / holdout_scores.SCORES
    place.write_text(place.read_text("utf-8")[:-20])


def of_another_version(run: fg.Run) -> None:
    place = run.folder / holdout_scores.SCORES
    record = json.loads(place.read_bytes())
    record["rows"][0]["beauty"] = 1.0
    files.write_json(place, record)


def of_no_table(run: fg.Run) -> None:
    (run.folder / holdout_scores.SCORES).write_text("[]")


@pytest.mark.parametrize("change", [merged, cut, of_another_version, of_no_table])
def test_the_table_is_made_anew_where_something_changed(
    change: Callable[[fg.Run], None], own: fg.Run, looks: list[int]
) -> None:
    before = holdout_scores.worths(own, CPU)
    change(own)
    looks.clear()
    after = holdout_scores.worths(own, CPU)
    assert looks
    assert [row.name for row in after.rows[:5]] == [row.name for row in before.rows]
    assert ("soup-recal" in {row.name for row in after.rows}) == (change is merged)


@pytest.mark.parametrize(
    "machine", [replace(CPU, precision="bfloat16"), replace(CPU, batch_size=3)]
)
def test_another_precision_or_batch_is_another_table(
    machine: Machine, own: fg.Run, looks: list[int]
) -> None:
    holdout_scores.worths(own, CPU)
    looks.clear()
    holdout_scores.worths(own, machine)
    assert looks


def test_a_table_of_another_device_is_not_shown_for_this_one(
    own: fg.Run, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    holdout_scores.worths(own, CPU)
    looks.clear()
    monkeypatch.setattr(holdout_scores, "device_name", lambda device: "another chip")
    holdout_scores.worths(own, CPU)
    assert looks


def test_photos_that_came_back_are_looked_at(own: fg.Run, parts: Path, tmp_path: Path) -> None:
    """The table of a part of the photos is not kept: they may be there the next time."""
    moved = shutil.copytree(parts, tmp_path / "moved")
    lost = moved / "val" / "blue" / "021.jpg"
    lost.rename(tmp_path / "lost.jpg")
    found = holdout_scores.worths(fg.Run(own.folder, photos=moved), CPU)
    assert (found.photos, found.unreadable) == (11, 1)
    assert not (own.folder / holdout_scores.SCORES).exists()
    (tmp_path / "lost.jpg").rename(lost)
    found = holdout_scores.worths(fg.Run(own.folder, photos=moved), CPU)
    assert (found.photos, found.unreadable) == (12, 0)


def test_a_run_that_cannot_be_written_to_is_scored_all_the_same(
    own: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise ResourceError(f"cannot write {path}")

    monkeypatch.setattr(files, "write_json", refuse)
    assert len(holdout_scores.worths(own, CPU).rows) == 5


def test_a_merged_model_is_kept_in_the_run_and_answers_by_its_name(own: fg.Run) -> None:
    expected = predicted(own, "stock")
    folder = holdout_scores.merge_into_run(own, "stock", machine=CPU)
    assert folder == own.folder / "models" / "stock"
    assert own.models() == {"stock": folder}
    np.testing.assert_array_equal(predicted(own, "stock"), expected)
    found = Classifier.load(folder).card.provenance["made"]
    assert found == {"rule": "stock", "batch_norm": "average", "folds": [0, 1, 2]}
    assert own.complete and fg.Run(own.folder).scores == own.scores


def test_merging_twice_leaves_the_first(own: fg.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = holdout_scores.merge_into_run(own, "soup", machine=CPU)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(combine, "soup", None)  # not even begun
    assert holdout_scores.merge_into_run(own, "soup", machine=CPU) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_a_killed_merge_left_is_replaced(own: fg.Run) -> None:
    folder = holdout_scores.merge_into_run(own, "soup", batch_norm="average", machine=CPU)
    (folder / files.MANIFEST).unlink()
    (folder / "member-0.safetensors").write_bytes(b"half")
    (folder / "rest.tmp").write_bytes(b"half")
    assert own.models() == {}
    holdout_scores.merge_into_run(own, "soup", batch_norm="average", machine=CPU)
    Classifier.load(folder)
    assert not (folder / "rest.tmp").exists()


def test_both_kinds_of_batch_norm_stand_side_by_side(own: fg.Run) -> None:
    expected = {
        kind: combine.soup(own.ingredients(), "soup", batch_norm=kind, machine=CPU).members[0]
        for kind in ("recalibrate", "average")  # type: ignore[arg-type]
    }
    for kind in expected:
        holdout_scores.merge_into_run(own, "soup", batch_norm=kind, machine=CPU)  # type: ignore[arg-type]
    assert list(own.models()) == ["soup", "soup-recal"]
    for kind, weights in expected.items():
        found = own.classifier("soup", batch_norm=kind, machine=CPU).members[0]  # type: ignore[arg-type]
        assert all((found[name] == tensor).all() for name, tensor in weights.items()), kind


def test_a_soup_of_an_older_version_is_not_taken_for_an_averaged_one(own: fg.Run) -> None:
    made = holdout_scores.merge_into_run(own, "soup", batch_norm="recalibrate", machine=CPU)
    expected = own.classifier("soup").members[0]
    made.rename(made.with_name("soup"))  # as it was called
    found = own.classifier("soup").members[0]
    assert all((found[name] == tensor).all() for name, tensor in expected.items())


def test_a_soup_waits_for_all_folds(own: fg.Run) -> None:
    (own.folder / files.MANIFEST).unlink()
    (own.fold_folder(2) / files.MANIFEST).unlink()
    run = fg.Run(own.folder)
    with pytest.raises(UsageError, match="2 of 3 folds are done") as error:
        holdout_scores.merge_into_run(run, "soup", machine=CPU)
    assert "same fit command" in error.value.hint
    assert not (run.folder / "models").exists()


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be merged: who begins to work fails."""

    def begun(*arguments: object, **options: object) -> None:
        raise AssertionError("the work has begun")

    for name in ("soup", "greedy", "merged"):
        monkeypatch.setattr(combine, name, begun)


@pytest.mark.usefixtures("idle")
def test_nothing_is_merged_into_a_run_that_another_process_holds(own: fg.Run) -> None:
    with files.lock(own.folder), pytest.raises(ResourceError, match="in use"):
        holdout_scores.merge_into_run(own, "soup", batch_norm="average", machine=CPU)
    assert own.models() == {}


@pytest.mark.usefixtures("idle")
def test_a_run_that_cannot_be_written_to_is_told_before_the_work(own: fg.Run) -> None:
    (own.folder / ".lock").unlink(missing_ok=True)
    (own.folder / ".lock").mkdir()  # like a folder that is read only, for administrators too
    with pytest.raises(ResourceError, match="cannot write"):
        holdout_scores.merge_into_run(own, "soup", machine=CPU)
    assert own.models() == {}


def test_a_model_that_another_process_merged_meanwhile_is_left(
    own: fg.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    model = own.classifier("soup", batch_norm="recalibrate", machine=CPU)
    before: dict[Path, int] = {}
    original = files.lock

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        if folder == own.folder:
            place = model.save(folder / "models" / "soup-recal")
            before.update({path: path.stat().st_mtime_ns for path in place.iterdir()})
        with original(folder):
            yield

    monkeypatch.setattr(files, "lock", late)
    request.getfixturevalue("idle")
    place = holdout_scores.merge_into_run(own, "soup", batch_norm="recalibrate", machine=CPU)
    assert place == own.models()["soup-recal"]
    assert before
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before


@pytest.fixture(scope="module")
def greedy(trained: fg.Run, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """A run with a greedy soup whose cross-fitted worth differs from the one where it was chosen.

    By hand: with twelve photos, honest and flattering scores are often the same.
    """
    run = fg.Run(shutil.copytree(trained.folder, tmp_path_factory.mktemp("greedy") / "run"))
    original = combine.greedy

    def worse(*arguments: Any, **options: Any) -> combine.Greedy:
        found = original(*arguments, **options)
        return replace(found, logits=np.roll(found.logits, 1, axis=1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combine, "greedy", worse)
        holdout_scores.merge_into_run(run, "greedy", batch_norm="average", machine=CPU)
    return run


def greedy_row(found: Worths) -> Worth:
    return next(row for row in found.rows if row.name == "greedy")


def test_a_greedy_soup_is_judged_by_the_choice_of_other_photos(
    greedy: fg.Run, trained: fg.Run, tmp_path: Path
) -> None:
    found = combine.greedy(trained.ingredients(), batch_norm="average", machine=CPU)
    targets = trained.targets[trained.outside]
    row = greedy_row(holdout_scores.worths(greedy, CPU))
    assert row.note == CROSS_FITTED
    assert row.accuracy == metrics.accuracy(np.roll(found.logits, 1, axis=1), targets)
    assert row.accuracy != metrics.accuracy(predicted(greedy, "greedy"), targets)
    own = holdout_scores.worths_on(greedy, greedy.ingredients().outside, CPU)
    assert replace(greedy_row(own), photos_per_second=0.0) == replace(row, photos_per_second=0.0)


def test_giving_the_choosers_by_hand_flatters_no_greedy_soup(greedy: fg.Run, parts: Path) -> None:
    given = holdout_scores.unseen(greedy, fg.scan(parts / "val"))
    row = greedy_row(holdout_scores.worths_on(greedy, given, CPU))
    expected = greedy_row(holdout_scores.worths(greedy, CPU))
    assert (row.accuracy, row.note) == (expected.accuracy, CROSS_FITTED)


def test_a_greedy_soup_judged_on_some_of_its_choosers_is_marked(
    greedy: fg.Run, parts: Path, tmp_path: Path
) -> None:
    fewer = shutil.copytree(parts / "val", tmp_path / "fewer")
    for path in fewer.glob("*/02[23].jpg"):
        path.unlink()
    more = others(shutil.copytree(fewer, tmp_path / "more"))
    for folder, count in ((fewer, 6), (more, 12)):
        given = holdout_scores.unseen(greedy, fg.scan(folder))
        assert len(given) == count
        row = greedy_row(holdout_scores.worths_on(greedy, given, CPU))
        probabilities = greedy.classifier("greedy").predict(given.files, machine=CPU).probabilities
        assert row.note == FLATTERED
        assert row.accuracy == metrics.accuracy(probabilities, given.targets)


def test_on_photos_that_chose_nothing_a_greedy_soup_is_like_any_other(
    greedy: fg.Run, tmp_path: Path
) -> None:
    given = holdout_scores.unseen(greedy, fg.scan(others(tmp_path / "others", each=4)))
    row = greedy_row(holdout_scores.worths_on(greedy, given, CPU))
    probabilities = greedy.classifier("greedy").predict(given.files, machine=CPU).probabilities
    assert row.note == ""
    assert row.accuracy == metrics.accuracy(probabilities, given.targets)


def test_photos_that_no_fold_has_seen_come_with_their_classes(
    trained: fg.Run, tmp_path: Path
) -> None:
    found = holdout_scores.unseen(trained, fg.scan(others(tmp_path / "others")))
    assert [path.parent.name for path in found.files] == [
        trained.classes[target] for target in found.targets
    ]
    assert len(found) == len(set(found.groups)) == 6
    assert found.hashes == tuple(files.sha256(path) for path in found.files)
    assert len(holdout_scores.worths_on(trained, found, CPU).rows) == 5


@pytest.mark.parametrize("name", ["000.jpg", "renamed.jpg"])
def test_a_photo_that_was_trained_on_is_refused_by_its_content(
    name: str, trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    folder = others(tmp_path / "others")
    shutil.copy(parts / "train" / "blue" / "000.jpg", folder / "blue" / name)
    with pytest.raises(DataError, match="1 of 7 photos were used by the folds") as error:
        holdout_scores.unseen(trained, fg.scan(folder))
    assert f"`blue/{name}`" in error.value.message
    assert "`train/blue/000.jpg`" in error.value.message
    assert "leave them out" in error.value.hint


def test_up_to_five_photos_that_were_trained_on_are_named(trained: fg.Run, parts: Path) -> None:
    with pytest.raises(DataError, match="24 of 24 photos were used by the folds") as error:
        holdout_scores.unseen(trained, fg.scan(parts / "train"))
    for number in range(8):
        assert (f"`amber/00{number}.jpg`" in error.value.message) == (number < 5)
    assert "and 19 more" in error.value.message
    assert "the first as `train/amber/000.jpg`" in error.value.message


def test_photos_that_chose_epochs_are_refused(parts: Path, tmp_path: Path) -> None:
    watching: dict[str, Any] = {"stop": "fold", "watch_val": True, "epochs": 1, "warmup": 0.0}
    run = small_fit(parts, tmp_path / "run", fold=0, replicas=1, merge="none", **watching)
    assert holdout_scores.worths(run, CPU) == Worths((), 0)
    assert not (run.folder / holdout_scores.SCORES).exists()
    assert len(run.ingredients().outside) == 0
    with pytest.raises(DataError, match="12 of 12 photos were used by the folds"):
        holdout_scores.unseen(run, fg.scan(parts / "val"))
    assert len(holdout_scores.unseen(run, fg.scan(others(tmp_path / "others")))) == 6


def test_photos_that_look_like_training_photos_are_left_out_and_told(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    folder = others(tmp_path / "others")
    expected = holdout_scores.unseen(trained, fg.scan(folder))
    for number in (0, 5):
        with Image.open(parts / "train" / "blue" / f"00{number}.jpg") as picture:
            picture.save(folder / "blue" / f"again{number}.jpg", quality=70)
    told: list[str] = []
    found = holdout_scores.unseen(trained, fg.scan(folder), notice=told.append)
    assert len(expected) == 6
    assert (found.files, found.groups, found.hashes) == (
        expected.files,
        expected.groups,
        expected.hashes,
    )
    np.testing.assert_array_equal(found.targets, expected.targets)
    assert told == ["2 photos look like training photos and are left out"]


def test_look_alikes_among_the_given_photos_stay(trained: fg.Run, tmp_path: Path) -> None:
    folder = others(tmp_path / "others")
    shutil.copy(folder / "blue" / "new0.jpg", folder / "blue" / "same.jpg")
    told: list[str] = []
    assert len(holdout_scores.unseen(trained, fg.scan(folder), notice=told.append)) == 7
    assert told == []


def test_where_all_photos_look_like_training_photos_nothing_is_scored(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    for path in (parts / "train").glob("*/00[03].jpg"):
        place = folder / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.save(place, quality=90)
    with pytest.raises(DataError, match="look like training photos"):
        holdout_scores.worths_on(trained, holdout_scores.unseen(trained, fg.scan(folder)), CPU)


def test_where_training_photos_are_gone_copies_are_known_by_content_alone(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    gone = fg.Run(trained.folder, photos=tmp_path / "nowhere")
    folder = others(tmp_path / "others")
    told: list[str] = []
    assert len(holdout_scores.unseen(gone, fg.scan(folder), notice=told.append)) == 6
    assert told == ["24 of 24 training photos are gone: copies of them are not recognised"]
    shutil.copy(parts / "train" / "amber" / "003.jpg", folder / "amber" / "other.jpg")
    with pytest.raises(DataError, match=r"`amber/other\.jpg`, the first as `train/amber/003\.jpg`"):
        holdout_scores.unseen(gone, fg.scan(folder))


def test_progress_ends_at_the_number_of_photos_that_are_compared(
    trained: fg.Run, tmp_path: Path
) -> None:
    given = fg.scan(others(tmp_path / "others"))
    done: list[int] = []
    holdout_scores.unseen(trained, given, progress=done.append)
    assert done == sorted(done)
    assert done[-1] == holdout_scores.compared(trained, given) == 24 + 6


def test_a_class_that_no_network_knows_is_refused(trained: fg.Run, tmp_path: Path) -> None:
    folder = others(tmp_path / "others")
    draw_photo(folder / "teal" / "000.jpg", (0, 120, 120), 1)
    with pytest.raises(DataError, match=r"none of the run's 3 classes: .*teal"):
        holdout_scores.unseen(trained, fg.scan(folder))


def test_photos_without_any_label_are_refused(trained: fg.Run, parts: Path) -> None:
    unlabelled = scan_unlabelled(parts / "val")
    with pytest.raises(DataError, match=r"no photo of .* has a label"):
        holdout_scores.unseen(trained, unlabelled)


def test_photos_that_cannot_be_read_are_left_out_and_counted(
    trained: fg.Run, tmp_path: Path
) -> None:
    folder = others(tmp_path / "others")
    expected = holdout_scores.worths_on(
        trained, holdout_scores.unseen(trained, fg.scan(folder)), CPU
    )
    (folder / "blue" / "bad.jpg").write_bytes(b"")  # between others
    (folder / "amber" / "gone.jpg").write_bytes(b"")
    given = holdout_scores.unseen(trained, fg.scan(folder))
    (folder / "amber" / "gone.jpg").unlink()
    found = holdout_scores.worths_on(trained, given, CPU)
    assert (found.photos, found.unreadable) == (6, 2)
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert replace(one, photos_per_second=0.0) == replace(other, photos_per_second=0.0)


@pytest.mark.parametrize("gone", [False, True])
def test_photos_of_which_none_can_be_read_are_an_error(
    gone: bool, trained: fg.Run, tmp_path: Path
) -> None:
    folder = others(tmp_path / "others")
    for path in folder.glob("*/*.jpg"):
        path.write_bytes(b"<html></html>")
    given = holdout_scores.unseen(trained, fg.scan(folder))
    if gone:
        shutil.rmtree(folder)
    with pytest.raises(DataError, match="none of 6 labelled photos") as error:
        holdout_scores.worths_on(trained, given, CPU)
    assert str(given.files[0]) in error.value.message
    assert "--photos-root" in error.value.hint


@pytest.mark.parametrize("batch_size", [1, 7, 4096])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_the_speed_is_measured_with_any_number_of_photos_at_once(
    batch_size: int, count: int, trained: fg.Run, parts: Path
) -> None:
    photos = sorted((parts / "val").glob("*/*.jpg"))[:count]
    machine = replace(CPU, batch_size=batch_size)
    assert holdout_scores.speed(trained.classifier(0), photos, machine) > 0


def test_the_first_batch_does_not_count(
    trained: fg.Run, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that ticks once a batch, and a first batch of an hour."""
    clock = iter([0.0, 2.0])
    asked: list[int] = []
    machines: list[Machine] = []

    def logits(
        architecture: object, members: object, paths: list[Path], *rest: Any
    ) -> Iterator[Any]:
        asked.append(len(paths))
        machines.append(rest[0])
        for _ in range(0, len(paths), rest[0].batch_size):
            yield type("Batch", (), {"photos": range(rest[0].batch_size)})

    monkeypatch.setattr("fieldguide.predict.inference.logits", logits)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    photos = sorted((parts / "val").glob("*/*.jpg"))
    machine = Machine("cpu", workers=2, batch_size=2)
    assert holdout_scores.speed(trained.classifier(0), photos, machine) == 8 / 2.0
    assert asked == [10]
    assert machines == [replace(machine, workers=0)]  # others would work before the clock starts


# --- the soup, trained on ------------------------------------------------------------------------


def test_a_tuned_model_is_the_soup_after_training_on_all_photos(own: fg.Run) -> None:
    with pytest.raises(UsageError, match="no model `tuned` yet") as refused:
        own.combination("tuned")
    assert refused.value.hint == f"fieldguide soup {own.folder} --rule tuned"
    steps, plans = [], []
    watcher = Watcher(on_step=lambda: steps.append(1), on_plan=plans.append)
    folder = holdout_scores.merge_into_run(own, "tuned", machine=CPU, watcher=watcher)
    assert len(steps) == plans[0].steps > 0
    assert own.models() == {"tuned": folder}
    model, soup = Classifier.load(folder), own.classifier("soup")
    assert model.merged and model.card.members == ("tuned",)
    assert model.card.provenance["made"]["epochs"] == own.recipe.epochs // 2
    moved = {
        name: float((tensor - soup.members[0][name]).abs().max())
        for name, tensor in model.members[0].items()
        if tensor.is_floating_point() and ".running_" not in name
    }
    assert min(moved.values()) > 0 and max(moved.values()) < 0.5
    assert not np.array_equal(predicted(own, "tuned"), predicted(own, "soup"))
    assert [row.name for row in holdout_scores.worths(own, CPU).rows][-1] == "tuned"


def test_tuning_that_was_stopped_goes_on_to_the_same_weights(own: fg.Run, tmp_path: Path) -> None:
    plans: list[Plan] = []
    whole = tuning.tuned(own, CPU, Watcher(on_plan=plans.append))
    left = iter([None] * (plans[0].steps // 2))

    def stop() -> None:
        if next(left, "stop"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning.tuned(own, CPU, Watcher(check_stop=stop), tmp_path)
    resumed: list[int] = []
    again = tuning.tuned(own, CPU, Watcher(on_resume=resumed.append), tmp_path)
    assert 0 < resumed[0] < plans[0].steps
    for name, tensor in whole.members[0].items():
        assert bool((tensor == again.members[0][name]).all()), name


def test_many_photos_are_trained_on_as_folds_are(
    own: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuning.tuned(own, CPU)
    monkeypatch.setattr(tuning, "MANY", 1)
    many = tuning.tuned(own, CPU)
    assert many.card.provenance["made"]["epochs"] == own.recipe.epochs
    start = own.classifier("soup").members[0]

    def moved(model: Classifier) -> float:
        return sum(
            float((tensor - start[name]).norm())
            for name, tensor in model.members[0].items()
            if name.endswith("weight")
        )

    assert moved(many) > moved(few) > 0


def test_tuning_needs_folds_that_were_trained(own: fg.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = own.recipe.replace(epochs=0, head_start="probe")
    monkeypatch.setattr(fg.Run, "recipe", property(lambda run: recipe))
    with pytest.raises(UsageError, match="trained no backbone"):
        tuning.tuned(own, CPU)
    with pytest.raises(UsageError, match="cannot be combined by `tuned`"):
        own.combination("tuned")


def test_tuned_has_no_other_batch_norm(own: fg.Run) -> None:
    with pytest.raises(UsageError, match="statistics of its own"):
        holdout_scores.merge_into_run(own, "tuned", batch_norm="recalibrate", machine=CPU)
