"""Folds: the photos that each part of a cross-validation tests and trains on, as row numbers.

The test parts are stratified (every class is spread evenly), keep groups whole (photos of one
specimen, or copies of one photo, are never on both sides) and are stable: they depend only on the
seed and on the names of photos, classes and groups, not on the order of rows, and one photo more
moves few others. Knows nothing of files, catalogs or training.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldguide.errors import DataError, UsageError
from fieldguide.words import SHOWN, count, quoted, some

IntArray: TypeAlias = NDArray[np.int64]
_Draws: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Fold:
    """A part of a cross-validation: ascending row numbers, each row in one of the two arrays."""

    index: int
    train: IntArray
    test: IntArray


@dataclass(frozen=True)
class _Photos:
    """The rows of a collection in the order of their keys, with classes and groups as numbers.

    Numbers follow the sorted names, so that the order of the rows does not matter.
    """

    rows: IntArray  # the row numbers of the caller
    keys: tuple[str, ...]
    class_of: IntArray
    classes: tuple[str, ...]
    group_of: IntArray
    groups: tuple[str, ...]


def make_folds(
    labels: Sequence[str],
    keys: Sequence[str],
    groups: Sequence[str],
    *,
    folds: int,
    seed: int,
    fixed: Sequence[int | None] = (),
) -> tuple[Fold, ...]:
    """Return stratified folds that keep groups whole: their test parts partition the rows.

    Groups of several photos come first, the largest first, each into the fold where it leaves the
    shares of its classes most even. Then the single photos of each class complete the class as
    evenly as can be: without groups, two folds differ by at most one photo of it. A photo's fold
    comes from rendezvous hashing with capacities: pairs of photo and fold are visited in the order
    of their hash, and a pair whose photo is free and whose fold has a seat is joined. A new photo
    displaces at most one photo in each fold, and its new seat draws at most one from each: it moves
    at most 2 · (folds - 1) photos of its class and none of the others. (In a collection so small
    that a fold would test nothing, that fold gets one photo or group, and this promise ends.)

    `keys` name the photos, stable and unique (path or content hash); `groups` name one group a
    photo, of its own if it stands alone. `fixed` are folds of photos that have theirs already, of
    whole groups: they stay, and the others fill up. Raises UsageError for fewer than two folds,
    DataError for fewer groups than folds, for two groups with a photo of one key, and for a class
    that a fold could not train on: it lies whole in one group, or groups of several classes leave
    no way out, or all of it is fixed in one fold; with `fixed` also for a fold left without photos.

    Unlike scikit-learn's StratifiedGroupKFold, the result survives additions; unlike
    StratifiedKFold's, fold sizes differ by more than one (each class chooses by hash which folds
    get its last photos, or a new photo would move others' classes).
    """
    if folds < 2:
        raise UsageError(f"folds must be at least 2: {folds}")
    photos = _sorted_photos(labels, keys, groups, np.arange(len(labels)))
    if len(photos.groups) < folds:
        raise DataError(
            f"{count(len(photos.keys), 'photo')} in {count(len(photos.groups), 'group')}"
            f" cannot make {folds} folds",
            hint="lower folds or add photos",
        )
    _refuse_classes_in_one_group(photos)
    known = fixed or [None] * len(labels)
    fold_of = np.array([-1 if (fold := known[row]) is None else fold for row in photos.rows])
    placed = fold_of >= 0
    _place_groups(photos, fold_of, folds, seed)
    _place_singles(photos, fold_of, folds, seed)
    _fill_empty_folds(photos, fold_of, placed, folds, seed)
    if fixed:
        names = [photos.classes[number] for number in photos.class_of]
        _refuse_untrained_classes(names, fold_of, [f"fold {fold}" for fold in range(folds)])
    numbers = np.empty_like(fold_of)
    numbers[photos.rows] = fold_of
    return _from_numbers(numbers)


def given_folds(
    numbers: Sequence[int | None], groups: Sequence[str], *, labels: Sequence[str] | None = None
) -> tuple[Fold, ...]:
    """Return the folds of a user's column: photos with one number are tested together.

    Numbers are any integers; the folds follow them in ascending order and are counted from 0.
    Raises DataError for a row without a number, for fewer than two numbers, for a group with
    several, and, given `labels`, for a class that the training part of a fold lacks.
    """
    assert len(numbers) == len(groups), "one number and one group a photo"
    missing = [row for row, number in enumerate(numbers, start=1) if number is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {count(len(numbers), 'row')} have no fold number:"
            f" {some([f'row {row}' for row in missing], SHOWN)}",
            hint="give every row a number, or leave the fold column out",
        )
    given = np.array(numbers, dtype=np.int64)
    values, fold_of = np.unique(given, return_inverse=True)
    if len(values) < 2:
        shown = ", ".join(f"`{value}`" for value in values) or "none"
        raise DataError(f"the fold column holds fewer than two numbers: {shown}")
    _refuse_split_groups(given, groups)
    if labels is not None:
        _refuse_untrained_classes(labels, fold_of, [f"fold `{value}`" for value in values])
    return _from_numbers(fold_of)


def inner_split(
    labels: Sequence[str],
    keys: Sequence[str],
    groups: Sequence[str],
    rows: IntArray,
    *,
    share: float,
    seed: int,
) -> tuple[IntArray, IntArray]:
    """Return row numbers to train on and row numbers set aside, to stop by or to score by.

    Splits `rows` (row numbers into the three sequences, as in `make_folds`), keeps groups whole and
    leaves every class photos to train on. Of a class of n, share · n photos are set aside, rounded
    up or down by a draw of the class; of all, at least one. Both results are ascending. No order of
    rows matters, and one photo more changes the part of its own class by at most one photo, if no
    group interferes.

    Raises UsageError for a share outside 0 … 1 (both excluded), DataError if every class has only
    one group.
    """
    if not 0 < share < 1:
        raise UsageError(f"the share to set aside must lie between 0 and 1: {share}")
    photos = _sorted_photos(labels, keys, groups, np.asarray(rows, dtype=np.int64))
    sizes = np.bincount(photos.class_of)
    rounding = [int(_draws(seed, "share", name, 1)[0]) / 2**64 for name in photos.classes]
    wanted = [int(share * size + draw) for size, draw in zip(sizes, rounding, strict=True)]
    aside = _set_aside(photos, wanted, seed)
    return np.sort(photos.rows[~aside]), np.sort(photos.rows[aside])


# --- names to numbers ------------------------------------------------------------------------


def _sorted_photos(
    labels: Sequence[str], keys: Sequence[str], groups: Sequence[str], rows: IntArray
) -> _Photos:
    assert len(labels) == len(keys) == len(groups), "one label, key and group a photo"
    order = sorted(rows.tolist(), key=keys.__getitem__)
    sorted_keys = tuple(keys[row] for row in order)
    sorted_groups = [groups[row] for row in order]
    for (key, group), (next_key, next_group) in pairwise(
        zip(sorted_keys, sorted_groups, strict=True)
    ):
        if key == next_key and group != next_group:
            one, other = sorted((group, next_group))
            raise DataError(
                f"two groups hold a photo of one key: `{key}` is in `{one}` and `{other}`",
                hint="give both photos one group",
            )
    class_of, classes = _numbered([labels[row] for row in order])
    group_of, group_names = _numbered(sorted_groups)
    ordered = np.array(order, dtype=np.int64)
    return _Photos(ordered, sorted_keys, class_of, classes, group_of, group_names)


def _numbered(names: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Return each name's number among the sorted different names, and these."""
    # Not np.unique: numpy's text drops NULs at the end and takes as much room as the longest name.
    numbers = np.empty(len(names), dtype=np.int64)
    different: list[str] = []
    for row in sorted(range(len(names)), key=names.__getitem__):
        if not different or different[-1] != names[row]:
            different.append(names[row])
        numbers[row] = len(different) - 1
    return numbers, tuple(different)


