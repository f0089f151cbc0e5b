"""Several recipes on the same photos and the same folds: which is better, and can that be told?

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

Knows nothing of how folds are trained, nor of the statistics (`analysis.paired`).
"""

import hashlib
import heapq
import itertools
import json
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from fieldguide import catalog as catalogs
from fieldguide import check, crossval, files, metrics, runs
from fieldguide import recipe as recipes
from fieldguide.analysis import paired
from fieldguide.backbones import require_backbone
from fieldguide.batches import AHEAD
from fieldguide.catalog import Catalog
from fieldguide.cluster import connected, require_address
from fieldguide.controls import Controls, relayed
from fieldguide.crossval import Watcher
from fieldguide.device import choose_device, choose_precision, training_threads
from fieldguide.errors import ResourceError, Stopped, TrainingError, UsageError
from fieldguide.job import FoldJob, replica_steps
from fieldguide.network import RECALIBRATION_PHOTOS, build_backbone
from fieldguide.recipe import Recipe
from fieldguide.report import comparison, curves, figures
from fieldguide.report.comparison import BASE, PREPARED, Comparison, Row, Winner, shown_time
from fieldguide.runs import Run
from fieldguide.train import evaluate, train_fold

FORMAT = 1
PREPARED_FILES = ("recipe.toml", runs.FINDINGS, "catalog.csv")
FAILED = "failed.json"
TABLE, RECORD = "compare.csv", "compare.json"

# Settings that say which photos there are and how they are split: the same for all trials.
SHARED = ("folds", "holdout", "min_per_class", "conflicts", "truncated")

# What a step's time depends on. One trial with each combination of these is timed.
COSTLY = (
    *("backbone", "weights", "freeze", "head", "size", "eval_resize", "batch_size", "accumulate"),
    *("augment", "mix", "precision", "layout", "compile", "device", "workers", "stored_side"),
    *("cache", "first_size", "replica_curves"),
)
LEAST_STEPS, MOST_STEPS = 3, 20  # that are timed, fewer the longer they take (taste)
ENOUGH_SECONDS = 5.0
TIMED_BATCHES = 4  # of an evaluation

# The larger side from which the report's evaluation cuts its 320 pixels.
RESIZE_SHARE = 512 / 320


@dataclass(frozen=True)
class Trial:
    """One recipe of a comparison: `changes` are the settings in which it differs from the base.

    `twins` are names of others that would train the very same networks, and are not trained.
    """

    name: str
    changes: Mapping[str, Any]
    recipe: Recipe
    twins: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of its run's folder: plain letters, and no two alike."""
        plain = re.sub(r"[^a-z0-9._]+", "-", self.name.lower()).strip("-.")
        if re.fullmatch(r"[a-z0-9_.=, ]{1,60}", self.name):
            return plain
        return f"{plain[:40]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


# --- which trials ---------------------------------------------------------------------------------


def parse_vary(texts: Iterable[str]) -> dict[str, list[Any]]:
    """What is to vary, from texts such as `mix=none,cutmix`; several of one setting add up.

    The numbers of one value are separated by spaces: `crop_scale=0.08 1,0.35 1`. Raises
    `UsageError` for an unknown setting (with the nearest), a wrong value, and none.
    """
    vary: dict[str, list[Any]] = {}
    for text in texts:
        name, sign, values = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not sign or not name or not values:
            raise UsageError(
                f"`--vary {text}` names no values", hint="write it as --vary mix=none,cutmix"
            )
        recipes.require_known(name, "--vary")
        _refuse_shared(name)
        found = vary.setdefault(name, [])
        for value in values.split(","):
            found.append(recipes.from_text(name, value.strip(), called=f"--vary {name}"))
    return vary


