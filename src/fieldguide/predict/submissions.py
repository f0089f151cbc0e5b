"""Predictions as a grader wants them: an id, and a label or the probability of each class.

Knows nothing of models or pixels, nor of how tables are written.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from fieldguide.errors import DataError, UsageError
from fieldguide.photos.catalog import USUAL_NAMES
from fieldguide.photos.groups import simplified
from fieldguide.photos.tables import Table, read_cells
from fieldguide.predict.inputs import Input
from fieldguide.predict.tables import Predictions, digits
from fieldguide.words import count, quoted

Id = Literal["auto", "path", "name", "stem"]


@dataclass(frozen=True)
class Submission:
    """A table as a grader wants it: an id, and one label or the probability of every class.

    Row n belongs to the photo `names[n]`. Unreadable photos have empty cells after the id, but for
    `kept`: columns of the sample that are neither, such as Kaggle's `Usage`, by their names.
    """

    columns: tuple[str, ...]  # the first holds the ids
    ids: tuple[str, ...]
    names: tuple[str, ...]
    probabilities: bool = False  # the other columns are the classes
    separator: str = ","
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def header(self, classes: Sequence[str]) -> list[str]:
        """Return the names of the columns."""
        shown = set(self.columns[1:]) - set(self.kept)
        assert not self.probabilities or shown == set(classes), "other classes"
        return list(self.columns)

    def rows(self, predictions: Predictions, start: int = 0) -> Iterator[list[str]]:
        """Yield the cells of each photo, after the first `start` ones."""
        here = slice(start, start + len(predictions))
        assert predictions.names == self.names[here], "photos in another order than the ids"
        number_of = {name: number for number, name in enumerate(predictions.classes)}
        answered = [name for name in self.columns[1:] if name not in self.kept]
        order = [number_of[name] for name in answered] if self.probabilities else []
        for row, (id, label) in enumerate(zip(self.ids[here], predictions.labels, strict=True)):
            if label is None:
                answers = [""] * len(answered)
            elif self.probabilities:
                answers = digits(predictions.probabilities[row, order])
            else:
                answers = [label]
            cells = {name: values[start + row] for name, values in self.kept.items()}
            cells |= dict(zip(answered, answers, strict=True))
            yield [id, *(cells[name] for name in self.columns[1:])]


def submission(
    inputs: Sequence[Input],
    classes: Sequence[str],
    *,
    sample: Path | None = None,
    columns: tuple[str, str] | None = None,
    id: Id = "auto",
    notice: Callable[[str], None] = lambda message: None,
) -> tuple[Submission, list[Input]]:
    """Return the layout, and the inputs in the order of its rows: predict them in that order.

    Header, separator, ids and their order are those of `sample`, a submission as the grader shows
    it: the id first, then one column for the label, or one for each class for probabilities. Other
    columns of the sample are kept as they are, which `notice` is told. Without a sample `columns`
    names id and label.

    `id` names the part of a photo that is its id: `path`, the whole name; `name`, that of the file;
    `stem`, the same without its ending. `auto` takes the one under which most ids of the sample are
    found, and without a sample the file's name; also where ids have other folders in front, or are
    whole numbers (`1` for `0001.jpg`), which `notice` is told. Unicode forms do not matter.

    Raises DataError where an id stands twice, has no photo, or a photo has no id, and where the
    sample's columns fit neither way; UsageError unless one of `sample` and `columns` is given.
    """
    if sample is not None and columns is None:
        return _as_sample(inputs, classes, sample, id, notice)
    if columns is not None and sample is None:
        return _as_named(inputs, columns, id)
    raise UsageError(
        "a submission needs a sample or two column names, one of both",
        hint="with a sample the columns are the sample's",
    )


def _as_named(
    inputs: Sequence[Input], columns: tuple[str, str], id: Id
) -> tuple[Submission, list[Input]]:
    if columns[0] == columns[1] or not all(columns):
        raise UsageError(f"two different names are needed for the columns: {quoted(columns)}")
    kind = "name" if id == "auto" else id
    _rows_of(inputs, kind)  # refuses what stands twice
    ids = tuple(_IDS[kind](each) for each in inputs)
    return Submission(columns, ids, tuple(each.name for each in inputs)), list(inputs)


def _as_sample(
    inputs: Sequence[Input],
    classes: Sequence[str],
    sample: Path,
    id: Id,
    notice: Callable[[str], None],
) -> tuple[Submission, list[Input]]:
    table = read_cells(sample)
    if table.headless:
        raise DataError(
            f"{sample}: the first row is a photo, not names of columns",
            hint="put the header of the grader's sample above it",
        )
    answered = _answered(table, classes)
    kept = {
        name: tuple(cells[number] for _, cells in table.rows)
        for number, name in enumerate(table.header)
        if number and name not in answered
    }
    if kept:
        how = "one for each class" if len(answered) > 1 else quoted(answered)
        notice(f"{table.name}: predicted: {how}; kept as in the sample: {quoted(list(kept))}")
    written = _keys_of(table)

    def keys_as(kind: str) -> list[str]:
        return [_SHORTER.get(kind, str)(key) for key in written]

    def hits(kind: str) -> int:
        found, keys = {_normal(_IDS[kind](each)) for each in inputs}, keys_as(kind)
        return sum(key in found for key in keys) if len({*keys}) == len(keys) else 0

    kind = id if id != "auto" else max(_IDS, key=hits)
    keys, rows = keys_as(kind), _rows_of(inputs, kind)
    known, odd = set(keys), []
    if missing := [key for key in keys if key not in rows]:
        odd.append(f"{len(missing):,} without a photo: {quoted(missing)}")
    if extra := [inputs[row].name for key, row in rows.items() if key not in known]:
        odd.append(f"{count(len(extra), 'photo')} without an id: {quoted(extra)}")
    if odd:
        raise DataError(
            f"{table.name}: of {len(keys):,} ids {'; '.join(odd)}",
            hint=f"the ids were compared with {_MEANING[kind]}",
        )
    if kind in _SHORTER:
        notice(f"{table.name}: the ids are compared with {_MEANING[kind]}")
    ordered = [inputs[rows[key]] for key in keys]
    ids = tuple(cells[0] for _, cells in table.rows)
    names = tuple(each.name for each in ordered)
    layout = Submission(table.header, ids, names, len(answered) > 1, table.separator, kept)
    return layout, ordered


def _answered(table: Table, classes: Sequence[str]) -> list[str]:
    """Return the columns to fill: one for the label, or one for each class.

    The label's is the only one beside the id, else the only one whose cells are classes, else the
    only one with a usual name. Raises `DataError` where the columns fit neither way, also for one
    of numbers beside those of all classes: it looks like a class that the model does not know.
    """
    cells = {
        name: {row[number] for _, row in table.rows} - {""}
        for number, name in enumerate(table.header)
        if number
    }
    if len(cells) == 1:
        return list(cells)
    known = set(classes)
    numeric = [name for name, values in cells.items() if all(map(_is_number, values))]
    missing = [name for name in classes if name not in cells]
    if missing:
        labels = [name for name, values in cells.items() if values and values <= known]
        if len(labels) != 1 and not known & {*numeric}:
            names = zip(cells, simplified([*cells]), strict=True)
            usual = [name for name, simple in names if simple in USUAL_NAMES["label"]]
            labels = [name for name in usual if name in labels or not labels]
        if len(labels) == 1:
            return labels
    unknown = [name for name in (cells if missing else numeric) if name not in known]
    odd = [f"no column for {quoted(missing)}"] if missing else []
    if unknown:
        odd.append(f"no class is called {quoted(unknown)}")
    if odd:
        raise DataError(
            f"{table.name}, row 1: {'; '.join(odd)}",
            hint="beside the id stands one column, for the label, or one for each class; take out"
            " what is neither",
        )
    return [name for name in cells if name in known]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _keys_of(table: Table) -> list[str]:
    """Return the ids in order, in one Unicode form; DataError if one is empty or repeated."""
    row_of: dict[str, int] = {}
    for number, cells in table.rows:
        first = row_of.setdefault(_normal(cells[0]), number)
        if first != number:
            raise DataError(
                f"{table.name}, row {number}: the id `{cells[0]}` stands in row {first} too"
            )
        if not cells[0]:
            raise DataError(f"{table.name}, row {number}: the id is empty")
    return list(row_of)


def _rows_of(inputs: Sequence[Input], kind: str) -> dict[str, int]:
    """Return each photo's number by id, in one Unicode form; DataError for equal ids."""
    row_of: dict[str, int] = {}
    for row, each in enumerate(inputs):
        key = _normal(_IDS[kind](each))
        first = row_of.setdefault(key, row)
        if first != row:
            raise DataError(
                f"two photos have the id `{key}`: {inputs[first].name} and {each.name}",
                hint="give each photo once"
                if inputs[first].name == each.name
                else "use the whole path as id",
            )
    return row_of


