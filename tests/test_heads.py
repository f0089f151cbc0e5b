import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fieldguide.network.heads import (
    ATTENTION_HEAD_CHANNELS,
    HEADS,
    AttentionHead,
    LinearHead,
    SEHead,
)

# One position, odd counts, a prime, more than one attention head, one that 64 does not divide.
SHAPES = [(2, 8, 1, 1), (3, 7, 5, 3), (2, 131, 2, 2), (2, 256, 4, 3), (1, 200, 3, 3)]


def make(head: str, channels: int, classes: int = 5, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return HEADS[head](channels, classes, dropout).eval()


def features(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(head: nn.Module) -> nn.Module:
    """The head with every weight drawn, so that no part of it is still at rest."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in head.parameters():
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return head


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_map_becomes_finite_logits(head: str, shape: tuple[int, ...]) -> None:
    logits = make(head, shape[1])(features(*shape))
    assert logits.shape == (shape[0], 5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("head", HEADS)
def test_the_map_is_left_unchanged(head: str) -> None:
    given = features(2, 16, 3, 3)
    before = given.clone()
    make(head, 16)(given)
    assert torch.equal(given, before)


@pytest.mark.parametrize("head", HEADS)
def test_dropout_acts_in_training_alone(head: str) -> None:
    network, given = make(head, 64, dropout=0.5), features(2, 64, 3, 3)
    assert torch.equal(network(given), network(given))
    network.train()
    assert not torch.equal(network(given), network(given))


def test_at_its_start_attention_learns_through_its_last_layer_alone() -> None:
    """What is gathered is multiplied by zeros, which pass no gradient on; one step ends that."""
    network = make("attention", 64)
    given, idle = features(4, 64, 3, 3), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(given).square().sum().backward()
        idle.append({name for name, tensor in network.named_parameters() if not tensor.grad.any()})
        optimizer.step()
    behind = {"norm.weight", "norm.bias", "attention.in_proj_weight", "attention.in_proj_bias"}
    assert idle == [behind, set()]


def test_the_linear_head_is_the_formula() -> None:
    network, given = make("linear", 7), features(3, 7, 5, 2)
    assert isinstance(network, LinearHead)
    weight, bias = (tensor.detach().numpy() for tensor in network.linear.parameters())
    expected = given.numpy().mean(axis=(2, 3)) @ weight.T + bias
    np.testing.assert_allclose(network(given).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [8, 33, 256])
def test_the_gate_is_the_formula_of_the_paper(channels: int) -> None:
    """sigmoid(W2 relu(W1 mean + b1) + b2), squeezed to a sixteenth but no fewer than 8."""
    network, given = trained(make("se", channels)), features(3, channels, 4, 3)
    assert isinstance(network, SEHead)
    w1, b1, w2, b2, w3, b3 = (tensor.detach().double().numpy() for tensor in network.parameters())
    assert w1.shape == (max(channels // 16, 8), channels)
    mean = given.double().numpy().mean(axis=(2, 3))
    gate = 1 / (1 + np.exp(-(np.maximum(mean @ w1.T + b1, 0) @ w2.T + b2)))
    expected = (mean * gate) @ w3.T + b3
    np.testing.assert_allclose(network(given).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_untrained_attention_is_the_linear_head(shape: tuple[int, ...]) -> None:
    attention, linear = make("attention", shape[1]), make("linear", shape[1])
    assert isinstance(attention, AttentionHead) and isinstance(linear, LinearHead)
    linear.linear.load_state_dict(attention.linear.state_dict())
    given = features(*shape)
    torch.testing.assert_close(attention(given), linear(given), rtol=1e-6, atol=1e-6)


def test_attention_is_the_formula_for_one_head() -> None:
    """The mean asks: softmax(q k / sqrt(c)) v over normalised positions, added to the mean."""
    network, given = trained(make("attention", 16)), features(2, 16, 3, 2)
    assert isinstance(network, AttentionHead) and network.attention.num_heads == 1
    own = {name: tensor.detach().double() for name, tensor in network.named_parameters()}
    positions = given.double().flatten(2).transpose(1, 2)
    mean = positions.mean(1, keepdim=True)
    scale, shift = own["norm.weight"], own["norm.bias"]
    keys, asked = (nn.functional.layer_norm(x, (16,), scale, shift) for x in (positions, mean))
    weights, biases = own["attention.in_proj_weight"], own["attention.in_proj_bias"]
    q, k, v = (
        x @ weights[16 * n : 16 * n + 16].T + biases[16 * n : 16 * n + 16]
        for n, x in enumerate((asked, keys, keys))
    )
    gathered = (q @ k.transpose(1, 2) / 4).softmax(-1) @ v
    out = gathered @ own["attention.out_proj.weight"].T + own["attention.out_proj.bias"]
    expected = (mean + out).squeeze(1) @ own["linear.weight"].T + own["linear.bias"]
    torch.testing.assert_close(network(given).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "heads"), [(16, 1), (64, 1), (131, 1), (200, 2), (2048, 32)])
def test_attention_heads_have_64_channels_where_that_divides(channels: int, heads: int) -> None:
    with torch.device("meta"):
        network = AttentionHead(channels, 3, 0.0)
    assert network.attention.num_heads == heads
    assert channels // heads >= min(channels, ATTENTION_HEAD_CHANNELS)
