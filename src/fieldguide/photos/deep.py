"""Pictures of more than 8 bits a channel, as instruments write them: from their values to 8 bits.

Knows nothing of files but a TIFF's own words on its values.
"""

import io
import logging
import math
import re
import struct
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Num, UInt8, UInt16
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fieldguide.errors import UnreadablePhoto

Range: TypeAlias = tuple[float, float]
# The whole range of the type, each picture's own percentiles, or one range for all.
Tone: TypeAlias = Literal["full", "own"] | Range
Values: TypeAlias = Num[np.ndarray, "height width *bands"]
Bytes: TypeAlias = UInt8[np.ndarray, "height width *bands"]
Mask: TypeAlias = Bool[np.ndarray, "height width *bands"]

# Percent of a picture's values that its own range leaves out at either end: a hot pixel in each row
# of a thermal camera is as many, and an animal of a thousandth of the picture stays (taste).
OUTSIDE = 0.1

_BITS, _COMPRESSION, _PHOTOMETRIC, _BANDS, _PLANES, _KIND = 258, 259, 262, 277, 284, 339
_GDAL_NODATA = 42113  # a private tag of the GDAL library: a number as text
_SIXTEEN_BITS = (0.0, 65535.0)
_MIDDLE = 128  # of a picture without any range: neither black nor white
_ROWS = 64
_ENOUGH = 1_000_000  # values that percentiles are taken from, evenly over the picture


def to_bytes(values: Values, tone: Tone, no_data: Collection[float] = ()) -> Bytes:
    """Return values in 8 bits; what is no data, as NaN or `no_data` in all bands, becomes 0.

    `full` scales whole numbers within 0 to 65,535 by 1/257, and others by the lowest and highest
    of the picture. Values of 8 bits stay as they are.
    """
    if values.dtype == np.uint8:
        return values
    if tone == "full":
        low, high = _whole_range(values, no_data)
    else:
        low, high = span(values, no_data) or (0.0, 0.0) if tone == "own" else tone
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS):  # the numbers between take 8 bytes each
        rows = values[start : start + _ROWS]
        if high > low:
            shares = (rows.astype(np.float64) - low) / (high - low)
            found = np.rint(255 * np.nan_to_num(shares, posinf=1, neginf=0).clip(0, 1))
        else:
            found = np.full(rows.shape, _MIDDLE)
        scaled[start : start + _ROWS] = np.where(_known(rows, no_data), found, 0)
    return scaled


