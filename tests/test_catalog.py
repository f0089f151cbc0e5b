import os
import random
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photos import NATURE, needs_photographs, put

from fieldguide.errors import DataError, FieldguideError
from fieldguide.photos import catalog, sources
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.folders import scan, scan_unlabelled
from fieldguide.photos.tables import read_table


def kinds(found: Catalog) -> list[str]:
    return sorted(note.kind for note in found.notes)


def table(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def refused(action: object, *arguments: object, **options: object) -> FieldguideError:
    assert callable(action)
    with pytest.raises(DataError) as caught:
        action(*arguments, **options)
    assert not caught.value.message.endswith(".")
    return caught.value


def test_one_folder_a_class(tmp_path: Path) -> None:
    put(tmp_path, "rosa/b.jpg", "rosa/a.JPG", "abies/c.png")
    found = scan(tmp_path)
    assert found.photos == (
        Photo("abies/c.png", "abies"),
        Photo("rosa/a.JPG", "rosa"),
        Photo("rosa/b.jpg", "rosa"),
    )
    assert found.classes == ("abies", "rosa")
    assert found.file(found.photos[0]) == tmp_path / "abies" / "c.png"
    assert (len(found), found.notes) == (3, ())


def test_the_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(
        tmp_path,
        *(f"{split}/{c}/{n}.jpg" for split in ("test", "train") for c in "bBaé" for n in "21"),
    )
    expected = scan(tmp_path)
    scandir, draws = os.scandir, random.Random(0)

    class Shuffled:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)
            draws.shuffle(self.entries)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    for _ in range(5):
        assert scan(tmp_path) == expected
    assert [p.label for p in expected.part("train").photos][::2] == ["B", "a", "b", "é"]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_train_val_test(tmp_path: Path, validation: str) -> None:
    put(
        tmp_path,
        "train/a/1.jpg",
        "train/b/1.jpg",
        f"{validation}/a/2.jpg",
        "test/0.jpg",
        "test/b/3.jpg",
    )
    found = scan(tmp_path)
    assert [(p.split, p.label) for p in found.photos] == [
        ("train", "a"),
        ("train", "b"),
        ("val", "a"),
        ("test", None),
        ("test", "b"),
    ]
    assert found.part("val").photos == (Photo(f"{validation}/a/2.jpg", "a", split="val"),)
    assert found.classes == ("a", "b")
    assert found.notes == ()


def test_a_folder_called_test_is_a_class_where_there_is_no_train(tmp_path: Path) -> None:
    assert scan(put(tmp_path, "test/1.jpg", "other/2.jpg")).classes == ("other", "test")


def test_hidden_and_system_files_are_skipped_silently(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/._1.jpg", "a/.hidden.jpg", "a/.DS_Store", "a/Thumbs.db")
    put(tmp_path, "a/desktop.ini", ".cache/2.jpg", "__MACOSX/a/1.jpg", "a/x.jpg/3.jpg")
    found = scan(tmp_path)
    assert [p.path for p in found.photos] == ["a/1.jpg"]
    assert found.notes == ()


def test_odd_names(tmp_path: Path) -> None:
    names = [
        "a b/c d.jpg",
        "ünïcode 名前/🌿.jpg",
        "trailing./x .jpg",
        "q/back\\slash.jpg",
        "q/" + "n" * 251 + ".jpg",
    ]
    found = scan(put(tmp_path, *names))
    assert sorted(p.path for p in found.photos) == sorted(names)
    assert all(found.file(p).is_file() for p in found.photos)


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    try:
        (tmp_path / "a").mkdir()
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.jpg")).touch()
    except OSError:
        pytest.skip("the file system wants UTF-8")
    found = scan(tmp_path)
    catalog.write_rows(tmp_path / "out.csv", found)
    assert catalog.read_rows(tmp_path / "out.csv", found.root).photos == found.photos
    assert found.file(found.photos[0]).is_file()


def test_names_in_two_unicode_forms_are_reported(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "a/é.jpg") for form in ("NFC", "NFD")]
    put(tmp_path, *names, *(f"{unicodedata.normalize(form, 'ö')}/1.jpg" for form in ("NFC", "NFD")))
    if len(list((tmp_path / "a").iterdir())) < 2:
        pytest.skip("the file system joins the two forms")
    assert kinds(scan(tmp_path)) == ["similar-classes", "unicode-twins"]


