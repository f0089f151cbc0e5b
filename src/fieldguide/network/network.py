"""The network: a timm backbone and one of our heads, and its start.

Weights are called `backbone.…` or `head.…`. Knows nothing of folds, replicas or training.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import group_parameters
from torch import Tensor, nn

from fieldguide.errors import UsageError
from fieldguide.network.backbones import require_backbone
from fieldguide.network.batch_norm import is_frozen
from fieldguide.network.feature_map import output_channels
from fieldguide.network.heads import HEADS, pooled
from fieldguide.network.pretrained import download, read_weights
from fieldguide.recipe import Interpolation
from fieldguide.seeds import derive_seed
from fieldguide.words import first_line, some


class Network(nn.Module):
    """A backbone that ends in a feature map, and a head that turns what it gives into logits.

    For a linear head the backbone gives the mean over positions, by timm's own last layers, some of
    which come after the mean (the norm of ConvNeXt); for other heads it gives the map.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self, images: Float[Tensor, "n 3 height width"], *, features: bool = False
    ) -> (
        Float[Tensor, "n classes"] | tuple[Float[Tensor, "n classes"], Float[Tensor, "n channels"]]
    ):
        """Return the logits of normalised images; and with `features` what a linear head sees."""
        found = self.backbone(images)
        logits: Tensor = self.head(found)
        return (logits, pooled(found)) if features else logits


@dataclass(frozen=True)
class InputConfig:
    """The input that the backbone's weights were made for, and their licence."""

    size: int
    eval_resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    license: str


def build(
    backbone: str, *, weights: str, head: str, classes: int, dropout: float, seed: int
) -> Network:
    """Return a network at its start: backbone from `weights`, head drawn from `seed`."""
    body = build_backbone(backbone, weights=weights, head=head, seed=seed)
    return with_head(body, head, classes=classes, dropout=dropout, seed=seed)


