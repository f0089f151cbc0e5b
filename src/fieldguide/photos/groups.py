"""The groups that no fold may divide: events, places, columns of a table, folders, file names.

Knows nothing of folds, nor of how tables are read.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from PIL import Image

from fieldguide.errors import DataError, UsageError
from fieldguide.photos import crops
from fieldguide.photos.catalog import SPLIT_FOLDERS, USUAL_NAMES, Photo
from fieldguide.photos.families import grouped as grouped_by_name
from fieldguide.photos.families import is_by_name
from fieldguide.storage.columns import Records
from fieldguide.words import count, simple_name

# Column names without case, blanks, `_` and `-`, the best first: one occasion of taking photos,
# what a new place means, and when a photo was taken.
EVENTS = USUAL_NAMES["group"][2:]
PLACES = (
    *("place", "location", "locationid", "site", "siteid", "station", "stationid", "camera"),
    *("cameraid", "deployment", "deploymentid", "trap", "trapid"),
)
TIMES = (
    *("time", "datetime", "timestamp", "datetimeoriginal", "capturetime", "datetaken"),
    *("dateobserved", "observedon", "eventdate"),
)

BY_PHOTO = "photo"  # what is said of groups that are the crops of a photo each
EVENT_GAP = 60.0  # seconds, the longest pause within an event if none is given

_FORMS_OF_TIME = (
    *("%Y:%m:%d %H:%M:%S", "%d-%b-%Y %H:%M:%S", "%Y/%m/%d %H:%M:%S", "%Y-%m-%d %H:%M"),
    *("%Y:%m:%d %H:%M", "%Y/%m/%d %H:%M", "%Y:%m:%d %H:%M:%S.%f", "%d-%b-%Y %H:%M"),
)
_EXIF, _TAKEN, _SERIAL = 0x8769, 0x9003, 0xA431
_MAKE, _MODEL = 0x010F, 0x0110


def simplified(names: Sequence[str]) -> list[str]:
    """Return column names as usual names are compared: without case, blanks, `_` and `-`."""
    return [simple_name(name) for name in names]


def is_by_path(group: str | None) -> TypeGuard[str]:
    """Return whether a choice of groups looks at paths or files: stem, stem:REGEX, folder:N."""
    return group is not None and (is_by_name(group) or group.startswith("folder:"))


def grouped(photos: Records[Photo], group: str) -> tuple[Records[Photo], str]:
    """Return photos with groups from their paths, and in words where these come from.

    `group` is one of `families.grouped`, or `folder:N`: the name of the Nth folder of the path,
    without folders of splits. Raises UsageError for a bad one and for one that no path has.
    """
    if is_by_name(group):
        return grouped_by_name(photos, group)
    number = folder_number(group)
    groups = [_folder(path, number) for path in photos.column("path")]
    if not any(groups):
        raise UsageError(f"no photo lies in {number} folders", hint="lower the number of folder:N")
    said = f"folder {number} of paths, {count(groups.count(None), 'photo')} alone"
    return photos.with_column("group", groups), said


def folder_number(text: str) -> int:
    """Return the N of `folder:N`; raise UsageError for anything but a number from 1."""
    number = text.removeprefix("folder:")
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        raise UsageError(f"not a number of a folder: `{text}`", hint="such as folder:2")
    return int(number)


def by_photo(photos: Records[Photo]) -> Records[Photo]:
    """Return crops with a group each: their own, else the photo they are of."""
    pairs = zip(photos.column("group"), photos.column("path"), strict=True)
    return photos.with_column("group", [group or crops.parted(path)[0] for group, path in pairs])


def _folder(path: str, number: int) -> str | None:
    names = folders_of(path)
    return names[number - 1] if len(names) >= number else None


def folders_of(path: str) -> list[str]:
    """Return the folders of a photo's path from the root on, without those of splits."""
    parts = PurePosixPath(crops.parted(path)[0]).parent.parts
    return [name for name in parts if name.lower() not in SPLIT_FOLDERS]


