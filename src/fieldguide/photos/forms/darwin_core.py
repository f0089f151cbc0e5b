"""Darwin Core archives of GBIF and iNaturalist, unpacked, with photos that were downloaded.

`meta.xml` says how the tables are written. GBIF's are separated by tabs and have no quoting: a
quotation mark is a letter, and a reader that takes it for quoting loses the records between two.

Source: TDWG, Darwin Core Text Guide (2023); GBIF, Downloads: Darwin Core Archive.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

from fieldguide.errors import DataError
from fieldguide.photos.catalog import EXTENSIONS
from fieldguide.photos.forms.form import EVENT, LABEL, PATH, PLACE, TIME, Form, Known
from fieldguide.photos.forms.settle import below
from fieldguide.photos.tables import RANKS, content_of, decoded
from fieldguide.words import count

_KEPT = ("scientificName", *RANKS, "taxonRank", "decimalLatitude", "decimalLongitude")
_OF_PLACE = ("recordedBy", "eventDate", "locality")
_CLOCK = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")
_COUNTED = re.compile(r"(.+)[_-]\d+")  # a photo's name such as `4011_2`: the second of one record


class _Part(NamedTuple):
    """A table of an archive: `columns` by the last part of their terms, with `id` among them."""

    file: Path
    kind: str  # such as `Occurrence`
    columns: Mapping[str, int]
    fixed: Mapping[str, str]  # terms with one value for all rows
    separator: str
    quote: str
    headers: int
    encoding: str


def read_darwin_core(place: Path) -> Form | None:
    """Return the photos of an unpacked archive that lie below its folder, labelled by species.

    Photos are known by name: by the record's id (`4011.jpg`, `4011_2.jpg`), or by the last part of
    their address (or that before it: `photos/77/original.jpg`). The archive does not say which, so
    it is the way that finds more of them. The label is the species, or the scientific name where
    the archive has no species; a record of a higher rank has none. The event is the record, the
    place its recordedBy, day and locality. `place` is the folder, or one of the archive's tables.

    Raises DataError for a zip, an archive of other things, a table that is missing or has a row
    too short, photos none of which is known, and photos that both ways give to different records.
    """
    _require_unpacked(place)
    folder = place if place.is_dir() else place.parent
    if not (folder / "meta.xml").is_file():
        return None
    parts = _parts(folder / "meta.xml")
    tables = ["meta.xml", *(part.file.name for part in parts)]
    if not parts or not (place.is_dir() or place.name in tables):
        return None
    core = parts[0]
    if core.kind != "Occurrence":
        raise DataError(f"meta.xml, core: expected rows of Occurrence, found {core.kind}")
    photos = _photos_below(folder)
    named = {name for stem in photos for name in _ids_in(stem)}
    media = [part for part in parts[1:] if part.kind in ("Multimedia", "Image")]
    addressed, licences = _media(media, photos, named)
    kept = [term for term in _KEPT if term in core.columns or term in core.fixed]
    source = next((term for term in ("species", "scientificName") if term in kept), None)
    if source is None:
        raise DataError("meta.xml, core: expected a field `species` or `scientificName`")
    records, number = _records(core, kept, source, named.union(*addressed.values()))
    owners, rules = _owners(photos, addressed, records, folder)
    rows = []
    unlabelled = 0
    for stem, paths in photos.items():
        if (record := owners.get(stem)) is None:
            continue
        label, place_name, time, licence, *others = records[record]
        unlabelled += not label
        licence = " | ".join(sorted(licences[record])) or licence
        rows += [(path, label, record, place_name, time, licence, *others) for path in paths]
    rules.append(f"labels: {source}" + (f" ({unlabelled} without)" if unlabelled else ""))
    left_out = {
        "photos of no record": sum(len(photos[stem]) for stem in photos if stem not in owners),
        "records without a photo": number - len({*owners.values()}),
    }
    header = (PATH, LABEL, EVENT, PLACE, TIME, "licence", *kept)
    return Form("Darwin Core", folder, header, tuple(rows), tuple(rules), left_out)


def _require_unpacked(place: Path) -> None:
    if place.suffix.lower() != ".zip" or not place.is_file():
        return
    try:
        with ZipFile(place) as archive:
            names = archive.namelist()
    except (BadZipFile, OSError):
        return  # for others to refuse
    if "meta.xml" in names:
        raise DataError(
            f"a Darwin Core archive as a zip: {place}",
            hint="unpack it first, and give the folder that has meta.xml and the photos",
        )


def _parts(meta: Path) -> list[_Part]:
    """Return the tables of an archive, the core first; none if the file is about other things."""
    text = decoded(content_of(meta), meta.name)
    if "<!DOCTYPE" in text.upper():
        raise DataError("meta.xml: it declares a DOCTYPE, which no archive needs")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"meta.xml: not XML: {error}") from error
    if _word(root.tag) != "archive":
        return []
    tables = [each for name in ("core", "extension") for each in root if _word(each.tag) == name]
    if not tables or _word(tables[0].tag) != "core":
        raise DataError("meta.xml: expected a `core`")
    return [_part(table, meta.parent) for table in tables]


def _part(table: ElementTree.Element, folder: Path) -> _Part:
    kind = _word(table.get("rowType", ""))
    where = f"meta.xml, {_word(table.tag)} {kind}"
    found = [(each.text or "").strip() for each in table.iter() if _word(each.tag) == "location"]
    if len(found) != 1 or PurePosixPath(found[0]).name != found[0] or not found[0]:
        raise DataError(f"{where}: expected one `location`, a file beside meta.xml, found {found}")
    columns: dict[str, int] = {}
    fixed: dict[str, str] = {}
    try:
        headers = int(table.get("ignoreHeaderLines") or 0)
        for each in table:
            term = _word(each.get("term", "")) if _word(each.tag) == "field" else "id"
            if (index := each.get("index")) is not None:
                columns.setdefault(term, int(index))
            elif term != "id" and each.get("default"):
                fixed[term] = each.get("default", "")
    except ValueError as error:
        raise DataError(f"{where}: expected whole numbers: {error}") from error
    separator, quote = (
        table.get(name, usual).replace("\\t", "\t")
        for name, usual in (("fieldsTerminatedBy", ","), ("fieldsEnclosedBy", '"'))
    )
    if "id" not in columns or min(columns.values()) < 0 or len(separator) != 1 or len(quote) > 1:
        raise DataError(f"{where}: expected an id with its index, and one letter as separator")
    encoding = table.get("encoding") or "UTF-8"
    return _Part(folder / found[0], kind, columns, fixed, separator, quote, headers, encoding)


def _word(address: str) -> str:
    """Return the last part of a term's address or of a name with a namespace."""
    return re.split(r"[/}#]", address)[-1]


