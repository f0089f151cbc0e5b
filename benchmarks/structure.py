"""The structure of a checkout in figures: lines, modules, packages, fan-out, seconds of --help.

    python benchmarks/structure.py [CHECKOUT …]

The seconds are of `python -m fieldguide --help` with the checkout's sources: median of five, with
the least and the most. Two runs of one fit are compared file by file with `cmp`.
"""

import ast
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def lines(folder: Path) -> int:
    """Return the lines of Python in a folder."""
    return sum(len(path.read_bytes().splitlines()) for path in folder.rglob("*.py"))


def fan_out(path: Path, source: Path) -> int:
    """The modules of the package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fieldguide"):
            place = source / (node.module or "").replace(".", "/")
            for alias in node.names:
                inner = place / f"{alias.name}.py"
                found.add(inner if inner.is_file() else place.with_suffix(".py"))
    return len(found)


def help_seconds(source: Path) -> list[float]:
    """Return the seconds that --help takes, in order."""
    command = [sys.executable, "-m", "fieldguide", "--help"]
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        surroundings = {**os.environ, "PYTHONPATH": str(source.resolve())}
        subprocess.run(command, env=surroundings, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])  # the first compiles


def main() -> None:
    """Print the figures of each checkout."""
    for checkout in map(Path, sys.argv[1:] or [Path(__file__).parents[1]]):
        source = checkout / "src"
        modules = list((source / "fieldguide").rglob("*.py"))
        widest = max(modules, key=lambda path: fan_out(path, source))
        taken = help_seconds(source)
        print(f"{checkout}")
        print(f"  lines of src {lines(source):,}, of tests {lines(checkout / 'tests'):,}")
        beside = sum(path.parent.name == "fieldguide" for path in modules)
        packages = sum(path.name == "__init__.py" for path in modules) - 1
        print(f"  modules {len(modules)}, {beside} of them in no package; packages {packages}")
        print(f"  widest fan-out {fan_out(widest, source)}: {widest.relative_to(source)}")
        print(f"  --help {statistics.median(taken):.2f} s ({taken[0]:.2f} … {taken[-1]:.2f})")


if __name__ == "__main__":
    main()
