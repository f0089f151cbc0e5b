"""Batch norm over the ranks that share a batch, on any device.

Torch's own SyncBatchNorm needs a GPU, and its own layers in place of the network's. Here the
network stays as it is: `torch.nn.functional.batch_norm` is replaced while a step is computed.
Knows nothing of networks, losses or optimisers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fieldguide.machine.ranks import Ranks


class Synchronised(TorchFunctionMode):
    """A context in which batch norms in training normalise by the photos of all `ranks`.

    All of them, each with some photos, compute the same network at the same time. The result is
    that of one process with all photos, but for rounding.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is nn.functional.batch_norm:
            return self.batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def batch_norm(
        self,
        input: Float[Tensor, "n channels *places"],
        running_mean: Float[Tensor, " channels"] | None,
        running_var: Float[Tensor, " channels"] | None,
        weight: Float[Tensor, " channels"] | None = None,
        bias: Float[Tensor, " channels"] | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Float[Tensor, "n channels *places"]:
        """Return torch's result for its arguments; change the running statistics in training.

        What has no statistics and a single row is no batch but a convolution's weights, which some
        networks standardise by this function: they are the same on all ranks.
        """
        if not training or (running_mean is None and len(input) == 1):
            return nn.functional.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        result: Tensor
        result, mean, variance = _Normalised.apply(input, weight, bias, eps, self.ranks)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance, momentum)
        return result


class _Normalised(torch.autograd.Function):
    """The inputs of all ranks, less their mean, over their deviation; one message each way.

    With x the normalised input, g the gradient of the result and m(.) the mean over all ranks'
    photos and places, the input's gradient is weight / deviation · (g - m(g) - x · m(g x)).
    Source: Ioffe, Szegedy, "Batch Normalization", ICML 2015, section 3, over processes as in Peng
    et al., "MegDet", CVPR 2018. Means and squares are joined by Chan, Golub, LeVeque (1982).
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result, and the mean and unbiased variance, which have no gradient."""
        wide, (dims, shape) = inputs.float(), _around_channels(inputs)
        count = wide.numel() // wide.shape[1]
        mean = wide.mean(dims)
        squares = (wide - mean.view(shape)).square().sum(dims)
        own = torch.stack([torch.full_like(mean, count), mean, squares])
        every = torch.stack([each["own"] for each in ranks.gather({"own": own})])
        counts, means, parts = every.unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        squares = (parts + counts * (means - mean).square()).sum(0)
        variance = squares / total
        result = nn.functional.batch_norm(inputs, mean, variance, weight, bias, eps=eps)
        unbiased = squares / (total - 1)
        ctx.ranks = ranks
        ctx.save_for_backward(inputs, weight, mean, (variance + eps).rsqrt(), total)
        ctx.mark_non_differentiable(mean, unbiased)
        return result, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients of input, weight and bias, the last two summed over the own photos."""
        inputs, weight, mean, scale, total = ctx.saved_tensors
        dims, shape = _around_channels(inputs)
        gradient = gradients[0].float()
        normalised = (inputs.float() - mean.view(shape)) * scale.view(shape)
        own = torch.stack([gradient.sum(dims), (gradient * normalised).sum(dims)])
        means = ctx.ranks.total({"own": own})["own"] / total
        found = gradient - means[0].view(shape) - normalised * means[1].view(shape)
        found = found * (scale if weight is None else scale * weight).view(shape)
        of_weight = own[1] if ctx.needs_input_grad[1] else None
        of_bias = own[0] if ctx.needs_input_grad[2] else None
        return found.to(inputs.dtype), of_weight, of_bias, None, None


def _around_channels(inputs: Tensor) -> tuple[list[int], list[int]]:
    """Return all dimensions but the channels', and the shape of one number a channel."""
    places = range(2, inputs.ndim)
    return [0, *places], [1, -1, *[1] * len(places)]
