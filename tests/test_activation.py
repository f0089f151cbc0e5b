from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fieldguide as fg
from fieldguide.network.heads import HEADS
from fieldguide.network.network import Network, build, weights_of
from fieldguide.study.activation import Activation, grad_cam, scaled

CHANNELS = 8


class Pooled(nn.Module):
    """A backbone whose feature map is the picture itself, in tiles, in eight channels."""

    def forward_features(self, images: Tensor) -> Tensor:
        tiles: Tensor = nn.functional.avg_pool2d(images, 8)
        return tiles.repeat(1, 3, 1, 1)[:, :CHANNELS]

    def forward_head(self, features: Tensor) -> Tensor:
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)


def network_of(head: str, classes: int = 4) -> Network:
    torch.manual_seed(0)
    return Network(Pooled(), HEADS[head](CHANNELS, classes, 0.5)).eval()


def some_images(count: int = 3, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_with_a_linear_head_it_is_the_class_activation_map() -> None:
    network, images, classes = network_of("linear"), some_images(), torch.tensor([2, 0, 2])
    features = network.backbone.forward_features(images)
    weights, bias = network.head.linear.weight, network.head.linear.bias
    share = torch.einsum("nk,nkhw->nhw", weights[classes], features) / 16
    torch.testing.assert_close(grad_cam(network, images, classes), share.relu() / 1)
    own = network(images).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(share.sum(dim=(1, 2)) + bias[classes], own)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_each_photo_is_looked_at_by_itself(head: str) -> None:
    network, images, classes = network_of(head), some_images(), torch.tensor([1, 3, 0])
    together = grad_cam(network, images, classes)
    assert together.shape == (3, 4, 4) and bool((together >= 0).all())
    for n in range(3):
        alone = grad_cam(network, images[n : n + 1], classes[n : n + 1])
        torch.testing.assert_close(alone[0], together[n])


@pytest.mark.parametrize("head", sorted(HEADS))
def test_it_is_the_gradient_of_the_logit(head: str) -> None:
    """Against finite differences of the mean shift of each channel, in float64."""
    network, images = network_of(head).double(), some_images(1).double()
    features = network.backbone.forward_features(images)
    importance = []
    for channel in range(CHANNELS):
        shift = torch.zeros_like(features)
        shift[:, channel] = 1e-6
        both = [network.head(features + sign * shift)[0, 1] for sign in (1, -1)]
        importance.append((both[0] - both[1]) / 2e-6 / 16)
    expected = torch.einsum("k,nkhw->nhw", torch.stack(importance), features).relu()
    found = grad_cam(network, images, torch.tensor([1]))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-8)


def test_it_is_warm_where_the_evidence_lies() -> None:
    network = network_of("linear")
    with torch.no_grad():
        network.head.linear.weight.zero_()
        network.head.linear.weight[1, 0] = 1.0  # class 1 is red
        network.head.linear.weight[2, 0] = -1.0  # and class 2 is not
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, 8:16, 24:32] = 1.0
    found = scaled(grad_cam(network, images, torch.tensor([1, 2])))
    assert found[0].nonzero().tolist() == [[1, 3]] and found[0, 1, 3] == 1
    assert not found[1].any()


def test_the_network_stays_as_it_was() -> None:
    network = build("test_resnet", weights="none", head="se", classes=3, dropout=0.1, seed=0).eval()
    before = weights_of(network)
    grad_cam(network, some_images(), torch.tensor([0, 1, 2]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(tensor.grad is None for tensor in network.parameters())


def test_maps_are_scaled_by_their_own_largest_value() -> None:
    maps = torch.tensor([[[0.0, 4.0]], [[1e-9, 0.0]], [[0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(scaled(maps), expected)


def test_photos_are_seen_as_the_folds_saw_them(trained: fg.Run, tmp_path: Path) -> None:
    ingredients = trained.ingredients()
    test = trained.folds[1].test
    files = [trained.catalog.file(trained.catalog.photos[n]) for n in test]
    files.insert(2, tmp_path / "gone.jpg")
    activation = Activation(ingredients.architecture, "cpu")
    (weights,) = ingredients.fold_weights([1])
    predicted = trained.logits(1).argmax(axis=1)
    found = list(activation.heats(weights, files, np.insert(predicted, 2, 0).tolist()))
    assert [heat.photo for heat in found] == [n for n in range(len(files)) if n != 2]
    size = trained.recipe.size
    for heat in found:
        assert heat.pixels.shape == (size, size, 3)
        assert heat.heat.min() >= 0 and heat.heat.max() in (0, 1)
    logits = [activation.network(_ready(trained, heat.pixels)).detach()[0] for heat in found]
    np.testing.assert_allclose(torch.stack(logits).numpy(), trained.logits(1), rtol=1e-3, atol=1e-4)


def _ready(run: fg.Run, pixels: np.ndarray) -> Tensor:
    from fieldguide.photos.augment import normalise

    assert run.recipe.mean != "auto" and run.recipe.std != "auto"
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    return normalise(image, run.recipe.mean, run.recipe.std)
