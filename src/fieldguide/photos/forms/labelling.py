"""Readers of what labelling tools write as one file: Label Studio and VGG Image Annotator."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fieldguide.errors import DataError
from fieldguide.photos.forms.form import Form, Known, load_json, load_text, require
from fieldguide.photos.forms.settle import (
    Files,
    Said,
    file_in,
    free_name,
    head_of,
    header_of,
    is_address,
    separator_of,
    settled,
)
from fieldguide.words import listed

_PROBED = 1000  # records by which the key of the pictures is found (taste)

# --- Label Studio ---------------------------------------------------------------------------------

# What its flat exports say of an annotation; all other columns are data or answers.
_FLAT = frozenset(
    {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
    | {"history"}
)

SKIPPED = "skipped annotations"
NO_PICTURE = "tasks without a picture"
OF_REGIONS = "choices of regions instead of photos"


def read_label_studio(place: Path) -> Form | None:
    """Return the photos of a Label Studio export, or a folder with one: JSON, JSON_MIN, CSV, TSV.

    Source: the page "Export annotations" of labelstud.io and the converter of label-studio-sdk
    2.1. A photo is at the only key of its data that holds addresses of pictures; its labels are
    the choices of a control. Skipped annotations count for nothing. The flat exports do not tell
    controls from other data: each column is what may be the labels.
    """
    file = file_in(place, lambda each: _records_of(each) is not None, "Label Studio", *_EXPORTS)
    records = _records_of(file) if file else None
    return _of_label_studio(file, records(file)) if file and records else None


_Record = tuple[str, Mapping[str, Any], list[dict[str, Any]] | None]
_EXPORTS = (".json", ".csv", ".tsv")


def _records_of(place: Path) -> Callable[[Path], Iterator[_Record]] | None:
    """Return what reads the records of an export; None for any other file."""
    head = head_of(place, *_EXPORTS)
    if head.startswith(b"["):
        if b'"annotations"' in head and b'"data"' in head:
            return _tasks
        if b'"annotation_id"' in head and b'"annotator"' in head:
            return _flat_records
    elif {"annotation_id", "annotator", "lead_time"} <= {*header_of(head)}:
        return _flat_rows
    return None


def _of_label_studio(place: Path, records: Iterator[_Record]) -> Form:
    first = list(islice(records, _PROBED))
    key = _picture_key(place, [data for _, data, _ in first])
    files, left_out = Files(place.parent), Counter[str]()
    others = _FLAT | {key}

    def said() -> Iterator[Said]:
        for where, data, annotations in chain(first, records):
            address = data.get(key)
            if not address:
                left_out[NO_PICTURE] += 1
                continue
            if not isinstance(address, str):
                raise DataError(f"{where}: `{key}`: expected an address")
            path = files.find(address)
            if annotations is None:  # flat: data and answers in one
                answers = {
                    name: labels
                    for name, value in data.items()
                    if name not in others and (labels := _choices(value))
                }
                yield Said(path, answers)
                continue
            more = {
                free_name(name): str(value)
                for name, value in data.items()
                if name != key and isinstance(value, (str, int, float))
            }
            yield Said(path, {}, more)
            for annotation in annotations:
                if annotation.get("was_cancelled") or annotation.get("skipped"):
                    left_out[SKIPPED] += 1
                else:
                    yield Said(path, _answers(annotation, where, left_out))

    return settled("Label Studio", place.parent, said(), left_out=left_out, files=files)


def _tasks(place: Path) -> Iterator[_Record]:
    name = place.name
    tasks = require(load_json(place), list, name, "a list of tasks")
    for number, task in enumerate(tasks, start=1):
        where = f"{name}, task {number}"
        data = require(task, dict, where, "a task as an object").get("data")
        require(data, dict, f"{where}: `data`", "an object")
        annotations = require(task.get("annotations"), list, f"{where}: `annotations`", "a list")
        for annotation in annotations:
            require(annotation, dict, f"{where}: `annotations`", "objects")
        yield where, data, annotations


def _answers(
    annotation: Mapping[str, Any], where: str, left_out: Counter[str]
) -> dict[str, list[str]]:
    """Return the choices of an annotation by control."""
    answers: dict[str, list[str]] = {}
    for result in require(annotation.get("result") or [], list, f"{where}: `result`", "a list"):
        value = require(result, dict, f"{where}: `result`", "objects").get("value")
        if not isinstance(value, dict) or "choices" not in value:
            continue
        if "x" in value or "points" in value:
            left_out[OF_REGIONS] += 1
            continue
        choices = _choices(value)
        name = result.get("from_name")
        if choices is None or not isinstance(name, str):
            raise DataError(f"{where}: expected `choices` as texts, with a `from_name`")
        answers.setdefault(name, []).extend(choices)
    return answers


def _choices(value: Any) -> list[str] | None:
    """Return the choices in a cell of a flat export; None if it holds something else."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = value.get("choices")
    if not isinstance(value, list):
        return None
    found: list[str] = []
    for each in value:
        choices = _choices(each)
        if choices is None:
            return None
        found += choices
    return found


def _flat_records(place: Path) -> Iterator[_Record]:
    name = place.name
    rows = require(load_json(place), list, name, "a list of annotations")
    for number, row in enumerate(rows, start=1):
        where = f"{name}, item {number}"
        yield where, require(row, dict, where, "an annotation as an object"), None


def _flat_rows(place: Path) -> Iterator[_Record]:
    for where, row in rows_of(place, without=_FLAT):
        for name, cell in row.items():
            if isinstance(cell, str) and cell.startswith(("[", "{")):
                row[name] = _parsed(cell)
        yield where, row, None


