"""A table of every class: precision, recall, F1, the class it is confused with most, examples."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from markupsafe import Markup

from fieldguide.analysis import promises
from fieldguide.analysis.intervals import share_interval
from fieldguide.analysis.metrics import rows_of
from fieldguide.report import pictures
from fieldguide.report.judged import groups, judge
from fieldguide.report.page import fragment
from fieldguide.runs.run import Run

# All thumbnails of the table: 1.5 MB at 64 pixels, with those of the other sections far below the
# 15 MB that a page may have.
PICTURES = 600
MOST_PICTURES = 3  # of one class (taste)
SIDE = 64


@dataclass(frozen=True, slots=True)
class Share:
    """A share and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Confused:
    """The class that another is confused with most, and the photos confused either way."""

    other: int
    taken_for: int
    taken_from: int


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class. A share is None if there is no photo to measure it on, never 0."""

    number: int
    photos: int  # of the class, in the folds that are done
    precision: Share | None
    recall: Share | None
    f1: Share | None
    confused: Confused | None


def section(run: Run) -> Markup:
    """Return the table of all classes."""
    if not run.done:
        return fragment("classes.html", photos=0)
    judged = judge(run)
    photos, targets = judged.photos, judged.targets
    group_of = groups(run, photos)
    rows = class_rows(targets, judged.predicted, run.groups[photos], len(run.classes))
    each, pictured = shown_classes(rows)
    own = judged.probabilities[np.arange(len(photos)), targets]
    typical = typical_photos(targets, own, group_of, each)
    shown = {number: _pictures(run, photos[typical[number]].tolist()) for number in pictured}
    return fragment(
        "classes.html",
        rows=rows,
        names=run.classes,
        shown=shown,
        photos=len(photos),
        folds=len(run.done),
        planned=run.recipe.folds,
        pictured=len(pictured),
        each=each,
        sure=run.trust.classes,
        asked=run.trust.promise.asked,
        fewest=promises.fewest(run.trust.promise.asked),
    )


# --- numbers --------------------------------------------------------------------------------------


def class_rows(
    targets: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    classes: int,
) -> list[ClassRow]:
    """Return a row for each class, by number."""
    confused = most_confused(targets, predicted)
    right = targets == predicted
    rows = []
    for number, (true, called) in enumerate(
        zip(rows_of(targets, classes), rows_of(predicted, classes), strict=True)
    ):
        either = np.union1d(true, called)
        rows.append(
            ClassRow(
                number,
                len(true),
                share(right[called], groups[called]),
                share(right[true], groups[true]),
                f1_share(right[either], groups[either]),
                confused.get(number),
            )
        )
    return rows


def share(correct: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Share | None:
    """Return the share right with its interval (`share_interval`); None without photos."""
    if not len(correct):
        return None
    return Share(float(correct.mean()), *share_interval(correct, groups))


def f1_share(correct: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Share | None:
    """Return a class's F1 with an interval, from the photos that are of it or called it.

    F1 = 2 · right / (called + true) = 2 j / (1 + j) rises with j, the share of these that is right,
    so the interval for j is transformed likewise: the indirect method of Lam,
    Gopal, Qian, "Confidence Intervals for the F1 Score: A Comparison of Four Methods", 2023, arXiv
    2309.14621. None without such photos.
    """
    found = share(correct, groups)
    if found is None:
        return None
    value, low, high = (2 * j / (1 + j) for j in (found.value, found.low, found.high))
    return Share(value, low, high)


def most_confused(
    targets: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"]
) -> dict[int, Confused]:
    """Return, by class, the one it is confused with most, both ways; ties go to the lowest."""
    wrong = np.flatnonzero(targets != predicted)
    pairs, counts = np.unique(
        np.stack([targets[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True
    )
    times = {(int(one), int(other)): int(n) for (one, other), n in zip(pairs, counts, strict=True)}
    found: dict[int, list[Confused]] = defaultdict(list)
    for one, other in {pair for key in times for pair in (key, key[::-1])}:
        there, back = times.get((one, other), 0), times.get((other, one), 0)
        found[one].append(Confused(other, there, back))
    return {
        number: min(several, key=lambda c: (-(c.taken_for + c.taken_from), c.other))
        for number, several in found.items()
    }


def typical_photos(
    targets: Int[np.ndarray, " n"],
    own: Float[np.ndarray, " n"],
    groups: Sequence[str],
    each: int,
) -> Mapping[int, list[int]]:
    """Return, by class, up to `each` rows, one of a group, whose true class is most probable."""
    found: dict[int, list[int]] = defaultdict(list)
    seen: dict[int, set[str]] = defaultdict(set)
    for row in np.argsort(-own, kind="stable").tolist():
        number, group = int(targets[row]), groups[row]
        if len(found[number]) < each and group not in seen[number]:
            found[number].append(row)
            seen[number].add(group)
    return found


def shown_classes(rows: Sequence[ClassRow], most: int = PICTURES) -> tuple[int, list[int]]:
    """Return the thumbnails a class and the classes that get them; of many, those of lowest F1."""
    each = max(min(MOST_PICTURES, most // len(rows)), 1)
    worst = sorted(rows, key=lambda row: (row.f1.value if row.f1 else 2.0, row.number))
    return each, [row.number for row in worst[: most // each]]


# --- the table ------------------------------------------------------------------------------------


def _pictures(run: Run, photos: Sequence[int]) -> tuple[Markup, ...]:
    """Return thumbnails of the readable photos; they are decoration, without alt text."""
    chosen = [run.catalog.photos[number] for number in photos]
    found = [
        pictures.picture(run.catalog.file(photo), SIDE, sha256=photo.sha256) for photo in chosen
    ]
    return tuple(pictures.image(shown, "") for shown in found if shown.uri)