def holds_for(told: str) -> str:
    """Return in words which photos a score holds for, from the line that tells how they were read.

    Photos of one group are tested by one fold, so groups are what is new to it.
    """
    unit, name = unit_of(told)
    if not unit:
        return "new photos, perhaps of the same occasions and places: no groups keep them apart"
    same = {"event": ", at the same places", "place": ""}
    return f"photos of new {unit}s{same.get(unit, f' ({name})')}"


def unit_of(told: str) -> tuple[str, str]:
    """Return what a group is, from that line: place, event or group, and its name; empty of none.

    Photos that were cut into crops are no groups in this sense.
    """
    found = re.search(r"groups: (column )?(.*?) \(\d", told)
    if found is None or found[2] == BY_PHOTO:
        return "", ""
    name = simplified([found[2].partition(" within ")[0]])[0]
    if found[1] and name in PLACES:
        return "place", found[2]
    if name in EVENTS or " within " in found[2]:
        return "event", found[2]
    return "group", found[2]


def gap_of(event_gap: float | None) -> float:
    """Return the seconds asked for, or EVENT_GAP; raise UsageError unless they are above 0."""
    gap = EVENT_GAP if event_gap is None else event_gap
    if not gap > 0:
        raise UsageError(f"`event_gap` is not above 0 seconds: {gap}")
    return gap


def refuse_gap(event_gap: float | None, groups: str) -> None:
    """Raise UsageError for a gap that was given where groups, in words, need none."""
    if event_gap is not None:
        raise UsageError(
            f"`event_gap` changes nothing here: groups: {groups}",
            hint="leave it out; it is for events from times, as --group event makes them where no"
            " column names events",
        )


# --- events from times ----------------------------------------------------------------------------


def events(times: Sequence[datetime | None], places: Sequence[str], gap: float) -> list[str | None]:
    """Return the name of each photo's event: at one place, each within `gap` s of the one before.

    A photo without a time has None.
    """
    found: list[str | None] = [None] * len(times)
    timed = [(places[row], time, row) for row, time in enumerate(times) if time is not None]
    place, last, name = "", None, ""
    for where, time, row in sorted(timed):
        if last is None or where != place or (time - last).total_seconds() > gap:
            name = f"{where} {time.isoformat(sep=' ')}".strip()
        place, last, found[row] = where, time, name
    return found


def time_of(text: str) -> datetime | None:
    """Return the time that a cell or EXIF says, without its zone; None for a day alone, or none."""
    text = text.strip("\0 ")
    if len(text) <= len("2026-01-01"):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        for form in _FORMS_OF_TIME:
            try:
                return datetime.strptime(text, form)
            except ValueError:
                continue
        return None
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def by_capture(photos: Records[Photo], files: Sequence[Path], gap: float) -> Records[Photo]:
    """Return photos with events by the time in their EXIF, at the same camera and folder.

    Folders of classes are no places. Raises DataError if no photo has a time.
    """
    found = capture_events(photos, files, gap)
    if not any(found):
        raise DataError(
            "no photo says in its EXIF when it was taken, so events are not known",
            hint="give a table with a column of events or times, or other groups with --group",
        )
    return photos.with_column("group", found)


def capture_events(photos: Records[Photo], files: Sequence[Path], gap: float) -> list[str | None]:
    """Return each photo's event as `by_capture` does; None for a photo without a time."""
    with ThreadPoolExecutor() as pool:
        taken = list(pool.map(_capture, files))
    labels = photos.column("label")
    places = [
        "/".join([*(name for name in folders_of(path) if name != label), camera]).strip("/")
        for path, label, (_, camera) in zip(photos.column("path"), labels, taken, strict=True)
    ]
    return events([time for time, _ in taken], places, gap)


def _capture(path: Path) -> tuple[datetime | None, str]:
    """Return when a photo was taken and the camera's make, model and serial number, if it says."""
    try:
        with Image.open(crops.photo_of(path)) as picture:
            exif = picture.getexif()
            inner = exif.get_ifd(_EXIF)
    except Exception:  # Pillow raises nearly anything on damaged files; the check tells of them
        return None, ""
    camera = [exif.get(_MAKE, ""), exif.get(_MODEL, ""), inner.get(_SERIAL, "")]
    return time_of(str(inner.get(_TAKEN, ""))), " ".join(str(c).strip("\0 ") for c in camera if c)
