"""A classifier: weights, what they expect of a picture, and how far to trust its answers.

It is one folder that needs no run: `classifier.json`, a safetensors file a member, and the
out-of-fold scores by which sets of classes are drawn. Every file's hash is checked when it is read.
Knows nothing of runs or of how members came about.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from PIL.Image import Image, fromarray
from PIL.ImageOps import exif_transpose
from pydantic import Field, TypeAdapter
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fieldguide.analysis import calibration, conformal, metrics, promises, unknown
from fieldguide.analysis.taxa import AUTO, Taxonomy
from fieldguide.errors import ResourceError, UsageError
from fieldguide.merge import Weights
from fieldguide.network.backbones import require_backbone
from fieldguide.photos.augment import View
from fieldguide.photos.catalog import Catalog
from fieldguide.predict import events, inference, inputs
from fieldguide.predict.by_photo import by_photo
from fieldguide.predict.inference import Architecture, Machine, Positive, Seen
from fieldguide.predict.inputs import Input
from fieldguide.predict.tables import Answering, Predictions
from fieldguide.storage import files

FORMAT = 1
CARD = "classifier.json"
SCORES = "out-of-fold.safetensors"

Combine = Literal["ensemble", "logits", "geometric"]
Photos: TypeAlias = (
    str | Path | Catalog | Image | NDArray[Any] | Sequence[str | Path | Image | NDArray[Any]]
)


@dataclass(frozen=True)
class Card:
    """The description of a classifier, apart from its weights.

    `combine` says how members become one: the mean of their probabilities (`ensemble`), the softmax
    of the mean of their logits (`logits`), or the normalised geometric mean of their probabilities
    (`geometric`, which is `logits` for one view of each photo). Logits are divided by `temperature`
    first. `license` is that of the weights that training began with. `crop` is the rule by which
    training photos were cut out by boxes (`crops.Crop`), empty for whole photos. `taxonomy` has the
    taxa of the classes; None in a classifier of an older version.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    members: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)]
    combine: Combine
    temperature: Positive
    license: str
    calibration: Mapping[str, Any]
    provenance: Mapping[str, Any]
    crop: str = ""
    taxonomy: Taxonomy | None = None


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """The members' scores on photos that they were not trained on.

    `split` and `adaptive` are the scores (`analysis.conformal`) of each photo's class `targets`,
    after scaling by the temperature, under the member of the number `members`. `doubts` are those
    about each photo (`unknown.doubt`), `confidences` those of its most probable taxon by level
    (`Taxonomy.best`), from the class, and `right` says whether it holds the class; `groups` number
    what belongs together. These are newer than the first classifiers.
    """

    split: Float[np.ndarray, " n"]
    adaptive: Float[np.ndarray, " n"]
    targets: Int[np.ndarray, " n"]
    members: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"] | None = None
    doubts: Float[np.ndarray, " n"] | None = None
    confidences: Float[np.ndarray, "n levels"] | None = None
    right: Bool[np.ndarray, "n levels"] | None = None


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier of one or more members; `Classifier.load` reads a saved one."""

    card: Card
    members: tuple[Weights, ...] = field(repr=False)
    out_of_fold: OutOfFold = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of probabilities."""
        return self.card.classes

    @property
    def merged(self) -> bool:
        """Whether it is one network merged from several, which no photo was kept from."""
        return "rule" in self.card.provenance.get("made", {})

    @cached_property
    def parameters(self) -> int:
        """The number of trained values over all members, without batch norm's statistics."""
        return sum(
            tensor.numel()
            for weights in self.members
            for name, tensor in weights.items()
            if tensor.is_floating_point() and ".running_" not in name
        )

    @property
    def nbytes(self) -> int:
        """The size of the weights on disk and in memory."""
        return sum(tensor.nbytes for weights in self.members for tensor in weights.values())

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
        seen = inference.logits(self.card.architecture, self.members, paths, machine, views)
        first = done = 0
        for batch in seen:
            done += len(batch.photos) + len(batch.unreadable)
            end = asked[done - 1] + 1 if done < len(asked) else len(photos)
            yield self._answered(photos, range(first, end), asked, batch, temperature, sets)
            first = end
        if not asked:
            yield self._answered(photos, range(len(photos)), asked, None, temperature, sets)

    def save(self, folder: str | Path) -> Path:
        """Write the classifier as a folder and return it; `UsageError` if there is something."""
        names = [f"member-{n}.safetensors" for n in range(len(self.members))]
        scores = {
            key: np.ascontiguousarray(value)
            for key, value in vars(self.out_of_fold).items()
            if value is not None
        }
        with files.new_folder(Path(folder), hint="name a new folder") as place:
            for name, weights in zip(names, self.members, strict=True):
                content = {key: tensor.contiguous() for key, tensor in weights.items()}
                files.write_bytes(place / name, save_tensors(content, {"format": "pt"}))
            files.write_bytes(place / SCORES, save_arrays(scores))
            files.write_json(place / CARD, {"format": FORMAT, **asdict(self.card)})
            files.write_manifest(place, [*names, SCORES, CARD])
        return Path(folder)

    @staticmethod
    def load(folder: str | Path) -> "Classifier":
        """Return a saved classifier, its hashes checked.

        Raises `UsageError` if there is none, `ResourceError` for a damaged one.
        """
        place = Path(folder)
        if not (place / CARD).is_file():
            raise UsageError(f"`{folder}` is no classifier: it has no {CARD}")
        with files.parsing(place / CARD):
            card = _card(files.read_member(place, CARD))
        members = []
        for number in range(len(card.members)):
            name = f"member-{number}.safetensors"
            with files.parsing(place / name):
                members.append(load_tensors(files.read_member(place, name)))
                inference.require_weights(card.architecture, members[-1])
        with files.parsing(place / SCORES):
            scores = _scores(load_arrays(files.read_member(place, SCORES)), card)
        return Classifier(card, tuple(members), scores)

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


