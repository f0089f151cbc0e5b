"""The commands that predict the classes of photos: predict, submit."""

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from fieldguide.cli import terminal
from fieldguide.cli.app import app
from fieldguide.cli.asking import QuestionFlags, Questions
from fieldguide.cli.display import Display
from fieldguide.cli.flags import Computer, ListFlags, Lists, MachineFlags, PhotosRoot, given, refuse
from fieldguide.cli.opening import open_model
from fieldguide.errors import DataError, UsageError
from fieldguide.storage import files, mirror
from fieldguide.words import count

if TYPE_CHECKING:
    from fieldguide.predict.inputs import Input
    from fieldguide.predict.model import Model
    from fieldguide.predict.submissions import Submission
    from fieldguide.predict.tables import Layout, Predictions
    from fieldguide.recipe import View
    from fieldguide.runs.run import Run

JSON = ".json"  # the ending of results in MegaDetector's form

ModelPlace = Annotated[
    str,
    Parameter(
        help="The folder of a run, of a classifier from `fieldguide save` or `soup`, or of an"
        " export (or its model.onnx), or its address."
    ),
]
Photos = Annotated[
    list[str],
    Parameter(
        allow_leading_hyphen=True,
        help="A folder, a CSV table, a list of paths (.txt, or - for standard input), a photo, an"
        " address, or several of these.",
    ),
]


@dataclass(frozen=True)
class Answers:
    """The flags that `predict` and `submit` share.

    Parameters
    ----------
    combine
        The combination of a run's folds: ensemble (the default), logits, geometric, soup, greedy,
        stock, tuned (once `fieldguide soup` made it), or fold-0, fold-1, …
    views
        Average over several views of each photo: flips, crops, scales, or some of them with commas.
    calibrated
        Scale the logits by the temperature; --no-calibrated gives probabilities as in oof.csv.
    recursive
        Read folders inside a folder.
    strict
        End with exit code 3 if a photo cannot be read.
    overwrite
        Replace an existing table.
    """

    combine: str | None = None
    views: str = ""
    calibrated: bool = True
    recursive: bool = True
    strict: bool = False
    overwrite: bool = False
    photos_root: PhotosRoot = None
    lists: ListFlags = Lists()
    machine: MachineFlags = Computer()


AnswerFlags = Annotated[Answers, Parameter(name="*")]


@app.command
def predict(
    model: ModelPlace,
    photos: Photos,
    *,
    out: Path = Path("predictions.csv"),
    top: int = 2,
    probabilities: bool = False,
    spreadsheet: bool = False,
    questions: QuestionFlags = Questions(),
    answers: AnswerFlags = Answers(),
) -> None:
    """Write a table of the predicted classes of photos.

    It has one row for every input, in order, also for files that cannot be read. With a classifier
    of crops, a photo's answer is the mean of its boxes', and OUT.boxes.csv has one row for each.

    Parameters
    ----------
    out
        The table to write; with the ending .json, results in MegaDetector's form, which Timelapse,
        AddaxAI and camtraptools read.
    top
        The number of classes to write, the most probable first.
    probabilities
        Write the probability of every class.
    spreadsheet
        Put a ' before cells that a spreadsheet would take for formulas.
    """
    from fieldguide.predict import tables

    _refuse_unknown_flags("predict", photos)
    if top < 1:
        raise UsageError(f"--top is below 1: {top}", hint="1 writes the label alone")
    questions.require_possible(answers.calibrated)
    if out.suffix.lower() == JSON:
        own = {"--probabilities": probabilities, "--spreadsheet": spreadsheet}
        idle = [*questions.columns(), *(flag for flag, value in own.items() if value)]
        refuse(idle, "for tables, and MegaDetector's form has no place for it")
    tables.require_free(out, answers.overwrite)
    opened, _, found = _opened(model, photos, answers)
    events = questions.events(photos, found, answers.lists)
    if events is not None:
        tables.require_free(_beside(out, "events"), answers.overwrite)
    layout = tables.Layout(
        top,
        probabilities,
        questions.coverage is not None,
        spreadsheet,
        unknown=questions.unknown is not None,
        taxa=questions.taxa,
    )
    _write(opened, found, layout, out, answers, questions=questions, events=events)


