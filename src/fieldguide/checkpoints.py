"""Merging checkpoints of any training: files of one architecture become one file.

They may come from timm, torchvision or fieldguide, in .safetensors or .pth. What only looks
mergeable is said in words: weights that are no relatives, an anchor that they do not come from, and,
where there are labelled photos, a merged network that is worse than what it was merged from.

    copies = read(paths)
    merged = merge(copies, "stock", read(anchor))
    merged, barrier = on_photos(copies, merged, architecture(copies[0], "resnet50"), catalog)
    write(out, merged, provenance)

Knows nothing of runs and folds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fieldguide import files, inference
from fieldguide.augment import Interpolation
from fieldguide.catalog import Catalog
from fieldguide.device import Precision
from fieldguide.errors import DataError, UsageError
from fieldguide.inference import Architecture, Machine, Rgb
from fieldguide.merge import Move, Weights, average, model_stock, moves
from fieldguide.network import RECALIBRATION_BATCH, build, input_config
from fieldguide.pretrained import NESTED, WRAPPERS, read_weights
from fieldguide.seeds import derive_seed

Rule = Literal["soup", "stock"]
RULES: tuple[Rule, ...] = ("soup", "stock")

T = TypeVar("T")

# What timm's ResNet families call their classifier; torchvision's is `fc` as well.
CLASSIFIERS = ("fc", "head.fc", "last_linear")

# Mean cosine between the large tensors of two checkpoints. Measured with resnet18: two folds
# fine-tuned from one start 0.998 (heads 0.99), a fold and its pretrained start 0.997, a fold and a
# random network, or two random networks, -0.001; heads of one training with their classes in
# another order 0.03. Half way: longer trainings move further.
RELATED = 0.5

# Mean |w − w_0| / |w_0| over large tensors. Measured with resnet18: 0.06 for a fold and its
# pretrained start, 1.3 for a random network. Whatever has no direction in common with the anchor
# lies at 1 or beyond, however short it is.
FAR_FROM_ANCHOR = 0.9

# Degrees. At 80° Model Stock takes 0.30 of the mean of two copies and 0.70 of the anchor (taste);
# measured between folds: 45°.
NOTHING_IN_COMMON = 80.0

# The drop in accuracy that counts as a barrier, where the number of photos can tell it. Frankle,
# Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020,
# section 2: an instability below 2 % is stable.
BARRIER = 0.02

# Batch-norm statistics settle with a thousand photos, as in training.
RECALIBRATION_PHOTOS = 1024

# Photos that accuracy is judged on: the standard error of a share is then half a point at most.
JUDGED_PHOTOS = 10_000

_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var", _COUNTER)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of one file, floating ones in float32, and the dtypes that they are stored in."""

    path: Path
    weights: Weights
    dtypes: Mapping[str, torch.dtype]


@dataclass(frozen=True, eq=False)
class Merged:
    """Merged weights in the dtypes of the first copy, and what is known of how they came about.

    `cosine` is the least mean cosine between the weights of two copies: near 1 for copies that
    were fine-tuned from one start, near 0 for unrelated ones. `moves` holds each anchored tensor,
    none without an anchor. `notes` are warnings in words.
    """

    weights: Weights
    cosine: float
    moves: Mapping[str, Move]
    notes: tuple[str, ...]

    @property
    def angle(self) -> float:
        """Degrees between the copies' movements from the anchor, mean over tensors; NaN without."""
        return _mean_or_nan([move.angle for move in self.moves.values()])

    @property
    def ratio(self) -> float:
        """Model Stock's share of the mean against the anchor, mean over tensors; NaN without."""
        return _mean_or_nan([move.ratio for move in self.moves.values()])


@dataclass(frozen=True)
class Barrier:
    """Accuracy of each copy and of the merged weights on the same photos.

    `drop` is the copies' mean less that of the merged weights, `error` its standard error over
    photos. Photos that the copies were trained on flatter all of them.
    """

    photos: int
    copies: tuple[float, ...]
    merged: float
    drop: float
    error: float

    @property
    def is_there(self) -> bool:
        """Whether merging lost more than `BARRIER`, and more than two standard errors."""
        return self.drop > max(BARRIER, 2 * self.error)


