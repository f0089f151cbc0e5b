"""A tree of taxa over the classes: the finest taxon of each photo that is sure enough.

Of a species in doubt its genus may be certain. Arrays in, arrays out. Knows nothing of files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from fieldguide.words import quoted

LABEL = "label"  # the rank of the classes themselves
AUTO = "auto"  # asked for: the finest that is sure enough
RESERVED = (LABEL, AUTO)

Probabilities = Float[np.ndarray, "n classes"]


@dataclass(frozen=True)
class Taxonomy:
    """The ranks above the classes, from the coarsest, and each class's taxon at each of them.

    A name that is empty says that the class has no such taxon. Raises ValueError for what is no
    tree: a taxon in two different ones of the rank above, or a row of another length.
    """

    ranks: tuple[str, ...]
    taxa: tuple[tuple[str, ...], ...]  # one row a class

    def __post_init__(self) -> None:
        if any(len(row) != len(self.ranks) for row in self.taxa):
            raise ValueError(f"not {len(self.ranks)} taxa for every class")
        if len({*self.ranks, *RESERVED}) < len(self.ranks) + len(RESERVED):
            raise ValueError(
                f"ranks of one name, or called {quoted(RESERVED)}: {quoted(self.ranks)}"
            )
        for rank in range(1, len(self.ranks)):
            above: dict[str, tuple[str, ...]] = {}
            for row in self.taxa:
                first = above.setdefault(row[rank], row[:rank])
                if row[rank] and first != row[:rank]:
                    raise ValueError(
                        f"{self.ranks[rank]} {row[rank]} lies both in {_path(first)} and in"
                        f" {_path(row[:rank])}"
                    )

    @property
    def levels(self) -> tuple[str, ...]:
        """The ranks from the finest: that of the classes, then each one above."""
        return LABEL, *reversed(self.ranks)

    @cached_property
    def nodes(self) -> Int[np.ndarray, "levels classes"]:
        """The number of each class's taxon at each level, by the first class that it holds.

        Without a taxon of a level a class stands for itself there, as it did one level below.
        """
        found = [np.arange(len(self.taxa))]
        for rank in reversed(range(len(self.ranks))):
            first: dict[str, int] = {}
            for number, row in enumerate(self.taxa):
                first.setdefault(row[rank], number)
            below = found[-1]
            own = [
                first[row[rank]] if row[rank] else int(below[n]) for n, row in enumerate(self.taxa)
            ]
            found.append(np.array(own))
        return np.stack(found)

    def name(self, level: int, node: int, classes: Sequence[str]) -> tuple[str, str]:
        """Return the name of a taxon of a level and its rank: a level below where it has none."""
        while level and not self.taxa[node][-level]:
            level -= 1
        return (self.taxa[node][-level] if level else classes[node]), self.levels[level]

    def best(self, probabilities: Probabilities) -> "Best":
        """Return the most probable taxon of each photo at each level, with its probability."""
        nodes, confidences = [], []
        for numbers in self.nodes:
            order = np.argsort(numbers, kind="stable")
            own, starts = np.unique(numbers[order], return_index=True)
            sums = np.add.reduceat(probabilities[:, order], starts, axis=1, dtype=np.float64)
            nodes.append(own[sums.argmax(axis=1)])
            confidences.append(sums.max(axis=1).clip(max=1))
        return Best(np.stack(nodes, axis=1), np.stack(confidences, axis=1))

    def right(self, best: "Best", targets: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "n levels"]:
        """Return whether the taxon of each photo at each level holds its class."""
        found: NDArray[np.bool_] = best.nodes == self.nodes[:, targets].T
        return found


@dataclass(frozen=True, eq=False)
class Best:
    """The most probable taxon of photos at each level (`Taxonomy.levels`), from the finest."""

    nodes: Int[np.ndarray, "n levels"]
    confidences: Float[np.ndarray, "n levels"]


def flat(classes: int) -> Taxonomy:
    """Return the tree of classes that have no taxa."""
    return Taxonomy((), ((),) * classes)


def _path(taxa: Sequence[str]) -> str:
    return " / ".join(name or "-" for name in taxa)
