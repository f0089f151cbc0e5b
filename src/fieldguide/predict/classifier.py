"""A classifier: weights, what they expect of a picture, and how far to trust its answers.

It is one folder that needs no run: `classifier.json`, a safetensors file a member, and the
out-of-fold scores by which sets of classes are drawn. Every file's hash is checked when it is read.
Knows nothing of runs or of how members came about.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fieldguide.errors import UsageError
from fieldguide.machine.device import choose_device
from fieldguide.merge import Weights
from fieldguide.network.backbones import require_backbone
from fieldguide.photos.decoding import centre
from fieldguide.predict import inference
from fieldguide.predict.card import (
    CARD,
    SCORES,
    Card,
    OutOfFold,
    card_bytes,
    read_card,
    read_scores,
    scores_bytes,
)
from fieldguide.predict.model import Machine, Model, Seen
from fieldguide.recipe import View
from fieldguide.storage import files


@dataclass(frozen=True, eq=False)
class Classifier(Model):
    """A classifier of one or more members; `Classifier.load` reads a saved one."""

    card: Card
    members: tuple[Weights, ...] = field(repr=False)
    out_of_fold: OutOfFold = field(repr=False)

    @cached_property
    def parameters(self) -> int:
        """The number of trained values over all members, without batch norm's statistics."""
        return sum(
            tensor.numel()
            for weights in self.members
            for name, tensor in weights.items()
            if tensor.is_floating_point() and ".running_" not in name
        )

    @property
    def nbytes(self) -> int:
        """The size of the weights on disk and in memory."""
        return sum(tensor.nbytes for weights in self.members for tensor in weights.values())

    def logits(
        self, photos: Sequence[Path], machine: Machine, views: Sequence[View]
    ) -> Iterator[Seen]:
        """Yield each photo's logits, by torch: see `inference.logits`."""
        return inference.logits(self.card.architecture, self.members, photos, machine, views)

    def look(
        self, squares: Sequence[UInt8[np.ndarray, "side side 3"]]
    ) -> Float[np.ndarray, "members n classes"]:
        """Return the logits of photos that were prepared, on the device that there is."""
        size = self.card.architecture.size
        shown = torch.from_numpy(np.stack([centre(each, size, size) for each in squares]))
        found: np.ndarray = self._networks.logits(shown.permute(0, 3, 1, 2)).numpy()
        return found

    @cached_property
    def _networks(self) -> inference.Networks:
        """The members on the device that there is, in the precision that it has."""
        own, machine = self.card.architecture, Machine()
        precision = inference.precision_used(own, machine)
        return inference.Networks(own, self.members, choose_device(machine.device), precision)

    def require_machine(self, machine: Machine, views: Sequence[View] = ()) -> str:
        """Return what to tell of the precision used, if it is not that of the folds."""
        own = self.card.architecture.precision
        used = inference.precision_used(self.card.architecture, machine)
        if used == own or machine.precision != "auto":
            return ""
        return f"this device has no {own}, in which the folds were judged: {used} is used"

    def save(self, folder: str | Path) -> Path:
        """Write the classifier as a folder and return it; `UsageError` if there is something."""
        names = [f"member-{n}.safetensors" for n in range(len(self.members))]
        with files.new_folder(Path(folder), hint="name a new folder") as place:
            for name, weights in zip(names, self.members, strict=True):
                content = {key: tensor.contiguous() for key, tensor in weights.items()}
                files.write_bytes(place / name, save_tensors(content, {"format": "pt"}))
            files.write_bytes(place / SCORES, scores_bytes(self.out_of_fold))
            files.write_bytes(place / CARD, card_bytes(self.card))
            files.write_manifest(place, [*names, SCORES, CARD])
        return Path(folder)

    @staticmethod
    def load(folder: str | Path) -> "Classifier":
        """Return a saved classifier, its hashes checked.

        Raises `UsageError` if there is none, `ResourceError` for a damaged one.
        """
        place = Path(folder)
        if not (place / CARD).is_file():
            raise UsageError(f"`{folder}` is no classifier: it has no {CARD}")
        with files.parsing(place / CARD):
            card = read_card(files.read_member(place, CARD))
            require_backbone(card.architecture.backbone)
        members = []
        for number in range(len(card.members)):
            name = f"member-{number}.safetensors"
            with files.parsing(place / name):
                members.append(load_tensors(files.read_member(place, name)))
                inference.require_weights(card.architecture, members[-1])
        with files.parsing(place / SCORES):
            scores = read_scores(files.read_member(place, SCORES), card)
        return Classifier(card, tuple(members), scores)


def as_tensors(weights: Mapping[str, NDArray[Any]]) -> Weights:
    """Return weights that were read as arrays."""
    return {name: torch.from_numpy(array) for name, array in weights.items()}