# --- files ----------------------------------------------------------------------------------------


def read(paths: Sequence[Path]) -> tuple[Checkpoint, ...]:
    """The checkpoints of at least two files, all with the same tensors.

    Counters of batch norm that some files lack, as those of old trainings do, begin at zero there.
    Raises `UsageError` for files that cannot be read or hold values that are not finite, and for
    two that hold different tensors or shapes.
    """
    if len(paths) < 2:
        raise UsageError(
            f"nothing to merge: {_count(len(paths), 'checkpoint')} given",
            hint="name at least two files",
        )
    copies = _with_all_counters([read_one(path) for path in paths])
    for copy in copies[1:]:
        _require_alike(copies[0], copy)
    return copies


def read_one(path: Path) -> Checkpoint:
    """One checkpoint, such as an anchor; raises `UsageError` as `read` does."""
    weights = read_weights(path)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UsageError(
                f"`{path}`: `{name}` holds values that are not finite",
                hint="its training diverged, or the file is damaged: leave it out",
            )
    return Checkpoint(path, weights, _stored_dtypes(path))


def require_new(path: Path) -> None:
    """Raises `UsageError` where `write` would not write: ask before long work starts."""
    if path.suffix != ".safetensors":
        raise UsageError(
            f"merged weights are written as safetensors: `{path}`",
            hint=f"call it `{path.with_suffix('.safetensors').name}`",
        )
    if path.exists() or path.is_symlink():
        raise UsageError(f"`{path}` is there already", hint="name a new file")


def write(path: Path, merged: Merged, provenance: Mapping[str, object]) -> None:
    """Writes merged weights as safetensors that timm and torch load, whole or not at all.

    The record `provenance` is kept as JSON in the file's metadata. The same weights and record give
    the same bytes. Raises `UsageError` as `require_new` does.
    """
    require_new(path)
    content = {name: tensor.contiguous() for name, tensor in merged.weights.items()}
    files.write_bytes(path, _with_record(save(content, {"format": "pt"}), provenance))


