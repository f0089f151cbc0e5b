"""A whole fit: from photographs and a recipe to a run folder with trained folds and honest scores.

    the run as it stands, or begun: one process begins it, the others wait
    the folds that are not done, each locked while it is trained, here or elsewhere
    the tables, by whichever process is the last to finish

Folds are pure jobs, so that a killed fit continues from its last checkpoint when it is called again
with the same arguments, wherever its folds are trained.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from fieldguide.errors import ResourceError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.older import opened, require_same_start
from fieldguide.fitting.places import elsewhere, train_in_turn
from fieldguide.fitting.prepare import has_folds
from fieldguide.fitting.progress import Watcher, planned, tracked, waiting
from fieldguide.fitting.resume import reopen
from fieldguide.fitting.settings import on_rank, require_fold
from fieldguide.fitting.start import create
from fieldguide.machine.device import choose_device, choose_precision
from fieldguide.machine.ranks import Ranks, joined
from fieldguide.machine.ray_jobs import require_address
from fieldguide.photos.catalog import Catalog
from fieldguide.recipe import Recipe
from fieldguide.runs import run as runs
from fieldguide.runs import tracking
from fieldguide.runs.run import Run
from fieldguide.storage import files, mirror


def fit(
    catalog: Catalog,
    recipe: Recipe,
    out: str | Path,
    *,
    fold: int | None = None,
    force: bool = False,
    prepared: bool = False,
    instant: bool = False,
    start_from: str | Path | None = None,
    command: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Run:
    """Train every fold that is not done yet (or `fold` alone) and return the run.

    On ranks that torchrun started, all of which call this, replicas are spread over them. The same
    call resumes, on as many ranks or on others; a finished run is returned untouched, but for what
    it has lost, which is made again. Several processes may call it at once, each for a `fold`.
    `force` resumes although the version of torch differs. With `prepared` the catalog is one that
    `prepare` made: no photo is checked, and its groups, folds and parts are those of the run. With
    `instant` a new run is told first what a regression on the untrained network's features reaches,
    and keeps it. With `start_from`, the folder of a finished run of a collection that has changed
    since, photos keep their folds and each fold starts from that fold's weights: `fitting.older`.
    An `out` that is an address, such as `s3://bucket/run`, is kept in the cache folder and sent as
    it grows: `mirror`.

    Raises `UsageError` where `out` holds a run of another recipe, or of other photos, `DataError`
    where the photos cannot be used, `ResourceError`, also for a fold that another process trains,
    `TrainingError`, and whatever `watcher.check_stop` raises, after a checkpoint.
    """
    assert not (prepared and start_from), "folds that are made already may be others"
    watcher = watcher or Watcher()
    with (
        mirror.mirrored(out, watcher.notice) as folder,
        joined(recipe.device, recipe.replicas, recipe.batch_ranks) as ranks,
    ):
        recipe = on_rank(recipe, ranks)
        run: Run | None = None
        tracker = None
        if ranks.first:  # it alone writes into the run folder
            _refuse_early(catalog, recipe, fold)
            require_usable(folder)
            tracker = tracking.start(recipe.track, folder, watcher.notice)
            run = _begun(
                folder, catalog, recipe, force, prepared, instant, start_from, command, watcher
            )
            require_fold(fold, run.recipe.folds)
        free, held = ranks.announce(_undone(run, fold))
        if free or held:
            with tracked(watcher, tracker) as telling:
                run = run or _seen(folder, ranks)
                files.make_folder(folder / "folds")
                telling.on_plan(planned(run, free + held, ranks))
                for todo in filter(None, (free, held)):  # those that others train now come last
                    if train := elsewhere(run, catalog.root, recipe, todo, ranks):
                        train(telling)
                    else:
                        job_of = fold_jobs(run, catalog.root, recipe, telling.notice)
                        train_in_turn(run, job_of, todo, telling, ranks)
        run = run or Run(folder)
        if ranks.first and not run.complete and not run.undone:
            _finish(run, watcher)
        ranks.announce(())  # it is written
        return run


def begin(
    folder: Path, catalog: Catalog, recipe: Recipe, command: Sequence[str], watcher: Watcher
) -> Run:
    """Return a new run of a catalog that `prepare` made, with no fold trained; `fit` resumes it."""
    require_usable(folder)
    with files.lock(folder):
        files.remove_temporaries(folder)
        return create(folder, catalog, recipe, command, watcher, prepared=True)


def require_usable(folder: Path) -> None:
    """Create the folder; raise `UsageError` for one that holds something else than a run."""
    files.make_folder(folder)
    known = {
        *runs.SETUP_FILES,
        runs.SETUP,
        runs.FINDINGS,
        runs.PROBE,
        runs.OLDER,
        files.LOCK,
        "folds",
    }
    files.refuse_strange(folder, known, mark=runs.SETUP, what="run")


def _refuse_early(catalog: Catalog, recipe: Recipe, fold: int | None) -> None:
    """Raise what the machine cannot do, or what cannot be, before long work."""
    choose_precision(recipe.precision, choose_device(recipe.device))
    if recipe.cluster != "none":
        require_address(recipe.cluster)
    if not has_folds(catalog):
        require_fold(fold, recipe.folds)


def _begun(
    folder: Path,
    catalog: Catalog,
    recipe: Recipe,
    force: bool,
    prepared: bool,
    instant: bool,
    start_from: str | Path | None,
    command: Sequence[str],
    watcher: Watcher,
) -> Run:
    """Return the run as it stands; one of all processes that come for it begins it.

    A finished run is not touched.
    """
    if not (folder / runs.SETUP).is_file():
        with files.lock(folder, wait=math.inf, meanwhile=waiting(watcher)):
            if not (folder / runs.SETUP).is_file():
                files.remove_temporaries(folder)
                older = opened(start_from, catalog, recipe) if start_from else None
                return create(
                    folder,
                    catalog,
                    recipe,
                    command,
                    watcher,
                    prepared=prepared,
                    instant=instant,
                    older=older,
                )
    run = reopen(folder, catalog, recipe, force, watcher)
    if start_from:
        require_same_start(run, start_from)
    return run


def _undone(run: Run | None, fold: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the folds to be trained, free ones and held ones, as the first rank knows them."""
    if run is None or run.complete:
        return (), ()
    todo = [number for number in run.undone if fold in (None, number)]
    held = tuple(number for number in todo if files.is_held(run.fold_folder(number)))
    return tuple(number for number in todo if number not in held), held


def _seen(folder: Path, ranks: Ranks) -> Run:
    """Return the run that the first rank has found or begun."""
    if not (folder / runs.SETUP).is_file():
        raise ResourceError(
            f"rank {ranks.rank} does not see the run in `{folder}`",
            hint="the run folder must be the same one for all ranks",
        )
    return Run(folder)


def _finish(run: Run, watcher: Watcher) -> None:
    """Write what only a whole run has, unless another process has done so meanwhile."""
    with files.lock(run.folder, wait=math.inf, meanwhile=waiting(watcher)):
        if not run.complete:
            files.remove_temporaries(run.folder)
            for fold in run.done:  # one that was killed in between leaves them
                shutil.rmtree(run.fold_folder(fold) / "checkpoint", ignore_errors=True)
            runs.finish(run)
