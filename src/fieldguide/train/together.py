"""How the ranks that train one fold stay in step: whose turn it is, and what they give each other.

Ranks come in teams; a team trains some of the replicas, and each of its ranks holds weights and
moments of these alone, until a merge. A process that is alone has all replicas, and every call
gives back what it was given. Knows nothing of how a replica is trained or merged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fieldguide.errors import ResourceError
from fieldguide.machine.ranks import Ranks
from fieldguide.merge import Weights
from fieldguide.train.optimize import Moments
from fieldguide.train.replica import Replica
from fieldguide.train.state import FoldState, Row, Tally

Replicas = Mapping[int, Replica]


@dataclass(frozen=True)
class Turn:
    """An epoch of a replica on each team, at the same time; on this rank that of `replica`.

    `replica` is None where its epoch was over when another number of ranks saved. `looks` are the
    steps after which all ranks look whether one of them is to stop or save: all but the last of the
    replica with most steps. After the turn the replicas before `end` are done.
    """

    replica: int | None
    looks: int
    begin: int
    end: int


@dataclass(frozen=True)
class Together:
    """This process among the ranks that train one fold's replicas, or alone."""

    ranks: Ranks
    replicas: int

    @property
    def own(self) -> range:
        """The replicas that this rank's team trains."""
        return range(self.ranks.peers.rank, self.replicas, self.ranks.peers.world)

    def turn(self, state: FoldState, steps: Sequence[int]) -> Turn:
        """Return the next turn; `steps` are those of each replica's epoch."""
        peers = self.ranks.peers
        begin = state.replica - state.replica % peers.world
        end, own = begin + peers.world, begin + peers.rank
        looks = max(steps[n] - state.steps[n] for n in range(state.replica, end)) - 1
        return Turn(own if own >= state.replica else None, looks, begin, end)

    def rows(self, turn: Turn, row: Row | None, state: FoldState) -> list[tuple[int, Row]]:
        """Return the rows of all replicas of a turn, by number; change the state's parts."""
        told = self.ranks.exchange((row, state.parts))
        state.parts = max(parts for _, parts in told)
        rows = [row for row, _ in told[:: self.ranks.team.world]]
        return [(n, row) for n, row in enumerate(rows, start=turn.begin) if row is not None]

    def share_copies(self, state: FoldState) -> None:
        """Change the state: it has all replicas' weights; a merge is then the same everywhere."""
        peers = self.ranks.peers
        for replica in self.own:
            begin = replica - peers.rank
            state.copies[begin : begin + peers.world] = peers.gather(state.copies[replica])

    def all_moments(self, replicas: Replicas, device: torch.device) -> dict[int, Moments]:
        """Return every replica's moments; through main memory where they come from other ranks."""
        found: dict[int, Moments] = {}
        for part in self.ranks.peers.exchange(self.moments(replicas, device)):
            found |= part
        return found

    def moments(self, replicas: Replicas, device: torch.device) -> dict[int, Moments]:
        """Return the moments of the own replicas; in main memory, where other ranks want them."""
        place = device if self.ranks.peers.world == 1 else torch.device("cpu")
        return {number: replica.moments(place) for number, replica in replicas.items()}

    def collect(self, state: FoldState, replicas: Replicas, device: torch.device) -> None:
        """Change the state, on the first rank, to all that the replicas have come to."""
        moments = self.moments(replicas, device)
        state.moments = [moments.get(n, {}) for n in range(self.replicas)]
        peers = self.ranks.peers
        parts = [] if peers.first else [_Part.of(state, n) for n in self.own]
        own = {number: replica.scaler.state_dict() for number, replica in replicas.items()}
        scalers: dict[int, Row] = {}
        for theirs, scaling in peers.collect((parts, own)):
            scalers |= scaling
            for part in theirs:
                part.put_into(state)
        state.scalers = [scalers[number] for number in sorted(scalers)]

    def require_same(self, state: FoldState, folder: Path | None) -> None:
        """Raise `ResourceError` where ranks would go on from different checkpoints."""
        found = self.ranks.exchange((state.epoch, state.replica, state.steps, len(state.merges)))
        if any(each != found[0] for each in found):
            odd = next(rank for rank, each in enumerate(found) if each != found[0])
            raise ResourceError(
                f"rank {odd} finds another checkpoint in `{folder}` than rank 0",
                hint="the run folder must be the same one for all ranks",
            )


@dataclass
class _Part:
    """One replica's part of a state, as it goes from rank to rank. No weights: the merged ones."""

    replica: int
    steps: int
    tally: Tally
    weights: Weights | None
    moments: Moments

    @classmethod
    def of(cls, state: FoldState, replica: int) -> "_Part":
        copy = state.copies[replica]
        own = None if copy is state.merged else {name: w.cpu() for name, w in copy.items()}
        return cls(
            replica, state.steps[replica], state.tallies[replica], own, state.moments[replica]
        )

    def put_into(self, state: FoldState) -> None:
        """Change the state."""
        number = self.replica
        state.steps[number], state.tallies[number] = self.steps, self.tally
        state.moments[number] = self.moments
        state.copies[number] = state.merged if self.weights is None else self.weights
