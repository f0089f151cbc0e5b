"""Ranks that share each batch of a replica, against one process that has the whole batch."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import results, small_fit, small_recipe
from forks import EVERY_STEP, as_rank, curves, fitted_on_ranks, needs_fork, on_ranks
from torch import Tensor, nn

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide import train
from fieldguide.crossval import Watcher
from fieldguide.errors import ResourceError, UsageError
from fieldguide.ranks import joined
from fieldguide.synchrony import Synchronised

pytestmark = needs_fork

# Three folds of 24 discs leave 16 to train on: batches of 6, 5 and 5, shares of 3 and of 2.
UNEVEN: dict[str, Any] = {
    "folds": 3,
    "fold": 0,
    "batch_size": 6,
    "mix": "none",
    "class_weights": "balanced",
    "label_smoothing": 0.1,
}


def furthest(one: fg.Run, other: fg.Run) -> float:
    """The largest difference between tensors of two runs' first folds."""
    weights = other.weights(0)
    return max(float(np.abs(w - weights[name]).max()) for name, w in one.weights(0).items())


def logits_of(run: fg.Run) -> np.ndarray:
    with np.load(run.fold_folder(0) / "predictions.npz") as file:
        return np.asarray(file["logits"])


# --- batch norm over ranks ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 4), (5, 0), (1, 1)])
def test_batch_norm_over_ranks_is_that_of_all_photos(
    sizes: tuple[int, int], tmp_path: Path
) -> None:
    def normed(images: Tensor, of_loss: Tensor, start: nn.Module) -> list[Tensor]:
        leaf = images.clone().requires_grad_()
        result = start(leaf)
        (result * of_loss).sum().backward()
        gradients = [leaf.grad, *(each.grad for each in start.parameters())]
        return [result.detach(), *(g for g in gradients if g is not None), *start.buffers()]

    def norm() -> nn.BatchNorm2d:
        made = nn.BatchNorm2d(2)
        nn.init.normal_(made.weight, 1.0, 0.5, generator=torch.Generator().manual_seed(3))
        return made

    draws = torch.Generator().manual_seed(0)
    # A mean far from zero: sums of squares would lose the variance.
    images = 1000 + torch.randn(sum(sizes), 2, 3, 1, generator=draws)
    of_loss = torch.randn(images.shape, generator=draws)

    def work(rank: int) -> Any:
        with joined("cpu", 1, 2) as ranks:
            place = slice(sizes[0], None) if rank else slice(sizes[0])
            with Synchronised(ranks.team):
                return [each.clone() for each in normed(images[place], of_loss[place], norm())]

    first, second = on_ranks(2, work, tmp_path / "ranks")
    whole = normed(images.double(), of_loss.double(), norm().double())
    together = [
        *(torch.cat(pair) for pair in zip(first[:2], second[:2], strict=True)),
        *(a + b for a, b in zip(first[2:4], second[2:4], strict=True)),  # of weight and bias
        *first[4:],
    ]
    for found, expected in zip(together, whole, strict=True):
        assert torch.allclose(found.double(), expected.double(), rtol=1e-4, atol=2e-3)
    assert all(torch.equal(*pair) for pair in zip(first[4:], second[4:], strict=True))


# --- a fit whose batches are shared ---------------------------------------------------------------


def test_shared_batches_are_those_of_one_process(discs: Path, tmp_path: Path) -> None:
    """With batch norm over all ranks, but for rounding; four ranks have shares of 2, 2, 2 and 0."""
    settings = {"replicas": 1, "batch_norm": "average", "merge": "none", **UNEVEN}
    alone = small_fit(discs, tmp_path / "alone", **settings)
    for ranks in (2, 4):
        wide = {"batch_size": 8, "batch_ranks": ranks} if ranks == 4 else {"batch_ranks": ranks}
        if ranks == 4:
            alone = small_fit(discs, tmp_path / "alone-wide", **settings | {"batch_size": 8})
        shared = fitted_on_ranks(
            ranks, discs, tmp_path / f"{ranks}", sync_batch_norm=True, **settings | wide
        )
        print(ranks, furthest(shared, alone), np.abs(logits_of(shared) - logits_of(alone)).max())
