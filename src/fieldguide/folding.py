"""Evaluation without batch norm: what a norm does is put into the convolution before it.

Knows nothing of names or families: which norm follows which convolution is read off one run of the
network on tensors without values. Knows nothing of photos, members or precision.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Pixels a side of the picture that is run: no stage of a ResNet comes out empty, and tensors
# without values cost the same at any size.
TRACED_SIDE = 224


@dataclass(frozen=True)
class Pair:
    """A convolution and the norm that alone reads its result, by the names of their modules."""

    convolution: str
    norm: str
    eps: float


@dataclass(frozen=True, eq=False)
class Folded:
    """A network for evaluation alone, in which every norm of `pairs` is part of its convolution.

    `network` begins with the folded weights of the one that was given, on its device; `names` are
    those of the full network's tensors.
    """

    network: nn.Module
    pairs: tuple[Pair, ...]
    names: tuple[str, ...]

    def weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From weights of the full network to those of `network`; the argument is left unchanged.

        Tensors that no pair touches are the same objects. Raises RuntimeError, as torch does, where
        the names are not the full network's.
        """
        if odd := sorted(set(self.names) ^ weights.keys()):
            raise RuntimeError(f"missing or unexpected among the weights: {', '.join(odd)}")
        found = dict(weights)
        for pair in self.pairs:
            found |= folded_pair(weights, pair)
        return {name: found[name] for name in self.network.state_dict()}


def fold(network: nn.Module) -> Folded:
    """The network without the norms that its convolutions can take over; it is left unchanged.

    In the copy such a norm does nothing (or is its own activation, for timm's norms that have one)
    and its convolution has a bias. Norms before their convolution, norms behind convolutions whose
    weights are standardised, and whatever else is not a pair stay as they are.
    """
    pairs = find_pairs(network)
    weights = network.state_dict()
    folded = Folded(_without_norms(network, pairs), pairs, tuple(weights))
    folded.network.load_state_dict(folded.weights(weights))
    return folded


def folded_pair(weights: Mapping[str, Tensor], pair: Pair) -> dict[str, Tensor]:
    """Weight and bias, in float32, of a convolution that does its norm's work as well.

    weight · gain and beta + (bias - mean) · gain, with gain = gamma / sqrt(variance + eps) for each
    of its channels; gamma and beta are 1 and 0 in a norm without them, as is the bias of a
    convolution without one. Computed in float64 in main memory, as not every device has it.
    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.
    """

    def wide(name: str, absent: float = 0.0) -> Tensor:
        found = weights.get(name)
        return torch.tensor(absent) if found is None else found.to("cpu", torch.float64)

    kernel = weights[f"{pair.convolution}.weight"]
    deviation = (wide(f"{pair.norm}.running_var") + pair.eps).sqrt()
    gain = wide(f"{pair.norm}.weight", 1.0) / deviation
    shift = wide(f"{pair.convolution}.bias") - wide(f"{pair.norm}.running_mean")
    folded = {
        "weight": wide(f"{pair.convolution}.weight") * gain[:, None, None, None],
        "bias": wide(f"{pair.norm}.bias") + shift * gain,
    }
    return {
        f"{pair.convolution}.{name}": tensor.to(kernel.device, torch.float32)
        for name, tensor in folded.items()
    }


# --- which norm follows which convolution ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Operation:
    """One of torch's operations as it was run."""

    function: Any
    read: tuple[Tensor, ...]
    made: tuple[Tensor, ...]


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation that runs while it is entered; holds its tensors, so that ids stay theirs."""

    def __init__(self) -> None:
        """Nothing has run yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.readers: dict[int, list[_Operation]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(func, (args, kwargs), result)
        return result

    def add(self, function: Any, read: Any, made: Any) -> None:
        """Notes an operation with each tensor that it reads."""
        operation = _Operation(function, _tensors(read), _tensors(made))
        for number in {id(tensor) for tensor in operation.read}:
            self.readers.setdefault(number, []).append(operation)

    def only_reader(self, tensor: Tensor | None) -> _Operation | None:
        """The operation that reads the tensor, if no other one does (views are others)."""
        found = self.readers.get(id(tensor), [])
        return found[0] if len(found) == 1 else None


def find_pairs(network: nn.Module) -> tuple[Pair, ...]:
    """Convolutions whose result is read by a norm and by nothing else, each of them run once.

    A weight that anything but its convolution reads (standardisation, a second run) is no pair's.
    """
    body = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad(), _Tape() as tape:
        images = torch.empty(1, 3, TRACED_SIDE, TRACED_SIDE, device="meta")
        tape.add(None, body(images), ())  # what the network returns is read, too
    modules = dict(body.named_modules())
    norms = {
        id(reader): name
        for name, module in modules.items()
        if type(module) in (nn.BatchNorm2d, BatchNormAct2d)
        and (reader := tape.only_reader(_statistics(module))) is not None
    }
    followers = {
        name: norms.get(id(_follower(tape, module)))
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d)
    }
    return tuple(
        Pair(name, norm, float(modules[norm].eps))
        for name, norm in followers.items()
        if norm is not None
    )


def _follower(tape: _Tape, convolution: nn.Conv2d) -> _Operation | None:
    """The only operation that reads what the convolution, run once, makes of its weights."""
    run = tape.only_reader(convolution.weight)
    if run is None or run.function is not torch.ops.aten.convolution.default:
        return None
    if convolution.bias is not None and tape.only_reader(convolution.bias) is not run:
        return None
    return tape.only_reader(run.made[0])


def _statistics(norm: nn.Module) -> Tensor | None:
    """The running mean; a norm without one normalises by the batch and cannot be folded."""
    mean: Tensor | None = norm.running_mean  # type: ignore[assignment]
    return mean


def _tensors(values: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _without_norms(network: nn.Module, pairs: tuple[Pair, ...]) -> nn.Module:
    """A copy for evaluation in which the pairs' norms are gone; new biases are still zero."""
    body = copy.deepcopy(network).requires_grad_(False)
    for pair in pairs:
        convolution = body.get_submodule(pair.convolution)
        weight: Tensor = convolution.weight  # type: ignore[assignment]
        bias = torch.zeros(len(weight), device=weight.device)
        convolution.bias = nn.Parameter(bias, requires_grad=False)
        body.set_submodule(pair.norm, _rest(body.get_submodule(pair.norm)))
    return body.eval()


def _rest(norm: nn.Module) -> nn.Module:
    """What is left of a norm without its affine part, under the names that its parts had."""
    if isinstance(norm, BatchNormAct2d):
        rest = nn.Sequential()
        rest.add_module("drop", norm.drop)
        rest.add_module("act", norm.act)
        return rest
    return nn.Identity()