def _draws(seed: int, kind: str, name: str, count: int) -> _Draws:
    """Return random 64-bit numbers that depend only on seed, kind and name, on every system."""
    blocks = range(-(-count // 8))  # a blake2b digest of 64 bytes holds eight draws
    # The name comes last: the other parts hold no NUL, so no two triples make one text.
    # Lone surrogates stand for the bytes of a file name that is not UTF-8.
    texts = (
        f"{seed}\0{kind}\0{block}\0{name}".encode("utf-8", "surrogatepass") for block in blocks
    )
    digests = b"".join(hashlib.blake2b(text, digest_size=64).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")[:count].astype(np.uint64)


# --- groups of several photos ----------------------------------------------------------------


def _members(number_of: IntArray) -> Iterator[IntArray]:
    """Yield the photos (positions in key order) of each class or group, by its number."""
    order = np.argsort(number_of, kind="stable")
    ends = np.cumsum(np.bincount(number_of))
    for begin, end in pairwise([0, *ends.tolist()]):
        yield order[begin:end]


def _group_draw(photos: _Photos, members: IntArray, kind: str, seed: int) -> int:
    """Return a draw of a group, or of a single photo's key: its group's name does not matter."""
    first = members[0]
    name = photos.groups[photos.group_of[first]] if len(members) > 1 else photos.keys[first]
    return int(_draws(seed, kind, name, 1)[0])


def _place_groups(photos: _Photos, fold_of: IntArray, folds: int, seed: int) -> None:
    """Fill in the fold, in `fold_of`, of every photo of a group of several that has none (-1) yet.

    A group goes where the sum of squared class shares over the folds, Σ (count / class size)²,
    grows least: as the sum of all shares is fixed, their variance is then smallest.
    """
    sizes = np.bincount(photos.class_of, minlength=len(photos.classes))
    placed = fold_of >= 0
    waiting = _groups_per_class(photos, ~placed)
    held = np.zeros((len(photos.classes), folds), dtype=np.int64)
    np.add.at(held, (photos.class_of[placed], fold_of[placed]), 1)
    several = [each for each in _members(photos.group_of) if len(each) > 1 and not placed[each[0]]]
    several.sort(key=lambda members: (-len(members), _group_draw(photos, members, "order", seed)))
    for members in several:
        group = photos.groups[photos.group_of[members[0]]]
        classes, counts = np.unique(photos.class_of[members], return_counts=True)
        # Row by row, not as a matrix product, whose order of additions is the machine's choice.
        growth = (held[classes] * (counts / sizes[classes] ** 2)[:, None]).sum(axis=0)
        growth[_closing(held[classes], waiting[classes])] = np.inf
        if np.isinf(growth).all():
            raise DataError(
                f"group `{group}` fits in no fold: in each, a class would lie whole and could not"
                f" be trained: {quoted([photos.classes[each] for each in classes])}",
                hint="add photos of these classes, split the group, or change the number of folds",
            )
        fold = np.lexsort((_draws(seed, "group", group, folds), growth))[0]
        fold_of[members] = fold
        held[classes, fold] += counts
        waiting[classes] -= 1


def _groups_per_class(photos: _Photos, some: NDArray[np.bool_]) -> IntArray:
    """Return the number of groups of each class among some of the photos."""
    pairs = np.unique(np.stack([photos.class_of[some], photos.group_of[some]]), axis=1)
    return np.bincount(pairs[0], minlength=len(photos.classes))


def _closing(held: IntArray, waiting: IntArray) -> NDArray[np.bool_]:
    """Return the folds that would hold a class whole if its last group came there."""
    last = held[waiting == 1]
    alone = (last > 0) & (last == last.sum(axis=1, keepdims=True))
    closing: NDArray[np.bool_] = alone.any(axis=0)
    return closing


# --- single photos ---------------------------------------------------------------------------


def _place_singles(photos: _Photos, fold_of: IntArray, folds: int, seed: int) -> None:
    """Fill in the fold, in `fold_of`, of every photo that has none yet."""
    for name, places in zip(photos.classes, _members(photos.class_of), strict=True):
        fixed = fold_of[places]
        held = np.bincount(fixed[fixed >= 0], minlength=folds)
        singles = places[fixed < 0]
        seats = _seats(held, len(singles), _draws(seed, "class", name, folds))
        fold_of[singles] = _matched([photos.keys[place] for place in singles], seats, seed)


def _seats(held: IntArray, photos: int, draws: _Draws) -> list[int]:
    """Return the number of single photos for each fold that leaves the class most even.

    Each seat goes to the fold with the fewest photos of the class, then to the lowest draw: one
    photo more adds one seat and moves none.
    """
    seats = [0] * len(held)
    heap = list(zip(held.tolist(), draws.tolist(), range(len(held)), strict=True))
    heapq.heapify(heap)
    for _ in range(photos):
        count, draw, fold = heap[0]
        heapq.heapreplace(heap, (count + 1, draw, fold))
        seats[fold] += 1
    return seats


def _matched(keys: Sequence[str], seats: Sequence[int], seed: int) -> IntArray:
    """Return the fold of each key: rendezvous hashing with exactly as many seats as keys."""
    folds = len(seats)
    if not keys:
        return np.empty(0, dtype=np.int64)
    fold_of = [-1] * len(keys)
    free = list(seats)
    draws = np.stack([_draws(seed, "photo", key, folds) for key in keys])
    for pair in np.argsort(draws, axis=None, kind="stable").tolist():
        photo, fold = divmod(pair, folds)
        if fold_of[photo] < 0 and free[fold]:
            fold_of[photo] = fold
            free[fold] -= 1
    return np.array(fold_of, dtype=np.int64)


# --- small collections -----------------------------------------------------------------------


def _fill_empty_folds(
    photos: _Photos, fold_of: IntArray, placed: NDArray[np.bool_], folds: int, seed: int
) -> None:
    """Give each fold that tests nothing, in `fold_of`, a group of a fold that has several.

    It is the smallest group, and among several one from the fold with the most photos. DataError
    if all of these have been `placed` before.
    """
    for empty in np.flatnonzero(np.bincount(fold_of, minlength=folds) == 0):
        load = np.bincount(fold_of, minlength=folds)
        members = list(_members(photos.group_of))
        homes = [int(fold_of[each[0]]) for each in members]
        pairs = [pair for pair in zip(members, homes, strict=True) if not placed[pair[0][0]]]
        spare = [each for each, home in pairs if homes.count(home) > 1]
        if not spare:
            raise DataError(
                f"nothing is left for fold {empty} to test: the photos that it tested are gone",
                hint="bring them back, or begin a run without an older one",
            )
        ranks = [
            (len(each), -load[fold_of[each[0]]], _group_draw(photos, each, "spare", seed))
            for each in spare
        ]
        fold_of[spare[ranks.index(min(ranks))]] = empty


# --- a part for early stopping ---------------------------------------------------------------


def _set_aside(photos: _Photos, wanted: Sequence[int], seed: int) -> NDArray[np.bool_]:
    """Return a mask of photos (in key order) set aside, near the `wanted` number of each class.

    Groups come in the order of their draws; one is taken if that brings the counts of its classes
    nearer (in sum, each by its class's size) and leaves each class a photo.
    """
    sizes = np.bincount(photos.class_of).tolist()
    kept, short = list(sizes), list(wanted)
    aside = np.zeros(len(photos.keys), dtype=bool)
    members = list(_members(photos.group_of))
    members.sort(key=lambda each: _group_draw(photos, each, "aside", seed))
    for each in members:
        counts = Counter(photos.class_of[each].tolist())
        if _nearer(counts, short, sizes) and _leaves_some(counts, kept):
            aside[each] = True
            for number, size in counts.items():
                short[number] -= size
                kept[number] -= size
    if aside.any():
        return aside
    for each in members:  # very small collections may want none: the first that no class needs
        if _leaves_some(Counter(photos.class_of[each].tolist()), sizes):
            aside[each] = True
            return aside
    raise DataError(
        f"none of {count(len(photos.keys), 'photo')} can be set aside:"
        " every group holds a whole class",
        hint="add photos, or set none aside",
    )


def _nearer(counts: Counter[int], short: Sequence[int], sizes: Sequence[int]) -> bool:
    changes = (
        (abs(short[number] - count) - abs(short[number])) / sizes[number]
        for number, count in sorted(counts.items())
    )
    return sum(changes) < 0


def _leaves_some(counts: Counter[int], kept: Sequence[int]) -> bool:
    return all(kept[number] > count for number, count in counts.items())


# --- fold numbers to folds, and what is refused ----------------------------------------------


def _from_numbers(numbers: IntArray) -> tuple[Fold, ...]:
    """Return folds from the fold number of every row; all numbers from 0 on occur."""
    return tuple(
        Fold(index, np.flatnonzero(numbers != index), np.flatnonzero(numbers == index))
        for index in range(int(numbers.max()) + 1)
    )


def _refuse_split_groups(given: IntArray, groups: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for row, (group, number) in enumerate(zip(groups, given.tolist(), strict=True)):
        before = first.setdefault(group, row)
        if given[before] != number:
            raise DataError(
                f"group `{group}` lies in several folds: row {before + 1} in `{given[before]}`,"
                f" row {row + 1} in `{number}`",
                hint="give all photos of a group one fold number",
            )


def _refuse_untrained_classes(
    labels: Sequence[str], fold_of: IntArray, folds: Sequence[str]
) -> None:
    """Refuse classes that lie whole in one fold, which then trains without them."""
    homes: dict[str, set[int]] = {}
    for label, fold in zip(labels, fold_of.tolist(), strict=True):
        homes.setdefault(label, set()).add(fold)
    whole = sorted((label, min(home)) for label, home in homes.items() if len(home) == 1)
    if whole:
        shown = some([f"class `{label}` in {folds[home]}" for label, home in whole], SHOWN)
        raise DataError(
            f"a class must not lie whole in one fold, which then trains without it: {shown}",
            hint="add photos of it, or move some to another fold",
        )


def _refuse_classes_in_one_group(photos: _Photos) -> None:
    shown = []
    everywhere = np.ones(len(photos.keys), dtype=np.bool_)
    for number in np.flatnonzero(_groups_per_class(photos, everywhere) == 1).tolist():
        places = np.flatnonzero(photos.class_of == number)
        group = photos.groups[photos.group_of[places[0]]]
        size = "1 photo" if len(places) == 1 else f"{len(places)} photos, group `{group}`"
        shown.append(f"`{photos.classes[number]}` ({size})")
    if shown:
        raise DataError(
            "a class of one photo or one group would be missing where a fold trains without it:"
            f" {some(shown, SHOWN)}",
            hint="add photos from other groups, merge the class with another, or leave it out",
        )
