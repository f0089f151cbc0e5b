import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from photos import photograph
from PIL import Image
from reference_transforms import evaluation_transform, training_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from fieldguide.photos import transforms
from fieldguide.photos.augment import Augmentation, view_transform
from fieldguide.photos.decoding import LONGEST

MEAN = (0.485, 0.456, 0.406)
MODES = ["nearest", "bilinear", "bicubic"]
POLICIES = ["none", "randaugment", "trivialaugment", "augmix"]

CROPS = Augmentation(
    size=32,
    interpolation="bilinear",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    color_jitter=0.0,
    jitter=(0.4, 0.4, 0.4, 0.5),
    grayscale=0.0,
    policy="none",
    erasing=0.0,
)

# Of square pictures of the size asked for, nothing is cropped or resampled.
WHOLE = replace(CROPS, size=64, crop_scale=(1.0, 1.0), flip=0.0)
EVERYTHING = replace(CROPS, color_jitter=0.8, grayscale=0.2, erasing=0.5)

shares = st.sampled_from([0.0, 0.3, 1.0])
strengths = st.sampled_from([0.0, 0.2, 0.4])
settings_of_all_kinds = st.builds(
    Augmentation,
    size=st.integers(1, 23) | st.integers(24, 48),
    interpolation=st.sampled_from(MODES),
    crop_scale=st.sampled_from([(0.08, 1.0), (0.35, 1.0), (1.0, 1.0), (0.01, 0.02)]),
    flip=shares,
    color_jitter=shares,
    jitter=st.tuples(strengths, strengths, strengths, st.sampled_from([0.0, 0.02, 0.5])),
    grayscale=shares,
    policy=st.sampled_from(POLICIES),
    erasing=shares,
)
seeds = st.integers(0, 2**63 - 1)
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


def both(settings: Augmentation, picture: Image.Image, seed: int) -> tuple[Tensor, Tensor, bool]:
    """Our pixels, torchvision's, and whether both left their generators in the same state."""
    torch.manual_seed(seed)
    expected = training_transform(settings, MEAN)(picture)
    own = torch.Generator()
    with mock.patch.object(transforms, "Generator", return_value=own):
        found = transforms.training(settings, MEAN)(np.asarray(picture), seed)
    return found, expected, torch.equal(own.get_state(), torch.default_generator.get_state())


def differences(found: Any, expected: Any) -> NDArray[np.int64]:
    found, expected = np.asarray(found), np.asarray(expected)
    assert (found.shape, found.dtype) == (expected.shape, np.dtype(np.uint8))
    return np.abs(found.astype(np.int64) - expected)


def planes_of(picture: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


@given(settings_of_all_kinds, sizes, seeds)
def test_draws_and_pictures_are_those_of_torchvision(
    settings: Augmentation, size: tuple[int, int], seed: int
) -> None:
    """As many draws of the same kinds: the generators end in the same state.

    A crop, flip, operation, sign or box of its own would be tens of levels off on average.
    Measured over 2,700 pictures of 64 pixels: 1.14 levels in the worst; 0.03 on average.
    """
    found, expected, same = both(settings, photograph(seed % 7, size), seed)
    assert same
    off = differences(found, expected)
    assert settings.size < 24 or off.mean() <= 2.5


@given(sizes, seeds, st.tuples(strengths, st.just(1.0)))
def test_nearest_crops_and_flips_are_equal(
    size: tuple[int, int], seed: int, scale: tuple[float, float]
) -> None:
    settings = replace(CROPS, interpolation="nearest", crop_scale=(max(scale[0], 0.01), 1.0))
    found, expected, _ = both(settings, photograph(1, size), seed)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("interpolation", "most"), [("bilinear", 1), ("bicubic", 4)])
