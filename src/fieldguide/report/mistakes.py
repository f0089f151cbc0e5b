"""The mistakes, photo by photo: confident ones with heat maps, doubtful labels, hard photos.

Knows nothing of how often classes are confused.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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

# Photos shown of each kind: as many as one looks through in one sitting (taste).
MISTAKES = 48
DOUBTS = 24
HOPELESS = 24

SIDE = 128  # pixels of the longest side of a photo with a heat map
SMALL = 96  # of the others


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


def section(run: Run, *, heat_maps: bool = True, folder: Path | None = None) -> Markup:
    """Return the galleries; links to photos are for a page in `folder`, or in the run's."""
    if not run.done:
        return fragment("mistakes.html", judged=0)
    judged = judge(run)
    found = hard_photos(judged.probabilities, judged.targets)
    surest = surest_mistakes(found)
    heats, why_not = _heats(run, judged, surest) if heat_maps else ({}, "not asked for")
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
        mistakes=[_mistake(run, judged, hard, heats, beside) for hard in surest],
        why_no_heat="" if heats or not surest else why_not,
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


# --- heat -----------------------------------------------------------------------------------------


def _heats(
    run: Run, judged: Judged, surest: Sequence[HardPhoto]
) -> tuple[Mapping[int, Picture], str]:
    """Return the heat map of the predicted class by row of `judged`, and why there is none."""
    rows_of: dict[int, list[HardPhoto]] = defaultdict(list)
    for hard in surest:
        if _is_there(run, run.catalog.photos[judged.photos[hard.photo]]):
            rows_of[int(judged.fold_of[hard.photo])].append(hard)
    if not rows_of:
        return {}, "the photos are not there any more, or not as they were"
    try:  # torch takes seconds to import, and a page can do without
        return _computed(run, judged, rows_of), "the photos cannot be read"
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
    run: Run, judged: Judged, rows_of: Mapping[int, Sequence[HardPhoto]]
) -> dict[int, Picture]:
    """Compute heat maps in one network, each fold's photos under its own weights."""
    from fieldguide.study.activation import Activation

    ingredients = run.ingredients()
    activation = Activation(ingredients.architecture)
    heats: dict[int, Picture] = {}
    for fold, rows in sorted(rows_of.items()):
        photos = [run.catalog.photos[judged.photos[hard.photo]] for hard in rows]
        places = [run.catalog.file(photo) for photo in photos]
        (weights,) = ingredients.fold_weights([fold])
        for found in activation.heats(weights, places, [hard.predicted for hard in rows]):
            heats[rows[found.photo].photo] = pictures.overlay(found.pixels, found.heat, SIDE)
    return heats


# --- cards ----------------------------------------------------------------------------------------


def _mistake(
    run: Run, judged: Judged, hard: HardPhoto, heats: Mapping[int, Picture], beside: Path
) -> Card:
    card = _card(run, _hard(run, judged, hard), beside, SIDE)
    heat = heats.get(hard.photo)
    alt = f"the same, bright where fold {card.fold} sees evidence for {card.other}"
    return replace(card, heat=pictures.image(heat, alt)) if heat else card


def _hard(run: Run, judged: Judged, hard: HardPhoto) -> Shown:
    return Shown(
        int(judged.photos[hard.photo]),
        run.classes[hard.predicted],
        hard.given_probability,
        hard.predicted_probability,
    )


def _card(run: Run, shown: Shown, beside: Path, side: int = SMALL) -> Card:
    photo = run.catalog.photos[shown.photo]
    file = run.catalog.file(photo)
    return Card(
        photo=pictures.image(
            pictures.picture(file, side, sha256=photo.sha256),
            f"a photo labelled {photo.label}",
            href=pictures.link(file, beside),
        ),
        heat=Markup(),
        name=Path(photo.path).name,
        given=photo.label or "",
        given_probability=percent(shown.given_probability),
        other=shown.other,
        other_probability=percent(shown.other_probability),
        fold=photo.fold if photo.fold is not None else -1,
        remark=shown.remark,
    )


def percent(probability: float) -> str:
    """Return a probability as in the list of labels, with a space at which no line is broken."""
    return labels.percent(probability).replace(" ", "\N{NO-BREAK SPACE}")
