"""Whether two thumbnails show one picture: as it is, turned, mirrored, or a crop of it.

Knows nothing of which pairs are looked at.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldguide.photos.inspect import COLOUR_SIDE, GRAY, SIDE

Bytes: TypeAlias = NDArray[np.uint8]  # fingerprints, (n, 648)
Floats: TypeAlias = NDArray[np.float32]
Numbers: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]

COARSE = 6  # cells of a side by which the turn is found
_FLAT = 4.0  # levels: a gray thumbnail that deviates less is mostly noise of the compression

# Thumbnails that lie on each other. Of the copies (JPEG of quality 30 to 95, WebP, resized by
# 0.5-4, mirrored) all correlated at 0.998 or more and kept their colours within 4 levels.
_LEAST_CORRELATION = 0.98
_MOST_APART = 0.75  # standard deviations, at any place
_MOST_COLOUR = 10  # levels
_LEVEL = 1.5  # levels of brightness by which flat ones may differ
# Something that is there in one picture alone is far from the rest of the differences: the largest
# is more than 11 times the 80th percentile in 97 % of the pairs of frames of a scene with other
# small animals, at most 3 times for copies of any compression, 8 times (99 % of them) if brightened
# by a tenth, 10 times if cropped.
_LOCAL = 10.0
_USUAL = round(0.8 * GRAY)
_NOTHING = 0.03  # deviations: differences of rounding
_SMALL = 0.2  # deviations: what differs by less everywhere is a copy

# Thumbnails that lie on each other once one is cropped.
_LEAST_TURNED = 0.6  # correlation of the coarsest thumbnails
_LEAST_ROUGH = 0.8  # of 8 × 8 cells, aligned
_LEAST_ALIGNED = 0.985
_MOST_ALIGNED_COLOUR = 15.0
_LEAST_SHARED = 0.55  # of either picture's area
_SCALES = (0.7, 1.43)
_STILL = 0.008  # of the half side: what moves less is no crop
_WHOLE = np.array([1, 0, 1, 0], np.float32)  # scale and shift of x, then of y
_PLAIN = 8.0  # levels: what deviates less has too little to align


def _turns(side: int) -> Numbers:
    """Return for each of the 8 symmetries of the square where each pixel comes from."""
    pixels = np.arange(side * side).reshape(side, side)
    both = (pixels, pixels[:, ::-1])
    return np.stack([np.rot90(each, k).ravel() for each in both for k in range(4)])


_TURNS = {side: _turns(side) for side in (SIDE, COLOUR_SIDE, COARSE)}


def coarse(fingerprints: Bytes) -> Floats:
    """Return (n, 36) cells of gray, of mean 0 and length 1 (less if flat)."""
    cells = _shrunk(fingerprints[:, :GRAY].astype(np.float32), COARSE)
    cells -= cells.mean(axis=1, keepdims=True)
    length = np.sqrt((cells**2).sum(axis=1, keepdims=True))
    scaled: Floats = cells / np.maximum(length, _FLAT * COARSE)
    return scaled


def _shrunk(values: Floats, side: int) -> Floats:
    """Return square pictures (n, pixels) with fewer pixels a side: means of blocks."""
    was = round(values.shape[1] ** 0.5)
    block = was // side
    if block == 1:
        return values
    rows = values.reshape(len(values), side, block, was).sum(axis=2)
    across = np.repeat(np.eye(side, dtype=np.float32), block, axis=0) / block**2
    small: Floats = (rows.reshape(-1, was) @ across).reshape(len(values), side * side)
    return small


def agree(one: Bytes, other: Bytes) -> Mask:
    """Return for each row whether the two fingerprints are of one picture.

    One may be turned by 90, 180 or 270°, mirrored, or a crop of the other (or both of a third).
    They must be alike at every place that both show: a scene with and without a small animal is not
    one picture. Frames of a scene that differ in noise and light alone are.
    """
    same = np.zeros(len(one), np.bool_)
    a, b = coarse(one), coarse(other)
    likeness = np.stack([np.einsum("ni,ni->n", a, b[:, turn]) for turn in _TURNS[COARSE]])
    turn = likeness.argmax(axis=0)
    flat = (a**2).sum(axis=1) < 1 - 1e-3
    rows = np.flatnonzero((likeness.max(axis=0) >= _LEAST_TURNED) | flat)
    if not len(rows):
        return same
    one, other = one[rows], _turned(other[rows], turn[rows])
    lying, spread = _lying(one, other)
    left = np.flatnonzero(~lying & spread)
    lying[left] = _cropped(one[left], other[left])
    same[rows] = lying
    return same


def _turned(fingerprints: Bytes, turn: Numbers) -> Bytes:
    starts = (0, GRAY, GRAY + COLOUR_SIDE**2)
    sides = (SIDE, COLOUR_SIDE, COLOUR_SIDE)
    places = [_TURNS[side][turn] + start for side, start in zip(sides, starts, strict=True)]
    return np.take_along_axis(fingerprints, np.concatenate(places, axis=1), axis=1)


def _lying(one: Bytes, other: Bytes) -> tuple[Mask, Mask]:
    """Return whether they agree as they lie, and else whether they may once one is cropped.

    They agree if they correlate and differ nowhere much; flat ones must be equally bright. A crop
    differs at many places.
    """
    a, mean_a, deviation_a = _normalised(one)
    b, mean_b, deviation_b = _normalised(other)
    apart = np.abs(a - b)
    close = 1 - np.mean(apart**2, axis=1) / 2 >= _LEAST_CORRELATION
    spread = ~_local(apart)
    flat = np.minimum(deviation_a, deviation_b) < _FLAT
    level = ~flat | (np.abs(mean_a - mean_b) < _LEVEL)
    close &= spread & (apart.max(axis=1) <= _MOST_APART) & level & _same_colour(one, other)
    return close, spread & (np.minimum(deviation_a, deviation_b) >= _PLAIN)


def _local(apart: Floats) -> Mask:
    """Return whether there is one place that differs much more than most."""
    largest = apart.max(axis=1)
    usual = np.partition(apart, _USUAL, axis=1)[:, _USUAL]
    local: Mask = (largest > _SMALL) & (largest > _LOCAL * (usual + _NOTHING))
    return local


def _same_colour(one: Bytes, other: Bytes) -> Mask:
    """Return whether none of 3 × 3 cells differs much in either colour."""
    apart = one[:, GRAY:].astype(np.float32) - other[:, GRAY:]
    cells = _shrunk(apart.reshape(-1, COLOUR_SIDE**2), 3)
    same: Mask = np.abs(cells).reshape(len(one), -1).max(axis=1) <= _MOST_COLOUR
    return same


def _normalised(fingerprints: Bytes) -> tuple[Floats, Floats, Floats]:
    """Return gray of mean 0 and deviation 1 (less if flat), and means and deviations before."""
    values = fingerprints[:, :GRAY].astype(np.float32)
    mean = values.mean(axis=1)
    values -= mean[:, None]
    deviation = np.sqrt(np.mean(values**2, axis=1))
    return values / np.maximum(deviation, _FLAT)[:, None], mean, deviation


# --- crops ----------------------------------------------------------------------------------------


def _cropped(one: Bytes, other: Bytes) -> Mask:
    """Return whether a rectangle of one picture lies on the other, or on a rectangle of it.

    The rectangle is found by steps of Gauss and Newton on 8 × 8, 12 × 12, 24 × 24 cells (B. Lucas,
    T. Kanade, "An Iterative Image Registration Technique", 1981), with scale and place of each axis
    and the pictures' contrasts free.
    """
    same = np.zeros(len(one), np.bool_)
    rows = np.arange(len(one))
    a, b = _normalised(one)[0], _normalised(other)[0]
    place = np.tile(_WHOLE, (len(rows), 1))
    for side, steps in ((8, 6), (12, 5), (SIDE, 3)):
        if not len(rows):
            return same
        small_a, small_b = _shrunk(a, side), _shrunk(b, side)
        place = _aligned(small_a, small_b, place, steps)
        if side == 8:
            rough = _correlation(*_overlap(small_a, small_b, place, 1))[0] >= _LEAST_ROUGH
            rough &= _moved(place)
            rows, a, b, place = rows[rough], a[rough], b[rough], place[rough]
    shown, target, shared = _overlap(a, b, place, 2)
    correlation, apart = _correlation(shown, target, shared)
    alike = (correlation >= _LEAST_ALIGNED) & (apart.max(axis=1) <= _MOST_APART)
    area = shared.mean(axis=1)
    alike &= (area >= _LEAST_SHARED) & (area * place[:, 0] * place[:, 2] >= _LEAST_SHARED)
    alike &= _moved(place)
    for start in (GRAY, GRAY + COLOUR_SIDE**2):
        plane = slice(start, start + COLOUR_SIDE**2)
        colour_a, colour_b = (each[rows, plane].astype(np.float32) for each in (one, other))
        shown, target, shared = _overlap(colour_a, colour_b, place, 2)
        alike &= (np.abs(shown - target) * shared).max(axis=1) <= _MOST_ALIGNED_COLOUR
    same[rows] = alike
    return same


def _moved(place: Floats) -> Mask:
    """Return whether anything is cropped: what lies as before was compared as it is."""
    moved: Mask = np.abs(place - _WHOLE).max(axis=1) >= _STILL
    return moved


def _centres(side: int) -> Floats:
    """Return the places of pixels from -1 to 1."""
    return (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1


def _weights(places: Floats, side: int) -> tuple[Floats, Floats]:
    """Return (n, k, side) weights of linear interpolation at (n, k) places, and their slopes."""
    pixel = np.clip((places + 1) * (side / 2) - 0.5, 0, side - 1)
    apart = pixel[:, :, None] - np.arange(side, dtype=np.float32)
    before, at, behind = (np.maximum(1 - np.abs(apart + by), 0) for by in (-0.5, 0, 0.5))
    return at, (behind - before) * np.float32(side / 2)


def _placed(place: Floats, side: int) -> tuple[Floats, Floats, Floats]:
    """Return where columns and rows of the other picture lie in the first, and what is inside."""
    x = place[:, :1] * _centres(side) + place[:, 1:2]
    y = place[:, 2:3] * _centres(side) + place[:, 3:4]
    inside = (np.abs(y) <= 1)[:, :, None] & (np.abs(x) <= 1)[:, None, :]
    return x, y, inside.reshape(len(place), -1).astype(np.float32)


def _aligned(one: Floats, other: Floats, place: Floats, steps: int) -> Floats:
    """Return better places (scale and shift of x, then of y) of the other picture in the first."""
    side = round(other.shape[1] ** 0.5)
    pictures = one.reshape(-1, side, side)
    columns = np.tile(_centres(side), side)
    lines = np.repeat(_centres(side), side)
    for _ in range(steps):
        x, y, inside = _placed(place, side)
        (at_x, slope_x), (at_y, slope_y) = _weights(x, side), _weights(y, side)
        value = _sampled(pictures, at_y, at_x)
        along, down = _sampled(pictures, at_y, slope_x), _sampled(pictures, slope_y, at_x)
        shown, deviation = _centred(value, inside)
        target, wanted = _centred(other, inside)
        gain = wanted / np.maximum(deviation, 0.1)
        slopes = np.stack([along * columns, along, down * lines, down], axis=2)
        slopes *= (gain * inside)[:, :, None]
        error = (target - shown * gain) * inside
        square = slopes.transpose(0, 2, 1) @ slopes
        ease = 0.005 * np.trace(square, axis1=1, axis2=2) + 1e-3
        square += ease[:, None, None] * np.eye(4, dtype=np.float32)
        step = np.linalg.solve(square, slopes.transpose(0, 2, 1) @ error[:, :, None])[:, :, 0]
        place = place + np.clip(step, -0.15, 0.15)
        place[:, ::2] = np.clip(place[:, ::2], *_SCALES)
    return place


def _overlap(
    one: Floats, other: Floats, place: Floats, block: int
) -> tuple[Floats, Floats, Floats]:
    """Return what both show, in cells of `block` × `block` pixels, and which cells are shared."""
    side = round(other.shape[1] ** 0.5)
    x, y, inside = _placed(place, side)
    value = _sampled(one.reshape(-1, side, side), _weights(y, side)[0], _weights(x, side)[0])
    cells = side // block
    shared = (_shrunk(inside, cells) > 0.99).astype(np.float32)
    return _shrunk(value, cells), _shrunk(other, cells), shared


def _sampled(pictures: Floats, by_row: Floats, by_column: Floats) -> Floats:
    """Return weighted sums of pixels, (n, pixels)."""
    sums = np.matmul(np.matmul(by_row, pictures), by_column.transpose(0, 2, 1))
    flat: Floats = sums.reshape(len(sums), pictures.shape[1] ** 2)
    return flat


def _centred(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return values of weighted mean 0, and their deviations (n, 1)."""
    total = weights.sum(axis=1, keepdims=True) + 1e-6
    values = values - (weights * values).sum(axis=1, keepdims=True) / total
    return values, np.sqrt((weights * values**2).sum(axis=1, keepdims=True) / total)


def _correlation(one: Floats, other: Floats, shared: Floats) -> tuple[Floats, Floats]:
    """Return the correlation over shared cells, and how far apart each is, in deviations."""
    (a, deviation_a), (b, deviation_b) = _centred(one, shared), _centred(other, shared)
    apart = np.abs(a / np.maximum(deviation_a, 0.15) - b / np.maximum(deviation_b, 0.15)) * shared
    return 1 - (apart**2).sum(axis=1) / (2 * shared.sum(axis=1) + 1e-6), apart
