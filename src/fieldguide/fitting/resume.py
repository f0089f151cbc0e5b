"""A run that was begun before: whether it is of the same recipe, photos and versions."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from fieldguide import recipe as recipes
from fieldguide.errors import UsageError
from fieldguide.fitting.prepare import has_folds
from fieldguide.fitting.progress import Watcher
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.recipe import Recipe
from fieldguide.runs.run import Run
from fieldguide.storage import files

# Packages whose version can change results.
RECORDED_PACKAGES = ("fieldguide", "torch", "torchvision", "timm", "numpy", "pillow")


def reopen(folder: Path, catalog: Catalog, recipe: Recipe, force: bool, watcher: Watcher) -> Run:
    """An existing run, if recipe, photos and torch are still those it was started with."""
    run = Run(folder)
    if has_folds(catalog):
        recipe = recipe.replace(folds=run.recipe.folds)
    if _same_weights(recipe.weights, run):
        recipe = recipe.replace(weights=run.recipe.weights)
    different = recipes.differences(recipe, run.recipe)
    if different:
        lines = [f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in different.items()]
        raise UsageError(
            f"`{folder}` holds a run of another recipe:\n" + "\n".join(lines),
            hint="name a new folder with --out, or leave these settings as they were",
        )
    more = len(catalog) - run.environment["photos_found"]
    if more > 0:
        watcher.notice(
            f"{more} photos were added since this run was begun and are no part of it:"
            " begin a new one with another --out to use them"
        )
    if run.complete:
        watcher.notice(f"the run `{folder}` is complete: nothing is left to do")
        return run
    _compare_versions(run, force, watcher)
    require_same_photos(run.catalog, catalog, folder)
    return run


def _same_weights(weights: str, run: Run) -> bool:
    """Whether a file holds the weights that the run was begun with, or is gone: they are in it."""
    recorded = run.environment["weights_sha256"]
    if not recorded or weights in {"pretrained", "none"}:
        return False
    return not Path(weights).is_file() or files.sha256(Path(weights)) == recorded


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


def require_same_photos(stored: Catalog, catalog: Catalog, folder: Path) -> None:
    """Every photo that the folds use must still be there, with the same label and content.

    `stored` are the photos that the work in `folder` was begun with. Raises `UsageError`.
    """
    row_of = {path: row for row, path in enumerate(catalog.table.column("path"))}
    labels = catalog.table.column("label")
    splits = enumerate(stored.table.column("split"))
    used = stored.table.take(row for row, split in splits if split != "test")
    kept = used.take(row for row, path in enumerate(used.column("path")) if path in row_of)
    lost = [path for path in used.column("path") if path not in row_of]
    relabelled = [p.path for p in kept if p.label != labels[row_of[p.path]]]
    hashes = _hashes(catalog, kept)
    changed = [p.path for p, digest in zip(kept, hashes, strict=True) if digest != p.sha256]
    for paths, what in ((lost, "are gone"), (relabelled, "changed label"), (changed, "changed")):
        if paths:
            raise UsageError(
                f"{len(paths)} photos {what} since `{folder}` was begun, such as `{paths[0]}`",
                hint="bring them back, or begin a new run with another --out",
            )


def _hashes(catalog: Catalog, photos: Sequence[Photo]) -> Iterator[str]:
    """The SHA-256 of each photo's file as it is now."""
    batches = [range(len(photos))[start : start + 32] for start in range(0, len(photos), 32)]
    with ThreadPoolExecutor() as pool:  # one future a photo would take more than all else of it
        for hashes in pool.map(
            lambda rows: [pixels.sha256(catalog.file(photos[row])) for row in rows], batches
        ):
            yield from hashes
