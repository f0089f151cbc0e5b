"""One answer for several photos of one event. Arrays in, arrays out."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


class Event(NamedTuple):
    """An event, its first photo, the number of its photos, and their answer together."""

    name: str
    first_photo: str
    photos: int
    probabilities: Float[np.ndarray, " classes"]


class Gathered:
    """The answers of events, summed while photos come: the mean of their log-probabilities.

    That mean was right more often than the mean of probabilities, or as often (docs/results.md).
    Memory follows the numbers of events and of photos' names.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._photos: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self._seen: set[tuple[str, str]] = set()

    def add(self, event: str, photo: str, probabilities: Float[np.ndarray, " classes"]) -> None:
        """Add a photo of an event, once."""
        if (event, photo) in self._seen:
            return
        self._seen.add((event, photo))
        logs = np.log(probabilities.clip(np.finfo(np.float64).tiny))
        self._sums[event] = self._sums[event] + logs if event in self._sums else logs
        self._photos[event] = self._photos.get(event, 0) + 1
        self._first.setdefault(event, photo)

    def events(self) -> list[Event]:
        """Return the events, in the order of their first photos."""
        return [
            Event(name, first, self._photos[name], self._together(name))
            for name, first in self._first.items()
        ]

    def _together(self, event: str) -> Float[np.ndarray, " classes"]:
        mean = self._sums[event] / self._photos[event]
        powers: NDArray[np.float64] = np.exp(mean - mean.max())
        found: NDArray[np.float64] = powers / powers.sum()
        return found


def combined(
    probabilities: Float[np.ndarray, "n classes"], event_of: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "events classes"]:
    """Return the probabilities of each event, by number from 0; each has a photo."""
    gathered = Gathered()
    for number, (event, row) in enumerate(zip(event_of.tolist(), probabilities, strict=True)):
        gathered.add(str(event), str(number), row)
    found = sorted(gathered.events(), key=lambda event: int(event.name))
    return np.stack([event.probabilities for event in found])
