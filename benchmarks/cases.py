"""The inputs of ../shared/cases, each with its right result above what this checkout makes of it.

    python benchmarks/cases.py RUN [NAME …]

RUN is any run, for the cases that predict. Each script works in a temporary folder; the Python
ones, which only make inputs, are followed by `fieldguide check` of every folder that they made.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = Path(__file__).parents[2] / "shared" / "cases"
SOURCES = str(Path(__file__).parents[1] / "src")
FIELDGUIDE = [sys.executable, "-m", "fieldguide"]


def said(command: list[str], folder: Path, model: Path) -> str:
    """Return what a command prints, without lines that only draw progress."""
    more = {
        "FG": shlex.join(FIELDGUIDE),
        "PY": sys.executable,
        "MODEL": str(model),
        "PYTHONPATH": os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")])),
        "COLUMNS": "160",
    }
    done = subprocess.run(
        command, cwd=folder, env=os.environ | more, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    kept = [line.rstrip() for line in lines if not line.startswith(("checking", "predicting"))]
    return "\n".join([*kept, f"exit code {done.returncode}"])


def main() -> None:
    """Run the cases that are named, or all."""
    model, names = Path(sys.argv[1]).resolve(), set(sys.argv[2:])
    if not CASES.is_dir():
        raise SystemExit(f"there are no cases: {CASES} is no folder")
    for path in sorted(CASES.glob("[a-z]*.*")):
        if path.suffix not in {".sh", ".py"} or (names and path.stem not in names):
            continue
        right = re.findall(r"#\s*(RIGHT:.*)", path.read_text("utf-8"))
        print(f"== {path.stem}", *right, "NOW:", sep="\n")
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            if path.suffix == ".sh":
                print(said(["bash", str(path)], folder, model))
                continue
            print(said([sys.executable, str(path), "."], folder, model))
            for each in sorted(place for place in folder.iterdir() if place.is_dir()):
                print(f"-- check {each.name}")
                print(said([*FIELDGUIDE, "check", str(each), "--folds", "2"], folder, model))


if __name__ == "__main__":
    main()
