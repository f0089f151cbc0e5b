"""The commands that evaluate a run: score, labels."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fieldguide.cli import flags, tables, terminal
from fieldguide.cli.app import app
from fieldguide.cli.display import Display
from fieldguide.cli.opening import open_run

if TYPE_CHECKING:
    from fieldguide.analysis.unknown import Worth as Unknown
    from fieldguide.photos.catalog import Catalog
    from fieldguide.runs.run import Run
    from fieldguide.study.holdout_scores import Worths

# The sets of photos outside the folds, as keys of `score --json`.
OUTSIDE, TEST = "outside", "test"


@app.command
def score(
    run: flags.RunFolder,
    photos: str | None = None,
    *,
    unknowns: str | None = None,
    per_class: bool = False,
    only: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    photos_root: flags.PhotosRoot = None,
    columns: flags.TableFlags = flags.Columns(),
    machine: flags.MachineFlags = flags.Computer(),
) -> None:
    """Print scores of a run, its ensemble and its merged models.

    The run's scores are out of fold. An ensemble and merged models have trained on every photo of
    the folds, so they are scored only on photos outside of them: the collection's labelled val and
    test parts, the photos set aside by --holdout, or PHOTOS.

    Parameters
    ----------
    photos
        Another labelled set: a folder with a folder for each class, or a CSV table.
    unknowns
        A folder, table or list of photos that show nothing known: how many would be found. Those of
        one folder count as alike.
    per_class
        Also print precision, recall and F1 of every class, and the confidence from which it is
        right in 95 % of photos.
    only
        Also print what a list of the classes that can occur, or a table of `label` and `weight`,
        changes out of fold (as `predict --only` would), on the photos of these classes.
    as_json
        Print one JSON object instead of tables.
    """
    machine.check()
    opened = open_run(run, photos_root)
    opened.scores  # noqa: B018 - its errors come before photos are read
    if photos is not None and unknowns is not None:
        flags.refuse(["--unknowns"], "judged by itself, without PHOTOS", "give one of them")
    if photos is None:
        flags.refuse(flags.given(columns), "for tables, and none is given")
    cut = [flag for flag in ("--crop", "--boxes") if flag in flags.given(columns)]
    flags.refuse(cut if not opened.crop else (), f"for runs of crops, and `{run}` is none")
    if opened.crop:  # the rule that its photos were cut out by
        flags.refuse(cut[:1] if columns.crop else (), f"the run's own here: {opened.crop}")
        columns = replace(columns, crop=opened.crop)
    catalog = columns.read(photos) if photos is not None else None
    more: dict[str, Any] = {}
    if only is not None:
        from fieldguide.predict import occurrence

        change = opened.listed(occurrence.read(only, opened.classes, terminal.tell))
        more["only"] = asdict(change)
    if not as_json:
        tables.print_scores(terminal.stdout, opened)
        if per_class:
            tables.print_classes(terminal.stdout, opened)
        if only is not None:
            tables.print_listed(terminal.stdout, change, only.name)
        if opened.unknown:
            tables.print_unknown(terminal.stdout, opened.unknown, "by classes left out")
    if unknowns is not None:
        strange = _unknown(opened, unknowns, machine)
        if as_json:
            record = _score_record(opened, {}, per_class) | more | {"unknowns": asdict(strange)}
            print(json.dumps(record, indent=2))
        else:
            tables.print_unknown(terminal.stdout, strange, f"in {unknowns}")
        return
    found: dict[str, Worths] = {}
    try:
        for part, worths in _worths(opened, catalog, machine):
            found[part] = worths
            if not as_json:
                tables.print_worths(terminal.stdout, worths, part)
    finally:  # out-of-fold scores are printed whatever becomes of others
        if as_json:
            print(json.dumps(_score_record(opened, found, per_class) | more, indent=2))


@app.command
def labels(
    run: flags.RunFolder, *, out: Path | None = None, photos_root: flags.PhotosRoot = None
) -> None:
    """List photos whose labels look wrong, with reasons.

    Parameters
    ----------
    out
        The table to write, if not RUN/labels.csv.
    """
    from fieldguide.predict import tables as prediction_tables
    from fieldguide.study import labels as suspicious

    if out is not None:
        prediction_tables.require_free(out)
    opened = open_run(run, photos_root)
    with Display(terminal.stderr) as display:
        display.begin("comparing photos", opened.scores.photos)
        found = suspicious.doubts(opened, progress=display.reach)
        for note in found.notes:
            display.notice(note)
    table = out or run / suspicious.TABLE
    tables.print_doubts(terminal.stdout, opened, found, table)
    suspicious.write(table, found)


def _unknown(run: "Run", photos: str, machine: flags.Computer) -> "Unknown":
    """Return how well the ensemble finds these unknown photos."""
    from fieldguide.study import unknowns  # brings torch

    with Display(terminal.stderr) as display:
        display.begin("predicting", 1)
        return unknowns.worth(run, photos, machine.chosen(), display.notice)


def _worths(
    run: "Run", catalog: "Catalog | None", machine: flags.Computer
) -> "Iterator[tuple[str, Worths]]":
    """Yield the table of classifiers for each set of photos outside the folds, by its name.

    Raises `DataError` where none of a set's photos can be read or used.
    """
    if catalog is None and not len(run.outside) and not len(run.tested):
        _tell_left_out(run)
        if run.complete:
            terminal.tell(
                "an ensemble or a merged model is scored on photos outside all folds, and the run"
                " has none: give a labelled set, or begin a run with --holdout 0.1"
            )
        return
    from fieldguide.study import holdout_scores  # brings torch

    if catalog is None:
        _tell_left_out(run)
        found = {
            part: holdout_scores.worths(run, machine.chosen(), test=part == TEST)
            for part, rows in ((OUTSIDE, run.outside), (TEST, run.tested))
            if len(rows)
        }
    else:
        with Display(terminal.stderr) as display:
            display.begin("comparing photos", holdout_scores.compared(run, catalog))
            photos = holdout_scores.unseen(
                run, catalog, notice=display.notice, progress=display.reach
            )
        found = {OUTSIDE: holdout_scores.worths_on(run, photos, machine.chosen())}
    for part, worths in found.items():
        if worths.unreadable:
            terminal.tell(f"{worths.unreadable} photos cannot be read and are left out")
        yield part, worths


def _tell_left_out(run: "Run") -> None:
    """Tell how many labelled photos of the val and test parts serve no score."""
    for part, rows in (("val", run.outside), ("test", run.tested)):
        labelled = sum(
            photo.split == part and photo.label is not None for photo in run.catalog.photos
        )
        if labelled > len(rows) and not (part == "val" and run.recipe.watch_val):
            terminal.tell(
                f"{labelled - len(rows)} photos of the {part} part are left out: copies of training"
                " photos, of their groups, or of none of the run's classes"
            )


def _score_record(run: "Run", found: "Mapping[str, Worths]", per_class: bool) -> dict[str, Any]:
    from fieldguide.runs import run as runs

    record: dict[str, Any] = {"out_of_fold": runs.summary(run)}
    if per_class:
        scores = run.per_class
        record["classes"] = {
            name: {
                "photos": int(scores.support[number]),
                "precision": float(scores.precision[number]),
                "recall": float(scores.recall[number]),
                "f1": float(scores.f1[number]),
            }
            for number, name in enumerate(run.classes)
        }
    record |= {part: asdict(found[part]) if part in found else None for part in (OUTSIDE, TEST)}
    return record
