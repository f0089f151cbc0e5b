"""Folds: which photos each part of a cross-validation tests and trains on, as row numbers.

The test parts are stratified (every class is spread evenly), keep groups whole (photos of one
specimen, or copies of one photo, are never on both sides) and are stable: they depend on the seed
and on the names of photos, classes and groups alone, not on the order of rows, and one photo more
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

IntArray: TypeAlias = NDArray[np.int64]
_Draws: TypeAlias = NDArray[np.uint64]

_SHOWN = 5  # classes or groups that a message names before it counts the rest (taste)
_DRAWS_PER_HASH = 8  # a blake2b digest of 64 bytes holds eight draws


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Fold:
    """One part of a cross-validation: row numbers, ascending, each row in one of the two arrays."""

    index: int
    train: IntArray
    test: IntArray


@dataclass(frozen=True)
class _Photos:
    """The rows of a collection in the order of their keys, with classes and groups as numbers.

    Numbers follow the sorted names, so all that is computed from them is the same for every order
    of the rows. A photo alone is a group of its own.
    """

    rows: IntArray  # the row numbers of the caller
    keys: tuple[str, ...]
    class_of: IntArray
    classes: tuple[str, ...]
    group_of: IntArray
    groups: tuple[str, ...]


def make_folds(
    labels: Sequence[str], keys: Sequence[str], groups: Sequence[str], *, folds: int, seed: int
) -> tuple[Fold, ...]:
    """Stratified folds that keep groups whole: their test parts partition the rows.

    Groups of several photos come first, the largest first, each into the fold where it leaves the
    shares of its classes most even. Then the single photos of each class complete the class as
    evenly as can be: without groups, two folds differ by at most one photo of it. Which fold a
    photo goes to is settled by rendezvous hashing with capacities: the pairs of photo and fold are
    gone through in the order of their hash, and a pair whose photo is free and whose fold has a
    seat is joined. It is the one stable matching if both sides rank by that hash. A new photo
    displaces at most one photo in each fold, and its new seat draws at most one from each, hence
    it moves at most 2 · (folds - 1) photos of its class and none of the others. (Where a
    collection is so small that a fold would test nothing, that fold is given one photo or group,
    and this promise ends.)

    `keys` name the photos, stable and unique (path or content hash); `groups` name one group a
    photo, of its own if it stands alone. Every integer is a seed, 0 too.

    Raises UsageError for fewer than two folds. Raises DataError for fewer groups than folds, for
    two groups with a photo of one key, and for a class that would be missing from the training
    part of a fold: because it lies whole in one group, or because groups of several classes leave
    no way out.

    Differs from scikit-learn's StratifiedGroupKFold in that its result survives additions, and
    from StratifiedKFold in that it lets fold sizes differ by more than one (each class chooses by
    hash which folds get its last photos, or a new photo would move others' classes).
    """
    if folds < 2:
        raise UsageError(f"folds must be at least 2: {folds}")
    photos = _sorted_photos(labels, keys, groups, np.arange(len(labels)))
    if len(photos.groups) < folds:
        raise DataError(
            f"{_count(len(photos.keys), 'photo')} in {_count(len(photos.groups), 'group')}"
            f" cannot make {folds} folds",
            hint="lower folds or add photos",
        )
    _refuse_classes_in_one_group(photos)
    fold_of = _place_groups(photos, folds, seed)
    _place_singles(photos, fold_of, folds, seed)
    _fill_empty_folds(photos, fold_of, folds, seed)
    numbers = np.empty_like(fold_of)
    numbers[photos.rows] = fold_of
    return _from_numbers(numbers)


def given_folds(
    numbers: Sequence[int | None], groups: Sequence[str], *, labels: Sequence[str] | None = None
) -> tuple[Fold, ...]:
    """The folds of a column that the user wrote: photos with one number are tested together.

    Numbers are any integers, counted from 0 or 1 or with gaps; the folds follow them in ascending
    order and are themselves counted from 0. Raises DataError for a row without a number, for fewer
    than two numbers, for a group with several, and, where `labels` are given, for a class that the
    training part of a fold lacks. Rows in messages are counted from 1.
    """
    assert len(numbers) == len(groups), "one number and one group a photo"
    given = _all_numbers(numbers)
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
    """Row numbers to train on and row numbers set aside: to stop by, or to score by.

    Splits `rows` (row numbers into the three sequences, as in `make_folds`) so that about `share`
    of each class is set aside, groups stay whole and every class keeps photos to train on. The
    photos set aside of a class of n are share · n, rounded up or down by a draw of the class:
    small classes give some at the right rate together. At least one photo is set aside. Both
    results are ascending. Neither the order of `rows` nor that of the sequences matters, and
    another photo changes the part of its own class by one photo at most, where no group interferes.

    Raises UsageError for a share outside 0 … 1 (both excluded), and DataError if no group can be
    spared because every class has only one.
    """
    if not 0 < share < 1:
        raise UsageError(f"the share to set aside must lie between 0 and 1: {share}")
    photos = _sorted_photos(labels, keys, groups, np.asarray(rows, dtype=np.int64))
    sizes = np.bincount(photos.class_of, minlength=len(photos.classes))
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
    return _Photos(
        rows=np.array(order, dtype=np.int64),
        keys=sorted_keys,
        class_of=class_of,
        classes=classes,
        group_of=group_of,
        groups=group_names,
    )


def _numbered(names: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Each name's place among the sorted different names, and these."""
    # Not np.unique: numpy's text drops NULs at the end and takes as much room as the longest name.
    numbers = np.empty(len(names), dtype=np.int64)
    different: list[str] = []
    for row in sorted(range(len(names)), key=names.__getitem__):
        if not different or different[-1] != names[row]:
            different.append(names[row])
        numbers[row] = len(different) - 1
    return numbers, tuple(different)


def _draws(seed: int, kind: str, name: str, count: int) -> _Draws:
    """`count` random 64-bit numbers that depend on seed, kind and name alone, on every system."""
    blocks = range(-(-count // _DRAWS_PER_HASH))
    # The name comes last: the other parts hold no NUL, so no two triples make one text.
    # Lone surrogates stand for the bytes of a file name that is not UTF-8.
    texts = (
        f"{seed}\0{kind}\0{block}\0{name}".encode("utf-8", "surrogatepass") for block in blocks
    )
    digests = b"".join(hashlib.blake2b(text, digest_size=64).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")[:count].astype(np.uint64)


# --- groups of several photos ----------------------------------------------------------------


def _members(photos: _Photos) -> Iterator[IntArray]:
    """The photos (places in key order) of each group, by group number."""
    order = np.argsort(photos.group_of, kind="stable")
    ends = np.cumsum(np.bincount(photos.group_of, minlength=len(photos.groups)))
    for begin, end in pairwise([0, *ends.tolist()]):
        yield order[begin:end]


def _group_draw(photos: _Photos, members: IntArray, kind: str, seed: int) -> int:
    """A draw of a group; for a single photo, of its key: what its group is called is no matter."""
    first = members[0]
    name = photos.groups[photos.group_of[first]] if len(members) > 1 else photos.keys[first]
    return int(_draws(seed, kind, name, 1)[0])


def _place_groups(photos: _Photos, folds: int, seed: int) -> IntArray:
    """The fold of every photo in a group of several, -1 for single photos.

    A group goes where the sum of squared class shares over the folds, Σ (count / class size)²,
    grows least: the sum of all shares being fixed, their variance is then smallest.
    """
    sizes = np.bincount(photos.class_of, minlength=len(photos.classes))
    waiting = _groups_per_class(photos)
    held = np.zeros((len(photos.classes), folds), dtype=np.int64)
    fold_of = np.full(len(photos.keys), -1, dtype=np.int64)
    several = [members for members in _members(photos) if len(members) > 1]
    several.sort(key=lambda members: (-len(members), _group_draw(photos, members, "order", seed)))
    for members in several:
        group = photos.groups[photos.group_of[members[0]]]
        classes, counts = np.unique(photos.class_of[members], return_counts=True)
        # Row by row, not as a matrix product, whose order of additions is the machine's choice.
        growth = (held[classes] * (counts / sizes[classes] ** 2)[:, None]).sum(axis=0)
        growth[_closing(held[classes], waiting[classes])] = np.inf
        if np.isinf(growth).all():
            _refuse_no_way_out(group, [photos.classes[each] for each in classes])
        fold = np.lexsort((_draws(seed, "group", group, folds), growth))[0]
        fold_of[members] = fold
        held[classes, fold] += counts
        waiting[classes] -= 1
    return fold_of


def _groups_per_class(photos: _Photos) -> IntArray:
    pairs = np.unique(np.stack([photos.class_of, photos.group_of]), axis=1)
    return np.bincount(pairs[0], minlength=len(photos.classes))


def _closing(held: IntArray, waiting: IntArray) -> NDArray[np.bool_]:
    """Folds that would hold a class whole, and train without it, if its last group came there."""
    last = held[waiting == 1]
    alone = (last > 0) & (last == last.sum(axis=1, keepdims=True))
    closing: NDArray[np.bool_] = alone.any(axis=0)
    return closing


# --- single photos ---------------------------------------------------------------------------


def _place_singles(photos: _Photos, fold_of: IntArray, folds: int, seed: int) -> None:
    """Fill in the fold, in `fold_of`, of every photo that has none yet."""
    by_class = np.argsort(photos.class_of, kind="stable")
    ends = np.cumsum(np.bincount(photos.class_of, minlength=len(photos.classes)))
    for name, places in zip(photos.classes, np.split(by_class, ends[:-1]), strict=True):
        fixed = fold_of[places]
        held = np.bincount(fixed[fixed >= 0], minlength=folds)
        singles = places[fixed < 0]
        seats = _seats(held, len(singles), _draws(seed, "class", name, folds))
        fold_of[singles] = _matched([photos.keys[place] for place in singles], seats, seed)


def _seats(held: IntArray, photos: int, draws: _Draws) -> list[int]:
    """How many of the single photos each fold takes, so that the class ends as even as it can.

    One seat after the other goes to the fold with the fewest photos of the class, and among
    several to the one with the lowest draw: one photo more adds one seat and moves none.
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
    """The fold of each key: rendezvous hashing with exactly as many seats as keys."""
    folds = len(seats)
    fold_of = [-1] * len(keys)
    if not keys:
        return np.array(fold_of, dtype=np.int64)
    free = list(seats)
    draws = np.stack([_draws(seed, "photo", key, folds) for key in keys])
    for pair in np.argsort(draws, axis=None, kind="stable").tolist():
        photo, fold = divmod(pair, folds)
        if fold_of[photo] < 0 and free[fold]:
            fold_of[photo] = fold
            free[fold] -= 1
    return np.array(fold_of, dtype=np.int64)


# --- small collections -----------------------------------------------------------------------


def _fill_empty_folds(photos: _Photos, fold_of: IntArray, folds: int, seed: int) -> None:
    """Give each fold that tests nothing, in `fold_of`, a group of a fold that has several.

    The smallest group, and among several one from the fold with the most photos. A single photo
    taken leaves its class as even as before: the empty fold had none of it.
    """
    for empty in np.flatnonzero(np.bincount(fold_of, minlength=folds) == 0):
        load = np.bincount(fold_of, minlength=folds)
        members = list(_members(photos))
        homes = [int(fold_of[each[0]]) for each in members]
        chosen = min(
            (each for each, home in zip(members, homes, strict=True) if homes.count(home) > 1),
            key=lambda each: (
                len(each),
                -load[fold_of[each[0]]],
                _group_draw(photos, each, "spare", seed),
            ),
        )
        fold_of[chosen] = empty


# --- a part for early stopping ---------------------------------------------------------------


def _set_aside(photos: _Photos, wanted: Sequence[int], seed: int) -> NDArray[np.bool_]:
    """Which photos (in key order) are set aside to come near the `wanted` number of each class.

    Groups are gone through in the order of their draws; one is taken if that brings the counts of
    its classes nearer (in sum, each by its class's size) and leaves each class a photo.
    """
    sizes = np.bincount(photos.class_of).tolist()
    kept, short = list(sizes), list(wanted)
    aside = np.zeros(len(photos.keys), dtype=bool)
    members = sorted(_members(photos), key=lambda each: _group_draw(photos, each, "aside", seed))
    for each in members:
        counts = Counter(photos.class_of[each].tolist())
        if _nearer(counts, short, sizes) and _leaves_some(counts, kept):
            aside[each] = True
            for number, count in counts.items():
                short[number] -= count
                kept[number] -= count
    if not aside.any():
        aside[_first_spare(photos, members, sizes)] = True
    return aside


def _nearer(counts: Counter[int], short: Sequence[int], sizes: Sequence[int]) -> bool:
    changes = (
        (abs(short[number] - count) - abs(short[number])) / sizes[number]
        for number, count in sorted(counts.items())
    )
    return sum(changes) < 0


def _leaves_some(counts: Counter[int], kept: Sequence[int]) -> bool:
    return all(kept[number] > count for number, count in counts.items())


def _first_spare(photos: _Photos, members: Sequence[IntArray], sizes: Sequence[int]) -> IntArray:
    """The first group that no class needs: in a very small collection none may have been wanted."""
    for each in members:
        if _leaves_some(Counter(photos.class_of[each].tolist()), sizes):
            return each
    raise DataError(
        f"none of {_count(len(photos.keys), 'photo')} can be set aside:"
        " every group holds a whole class",
        hint="add photos, or set none aside",
    )


# --- fold numbers to folds, and what is refused ----------------------------------------------


def _from_numbers(numbers: IntArray) -> tuple[Fold, ...]:
    """Folds from the fold number of every row; all numbers from 0 on occur."""
    count = int(numbers.max()) + 1
    return tuple(
        Fold(index, np.flatnonzero(numbers != index), np.flatnonzero(numbers == index))
        for index in range(count)
    )


def _all_numbers(numbers: Sequence[int | None]) -> IntArray:
    missing = [row for row, number in enumerate(numbers, start=1) if number is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {_count(len(numbers), 'row')} have no fold number:"
            f" {_listed([f'row {row}' for row in missing])}",
            hint="give every row a number, or leave the fold column out",
        )
    return np.array(numbers, dtype=np.int64)


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
    """Refuse classes that lie whole in one fold, as the training part of that fold lacks them."""
    homes: dict[str, set[int]] = {}
    for label, fold in zip(labels, fold_of.tolist(), strict=True):
        homes.setdefault(label, set()).add(fold)
    whole = sorted((label, min(home)) for label, home in homes.items() if len(home) == 1)
    if whole:
        listed = _listed([f"class `{label}` in {folds[home]}" for label, home in whole])
        raise DataError(
            f"a class must not lie whole in one fold, which then trains without it: {listed}",
            hint="add photos of it, or move some to another fold",
        )


def _refuse_classes_in_one_group(photos: _Photos) -> None:
    whole = np.flatnonzero(_groups_per_class(photos) == 1)
    if not len(whole):
        return
    shown = [_whole_class(photos, number) for number in whole.tolist()]
    raise DataError(
        "a class of one photo or one group would be missing where a fold trains without it:"
        f" {_listed(shown)}",
        hint="add photos from other groups, merge the class with another, or leave it out",
    )


def _whole_class(photos: _Photos, number: int) -> str:
    places = np.flatnonzero(photos.class_of == number)
    group = photos.groups[photos.group_of[places[0]]]
    size = "1 photo" if len(places) == 1 else f"{len(places)} photos, group `{group}`"
    return f"`{photos.classes[number]}` ({size})"


def _refuse_no_way_out(group: str, classes: Sequence[str]) -> None:
    listed = _listed([f"`{name}`" for name in classes])
    raise DataError(
        f"group `{group}` fits in no fold: in each, a class would lie whole and could not be"
        f" trained: {listed}",
        hint="add photos of these classes, split the group, or change the number of folds",
    )


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