def trials(
    base: Recipe, vary: Mapping[str, Sequence[Any]], *, one_at_a_time: bool = False
) -> list[Trial]:
    """The base, and each combination of values; or each value alone beside the base's others.

    What has no effect beside the others does not make a trial: of recipes that would train the
    same networks the first is kept, with the names of the others. Raises `UsageError` for settings
    that cannot vary, and for combinations that contradict each other.
    """
    for name in vary:
        recipes.require_known(name, "what is to vary")
        _refuse_shared(name)
    if one_at_a_time:
        changes = [{name: value} for name, values in vary.items() for value in values]
    else:
        changes = [
            dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())
        ]
    made = [_trial(base, each) for each in changes]
    return distinct([Trial(BASE, {}, base), *made], recipes.effective)


def reference(overrides: Mapping[str, Any]) -> list[Trial]:
    """The experiments of the course report, each one change from the recipe `reference`.

    The base has neither MixUp nor CutMix, so that each is seen against none. `overrides` change
    all of them (backbone, size, epochs …); `eval_resize` follows `size` unless it is among them.
    "One replica" trains twice the epochs, with twice the patience: the same cost.
    """
    settings = recipes.settings_of("reference") | {"mix": "none"} | dict(overrides)
    size = settings["size"]
    if not isinstance(size, int):
        raise UsageError(f"`size` = {size!r}: the preset needs a number of pixels")
    if "eval_resize" not in overrides:
        settings["eval_resize"] = round(size * RESIZE_SHARE)
    base = recipes.build(settings)
    experiments: dict[str, dict[str, Any]] = {
        "none": {"mix": "none", "augment": "none"},
        "randaugment": {"augment": "randaugment"},
        "mixup": {"mix": "mixup"},
        "cutmix": {"mix": "cutmix"},
        "augmix": {"augment": "augmix"},
        "head se": {"head": "se"},
        "head attention": {"head": "attention"},
        "no crop": {"eval_resize": size},
        "one replica, twice the epochs": {
            "replicas": 1,
            "merge": "none",
            "epochs": 2 * base.epochs,
            "patience": 2 * base.patience,
        },
        "merged once at the end": {"merge_every": base.epochs},
    }
    made = [_trial(base, changes, name) for name, changes in experiments.items()]
    first, *twins = [trial.name for trial in made if not trial.changes] or [BASE]
    others = [trial for trial in made if trial.changes]
    return distinct([Trial(first, {}, base, tuple(twins)), *others], recipes.effective)


# Ready-made comparisons, as functions of the settings that are given for all trials.
PRESETS: Mapping[str, Callable[[Mapping[str, Any]], list[Trial]]] = {"reference": reference}


def distinct(found: Iterable[Trial], meaning: Callable[[Recipe], Any]) -> list[Trial]:
    """The trials without those whose recipe means the same as that of an earlier one."""
    kept: dict[Any, Trial] = {}
    for trial in found:
        key = meaning(trial.recipe)
        first = kept.setdefault(key, trial)
        if trial.name not in (first.name, *first.twins):
            kept[key] = replace(first, twins=(*first.twins, trial.name, *trial.twins))
    return list(kept.values())


def _trial(base: Recipe, settings: Mapping[str, Any], name: str = "") -> Trial:
    try:
        recipe = base.replace(**settings)
        require_backbone(recipe.backbone)
    except UsageError as error:
        raise UsageError(f"{name or _named(settings)}: {error.message}", hint=error.hint) from error
    changes = {
        each: getattr(recipe, each)
        for each in settings
        if getattr(recipe, each) != getattr(base, each)
    }
    return Trial(name or _named(changes) or BASE, changes, recipe)


def _named(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_as_text(value)}" for name, value in changes.items())


def _as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _refuse_shared(name: str) -> None:
    if name in SHARED:
        raise UsageError(
            f"`{name}` cannot vary: all trials have the same photos and the same folds",
            hint=f"set it for all of them with --{name.replace('_', '-')}",
        )


# --- doing them -----------------------------------------------------------------------------------


