#!/usr/bin/env bash
# Write a made set of photos with datumaro 1.13.12, in its own form, as `imagenet`,
# `imagenet_with_subset_dirs`, `imagenet_txt` and `cvat`, into the folder `datumaro` beside this
# file. Pictures are not kept: their names are, in `names.json`, and the tests make empty files.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install -q --disable-pip-version-check datumaro==1.13.12
"$folder/environment/bin/python" - "$here/datumaro" <<'PYTHON'
"""Export one set in several forms."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import Bbox, Label
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image


def item(name, subset, *labels, box=None, camera=None):
    picture = Image.from_numpy(np.full((4, 6, 3), len(name) * 9, dtype=np.uint8))
    shapes = [Bbox(0, 0, 2, 2, label=box)] if box is not None else []
    attributes = {"camera": camera} if camera else {}
    marks = [Label(each) for each in labels]
    return DatasetItem(name, subset=subset, media=picture, annotations=marks + shapes, attributes=attributes)


items = [
    item("a", "train", 0, camera="north"),
    item("b", "train", 1, box=0),
    item("my own é", "train", 2),
    item("same", "train", 0),
    item("several", "train", 0, 1),
    item("none", "train", box=1),
    item("same", "test", 1),
    item("deep/c", "test", 1),
    item("twice/d", "val", 0),
    item("twice_d", "val", 0),
]
out = Path(sys.argv[1])
shutil.rmtree(out, ignore_errors=True)
names = {}
for form in ("datumaro", "imagenet", "imagenet_with_subset_dirs", "imagenet_txt", "cvat"):
    data = Dataset.from_iterable(items, categories=["oak", "elm", "dog rose"])
    data.export(str(out / form), form, save_media=True)
    pictures = sorted((out / form).rglob("*.jpg"))
    names[form] = [each.relative_to(out / form).as_posix() for each in pictures]
    for each in pictures:
        each.unlink()
(out / "names.json").write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n", "utf-8")
for each in sorted(out.rglob("*"), reverse=True):
    if each.is_dir() and not any(each.iterdir()):
        each.rmdir()
PYTHON
