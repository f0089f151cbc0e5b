import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import small_fit
from PIL import Image

import fieldguide as fg
from fieldguide.analysis import calibration, metrics
from fieldguide.errors import ResourceError, UsageError
from fieldguide.predict.model import Machine
from fieldguide.runs import run as runs

CPU = Machine("cpu", workers=0)
SHORT: dict[str, Any] = {"epochs": 1, "warmup": 0.0, "replicas": 1, "merge": "none"}


def test_rows_at_once_change_nothing(trained: fg.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(runs._judged_rows(trained))
    assert len(whole) == sum(photo.split == "train" for photo in trained.catalog.photos)
    for at_once in (1, 7):
        monkeypatch.setattr(runs, "_AT_ONCE", at_once)
        assert list(runs._judged_rows(trained)) == whole


def test_photos_outside_are_the_labelled_val_part(trained: fg.Run) -> None:
    photos = [trained.catalog.photos[row] for row in trained.outside]
    assert [photo.split for photo in photos] == ["val"] * 12
    assert {photo.path for photo in photos} == {
        photo.path for photo in trained.catalog.photos if photo.split == "val"
    }
    trained_on = {row for fold in trained.folds for row in (*fold.train, *fold.test)}
    assert not trained_on & {*trained.outside}


def test_copies_of_training_photos_are_not_outside(parts: Path, tmp_path: Path) -> None:
    """Neither the same file nor the same picture written anew; nor is the test part."""
    photos = shutil.copytree(parts, tmp_path / "photos")
    (photos / "val" / "blue" / "same.jpg").write_bytes(
        (photos / "train" / "blue" / "000.jpg").read_bytes()
    )
    with Image.open(photos / "train" / "amber" / "000.jpg") as picture:
        picture.resize((60, 60)).save(photos / "val" / "amber" / "anew.jpg", quality=75)
    shutil.copytree(parts / "val" / "amber", photos / "test" / "amber")
    run = small_fit(photos, tmp_path / "run", fold=0, **SHORT)
    outside = {run.catalog.photos[row].path for row in run.outside}
    assert outside == {
        path.relative_to(parts).as_posix() for path in (parts / "val").glob("*/*.jpg")
    }


def test_folds_are_judged_by_their_saved_weights(trained: fg.Run) -> None:
    assert list(trained.judged) == [0, 1, 2]
    for fold, logits in trained.judged.items():
        np.testing.assert_array_equal(logits, trained.logits(fold))


# With this seed the folds choose different epochs.
STOPPING = SHORT | {"epochs": 4, "stop": "fold", "patience": 4, "head_rate": 0.02, "seed": 3}


@pytest.fixture(scope="module")
def stopping(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """Two folds that stopped by their own test parts; read only."""
    return small_fit(discs, tmp_path_factory.mktemp("stopping") / "run", **STOPPING)


def test_with_early_stopping_folds_are_judged_at_the_epoch_that_others_chose(
    stopping: fg.Run,
) -> None:
    for fold, other in ((0, 1), (1, 0)):
        targets = stopping.targets[stopping.folds[other].test]
        best = int(
            np.argmax(
                [metrics.accuracy(logits, targets) for logits in stopping.epoch_logits(other)]
            )
        )
        np.testing.assert_array_equal(stopping.judged[fold], stopping.epoch_logits(fold)[best])


def test_classifiers_are_made_from_logits_of_their_own_weights(stopping: fg.Run) -> None:
    """Also with early stopping, where scores judge what was not chosen by these photos."""
    run = fg.Run(stopping.folder)
    wrong = {
        fold: np.eye(3, dtype=np.float32)[run.targets[run.folds[fold].test] - 1]
        for fold in run.done
    }
    vars(run)["judged"] = wrong
    ingredients = run.ingredients()
    assert list(ingredients.judged) == run.done == [0, 1]
    for fold, logits in ingredients.judged.items():
        np.testing.assert_array_equal(logits, run.logits(fold))
        photos = [run.catalog.file(run.catalog.photos[row]) for row in run.folds[fold].test]
        said = run.classifier(fold).predict(photos, calibrated=False, machine=CPU).probabilities
        np.testing.assert_allclose(said, metrics.softmax(logits), atol=1e-5)
    logits = np.concatenate([run.logits(fold) for fold in run.done])
    targets = np.concatenate(list(ingredients.targets.values()))
    assert ingredients.temperature == calibration.fit_temperature(logits, targets)
    provenance = run.classifier().card.provenance
    assert provenance["out_of_fold_accuracy"] == run.scores.accuracy == 0.0
    assert metrics.accuracy(logits, targets) > 0
    assert provenance["out_of_fold_interval"] == list(run.scores.interval)


@pytest.mark.parametrize(
    ("combine", "members", "together"),
    [
        ("ensemble", ["fold 0", "fold 1", "fold 2"], "ensemble"),
        ("logits", ["fold 0", "fold 1", "fold 2"], "logits"),
        ("geometric", ["fold 0", "fold 1", "fold 2"], "geometric"),
        (1, ["fold 1"], "ensemble"),
        ("fold-1", ["fold 1"], "ensemble"),
        ("soup", ["soup"], "ensemble"),
        ("greedy", ["greedy"], "ensemble"),
        ("stock", ["stock"], "ensemble"),
    ],
)
def test_folds_are_combined_as_asked(
    combine: str | int, members: list[str], together: str, trained: fg.Run
) -> None:
    card = trained.classifier(combine, batch_norm="average").card
    assert card.members == tuple(members)
    assert card.combine == together
    assert card.classes == trained.classes


@pytest.mark.parametrize("combine", ["", "fold-", "fold-x", "soups", "fold--1"])
def test_an_unknown_way_to_combine_folds_is_answered_with_those_there_are(
    combine: str, trained: fg.Run
) -> None:
    with pytest.raises(UsageError, match=f"`{combine}`") as error:
        trained.classifier(combine)
    assert "ensemble, logits, geometric, soup, greedy, stock" in error.value.hint


@pytest.mark.parametrize("combine", [3, -1, "fold-12"])
def test_a_fold_that_is_not_there_is_answered_with_those_that_are(
    combine: str | int, trained: fg.Run
) -> None:
    with pytest.raises(UsageError, match=rf"`{combine}`") as error:
        trained.classifier(combine)
    assert "fold-0, fold-1, fold-2" in error.value.hint
    assert "fold-3" not in error.value.hint


@pytest.mark.parametrize(
    ("typed", "meant"), [("ensembel", "ensemble"), ("stok", "stock"), ("fold1", "fold-1")]
)
def test_a_typing_mistake_is_answered_with_the_nearest(
    typed: str, meant: str, trained: fg.Run
) -> None:
    with pytest.raises(UsageError, match=f"did you mean `{meant}`"):
        trained.combination(typed)


def test_ways_to_combine_have_one_name_each(trained: fg.Run) -> None:
    assert trained.combination(2) == trained.combination("fold-2") == "fold-2"
    assert {trained.combination(name) for name in runs.COMBINATIONS} == set(runs.COMBINATIONS)


def test_a_run_without_a_trained_fold_makes_no_classifier(trained: fg.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    for place in folder.rglob("manifest.json"):
        place.unlink()
    with pytest.raises(ResourceError, match="no fold of") as error:
        fg.Run(folder).classifier()
    assert "same fit command" in error.value.hint


def test_photos_of_a_run_may_lie_elsewhere(trained: fg.Run, parts: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(parts, tmp_path / "moved")
    elsewhere = fg.Run(trained.folder, photos=moved).ingredients()
    for one, other in zip(elsewhere.training, trained.ingredients().training, strict=True):
        assert one.relative_to(moved) == other.relative_to(parts)
    assert all(path.is_relative_to(moved) for path in elsewhere.outside.files)
    assert elsewhere.outside.hashes == tuple(
        trained.catalog.photos[row].sha256 for row in trained.outside
    )


def test_the_summary_holds_scaled_scores_and_an_interval_for_each(trained: fg.Run) -> None:
    found = json.loads((trained.folder / "summary.json").read_bytes())
    assert found == json.loads(json.dumps(runs.summary(trained)))
    rows = np.concatenate([trained.folds[fold].test for fold in trained.done])
    logits = np.concatenate([trained.judged[fold] for fold in trained.done])
    targets = trained.targets[rows]
    fold_of = np.repeat(trained.done, 8)
    scaled = calibration.cross_fitted(logits, targets, fold_of)
    assert found["temperature"] == calibration.fit_temperature(logits, targets)
    assert found["scaled_log_loss"] == metrics.log_loss(scaled, targets)
    assert found["scaled_calibration_error"] == metrics.calibration_error(scaled, targets)
    assert found["top_5_accuracy"] is None  # of three classes
    names = {"accuracy", "balanced_accuracy", "macro_f1", "log_loss"}
    assert found["intervals"].keys() == names
    for name in names:
        low, high = found["intervals"][name]
        assert low <= found[name] <= high
    assert found["intervals"]["accuracy"] == found["accuracy_interval"]
    assert found["photos"] == 24


def test_each_class_is_scored_out_of_fold(trained: fg.Run) -> None:
    found = trained.per_class
    assert found.support.tolist() == [8, 8, 8]
    assert np.mean(found.recall) == pytest.approx(trained.scores.balanced_accuracy)
    assert np.mean(found.f1) == pytest.approx(trained.scores.macro_f1)
