#!/usr/bin/env bash
# datumaro 1.13.12: `imagenet_with_subset_dirs` cannot import what it has exported itself if a
# subset lacks a class, and what `imagenet` exports comes back under other labels if ids hold `/`.
#
# 1. Each subset's classes are taken from its own folders, and subsets of different classes are
#    refused on import. A rare class that has no picture in `test` is enough. The message speaks of
#    a "merge" command, and there is one dataset only.
# 2. A picture of label `oak` and id `cam1/a` is exported to `oak/cam1/a.jpg`, and imported with the
#    label `oak/cam1`: a class a camera.
# Why it surprises: both are valid sets, exported without an error, and ids with folders are what
# reading folders gives.
#
# Output seen (Python 3.11, Linux):
#   all classes in all subsets:  4 items read back
#   a class missing in one:      DatasetImportError
#   ids with folders:            labels oak and elm come back as elm/cam2 and oak/cam1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check datumaro==1.13.12

cat > finding.py <<'PYTHON'
"""Export three sets as folders of classes, and read them back."""

import sys

import numpy as np
from datumaro.components.annotation import AnnotationType, Label
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image


def there_and_back(name, form, *items):
    """Return the set of (id, subset, label) items as it is after an export and an import."""
    picture = Image.from_numpy(np.zeros((8, 8, 3), dtype=np.uint8))
    made = [
        DatasetItem(each, subset=subset, media=picture, annotations=[Label(label)])
        for each, subset, label in items
    ]
    Dataset.from_iterable(made, categories=["oak", "elm"]).export(name, form, save_media=True)
    return Dataset.import_from(name, form)


form = "imagenet_with_subset_dirs"
train = ("a", "train", 0), ("b", "train", 1)
back = len(there_and_back("whole", form, *train, ("c", "test", 0), ("d", "test", 1)))
print(f"all classes in all subsets:  {back} items read back")
try:
    missing = f"{len(there_and_back('missing', form, *train, ('d', 'test', 1)))} items read back"
except Exception as error:
    missing = type(error).__name__
print(f"a class missing in one:      {missing}")
data = there_and_back("deep", "imagenet", ("cam1/a", "train", 0), ("cam2/b", "train", 1))
names = data.categories()[AnnotationType.label]
labels = sorted(names[each.annotations[0].label].name for each in data)
print(f"ids with folders:            labels oak and elm come back as {' and '.join(labels)}")
if (back, missing, labels) != (4, "DatasetImportError", ["elm/cam2", "oak/cam1"]):
    sys.exit("the behaviour has changed")
PYTHON
environment/bin/python finding.py
