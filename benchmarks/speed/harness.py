"""Measures things in turn, A B A B, and tells the ratios: rounds, rows, table lines, records.

Both sides of a row run in the same minutes on the same machine, so their ratio means something
where their times alone would not. Knows nothing of what is measured.
"""

import json
import operator
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from fieldguide.machine.cores import count_cores
from fieldguide.machine.device import device_name

Clock = Literal["wall", "cpu"]

PACKAGES = ("fieldguide", "torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    `folder` is an empty one for photos and runs; `photos`, `workers` and `largest` are 0 where the
    part shall decide. `layout` is the recipes' setting; these fits are too short for a trial of it.
    `quick`: one round with tiny counts, to see that a part runs at all.
    """

    folder: Path
    rounds: int = 5
    quick: bool = False
    large: bool = False
    photos: int = 0
    workers: int = 0
    largest: int = 0
    layout: str = "auto"
    peer_python: Path | None = None


class Cost(NamedTuple):
    """Seconds: of the clock, and of processors in this process and the children it waited for."""

    wall: float
    cpu: float

    def scaled(self, factor: float) -> "Cost":
        """So many times as much."""
        return Cost(self.wall * factor, self.cpu * factor)


T = TypeVar("T")
Contestant = Callable[[], Cost]


def cost_of(work: Callable[[], object]) -> Cost:
    """What it costs to do the work once."""
    return measured(work)[1]


def measured(work: Callable[[], T]) -> tuple[T, Cost]:
    """What comes of the work, done once, and what it costs."""
    before = _clocks()
    result = work()
    after = _clocks()
    return result, Cost(after.wall - before.wall, after.cpu - before.cpu)


def _clocks() -> Cost:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time()
    return Cost(time.perf_counter(), own + children.ru_utime + children.ru_stime)


def in_turn(
    contestants: Sequence[Contestant], rounds: int, *, warm: bool = True
) -> list[list[Cost]]:
    """Each contestant's costs, a list for each, round by round A B A B.

    `warm`: all of them once before, uncounted: the first time is that of allocators and caches.
    """
    if warm:
        for contestant in contestants:
            contestant()
    each_round = [[contestant() for contestant in contestants] for _ in range(rounds)]
    return [list(costs) for costs in zip(*each_round, strict=True)]


def rates(costs: Iterable[Cost], clock: Clock, amount: float = 1) -> tuple[float, ...]:
    """What is done in a second of that clock, of `amount` at each cost."""
    return tuple(amount / getattr(cost, clock) for cost in costs)


def seconds(costs: Iterable[Cost], clock: Clock) -> tuple[float, ...]:
    """The costs by that clock."""
    return tuple(getattr(cost, clock) for cost in costs)


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a row's result is to reach: at least (`≥`) or at most (`≤`) so much."""

    sign: Literal["≥", "≤"]
    value: float

    def met(self, value: float) -> bool:
        """Whether a result reaches it."""
        return value >= self.value if self.sign == "≥" else value <= self.value


@dataclass(frozen=True)
class Row:
    """One comparison of ours with a peer's: values of both, a pair for each round.

    The result of a round is ours / peer, or ours - peer for a `difference`; that of the row is the
    median (or `mean`) over rounds. `missing` says why nothing was measured.
    """

    id: str
    what: str
    ours: tuple[float, ...] = ()
    peer: tuple[float, ...] = ()
    unit: str = ""
    clock: Clock | None = None
    target: Target | None = None
    difference: bool = False
    mean: bool = False
    photos: str = ""
    note: str = ""
    missing: str = ""

    @property
    def results(self) -> tuple[float, ...]:
        """The result of each round."""
        combine = operator.sub if self.difference else operator.truediv
        return tuple(combine(a, b) for a, b in zip(self.ours, self.peer, strict=True))

    @property
    def result(self) -> float:
        """The row's result; only of what was measured."""
        return statistics.fmean(self.results) if self.mean else statistics.median(self.results)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target or a measurement."""
        if self.target is None or self.missing:
            return None
        return self.target.met(self.result)


def not_measured(name: str, what: str, why: str) -> Row:
    """A row without values."""
    return Row(name, what, missing=why)


# --- telling --------------------------------------------------------------------------------------

_COLUMNS = "{:<19} {:<76} {:>9} {:>9}  {:<12} {:>7} {:>17}  {:<7} {}"


def header() -> str:
    """The names of the columns of `line`."""
    names = (
        "id",
        "what, by which clock",
        "A",
        "B",
        "unit",
        "result",
        "(min … max)",
        "target",
        "met",
    )
    return _COLUMNS.format(*names).rstrip()


def line(row: Row) -> str:
    """A row as one line of a table."""
    if row.missing:
        return f"{row.id:<19} {row.what:<76} not measured: {row.missing}"
    what = f"{row.what}, {row.clock}" if row.clock else row.what
    a, b = (shown(statistics.median(values)) for values in (row.ours, row.peer))
    span = f"({shown(min(row.results))} … {shown(max(row.results))})"
    target = f"{row.target.sign} {row.target.value:g}" if row.target else "-"
    met = {True: "yes", False: "NO", None: "-"}[row.met]
    told = (row.id, what, a, b, row.unit, shown(row.result), span, target, met)
    return "  ".join(filter(None, [_COLUMNS.format(*told).rstrip(), row.note]))


def shown(value: float) -> str:
    """About three figures that matter, without an exponent."""
    digits = next((n for n, least in enumerate((100, 10, 1)) if abs(value) >= least), 3)
    return f"{value:,.{digits}f}"


def record(row: Row, machine: Mapping[str, Any]) -> str:
    """A row with all its values, and what it was measured on, as one line of JSON."""
    measured = {} if row.missing else {"results": row.results, "result": row.result}
    return json.dumps(asdict(row) | measured | {"met": row.met, **machine}, ensure_ascii=False)


def machine(options: Options) -> dict[str, Any]:
    """What the results depend on beside the code: hardware, versions, threads, date, options."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": device_name(torch.device("cpu")),
        "cores": count_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "rounds": options.rounds,
        "quick": options.quick,
    }
