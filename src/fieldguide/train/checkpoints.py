"""When a fold's state is saved, and from where its training goes on.

Knows nothing of how the state comes about; `state` writes and reads it.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from fieldguide.machine.controls import Controls, asked_to_stop
from fieldguide.merge import Weights
from fieldguide.network.network import weights_of
from fieldguide.train.job import FoldJob
from fieldguide.train.state import FoldState, load_state, save_state
from fieldguide.train.together import Replicas, Together


@dataclass
class Checkpoints:
    """The checkpoints of a fold under training, in `folder` (None: none are written)."""

    folder: Path | None
    job: FoldJob
    state: FoldState
    replicas: Replicas
    together: Together
    controls: Controls
    saved_at: float = field(default_factory=time.monotonic)

    def looks(self, count: int, replica: int | None = None, started: float = 0.0) -> None:
        """Look as often as other ranks do that still have steps to go."""
        for _ in range(count):
            self.look(replica, started)

    def look(self, replica: int | None = None, started: float = 0.0) -> None:
        """Save if it is time, or if the outside world wants to stop: then raise its error.

        The network's present weights are those of the `replica` under way, if one is, whose epoch
        has `started` at that time.
        """
        due = time.monotonic() - self.saved_at > 60 * self.job.recipe.checkpoint_minutes
        stop, due = self.together.ranks.agree(asked_to_stop(self.controls), due)
        if stop or due:
            if replica is not None:
                self.state.tallies[replica].seconds = time.monotonic() - started
                self.state.copies[replica] = weights_of(self.job.network)
            self.save()
        if stop:
            raise stop

    def save(self) -> None:
        """Write a checkpoint, on the first rank, of what all have come to."""
        if self.folder is not None and self.together.ranks.team.first:
            self.together.collect(self.state, self.replicas, self.job.device)
            if self.together.ranks.first:
                save_state(self.folder, self.state)
        self.saved_at = time.monotonic()


def newest_state(
    job: FoldJob, folder: Path | None, controls: Controls, together: Together
) -> FoldState:
    """Return the state to go on from; of other ranks' replicas without weights and moments."""
    state = load_state(folder, controls.notice) if folder else None
    if state is None:
        start = {name: tensor.to(job.device) for name, tensor in job.start.items()}
        replicas = job.recipe.replicas
        state = FoldState(
            merged=start, copies=[start] * replicas, moments=[{}] * replicas, parts=job.parts
        )
    else:
        _move(state, job, together.own)
    together.require_same(state, folder)
    return state


def _move(state: FoldState, job: FoldJob, own: range) -> None:
    """Change a state that was read: its tensors are on the job's device; weights stay shared."""
    moved: dict[int, Weights] = {}

    def on_device(weights: Weights) -> Weights:
        key = id(weights)
        return moved.setdefault(key, {k: v.to(job.device) for k, v in weights.items()})

    state.merged, state.velocity = on_device(state.merged), on_device(state.velocity)
    state.copies = [
        on_device(copy) if n in own else state.merged for n, copy in enumerate(state.copies)
    ]
    state.moments = [each if n in own else {} for n, each in enumerate(state.moments)]
    state.chosen = on_device(state.chosen) if state.chosen is not None else None
