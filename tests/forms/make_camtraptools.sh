#!/usr/bin/env bash
# Write a Camtrap DP package with camtraptools 0.8.1 into tests/forms/camtraptools, and its tables of
# labels and of crops into tests/forms/camtraptools_more, from drawn pictures and the results of a
# detector that are made up here. Pictures are not kept.
set -euo pipefail

out=$(cd "$(dirname "$0")" && pwd)/camtraptools
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check camtraptools==0.8.1
cat > make.py <<'PYTHON'
"""Draw pictures of two cameras, and write results for them."""

import json
from pathlib import Path

from PIL import Image

TIMES = {
    "north/a.jpg": "2021:06:01 05:00:00",
    "north/b.jpg": "2021:06:01 05:00:20",
    "north/c.jpg": "2021:06:01 09:30:00",
    "south/a.jpg": "2021:06:02 21:15:00",
    "south/b.jpg": "2021:06:02 21:15:40",
}
images = []
for number, (name, time) in enumerate(TIMES.items()):
    exif = Image.Exif()
    exif[0x0132] = time
    exif.get_ifd(0x8769)[0x9003] = time
    Path("cards", name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (320, 240), (40 * number, 90, 90)).save(Path("cards", name), exif=exif)
    species = str(number // 3)
    box = {"category": "1", "conf": 0.9, "bbox": [0.25, 0.25, 0.5, 0.25]}
    box["classifications"] = [[species, 0.8]]
    images.append({"file": name, "detections": [] if name == "north/c.jpg" else [box]})
results = {
    "info": {"format_version": "1.4", "detector": "md_v5a.0.0.pt"},
    "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
    "classification_categories": {"0": "red fox", "1": "roe deer"},
    "classification_category_descriptions": {
        "0": "f;mammalia;carnivora;canidae;vulpes;vulpes;red fox",
        "1": "r;mammalia;cetartiodactyla;cervidae;capreolus;capreolus;roe deer",
    },
    "images": images,
}
Path("results.json").write_text(json.dumps(results))
Path("field.csv").write_text(
    "deploymentID,locationID,latitude,longitude\nnorth,ridge,45.1,15.1\nsouth,stream,45.2,15.2\n"
)
Path("own.csv").write_text(
    "path,species\nnorth/a.jpg,red fox\nnorth/b.jpg,Vulpes vulpes\nnorth/c.jpg,blank\n"
    "south/a.jpg,Capreolus capreolus\nsouth/b.jpg,deer\n"
)
PYTHON
environment/bin/python make.py
tool=environment/bin/camtraptools
$tool ingest cards --out package --field-sheet field.csv
$tool import package results.json
$tool events package
$tool export package --out exported --title Drawn --contributor Nobody --timezone Europe/Zagreb
sed -i 's/"created": "[^"]*"/"created": "2026-11-28T00:00:00+00:00"/' exported/datapackage.json
mkdir -p "$out"
cp exported/datapackage.json exported/*.csv "$out"
$tool labels package own.csv --species-column species --path-column path --out labels.csv
$tool crops package --images cards --truth labels.csv --out crops
mkdir -p "${out}_more"
cp labels.csv crops/crops.csv "${out}_more"
