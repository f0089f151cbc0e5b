"""Kills and full disks: whether `save`, `pack`, `labels` and `predict` survive both.

    python benchmarks/interruptions.py [--trials 20] [--seed 0] [COMMAND …]

It draws photos and fits a small run. Each command is killed (SIGKILL) at random moments, half of
them spread over its whole time and half over the time in which it writes, and repeated: the repeat
must end well (or say that the result is there), with the bytes of an undisturbed one, and leave
nothing else beside it. Then it writes to a disk of random size below what it needs (a tmpfs in a
user namespace; without one, a limit on the size of a file): it must end with exit code 4, an error
and no traceback, leave nothing but the rows so far of `predict` (`OUT.part`), and end well when it
is repeated with room. Prints a row for each command.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

INSIDE = "INTERRUPTIONS_MOUNTS"  # set in the namespace where disks can be mounted
BLOCK = 4096  # bytes by which a tmpfs grows
FIT = (
    *("--weights", "none", "--backbone", "resnet10t", "--size", "32", "--eval-resize", "32"),
    *("--folds", "2", "--epochs", "1", "--replicas", "1", "--batch-size", "8"),
)
# What each command is called with; RESULT is the file or folder that it makes.
COMMANDS = {
    "save": ("save", "run", "--out", "RESULT"),
    "pack": ("pack", "photos", "--out", "RESULT"),
    "labels": ("labels", "run", "--out", "RESULT.csv"),
    "predict": ("predict", "run", "photos", "--out", "RESULT.csv", "--probabilities"),
}


def draw_photos(folder: Path) -> None:
    """Draw 40 photos of noise around each of three colours."""
    draws = np.random.default_rng(0)
    for number, label in enumerate(("blue", "green", "red")):
        (folder / label).mkdir(parents=True)
        for photo in range(40):
            pixels = draws.integers(0, 255, (64, 64, 3))
            pixels[..., number] //= 3
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{photo:03}.png")


class Child:
    """The real command line in a fork, with its output on a file; `limit`: bytes of a file.

    It is forked from this process, which has imported torch: kills fall into the work.
    """

    def __init__(self, name: str, place: Path, *, limit: int | None = None) -> None:
        words = [word.replace("RESULT", str(place / "result")) for word in COMMANDS[name]]
        self.said = Path(tempfile.gettempdir()) / f"{name}.said"
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            out = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            sys.argv = ["fieldguide", *words]
            runpy.run_module("fieldguide", run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> int:
        """Return the exit status in the end."""
        while (code := self.poll()) is None:
            time.sleep(0.002)
        return code

    def kill(self) -> int:
        """Kill it and return the exit status."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def text(self) -> str:
        """Return what it has said."""
        return self.said.read_text("utf-8", "replace")


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder by its path, and of empty folders nothing."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def undisturbed(name: str, place: Path) -> tuple[dict[str, str], float, float, int]:
    """Return what the command makes, seconds to its first file and to its end, and its bytes."""
    began, first = time.monotonic(), 0.0
    process = Child(name, place)
    while process.poll() is None:
        if not first and any(place.iterdir()):
            first = time.monotonic() - began
        time.sleep(0.002)
    assert process.code == 0, process.text()
    sizes = (path.stat().st_size for path in place.rglob("*") if path.is_file())
    needed = sum(-(-size // BLOCK) * BLOCK for size in sizes)
    return contents(place), first, time.monotonic() - began, needed


@contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """Mount a disk of so many bytes at `place`, of 0 without room for any file."""
    room = f"size={max(size, BLOCK)},nr_inodes={1000 if size else 1}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", room, "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def repeated(name: str, place: Path, right: dict[str, str], tally: Counter[str]) -> None:
    """Repeat the command and count whether all is as if nothing had happened."""
    process = Child(name, place)
    code, error = process.wait(), process.text()
    found = contents(place)
    there = code == 2 and ("is there already" in error or "exists" in error)
    tally["well"] += code == 0 or there
    tally["equal"] += {path: found.get(path) for path in right} == right
    left = sorted(found.keys() - right.keys())
    tally["leftovers"] += bool(left)
    if left or not (code == 0 or there) or found != right:
        print(f"# {name}: repeat ended with {code}: {left}: {error[-500:]}", flush=True)


def trials(name: str, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Return the counts of all trials of a command."""
    draws, place = random.Random(f"{seed} {name}"), folder / name
    place.mkdir()
    right, first, whole, needed = undisturbed(name, place)
    kills, full, codes = Counter[str](), Counter[str](), Counter[int]()
    for trial in range(count):
        shutil.rmtree(place)
        place.mkdir()
        process = Child(name, place)
        if trial % 2:  # in the time in which it writes, however long the imports took
            while process.poll() is None and not any(place.iterdir()):
                time.sleep(0.001)
            time.sleep(draws.uniform(0, whole - first))
        else:
            time.sleep(draws.uniform(0, whole))
        kills["killed"] += process.kill() == -signal.SIGKILL
        kills["partial"] += contents(place) not in ({}, right)
        repeated(name, place, right, kills)
    mounts = INSIDE in os.environ
    for _ in range(count):
        shutil.rmtree(place)
        place.mkdir()
        room = draws.randrange(needed // BLOCK) * BLOCK
        with disk(place, room) if mounts else nullcontext():
            process = Child(name, place, limit=None if mounts else room // 2)
            code, error = process.wait(), process.text()
            codes[code] += 1
            full["tracebacks"] += "Traceback" in error
            full["errors"] += "error: " in error
            found = contents(place)
            left = [path for path in found if not (name == "predict" and path.endswith(".part"))]
            full["leftovers"] += bool(left) and code != 0
            if code not in (0, 4) or "Traceback" in error or left:
                print(f"# {name}, room {room}: {code}: {left}: {error[-700:]}", flush=True)
            if mounts:
                more = f"remount,size={8 * needed + 2**24},nr_inodes=1000"
                subprocess.run(["mount", "-o", more, place], check=True)
            repeated(name, place, right, full)
    return {
        "command": name,
        "seconds": round(whole, 1),
        "writing": round(whole - first, 2),
        "kills": dict(kills),
        "disk": "tmpfs" if mounts else "limit on a file's size",
        "full": {**full, "exit codes": dict(codes)},
    }


def main() -> None:
    """Make the run, then try each command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commands", nargs="*", default=list(COMMANDS))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    alone = ["unshare", "--map-root-user", "--mount"]
    may_mount = shutil.which("unshare") and not subprocess.run([*alone, "true"]).returncode
    if may_mount and INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.execvp(alone[0], [*alone, sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[1] / "src"))
        os.environ["FIELDGUIDE_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        draw_photos(folder / "photos")
        for module in ("torch", "torchvision", "timm", "fieldguide.predict.classifier"):
            importlib.import_module(module)
        fit = [sys.executable, "-m", "fieldguide", "fit", "photos", "--out", "run", *FIT]
        subprocess.run(fit, check=True, capture_output=True)
        before = contents(folder / "run")
        for name in asked.commands:
            print(json.dumps(trials(name, asked.trials, asked.seed, folder)), flush=True)
        if contents(folder / "run") != before:
            print("# the run itself has changed")


if __name__ == "__main__":
    main()
