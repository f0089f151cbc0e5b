"""The recipes of a comparison: a base, and a grid, one setting at a time, or a preset.

Knows nothing of photos, folds and how trials are trained.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fieldguide import recipe as recipes
from fieldguide.errors import UsageError
from fieldguide.network.backbones import require_backbone
from fieldguide.recipe import Recipe
from fieldguide.report.comparison import BASE

# Settings that say which photos there are and how they are split: the same for all trials.
SHARED = (
    *("folds", "holdout", "min_per_class", "near_duplicates", "drop_thin_groups"),
    *("conflicts", "truncated"),
)

# The larger side from which the report's evaluation cuts its 320 pixels.
RESIZE_SHARE = 512 / 320


@dataclass(frozen=True)
class Trial:
    """One recipe of a comparison."""

    name: str
    changes: Mapping[str, Any]  # the settings in which it differs from the base
    recipe: Recipe
    twins: tuple[str, ...] = ()  # others that would train the same networks, and are not trained
    of: str = ""  # the trial that it repeats with another seed

    @property
    def folder(self) -> str:
        """The name of its run's folder: plain letters, and no two alike."""
        plain = re.sub(r"[^a-z0-9._]+", "-", self.name.lower()).strip("-.")
        if re.fullmatch(r"[a-z0-9_.=, ]{1,60}", self.name):
            return plain
        return f"{plain[:40]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


def parse_vary(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Return what varies, from texts such as `mix=none,cutmix`; several of one setting add up.

    The numbers of one value are separated by spaces: `crop_scale=0.08 1,0.35 1`. Raises
    `UsageError` for an unknown setting (with the nearest), a wrong value, and none.
    """
    vary: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not name or not values:
            raise UsageError(
                f"`--vary {text}` names no values", hint="write it as --vary mix=none,cutmix"
            )
        recipes.require_known(name, "--vary")
        vary.setdefault(name, []).extend(
            recipes.from_text(name, value.strip(), called=f"--vary {name}")
            for value in values.split(",")
        )
    return vary


def trials(
    base: Recipe, vary: Mapping[str, Sequence[Any]], *, one_at_a_time: bool = False
) -> list[Trial]:
    """Return the base, and each combination of values; or the base with each value alone.

    Recipes that would train the same networks become `twins` of the first. Raises `UsageError` for
    settings that cannot vary, and combinations that contradict each other.
    """
    for name in vary:
        recipes.require_known(name, "what is to vary")
        if name in SHARED:
            raise UsageError(
                f"`{name}` cannot vary: all trials have the same photos and the same folds",
                hint=f"set it for all of them with --{name.replace('_', '-')}",
            )
    if one_at_a_time:
        changes = [{name: value} for name, values in vary.items() for value in values]
    else:
        products = itertools.product(*vary.values())
        changes = [dict(zip(vary, values, strict=True)) for values in products]
    made = [varied(base, each) for each in changes]
    return distinct([Trial(BASE, {}, base), *made], recipes.effective)


def reference(overrides: Mapping[str, Any]) -> list[Trial]:
    """Return the experiments of the course report, each one change from the recipe `reference`.

    The base has neither MixUp nor CutMix. `overrides` change all; `eval_resize` follows `size`
    unless it is among them. "One replica" trains twice the epochs, with twice the patience.
    """
    settings = recipes.settings_of("reference") | {"mix": "none"} | dict(overrides)
    size = settings["size"]
    if not isinstance(size, int):
        raise UsageError(f"`size` = {size!r}: the preset needs a number of pixels")
    if "eval_resize" not in overrides:
        settings["eval_resize"] = round(size * RESIZE_SHARE)
    base = recipes.build(settings)
    double = {"epochs": 2 * base.epochs, "patience": 2 * base.patience}
    experiments: dict[str, dict[str, Any]] = {
        "none": {"mix": "none", "augment": "none"},
        "randaugment": {"augment": "randaugment"},
        "mixup": {"mix": "mixup"},
        "cutmix": {"mix": "cutmix"},
        "augmix": {"augment": "augmix"},
        "head se": {"head": "se"},
        "head attention": {"head": "attention"},
        "no crop": {"eval_resize": size},
        "one replica, twice the epochs": {"replicas": 1, "merge": "none", **double},
        "merged once at the end": {"merge_every": base.epochs},
    }
    made = [varied(base, changes, name) for name, changes in experiments.items()]
    unchanged = [trial for trial in made if not trial.changes] or [Trial(BASE, {}, base)]
    return distinct([*unchanged, *made], recipes.effective)


def varied(base: Recipe, settings: Mapping[str, Any], name: str = "") -> Trial:
    """Return the base with these settings; a `UsageError` names the trial and the contradiction."""
    try:
        recipe = recipes.build(recipes.over(base.model_dump(), settings))
        require_backbone(recipe.backbone)
    except UsageError as error:
        called = name or described(settings)
        raise UsageError(f"{called}: {error.message}", hint=error.hint) from error
    changes = {each: new for each, new in recipe if new != getattr(base, each)}
    asked = {each: changes[each] for each in settings if each in changes}
    return Trial(name or described(asked) or BASE, changes, recipe)


def distinct(found: Iterable[Trial], meaning: Callable[[Recipe], Any]) -> list[Trial]:
    """Return the trials without those whose recipe means the same as that of an earlier one."""
    kept: dict[Any, Trial] = {}
    for trial in found:
        key = meaning(trial.recipe)
        first = kept.setdefault(key, trial)
        if trial.name not in (first.name, *first.twins):
            kept[key] = replace(first, twins=(*first.twins, trial.name, *trial.twins))
    return list(kept.values())


def with_seeds(trials: Sequence[Trial], seeds: int) -> list[Trial]:
    """Return the trials, and then all of them again with each further seed.

    Raises `UsageError` for less than one seed, and where the trials themselves vary the seed.
    """
    if seeds < 1:
        raise UsageError(f"`seeds` = {seeds} is no number of seeds")
    if seeds > 1 and any("seed" in trial.changes for trial in trials):
        raise UsageError("`seed` varies among the trials, and each would have several seeds")
    return [
        *trials,
        *(
            Trial(
                f"{trial.name}, seed {seed}",
                trial.changes,
                trial.recipe.replace(seed=seed),
                of=trial.name,
            )
            for seed in range(trials[0].recipe.seed + 1, trials[0].recipe.seed + seeds)
            for trial in trials
        ),
    ]


def described(changes: Mapping[str, Any]) -> str:
    """Return the settings as `--vary` takes them: `mix=cutmix, crop_scale=0.35 1.0`."""
    values = {name: v if isinstance(v, tuple) else (v,) for name, v in changes.items()}
    return ", ".join(f"{name}={' '.join(map(str, value))}" for name, value in values.items())
