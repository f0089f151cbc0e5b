"""The commands that show: report, similar, landscape, compare, preview, find-rate."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fieldguide.cli import fitting, flags, tables, terminal
from fieldguide.cli.app import app
from fieldguide.cli.display import Display
from fieldguide.cli.opening import open_run
from fieldguide.errors import UsageError
from fieldguide.storage import files
from fieldguide.words import count

LEAST_SWEEP_STEPS = 20  # fewer show no course of the loss: `find_rate` refuses them too


@app.command
def report(
    run: Path,
    *,
    out: Path | None = None,
    figures: Path | None = None,
    heat_maps: bool = True,
    taxonomy: Path | None = None,
    photos_root: flags.PhotosRoot = None,
) -> None:
    """Write the report of a run or a comparison as one page.

    The page needs no network.

    Parameters
    ----------
    run
        The folder of a run or of a comparison, finished or not.
    out
        The page to write, if not RUN/report.html, or compare.html in the comparison's folder.
    figures
        Also write charts as PNG and SVG into this folder, and a comparison's table.
    heat_maps
        Show where the networks looked; some photos pass through them again for that.
    taxonomy
        A table with the taxa of the classes (label, genus, family, …), which the run then keeps.
    """
    from fieldguide.report import build, comparison, save_figures, topics

    if (run / comparison.PREPARED).is_file():
        if photos_root is not None or not heat_maps or taxonomy:
            terminal.stderr.print(
                "a comparison shows no photos: --photos-root, --no-heat-maps and --taxonomy have no"
                " effect"
            )
        from fieldguide.compare import results  # brings torch

        found = results.rebuilt(run)
        terminal.stdout.print(f"the report is {comparison.write_page(found, run, out)}")
        drawn = results.save_figures(found, figures) if figures else []
    else:
        opened = open_run(run, photos_root)
        if taxonomy is not None:
            opened.set_taxonomy(taxonomy, terminal.tell)
        with Display(terminal.stderr) as display:
            display.begin("writing the report", len(topics()))
            page = build(opened, out, heat_maps=heat_maps, progress=display.reach)
        terminal.stdout.print(f"the report is {page}")
        drawn = save_figures(opened, figures) if figures else []
    for path in drawn:
        terminal.stdout.print(f"  {path}")


@app.command
def landscape(
    run: flags.RunFolder,
    *,
    fold: int = 0,
    between: Literal["replicas", "folds"] = "replicas",
    photos_root: flags.PhotosRoot = None,
    machine: flags.MachineFlags = flags.Computer(),
) -> None:
    """Measure loss and accuracy on the line between two networks.

    The report shows them.

    Parameters
    ----------
    fold
        The fold of the replicas, or the first of two folds.
    between
        The ends: two replicas of the fold (of a run with --keep-replicas), or two folds.
    """
    from fieldguide.study import landscape as landscapes

    machine.check()
    opened = open_run(run, photos_root)
    with Display(terminal.stderr) as display:
        display.begin("measuring along the line", len(landscapes.PLACES))
        found = landscapes.measure(
            opened, fold, between=between, machine=machine.chosen(), progress=display.reach
        )
    path = landscapes.write(opened, found)
    terminal.stdout.print(f"the landscape is in {path}; fieldguide report {run} draws it")


@app.command
def compare(
    photos: flags.Collection,
    *,
    out: Path,
    vary: list[str] | None = None,
    preset: Literal["reference"] | None = None,
    one_at_a_time: bool = False,
    seeds: int = 1,
    budget: float | None = None,
    recipe: str = "default",
    columns: flags.TableFlags = flags.Columns(),
    settings: flags.Flags | None = None,
) -> None:
    """Fit several recipes on the same folds and test differences.

    The same command again resumes and skips finished trials. OUT/compare.html shows the results.

    Parameters
    ----------
    out
        The comparison's folder: new, or that of the comparison to resume.
    vary
        A setting and its values, such as mix=none,cutmix; may be given several times.
    preset
        The course report's experiments, in place of --vary.
    one_at_a_time
        Vary each setting alone, in place of all combinations.
    seeds
        Train each trial with so many seeds, and test over photos and seeds; 3 are advised.
    budget
        The hours to spend; trials beyond them by the forecast are left out.
    recipe
        The recipe to vary: a name or a .toml file.
    """
    base = fitting.chosen_recipe(recipe, settings)
    fitting.require_beside(out, photos)
    if preset is None and not vary:
        raise UsageError("nothing to compare", hint="such as --vary mix=none,cutmix")
    if preset is not None and (vary or one_at_a_time or recipe != "default"):
        raise UsageError("--preset says what is compared: leave --vary and --recipe out")
    if budget is not None and budget <= 0:
        raise UsageError(f"--budget is not above 0 hours: {budget}")
    from fieldguide.compare import compare as compares  # brings torch
    from fieldguide.compare import trials

    tried = (
        trials.reference(fitting.given_settings(settings))
        if preset
        else trials.trials(base, trials.parse_vary(vary or []), one_at_a_time=one_at_a_time)
    )
    for trial in tried:
        fitting.require_weights(trial.recipe, out)
    catalog = columns.read(photos)
    with fitting.watching() as watcher:
        found = compares.compare(
            catalog,
            tried,
            out,
            seeds=seeds,
            budget_hours=budget,
            command=sys.argv,
            watcher=watcher(),
        )
    tables.print_comparison(terminal.stdout, found)
    terminal.stdout.print(f"the page is {out / 'compare.html'}")


@app.command
def preview(
    photos: flags.Collection,
    *,
    out: Path = Path("preview.png"),
    recipe: flags.RecipeName = "default",
    columns: flags.TableFlags = flags.Columns(),
    settings: flags.Flags | None = None,
) -> None:
    """Draw photos as a recipe augments and mixes them.

    Parameters
    ----------
    out
        The picture to write.
    """
    from fieldguide.predict import tables as prediction_tables

    chosen = fitting.chosen_recipe(recipe, settings)
    prediction_tables.require_free(out)
    if out.suffix.lower() != ".png":
        raise UsageError(f"the preview is a PNG picture: {out}", hint="call it preview.png")
    catalog = columns.read(photos)
    from fieldguide.study import preview as previews  # brings torch

    terminal.stdout.print(f"the preview is {previews.preview(catalog, chosen, out)}")


@app.command(name="find-rate")
def find_rate(
    photos: flags.Collection,
    *,
    out: Path,
    recipe: flags.RecipeName = "default",
    steps: Annotated[int, Parameter(name="--sweep-steps")] = 100,
    columns: flags.TableFlags = flags.Columns(),
    settings: flags.Flags | None = None,
) -> None:
    """Suggest learning rates for head and backbone by a range test.

    Parameters
    ----------
    out
        The new folder for the chart and the numbers.
    steps
        The steps of each sweep.
    """
    chosen = fitting.chosen_recipe(recipe, settings)
    files.require_new(out)
    fitting.require_beside(out, photos)
    if steps < LEAST_SWEEP_STEPS:
        raise UsageError(f"--sweep-steps is below {LEAST_SWEEP_STEPS}: {steps}")
    catalog = columns.read(photos)
    from fieldguide.study import find_rate as rates  # brings torch

    with fitting.watching(what="sweeping rates") as watcher:
        found = rates.find_rate(catalog, chosen, steps=steps, watcher=watcher())
    rates.write(found, out)
    for line in rates.advice(found):
        terminal.stdout.print(line)
    terminal.stdout.print(f"the chart is {out / 'rates.html'}")


@app.command
def similar(
    run: flags.RunFolder,
    photos: Annotated[list[str], Parameter(help="Photos, folders, tables or lists of them.")],
    *,
    top: int = 5,
    out: Path | None = None,
    photos_root: flags.PhotosRoot = None,
    boxes: Path | None = None,
    machine: flags.MachineFlags = flags.Computer(),
) -> None:
    """Show the training photos that look most like a photo.

    They are compared by what the soup of the folds sees in them, by the cosine between features: 1
    is the same. The first call takes a look at all training photos.

    Parameters
    ----------
    top
        The number of training photos for each.
    out
        The table to write instead.
    boxes
        The boxes of these photos, where the run was trained on crops.
    """
    machine.check()
    flags.refuse(
        [flag for flag in flags.given(machine) if flag == "--batch-size"],
        "for predictions: features are computed in batches of a fixed size",
    )
    if top < 1:
        raise UsageError(f"--top is below 1: {top}")
    if out is not None:
        files.require_new(out)
    opened = open_run(run, photos_root)
    opened.require_complete()
    from fieldguide.fitting.progress import Watcher  # brings torch
    from fieldguide.study import similar as alike

    with Display(terminal.stderr) as display:
        watcher = Watcher(
            on_features=lambda n: display.begin("looking at photos", n),
            on_check=display.reach,
            notice=display.notice,
        )
        found = alike.similar(
            opened, photos, top=top, boxes=boxes, machine=machine.chosen(), watcher=watcher
        )
    lost = [each for each in found if each.problem]
    for each in lost:
        terminal.tell(f"{terminal.cell(each.name)}: {each.problem}")
    if out is not None:
        alike.write(opened, found, out)
        more = f", {len(lost):,} of them unreadable" if lost else ""
        terminal.tell(f"{count(len(found), 'photo')}{more}: {out}")
        return
    for each in found:
        if each.likes:
            tables.print_similar(terminal.stdout, opened, each)
