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
from fieldguide.cli.display import Display
from fieldguide.cli.flags import Computer, ListFlags, Lists, MachineFlags, PhotosRoot, given, refuse
from fieldguide.cli.opening import open_run
from fieldguide.errors import DataError, UsageError
from fieldguide.storage import files, mirror
from fieldguide.words import count, percent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fieldguide.analysis.conformal import Method, Sets
    from fieldguide.analysis.promises import Promise
    from fieldguide.photos.augment import View
    from fieldguide.predict.classifier import Classifier
    from fieldguide.predict.inputs import Input
    from fieldguide.predict.submissions import Submission
    from fieldguide.predict.tables import Layout, Predictions
    from fieldguide.runs.run import Run

Model = Annotated[
    str,
    Parameter(
        help="The folder of a run, or of a classifier from `fieldguide save` or `soup`, or its"
        " address."
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
        stock, or fold-0, fold-1, …
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


@dataclass(frozen=True)
class Asked:
    """What is asked beside the most probable classes: sets, unknown photos, taxa."""

    sets: "Sets | None" = None
    unknown: float | None = None
    right: float | None = None
    rank: str | None = None
    weights: "NDArray[np.float64] | None" = None  # of the classes

    @property
    def taxa(self) -> bool:
        """Whether taxa are asked for."""
        return self.right is not None or self.rank is not None

    def require_possible(self, calibrated: bool) -> None:
        """Raise `UsageError` for shares outside 0 … 1, and where probabilities do not fit."""
        for flag, value in (("--unknown", self.unknown), ("--right", self.right)):
            if value is not None and not 0 < value < 1:
                example = "0.05" if flag == "--unknown" else "0.95"
                raise UsageError(
                    f"{flag} = {value} is not between 0 and 1", hint=f"such as {example}"
                )
        if self.rank == "auto" and self.right is None:
            raise UsageError("--rank auto needs --right", hint="such as --right 0.95")
        if self.right is not None and not calibrated:
            raise UsageError("--right needs calibrated probabilities: leave --no-calibrated out")

    def of(self, classifier: "Classifier") -> "Callable[[Predictions], Predictions]":
        """Return what adds it to predictions; tells what is promised, `UsageError` if it cannot."""
        if self.unknown is not None and classifier.out_of_fold.doubts is None:
            raise UsageError(
                "--unknown: this classifier was saved by an older version, without what photos are"
                " compared with",
                hint="save it again from its run",
            )
        answering = None
        if self.taxa:
            answering = classifier.answers_by(self.right, self.rank or "auto")
            if answering.promise is not None:
                terminal.tell(promised(answering.promise, self.rank or "auto"))
        alarm, weights = self.unknown or 0.0, self.weights

        def add(chunk: "Predictions") -> "Predictions":
            more = replace(chunk, alarm=alarm, answering=answering)
            return more if weights is None else more.weighed(weights)

        return add


def promised(promise: "Promise", rank: str) -> str:
    """Return what a promise says of the answers to come."""
    from fieldguide.analysis import promises

    what = "answers" if rank == "auto" else f"answers of rank `{rank}`"
    if promise.threshold is None:
        return (
            f"no confidence can be promised to make {what} right in {percent(promise.asked, 0)}:"
            f" none is given (known photos out of fold: {promise.photos:,}; at least"
            f" {promises.fewest(promise.asked):,} are needed, all of them right)"
        )
    return (
        f"{what} from a confidence of {promise.threshold:g} are promised to be right in"
        f" {percent(promise.asked, 0)}: out of fold {percent(promise.right)} were, of"
        f" {percent(promise.answered)} of {promise.photos:,} photos that had one"
    )


@app.command
def predict(
    model: Model,
    photos: Photos,
    *,
    out: Path = Path("predictions.csv"),
    top: int = 2,
    probabilities: bool = False,
    coverage: float | None = None,
    sets: Literal["split", "adaptive", "split-per-class", "adaptive-per-class"] | None = None,
    unknown: float | None = None,
    right: float | None = None,
    rank: str | None = None,
    only: Path | None = None,
    group: str | None = None,
    event_gap: float | None = None,
    spreadsheet: bool = False,
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
    coverage
        Add a set of classes that contains the true one this often, such as 0.95, and `unsure`.
    sets
        Use one threshold for all photos (split), or one that adapts to a photo (adaptive); with
        -per-class the coverage is reached in every class, not only on average.
    unknown
        Mark photos that look like nothing known: at most this share of known ones is marked too,
        such as 0.05. Adds `unknown` and `familiarity`.
    right
        Add a taxon for each photo that is sure enough, so that answers are right this often, such
        as 0.95: the class, or a taxon above it where the run has a taxonomy (fit --taxonomy).
    rank
        The rank of these taxa: auto (the default: the finest that is sure enough), label, genus, …;
        without --right every photo is answered.
    only
        A list of the classes that can occur (.txt, one a line), or a table of `label` and `weight`,
        how common each is: probabilities are weighed by it and made to sum to 1 again.
    group
        Also write OUT.events.csv, one answer for all photos of an event: event (a column of PHOTOS,
        or times within --event-gap, of folders those of EXIF), a column, folder:N, stem or
        stem:REGEX.
    event_gap
        The most seconds between photos of one event, where events come from times; 60 if not given.
    spreadsheet
        Put a ' before cells that a spreadsheet would take for formulas.
    """
    from fieldguide.predict import tables

    _refuse_unknown_flags("predict", photos)
    if top < 1:
        raise UsageError(f"--top is below 1: {top}", hint="1 writes the label alone")
    asked = Asked(_sets(coverage, sets, answers.calibrated), unknown, right, rank)
    asked.require_possible(answers.calibrated)
    if out.suffix.lower() == ".json":
        columns = {
            "--coverage": coverage,
            "--unknown": unknown,
            "--right": right,
            "--rank": rank,
            "--probabilities": probabilities,
            "--spreadsheet": spreadsheet,
        }
        idle = [flag for flag, value in columns.items() if value]
        refuse(idle, "for tables, and MegaDetector's form has no place for it")
    if only is not None and (coverage is not None or right is not None):
        raise UsageError(
            "--only changes probabilities, and --coverage and --right were calibrated without it",
            hint="leave one of them out",
        )
    tables.require_free(out, answers.overwrite)
    opened, classes, found = _opened(model, photos, answers)
    events = None
    if group is not None:
        events = _events(photos, found, group, event_gap, answers)
        tables.require_free(_beside(out, "events"), answers.overwrite)
    elif event_gap is not None:
        raise UsageError("--event-gap has no effect without --group", hint="such as --group event")
    if only is not None:
        from fieldguide.predict import occurrence

        asked = replace(asked, weights=occurrence.read(only, classes, terminal.tell))
    layout = tables.Layout(
        top,
        probabilities,
        asked.sets is not None,
        spreadsheet,
        unknown=unknown is not None,
        taxa=asked.taxa,
    )
    _write(opened, found, layout, out, answers, asked=asked, events=events)


@app.command
def submit(
    model: Model,
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


def _events(
    photos: Sequence[str], found: "list[Input]", group: str, gap: float | None, answers: Answers
) -> list[str]:
    """Return the event of each photo."""
    from fieldguide.predict import events

    if len(photos) > 1:
        raise UsageError("--group is for one source of photos, and several are given")
    lists = answers.lists
    return events.named(
        photos[0],
        found,
        group,
        gap=gap,
        path_column=lists.path_column,
        root=lists.root,
        encoding=lists.encoding,
        form=lists.format,
    )


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


def _sets(coverage: float | None, kind: str | None, calibrated: bool) -> "Sets | None":
    if coverage is None:
        if kind:
            raise UsageError("--sets has no effect without --coverage")
        return None
    if not 0 < coverage < 1:
        raise UsageError(f"--coverage = {coverage} is not between 0 and 1", hint="such as 0.95")
    if not calibrated:
        raise UsageError("--coverage needs calibrated probabilities: leave --no-calibrated out")
    from fieldguide.analysis.conformal import Sets

    method: Method = "adaptive" if (kind or "").startswith("adaptive") else "split"
    return Sets(coverage, method, (kind or "").endswith("-per-class"))


def _views(text: str) -> "tuple[View, ...]":
    known: tuple[View, ...] = ("flips", "crops", "scales")
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"--views: `{name}` is none of {', '.join(known)}")
    return tuple(view for view in known if view in names)


def _opened(
    model: str, photos: Sequence[str], answers: Answers
) -> "tuple[Run | Path, Sequence[str], list[Input]]":
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
    model: "Run | Path",
    photos: "list[Input]",
    layout: "Layout | Submission",
    out: Path,
    answers: Answers,
    *,
    asked: Asked = Asked(),
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
    from fieldguide.predict.inference import precision_used  # brings torch

    machine, architecture = answers.machine.chosen(), classifier.card.architecture
    used = precision_used(architecture, machine)
    if used != architecture.precision and machine.precision == "auto":
        terminal.tell(
            f"this device has no {architecture.precision}, in which the folds were judged:"
            f" {used} is used"
        )
    views = _views(answers.views)
    if views and (asked.sets or asked.unknown is not None or asked.right is not None):
        terminal.tell(
            "sets, unknown photos and promises are calibrated on one view: with several, they may"
            " hold less or more often"
        )
    add_asked = asked.of(classifier)
    with Display(terminal.stderr) as display:
        display.begin("predicting", len(photos))
        crops, of_photo = inputs.crops_of(photos, classifier.card.crop)
        chunks = classifier.stream(
            crops, views=views, sets=asked.sets, calibrated=answers.calibrated, machine=machine
        )
        chunks = map(add_asked, chunks)
        try:
            with ExitStack() as stack:
                if boxed and isinstance(layout, tables.Layout):
                    add = stack.enter_context(files.growing(boxed))
                    chunks = tables.beside(chunks, replace(layout, crops=True), add)
                results = None
                if out.suffix.lower() == megadetector.ENDING and isinstance(layout, tables.Layout):
                    card = classifier.card
                    results = megadetector.Results(card.classes, card.taxonomy, layout.top)
                    chunks = results.crops(chunks)
                seen = _reported(by_photo(chunks, photos, of_photo), display.advance)
                told: list[int] = []
                if events is not None:
                    seen = of_events.beside(seen, events, _beside(out, "events"), told)
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
    if asked.unknown is not None:
        terminal.tell(
            f"{counts.unknown:,} of {count(read, 'photo')} look like nothing known; of photos of"
            f" known classes {percent(asked.unknown)} would, at most"
        )
    if asked.taxa:
        terminal.tell(f"{counts.answered:,} of {count(read, 'photo')} have a taxon")
    if answers.strict and counts.unreadable:
        raise SystemExit(DataError.exit_code)


def _model_of(folder: Path, answers: Answers) -> "tuple[Run | Path, Sequence[str], str]":
    """Return a run or a saved classifier's folder, its classes and rule of crops, without torch."""
    if (folder / "setup.json").is_file():
        run = open_run(folder, answers.photos_root)
        run.combination(answers.combine or "ensemble")
        return run, run.classes, run.crop
    if not (folder / "classifier.json").is_file():
        raise UsageError(f"`{folder}` is neither a run's folder nor a classifier's")
    with files.parsing(folder / "classifier.json"):
        card = json.loads(files.read_member(folder, "classifier.json"))
        return folder, [str(each) for each in card["classes"]], str(card.get("crop", ""))


def _classifier(model: "Run | Path", answers: Answers) -> "Classifier":
    """Return the classifier of a run, or a saved one."""
    if not isinstance(model, Path):
        return model.classifier(answers.combine or "ensemble", machine=answers.machine.chosen())
    idle = [flag for flag in given(answers) if flag in {"--combine", "--photos-root"}]
    refuse(idle, f"for runs, and `{model}` is none")
    from fieldguide.predict.classifier import Classifier

    return Classifier.load(model)


def _reported(
    chunks: "Iterator[Predictions]", advance: Callable[[int], None]
) -> "Iterator[Predictions]":
    for chunk in chunks:
        advance(len(chunk))
        yield chunk
