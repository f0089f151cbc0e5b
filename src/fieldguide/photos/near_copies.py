"""Clusters of photos that are copies of each other, and must stay on one side of a fold.

Computed from the fingerprints of `inspect`. Knows nothing of files, nor of how folds are made.
"""

import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldguide.photos.catalog import Catalog
from fieldguide.photos.inspect import COLOUR_SIDE, GRAY, SIDE, Facts, as_records
from fieldguide.storage.columns import Column

Clusters: TypeAlias = Sequence[tuple[int, ...]]

_Bytes: TypeAlias = NDArray[np.uint8]  # of thumbnails: gray (n, 16, 16), colour (n, 2, 4, 4)
_Hashes: TypeAlias = NDArray[np.uint64]
_Floats: TypeAlias = NDArray[np.float32]
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
    """Return clusters of two photos or more that show one picture, as ascending row numbers.

    Copies are found if equal, re-encoded, resized, stretched, slightly brightened or mirrored, but
    not if cropped or turned. Hashes of 64 bits (is a cell brighter than the one to its left?
    N. Krawetz, "Kind of Like That", 2013) meet in tables keyed by three of their eight bytes; then
    thumbnails must agree. The time is about linear in the number of photos.
    """
    table = as_records(facts)
    rows = np.flatnonzero(table.column("width"))
    thumbnails = table.column("fingerprint").matrix(GRAY + 2 * COLOUR_SIDE**2)
    join = _Join(len(catalog))
    pairs, different = _equal_pairs(thumbnails)
    for one, other in rows[pairs].tolist():
        join.unite(one, other)
    if len(different) > 1:
        for one, other in rows[_near_pairs(thumbnails, different)].tolist():
            join.unite(one, other)
    return join.clusters()


def _equal_pairs(fingerprints: _Bytes) -> tuple[_Pairs, _Numbers]:
    """Return pairs that join all equal rows, and the first of each set of equals, ascending."""
    whole = np.ascontiguousarray(fingerprints).view(f"V{fingerprints.shape[1]}").ravel()
    order = np.argsort(whole, kind="stable")
    again = np.zeros(len(order), np.bool_)  # whether a row equals the one before it
    for start in range(0, len(order) - 1, _AT_ONCE):
        some = fingerprints[order[start : start + _AT_ONCE + 1]]
        again[start + 1 : start + len(some)] = (some[1:] == some[:-1]).all(axis=1)
    behind = np.flatnonzero(again)
    return np.stack([order[behind - 1], order[behind]], axis=1), np.sort(order[~again])


class _Join:
    """Sets of rows, united two rows at a time; each is named by its smallest row."""

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
        """Return the sets of several rows, by their smallest; rows ascending."""
        roots = np.fromiter(map(self.root, range(len(self._above))), np.int64, len(self._above))
        several = np.flatnonzero((np.bincount(roots) > 1)[roots])
        rows = several[np.argsort(roots[several], kind="stable")]
        begins = np.flatnonzero(np.diff(roots[rows], prepend=-1))
        return tuple(tuple(each.tolist()) for each in np.split(rows, begins)[1:])


def _near_pairs(fingerprints: _Bytes, rows: _Numbers) -> _Pairs:
    """Return the pairs of these rows of (n, 288) that are copies or mirrored copies."""
    gray = fingerprints[:, :GRAY].reshape(-1, SIDE, SIDE)
    colour = fingerprints[:, GRAY:].reshape(-1, 2, COLOUR_SIDE, COLOUR_SIDE)
    mirrored = gray[..., ::-1]
    hashes = np.concatenate([_hashes(gray, rows), _hashes(mirrored, rows)])
    straight, swapped = _candidates(hashes, (colour, colour[..., ::-1]), rows)
    straight = straight[_agreeing(_same_gray, gray, gray, straight)]
    swapped = swapped[_agreeing(_same_gray, gray, mirrored, swapped)]
    return np.concatenate([straight, swapped])


def _hashes(thumbnails: _Bytes, rows: _Numbers) -> _Hashes:
    """Return a bit for each of 8 × 8 neighbours in 8 rows of 9 cells, averages over areas."""
    hashes = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _AT_ONCE):
        some = thumbnails[rows[start : start + _AT_ONCE]].astype(np.float64)
        cells = _areas(8) @ some @ _areas(9).T
        bits = cells[:, :, 1:] > cells[:, :, :-1] + _BRIGHTER
        packed = np.packbits(bits.reshape(len(bits), 64), axis=1).view(np.uint64)
        hashes[start : start + _AT_ONCE] = packed.ravel()
    return hashes


