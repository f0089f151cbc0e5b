"""The trust that answers deserve: calibration, sets of classes, promises, unknown things.

All is out of fold: temperatures and quantiles are fitted on the other folds.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import altair as alt
import numpy as np
from jaxtyping import Int
from markupsafe import Markup

from fieldguide.analysis import calibration, coverage, metrics, promises
from fieldguide.analysis.conformal import Method
from fieldguide.analysis.coverage import Answered, Coverage
from fieldguide.report.classes import share
from fieldguide.report.judged import Judged, judge
from fieldguide.report.page import figure, fragment, inline, looks
from fieldguide.runs.run import Run
from fieldguide.words import percent

COVERAGES = (0.8, 0.9, 0.95, 0.98, 0.99)  # asked for
LOOKED_AT = (0.1, 0.2, 0.3)  # shares of photos
METHODS: tuple[Method, ...] = ("split", "adaptive")

# Probabilities that sets are computed for: about 3 s. Of a larger collection some photos are drawn.
CELLS = 10_000_000

CLOSE = 0.01  # of confidence and accuracy, on average (taste)

BEFORE, AFTER = "before scaling", "after scaling"


def section(run: Run) -> Markup:
    """Return the calibration of a run, its prediction sets, its promises and its unknown things."""
    if not run.done:
        return fragment("trust.html", photos=0)
    judged = judge(run)
    bins = reliability_bins(judged, run.groups[judged.photos])
    sets, drawn = coverages(judged, seed=run.recipe.seed)
    right = judged.scaled.argmax(axis=1) == judged.targets
    answered = coverage.answered(judged.scaled.max(axis=1), right)
    return fragment(
        "trust.html",
        photos=len(judged.targets),
        folds=run.recipe.folds,
        done=len(run.done),
        scores=run.scores,
        tendency=tendency(judged),
        bins=bins,
        reliability=_reliability_figure(bins, run.scores.calibration_error),
        sets=sets,
        drawn=drawn,
        coverage=_coverage_figure(sets) if sets else "",
        mistakes=int((~right).sum()),
        errors_left=[(share, _left(answered, share)) for share in LOOKED_AT]
        if not right.all()
        else [],
        trust=run.trust,
        answered_at=dict(zip(run.taxonomy.levels, run.trust.kept.levels, strict=True))
        if run.trust.kept
        else {},
        fewest=promises.fewest(run.trust.promise.asked),
        unknown=run.unknown,
        events=run.by_event,
        unit=run.unit,
        answered=_answered_figure(answered),
    )


# --- numbers --------------------------------------------------------------------------------------


def tendency(judged: Judged) -> str:
    """Return whether the networks are over- or underconfident, before scaling."""
    confidence = float(judged.probabilities.max(axis=1).mean())
    accuracy = float((judged.predicted == judged.targets).mean())
    kind = "overconfident" if confidence > accuracy else "underconfident"
    kind = kind if abs(confidence - accuracy) >= CLOSE else "well calibrated on average"
    return f"{kind}: mean confidence {percent(confidence)}, accuracy {percent(accuracy)}"


def reliability_bins(judged: Judged, groups: Int[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Return bins of confidence with their accuracy and its interval, before and after scaling."""
    rows = []
    for kind, probabilities in ((BEFORE, judged.probabilities), (AFTER, judged.scaled)):
        found = calibration.reliability(probabilities, judged.targets)
        bin_of = metrics.confidence_bins(probabilities.max(axis=1), len(found.photos))
        correct = probabilities.argmax(axis=1) == judged.targets
        for number in np.flatnonzero(found.photos).tolist():
            photos = int(found.photos[number])
            own = bin_of == number
            right = share(correct[own], groups[own])
            assert right is not None
            rows.append(
                {
                    "kind": kind,
                    "confidence": float(found.confidence[number]),
                    "accuracy": right.value,
                    "low": right.low,
                    "high": right.high,
                    "photos": photos,
                }
            )
    return rows


