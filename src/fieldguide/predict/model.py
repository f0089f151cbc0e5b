"""A model: it answers for photos by the logits that something gives, and says how far to trust it.

Knows nothing of where logits come from, and needs no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL.Image import Image, fromarray
from PIL.ImageOps import exif_transpose

from fieldguide.analysis import calibration, conformal, metrics, promises, unknown
from fieldguide.analysis.taxa import AUTO
from fieldguide.errors import UsageError
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.decoding import Picture, square
from fieldguide.predict import events, inputs
from fieldguide.predict.by_photo import by_photo
from fieldguide.predict.card import Card, Combine, OutOfFold
from fieldguide.predict.inputs import Input
from fieldguide.predict.tables import Answering, Predictions
from fieldguide.recipe import Precision, View

Photos: TypeAlias = (
    str | Path | Catalog | Image | NDArray[Any] | Sequence[str | Path | Image | NDArray[Any]]
)


@dataclass(frozen=True)
class Machine:
    """The device and its use, which change no result beyond rounding; `auto` is the network's."""

    device: str = "auto"
    workers: int | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"`batch_size` is below 1: {self.batch_size}")
        if isinstance(self.workers, int) and self.workers < 0:
            raise UsageError(f"`workers` is below 0: {self.workers}")


@dataclass(frozen=True, eq=False)
class Seen:
    """The logits of a batch of photos, by their numbers, and those unreadable or too small."""

    photos: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "members n views classes"]
    unreadable: tuple[tuple[int, str], ...]
    small: tuple[tuple[int, str], ...] = ()


