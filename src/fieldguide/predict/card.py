"""The description of a classifier, what photos out of fold said of it, and how both are kept.

Knows nothing of weights.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, TypeAdapter
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fieldguide.analysis.taxa import Taxonomy
from fieldguide.errors import ResourceError
from fieldguide.photos.decoding import Decoding
from fieldguide.photos.pixels import Reading
from fieldguide.recipe import MOST_PIXELS, Interpolation, Layout, Precision, Tone
from fieldguide.storage import files

FORMAT = 1
CARD = "classifier.json"
SCORES = "out-of-fold.safetensors"

Combine = Literal["ensemble", "logits", "geometric"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rgb = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]


@dataclass(frozen=True)
class Architecture:
    """A network without its weights, and what it expects of a picture.

    `size`, `eval_resize` and `stored_side` are pixels (see `recipe`), `mean` and `std` shares of
    the range of each channel, `precision` and `layout` what it was trained and judged in.
    The bounds hold where a card is read.
    """

    backbone: str
    head: Literal["linear", "se", "attention"]
    classes: Annotated[int, Field(ge=2, le=1_000_000)]
    size: Side
    eval_resize: Side
    stored_side: Annotated[int, Field(ge=0, le=4 * MOST_PIXELS)]
    mean: Rgb
    std: tuple[Positive, Positive, Positive]
    interpolation: Interpolation
    truncated: Literal["refuse", "keep"]
    precision: Precision
    layout: Layout
    tone: Tone = "full"  # those below are newer than the first cards
    no_data: FiniteFloat | Literal["tag"] = "tag"
    max_megapixels: Annotated[int, Field(ge=1, le=10_000)] = 250

    @cached_property
    def decoding(self) -> Decoding:
        """The way from files to pictures by which the folds were judged."""
        reading = Reading.of(self)
        return Decoding.of(self.stored_side, self.eval_resize, self.interpolation, reading)


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


def read_card(content: bytes) -> Card:
    """Return a card from the bytes of its file; pydantic's ValueError for a damaged one."""
    read = json.loads(content)
    if read.pop("format") != FORMAT:
        raise ResourceError(
            f"{CARD} has an unknown format",
            hint="read it with the version of fieldguide that wrote it",
        )
    card = TypeAdapter(Card).validate_python(read)
    names = {*card.classes} - {""}
    if not len(names) == len(card.classes) == card.architecture.classes:
        raise ValueError(f"{card.architecture.classes} classes, with {len(card.classes)} names")
    if card.taxonomy and len(card.taxonomy.taxa) != len(card.classes):
        raise ValueError(f"taxa of {len(card.taxonomy.taxa)} classes")
    if card.architecture.eval_resize < card.architecture.size:
        raise ValueError("`eval_resize` is below `size`")
    return card


def read_scores(content: bytes, card: Card) -> OutOfFold:
    """Return the out-of-fold scores of that card; ValueError for others."""
    arrays: Mapping[str, NDArray[Any]] = load_arrays(content)
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


def card_bytes(card: Card) -> bytes:
    """Return a card as JSON."""
    return files.json_bytes({"format": FORMAT, **asdict(card)})


def scores_bytes(known: OutOfFold) -> bytes:
    """Return out-of-fold scores as safetensors."""
    return save_arrays(
        {
            key: np.ascontiguousarray(value)
            for key, value in vars(known).items()
            if value is not None
        }
    )
