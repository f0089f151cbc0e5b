"""Tables of competitions, written by hand after the data pages of image competitions on Kaggle."""

import csv
from pathlib import Path

import pytest

from fieldguide.errors import DataError
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.forms.form import Form
from fieldguide.photos.forms.kaggle import read_kaggle, read_one_hot
from fieldguide.photos.tables import read_table
from tests.photos import put


def table(path: Path, *rows: str, end: str = "\n", mark: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((mark + "".join(row + end for row in rows)).encode())
    return path


def read(form: Form | None, folder: Path) -> Catalog:
    """The catalog of a form, as by way of the plain table that it becomes."""
    assert form is not None
    with (folder / "plain.csv").open("w", newline="") as file:
        csv.writer(file).writerows([form.header, *form.rows])
    return read_table(folder / "plain.csv", root=form.base)


ISIC = ("image,MEL,NV,night moth,site", "a,1.0,0.0,0.0,arm", "b,0.0,1.0,0.0,leg")


def test_a_column_a_class(tmp_path: Path) -> None:
    none, two = "c,0.0,0.0,0.0,arm", "d,1.0,1.0,0.0,arm"
    form = read_one_hot(table(tmp_path / "truth.csv", *ISIC, none, two, "e,0,0,1,"))
    assert form is not None
    assert form.header == ("path", "label", "site")
    assert form.rows == (("a", "MEL", "arm"), ("b", "NV", "leg"), ("e", "night moth", ""))
    assert form.left_out == {"rows without a class": 1, "rows with several classes": 1}
    assert form.base == tmp_path
    assert "`MEL`, `NV`, `night moth`" in form.told
    photos = read(form, put(tmp_path, "a.jpg", "b.png", "e.jpg"))
    assert photos.classes == ("MEL", "NV", "night moth")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("cut", [",", ";", "\t"])
@pytest.mark.parametrize(
    "yes, no", [("1", "0"), ("True", "False"), (" 1", " 0"), ("TRUE", "false")]
)
def test_other_separators_and_spellings(
    tmp_path: Path, end: str, cut: str, yes: str, no: str
) -> None:
    rows = (cut.join(cells) for cells in (["id", '"oak, ""old"""', "elm"], ["1", yes, no]))
    form = read_one_hot(table(tmp_path / "t.csv", *rows, end=end, mark="\ufeff"))
    assert form is not None
    assert form.rows == (("1", 'oak, "old"'),)


@pytest.mark.parametrize(
    "rows",
    [
        ("path,label,a,b", "x.jpg,oak,1,0"),  # a column of labels wins
        ("path,Species,a,b", "x.jpg,1,1,0"),
        ("path,oak", "x.jpg,1"),  # one column
        ("path,oak,elm", "x.jpg,1,2"),  # numbers
        ("path,oak,elm", "x.jpg,1,"),  # blank
        ("path,oak,elm", "x.jpg,1,1", "y.jpg,1,1", "z.jpg,1,0"),  # mostly several: attributes
        ("path,oak,elm", "x.jpg,0,0"),
        ("path,oak,elm",),  # no rows
        ("path,fold,group", "x.jpg,1,0"),  # usual names
    ],
)
def test_tables_that_are_not_one_hot(tmp_path: Path, rows: tuple[str, ...]) -> None:
    assert read_one_hot(table(tmp_path / "t.csv", *rows)) is None


def test_a_one_hot_table_that_breaks_off_is_refused_with_its_row(tmp_path: Path) -> None:
    many = [f"{number},1,0" for number in range(20_000)]
    broken = table(tmp_path / "t.csv", "id,oak,elm", *many, "x,1")
    with pytest.raises(DataError, match="row 20002: 2 cells, the header has 3"):
        read_one_hot(broken)
    late = table(tmp_path / "late.csv", "id,oak,elm", *many, "x,1,maybe")
    with pytest.raises(DataError, match="20002: expected 0 or 1 in column `elm`, found `maybe`"):
        read_one_hot(late)


def test_a_one_hot_table_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column for the path; columns found: `x`, `y`, `oak`"):
        read_one_hot(table(tmp_path / "t.csv", "x,y,oak,elm", "p,q,0,1"))


def competition(root: Path, *rows: str, name: str = "train.csv") -> Path:
    put(root, "train/0a1.jpg", "train/0b2.jpg", "test/0c3.jpg", "sample_submission.csv")
    table(root / name, *(rows or ("id,breed", "0a1,beagle", "0b2,pug")))
    return root


@pytest.mark.parametrize("name", ["train.csv", "labels.csv", "train_labels.csv"])
def test_a_folder_with_a_table_beside_its_photos(tmp_path: Path, name: str) -> None:
    form = read_kaggle(competition(tmp_path, name=name))
    assert form is not None
    assert form.base == tmp_path / "train"
    assert form.header == ("path", "breed")
    assert form.rows == (("0a1.jpg", "beagle"), ("0b2.jpg", "pug"))
    assert form.told == (
        f"form: Kaggle (2 rows); table {name}, photos in train/; ids without ending: .jpg by the"
        " files; not read, without labels: sample_submission.csv and test"
    )
    photos = read(form, tmp_path)
    assert photos.classes == ("beagle", "pug")


def test_the_table_itself_and_one_of_another_name(tmp_path: Path) -> None:
    competition(tmp_path, name="mine.csv")
    form = read_kaggle(tmp_path / "mine.csv")
    assert form is not None
    assert form.rows == (("0a1.jpg", "beagle"), ("0b2.jpg", "pug"))
    assert read_kaggle(tmp_path) is None  # `mine.csv` is not what competitions call theirs


@pytest.mark.parametrize(
    "folder", ["train_images", "images", "train/images", "images/train", "train/train", "jpeg"]
)
def test_folders_that_photos_lie_in(tmp_path: Path, folder: str) -> None:
    table(tmp_path / "train.csv", "Image,Id", "a.JPG,w_1", "b,w_2", "gone,w_1")
    put(tmp_path, f"{folder}/a.jpg", f"{folder}/b.png", "masks/a.jpg")
    form = read_kaggle(tmp_path)
    assert form is not None
    assert form.base == tmp_path / folder
    assert form.rows == (("a.jpg", "w_1"), ("b.png", "w_2"), ("gone", "w_1"))
    assert "ids without ending: .png by the files; no photo for 1 row" in form.told


def test_one_hot_with_ids_in_a_folder(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", "image_id,healthy,rust", "T_0,0,1", "T_1,1,0", "T_2,0,0")
    put(tmp_path, "images/T_0.jpg", "images/T_1.jpg", "images/T_2.jpg", "images/Test_0.jpg")
    for place in (tmp_path, tmp_path / "train.csv"):
        form = read_kaggle(place)
        assert form is not None
        assert (form.header, form.base) == (("path", "label"), tmp_path / "images")
        assert form.rows == (("T_0.jpg", "rust"), ("T_1.jpg", "healthy"))
        assert form.left_out == {"rows without a class": 1, "rows with several classes": 0}


def test_numbers_without_their_zeros(tmp_path: Path) -> None:
    numbers = (1, 2, 1000)
    rows = [f"{number},oak" for number in numbers]
    table(tmp_path / "train.csv", "id,label", *rows)
    put(tmp_path, *(f"train/{number:04}.jpg" for number in numbers))
    form = read_kaggle(tmp_path)
    assert form is not None
    assert [row[0] for row in form.rows] == ["0001.jpg", "0002.jpg", "1000.jpg"]
    assert "ids without the zeros before them: 1 is 0001.jpg" in form.told
    put(tmp_path, "train/002.jpg")  # 2 is no longer one photo
    form = read_kaggle(tmp_path)
    assert form is not None
    assert [row[0] for row in form.rows] == ["1", "2", "1000.jpg"]
    assert "no photo for 2 rows" in form.told


def test_photos_in_two_folders_are_refused_unless_the_name_decides(tmp_path: Path) -> None:
    competition(tmp_path)
    put(tmp_path, "test/0a1.jpg", "test/0b2.jpg")
    form = read_kaggle(tmp_path / "train.csv")
    assert form is not None
    assert form.base == tmp_path / "train"
    put(tmp_path, "train_masks/0a1.jpg", "train_masks/0b2.jpg")
    with pytest.raises(DataError, match="lie in each of `test`, `train`, `train_masks`") as error:
        read_kaggle(tmp_path / "train.csv")
    assert "--root" in error.value.hint


def test_an_id_of_two_photos_is_refused_with_its_row(tmp_path: Path) -> None:
    put(competition(tmp_path), "train/0b2.png")
    with pytest.raises(DataError, match=r"train.csv, row 3: `0b2` may be `0b2.jpg`, `0b2.png`"):
        read_kaggle(tmp_path)


def test_two_tables_of_photos_are_refused_but_not_a_list_of_classes(tmp_path: Path) -> None:
    competition(tmp_path)
    table(tmp_path / "labels.csv", "id,name", "0,beagle", "1,pug")
    form = read_kaggle(tmp_path)
    assert form is not None
    assert form.rows == (("0a1.jpg", "beagle"), ("0b2.jpg", "pug"))
    table(tmp_path / "labels.csv", "id,label", "0a1,oak")
    with pytest.raises(DataError, match=r"`train.csv` and `labels.csv` in .* may each hold"):
        read_kaggle(tmp_path)


def test_a_table_of_other_photos_is_refused(tmp_path: Path) -> None:
    competition(tmp_path, "id,label", "x,oak", "y,elm")
    with pytest.raises(DataError, match=r"train.csv names no photo in train/: not `x` nor any"):
        read_kaggle(tmp_path)


def test_paths_from_the_folder_on(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", "path,label", "train\\0a1.jpg,oak", "train/0b2.jpg,elm")
    put(tmp_path, "train/0a1.jpg", "train/0b2.jpg")
    assert read_kaggle(tmp_path / "train.csv") is None  # a plain table
    form = read_kaggle(tmp_path)
    assert form is not None
    assert read(form, tmp_path).classes == ("elm", "oak")


def test_what_is_read_as_before(tmp_path: Path) -> None:
    classes = put(tmp_path / "classes", "oak/0.jpg", "oak/1.jpg", "elm/2.jpg")
    table(classes / "labels.csv", "id,name", "0,elm", "1,oak")  # numbers of classes, not photos
    assert read_kaggle(classes) is None
    table(classes / "labels.csv", "path,label", "elm/2.jpg,elm", "oak/1.jpg,oak")
    assert read_kaggle(classes) is None
    table(classes / "train.csv", "x,y", "1,2")
    assert read_kaggle(classes) is None
    (classes / "labels.csv").unlink()
    assert read_kaggle(classes) is None
    (classes / "train.csv").write_bytes(b"PK\x03\x04\0\0")
    assert read_kaggle(classes) is None
    assert read_kaggle(classes / "train.csv") is None
    assert read_kaggle(classes / "oak" / "0.jpg") is None
    assert read_kaggle(tmp_path / "away.csv") is None
    assert read_one_hot(tmp_path) is None


def test_names_in_other_unicode_forms(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", "id,label", "a\u0308hre,oak", "b,elm")
    put(tmp_path, "train/\u00e4hre.jpg", "train/b.jpg")
    form = read_kaggle(tmp_path)
    assert form is not None
    assert form.rows[0][0] == "\u00e4hre.jpg"
