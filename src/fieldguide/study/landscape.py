"""The error landscape along a straight line of weights: RUN/landscape.json.

    t = −¼ ……… 0 ……… ½ ……… 1 ……… 1¼        w(t) = (1 − t) · one + t · other
              one    middle   other

`one` and `other` are two replicas of a fold before its last merge, or the merged weights of two
folds. Copies that did not leave the basin of their one start have a line without a barrier: that is
why merging works (Frankle, Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket
Hypothesis", ICML 2020). Batch-norm statistics of a mixture are no mixture of statistics, so each
place is judged with them mixed like the weights, and re-estimated on training photos.

Knows nothing of how it is drawn. Reading needs no torch.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import TypeAdapter

from fieldguide.analysis import metrics
from fieldguide.errors import DataError, UsageError
from fieldguide.photos import pixels
from fieldguide.runs.run import Run
from fieldguide.seeds import derive_seed
from fieldguide.storage import files
from fieldguide.train.result import Arrays

if TYPE_CHECKING:  # torch takes seconds, and the report reads without it
    from fieldguide.merge import Weights
    from fieldguide.predict.card import Architecture
    from fieldguide.predict.model import Machine

FILE = "landscape.json"
FORMAT = 1

Between = Literal["replicas", "folds"]
Norm = Literal["average", "recalibrate", "none"]  # what became of batch norm, if there is any

# Both ends and the middle are among them; a quarter beyond the ends shows whether they lie in a
# basin or on its rim (taste).
PLACES = tuple(step / 8 for step in range(-2, 11))

JUDGED_PHOTOS = 512  # an accuracy of 0.9 is then known to ±0.013
RECALIBRATION_PHOTOS = 256  # at each place; a merge takes a thousand, once (taste)
HELD_BYTES = 2**28  # of weights at once; a photo is decoded again for each such portion (taste)


@dataclass(frozen=True)
class Point:
    """A place on the line and its scores; `loss` is None if not finite."""

    t: float
    batch_norm: Norm
    loss: float | None
    accuracy: float


@dataclass(frozen=True)
class Landscape:
    """The points between `one` (t = 0) and `other` (t = 1), judged on `photos` photos.

    `kept` is what is in use, the weights that the fold kept or the soup of all folds: it need not
    lie on the line, and its `t` is ½.
    """

    between: Between
    fold: int
    one: str
    other: str
    photos: int
    judged_on: str
    points: tuple[Point, ...]
    kept: Point
    kept_name: str
    seconds: float


def measure(
    run: Run,
    fold: int = 0,
    *,
    between: Between = "replicas",
    machine: "Machine | None" = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Landscape:
    """Return the landscape between the fold's two first replicas, or between it and the next fold.

    Replicas are judged on at most 512 of the fold's test photos; folds on photos outside all of
    them, if there are any. `progress` is called with the number of places done, of `len(PLACES)`.
    Raises `UsageError` without kept weights, `DataError` without photos.
    """
    from fieldguide.predict.model import Machine

    started = time.monotonic()
    if fold not in run.done:
        raise UsageError(
            f"fold {fold} of `{run.folder}` is not trained",
            hint=f"the folds that are: {', '.join(map(str, run.done)) or 'none'}",
        )
    if not run.recipe.epochs:
        raise UsageError(
            f"nothing was trained in `{run.folder}`: its networks differ in their heads alone",
            hint="a landscape lies between networks of a fit with `epochs` of 1 or more",
        )
    ends = _replicas(run, fold) if between == "replicas" else _folds(run, fold)
    view = _view(run, fold, between, machine or Machine())
    points, photos = _measured(view, ends, progress)
    return Landscape(
        between=between,
        fold=fold,
        one=ends.one_name,
        other=ends.other_name,
        photos=photos,
        judged_on=view.judged_on,
        points=tuple(points[:-1]),
        kept=points[-1],
        kept_name=ends.kept_name,
        seconds=round(time.monotonic() - started, 1),
    )


def write(run: Run, found: Landscape) -> Path:
    """Write the landscape into the run, in place of an earlier one, and return its path."""
    path = run.folder / FILE
    files.write_json(path, {"format": FORMAT, "key": _key(run, found.fold), **asdict(found)})
    return path


def read(run: Run) -> Landscape | None:
    """Return the run's landscape, or None if none is readable and of these weights."""
    try:
        content = json.loads((run.folder / FILE).read_bytes())
        known = content.pop("format"), content.pop("key")
        found = TypeAdapter(Landscape).validate_python(content)
        return found if known == (FORMAT, _key(run, found.fold)) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def on_line(one: Arrays, other: Arrays, t: float) -> dict[str, NDArray[Any]]:
    """Return (1 − t) · one + t · other, computed in float64 and of the same types.

    Counters (integers) are the larger of both. A variance that would fall below 0 beyond the ends
    is 0.
    """
    found = {}
    for name, first in one.items():
        second = other[name]
        if np.issubdtype(first.dtype, np.floating):
            mixed = np.asarray((1 - t) * first.astype(np.float64) + t * second.astype(np.float64))
            if name.endswith(".running_var"):
                mixed = mixed.clip(0)
            found[name] = mixed.astype(first.dtype)
        else:
            found[name] = np.asarray(np.maximum(first, second))
    return found


# --- what lies at the ends ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Ends:
    one: Arrays
    other: Arrays
    kept: Arrays
    one_name: str
    other_name: str
    kept_name: str


