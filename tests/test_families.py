from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from photos import put, save

from fieldguide.errors import DataError, UsageError
from fieldguide.photos import check, sources
from fieldguide.photos.families import families
from fieldguide.photos.folders import scan
from fieldguide.photos.inspect import inspect
from fieldguide.photos.tables import read_table


@pytest.mark.parametrize(
    "copy",
    [
        *("X_90deg", "X_270deg", "X_rot15", "X-rot-15", "X_rotated", "X_aug3", "X_aug_3", "X_flip"),
        *(
            "X_hflip",
            "X_crop",
            "X_crop2",
            "X (1)",
            "X(2)",
            "X-copy",
            "X copy",
            "X copy 2",
            "X_gray",
        ),
        *("X_flip_rot15", "X_crop (1)", "X.rf.0a1b2c3d4e5f", "X_FLIP", "X_copy_90deg", "X_-15deg"),
        *("X_horizontal_flip", "X_flip_lr", "X_rotated_by_90", "X(0)"),
    ],
)
def test_an_ending_of_augmentation_makes_a_family(copy: str) -> None:
    assert families(["oak/X.jpg", f"oak/{copy}.png", "oak/Y.jpg"]) == [(0, 1)]


def test_a_number_behind_a_number_is_a_copy() -> None:
    assert families(["IMG_0001.jpg", "IMG_0001_1.jpg", "IMG_0002.jpg"]) == [(0, 1)]


@pytest.mark.parametrize(
    "names",
    [
        ["IMG_0001", "IMG_0002", "IMG_0003"],
        ["IMG", "IMG_1", "IMG_2"],
        ["rose", "rose_1", "rose_2"],
        ["cam0", "cam0_001", "cam0_002"],
        ["cam0_001", "cam0_002", "cam0_010"],
        ["rose (1)", "rose (2)", "rose (3)"],
        ["site_aug1", "site_aug2"],
        ["hawk_dark", "hawk_gray"],
        ["Xcrop", "X"],
        ["2021-05-01", "2021-05-02", "2021-05"],
        ["(1)", "(2)", ""],
    ],
)
def test_numbers_and_words_without_an_original_make_none(names: list[str]) -> None:
    assert families([f"oak/{name}.jpg" for name in names]) == []


def test_folders_are_kept_apart_but_for_splits() -> None:
    assert families(["oak/1.jpg", "elm/1_flip.jpg"]) == []
    split = ["train/oak/1.jpg", "val/oak/1.jpg", "val/oak/1_flip.jpg", "test/oak/1_crop.jpg"]
    assert families(split) == [(0, 3), (1, 2)]


def test_versions_of_roboflow_in_two_splits_are_a_family() -> None:
    names = [
        f"{split}/a/x_jpg.rf.{n}123456789abcdef.jpg" for n, split in enumerate(("train", "valid"))
    ]
    assert families(names) == [(0, 1)]


def test_versions_of_roboflow_need_no_original() -> None:
    names = ["a_jpg.rf.0123abcd9f.jpg", "b_jpg.rf.ffff11112.jpg", "a_jpg.rf.ffff11113.jpg"]
    assert families(names) == [(0, 2)]


def folder_of_copies(root: Path) -> Path:
    return put(
        root, *(f"{c}/{n}{e}.jpg" for c in ("a", "b") for n in (1, 2) for e in ("", "_rot9"))
    )


def test_groups_of_a_folder_by_stem(tmp_path: Path) -> None:
    put(folder_of_copies(tmp_path), "a/7.jpg")
    found = scan(tmp_path, group="stem")
    groups = dict(zip(found.table.column("path"), found.table.column("group"), strict=True))
    assert groups["a/1.jpg"] == groups["a/1_rot9.jpg"] == "a/1.jpg"
    assert groups["b/1.jpg"] == "b/1.jpg"
    assert groups["a/7.jpg"] is None
    assert "groups: families of file names, 1 photo alone (4)" in found.told
    assert sources.read(tmp_path, group="stem").told == found.told


def test_groups_by_a_regular_expression(tmp_path: Path) -> None:
    put(tmp_path, "a/s1_01.jpg", "a/s1_02.jpg", "b/s2_01.jpg", "b/loose.jpg")
    found = scan(tmp_path, group="stem:^(s\\d)_")
    assert list(found.table.column("group")) == ["s1", "s1", None, "s2"]
    assert "groups: file names by ^(s\\d)_, 1 photo alone (2)" in found.told
    assert list(scan(tmp_path, group="stem:s\\d").table.column("group")) == ["s1", "s1", None, "s2"]


@pytest.mark.parametrize(
    ("group", "said"),
    [("stem:(", "not a regular"), ("stem:zz", "no file name matches"), ("site", "`site`")],
)
def test_bad_choices_are_refused(group: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as error:
        scan(folder_of_copies(tmp_path), group=group)
    assert error.value.hint


def test_a_table_takes_its_column_first(tmp_path: Path) -> None:
    folder_of_copies(tmp_path)
    rows = [f"a/1.jpg,a,p,{'{}'}", "a/1_rot9.jpg,a,q,{}", "b/1.jpg,b,r,{}"]
    (tmp_path / "t.csv").write_text(
        "\n".join(["path,label,group,stem", *(r.format("s") for r in rows)])
    )
    (tmp_path / "u.csv").write_text(
        "\n".join(["path,label,group,x", *(r.format("s") for r in rows)])
    )
    by_column = read_table(tmp_path / "t.csv", group="stem")
    assert list(by_column.table.column("group")) == ["s", "s", "s"]
    assert "groups: column stem (1)" in by_column.told
    by_name = read_table(tmp_path / "u.csv", group="stem")
    assert list(by_name.table.column("group")) == ["a/1.jpg", "a/1.jpg", None]
    assert "families of file names" in by_name.told and "group (3 values)" in by_name.told
    by_pattern = sources.read(tmp_path / "t.csv", group="stem:^\\d")
    assert list(by_pattern.table.column("group")) == ["1", "1", "1"]
    with pytest.raises(DataError, match="no column `site`"):
        read_table(tmp_path / "t.csv", group="site")


def test_families_that_folds_may_divide_are_found(tmp_path: Path) -> None:
    for number, name in enumerate(("1", "1_rot15", "2", "3")):
        save(tmp_path / "a" / f"{name}.jpg", number)
        save(tmp_path / "b" / f"{name}.jpg", 10 + number)
    photos = scan(tmp_path)
    (found,) = [f for f in check.findings(photos, inspect(photos), folds=2) if f.kind == "families"]
    assert "2 families of 4 photos by their names" in found.message
    assert "`a/1.jpg`, `a/1_rot15.jpg`" in found.message
    assert "--group stem" in found.hint
    grouped = scan(tmp_path, group="stem")
    kinds = {f.kind for f in check.findings(grouped, inspect(grouped), folds=2)}
    assert "families" not in kinds


def test_the_command_tells_what_was_taken(command: Callable[..., Any], tmp_path: Path) -> None:
    for number, name in enumerate(("1", "1_rot15", "2", "3")):
        save(tmp_path / "a" / f"{name}.jpg", number)
        save(tmp_path / "b" / f"{name}.jpg", 10 + number)
    said = command("check", tmp_path, "--folds", "2", "--group", "stem")
    assert "groups: families of file names, 4 photos alone (2)" in said.err
    assert "copies looked for: equal" in said.out
    assert "2 families of 4 photos" in command("check", tmp_path, "--folds", "2").out
    refused = command("check", tmp_path, "--group", "stem:(")
    assert refused.code == 2 and "not a regular expression" in refused.err
