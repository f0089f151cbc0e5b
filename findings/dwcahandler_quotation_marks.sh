#!/usr/bin/env bash
# dwcahandler 1.1.5 (with pandas 2.3.3): `DwcaHandler.delete_records` loses records of an archive
# whose meta.xml says that cells are not quoted, and writes the loss into the new archive.
#
# Darwin Core's text guide lets an archive say how its tables are written. GBIF's downloads say
# fieldsEnclosedBy="": cells are separated by tabs, and a quotation mark in one is a letter. The
# library reads meta.xml, but applies quotation marks all the same: with one mark in record a and
# one in record c, all from the first to the second is one cell. Of four records two are read, and
# deleting record d leaves one, where three are right. Nothing warns; that fewer rows were extracted
# stands in a debug message. With the marks left out of the same table all is right.
# Why it surprises: the attribute is looked at, but an empty value becomes a quotation mark; and the
# library validates keys only, so that an archive is damaged by the deletion of an unrelated record.
#
# Output seen (Python 3.11, Linux):
#   without marks: records after deleting d: ['a', 'b', 'c']
#   with two marks: records after deleting d: ['a']
#   cell of record a: 'old oak\nb\tx\nc\tmill east'
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check dwcahandler==1.1.5 pandas==2.3.3

cat > finding.py <<'PYTHON'
"""Delete one record of four from an archive without quoting, and read what is left."""

import csv
import io
import logging
import sys
import zipfile

import pandas as pd
from dwcahandler import ContentData, DwcaHandler, MetaElementTypes

logging.disable(logging.CRITICAL)
TERMS = "http://rs.tdwg.org/dwc/terms/"
META = f"""<archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="eml.xml">
  <core encoding="utf-8" fieldsTerminatedBy="\\t" linesTerminatedBy="\\n" fieldsEnclosedBy=""
        ignoreHeaderLines="1" rowType="{TERMS}Occurrence">
    <files><location>occurrence.txt</location></files>
    <id index="0"/>
    <field index="0" term="{TERMS}occurrenceID"/>
    <field index="1" term="{TERMS}locality"/>
  </core>
</archive>"""


def left(mark):
    """Return id and locality of the records that are left, as the new archive's own rules say."""
    rows = [("a", f"{mark}old oak"), ("b", "x"), ("c", f"mill{mark} east"), ("d", "y")]
    table = "".join("\t".join(row) + "\n" for row in [("occurrenceID", "locality"), *rows])
    with zipfile.ZipFile("old.zip", "w") as archive:
        archive.writestr("meta.xml", META)
        archive.writestr("occurrence.txt", table)
        archive.writestr("eml.xml", "<eml/>")
    DwcaHandler.delete_records(
        dwca_file="old.zip",
        records_to_delete=ContentData(
            data=pd.DataFrame({"occurrenceID": ["d"]}),
            type=MetaElementTypes.OCCURRENCE,
            keys=["occurrenceID"],
        ),
        output_dwca="new.zip",
    )
    with zipfile.ZipFile("new.zip") as archive:
        text = archive.read("occurrence.txt").decode()
    return list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))[1:]


plain, marked = left(""), left('"')
print("without marks: records after deleting d:", [row[0] for row in plain])
print("with two marks: records after deleting d:", [row[0] for row in marked])
print("cell of record a:", repr(marked[0][1]))
if [row[0] for row in plain] != ["a", "b", "c"] or [row[0] for row in marked] != ["a"]:
    sys.exit("the behaviour has changed")
PYTHON
environment/bin/python finding.py
