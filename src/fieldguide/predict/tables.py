"""A model's predictions, and the plain tables that hold them.

A row is made from one `Predictions`, so that no row can carry another photo's result. Tables are
written chunk by chunk: memory does not grow with the photos. Knows nothing of models or pixels.
"""

import itertools
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from fieldguide.analysis import promises
from fieldguide.analysis.events import Event, Gathered
from fieldguide.analysis.promises import Promise
from fieldguide.analysis.taxa import Taxonomy
from fieldguide.analysis.unknown import ALARM
from fieldguide.errors import ResourceError, UsageError
from fieldguide.photos.crops import parted
from fieldguide.storage import files

NO_BOX = "no box that counts"  # the problem of a photo of which no part is to be looked at

_ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


# --- predictions ----------------------------------------------------------------------------------


class Taxon(NamedTuple):
    """A photo's answer: a taxon, its rank and its probability."""

    name: str
    rank: str
    confidence: float


@dataclass(frozen=True)
class Answering:
    """How photos are answered by taxa: the levels that count, from the finest, and a promise.

    Without a `promise` each photo is answered at the first level; with one, at the finest whose
    confidence reaches its threshold, or not at all.
    """

    taxonomy: Taxonomy
    levels: range
    promise: Promise | None

    def of(
        self, probabilities: Float[np.ndarray, "n classes"], classes: Sequence[str]
    ) -> list[Taxon | None]:
        """Return the answer for each photo, or None."""
        best = self.taxonomy.best(probabilities)
        confidences = best.confidences[:, self.levels.start : self.levels.stop]
        threshold = self.promise.threshold if self.promise else 0.0
        found: list[Taxon | None] = []
        for row, level in enumerate(promises.answered(confidences, threshold).tolist()):
            if level == promises.NONE:
                found.append(None)
                continue
            level += self.levels.start
            name = self.taxonomy.name(level, int(best.nodes[row, level]), classes)
            found.append(Taxon(*name, float(best.confidences[row, level])))
        return found


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Predictions:
    """The predictions for some photos, in the order in which they were given.

    `problems` are empty for photos that were read, else the reason, with a row of NaN in
    `probabilities`. `sets` marks the classes that are not ruled out, if sets were asked for.
    `remarks` warn of photos that were read, such as ones that show nothing; empty without any.
    `familiarity` is the share of known photos that look no more familiar (`analysis.unknown`), NaN
    if unread or unknown to the classifier; `unknown` are photos where it is at most `alarm`.
    `answering` says how `taxa` are chosen, `event_of` to which event each photo belongs.
    """

    names: tuple[str, ...]
    problems: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    probabilities: Float[np.ndarray, "n classes"] = field(repr=False)
    sets: Bool[np.ndarray, "n classes"] | None = field(default=None, repr=False)
    remarks: tuple[str, ...] = field(default=(), repr=False)
    familiarity: Float[np.ndarray, " n"] | None = field(default=None, repr=False)
    alarm: float = field(default=ALARM, repr=False)
    answering: Answering | None = field(default=None, repr=False)
    event_of: tuple[str, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = len(self.names), len(self.classes)
        assert self.probabilities.shape == shape, f"{self.probabilities.shape}, not {shape}"
        assert self.sets is None or self.sets.shape == shape, f"sets: not {shape}"
        assert len(self.problems) == len(self.names), "one problem a photo"
        lost = np.isnan(self.probabilities).any(axis=1).tolist()
        assert lost == [bool(problem) for problem in self.problems], "NaN without a problem"

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.names)

    @cached_property
    def labels(self) -> tuple[str | None, ...]:
        """The most probable class of each photo, the first of equal ones; None if unread."""
        best = self.probabilities.argmax(axis=1).tolist()
        return tuple(
            None if problem else self.classes[number]
            for problem, number in zip(self.problems, best, strict=True)
        )

    @cached_property
    def confidences(self) -> Float[np.ndarray, " n"]:
        """The probability of each photo's label; NaN if unread."""
        highest: NDArray[np.floating] = self.probabilities.max(axis=1)
        return highest

    @cached_property
    def unknown(self) -> Bool[np.ndarray, " n"]:
        """Whether each photo looks like nothing known; not if it is unread.

        Raises ValueError for predictions without familiarity, as of older classifiers.
        """
        read = [not problem for problem in self.problems]
        if self.familiarity is None or np.isnan(self.familiarity[read]).any():
            raise ValueError("these predictions have no familiarity")
        found: NDArray[np.bool_] = self.familiarity <= self.alarm
        return found

    @cached_property
    def taxa(self) -> tuple[Taxon | None, ...]:
        """The taxon, its rank and its probability of each photo; None if unread or in doubt.

        Raises ValueError where no taxa were asked for (`Classifier.predict(right=…)`).
        """
        if self.answering is None:
            raise ValueError("no taxa were asked for")
        known = np.nan_to_num(self.probabilities)
        found = zip(self.answering.of(known, self.classes), self.problems, strict=True)
        return tuple(None if problem else taxon for taxon, problem in found)

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """One answer for the photos of each event that were read, in the order of the first.

        Raises ValueError where no events were asked for (`Classifier.predict(group=…)`).
        """
        if self.event_of is None:
            raise ValueError("no events were asked for")
        gathered = Gathered()
        self.gather(gathered, self.event_of)
        return tuple(gathered.events())

    def gather(self, gathered: Gathered, event_of: Sequence[str]) -> None:
        """Add the photos that were read to the answers of their events."""
        for row, (event, problem) in enumerate(zip(event_of, self.problems, strict=True)):
            if not problem:
                gathered.add(event, self.names[row], self.probabilities[row])

    @property
    def status(self) -> tuple[str, ...]:
        """The status of each photo: "ok", "unreadable: empty file", "too small: 1 × 1 pixels"."""
        remarks = self.remarks or ("",) * len(self)
        each = zip(self.problems, remarks, strict=True)
        return tuple(_status(problem) if problem else remark or "ok" for problem, remark in each)

    def to_csv(
        self,
        path: str | Path,
        *,
        top: int = 2,
        probabilities: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Write one row a photo, with what else there is; see `Layout` for the columns.

        Raises UsageError for a file that exists without `overwrite`, ResourceError for a failure.
        """
        layout = Layout(
            top,
            probabilities,
            sets=self.sets is not None,
            unknown=self.familiarity is not None and not np.isnan(self.familiarity).all(),
            taxa=self.answering is not None,
        )
        write(Path(path), [self], layout, overwrite=overwrite)

    def weighed(self, weights: Float[np.ndarray, " classes"]) -> "Predictions":
        """Return the predictions with classes weighed by how common they are: 0 if impossible.

        A photo to which no class with a weight is possible gets the weights themselves.
        """
        weighed = self.probabilities * weights
        sums = weighed.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            found = np.where(sums == 0, weights / weights.sum(), weighed / sums)
        return replace(self, probabilities=found)

    def rows(self, span: range) -> "Predictions":
        """Return some of the photos, by number."""
        part = slice(span.start, span.stop)
        return Predictions(
            self.names[part],
            self.problems[part],
            self.classes,
            self.probabilities[part],
            None if self.sets is None else self.sets[part],
            self.remarks[part],
            None if self.familiarity is None else self.familiarity[part],
            self.alarm,
            self.answering,
            None if self.event_of is None else self.event_of[part],
        )

    @staticmethod
    def concatenate(chunks: Iterable["Predictions"]) -> "Predictions":
        """Return all photos of the chunks in order; one chunk at least names the classes."""
        parts = list(chunks)
        if not parts:
            raise ValueError("no chunks: the classes are not known")
        first = parts[0]
        assert all(part.classes == first.classes for part in parts), "chunks of several models"
        sets = [part.sets for part in parts if part.sets is not None]
        familiar = [part.familiarity for part in parts if part.familiarity is not None]
        events = [part.event_of for part in parts if part.event_of is not None]
        assert len(sets) in (0, len(parts)), "only some chunks have sets"
        assert len(familiar) in (0, len(parts)), "only some chunks have a familiarity"
        return Predictions(
            tuple(itertools.chain.from_iterable(part.names for part in parts)),
            tuple(itertools.chain.from_iterable(part.problems for part in parts)),
            first.classes,
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate(sets) if sets else None,
            tuple(itertools.chain.from_iterable(p.remarks or ("",) * len(p) for p in parts)),
            np.concatenate(familiar) if familiar else None,
            first.alarm,
            first.answering,
            tuple(itertools.chain.from_iterable(events)) if len(events) == len(parts) else None,
        )


def _status(problem: str) -> str:
    return problem if problem == NO_BOX else f"unreadable: {problem}"


# --- plain tables ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The columns of a table of predictions.

    path, label, confidence, second, second_confidence, … up to the `top` most probable classes
    (tenth, then top11, …), and status. With `sets` also `set`, class names by falling probability
    joined by `set_separator`, and `unsure`: `yes` where the set is not exactly one class. `crops`
    adds the box, of names that are a crop's (`photos.crops`), after the path. With `probabilities`
    also `p:<class>` for every class. Unreadable photos have path and status alone. With `unknown`
    also `unknown`, `yes` or `no`, and `familiarity`; with `taxa` also `taxon`, `rank` and
    `taxon_confidence`, empty where none is sure enough.
    `spreadsheet` puts a `'` before cells that would be taken for formulas.

    UsageError if `top` is below 1; beyond the number of classes it means all of them.
    """

    top: int = 2
    probabilities: bool = False
    sets: bool = False
    spreadsheet: bool = False
    crops: bool = False
    unknown: bool = False
    taxa: bool = False

    separator: ClassVar[str] = ","

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UsageError(f"`top` is below 1: {self.top}", hint="1 writes the label alone")

    def header(self, classes: Sequence[str]) -> list[str]:
        """Return the names of the columns."""
        names = ["path", *(["box"] if self.crops else []), "label", "confidence"]
        for n in range(2, min(self.top, len(classes)) + 1):
            rank = _ORDINALS[n - 2] if n < len(_ORDINALS) + 2 else f"top{n}"
            names += [rank, f"{rank}_confidence"]
        names += ["status", *(("set", "unsure") if self.sets else ())]
        names += ["unknown", "familiarity"] if self.unknown else []
        names += ["taxon", "rank", "taxon_confidence"] if self.taxa else []
        names += [f"p:{name}" for name in classes] if self.probabilities else []
        return self._safe(names)

    def rows(self, predictions: Predictions, start: int = 0) -> Iterator[list[str]]:
        """Yield the cells of each photo; `start`, the number of rows before, has no effect."""
        assert not self.sets or predictions.sets is not None, "no sets to write"
        best = _by_rank(predictions.probabilities)[:, : self.top]
        between = set_separator(predictions.classes) if self.sets else ""
        names = zip(predictions.names, predictions.problems, predictions.status, strict=True)
        for row, (name, problem, status) in enumerate(names):
            first = [predictions.classes[number] for number in best[row]]
            shown = digits(predictions.probabilities[row, best[row]])
            ranked = [cell for pair in zip(first, shown, strict=True) for cell in pair]
            more = _set_cells(predictions, row, between) if self.sets else []
            if self.unknown and predictions.familiarity is not None:
                strange = "yes" if predictions.unknown[row] else "no"
                more += [strange, *digits(predictions.familiarity[row : row + 1])]
            if self.taxa:
                taxon = predictions.taxa[row]
                more += ["", "", ""] if taxon is None else [*taxon[:2], f"{taxon.confidence:.6g}"]
            more += digits(predictions.probabilities[row]) if self.probabilities else []
            if problem:
                ranked, more = [""] * len(ranked), [""] * len(more)
            yield self._safe([*self._named(name), *ranked, status, *more])

    def _named(self, name: str) -> list[str]:
        """Return the cells that say what a row is of."""
        if not self.crops:
            return [name]
        photo, crop = parted(name)
        return [photo, crop.partition(" ")[2]]

    def _safe(self, cells: list[str]) -> list[str]:
        return [files.no_formula(cell) for cell in cells] if self.spreadsheet else cells


def set_separator(classes: Iterable[str]) -> str:
    """Return the text between the classes of a set: the first that is in no class name.

    `; `, then `| `, a tab, `|| `, `||| ` and so on. Splitting at it gives the classes back.
    """
    text = "\n\n".join(classes)  # no separator holds a line end
    candidates = itertools.chain(("; ", "| ", "\t"), ("|" * n + " " for n in itertools.count(2)))
    return next(separator for separator in candidates if separator not in text)


def _by_rank(probabilities: Float[np.ndarray, "*n classes"]) -> NDArray[np.intp]:
    """Return class numbers by falling probability; of equal ones the first comes first."""
    order: NDArray[np.intp] = np.argsort(-probabilities, axis=-1, kind="stable")
    return order


def _set_cells(predictions: Predictions, row: int, between: str) -> list[str]:
    """Return a photo's set by falling probability, and whether it leaves a doubt."""
    assert predictions.sets is not None
    members = np.flatnonzero(predictions.sets[row])
    members = members[_by_rank(predictions.probabilities[row, members])]
    names = between.join(predictions.classes[number] for number in members)
    return [names, "no" if len(members) == 1 else "yes"]


def digits(values: NDArray[np.floating]) -> list[str]:
    """Return values as tables show them, to six digits."""
    return [f"{value:.6g}" for value in values.tolist()]  # as in a run's oof.csv


# --- writing --------------------------------------------------------------------------------------


@runtime_checkable  # the tests check types
class Rows(Protocol):
    """A layout, as `write` needs it."""

    @property
    def separator(self) -> str:
        """The text between the cells of a row."""

    def header(self, classes: Sequence[str]) -> list[str]:
        """Return the names of the columns."""

    def rows(self, predictions: Predictions, start: int = 0) -> Iterator[list[str]]:
        """Yield the cells of each photo, after the first `start` ones."""


@dataclass(frozen=True)
class Counts:
    """The number of rows that were written, and of them of photos without an answer or a good one.

    These are unreadable ones, ones that show nothing, and ones without a box that counts. `unknown`
    are those marked so, `answered` those with a taxon, where this was asked for.
    """

    photos: int
    unreadable: int
    small: int = 0
    boxless: int = 0
    unknown: int = 0
    answered: int = 0


def beside(
    chunks: Iterable[Predictions], layout: Rows, add: Callable[[bytes], object]
) -> Iterator[Predictions]:
    """Yield the chunks, after their rows were given to `add` as CSV, with a header before all."""
    rows, first = 0, True
    for chunk in chunks:
        header = [layout.header(chunk.classes)] if first else []
        cells = itertools.chain(header, layout.rows(chunk, rows))
        add(b"".join(files.csv_lines(cells, layout.separator)))
        rows, first = rows + len(chunk), False
        yield chunk


def require_free(out: Path, overwrite: bool = False) -> None:
    """Raise the error of a `write` to `out`: call it before long work.

    UsageError for a folder, or a file without `overwrite`; ResourceError if its folder is missing.
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
    out: Path, chunks: Iterable[Predictions], layout: Rows, *, overwrite: bool = False
) -> Counts:
    """Write predictions as CSV while they come, and return the numbers of rows.

    Rows go to `OUT.part`, which takes the place of `out` in the end, and after any failure keeps
    the rows of all chunks so far. At least one chunk is needed, of no photos perhaps: it names the
    classes (ValueError). Raises as `require_free` before the first chunk is taken; ResourceError
    where the disk is full.
    """
    require_free(out, overwrite)
    with files.growing(out) as add:
        counts = counted(beside(chunks, layout, add))
        require_free(out, overwrite)  # hours may have passed
    return counts


def counted(chunks: Iterable[Predictions]) -> Counts:
    """Return the numbers of rows of all chunks; ValueError without a chunk."""
    photos = unreadable = small = boxless = unknown = answered = 0
    classes: tuple[str, ...] | None = None
    for chunk in chunks:
        assert classes is None or chunk.classes == classes, "chunks of several models"
        classes = chunk.classes
        photos += len(chunk)
        boxless += chunk.problems.count(NO_BOX)
        unreadable += sum(problem not in ("", NO_BOX) for problem in chunk.problems)
        small += sum(map(bool, chunk.remarks))
        unknown += 0 if chunk.familiarity is None else int((chunk.familiarity <= chunk.alarm).sum())
        answered += sum(each is not None for each in chunk.taxa) if chunk.answering else 0
    if classes is None:
        raise ValueError("no chunks: the classes are not known")
    return Counts(photos, unreadable, small, boxless, unknown, answered)


def zip_path(out: Path) -> Path:
    """Return the path of `write_zip`'s archive: `OUT.zip` beside `out`."""
    return out.with_name(f"{out.name}.zip")


def write_zip(out: Path, *, overwrite: bool = False) -> Path:
    """Pack the file `out` into `OUT.zip` beside it, whole or not at all, and return its path.

    The same file makes the same archive. Raises as `require_free`; ResourceError where a file
    cannot be read or written.
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
