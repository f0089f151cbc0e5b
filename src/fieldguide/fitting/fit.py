"""A whole fit: from photographs and a recipe to a run folder with trained folds and honest scores.

Folds are pure jobs, trained one after another, on several devices at the same time, or on a
cluster; a killed fit goes on from its last checkpoint when it is called again with the same
arguments.
"""

import hashlib
import math
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fieldguide import recipe as recipes
from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.machine.controls import Controls, asked_to_stop
from fieldguide.machine.device import (
    choose_device,
    choose_precision,
    count_cores,
    count_threads,
    count_workers,
    device_name,
    fold_places,
    keep_freed_memory,
    memory_format,
    training_threads,
)
from fieldguide.machine.processes import train_side_by_side
from fieldguide.machine.ranks import ALONE, Ranks, joined
from fieldguide.machine.ray_jobs import connected, jobs_at_once, require_address, train_on_cluster
from fieldguide.machine.torchrun import launch
from fieldguide.merge import Weights
from fieldguide.network import batch_norm
from fieldguide.network.network import (
    Network,
    build,
    build_backbone,
    freeze,
    input_config,
    weights_of,
    with_head,
)
from fieldguide.photos import check, pixels
from fieldguide.photos.augment import Augmentation, decoded_side
from fieldguide.photos.batches import Decoding, Loader, Pictures
from fieldguide.photos.catalog import Catalog, Files, Photo, group_names, require_trainable
from fieldguide.photos.folds import Fold, given_folds, inner_split, make_folds
from fieldguide.photos.inspect import inspect
from fieldguide.photos.near_copies import duplicates, joined_groups
from fieldguide.photos.transforms import TrainingTransform, evaluation, training
from fieldguide.recipe import Recipe
from fieldguide.runs import run as runs
from fieldguide.runs import tracking
from fieldguide.runs.run import Run, Trained
from fieldguide.runs.tracking import Tracker
from fieldguide.seeds import derive_seed
from fieldguide.storage import addresses, cache_folder, decoded, files, mirror, shards
from fieldguide.storage.decoded import Store
from fieldguide.train.job import FoldJob, replica_steps
from fieldguide.train.loop import train_fold
from fieldguide.train.trial import Choice, choose

# Packages whose version can change results.
RECORDED_PACKAGES = ("fieldguide", "torch", "torchvision", "timm", "numpy", "pillow")

# Photos whose content is compared between machines; of all others it is the size (taste).
HASHED_PHOTOS = 64

# Seconds that a fold's new job waits for one that was taken for dead and is not.
TAKEN_FOR_DEAD = 300.0

# Findings of the check that leave a photo out.
UNREADABLE = frozenset({"unreadable", "truncated"})


@dataclass(frozen=True)
class Plan:
    """How much there is to do, for whoever shows progress."""

    folds: tuple[int, ...]  # those that are still to be trained
    steps: int  # of the optimiser, in all of these folds from their start, on this rank
    recipe: Recipe
    trials: int = 1  # that these are the folds of


@dataclass(frozen=True)
class Watcher(Controls):
    """How the outside world follows and steers a whole fit. Every field may be left out."""

    on_checking: Callable[[int], None] = lambda photos: None  # so many are to be checked
    on_check: Callable[[int], None] = lambda photos: None  # so many have been by now
    on_findings: Callable[[Sequence[check.Finding]], None] = lambda found: None  # of the check
    on_plan: Callable[[Plan], None] = lambda plan: None


