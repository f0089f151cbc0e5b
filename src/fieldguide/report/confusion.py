"""The confusion matrix, in an order that groups confused classes, and the most confused pairs.

Knows nothing of how folds are trained, nor of torch.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import altair as alt
import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from fieldguide.analysis.suspects import ConfusedPair, confused_pairs
from fieldguide.report import pictures
from fieldguide.report.curves import COLORS, MERGED_COLOR
from fieldguide.report.judged import Judged, judge
from fieldguide.report.page import figure, fragment, inline
from fieldguide.runs.run import Run

# Classes in the matrix; of more, those with the most confusions. Ordering a thousand takes about a
# second, and each takes a pixel (taste).
DRAWN_CLASSES = 1000

PAIRS = 12  # shown with photos (taste)
SIDE = 128  # of their photos, in pixels
NAME_LENGTH = 60  # letters of a class name
LABEL_LENGTH = 18  # and where it stands beside the matrix
HEIGHT = 620
RANGES = ("moved_left", "moved_top")  # Vega-Lite's signals of the selection `moved`, by its fields

_JOINERS = "\u200c\u200d"  # between letters of Persian and parts of emoji: these are meant


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix without its zeros."""

    order: tuple[int, ...]  # the classes drawn, by number
    cells: tuple[tuple[int, int, int], ...]  # given class, predicted class, photos
    support: tuple[int, ...]  # photos of every class
    left_out: int  # classes that are not drawn


@dataclass(frozen=True)
class Example:
    """A photo of class `given` that was predicted as `predicted`, by its number in the catalog."""

    row: int
    given: int
    predicted: int
    probability: float


# --- numbers --------------------------------------------------------------------------------------


def matrix(known: Judged, most: int = DRAWN_CLASSES) -> Matrix:
    """Return the confusion matrix with at most `most` classes, in the order of `seriated`."""
    classes = known.probabilities.shape[1]
    ways = known.targets * classes + known.predicted
    numbers, counts = np.unique(ways, return_counts=True)
    given, predicted = np.divmod(numbers, classes)
    wrong = np.where(given == predicted, 0, counts)
    of_class = np.bincount(given, wrong, classes) + np.bincount(predicted, wrong, classes)
    drawn = np.sort(np.argsort(-of_class, kind="stable")[:most])
    place = np.full(classes, -1)
    place[drawn] = np.arange(len(drawn))
    within = (place[given] >= 0) & (place[predicted] >= 0)
    given, predicted, counts = given[within], predicted[within], counts[within]
    similar = np.zeros((len(drawn), len(drawn)))
    np.add.at(similar, (place[given], place[predicted]), counts)
    order = drawn[seriated(similar + similar.T)]
    return Matrix(
        order=tuple(order.tolist()),
        cells=tuple(zip(given.tolist(), predicted.tolist(), counts.tolist(), strict=True)),
        support=tuple(np.bincount(known.targets, minlength=classes).tolist()),
        left_out=classes - len(drawn),
    )


def seriated(similar: Float[np.ndarray, "n n"]) -> Int[np.ndarray, " n"]:
    """Return an order of things in which similar ones stand together.

    Groups are joined by average linkage (Sokal and Michener, 1958), the most similar two first, at
    their most similar ends, as in Gruvaeus and Wainer, "Two Additions to Hierarchical Cluster
    Analysis", 1972. Things similar to nothing come last; ties go to the lower numbers. `similar` is
    symmetric and not negative; its diagonal does not count. On nature100 it puts half of all
    confusions next to the diagonal, the Fiedler vector of the same graph a fifth.
    """
    count = len(similar)
    link = similar.astype(np.float64)
    np.fill_diagonal(link, 0)
    between, sizes = link.copy(), np.ones(count)
    orders: dict[int, list[int]] = {number: [number] for number in range(count)}
    while count and between.max() > 0:
        one, other = sorted(divmod(int(between.argmax()), count))
        orders[one] = _end_to_end(orders[one], orders.pop(other), link)
        joined = sizes[one] * between[one] + sizes[other] * between[other]
        joined /= sizes[one] + sizes[other]
        joined[one] = 0
        between[one], between[:, one] = joined, joined
        between[other], between[:, other] = 0, 0
        sizes[one] += sizes[other]
    groups = sorted(orders.values(), key=lambda group: (-len(group), min(group)))
    return np.array([number for group in groups for number in group], dtype=np.int64)


