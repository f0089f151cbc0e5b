"""Clusters of photos that are copies of each other, and must stay on one side of a fold.

Computed from the fingerprints of `inspect`. Knows nothing of files, nor of how folds are made.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldguide.photos.agreement import COARSE, Bytes, Floats, Mask, Numbers, agree, coarse
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.inspect import COLOUR_SIDE, GRAY, SIDE, Facts, as_records
from fieldguide.storage.columns import Column

Clusters: TypeAlias = Sequence[tuple[int, ...]]

_Pairs: TypeAlias = NDArray[np.int64]  # of shape (pairs, 2)

LOOKED_FOR = (
    "copies looked for: equal, re-encoded, resized, mirrored, turned by 90°, slightly brightened,"
    " crops of up to about 10 %; not: freely rotated, strongly recoloured, with a border or stamp,"
    " later frames of a burst."
    " Frames of one scene that differ in light and noise alone count as copies"
)
FILES_LOOKED_FOR = "copies looked for: of files, byte by byte; photos that look alike are not"
# Measured by benchmarks/near_copies.py on 300 photographs of shorter side 160 (before the slash:
# hashes of 16 × 16 thumbnails, which this search replaced). Found of their copies: JPEG of quality
# 30-95, WebP, resized by 0.5-4, mirrored: 100 % / 100 %; turned by 90, 180, 270°, mirrored and
# turned: 0 / 100 %; cropped by 2 to 10 % at one side: 0-63 / 98-99 %, at two sides 0-26 / 90-99 %,
# centred 0-89 / 97-100 %; by 20 %: 0 / 15-71 %; brighter by 10 %: 100 / 100 %, by 20 %: 79 / 81 %,
# by 40 %: 27 / 28 %; rotated by 15°, gray: 0-3 / 0 %. Among 6,834 photos of 100 species 7 / 144
# pairs, of which none is false to the eye (4 have two labels). Of 4,200 pairs of frames of 20
# scenes in which a small animal differs 611 / 79 lie in one cluster, of 1,320 that differ in light
# and noise alone 1,320 / 1,222. The search takes 0.03 / 0.31 s of processor time for 1,000 photos,
# reading and decoding so small ones 1.0 s.
_AT_ONCE = 500  # pairs compared at once: what they take fits a cache
_DRAWN_AT_ONCE = 10_000  # fingerprints described at once: some 30 MB
# Photos meet in tables: cells of a grid over some of the features, each table's moved by itself.
_TABLES = 24
_KEPT = 12  # features that a table looks at
_WIDTH = 2.2  # of a cell, in deviations
_MOST_UNLIKE = 2.5  # squared distance of the features
_NEIGHBOURS = 8  # looked at for each photo in each table; only look-alikes have more
_NEAREST = 8  # pairs kept for each photo
_INSIDE = 24  # bits of a table's key that say where in its cell a photo lies
_ASKED = 8  # comparisons with the middle of a cluster, for each photo of a chain


def duplicates(catalog: Catalog, facts: Sequence[Facts]) -> tuple[tuple[int, ...], ...]:
    """Return clusters of two photos or more that show one picture, as ascending row numbers.

    Copies are found if equal, re-encoded, resized, stretched, slightly brightened, mirrored, turned
    by 90, 180 or 270°, or cropped by about a tenth; not if freely rotated or strongly recoloured.
    All of a cluster agree with one of them, so a chain of look-alikes is cut: those that are left
    make clusters of their own. Photos meet in tables by features that no turn and hardly a crop
    changes (locality-sensitive hashing: M. Datar and others, 2004); then thumbnails must agree. The
    time is about linear in the number of photos, and their order does not matter.
    """
    table = as_records(facts)
    rows = np.flatnonzero(table.column("width"))
    thumbnails = table.column("fingerprint").matrix(GRAY + 2 * COLOUR_SIDE**2)
    equal, order = _different(thumbnails)
    pairs = _near_pairs(thumbnails, order) if len(order) > 1 else np.empty((0, 2), np.int64)
    join = _Join(len(catalog))
    for one, other in rows[equal].tolist():
        join.unite(one, other)
    for star in _stars(thumbnails, order, pairs):
        for other in star[1:]:
            join.unite(int(rows[star[0]]), int(rows[other]))
    return join.clusters()


def _different(fingerprints: Bytes) -> tuple[_Pairs, Numbers]:
    """Return pairs that join all equal rows, and one row of each set of equals, by content."""
    whole = np.ascontiguousarray(fingerprints).view(f"V{fingerprints.shape[1]}").ravel()
    order = np.argsort(whole, kind="stable")
    again = np.zeros(len(order), np.bool_)  # whether a row equals the one before it
    for start in range(0, len(order) - 1, _DRAWN_AT_ONCE):
        some = fingerprints[order[start : start + _DRAWN_AT_ONCE + 1]]
        again[start + 1 : start + len(some)] = (some[1:] == some[:-1]).all(axis=1)
    behind = np.flatnonzero(again)
    return np.stack([order[behind - 1], order[behind]], axis=1), order[~again]


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


def _near_pairs(fingerprints: Bytes, order: Numbers) -> _Pairs:
    """Return pairs of positions in `order` whose photos agree."""
    features = np.empty((len(order), _FEATURES), np.float32)
    for start in range(0, len(order), _DRAWN_AT_ONCE):
        some = order[start : start + _DRAWN_AT_ONCE]
        features[start : start + len(some)] = _described(fingerprints[some])
    pairs = _candidates(features)
    return pairs[_agreeing(fingerprints, order[pairs])]


def _agreeing(fingerprints: Bytes, pairs: _Pairs) -> Mask:
    answers = [np.empty(0, np.bool_)]
    for start in range(0, len(pairs), _AT_ONCE):
        one, other = pairs[start : start + _AT_ONCE].T
        answers.append(agree(fingerprints[one], fingerprints[other]))
    return np.concatenate(answers)


_FEATURES = 16


def _described(fingerprints: Bytes) -> Floats:
    """Return (n, 16) features that no turn and no mirror changes, and a crop by a tenth little.

    Each is divided by about its deviation among 6,834 photos, those of brightness by more.
    """
    gray = fingerprints[:, :GRAY].reshape(-1, SIDE, SIDE).astype(np.float32)
    mean, deviation = gray.mean(axis=(1, 2)), gray.std(axis=(1, 2))
    gray = (gray - mean[:, None, None]) / np.maximum(deviation, 4)[:, None, None]
    cells = coarse(fingerprints) * COARSE
    across = np.abs(np.diff(gray, axis=2)).mean(axis=(1, 2))
    down = np.abs(np.diff(gray, axis=1)).mean(axis=(1, 2))
    found = [
        (cells * _OUTWARD).mean(axis=1) / 0.13,
        np.log(0.05 + np.maximum(across, down)) / 0.25,
        np.log(0.05 + np.minimum(across, down)) / 0.25,
        mean / 80,
        np.log(deviation + 2) / 0.8,
    ]
    colours = fingerprints[:, GRAY:].reshape(-1, 2, COLOUR_SIDE**2).astype(np.float32)
    colours -= 128
    middle = colours - colours.mean(axis=2, keepdims=True)
    for colour, centred, unit in zip(
        *(np.moveaxis(c, 1, 0) for c in (colours, middle)), (1.2, 0.9), strict=True
    ):
        ordered = np.sort(colour, axis=1)
        found += [
            ordered[:, :COARSE].mean(axis=1) / (12 * unit),
            ordered[:, -COARSE:].mean(axis=1) / (14 * unit),
            np.log(centred.std(axis=1) + 1) / 0.75,
            (cells * centred).mean(axis=1) / 5.5,
            (centred * _OUTWARD).mean(axis=1) / 1.6,
        ]
    found.append(np.cbrt((middle[:, 0] * middle[:, 1]).mean(axis=1)) / 4.5)
    return np.stack(found, axis=1)


def _outward() -> Floats:
    """Return how far each coarse cell is from the middle, less the mean."""
    at = (np.arange(COARSE, dtype=np.float32) + 0.5) * (2 / COARSE) - 1
    far = np.hypot(at[:, None], at).ravel()
    outward: Floats = far - far.mean()
    return outward


_OUTWARD = _outward()


def _candidates(features: Floats) -> _Pairs:
    """Return pairs of rows with like features, of each row the nearest few, ascending."""
    draws = np.random.default_rng(0)
    count = len(features)
    codes, unlike = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for table in range(1, _TABLES + 1):
        for one, other, apart in _meetings(features, _cells(features, draws)):
            codes.append(np.minimum(one, other) * count + np.maximum(one, other))
            unlike.append(apart)
        if table % 4 == 0:  # most pairs meet in several tables: keep each once
            found, near = np.concatenate(codes), np.concatenate(unlike)
            order = np.argsort(found)
            order = order[np.diff(found[order], prepend=-1) > 0]
            found, near = found[order], near[order]
            kept = _nearest(np.stack(np.divmod(found, count)), near)
            codes, unlike = [found[kept]], [near[kept]]
    return np.stack(np.divmod(codes[0], count), axis=1)


def _cells(features: Floats, draws: np.random.Generator) -> Numbers:
    """Return a number for each row: the cell that it lies in, then where in the cell."""
    kept = draws.permutation(features.shape[1])[:_KEPT]
    corner, odd = draws.random(_KEPT), draws.integers(1 << 62, size=_KEPT) | 1
    along = np.dot(features, draws.standard_normal(features.shape[1], np.float32))
    keys = np.empty(len(features), np.int64)
    for start in range(0, len(features), _DRAWN_AT_ONCE):
        some = slice(start, start + _DRAWN_AT_ONCE)
        cells = np.floor(features[some, kept] / _WIDTH + corner).astype(np.int64)
        keys[some] = (cells * odd).sum(axis=1)
    inside = (along * 1000 + (1 << _INSIDE - 1)).clip(0, (1 << _INSIDE) - 1)
    numbers: Numbers = keys >> _INSIDE << _INSIDE
    numbers |= inside.astype(np.int64)
    return numbers


def _meetings(features: Floats, keys: Numbers) -> Iterator[tuple[Numbers, Numbers, Floats]]:
    """Yield rows that lie in one cell and their squared distances, if these are small."""
    order = np.argsort(keys, kind="stable")
    cells, sorted_features = keys[order] >> _INSIDE, features[order]
    same = np.flatnonzero(cells[1:] == cells[:-1])  # most cells hold one
    for step in range(1, _NEIGHBOURS + 1):
        same = same[same < len(order) - step]
        same = same[cells[same] == cells[same + step]]
        if not len(same):
            return
        apart = sorted_features[same] - sorted_features[same + step]
        unlike = np.einsum("ni,ni->n", apart, apart)
        near = np.flatnonzero(unlike <= _MOST_UNLIKE)
        yield order[same[near]], order[same[near] + step], unlike[near]


def _nearest(pairs: _Pairs, unlike: Floats) -> Mask:
    """Return whether each pair (2, n) is among the nearest few of one of its rows."""
    rows, each = pairs.ravel(), np.tile(np.arange(pairs.shape[1]), 2)
    # One number sorts by row and then by distance: bits of floats from 0 up are in their order.
    order = np.argsort(rows << 32 | unlike[each].view(np.int32))
    rows, each = rows[order], each[order]
    far = rows[_NEAREST:] == rows[:-_NEAREST]  # as many nearer ones come before it
    kept = np.zeros(pairs.shape[1], np.bool_)
    kept[each[:_NEAREST]] = True
    kept[each[_NEAREST:][~far]] = True
    return kept


def _stars(fingerprints: Bytes, order: Numbers, pairs: _Pairs) -> Iterator[Numbers]:
    """Yield clusters of rows of which all agree with the first, that with most pairs.

    Those of a chain that it does not reach are clusters of their own, or alone.
    """
    join = _Join(len(order))
    nexts: dict[int, set[int]] = defaultdict(set)
    for one, other in pairs.tolist():
        join.unite(one, other)
        nexts[one].add(other)
        nexts[other].add(one)
    for chain in join.clusters():
        left = set(chain)
        asked = _ASKED * len(chain)
        for middle in sorted(chain, key=lambda row: (-len(nexts[row]), row)):
            if middle not in left:
                continue
            left.remove(middle)
            star = nexts[middle] & left
            if star and asked > 0 and (others := sorted(left - star)):
                asked -= len(others)
                both = np.sort([(middle, other) for other in others], axis=1)
                agreed = _agreeing(fingerprints, order[both])
                star |= {other for other, found in zip(others, agreed, strict=True) if found}
            left -= star
            if star:
                yield order[[middle, *sorted(star)]]


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
