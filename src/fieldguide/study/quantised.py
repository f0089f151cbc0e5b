"""An exported model in 8 bits: its own calibration, and its accuracy beside the float model.

Convolutions are quantised by ONNX Runtime with the ranges of training photos; the classifiers stay
in float, as 256 values for logits would tie a twentieth of photos for the best class.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
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
            self.batches = iter(batches(squares))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": np.stack(batch)}

    path = folder / "quantised.onnx"
    logging.getLogger().setLevel(logging.ERROR)  # it recommends a step that changes nothing here
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
        path.unlink(missing_ok=True)
    return found


def batches(squares: Squares) -> Iterator[Squares]:
    """Yield squares a few at a time."""
    for start in range(0, len(squares), BATCH):
        yield squares[start : start + BATCH]


def calibration_squares(run: Run, model: Model) -> list[UInt8[np.ndarray, "side side 3"]]:
    """Return training photos, drawn once and for all, as they are shown."""
    rows = [n for n, photo in enumerate(run.catalog.photos) if photo.split == "train"]
    draw = np.random.default_rng(derive_seed(0, "photos to quantise by"))
    files = [run.catalog.file(run.catalog.photos[rows[n]]) for n in draw.permutation(len(rows))]
    return [square for _, square in readable(model, files[:CALIBRATED])]


def readable(
    model: Model, files: Sequence[Path]
) -> Iterator[tuple[int, UInt8[np.ndarray, "side side 3"]]]:
    """Yield the number and the square of each file that can be read."""
    decode = model.decoding
    for number, file in enumerate(files):
        try:
            yield number, model.square(decode(file))
        except UnreadablePhoto:
            continue


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
    if wide.merged:
        return None
    own: dict[int, Float[np.ndarray, "_ classes"]] = {}
    for member, fold in enumerate(wide.card.provenance["made"]["folds"]):
        files = [run.catalog.file(run.catalog.photos[n]) for n in run.folds[fold].test.tolist()]
        squares = [square for _, square in readable(model, files)]
        if len(squares) < len(files):
            return None
        own[fold] = logits(model, squares)[member]
    ingredients = run.ingredients()
    changed = replace(ingredients, judged={**ingredients.judged, **own})
    made = combine.by_name(changed, combination, batch_norm="average", machine=Machine())
    return Recalibrated(made, own)


def compared(
    run: Run, model: Exported, wide: Exported, narrow: Recalibrated | None
) -> Comparison | None:
    """Return how the 8-bit model does beside the float one, on photos that neither has seen.

    These are the run's photos outside all folds, or else those out of fold; None without any.
    """
    if len(run.outside):
        outside = run.labelled(run.outside)
        found = list(readable(model, outside.files))
        rows = np.array([number for number, _ in found], np.int64)
        squares = [square for _, square in found]
        groups = np.unique(outside.groups, return_inverse=True)[1][rows]
        both = [
            (narrow.classifier if narrow else wide).probabilities(logits(model, squares)),
            wide.probabilities(logits(wide, squares)),
        ]
        return _comparison("outside all folds", outside.targets[rows], groups, both, narrow)
    if narrow is None:
        return None
    tests = np.concatenate([run.folds[fold].test for fold in narrow.judged])
    both = [
        calibration.scaled(
            np.concatenate([judged[fold] for fold in narrow.judged]), each.card.temperature
        )
        for judged, each in ((narrow.judged, narrow.classifier), (run.judged, wide))
    ]
    return _comparison("out of fold", run.targets[tests], run.groups[tests], both, narrow)


def logits(model: Model, squares: Squares) -> Float[np.ndarray, "members n classes"]:
    """Return a model's logits of squares."""
    return np.concatenate([model.look(part) for part in batches(squares)], axis=1)


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
