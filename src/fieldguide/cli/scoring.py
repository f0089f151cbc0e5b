"""The commands that evaluate a run: score, labels."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fieldguide.cli import flags, tables, terminal
from fieldguide.cli.app import app
from fieldguide.cli.display import Display
from fieldguide.cli.opening import open_run
from fieldguide.errors import DataError

if TYPE_CHECKING:
    from fieldguide.photos.catalog import Catalog
    from fieldguide.runs.run import Run
    from fieldguide.study.holdout_scores import Worths


@app.command
def score(
    run: flags.RunFolder,
    photos: str | None = None,
    *,
    per_class: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    photos_root: flags.PhotosRoot = None,
    columns: flags.TableFlags = flags.Columns(),
    machine: flags.MachineFlags = flags.Computer(),
) -> None:
    """Print scores of a run, its ensemble and its merged models.

    The run's scores are out of fold. An ensemble and merged models have trained on every photo of
    the folds, so they are scored only on photos outside of them: the collection's val part, the
    photos set aside by --holdout, or PHOTOS.

    Parameters
    ----------
    photos
        Another labelled set: a folder with a folder for each class, or a CSV table.
    per_class
        Also print precision, recall and F1 of every class.
    as_json
        Print one JSON object instead of tables.
    """
    machine.check()
    opened = open_run(run, photos_root)
    opened.scores  # noqa: B018 - its errors come before photos are read
    if photos is None:
        flags.refuse(flags.given(columns), "for tables, and none is given")
    catalog = columns.read(photos) if photos is not None else None
    if not as_json:
        tables.print_scores(terminal.stdout, opened)
        if per_class:
            tables.print_classes(terminal.stdout, opened)
    found, lost = _worths(opened, catalog, machine)
    if as_json:
        print(json.dumps(_score_record(opened, found, per_class), indent=2))
    elif found and found.rows:
        tables.print_worths(terminal.stdout, found)
    if lost:
        raise lost  # out-of-fold scores are printed before


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


def _worths(
    run: "Run", catalog: "Catalog | None", machine: flags.Computer
) -> "tuple[Worths | None, DataError | None]":
    """Return the table of classifiers, or the error instead of one."""
    if catalog is None and not len(run.outside):
        if run.complete:
            terminal.tell(
                "an ensemble or a merged model is scored on photos outside all folds, and the run"
                " has none: give a labelled set, or begin a run with --holdout 0.1"
            )
        return None, None
    from fieldguide.study import holdout_scores  # brings torch

    try:
        if catalog is None:
            related = sum(photo.split == "val" for photo in run.catalog.photos) - len(run.outside)
            if related:
                terminal.tell(
                    f"{related} photos of the val part are left out: copies of training photos, of"
                    " their groups, or without a class"
                )
            found = holdout_scores.worths(run, machine.chosen())
        else:
            with Display(terminal.stderr) as display:
                display.begin("comparing photos", holdout_scores.compared(run, catalog))
                photos = holdout_scores.unseen(
                    run, catalog, notice=display.notice, progress=display.reach
                )
            found = holdout_scores.worths_on(run, photos, machine.chosen())
    except DataError as error:
        return None, error
    if found.unreadable:
        terminal.tell(f"{found.unreadable} photos cannot be read and are left out")
    return found, None


def _score_record(run: "Run", found: "Worths | None", per_class: bool) -> dict[str, Any]:
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
    record["outside"] = asdict(found) if found else None
    return record
