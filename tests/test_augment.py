from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from photos import photograph
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fieldguide.augment import (
    LONGEST,
    SECOND_SCALE,
    Augmentation,
    View,
    decoded_side,
    evaluation_transform,
    mix_batch,
    normalise,
    training_transform,
    view_transform,
)

MEAN = (0.485, 0.456, 0.406)
POLICIES = ["none", "randaugment", "trivialaugment", "augmix"]

# Everything at once, as strong as recipes allow.
ALL = Augmentation(
    size=16,
    interpolation="bilinear",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    color_jitter=1.0,
    jitter=(0.4, 0.4, 0.4, 0.5),
    grayscale=0.5,
    policy="none",
    erasing=1.0,
)

# Nothing: a square picture of the same size comes out as it went in.
NOTHING = replace(
    ALL, crop_scale=(1.0, 1.0), flip=0.0, color_jitter=0.0, grayscale=0.0, erasing=0.0
)


def train(settings: Augmentation, picture: Image.Image, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    image: Tensor = training_transform(settings, MEAN)(picture)
    return image


def pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def square(side: int = 16) -> Image.Image:
    return photograph(1, (side, side))


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (8, 8), (1, 1), (31, 17)])
def test_any_picture_becomes_bytes_of_the_size_asked_for(
    size: tuple[int, int], interpolation: Any, policy: Any
) -> None:
    settings = replace(ALL, interpolation=interpolation, policy=policy)
    for seed in range(3):
        image = train(settings, photograph(0, size), seed)
        assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(policy: Any) -> None:
    settings, picture = replace(ALL, policy=policy), square(40)
    assert torch.equal(train(settings, picture, 5), train(settings, picture, 5))
    assert not torch.equal(train(settings, picture, 5), train(settings, picture, 6))


def test_the_picture_is_left_unchanged() -> None:
    picture = square()
    before = picture.tobytes()
    train(replace(ALL, policy="augmix"), picture)
    assert picture.tobytes() == before


def test_nothing_asked_for_changes_nothing() -> None:
    assert torch.equal(train(NOTHING, square()), pixels(square()))


def test_a_certain_flip_is_the_mirror_image() -> None:
    image = train(replace(NOTHING, flip=1.0), square())
    assert torch.equal(image, pixels(square()).flip(-1))


def test_a_flip_of_one_half_does_both() -> None:
    settings, original = replace(NOTHING, flip=0.5), pixels(square())
    mirrored = [bool((train(settings, square(), seed) != original).any()) for seed in range(40)]
    assert 8 <= sum(mirrored) <= 32  # beyond with a probability of 1e-4; the seeds are fixed


def test_a_certain_grayscale_has_equal_channels() -> None:
    red, green, blue = train(replace(NOTHING, grayscale=1.0), square())
    assert torch.equal(red, green) and torch.equal(green, blue)


def test_jitter_of_no_strength_changes_nothing() -> None:
    settings = replace(NOTHING, color_jitter=1.0, jitter=(0.0, 0.0, 0.0, 0.0))
    assert torch.equal(train(settings, square()), pixels(square()))


def test_jitter_changes_colours_and_keeps_places() -> None:
    """Brightness alone multiplies: every pixel by the same factor."""
    picture = Image.fromarray(np.full((16, 16, 3), 100, np.uint8))
    image = train(replace(NOTHING, color_jitter=1.0, jitter=(0.4, 0.0, 0.0, 0.0)), picture)
    assert image.unique().numel() == 1
    assert image[0, 0, 0] != 100 and 60 <= image[0, 0, 0] <= 140


def test_a_crop_shows_a_part_of_the_picture() -> None:
    """A ramp from left to right stays one, over no more than its range."""
    ramp = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], (48, 48, 3))
    settings = replace(NOTHING, crop_scale=(0.08, 0.2))
    image = train(settings, Image.fromarray(ramp.copy())).int()
    assert (image.diff(dim=2) >= 0).all()
    assert (image == image[:, :1]).all()
    assert 0 < image.max() - image.min() < 240 * 0.2**0.5 * (4 / 3) ** 0.5


@pytest.mark.parametrize("seed", range(5))
def test_erasing_fills_one_box_with_the_mean_and_leaves_the_rest(seed: int) -> None:
    picture = photograph(1, (32, 32))
    image = train(replace(NOTHING, size=32, erasing=1.0), picture, seed)
    fill = torch.tensor([int(255 * channel) for channel in MEAN], dtype=torch.uint8)
    changed = (image != pixels(picture)).any(dim=0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    box = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert (box == fill[:, None, None]).all()
    assert 0.02 * 0.5 <= box[0].numel() / 32**2 <= 0.34  # torchvision erases 0.02 to 0.33


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (8, 8), (31, 17), (64, 48)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_evaluation_takes_any_picture_and_draws_nothing(
    size: tuple[int, int], interpolation: Any
) -> None:
    transform, picture = evaluation_transform(16, 20, interpolation), photograph(2, size)
    before = torch.get_rng_state()
    image = transform(picture)
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)
    assert torch.equal(image, transform(picture))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 36), (20, 20)])
