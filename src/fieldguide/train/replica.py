"""One replica of a fold: its optimiser and loss scaler over the fold's one network.

Its weights are in the network while it is trained, else in the fold's state. Knows nothing of
epochs, merges and checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fieldguide import merge
from fieldguide.machine.ranks import ALONE, Ranks
from fieldguide.network.network import Network
from fieldguide.train.job import FoldJob
from fieldguide.train.optimize import (
    Moments,
    make_optimizer,
    moments_of,
    parameter_groups,
    set_moments,
)


@dataclass
class Replica:
    """A replica under training: the network that holds its weights, its optimiser, its loss scaler.

    `parts` are those that a batch is computed in, since memory ran out; `team` the ranks that train
    it together, each with a share of every batch.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.GradScaler
    parts: int = 1
    team: Ranks = ALONE

    @classmethod
    def of(cls, job: FoldJob, team: Ranks = ALONE) -> "Replica":
        """Return a replica that has not been trained, by the job's recipe."""
        groups = parameter_groups(
            job.network.backbone,
            job.network.head,
            backbone_rate=job.recipe.backbone_rate,
            head_rate=job.recipe.head_rate,
            weight_decay=job.recipe.weight_decay,
        )
        return cls.of_groups(job, groups, team)

    @classmethod
    def of_groups(
        cls, job: FoldJob, groups: list[dict[str, object]], team: Ranks = ALONE
    ) -> "Replica":
        """Return a replica whose optimiser has these parameter groups."""
        scaler = torch.GradScaler(job.device.type, enabled=job.precision == "float16")
        optimizer = make_optimizer(groups, job.optimizer)
        return cls(job.network, optimizer, scaler, job.recipe.accumulate, team)

    def moments(self, device: torch.device) -> Moments:
        """Return the optimiser's moments by parameter name, on a device."""
        return on_device(moments_of(self.optimizer, self.network.named_parameters()), device)

    def set_moments(self, moments: Moments) -> None:
        """Change the optimiser: its moments become copies of these; others start from zero."""
        device = next(self.network.parameters()).device
        set_moments(self.optimizer, self.network.named_parameters(), on_device(moments, device))


def on_device(moments: Moments, device: torch.device) -> Moments:
    """Return the moments on a device."""
    return {name: {k: v.to(device) for k, v in values.items()} for name, values in moments.items()}


def mean_moments(moments: Sequence[Moments]) -> Moments:
    """Return the mean moments of several replicas, of the tensors that all of them have trained."""
    return {
        name: merge.average([replica[name] for replica in moments])
        for name in moments[0]
        if all(name in replica for replica in moments)
    }
