"""The mistakes, photo by photo: confident ones with heat maps, doubtful labels, hard photos.

Knows nothing of how often classes are confused.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from fieldguide.analysis.suspects import HardPhoto, hard_photos, suspects
from fieldguide.errors import DataError, FieldguideError
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Photo
from fieldguide.photos.tables import read_cells
from fieldguide.report import pictures
from fieldguide.report.judged import Judged, judge
from fieldguide.report.page import fragment
from fieldguide.report.pictures import Picture
from fieldguide.runs.run import Run
from fieldguide.study import labels

if TYPE_CHECKING:
    from fieldguide.study.similar import Like

# Photos shown of each kind: as many as one looks through in one sitting (taste).
MISTAKES = 48
DOUBTS = 24
HOPELESS = 24

SIDE = 128  # pixels of the longest side of a photo with a heat map
SMALL = 96  # of the others
ALIKE = 64  # of training photos that look like a mistake
ALIKES = 3
# Training photos of a class that are compared with a mistake: a page must not take long (taste).
COMPARED = 64


@dataclass(frozen=True, slots=True)
class Shown:
    """A photo to show, with out-of-fold probabilities of its label and of another class."""

    photo: int  # its number in the catalog
    other: str  # the class that was predicted, or that is suggested
    given_probability: float
    other_probability: float
    remark: str = ""  # on a doubtful label, if a look-alike casts the doubt


@dataclass(frozen=True, slots=True)
class Card:
    """A photo of a gallery."""

    photo: Markup  # the picture, or why there is none
    heat: Markup  # the heat map over it, or empty
    name: str  # of the file
    given: str
    given_probability: str
    other: str  # the class that was predicted, or that is suggested
    other_probability: str
    fold: int
    remark: str = ""
    likes: tuple[Markup, ...] = ()  # the training photos of the predicted class most like it


def section(run: Run, *, heat_maps: bool = True, folder: Path | None = None) -> Markup:
    """Return the galleries; links to photos are for a page in `folder`, or in the run's."""
    if not run.done:
        return fragment("mistakes.html", judged=0)
    judged = judge(run)
    found = hard_photos(judged.probabilities, judged.targets)
    surest = surest_mistakes(found)
    told: list[str] = []
    seen, why_not = _seen(run, judged, surest, told) if heat_maps else ({}, "not asked for")
    doubts, doubt_source = doubtful(run, judged)
    top = first_places(len(run.classes))
    beyond = hopeless(found, top)
    beside = run.folder if folder is None else folder
    return fragment(
        "mistakes.html",
        judged=len(judged.photos),
        folds=len(run.done),
        planned=run.recipe.folds,
        wrong=len(found),
        mistakes=[_mistake(run, judged, hard, seen, beside) for hard in surest],
        compared=COMPARED,
        no_likes="; ".join(dict.fromkeys(told)),
        why_no_heat="" if seen or not surest else why_not,
        other_epoch=run.recipe.stop == "fold",
        doubts=[_card(run, doubt, beside) for doubt in doubts[:DOUBTS]],
        doubted=len(doubts),
        doubt_source=doubt_source,
        hopeless=[_card(run, _hard(run, judged, hard), beside) for hard in beyond[:HOPELESS]],
        hopeless_found=len(beyond),
        top=top,
        classes=len(run.classes),
    )


# --- which photos ---------------------------------------------------------------------------------


def surest_mistakes(found: Sequence[HardPhoto], most: int = MISTAKES) -> list[HardPhoto]:
    """Return the most confident of the misclassified photos, the most confident first."""
    return sorted(found, key=lambda hard: (-hard.predicted_probability, hard.photo))[:most]


def first_places(classes: int) -> int:
    """Return the k of the top-k classes that lack a hard photo's true class: 5, but never all."""
    return min(5, classes - 1)


def hopeless(found: Sequence[HardPhoto], first: int) -> list[HardPhoto]:
    """Return the photos whose true class is not in the top `first`, the least probable first."""
    return [hard for hard in found if hard.place > first]


def doubtful(run: Run, judged: Judged) -> tuple[list[Shown], str]:
    """Return the labels that look wrong, the most suspicious first, and why not from labels.csv.

    Without a RUN/labels.csv that fits, which also knows look-alikes, the model decides.
    """
    try:
        listed = _listed(run)
    except DataError as error:
        return _suspected(run, judged), f"{labels.TABLE} cannot be used: {error.message}"
    if listed is None:
        return _suspected(run, judged), f"there is no {labels.TABLE} yet"
    return listed, ""


def _listed(run: Run) -> list[Shown] | None:
    """Read RUN/labels.csv, only photos with the same label as then; None if there is no file."""
    place = run.folder / labels.TABLE
    if not place.is_file():
        return None
    table = read_cells(place)
    if table.header != labels.HEADER:
        raise DataError(f"its columns are not {', '.join(labels.HEADER)}")
    numbers = {(photo.path, photo.label): n for n, photo in enumerate(run.catalog.photos)}
    rows = [dict(zip(table.header, cells, strict=True)) for _, cells in table.rows]
    return [
        Shown(
            number,
            row["suggested"],
            _probability(row["given_probability"]),
            _probability(row["suggested_probability"]),
            row["reason"] if row["other"] else "",
        )
        for row in rows
        if (number := numbers.get((row["path"], row["label"]))) is not None
    ]


