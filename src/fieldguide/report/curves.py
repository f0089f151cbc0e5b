"""Learning curves: loss and accuracy by epoch, of every replica and of the merged model.

Knows nothing of how folds are trained, nor of torch.
"""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias

import altair as alt
import numpy as np
from markupsafe import Markup
from safetensors import SafetensorError, safe_open

from fieldguide.errors import ResourceError
from fieldguide.report.page import figure, fragment, inline, looks, rounded
from fieldguide.runs.run import Run
from fieldguide.storage import files

Measure: TypeAlias = Literal["train_loss", "test_loss", "train_accuracy", "test_accuracy"]

MEASURES: tuple[Measure, ...] = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
MERGED = "merged"
MEAN = "mean of folds"

# Okabe and Ito's colours (Color Universal Design, 2008) that are legible on white and on black.
MERGED_COLOR = "#D55E00"
COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("circle", "square", "triangle-right", "triangle-left", "cross")
NEUTRAL = "#808080"
HEIGHT = 300

NOTHING_TRAINED = (
    "Nothing was trained, so there are no curves: a linear head was fitted to the features of the"
    " frozen network, by logistic regression on each fold's own training photos."
)

_CHOSEN = "datum.view == folds"  # of the chart's parameter: what is shown


@dataclass(frozen=True)
class Point:
    """One model after one epoch (from 1) of a fold; None where it was not measured, or not finite.

    A replica is measured before the merge. `distance`, of merged models only, is the replicas' mean
    distance from the anchor over tensors. `train_accuracy`, of replicas only and not of every run,
    is the share of the targets' mass under the highest logit while training.
    """

    fold: int
    epoch: int
    model: str
    train_loss: float | None
    test_loss: float | None
    test_accuracy: float | None
    distance: float | None
    diverged: bool
    train_accuracy: float | None = None


@dataclass(frozen=True)
class Mean:
    """A measure of one model after one epoch: its mean over folds, and the folds' extremes."""

    epoch: int
    model: str
    measure: Measure
    mean: float
    low: float
    high: float
    folds: int


@dataclass(frozen=True)
class Curves:
    """The histories of the folds of a run that are done or under way."""

    points: tuple[Point, ...]
    kept: Mapping[int, int]  # by done fold, the epoch whose weights were kept
    under_way: tuple[int, ...]
    planned: int  # the recipe's epochs

    @property
    def models(self) -> list[str]:
        """The replicas in their order, then the merged model."""
        return sorted({point.model for point in self.points}, key=_model_order)

    @property
    def judged(self) -> list[Point]:
        """The points to average, of the folds that are done; while none is, of those under way."""
        return [point for point in self.points if not self.kept or point.fold in self.kept]


# --- reading --------------------------------------------------------------------------------------


def read(run: Run) -> Curves:
    """Return the curves of a run, finished or not; raise `ResourceError` if a file is damaged."""
    done = {fold: run.fold_folder(fold) for fold in run.done}
    rows: list[Mapping[str, Any]] = []
    for folder in done.values():
        rows += read_table(folder / "history.csv")
    others = [fold for fold in range(run.recipe.folds) if fold not in done]
    saved = {fold: checkpointed(run.fold_folder(fold) / "checkpoint") for fold in others}
    for state in saved.values():
        rows += state.get("history", ())
    points = [_point(row) for row in rows]
    if run.recipe.merge == "none":  # the merged model is the one replica
        points = [point for point in points if point.model != MERGED]
    return Curves(
        points=tuple(points),
        kept={fold: _kept_epoch(folder) for fold, folder in done.items()},
        under_way=tuple(fold for fold, state in saved.items() if state.get("history")),
        planned=run.recipe.epochs,
    )


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a table of a fold that is done and check its hash."""
    files.verify(path.parent, [path.name])
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def checkpointed(folder: Path) -> Mapping[str, Any]:
    """Return the values in the header of a fold's newest whole checkpoint; empty without one."""
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        try:
            with safe_open(path, framework="numpy") as file:
                state: Mapping[str, Any] = json.loads(file.metadata()["state"])
            return state
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue  # half written: the one before it is whole
    return {}


