#!/usr/bin/env bash
# Write what megadetector-utils 10.0.28 makes of a small Wildlife Insights download into
# tests/forms/megadetector: COCO Camera Traps by `wi_download_csv_to_coco`, and MegaDetector's batch
# results of boxes that are added here by `cct_to_md`.
set -euo pipefail

out=$(cd "$(dirname "$0")" && pwd)/megadetector
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check megadetector-utils==10.0.28
mkdir download
cat > download/images_7.csv <<'CSV'
project_id,deployment_id,image_id,filename,location,is_blank,identified_by,wi_taxon_id,class,order,family,genus,species,common_name,timestamp
7,DEP1,i1,a.jpg,gs://bucket/deployment/1/i1.jpg,1,x,t0,,,,,,Blank,2021-08-26 10:00:00
7,DEP1,i2,b.jpg,gs://bucket/deployment/1/i2.jpg,0,x,t1,Mammalia,Carnivora,Felidae,Panthera,onca,Jaguar,2021-08-26 10:05:00
7,DEP1,i3,c.jpg,gs://bucket/deployment/1/i3.jpg,0,x,t1,Mammalia,Carnivora,Felidae,Panthera,onca,Jaguar,2021-08-26 10:05:30
7,DEP2,i4,a.jpg,gs://bucket/deployment/2/i4.jpg,0,x,t2,Mammalia,Rodentia,Dasyproctidae,Dasyprocta,punctata,Agouti,2021-09-15 23:12:00
7,DEP2,i5,b.jpg,gs://bucket/deployment/2/i5.jpg,0,x,t1,Mammalia,Carnivora,Felidae,Panthera,onca,Jaguar,2021-09-15 23:12:10
7,DEP2,i5,b.jpg,gs://bucket/deployment/2/i5.jpg,0,x,t2,Mammalia,Rodentia,Dasyproctidae,Dasyprocta,punctata,Agouti,2021-09-15 23:12:10
CSV
cat > make.py <<'PYTHON'
"""Write both forms."""

import json

from megadetector.data_management.cct_to_md import cct_to_md
from megadetector.data_management.wi_download_csv_to_coco import wi_download_csv_to_coco

wi_download_csv_to_coco("download", "cct.json")
with open("cct.json") as file:
    data = json.load(file)
for number, image in enumerate(data["images"]):
    image["width"], image["height"] = 64, 48
for number, annotation in enumerate(data["annotations"]):
    annotation["bbox"] = [8, 6, 16 + 8 * number, 12]
    annotation["score"] = 0.9 - number / 10
with open("boxes.json", "w") as file:
    json.dump(data, file)
cct_to_md("boxes.json", "md.json")
PYTHON
environment/bin/python make.py
mkdir -p "$out"
cp download/images_7.csv cct.json md.json "$out"
