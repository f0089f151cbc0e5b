"""Commands in processes of their own: what they are called with, and what they take."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

METER = Path(__file__).with_name("meter.py")


class Spent(NamedTuple):
    """What a command took; `mebibytes` is the most that one of its processes held at once."""

    seconds: float
    mebibytes: float


def spent(arguments: list[str], python: str = sys.executable) -> Spent:
    """Runs Python with these arguments and measures it from outside; what it prints is dropped.

    Raises CalledProcessError where it fails, after its last words.
    """
    told = subprocess.run(
        [sys.executable, str(METER), python, *arguments], check=True, stdout=subprocess.PIPE
    )
    return Spent(**json.loads(told.stdout))


def fit_command(photos: Path, out: Path, recipe: Path, fold: int = 0) -> list[str]:
    """Arguments of Python for one fold of a fit, without a report."""
    fieldguide = ["-m", "fieldguide", "fit", str(photos), "--out", str(out)]
    return [*fieldguide, "--recipe", str(recipe), "--fold", str(fold), "--no-report"]


def predict_command(model: Path, photos: Path, out: Path) -> list[str]:
    """Arguments of Python for a prediction by one of a run's folds."""
    fieldguide = ["-m", "fieldguide", "predict", str(model), str(photos)]
    how = ["--combine", "fold-0", "--device", "cpu", "--overwrite"]
    return [*fieldguide, *how, "--out", str(out / "predictions.csv")]
