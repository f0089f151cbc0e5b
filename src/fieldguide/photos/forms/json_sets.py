"""Published sets whose lists are JSON: PlantNet-300K, and iNaturalist's of 2017 to 2021."""

from pathlib import Path
from typing import Any

from fieldguide.errors import DataError
from fieldguide.photos.catalog import SPLITS
from fieldguide.photos.forms.form import (
    EVENT,
    LABEL,
    PATH,
    PLACE,
    SPLIT,
    TIME,
    Form,
    Known,
    load_json,
    require,
)
from fieldguide.photos.forms.sets import distinct

_BEGINNING = 1 << 16  # bytes in which iNaturalist's keys stand, if the file is theirs


def read_plantnet(place: Path) -> Form | None:
    """Return the photos of PlantNet-300K, labelled by the names of species, else by their ids.

    Names of several ids get the id. The event is the observation, the place its author. Raises
    DataError for a photo without a species or split.

    Source: Garcin et al., Pl@ntNet-300K (2021), and the README of version 1.1.
    """
    file = place / "plantnet300K_metadata.json"
    if not file.is_file():
        return None
    photos = require(load_json(file), dict, file.name, "an object of photos by id")
    naming = place / "plantnet300K_species_id_2_name.json"
    given = require(load_json(naming), dict, naming.name, "names by id") if naming.is_file() else {}
    species = {str(_text(its, "species_id", f"{file.name}, {p}")) for p, its in photos.items()}
    names, rules = distinct({each: str(given[each]) for each in species if each in given})
    if unnamed := len(species) - len(names):
        rules.append(f"labels of {unnamed} species: their ids, for want of a name")
    rows = []
    for photo, its in photos.items():
        where = f"{file.name}, {photo}"
        split, kind = _text(its, "split", where), _text(its, "species_id", where)
        if split not in SPLITS:
            raise DataError(f"{where}: expected `split` train, val or test, found `{split}`")
        others = (str(its.get(key) or "") for key in ("obs_id", "author"))
        more = (str(its.get(key) or "") for key in ("organ", "license"))
        path = f"images/{split}/{kind}/{photo}.jpg"
        rows.append((path, names.get(kind, kind), *others, split, kind, *more))
    header = (PATH, LABEL, EVENT, PLACE, SPLIT, "species_id", "organ", "licence")
    return Form("PlantNet-300K", place, header, tuple(rows), ("place: author", *rules))


def read_inaturalist(place: Path) -> Form | None:
    """Return the photos of one of iNaturalist's JSON files, labelled by the names of categories.

    Paths start from the file's folder. Names of several categories get the id. Ranks, place and
    licence are columns. There is no event: the sets do not tell which photos are of one
    observation. A photo of several categories is left out; one without a category has no label.
    Raises DataError for a photo twice, and a category that is not listed.

    Source: Van Horn et al., Benchmarking Representation Learning for Natural World Image
    Collections (2021), and the READMEs of the competitions of 2017, 2018, 2019 and 2021.
    """
    if place.suffix.lower() != ".json" or not place.is_file():
        return None
    with place.open("rb") as file:
        if b'"rights_holder"' not in file.read(_BEGINNING):
            return None
    content = require(load_json(place), dict, place.name, "an object")
    images, categories = (_records(content, key, place) for key in ("images", "categories"))
    annotations = _records(content, "annotations", place) if content.get("annotations") else []
    licences = _records(content, "licenses", place) if content.get("licenses") else []
    names, rules = distinct(
        {
            _id(its, "id", f"{place.name}, categories[{row}]"): str(its.get("name", ""))
            for row, its in enumerate(categories)
        }
    )
    ranks = [key for key in categories[0] if key not in _NO_RANKS] if categories else []
    taxa = {
        str(its["id"]): (names[str(its["id"])], *(str(its.get(rank) or "") for rank in ranks))
        for its in categories
    }
    category_of, several = _categories(annotations, taxa.keys(), place.name)
    licence_of = {str(its.get("id")): str(its.get("name", "")) for its in licences}
    fields = [key for key in _FIELDS if any(key in its for its in images[:1])]
    none = ("",) * (len(ranks) + 1)
    rows = []
    seen = set()
    for row, its in enumerate(images):
        where = f"{place.name}, images[{row}]"
        each = _id(its, "id", where)
        if each in seen:
            raise DataError(f"{where}: id {each} stands there twice")
        seen.add(each)
        if each in several:
            continue
        label, *of_taxon = taxa[category_of[each]] if each in category_of else none
        values = ["" if (value := its.get(key)) is None else str(value) for key in fields]
        time = str(its.get("date") or "")[:19].replace(" ", "T")
        licence = licence_of.get(str(its.get("license")), "")
        rows.append((_text(its, "file_name", where), label, time, licence, *values, *of_taxon))
    left_out = {
        "photos of several categories": len(several & seen),
        "annotations of no photo": len(category_of.keys() - seen),
    }
    header = (PATH, LABEL, TIME, "licence", *fields, *ranks)
    said = (*rules, "no event: observations are not told")
    return Form("iNaturalist", place.parent, header, tuple(rows), said, left_out)


_NO_RANKS = ("id", "name", "image_dir_name", "specific_epithet", "count")
_FIELDS = ("rights_holder", "latitude", "longitude", "location_uncertainty")


def _records(content: dict[str, Any], key: str, place: Path) -> list[dict[str, Any]]:
    found: list[Any] = require(content.get(key), list, f"{place.name}, {key}", "a list")
    for row, its in enumerate(found):
        if not isinstance(its, dict):
            require(its, dict, f"{place.name}, {key}[{row}]", "an object")
    return found


def _categories(
    annotations: list[dict[str, Any]], known: Any, name: str
) -> tuple[dict[str, str], set[str]]:
    """Return the category of each photo, and the photos of several."""
    found: dict[str, str] = {}
    several = set()
    for row, its in enumerate(annotations):
        where = f"{name}, annotations[{row}]"
        photo, category = _id(its, "image_id", where), _id(its, "category_id", where)
        if category not in known:
            raise DataError(f"{where}: category {category} is not in categories")
        if found.setdefault(photo, category) != category:
            several.add(photo)
    return found, several


def _id(its: dict[str, Any], key: str, where: str) -> str:
    """Return an id, a number or text, as text."""
    value = its.get(key)
    if type(value) is not int and type(value) is not str:
        raise DataError(f"{where}: expected `{key}`, a number or text, found {value!r:.60}")
    return str(value)


def _text(its: Any, key: str, where: str) -> str:
    """Return a text, or a number as text, under a key of an object that is not empty."""
    if not isinstance(its, dict):
        require(its, dict, where, "an object")
    if not (text := _id(its, key, where)):
        raise DataError(f"{where}: `{key}` is empty")
    return text


FORMS = (Known("plantnet", read_plantnet), Known("inaturalist", read_inaturalist))
