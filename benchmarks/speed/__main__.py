"""Is it fast? Each part measures ours against a peer's in turn and prints rows with targets.

    python benchmarks/speed                          all parts but the long ones
    python benchmarks/speed kfold gate shares growth the long ones
    python benchmarks/speed data-cached --large      on photos of 1024 x 768 pixels
    python benchmarks/speed step --quick             tiny counts: does it run at all?

A row is A against B, pair by pair, as median (min … max). All values and what they were measured on
go to a file, one JSON line a row. Needs a machine that does nothing else; one thread a process.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is asked for."""
    asked = parsed(arguments)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fieldguide-bench-") as folder:
        # Before torch is imported, and for all processes that are started.
        os.environ.update(
            OMP_NUM_THREADS="1",
            HF_HUB_OFFLINE="1",
            FIELDGUIDE_CACHE=str(Path(folder) / "cache"),
        )
        measure(asked, Path(folder))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", help="by name; all but the long ones if none is named")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each row")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.jsonl"), help="appended to")
    parser.add_argument("--quick", action="store_true", help="one round, tiny counts: no evidence")
    parser.add_argument("--large", action="store_true", help="data, predict: photos of a camera")
    parser.add_argument("--photos", type=int, default=0, help="in place of a part's own number")
    parser.add_argument("--workers", type=int, default=0, help="kfold: folds at the same time")
    parser.add_argument("--largest", type=int, default=0, help="memory, growth: photos at most")
    parser.add_argument("--layout", default="auto", help="the recipes' setting: channels_last, …")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has fastai or DALI")
    return parser.parse_args(arguments)


def measure(asked: argparse.Namespace, folder: Path) -> None:
    """Runs the parts and tells each row as soon as it is measured."""
    from harness import Options, header, line, machine, not_measured, record
    from parts import LONG, PARTS

    unknown = [name for name in asked.parts if name not in PARTS]
    if unknown:
        sys.exit(f"there is no part `{unknown[0]}`: {', '.join(PARTS)}")
    import torch

    torch.set_num_threads(1)
    options = Options(
        folder=folder,
        rounds=1 if asked.quick else asked.rounds,
        quick=asked.quick,
        large=asked.large,
        photos=asked.photos,
        workers=asked.workers,
        largest=asked.largest,
        layout=asked.layout,
        peer_python=asked.peer_python,
    )
    print(header())
    facts = machine(options)
    for name in asked.parts or PARTS:
        rows = PARTS[name](options)
        if not asked.parts and name in LONG:
            rows = [not_measured(name, "a long one", "name it to run it")]
        for row in rows:
            print(line(row), flush=True)
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(record(row, facts) + "\n")


if __name__ == "__main__":
    main()
