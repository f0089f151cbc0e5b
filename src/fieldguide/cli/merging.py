"""The commands that make one classifier of several networks: soup, merge, save."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from fieldguide.cli import tables, terminal
from fieldguide.cli.app import app
from fieldguide.cli.fitting import watching
from fieldguide.cli.flags import Computer, MachineFlags, PhotosRoot, RunFolder, given, refuse
from fieldguide.errors import DataError, UsageError
from fieldguide.network.backbones import require_backbone
from fieldguide.recipe import weights_file
from fieldguide.storage.files import require_new, sha256

if TYPE_CHECKING:
    from fieldguide.photos.catalog import Catalog
    from fieldguide.predict.merge_files import Rule as FileRule


@app.command
def soup(
    run: RunFolder,
    *,
    rule: Literal["soup", "greedy", "stock", "tuned"] = "soup",
    batch_norm: Literal["average", "recalibrate"] = "average",
    photos_root: PhotosRoot = None,
    machine: MachineFlags = Computer(),
) -> None:
    """Merge the networks of a run's folds into one, kept in the run.

    Checkpoint files are merged by `fieldguide merge FILE FILE`.

    Parameters
    ----------
    rule
        The plain mean (soup), the mean of folds added while accuracy on photos outside the folds
        does not fall (greedy), Model Stock (stock), or the plain mean trained on with all photos,
        as long as a fold was or half of that (tuned): the best of them in short fits.
    batch_norm
        Take the folds' mean statistics (average), or re-estimate them on training photos
        (recalibrate).
    """
    from fieldguide.runs.run import Run

    machine.check()
    opened = Run(run, photos=photos_root)
    opened.require_complete()
    if rule == "tuned":
        fixed = [flag for flag in given(machine) if flag == "--batch-size"]
        refuse(fixed, "for predictions: tuning takes the batches of the run")
    from fieldguide.study import holdout_scores  # brings torch

    merged = partial(
        holdout_scores.merge_into_run,
        opened,
        rule,
        batch_norm=batch_norm,
        machine=machine.chosen(),
    )
    if rule == "tuned":
        with watching(what="tuning the soup") as watcher:
            folder = merged(watcher=watcher())
    else:
        folder = merged()
    terminal.stdout.print(f"the merged model is in {folder}")
    quoted = shlex.quote(str(run))
    terminal.stdout.print(f"  fieldguide score {quoted}")
    terminal.stdout.print(f"  fieldguide predict {quoted} PHOTOS --combine {folder.name}")


@dataclass(frozen=True)
class OfFiles:
    """The flags for merged checkpoints, and photos to re-estimate batch norm and accuracy on.

    Parameters
    ----------
    out
        The file to write.
    anchor
        The weights that all checkpoints were fine-tuned from.
    photos
        A folder or table of photos like those of training.
    backbone
        The network of the checkpoints; needed with --photos.
    size
        The side of the network's input in pixels.
    eval_resize
        The pixels of the shorter side, from which the centre is cut.
    """

    out: Path | None = None
    anchor: Path | None = None
    photos: Path | None = None
    backbone: str | None = None
    size: int | None = None
    eval_resize: int | None = None


@dataclass(frozen=True)
class OfRun:
    """The flags of `merge` for a run, for one more release; `soup` replaces it."""

    batch_norm: Literal["recalibrate", "average"] | None = None
    photos_root: Path | None = None


@app.command
def merge(
    sources: list[Path],
    *,
    rule: Annotated[Literal["soup", "stock", "greedy"], Parameter(show_choices=False)] = "soup",
    files: Annotated[OfFiles, Parameter(name="*")] = OfFiles(),
    of_run: Annotated[OfRun, Parameter(name="*", show=False)] = OfRun(),
    machine: MachineFlags = Computer(),
) -> None:
    """Merge checkpoints of one architecture into one file.

    They may come from timm, torchvision or fieldguide. With --photos, batch-norm statistics are
    re-estimated on them and accuracies printed. `fieldguide soup RUN` merges the folds of a run.

    Parameters
    ----------
    sources
        At least two checkpoints (.safetensors, .pth), or `FILE:entry` of one.
    rule
        The plain mean (soup), or Model Stock (stock), which needs the anchor.
    """
    machine.check()
    if len(sources) == 1 and sources[0].is_dir():
        _merge_run(sources[0], rule, files, of_run, machine)
        return
    for source in sources:
        if source.is_dir():
            raise UsageError(
                f"`{source}` is a folder, and checkpoints are files",
                hint="`fieldguide soup RUN` merges the folds of a run",
            )
        if not weights_file(source)[0].is_file():
            raise UsageError(f"`{source}` is neither a run's folder nor a checkpoint")
    hint = "leave it out; `fieldguide soup RUN` merges the folds of a run"
    refuse(given(of_run), "for runs, and checkpoints are given", hint)
    if files.out is None:
        raise UsageError("merged checkpoints need a file to go to: --out merged.safetensors")
    if rule == "greedy":
        raise UsageError(
            "--rule greedy is for runs", hint="use soup or stock; or `fieldguide soup RUN`"
        )
    if files.photos is None:
        looking = [flag for flag in given(files) if flag not in {"--out", "--anchor"}]
        refuse([*looking, *given(machine)], "of no use without --photos")
    if files.backbone is not None:
        require_backbone(files.backbone)
    _merge_files(sources, rule, files.out, files, machine)


def _merge_run(
    run: Path,
    rule: Literal["soup", "stock", "greedy"],
    files: OfFiles,
    of_run: OfRun,
    machine: Computer,
) -> None:
    """Merge as `soup` does, and print to stderr how that is typed."""
    flags = {"--rule": rule} | given(of_run) | given(machine)
    typed = ["fieldguide", "soup", run, *chain.from_iterable(flags.items())]
    told = shlex.join(map(str, typed))
    refuse(given(files), "for checkpoints, and a run is given", f"leave it out, and type: {told}")
    terminal.tell(f"note: `merge` of a run is deprecated, type: {told}")
    soup(
        run,
        rule=rule,
        batch_norm=of_run.batch_norm or "average",
        photos_root=of_run.photos_root,
        machine=machine,
    )


def _merge_files(
    sources: Sequence[Path], rule: "FileRule", out: Path, asked: OfFiles, machine: Computer
) -> None:
    from fieldguide.predict import merge_files

    merge_files.require_free(out)
    copies = merge_files.read(sources)
    anchor = asked.anchor
    merged = merge_files.merge(copies, rule, merge_files.read_one(anchor) if anchor else None)
    barrier = None
    if asked.photos is not None:
        network = merge_files.architecture(
            copies[0], asked.backbone, size=asked.size, eval_resize=asked.eval_resize
        )
        merged, barrier = merge_files.on_photos(
            copies, merged, network, _any_photos(asked.photos), machine.chosen()
        )
    for note in merged.notes:
        terminal.tell(f"note: {note}")
    merge_files.write(
        out,
        merged,
        {
            "rule": rule,
            "copies": [_origin(path) for path in sources],
            "anchor": _origin(anchor) if anchor else None,
        },
    )
    terminal.stdout.print(f"mean cosine between the weights, at least: {merged.cosine:.3f}")
    if merged.moves:
        terminal.stdout.print(f"mean angle between movements from the anchor: {merged.angle:.0f}°")
    if barrier:
        tables.print_barrier(terminal.stdout, [str(path) for path in sources], barrier)
    terminal.stdout.print(f"the merged weights are in {out}")


def _origin(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256(weights_file(path)[0])}


def _any_photos(place: Path) -> "Catalog":
    """Read labelled photos, or unlabelled ones of a folder, which serve batch norm alone."""
    from fieldguide.photos import sources as photo_sources
    from fieldguide.photos.folders import scan_unlabelled

    try:
        return photo_sources.read(place)
    except DataError:
        if not place.is_dir():
            raise
        return scan_unlabelled(place)


@app.command
def save(
    run: RunFolder,
    *,
    out: Path,
    combine: str = "ensemble",
    photos_root: PhotosRoot = None,
    machine: MachineFlags = Computer(),
) -> None:
    """Save a classifier to a folder that works without the run.

    Parameters
    ----------
    out
        The new folder.
    combine
        The combination of folds: ensemble, logits, geometric, soup, greedy, stock, tuned, fold-0,
        fold-1, …
    """
    from fieldguide.runs.run import Run

    machine.check()
    require_new(out)
    opened = Run(run, photos=photos_root)
    opened.combination(combine)
    terminal.tell(f"combining folds: {combine}")
    classifier = opened.classifier(combine, machine=machine.chosen())
    classifier.save(out)
    terminal.stdout.print(
        f"{', '.join(classifier.card.members)}: {classifier.parameters / 1e6:.1f} M parameters,"
        f" {classifier.nbytes / 1e6:.0f} MB in {out}"
    )
