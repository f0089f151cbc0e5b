import importlib.util
from collections.abc import Iterator

import pytest
import timm

from fieldguide.errors import ResourceError, UsageError
from fieldguide.network.backbones import RESNETS, backbone_names, require_backbone


@pytest.fixture
def forget() -> Iterator[None]:
    backbone_names.cache_clear()
    yield
    backbone_names.cache_clear()


def test_names_are_those_that_timm_itself_lists() -> None:
    plain = {name for name in backbone_names() if "." not in name}
    assert plain == set(timm.list_models())


def test_a_family_is_that_of_timms_modules() -> None:
    plain = {name for name in backbone_names(RESNETS) if "." not in name}
    assert plain == {name for module in RESNETS for name in timm.list_models(module=module)}


def test_tags_are_those_that_timm_itself_lists() -> None:
    tagged = {name for name in backbone_names(RESNETS) if "." in name}
    listed = {name for each in RESNETS for name in timm.list_models(module=each, pretrained=True)}
    assert {name for name in listed if "." in name} <= tagged
    assert all(timm.models.get_pretrained_cfg(name) is not None for name in tagged)


def test_names_are_sorted_and_none_comes_twice() -> None:
    assert list(backbone_names()) == sorted(set(backbone_names()))


@pytest.mark.parametrize(
    "name", ["resnet50", "resnext101_64x4d", "resnest200e.in1k", "resnetaa50d.sw_in12k_ft_in1k"]
)
def test_the_networks_of_the_recipes_are_there(name: str) -> None:
    require_backbone(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet5", "resnet50"),
        ("resnest200", "resnest200e"),
        ("ResNet50", "resnet50"),
        ("resnet18.a1_in2k", "resnet18.a1_in1k"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_backbone(name)
    assert caught.value.message.startswith(f"`backbone` = {name!r} is no network of")
    assert nearest in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["", "~~~~", "resnet18.", "resnet18\n"])
def test_another_network_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_backbone(name)
    assert caught.value.hint


@pytest.mark.usefixtures("forget")
def test_a_missing_timm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="timm is not installed"):
        require_backbone("resnet18")
