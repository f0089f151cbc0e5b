"""The feature map that a backbone ends in, found by running it without values.

Knows nothing of weights, heads and training.
"""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fieldguide.errors import UsageError
from fieldguide.words import first_line

# Pixels a side of the pictures that are run: two, by which channels differ from positions. A
# network that cannot take both is made for one size alone.
SIDES = (224, 160)
MOST_TRIED = 512  # pixels up to which a size is looked for that a network can take (taste)


def output_channels(backbone: nn.Module) -> int:
    """Return the channels of what the backbone gives to a head.

    Raises `UsageError` unless it makes channels at positions (n, channels, rows, columns) of
    pictures of any size.
    """
    shapes = []
    for side in SIDES:
        shape, reason = _run(backbone, "forward_features", (1, 3, side, side))
        if reason:
            raise _no_map(backbone, f"it cannot take pictures of {side} × {side} pixels: {reason}")
        if len(shape) != 4:
            raise _no_map(backbone, f"what it makes of a picture is {_shown(shape)}")
        shapes.append(shape)
    if shapes[0][1] != shapes[1][1]:
        raise _no_map(backbone, f"{_shown(shapes[0])} has positions before channels")
    shape, reason = _run(backbone, "forward_head", shapes[0])
    if reason:
        raise _no_map(backbone, reason)
    return shape[1]


def require_size(backbone: nn.Module, size: int) -> None:
    """Raise `UsageError`, with a size that is possible, for pictures too small for the backbone."""
    if not (reason := _refused(backbone, size)):
        return
    output_channels(backbone)  # a network of one size alone is none for any
    larger = (side for side in range(size + 1, MOST_TRIED) if side % 32 == 0)
    fitting = next((side for side in larger if not _refused(backbone, side)), None)
    raise UsageError(
        f"`{name_of(backbone)}` cannot take pictures of {size} × {size} pixels: {reason}",
        hint=f"set `size` to {fitting} or more" if fitting else "take another `backbone`",
    )


def name_of(backbone: nn.Module) -> str:
    """Return timm's name of the architecture."""
    return str(backbone.pretrained_cfg.get("architecture") or type(backbone).__name__)  # type: ignore[union-attr,operator]


def _refused(backbone: nn.Module, size: int) -> str:
    shape, reason = _run(backbone, "forward_features", (1, 3, size, size))
    return reason or ("" if all(shape) else f"of them is left {_shown(shape)}")


def _run(backbone: nn.Module, method: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Return the shape of what a method makes of a tensor of a shape, or why there is none."""
    named = chain(backbone.named_parameters(), backbone.named_buffers())
    empty = {f"body.{name}": tensor.to("meta") for name, tensor in named}
    given = torch.empty(shape, device="meta")
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            found = functional_call(_Method(backbone, method), empty, (given,))
    except Exception as error:  # each family has checks of its own
        return (), first_line(error) or type(error).__name__
    finally:
        backbone.train(training)
    return (tuple(found.shape), "") if isinstance(found, Tensor) else ((), "several results")


class _Method(nn.Module):
    """A method of a module, as a module."""

    def __init__(self, body: nn.Module, method: str) -> None:
        super().__init__()
        self.body, self.method = body, method

    def forward(self, given: Tensor) -> object:
        """Return what the method makes of a tensor."""
        return getattr(self.body, self.method)(given)


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['n', *map(str, shape[1:])])})"


def _no_map(backbone: nn.Module, reason: str) -> UsageError:
    return UsageError(
        f"`backbone` = {name_of(backbone)!r} ends in no feature map (n, channels, rows, columns):"
        f" {reason}",
        hint="take a convolutional network: `fieldguide backbones` lists some",
    )
