"""The time that trials will take, from a few real steps of each kind, and what a budget allows."""

import heapq
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fieldguide.compare.trials import Trial
from fieldguide.errors import UsageError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.places import folds_at_once
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.settings import lengthened
from fieldguide.fitting.start import create
from fieldguide.machine.controls import Controls
from fieldguide.machine.device import training_threads
from fieldguide.network.batch_norm import RECALIBRATION_PHOTOS
from fieldguide.photos.batches import AHEAD
from fieldguide.photos.catalog import Catalog
from fieldguide.recipe import Recipe
from fieldguide.runs import run as runs
from fieldguide.runs.run import Run
from fieldguide.train.evaluate import evaluate
from fieldguide.train.job import FoldJob, replica_steps
from fieldguide.train.loop import train_fold
from fieldguide.words import duration

# What a step's time depends on. One trial with each combination of these is timed.
COSTLY = (
    *("backbone", "weights", "freeze", "head", "size", "eval_resize", "batch_size", "accumulate"),
    *("augment", "mix", "precision", "layout", "compile", "device", "workers", "stored_side"),
    *("cache", "eval_size", "replica_curves"),
)
LEAST_STEPS, MOST_STEPS = 3, 20  # that are timed, fewer the longer they take (taste)
ENOUGH_SECONDS = 5.0
TIMED_BATCHES = 4  # of an evaluation


@dataclass(frozen=True)
class Cost:
    """Seconds of a training step, and of the evaluation of one photo."""

    step: float
    photo: float


def forecast(
    folder: Path, todo: Sequence[Trial], used: Catalog, watcher: Watcher
) -> dict[str, float]:
    """Return the seconds that what is left of each trial will take; the watcher notices each."""
    costs: dict[tuple[Any, ...], Cost] = {}
    seconds: dict[str, float] = {}
    fold_of = [photo.fold for photo in used.photos if photo.split == "train"]
    tests = sorted(Counter(fold_of).items())
    for trial in todo:
        watcher.check_stop()
        recipe = lengthened(trial.recipe, len(fold_of) - tests[0][1], trial.recipe.mix)
        key = tuple(getattr(recipe, name) for name in COSTLY)
        if key not in costs and recipe.epochs:
            costs[key] = measured(recipe, used, watcher.check_stop)
        cost = costs[key] if recipe.epochs else Cost(0.0, 0.0)
        place = folder / trial.folder
        done = Run(place).done if (place / runs.SETUP).is_file() else []
        left = [(len(fold_of) - n, n) for fold, n in tests if fold not in done]
        at_once = folds_at_once(recipe)
        if recipe.cluster == "none":
            took, shared = seconds_of(recipe, left, cost, at_once), ""
        else:  # others are trained beside it: its part of the whole
            took, shared = seconds_of(recipe, left, cost) / at_once, " of the whole cluster"
        most = "" if recipe.stop == "none" else "at most "
        watcher.notice(f"forecast: {trial.name}: {most}{duration(took)}{shared}")
        seconds[trial.name] = took
    if len(todo) > 1:
        total = duration(sum(seconds.values()))
        watcher.notice(f"forecast: {len(todo)} trials in all: {total}")
    return seconds


def seconds_of(
    recipe: Recipe, sizes: Sequence[tuple[int, int]], cost: Cost, at_once: int = 1
) -> float:
    """Return the most seconds for folds of (training, test) photos, `at_once` at a time."""
    merges = 0 if recipe.merge == "none" else -(-recipe.epochs // recipe.merge_every)
    measured = RECALIBRATION_PHOTOS if recipe.batch_norm == "recalibrate" else 0
    busy = [0.0] * at_once
    for train, test in sizes:
        looks = test * cost.photo if recipe.replica_curves else 0.0
        steps = replica_steps(recipe, train)
        epoch = sum(steps) * cost.step + recipe.replicas * looks
        merging = merges * (test + min(measured, train)) * cost.photo
        heapq.heapreplace(busy, busy[0] + recipe.epochs * epoch + merging)
    return max(busy)


def over_budget(costs: Mapping[str, float], budget: float, base: str) -> dict[str, str]:
    """Return, in order, notes on trials beyond the budget (seconds); `UsageError` for the base."""
    if costs.get(base, 0.0) > budget:
        raise UsageError(
            f"the budget of {budget / 3600:g} h is too small: the base alone takes about"
            f" {duration(costs[base])}, and the others are compared to it",
            hint="raise --budget, or lower epochs, size or folds",
        )
    left_out: dict[str, str] = {}
    for name, cost in costs.items():
        if late := too_late(name, cost, budget):
            left_out[name] = late
        else:
            budget -= cost
    return left_out


def too_late(name: str, cost: float, left: float) -> str:
    """Return what to say of a trial that does not fit the seconds left; empty if it does."""
    if cost <= left:
        return ""
    return (
        f"{name} is left out: it takes about {duration(cost)}, and"
        f" {duration(max(left, 0.0))} of the budget are left"
    )


def measured(recipe: Recipe, used: Catalog, check_stop: Callable[[], None]) -> Cost:
    """Return what the first steps of fold 0, in a temporary folder, and an evaluation cost here."""
    with tempfile.TemporaryDirectory(prefix="fieldguide-") as place:
        run = create(Path(place), used, recipe, (), Watcher(), prepared=True)
        job = fold_jobs(run, used.root, recipe)(0)
        with training_threads(run.environment["threads"]):
            step = _seconds_a_step(job, check_stop)
            rows = job.test[: TIMED_BATCHES * recipe.batch_size]
            started = time.perf_counter()
            evaluate(job, rows)
            return Cost(step, (time.perf_counter() - started) / len(rows))


class _Enough(Exception):
    """The end of a training whose steps have been timed."""


def _seconds_a_step(job: FoldJob, check_stop: Callable[[], None]) -> float:
    """Return the mean of some steps after the first ones, which start whatever must start."""
    # Threads have batches ready: these come faster than they can be made.
    first = 1 + AHEAD * job.loader.workers
    last = replica_steps(job.recipe, len(job.train))[0]
    times = [time.perf_counter()]
    with suppress(_Enough):
        train_fold(job, None, Controls(on_step=partial(_tick, times, first, last, check_stop)))
    begin = min(first, len(times) - 2)
    return (times[-1] - times[begin]) / (len(times) - 1 - begin)


def _tick(times: list[float], first: int, last: int, check_stop: Callable[[], None]) -> None:
    """Add the time of a step's end; raise `_Enough` at the last one that is needed."""
    check_stop()
    times.append(time.perf_counter())
    steps = len(times) - 1
    enough = steps - first >= LEAST_STEPS and times[-1] - times[first] >= ENOUGH_SECONDS
    if enough or steps in (first + MOST_STEPS, last):
        raise _Enough
