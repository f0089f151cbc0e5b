import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide import recipe as recipes
from fieldguide.errors import UsageError
from fieldguide.recipe import HARMLESS, RECIPES, Recipe, build, differences, from_environment, load

# The course report, setting by setting; what it leaves open is left at our defaults.
REFERENCE: dict[str, Any] = {
    "backbone": "resnest200e.in1k",
    "weights": "pretrained",
    "head": "linear",
    "backbone_rate": 1e-4,
    "head_rate": 1e-3,
    "weight_decay": 1e-5,
    "schedule": "constant",
    "warmup": 0.0,
    "precision": "auto",  # mixed where the hardware has it
    "batch_size": 64,
    "epochs": 40,
    "stop": "fold",
    "patience": 10,
    "watch_val": True,
    "size": 320,
    "eval_resize": 512,
    "flip": 0.5,
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "color_jitter": 0.8,
    "grayscale": 0.2,
    "augment": "none",
    "mix": "cutmix",
    "folds": 10,
    "seed": 111550159,
    "replicas": 2,
    "merge": "average",
    "merge_every": 1,
    "batch_norm": "average",
    "moments": "keep",
}


def refusal(**settings: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        build(settings)
    return caught.value


def refused_file(path: Path, text: str | bytes) -> UsageError:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UsageError) as caught:
        load(str(path))
    return caught.value


def test_an_unknown_setting_is_answered_with_the_nearest() -> None:
    error = refusal(bacth_size=32)
    assert error.message.startswith("there is no setting `bacth_size` (did you mean `batch_size`")
    assert error.hint == "`fieldguide recipe` prints every setting"
    assert error.exit_code == 2


def test_a_setting_like_no_other_is_refused_without_a_guess() -> None:
    assert refusal(xyzzy=1).message == "there is no setting `xyzzy`"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone_rate", -1.0),
        ("head_rate", 0.0),
        ("epochs", -1),
        ("folds", 1),
        ("size", 7),
        ("eval_resize", 15),
        ("batch_size", 0),
        ("accumulate", 0),
        ("replicas", 0),
        ("merge_every", 0),
        ("patience", 0),
        ("seed", -1),
        ("freeze", -1),
        ("workers", -1),
        ("dropout", 1.0),
        ("label_smoothing", 1.0),
        ("inner_share", 0.9),
        ("holdout", -0.1),
        ("holdout", 0.9),
        ("mix_alpha", 0.0),
        ("flip", 1.5),
        ("erasing", -0.1),
        ("weight_decay", -1e-9),
        ("checkpoint_minutes", 0.0),
    ],
)
def test_a_value_out_of_bounds_is_refused_and_shown(name: str, value: float) -> None:
    assert refusal(**{name: value}).message.startswith(f"`{name}` = {value!r}: should be ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_must_be_finite_also_in_a_tuple(value: float) -> None:
    assert refusal(flip=value).message == f"`flip` = {value}: should be a finite number"
    assert "`crop_scale` = " in refusal(crop_scale=[0.1, value]).message


def test_numbers_in_quotes_are_refused_with_the_way_out() -> None:
    error = refusal(backbone_rate="1e-3")
    assert error.message == "`backbone_rate` = '1e-3': should be a valid number"
    assert error.hint == "write numbers without quotes"
    assert refusal(jitter=["0.1", "0.1", "0.1", "0.1"]).hint == "write numbers without quotes"


def test_a_word_for_a_number_gets_no_hint_about_quotes() -> None:
    error = refusal(size="large")
    assert error.message == "`size` = 'large': should be a valid integer, or should be 'auto'"
    assert error.hint == ""


@pytest.mark.parametrize("value", [True, 64.0, [64], None])
def test_only_a_whole_number_is_a_batch_size(value: Any) -> None:
    assert "should be a valid integer" in refusal(batch_size=value).message


def test_a_whole_number_stands_for_a_share_but_not_for_yes() -> None:
    assert build({"flip": 1, "weight_decay": 0}).flip == 1.0
    assert "should be a valid boolean" in refusal(watch_val=1).message


def test_every_fault_is_told_at_once_and_where() -> None:
    with pytest.raises(UsageError) as caught:
        build({"epochs": -1, "folds": 1}, where="mine.toml")
    first, second = caught.value.message.splitlines()
    assert first.startswith("mine.toml: `folds` = 1")
    assert second.startswith("`epochs` = -1")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": 320, "eval_resize": 256}, ("`eval_resize` = 256", "`size` = 320")),
        ({"eval_size": 320, "eval_resize": 256}, ("`eval_resize` = 256", "`eval_size` = 320")),
        ({"crop_scale": [0.0, 1.0]}, ("`crop_scale` = [0.0, 1.0]",)),
        ({"crop_scale": [0.9, 0.5]}, ("`crop_scale` = [0.9, 0.5]",)),
        ({"crop_scale": [0.5, 1.1]}, ("`crop_scale` = [0.5, 1.1]",)),
        ({"jitter": [0.1, -0.1, 0.1, 0.1]}, ("`jitter`", "negative")),
        ({"jitter": [0.1, 0.1, 0.1, 0.6]}, ("`jitter`", "hue 0.6")),
        ({"mean": [123.0, 116.0, 103.0]}, ("`mean` = (123.0, 116.0, 103.0)",)),
        ({"mean": [-0.1, 0.5, 0.5]}, ("`mean`",)),
        ({"std": [0.2, 0.0, 0.2]}, ("`std` = (0.2, 0.0, 0.2)",)),
        ({"std": [58.0, 57.0, 57.0]}, ("`std`",)),
        ({"merge": "none", "replicas": 3}, ("`merge` = 'none'", "2 of `replicas` = 3")),
        ({"mix": "mixup", "batch_size": 1}, ("`mix` = 'mixup'", "`batch_size`")),
        ({"accumulate": 65, "batch_size": 64}, ("`accumulate` = 65", "`batch_size` = 64")),
        ({"epochs": 0}, ("`epochs` = 0", "`head_start` = 'probe'")),
        ({"epochs": 0, "head_start": "probe", "stop": "fold"}, ("`stop` = 'fold'", "`epochs` = 0")),
        ({"head": "se", "head_start": "probe"}, ("`head` = 'se'", "`head_start` = 'probe'")),
        ({"watch_val": True}, ("`watch_val`", "`stop` = 'none'")),
        ({"holdout": 0.1, "watch_val": True, "stop": "fold"}, ("`watch_val`", "`holdout`")),
        ({"warmup": 3.0, "epochs": 3}, ("`warmup` = 3.0", "`epochs` = 3")),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], named: tuple[str, ...]
) -> None:
    message = refusal(**settings).message
    assert all(part in message for part in named)


