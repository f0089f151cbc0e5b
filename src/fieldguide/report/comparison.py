"""A comparison of recipes as a page and as figures: the table, accuracy by epoch, the differences.

`compare.results` fills in the records. Knows nothing of photos or how trials are trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import altair as alt
from markupsafe import Markup

from fieldguide.analysis.paired import LEVEL, Contrast
from fieldguide.report import curves, figures, page
from fieldguide.report.curves import Mean
from fieldguide.report.page import Section, figure, fragment, inline, looks, rounded
from fieldguide.storage import files
from fieldguide.words import duration, listed, percent

TITLE = "Comparison"
BASE = "base"  # the name of the base, unless it is an experiment of its own
PREPARED = "prepared.json"  # the file that marks the folder of a comparison
PAGE = "compare.html"
FIGURE = "compare"  # .png and .svg: accuracy by epoch
DIFFERENCES = "differences"

Status = Literal["complete", "unfinished", "failed", "not begun"]

LETTERS = 44  # of a trial's name in charts and the table; the list has all of it (taste)
HEIGHT = 380
ROW = 30  # pixels of a difference
WIDTH = 760  # of the figures for papers

# Of Okabe and Ito. Six colours and seven shapes: no two of 42 trials look alike.
COLORS = (curves.MERGED_COLOR, *curves.COLORS)
SHAPES = (
    *("diamond", "square", "triangle-up", "triangle-down", "cross"),
    *("triangle-right", "triangle-left"),
)
BETTER, WORSE = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Row:
    """A trial; values not known yet are None.

    `changes` are from the base; `folder`, of its first seed, lies in the comparison's. Accuracy,
    its 95 % interval and log loss are over the folds that are done, and means over seeds, whose
    own are `accuracies`; `folds` and `seconds` are those of all seeds; `contrast` is of two
    complete trials.
    """

    name: str
    changes: Mapping[str, Any]
    folder: str
    status: Status
    folds: int = 0
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    accuracies: tuple[float, ...] = ()
    log_loss: float | None = None
    seconds: float | None = None
    contrast: Contrast | None = None
    note: str = ""


@dataclass(frozen=True)
class Winner:
    """The most accurate complete trial, of a number of `trials`.

    `accuracy` is optimistic; `corrected` is `analysis.paired.bias_corrected_best`.
    """

    name: str
    accuracy: float
    corrected: float
    trials: int


@dataclass(frozen=True)
class Comparison:
    """The trials on the same photos and folds, the base first.

    `curves` are the merged models' test accuracies, with the first seed; `stop` is the base's
    choice of epochs; each trial is trained with so many `seeds`.
    """

    rows: tuple[Row, ...]
    photos: int
    groups: int
    folds: int
    seeds: int = 1
    stop: str = "none"
    curves: Mapping[str, tuple[Mean, ...]] = field(default_factory=dict)
    winner: Winner | None = None
    notes: tuple[str, ...] = ()


def build(comparison: Comparison, folder: Path) -> Path:
    """Write compare.html, compare.png and compare.svg into `folder`; return the page's path."""
    chart = charts(comparison).get(FIGURE)
    if chart is not None:
        for kind, content in figures.drawn(chart).items():
            files.write_bytes(folder / f"{FIGURE}.{kind}", content)
    return write_page(comparison, folder)


def write_page(comparison: Comparison, folder: Path, out: Path | None = None) -> Path:
    """Write the page of the comparison in `folder`, there or as `out`; return its path."""
    title = f"Comparison of recipes: {folder.resolve().name}"
    place = out if out is not None else folder / PAGE
    shown = Section("comparison", TITLE, section(comparison))
    files.write_text(place, page.page(title, [shown], page.chart_libraries()))
    return place


def section(comparison: Comparison) -> Markup:
    """Return the content of the page's only section."""
    return fragment(
        "comparison.html",
        of=comparison,
        lead=lead(comparison),
        warning=warning(comparison),
        luck=luck(comparison),
        lines=[_line(row, row is comparison.rows[0]) for row in comparison.rows],
        epochs=_epochs_figure(comparison),
        differences=_differences_figure(comparison),
        level=LEVEL,
        lengths={means[-1].epoch for means in comparison.curves.values() if means},
    )


# --- words ----------------------------------------------------------------------------------------


def lead(comparison: Comparison) -> str:
    """Return the result in a few sentences."""
    base, *others = comparison.rows
    if base.accuracy is None or base.status != "complete":
        return f"{_base(base)} is not complete yet, so nothing can be compared with it."
    said = f"{_base(base)} classifies {percent(base.accuracy)} of photos correctly."
    compared = [(_short(row.name), row.contrast) for row in others if row.contrast]
    alike = [name for name, found in compared if found.verdict == "no difference shown"]
    if not compared:
        return f"{said} No other trial is complete yet."
    if len(alike) == len(compared):
        which = "the other trial" if len(alike) == 1 else f"any of {len(alike)} other trials"
        return f"{said} No difference from it is shown for {which}."
    parts = [
        f"Shown to be {verdict}: {listed(named)}."
        for verdict in ("better", "worse")
        if (
            named := [
                f"{name} ({signed(found.difference)} points)"
                for name, found in compared
                if found.verdict == verdict
            ]
        )
    ]
    if len(alike) < len(compared) and comparison.seeds == 1:
        parts.append("A difference may be a seed's: --seeds 3 tests over seeds too.")
    parts += [f"No difference is shown for {listed(alike)}."] if alike else []
    return " ".join([said, *parts])


