"""From answers for the crops of photos to one answer for each photo.

Knows nothing of boxes and files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fieldguide.predict.inputs import Input
from fieldguide.predict.tables import NO_BOX, Predictions


def by_photo(
    crops: Iterable[Predictions], photos: Sequence[Input], counts: Sequence[int]
) -> Iterator[Predictions]:
    """Yield the photos' predictions, in order, from those of their crops, `counts` of each.

    A photo's probabilities are the mean of its readable crops', without those that show nothing if
    others do, and so is its familiarity; its set of classes holds all of theirs. One without crops
    has the problem `NO_BOX`.
    """
    held: Predictions | None = None
    done = 0
    for chunk in crops:
        held = chunk if held is None else Predictions.concatenate([held, chunk])
        first = 0
        spans: list[range] = []
        while done + len(spans) < len(photos):
            end = first + counts[done + len(spans)]
            if end > len(held):
                break
            spans.append(range(first, end))
            first = end
        yield _joined(held, photos[done : done + len(spans)], spans)
        done += len(spans)
        held = held.rows(range(first, len(held)))


def _joined(crops: Predictions, photos: Sequence[Input], spans: Sequence[range]) -> Predictions:
    """Return one prediction for each span of crops."""
    problems = []
    probabilities = np.full((len(spans), len(crops.classes)), np.nan)
    sets = None if crops.sets is None else np.zeros(probabilities.shape, bool)
    familiar = None if crops.familiarity is None else np.full(len(spans), np.nan)
    remarks = crops.remarks or ("",) * len(crops)
    told = []
    for row, span in enumerate(spans):
        readable = [n for n in span if not crops.problems[n]]
        seen = [n for n in readable if not remarks[n]] or readable
        told.append(next((remarks[n] for n in seen), ""))
        problems.append("" if seen else next((crops.problems[n] for n in span), NO_BOX))
        if seen:
            probabilities[row] = crops.probabilities[seen].mean(axis=0)
            if familiar is not None and crops.familiarity is not None:
                familiar[row] = crops.familiarity[seen].mean()
        if sets is not None and crops.sets is not None:
            sets[row] = crops.sets[seen].any(axis=0)
    return replace(
        crops,
        names=tuple(photo.name for photo in photos),
        problems=tuple(problems),
        probabilities=probabilities,
        sets=sets,
        remarks=tuple(told),
        familiarity=familiar,
    )
