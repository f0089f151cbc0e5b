"""How long a fit is: least steps, batches of small folds, and mixing that needs time."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer
from fits import flags, small_fit

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.settings import lengthened
from fieldguide.recipe import MIX_FROM, Recipe
from fieldguide.train.job import replica_steps


@pytest.mark.parametrize(
    ("photos", "batch", "epochs"),
    [(159, 19, 23), (40, 8, 40), (1000, 64, 13), (3573, 64, 8), (100_000, 64, 8)],
)
def test_small_folds_have_smaller_batches_and_more_epochs(
    photos: int, batch: int, epochs: int
) -> None:
    found = lengthened(recipes.load("quick"), photos, "none")
    assert (found.batch_size, found.epochs) == (batch, epochs)
    assert epochs * replica_steps(found, photos)[0] >= found.min_steps == 200


def test_a_length_that_is_given_is_the_length() -> None:
    assert Recipe().min_steps > 0 and recipes.load("quick").min_steps > 0
    for asked in ({"epochs": 3}, {"batch_size": 32}):
        for recipe in (Recipe(**asked), recipes.load("quick").replace(**asked)):
            assert recipe.min_steps == 0 and lengthened(recipe, 100, "none") == recipe
    assert Recipe(epochs=3, min_steps=50).min_steps == 50
    assert recipes.load("demo").min_steps == recipes.load("reference").min_steps == 0


def test_a_short_fit_does_not_mix() -> None:
    short = lengthened(Recipe(epochs=MIX_FROM - 1), 1000, "auto")
    long = lengthened(Recipe(epochs=MIX_FROM), 1000, "auto")
    assert (short.mix, long.mix) == ("none", "cutmix")
    assert lengthened(Recipe(epochs=1, mix="mixup"), 1000, "mixup").mix == "mixup"
    assert lengthened(Recipe(epochs=90, batch_size=1), 1000, "auto").mix == "none"


def test_a_fit_of_few_photos_is_made_longer_and_resumes(discs: Path, tmp_path: Path) -> None:
    told: list[str] = []
    asked = {"epochs": 1, "batch_size": 64, "min_steps": 6, "replicas": 1, "merge": "none"}
    asked |= {"mix": "auto"}
    watcher = Watcher(notice=told.append)
    run = small_fit(discs, tmp_path / "run", watcher=watcher, **asked)
    assert (run.recipe.epochs, run.recipe.batch_size, run.recipe.mix) == (3, 8, "none")
    assert any("few photos: batches of 8 and 3 epochs instead of 64 and 1" in t for t in told)
    assert small_fit(discs, tmp_path / "run", **asked).complete
    with pytest.raises(fg.FieldguideError, match="epochs"):
        small_fit(discs, tmp_path / "run", **{**asked, "epochs": 4})


def test_flags_of_length_win_over_the_recipes(
    discs: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    given = {"epochs": 1, "batch_size": 8, "replicas": 1, "merge": "none", "mix": "none"}
    asked = ("fit", discs, "--recipe", "quick", *flags(**given), "--no-instant")
    assert command(*asked, "--out", tmp_path / "run").code == 0
    assert fg.Run(tmp_path / "run").recipe.epochs == 1


@pytest.mark.parametrize(
    ("head", "start", "rate"), [("linear", "probe", 1e-4), ("se", "random", 1e-3)]
)
def test_a_linear_head_is_fitted_where_the_recipe_leaves_it_open(
    discs: Path, tmp_path: Path, head: str, start: str, rate: float
) -> None:
    asked = {"head": head, "head_start": "auto", "head_rate": "auto", "epochs": 1, "replicas": 1}
    run = small_fit(discs, tmp_path / "run", merge="none", **asked)
    assert (run.recipe.head_start, run.recipe.head_rate) == (start, rate)
    assert bool(run.probed) == (start == "probe")


def test_a_regression_that_takes_long_is_not_made_unasked(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldguide.fitting.start.MOST_TO_BEAT", 10)
    asked = {"head_start": "auto", "head_rate": "auto", "epochs": 1, "replicas": 1}
    told: list[str] = []
    run = small_fit(
        discs, tmp_path / "run", watcher=Watcher(notice=told.append), merge="none", **asked
    )
    assert (run.recipe.head_start, run.recipe.head_rate) == ("random", 1e-3)
    assert any("heads start from a draw" in each for each in told)


def test_a_run_from_before_heads_were_fitted_is_read(discs: Path, tmp_path: Path) -> None:
    run = small_fit(discs, tmp_path / "run", epochs=1, replicas=1, merge="none")
    kept = recipes.to_toml(run.recipe).splitlines()
    older = [line for line in kept if not line.startswith(("head_start", "min_steps"))]
    (tmp_path / "older.toml").write_text("\n".join(older))
    assert recipes.load_resolved(tmp_path / "older.toml") == run.recipe
