"""The groups of flags that several commands share: settings, tables, lists, the machine."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from pydantic import BaseModel, ConfigDict, Field, create_model

from fieldguide import recipe as recipes
from fieldguide.cli import terminal
from fieldguide.cli.display import Display
from fieldguide.errors import UsageError
from fieldguide.machine.torchrun import launch
from fieldguide.recipe import Recipe
from fieldguide.storage import addresses

if TYPE_CHECKING:
    from fieldguide.photos.catalog import Catalog
    from fieldguide.predict.model import Machine


def _settings_model() -> type[BaseModel]:
    """Return a model with every field of `Recipe` as an optional flag; `Recipe` checks bounds."""
    sections = dict.fromkeys(map(recipes.section_of, Recipe.model_fields))
    groups = {name: Group(name, sort_key=number) for number, name in enumerate(sections)}
    fields: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        kind: Any = str if name in TEXT_FLAGS else field.annotation
        flag = Parameter(group=groups[recipes.section_of(name)], alias=ALIASES.get(name))
        default = Field(default=None, description=field.description)
        fields[name] = (Annotated[kind | None, flag], default)
    return create_model("Settings", __config__=ConfigDict(frozen=True), **fields)


TEXT_FLAGS = ("mean", "std")  # parsed as text: several numbers, or `auto`
ALIASES = {"device": "--devices"}

Settings = _settings_model()
Flags = Annotated[Settings, Parameter(name="*")]  # type: ignore[valid-type]


RunFolder = Annotated[Path, Parameter(help="A run's folder.")]
PhotosRoot = Annotated[
    Path | None, Parameter(help="The folder of the run's own photos, if they were moved.")
]
Collection = Annotated[
    str,
    Parameter(
        help="A folder with a folder for each class, or with train, val and test; shards; a CSV"
        " table; or the address of any of these, such as s3://bucket/photos."
    ),
]
RecipeName = Annotated[
    str, Parameter(help="A named recipe or a .toml file; `fieldguide recipe` prints them.")
]


def given(group: object) -> dict[str, object]:
    """Return the given flags of a group, as they are typed, with their values."""
    values = vars(group).items()
    return {f"--{name.replace('_', '-')}": value for name, value in values if value is not None}


def refuse(flags: Iterable[str], why: str, hint: str = "leave it out") -> None:
    """Raise `UsageError` with the first of the flags, if there are any."""
    for flag in flags:
        raise UsageError(f"{flag} is {why}", hint=hint)


def fetched(photos: str) -> Path:
    """Return PHOTOS as a path; fetch an address, with progress on the terminal."""
    if not addresses.is_address(photos):
        return Path(photos)
    with Display(terminal.stderr) as display:

        def progress(done: int, total: int) -> None:
            if done == 1:
                display.begin("fetching files", total)
            display.reach(done)

        return addresses.local(photos, notice=display.notice, progress=progress)


@dataclass(frozen=True)
class Lists:
    """The flags for PHOTOS that is a table or a list of paths.

    Parameters
    ----------
    path_column
        The column of the photos' paths, if its name is unusual.
    root
        The folder that the paths start from, if not the table's own.
    encoding
        The encoding of the text, if not UTF-8 or UTF-16.
    format
        The form of PHOTOS, if it is not recognised; `plain` for a plain folder or table.
    boxes
        The file with the boxes of photos, such as MegaDetector's results.
    """

    path_column: str | None = None
    root: Path | None = None
    encoding: str | None = None
    format: str | None = None
    boxes: Path | None = None


ListFlags = Annotated[Lists, Parameter(name="*", group=Group("Tables and lists", sort_key=90))]


@dataclass(frozen=True)
class Columns(Lists):
    """The flags for PHOTOS that is a table; usual column names need none.

    Parameters
    ----------
    label_column
        The column of the labels.
    group
        The groups that no fold may split: event (the default where the source names one), place,
        none, columns (A,B), folder:N (the Nth folder of the path), stem (X.jpg with X_90deg.jpg),
        or stem:REGEX (what the first group of a regular expression matches in the files' names).
    event_gap
        The most seconds between photos of one event, where events come from times; 60 if not given.
    labels_from
        The folder of the path that names the class: folder:N, or folder:N,M for genus and species.
    crop
        Train on crops by the boxes of PHOTOS or --boxes: `box`, or with more, such as
        box,largest,tight,margin=0.1,confidence=0.2: see docs/field.md.
    split_column
        The column of train, val and test.
    fold_column
        The column of fixed folds.
    """

    label_column: str | None = None
    group: str | None = None
    event_gap: float | None = None
    labels_from: str | None = None
    crop: str | None = None
    split_column: str | None = None
    fold_column: str | None = None

    def read(self, photos: str) -> "Catalog":
        """Read the catalog of a folder, a table or an address, and print how it was read."""
        from fieldguide.photos import sources

        catalog = sources.read(
            fetched(photos),
            path=self.path_column,
            label=self.label_column,
            group=self.group,
            split=self.split_column,
            fold=self.fold_column,
            root=self.root,
            encoding=self.encoding,
            form=self.format,
            labels_from=self.labels_from,
            event_gap=self.event_gap,
            crop=self.crop,
            boxes=self.boxes,
        )
        if launch().rank == 0:
            choose = "; --label-column, --group and --split-column choose others"
            terminal.tell(catalog.told + choose * ("; not used: " in catalog.told))
        return catalog


TableFlags = Annotated[Columns, Parameter(name="*", group=Group("Tables", sort_key=90))]


@dataclass(frozen=True)
class Computer:
    """The flags for the machine that predicts; they change no result beyond rounding.

    Parameters
    ----------
    device
        The device: auto, cpu, cuda, cuda:1, mps.
    workers
        The threads that prepare photos; 0 prepares them in the network's own thread.
    precision
        The network's arithmetic; auto: as in training, if the device supports it.
    batch_size
        The photos in a batch; 64 if not given.
    """

    device: str | None = None
    workers: int | Literal["auto"] | None = None
    precision: Literal["float32", "bfloat16", "float16", "auto"] | None = None
    batch_size: int | None = None

    def check(self) -> Recipe:
        """Return a recipe with these values; raise `UsageError` for bad ones, without torch.

        Defaults come from FIELDGUIDE_DEVICE, FIELDGUIDE_WORKERS and FIELDGUIDE_PRECISION.
        """
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size is below 1: {self.batch_size}")
        names = ("device", "workers", "precision")
        surroundings = recipes.from_environment(os.environ)
        given = {name: surroundings.get(name, "auto") for name in names}
        flags = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return recipes.build(given | flags)

    def chosen(self) -> "Machine":
        """Return the machine asked for."""
        from fieldguide.predict.model import Machine

        chosen = self.check()
        machine = Machine(chosen.device, chosen.workers, chosen.precision)
        return replace(machine, batch_size=self.batch_size) if self.batch_size else machine


MachineFlags = Annotated[Computer, Parameter(name="*", group=Group("Machine", sort_key=91))]
