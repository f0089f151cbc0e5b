"""Readers of tables that camera-trap tools write: Wildlife Insights, Timelapse, WILDS, AddaxAI."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from fieldguide.errors import DataError
from fieldguide.photos.forms.camera_traps import (
    LOOKED_AT,
    base_of,
    box_text,
    folder_of,
    last_parts,
    names_of_columns,
    parts_of,
    photos_of,
    posix,
    rows_of,
    within,
)
from fieldguide.photos.forms.form import (
    BOX,
    CONFIDENCE,
    EVENT,
    LABEL,
    PATH,
    PLACE,
    SPLIT,
    TIME,
    Form,
    Known,
)
from fieldguide.photos.forms.settle import free_name, head_of, header_of
from fieldguide.photos.tables import RANKS
from fieldguide.words import count, quoted

_RANKS = RANKS[2:]  # without kingdom and phylum
_NO_TAXON = {"no cv result", "unknown"}  # what Wildlife Insights writes where it has no name
_YES = {"1", "true", "yes", "t"}


def read_wildlife_insights(place: Path) -> Form | None:
    """Return a Wildlife Insights download: a folder with `images.csv` or `images_….csv`.

    The label is genus and epithet, else the lowest rank named, `blank` or `vehicle`; where a
    project names sequences, the rows of `sequences.csv` label their images. `location` is a
    photo's address and finds its file here, by its last parts, else `filename` does. Event:
    sequence_id, else time; place: placename, else project and deployment. Source: the data
    dictionary of Wildlife Insights, and the reader of megadetector-utils 10.0.28.
    """
    folder = place if place.is_dir() else place.parent
    if place.is_dir():
        tables = [*place.glob("images.csv"), *sorted(place.glob("images_*.csv"))]
    else:
        tables = [place] if re.match(r"images(_.*)?\.csv$", place.name) else []
    if not any({"deployment_id", "image_id"} <= names_of_columns(table) for table in tables):
        return None
    spots = _placenames(folder)
    by_sequence = _labels_of_sequences(folder)
    needed = ("project_id", "deployment_id", "image_id", "filename", "location", "timestamp")
    optional = ("sequence_id", "license", "is_blank", "common_name", *_RANKS)
    listed = [cells for table in tables for _, cells in rows_of(table, needed, optional)]
    paths, rules = _paths_of_downloads(folder, listed)
    above = 0
    rows = []
    for path, cells in zip(paths, listed, strict=True):
        project, deployment, _, _, _, time, sequence, licence, is_blank, common, *ranks = cells
        label, ranks = _wildlife_label(is_blank, common, tuple(ranks))
        named = [label] if label else sorted(by_sequence.get((project, sequence), ()))
        above += bool(label and any(ranks) and not ranks[-1])
        spot = spots.get((project, deployment)) or f"{project}/{deployment}"
        row = {PATH: path, EVENT: within(spot, sequence), PLACE: spot, TIME: time}
        row |= {**dict(zip(_RANKS, ranks, strict=True)), "licence": licence}
        rows += [row | {LABEL: name} for name in named or ("",)]
    if above:
        rules.append(f"{count(above, 'row')} named above the species, by the lowest rank filled")
    return photos_of("Wildlife Insights", folder, rows, rules=rules, left=Counter())


def _taxon(ranks: Sequence[str]) -> str:
    """Return the name at the lowest rank filled; of ranks down to genus and epithet, a binomial."""
    *_, genus, epithet = ranks
    if genus and epithet:
        return epithet if epithet.startswith(f"{genus} ") else f"{genus} {epithet}"
    return next((rank for rank in reversed(ranks[:-1]) if rank), "")


@lru_cache(maxsize=4096)  # few kinds of rows, each many times
def _wildlife_label(is_blank: str, common: str, ranks: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return a row's label, empty for none, and its ranks without words for no name."""
    named = ["" if rank.lower() in _NO_TAXON else rank for rank in ranks]
    if is_blank.lower() in _YES:
        return "blank", named
    if not any(named) and common.lower() in ("blank", "vehicle"):
        return common.lower(), named
    return _taxon(named), named


def _placenames(folder: Path) -> dict[tuple[str, str], str]:
    """Return the place of each deployment, with its project where several are here."""
    found = {}
    for table in sorted(folder.glob("deployments*.csv")):
        columns = ("project_id", "deployment_id", "placename")
        found.update({(cells[0], cells[1]): cells[2] for _, cells in rows_of(table, columns)})
    several = len({project for project, _ in found}) > 1
    return {key: f"{key[0]}/{name}" if several else name for key, name in found.items() if name}


