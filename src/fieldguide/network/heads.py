"""Heads: from a backbone's last feature map (n, channels, height, width) to logits (n, classes).

Each pools over positions in its own way, before `dropout` in [0, 1) and a linear layer. Knows
nothing of backbones.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

Features: TypeAlias = Float[Tensor, "n channels height width"]
Logits: TypeAlias = Float[Tensor, "n classes"]

# Squeeze to a sixteenth of the channels: table 10 of the source of `SEHead`.
SE_REDUCTION = 16
# Channels of one attention head, as in the transformer (Vaswani et al., NIPS 2017: 512 / 8).
ATTENTION_HEAD_CHANNELS = 64


def pooled(features: Features | Float[Tensor, "n channels"]) -> Float[Tensor, "n channels"]:
    """Return the mean over positions, of which there may be none left."""
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features


class LinearHead(nn.Module):
    """The mean over positions, dropout and a linear layer."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, classes)

    def forward(self, features: Features | Float[Tensor, "n channels"]) -> Logits:
        """Return the logits of a feature map, or of its mean."""
        logits: Tensor = self.linear(self.dropout(pooled(features)))
        return logits


class SEHead(nn.Module):
    """A squeeze-and-excitation head: channels weighed by a gate of their means, then `LinearHead`.

    gate = sigmoid(W2 relu(W1 mean + b1) + b2), one number a channel in (0, 1).
    Source: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        squeezed = max(channels // SE_REDUCTION, 8)
        self.gate = nn.Sequential(
            nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Sigmoid()
        )
        self.pool = LinearHead(channels, classes, dropout)

    def forward(self, features: Features) -> Logits:
        """Return the logits of the feature map."""
        gate = self.gate(features.mean(dim=(2, 3)))
        logits: Tensor = self.pool(features * gate[:, :, None, None])
        return logits


class AttentionHead(nn.Module):
    """A multi-head attention pool: the mean feature asks, every position answers; a linear layer.

    The query is the mean over positions and is added to what it gathers, and what is gathered
    starts at zero, so that the untrained head is `LinearHead`. Positions carry no encoding: the
    input's size may change.
    Source: the attention pool of Radford et al., "Learning Transferable Visual Models", ICML 2021
    (CLIP), without its position embedding.
    """

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        heads = max(channels // ATTENTION_HEAD_CHANNELS, 1)
        while channels % heads:
            heads -= 1
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, classes)

    def forward(self, features: Features) -> Logits:
        """Return the logits of the feature map."""
        positions = features.flatten(2).transpose(1, 2)
        mean = positions.mean(dim=1, keepdim=True)
        keys = self.norm(positions)
        gathered, _ = self.attention(self.norm(mean), keys, keys, need_weights=False)
        logits: Tensor = self.linear(self.dropout((mean + gathered).squeeze(1)))
        return logits


HEADS: Mapping[str, Callable[[int, int, float], nn.Module]] = {
    "linear": LinearHead,
    "se": SEHead,
    "attention": AttentionHead,
}
