"""`Recipe`: every setting of a fit, in one flat frozen model, read from and written as TOML.

The same fields are the command line's flags (`--batch-size`), a recipe file's keys (`batch_size`)
and environment variables (`FIELDGUIDE_BATCH_SIZE`). Later ones win: recipe, environment, flags.
Knows nothing of photographs, networks or training; must not import torch, so that typing mistakes
are answered at once.
"""
# ruff: noqa: E501 -- one setting a line: the model reads as a table

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from fieldguide.errors import UsageError

Auto = Literal["auto"]
# ResNets halve a picture five times; of a smaller one, torch's bfloat16 convolutions of stride 2 have
# gradients with memory that nobody wrote.
MOST_PIXELS = 4096  # of a side (taste)
Pixels = Annotated[int, Field(ge=32, le=MOST_PIXELS)]
NearDuplicates = Literal["group", "warn", "off"]
Count = Annotated[int, Field(ge=0)]
Tone = Annotated[str, AfterValidator(lambda tone: require_tone(tone))]
Gigabytes = Annotated[float, Field(gt=0)]
Channels = tuple[float, float, float]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
View = Literal["flips", "crops", "scales"]  # of a photo, beside the plain one
Precision = Literal["float32", "bfloat16", "float16"]
Layout = Literal["contiguous", "channels_last"]
Switch = Literal["off", "on"]
HeadStart = Literal["random", "probe"]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Mix = Literal["none", "cutmix", "mixup", "either"]
# Epochs from which `mix` = auto mixes (taste: longer than any that it was seen to harm). Of 4, 31
# and 20 epochs CutMix took 14, 4 and 1 points: docs/results.md.
MIX_FROM = 50
ENVIRONMENT_PREFIX = "FIELDGUIDE_"
R = TypeVar("R", bound="Recipe")

# Settings that may differ when a run is resumed: where and how fast it runs. On the same kind of device
# the results are the same to the bit.
HARMLESS = frozenset(
    {"cache", "cache_gb", "cluster", "device", "workers", "checkpoint_minutes", "track"}
)


def _setting(section: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"section": section}, **bounds)


