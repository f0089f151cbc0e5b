import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import small_fit

import fieldguide as fg
from fieldguide import merge
from fieldguide.analysis import metrics
from fieldguide.errors import DataError, UsageError
from fieldguide.predict.model import Machine
from fieldguide.storage import files
from fieldguide.study import landscape
from fieldguide.study.landscape import Landscape, on_line

CPU = Machine("cpu", workers=0)


@pytest.fixture(scope="module")
def kept(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """A run that holds its replicas; read only."""
    out = tmp_path_factory.mktemp("landscape") / "run"
    return small_fit(discs, out, keep_replicas=True, batch_norm="average", epochs=1)


@pytest.fixture(scope="module")
def found(kept: fg.Run) -> Landscape:
    return landscape.measure(kept, 1, machine=CPU)


def weights(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "head.weight": draw.normal(size=(3, 4)).astype(np.float32),
        "norm.running_mean": draw.normal(size=5).astype(np.float32),
        "norm.running_var": draw.uniform(0.01, 2, size=5).astype(np.float32),
        "norm.num_batches_tracked": np.array(10 + seed),
        "half": draw.normal(size=7).astype(np.float16),
    }


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype
        for name in one
    )


def at(found: Landscape, t: float, norm: str = "average") -> landscape.Point:
    (point,) = [each for each in found.points if (each.t, each.batch_norm) == (t, norm)]
    return point


def test_the_ends_are_the_ends_and_arguments_are_left_unchanged() -> None:
    one, other = weights(1), weights(2)
    for t, end in ((0.0, weights(1)), (1.0, weights(2))):
        mixed = on_line(one, other, t)
        mixed["norm.num_batches_tracked"] = end["norm.num_batches_tracked"]  # a counter: the larger
        assert same(mixed, end)
    assert same(one, weights(1)) and same(other, weights(2))


def test_the_middle_is_the_mean_that_merging_takes() -> None:
    copies = [weights(1), weights(2)]
    mean = merge.average([{k: torch.from_numpy(v) for k, v in each.items()} for each in copies])
    assert same(on_line(*copies, 0.5), {name: tensor.numpy() for name, tensor in mean.items()})


@pytest.mark.parametrize("t", landscape.PLACES)
def test_from_the_other_end_it_is_the_same_line(t: float) -> None:
    one, other = weights(1), weights(2)
    assert same(on_line(one, other, t), on_line(other, one, 1 - t))


def test_no_variance_falls_below_zero_beyond_the_ends() -> None:
    one, other = weights(1), weights(2)
    one["norm.running_var"] = np.full(5, 0.01, np.float32)
    other["norm.running_var"] = np.full(5, 2.0, np.float32)
    assert (on_line(one, other, -0.25)["norm.running_var"] == 0).all()
    one["norm.running_mean"], other["norm.running_mean"] = np.zeros(5), np.ones(5)
    assert np.allclose(on_line(one, other, -0.25)["norm.running_mean"], -0.25)


def test_both_ends_and_the_middle_are_measured_and_a_quarter_beyond() -> None:
    assert {0.0, 0.5, 1.0} <= set(landscape.PLACES)
    assert (min(landscape.PLACES), max(landscape.PLACES)) == (-0.25, 1.25)
    assert list(landscape.PLACES) == sorted(set(landscape.PLACES))


def test_between_replicas_the_middle_is_the_merged_model(found: Landscape, kept: fg.Run) -> None:
    middle = at(found, 0.5)
    assert (middle.loss, middle.accuracy) == (found.kept.loss, found.kept.accuracy)
    targets = kept.targets[kept.folds[1].test]
    assert middle.accuracy == metrics.accuracy(kept.logits(1), targets)
    loss = metrics.log_loss(metrics.softmax(kept.logits(1)), targets)
    assert middle.loss == pytest.approx(loss, rel=1e-5)
    assert (found.fold, found.photos, found.judged_on) == (1, 12, "test photos of fold 1")


def test_every_place_is_measured_with_both_kinds_of_batch_norm(found: Landscape) -> None:
    assert [(each.t, each.batch_norm) for each in found.points] == [
        (t, norm) for t in landscape.PLACES for norm in ("average", "recalibrate")
    ]
    assert at(found, 0.5).loss != at(found, 0.5, "recalibrate").loss


