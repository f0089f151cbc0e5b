import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fieldguide.network.heads import HEADS
from fieldguide.network.network import Network, build, freeze
from fieldguide.train.optimize import (
    make_optimizer,
    moments_of,
    parameter_groups,
    rate_factor,
    set_moments,
    set_rates,
)

STEPS = st.integers(1, 500)


def shapes_of(backbone: str, head: str = "linear") -> Network:
    """A network without numbers: quick, however large."""
    with torch.device("meta"):
        return build(backbone, weights="none", head=head, classes=7, dropout=0.0, seed=0)


def groups_of(network: Network, **changes: float) -> list[dict[str, Any]]:
    settings = {"backbone_rate": 1e-4, "head_rate": 1e-3, "weight_decay": 0.05} | changes
    return parameter_groups(network.backbone, network.head, **settings)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def optimizer_of(model: nn.Sequential) -> torch.optim.AdamW:
    rates = {"backbone_rate": 1e-2, "head_rate": 1e-1, "weight_decay": 0.05}
    return make_optimizer(parameter_groups(model[:2], model[2], **rates))


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(6, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize(
    "backbone", ["test_resnet", "resnet10t", "resnest14d", "seresnet18", "resnetv2_18"]
)
def test_every_trainable_tensor_is_in_exactly_one_group(
    backbone: str, frozen: int, head: str
) -> None:
    network = shapes_of(backbone, head)
    freeze(network, frozen)
    grouped = [id(tensor) for group in groups_of(network) for tensor in group["params"]]
    trainable = [id(tensor) for tensor in network.parameters() if tensor.requires_grad]
    assert sorted(grouped) == sorted(trainable)


@pytest.mark.parametrize("backbone", ["test_resnet", "resnest14d", "seresnet18"])
def test_the_stem_and_its_norm_are_trained(backbone: str) -> None:
    network = shapes_of(backbone)
    grouped = {id(tensor) for group in groups_of(network) for tensor in group["params"]}
    stem = [
        name
        for name, tensor in network.backbone.named_parameters()
        if name.startswith(("conv1.", "bn1.")) and id(tensor) in grouped
    ]
    assert {"bn1.weight", "bn1.bias"} < set(stem)
    assert any(name.startswith("conv1.") for name in stem)


@pytest.mark.parametrize("head", HEADS)
def test_tensors_of_one_dimension_are_not_decayed_and_all_others_are(head: str) -> None:
    for group in groups_of(shapes_of("seresnet18", head)):
        wanted = {0.05 if tensor.ndim > 1 else 0.0 for tensor in group["params"]}
        assert wanted == {group["weight_decay"]}


def test_the_head_has_its_own_rate() -> None:
    network = shapes_of("test_resnet", "attention")
    rate = {id(tensor): group["lr"] for group in groups_of(network) for tensor in group["params"]}
    assert {rate[id(tensor)] for tensor in network.backbone.parameters()} == {1e-4}
    assert {rate[id(tensor)] for tensor in network.head.parameters()} == {1e-3}


def test_a_frozen_backbone_leaves_groups_of_the_head_alone() -> None:
    network = shapes_of("test_resnet")
    network.backbone.requires_grad_(False)
    assert [len(group["params"]) for group in groups_of(network)] == [1, 1]


def test_the_optimiser_does_not_change_the_groups_it_is_made_from() -> None:
    model = small()
    rates = {"backbone_rate": 1e-2, "head_rate": 1e-1, "weight_decay": 0.05}
    groups = parameter_groups(model[:2], model[2], **rates)
    set_rates(make_optimizer(groups), 0.5)
    assert [group["lr"] for group in groups] == [1e-2, 1e-2, 1e-1, 1e-1]


def test_a_fused_step_is_the_plain_step() -> None:
    fused, plain = small(), small()
    optimizer = optimizer_of(plain)
    groups = [dict(group) for group in optimizer.param_groups]
    for group in groups:
        group |= {"fused": False, "foreach": False}
    take_steps(fused, optimizer_of(fused))
    take_steps(plain, torch.optim.AdamW(groups))
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_first_step_is_the_formula() -> None:
    """After one step the moments cancel: w - rate * (decay * w + sign(gradient))."""
    model = small()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = optimizer_of(model)
    gradients = gradients_of(model)
    take_steps(model, optimizer, steps=1)
    for name, tensor in model.named_parameters():
        rate = 1e-1 if name.startswith("2.") else 1e-2
        decay = 0.05 if tensor.ndim > 1 else 0.0
        expected = before[name] - rate * (decay * before[name] + gradients[name].sign())
        torch.testing.assert_close(tensor.detach(), expected, rtol=1e-4, atol=1e-5)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Those of the first of `take_steps`."""
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    twin(torch.randn(6, 5)).square().sum().backward()
    return {
        name: tensor.grad for name, tensor in twin.named_parameters() if tensor.grad is not None
    }


@given(STEPS, st.integers(0, 500), st.sampled_from(["constant", "cosine"]))
def test_a_rate_lies_between_none_and_its_peak(steps: int, warmup: int, schedule: Any) -> None:
    factors = [rate_factor(s, steps, schedule=schedule, warmup=warmup) for s in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


@given(STEPS, st.data())
def test_after_the_warm_up_constant_is_the_peak_and_cosine_the_formula(
    steps: int, data: Any
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    for step in range(warmup, steps + 1):
        assert rate_factor(step, steps, schedule="constant", warmup=warmup) == 1.0
        share = (step - warmup) / (steps - warmup)
        expected = (1 + math.cos(math.pi * share)) / 2
        found = rate_factor(step, steps, schedule="cosine", warmup=warmup)
        assert found == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 50))
def test_the_warm_up_rises_in_equal_parts_to_the_peak(warmup: int) -> None:
    factors = [rate_factor(s, 100, schedule="cosine", warmup=warmup) for s in range(warmup + 1)]
    rises = [later - earlier for earlier, later in zip([0.0, *factors], factors, strict=False)]
    assert rises == pytest.approx([1 / (warmup + 1)] * (warmup + 1))
    assert factors[-1] == 1.0


def test_the_shortest_fit_has_a_rate() -> None:
    assert rate_factor(0, 1, schedule="cosine", warmup=0) == 1.0
    assert rate_factor(0, 1, schedule="cosine", warmup=1) == 0.5


def test_rates_are_set_from_the_peak_however_often() -> None:
    optimizer = optimizer_of(small())
    for _ in range(3):
        set_rates(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [1e-3, 1e-3, 1e-2, 1e-2]
    )


def test_there_are_no_moments_before_the_first_step() -> None:
    model = small()
    assert moments_of(optimizer_of(model), model.named_parameters()) == {}


def test_moments_put_back_go_on_to_the_same_bits() -> None:
    straight, resumed = small(), small()
    optimizer = optimizer_of(straight)
    take_steps(straight, optimizer)
    resumed.load_state_dict(straight.state_dict())
    again = optimizer_of(resumed)
    moments = moments_of(optimizer, straight.named_parameters())
    set_moments(again, resumed.named_parameters(), moments)
    take_steps(straight, optimizer)
    take_steps(resumed, again)
    assert all(
        torch.equal(one, other)
        for one, other in zip(straight.parameters(), resumed.parameters(), strict=True)
    )


def test_moments_put_in_are_copies() -> None:
    model = small()
    optimizer = optimizer_of(model)
    take_steps(model, optimizer)
    moments = copy.deepcopy(moments_of(optimizer, model.named_parameters()))
    given = copy.deepcopy(moments)
    set_moments(optimizer, model.named_parameters(), given)
    take_steps(model, optimizer)
    assert all(
        torch.equal(given[name][key], value)
        for name, state in moments.items()
        for key, value in state.items()
    )


def test_what_has_no_moments_starts_anew() -> None:
    model = small()
    optimizer = optimizer_of(model)
    take_steps(model, optimizer)
    moments = moments_of(optimizer, model.named_parameters())
    moments.pop("2.bias")
    set_moments(optimizer, model.named_parameters(), moments)
    assert set(moments_of(optimizer, model.named_parameters())) == set(moments)
    take_steps(model, optimizer, steps=1)
    assert moments_of(optimizer, model.named_parameters())["2.bias"]["step"] == 1
