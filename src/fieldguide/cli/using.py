"""Commands that use a run: score, merge, save, predict, labels."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from fieldguide import mirror
from fieldguide.backbones import require_backbone
from fieldguide.cli import tables, terminal
from fieldguide.cli.app import app
from fieldguide.cli.flags import Columns, Computer, ListFlags, Lists, MachineFlags, TableFlags
from fieldguide.display import Display
from fieldguide.errors import DataError, UsageError

if TYPE_CHECKING:
    from fieldguide.analysis.conformal import Method, Sets
    from fieldguide.augment import View
    from fieldguide.catalog import Catalog
    from fieldguide.checkpoints import Rule as FileRule
    from fieldguide.classifier import Classifier
    from fieldguide.combine import BatchNorm
    from fieldguide.combine import Rule as RunRule
    from fieldguide.inputs import Input
    from fieldguide.outside import Worths
    from fieldguide.predictions import Layout, Predictions, Submission
    from fieldguide.runs import Run


@app.command
def score(
    run: Path,
    photos: str | None = None,
    *,
    per_class: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    photos_root: Path | None = None,
    columns: TableFlags = Columns(),
    machine: MachineFlags = Computer(),
) -> None:
    """Out-of-fold scores of a run, and the worth and price of its ensemble and merged models.

    These have seen every photo of the folds, so they are scored on photos outside of them alone:
    the collection's val part, what --holdout set aside, or PHOTOS.

    Parameters
    ----------
    run
        A run's folder.
    photos
        Another labelled set: a folder with one folder a class, or a CSV table.
    per_class
        Print precision, recall and F1 of every class too.
    as_json
        Print one JSON object instead of tables.
    photos_root
        Where the run's own photos lie, if they were moved.
    """
    from fieldguide import runs

    machine.check()
    opened = runs.Run(run, photos=photos_root)
    opened.scores  # noqa: B018 - its errors come before photos are read
    if photos is None:
        columns.refuse_unused()
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
        raise lost  # out-of-fold scores are told before


@app.command
def merge(
    sources: list[Path],
    *,
    rule: Literal["soup", "greedy", "stock"] = "soup",
    batch_norm: Literal["recalibrate", "average"] | None = None,
    photos_root: Path | None = None,
    anchor: Path | None = None,
    out: Path | None = None,
    photos: Path | None = None,
    backbone: str | None = None,
    size: int | None = None,
    eval_resize: int | None = None,
    machine: MachineFlags = Computer(),
) -> None:
    """Merge a run's folds, or checkpoints of any training, into one network of one's cost.

    A run's merged model is kept in the run. Checkpoints, of timm, torchvision or fieldguide, must
    be of one architecture; with --photos, batch norm is measured on them and accuracies are told.

    Parameters
    ----------
    sources
        A run's folder, or at least two checkpoints (.safetensors, .pth).
    rule
        The plain mean (soup), folds added while that does no harm on photos outside the folds
        (greedy), or Model Stock (stock).
    batch_norm
        Of a run: statistics measured anew on training photos (recalibrate, the default), or the
        folds' mean (average).
    photos_root
        Of a run: where its photos lie, if they were moved.
    anchor
        Of checkpoints: the weights that all were fine-tuned from.
    out
        Of checkpoints: the file to write.
    photos
        Of checkpoints: a folder or table of photos like those of training.
    backbone
        Of checkpoints: the network they are for; needed with --photos.
    size
        Of checkpoints: side of the network's input in pixels.
    eval_resize
        Of checkpoints: pixels of the shorter side, from which the centre is cut.
    """
    machine.check()
    of_run: dict[str, object] = {"--batch-norm": batch_norm, "--photos-root": photos_root}
    of_files: dict[str, object] = {
        "--anchor": anchor,
        "--out": out,
        "--photos": photos,
        "--backbone": backbone,
        "--size": size,
        "--eval-resize": eval_resize,
    }
    if len(sources) == 1 and sources[0].is_dir():
        _refuse_given(of_files, "for checkpoints, and a run is given")
        _merge_run(sources[0], rule, batch_norm or "recalibrate", photos_root, machine)
        return
    for source in sources:
        if source.is_dir():
            raise UsageError(f"`{source}` is a folder: give one run, or the files of checkpoints")
        if not source.is_file():
            raise UsageError(f"`{source}` is neither a run's folder nor a checkpoint")
    _refuse_given(of_run, "for runs, and checkpoints are given")
    if out is None:
        raise UsageError("merged checkpoints need a file to go to: --out merged.safetensors")
    if rule == "greedy":
        raise UsageError("--rule greedy is for runs", hint="use soup or stock")
    if photos is None:
        looking: dict[str, object] = {
            "--backbone": backbone,
            "--size": size,
            "--eval-resize": eval_resize,
        }
        looking |= {f"--{name.replace('_', '-')}": value for name, value in vars(machine).items()}
        _refuse_given(looking, "of no use without --photos")
    if backbone is not None:
        require_backbone(backbone)
    _merge_files(sources, rule, anchor, out, photos, backbone, size, eval_resize, machine)


@app.command
def save(
    run: Path,
    *,
    out: Path,
    combine: str = "ensemble",
    photos_root: Path | None = None,
    machine: MachineFlags = Computer(),
) -> None:
    """Write a classifier to a folder of its own, which needs the run no more.

    Parameters
    ----------
    run
        A run's folder.
    out
        A new folder.
    combine
        ensemble, logits, geometric, soup, greedy, stock, or fold-0, fold-1, …
    photos_root
        Where the run's own photos lie, if they were moved.
    """
    from fieldguide.runs import Run

    machine.check()
    _require_new(out)
    opened = Run(run, photos=photos_root)
    opened.combination(combine)
    with Display(terminal.stderr) as display:
        display.notice(f"combining folds: {combine}")
        classifier = opened.classifier(combine, machine=machine.chosen())
    classifier.save(out)
    terminal.stdout.print(
        f"{', '.join(classifier.card.members)}: {classifier.parameters / 1e6:.1f} M parameters,"
        f" {classifier.nbytes / 1e6:.0f} MB in {out}"
    )


@app.command
def predict(
    model: str,
    photos: Annotated[list[str], Parameter(allow_leading_hyphen=True)],
    *,
    out: Path = Path("predictions.csv"),
    combine: str | None = None,
    recursive: bool = True,
    top: int | None = None,
    probabilities: bool = False,
    views: str = "",
    coverage: float | None = None,
    sets: Literal["split", "adaptive"] | None = None,
    sets_per_class: bool = False,
    calibrated: bool = True,
    submission: Path | None = None,
    columns: str | None = None,
    id: Literal["auto", "path", "name", "stem"] | None = None,
    zip: bool = False,
    spreadsheet: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    photos_root: Path | None = None,
    lists: ListFlags = Lists(),
    machine: MachineFlags = Computer(),
) -> None:
    """Say what photos show: one row for every input, in order, also for files that cannot be read.

    Parameters
    ----------
    model
        A run's folder, or that of a classifier which `fieldguide save` or `merge` wrote; or its
        address.
    photos
        A folder, a CSV table, a list of paths (.txt, or - for standard input), a photo, the
        address of one, or several of these.
    out
        The table to write.
    combine
        How a run's folds answer together: ensemble (the default), logits, geometric, soup,
        greedy, stock, or fold-0, fold-1, …
    recursive
        Look into folders inside a folder.
    top
        The number of classes to name, the most probable first; 2 if not given.
    probabilities
        Write the probability of every class.
    views
        Look at each photo several times: flips, crops, scales, or some of them with commas.
    coverage
        Add the set of classes that holds the true one this often, such as 0.95, and `unsure`.
    sets
        One threshold for all photos (split), or one that adapts to how clear a photo is.
    sets_per_class
        Reach the coverage in every class, not only over all.
    calibrated
        Scale probabilities by the temperature; without it they are those of oof.csv.
    submission
        Follow this sample table's header, ids and order.
    columns
        Write two columns of these names: id,label.
    id
        What the ids of a submission are: a photo's path, file name, or name without ending.
    zip
        Also write the table into a zip file beside it.
    spreadsheet
        Put a ' before cells that a spreadsheet would take for formulas.
    strict
        End with exit code 3 if a photo cannot be read.
    overwrite
        Replace the table if it is there.
    photos_root
        Where the run's own photos lie, if they were moved and a soup is made of its folds.
    """
    from fieldguide import inputs, predictions

    _refuse_unknown_flags(photos)
    table = _Table(top, probabilities, coverage is not None, spreadsheet, submission, columns, id)
    table.refuse_contradictions()
    machine.check()
    asked_sets = _sets(coverage, sets, sets_per_class, calibrated)
    asked_views = _views(views)
    predictions.require_free(out, overwrite)
    if zip:
        predictions.require_free(predictions.zip_path(out), overwrite)

    def notice(message: str) -> None:
        terminal.stderr.print(message, soft_wrap=True)

    found = inputs.read(
        photos,
        recursive=recursive,
        path_column=lists.path_column,
        root=lists.root,
        encoding=lists.encoding,
        notice=notice,
    )
    folder = mirror.run_folder(model, notice)
    layout, found = table.layout(_classes_of(folder), found)
    classifier = _classifier(folder, combine, photos_root, machine)
    _tell_precision(classifier, machine)
    if asked_sets and asked_views:
        terminal.stderr.print("sets are calibrated on one view: with several, coverage may differ")
    with Display(terminal.stderr) as display:
        display.begin("predicting", len(found))
        chunks = classifier.stream(
            found,
            views=asked_views,
            sets=asked_sets,
            calibrated=calibrated,
            machine=machine.chosen(),
        )
        try:
            counts = predictions.write(
                out, _reported(chunks, display.advance), layout, overwrite=overwrite
            )
        except KeyboardInterrupt:
            display.notice(f"the rows so far are in {out}.part")
            raise
    if zip:
        predictions.write_zip(out, overwrite=overwrite)
    lost = f", {counts.unreadable:,} of them unreadable" if counts.unreadable else ""
    photo = "photo" if counts.photos == 1 else "photos"
    terminal.stderr.print(f"{counts.photos:,} {photo}{lost}: {out}", soft_wrap=True)
    if strict and counts.unreadable:
        raise SystemExit(DataError.exit_code)


@app.command
def labels(run: Path, *, out: Path | None = None, photos_root: Path | None = None) -> None:
    """List photos whose label looks wrong, and why.

    Parameters
    ----------
    run
        A run's folder.
    out
        The table to write; RUN/labels.csv if not given.
    photos_root
        Where the run's own photos lie, if they were moved.
    """
    from fieldguide import labels as suspicious
    from fieldguide import predictions
    from fieldguide.runs import Run

    if out is not None:
        predictions.require_free(out)

    opened = Run(run, photos=photos_root)
    with Display(terminal.stderr) as display:
        display.begin("comparing photos", opened.scores.photos)
        found = suspicious.doubts(opened, progress=display.reach)
        for note in found.notes:
            display.notice(note)
    table = out or run / suspicious.TABLE
    tables.print_doubts(terminal.stdout, opened, found, table)
    suspicious.write(table, found)


def _refuse_unknown_flags(photos: Sequence[str]) -> None:
    """`-` is a source, which the parser must let through; flags with typing mistakes are none."""
    odd = [text for text in photos if text.startswith("-") and text != "-"]
    if odd:
        known = [
            name for each in app["predict"].assemble_argument_collection() for name in each.names
        ]
        close = difflib.get_close_matches(odd[0].split("=")[0], known, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(
            f"unknown option: {odd[0]}{meant}",
            hint="--help lists what there is; a photo of that name is given as ./NAME",
        )


@dataclass(frozen=True)
class _Table:
    """What `predict` is asked to write; None where a flag was not given."""

    top: int | None
    probabilities: bool
    sets: bool
    spreadsheet: bool
    sample: Path | None
    columns: str | None
    id: Literal["auto", "path", "name", "stem"] | None

    def refuse_contradictions(self) -> None:
        """Raises `UsageError` for flags that would be ignored beside the others."""
        submission = self.sample is not None or self.columns is not None
        own = {
            "--top": self.top is not None,
            "--probabilities": self.probabilities,
            "--coverage": self.sets,
            "--spreadsheet": self.spreadsheet,
        }
        idle = [flag for flag, given in own.items() if given]
        if submission and idle:
            raise UsageError(
                f"{idle[0]} has no place in a submission, whose columns are given",
                hint="leave it out, or write a plain table",
            )
        if self.id is not None and not submission:
            raise UsageError("--id is for submissions: --submission or --columns")
        if not submission and self.top is not None and self.top < 1:
            raise UsageError(f"--top is below 1: {self.top}", hint="1 writes the label alone")
        if self.sample is not None and self.columns is not None:
            raise UsageError("--columns has no place beside --submission, whose columns are used")
        if self.columns is not None and len(self.columns.split(",")) != 2:
            raise UsageError(
                f"--columns = {self.columns!r} is not two names",
                hint="such as --columns image_name,pred_label",
            )

    def layout(
        self, classes: Sequence[str], inputs: "list[Input]"
    ) -> "tuple[Layout | Submission, list[Input]]":
        """The columns, and the inputs in the order of the rows."""
        from fieldguide import predictions

        if self.sample is None and self.columns is None:
            top = 2 if self.top is None else self.top
            plain = predictions.Layout(top, self.probabilities, self.sets, self.spreadsheet)
            return plain, inputs
        names = self.columns.split(",") if self.columns else None
        return predictions.submission(
            inputs,
            classes,
            sample=self.sample,
            columns=(names[0], names[1]) if names else None,
            id=self.id or "auto",
        )


def _sets(
    coverage: float | None, method: "Method | None", per_class: bool, calibrated: bool
) -> "Sets | None":
    if coverage is None:
        idle = [flag for flag, on in (("--sets", method), ("--sets-per-class", per_class)) if on]
        if idle:
            raise UsageError(f"{idle[0]} has no effect without --coverage")
        return None
    if not 0 < coverage < 1:
        raise UsageError(f"--coverage = {coverage} is not between 0 and 1", hint="such as 0.95")
    if not calibrated:
        raise UsageError("--coverage needs calibrated probabilities: leave --no-calibrated out")
    from fieldguide.analysis.conformal import Sets

    return Sets(coverage, method or "split", per_class)


def _views(text: str) -> "tuple[View, ...]":
    known: tuple[View, ...] = ("flips", "crops", "scales")
    names = [name.strip() for name in text.split(",") if name.strip()]
    odd = [name for name in names if name not in known]
    if odd:
        raise UsageError(f"--views: `{odd[0]}` is none of {', '.join(known)}")
    return tuple(view for view in known if view in names)


def _classes_of(model: Path) -> Sequence[str]:
    """The classes of a run or of a saved classifier, read without torch."""
    if (model / "setup.json").is_file():
        from fieldguide.runs import Run

        return Run(model).classes
    try:
        classes: list[str] = json.loads((model / "classifier.json").read_bytes())["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"`{model}` is neither a run's folder nor a classifier's") from error
    return classes


def _classifier(
    model: Path, combine: str | None, photos_root: Path | None, machine: Computer
) -> "Classifier":
    """That of a run, or a saved one."""
    if (model / "setup.json").is_file():
        from fieldguide.runs import Run

        opened = Run(model, photos=photos_root)
        opened.combination(combine or "ensemble")
        if not opened.complete:
            terminal.stderr.print(
                f"{len(opened.done)} of {opened.recipe.folds} folds are done: these answer",
                soft_wrap=True,
            )
        return opened.classifier(combine or "ensemble", machine=machine.chosen())
    for flag, value in (("--combine", combine), ("--photos-root", photos_root)):
        if value is not None:
            raise UsageError(f"{flag} is for runs, and `{model}` is none", hint="leave it out")
    from fieldguide.classifier import Classifier

    return Classifier.load(model)


def _tell_precision(classifier: "Classifier", machine: Computer) -> None:
    """Says so where this device lacks the precision that the network was trained and judged in."""
    from fieldguide.inference import precision_used

    own = classifier.card.architecture.precision
    used = precision_used(classifier.card.architecture, machine.chosen())
    if used != own and machine.check().precision == "auto":
        terminal.stderr.print(
            f"this device has no {own}, in which the folds were judged: {used} is used",
            soft_wrap=True,
        )


def _reported(
    chunks: "Iterator[Predictions]", advance: Callable[[int], None]
) -> "Iterator[Predictions]":
    for chunk in chunks:
        advance(len(chunk))
        yield chunk


def _worths(
    run: "Run", catalog: "Catalog | None", machine: Computer
) -> "tuple[Worths | None, DataError | None]":
    """The table of classifiers, or why there is none."""
    if catalog is None and not len(run.outside):
        if run.complete:
            terminal.stderr.print(
                "an ensemble or a merged model is scored on photos outside all folds, and the run"
                " has none: give a labelled set, or begin a run with --holdout 0.1",
                soft_wrap=True,
            )
        return None, None
    from fieldguide import outside  # brings torch

    try:
        if catalog is None:
            _tell_related(run)
            found = outside.worths(run, machine.chosen())
        else:
            with Display(terminal.stderr) as display:
                display.begin("comparing photos", outside.compared(run, catalog))
                photos = outside.unseen(run, catalog, notice=display.notice, progress=display.reach)
            found = outside.worths_on(run, photos, machine.chosen())
    except DataError as error:
        return None, error
    if found.unreadable:
        terminal.stderr.print(
            f"{found.unreadable} photos cannot be read and are left out", soft_wrap=True
        )
    return found, None


def _tell_related(run: "Run") -> None:
    """Says how many photos of the val part would flatter."""
    related = sum(photo.split == "val" for photo in run.catalog.photos) - len(run.outside)
    if related:
        terminal.stderr.print(
            f"{related} photos of the val part are left out: copies of training photos, of their"
            " groups, or without a class",
            soft_wrap=True,
        )


def _score_record(run: "Run", found: "Worths | None", per_class: bool) -> dict[str, Any]:
    from fieldguide import runs

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


def _require_new(folder: Path) -> None:
    if folder.exists():
        raise UsageError(f"`{folder}` is there already", hint="name a new folder with --out")


def _refuse_given(flags: Mapping[str, object], why: str) -> None:
    given = [flag for flag, value in flags.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} is {why}", hint="leave it out")


def _merge_run(
    run: Path,
    rule: "RunRule",
    batch_norm: "BatchNorm",
    photos_root: Path | None,
    machine: Computer,
) -> None:
    from fieldguide.runs import Run

    opened = Run(run, photos=photos_root)
    opened.require_complete()
    from fieldguide import outside  # brings torch

    folder = outside.merge_into_run(opened, rule, batch_norm=batch_norm, machine=machine.chosen())
    terminal.stdout.print(f"the merged model is in {folder}")
    for command in (
        f"fieldguide score {run}",
        f"fieldguide predict {run} PHOTOS --combine {folder.name}",
    ):
        terminal.stdout.print(f"  {command}")


def _merge_files(
    sources: Sequence[Path],
    rule: "FileRule",
    anchor: Path | None,
    out: Path,
    photos: Path | None,
    backbone: str | None,
    size: int | None,
    eval_resize: int | None,
    machine: Computer,
) -> None:
    from fieldguide import checkpoints, files

    checkpoints.require_free(out)
    copies = checkpoints.read(sources)
    start = checkpoints.read_one(anchor) if anchor else None
    merged, barrier = checkpoints.merge(copies, rule, start), None
    if photos is not None:
        network = checkpoints.architecture(copies[0], backbone, size=size, eval_resize=eval_resize)
        merged, barrier = checkpoints.on_photos(
            copies, merged, network, _any_photos(photos), machine.chosen()
        )
    for note in merged.notes:
        terminal.stderr.print(f"note: {note}", soft_wrap=True)
    checkpoints.write(
        out,
        merged,
        {
            "rule": rule,
            "copies": [{"file": path.name, "sha256": files.sha256(path)} for path in sources],
            "anchor": {"file": anchor.name, "sha256": files.sha256(anchor)} if anchor else None,
        },
    )
    terminal.stdout.print(f"mean cosine between the weights, at least: {merged.cosine:.3f}")
    if merged.moves:
        terminal.stdout.print(f"mean angle between movements from the anchor: {merged.angle:.0f}°")
    if barrier:
        tables.print_barrier(terminal.stdout, [str(path) for path in sources], barrier)
    terminal.stdout.print(f"the merged weights are in {out}")


def _any_photos(place: Path) -> "Catalog":
    """Labelled photos, or a folder of any: those without labels serve batch norm alone."""
    from fieldguide import catalog

    try:
        return catalog.read(place)
    except DataError:
        if not place.is_dir():
            raise
        return catalog.scan_unlabelled(place)
