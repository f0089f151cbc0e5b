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
    from fieldguide.errors import FieldguideError as FieldguideError
    from fieldguide.fitting.fit import fit as fit
    from fieldguide.photos.catalog import Catalog as Catalog
    from fieldguide.photos.folders import scan as scan
    from fieldguide.photos.sources import read as read
    from fieldguide.photos.tables import read_table as read_table
    from fieldguide.predict.classifier import Classifier as Classifier
    from fieldguide.predict.model import Machine as Machine
    from fieldguide.recipe import Recipe as Recipe
    from fieldguide.runs.run import Run as Run

_HOME = {
    "Catalog": "photos.catalog",
    "Classifier": "predict.classifier",
    "FieldguideError": "errors",
    "Machine": "predict.model",
    "Recipe": "recipe",
    "Run": "runs.run",
    "Sets": "analysis.conformal",
    "fit": "fitting.fit",
    "read": "photos.sources",
    "read_table": "photos.tables",
    "scan": "photos.folders",
}

__all__ = [*_HOME, "merge"]


def __getattr__(name: str) -> Any:
    if name == "merge":
        return importlib.import_module("fieldguide.merge")
    if name not in _HOME:
        raise AttributeError(f"module `fieldguide` has no attribute `{name}`")
    return getattr(importlib.import_module(f"fieldguide.{_HOME[name]}"), name)
