"""Features of photos in the cache folder: what a frozen network makes of each, for later runs.

    ROOT/features/0f3c…/      one definition of features: `folder_of`
      source.txt              the definition in words
      9a1e….safetensors       `keys` (n, 32), SHA-256 of photos, and `features` (n, channels);
                              its name is the SHA-256 of the file, by which damage is seen

A pure cache: what is damaged or gone is computed again, to the same bits. Knows nothing of
networks.
"""

import hashlib
import shutil
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fieldguide.errors import ResourceError
from fieldguide.storage import cache_folder, files
from fieldguide.storage.decoded import FREE_BYTES

KIND = "features"  # the folder of all definitions

Features = Float32[np.ndarray, "n channels"]


def folder_of(root: Path, definition: str) -> Path:
    """Return the folder of one definition, marked as in use by this process."""
    folder = cache_folder.folder_of(KIND, definition, root)
    with suppress(ResourceError):
        files.make_folder(folder)
        cache_folder.use(folder, definition)
    return folder


def read(folder: Path, wanted: Container[str]) -> dict[str, Float32[np.ndarray, " channels"]]:
    """Return the intact features of wanted photos, by the SHA-256 of the photos."""
    found: dict[str, Float32[np.ndarray, " channels"]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(OSError, ResourceError, SafetensorError, KeyError):
            if files.sha256(path) == path.stem:
                held = load_file(path)
                keys = [key.tobytes().hex() for key in held["keys"]]
                pairs = zip(keys, held["features"], strict=True)
                found |= {key: row.copy() for key, row in pairs if key in wanted}
    return found


def write(
    folder: Path, keys: Sequence[str], features: Features, notice: Callable[[str], None]
) -> None:
    """Keep features by the SHA-256 of their photos, or notice why that is not possible."""
    packed = np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(-1, 32)
    content = save({"keys": packed, "features": features})
    try:
        if shutil.disk_usage(folder).free < FREE_BYTES + len(content):
            raise OSError("the disk is nearly full")
        files.write_bytes(folder / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
    except (OSError, ResourceError) as error:
        notice(f"features of photos are not kept: {error}")
