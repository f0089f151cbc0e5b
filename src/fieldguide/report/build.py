"""The report of a run: one page that needs no network, with a section for each topic.

A run may be unfinished or failed, its photos gone: a section then says what is missing. An error in
one section is shown in its place, beside the other sections.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup

from fieldguide.errors import FieldguideError
from fieldguide.report import (
    classes,
    collection,
    confusion,
    curves,
    merging,
    mistakes,
    page,
    repeat,
    trust,
    verdict,
)
from fieldguide.report.page import Section
from fieldguide.runs.run import Run
from fieldguide.storage import files

REPORT = "report.html"


@dataclass(frozen=True)
class Topic:
    """A section to make: its anchor, its heading, and the function that makes its content."""

    id: str
    title: str
    make: Callable[[Run], Markup]


def topics(heat_maps: bool = True, folder: Path | None = None) -> tuple[Topic, ...]:
    """Return the topics in their order, for a page in `folder`, or in the run's."""
    galleries = partial(mistakes.section, heat_maps=heat_maps, folder=folder)
    return (
        Topic("verdict", "Verdict", verdict.section),
        Topic("curves", "Learning curves", curves.section),
        Topic("merging", "Merging", merging.section),
        Topic("confusion", "Confusion", confusion.section),
        Topic("classes", "Classes", classes.section),
        Topic("mistakes", "Mistakes", galleries),
        Topic("trust", "Trust", trust.section),
        Topic("collection", "Collection", collection.section),
        Topic("repeat", "To repeat this", repeat.section),
    )


def build(
    run: Run,
    out: Path | None = None,
    *,
    heat_maps: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the report (RUN/report.html, or `out`) whole or not at all; return its path.

    For `heat_maps` the folds' weights see photos again. `progress` is called with the number of
    sections made. Raises `ResourceError` if the file cannot be written.
    """
    place = out if out is not None else run.folder / REPORT
    sections = []
    for topic in topics(heat_maps, place.parent):
        try:
            body = topic.make(run)
        except FieldguideError as error:
            body = page.fragment("failed.html", message=error.message, hint=error.hint)
        sections.append(Section(topic.id, topic.title, body))
        if progress is not None:
            progress(len(sections))
    title = f"Report of the run {run.folder.resolve().name}"
    whole = page.page(title, sections, page.chart_libraries())
    # What UTF-8 cannot hold, a byte of a file name, becomes `\xff` as in tables.
    shown = whole.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    files.write_text(place, shown)
    return place
