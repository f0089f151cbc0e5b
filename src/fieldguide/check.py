"""What is wrong with a collection of photographs, found before anything is trained on it.

Every file is read once and decoded once (`inspect`); all else is computed from the facts kept of
it: which photos are copies of each other (`duplicates`), what to tell the user (`findings`), and
which photos must stay on one side of a fold (`joined_groups`). Nothing here changes a photo. Knows
nothing of how folds are made, of training or of how findings are shown.
"""

import hashlib
import itertools
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fieldguide import columns, files, pixels
from fieldguide.catalog import Catalog, Photo, listed, trainable_notes
from fieldguide.columns import Column, Packed, Records, Shared
from fieldguide.errors import UnreadablePhoto

T = TypeVar("T")
Clusters: TypeAlias = Sequence[tuple[int, ...]]

# The fingerprint is a thumbnail: 16 × 16 values of gray, then 4 × 4 of each of two colours.
_SIDE = 16
_COLOUR_SIDE = 4
_GRAY = _SIDE * _SIDE
# Pixels of the shorter side to decode for it: with half of that, the half pixel by which reduced
# decoding may shift a picture cost 0.05 of correlation (in a thumbnail of 32 × 32).
_DECODED_SIDE = 128


@dataclass(frozen=True, slots=True)
class Facts:
    """What one look at a file told. Sizes are upright; `problem` is empty if it can be read."""

    sha256: str = ""  # of the file's bytes; empty where not even they could be read
    width: int = 0  # pixels; 0 where there is no picture
    height: int = 0
    frames: int = 0
    problem: str = ""
    warning: str = ""
    hint: str = ""
    fingerprint: bytes = b""  # 256 gray and 32 colour values; empty where there is no picture


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to tell the user. `kind` is a short slug; a fatal finding stops a fit."""

    kind: str
    path: str
    message: str
    hint: str = ""
    fatal: bool = False


def in_columns(facts: Iterable[Facts] = ()) -> Records[Facts]:
    """Facts as `inspect` gives them: a sequence of about 380 bytes a photo."""
    return Records(
        Facts,
        {
            "sha256": columns.digests,
            "width": partial(array, "i"),
            "height": partial(array, "i"),
            "frames": partial(array, "i"),
            "problem": Shared,
            "warning": Shared,
            "hint": Shared,
            "fingerprint": partial(Packed, bytes, bytes),
        },
        facts,
    )


def _table(facts: Sequence[Facts]) -> Records[Facts]:
    return facts if isinstance(facts, Records) else in_columns(facts)


# --- looking at every photo -----------------------------------------------------------------------


def inspect(
    catalog: Catalog,
    *,
    workers: int | None = None,
    truncated: pixels.Truncated = "refuse",
    progress: Callable[[int], None] | None = None,
) -> Records[Facts]:
    """The facts of every photo in catalog order, from one read and one decode each.

    Threads, as decoding and hashing release the interpreter's lock: processes would have to be
    started, and to import, first. `progress` is called in the caller's thread with the number of
    photos done so far. The result does not depend on `workers`.
    """
    paths = catalog.files
    # one future a photo would cost as much as decoding a small one
    batches = [range(len(paths))[start : start + 32] for start in range(0, len(paths), 32)]
    facts = in_columns()
    with ThreadPoolExecutor(workers or _cores()) as pool:
        try:
            for done in pool.map(
                lambda rows: [look(paths[row], truncated) for row in rows], batches
            ):
                for each in done:
                    facts.append(each)
                if progress:
                    progress(len(facts))
        except BaseException:  # Ctrl-C must not wait for a million photos
            pool.shutdown(cancel_futures=True)
            raise
    return facts


def look(path: Path, truncated: pixels.Truncated = "refuse") -> Facts:
    """The facts of one file; what is wrong with it is in them, nothing is raised."""
    sha256 = ""
    try:
        data = pixels.read(path)
        sha256 = hashlib.sha256(data).hexdigest()
        frame = pixels.decode(data, shorter_side=_DECODED_SIDE, truncated=truncated)
    except UnreadablePhoto as error:
        return Facts(sha256, problem=error.message, hint=error.hint)
    return Facts(
        sha256,
        frame.width,
        frame.height,
        frame.frames,
        warning=frame.warning,
        fingerprint=_fingerprint(frame.image),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fingerprint(image: Image.Image) -> bytes:
    # reducing_gap: whole pixels are averaged first, which is many times faster on large pictures
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, reducing_gap=4.0)
    gray, *colours = small.convert("YCbCr").split()
    return gray.tobytes() + b"".join(c.reduce(_SIDE // _COLOUR_SIDE).tobytes() for c in colours)


# --- copies ---------------------------------------------------------------------------------------


_Bytes: TypeAlias = NDArray[np.uint8]  # of thumbnails: gray (n, 16, 16), colour (n, 2, 4, 4)
_Hashes: TypeAlias = NDArray[np.uint64]
_Numbers: TypeAlias = NDArray[np.int64]
_Pairs: TypeAlias = NDArray[np.int64]  # of shape (pairs, 2)

# Measured on 500 photographs of shorter side 160. Of their copies (JPEG of quality 30, 50, 75, 95,
# WebP, resized by 0.5-4 and encoded again, mirrored, mirrored and resized) all differed by at most
# 7 bits, correlated at 0.995 or more, were nowhere 0.22 deviations apart and kept their colours
# within 4 levels: recall 100 %. Cropped at two sides by 1 %: 100 %, by 2 %: 33 %; brightened by a
# tenth: 100 %, by a fifth: 83 %. No two different photos were taken for one, nor among 6,834 photos
# of 100 species, where 7 pairs were found, all of them copies to the eye; at a correlation of 0.96
# letter-boxed pictures begin to be alike, and at one of 0.98 small subjects on white, those being
# 1.3 deviations apart somewhere.
_MOST_BITS = 7
_LEAST_CORRELATION = 0.98
_MOST_APART = 0.75  # standard deviations, at any place
_MOST_COLOUR = 10  # levels
_BRIGHTER = 1.5  # levels, for a bit to be set: at 0, even white backgrounds would set half of them
_FLAT = 4.0  # levels: a gray thumbnail that deviates less is mostly noise of the compression
_AT_ONCE = 10_000  # thumbnails made into floats at once: 10 MB in each of some ten arrays
_NEIGHBOURS = 64  # compared at most for each photo in each table; only look-alikes have more


def duplicates(catalog: Catalog, facts: Sequence[Facts]) -> tuple[tuple[int, ...], ...]:
    """Clusters of two photos or more that show one picture, as ascending row numbers.

    Copies are found if they are equal, re-encoded, resized, stretched, slightly brightened or
    mirrored; crops and turned pictures are not looked for. First, hashes of 64 bits (is a cell
    brighter than the one to its left? N. Krawetz, "Kind of Like That", 2013) are compared through
    tables keyed by three of their eight bytes, for pictures and mirror images; then thumbnails
    must agree. The time grows about as fast as the number of photos.
    """
    table = _table(facts)
    rows = np.flatnonzero(table.column("width"))
    thumbnails = table.column("fingerprint").matrix(_GRAY + 2 * _COLOUR_SIDE**2)
    join = _Join(len(catalog))
    pairs, different = _equal_pairs(thumbnails)
    for one, other in rows[pairs].tolist():
        join.unite(one, other)
    if len(different) > 1:
        for one, other in rows[_near_pairs(thumbnails, different)].tolist():
            join.unite(one, other)
    return join.clusters()


def _equal_pairs(fingerprints: _Bytes) -> tuple[_Pairs, _Numbers]:
    """Pairs that join all equal rows, and the first of each set of equal rows, ascending."""
    whole = np.ascontiguousarray(fingerprints).view(f"V{fingerprints.shape[1]}").ravel()
    order = np.argsort(whole, kind="stable")
    again = np.zeros(len(order), np.bool_)  # whether a row equals the one before it
    for start in range(0, len(order) - 1, _AT_ONCE):
        some = fingerprints[order[start : start + _AT_ONCE + 1]]
        again[start + 1 : start + len(some)] = (some[1:] == some[:-1]).all(axis=1)
    behind = np.flatnonzero(again)
    return np.stack([order[behind - 1], order[behind]], axis=1), np.sort(order[~again])


class _Join:
    """Sets of row numbers that are united two rows at a time; each is named by its smallest row."""

    def __init__(self, size: int) -> None:
        self._above = array("q", range(size))

    def root(self, row: int) -> int:
        while self._above[row] != row:
            self._above[row] = self._above[self._above[row]]
            row = self._above[row]
        return row

    def unite(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._above[high] = low

    def clusters(self) -> tuple[tuple[int, ...], ...]:
        """The sets of several rows, by their smallest; rows ascending."""
        roots = np.fromiter(map(self.root, range(len(self._above))), np.int64, len(self._above))
        several = np.flatnonzero((np.bincount(roots) > 1)[roots])
        rows = several[np.argsort(roots[several], kind="stable")]
        begins = np.flatnonzero(np.diff(roots[rows], prepend=-1))
        return tuple(tuple(each.tolist()) for each in np.split(rows, begins)[1:])


def _near_pairs(fingerprints: _Bytes, rows: _Numbers) -> _Pairs:
    """The pairs of these rows of (n, 288) that are copies or mirrored copies of each other."""
    gray = fingerprints[:, :_GRAY].reshape(-1, _SIDE, _SIDE)
    colour = fingerprints[:, _GRAY:].reshape(-1, 2, _COLOUR_SIDE, _COLOUR_SIDE)
    mirrored, mirrored_colour = gray[..., ::-1], colour[..., ::-1]
    hashes = np.concatenate([_hashes(gray, rows), _hashes(mirrored, rows)])
    straight, swapped = _candidates(hashes, (colour, mirrored_colour), rows)
    return np.concatenate(
        [
            straight[_agreeing(_same_gray, gray, gray, straight)],
            swapped[_agreeing(_same_gray, gray, mirrored, swapped)],
        ]
    )


def _hashes(thumbnails: _Bytes, rows: _Numbers) -> _Hashes:
    """A bit for each of 8 × 8 neighbours in 8 rows of 9 cells, cells being averages over areas."""
    hashes = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _AT_ONCE):
        some = thumbnails[rows[start : start + _AT_ONCE]].astype(np.float64)
        cells = _areas(8) @ some @ _areas(9).T
        bits = cells[:, :, 1:] > cells[:, :, :-1] + _BRIGHTER
        packed = np.packbits(bits.reshape(len(bits), 64), axis=1).view(np.uint64)
        hashes[start : start + _AT_ONCE] = packed.ravel()
    return hashes


def _areas(cells: int) -> NDArray[np.float64]:
    """Weights (cells, 16) by which 16 pixels average to fewer cells."""
    edges = np.linspace(0, _SIDE, cells + 1)
    pixel = np.arange(_SIDE)
    low = np.maximum(edges[:-1, None], pixel)
    high = np.minimum(edges[1:, None], pixel + 1)
    weights: NDArray[np.float64] = np.clip(high - low, 0, None) * (cells / _SIDE)
    return weights


def _candidates(
    hashes: _Hashes, colours: tuple[_Bytes, _Bytes], rows: _Numbers
) -> tuple[_Pairs, _Pairs]:
    """Pairs of rows that differ by few bits and agree in colour: (straight, with mirrored).

    `hashes` holds those of the rows' pictures and then of their mirror images; `colours` are all
    pictures' and all mirror images'. Five flipped bits leave at least three of eight bytes alone,
    so each such pair meets in one of the 56 tables; of pairs with seven flipped bits, about nine in
    ten do. Of 200,000 drawn photos 8 million pairs met, nearly all of other colours: not kept.
    """
    count = len(rows)
    colour, mirrored = colours
    straight: list[_Numbers] = []
    swapped: list[_Numbers] = []
    for table, bytes_kept in enumerate(itertools.combinations(range(8), 3), start=1):
        for one, other in _meetings(hashes, bytes_kept):
            low, high = np.minimum(one, other), np.maximum(one, other)
            both = high < count
            pairs = np.stack([low[both], high[both]], axis=1)
            straight.append(
                _codes(pairs[_agreeing(_same_colour, colour, colour, rows[pairs])], count)
            )
            mixed = (low < count) & (high >= count) & (low != high - count)
            pairs = np.stack([low[mixed], high[mixed] - count], axis=1)
            swapped.append(
                _codes(pairs[_agreeing(_same_colour, colour, mirrored, rows[pairs])], count)
            )
        if table % 8 == 0:  # most pairs meet in several tables: keep each once
            straight, swapped = [_different(straight)], [_different(swapped)]
    return rows[_pairs(straight, count)], rows[_pairs(swapped, count)]


def _codes(pairs: _Pairs, count: int) -> _Numbers:
    return pairs[:, 0] * count + pairs[:, 1]


def _meetings(hashes: _Hashes, bytes_kept: Sequence[int]) -> Iterator[tuple[_Numbers, _Numbers]]:
    """Places of hashes that have these bytes in common and differ by few bits.

    Hashes of one key are compared in their order, each with the next few.
    """
    # The bytes of the key become the most significant ones: one sort brings keys together.
    others = [byte for byte in range(8) if byte not in bytes_kept]
    by_bytes = hashes.view(np.uint8).reshape(-1, 8).take([*others, *bytes_kept], axis=1)
    turned: _Hashes = by_bytes.view(np.uint64).ravel()
    order = np.argsort(turned, kind="stable")
    turned = turned[order]
    keys = turned >> np.uint64(8 * len(others))
    # Only rows whose key the next one has too go on: most keys are had once.
    same = np.flatnonzero(keys[1:] == keys[:-1])
    for step in range(1, _NEIGHBOURS + 1):
        same = same[same < len(order) - step]
        same = same[keys[same] == keys[same + step]]
        if not len(same):
            return
        near = np.bitwise_count(turned[same] ^ turned[same + step]) <= _MOST_BITS
        yield order[same[near]], order[same[near] + step]


def _pairs(codes: Sequence[_Numbers], count: int) -> _Pairs:
    return np.stack(np.divmod(_different(codes), count), axis=1)


def _different(codes: Sequence[_Numbers]) -> _Numbers:
    """Each number once, ascending: by sorting, which takes a fraction of numpy's hash tables."""
    found = np.sort(np.concatenate([np.empty(0, np.int64), *codes]))
    return found[np.diff(found, prepend=-1) > 0]