def compare(
    catalog: Catalog,
    trials: Sequence[Trial],
    out: str | Path,
    *,
    budget_hours: float | None = None,
    command: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Comparison:
    """Trains what is not done of the trials, the base first, and compares them.

    The same call resumes. A trial whose training diverges is recorded and not tried again while its
    folder is there; the others go on. With a budget, trials that would take longer than what
    is left of it are left out, in order. Table, record and page are written before the first trial
    and anew after each, so that a killed comparison's trials are known (`rebuilt`).
    Raises `UsageError` where `out` holds something else, or other trials under the same
    names, and what `crossval.fit` raises.
    """
    watcher = watcher or Watcher()
    folder = Path(out)
    for trial in trials:
        if trial.recipe.batch_ranks > 1:
            raise UsageError(
                f"{trial.name}: `batch_ranks` needs torchrun's ranks, and `compare` has none",
                hint="leave it out: `cluster` and `device` spread the folds",
            )
    _require_usable(folder)
    files.make_folder(folder)
    with files.lock(folder):
        begun = (folder / PREPARED).is_file()
        if not begun and trials[0].recipe.cluster != "none":
            require_address(trials[0].recipe.cluster)
        used = _prepared(folder, catalog, trials[0].recipe, watcher)
        trials = _without_twins([_in_one_precision(trial) for trial in trials], watcher)
        _require_same_recipes(folder, trials)
        todo = [trial for trial in trials if not _is_over(folder, trial)]
        if begun and todo:
            crossval.require_same_photos(used, catalog, folder)
        left_out: dict[str, str] = {}

        def so_far() -> Comparison:
            found = collect(folder, trials, used, left_out)
            write(found, folder, trials[0].recipe)
            return found

        if not todo:
            return so_far()
        with _cluster_of(todo):
            costs = _forecast(folder, todo, used, watcher)
            left_out |= _over_budget(trials[0].name, costs, budget_hours)
            for note in left_out.values():
                watcher.notice(note)
            so_far()
            started = time.monotonic()

            def fit(trial: Trial, watcher: Watcher) -> None:
                late = _too_late(trial.name, costs, budget_hours, time.monotonic() - started)
                if late and trial is not trials[0]:
                    watcher.notice(late)
                    left_out[trial.name] = late
                else:
                    _fit(folder, trial, used, command, watcher)

            todo = [trial for trial in todo if trial.name not in left_out]
            try:
                if todo and todo[0].recipe.cluster != "none":
                    new = [_begin(folder, each, used, command, watcher) for each in todo]
                    for _ in _at_once(fit, todo, _told_as_one(new, watcher)):
                        so_far()
                else:
                    for trial in todo:
                        fit(trial, watcher)
                        so_far()
            except Stopped:
                so_far()
                raise
            return so_far()


def _cluster_of(todo: Sequence[Trial]) -> AbstractContextManager[Any]:
    """Connected to the trials' cluster while entered, if they have one."""
    address = todo[0].recipe.cluster
    return nullcontext() if address == "none" else connected(address)


def _require_usable(folder: Path) -> None:
    """Refuses a folder that holds something that is no comparison."""
    if not folder.is_dir() or (folder / PREPARED).is_file():
        return
    known = {*PREPARED_FILES, files.LOCK}
    names = {path.name for path in folder.iterdir() if not files.is_temporary(path.name)}
    strange = sorted(names - known)
    if strange:
        raise UsageError(
            f"`{folder}` is not empty and holds no comparison: {', '.join(strange[:3])}",
            hint="name a new folder with --out",
        )


def _prepared(folder: Path, catalog: Catalog, base: Recipe, watcher: Watcher) -> Catalog:
    """The photos with their folds: as they were prepared, or prepared now."""
    if not (folder / PREPARED).is_file():
        files.remove_temporaries(folder)
        found: list[check.Finding] = []
        used = crossval.prepare(catalog, base, replace(watcher, on_findings=found.extend))
        check.write_findings(folder / runs.FINDINGS, found)
        files.write_text(folder / "recipe.toml", recipes.to_toml(base))
        catalogs.write_rows(folder / "catalog.csv", used)
        files.write_manifest(folder, PREPARED_FILES, name=PREPARED)
        return used
    files.verify(folder, name=PREPARED)
    before = recipes.load(str(folder / "recipe.toml"))
    lines = [
        f"  {name}: {old!r} there, {new!r} now"
        for name in (*SHARED, "seed")
        if (old := getattr(before, name)) != (new := getattr(base, name))
    ]
    if lines:
        raise UsageError(
            f"`{folder}` was begun with other photos or folds:\n" + "\n".join(lines),
            hint="name a new folder with --out, or leave these settings as they were",
        )
    return catalogs.read_rows(folder / "catalog.csv", root=catalog.root)


def _in_one_precision(trial: Trial) -> Trial:
    """The trial with one precision for all, where each would choose by a try of its own."""
    device = choose_device(trial.recipe.device)
    precision = choose_precision(trial.recipe.precision, device)
    return replace(trial, recipe=trial.recipe.replace(precision=precision))


def _without_twins(trials: Sequence[Trial], watcher: Watcher) -> list[Trial]:
    """The trials that are different once `auto` is what it stands for here; tells of the others."""
    meanings: dict[str, tuple[str, Callable[[Recipe], Recipe]]] = {}

    def meaning(recipe: Recipe) -> Recipe:
        if recipe.backbone not in meanings:
            body = build_backbone(recipe.backbone, weights="none", seed=0)
            config: Mapping[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
            full = f"{config['architecture']}.{config['tag']}"
            meanings[recipe.backbone] = (
                full,
                lambda each: crossval.resolve(each, body),
            )
        name, resolve = meanings[recipe.backbone]
        return recipes.effective(resolve(recipe).replace(backbone=name))

    kept = distinct(trials, meaning)
    for trial in kept:
        for twin in trial.twins:
            watcher.notice(_told_twin(trial, twin))
    return kept


def _told_twin(trial: Trial, twin: str) -> str:
    return f"{twin} would train the same networks as {trial.name}, and is that trial"


def _require_same_recipes(folder: Path, trials: Sequence[Trial]) -> None:
    """Refuses, before long work, runs of other recipes under the names of these trials."""
    for trial in trials:
        if not (folder / trial.folder / runs.SETUP).is_file():
            continue
        # The folds are the catalog's; weights may have moved, and `crossval.fit` knows them.
        different = recipes.differences(trial.recipe, Run(folder / trial.folder).recipe)
        names = sorted(different.keys() - {"folds", "weights"})
        if names:
            shown = ", ".join(
                f"{n}: {different[n][0]!r} there, {different[n][1]!r} now" for n in names
            )
            raise UsageError(
                f"`{folder / trial.folder}` holds a run of another recipe: {shown}",
                hint="name a new folder with --out, or leave these settings as they were",
            )


def _is_over(folder: Path, trial: Trial) -> bool:
    """Whether nothing is left to do for it: it is complete, or failed for good."""
    place = folder / trial.folder
    return (place / files.MANIFEST).is_file() or (place / FAILED).is_file()


def _begin(
    folder: Path, trial: Trial, used: Catalog, command: Sequence[str], watcher: Watcher
) -> Run:
    """The run of a trial, which begins now if it has not begun."""
    place = folder / trial.folder
    if (place / runs.SETUP).is_file():
        return Run(place)
    files.make_folder(place)
    findings = (folder / runs.FINDINGS).read_bytes()
    files.write_bytes(place / runs.FINDINGS, findings)
    return crossval.begin(place, used, trial.recipe, command, watcher)


def _fit(
    folder: Path, trial: Trial, used: Catalog, command: Sequence[str], watcher: Watcher
) -> None:
    """Trains one trial; records it where training goes wrong."""
    place = folder / trial.folder

    def notice(message: str) -> None:
        watcher.notice(f"{trial.name}: {message}")

    named = replace(watcher, notice=notice)
    _begin(folder, trial, used, command, named)
    named.notice("training begins")
    try:
        crossval.fit(used, trial.recipe, place, prepared=True, command=command, watcher=named)
    except TrainingError as error:
        named.notice(f"failed: {error.message}")
        files.write_json(place / FAILED, {"message": error.message, "hint": error.hint})


def _at_once(
    fit: Callable[[Trial, Watcher], None], todo: Sequence[Trial], watcher: Watcher
) -> Iterator[None]:
    """Trials that have begun, as many at the same time as fill the cluster; yields after each.

    Threads are enough: each only waits for the jobs of one trial. The first error stops the others,
    which save checkpoints, and is raised.
    """
    over = threading.Event()

    def check_stop() -> None:
        if over.is_set():
            raise Stopped(signal.SIGTERM)
        watcher.check_stop()

    def train(trial: Trial) -> None:
        def on_row(row: dict[str, Any]) -> None:
            watcher.on_row({"trial": trial.name} | row)

        check_stop()
        fit(trial, replace(watcher, on_row=on_row, check_stop=check_stop))

    recipe = todo[0].recipe
    # One more than fills it, as a trial's last folds leave room.
    at_once = 1 + -(-crossval.folds_at_once(recipe) // recipe.folds)
    with ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(train, trial) for trial in todo]
        try:
            for each in as_completed(waiting):
                yield each.result()
        except BaseException:
            over.set()
            raise


def _told_as_one(begun: Sequence[Run], watcher: Watcher) -> Watcher:
    """A watcher that several threads may tell, of one plan for all of these runs."""
    plans = [crossval.planned(run) for run in begun]
    folds = tuple(fold for plan in plans for fold in plan.folds)
    steps = sum(plan.steps for plan in plans)
    watcher.on_plan(crossval.Plan(folds, steps, begun[0].recipe, trials=len(begun)))
    lock = threading.Lock()

    def tell(kind: str) -> Callable[..., None]:
        def locked(*values: object) -> None:
            with lock:
                getattr(watcher, kind)(*values)

        return locked

    return Watcher(**vars(relayed(tell, watcher.check_stop)))


# --- forecast and budget --------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Seconds of a training step, and of the evaluation of one photo."""

    step: float
    photo: float


def seconds_of(
    recipe: Recipe, sizes: Sequence[tuple[int, int]], cost: Cost, at_once: int = 1
) -> float:
    """How long folds with so many training and test photos take; at most, where they may stop.

    `at_once` of them are trained at the same time, in this order.
    """
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


def _forecast(
    folder: Path, todo: Sequence[Trial], used: Catalog, watcher: Watcher
) -> dict[str, float]:
    """The seconds that what is left of each trial will take; told as they are known."""
    known: dict[tuple[Any, ...], Cost] = {}
    seconds: dict[str, float] = {}
    for trial in todo:
        watcher.check_stop()
        key = tuple(getattr(trial.recipe, name) for name in COSTLY)
        if key not in known:
            grown = trial.recipe.replace(first_size="auto")  # the first epoch would be the cheapest
            known[key] = _measured(grown, used, watcher)
        left = _sizes_left(folder / trial.folder, used)
        at_once, shared = crossval.folds_at_once(trial.recipe), ""
        if trial.recipe.cluster == "none":
            seconds[trial.name] = seconds_of(trial.recipe, left, known[key], at_once)
        else:  # others are trained beside it: its part of the whole
            seconds[trial.name] = seconds_of(trial.recipe, left, known[key]) / at_once
            shared = " of the whole cluster"
        most = "" if trial.recipe.stop == "none" else "at most "
        told = f"{most}{shown_time(seconds[trial.name])}{shared}"
        watcher.notice(f"forecast: {trial.name}: {told}")
    if len(todo) > 1:
        total = shown_time(sum(seconds.values()))
        watcher.notice(f"forecast: {len(todo)} trials in all: {total}")
    return seconds


def _sizes_left(place: Path, used: Catalog) -> list[tuple[int, int]]:
    """Training and test photos of the folds that are not done."""
    fold_of = [photo.fold for photo in used.photos if photo.split == "train"]
    tests = np.bincount(np.array(fold_of, dtype=np.int64)).tolist()
    done = Run(place).done if (place / runs.SETUP).is_file() else []
    return [(len(fold_of) - n, n) for fold, n in enumerate(tests) if fold not in done]


class _Enough(Exception):
    """Ends a training whose steps have been timed."""


def _measured(recipe: Recipe, used: Catalog, watcher: Watcher) -> Cost:
    """What steps and evaluation cost here, from the first steps of fold 0 in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="fieldguide-") as place:
        run = crossval.create(Path(place), used, recipe, (), Watcher(), prepared=True)
        job = crossval.fold_jobs(run, used.root, recipe)(0)
        with training_threads(run.environment["threads"]):
            step = _seconds_a_step(job, watcher)
            rows = job.test[: TIMED_BATCHES * recipe.batch_size]
            started = time.perf_counter()
            evaluate(job, rows)
            return Cost(step, (time.perf_counter() - started) / len(rows))


def _seconds_a_step(job: FoldJob, watcher: Watcher) -> float:
    """The mean of some steps after the first ones, which start whatever must start."""
    # Threads have batches ready: these come faster than they can be made.
    first = 1 + AHEAD * job.loader.workers
    last = replica_steps(job.recipe, len(job.train))[0]
    times = [time.perf_counter()]

    def on_step() -> None:
        watcher.check_stop()
        times.append(time.perf_counter())
        timed = len(times) - 1 - first
        enough = timed >= LEAST_STEPS and times[-1] - times[first] >= ENOUGH_SECONDS
        if enough or timed == MOST_STEPS or len(times) - 1 == last:
            raise _Enough

    with suppress(_Enough):
        train_fold(job, None, Controls(on_step=on_step))
    begin = min(first, len(times) - 2)
    return (times[-1] - times[begin]) / (len(times) - 1 - begin)


def _over_budget(
    base: str, costs: Mapping[str, float], budget_hours: float | None
) -> dict[str, str]:
    """The trials that do not fit, in order, with what to tell of each."""
    if budget_hours is None:
        return {}
    if costs.get(base, 0.0) > 3600 * budget_hours:
        raise UsageError(
            f"the budget of {budget_hours:g} h is too small: the base alone takes about"
            f" {shown_time(costs[base])}, and the others are compared to it",
            hint="raise --budget, or lower epochs, size or folds",
        )
    left_out: dict[str, str] = {}
    spent = 0.0
    for name, cost in costs.items():
        late = _too_late(name, costs, budget_hours, spent)
        if late:
            left_out[name] = late
        else:
            spent += cost
    return left_out


def _too_late(
    name: str, costs: Mapping[str, float], budget_hours: float | None, spent: float
) -> str:
    """What to tell of a trial that does not fit what is left of the budget; empty if it does."""
    if budget_hours is None or spent + costs[name] <= 3600 * budget_hours:
        return ""
    left = max(3600 * budget_hours - spent, 0.0)
    return (
        f"{name} is left out: it takes about {shown_time(costs[name])}, and"
        f" {shown_time(left)} of the budget are left"
    )


# --- what came out --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """What a trial's run says: its row, its curve, and for a complete one its right answers."""

    row: Row
    curve: tuple[curves.Mean, ...] = ()
    right: Bool[np.ndarray, " n"] | None = None


def collect(
    folder: str | Path,
    trials: Sequence[Trial],
    used: Catalog,
    left_out: Mapping[str, str] | None = None,
) -> Comparison:
    """The comparison as far as it is done; `left_out` are notes on trials by name.

    `used` is the prepared catalog. Raises `UsageError` for a run of other photos or folds.
    """
    place = Path(folder)
    notes = left_out or {}
    groups = _group_numbers(used)
    found = [_read(place, trial, used, groups, notes.get(trial.name, "")) for trial in trials]
    folds = len({photo.fold for photo in used.photos if photo.split == "train"})
    return Comparison(
        rows=tuple(_with_contrasts(found, groups)),
        photos=len(groups),
        groups=int(groups.max()) + 1,
        folds=folds,
        stop=trials[0].recipe.stop,
        curves={each.row.name: each.curve for each in found},
        winner=_winner(found, groups),
        notes=tuple(_told_twin(trial, twin) + "." for trial in trials for twin in trial.twins),
    )


def rebuilt(folder: str | Path) -> Comparison:
    """The comparison of a folder as its runs stand now, whoever may be training them.

    Its trials are those of compare.json. Raises `UsageError` where there is no comparison, and
    `ResourceError` where a file of it is damaged or no trial has begun.
    """
    place = Path(folder)
    if not (place / PREPARED).is_file():
        raise UsageError(f"`{place}` holds no comparison: it has no {PREPARED}")
    files.verify(place, name=PREPARED)
    tried, notes, twins = _recorded(place)
    used = catalogs.read_rows(place / "catalog.csv", root=place)
    return replace(collect(place, tried, used, notes), notes=twins)


def _recorded(folder: Path) -> tuple[list[Trial], dict[str, str], tuple[str, ...]]:
    """The trials of compare.json, notes on those that were left out, and what is told of twins."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        base = recipes.build(record["base"])
        tried = [_trial(base, row["changes"], row["name"]) for row in record["rows"]]
        # Why a trial failed is read from its own folder.
        notes = {row["name"]: row["note"] for row in record["rows"] if row["status"] != "failed"}
        return tried, notes, tuple(record["notes"])
    except FileNotFoundError as error:
        raise ResourceError(
            f"no trial of `{folder}` has begun yet", hint="the same compare command goes on with it"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, UsageError) as error:
        raise ResourceError(
            f"`{folder / RECORD}` cannot be read: {error}",
            hint="the same compare command writes it anew",
        ) from error


def write(found: Comparison, folder: Path, base: Recipe) -> None:
    """Writes the table, the record and the page."""
    files.write_bytes(folder / TABLE, table(found))
    record = {"format": FORMAT, "level": paired.LEVEL, "base": base.model_dump(mode="json")}
    files.write_json(folder / RECORD, record | asdict(found))
    comparison.build(found, folder)


def save_figures(found: Comparison, folder: Path) -> list[Path]:
    """Writes the comparison's charts as PNG and SVG and its table into `folder`; their paths.

    Raises `UsageError` where one of them is there already, before any is written.
    """
    return figures.write(comparison.charts(found), folder, {TABLE: table(found)})


def table(found: Comparison) -> bytes:
    """The trials as CSV, a line each."""
    lines = [list(_cells(row).values()) for row in found.rows]
    return b"".join(files.csv_lines([list(_cells(found.rows[0])), *lines]))


def _cells(row: Row) -> dict[str, object]:
    """One line of the table: what is not known is empty."""
    low, high = row.interval or (None, None)
    contrast = asdict(row.contrast) if row.contrast else {}
    return {
        "trial": row.name,
        "changes": _named(row.changes),
        "status": row.status,
        "folds_done": row.folds,
        "accuracy": row.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "log_loss": row.log_loss,
        "seconds": row.seconds,
        "difference": contrast.get("difference"),
        "difference_low": contrast.get("low"),
        "difference_high": contrast.get("high"),
        "p": contrast.get("p"),
        "adjusted_p": contrast.get("adjusted"),
        "verdict": contrast.get("verdict"),
        "folder": row.folder,
        "note": row.note,
    }


def _read(
    folder: Path, trial: Trial, used: Catalog, groups: NDArray[np.int64], note: str
) -> _Found:
    """What there is of one trial."""
    place = folder / trial.folder
    if not (place / runs.SETUP).is_file():
        return _Found(Row(trial.name, trial.changes, "", "not begun", note=note))
    run = Run(place, photos=used.root)
    _require_same_folds(run, used)
    failure = _failure(place)
    row = Row(
        trial.name,
        trial.changes,
        trial.folder,
        "complete" if run.complete else "failed" if failure else "unfinished",
        folds=len(run.done),
        note=note or failure,
    )
    means = curves.averaged(curves.read(run).judged)
    models = {mean.model for mean in means}
    model = curves.MERGED if curves.MERGED in models else "replica-1"
    curve = tuple(m for m in means if m.measure == "test_accuracy" and m.model == model)
    if not run.done:
        return _Found(row, curve)
    return _scored(row, curve, run, groups)


def _scored(
    row: Row, curve: tuple[curves.Mean, ...], run: Run, groups: NDArray[np.int64]
) -> _Found:
    """The row with its scores over the folds that are done."""
    training = np.array([photo.split == "train" for photo in run.catalog.photos])
    place_of = np.cumsum(training) - 1  # of a training photo among these
    rows = np.concatenate([run.folds[fold].test for fold in run.judged])
    logits = np.concatenate(list(run.judged.values()))
    targets = run.targets[rows]
    answers = logits.argmax(axis=1) == targets
    right = np.zeros(len(groups), dtype=np.bool_)
    right[place_of[rows]] = answers
    scored = replace(
        row,
        accuracy=float(answers.mean()),
        interval=metrics.bootstrap_interval(answers, groups[place_of[rows]]),
        log_loss=metrics.log_loss(metrics.softmax(logits), targets),
        seconds=run.seconds,
    )
    return _Found(scored, curve, right if row.status == "complete" else None)


def _with_contrasts(found: Sequence[_Found], groups: NDArray[np.int64]) -> list[Row]:
    """The rows, where base and trial are complete with their difference."""
    base, *others = found
    if base.right is None:
        return [each.row for each in found]
    done = [(each.row.name, each.right) for each in others if each.right is not None]
    contrasts = paired.contrasts(base.right, [right for _, right in done], groups)
    found_by_name = dict(zip([name for name, _ in done], contrasts, strict=True))
    return [replace(each.row, contrast=found_by_name.get(each.row.name)) for each in found]


def _winner(found: Sequence[_Found], groups: NDArray[np.int64]) -> Winner | None:
    """The best of the complete trials, where there is a choice."""
    done = [(each.row, each.right) for each in found if each.right is not None]
    if len(done) < 2 or len(np.unique(groups)) < 2:
        return None
    correct = np.stack([right for _, right in done])
    row = done[paired.best(correct)][0]
    assert row.accuracy is not None
    corrected = paired.bias_corrected_best(correct, groups)
    return Winner(row.name, row.accuracy, corrected, len(done))


def _require_same_folds(run: Run, used: Catalog) -> None:
    def split(catalog: Catalog) -> list[tuple[object, ...]]:
        return [(p.path, p.label, p.fold) for p in catalog.photos if p.split == "train"]

    if split(run.catalog) != split(used):
        raise UsageError(
            f"`{run.folder}` was trained on other photos or folds than this comparison has",
            hint="remove it, and the same command trains it anew",
        )


def _group_numbers(used: Catalog) -> NDArray[np.int64]:
    """A number for the group of each training photo, in catalog order, from 0."""
    names = [photo.group or photo.path for photo in used.photos if photo.split == "train"]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _failure(place: Path) -> str:
    """Why its training failed; empty where it did not."""
    try:
        return f"failed: {json.loads((place / FAILED).read_bytes())['message']}"
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "failed, for a reason that cannot be read"
