"""The verdict on a run: accuracy in a sentence, model selection, accuracy against cost, next steps.

Findings are collected first, then turned into words by pure functions.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
from markupsafe import Markup

from fieldguide.analysis import paired
from fieldguide.analysis.suspects import suspects
from fieldguide.photos.groups import holds_for
from fieldguide.photos.occasions import SHARED_EVENT
from fieldguide.recipe import Recipe
from fieldguide.report import collection, curves, repeat, scored
from fieldguide.report.collection import class_counts
from fieldguide.report.judged import groups, judge
from fieldguide.report.page import figure, fragment, inline, looks
from fieldguide.runs.run import Run
from fieldguide.runs.scores import Scores
from fieldguide.study import labels
from fieldguide.words import count, listed, percent, some

if TYPE_CHECKING:
    from fieldguide.study.holdout_scores import Worth

# With fewer photos of a class, more of them are the best advice (taste).
FEW_PHOTOS = 10
# A rise of accuracy in the last epoch that justifies longer training, and a calibration error that
# needs a warning (both taste).
RISE = 0.003
LARGE_ERROR = 0.05


@dataclass(frozen=True)
class ScoreRow:
    """A line of the table of scores; texts as they are shown."""

    name: str
    value: str
    interval: str = ""


@dataclass(frozen=True)
class Findings:
    """The facts that advice depends on; commands are empty if the run was begun from Python."""

    run: str  # its folder, quoted
    fit: str  # the command that resumes it
    longer: str  # the command that trains twice as long
    folds: int
    done: int
    rise: float = 0.0  # of accuracy in the last epoch, if chance does not explain it
    disturbed: int = 0  # replicas of some epoch that diverged or skipped steps
    suspects: int = 0
    labels_listed: bool = False
    outside: int = 0
    scored: bool = False
    models: int = 0
    thin: tuple[tuple[str, int], ...] = ()  # classes with few photos, and their number
    error: float = 0.0  # of calibration, scaled


@dataclass(frozen=True)
class Step:
    """An advice, and the command for it, if there is one."""

    text: str
    command: str = ""


def section(run: Run) -> Markup:
    """Return the verdict on a run, finished or not."""
    table = scored.read(run)
    rows = table.rows
    counts = class_counts(run.catalog)
    planned = sum(photos for _, photos in counts)
    return fragment(
        "verdict.html",
        folds=run.recipe.folds,
        done=len(run.done),
        planned=planned,
        scores=run.scores if run.done else None,
        groups=len({each for fold in run.done for each in groups(run, run.folds[fold].test)}),
        holds_for=holds_for(run.environment.get("collection", "")),
        gained=(
            [*went_on(run), gained(run), delivered(run, rows), *about_groups(run)]
            if run.done
            else []
        ),
        by_group=run.by_group if run.done else None,
        unit=run.unit,
        commonest=counts[0][1] / planned,  # the accuracy of always predicting the largest class
        choices=choices(run.recipe, run.scores if run.done else None, len(run.outside)),
        score_rows=score_rows(run.scores) if run.done else [],
        outside=len(run.outside),
        rows=rows,
        stale=table.stale,
        doubt=table.doubt,
        notes=list(dict.fromkeys(row.note for row in rows if row.note)),
        comparison=comparison(rows),
        chart=_cost_figure(rows, len(run.outside)),
        run=shlex.quote(str(run.folder)),
        watch_val=run.recipe.watch_val,
        steps=advice(findings(run, scored=bool(rows))),
    )


def told_after(run: Run) -> list[str]:
    """Return in sentences what a trained run's accuracy does not say by itself.

    What training gained, what the ensemble and one new group have, and whether it was too short.
    """
    found = findings(run, scored=False)
    advised = (f"{step.text} {step.command}".strip() for step in _about_training(found))
    said = (gained(run), delivered(run, scored.read(run).rows), *about_groups(run))
    return [*went_on(run), *filter(None, said), *advised]


def went_on(run: Run) -> list[str]:
    """Return what a run goes on from and what became of the same photos, a sentence each."""
    facts = run.environment.get("older")
    if not facts:
        return []
    judged, photos, before = judge(run), run.catalog.photos, run.predicted_before
    answers = [before.get(photos[row].sha256) for row in judged.photos]
    old = np.array([answer is not None for answer in answers])
    right = judged.logits.argmax(axis=1) == judged.targets
    was = np.array([a == run.classes[t] for a, t in zip(answers, judged.targets, strict=True)])
    said = [
        f"This run goes on from {facts['name']} (manifest {facts['manifest_sha256'][:12]}…): each"
        f" fold from that fold's weights, which never saw the photos that it tests."
    ]
    if old.any():
        found = paired.difference(right[old], was[old], run.groups[judged.photos[old]])
        points, low, high = map(_points, found)
        classes = len(run.classes)
        less = classes - len(facts["new_classes"]) + len(facts["lost_classes"])
        among = f", with {classes} classes instead of {less}" if classes != less else ""
        said.append(
            f"On {count(int(old.sum()), 'photo')} of it accuracy went from"
            f" {percent(float(was[old].mean()))} to {percent(float(right[old].mean()))}{among}:"
            f" {points} points (95 % interval, paired: {low} to {high})."
        )
    if not old.all():
        new = count(int((~old).sum()), "new photo")
        said.append(f"On {new} it is {percent(float(right[~old].mean()))}.")
    return said


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def gained(run: Run) -> str:
    """Return what training gained on a regression on the start's features; empty if not known.

    A run that goes on from an older one has to beat its start itself.
    """
    older = run.environment.get("older")
    if not ((run.probed or older) and run.recipe.epochs):
        return ""
    judged = judge(run)
    starts = [run.start(fold)[1] if older else run.probe(fold)["logits"] for fold in run.judged]
    logits = np.concatenate([start for start in starts if start is not None])
    one, other = (each.argmax(axis=1) == judged.targets for each in (judged.logits, logits))
    found = paired.difference(one, other, run.groups[judged.photos])
    points, low, high = map(_points, found)
    what = (
        "The folds' starts reach"
        if older
        else "A linear head on the features of the network before training reaches"
    )
    harmed = (
        " So training did harm: make it longer (`min_steps`), lower its rates, or leave it out"
        " (`epochs` = 0)."
    )
    return (
        f"{what} {percent(float(other.mean()))} on the same photos and folds: training gained"
        f" {points} points (95 % interval, paired: {low} to {high})."
    ) + harmed * (found[2] < 0)


def delivered(run: Run, rows: Sequence["Worth"]) -> str:
    """Return whose accuracy the run's is, and what is known of the ensemble's."""
    own = "That is the accuracy of each fold's own network"
    for row in rows:
        if row.name == "ensemble":
            low, high = map(percent, row.interval)
            return (
                f"{own}. The ensemble of all folds reaches {percent(row.accuracy)} (95 % interval:"
                f" {low} to {high}) on {count(len(run.outside), 'photo')} that no fold has seen."
            )
    if run.recipe.stop == "fold" or len(run.done) < run.recipe.folds:
        return ""
    return (
        f"{own}. The ensemble of all folds learned from all these photos; on others it nearly"
        " always reached at least the interval's lower limit, in fits that were measured."
    )


def about_groups(run: Run) -> list[str]:
    """Return what one new group may have; without groups, whether folds share events."""
    if found := run.by_group:
        if not found.new:
            return []
        low, high = map(percent, found.new)
        rest = sum(map(len, run.judged.values())) - found.photos
        alone = f"; {rest:,} photos in none are left out" if rest else ""
        return [
            f"One new {run.unit} may be easier or harder: with 95 % probability accuracy there lies"
            f" between {low} and {high} ({found.groups:,} {run.unit}s are known{alone})."
        ]
    shared = [each for each in collection.findings(run)[0] if each.kind == SHARED_EVENT]
    return [
        f"The accuracy may flatter: {reason}; {found.hint}."
        for found in shared
        for _, reason in found.such_as[:1]
    ]


# --- words ----------------------------------------------------------------------------------------


def choices(recipe: Recipe, scores: Scores | None, outside: int) -> list[str]:
    """Return what was chosen on which photos, a sentence each."""
    said = [_choice_of_epoch(recipe, scores)]
    if recipe.watch_val:
        said.append(
            "The collection's val part helped to choose epochs, so it cannot test ensembles or"
            " merged models."
        )
    if recipe.holdout:
        said.append(
            f"{outside:,} photos ({percent(recipe.holdout, 0)} asked for) were set aside before"
            " the folds were made; no fold has seen them."
        )
    return said


def _choice_of_epoch(recipe: Recipe, scores: Scores | None) -> str:
    if not recipe.epochs:
        return (
            "Nothing was trained, and nothing was chosen on the test photos: each fold kept its"
            " start, which was made from its training photos alone."
        )
    if recipe.stop == "none":
        return (
            "Nothing was chosen on the test photos: each fold kept the weights of its last epoch,"
            f" number {recipe.epochs}."
        )
    if recipe.stop == "inner":
        return (
            f"Each fold chose its epoch on {percent(recipe.inner_share, 0)} of its training photos,"
            " set aside for that. Its test photos had no part in the choice."
        )
    if scores is None or scores.selected_accuracy is None:
        return "Each fold chooses its epoch on its own test photos, which is optimistic."
    return (
        "Each fold chose its epoch on its own test photos. At these epochs accuracy is"
        f" {percent(scores.selected_accuracy)}, which is optimistic; the accuracy above is"
        " cross-fitted: each fold is taken at the epoch that is best on average in the other folds."
    )


def score_rows(scores: Scores) -> list[ScoreRow]:
    """Return the out-of-fold scores, some with intervals."""
    shown = {
        "accuracy": ("accuracy", percent),
        "balanced accuracy": ("balanced_accuracy", percent),
        "macro F1": ("macro_f1", percent),
        "top-5 accuracy": ("top_5_accuracy", percent),
        "log loss": ("log_loss", "{:.3f}".format),
    }
    rows = [
        ScoreRow(
            name, form(getattr(scores, field)), " to ".join(map(form, scores.intervals[field]))
        )
        for name, (field, form) in shown.items()
        if getattr(scores, field) is not None
    ]
    rows += [
        ScoreRow("calibration error", f"{scores.calibration_error:.3f}"),
        ScoreRow("calibration error, scaled", f"{scores.scaled_calibration_error:.3f}"),
    ]
    rows += [
        ScoreRow(f"accuracy of fold {fold}", percent(accuracy))
        for fold, accuracy in scores.accuracy_per_fold.items()
    ]
    return rows


def comparison(rows: Sequence["Worth"]) -> str:
    """Return whether one classifier is shown to be better than others; empty without rows."""
    combined = [row for row in rows if not row.name.startswith("fold ")]
    if not combined:
        return ""
    shown = [
        f"{row.name} better than {listed(row.better_than)}" for row in combined if row.better_than
    ]
    if not shown:
        return (
            "These photos do not show any of them to be better than another (paired sign-flip tests"
            " on groups, corrected by Holm), so cost may decide."
        )
    return f"Shown by paired tests on these photos: {'; '.join(shown)}."


# --- advice ---------------------------------------------------------------------------------------


def advice(found: Findings) -> list[Step]:
    """Return the next steps, the most urgent first; each follows from a finding."""
    if left := found.folds - found.done:
        folds = "fold is" if left == 1 else "folds are"
        again = "The same call of fieldguide.fit trains the rest."
        how = "This command trains the rest:" if found.fit else again
        said = f"{left} of {found.folds} {folds} not trained yet. {how}"
        return [Step(said, found.fit), *_about_training(found)]
    return [
        *_about_training(found),
        *_about_photos(found),
        *_about_outside(found),
        Step(
            "Use it: probabilities are scaled, and prediction sets contain the true class as often"
            " as asked.",
            f"fieldguide predict {found.run} PHOTOS --out predictions.csv --coverage 0.95",
        ),
    ]


def _about_training(found: Findings) -> Iterator[Step]:
    if found.disturbed:
        yield Step(
            f"{count(found.disturbed, 'epoch')} of a replica diverged or skipped steps: lower"
            " backbone_rate and head_rate, or train in float32."
        )
    if found.rise:
        yield Step(
            f"Accuracy still rose in the last epoch, by {100 * found.rise:.1f} points on average:"
            " train longer.",
            found.longer,
        )


def _about_photos(found: Findings) -> Iterator[Step]:
    if found.suspects:
        there = "labels.csv lists them." if found.labels_listed else "this command lists them:"
        command = "" if found.labels_listed else f"fieldguide labels {found.run}"
        labels = f"{count(found.suspects, 'label')} {'looks' if found.suspects == 1 else 'look'}"
        yield Step(f"{labels} wrong to folds that did not train on them: {there}", command)
    if found.thin:
        named = some([f"{name} ({photos})" for name, photos in found.thin])
        yield Step(f"Add photos of these classes, which have fewer than {FEW_PHOTOS}: {named}.")
    if found.error > LARGE_ERROR:
        yield Step(
            f"Even scaled, probabilities are off by {100 * found.error:.0f} points on average:"
            " trust prediction sets more than percentages."
        )


def _about_outside(found: Findings) -> Iterator[Step]:
    if not found.outside:
        yield Step(
            "No photos lie outside all folds, so the accuracy of the ensemble or a merged model is"
            " unknown. Measure it on other labelled photos, or in a run with --holdout 0.1:",
            f"fieldguide score {found.run} LABELLED-PHOTOS",
        )
    elif not found.models:
        yield Step(
            "Merge the folds into one network, and measure its accuracy:",
            f"fieldguide soup {found.run} && fieldguide score {found.run}",
        )
    elif not found.scored:
        yield Step(
            "Measure the accuracy of the ensemble and the merged models:",
            f"fieldguide score {found.run}",
        )


# --- findings -------------------------------------------------------------------------------------


def findings(run: Run, *, scored: bool) -> Findings:
    """Collect the findings from a run's files."""
    tables = [run.fold_folder(fold) / "history.csv" for fold in run.done]
    history = [row for table in tables for row in curves.read_table(table)]
    folder, epochs = str(run.folder), 2 * run.recipe.epochs
    small = {"batch_size": run.recipe.batch_size} if run.recipe.min_steps else {}
    command = run.environment["command"]
    judged = judge(run) if run.done else None
    thin = [each for each in class_counts(run.catalog) if each[1] < FEW_PHOTOS]
    return Findings(
        run=shlex.quote(folder),
        fit=repeat.command_line(command, fold=None),
        longer=repeat.command_line(
            command, fold=None, epochs=epochs, out=f"{folder}-{epochs}-epochs", **small
        ),
        folds=run.recipe.folds,
        done=len(run.done),
        rise=last_rise(history),
        disturbed=sum(
            row["diverged"] == "True" or row["skipped"] not in {"", "0"} for row in history
        ),
        suspects=len(suspects(judged.probabilities, judged.targets)) if judged else 0,
        labels_listed=(run.folder / labels.TABLE).is_file(),
        outside=len(run.outside),
        scored=scored,
        models=len(run.models()),
        thin=tuple(sorted(thin, key=lambda each: (each[1], each[0]))),
        error=run.scores.scaled_calibration_error if run.done else 0.0,
    )