def _parsed(cell: Any) -> Any:
    """Return the choices in a cell of JSON, else the cell."""
    if isinstance(cell, str) and cell.startswith(("[", "{")):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if isinstance(value, (list, dict)) else cell
    return cell


def _picture_key(place: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Return the only key that holds addresses of pictures, and nothing else."""
    names = dict.fromkeys(name for record in records for name in record)
    filled = {name: [r[name] for r in records if r.get(name)] for name in names}
    keys = [name for name, values in filled.items() if values and all(map(is_address, values))]
    if len(keys) == 1:
        return keys[0]
    if keys:
        shown = listed([f"`{key}`" for key in keys])
        raise DataError(
            f"{place.name}: {shown} hold addresses of pictures each",
            hint="leave one of them in the export, or write a table of paths and labels",
        )
    shown = listed([f"`{name}`" for name in names])
    raise DataError(f"{place.name}: expected addresses of pictures in one of {shown or 'no keys'}")


# --- VGG Image Annotator --------------------------------------------------------------------------


def read_via(place: Path) -> Form | None:
    """Return the photos of a VGG Image Annotator file: CSV, JSON, or a project.

    Source: VIA 2.0's user guide and files. The labels are the attributes of files; where none has a
    value, those of regions, all of a photo together. A checkbox gives each option that is on.
    """
    head = head_of(place, ".json", ".csv")
    if head.startswith(b"{") and b'"file_attributes"' in head and b'"regions"' in head:
        records = _via_json(place)
    elif {"file_attributes", "region_attributes"} <= {*header_of(head)}:
        records = _via_csv(place)
    else:
        return None
    files = Files(place.parent)
    of_files: list[Said] = []
    of_regions: dict[str, dict[str, list[str]]] = {}
    for where, name, attributes, regions in records:
        path = files.find(require(name, str, f"{where}: `filename`", "a name"))
        of_files.append(Said(path, _attributes(attributes, where)))
        answers = of_regions.setdefault(path, {})
        for region in regions:
            for question, given in _attributes(region, where).items():
                answers.setdefault(question, []).extend(given)
    on_files = any(
        each.strip() for _, labels, _ in of_files for ls in labels.values() for each in ls
    )
    said = of_files if on_files else [Said(*each) for each in of_regions.items()]
    rules = [f"labels are attributes of {'files' if on_files else 'regions'}"]
    return settled("VGG Image Annotator", place.parent, said, rules=rules, files=files)


_Marked = tuple[str, Any, Any, Sequence[Any]]  # where, name, attributes of the file and its regions


def _via_json(place: Path) -> Iterator[_Marked]:
    content = require(load_json(place), dict, place.name, "an object")
    settings = require(
        content.get("_via_settings", {}), dict, f"{place.name}: settings", "an object"
    )
    core = require(settings.get("core", {}), dict, f"{place.name}: `core`", "an object")
    photos = content.get("_via_img_metadata", content)
    for key, photo in require(
        photos, dict, f"{place.name}: `_via_img_metadata`", "an object"
    ).items():
        where = f"{place.name}, `{key}`"
        require(photo, dict, where, "an object")
        regions = require(photo.get("regions", []), (list, dict), f"{where}: `regions`", "a list")
        name = require(photo.get("filename"), str, f"{where}: `filename`", "a name")
        yield (
            where,
            name if "://" in name else f"{core.get('default_filepath', '')}{name}",
            photo.get("file_attributes", {}),
            [
                require(each, dict, f"{where}: `regions`", "objects").get("region_attributes", {})
                for each in (regions.values() if isinstance(regions, dict) else regions)
            ],
        )


def _via_csv(place: Path) -> Iterator[_Marked]:
    for where, row in rows_of(place):
        name = row.get("filename", row.get("#filename"))
        yield where, name, _parsed(row["file_attributes"]), [_parsed(row["region_attributes"])]


def _attributes(value: Any, where: str) -> dict[str, list[str]]:
    answers = {}
    for name, given in require(value, dict, where, "attributes as an object").items():
        require(given, (str, dict), f"{where}: `{name}`", "a text or options")
        answers[name] = [given] if isinstance(given, str) else [k for k, on in given.items() if on]
    return answers


# --- tables ---------------------------------------------------------------------------------------


def rows_of(
    place: Path, without: frozenset[str] = frozenset()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row of a table stands and its cells, but those `without`.

    Raises DataError for a row of another length than the header's.
    Numbers without quotation marks in a table with them are floats: others are texts.
    """
    text = load_text(place)
    try:
        header, *rows = _cells(text, separator_of(text.partition("\n")[0]))
    except csv.Error as error:
        raise DataError(f"{place.name}: {error}") from error
    name = place.name
    columns = [(each, at) for at, each in enumerate(header) if each not in without]
    for number, cells in enumerate(rows, start=2):
        if any(cells):
            where = f"{name}, row {number}"
            if len(cells) != len(header):
                raise DataError(f"{where}: expected {len(header)} cells, found {len(cells)}")
            yield where, {each: cells[at] for each, at in columns}


def _cells(text: str, separator: str) -> list[list[Any]]:
    if text.startswith('"'):
        with suppress(ValueError):  # there are texts without quotation marks too
            return list(csv.reader(_lines(text), delimiter=separator, quoting=csv.QUOTE_NONNUMERIC))
    return list(csv.reader(_lines(text), delimiter=separator))


def _lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="")


FORMS = (Known("label-studio", read_label_studio), Known("via", read_via))
