"""How far to trust a confidence: reliability, sets of classes, and answering only when sure.

All of it out of fold, and what is fitted (temperature, quantiles) is fitted on the other folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from jaxtyping import Bool, Float, Int

from fieldguide.analysis import calibration, coverage, metrics
from fieldguide.analysis.conformal import Method
from fieldguide.analysis.coverage import Answered, Coverage
from fieldguide.analysis.metrics import Scores
from fieldguide.report.classes import share
from fieldguide.report.page import Section, figure, fragment, inline, percent
from fieldguide.runs.run import Run

TITLE = "Trust"

COVERAGES = (0.8, 0.9, 0.95, 0.98, 0.99)  # asked for
GOALS = (0.95, 0.98, 0.99)  # accuracies of those answered
METHODS: tuple[Method, ...] = ("split", "adaptive")

# Probabilities that sets are computed for: about 3 s. Of a larger collection some photos are drawn.
CELLS = 10_000_000

CLOSE = 0.01  # of confidence and accuracy, on average (taste)

BEFORE, AFTER = "before scaling", "after scaling"


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Judged:
    """The photos of the folds that are done, with probabilities before and after scaling.

    `scaled` are at the temperatures of the other folds; with one fold done they are `plain`.
    """

    logits: Scores
    targets: Int[np.ndarray, " n"]
    fold_of: Int[np.ndarray, " n"]
    plain: Float[np.ndarray, "n classes"]
    scaled: Float[np.ndarray, "n classes"]


@dataclass(frozen=True)
class Goal:
    """What must be answered to be right so often: the surest `share`, from `confidence` on."""

    accuracy: float
    share: float = 0.0  # 0: no share of them is right so often
    confidence: float = 0.0


def section(run: Run) -> Section:
    """Whether the run's confidences mean what they say."""
    if not run.done:
        return Section("trust", TITLE, fragment("trust.html", photos=0))
    judged = judge(run)
    bins = reliability_bins(judged)
    sets, drawn = coverages(judged, seed=run.recipe.seed)
    answered = coverage.answered(judged.scaled.max(axis=1), _right(judged))
    body = fragment(
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
        goals=[goal(answered, accuracy) for accuracy in GOALS],
        answered=_answered_figure(answered),
    )
    return Section("trust", TITLE, body)


# --- numbers --------------------------------------------------------------------------------------


def judge(run: Run) -> Judged:
    """The photos of the folds that are done; there must be one."""
    sizes = [len(logits) for logits in run.judged.values()]
    logits = np.concatenate(list(run.judged.values()))
    targets = run.targets[np.concatenate([run.folds[fold].test for fold in run.judged])]
    fold_of = np.repeat(np.array(list(run.judged), dtype=np.int64), sizes)
    scaled = calibration.cross_fitted(logits, targets, fold_of)
    return Judged(logits, targets, fold_of, metrics.softmax(logits), scaled)


def tendency(judged: Judged) -> str:
    """Whether the networks say more or less than they keep, before scaling."""
    said = float(judged.plain.max(axis=1).mean())
    kept = float((judged.plain.argmax(axis=1) == judged.targets).mean())
    kind = "too sure" if said > kept else "too modest"
    kind = kind if abs(said - kept) >= CLOSE else "about as sure as they are right"
    return f"{kind}: they say {percent(said)} on average, and {percent(kept)} of answers are right"


def reliability_bins(judged: Judged) -> list[dict[str, Any]]:
    """Bins of confidence with their photos, accuracy and its interval, before and after scaling."""
    rows = []
    for kind, probabilities in ((BEFORE, judged.plain), (AFTER, judged.scaled)):
        found = calibration.reliability(probabilities, judged.targets)
        for number in np.flatnonzero(found.photos).tolist():
            photos = int(found.photos[number])
            right = share(round(found.accuracy[number] * photos), photos)
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
    """What sets hold and how large they are, by method; and of how many photos that is.

    Of a collection with more than `CELLS` probabilities, some photos are drawn.
    """
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


def goal(answered: Answered, accuracy: float) -> Goal:
    """The largest share of photos, the surest, that is right as often as `accuracy`."""
    reached = np.flatnonzero(answered.accuracy >= accuracy)
    if not len(reached):
        return Goal(accuracy)
    last = reached[-1]
    return Goal(accuracy, float(answered.share[last]), float(answered.confidence[last]))


def _right(judged: Judged) -> Bool[np.ndarray, " n"]:
    right: Bool[np.ndarray, " n"] = judged.scaled.argmax(axis=1) == judged.targets
    return right


# --- charts ---------------------------------------------------------------------------------------


