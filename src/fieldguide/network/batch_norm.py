"""Batch norm: its statistics re-estimated, and its work absorbed into the convolution before it.

Knows nothing of our networks, of folds or of training.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_Norm = nn.modules.batchnorm._BatchNorm

# --- statistics -----------------------------------------------------------------------------------

# Batch-norm statistics settle with a thousand photos; more cost time at every merge.
RECALIBRATION_PHOTOS = 1024
# Photos of a batch while they are re-estimated: fixed, so that `batch_size` changes no result.
RECALIBRATION_BATCH = 64


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether there are running statistics to estimate."""
    return any(True for _ in _batch_norms(network))


def trained_statistics(network: nn.Module) -> list[Tensor]:
    """Return the running means and variances (no copies) of the batch norms in training mode."""
    norms = [norm for norm in _batch_norms(network) if norm.training]
    return [buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point()]


def recalibrate(network: nn.Module, batches: Iterable[Float[Tensor, "_ 3 height width"]]) -> None:
    """Change the network: batch-norm statistics, and nothing else, are re-estimated on `batches`.

    One pass in evaluation mode (no dropout, no stochastic depth) in which batch norms alone
    normalise by the batch. Each statistic is pooled over all photos and positions, so the order of
    batches does not matter, and their size only through what lower layers normalised by. Frozen
    norms, and norms that no photo reached, keep their statistics.
    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima", UAI 2018, section 3.2;
    torch's own `update_bn` leaves dropout on and averages over batches.
    """
    norms = [norm for norm in _batch_norms(network) if not is_frozen(norm)]
    # What was compiled for training would be compiled again, for the hooks.
    eager = torch.compiler.set_stance("force_eager")
    with _measuring(network, norms) as pools, torch.no_grad(), eager:
        for images in batches:
            network(images)
    for norm in norms:
        if pools[norm].count:
            pools[norm].write_to(norm)


def _batch_norms(network: nn.Module) -> Iterator[_Norm]:
    for module in network.modules():
        if isinstance(module, _Norm) and module.track_running_stats:
            yield module


def is_frozen(norm: _Norm) -> bool:
    """Return whether the norm is not trained: it keeps its statistics."""
    return norm.affine and not norm.weight.requires_grad


class _Pool:
    """The mean and squared deviations of a batch norm's inputs, by channel, over all batches.

    Batches are joined by the update of Chan, Golub, LeVeque, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", COMPSTAT 1982: sums of squares would lose the
    variance of a channel whose mean is large. In float64 where the device has it.
    """

    def __init__(self, norm: _Norm) -> None:
        assert norm.running_mean is not None
        wide = torch.float32 if norm.running_mean.device.type == "mps" else torch.float64
        self.count = 0
        self.mean = torch.zeros_like(norm.running_mean, dtype=wide)
        self.squares = torch.zeros_like(self.mean)

    def add(self, norm: _Norm, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        """Add a batch, as a forward hook; at momentum 1, running statistics are its own."""
        assert norm.running_mean is not None and norm.running_var is not None
        count = inputs[0].numel() // inputs[0].shape[1]
        before, self.count = self.count, self.count + count
        shift = norm.running_mean - self.mean
        self.squares += norm.running_var * (count - 1)
        self.squares += shift.square() * (before * count / self.count)
        self.mean += shift * (count / self.count)

    def write_to(self, norm: _Norm) -> None:
        """Change the norm's statistics. The variance is unbiased, as torch keeps it."""
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squares / max(self.count - 1, 1))