def last_rise(history: Sequence[Mapping[str, str]]) -> float:
    """Return the folds' mean rise of merged accuracy in the last epoch.

    It counts as 0 up to `RISE` or up to two standard errors over the folds.
    """
    accuracies: dict[str, list[float]] = {}
    for row in history:
        if row["model"] == "merged" and row["test_accuracy"]:
            accuracies.setdefault(row["fold"], []).append(float(row["test_accuracy"]))
    rises = [values[-1] - values[-2] for values in accuracies.values() if len(values) > 1]
    if len(rises) < 2:
        return 0.0
    mean, error = np.mean(rises), np.std(rises, ddof=1) / np.sqrt(len(rises))
    return float(mean) if mean > max(RISE, 2 * error) else 0.0


# --- accuracy against cost ------------------------------------------------------------------------


def cost_rows(rows: Sequence["Worth"]) -> list[dict[str, Any]]:
    """Return the chart's values of classifiers but single folds, the cheapest and best first."""
    combined = [row for row in rows if not row.name.startswith("fold ")]
    least = min((row.parameters for row in combined), default=1)
    shown = [
        {
            "name": row.name,
            "accuracy": row.accuracy,
            "low": row.interval[0],
            "high": row.interval[1],
            "networks": count(round(row.parameters / least), "network"),  # of the cheapest's size
            "milliseconds": 1000 / row.photos_per_second if row.photos_per_second else None,
            "megabytes": row.bytes / 1e6,
            "parameters": row.parameters,
        }
        for row in combined
    ]
    return sorted(shown, key=lambda row: (row["parameters"], -row["accuracy"], row["name"]))


