"""The photos that a model is asked about: every input is one entry, in a stated order.

Nothing is dropped: a photo that is missing, cannot be listed or is named twice has its entry as
well, because users look for its row. Knows nothing of models, nor of what the files hold.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fieldguide.errors import DataError, UsageError
from fieldguide.photos import boxes as photo_boxes
from fieldguide.photos import tables
from fieldguide.photos.catalog import EXTENSIONS
from fieldguide.photos.crops import Box, Crop
from fieldguide.photos.folders import list_pictures
from fieldguide.photos.forms import known
from fieldguide.photos.forms.form import PATH, Form
from fieldguide.storage import addresses, files

TABLES = frozenset({".csv", ".tsv", ".tab"})
LISTS = frozenset({".txt", ".lst"})
STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class Input:
    """A thing to predict. `file` is None exactly where `problem` says what is wrong."""

    name: str  # as the user knows it: what results call it
    file: Path | None
    problem: str = ""  # such as "file not found"
    boxes: tuple[Box, ...] | None = None  # those that count, where boxes are known


@dataclass(frozen=True, slots=True)
class _Source:
    text: str  # as typed
    place: Path
    kind: Literal["folder", "table", "list", "file", "missing", "form"]
    form: Form | None = None


def read(
    sources: str | Path | Sequence[str | Path],
    *,
    recursive: bool = True,
    path_column: str | None = None,
    root: str | Path | None = None,
    encoding: str | None = None,
    form: str | None = None,
    crop: str = "",
    boxes: str | Path | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> list[Input]:
    """Return the photos that the sources name: source by source, each in its own order.

    A source is one of these, and a single one need not be in a list:

    - a folder: files named like a picture in it, and below it if `recursive`, in code-point
      order of the relative paths. Hidden files are skipped; links are followed, and one to nothing
      is an input. Names are relative to the folder, which stands in front if there are several
      sources.
    - a table (.csv .tsv .tab) with a header: its rows in their order, repeated ones too. The column
      is `path_column`, or found by its name as `tables.read_table` does.
    - a list (.txt .lst, or `-` for standard input): one path a line; empty lines are skipped.
    - a file in a known form (`forms.known`), or a folder if `form` names one: its photos, also
      those without a label, by path.
    - anything else is a photo itself, whatever its ending.

    Paths in tables and lists are absolute, relative to `root`, or to the folder of the table or
    list (of standard input: the current one); the ending of a file may be left out, and a backslash
    may stand for `/`. `encoding` is theirs; without it UTF-16 is known by its mark and all else is
    UTF-8, and in lists also bytes that are not, as in file names.

    With `crop`, the rule of a classifier of crops, photos have the boxes that count: those of the
    file `boxes`, else of the source itself, whose rows of one photo are one input. Those of others
    stay unknown.

    Addresses are fetched first, see `addresses.local`; `notice` reports waits and videos. Raises
    DataError if a source does not exist (but a file that ends like a picture is an input and
    missing), a folder has no picture or a table cannot be read; UsageError for an unused option.
    """
    several = [sources] if isinstance(sources, str | Path) else sources
    rule = Crop.of(crop) if crop else None
    if boxes is not None and rule is None:
        raise UsageError("`boxes` is for classifiers of crops", hint="leave `boxes` out")
    found = [_recognised(source, form, rule is not None, notice) for source in several]
    _refuse_idle(found, recursive, path_column, root, encoding)
    inputs: list[Input] = []
    for source in found:
        match source.kind:
            case "folder":
                inputs += _of_folder(source, recursive, notice, with_folder=len(found) > 1)
            case "form":
                inputs += _of_form(source, root, rule, notice)
            case "table":
                inputs += _of_table(source, path_column, root, encoding, rule, notice)
            case "list":
                inputs += _of_list(source, root, encoding)
            case _:
                inputs.append(_entry(source.text, source.place if source.kind == "file" else None))
    if boxes is None or rule is None:
        return inputs
    read = photo_boxes.read(addresses.local(boxes), rule)
    roots = [_root_of(each) for each in inputs]
    named = photo_boxes.found_for([each.name for each in inputs], roots, read)
    return [
        replace(each, boxes=None if own is None else tuple(own))
        for each, own in zip(inputs, named, strict=True)
    ]


def _root_of(photo: Input) -> Path:
    """Return the folder that a photo's name starts from, as far as its file says."""
    file = photo.file or Path(photo.name)
    return file.parents[min(len(Path(photo.name).parts), len(file.parts) - 1) - 1]


def crops_of(inputs: Sequence[Input], crop: str) -> tuple[list[Input], list[int]]:
    """Return the crops of photos by a rule, and how many each photo has.

    They are named by the boxes as they are, without margin. A photo whose boxes are unknown, or
    that is not there, is whole and its only one.
    """
    crops: list[Input] = []
    counts = []
    rule, plain = Crop.of(crop or "box"), Crop(tight=True, margin=0.0)
    for each in inputs:
        if each.file is None or each.boxes is None:
            crops.append(each)
            counts.append(1)
            continue
        photo = each.file.as_posix()
        crops += [
            Input(plain.address(each.name, box), Path(rule.address(photo, box)))
            for box in each.boxes
        ]
        counts.append(len(each.boxes))
    return crops, counts