def _agreeing(
    agree: Callable[[_Bytes, _Bytes], NDArray[np.bool_]], one: _Bytes, other: _Bytes, pairs: _Pairs
) -> NDArray[np.bool_]:
    """Whether the thumbnails of each pair, one row of `one` and one of `other`, agree."""
    answers = [np.empty(0, np.bool_)]
    for start in range(0, len(pairs), _AT_ONCE):
        a, b = pairs[start : start + _AT_ONCE].T
        answers.append(agree(one[a], other[b]))
    return np.concatenate(answers)


def _same_gray(one: _Bytes, other: _Bytes) -> NDArray[np.bool_]:
    """Whether they correlate and differ nowhere much; flat ones must also be equally bright."""
    a, mean_a, deviation_a = _normalised(one)
    b, mean_b, deviation_b = _normalised(other)
    apart = np.abs(a - b)
    correlation = 1 - np.mean(apart**2, axis=1) / 2
    close = (correlation >= _LEAST_CORRELATION) & (apart.max(axis=1) <= _MOST_APART)
    flat = np.minimum(deviation_a, deviation_b) < _FLAT
    level: NDArray[np.bool_] = np.abs(mean_a - mean_b) < _BRIGHTER
    same: NDArray[np.bool_] = close & (level | ~flat)
    return same