@app.command
def submit(
    model: ModelPlace,
    photos: Photos,
    *,
    out: Path = Path("submission.csv"),
    sample: Path | None = None,
    columns: str | None = None,
    id: Literal["auto", "path", "name", "stem"] = "auto",
    zip: bool = False,
    answers: AnswerFlags = Answers(),
) -> None:
    """Write predictions as a grader wants them: like --sample, or with the two --columns.

    Parameters
    ----------
    out
        The table to write.
    sample
        Follow this table's header, ids and order.
    columns
        Write two columns of these names, such as image_name,pred_label.
    id
        The form of the ids: a photo's path, file name, or name without ending (stem). auto: the
        first of them that fits the sample; without one, the name.
    zip
        Also write the table into a zip file beside it.
    """
    from fieldguide.predict import tables
    from fieldguide.predict.submissions import submission

    _refuse_unknown_flags("submit", photos)
    names = columns.split(",") if columns else []
    if (sample is None) == (columns is None):
        raise UsageError(
            "a submission needs either --sample or --columns" + (", not both" if sample else ""),
            hint="such as --sample sample.csv, or --columns image_name,pred_label",
        )
    if sample is None and len(names) != 2:
        raise UsageError(
            f"--columns = {columns!r} is not two names",
            hint="such as --columns image_name,pred_label",
        )
    for place in (out, tables.zip_path(out)) if zip else (out,):
        tables.require_free(place, answers.overwrite)
    opened, classes, found = _opened(model, photos, answers)
    pair = (names[0], names[1]) if names else None
    layout, found = submission(
        found, classes, sample=sample, columns=pair, id=id, notice=terminal.tell
    )
    _write(opened, found, layout, out, answers, zip=zip)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.stem}.{what}.csv")


def _refuse_unknown_flags(command: str, photos: Sequence[str]) -> None:
    """Raise `UsageError` for a flag among the photos, which the parser accepts because of `-`."""
    odd = next((text for text in photos if text.startswith("-") and text != "-"), None)
    if odd is None:
        return
    flag = odd.partition("=")[0]
    if (command, flag) == ("submit", "--submission"):
        raise UsageError(f"unknown option: {odd}", hint="the sample to follow is --sample FILE")
    if command == "submit" and flag in _flags_of("predict"):
        raise UsageError(
            f"{flag} has no place in a submission, whose columns are given",
            hint="leave it out, or write a plain table with `fieldguide predict`",
        )
    close = difflib.get_close_matches(flag, _flags_of(command), n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise UsageError(
        f"unknown option: {odd}{meant}",
        hint="--help lists the options; a photo of that name is given as ./NAME",
    )


def _flags_of(command: str) -> list[str]:
    return [name for each in app[command].assemble_argument_collection() for name in each.names]


def _views(text: str) -> "tuple[View, ...]":
    known: tuple[View, ...] = ("flips", "crops", "scales")
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"--views: `{name}` is none of {', '.join(known)}")
    return tuple(view for view in known if view in names)


def _opened(
    model: str, photos: Sequence[str], answers: Answers
) -> "tuple[Run | Model | Path, Sequence[str], list[Input]]":
    """Return the model, its classes and the photos, all checked without torch."""
    from fieldguide.predict import inputs

    answers.machine.check()
    _views(answers.views)
    folder = mirror.run_folder(model, terminal.tell)
    opened, classes, crop = _model_of(folder, answers)
    found = inputs.read(
        photos,
        recursive=answers.recursive,
        path_column=answers.lists.path_column,
        root=answers.lists.root,
        encoding=answers.lists.encoding,
        form=answers.lists.format,
        crop=crop,
        boxes=answers.lists.boxes,
        notice=terminal.tell,
    )
    whole = sum(each.boxes is None and each.file is not None for each in found)
    if crop and whole:
        terminal.tell(
            f"`{model}` was trained on crops ({crop}): {count(whole, 'photo')} without known boxes"
            " will be seen whole, and may be misjudged; name the boxes with --boxes"
        )
    return opened, classes, found