def _labels_of_sequences(folder: Path) -> dict[tuple[str, str], set[str]]:
    """Return the labels of the sequences that a download names, by project and id."""
    found: dict[tuple[str, str], set[str]] = {}
    columns = ("is_blank", "common_name", *_RANKS)
    for table in sorted(folder.glob("sequences*.csv")):
        for _, cells in rows_of(table, ("project_id", "sequence_id"), columns):
            label, _ = _wildlife_label(cells[2], cells[3], tuple(cells[4:]))
            if label:
                found.setdefault((cells[0], cells[1]), set()).add(label)
    return found


def _paths_of_downloads(
    folder: Path, listed: Sequence[Sequence[str]]
) -> tuple[list[str], list[str]]:
    """Return where the photos of a download lie, and the rule by which they were found."""
    spellings: dict[str, Callable[[Sequence[str]], str]] = {
        "deployment_id/filename": lambda cells: f"{cells[1]}/{cells[3]}",
        "filename": lambda cells: cells[3],
    }
    last = last_parts(folder, (cells[4] for cells in listed))
    if not last:
        for told, spelling in spellings.items():
            base, rules = base_of(folder, (spelling(cells) for cells in listed), ("images",))
            if any((base / spelling(cells)).is_file() for cells in listed[:LOOKED_AT]):
                inner = base.relative_to(folder).as_posix()
                paths = [posix(f"{inner}/{spelling(cells)}") for cells in listed]
                return paths, [*rules, f"photos lie here by {told}"]
    rule = f"photos lie here by the last {count(last, 'part')} of location"
    if not last:
        rule = "photos were not found by location or filename: the last part of location is taken"
    return ["/".join(parts_of(cells[4])[-(last or 1) :]) or cells[3] for cells in listed], [rule]


_TIMELAPSE = {"File", "RelativePath"}
_OF_TIMELAPSE = {*_TIMELAPSE, "RootFolder", "Folder", "DateTime", "Date", "Time", "DeleteFlag"}
_USUAL_LABELS = {
    *("species", "scientificname", "commonname", "animal", "animals", "taxon"),
    *("label", "class", "category"),
}


def read_timelapse(place: Path) -> Form | None:
    """Return the data that Timelapse exports as CSV.

    The label is the one column with a usual name, such as Species, that holds more than flags and
    numbers; without exactly one the rows have none until `--label-column` names it. Rows with a
    DeleteFlag are left out. Event: photos of a RelativePath within a minute; place: RelativePath.
    Source: the Timelapse reference guide, S. Greenberg; older exports have Date and Time.
    """
    names = names_of_columns(place)
    if not (names >= _TIMELAPSE and names & {"DateTime", "Date", "DeleteFlag"}):
        return None
    own = [n for n in header_of(head_of(place, ".csv")) if n and n not in _OF_TIMELAPSE]
    columns = ("RootFolder", "DateTime", "Date", "Time", "DeleteFlag", *own)
    listed = [cells for _, cells in rows_of(place, ("File", "RelativePath"), columns)]
    left: Counter[str] = Counter()
    label, rules = _label_column(own, [cells[7:] for cells in listed])
    taken = [f"Timelapse {name}" if free_name(name) != name else name for name in own]
    rows = []
    for name, folder, _, stamp, date, time, deleted, *cells in listed:
        if deleted.lower() in _YES:
            left["rows with a DeleteFlag"] += 1
            continue
        folder = posix(folder).strip("/")
        row = {
            PATH: f"{folder}/{name}" if folder else name,
            LABEL: cells[own.index(label)] if label else "",
            PLACE: folder or ".",
            TIME: stamp or f"{date} {time}".strip(),
        }
        rows.append(row | dict(zip(taken, cells, strict=True)))
    roots = sorted({cells[2] for cells in listed if cells[2]})[:1]
    base, told = base_of(place.parent, (row[PATH] for row in rows), roots)
    return photos_of("Timelapse", base, rows, rules=[*rules, *told], left=left)


