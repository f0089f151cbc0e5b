"""Merging checkpoints of any training: files of one architecture become one file.

They may come from timm, torchvision or fieldguide, in .safetensors or .pth. Notes warn of copies
that only look mergeable: unrelated weights, an anchor that they do not come from, and, with
labelled photos, a merged network that is worse than its copies. Knows nothing of runs and folds.

    copies = read(paths)
    merged = merge(copies, "stock", read_one(anchor))
    merged, barrier = on_photos(copies, merged, architecture(copies[0], "resnet50"), catalog)
    write(out, merged, provenance)
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from fieldguide.errors import DataError, UsageError
from fieldguide.merge import Move, Weights, average, model_stock, moves
from fieldguide.network.batch_norm import RECALIBRATION_BATCH, RECALIBRATION_PHOTOS
from fieldguide.network.network import build, input_config
from fieldguide.network.pretrained import read_tensors
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.predict import inference
from fieldguide.predict.card import Architecture, Rgb
from fieldguide.predict.model import Machine
from fieldguide.recipe import Interpolation, Precision
from fieldguide.seeds import derive_seed
from fieldguide.storage import files
from fieldguide.words import count, some

Rule = Literal["soup", "stock"]
RULES: tuple[Rule, ...] = ("soup", "stock")

# The names of the classifier in timm's convolutional networks; torchvision's is `fc` as well.
CLASSIFIERS = ("fc", "head.fc", "last_linear", "classifier")

# Mean cosine between the large tensors of two checkpoints. Measured with resnet18: two folds
# fine-tuned from one start 0.998 (heads 0.99), a fold and its pretrained start 0.997, a fold and a
# random network, or two random networks, -0.001; heads of one training with their classes in
# another order 0.03. Half way: longer trainings move further.
RELATED = 0.5

# Mean |w − w_0| / |w_0| over large tensors. Measured with resnet18: 0.06 for a fold and its
# pretrained start, 1.3 for a random network. Weights without a direction in common with the anchor
# lie at 1 or beyond, however short they are.
FAR_FROM_ANCHOR = 0.9

# Degrees. At 80° Model Stock takes 0.30 of the mean of two copies (taste); between folds: 45°.
NOTHING_IN_COMMON = 80.0

# The drop in accuracy that counts as a barrier, if there are photos enough to tell. Frankle,
# Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020,
# section 2: an instability below 2 % is stable.
BARRIER = 0.02

# Photos that accuracy is measured on: its standard error is then half a point at most.
JUDGED_PHOTOS = 10_000

_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var", _COUNTER)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of one file, floating ones in float32, their dtypes in the file, and notes."""

    path: Path
    weights: Weights
    dtypes: Mapping[str, torch.dtype]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Merged:
    """The merged weights in the dtypes of the first copy, and what is known of them.

    `cosine` is the least mean cosine between the weights of two copies: near 1 for copies of one
    start, near 0 for unrelated ones. `moves` are of anchored tensors, `notes` warnings.
    """

    weights: Weights
    cosine: float
    moves: Mapping[str, Move]
    notes: tuple[str, ...]

    @property
    def angle(self) -> float:
        """The mean angle over tensors between the copies' moves from the anchor, or NaN."""
        return fmean(move.angle for move in self.moves.values()) if self.moves else math.nan

    @property
    def ratio(self) -> float:
        """The mean share over tensors of the copies' mean against the anchor, or NaN."""
        return fmean(move.ratio for move in self.moves.values()) if self.moves else math.nan


@dataclass(frozen=True)
class Barrier:
    """The accuracy of each copy and of the merged weights on the same photos.

    `photos` were judged, `unreadable` ones left out. `drop` is the copies' mean less that of the
    merged weights, `error` its standard error over photos.
    """

    photos: int
    unreadable: int
    copies: tuple[float, ...]
    merged: float
    drop: float
    error: float

    @property
    def doubt(self) -> float:
        """The largest drop that may be chance with this number of photos: two standard errors.

        At least 3 / photos, the bound if no photo differs (Hanley, Lippman-Hand, "If Nothing Goes
        Wrong, Is Everything All Right?", JAMA 1983).
        """
        return max(2 * self.error, 3 / self.photos)

    @property
    def is_there(self) -> bool:
        """The finding that merging lost more than `BARRIER`, beyond doubt."""
        return self.drop > max(BARRIER, self.doubt)


