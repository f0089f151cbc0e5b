"""The runs and models that commands open: a run says which folds answer, where not all do."""

from pathlib import Path
from typing import TYPE_CHECKING

from fieldguide.cli import terminal
from fieldguide.cli.flags import refuse
from fieldguide.errors import UsageError
from fieldguide.words import listed

if TYPE_CHECKING:
    from fieldguide.predict.exported import Exported
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


def open_model(folder: Path, photos_root: Path | None = None) -> "Run | Exported | Path":
    """Return a run, an exported model, or the folder of a saved classifier, without torch.

    Raises `UsageError` where there is none of these.
    """
    if (folder / "setup.json").is_file():
        return open_run(folder, photos_root)
    from fieldguide.predict import exported

    if exported.model_file(folder):
        return exported.Exported.load(folder)
    if not (folder / "classifier.json").is_file():
        raise UsageError(f"`{folder}` is neither a run's folder, nor a classifier's or an export's")
    return folder


def refuse_of_runs(model: Path, combine: str | None, photos_root: Path | None) -> None:
    """Raise `UsageError` for flags of runs, given for another model."""
    given = {"--combine": combine, "--photos-root": photos_root}
    refuse([flag for flag, value in given.items() if value], f"for runs, and `{model}` is none")