def test_settings_at_the_edge_agree() -> None:
    edge = {"size": 64, "eval_resize": 64, "accumulate": 4, "batch_size": 4, "std": [1.0, 1.0, 1.0]}
    assert build(edge | {"mean": [0.0, 0.0, 1.0]}).eval_resize == 64
    assert build({"merge": "none", "replicas": 1, "mix": "none", "batch_size": 1}).replicas == 1
    assert build({"holdout": 0.0, "watch_val": True, "stop": "fold"}).watch_val
    assert build({"holdout": 0.89, "stop": "fold"}).holdout == 0.89


def test_a_recipe_does_not_change_and_its_variants_are_checked() -> None:
    recipe = Recipe()
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 3  # type: ignore[misc]
    assert recipe.replace(epochs=3).epochs == 3
    assert recipe.epochs == 20
    with pytest.raises(UsageError, match="`epochs` = 0"):
        recipe.replace(epochs=0)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("comments", [True, False])
def test_a_named_recipe_survives_its_file(name: str, comments: bool, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(recipes.to_toml(load(name), comments=comments, title=name), "utf-8")
    assert load(str(file)) == load(name)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(1e-300, 1e300), st.integers(0))
def test_any_value_survives_its_file(weights: str, rate: float, seed: int) -> None:
    recipe = Recipe(weights=weights, head_rate=rate, seed=seed)
    assert build(tomllib.loads(recipes.to_toml(recipe))) == recipe


def test_a_recipe_file_explains_every_setting_under_its_section() -> None:
    text = recipes.to_toml(Recipe(), comments=True)
    sections = dict.fromkeys(recipes.section_of(name) for name in Recipe.model_fields)
    assert [line[2:] for line in text.splitlines() if line.startswith("# ")] == list(sections)
    for name, field in Recipe.model_fields.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} = "))
        assert line.endswith(str(field.description))
    assert "linear | se | attention: linear layer" in text


@pytest.mark.parametrize("text", ["epochs = 3\nfolds = = 4\n", "epochs = 3\nfolds = 0x\n"])
def test_broken_toml_is_told_with_line_and_column(text: str, tmp_path: Path) -> None:
    error = refused_file(tmp_path / "mine.toml", text)
    assert f"recipe `{tmp_path / 'mine.toml'}` is not valid TOML: " in error.message
    assert "at line 2, column " in error.message


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbfepochs = 3\r\n")
    assert load(str(file)).epochs == 3


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    error = refused_file(tmp_path / "mine.toml", "epochs = 3".encode("utf-16"))
    assert "cannot be read" in error.message


def test_a_fault_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    assert refused_file(file, "epochs = 0").message.startswith(f"{file}: `epochs` = 0")
    assert f"`epoch` in {file} (did you mean `epochs`" in refused_file(file, "epoch = 1").message


def test_no_such_recipe_and_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe `refrence`") as caught:
        load("refrence")
    assert "did you mean `reference`?" in caught.value.hint
    with pytest.raises(UsageError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))


