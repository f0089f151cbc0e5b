"""Trust: what confidences, sets and thresholds are worth, out of fold."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pages import words

import fieldguide as fg
from fieldguide.analysis import metrics
from fieldguide.report import trust
from fieldguide.report.judged import Judged, judge


def drawn(photos: int, *, sharpness: float = 1.0, classes: int = 4, seed: int = 0) -> Judged:
    """Photos whose classes are drawn from the probabilities themselves, then sharpened."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, size=(photos, classes))
    honest = metrics.softmax(logits)
    targets = (honest.cumsum(axis=1) < rng.uniform(size=(photos, 1))).sum(axis=1).clip(max=3)
    fold_of = rng.integers(0, 3, photos)
    return Judged(np.arange(photos), fold_of, targets, logits * sharpness)


def test_the_photos_are_those_of_the_folds_in_their_order(trained: fg.Run) -> None:
    judged = judge(trained)
    rows = np.concatenate([trained.folds[fold].test for fold in trained.done])
    assert (judged.targets == trained.targets[rows]).all()
    assert metrics.accuracy(judged.probabilities, judged.targets) == trained.scores.accuracy
    assert metrics.log_loss(judged.scaled, judged.targets) == trained.scores.scaled_log_loss
    assert [trained.catalog.photos[row].fold for row in rows] == judged.fold_of.tolist()


def test_bins_count_every_photo_once_before_and_after() -> None:
    judged = drawn(500)
    bins = trust.reliability_bins(judged, np.arange(500))
    for kind, probabilities in ((trust.BEFORE, judged.probabilities), (trust.AFTER, judged.scaled)):
        own = [row for row in bins if row["kind"] == kind]
        assert sum(row["photos"] for row in own) == 500
        gaps = sum(row["photos"] * abs(row["accuracy"] - row["confidence"]) for row in own)
        error = metrics.calibration_error(probabilities, judged.targets)
        assert gaps / 500 == pytest.approx(error)
        assert all(row["low"] <= row["accuracy"] <= row["high"] for row in own)


def test_the_tendency_is_told_by_name() -> None:
    assert trust.tendency(drawn(5000, sharpness=3.0)).startswith("overconfident: mean")
    assert trust.tendency(drawn(5000, sharpness=0.4)).startswith("underconfident: mean")
    assert trust.tendency(drawn(5000)).startswith("well calibrated on average: mean")


def test_a_large_collection_is_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = drawn(400)
    monkeypatch.setattr(trust, "CELLS", 400)
    found, photos = trust.coverages(judged, seed=0)
    assert photos == 100
    assert set(found) == {"split", "adaptive"}
    assert [each.asked for each in found["split"]] == list(trust.COVERAGES)
    assert trust.coverages(judged, seed=0) == (found, photos)


def test_the_section_tells_the_scores_of_the_run(trained: fg.Run) -> None:
    text = words(trust.section(trained))
    scores = trained.scores
    assert f"from {scores.calibration_error:.3f} to {scores.scaled_calibration_error:.3f}" in text
    assert f"A temperature of {scores.temperature:.2f}" in text
    assert trust.section(trained).count('<figure class="chart">') == 3


def test_with_one_fold_nothing_is_scaled_and_no_sets_are_drawn(
    trained: fg.Run, tmp_path: Path
) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/folds/1")
    shutil.rmtree(tmp_path / "run/folds/2")
    body = trust.section(fg.Run(tmp_path / "run"))
    text = words(body)
    assert "nothing is scaled here" in text
    assert "only one fold is done" in text
    assert body.count('<figure class="chart">') == 2
