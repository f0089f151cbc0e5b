"""Ranks as forks of the test's process, which meet at a free port of this machine."""

import csv
import os
import pickle
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fits import small_fit

import fieldguide as fg
from fieldguide.errors import FieldguideError

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

EVERY_STEP = {"checkpoint_minutes": 1e-9}
Work = Callable[[int], Any]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def as_rank(rank: int, world: int, port: int) -> dict[str, str]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    values = (rank, rank, world, world, port)
    return {**dict(zip(names, map(str, values), strict=True)), "MASTER_ADDR": "127.0.0.1"}


def begun(world: int, work: Work, folder: Path, *, ranks: bool = True) -> list[int]:
    """The processes, ranks if so asked, that do `work` and write down what it gives or raises."""
    port, children = free_port(), []
    for rank in range(world):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a threaded process
            child = os.fork()
        if child == 0:
            try:
                warnings.simplefilter("ignore")
                os.environ |= as_rank(rank, world, port) if ranks else {}
                try:
                    outcome: Any = work(rank)
                except BaseException as error:
                    outcome = error if isinstance(error, FieldguideError) else repr(error)
                (folder / f"rank-{rank}").write_bytes(pickle.dumps(outcome))
            finally:
                os._exit(0)
        children.append(child)
    return children


def on_ranks(world: int, work: Work, folder: Path) -> list[Any]:
    """What each rank gave or raised; None of one that was killed."""
    return on_processes(world, work, folder, ranks=True)


def on_processes(count: int, work: Work, folder: Path, *, ranks: bool = False) -> list[Any]:
    """What each of several processes gave or raised; None of one that was killed."""
    folder.mkdir(parents=True)
    for child in begun(count, work, folder, ranks=ranks):
        os.waitpid(child, 0)
    places = [folder / f"rank-{rank}" for rank in range(count)]
    return [pickle.loads(p.read_bytes()) if p.exists() else None for p in places]


def fitted_on_ranks(world: int, discs: Path, out: Path, **settings: Any) -> fg.Run:
    def work(rank: int) -> list[int]:
        return small_fit(discs, out, **settings).done

    outcomes = on_ranks(world, work, out.with_name(f"{out.name}-ranks-{world}"))
    assert all(isinstance(each, list) for each in outcomes), outcomes
    assert outcomes == [fg.Run(out).done] * world
    return fg.Run(out)


def curves(run: fg.Run, fold: int) -> list[dict[str, str]]:
    with (run.fold_folder(fold) / "history.csv").open(newline="") as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]
