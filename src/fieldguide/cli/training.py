"""The commands from photographs to a run: check, pack, fit, demo, recipe."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from fieldguide import recipe as recipes
from fieldguide.cli import tables, terminal
from fieldguide.cli.app import app
from fieldguide.cli.display import Display
from fieldguide.cli.fitting import chosen_recipe, require_beside, require_weights, watching
from fieldguide.cli.flags import (
    Collection,
    Columns,
    Flags,
    RecipeName,
    TableFlags,
    fetched,
    given,
    refuse,
)
from fieldguide.errors import DataError, FieldguideError, PhotosAway, TrainingError, UsageError
from fieldguide.machine.torchrun import launch
from fieldguide.recipe import Recipe
from fieldguide.storage import files, mirror
from fieldguide.words import count

if TYPE_CHECKING:
    from fieldguide.photos.catalog import Catalog
    from fieldguide.runs.run import Run

DEMO_PHOTOS_EACH = 60
_CHOOSE_COLUMNS = ("--group", "--label-column", "--split-column", "--fold-column")


@app.command
def check(
    photos: Collection,
    *,
    csv: Path | None = None,
    strict: bool = False,
    folds: int = 5,
    truncated: Literal["refuse", "keep"] | None = None,
    tone: str | None = None,
    no_data: float | Literal["tag"] | None = None,
    max_megapixels: int | None = None,
    near_duplicates: recipes.NearDuplicates = "group",
    columns: TableFlags = Columns(),
) -> None:
    """Check photos for problems before training.

    The exit code is 3 if a fit would fail, or with --strict if there are any findings.

    Parameters
    ----------
    csv
        Write every finding to this file.
    strict
        Fail on any finding.
    folds
        The number of folds that must be possible.
    truncated
        Leave truncated photos out (refuse), or use the part that can be read (keep).
    tone
        Pictures of more than 8 bits a channel are to become 8 bits by their whole range (full), the
        collection's own (percentile) or LOW,HIGH.
    no_data
        The value in them that means no data, besides what a TIFF's own tag says.
    max_megapixels
        Photos of more are left out.
    near_duplicates
        Photos that look alike stay in one fold (group), are reported alone (warn), or are not
        looked for (off).
    """
    from fieldguide.photos import check as checks
    from fieldguide.photos.inspect import inspect
    from fieldguide.photos.near_copies import FILES_LOOKED_FOR, LOOKED_FOR
    from fieldguide.photos.pixels import Reading

    settings = {
        "truncated": truncated,
        "tone": tone,
        "no_data": no_data,
        "max_megapixels": max_megapixels,
    }
    surroundings = recipes.from_environment(os.environ)
    asked = {name: surroundings.get(name) if v is None else v for name, v in settings.items()}
    reading = Reading.of(recipes.build({name: v for name, v in asked.items() if v is not None}))
    catalog = columns.read(photos)
    with Display(terminal.stderr) as display:
        display.begin("checking photos", len(catalog))
        facts = inspect(catalog, reading=reading, progress=display.reach)
    found = checks.findings(catalog, facts, folds=folds, near=near_duplicates)
    if csv is not None:
        checks.write_findings(csv, found)
    tables.print_collection(terminal.stdout, catalog, facts)
    tables.print_findings(terminal.stdout, found, csv)
    terminal.stdout.print(FILES_LOOKED_FOR if near_duplicates == "off" else LOOKED_FOR)
    if any(finding.fatal for finding in found) or (strict and found):
        raise SystemExit(DataError.exit_code)


@app.command
def table(photos: Collection, *, out: Path, columns: TableFlags = Columns()) -> None:
    """Write the plain table that PHOTOS become, to look at and to edit.

    It has a row for each photo, or with --crop box for each box. Of a known form it has all
    columns, which are chosen from when it is read; of others those that are used. Its paths start
    from the folder that it lies in, if the photos lie below it, and are whole otherwise; so every
    command reads it.

    Parameters
    ----------
    out
        The new file, such as table.csv.
    """
    if out.exists():
        raise UsageError(f"`{out}` is there already", hint="choose another --out")
    from fieldguide.photos import sources
    from fieldguide.photos.forms import known

    catalog = columns.read(photos)
    form = known.find(
        fetched(photos),
        columns.format,
        boxes=columns.crop is not None,
        event_gap=columns.event_gap,
    )
    idle = ["--boxes"] if form is None or columns.boxes else [*_CHOOSE_COLUMNS]
    idle += ["--crop"] if form is None or columns.crop != "box" else []
    refuse(
        [flag for flag in given(columns) if flag in idle],
        "without effect on this table",
        "give it when the table is read",
    )
    header, rows = sources.plain(catalog, form, out.parent.resolve())
    files.write_csv(out, header, rows)
    terminal.stdout.print(f"{len(rows):,} rows: {out}")


@app.command
def pack(
    photos: Collection,
    *,
    out: Path,
    shard_mb: float = 256,
    columns: TableFlags = Columns(),
) -> None:
    """Pack PHOTOS into a few large files that every command reads.

    This helps collections of many photos, and disks that are slow with small files. The files are
    WebDataset tar files. The same photos give the same bytes.

    Parameters
    ----------
    out
        The new folder to write.
    shard_mb
        The most megabytes of a file, unless one photo is larger.
    """
    if not shard_mb > 0:  # NaN too
        raise UsageError(f"--shard-mb is not above 0: {shard_mb}")
    require_beside(out, photos)
    from fieldguide.photos import pack as packing

    catalog, shard_bytes = columns.read(photos), round(1e6 * shard_mb)
    with Display(terminal.stderr) as display:
        display.begin("packing photos", len(catalog))
        packed = packing.pack(catalog, out, shard_bytes=shard_bytes, progress=display.reach)
        for path, reason in packed.left_out:
            display.notice(f"left out: {path}: {reason}")
    terminal.stdout.print(f"{packed.photos:,} photos in {count(packed.shards, 'shard')}: {out}")


@app.command
def fit(
    photos: Collection,
    *,
    out: str,
    recipe: RecipeName = "default",
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    fold: int | None = None,
    force: bool = False,
    instant: bool = True,
    report: bool = True,
    taxonomy: Path | None = None,
    columns: TableFlags = Columns(),
    settings: Flags | None = None,
) -> None:
    """Train cross-validated, merged networks on PHOTOS.

    The same command again resumes the run.

    Parameters
    ----------
    out
        The run's folder, or its address: new, or that of the run to resume.
    from_
        Go on from the finished run in this folder, with photos or classes added or removed since:
        photos keep their folds, each fold starts from its own weights there, and settings are its.
    fold
        Train only this fold (0, 1, …).
    force
        Resume although the version of torch has changed.
    instant
        Print first what a linear head on the untrained network's features reaches: a number to
        beat, which the report compares.
    report
        Write RUN/report.html at the end.
    taxonomy
        A table with the taxa of the classes (label, genus, family, …), perhaps that of the
        collection: answers may then be taxa (predict --right). `fieldguide report` takes it too.
    """
    require_beside(Path(out), photos)
    first = launch().rank == 0
    with mirror.mirrored(out, terminal.tell) as folder:
        chosen = _chosen(recipe, settings, folder, from_)
        report &= first
        try:
            catalog = columns.read(photos)
            if taxonomy is not None:
                from fieldguide.photos import taxonomy as taxonomies

                taxonomies.read(taxonomy, catalog.classes)  # faults are told before hours
        except PhotosAway as error:
            run = _finished(folder, chosen, error)
            if taxonomy is not None and first:
                run.set_taxonomy(taxonomy, terminal.tell)
        else:
            run = _fit(
                catalog,
                chosen,
                folder,
                fold=fold,
                force=force,
                instant=instant,
                report=report,
                start_from=from_,
                taxonomy=taxonomy if first else None,
            )
    if first:  # and all files are at its address
        tables.print_scores(terminal.stdout, run, place=out)
        _tell_after(run)


@app.command
def demo(*, out: Path = Path("fieldguide-demo"), settings: Flags | None = None) -> None:
    """Draw a small collection of specimens and fit it.

    It needs no network.

    Parameters
    ----------
    out
        The folder for the collection (OUT/photos) and its run (OUT/run).
    """
    from fieldguide.demo import SPECIES, draw_collection
    from fieldguide.photos.folders import scan

    chosen = chosen_recipe("demo", settings)
    photos, run_folder = out / "photos", out / "run"
    if not photos.exists():
        begun = out / "photos.begun"
        shutil.rmtree(begun, ignore_errors=True)  # an interrupted drawing starts again
        with Display(terminal.stderr) as display:
            display.begin("drawing specimens", DEMO_PHOTOS_EACH * len(SPECIES))
            draw_collection(begun, photos_each=DEMO_PHOTOS_EACH, progress=display.reach)
        begun.rename(photos)
    run = _fit(scan(photos), chosen, run_folder)
    tables.print_scores(terminal.stdout, run)
    _print_next(
        run,
        photos,
        f"fieldguide check {photos}",
        "fieldguide fit YOUR-PHOTOS --out YOUR-RUN --recipe quick",
    )


@app.command
def recipe(name: str = "default") -> None:
    """Print a recipe as commented TOML.

    Parameters
    ----------
    name
        The recipe: default, quick, instant, demo, reference, or a .toml file.
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
    instant: bool = True,
    report: bool = True,
    start_from: Path | None = None,
    taxonomy: Path | None = None,
) -> "Run":
    """Fit with progress on the terminal, and write the report even if training failed."""
    try:
        with watching() as watcher:
            from fieldguide.fitting.fit import fit

            run = fit(
                catalog,
                recipe,
                folder,
                fold=fold,
                force=force,
                instant=instant,
                start_from=start_from,
                command=sys.argv,
                watcher=watcher(),
            )
    except TrainingError:
        if report:
            _report(folder)
        raise
    if taxonomy is not None:
        run.set_taxonomy(taxonomy, terminal.tell)
    if report and (run.complete or fold is None) and (taxonomy or not _reported(run)):
        _judge_outside(run)
        _report(folder)
    return run


