"""PlantNet-300K and iNaturalist's sets, written by hand after their READMEs."""

import json
from pathlib import Path
from typing import Any

import pytest

from fieldguide.errors import DataError
from fieldguide.photos.forms import json_sets


def dump(path: Path, content: object, mark: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mark + json.dumps(content), encoding="utf-8")
    return path


def leaf(species: object, observation: str, split: str, **other: object) -> dict[str, object]:
    said = {"species_id": species, "obs_id": observation, "split": split, "organ": "leaf"}
    return said | {"author": "A. Person", "license": "cc-by-sa"} | other


PLANTS = {
    "aa1": leaf("1355937", "10", "train"),
    "bb2": leaf("1355937", "10", "train", author=None),
    "cc3": leaf("2", "11", "val", author='Ö "B"', organ="flower"),
    "dd4": leaf(3, "12", "test"),
}


def plants(root: Path, photos: object = PLANTS, names: object = None) -> Path:
    dump(root / "plantnet300K_metadata.json", photos, mark="\ufeff")
    given = {"1355937": "Lactuca virosa L.", "2": "Sedum acre L.", "9": "Unused L."}
    dump(root / "plantnet300K_species_id_2_name.json", names or given)
    return root


def test_plantnet(tmp_path: Path) -> None:
    form = json_sets.read_plantnet(plants(tmp_path))
    assert form is not None
    assert form.base == tmp_path
    assert form.header[:6] == ("path", "label", "event", "place", "split", "species_id")
    assert [row[:5] for row in form.rows] == [
        ("images/train/1355937/aa1.jpg", "Lactuca virosa L.", "10", "A. Person", "train"),
        ("images/train/1355937/bb2.jpg", "Lactuca virosa L.", "10", "", "train"),
        ("images/val/2/cc3.jpg", "Sedum acre L.", "11", 'Ö "B"', "val"),
        ("images/test/3/dd4.jpg", "3", "12", "A. Person", "test"),
    ]
    assert form.rows[2][5:] == ("2", "flower", "cc-by-sa")
    assert "labels of 1 species: their ids" in form.told


def test_names_of_two_species_of_plantnet(tmp_path: Path) -> None:
    names = {"1355937": "Sedum", "2": "Sedum", "3": "Acer"}
    form = json_sets.read_plantnet(plants(tmp_path, names=names))
    assert form is not None
    assert {row[1] for row in form.rows} == {"Sedum (1355937)", "Sedum (2)", "Acer"}


@pytest.mark.parametrize(
    "photos, said",
    [
        ({"aa1": leaf("1", "10", "all")}, "metadata.json, aa1: expected `split` train, val or"),
        ({"aa1": {"species_id": "1"}}, "metadata.json, aa1: expected `split`, a number or text"),
        ({"aa1": {"split": "val"}}, "metadata.json, aa1: expected `species_id`"),
        ({"aa1": leaf("", "10", "val")}, "metadata.json, aa1: `species_id` is empty"),
        ({"aa1": ["1"]}, "metadata.json, aa1: expected an object, found"),
        ([1], "metadata.json: expected an object of photos by id"),
    ],
)
def test_a_broken_plantnet_is_refused(tmp_path: Path, photos: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        json_sets.read_plantnet(plants(tmp_path, photos))


def image(number: object, **other: object) -> dict[str, object]:
    name = f"train/00001_Animalia_Worm/{number}.jpg"
    said = {"id": number, "width": 500, "height": 333, "file_name": name, "license": 1}
    return said | {"rights_holder": "Ann", "date": "2020-07-14 20:59:56+00:00"} | other


def category(number: int, name: str, **other: object) -> dict[str, object]:
    said = {"id": number, "name": name, "common_name": f"common {name}"}
    said |= {"supercategory": "Animalia", "kingdom": "Animalia", "class": "Clitellata"}
    return said | {"image_dir_name": "00001", "specific_epithet": "x"} | other


def inat(root: Path, **changed: Any) -> Path:
    content = {
        "info": {"description": "", "version": "2021"},
        "images": [image(7, latitude=47.5, longitude=-1.5), image(8, date=None), image(9)],
        "categories": [category(0, "Lumbricus terrestris"), category(1, "Sabella spallanzanii")],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1},
            {"id": 2, "image_id": 8, "category_id": 0},
            {"id": 3, "image_id": 8, "category_id": 0},
        ],
        "licenses": [{"id": 1, "name": "CC BY-NC", "url": ""}],
    }
    return dump(root / "train.json", content | changed)


