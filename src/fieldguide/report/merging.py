"""What merging did: how far and in which directions replicas moved, and what their mean was worth.

From the tables of merges and histories, from RUN/landscape.json and RUN/scores.json where they are.
Numbers first (`grouped`, `travelled`, `gains`, `batch_norm_effect`), then the charts. Knows nothing
of how weights are merged, nor of torch.
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
from fieldguide.report.page import Section, figure, fragment, inline
from fieldguide.runs.run import Run
from fieldguide.study import landscape
from fieldguide.study.landscape import Landscape

if TYPE_CHECKING:
    from fieldguide.study.holdout_scores import Worth

# Rows of the heat map: with more tensors, blocks or stages are drawn (taste; resnet18 has 60).
MAP_ROWS = 70

_STAGED = re.compile(r"(\D*\d+)\.(?:[a-z_]+\.)?(\d+)\.")


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
    """A row of the heat map at one epoch: means over its tensors and over folds.

    `low_angle` and `high_angle` are the extremes of any of these; `tensors` their number.
    """

    row: str
    epoch: int
    angle: float
    ratio: float
    distance: float
    low_angle: float
    high_angle: float
    tensors: int


@dataclass(frozen=True)
class Gain:
    """Test accuracy of a fold's merged model at an epoch, less the mean of its replicas'."""

    fold: int
    epoch: int
    gain: float
    replicas: int


@dataclass(frozen=True)
class Effect:
    """A merged model on outside photos with batch norm measured anew, and with the folds' mean."""

    rule: str
    recalibrated: float
    averaged: float
    recalibrated_loss: float
    averaged_loss: float


# --- reading --------------------------------------------------------------------------------------


def read_merges(run: Run) -> list[Moved]:
    """The merges of folds that are done, or while none is, of those under way."""
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
    """The stage of a ResNet's tensor: `layer1` … `layer4`, or `stem`."""
    found = _STAGED.match(tensor)
    return found[1] if found and not tensor.startswith(("conv", "bn")) else "stem"


def block(tensor: str) -> str:
    """The block in its stage: `layer1.0`; `stem` where there is none."""
    found = _STAGED.match(tensor)
    return f"{found[1]}.{found[2]}" if found and stage(tensor) != "stem" else "stem"


def grouped(moves: Sequence[Moved], limit: int = MAP_ROWS) -> list[Cell]:
    """The cells of the heat map, in the network's order.

    A row is a tensor, or where these are more than `limit`, a block, or else a stage.
    """
    for name in (_tensor, block, stage):
        if len({name(move.tensor) for move in moves}) <= limit:
            break
    together: dict[tuple[str, int], list[Moved]] = defaultdict(list)
    for move in moves:
        together[name(move.tensor), move.epoch].append(move)
    return [_cell(row, epoch, found) for (row, epoch), found in together.items()]


