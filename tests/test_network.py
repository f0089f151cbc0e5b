from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fieldguide.errors import UsageError
from fieldguide.network import network as networks
from fieldguide.network.batch_norm import has_batch_norm, recalibrate
from fieldguide.network.heads import HEADS
from fieldguide.network.network import (
    Network,
    backbone_anchor,
    build,
    build_backbone,
    freeze,
    input_config,
    load_weights,
    train_mode,
    weights_of,
)

SETTINGS: dict[str, Any] = {
    "backbone": "test_resnet",
    "weights": "none",
    "head": "linear",
    "classes": 3,
    "dropout": 0.0,
    "seed": 0,
}

# For the smallest of each family: how names of its stem begin, and those of its stages in order.
FAMILIES = {
    "resnet18": (("conv1.", "bn1."), "layer1 layer2 layer3 layer4"),
    "resnest14d": (("conv1.", "bn1."), "layer1 layer2 layer3 layer4"),
    "skresnet18": (("conv1.", "bn1."), "layer1 layer2 layer3 layer4"),
    "res2net50_48w_2s": (("conv1.", "bn1."), "layer1 layer2 layer3 layer4"),
    "seresnet18": (("conv1.", "bn1."), "layer1 layer2 layer3 layer4"),
    "legacy_seresnet18": (("layer0.",), "layer1 layer2 layer3 layer4"),
    "resnetv2_18": (("stem.",), "stages.0 stages.1 stages.2 stages.3"),
    "resnetv2_50x1_bit": (("stem.",), "stages.0 stages.1 stages.2 stages.3"),
    "tresnet_m": (("body.conv1.",), "body.layer1 body.layer2 body.layer3 body.layer4"),
}


def make(**changes: Any) -> Network:
    return build(**SETTINGS | changes)