def example(known: Judged, given: int, predicted: int) -> Example | None:
    """Return the photo of class `given` that best shows a confusion with `predicted`.

    It is the most confident one that was predicted so; without any, the most confident correct one,
    else the most confident one. None if the class has no photo.
    """
    own = np.flatnonzero(known.targets == given)
    answers = known.predicted[own]
    for chosen in (own[answers == predicted], own[answers == given], own):
        if len(chosen):
            best = chosen[known.probabilities[chosen].max(axis=1).argmax()]
            answer = int(known.predicted[best])
            probability = float(known.probabilities[best, answer])
            return Example(int(known.photos[best]), given, answer, probability)
    return None


def legible(name: str, length: int = NAME_LENGTH) -> str:
    """Return a class name for a chart: one line, at most `length` letters wide, all visible.

    Characters without a glyph or that turn the direction of the text become `�`. Chinese letters
    and emoji are two wide.
    """
    line = "".join(
        "�" if unicodedata.category(letter).startswith("C") and letter not in _JOINERS else letter
        for letter in " ".join(name.split())
    )
    ends = list(accumulate(1 + (unicodedata.east_asian_width(each) in "WF") for each in line))
    if not ends or ends[-1] <= length:
        return line
    return f"{line[: bisect_right(ends, length - 1)]}…"


def _end_to_end(one: list[int], other: list[int], link: Float[np.ndarray, "n n"]) -> list[int]:
    """Join both, each reversed or not, so that the most similar ends meet."""
    ways = [(one, other), (one, other[::-1]), (one[::-1], other), (one[::-1], other[::-1])]
    first, second = max(ways, key=lambda way: link[way[0][-1], way[1][0]])  # the first of equals
    return first + second


# --- the chart ------------------------------------------------------------------------------------


def chart(found: Matrix, classes: Sequence[str], *, letters: int = LABEL_LENGTH) -> alt.LayerChart:
    """Draw the matrix, with names cut to `letters`; correct cells have another colour.

    Positions are numbers, so that it can be enlarged.
    """
    place = {number: position for position, number in enumerate(found.order)}
    names = [legible(classes[number]) for number in found.order]
    labels = [legible(classes[number], letters) for number in found.order]
    values = [
        {
            "x": place[predicted],
            "y": place[given],
            "photos": photos,
            "rate": float(f"{photos / found.support[given]:.4g}"),
        }
        for given, predicted, photos in found.cells
    ]
    shown = alt.param(
        name="shown",
        value="photos",
        bind=alt.binding_select(
            options=["photos", "rate"], labels=["photos", "share of the class"], name="Shade by "
        ),
    )
    moved = alt.selection_interval(
        name="moved", bind="scales", encodings=["x", "y"], zoom="wheel![event.shiftKey]"
    )
    right = _cells(len(names), COLORS[0], None).transform_filter("datum.x === datum.y")
    legend = alt.Legend(title="misclassified", orient="top", format=".3~g", tickMinStep=1)
    wrong = _cells(len(names), MERGED_COLOR, legend)
    wrong = wrong.transform_filter("datum.x !== datum.y").add_params(moved)
    drawn: alt.LayerChart = (
        alt.LayerChart(data=inline(values), layer=(right, wrong))
        .add_params(alt.param("names", value=names), alt.param("labels", value=labels), shown)
        .transform_calculate(
            given="names[datum.y]",
            predicted="names[datum.x]",
            value="datum[shown]",
            left="datum.x - 0.5",
            end="datum.x + 0.5",
            top="datum.y - 0.5",
            bottom="datum.y + 0.5",
        )
        .resolve_scale(opacity="independent")
        .properties(height=HEIGHT)
    )
    return drawn


def _cells(count: int, color: str, legend: alt.Legend | None) -> alt.Chart:
    # A fainter cell has fewer photos; the faintest still differs from nothing. Opacity works in
    # light and dark alike, which no scale of colours does. A stroke keeps tiny cells visible.
    opacity = alt.Opacity(
        "value:Q", scale=alt.Scale(type="sqrt", range=[0.4, 1], zero=False), legend=legend
    )
    drawn: alt.Chart = (
        alt.Chart()
        .mark_rect(color=color, stroke=color, strokeWidth=0.6, clip=True)
        .encode(
            x=alt.X("left:Q", scale=_scale(count), axis=_axis("predicted", count, -90)),
            x2="end:Q",
            y=alt.Y("top:Q", scale=_scale(count, reverse=True), axis=_axis("given", count, 0)),
            y2="bottom:Q",
            opacity=opacity,
            tooltip=[
                alt.Tooltip("given:N"),
                alt.Tooltip("predicted:N"),
                alt.Tooltip("photos:Q"),
                alt.Tooltip("rate:Q", title="share of the class", format=".1%"),
            ],
        )
    )
    return drawn


