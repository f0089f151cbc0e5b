"""What tests of the command line share: the CPU, and tables."""

import csv
from pathlib import Path

from fieldguide.predict.model import Machine

CPU = Machine("cpu", workers=0)
ON_CPU = ["--device", "cpu", "--workers", "0"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
