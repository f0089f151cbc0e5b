"""What a merge sends, and how long ranks on this machine take for it.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/merge_over_ranks.py

Each rank has the weights of one replica, which are gathered on all ranks and averaged. Prints one
JSON line for each network: bytes a replica, seconds of the message and of the average (median,
least, most), and seconds of the message after each step that asks whether to stop.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import timm
import torch

from fieldguide import merge
from fieldguide.machine.ranks import Ranks, joined
from fieldguide.machine.torchrun import launch


def main() -> None:
    """Measures each network in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=["resnet50", "resnest200e"])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with joined("cpu", launch().world) as ranks:
        for name in options.backbones:
            weights = dict(timm.create_model(name).state_dict())
            copies = ranks.gather(weights)
            row = {
                "backbone": name,
                "ranks": ranks.world,
                "megabytes": sum(each.nbytes for each in weights.values()) / 1e6,
                "gather_s": seconds(ranks, lambda w=weights: ranks.gather(w), options.rounds),
                "average_s": seconds(ranks, lambda c=copies: merge.average(c), options.rounds),
                "agree_s": seconds(ranks, lambda: ranks.agree(None, False), 200),
            }
            if ranks.first:
                print(json.dumps(row), flush=True)


def seconds(ranks: Ranks, work: Callable[[], object], rounds: int) -> list[float]:
    """Median, least and most; all ranks begin together."""
    times = []
    for _ in range(rounds):
        ranks.exchange(None)
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return [float(f"{each:.3g}") for each in (statistics.median(times), min(times), max(times))]


if __name__ == "__main__":
    main()
