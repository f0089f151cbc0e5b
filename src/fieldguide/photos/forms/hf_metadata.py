"""The reader of image folders of Hugging Face's `datasets` with a table of metadata."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from fieldguide.errors import DataError, UsageError
from fieldguide.photos.catalog import SPLIT_FOLDERS, USUAL_NAMES
from fieldguide.photos.forms.form import Form, Known, load_text, require
from fieldguide.photos.forms.settle import (
    Said,
    head_of,
    settled,
    split_columns,
    tables_in,
)
from fieldguide.photos.tables import read_cells
from fieldguide.words import first_line, listed

_FOOTER = 1 << 18  # bytes that hold the names of columns (taste)
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_hf_metadata(place: Path) -> Form | None:
    """Return the photos of a Hugging Face image folder with a table `metadata`.

    The table is `metadata.csv`, `metadata.jsonl` or `metadata.parquet`.
    Source: "Create an image dataset" of the documentation of `datasets`. `file_name` starts from
    the table's folder; the part is the first folder. Labels are the column `label`, else the only
    one of a usual name, else the only one, where photos' folders, which `folder` holds, count as
    one. A list is several labels; other columns keep their names.
    """
    tables = [each for each in tables_in(place, *_METADATA) if _names_files(each)]
    if not tables:
        return None
    folders = [each.parent for each in tables]
    twice = [each.name for each in tables if folders.count(each.parent) > 1]
    if twice:
        raise DataError(f"expected one table of metadata in a folder, found {listed(twice)}")
    base = place if place.is_dir() else place.parent
    said = chain.from_iterable(_of_metadata(table, base) for table in tables)
    return settled("Hugging Face metadata", base, said, usual=USUAL_NAMES["label"])


_COLUMN = re.compile(rb'(^|[,"])file_name([,"\r\n]|$)')


def _names_files(table: Path) -> bool:
    """Return whether a table has the column, by its first line or a Parquet file's last bytes."""
    if table.suffix != ".parquet":
        return bool(_COLUMN.search(head_of(table, ".csv", ".jsonl").partition(b"\n")[0]))
    with table.open("rb") as file:
        file.seek(max(0, table.stat().st_size - _FOOTER))
        return b"file_name" in file.read()


def _of_metadata(table: Path, base: Path) -> Iterator[Said]:
    above = table.parent.relative_to(base)
    for where, row in _records(table):
        name = require(row.get("file_name"), str, f"{where}: `file_name`", "a path")
        path = (above / name).as_posix()
        first, *folders = path.split("/")[:-1] or [""]
        of_part = first.casefold() in SPLIT_FOLDERS
        answers = {key: _texts(value) for key, value in row.items() if key != "file_name"}
        if folder := "/".join(folders if of_part else filter(None, [first, *folders])):
            answers.setdefault("folder", [folder])
        yield Said(path, answers, split_columns(first) if of_part else {})


def _texts(value: Any) -> list[str]:
    """Return the texts and numbers in a cell; nothing of boxes and other records."""
    values = value if isinstance(value, list) else [value]
    return [str(e) for e in values if isinstance(e, (str, int, float)) and not _is_nan(e)]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _records(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if table.suffix == ".parquet":
        yield from _rows_of_parquet(table)
    elif table.suffix == ".csv":
        cells = read_cells(table)
        for number, row in cells.rows:
            yield f"{table.name}, row {number}", dict(zip(cells.header, row, strict=True))
    else:
        for number, line in enumerate(load_text(table).split("\n"), start=1):
            where = f"{table.name}, line {number}"
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{where}: not JSON: {first_line(error)}") from error
                yield where, require(row, dict, where, "an object")


def _rows_of_parquet(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UsageError(
            f"`{table.name}` needs pyarrow", hint="pip install 'fieldguide[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(table) as file:
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            for number, row in enumerate(rows, start=1):
                yield f"{table.name}, row {number}", row
    except (ArrowException, OSError) as error:
        raise DataError(f"{table.name}: not Parquet: {first_line(error)}") from error


FORMS = (Known("hf-metadata", read_hf_metadata),)
