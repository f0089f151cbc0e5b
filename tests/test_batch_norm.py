from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from timm.layers import BatchNormAct2d
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn

from fieldguide.network.batch_norm import Absorbed, Pair, absorb, absorbed_pair, has_batch_norm
from fieldguide.network.heads import HEADS
from fieldguide.network.network import Network, build, weights_of

Built = TypeVar("Built", bound=nn.Module)

# One of each family, the smallest there is; whether all of its norms stand behind a convolution.
FAMILIES = {
    "test_resnet": True,
    "resnet18": True,
    "resnet50d": True,
    "resnetaa50d": True,
    "resnext50_32x4d": True,
    "seresnet18": True,
    "resnest14d": True,
    "skresnet18": True,
    "res2net50_48w_2s": True,
    "legacy_seresnet18": True,
    "tresnet_m": True,
    "resnetv2_18": False,
    "resnetv2_50x1_bit": False,  # group norm, and convolutions with standardised weights
}


def make(backbone: str = "test_resnet", head: str = "linear") -> Network:
    return build(backbone, weights="none", head=head, classes=5, dropout=0.1, seed=0).eval()


def images(n: int = 4, side: int = 64) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def stir(network: Built, seed: int = 1) -> Built:
    """Changes the network: norms do something, as after training and worse; logits stay moderate.

    Some gains are negative, some are zero, and some channels hardly vary.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in norms(network):
            shape = norm.running_mean.shape
            sign = torch.where(torch.rand(shape, generator=draw) < 0.3, -1.0, 1.0)
            norm.running_mean.copy_(0.3 * torch.randn(shape, generator=draw))
            norm.running_var.copy_(0.5 + torch.rand(shape, generator=draw))
            norm.weight.copy_(sign * (0.5 + torch.rand(shape, generator=draw)))
            norm.bias.copy_(0.3 * torch.randn(shape, generator=draw))
            norm.running_var[::7] = 1e-9
            norm.weight[::7] *= 1e-2  # or else such channels drown the others
            norm.weight[3::11] = 0.0
    return network


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    assert expected.abs().max() > 1e-3 and expected.isfinite().all()
    return float((found - expected).abs().max() / expected.abs().max())


def run(network: nn.Module, seen: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = network(images() if seen is None else seen)
    return logits


@pytest.mark.parametrize("backbone", FAMILIES)
def test_absorbed_logits_are_those_of_evaluation(backbone: str) -> None:
    network = make(backbone)
    absorbed = absorb(network)
    stir(network)
    absorbed.network.load_state_dict(absorbed.weights(weights_of(network)))
    assert apart(run(absorbed.network), run(network)) < 1e-4
    assert has_batch_norm(absorbed.network) <= (not FAMILIES[backbone])
    assert len(absorbed.pairs) + len(norms(absorbed.network)) == len(norms(network))


@pytest.mark.parametrize("head", HEADS)
def test_any_head_may_stand_on_top(head: str) -> None:
    network = stir(make(head=head))
    assert apart(run(absorb(network).network), run(network)) < 1e-4


def test_a_memory_layout_stays_what_it_is() -> None:
    network = stir(make()).to(memory_format=torch.channels_last)
    absorbed = absorb(network).network
    seen = images().contiguous(memory_format=torch.channels_last)
    assert apart(run(absorbed, seen), run(network, seen)) < 1e-4
    kernel = absorbed.get_submodule("backbone.layer1.0.conv1").weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_the_arithmetic_of_one_channel() -> None:
    weights = {
        "c.weight": torch.tensor([[[[3.0]]]]),
        "c.bias": torch.tensor([0.5]),
        "n.weight": torch.tensor([-2.0]),
        "n.bias": torch.tensor([7.0]),
        "n.running_mean": torch.tensor([1.5]),
        "n.running_var": torch.tensor([3.0]),
    }
    absorbed = absorbed_pair(weights, Pair("c", "n", eps=1.0))
    gain = -2 / (3 + 1) ** 0.5
    assert absorbed["c.weight"].item() == 3 * gain
    assert absorbed["c.bias"].item() == 7 + (0.5 - 1.5) * gain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_absorbed_is_float32_whatever_was_given(dtype: torch.dtype) -> None:
    absorbed = absorb(make())
    given = {name: tensor.to(dtype) for name, tensor in weights_of(make()).items()}
    weights = absorbed.weights(given)
    for pair in absorbed.pairs:
        assert weights[f"{pair.convolution}.weight"].dtype == torch.float32
        assert weights[f"{pair.convolution}.bias"].dtype == torch.float32


def test_the_network_its_mode_and_its_weights_are_left_as_they_were() -> None:
    network = stir(make()).train()
    before, modules = weights_of(network), [id(module) for module in network.modules()]
    run_state = torch.get_rng_state()
    weights = weights_of(network)
    absorb(network).weights(weights)
    assert [id(module) for module in network.modules()] == modules
    assert all(module.training for module in network.modules())
    assert all(tensor.requires_grad for tensor in network.parameters())
    for found in (weights_of(network), weights):
        assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), run_state)


def test_the_absorbed_network_evaluates_and_learns_nothing() -> None:
    absorbed = absorb(make().train()).network
    assert not any(module.training for module in absorbed.modules())
    assert not any(tensor.requires_grad for tensor in absorbed.parameters())


def test_tensors_of_no_pair_are_the_same_objects() -> None:
    absorbed, given = absorb(make()), weights_of(make())
    assert absorbed.weights(given)["head.linear.weight"] is given["head.linear.weight"]


@pytest.mark.parametrize("name", ["backbone.bn1.weight", "backbone.bn1.running_mean", "other"])
def test_weights_of_another_network_are_refused(name: str) -> None:
    """A norm whose gain is missing would else be taken for one that has none."""
    absorbed, given = absorb(make()), weights_of(make())
    odd = {key: tensor for key, tensor in given.items() if key != name}
    odd |= {} if name in given else {name: torch.zeros(1)}
    with pytest.raises(RuntimeError, match=f"among the weights: {name}$"):
        absorbed.weights(odd)


class Wired(nn.Module):
    """A convolution and a norm, wired as `wire` says; `again` and `other` for those who want."""

    def __init__(self, wire: Callable[["Wired", Tensor], Tensor]) -> None:
        super().__init__()
        self.wire = wire
        self.first = nn.Conv2d(3, 6, 3)
        self.norm: nn.Module = nn.BatchNorm2d(6)
        self.again = nn.Conv2d(6, 6, 1)
        self.other = nn.BatchNorm2d(6)

    def forward(self, seen: Tensor) -> Tensor:
        return self.wire(self, seen)


def twice_normed(net: Wired, seen: Tensor) -> Tensor:
    return net.norm(net.again(net.norm(net.first(seen))))


def convolution_twice(net: Wired, seen: Tensor) -> Tensor:
    return net.norm(net.first(seen)) + net.other(net.first(seen))


def read_by_two(net: Wired, seen: Tensor) -> Tensor:
    made = net.first(seen)
    return net.norm(made) + made


def read_as_a_view(net: Wired, seen: Tensor) -> Tensor:
    made = net.first(seen)
    return net.norm(made) + made.mean(dim=(2, 3), keepdim=True).flatten(1)[:, :, None, None]


def read_by_two_norms(net: Wired, seen: Tensor) -> Tensor:
    made = net.first(seen)
    return net.norm(made) + net.other(made)


def changed_between(net: Wired, seen: Tensor) -> Tensor:
    return net.norm(net.first(seen).relu_())


def norm_first(net: Wired, seen: Tensor) -> Tensor:
    return net.again(net.norm(net.first(seen).abs()))


def weight_read_elsewhere(net: Wired, seen: Tensor) -> Tensor:
    return net.norm(net.first(seen)) + net.first.weight.mean()


UNFOLDABLE = [
    twice_normed,
    convolution_twice,
    read_by_two,
    read_as_a_view,
    read_by_two_norms,
    changed_between,
    norm_first,
    weight_read_elsewhere,
]


def checked(network: nn.Module) -> Absorbed:
    """The network absorbed, after a look at whether it still says the same."""
    absorbed = absorb(stir(network.eval()))
    assert apart(run(absorbed.network), run(network)) < 1e-4
    return absorbed


@pytest.mark.parametrize("wire", UNFOLDABLE, ids=lambda wire: wire.__name__)
def test_what_others_read_or_what_runs_twice_is_not_absorbed(
    wire: Callable[[Wired, Tensor], Tensor],
) -> None:
    assert checked(Wired(wire)).pairs == ()


def test_what_the_network_returns_is_not_absorbed() -> None:
    class Both(nn.Sequential):
        def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
            made = self[0](seen)
            return made, self[1](made)

    assert absorb(Both(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))).pairs == ()
    assert len(absorb(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))).pairs) == 1


def test_a_chain_is_absorbed_by_what_runs_and_not_by_names() -> None:
    def crossed(net: Wired, seen: Tensor) -> Tensor:
        return net.norm(net.again(net.other(net.first(seen)).relu()))

    pairs = checked(Wired(crossed)).pairs
    assert [(pair.convolution, pair.norm) for pair in pairs] == [
        ("first", "other"),
        ("again", "norm"),
    ]


def test_modules_that_do_not_run_are_no_pairs() -> None:
    def straight(net: Wired, seen: Tensor) -> Tensor:
        return net.norm(net.first(seen))

    assert [pair.convolution for pair in checked(Wired(straight)).pairs] == ["first"]


def test_standardised_weights_are_not_absorbed() -> None:
    network = nn.Sequential(StdConv2d(3, 6, 3), nn.BatchNorm2d(6))
    assert checked(network).pairs == ()


def test_weights_that_only_multiply_are_no_convolution() -> None:
    class Scale(nn.Conv2d):
        def forward(self, seen: Tensor) -> Tensor:
            return seen * self.weight

    network = nn.Sequential(nn.Conv2d(3, 6, 3), Scale(6, 1, 1, bias=False), nn.BatchNorm2d(6))
    assert checked(network).pairs == ()


def test_a_norm_that_knows_no_statistics_is_not_absorbed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    assert absorb(network.eval()).pairs == ()


def test_transposed_convolutions_are_not_absorbed() -> None:
    assert checked(nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6))).pairs == ()


def test_a_norm_without_gain_and_a_convolution_without_bias_are_a_pair() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6, affine=False)
    ).eval()
    with torch.no_grad():
        network[1].running_mean.fill_(0.5)  # type: ignore[union-attr,operator]
        network[1].running_var.fill_(2.0)  # type: ignore[union-attr,operator]
    absorbed = absorb(network)
    assert len(absorbed.pairs) == 1
    assert apart(run(absorbed.network), run(network)) < 1e-4


def test_a_norm_keeps_its_activation_and_that_its_weights() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), BatchNormAct2d(6, act_layer=nn.PReLU, inplace=False)
    ).eval()
    with torch.no_grad():
        network[1].act.weight.fill_(-0.7)  # type: ignore[union-attr,operator]
    absorbed = checked(network)
    assert len(absorbed.pairs) == 1 and not norms(absorbed.network)
    assert "1.act.weight" in absorbed.network.state_dict()


def test_heads_with_batch_norm_are_absorbed_as_far_as_they_can_be() -> None:
    head = nn.Sequential(
        OrderedDict(
            project=nn.Conv2d(96, 32, 1),
            norm=nn.BatchNorm2d(32),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            linear=nn.Linear(32, 16),
            after=nn.BatchNorm1d(16),
            logits=nn.Linear(16, 5),
        )
    )
    absorbed = checked(Network(make(head="se").backbone, head))  # which gives the map
    assert "head.norm" in [pair.norm for pair in absorbed.pairs]
    assert [type(module) for module in absorbed.network.head.children()][5] is nn.BatchNorm1d  # type: ignore[union-attr]


def test_a_pair_knows_the_eps_of_its_norm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.25))
    pair = checked(network).pairs[0]
    assert pair == Pair("0", "1", 0.25)
    wrong = replace(pair, eps=1e-5)
    given = weights_of(network)
    assert not torch.equal(
        absorbed_pair(given, pair)["0.weight"], absorbed_pair(given, wrong)["0.weight"]
    )
