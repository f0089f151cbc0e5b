"""The way from files to the pictures that a store keeps, and from these to what a network is shown.

Needs no torch. A picture is upright RGB of shape (height, width, 3). Knows nothing of batches,
training or networks.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL.Image import Image, Resampling

from fieldguide.photos import pixels
from fieldguide.photos.catalog import TOO_SMALL
from fieldguide.photos.pixels import Reading
from fieldguide.photos.resampling import resampled
from fieldguide.recipe import Interpolation

Picture = UInt8[np.ndarray, "height width 3"]
Part = UInt8[np.ndarray, "down across 3"]  # of a picture

LONGEST = 16  # times as long as wide: longer pictures are cut before they are resized (taste)


@dataclass(frozen=True)
class Decoding:
    """The way from files to pictures: all that decides the pixels that a store keeps."""

    decoded: int  # the `shorter_side` of `pixels.decode`
    side: int | None  # the most pixels of the shorter side; None: as decoded
    interpolation: Interpolation
    reading: Reading

    @classmethod
    def of(
        cls,
        stored_side: int,
        eval_resize: int,
        interpolation: Interpolation,
        reading: Reading,
    ) -> "Decoding":
        """Return the decoding for a recipe's training, evaluation and prediction."""
        decoded = max(stored_side, decoded_side(eval_resize))
        return cls(decoded, stored_side or None, interpolation, reading)

    def __call__(self, path: Path) -> Picture:
        """Return the picture, upright; raise `UnreadablePhoto`."""
        return self._kept(pixels.load(path, shorter_side=self.decoded, reading=self.reading))

    def of_bytes(self, data: bytes) -> Picture:
        """Return the picture in the bytes of a file; raise `UnreadablePhoto`."""
        frame = pixels.decode(data, shorter_side=self.decoded, reading=self.reading)
        return self._kept(frame.image)

    def _kept(self, picture: Image) -> Picture:
        if self.side is not None:
            picture = shrink(picture, self.side, self.interpolation)
        return np.asarray(picture)


def size_if_small(picture: Picture) -> str:
    """Return the size of a picture that shows nothing, in words, and nothing for others."""
    height, width = picture.shape[:2]  # as in the file, if so small
    return f"{width} × {height} pixels" if min(height, width) < TOO_SMALL else ""


def decoded_side(side: int) -> int:
    """Return the shorter side (pixels) that a decoder must leave for a resize to `side`."""
    return 2 * side  # the resize still halves it, and so smooths what the decoder left rough


def shrink(picture: Image, side: int, interpolation: Interpolation) -> Image:
    """Return a picture with at most `side` pixels on the shorter side, very long ones cut."""
    picture = shorten(picture)
    if min(picture.size) <= side:
        return picture
    across, down = sides((picture.width, picture.height), side)
    return picture.resize((across, down), Resampling[interpolation.upper()])


def shorten(picture: Image) -> Image:
    """Return the centre of a picture, at most `LONGEST` times as long as wide.

    Otherwise a photo of 1 × 5000 pixels would be enlarged to 512 × 2,560,000: 6 GB and 27 s.
    """
    longest = LONGEST * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    across, down = min(picture.width, longest), min(picture.height, longest)
    left, top = round((picture.width - across) / 2), round((picture.height - down) / 2)
    return picture.crop((left, top, left + across, top + down))


def sides(of: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return the sides of a picture resized to a shorter side, rounded down as torchvision does."""
    first, second = (shorter * side // min(of) for side in of)
    return first, second


def centre(picture: Picture, height: int, width: int) -> Part:
    """Return the centre as a view, on black if the picture is smaller."""
    down, across = picture.shape[:2]
    if down < height or across < width:
        more = [max(height - down, 0), max(width - across, 0)]
        picture = np.pad(picture, [*((each // 2, (each + 1) // 2) for each in more), (0, 0)])
        down, across = picture.shape[:2]
    top, left = round((down - height) / 2), round((across - width) / 2)
    return picture[top : top + height, left : left + width]


def shortened(picture: Picture) -> Part:
    """Return the centre as a view, at most `LONGEST` times as long as wide."""
    height, width = picture.shape[:2]
    longest = LONGEST * min(height, width)
    return centre(picture, min(height, longest), min(width, longest))


def square(
    picture: Picture, size: int, resize: int, interpolation: Interpolation
) -> UInt8[np.ndarray, "resize resize 3"]:
    """Return the square of a resized picture whose centre of `size` pixels a network is shown.

    The shorter side becomes `resize`, at least `size`. The centre is, to the pixel, that of
    `transforms.evaluation`, though centres of centres may differ from it by one.
    """
    picture = shortened(picture)
    inner = round((resize - size) / 2)
    spans = []
    whole = sides(picture.shape[:2], resize)
    for side in whole:
        start = round((side - size) / 2) - inner
        spans.append(range(start, start + resize))
    return resampled(picture, whole, interpolation, spans[0], spans[1])
