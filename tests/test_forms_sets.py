"""Published sets, written by hand after their descriptions, and read by torchvision as well."""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from fieldguide.errors import DataError, UsageError
from fieldguide.photos.forms import sets
from fieldguide.photos.forms.form import Form
from fieldguide.photos.forms.known import KNOWN, find
from fieldguide.photos.tables import read_table
from tests.photos import put


def write(root: Path, **lists: str) -> Path:
    """Lists by name, where `__` is a folder's end; `|` ends a line."""
    for name, text in lists.items():
        path = root / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("|", "\n"), encoding="utf-8", newline="")
    return root


def mat(path: Path, **arrays: object) -> None:
    scipy = pytest.importorskip("scipy.io")
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.savemat(path, arrays)


def column(form: Form | None, *names: str) -> list[tuple[str, ...]]:
    assert form is not None
    wanted = [form.header.index(name) for name in names]
    return [tuple(row[column] for column in wanted) for row in form.rows]


def in_torchvision(set_of: Callable[[str], datasets.VisionDataset]) -> Iterator[tuple[str, str]]:
    """The path and label of each photo by torchvision's own reader, over all splits."""
    for split in ("train", "val", "test"):
        found = set_of(split)
        labels = {number: name for name, number in found.class_to_idx.items()}
        for path, number in zip(found._image_files, found._labels, strict=True):
            yield Path(path).as_posix(), labels[number]


# CUB-200-2011: README of CUB_200_2011.tgz.
def cub(root: Path, **changed: str) -> Path:
    lists = {
        "images": "1 001.Albatross/A_1.jpg|2 002.Auk/B_2.jpg|3 001.Albatross/A_3.jpg|",
        "image_class_labels": "1 1|2 2|3 1|",
        "classes": "1 001.Albatross|2 002.Auk|3 003.Bunting|",
        "train_test_split": "1 1|2 1|3 0|",
    }
    return write(root, **(lists | changed))


def test_cub(tmp_path: Path) -> None:
    form = sets.read_cub(cub(tmp_path))
    assert form is not None
    assert form.base == tmp_path / "images"
    assert form.header == ("path", "label", "split")
    assert form.rows == (
        ("001.Albatross/A_1.jpg", "001.Albatross", "train"),
        ("002.Auk/B_2.jpg", "002.Auk", "train"),
        ("001.Albatross/A_3.jpg", "001.Albatross", "test"),
    )
    assert form.told == "form: CUB-200-2011 (3 rows); labels: classes.txt"


def test_cub_with_marks_and_other_line_ends(tmp_path: Path) -> None:
    photos = "\ufeff1 a b.jpg\r||2\tc.jpg  \r|"
    form = sets.read_cub(
        cub(tmp_path, images=photos, image_class_labels="2 1|1 2|9 1|", train_test_split="1 0|2 1")
    )
    assert column(form, "path", "label") == [("a b.jpg", "002.Auk"), ("c.jpg", "001.Albatross")]
    assert form is not None
    assert form.left_out == {"labels of no photo": 1}


