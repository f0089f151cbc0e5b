#!/usr/bin/env bash
# datumaro 1.13.12: exports write two pictures to one file, without an error or a warning, and what
# is read back has one item's label on the other item's picture.
#
# 1. In Datumaro's own form a picture's file is named after the item's id with every `/` made `_`.
#    So `cam1/a` and `cam1_a` of one subset are one file, and the later item's pixels are in it. The
#    JSON lists both items with their own labels, and both name that file.
# 2. `imagenet_txt` and `cvat` write the pictures of all subsets into one folder `images`. Items of
#    the same id in two subsets (camera names such as `IMG_0001` repeat) are one file. Each subset's
#    list still has its own line and label for it.
# Why it surprises: ids with folders are what reading folders gives, and the same id in two subsets
# is allowed. Reading back gives as many items as were written, with all labels; only pixels
# tell. A classifier trained on it learns wrong labels, and a test part has training pictures.
#
# Output seen (Python 3.11, Linux); each item is a picture of one grey, with the label of that grey:
#   datumaro:     4 items, 3 pictures, 4 items read back, 1 with another item's picture
#   imagenet_txt: 4 items, 3 pictures, 4 items read back, 1 with another item's picture
#   cvat:         4 items, 3 pictures, 4 items read back, 1 with another item's picture
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check datumaro==1.13.12

cat > finding.py <<'PYTHON'
"""Export items with labels that their pixels tell, and read them back."""

import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType, Label
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

GREY = {"oak": 20, "elm": 120}


def item(name, subset, label):
    picture = Image.from_numpy(np.full((8, 8, 3), GREY[label], dtype=np.uint8))
    marks = [Label(list(GREY).index(label))]
    return DatasetItem(name, subset=subset, media=picture, annotations=marks)


def wrong(data):
    """Count the items whose picture has not the grey of their label."""
    labels = data.categories()[AnnotationType.label]
    greys = [(GREY[labels[i.annotations[0].label].name], i.media.data.mean()) for i in data]
    return sum(abs(expected - seen) > 10 for expected, seen in greys)


items = [
    item("same", "train", "oak"),
    item("same", "test", "elm"),
    item("cam1/a", "train", "oak"),
    item("cam1_a", "train", "elm"),
]
seen = []
for form in ("datumaro", "imagenet_txt", "cvat"):
    Dataset.from_iterable(items, categories=list(GREY)).export(form, form, save_media=True)
    pictures = len(list(Path(form).rglob("*.jpg")))
    back = Dataset.import_from(form, form)
    seen.append((len(items), pictures, len(back), wrong(back)))
    print(
        f"{form + ':':<13} {len(items)} items, {pictures} pictures,"
        f" {len(back)} items read back, {wrong(back)} with another item's picture"
    )
if seen != [(4, 3, 4, 1)] * 3:
    sys.exit("the behaviour has changed")
PYTHON
environment/bin/python finding.py
