"""What the recipe `instant` costs beside `quick`: whole commands, on the same photos.

Usage: python benchmarks/instant.py PHOTOS [--weights FILE] [--backbone resnet18] [--per-class 20]

Runs `fieldguide fit --recipe instant` with an empty cache, again with features from the cache, and
`--recipe quick` with an empty cache, one after the other. Prints a JSON line each: processor
seconds and seconds on the clock of the command with all its processes, the most memory that one of
them held, and the accuracy out of fold; then the ratios to `quick`, whose targets are at most 1/15
of processor time, 1/6 of the clock, and 1/40 of processor time from the cache.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import fieldguide as fg

COMMANDS = {"instant": "instant", "instant, cached": "instant", "quick": "quick"}


def main() -> None:
    """Measures one command after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--per-class", type=int, help="the first photos of each class")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = folder / "photos.csv"
        write_table(table, options.photos, options.per_class)
        settings = ["--backbone", options.backbone]
        if options.weights:
            settings += ["--weights", str(options.weights.resolve())]
        found = {name: measured(folder, table, name, settings) for name in COMMANDS}
    for name in ("instant", "instant, cached"):
        ratios = {
            key: round(found[name][key] / found["quick"][key], 4) for key in ("cpu_s", "wall_s")
        }
        print(json.dumps({"command": name, "of_quick": ratios}), flush=True)


def write_table(table: Path, photos: Path, per_class: int | None) -> None:
    """Write the first training photos of each class as a table."""
    catalog = fg.scan(photos)
    by_class: dict[str, list[Path]] = defaultdict(list)
    for photo in catalog.photos:
        if photo.split == "train" and photo.label:
            by_class[photo.label].append(catalog.file(photo).resolve())
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows(
            (path, label) for label, all_ in by_class.items() for path in all_[:per_class]
        )


def measured(folder: Path, table: Path, name: str, settings: list[str]) -> dict[str, Any]:
    """Run a command and return, and print, what it took."""
    out = folder / name.replace(", ", "-")
    recipe = COMMANDS[name]
    command = [sys.executable, "-m", "fieldguide", "fit", str(table), "--out", str(out)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--recipe", recipe, *settings],
        env=os.environ | {"FIELDGUIDE_CACHE": str(folder / f"cache-{recipe}")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)  # with the children it has waited for
    wall = time.monotonic() - started
    if status:
        raise SystemExit(told)
    run = fg.Run(out)
    found = {
        "command": name,
        "photos": run.scores.photos,
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_s": round(wall, 1),
        "memory_mb": usage.ru_maxrss // 1024,
        "training_s": run.seconds,
        "accuracy": round(run.scores.accuracy, 4),
        "interval": [round(end, 4) for end in run.scores.interval],
    }
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
