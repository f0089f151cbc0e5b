"""The facts of each file, from one read and one decode.

Nothing here changes a photo. Knows nothing of what follows from the facts.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fieldguide.errors import UnreadablePhoto
from fieldguide.machine.cores import count_cores
from fieldguide.photos import crops, deep, pixels
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.pixels import Reading
from fieldguide.storage import columns
from fieldguide.storage.columns import Packed, Records, Shared

# A fingerprint is a thumbnail: 24 × 24 values of gray, then 6 × 6 of each of two colours. With
# 16 × 16 a tenth of the crops by a tenth are lost, and small animals are seen half as well.
SIDE = 24
COLOUR_SIDE = 6
GRAY = SIDE * SIDE
# Pixels of the shorter side to decode for it: with half of that, the half pixel by which reduced
# decoding may shift a picture cost 0.05 of correlation (in a thumbnail of 32 × 32).
_DECODED_SIDE = 128
# An eighth of the range: of 6,834 photos of 100 species the flattest
# used 55 levels, and the next 119.
FEW_LEVELS = 32
# Photos that the range of a collection is taken from, evenly chosen (taste).
_SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a file. Sizes are upright; `problem` is empty if it can be read."""

    sha256: str = ""  # of the file's bytes; empty where not even they could be read
    width: int = 0  # pixels; 0 where there is no picture
    height: int = 0
    frames: int = 0
    problem: str = ""
    warning: str = ""
    oddity: str = ""  # how values were taken, where that may not be meant
    hint: str = ""
    photo: str = ""  # of a crop: the SHA-256 of the file that it is of
    fingerprint: bytes = b""  # 576 gray and 72 colour values; empty where there is no picture


def in_columns(facts: Iterable[Facts] = ()) -> Records[Facts]:
    """Return facts as `inspect` does: about 740 bytes a photo."""
    return Records(
        Facts,
        {
            "sha256": columns.digests,
            "width": partial(array, "i"),
            "height": partial(array, "i"),
            "frames": partial(array, "i"),
            "problem": Shared,
            "warning": Shared,
            "oddity": Shared,
            "hint": Shared,
            "photo": columns.digests,
            "fingerprint": partial(Packed, bytes, bytes),
        },
        facts,
    )


def as_records(facts: Sequence[Facts]) -> Records[Facts]:
    """Return the facts in columns, as `inspect` does."""
    return facts if isinstance(facts, Records) else in_columns(facts)


def inspect(
    catalog: Catalog,
    *,
    workers: int | None = None,
    reading: Reading = Reading(),
    progress: Callable[[int], None] | None = None,
) -> Records[Facts]:
    """Return the facts of every photo in catalog order, from one read and one decode each.

    `workers` are threads, as decoding and hashing release the interpreter's lock; the result does
    not depend on them. `progress` is called in the caller's thread with the number of photos done.
    """
    paths = catalog.files
    # one future a photo would cost as much as decoding a small one
    batches = (paths[start : start + 32] for start in range(0, len(paths), 32))
    facts = in_columns()
    with ThreadPoolExecutor(workers or count_cores()) as pool:
        try:
            for done in pool.map(lambda batch: [look(path, reading) for path in batch], batches):
                for each in done:
                    facts.append(each)
                if progress:
                    progress(len(facts))
        except BaseException:  # Ctrl-C must not wait for a million photos
            pool.shutdown(cancel_futures=True)
            raise
    return facts


def look(path: Path, reading: Reading = Reading()) -> Facts:
    """Return the facts of one file, its faults included; nothing is raised.

    Photos of more than 8 bits a channel are compared in their own range, whatever `reading` says.
    """
    sha256 = ""
    try:
        data = pixels.read(path)
        sha256 = hashlib.sha256(data).hexdigest()
        part, whole = crops.unpacked(data)
        own = replace(reading, tone="own")
        frame = pixels.decode(data, shorter_side=_DECODED_SIDE, reading=own)
        shown = pixels.decode(data, reading=reading).image if frame.span else frame.image
    except UnreadablePhoto as error:
        return Facts(sha256, problem=error.message, hint=error.hint)
    return Facts(
        sha256,
        frame.width,
        frame.height,
        frame.frames,
        warning=frame.warning,
        oddity=frame.oddity or _narrow(shown, frame.span),
        photo=hashlib.sha256(whole).hexdigest() if part else "",
        fingerprint=_fingerprint(frame.image),
    )


def common_range(files: Sequence[Path], reading: Reading) -> deep.Range | None:
    """Return the range of values in photos of more than 8 bits a channel; None if there are none.

    It reaches from the 1st percentile of the photos' own lowest values to the 99th of their
    highest, so that an odd photo in a hundred does not matter, of at most 1,000 photos.
    """
    chosen = files[:: -(-len(files) // _SAMPLE) or 1]
    own = replace(reading, tone="own")

    def span(path: Path) -> deep.Range | None:
        try:
            return pixels.decode(pixels.read(path), shorter_side=1, reading=own).span
        except UnreadablePhoto:
            return None

    with ThreadPoolExecutor(count_cores()) as pool:
        spans = np.array([found for found in pool.map(span, chosen) if found])
    if not len(spans):
        return None
    low, high = float(np.percentile(spans[:, 0], 1)), float(np.percentile(spans[:, 1], 99))
    return (low, high) if low < high else (low, low + 1)


def _narrow(image: Image.Image, span: deep.Range | None) -> str:
    """Return in words that a photo uses few of the levels that it is shown in; empty if many."""
    if span:
        counts = np.reshape(image.histogram(), (3, 256))
        levels = int(np.count_nonzero(counts.any(axis=0)))
        values = f", as most of its values lie between {span[0]:,.6g} and {span[1]:,.6g}"
    else:
        gray = np.asarray(image.convert("L"))
        levels, values = int(np.ptp(gray)) + 1, ""
    return f"uses {levels} of 256 levels{values}" if levels < FEW_LEVELS else ""


def _fingerprint(image: Image.Image) -> bytes:
    # reducing_gap: whole pixels are averaged first, which is many times faster on large pictures
    small = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=4.0)
    gray, *colours = small.convert("YCbCr").split()
    return gray.tobytes() + b"".join(c.reduce(SIDE // COLOUR_SIDE).tobytes() for c in colours)