# --- files ----------------------------------------------------------------------------------------


def read(paths: Sequence[Path]) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of at least two files, all with the same tensors.

    Counters of batch norm that some files lack (old trainings) begin at zero there, and names that
    differ by a prefix alone become the first file's. Raises `UsageError` for unreadable files,
    values that are not finite, and other tensors or shapes.
    """
    if len(paths) < 2:
        raise UsageError(
            f"nothing to merge: {count(len(paths), 'checkpoint')} given",
            hint="name at least two files",
        )
    first, *others = [read_one(path) for path in paths]
    found = [first, *(_named_as(first, other) for other in others)]
    zeros = {
        name: torch.zeros_like(tensor)
        for copy in found
        for name, tensor in copy.weights.items()
        if name.endswith(_COUNTER)
    }
    dtypes = {name: copy.dtypes[name] for copy in found for name in zeros.keys() & copy.dtypes}
    copies = tuple(
        replace(copy, weights={**zeros, **copy.weights}, dtypes={**dtypes, **copy.dtypes})
        for copy in found
    )
    for copy in copies[1:]:
        _require_alike(copies[0], copy)
    return copies


def read_one(path: Path) -> Checkpoint:
    """Return one checkpoint, such as an anchor; raises `UsageError` as `read` does."""
    notes: list[str] = []
    tensors = read_tensors(path, notes.append)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UsageError(
                f"`{path}`: `{name}` holds values that are not finite",
                hint="its training diverged, or the file is damaged: leave it out",
            )
    weights = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return Checkpoint(path, weights, dtypes, tuple(notes))


def _named_as(first: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return the other checkpoint under the first one's names, if a common prefix sets them apart.

    Such as Lightning's `model.`.
    """
    ours, theirs = _common_prefix(first.weights), _common_prefix(other.weights)
    new = {name: ours + name.removeprefix(theirs) for name in other.weights}
    if ours == theirs or not first.weights.keys() & set(new.values()):
        return other
    how = " and ".join(
        f"those of `{copy.path}` begin with {f'`{prefix}`' if prefix else 'no prefix'}"
        for copy, prefix in ((other, theirs), (first, ours))
    )
    return replace(
        other,
        weights={new[name]: tensor for name, tensor in other.weights.items()},
        dtypes={new[name]: dtype for name, dtype in other.dtypes.items()},
        notes=(*other.notes, f"names differ: {how}, as the merged file's do"),
    )


def _common_prefix(weights: Weights) -> str:
    """Return the parts of their names that all tensors begin with, such as `model.`, or nothing."""
    first, last = min(weights, default=""), max(weights, default="")
    start, dot, _ = os.path.commonprefix([first, last]).rpartition(".")  # noqa: RUF071  by letters
    return start + dot


def require_free(path: Path) -> None:
    """Raise `UsageError` where `write` would not write: call it before long work."""
    if path.suffix != ".safetensors":
        raise UsageError(
            f"merged weights are written as safetensors: `{path}`",
            hint=f"call it `{path.with_suffix('.safetensors').name}`",
        )
    files.require_new(path, hint="name a new file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder `{path.parent}`", hint="create it first")


def write(path: Path, merged: Merged, provenance: Mapping[str, object]) -> None:
    """Write merged weights as safetensors that timm and torch load, whole or not at all.

    `provenance` is kept as JSON in the file's metadata. The same weights and record give the same
    bytes. Raises `UsageError` as `require_free` does.
    """
    require_free(path)
    content = {name: tensor.contiguous() for name, tensor in merged.weights.items()}
    data = save(content, {"format": "pt"})
    # The record is added by hand: safetensors' own writer puts several entries in an order that
    # changes from call to call. The format is eight bytes with the length of a JSON header, the
    # header, and tensors by offsets from its end.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["provenance"] = json.dumps(provenance, ensure_ascii=False)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    files.write_bytes(path, len(text).to_bytes(8, "little") + text + data[end:])