def _same_colour(one: _Bytes, other: _Bytes) -> NDArray[np.bool_]:
    """Whether no place differs much in either colour."""
    apart = np.abs(one.astype(np.int16) - other).reshape(len(one), -1)
    same: NDArray[np.bool_] = apart.max(axis=1) <= _MOST_COLOUR
    return same


_Floats: TypeAlias = NDArray[np.float32]


def _normalised(thumbnails: _Bytes) -> tuple[_Floats, _Floats, _Floats]:
    """Rows of mean 0 and deviation 1 (less where flat), and the means and deviations before."""
    values = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    mean = values.mean(axis=1)
    values -= mean[:, None]
    deviation = np.sqrt(np.mean(values**2, axis=1))
    return values / np.maximum(deviation, _FLAT)[:, None], mean, deviation


# --- what follows from it -------------------------------------------------------------------------


def joined_groups(catalog: Catalog, clusters: Clusters) -> Column[str]:
    """One group name a photo, in catalog order: copies and photos of one user's group share it.

    `clusters` are those that `duplicates` found. A photo alone is a group of its own. A group is
    named by the smallest path in it, so the names do not depend on the order of the photos.
    """
    join = _Join(len(catalog))
    for cluster in clusters:
        for row in cluster[1:]:
            join.unite(cluster[0], row)
    first_of: dict[str, int] = {}
    for row, group in enumerate(catalog.table.column("group")):
        if group is not None:
            join.unite(row, first_of.setdefault(group, row))
    paths: Column[str] = catalog.table.column("path")
    named_by = np.arange(len(catalog))
    for rows in join.clusters():
        named_by[list(rows)] = min(rows, key=paths.__getitem__)
    return paths.take(named_by.tolist())


