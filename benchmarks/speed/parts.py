"""The parts of the benchmark by name, and which are run when none is named."""

from collections.abc import Callable, Iterable, Mapping

import data
import epochs
import folds
import gate
import merges
import peers
import prediction
import sizes
import start
import steps
from harness import Options, Row

Part = Callable[[Options], Iterable[Row]]

USUAL: Mapping[str, Part] = {
    "data-cached": data.cached,
    "data-first": data.first,
    "step": steps.step,
    "epoch": epochs.epoch,
    "merge": merges.merge,
    "scaling": folds.scaling,
    "predict": prediction.predict,
    "start": start.start,
    "memory": sizes.memory,
    "fastai": peers.fastai,
    "dali": peers.dali,
    "gpu": steps.gpu,
}

# Each takes half an hour or more.
LONG: Mapping[str, Part] = {
    "kfold": folds.kfold,
    "gate": gate.gate,
    "shares": gate.shares,
    "growth": sizes.growth,
}

PARTS: Mapping[str, Part] = {**USUAL, **LONG}