def test_the_settings_of_a_named_recipe_are_a_copy() -> None:
    recipes.settings_of("quick")["epochs"] = 99
    assert load("quick").epochs != 99


def test_environment_variables_become_values_of_the_right_kind() -> None:
    settings = from_environment(
        {
            "FIELDGUIDE_BATCH_SIZE": "32",
            "FIELDGUIDE_HEAD_RATE": "1e-3",
            "FIELDGUIDE_SIZE": "224",
            "FIELDGUIDE_EVAL_RESIZE": "auto",
            "FIELDGUIDE_KEEP_REPLICAS": "true",
            "FIELDGUIDE_JITTER": "0.1, 0.2 0.3,0.05",
            "FIELDGUIDE_MEAN": "auto",
            "FIELDGUIDE_HEAD": "se",
            "FIELDGUIDE_BACKBONE": "resnet18",
            "PATH": "elsewhere",
        }
    )
    assert settings == {
        "batch_size": 32,
        "head_rate": 1e-3,
        "size": 224,
        "eval_resize": "auto",
        "keep_replicas": True,
        "jitter": (0.1, 0.2, 0.3, 0.05),
        "mean": "auto",
        "head": "se",
        "backbone": "resnet18",
    }
    assert build(settings).jitter == (0.1, 0.2, 0.3, 0.05)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("BATCH_SIZE", "many", "should be a valid integer"),
        ("SIZE", "big", "should be 'auto'"),
        ("SIZE", "7", "greater than or equal to 32"),
        ("JITTER", "0.1 0.2", "has too few values"),
        ("HEAD", "lin", "should be 'linear', 'se' or 'attention'"),
        ("WATCH_VAL", "perhaps", "should be a valid boolean"),
    ],
)
def test_a_bad_environment_variable_is_named(name: str, value: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_environment({f"FIELDGUIDE_{name}": value})
    assert caught.value.message.startswith(f"FIELDGUIDE_{name} = {value!r}: ")
    assert reason in caught.value.message


def test_an_environment_variable_that_is_no_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"`batchsize` in the environment .*`batch_size`"):
        from_environment({"FIELDGUIDE_BATCHSIZE": "3"})


def test_a_recipe_does_not_differ_from_itself() -> None:
    assert differences(load("reference"), load("reference")) == {}


def test_differences_come_as_stored_and_asked() -> None:
    asked = Recipe(epochs=3, head="se")
    least = {"min_steps": (Recipe().min_steps, 0)}
    assert differences(asked, Recipe()) == {"epochs": (20, 3), "head": ("linear", "se")} | least


@pytest.mark.parametrize("name", ["quick", "instant", "demo", "reference"])
def test_a_size_that_is_given_leaves_none_that_follows_from_it(name: str) -> None:
    named = recipes.settings_of(name)
    for asked in ({"size": 600}, {"eval_size": 600}):
        assert build(recipes.over(named, asked)).eval_resize == "auto"
    assert recipes.over(named, {"size": 96, "eval_resize": 100})["eval_resize"] == 100
    for asked in ({"epochs": 9}, {"size": named["size"]}):  # nothing that matters has changed
        assert recipes.over(named, asked)["eval_resize"] == named["eval_resize"]


def test_what_is_asked_as_auto_agrees_with_anything() -> None:
    stored = Recipe(size=224, mean=(0.5, 0.5, 0.5), precision="float32")
    assert differences(Recipe(), stored) == {}
    assert set(differences(stored, Recipe())) == {"size", "mean", "precision"}


def test_settings_of_the_machine_do_not_matter() -> None:
    values = {
        "device": "cuda",
        "workers": 3,
        "checkpoint_minutes": 1.0,
        "track": "wandb",
        "cache": "elsewhere",
        "cache_gb": 2.5,
        "cluster": "local",
    }
    assert set(values) == HARMLESS
    assert differences(build(values), Recipe()) == {}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_recipe_is_the_report_setting_by_setting(name: str) -> None:
    assert getattr(load("reference"), name) == REFERENCE[name]


def test_the_default_recipe_is_the_defaults() -> None:
    assert load("default") == Recipe()


def test_zero_is_a_seed_like_any_other() -> None:
    assert Recipe().seed == 0
    assert differences(Recipe(seed=1), Recipe(seed=0)) == {"seed": (0, 1)}


@pytest.mark.parametrize(
    "module", ["fieldguide.recipe", "fieldguide.network.backbones", "fieldguide"]
)
def test_a_typing_mistake_is_answered_without_torch(module: str) -> None:
    work = {
        "fieldguide.recipe": "load('quick')",
        "fieldguide.network.backbones": "require_backbone('resnet18')",
        "fieldguide": "Recipe",
    }
    script = (
        f"import sys, {module} as module; module.{work[module]}\n"
        "print(*[name for name in ('torch', 'torchvision', 'timm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)
