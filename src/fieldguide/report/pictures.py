"""The photographs on the page: small upright JPEGs as data, heat maps over them, links to files.

A reason stands in the place of a photo that is gone, changed or broken. Knows nothing of runs.
"""

import base64
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup
from PIL import Image

from fieldguide.errors import UnreadablePhoto
from fieldguide.photos import pixels

# At 96 pixels a photograph takes about 3 kB, without visible blocks (taste).
QUALITY = 75

# Viridis at ten equal steps, dark to bright: S. van der Walt and N. Smith, 2015. Its brightness
# alone shows the value, without any sight of colours.
_VIRIDIS = (
    (68, 1, 84),
    (72, 40, 120),
    (62, 74, 137),
    (49, 104, 142),
    (38, 130, 142),
    (31, 158, 137),
    (53, 183, 121),
    (110, 206, 88),
    (181, 222, 43),
    (253, 231, 37),
)
_COVER = 0.6  # share of the heat's colour in an overlay; the rest is the photo in gray (taste)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture for the page as a data URI with its size in pixels, or the reason for none."""

    uri: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


def picture(path: Path, side: int = 96, *, sha256: str = "") -> Picture:
    """Return the whole photo, upright, at most `side` pixels long; never enlarged.

    A file of another `sha256`, if given, is refused. A truncated photo is shown as far as it goes.
    """
    try:
        data = pixels.read(path)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            return Picture(reason="the file has changed since")
        image = pixels.decode(data, shorter_side=side, reading=pixels.SHOWN).image
    except UnreadablePhoto as error:
        return Picture(reason=error.message)
    return _encoded(image, side)


def from_pixels(values: UInt8[np.ndarray, "height width 3"], side: int = 96) -> Picture:
    """Return a picture of pixels that are already decoded."""
    return _encoded(Image.fromarray(values), side)


def overlay(
    values: UInt8[np.ndarray, "height width 3"],
    heat: Float[np.ndarray, "rows columns"],
    side: int = 96,
) -> Picture:
    """Return the pixels in gray under `heat` (0 to 1, of any size) in viridis: bright is high."""
    image = Image.fromarray(values)
    coarse = Image.fromarray(heat.astype(np.float32))
    fine = np.asarray(coarse.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    return _encoded(Image.blend(image.convert("L").convert("RGB"), _viridis(fine), _COVER), side)


def image(shown: Picture, alt: str, *, href: str = "") -> Markup:
    """Return the picture as HTML, a link if `href` is given, or the reason for none in words."""
    if not shown.uri:
        return Markup('<span class="note">no picture: {}</span>').format(shown.reason)
    drawn = Markup('<img src="{}" width="{}" height="{}" alt="{}" decoding="async">').format(
        shown.uri, shown.width, shown.height, alt
    )
    return Markup('<a href="{}">{}</a>').format(href, drawn) if href else drawn


def link(file: Path, folder: Path) -> str:
    """Return the address of a file for a page in `folder`: relative, unless on another drive."""
    try:
        way = Path(os.path.relpath(file.absolute(), folder.absolute()))
    except ValueError:  # Windows: there is no way from one drive to another
        return file.absolute().as_uri()
    return quote(os.fsencode(way.as_posix()))


def _encoded(image: Image.Image, side: int) -> Picture:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/jpeg;base64,{text}", small.width, small.height)


def _viridis(values: Float[np.ndarray, "height width"]) -> Image.Image:
    places = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(values, places, channel) for channel in np.array(_VIRIDIS).T]
    return Image.fromarray(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))
