"""The figures of a run for papers: learning curves and confusion matrix as PNG and SVG.

On a white background, in letters of 12 points or more, with what the page shows at first: the mean
of the folds, numbers of photos. Knows nothing of the page.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from fieldguide import files
from fieldguide.errors import ResourceError, UsageError
from fieldguide.report import confusion, curves
from fieldguide.runs import Run

SCALE = 2  # pixels of a PNG for each of the figure's
PANEL = 420  # width of a panel of curves
LEAST_MATRIX = 480  # side of a matrix of few classes
CLASS = 12  # pixels of the matrix for each class, so that all names can be read …
MOST_MATRIX = 2400  # … up to two hundred of them


def save(run: Run, folder: Path) -> list[Path]:
    """Writes `learning-curves` and `confusion`, each as PNG and SVG, into `folder`; their paths.

    Raises `UsageError` where one of them is there already, before any is written; `ResourceError`
    where no fold is done.
    """
    if not run.done:
        raise ResourceError(
            f"no fold of `{run.folder}` is trained yet", hint="the same fit command goes on with it"
        )
    names = ("learning-curves", "confusion")
    places = [folder / f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    there = [place for place in places if place.exists()]
    if there:
        raise UsageError(f"`{there[0]}` is there already", hint="name another folder")
    files.make_folder(folder)
    for place, content in zip(places, _contents(run), strict=True):
        files.write_bytes(place, content)
    return places


def curves_figure(run: Run) -> alt.HConcatChart:
    """Loss and accuracy by epoch side by side, the mean of the folds with its band."""
    found = curves.read(run)
    panels = (curves.loss_chart(found), curves.accuracy_chart(found))
    return alt.hconcat(*(panel.properties(width=PANEL) for panel in panels), spacing=40)


def confusion_figure(run: Run) -> alt.LayerChart:
    """The confusion matrix with the names of all classes, up to two hundred."""
    found = confusion.matrix(confusion.judged(run))
    side = min(MOST_MATRIX, max(LEAST_MATRIX, CLASS * len(found.order)))
    return confusion.chart(found, run.classes, letters=40).properties(width=side, height=side)


def _contents(run: Run) -> Iterator[bytes]:
    """Each figure as PNG and as SVG."""
    for figure in (curves_figure(run), confusion_figure(run)):
        spec = json.dumps(_for_paper(figure))
        version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
        yield vl_convert.vegalite_to_png(spec, vl_version=version, scale=SCALE)
        yield vl_convert.vegalite_to_svg(spec, vl_version=version).encode()


def _for_paper(figure: alt.HConcatChart | alt.LayerChart) -> dict[str, Any]:
    """Black on white, in letters that can still be read at half the size."""
    styled: dict[str, Any] = (
        figure.configure(background="white", font="Helvetica, Arial, sans-serif")
        .configure_axis(labelFontSize=13, titleFontSize=14, titleFontWeight="normal")
        .configure_legend(labelFontSize=13, titleFontSize=14, symbolSize=90)
        .to_dict()
    )
    return styled
