"""Readers of what labelling tools write as a folder: Roboflow, CVAT and Datumaro."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fieldguide.errors import DataError
from fieldguide.photos.catalog import EXTENSIONS, SPLIT_FOLDERS
from fieldguide.photos.forms.form import EVENT, LABEL, Form, Known, load_json, load_text, require
from fieldguide.photos.forms.settle import (
    SHARED,
    Files,
    Said,
    below,
    free_name,
    head_of,
    settled,
    split_columns,
    tables_in,
)
from fieldguide.words import count

# --- Roboflow -------------------------------------------------------------------------------------

_CLASSES = "_classes.csv"
_VERSION = re.compile(r"(.+)\.rf\.[0-9a-zA-Z]{16,}\.\w+")  # one of the versions made of a photo


def read_roboflow(place: Path) -> Form | None:
    """Return the photos of a Roboflow export with tables of classes, one a part.

    Source: the format "Multi-Label Classification CSV" of its documentation: `_classes.csv` holds
    `filename` and a column of 0 and 1 a class, with blanks after the commas. A photo of several
    classes is left out. Files whose names differ in what follows `.rf.` are versions made of one
    photo, which are one event.
    """
    tables = tables_in(place, _CLASSES)
    if not tables:
        return None
    base = place if place.is_dir() else place.parent
    return settled("Roboflow", base, chain.from_iterable(_of_classes(t, base) for t in tables))


def _of_classes(table: Path, base: Path) -> Iterator[Said]:
    name = table.relative_to(base).as_posix()
    text = io.StringIO(load_text(table), newline="")
    try:
        rows = list(csv.reader(text, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(f"{name}: {error}") from error
    header = [cell.strip() for cell in (rows or [[]])[0]]
    if header[:1] != ["filename"] or len(header) < 2 or len({*header}) < len(header):
        raise DataError(f"{name}, row 1: expected `filename` and a column a class, each once")
    folder = table.parent.relative_to(base)
    for number, cells in enumerate(rows[1:], start=2):
        if not any(cells):
            continue
        marks = [cell.strip() for cell in cells[1:]]
        if len(cells) != len(header) or not {*marks} <= {"0", "1"}:
            raise DataError(
                f"{name}, row {number}: expected a file name and {len(header) - 1} times 0 or 1"
            )
        file = cells[0].strip()
        labels = [label for label, mark in zip(header[1:], marks, strict=True) if mark == "1"]
        made = _VERSION.fullmatch(file)
        more = split_columns(folder.name) if folder.name else {}
        yield Said(
            (folder / file).as_posix(), {LABEL: labels}, more | ({EVENT: made[1]} if made else {})
        )


# --- CVAT -----------------------------------------------------------------------------------------


def read_cvat(place: Path) -> Form | None:
    """Return the photos of a CVAT export "CVAT for images 1.1": one XML file, or one a part.

    Source: "XML annotation format" of CVAT's documentation. Labels are the tags of images; what
    shapes in them are called is not. The attributes of a tag become columns. Photos lie in
    `images`, in folders of parts or not, as is found.
    """
    candidates = sorted(place.glob("*.xml")) if place.is_dir() else [place]
    sources = [each for each in candidates if _is_cvat(head_of(each, ".xml"))]
    if not sources:
        return None
    base = place if place.is_dir() else place.parent
    files = Files(base)
    images = [_images(source, len(sources) > 1) for source in sources]
    said = [each for image in images for each in _of_images(image, files)]
    if not any(labels for _, labels, _ in said):
        raise DataError(
            f"{sources[0].name}: expected images with a `tag`, found none",
            hint="label photos as wholes: shapes in them are no labels of photos",
        )
    return settled("CVAT", base, said, files=files)


def _is_cvat(head: bytes) -> bool:
    return b"<annotations" in head and (b"<image " in head or b"<track " in head)


def _images(source: Path, named_by_part: bool) -> Iterator[tuple[str, str, ElementTree.Element]]:
    """Yield where each image stands, its part, and its element."""
    text = load_text(source)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{source.name}: expected XML without a document type or entities")
    parser: Any = ElementTree.XMLPullParser(("end",))
    number = 0
    try:
        for start in range(0, len(text), 1 << 20):
            parser.feed(text[start : start + (1 << 20)])
            for _, element in parser.read_events():
                if element.tag == "track":
                    raise DataError(
                        f"{source.name}: annotations of a video",
                        hint="export the frames with `CVAT for images 1.1`",
                    )
                if element.tag == "image":
                    number += 1
                    part = element.get("subset", source.stem if named_by_part else "")
                    yield f"{source.name}, image {number}", part, element
                    element.clear()
        parser.close()
    except ElementTree.ParseError as error:
        raise DataError(f"{source.name}: not XML: {error}") from error


def _of_images(
    images: Iterator[tuple[str, str, ElementTree.Element]], files: Files
) -> Iterator[Said]:
    for where, part, image in images:
        name = require(image.get("name"), str, f"{where}: `name`", "a file name")
        path = files.find(f"{part}/{name}", f"images/{part}/{name}", f"images/{name}", name)
        more = split_columns(part) if part else {}
        labels = []
        for tag in image.iterfind("tag"):
            labels.append(require(tag.get("label"), str, f"{where}: tag: `label`", "a label"))
            for each in tag.iterfind("attribute"):
                more.setdefault(free_name(each.get("name") or ""), each.text or "")
        yield Said(path, {LABEL: labels} if labels else {}, more)


# --- Datumaro -------------------------------------------------------------------------------------


def read_datumaro(place: Path) -> Form | None:
    """Return the photos of Datumaro's own form: `annotations/PART.json` and `images/PART`.

    Source: the page "Datumaro" of its documentation, version 1.0 of the form. Labels are the
    annotations of type `label`; the attributes of items become columns. Files that are there for
    several items, whose names the export has made equal, are left out.
    """
    sources = sorted(place.glob("annotations/*.json")) if place.is_dir() else [place]
    sources = [each for each in sources if _is_datumaro(head_of(each, ".json"))]
    if not sources:
        return None
    base = place if place.is_dir() else _base_of(place)
    files = Files(base)
    said = chain.from_iterable(_of_items(source, files) for source in sources)
    return settled("Datumaro", base, said, files=files)


def _is_datumaro(head: bytes) -> bool:
    return head.startswith(b"{") and b'"dm_format_version"' in head


def _base_of(file: Path) -> Path:
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _of_items(source: Path, files: Files) -> Iterator[Said]:
    content = require(load_json(source), dict, source.name, "an object")
    try:
        labels = [str(each["name"]) for each in content["categories"]["label"]["labels"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{source.name}: expected `categories.label.labels` with names") from error
    owner: dict[str, Any] = {}
    name, part, of_part = source.name, source.stem, split_columns(source.stem)
    for number, item in enumerate(
        require(content.get("items"), list, f"{source.name}: `items`", "a list"), start=1
    ):
        where = f"{name}, item {number}"
        image = require(item, dict, where, "an object").get("image")
        path = image.get("path") if isinstance(image, dict) else None
        path = require(path, str, f"{where}: `image.path`", "the path of a picture")
        found = files.find(f"{part}/{path}", f"images/{part}/{path}")
        if owner.setdefault(found, item.get("id")) != item.get("id"):
            files.out[found] = SHARED
        ids = [
            require(each.get("label_id"), int, f"{where}: `label_id`", "a number")
            for each in require(item.get("annotations"), list, f"{where}: `annotations`", "a list")
            if require(each, dict, f"{where}: `annotations`", "objects").get("type") == "label"
        ]
        attributes = require(item.get("attr") or {}, dict, f"{where}: `attr`", "an object")
        more = {free_name(k): str(v) for k, v in attributes.items() if isinstance(v, (str, int))}
        names = [_named(each, labels, where) for each in ids]
        yield Said(found, {LABEL: names}, more | of_part)


def _named(index: int, labels: Sequence[str], where: str) -> str:
    if not 0 <= index < len(labels):
        raise DataError(f"{where}: expected one of {count(len(labels), 'label')}, found {index}")
    return labels[index]


_NO_LABEL = "no_label"


def read_datumaro_imagenet(place: Path) -> Form | None:
    """Return the photos of Datumaro's export `imagenet`, known by a folder `no_label`.

    Source: the page "ImageNet" of Datumaro's documentation. Each folder is a label, within folders
    of parts or not; what is in `no_label` has none. Folders in folders are labels within labels, or
    come from names with a `/`: then nothing decides between `first folder` and `folders`. A photo
    of several labels lies in the folder of each, which only its content shows.
    """
    if not place.is_dir():
        return None
    parts = {each.name for each in place.iterdir() if each.name.casefold() in SPLIT_FOLDERS}
    if not any((place / part / _NO_LABEL).is_dir() for part in (".", *parts)):
        return None

    pictures = [each for each in sorted(below(place)) if Path(each).suffix.lower() in EXTENSIONS]
    folders = {path: path.split("/")[path.partition("/")[0] in parts : -1] for path in pictures}
    nested = any(len(names) > 1 for names in folders.values())
    said = [
        Said(
            path,
            {"first folder": names[:1]} | ({"folders": ["/".join(names)]} if nested else {})
            if names[0] != _NO_LABEL
            else {},
            split_columns(path.partition("/")[0]) if path.partition("/")[0] in parts else {},
        )
        for path, names in folders.items()
        if names
    ]
    return settled("Datumaro's ImageNet", place, said, rules=["`no_label` is no class"])


_LINE = re.compile(r'(?:"([^"]*)"(\S*)|(\S+))((?:\s+\d{1,9})*)\s*')


def read_imagenet_txt(place: Path) -> Form | None:
    """Return the photos of Datumaro's export `imagenet_txt`: `synsets.txt`, and a list a part.

    Source: the page "ImageNet" of Datumaro's documentation. A line is a path and the numbers of its
    labels, from 0. Photos lie in `images`, all parts together, where namesakes of several parts
    have overwritten each other: these are left out.
    """
    if not place.is_dir() or not (place / "synsets.txt").is_file():
        return None
    lists = [each for each in sorted(place.glob("*.txt")) if each.name != "synsets.txt"]
    if not lists:
        return None
    labels = [line.strip() for line in load_text(place / "synsets.txt").rstrip().split("\n")]
    folder = "images/" if (place / "images").is_dir() else ""
    files = Files(place)
    owner: dict[str, Path] = {}

    def said() -> Iterator[Said]:
        for source in lists:
            for number, line in enumerate(load_text(source).split("\n"), start=1):
                where = f"{source.name}, line {number}"
                if not line.strip():
                    continue
                found = _LINE.fullmatch(line)
                if found is None:
                    raise DataError(f"{where}: expected a path and numbers of labels")
                quoted, ending, plain, numbers = found.groups()
                path = f"{folder}{plain or quoted + ending}"
                if owner.setdefault(path, source) != source:
                    files.out[path] = "photos that several parts name alike"
                names = [_named(int(each), labels, where) for each in numbers.split()]
                yield Said(path, {LABEL: names}, split_columns(source.stem))

    return settled("ImageNet list", place, said(), files=files)


FORMS = (
    Known("roboflow", read_roboflow),
    Known("cvat", read_cvat),
    Known("datumaro", read_datumaro),
    Known("datumaro-imagenet", read_datumaro_imagenet),
    Known("imagenet-txt", read_imagenet_txt),
)
