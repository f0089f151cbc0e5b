#!/usr/bin/env bash
# filelock 4.2.11: a process loses its `ReadWriteLock`, unnoticed, when it reads or copies the lock
# file, and a `FileLock` of the same path does not see the lock at all.
#
# `ReadWriteLock` is a transaction of an SQLite database at the path of the lock, as its docstring
# says. What follows from that is not said: SQLite locks with POSIX record locks (fcntl), which
# belong to the process and the file instead of to a descriptor. `FileLock` uses flock.
#
# 1. POSIX drops all record locks of a process on a file as soon as the process closes *any*
#    descriptor of that file. A holder that copies the folder with the lock file in it (a backup, a
#    checksum, an archive) gives its lock away: another process gets the write lock at once. The
#    holder hears nothing; its `with` block ends without an exception.
#    Why it surprises: reading a file looks harmless, and `FileLock` survives it.
# 2. On a local file system of Linux, flock and record locks do not see each other. A program that
#    changes from `FileLock` to `ReadWriteLock` at the same path is not excluded by copies of the
#    old version that still run, nor are they by it.
# 3. Content at the path, such as the process id that a lock file often holds, is refused with
#    sqlite3.DatabaseError, which is no error of filelock; `FileLock` accepts it.
#
# Output seen (Python 3.11, Linux):
#   ReadWriteLock held:                        another process waits in vain
#   ReadWriteLock held, then folder copied:    another process gets the lock
#   FileLock held, then folder copied:         another process waits in vain
#   ReadWriteLock held, FileLock asked for:    another process gets the lock
#   FileLock held, ReadWriteLock asked for:    another process gets the lock
#   a file with text: FileLock accepts it; ReadWriteLock: DatabaseError: file is not a database
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check filelock==4.2.11

cat > other.py <<'PYTHON'
"""Ask for the lock of the kind and path given, for one second."""

import sys

import filelock

kind, path = sys.argv[1:]
try:
    if kind == "ReadWriteLock":
        filelock.ReadWriteLock(path).acquire_write(timeout=1)
    else:
        filelock.FileLock(path).acquire(timeout=1)
except filelock.Timeout:
    print("waits in vain")
else:
    print("gets the lock")
PYTHON

cat > finding.py <<'PYTHON'
"""Hold locks while another process asks for them."""

import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, ReadWriteLock


def another_process(kind, path, case):
    """Return what another process gets, and print it."""
    command = [sys.executable, "other.py", kind, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    print(f"{case + ':':<42} another process {answer}")
    return answer


data = Path("data")
data.mkdir()
answers = []

path = data / "read_write.lock"
with ReadWriteLock(path).write_lock():
    answers.append(another_process("ReadWriteLock", path, "ReadWriteLock held"))
    shutil.copytree(data, "backup_1")
    case = "ReadWriteLock held, then folder copied"
    answers.append(another_process("ReadWriteLock", path, case))

path = data / "file.lock"
with FileLock(path):
    shutil.copytree(data, "backup_2")
    answers.append(another_process("FileLock", path, "FileLock held, then folder copied"))

path = data / "both.lock"
with ReadWriteLock(path).write_lock():
    answers.append(another_process("FileLock", path, "ReadWriteLock held, FileLock asked for"))
with FileLock(path):
    case = "FileLock held, ReadWriteLock asked for"
    answers.append(another_process("ReadWriteLock", path, case))

path = data / "text.lock"
path.write_text("4711\n")
with FileLock(path):
    pass
try:
    with ReadWriteLock(path).write_lock():
        refusal = "accepts it"
except Exception as error:
    refusal = f"{type(error).__name__}: {error}"
print(f"a file with text: FileLock accepts it; ReadWriteLock: {refusal}")

waits, gets = "waits in vain", "gets the lock"
if answers != [waits, gets, waits, gets, gets] or not refusal.startswith("DatabaseError"):
    sys.exit("the behaviour has changed")
PYTHON
environment/bin/python finding.py
