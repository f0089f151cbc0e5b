import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fieldguide import merge
from fieldguide.errors import UsageError
from fieldguide.merge import outer_step


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv": torch.randn(4, 3, generator=generator).to(dtype),
        "scale": torch.randn(5, generator=generator).to(dtype),
        "counter": torch.tensor(seed),
    }


def anchor_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name != "counter"}


RULES = sorted(merge.RULES)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_identical_copies_stay_themselves(rule: str, dtype: torch.dtype) -> None:
    for k in (1, 2, 3, 7):
        copy = weights(1, dtype)
        merged = merge.RULES[rule]([copy] * k, anchor_of(weights(2, dtype)))
        for name, tensor in merged.items():
            assert tensor.dtype == copy[name].dtype
            assert torch.equal(tensor, copy[name])


@pytest.mark.parametrize("rule", RULES)
def test_order_of_copies_is_irrelevant(rule: str) -> None:
    copies, anchor = [weights(seed) for seed in (1, 2, 3)], anchor_of(weights(9))
    expected = merge.RULES[rule](copies, anchor)
    for order in itertools.permutations(copies):
        merged = merge.RULES[rule](order, anchor)
        for name in expected:
            torch.testing.assert_close(merged[name], expected[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
def test_arguments_are_unchanged(rule: str) -> None:
    copies, anchor = [weights(1), weights(2)], anchor_of(weights(3))
    merged = merge.RULES[rule](copies, anchor)
    for tensor in merged.values():
        tensor.zero_()
    for seed, copy in zip((1, 2), copies, strict=True):
        assert all(torch.equal(copy[name], tensor) for name, tensor in weights(seed).items())
    assert all(torch.equal(anchor[n], t) for n, t in anchor_of(weights(3)).items())


@pytest.mark.parametrize("rule", RULES)
def test_integers_stay_integers_and_are_one_of_the_copies(rule: str) -> None:
    merged = merge.RULES[rule]([weights(4), weights(7)], {})
    assert merged["counter"].dtype == torch.int64
    assert merged["counter"] == 7


def test_average_is_the_mean() -> None:
    copies = [weights(seed) for seed in range(5)]
    merged = merge.average(copies)
    for name in ("conv", "scale"):
        mean = torch.stack([copy[name] for copy in copies]).double().mean(0).float()
        assert torch.equal(merged[name], mean)


@settings(max_examples=30, deadline=None)
@given(k=st.integers(2, 5), seed=st.integers(0, 10_000))
def test_model_stock_agrees_with_the_formula_and_lies_between(k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(6, generator=generator)
    shared = torch.randn(6, generator=generator)
    copies = [anchor + shared + torch.randn(6, generator=generator) for _ in range(k)]
    merged, ratios = merge.model_stock([{"w": copy} for copy in copies], {"w": anchor})
    cosines = [
        torch.cosine_similarity(one.double() - anchor, other.double() - anchor, dim=0)
        for one, other in itertools.combinations(copies, 2)
    ]
    cosine = torch.stack(cosines).mean().clamp(0, 1)
    t = k * cosine / (1 + (k - 1) * cosine)
    assert ratios["w"] == pytest.approx(float(t), abs=1e-6)
    expected = t * torch.stack(copies).double().mean(0) + (1 - t) * anchor.double()
    torch.testing.assert_close(merged["w"].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_negative_cosine_stays_at_the_anchor(k: int) -> None:
    """Unclamped, k = 2 with opposed moves is the pole of the ratio: a division by zero."""
    angles = torch.arange(k) * (2 * torch.pi / k)
    copies = [{"w": torch.stack([angle.cos(), angle.sin()]) + 5} for angle in angles]
    merged, ratios = merge.model_stock(copies, {"w": torch.full((2,), 5.0)})
    assert ratios["w"] == 0
    assert torch.equal(merged["w"], torch.full((2,), 5.0))


def test_single_copy_and_unmoved_tensors_are_kept() -> None:
    anchor, copy = anchor_of(weights(1)), weights(2)
    merged, ratios = merge.model_stock([copy], anchor)
    assert ratios == {"conv": 1.0, "scale": 1.0}
    assert torch.equal(merged["conv"], copy["conv"])
    moved = {"conv": anchor["conv"] + 1, "scale": anchor["scale"], "counter": torch.tensor(0)}
    stays = {**anchor, "counter": torch.tensor(0)}
    merged, ratios = merge.model_stock([moved, stays], anchor)
    assert ratios["scale"] == ratios["conv"] == 1.0
    assert torch.equal(merged["scale"], anchor["scale"])
    torch.testing.assert_close(merged["conv"], anchor["conv"] + 0.5)


def test_what_has_no_anchor_is_averaged() -> None:
    copies = [weights(1), weights(2)]
    merged, ratios = merge.model_stock(copies, {"conv": weights(3)["conv"]})
    assert set(ratios) == {"conv"}
    assert torch.equal(merged["scale"], merge.average(copies)["scale"])


def test_moves_tell_angle_ratio_and_distance() -> None:
    anchor = {"w": torch.tensor([3.0, 4.0])}
    copies = [{"w": torch.tensor([4.0, 4.0])}, {"w": torch.tensor([3.0, 6.0])}]
    move = merge.moves(copies, anchor)["w"]
    assert move.angle == pytest.approx(90)
    assert move.ratio == pytest.approx(0, abs=1e-12)
    assert move.distance == pytest.approx((1 + 2) / 2 / 5)
    assert merge.moves(copies, {"w": torch.zeros(2)})["w"].distance == pytest.approx(
        float(torch.stack([copy["w"].norm() for copy in copies]).mean())
    )


def test_unlike_copies_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no copies"):
        merge.average([])
    with pytest.raises(UsageError, match=r"different tensors: scale"):
        merge.average([weights(1), {"conv": torch.zeros(4, 3), "counter": torch.tensor(1)}])
    with pytest.raises(UsageError, match=r"`conv` has shape \(4, 3\).*\(2, 3\) in copy 2"):
        merge.average([weights(1), {**weights(1), "conv": torch.zeros(2, 3)}])


def outer_example() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    draw = lambda: torch.randn(50, generator=generator) * 10.0 ** torch.arange(-25, 25)  # noqa: E731
    last, merged, speed = draw(), draw(), draw()
    return (
        {"w": last, "mean": last, "count": torch.tensor(1)},
        {"w": merged, "mean": merged, "count": torch.tensor(7)},
        {"w": speed},
    )


def test_an_outer_step_all_the_way_without_momentum_is_the_merged_weights_to_the_bit() -> None:
    last, merged, velocity = outer_example()
    stepped, _ = outer_step(last, merged, velocity, rate=1.0, momentum=0.0)
    assert all(torch.equal(stepped[name], merged[name]) for name in merged)
    assert stepped["w"].dtype == torch.float32


def test_an_outer_step_is_torchs_nesterov_momentum() -> None:
    """Compared with torch's own optimiser, the movement backwards as its gradient."""
    generator = torch.Generator().manual_seed(5)
    theirs = torch.randn(9, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    last, velocity = theirs.detach().clone(), torch.zeros(9, dtype=torch.float64)
    for _ in range(4):
        mean = torch.randn(9, generator=generator, dtype=torch.float64)
        stepped, speeds = outer_step(
            {"w": last}, {"w": mean}, {"w": velocity}, rate=0.7, momentum=0.9
        )
        theirs.grad = last - mean
        optimizer.step()
        last, velocity = stepped["w"], speeds["w"]
        torch.testing.assert_close(last, theirs.detach())


def test_an_outer_step_leaves_statistics_counters_and_arguments_alone() -> None:
    last, merged, velocity = outer_example()
    before = [{n: t.clone() for n, t in each.items()} for each in (last, merged, velocity)]
    stepped, speeds = outer_step(last, merged, velocity, rate=0.7, momentum=0.9)
    assert torch.equal(stepped["mean"], merged["mean"]) and stepped["count"] == 7
    assert not torch.equal(stepped["w"], merged["w"]) and speeds.keys() == {"w"}
    for each, old in zip((last, merged, velocity), before, strict=True):
        assert all(torch.equal(each[name], old[name]) for name in old)