def _file_name(each: Input) -> str:
    """Return the name of the file itself, as a table may leave out the ending."""
    return each.file.name if each.file else PurePosixPath(each.name.replace("\\", "/")).name


_IDS: Mapping[str, Callable[[Input], str]] = {  # in the order in which `auto` tries them
    "path": lambda each: each.name,
    "name": _file_name,
    "stem": lambda each: PurePosixPath(_file_name(each)).stem,
    "last name": _file_name,
    "last stem": lambda each: PurePosixPath(_file_name(each)).stem,
    "number": lambda each: _number(PurePosixPath(_file_name(each)).stem),
}
_MEANING = {
    "path": "the whole names of the photos",
    "name": "the names of the files",
    "stem": "the names of the files without their endings",
    "last name": "the names of the files, by what is behind an id's last `/`",
    "last stem": "the names of the files without their endings, by what is behind an id's last `/`",
    "number": "the numbers that the files are called by, without zeros in front",
}


def _number(text: str) -> str:
    return text.lstrip("0") or "0" if text.isdecimal() else text


_SHORTER: Mapping[str, Callable[[str], str]] = {  # what of an id is compared, if not all of it
    "last name": lambda key: PurePosixPath(key).name,
    "last stem": lambda key: PurePosixPath(key).name,
    "number": _number,
}


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)
