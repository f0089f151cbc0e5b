import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from photos import save
from torch import Tensor
from torchvision.transforms import v2

import fieldguide as fg
from fieldguide.errors import ResourceError, UsageError
from fieldguide.merge import Weights
from fieldguide.network import batch_norm, network
from fieldguide.network.network import build
from fieldguide.photos import pixels
from fieldguide.photos.augment import normalise
from fieldguide.photos.transforms import evaluation
from fieldguide.predict import inference
from fieldguide.predict.card import Architecture
from fieldguide.predict.model import Machine, Seen
from fieldguide.recipe import View

BAD = {
    "empty.jpg": (b"", "empty file"),
    "page.jpg": (b"<!DOCTYPE html><html></html>", "not an image"),
    "gone.jpg": (None, "file not found"),
}

CPU = Machine("cpu", workers=0)


class Known(NamedTuple):
    """An architecture, the weights of three folds, and twelve photos that mix the classes."""

    architecture: Architecture
    members: list[Weights]
    photos: list[Path]

    def look(
        self,
        photos: list[Path] | None = None,
        machine: Machine = CPU,
        views: tuple[View, ...] = (),
        members: list[Weights] | None = None,
    ) -> list[Seen]:
        asked = self.photos if photos is None else photos
        weights = members or self.members
        return list(inference.logits(self.architecture, weights, asked, machine, views))

    def body(self) -> network.Network:
        own = self.architecture
        settings = {"head": own.head, "classes": own.classes, "dropout": 0.0, "seed": 1}
        return build(own.backbone, weights="none", **settings)  # type: ignore[arg-type]

    def shown(self) -> list[Tensor]:
        own = self.architecture
        seen = evaluation(own.size, own.eval_resize, own.interpolation)
        return [seen(np.asarray(pixels.load(path))) for path in self.photos]


@pytest.fixture(scope="module")
def known(trained: fg.Run, parts: Path) -> Known:
    ingredients = trained.ingredients()
    photos = sorted((parts / "val").glob("*/*.jpg"), key=lambda path: (path.stem, path))
    return Known(ingredients.architecture, ingredients.fold_weights(trained.done), photos)


@pytest.fixture
def mixed(known: Known, tmp_path: Path) -> tuple[list[Path], dict[int, str]]:
    """Good photos among bad ones, and the reason of each bad one by its number."""
    for name, (content, _) in BAD.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    bad = {0: "empty.jpg", 2: "page.jpg", 3: "gone.jpg", 7: "empty.jpg", 8: "page.jpg"}
    good = iter(known.photos)
    files = [tmp_path / bad[n] if n in bad else next(good) for n in range(12 + len(bad))]
    return files, {n: BAD[name][1] for n, name in bad.items()}


def together(seen: list[Seen]) -> np.ndarray:
    return np.concatenate([batch.logits for batch in seen], axis=1)


@pytest.fixture(scope="module")
def expected(known: Known) -> np.ndarray:
    """All logits as torch gives them for one photo after another: (members, photos, classes)."""
    body = known.body().eval()
    scale = v2.ToDtype(torch.float32, scale=True)
    normal = v2.Normalize(known.architecture.mean, known.architecture.std)
    images = [normal(scale(image)) for image in known.shown()]
    found = []
    for weights in known.members:
        body.load_state_dict(dict(weights))
        with torch.no_grad():
            found.append(torch.cat([body(image[None]) for image in images]))
    return torch.stack(found).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_logits_are_those_of_torch_photo_by_photo_whatever_the_batch(
    batch_size: int, known: Known, expected: np.ndarray
) -> None:
    machine = replace(CPU, batch_size=batch_size)
    seen = known.look(machine=machine)
    assert np.concatenate([batch.photos for batch in seen]).tolist() == list(range(12))
    assert max(len(batch.photos) for batch in seen) <= batch_size
    found = together(seen)
    assert found.dtype == np.float32
    assert found.shape == (3, 12, 1, 3)
    np.testing.assert_allclose(found[:, :, 0], expected, atol=1e-5)


