"""The transforms of torchvision's v2, draw for draw, from arrays and without their overhead.

`training(settings, mean)(picture, seed)` makes the draws of tests/reference_transforms.py after
`torch.manual_seed(seed)`, in the same order, and changes the same pixels by the same formulas. The
differences: one copy and one resize of the crop, colours as arithmetic on planes, shears as one
gather, and a generator for each photo. Nothing global is touched: many threads may share a
transform. torch splits large arrays over its own threads: a pool of transforms wants one each.

A picture is upright RGB of shape (height, width, 3), read-only or not; `Planes` below are its three
channels. Knows nothing of files, batches or training.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from fieldguide.photos.augment import Augmentation, Policy
from fieldguide.photos.decoding import Part, Picture, centre, shortened, sides
from fieldguide.photos.resampling import nearest
from fieldguide.recipe import Interpolation

Planes = UInt8[np.ndarray, "3 height width"]
Plane = Float32[np.ndarray, "height width"]
Levels = Float32[np.ndarray, "3 height width"]  # whole numbers from 0 to 255
Neighbours = UInt8[np.ndarray, "3 rows columns"]  # planes, a few pixels longer on one axis

# torchvision computes on Pillow's pictures and on tensors by formulas that differ in rounding, in
# the weights of grey and at edges. All but AugMix are given pictures.
Arithmetic = Literal["pillow", "torch"]

# Logarithms of the extreme ratios of a crop (RandomResizedCrop) and of an erased box
# (RandomErasing), as torchvision draws between them.
_CROP_RATIOS = (3 / 4, 4 / 3)
_CROP_LOGS: list[float] = torch.log(torch.tensor(_CROP_RATIOS)).tolist()
_BOX_LOGS: list[float] = torch.log(torch.tensor((0.3, 3.3))).tolist()

# Sums of float32 that stand for a whole number end just below it; Pillow's, of float64, do not.
_ROUNDING = 1e-3


class Manner(NamedTuple):
    """The interpolation between pixels, and the library whose formulas hold."""

    interpolation: Interpolation
    arithmetic: Arithmetic


class Operation(NamedTuple):
    """A change of a policy: its magnitudes, weakest first, and whether a coin gives the sign."""

    name: str
    magnitudes: tuple[float, ...] = ()
    signed: bool = False


Operations: TypeAlias = tuple[Operation, ...]


@dataclass(frozen=True)
class TrainingTransform:
    """A random crop, mirror image, colours, policy, erasing; made by `training`."""

    settings: Augmentation
    fill: tuple[int, int, int]  # levels of an erased box
    operations: Operations  # for the policy's choice

    def __call__(self, picture: Picture, seed: int) -> UInt8[Tensor, "3 size size"]:
        """Return the picture changed by the draws of a seed, in new memory.

        Channels lie last in memory if neither colours nor a policy changed it, else first.
        """
        settings, generator = self.settings, Generator().manual_seed(seed)
        crop = _drawn_crop(picture, settings.crop_scale, generator)
        image = _resized(crop, settings.size, settings.size, settings.interpolation)
        if not _misses(generator, settings.flip):
            image = image.flip(1)
        planes = image.permute(2, 0, 1).numpy()
        if settings.color_jitter and not _misses(generator, settings.color_jitter):
            planes = _jittered(planes, settings.jitter, generator)
        if settings.grayscale and not _misses(generator, settings.grayscale):
            planes = np.stack([_luma(_levels(planes), "pillow").astype(np.uint8)] * 3)
        if settings.policy != "none":
            policy = _POLICIES[settings.policy]
            planes = policy(planes, self.operations, settings.interpolation, generator)
        image = torch.from_numpy(planes)
        if settings.erasing and not _misses(generator, settings.erasing):
            _erase(image, self.fill, generator)
        return image


@dataclass(frozen=True)
class EvaluationTransform:
    """A resize of the shorter side to `resize` pixels, then the centre; made by `evaluation`."""

    size: int
    resize: int
    interpolation: Interpolation

    def __call__(self, picture: Picture) -> UInt8[Tensor, "3 size size"]:
        """Return the centre, with its channels last in memory. Draw nothing."""
        picture = shortened(picture)
        image = _resized(picture, *sides(picture.shape[:2], self.resize), self.interpolation)
        shown = centre(image.numpy(), self.size, self.size)
        return torch.from_numpy(np.ascontiguousarray(shown)).permute(2, 0, 1)


def training(settings: Augmentation, mean: tuple[float, float, float]) -> TrainingTransform:
    """Return the counterpart of torchvision's transforms of these settings.

    The draws are equal. So are the pixels, but for the resampling (at most 1 level, bicubic 4),
    sums in float32 and, one pixel in a hundred, the hue of a jitter (one of Pillow's 255 steps). A
    policy may spread such a level, as equalising does.
    """
    red, green, blue = (int(np.float32(255 * channel)) for channel in mean)
    operations = _operations(settings.policy, settings.size)
    return TrainingTransform(settings, (red, green, blue), operations)


def evaluation(size: int, resize: int, interpolation: Interpolation) -> EvaluationTransform:
    """Return the counterpart of torchvision's resize and centre crop.

    Equal if the shorter side is `resize` already, else as many levels off as in `training`.
    """
    return EvaluationTransform(size, resize, interpolation)


# --- draws ----------------------------------------------------------------------------------------


def _misses(generator: Generator, probability: float) -> bool:
    """Draw whether an event of a probability does not happen; compared in float32, by torch."""
    return bool(torch.rand(1, generator=generator) >= probability)


def _uniform(generator: Generator, low: float, high: float) -> float:
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def _below(generator: Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))


def _sides(
    area: int, scale: tuple[float, float], logs: list[float], generator: Generator
) -> Iterator[tuple[int, int]]:
    """Draw sides by their share of an area and the uniform logarithm of their ratio, ten times."""
    for _ in range(10):  # then torchvision gives up
        part = area * _uniform(generator, *scale)
        ratio = torch.empty(1).uniform_(*logs, generator=generator).exp_().item()
        yield round(math.sqrt(part * ratio)), round(math.sqrt(part / ratio))


# --- crop and erasing -----------------------------------------------------------------------------


def _drawn_crop(picture: Picture, scale: tuple[float, float], generator: Generator) -> Part:
    """Return a view of a box with a share of the area in `scale` and a side ratio of 3/4 to 4/3."""
    height, width = picture.shape[:2]
    for across, down in _sides(height * width, scale, _CROP_LOGS, generator):
        if 0 < across <= width and 0 < down <= height:
            top = _below(generator, height - down + 1)
            left = _below(generator, width - across + 1)
            return picture[top : top + down, left : left + across]
    low, high = _CROP_RATIOS  # none fits: the largest box around the centre of an allowed ratio
    down = round(width / low) if width / height < low else height
    across = round(height * high) if width / height > high else width
    top, left = (height - down) // 2, (width - across) // 2
    return picture[top : top + down, left : left + across]


def _erase(
    image: UInt8[Tensor, "3 height width"], fill: tuple[int, int, int], generator: Generator
) -> None:
    """Change `image`: fill a box of 2 to 33 % of its area."""
    height, width = image.shape[1:]
    for down, across in _sides(height * width, (0.02, 0.33), _BOX_LOGS, generator):
        if down < height and across < width:
            top = _below(generator, height - down + 1)
            left = _below(generator, width - across + 1)
            colour = torch.tensor(fill, dtype=torch.uint8)[:, None, None]
            image[:, top : top + down, left : left + across] = colour
            return


def _resized(
    picture: Picture, height: int, width: int, interpolation: Interpolation
) -> UInt8[Tensor, "height2 width2 3"]:
    """Return a smoothed resize in new memory."""
    down, across = picture.shape[:2]
    if (down, across) == (height, width):
        return torch.from_numpy(picture.copy())
    if interpolation == "nearest":
        rows, columns = nearest(down, height), nearest(across, width)
        return torch.from_numpy(picture.take(rows, axis=0).take(columns, axis=1))
    # A dense copy, as torch would make a slower one. The stride of the batch says beyond doubt that
    # channels are last: then so they are in the result, and no second copy is made.
    strides = (3 * down * across, 1, 3 * across, 3)
    batch = torch.from_numpy(picture.copy()).as_strided((1, 3, down, across), strides)
    image = F.interpolate(
        batch, size=(height, width), mode=interpolation, antialias=True, align_corners=False
    )
    return image[0].permute(1, 2, 0)


# --- colours --------------------------------------------------------------------------------------
# Functions of levels change their argument and return it.


def _levels(planes: Planes) -> Levels:
    return planes.astype(np.float32, order="C")


def _bytes(levels: Levels) -> Planes:
    return levels.astype(np.uint8)


def _whole(levels: Levels) -> Levels:
    """Cut to 0 … 255 and round down."""
    np.clip(levels, 0, 255, out=levels)
    np.floor(levels, out=levels)
    return levels


def _jittered(
    planes: Planes, strengths: tuple[float, float, float, float], generator: Generator
) -> Planes:
    """Change brightness, contrast, saturation and hue in random order, by random factors."""
    order = torch.randperm(4, generator=generator).tolist()
    ranges = [(max(0.0, 1 - each), 1 + each) for each in strengths[:3]]
    ranges.append((-strengths[3], strengths[3]))
    factors = [
        _uniform(generator, *span) if strength else None
        for span, strength in zip(ranges, strengths, strict=True)
    ]
    changes = (_brightness, _contrast, _saturation, _hue)
    levels = _levels(planes)
    for number in order:
        if (factor := factors[number]) is not None:
            levels = changes[number](levels, factor)
    return _bytes(levels)


def _brightness(levels: Levels, factor: float) -> Levels:
    levels *= np.float32(factor)
    return _whole(levels)


def _contrast(levels: Levels, factor: float, arithmetic: Arithmetic = "pillow") -> Levels:
    """Stretch away from the mean of grey, which Pillow rounds."""
    mean = float(_luma(levels, arithmetic).mean(dtype=np.float64))
    return _blended(levels, np.float32(int(mean + 0.5) if arithmetic == "pillow" else mean), factor)


def _saturation(levels: Levels, factor: float, arithmetic: Arithmetic = "pillow") -> Levels:
    return _blended(levels, _luma(levels, arithmetic), factor)


def _blended(levels: Levels, other: Levels | Plane | np.float32, factor: float) -> Levels:
    """Return other + factor · (levels - other)."""
    levels -= other
    levels *= np.float32(factor)
    levels += other
    return _whole(levels)


def _luma(levels: Levels, arithmetic: Arithmetic) -> Plane:
    """Return grey by ITU-R 601-2. Pillow's weights are 65,536ths: float32 sums them exactly."""
    pillow = arithmetic == "pillow"
    weights = (19595, 38470, 7471) if pillow else (0.2989, 0.587, 0.114)
    red, green, blue = (
        level * np.float32(weight) for level, weight in zip(levels, weights, strict=True)
    )
    grey: Plane = red + green
    grey += blue
    if pillow:
        grey += np.float32(1 << 15)
        grey *= np.float32(2**-16)
    np.floor(grey, out=grey)
    return grey


def _hue(levels: Levels, turn: float) -> Levels:
    """Turn the hue by `turn` of a full circle, through Pillow's HSV of 8 bits a channel.

    With hue h in sixths, value v and saturation s, a channel is v · (1 - s · (1 - k)), where k, cut
    to 0 … 1, is |h - 3| - 1 for red, 2 - |h - 2| for green and 2 - |h - 4| for blue.
    """
    value = levels.max(axis=0)
    chroma = value - levels.min(axis=0)
    hue = _hue_of(levels, value, chroma)
    hue += int(turn * 255)
    hue &= 255  # Pillow's 8 bits wrap around at 256, a full circle being 255
    np.maximum(value, 1, out=levels[0])
    saturation = np.floor(chroma / levels[0] * np.float32(255))
    saturation *= value
    saturation *= np.float32(1 / 255)
    np.subtract(hue.astype(np.float32) * np.float32(6 / 255), _CENTRES, out=levels)
    np.abs(levels, out=levels)
    levels *= _SLOPES
    levels += _HEIGHTS
    np.clip(levels, 0, 1, out=levels)
    levels *= saturation
    value -= saturation
    value += np.float32(0.5)
    levels += value
    np.floor(levels, out=levels)
    return levels


_CENTRES, _SLOPES, _HEIGHTS = (
    np.array(row, np.float32)[:, None, None] for row in ((3, 2, 4), (1, -1, -1), (-1, 2, 2))
)


def _hue_of(levels: Levels, value: Plane, chroma: Plane) -> Int32[np.ndarray, "height width"]:
    """Return Pillow's hue from 0 to 255, rounded down; 0 if there is none."""
    red, green, blue = levels
    # Differences of whole numbers, cut to 1, are the comparisons: faster than masks of booleans.
    others = np.minimum(value - levels, 1)
    not_red, not_green = others[0], others[1]
    is_red = 1 - not_red
    is_blue = not_red * not_green
    is_green = not_red - is_blue
    hue = is_red * (green - blue)
    hue += is_green * (blue - red)
    hue += is_blue * (red - green)
    hue /= np.maximum(chroma, 1)
    hue += 2 * is_green
    hue += 4 * is_blue
    hue *= np.float32(255 / 6)
    whole: Int32[np.ndarray, "height width"] = np.floor(hue, out=hue).astype(np.int32)
    whole += (whole >> 31) & 255  # less than nothing: once around
    return whole


def _sharpness(levels: Levels, factor: float) -> Levels:
    """Stretch away from the picture smoothed by 3 × 3 pixels; the middle counts 5 of 13."""
    if min(levels.shape[1:]) < 3:
        return levels
    inner = levels[:, 1:-1, 1:-1]
    rows = levels[:, :-2] + levels[:, 1:-1]
    rows += levels[:, 2:]
    smooth = rows[:, :, :-2] + rows[:, :, 1:-1]
    smooth += rows[:, :, 2:]
    smooth += inner * np.float32(4)
    smooth *= np.float32(1 / 13)
    smooth += np.float32(0.5)
    _blended(inner, np.floor(smooth, out=smooth), factor)
    return levels


def _solarized(planes: Planes, threshold: float) -> Planes:
    return planes ^ np.multiply(planes >= np.uint8(math.ceil(threshold)), np.uint8(255))


def _autocontrast(planes: Planes, arithmetic: Arithmetic) -> Planes:
    """Stretch each channel from 0 to 255."""
    lows, highs = planes.min(axis=(1, 2)).tolist(), planes.max(axis=(1, 2)).tolist()
    ends = zip(lows, highs, strict=True)
    return _looked_up(planes, [_stretch(low, high, arithmetic) for low, high in ends])


def _stretch(low: int, high: int, arithmetic: Arithmetic) -> list[int] | None:
    if low == high or (low, high) == (0, 255):
        return None
    if arithmetic == "pillow":
        scale = 255 / (high - low)
        stretched = np.arange(256) * scale - low * scale
    else:
        step = np.float32(high - low) * np.float32(1 / 255)
        stretched = (np.arange(256, dtype=np.float32) - low) / step
    table: list[int] = stretched.clip(0, 255).astype(np.int64).tolist()
    return table


def _equalized(planes: Planes) -> Planes:
    """Give each channel about as many pixels of every level."""
    return _looked_up(planes, [_equalizer(_grey_picture(plane).histogram()) for plane in planes])


def _equalizer(histogram: list[int]) -> list[int] | None:
    counts = np.array(histogram)
    step = int(counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    if not step:
        return None
    below = counts.cumsum() - counts
    table: list[int] = np.minimum((below + step // 2) // step, 255).tolist()
    return table


def _looked_up(planes: Planes, tables: list[list[int] | None]) -> Planes:
    """Map each channel through its table, if it has one."""
    changed = planes.copy()
    for plane, table in zip(changed, tables, strict=True):
        if table is not None:
            plane[:] = np.asarray(_grey_picture(plane).point(table))
    return changed


def _grey_picture(plane: UInt8[np.ndarray, "height width"]) -> Image.Image:
    """Return a channel as a picture that shares its memory."""
    return Image.frombuffer("L", plane.shape[::-1], plane, "raw", "L", 0, 1)


# --- places ---------------------------------------------------------------------------------------
# Outside of the picture all is black.


def _moved(planes: Planes, right: int, down: int) -> Planes:
    """Shift by whole pixels, without interpolation."""
    height, width = planes.shape[1:]
    right, down = max(-width, min(right, width)), max(-height, min(down, height))
    moved = np.zeros(planes.shape, np.uint8)
    target, source = (slice(max(down, 0), height + min(down, 0)) for down in (down, -down))
    across, origin = (slice(max(right, 0), width + min(right, 0)) for right in (right, -right))
    moved[:, target, across] = planes[:, source, origin]
    return moved


def _sheared(planes: Planes, slope: float, axis: Literal[1, 2], manner: Manner) -> Planes:
    """Slide rows (axis 2) or columns (axis 1) along themselves by `slope` times their position."""
    height, width = planes.shape[1:]
    length, lines = (width, height) if axis == 2 else (height, width)
    offsets = slope * (np.arange(lines) + 0.5)
    first, weights = _taps(offsets, manner.interpolation)
    place = first[:, None] + np.arange(length + len(weights) - 1)
    found = _gathered(planes, place.clip(0, length - 1), axis)
    if manner.arithmetic == "torch":  # beyond the edge all is black, also for its neighbours
        found = found * _across((place >= 0) & (place < length), axis)
    sums = _weighed(found, [_across(each[:, None], axis) for each in weights], axis)
    if manner.arithmetic == "torch":
        return _bytes(np.rint(sums))
    middles = offsets[:, None] + (np.arange(length) + 0.5)
    sums *= _across((middles >= 0) & (middles < length), axis)
    sums += np.float32(_ROUNDING)
    return _bytes(_whole(sums))


def _across(table: np.ndarray, axis: Literal[1, 2]) -> np.ndarray:
    """Return a table of (line, position in it) as (row, column)."""
    return table if axis == 2 else table.T


def _gathered(
    planes: Planes, place: Int64[np.ndarray, "lines places"], axis: Literal[1, 2]
) -> Neighbours:
    """Return the pixels at positions of each line of `axis`."""
    height, width = planes.shape[1:]
    if axis == 2:
        index = place + width * np.arange(height)[:, None]
    else:
        index = place.T * width + np.arange(width)
    found: Neighbours = planes.reshape(3, height * width).take(index, axis=1)
    return found


def _weighed(found: Neighbours, weights: list[np.ndarray], axis: Literal[1, 2]) -> Levels:
    """Return the weighted sum of neighbours along `axis`, one for each weight."""
    levels = found.astype(np.float32)
    length = found.shape[axis] - len(weights) + 1
    windows = [
        levels[:, :, tap : tap + length] if axis == 2 else levels[:, tap : tap + length]
        for tap in range(len(weights))
    ]
    sums: Levels = windows[0] * weights[0]
    for window, weight in zip(windows[1:], weights[1:], strict=True):
        sums += window * weight
    return sums


def _taps(
    offsets: np.ndarray, interpolation: Interpolation
) -> tuple[Int64[np.ndarray, " lines"], list[Float32[np.ndarray, " lines"]]]:
    """Return the first neighbour of pixel 0 of each line, and the weights of all neighbours.

    Bicubic: Keys' kernel (Cubic convolution interpolation, 1981) with a = -1, as Pillow has it.
    """
    if interpolation == "nearest":
        return np.floor(offsets + 0.5).astype(np.int64), [np.ones(len(offsets), np.float32)]
    floor = np.floor(offsets)
    t = offsets - floor
    first = floor.astype(np.int64)
    if interpolation == "bilinear":
        return first, [each.astype(np.float32) for each in (1 - t, t)]
    weights = (-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3)
    return first - 1, [each.astype(np.float32) for each in weights]


def _rotated(planes: Planes, degrees: float, manner: Manner) -> Planes:
    """Turn around the centre, counterclockwise."""
    if manner.interpolation == "bilinear":
        return _sampled(planes, math.radians(degrees), manner.arithmetic)
    resample = Image.Resampling[manner.interpolation.upper()]
    picture = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    turned = np.asarray(picture.rotate(degrees, resample))
    return np.ascontiguousarray(turned.transpose(2, 0, 1))


def _sampled(planes: Planes, angle: float, arithmetic: Arithmetic) -> Planes:
    """Turn by torch, which is three times as fast as Pillow."""
    x, y = _turned_places(planes.shape[1], planes.shape[2], angle)
    grid = torch.from_numpy(np.stack([x, y], axis=-1))[None]
    padding = "border" if arithmetic == "pillow" else "zeros"
    sampled = F.grid_sample(
        torch.from_numpy(_levels(planes))[None], grid, padding_mode=padding, align_corners=False
    )
    levels = sampled[0].numpy()
    if arithmetic == "torch":
        return _bytes(np.rint(levels, out=levels))
    levels *= (np.abs(x) <= 1) & (np.abs(y) <= 1)
    levels += np.float32(_ROUNDING)
    return _bytes(levels)


def _turned_places(height: int, width: int, angle: float) -> tuple[Plane, Plane]:
    """Return the origin of each pixel of a turned picture, with edges at -1 and 1."""
    across = np.arange(width) + 0.5 - width / 2
    down = (np.arange(height) + 0.5 - height / 2)[:, None]
    sine, cosine = math.sin(angle), math.cos(angle)
    x = (across * cosine).astype(np.float32) - (down * sine).astype(np.float32)
    y = (across * sine).astype(np.float32) + (down * cosine).astype(np.float32)
    x *= np.float32(2 / width)
    y *= np.float32(2 / height)
    return x, y


# --- policies -------------------------------------------------------------------------------------


def _randaugment(
    planes: Planes, operations: Operations, interpolation: Interpolation, generator: Generator
) -> Planes:
    """Apply two operations of fixed magnitude (Cubuk et al., RandAugment, 2020)."""
    manner = Manner(interpolation, "pillow")
    for _ in range(2):
        planes = _changed(planes, *_drawn(operations, generator), manner)
    return planes


def _trivialaugment(
    planes: Planes, operations: Operations, interpolation: Interpolation, generator: Generator
) -> Planes:
    """Apply one operation of any magnitude (Müller and Hutter, TrivialAugment, 2021)."""
    return _changed(planes, *_drawn(operations, generator), Manner(interpolation, "pillow"))


def _augmix(
    planes: Planes, operations: Operations, interpolation: Interpolation, generator: Generator
) -> Planes:
    """Mix three chains of 1 to 3 operations with the picture (Hendrycks et al., AugMix, 2020)."""
    # It works on tensors, which torchvision cannot rotate bicubically.
    manner = Manner("bilinear" if interpolation == "bicubic" else interpolation, "torch")
    planes = np.ascontiguousarray(planes)
    own, others = torch._sample_dirichlet(torch.ones(1, 2), generator=generator)[0]
    weights = torch._sample_dirichlet(torch.ones(1, 3), generator=generator)[0] * others
    mixed = planes * np.float32(own)
    for weight in weights.tolist():
        chain = planes
        for _ in range(1 + _below(generator, 3)):
            chain = _changed(chain, *_drawn(operations, generator), manner)
        mixed += chain * np.float32(weight)
    return _bytes(mixed)


_POLICIES: dict[Policy, Callable[[Planes, Operations, Interpolation, Generator], Planes]] = {
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
    "augmix": _augmix,
}


def _drawn(operations: Operations, generator: Generator) -> tuple[str, float]:
    """Draw an operation's name and one of its magnitudes, with its sign."""
    name, magnitudes, signed = operations[_below(generator, len(operations))]
    if len(magnitudes) > 1:  # RandAugment draws none of its one
        magnitude = magnitudes[_below(generator, len(magnitudes))]
    else:
        magnitude = magnitudes[0] if magnitudes else 0.0
    negative = signed and torch.rand((), generator=generator).item() <= 0.5
    return name, -magnitude if negative else magnitude


def _changed(planes: Planes, name: str, magnitude: float, manner: Manner) -> Planes:
    return _CHANGES[name](np.ascontiguousarray(planes), magnitude, manner)


_CHANGES: dict[str, Callable[[Planes, float, Manner], Planes]] = {
    "Identity": lambda planes, _, __: planes,
    "ShearX": lambda planes, slope, manner: _sheared(planes, slope, 2, manner),
    "ShearY": lambda planes, slope, manner: _sheared(planes, slope, 1, manner),
    "TranslateX": lambda planes, pixels, _: _moved(planes, int(pixels), 0),
    "TranslateY": lambda planes, pixels, _: _moved(planes, 0, int(pixels)),
    "Rotate": _rotated,
    "Brightness": lambda planes, by, _: _bytes(_brightness(_levels(planes), 1 + by)),
    "Color": lambda planes, by, manner: _bytes(
        _saturation(_levels(planes), 1 + by, manner.arithmetic)
    ),
    "Contrast": lambda planes, by, manner: _bytes(
        _contrast(_levels(planes), 1 + by, manner.arithmetic)
    ),
    "Sharpness": lambda planes, by, _: _bytes(_sharpness(_levels(planes), 1 + by)),
    "Posterize": lambda planes, bits, _: planes & np.uint8(256 - (1 << (8 - int(bits)))),
    "Solarize": lambda planes, share, _: _solarized(planes, 255 * share),
    "AutoContrast": lambda planes, _, manner: _autocontrast(planes, manner.arithmetic),
    "Equalize": lambda planes, _, __: _equalized(planes),
}


def _operations(policy: Policy, size: int) -> Operations:
    """Return a policy's operations, in torchvision's order, with the magnitudes of the papers."""
    if policy == "randaugment":
        places = _places(0.3, 150 / 331 * size, 30.0, 31)
        all_of_them = [Operation("Identity"), *places, *_tones(0.9, 31), *_tables(8, 4, 31)]
        return tuple(each._replace(magnitudes=each.magnitudes[9:10]) for each in all_of_them)
    if policy == "trivialaugment":
        places = _places(0.99, 32.0, 135.0, 31)
        return (Operation("Identity"), *places, *_tones(0.99, 31), *_tables(8, 6, 31))
    if policy == "augmix":
        places = _places(0.3, size / 3, 30.0, 10)
        all_of_them = [*places, *_tables(4, 4, 10), *_tones(0.9, 10)]
        return tuple(each._replace(magnitudes=each.magnitudes[:3]) for each in all_of_them)
    return ()


def _places(shear: float, shift: float, angle: float, count: int) -> list[Operation]:
    names = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    strongest = (shear, shear, shift, shift, angle)
    return [
        Operation(name, _spread(0.0, most, count), signed=True)
        for name, most in zip(names, strongest, strict=True)
    ]


def _tones(strongest: float, count: int) -> list[Operation]:
    magnitudes = _spread(0.0, strongest, count)
    names = ("Brightness", "Color", "Contrast", "Sharpness")
    return [Operation(name, magnitudes, signed=True) for name in names]


def _tables(bits: int, fewer: int, count: int) -> list[Operation]:
    left = (bits - torch.arange(count) / ((count - 1) / fewer)).round()
    return [
        Operation("Posterize", tuple(left.tolist())),
        Operation("Solarize", _spread(1.0, 0.0, count)),
        Operation("AutoContrast"),
        Operation("Equalize"),
    ]


def _spread(first: float, last: float, count: int) -> tuple[float, ...]:
    """Return even steps from first to last, in torch's float32 as in torchvision."""
    return tuple(torch.linspace(first, last, count).tolist())
