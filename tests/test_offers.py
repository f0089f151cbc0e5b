"""What timm offers: sizes and licences as timm has them, kept in the cache."""

import json
from pathlib import Path

import pytest
import timm
import torch

from fieldguide.network import offers
from fieldguide.network.backbones import SELECTION
from fieldguide.network.feature_map import output_channels
from fieldguide.network.network import drawn
from fieldguide.recipe import RECIPES, Recipe


@pytest.mark.parametrize("name", SELECTION)
def test_the_selection_can_be_used_and_says_what_timm_says(name: str) -> None:
    with torch.device("meta"):
        assert output_channels(drawn(name, "linear")) > 0
    offer, config = offers.of(name), timm.get_pretrained_cfg(name)
    assert config is not None
    assert offer.weights and not offer.refused
    assert offer.license == config.license
    assert offer.size == config.input_size[1]


def test_the_recipes_backbones_are_in_the_selection() -> None:
    assert {Recipe().backbone, RECIPES["quick"][1]["backbone"]} <= SELECTION.keys()


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("test_resnet.r160_in1k", ""),
        ("test_convnext.r160_in1k", ""),
        ("test_vit.r160_in1k", "ends in no feature map"),
    ],
)
def test_whether_it_can_be_used_is_found_by_building_it(name: str, refused: str) -> None:
    offer = offers.of(name)
    assert bool(offer.refused) == bool(refused) and refused in offer.refused
    own = timm.create_model(name.partition(".")[0], num_classes=0)
    assert offer.parameters == sum(tensor.numel() for tensor in own.parameters())


def test_a_licence_that_timm_does_not_know_is_unknown() -> None:
    names = (name for name in timm.list_pretrained("*resnet*") if "." in name)
    name = next(n for n in names if not timm.get_pretrained_cfg(n).license)
    assert offers.of(name).license == "unknown"


def test_names_are_found_by_a_part_or_a_pattern() -> None:
    assert "convnext_tiny.in12k_ft_in1k" in offers.matching("convnext_tiny")
    found = offers.matching("test_*net.*")
    assert "test_resnet.r160_in1k" in found and "test_vit.r160_in1k" not in found
    assert not offers.matching("no such network")


def test_what_was_asked_once_is_kept_and_what_is_broken_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, asked = ["test_resnet.r160_in1k"], []
    first = offers.look_up(names, tmp_path)
    (file,) = tmp_path.glob("backbones-*.json")
    assert json.loads(file.read_bytes())[names[0]]["license"] == first[0].license

    def of(name: str) -> offers.Offer:
        asked.append(name)
        return first[0]

    monkeypatch.setattr(offers, "of", of)
    assert offers.look_up(names, tmp_path) == first and not asked
    file.write_text("{")
    assert offers.look_up(names, tmp_path) == first and asked == names
    assert offers.look_up(names, None) == first and asked == 2 * names
