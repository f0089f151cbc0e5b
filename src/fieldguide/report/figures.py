"""The figures for papers as PNG and SVG, on white, in the page's initial view.

Knows nothing of the page.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import altair as alt
import vl_convert

from fieldguide.errors import ResourceError
from fieldguide.report import confusion, curves
from fieldguide.report.judged import judge
from fieldguide.runs.run import Run
from fieldguide.storage import files

Chart: TypeAlias = alt.HConcatChart | alt.LayerChart

KINDS = ("png", "svg")  # endings of a figure's files
SCALE = 2  # pixels of a PNG for each of the figure's
PANEL = 420  # width of a panel of curves
LEAST_MATRIX = 480  # side of a matrix of few classes
CLASS = 12  # pixels of the matrix for each class, so that all names can be read …
MOST_MATRIX = 2400  # … up to two hundred of them


def save(run: Run, folder: Path) -> list[Path]:
    """Write `learning-curves` and `confusion` as PNG and SVG into `folder`; return their paths.

    Raises `UsageError` if one of them exists, and `ResourceError` if no fold is done.
    """
    if not run.done:
        raise ResourceError(
            f"no fold of `{run.folder}` is trained yet", hint="the same fit command resumes it"
        )
    return write(
        {"learning-curves": curves_figure(run), "confusion": confusion_figure(run)}, folder
    )


def write(
    charts: Mapping[str, Chart], folder: Path, tables: Mapping[str, bytes] = MappingProxyType({})
) -> list[Path]:
    """Write charts, by name, as PNG and SVG, and tables, by file name; return their paths.

    Raises `UsageError` if one of them exists, before any is written.
    """
    places = [folder / f"{name}.{kind}" for name in charts for kind in KINDS]
    places += [folder / name for name in tables]
    files.require_new(*places, hint="name another folder")
    files.make_folder(folder)
    for name, chart in charts.items():
        for kind, content in drawn(chart).items():
            files.write_bytes(folder / f"{name}.{kind}", content)
    for name, table in tables.items():
        files.write_bytes(folder / name, table)
    return places


def drawn(chart: Chart) -> dict[str, bytes]:
    """Return a chart that has a width as files for papers, by the endings `KINDS`."""
    styled = (  # black on white, in letters that are legible at half the size
        chart.configure(background="white", font="Helvetica, Arial, sans-serif")
        .configure_axis(labelFontSize=13, titleFontSize=14, titleFontWeight="normal")
        .configure_legend(labelFontSize=13, titleFontSize=14, symbolSize=90, labelLimit=360)
    )
    spec = json.dumps(styled.to_dict())
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return {
        "png": vl_convert.vegalite_to_png(spec, vl_version=version, scale=SCALE),
        "svg": vl_convert.vegalite_to_svg(spec, vl_version=version).encode(),
    }


def curves_figure(run: Run) -> alt.HConcatChart:
    """Draw loss and accuracy by epoch side by side, the mean of the folds with its band."""
    found = curves.read(run)
    panels = (curves.loss_chart(found), curves.accuracy_chart(found))
    return alt.hconcat(*(panel.properties(width=PANEL) for panel in panels), spacing=40)


def confusion_figure(run: Run) -> alt.LayerChart:
    """Draw the confusion matrix with the names of all classes, up to two hundred."""
    found = confusion.matrix(judge(run))
    side = min(MOST_MATRIX, max(LEAST_MATRIX, CLASS * len(found.order)))
    return confusion.chart(found, run.classes, letters=40).properties(width=side, height=side)
