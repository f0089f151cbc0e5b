"""Fits so small that a test can run many: 24 discs, timm's test network, 32 pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.fitting.fit import fit
from fieldguide.fitting.progress import Watcher
from fieldguide.recipe import ResolvedRecipe

SMALL: dict[str, Any] = {
    "backbone": "test_resnet",
    "weights": "none",
    "size": 32,
    "eval_resize": 36,
    "head_start": "random",
    "head_rate": 1e-3,
    "folds": 2,
    "replicas": 2,
    "batch_norm": "recalibrate",
    "epochs": 2,
    "mix": "cutmix",
    "batch_size": 4,
    "workers": 0,
    "precision": "float32",
    "layout": "contiguous",
    "compile": "off",
    "device": "cpu",
}


def small_recipe(**settings: Any) -> fg.Recipe:
    return recipes.build(SMALL | settings)


def flags(**settings: object) -> list[str]:
    """The settings of small fits as they are typed."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in (SMALL | settings).items()]


def small_fit(
    photos: Path | fg.Catalog,
    out: Path,
    *,
    fold: int | None = None,
    watcher: Watcher | None = None,
    **settings: Any,
) -> fg.Run:
    catalog = fg.scan(photos) if isinstance(photos, Path) else photos
    return fit(catalog, small_recipe(**settings), out, fold=fold, watcher=watcher)


def resolved_recipe(**settings: Any) -> ResolvedRecipe:
    """A small recipe without `auto`."""
    known = {"eval_size": 32, "stored_side": 0, "interpolation": "bilinear", "co_tuning": 0.0}
    channels = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return ResolvedRecipe(**small_recipe().model_dump() | known | channels | settings)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the package may catch it and save."""


def killer(step: int) -> Callable[[], None]:
    """Raises `Killed` at the given call."""
    calls = iter(range(step))

    def kill() -> None:
        if next(calls, None) is None:
            raise Killed

    return kill


def results(run: fg.Run) -> dict[str, bytes]:
    """What must be equal to the byte however the run came about."""
    folds = {
        f"{fold}/{name}": (run.fold_folder(fold) / name).read_bytes()
        for fold in run.done
        for name in ("weights.safetensors", "predictions.npz", "merges.csv")
    }
    oof = run.folder / "oof.csv"
    return folds | ({"oof.csv": oof.read_bytes()} if oof.exists() else {})
