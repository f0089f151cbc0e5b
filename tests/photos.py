"""Pictures for tests: drawn from a seed, so that each is like no other, and small."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NATURE = Path(__file__).parents[2] / "shared" / "data" / "nature100"
needs_photographs = pytest.mark.skipif(not NATURE.is_dir(), reason="needs ../shared/data/nature100")


def photograph(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A soft, colourful picture in RGB: 6 × 6 random colours, enlarged, with a little grain."""
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    grain = draws.integers(-6, 7, smooth.shape)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(root: Path, *names: str) -> Path:
    """Files with a picture's name and no content, where nothing looks into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def jpeg(seed: int) -> bytes:
    return encoded(photograph(seed))


def save(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> Path:
    """A photograph as JPEG in a file; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(photograph(seed, size), quality=90))
    return path


def chunk(name: bytes, content: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, in levels of 255."""
    a, b = np.asarray(one).astype(np.int16), np.asarray(other).astype(np.int16)
    assert a.shape == b.shape
    return float(np.abs(a - b).mean())
