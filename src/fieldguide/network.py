"""The network: a timm backbone and one of our heads, its start, and its batch-norm statistics.

`Network` holds the two parts under the names `backbone` and `head`, so every weight's name says
where it belongs. Knows nothing of folds, replicas or training.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fieldguide.augment import Interpolation
from fieldguide.backbones import require_backbone
from fieldguide.errors import UsageError
from fieldguide.heads import HEADS
from fieldguide.pretrained import download, read_weights
from fieldguide.seeds import derive_seed

# Batch-norm statistics settle with a thousand photos; more cost time at every merge.
RECALIBRATION_PHOTOS = 1024

# Photos of a batch while batch norm is measured: fixed, so that `batch_size` does not change the
# result.
RECALIBRATION_BATCH = 64


class Network(nn.Module):
    """A backbone that ends in a feature map, and a head that turns the map into logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        """The two parts, under their names."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n classes"]:
        """Logits of normalised images."""
        logits: Tensor = self.head(self.backbone.forward_features(images))  # type: ignore[operator]
        return logits


@dataclass(frozen=True)
class InputConfig:
    """What the backbone's weights were made for."""

    size: int
    eval_resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    license: str


def build(
    backbone: str, *, weights: str, head: str, classes: int, dropout: float, seed: int
) -> Network:
    """A network at its start: backbone from `weights`, head drawn from `seed`."""
    body = build_backbone(backbone, weights=weights, seed=seed)
    return with_head(body, head, classes=classes, dropout=dropout, seed=seed)


def build_backbone(backbone: str, *, weights: str, seed: int) -> nn.Module:
    """A backbone with `weights`: `pretrained` (timm's, from the hub), `none` (drawn) or a file."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "first backbone"))
        body = _create_backbone(backbone)
    if weights == "pretrained":
        _load_backbone(body, read_weights(download(backbone, _config(body))), weights)
    elif weights != "none":
        _load_backbone(body, read_weights(Path(weights)), weights)
    return body


def with_head(body: nn.Module, head: str, *, classes: int, dropout: float, seed: int) -> Network:
    """The network of a backbone and a head drawn from `seed`.

    The same seed gives the same head for every replica and fold, without which their averages
    would mix unrelated heads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "first head"))
        channels: int = body.num_features  # type: ignore[assignment]  # timm's, where it says so
        top = HEADS[head](channels, classes, dropout)
    return Network(body, top)