def test_the_crop_is_the_centre(width: int, height: int) -> None:
    """Pictures whose shorter side needs no resizing."""
    picture = photograph(3, (width, height))
    top, left = (height - 10) // 2, (width - 10) // 2
    expected = pixels(picture)[:, top : top + 10, left : left + 10]
    assert torch.equal(evaluation_transform(10, 20, "bilinear")(picture), expected)


def test_the_shorter_side_is_resized() -> None:
    picture = photograph(4, (80, 40))
    small = picture.resize((40, 20), Image.Resampling.BILINEAR)
    image = evaluation_transform(10, 20, "bilinear")(picture)
    assert torch.equal(image, pixels(small)[:, 5:15, 15:25])


@pytest.mark.parametrize("size", [(200, 4), (4, 200), (201, 4), (4 * LONGEST + 1, 4)])
def test_cutting_a_long_picture_short_does_not_show(size: tuple[int, int]) -> None:
    """Compared with what the whole picture gives; an odd length may move it by half a pixel."""
    picture = photograph(5, size)
    whole = v2.Compose([v2.Resize(16), v2.CenterCrop(12), v2.PILToTensor()])(picture)
    difference = evaluation_transform(12, 16, "bilinear")(picture).int() - whole.int()
    allowed = 0 if size[0] % 2 == 0 and size[1] % 2 == 0 else 12
    assert difference.abs().float().mean() <= allowed


def test_a_picture_of_one_row_needs_no_gigabytes() -> None:
    """Enlarged as a whole it would hold 512 × 25,600,000 pixels: no machine has room for that."""
    image = evaluation_transform(320, 512, "bilinear")(Image.new("RGB", (50_000, 1), (9, 8, 7)))
    assert image.shape == (3, 320, 320)
    assert (image == torch.tensor([9, 8, 7])[:, None, None]).all()


# --- views ----------------------------------------------------------------------------------------

VIEWS: list[tuple[tuple[View, ...], int]] = [
    (("flips",), 2),
    (("crops",), 5),
    (("scales",), 2),
    (("flips", "crops"), 10),
    (("flips", "scales"), 4),
    (("crops", "scales"), 10),
    (("flips", "crops", "scales"), 20),
]


def views_of(picture: Image.Image, views: tuple[View, ...], resize: int = 20) -> Tensor:
    found: Tensor = view_transform(16, resize, "bilinear", views)(picture)
    return found


@pytest.mark.parametrize(("views", "count"), VIEWS)
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (31, 17), (64, 48)])
def test_views_are_so_many_and_the_plain_one_is_the_first(
    views: tuple[View, ...], count: int, size: tuple[int, int]
) -> None:
    picture = photograph(2, size)
    found = views_of(picture, views)
    assert (found.shape, found.dtype) == ((count, 3, 16, 16), torch.uint8)
    assert torch.equal(found[0], evaluation_transform(16, 20, "bilinear")(picture))
    assert torch.equal(found, views_of(picture, tuple(reversed(views))))


@pytest.mark.parametrize(("views", "count"), VIEWS)
def test_all_views_of_one_colour_are_equal(views: tuple[View, ...], count: int) -> None:
    found = views_of(Image.new("RGB", (50, 40), (20, 160, 90)), views)
    assert (found == found[:1]).all()


@pytest.mark.parametrize(("views", "count"), [each for each in VIEWS if "flips" in each[0]])
def test_the_second_half_of_flips_mirrors_the_first(views: tuple[View, ...], count: int) -> None:
    found = views_of(photograph(3, (45, 30)), views)
    assert torch.equal(found[count // 2 :], found[: count // 2].flip(-1))
    half = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    symmetric = Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))
    plain, mirrored = views_of(symmetric, ("flips",))
    assert torch.equal(plain, mirrored)


def test_crops_are_the_centre_and_the_corners() -> None:
    """Of a picture whose shorter side needs no resizing."""
    picture = photograph(4, (30, 20))
    whole = pixels(picture)
    expected = [(2, 7), (0, 0), (0, 14), (4, 0), (4, 14)]
    for view, (top, left) in zip(views_of(picture, ("crops",)), expected, strict=True):
        assert torch.equal(view, whole[:, top : top + 16, left : left + 16])


def test_scales_show_the_picture_once_more_and_larger() -> None:
    picture = photograph(5, (60, 40))
    plain, larger = views_of(picture, ("scales",))
    side = round(SECOND_SCALE * 20)
    assert side > 20
    assert torch.equal(larger, evaluation_transform(16, side, "bilinear")(picture))
    assert not torch.equal(plain, larger)