def _rows(part: _Part, terms: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield what each row has for some terms; DataError with the row for one that is too short."""
    if not part.file.is_file():
        raise DataError(f"meta.xml names {part.file.name}, which is not beside it")
    indices = [part.columns.get(term) for term in terms]
    least = max(index for index in indices if index is not None) + 1
    number = 0
    try:
        for number, cells in enumerate(_cells(part), start=1):
            if number <= part.headers or cells in ([], [""]):
                continue
            if len(cells) < least:
                raise DataError(
                    f"{part.file.name}, row {number}: {count(len(cells), 'cell')},"
                    f" meta.xml needs {least} or more"
                )
            pairs = zip(terms, indices, strict=True)
            yield tuple(part.fixed.get(t, "") if i is None else cells[i].strip() for t, i in pairs)
    except (csv.Error, UnicodeError, LookupError, OSError) as error:
        raise DataError(f"{part.file.name}, row {number + 1}: {error}") from error


def _cells(part: _Part) -> Iterator[list[str]]:
    encoding = "utf-8-sig" if part.encoding.lower() in ("utf-8", "utf8") else part.encoding
    with part.file.open(encoding=encoding, newline="" if part.quote else "\n") as file:
        if part.quote:
            yield from csv.reader(file, delimiter=part.separator, quotechar=part.quote)
        else:
            for line in file:
                yield line.rstrip("\r\n").split(part.separator)


def _photos_below(folder: Path) -> dict[str, list[str]]:
    """Map the names without endings of all photos below a folder to their paths."""
    photos: dict[str, list[str]] = defaultdict(list)
    for path in sorted(below(folder)):
        if PurePosixPath(path).suffix.lower() in EXTENSIONS:
            photos[PurePosixPath(path).stem].append(path)
    return dict(photos)


def _ids_in(stem: str) -> list[str]:
    """Return the ids of records that a photo's name may stand for."""
    counted = _COUNTED.fullmatch(stem)
    return [stem, counted[1]] if counted else [stem]


def _media(
    parts: Sequence[_Part], photos: Collection[str], named: Collection[str]
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return the records that have each photo by its address, and the licences of each record."""
    addressed: dict[str, set[str]] = defaultdict(set)
    licences: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        for record, address, licence in _rows(part, ("id", "identifier", "license")):
            try:
                ends = PurePosixPath(urlsplit(address).path).parts[-2:]
            except ValueError:  # an address that is none
                ends = ()
            stems = {PurePosixPath(end).stem for end in ends[-1:]} | {*ends[:-1]}
            for stem in stems:
                if stem in photos:
                    addressed[stem].add(record)
            if licence and (record in named or not stems.isdisjoint(photos)):
                licences[record].add(licence)
    return addressed, licences


def _records(
    core: _Part, kept: Sequence[str], label: str, wanted: Collection[str]
) -> tuple[dict[str, tuple[str, ...]], int]:
    """Return label, place, time, licence and kept terms by record, and the number of records."""
    records: dict[str, tuple[str, ...]] = {}
    number = 0
    for values in _rows(core, ("id", label, "taxonRank", *_OF_PLACE, "license", *kept)):
        record, name, rank, by, date, where, licence, *others = values
        number += 1
        if record not in wanted:
            continue
        if record in records:
            raise DataError(f"{core.file.name}: record `{record}` stands there twice")
        clock = _CLOCK.match(date)
        place = " | ".join((by, date[:10], where)) if by or date or where else ""
        name = name if label == "species" or rank.lower() not in RANKS[:-1] else ""
        records[record] = (name, place, clock[0] if clock else "", licence, *others)
    return records, number


def _owners(
    photos: Collection[str],
    addressed: Mapping[str, set[str]],
    records: Collection[str],
    folder: Path,
) -> tuple[dict[str, str], list[str]]:
    """Return the record of each photo, by the way of naming that finds more, and that in words."""
    by_id = {s: own for s in photos if (own := next((i for i in _ids_in(s) if i in records), ""))}
    alone = {stem: min(own) for stem, own in addressed.items() if len(own) == 1}
    by_address = {stem: own for stem, own in alone.items() if own in records}
    if not by_id and not by_address:
        raise DataError(
            f"none of {count(len(photos), 'photo')} below {folder} is named by a record's id, or by"
            " the last part of an address in the archive",
            hint="put the downloaded photos there, such as 4011.jpg for the record 4011",
        )
    if len(by_id) == len(by_address) and by_id != by_address:
        stem = next(stem for stem in by_id if by_id[stem] != by_address.get(stem))
        raise DataError(
            f"photo `{stem}` may be of record {by_id[stem]} by its name, or of"
            f" {by_address.get(stem, 'none')} by an address",
            hint="name all photos by the ids of records",
        )
    if len(by_id) >= len(by_address):
        return by_id, ["photos named by the record's id"]
    return by_address, ["photos named by the last part of their address"]


FORMS = (Known("darwin-core", read_darwin_core),)
