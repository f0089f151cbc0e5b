"""The resize without torch, beside torch's, and the square that an exported network is shown."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import photograph
from torch.nn import functional as F

from fieldguide.photos.decoding import centre, square
from fieldguide.photos.resampling import resampled
from fieldguide.photos.transforms import evaluation
from fieldguide.recipe import Interpolation

SIDES = st.integers(1, 90)


def by_torch(picture: np.ndarray, whole: tuple[int, int], mode: str) -> np.ndarray:
    batch = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    found = F.interpolate(batch, size=whole, mode=mode, antialias=True, align_corners=False)
    return found[0].permute(1, 2, 0).numpy()


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["bilinear", "bicubic"]), st.integers(0, 9))
def test_the_pixels_are_torchs(
    down: int, across: int, height: int, width: int, mode: Interpolation, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (down, across, 3), dtype=np.uint8)
    found = resampled(picture, (height, width), mode, range(height), range(width))
    off = np.abs(found.astype(int) - by_torch(picture, (height, width), mode))
    assert off.max() <= 1
    assert (off > 0).mean() <= 0.01  # a weight on a border between two numbers


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(97, 61), (30, 200), (40, 41), (31, 31), (5, 400), (600, 12)])
@pytest.mark.parametrize(("size", "resize"), [(32, 36), (32, 37), (33, 33), (31, 40)])
def test_the_centre_of_the_square_is_what_evaluation_shows(
    mode: Interpolation, sides: tuple[int, int], size: int, resize: int
) -> None:
    picture = np.asarray(photograph(3, sides))
    shown = evaluation(size, resize, mode)(picture).permute(1, 2, 0).numpy()
    found = square(picture, size, resize, mode)
    assert found.shape == (resize, resize, 3)
    off = np.abs(centre(found, size, size).astype(int) - shown)
    assert off.max() <= 1
    assert (off > 0).mean() <= 0.001
