"""A run that was begun before: whether it is of the same recipe, photos and versions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from fieldguide import recipe as recipes
from fieldguide.errors import UsageError
from fieldguide.fitting.prepare import has_folds
from fieldguide.fitting.progress import Watcher, waiting
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.recipe import Recipe
from fieldguide.runs import run as runs
from fieldguide.runs.run import Run
from fieldguide.storage import files
from fieldguide.words import count

# Packages whose version can change results.
RECORDED_PACKAGES = ("fieldguide", "torch", "torchvision", "timm", "numpy", "pillow")


def reopen(folder: Path, catalog: Catalog, recipe: Recipe, force: bool, watcher: Watcher) -> Run:
    """Return an existing run, if recipe, photos and torch are those it was started with."""
    run = Run(folder)
    require_same_recipe(run, recipe, own_folds=has_folds(catalog))
    added = require_same_photos(folder, run.given, run.catalog, catalog, grown=not run.complete)
    damaged = files.faults(folder) if (folder / files.MANIFEST).is_file() else {}
    if run.complete and not damaged:
        watcher.notice(f"the run `{folder}` is complete: nothing is left to do")
        return run
    if added:
        watcher.notice(
            f"{added} since this run was begun and are no part of it:"
            " begin a new one with another --out to use them"
        )
    _compare_versions(run, force, watcher)
    if damaged:
        _remove_damaged(run, damaged, watcher)
    return run


def require_same_recipe(run: Run, recipe: Recipe, *, own_folds: bool = False) -> None:
    """Raise `UsageError` with every setting that differs from those the run was begun with.

    `own_folds`: the photos bring their folds, whose number the recipe does not say.
    """
    if own_folds:
        recipe = recipe.replace(folds=run.recipe.folds)
    if _same_weights(recipe.weights, run):
        recipe = recipe.replace(weights=run.recipe.weights)
    different = recipes.differences(recipe, run.recipe)
    if different:
        lines = [f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in different.items()]
        raise UsageError(
            f"`{run.folder}` holds a run of another recipe:\n" + "\n".join(lines),
            hint="name a new folder with --out, or leave these settings as they were",
        )


def _remove_damaged(run: Run, lost: Mapping[str, str], watcher: Watcher) -> None:
    """Take the manifests from what a finished run has lost, so that it is made again."""
    for name in lost:
        if not name.startswith("folds/") and name not in runs.RESULT_FILES:
            files.verify(run.folder)  # no training brings these back: raises
    said = "; ".join(f"{name} ({fault})" for name, fault in lost.items())
    watcher.notice(f"of `{run.folder}` is damaged and made again: {said}")
    with files.lock(run.folder, wait=math.inf, meanwhile=waiting(watcher)):
        (run.folder / files.MANIFEST).unlink(missing_ok=True)
        for fold in {name.split("/")[1] for name in lost if name.startswith("folds/")}:
            (run.fold_folder(int(fold)) / files.MANIFEST).unlink(missing_ok=True)


def _same_weights(weights: str, run: Run) -> bool:
    """Whether a file holds the weights that the run was begun with, or is gone: they are in it."""
    recorded = run.environment["weights_sha256"]
    if not recorded or weights in {"pretrained", "none"}:
        return False
    file, entry = recipes.weights_file(weights)
    if entry != recipes.weights_file(run.recipe.weights)[1]:
        return False
    return not file.is_file() or files.sha256(file) == recorded


def _compare_versions(run: Run, force: bool, watcher: Watcher) -> None:
    """Refuse another torch unless forced; tell of other packages that may change results."""
    versions = run.environment["versions"]
    changed = {
        name: (versions[name], metadata.version(name))
        for name in RECORDED_PACKAGES
        if versions[name] != metadata.version(name)
    }
    for name, (then, now) in changed.items():
        message = f"`{run.folder}` was begun with {name} {then}, this is {now}"
        if name == "torch" and not force:
            raise UsageError(
                f"{message}: results may differ in the end",
                hint="install that version, or go on all the same with --force",
            )
        watcher.notice(message)


def require_same_photos(
    folder: Path, given: Catalog | None, used: Catalog, now: Catalog, *, grown: bool = False
) -> str:
    """Raise `UsageError` with all differences between photos and those that `folder` began with.

    `given` is the collection as it was read then (None: by a version that did not keep it), `used`
    are the photos of it that the folds know. Compared are paths, labels, groups, splits and folds,
    and the content of every photo that is used. Photos may have been added where it has `grown`:
    return their number in words, empty for none.
    """
    row_of = {path: row for row, path in enumerate(now.table.column("path"))}
    before = (given or used).table
    known = set(before.column("path"))
    added = [path for path in row_of if path not in known] if given else []
    gone = [path for path in used.table.column("path") if path not in row_of]
    said = [_said(added, "added")] if added and not grown else []
    said += [_said(gone, "gone")] if gone else []
    for name in ("label", "group", "split", "fold") if given else ("label",):
        then, values = before.column(name), now.table.column(name)
        pairs = [
            (path, old, values[row_of[path]])
            for path, old in zip(before.column("path"), then, strict=True)
            if path in row_of and old != values[row_of[path]]
        ]
        if pairs:
            path, old, new = pairs[0]
            example = f"`{path}`: {_value(old)} there, {_value(new)} now"
            said.append(f"{count(len(pairs), 'photo')} of another {name}, such as {example}")
    kept = used.table.take(
        row for row, path in enumerate(used.table.column("path")) if path in row_of
    )
    hashes = _hashes(now, kept)
    changed = [p.path for p, digest in zip(kept, hashes, strict=True) if digest != p.sha256]
    said += [_said(changed, "of other content")] if changed else []
    if said:
        raise UsageError(
            f"`{folder}` was begun with other photos:\n" + "\n".join(f"  {each}" for each in said),
            hint="begin a new run with another --out, or bring the photos back as they were",
        )
    return _said(added, "added") if added else ""


def _said(paths: Sequence[str], what: str) -> str:
    return f"{count(len(paths), 'photo')} {what}, such as `{paths[0]}`"


def _value(value: object) -> str:
    return "none" if value is None else f"`{value}`"


def _hashes(catalog: Catalog, photos: Sequence[Photo]) -> Iterator[str]:
    """The SHA-256 of each photo's file as it is now."""
    batches = [range(len(photos))[start : start + 32] for start in range(0, len(photos), 32)]
    with ThreadPoolExecutor() as pool:  # one future a photo would take more than all else of it
        for hashes in pool.map(
            lambda rows: [pixels.sha256(catalog.file(photos[row])) for row in rows], batches
        ):
            yield from hashes