class Model(ABC):
    """A model that answers for photos: a `Classifier` in torch, or an `Exported` one."""

    card: Card
    out_of_fold: OutOfFold

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of probabilities."""
        return self.card.classes

    @property
    def merged(self) -> bool:
        """Whether it is one network merged from several, which no photo was kept from."""
        return "rule" in self.card.provenance.get("made", {})

    @abstractmethod
    def logits(
        self, photos: Sequence[Path], machine: Machine, views: Sequence[View]
    ) -> Iterator[Seen]:
        """Yield each photo's logits by member and view, batch by batch, in order, in float32."""

    @abstractmethod
    def look(
        self, squares: Sequence[UInt8[np.ndarray, "side side 3"]]
    ) -> Float[np.ndarray, "members n classes"]:
        """Return the logits of photos that were prepared (`square`), at least one."""

    @abstractmethod
    def require_machine(self, machine: Machine, views: Sequence[View] = ()) -> str:
        """Return what to tell of the precision used; `UsageError` for what it cannot do."""

    def predict(
        self,
        photos: Photos,
        *,
        views: Sequence[View] = (),
        sets: conformal.Sets | None = None,
        unknown: float = unknown.ALARM,
        right: float | None = None,
        rank: str = AUTO,
        calibrated: bool = True,
        machine: Machine = Machine(),
        boxes: str | Path | None = None,
        group: str | None = None,
        event_gap: float | None = None,
    ) -> Predictions:
        """Return predictions, in memory, for a folder, a table, files, pictures, or a catalog.

        There is one row for every photo, in the order of `inputs.read`; a catalog of crops has one
        for each. A classifier of crops (`card.crop`) answers by the boxes of the source or of the
        file `boxes`, and looks at whole photos where there are none. See `stream` for `views`,
        `sets` and `calibrated`, `answers_by` for `right` and `rank`, which give `taxa`. `unknown`
        marks what looks less familiar than all but such a share of known photos. Pictures of Pillow
        and arrays (RGB, or gray) are read as files of them would be, and called `picture 1`,
        `picture 2`, … by their place among `photos`. With `views` what is calibrated (sets, unknown
        photos, promises) may hold less or more often. `group` and `event_gap` (seconds) are those
        of `predict.events.named` and give `events`.
        Raises `UsageError` for a share outside 0 … 1, for a promise without calibration, and for
        events of several sources or of a catalog, whose photos have their groups.
        """
        if not 0 < unknown < 1:
            raise UsageError(f"`unknown` is not between 0 and 1: {unknown}", hint="such as 0.05")
        if right is not None and not calibrated:
            raise UsageError("promises need calibrated probabilities")
        if group is not None and not isinstance(photos, str | Path):
            raise UsageError("`group` is for one folder, table or list of photos")
        if event_gap is not None and group is None:
            raise UsageError("`event_gap` has no effect without `group`", hint="such as 'event'")
        taxa = None if right is None and rank == AUTO else self.answers_by(right, rank)
        with _as_files(photos) as (places, named):
            if isinstance(places, Catalog):
                found = [Input(photo.path, places.file(photo)) for photo in places.photos]
            else:
                found = inputs.read(places, crop=self.card.crop, boxes=boxes)
            event_of = None
            if group is not None and isinstance(places, str | Path):
                event_of = tuple(events.named(places, found, group, gap=event_gap))
            crops, counts = inputs.crops_of(found, self.card.crop)
            seen = self.stream(
                crops, views=views, sets=sets, calibrated=calibrated, machine=machine
            )
            chunks = by_photo(seen, found, counts)
            nothing = self._answered([], range(0), [], None, 1.0, sets)
            whole = Predictions.concatenate([nothing, *chunks])
        names = tuple(named.get(name, name) for name in whole.names)
        return replace(whole, names=names, alarm=unknown, answering=taxa, event_of=event_of)

    def square(self, picture: Picture) -> UInt8[np.ndarray, "side side 3"]:
        """Return the square of a decoded picture in whose centre the network looks."""
        own = self.card.architecture
        return square(picture, own.size, own.eval_resize, own.interpolation)

    def answer(
        self,
        squares: Sequence[UInt8[np.ndarray, "side side 3"]],
        *,
        sets: conformal.Sets | None = None,
    ) -> Predictions:
        """Return calibrated predictions for photos that were prepared, named by their numbers."""
        numbers = range(len(squares))
        seen = Seen(np.array(numbers), self.look(squares)[:, :, None], ())
        photos = [Input(str(number), Path()) for number in numbers]
        return self._answered(photos, numbers, numbers, seen, self.card.temperature, sets)

    def probabilities(
        self, logits: Float[np.ndarray, "members n classes"]
    ) -> Float[np.ndarray, "n classes"]:
        """Return the calibrated probabilities of one view's logits."""
        views, temperature = logits[:, :, None], self.card.temperature
        by_member = member_probabilities(views, temperature)
        return combined(views, by_member, temperature, self.card.combine)

    def require_known_photos(self) -> None:
        """Raise `UsageError` for a classifier of an older version, which kept too few facts."""
        if self.card.taxonomy is None or self.out_of_fold.confidences is None:
            raise UsageError(
                "this classifier was saved by an older version, without what answers are judged by",
                hint="save it again from its run",
            )

    def answers_by(self, right: float | None = None, rank: str = AUTO) -> Answering:
        """Return how photos are answered by taxa that are right in a share `right` of answers.

        `rank` is `auto`, for the finest that reaches the threshold at which that holds, or one of
        the taxonomy's (`label` for the classes). Without `right` each photo is answered at `rank`.
        Raises `UsageError` for a share outside 0 … 1, a rank that the taxonomy has not, no `right`
        for `auto`, and a classifier of an older version.
        """
        self.require_known_photos()
        known, taxonomy = self.out_of_fold, self.card.taxonomy
        assert taxonomy is not None and known.confidences is not None
        assert known.right is not None and known.groups is not None
        if rank not in (AUTO, *taxonomy.levels):
            raise UsageError(
                f"there is no rank `{rank}` in the taxonomy of this classifier",
                hint=f"one of {', '.join((AUTO, *taxonomy.levels))}",
            )
        if rank == AUTO and right is None:
            raise UsageError("`rank` = 'auto' needs `right`", hint="such as 0.95")
        if right is not None and not 0 < right < 1:
            raise UsageError(f"`right` is not between 0 and 1: {right}", hint="such as 0.95")
        levels = range(len(taxonomy.levels))
        if rank != AUTO:
            levels = levels[taxonomy.levels.index(rank) :][:1]
        span = slice(levels.start, levels.stop)
        if right is None:
            return Answering(taxonomy, levels, None)
        confidences, correct = known.confidences[:, span], known.right[:, span]
        found = promises.promise(confidences, correct, known.groups, right)
        return Answering(taxonomy, levels, found)

    def stream(
        self,
        photos: Sequence[Input],
        *,
        views: Sequence[View] = (),
        sets: conformal.Sets | None = None,
        calibrated: bool = True,
        machine: Machine = Machine(),
    ) -> Iterator[Predictions]:
        """Yield predictions batch by batch, in order: memory does not grow with the photos.

        `views` are added to the plain one (`augment.view_transform`), their probabilities averaged.
        `calibrated=False` leaves the temperature out: the probabilities of `oof.csv`. Raises
        `UsageError` for sets without calibration.
        """
        if sets and not calibrated:
            raise UsageError("sets of classes need calibrated probabilities")
        temperature = self.card.temperature if calibrated else 1.0
        asked = [n for n, photo in enumerate(photos) if photo.file is not None]
        paths = [photo.file for photo in photos if photo.file is not None]
        seen = self.logits(paths, machine, views)
        first = done = 0
        for batch in seen:
            done += len(batch.photos) + len(batch.unreadable)
            end = asked[done - 1] + 1 if done < len(asked) else len(photos)
            yield self._answered(photos, range(first, end), asked, batch, temperature, sets)
            first = end
        if not asked:
            yield self._answered(photos, range(len(photos)), asked, None, temperature, sets)

    def _answered(
        self,
        photos: Sequence[Input],
        span: range,
        asked: Sequence[int],
        batch: Seen | None,
        temperature: float,
        sets: conformal.Sets | None,
    ) -> Predictions:
        """Return the rows of `span`; the batch saw all photos of it that are files."""
        problems = {n: photos[n].problem for n in span}
        remarks = dict.fromkeys(span, "")
        probabilities = np.full((len(span), len(self.classes)), np.nan)
        familiar = np.full(len(span), np.nan)
        chosen = np.zeros((len(span), len(self.classes)), bool) if sets else None
        if batch is not None:
            problems |= {asked[number]: reason for number, reason in batch.unreadable}
            remarks |= {asked[number]: f"too small: {size}" for number, size in batch.small}
            rows = [asked[number] - span.start for number in batch.photos.tolist()]
            by_member = member_probabilities(batch.logits, temperature)
            probabilities[rows] = combined(batch.logits, by_member, temperature, self.card.combine)
            familiar[rows] = self._familiarity(batch.logits)
            if sets and chosen is not None:
                known = self.out_of_fold
                chosen[rows] = conformal.prediction_sets(
                    conformal.nonconformity(by_member, sets.method),
                    known.split if sets.method == "split" else known.adaptive,
                    known.members,
                    known.targets,
                    coverage=sets.coverage,
                    per_class=sets.per_class,
                )
        return Predictions(
            names=tuple(photos[n].name for n in span),
            problems=tuple(problems[n] for n in span),
            classes=self.classes,
            probabilities=probabilities,
            sets=chosen,
            remarks=tuple(remarks.values()),
            familiarity=familiar,
        )

    def _familiarity(
        self, logits: Float[np.ndarray, "members n views classes"]
    ) -> Float[np.ndarray, " n"]:
        """Return the familiarity of photos; NaN in a classifier of an older version."""
        if self._known is None:
            return np.full(logits.shape[1], np.nan)
        return self._known.familiarity(
            unknown.doubt(member_probabilities(logits, self.card.temperature))
        )

    @cached_property
    def _known(self) -> unknown.Known | None:
        """The known photos in the order of their doubts; None in one of an older version."""
        known = self.out_of_fold
        return None if known.doubts is None else unknown.Known.of(known.doubts, known.members)