def test_unreadable_photos_are_named_and_no_other_photo_is_touched(
    known: Known, mixed: tuple[list[Path], dict[int, str]], expected: np.ndarray
) -> None:
    files, reasons = mixed
    for batch_size, workers in ((1, 0), (3, 0), (4, 2), (64, 0)):
        machine = Machine("cpu", workers, batch_size=batch_size)
        seen = known.look(files, machine)
        told = dict(pair for batch in seen for pair in batch.unreadable)
        assert told.keys() == reasons.keys()
        assert all(told[number].startswith(reason) for number, reason in reasons.items())
        numbers = np.concatenate([batch.photos for batch in seen]).tolist()
        assert numbers == [n for n in range(len(files)) if n not in reasons]
        np.testing.assert_allclose(together(seen)[:, :, 0], expected, atol=1e-5)


def test_a_batch_without_any_readable_photo_has_no_rows(known: Known, tmp_path: Path) -> None:
    gone = [tmp_path / f"{n}.jpg" for n in range(6)]
    views: tuple[tuple[View, ...], ...] = ((), ("flips",))
    for each in views:
        seen = known.look(gone, replace(CPU, batch_size=2), each)
        assert [batch.logits.shape[:2] for batch in seen] == [(3, 0)] * 3
        assert [n for batch in seen for n, _ in batch.unreadable] == list(range(6))


def test_no_photos_give_no_batches(known: Known) -> None:
    assert known.look([]) == []


def test_members_do_not_know_of_each_other(known: Known) -> None:
    def seen(some: list[Weights]) -> np.ndarray:
        return together(known.look(members=some))

    every = seen(known.members)
    for number, weights in enumerate(known.members):
        np.testing.assert_array_equal(seen([weights])[0], every[number])
    np.testing.assert_array_equal(seen(known.members[::-1]), every[::-1])


def test_views_are_beside_the_plain_one_which_stays_the_first(known: Known) -> None:
    numbers: tuple[tuple[tuple[View, ...], int], ...] = (
        (("flips",), 2),
        (("flips", "crops", "scales"), 20),
    )
    for views, number in numbers:
        machine = replace(CPU, batch_size=5)
        found = together(known.look(machine=machine, views=views))
        assert found.shape == (3, 12, number, 3)
        plain = together(known.look(machine=machine))
        np.testing.assert_allclose(found[:, :, 0], plain[:, :, 0], atol=1e-5)
        assert np.abs(found[:, :, 1] - found[:, :, 0]).max() > 1e-3


def test_photos_are_read_when_their_batch_is_asked_for(known: Known, opened: list[Path]) -> None:
    seen = inference.logits(*known, replace(CPU, batch_size=4))
    assert opened == []
    for batch in range(3):
        next(seen)
        assert opened == known.photos[: 4 * (batch + 1)]  # once for all members


