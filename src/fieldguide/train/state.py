"""What a fold's training has come to, and how it is saved whole and found again after a kill.

Two checkpoints are kept, so that a damaged one costs the work since the one before. Each is one
safetensors file (tensors, and the rest as JSON in its header) and a digest written after it.
Knows nothing of how the state comes about.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fieldguide.merge import Weights
from fieldguide.storage import files
from fieldguide.train.optimize import Moments

Row = dict[str, Any]

# A replica has diverged after so many bad steps in a row, or when half of an epoch's were bad.
# Taste: fp16's loss scaling may rightly skip a few.
BAD_STEPS_IN_A_ROW = 10


class Step(NamedTuple):
    """What a training step measured on its batch, before it changed the network: means over photos.

    `accuracy` is the share of the target that lies on the class of the highest logit: with mixing a
    photo has shares of several classes, so it stays below what plain photos would give.
    """

    loss: float
    accuracy: float


@dataclass
class Tally:
    """Running counts of one replica's epoch."""

    loss: float = 0.0  # summed over photos
    right: float = 0.0  # share of the target that the highest logit had, summed over photos
    photos: int = 0
    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    missing: int = 0
    seconds: float = 0.0

    def add(self, step: Step | None, photos: int) -> None:
        """Count a step; None: its loss was not finite, and it was skipped."""
        self.steps += 1
        if step is None:
            self.skipped += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        self.loss += step.loss * photos
        self.right += step.accuracy * photos
        self.photos += photos

    @property
    def hopeless(self) -> bool:
        """Whether so many steps in a row were skipped that the epoch is not worth ending."""
        return self.skipped_in_a_row >= BAD_STEPS_IN_A_ROW

    @property
    def diverged(self) -> bool:
        """At the end of an epoch: whether too many steps were skipped to call it training."""
        return self.hopeless or 2 * self.skipped > self.steps


@dataclass
class FoldState:
    """All that a fold's training changes.

    Replicas before `replica` are done with the epoch `epoch`, of which the others have done so many
    `steps`. `copies` are the replicas' weights as of their last finished step or merge; `chosen`
    those that the fold would end with now (None: `merged`), whose logits of the test part are
    `logits`. `scalers` are states of the gradients' loss scaling, one a replica (in older
    checkpoints one a rank); those of other precisions than float16 are empty.
    """

    merged: Weights
    copies: list[Weights]
    moments: list[Moments]
    epoch: int = 0
    replica: int = 0
    steps: list[int] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    diverged: list[int] = field(default_factory=list)  # replicas, in this epoch
    velocity: Weights = field(default_factory=dict)  # of the outer step
    ended: bool = False
    parts: int = 1  # that a batch is computed in, since memory ran out
    chosen: Weights | None = None
    chosen_epoch: int | None = None
    best_score: float = float("-inf")
    logits: Tensor | None = None
    epoch_logits: list[Tensor] = field(default_factory=list)
    scalers: list[Row] = field(default_factory=list)
    history: list[Row] = field(default_factory=list)
    merges: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        """At the start of an epoch unless told otherwise."""
        if not self.steps:
            self.begin_epoch(self.epoch)

    @property
    def healthy(self) -> list[int]:
        """The replicas that have not diverged in this epoch."""
        return [n for n in range(len(self.copies)) if n not in self.diverged]

    def begin_epoch(self, epoch: int) -> None:
        """Change the state: it is now before the first step of all replicas in `epoch`."""
        self.epoch, self.replica, self.diverged = epoch, 0, []
        self.steps = [0] * len(self.copies)
        self.tallies = [Tally() for _ in self.copies]


_PLAIN = (
    "epoch",
    "replica",
    "steps",
    "diverged",
    "parts",
    "chosen_epoch",
    "best_score",
    "scalers",
    "history",
    "merges",
)


def save_state(folder: Path, state: FoldState) -> Path:
    """Write the next checkpoint into `folder`, removing all but the newest one first.

    The folder is made, in one that is there. Raises `ResourceError` where it cannot be written.
    """
    tensors, rest = _taken_apart(state)
    content = save(tensors, {"state": json.dumps(rest)})
    files.make_folder_within(folder)  # last, as its disk may go away meanwhile
    numbers = sorted(int(path.stem) for path in folder.glob("*.safetensors"))
    for number in numbers[:-1]:
        _file(folder, number).unlink()
        _digest(folder, number).unlink(missing_ok=True)
    path = _file(folder, (numbers or [0])[-1] + 1)
    files.write_bytes(path, content)
    files.write_text(path.with_suffix(".sha256"), files.sha256(path))
    return path


def load_state(folder: Path, notice: Callable[[str], None]) -> FoldState | None:
    """The newest whole checkpoint, or None; `notice` is told of each that is damaged."""
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: -int(path.stem)):
        digest = path.with_suffix(".sha256")
        if digest.is_file() and digest.read_text("utf-8").strip() == files.sha256(path):
            return _put_together(path)
        notice(
            f"checkpoint `{path}` is damaged or incomplete (SHA-256 differs): using the one before"
        )
    return None


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def _digest(folder: Path, number: int) -> Path:
    return _file(folder, number).with_suffix(".sha256")


def _taken_apart(state: FoldState) -> tuple[dict[str, Tensor], Row]:
    """Tensors under path-like names, and the rest for JSON. Weights held twice are saved once."""
    tensors: dict[str, Tensor] = {}
    rest: Row = {name: getattr(state, name) for name in _PLAIN}
    rest["tallies"] = [vars(tally) for tally in state.tallies]
    if rest["best_score"] == float("-inf"):
        rest["best_score"] = None
    held: dict[int, str] = {}
    named = {"merged": state.merged, "chosen": state.chosen}
    named |= {f"copy-{number}": copy for number, copy in enumerate(state.copies)}
    rest["places"] = {}
    for name, weights in named.items():
        if weights is None:
            continue
        rest["places"][name] = held.setdefault(id(weights), name)
        if held[id(weights)] == name:
            tensors |= _prefixed(name, weights)
    for number, moments in enumerate(state.moments):
        for parameter, values in moments.items():
            tensors |= _prefixed(f"moments-{number}/{parameter}", values)
    tensors |= _prefixed("velocity", state.velocity)
    tensors |= {f"epoch_logits/{n:06d}": logits for n, logits in enumerate(state.epoch_logits)}
    if state.logits is not None:
        tensors["logits"] = state.logits
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, rest


def _put_together(path: Path) -> FoldState:
    with safe_open(path, framework="pt") as file:
        rest = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    places = rest.pop("places")
    weights = {name: _under(tensors, name) for name in set(places.values())}
    tallies = [Tally(**tally) for tally in rest.pop("tallies")]
    if rest["best_score"] is None:
        rest["best_score"] = float("-inf")
    copies = sum(name.startswith("copy-") for name in places)
    return FoldState(
        merged=weights[places["merged"]],
        copies=[weights[places[f"copy-{number}"]] for number in range(copies)],
        moments=[_nested(_under(tensors, f"moments-{number}")) for number in range(copies)],
        chosen=weights[places["chosen"]] if "chosen" in places else None,
        tallies=tallies,
        velocity=_under(tensors, "velocity"),
        logits=tensors.get("logits"),
        epoch_logits=[tensor for _, tensor in sorted(_under(tensors, "epoch_logits").items())],
        **rest,
    )


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor.detach().cpu() for name, tensor in tensors.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def _nested(tensors: Mapping[str, Tensor]) -> Moments:
    moments: Moments = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        moments.setdefault(parameter, {})[key] = torch.clone(tensor)
    return moments