def test_the_decoder_leaves_enough_for_the_largest_view() -> None:
    for resize in (16, 72, 256, 512):
        assert decoded_side(resize) >= round(SECOND_SCALE * resize) > resize


# --- normalising ----------------------------------------------------------------------------------


def test_normalising_is_that_of_torchvision_for_any_number_of_axes() -> None:
    std = (0.229, 0.224, 0.225)
    images = torch.stack([pixels(photograph(seed, (9, 7))) for seed in range(6)])
    scale = v2.ToDtype(torch.float32, scale=True)
    expected = v2.Normalize(MEAN, std)(scale(images))
    found = normalise(images, MEAN, std)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normalise(images[0], MEAN, std), expected[0], atol=1e-5, rtol=1e-5)
    views = normalise(images.reshape(2, 3, *images.shape[1:]), MEAN, std)
    assert torch.equal(views.flatten(0, 1), found)


def test_the_mean_becomes_nothing_and_a_deviation_from_it_one() -> None:
    mean, std = (0.2, 0.4, 0.6), (0.2, 0.4, 0.2)
    ends = torch.tensor([[51, 102, 153], [102, 204, 204], [0, 0, 102]], dtype=torch.uint8)
    found = normalise(ends[:, :, None, None], mean, std)[:, :, 0, 0]
    expected = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    torch.testing.assert_close(found, expected)


# --- mixing ---------------------------------------------------------------------------------------


def batch(n: int = 4, height: int = 12, width: int = 10) -> tuple[Tensor, Tensor]:
    """Photos of noise, each of its own class: no two share a pixel."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, height, width, generator=generator), torch.arange(n)


def mixed(mix: Any, seed: int, n: int = 4, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    images, targets = batch(n)
    return mix_batch(images, targets, classes=n, mix=mix, alpha=alpha)


def sources(images: Tensor, originals: Tensor) -> Tensor:
    """The share of the pixels of each mixed photo (row) that each original (column) has too."""
    same = (images[:, None] == originals[None]).all(dim=2)
    return same.float().mean(dim=(2, 3))


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup", "either"])
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_shares_of_every_photo_sum_to_one(mix: Any, n: int, seed: int) -> None:
    images, targets = mixed(mix, seed, n)
    assert images.shape == batch(n)[0].shape and targets.shape == (n, n)
    assert (images.dtype, targets.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(n))
    assert (targets >= 0).all()


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup", "either"])
def test_arguments_of_mixing_are_left_unchanged(mix: Any) -> None:
    images, targets = batch()
    mix_batch(images, targets, classes=4, mix=mix, alpha=1.0)
    assert all(
        torch.equal(one, other) for one, other in zip((images, targets), batch(), strict=True)
    )


def test_without_mixing_photos_stay_and_targets_are_one_hot() -> None:
    images, targets = mixed("none", 0)
    assert torch.equal(images, batch()[0])
    assert torch.equal(targets, torch.eye(4))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_pixels_and_shares_are_the_area_pasted(seed: int) -> None:
    images, targets = mixed("cutmix", seed)
    shares = sources(images, batch()[0])
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))  # every pixel is someone's
    torch.testing.assert_close(targets, shares)


def test_cutmix_pastes_one_box_at_the_same_place() -> None:
    images, _ = mixed("cutmix", 1)
    pasted = (images != batch()[0]).any(dim=1)
    rows, columns = pasted[0].any(1).nonzero().flatten(), pasted[0].any(0).nonzero().flatten()
    assert pasted[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert (pasted == pasted[0]).all()


@pytest.mark.parametrize("seed", range(10))
def test_mixup_blends_photos_by_their_shares(seed: int) -> None:
    images, targets = mixed("mixup", seed)
    blended = torch.einsum("ij,jchw->ichw", targets, batch()[0])
    torch.testing.assert_close(images, blended)
    assert ((targets > 0).sum(dim=1) == 2).all()


def test_either_does_both() -> None:
    pasted = [
        bool(torch.isclose(sources(mixed("either", seed)[0], batch()[0]).sum(), torch.tensor(4.0)))
        for seed in range(40)
    ]
    assert 8 <= sum(pasted) <= 32  # beyond with a probability of 1e-4; the seeds are fixed


def test_shares_are_drawn_from_beta() -> None:
    """Beta(a, a) has the variance 1 / (4 (2 a + 1)): the larger alpha, the nearer to one half."""
    for alpha in (0.2, 1.0, 8.0):
        shares = torch.stack([mixed("mixup", s, n=2, alpha=alpha)[1][0, 0] for s in range(400)])
        assert shares.mean() == pytest.approx(0.5, abs=0.06)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.25)


def test_photos_of_one_class_stay_whole_in_their_target() -> None:
    images, _ = batch()
    same = torch.full((4,), 2)
    _, targets = mix_batch(images, same, classes=3, mix="cutmix", alpha=1.0)
    torch.testing.assert_close(targets, torch.tensor([0.0, 0.0, 1.0]).expand(4, 3))