@contextmanager
def _measuring(network: nn.Module, norms: list[_Norm]) -> Iterator[dict[_Norm, _Pool]]:
    """Yield pools of the norms' inputs; meanwhile the norms normalise by the batch."""
    modes = {module: module.training for module in network.modules()}
    kept = [(norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
    pools = {norm: _Pool(norm) for norm in norms}
    hooks = [norm.register_forward_hook(pools[norm].add) for norm in norms]
    network.eval()
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
        norm.reset_running_stats()  # what is not finite would outlast a momentum of 1
    try:
        yield pools
    finally:
        for norm, hook, (momentum, buffers) in zip(norms, hooks, kept, strict=True):
            hook.remove()
            norm.momentum = momentum
            for buffer, before in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(before)
        for module, training in modes.items():
            module.training = training


# --- norms absorbed into their convolutions -------------------------------------------------------

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
class Absorbed:
    """A network for evaluation alone, in which every norm of `pairs` is part of its convolution.

    `network` begins with the given one's weights, on its device; `names` are the latter's tensors.
    """

    network: nn.Module
    pairs: tuple[Pair, ...]
    names: tuple[str, ...]

    def weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of `network` from those of the full network, which are left unchanged.

        Tensors of no pair are the same objects. RuntimeError, as in torch, for other names.
        """
        if odd := sorted(set(self.names) ^ weights.keys()):
            raise RuntimeError(f"missing or unexpected among the weights: {', '.join(odd)}")
        found = dict(weights)
        for pair in self.pairs:
            found |= absorbed_pair(weights, pair)
        return {name: found[name] for name in self.network.state_dict()}


def absorb(network: nn.Module) -> Absorbed:
    """Return the network without the norms that its convolutions can absorb; it is left unchanged.

    In the copy such a norm does nothing (or is its own activation, in timm's norms that have one)
    and its convolution has a bias. Whatever is not a pair (`find_pairs`) stays as it is.
    """
    pairs = find_pairs(network)
    weights = network.state_dict()
    body = copy.deepcopy(network).requires_grad_(False)
    for pair in pairs:
        convolution = body.get_submodule(pair.convolution)
        weight: Tensor = convolution.weight  # type: ignore[assignment]
        bias = torch.zeros(len(weight), device=weight.device)
        convolution.bias = nn.Parameter(bias, requires_grad=False)
        body.set_submodule(pair.norm, _rest(body.get_submodule(pair.norm)))
    absorbed = Absorbed(body.eval(), pairs, tuple(weights))
    body.load_state_dict(absorbed.weights(weights))
    return absorbed


def _rest(norm: nn.Module) -> nn.Module:
    """Return the rest of a norm without its affine part, under the names that its parts had."""
    if isinstance(norm, BatchNormAct2d):
        return nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act))
    return nn.Identity()


def absorbed_pair(weights: Mapping[str, Tensor], pair: Pair) -> dict[str, Tensor]:
    """Return weight and bias, in float32, of a convolution that has absorbed its norm.

    weight · gain and beta + (bias - mean) · gain, with gain = gamma / sqrt(variance + eps) for each
    channel, in float64 in main memory (not every device has it). A missing gamma is 1, a missing
    beta or bias 0. Source: Jacob et al., "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.
    """

    def wide(name: str, absent: float = 0.0) -> Tensor:
        found = weights.get(name)
        return torch.tensor(absent) if found is None else found.to("cpu", torch.float64)

    weight, bias = f"{pair.convolution}.weight", f"{pair.convolution}.bias"
    deviation = (wide(f"{pair.norm}.running_var") + pair.eps).sqrt()
    gain = wide(f"{pair.norm}.weight", 1.0) / deviation
    shift = wide(bias) - wide(f"{pair.norm}.running_mean")
    found = {
        weight: wide(weight) * gain[:, None, None, None],
        bias: wide(f"{pair.norm}.bias") + shift * gain,
    }
    device = weights[weight].device
    return {name: tensor.to(device, torch.float32) for name, tensor in found.items()}


# --- which norm follows which convolution ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Operation:
    """A torch operation with the tensors that it read and made."""

    function: Any
    read: tuple[Tensor, ...]
    made: tuple[Tensor, ...]


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations that run while it is entered, with their tensors, so that ids stay theirs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.readers: dict[int, list[_Operation]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(func, (args, kwargs), result)
        return result

    def add(self, function: Any, read: Any, made: Any) -> None:
        """Add an operation under each tensor that it reads."""
        operation = _Operation(function, _tensors(read), _tensors(made))
        for number in {id(tensor) for tensor in operation.read}:
            self.readers.setdefault(number, []).append(operation)

    def only_reader(self, tensor: Tensor | None) -> _Operation | None:
        """Return the operation that reads the tensor, if no other one does (views are others)."""
        found = self.readers.get(id(tensor), [])
        return found[0] if len(found) == 1 else None


def find_pairs(network: nn.Module) -> tuple[Pair, ...]:
    """Return the convolutions, each run once, whose result only a norm reads, with these norms.

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
        # A norm without running statistics normalises by the batch and cannot be absorbed.
        and (reader := tape.only_reader(module.running_mean)) is not None
    }
    return tuple(
        Pair(name, norm, float(modules[norm].eps))
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d)
        and (norm := norms.get(id(_follower(tape, module)))) is not None
    )


def _follower(tape: _Tape, convolution: nn.Conv2d) -> _Operation | None:
    """Return the only operation that reads the result of the convolution, which is run once."""
    run = tape.only_reader(convolution.weight)
    if run is None or run.function is not torch.ops.aten.convolution.default:
        return None
    if convolution.bias is not None and tape.only_reader(convolution.bias) is not run:
        return None
    return tape.only_reader(run.made[0])


def _tensors(values: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
