"""Which classes can occur at a place, and how common they are.

Knows nothing of models.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fieldguide.errors import DataError
from fieldguide.photos import tables
from fieldguide.words import count, some

LABEL, WEIGHT = "label", "weight"
MOST = 1e12  # so that sums stay finite


def read(
    path: Path, classes: Sequence[str], notice: Callable[[str], None] = lambda text: None
) -> Float[np.ndarray, " classes"]:
    """Return the weight of each class: from a table, or 1 for those on a list and 0 for others.

    `notice` reports how many are left, and what is no class. Raises DataError where fewer than one
    class is left, for weights that are no numbers from 0, and for a class that stands there twice.
    """
    found = _table(path) if path.suffix.lower() in {".csv", ".tsv", ".tab"} else _list(path)
    given: dict[str, float] = {}
    known = frozenset(classes)
    for cell, weight in found:
        name = cell if cell in known else cell.strip()
        if name in given:
            raise DataError(f"{path.name}: `{name}` stands there twice")
        given[name] = weight
    weights = np.array([given.get(name, 0.0) for name in classes])
    if not weights.any():
        if not given:
            raise DataError(f"{path.name}: it names no class")
        if given.keys() & {*classes}:
            raise DataError(f"{path.name}: no class of the model has a weight above 0")
        raise DataError(f"{path.name}: none of the {len(classes)} classes of the model is in it")
    strange = sorted(given.keys() - {*classes})
    notice(
        f"{path.name}: {np.count_nonzero(weights):,} of {count(len(classes), 'class')} can occur"
        + (f"; no class of the model: {some(strange)}" if strange else "")
    )
    return weights


def _list(path: Path) -> list[tuple[str, float]]:
    lines = tables.decoded(tables.content_of(path), path.name).splitlines()
    return [(line, 1.0) for line in lines if line.strip()]


def _table(path: Path) -> list[tuple[str, float]]:
    table = tables.read_cells(path)
    for name in (LABEL, WEIGHT):
        if name not in table.header:
            raise DataError(
                f"{table.name}: no column `{name}`",
                hint="a list without weights is a text file with a class on each line",
            )
    label, weight = table.header.index(LABEL), table.header.index(WEIGHT)
    found = []
    for number, cells in table.rows:
        try:
            value = float(cells[weight])
        except ValueError:
            value = math.nan
        if not 0 <= value <= MOST:
            raise DataError(
                f"{table.name}, row {number}: `{WEIGHT}` = {cells[weight]} is no number from 0"
                f" to {MOST:g}"
            )
        found.append((cells[label], value))
    return found