def _chosen(name: str, settings: Flags | None, folder: Path, older: Path | None) -> Recipe:
    """Return the recipe asked for; over that of an older run, if a new one goes on from it."""
    if older is None:
        chosen = chosen_recipe(name, settings)
        require_weights(chosen, folder)
        return chosen
    from fieldguide.fitting.older import require_run
    from fieldguide.runs.run import SETUP, Run

    begun = (folder / SETUP).is_file()  # then the older run may be gone
    if not begun:
        require_run(older)
    there = Run(folder if begun else older).recipe
    if there.co_tuning:  # the classifier of the first weights is no part of what is gone on from
        terminal.tell("`co_tuning` is left out: trained folds have left the first weights")
        there = there.replace(co_tuning=0.0)
    chosen = chosen_recipe(name, settings, there)
    others = recipes.differences(chosen, there)
    if not begun and launch().rank == 0:
        but = ", ".join(f"{n} {new!r} instead of {old!r}" for n, (old, new) in others.items())
        terminal.tell(f"settings are those of `{older}`" + (f", but for {but}" if but else ""))
    return chosen


def _tell_after(run: "Run") -> None:
    """Tell what the accuracy of a finished run does not say by itself, and what comes next."""
    if run.complete:
        from fieldguide.report.verdict import told_after

        for sentence in told_after(run):
            terminal.tell(sentence)
        folder = shlex.quote(str(run.folder))
        tuned = [f"fieldguide soup {folder} --rule tuned"] if run.recipe.epochs else []
        _print_next(run, "NEW-PHOTOS", *tuned, f"fieldguide export {folder} --out MODEL")