def test_links_inside_are_followed_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path, "photos/a/1.jpg", "elsewhere/2.jpg")
    root = tmp_path / "photos"
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "link.jpg").symlink_to(root / "a" / "1.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "a" / "self.jpg").symlink_to(root / "a" / "self.jpg")
    found = scan(root)
    assert [p.path for p in found.photos] == ["a/1.jpg", "a/link.jpg", "b/2.jpg"]
    assert kinds(found) == ["dangling-link", "dangling-link", "link-loop"]


def test_empty_classes_are_named_and_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "empty").mkdir()
    found = scan(tmp_path)
    assert found.classes == ("a", "b")
    assert [(n.kind, n.message) for n in found.notes] == [
        ("empty-class", "class `empty` has 0 photos and is left out")
    ]


def test_photos_outside_and_folders_inside_classes_are_explained(tmp_path: Path) -> None:
    put(tmp_path, "loose.jpg", "a/1.jpg", "a/inner/2.jpg", "a/inner/deeper/3.jpg", "b/1.jpg")
    found = scan(tmp_path)
    assert [p.path for p in found.photos if p.label == "a"] == [
        "a/1.jpg",
        "a/inner/2.jpg",
        "a/inner/deeper/3.jpg",
    ]
    loose, nested = found.notes
    assert "1 photo in the folder itself" in loose.message
    assert nested.message == "class `a` has 1 folder inside; their 2 photos count as `a`"


def test_folders_beside_train_and_other_files_are_noted(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "extra/1.jpg", "train/a/1.nef", "train/a/2.NEF")
    found = scan(tmp_path)
    assert kinds(found) == ["beside-splits", "other-files"]
    assert "2 .nef" in found.notes[1].message


@pytest.mark.parametrize("other", ["ROSA", " rosa", "rosa  ", "Rosa"])
def test_classes_that_look_alike_are_noted(tmp_path: Path, other: str) -> None:
    found = scan(put(tmp_path, "rosa/1.jpg", f"{other}/2.jpg"))
    if len(found.classes) < 2:
        pytest.skip("the file system joins the two names")
    assert kinds(found) == ["similar-classes"]


def test_folders_without_use_are_refused(tmp_path: Path) -> None:
    assert "no such folder" in refused(scan, tmp_path / "none").message
    assert "not a folder" in refused(scan, put(tmp_path, "file") / "file").message
    raw = put(tmp_path / "raw", "a/1.nef", "a/2.nef", "b/x.txt")
    error = refused(scan, raw)
    assert "found: 2 .nef, 1 .txt" in error.message
    assert ".jpg" in error.hint
    flat = put(tmp_path / "flat", "1.jpg", "2.jpg")
    assert "no class folders" in refused(scan, flat).message


def test_unlabelled_photos(tmp_path: Path) -> None:
    put(tmp_path, "2.jpg", "1.jpg", "sub/3.jpg", ".h.jpg")
    every = scan_unlabelled(tmp_path)
    assert [(p.path, p.label, p.split) for p in every.photos] == [
        ("1.jpg", None, "test"),
        ("2.jpg", None, "test"),
        ("sub/3.jpg", None, "test"),
    ]
    assert len(scan_unlabelled(tmp_path, recursive=False)) == 2
    assert every.classes == ()


def test_a_folder_that_cannot_be_read_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "c":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = scan(tmp_path)
    assert found.classes == ("a", "b")
    assert kinds(found) == ["empty-class", "unreadable-folder"]
    assert found.notes[0].message == "the folder cannot be read: permission denied"


def test_nothing_is_written_into_the_photos(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    table(tmp_path, "path,label\na/1.jpg,a\nb/2.jpg,b\n")
    before = {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob("*")]}
    scan(tmp_path)
    sources.read(tmp_path / "labels.csv")
    assert {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob("*")]} == before


@needs_photographs
def test_real_tree() -> None:
    found = scan(NATURE)
    assert [len(found.part(split)) for split in catalog.SPLITS] == [5359, 527, 948]
    assert len(found.classes) == 100
    assert found.notes == ()


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    one = scan(put(tmp_path / "one", "a/1.jpg", "a/2.jpg"))
    assert "at least two classes" in refused(catalog.require_trainable, one).message
    unlabelled = scan_unlabelled(put(tmp_path / "flat", "1.jpg"))
    assert "no photographs" in refused(catalog.require_trainable, unlabelled).message
    tree = put(tmp_path / "tree", "train/a/1.jpg", "train/b/1.jpg", "val/lynx/1.jpg")
    assert "`lynx`" in refused(catalog.require_trainable, scan(tree)).message
    shutil.rmtree(tree / "val")
    catalog.require_trainable(scan(tree))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return put(tmp_path, "p/1.jpg", "p/2.jpg", "p/3, three.jpg")


