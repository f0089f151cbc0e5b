"""A classifier as files for other programs, proved equal to its run before they are kept.

The folder has `model.onnx`, `model.json` (what another program must know) and `README.md` (a model
card). The saved file is run by ONNX Runtime on real photos; where it differs from the run, nothing
is left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fieldguide.analysis import calibration, metrics
from fieldguide.errors import DataError, ResourceError, UnreadablePhoto, UsageError
from fieldguide.photos.decoding import centre
from fieldguide.predict import inference, inputs, onnx_graph
from fieldguide.predict.about import about
from fieldguide.predict.classifier import Classifier
from fieldguide.predict.exported import ONNX, Exported
from fieldguide.runs.run import Run
from fieldguide.seeds import derive_seed
from fieldguide.storage import files
from fieldguide.study import hub as timm_hub
from fieldguide.study import model_card, page_files, quantised

PHOTOS = 64  # that the proof looks at
BATCHES = (1, 2, 5)
TOLERANCE = 1e-5  # of the largest logit, and beside it


@dataclass(frozen=True)
class Proof:
    """How far the saved file is from the run in float32, on real photos.

    `difference` is the largest of logits on equal pixels, in batches of `batches`, and at most
    `tolerance`. `ties` are photos whose two best classes lie closer together than that, so that
    either may come first. `probability`, `mean_probability` and `same_class` say what changes if a
    program decodes and resizes by itself, by Pillow and the graph: the largest and the mean change
    of the best class's probability, and the share of photos whose class is the same: None
    where Pillow reads none of the files.
    """

    photos: int
    batches: tuple[int, ...]
    difference: float
    tolerance: float
    ties: int
    probability: float | None
    mean_probability: float | None
    same_class: float | None


@dataclass(frozen=True)
class Exports:
    """What is known of an export: its proof, and in 8 bits how it does beside the float file."""

    proof: Proof
    int8: quantised.Comparison | None


@dataclass(frozen=True)
class OutOfFold:
    """The exported folds beside the run's own record, on photos that they were not trained on.

    `probability` is the largest change of a class's probability from the record of the saved
    weights, which may be in another precision; the log losses are calibrated, `recorded` and
    `exported`.
    """

    photos: int
    precision: str
    probability: float
    recorded_log_loss: float
    exported_log_loss: float


def export(
    source: Run | Classifier,
    out: str | Path,
    *,
    combine: str = "ensemble",
    features: bool = False,
    int8: bool = False,
    photos: str | Path | None = None,
    page: bool = False,
    hub: bool = False,
    runtime: Path | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> Exports:
    """Write a classifier as a folder for other programs, and return what is known of it.

    `source` is a run, whose folds are put together by `combine`, or a classifier, which needs
    `photos` (a folder, table or list) to be proved on. With `int8` the file that was proved is
    quantised then (`quantised`), which only a run can judge. With `features` the file also gives
    what each network's last layer sees; with `page` there are the files of a page that answers in
    the browser, by the `runtime` in a folder, or fetched (`page_files`), and with `hub` those of
    one network in timm's form (`hub`). Raises `UsageError` for an
    unfinished run, an existing folder or what does not export, `DataError` without photos,
    `ResourceError` where the file differs.
    """
    files.require_new(Path(out))
    if int8 and not isinstance(source, Run):
        raise UsageError("8 bits are calibrated on a run's photos, and this is no run")
    if int8 and hub:
        raise UsageError("timm's form is in float: leave 8 bits out, or timm's form")
    onnx_graph.require_onnx()
    if isinstance(source, Run):
        source.require_complete()
        classifier = source.classifier(combine)
    else:
        classifier = source
    if hub:
        timm_hub.require_one(classifier)
    places = _photos(source, photos)
    scripts = page_files.runtime(runtime) if page else {}
    facts = model_card.facts(classifier, source if isinstance(source, Run) else None, combine)
    with files.new_folder(Path(out)) as place:
        notice("exporting")
        graph = onnx_graph.build(classifier, features=features, description=facts.sentence)
        files.write_bytes(place / ONNX, graph.SerializeToString())
        notice("proving")
        saved = Exported.load(place / ONNX)
        proof, squares = prove(classifier, saved, places)
        judged = None
        if isinstance(source, Run) and photos is None:
            judged = _out_of_fold(source, classifier, saved, squares)
        names = [ONNX, model_card.JSON, model_card.README]
        if hub:
            names += timm_hub.write(place, classifier)
            timm_hub.prove(place, classifier, list(squares.values()))
        compared = None
        if int8 and isinstance(source, Run):
            notice("quantising")
            compared, classifier = _quantised(source, combine, classifier, saved, graph, place)
            saved = Exported.load(place / ONNX)
        kept, beside = (asdict(each) if each else None for each in (judged, compared))
        model_card.write(place, classifier, facts, asdict(proof), kept, beside, int8=int8)
        if page:
            notice("writing the page")
            names += page_files.write(place, saved, about(saved), scripts)
        files.write_manifest(place, names)
    return Exports(proof, compared)


def _quantised(
    run: Run, combine: str, wide: Classifier, saved: Exported, graph: Any, place: Path
) -> tuple[quantised.Comparison | None, Classifier]:
    """Write the model in 8 bits over the other; return how it compares, and its classifier."""
    squares = quantised.calibration_squares(run, saved)
    narrow = quantised.quantised(graph, squares, place)
    files.write_bytes(place / ONNX, narrow.SerializeToString())
    model = Exported.load(place / ONNX)
    found = quantised.recalibrated(run, combine, wide, model)
    compared = quantised.compared(run, model, saved, found)
    if found is None:
        return compared, wide
    onnx_graph.set_card(narrow, found.classifier)
    files.write_bytes(place / ONNX, narrow.SerializeToString())
    return compared, found.classifier


def prove(
    classifier: Classifier, saved: Exported, photos: Sequence[Path]
) -> tuple[Proof, dict[Path, NDArray[np.uint8]]]:
    """Return how far a saved file is from its classifier, and the squares that were looked at.

    Raises `DataError` where no photo can be read, `ResourceError` where the file differs.
    """
    own = classifier.card.architecture
    squares: dict[Path, NDArray[np.uint8]] = {}
    for photo in photos:
        try:
            picture = own.decoding(photo)
        except UnreadablePhoto:
            continue
        squares[photo] = classifier.square(picture)
    if not squares:
        raise DataError(
            f"none of {len(photos)} photos can be read to prove the export on",
            hint="name a folder of photos with --photos, or where the run's lie with --photos-root",
        )
    pictures = list(squares.values())
    expected = inference.logits_of(
        own, classifier.members, [centre(each, own.size, own.size) for each in pictures]
    )
    together = classifier.probabilities(expected)
    tolerance = TOLERANCE * (float(np.abs(expected).max()) + 1)
    differences = []
    for size in BATCHES:
        parts = [saved.run(pictures[n : n + size]) for n in range(0, len(pictures), size)]
        logits = np.concatenate([part for _, part in parts], axis=1)
        found = np.concatenate([part for part, _ in parts])
        for what, off in (
            ("logits", np.abs(logits - expected).max()),
            ("probabilities", np.abs(found - together).max()),
        ):
            _require_same(what, float(off), tolerance, size)
        differences.append(float(np.abs(logits - expected).max()))
    best = np.sort(expected, axis=2)[:, :, -2:]
    ties = int(((best[:, :, 1] - best[:, :, 0]) <= 2 * tolerance).any(axis=0).sum())
    changes = _by_itself(saved, list(squares), together)
    return Proof(len(pictures), BATCHES, max(differences), tolerance, ties, *changes), squares


def _require_same(what: str, difference: float, tolerance: float, size: int) -> None:
    """Raise `ResourceError` for a difference above the tolerance, or for what is no number."""
    if not difference <= tolerance:
        raise ResourceError(
            f"the exported file differs from the run: {what} by up to {difference:.3g} in batches"
            f" of {size}, where {tolerance:.3g} is allowed; nothing was kept",
            hint="other versions of torch, onnxscript or onnxruntime may export it right",
        )


def _by_itself(
    saved: Exported, photos: Sequence[Path], together: Float[np.ndarray, "n classes"]
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Return what changes if a plain program prepares the photos: see `Proof`."""
    changes, same = [], []
    for photo, own in zip(photos, together, strict=True):
        try:
            with Image.open(photo) as file:
                picture = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        except (OSError, ValueError):  # a form that only we read, or a crop
            continue
        found = saved.run([picture])[0][0]
        changes.append(abs(float(found[own.argmax()] - own.max())))
        same.append(bool(found.argmax() == own.argmax()))
    if not changes:
        return None, None, None
    return max(changes), float(np.mean(changes)), float(np.mean(same))