@contextmanager
def _as_files(
    photos: Photos,
) -> Iterator[tuple[str | Path | Sequence[str | Path] | Catalog, Mapping[str, str]]]:
    """Yield photos with pictures as files of the same pixels, and what these are called."""
    if isinstance(photos, str | Path | Catalog):
        yield photos, {}
        return
    if isinstance(photos, Image | np.ndarray):
        photos = [photos]
    with TemporaryDirectory() as folder:
        places: list[str | Path] = []
        named: dict[str, str] = {}
        for number, photo in enumerate(photos, 1):
            if isinstance(photo, str | Path):
                places.append(photo)
                continue
            place = Path(folder, f"{number}.png")
            _write_picture(photo, place)
            places.append(place)
            named[str(place)] = f"picture {number}"
        yield places, named


def _write_picture(photo: object, place: Path) -> None:
    """Write a picture, as it is, to be read as any file; an empty file if it is truncated.

    Raises `UsageError` for what is none: an array needs 8 or 16 bits a value, (height, width), or
    with 3 or 4 colours (height, width, colours), of 8 bits each.
    """
    if isinstance(photo, np.ndarray):
        colours = photo.ndim == 3 and photo.shape[2] in (3, 4) and photo.dtype == np.uint8
        gray = photo.ndim == 2 and photo.dtype in (np.uint8, np.uint16)
        if not photo.size or not (colours or gray):
            raise UsageError(
                f"an array of shape {photo.shape} and {photo.dtype} is no picture",
                hint="give uint8 of shape (height, width, 3), or gray ones of uint8 or uint16",
            )
        photo = fromarray(np.ascontiguousarray(photo))
    if not isinstance(photo, Image):
        raise UsageError(f"neither a path nor a picture: {type(photo).__name__}")
    try:
        upright = exif_transpose(photo)
        kept = upright.mode in {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
        (upright if kept else upright.convert("RGB")).save(place, compress_level=1)
    except (OSError, ValueError):  # the picture is read only now, or closed
        place.write_bytes(b"")


def member_probabilities(
    logits: Float[np.ndarray, "members n views classes"], temperature: float
) -> Float[np.ndarray, "members n classes"]:
    """Return each member's probabilities at that temperature, averaged over views."""
    flat = calibration.scaled(logits.reshape(-1, logits.shape[-1]), temperature)
    by_member: NDArray[np.float64] = flat.reshape(logits.shape).mean(axis=2)
    return by_member


def combined(
    logits: Float[np.ndarray, "members n views classes"],
    by_member: Float[np.ndarray, "members n classes"],
    temperature: float,
    combine: Combine,
) -> Float[np.ndarray, "n classes"]:
    """Return the probabilities of all members together; `Card` says how."""
    if combine == "logits":
        return calibration.scaled(logits.astype(np.float64).mean(axis=(0, 2)), temperature)
    if combine == "geometric":
        logs: NDArray[np.float64] = np.log(by_member.clip(np.finfo(np.float64).tiny))
        return metrics.softmax(logs.mean(axis=0))
    mean: NDArray[np.float64] = by_member.mean(axis=0)
    return mean
