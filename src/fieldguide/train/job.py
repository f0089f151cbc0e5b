"""What the training of one fold needs: photos, networks and settings; and the batches of an epoch.

Knows nothing of how training goes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fieldguide.machine.device import memory_format
from fieldguide.merge import Weights
from fieldguide.network.batch_norm import Absorbed
from fieldguide.network.network import Network
from fieldguide.photos.augment import Normaliser
from fieldguide.photos.batches import Loader, Plan, epoch_steps, share_of, training_plan
from fieldguide.recipe import Precision, Recipe, ResolvedRecipe
from fieldguide.train.optimize import Kind

IntArray = NDArray[np.int64]
Logits = Float[np.ndarray, "n classes"]


class Source(NamedTuple):
    """The classifier that came with a network's weights, and what it says of our classes.

    `relation` is its mean probabilities of the photos of each class, as the network was at first.
    """

    weight: Float[Tensor, "sources channels"]
    bias: Float[Tensor, " sources"]
    relation: Float[Tensor, "classes sources"]


@dataclass(frozen=True)
class FoldJob:
    """The needs of a fold's training, which changes its two networks' weights alone.

    `network` is trained, `absorbed` is the same for evaluation.

    `targets` (n,) are class numbers by photo, -1 where there is no label; `train`, `test` and
    `watch` are photo numbers: trained on, predicted, and looked at for early stopping. `recipe`
    is resolved. `start_logits` are those of the test part under `start`, if its head was fitted.
    `parts` are those that batches are computed in from the start. `places` (n, 2) are
    shard and offset of each photo, where the recipe wants them in that order. `source` is there
    where the recipe wants Co-Tuning.
    """

    fold: int
    recipe: ResolvedRecipe
    network: Network
    absorbed: Absorbed
    start: Weights
    loader: Loader
    device: torch.device
    precision: Precision
    classes: int
    targets: IntArray
    train: IntArray
    test: IntArray
    watch: IntArray
    parts: int = 1
    places: IntArray | None = None
    start_logits: Logits | None = None
    optimizer: Kind = "adamw"
    source: Source | None = None

    def rows(self, replica: int, epoch: int) -> IntArray:
        """The photos that a replica trains on in an epoch."""
        seed, replicas = self.recipe.seed, self.recipe.replicas
        if not _shares(self.recipe):
            return self.train
        return share_of(
            self.train, self.targets, seed=seed, replica=replica, replicas=replicas, epoch=epoch
        )

    def plan(self, replica: int, epoch: int) -> Plan:
        """The batches of a replica's epoch."""
        return training_plan(
            self.rows(replica, epoch),
            self.recipe.batch_size,
            seed=self.recipe.seed,
            replica=replica,
            epoch=epoch,
            places=self.places,
            buffer=self.recipe.shuffle_buffer,
        )

    @cached_property
    def normalise(self) -> Normaliser:
        """Make pictures into what the network expects, on the job's device."""
        layout = memory_format(self.recipe.layout)
        return Normaliser(self.recipe.mean, self.recipe.std, self.device, layout)

    @cached_property
    def class_weights(self) -> Float[Tensor, " classes"] | None:
        """`balanced`: photos / (classes · photos of the class): every class weighs the same."""
        if self.recipe.class_weights == "none":
            return None
        counts = np.bincount(self.targets[self.train], minlength=self.classes).clip(1)
        weights = counts.sum() / (self.classes * counts)
        return torch.from_numpy(weights).float().to(self.device)


def replica_steps(recipe: Recipe, photos: int) -> list[int]:
    """The steps of each replica's epoch, by a recipe and the fold's number of training photos."""
    return epoch_steps(photos, recipe.batch_size, replicas=recipe.replicas, shares=_shares(recipe))


def _shares(recipe: Recipe) -> bool:
    return recipe.replica_data == "share" and recipe.replicas > 1