def _cost_figure(rows: Sequence["Worth"], photos: int) -> str:
    if not rows:
        return ""
    shown = cost_rows(rows)
    return figure(
        cost_chart(shown),
        caption=f"Accuracy on {photos:,} photos outside all folds, with 95 % intervals; the"
        " cheapest classifiers on top.",
        description="Accuracy against cost. "
        + "; ".join(
            f"{row['name']}: {percent(row['accuracy'])}, {row['networks']}" for row in shown
        ),
    )


def cost_chart(shown: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    """Draw the accuracy of each classifier with its interval; colour and shape show the cost."""
    names = [row["name"] for row in shown]
    cost = looks("networks:N", list(dict.fromkeys(row["networks"] for row in shown)), title="cost")
    base = alt.Chart(inline(shown)).encode(
        y=alt.Y("name:N", sort=names, title=None, axis=alt.Axis(labelLimit=160)),
        color=cost["color"],
        tooltip=[
            alt.Tooltip("name:N", title="classifier"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%", title="at least"),
            alt.Tooltip("high:Q", format=".1%", title="at most"),
            alt.Tooltip("milliseconds:Q", format=".1f", title="ms per photo"),
            alt.Tooltip("megabytes:Q", format=",.0f", title="MB"),
        ],
    )
    scale = alt.Scale(zero=False, padding=12)
    axis = alt.Axis(format=".1~%", tickCount=6)
    intervals = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title="accuracy"), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        x=alt.X("accuracy:Q", scale=scale), shape=cost["shape"]
    )
    return alt.layer(intervals, points).properties(height=26 * len(names))
