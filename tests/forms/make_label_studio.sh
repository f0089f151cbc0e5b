#!/usr/bin/env bash
# Write Label Studio's exports of a made project with the converter of label-studio-sdk 2.1.2, which
# the web page's button "Export" runs too, into the folder `label_studio` beside this file.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install -q --disable-pip-version-check label-studio-sdk==2.1.2
"$folder/environment/bin/python" - "$here/label_studio" "$folder" <<'PYTHON'
"""Make tasks as the server exports them, and convert them."""

import json
import shutil
import sys
from pathlib import Path

from label_studio_sdk.converter import Converter

CONFIG = """<View>
  <Image name="img" value="$image"/>
  <Choices name="species" toName="img" choice="multiple">
    <Choice value="oak"/><Choice value="elm"/><Choice value="dogs &quot;rose&quot;, wild"/>
  </Choices>{more}
</View>"""
MORE = '<Choices name="quality" toName="img"><Choice value="good"/><Choice value="bad"/></Choices>'

out, folder = map(Path, sys.argv[1:])
ids = iter(range(1, 1000))


def annotation(*choices, name="species", cancelled=False):
    result = [
        {"id": f"r{next(ids)}", "from_name": name, "to_name": "img", "type": "choices",
         "origin": "manual", "value": {"choices": list(choices)}}
    ]
    return {
        "id": next(ids), "completed_by": 1, "result": result if choices else [],
        "was_cancelled": cancelled, "ground_truth": False, "lead_time": 2.5,
        "created_at": f"2026-05-01T10:{next(ids):02d}:00.000000Z",
        "updated_at": "2026-05-01T11:00:00.000000Z", "task": 1, "project": 1,
    }


def task(number, image, *annotations):
    return {
        "id": number, "annotations": list(annotations), "file_upload": image.rpartition("/")[2],
        "drafts": [], "predictions": [], "data": {"image": image, "camera": number % 2}, "meta": {},
        "created_at": "2026-05-01T09:00:00.000000Z", "updated_at": "2026-05-01T11:00:00.000000Z",
        "project": 1,
    }


def both(choice, quality):
    made = annotation(choice)
    made["result"] += annotation(quality, name="quality")["result"]
    return made


def export(name, config, tasks):
    source = folder / "tasks.json"
    source.write_text(json.dumps(tasks), "utf-8")
    for form, ending in (("JSON", "json"), ("JSON_MIN", "json"), ("CSV", "csv")):
        to = folder / form
        converter = Converter(config, str(folder), download_resources=False)
        converter.convert(str(source), str(to), form, is_dir=False)
        shutil.copy(to / f"result.{ending}", out / f"{name}_{form.lower()}.{ending}")


shutil.rmtree(out, ignore_errors=True)
out.mkdir()
export(
    "one_control",
    CONFIG.format(more=""),
    [
        task(1, "/data/upload/1/abcd1234-a.jpg", annotation("oak")),
        task(2, "/data/local-files/?d=photos/cam%20one/b%2B.jpg", annotation("elm")),
        task(3, "https://example.com/x/c.jpg?sign=1", annotation("oak"), annotation("oak")),
        task(4, "s3://bucket/d%C3%A9.png", annotation('dogs "rose", wild')),
        task(5, "/data/upload/1/abcd1235-e.jpg", annotation("oak"), annotation("elm")),
        task(6, "/data/upload/1/abcd1236-f.jpg", annotation("oak", "elm")),
        task(7, "/data/upload/1/abcd1237-g.jpg", annotation("elm", cancelled=True), annotation("oak")),
        task(8, "/data/upload/1/abcd1238-h.jpg"),
        task(9, "/data/upload/1/abcd1239-i.jpg", annotation()),
        task(10, "/data/upload/1/abcd123a-j.jpg", annotation("elm", cancelled=True)),
    ],
)
export(
    "two_controls",
    CONFIG.format(more=MORE),
    [
        task(1, "/data/upload/1/abcd1234-a.jpg", both("oak", "good")),
        task(2, "/data/upload/1/abcd1235-b.jpg", both("elm", "bad")),
    ],
)
PYTHON