def photos(n: int = 10, side: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def saved(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return str(path)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("head", HEADS)
def test_photos_become_logits_whatever_the_head(head: str) -> None:
    network = make(head=head).eval()
    assert network(photos(2)).shape == (2, 3)
    assert network(photos(1, side=48)).shape == (1, 3)


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_gives_the_same_start_whatever_was_drawn_before(head: str) -> None:
    first = weights_of(make(head=head))
    torch.rand(7)
    assert equal(first, weights_of(make(head=head)))
    assert not equal(first, weights_of(make(head=head, seed=1)))


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_weight_is_named_after_its_part() -> None:
    assert {name.partition(".")[0] for name in weights_of(make())} == {"backbone", "head"}


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(UsageError, match="`backbone` = 'resnet81'"):
        make(backbone="resnet81")


def test_a_file_gives_the_backbone_and_the_seed_the_head(tmp_path: Path) -> None:
    other = make(seed=5)
    file = saved(tmp_path / "w.safetensors", other.backbone.state_dict())
    network = make(weights=file)
    assert equal(weights_of(network.backbone), weights_of(other.backbone))
    assert equal(weights_of(network.head), weights_of(make().head))


def test_the_classifier_of_a_file_is_ignored(tmp_path: Path) -> None:
    other = make(seed=5).backbone
    extra = {"fc.weight": torch.ones(1000, 96), "fc.bias": torch.ones(1000)}
    file = saved(tmp_path / "w.safetensors", other.state_dict() | extra)
    assert equal(weights_of(make(weights=file).backbone), weights_of(other))


def test_weights_of_our_own_give_their_backbone(tmp_path: Path) -> None:
    own = make(seed=5, classes=9)
    network = make(weights=saved(tmp_path / "w.safetensors", weights_of(own)))
    assert equal(weights_of(network.backbone), weights_of(own.backbone))
    assert equal(weights_of(network.head), weights_of(make().head))


@pytest.mark.parametrize("prefix", ["model.", "net.encoder.", "ema."])
def test_one_prefix_before_all_names_is_taken_off_and_told(prefix: str, tmp_path: Path) -> None:
    other, told = make(seed=5).backbone, list[str]()
    named = {f"{prefix}{name}": tensor for name, tensor in other.state_dict().items()}
    more = {f"{prefix}fc.weight": torch.ones(3, 2), "criterion.weight": torch.ones(3)}
    body = build_backbone(
        SETTINGS["backbone"],
        weights=saved(tmp_path / "w.safetensors", named | more),
        seed=0,
        tell=told.append,
    )
    assert equal(weights_of(body), weights_of(other))
    assert told == [
        f"weights: the prefix `{prefix}` of their names is taken off;"
        " `fc.weight` (3, 2) left out: the head is a new one"
    ]


def test_a_backbone_that_is_there_twice_is_asked_for(tmp_path: Path) -> None:
    tensors = make(seed=5).backbone.state_dict()
    parts = ("student", "teacher")
    twice = {f"{part}.{name}": t.clone() for part in parts for name, t in tensors.items()}
    file = saved(tmp_path / "w.safetensors", twice)
    with pytest.raises(UsageError, match=r"2 times, under `student\.`, `teacher\.`") as caught:
        make(weights=file)
    assert f"`{file}:student`" in caught.value.hint
    assert equal(weights_of(make(weights=f"{file}:teacher").backbone), tensors)


def test_counters_may_be_missing(tmp_path: Path) -> None:
    tensors = {
        name: tensor
        for name, tensor in make(seed=5).backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    network = make(weights=saved(tmp_path / "w.safetensors", tensors))
    assert norms(network)[0].num_batches_tracked == 0


def test_missing_tensors_are_counted_and_named(tmp_path: Path) -> None:
    tensors = make().backbone.state_dict()
    whole = len(tensors)
    del tensors["conv1.0.weight"], tensors["bn1.bias"]
    with pytest.raises(UsageError) as caught:
        make(weights=saved(tmp_path / "w.safetensors", tensors))
    message = caught.value.message
    assert f"lack 2 of the backbone's {whole} tensors" in message
    assert "conv1.0.weight, bn1.bias" in message and "w.safetensors" in message
    assert "`backbone`" in caught.value.hint


def test_the_weights_of_another_network_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"they hold vit\.weight"):
        make(weights=saved(tmp_path / "w.safetensors", {"vit.weight": torch.ones(1)}))


def test_tensors_of_another_shape_are_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = make().backbone.state_dict()
    shape = tuple(tensors["bn1.bias"].shape)
    with pytest.raises(UsageError) as caught:
        make(weights=saved(tmp_path / "w.safetensors", tensors | {"bn1.bias": torch.ones(7)}))
    assert f"other shapes: bn1.bias (7,), not {shape}" in caught.value.message


def test_pretrained_weights_are_those_that_the_network_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make(seed=5).backbone
    file = Path(saved(tmp_path / "w.safetensors", other.state_dict()))
    asked = []

    def download(backbone: str, config: dict[str, Any]) -> Path:
        asked.append((backbone, config["hf_hub_id"]))
        return file

    monkeypatch.setattr(networks, "download", download)
    network = make(weights="pretrained")
    assert asked == [("test_resnet", "timm/test_resnet.r160_in1k")]
    assert equal(weights_of(network.backbone), weights_of(other))


@pytest.mark.parametrize(
    "name", ["test_resnet", "resnet18.a1_in1k", "tresnet_m", "resnetv2_50x1_bit", "seresnet18"]
)
def test_the_input_is_what_the_weights_were_made_for(name: str) -> None:
    with torch.device("meta"):
        network = make(backbone=name)
    config = network.backbone.pretrained_cfg
    found = input_config(network.backbone)
    assert (found.mean, found.std) == (tuple(config["mean"]), tuple(config["std"]))
    assert (3, found.size, found.size) == tuple(config["input_size"])
    assert found.eval_resize == round(found.size / config["crop_pct"]) >= found.size
    assert found.interpolation == config["interpolation"]
    assert found.license == (config.get("license") or "")


def test_weights_are_copied_out_and_in_place_in() -> None:
    network, other = make(), weights_of(make(seed=5))
    places = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    taken = weights_of(network)
    load_weights(network, other)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == places
    assert equal(weights_of(network), other)
    assert equal(taken, weights_of(make()))
    network.state_dict()["head.linear.bias"].fill_(9)
    assert not (other["head.linear.bias"] == 9).any()


def test_loading_keeps_gradients_and_needs() -> None:
    network = make()
    freeze(network, 1)
    needs = [tensor.requires_grad for tensor in network.parameters()]
    load_weights(network, weights_of(make(seed=5)))
    assert [tensor.requires_grad for tensor in network.parameters()] == needs


def test_the_anchor_is_the_trained_part_of_the_backbone() -> None:
    network = make()
    weights = weights_of(network)
    trained = {name for name, _ in network.named_parameters() if name.startswith("backbone.")}
    assert set(backbone_anchor(network, weights)) == trained
    freeze(network, 1)
    anchor = backbone_anchor(network, weights)
    assert trained - set(anchor) == {
        name for name in trained if ".conv1." in name[:16] or ".bn1." in name[:14]
    }
    assert all(anchor[name] is weights[name] for name in anchor)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_freezing_takes_the_stem_then_stage_by_stage_then_all_but_the_head(backbone: str) -> None:
    with torch.device("meta"):
        network = make(backbone=backbone)
    parameters = dict(network.backbone.named_parameters())
    stem, names = FAMILIES[backbone]
    for stages in range(7):
        freeze(network, stages)
        prefixes = (*stem, *(f"{name}." for name in names.split()[: stages - 1])) if stages else ()
        expected = {name for name in parameters if name.startswith(prefixes) or stages == 6}
        frozen = {name for name, tensor in parameters.items() if not tensor.requires_grad}
        assert frozen == expected, stages
        assert all(any(name.startswith(prefix) for name in expected) for prefix in prefixes)
        assert all(tensor.requires_grad for tensor in network.head.parameters())


def test_norms_of_frozen_stages_do_not_move_in_training() -> None:
    network = make()
    freeze(network, 2)
    train_mode(network)
    before = weights_of(network)
    network(photos())
    moved = {
        name.removeprefix("backbone.").partition(".")[0]
        for name, tensor in weights_of(network).items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"layer2", "layer3", "layer4"}
    assert network.training and network.head.training


def inputs_of(norm: nn.Module, network: nn.Module, images: Tensor) -> np.ndarray:
    """What goes into a norm when all photos come at once."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    with torch.no_grad():
        network(images)
    hook.remove()
    return seen[0].double().numpy()


@pytest.fixture
def moved() -> Network:
    """A network whose statistics fit no photos: drawn weights, dropout, moved norms."""
    network = make(dropout=0.5)
    for norm in norms(network):
        norm.running_mean.fill_(3.0)
        norm.running_var.fill_(7.0)
        norm.num_batches_tracked.fill_(11)
    return network


def test_statistics_are_the_mean_and_variance_over_all_photos(moved: Network) -> None:
    first = norms(moved)[0]
    seen = inputs_of(first, moved.eval(), photos())
    recalibrate(moved, photos().split([2, 4, 4]))
    expected = seen.mean(axis=(0, 2, 3)), seen.var(axis=(0, 2, 3), ddof=1)
    np.testing.assert_allclose(first.running_mean, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first.running_var, expected[1], rtol=1e-4)


def test_a_norm_normalises_by_the_batch_while_it_is_measured(moved: Network) -> None:
    """All photos at once: then every norm sees what it sees in training."""
    recalibrate(moved, [photos()])
    twin = make(dropout=0.0)
    load_weights(twin, weights_of(moved))
    for norm in norms(twin.train()):
        norm.momentum = 1.0
    with torch.no_grad():
        twin(photos())
    for ours, theirs in zip(norms(moved), norms(twin), strict=True):
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-4, atol=1e-5)


def test_the_order_of_batches_does_not_matter(moved: Network) -> None:
    batches = photos(12).split([3, 5, 4])
    recalibrate(moved, batches)
    one = weights_of(moved)
    recalibrate(moved, reversed(batches))
    for name, tensor in weights_of(moved).items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-5, atol=1e-6)


def test_only_statistics_change_not_even_counters(moved: Network) -> None:
    before = weights_of(moved)
    recalibrate(moved, photos().split(5))
    changed = {
        name for name, new in weights_of(moved).items() if not torch.equal(new, before[name])
    }
    running = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert changed == running


def test_nothing_is_drawn_as_dropout_is_off(moved: Network) -> None:
    before = torch.get_rng_state()
    recalibrate(moved.train(), [photos()])
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_before_a_norm_does_not_show() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    recalibrate(model, [photos()])
    norm = norms(model)[0]
    torch.testing.assert_close(norm.running_mean, photos().mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("mode", [nn.Module.train, nn.Module.eval, train_mode])
def test_modes_and_momenta_are_as_before(mode: Callable[..., object]) -> None:
    network = make(dropout=0.5)
    freeze(network, 2)
    norms(network)[-1].momentum = None
    mode(network)
    before = [(m.training, getattr(m, "momentum", 0)) for m in network.modules()]
    recalibrate(network, [photos()])
    assert [(m.training, getattr(m, "momentum", 0)) for m in network.modules()] == before
    assert all(norm.track_running_stats and not norm._forward_pre_hooks for norm in norms(network))


def test_an_error_while_measuring_leaves_everything_as_before(moved: Network) -> None:
    def broken() -> Iterator[Tensor]:
        yield photos()
        raise UsageError("the photos are gone")

    before = weights_of(moved)
    moved.train()
    with pytest.raises(UsageError, match="gone"):
        recalibrate(moved, broken())
    assert equal(weights_of(moved), before)
    assert all(module.training for module in moved.modules())
    assert all(norm.track_running_stats and not norm._forward_pre_hooks for norm in norms(moved))


def test_frozen_norms_keep_their_statistics(moved: Network) -> None:
    freeze(moved, 2)
    before = weights_of(moved)
    recalibrate(moved, photos().split(5))
    for name, tensor in weights_of(moved).items():
        if name.startswith(("backbone.conv1.", "backbone.bn1.", "backbone.layer1.")):
            assert torch.equal(tensor, before[name])
    assert not torch.equal(
        norms(moved)[-1].running_mean, torch.full_like(norms(moved)[-1].running_mean, 3)
    )


def test_norms_that_no_photo_reaches_keep_their_statistics() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return self.used(images)

    model = Idle()
    recalibrate(model, [photos()])
    assert torch.equal(model.idle.running_var, torch.ones(3))
    assert not torch.equal(model.used.running_var, torch.ones(3))
    used = weights_of(model)
    recalibrate(model, [])
    assert equal(weights_of(model), used)


def test_a_small_variance_about_a_large_mean_is_not_lost() -> None:
    images = 1000 + 0.1 * photos()
    model = nn.BatchNorm2d(3)
    recalibrate(model, images.split([1, 2, 7]))
    expected = images.double().var(dim=(0, 2, 3))
    torch.testing.assert_close(model.running_var.double(), expected, rtol=1e-4, atol=0)


def test_one_value_a_channel_has_no_variance_and_does_no_harm() -> None:
    model = nn.BatchNorm2d(3)
    recalibrate(model, [photos(2, side=1)])
    assert torch.isfinite(model.running_var).all()


@pytest.mark.parametrize(("backbone", "expected"), [("test_resnet", True), ("resnet50_gn", False)])
def test_not_every_network_has_statistics(backbone: str, expected: bool) -> None:
    with torch.device("meta"):
        assert has_batch_norm(make(backbone=backbone)) == expected
