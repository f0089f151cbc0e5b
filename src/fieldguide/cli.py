"""The command line: parses, calls the library, prints, and turns errors into exit codes.

Data go to stdout, messages to stderr. torch is imported by the commands that need it, after
everything that can be checked without it, so that help, typing mistakes and bad settings are
answered at once.
"""

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fieldguide import recipe as recipes
from fieldguide.backbones import require_backbone
from fieldguide.display import Display, duration
from fieldguide.errors import DataError, FieldguideError, Stopped, UsageError
from fieldguide.recipe import Recipe

if TYPE_CHECKING:
    from fieldguide.catalog import Catalog
    from fieldguide.check import Facts, Finding
    from fieldguide.crossval import Plan, Watcher
    from fieldguide.runs import Run

stdout = Console(highlight=False, soft_wrap=True, markup=False)
stderr = Console(stderr=True, highlight=False, markup=False)

DEMO_PHOTOS_EACH = 60

app = App(
    name="fieldguide",
    help="Turn a folder of photographs into an image classifier you can trust.",
    version=lambda: metadata.version("fieldguide"),
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)


def _settings_model() -> type[BaseModel]:
    """Every field of `Recipe` as a flag that may be left out. `Recipe` itself checks bounds."""
    sections = {name: recipes.section_of(name) for name in Recipe.model_fields}
    order = list(dict.fromkeys(sections.values()))
    groups = {name: Group(name, sort_key=order.index(name)) for name in order}
    fields: dict[str, Any] = {
        name: (
            Annotated[_flag_type(name) | None, Parameter(group=groups[sections[name]])],
            Field(default=None, description=field.description),
        )
        for name, field in Recipe.model_fields.items()
    }
    return create_model("Settings", __config__=ConfigDict(frozen=True), **fields)


def _flag_type(name: str) -> Any:
    """What a flag is parsed as: its field's type, but several numbers or `auto` are text first."""
    return str if name in TEXT_FLAGS else Recipe.model_fields[name].annotation


TEXT_FLAGS = ("mean", "std")

Settings = _settings_model()
Flags = Annotated[Settings, Parameter(name="*")]  # type: ignore[valid-type]


@dataclass(frozen=True)
class Columns:
    """How to read PHOTOS where it is a table; the usual column names are found by themselves.

    Parameters
    ----------
    path_column
        Column of the photos' paths.
    label_column
        Column of the labels.
    group_column
        Column of groups (specimen, site, day) that no fold may split.
    split_column
        Column of train, val and test.
    fold_column
        Column of folds to be used as they are.
    root
        Folder that the paths start from, if not the table's own.
    encoding
        Of the table's text, if not UTF-8 or UTF-16.
    """

    path_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    fold_column: str | None = None
    root: Path | None = None
    encoding: str | None = None

    def read(self, photos: Path) -> "Catalog":
        """The catalog of a folder or table."""
        from fieldguide import catalog

        return catalog.read(
            photos,
            path=self.path_column,
            label=self.label_column,
            group=self.group_column,
            split=self.split_column,
            fold=self.fold_column,
            root=self.root,
            encoding=self.encoding,
        )


TableFlags = Annotated[Columns, Parameter(name="*", group=Group("Tables", sort_key=90))]


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
    with Display(stderr) as display:
        display.begin("checking photos", len(catalog))
        facts = checks.inspect(catalog, truncated=truncated, progress=display.reach)
    found = checks.findings(catalog, facts, folds=folds)
    if csv is not None:
        checks.write_findings(csv, found)
    _print_collection(catalog, facts)
    _print_findings(found, csv)
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
    _print_scores(_fit(columns.read(photos), chosen, out, fold=fold, force=force))


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
    _print_scores(run)
    stdout.print("\nnext:")
    for command in (
        f"fieldguide score {run_folder}",
        f"fieldguide check {photos}",
        "fieldguide fit YOUR-PHOTOS --out YOUR-RUN --recipe quick",
    ):
        stdout.print(f"  {command}")


@app.command
def score(run: Path) -> None:
    """Out-of-fold scores of a run, over the folds that are done.

    Parameters
    ----------
    run
        A run's folder.
    """
    from fieldguide.runs import Run

    _print_scores(Run(run))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code, with errors told on stderr."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        if isinstance(error.__cause__, ValidationError):
            return _tell(recipes.usage_error(error.__cause__))
        return _tell(UsageError(str(error), hint="--help lists what there is"))
    except FieldguideError as error:
        return _tell(error)
    except KeyboardInterrupt:
        return _tell(Stopped(signal.SIGINT, "stopped at once"))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def _tell(error: FieldguideError) -> int:
    stderr.print(f"error: {error}", soft_wrap=True)
    return error.exit_code


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
    with Display(stderr) as display:
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
        with Display(stderr) as display:
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


def _print_collection(catalog: "Catalog", facts: "Sequence[Facts]") -> None:
    table = Table("part", "photos", "classes", "fewest", "median", "most", box=None)
    for split in ("train", "val", "test"):
        part = catalog.part(split)
        if part.photos:
            counts = sorted(Counter(p.label for p in part.photos if p.label is not None).values())
            few, middle, most = (
                (str(counts[0]), str(counts[len(counts) // 2]), str(counts[-1]))
                if counts
                else ("–", "–", "–")
            )
            table.add_row(split, f"{len(part):,}", str(len(counts) or "–"), few, middle, most)
    stdout.print(table)
    sides = sorted(min(fact.width, fact.height) for fact in facts if not fact.problem)
    if sides:
        stdout.print(
            f"shorter side: {sides[0]} to {sides[-1]} pixels, median {sides[len(sides) // 2]}"
        )


def _print_findings(found: "Sequence[Finding]", csv: Path | None) -> None:
    if not found:
        stdout.print("nothing was found that would disturb a fit")
        return
    table = Table("found", "times", "stops a fit", "such as", box=None)
    for kind in dict.fromkeys(finding.kind for finding in found):
        alike = [finding for finding in found if finding.kind == kind]
        first = alike[0]
        example = f"{first.path}: {first.message}" if first.path else first.message
        stops = "yes" if any(finding.fatal for finding in alike) else "no"
        table.add_row(kind, str(len(alike)), stops, Text(example))
    stdout.print(table)
    if csv is None:
        stdout.print("--csv FILE lists them all")


def _print_scores(run: "Run") -> None:
    scores = run.scores
    low, high = scores.interval
    done = len(scores.accuracy_per_fold)
    part = "" if done == run.recipe.folds else f" ({done} of {run.recipe.folds} folds done)"
    stdout.print(
        f"out-of-fold accuracy {scores.accuracy:.1%}, 95 % interval {low:.1%} to {high:.1%}{part}"
    )
    table = Table("score", "value", box=None)
    for fold, accuracy in scores.accuracy_per_fold.items():
        table.add_row(f"accuracy of fold {fold}", f"{accuracy:.1%}")
    if scores.selected_accuracy is not None:
        table.add_row("accuracy at selected epochs (flatters)", f"{scores.selected_accuracy:.1%}")
    table.add_row("balanced accuracy", f"{scores.balanced_accuracy:.1%}")
    table.add_row("macro F1", f"{scores.macro_f1:.1%}")
    table.add_row("log loss", f"{scores.log_loss:.3f}")
    table.add_row("calibration error", f"{scores.calibration_error:.3f}")
    table.add_row("photos", f"{scores.photos:,}")
    stdout.print(table)
    stdout.print(f"training took {duration(run.seconds)}; everything is in {run.folder}")
