from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fieldguide.errors import DataError, UsageError
from fieldguide.photos.folds import Fold, given_folds, inner_split, make_folds


@dataclass(frozen=True)
class Collection:
    labels: list[str]
    keys: list[str]
    groups: list[str]
    folds: int = 5
    seed: int = 0

    def split(self) -> tuple[Fold, ...]:
        return make_folds(self.labels, self.keys, self.groups, folds=self.folds, seed=self.seed)

    def reordered(self, order: list[int]) -> "Collection":
        columns = (
            [column[row] for row in order] for column in (self.labels, self.keys, self.groups)
        )
        return Collection(*columns, folds=self.folds, seed=self.seed)


def collection(group_sizes: dict[str, list[int]], **settings: int) -> Collection:
    """One class an entry, with groups of the given sizes; keys are numbered within the class."""
    rows = [
        (label, f"{label}/{number}-{member}", f"{label}/{number}")
        for label, sizes in group_sizes.items()
        for number, size in enumerate(sizes)
        for member in range(size)
    ]
    labels, keys, groups = (list(column) for column in zip(*rows, strict=True))
    return Collection(labels, keys, groups, **settings)


def singles(sizes: dict[str, int], **settings: int) -> Collection:
    return collection({label: [1] * size for label, size in sizes.items()}, **settings)


def homes(photos: Collection, folds: tuple[Fold, ...]) -> dict[str, int]:
    """The fold of each photo, by key."""
    return {photos.keys[row]: fold.index for fold in folds for row in fold.test}


def class_counts(photos: Collection, folds: tuple[Fold, ...]) -> np.ndarray:
    """Photos of each class (row) in the test part of each fold (column)."""
    classes = sorted(set(photos.labels))  # numpy's text would drop NULs at the end
    tested = [[photos.labels[row] for row in fold.test] for fold in folds]
    return np.array([[labels.count(label) for labels in tested] for label in classes])


@st.composite
def grouped_collections(draw: st.DrawFn, largest_group: int = 4) -> Collection:
    """Classes of two groups and more, and at least as many groups as folds."""
    names = draw(st.lists(st.text(max_size=3), min_size=1, max_size=5, unique=True))
    sizes = st.lists(st.integers(1, largest_group), min_size=2, max_size=9)
    classes = {name: draw(sizes) for name in names}
    most = sum(len(groups) for groups in classes.values())
    folds = draw(st.integers(2, min(7, most)))
    return collection(classes, folds=folds, seed=draw(st.integers(-(2**70), 2**70)))


@st.composite
def mixed_groups(draw: st.DrawFn) -> Collection:
    """Photos with classes and groups drawn apart: groups hold several classes."""
    count = draw(st.integers(4, 40))
    labels = draw(st.lists(st.sampled_from("abcd"), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(0, 12).map(str), min_size=count, max_size=count))
    keys = [str(number) for number in range(count)]
    return Collection(labels, keys, groups, folds=draw(st.integers(2, 4)))


def assert_sound(photos: Collection, folds: tuple[Fold, ...]) -> None:
    rows = np.arange(len(photos.labels))
    assert [fold.index for fold in folds] == list(range(photos.folds))
    assert np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), rows)
    for fold in folds:
        assert len(fold.test)
        assert np.array_equal(fold.test, np.sort(fold.test))
        assert np.array_equal(fold.train, np.setdiff1d(rows, fold.test))
        names = [{column[row] for row in fold.train} for column in (photos.labels, photos.groups)]
        assert names[0] == set(photos.labels)
        assert names[1].isdisjoint(photos.groups[row] for row in fold.test)


@given(grouped_collections())
def test_tests_partition_the_rows_keep_groups_whole_and_leave_every_class_to_train(
    photos: Collection,
) -> None:
    assert_sound(photos, photos.split())


@given(mixed_groups())
def test_groups_of_several_classes_split_soundly_or_are_refused(photos: Collection) -> None:
    try:
        folds = photos.split()
    except DataError as error:
        assert "class" in error.message or "cannot make" in error.message
    else:
        assert_sound(photos, folds)


@given(grouped_collections(largest_group=1))
def test_single_photos_of_a_class_spread_evenly(photos: Collection) -> None:
    counts = class_counts(photos, photos.split())
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()