def coverages(judged: Judged, *, seed: int) -> tuple[dict[str, list[Coverage]], int]:
    """Return coverage and size of prediction sets by method, and the number of photos measured."""
    photos, classes = judged.logits.shape
    rows = np.arange(photos)
    if judged.logits.size > CELLS:
        drawn = np.random.default_rng(seed).permutation(photos)
        rows = np.sort(drawn[: max(CELLS // classes, 1)])
    found = {
        method: coverage.out_of_fold(
            judged.logits[rows],
            judged.targets[rows],
            judged.fold_of[rows],
            coverages=COVERAGES,
            method=method,
        )
        for method in METHODS
    }
    return {method: values for method, values in found.items() if values}, len(rows)


def _left(found: Answered, looked_at: float) -> float:
    """Return the share of mistakes that are left when so many of the least sure are looked at."""
    wrong = found.share * (1 - found.accuracy)
    return float(np.interp(1 - looked_at, found.share, wrong) / wrong[-1])


# --- charts ---------------------------------------------------------------------------------------


def reliability_chart(bins: Sequence[dict[str, Any]]) -> alt.TopLevelMixin:
    """Draw accuracy against confidence with intervals, and the diagonal of perfect calibration."""
    unit = alt.Scale(domain=[0, 1])
    kind = looks("kind:N", [BEFORE, AFTER])
    diagonal = (
        alt.Chart(inline([{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
        .mark_line(strokeDash=[4, 4], opacity=0.6, color="gray")
        .encode(x=alt.X("x:Q", scale=unit), y=alt.Y("y:Q", scale=unit))
    )
    base = alt.Chart(inline(bins)).encode(
        x=alt.X("confidence:Q", scale=unit, axis=alt.Axis(format="%"), title="confidence"),
        color=kind["color"],
        tooltip=[
            alt.Tooltip("kind:N", title="probabilities"),
            alt.Tooltip("photos:Q", format=","),
            alt.Tooltip("confidence:Q", format=".1%", title="mean confidence"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%", title="at least"),
            alt.Tooltip("high:Q", format=".1%", title="at most"),
        ],
    )
    accuracy = alt.Y("accuracy:Q", scale=unit, axis=alt.Axis(format="%"), title="accuracy")
    intervals = base.mark_rule(strokeOpacity=0.6).encode(y=alt.Y("low:Q", scale=unit), y2="high:Q")
    lines = base.mark_line(strokeWidth=1.5).encode(y=accuracy)
    points = base.mark_point(filled=True, opacity=1).encode(
        y=accuracy,
        shape=kind["shape"],
        size=alt.Size("photos:Q", scale=alt.Scale(type="sqrt", range=[25, 350]), legend=None),
    )
    return alt.layer(diagonal, intervals, lines, points).properties(height=340)


def coverage_chart(rows: Sequence[dict[str, Any]]) -> alt.TopLevelMixin:
    """Draw the coverage reached against the mean size of sets, a line for each method."""
    method = looks("method:N", METHODS, title="sets")
    scale = alt.Scale(zero=False, padding=14, nice=False)
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("size:Q", scale=scale, title="mean classes in a set"),
        y=alt.Y("held:Q", scale=scale, axis=alt.Axis(format=".0%"), title="coverage reached"),
        color=method["color"],
        tooltip=[
            alt.Tooltip("method:N", title="sets"),
            alt.Tooltip("asked:Q", format=".0%", title="coverage asked"),
            alt.Tooltip("held:Q", format=".1%", title="coverage reached"),
            alt.Tooltip("size:Q", format=".2f", title="classes"),
            alt.Tooltip("empty:Q", format=".1%"),
            alt.Tooltip("single:Q", format=".1%", title="one class"),
        ],
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(shape=method["shape"])
    return alt.layer(base.mark_line(strokeWidth=1.5), points).properties(height=300)


def answered_chart(found: Answered) -> alt.TopLevelMixin:
    """Draw the accuracy on the most confident photos against their share."""
    names = ("share", "accuracy", "confidence")
    columns = [getattr(found, name).tolist() for name in names]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    drawn: alt.TopLevelMixin = (
        alt.Chart(inline(rows))
        .mark_line(point={"size": 14, "filled": True})
        .encode(
            x=alt.X(
                "share:Q",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%"),
                title="share of photos answered, the most confident first",
            ),
            y=alt.Y(
                "accuracy:Q",
                scale=alt.Scale(zero=False, domainMax=1),
                axis=alt.Axis(format=".1~%"),
                title="accuracy",
            ),
            tooltip=[
                alt.Tooltip("share:Q", format=".1%", title="answered"),
                alt.Tooltip("accuracy:Q", format=".2%"),
                alt.Tooltip("confidence:Q", format=".1%", title="confidence at least"),
            ],
        )
        .properties(height=260)
    )
    return drawn


def _reliability_figure(bins: Sequence[dict[str, Any]], error: float) -> str:
    return figure(
        reliability_chart(bins),
        caption="On the dashed line, confidence equals accuracy; below it, networks are"
        " overconfident. Vertical lines are 95 % intervals; larger points stand"
        " for more photos.",
        description="Reliability diagram: accuracy against confidence, before and after temperature"
        f" scaling. The calibration error before is {error:.3f}. The numbers are in the table that"
        " follows.",
    )


def _coverage_figure(sets: dict[str, list[Coverage]]) -> str:
    rows = [
        {"method": method} | asdict(found) for method, values in sets.items() for found in values
    ]
    asked = ", ".join(percent(value, 0) for value in COVERAGES)
    return figure(
        coverage_chart(rows),
        caption=f"Each point is a coverage asked for: {asked}.",
        description="Coverage of prediction sets against their mean size, for two methods. The"
        " numbers are in the table that follows.",
    )


def _answered_figure(found: Answered) -> str:
    return figure(
        answered_chart(found),
        caption="Photos are answered in the order of their scaled confidence; less confident ones"
        " are left to an expert.",
        description="Accuracy against the share of photos answered, the most confident first: it"
        f" is {percent(float(found.accuracy[-1]))} if all are answered.",
    )
