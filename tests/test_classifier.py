import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from fits import small_fit
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as load_arrays

import fieldguide as fg
from fieldguide.analysis import calibration, metrics
from fieldguide.analysis.conformal import Sets
from fieldguide.errors import ResourceError, UsageError
from fieldguide.predict import inference
from fieldguide.predict.card import CARD, Combine
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.inputs import Input
from fieldguide.predict.model import Machine, Seen, combined, member_probabilities
from fieldguide.predict.tables import Predictions
from fieldguide.recipe import View
from fieldguide.storage import files

CPU = Machine("cpu", workers=0)
WAYS: tuple[Combine, ...] = get_args(Combine)


@pytest.fixture(scope="module")
def ensemble(trained: fg.Run) -> Classifier:
    return trained.classifier("ensemble")


@pytest.fixture(scope="module")
def photos(parts: Path) -> list[Path]:
    """Twelve outside the folds, in an order that mixes the classes."""
    return sorted((parts / "val").glob("*/*.jpg"), key=lambda path: (path.stem, path))


@pytest.fixture
def mixed(photos: list[Path], tmp_path: Path) -> list[Path]:
    """Bad files among eight good ones, one after each."""
    whole = photos[0].read_bytes()
    contents = {"empty": b"", "page": b"<html></html>", "cut": whole[: len(whole) // 3]}
    for name, content in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    bad = [tmp_path / f"{name}.jpg" for name in (*contents, "gone")]
    return [each for pair in zip(photos, 2 * bad, strict=False) for each in pair]


def names(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(map(str, paths))


def some_logits(views: int, members: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (members, 5, views, 3)).astype(np.float32)


def together(logits: np.ndarray, way: Combine, temperature: float = 1.0) -> np.ndarray:
    by_member = member_probabilities(logits, temperature)
    return combined(logits, by_member, temperature, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_whatever_the_way_probabilities_sum_to_one_and_order_does_not_matter(
    way: Combine, views: int, temperature: float
) -> None:
    logits = some_logits(views)
    found = together(logits, way, temperature)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(together(logits[::-1], way, temperature), found)
    np.testing.assert_allclose(together(logits[:, :, ::-1], way, temperature), found)
    np.testing.assert_allclose(together(logits[:, ::-1], way, temperature), found[::-1])


def test_ensemble_logits_and_geometric_are_the_means_they_are_called_after() -> None:
    logits = some_logits(views=3).astype(np.float64)
    each = metrics.softmax((logits / 2).reshape(-1, 3)).reshape(logits.shape)
    np.testing.assert_allclose(together(logits, "ensemble", 2.0), each.mean(axis=(0, 2)))
    plain = metrics.softmax(logits.mean(axis=(0, 2)) / 2)
    np.testing.assert_allclose(together(logits, "logits", 2.0), plain)
    product = each.mean(axis=2).prod(axis=0) ** (1 / 4)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(together(logits, "geometric", 2.0), expected)


def test_a_class_ruled_out_by_one_member_does_not_make_the_geometric_mean_fail() -> None:
    logits = np.array([[[[0.0, 2000.0]]], [[[0.0, 0.0]]]], dtype=np.float32)
    found = together(logits, "geometric")
    assert np.isfinite(found).all()
    assert found[0, 1] > 0.999


def test_a_classifier_answers_as_its_card_says(trained: fg.Run, photos: list[Path]) -> None:
    ingredients = trained.ingredients()
    logits = np.concatenate(
        [
            batch.logits
            for batch in inference.logits(
                ingredients.architecture,
                ingredients.fold_weights(trained.done),
                photos,
                CPU,
                ("flips",),
            )
        ],
        axis=1,
    )
    for way in WAYS:
        found = trained.classifier(way).predict(photos, views=("flips",), machine=CPU)
        expected = together(logits, way, ingredients.temperature)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_each_fold_says_of_its_test_photos_what_was_said_out_of_fold(trained: fg.Run) -> None:
    for fold in trained.folds:
        tested = [trained.catalog.file(trained.catalog.photos[row]) for row in fold.test]
        model = trained.classifier(fold.index)
        logits = trained.logits(fold.index)
        plain = model.predict(tested, calibrated=False, machine=CPU)
        assert plain.names == names(tested)
        assert plain.classes == trained.classes
        np.testing.assert_allclose(plain.probabilities, metrics.softmax(logits), atol=1e-5)
        scaled = model.predict(tested, machine=CPU)
        expected = calibration.scaled(logits, trained.scores.temperature)
        np.testing.assert_allclose(scaled.probabilities, expected, atol=1e-5)
        assert plain.labels == scaled.labels
        assert abs(trained.scores.temperature - 1) > 0.01  # or the two could not be told apart


def test_a_photo_that_cannot_be_read_has_its_reason_in_place_of_a_result(
    ensemble: Classifier, mixed: list[Path]
) -> None:
    for sets in (None, Sets(0.8)):
        found = ensemble.predict(mixed, sets=sets, machine=replace(CPU, batch_size=3))
        assert found.names == names(mixed)
        reasons = ["empty file", "not an image (HTML)", "truncated", "file not found"]
        assert [status for status in found.status if status != "ok"] == [
            f"unreadable: {reason}" for reason in 2 * reasons
        ]
        assert np.isnan(found.probabilities[1::2]).all()
        assert found.labels[1::2] == (None,) * 8
        np.testing.assert_allclose(found.probabilities[::2].sum(axis=1), 1)
        if found.sets is not None:
            assert not found.sets[1::2].any()


def test_nothing_to_predict_is_no_error(ensemble: Classifier) -> None:
    found = ensemble.predict([])
    assert (len(found), found.classes) == (0, ensemble.classes)
    assert ensemble.predict([], sets=Sets(0.9)).sets is not None


def test_a_folder_a_table_and_a_photo_can_be_asked_about(
    ensemble: Classifier, parts: Path, photos: list[Path], tmp_path: Path
) -> None:
    folder = ensemble.predict(parts / "val", machine=CPU)
    assert folder.names == tuple(
        sorted(path.relative_to(parts / "val").as_posix() for path in photos)
    )
    table = tmp_path / "list.csv"
    table.write_text("path\n" + "".join(f"{path}\n" for path in photos[:2]))
    listed = ensemble.predict(str(table), machine=CPU)
    alone = ensemble.predict(photos[0], machine=CPU)
    np.testing.assert_allclose(listed.probabilities[:1], alone.probabilities, atol=1e-6)
    row = folder.names.index(photos[0].relative_to(parts / "val").as_posix())
    np.testing.assert_allclose(folder.probabilities[row], alone.probabilities[0], atol=1e-6)


def test_a_catalog_can_be_asked_about_as_it_is(ensemble: Classifier, parts: Path) -> None:
    catalog = fg.scan(parts / "val")
    found = ensemble.predict(catalog, machine=CPU)
    assert found.names == tuple(photo.path for photo in catalog.photos)
    files = [catalog.file(photo) for photo in catalog.photos]
    expected = ensemble.predict(files, machine=CPU).probabilities
    np.testing.assert_array_equal(found.probabilities, expected)


def test_a_classifier_is_told_without_its_numbers(ensemble: Classifier) -> None:
    assert "fold 0" in repr(ensemble)
    assert "tensor" not in repr(ensemble) and "array" not in repr(ensemble)


CLASSES = 3


def pretended(numbers: Sequence[int]) -> np.ndarray:
    """Logits that tell of which photo they are."""
    return np.array([[number, -number / 2, 1.0] for number in numbers]).reshape(-1, CLASSES) / 10


def pretend_to_look(monkeypatch: pytest.MonkeyPatch, unreadable: set[int]) -> list[int]:
    """Puts a look at a photo's name in the place of a network; how many batches were asked for."""
    asked = list[int]()

    def logits(
        architecture: object,
        members: Sequence[object],
        paths: Sequence[Path],
        machine: Machine,
        views: Sequence[View],
    ) -> Iterator[Seen]:
        numbers = [int(path.stem) for path in paths]
        for start in range(0, len(paths), machine.batch_size):
            asked.append(start)
            batch = range(start, min(start + machine.batch_size, len(paths)))
            read = [place for place in batch if numbers[place] not in unreadable]
            found = pretended([numbers[place] for place in read])[None, :, None, :]
            yield Seen(
                np.array(read, dtype=np.int64),
                np.repeat(found, len(members), axis=0).astype(np.float32),
                tuple((place, "damaged") for place in batch if numbers[place] in unreadable),
            )

    monkeypatch.setattr(inference, "logits", logits)
    return asked


@given(
    kinds=st.lists(st.sampled_from(["good", "missing", "unreadable"]), max_size=12),
    batch_size=st.integers(1, 5),
    with_sets=st.booleans(),
)
def test_row_n_belongs_to_photo_n_for_any_mixture(
    ensemble: Classifier, kinds: list[str], batch_size: int, with_sets: bool
) -> None:
    asked = [
        Input(f"photo {n}", None if kind == "missing" else Path(f"{n}.jpg"), "file not found")
        if kind == "missing"
        else Input(f"photo {n}", Path(f"{n}.jpg"))
        for n, kind in enumerate(kinds)
    ]
    unreadable = {n for n, kind in enumerate(kinds) if kind == "unreadable"}
    with pytest.MonkeyPatch.context() as patch:
        pretend_to_look(patch, unreadable)
        sets = Sets(0.9) if with_sets else None
        machine = replace(CPU, batch_size=batch_size)
        chunks = list(ensemble.stream(asked, sets=sets, machine=machine))
    if not chunks:
        assert not kinds
        return
    found = Predictions.concatenate(chunks)
    assert found.names == tuple(photo.name for photo in asked)
    reasons = {"good": "", "missing": "file not found", "unreadable": "damaged"}
    assert found.problems == tuple(reasons[kind] for kind in kinds)
    good = [n for n, kind in enumerate(kinds) if kind == "good"]
    expected = calibration.scaled(pretended(good), ensemble.card.temperature)
    np.testing.assert_allclose(found.probabilities[good], expected, atol=1e-6)
    assert (found.sets is not None) == with_sets


def test_rows_come_batch_by_batch_and_nothing_is_looked_at_in_advance(
    ensemble: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretend_to_look(monkeypatch, set())
    chunks = ensemble.stream(
        [Input(str(n), Path(f"{n}.jpg")) for n in range(10)], machine=replace(CPU, batch_size=4)
    )
    assert asked == []
    sizes = []
    for chunk in chunks:
        sizes.append(len(chunk))
        assert len(asked) == len(sizes)
    assert sizes == [4, 4, 2]


def test_without_views_the_plain_one_counts_and_with_them_it_is_one_of_several(
    ensemble: Classifier, photos: list[Path]
) -> None:
    plain = ensemble.predict(photos, machine=CPU).probabilities
    np.testing.assert_array_equal(
        ensemble.predict(photos, views=(), machine=CPU).probabilities, plain
    )
    seen = inference.logits(
        ensemble.card.architecture, ensemble.members, photos, CPU, ("flips", "scales")
    )
    logits = np.concatenate([batch.logits for batch in seen], axis=1)
    assert logits.shape[2] == 4
    each = [
        together(logits[:, :, [view]], "ensemble", ensemble.card.temperature) for view in range(4)
    ]
    np.testing.assert_allclose(each[0], plain, atol=1e-5)
    views = ensemble.predict(photos, views=("flips", "scales"), machine=CPU).probabilities
    np.testing.assert_allclose(views, np.mean(each, axis=0), atol=1e-5)
    assert np.abs(views - plain).max() > 1e-3


@pytest.mark.parametrize("method", ["split", "adaptive"])
@pytest.mark.parametrize("per_class", [False, True])
def test_sets_grow_with_the_coverage_that_is_asked_for(
    ensemble: Classifier, photos: list[Path], method: Any, per_class: bool
) -> None:
    found = [
        ensemble.predict(photos, sets=Sets(coverage, method, per_class), machine=CPU).sets
        for coverage in (0.05, 0.3, 0.6, 0.9, 0.999)
    ]
    for smaller, larger in itertools.pairwise(found):
        assert smaller is not None and larger is not None
        assert (smaller <= larger).all()
    assert found[-1] is not None and found[-1].all()  # 24 known photos can promise no 0.999
    assert found[0] is not None and not found[0].all()


def test_members_are_calibrated_by_the_photos_of_their_own_folds(trained: fg.Run) -> None:
    known = trained.classifier("ensemble").out_of_fold
    assert len(known.targets) == 24
    for fold in trained.folds:
        probabilities = calibration.scaled(trained.logits(fold.index), trained.scores.temperature)
        targets = trained.targets[fold.test]
        own = probabilities[np.arange(len(targets)), targets]
        mine = known.members == fold.index
        np.testing.assert_array_equal(known.targets[mine], targets)
        np.testing.assert_allclose(known.split[mine], 1 - own)
        before = (probabilities * (probabilities > own[:, None])).sum(axis=1)
        np.testing.assert_allclose(known.adaptive[mine], before, atol=1e-12)
        alone = trained.classifier(fold.index).out_of_fold
        assert set(alone.members.tolist()) == {0}
        np.testing.assert_array_equal(alone.split, known.split[mine])
        np.testing.assert_array_equal(alone.targets, targets)


def test_sets_hold_the_classes_that_look_no_stranger_than_known_ones(
    trained: fg.Run, photos: list[Path]
) -> None:
    """By brute force over every class and photo, for one fold: split conformal prediction."""
    model = trained.classifier(0)
    found = model.predict(photos, sets=Sets(0.7), machine=CPU)
    known = np.sort(model.out_of_fold.split)
    threshold = known[int(np.ceil(0.7 * (len(known) + 1))) - 1]
    assert found.sets is not None
    np.testing.assert_array_equal(found.sets, 1 - found.probabilities <= threshold)


def test_sets_need_calibrated_probabilities(ensemble: Classifier, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match="need calibrated probabilities"):
        ensemble.predict(photos, sets=Sets(0.9), calibrated=False, machine=CPU)


@pytest.fixture(scope="module")
def saved_ensemble(ensemble: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return ensemble.save(tmp_path_factory.mktemp("classifiers") / "new" / "ensemble")


def test_a_classifier_survives_its_folder_bit_for_bit(
    ensemble: Classifier, saved_ensemble: Path, photos: list[Path]
) -> None:
    again = Classifier.load(saved_ensemble)
    assert again.card == ensemble.card
    assert (again.parameters, again.nbytes) == (ensemble.parameters, ensemble.nbytes)
    for sets in (None, Sets(0.8), Sets(0.8, "adaptive", per_class=True)):
        one, other = (model.predict(photos, sets=sets, machine=CPU) for model in (ensemble, again))
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.sets, other.sets)  # type: ignore[arg-type]


def test_nothing_in_the_folder_is_pickled(saved_ensemble: Path) -> None:
    assert sorted(path.name for path in saved_ensemble.iterdir()) == [
        "classifier.json",
        "manifest.json",
        *(f"member-{n}.safetensors" for n in range(3)),
        "out-of-fold.safetensors",
    ]
    for path in saved_ensemble.glob("*.safetensors"):
        load_arrays(path.read_bytes())
    for path in saved_ensemble.glob("*.json"):
        json.loads(path.read_bytes())


def test_the_folder_names_no_place_of_this_machine(
    saved_ensemble: Path, trained: fg.Run, parts: Path
) -> None:
    places = {str(parts), str(trained.folder), str(Path.home()), str(Path.cwd()), sys.prefix}
    for path in saved_ensemble.iterdir():
        content = path.read_bytes()
        assert not [place for place in places if place != "/" and place.encode() in content], path


def test_weights_from_a_file_are_named_without_their_folder(
    trained: fg.Run, discs: Path, tmp_path: Path
) -> None:
    place = tmp_path / "mine" / "first.safetensors"
    place.parent.mkdir()
    shutil.copy(trained.folder / "start.safetensors", place)
    run = small_fit(
        discs, tmp_path / "run", fold=0, epochs=1, warmup=0.0, weights=str(place), replicas=1
    )
    card = run.classifier(0).save(tmp_path / "saved") / CARD
    assert str(tmp_path) not in card.read_text("utf-8")
    assert json.loads(card.read_bytes())["provenance"]["recipe"]["weights"] == "first.safetensors"


def test_the_card_tells_what_the_classifier_is(saved_ensemble: Path, trained: fg.Run) -> None:
    card = json.loads((saved_ensemble / CARD).read_bytes())
    assert card["format"] == 1
    assert card["classes"] == list(trained.classes)
    assert card["members"] == ["fold 0", "fold 1", "fold 2"]
    assert card["temperature"] == trained.scores.temperature
    assert card["architecture"]["size"] == 32
    made = card["provenance"]
    assert made["made"] == {"folds": [0, 1, 2]}
    assert made["training_photos"] == 24
    assert made["out_of_fold_accuracy"] == trained.scores.accuracy
    told = card["calibration"]
    assert told["photos"] == 24
    assert told["before"]["log_loss"] == pytest.approx(trained.scores.log_loss)
    assert told["after"]["log_loss"] == pytest.approx(trained.scores.scaled_log_loss)
    assert sum(told["after"]["reliability"]["photos"]) == 24


FILES = ("classifier.json", "manifest.json", "member-1.safetensors", "out-of-fold.safetensors")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_file_is_named(
    name: str, damage: str, saved_ensemble: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(saved_ensemble, tmp_path / "copy")
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        (place / name).unlink()
    else:
        (place / name).write_bytes(content if damage == "bit" else content[:-10])
    expected = UsageError if (name, damage) == (CARD, "gone") else ResourceError
    with pytest.raises(expected) as error:
        Classifier.load(place)
    told = str(error.value)
    if name == "manifest.json" and damage == "bit":  # whatever the bit belonged to is named
        assert any(each in told for each in (*FILES, "member-"))
    else:
        assert name in told


@pytest.mark.parametrize("content", ['{"format": 2}', '{"classes": []}', "[]", "{}", "[1"])
def test_a_card_that_cannot_be_read_is_refused_by_name(
    content: str, saved_ensemble: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(saved_ensemble, tmp_path / "copy")
    (place / CARD).write_text(content)
    recorded = list(files.read_manifest(place))
    files.write_manifest(place, recorded)
    with pytest.raises(ResourceError, match=r"classifier\.json"):
        Classifier.load(place)


def test_another_format_is_not_guessed_at(saved_ensemble: Path, tmp_path: Path) -> None:
    place = shutil.copytree(saved_ensemble, tmp_path / "copy")
    card = json.loads((place / CARD).read_bytes())
    files.write_json(place / CARD, card | {"format": 2})
    files.write_manifest(place, list(files.read_manifest(place)))
    with pytest.raises(ResourceError, match="unknown format") as error:
        Classifier.load(place)
    assert "version of fieldguide" in error.value.hint


def test_nothing_is_written_where_something_lies(ensemble: Classifier, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UsageError, match="is there already"):
            ensemble.save(place)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="no classifier"):
        Classifier.load(tmp_path)


def test_a_killed_save_leaves_no_classifier(
    ensemble: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_manifest", stop)
        ensemble.save(tmp_path / "saved")
    assert [*tmp_path.iterdir()] == []
    Classifier.load(ensemble.save(tmp_path / "saved"))


def test_parameters_and_bytes_are_those_of_all_members(
    trained: fg.Run, ensemble: Classifier, saved_ensemble: Path
) -> None:
    one = trained.classifier(0)
    assert one.parameters == trained.environment["parameters"]
    assert ensemble.parameters == 3 * one.parameters
    assert ensemble.nbytes == 3 * one.nbytes
    on_disk = sum(path.stat().st_size for path in saved_ensemble.glob("member-*.safetensors"))
    assert ensemble.nbytes <= on_disk < 1.1 * ensemble.nbytes


def test_classes_of_any_name_go_round(ensemble: Classifier, tmp_path: Path) -> None:
    odd = ("<script>", 'a\n"b"', "=cmd|'/c'!A1\udcff")
    model = replace(ensemble, card=replace(ensemble.card, classes=odd))
    assert Classifier.load(model.save(tmp_path / "odd")).classes == odd
