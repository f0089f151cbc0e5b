"""What readers of labelling tools share: one label a photo, and files by their addresses.

Knows nothing of any form.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from fieldguide.errors import DataError
from fieldguide.photos.catalog import EXTENSIONS, SPLIT_FOLDERS
from fieldguide.photos.folders import is_hidden
from fieldguide.photos.forms.form import EVENT, LABEL, PATH, PLACE, SPLIT, TIME, Form, table_of
from fieldguide.words import count, listed, quoted

SEVERAL = "photos with several labels"
DIFFERENT = "photos whose annotations differ"
SHARED = "files that several photos would be"
UNSURE = "photos of a name that several files have"

_MOST_FILES = 20  # files of a folder that are looked at (taste)
_HEAD = 1 << 18  # bytes that hold the first record of any form (taste)
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of an upload
_QUERIED = re.compile(r"[?&](?:d|filepath)=([^&]*)")  # its addresses of files on a disk or cloud


class Said(NamedTuple):
    """What one annotation says of a photo: its labels by question, and other columns."""

    path: str
    labels: Mapping[str, Sequence[str]]
    more: Mapping[str, str] | None = None


def head_of(place: Path, *endings: str) -> bytes:
    """Return the first bytes of a file with one of these endings; none for anything else."""
    if place.suffix.lower() not in endings or not place.is_file():
        return b""
    with suppress(OSError), place.open("rb") as file:  # who reads the whole file says so
        return file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    return b""


def file_in(place: Path, fits: Callable[[Path], bool], form: str, *endings: str) -> Path | None:
    """Return the file, or the one with such an ending in a folder, that fits; None if none does.

    Raises DataError if several do. A folder of many files, such as one a photo, is not looked at.
    """
    files = [place]
    if place.is_dir():
        files = [each for each in sorted(place.iterdir()) if each.suffix.lower() in endings]
    fitting = [file for file in files if fits(file)] if len(files) <= _MOST_FILES else []
    if len(fitting) > 1:
        raise DataError(
            f"{place}: several files of {form}: {quoted([file.name for file in fitting])}",
            hint="give one of them, or the folder as photos by `--format plain`",
        )
    return fitting[0] if fitting else None


def header_of(head: bytes) -> list[str]:
    """Return the names of columns in the first bytes of a table; none if they are damaged."""
    line = head.partition(b"\n")[0].decode("utf-8", "replace").strip()
    with suppress(csv.Error):
        names = next(csv.reader([line], delimiter=separator_of(line)), [])
        return [name.strip() for name in names]
    return []


def separator_of(line: str) -> str:
    """Return what separates the cells of a line."""
    return max(",;\t", key=line.count)


def tables_in(place: Path, *names: str) -> list[Path]:
    """Return the file itself, or the files of these names in the folder and in those of parts."""
    if not place.is_dir():
        return [place] if place.name in names and place.is_file() else []
    parts = [each for each in sorted(place.iterdir()) if each.name.casefold() in SPLIT_FOLDERS]
    return [t for folder in (place, *parts) for name in names if (t := folder / name).is_file()]


def split_columns(subset: str) -> dict[str, str]:
    """Return the columns for the name of a part: `split` if it is one, else `subset`."""
    split = SPLIT_FOLDERS.get(subset.strip().casefold())
    return {SPLIT: split} if split else {"subset": subset}


def settled(
    name: str,
    base: Path,
    said: Iterable[Said],
    *,
    rules: Sequence[str] = (),
    left_out: Mapping[str, int] | None = None,
    files: "Files | None" = None,
    usual: Sequence[str] = (),
) -> Form:
    """Return what annotations say, as a form in which each photo has one row.

    Equal labels of a photo are one. A photo with several labels in one annotation, or different
    ones in several, is left out and counted; one without stays, unlabelled. Where annotations
    answer several questions, none is called `label` and not just one has a `usual` name, nothing
    decides which are the labels: each has a column, none is `label`, and a rule says so. Readers
    may change `left_out` until `said` is at its end.
    """
    photos: dict[str, dict[str, str]] = {}
    refused: dict[tuple[str, str], str] = {}
    columns: dict[str, str] = {}  # of questions
    for path, labels, more in said:
        row = photos.setdefault(path, {PATH: path})
        for question, given in labels.items():
            if not (kept := [label for label in given if label.strip()]):
                continue
            column = columns.setdefault(question, f"\0{question}")  # no column of others
            if len(kept) > 1 and len({*kept}) > 1:
                refused[path, question] = SEVERAL
            elif row.setdefault(column, kept[0]) != kept[0]:
                refused.setdefault((path, question), DIFFERENT)
        for column, value in (more or {}).items():
            row.setdefault(column, value)
    chosen = _chosen(list(columns), usual)
    for path, question in refused:
        photos[path].pop(columns[question], None)
    gone = {path: why for (path, question), why in refused.items() if question == chosen}
    gone |= files.out if files else {}
    reasons = {**(left_out or {}), **Counter(gone[path] for path in photos if path in gone)}
    rows = [row for path, row in photos.items() if path not in gone]
    names = {columns[q]: LABEL if q == chosen else free_name(q) for q in columns}
    notes = [*rules, *(files.rules() if files else []), *_told(list(columns), chosen)]
    unlabelled = sum(columns[chosen] not in row for row in rows) if chosen in columns else 0
    if unlabelled:
        notes.append(f"{count(unlabelled, 'photo')} without a label")
    others = Counter(f"{why}: `{q}`" for (_, q), why in refused.items() if q != chosen)
    notes += [f"{why} without one ({number:,})" for why, number in others.items()]
    return table_of(name, base, rows, names=names, rules=notes, left_out=reasons)


def _chosen(questions: list[str], usual: Sequence[str]) -> str:
    """Return the question whose answers are the labels; `label`, which is none, if several may."""
    if LABEL in questions or len(questions) == 1:
        return LABEL if LABEL in questions else questions[0]
    known = [each for each in questions if each.casefold() in usual]
    return known[0] if len(known) == 1 else LABEL


def free_name(name: str) -> str:
    """Return the name of a column of others, which has no meaning of its own here."""
    return f"{name}_" if name in (PATH, LABEL, EVENT, PLACE, SPLIT, TIME) else name


def _told(questions: list[str], chosen: str) -> list[str]:
    if questions in ([], [LABEL]):
        return []
    if chosen in questions:
        beside = listed([f"`{each}`" for each in questions if each != chosen])
        return [f"labels from `{chosen}`" + (f" beside {beside}" if beside else "")]
    names = listed([f"`{free_name(each)}`" for each in questions])
    return [f"{names} may each be the labels: say which with --label-column"]


# --- files ----------------------------------------------------------------------------------------


class Files:
    """The files below a folder, found by the addresses that a tool has for them.

    An address is a path from another folder, a URL, or what Label Studio makes of an upload. The
    file that ends in most of its parts is taken, else the only one of its name, else the only one
    of its name before it was uploaded. A file to which several addresses lead is left out, and so
    is a name of several files: `out` maps paths to reasons. What is not found keeps its address.
    """

    def __init__(self, base: Path) -> None:
        self.out: dict[str, str] = {}
        self._paths = set(below(base))
        self._named: dict[str, list[str]] = {}
        for path in sorted(self._paths):
            self._named.setdefault(path.rpartition("/")[2], []).append(path)
        self._found: dict[str, str] = {}  # by address
        self._address: dict[str, str] = {}  # of a path that was found
        self._shorter = self._renamed = 0

    def find(self, address: str, *paths: str) -> str:
        """Return the path of the file at an address, else what of the address is a path.

        The first of `paths` that is there is it; if none is found at all, the last is said to be.
        """
        if address not in self._found:
            texts = spellings(address)
            found = next((path for path in paths if path in self._paths), None) if paths else None
            found = found or self._by_end(texts) or self._by_name(texts)
            if found is not None:
                if self._address.setdefault(found, address) != address:
                    self.out.setdefault(found, SHARED)
            elif paths:
                found = paths[-1]
            else:
                found = address if "://" in address else texts[0].removeprefix("/data/")
            self._found[address] = found
        return self._found[address]

    def rules(self) -> list[str]:
        """Return how files were found, other than at the paths that addresses name."""
        ways = {
            "found by the end of an address": self._shorter,
            "found without what uploading puts before a name": self._renamed,
        }
        return [f"{count(n, 'file')} {how}" for how, n in ways.items() if n]

    def _by_end(self, texts: Sequence[str]) -> str | None:
        for text in texts:
            end = text if text.rpartition("/")[2] in self._named else ""
            while end:
                if end in self._paths:
                    self._shorter += end != text
                    return end
                end = end.partition("/")[2]
        return None

    def _by_name(self, texts: Sequence[str]) -> str | None:
        names = [text.rpartition("/")[2] for text in texts]
        uploads = [name[9:] for name in names if name[8:9] == "-" and _UPLOADED.match(name)]
        for name in (*names, *uploads):
            if paths := self._named.get(name):
                if len(paths) > 1:
                    self.out[texts[0]] = UNSURE
                    return texts[0]
                self._shorter += name in names
                self._renamed += name not in names
                return paths[0]
        return None


def spellings(address: str) -> list[str]:
    """Return what of an address may be a path: without quoting first, then as it stands."""
    text = address.strip().replace("\\", "/")
    if "?" in text and (queried := _QUERIED.search(text)):
        text = queried[1]
    elif "://" in text:
        scheme, _, text = text.partition("://")
        if scheme.startswith("http"):
            text = re.split("[?#]", text, maxsplit=1)[0]
    return [unquote(text), text] if "%" in text else [text]


def is_address(value: object) -> bool:
    """Return whether a value is text that ends as the names of pictures do."""
    return isinstance(value, str) and any(
        Path(text).suffix.lower() in EXTENSIONS for text in spellings(value)
    )


def below(base: Path) -> Iterator[str]:
    """Yield the paths of files below a folder; links are followed once, hidden names left away."""
    seen = set()
    for folder, folders, names in os.walk(base, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [each for each in folders if not is_hidden(each)]
        start = Path(folder).relative_to(base).as_posix()
        for name in names:
            if not is_hidden(name):
                yield name if start == "." else f"{start}/{name}"