def _label_column(names: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """Return the only column with a usual name and more than flags, and what to say of it."""
    flags = {"", "true", "false"}
    usual = [
        name
        for at, name in enumerate(names)
        if re.sub("[^a-z]", "", name.lower()) in _USUAL_LABELS
        and any(row[at].lower() not in flags and not row[at].isdigit() for row in rows)
    ]
    if len(usual) == 1:
        return usual[0], [f"label: {usual[0]}"]
    return "", [f"no label: name one of {quoted(usual or names)} by `--label-column`"]


_SPLITS = {"train": "train", "val": "val", "id_val": "val", "test": "test", "id_test": "test"}


def read_iwildcam(place: Path) -> Form | None:
    """Return iWildCam as WILDS publishes it: a folder with `metadata.csv`, or that file.

    The label is the name of `y` in `categories.csv`; without that file it is the number. `id_val`
    counts as val and `id_test` as test. Event: sequence_remapped, place: location_remapped. Source:
    the loader of WILDS 2.0.0 for iwildcam_v2.0.
    """
    table = place / "metadata.csv" if place.is_dir() else place
    names = names_of_columns(table)
    if "location_remapped" not in names:
        return None
    categories = table.with_name("categories.csv")
    number = "y" if "y" in names else "category_id"
    labels: dict[str, str] | None = None
    if categories.is_file():
        labels = {key: name for _, (key, name) in rows_of(categories, (number, "name"))}
    splits: Counter[str] = Counter()
    rows = []
    needed = ("filename", "location_remapped", number)
    optional = ("sequence_remapped", "split", "datetime")
    for at, (path, spot, key, sequence, split, time) in rows_of(table, needed, optional):
        where = f"{table.name}, row {at}"
        if labels is not None and key and key not in labels:
            raise DataError(f"{where}: {number} `{key}` is not in {categories.name}")
        if split and split not in _SPLITS:
            raise DataError(f"{where}: expected a split of {quoted([*_SPLITS])}, found `{split}`")
        splits[split] += 1
        row = {PATH: posix(path), LABEL: labels[key] if labels is not None and key else key}
        row |= {EVENT: within(spot, sequence), PLACE: spot, TIME: time}
        rows.append(row | {SPLIT: _SPLITS.get(split, "")})
    base, rules = base_of(table.parent, (row[PATH] for row in rows), ("train", "images"))
    if labels is None:
        rules.append(f"labels are numbers: there is no {categories.name}")
    for split in ("id_val", "id_test"):
        if splits[split]:
            rules.append(f"{split} counts as {_SPLITS[split]} ({count(splits[split], 'row')})")
    return photos_of("iWildCam (WILDS)", base, rows, rules=rules, left=Counter())


_NO_ANIMALS = frozenset({"person", "human", "vehicle"})
_ADDAX = ("relative_path", "label", "confidence", "bbox_left", "bbox_top", "bbox_right")
_ADDAX_SIZES = ("bbox_bottom", "file_height", "file_width")


def read_addaxai(place: Path, boxes: bool = False) -> Form | None:
    """Return AddaxAI's table of detections, `results_detections.csv`: boxes and a model's names.

    Those names are `category`, no label; without `boxes`, that of the most confident one. Source:
    the export of AddaxAI (EcoAssist), whose boxes are in pixels.
    """
    if not names_of_columns(place) >= {"relative_path", "bbox_left", "file_width"}:
        return None
    rows: list[dict[str, str]] = []
    left_out: Counter[str] = Counter()
    best: dict[str, dict[str, str]] = {}
    for at, cells in rows_of(place, (*_ADDAX, *_ADDAX_SIZES), ("DateTimeOriginal",)):
        path, category, *numeric, time = cells
        where = f"{place.name}, row {at}"
        try:
            sure, left, top, right, bottom, high, wide = (float(cell) for cell in numeric)
        except ValueError as error:
            raise DataError(f"{where}: expected numbers of a box, found {numeric}") from error
        path = posix(path)
        row = {PATH: path, PLACE: folder_of(path), TIME: time}
        row |= {CONFIDENCE: numeric[0], "category": category}
        if path not in best or sure > float(best[path][CONFIDENCE]):
            best[path] = row
        if boxes and category in _NO_ANIMALS:
            left_out["boxes of persons and vehicles"] += 1
            rows.append(row)
            continue
        rows.append(
            row | {BOX: box_text((left, top, right - left, bottom - top), where, (wide, high))}
        )
    base, rules = base_of(place.parent, best, ("images",))
    return photos_of(
        "AddaxAI",
        base,
        rows if boxes else best.values(),
        rules=["no labels", *rules],
        left=left_out,
        boxes=boxes,
        unused=0 if boxes else len(rows),
    )


FORMS = (
    Known("wildlife-insights", read_wildlife_insights),
    Known("iwildcam", read_iwildcam),
    Known("timelapse", read_timelapse),
    Known("addaxai", read_addaxai, boxed=True),
)
