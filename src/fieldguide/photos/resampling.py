"""The smoothed resize of torch's `interpolate` on pictures of 8 bits, bit for bit, without torch.

Knows nothing of files and networks.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from numpy.typing import NDArray

from fieldguide.recipe import Interpolation

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
_SHARPNESS = -0.5  # a of the cubic kernel, as Pillow has it (Keys, 1981)
_MOST_BITS = 22  # of a weight's fraction; fewer, until the largest fits 16 bits


def resampled(
    picture: UInt8[np.ndarray, "down across 3"],
    whole: tuple[int, int],
    interpolation: Interpolation,
    rows: range,
    columns: range,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return some rows and columns of the picture resized to `whole` (height, width).

    Across, then down, each rounded to 8 bits. Weights are whole numbers of 16 bits and sums below
    2^24, which float32 holds exactly in any order: so the pixels are those of torch 2.11 to 2.15
    (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`), one level off in at most one value in 10,000
    where a weight lies on the border between two numbers. Pillow's weights have 22 bits: one value
    in 500 differs from it by a level.
    """
    across = _along(picture, whole[1], columns, 1, interpolation)
    return _along(across, whole[0], rows, 0, interpolation)


def nearest(before: int, after: int) -> Int64[np.ndarray, " after"]:
    """Return the pixels that Pillow picks: it adds up steps in float64, with their rounding."""
    steps = np.full(after, before / after)
    steps[0] /= 2
    return np.minimum(steps.cumsum().astype(np.int64), before - 1)


def _along(
    picture: UInt8[np.ndarray, "down across 3"],
    after: int,
    span: range,
    axis: int,
    interpolation: Interpolation,
) -> UInt8[np.ndarray, "height width 3"]:
    before = picture.shape[axis]
    kept = slice(span.start, span.stop)
    if before == after:
        return picture.take(np.arange(after)[kept], axis=axis)
    if interpolation == "nearest":
        return picture.take(nearest(before, after)[kept], axis=axis)
    taps, bits = _taps(before, after, interpolation)
    wide, shape = picture.astype(np.float32), (1, -1, 1) if axis else (-1, 1, 1)
    sums: NDArray[np.float32] | None = None
    # Not as a product of matrices: its threads would stand in the way of those that read photos.
    for places, weights in taps:
        found = wide.take(places[kept], axis=axis)
        found *= weights[kept].reshape(shape)
        sums = found if sums is None else np.add(sums, found, out=sums)
    assert sums is not None
    # A power of 2 and a half are exact in float32 as well.
    levels: NDArray[np.uint8] = (
        np.floor(sums * np.float32(0.5**bits) + np.float32(0.5)).clip(0, 255).astype(np.uint8)
    )
    return levels


@lru_cache(maxsize=256)  # photos of a collection have few sizes
def _taps(
    before: int, after: int, interpolation: Interpolation
) -> tuple[list[tuple[Int64[np.ndarray, " after"], Float32[np.ndarray, " after"]]], int]:
    """Return the pixels before that each pixel is a sum of, with their weights, and their bits.

    Tap after tap: the first pixel of each sum, the second, … Weights are whole numbers.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    middle = scale * (np.arange(after)[:, None] + 0.5)
    first = np.maximum((middle - support + 0.5).astype(np.int64), 0)
    last = np.minimum((middle + support + 0.5).astype(np.int64), before)
    places = first + np.arange(int((last - first).max()))
    distance = np.abs((places - middle + 0.5) / stretch)
    shares = _bicubic(distance) if interpolation == "bicubic" else np.maximum(1 - distance, 0)
    shares = np.where(places < last, shares, 0.0)
    shares /= shares.cumsum(axis=1)[:, -1:]  # summed one after the other, as torch does
    bits = 0
    while bits < _MOST_BITS and int(shares.max() * 2 ** (bits + 1) + 0.5) < 1 << 15:
        bits += 1
    scaled = shares * 2**bits
    weights = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.float32)
    inside = np.minimum(places, before - 1)
    return [(inside[:, k].copy(), weights[:, k].copy()) for k in range(places.shape[1])], bits


def _bicubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic kernel's values at distances from its middle."""
    near = ((_SHARPNESS + 2) * distance - (_SHARPNESS + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _SHARPNESS
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
