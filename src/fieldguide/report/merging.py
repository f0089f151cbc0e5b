"""The effect of merging: how far and in which directions replicas moved, and the gain of the mean.

RUN/landscape.json and RUN/scores.json are shown if there. Knows nothing of how weights are merged,
nor of torch.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
from markupsafe import Markup

from fieldguide.errors import ResourceError
from fieldguide.report import curves, scored
from fieldguide.report.curves import COLORS, MERGED, MERGED_COLOR, NEUTRAL, SHAPES, Curves, Point
from fieldguide.report.page import figure, fragment, inline, looks, rounded
from fieldguide.runs.run import Run
from fieldguide.study import landscape
from fieldguide.study.landscape import Landscape

if TYPE_CHECKING:
    from fieldguide.study.holdout_scores import Worth

# Rows of the heat map: with more tensors, blocks or stages are drawn (taste; resnet18 has 60).
MAP_ROWS = 70

_STAGED = re.compile(r"(\D*\d+)\.(?:[a-z_]+\.)?b?(\d+)\.")


@dataclass(frozen=True)
class Moved:
    """One tensor at one merge: a row of `merges.csv`. `angle` is in degrees."""

    fold: int
    epoch: int
    tensor: str
    angle: float
    ratio: float
    distance: float


@dataclass(frozen=True)
class Cell:
    """A row of the heat map at one epoch: means over its tensors and over folds."""

    row: str
    epoch: int
    angle: float
    ratio: float
    distance: float
    tensors: int


@dataclass(frozen=True)
class Gain:
    """The test accuracy of a fold's merged model at an epoch minus the mean of its replicas."""

    fold: int
    epoch: int
    gain: float


@dataclass(frozen=True)
class Effect:
    """A merged model with batch-norm statistics re-estimated, and with the folds' mean."""

    rule: str
    recalibrated: float
    averaged: float
    recalibrated_loss: float
    averaged_loss: float


# --- reading --------------------------------------------------------------------------------------


def read_merges(run: Run) -> list[Moved]:
    """Read the merges of the folds that are done, or while none is, of those under way."""
    rows: list[Mapping[str, Any]] = []
    for fold in run.done:
        rows += curves.read_table(run.fold_folder(fold) / "merges.csv")
    if not run.done:
        for fold in range(run.recipe.folds):
            saved = curves.checkpointed(run.fold_folder(fold) / "checkpoint")
            rows += saved.get("merges", ())
    return [_moved(row) for row in rows]