def usable(
    catalog: Catalog,
    facts: Sequence[Facts],
    *,
    clusters: Clusters | None = None,
    conflicts: Literal["keep", "drop"] = "keep",
) -> tuple[Catalog, Clusters]:
    """The photos that can be read, with their SHA-256 filled in, and the clusters among them.

    `clusters` are those that `duplicates` found in `catalog`. `conflicts="drop"` also leaves out
    every training photo whose very file stands there under another label too.
    """
    table = _table(facts)
    clusters = duplicates(catalog, table) if clusters is None else clusters
    dropped = set(_conflicting(catalog, table)) if conflicts == "drop" else set()
    kept = [row for row in _readable(table) if row not in dropped]
    photos = catalog.table.take(kept).with_column("sha256", table.column("sha256").take(kept))
    used = replace(catalog, photos=photos)
    if dropped:  # one that is gone may have linked two that stay
        return used, duplicates(used, table.take(kept))
    # What cannot be read is in no cluster: all their photos stay, under other numbers.
    numbers = np.array(kept, dtype=np.int64)
    return used, [tuple(np.searchsorted(numbers, cluster).tolist()) for cluster in clusters]


def _readable(facts: Records[Facts]) -> Iterator[int]:
    return (row for row, problem in enumerate(facts.column("problem")) if not problem)


