"""Merging the weights of several copies of one network: pure functions over `Weights`.

Every rule takes the copies (and, if it needs one, the anchor they started from), leaves its
arguments unchanged and returns new tensors of the same dtypes. Sums of more than two run in float64
if the device has it, so the order of the copies does not matter and equal copies stay themselves.

Floating tensors are merged; of integer and boolean ones (batch norm's `num_batches_tracked`) the
elementwise maximum is kept. Knows nothing of networks or training.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from fieldguide.errors import UsageError

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Move:
    """The move of the copies of one tensor away from the anchor.

    `angle`: degrees between the movements, by the mean cosine over pairs (0 for a single copy).
    `ratio`: Model Stock's t in [0, 1], the weight of the mean against the anchor. `distance`: mean
    over copies of |w_i − w_0| / |w_0| (|w_i − w_0| itself where w_0 is zero).
    """

    angle: float
    ratio: float
    distance: float


def average(copies: Sequence[Weights]) -> dict[str, Tensor]:
    """Return the plain mean of every tensor (the uniform soup of Wortsman et al., ICML 2022)."""
    _require_alike(copies)
    return {name: _mean([copy[name] for copy in copies]) for name in copies[0]}


def model_stock(
    copies: Sequence[Weights], anchor: Weights
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return merged weights and the ratio t of each anchored tensor.

    Tensor by tensor, with w_0 the anchor and k copies::

        cosθ   = mean over pairs of cos(w_i − w_0, w_j − w_0), clamped to [0, 1]
        t      = k·cosθ / (1 + (k − 1)·cosθ)
        merged = t·mean(w_i) + (1 − t)·w_0

    Equal movements (cosθ = 1) give the mean, orthogonal or opposed ones (cosθ ≤ 0) the anchor. A
    single copy, and a tensor that some copy did not move, have no angle: t = 1, the mean. Tensors
    that the anchor lacks (a new head, running statistics) are averaged and get no ratio.

    Source: Jang, Yun, Han, "Model Stock: All we need is just a few fine-tuned models", ECCV 2024.
    Theirs has no clamp; without it t leaves [0, 1] for negative cosines (pole at −1/(k − 1)).
    """
    _require_alike(copies)
    merged, ratios = {}, {}
    for name in copies[0]:
        tensors = [copy[name] for copy in copies]
        if name in anchor and tensors[0].is_floating_point():
            _, cosine = _lengths_and_cosine(tensors, anchor[name])
            ratios[name] = _ratio(cosine, len(tensors))
            mean = _wide_mean(tensors)
            start = _wide(anchor[name].to(mean.device))
            merged[name] = torch.lerp(start, mean, ratios[name]).to(tensors[0].dtype)
        else:
            merged[name] = _mean(tensors)
    return merged, ratios


def moves(copies: Sequence[Weights], anchor: Weights) -> dict[str, Move]:
    """Return the copies' move of each floating tensor that the anchor has."""
    _require_alike(copies)
    found = {}
    for name, start in anchor.items():
        if name in copies[0] and start.is_floating_point():
            lengths, cosine = _lengths_and_cosine([copy[name] for copy in copies], start)
            angle = math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
            distance = math.fsum(lengths) / len(lengths) / (_length(start) or 1.0)
            found[name] = Move(angle, _ratio(cosine, len(copies)), distance)
    return found


def outer_step(
    last: Weights, merged: Weights, velocity: Weights, *, rate: float, momentum: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of an outer step of Nesterov's momentum, and the new velocity.

    The way from the last merged weights to the rule's result is taken for a gradient, tensor by
    tensor::

        delta = merged − last
        v     = momentum·v + delta
        w     = last + rate·(delta + momentum·v)

    `rate` 1 and `momentum` 0 give `merged`, exactly; momentum 0 alone a step part of the way
    (Lookahead: Zhang, Lucas, Hinton, Ba, NeurIPS 2019). Only tensors in `velocity` move so: others
    (running statistics, counters) are those of `merged`. The first velocity is zeros.

    Source: Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models",
    2023, algorithm 1 with Nesterov's momentum as outer optimiser.
    """
    moved, speeds = dict(merged), {}
    for name, speed in velocity.items():
        mean = _wide(merged[name])
        delta = mean - _wide(last[name])
        wide = momentum * _wide(speed) + delta
        # From the mean, not from the last weights: a step all the way then rounds nothing.
        step = mean + (rate - 1) * delta + rate * momentum * wide
        moved[name], speeds[name] = step.to(merged[name].dtype), wide.to(speed.dtype)
    return moved, speeds


Rule = Callable[[Sequence[Weights], Weights], dict[str, Tensor]]

# The rules as functions of the copies and the anchor.
RULES: Mapping[str, Rule] = {
    "average": lambda copies, anchor: average(copies),
    "model_stock": lambda copies, anchor: model_stock(copies, anchor)[0],
}


def _require_alike(copies: Sequence[Weights]) -> None:
    if not copies:
        raise UsageError("nothing to merge: no copies were given")
    first = copies[0]
    for number, copy in enumerate(copies[1:], start=2):
        odd = sorted(first.keys() ^ copy.keys())
        if odd:
            raise UsageError(f"copies 1 and {number} hold different tensors: {', '.join(odd[:5])}")
        for name, tensor in first.items():
            if tensor.shape != copy[name].shape:
                raise UsageError(
                    f"`{name}` has shape {tuple(tensor.shape)} in copy 1"
                    f" and {tuple(copy[name].shape)} in copy {number}"
                )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_widest(tensor))


def _widest(tensor: Tensor) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have nothing wider."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return torch.stack(list(tensors)).amax(dim=0)
    if len(tensors) == 2:  # halving is exact, so that one sum is all that is rounded
        return (tensors[0] + tensors[1]).mul_(0.5)
    return _wide_mean(tensors).to(tensors[0].dtype)


def _wide_mean(tensors: Sequence[Tensor]) -> Tensor:
    total = _wide(tensors[0]).clone()
    for tensor in tensors[1:]:
        total += tensor
    return total.div_(len(tensors))


def _lengths_and_cosine(tensors: Sequence[Tensor], anchor: Tensor) -> tuple[list[float], float]:
    """Return each copy's distance, and the mean cosine over pairs of movements.

    The cosine is 1 where a copy did not move or there is only one. From |a + b|² = |a|² + |b|² +
    2·a·b: equal movements have a cosine of 1 to the last bits, without copies in float64.
    """
    movements = [_movement(tensor, anchor) for tensor in tensors]
    lengths = [_length(movement) for movement in movements]
    if len(tensors) == 1 or 0.0 in lengths:
        return lengths, 1.0
    cosines = [
        (_length(a + b) ** 2 - m**2 - n**2) / (2 * m * n)
        for (a, m), (b, n) in combinations(zip(movements, lengths, strict=True), 2)
    ]
    return lengths, math.fsum(cosines) / len(cosines)


def _movement(tensor: Tensor, anchor: Tensor) -> Tensor:
    """Return the way from the anchor, in float32 or wider."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(wide) - anchor.to(tensor.device, wide)


def _length(tensor: Tensor) -> float:
    """Return the Euclidean norm, summed as wide as `_wide`."""
    return float(torch.linalg.vector_norm(tensor, dtype=_widest(tensor)))


def _ratio(cosine: float, k: int) -> float:
    cosine = min(max(cosine, 0.0), 1.0)
    return k * cosine / (1 + (k - 1) * cosine)