def _moved(row: Mapping[str, Any]) -> Moved:
    try:
        return Moved(
            fold=int(row["fold"]),
            epoch=int(row["epoch"]),
            tensor=str(row["tensor"]).removeprefix("backbone."),
            angle=float(row["angle"]),
            ratio=float(row["ratio"]),
            distance=float(row["distance"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ResourceError(f"a table of merges has a row that cannot be read: {error}") from error


# --- numbers --------------------------------------------------------------------------------------


def stage(tensor: str) -> str:
    """Return the stage of a tensor: `layer1` … `layer4` of a ResNet, or `stem`."""
    found = _STAGED.match(tensor)
    return found[1] if found and not tensor.startswith(("conv", "bn")) else "stem"


def block(tensor: str) -> str:
    """Return the block of a tensor in its stage: `layer1.0`; `stem` without one."""
    found = _STAGED.match(tensor)
    return f"{found[1]}.{found[2]}" if found and stage(tensor) != "stem" else "stem"


def grouped(moves: Sequence[Moved], limit: int = MAP_ROWS) -> list[Cell]:
    """Return the heat map's cells: of tensors, or if more than `limit`, blocks, or else stages."""
    names: tuple[Callable[[str], str], ...] = (str, block, stage)
    for name in names:
        if len({name(move.tensor) for move in moves}) <= limit:
            break
    together: dict[tuple[str, int], list[Moved]] = defaultdict(list)
    for move in moves:
        together[name(move.tensor), move.epoch].append(move)
    return [
        Cell(
            row=row,
            epoch=epoch,
            angle=statistics.fmean(move.angle for move in found),
            ratio=statistics.fmean(move.ratio for move in found),
            distance=statistics.fmean(move.distance for move in found),
            tensors=len({move.tensor for move in found}),
        )
        for (row, epoch), found in together.items()
    ]


def travelled(moves: Iterable[Moved]) -> dict[tuple[str, int], float]:
    """Return the mean distance over tensors and folds, by stage and epoch."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for move in moves:
        found[stage(move.tensor), move.epoch].append(move.distance)
    return {key: statistics.fmean(distances) for key, distances in found.items()}


def gains(points: Iterable[Point]) -> list[Gain]:
    """Return merged minus mean replica (without diverged ones), where both were evaluated."""
    accuracies: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for point in points:
        if point.test_accuracy is not None and not point.diverged:
            accuracies[point.fold, point.epoch][point.model] = point.test_accuracy
    found = []
    for (fold, epoch), models in sorted(accuracies.items()):
        merged = models.pop(MERGED, None)
        if merged is not None and models:
            found.append(Gain(fold, epoch, merged - statistics.fmean(models.values())))
    return found


def batch_norm_effect(rows: Iterable["Worth"]) -> list[Effect]:
    """Return an effect for each rule whose models were scored with both ways of batch norm."""
    by_name = {row.name: row for row in rows}
    return [
        Effect(
            rule=name,
            recalibrated=by_name[f"{name}-recal"].accuracy,
            averaged=row.accuracy,
            recalibrated_loss=by_name[f"{name}-recal"].log_loss,
            averaged_loss=row.log_loss,
        )
        for name, row in by_name.items()
        if f"{name}-recal" in by_name
    ]


# --- charts ---------------------------------------------------------------------------------------


def map_chart(cells: Sequence[Cell]) -> alt.Chart:
    """Draw angle, ratio or distance by layer and epoch."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    labels = {
        "angle": "angle between replicas (degrees)",
        "ratio": "ratio (1: the mean, 0: the anchor)",
        "distance": "distance from the anchor",
    }
    values = [
        vars(cell) | {name: rounded(getattr(cell, name)) for name in labels} for cell in cells
    ]
    shown = alt.param(
        name="shown",
        value="angle",
        bind=alt.binding_select(options=list(labels), labels=list(labels.values()), name="Show "),
    )
    legend = alt.Legend(title=None, orient="top", gradientLength=220)
    names = alt.Axis(title=None, labelFontSize=10, labelLimit=190)
    drawn: alt.Chart = (
        alt.Chart(inline(values))
        .transform_calculate(value="datum[shown]")
        .mark_rect()
        .encode(
            x=alt.X("epoch:O", axis=alt.Axis(title="epoch", labelAngle=0, labelOverlap="greedy")),
            y=alt.Y("row:N", sort=rows, axis=names),
            color=alt.Color(
                "value:Q", scale=alt.Scale(scheme="viridis", zero=False), legend=legend
            ),
            tooltip=[
                alt.Tooltip("row:N", title="layer"),
                alt.Tooltip("epoch:O"),
                alt.Tooltip("angle:Q", format=".1f"),
                alt.Tooltip("ratio:Q", format=".3f"),
                alt.Tooltip("distance:Q", format=".4f"),
                alt.Tooltip("tensors:Q"),
            ],
        )
        .add_params(shown)
        .properties(height=max(120, 13 * len(rows)))
    )
    return drawn


def distance_chart(distances: Mapping[tuple[str, int], float]) -> alt.Chart:
    """Draw the distance of each stage's replicas from the anchor, by epoch."""
    stages = list(dict.fromkeys(name for name, _ in distances))
    values = [
        {"stage": name, "epoch": epoch, "distance": rounded(value)}
        for (name, epoch), value in distances.items()
    ]
    colors = [(*COLORS, MERGED_COLOR, NEUTRAL)[n % 7] for n in range(len(stages))]
    shapes = [(*SHAPES, "diamond", "triangle-up")[n % 7] for n in range(len(stages))]
    drawn: alt.Chart = (
        alt.Chart(inline(values))
        .mark_line(point={"filled": True, "size": 45, "opacity": 1})
        .encode(
            x=curves.epochs(max(epoch for _, epoch in distances)),
            y=alt.Y("distance:Q", axis=alt.Axis(title="distance from the anchor (share)")),
            **looks("stage:N", stages, colors, shapes, columns=5),
            tooltip=[
                alt.Tooltip("stage:N"),
                alt.Tooltip("epoch:Q"),
                alt.Tooltip("distance:Q", format=".4f"),
            ],
        )
        .properties(height=220)
    )
    return drawn


def gain_chart(found: Sequence[Gain]) -> alt.LayerChart:
    """Draw the gain from merging: a point for each fold and epoch, and a line of their means."""
    values = [
        {"fold": f"fold {each.fold}", "epoch": each.epoch, "gain": rounded(100 * each.gain)}
        for each in found
    ]
    y = alt.Y("gain:Q", axis=alt.Axis(title="merged − mean replica (points)"))
    base = alt.Chart().encode(x=curves.epochs(max(each.epoch for each in found)))
    zero = alt.Chart(inline([{"gain": 0}])).mark_rule(strokeDash=[4, 3], color=NEUTRAL)
    points = base.mark_point(size=55, color=COLORS[0], opacity=0.9).encode(
        y=y, tooltip=["fold:N", "epoch:Q", alt.Tooltip("gain:Q", format="+.2f")]
    )
    mean = alt.Y("mean(gain):Q", axis=alt.Axis(title="merged − mean replica (points)"))
    line = base.mark_line(color=MERGED_COLOR, strokeWidth=3).encode(y=mean)
    return alt.LayerChart(data=inline(values), layer=(zero.encode(y=y), points, line), height=220)


def landscape_chart(found: Landscape, measure: str) -> alt.LayerChart:
    """Draw `loss` or `accuracy` along the line, with its two ends and its middle marked."""
    title = "loss (nats per photo)" if measure == "loss" else "accuracy"
    form, precise = ("", ".4f") if measure == "loss" else (".1~%", ".2%")
    values = [
        {"t": point.t, "value": getattr(point, measure), "norm": _NORMS[point.batch_norm]}
        for point in found.points
        if getattr(point, measure) is not None
    ]
    names = [
        {"t": t, "name": name} for t, name in ((0, found.one), (0.5, "middle"), (1, found.other))
    ]
    x = alt.X("t:Q", axis=_PLACES, scale=alt.Scale(domain=[-0.25, 1.25], nice=False))
    norms = list(dict.fromkeys(value["norm"] for value in values))
    colors, shapes = [COLORS[0], MERGED_COLOR][: len(norms)], ["circle", "diamond"][: len(norms)]
    lines = (
        alt.Chart()
        .mark_line(point={"filled": True, "size": 55, "opacity": 1})
        .encode(
            x=x,
            y=alt.Y(
                "value:Q", axis=alt.Axis(title=title, format=form), scale=alt.Scale(zero=False)
            ),
            **looks("norm:N", norms, colors, shapes, orient="bottom"),
            tooltip=[
                alt.Tooltip("t:Q"),
                alt.Tooltip("value:Q", title=title.partition(" (")[0], format=precise),
                alt.Tooltip("norm:N", title="batch norm"),
            ],
        )
    )
    places = alt.Chart(inline(names)).encode(x=x)
    rules = places.mark_rule(strokeDash=[4, 3], color=NEUTRAL)
    texts = places.mark_text(dy=-6, baseline="bottom", fontSize=12).encode(
        text="name:N", y=alt.value(0)
    )
    layers = [rules, texts, lines]
    kept = getattr(found.kept, measure)
    if kept is not None:
        rule = alt.Chart(inline([{"value": kept, "name": found.kept_name}])).mark_rule(
            strokeDash=[2, 2], color=COLORS[1], strokeWidth=2
        )
        told = [alt.Tooltip("name:N", title=" "), alt.Tooltip("value:Q", format=precise)]
        layers.append(rule.encode(y="value:Q", tooltip=told))
    return alt.LayerChart(data=inline(values), layer=layers, height=240)


_PLACES = alt.Axis(title="position on the line (t)", values=[0, 0.25, 0.5, 0.75, 1], format="~g")
_NORMS = {
    "average": "batch norm averaged",
    "recalibrate": "batch norm re-estimated",
    "none": "no batch norm",
}


# --- the section ----------------------------------------------------------------------------------


def section(run: Run) -> Markup:
    """Return the effect of merging in the folds that are done or under way."""
    found, moves = curves.read(run), read_merges(run)
    merges = run.recipe.merge != "none" and run.recipe.replicas > 1
    table = scored.read(run)
    return fragment(
        "merging.html",
        notes=_notes(run, found, moves, merges),
        gain=_gain_part(found) if merges else None,
        moved=_moved_part(run, moves, merges) if moves else None,
        line=_line_part(run, merges),
        effects=batch_norm_effect(table.rows),
        no_effects=_no_effects(run, table.stale),
    )


def _notes(run: Run, found: Curves, moves: Sequence[Moved], merges: bool) -> list[str]:
    if not run.recipe.epochs:
        return ["Nothing was merged: nothing was trained."]
    notes = []
    if not merges:
        notes.append("Nothing was merged: the recipe trains one replica in each fold.")
    if not moves:
        notes.append("No merge of any fold is finished yet.")
    elif len(found.kept) < run.recipe.folds:
        notes.append(f"{len(found.kept)} of {run.recipe.folds} folds are done.")
    return notes


def _gain_part(found: Curves) -> Mapping[str, Any] | None:
    known = gains(found.judged)
    if not known:
        return None
    text = gain_in_words(known, found.kept)
    drawn = figure(
        gain_chart(known),
        caption="Accuracy of the merged model minus the mean of its replicas before the merge, in"
        " percentage points: a circle for each fold, a line for their mean.",
        description=f"Points by epoch and fold. {text}",
    )
    return {"text": text, "figure": drawn}


def gain_in_words(known: Sequence[Gain], kept: Mapping[int, int]) -> str:
    """Return the gain at each fold's kept epoch (its last, while it is under way) in words."""
    last = {each.fold: each.epoch for each in known} | dict(kept)
    chosen = [each.gain for each in known if each.epoch == last[each.fold]]
    if not chosen:
        return "At the kept epochs no replica was evaluated beside the merged model."
    mean, better = statistics.fmean(chosen), sum(gain > 0 for gain in chosen)
    if len(chosen) == 1:
        return f"At the kept epoch, merged minus mean replica is {_points(mean)} percentage points."
    return (
        f"At the kept epochs, merged minus mean replica is {_points(mean)} percentage points on"
        f" average ({_points(min(chosen))} to {_points(max(chosen))}), and above zero in {better}"
        f" of {len(chosen)} folds."
    )


def _points(gain: float) -> str:
    return f"{100 * gain:+.2f}".replace("-", "−")


def _moved_part(run: Run, moves: Sequence[Moved], merges: bool) -> Mapping[str, Any]:
    distances = travelled(moves)
    anchor = "the last merge" if run.recipe.anchor == "last_merge" else "the weights at the start"
    last = max(epoch for _, epoch in distances)
    ends = "; ".join(
        f"{name}: {value:.3f}" for (name, epoch), value in distances.items() if epoch == last
    )
    drawn = figure(
        distance_chart(distances),
        caption=f"Distance of the replicas from {anchor}: |w − anchor| / |anchor|, the mean over"
        " the tensors of each stage and over folds. The head starts at random and has no anchor.",
        description=f"Line chart of distance by epoch and stage. In epoch {last}: {ends}.",
    )
    return {"map": _map_figure(run, moves, anchor) if merges else "", "distance": drawn}


def _map_figure(run: Run, moves: Sequence[Moved], anchor: str) -> Markup:
    cells = grouped(moves)
    tensors = len({move.tensor for move in moves})
    rows = len({cell.row for cell in cells})
    what = "Each row is a tensor" if rows == tensors else f"{tensors} tensors in {rows} rows"
    angles = [cell.angle for cell in cells]
    common = (
        " From the second merge on, replicas share the path up to the last one, so angles shrink."
        if run.recipe.anchor == "pretrained"
        else ""
    )
    used = (
        "The merge used Model Stock's ratio."
        if run.recipe.merge == "model_stock"
        else "The ratio is the one that Model Stock would have used; the merge took the plain mean."
    )
    return figure(
        map_chart(cells),
        caption=f"Angle between the movements of replicas from {anchor}: 0° is the same direction,"
        f" 90° nothing in common.{common} {used} {what}, the first layer on top; means over folds.",
        description=f"Heat map of {rows} layers by epoch. Angles lie between {min(angles):.0f} and"
        f" {max(angles):.0f} degrees.",
    )


def _line_part(run: Run, merges: bool) -> Mapping[str, Any]:
    between = "" if merges and run.recipe.keep_replicas else " --between folds"
    command = f"fieldguide landscape RUN{between}"
    found = landscape.read(run)
    if not run.recipe.epochs:
        missing = "Nothing was trained: the networks differ in their heads alone."
        return {"missing": missing, "command": "", "figures": ()}
    if found is None:
        return {"missing": _no_landscape(run, between), "command": command, "figures": ()}
    about = describe(found)
    figures = [
        figure(
            landscape_chart(found, measure),
            caption=f"{measure.capitalize()} along the line. {about}",
            description=f"Line chart of {measure} along the line. {in_words(found, measure)}",
        )
        for measure in ("loss", "accuracy")
    ]
    return {"missing": "", "command": command, "figures": figures, "text": in_words(found, "loss")}


def _no_effects(run: Run, stale: str) -> str:
    if not len(run.outside):
        return (
            "It cannot be compared here: models merged from all folds are tested on photos outside"
            " of them, and this run has no unused ones."
        )
    if stale:
        return f"Old scores are not shown. {stale} `fieldguide score RUN` scores the models again."
    return (
        "Not compared yet: merge the folds with --batch-norm recalibrate and with --batch-norm"
        " average (`fieldguide soup RUN`), then score them (`fieldguide score RUN`)."
    )


def _no_landscape(run: Run, between: str) -> str:
    if not run.done:
        return "When a fold is done, this command measures it:"
    if not between:
        return "Not measured yet, or not since the folds changed. This command measures it:"
    if len(run.done) < 2:
        return "The run keeps no two replicas. When two folds are done, this command measures it:"
    return (
        "Not measured yet. The run keeps no two replicas; between folds, this command measures it:"
    )


def describe(found: Landscape) -> str:
    """Return what was measured, and on which photos."""
    return (
        f"From {found.one} (t = 0) to {found.other} (t = 1), on {found.photos:,}"
        f" {found.judged_on}. The dotted line is {found.kept_name}."
    )


def in_words(found: Landscape, measure: str) -> str:
    """Return the ends and the middle of the line in words."""
    parts = []
    for norm, name in _NORMS.items():
        values = {
            point.t: getattr(point, measure) for point in found.points if point.batch_norm == norm
        }
        told = [values.get(t) for t in (0.0, 1.0, 0.5)]
        form = ".3f" if measure == "loss" else ".1%"
        known = [format(value, form) for value in told if value is not None]
        if len(known) < len(told):
            continue
        one, other, between = known
        parts.append(
            f"with {name}, {measure} is {one} and {other} at the ends and {between} midway"
        )
    return ("; ".join(parts) + ".").capitalize() if parts else ""