class Recipe(BaseModel):
    """Every setting of a fit; `auto` is resolved from weights or device when a fit starts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # fmt: off
    backbone: str = _setting("Network", "resnetaa50d.sw_in12k_ft_in1k",
        "a convolutional network of timm, with or without the tag of its weights: `fieldguide backbones` lists them")
    weights: str = _setting("Network", "pretrained",
        "`pretrained` (from the hub), `none` (random), a .safetensors or .pth file, or `FILE:entry` of one")
    head: Literal["linear", "se", "attention"] = _setting("Network", "linear",
        "linear layer on the mean feature, squeeze-and-excitation, or multi-head attention pooling")
    head_start: HeadStart | Auto = _setting("Network", "auto",
        "a fold's head at its start: drawn, or fitted to features of its training photos (logistic regression);"
        " auto: fitted, if it is linear")
    dropout: float = _setting("Network", 0.0, "share of features dropped before the last layer", ge=0, lt=1)
    freeze: int = _setting("Network", 0, "early stages that are not trained (1 = the stem)", ge=0)

    size: Pixels | Auto = _setting("Pictures", "auto", "side of the network's input in pixels")
    eval_size: Pixels | Auto = _setting("Pictures", "auto",
        "side of the network's input in evaluation and prediction; auto: `size`")
    eval_resize: Pixels | Auto = _setting("Pictures", "auto",
        "evaluation: pixels of the shorter side, from which the central `eval_size` × `eval_size` is cut")
    mean: Channels | Auto = _setting("Pictures", "auto", "mean of each channel, 0 to 1")
    std: Channels | Auto = _setting("Pictures", "auto", "deviation of each channel, 0 to 1")
    interpolation: Interpolation | Auto = _setting("Pictures", "auto",
        "interpolation when pictures are resized")
    stored_side: Count | Auto = _setting("Pictures", "auto",
        "pixels of the shorter side of photos kept decoded in the cache, from which crops are cut;"
        " auto: 2 · eval_resize, 0: decode the file each time")
    truncated: Literal["refuse", "keep"] = _setting("Pictures", "refuse",
        "truncated photos: leave them out, or use the part that can be read")
    tone: Tone = _setting("Pictures", "full",
        "pictures of more than 8 bits a channel in 8: `full` (the whole range; of floats each picture's), `percentile` (the"
        " range of the collection's values, found when a fit starts) or LOW,HIGH")
    no_data: float | Literal["tag"] = _setting("Pictures", "tag",
        "the value that means no data in such pictures, besides what a TIFF's own tag says")
    max_megapixels: int = _setting("Pictures", 250, "photos of more are left out; reading takes 4 MB for each, and 30 MB of 16-bit colours with a tone",
        ge=1, le=10_000)

    folds: int = _setting("Folds", 5, "folds of the cross-validation", ge=2, le=10_000)
    seed: int = _setting("Folds", 0, "seed of folds, initial head, order and augmentation; 0 is a seed like any other", ge=0)
    min_per_class: int = _setting("Folds", 0, "classes with fewer photos are left out", ge=0)
    holdout: float = _setting("Folds", 0.0,
        "share of the photos set aside before the folds are made, to score ensembles and merged models on", ge=0, lt=0.9)
    near_duplicates: NearDuplicates = _setting("Folds", "group",
        "photos that look alike: kept in one fold (group), reported alone (warn), or not looked for (off);"
        " frames of a fixed camera that differ in light alone look alike too")
    drop_thin_groups: bool = _setting("Folds", False,
        "classes whose photos all lie in one group are left out, instead of stopping the fit")
    conflicts: Literal["refuse", "drop"] = _setting("Folds", "refuse",
        "the same picture under two labels: stop, or leave all its copies out")

    replicas: int = _setting("Merging", 1, "copies trained from the same start in each fold, and merged", ge=1)
    merge: Literal["none", "average", "model_stock"] = _setting("Merging", "average",
        "merge of the replicas: their plain mean, or the mean pulled to the anchor by their angle")
    merge_every: int = _setting("Merging", 1, "epochs from one merge to the next; the last epoch always merges", ge=1)
    replica_data: Literal["full", "share"] = _setting("Merging", "full",
        "photos of a replica's epoch: all training photos, or a share of them, drawn again each epoch")
    outer: Literal["none", "momentum"] = _setting("Merging", "none",
        "merged weights unchanged, or a step of Nesterov momentum towards them from the last merged ones")
    outer_rate: float = _setting("Merging", 0.7, "length of the outer step; 1 without momentum goes all the way", gt=0)
    outer_momentum: float = _setting("Merging", 0.9, "share of the outer movement that is kept", ge=0, lt=1)
    anchor: Literal["pretrained", "last_merge"] = _setting("Merging", "pretrained",
        "weights that Model Stock pulls to and that movements are measured from")
    batch_norm: Literal["average", "recalibrate"] = _setting("Merging", "average",
        "statistics of merged weights: the replicas' mean, or re-estimated on training photos")
    moments: Literal["keep", "average", "reset"] = _setting("Merging", "keep",
        "the optimisers' moments after a merge")
    replica_curves: bool = _setting("Merging", True,
        "evaluate each replica too after every epoch, not only merged models")
    keep_replicas: bool = _setting("Merging", False,
        "save each replica's weights as they were before the last merge")

    epochs: int = _setting("Length", 20, "passes over the training photos, for each replica; 0 with head_start = probe: its start is the result", ge=0)
    min_steps: int = _setting("Length", 400,
        "least steps of a replica: of few photos batches are made smaller (8 an epoch) and epochs more; 0 if only `epochs` or `batch_size` is given", ge=0)
    stop: Literal["none", "fold", "inner"] = _setting("Length", "none",
        "early stopping and choice of epoch: none, on the fold's test photos, on a part of its training photos")
    patience: int = _setting("Length", 5, "epochs without a better merged model before stopping", ge=1)
    inner_share: float = _setting("Length", 0.1, "part of the training photos set aside by stop = inner", gt=0, lt=0.9)
    watch_val: bool = _setting("Length", False, "stop = fold also watches the collection's `val` part")

    batch_size: int = _setting("Optimiser", 64, "photos in a step", ge=1)
    order: Literal["photos", "shards"] = _setting("Optimiser", "photos",
        "order of an epoch's photos: shuffled, or shard after shard and shuffled within a buffer, for disks slow at random reads")
    shuffle_buffer: int = _setting("Optimiser", 10_000, "photos in the buffer of order = shards", ge=1)
    accumulate: int = _setting("Optimiser", 1, "micro-batches of a batch, to save memory", ge=1)
    batch_ranks: int = _setting("Optimiser", 1,
        "ranks that share each batch of a replica, for torchrun on as many, or a multiple of it", ge=1)
    sync_batch_norm: bool = _setting("Optimiser", False,
        "batch norms normalise by the whole batch in training, not by each rank's share of it")
    backbone_rate: float = _setting("Optimiser", 1e-4, "AdamW's rate for the backbone", gt=0)
    head_rate: Rate | Auto = _setting("Optimiser", "auto",
        "AdamW's rate for the head; auto: that of the backbone for a fitted head, else 1e-3")
    weight_decay: float = _setting("Optimiser", 0.05, "decay of all weights but norms and biases", ge=0)
    schedule: Literal["constant", "cosine"] = _setting("Optimiser", "cosine", "learning rates after the warm-up")
    warmup: float = _setting("Optimiser", 0.5, "epochs in which the rates rise", ge=0)
    label_smoothing: float = _setting("Optimiser", 0.0, "share of the target spread over all classes", ge=0, lt=1)
    co_tuning: Weight | Auto = _setting("Optimiser", "auto",
        "weight of a loss that keeps the source's classes apart, as its start did (Co-Tuning); needs head_start = probe"
        " and weights with their classifier; auto: 0.5 where these are there")
    class_weights: Literal["none", "balanced"] = _setting("Optimiser", "none",
        "weight photos by the rarity of their class")

    augment: Literal["none", "randaugment", "trivialaugment", "augmix"] = _setting("Augmentation", "none",
        "a policy of random changes, after crop, flip and colours")
    mix: Mix | Auto = _setting("Augmentation", "auto",
        "mixing of photos in a batch; auto: cutmix in a fit that is long enough for it, else none")
    mix_alpha: float = _setting("Augmentation", 1.0, "shares are drawn from Beta(alpha, alpha)", gt=0)
    crop_scale: tuple[float, float] = _setting("Augmentation", (0.35, 1.0), "share of the area that a crop covers")
    flip: float = _setting("Augmentation", 0.5, "probability of a mirror image", ge=0, le=1)
    color_jitter: float = _setting("Augmentation", 0.8, "probability of a change of colours", ge=0, le=1)
    jitter: tuple[float, float, float, float] = _setting("Augmentation", (0.2, 0.2, 0.2, 0.02),
        "strength for brightness, contrast, saturation, hue")
    grayscale: float = _setting("Augmentation", 0.0, "probability of a picture without colour", ge=0, le=1)
    erasing: float = _setting("Augmentation", 0.0, "probability of an erased box", ge=0, le=1)

    precision: Precision | Auto = _setting("Machine", "auto",
        "the network's arithmetic; auto: bfloat16 if the hardware supports it")
    layout: Layout | Auto = _setting("Machine", "auto",
        "memory layout of pictures; auto: the faster in a trial of a few seconds")
    compile: Switch | Auto = _setting("Machine", "auto",
        "torch.compile; auto: if it saves more time than it takes")
    device: str = _setting("Machine", "auto",
        "devices that train folds, one fold at a time on each: auto (every GPU, or else the CPU), cpu, cuda:1, mps,"
        " several as `0,1`, the CPU as `cpu:2`")
    cluster: str = _setting("Machine", "none",
        "Ray cluster that folds are trained on, one a job: none, local, auto, HOST:PORT, ray://HOST:PORT")
    workers: Count | Auto = _setting("Machine", "auto",
        "on a CPU: folds trained at the same time; on a GPU: threads that prepare photos")
    checkpoint_minutes: float = _setting("Machine", 10.0, "time between checkpoints inside an epoch", gt=0)
    cache: str = _setting("Machine", "auto",
        "folder of decoded photos; auto: the user's cache folder, none: decode them every time")
    cache_gb: Gigabytes | Auto = _setting("Machine", "auto",
        "gigabytes that decoded photos may take; auto: all but 2 of the disk")
    track: Literal["none", "tensorboard", "mlflow", "wandb"] = _setting("Machine", "none",
        "tracker that also gets every epoch, with the extra `track`; events.jsonl is always written")
    # fmt: on

    @model_validator(mode="before")
    @classmethod
    def _own_length(cls, settings: Any) -> Any:
        """Return the settings, with the length that is given instead of the least one."""
        return without_min_steps(settings) if isinstance(settings, dict) else settings

    @model_validator(mode="after")
    def _settings_agree(self) -> "Recipe":
        for message in self._conflicts():
            raise ValueError(message)
        return self

    def _conflicts(self) -> Iterator[str]:
        """Yield a message for each value, or pair of values, that cannot work."""
        resize, stored = self.eval_resize, self.stored_side
        seen = self.size if self.eval_size == "auto" else self.eval_size
        low, high = self.crop_scale
        if stored != "auto" and resize != "auto" and 0 < stored < resize:
            yield f"`stored_side` = {stored} is smaller than `eval_resize` = {resize}"
        if seen != "auto" and resize != "auto" and resize < seen:
            name = "size" if self.eval_size == "auto" else "eval_size"
            yield f"`eval_resize` = {resize} is smaller than `{name}` = {seen}"
        if not 0 < low <= high <= 1:
            yield f"`crop_scale` = {[low, high]} is no range within (0, 1]"
        if min(self.jitter) < 0:
            yield f"`jitter` = {list(self.jitter)} has a negative strength"
        if self.jitter[3] > 0.5:
            yield f"`jitter` has hue {self.jitter[3]}, at most 0.5 is possible"
        if self.mean != "auto" and not 0 <= min(self.mean) <= max(self.mean) <= 1:
            yield f"`mean` = {self.mean} is not between 0 and 1"
        if self.std != "auto" and not 0 < min(self.std) <= max(self.std) <= 1:
            yield f"`std` = {self.std} is not above 0 and at most 1"
        if self.merge == "none" and self.replicas > 1:
            yield f"`merge` = 'none' leaves {self.replicas - 1} of `replicas` = {self.replicas} unused"
        if self.co_tuning not in {0.0, "auto"} and (
            self.head != "linear" or self.head_start == "random"
        ):
            yield "`co_tuning` needs `head` = 'linear' and `head_start` = 'probe'"
        if self.mix not in {"none", "auto"} and self.batch_size == 1:
            yield f"`mix` = {self.mix!r} needs a `batch_size` of at least 2"
        if self.accumulate > self.batch_size:
            yield f"`accumulate` = {self.accumulate} is more than `batch_size` = {self.batch_size}"
        if self.batch_ranks > 1 and self.batch_size < 2 * self.batch_ranks:
            yield (
                f"`batch_size` = {self.batch_size} leaves fewer than 2 photos"
                f" for each of `batch_ranks` = {self.batch_ranks}"
            )
        if self.sync_batch_norm and self.batch_ranks > 1 and self.compile == "on":
            yield "`sync_batch_norm` cannot be compiled: set `compile` to off"
        if self.watch_val and self.stop != "fold":
            yield f"`watch_val` has no effect with `stop` = {self.stop!r}: turn it off (--no-watch-val)"
        if self.holdout > 0 and self.watch_val:
            yield (
                "`watch_val` would choose epochs by the photos that `holdout` sets aside:"
                " leave one of them out"
            )
        if self.device.startswith("cpu:") and self.workers != "auto":
            yield (
                f"`device` = {self.device!r} says how many folds are trained at the same time:"
                f" leave out `workers` = {self.workers}"
            )
        if self.cluster != "none" and (":" in self.device or "," in self.device):
            yield (
                f"`cluster` = {self.cluster!r} chooses devices itself:"
                f" `device` = {self.device!r} is to be auto, cpu or cuda"
            )
        if self.head_start == "probe" and self.head != "linear":
            yield f"`head_start` = 'probe' fits a linear head: `head` = {self.head!r} has other layers"
        if self.epochs == 0 and self.head_start != "probe":
            yield "`epochs` = 0 trains nothing: it needs `head_start` = 'probe', or a head that is drawn is the result"
        if self.epochs == 0 and self.stop != "none":
            yield f"`stop` = {self.stop!r} has no epoch to choose with `epochs` = 0: set it to none"
        if self.warmup >= self.epochs > 0:
            yield f"`warmup` = {self.warmup} does not end within `epochs` = {self.epochs}"

    def replace(self: R, **settings: Any) -> R:
        """Return the same recipe with some settings changed and checked."""
        return _built(type(self), self.model_dump() | without_min_steps(settings))


class ResolvedRecipe(Recipe):
    """A recipe without `auto`, resolved from the one asked for; a run computes with it."""

    size: Pixels
    eval_size: Pixels
    eval_resize: Pixels
    mean: Channels
    std: Channels
    interpolation: Interpolation
    stored_side: Count
    precision: Precision
    layout: Layout
    compile: Switch
    workers: Count
    mix: Mix
    head_rate: Rate
    head_start: HeadStart = "random"  # newer than the first runs, as is `eval_size`
    co_tuning: Weight = 0.0

    @model_validator(mode="before")
    @classmethod
    def _evaluated_as_trained(cls, settings: Any) -> Any:
        """Return the settings of a run that is older than `eval_size` with this setting."""
        return {"eval_size": settings.get("size"), **settings}


def without_min_steps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without a least number of steps if they say the length and not this number.

    So `epochs` = 3 is 3 epochs, whatever the recipe under it does with few photos.
    """
    said = {"epochs", "batch_size"} & settings.keys() and "min_steps" not in settings
    return {**settings, "min_steps": 0} if said else {**settings}


