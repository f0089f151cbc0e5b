"""One answer for several photos of one event. Arrays in, arrays out."""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


class Gathered:
    """The answers of events, summed while photos come: the mean of their log-probabilities.

    That mean was right more often than the mean of probabilities, or as often (docs/results.md).
    Memory follows the number of events that photos have come of.
    """

    def __init__(self) -> None:
        self.sums: dict[int, NDArray[np.float64]] = {}
        self.photos: dict[int, int] = {}

    def add(self, event: int, probabilities: Float[np.ndarray, " classes"]) -> None:
        """Add a photo of an event."""
        logs = np.log(probabilities.clip(np.finfo(np.float64).tiny))
        self.sums[event] = self.sums[event] + logs if event in self.sums else logs
        self.photos[event] = self.photos.get(event, 0) + 1

    def probabilities(self, event: int) -> Float[np.ndarray, " classes"]:
        """Return the probabilities of an event."""
        mean = self.sums[event] / self.photos[event]
        powers: NDArray[np.float64] = np.exp(mean - mean.max())
        found: NDArray[np.float64] = powers / powers.sum()
        return found


def combined(
    probabilities: Float[np.ndarray, "n classes"], event_of: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "events classes"]:
    """Return the probabilities of each event, by number from 0; each has a photo."""
    found = Gathered()
    for event, row in zip(event_of.tolist(), probabilities, strict=True):
        found.add(event, row)
    return np.stack([found.probabilities(event) for event in range(len(found.sums))])