def _conflicting(catalog: Catalog, facts: Records[Facts]) -> Iterator[int]:
    for rows in _same_files(facts):
        training = [row for row in rows if catalog.photos[row].split == "train"]
        if len({catalog.photos[row].label for row in training}) > 1:
            yield from training


def _same_files(facts: Records[Facts]) -> Iterator[list[int]]:
    """Rows of files with the same bytes, of those that show something."""
    first_of: dict[str, int] = {}
    rows_of: dict[int, list[int]] = {}
    hashes = facts.column("sha256")
    for row in np.flatnonzero(facts.column("width")).tolist():
        first = first_of.setdefault(hashes[row], row)
        if first != row:
            rows_of.setdefault(first, [first]).append(row)
    return iter(rows_of.values())


# --- findings -------------------------------------------------------------------------------------


_RARE = 100  # times fewer photos than the largest class: then plain accuracy hides a class (taste)


def findings(
    catalog: Catalog,
    facts: Sequence[Facts],
    *,
    folds: int = 5,
    min_size: int = 16,
    clusters: Clusters | None = None,
) -> list[Finding]:
    """All there is to tell, fatal findings first.

    Fatal, so that a fit stops: fewer than two classes; a class that `val` has and `train` lacks; a
    class of which more than half cannot be read; one file under two labels in `train`; a class
    whose photos all lie in one group. Told and left to the user: files that cannot be read (they
    are left out), damaged and small pictures, copies (they stay in one fold), look-alikes under two
    labels, copies of `val` or `test` photos in `train`, thin classes, an imbalance beyond 1:100.

    `folds` is the number a fit would use, `min_size` the least shorter side in pixels.
    """
    table = _table(facts)
    found_clusters = duplicates(catalog, table) if clusters is None else clusters
    found = [Finding(n.kind, n.path, n.message, n.hint, n.fatal) for n in catalog.notes]
    readable = replace(catalog, photos=catalog.table.take(_readable(table)))
    for note in trainable_notes(readable):
        found.append(Finding(note.kind, note.path, note.message, note.hint, note.fatal))
    found += _file_findings(catalog, table, min_size)
    found += _lost_classes(catalog, table)
    for cluster in found_clusters:
        found += _cluster_findings(catalog, table, cluster)
    groups = joined_groups(catalog, found_clusters)
    found += _class_findings(catalog, table, groups, folds)
    return sorted(found, key=lambda finding: not finding.fatal)


