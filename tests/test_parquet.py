"""Photos in Parquet files, as the Hugging Face Hub has them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fits import results, small_fit
from photos import jpeg
from test_shards import write_tar

from fieldguide import cli
from fieldguide.errors import DataError, ResourceError
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.folders import scan
from fieldguide.photos.sources import read
from fieldguide.predict import inputs
from fieldguide.storage import files
from fieldguide.storage.shards import INDEX

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.usefixtures("cache")


def picture(seed: int, path: str | None = None) -> dict[str, Any]:
    return {"bytes": jpeg(seed), "path": path}


def write(
    path: Path,
    columns: dict[str, Sequence[Any]],
    classes: Sequence[str] | None = None,
    types: dict[str, Any] | None = None,
    rows: int = 3,
) -> Path:
    """A Parquet file with row groups of a few rows, as `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: pa.array(each, (types or {}).get(name)) for name, each in columns.items()}
    table = pa.table(arrays)
    if classes is not None:
        features = {"label": {"names": list(classes), "_type": "ClassLabel"}}
        said = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(said)})
    parquet.write_table(table, path, row_group_size=rows)
    return path


def contents(found: Catalog) -> list[bytes]:
    return [pixels.read(found.file(photo)) for photo in found.photos]


def test_a_list_of_one_label_is_the_label(tmp_path: Path) -> None:
    columns = {
        "image": [picture(n) for n in range(4)],
        "Species": [["elm"], ["oak"], [], ["a", "b"]],
    }
    write(tmp_path / "hub" / "train.parquet", columns)
    found = scan(tmp_path / "hub")
    assert [photo.label for photo in found.photos] == ["elm", "oak"]
    assert any("labels of photos that have several" in note.message for note in found.notes)


def test_classes_of_hugging_face_are_labels(tmp_path: Path) -> None:
    place = tmp_path / "hub"
    columns = {"image": [picture(n) for n in range(4)], "label": [1, 0, -1, 1]}
    write(place / "data" / "train-00000-of-00001.parquet", columns, ["elm", "oak"])
    test = {"image": [picture(9)], "label": [0]}
    write(place / "data" / "test-00000-of-00001.parquet", test, ["elm", "oak"])
    (place / "README.md").write_text("a card")
    found = scan(place)
    train, other = "data/train-00000-of-00001", "data/test-00000-of-00001"
    assert found.photos == (
        Photo(f"{train}/00000001.jpg", "elm"),
        Photo(f"{train}/00000000.jpg", "oak"),
        Photo(f"{train}/00000003.jpg", "oak"),
        Photo(f"{other}/00000000.jpg", "elm", split="test"),
    )
    assert contents(found) == [jpeg(1), jpeg(0), jpeg(3), jpeg(9)]
    (note,) = found.notes
    assert (note.kind, note.path) == ("empty-label", f"{train}/00000002.jpg")
    assert [each.name for each in inputs.read(place)] == [
        f"{other}/00000000.jpg",
        *(f"{train}/0000000{number}.jpg" for number in range(4)),
    ]
    assert sorted(path.name for path in place.rglob("*.*")) == sorted(
        ["README.md", "test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    )


def test_plain_bytes_with_text_for_labels_groups_and_splits(tmp_path: Path) -> None:
    columns = {
        "JPG": [jpeg(1), jpeg(2), jpeg(3)],
        "Species": [" 01", "NA", " 01"],
        "group_id": [7, None, 7],
        "split": ["train", "Validation", "test"],
        "embedding": [[0.5], [0.5], [0.5]],
    }
    found = scan(write(tmp_path / "set" / "all.parquet", columns).parent)
    assert found.photos == (
        Photo("all/00000000.jpg", " 01", "7"),
        Photo("all/00000001.jpg", "NA", None, "val"),
        Photo("all/00000002.jpg", " 01", "7", "test"),
    )
    assert contents(found) == [jpeg(1), jpeg(2), jpeg(3)]


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_any_column_of_bytes_that_is_alone(tmp_path: Path, kind: str) -> None:
    columns = {"what": [jpeg(1), jpeg(2)], "class": [3, 1]}
    write(tmp_path / "set" / "a.parquet", columns, types={"what": getattr(pa, kind)()})
    found = scan(tmp_path / "set")
    assert [photo.label for photo in found.photos] == ["1", "3"]
    assert contents(found) == [jpeg(2), jpeg(1)]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["oak/1.jpg", "oak/2.png"], ["oak/1.jpg", "oak/2.png"]),
        (["1.jpg", "1.jpg"], ["00000000.jpg", "00000001.jpg"]),
        (["1.jpg", None], ["00000000.jpg", "00000001.jpg"]),
        (["1.jpg", "../2.jpg"], ["00000000.jpg", "00000001.jpg"]),
        (["1.jpg", "./2.jpg"], ["00000000.jpg", "00000001.jpg"]),
        (["1.jpg", "/2.jpg"], ["00000000.jpg", "00000001.jpg"]),
    ],
)
def test_names_are_those_in_the_file_where_each_has_its_own(
    tmp_path: Path, given: list[str | None], names: list[str]
) -> None:
    columns = {"image": [picture(n, name) for n, name in enumerate(given)], "label": ["oak"] * 2}
    found = scan(write(tmp_path / "set" / "a.parquet", columns).parent)
    assert [photo.path for photo in found.photos] == [f"a/{name}" for name in names]
    assert contents(found) == [jpeg(0), jpeg(1)]


def test_a_fit_equals_those_from_a_folder_and_from_tar_files(parts: Path, tmp_path: Path) -> None:
    photos = sorted((parts / "train").rglob("*.jpg"), key=lambda path: path.name)
    names = [path.relative_to(parts / "train").as_posix() for path in photos]
    data = [path.read_bytes() for path in photos]
    columns = {
        "image": [{"bytes": d, "path": n} for d, n in zip(data, names, strict=True)],
        "label": [path.parent.name for path in photos],
    }
    rows = write(tmp_path / "rows" / "train.parquet", columns, rows=5).parent
    write_tar(tmp_path / "tars" / "train.tar", dict(zip(names, data, strict=True)))
    for name, content in zip(names, data, strict=True):
        (tmp_path / "folder" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / "train" / name).write_bytes(content)
    short: dict[str, Any] = {"epochs": 1, "warmup": 0, "cache": "none"}
    first = small_fit(rows, tmp_path / "run", **short)
    assert first.complete
    assert results(first) == results(small_fit(tmp_path / "tars", tmp_path / "of-tars", **short))
    assert results(first) == results(small_fit(tmp_path / "folder", tmp_path / "2", **short))
    in_order = small_fit(rows, tmp_path / "in-order", **short, order="shards")
    assert in_order.complete and results(in_order) != results(first)


def test_the_commands(
    discs: Path,
    tmp_path: Path,
    plain_consoles: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    photos = sorted(discs.rglob("*.jpg"))
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in photos],
        "label": [path.parent.name for path in photos],
    }
    place = write(tmp_path / "set" / "discs.parquet", columns).parent
    assert cli.run(["check", str(place)]) == 0
    assert " train  24      3 " in capsys.readouterr().out
    assert cli.run(["pack", str(place), "--out", str(tmp_path / "packed")]) == 0
    assert sorted(contents(scan(tmp_path / "packed"))) == sorted(contents(scan(place)))


def test_photos_are_copied_once_and_when_they_change(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "set" / "a.parquet", {"image": [jpeg(1)], "label": ["oak"]})
    first = scan(path.parent)
    (index,) = cache.glob(f"shards/*/{INDEX}")
    before = index.stat()
    assert scan(path.parent) == first and index.stat() == before
    (copy,) = index.parent.glob("*.photos")
    assert copy.read_bytes() == jpeg(1)
    copy.unlink()
    with pytest.raises(DataError, match=r"the shard `a\.parquet` is missing"):
        contents(first)
    assert contents(scan(path.parent)) == [jpeg(1)]
    write(path, {"image": [jpeg(2), jpeg(3)], "label": ["oak", "oak"]})
    assert contents(scan(path.parent)) == [jpeg(2), jpeg(3)]


def test_what_cannot_be_used_is_noted(tmp_path: Path) -> None:
    columns = {
        "image": [picture(1), None, {"bytes": None, "path": "elsewhere.jpg"}, picture(2)],
        "label": [0, 0, 0, 2],
    }
    path = write(tmp_path / "set" / "a.parquet", columns, ["elm", "oak"])
    found = scan(path.parent)
    assert found.photos == (Photo("a/00000000.jpg", "elm"),)
    assert {(note.kind, note.message) for note in found.notes} == {
        ("empty-label", "no label in the shard, left out"),
        ("left-out", "left out: 1 labels that are the number of no class"),
        ("left-out", "left out: 2 rows without the bytes of a picture"),
    }


def test_no_bytes_at_all_are_an_empty_file(tmp_path: Path) -> None:
    columns = {"image": [jpeg(1), b""], "label": ["oak", "oak"]}
    found = scan(write(tmp_path / "set" / "a.parquet", columns).parent)
    with pytest.raises(DataError, match="empty file"):
        pixels.read(found.file(found.photos[1]))


@pytest.mark.parametrize("metadata", ["no JSON", "{}", '{"info": {"features": {"label": {}}}}'])
def test_numbers_without_names_stay_numbers(tmp_path: Path, metadata: str) -> None:
    table = pa.table({"image": [jpeg(1)], "label": [3]})
    table = table.replace_schema_metadata({"huggingface": metadata})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "a.parquet")
    assert [photo.label for photo in scan(tmp_path / "set").photos] == ["3"]


def test_a_file_without_pictures_tells_its_columns(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", {"text": ["a"], "label": [1]})
    said = r"no column of pictures in .*a\.parquet; columns found: `text` \(string\), `label` \(int"
    with pytest.raises(DataError, match=said):
        scan(tmp_path / "set")
    write(tmp_path / "set" / "a.parquet", {"one": [b"a"], "other": [b"b"]})
    with pytest.raises(DataError, match=r"`one` \(binary\), `other` \(binary\)"):
        scan(tmp_path / "set")


def test_without_labels_there_is_nothing_to_learn_but_to_predict(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", {"image": [picture(1)], "label": [["a", "list"]]})
    with pytest.raises(DataError, match="no labelled photographs in the shards of") as caught:
        scan(tmp_path / "set")
    assert "a column of such a name" in caught.value.hint
    assert [each.name for each in inputs.read(tmp_path / "set")] == ["a/00000000.jpg"]


@pytest.mark.parametrize("damage", ["end", "page", "empty", "text"])
def test_a_damaged_file_is_told(tmp_path: Path, cache: Path, damage: str) -> None:
    columns = {"image": [picture(n) for n in range(6)], "label": ["oak"] * 6}
    path = write(tmp_path / "set" / "a.parquet", columns)
    data = bytearray(path.read_bytes())
    if damage == "end":
        del data[len(data) // 2 :]
    elif damage == "page":
        data[4:40] = bytes(36)
    else:
        data[:] = b"" if damage == "empty" else b"<html>not found</html>"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"the Parquet file cannot be read: .*a\.parquet: "):
        scan(path.parent)
    assert {each.name for each in cache.rglob("*") if each.is_file()} <= {"source.txt", files.LOCK}


def test_a_cache_folder_that_cannot_be_written_is_told(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "set" / "a.parquet", {"image": [jpeg(1)], "label": ["oak"]})
    cache.write_text("no folder")
    with pytest.raises(ResourceError, match="cannot"):
        scan(path.parent)


def test_a_single_file_is_pointed_to_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "set" / "a.parquet", {"image": [jpeg(1)], "label": ["oak"]})
    with pytest.raises(DataError, match="not a table in plain text") as caught:
        read(path)
    assert caught.value.hint == "name the folder that the Parquet files lie in"
    (one,) = inputs.read(path)
    assert one.file
    with pytest.raises(DataError, match=r"not an image \(a Parquet file\)"):
        pixels.load(one.file)
