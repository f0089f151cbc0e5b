"""The forms that camera-trap projects, their tools and their published sets are written in.

One photo is one row. Rows of one photo with equal labels are one; photos under several labels, and
photos without a label where others have one, are left out and counted; so are videos. Events are
those that the source names, else photos of one place within a minute of the one before. Knows
nothing of catalogs and folds.
"""

import csv
import gzip
import re
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import lru_cache
from io import TextIOWrapper
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from fieldguide.errors import DataError
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
from fieldguide.words import count, quoted

BURST = timedelta(seconds=60)  # the longest pause within an event
HEAD = 1 << 16  # bytes at either end of a file by which a form is recognised (taste)
MOST_FILES = 20  # JSON files of a folder that are looked at (taste)
LOOKED_AT = 50  # photos looked for, to find the folder that paths start from (taste)
VIDEOS = "videos: take frames from them first"
_VIDEO = frozenset(
    {"3gp", "asf", "avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "webm", "wmv"}
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_MONTHS = {
    name: number
    for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)  # noqa: SIM905 - shorter
}
_MAIN = (PATH, LABEL, EVENT, PLACE, SPLIT, TIME)


class _Row(NamedTuple):
    """One photo as a source names it; `others` are cells of the form's own columns."""

    path: str
    label: str = ""
    event: str = ""
    place: str = ""
    split: str = ""
    time: str = ""
    others: tuple[str, ...] = ()


def _form(
    name: str,
    base: Path,
    rows: Iterable[_Row],
    *,
    others: Sequence[str] = (),
    rules: Sequence[str] = (),
    left: Counter[str],
    unnamed: str = "photos without a label",
) -> Form:
    """Return rows as a form: one a photo, with events by time, without columns that none fills."""
    kept = _one_a_photo(rows, left, unnamed)
    events = _events(kept)
    without = events.count("")
    missing = f"{count(without, 'photo')} without time or place, each an event of its own"
    columns: dict[str, list[Any]] = {}
    columns |= {name: [row[at] for row in kept] for at, name in enumerate(_MAIN)}
    columns |= {name: [row.others[at] for row in kept] for at, name in enumerate(others)}
    columns[EVENT] = events
    filled = {name: column for name, column in columns.items() if any(column)}
    return Form(
        name,
        base,
        tuple(filled) or (PATH,),
        tuple(zip(*filled.values(), strict=True)),
        (*rules, *([missing] if 0 < without < len(kept) else [])),
        dict(left),
    )


def _one_a_photo(rows: Iterable[_Row], left: Counter[str], unnamed: str) -> list[_Row]:
    """Return a row for each photo that has one label, or for each photo if none has a label."""
    named: dict[str, _Row] = {}
    bare: dict[str, _Row] = {}
    several: set[str] = set()
    for row in rows:
        if row.path.rpartition(".")[2].lower() in _VIDEO:
            left[VIDEOS] += 1
        elif not row.label:
            bare.setdefault(row.path, row)
        elif named.setdefault(row.path, row).label != row.label:
            several.add(row.path)
    left["photos under several labels"] += len(several)
    if not named:
        return list(bare.values())
    left[unnamed] += len(bare.keys() - named.keys())
    return (
        [row for path, row in named.items() if path not in several]
        if several
        else [*named.values()]
    )


def _events(rows: Sequence[_Row]) -> list[str]:
    """Return each photo's event: the named one, else by time at its place, else an empty name."""
    events = [row.event for row in rows]
    dated = sorted(
        (row.place, row.time, at)
        for at, row in enumerate(rows)
        if row.time and row.place and not row.event
    )
    before, place, event = datetime.min, "", ""
    for where, time, at in dated:
        moment = datetime.fromisoformat(time)
        if where != place or moment - before > BURST:
            event = f"{where} {time}"
        events[at], before, place = event, moment, where
    return events


def _moment(text: str) -> datetime | None:
    """Return a time as ISO 8601, as EXIF or as `04-Mar-2016 05:06:07` has it; None for others."""
    if text[4:5] != "-":
        text = re.sub(r"^(\d{4}):(\d\d):(\d\d)\b", r"\1-\2-\3", text)
        if found := re.match(r"(\d\d?)-([A-Za-z]{3})-(\d{4})\b", text):
            day, month, year = found.groups()
            number = _MONTHS.get(month.lower(), 0)
            text = f"{year}-{number:02}-{int(day):02}{text[found.end() :]}"
    try:
        return datetime.fromisoformat(text) if text[4:5] == "-" else None
    except ValueError:
        return None


def _wall_time(moment: datetime | None) -> str:
    """Return a time as it stands, without its zone."""
    if moment is None:
        return ""
    return (moment.replace(tzinfo=None) if moment.tzinfo else moment).isoformat()


def _within(place: str, event: str) -> str:
    """Return an event's name that is its own in all places; an empty one stays empty."""
    return f"{place}/{event}" if place and event else event


def _posix(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _folder(path: str) -> str:
    """Return the folder of a photo's path, `.` for the first one."""
    return path.rpartition("/")[0] or "."


def _taxon(ranks: Sequence[str]) -> str:
    """Return the name at the lowest rank filled; of ranks down to genus and epithet, a binomial."""
    *_, genus, epithet = ranks
    if genus and epithet:
        return epithet if epithet.startswith(f"{genus} ") else f"{genus} {epithet}"
    return next((rank for rank in reversed(ranks[:-1]) if rank), "")


# --- files -------------------------------------------------------------------------------------


def _ends(place: Path) -> bytes:
    """Return the first and the last bytes of a file; none if it cannot be read."""
    try:
        with place.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(HEAD, place.stat().st_size - HEAD))
            return head + b"\n" + file.read(HEAD)
    except OSError:
        return b""


def _keys(place: Path) -> set[str]:
    """Return the JSON keys at both ends of a file that begins as an object."""
    data = _ends(place)
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return set()
    return {key.decode() for key in re.findall(rb'"([a-z_]+)"\s*:', data)}


def _opened(place: Path, encoding: str, errors: str = "strict") -> TextIOWrapper:
    if place.suffix == ".gz":
        return gzip.open(place, "rt", encoding=encoding, errors=errors, newline="")
    return place.open(encoding=encoding, errors=errors, newline="")


def _header(place: Path, encoding: str = "utf-8-sig") -> tuple[list[str], str]:
    """Return the names of a table's columns and what separates them."""
    with _opened(place, encoding, "replace") as file:
        line = file.readline(HEAD)
    separator = max(",;\t", key=line.count)
    names = next(csv.reader([line], delimiter=separator), [])
    return [name.strip() for name in names], separator


def _names(place: Path) -> frozenset[str]:
    """Return the names of a table's columns; none if the file is no such table."""
    try:
        return frozenset(_header(place)[0]) if place.is_file() else frozenset()
    except (OSError, EOFError, zlib.error, csv.Error):
        return frozenset()


def _rows(
    place: Path,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    dialect: Mapping[str, Any] | None = None,
    encoding: str = "utf-8-sig",
) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells, without blanks around them, of the columns asked for.

    A column that is not `needed` and not there has empty cells. The header is row 1. Raises
    DataError with the row for a damaged table, and with its name for a missing column.
    """
    number = 1
    try:
        header, separator = _header(place, encoding)
        with _opened(place, encoding) as file:
            reader = csv.reader(file, strict=True, **(dialect or {"delimiter": separator}))
            header = [name.strip() for name in next(reader, [])]
            for name in needed:
                if header.count(name) != 1:
                    times = "none" if name not in header else "several"
                    raise DataError(f"{place.name}: expected one column `{name}`, found {times}")
            width = len(header)
            at = [header.index(n) if n in header else width for n in (*needed, *optional)]
            for number, row in enumerate(reader, 2):
                if not row:
                    continue
                if len(row) != width and (len(row) < width or any(row[width:])):
                    raise DataError(
                        f"{place.name}, row {number}: expected {count(width, 'cell')} as in the"
                        f" header, found {len(row)}"
                    )
                row[width:] = [""]
                yield number, [row[i].strip() for i in at]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place.name}, after row {number}: not text in {encoding.removesuffix('-sig')}",
            hint="save the table as CSV in UTF-8",
        ) from error
    except (csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{place.name}, after row {number}: {error}") from error
    except (TypeError, ValueError, LookupError) as error:  # of a separator or an encoding
        raise DataError(f"{place.name}: cannot be read as described: {error}") from error
    except OSError as error:
        raise DataError(f"{(error.strerror or '').lower()}: {place}") from error


def _base(folder: Path, paths: Iterable[str], inner: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the folder below which the first photos lie, and the rule if it is an inner one."""
    first = [path for path, _ in zip(paths, range(LOOKED_AT), strict=False)]
    found = {name: sum((folder / name / path).is_file() for path in first) for name in ("", *inner)}
    best = max(found, key=lambda name: found[name])
    return folder / best, [f"photos lie in `{best}/`"] if best else []


def _last_parts(folder: Path, addresses: Iterable[str]) -> int:
    """Return how many last parts of addresses are paths below the folder; 0 if none is."""
    found: Counter[int] = Counter()
    for address, _ in zip(addresses, range(LOOKED_AT), strict=False):
        parts = _parts(address)
        for last in range(1, len(parts) + 1):
            found[last] += folder.joinpath(*parts[-last:]).is_file()
    best = max(found, key=lambda last: (found[last], last), default=0)
    return best if found[best] else 0


def _parts(address: str) -> list[str]:
    """Return the names in an address's path, as far as they may be names of files here."""
    path = re.split(r"[?#]", _ADDRESS.sub("", address))[0]
    return [part for part in path.split("/") if part not in ("", ".", "..")]


# --- Camtrap DP --------------------------------------------------------------------------------

_TABLES = {
    "deployments": (("deploymentID",), ("locationID",)),
    "media": (("mediaID", "deploymentID", "timestamp", "filePath"), ("fileMediatype",)),
    "observations": (
        (
            *("deploymentID", "mediaID", "eventID", "eventStart", "eventEnd"),
            *("observationLevel", "observationType", "scientificName"),
        ),
        ("bboxX", "bboxY", "bboxWidth", "bboxHeight"),
    ),
}
_MISSING = frozenset({"", "NA", "NaN", "nan"})  # as the schemas of version 1.0 say
_LEVELS = ("media", "event")
_TYPES = ("animal", "human", "vehicle", "blank", "unknown", "unclassified")
_DIALECT = {
    "delimiter": "delimiter",
    "quoteChar": "quotechar",
    "doubleQuote": "doublequote",
    "escapeChar": "escapechar",
    "skipInitialSpace": "skipinitialspace",
}


class _Event(NamedTuple):
    """An observation of a whole event, times in seconds."""

    start: float
    end: float
    name: str
    label: str


class _Timeline:
    """The observed events of a deployment, to be found by time."""

    def __init__(self, events: list[_Event]) -> None:
        self._events = sorted(events)
        self._starts = [event.start for event in self._events]
        self._reach = [*accumulate((event.end for event in self._events), max)]

    def at(self, time: float) -> list[_Event]:
        """Return the events that a time lies in, both ends included."""
        found = []
        at = bisect_right(self._starts, time) - 1
        while at >= 0 and self._reach[at] >= time:
            if self._events[at].end >= time:
                found.append(self._events[at])
            at -= 1
        return found[::-1]


class _Seen(NamedTuple):
    """What observations say: of media their labels and event, of deployments their events."""

    labels: dict[str, set[str]]  # without media that are unclassified alone
    events: dict[str, str]
    timelines: dict[str, _Timeline]
    boxes: dict[str, list[tuple[float, str]]]  # area and box


def read_camtrap_dp(place: Path) -> Form | None:
    """Return a Camtrap DP 1.0 package, a folder with `datapackage.json` or that file.

    Labels are scientific names of animals, or `blank`, `human`, `vehicle`. Observations of a photo
    win over those of an event, which count for all photos of its deployment from eventStart to
    eventEnd; `unclassified` ones of a photo say nothing. Times need a zone, as the standard asks.
    Photos at addresses are left out unless they lie here. Source: camtrap-dp.tdwg.org, 1.0.2.
    """
    file = place if place.name == "datapackage.json" else place / "datapackage.json"
    if not file.is_file():
        return None
    package = load_json(file)
    if not _is_camtrap_dp(file, package):
        return None
    spots = {name: spot or name for _, (name, spot) in _resource(file, package, "deployments")}
    seen = _seen(_resource(file, package, "observations"), spots)
    left: Counter[str] = Counter()
    licence = _media_licence(package)
    media = _media(_resource(file, package, "media"), spots, left)
    last = _last_parts(file.parent, (path for _, _, _, path in media if _ADDRESS.match(path)))
    rows = []
    by_event = 0
    for name, deployment, moment, path in media:
        if _ADDRESS.match(path):
            parts = _parts(path)
            if not last or len(parts) < last:
                left["photos at addresses: download them first"] += 1
                continue
            path = "/".join(parts[-last:])
        labels, event = seen.labels.get(name), seen.events.get(name, "")
        timeline = seen.timelines.get(deployment)
        if timeline and moment and (labels is None or not event):
            covering = timeline.at(moment.timestamp())
            if labels is None and covering:
                labels = {found.label for found in covering}
                by_event += 1
            event = event or next((found.name for found in covering), "")
        spot = spots[deployment]
        event, stamp = _within(spot, event), _wall_time(moment)
        others = (max(seen.boxes.get(name, [(0.0, "")]))[1], licence)
        for label in sorted((labels or set()) - {""}) or [""]:
            rows.append(_Row(_posix(path), label, event, spot, "", stamp, others))
    unlisted = seen.labels.keys() - {name for name, *_ in media}
    left["observations of media that are not listed"] += len(unlisted)
    rules = [f"{count(by_event, 'photo')} with the label of the event they lie in"] * (by_event > 0)
    rules += [f"photos at addresses lie here, by their last {count(last, 'part')}"] * (last > 0)
    return _form(
        "Camtrap DP",
        file.parent,
        rows,
        others=("box", "licence"),
        rules=[*rules, *_boxes_told(len(found) for found in seen.boxes.values())],
        left=left,
        unnamed="photos unknown, unclassified or of animals without a name",
    )


def _is_camtrap_dp(file: Path, package: Any) -> bool:
    """Return whether a data package is one of camera traps; DataError for another version."""
    if not isinstance(package, dict):
        return False
    profile = f"{package.get('profile')} {package.get('$schema')}"
    if found := re.search(r"camtrap-dp/(\d+)(\.\d+)*", profile):
        if found[1] != "1":
            version = found[0].partition("/")[2]
            raise DataError(f"{file.name}, key `profile`: expected Camtrap DP 1, found {version}")
        return True
    resources = package.get("resources")
    names = (
        [r.get("name") for r in resources if isinstance(r, dict)]
        if (isinstance(resources, list))
        else []
    )
    return "camtrap-dp" in profile or set(_TABLES) <= set(names)


def _resource(file: Path, package: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """Return the rows of a resource, by the path, dialect and encoding that the package gives."""
    key = f"{file.name}, resource `{name}`"
    resources = require(package.get("resources"), list, f"{file.name}, key `resources`", "a list")
    resource = next((r for r in resources if isinstance(r, dict) and r.get("name") == name), None)
    if resource is None:
        raise DataError(f"{key}: expected, as in every Camtrap DP; found none")
    path = require(resource.get("path"), str, f"{key}, key `path`", "one CSV file beside it")
    if _ADDRESS.match(path) or path.startswith(("/", "~")) or ".." in path.split("/"):
        raise DataError(f"{key}, key `path`: expected a file beside it, found {path}")
    dialect = require(resource.get("dialect", {}), dict, f"{key}, key `dialect`", "an object")
    if dialect.get("header") is False or "commentChar" in dialect:
        raise DataError(f"{key}, key `dialect`: expected a table with a header, without comments")
    given = {_DIALECT[option]: dialect[option] for option in dialect if option in _DIALECT}
    encoding = str(resource.get("encoding") or "utf-8").lower()
    needed, optional = _TABLES[name]
    return _rows(
        file.parent / path,
        needed,
        optional,
        dialect={"delimiter": ",", **given} if given else None,
        encoding="utf-8-sig" if encoding in ("utf-8", "utf8") else encoding,
    )


def _media(
    rows: Iterable[tuple[int, list[str]]], spots: Mapping[str, str], left: Counter[str]
) -> list[tuple[str, str, datetime | None, str]]:
    """Return id, deployment, time and path of all media that are pictures."""
    media = []
    names: set[str] = set()
    for number, (name, deployment, time, path, kind) in rows:
        where = f"media, row {number}"
        if not name or name in names:
            raise DataError(f"{where}: expected a mediaID of its own, found `{name}`")
        names.add(name)
        if deployment not in spots:
            raise DataError(f"{where}: deploymentID `{deployment}` is not in deployments")
        if not path:
            raise DataError(f"{where}: expected a filePath, found none")
        if kind.startswith(("video/", "audio/")):
            left[VIDEOS if kind.startswith("video/") else "sounds"] += 1
            continue
        media.append((name, deployment, _zoned(time, where) if time else None, path))
    return media


def _seen(rows: Iterable[tuple[int, list[str]]], spots: Mapping[str, str]) -> _Seen:
    """Return what observations say of media and of deployments."""
    seen = _Seen({}, {}, {}, {})
    events: dict[str, list[_Event]] = {}
    for number, cells in rows:
        where = f"observations, row {number}"
        cells = ["" if cell in _MISSING else cell for cell in cells]
        deployment, media, event, start, end, level, kind, name, *box = cells
        if level not in _LEVELS:
            raise DataError(f"{where}: expected observationLevel media or event, found `{level}`")
        if kind not in _TYPES:
            raise DataError(f"{where}: expected an observationType of the standard, found `{kind}`")
        label = name if kind == "animal" else "" if kind.startswith("un") else kind
        if level == "event":
            if deployment not in spots:
                raise DataError(f"{where}: deploymentID `{deployment}` is not in deployments")
            first, last = (_zoned(time, where).timestamp() for time in (start, end))
            event = event or start
            events.setdefault(deployment, []).append(_Event(first, last, event, label))
            continue
        if not media:
            raise DataError(f"{where}: expected a mediaID at observationLevel media, found none")
        if kind != "unclassified":
            seen.labels.setdefault(media, set()).add(label)
        if event:
            seen.events.setdefault(media, event)
        if all(box):
            seen.boxes.setdefault(media, []).append(_box(box, where))
    seen.timelines.update({name: _Timeline(found) for name, found in events.items()})
    return seen


def _zoned(text: str, where: str) -> datetime:
    """Return a time with its zone; DataError for any other text."""
    moment = datetime.min
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise DataError(f"{where}: expected a time such as 2020-03-24T11:21:46Z, found `{text}`")
    return moment


def _box(sides: Sequence[Any], where: str) -> tuple[float, str]:
    """Return area and text of a box: left, top, width and height as shares of the picture."""
    try:
        x, y, width, height = (float(side) for side in sides)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a box of four numbers, found {sides!r:.60}") from error
    return width * height, f"{x:.6g} {y:.6g} {width:.6g} {height:.6g}"


def _boxes_told(numbers: Iterable[int], kept: str = "largest") -> list[str]:
    several = sum(number > 1 for number in numbers)
    return [f"of several boxes the {kept} is kept ({count(several, 'photo')})"] * (several > 0)


def _media_licence(package: Mapping[str, Any]) -> str:
    """Return the licence of a package's media, its name or address; empty if it has none."""
    licences = package.get("licenses")
    for licence in licences if isinstance(licences, list) else []:
        if isinstance(licence, dict) and licence.get("scope") == "media":
            return str(licence.get("name") or licence.get("path") or "")
    return ""


# --- COCO Camera Traps and MegaDetector ----------------------------------------------------------


def _json_file(place: Path, told: Callable[[set[str]], bool], form: str) -> Path | None:
    """Return the file, or the one in a folder, that is told to be of a form by its JSON keys."""
    if place.is_file():
        files = [place]
    else:
        files = sorted(p for p in place.glob("*.json")) if place.is_dir() else []
    if len(files) > MOST_FILES:  # such as one a photo, as LabelMe writes
        return None
    fitting = [p for p in files if p.suffix == ".json" and told(_keys(p))]
    if len(fitting) > 1:
        raise DataError(
            f"{place}: several files of {form}: {quoted([p.name for p in fitting])}",
            hint="give one of them, or the folder as photos by `--format plain`",
        )
    return fitting[0] if fitting else None


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


def read_coco(place: Path) -> Form | None:
    """Return a COCO file or a folder with one: COCO Camera Traps, LILA, or objects in boxes.

    The label is the category (also `empty`); photos under several are left out. `seq_id` names the
    event, `location` the place, `datetime` the time. Of several boxes the largest is kept. Photos
    lie beside the file or in `images/` or `train/` there. Source: COCO Camera Traps format, LILA
    BC; the COCO data format.
    """
    file = _json_file(
        place,
        lambda keys: (
            bool(keys & {"images", "image_id"})
            and bool(keys & {"annotations", "categories", "file_name"})
            and not keys & {"detection_categories", "detections"}
        ),
        "COCO",
    )
    data = load_json(file) if file else None
    if file is None or not isinstance(data, dict) or "images" not in data:
        return None
    images = require(data["images"], list, f"{file.name}, key `images`", "a list")
    left: Counter[str] = Counter()
    paths = _paths_of_images(file, images)
    labels, boxes = _annotated(file, data, paths, left)
    base, rules = _base(file.parent, paths.values(), ("images", "train"))
    listed = data.get("licenses")
    licences = {
        _id(one, "id", file.name, "licenses", number): str(one.get("name") or one.get("url") or "")
        for number, one in enumerate(listed if isinstance(listed, list) else [])
    }
    unknown = 0
    trap = False
    rows = []
    name = file.name
    for number, (key, path) in enumerate(paths.items()):
        image = images[number]
        spot = _id(image, "location", name, "images", number)
        sequence = _id(image, "seq_id", name, "images", number)
        licence = _id(image, "license", name, "images", number) if licences else ""
        time = image.get("datetime")
        stamp = _wall_time(_moment(time)) if isinstance(time, str) else ""
        unknown += bool(time) and not stamp
        trap = trap or bool(spot or sequence)
        event = _within(spot, sequence)
        others = ("", "")
        if key in boxes or licence:
            box = _relative_box(boxes.get(key, ()), image, f"{name}, image `{key}`")
            others = (box, licences.get(licence, ""))
        for label in labels.get(key) or ("",):
            rows.append(_Row(path, label, event, spot, "", stamp, others))
    if unknown:
        rules.append(f"{count(unknown, 'time')} of no known form, taken as none")
    return _form(
        "COCO Camera Traps" if trap else "COCO",
        base,
        rows,
        others=("box", "licence"),
        rules=[*rules, *_boxes_told(len(found) for found in boxes.values())],
        left=left,
        unnamed="photos without annotation",
    )


def _paths_of_images(file: Path, images: Sequence[Any]) -> dict[str, str]:
    """Return the path of each image by its id; DataError for an image without or an id twice."""
    paths: dict[str, str] = {}
    source = file.name
    for number, image in enumerate(images):
        name = _need(image, "file_name", str, "a path", source, "images", number)
        key = _id(image, "id", source, "images", number)
        if not key or key in paths:
            spot = f"{source}, images[{number}], key `id`"
            raise DataError(f"{spot}: expected an id of its own, found `{key}`")
        paths[key] = _posix(name)
    return paths


def _annotated(
    file: Path, data: Mapping[str, Any], paths: Mapping[str, str], left: Counter[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, list[Any]]]:
    """Return the different labels and the boxes of each image."""
    listed = require(data.get("categories"), list, f"{file.name}, key `categories`", "a list")
    names = {
        _id(one, "id", file.name, "categories", number): _need(
            one, "name", str, "text", file.name, "categories", number
        ).strip()
        for number, one in enumerate(listed)
    }
    labels: dict[str, tuple[str, ...]] = {}
    boxes: dict[str, list[Any]] = {}
    annotations = require(
        data.get("annotations", []), list, f"{file.name}, key `annotations`", "a list"
    )
    single = {name: (name,) for name in names.values()}
    source = file.name
    for number, annotation in enumerate(annotations):
        key = _id(annotation, "image_id", source, "annotations", number)
        category = _id(annotation, "category_id", source, "annotations", number)
        if category not in names:
            spot = f"{file.name}, annotations[{number}], key `category_id`"
            raise DataError(f"{spot}: `{category}` is not in categories")
        if key not in paths:
            left["annotations of images that are not listed"] += 1
            continue
        found = labels.get(key, ())
        if names[category] not in found:
            labels[key] = (*found, names[category]) if found else single[names[category]]
        if annotation.get("bbox"):
            boxes.setdefault(key, []).append(annotation["bbox"])
    return labels, boxes


def _relative_box(boxes: Sequence[Any], image: Mapping[str, Any], where: str) -> str:
    """Return the largest of boxes in pixels as shares of the picture; empty without its size."""
    width, height = image.get("width"), image.get("height")
    if not boxes or not width or not height:
        return ""
    require(width, (int, float), f"{where}, key `width`", "a number")
    require(height, (int, float), f"{where}, key `height`", "a number")
    sizes = (width, height, width, height)
    shares = []
    for box in boxes:
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(isinstance(side, (int, float)) for side in box)
        ):
            raise DataError(f"{where}: expected a box of four numbers, found {box!r:.60}")
        shares.append(_box([side / size for side, size in zip(box, sizes, strict=True)], where))
    return max(shares)[1]


def read_megadetector(place: Path) -> Form | None:
    """Return a batch of MegaDetector's results, a JSON file: boxes, no species.

    One row a photo with its most confident box, `category` and `confidence`; photos that failed
    are left out. Crops of one photo (`.crop_000`) are one event unless times name them. Source: the
    MegaDetector batch output format, 1.0 to 1.6.
    """
    file = place if place.is_file() and place.suffix == ".json" else None
    keys = _keys(place) if file else set()
    if file is None or not ("detection_categories" in keys or {"detections", "file"} <= keys):
        return None
    data = load_json(file)
    if not isinstance(data, dict) or "images" not in data:
        return None
    images = require(data["images"], list, f"{file.name}, key `images`", "a list")
    categories = require(
        data.get("detection_categories"),
        dict,
        f"{file.name}, key `detection_categories`",
        "an object",
    )
    left: Counter[str] = Counter()
    rows = []
    numbers = []
    for number, image in enumerate(images):
        where = (file.name, "images", number)
        path = _posix(_need(image, "file", str, "a path", *where))
        if image.get("failure"):
            left["photos that MegaDetector could not read"] += 1
            continue
        found = _need(image, "detections", list, "a list", *where)
        numbers.append(len(found))
        time = image.get("datetime")
        moment = _moment(time) if isinstance(time, str) else None
        crop_of = re.sub(r"\.crop_\d+(?=\.|$)", "", path) if ".crop_" in path else path
        rows.append(
            _Row(
                path,
                event=crop_of if crop_of != path and moment is None else "",
                place=_folder(path),
                time=_wall_time(moment),
                others=_most_confident(found, categories, *where),
            )
        )
    base, rules = _base(file.parent, (row.path for row in rows), ("images",))
    return _form(
        "MegaDetector",
        base,
        rows,
        others=("box", "confidence", "category"),
        rules=["no labels", *rules, *_boxes_told(numbers, "most confident")],
        left=left,
    )


def _most_confident(
    detections: Sequence[Any], categories: Mapping[str, Any], *where: object
) -> tuple[str, str, str]:
    """Return box, confidence and category of the most confident detection; empty without one."""
    best, most = None, -1.0
    for number, one in enumerate(detections):
        sure = _need(one, "conf", (int, float), "a number", *where, "detections", number)
        category = _need(one, "category", str, "text", *where, "detections", number)
        if category not in categories:
            spot = f"{where[0]}, images[{where[2]}], detections[{number}], key `category`"
            raise DataError(f"{spot}: `{category}` is not in detection_categories")
        if sure > most:
            best, most = one, sure
    if best is None:
        return "", "", ""
    box = _need(best, "bbox", list, "a list", *where)
    name = str(categories[best["category"]])
    return _box(box, f"{where[0]}, images[{where[2]}]")[1], f"{most:.6g}", name


# --- tables of Wildlife Insights, Timelapse, WILDS and AddaxAI -----------------------------------

_RANKS = ("class", "order", "family", "genus", "species")
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
    if not any({"deployment_id", "image_id"} <= _names(table) for table in tables):
        return None
    spots = _placenames(folder)
    by_sequence = _labels_of_sequences(folder)
    left: Counter[str] = Counter()
    needed = ("project_id", "deployment_id", "image_id", "filename", "location", "timestamp")
    optional = ("sequence_id", "license", "is_blank", "common_name", *_RANKS)
    listed = [cells for table in tables for _, cells in _rows(table, needed, optional)]
    paths, rules = _paths_of_downloads(folder, listed)
    above = 0
    rows = []
    for path, cells in zip(paths, listed, strict=True):
        project, deployment, _, _, _, time, sequence, licence, is_blank, common, *ranks = cells
        label, ranks = _wildlife_label(is_blank, common, tuple(ranks))
        named = [label] if label else sorted(by_sequence.get((project, sequence), ()))
        above += bool(label and any(ranks) and not ranks[-1])
        spot = spots.get((project, deployment)) or f"{project}/{deployment}"
        event, stamp, others = _within(spot, sequence), _wall_time(_moment(time)), (*ranks, licence)
        rows += [_Row(path, name, event, spot, "", stamp, others) for name in named or ("",)]
    if above:
        rules.append(f"{count(above, 'row')} named above the species, by the lowest rank filled")
    return _form(
        "Wildlife Insights", folder, rows, others=(*_RANKS, "licence"), rules=rules, left=left
    )


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
        found.update({(cells[0], cells[1]): cells[2] for _, cells in _rows(table, columns)})
    several = len({project for project, _ in found}) > 1
    return {key: f"{key[0]}/{name}" if several else name for key, name in found.items() if name}


def _labels_of_sequences(folder: Path) -> dict[tuple[str, str], set[str]]:
    """Return the labels of the sequences that a download names, by project and id."""
    found: dict[tuple[str, str], set[str]] = {}
    columns = ("is_blank", "common_name", *_RANKS)
    for table in sorted(folder.glob("sequences*.csv")):
        for _, cells in _rows(table, ("project_id", "sequence_id"), columns):
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
    last = _last_parts(folder, (cells[4] for cells in listed))
    if not last:
        for told, spelling in spellings.items():
            base, rules = _base(folder, (spelling(cells) for cells in listed), ("images",))
            if any((base / spelling(cells)).is_file() for cells in listed[:LOOKED_AT]):
                inner = base.relative_to(folder).as_posix()
                paths = [_posix(f"{inner}/{spelling(cells)}") for cells in listed]
                return paths, [*rules, f"photos lie here by {told}"]
    rule = f"photos lie here by the last {count(last, 'part')} of location"
    if not last:
        rule = "photos were not found by location or filename: the last part of location is taken"
    return ["/".join(_parts(cells[4])[-(last or 1) :]) or cells[3] for cells in listed], [rule]


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
    names = _names(place) if place.suffix == ".csv" else frozenset()
    if not (names >= _TIMELAPSE and names & {"DateTime", "Date", "DeleteFlag"}):
        return None
    own = [name for name in _header(place)[0] if name and name not in _OF_TIMELAPSE]
    columns = ("RootFolder", "DateTime", "Date", "Time", "DeleteFlag", *own)
    listed = [cells for _, cells in _rows(place, ("File", "RelativePath"), columns)]
    left: Counter[str] = Counter()
    label, rules = _label_column(own, [cells[7:] for cells in listed])
    rows = []
    for name, folder, _, stamp, date, time, deleted, *cells in listed:
        if deleted.lower() in _YES:
            left["rows with a DeleteFlag"] += 1
            continue
        folder = _posix(folder).strip("/")
        rows.append(
            _Row(
                f"{folder}/{name}" if folder else name,
                label=cells[own.index(label)] if label else "",
                place=folder or ".",
                time=_wall_time(_moment(stamp or f"{date} {time}".strip())),
                others=tuple(cells),
            )
        )
    roots = sorted({cells[2] for cells in listed if cells[2]})[:1]
    base, told = _base(place.parent, (row.path for row in rows), roots)
    taken = [f"Timelapse {name}" if name in _MAIN else name for name in own]
    return _form("Timelapse", base, rows, others=taken, rules=[*rules, *told], left=left)


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
    names = _names(table) if table.suffix == ".csv" else frozenset()
    if "location_remapped" not in names:
        return None
    categories = table.with_name("categories.csv")
    number = "y" if "y" in names else "category_id"
    labels: dict[str, str] | None = None
    if categories.is_file():
        labels = {key: name for _, (key, name) in _rows(categories, (number, "name"))}
    splits: Counter[str] = Counter()
    rows = []
    needed = ("filename", "location_remapped", number)
    optional = ("sequence_remapped", "split", "datetime")
    for at, (path, spot, key, sequence, split, time) in _rows(table, needed, optional):
        where = f"{table.name}, row {at}"
        if labels is not None and key and key not in labels:
            raise DataError(f"{where}: {number} `{key}` is not in {categories.name}")
        if split and split not in _SPLITS:
            raise DataError(f"{where}: expected a split of {quoted([*_SPLITS])}, found `{split}`")
        splits[split] += 1
        rows.append(
            _Row(
                _posix(path),
                label=labels[key] if labels is not None and key else key,
                event=_within(spot, sequence),
                place=spot,
                split=_SPLITS.get(split, ""),
                time=_wall_time(_moment(time)),
            )
        )
    base, rules = _base(table.parent, (row.path for row in rows), ("train", "images"))
    if labels is None:
        rules.append(f"labels are numbers: there is no {categories.name}")
    for split in ("id_val", "id_test"):
        if splits[split]:
            rules.append(f"{split} counts as {_SPLITS[split]} ({count(splits[split], 'row')})")
    return _form("iWildCam (WILDS)", base, rows, rules=rules, left=Counter())


_ADDAX = ("relative_path", "label", "confidence", "bbox_left", "bbox_top", "bbox_right")
_ADDAX_SIZES = ("bbox_bottom", "file_height", "file_width")


def read_addaxai(place: Path) -> Form | None:
    """Return AddaxAI's table of detections, `results_detections.csv`: boxes and a model's names.

    Those names are `category`, no label. Of several boxes the most confident is kept. Source: the
    export of AddaxAI (EcoAssist), whose boxes are in pixels.
    """
    if place.suffix != ".csv" or not _names(place) >= {"relative_path", "bbox_left", "file_width"}:
        return None
    best: dict[str, tuple[float, _Row]] = {}
    numbers: Counter[str] = Counter()
    for at, cells in _rows(place, (*_ADDAX, *_ADDAX_SIZES), ("DateTimeOriginal",)):
        path, category, *numeric, time = cells
        where = f"{place.name}, row {at}"
        try:
            sure, left, top, right, bottom, high, wide = (float(cell) for cell in numeric)
            sides = (left / wide, top / high, (right - left) / wide, (bottom - top) / high)
        except (ValueError, ZeroDivisionError) as error:
            raise DataError(f"{where}: expected numbers of a box, found {numeric}") from error
        path = _posix(path)
        numbers[path] += 1
        if path not in best or sure > best[path][0]:
            row = _Row(
                path,
                place=_folder(path),
                time=_wall_time(_moment(time)),
                others=(_box(sides, where)[1], numeric[0], category),
            )
            best[path] = sure, row
    rows = [row for _, row in best.values()]
    base, rules = _base(place.parent, best, ("images",))
    return _form(
        "AddaxAI",
        base,
        rows,
        others=("box", "confidence", "category"),
        rules=["no labels", *rules, *_boxes_told(numbers.values(), "most confident")],
        left=Counter(),
    )


FORMS: tuple[Known, ...] = (
    Known("camtrap-dp", read_camtrap_dp),
    Known("wildlife-insights", read_wildlife_insights),
    Known("iwildcam", read_iwildcam),
    Known("timelapse", read_timelapse),
    Known("addaxai", read_addaxai),
    Known("megadetector", read_megadetector),
    Known("coco", read_coco),
)
