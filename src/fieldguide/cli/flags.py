"""Groups of flags that several commands share: a recipe's settings, tables, lists, the machine."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from pydantic import BaseModel, ConfigDict, Field, create_model

from fieldguide import recipe as recipes
from fieldguide.cli import terminal
from fieldguide.cli.display import Display
from fieldguide.errors import UsageError
from fieldguide.recipe import Recipe
from fieldguide.storage import addresses

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from fieldguide.photos.catalog import Catalog
    from fieldguide.predict.inference import Machine


def _settings_model() -> type[BaseModel]:
    """Every field of `Recipe` as a flag that may be left out. `Recipe` itself checks bounds."""
    sections = {name: recipes.section_of(name) for name in Recipe.model_fields}
    order = list(dict.fromkeys(sections.values()))
    groups = {name: Group(name, sort_key=order.index(name)) for name in order}
    fields: dict[str, Any] = {
        name: (
            Annotated[
                _flag_type(name) | None,
                Parameter(group=groups[sections[name]], alias=ALIASES.get(name)),
            ],
            Field(default=None, description=field.description),
        )
        for name, field in Recipe.model_fields.items()
    }
    return create_model("Settings", __config__=ConfigDict(frozen=True), **fields)


def _flag_type(name: str) -> Any:
    """What a flag is parsed as: its field's type, but several numbers or `auto` are text first."""
    return str if name in TEXT_FLAGS else Recipe.model_fields[name].annotation


TEXT_FLAGS = ("mean", "std")
ALIASES = {"device": "--devices"}

Settings = _settings_model()
Flags = Annotated[Settings, Parameter(name="*")]  # type: ignore[valid-type]


RunFolder = Annotated[Path, Parameter(help="A run's folder.")]
PhotosRoot = Annotated[
    Path | None, Parameter(help="Where the run's own photos lie, if they were moved.")
]
Collection = Annotated[
    str,
    Parameter(
        help="A folder with one folder a class, or with train, val and test, shards, or a CSV"
        " table; or the address of one, such as s3://bucket/photos."
    ),
]
RecipeName = Annotated[
    str, Parameter(help="A named recipe or a .toml file; `fieldguide recipe` prints them.")
]


def given(group: "DataclassInstance") -> dict[str, object]:
    """Return what was given of a group of flags, by flag as it is typed."""
    found = {each.name: getattr(group, each.name) for each in fields(group)}
    return {f"--{n.replace('_', '-')}": value for n, value in found.items() if value is not None}


def refuse(flags: Iterable[str], why: str, hint: str = "leave it out") -> None:
    """Raise `UsageError` with the first of the flags, if there are any."""
    for flag in flags:
        raise UsageError(f"{flag} is {why}", hint=hint)


def fetched(photos: str) -> Path:
    """PHOTOS as a path; what is at an address is fetched, with progress on the terminal."""
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
    """How to read PHOTOS where it is a table or a list of paths.

    Parameters
    ----------
    path_column
        Column of the photos' paths, if it has none of the usual names.
    root
        Folder that the paths start from, if not the table's own.
    encoding
        The encoding of the text, if not UTF-8 or UTF-16.
    """

    path_column: str | None = None
    root: Path | None = None
    encoding: str | None = None


ListFlags = Annotated[Lists, Parameter(name="*", group=Group("Tables and lists", sort_key=90))]


@dataclass(frozen=True)
class Columns(Lists):
    """How to read PHOTOS where it is a table; the usual column names are found by themselves.

    Parameters
    ----------
    label_column
        Column of the labels.
    group_column
        Column of groups (specimen, site, day) that no fold may split.
    split_column
        Column of train, val and test.
    fold_column
        Column of folds to be used as they are.
    """

    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    fold_column: str | None = None

    def read(self, photos: str) -> "Catalog":
        """The catalog of a folder or table, which is fetched first where it is an address."""
        from fieldguide.photos import sources

        return sources.read(
            fetched(photos),
            path=self.path_column,
            label=self.label_column,
            group=self.group_column,
            split=self.split_column,
            fold=self.fold_column,
            root=self.root,
            encoding=self.encoding,
        )


TableFlags = Annotated[Columns, Parameter(name="*", group=Group("Tables", sort_key=90))]


@dataclass(frozen=True)
class Computer:
    """Where and how fast a network looks at photos; changes no result beyond rounding.

    Parameters
    ----------
    device
        auto, cpu, cuda, cuda:1, mps.
    workers
        Threads that prepare photos; 0: none beside the one that the network runs in.
    precision
        The network's arithmetic; auto: that of its training, where the device has it.
    batch_size
        Photos at once; 64 if not given.
    """

    device: str | None = None
    workers: int | Literal["auto"] | None = None
    precision: Literal["float32", "bfloat16", "float16", "auto"] | None = None
    batch_size: int | None = None

    def check(self) -> Recipe:
        """Raises `UsageError` for values that cannot be; without torch.

        What is not given comes from FIELDGUIDE_DEVICE, FIELDGUIDE_WORKERS, FIELDGUIDE_PRECISION.
        """
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size is below 1: {self.batch_size}")
        names = ("device", "workers", "precision")
        surroundings = recipes.from_environment(os.environ)
        given = {name: surroundings.get(name, "auto") for name in names}
        flags = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return recipes.build(given | flags)

    def chosen(self) -> "Machine":
        """The machine that was asked for."""
        from fieldguide.predict.inference import Machine

        chosen = self.check()
        machine = Machine(chosen.device, chosen.workers, chosen.precision)
        return replace(machine, batch_size=self.batch_size) if self.batch_size else machine


MachineFlags = Annotated[Computer, Parameter(name="*", group=Group("Machine", sort_key=91))]
