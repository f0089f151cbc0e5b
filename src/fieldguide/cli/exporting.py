"""The command that takes a classifier out of Python: export."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from fieldguide.cli import terminal
from fieldguide.cli.app import app
from fieldguide.cli.flags import PhotosRoot
from fieldguide.cli.opening import open_model, refuse_of_runs
from fieldguide.errors import UsageError
from fieldguide.storage.files import require_new
from fieldguide.words import percent, shown_bytes

if TYPE_CHECKING:
    from fieldguide.predict.classifier import Classifier
    from fieldguide.runs.run import Run


@app.command
def export(
    model: Annotated[
        Path, Parameter(help="The folder of a run, or of a classifier from `fieldguide save`.")
    ],
    *,
    out: Path,
    to: Literal["onnx", "page", "hub"] = "onnx",
    combine: str | None = None,
    features: bool = False,
    int8: bool = False,
    photos: Path | None = None,
    runtime: Path | None = None,
    photos_root: PhotosRoot = None,
) -> None:
    """Write a classifier for other programs, proved equal to the run on real photos.

    The folder has model.onnx (an upright picture in, calibrated probabilities out), model.json
    (classes, preprocessing, thresholds, scores) and README.md, a model card with an example.
    `fieldguide predict OUT PHOTOS` answers by it without torch.

    Parameters
    ----------
    out
        The new folder.
    to
        The form: onnx, which ONNX Runtime reads on servers, computers and phones; page: the same
        and a page that answers in the browser, from any file server, also offline; hub: the same
        and one network as timm and the Hugging Face Hub read it.
    combine
        The combination of a run's folds: ensemble (the default), soup, tuned, fold-0, … A merged
        one is several times smaller and faster.
    features
        Also give what the last layer sees.
    int8
        Convolutions in 8 bits: a quarter of the size, of accuracy as measured, and of about the
        same speed.
    photos
        A folder, table or list of photos to prove it on; without it, 64 of the run's.
    runtime
        A folder with the package onnxruntime-web for the page; without it npm fetches it.
    """
    require_new(out)
    if runtime is not None and to != "page":
        raise UsageError("--runtime is for pages", hint="--to page")
    if int8 and to == "hub":
        raise UsageError("timm's form is in float: --to hub and --int8 do not go together")
    source = _source(model, combine, photos_root)
    from fieldguide.study import export as exporting  # brings torch

    found = exporting.export(
        source,
        out,
        combine=combine or "ensemble",
        features=features,
        int8=int8,
        photos=photos,
        page=to == "page",
        hub=to == "hub",
        runtime=runtime,
        notice=terminal.tell,
    )
    proof = found.proof
    terminal.stdout.print(
        f"{proof.photos} photos: logits differ from the run's by at most {proof.difference:.1g}"
        f" (allowed: {proof.tolerance:.1g})"
    )
    if proof.ties:
        terminal.stdout.print(f"{proof.ties} of them are ties, in which either class may be first")
    if proof.probability is not None and proof.same_class is not None:
        terminal.stdout.print(
            f"a program that decodes photos in full has the same class for"
            f" {percent(proof.same_class)} of them; probabilities differ by"
            f" {proof.mean_probability:.3f} on average, {proof.probability:.3f} at most"
        )
    if found.int8:
        points, low, high = (100 * each for each in found.int8.difference)
        terminal.stdout.print(
            f"in 8 bits {percent(found.int8.accuracy)} of {found.int8.photos:,} photos"
            f" {found.int8.where} are classified correctly, in float"
            f" {percent(found.int8.float_accuracy)}: {points:+.1f} points (95 % interval:"
            f" {low:+.1f} to {high:+.1f})"
        )
    elif int8:
        terminal.tell(
            "what 8 bits cost is unknown: there are no photos to judge that the model never saw"
        )
    file, quoted = out / "model.onnx", shlex.quote(str(out))
    terminal.stdout.print(f"the model is in {file} ({shown_bytes(file.stat().st_size)})")
    terminal.stdout.print(f"  fieldguide predict {quoted} PHOTOS")
    if to == "page":
        terminal.stdout.print(f"  python3 -m http.server --directory {quoted}")
    elif to == "hub":
        terminal.stdout.print(f'  timm.create_model("local-dir:{out}", pretrained=True)')
    else:
        terminal.stdout.print(f"  fieldguide serve {quoted}")


def _source(model: Path, combine: str | None, photos_root: Path | None) -> "Run | Classifier":
    """Return the run or the saved classifier in a folder, checked without torch."""
    from fieldguide.predict.model import Model
    from fieldguide.runs.run import Run

    opened = open_model(model, photos_root)
    if isinstance(opened, Run):
        opened.require_complete()
        opened.combination(combine or "ensemble")
        return opened
    if isinstance(opened, Model):
        raise UsageError(f"`{model}` is an export already", hint="name the run that it came from")
    refuse_of_runs(model, combine, photos_root)
    from fieldguide.predict.classifier import Classifier

    return Classifier.load(opened)
