"""How long `fieldguide --help` takes against an empty Python, in turn.

python benchmarks/start.py --rounds 20
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time


def seconds(*arguments: str) -> float:
    """Wall time of one Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Prints minimum, median and maximum of each, and of the difference pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    seconds("-m", "fieldguide", "--help")  # compiles what was never imported
    pairs = [(seconds("-m", "fieldguide", "--help"), seconds("-c", "pass")) for _ in range(rounds)]
    rows = {
        "fieldguide --help": [ours for ours, _ in pairs],
        "python -c pass": [empty for _, empty in pairs],
        "difference": [ours - empty for ours, empty in pairs],
    }
    print(f"Python {platform.python_version()}, {platform.machine()}, n = {rounds}")
    for name, values in rows.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:<18} {low:.3f} s  {middle:.3f} s  {high:.3f} s")


if __name__ == "__main__":
    main()
