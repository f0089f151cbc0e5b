"""Photos to logits, by networks of one architecture that share every read, decode and resize.

The preprocessing is that by which the folds were judged. A photo that cannot be read is named and
never gets another's result. Knows nothing of runs, folds or uses of the logits.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fieldguide.errors import ResourceError, UsageError
from fieldguide.machine.device import (
    autocast,
    choose_device,
    choose_precision,
    count_readers,
    count_threads_beside,
    is_out_of_memory,
    keep_freed_memory,
    memory_format,
    training_threads,
)
from fieldguide.merge import Weights
from fieldguide.network.batch_norm import RECALIBRATION_BATCH, absorb, has_batch_norm, recalibrate
from fieldguide.network.network import Network, build, load_weights, weights_of
from fieldguide.photos.augment import Normaliser, view_transform
from fieldguide.photos.batches import Batch, Loader, Pictures, evaluation_plan
from fieldguide.photos.decoding import Picture
from fieldguide.photos.transforms import evaluation
from fieldguide.predict.card import Architecture
from fieldguide.predict.model import Machine, Seen
from fieldguide.recipe import Precision, View

PROVEN = 64  # pictures of a batch in `logits_of`

_Images: TypeAlias = UInt8[Tensor, "n 3 height width"]
_Logits: TypeAlias = Float[Tensor, "members n classes"]


def logits(
    architecture: Architecture,
    members: Sequence[Weights],
    files: Sequence[Path],
    machine: Machine = Machine(),
    views: Sequence[View] = (),
) -> Iterator[Seen]:
    """Yield each photo's logits by member and view, batch by batch, in order, in float32.

    Memory does not grow with the photos. Raises `ResourceError` if it cannot hold a single one.
    """
    odd = [view for view in views if view not in get_args(View)]
    if odd:
        raise UsageError(f"there is no view `{odd[0]}`", hint=f"one of {', '.join(get_args(View))}")
    keep_freed_memory()
    device = choose_device(machine.device)
    networks = Networks(architecture, members, device, precision_used(architecture, machine))
    loader = _loader(architecture, files, machine, device, views)
    plan = evaluation_plan(np.arange(len(files)), machine.batch_size)
    with training_threads(count_threads_beside(loader.workers)):
        for batch in loader.batches(plan):
            yield Seen(batch.photos.numpy(), networks(batch), batch.unreadable, batch.small)


def all_logits(
    architecture: Architecture,
    members: Sequence[Weights],
    files: Sequence[Path],
    machine: Machine = Machine(),
) -> tuple[Float[np.ndarray, "members n classes"], NDArray[np.int64]]:
    """Return the logits of all readable photos, one view each, and the numbers of these photos."""
    seen = list(logits(architecture, members, files, machine))
    together = np.concatenate([batch.logits[:, :, 0] for batch in seen], axis=1)
    return together, np.concatenate([batch.photos for batch in seen])


def logits_of(
    architecture: Architecture,
    members: Sequence[Weights],
    shown: Sequence[UInt8[np.ndarray, "size size 3"]],
) -> Float[np.ndarray, "members n classes"]:
    """Return the logits of pictures as the network is shown them, in float32, on the CPU."""
    networks = Networks(architecture, members, torch.device("cpu"), "float32")
    images = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
    parts = [images[n : n + PROVEN] for n in range(0, len(images), PROVEN)]
    return torch.cat([networks.logits(part) for part in parts], dim=1).numpy()


def recalibrated(
    architecture: Architecture,
    weights: Weights,
    files: Sequence[Path],
    machine: Machine = Machine(),
) -> dict[str, Tensor]:
    """Return the weights with batch norm re-estimated on the photos that can be read.

    Give these in random order: photos of few classes at a time have statistics of their own.
    """
    device = choose_device(machine.device)
    network = _laid_out(architecture, device)
    load_weights(network, weights)
    if has_batch_norm(network):
        loader = _loader(architecture, files, machine, device, ())
        plan = evaluation_plan(np.arange(len(files)), RECALIBRATION_BATCH)
        precision = precision_used(architecture, machine)
        with training_threads(count_threads_beside(loader.workers)), autocast(device, precision):
            normalise = _normaliser(architecture, device)
            shown = (batch.images for batch in loader.batches(plan) if len(batch.photos))
            recalibrate(network, (normalise(images) for images in shown))
    return {name: tensor.cpu() for name, tensor in weights_of(network).items()}


class Networks:
    """The members as functions of a batch: one network, its norms absorbed, for all weights."""

    def __init__(
        self,
        architecture: Architecture,
        members: Sequence[Weights],
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.architecture, self.device, self.precision = architecture, device, precision
        self.absorbed = absorb(_laid_out(architecture, device))
        self.normalise = _normaliser(architecture, device)
        self.narrowed = {
            f"{name}.{kind}"
            for name, layer in self.absorbed.network.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
            for kind in ("weight", "bias")
        }
        self.members = [self._member(weights) for weights in members]

    def _member(self, weights: Weights) -> dict[str, Tensor]:
        """Return a member's weights, norms absorbed, on the device and in the pictures' layout.

        Those that autocast would round at every batch are rounded here, once.
        """
        layout, precision = self.normalise.layout, getattr(torch, self.precision)
        ready = self.absorbed.weights({name: t.to(self.device) for name, t in weights.items()})
        for name, tensor in ready.items():
            rounded = tensor.to(precision) if name in self.narrowed else tensor
            four = rounded.ndim == 4
            ready[name] = rounded.contiguous(memory_format=layout) if four else rounded
        return ready

    def __call__(self, batch: Batch) -> Float[np.ndarray, "members n views classes"]:
        """Return the logits of a batch with or without several views of each photo."""
        count, views = len(batch.photos), batch.images.shape[1] if batch.images.ndim == 5 else 1
        if count == 0:
            return np.empty((len(self.members), 0, 1, self.architecture.classes), np.float32)
        found = self.logits(batch.images.flatten(0, -4))
        return found.numpy().reshape(len(self.members), count, views, -1)

    def logits(self, images: _Images) -> _Logits:
        """Return every member's logits, in main memory; in halves if the device's runs out."""
        try:
            return self._logits(images)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(images) == 1:
                raise ResourceError(
                    f"memory ran out on `{self.device}` for a single photo of"
                    f" {self.architecture.size} pixels with {self.architecture.backbone}",
                    hint="predict with --device cpu",
                ) from error
        return torch.cat([self.logits(half) for half in images.tensor_split(2)], dim=1)

    def _logits(self, images: _Images) -> _Logits:
        seen = self.normalise(images)
        with torch.inference_mode(), autocast(self.device, self.precision):
            found = [
                torch.func.functional_call(self.absorbed.network, weights, (seen,), strict=True)
                for weights in self.members
            ]
            return torch.stack(found).float().cpu()


def template(architecture: Architecture) -> Network:
    """Return a network of that architecture, whose weights are still to be loaded."""
    return build(
        architecture.backbone,
        weights="none",
        head=architecture.head,
        classes=architecture.classes,
        dropout=0.0,
        seed=0,
    )


def require_weights(architecture: Architecture, weights: Weights) -> None:
    """Raise ValueError unless names, shapes and kinds are the network's, and all are finite."""
    expected = _tensors_of(architecture)
    if odd := sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"`{odd[0]}` is in the weights or in the network alone")
    for name, tensor in expected.items():
        found = weights[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"`{name}` is {tuple(found.shape)} {found.dtype},"
                f" not {tuple(tensor.shape)} {tensor.dtype}"
            )
        if not found.isfinite().all():
            raise ValueError(f"`{name}` holds what is no number")


