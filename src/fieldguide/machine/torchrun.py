"""This process's rank and world size, from torchrun's environment.

Read without torch, so that faults are reported at once. Knows nothing of what ranks do.
"""

import os
from dataclasses import dataclass

from fieldguide.errors import UsageError


@dataclass(frozen=True)
class Launch:
    """This process's `rank` (from 0) among `world`; its `local` one among `beside` here."""

    rank: int = 0
    world: int = 1
    local: int = 0
    beside: int = 1


def launch() -> Launch:
    """Return this process's rank and world size; UsageError for an inconsistent environment.

    To start ranks without torchrun, set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and on
    several machines LOCAL_RANK and LOCAL_WORLD_SIZE.
    """
    world = _number("WORLD_SIZE", 1)
    if world == 1 or "RANK" not in os.environ:
        return Launch()
    rank = _number("RANK", 0)
    if rank >= world:
        raise UsageError(f"RANK = {rank} is none of 0 to {world - 1}, as WORLD_SIZE = {world} says")
    return Launch(rank, world, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name} = {text!r} is no number of processes")
    return int(text)