def reliability_chart(bins: Sequence[dict[str, Any]]) -> alt.TopLevelMixin:
    """Accuracy against confidence, two lines with intervals, and the diagonal of the calibrated."""
    unit = alt.Scale(domain=[0, 1])
    kind: dict[str, Any] = {
        "scale": alt.Scale(domain=[BEFORE, AFTER]),
        "title": None,
        "legend": alt.Legend(orient="top"),
    }
    diagonal = (
        alt.Chart(inline([{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
        .mark_line(strokeDash=[4, 4], opacity=0.6, color="gray")
        .encode(x=alt.X("x:Q", scale=unit), y=alt.Y("y:Q", scale=unit))
    )
    base = alt.Chart(inline(bins)).encode(
        x=alt.X("confidence:Q", scale=unit, axis=alt.Axis(format="%"), title="confidence"),
        color=alt.Color("kind:N", **kind),
        tooltip=[
            alt.Tooltip("kind:N", title="probabilities"),
            alt.Tooltip("photos:Q", format=","),
            alt.Tooltip("confidence:Q", format=".1%", title="mean confidence"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%", title="at least"),
            alt.Tooltip("high:Q", format=".1%", title="at most"),
        ],
    )
    accuracy = alt.Y("accuracy:Q", scale=unit, axis=alt.Axis(format="%"), title="share right")
    intervals = base.mark_rule(strokeOpacity=0.6).encode(y=alt.Y("low:Q", scale=unit), y2="high:Q")
    lines = base.mark_line(strokeWidth=1.5).encode(y=accuracy)
    points = base.mark_point(filled=True, opacity=1).encode(
        y=accuracy,
        shape=alt.Shape("kind:N", **kind),
        size=alt.Size("photos:Q", scale=alt.Scale(type="sqrt", range=[25, 350]), legend=None),
    )
    return alt.layer(diagonal, intervals, lines, points).properties(height=340)


def coverage_chart(rows: Sequence[dict[str, Any]]) -> alt.TopLevelMixin:
    """The coverage that was held against the mean size of sets, a line a method."""
    kind: dict[str, Any] = {
        "scale": alt.Scale(domain=list(METHODS)),
        "title": "sets",
        "legend": alt.Legend(orient="top"),
    }
    base = alt.Chart(inline(rows)).encode(
        x=alt.X(
            "size:Q",
            scale=alt.Scale(zero=False, padding=14, nice=False),
            title="classes in a set, on average",
        ),
        y=alt.Y(
            "held:Q",
            scale=alt.Scale(zero=False, padding=14, nice=False),
            axis=alt.Axis(format=".0%"),
            title="sets that hold the class",
        ),
        color=alt.Color("method:N", **kind),
        tooltip=[
            alt.Tooltip("method:N", title="sets"),
            alt.Tooltip("asked:Q", format=".0%"),
            alt.Tooltip("held:Q", format=".1%"),
            alt.Tooltip("size:Q", format=".2f", title="classes"),
            alt.Tooltip("empty:Q", format=".1%"),
            alt.Tooltip("single:Q", format=".1%", title="one class"),
        ],
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        shape=alt.Shape("method:N", **kind)
    )
    return alt.layer(base.mark_line(strokeWidth=1.5), points).properties(height=300)


def answered_chart(found: Answered) -> alt.TopLevelMixin:
    """Accuracy among the surest photos, against their share."""
    rows = [
        {"share": share, "accuracy": accuracy, "confidence": confidence}
        for share, accuracy, confidence in zip(
            found.share.tolist(), found.accuracy.tolist(), found.confidence.tolist(), strict=True
        )
    ]
    chart: alt.TopLevelMixin = (
        alt.Chart(inline(rows))
        .mark_line(point={"size": 14, "filled": True})
        .encode(
            x=alt.X(
                "share:Q",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%"),
                title="share of photos answered, the surest first",
            ),
            y=alt.Y(
                "accuracy:Q",
                scale=alt.Scale(zero=False, domainMax=1),
                axis=alt.Axis(format=".1~%"),
                title="share right",
            ),
            tooltip=[
                alt.Tooltip("share:Q", format=".1%", title="answered"),
                alt.Tooltip("accuracy:Q", format=".2%", title="right"),
                alt.Tooltip("confidence:Q", format=".1%", title="confidence at least"),
            ],
        )
        .properties(height=260)
    )
    return chart


def _reliability_figure(bins: Sequence[dict[str, Any]], error: float) -> str:
    return figure(
        reliability_chart(bins),
        caption="On the dashed line, a confidence is the share that is right; below it, networks"
        " are too sure. Vertical lines are 95 % intervals by Wilson's method; the larger a point,"
        " the more photos it stands for.",
        description="Reliability diagram: the share of photos named rightly against confidence,"
        f" before and after scaling by temperature. The calibration error before is {error:.3f}."
        " The numbers are in the table that follows.",
    )


def _coverage_figure(sets: dict[str, list[Coverage]]) -> str:
    rows = [
        {
            "method": method,
            "asked": found.asked,
            "held": found.held,
            "size": found.size,
            "empty": found.empty,
            "single": found.single,
        }
        for method, values in sets.items()
        for found in values
    ]
    asked = ", ".join(percent(value, 0) for value in COVERAGES)
    return figure(
        coverage_chart(rows),
        caption=f"Each point is a coverage that was asked for: {asked}.",
        description="How often sets of classes hold the true one, against how many classes they"
        " hold on average, for two methods. The numbers are in the table that follows.",
    )


def _answered_figure(found: Answered) -> str:
    return figure(
        answered_chart(found),
        caption="Photos are answered in the order of their scaled confidence, and those less sure"
        " than the last left to somebody who knows.",
        description="Accuracy against the share of photos answered, the surest first: it is"
        f" {percent(float(found.accuracy[-1]))} when all are.",
    )