def _out_of_fold(
    run: Run, classifier: Classifier, saved: Exported, squares: Mapping[Path, NDArray[np.uint8]]
) -> OutOfFold | None:
    """Return how exported folds judge photos that they were not trained on, if there are any."""
    if classifier.merged:
        return None
    temperature = classifier.card.temperature
    recorded, exported, targets = [], [], []
    for member, fold in enumerate(classifier.card.provenance["made"]["folds"]):
        for row, photo in enumerate(run.folds[fold].test.tolist()):
            picture = squares.get(run.catalog.file(run.catalog.photos[photo]))
            if picture is not None:
                recorded.append(run.logits(fold)[row])
                exported.append(saved.run([picture])[1][member, 0])
                targets.append(run.targets[photo])
    if not targets:
        return None
    before, after = (
        calibration.scaled(np.stack(each), temperature) for each in (recorded, exported)
    )
    return OutOfFold(
        len(targets),
        run.recipe.precision,
        float(np.abs(after - before).max()),
        metrics.log_loss(before, np.array(targets)),
        metrics.log_loss(after, np.array(targets)),
    )


def _photos(source: Run | Classifier, photos: str | Path | None) -> list[Path]:
    """Return files to prove it on: those named, or some of the run's, drawn once and for all."""
    if photos is not None:
        crop = source.crop if isinstance(source, Run) else source.card.crop
        found, _ = inputs.crops_of(inputs.read(photos, crop=crop), crop)
        places = [each.file for each in found if each.file is not None]
    elif isinstance(source, Run):
        places = [source.catalog.file(photo) for photo in source.catalog.photos]
    else:
        raise UsageError(
            "a saved classifier has no photos to prove its export on",
            hint="name some with --photos; 64 of any kind of what it knows are enough",
        )
    draw = np.random.default_rng(derive_seed(0, "photos to prove an export on"))
    return [places[n] for n in draw.permutation(len(places))[:PHOTOS].tolist()]