def _recognised(
    source: str | Path, form: str | None, boxes: bool, notice: Callable[[str], None]
) -> _Source:
    text, place = str(source), addresses.local(source, notice=notice)
    if text == STANDARD_INPUT:
        return _Source(text, place, "list")
    if not text:  # to Path it would be the current folder
        raise DataError("no such file or folder: the name is empty")
    ending = place.suffix.lower()
    try:
        folder = stat.S_ISDIR(place.stat().st_mode)
        if form != "plain" and (form or not (folder or ending in EXTENSIONS | LISTS)):
            known_form = known.find(place, form, boxes=boxes)
            if known_form is not None:
                return _Source(text, place, "form", known_form)
        if folder:
            return _Source(text, place, "folder")
    except (OSError, ValueError) as error:  # not there, or no name that a file can have
        if ending in EXTENSIONS or (ending not in TABLES | LISTS and place.is_symlink()):
            return _Source(text, place, "missing")
        raise DataError(f"no such file or folder: {text}") from error
    if ending in TABLES:
        return _Source(text, place, "table")
    return _Source(text, place, "list" if ending in LISTS else "file")


def _refuse_idle(
    sources: Sequence[_Source],
    recursive: bool,
    path_column: str | None,
    root: str | Path | None,
    encoding: str | None,
) -> None:
    """Raise UsageError for an option that would change nothing."""
    kinds = {source.kind for source in sources}
    idle = [
        ("recursive", not recursive and "folder" not in kinds, "folders"),
        ("path_column", path_column is not None and "table" not in kinds, "tables"),
        ("root", root is not None and not kinds & {"table", "list", "form"}, "tables and lists"),
        ("encoding", encoding is not None and not kinds & {"table", "list"}, "tables and lists"),
    ]
    for name, is_idle, use in idle:
        if is_idle:
            raise UsageError(
                f"`{name}` is for {use}, and none is given", hint=f"leave `{name}` out"
            )
    if [source.text for source in sources].count(STANDARD_INPUT) > 1:
        raise UsageError(f"`{STANDARD_INPUT}` is given twice: standard input is read once")


def _of_folder(
    source: _Source, recursive: bool, notice: Callable[[str], None], *, with_folder: bool
) -> list[Input]:
    root, found = list_pictures(source.place, recursive, notice)
    front = f"{source.text.replace(os.sep, '/').rstrip('/')}/" if with_folder else ""
    return [
        Input(f"{front}{path}", None if problem else root / path, problem)
        for path, problem in found.items()
    ]


def _of_form(
    source: _Source,
    root: str | Path | None,
    rule: Crop | None,
    notice: Callable[[str], None],
) -> list[Input]:
    form = source.form
    assert form is not None, "no form"
    notice(form.told)
    at = form.header.index(PATH)
    rows = sorted((*form.rows, *form.aside), key=lambda row: row[at])
    table = tables.Table(form.name, form.header, tuple(enumerate(rows, 1)))
    base = form.base if root is None else Path(root)
    return _of_rows(table, at, base, rule)


def _of_rows(table: tables.Table, path: int, base: Path, rule: Crop | None) -> list[Input]:
    """Return a row each as an input, or if they have boxes by a rule, a photo each."""
    paths = [cells[path] for _, cells in table.rows]
    if rule is None or not tables.has_boxes(table):
        return _looked_up(paths, base)
    boxes = tables.boxes_by_photo(table, path, rule)
    whole = _looked_up(boxes, base)
    return [replace(each, boxes=tuple(boxes[each.name])) for each in whole]


def _of_table(
    source: _Source,
    column: str | None,
    root: str | Path | None,
    encoding: str | None,
    rule: Crop | None,
    notice: Callable[[str], None],
) -> list[Input]:
    table = tables.read_cells(source.place, encoding)
    if table.headless:
        notice(f"{table.name}: {tables.NO_HEADER}")
    if not table.rows and column is None:  # nothing shows the column
        return []
    number = tables.path_column(table, column)
    return _of_rows(table, number, source.place.parent if root is None else Path(root), rule)


def _of_list(source: _Source, root: str | Path | None, encoding: str | None) -> list[Input]:
    if source.text == STANDARD_INPUT:
        name, data = "standard input", sys.stdin.buffer.read()
    else:
        name, data = source.place.name, tables.content_of(source.place)
    text = tables.decoded(data, name, encoding, "strict" if encoding else "surrogateescape")
    lines = (files.unescaped(line.removesuffix("\r")) for line in text.split("\n"))
    base = source.place.parent if root is None else Path(root)
    return _looked_up((line for line in lines if line.strip()), base)


def _looked_up(texts: Iterable[str], base: Path) -> list[Input]:
    if not base.is_dir():
        raise DataError(
            f"no such folder: {base}", hint="`root` is where the paths in tables and lists start"
        )
    finder = tables.Finder(base.resolve())
    return [_entry(text, finder.file(text)) for text in texts]


def _entry(name: str, file: Path | None) -> Input:
    problem = "file not found" if name.strip() else "no path"
    return Input(name, file, "" if file else problem)
