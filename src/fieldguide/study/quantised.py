"""An exported model in 8 bits: its own calibration, and its accuracy beside the float model.

Convolutions are quantised by ONNX Runtime with the ranges of training photos; the classifiers stay
in float, as 256 values for logits would tie a twentieth of photos for the best class.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from fieldguide.analysis import calibration, metrics, paired
from fieldguide.errors import ResourceError, UnreadablePhoto
from fieldguide.predict import combine
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.exported import Exported, require_runtime
from fieldguide.predict.model import Machine, Model
from fieldguide.runs.run import Run
from fieldguide.seeds import derive_seed
from fieldguide.words import first_line

CALIBRATED = 200  # training photos that the ranges are measured on (taste)
BATCH = 16

Squares = Sequence[UInt8[np.ndarray, "side side 3"]]


@dataclass(frozen=True)
class Comparison:
    """The 8-bit file beside the float one on the same `photos`, and `where` they come from.

    `difference` is the accuracy in 8 bits less that in float, with its paired 95 % interval;
    `recalibrated` says whether temperature and thresholds were fitted to the 8-bit file's answers.
    """

    photos: int
    where: str
    accuracy: float
    float_accuracy: float
    difference: tuple[float, float, float]
    log_loss: float
    float_log_loss: float
    recalibrated: bool


def quantised(graph: Any, squares: Squares, folder: Path) -> Any:
    """Return the model with its convolutions in 8 bits, by the ranges that photos bring about.

    Raises `ResourceError` where ONNX Runtime cannot.
    """
    require_runtime()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([squares[n : n + BATCH] for n in range(0, len(squares), BATCH)])

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": np.stack(batch)}

    path = folder / "quantised.onnx"
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it recommends a step that changes nothing here
    try:
        quantization.quantize_static(
            graph,
            path,
            Reader(),
            per_channel=True,
            nodes_to_quantize=[node.name for node in graph.graph.node if node.op_type == "Conv"],
        )
        import onnx

        found = onnx.load(path)
    except Exception as error:  # its errors have no common class
        raise ResourceError(f"the model cannot be quantised: {first_line(error)}") from error
    finally:
        log.setLevel(level)
        path.unlink(missing_ok=True)
    return found


def calibration_squares(run: Run, model: Model) -> list[UInt8[np.ndarray, "side side 3"]]:
    """Return training photos, drawn once and for all, as they are shown."""
    rows = [n for n, photo in enumerate(run.catalog.photos) if photo.split == "train"]
    draw = np.random.default_rng(derive_seed(0, "photos to quantise by"))
    squares, decode = [], model.card.architecture.decoding
    for n in draw.permutation(len(rows))[:CALIBRATED].tolist():
        with suppress(UnreadablePhoto):
            squares.append(model.square(decode(run.catalog.file(run.catalog.photos[rows[n]]))))
    return squares


def logits(
    model: Exported, photos: Sequence[Path]
) -> tuple[Float[np.ndarray, "members n classes"], Int[np.ndarray, " n"]]:
    """Return a model's logits of the photos that can be read, and their numbers."""
    seen = list(model.logits(photos, Machine(), ()))
    found = [batch.logits[:, :, 0] for batch in seen]
    nothing = np.empty((len(model.card.members), 0, len(model.classes)), np.float32)
    numbers = [batch.photos for batch in seen]
    return np.concatenate([nothing, *found], axis=1), np.concatenate([np.empty(0, int), *numbers])


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """A run's folds by the 8-bit file's answers: the classifier, and its logits out of fold."""

    classifier: Classifier
    judged: Mapping[int, Float[np.ndarray, "_ classes"]]


def recalibrated(run: Run, combination: str, wide: Model, model: Exported) -> Recalibrated | None:
    """Return the folds' classifier with temperature and known photos by the model's own answers.

    None for a merged model, which has no photos that it was not trained on, and where some of the
    run's photos cannot be read any more.
    """
    own = None if wide.merged else _out_of_fold(run, wide, model)
    if own is None:
        return None
    ingredients = run.ingredients()
    changed = replace(
        ingredients,
        judged=own,
        targets={fold: ingredients.targets[fold] for fold in own},
        groups={fold: ingredients.groups[fold] for fold in own},
    )
    made = combine.by_name(changed, combination, batch_norm="average", machine=Machine())
    return Recalibrated(made, own)


def _out_of_fold(
    run: Run, wide: Model, model: Exported
) -> dict[int, Float[np.ndarray, "_ classes"]] | None:
    """Return the logits of each fold's own test part; None if a photo cannot be read."""
    own: dict[int, Float[np.ndarray, "_ classes"]] = {}
    for member, fold in enumerate(wide.card.provenance["made"]["folds"]):
        files = [run.catalog.file(run.catalog.photos[n]) for n in run.folds[fold].test.tolist()]
        found, numbers = logits(model, files)
        if len(numbers) < len(files):
            return None
        own[fold] = found[member]
    return own


def compared(
    run: Run, model: Exported, wide: Exported, narrow: Recalibrated | None
) -> Comparison | None:
    """Return how the 8-bit model does beside the float one, on photos that neither has seen.

    These are the run's photos outside all folds, or else those out of fold; None without any.
    """
    own = narrow.classifier if narrow else wide
    outside = run.labelled(run.outside)
    found, rows = logits(model, outside.files)
    if len(rows):
        groups = np.unique(outside.groups, return_inverse=True)[1][rows]
        both = [own.probabilities(found), wide.probabilities(logits(wide, outside.files)[0])]
        return _comparison("outside all folds", outside.targets[rows], groups, both, narrow)
    other = None if narrow is None else _out_of_fold(run, wide, wide)
    if narrow is None or other is None:
        return None
    tests = np.concatenate([run.folds[fold].test for fold in other])
    both = [
        calibration.scaled(np.concatenate(list(judged.values())), each.card.temperature)
        for judged, each in ((narrow.judged, own), (other, wide))
    ]
    return _comparison("out of fold", run.targets[tests], run.groups[tests], both, narrow)


def _comparison(
    where: str,
    targets: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    both: Sequence[Float[np.ndarray, "n classes"]],
    narrow: Recalibrated | None,
) -> Comparison:
    own, other = (each.argmax(axis=1) == targets for each in both)
    return Comparison(
        len(targets),
        where,
        float(own.mean()),
        float(other.mean()),
        paired.difference(own, other, groups),
        metrics.log_loss(both[0], targets),
        metrics.log_loss(both[1], targets),
        narrow is not None,
    )
