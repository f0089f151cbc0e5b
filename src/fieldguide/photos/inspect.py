"""The facts of each file, from one read and one decode.

Nothing here changes a photo. Knows nothing of what follows from the facts.
"""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from fieldguide.errors import UnreadablePhoto
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Catalog
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


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a file. Sizes are upright; `problem` is empty if it can be read."""

    sha256: str = ""  # of the file's bytes; empty where not even they could be read
    width: int = 0  # pixels; 0 where there is no picture
    height: int = 0
    frames: int = 0
    problem: str = ""
    warning: str = ""
    hint: str = ""
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
            "hint": Shared,
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
    truncated: pixels.Truncated = "refuse",
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
    with ThreadPoolExecutor(workers or _cores()) as pool:
        try:
            for done in pool.map(lambda batch: [look(path, truncated) for path in batch], batches):
                for each in done:
                    facts.append(each)
                if progress:
                    progress(len(facts))
        except BaseException:  # Ctrl-C must not wait for a million photos
            pool.shutdown(cancel_futures=True)
            raise
    return facts


def look(path: Path, truncated: pixels.Truncated = "refuse") -> Facts:
    """Return the facts of one file, its faults included; nothing is raised."""
    sha256 = ""
    try:
        data = pixels.read(path)
        sha256 = hashlib.sha256(data).hexdigest()
        frame = pixels.decode(data, shorter_side=_DECODED_SIDE, truncated=truncated)
    except UnreadablePhoto as error:
        return Facts(sha256, problem=error.message, hint=error.hint)
    return Facts(
        sha256,
        frame.width,
        frame.height,
        frame.frames,
        warning=frame.warning,
        fingerprint=_fingerprint(frame.image),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fingerprint(image: Image.Image) -> bytes:
    # reducing_gap: whole pixels are averaged first, which is many times faster on large pictures
    small = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=4.0)
    gray, *colours = small.convert("YCbCr").split()
    return gray.tobytes() + b"".join(c.reduce(SIDE // COLOUR_SIDE).tobytes() for c in colours)