def as_tensors(weights: Mapping[str, NDArray[Any]]) -> Weights:
    """Return weights that were read as arrays."""
    return {name: torch.from_numpy(array) for name, array in weights.items()}


def _card(content: bytes) -> Card:
    """Return a card from the bytes of its file; pydantic's ValueError for a damaged one."""
    read = json.loads(content)
    if read.pop("format") != FORMAT:
        raise ResourceError(
            f"{CARD} has an unknown format",
            hint="read it with the version of fieldguide that wrote it",
        )
    card = TypeAdapter(Card).validate_python(read)
    require_backbone(card.architecture.backbone)
    names = {*card.classes} - {""}
    if not len(names) == len(card.classes) == card.architecture.classes:
        raise ValueError(f"{card.architecture.classes} classes, with {len(card.classes)} names")
    if card.taxonomy and len(card.taxonomy.taxa) != len(card.classes):
        raise ValueError(f"taxa of {len(card.taxonomy.taxa)} classes")
    if card.architecture.eval_resize < card.architecture.size:
        raise ValueError("`eval_resize` is below `size`")
    return card


def _scores(arrays: Mapping[str, NDArray[Any]], card: Card) -> OutOfFold:
    """Return the out-of-fold scores of that card; ValueError for others."""
    found = OutOfFold(**arrays)
    for name, array in arrays.items():
        shape: tuple[int, ...] = (len(found.targets),)
        if name in {"confidences", "right"}:
            shape += (len(card.taxonomy.levels) if card.taxonomy else 0,)
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"`{name}` is no list of {len(found.targets)} numbers")
    for name, most in (("targets", len(card.classes)), ("members", len(card.members))):
        numbers = arrays[name]
        if numbers.dtype.kind not in "iu" or not ((numbers >= 0) & (numbers < most)).all():
            raise ValueError(f"`{name}` are not all from 0 to {most - 1}")
    return found