ROWS = (Photo("p/2.jpg", "oak"), Photo("p/1.jpg", "elm"))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dialects_of_csv(folder: Path, separator: str, end: str, encoding: str) -> None:
    lines = ["path,label", "p/2.jpg,oak", "p/1.jpg,elm", ""]
    text = end.join(lines).replace(",", separator)
    found = read_table(table(folder, text.encode(encoding)))
    assert found.photos == ROWS
    assert found.root == folder
    assert kinds(found) == ["file-without-row"]


def test_quoted_cells_and_other_encodings(folder: Path) -> None:
    text = 'file;species\n"p/3, three.jpg";"oak; ""white"""\np/1.jpg;Ulme\n'
    assert read_table(table(folder, text)).photos[0] == Photo("p/3, three.jpg", 'oak; "white"')
    latin = table(folder, "path,label\np/1.jpg,Wacholder (grün)\n".encode("latin-1"))
    error = refused(read_table, latin)
    assert "row 2: not text in UTF-8" in error.message
    assert "latin-1" in error.hint
    found = read_table(latin, encoding="latin-1")
    assert found.photos[0].label == "Wacholder (grün)"
    assert "unknown encoding" in refused(read_table, latin, encoding="latin-99").message


LABELS = ["01", "1", "1.0", "NA", "None", "null", "nan", " oak", "oak", "TRUE", "=1+1", "1e5"]


def test_labels_are_never_converted(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n}.jpg" for n in range(len(LABELS))))
    text = "path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(LABELS))
    assert [p.label for p in read_table(table(tmp_path, text)).photos] == LABELS


def test_all_columns(folder: Path) -> None:
    text = (
        "image,class,group,split,fold\n"
        'p/1.jpg,a,g1,train,0\np/2.jpg,b,,Valid,\n"p/3, three.jpg",,g1,test,\n'
    )
    assert read_table(table(folder, text)).photos == (
        Photo("p/1.jpg", "a", "g1", "train", 0),
        Photo("p/2.jpg", "b", None, "val", None),
        Photo("p/3, three.jpg", None, "g1", "test", None),
    )


def test_columns_may_be_named(folder: Path) -> None:
    text = "path,url,label,kind,site\nx,p/1.jpg,no,elm,s\nx,p/2.jpg,no,oak,t\n"
    found = sources.read(table(folder, text), path="url", label="kind", group="site")
    assert found.photos == (Photo("p/1.jpg", "elm", "s"), Photo("p/2.jpg", "oak", "t"))


def test_the_only_sensible_columns_are_taken(folder: Path) -> None:
    text = "what,where\noak,p/2.jpg\nelm,p/1.jpg\n"
    assert read_table(table(folder, text)).photos == ROWS


def test_a_missing_column_names_those_found_and_the_nearest(folder: Path) -> None:
    place = table(folder, "path,specie,site\np/1.jpg,elm,x\n")
    error = refused(read_table, place, label="species")
    assert "columns found: `path`, `specie`, `site`" in error.message
    assert error.hint == "did you mean `specie`?"
    error = refused(read_table, place)
    assert "no column for the label" in error.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "the table is empty"),
        (b"  \n\n", "the table is empty"),
        (b"path,label\n", "a header and no rows"),
        (b"path,label,path\na,b,c\n", "row 1: column `path` stands there twice"),
        (b"path,label\np/1.jpg,elm\n\np/2.jpg,oak,x\n", "row 4: 3 cells, the header has 2"),
        (b"path,label\np/1.jpg\n", "row 2: 1 cell, the header has 2"),
        (b"path,label\np/1.jpg,e\0lm\n", "row 2: a NUL byte"),
        (b'path,label\n"p/1.jpg,elm\n', "row 2: unexpected end of data"),
        (b"path,label,split\np/1.jpg,elm,later\n", "row 2: unknown split: `later`"),
        (b"path,label,fold\np/1.jpg,elm,1.5\n", "row 2: the fold is not a whole number: `1.5`"),
        (b"path,label,split,fold\np/1.jpg,elm,test,2\n", "row 2: the photo is in split `test`"),
        (b"path,label\np/1.jpg,\n", "no row has a label"),
    ],
)
def test_tables_that_cannot_be_read(folder: Path, text: bytes, expected: str) -> None:
    assert expected in refused(read_table, table(folder, text)).message


def test_no_such_table(tmp_path: Path) -> None:
    assert "no such file" in refused(sources.read, tmp_path / "none.csv").message
    put(tmp_path, "a/1.jpg")
    assert "`label` is for tables" in refused(sources.read, tmp_path, label="x").message
    assert sources.read(tmp_path) == scan(tmp_path)


