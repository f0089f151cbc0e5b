"""A run as a command opens it: it says which folds answer, where not all do."""

from pathlib import Path
from typing import TYPE_CHECKING

from fieldguide.cli import terminal
from fieldguide.words import listed

if TYPE_CHECKING:
    from fieldguide.runs.run import Run


def open_run(folder: Path, photos_root: Path | None = None) -> "Run":
    """Return the run in a folder; print which folds are done, if some are not.

    Raises `UsageError` where there is no run.
    """
    from fieldguide.runs.run import Run

    run = Run(folder, photos=photos_root)
    if run.done and run.undone:
        missing = listed([str(fold) for fold in run.undone])
        terminal.tell(
            f"{len(run.done)} of {run.recipe.folds} folds are used: fold {missing} is not trained,"
            " or was lost since; the same fit command trains it"
        )
    return run
