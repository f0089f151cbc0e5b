"""The record of a trained fold, as it is handed to whoever saves it. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class TrainedFold:
    """The results of a fold's training, as arrays.

    `logits` (test photos, classes) are those of `weights`, from epoch `chosen_epoch` (from 0);
    `epoch_logits` (merges, test photos, classes) the merged model's after every merge, where the
    fold's own test part chose the epoch, else empty. `replicas` are the weights before the last
    merge, if they were to be kept. `history` and `merges` are rows for the tables of these names.
    """

    weights: Arrays
    chosen_epoch: int
    logits: Float[np.ndarray, "n classes"]
    epoch_logits: Float[np.ndarray, "..."]
    history: Sequence[Mapping[str, Any]]
    merges: Sequence[Mapping[str, Any]]
    replicas: Sequence[Arrays]


def arrays(weights: Mapping[str, Any]) -> Arrays:
    """Return tensors as arrays in main memory, by the same names."""
    return {name: tensor.cpu().numpy() for name, tensor in weights.items()}
