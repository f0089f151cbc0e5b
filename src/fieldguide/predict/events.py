"""The events that photos to predict belong to, and the table of their answers.

Knows nothing of models.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fieldguide.analysis.events import Gathered
from fieldguide.errors import UsageError
from fieldguide.photos import groups, sources
from fieldguide.photos.catalog import Photo, in_columns
from fieldguide.photos.forms import known
from fieldguide.predict.inputs import TABLES, Input
from fieldguide.predict.tables import Predictions, digits
from fieldguide.storage import addresses, files

COLUMNS = ("event", "photos", "label", "confidence", "second", "second_confidence", "first_photo")


def named(
    source: str | Path,
    inputs: Sequence[Input],
    group: str,
    *,
    gap: float | None = None,
    path_column: str | None = None,
    root: str | Path | None = None,
    encoding: str | None = None,
    form: str | None = None,
) -> list[str]:
    """Return the event of each photo of a source; one in none is an event of its own.

    `group` is what names events, as for collections (`sources.read`): `event` (a column of the
    source, else times within `gap` seconds, of folders those of EXIF), a column (of a photo's first
    row), `folder:N`, `stem` or `stem:REGEX`. Raises UsageError for `none`, and DataError where
    nothing is known of events.
    """
    if group == "none":
        raise UsageError("`group` = 'none' has no events", hint="leave it out")
    place = addresses.local(source)
    paths = [each.file or Path(each.name) for each in inputs]
    table = place.suffix.lower() in TABLES or known.find(place, form) is not None
    if table and form != "plain":
        catalog = sources.read(
            place,
            path=path_column,
            group=group,
            root=root,
            encoding=encoding,
            form=form,
            event_gap=gap,
            labelled=False,
        )
        of = {catalog.file(photo): photo.group for photo in catalog.photos}
        found = [of.get(path) for path in paths]
    else:
        photos = in_columns(Photo(each.name, None) for each in inputs)
        if groups.is_by_path(group):
            groups.refuse_gap(gap, group)
            photos, _ = groups.grouped(photos, group)
        elif group == "event":
            photos = groups.by_capture(photos, paths, groups.gap_of(gap))
        else:
            raise UsageError(
                f"these photos have no columns, and so no `{group}`",
                hint="event (by the times in EXIF), folder:N, stem or stem:REGEX",
            )
        found = photos.column("group")
    events = {event for event in found if event}
    alone = {name: f"{name} (no event)" for name in events}  # photos called as an event is
    return [
        event or alone.get(each.name, each.name) for event, each in zip(found, inputs, strict=True)
    ]


def beside(
    chunks: Iterable[Predictions],
    events: Sequence[str],
    out: Path,
    notice: list[int],
    *,
    spreadsheet: bool = False,
) -> Iterator[Predictions]:
    """Yield the chunks, and in the end write the answer of each event, by its first photo.

    Photos without an answer are left out, and events of such alone. The numbers of events and of
    photos in them go to `notice`. `spreadsheet` is that of `Layout`.
    """
    gathered = Gathered()
    classes: tuple[str, ...] = ()
    done = 0
    for chunk in chunks:
        classes = chunk.classes
        chunk.gather(gathered, events[done : done + len(chunk)])
        done += len(chunk)
        yield chunk
    rows: list[list[str]] = []
    photos = 0
    for event in gathered.events():
        best = np.argsort(-event.probabilities, kind="stable")[:2]
        ranked = zip((classes[n] for n in best), digits(event.probabilities[best]), strict=True)
        cells = [cell for pair in ranked for cell in pair]
        cells = [event.name, str(event.photos), *cells, event.first_photo]
        rows.append([files.no_formula(cell) for cell in cells] if spreadsheet else cells)
        photos += event.photos
    files.write_csv(out, COLUMNS, rows)
    notice += [len(rows), photos]