def test_at_the_ends_are_the_replicas(found: Landscape, kept: fg.Run) -> None:
    with (kept.fold_folder(1) / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for t, row in ((0.0, rows[0]), (1.0, rows[1])):
        assert at(found, t).loss == pytest.approx(float(row["test_loss"]), rel=1e-4)
        assert at(found, t).accuracy == pytest.approx(float(row["test_accuracy"]), abs=1e-5)


def test_it_does_not_matter_how_many_places_are_held_at_once(
    found: Landscape, kept: fg.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "HELD_BYTES", 1)
    done: list[int] = []
    again = landscape.measure(kept, 1, machine=CPU, progress=done.append)
    assert replace(again, seconds=found.seconds) == found
    assert done == list(range(1, len(landscape.PLACES) + 1))


def test_between_folds_photos_outside_of_them_judge(trained: fg.Run) -> None:
    found = landscape.measure(trained, 2, between="folds", machine=CPU)
    assert (found.one, found.other) == ("fold 2", "fold 0")
    assert (found.photos, found.judged_on) == (12, "photos outside all folds")
    paths = [trained.catalog.file(trained.catalog.photos[row]) for row in trained.outside]
    for t, fold in ((0.0, 2), (1.0, 0)):
        predictions = trained.classifier(fold).predict(paths, calibrated=False, machine=CPU)
        right = predictions.probabilities.argmax(axis=1) == trained.targets[trained.outside]
        assert at(found, t).accuracy == right.mean()


def test_between_folds_without_other_photos_one_fold_flatters_and_it_is_said(kept: fg.Run) -> None:
    found = landscape.measure(kept, 0, between="folds", machine=CPU)
    assert found.judged_on == "test photos of fold 0, which the other fold trained on"
    assert found.kept_name == "the plain soup of all 2 folds"
    # Of two folds the soup is the middle.
    assert found.kept.loss == pytest.approx(at(found, 0.5).loss, rel=1e-5)


def test_few_photos_are_drawn_from_the_seed(kept: fg.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape, "JUDGED_PHOTOS", 5)
    monkeypatch.setattr(landscape, "PLACES", (0.0,))
    one, other = (landscape.measure(kept, 0, machine=CPU) for _ in range(2))
    assert one.photos == 5 and one.points == other.points


def test_without_replicas_it_says_how_to_get_them(trained: fg.Run) -> None:
    with pytest.raises(UsageError, match="holds the weights of 0 replicas") as caught:
        landscape.measure(trained, 0, machine=CPU)
    assert "--keep-replicas" in caught.value.hint and "--between folds" in caught.value.hint


@pytest.mark.parametrize("between", ["replicas", "folds"])
def test_a_fold_that_is_not_trained_is_refused(
    between: landscape.Between, discs: Path, tmp_path: Path
) -> None:
    part = small_fit(discs, tmp_path / "run", fold=1, epochs=1)
    with pytest.raises(UsageError, match=r"fold 0 of .* is not trained") as caught:
        landscape.measure(part, 0, between=between, machine=CPU)
    assert caught.value.hint == "the folds that are: 1"
    with pytest.raises(UsageError, match=r"a line needs two"):
        landscape.measure(part, 1, between=between, machine=CPU)


def test_photos_that_are_gone_are_told(kept: fg.Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="photos are gone") as caught:
        landscape.measure(fg.Run(kept.folder, tmp_path), 0, machine=CPU)
    assert "--photos-root" in caught.value.hint


def test_photos_that_cannot_be_read_are_left_out(
    tmp_path: Path, draw_collection: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "PLACES", (0.5,))
    photos = draw_collection(tmp_path / "photos")
    run = small_fit(photos, tmp_path / "run", keep_replicas=True, epochs=1)
    lost = run.folds[0].test[0]
    path = run.catalog.file(run.catalog.photos[lost])
    path.write_bytes(b"broken")
    found = landscape.measure(run, 0, machine=CPU)
    assert found.photos == 11


@pytest.fixture
def own(kept: fg.Run, tmp_path: Path) -> fg.Run:
    return fg.Run(shutil.copytree(kept.folder, tmp_path / "run"))


def test_what_was_written_is_read(own: fg.Run, found: Landscape) -> None:
    assert landscape.read(own) is None
    path = landscape.write(own, found)
    assert path == own.folder / "landscape.json"
    assert landscape.read(own) == found


def test_a_loss_that_is_not_finite_is_none() -> None:
    logits = np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32)
    point = landscape._point(0.0, "none", logits, np.array([1, 1]))
    assert (point.loss, point.accuracy) == (None, 0.5)


def test_a_landscape_of_other_weights_is_not_read(own: fg.Run, found: Landscape) -> None:
    landscape.write(own, found)
    weights_file = own.fold_folder(1) / "weights.safetensors"
    weights_file.write_bytes(weights_file.read_bytes() + b" ")
    names = files.read_manifest(own.fold_folder(1))
    files.write_manifest(own.fold_folder(1), names)
    assert landscape.read(own) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: {},
        lambda content: [],
        lambda content: content | {"format": 99},
        lambda content: content | {"points": [{"t": "<script>"}]},
        lambda content: content | {"fold": 77},
        lambda content: {name: value for name, value in content.items() if name != "kept"},
    ],
)
def test_a_damaged_landscape_is_none(
    damage: Callable[[dict[str, object]], object], own: fg.Run, found: Landscape
) -> None:
    path = landscape.write(own, found)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    assert landscape.read(own) is None
    path.write_text("{")
    assert landscape.read(own) is None