def test_inaturalist_2021(tmp_path: Path) -> None:
    form = json_sets.read_inaturalist(inat(tmp_path))
    assert form is not None
    assert form.base == tmp_path
    assert form.header == (
        *("path", "label", "time", "licence", "rights_holder", "latitude", "longitude"),
        *("common_name", "supercategory", "kingdom", "class"),
    )
    assert [row[1] for row in form.rows] == ["Sabella spallanzanii", "Lumbricus terrestris", ""]
    assert form.rows[0][2:7] == ("2020-07-14T20:59:56", "CC BY-NC", "Ann", "47.5", "-1.5")
    assert form.rows[1][2:7] == ("", "CC BY-NC", "Ann", "", "")
    assert form.rows[2][7:] == ("", "", "", "")
    assert "event" not in form.header
    assert "no event" in form.told


def test_inaturalist_2018_and_photos_without_labels(tmp_path: Path) -> None:
    # of 2018: names of ranks are numbers, and there is no date or place
    images = [
        {"id": 3, "file_name": "train_val2018/Aves/1/a.jpg", "rights_holder": "", "license": 2}
    ]
    plain = [{"id": 1, "name": "17", "supercategory": "Aves"}]
    form = json_sets.read_inaturalist(
        inat(tmp_path, images=images, categories=plain, annotations=[])
    )
    assert form is not None
    assert form.rows == (("train_val2018/Aves/1/a.jpg", "", "", "", "", ""),)


def test_photos_of_several_categories_are_left_out(tmp_path: Path) -> None:
    pairs = [(7, 0), (7, 1), (8, 1), (99, 1)]
    annotations = [{"image_id": photo, "category_id": its} for photo, its in pairs]
    form = json_sets.read_inaturalist(inat(tmp_path, annotations=annotations))
    assert form is not None
    assert [row[1] for row in form.rows] == ["Sabella spallanzanii", ""]
    assert form.left_out == {"photos of several categories": 1, "annotations of no photo": 1}


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"images": [image(7), image(7)]}, r"train.json, images\[1\]: id 7 stands there twice"),
        ({"images": [image(7), image(None)]}, r"images\[1\]: expected `id`, a number or text"),
        ({"images": [image(7, file_name=None)]}, r"images\[0\]: expected `file_name`"),
        ({"images": [image(7), 5]}, r"images\[1\]: expected an object, found 5"),
        ({"categories": {}}, r"train.json, categories: expected a list"),
        ({"annotations": [{"image_id": 7}]}, r"annotations\[0\]: expected `category_id`"),
        ({"annotations": [{"image_id": 7, "category_id": 5}]}, r"\[0\]: category 5 is not in"),
    ],
)
def test_a_broken_inaturalist_is_refused(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        json_sets.read_inaturalist(inat(tmp_path, **changed))


def test_a_cut_file_is_refused_with_its_line(tmp_path: Path) -> None:
    file = inat(tmp_path)
    file.write_text(file.read_text()[:-5])
    with pytest.raises(DataError, match=r"train.json, line 1, column \d+: not JSON"):
        json_sets.read_inaturalist(file)


def test_what_is_of_neither(tmp_path: Path) -> None:
    coco = dump(tmp_path / "coco.json", {"images": [{"id": 1, "file_name": "a"}], "categories": []})
    places = {"plantnet": plants(tmp_path / "p"), "inaturalist": inat(tmp_path / "i"), "": coco}
    for name, place in places.items():
        names = [known.name for known in json_sets.FORMS if known.read(place) is not None]
        assert names == [name] * bool(name)
    assert json_sets.read_inaturalist(tmp_path / "away.json") is None
