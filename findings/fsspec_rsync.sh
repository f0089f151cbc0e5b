#!/usr/bin/env bash
# fsspec 2026.9.0: `fsspec.generic.rsync` says nothing of a file that it could not send, and skips a
# changed file that kept its size.
#
# 1. Between two file systems, `rsync` goes on after a failed copy, raises nothing, warns of nothing
#    and still lists the missing file in what it returns, "the copy operations that were performed"
#    in its docstring. The cause: `GenericFileSystem._copy` has on_error="ignore" as its default, and
#    "ignore" there means every exception. `rsync` has no such argument and does not mention it, but
#    hands unknown arguments on, so that rsync(..., on_error="raise") raises.
#    Why it surprises: `put` and `copy` of the same library raise, and so does `rsync` itself if both
#    sides are one file system. The program rsync exits with code 23.
# 2. Files are compared by size alone. The docstring says so, but the program rsync, whose name the
#    function bears, also compares modification times: "0.91" corrected to "0.19" is never sent.
#    update_cond="always" sends it.
#
# Output seen (Python 3.11, Linux):
#   put: OSError: over quota: large.bin
#   rsync: no exception; returned ['large.bin', 'scores.txt']; arrived ['scores.txt']
#   rsync(on_error="raise"): OSError: over quota: large.bin
#   rsync after an edit of equal size: returned []; source 0.19, target 0.91
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check fsspec==2026.9.0

cat > finding.py <<'PYTHON'
"""Send two files to a file system with a quota, and edit one of them."""

import sys
import warnings
from pathlib import Path

import fsspec
from fsspec.generic import rsync
from fsspec.implementations.memory import MemoryFileSystem

warnings.simplefilter("error")


class Quota(MemoryFileSystem):
    """A file system in memory that takes files of at most 100 bytes."""

    protocol = "quota"
    store = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("quota://"))

    def put_file(self, local, path, **options):
        if Path(local).is_file() and Path(local).stat().st_size > 100:
            raise OSError(f"over quota: {Path(path).name}")
        super().put_file(local, path, **options)


def attempt(send):
    """Return the result of sending and None, or None and the exception in words."""
    try:
        return send(), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


fsspec.register_implementation("quota", Quota)
quota = fsspec.filesystem("quota")
source = Path("photos")
source.mkdir()
(source / "large.bin").write_bytes(bytes(1000))
(source / "scores.txt").write_text("0.91")
address = f"file://{source.resolve()}"

_, put_error = attempt(lambda: quota.put(f"{source}/", "/copy/", recursive=True))
print("put:", put_error)
quota.store.clear()

sent, error = attempt(lambda: rsync(address, "quota:///copy"))
listed = sorted(Path(name).name for name in sent or {})
arrived = sorted(Path(name).name for name in quota.store)
print(f"rsync: {error or 'no exception'}; returned {listed}; arrived {arrived}")

_, raised = attempt(lambda: rsync(address, "quota:///copy", on_error="raise"))
print('rsync(on_error="raise"):', raised)

(source / "large.bin").unlink()
(source / "scores.txt").write_text("0.19")
sent_again, _ = attempt(lambda: rsync(address, "quota:///copy"))
target = quota.cat("/copy/scores.txt").decode()
case = "rsync after an edit of equal size"
print(f"{case}: returned {list(sent_again)}; source 0.19, target {target}")

silent = error is None and listed == ["large.bin", "scores.txt"] and arrived == ["scores.txt"]
stale = sent_again == {} and target == "0.91"
if not (put_error and silent and raised and stale):
    sys.exit("the behaviour has changed")
PYTHON
environment/bin/python finding.py