def _require_alike(first: Checkpoint, other: Checkpoint) -> None:
    both = f"`{first.path}` and `{other.path}`"
    sides = [
        *_lacking("only the first has", first.weights, other.weights),
        *_lacking("only the second has", other.weights, first.weights),
    ]
    if sides:
        raise UsageError(
            f"{both} hold different tensors: {'; '.join(sides)}",
            hint="merge checkpoints of one architecture with one kind of head",
        )
    odd = _other_shapes(first.weights, other.weights)
    if odd:
        raise UsageError(
            f"{both} hold tensors of different shapes: {some(list(odd.values()))}",
            hint="they tell different classes apart: merge those of the same classes"
            if all(_is_head(name) for name in odd)
            else "merge checkpoints of one architecture",
        )


def _lacking(said: str, one: Weights, other: Weights) -> list[str]:
    """Return a text on the tensors of the one that the other lacks, or none."""
    names = sorted(one.keys() - other.keys())
    return [f"{said} {some([f'`{n}` {tuple(one[n].shape)}' for n in names])}"] if names else []


def _other_shapes(one: Weights, other: Weights) -> dict[str, str]:
    """Return texts on the tensors of both that differ in shape, by name."""
    return {
        name: f"`{name}` {tuple(one[name].shape)} and {tuple(other[name].shape)}"
        for name in sorted(one.keys() & other.keys())
        if one[name].shape != other[name].shape
    }


# --- merging --------------------------------------------------------------------------------------


def merge(copies: Sequence[Checkpoint], rule: Rule, anchor: Checkpoint | None = None) -> Merged:
    """Return one checkpoint from several: their mean (`soup`), or `stock`, which needs the anchor.

    `stock` pulls the mean towards the anchor, the weights that all copies were fine-tuned from
    (`merge.model_stock`). The anchor may have another head, whose tensors are then averaged, and
    names with or without fieldguide's `backbone.`. Batch norm's statistics are averaged; counters
    keep their maximum. With `soup` an anchor only adds moves and warnings. Raises `UsageError` for
    an anchor of another architecture.
    """
    if rule not in RULES:
        raise UsageError(f"unknown rule: `{rule}`", hint=f"use {' or '.join(RULES)}")
    if rule == "stock" and anchor is None:
        raise UsageError(
            "the rule `stock` needs the weights that the copies were fine-tuned from",
            hint="name them with --anchor, or use --rule soup",
        )
    weights = [copy.weights for copy in copies]
    anchored, missing = _anchored(copies[0], anchor) if anchor else ({}, ())
    merged = model_stock(weights, anchored)[0] if rule == "stock" else average(weights)
    cosines = _cosines(weights, _large(copies[0].weights, head=False))
    found = moves(weights, anchored)
    read = [note for copy in (*copies, *([anchor] if anchor else [])) for note in copy.notes]
    notes = [*read, *_dtype_notes(copies), *_kinship_notes(copies, cosines)]
    if anchor:
        notes += [*missing, *_anchor_notes(copies, anchor, anchored, found)]
    stored = _stored_as(merged, copies[0].dtypes)
    return Merged(stored, float(cosines.min()), found, tuple(notes))