def _print_next(run: "Run", photos: Path | str, *more: str) -> None:
    """Print the commands that come next."""
    folder, page = (shlex.quote(str(each)) for each in (run.folder, run.folder / "report.html"))
    terminal.stdout.print("\nnext:")
    for command in (
        f"open {page}",
        f"fieldguide predict {folder} {shlex.quote(str(photos))} --out predictions.csv",
        f"fieldguide labels {folder}",
        *more,
    ):
        terminal.stdout.print(f"  {command}")


def _judge_outside(run: "Run") -> None:
    """Score the classifiers of a finished run on its photos outside the folds, for its report."""
    if not (run.complete and len(run.outside)):
        return
    from fieldguide.study import holdout_scores

    photos = count(len(run.outside), "photo")
    terminal.tell(f"scoring classifiers on {photos} that no fold has seen")
    try:
        holdout_scores.worths(run)
    except FieldguideError as error:
        terminal.tell(f"not scored: {error.message}; `fieldguide score {run.folder}` tries again")


def _reported(run: "Run") -> bool:
    """Return whether a finished run has a report that is not older than its tables."""
    page, whole = run.folder / "report.html", run.folder / files.MANIFEST
    if not (run.complete and page.is_file()):
        return False
    return page.stat().st_mtime_ns >= whole.stat().st_mtime_ns


def _finished(folder: Path, recipe: Recipe, away: PhotosAway) -> "Run":
    """Return a finished run although its photos are away; raise `away` for any other."""
    from fieldguide.fitting.prepare import has_folds
    from fieldguide.fitting.resume import require_same_recipe
    from fieldguide.runs.run import Run

    if not (folder / "manifest.json").is_file() or not (run := Run(folder)).complete:
        raise away
    require_same_recipe(run, recipe, own_folds=bool(run.given and has_folds(run.given)))
    files.verify(folder)
    terminal.tell(
        f"the run `{folder}` is complete; whether its photos are as they were cannot be said,"
        f" as they are away: {away.message}"
    )
    return run


def _report(folder: Path) -> None:
    """Write a run's report; an error there must not fail the run."""
    from fieldguide.report import build, topics
    from fieldguide.runs.run import Run

    try:
        with Display(terminal.stderr) as display:
            display.begin("writing the report", len(topics()))
            build(Run(folder), progress=display.reach)
    except Exception as error:
        terminal.tell(
            f"the report could not be written: {error}; `fieldguide report {folder}` tries again"
        )
