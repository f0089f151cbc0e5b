"""The occasions that folds may divide: events of more than one photo that no group keeps together.

They come from the source's own times or events, else from EXIF of a sample, else from file names.
Knows nothing of pixels.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fieldguide.photos.catalog import Catalog, Note
from fieldguide.photos.crops import parted
from fieldguide.photos.families import STEM
from fieldguide.photos.groups import EVENT_GAP, capture_events

SHARED_EVENT = "shared-event"
LEAST = 0.01  # of the photos: less is no finding (taste)
# Photos whose EXIF is read: stretches of neighbours by name, evenly spread (taste).
_STRETCHES, _NEIGHBOURS = 10, 40
# Names with a date and a time, to the minute; and with a number behind an id, as `obs12_1`.
_MINUTES = r"^(.*20\d\d-?[01]\d-?[0-3]\d[ _T-][0-2]\d[-.]?[0-5]\d)"
_NUMBERED = r"^(.*\d.*)[_-]\d{1,2}$"
_MOST = 20  # photos of an event by numbers in names, on average (taste)


class _Events(NamedTuple):
    """The event of each of some rows, None for one alone; what they are and the flag to pass."""

    rows: Sequence[int]
    events: Sequence[str | None]
    what: str
    flag: str


def shared_events(catalog: Catalog, groups: Sequence[str]) -> Iterator[Note]:
    """Yield a finding if no photo has a group of its source and events are divided by `groups`.

    `groups` are those that folds keep together whatever the source says, such as copies. Photos
    count that share their event with one of another such group, and of another own fold, if any.
    """
    names = zip(catalog.table.column("group"), catalog.table.column("path"), strict=True)
    if any(group and group != parted(path)[0] for group, path in names):  # not of crops alone
        return
    for found in _candidates(catalog):
        divided = _divided(catalog, found, groups)
        if divided >= LEAST * max(len(found.rows), 1):
            some = "" if len(found.rows) == len(_training(catalog)) else f" {len(found.rows)}"
            message = (
                f"{divided / len(found.rows):.0%} of{some} photos share their event ({found.what})"
                " with others: folds are tested on events that they were trained on"
            )
            hint = f"--group {found.flag} keeps each event in one fold"
            yield Note(SHARED_EVENT, "", message, hint)
            return
        if catalog.occasions and catalog.occasions.events is not None:
            return  # the source's own times know best


def _training(catalog: Catalog) -> list[int]:
    return [row for row, split in enumerate(catalog.table.column("split")) if split == "train"]


def _divided(catalog: Catalog, found: _Events, groups: Sequence[str]) -> int:
    """Return how many photos share their event with photos that another fold may test."""
    own: Sequence[int | None] = catalog.table.column("fold")
    members: dict[str, list[int]] = defaultdict(list)
    for row, event in zip(found.rows, found.events, strict=True):
        if event is not None:
            members[event].append(row)
    parts = (
        (rows, {groups[row] if own[row] is None else own[row] for row in rows})
        for rows in members.values()
    )
    return sum(len(rows) for rows, folds in parts if len(folds) > 1)


def _candidates(catalog: Catalog) -> Iterator[_Events]:
    rows, paths = _training(catalog), catalog.table.column("path")
    photos = [parted(path)[0] for path in paths]
    said = catalog.occasions
    if said is not None and said.events is not None:
        own = [said.events.get(paths[row]) or said.events.get(photos[row]) for row in rows]
        yield _Events(rows, own, said.what, "event")
    elif said is not None:
        step = max(len(rows) // _STRETCHES, _NEIGHBOURS)
        looked = [row for at in range(0, len(rows), step) for row in rows[at : at + _NEIGHBOURS]]
        taken = catalog.table.take(looked)
        events = capture_events(taken, [catalog.root / p for p in taken.column("path")], EVENT_GAP)
        yield _Events(looked, events, f"EXIF times within {EVENT_GAP:g} s", "event")
    stems = [photos[row].rpartition("/")[2].rpartition(".")[0] for row in rows]
    for pattern, what in ((_MINUTES, "minutes"), (_NUMBERED, "numbers")):
        events = [found[1] if (found := re.search(pattern, stem)) else None for stem in stems]
        if pattern != _NUMBERED or _are_numbered(stems, events, len(catalog.classes)):
            yield _Events(rows, events, f"{what} in file names", f"'{STEM}:{pattern}'")


def _are_numbered(stems: Sequence[str], events: Sequence[str | None], classes: int) -> bool:
    """Return whether most names number the photos of many small events, from 0 or 1 on."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for stem, event in zip(stems, events, strict=True):
        if event is not None:
            numbers[event].append(int(re.split("[_-]", stem)[-1]))
    counted = [sorted(n) for n in numbers.values() if len(n) > 1]
    proper = [n for n in counted if n[0] < 2 and n == [*range(n[0], n[0] + len(n))]]
    many = len(proper) > 2 * classes and 2 * len(proper) > len(counted)
    return many and sum(map(len, proper)) <= _MOST * len(proper)
