"""Backbones tried on photos: the numbers of recipe `instant`, on one sample and the same folds."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.cli import run
from fieldguide.cli.choosing import candidates
from fieldguide.errors import ResourceError, UsageError
from fieldguide.fitting.fit import fit
from fieldguide.fitting.progress import Watcher
from fieldguide.network.backbones import SELECTION
from fieldguide.network.network import build, build_backbone
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.study.ranking import Candidate, kept_bytes, rank, sample

SMALL = {"size": 32, "eval_resize": 36, "folds": 2, "precision": "float32", "device": "cpu"}
TINY = ["--size=32", "--eval-resize=36", "--folds=2", "--precision=float32", "--device=cpu"]


def instant(**settings: object) -> fg.Recipe:
    return recipes.build(recipes.settings_of("instant") | SMALL | settings)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "w.safetensors"
    save_file(build_backbone("test_resnet", weights="none", seed=3).state_dict(), file)
    return file


def test_accuracies_are_those_of_recipe_instant_and_bad_candidates_do_not_stop_it(
    discs: Path, weights: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    tried = [
        Candidate("test_convnext", "none"),
        Candidate("resnet18"),  # no network in tests
        Candidate("test_resnet", str(weights)),
        Candidate("test_vit", "none"),
    ]
    found = rank(fg.scan(discs), tried, instant(), Watcher(notice=told.append))
    assert [row.backbone for row in found.rows[2:]] == ["resnet18", "test_vit"]
    assert "hub cannot be reached" in found.rows[2].note
    assert "ends in no feature map" in found.rows[3].note
    best, second = found.rows[:2]
    assert best.accuracy is not None and second.accuracy is not None and second.contrast
    assert best.accuracy >= second.accuracy and best.contrast is None
    assert second.contrast.difference == pytest.approx(second.accuracy - best.accuracy)
    for number in (0, 2):
        recipe = instant(backbone=tried[number].backbone, weights=tried[number].weights)
        run = fit(fg.scan(discs), recipe, tmp_path / str(number))
        (row,) = [row for row in found.rows if row.backbone == recipe.backbone]
        assert row.accuracy == run.scores.accuracy
        assert row.interval == run.scores.interval
        assert row.cost and row.cost.parameters and row.cost.predict > 0 and row.cost.train
    assert found.photos == found.collection == 24


def test_with_no_candidate_left_it_ends_with_all_reasons(discs: Path) -> None:
    tried = [Candidate("resnet18"), Candidate("test_vit", "none")]
    with pytest.raises(ResourceError) as caught:
        rank(fg.scan(discs), tried, instant(), Watcher())
    assert "  resnet18: the pretrained weights" in caught.value.message
    assert "  test_vit: `backbone`" in caught.value.message
    assert "--try resnet50=FILE" in caught.value.hint


def collection(sizes: dict[str, int]) -> Catalog:
    photos = [
        Photo(f"{label}/{n}.jpg", label) for label, size in sizes.items() for n in range(size)
    ]
    return Catalog(Path(), photos)


def test_a_sample_keeps_shares_and_small_classes_and_is_always_the_same() -> None:
    photos = collection({"a": 600, "b": 300, "c": 5, "d": 2})
    recipe = instant(folds=3, min_per_class=3)
    found = sample(photos, recipe, most=90)
    counts = Counter(photo.label for photo in found.photos)
    assert counts == {"a": 60, "b": 30, "c": 5}
    assert [p.path for p in sample(photos, recipe, most=90).photos] == [
        photo.path for photo in found.photos
    ]
    larger = {photo.path for photo in sample(photos, recipe, most=180).photos}
    assert {photo.path for photo in found.photos} <= larger
    assert sample(photos, recipe) is photos


def test_of_very_many_classes_some_are_drawn() -> None:
    found = sample(collection({f"c{n}": 10 for n in range(100)}), instant(folds=3), most=60)
    assert len(found.classes) == 10 and len(found) == 60


def test_what_a_step_keeps_grows_with_the_picture_and_is_no_weight() -> None:
    network = build("test_resnet", weights="none", head="linear", classes=3, dropout=0.0, seed=0)
    small, large = kept_bytes(network, 64), kept_bytes(network, 128)
    assert 3.9 < large / small < 4.1
    one = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    # The picture, and what ReLU made of the convolution: once.
    assert kept_bytes(one, 10) == 4 * (3 * 10 * 10 + 8 * 8 * 8)


def test_names_files_and_numbers_are_told_apart(weights: Path) -> None:
    assert candidates("2") == [(name, "pretrained") for name in [*SELECTION][:2]]
    found = candidates(f"test_resnet={weights}, resnet18,test_convnext=none")
    assert found == [
        ("test_resnet", str(weights)),
        ("resnet18", "pretrained"),
        ("test_convnext", "none"),
    ]


@pytest.mark.parametrize(
    ("tried", "message"),
    [
        ("0", "is not 1 to 12"),
        ("99", "is not 1 to 12"),
        ("resnet17", "no network of the installed timm"),
        ("resnet18,resnet18", "names `resnet18` twice"),
        ("resnet18=gone.safetensors", "there is no such file"),
    ],
)
def test_what_cannot_be_tried_is_said_at_once(tried: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        candidates(tried)


def test_the_command_prints_tables_or_one_object(
    discs: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = f"test_resnet={weights},test_convnext=none,resnet18"
    assert run(["backbones", str(discs), "--try", tried, *TINY]) == 0
    out = capsys.readouterr().out
    assert "on 24 photos of 3 classes, out of fold" in out
    assert "not tried: resnet18: the pretrained weights" in out
    assert "rank only roughly what fine-tuning gives" in out
    assert f"fieldguide fit {discs} --out RUN --backbone test_" in out
    assert run(["backbones", str(discs), "--try", tried, *TINY, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {row["backbone"] for row in record["rows"]} == {
        "test_resnet",
        "test_convnext",
        "resnet18",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing_like_it"], "no backbone has `nothing_like_it` in its name"),
        (["resnet18", "--size=64"], "--size is for ranking backbones on photos"),
        (["--try", "5"], "--try needs photos"),
        ([".", "--try", "5", "--epochs=3"], "--epochs is decided by --try"),
        (["."], "add --try 5"),
    ],
)
def test_the_command_answers_mistakes_with_hints(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["backbones", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_list_has_the_licence_and_says_why_a_network_is_refused(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["backbones", "test_resnet"]) == 0
    assert "test_resnet.r160_in1k" in (out := capsys.readouterr().out) and "apache-2.0" in out
    assert run(["backbones", "test_vit.r160_in1k"]) == 0
    assert "ends in no feature map" in capsys.readouterr().out
    assert run(["backbones", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["backbones"]
    assert [row["backbone"] for row in record] == [*SELECTION]
    assert all(row["good_for"] and row["license"] != "unknown" for row in record)
