"""Crops of photos by boxes: which boxes count, how much around them is shown, and their addresses.

A crop is addressed like a file below its photo, `IMG_1.JPG/square 0.1 0.2 0.3 0.4`, and its bytes
are those of the photo behind a line with this name. So whatever reads photos by path, hashes them
or keeps them decoded does so with crops. The numbers are left, top, width and height as shares of
the upright picture; `square` makes the shorter side as long as the other in pixels, around the same
middle. What lies outside the picture repeats its edge; nothing is distorted.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fieldguide.errors import DataError, UsageError

_NAME = r"(box|square)((?: -?\d{1,2}(?:\.\d{1,5})?){4})"
_CROP = re.compile(rf"(?s)(.+)/{_NAME}")
_HEAD = re.compile(rf"fieldguide {_NAME}\n".encode())


class Box(NamedTuple):
    """A part of a picture, in shares of its width and height."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Crop:
    """The rule from the boxes of photos to crops, as `--crop` names it.

    All boxes count, or the `largest` of each photo, without those that a detector gave less than
    `confidence`. Each is widened by `margin` of its width and height on every side, and made square
    unless `tight`.
    """

    largest: bool = False
    tight: bool = False
    margin: float = 0.1
    confidence: float = 0.2

    @classmethod
    def of(cls, text: str) -> "Crop":
        """Return the rule that a text names, such as `box,largest,margin=0.2`; else UsageError."""
        first, *words = [word.strip() for word in text.split(",")]
        given: dict[str, bool | float] = {}
        for name, _, value in (word.partition("=") for word in words):
            if name in {"largest", "tight"} and not value:
                given[name] = True
            elif name in {"margin", "confidence"} and (share := _share(value)) is not None:
                given[name] = share
            else:
                first = ""
        if first != "box":
            raise UsageError(
                f"no rule of crops: `{text}`",
                hint="`box`, or with more: box,largest,tight,margin=0.1,confidence=0.2",
            )
        return cls(**given)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The text that names the rule, whole."""
        flags = [each.name for each in fields(self) if getattr(self, each.name) is True]
        return ",".join(
            ["box", *flags, f"margin={self.margin:g}", f"confidence={self.confidence:g}"]
        )

    def address(self, photo: str, box: Box) -> str:
        """Return the path of the crop of a photo."""
        wide, high = self.margin * box.width, self.margin * box.height
        sides = (box.left - wide, box.top - high, box.width + 2 * wide, box.height + 2 * high)
        shape = "box" if self.tight else "square"
        return f"{photo}/{shape} " + " ".join(
            f"{side:.5f}".rstrip("0").rstrip(".") for side in sides
        )


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None


def box_of(text: str, where: str) -> Box | None:
    """Return the box that a cell names, as far as it lies in the picture; None if it has no area.

    Raises DataError that says `where` for anything but four numbers.
    """
    try:
        left, top, width, height = map(float, text.split())
    except ValueError:
        left = width = math.nan
        top = height = 0.0
    sides = (left, top, width, height)
    # a detector's box may reach a little beyond the picture
    if not (math.isfinite(sum(sides)) and max(map(abs, sides)) <= 1.5 and min(width, height) >= 0):
        expected = "left, top, width and height as shares of the picture, 0 to 1"
        raise DataError(f"{where}: expected a box, {expected}, found `{text[:60]}`")
    right, bottom = min(left + width, 1.0), min(top + height, 1.0)
    left, top = max(left, 0.0), max(top, 0.0)
    # a hundred-thousandth is the last digit of an address
    if right - left < 1e-5 or bottom - top < 1e-5:
        return None
    return Box(left, top, right - left, bottom - top)


def parted(path: str) -> tuple[str, str]:
    """Return the path of the photo, and the name of the crop of it; empty for a whole photo."""
    found = _CROP.fullmatch(path)
    return (found[1], f"{found[2]}{found[3]}") if found else (path, "")


def photo_of(path: Path) -> Path:
    """Return the path of a crop's photo; a photo's own."""
    return Path(parted(path.as_posix())[0])


def headed(name: str, photo: bytes) -> bytes:
    """Return the bytes of a crop: those of its photo, behind its name."""
    return f"fieldguide {name}\n".encode() + photo


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a picture that is shown, in shares of it, which may reach beyond."""

    box: Box
    square: bool

    def sides(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in pixels of an upright picture of that size."""
        wide, high = self.box.width * width, self.box.height * height
        x, y = self.box.left * width + wide / 2, self.box.top * height + high / 2
        if self.square:
            wide = high = max(wide, high)
        left, top = min(round(x - wide / 2), width - 1), min(round(y - high / 2), height - 1)
        return left, top, left + max(round(wide), 1), top + max(round(high), 1)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height in pixels, of a picture of that size."""
        left, top, right, bottom = self.sides(width, height)
        return right - left, bottom - top

    def of(self, image: Image.Image) -> Image.Image:
        """Return the part of an upright RGB picture; its edge is repeated outside it."""
        left, top, right, bottom = self.sides(*image.size)
        x, y = max(left, 0), max(top, 0)
        inside = image.crop(
            (x, y, max(min(right, image.width), x + 1), max(min(bottom, image.height), y + 1))
        )
        around = (
            (y - top, bottom - y - inside.height),
            (x - left, right - x - inside.width),
            (0, 0),
        )
        if not any(map(any, around)):
            return inside
        return Image.fromarray(np.pad(np.asarray(inside), around, mode="edge"))


def unpacked(data: bytes) -> tuple[Part | None, bytes]:
    """Return the part that the bytes of a crop show, None for a photo, and those of the photo."""
    found = _HEAD.match(data)
    if found is None:
        return None, data
    box = Box(*map(float, found[2].split()))
    return Part(box, found[1] == b"square"), data[found.end() :]


def counting(
    photos: Sequence[str], boxes: Sequence[Box | None], confidences: Sequence[float], rule: Crop
) -> list[int]:
    """Return the numbers of boxes that count, in order, of boxes of any photos; None is no box."""
    areas = [-1.0 if box is None else box.width * box.height for box in boxes]
    sure = [
        row
        for row, confidence in enumerate(confidences)
        if areas[row] >= 0 and not confidence < rule.confidence  # NaN where none is known
    ]
    if not rule.largest:
        return sure
    best: dict[str, int] = {}
    for row in sure:
        if photos[row] not in best or areas[row] > areas[best[photos[row]]]:
            best[photos[row]] = row
    return sorted(best.values())


def confidence_of(text: str, where: str) -> float:
    """Return a detector's confidence, NaN for an empty cell; DataError for no share."""
    if not text.strip():
        return math.nan
    if (share := _share(text)) is None:
        raise DataError(f"{where}: expected a confidence from 0 to 1, found `{text[:60]}`")
    return share
