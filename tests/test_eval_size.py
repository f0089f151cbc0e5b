"""Photos may be evaluated and predicted at another size than they are trained at."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import small_fit, small_recipe

from fieldguide import recipe as recipes
from fieldguide.analysis import metrics
from fieldguide.errors import UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.settings import resolve
from fieldguide.network.network import build_backbone
from fieldguide.predict.model import Machine


def test_photos_are_judged_and_predicted_at_their_own_size(discs: Path, tmp_path: Path) -> None:
    own = {"eval_size": 64, "eval_resize": 70}
    told: list[str] = []
    run = small_fit(discs, tmp_path / "run", epochs=2, watcher=Watcher(notice=told.append), **own)
    assert any("a prediction takes 4.0 times as long" in each for each in told)
    model = run.classifier(0)
    assert model.card.architecture.size == 64
    tested = [run.catalog.file(run.catalog.photos[row]) for row in run.folds[0].test]
    found = model.predict(tested, calibrated=False, machine=Machine(device="cpu"))
    expected = metrics.softmax(run.logits(0))
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    usual = small_fit(discs, tmp_path / "usual", epochs=2)
    assert np.abs(metrics.softmax(usual.logits(0)) - expected).max() > 1e-3
    # A run from before this setting was judged at the size of its training.
    text = (usual.folder / "recipe.toml").read_text()
    older = tmp_path / "older.toml"
    older.write_text(re.sub("^eval_size.*\n", "", text, flags=re.MULTILINE))
    assert recipes.load_resolved(older) == usual.recipe
    older.write_text(text + f"first_size = {usual.recipe.size}\n")  # when pictures could grow
    assert recipes.load_resolved(older) == usual.recipe
    older.write_text(text + "first_size = 31\n")
    with pytest.raises(UsageError, match="first_size"):
        recipes.load_resolved(older)


@pytest.mark.parametrize(
    ("settings", "sides"),
    [
        ({}, (96, 101)),
        ({"eval_size": 128}, (128, 134)),
        ({"size": 64, "eval_resize": 80}, (64, 80)),
        ({"size": 64, "eval_size": 80}, (80, 84)),
        ({"size": 64, "eval_size": 48, "eval_resize": 48}, (48, 48)),
    ],
)
def test_photos_are_judged_as_trained_on_unless_a_recipe_says_how(
    settings: dict[str, Any], sides: tuple[int, int]
) -> None:
    body = build_backbone("test_resnet", weights="none", seed=0)
    recipe = small_recipe(**{"size": 96, "eval_resize": "auto"} | settings)
    found = resolve(recipe, body)
    assert (found.eval_size, found.eval_resize) == sides
