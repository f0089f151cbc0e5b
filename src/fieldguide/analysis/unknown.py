"""Things that a classifier was never shown: how familiar a photo is, and what that is worth.

A photo's doubt is compared with that of known photos out of fold. Arrays in, numbers out. Knows
nothing of models.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray

from fieldguide.analysis.intervals import mean_interval, share_interval

ALARM = 0.05  # share of known photos that may be taken for unknown, where nothing else is asked


@dataclass(frozen=True)
class Worth:
    """How well unknown photos are told from known ones, with 95 % intervals.

    `auroc` is the chance that an unknown photo is less familiar than a known one (the area under
    the receiver operating characteristic), `found` the share of unknown photos that are marked
    where `alarm` of known ones are; None where so few known photos cannot say. Intervals are over
    groups, such as the classes left out.
    """

    photos: int
    groups: int
    auroc: float
    auroc_interval: tuple[float, float]
    found: float | None
    found_interval: tuple[float, float] | None
    alarm: float = ALARM


def doubt(probabilities: Float[np.ndarray, "*n classes"]) -> Float[np.ndarray, "*n"]:
    """Return the entropy of probabilities, in nats: the doubt of a network about each photo.

    Of scores from logits alone it tells unknown classes apart best, or as well as any other, in
    linear heads and in trained networks (the largest logit, Vaze et al., Open-Set Recognition, ICLR
    2022; the largest probability; energy; margins: docs/results.md).
    """
    logs = np.log(probabilities.clip(np.finfo(np.float64).tiny))
    found: NDArray[np.float64] = -(probabilities * logs).sum(axis=-1)
    return found


@dataclass(frozen=True, eq=False)
class Known:
    """The doubts about known photos, in order, by the member that was not trained on them."""

    by_member: Mapping[int, NDArray[np.floating]]

    @staticmethod
    def of(doubts: Float[np.ndarray, " m"], members: Int[np.ndarray, " m"]) -> "Known":
        """Return known photos, each judged by the member of a number; ValueError without any."""
        if not len(doubts):
            raise ValueError("no known photos")
        numbers = np.unique(members).tolist()
        return Known({number: np.sort(doubts[members == number]) for number in numbers})

    def familiarity(self, doubts: Float[np.ndarray, "members n"]) -> Float[np.ndarray, " n"]:
        """Return the share of known photos that are no more familiar than each photo.

        `doubts` are those of each member. A photo is counted as one of the known (so none is 0):
        for one member this is a conformal p-value, and among photos like the known at most a share
        a has a familiarity of a or less (Bates et al., Testing for Outliers with Conformal
        p-Values, Annals of Statistics 51, 2023); for several it is that of CV+, and holds about so.
        """
        below, photos = np.ones(doubts.shape[1]), 1
        for member, own in self.by_member.items():
            below += len(own) - np.searchsorted(own, doubts[member], side="left")
            photos += len(own)
        found: NDArray[np.float64] = below / photos
        return found


def threshold(known: Float[np.ndarray, " n"], alarm: float = ALARM) -> float | None:
    """Return the doubt above which a photo is marked as unknown, for one member's known photos.

    None where these are too few for any to be marked. `Known.familiarity` marks the same.
    """
    above = math.floor(alarm * (len(known) + 1) * (1 + 1e-12)) - 1  # known photos of more doubt
    return float(np.sort(known)[-1 - above]) if 0 <= above < len(known) else None


def familiarity(
    doubts: Float[np.ndarray, "members n"],
    known: Float[np.ndarray, " m"],
    known_members: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " n"]:
    """Return the familiarity of photos among known ones: see `Known`."""
    return Known.of(known, known_members).familiarity(doubts)


def worth(
    familiar: Float[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    known: Int[np.ndarray, " n"],
    alarm: float = ALARM,
) -> Worth:
    """Return the worth of familiarity, from that of unknown photos and their groups.

    `known` is the number of photos that each was compared with. The area is the mean share of them
    that are more familiar. Photos that were compared with too few to be marked at all say nothing
    of the share found.
    """
    more = 1 - (familiar * (known + 1) - 1) / known
    low, high = mean_interval(more, groups, bounds=(0.0, 1.0))
    able = alarm * (known + 1) >= 1
    missed = familiar[able] <= alarm
    return Worth(
        photos=len(familiar),
        groups=len(np.unique(groups)),
        auroc=float(more.mean()),
        auroc_interval=(low, high),
        found=float(missed.mean()) if able.any() else None,
        found_interval=share_interval(missed, groups[able]) if able.any() else None,
        alarm=alarm,
    )


def left_out(
    doubts: Float[np.ndarray, "n blocks"],
    targets: Int[np.ndarray, " n"],
    blocks: Sequence[Sequence[int]],
) -> list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]]:
    """Return the familiarity of photos of each block's classes, their classes, and known photos.

    `doubts` are those of the head that was fitted without the block. All other photos are the known
    ones; blocks that have photos on one side alone are passed over.
    """
    found = []
    for number, block in enumerate(blocks):
        away = np.isin(targets, list(block))
        if away.any() and not away.all():
            known = doubts[~away, number]
            own = familiarity(doubts[None, away, number], known, np.zeros(len(known), int))
            found.append((own, targets[away], np.full(len(own), len(known))))
    return found


def blocks(classes: int, most: int = 5) -> list[Sequence[int]]:
    """Return the classes in at most `most` blocks, each to be left out while two others stay.

    Neighbours by name, which may be relatives, go to different blocks. Of two classes there are no
    blocks.
    """
    number = min(most, classes) if classes > 2 else 0
    return [range(first, classes, number) for first in range(number)]