def test_generator_threads_and_weights_are_left_as_they_were(known: Known) -> None:
    before = [
        {name: tensor.clone() for name, tensor in weights.items()} for weights in known.members
    ]
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    known.look(known.photos[:2])
    inference.recalibrated(known.architecture, known.members[0], known.photos[:3], CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    for weights, copy in zip(known.members, before, strict=True):
        assert all(torch.equal(weights[name], tensor) for name, tensor in copy.items())


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Lets the memory run out for more than so many photos at once; the batches that went through.

    The words are those of torch's own error on a CPU.
    """
    original, went = torch.func.functional_call, list[int]()

    def call(module: object, weights: object, arguments: tuple[Tensor], *, strict: bool) -> Tensor:
        if len(arguments[0]) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        went.append(len(arguments[0]))
        return original(module, weights, arguments, strict=strict)  # type: ignore[arg-type,no-any-return]

    monkeypatch.setattr(torch.func, "functional_call", call)
    return went


def test_where_memory_runs_out_photos_are_looked_at_in_smaller_parts(
    known: Known, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    went = limited(monkeypatch, most=2)
    found = together(known.look(members=known.members[:1]))
    np.testing.assert_allclose(found[:, :, 0], expected[:1], atol=1e-5)
    assert sum(went) == 12 and max(went) <= 2


def test_a_photo_too_large_for_the_memory_is_an_error_with_a_way_on(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, most=0)
    with pytest.raises(ResourceError, match="single photo of 32 pixels with test_resnet") as error:
        known.look()
    assert "--device cpu" in error.value.hint


def test_other_errors_of_torch_stay_what_they_are(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*arguments: object, strict: bool) -> None:
        raise RuntimeError("my mistake")

    monkeypatch.setattr(torch.func, "functional_call", call)
    with pytest.raises(RuntimeError, match="my mistake"):
        known.look()


def test_weights_that_lack_a_tensor_do_not_answer_with_random_ones(known: Known) -> None:
    for name in ("backbone.bn1.weight", "backbone.bn1.running_mean", max(known.members[0])):
        part = {key: tensor for key, tensor in known.members[0].items() if key != name}
        with pytest.raises(RuntimeError, match=re.escape(name)):
            known.look(known.photos[:2], members=[known.members[1], part])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "`batch_size` is below 1: 0"),
        ({"workers": -1}, "`workers` is below 0: -1"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(CPU, **settings)  # type: ignore[arg-type]


def test_an_unknown_view_is_answered_with_those_there_are(known: Known) -> None:
    """As users meet it: their types are not checked."""
    unchecked = inspect.unwrap(inference.logits)
    with pytest.raises(UsageError, match="no view `tilts`") as error:
        next(unchecked(*known, CPU, ("flips", "tilts")))
    assert "flips, crops, scales" in error.value.hint


def test_auto_precision_is_that_of_training_where_the_device_has_it(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = known.architecture
    fast = replace(architecture, precision="bfloat16")
    half = replace(architecture, precision="float16")
    for has_it in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_it=has_it: has_it)
        assert inference.precision_used(architecture, CPU) == "float32"
        assert inference.precision_used(fast, CPU) == ("bfloat16" if has_it else "float32")
        assert inference.precision_used(half, CPU) == "float32"
    assert inference.precision_used(architecture, replace(CPU, precision="bfloat16")) == "bfloat16"
    with pytest.raises(UsageError, match="GPU only"):
        inference.precision_used(architecture, replace(CPU, precision="float16"))


def test_precision_changes_rounding_alone(known: Known, expected: np.ndarray) -> None:
    machine = replace(CPU, precision="bfloat16")
    found = together(known.look(machine=machine))[:, :, 0]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_recalibration_measures_the_photos_that_can_be_read(
    known: Known, mixed: tuple[list[Path], dict[int, str]]
) -> None:
    own, body = known.architecture, known.body()
    network.load_weights(body, known.members[0])
    batch_norm.recalibrate(body, [normalise(torch.stack(known.shown()), own.mean, own.std)])
    expected = network.weights_of(body)
    for files in (known.photos, mixed[0]):
        found = inference.recalibrated(own, known.members[0], files, CPU)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)


def test_all_logits_leaves_out_what_cannot_be_read_and_says_which(
    known: Known, mixed: tuple[list[Path], dict[int, str]], expected: np.ndarray
) -> None:
    files, reasons = mixed
    found, rows = inference.all_logits(known.architecture, known.members, files, CPU)
    assert rows.tolist() == [n for n in range(len(files)) if n not in reasons]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_photo_of_any_shape_has_logits(known: Known, tmp_path: Path) -> None:
    sizes = [(1, 300), (300, 1), (8, 8), (500, 333)]
    files = [save(tmp_path / f"{n}.jpg", n, size) for n, size in enumerate(sizes)]
    seen = known.look(files, views=("crops", "scales"))
    assert together(seen).shape == (3, 4, 10, 3)
    assert np.isfinite(together(seen)).all()
