import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fits import results, small_fit
from side_folds import made

from fieldguide.errors import ResourceError, Stopped, TrainingError
from fieldguide.fitting.progress import Watcher
from fieldguide.machine import device
from fieldguide.machine.controls import Controls
from fieldguide.machine.processes import train_side_by_side


def test_every_fold_is_trained_once_and_what_it_tells_is_heard(tmp_path: Path) -> None:
    steps: list[None] = []
    rows: list[dict[str, Any]] = []
    told: list[str] = []
    controls = Controls(on_step=lambda: steps.append(None), on_row=rows.append, notice=told.append)
    train_side_by_side([partial(made, "ends", tmp_path)] * 2, [0, 1, 2, 4], controls)
    places = [path.name.split("-") for path in tmp_path.iterdir()]
    assert sorted(fold for fold, _ in places) == ["0", "1", "2", "4"]
    assert len({process for _, process in places}) == 2
    assert len(steps) == 4 * 3
    assert sorted(row["fold"] for row in rows) == [0, 1, 2, 4]
    assert sorted(told) == [f"fold {fold} is done" for fold in (0, 1, 2, 4)]


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("fails", TrainingError, "fold 1 diverged"),
        ("is mistaken", KeyError, "no such thing"),
        ("dies", ResourceError, r"fold 1 ended by signal 9(.|\n)*--workers 1"),
    ],
)
def test_what_goes_wrong_in_one_stops_all(
    how: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    begun = time.monotonic()
    with pytest.raises(kind, match=message):
        train_side_by_side([partial(made, how, tmp_path)] * 2, [0, 1, 2], Controls())
    assert time.monotonic() - begun < 45  # the other would take a minute
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"0", "1"}


def test_whoever_wants_to_stop_is_heard(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []

    def check_stop() -> None:
        if len(rows) == 2:
            raise Stopped(signal.SIGINT)

    controls = Controls(on_row=rows.append, check_stop=check_stop)
    with pytest.raises(Stopped) as error:
        train_side_by_side([partial(made, "goes on", tmp_path)] * 2, [0, 1, 2], controls)
    assert error.value.exit_code == 130
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.split("-")[1]), 0)


def test_a_fit_stopped_and_resumed_side_by_side_has_the_bits_of_one_in_sequence(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "count_cores", lambda: 2)
    one = small_fit(discs, tmp_path / "one", folds=3, workers=1)
    assert one.environment["threads"] == 1
    steps: list[None] = []

    def check_stop() -> None:
        if len(steps) > 5:
            raise Stopped(signal.SIGTERM)

    watcher = Watcher(on_step=lambda: steps.append(None), check_stop=check_stop)
    with pytest.raises(Stopped):
        small_fit(discs, tmp_path / "two", folds=3, workers=2, watcher=watcher)
    assert list((tmp_path / "two").glob("folds/*/checkpoint/*.safetensors"))
    skipped: list[int] = []
    two = small_fit(
        discs,
        tmp_path / "two",
        folds=3,
        device="cpu:2",
        workers="auto",
        watcher=Watcher(on_resume=skipped.append),
    )
    assert sum(skipped) >= 2  # a step at least of each fold that was begun
    assert results(two) == results(one)
