"""The parts that training commands share: the recipe asked for, checks, progress, signals."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fieldguide import recipe as recipes
from fieldguide.cli import terminal
from fieldguide.cli.display import Display
from fieldguide.cli.flags import TEXT_FLAGS
from fieldguide.errors import Stopped, UsageError
from fieldguide.machine.torchrun import launch
from fieldguide.network.backbones import RESNETS, backbone_names, require_backbone
from fieldguide.recipe import Recipe
from fieldguide.words import count

if TYPE_CHECKING:
    from fieldguide.fitting.progress import Plan, Watcher

# Seconds in which signals count as one: a scheduler may reach a rank both itself and by torchrun.
SAME_SIGNAL = 1.0


def chosen_recipe(name: str, settings: BaseModel | None, older: Recipe | None = None) -> Recipe:
    """Return the named recipe with the environment and the flags over it, checked without torch.

    All of them are over the settings of an `older` run, where a new one goes on from it.
    """
    recipes.load(name)  # errors in it are reported with its name
    named, given = recipes.settings_of(name), given_settings(settings)
    if name in recipes.RECIPES:
        named = recipes.over(named, given)
    else:  # somebody's own file means what it says
        named |= recipes.without_min_steps(given)
    chosen = recipes.build(recipes.taken(older, named) if older else named)
    require_backbone(chosen.backbone)
    if name == "reference" and chosen.backbone not in backbone_names(RESNETS):
        raise UsageError(
            f"recipe `reference` is about the ResNet family, and `{chosen.backbone}` is none of it",
            hint="take another recipe: they all take any convolutional network of timm",
        )
    return chosen


def given_settings(settings: BaseModel | None) -> dict[str, Any]:
    """Return the settings of the environment and, over them, of the flags."""
    flags = settings.model_dump(exclude_none=True) if settings else {}
    flags |= {
        name: recipes.from_text(name, flags[name], called=f"--{name.replace('_', '-')}")
        for name in TEXT_FLAGS
        if name in flags
    }
    return recipes.from_environment(os.environ) | flags


def require_weights(recipe: Recipe, folder: Path) -> None:
    """Raise `UsageError` for a missing weights file, unless the run holds its content already."""
    named = recipe.weights not in {"pretrained", "none"}
    file, _ = recipes.weights_file(recipe.weights)
    if named and not file.is_file() and not (folder / "setup.json").is_file():
        raise UsageError(f"`weights` = {recipe.weights!r}: there is no such file")


def require_beside(folder: Path, photos: str) -> None:
    """Raise `UsageError` for a folder to write to that would lie among the photos."""
    place = Path(photos)
    if place.is_dir() and folder.resolve().is_relative_to(place.resolve()):
        raise UsageError(
            f"`{folder}` would lie among the photos in `{photos}`",
            hint="name a folder beside them with --out",
        )


@contextmanager
def watching(what: str = "") -> "Iterator[Callable[[], Watcher]]":
    """Yield a maker of watchers, with a display and signal handlers while the work goes on.

    `what` is the work, if it is no fit. The first SIGINT or SIGTERM asks for a checkpoint and an
    orderly end; a later one ends at once.
    """
    asked: list[tuple[int, float]] = []  # the first signal and its time

    def ask(number: int, _frame: FrameType | None) -> None:
        if not asked:
            asked.append((number, time.monotonic()))
        elif time.monotonic() - asked[0][1] > SAME_SIGNAL:
            os._exit(128 + number)

    def check_stop() -> None:
        if asked:
            raise Stopped(asked[0][0])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Display(terminal.stderr if launch().rank == 0 else terminal.silent) as display:
            yield lambda: _watcher(display, check_stop, what)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watcher(display: Display, check_stop: "Callable[[], None]", what: str) -> "Watcher":
    from fieldguide.fitting.progress import Watcher

    def on_plan(plan: "Plan") -> None:
        recipe = plan.recipe
        folds = count(len(plan.folds), "fold")
        replicas, epochs = count(recipe.replicas, "replica"), count(recipe.epochs, "epoch")
        training = f"training {folds} × {replicas} × {epochs}"
        if not recipe.epochs and plan.trials == 1:
            return
        if plan.trials > 1:
            training = f"training {plan.trials} trials: {folds}"
        display.begin(what or training, plan.steps)

    def on_check(photos: int) -> None:
        display.reach(photos)
        check_stop()

    def on_row(row: dict[str, Any]) -> None:
        display.row(row)
        if row["model"] == "merged" and row["epoch"]:  # the first of them ends a whole epoch
            display.forecast()

    return Watcher(
        on_check=on_check,
        on_checking=lambda photos: display.begin("checking photos", photos),
        on_features=lambda photos: display.begin("computing features of photos", photos),
        on_plan=on_plan,
        on_resume=display.skip,
        on_step=display.advance,
        on_row=on_row,
        notice=display.notice,
        check_stop=check_stop,
    )
