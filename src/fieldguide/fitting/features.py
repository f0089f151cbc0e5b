"""The features of photos under a network, each computed once and then taken from the cache.

Knows nothing of what they are for.
"""

import hashlib
from collections.abc import Sequence
from importlib import metadata

import numpy as np
import torch
from numpy.typing import NDArray

from fieldguide.errors import TrainingError
from fieldguide.fitting.jobs import loader_of
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.settings import cache_of
from fieldguide.machine.device import choose_device, device_name, memory_format
from fieldguide.network.network import Network, last_linear
from fieldguide.photos.augment import Normaliser
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.pixels import Reading
from fieldguide.recipe import ResolvedRecipe
from fieldguide.storage import features as kept
from fieldguide.train.probe import Features, features_of

VERSION = 2  # of the features: raise it when the same photo gets others
# The definition of features: settings that change them, beside weights, device and versions.
SETTINGS = (
    *("eval_size", "eval_resize", "stored_side", "interpolation", "mean", "std"),
    *("precision", "layout"),
)
PIECE = 4096  # photos whose features are kept at a time, so that a kill costs no more


def kept_features(
    recipe: ResolvedRecipe,
    network: Network,
    catalog: Catalog,
    rows: NDArray[np.int64],
    watcher: Watcher,
) -> Features:
    """Return the features of these rows of the catalog; TrainingError if they are not finite."""
    device = choose_device(recipe.device)
    layout = memory_format(recipe.layout)
    network.to(device).to(memory_format=layout)
    hashes = catalog.table.column("sha256")
    photo_of = {hashes[row]: row for row in reversed(rows.tolist())}  # copies have the same
    root = cache_of(recipe, watcher.notice)
    folder = kept.folder_of(root, _definition(recipe, network)) if root else None
    known = kept.read(folder, photo_of) if folder else {}
    missing = np.sort([row for key, row in photo_of.items() if key not in known]).astype(np.int64)
    if len(missing):
        watcher.on_features(len(missing))
    loader = loader_of(recipe, catalog.table, catalog.root, device, watcher.notice)
    for start in range(0, len(missing), PIECE):
        piece = missing[start : start + PIECE]
        found = features_of(
            network,
            loader,
            piece,
            normaliser=lambda: Normaliser(recipe.mean, recipe.std, device, layout),
            device=device,
            precision=recipe.precision,
            progress=lambda done: watcher.on_check(start + done),  # noqa: B023 -- called at once
        ).numpy()
        keys = [hashes[row] for row in piece.tolist()]
        known |= dict(zip(keys, found, strict=True))
        if folder:
            kept.write(folder, keys, found, watcher.notice)
    features = torch.from_numpy(np.stack([known[hashes[row]] for row in rows.tolist()]))
    if not torch.isfinite(features).all():
        raise TrainingError(
            "the untrained network's features are not finite: no head can be fitted to them",
            hint="begin with other `weights`, or with precision `float32`",
        )
    return features


def _definition(recipe: ResolvedRecipe, network: Network) -> str:
    """Return all that decides the features of a photo, in words."""
    digest, last = hashlib.sha256(), f"{last_linear(network)}."
    for name, tensor in sorted(network.state_dict().items()):
        if name.startswith(last):
            continue
        digest.update(f"{name}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    packages = ("torch", "torchvision", "timm", "pillow")
    facts: Sequence[object] = (
        recipe.backbone,
        *(f"{name} {getattr(recipe, name)}" for name in SETTINGS),
        Reading.of(recipe).name,
        device_name(choose_device(recipe.device)),
        *(f"{name} {metadata.version(name)}" for name in packages),
        f"weights {digest.hexdigest()[:16]}",
        f"version {VERSION}",
    )
    return ", ".join(map(str, facts))