def _scale(count: int, reverse: bool = False) -> alt.Scale:
    return alt.Scale(domain=[-0.5, count - 0.5], nice=False, zero=False, reverse=reverse)


def _axis(title: str, count: int, angle: int) -> alt.Axis:
    return alt.Axis(
        title=title,
        labelExpr="labels[datum.value] || ''",
        labelAngle=angle,
        labelLimit=0,  # Vega would cut an emoji in two, which breaks the drawing as PNG
        labelOverlap="greedy",
        labelFontSize=10,
        tickMinStep=1,
        tickCount=min(count, 200),
        ticks=False,
        grid=False,
    )


# --- the section ----------------------------------------------------------------------------------


def section(run: Run) -> Markup:
    """Return the confusion matrix and the most confused pairs of the folds that are done."""
    if not run.done:
        return fragment("confusion.html", notes=["No fold is done yet: no photo has been judged."])
    known = judge(run)
    pairs = confused_pairs(known.probabilities, known.targets)
    return fragment(
        "confusion.html",
        notes=_notes(run, known, len(pairs)),
        figure=_figure(run, known, pairs),
        pairs=[_pair(run, known, pair) for pair in pairs[:PAIRS]],
        other_pairs=max(0, len(pairs) - PAIRS),
    )


def _notes(run: Run, known: Judged, pairs: int) -> list[str]:
    photos, wrong = len(known.photos), int((known.predicted != known.targets).sum())
    found = (
        f"{wrong:,} of {photos:,} photos are misclassified, in {pairs:,} pairs of classes."
        if wrong
        else f"All {photos:,} photos are classified correctly."
    )
    notes = [f"{found} The fold that did not train on a photo judges it."]
    if len(run.done) < run.recipe.folds:
        notes.append(
            f"{len(run.done)} of {run.recipe.folds} folds are done: only their photos are counted."
        )
    return notes


def _figure(run: Run, known: Judged, pairs: Sequence[ConfusedPair]) -> Markup:
    found = matrix(known)
    few = (
        f" Of {len(run.classes):,} classes, the {len(found.order):,} most confused are drawn."
        if found.left_out
        else ""
    )
    most = "; ".join(_in_words(run, pair) for pair in pairs[:3])
    return figure(
        chart(found, run.classes),
        caption="Rows are given classes, columns predicted ones; confused classes stand side by"
        " side. Blue is correct, orange misclassified; stronger colours mean more photos. Drag to"
        " move, hold the shift key and turn the wheel to enlarge, double-click to reset; or use the"
        f" buttons, or, if one has the focus, the keys +, -, 0 and the arrows.{few}",
        description=f"Confusion matrix of {len(found.order)} classes. "
        + (f"Most confused: {most}." if most else "Nothing was confused."),
        ranges=RANGES,
    )


def _in_words(run: Run, pair: ConfusedPair) -> str:
    one, other = legible(run.classes[pair.one]), legible(run.classes[pair.other])
    return f"{one} and {other}, {pair.photos} photos"


def _pair(run: Run, known: Judged, pair: ConfusedPair) -> Mapping[str, Any]:
    ways = ((pair.one, pair.other), (pair.other, pair.one))
    examples = [example(known, given, predicted) for given, predicted in ways]
    return asdict(pair) | {
        "one": run.classes[pair.one],
        "other": run.classes[pair.other],
        "examples": [_shown_example(run, each) for each in examples if each is not None],
    }


def _shown_example(run: Run, found: Example) -> Mapping[str, Any]:
    photo = run.catalog.photos[found.row]
    given, predicted = run.classes[found.given], run.classes[found.predicted]
    picture = pictures.picture(run.catalog.file(photo), SIDE, sha256=photo.sha256)
    return {
        "image": pictures.image(picture, alt=f"{photo.path}, given {given}, predicted {predicted}"),
        "given": given,
        "predicted": predicted,
        "right": found.given == found.predicted,
        "probability": found.probability,
    }