def number(value: object) -> float | None:
    """Return a cell as a finite number; None if it is empty or not finite."""
    if value is None or value == "":
        return None
    found = float(str(value))
    return found if math.isfinite(found) else None


def _point(row: Mapping[str, Any]) -> Point:
    try:
        return Point(
            fold=int(row["fold"]),
            epoch=int(row["epoch"]),
            model=str(row["model"]),
            train_loss=number(row["train_loss"]),
            test_loss=number(row["test_loss"]),
            test_accuracy=number(row["test_accuracy"]),
            distance=number(row.get("distance_mean")),
            diverged=str(row["diverged"]) == "True",
            train_accuracy=number(row.get("train_accuracy")),
        )
    except (KeyError, ValueError) as error:
        raise ResourceError(f"a history has a row that cannot be read: {error}") from error


def _kept_epoch(folder: Path) -> int:
    """Return the epoch, from 1, whose weights a done fold kept."""
    files.verify(folder, ["predictions.npz"])
    content = io.BytesIO((folder / "predictions.npz").read_bytes())
    with np.load(content, allow_pickle=False) as arrays:
        return int(arrays["chosen_epoch"]) + 1


# --- numbers --------------------------------------------------------------------------------------


def averaged(points: Iterable[Point]) -> list[Mean]:
    """Return each measure of each model by epoch: the mean, lowest and highest of the folds.

    Sorted by measure, model (merged last) and epoch; a mean lacks folds that diverged or ended.
    """
    values: dict[tuple[Measure, str, int], list[float]] = defaultdict(list)
    for point in points:
        for measure in MEASURES:
            value: float | None = getattr(point, measure)
            if value is not None:
                values[measure, point.model, point.epoch].append(value)

    def order(key: tuple[Measure, str, int]) -> tuple[object, ...]:
        measure, model, epoch = key
        return MEASURES.index(measure), _model_order(model), epoch

    means = []
    for measure, model, epoch in sorted(values, key=order):
        found = values[measure, model, epoch]
        mean = math.fsum(found) / len(found)
        means.append(Mean(epoch, model, measure, mean, min(found), max(found), len(found)))
    return means


def at_kept(curves: Curves) -> list[Mean]:
    """Return the means over folds at the epoch that each fold kept, which counts as epoch 0.

    While no fold is done, the folds under way count at their last epoch.
    """
    points = curves.judged
    last: dict[int, int] = {}
    for point in points:
        last[point.fold] = max(point.epoch, last.get(point.fold, 0))
    kept = last | dict(curves.kept)
    return averaged(replace(point, epoch=0) for point in points if point.epoch == kept[point.fold])


def _model_order(model: str) -> tuple[bool, int, str]:
    suffix = model.rpartition("-")[2]
    return model == MERGED, int(suffix) if suffix.isdecimal() else 0, model


# --- charts ---------------------------------------------------------------------------------------


def loss_chart(curves: Curves) -> alt.LayerChart:
    """Draw training and test loss by epoch; the chart has no width of its own."""
    values = _values(curves, ("test_loss", "train_loss"))
    # Losses fall by orders of magnitude, and the low end matters; a logarithm cannot show zero.
    title = "loss (nats per photo)"
    scale, axis = alt.Scale(zero=False, padding=12), alt.Axis(title=title)
    if all(value["low"] > 0 for value in values):
        named = [digit * 10.0**power for power in range(-6, 4) for digit in (1, 2, 5)]
        scale = alt.Scale(type="log", nice=False, padding=12)
        axis = alt.Axis(title=title, values=named, format="~g", labelOverlap=False)
    return _chart(curves, values, scale, axis, "loss", ".4f")


