"""The places of training: this process, for fold after fold, several at once, or a cluster.

Each fold's folder is locked while it is trained, so that any number of processes may train folds of
one run. Knows nothing of how a fold is trained.
"""

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from fieldguide.errors import ResourceError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import waiting
from fieldguide.fitting.resume import RECORDED_PACKAGES
from fieldguide.fitting.settings import readers, threads_of
from fieldguide.machine.controls import Controls
from fieldguide.machine.cores import count_cores
from fieldguide.machine.device import (
    choose_device,
    fold_places,
    keep_freed_memory,
    training_threads,
)
from fieldguide.machine.processes import train_side_by_side
from fieldguide.machine.ranks import ALONE, Ranks
from fieldguide.machine.ray_jobs import connected, jobs_at_once, train_on_cluster
from fieldguide.photos import crops, pixels
from fieldguide.recipe import Recipe
from fieldguide.runs import run as runs
from fieldguide.runs.run import Run
from fieldguide.storage import files, shards
from fieldguide.train.job import FoldJob
from fieldguide.train.loop import train_fold

# Photos whose content is compared between machines; of all others it is the size (taste).
HASHED_PHOTOS = 64

# Seconds that a fold's new job waits for one that was taken for dead and is not.
TAKEN_FOR_DEAD = 300.0


def elsewhere(
    run: Run, root: Path, asked: Recipe, todo: Sequence[int], ranks: Ranks
) -> Callable[[Controls], None] | None:
    """Return what trains folds outside this process: on a cluster, or in several processes.

    None where they are to be trained here, in turn. `root` is where the photos lie.
    """
    if not asked.epochs:
        return None
    if asked.cluster != "none":
        return partial(_train_on_cluster, run, asked, root, todo)
    places = places_at_once(asked, run.environment["threads"])[: len(todo)]
    if len(places) == 1 or ranks.world > 1:
        return None
    makes = [partial(fold_trainer, run.folder, root, here) for here in placed(asked, places)]
    return partial(train_side_by_side, makes, todo)


def train_in_turn(
    run: Run,
    job_of: Callable[[int], FoldJob],
    folds: Sequence[int],
    controls: Controls,
    ranks: Ranks = ALONE,
    patience: float = 0.0,
) -> None:
    """Train folds in this process one after another, and save each.

    Raises `ResourceError` for a fold that another process holds for `patience` seconds; what it has
    done meanwhile is left. On ranks the first one saves.
    """
    keep_freed_memory()
    for fold in folds:
        ranks.stop_if_asked(controls)
        place = run.fold_folder(fold)
        with ExitStack() as stack:
            if ranks.first:
                stack.enter_context(_held(place, patience, controls))
            if not ranks.announce(fold in run.undone):
                continue
            stack.enter_context(training_threads(run.environment["threads"]))
            result = train_fold(job_of(fold), place / "checkpoint", controls, ranks)
            if ranks.first:
                runs.save_fold(run, fold, result)


@contextmanager
def _held(place: Path, patience: float, controls: Controls) -> Iterator[None]:
    """Hold a fold's folder, where a killed process may have left half-written files."""
    files.make_folder_within(place)
    hint = "wait until it ends; the same command then trains what is left"
    with files.lock(place, wait=patience, meanwhile=waiting(controls), hint=hint):
        for folder in (place, place / "checkpoint"):
            if folder.is_dir():
                files.remove_temporaries(folder)
        yield


def fold_trainer(
    folder: Path, root: Path, asked: Recipe, controls: Controls, patience: float = 0.0
) -> Callable[[int], None]:
    """Return what trains and saves a fold of a run, in whatever process this is called."""
    run = Run(folder)
    job_of = fold_jobs(run, root, asked, controls.notice)
    return lambda fold: train_in_turn(run, job_of, [fold], controls, patience=patience)


def _train_on_cluster(
    run: Run, asked: Recipe, root: Path, todo: Sequence[int], controls: Controls
) -> None:
    """Train each fold as a job where there is room, on the same kind of device as here."""
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
    """Return what trains a fold on a machine that may not have what the run was begun with."""
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
    return fold_trainer(folder, root, asked, controls, patience=TAKEN_FOR_DEAD)


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
            digest.update(f"{photo.path}\0{crops.photo_of(path).stat().st_size}\n".encode())
    versions = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    return {"photos": digest.hexdigest()[:12], **versions}


def folds_at_once(asked: Recipe) -> int:
    """How many folds are trained at the same time, here or on the recipe's cluster.

    Raises what `ray_jobs.connected` does.
    """
    if asked.cluster == "none":
        return len(places_at_once(asked))
    with connected(asked.cluster) as ray:
        return max(jobs_at_once(ray, _needs(asked, threads_of(asked))), 1)


def places_at_once(asked: Recipe, threads: int = 1) -> tuple[torch.device, ...]:
    """Return the devices that train folds at the same time, with this number of threads each."""
    places = fold_places(asked.device, asked.workers)
    return places[: max(count_cores() // threads, 1)] if places[0].type == "cpu" else places


def placed(asked: Recipe, places: Sequence[torch.device]) -> list[Recipe]:
    """What was asked for, as it holds in each place."""
    workers = readers(asked.workers, places)
    return [asked.replace(device=str(place), workers=workers) for place in places]
