"""The reader of Camtrap DP, the standard for data packages of camera traps."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from fieldguide.errors import DataError
from fieldguide.photos.forms.camera_traps import (
    ADDRESS,
    box_text,
    last_parts,
    parts_of,
    photos_of,
    posix,
    rows_of,
    within,
)
from fieldguide.photos.forms.form import (
    BOX,
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
from fieldguide.words import count

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
    boxes: dict[str, list[tuple[str, str]]]  # label and box


def read_camtrap_dp(place: Path, boxes: bool = False) -> Form | None:
    """Return a Camtrap DP 1.0 package, a folder with `datapackage.json` or that file.

    Labels are scientific names of animals, or `blank`, `human`, `vehicle`. Observations of a photo
    win over those of an event, which count for all photos of its deployment from eventStart to
    eventEnd; `unclassified` ones of a photo say nothing. Times need a zone, as the standard asks.
    A box has the label of its observation.
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
    videos: list[str] = []
    media = _media(_resource(file, package, "media"), spots, left, videos)
    last = last_parts(file.parent, (path for _, _, _, path in media if ADDRESS.match(path)))
    rows = []
    by_event = 0
    for name, deployment, moment, path in media:
        if ADDRESS.match(path):
            parts = parts_of(path)
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
        row = {
            PATH: posix(path),
            EVENT: within(spot, event),
            PLACE: spot,
            TIME: moment.replace(tzinfo=None).isoformat() if moment else "",
            "licence": licence,
        }
        if boxes and name in seen.boxes:
            rows += [row | {LABEL: label, BOX: box} for label, box in seen.boxes[name]]
        else:
            rows += [row | {LABEL: label} for label in sorted((labels or set()) - {""}) or [""]]
    unlisted = seen.labels.keys() - {name for name, *_ in media}
    left["observations of media that are not listed"] += len(unlisted)
    rules = [f"{count(by_event, 'photo')} with the label of the event they lie in"] * (by_event > 0)
    rules += [f"photos at addresses lie here, by their last {count(last, 'part')}"] * (last > 0)
    return photos_of(
        "Camtrap DP",
        file.parent,
        rows,
        rules=rules,
        left=left,
        boxes=boxes,
        unused=0 if boxes else sum(map(len, seen.boxes.values())),
        videos=videos,
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
    listed = resources if isinstance(resources, list) else []
    names = [r.get("name") for r in listed if isinstance(r, dict)]
    return "camtrap-dp" in profile or all(name in names for name in _TABLES)


def _resource(file: Path, package: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """Return the rows of a resource, by the path, dialect and encoding that the package gives."""
    key = f"{file.name}, resource `{name}`"
    resources = require(package.get("resources"), list, f"{file.name}, key `resources`", "a list")
    resource = next((r for r in resources if isinstance(r, dict) and r.get("name") == name), None)
    if resource is None:
        raise DataError(f"{key}: expected, as in every Camtrap DP; found none")
    path = require(resource.get("path"), str, f"{key}, key `path`", "one CSV file beside it")
    if ADDRESS.match(path) or path.startswith(("/", "~")) or ".." in path.split("/"):
        raise DataError(f"{key}, key `path`: expected a file beside it, found {path}")
    dialect = require(resource.get("dialect", {}), dict, f"{key}, key `dialect`", "an object")
    if dialect.get("header") is False or "commentChar" in dialect:
        raise DataError(f"{key}, key `dialect`: expected a table with a header, without comments")
    given = {_DIALECT[option]: dialect[option] for option in dialect if option in _DIALECT}
    return rows_of(
        file.parent / path,
        *_TABLES[name],
        encoding=str(resource.get("encoding") or "") or None,
        dialect={"delimiter": ",", **given} if given else None,
    )


def _media(
    rows: Iterable[tuple[int, list[str]]],
    spots: Mapping[str, str],
    left: Counter[str],
    videos: list[str],
) -> list[tuple[str, str, datetime | None, str]]:
    """Return id, deployment, time and path of all media that are pictures; add to `videos`."""
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
        if kind.startswith("video/"):
            videos.append(posix(path))
            continue
        if kind.startswith("audio/"):
            left["sounds"] += 1
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
            seen.boxes.setdefault(media, []).append((label, box_text(box, where)))
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


def _media_licence(package: Mapping[str, Any]) -> str:
    """Return the licence of a package's media, its name or address; empty if it has none."""
    licences = package.get("licenses")
    for licence in licences if isinstance(licences, list) else []:
        if isinstance(licence, dict) and licence.get("scope") == "media":
            return str(licence.get("name") or licence.get("path") or "")
    return ""


FORMS = (Known("camtrap-dp", read_camtrap_dp, boxed=True),)