def span(values: Values, no_data: Collection[float] = ()) -> Range | None:
    """Return the range of a picture's values without a thousandth of them at either end.

    None where all are no data.
    """
    step = math.isqrt(values.size // _ENOUGH) + 1
    some = values[::step, ::step]
    found = some[_known(some, no_data)]
    if not found.size:
        return None
    low, high = np.percentile(found, (OUTSIDE, 100 - OUTSIDE))
    return float(low), float(high)


def _whole_range(values: Values, no_data: Collection[float]) -> Range:
    if values.dtype == np.uint16:
        return _SIXTEEN_BITS
    found = values[_known(values, no_data)]
    if not found.size:
        return 0.0, 0.0
    low, high = float(found.min()), float(found.max())
    whole = np.issubdtype(values.dtype, np.integer)
    return _SIXTEEN_BITS if whole and low >= 0 and high <= _SIXTEEN_BITS[1] else (low, high)


def _known(values: Values, no_data: Collection[float]) -> Mask:
    """Return a mask in the shape of the values: finite, and not `no_data` in all bands."""
    known: Mask = np.isfinite(values)
    for value in no_data:
        with np.errstate(over="ignore"):  # beyond the type: it cannot occur, or is infinite
            there = values == (np.float32(value) if values.dtype == np.float32 else value)
        known &= ~(there.all(axis=-1, keepdims=True) if values.ndim == 3 else there)
    return known


# --- 16 bits a channel in colour ------------------------------------------------------------------


# The library's remarks on odd tags are not for users.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


def is_colour(picture: ImageFile.ImageFile) -> bool:
    """Return whether an opened picture has 16 bits a colour, of which Pillow keeps 8."""
    return any(re.match("RGB.*;16", _rawmode(tile.args)) for tile in picture.tile)


def is_gray_with_alpha(picture: ImageFile.ImageFile) -> bool:
    """Return whether an opened picture has 16 bits of gray and of transparency."""
    return any(_rawmode(tile.args) == "LA;16B" for tile in picture.tile)


def split_bytes(picture: ImageFile.ImageFile) -> None:
    """Change how a picture of gray with alpha is decoded: its four bytes as four bands."""
    picture.tile = [tile._replace(args="RGBA") for tile in picture.tile]


def from_bytes(picture: Image.Image) -> UInt16[np.ndarray, "height width"]:
    """Return the 16-bit gray of a picture that was decoded by `split_bytes`."""
    values = np.asarray(picture).astype(np.uint16)
    return values[..., 0] << 8 | values[..., 1]


def swap_bytes(picture: ImageFile.ImageFile) -> None:
    """Change how an opened picture will be decoded: the other byte of each 16 bits is kept.

    Pillow keeps the first or second of two bytes by a raw mode that says which is the high one.
    """
    picture.tile = [
        tile._replace(args=_with_rawmode(tile.args, _swapped(_rawmode(tile.args))))
        for tile in picture.tile
    ]


def joined(high: Image.Image, low: Image.Image) -> UInt16[np.ndarray, "height width 3"]:
    """Return the 16-bit colours of a picture that was decoded both ways."""
    first, second = (np.asarray(each)[..., :3].astype(np.uint16) for each in (high, low))
    return first << 8 | second


def _rawmode(args: Any) -> str:
    return str(args[0] if isinstance(args, tuple) and args else args)


def _with_rawmode(args: Any, rawmode: str) -> Any:
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode


def _swapped(rawmode: str) -> str:
    mode, order = rawmode.split(";")
    return f"{mode};{_SWAPPED[order]}"


# --- TIFF -----------------------------------------------------------------------------------------


def is_plain_tiff(data: bytes) -> bool:
    """Return whether a TIFF is of a form that Pillow reads right, or damaged.

    Beyond 8 bits these are unsigned or float gray from black to white and RGB, all bands together;
    compressed big-endian ones only if unsigned, as libtiff gives the others in native order and
    Pillow swaps them again. Of 8 bits only bands of gray that lie apart are left to others.
    """
    if data[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        return False
    try:
        tags = _tags(data)
    except UnreadablePhoto:
        return True
    bits, bands = max(tags.get(_BITS, (1,))), int(tags.get(_BANDS, 1))
    photometric, apart = tags.get(_PHOTOMETRIC), tags.get(_PLANES, 1) == 2 and bands > 1
    if bits <= 8:
        return not (apart and photometric in (0, 1))
    unsigned = is_unsigned(tags)
    if apart or photometric not in (1, 2, 5) or (photometric == 1 and bands > 1):
        return False
    swapped = data[:2] == b"MM" and tags.get(_COMPRESSION, 1) != 1
    return unsigned or not swapped


def is_unsigned(tags: Any) -> bool:
    """Return whether the values of a TIFF are whole numbers from 0."""
    return int(tags.get(_KIND, (1,))[0]) == 1


def no_data_of(tags: Any) -> frozenset[float]:
    """Return the value that a TIFF's own tag calls `no data`, if it has one."""
    try:
        return frozenset({float(str(tags[_GDAL_NODATA]).strip("\0 "))})
    except (KeyError, ValueError):
        return frozenset()


@dataclass(frozen=True, slots=True)
class OddTiff:
    """The values of a TIFF that Pillow cannot read, as they are stored."""

    values: Values  # of one band or three
    no_data: frozenset[float]
    orientation: int  # as in EXIF
    frames: int
    oddity: str  # empty, or what was taken for what


def read_tiff(data: bytes, refuse_size: Callable[[int, int], None]) -> OddTiff:
    """Return the values of a TIFF by the extra `tiff`; bands beyond the first three are left out.

    `refuse_size` is called with width and height before memory is taken. Raises `UnreadablePhoto`,
    which names the form of the values unless the file is damaged.
    """
    tags = _tags(data)
    form = _form(tags)
    if tags.get(_PHOTOMETRIC) not in (0, 1, 2):
        raise UnreadablePhoto(f"a TIFF of {form} in colours other than RGB cannot be read")
    try:
        import tifffile
    except ImportError as error:
        hint = "install `fieldguide[tiff]`, or convert the photos to 8 or 16 bits of 1 or 3 bands"
        raise UnreadablePhoto(f"a TIFF of {form} needs an extra", hint=hint) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            bands = page.samplesperpixel
            refuse_size(page.imagewidth, page.imagelength * -(-bands // 8))
            axes = page.axes
            if axes not in _AXES or page.dtype is None or page.dtype.kind not in "iuf":
                raise UnreadablePhoto(f"a TIFF of {form} cannot be read")
            values = page.asarray(maxworkers=1)
            frames = len(file.pages)
    except tifffile.TiffFileError as error:
        raise UnreadablePhoto("damaged") from error
    except ValueError as error:  # such as a compression
        raise UnreadablePhoto(f"a TIFF of {form} cannot be read: {error}") from error
    values = np.moveaxis(values, 0, -1) if axes == "SYX" else values
    oddity = ""
    if values.ndim == 3 and bands != 3:
        used = "the first is used, in gray" if bands < 3 else "the first three are used as colours"
        values = values[..., 0] if bands < 3 else values[..., :3]
        oddity = f"{bands} bands: {used}"
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        whole = values.dtype.kind in "iu"
        values = np.invert(values) if whole else values.max() + values.min() - values
    return OddTiff(values, no_data_of(tags), int(tags.get(274, 1)), frames, oddity)


_AXES = ("YX", "YXS", "SYX")
_KINDS = {1: "whole numbers", 2: "whole numbers", 3: "floats"}
_TAG_ERRORS = (
    *(SyntaxError, TypeError, ValueError, LookupError, OSError, ArithmeticError),
    *(struct.error, AttributeError, AssertionError),
)


def _tags(data: bytes) -> ImageFileDirectory_v2:
    """Return the tags of the first picture of a TIFF; raise `UnreadablePhoto` if damaged."""
    try:
        tags = ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        places = tags.get(273) or tags.get(324)  # of strips or tiles
        if not places or max(places) >= len(data) or not tags.get(256) or not tags.get(257):
            raise UnreadablePhoto("damaged")
    except _TAG_ERRORS as error:
        raise UnreadablePhoto("damaged") from error
    return tags


def _form(tags: ImageFileDirectory_v2) -> str:
    """Return how the values of a TIFF are stored, in words."""
    bands, bits = int(tags.get(_BANDS, 1)), tags.get(_BITS, (1,))[0]
    kind = _KINDS.get(tags.get(_KIND, (1,))[0], "values")
    apart = ", each apart" if tags.get(_PLANES) == 2 else ""
    return f"{bands} {'band' if bands == 1 else 'bands'} of {bits}-bit {kind}{apart}"
