"""fieldguide turns a folder of photographs into an image classifier its owner can trust.

    import fieldguide as fg

    photos = fg.scan("photos/")
    run = fg.fit(photos, fg.Recipe(backbone="resnet18", folds=3), out="runs/first")
    print(run.scores.accuracy, run.scores.interval)
    run.classifier("ensemble").predict("new-photos/").to_csv("predictions.csv")

Names are imported when they are first used: torch takes seconds, and `fg.Recipe` does not need it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldguide import merge as merge
    from fieldguide.analysis.conformal import Sets as Sets
    from fieldguide.catalog import Catalog as Catalog
    from fieldguide.catalog import read_table as read_table
    from fieldguide.catalog import scan as scan
    from fieldguide.classifier import Classifier as Classifier
    from fieldguide.crossval import fit as fit
    from fieldguide.errors import FieldguideError as FieldguideError
    from fieldguide.inference import Machine as Machine
    from fieldguide.recipe import Recipe as Recipe
    from fieldguide.runs import Run as Run

_HOME = {
    "Catalog": "catalog",
    "Classifier": "classifier",
    "FieldguideError": "errors",
    "Machine": "inference",
    "Recipe": "recipe",
    "Run": "runs",
    "Sets": "analysis.conformal",
    "fit": "crossval",
    "read_table": "catalog",
    "scan": "catalog",
}

__all__ = [*_HOME, "merge"]


def __getattr__(name: str) -> Any:
    if name == "merge":
        return importlib.import_module("fieldguide.merge")
    if name not in _HOME:
        raise AttributeError(f"module `fieldguide` has no attribute `{name}`")
    return getattr(importlib.import_module(f"fieldguide.{_HOME[name]}"), name)
