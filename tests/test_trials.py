from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fits import results, small_fit, small_recipe

from fieldguide import recipe as recipes
from fieldguide.compare.trials import Trial, parse_vary, reference, trials
from fieldguide.errors import UsageError

BASE = small_recipe(mix="none", replicas=1, merge="none", batch_norm="average")
ONE: dict[str, Any] = {"replicas": 1, "merge": "none"}


def names(found: Sequence[Trial]) -> list[str]:
    return [trial.name for trial in found]


def test_values_are_read_as_the_settings_types() -> None:
    found = parse_vary(
        ["mix=none,cutmix", "epochs = 2, 3", "crop-scale=0.08 1,0.35 1", "mix=mixup"]
    )
    assert found == {
        "mix": ["none", "cutmix", "mixup"],
        "epochs": [2, 3],
        "crop_scale": [(0.08, 1.0), (0.35, 1.0)],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixx=none", "there is no setting `mixx` in --vary (did you mean `mix`"),
        ("mix", "`--vary mix` names no values"),
        ("=none", "names no values"),
        ("mix=none,cutmixx", "--vary mix = 'cutmixx'"),
        ("epochs=two", "--vary epochs = 'two'"),
        ("folds=3,5", "`folds` cannot vary: all trials have the same photos"),
        ("mix=cutmix batch_size=1", "mix=cutmix, batch_size=1: "),
        ("mix=cutmix batch_size=1", "needs a `batch_size`"),
        ("backbone=resnet1800", "resnet1800"),
    ],
)
def test_what_cannot_vary_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        trials(BASE, parse_vary(text.split()))
    assert message in str(caught.value)


def test_what_follows_from_a_size_varies_with_it_and_is_told() -> None:
    base = recipes.load("quick")
    unchanged, smaller = trials(base, {"size": [128, 96]})
    assert unchanged.recipe == base and unchanged.name == "base"
    assert smaller.name == "size=96" and smaller.changes == {"size": 96, "eval_resize": "auto"}


def test_a_grid_has_every_combination_and_the_base_first() -> None:
    found = trials(BASE, {"mix": ["cutmix", "none"], "head": ["linear", "se"]})
    assert names(found) == ["base", "mix=cutmix", "mix=cutmix, head=se", "head=se"]
    both = {"mix": "cutmix", "head": "se"}
    changes = [{}, {"mix": "cutmix"}, both, {"head": "se"}]
    assert [trial.recipe for trial in found] == [BASE.replace(**each) for each in changes]
    assert found[2].changes == both
    assert trials(BASE, {}) == trials(BASE, {}, one_at_a_time=True) == [Trial("base", {}, BASE)]


def test_what_differs_in_name_only_is_one_trial() -> None:
    found = trials(BASE, {"mix_alpha": [0.5, 1.0], "mix": ["none", "cutmix"]})
    assert names(found) == ["base", "mix_alpha=0.5, mix=cutmix", "mix=cutmix"]
    assert found[0].twins == ("mix_alpha=0.5",)