def _stored_as(weights: Weights, dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Return weights in the first file's dtypes; `UsageError` for a value too large for one."""
    stored = {name: tensor.to(dtypes[name]) for name, tensor in weights.items()}
    for name, tensor in stored.items():
        if not tensor.isfinite().all():
            raise UsageError(
                f"merged `{name}` does not fit into {_dtype(tensor.dtype)}, which the first"
                " checkpoint is stored in",
                hint="name one that is stored in float32 first",
            )
    return stored


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _anchored(first: Checkpoint, anchor: Checkpoint) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the anchor's trained tensors under the copies' names, and a note on the others.

    A head under fieldguide's names began with random weights, which are no anchor. Raises
    `UsageError` for an anchor with other shapes below the head, or of no use.
    """
    ahead, before = _common_prefix(first.weights), _common_prefix(anchor.weights)
    start = {_bare(n.removeprefix(before)): tensor for n, tensor in anchor.weights.items()}
    trained = [
        name
        for name, tensor in first.weights.items()
        if tensor.is_floating_point() and not name.endswith(_STATISTICS)
    ]
    shared = {
        name: start[bare]
        for name in trained
        if (bare := _bare(name.removeprefix(ahead))) in start
        and not (_is_ours(first.weights) and _is_head(name))
    }
    hint = "name the weights that the checkpoints were fine-tuned from"
    odd = _other_shapes(shared, first.weights)
    body = [text for name, text in odd.items() if not _is_head(name)]
    if body:
        raise UsageError(
            f"the anchor `{anchor.path}` and `{first.path}` hold tensors of different shapes:"
            f" {some(body)}",
            hint=hint,
        )
    if len(odd) == len(shared):
        ours, theirs = (
            some([f"`{name}`" for name in weights]) for weights in (first.weights, anchor.weights)
        )
        raise UsageError(
            f"the anchor `{anchor.path}` shares no tensor with `{first.path}`:"
            f" {theirs} against {ours}",
            hint=hint,
        )
    found = {name: tensor for name, tensor in shared.items() if name not in odd}
    rest = [f"`{name}`" for name in trained if name not in found]
    return found, (f"averaged and not anchored: {some(rest)}",) if rest else ()


def _is_ours(weights: Weights) -> bool:
    """Return whether fieldguide named the tensors."""
    return any(name.startswith("backbone.") for name in weights)


def _bare(name: str) -> str:
    """Return timm's name of a tensor, whether or not fieldguide wrote it."""
    return name.removeprefix("backbone.")


def _is_head(name: str) -> bool:
    return name.startswith(("head.", *(f"{classifier}." for classifier in CLASSIFIERS)))


# --- whether the copies are relatives -------------------------------------------------------------


def _large(weights: Weights, *, head: bool) -> list[str]:
    """Return convolutions and linear layers, of the head or below it: they learn directions."""
    return [
        name
        for name, tensor in weights.items()
        if tensor.ndim >= 2 and tensor.is_floating_point() and _is_head(name) == head
    ]


def _cosines(weights: Sequence[Weights], names: Sequence[str]) -> Float[Tensor, "k k"]:
    """Return the mean cosine over tensors between each two copies; 1 if all tensors are zero."""
    grams = [torch.ones(len(weights), len(weights))]
    for name in names:
        rows = torch.stack([copy[name].flatten() for copy in weights])
        if rows.norm(dim=1).all():
            units = nn.functional.normalize(rows, dim=1)
            grams.append(units @ units.T)
    return torch.stack(grams[1:] or grams).mean(dim=0)


def _kinship_notes(copies: Sequence[Checkpoint], cosines: Float[Tensor, "k k"]) -> list[str]:
    """Return notes on the least related pair, on equal files and on unrelated heads."""
    notes = []
    first, second = divmod(int(cosines.argmin()), len(copies))
    low = int((cosines < RELATED).triu(1).sum())
    pairs = math.comb(len(copies), 2)
    share = f" ({low} of {pairs} pairs are below {RELATED})" if pairs > 1 else ""
    if low:
        notes.append(
            f"`{copies[first].path}` and `{copies[second].path}` look like unrelated runs: the"
            f" mean cosine between their weights is {cosines[first, second]:.2f}"
            f"{share}; copies fine-tuned from one start have above 0.9, and the"
            " mean of unrelated networks is no working network"
        )
    for number, copy in enumerate(copies):
        for other in copies[:number]:
            if all(torch.equal(copy.weights[name], other.weights[name]) for name in copy.weights):
                notes.append(f"`{other.path}` and `{copy.path}` hold the same weights")
                break
    heads = _cosines([copy.weights for copy in copies], _large(copies[0].weights, head=True))
    if heads.min() < RELATED:
        first, second = divmod(int(heads.argmin()), len(copies))
        notes.append(
            f"the heads of `{copies[first].path}` and `{copies[second].path}` look unrelated"
            f" (cosine {heads.min():.2f}): they tell other classes apart, the same ones in another"
            " order, or began with other random weights"
        )
    return notes


def _anchor_notes(
    copies: Sequence[Checkpoint],
    anchor: Checkpoint,
    anchored: Weights,
    found: Mapping[str, Move],
) -> list[str]:
    """Return notes on copies that do not come from the anchor, and on moves in all directions."""
    lengths = {name: float(anchored[name].norm()) for name in _large(anchored, head=False)}
    notes = []
    for copy in copies:
        shares = [
            float((copy.weights[name] - anchored[name]).norm()) / length
            for name, length in lengths.items()
            if length
        ]
        distance = fmean(shares or [0.0])
        if distance > FAR_FROM_ANCHOR:
            notes.append(
                f"`{copy.path}` does not seem to come from the anchor `{anchor.path}`: its weights"
                f" moved by {distance:.2f} of the anchor's length (fine-tuning: about 0.1)"
            )
    angle = fmean(move.angle for move in found.values())
    if angle > NOTHING_IN_COMMON:
        notes.append(
            f"the copies moved away from the anchor in directions with little in common (mean angle"
            f" {angle:.0f}°): `stock` stays close to the anchor"
        )
    return notes


def _dtype_notes(copies: Sequence[Checkpoint]) -> list[str]:
    first = copies[0]
    return [
        f"`{copy.path}` is stored in {_kinds(copy)}, `{first.path}` in {_kinds(first)}: the merged"
        " file is stored as the latter"
        for copy in copies[1:]
        if copy.dtypes != first.dtypes
    ]


def _kinds(copy: Checkpoint) -> str:
    return " and ".join(sorted({_dtype(d) for d in copy.dtypes.values() if d.is_floating_point}))


# --- photos ---------------------------------------------------------------------------------------


def architecture(
    copy: Checkpoint,
    backbone: str | None,
    *,
    size: int | None = None,
    eval_resize: int | None = None,
    mean: Rgb | None = None,
    std: Rgb | None = None,
    interpolation: Interpolation | None = None,
    precision: Precision = "float32",
    truncated: Literal["refuse", "keep"] = "refuse",
) -> Architecture:
    """Return the network that a checkpoint is for, and what it expects of a picture.

    Settings left out are timm's for the backbone. `size` alone keeps the share that evaluation cuts
    off. Raises `UsageError` without a backbone and for one that the tensors do not fit.
    """
    if backbone is None:
        raise UsageError(
            "photos need the network, which tensors do not name",
            hint="name it with --backbone, such as resnet50",
        )
    weights = _in_network(copy.weights)
    head, classes = _head(copy, weights)
    network = build(backbone, weights="none", head=head, classes=classes, dropout=0.0, seed=0)
    own = network.state_dict()
    sides = [*_lacking("lacks", own, weights), *_lacking("holds besides", weights, own)]
    if odd := _other_shapes(weights, own):
        sides.append(f"differs from it in {some(list(odd.values()))}")
    if sides:
        raise UsageError(
            f"`{copy.path}` does not fit `{backbone}`: it {'; it '.join(sides)}",
            hint="set --backbone to the network that the checkpoints were trained with",
        )
    usual = input_config(network.backbone)
    side = usual.size if size is None else size
    resize = round(usual.eval_resize * side / usual.size) if eval_resize is None else eval_resize
    if resize < side:
        raise UsageError(
            f"pictures of {resize} pixels are smaller than the network's input of {side}",
            hint=f"leave --eval-resize out, or set it to {side} or more",
        )
    return Architecture(
        backbone=backbone,
        head=head,
        classes=classes,
        size=side,
        eval_resize=resize,
        stored_side=resize,
        mean=usual.mean if mean is None else mean,
        std=usual.std if std is None else std,
        interpolation=usual.interpolation if interpolation is None else interpolation,
        truncated=truncated,
        precision=precision,
        layout="contiguous",
    )


def on_photos(
    copies: Sequence[Checkpoint],
    merged: Merged,
    network: Architecture,
    photos: Catalog,
    machine: Machine = Machine(),
) -> tuple[Merged, Barrier | None]:
    """Return the merged weights with batch norm re-estimated, and the accuracy before and after.

    Without labels for the network's classes there is no barrier, and a note says why. Raises
    `DataError` if no photo can be read.
    """
    merged = recalibrated(merged, network, photos, machine)
    labels = len(_classes(photos))
    if labels != network.classes:
        reason = (
            f"the network has {count(network.classes, 'output')}, and the photos have"
            f" {count(labels, 'label')}"
            if labels
            else "the photos have no labels"
        )
        return _noted(merged, f"accuracy cannot be told: {reason}"), None
    found = barrier(copies, merged, network, photos, machine)
    return _noted(merged, *_barrier_notes(found, copies, network.classes)), found


def recalibrated(
    merged: Merged, network: Architecture, photos: Catalog, machine: Machine = Machine()
) -> Merged:
    """Return the weights with batch norm's means and variances re-estimated.

    On at most 1,024 photos in random order, of the training part if there is one. Raises
    `DataError` if none can be read.
    """
    statistics = [name for name in merged.weights if name.endswith(("running_mean", "running_var"))]
    if not statistics:
        return merged
    part = photos.part("train") if len(photos.part("train")) else photos
    paths = [part.file(photo) for photo in _shuffled(part.photos)][:RECALIBRATION_PHOTOS]
    names = _network_names(merged.weights)
    # Statistics that no photo reached stay NaN.
    unknown = {names[name]: torch.full_like(merged.weights[name], torch.nan) for name in statistics}
    after = inference.recalibrated(network, _in_network(merged.weights) | unknown, paths, machine)
    measured = {n: after[names[n]] for n in statistics if after[names[n]].isfinite().all()}
    if not measured:
        raise _unreadable(paths)
    weights = _stored_as(measured, {n: merged.weights[n].dtype for n in measured})
    done = replace(merged, weights=dict(merged.weights) | weights)
    if len(paths) >= RECALIBRATION_BATCH:
        return done
    few = f"batch norm was re-estimated on {count(len(paths), 'photo')} only"
    return _noted(done, f"{few}: give a few hundred, without labels if need be")


def barrier(
    copies: Sequence[Checkpoint],
    merged: Merged,
    network: Architecture,
    photos: Catalog,
    machine: Machine = Machine(),
) -> Barrier:
    """Return the accuracy of copies and merged weights on at most 10,000 labelled photos.

    They are outside the training part, if any are. The network's classes are taken to be the labels
    in code-point order, as in timm and torchvision. Raises `DataError` if no photo can be read.
    """
    labelled = [photo for photo in photos.photos if photo.label is not None]
    beyond = [photo for photo in labelled if photo.split != "train"]
    judged = _shuffled(beyond or labelled)[:JUDGED_PHOTOS]
    paths = [photos.file(photo) for photo in judged]
    members = [_in_network(weights) for weights in (*(c.weights for c in copies), merged.weights)]
    logits, rows = inference.all_logits(network, members, paths, machine)
    if not len(rows):
        raise _unreadable(paths)
    numbers = {label: number for number, label in enumerate(_classes(photos))}
    targets = np.array([numbers[judged[row].label] for row in rows.tolist()])
    right = (logits.argmax(axis=2) == targets) & np.isfinite(logits).all(axis=2)
    lost = right[:-1].mean(axis=0) - right[-1]
    return Barrier(
        photos=len(rows),
        unreadable=len(paths) - len(rows),
        copies=tuple(float(share) for share in right[:-1].mean(axis=1)),
        merged=float(right[-1].mean()),
        drop=float(lost.mean()),
        error=float(lost.std() / math.sqrt(len(lost))),
    )


def _unreadable(paths: Sequence[Path]) -> DataError:
    return DataError(f"none of {count(len(paths), 'photo')} can be read, such as `{paths[0]}`")


def _classes(photos: Catalog) -> list[str]:
    """Return all labels in code-point order."""
    return sorted({photo.label for photo in photos.photos if photo.label is not None})


def _shuffled(photos: Sequence[Photo]) -> list[Photo]:
    """Return the photos in an order that is random and always the same."""
    order = np.random.default_rng(derive_seed("photos of a merge")).permutation(len(photos))
    return [photos[row] for row in order]


def _barrier_notes(found: Barrier, copies: Sequence[Checkpoint], classes: int) -> list[str]:
    notes = []
    if found.unreadable:
        notes.append(f"{count(found.unreadable, 'photo')} could not be read and were left out")
    if found.is_there:
        notes.append(
            f"merging lost accuracy: {found.merged:.3f} against {fmean(found.copies):.3f}, the mean"
            f" of the copies, on {count(found.photos, 'photo')} (standard error of the difference"
            f" {found.error:.3f}): a barrier lies between the copies; let them vote instead"
        )
    elif found.doubt > BARRIER:
        notes.append(
            f"{count(found.photos, 'photo')} cannot tell a drop of accuracy below"
            f" {100 * found.doubt:.0f} points from chance"
        )
    guesses = 1 / classes
    by_chance = guesses + 2 * math.sqrt(guesses * (1 - guesses) / found.photos)
    notes += [
        f"`{copy.path}` does no better than guessing (accuracy {share:.3f}): its classes may be"
        " in another order than the photos' labels, or pictures are not prepared as in training"
        for copy, share in zip(copies, found.copies, strict=True)
        if share <= by_chance
    ]
    return notes


def _noted(merged: Merged, *notes: str) -> Merged:
    return replace(merged, notes=(*merged.notes, *notes))


def _network_names(weights: Weights) -> dict[str, str]:
    """Return each tensor's name in `network.Network`, from timm's name or that name itself."""
    if _is_ours(weights):
        return {name: name for name in weights}
    prefix = _common_prefix(weights)
    bare = {name: name.removeprefix(prefix) for name in weights}
    classifier = next((each for each in CLASSIFIERS if f"{prefix}{each}.weight" in weights), "")
    return {
        name: f"head.linear.{own.removeprefix(f'{classifier}.')}"
        if classifier and own.startswith(f"{classifier}.")
        else f"backbone.{own}"
        for name, own in bare.items()
    }


def _in_network(weights: Weights) -> dict[str, Tensor]:
    """Return the weights under the network's names, floats in float32, with all counters.

    With a linear head ours computes what timm's own network does; the classifier of resnetv2 is a
    convolution of 1 × 1.
    """
    found = {
        new: weights[name].float() if weights[name].is_floating_point() else weights[name]
        for name, new in _network_names(weights).items()
    }
    if "head.linear.weight" in found:
        found["head.linear.weight"] = found["head.linear.weight"].flatten(1)
    means = [name for name in found if name.endswith("running_mean")]
    counters = {name.replace("running_mean", _COUNTER): torch.tensor(0) for name in means}
    return counters | found


def _head(copy: Checkpoint, weights: Weights) -> tuple[Literal["linear", "se", "attention"], int]:
    """Return the kind of head, and the number of its classes."""
    kinds = {name.split(".")[1] for name in weights if name.startswith("head.")}
    layer = weights.get("head.pool.linear.weight" if "gate" in kinds else "head.linear.weight")
    if layer is None:
        raise UsageError(
            f"`{copy.path}` has no classifier: none of"
            f" {', '.join(f'`{name}.weight`' for name in CLASSIFIERS)} is among its tensors",
            hint="merge it without --photos",
        )
    if "gate" in kinds:
        return "se", len(layer)
    return "attention" if "attention" in kinds else "linear", len(layer)