def _file_findings(catalog: Catalog, facts: Records[Facts], min_size: int) -> Iterator[Finding]:
    for row in _odd_rows(facts, min_size):
        path, fact = catalog.photos[row].path, facts[row]
        if fact.problem:
            kind = "truncated" if fact.problem == "truncated" else "unreadable"
            yield Finding(kind, path, fact.problem, fact.hint)
        elif fact.warning:
            yield Finding("damaged", path, fact.warning)
        if fact.fingerprint and min(fact.width, fact.height) < min_size:
            size = f"{fact.width} × {fact.height} pixels"
            yield Finding("too-small", path, f"{size}, the shorter side is below {min_size}")
    frames = enumerate(facts.column("frames"))
    several = [catalog.photos[row].path for row, count in frames if count > 1]
    if several:
        message = f"files with several pictures, of which the first is used: {listed(several)}"
        yield Finding("several-frames", several[0], message)


def _odd_rows(facts: Records[Facts], min_size: int) -> Iterator[int]:
    names = ("problem", "warning", "width", "height")
    each = zip(*(facts.column(name) for name in names), strict=True)
    for row, (problem, warning, width, height) in enumerate(each):
        if problem or warning or min(width, height) < min_size:
            yield row


def _lost_classes(catalog: Catalog, facts: Records[Facts]) -> Iterator[Finding]:
    total = Counter(label for label, _ in _training(catalog, facts.column("problem")))
    lost = Counter(label for label, fault in _training(catalog, facts.column("problem")) if fault)
    for label in sorted(lost):
        if 2 * lost[label] > total[label]:
            message = f"class `{label}`: {lost[label]} of {total[label]} photos cannot be read"
            hint = "mend or remove the files, or take the class out"
            yield Finding("class-lost", "", message, hint, fatal=True)


def _training(catalog: Catalog, values: Iterable[T]) -> Iterator[tuple[str, T]]:
    """(label, value) of the labelled photos of the training part, of a value for every photo."""
    labels, splits = (catalog.table.column(name) for name in ("label", "split"))
    for label, split, value in zip(labels, splits, values, strict=True):
        if split == "train" and label is not None:
            yield label, value


def _cluster_findings(
    catalog: Catalog, facts: Records[Facts], cluster: tuple[int, ...]
) -> Iterator[Finding]:
    photos = [catalog.photos[row] for row in cluster]
    hashes = [facts[row].sha256 for row in cluster]
    yield from _copies(photos, hashes)
    yield from _leaks(photos, hashes)
    yield from _conflicts(photos, hashes)


def _copies(photos: Sequence[Photo], hashes: Sequence[str]) -> Iterator[Finding]:
    """One finding for each photo but the first of each split."""
    first: dict[str, int] = {}
    for row, photo in enumerate(photos):
        other = first.setdefault(photo.split, row)
        if other != row:
            kind, verb = _likeness(hashes[row], hashes[other])
            yield Finding(kind, photo.path, f"{verb} {photos[other].path}")


def _likeness(one: str, other: str) -> tuple[str, str]:
    same = one == other
    return ("exact-duplicate", "is the same file as") if same else ("near-duplicate", "looks like")


