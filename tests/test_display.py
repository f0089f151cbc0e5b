import io

import pytest
from rich.console import Console

from fieldguide.cli.display import Display

ROW = {
    "fold": 0,
    "epoch": 3,
    "model": "merged",
    "train_loss": None,
    "test_loss": 0.51239,
    "test_accuracy": 0.875,
    "ratio_mean": 0.5,
    "angle_mean": 60.0,
    "skipped": 2,
    "diverged": False,
}


def display(**options: bool) -> tuple[Display, io.StringIO]:
    text = io.StringIO()
    return Display(Console(file=text, width=200, **options)), text


def test_a_pipe_gets_plain_lines() -> None:
    shown, text = display()
    with shown:
        shown.begin("training", 1000)
        shown.advance()
        shown.row(ROW)
        shown.notice("left out: [red]x.jpg[/red]")
    assert text.getvalue().splitlines() == [
        "training: 1,000",
        "fold 0  epoch  3  merged      test loss 0.512  accuracy 87.5%  ratio 0.50  angle 60"
        "  skipped 2",
        "left out: [red]x.jpg[/red]",
    ]


def test_a_terminal_gets_a_bar_with_time_left() -> None:
    shown, text = display(force_terminal=True)
    with shown:
        shown.begin("training", 10)
        shown.reach(3)
        shown.skip(2)
        shown.progress.refresh()
    assert "3/8" in text.getvalue()


def test_the_forecast_is_given_once_by_the_speed_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 60.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    shown, text = display()
    shown.begin("training", 100)
    shown.skip(20)  # done before: no part of the speed
    shown.forecast()  # nothing is done yet
    shown.advance(10)
    shown.forecast()
    shown.forecast()
    assert text.getvalue().splitlines()[1:] == ["about 7 min to go for the whole plan"]
