"""Commands from photographs to a run: check, fit, demo, recipe."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from fieldguide import recipe as recipes
from fieldguide.backbones import require_backbone
from fieldguide.cli import tables, terminal
from fieldguide.cli.app import app
from fieldguide.cli.flags import TEXT_FLAGS, Columns, Flags, TableFlags
from fieldguide.display import Display
from fieldguide.errors import DataError, Stopped, UsageError
from fieldguide.recipe import Recipe

if TYPE_CHECKING:
    from fieldguide.catalog import Catalog
    from fieldguide.crossval import Plan, Watcher
    from fieldguide.runs import Run

DEMO_PHOTOS_EACH = 60


@app.command
def check(
    photos: Path,
    *,
    csv: Path | None = None,
    strict: bool = False,
    folds: int = 5,
    truncated: Literal["refuse", "keep"] = "refuse",
    columns: TableFlags = Columns(),
) -> None:
    """What would be trained on, and what is wrong with it.

    Ends with exit code 3 where a fit would fail, or with --strict where anything was found.

    Parameters
    ----------
    photos
        A folder with one folder a class, or with train, val and test, or a CSV table.
    csv
        Write every finding to this file.
    strict
        Fail on any finding.
    folds
        The number of folds that must be possible.
    truncated
        Photos cut short: leave them out, or use what can be read.
    """
    from fieldguide import check as checks

    catalog = columns.read(photos)
    with Display(terminal.stderr) as display:
        display.begin("checking photos", len(catalog))
        facts = checks.inspect(catalog, truncated=truncated, progress=display.reach)
    found = checks.findings(catalog, facts, folds=folds)
    if csv is not None:
        checks.write_findings(csv, found)
    tables.print_collection(terminal.stdout, catalog, facts)
    tables.print_findings(terminal.stdout, found, csv)
    if any(finding.fatal for finding in found) or (strict and found):
        raise SystemExit(DataError.exit_code)


@app.command
def fit(
    photos: Path,
    *,
    out: Path,
    recipe: str = "default",
    fold: int | None = None,
    force: bool = False,
    columns: TableFlags = Columns(),
    settings: Flags | None = None,
) -> None:
    """Train cross-validated, merged networks on PHOTOS; the same command again goes on.

    Parameters
    ----------
    photos
        A folder with one folder a class, or with train, val and test, or a CSV table.
    out
        The run's folder: new, or that of the run to go on with.
    recipe
        A named recipe or a .toml file; `fieldguide recipe` prints them.
    fold
        Train this fold alone (0, 1, …).
    force
        Go on although the version of torch has changed.
    """
    chosen = _recipe(recipe, settings)
    _require_weights(chosen, out)
    if photos.is_dir() and out.resolve().is_relative_to(photos.resolve()):
        raise UsageError(
            f"the run `{out}` would lie among the photos in `{photos}`",
            hint="name a folder beside them with --out",
        )
    tables.print_scores(
        terminal.stdout, _fit(columns.read(photos), chosen, out, fold=fold, force=force)
    )


@app.command
def demo(*, out: Path = Path("fieldguide-demo"), settings: Flags | None = None) -> None:
    """Draw a small collection of flowers, butterflies and birds, and fit it: needs no network.

    Parameters
    ----------
    out
        Folder for the collection (OUT/photos) and its run (OUT/run).
    """
    from fieldguide.catalog import scan

    chosen = _recipe("demo", settings)
    photos, run_folder = out / "photos", out / "run"
    if not photos.exists():
        _draw(photos)
    run = _fit(scan(photos), chosen, run_folder)
    tables.print_scores(terminal.stdout, run)
    terminal.stdout.print("\nnext:")
    for command in (
        f"fieldguide predict {run_folder} {photos} --out predictions.csv",
        f"fieldguide labels {run_folder}",
        f"fieldguide check {photos}",
        "fieldguide fit YOUR-PHOTOS --out YOUR-RUN --recipe quick",
    ):
        terminal.stdout.print(f"  {command}")


@app.command
def recipe(name: str = "default") -> None:
    """Print a recipe as commented TOML.

    Parameters
    ----------
    name
        default, quick, demo, reference, or a .toml file.
    """
    chosen = recipes.load(name)
    title = f"{name}: {recipes.RECIPES[name][0]}" if name in recipes.RECIPES else name
    print(recipes.to_toml(chosen, comments=True, title=title), end="")


def _fit(
    catalog: "Catalog",
    recipe: Recipe,
    folder: Path,
    *,
    fold: int | None = None,
    force: bool = False,
) -> "Run":
    """A fit with progress on the terminal."""
    with _watching() as watcher:
        from fieldguide.crossval import fit

        return fit(
            catalog, recipe, folder, fold=fold, force=force, command=sys.argv, watcher=watcher()
        )


def _draw(folder: Path) -> None:
    """Draws the demo's collection; a drawing that was interrupted is begun anew."""
    from fieldguide import demo

    begun = folder.with_name(f"{folder.name}.begun")
    shutil.rmtree(begun, ignore_errors=True)
    with Display(terminal.stderr) as display:
        display.begin("drawing specimens", DEMO_PHOTOS_EACH * len(demo.SPECIES))
        demo.draw_collection(begun, photos_each=DEMO_PHOTOS_EACH, progress=display.reach)
    begun.rename(folder)


def _recipe(name: str, settings: BaseModel | None) -> Recipe:
    """The named recipe, over it the environment, over it the flags; checked without torch."""
    recipes.load(name)  # its own mistakes are told with its name
    flags = settings.model_dump(exclude_none=True) if settings else {}
    flags |= {name: recipes.from_text(name, flags[name]) for name in TEXT_FLAGS if name in flags}
    chosen = recipes.build(recipes.settings_of(name) | recipes.from_environment(os.environ) | flags)
    require_backbone(chosen.backbone)
    return chosen


def _require_weights(recipe: Recipe, folder: Path) -> None:
    """Refuses a weights file that is not there, where no run holds its content yet."""
    named = recipe.weights not in {"pretrained", "none"}
    if named and not Path(recipe.weights).is_file() and not (folder / "setup.json").is_file():
        raise UsageError(f"`weights` = {recipe.weights!r}: there is no such file")


@contextmanager
def _watching() -> "Iterator[Callable[[], Watcher]]":
    """A display and signal handlers while a fit runs, and the maker of what ties them to it.

    The first SIGINT or SIGTERM asks for a checkpoint and an orderly end, the second ends at once.
    """
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)

    def check_stop() -> None:
        if asked:
            raise Stopped(asked[0])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Display(terminal.stderr) as display:
            yield lambda: _watcher(display, check_stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watcher(display: Display, check_stop: "Callable[[], None]") -> "Watcher":
    from fieldguide.crossval import Watcher

    def on_plan(plan: "Plan") -> None:
        recipe = plan.recipe
        display.begin(
            f"training {len(plan.folds)} folds × {recipe.replicas} replicas"
            f" × {recipe.epochs} epochs",
            plan.steps,
        )

    def on_check(photos: int) -> None:
        display.reach(photos)
        check_stop()

    def on_row(row: dict[str, Any]) -> None:
        display.row(row)
        if row["model"] == "merged":  # the first time, all that an epoch consists of was done once
            display.forecast()

    return Watcher(
        on_check=on_check,
        on_checking=lambda photos: display.begin("checking photos", photos),
        on_plan=on_plan,
        on_resume=display.skip,
        on_step=display.advance,
        on_row=on_row,
        notice=display.notice,
        check_stop=check_stop,
    )