def warning(comparison: Comparison) -> str:
    """Return a warning that the winner's own score is optimistic, and the corrected one."""
    winner = comparison.winner
    if winner is None:
        return ""
    return (
        f"The trial {_short(winner.name)} is the most accurate of {winner.trials}. Its own"
        f" {percent(winner.accuracy)} is optimistic, as it was chosen on the same photos. The"
        f" accuracy of such a choice on other photos is {percent(winner.corrected)} (bias-corrected"
        " by bootstrap)."
    )


def luck(comparison: Comparison) -> str:
    """Return how much the base depends on its seed, if it has several; else nothing."""
    found = comparison.rows[0].accuracies
    if len(found) < 2:
        return ""
    return (
        f"With {len(found)} seeds the base classifies {percent(min(found))} to"
        f" {percent(max(found))} of photos correctly; the tests allow for that."
    )


def signed(difference: float, digits: int = 1) -> str:
    """Return a difference of shares in percentage points, such as `+2.1` or `−0.3`."""
    text = f"{100 * difference:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def shown_p(p: float) -> str:
    """Return a p-value with the digits that matter."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _base(base: Row) -> str:
    return "The base" if base.name == BASE else f"The base, {base.name},"


def _line(row: Row, is_base: bool) -> dict[str, Any]:
    """Return a row of the table as texts, with dashes for unknown values."""
    contrast = row.contrast
    return {
        "row": row,
        "name": _short(row.name),
        "base": is_base,
        "accuracy": _or_dash(row.accuracy, percent),
        "interval": " to ".join(map(percent, row.interval)) if row.interval else "–",
        "log_loss": _or_dash(row.log_loss, lambda value: f"{value:.3f}"),
        "seconds": _or_dash(row.seconds, duration),
        "difference": signed(contrast.difference) if contrast else "–",
        "range": f"{signed(contrast.low)} to {signed(contrast.high)}" if contrast else "–",
        "p": shown_p(contrast.p) if contrast else "–",
        "adjusted": shown_p(contrast.adjusted) if contrast else "–",
        "verdict": "base" if is_base else (contrast.verdict if contrast else "–"),
    }


def _or_dash(value: float | None, show: Any) -> str:
    return "–" if value is None else str(show(value))


# --- charts ---------------------------------------------------------------------------------------


def labels(rows: Sequence[Row], folds: int) -> dict[str, str]:
    """Return short, distinct names of the trials for charts, with the folds that are done."""
    found: dict[str, str] = {}
    for row in rows:
        short = _short(row.name)
        label, number = short, 1
        while label in found.values():
            number += 1
            label = f"{short} ({number})"
        part = f" ({row.folds} of {folds} folds)" if 0 < row.folds < folds else ""
        found[row.name] = label + part
    return found


def _short(name: str) -> str:
    plain = " ".join(name.split()) or "–"
    return plain if len(plain) <= LETTERS else f"{plain[: LETTERS - 1]}…"


def epochs_chart(comparison: Comparison) -> alt.LayerChart:
    """Draw the accuracy of every trial's merged model by epoch; no width of its own."""
    names = labels(comparison.rows, comparison.folds * comparison.seeds)
    drawn = [row for row in comparison.rows if comparison.curves.get(row.name)]
    values: list[dict[str, Any]] = [
        {
            "trial": names[row.name],
            "epoch": mean.epoch,
            "accuracy": rounded(mean.mean),
            "low": rounded(mean.low),
            "high": rounded(mean.high),
            "folds": mean.folds,
        }
        for row in drawn
        for mean in comparison.curves[row.name]
    ]
    shown = [value["epoch"] for value in values]
    x = curves.epochs(max(shown), min(1, *shown))  # a trial without training has its start, 0
    y = alt.Y(
        "accuracy:Q",
        scale=alt.Scale(zero=False, padding=12),
        axis=alt.Axis(title="accuracy on test photos", format=".1~%", tickCount=7),
    )
    look = _looks([names[row.name] for row in drawn], names[comparison.rows[0].name])
    chosen = alt.selection_point(name="chosen", fields=["trial"], bind="legend")
    seen = alt.condition(chosen, alt.value(1.0), alt.value(0.15))
    base = alt.Chart().encode(x=x, y=y, color=look["color"], opacity=seen)
    thick = alt.condition(
        alt.datum.trial == names[comparison.rows[0].name], alt.value(3.5), alt.value(1.8)
    )
    lines = base.mark_line().encode(strokeWidth=thick)
    points = base.mark_point(filled=True, size=60).encode(
        shape=look["shape"],
        tooltip=[
            alt.Tooltip("trial:N"),
            alt.Tooltip("epoch:Q", format="d"),
            alt.Tooltip("accuracy:Q", format=".2%"),
            alt.Tooltip("low:Q", title="lowest fold", format=".2%"),
            alt.Tooltip("high:Q", title="highest fold", format=".2%"),
            alt.Tooltip("folds:Q", format="d"),
        ],
    )
    layers = (lines, points.add_params(chosen))
    return alt.LayerChart(data=inline(values), layer=layers, height=HEIGHT)


