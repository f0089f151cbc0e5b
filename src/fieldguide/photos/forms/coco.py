"""Readers of JSON with images and boxes: COCO, COCO Camera Traps and MegaDetector's results."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

from fieldguide.errors import DataError
from fieldguide.photos.forms.camera_traps import (
    base_of,
    box_text,
    folder_of,
    photos_of,
    posix,
    within,
)
from fieldguide.photos.forms.form import (
    BOX,
    CONFIDENCE,
    EVENT,
    LABEL,
    PATH,
    PLACE,
    TIME,
    Form,
    Known,
    load_json,
    require,
)
from fieldguide.photos.forms.settle import file_in, head_of
from fieldguide.photos.groups import time_of


def _keys(place: Path) -> set[str]:
    """Return the JSON keys at the beginning of a file that begins as an object."""
    head = head_of(place, ".json")
    found = re.findall(rb'"([a-z_]+)"\s*:', head) if head.startswith(b"{") else []
    return {key.decode() for key in found}


def _need(item: Any, key: str, kind: type | tuple[type, ...], expected: str, *where: object) -> Any:
    """Return a value of an object in JSON; DataError that says where for one of another type."""
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, kind):
        return value
    spot = f"{where[0]}, " + ", ".join(
        f"{a}[{n}]" for a, n in zip(where[1::2], where[2::2], strict=True)
    )
    require(item, dict, spot, "an object")
    return require(value, kind, f"{spot}, key `{key}`", expected)


def _id(item: Any, key: str, *where: object) -> str:
    """Return an id or a name, which JSON may hold as a number; empty for null or none."""
    value = item.get(key) if isinstance(item, dict) else _need(item, key, str, "text", *where)
    if isinstance(value, str):
        return value.strip()
    if type(value) is int:
        return str(value)
    if value is None:
        return ""
    value = _need(item, key, (int, float), "text or a number", *where)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _ids(items: Sequence[Any], key: str, *where: object) -> Sequence[str]:
    """Return `_id` of all items of a list, at once where all are texts, or whole numbers."""
    with suppress(AttributeError):  # of an item that is no object
        values = [item.get(key) for item in items]
        kinds = set(map(type, values))
        if kinds <= {str}:
            return [value.strip() for value in values]
        if kinds <= {int}:
            return [*map(str, values)]
        if kinds <= {NoneType}:
            return [""] * len(items)
    return [_id(item, key, *where, number) for number, item in enumerate(items)]


def _is_coco(place: Path) -> bool:
    keys = _keys(place)
    return (
        bool(keys & {"images", "image_id"})
        and bool(keys & {"annotations", "categories", "file_name"})
        and not keys & {"detection_categories", "detections"}
    )


def read_coco(place: Path, boxes: bool = False) -> Form | None:
    """Return a COCO file or a folder with one: COCO Camera Traps, LILA, or objects in boxes.

    The label is the category (also `empty`); photos under several are left out. `seq_id` names the
    event, `location` the place, `datetime` the time. A box has the label of its annotation. Photos
    lie beside the file or in `images/` or `train/` there. Source: COCO Camera Traps format, LILA
    BC; the COCO data format.
    """
    file = file_in(place, _is_coco, "COCO", ".json")
    data = load_json(file) if file else None
    if file is None or not isinstance(data, dict) or "images" not in data:
        return None
    images = require(data["images"], list, f"{file.name}, key `images`", "a list")
    left: Counter[str] = Counter()
    paths = _paths_of_images(file, images)
    labels, cut = _annotated(file, data, paths, left)
    base, rules = base_of(file.parent, paths.values(), ("images", "train"))
    listed = data.get("licenses")
    licences = {
        _id(one, "id", file.name, "licenses", number): str(one.get("name") or one.get("url") or "")
        for number, one in enumerate(listed if isinstance(listed, list) else [])
    }
    rows = []
    name = file.name
    spots, sequences, licensed = (
        _ids(images, key, name, "images") for key in ("location", "seq_id", "license")
    )
    each = zip(images, paths.items(), spots, sequences, licensed, strict=True)
    for image, (key, path), spot, sequence, licence in each:
        row = {
            PATH: path,
            EVENT: within(spot, sequence),
            PLACE: spot,
            TIME: str(image.get("datetime") or ""),
            "licence": licences.get(licence, ""),
        }
        if boxes and key in cut:
            size = _size_of(image, f"{name}, image `{key}`")
            sides = f"{name}, image `{key}`, key `bbox`"
            rows += [row | {LABEL: label, BOX: box_text(b, sides, size)} for label, b in cut[key]]
        else:
            row[LABEL], *others = labels.get(key) or ("",)
            rows.append(row)
            rows += [row | {LABEL: label} for label in others]
    return photos_of(
        "COCO Camera Traps" if any(spots) or any(sequences) else "COCO",
        base,
        rows,
        rules=rules,
        left=left,
        unnamed="photos without annotation",
        boxes=boxes,
        unused=0 if boxes else sum(map(len, cut.values())),
    )


def _paths_of_images(file: Path, images: Sequence[Any]) -> dict[str, str]:
    """Return the path of each image by its id; DataError for an image without or an id twice."""
    paths: dict[str, str] = {}
    source = file.name
    for number, (image, key) in enumerate(
        zip(images, _ids(images, "id", source, "images"), strict=True)
    ):
        name = _need(image, "file_name", str, "a path", source, "images", number)
        if not key or key in paths:
            spot = f"{source}, images[{number}], key `id`"
            raise DataError(f"{spot}: expected an id of its own, found `{key}`")
        paths[key] = posix(name)
    return paths


def _annotated(
    file: Path, data: Mapping[str, Any], paths: Mapping[str, str], left: Counter[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, list[tuple[str, Any]]]]:
    """Return the different labels of each image, and its boxes with a label each."""
    listed = require(data.get("categories"), list, f"{file.name}, key `categories`", "a list")
    names = {
        _id(one, "id", file.name, "categories", number): _need(
            one, "name", str, "text", file.name, "categories", number
        ).strip()
        for number, one in enumerate(listed)
    }
    labels: dict[str, tuple[str, ...]] = {}
    boxes: dict[str, list[tuple[str, Any]]] = {}
    source = file.name
    annotations = require(
        data.get("annotations", []), list, f"{source}, key `annotations`", "a list"
    )
    single = {name: (name,) for name in names.values()}
    keys, categories = (
        _ids(annotations, key, source, "annotations") for key in ("image_id", "category_id")
    )
    for number, (annotation, key, category) in enumerate(
        zip(annotations, keys, categories, strict=True)
    ):
        if category not in names:
            spot = f"{source}, annotations[{number}], key `category_id`"
            raise DataError(f"{spot}: `{category}` is not in categories")
        if key not in paths:
            left["annotations of images that are not listed"] += 1
            continue
        found = labels.get(key, ())
        if names[category] not in found:
            labels[key] = (*found, names[category]) if found else single[names[category]]
        if annotation.get("bbox"):
            boxes.setdefault(key, []).append((names[category], annotation["bbox"]))
    return labels, boxes


def _size_of(image: Mapping[str, Any], where: str) -> tuple[float, float]:
    """Return width and height of an image with boxes in pixels; DataError without them."""
    width, height = image.get("width"), image.get("height")
    for name, size in (("width", width), ("height", height)):
        expected = "a number of pixels, for its boxes"
        require(size, (int, float), f"{where}, key `{name}`", expected)
    return float(width or 0), float(height or 0)


def read_megadetector(place: Path, boxes: bool = False) -> Form | None:
    """Return a batch of MegaDetector's results, a JSON file: boxes, no species.

    One row a photo with `category` and `confidence` of its most confident detection; with `boxes`,
    one for each that is an animal, if there is such a category. Photos that failed are left out.
    Crops of one photo (`.crop_000`) are one event unless times name them. Source: the
    MegaDetector batch output format, 1.0 to 1.6.
    """
    keys = _keys(place)
    if not ("detection_categories" in keys or {"detections", "file"} <= keys):
        return None
    name, data = place.name, load_json(place)
    if not isinstance(data, dict) or "images" not in data:
        return None
    images = require(data["images"], list, f"{name}, key `images`", "a list")
    where = f"{name}, key `detection_categories`"
    categories = require(data.get("detection_categories"), dict, where, "an object")
    animals = "animal" in categories.values()
    left: Counter[str] = Counter()
    rows: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    unused = 0
    for number, image in enumerate(images):
        spot = (name, "images", number)
        path = posix(_need(image, "file", str, "a path", *spot))
        if image.get("failure"):
            left["photos that MegaDetector could not read"] += 1
            failed.append({PATH: path})
            continue
        found = _need(image, "detections", list, "a list", *spot)
        time = str(image.get("datetime") or "")
        crop_of = re.sub(r"\.crop_\d+(?=\.|$)", "", path) if ".crop_" in path else path
        row = {
            PATH: path,
            EVENT: crop_of if crop_of != path and time_of(time) is None else "",
            PLACE: folder_of(path),
            TIME: time,
        }
        seen = _detections(found, categories, *spot)
        if boxes:
            kept = [each for each in seen if each["category"] == "animal" or not animals]
            left["boxes of other categories than animal"] += len(seen) - len(kept)
            rows += [row | each for each in kept] or [row]
        else:
            best = max(seen, key=lambda each: float(each[CONFIDENCE]), default={})
            rows.append(row | {k: v for k, v in best.items() if k != BOX})
            unused += len(seen)
    base, rules = base_of(place.parent, (row[PATH] for row in rows), ("images",))
    return photos_of(
        "MegaDetector",
        base,
        rows,
        rules=["no labels", *rules],
        left=left,
        boxes=boxes,
        unused=unused,
        failed=failed,
    )


def _detections(
    detections: Sequence[Any], categories: Mapping[str, Any], *where: object
) -> list[dict[str, str]]:
    """Return box, confidence and category of the detections of a photo."""
    found = []
    for number, one in enumerate(detections):
        spot = (*where, "detections", number)
        sure = _need(one, "conf", (int, float), "a number", *spot)
        category = _need(one, "category", str, "text", *spot)
        place = f"{where[0]}, images[{where[2]}], detections[{number}], key"
        if category not in categories:
            raise DataError(f"{place} `category`: `{category}` is not in detection_categories")
        box = _need(one, "bbox", list, "a list", *spot)
        cells = {BOX: box_text(box, f"{place} `bbox`"), CONFIDENCE: f"{sure:.6g}"}
        found.append(cells | {"category": str(categories[category])})
    return found


FORMS = (
    Known("megadetector", read_megadetector, boxed=True),
    Known("coco", read_coco, boxed=True),
)
