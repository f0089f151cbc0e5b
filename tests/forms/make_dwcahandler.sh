#!/usr/bin/env bash
# Write tests/forms/dwcahandler/: a Darwin Core archive of five records by dwcahandler 1.1.5,
# unpacked, without its eml.xml, which no reader of photos needs.
set -euo pipefail

target=$(cd "$(dirname "$0")" && pwd)/dwcahandler
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check dwcahandler==1.1.5 pandas==2.3.3

cat > write.py <<'PYTHON'
"""Write the archive from two frames."""

import pandas as pd
from dwcahandler import ContentData, DwcaHandler, MetaElementTypes

records = pd.DataFrame(
    [
        ("r1", "Quercus robur", "Plantae", "Quercus", "species", "Ann", "2020-05-04T10:11:12Z",
         'the "old oak", by the mill'),
        ("r2", "Acer campestre", "Plantae", "Acer", "species", "Bo", "2020-05-05", "field\nsouth"),
        ("r3", "Acer", "Plantae", "Acer", "genus", "Bo", "2020-05-05", "a; b, c"),
        ("r4", "Ülmus minor", "Plantae", "Ulmus", "species", "", "", ""),
        ("r5", "Acer rubrum", "Plantae", "Acer", "species", "Bo", "2021", ""),
    ],
    columns="occurrenceID scientificName kingdom genus taxonRank recordedBy eventDate locality".split(),
)
media = pd.DataFrame(
    [
        ("r1", "https://photos.example/1/large.jpg", "StillImage", "image/jpeg", "CC-BY"),
        ("r1", "https://photos.example/2/large.jpg", "StillImage", "image/jpeg", "CC0"),
        ("r2", "https://photos.example/HERB-3.jpg?size=9", "StillImage", "image/jpeg", "CC0"),
        ("r3", "https://photos.example/HERB-4.jpg", "StillImage", "image/jpeg", "CC0"),
        ("r4", "https://photos.example/HERB-5.jpg", "StillImage", "image/jpeg", ""),
    ],
    columns="occurrenceID identifier type format license".split(),
)
DwcaHandler.create_dwca(
    core_csv=ContentData(data=records, type=MetaElementTypes.OCCURRENCE, keys=["occurrenceID"]),
    ext_csv_list=[ContentData(data=media, type=MetaElementTypes.MULTIMEDIA)],
    eml_content="<eml/>",
    output_dwca="archive.zip",
)
PYTHON
environment/bin/python write.py
rm -rf "$target"
environment/bin/python -m zipfile -e archive.zip "$target"
rm -f "$target/eml.xml"
