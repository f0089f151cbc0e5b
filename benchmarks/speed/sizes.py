"""How time and memory grow with photos and replicas, by commands in processes of their own.

The network is tiny: what grows is to be seen beside it. Photos are composed and all different, as
copies would be grouped as such and stored once.
"""

from collections.abc import Callable, Iterator
from functools import partial

from commands import Spent, fit_command, predict_command, spent
from harness import Options, Row
from material import SMALL, USUAL, Collection, composed, new_folder, recipe_of, saved, trained_run

TINY, SIDE = "test_resnet", 32
SIZES = (1_000, 10_000, 100_000)
REPLICAS = (1, 2, 4, 8)

Measure = Callable[[int], Spent]


def memory(options: Options) -> Iterator[Row]:
    """Peak memory of a prediction and of an epoch; once, as it hardly varies."""
    run = trained_run(options, TINY, SIDE).folder

    def predict(count: int) -> Spent:
        return spent(predict_command(run, photos(options, count).root, new_folder(options)))

    counts = sizes(options)
    yield from _grown("memory", "prediction of photos", predict, counts, ("mebibytes",))
    yield from _grown("memory", "an epoch of photos", partial(fit, options), counts, ("mebibytes",))


def growth(options: Options) -> Iterator[Row]:
    """Seconds and memory of a fold with more photos, and with more replicas."""
    both = ("seconds", "mebibytes")
    counts = sizes(options)
    yield from _grown("growth", "an epoch of photos", partial(fit, options), counts, both)
    few, replicas = counts[0], REPLICAS[:2] if options.quick else REPLICAS
    yield from _grown("growth", "replicas", partial(fit, options, few), replicas, both)


def sizes(options: Options) -> tuple[int, ...]:
    """The numbers of photos to measure: up to 10,000 if no other is asked for."""
    if options.quick:
        return 20, 40
    return tuple(size for size in SIZES if size <= (options.largest or 10_000))


def photos(options: Options, count: int) -> Collection:
    """So many small pictures."""
    return composed(options, count, SMALL if options.quick else USUAL)


def fit(options: Options, count: int, replicas: int = 1) -> Spent:
    """One epoch of one fold on so many photos."""
    cache = str(new_folder(options))
    recipe = recipe_of(options, SIDE, TINY, folds=2, epochs=1, workers=1, cache=cache)
    path = saved(options, recipe.replace(replicas=replicas))
    return spent(fit_command(photos(options, count).root, new_folder(options), path))


def _grown(
    name: str,
    what: str,
    measure: Measure,
    counts: tuple[int, ...],
    fields: tuple[str, ...],
) -> Iterator[Row]:
    """Rows of each count against the first one."""
    first, *others = counts
    base = measure(first)
    for count in others:
        found = measure(count)
        for field in fields:
            unit = "MiB" if field == "mebibytes" else "s"
            a, b = (getattr(found, field),), (getattr(base, field),)
            told = f"{TINY}@{SIDE}, {what}: {count:,} vs {first:,}"
            yield Row(f"{name}-{field}", told, a, b, unit, note="measured once")
