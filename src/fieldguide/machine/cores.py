"""The processor cores of this process. Needs no torch."""

import os


def count_cores() -> int:
    """Return the processor cores for this process: its share of them among ranks."""
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun
    return max(cores // int(beside), 1) if beside.isdecimal() and int(beside) else cores
