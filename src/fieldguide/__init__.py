"""fieldguide turns a folder of photographs into an image classifier its owner can trust.

    import fieldguide as fg

    photos = fg.scan("photos/")
    run = fg.fit(photos, fg.Recipe(backbone="resnet18", folds=3), out="runs/first")
    print(run.scores.accuracy, run.scores.interval)

Names are imported when they are first used: torch takes seconds, and `fg.Recipe` does not need it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldguide import merge as merge
    from fieldguide.catalog import Catalog as Catalog
    from fieldguide.catalog import read_table as read_table
    from fieldguide.catalog import scan as scan
    from fieldguide.crossval import fit as fit
    from fieldguide.errors import FieldguideError as FieldguideError
    from fieldguide.recipe import Recipe as Recipe
    from fieldguide.runs import Run as Run

_HOME = {
    "Catalog": "catalog",
    "FieldguideError": "errors",
    "Recipe": "recipe",
    "Run": "runs",
    "fit": "crossval",
    "read_table": "catalog",
    "scan": "catalog",
}

__all__ = ["Catalog", "FieldguideError", "Recipe", "Run", "fit", "merge", "read_table", "scan"]


def __getattr__(name: str) -> Any:
    if name == "merge":
        return importlib.import_module("fieldguide.merge")
    if name not in _HOME:
        raise AttributeError(f"module `fieldguide` has no attribute `{name}`")
    return getattr(importlib.import_module(f"fieldguide.{_HOME[name]}"), name)
