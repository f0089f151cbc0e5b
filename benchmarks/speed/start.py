"""How long commands take to start, against what Python itself and the libraries take."""

from collections.abc import Iterator

from commands import predict_command, spent
from harness import Contestant, Cost, Options, Row, Target, in_turn, seconds
from material import new_folder, trained_run

HELP = ["-m", "fieldguide", "--help"]
EMPTY = ["-c", "pass"]
LIBRARIES = ["-c", "import torch, timm"]


def start(options: Options) -> Iterator[Row]:
    """The command line that says what it can, and one that predicts a single photo."""
    yield help_row(options)
    run = trained_run(options)
    photo = next(run.catalog.file(each) for each in run.catalog.photos)
    predict = predict_command(run.folder, photo, new_folder(options))
    a, b = _in_turn(options, predict, LIBRARIES)
    what = "`fieldguide predict` of one photo vs importing torch and timm"
    yield Row("start", what, a, b, "s", "wall", Target("≤", 1.3))


def help_row(options: Options) -> Row:
    """`fieldguide --help` against an empty Python: how many seconds more."""
    a, b = _in_turn(options, HELP, EMPTY)
    what = "`fieldguide --help` minus `python -c pass`"
    return Row("start", what, a, b, "s", "wall", Target("≤", 0.5), difference=True)


def _in_turn(options: Options, one: list[str], other: list[str]) -> list[tuple[float, ...]]:
    """Once before, uncounted: it compiles what was never imported."""
    found = in_turn([_command(one), _command(other)], options.rounds)
    return [seconds(costs, "wall") for costs in found]


def _command(arguments: list[str]) -> Contestant:
    def run() -> Cost:
        took = spent(arguments)
        return Cost(took.seconds, took.seconds)

    return run
