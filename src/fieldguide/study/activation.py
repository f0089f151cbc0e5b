"""The places in a photo where a network found evidence of a class: Grad-CAM.

Works with every head. Knows nothing of runs, folds or how heat is drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fieldguide.machine.device import choose_device
from fieldguide.merge import Weights
from fieldguide.network.network import Network, load_weights
from fieldguide.photos.augment import normalise
from fieldguide.photos.batches import evaluation_plan
from fieldguide.predict.card import Architecture
from fieldguide.predict.inference import pictures, template

# Photos at a time: feature maps are small, and few photos are asked for (taste).
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Heat:
    """A photo, by its number among those asked for, as the network saw it, and its heat.

    `heat` is that of the last feature map, coarse: 1 where the most evidence lies, 0 where there is
    none or where it speaks against the class; all 0 where there is none at all.
    """

    photo: int
    pixels: UInt8[np.ndarray, "size size 3"]
    heat: Float[np.ndarray, "rows columns"]


class Activation:
    """One network, into which the weights of one fold after another are put."""

    def __init__(self, architecture: Architecture, device: str = "auto") -> None:
        """Build the network; photos are prepared as those that the folds were judged by."""
        self.architecture, self.device = architecture, choose_device(device)
        self.network = template(architecture).to(self.device)
        self.network.eval()

    def heats(
        self, weights: Weights, files: Sequence[Path], classes: Sequence[int]
    ) -> Iterator[Heat]:
        """Yield the heat of one class (by number) in each file that can be read."""
        load_weights(self.network, weights)
        shown, known = pictures(self.architecture, files), torch.tensor(classes, dtype=torch.int64)
        for draws in evaluation_plan(np.arange(len(files)), _BATCH):
            batch = shown[draws]
            if len(batch.photos):
                images = batch.images.to(self.device)
                ready = normalise(images, self.architecture.mean, self.architecture.std)
                own = known[batch.photos].to(self.device)
                found = scaled(grad_cam(self.network, ready, own)).cpu().numpy()
                pixels = batch.images.permute(0, 2, 3, 1).numpy()
                yield from map(Heat, batch.photos.tolist(), pixels, found)


def grad_cam(
    network: Network, images: Float[Tensor, "n 3 height width"], classes: Int[Tensor, " n"]
) -> Float[Tensor, "n rows columns"]:
    """Return each photo's evidence for its class at each position of the last feature map.

    relu(Σ over channels k of a_k · A_k), A being the feature map (channels, rows, columns) and a_k
    the mean over positions of d logit / d A_k. With a linear layer on mean features it is, up to
    the factor 1 / positions, the class activation map of Zhou et al., CVPR 2016: the share of each
    position in the logit (less the bias). The network has to be in evaluation mode: photos of a
    batch must not depend on each other.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, equations 1 and 2.
    """
    assert not network.training
    with torch.no_grad():
        features: Tensor = network.backbone.forward_features(images)  # type: ignore[operator]
    with torch.enable_grad():
        features = features.requires_grad_()
        logits: Tensor = network.head(network.backbone.forward_head(features))  # type: ignore[operator]
        own = logits.gather(1, classes[:, None]).sum()
        (gradients,) = torch.autograd.grad(own, features)
    importance = gradients.mean(dim=(2, 3), keepdim=True)
    return (importance * features.detach()).sum(dim=1).relu()


def scaled(maps: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Return each map over its largest value; one without evidence stays 0."""
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest, torch.zeros_like(maps))
