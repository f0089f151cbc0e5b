"""A table of every class: precision, recall, F1, the class it is confused with most, examples."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from fieldguide.report import pictures
from fieldguide.report.judged import groups, judge
from fieldguide.report.page import fragment
from fieldguide.runs.run import Run

# All thumbnails of the table: 1.5 MB at 64 pixels, with those of the other sections far below the
# 15 MB that a page may have.
PICTURES = 600
MOST_PICTURES = 3  # of one class (taste)
SIDE = 64

_Z = NormalDist().inv_cdf(0.975)


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
    rows = class_rows(targets, judged.predicted, len(run.classes))
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
        grouped=len(set(group_of)) < len(photos),
    )


# --- numbers --------------------------------------------------------------------------------------


def class_rows(
    targets: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], classes: int
) -> list[ClassRow]:
    """Return a row for each class, by number."""
    true = np.bincount(targets, minlength=classes).tolist()
    called = np.bincount(predicted, minlength=classes).tolist()
    right = np.bincount(targets[targets == predicted], minlength=classes).tolist()
    confused = most_confused(targets, predicted)
    return [
        ClassRow(
            number,
            true[number],
            share(right[number], called[number]),
            share(right[number], true[number]),
            f1_share(right[number], called[number], true[number]),
            confused.get(number),
        )
        for number in range(classes)
    ]


def share(right: int, of: int) -> Share | None:
    """Return right / of with Wilson's interval; None if `of` is 0.

    The interval holds the shares p with |right/of - p| ≤ z √(p(1-p)/of). It is never empty, stays
    within 0 and 1, but is too narrow for photos in groups. Source: Wilson, "Probable Inference, the
    Law of Succession, and Statistical Inference", J. American Statistical Association 22, 1927.
    """
    if not of:
        return None
    value, z2 = right / of, _Z * _Z
    centre = (value + z2 / (2 * of)) / (1 + z2 / of)
    reach = _Z * math.sqrt(value * (1 - value) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    # At the ends rounding could leave the value outside of its interval.
    return Share(value, min(max(centre - reach, 0.0), value), max(min(centre + reach, 1.0), value))


def f1_share(right: int, called: int, true: int) -> Share | None:
    """Return F1 = 2 · right / (called + true) with an interval; None if called + true is 0.

    F1 = 2 j / (1 + j) rises with j = right / (called + true - right), so Wilson's interval for j is
    transformed likewise: the indirect method of Lam, Gopal, Qian, "Confidence Intervals for the F1
    Score: A Comparison of Four Methods", 2023, arXiv 2309.14621. Unlike a bootstrap's, it keeps its
    width if a class has few photos, all right or all wrong.
    """
    either = share(right, called + true - right)
    if either is None:
        return None
    value, low, high = (2 * j / (1 + j) for j in (either.value, either.low, either.high))
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