def input_config(backbone: nn.Module) -> InputConfig:
    """Size, normalisation and licence that the backbone's weights come with."""
    config = _config(backbone)
    size = int(config["input_size"][-1])
    return InputConfig(
        size=size,
        eval_resize=round(size / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        license=config.get("license") or "",
    )


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and statistics, laid out alike whatever the network's layout.

    A checkpoint keeps no layout, and sums run in the order of memory.
    """
    plain = torch.contiguous_format
    return {
        name: tensor.detach().clone(memory_format=plain)
        for name, tensor in network.state_dict().items()
    }


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Changes the network: its weights become copies of `weights`, in place."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(weights[name])


def backbone_anchor(network: Network, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of `weights` that a merge may be anchored to: the backbone's trained tensors."""
    return {
        name: weights[name]
        for name, tensor in network.named_parameters()
        if name.startswith("backbone.") and tensor.requires_grad
    }


def freeze(network: Network, stages: int) -> None:
    """Changes the network: the first `stages` of its backbone (1: the stem) are trained no more."""
    numbers = _stage_numbers(network.backbone)
    for name, tensor in network.backbone.named_parameters():
        if numbers[name] < stages:
            tensor.requires_grad_(False)


def train_mode(network: Network) -> None:
    """Changes the network: training mode, but for the batch norms of frozen stages."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_frozen(module):
            module.eval()


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there are running statistics to measure."""
    return any(True for _ in _batch_norms(network))


def trained_statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of the batch norms that are in training mode, themselves."""
    norms = [norm for norm in _batch_norms(network) if norm.training]
    return [buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point()]


def recalibrate(network: nn.Module, batches: Iterable[Float[Tensor, "_ 3 height width"]]) -> None:
    """Changes the network: batch-norm statistics are measured anew on `batches`, and nothing else.

    One pass in evaluation mode (no dropout, no stochastic depth) in which batch norms alone
    normalise by the batch at hand. Each statistic is pooled over all photos and positions (no
    moving average), so the order of batches does not matter, and their size only through what lower
    layers normalised by. Frozen norms, and norms that no photo reached, keep their statistics.
    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima", UAI 2018, section 3.2;
    torch's own `update_bn` leaves dropout on and averages over batches.
    """
    norms = [norm for norm in _batch_norms(network) if not _is_frozen(norm)]
    # What was compiled for training would be compiled anew, for the hooks.
    eager = torch.compiler.set_stance("force_eager")
    with _measuring(network, norms) as pools, torch.no_grad(), eager:
        for images in batches:
            network(images)
    for norm in norms:
        if pools[norm].count:
            pools[norm].write_to(norm)


def _create_backbone(name: str) -> nn.Module:
    require_backbone(name)
    body: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    return body


def _config(backbone: nn.Module) -> Mapping[str, Any]:
    config: Mapping[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    return config


def _load_backbone(backbone: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Changes the backbone. Refuses weights that lack one of its tensors or have another shape."""
    own = backbone.state_dict()
    given = {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}
    missing = [name for name in own if name not in given and not name.endswith("batches_tracked")]
    if missing:
        raise UsageError(
            f"weights `{source}` lack {len(missing)} of the backbone's {len(own)} tensors,"
            f" among them {_some(missing)}; they hold {_some(list(given))}",
            hint="set `backbone` to the network that the weights were trained with",
        )
    shapes = [
        f"{name} {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if shapes:
        raise UsageError(f"weights `{source}` have other shapes: {_some(shapes)}")
    load_weights(backbone, own | given)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _batch_norms(network: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            yield module


def _is_frozen(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return norm.affine and not norm.weight.requires_grad


class _Pool:
    """Mean and squared deviations of a batch norm's inputs, by channel, over all that it has seen.

    Batches are joined by the update of Chan, Golub, LeVeque, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", COMPSTAT 1982: sums of squares would lose the
    variance of a channel whose mean is large. In float64 where the device has it.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Nothing seen yet."""
        assert norm.running_mean is not None
        wide = torch.float32 if norm.running_mean.device.type == "mps" else torch.float64
        self.count = 0
        self.mean = torch.zeros_like(norm.running_mean, dtype=wide)
        self.squares = torch.zeros_like(self.mean)

    def add(
        self, norm: nn.modules.batchnorm._BatchNorm, inputs: tuple[Tensor, ...], _output: Tensor
    ) -> None:
        """A forward hook; with a momentum of 1, running statistics are those of the last batch."""
        assert norm.running_mean is not None and norm.running_var is not None
        count = inputs[0].numel() // inputs[0].shape[1]
        before, self.count = self.count, self.count + count
        shift = norm.running_mean - self.mean
        self.squares += norm.running_var * (count - 1)
        self.squares += shift.square() * (before * count / self.count)
        self.mean += shift * (count / self.count)

    def write_to(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Changes the norm. The variance is unbiased, as torch keeps it."""
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squares / max(self.count - 1, 1))


@contextmanager
def _measuring(
    network: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm]
) -> Iterator[dict[nn.modules.batchnorm._BatchNorm, _Pool]]:
    """Statistics of what goes through the norms, which normalise by the batch meanwhile."""
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


def _stage_numbers(backbone: nn.Module) -> dict[str, int]:
    """The stage of each tensor: 0 the stem, 1 the first stage, … by timm's coarse matcher.

    Stages are numbered anew, as some families count theirs from 0; what is in none (a final norm)
    comes after the last.
    """
    matcher = backbone.group_matcher(coarse=True)  # type: ignore[operator]
    names = [name for name, _ in backbone.named_parameters()]
    stem = {name for name in names if re.match(matcher["stem"], name)}
    blocks = {name: re.match(matcher["blocks"], name) for name in names if name not in stem}
    labels = {name: int(block.group(1)) for name, block in blocks.items() if block}
    order = {label: number for number, label in enumerate(sorted(set(labels.values())), start=1)}
    numbers = {name: order[label] for name, label in labels.items()}
    return {name: 0 if name in stem else numbers.get(name, len(order) + 1) for name in names}