def _write(
    model: "Run | Model | Path",
    photos: "list[Input]",
    layout: "Layout | Submission",
    out: Path,
    answers: Answers,
    *,
    questions: Questions = Questions(),
    events: Sequence[str] | None = None,
    zip: bool = False,
) -> None:
    """Write a row for every photo and print their number; exit with code 3 as `strict` demands."""
    from fieldguide.predict import inputs, tables

    classifier = _classifier(model, answers)
    boxed = None
    if classifier.card.crop and isinstance(layout, tables.Layout):
        boxed = _beside(out, "boxes")
        tables.require_free(boxed, answers.overwrite)
    from fieldguide.predict import events as of_events
    from fieldguide.predict import megadetector
    from fieldguide.predict.by_photo import by_photo

    machine = answers.machine.chosen()
    views = _views(answers.views)
    if remark := classifier.require_machine(machine, views):
        terminal.tell(remark)
    if views and questions.calibrated:
        terminal.tell(
            "sets, unknown photos and promises are calibrated on one view: with several, they may"
            " hold less or more often"
        )
    add_answers = questions.answers(classifier)
    with Display(terminal.stderr) as display:
        display.begin("predicting", len(photos))
        crops, of_photo = inputs.crops_of(photos, classifier.card.crop)
        chunks = classifier.stream(
            crops,
            views=views,
            sets=questions.sets_asked(),
            calibrated=answers.calibrated,
            machine=machine,
        )
        chunks = map(add_answers, chunks)
        try:
            with ExitStack() as stack:
                if boxed and isinstance(layout, tables.Layout):
                    add = stack.enter_context(files.growing(boxed))
                    chunks = tables.beside(chunks, replace(layout, crops=True), add)
                results = None
                if out.suffix.lower() == JSON and isinstance(layout, tables.Layout):
                    card = classifier.card
                    results = megadetector.Results(card.classes, card.taxonomy, layout.top)
                    chunks = results.crops(chunks)
                seen = _reported(by_photo(chunks, photos, of_photo), display.advance)
                told: list[int] = []
                if events is not None:
                    place = _beside(out, "events")
                    safe = isinstance(layout, tables.Layout) and layout.spreadsheet
                    seen = of_events.beside(seen, events, place, told, spreadsheet=safe)
                if results is None:
                    counts = tables.write(out, seen, layout, overwrite=answers.overwrite)
                else:
                    counts = tables.counted(results.photos(seen))
                    results.write(out, ", ".join(classifier.card.members))
        except KeyboardInterrupt:
            display.notice(f"the rows so far are in {out}.part")
            raise
    if zip:
        tables.write_zip(out, overwrite=answers.overwrite)
    lost = f", {counts.unreadable:,} of them unreadable" if counts.unreadable else ""
    lost += f", {counts.small:,} of them too small to show anything" if counts.small else ""
    lost += f", {counts.boxless:,} of them without a box" if counts.boxless else ""
    cut = sum(len(photo.boxes or ()) for photo in photos)
    also = f", and {count(cut, 'box')}: {boxed}" if boxed else ""
    terminal.tell(f"{count(counts.photos, 'photo')}{lost}: {out}{also}")
    if told:
        terminal.tell(
            f"{count(told[0], 'event')} of {count(told[1], 'photo')}: {_beside(out, 'events')}"
        )
    read = counts.photos - counts.unreadable - counts.boxless
    if questions.unknown is not None:
        terminal.tell(
            f"{counts.unknown:,} of {count(read, 'photo')} look like nothing known; of photos of"
            f" known classes about {100 * questions.unknown:g} % would"
        )
    if questions.taxa:
        terminal.tell(f"{counts.answered:,} of {count(read, 'photo')} have a taxon")
    if answers.strict and counts.unreadable:
        raise SystemExit(DataError.exit_code)


def _model_of(folder: Path, answers: Answers) -> "tuple[Run | Model | Path, Sequence[str], str]":
    """Return a run, an exported model or a classifier's folder, its classes and rule of crops."""
    from fieldguide.predict.model import Model
    from fieldguide.runs.run import Run

    opened = open_model(folder, answers.photos_root)
    if isinstance(opened, Run):
        opened.combination(answers.combine or "ensemble")
        return opened, opened.classes, opened.crop
    if isinstance(opened, Model):
        return opened, opened.classes, opened.card.crop
    with files.parsing(folder / "classifier.json"):
        card = json.loads(files.read_member(folder, "classifier.json"))
        return folder, [str(each) for each in card["classes"]], str(card.get("crop", ""))


def _classifier(model: "Run | Model | Path", answers: Answers) -> "Model":
    """Return the classifier of a run, or a saved or exported one."""
    from fieldguide.predict.model import Model
    from fieldguide.runs.run import Run

    if isinstance(model, Run):
        return model.classifier(answers.combine or "ensemble", machine=answers.machine.chosen())
    idle = [flag for flag in given(answers) if flag in {"--combine", "--photos-root"}]
    refuse(idle, "for runs, and this is none")
    if isinstance(model, Model):
        return model
    from fieldguide.predict.classifier import Classifier

    return Classifier.load(model)


def _reported(
    chunks: "Iterator[Predictions]", advance: Callable[[int], None]
) -> "Iterator[Predictions]":
    for chunk in chunks:
        advance(len(chunk))
        yield chunk
