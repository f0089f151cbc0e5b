"""The list of known forms, in the order in which they are tried."""

from pathlib import Path

from fieldguide.errors import UsageError
from fieldguide.photos.forms import (
    camera_tables,
    camtrap_dp,
    camtraptools,
    coco,
    darwin_core,
    hf_metadata,
    json_sets,
    kaggle,
    labelled_sets,
    labelling,
    sets,
)
from fieldguide.photos.forms.form import Form, Known, with_events, without_videos
from fieldguide.photos.groups import gap_of
from fieldguide.words import listed

KNOWN: tuple[Known, ...] = (  # a form before those that would take it too
    *json_sets.FORMS,
    *camtrap_dp.FORMS,
    *camtraptools.FORMS,
    *camera_tables.FORMS,
    *coco.FORMS,
    *labelling.FORMS,
    *labelled_sets.FORMS,
    *sets.FORMS,
    *darwin_core.FORMS,
    *hf_metadata.FORMS,
    *kaggle.FORMS,
)


def find(
    place: Path,
    name: str | None = None,
    *,
    boxes: bool = False,
    event_gap: float | None = None,
) -> Form | None:
    """Return the source as the form of that name, or the first that it is of; None if it is none.

    `plain` is no form. With `boxes`, of a form that has boxes, it has a row for each of them.
    Photos of one place, each within `event_gap` seconds of the one before, are an event where a
    timed form names none. Raises UsageError for an unknown name and a source that is not of the
    form.
    """
    if name == "plain":
        return None
    names = [known.name for known in KNOWN]
    if name is not None and name not in names:
        raise UsageError(f"there is no format `{name}`", hint=f"one of {listed(['plain', *names])}")
    for known in KNOWN:
        if name in (None, known.name):
            asked = {"boxes": True} if boxes and known.boxed else {}
            if (form := known.read(place, **asked)) is not None:
                return with_events(without_videos(form), gap_of(event_gap))
    if name is not None:
        raise UsageError(f"{place} is not in the format `{name}`")
    return None
