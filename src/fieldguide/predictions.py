"""What a model says of photos, and the tables it is handed on in: plain CSV and submissions.

A row is made from one `Predictions`, which holds the name of a photo beside its probabilities, so
no row can carry another photo's result. Tables are written chunk by chunk: memory does not grow
with the number of photos. Knows nothing of models or pixels.
"""

import itertools
import shutil
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from fieldguide import catalog, files
from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.inputs import Input

Id = Literal["auto", "path", "name", "stem"]

_ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


# --- predictions ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Predictions:
    """What a model says of some photos, in the order in which they were given.

    `problems` are empty for photos that were read, else the reason; such photos have a row of NaN
    in `probabilities`. `sets` marks the classes that are not ruled out, if that was asked for.
    """

    names: tuple[str, ...]
    problems: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    probabilities: Float[np.ndarray, "n classes"] = field(repr=False)
    sets: Bool[np.ndarray, "n classes"] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = len(self.names), len(self.classes)
        assert self.probabilities.shape == shape, f"{self.probabilities.shape}, not {shape}"
        assert self.sets is None or self.sets.shape == shape, f"sets: not {shape}"
        assert len(self.problems) == len(self.names), "one problem a photo"
        lost = np.isnan(self.probabilities).any(axis=1).tolist()
        assert lost == [bool(problem) for problem in self.problems], "NaN without a problem"

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.names)

    @cached_property
    def labels(self) -> tuple[str | None, ...]:
        """The most probable class of each photo, the first of equal ones; None where unread."""
        best = self.probabilities.argmax(axis=1).tolist()
        return tuple(
            None if problem else self.classes[number]
            for problem, number in zip(self.problems, best, strict=True)
        )

    @cached_property
    def confidences(self) -> Float[np.ndarray, " n"]:
        """The probability of each photo's label; NaN where it was not read."""
        highest: NDArray[np.floating] = self.probabilities.max(axis=1)
        return highest

    @property
    def status(self) -> tuple[str, ...]:
        """Of each photo "ok", or such as "unreadable: empty file"."""
        return tuple(f"unreadable: {p}" if p else "ok" for p in self.problems)

    def to_csv(
        self,
        path: str | Path,
        *,
        top: int = 2,
        probabilities: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Write one row a photo, with the sets if there are any; see `Layout` for the columns.

        Raises UsageError where the file exists and `overwrite` is not given, ResourceError where it
        cannot be written.
        """
        layout = Layout(top, probabilities, sets=self.sets is not None)
        write(Path(path), [self], layout, overwrite=overwrite)

    @staticmethod
    def concatenate(chunks: Iterable["Predictions"]) -> "Predictions":
        """One record of all photos, in order, from at least one chunk (it names the classes)."""
        parts = list(chunks)
        if not parts:
            raise ValueError("no chunks: the classes are not known")
        first = parts[0]
        assert all(part.classes == first.classes for part in parts), "chunks of several models"
        sets = [part.sets for part in parts if part.sets is not None]
        assert len(sets) in (0, len(parts)), "only some chunks have sets"
        return Predictions(
            tuple(itertools.chain.from_iterable(part.names for part in parts)),
            tuple(itertools.chain.from_iterable(part.problems for part in parts)),
            first.classes,
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate(sets) if sets else None,
        )


# --- plain tables ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The columns of a table of predictions.

    path, label, confidence, second, second_confidence, … up to the `top` most probable classes
    (tenth, then top11, …), and status. With `sets` also `set`, class names by falling probability
    joined by `set_separator`, and `unsure`: `yes` where the set is not exactly one class. With
    `probabilities` also `p:<class>` for every class. Photos that could not be read have path and
    status alone. `spreadsheet` puts a `'` before cells that would be taken for formulas.

    UsageError if `top` is below 1; beyond the number of classes it means all of them.
    """

    top: int = 2
    probabilities: bool = False
    sets: bool = False
    spreadsheet: bool = False

    separator: ClassVar[str] = ","

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UsageError(f"`top` is below 1: {self.top}", hint="1 writes the label alone")

    def header(self, classes: Sequence[str]) -> list[str]:
        """The names of the columns."""
        ranks = [_rank(number) for number in range(2, min(self.top, len(classes)) + 1)]
        names = ["path", "label", "confidence"]
        names += [name for rank in ranks for name in (rank, f"{rank}_confidence")]
        names += ["status", *(("set", "unsure") if self.sets else ())]
        names += [f"p:{name}" for name in classes] if self.probabilities else []
        return self._safe(names)

    def rows(self, predictions: Predictions, start: int = 0) -> Iterator[list[str]]:
        """The cells of each photo; `start`, the number of rows before, changes nothing here."""
        assert not self.sets or predictions.sets is not None, "no sets to write"
        best = _by_rank(predictions.probabilities)[:, : self.top]
        between = set_separator(predictions.classes) if self.sets else ""
        names = zip(predictions.names, predictions.problems, predictions.status, strict=True)
        for row, (name, problem, status) in enumerate(names):
            ranked = _ranked(predictions, row, best[row])
            more = _set_cells(predictions, row, between) if self.sets else []
            more += _digits(predictions.probabilities[row]) if self.probabilities else []
            if problem:
                ranked, more = [""] * len(ranked), [""] * len(more)
            yield self._safe([name, *ranked, status, *more])

    def _safe(self, cells: list[str]) -> list[str]:
        return [files.no_formula(cell) for cell in cells] if self.spreadsheet else cells


def set_separator(classes: Iterable[str]) -> str:
    """What stands between the classes of a set: the first of these that is in no class name.

    `; `, then `| `, a tab, `|| `, `||| ` and so on. Splitting at it gives the classes back.
    """
    text = "\n\n".join(classes)  # no separator holds a line end: none can arise by joining
    candidates = itertools.chain(("; ", "| ", "\t"), ("|" * n + " " for n in itertools.count(2)))
    return next(separator for separator in candidates if separator not in text)


def _rank(number: int) -> str:
    return _ORDINALS[number - 2] if number < len(_ORDINALS) + 2 else f"top{number}"


def _by_rank(probabilities: Float[np.ndarray, "*n classes"]) -> NDArray[np.intp]:
    """Class numbers by falling probability; of equal ones the first class comes first."""
    order: NDArray[np.intp] = np.argsort(-probabilities, axis=-1, kind="stable")
    return order


def _ranked(predictions: Predictions, row: int, best: NDArray[np.intp]) -> list[str]:
    """Names and probabilities of the classes `best` in turn."""
    shown = _digits(predictions.probabilities[row, best])
    named = zip((predictions.classes[number] for number in best), shown, strict=True)
    return list(itertools.chain.from_iterable(named))


def _set_cells(predictions: Predictions, row: int, between: str) -> list[str]:
    """The set of a photo by falling probability, and whether that leaves a doubt."""
    assert predictions.sets is not None
    members = np.flatnonzero(predictions.sets[row])
    members = members[_by_rank(predictions.probabilities[row, members])]
    names = between.join(predictions.classes[number] for number in members)
    return [names, "no" if len(members) == 1 else "yes"]


def _digits(values: NDArray[np.floating]) -> list[str]:
    return [f"{value:.6g}" for value in values.tolist()]  # as in a run's oof.csv


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """How many rows were written, and how many of them for photos that could not be read."""

    photos: int
    unreadable: int


def require_free(out: Path, overwrite: bool = False) -> None:
    """Raises where `write` could not put `out` into place: call it before long work.

    UsageError where it is a folder, or a file and `overwrite` is not given; ResourceError where its
    folder is missing.
    """
    if out.is_dir():
        raise UsageError(f"this is a folder: {out}", hint="give the name of a file")
    if not overwrite and (out.exists() or out.is_symlink()):
        raise UsageError(
            f"this file exists: {out}",
            hint="choose another name, or say that it may be overwritten (--overwrite)",
        )
    if not out.parent.is_dir():
        raise ResourceError(f"no such folder: {out.parent}", hint="create the folder first")


def write(
    out: Path,
    chunks: Iterable[Predictions],
    layout: "Layout | Submission",
    *,
    overwrite: bool = False,
) -> Counts:
    """Write predictions as CSV while they come, and say how many.

    Rows go to `OUT.part`, which takes the place of `out` in the end. Whatever goes wrong, Ctrl-C
    and errors of `chunks` included, `OUT.part` keeps the rows of all chunks that came. At least one
    chunk is needed, of no photos perhaps: it names the classes (ValueError). Raises as
    `require_free` before the first chunk is taken; ResourceError where the disk is full.
    """
    require_free(out, overwrite)
    photos = unreadable = 0
    classes: tuple[str, ...] | None = None
    with files.growing(out) as add:
        for chunk in chunks:
            assert classes is None or chunk.classes == classes, "chunks of several models"
            header = [layout.header(chunk.classes)] if classes is None else []
            rows = itertools.chain(header, layout.rows(chunk, photos))
            add(b"".join(files.csv_lines(rows, layout.separator)))
            classes = chunk.classes
            photos += len(chunk)
            unreadable += sum(map(bool, chunk.problems))
        if classes is None:
            raise ValueError("no chunks: the classes are not known")
        require_free(out, overwrite)  # hours may have passed
    return Counts(photos, unreadable)


def zip_path(out: Path) -> Path:
    """Where `write_zip` puts its archive: `OUT.zip` beside `out`."""
    return out.with_name(f"{out.name}.zip")


def write_zip(out: Path, *, overwrite: bool = False) -> Path:
    """Pack the file `out` into `OUT.zip` beside it, whole or not at all; the path of that.

    The same file makes the same archive: it holds no time and no permissions of its own. Raises as
    `require_free`; ResourceError where a file cannot be read or written.
    """
    packed = zip_path(out)
    require_free(packed, overwrite)
    name = out.name.encode("utf-8", "replace").decode()  # a zip has no bytes that are not text
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the earliest it can say
    entry.create_system, entry.external_attr = 3, 0o644 << 16  # as from Unix, on every system
    entry.compress_type = zipfile.ZIP_DEFLATED
    with files.replacing(packed) as file, zipfile.ZipFile(file, "w") as archive:
        entry.file_size = out.stat().st_size
        with out.open("rb") as source, archive.open(entry, "w") as member:
            shutil.copyfileobj(source, member)
    return packed


# --- submissions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submission:
    """A table as a grader wants it: an id, and one label or the probability of every class.

    Row n belongs to `ids[n]` and to the photo `names[n]`. A photo that could not be read has empty
    cells beside its id: the grader needs the row.
    """

    columns: tuple[str, ...]  # the first holds the ids
    ids: tuple[str, ...]
    names: tuple[str, ...]
    probabilities: bool = False  # the other columns are the classes
    separator: str = ","

    def header(self, classes: Sequence[str]) -> list[str]:
        """The names of the columns."""
        assert not self.probabilities or set(self.columns[1:]) == set(classes), "other classes"
        return list(self.columns)

    def rows(self, predictions: Predictions, start: int = 0) -> Iterator[list[str]]:
        """The cells of each photo, of which `start` came before."""
        here = slice(start, start + len(predictions))
        assert predictions.names == self.names[here], "photos in another order than the ids"
        number_of = {name: number for number, name in enumerate(predictions.classes)}
        order = [number_of[name] for name in self.columns[1:]] if self.probabilities else []
        for row, (name, label) in enumerate(zip(self.ids[here], predictions.labels, strict=True)):
            if label is None:
                yield [name, *[""] * (len(self.columns) - 1)]
            elif self.probabilities:
                yield [name, *_digits(predictions.probabilities[row, order])]
            else:
                yield [name, label]


def submission(
    inputs: Sequence[Input],
    classes: Sequence[str],
    *,
    sample: Path | None = None,
    columns: tuple[str, str] | None = None,
    id: Id = "auto",
) -> tuple[Submission, list[Input]]:
    """What to write, and the inputs in the order of its rows: predict them in that order.

    With `sample`, a submission as the grader shows it: header, separator, ids and their order are
    taken from it. Its first column is the id; beside it stands one column, for the label, or one
    for each class, for probabilities. Without it `columns` names the id and the label, and the
    order stays.

    `id` says what of a photo is its id: `path`, the whole name; `name`, that of the file; `stem`,
    the same without its ending. `auto` takes the first of them under which every id of the sample
    is found, and without a sample the file's name. Unicode forms do not matter.

    Raises DataError where an id stands twice, has no photo, or a photo has no id, and where the
    sample's columns fit neither way; UsageError unless one of `sample` and `columns` is given.
    """
    if sample is not None and columns is None:
        return _as_sample(inputs, classes, sample, id)
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
        raise UsageError(
            f"two different names are needed for the columns: {catalog.listed(columns)}"
        )
    kind = "name" if id == "auto" else id
    _rows_of(inputs, kind)  # refuses what stands twice
    ids = tuple(_IDS[kind](each) for each in inputs)
    return Submission(columns, ids, tuple(each.name for each in inputs)), list(inputs)


def _as_sample(
    inputs: Sequence[Input], classes: Sequence[str], sample: Path, id: Id
) -> tuple[Submission, list[Input]]:
    table = catalog.read_cells(sample)
    probabilities = _wants_probabilities(table, classes)
    keys = _keys_of(table)
    kind = id if id != "auto" else max(_IDS, key=lambda each: _hits(keys, inputs, each))
    rows = _rows_of(inputs, kind)
    _refuse_unmatched(table, keys, rows, inputs, kind)
    ordered = [inputs[rows[key]] for key in keys]
    ids = tuple(cells[0] for _, cells in table.rows)
    names = tuple(each.name for each in ordered)
    return Submission(table.header, ids, names, probabilities, table.separator), ordered


def _wants_probabilities(table: catalog.Table, classes: Sequence[str]) -> bool:
    """Whether the sample has a column a class, and not one for the label; DataError if neither."""
    others = table.header[1:]
    if len(others) == 1:
        return False
    known, shown = set(classes), set(others)
    missing = [name for name in classes if name not in shown]
    unknown = [name for name in others if name not in known]
    odd = [
        *([f"no column for {catalog.listed(missing)}"] if missing else []),
        *([f"no class is called {catalog.listed(unknown)}"] if unknown else []),
    ]
    if odd:
        raise DataError(
            f"{table.name}, row 1: {'; '.join(odd)}",
            hint="beside the id stands one column, for the label, or one for each class",
        )
    return True


def _keys_of(table: catalog.Table) -> list[str]:
    """The ids in their order, in one Unicode form; DataError where one is empty or repeated."""
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


def _hits(keys: Iterable[str], inputs: Iterable[Input], kind: str) -> int:
    found = {_normal(_IDS[kind](each)) for each in inputs}
    return sum(key in found for key in keys)


def _rows_of(inputs: Sequence[Input], kind: str) -> dict[str, int]:
    """Id, in one Unicode form, to the photo's number; DataError where two photos have one id."""
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


def _refuse_unmatched(
    table: catalog.Table,
    keys: Sequence[str],
    rows: Mapping[str, int],
    inputs: Sequence[Input],
    kind: str,
) -> None:
    """Raises DataError with the ids that have no photo and the photos that have no id."""
    known = set(keys)
    missing = [key for key in keys if key not in rows]
    extra = [inputs[row].name for key, row in rows.items() if key not in known]
    odd = [
        *([f"{len(missing):,} without a photo: {catalog.listed(missing)}"] if missing else []),
        *([f"{_count(extra)} without an id: {catalog.listed(extra)}"] if extra else []),
    ]
    if odd:
        raise DataError(
            f"{table.name}: of {len(keys):,} ids {'; '.join(odd)}",
            hint=f"the ids were compared with {_MEANING[kind]}",
        )


def _count(photos: Sequence[str]) -> str:
    return "1 photo" if len(photos) == 1 else f"{len(photos):,} photos"


def _file_name(each: Input) -> str:
    """Of the file itself, as a table may leave out the ending."""
    return each.file.name if each.file else PurePosixPath(each.name.replace("\\", "/")).name


_IDS: Mapping[str, Callable[[Input], str]] = {  # in the order in which `auto` tries them
    "path": lambda each: each.name,
    "name": _file_name,
    "stem": lambda each: PurePosixPath(_file_name(each)).stem,
}
_MEANING = {
    "path": "the whole names of the photos",
    "name": "the names of the files",
    "stem": "the names of the files without their endings",
}


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)