@lru_cache(maxsize=4)
def _tensors_of(architecture: Architecture) -> dict[str, torch.Tensor]:
    """Return the network's tensors, for their names, shapes and kinds, if possible without data."""
    try:
        with torch.device("meta"):
            return template(architecture).state_dict()
    except (NotImplementedError, RuntimeError):  # some of timm 1.0.20 compute with their weights
        return template(architecture).state_dict()


def _laid_out(architecture: Architecture, device: torch.device) -> Network:
    """Return the template on the device, in the layout of its pictures."""
    return template(architecture).to(device).to(memory_format=memory_format(architecture.layout))


def _normaliser(architecture: Architecture, device: torch.device) -> Normaliser:
    layout = memory_format(architecture.layout)
    return Normaliser(architecture.mean, architecture.std, device, layout)


def precision_used(architecture: Architecture, machine: Machine) -> Precision:
    """Return the precision asked for, else the network's if the device has it, else float32."""
    device = choose_device(machine.device)
    if machine.precision != "auto":
        return choose_precision(machine.precision, device)
    own = architecture.precision
    return own if own in {"float32", choose_precision("auto", device)} else "float32"


def pictures(
    architecture: Architecture, files: Sequence[Path], views: Sequence[View] = ()
) -> Pictures:
    """Return the files as the network is shown them, without unreadable ones, which are named."""
    resize, interpolation = architecture.eval_resize, architecture.interpolation
    plain = evaluation(architecture.size, resize, interpolation)
    transform = _all_views(architecture, views) if views else plain
    return Pictures(
        files=files,
        training=lambda picture, _seed: transform(picture),
        evaluation=transform,
        decoding=architecture.decoding,
        lenient=True,
    )


def _all_views(
    architecture: Architecture, views: Sequence[View]
) -> Callable[[Picture], UInt8[Tensor, "views 3 size size"]]:
    """Return the transform to several views; the first equals the plain one exactly."""
    settings = architecture.size, architecture.eval_resize, architecture.interpolation
    plain, several = evaluation(*settings), view_transform(*settings, views)

    def all_views(picture: Picture) -> UInt8[Tensor, "views 3 size size"]:
        found: Tensor = several(Image.fromarray(picture))
        found[0] = plain(picture)  # another resize would differ by a level
        if "flips" in views:  # the second half mirrors the first
            found[len(found) // 2] = found[0].flip(-1)
        return found

    return all_views


def _loader(
    architecture: Architecture,
    files: Sequence[Path],
    machine: Machine,
    device: torch.device,
    views: Sequence[View],
) -> Loader:
    workers = min(count_readers(machine.workers, device), len(files) // machine.batch_size)
    shown = pictures(architecture, files, views)
    return Loader(shown, workers, pin_memory=device.type == "cuda")
