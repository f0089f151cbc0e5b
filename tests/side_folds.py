"""What stands for a fold's training in other processes: imported there, so without torch."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fieldguide.errors import TrainingError
from fieldguide.machine.controls import Controls


def made(name: str, folder: Path, controls: Controls) -> Callable[[int], None]:
    """The maker of trainings that end, go on for a minute, or come to grief in fold 1."""

    def train(fold: int) -> None:
        (folder / f"{fold}-{os.getpid()}").touch()
        controls.on_row({"fold": fold})
        if name == "fails" and fold == 1:
            raise TrainingError("fold 1 diverged", hint="lower rates")
        if name == "is mistaken" and fold == 1:
            raise KeyError("no such thing")
        if name == "dies" and fold == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(6000 if name != "ends" else 3):
            controls.on_step()
            controls.check_stop()
            time.sleep(0.01)
        controls.notice(f"fold {fold} is done")

    return train