def build_backbone(
    backbone: str,
    *,
    weights: str,
    head: str = "linear",
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """Return a backbone for a head, with `weights`: `pretrained` (timm's), `none` or a file.

    `tell` is called with what was chosen or left out of a file. Raises `UsageError` for a network
    that ends in no feature map.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "first backbone"))
        require_backbone(backbone)
        body = drawn(backbone, head)
    if weights != "none":
        output_channels(body)  # before anything is fetched; `with_head` asks again
    if weights == "pretrained":
        file = download(backbone, body.pretrained_cfg)  # type: ignore[arg-type]
        _load_backbone(body, read_weights(file), weights)
    elif weights != "none":
        _load_backbone(body, read_weights(Path(weights), tell), weights, tell)
    return body


def drawn(backbone: str, head: str) -> nn.Module:
    """Return timm's network for a head; `UsageError` where timm refuses that."""
    reasons = []
    # "fast" is the plain mean, whatever the layout; some families know it as "avg" alone.
    for pool in ("fast", "avg") if head == "linear" else ("",):
        try:
            body: nn.Module = timm.create_model(
                backbone, pretrained=False, num_classes=0, global_pool=pool
            )
            return body
        except Exception as error:  # each family has checks of its own
            reasons.append(first_line(error))
    raise UsageError(
        f"`backbone` = {backbone!r} cannot be built for a head that is `{head}`: {reasons[-1]}",
        hint="take `head` = linear, or another network: `fieldguide backbones` lists some",
    )


def with_head(body: nn.Module, head: str, *, classes: int, dropout: float, seed: int) -> Network:
    """Return the network of a backbone and a head drawn from `seed`.

    The same seed gives every replica and fold the same head: unrelated heads cannot be averaged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "first head"))
        top = HEADS[head](output_channels(body), classes, dropout)
    return Network(body, top)


def input_config(backbone: nn.Module) -> InputConfig:
    """Return size, normalisation and licence of the backbone's weights."""
    config: Mapping[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
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
    """Return a copy of all weights and statistics, contiguous: sums run in the order of memory."""
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Change the network: its weights become copies of `weights`, in place."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(weights[name])


def last_linear(network: nn.Module) -> str:
    """Return the name of the layer that gives the logits; a class is a row of its weight."""
    names: list[str] = [name for name, _ in network.named_modules()]
    return next(name for name in names if name.startswith("head.") and name.endswith("linear"))


def backbone_anchor(network: Network, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that a merge may be anchored to: the backbone's trained tensors."""
    return {
        name: weights[name]
        for name, tensor in network.named_parameters()
        if name.startswith("backbone.") and tensor.requires_grad
    }


def freeze(network: Network, stages: int) -> None:
    """Change the network: the first `stages` of its backbone (1: the stem) are trained no more."""
    numbers = _stage_numbers(network.backbone)
    for name, tensor in network.backbone.named_parameters():
        if numbers[name] < stages:
            tensor.requires_grad_(False)


def train_mode(network: Network) -> None:
    """Change the network to training mode, but for the batch norms of frozen stages."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and is_frozen(module):
            module.eval()


def _load_backbone(
    backbone: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Change the backbone; `UsageError` for weights that lack a tensor or have another shape.

    The names may have one prefix before the backbone's (Lightning's `model.`, our `backbone.`).
    """
    own = backbone.state_dict()
    needed = {name for name in own if not name.endswith("batches_tracked")}
    prefix = _prefix(needed, weights, source)
    given = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    missing = [name for name in own if name in needed and name not in given]
    if missing:
        none = len(missing) == len(needed)
        raise UsageError(
            f"weights `{source}` lack {len(missing)} of the backbone's {len(own)} tensors,"
            f" among them {some(missing, 5)}; they hold {some(list(given), 5)}",
            hint="set `backbone` to the network that the weights were trained with"
            + (" (no name agrees: perhaps of another library)" if none else ""),
        )
    # With and without a mean before them, timm's last layers are linear or convolutions of 1 × 1.
    given = {
        name: tensor.reshape(own[name].shape)
        if name in own and _trimmed(tensor) == _trimmed(own[name])
        else tensor
        for name, tensor in given.items()
    }
    shapes = [
        f"{name} {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if shapes:
        raise UsageError(
            f"weights `{source}` have other shapes: {some(shapes, 5)}",
            hint="set `backbone` to the network that the weights were trained with:"
            " the names agree, so it is one of the same family",
        )
    _tell_unused(prefix, [name for name in given if name not in own], given, tell)
    load_weights(backbone, own | given)


def source_head(name: str, backbone: nn.Module, weights: str) -> tuple[Tensor, Tensor] | None:
    """Return the classifier that came with the weights of a backbone of that name: weight and bias.

    None where the weights have none that is one linear layer on the backbone's mean feature.
    """
    if weights == "none":
        return None
    config: Mapping[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    file = download(name, config) if weights == "pretrained" else Path(weights)
    given, layer = read_weights(file), config.get("classifier")
    found = [
        (given[each], given[each.removesuffix("weight") + "bias"])
        for each in given
        if isinstance(layer, str)
        and each.endswith(f"{layer}.weight")
        and each.removesuffix("weight") + "bias" in given
    ]
    channels = output_channels(backbone)
    if len(found) != 1 or found[0][0].flatten(1).shape[1] != channels:
        return None
    weight, bias = found[0]
    return weight.flatten(1), bias


def _trimmed(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape without the ones of a convolution of 1 × 1."""
    shape = tuple(tensor.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape


def _prefix(needed: Collection[str], weights: Mapping[str, Tensor], source: str) -> str:
    """Return what stands before the backbone's names in the file: nothing, or one prefix.

    It is that under which most names agree. Raises `UsageError` for several that fit whole.
    """
    ends = {f".{name}" for name in needed}
    fits: Counter[str] = Counter()
    for name in weights:
        fits[""] += name in needed
        for dot in (place for place, letter in enumerate(name) if letter == "."):
            if name[dot:] in ends:
                fits[name[: dot + 1]] += 1
    best = max(fits, key=lambda prefix: (fits[prefix], -len(prefix)), default="")
    whole = [prefix for prefix, found in fits.items() if prefix and found == len(needed)]
    if best and len(whole) > 1:
        names = ", ".join(f"`{prefix}`" for prefix in whole)
        raise UsageError(
            f"weights `{source}` hold the backbone {len(whole)} times, under {names}",
            hint=f"name one of them: `{source}:{whole[0].rstrip('.')}`",
        )
    return best


def _tell_unused(
    prefix: str,
    unused: Sequence[str],
    given: Mapping[str, Tensor],
    tell: Callable[[str], None],
) -> None:
    """Tell in one notice which prefix was taken off, and which tensors no backbone holds."""
    said = [f"the prefix `{prefix}` of their names is taken off"] if prefix else []
    if unused:
        tensors = [f"`{name}` {tuple(given[name].shape)}" for name in unused]
        said.append(f"{some(tensors, 4)} left out: the head is a new one")
    if said and prefix != "backbone.":  # which is our own
        tell(f"weights: {'; '.join(said)}")


def _stage_numbers(backbone: nn.Module) -> dict[str, int]:
    """Return the stage of each tensor: 0 the stem, 1 the first stage, … by timm's coarse matcher.

    Tensors of no stage (a final norm) come after the last.
    """
    matcher = backbone.group_matcher(coarse=True)  # type: ignore[operator]
    numbers: dict[str, int] = group_parameters(backbone, matcher, reverse=True)
    return numbers