# Settings that follow from others, unless they are given as well.
_FOLLOWING = {
    "size": ("eval_size", "eval_resize", "stored_side"),
    "eval_size": ("eval_resize", "stored_side"),
    "eval_resize": ("stored_side",),
}


def over(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others `given` over them, and without what follows from changed ones.

    So `size` = 96 over a recipe of 128 pixels does not crop 96 of a picture of 146.
    """
    changed = {name for name in given.keys() & _FOLLOWING if given[name] != settings.get(name)}
    left = {name for cause in changed for name in _FOLLOWING[cause]}
    kept = {name: value for name, value in settings.items() if name not in left}
    return kept | without_min_steps(given)


# The named recipes, as differences from the defaults above.
RECIPES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "default": ("for collections of a few thousand photos, on a GPU", {}),
    "quick": (
        "minutes on a laptop: a small network on small pictures",
        {
            "backbone": "resnet18.a1_in1k",
            "size": 128,
            "eval_resize": 146,
            "folds": 3,
            "freeze": 3,
            "epochs": 8,
            "min_steps": 200,
            "backbone_rate": 3e-4,
            "mix": "none",
            "color_jitter": 0.0,
        },
    ),
    "instant": (
        "a first number: frozen features of `quick`'s network and pictures, and a linear head fitted to them",
        {
            "backbone": "resnet18.a1_in1k",
            "head_start": "probe",
            "size": 128,
            "eval_resize": 146,
            "folds": 3,
            "epochs": 0,
        },
    ),
    "demo": (
        "the drawn collection of `fieldguide demo`: a tiny network from random weights",
        {
            "backbone": "test_resnet",
            "weights": "none",
            "size": 64,
            "eval_resize": 72,
            "head_start": "random",
            "folds": 3,
            "replicas": 2,
            "epochs": 20,
            "batch_size": 32,
            "backbone_rate": 3e-3,
            "head_rate": 3e-3,
            "warmup": 1.0,
            "mix": "none",
            "color_jitter": 0.0,
            "crop_scale": (0.5, 1.0),
            "layout": "contiguous",
        },
    ),
    "reference": (
        "the course report that this system started from, setting by setting",
        {
            "backbone": "resnest200e.in1k",
            "size": 320,
            "eval_resize": 512,
            "interpolation": "bilinear",
            "folds": 10,
            "seed": 111550159,
            "head_start": "random",
            "head_rate": 1e-3,
            "replicas": 2,
            "epochs": 40,
            "mix": "cutmix",
            "stop": "fold",
            "patience": 10,
            "watch_val": True,
            "weight_decay": 1e-5,
            "schedule": "constant",
            "warmup": 0.0,
            "crop_scale": (0.08, 1.0),
            "jitter": (0.4, 0.4, 0.4, 0.1),
            "grayscale": 0.2,
        },
    ),
}


def build(settings: Mapping[str, Any], *, where: str = "") -> Recipe:
    """Return a recipe of settings over the defaults; messages name `where` they were read.

    Raises `UsageError` for an unknown key (with the nearest), a wrong type, a value out of bounds
    and settings that contradict each other.
    """
    return _built(Recipe, settings, where)


def _built(kind: type[R], settings: Mapping[str, Any], where: str = "") -> R:
    for name in settings:
        require_known(name, where)
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise usage_error(error, where) from error


def load_resolved(path: Path) -> ResolvedRecipe:
    """Return the recipe of a run, from its file."""
    settings = settings_of(str(path))
    if settings.get("first_size") == settings.get("size"):  # of older runs: pictures could grow
        settings.pop("first_size", None)
    return _built(ResolvedRecipe, settings, str(path))


def load(name: str) -> Recipe:
    """Return the recipe of that name, or that of a TOML file."""
    return build(settings_of(name), where=name if name not in RECIPES else "")


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of a named recipe or a TOML file, without the defaults."""
    if name in RECIPES:
        return dict(RECIPES[name][1])
    path = Path(name)
    if path.suffix != ".toml":
        raise UsageError(
            f"there is no recipe `{name}`",
            hint=f"one of {', '.join(RECIPES)}{_nearest(name, RECIPES)}, or a .toml file",
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe `{name}` cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe `{name}` is not valid TOML: {error}") from error


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among environment variables, as `FIELDGUIDE_BATCH_SIZE=32`, converted."""
    found = {}
    for variable, value in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            require_known(name, "the environment")
            found[name] = from_text(name, value)
    return found


def to_toml(recipe: Recipe, *, comments: bool = False, title: str = "") -> str:
    """Return the recipe as TOML: every setting under its section's name, explained if `comments`."""
    lines = [f"# {title}", ""] if title else []
    section = ""
    for name, field in Recipe.model_fields.items():
        if section != section_of(name):
            lines += ["", f"# {section_of(name)}"] if section else [f"# {section_of(name)}"]
            section = section_of(name)
        # JSON writes settings as TOML does, but for one character.
        value = json.dumps(getattr(recipe, name), ensure_ascii=False).replace("\x7f", "\\u007f")
        choices = _choices(field.annotation)
        comment = f"{' | '.join(choices)}: " * (len(choices) > 1) + str(field.description)
        lines.append(f"{f'{name} = {value}':<44}  # {comment}" if comments else f"{name} = {value}")
    return "\n".join(lines) + "\n"


def section_of(name: str) -> str:
    """Return the heading under which a setting stands."""
    extra = Recipe.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["section"])


def differences(asked: Recipe, stored: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return settings that differ and matter, as (stored, asked); `auto` agrees with anything."""
    if asked.tone == PERCENTILE and stored.tone.startswith(PERCENTILE):
        asked = asked.replace(tone=stored.tone)
    if asked.min_steps == stored.min_steps > 0:  # which made the length of this one
        asked = asked.replace(
            epochs=max(asked.epochs, stored.epochs),
            batch_size=min(asked.batch_size, stored.batch_size),
            min_steps=asked.min_steps,
        )
    return {
        name: (getattr(stored, name), getattr(asked, name))
        for name in Recipe.model_fields
        if name not in HARMLESS and getattr(asked, name) not in ("auto", getattr(stored, name))
    }


def taken(older: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run for one that goes on from it, with others `given` over them.

    Those of the machine are not taken, and what is given a length of its own mixes only if that is
    long enough.
    """
    left = {name for name in Recipe.model_fields if section_of(name) == "Machine"}
    left |= {"mix"} if "epochs" in given and older.mix != "none" else set()
    return over(
        {name: each for name, each in older.model_dump().items() if name not in left}, given
    )


PERCENTILE = "percentile"


def range_of(tone: str) -> tuple[float, float] | None:
    """Return the LOW,HIGH of a tone; a `percentile` has them once a fit has found them."""
    numbers = tone.removeprefix(PERCENTILE).strip()
    if tone == "full" or not numbers:
        return None
    low, high = (float(number) for number in numbers.split(","))
    return low, high


def require_tone(tone: str) -> str:
    """Return the tone; raise ValueError for one that is neither a word nor a range."""
    try:
        found = range_of(tone) if tone else (0.0, 0.0)
    except ValueError:
        found = (0.0, 0.0)
    if found and not -math.inf < found[0] < found[1] < math.inf:
        raise ValueError("neither full, percentile nor a range such as 0,4095")
    return tone


def weights_file(weights: str | Path) -> tuple[Path, str]:
    """Return the file of `FILE` or `FILE:entry`, and the entry of its checkpoint, else empty."""
    file, _, entry = str(weights).rpartition(":")
    if Path(weights).exists() or not Path(file).suffix or Path(entry).name != entry:
        return Path(weights), ""
    return Path(file), entry


def without_effect(recipe: Recipe) -> list[str]:
    """Return notes on settings that differ from the default but do nothing, given the others."""
    default = Recipe()
    return [
        f"`{name}` = {getattr(recipe, name)!r} has no effect with {cause}"
        for name, cause in _idle(recipe)
        if getattr(recipe, name) != getattr(default, name)
    ]


def effective(recipe: Recipe) -> Recipe:
    """Return the recipe with the default of every setting that does not change what it predicts.

    Recipes whose effective ones are equal train the same networks, on the same kind of device.
    `auto` stays: its value depends on weights and device.
    """
    silent = {name for name, _ in _idle(recipe)} | HARMLESS | {"keep_replicas", "replica_curves"}
    if recipe.merge != "model_stock":  # the anchor is only measured from
        silent |= {"anchor"}
    default = Recipe()
    found = build(recipe.model_dump() | {name: getattr(default, name) for name in silent})
    # One replica is its own mean, and at one replica Model Stock's ratio is 1.
    own = recipe.replicas == 1 and recipe.batch_norm == "average" and recipe.outer == "none"
    if recipe.merge != "none" and own:
        return effective(found.replace(merge="none"))
    return found


def _idle(recipe: Recipe) -> list[tuple[str, str]]:
    """Return settings that do nothing, each with the setting that makes it so."""
    moments = () if recipe.moments == "reset" else ("moments",)
    # Without merges, moments are still reset, and epochs chosen, as often.
    every = ("merge_every",) if moments and recipe.stop == "none" else ()
    idle = {
        "merge": ("anchor", "batch_norm", "keep_replicas", "outer", *moments, *every),
        "outer": ("outer_rate", "outer_momentum"),
        "stop": ("patience", "inner_share"),
        "mix": ("mix_alpha",),
    }
    found = [
        (name, f"{cause} = 'none'")
        for cause, names in idle.items()
        if getattr(recipe, cause) == "none"
        for name in names
    ]
    found += [("inner_share", "stop = 'fold'")] if recipe.stop == "fold" else []
    found += [("shuffle_buffer", "order = 'photos'")] if recipe.order == "photos" else []
    found += [("jitter", "color_jitter = 0")] if recipe.color_jitter == 0 else []
    found += [("replica_data", "replicas = 1")] if recipe.replicas == 1 else []
    found += [("sync_batch_norm", "batch_ranks = 1")] if recipe.batch_ranks == 1 else []
    if recipe.epochs == 0:
        return [(name, "epochs = 0") for name in Recipe.model_fields if _trains(name)]
    return found


def _trains(name: str) -> bool:
    """Return whether a setting is of the training alone."""
    sections = {"Merging", "Optimiser", "Augmentation"}
    others = {"dropout", "freeze", "patience", "inner_share", "compile"}
    kept = {"replicas", "merge", "order", "class_weights"}
    return name in others or (section_of(name) in sections and name not in kept)


def _choices(annotation: Any) -> list[str]:
    arguments = getattr(annotation, "__args__", ())
    return [argument for argument in arguments if isinstance(argument, str)] or [
        choice for argument in arguments for choice in _choices(argument)
    ]


def from_text(name: str, value: str, *, called: str = "") -> Any:
    """Return the value that a text stands for, as `build` takes it.

    `called` is the setting's name in messages, that of its environment variable if empty.
    """
    parts: Any = value
    if name in {"mean", "std", "jitter", "crop_scale"} and value != "auto":
        parts = tuple(value.replace(",", " ").split())
    annotation: Any = Recipe.model_fields[name].annotation
    try:
        return TypeAdapter(annotation).validate_python(parts, strict=False)
    except ValidationError as error:
        reasons = dict.fromkeys(reason for _, reason in _by_setting(error).values())
        shown = called or f"{ENVIRONMENT_PREFIX}{name.upper()}"
        raise UsageError(f"{shown} = {value!r}: {', or '.join(reasons)}") from error


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(f'`{match}`' for match in close)}?)" if close else ""


