"""Collections as they come from the field: what was taken for what, and nothing misread."""

from pathlib import Path

import pytest
from photos import jpeg, put

from fieldguide.errors import DataError
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.folders import scan
from fieldguide.photos.tables import read_table
from fieldguide.predict import inputs

PHOTOS = ("1.jpg", "2.jpg", "3.jpg", "4.jpg")


def table(folder: Path, *rows: str, ends: str = "\n", name: str = "t.csv") -> Path:
    """A table beside photos of these names."""
    put(folder, *PHOTOS)
    (folder / name).write_bytes(ends.join([*rows, ""]).encode())
    return folder / name


def labels(found: Catalog) -> list[str | None]:
    return [photo.label for photo in found.photos]


def kinds(found: Catalog) -> list[str]:
    return sorted(note.kind for note in found.notes)


def test_what_each_column_was_taken_for_is_told(tmp_path: Path) -> None:
    place = table(
        tmp_path,
        "filename,label,is_valid,location,group",
        *("1.jpg,oak,True,a,g1", "2.jpg,elm,False,a,g1", "3.jpg,oak,False,b,", "4.jpg,oak,True,b,"),
    )
    assert read_table(place).told == (
        f"labels: column label (2 classes: oak 3, elm 1); paths: column filename below {tmp_path};"
        " groups: column group (1); split: none;"
        " not used: is_valid (2 values), location (2 values)"
    )


def test_the_species_is_the_label_of_a_darwin_core_table(tmp_path: Path) -> None:
    rows = [f"{number},{number}.jpg,Animalia,Aves,Tyto,Tyto {number % 2}" for number in (1, 2, 3)]
    place = table(tmp_path, "gbifID,filename,kingdom,class,genus,species", *rows)
    found = read_table(place)
    assert labels(found) == ["Tyto 1", "Tyto 0", "Tyto 1"]
    assert "labels: column species (2 classes" in found.told
    assert "class (1 value)" in found.told
    assert labels(read_table(place, label="class")) == ["Aves"] * 3


def test_epithets_alone_are_joined_to_their_genus(tmp_path: Path) -> None:
    rows = ["1.jpg,Motacilla,alba", "2.jpg,Tyto,alba", "3.jpg,Tyto,"]
    found = read_table(table(tmp_path, "file,genus,species", *rows))
    assert labels(found) == ["Motacilla alba", "Tyto alba"]
    assert "labels: column genus + species (2 classes" in found.told
    assert "not used" not in found.told
    assert kinds(found) == ["empty-label", "file-without-row"]


def test_columns_that_compete_for_the_label_are_refused(tmp_path: Path) -> None:
    place = table(tmp_path, "file,label,category", "1.jpg,a,x", "2.jpg,a,y", "3.jpg,b,y")
    with pytest.raises(DataError, match="`label` and `category` may each be the labels") as error:
        read_table(place)
    assert "--label-column" in error.value.hint
    assert labels(read_table(place, label="category")) == ["x", "y", "y"]
    same = table(tmp_path, "file,label,class_name", "1.jpg,0,oak", "2.jpg,1,elm", "3.jpg,0,oak")
    assert labels(read_table(same)) == ["0", "1", "0"]  # one stands for the other


def test_a_table_without_a_header_keeps_its_first_row(tmp_path: Path) -> None:
    place = table(tmp_path, *(f"{name},oak" for name in PHOTOS))
    found = read_table(place)
    assert [photo.path for photo in found.photos] == [*PHOTOS]
    assert kinds(found) == ["no-header"]
    assert "labels: column 2 (1 class" in found.told
    told: list[str] = []
    paths = table(tmp_path, *PHOTOS, name="paths.csv")
    assert [each.name for each in inputs.read(paths, notice=told.append)] == [*PHOTOS]
    assert told == ["paths.csv: the first row is a photo, not names of columns: all rows are read"]
    three = table(tmp_path, *(f"{name},oak,g" for name in PHOTOS))
    with pytest.raises(DataError, match="no column for the label"):
        read_table(three)
    assert labels(read_table(three, label="2")) == ["oak"] * 4


@pytest.mark.parametrize(
    ("rows", "ends"),
    [
        (["path,label", "1.jpg,oak", "2.jpg,elm"], "\r"),
        (["sep=;", "path;label", "1.jpg;oak", "2.jpg;elm"], "\r\n"),
        (["path,label,,", "1.jpg,oak,,", "2.jpg,elm,,"], "\n"),
        (["path,label", "1.jpg,oak,", "2.jpg,elm,"], "\n"),
    ],
)
def test_spreadsheets_tables_are_read(tmp_path: Path, rows: list[str], ends: str) -> None:
    assert labels(read_table(table(tmp_path, *rows, ends=ends))) == ["oak", "elm"]


