"""The hooks of a fold's training for the outside world. Knows nothing of how folds are trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TrainFold = Callable[[int], None]


@dataclass(frozen=True)
class Controls:
    """Hooks by which the outside world follows and steers a fold's training."""

    on_resume: Callable[[int], None] = lambda steps: None  # steps that a checkpoint holds
    on_step: Callable[[], None] = lambda: None
    on_row: Callable[[dict[str, Any]], None] = lambda row: None
    notice: Callable[[str], None] = lambda message: None
    check_stop: Callable[[], None] = lambda: None  # raises to stop, after a checkpoint


def relayed(tell: Callable[[str], Callable[..., None]], check_stop: Callable[[], None]) -> Controls:
    """Return controls for another process: `tell` gives, by name, a function that sends."""
    hooks = {name: tell(name) for name in ("on_resume", "on_step", "on_row", "notice")}
    return Controls(**hooks, check_stop=check_stop)


# A function that prepares a process to train folds, given its controls.
Make = Callable[[Controls], TrainFold]


def asked_to_stop(controls: Controls) -> BaseException | None:
    """Return the error with which the outside world wants to stop, if it does."""
    try:
        controls.check_stop()
    except BaseException as error:
        return error
    return None