def _leaks(photos: Sequence[Photo], hashes: Sequence[str]) -> Iterator[Finding]:
    training = [row for row, photo in enumerate(photos) if photo.split == "train"]
    for row, photo in enumerate(photos):
        if training and photo.split != "train":
            other = next((t for t in training if hashes[t] == hashes[row]), training[0])
            verb = _likeness(hashes[row], hashes[other])[1]
            message = f"in `{photo.split}`, and {verb} the training photo {photos[other].path}"
            yield Finding("leak", photo.path, message, "scores on this photo flatter the model")


def _conflicts(photos: Sequence[Photo], hashes: Sequence[str]) -> Iterator[Finding]:
    """One finding where labels differ: fatal where it is one file, in the training part."""
    labelled = [(p, h) for p, h in zip(photos, hashes, strict=True) if p.label is not None]
    if len({p.label for p, _ in labelled}) < 2:
        return
    training = {(h, p.label) for p, h in labelled if p.split == "train"}
    fatal = len(training) > len({h for h, _ in training})
    where = ", ".join(f"`{p.label}` ({p.path})" for p, _ in labelled)
    what = "one picture" if fatal else "pictures that look the same"
    hint = "remove the wrong one, or drop all photos in conflict" if fatal else "look at both"
    yield Finding(
        "conflicting-labels",
        labelled[0][0].path,
        f"{what} under several labels: {where}",
        hint,
        fatal,
    )


def _class_findings(
    catalog: Catalog, facts: Records[Facts], groups: Sequence[str], folds: int
) -> Iterator[Finding]:
    photos: Counter[str] = Counter()
    groups_of: dict[str, set[str]] = defaultdict(set)
    own_folds = False
    each = zip(facts.column("problem"), groups, catalog.table.column("fold"), strict=True)
    for label, (problem, group, fold) in _training(catalog, each):
        if not problem:
            photos[label] += 1
            own_folds |= fold is not None
            if len(groups_of[label]) < max(folds, 2):  # more are as good as any number
                groups_of[label].add(group)
    if not own_folds:
        for label in sorted(photos):
            yield from _thin(label, photos[label], sorted(groups_of[label]), folds)
    if photos:
        yield from _imbalance(photos)


def _thin(label: str, photos: int, groups: Sequence[str], folds: int) -> Iterator[Finding]:
    if photos == 1:
        message = f"class `{label}` has 1 photo: the fold that tests it could not learn it"
        yield Finding("single-group", "", message, "add photos, or take the class out", fatal=True)
    elif len(groups) == 1:
        message = f"class `{label}`: all {photos} photos lie in one group, that of {groups[0]}"
        hint = "add photos of another specimen or site, or take the class out"
        yield Finding("single-group", "", message, hint, fatal=True)
    elif photos < folds:
        message = f"class `{label}` has {photos} photos, fewer than folds = {folds}"
        hint = f"lower folds to {photos} or add photos"
        yield Finding("thin-class", "", message, hint)
    elif len(groups) < folds:
        message = (
            f"class `{label}` has {photos} photos in {len(groups)} groups,"
            f" fewer than folds = {folds}"
        )
        hint = f"lower folds to {len(groups)} or add photos of other groups"
        yield Finding("thin-class", "", message, hint)


def _imbalance(photos: Counter[str]) -> Iterator[Finding]:
    largest = min(photos, key=lambda label: (-photos[label], label))
    smallest = min(photos, key=lambda label: (photos[label], label))
    if photos[largest] > _RARE * photos[smallest]:
        message = (
            f"class `{largest}` has {photos[largest]} photos and class `{smallest}`"
            f" {photos[smallest]}: more than {_RARE} to 1"
        )
        hint = "judge by macro F1 or balanced accuracy, and weigh the classes"
        yield Finding("imbalance", "", message, hint)


def write_findings(path: Path, found: Iterable[Finding]) -> None:
    """Write findings as CSV (kind, path, reason, hint), safe to open in a spreadsheet.

    A cell that would be taken for a formula gets a `'` in front.
    """
    rows = ([files.no_formula(c) for c in (f.kind, f.path, f.message, f.hint)] for f in found)
    files.write_csv(path, ("kind", "path", "reason", "hint"), rows)
