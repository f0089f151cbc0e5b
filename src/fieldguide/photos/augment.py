"""Settings of the training transforms, views, normalising, and the mixing of batches.

Photos come in as upright RGB pictures and leave as uint8 tensors (3, size, size), to be normalised
on the device. CutMix and MixUp draw from torch's global generator; callers seed that per batch.
Knows nothing of files, networks or training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from fieldguide.photos.decoding import shorten
from fieldguide.recipe import Interpolation, View

Policy = Literal["none", "randaugment", "trivialaugment", "augmix"]
Mix = Literal["none", "cutmix", "mixup", "either"]

# Enlargement of the second scale of `scales`: about what the usual crop of 7/8 leaves out.
SECOND_SCALE = 1.15


@dataclass(frozen=True)
class Augmentation:
    """The settings of the training transforms. Probabilities and shares lie in [0, 1]."""

    size: int
    interpolation: Interpolation
    crop_scale: tuple[float, float]  # share of the photo's area that a crop covers
    flip: float  # probability of a mirror image
    color_jitter: float  # probability of a colour jitter
    jitter: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    grayscale: float
    policy: Policy
    erasing: float


def view_transform(
    size: int, resize: int, interpolation: Interpolation, views: Sequence[View]
) -> nn.Module:
    """Return the transform of a picture to views, uint8 (views, 3, size, size).

    `scales` adds the picture enlarged by `SECOND_SCALE`, `crops` the four corners of each scale,
    `flips` the mirror image of each of these: 1, 2, 5 or 10 views, or twice as many with flips.
    The first view is that of evaluation.
    """
    resizes = [resize, round(SECOND_SCALE * resize)] if "scales" in views else [resize]
    mode = InterpolationMode(interpolation)
    scales = [v2.Resize(side, interpolation=mode, antialias=True) for side in resizes]
    return _Views(size, scales, "crops" in views, "flips" in views)


class Normaliser:
    """A function from pictures of 8 bits to a network's input: less `mean`, over `std` (in [0, 1]).

    The next call reuses the memory of its result: that is 28 times faster than new tensors (9
    against 256 µs a picture of 128 pixels).
    """

    def __init__(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.layout = layout
        self.centre, self.factor = (
            torch.tensor(values, device=device)[:, None, None]
            for values in ([255 * m for m in mean], [1 / (255 * s) for s in std])
        )
        self.kept = torch.empty(0, device=device)

    def __call__(
        self, images: UInt8[Tensor, "*n 3 height width"]
    ) -> Float[Tensor, "*n 3 height width"]:
        """Return the pictures, normalised, on the normaliser's device."""
        images = images.to(self.centre.device, non_blocking=True)
        if self.kept.shape[1:] != images.shape[1:] or len(self.kept) < len(images):
            self._make_room(images)
        normalised = self.kept[: len(images)].copy_(images)
        return normalised.sub_(self.centre).mul_(self.factor)

    def _make_room(self, images: Tensor) -> None:
        """Make memory for n pictures; with channels last, repeat the constants for each pixel.

        Three constants that torch repeats would take six times as long.
        """
        with torch.inference_mode(False):  # what is made in that mode may not be used outside
            batches = images.ndim == 4
            layout = self.layout if batches else torch.contiguous_format
            self.kept = torch.empty(images.shape, device=images.device, memory_format=layout)
            if batches and layout == torch.channels_last:
                wide = (1, *images.shape[1:])
                self.centre, self.factor = (
                    constant[..., :1, :1].expand(wide).contiguous(memory_format=layout)
                    for constant in (self.centre, self.factor)
                )


def normalise(
    images: UInt8[Tensor, "*n 3 height width"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "*n 3 height width"]:
    """Return normalised pictures on their own device, in new memory."""
    return Normaliser(mean, std, images.device)(images)


def mix_batch(
    images: Shaped[Tensor, "n 3 height width"],
    targets: Int[Tensor, " n"],
    *,
    normalise: Callable[[Tensor], Tensor] = Tensor.float,
    classes: int,
    mix: Mix,
    alpha: float,
) -> tuple[Float[Tensor, "n 3 height width"], Float[Tensor, "n classes"]]:
    """Mix a batch with itself; return it normalised, with its targets as shares of the classes.

    `cutmix` pastes a box of another photo (Yun et al., ICCV 2019), `mixup` blends two photos
    (Zhang et al., ICLR 2018), `either` tosses a coin for each batch. Shares are Beta(alpha, alpha).
    """
    if mix == "none":
        return normalise(images), nn.functional.one_hot(targets, classes).float()
    cutmix = mix == "cutmix" or (mix == "either" and bool(torch.rand(()) < 0.5))
    if cutmix:  # a quarter of the bytes are moved before they are normalised
        pasted, shares = v2.CutMix(num_classes=classes, alpha=alpha)(images, targets)
        return normalise(pasted), shares
    mixed: tuple[Tensor, Tensor] = v2.MixUp(num_classes=classes, alpha=alpha)(
        normalise(images), targets
    )
    return mixed


class _Views(nn.Module):
    """A transform to several scales, cut at the centre and perhaps the corners, or mirrored."""

    def __init__(self, size: int, scales: Sequence[nn.Module], corners: bool, flips: bool) -> None:
        super().__init__()
        self.size, self.scales = size, nn.ModuleList(scales)
        self.corners, self.flips = corners, flips

    def forward(self, picture: Image) -> UInt8[Tensor, "views 3 size size"]:
        """Return all views, the plain one first."""
        picture = shorten(picture)
        views = [cut for scale in self.scales for cut in self._cuts(scale(picture))]
        if self.flips:
            views += [v2.functional.horizontal_flip(view) for view in views]
        return torch.stack([v2.functional.pil_to_tensor(view) for view in views])

    def _cuts(self, picture: Image) -> list[Image]:
        if not self.corners:
            return [v2.functional.center_crop(picture, [self.size])]
        *corners, centre = v2.functional.five_crop(picture, [self.size])
        return [centre, *corners]
