"""The training transforms of a recipe as torchvision's `transforms.v2` on pictures of Pillow.

Ours are compared with them: draws, then pixels. Draws are from torch's global generator.
"""

from torch import nn
from torchvision.transforms import InterpolationMode, v2

from fieldguide.photos.augment import Augmentation, Policy
from fieldguide.photos.decoding import shorten
from fieldguide.recipe import Interpolation


def training_transform(settings: Augmentation, mean: tuple[float, float, float]) -> v2.Compose:
    """Random crop, mirror image, colours, policy, erasing: a picture → uint8 (3, size, size).

    What is erased is filled with `mean` (per channel, in [0, 1]): nothing, after normalising.
    """
    interpolation = InterpolationMode(settings.interpolation)
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(
            settings.size, scale=settings.crop_scale, interpolation=interpolation, antialias=True
        ),
        v2.RandomHorizontalFlip(settings.flip),
    ]
    if settings.color_jitter:
        steps.append(v2.RandomApply([v2.ColorJitter(*settings.jitter)], p=settings.color_jitter))
    if settings.grayscale:
        steps.append(v2.RandomGrayscale(settings.grayscale))
    steps.extend(_policy(settings.policy, interpolation))
    steps.append(v2.PILToTensor())
    if settings.erasing:
        fill = [255 * channel for channel in mean]
        steps.append(v2.RandomErasing(settings.erasing, value=fill))
    return v2.Compose(steps)


def evaluation_transform(size: int, resize: int, interpolation: Interpolation) -> v2.Compose:
    """Shorter side to `resize` pixels, then the centre: a picture → uint8 (3, size, size)."""
    return v2.Compose(
        [
            v2.Lambda(shorten),
            v2.Resize(resize, interpolation=InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(size),
            v2.PILToTensor(),
        ]
    )


def _policy(policy: Policy, interpolation: InterpolationMode) -> list[nn.Module]:
    if policy == "randaugment":
        return [v2.RandAugment(interpolation=interpolation)]
    if policy == "trivialaugment":
        return [v2.TrivialAugmentWide(interpolation=interpolation)]
    if policy == "augmix":
        # AugMix works on tensors, which torchvision cannot rotate bicubically.
        bicubic = interpolation is InterpolationMode.BICUBIC
        return [v2.AugMix(interpolation=InterpolationMode.BILINEAR if bicubic else interpolation)]
    return []