def travelled(moves: Iterable[Moved]) -> dict[tuple[str, int], float]:
    """By stage and epoch: the mean distance over its tensors and over folds."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for move in moves:
        found[stage(move.tensor), move.epoch].append(move.distance)
    return {key: statistics.fmean(distances) for key, distances in found.items()}


def gains(points: Iterable[Point]) -> list[Gain]:
    """Merged minus mean replica, by fold and epoch, where both were judged.

    Replicas that diverged are left out, as they were of the merge.
    """
    accuracies: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for point in points:
        if point.test_accuracy is not None and not point.diverged:
            accuracies[point.fold, point.epoch][point.model] = point.test_accuracy
    found = []
    for (fold, epoch), models in sorted(accuracies.items()):
        merged = models.pop(MERGED, None)
        if merged is not None and models:
            gain = merged - statistics.fmean(models.values())
            found.append(Gain(fold, epoch, gain, len(models)))
    return found


def batch_norm_effect(rows: Iterable["Worth"]) -> list[Effect]:
    """For each rule whose models were scored with both ways of batch norm."""
    by_name = {row.name: row for row in rows}
    return [
        Effect(
            rule=name,
            recalibrated=row.accuracy,
            averaged=by_name[f"{name}-average"].accuracy,
            recalibrated_loss=row.log_loss,
            averaged_loss=by_name[f"{name}-average"].log_loss,
        )
        for name, row in by_name.items()
        if f"{name}-average" in by_name
    ]


def _tensor(tensor: str) -> str:
    return tensor


def _cell(row: str, epoch: int, found: Sequence[Moved]) -> Cell:
    def mean(value: Callable[[Moved], float]) -> float:
        return statistics.fmean(value(move) for move in found)

    angles = [move.angle for move in found]
    return Cell(
        row=row,
        epoch=epoch,
        angle=mean(lambda move: move.angle),
        ratio=mean(lambda move: move.ratio),
        distance=mean(lambda move: move.distance),
        low_angle=min(angles),
        high_angle=max(angles),
        tensors=len({move.tensor for move in found}),
    )


# --- charts ---------------------------------------------------------------------------------------


def map_chart(cells: Sequence[Cell]) -> alt.Chart:
    """Angle, ratio or distance by layer and epoch."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    values = [{name: _rounded(value) for name, value in vars(cell).items()} for cell in cells]
    labels = {
        "angle": "angle between replicas (degrees)",
        "ratio": "ratio (1: the mean, 0: the anchor)",
        "distance": "distance from the anchor",
    }
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
                alt.Tooltip("low_angle:Q", title="lowest angle", format=".1f"),
                alt.Tooltip("high_angle:Q", title="highest angle", format=".1f"),
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
    """How far the copies of each stage were from the anchor, by epoch."""
    stages = list(dict.fromkeys(name for name, _ in distances))
    values = [
        {"stage": name, "epoch": epoch, "distance": _rounded(value)}
        for (name, epoch), value in distances.items()
    ]
    colors = [(*COLORS, MERGED_COLOR, NEUTRAL)[n % 7] for n in range(len(stages))]
    shapes = [(*SHAPES, "diamond", "triangle-up")[n % 7] for n in range(len(stages))]
    legend = alt.Legend(title=None, orient="top", columns=5)
    drawn: alt.Chart = (
        alt.Chart(inline(values))
        .mark_line(point={"filled": True, "size": 45, "opacity": 1})
        .encode(
            x=curves.epochs(max(epoch for _, epoch in distances)),
            y=alt.Y("distance:Q", axis=alt.Axis(title="distance from the anchor (share)")),
            color=alt.Color("stage:N", scale=alt.Scale(domain=stages, range=colors), legend=legend),
            shape=alt.Shape("stage:N", scale=alt.Scale(domain=stages, range=shapes), legend=legend),
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
    """What merging brought: a point a fold and epoch, and a line through their means."""
    values = [
        {"fold": f"fold {each.fold}", "epoch": each.epoch, "gain": _rounded(100 * each.gain)}
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
    """`loss` or `accuracy` along the line, with its two ends and its middle marked."""
    title = "loss (nats a photo)" if measure == "loss" else "accuracy"
    form, precise = ("", ".4f") if measure == "loss" else (".1~%", ".2%")
    values = [
        {"t": point.t, "value": getattr(point, measure), "norm": _NORMS[point.batch_norm]}
        for point in found.points
        if getattr(point, measure) is not None
    ]
    names = [
        {"t": 0, "name": found.one},
        {"t": 0.5, "name": "middle"},
        {"t": 1, "name": found.other},
    ]
    x = alt.X("t:Q", axis=_PLACES, scale=alt.Scale(domain=[-0.25, 1.25], nice=False))
    domain = list(dict.fromkeys(value["norm"] for value in values))
    legend = alt.Legend(title=None, orient="bottom")
    lines = (
        alt.Chart()
        .mark_line(point={"filled": True, "size": 55, "opacity": 1})
        .encode(
            x=x,
            y=alt.Y(
                "value:Q", axis=alt.Axis(title=title, format=form), scale=alt.Scale(zero=False)
            ),
            color=alt.Color(
                "norm:N",
                scale=alt.Scale(domain=domain, range=[COLORS[0], MERGED_COLOR][: len(domain)]),
                legend=legend,
            ),
            shape=alt.Shape(
                "norm:N",
                scale=alt.Scale(domain=domain, range=["circle", "diamond"][: len(domain)]),
                legend=legend,
            ),
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
        layers.append(_kept_rule(kept, found.kept_name, precise))
    return alt.LayerChart(data=inline(values), layer=layers, height=240)


_PLACES = alt.Axis(title="place on the line (t)", values=[0, 0.25, 0.5, 0.75, 1], format="~g")
_NORMS = {
    "average": "batch norm averaged",
    "recalibrate": "batch norm measured anew",
    "none": "no batch norm",
}


def _kept_rule(value: float, name: str, precise: str) -> alt.Chart:
    drawn: alt.Chart = (
        alt.Chart(inline([{"value": value, "name": name}]))
        .mark_rule(strokeDash=[2, 2], color=COLORS[1], strokeWidth=2)
        .encode(
            y="value:Q",
            tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("value:Q", format=precise)],
        )
    )
    return drawn


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- the section ----------------------------------------------------------------------------------


def section(run: Run) -> Section:
    """What merging did in the folds that are done or under way."""
    found, moves = curves.read(run), read_merges(run)
    merges = run.recipe.merge != "none" and run.recipe.replicas > 1
    table = scored.read(run)
    body = fragment(
        "merging.html",
        notes=_notes(run, found, moves, merges),
        gain=_gain_part(found) if merges else None,
        moved=_moved_part(run, moves, merges) if moves else None,
        line=_line_part(run, merges),
        effects=batch_norm_effect(table.rows),
        no_effects=_no_effects(run, table.stale),
    )
    return Section("merging", "Merging", body)


def _notes(run: Run, found: Curves, moves: Sequence[Moved], merges: bool) -> list[str]:
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
        caption="Accuracy of the merged model less the mean of its replicas before the merge, in"
        " percentage points: a circle for each fold, a line for their mean.",
        description=f"Points by epoch and fold. {text}",
    )
    return {"text": text, "figure": drawn}


def gain_in_words(known: Sequence[Gain], kept: Mapping[int, int]) -> str:
    """What merging brought at each fold's kept epoch (its last, while it is under way)."""
    last = {each.fold: each.epoch for each in known} | dict(kept)
    chosen = [each.gain for each in known if each.epoch == last[each.fold]]
    if not chosen:
        return "At the kept epochs no replica was judged beside the merged model."
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
    """The heat map, where there are angles, and the distances."""
    distances = travelled(moves)
    anchor = "the last merge" if run.recipe.anchor == "last_merge" else "the weights at the start"
    last = max(epoch for _, epoch in distances)
    ends = "; ".join(
        f"{name}: {value:.3f}" for (name, epoch), value in distances.items() if epoch == last
    )
    drawn = figure(
        distance_chart(distances),
        caption=f"How far replicas moved from {anchor}: |w − anchor| / |anchor|, the mean over the"
        " tensors of each stage and over folds. The head begins at random and has no anchor.",
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
        " From the second merge on, replicas share the way up to the last one: angles shrink."
        if run.recipe.anchor == "pretrained"
        else ""
    )
    used = (
        "Model Stock's ratio was used in merging."
        if run.recipe.merge == "model_stock"
        else "The ratio is what Model Stock would have used; the plain mean was taken."
    )
    return figure(
        map_chart(cells),
        caption=f"The angle between the ways that replicas went from {anchor}: 0° is the same way,"
        f" 90° nothing in common.{common} {used} {what}, the first layer on top; means over folds.",
        description=f"Heat map of {rows} layers by epoch. Angles lie between {min(angles):.0f} and"
        f" {max(angles):.0f} degrees.",
    )


def _line_part(run: Run, merges: bool) -> Mapping[str, Any]:
    """The landscape, or how to get it."""
    between = "" if merges and run.recipe.keep_replicas else " --between folds"
    command = f"fieldguide landscape RUN{between}"
    found = landscape.read(run)
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
    """How to compare both ways of batch norm."""
    if not len(run.outside):
        return (
            "It cannot be compared here: models merged from all folds are judged on photos outside"
            " of them, and this run has none that nothing was chosen on."
        )
    if stale:
        return f"Old scores are not shown. {stale} `fieldguide score RUN` judges the models anew."
    return (
        "Not compared yet: merge the folds with --batch-norm recalibrate and with --batch-norm"
        " average (`fieldguide soup RUN`), then score them (`fieldguide score RUN`)."
    )


def _no_landscape(run: Run, between: str) -> str:
    if not run.done:
        return "It can be measured when a fold is done, by"
    if not between:
        return "It was not measured, or not since the folds changed; it is measured by"
    if len(run.done) < 2:
        return "This run keeps no two replicas; between two folds it can be measured by"
    return "Not measured. The run keeps no two replicas, so it is measured between folds, by"


def describe(found: Landscape) -> str:
    """What was measured, on what."""
    return (
        f"From {found.one} (t = 0) to {found.other} (t = 1), on {found.photos:,}"
        f" {found.judged_on}. The dotted line is {found.kept_name}."
    )


def in_words(found: Landscape, measure: str) -> str:
    """The ends and the middle of the line."""
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