def accuracy_chart(curves: Curves) -> alt.LayerChart:
    """Draw accuracy by epoch on test photos and, if it was recorded, on training photos."""
    values = _values(curves, ("test_accuracy", "train_accuracy"))
    scale = alt.Scale(zero=False, padding=12)
    title = "accuracy" if _parts(values) == ["test", "training"] else "accuracy on test photos"
    axis = alt.Axis(title=title, format=".1~%", tickCount=7)
    return _chart(curves, values, scale, axis, "accuracy", ".2%")


def epochs(last: int, first: int = 1) -> alt.X:
    """Return the axis of epochs, from `first` to `last`, with at most 13 labels."""
    steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
    step = next(step for step in steps if last <= 12 * step)
    named = sorted({first, *range(step, last + 1, step)})
    axis = alt.Axis(title="epoch", format="d", values=named, grid=False)
    return alt.X("epoch:Q", axis=axis, scale=alt.Scale(domain=[first, max(last, 2)], padding=14))


def _chart(
    curves: Curves,
    values: Sequence[Mapping[str, Any]],
    scale: alt.Scale,
    axis: alt.Axis,
    what: str,
    shown: str,
) -> alt.LayerChart:
    """Draw lines with a band and marks, for the mean or for a chosen fold."""
    views = [MEAN, *(f"fold {fold}" for fold in sorted({point.fold for point in curves.points}))]
    choice = alt.param(
        name="folds", value=MEAN, bind=alt.binding_select(options=views, name="Show ")
    )
    x = epochs(max(point.epoch for point in curves.points))
    layers = (
        _band(curves, x, alt.Y("low:Q", scale=scale, axis=axis)),
        *_lines(
            curves,
            x,
            alt.Y("value:Q", scale=scale, axis=axis),
            what,
            shown,
            legend=len(_parts(values)) > 1,
        ),
        _marks(_kept(curves), x, alt.value(HEIGHT - 6)).mark_text(
            text="▲", fontSize=13, color=NEUTRAL
        ),
        _marks(_diverged(curves), x, alt.value(9), _scales(curves)["color"]).mark_text(
            text="✕", fontSize=17, fontWeight="bold"
        ),
    )
    lines = alt.LayerChart(data=inline(values), layer=layers, height=HEIGHT)
    return lines.add_params(choice).transform_filter(_CHOSEN)


def _values(curves: Curves, measures: Sequence[Measure]) -> list[dict[str, Any]]:
    named = [(MEAN, mean) for mean in averaged(curves.judged)]
    for fold in sorted({point.fold for point in curves.points}):
        own = [point for point in curves.points if point.fold == fold]
        named += [(f"fold {fold}", mean) for mean in averaged(own)]
    return [
        {
            "view": view,
            "epoch": mean.epoch,
            "model": _label(mean.model),
            "part": "training" if mean.measure.startswith("train") else "test",
            "value": rounded(mean.mean),
            "low": rounded(mean.low),
            "high": rounded(mean.high),
            "n": mean.folds,
        }
        for view, mean in named
        if mean.measure in measures
    ]