def _replicas(run: Run, fold: int) -> _Ends:
    copies = run.replicas(fold)
    if len(copies) < 2:
        raise UsageError(
            f"fold {fold} of `{run.folder}` holds the weights of {len(copies)} replicas:"
            " a line needs two",
            hint="begin a run with --keep-replicas, or measure between two folds with"
            " --between folds",
        )
    return _Ends(
        copies[0], copies[1], run.weights(fold), "replica 1", "replica 2", f"what fold {fold} kept"
    )


def _folds(run: Run, fold: int) -> _Ends:
    from fieldguide import merge
    from fieldguide.predict.classifier import as_tensors

    done = run.done
    if len(done) < 2:
        raise UsageError(f"only fold {fold} of `{run.folder}` is done: a line needs two folds")
    other = done[(done.index(fold) + 1) % len(done)]
    mean = merge.average([as_tensors(run.weights(each)) for each in done])
    return _Ends(
        run.weights(fold),
        run.weights(other),
        {name: tensor.numpy() for name, tensor in mean.items()},
        f"fold {fold}",
        f"fold {other}",
        f"the plain soup of all {len(done)} folds",
    )


# --- looking at photos ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _View:
    """The photos to judge on, and those that batch norm is re-estimated on."""

    architecture: "Architecture"
    machine: "Machine"
    judged: tuple[Path, ...]
    targets: Int[np.ndarray, " n"]
    judged_on: str
    calibration: tuple[Path, ...]


def _view(run: Run, fold: int, between: Between, machine: "Machine") -> _View:
    test, judged_on = run.folds[fold].test, f"test photos of fold {fold}"
    if between == "folds" and len(run.outside):
        test, judged_on = run.outside, "photos outside all folds"
    elif between == "folds":
        judged_on += ", which the other fold trained on"
    draw = np.random.default_rng(derive_seed(run.recipe.seed, "landscape", fold))
    judged = draw.permutation(test)[:JUDGED_PHOTOS]
    draw = np.random.default_rng(derive_seed(run.recipe.seed, "landscape norm", fold))
    training = draw.permutation(run.folds[fold].train)[:RECALIBRATION_PHOTOS]
    return _View(
        architecture=run.ingredients().architecture,
        machine=machine,
        judged=_files(run, judged),
        targets=run.targets[judged],
        judged_on=judged_on,
        calibration=_files(run, training),
    )


def _files(run: Run, rows: NDArray[np.int64]) -> tuple[Path, ...]:
    """Return the photos' paths; `DataError` if more than half of them are gone."""
    found = tuple(run.catalog.file(run.catalog.photos[row]) for row in rows)
    gone = [path for path in found if not pixels.is_there(path)]
    if 2 * len(gone) > len(found):
        raise DataError(
            f"{len(gone)} of {len(found)} photos are gone, such as `{gone[0]}`",
            hint="name the folder where they lie now with --photos-root",
        )
    return found


def _measured(view: _View, ends: _Ends, progress: Callable[[int], None]) -> tuple[list[Point], int]:
    """Return the points of all places, then that of the kept weights; the photos judged."""
    from fieldguide.predict.classifier import as_tensors

    size = sum(array.nbytes for array in ends.one.values())
    portion = max(1, HELD_BYTES // (2 * size))
    points, photos = [], 0
    for first in range(0, len(PLACES), portion):
        places = PLACES[first : first + portion]
        variants = [variant for t in places for variant in _variants(view, ends, t)]
        found, photos = _judged(view, variants)
        points += found
        progress(first + len(places))
    norm: Norm = "average" if _has_batch_norm(ends.one) else "none"
    kept, photos = _judged(view, [(0.5, norm, as_tensors(ends.kept))])
    return points + kept, photos


def _variants(view: _View, ends: _Ends, t: float) -> Iterator[tuple[float, Norm, "Weights"]]:
    """Yield a place's weights with batch norm mixed, and re-estimated."""
    from fieldguide.predict import inference
    from fieldguide.predict.classifier import as_tensors

    weights = as_tensors(on_line(ends.one, ends.other, t))
    if not _has_batch_norm(ends.one):
        yield t, "none", weights
        return
    yield t, "average", weights
    fresh = inference.recalibrated(view.architecture, weights, view.calibration, view.machine)
    yield t, "recalibrate", fresh


def _has_batch_norm(weights: Arrays) -> bool:
    return any(name.endswith(".running_var") for name in weights)


def _judged(
    view: _View, variants: Sequence[tuple[float, Norm, "Weights"]]
) -> tuple[list[Point], int]:
    """Return a point for each variant, and the number of photos that could be read."""
    from fieldguide.predict import inference

    members = [weights for _, _, weights in variants]
    logits, rows = inference.all_logits(view.architecture, members, view.judged, view.machine)
    if not len(rows):
        raise DataError(f"none of {len(view.judged)} photos can be read")
    pairs, targets = zip(variants, logits, strict=True), view.targets[rows]
    return [_point(t, norm, own, targets) for (t, norm, _), own in pairs], len(rows)


def _point(
    t: float, norm: Norm, logits: Float[np.ndarray, "n classes"], targets: Int[np.ndarray, " n"]
) -> Point:
    finite = np.isfinite(logits).all(axis=1)
    right = (logits.argmax(axis=1) == targets) & finite
    loss = metrics.log_loss(metrics.softmax(logits), targets) if finite.all() else None
    return Point(t, norm, loss, float(right.mean()))


def _key(run: Run, fold: int) -> str:
    """Return a hash of what the landscape depends on: the weights of the folds that are done."""
    manifests = [
        (run.fold_folder(each) / files.MANIFEST).read_text("utf-8") for each in (fold, *run.done)
    ]
    return hashlib.sha256("\0".join(manifests).encode()).hexdigest()