@pytest.mark.parametrize("size", [(40, 30), (150, 200), (33, 32), (300, 7), (1, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_crops_and_flips_are_equal_but_for_rounding(
    seed: int, size: tuple[int, int], interpolation: Any, most: int
) -> None:
    settings = replace(CROPS, interpolation=interpolation)
    found, expected, _ = both(settings, photograph(seed, size), seed)
    off = differences(found, expected)
    assert off.max() <= most and off.mean() <= 0.35


@given(seeds)
def test_without_resampling_crops_flips_grey_and_boxes_are_equal(seed: int) -> None:
    settings = replace(WHOLE, flip=0.5, grayscale=0.5, erasing=0.7)
    found, expected, _ = both(settings, photograph(2, (64, 64)), seed)
    assert torch.equal(found, expected)


@given(seeds, st.tuples(strengths, strengths, strengths))
def test_jitter_without_hue_is_equal(seed: int, jitter: tuple[float, float, float]) -> None:
    """Whatever the order. A sum of float32 may fall on the other side of a whole number."""
    settings = replace(WHOLE, color_jitter=1.0, jitter=(*jitter, 0.0))
    off = differences(*both(settings, photograph(3, (64, 64)), seed)[:2])
    assert off.max() <= 1 and off.mean() <= 0.001


@given(seeds)
def test_jitter_with_hue_is_equal_but_for_steps_of_hue(seed: int) -> None:
    """One of Pillow's 255 steps changes a channel by 6 levels at most, and each of three factors of
    1.4 by 1.4 times as many: 17. A contrast after it may round its mean the other way.
    """
    settings = replace(WHOLE, color_jitter=1.0)
    off = differences(*both(settings, photograph(4, (64, 64)), seed)[:2])
    assert off.max() <= 17 and off.mean() <= 0.5 and (off > 1).mean() <= 0.02


# What each operation is given: torchvision's strongest magnitudes among them.
MAGNITUDES = {
    "Identity": [0.0],
    **{name: [0.09, -0.3, 0.99, -0.5, 0.0] for name in ("ShearX", "ShearY")},
    **{name: [7.9, -32.0, 63.0, 64.0, 90.0, -90.0] for name in ("TranslateX", "TranslateY")},
    "Rotate": [9.0, -30.0, 90.0, -135.0, 0.0],
    **{tone: [0.27, -0.99, 0.99, 0.0] for tone in ("Brightness", "Color", "Contrast", "Sharpness")},
    "Posterize": [8.0, 7.0, 4.0, 2.0],
    "Solarize": [0.0, 0.33, 0.7, 1.0],
    "AutoContrast": [0.0],
    "Equalize": [0.0],
}
PLACES = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]

# Share of pixels that have another neighbour where two are as near: Pillow adds up 65,536ths,
# torchvision's tensors have a grid of float32.
TIES = {"pillow": 0.002, "torch": 0.02}


def by_torchvision(planes: NDArray[np.uint8], name: str, magnitude: float, manner: Any) -> Any:
    """One operation as RandAugment does it, on a picture or a tensor; `fill` is its default."""
    mode = InterpolationMode(manner.interpolation)
    policy: Any = v2.RandAugment(interpolation=mode)
    image: Any = torch.from_numpy(planes)
    if manner.arithmetic == "pillow":
        image = v2.functional.to_pil_image(image)
    done = policy._apply_image_or_video_transform(image, name, magnitude, mode, policy._fill)
    return np.asarray(v2.functional.pil_to_tensor(done) if manner.arithmetic == "pillow" else done)


def dull(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Between 60 and 187, and of one colour in a corner."""
    pixels = np.asarray(photograph(seed, size)) // 2 + 60
    pixels[:9, :9] = (70, 90, 180)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("arithmetic", ["pillow", "torch"])
@pytest.mark.parametrize("name", sorted(MAGNITUDES))
@pytest.mark.parametrize("draw", [photograph, dull])
def test_every_operation_is_that_of_torchvision(
    draw: Callable[..., Image.Image], name: str, arithmetic: Any
) -> None:
    planes = planes_of(draw(5, (64, 64)))
    before = planes.copy()
    for interpolation in MODES if name in PLACES else ["bilinear"]:
        if arithmetic == "torch" and interpolation == "bicubic":
            continue  # torchvision has none
        manner = transforms.Manner(interpolation, arithmetic)  # type: ignore[arg-type]
        for magnitude in MAGNITUDES[name]:
            found = transforms._changed(planes, name, magnitude, manner)
            off = differences(found, by_torchvision(planes, name, magnitude, manner))
            shown = (name, magnitude, interpolation)
            if interpolation == "nearest":
                assert (off > 0).mean() <= TIES[arithmetic], shown
            else:  # measured: 0.03, where weights of a half put many sums on the edge
                assert off.max() <= 1 and off.mean() <= 0.06, shown
    assert np.array_equal(planes, before)


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_operations_are_those_of_torchvision_in_its_order(policy: str) -> None:
    classes = {
        "randaugment": (v2.RandAugment, 31, slice(9, 10)),
        "trivialaugment": (v2.TrivialAugmentWide, 31, slice(None)),
        "augmix": (v2.AugMix, 10, slice(3)),
    }
    kind, count, drawn = classes[policy]
    found = transforms.training(replace(CROPS, size=97, policy=policy), MEAN).operations
    expected = []
    for name, (magnitudes, signed) in kind._AUGMENTATION_SPACE.items():
        values = magnitudes(count, 97, 97)
        listed = () if values is None else tuple(map(float, values[drawn]))
        expected.append(transforms.Operation(name, listed, signed))
    assert list(found) == expected


@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("seed", range(4))
def test_policies_without_resampling_are_equal_but_for_rounding(seed: int, policy: Any) -> None:
    found, expected, _ = both(replace(WHOLE, policy=policy), photograph(seed, (64, 64)), seed)
    off = differences(found, expected)
    assert off.mean() <= 0.08 and (off > 1).mean() <= 0.004


@pytest.mark.parametrize("policy", POLICIES)
def test_real_photographs_are_those_of_torchvision(nature100: Path, policy: Any) -> None:
    files = sorted(nature100.rglob("*.jpg"))[::600]
    settings = replace(EVERYTHING, size=96, policy=policy)
    offs = []
    for seed, file in enumerate(files):
        picture = Image.open(file).convert("RGB").resize((150, 110))
        found, expected, same = both(settings, picture, seed)
        assert same
        offs.append(differences(found, expected).mean())
    assert np.mean(offs) <= 0.3 and max(offs) <= 1.5


@pytest.mark.parametrize("policy", POLICIES)
def test_read_only_memory_maps_are_read_and_not_written(tmp_path: Path, policy: Any) -> None:
    pixels = np.asarray(photograph(6, (32, 32)))
    np.save(tmp_path / "photo.npy", pixels)
    mapped = np.load(tmp_path / "photo.npy", mmap_mode="r")
    transform = transforms.training(replace(EVERYTHING, policy=policy, erasing=1.0), MEAN)
    for seed in range(6):
        assert torch.equal(transform(mapped, seed), transform(pixels.copy(), seed))
    whole = replace(WHOLE, size=32, erasing=1.0)  # its box is not drawn into the file
    transforms.training(whole, MEAN)(mapped, 0)[:] = 0
    transforms.evaluation(32, 32, "bilinear")(mapped)[:] = 0
    assert np.array_equal(np.load(tmp_path / "photo.npy"), pixels)


@pytest.mark.parametrize("policy", POLICIES)
def test_global_generators_are_neither_read_nor_moved(policy: Any) -> None:
    transform = transforms.training(replace(EVERYTHING, policy=policy), MEAN)
    pixels = np.asarray(photograph(7))
    torch.manual_seed(1)
    before, first = torch.default_generator.get_state(), transform(pixels, 5)
    assert torch.equal(torch.default_generator.get_state(), before)
    torch.manual_seed(2)
    assert torch.equal(transform(pixels, 5), first)
    assert not torch.equal(transform(pixels, 6), first)


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_may_share_a_transform(policy: Any) -> None:
    transform = transforms.training(replace(EVERYTHING, policy=policy), MEAN)
    pictures = [np.asarray(photograph(seed, (70, 50))) for seed in range(4)]
    calls = [(pictures[seed % 4], seed) for seed in range(24)]
    alone = [transform(picture, seed) for picture, seed in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda call: transform(*call), calls))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_transforms_travel_to_other_processes() -> None:
    pixels = np.asarray(photograph(8))
    training = transforms.training(replace(EVERYTHING, policy="augmix"), MEAN)
    evaluation = transforms.evaluation(16, 20, "bicubic")
    assert torch.equal(pickle.loads(pickle.dumps(training))(pixels, 3), training(pixels, 3))
    assert torch.equal(pickle.loads(pickle.dumps(evaluation))(pixels), evaluation(pixels))


def test_erased_boxes_have_the_levels_of_the_mean() -> None:
    """Of torchvision, which rounds 255 times the mean to float32, then down."""
    for mean in [(0.6, 0.2, 0.7), (0.0, 1.0, 0.5), (0.4, 0.1, 0.9)]:
        fill = torch.tensor([255 * channel for channel in mean]).to(torch.uint8)
        assert transforms.training(CROPS, mean).fill == tuple(fill.tolist())


@pytest.mark.parametrize("interpolation", MODES)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 60), st.booleans())
def test_where_the_shorter_side_fits_evaluation_is_a_crop(
    interpolation: Any, size: int, resize: int, longer: int, upright: bool
) -> None:
    sides = (resize, min(resize + longer, resize * LONGEST))
    picture = photograph(9, sides if upright else (sides[1], sides[0]))
    found = transforms.evaluation(size, resize, interpolation)(np.asarray(picture))
    assert torch.equal(found, evaluation_transform(size, resize, interpolation)(picture))


@given(
    st.sampled_from([("nearest", 0), ("bilinear", 1), ("bicubic", 4)]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.tuples(st.integers(1, 120), st.integers(1, 120)),
)
def test_evaluation_is_that_of_torchvision_but_for_rounding(
    mode: tuple[Any, int], size: int, resize: int, sides: tuple[int, int]
) -> None:
    interpolation, most = mode
    picture = photograph(10, sides)
    found = transforms.evaluation(size, resize, interpolation)(np.asarray(picture))
    expected = evaluation_transform(size, resize, interpolation)(picture)
    assert differences(found, expected).max() <= most


@pytest.mark.parametrize("sides", [(1, 3000), (3000, 2)])
def test_very_long_pictures_are_cut_before_they_are_resized(sides: tuple[int, int]) -> None:
    picture = photograph(11, sides)
    found = transforms.evaluation(16, 20, "bilinear")(np.asarray(picture))
    expected = evaluation_transform(16, 20, "bilinear")(picture)
    assert differences(found, expected).max() <= 1


def test_a_picture_of_one_row_needs_no_gigabytes() -> None:
    """Enlarged as a whole it would hold 1024 × 51,200,000 pixels: no machine has room for that."""
    row = Image.new("RGB", (50_000, 1), (9, 8, 7))
    image = transforms.evaluation(320, 1024, "bilinear")(np.asarray(row))
    for shown in (image, *view_transform(320, 1024, "bilinear", ("flips",))(row)):
        assert shown.shape == (3, 320, 320)
        assert (shown == torch.tensor([9, 8, 7])[:, None, None]).all()