def fit(
    catalog: Catalog,
    recipe: Recipe,
    out: str | Path,
    *,
    fold: int | None = None,
    force: bool = False,
    prepared: bool = False,
    command: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Run:
    """Trains every fold that is not done yet (or `fold` alone) and returns the run.

    On ranks that torchrun started, all of which call this, replicas are spread over them. The same
    call resumes, on as many ranks or on others; a finished run is returned untouched. `force`
    resumes although the version of torch differs. With `prepared` the catalog is one that `prepare`
    made: no photo is checked, and its groups, folds and parts are those of the run. An `out` that
    is an address, such as `s3://bucket/run`, is kept in the cache folder and sent as it grows:
    `mirror`.

    Raises `UsageError` where `out` holds a run of another recipe, or of other photos, `DataError`
    where the photos cannot be used, `ResourceError`, `TrainingError`, and whatever
    `watcher.check_stop` raises, after a checkpoint.
    """
    watcher = watcher or Watcher()
    if isinstance(out, str) and addresses.is_address(out):
        with mirror.mirrored(out, watcher.notice) as here:
            return fit(
                catalog,
                recipe,
                here,
                fold=fold,
                force=force,
                prepared=prepared,
                command=command,
                watcher=watcher,
            )
    folder = Path(out)
    with joined(recipe.device, recipe.replicas, recipe.batch_ranks) as ranks:
        recipe = _of_rank(recipe, ranks)
        if ranks.first:
            run = _fit(catalog, recipe, folder, fold, force, prepared, command, watcher, ranks)
            ranks.announce(())  # it is written
            return run
        return _help(folder, recipe, catalog.root, watcher, ranks)


def _of_rank(recipe: Recipe, ranks: Ranks) -> Recipe:
    """What was asked for, on the GPU that is the rank's own."""
    if ranks.world == 1:
        return recipe
    if recipe.cluster != "none":
        raise UsageError(
            f"`cluster` = {recipe.cluster!r} spreads folds, torchrun's ranks replicas",
            hint="leave one of them out",
        )
    if choose_device(recipe.device).type != "cuda":
        return recipe
    return recipe.replace(device=f"cuda:{torch.cuda.current_device()}")


def begin(
    folder: Path, catalog: Catalog, recipe: Recipe, command: Sequence[str], watcher: Watcher
) -> Run:
    """A new run of a catalog that `prepare` made, of which nothing is trained; `fit` goes on."""
    _require_usable(folder)
    with files.lock(folder):
        files.remove_temporaries(folder)
        return create(folder, catalog, recipe, command, watcher, prepared=True)


def _help(folder: Path, recipe: Recipe, root: Path, watcher: Watcher, ranks: Ranks) -> Run:
    """What ranks but the first do: they train with it what it finds to be done."""
    nothing: tuple[int, ...] = ()
    todo = ranks.announce(nothing)
    if todo:
        _require_seen(folder, ranks)
        _train_folds(Run(folder), recipe, root, todo, watcher, ranks)
    ranks.announce(())
    return Run(folder)


def _require_seen(folder: Path, ranks: Ranks) -> None:
    if not (folder / runs.SETUP).is_file():
        raise ResourceError(
            f"rank {ranks.rank} does not see the run in `{folder}`",
            hint="the run folder must be the same one for all ranks",
        )


def _fit(
    catalog: Catalog,
    recipe: Recipe,
    folder: Path,
    fold: int | None,
    force: bool,
    prepared: bool,
    command: Sequence[str],
    watcher: Watcher,
    ranks: Ranks,
) -> Run:
    """The fit, as the only or the first rank: it alone writes into the run folder."""
    _require_usable(folder)
    # What the machine cannot do is told before long work.
    tracker = tracking.start(recipe.track, folder, watcher.notice)
    choose_precision(recipe.precision, choose_device(recipe.device))
    if recipe.cluster != "none":
        require_address(recipe.cluster)
    if not _has_folds(catalog):
        _require_fold(fold, recipe.folds)
    run = _begun(folder, catalog, recipe, force, prepared, command, watcher)
    _require_fold(fold, run.recipe.folds)
    todo = () if run.complete else tuple(n for n in run.undone if fold in (None, n))
    ranks.announce(todo)
    if todo:
        try:
            _train_folds(run, recipe, catalog.root, todo, _tracked(watcher, tracker), ranks)
        finally:
            tracker.close()
    if not run.complete and not run.undone:
        _finish(run, watcher)
    return run


def _begun(
    folder: Path,
    catalog: Catalog,
    recipe: Recipe,
    force: bool,
    prepared: bool,
    command: Sequence[str],
    watcher: Watcher,
) -> Run:
    """The run as it stands, begun if it is not there; by one of all processes that come for it.

    A finished run is not touched.
    """
    if not (folder / runs.SETUP).is_file():
        with files.lock(folder, wait=math.inf, meanwhile=_waiting(watcher)):
            if not (folder / runs.SETUP).is_file():
                files.remove_temporaries(folder)
                return create(folder, catalog, recipe, command, watcher, prepared=prepared)
    return _reopen(folder, catalog, recipe, force, watcher)


def _finish(run: Run, watcher: Watcher) -> None:
    """Writes what only a whole run has, unless another process has done so meanwhile."""
    with files.lock(run.folder, wait=math.inf, meanwhile=_waiting(watcher)):
        if not run.complete:
            files.remove_temporaries(run.folder)
            for fold in run.done:  # one that was killed in between leaves them
                shutil.rmtree(run.fold_folder(fold) / "checkpoint", ignore_errors=True)
            runs.finish(run)


def _waiting(controls: Controls) -> Callable[[str], None]:
    """What to do while another process holds a folder: tell of it once, and look for a stop."""
    told: set[str] = set()

    def look(reason: str) -> None:
        if reason not in told:
            told.add(reason)
            controls.notice(f"{reason}; waiting for it")
        controls.check_stop()

    return look


def _require_usable(folder: Path) -> None:
    """Creates the folder; refuses one that holds something that is no run."""
    files.make_folder(folder)
    known = {*runs.SETUP_FILES, runs.SETUP, runs.FINDINGS, files.LOCK, "folds"}
    names = {path.name for path in folder.iterdir() if not files.is_temporary(path.name)}
    strange = sorted(names - known)
    if strange and not (folder / runs.SETUP).is_file():
        raise UsageError(
            f"`{folder}` is not empty and holds no run: {', '.join(strange[:3])}",
            hint="name a new folder with --out",
        )


def _has_folds(catalog: Catalog) -> bool:
    """Whether a table brought folds of its own."""
    return any(fold is not None for fold in catalog.table.column("fold"))


def _require_fold(fold: int | None, folds: int) -> None:
    if fold is not None and fold not in range(folds):
        raise UsageError(f"`fold` = {fold} is none of 0 to {folds - 1}")


def create(
    folder: Path,
    catalog: Catalog,
    recipe: Recipe,
    command: Sequence[str],
    watcher: Watcher,
    *,
    prepared: bool = False,
) -> Run:
    """A run at its start: photos checked and put into folds, settings resolved, first weights."""
    if recipe.order == "shards":
        _index(catalog.root)
    backbone = build_backbone(recipe.backbone, weights=recipe.weights, seed=recipe.seed)
    resolved = resolve(recipe, backbone)
    for message in recipes.without_effect(recipe):
        watcher.notice(message)
    found: list[check.Finding] = []

    def on_findings(told: Sequence[check.Finding]) -> None:
        found.extend(told)
        watcher.on_findings(told)

    listening = replace(watcher, on_findings=on_findings)
    used = catalog if prepared else prepare(catalog, recipe, listening)
    if not prepared:
        check.write_findings(folder / runs.FINDINGS, found)
    resolved = resolved.replace(folds=1 + max(fold or 0 for fold in used.table.column("fold")))
    network = with_head(
        backbone,
        recipe.head,
        classes=len(used.classes),
        dropout=recipe.dropout,
        seed=recipe.seed,
    )
    freeze(network, resolved.freeze)
    choice = _probed(recipe, resolved, network, used)
    _tell_choice(choice, watcher)
    resolved = resolved.replace(
        layout=choice.way.layout,
        precision=choice.way.precision,
        compile="on" if choice.way.compile else "off",
    )
    environment = _environment(catalog, resolved, network, command) | {
        "parts": choice.parts,
        "probe": [
            {"way": asdict(way), "seconds_per_photo": seconds}
            for way, seconds in choice.table.items()
        ],
    }
    return runs.create(folder, resolved, used, _arrays(weights_of(network)), environment)


def _probed(recipe: Recipe, resolved: Recipe, network: Network, used: Catalog) -> Choice:
    """How to compute the steps, by a trial on this machine of what the recipe leaves open."""
    assert resolved.size != "auto"
    device = choose_device(resolved.device)
    training = sum(photo.split == "train" for photo in used.photos)
    steps = sum(replica_steps(resolved, training - training // resolved.folds))
    synchronised = resolved.sync_batch_norm and resolved.batch_ranks > 1
    keep_freed_memory()
    with training_threads(_threads(resolved)):
        return choose(
            network.to(device),
            size=resolved.size,
            batch_size=-(-resolved.batch_size // resolved.batch_ranks),
            classes=len(used.classes),
            device=device,
            layout=recipe.layout,
            precision=recipe.precision,
            compile="auto"
            if recipe.compile == "auto" and not synchronised
            else recipe.compile == "on",
            steps_to_go=steps * resolved.epochs * resolved.folds,
            cache=_cache(recipe, lambda message: None),
        )


def _tell_choice(choice: Choice, watcher: Watcher) -> None:
    """What a trial has led to; nothing where none was needed."""
    if len(choice.table) > 1:
        way, slowest = choice.way, max(choice.table.values())
        assert choice.seconds_per_photo is not None
        compiled = ", compiled" if way.compile else ""
        watcher.notice(
            f"steps are computed in {way.precision}, {way.layout}{compiled}:"
            f" {1000 * choice.seconds_per_photo:.3g} ms a photo by a trial of"
            f" {len(choice.table)} ways, of which the slowest took {1000 * slowest:.3g} ms"
        )
    if choice.parts > 1:
        watcher.notice(f"memory is short: each batch is computed in {choice.parts} parts")


def _reopen(folder: Path, catalog: Catalog, recipe: Recipe, force: bool, watcher: Watcher) -> Run:
    """An existing run, if recipe, photos and torch are still those it was started with."""
    run = Run(folder)
    if _has_folds(catalog):
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
    """Refuses another torch unless forced; tells of other packages that may change results."""
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


def prepare(catalog: Catalog, recipe: Recipe, watcher: Watcher) -> Catalog:
    """The photos that can be read, with content hash, group and fold.

    Raises `DataError` where they cannot be trained on.
    """
    catalog = _without_thin_classes(catalog, recipe.min_per_class, watcher)
    require_trainable(catalog)
    watcher.on_checking(len(catalog))
    facts = inspect(catalog, truncated=recipe.truncated, progress=watcher.on_check)
    clusters = duplicates(catalog, facts)
    found = check.findings(catalog, facts, folds=recipe.folds, clusters=clusters)
    _refuse_fatal(found, recipe)
    watcher.on_findings(found)
    _tell(found, watcher)
    conflicts: Literal["keep", "drop"] = "drop" if recipe.conflicts == "drop" else "keep"
    used, left = check.usable(catalog, facts, clusters=clusters, conflicts=conflicts)
    del facts  # most of what a check takes
    groups = joined_groups(used, left)
    used = Catalog(used.root, used.table.with_column("group", groups))
    used = _without_thin_classes(used, recipe.min_per_class, watcher)
    require_trainable(used)
    return _with_folds(_with_holdout(used, recipe), recipe, watcher)


def _refuse_fatal(found: Sequence[check.Finding], recipe: Recipe) -> None:
    forgiven = {"conflicting-labels"} if recipe.conflicts == "drop" else set()
    fatal = [finding for finding in found if finding.fatal and finding.kind not in forgiven]
    if fatal:
        lines = [f"  {f.path}: {f.message}" if f.path else f"  {f.message}" for f in fatal[:5]]
        raise DataError(
            f"these photos cannot be trained on, for {len(fatal)} reasons:\n" + "\n".join(lines),
            hint=fatal[0].hint or "`fieldguide check` lists everything that was found",
        )


def _tell(found: Sequence[check.Finding], watcher: Watcher) -> None:
    """What was found: files that cannot be read by name, the rest by number."""
    unreadable = [finding for finding in found if finding.kind in UNREADABLE]
    for finding in unreadable[:5]:
        watcher.notice(f"left out: {finding.path}: {finding.message}")
    if len(unreadable) > 5:
        watcher.notice(f"left out: {len(unreadable) - 5} more")
    counts = Counter(finding.kind for finding in found if finding.kind not in UNREADABLE)
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        watcher.notice(f"found: {kinds}; `fieldguide check` tells more")


def _without_thin_classes(catalog: Catalog, least: int, watcher: Watcher) -> Catalog:
    counts = Counter(photo.label for photo in catalog.photos if photo.split == "train")
    thin = {label for label, count in counts.items() if count < least}
    if thin:
        watcher.notice(f"{len(thin)} classes with fewer than {least} photos are left out")
    labels = enumerate(catalog.table.column("label"))
    kept = (row for row, label in labels if label is None or label not in thin)
    return Catalog(catalog.root, catalog.table.take(kept))


def _with_holdout(catalog: Catalog, recipe: Recipe) -> Catalog:
    """The catalog with a share of its training photos moved to the `val` part, groups whole."""
    if not recipe.holdout:
        return catalog
    table = catalog.table
    splits = list(table.column("split"))
    _, aside = inner_split(
        [label or "" for label in table.column("label")],
        table.column("path"),
        group_names(table),
        np.array([row for row, split in enumerate(splits) if split == "train"]),
        share=recipe.holdout,
        seed=derive_seed(recipe.seed, "holdout"),
    )
    folds = list(table.column("fold"))
    for row in aside.tolist():
        splits[row], folds[row] = "val", None
    moved = table.with_column("split", splits).with_column("fold", folds)
    return Catalog(catalog.root, moved)


def _with_folds(catalog: Catalog, recipe: Recipe, watcher: Watcher) -> Catalog:
    """The catalog with the fold that tests it for each training photo."""
    table = catalog.table
    rows = [row for row, split in enumerate(table.column("split")) if split == "train"]
    training = table.take(rows)
    labels = [label or "" for label in training.column("label")]
    groups = group_names(training)
    if _has_folds(catalog):
        made = given_folds(list(training.column("fold")), groups, labels=labels)
        watcher.notice(f"the table's own {len(made)} folds are used")
    else:
        keys = training.column("path")
        made = make_folds(labels, keys, groups, folds=recipe.folds, seed=recipe.seed)
    fold_of: list[int | None] = [None] * len(table)
    for fold in made:
        for position in fold.test.tolist():
            fold_of[rows[position]] = fold.index
    return Catalog(catalog.root, table.with_column("fold", fold_of))


def resolve(recipe: Recipe, backbone: nn.Module) -> Recipe:
    """The recipe with every `auto` replaced by what it stands for here."""
    config = input_config(backbone)
    size = config.size if recipe.size == "auto" else recipe.size
    resize = round(size * config.eval_resize / config.size)
    places = fold_places(recipe.device, recipe.workers)
    device = places[0]
    return recipe.replace(
        size=size,
        first_size=size if recipe.first_size == "auto" else recipe.first_size,
        eval_resize=resize if recipe.eval_resize == "auto" else recipe.eval_resize,
        stored_side=_stored_side(recipe, resize),
        mean=config.mean if recipe.mean == "auto" else recipe.mean,
        std=config.std if recipe.std == "auto" else recipe.std,
        interpolation=(
            config.interpolation if recipe.interpolation == "auto" else recipe.interpolation
        ),
        device=",".join(dict.fromkeys(str(place) for place in places)),
        precision=choose_precision(recipe.precision, device),
        workers=len(places) if device.type == "cpu" else _readers(recipe.workers, places),
    )


def _readers(asked: int | str, places: Sequence[torch.device]) -> int:
    """Threads that prepare photos for each of so many devices; on a CPU whoever trains does it."""
    device = places[0]
    beside = len(places) * launch().beside
    return 0 if device.type == "cpu" else count_workers(asked, device, beside)


def _stored_side(recipe: Recipe, resize: int) -> int:
    """As much as is decoded at all: crops from less are blurred more than evaluation's pictures."""
    if recipe.stored_side != "auto":
        return recipe.stored_side
    return decoded_side(resize if recipe.eval_resize == "auto" else recipe.eval_resize)


def _environment(
    catalog: Catalog, recipe: Recipe, network: Network, command: Sequence[str]
) -> dict[str, Any]:
    """What a reader needs to repeat the run, beside recipe and photos."""
    config = input_config(network.backbone)
    device = choose_device(recipe.device)
    return {
        "photos": str(catalog.root.resolve()),
        "photos_found": len(catalog),
        "command": list(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in RECORDED_PACKAGES},
        },
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": _threads(recipe),
        "seed": recipe.seed,
        "parameters": sum(tensor.numel() for tensor in network.parameters()),
        "weights": recipe.weights,
        "weights_sha256": _weights_sha256(recipe.weights),
        "weights_license": config.license if recipe.weights == "pretrained" else "",
    }


def _threads(recipe: Recipe) -> int:
    """Torch's threads for each fold, so that those at the same time share the cores."""
    if launch().world > 1:
        return 1
    return count_threads(min(len(fold_places(recipe.device, recipe.workers)), recipe.folds))


def _weights_sha256(weights: str) -> str:
    return "" if weights in {"pretrained", "none"} else files.sha256(Path(weights))


def fold_jobs(
    run: Run,
    root: Path,
    machine: Recipe | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> Callable[[int], FoldJob]:
    """From a fold's number to its job, all with one network object and one set of loaders.

    `root` is where the photos lie. What changes no result (device, workers) is taken from
    `machine`.
    """
    settings = {name: getattr(machine or run.recipe, name) for name in recipes.HARMLESS}
    recipe = run.recipe.replace(**settings)
    device = choose_device(recipe.device)
    start = {name: torch.from_numpy(array) for name, array in run.weights().items()}
    network = build(
        recipe.backbone,
        weights="none",
        head=recipe.head,
        classes=len(run.classes),
        dropout=recipe.dropout,
        seed=recipe.seed,
    )
    freeze(network, recipe.freeze)
    assert recipe.layout != "auto"
    network.to(device).to(memory_format=memory_format(recipe.layout))
    folded = batch_norm.fold(network)
    if recipe.compile == "on":
        network.compile()
    photos = run.catalog.table
    loader = Loader(
        pictures(
            recipe,
            Files(root, photos.column("path")),
            keys=photos.column("sha256"),
            folder=shards.opened(root).holder(0).parent if root.name == shards.INDEX else root,
            notice=notice,
        ),
        _readers(recipe.workers, [device]),
        pin_memory=device.type == "cuda",
    )

    places = None
    if recipe.order == "shards":
        places = _index(root).places([photo.path for photo in photos])

    def resized(size: int) -> Loader:
        shown = replace(loader.pictures, training=_training(recipe, size))
        return replace(loader, pictures=shown)

    def job(index: int) -> FoldJob:
        train, watch = _parts(run, run.folds[index])
        return FoldJob(
            fold=index,
            recipe=recipe,
            network=network,
            folded=folded,
            start=start,
            loader=loader,
            resized=resized,
            device=device,
            precision=choose_precision(recipe.precision, device),
            classes=len(run.classes),
            targets=run.targets,
            train=train,
            test=run.folds[index].test,
            watch=watch,
            parts=run.parts,
            places=places,
        )

    return job


def _index(root: Path) -> shards.Index:
    """The index of a sharded collection; `DataError` where the photos are not in shards."""
    if root.name != shards.INDEX:
        raise DataError(
            f"`order` = 'shards', and the photos are not in shards: {root}",
            hint="pack them with `fieldguide pack`, or leave `order` as it is",
        )
    return shards.opened(root)


def _tracked(watcher: Watcher, tracker: Tracker) -> Watcher:
    def on_row(row: dict[str, Any]) -> None:
        watcher.on_row(row)
        tracker.row(row)

    return replace(watcher, on_row=on_row)


def _train_folds(
    run: Run,
    asked: Recipe,
    root: Path,
    todo: tuple[int, ...],
    watcher: Watcher,
    ranks: Ranks,
) -> None:
    """Trains folds in this process one after another, or side by side in several."""
    told: set[str] = set()

    def notice(message: str) -> None:
        """Each message once: several processes may have the same to tell."""
        if message not in told:
            told.add(message)
            watcher.notice(message)

    telling = replace(watcher, notice=notice)
    files.make_folder(run.folder / "folds")
    watcher.on_plan(planned(run, todo, ranks))
    places = places_at_once(asked, run.environment["threads"])[: len(todo)]
    makes = [partial(_fold_trainer, run.folder, root, here) for here in _placed(asked, places)]
    if asked.cluster != "none":
        _train_on_cluster(run, asked, root, todo, telling)
    elif len(places) > 1 and ranks.world == 1:
        train_side_by_side(makes, todo, telling)
    else:
        train = makes[0](telling, ranks)
        for index in todo:
            stop, _ = ranks.agree(asked_to_stop(watcher), False)
            if stop:
                raise stop
            train(index)


def _train_on_cluster(
    run: Run, asked: Recipe, root: Path, todo: tuple[int, ...], controls: Controls
) -> None:
    """Trains each fold as a job where there is room, on the same kind of device as here."""
    there = asked.replace(device=choose_device(asked.device).type, cluster="none")
    make = partial(
        _distant_trainer, run.folder.resolve(), root.resolve(), there, _fingerprint(run, root)
    )
    needs = _needs(asked, run.environment["threads"])
    train_on_cluster(make, todo, asked.cluster, needs, controls)


def _needs(asked: Recipe, threads: int) -> dict[str, float]:
    """What a fold's job takes of a machine, in Ray's terms."""
    if choose_device(asked.device).type == "cuda":
        return {"num_gpus": 1.0, "num_cpus": 1.0}
    return {"num_cpus": float(threads)}


def _distant_trainer(
    folder: Path, root: Path, asked: Recipe, expected: dict[str, str], controls: Controls
) -> Callable[[int], None]:
    """As `_fold_trainer`, on a machine that may not have what this run was begun with."""
    name = platform.node()
    if not (folder / runs.SETUP).is_file():
        raise ResourceError(
            f"machine `{name}` does not see the run's folder `{folder}`",
            hint="choose --out on a disk that all machines of the cluster share",
        )
    found = _fingerprint(Run(folder), root)
    odd = [
        f"{what}: {found[what]}, not {expected[what]}"
        for what in expected
        if found[what] != expected[what]
    ]
    if odd:
        raise ResourceError(
            f"machine `{name}` differs from the one that began this: {'; '.join(odd)}",
            hint="all machines need the same versions and the same photos in the same place",
        )
    return _fold_trainer(folder, root, asked, controls, patience=TAKEN_FOR_DEAD)


def _fingerprint(run: Run, root: Path) -> dict[str, str]:
    """What must be alike on all machines: versions, and the photos by size, some by content."""
    photos = [photo for photo in run.catalog.photos if photo.split != "test"]
    digest = hashlib.sha256()
    if root.name == shards.INDEX:  # its photos are no files
        for entry in shards.opened(root).entries():
            digest.update(f"{entry.path}\0{entry.sha256}\n".encode())
    for number, photo in enumerate(photos):
        path = root / photo.path
        with suppress(OSError):  # what is not there is not digested
            if number % max(len(photos) // HASHED_PHOTOS, 1) == 0:
                digest.update(pixels.sha256(path).encode())
            digest.update(f"{photo.path}\0{path.stat().st_size}\n".encode())
    versions = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    return {"photos": digest.hexdigest()[:12], **versions}


def folds_at_once(asked: Recipe) -> int:
    """How many folds are trained at the same time, here or on the recipe's cluster.

    Raises what `ray_jobs.connected` does.
    """
    if asked.cluster == "none":
        return len(places_at_once(asked))
    with connected(asked.cluster) as ray:
        return max(jobs_at_once(ray, _needs(asked, _threads(asked))), 1)


def places_at_once(asked: Recipe, threads: int = 1) -> tuple[torch.device, ...]:
    """Where folds are trained at the same time, with so many threads each."""
    places = fold_places(asked.device, asked.workers)
    return places[: max(count_cores() // threads, 1)] if places[0].type == "cpu" else places


def _placed(asked: Recipe, places: Sequence[torch.device]) -> list[Recipe]:
    """What was asked for, as it holds in each place."""
    workers = _readers(asked.workers, places)
    return [asked.replace(device=str(place), workers=workers) for place in places]


def _fold_trainer(
    folder: Path,
    root: Path,
    asked: Recipe,
    controls: Controls,
    ranks: Ranks = ALONE,
    patience: float = 0.0,
) -> Callable[[int], None]:
    """What trains and saves a fold of a run, in whatever process this is called.

    It raises `ResourceError` for a fold that another process holds for `patience` seconds.
    """
    run = Run(folder)
    keep_freed_memory()
    job_of = fold_jobs(run, root, asked, controls.notice)

    def train(index: int) -> None:
        with ExitStack() as stack:
            if ranks.first:
                stack.enter_context(_held(run.fold_folder(index), patience, controls))
            if ranks.announce(index in run.undone):
                _train_fold(run, job_of(index), controls, ranks)

    return train


@contextmanager
def _held(place: Path, patience: float, controls: Controls) -> Iterator[None]:
    """Holds a fold's folder, where a killed process may have left half-written files."""
    files.make_folder_within(place)
    with files.lock(place, wait=patience, meanwhile=_waiting(controls)):
        for folder in (place, place / "checkpoint"):
            if folder.is_dir():
                files.remove_temporaries(folder)
        yield


def _train_fold(run: Run, job: FoldJob, controls: Controls, ranks: Ranks) -> None:
    """Trains one fold; the first rank saves it."""
    with training_threads(run.environment["threads"]):
        result = train_fold(job, run.fold_folder(job.fold) / "checkpoint", controls, ranks)
    if not ranks.first:
        return
    trained = Trained(
        weights=_arrays(result.weights),
        chosen_epoch=result.chosen_epoch,
        logits=result.logits,
        epoch_logits=result.epoch_logits,
        history=result.history,
        merges=result.merges,
        replicas=[_arrays(weights) for weights in result.replicas],
    )
    runs.save_fold(run, job.fold, trained)


def _arrays(weights: Weights) -> dict[str, NDArray[Any]]:
    return {name: tensor.cpu().numpy() for name, tensor in weights.items()}


def _parts(run: Run, fold: Fold) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The photos a fold trains on, and those that early stopping looks at."""
    recipe, photos = run.recipe, run.catalog.photos
    if recipe.stop == "none":
        return fold.train, np.empty(0, dtype=np.int64)
    if recipe.stop == "fold":
        val = [n for n, p in enumerate(photos) if p.split == "val" and run.targets[n] >= 0]
        extra = np.array(val if recipe.watch_val else [], dtype=np.int64)
        return fold.train, np.concatenate([fold.test, extra])
    return inner_split(
        [photo.label or "" for photo in photos],
        [photo.path for photo in photos],
        [photo.group or photo.path for photo in photos],
        fold.train,
        share=recipe.inner_share,
        seed=recipe.seed,
    )


def pictures(
    recipe: Recipe,
    photos: Sequence[Path],
    *,
    keys: Sequence[str] = (),
    folder: Path | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> Pictures:
    """What training and evaluation make of the files, which lie in `folder`, by a resolved recipe.

    With `keys`, the SHA-256 of each file, decoded photos are kept where the recipe says.
    """
    assert recipe.size != "auto" and recipe.eval_resize != "auto" and recipe.stored_side != "auto"
    assert recipe.interpolation != "auto" and recipe.mean != "auto"
    decoding = Decoding.of(
        recipe.stored_side, recipe.eval_resize, recipe.interpolation, recipe.truncated
    )
    return Pictures(
        files=photos,
        training=_training(recipe, recipe.size),
        evaluation=evaluation(recipe.size, recipe.eval_resize, recipe.interpolation),
        decoding=decoding,
        store=_store(recipe, decoding, notice) if keys else None,
        keys=keys,
        folder=folder,
        notice=notice,
    )


def _training(recipe: Recipe, size: int) -> TrainingTransform:
    """What training shows of a picture, by a resolved recipe but in a size of its own."""
    assert recipe.interpolation != "auto" and recipe.mean != "auto"
    settings = Augmentation(
        size=size,
        interpolation=recipe.interpolation,
        crop_scale=recipe.crop_scale,
        flip=recipe.flip,
        color_jitter=recipe.color_jitter,
        jitter=recipe.jitter,
        grayscale=recipe.grayscale,
        policy=recipe.augment,
        erasing=recipe.erasing,
    )
    return training(settings, recipe.mean)


def _cache(recipe: Recipe, notice: Callable[[str], None]) -> Path | None:
    """The folder for what is worth keeping from run to run, if there can be one."""
    try:
        return None if recipe.cache == "none" else cache_folder.root_of(recipe.cache)
    except ResourceError as error:
        notice(f"decoded photos are not kept: {error.message}")
        return None


def _store(recipe: Recipe, decoding: Decoding, notice: Callable[[str], None]) -> Store | None:
    """Where decoded photos are kept; none where the recipe wants them decoded each time."""
    if decoding.side is None:
        return None
    place = _cache(recipe, notice)
    if place is None:
        return None
    folder = decoded.folder_of(
        place,
        side=decoding.side,
        interpolation=decoding.interpolation,
        truncated=decoding.truncated,
    )
    limit = None if recipe.cache_gb == "auto" else round(1e9 * recipe.cache_gb)
    return Store(folder, limit=limit, notice=notice)


def planned(run: Run, folds: Iterable[int] | None = None, ranks: Ranks = ALONE) -> Plan:
    """How much there is to do in some folds, or in all that are not done."""
    recipe, peers = run.recipe, ranks.peers
    todo = tuple(run.undone if folds is None else folds)
    photos = [len(_parts(run, run.folds[index])[0]) for index in todo]
    steps = sum(sum(replica_steps(recipe, n)[peers.rank :: peers.world]) for n in photos)
    return Plan(todo, steps * recipe.epochs, recipe)
