"""Several recipes on the same photos and the same folds: which is better, and is it by chance?

    trials    from a base and what is to vary: a grid, one setting at a time, or a preset
    prepare   the photos once, with groups and folds; they are kept, for when it is resumed
    forecast  hours of each trial, from a few real steps; what does not fit a budget is left out
    fit       each trial into a run folder of its own, which can be resumed; a complete one is done
    collect   paired differences, the winner and what choosing it is worth, from what is done

    OUT/
      recipe.toml   the base           catalog.csv   the photos, with their folds
      findings.csv   what the check found; prepared.json   SHA-256 of these, written last
      base/ …       a run for each trial; failed.json in it where training went wrong
      compare.csv   compare.json   compare.html   compare.png   compare.svg

Knows nothing of how folds are trained.
"""

import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fieldguide import recipe as recipes
from fieldguide.compare import results
from fieldguide.compare.forecast import forecast, over_budget, too_late
from fieldguide.compare.results import FAILED
from fieldguide.compare.trials import SHARED, Trial, distinct, with_seeds
from fieldguide.errors import Stopped, TrainingError, UsageError
from fieldguide.fitting import fit as fitting
from fieldguide.fitting.places import folds_at_once
from fieldguide.fitting.prepare import prepare
from fieldguide.fitting.progress import Plan, Watcher, planned
from fieldguide.fitting.resume import require_same_photos
from fieldguide.fitting.settings import resolve
from fieldguide.machine.controls import relayed
from fieldguide.machine.device import choose_device, choose_precision
from fieldguide.machine.ray_jobs import connected, require_address
from fieldguide.network.network import build_backbone
from fieldguide.photos import catalog as catalogs
from fieldguide.photos import check
from fieldguide.photos.catalog import Catalog
from fieldguide.recipe import Recipe
from fieldguide.report.comparison import PREPARED, Comparison
from fieldguide.runs import run as runs
from fieldguide.runs.run import Run
from fieldguide.storage import files

Train = Callable[[Watcher, Trial], None]

PREPARED_FILES = ("recipe.toml", runs.FINDINGS, runs.GIVEN, "catalog.csv")


