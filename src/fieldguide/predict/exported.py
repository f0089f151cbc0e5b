"""An exported model, which answers by ONNX Runtime: no torch is imported.

Its file holds the network, the card and the scores of photos out of fold. It is shown the pixels
that the run would show, so its answers are the run's in float32, to rounding. Knows nothing of runs
and of how the file was made (`onnx_graph`).
"""

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fieldguide.errors import ResourceError, UnreadablePhoto, UsageError
from fieldguide.machine.cores import count_cores, in_order
from fieldguide.photos.decoding import size_if_small
from fieldguide.predict.card import Card, OutOfFold, read_card, read_scores
from fieldguide.predict.model import Machine, Model, Seen
from fieldguide.recipe import View
from fieldguide.storage import files
from fieldguide.words import first_line, installed

ONNX = "model.onnx"
CARD_KEY, SCORES_KEY = "fieldguide.card", "fieldguide.scores"  # of the file's metadata

AHEAD = 2  # batches that are read while one is computed


@dataclass(frozen=True)
class _Shown:
    """A photo as the network is shown it, or a problem; `small` is the size if it shows nothing."""

    square: UInt8[np.ndarray, "side side 3"] | None = None
    problem: str = ""
    small: str = ""


class Exported(Model):
    """A model in ONNX's form; `Exported.load` reads it."""

    def __init__(self, card: Card, out_of_fold: OutOfFold, session: Any) -> None:
        self.card = card
        self.out_of_fold = out_of_fold
        self._session = session  # onnxruntime's, which threads may share

    @staticmethod
    def load(place: Path, threads: int = 0) -> "Exported":
        """Return the model of an export's folder, or of its file; `threads` 0: one a core.

        A file with a manifest beside it has its hash checked. Raises `UsageError` for another
        program's, `ResourceError` for a damaged one or without ONNX Runtime.
        """
        content, path = _content(place)
        runtime = require_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or count_cores()
        options.log_severity_level = 3
        # Threads that wait by counting would take the cores of those that read photos.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = runtime.InferenceSession(content, options, ["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class of their own
            raise ResourceError(f"{path} is damaged: {first_line(error)}") from error
        kept = session.get_modelmeta().custom_metadata_map
        if CARD_KEY not in kept or SCORES_KEY not in kept:
            raise UsageError(
                f"`{path}` was not exported by fieldguide", hint="fieldguide export RUN --out DIR"
            )
        with files.parsing(path):
            card = read_card(kept[CARD_KEY].encode())
            scores = read_scores(base64.b64decode(kept[SCORES_KEY], validate=True), card)
        return Exported(card, scores, session)

    def logits(
        self, photos: Sequence[Path], machine: Machine, views: Sequence[View]
    ) -> Iterator[Seen]:
        """Yield each photo's logits by member, one view, batch by batch, in order, in float32."""
        self.require_machine(machine, views)
        readers = machine.workers if isinstance(machine.workers, int) else count_cores()
        ahead = AHEAD * machine.batch_size
        shown = enumerate(in_order(partial(_shown, self), photos, readers, ahead=ahead))
        while numbered := list(islice(shown, machine.batch_size)):
            read = [(n, each.square) for n, each in numbered if each.square is not None]
            logits = np.empty((len(self.card.members), 0, len(self.card.classes)), np.float32)
            if read:
                logits = self.look([picture for _, picture in read])
            yield Seen(
                np.array([n for n, _ in read], np.int64),
                logits[:, :, None],
                tuple((n, each.problem) for n, each in numbered if each.problem),
                tuple((n, each.small) for n, each in numbered if each.small),
            )

    def run(
        self, pictures: Sequence[UInt8[np.ndarray, "height width 3"]]
    ) -> tuple[Float[np.ndarray, "n classes"], Float[np.ndarray, "members n classes"]]:
        """Return probabilities and logits of upright pictures of one size, at least one."""
        names = ["probabilities", "logits"]
        probabilities, logits = self._session.run(names, {"image": np.stack(pictures)})
        return probabilities, logits.transpose(1, 0, 2)

    def look(
        self, squares: Sequence[UInt8[np.ndarray, "side side 3"]]
    ) -> Float[np.ndarray, "members n classes"]:
        """Return the logits of photos that were prepared."""
        return self.run(squares)[1]

    def require_machine(self, machine: Machine, views: Sequence[View] = ()) -> str:
        """Return nothing to tell; `UsageError` for another device or precision, or for views."""
        if views:
            raise UsageError(
                "an exported model looks at one view of a photo", hint="leave --views out"
            )
        if machine.device not in {"auto", "cpu"}:
            raise UsageError(f"an exported model runs on the CPU, not on `{machine.device}`")
        if machine.precision not in {"auto", "float32"}:
            raise UsageError(f"an exported model computes in float32, not in {machine.precision}")
        return ""


def require_runtime() -> ModuleType:
    """Return the package `onnxruntime`; `ResourceError` without it.

    Builds of it may send usage data: they are asked not to, before it is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError(
            f"exported models need the package `onnxruntime`: {first_line(error)}",
            hint=f"pip install onnxruntime, which comes with '{installed()[0]}[onnx]' too",
        ) from error
    runtime: ModuleType = onnxruntime
    return runtime


def model_file(place: Path) -> Path | None:
    """Return the file of an exported model that a path names, itself or its folder."""
    if place.suffix.lower() == ".onnx" and place.is_file():
        return place
    inside = place / ONNX
    return inside if inside.is_file() else None


def _content(place: Path) -> tuple[bytes, Path]:
    """Return the bytes of a model's file, checked by the manifest beside it, and its path."""
    path = model_file(place)
    if path is None:
        raise UsageError(f"`{place}` is no exported model: it has no {ONNX}")
    if (path.parent / files.MANIFEST).is_file() and path.name in files.read_manifest(path.parent):
        return files.read_member(path.parent, path.name), path
    with files.parsing(path):
        return path.read_bytes(), path


def _shown(model: Model, photo: Path) -> _Shown:
    """Return a photo's square, or the reason why there is none."""
    try:
        picture = model.card.architecture.decoding(photo)
    except UnreadablePhoto as error:
        return _Shown(problem=error.message)
    return _Shown(model.square(picture), small=size_if_small(picture))