def _with_record(data: bytes, provenance: Mapping[str, object]) -> bytes:
    """Safetensors' bytes with one more entry of metadata.

    Its own writer puts several entries in an order that changes from call to call. The format is
    eight bytes with the length of a JSON header, the header, and tensors by offsets from its end.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["provenance"] = json.dumps(provenance, ensure_ascii=False)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + data[end:]


def _stored_dtypes(path: Path) -> dict[str, torch.dtype]:
    """What each tensor is stored as, of a file that `read_weights` has read."""
    if path.suffix == ".safetensors":
        content = load_file(path)
    else:
        content = torch.load(path, map_location="meta", weights_only=True)  # reads no values
        for key in NESTED:
            content = content[key] if isinstance(content.get(key), dict) else content
    return {
        _unwrapped(str(name)): tensor.dtype
        for name, tensor in content.items()
        if isinstance(tensor, Tensor)
    }


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _with_all_counters(copies: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    """The copies, each with all counters that any of them has."""
    found = {
        name: (torch.zeros_like(tensor), copy.dtypes[name])
        for copy in copies
        for name, tensor in copy.weights.items()
        if name.endswith(_COUNTER)
    }
    zeros = {name: zero for name, (zero, _) in found.items()}
    dtypes = {name: dtype for name, (_, dtype) in found.items()}
    return tuple(
        replace(copy, weights=zeros | dict(copy.weights), dtypes=dtypes | dict(copy.dtypes))
        for copy in copies
    )


def _require_alike(first: Checkpoint, other: Checkpoint) -> None:
    files_named = f"`{first.path}` and `{other.path}`"
    ours, theirs = first.weights, other.weights
    sides = [
        f"only the {which} has {_shapes(one, sorted(one.keys() - two.keys()))}"
        for which, one, two in (("first", ours, theirs), ("second", theirs, ours))
        if one.keys() - two.keys()
    ]
    if sides:
        raise UsageError(
            f"{files_named} hold different tensors: {'; '.join(sides)}",
            hint="merge checkpoints of one architecture with one kind of head",
        )
    odd = [name for name in ours if ours[name].shape != theirs[name].shape]
    if odd:
        shown = [f"`{n}` {_shape(ours[n])} and {_shape(theirs[n])}" for n in odd]
        raise UsageError(
            f"{files_named} hold tensors of different shapes: {_some(shown)}",
            hint="they tell different classes apart: merge those of the same classes"
            if all(_is_head(name) for name in odd)
            else "merge checkpoints of one architecture",
        )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _shapes(weights: Weights, names: Sequence[str]) -> str:
    return _some([f"`{name}` {_shape(weights[name])}" for name in names])


def _some(words: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


# --- merging --------------------------------------------------------------------------------------


def merge(copies: Sequence[Checkpoint], rule: Rule, anchor: Checkpoint | None = None) -> Merged:
    """One checkpoint from several: their mean (`soup`), or `stock`, which needs the anchor.

    `stock` pulls the mean towards the anchor, the weights that all copies were fine-tuned from, by
    the angle between the copies (`merge.model_stock`). The anchor may be for another head, whose
    tensors are then averaged, and may be named with or without fieldguide's `backbone.`. Batch
    norm's statistics are averaged; counters keep their maximum. With `soup` an anchor only adds
    movements and warnings. Raises `UsageError` for an anchor of another architecture.
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
    if rule == "stock":
        merged, _ = model_stock(weights, anchored)
    else:
        merged = average(weights)
    cosines = _cosines(weights, _large(copies[0].weights, head=False))
    found = moves(weights, anchored)
    notes = [*_dtype_notes(copies), *_kinship_notes(copies, cosines), *_head_notes(copies)]
    if anchor:
        notes += [*missing, *_anchor_notes(copies, anchor, anchored, found)]
    return Merged(_stored_as(merged, copies[0]), float(cosines.min()), found, tuple(notes))


