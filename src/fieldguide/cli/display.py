"""The progress on the terminal: a line for the whole plan with time left, or plain lines in a pipe.

All goes to stderr. Knows nothing of how the work is done.
"""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from fieldguide.words import duration


class Display:
    """A context that shows progress; none of its methods ends the work."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task: TaskID | None = None
        self.started = time.monotonic()
        self.done = 0
        self.total = 0
        self.forecast_given = False

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def begin(self, what: str, total: int) -> None:
        """Begin work of `total` parts."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(what, total=total)
        self.started, self.done, self.total = time.monotonic(), 0, total
        if not self.console.is_terminal:
            self.notice(f"{what}: {total:,}")

    def advance(self, parts: int = 1) -> None:
        """Advance by `parts`."""
        self.done += parts
        if self.task is not None:
            self.progress.advance(self.task, parts)

    def reach(self, parts: int) -> None:
        """Set the progress to `parts`."""
        self.advance(parts - self.done)

    def skip(self, parts: int) -> None:
        """Leave `parts` out of the plan and the speed: they were done before."""
        self.total -= parts
        if self.task is not None:
            self.progress.update(self.task, total=self.total)

    def notice(self, message: str) -> None:
        """Print a line that stays."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def row(self, row: dict[str, Any]) -> None:
        """Print a line for one epoch of one model."""
        figures = [
            row.get("trial", ""),
            f"fold {row['fold']}  epoch {row['epoch']:>2}  {row['model']:<10}",
            _figure("train loss", row["train_loss"], ".3f"),
            _figure("test loss", row["test_loss"], ".3f"),
            _figure("accuracy", row["test_accuracy"], ".1%"),
            _figure("ratio", row.get("ratio_mean"), ".2f"),
            _figure("angle", row.get("angle_mean"), ".0f"),
            f"skipped {row['skipped']}" if row["skipped"] else "",
            "DIVERGED" if row["diverged"] else "",
        ]
        self.notice("  ".join(figure for figure in figures if figure).rstrip())

    def forecast(self) -> None:
        """Print once how long the rest of the plan will take, by the speed so far."""
        if self.forecast_given or not self.done:
            return
        self.forecast_given = True
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        self.notice(f"about {duration(left)} to go for the whole plan")


def _figure(name: str, value: float | None, form: str) -> str:
    return "" if value is None else f"{name} {value:{form}}"