def test_paths_are_resolved_by_rule(tmp_path: Path) -> None:
    put(tmp_path, "data/p/1.jpg", "data/p/2.JPG", "other/3.jpg", "data/p/é.jpg")
    decomposed = unicodedata.normalize("NFD", "p/é.jpg")
    text = "path,label\n" + "".join(
        f"{path},x\n"
        for path in ("p/1", "p\\2.JPG", "../other/3.jpg", tmp_path / "other/3.jpg", decomposed)
    )
    found = read_table(table(tmp_path / "data", text))
    assert [p.path for p in found.photos] == [
        "p/1.jpg",
        "p/2.JPG",
        (tmp_path / "other/3.jpg").as_posix(),
        "p/é.jpg",
    ]
    assert all(found.file(p).is_file() for p in found.photos)
    assert kinds(found) == ["repeated-row"]
    elsewhere = table(tmp_path / "tables", "path,label\np/1.jpg,x\n")
    assert read_table(elsewhere, root=tmp_path / "data").photos[0].path == "p/1.jpg"
    assert "give the folder" in refused(read_table, elsewhere).hint
    assert "no such folder" in refused(read_table, elsewhere, root=tmp_path / "x").message


def test_missing_files_and_files_without_rows_are_counted(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n}.jpg" for n in range(10)))
    text = "path,label\n0.jpg,a\n" + "".join(f"gone{n}.jpg,a\n" for n in range(7)) + "1.jpg,\n"
    found = read_table(table(tmp_path, text))
    assert kinds(found) == ["empty-label", "file-without-row", *["missing-file"] * 7]
    assert found.notes[0].message == "row 3: file not found"
    assert next(n.message for n in found.notes if n.kind == "empty-label").startswith("row 10:")
    assert found.notes[-1].message.startswith("8 photos without a row in the table: `2.jpg`")
    assert found.notes[-1].message.endswith("and 3 more")
    none = table(tmp_path, "path,label\n" + "".join(f"gone{n}.jpg,a\n" for n in range(7)))
    assert "`gone4.jpg` and 2 more" in refused(read_table, none).message


def test_one_photo_with_two_labels_keeps_both(folder: Path) -> None:
    found = read_table(table(folder, "path,label\np/1.jpg,a\np/1.jpg,b\np/1.jpg,b\n"))
    assert [p.label for p in found.photos] == ["a", "b"]


def test_a_list_to_predict_needs_no_labels(folder: Path) -> None:
    place = table(folder, "id\np/2.jpg\np/1.jpg\n")
    assert read_table(place, labelled=False).photos == (
        Photo("p/2.jpg", None, split="test"),
        Photo("p/1.jpg", None, split="test"),
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
PHOTOS = st.builds(
    Photo,
    path=TEXT,
    label=st.none() | TEXT | st.sampled_from(LABELS),
    group=st.none() | TEXT,
    split=st.sampled_from(catalog.SPLITS),
    fold=st.none() | st.integers(0, 99),
    sha256=st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64),
)


def test_files_are_where_the_photos_lie(tmp_path: Path) -> None:
    outside = str(tmp_path / "z.jpg")
    photos = tuple(Photo(path, "x") for path in ("a/1.jpg", "b.jpg", outside))
    found = Catalog(tmp_path / "root", photos).files
    places = [tmp_path / "root" / "a" / "1.jpg", tmp_path / "root" / "b.jpg", Path(outside)]
    assert list(found) == places and len(found) == 3
    assert list(found[1:]) == places[1:] and found[-1] == places[-1]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PHOTOS, max_size=6))
def test_rows_come_back_exactly(tmp_path: Path, photos: list[Photo]) -> None:
    written = Catalog(tmp_path, tuple(photos))
    catalog.write_rows(tmp_path / "catalog.csv", written)
    assert catalog.read_rows(tmp_path / "catalog.csv", tmp_path) == written


CATALOG = "path,label,group,split,fold,sha256\n"


@pytest.mark.parametrize("text", ["", "a,b\n", CATALOG + "x\n", CATALOG + "x,,,later,,\n", "\0"])
def test_what_is_not_a_catalog_is_refused(tmp_path: Path, text: str) -> None:
    assert "not a catalog" in refused(catalog.read_rows, table(tmp_path, text), tmp_path).message
    assert "not a catalog" in refused(catalog.read_rows, tmp_path / "none", tmp_path).message


def test_hashes_are_filled_in(folder: Path) -> None:
    found = scan(folder)
    hashed = catalog.with_hashes(found, ["ab"] * 3)
    assert [p.sha256 for p in hashed.photos] == ["ab"] * 3
    assert [p.sha256 for p in found.photos] == [""] * 3
