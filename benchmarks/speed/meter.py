"""Runs a command and prints what it took as JSON: seconds, and the most memory of its processes.

    python meter.py COMMAND ...

A small process of its own, because Linux counts what a process held before it became the command:
a child of a large one would seem to be as large. Its standard error is the command's.
"""

import json
import resource
import subprocess
import sys
import time


def main() -> None:
    """Runs the command; fails if it fails."""
    started = time.perf_counter()
    done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.stderr.buffer.write(done.stderr)
        sys.exit(done.returncode)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    kibibytes = peak / 1024 if sys.platform == "darwin" else peak  # bytes there, KiB on Linux
    print(json.dumps({"seconds": seconds, "mebibytes": kibibytes / 1024}))


if __name__ == "__main__":
    main()