def test_folders_are_plain_and_no_two_alike() -> None:
    values = ["a/b.pth", "a-b.pth", "A/b.pth", "../../x", "<script>\n", "é" * 300, "x" * 300]
    found = [Trial(f"weights={value}", {}, BASE) for value in values]
    found += trials(BASE, {"mix": ["cutmix"], "crop_scale": [(0.08, 1.0), (0.5, 1.0)]})
    folders = [trial.folder for trial in found]
    assert len({folder.lower() for folder in folders}) == len(folders)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for name in folders)
    assert all(0 < len(name) < 70 and name[0] not in ".-" for name in folders)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"mix": "none"}, {"mix_alpha": 3.0}),
        ({"stop": "none"}, {"patience": 9, "inner_share": 0.3}),
        ({"stop": "fold"}, {"inner_share": 0.3}),
        ({"color_jitter": 0.0}, {"jitter": (0.9, 0.9, 0.9, 0.1)}),
        ({}, {"device": "cpu", "workers": 3, "checkpoint_minutes": 1.0, "keep_replicas": True}),
        ({"merge": "average"}, {"anchor": "last_merge"}),
        (ONE, {"merge_every": 4, "batch_norm": "recalibrate"}),
        (ONE, {"moments": "average", "anchor": "last_merge"}),
        (ONE, {"merge": "average"}),
        ({"replicas": 1, "merge": "average"}, {"merge": "model_stock"}),
        (ONE, {"outer": "momentum", "replica_data": "share"}),
        ({"outer": "none"}, {"outer_rate": 0.1, "outer_momentum": 0.1}),
    ],
)
def test_settings_without_a_say_are_left_at_their_defaults(
    settings: dict[str, Any], changed: dict[str, Any]
) -> None:
    one = recipes.build(settings)
    other = one.replace(**changed)
    assert other != one
    assert recipes.effective(other) == recipes.effective(one)
    assert recipes.effective(recipes.effective(other)) == recipes.effective(other)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"mix": "cutmix"}, {"mix_alpha": 3.0}),
        ({"stop": "fold"}, {"patience": 9}),
        ({"merge": "model_stock", "replicas": 2}, {"anchor": "last_merge"}),
        ({"replicas": 1, "merge": "average"}, {"batch_norm": "recalibrate"}),
        (ONE | {"stop": "fold"}, {"merge_every": 4}),
        (ONE, {"moments": "reset"}),
        (ONE | {"moments": "reset"}, {"merge_every": 4}),
        ({}, {"seed": 1}),
        ({}, {"replicas": 3}),
        ({"replicas": 2}, {"replica_data": "share"}),
        ({"outer": "momentum"}, {"outer_rate": 0.1}),
        ({"replicas": 1, "merge": "average", "outer": "momentum"}, {"merge": "none"}),
    ],
)
def test_settings_with_a_say_stay(settings: dict[str, Any], changed: dict[str, Any]) -> None:
    one = recipes.build(settings)
    assert recipes.effective(one.replace(**changed)) != recipes.effective(one)


def test_recipes_of_one_effect_train_the_same_networks(discs: Path, tmp_path: Path) -> None:
    settings = {"replicas": 1, "batch_norm": "average", "mix": "none", "folds": 2}
    stock = {"merge": "model_stock", "merge_every": 2, "mix_alpha": 2.0}
    one = small_fit(discs, tmp_path / "one", merge="none", **settings)
    other = small_fit(discs, tmp_path / "other", **stock, **settings)
    assert recipes.effective(one.recipe) == recipes.effective(other.recipe)
    networks = [
        {name: data for name, data in results(run).items() if "merges" not in name}
        for run in (one, other)
    ]
    assert networks[0] == networks[1]


def test_the_preset_repeats_the_experiments_of_the_report() -> None:
    found = reference({})
    assert names(found) == [
        *("none", "randaugment", "mixup", "cutmix", "augmix", "head se", "head attention"),
        *("no crop", "one replica, twice the epochs", "merged once at the end"),
    ]
    base = found[0].recipe
    assert base == recipes.load("reference").replace(mix="none")
    assert [trial.recipe for trial in found] == [base.replace(**trial.changes) for trial in found]
    one = found[-2].recipe
    assert one.epochs * one.replicas == base.epochs * base.replicas


def test_the_preset_follows_what_is_given_for_all_trials() -> None:
    found = reference({"size": 96, "epochs": 4, "backbone": "resnet18", "folds": 3})
    given = {trial.name: trial.recipe for trial in found}
    assert {each.backbone for each in given.values()} == {"resnet18"}
    assert given["none"].eval_resize == round(96 * 512 / 320)
    assert given["no crop"].eval_resize == 96
    assert given["one replica, twice the epochs"].epochs == 8
    assert given["merged once at the end"].merge_every == 4
    assert reference({"size": 96, "eval_resize": 128})[0].recipe.eval_resize == 128
    with pytest.raises(UsageError, match="number of pixels"):
        reference({"size": "auto"})


def test_the_presets_base_is_the_experiment_that_it_is() -> None:
    found = reference({"mix": "cutmix", "epochs": 1})
    assert (found[0].name, found[0].changes) == ("cutmix", {})
    assert found[0].twins == ("merged once at the end",)
    assert "none" in names(found)