def _probability(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError as error:
        raise DataError(f"`{cell}` is no probability") from error
    if not 0 <= value <= 1:
        raise DataError(f"`{cell}` is no probability")
    return value


def _suspected(run: Run, judged: Judged) -> list[Shown]:
    return [
        Shown(
            int(judged.photos[suspect.photo]),
            run.classes[suspect.suggested],
            suspect.given_probability,
            suspect.suggested_probability,
        )
        for suspect in suspects(judged.probabilities, judged.targets)
    ]


# --- what the networks saw ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """The heat map of a mistake's predicted class, and the training photos of it most alike."""

    heat: Picture
    likes: "tuple[Like, ...]"


def _seen(
    run: Run, judged: Judged, surest: Sequence[HardPhoto], told: list[str]
) -> tuple[Mapping[int, Seen], str]:
    """Return what the fold saw in each, by row of `judged`, and why there is none.

    Why there are no photos that look like it goes to `told`.
    """
    rows_of: dict[int, list[HardPhoto]] = defaultdict(list)
    for hard in surest:
        if _is_there(run, run.catalog.photos[judged.photos[hard.photo]]):
            rows_of[int(judged.fold_of[hard.photo])].append(hard)
    if not rows_of:
        return {}, "the photos are not there any more, or not as they were"
    try:  # torch takes seconds to import, and a page can do without
        return _computed(run, judged, rows_of, told), "the photos cannot be read"
    except ImportError as error:
        return {}, f"torch cannot be imported: {error}"
    except FieldguideError as error:
        return {}, error.message


def _is_there(run: Run, photo: Photo) -> bool:
    """Return whether the file is the one that was judged: a heat map of another means nothing."""
    try:
        return pixels.sha256(run.catalog.file(photo)) == photo.sha256
    except OSError:
        return False


def _computed(
    run: Run, judged: Judged, rows_of: Mapping[int, Sequence[HardPhoto]], told: list[str]
) -> dict[int, Seen]:
    """Compute heat maps in one network, each fold's photos under its own weights."""
    from fieldguide.study import similar
    from fieldguide.study.activation import Activation

    ingredients = run.ingredients()
    activation = Activation(ingredients.architecture)
    seen: dict[int, Seen] = {}
    for fold, rows in sorted(rows_of.items()):
        numbers = [int(judged.photos[hard.photo]) for hard in rows]
        places = [run.catalog.file(run.catalog.photos[number]) for number in numbers]
        classes = [hard.predicted for hard in rows]
        (weights,) = ingredients.fold_weights([fold])
        likes: Sequence[tuple[Like, ...]] = [()] * len(rows)
        try:
            likes = similar.of_class(
                run, fold, numbers, classes, top=ALIKES, most=COMPARED, ingredients=ingredients
            )
        except FieldguideError as error:  # some of the training photos are gone
            told.append(error.message)
        for found in activation.heats(weights, places, classes):
            heat = pictures.overlay(found.pixels, found.heat, SIDE)
            seen[rows[found.photo].photo] = Seen(heat, likes[found.photo])
    return seen


# --- cards ----------------------------------------------------------------------------------------


def _mistake(
    run: Run, judged: Judged, hard: HardPhoto, seen: Mapping[int, Seen], beside: Path
) -> Card:
    card, own = _card(run, _hard(run, judged, hard), beside, SIDE), seen.get(hard.photo)
    if own is None:
        return card
    alt = f"the same, bright where fold {card.fold} sees evidence for {card.other}"
    likes = [_picture(run, like.photo, beside, ALIKE) for like in own.likes]
    return replace(card, heat=pictures.image(own.heat, alt), likes=tuple(likes))


def _hard(run: Run, judged: Judged, hard: HardPhoto) -> Shown:
    return Shown(
        int(judged.photos[hard.photo]),
        run.classes[hard.predicted],
        hard.given_probability,
        hard.predicted_probability,
    )


def _card(run: Run, shown: Shown, beside: Path, side: int = SMALL) -> Card:
    photo = run.catalog.photos[shown.photo]
    return Card(
        photo=_picture(run, shown.photo, beside, side),
        heat=Markup(),
        name=Path(photo.path).name,
        given=photo.label or "",
        given_probability=percent(shown.given_probability),
        other=shown.other,
        other_probability=percent(shown.other_probability),
        fold=photo.fold if photo.fold is not None else -1,
        remark=shown.remark,
    )


def _picture(run: Run, number: int, beside: Path, side: int) -> Markup:
    photo = run.catalog.photos[number]
    file = run.catalog.file(photo)
    shown = pictures.picture(file, side, sha256=photo.sha256)
    alt = f"a photo labelled {photo.label}"
    return pictures.image(shown, alt, href=pictures.link(file, beside))


def percent(probability: float) -> str:
    """Return a probability as in the list of labels, with a space at which no line is broken."""
    return labels.percent(probability).replace(" ", "\N{NO-BREAK SPACE}")