def require_known(name: str, where: str = "") -> None:
    """Raise `UsageError`, with the nearest settings, if there is none of this name."""
    if name not in Recipe.model_fields:
        place = f" in {where}" if where else ""
        raise UsageError(
            f"there is no setting `{name}`{place}{_nearest(name, Recipe.model_fields)}",
            hint="`fieldguide recipe` prints every setting",
        )


def usage_error(error: ValidationError, where: str = "") -> UsageError:
    """Return pydantic's error in our words, one line a setting; `where` they were read."""
    lines, quoted = [], False
    for name, (value, reason) in _by_setting(error).items():
        own = Recipe.model_fields[name].annotation is str if name in Recipe.model_fields else False
        quoted |= isinstance(value, str) and _is_number(value) and not own
        lines.append(f"`{name}` = {value!r}: {reason}" if name else reason)
    message = (f"{where}: " if where else "") + "\n".join(lines)
    return UsageError(message, hint="write numbers without quotes" if quoted else "")


def _by_setting(error: ValidationError) -> dict[str, tuple[Any, str]]:
    """Return one reason a setting; pydantic has one for each part of a tuple or branch of a union."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else ""
        reason = detail["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        reason = "has too few values" if detail["type"] == "missing" else reason
        _, reasons = found.setdefault(name, (detail["input"], []))
        if reason not in reasons:
            reasons.append(reason)
    return {name: (value, ", or ".join(reasons)) for name, (value, reasons) in found.items()}


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