def _areas(cells: int) -> NDArray[np.float64]:
    """Return weights (cells, 16) by which 16 pixels average to fewer cells."""
    edges = np.linspace(0, SIDE, cells + 1)
    pixel = np.arange(SIDE)
    low = np.maximum(edges[:-1, None], pixel)
    high = np.minimum(edges[1:, None], pixel + 1)
    weights: NDArray[np.float64] = np.clip(high - low, 0, None) * (cells / SIDE)
    return weights


def _candidates(
    hashes: _Hashes, colours: tuple[_Bytes, _Bytes], rows: _Numbers
) -> tuple[_Pairs, _Pairs]:
    """Return pairs of rows that differ by few bits and agree in colour: (straight, mirrored).

    `hashes` holds those of the rows' pictures and then of their mirror images; `colours` are all
    pictures' and all mirror images'. Five flipped bits leave at least three of eight bytes alone,
    so such a pair meets in one of the 56 tables; with seven, about nine in ten do. Of 200,000 drawn
    photos 8 million pairs met, nearly all of other colours: not kept.
    """
    count = len(rows)
    colour, mirrored = colours
    straight: list[_Numbers] = []
    swapped: list[_Numbers] = []
    for table, bytes_kept in enumerate(itertools.combinations(range(8), 3), start=1):
        for one, other in _meetings(hashes, bytes_kept):
            low, high = np.minimum(one, other), np.maximum(one, other)
            both = high < count
            mixed = (low < count) & (high >= count) & (low != high - count)
            for kept, high_row, other_colour, found in (
                (both, high, colour, straight),
                (mixed, high - count, mirrored, swapped),
            ):
                pairs = np.stack([low[kept], high_row[kept]], axis=1)
                pairs = pairs[_agreeing(_same_colour, colour, other_colour, rows[pairs])]
                found.append(pairs[:, 0] * count + pairs[:, 1])
        if table % 8 == 0:  # most pairs meet in several tables: keep each once
            straight, swapped = [_different(straight)], [_different(swapped)]
    return rows[_pairs(straight, count)], rows[_pairs(swapped, count)]


def _meetings(hashes: _Hashes, bytes_kept: Sequence[int]) -> Iterator[tuple[_Numbers, _Numbers]]:
    """Yield positions of hashes with these bytes in common that differ by few bits."""
    # The bytes of the key become the most significant ones: one sort brings keys together.
    others = [byte for byte in range(8) if byte not in bytes_kept]
    by_bytes = hashes.view(np.uint8).reshape(-1, 8).take([*others, *bytes_kept], axis=1)
    turned: _Hashes = by_bytes.view(np.uint64).ravel()
    order = np.argsort(turned, kind="stable")
    turned = turned[order]
    keys = turned >> np.uint64(8 * len(others))
    # Only rows whose key the next one has too: most keys occur once.
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
    """Return each number once, ascending: sorting is far faster than numpy's hash tables."""
    found = np.sort(np.concatenate([np.empty(0, np.int64), *codes]))
    return found[np.diff(found, prepend=-1) > 0]


def _agreeing(
    agree: Callable[[_Bytes, _Bytes], NDArray[np.bool_]], one: _Bytes, other: _Bytes, pairs: _Pairs
) -> NDArray[np.bool_]:
    """Return whether the thumbnails of each pair, a row of `one` and of `other`, agree."""
    answers = [np.empty(0, np.bool_)]
    for start in range(0, len(pairs), _AT_ONCE):
        a, b = pairs[start : start + _AT_ONCE].T
        answers.append(agree(one[a], other[b]))
    return np.concatenate(answers)


def _same_gray(one: _Bytes, other: _Bytes) -> NDArray[np.bool_]:
    """Return whether they correlate and nowhere differ much; flat ones must be equally bright."""
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
    """Return whether no pixel differs much in either colour."""
    apart = np.abs(one.astype(np.int16) - other).reshape(len(one), -1)
    same: NDArray[np.bool_] = apart.max(axis=1) <= _MOST_COLOUR
    return same


def _normalised(thumbnails: _Bytes) -> tuple[_Floats, _Floats, _Floats]:
    """Return rows of mean 0 and deviation 1 (less if flat), and the means and deviations before."""
    values = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    mean = values.mean(axis=1)
    values -= mean[:, None]
    deviation = np.sqrt(np.mean(values**2, axis=1))
    return values / np.maximum(deviation, _FLAT)[:, None], mean, deviation


def joined_groups(catalog: Catalog, clusters: Clusters) -> Column[str]:
    """Return a group name for each photo: copies and photos of one user's group share it.

    `clusters` are those that `duplicates` found. A photo alone is a group of its own. A group's
    name is the smallest path in it, so names do not depend on the order of the photos.
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