@given(grouped_collections(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(photos: Collection, random: object) -> None:
    order = list(range(len(photos.labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    other = photos.reordered(order)
    assert homes(other, other.split()) == homes(photos, photos.split())


@given(grouped_collections(largest_group=1))
def test_the_name_of_the_group_of_a_single_photo_does_not_matter(photos: Collection) -> None:
    renamed = replace(photos, groups=[f"group of {key}" for key in photos.keys])
    assert homes(renamed, renamed.split()) == homes(photos, photos.split())


@given(grouped_collections(largest_group=1), st.data())
def test_one_photo_more_moves_few_of_its_class_and_none_of_the_others(
    photos: Collection, data: st.DataObject
) -> None:
    label = data.draw(st.sampled_from(photos.labels))
    folds = photos.split()
    assume(min(len(fold.test) for fold in folds) > 1)  # or an empty one may have been filled
    more = replace(
        photos,
        labels=[*photos.labels, label],
        keys=[*photos.keys, "new"],
        groups=[*photos.groups, "new"],
    )
    before, after = homes(photos, folds), homes(more, more.split())
    moved = [key for key in before if before[key] != after[key]]
    assert all(key.startswith(f"{label}/") for key in moved)
    assert len(moved) <= 2 * (photos.folds - 1)


def test_one_photo_more_moves_about_two_of_a_hundred() -> None:
    photos = singles({"oak": 100, "elm": 40})
    before = homes(photos, photos.split())
    moves = []
    for number in range(50):
        more = Collection(
            ["oak", *photos.labels], [f"new {number}", *photos.keys], ["new", *photos.groups]
        )
        after = homes(more, more.split())
        moves.append(sum(before[key] != after[key] for key in before))
    assert np.mean(moves) < 4
    assert max(moves) <= 8


def test_a_group_more_moves_no_photo_of_another_class() -> None:
    photos = collection({"oak": [3, 2, 2, 1, 1, 1, 1], "elm": [2, 2, 2, 2, 1, 1, 1, 1]}, folds=3)
    more = collection({"oak": [3, 2, 2, 1, 1, 1, 1], "elm": [2, 2, 2, 2, 1, 1, 1, 1, 6]}, folds=3)
    before, after = homes(photos, photos.split()), homes(more, more.split())
    assert all(before[key] == after[key] for key in before if key.startswith("oak"))


def test_every_integer_is_a_seed_and_decides() -> None:
    splits = [
        homes(photos, photos.split())
        for photos in (singles({"oak": 30, "elm": 30}, seed=seed) for seed in (0, 1, -1, 2**64))
    ]
    assert all(splits[a] != splits[b] for a in range(4) for b in range(a))
    again = singles({"oak": 30, "elm": 30}, seed=0)
    assert homes(again, again.split()) == splits[0]


def test_seed_zero_gives_these_folds_in_every_release() -> None:
    """A run that is resumed with a newer version must find its own folds again."""
    photos = collection({"oak": [1] * 6, "elm": [2, 1, 1, 1]}, folds=3)
    assert [fold.test.tolist() for fold in photos.split()] == [
        [1, 2, 10],
        [0, 3, 6, 7],
        [4, 5, 8, 9],
    ]


@given(grouped_collections())
def test_single_photos_go_where_their_class_has_fewest(photos: Collection) -> None:
    folds = photos.split()
    for label, counts in zip(sorted(set(photos.labels)), class_counts(photos, folds), strict=True):
        took_single = [
            any(photos.labels[r] == label and photos.groups.count(photos.groups[r]) == 1 for r in f)
            for f in (fold.test for fold in folds)
        ]
        assert counts[took_single].max(initial=0) <= counts.min() + 1


def test_the_share_of_a_rare_class_counts_as_much_as_that_of_a_common_one() -> None:
    groups = ["many oaks"] * 40 + ["many lynxes"] * 9 + ["both"] * 8
    labels = ["oak"] * 40 + ["lynx"] * 9 + ["oak"] * 6 + ["lynx"] * 2
    alone = ["lynx"] * 2 + ["oak"] * 60
    names = [f"alone {number}" for number in range(len(alone))]
    keys = [str(number) for number in range(57)] + names
    parted = 0
    for seed in range(8):
        photos = Collection(labels + alone, keys, groups + names, folds=2, seed=seed)
        home = homes(photos, photos.split())
        if home["0"] != home["40"]:
            parted += 1
            assert home["56"] == home["0"]  # with 40 % of the oaks, away from 80 % of the lynxes
    assert parted


# --- against scikit-learn --------------------------------------------------------------------


def unevenness(counts: np.ndarray) -> float:
    """The mean over classes of the deviation (standard) of their shares in the folds."""
    return float((counts / counts.sum(axis=1, keepdims=True)).std(axis=1).mean())


@pytest.mark.parametrize("classes_per_group", [1, 3])
def test_about_as_even_as_stratified_group_k_fold(classes_per_group: int) -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    random = np.random.default_rng(1)
    groups = random.integers(0, 150, 1000)
    labels = [
        f"class {group % 10 + 10 * (member % classes_per_group)}"
        for group, member in zip(groups, random.integers(0, 9, 1000), strict=True)
    ]
    photos = Collection(labels, [str(n) for n in range(1000)], [f"g{g}" for g in groups])
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    theirs = [test for _, test in splitter.split(photos.keys, photos.labels, photos.groups)]
    reference = tuple(Fold(index, test, test) for index, test in enumerate(theirs))
    ours = unevenness(class_counts(photos, photos.split()))
    assert ours <= 1.1 * unevenness(class_counts(photos, reference))


def test_no_fold_tests_nothing_even_if_there_are_as_many_as_photos() -> None:
    for seed in range(20):
        photos = singles({"a": 2, "b": 2, "c": 2, "d": 2}, folds=8, seed=seed)
        assert [len(fold.test) for fold in photos.split()] == [1] * 8


def test_names_that_are_no_utf8_or_hold_separators_are_names() -> None:
    keys = ["\udcff", "\udcfe", "a\0b", "a", "ü", "名前 😀"]
    photos = Collection(["x\0", "x"] * 3, keys, keys, folds=2)
    assert_sound(photos, photos.split())


def test_a_group_spread_over_classes_finds_the_way_out() -> None:
    # The second group must not follow the first, nor the third both of its neighbours.
    labels = ["a", "b", "b", "c", "c", "d"]
    photos = Collection([*labels, "a", "d"], list("12345678"), list("ppqqrrss"), folds=2)
    assert_sound(photos, photos.split())


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_fewer_than_two_folds(folds: int) -> None:
    with pytest.raises(UsageError, match=f"folds must be at least 2: {folds}"):
        singles({"oak": 9}, folds=folds).split()


def test_more_folds_than_groups() -> None:
    with pytest.raises(DataError, match="6 photos in 3 groups cannot make 4 folds") as caught:
        collection({"oak": [2, 2, 2]}, folds=4).split()
    assert caught.value.hint == "lower folds or add photos"
    with pytest.raises(DataError, match="0 photos in 0 groups"):
        make_folds([], [], [], folds=2, seed=0)


def test_a_class_whole_in_one_group() -> None:
    with pytest.raises(DataError) as caught:
        collection({"oak": [1] * 9, "lynx": [3], "ant": [1]}).split()
    assert caught.value.message == (
        "a class of one photo or one group would be missing where a fold trains without it:"
        " `ant` (1 photo), `lynx` (3 photos, group `lynx/0`)"
    )
    assert "add photos" in caught.value.hint


def test_many_such_classes_are_counted() -> None:
    with pytest.raises(DataError, match=r"`c4` .1 photo. and 3 more"):
        singles({"oak": 9, **{f"c{number}": 1 for number in range(8)}}).split()


def test_groups_of_several_classes_with_no_way_out() -> None:
    # Three groups, every two of them all there is of a class: two folds cannot part them all.
    photos = Collection(list("abacbc"), list("123456"), list("ppqqrr"), folds=2)
    with pytest.raises(DataError, match=r"group `.` fits in no fold: .*: `[abc]`, `[abc]`"):
        photos.split()
    assert_sound(replace(photos, folds=3), replace(photos, folds=3).split())


def test_copies_of_a_photo_in_two_groups() -> None:
    with pytest.raises(
        DataError, match="two groups hold a photo of one key: `k` is in `g` and `h`"
    ):
        make_folds(list("aabb"), ["k", "1", "2", "k"], ["h", "1", "2", "g"], folds=2, seed=0)
    copies = Collection(list("aabb"), ["k", "k", "2", "3"], ["g", "g", "2", "3"], folds=2)
    with pytest.raises(DataError, match=r"`a` \(2 photos, group `g`\)"):
        copies.split()


def test_a_hundred_thousand_photos() -> None:
    size = 100_000
    labels = [f"class {number % 1000}" for number in range(size)]
    keys = [str(number) for number in range(size)]
    folds = make_folds(labels, keys, keys, folds=10, seed=0)
    assert [len(fold.test) for fold in folds] == [size // 10] * 10


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30))
def test_given_folds_are_obeyed(numbers: list[int]) -> None:
    values = sorted(set(numbers))
    if len(values) == 1:
        return
    folds = given_folds(numbers, [str(row) for row in range(len(numbers))])
    assert [fold.index for fold in folds] == list(range(len(values)))
    for fold, value in zip(folds, values, strict=True):
        assert fold.test.tolist() == [row for row, each in enumerate(numbers) if each == value]
        assert fold.train.tolist() == [row for row, each in enumerate(numbers) if each != value]


@pytest.mark.parametrize(
    ("numbers", "groups", "labels", "message"),
    [
        ([1, None, 2, None], "abcd", None, "2 of 4 rows have no fold number: row 2, row 4"),
        ([1, 2, 1], "xyy", None, "group `y` lies in several folds: row 2 in `2`, row 3 in `1`"),
        ([7, 7], "ab", None, "the fold column holds fewer than two numbers: `7`"),
        ([], "", None, "the fold column holds fewer than two numbers: none"),
        ([1, 1, 2, 1], "abcd", "xyxy", "trains without it: class `y` in fold `1`"),
    ],
)
def test_given_folds_that_cannot_be(
    numbers: list[int | None], groups: str, labels: str | None, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        given_folds(numbers, list(groups), labels=None if labels is None else list(labels))
    assert message in caught.value.message


@given(grouped_collections(), st.floats(0.01, 0.99))
def test_an_inner_split_parts_the_rows_and_keeps_groups_and_classes(
    photos: Collection, share: float
) -> None:
    for fold in photos.split():
        inside = {photos.groups[row] for row in fold.train}
        trained = {photos.labels[row] for row in fold.train}
        if len(inside) == len(trained):  # one group a class: none can be spared
            continue
        train, aside = inner_split(
            photos.labels, photos.keys, photos.groups, fold.train, share=share, seed=photos.seed
        )
        assert len(aside)
        assert np.array_equal(np.sort(np.concatenate([train, aside])), fold.train)
        assert {photos.labels[row] for row in train} == trained
        assert {photos.groups[row] for row in train}.isdisjoint(photos.groups[row] for row in aside)


@settings(max_examples=30)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=5),
    st.floats(0.05, 0.95),
    st.integers(0, 2**32),
)
def test_of_single_photos_the_share_is_set_aside(sizes: list[int], share: float, seed: int) -> None:
    photos = singles({str(number): size for number, size in enumerate(sizes)})
    _, aside = inner_split(
        photos.labels, photos.keys, photos.groups, np.arange(sum(sizes)), share=share, seed=seed
    )
    for number, size in enumerate(sizes):
        count = sum(photos.labels[row] == str(number) for row in aside)
        assert count in {int(share * size), min(int(share * size) + 1, size - 1)} or sum(sizes) < 9


def test_small_classes_give_their_share_together() -> None:
    photos = singles({f"class {number}": 4 for number in range(500)})
    _, aside = inner_split(
        photos.labels, photos.keys, photos.groups, np.arange(2000), share=0.1, seed=0
    )
    assert 160 < len(aside) < 240  # 200 expected; 500 draws of 0.4 deviate by 11


def test_an_inner_split_takes_groups_as_often_as_single_photos() -> None:
    photos = collection({"oak": [2] * 100 + [1] * 200})
    _, aside = inner_split(
        photos.labels, photos.keys, photos.groups, np.arange(400), share=0.5, seed=0
    )
    assert abs(len(aside) - 200) <= 1
    assert 70 < sum(row < 200 for row in aside) < 130  # half of it in pairs


def test_an_inner_split_depends_on_names_and_seed_alone() -> None:
    photos = collection({"oak": [3, 2, *[1] * 30], "elm": [1] * 25})
    rows = np.arange(len(photos.labels))
    other = photos.reordered(rows[::-1].tolist())

    def aside(photos: Collection, rows: np.ndarray, seed: int) -> set[str]:
        columns = photos.labels, photos.keys, photos.groups
        return {photos.keys[row] for row in inner_split(*columns, rows, share=0.3, seed=seed)[1]}

    assert aside(photos, rows, 0) == aside(other, rows, 0) == aside(photos, rows[::-1], 0)
    assert aside(photos, rows, 0) != aside(photos, rows, 1)


def test_inner_splits_that_cannot_be() -> None:
    columns = list("ab"), list("12"), list("12")
    for share in (0.0, 1.0, float("nan"), -0.1):
        with pytest.raises(UsageError, match=f"must lie between 0 and 1: {share}"):
            inner_split(*columns, np.arange(2), share=share, seed=0)
    with pytest.raises(DataError, match="none of 2 photos can be set aside"):
        inner_split(*columns, np.arange(2), share=0.5, seed=0)
    with pytest.raises(DataError, match="none of 0 photos can be set aside"):
        inner_split(*columns, np.arange(0), share=0.5, seed=0)


@given(grouped_collections(), st.data())
def test_photos_with_a_fold_keep_it_and_the_others_fill_up(
    photos: Collection, data: st.DataObject
) -> None:
    before = photos.split()
    home = {row: fold.index for fold in before for row in fold.test.tolist()}
    names = sorted(set(photos.groups))
    stay = data.draw(st.sets(st.sampled_from(names)))
    fixed = [home[row] if group in stay else None for row, group in enumerate(photos.groups)]
    columns = (photos.labels, photos.keys, photos.groups)
    try:
        found = make_folds(*columns, folds=photos.folds, seed=photos.seed + 1, fixed=fixed)
    except DataError as error:  # what stays may leave no way out, or a fold empty
        assert "class" in error.message or "nothing is left" in error.message
        return
    assert_sound(photos, found)
    now = {row: fold.index for fold in found for row in fold.test.tolist()}
    assert all(fold in (None, now[row]) for row, fold in enumerate(fixed))
    none = make_folds(*columns, folds=photos.folds, seed=photos.seed, fixed=[None] * len(home))
    assert homes(photos, none) == homes(photos, before)


def test_new_single_photos_go_where_their_class_has_fewest() -> None:
    photos = singles({"a": 9, "b": 6}, folds=3)
    fixed = [0, 0, 0, 1, 1, 2, None, None, None, *[0, 1, 2], *[None] * 3]
    columns = (photos.labels, photos.keys, photos.groups)
    found = make_folds(*columns, folds=3, seed=0, fixed=fixed)
    assert class_counts(photos, found).tolist() == [[3, 3, 3], [2, 2, 2]]


def test_fixed_folds_that_cannot_be() -> None:
    photos = singles({"a": 4, "b": 4}, folds=2)
    columns = (photos.labels, photos.keys, photos.groups)
    with pytest.raises(DataError, match="nothing is left for fold 1 to test"):
        make_folds(*columns, folds=2, seed=0, fixed=[0] * 8)
    with pytest.raises(DataError, match="class `a` in fold 0"):
        make_folds(*columns, folds=2, seed=0, fixed=[0] * 4 + [0, 0, 1, 1])


def test_arguments_are_left_unchanged() -> None:
    photos = singles({"oak": 6, "elm": 6})
    rows = np.arange(12)[::-1].copy()
    inner_split(photos.labels, photos.keys, photos.groups, rows, share=0.5, seed=0)
    photos.split()
    assert photos == singles({"oak": 6, "elm": 6})
    assert rows.tolist() == list(range(12))[::-1]


@settings(max_examples=30)
@given(st.integers(10, 60), st.floats(0.1, 0.9), st.integers(0, 2**32))
def test_one_photo_more_changes_an_inner_split_by_one(size: int, share: float, seed: int) -> None:
    before, after = (
        {
            photos.keys[row]
            for row in inner_split(
                photos.labels,
                photos.keys,
                photos.groups,
                np.arange(len(photos.keys)),
                share=share,
                seed=seed,
            )[1]
        }
        for photos in (singles({"oak": size, "elm": 20}), singles({"oak": size + 1, "elm": 20}))
    )
    changed = (before ^ after) - {f"oak/{size}-0"}
    assert len(changed) <= 1
    assert all(key.startswith("oak") for key in changed)
