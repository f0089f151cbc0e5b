"""How a whole fit is followed and steered: its plan, and what it tells as it goes.

Knows nothing of how it is done.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fieldguide.fitting.jobs import parts_of
from fieldguide.machine.controls import Controls
from fieldguide.machine.ranks import ALONE, Ranks
from fieldguide.photos import check
from fieldguide.recipe import Recipe
from fieldguide.runs.run import Run
from fieldguide.runs.tracking import Tracker
from fieldguide.train.job import replica_steps


@dataclass(frozen=True)
class Plan:
    """The amount of work in a fit, for whoever shows progress."""

    folds: tuple[int, ...]  # those that are still to be trained
    steps: int  # of the optimiser, in all of these folds from their start, on this rank
    recipe: Recipe
    trials: int = 1  # that these are the folds of


@dataclass(frozen=True)
class Watcher(Controls):
    """How the outside world follows and steers a whole fit. Every field may be left out."""

    on_checking: Callable[[int], None] = lambda photos: None  # so many are to be checked
    on_check: Callable[[int], None] = lambda photos: None  # so many have been by now, of both
    on_features: Callable[[int], None] = lambda photos: None  # of so many are to be computed
    on_findings: Callable[[Sequence[check.Finding]], None] = lambda found: None  # of the check
    on_plan: Callable[[Plan], None] = lambda plan: None


def planned(run: Run, folds: Iterable[int] | None = None, ranks: Ranks = ALONE) -> Plan:
    """Return the amount of work in some folds, or in all that are not done."""
    recipe, peers = run.recipe, ranks.peers
    todo = tuple(run.undone if folds is None else folds)
    photos = [len(parts_of(recipe, run.catalog, run.folds[index])[0]) for index in todo]
    steps = sum(sum(replica_steps(recipe, n)[peers.rank :: peers.world]) for n in photos)
    return Plan(todo, steps * recipe.epochs, recipe)


@contextmanager
def tracked(watcher: Watcher, tracker: Tracker | None) -> Iterator[Watcher]:
    """Yield the watcher, with each of its messages passed on once, and rows to the tracker too."""
    told: set[str] = set()

    def notice(message: str) -> None:
        """Several processes may have the same to tell."""
        if message not in told:
            told.add(message)
            watcher.notice(message)

    def on_row(row: dict[str, Any]) -> None:
        watcher.on_row(row)
        if tracker is not None:
            tracker.row(row)

    try:
        yield replace(watcher, notice=notice, on_row=on_row)
    finally:
        if tracker is not None:
            tracker.close()


def waiting(controls: Controls) -> Callable[[str], None]:
    """Return what to do while another process holds a folder: say so once, and look for a stop."""
    told: set[str] = set()

    def look(reason: str) -> None:
        if reason not in told:
            told.add(reason)
            controls.notice(f"{reason}; waiting for it")
        controls.check_stop()

    return look