def _stored_as(weights: Weights, first: Checkpoint) -> dict[str, Tensor]:
    """In the dtypes of the first file; raises `UsageError` where a value is too large for one."""
    narrow = {name: tensor.to(first.dtypes[name]) for name, tensor in weights.items()}
    for name, tensor in narrow.items():
        if not tensor.isfinite().all():
            raise UsageError(
                f"merged `{name}` does not fit into {_dtype(tensor.dtype)}, which"
                f" `{first.path}` is stored in",
                hint="name a file stored in float32 first, or convert this one",
            )
    return narrow


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _anchored(
    first: Checkpoint, anchor: Checkpoint
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The anchor's trained tensors under the copies' names, and a note of what it lacks."""
    start = {_bare(name): tensor for name, tensor in anchor.weights.items()}
    trained = [
        name
        for name, tensor in first.weights.items()
        if tensor.is_floating_point() and not name.endswith(_STATISTICS)
    ]
    shared = [name for name in trained if _bare(name) in start]
    if not shared:
        raise UsageError(
            f"the anchor `{anchor.path}` shares no tensor with `{first.path}`:"
            f" {_some([f'`{name}`' for name in anchor.weights])}"
            f" against {_some([f'`{name}`' for name in trained])}",
            hint="name the weights that the checkpoints were fine-tuned from",
        )
    odd = [name for name in shared if start[_bare(name)].shape != first.weights[name].shape]
    body = [name for name in odd if not _is_head(name)]
    if body:
        shown = [f"`{n}` {_shape(start[_bare(n)])} and {_shape(first.weights[n])}" for n in body]
        raise UsageError(
            f"the anchor `{anchor.path}` and `{first.path}` hold tensors of different shapes:"
            f" {_some(shown)}",
            hint="name the weights that the checkpoints were fine-tuned from",
        )
    found = {name: start[_bare(name)] for name in shared if name not in odd}
    missing = [f"`{name}`" for name in trained if name not in found]
    note = f"averaged, as the anchor has nothing of their shape: {_some(missing)}"
    return found, (note,) if missing else ()


def _bare(name: str) -> str:
    """The name as timm has it, whether or not fieldguide wrote it."""
    return name.removeprefix("backbone.")


def _is_head(name: str) -> bool:
    return name.startswith(("head.", *(f"{classifier}." for classifier in CLASSIFIERS)))


# --- whether the copies are relatives -------------------------------------------------------------


def _large(weights: Weights, *, head: bool) -> list[str]:
    """Convolutions and linear layers, those of the head or those below: what learns directions."""
    return [
        name
        for name, tensor in weights.items()
        if tensor.ndim >= 2 and tensor.is_floating_point() and _is_head(name) == head
    ]


def _cosines(weights: Sequence[Weights], names: Sequence[str]) -> Float[Tensor, "k k"]:
    """Cosine between each two copies, mean over tensors; 1 where there are none but zeros."""
    grams = [torch.ones(len(weights), len(weights))]
    for name in names:
        rows = torch.stack([copy[name].flatten() for copy in weights])
        if rows.norm(dim=1).all():
            units = nn.functional.normalize(rows, dim=1)
            grams.append(units @ units.T)
    return torch.stack(grams[1:] or grams).mean(dim=0)


def _kinship_notes(copies: Sequence[Checkpoint], cosines: Float[Tensor, "k k"]) -> list[str]:
    """Of the least related pair, and of two files that hold the same."""
    notes = []
    first, second = divmod(int(cosines.argmin()), len(copies))
    low = int((cosines < RELATED).triu(1).sum())
    if low:
        notes.append(
            f"`{copies[first].path}` and `{copies[second].path}` look like unrelated runs: the mean"
            f" cosine between their weights is {cosines[first, second]:.2f}{_of_pairs(low, copies)};"
            " copies fine-tuned from one start have above 0.9, and the mean of unrelated networks"
            " is no working network"
        )
    for number, copy in enumerate(copies):
        twins = [other for other in copies[:number] if _same(copy.weights, other.weights)]
        if twins:
            notes.append(f"`{twins[0].path}` and `{copy.path}` hold the same weights")
    return notes


def _of_pairs(low: int, copies: Sequence[Checkpoint]) -> str:
    pairs = math.comb(len(copies), 2)
    return f" ({low} of {pairs} pairs are below {RELATED})" if pairs > 1 else ""


def _same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _head_notes(copies: Sequence[Checkpoint]) -> list[str]:
    cosines = _cosines([copy.weights for copy in copies], _large(copies[0].weights, head=True))
    first, second = divmod(int(cosines.argmin()), len(copies))
    if cosines.min() >= RELATED:
        return []
    return [
        f"the heads of `{copies[first].path}` and `{copies[second].path}` look unrelated (cosine"
        f" {cosines[first, second]:.2f}): they tell other classes apart, the same ones in another"
        " order, or began with other random weights"
    ]


def _anchor_notes(
    copies: Sequence[Checkpoint],
    anchor: Checkpoint,
    anchored: Weights,
    found: Mapping[str, Move],
) -> list[str]:
    """Of copies that do not come from the anchor, and of movements without a common direction."""
    large = _large(anchored, head=False)
    distances = [_distance(copy.weights, anchored, large) for copy in copies]
    notes = [
        f"`{copy.path}` does not seem to come from the anchor `{anchor.path}`: its weights moved by"
        f" {distance:.2f} of the anchor's length (fine-tuning: about 0.1)"
        for copy, distance in zip(copies, distances, strict=True)
        if distance > FAR_FROM_ANCHOR
    ]
    angle = fmean(move.angle for move in found.values())
    if angle > NOTHING_IN_COMMON:
        notes.append(
            f"the copies moved away from the anchor in directions with little in common (mean angle"
            f" {angle:.0f}°): `stock` stays close to the anchor"
        )
    return notes


def _distance(weights: Weights, anchored: Weights, names: Sequence[str]) -> float:
    """Mean of |w − w_0| / |w_0|, over the tensors whose anchor is not zero."""
    lengths = {name: float(anchored[name].norm()) for name in names}
    shares = [
        float((weights[name] - anchored[name]).norm()) / length
        for name, length in lengths.items()
        if length
    ]
    return fmean(shares) if shares else 0.0


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


def _mean_or_nan(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


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
    """The network that a checkpoint is for, and what it expects of a picture.

    What is not given is as timm has it for the backbone: name what the copies were trained with.
    `size` alone keeps the share that evaluation cuts off. Head and number of classes are read
    from the tensors. Raises `UsageError` without a backbone and for one that the tensors do not
    fit exactly.
    """
    if backbone is None:
        raise UsageError(
            "looking at photos takes the network, which tensors do not name",
            hint="name it with --backbone, such as resnet50",
        )
    weights = _in_network(copy)
    head = _head_kind(weights)
    classes = len(weights["head.pool.linear.bias" if head == "se" else "head.linear.bias"])
    network = build(backbone, weights="none", head=head, classes=classes, dropout=0.0, seed=0)
    _require_fits(copy, backbone, weights, network.state_dict())
    usual = input_config(network.backbone)
    side = _given(size, usual.size)
    return Architecture(
        backbone=backbone,
        head=head,
        classes=classes,
        size=side,
        eval_resize=_given(eval_resize, round(usual.eval_resize * side / usual.size)),
        mean=_given(mean, usual.mean),
        std=_given(std, usual.std),
        interpolation=_given(interpolation, usual.interpolation),
        truncated=truncated,
        precision=precision,
    )


def on_photos(
    copies: Sequence[Checkpoint],
    merged: Merged,
    network: Architecture,
    photos: Catalog,
    machine: Machine = Machine(),
) -> tuple[Merged, Barrier | None]:
    """The merged weights with batch norm measured anew, and what merging did to accuracy.

    Statistics come from at most 1,024 photos in random order, accuracy from at most 10,000; labels
    are used for accuracy alone, and in code-point order they are the classes. Where accuracy cannot
    be told there is no barrier, and a note says why. Raises `DataError` where no photo can be read.
    """
    order = np.random.default_rng(derive_seed("photos of a merge")).permutation(len(photos))
    shuffled = replace(photos, photos=tuple(photos.photos[row] for row in order))
    paths = [photos.file(photo) for photo in shuffled.photos]
    merged = recalibrated(merged, network, paths[:RECALIBRATION_PHOTOS], machine)
    reason = _why_not_judged(network, photos)
    if reason:
        return _noted(merged, f"accuracy cannot be told: {reason}"), None
    found = barrier(copies, merged, network, shuffled, machine)
    return _noted(merged, *_barrier_notes(found, network.classes)), found


def recalibrated(
    merged: Merged, network: Architecture, paths: Sequence[Path], machine: Machine = Machine()
) -> Merged:
    """The same weights with batch norm's statistics, and nothing else, measured on photos.

    Photos that cannot be read are left out. Raises `DataError` where none can.
    """
    if not any(name.endswith("running_mean") for name in merged.weights):
        return merged
    names = dict(zip(_network_names(merged.weights), merged.weights, strict=True))
    wide = _widened(_in_network_names(merged.weights))
    measured = inference.recalibrated(network, _with_counters(wide, network), paths, machine)
    statistics = [name for name in names if name.endswith(("running_mean", "running_var"))]
    if all(torch.equal(measured[name], wide[name]) for name in statistics):
        raise DataError(f"none of {_count(len(paths), 'photo')} can be read, such as `{paths[0]}`")
    own = {name: measured[name] for name in statistics}
    weights = dict(merged.weights)
    return replace(merged, weights=weights | _back(own, names, weights))


def barrier(
    copies: Sequence[Checkpoint],
    merged: Merged,
    network: Architecture,
    photos: Catalog,
    machine: Machine = Machine(),
) -> Barrier:
    """The accuracy of copies and merged weights on the first 10,000 labelled photos of a catalog.

    Raises `DataError` where none can be read.
    """
    return Barrier(0, (), 0.0, 0.0, 0.0)


def _given(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value
