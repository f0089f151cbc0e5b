"""Networks of timm beyond the ResNet family: what is taken, what is refused, and that it fits."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fits import results, small_fit, small_recipe
from safetensors.torch import save_file

import fieldguide as fg
from fieldguide.errors import UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.settings import resolve
from fieldguide.network.batch_norm import absorb, has_batch_norm
from fieldguide.network.network import Network, build, build_backbone, freeze
from fieldguide.predict import inference
from fieldguide.predict.model import Machine
from fieldguide.report import build as build_report

CONVOLUTIONAL = ("test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet", "regnetx_002")


def make(backbone: str, head: str = "linear", weights: str = "none") -> Network:
    return build(backbone, weights=weights, head=head, classes=3, dropout=0.0, seed=0)


def images(side: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", [*CONVOLUTIONAL, "mobilenetv3_small_050", "ghostnet_050"])
def test_with_a_linear_head_it_computes_what_timms_own_network_does(backbone: str) -> None:
    network = make(backbone).eval()
    own = timm.create_model(backbone, num_classes=3).eval()
    body = network.backbone.state_dict()
    classifier = sorted(own.state_dict().keys() - body.keys())
    assert len(classifier) == 2  # bias and weight
    layer = network.head.linear
    own.load_state_dict(body | dict(zip(classifier, (layer.bias, layer.weight), strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(network(images()), own(images()), rtol=0, atol=0)


@pytest.mark.parametrize("head", ["linear", "se", "attention"])
@pytest.mark.parametrize("backbone", CONVOLUTIONAL[:4])
def test_absorbing_norms_changes_nothing_with_any_head(backbone: str, head: str) -> None:
    network = make(backbone, head).eval()
    absorbed = absorb(network)
    assert bool(absorbed.pairs) == has_batch_norm(network)
    with torch.no_grad():
        torch.testing.assert_close(absorbed.network(images()), network(images()))


@pytest.mark.parametrize(
    ("backbone", "first"),
    [("test_convnext", "stages.0."), ("test_efficientnet", "blocks.0."), ("regnetx_002", "s1.")],
)
def test_stages_are_frozen_from_the_stem_on(backbone: str, first: str) -> None:
    network = make(backbone)
    freeze(network, 2)
    frozen = {n for n, t in network.backbone.named_parameters() if not t.requires_grad}
    stem = {name for name in frozen if not name.startswith(first)}
    assert frozen - stem == {
        n for n, _ in network.backbone.named_parameters() if n.startswith(first)
    }
    assert stem and all(name.startswith(("stem", "conv_stem", "bn1")) for name in stem)


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("test_vit", "what it makes of a picture is (n, 197, 64)"),
        ("test_maxvit", "cannot take pictures of 224 × 224 pixels"),
        ("mixer_s32_224", "what it makes of a picture is (n, 49, 512)"),
    ],
)
def test_networks_without_a_feature_map_are_refused(backbone: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(backbone)
    assert reason in caught.value.message
    assert "fieldguide backbones" in caught.value.hint


def test_a_head_that_a_network_cannot_have_is_refused() -> None:
    assert make("efficientvit_b0").head.linear.in_features
    with pytest.raises(UsageError, match="cannot be built for a head that is `se`"):
        make("efficientvit_b0", "se")


def test_channels_that_come_last_are_refused() -> None:
    with pytest.raises(UsageError, match="positions before channels"):
        make("test_mambaout", "se")


def test_pictures_too_small_for_a_network_are_refused_with_a_size_that_is_not() -> None:
    recipe = small_recipe(backbone="inception_v3", size=64, eval_resize=64)
    with torch.device("meta"):
        body = build_backbone(recipe.backbone, weights="none", seed=0)
    with pytest.raises(UsageError, match="cannot take pictures of 64 × 64 pixels") as caught:
        resolve(recipe, body)
    assert caught.value.hint == "set `size` to 96 or more"
    assert resolve(recipe.replace(size=96, eval_resize=96), body).size == 96


def test_a_network_of_one_size_is_not_refused_for_a_size() -> None:
    recipe = small_recipe(backbone="vit_tiny_patch16_224", size=64, eval_resize=64)
    with pytest.raises(UsageError, match="ends in no feature map"):
        resolve(recipe, build_backbone(recipe.backbone, weights="none", seed=0))


def test_layers_after_the_mean_are_read_as_linear_or_as_convolutions(tmp_path: Path) -> None:
    tensors = make("mobilenetv4_conv_small_050", "linear").backbone.state_dict()
    file = tmp_path / "w.safetensors"
    flat = {n: t.flatten(1) if t.shape[2:] == (1, 1) else t for n, t in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in flat.items()}, file)
    found = make("mobilenetv4_conv_small_050", "se", str(file)).backbone.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        ("test_convnext", {"merge": "model_stock", "freeze": 1}),
        ("test_efficientnet", {"merge": "average", "head": "se"}),
        ("test_byobnet", {"merge": "model_stock", "layout": "channels_last"}),
    ],
)
def test_a_fit_from_start_to_saved_classifier(
    backbone: str, settings: dict[str, object], discs: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    settings = {"backbone": backbone, "keep_replicas": True, **settings}
    whole = small_fit(discs, tmp_path / "run", watcher=Watcher(notice=told.append), **settings)
    idle = [each for each in told if "has no batch norm" in each]
    assert bool(idle) == (backbone == "test_convnext")

    small_fit(discs, tmp_path / "parts", fold=1, **settings)
    assert results(small_fit(discs, tmp_path / "parts", **settings)) == results(whole)

    one = whole.classifier(1)
    files = [discs / whole.catalog.photos[row].path for row in whole.folds[1].test.tolist()]
    again, _ = inference.all_logits(
        one.card.architecture, one.members, files, Machine("cpu", workers=0)
    )
    np.testing.assert_allclose(again[0], whole.logits(1), atol=1e-5)

    soup = whole.classifier("soup")
    saved = fg.Classifier.load(soup.save(tmp_path / "saved"))
    assert saved.card.architecture.backbone == backbone
    np.testing.assert_array_equal(
        saved.predict(files).probabilities, soup.predict(files).probabilities
    )
    assert "merged" in build_report(whole).read_text("utf-8")