def _parts(values: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({value["part"] for value in values})


def _label(model: str) -> str:
    return model.replace("-", " ")


def _scales(curves: Curves) -> dict[str, Any]:
    replicas = [model for model in curves.models if model != MERGED]
    colors = [COLORS[n % len(COLORS)] for n in range(len(replicas))] + [MERGED_COLOR]
    shapes = [SHAPES[n % len(SHAPES)] for n in range(len(replicas))] + ["diamond"]
    domain = [_label(model) for model in curves.models]
    return looks("model:N", domain, colors[: len(domain)], shapes[: len(domain)], columns=3)


def _band(curves: Curves, x: alt.X, y: alt.Y) -> alt.Chart:
    """Draw the band from the lowest to the highest fold; it has no height for one fold."""
    drawn: alt.Chart = (
        alt.Chart()
        .mark_area(opacity=0.16)
        .encode(x=x, y=y, y2="high:Q", color=_scales(curves)["color"], detail="part:N")
    )
    return drawn


def _lines(
    curves: Curves, x: alt.X, y: alt.Y, what: str, shown: str, *, legend: bool
) -> tuple[alt.Chart, alt.Chart]:
    """Draw a line for each model and part, and points whose tooltips show the values."""
    scales = _scales(curves)
    base = alt.Chart().encode(x=x, y=y, color=scales["color"])
    dash = alt.StrokeDash(
        "part:N",
        scale=alt.Scale(domain=["test", "training"], range=[[1, 0], [5, 4]]),
        legend=alt.Legend(title=None, orient="top") if legend else None,
    )
    thick = alt.condition(alt.datum.model == MERGED, alt.value(3.5), alt.value(1.6))
    near = alt.selection_point(
        name=f"near_{what}",
        on="pointerover",
        nearest=True,
        empty=False,
        fields=["epoch", "model", "part"],
    )
    points = base.mark_point(filled=True, opacity=1).encode(
        shape=scales["shape"],
        size=alt.condition(near, alt.value(160), alt.value(45)),
        tooltip=[
            alt.Tooltip("model:N"),
            alt.Tooltip("part:N", title="photos"),
            alt.Tooltip("epoch:Q", format="d"),
            alt.Tooltip("value:Q", title=what, format=shown),
            alt.Tooltip("low:Q", title="lowest fold", format=shown),
            alt.Tooltip("high:Q", title="highest fold", format=shown),
            alt.Tooltip("n:Q", title="folds", format="d"),
        ],
    )
    return base.mark_line().encode(strokeDash=dash, strokeWidth=thick), points.add_params(near)


def _marks(
    marks: Sequence[Mapping[str, Any]], x: alt.X, y: Any, color: Any = alt.Undefined
) -> alt.Chart:
    """Draw signs at epochs, at a height in pixels, with their meaning in the tooltip."""
    return (
        alt.Chart(inline(marks))
        .encode(x=x, y=y, color=color, tooltip=alt.Tooltip("what:N", title=" "))
        .transform_filter(_CHOSEN)
    )


def _kept(curves: Curves) -> list[dict[str, Any]]:
    return [
        {"view": view, "epoch": epoch, "what": f"fold {fold} kept the weights of this epoch"}
        for fold, epoch in curves.kept.items()
        for view in (MEAN, f"fold {fold}")
    ]


def _diverged(curves: Curves) -> list[dict[str, Any]]:
    return [
        {
            "view": view,
            "epoch": point.epoch,
            "model": _label(point.model),
            "what": f"{_label(point.model)} of fold {point.fold} diverged in this epoch",
        }
        for point in curves.points
        if point.diverged
        for view in (MEAN, f"fold {point.fold}")
    ]


# --- the section ----------------------------------------------------------------------------------


def section(run: Run) -> Markup:
    """Return the learning curves of the folds that are done or under way."""
    curves = read(run)
    if not run.recipe.epochs:
        return fragment("curves.html", notes=[NOTHING_TRAINED], figures=(), rows=())
    epoch = "epoch that each fold kept" if curves.kept else "last epoch so far"
    range_ = " (lowest to highest)" if len(curves.kept) > 1 else ""
    measures = [m for m in MEASURES if m != "train_accuracy" or _has_train_accuracy(curves)]
    return fragment(
        "curves.html",
        notes=_notes(run, curves),
        figures=_figures(curves) if curves.points else (),
        caption=f"Mean of the folds{range_} at the {epoch}",
        columns=["model", *(m.replace("_", " ").replace("train", "training") for m in measures)],
        rows=_table(curves, measures),
    )


def _figures(curves: Curves) -> list[Any]:
    band = f"The band spans the lowest to the highest of {len(curves.kept)} folds. "
    keys = (band if len(curves.kept) > 1 else "") + (
        "▲ marks epochs whose weights were kept." if curves.kept else ""
    )
    if any(point.diverged for point in curves.points):
        keys += " ✕ marks a replica that diverged; only the others were merged."
    summary = spoken(curves)
    return [
        figure(
            loss_chart(curves),
            caption=f"Loss by epoch: on test photos (solid) and while training (dashed). {keys}",
            description=f"Line chart of loss by epoch. {summary}",
        ),
        figure(
            accuracy_chart(curves),
            caption=f"{_accuracy_caption(curves)} {keys}",
            description=f"Line chart of accuracy by epoch. {summary}",
        ),
    ]


def _accuracy_caption(curves: Curves) -> str:
    if not _has_train_accuracy(curves):
        return "Accuracy by epoch on the test photos of each fold."
    return (
        "Accuracy by epoch: on the test photos of each fold (solid) and while training (dashed)."
        " With mixing, training accuracy is the share of the target's mass under the highest logit,"
        " so it lies below what the network would reach on plain photos."
    )


def _has_train_accuracy(curves: Curves) -> bool:
    return any(point.train_accuracy is not None for point in curves.points)


def spoken(curves: Curves) -> str:
    """Return in words what the charts show."""
    parts = [
        f"{_label(mean.model)}: {mean.mean:.1%}"
        for mean in at_kept(curves)
        if mean.measure == "test_accuracy"
    ]
    return f"Mean accuracy at the last or the kept epoch: {'; '.join(parts)}." if parts else ""


def _table(curves: Curves, measures: Sequence[Measure]) -> list[list[str]]:
    found = {(mean.model, mean.measure): mean for mean in at_kept(curves)}
    return [
        [_label(model), *(_cell(found.get((model, measure)), measure) for measure in measures)]
        for model in curves.models
    ]


def _cell(mean: Mean | None, measure: Measure) -> str:
    if mean is None:
        return "–"
    form = ".1%" if measure.endswith("accuracy") else ".3f"
    low, high = format(mean.low, form), format(mean.high, form)
    return format(mean.mean, form) + (f" ({low} to {high})" if mean.folds > 1 else "")


def _notes(run: Run, curves: Curves) -> list[str]:
    recipe = run.recipe
    notes = [*_unfinished(run, curves), *_lengths(curves)]
    notes += [
        f"Replica {point.model.rpartition('-')[2]} of fold {point.fold} diverged in epoch"
        f" {point.epoch}: it was left out of the merge and restarted from the merged weights."
        for point in curves.points
        if point.diverged
    ]
    if recipe.stop == "fold":
        notes.append(
            "The epochs were chosen on these same test photos, so the accuracy at the kept epochs"
            " is optimistic; the verdict takes each fold at the epoch that is best in the others."
        )
    if not curves.points:
        return notes
    if recipe.merge == "none":
        notes.append("Nothing was merged: the recipe trains one replica in each fold.")
    else:
        notes.append(
            "Replicas are evaluated before each merge. The merged model is not trained, so it has"
            " no training loss of its own."
        )
    notes.append(
        "Training measures are means over an epoch in which the weights keep changing, on photos"
        " that are augmented and perhaps mixed: they may look worse than those on test photos."
    )
    if not _has_train_accuracy(curves):
        notes.append("Training accuracy was not recorded.")
    return notes


def _unfinished(run: Run, curves: Curves) -> list[str]:
    folds = run.recipe.folds
    if len(curves.kept) == folds:
        return []
    if not curves.points:
        return ["No epoch of any fold is finished yet: there are no curves."]
    notes = [f"{len(curves.kept)} of {folds} folds are done."]
    if curves.under_way:
        names = ", ".join(map(str, curves.under_way))
        mean = "" if curves.kept else ", and the mean is over these folds"
        notes.append(f"Under way, shown up to the newest checkpoint{mean}: fold {names}.")
    return notes


def _lengths(curves: Curves) -> list[str]:
    """Return a note if folds ended early, since fewer of them are averaged after that."""
    ends = [
        max(point.epoch for point in curves.points if point.fold == fold) for fold in curves.kept
    ]
    if not ends or min(ends) == curves.planned:
        return []
    if min(ends) == max(ends):
        return [f"Every fold stopped after {ends[0]} of {curves.planned} epochs."]
    return [
        f"Folds stopped after {min(ends)} to {max(ends)} of {curves.planned} epochs: from epoch"
        f" {min(ends) + 1}, the mean is over fewer folds."
    ]
