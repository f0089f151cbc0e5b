#!/usr/bin/env bash
# torch 2.15.0: `torch.load(weights_only=True)` cannot read a dict subclass that was allow-listed,
# unless it is empty.
#
# Training scripts keep their settings beside the weights in a subclass of dict (Lightning's
# AttributeDict, EasyDict, yacs's CfgNode, a defaultdict). The error for such a file names the class
# and says to allow-list it with `torch.serialization.safe_globals`. Then:
#
# 1. The class itself is accepted: an empty one is loaded, with its type.
# 2. One with a key is refused all the same: the reader sets items on dict, OrderedDict and Counter
#    by their exact types alone. The new message is about that and names no way out.
# 3. Mapping the class's name to OrderedDict, by the pair (OrderedDict, "module.Class") in the list,
#    reads it, as a plain OrderedDict.
# Why it surprises: the way out that the first error offers works for every class but the ones that
# are most often in the way, and a try with an empty example shows success.
#
# Output seen (Python 3.11, Linux):
#   empty, class allow-listed:     loaded as Settings with 0 keys
#   one key, class allow-listed:   UnpicklingError
#   one key, name mapped:          loaded as OrderedDict with 1 key
#   defaultdict, allow-listed:     UnpicklingError
set -euo pipefail

here=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --no-compile --disable-pip-version-check torch==2.15.0 numpy==2.4.6

cat > plain.py <<'PYTHON'
"""A class of settings, as a training script has it."""


class Settings(dict):
    """Settings by name."""
PYTHON

environment/bin/python - <<'PYTHON' | tee seen.txt
import collections
import pickle

import plain
import torch


def read(what, settings, allowed):
    torch.save({"weight": torch.ones(2), "settings": settings}, "checkpoint.pth")
    with torch.serialization.safe_globals(allowed):
        try:
            found = torch.load("checkpoint.pth", weights_only=True)["settings"]
        except pickle.UnpicklingError:
            print(f"{what:30} UnpicklingError")
            return
    keys = f"{len(found)} {'key' if len(found) == 1 else 'keys'}"
    print(f"{what:30} loaded as {type(found).__name__} with {keys}")


named = (collections.OrderedDict, "plain.Settings")
read("empty, class allow-listed:", plain.Settings(), [plain.Settings])
read("one key, class allow-listed:", plain.Settings(lr=0.1), [plain.Settings])
read("one key, name mapped:", plain.Settings(lr=0.1), [named])
read("defaultdict, allow-listed:", collections.defaultdict(int, a=1), [collections.defaultdict, int])
PYTHON

diff <(sed -n '/^# Output seen/,/^set/s/^#   //p' "$here" | tr -s ' ') <(tr -s ' ' < seen.txt) && echo "as described"