def test_cub_without_a_split(tmp_path: Path) -> None:
    (cub(tmp_path) / "train_test_split.txt").unlink()
    form = sets.read_cub(tmp_path)
    assert form is not None
    assert form.header == ("path", "label")
    assert "no train_test_split.txt" in form.told


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"image_class_labels": "1 1|3 1|"}, "images.txt, row 2: photo `2` is not in image_class"),
        ({"image_class_labels": "1 1|2 9|3 1"}, "labels.txt, row 2: class `9` is not in classes"),
        ({"image_class_labels": "1 1|2|3 1"}, "labels.txt, row 2: expected two words or more"),
        ({"images": "1 a.jpg|1 b.jpg"}, "images.txt, row 2: `1` stands there twice"),
        ({"train_test_split": "1 1|2 2|3 0"}, "split.txt, row 2: expected 0 or 1, found `2`"),
        ({"train_test_split": "1 1|3 0"}, "images.txt, row 2: photo `2` is not in train_test"),
    ],
)
def test_a_broken_cub_is_refused(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        sets.read_cub(cub(tmp_path, **changed))


def test_nabirds(tmp_path: Path) -> None:
    # README of nabirds.tar.gz: ids are UUIDs, names hold blanks, inner classes have no photos
    one, two, three = (f"0000{n}39e-21dc-4d0c-bfe1-4cae3c85c829" for n in range(3))
    write(
        tmp_path,
        images=f"{one} 0817/a.jpg|{two} 0860/b.jpg|{three} 0861/c.jpg",
        image_class_labels=f"{one} 817|{two} 860|{three} 861",
        classes="0 Birds|86 Finches|817 House Finch (Adult Male)|860 Teal|861 Teal|900 Teal",
        hierarchy="86 0|817 86|860 0|861 0|900 0",
        train_test_split=f"{one} 1|{two} 0|{three} 1",
        photographers=f"{one} A. Person|{three} B",
    )
    form = sets.read_cub(tmp_path)
    assert column(form, "label", "parent", "photographer", "split") == [
        ("House Finch (Adult Male)", "Finches", "A. Person", "train"),
        ("Teal (860)", "Birds", "", "test"),
        ("Teal (861)", "Birds", "B", "train"),
    ]
    assert form is not None
    assert form.name == "NABirds"
    assert "names of several classes get their ids: `Teal`" in form.told


# FGVC-Aircraft: README of fgvc-aircraft-2013b.
VARIANTS = {
    "train": "0001 707-320|0002 F/A-18|",
    "val": "0003 Cessna 208|",
    "test": "0004 707-320|",
}
FAMILIES = {
    "train": "0001 Boeing 707|0002 F/A-18|",
    "val": "0003 Cessna Citation|",
    "test": "0004 Boeing 707|",
}


def aircraft(root: Path, **changed: str) -> Path:
    lists = {f"images_variant_{split}": text for split, text in VARIANTS.items()}
    lists |= {f"images_family_{split}": text for split, text in FAMILIES.items()}
    lists |= {"images_variant_trainval": VARIANTS["train"] + VARIANTS["val"]}
    lists |= {"variants": "707-320|Cessna 208|F/A-18", "manufacturers": ""}
    lists |= {"families": "Boeing 707|Cessna Citation|F/A-18"}
    return write(root / "data", **(lists | changed))


def test_aircraft_as_torchvision_reads_it(tmp_path: Path) -> None:
    base = aircraft(tmp_path / "fgvc-aircraft-2013b")
    (base / "images").mkdir()
    for place in (base, base.parent):
        form = sets.read_aircraft(place)
        assert form is not None
        assert form.base == base / "images"
        assert form.rows[1] == ("0002.jpg", "F/A-18", "train", "F/A-18", "F/A-18")
        assert form.header == ("path", "label", "split", "variant", "family")
        assert [row[2] for row in form.rows] == ["train", "train", "val", "test"]
        assert "--label-column family or manufacturer" in form.told
        for level in ("variant", "family"):
            found = in_torchvision(
                lambda split, level=level: datasets.FGVCAircraft(tmp_path, split, level)
            )
            pairs = [((form.base / path).as_posix(), x) for path, x in column(form, "path", level)]
            assert pairs == list(found)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"images_variant_test": "0001 707-320"}, "variant_test.txt, row 1: photo `0001` is in an"),
        ({"images_family_test": "0001 Boeing"}, "family_test.txt, row 1: photo `0001` is in an"),
        ({"images_variant_val": "0003"}, "variant_val.txt, row 1: expected two words or more"),
    ],
)
def test_a_broken_aircraft_is_refused(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        sets.read_aircraft(aircraft(tmp_path, **changed))


# Oxford-IIIT Pet: annotations/README.
def pets(root: Path, **changed: str) -> Path:
    put(root, "images/Abyssinian_100.jpg", "annotations/trimaps/Abyssinian_100.png")
    lists = {
        "trainval": "Abyssinian_100 1 1 1|american_bulldog_7 2 2 1|",
        "test": "Abyssinian_9 1 1 1|american_bulldog_1 2 2 1|",
        "list": "#Image CLASS-ID SPECIES BREED ID|#1:37 Class ids|Abyssinian_9 1 1 1|",
    }
    return write(root, **{f"annotations__{name}": t for name, t in (lists | changed).items()})


def test_pets_as_torchvision_reads_them(tmp_path: Path) -> None:
    form = sets.read_pets(pets(tmp_path / "oxford-iiit-pet"))
    assert form is not None
    assert form.base == tmp_path / "oxford-iiit-pet" / "images"
    assert form.rows[1] == ("american_bulldog_7.jpg", "american_bulldog", "train", "dog")
    theirs = []
    for split in ("trainval", "test"):
        found = datasets.OxfordIIITPet(tmp_path, split)
        names = [found.classes[number] for number in found._labels]
        theirs += list(zip((path.name for path in found._images), names, strict=True))
    titled = [(path, " ".join(map(str.title, x.split("_")))) for path, x, *_ in form.rows]
    assert titled == theirs


def test_pets_by_their_whole_list(tmp_path: Path) -> None:
    (pets(tmp_path) / "annotations" / "trainval.txt").unlink()
    form = sets.read_pets(tmp_path)
    assert form is not None
    assert (form.header, form.rows) == (
        ("path", "label", "kind"),
        (("Abyssinian_9.jpg", "Abyssinian", "cat"),),
    )


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"test": "Abyssinian_9 1 1"}, "test.txt, row 1: expected `Breed_NUMBER CLASS KIND BREED`"),
        ({"test": "Abyssinian_9 1 3 1"}, "test.txt, row 1: expected `Breed_NUMBER"),
        ({"test": "Bengal_9 1 1 1"}, "test.txt, row 1: class 1 is `Abyssinian` and `Bengal`"),
        ({"test": "Abyssinian_100 1 1 1"}, "row 1: photo `Abyssinian_100` stands there twice"),
    ],
)
def test_broken_pets_are_refused(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        sets.read_pets(pets(tmp_path, **changed))


# Food-101: README.txt of food-101.tar.gz.
def food(root: Path, **changed: str) -> Path:
    lists = {
        "classes": "apple_pie|baby_back_ribs",
        "labels": "Apple pie|Baby back ribs",
        "train": "apple_pie/1005649|baby_back_ribs/1",
        "test": "apple_pie/2",
    }
    return write(root, **{f"meta__{name}": text for name, text in (lists | changed).items()})


def test_food_as_torchvision_reads_it(tmp_path: Path) -> None:
    root = food(tmp_path / "food-101")
    (root / "images").mkdir()
    theirs = '{"apple_pie": ["apple_pie/1005649"], "baby_back_ribs": []}'
    (root / "meta" / "train.json").write_text(theirs)
    form = sets.read_food(root)
    assert form is not None
    assert form.rows == (
        ("apple_pie/1005649.jpg", "apple_pie", "train", "Apple pie"),
        ("baby_back_ribs/1.jpg", "baby_back_ribs", "train", "Baby back ribs"),
        ("apple_pie/2.jpg", "apple_pie", "test", "Apple pie"),
    )
    found = datasets.Food101(tmp_path, "train")
    path, label, *_ = form.rows[0]
    assert [form.base / path] == found._image_files
    assert [label] == [found.classes[number] for number in found._labels]


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"test": "apple_pie/1005649"}, "test.txt, row 1: `apple_pie/1005649` is in the lists twi"),
        ({"train": "apple_pie/1|soup/1"}, "train.txt, row 2: `soup/1` is of no class in classes"),
        ({"labels": "Apple pie"}, "labels.txt: 1 line, classes.txt has 2"),
    ],
)
def test_a_broken_food_is_refused(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        sets.read_food(food(tmp_path, **changed))


# Stanford Dogs: lists.tar and images.tar; a cell array of paths, labels from 1.
def dogs(root: Path, train: list[str], test: list[str], folder: str = "") -> Path:
    put(root, "Images/n02085620-Chihuahua/n02085620_1.jpg")
    for split, photos in (("train", train), ("test", test)):
        cells = np.array([[photo] for photo in photos], dtype=object)
        mat(root / folder / f"{split}_list.mat", file_list=cells, labels=[[1]] * len(photos))
    return root


@pytest.mark.parametrize("folder", ["", "lists"])
def test_dogs(tmp_path: Path, folder: str) -> None:
    photos = ["n02085620-Chihuahua/a.jpg", "n02113978-Mexican_hairless/b.jpg"]
    form = sets.read_dogs(dogs(tmp_path, photos, ["n02085620-Chihuahua/c.jpg"], folder))
    assert form is not None
    assert form.base == tmp_path / "Images"
    assert form.rows == (
        ("n02085620-Chihuahua/a.jpg", "n02085620-Chihuahua", "train"),
        ("n02113978-Mexican_hairless/b.jpg", "n02113978-Mexican_hairless", "train"),
        ("n02085620-Chihuahua/c.jpg", "n02085620-Chihuahua", "test"),
    )


def test_broken_dogs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test_list.mat, file_list\(1\): `x/a.jpg` stands there"):
        sets.read_dogs(dogs(tmp_path, ["x/a.jpg"], ["x/a.jpg"]))
    with pytest.raises(DataError, match=r"train_list.mat, file_list\(2\): `a.jpg` is not"):
        sets.read_dogs(dogs(tmp_path, ["x/a.jpg", "a.jpg"], []))


# Flowers 102: README.txt beside 102flowers.tgz; all numbers count from 1.
def flowers(root: Path, labels: list[float], **parts: list[int]) -> Path:
    put(root, "jpg/image_00001.jpg")
    mat(root / "imagelabels.mat", labels=np.array([labels]))
    mat(root / "setid.mat", **{key: np.array([part]) for key, part in parts.items()})
    return root


def test_flowers_as_torchvision_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = flowers(
        tmp_path / "flowers-102", [77, 77, 1, 102, 5], trnid=[2, 5], valid=[1, 4], tstid=[3]
    )
    form = sets.read_flowers(root)
    assert form is not None
    assert form.base == root / "jpg"
    assert form.rows == (
        ("image_00001.jpg", "77", "val"),
        ("image_00002.jpg", "77", "train"),
        ("image_00003.jpg", "1", "test"),
        ("image_00004.jpg", "102", "val"),
        ("image_00005.jpg", "5", "train"),
    )
    # theirs compares with the checksums of the published files first
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    for split in ("train", "val"):
        found = datasets.Flowers102(tmp_path, split)
        names = [path.name for path in found._image_files]
        ours = {path: label for path, label, part in form.rows if part == split}
        assert {name: str(n + 1) for name, n in zip(names, found._labels, strict=True)} == ours


def test_numbers_of_flowers_may_be_of_double_precision(tmp_path: Path) -> None:
    form = sets.read_flowers(flowers(tmp_path, [3.0, 4.0], trnid=[1], valid=[2], tstid=[]))
    assert column(form, "label") == [("3",), ("4",)]


@pytest.mark.parametrize(
    "parts, said",
    [
        ({"trnid": [1, 2], "valid": [2], "tstid": [3]}, "setid.mat, valid: photo `2` is in two"),
        ({"trnid": [1, 2], "valid": [0], "tstid": [3]}, "setid.mat, valid: photo `0` is not of 1"),
        ({"trnid": [1], "valid": [2], "tstid": []}, "photos in no part: `image_00003.jpg`"),
        ({"trnid": [1], "valid": [2]}, "setid.mat: expected an array `tstid`"),
    ],
)
def test_broken_flowers_are_refused(tmp_path: Path, parts: dict[str, list[int]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        sets.read_flowers(flowers(tmp_path, [1, 2, 3], **parts))


def test_a_damaged_mat_file_and_no_scipy_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flowers(tmp_path, [1], trnid=[1], valid=[], tstid=[])
    (tmp_path / "imagelabels.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(200))
    with pytest.raises(DataError, match=r"imagelabels.mat: not a MATLAB file"):
        sets.read_flowers(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UsageError, match="needs scipy") as error:
        sets.read_flowers(tmp_path)
    assert "pip install scipy" in error.value.hint


# Stanford Cars: devkit/README.txt; classes count from 1.
FIELDS = [("bbox_x1", object), ("class", object), ("fname", object)]


def cars(root: Path, train: list[tuple[int, str]], test: list[tuple[int, str]] | None) -> Path:
    names = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    mat(root / "devkit" / "cars_meta.mat", class_names=np.array([names], dtype=object))
    for file, rows in (
        ("devkit/cars_train_annos.mat", train),
        ("cars_test_annos_withlabels.mat", test),
    ):
        if rows is not None:
            values = np.array([[(5, number, name) for number, name in rows]], dtype=FIELDS)
            mat(root / file, annotations=values)
    return root


def test_cars_as_torchvision_reads_them(tmp_path: Path) -> None:
    train = [(2, "00001.jpg"), (1, "00002.jpg")]
    root = cars(tmp_path / "stanford_cars", train, [(1, "00001.jpg"), (2, "00002.jpg")])
    put(root, "cars_train/00001.jpg", "cars_test/00001.jpg")
    form = sets.read_cars(root)
    assert form is not None
    assert form.base == root
    assert form.rows == (
        ("cars_train/00001.jpg", "Ram C/V Cargo Van Minivan 2012", "train"),
        ("cars_train/00002.jpg", "AM General Hummer SUV 2000", "train"),
        ("cars_test/00001.jpg", "AM General Hummer SUV 2000", "test"),
        ("cars_test/00002.jpg", "Ram C/V Cargo Van Minivan 2012", "test"),
    )
    theirs = []
    for split in ("train", "test"):
        found = datasets.StanfordCars(tmp_path, split)
        theirs += [(path, found.classes[number]) for path, number in found._samples]
    assert [(str(root / path), label) for path, label, _ in form.rows] == theirs


def test_cars_without_labels_for_testing(tmp_path: Path) -> None:
    form = sets.read_cars(cars(tmp_path, [(1, "1.jpg")], None))
    assert column(form, "path", "split") == [("cars_train/1.jpg", "train")]
    assert form is not None
    assert "no cars_test_annos_withlabels.mat: cars_test not read" in form.told


def test_broken_cars_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_annos.mat, annotations\(2\): class 3 of 2"):
        sets.read_cars(cars(tmp_path, [(1, "1.jpg"), (3, "2.jpg")], None))
    with pytest.raises(DataError, match=r"annotations\(2\): cars_train/1.jpg again"):
        sets.read_cars(cars(tmp_path, [(1, "1.jpg"), (2, "1.jpg")], None))
    mat(tmp_path / "devkit" / "cars_train_annos.mat", annotations=[[1, 2]])
    with pytest.raises(DataError, match=r"annotations\(1\): expected fields `fname` and `class`"):
        sets.read_cars(tmp_path)


def examples(root: Path) -> dict[str, Path]:
    """A small set of each form by its name, and a folder of none."""
    return {
        "cub": cub(root / "0"),
        "fgvc-aircraft": aircraft(root / "1"),
        "oxford-pets": pets(root / "2"),
        "food-101": food(root / "3"),
        "stanford-dogs": dogs(root / "4", ["x/a.jpg", "y/c.jpg"], ["x/b.jpg"]),
        "flowers-102": flowers(root / "5", [1, 2], trnid=[1, 2], valid=[], tstid=[]),
        "stanford-cars": cars(root / "6", [(1, "1.jpg"), (2, "2.jpg")], None),
        "": put(root / "7", "oak/1.jpg", "elm/1.jpg"),
    }


def test_each_set_is_of_its_own_form_alone(tmp_path: Path) -> None:
    places = examples(tmp_path)
    assert {known.name for known in sets.FORMS} <= places.keys()
    for name, place in places.items():
        assert [k.name for k in KNOWN if k.read(place) is not None] == [name] * bool(name)
    assert not [known for known in KNOWN if known.read(tmp_path / "7/oak/1.jpg") is not None]


def test_each_set_becomes_a_plain_table(tmp_path: Path) -> None:
    for name, place in examples(tmp_path).items():
        if (form := find(place)) is None:
            continue
        with (tmp_path / "plain.csv").open("w", newline="") as file:
            csv.writer(file).writerows([form.header, *form.rows])
        put(form.base, *(row[0] for row in form.rows))
        photos = read_table(tmp_path / "plain.csv", root=form.base)
        assert [photo.label for photo in photos.photos] == [row[1] for row in form.rows], name
