"""How many photos of unknown things a run's ensemble finds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fieldguide.analysis import unknown
from fieldguide.analysis.unknown import Worth
from fieldguide.errors import DataError, UsageError
from fieldguide.predict import inputs
from fieldguide.predict.model import Machine
from fieldguide.runs.run import Run
from fieldguide.storage import files
from fieldguide.words import count


def worth(
    run: Run,
    photos: str | Path,
    machine: Machine = Machine(),
    notice: Callable[[str], None] = lambda text: None,
) -> Worth:
    """Return how well photos that show nothing known are told from known ones.

    Photos of one folder count as alike, where there are several; one that is named twice counts
    once. Unreadable ones and those that the run was given itself are left out, with a notice.
    Raises DataError where none is left, UsageError for a run of crops.
    """
    if run.crop:
        raise UsageError(
            "this run was trained on crops, and unknown things are judged on whole photos",
            hint="predict their boxes with `fieldguide predict --unknown`, and count",
        )
    asked = list(
        {each.file or each.name: each for each in inputs.read(photos, notice=notice)}.values()
    )
    known = {photo.sha256 for photo in run.catalog.photos}
    strange = [each for each in asked if each.file is None or files.sha256(each.file) not in known]
    if len(strange) < len(asked):
        notice(f"left out: {count(len(asked) - len(strange), 'photo')} of the run itself")
    model = run.classifier("ensemble", machine=machine)
    found = model.predict([each.file for each in strange if each.file is not None], machine=machine)
    assert found.familiarity is not None
    read = ~np.isnan(found.familiarity)
    if lost := len(strange) - int(read.sum()):
        notice(f"left out: {count(lost, 'photo')} that cannot be read")
    if not read.any():
        raise DataError(f"no photo of `{photos}` can be judged")
    names = np.array(found.names)[read]
    folders = np.array([str(Path(name).parent) for name in names])
    several = len(np.unique(folders)) > 1
    compared = np.full(len(names), len(model.out_of_fold.targets))
    return unknown.worth(found.familiarity[read], folders if several else names, compared)