def compare(
    catalog: Catalog,
    trials: Sequence[Trial],
    out: str | Path,
    *,
    seeds: int = 1,
    budget_hours: float | None = None,
    command: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Comparison:
    """Train what is not done of the trials, the base first, and compare them.

    With several `seeds` each trial is trained with as many, its own and the next ones, all first
    with their own; the comparison is then one over photos and seeds.
    The same call resumes. A trial whose training diverges is recorded and not tried again while its
    folder is there. Trials that take longer than what is left of a budget are left out, in order.
    Table, record and page are written before the first trial and after each (`results.rebuilt`).
    Raises `UsageError` where `out` holds something else, or other trials under the same names, and
    what `fit` raises.
    """
    watcher = watcher or Watcher()
    folder = Path(out)
    for trial in trials:
        if trial.recipe.batch_ranks > 1:
            raise UsageError(
                f"{trial.name}: `batch_ranks` needs torchrun's ranks, and `compare` has none",
                hint="leave it out: `cluster` and `device` spread the folds",
            )
    with_seeds(trials, seeds)  # raises
    if folder.is_dir():
        known = {*PREPARED_FILES, files.LOCK}
        files.refuse_strange(folder, known, mark=PREPARED, what="comparison")
    files.make_folder(folder)
    with files.lock(folder):
        begun = (folder / PREPARED).is_file()
        cluster = trials[0].recipe.cluster  # of all: it changes no result
        if not begun and cluster != "none":
            require_address(cluster)
        used = _prepared(folder, catalog, trials[0].recipe, watcher)
        trials = with_seeds(_different_here(trials, watcher), seeds)
        _require_same_recipes(folder, trials)
        todo = [
            trial
            for trial in trials  # without those that are complete, or failed for good
            if not any(
                (folder / trial.folder / name).is_file() for name in (files.MANIFEST, FAILED)
            )
        ]
        if begun:
            require_same_photos(folder, runs.given(folder, catalog.root, PREPARED), used, catalog)
        fits = _Fits(folder, trials, used, command)
        if todo:
            with nullcontext() if cluster == "none" else connected(cluster):
                budget = math.inf if budget_hours is None else 3600 * budget_hours
                fits.train(todo, budget, watcher)
        return fits.so_far()


# --- before the training --------------------------------------------------------------------------


def _prepared(folder: Path, catalog: Catalog, base: Recipe, watcher: Watcher) -> Catalog:
    """Return the photos with their folds, which are prepared now or were before."""
    if not (folder / PREPARED).is_file():
        files.remove_temporaries(folder)
        found: list[check.Finding] = []
        used = prepare(catalog, base, replace(watcher, on_findings=found.extend))
        check.write_findings(folder / runs.FINDINGS, found)
        files.write_text(folder / "recipe.toml", recipes.to_toml(base))
        catalogs.write_rows(folder / runs.GIVEN, catalog)
        catalogs.write_rows(folder / "catalog.csv", used)
        files.write_manifest(folder, PREPARED_FILES, name=PREPARED)
        return used
    files.verify(folder, name=PREPARED)
    before = recipes.load(str(folder / "recipe.toml"))
    differing = recipes.differences(base, before)
    pairs = {name: differing[name] for name in (*SHARED, "seed") if name in differing}
    _require_equal(pairs, f"`{folder}` was begun with other photos or folds:\n  ", "\n  ")
    return catalogs.read_rows(folder / "catalog.csv", root=catalog.root)


def _require_equal(pairs: Mapping[str, tuple[Any, Any]], said: str, separator: str) -> None:
    """Raise `UsageError` for settings whose values there and now differ; `said` begins it."""
    texts = [f"{name}: {there!r} there, {now!r} now" for name, (there, now) in pairs.items()]
    if texts:
        raise UsageError(
            said + separator.join(texts),
            hint="name a new folder with --out, or leave these settings as they were",
        )


def _different_here(trials: Sequence[Trial], watcher: Watcher) -> list[Trial]:
    """Return the trials that differ once `auto` is resolved; notice the others."""
    names = {trial.recipe.backbone for trial in trials}
    bodies = {name: build_backbone(name, weights="none", seed=0) for name in names}
    here = []
    for trial in trials:
        device = choose_device(trial.recipe.device)
        # One for all, where each would choose by a try of its own.
        precision = choose_precision(trial.recipe.precision, device)
        here.append(replace(trial, recipe=trial.recipe.replace(precision=precision)))
    kept = distinct(here, partial(_meaning, bodies))
    for text in itertools.chain.from_iterable(map(results.on_twins, kept)):
        watcher.notice(text)
    return kept


def _meaning(bodies: Mapping[str, nn.Module], recipe: Recipe) -> Recipe:
    """Return the recipe without `auto`, under its backbone's full name, and what has no effect."""
    body = bodies[recipe.backbone]
    config: Mapping[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
    full = f"{config['architecture']}.{config['tag']}"
    tried = {"layout": recipe.layout, "compile": recipe.compile, "backbone": full}
    return recipes.effective(recipes.build(resolve(recipe, body).model_dump() | tried))


def _require_same_recipes(folder: Path, trials: Sequence[Trial]) -> None:
    """Raise `UsageError`, before long work, for runs of other recipes under the trials' names."""
    for place, recipe in ((folder / trial.folder, trial.recipe) for trial in trials):
        if (place / runs.SETUP).is_file():
            # The folds are the catalog's; weights may have moved, and `fit` knows them.
            found = recipes.differences(recipe, Run(place).recipe)
            pairs = {name: found[name] for name in sorted(found.keys() - {"folds", "weights"})}
            _require_equal(pairs, f"`{place}` holds a run of another recipe: ", ", ")


# --- the training ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fits:
    """The trials' fits, each in a folder of its own, with notes on trials that are left out.

    What one trial has `told` no other tells again, word for word: seeds of one recipe are alike.
    """

    folder: Path
    trials: Sequence[Trial]
    used: Catalog
    command: Sequence[str]
    left_out: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def so_far(self) -> Comparison:
        """Write the comparison as far as it is done, and return it."""
        found = results.collect(self.folder, self.trials, self.used, self.left_out)
        results.write(found, self.folder, self.trials[0].recipe)
        return found

    def train(self, todo: Sequence[Trial], budget: float, watcher: Watcher) -> None:
        """Train what fits the budget in seconds: in sequence, or at the same time on a cluster."""
        costs = forecast(self.folder, todo, self.used, watcher)
        self.left_out.update(over_budget(costs, budget, self.trials[0].name))
        for note in self.left_out.values():
            watcher.notice(note)
        self.so_far()
        end = time.monotonic() + budget
        todo = [trial for trial in todo if trial.name not in self.left_out]
        train = partial(self._train_one, costs, end)
        if todo and todo[0].recipe.cluster != "none":
            turns = self._at_once(train, todo, watcher)
        else:
            turns = map(train, itertools.repeat(watcher), todo)
        try:
            for _ in turns:
                self.so_far()
        except Stopped:
            self.so_far()
            raise

    def _at_once(self, train: Train, todo: Sequence[Trial], watcher: Watcher) -> Iterator[None]:
        """Train as many at the same time as fill the cluster; yield after each.

        The first error stops the others, which save checkpoints, and is raised.
        """
        plans = [planned(self._begun(trial, watcher)) for trial in todo]
        folds = tuple(fold for plan in plans for fold in plan.folds)
        steps = sum(plan.steps for plan in plans)
        watcher.on_plan(Plan(folds, steps, plans[0].recipe, trials=len(plans)))
        shared = _Shared(watcher)
        recipe = todo[0].recipe
        # One more than fills it, as a trial's last folds leave room.
        at_once = 1 + -(-folds_at_once(recipe) // recipe.folds)
        with ThreadPoolExecutor(at_once) as pool:  # each only waits for the jobs of one trial
            waiting = [pool.submit(train, shared.of(trial), trial) for trial in todo]
            try:
                for each in as_completed(waiting):
                    yield each.result()
            except BaseException:
                shared.over.set()
                raise

    def _train_one(
        self, costs: Mapping[str, float], end: float, watcher: Watcher, trial: Trial
    ) -> None:
        """Train one trial, if time is left; record it where training goes wrong."""
        watcher.check_stop()
        late = too_late(trial.name, costs[trial.name], end - time.monotonic())
        if late and trial is not self.trials[0]:
            watcher.notice(late)
            self.left_out[trial.name] = late
            return

        def notice(text: str) -> None:
            if text not in self.told:
                self.told.add(text)
                watcher.notice(f"{trial.name}: {text}")

        named = replace(watcher, notice=notice)
        place = self._begun(trial, named).folder
        watcher.notice(f"{trial.name}: training begins")
        try:
            fitting.fit(
                self.used, trial.recipe, place, prepared=True, command=self.command, watcher=named
            )
        except TrainingError as error:
            watcher.notice(f"{trial.name}: failed: {error.message}")
            files.write_json(place / FAILED, {"message": error.message, "hint": error.hint})

    def _begun(self, trial: Trial, watcher: Watcher) -> Run:
        """Return the run of a trial, which begins now if it has not begun."""
        place = self.folder / trial.folder
        if (place / runs.SETUP).is_file():
            return Run(place)
        files.make_folder(place)
        findings = (self.folder / runs.FINDINGS).read_bytes()
        files.write_bytes(place / runs.FINDINGS, findings)
        return fitting.begin(place, self.used, trial.recipe, self.command, watcher)


class _Shared:
    """A watcher to which the threads of several trials report in turn, and that stops them all."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher, self.lock, self.over = watcher, threading.Lock(), threading.Event()

    def of(self, trial: Trial) -> Watcher:
        """Return the watcher of one trial, by whose name its rows are known."""
        controls = relayed(lambda kind: partial(self._tell, trial.name, kind), self._check_stop)
        return Watcher(**vars(controls))

    def _tell(self, trial: str, kind: str, *values: Any) -> None:
        if kind == "on_row":
            values = ({"trial": trial} | values[0],)
        with self.lock:
            getattr(self.watcher, kind)(*values)

    def _check_stop(self) -> None:
        if self.over.is_set():
            raise Stopped(signal.SIGTERM)
        self.watcher.check_stop()
