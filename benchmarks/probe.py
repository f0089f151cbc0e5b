"""Training steps by memory layout, precision and compilation, for some networks on this machine.

    OMP_NUM_THREADS=1 python benchmarks/probe.py resnet18@128x64 resnet50@224x16

A network is written NAME@SIZExBATCH. Ways take turns within each round, after one round to warm up.
Prints one JSON line a way: milliseconds a photo (least, median, most), the rate as a ratio to the
first way of the same run, and the photos of a step; and one line with what `fieldguide.train.trial`
chooses by itself, and in how many seconds. `--compile` adds compiled ways, which takes minutes.
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace

import torch

from fieldguide.machine.device import choose_device, device_name
from fieldguide.network.network import Network, build
from fieldguide.train import trial

CLASSES = 100


def main() -> None:
    """Measures one network after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet18@128x64", "resnet50@224x16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    device = choose_device(options.device)
    for text in options.networks:
        backbone, _, numbers = text.partition("@")
        size, batch_size = (int(number) for number in numbers.split("x"))
        network = build(
            backbone, weights="none", head="linear", classes=CLASSES, dropout=0.0, seed=0
        ).to(device)
        ways = trial.ways_to_try("auto", "auto", device)
        if options.compile:
            ways += tuple(replace(way, compile=True) for way in ways)
        about = {"network": backbone, "size": size, "batch": batch_size}
        tell_ways(about, network, ways, options.rounds, device)
        tell_choice(about, network, device)


def tell_ways(
    about: dict, network: Network, ways: tuple, rounds: int, device: torch.device
) -> None:
    """One line a way, from steps of the whole batch."""
    batch_size = about["batch"]
    step = trial.real_steps(network, about["size"], CLASSES, device)
    for way in ways:
        step(way, batch_size)
    times = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            times[way].append(1000 * sum(step(way, batch_size)) / batch_size)
    first = statistics.median(times[ways[0]])
    for way, values in times.items():
        middle = statistics.median(values)
        figures = {
            "ms_per_photo": [round(v, 3) for v in (min(values), middle, max(values))],
            "ratio": round(first / middle, 3),
        }
        print(json.dumps(about | vars(way) | figures | machine(device, rounds)), flush=True)


def tell_choice(about: dict, network: Network, device: torch.device) -> None:
    """What a probe for a long fit chooses, with its own timings as ratios to its first."""
    started = time.perf_counter()
    found = trial.choose(
        network,
        size=about["size"],
        batch_size=about["batch"],
        classes=CLASSES,
        device=device,
        compile=False,
        steps_to_go=10**6,
        cache=None,
    )
    seconds = list(found.table.values())
    line = {
        "chosen": [found.way.layout, found.way.precision],
        "parts": found.parts,
        "seconds": round(time.perf_counter() - started, 2),
        "ratios": [round(seconds[0] / value, 3) for value in seconds],
    }
    print(json.dumps(about | line), flush=True)


def machine(device: torch.device, rounds: int) -> dict[str, object]:
    """Where it was measured."""
    return {
        "n": rounds,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


if __name__ == "__main__":
    main()
