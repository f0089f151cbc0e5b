"""What photos go through on their way to the network: settings of the training transforms, views,
normalising, and the mixing of batches by torchvision's `transforms.v2`.

Photos come in as upright RGB pictures and leave as uint8 tensors (3, size, size): `normalise` is
left to the device. CutMix and MixUp draw from torch's global generator; callers seed that per
batch. Knows nothing of files, networks or training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Policy = Literal["none", "randaugment", "trivialaugment", "augmix"]
Mix = Literal["none", "cutmix", "mixup", "either"]
View = Literal["flips", "crops", "scales"]

# A large JPEG may be decoded at a fraction of its size, down to so many times the resized side: the
# resize that follows still halves what it gets, so that it smooths what the decoder left rough.
DECODED_SIDES = 2

# How much larger the second scale of `scales` shows a photo: about as much as the usual crop of
# 7/8 leaves out, so that its centre fills the input.
SECOND_SCALE = 1.15

# Longer pictures are cut before they are resized. Taste: far from any photograph.
LONGEST = 16


@dataclass(frozen=True)
class Augmentation:
    """Settings of the training transforms. Probabilities and shares lie in [0, 1]."""

    size: int
    interpolation: Interpolation
    crop_scale: tuple[float, float]  # share of the photo's area that a crop covers
    flip: float  # probability of a mirror image
    color_jitter: float  # probability of a colour jitter
    jitter: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    grayscale: float
    policy: Policy
    erasing: float


def evaluation_transform(size: int, resize: int, interpolation: Interpolation) -> v2.Compose:
    """Shorter side to `resize` pixels, then the centre: a picture → uint8 (3, size, size)."""
    return v2.Compose(
        [
            _Shortened(),
            v2.Resize(resize, interpolation=InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(size),
            v2.PILToTensor(),
        ]
    )


def view_transform(
    size: int, resize: int, interpolation: Interpolation, views: Sequence[View]
) -> v2.Compose:
    """Several views of a picture → uint8 (views, 3, size, size), the first as in evaluation.

    `scales` adds the picture enlarged by `SECOND_SCALE`, `crops` the four corners of each scale,
    `flips` the mirror image of each of these: 1, 2, 5 or 10 views, or twice as many with flips.
    """
    resizes = [resize, round(SECOND_SCALE * resize)] if "scales" in views else [resize]
    mode = InterpolationMode(interpolation)
    scales = [v2.Resize(side, interpolation=mode, antialias=True) for side in resizes]
    return v2.Compose([_Shortened(), _Views(size, scales, "crops" in views, "flips" in views)])


def decoded_side(side: int) -> int:
    """Pixels of the shorter side that a decoder must leave where `side` are made of them."""
    return DECODED_SIDES * side


def shrink(picture: Image, side: int, interpolation: Interpolation) -> Image:
    """A picture as it is kept: `side` pixels on the shorter side at most, very long ones cut."""
    picture = _shortened(picture)
    if min(picture.size) <= side:
        return picture
    kept: Image = v2.functional.resize(
        picture, [side], interpolation=InterpolationMode(interpolation), antialias=True
    )
    return kept


class Normaliser:
    """Pictures of 8 bits as a network expects them: less `mean`, over `std` (both in [0, 1]).

    What it returns lies in memory that its next call uses again: three passes over it are 28 times
    faster than expressions that make new tensors (9 against 256 µs a picture of 128 pixels). The
    layout in memory is the one asked for.
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
        """The same pictures on the normaliser's device."""
        images = images.to(self.centre.device, non_blocking=True)
        if self.kept.shape[1:] != images.shape[1:] or len(self.kept) < len(images):
            self._make_room(images)
        normalised = self.kept[: len(images)].copy_(images)
        return normalised.sub_(self.centre).mul_(self.factor)

    def _make_room(self, images: Tensor) -> None:
        """Memory for so many pictures, and the constants once for each pixel.

        With channels last, three constants that are repeated for each pixel take six times as long.
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
    """What a `Normaliser` makes of pictures on their own device, in memory of its own."""
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
    """A batch mixed with itself and normalised, and its targets as shares of the classes.

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


def _shortened(picture: Image) -> Image:
    """The centre of the picture, at most `LONGEST` times as long as wide.

    Otherwise a photo of 1 × 5000 pixels would be enlarged to 512 × 2,560,000: 6 GB and 27 s.
    """
    longest = LONGEST * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    box = [min(picture.height, longest), min(picture.width, longest)]
    shortened: Image = v2.functional.center_crop(picture, box)
    return shortened


class _Shortened(nn.Module):
    """Cuts off the ends of very long pictures, of which the central square shows nothing."""

    def forward(self, picture: Image) -> Image:
        """The centre of the picture."""
        return _shortened(picture)


class _Views(nn.Module):
    """A picture at several scales, cut at the centre and perhaps the corners, perhaps mirrored."""

    def __init__(self, size: int, scales: Sequence[nn.Module], corners: bool, flips: bool) -> None:
        super().__init__()
        self.size, self.scales = size, nn.ModuleList(scales)
        self.corners, self.flips = corners, flips

    def forward(self, picture: Image) -> UInt8[Tensor, "views 3 size size"]:
        """All views, the plain one first."""
        views = [cut for scale in self.scales for cut in self._cuts(scale(picture))]
        if self.flips:
            views += [v2.functional.horizontal_flip(view) for view in views]
        return torch.stack([v2.functional.pil_to_tensor(view) for view in views])

    def _cuts(self, picture: Image) -> list[Image]:
        if not self.corners:
            return [v2.functional.center_crop(picture, [self.size])]
        *corners, centre = v2.functional.five_crop(picture, [self.size])
        return [centre, *corners]
