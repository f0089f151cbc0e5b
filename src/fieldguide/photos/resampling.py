"""The smoothed resize of torch's `interpolate` on pictures of 8 bits, bit for bit, without torch.

Knows nothing of files and networks.
"""

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
    weights, bits = _weights(before, after, interpolation)
    found = np.tensordot(weights[kept], picture.astype(np.float32), (1, axis))
    # A power of 2 and a half are exact in float32 as well.
    levels = np.floor(found * np.float32(0.5**bits) + np.float32(0.5)).clip(0, 255)
    return np.moveaxis(levels.astype(np.uint8), 0, axis)


def _weights(
    before: int, after: int, interpolation: Interpolation
) -> tuple[Float32[np.ndarray, "after before"], int]:
    """Return each pixel's weights of those before, as whole numbers, and the bits they have."""
    scale = before / after
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    shares = np.zeros((after, before))
    for row in range(after):
        middle = scale * (row + 0.5)
        first = max(int(middle - support + 0.5), 0)
        last = min(int(middle + support + 0.5), before)
        distance = np.abs((np.arange(first, last) - middle + 0.5) / stretch)
        own = _bicubic(distance) if interpolation == "bicubic" else np.maximum(1 - distance, 0)
        shares[row, first:last] = own / sum(own.tolist())  # in torch's order
    bits = 0
    while bits < _MOST_BITS and int(shares.max() * 2 ** (bits + 1) + 0.5) < 1 << 15:
        bits += 1
    scaled = shares * 2**bits
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.float32), bits


def _bicubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic kernel's values at distances from its middle."""
    near = ((_SHARPNESS + 2) * distance - (_SHARPNESS + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _SHARPNESS
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