def test_a_list_of_an_old_macintosh_has_many_rows(tmp_path: Path) -> None:
    place = table(tmp_path, *PHOTOS, ends="\r", name="list.txt")
    assert [each.name for each in inputs.read(place)] == [*PHOTOS]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04rest", "a zip archive or a spreadsheet such as .xlsx"),
        (b"\xd0\xcf\x11\xe0rest", "a spreadsheet such as .xls"),
        (b"\x1f\x8brest", "compressed by gzip"),
        (b"path,label," + b"x" * 140_000 + b"\n1.jpg,oak,\n", "field larger than field limit"),
    ],
)
def test_what_is_no_table_is_called_by_its_name(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_table(tmp_path / "t.csv")


def test_paths_of_windows_get_a_hint_of_their_own(tmp_path: Path) -> None:
    place = table(tmp_path, "path,label", r"C:\photos\1.jpg,oak")
    with pytest.raises(DataError) as error:
        read_table(place)
    assert "Windows" in error.value.hint


def test_labels_of_blanks_are_no_labels(tmp_path: Path) -> None:
    found = read_table(table(tmp_path, "path,label", "1.jpg,  ", "2.jpg,oak"))
    assert labels(found) == ["oak"]
    assert "empty-label" in kinds(found)


def test_endings_in_other_case_are_found_and_told(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.JPG", "c.jpg", "C.JPG")
    rows = "path,label\na.JPG,oak\nb.jpg,oak\nc.jpg,elm\nC.JPG,elm\nc.JPG,elm\n"
    (tmp_path / "t.csv").write_text(rows)
    found = read_table(tmp_path / "t.csv")
    assert [photo.path for photo in found.photos] == ["a.jpg", "b.JPG", "c.jpg", "C.JPG"]
    notes = {note.kind: note.message for note in found.notes}
    assert notes["other-case"] == "names in other case than the files': `a.jpg`, `b.JPG`"
    assert notes["missing-file"] == "row 6: file not found"  # two could be meant


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"),
        ("train_images", "test_images"),
        ("Training_Data", "Validation-Data"),
        ("images_train", "images_val"),
        ("trainSet", "testSet"),
    ],
)
def test_folders_named_like_splits_are_splits(tmp_path: Path, train: str, test: str) -> None:
    put(tmp_path, f"{train}/oak/1.jpg", f"{train}/elm/2.jpg", f"{test}/oak/3.jpg")
    found = scan(tmp_path)
    assert found.classes == ("elm", "oak")
    assert [photo.split for photo in found.photos].count("train") == 2
    assert f"split: folders {train}, {test} (train 2" in found.told or (
        f"split: folders {test}, {train} (train 2" in found.told
    )


def test_splits_inside_class_folders_are_splits(tmp_path: Path) -> None:
    put(tmp_path, "oak/train/1.jpg", "oak/test/2.jpg", "elm/train/3.jpg", "elm/val/deep/4.jpg")
    found = scan(tmp_path)
    assert {(photo.path, photo.label, photo.split) for photo in found.photos} == {
        ("oak/train/1.jpg", "oak", "train"),
        ("oak/test/2.jpg", "oak", "test"),
        ("elm/train/3.jpg", "elm", "train"),
        ("elm/val/deep/4.jpg", "elm", "val"),
    }
    assert "split: folders in each class (train 2" in found.told


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "bus/2.jpg", "training_ground/3.jpg", "oak/train_station/4.jpg")
    found = scan(tmp_path)
    assert found.classes == ("bus", "oak", "train", "training_ground")
    assert {photo.split for photo in found.photos} == {"train"}


def test_bins_of_systems_and_programs_are_no_classes(tmp_path: Path) -> None:
    bins = ("$RECYCLE.BIN", "#recycle", "@eaDir", "lost+found", "DeletedFiles")
    put(tmp_path, "oak/1.jpg", "oak/@eaDir/1.jpg", "elm/2.jpg", *(f"{each}/3.jpg" for each in bins))
    found = scan(tmp_path)
    assert found.photos == (Photo("elm/2.jpg", "elm"), Photo("oak/1.jpg", "oak"))
    assert kinds(found) == ["system-folders"]
    assert "`DeletedFiles`" in found.notes[0].message


def test_photos_without_an_ending_are_known_by_their_content(tmp_path: Path) -> None:
    put(tmp_path, "elm/1.jpg")
    for name, content in (
        ("0001", jpeg(1)),
        ("medium.jpeg?width=500", jpeg(2)),
        ("README", b"text"),
        ("raw.nef", b"II*\0rest"),
    ):
        (tmp_path / "oak").mkdir(exist_ok=True)
        (tmp_path / "oak" / name).write_bytes(content)
    found = scan(tmp_path)
    paths = [photo.path for photo in found.photos]
    assert paths == ["elm/1.jpg", "oak/0001", "oak/medium.jpeg?width=500"]
    notes = {note.kind: note.message for note in found.notes}
    assert notes["no-ending"].startswith("read by their content")
    assert "1 .nef" in notes["other-files"]
    assert "1 without ending" in notes["other-files"]
