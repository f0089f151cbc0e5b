"""What a cross-validated fit costs as a whole: against single runs, and with several processes."""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from commands import fit_command, spent
from harness import (
    Contestant,
    Cost,
    Options,
    Row,
    Target,
    cost_of,
    in_turn,
    not_measured,
    rates,
    seconds,
)
from material import Collection, collection, new_folder, recipe_of, saved

from fieldguide import Recipe
from fieldguide.fitting import fit as fitting
from fieldguide.fitting.progress import Watcher
from fieldguide.machine.cores import count_cores
from fieldguide.runs.run import Run

SIZE = 64


def kfold(options: Options) -> Iterator[Row]:
    """10 folds x 2 replicas x 2 epochs in one fit, against as many runs one by one.

    A run is one fold of one replica. One in this process is measured and counted 20 times; of those
    in processes of their own two are measured, and counted 10 times.
    """
    folds, replicas = (2, 2) if options.quick else (10, 2)
    runs = folds * replicas
    photos = collection(options, options.photos or 1000)
    whole = recipe_of(options, SIZE, folds=folds, replicas=replicas, epochs=2)
    whole = whole.replace(workers=options.workers or "auto")
    single = whole.replace(replicas=1)
    contestants: list[Contestant] = [
        lambda: cost_of(partial(fit, options, photos, whole)),
        lambda: cost_of(partial(fit, options, photos, single, fold=0)).scaled(runs),
        lambda: two_processes(options, photos, single).scaled(runs / 2),
    ]
    ours, in_one, separate = in_turn(contestants, options.rounds, warm=False)
    what = f"{folds} folds x {replicas} replicas x 2 epochs, {whole.backbone}@{whole.size}"
    for peer, costs, target in (
        (f"{runs} x a single run", in_one, 0.9),
        (f"{runs} separate processes", separate, 0.4),
    ):
        a, b = seconds(ours, "wall"), seconds(costs, "wall")
        row = Row("kfold", f"{what} vs {peer}", a, b, "s", "wall", Target("≤", target))
        note = f"workers {whole.workers}, {count_cores()} cores; the peer's time multiplied"
        yield replace(row, photos=photos.about, note=note)


def fit(options: Options, photos: Collection, recipe: Recipe, **how: Any) -> Run:
    """A fit in a new folder."""
    return fitting.fit(photos.catalog, recipe, new_folder(options), **how)


def two_processes(options: Options, photos: Collection, recipe: Recipe) -> Cost:
    """Two single runs by the command line, one after the other."""
    path = saved(options, recipe)

    def both() -> None:
        for _ in range(2):
            spent(fit_command(photos.root, new_folder(options), path))

    return cost_of(both)


def scaling(options: Options) -> Iterator[Row]:
    """Folds side by side in two processes, against one after another in this one."""
    what = "folds in 2 processes vs in 1"
    if count_cores() < 2:
        yield not_measured("scaling", what, f"one core: {count_cores()}")
        return
    photos = collection(options, options.photos or 500)
    recipe = recipe_of(options, SIZE, folds=2, replicas=1, epochs=3)
    wholes: dict[int, list[Cost]] = {2: [], 1: []}
    contestants = [partial(second_of_steps, options, photos, recipe, n, wholes) for n in wholes]
    a, b = (rates(costs, "wall") for costs in in_turn(contestants, options.rounds, warm=False))
    what = f"{recipe.backbone}@{recipe.size}: {what}"
    row = Row("scaling", what, a, b, "steps/s", "wall", Target("≥", 1.9), photos=photos.about)
    yield replace(row, note="from the first step to the last: without the start of processes")
    two, one = (rates(costs, "wall") for costs in wholes.values())
    yield replace(row, what=f"{what}: the whole fit", ours=two, peer=one, unit="fits/s")
    yield ceiling(options)


def ceiling(options: Options) -> Row:
    """What two processes of this machine gain that share nothing but the machine."""
    count = 1000 if options.quick else 400_000
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(products, [1000, 1000]))  # both are started
        contestants = [
            lambda: cost_of(lambda: list(pool.map(products, [count // 2] * 2))),
            lambda: cost_of(lambda: list(pool.map(products, [count]))),
        ]
        two, one = (rates(costs, "wall", count) for costs in in_turn(contestants, options.rounds))
    what = "products of small matrices in 2 processes vs in 1: the ceiling"
    return Row("scaling", what, two, one, "products/s", "wall")


def products(count: int) -> float:
    """So many products of matrices that a core's own cache holds."""
    one = np.ones((64, 64), dtype=np.float32) / 64
    other, result = one.copy(), one.copy()
    for _ in range(count):
        np.dot(one, other, out=result)
    return float(result[0, 0])


def second_of_steps(
    options: Options,
    photos: Collection,
    recipe: Recipe,
    workers: int,
    wholes: dict[int, list[Cost]],
) -> Cost:
    """The cost of a step of a fit with so many workers, from its first step to its last.

    The cost of the whole fit is added to `wholes`.
    """
    moments: list[float] = []
    watcher = Watcher(on_step=lambda: moments.append(time.perf_counter()))
    whole = cost_of(partial(fit, options, photos, recipe.replace(workers=workers), watcher=watcher))
    wholes[workers].append(whole)
    steps = len(moments) - 1
    return Cost((moments[-1] - moments[0]) / steps, whole.cpu / steps)