def differences_chart(comparison: Comparison) -> alt.LayerChart:
    """Draw each difference from the base with its interval; no width of its own."""
    names = labels(comparison.rows, comparison.folds * comparison.seeds)
    values = [
        {
            "trial": names[row.name],
            "difference": 100 * row.contrast.difference,
            "low": 100 * row.contrast.low,
            "high": 100 * row.contrast.high,
            "p": shown_p(row.contrast.adjusted),
            "verdict": row.contrast.verdict,
        }
        for row in comparison.rows
        if row.contrast
    ]
    verdicts = ["better", "worse", "no difference shown"]
    colors = [BETTER, WORSE, curves.NEUTRAL]
    look = looks("verdict:N", verdicts, colors, ["triangle-right", "triangle-left", "circle"])
    tooltip = [
        alt.Tooltip("trial:N"),
        alt.Tooltip("verdict:N"),
        alt.Tooltip("difference:Q", title="points", format="+.2f"),
        alt.Tooltip("low:Q", title="95 % from", format="+.2f"),
        alt.Tooltip("high:Q", title="to", format="+.2f"),
        alt.Tooltip("p:N", title="adjusted p"),
    ]
    y = alt.Y(
        "trial:N",
        sort=[names[row.name] for row in comparison.rows if row.contrast],
        axis=alt.Axis(title=None, labelLimit=240, labelPadding=6, ticks=False, domain=False),
    )
    # With a sign, but for zero.
    shown = "(datum.value > 0 ? '+' : '') + format(datum.value, '~g')"
    axis = alt.Axis(title="difference, percentage points", labelExpr=shown, tickCount=8)
    x = alt.X("low:Q", axis=axis, scale=alt.Scale(padding=16))
    base = alt.Chart().encode(y=y, color=look["color"], tooltip=tooltip)
    zero = alt.Chart(inline([{"zero": 0}])).mark_rule(strokeDash=[4, 3], opacity=0.8)
    layers = (
        zero.encode(x="zero:Q", color=alt.value(curves.NEUTRAL)),
        base.mark_rule(strokeWidth=2.5).encode(x=x, x2="high:Q"),
        base.mark_point(filled=True, size=130, opacity=1).encode(
            x="difference:Q", shape=look["shape"]
        ),
    )
    return alt.LayerChart(data=inline(values), layer=layers, height=ROW * len(values) + 20)


def charts(comparison: Comparison) -> dict[str, alt.LayerChart]:
    """Return the charts by the name of their file, with a width for papers."""
    found = {}
    if any(comparison.curves.values()):
        found[FIGURE] = epochs_chart(comparison)
    if any(row.contrast for row in comparison.rows):
        found[DIFFERENCES] = differences_chart(comparison)
    return {name: chart.properties(width=WIDTH) for name, chart in found.items()}


def _looks(names: Sequence[str], base: str) -> dict[str, Any]:
    """Return colour and shape of each trial, in one legend; the base is a grey circle."""
    others = [name for name in names if name != base]
    marks = {
        name: (COLORS[n % len(COLORS)], SHAPES[n % len(SHAPES)]) for n, name in enumerate(others)
    }
    colors, shapes = zip(
        *(marks.get(name, (curves.NEUTRAL, "circle")) for name in names), strict=True
    )
    return looks("trial:N", names, colors, shapes, columns=3, labelLimit=220)


def _epochs_figure(comparison: Comparison) -> Markup | None:
    if not any(comparison.curves.values()):
        return None
    ends = [
        f"{row.name}: {percent(means[-1].mean)}"
        for row in comparison.rows
        if (means := comparison.curves.get(row.name))
    ]
    first = " with the first seed" if comparison.seeds > 1 else ""
    return figure(
        epochs_chart(comparison),
        caption="Accuracy of the merged model on test photos by epoch, the mean of the folds"
        f"{first}. The base is grey and thick. Choose a trial in the legend to see it alone.",
        description="Line chart of accuracy by epoch, a line for each trial. At the last epoch:"
        f" {'; '.join(ends)}.",
    )


def _differences_figure(comparison: Comparison) -> Markup | None:
    compared = [(row.name, row.contrast) for row in comparison.rows if row.contrast]
    if not compared:
        return None
    said = [
        f"{name}: {signed(found.difference)} ({signed(found.low)} to {signed(found.high)}),"
        f" {found.verdict}"
        for name, found in compared
    ]
    return figure(
        differences_chart(comparison),
        caption="Difference of each trial from the base on the same photos, with 95 % intervals.",
        description=f"Differences in percentage points: {'; '.join(said)}.",
    )
