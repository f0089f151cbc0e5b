"""Tar files of others: WebDataset's, or any."""

import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest
from fits import small_fit
from photos import jpeg

from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.fitting import places
from fieldguide.fitting.progress import Watcher
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Note, Photo
from fieldguide.photos.folders import scan
from fieldguide.predict import inputs
from fieldguide.storage import files, shards
from fieldguide.storage.shards import INDEX


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_classes_of_webdataset_are_labels(tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "shards"
    write_tar(
        place / "train-0000.tar",
        {"001.cls": b"7\n", "001.jpg": jpeg(1), "002.jpg": jpeg(2), "002.cls": b"3"},
    )
    about = json.dumps({"label": 3, "group": "pond"}).encode()
    write_tar(place / "val-0000.tar", {"./x/003.jpg": jpeg(3), "./x/003.json": about})
    found = scan(place)
    assert found.photos == (
        Photo("train-0000/002.jpg", "3"),
        Photo("train-0000/001.jpg", "7"),
        Photo("val-0000/x/003.jpg", "3", "pond", "val"),
    )
    assert [pixels.read(found.file(photo)) for photo in found.photos] == [jpeg(2), jpeg(1), jpeg(3)]
    assert sorted(path.name for path in place.iterdir()) == ["train-0000.tar", "val-0000.tar"]
    assert [each.name for each in inputs.read(place)] == sorted(p.path for p in found.photos)


def test_keys_of_usual_names_are_labels(tmp_path: Path, cache: Path) -> None:
    members = {}
    for number, about in enumerate(
        (
            {"Species": "oak", "event_id": "e1", "subset": "val"},
            {"species": ["elm"]},
            {"species": ["elm", "oak"]},
            {"species": {"name": "elm"}},
            {"note": "x"},
        )
    ):
        members[f"{number}.jpg"] = jpeg(number)
        members[f"{number}.json"] = json.dumps(about).encode()
    write_tar(tmp_path / "shards" / "a.tar", members)
    found = scan(tmp_path / "shards")
    assert found.photos == (Photo("a/1.jpg", "elm"), Photo("a/0.jpg", "oak", "e1", "val"))
    kinds = [(note.kind, note.path) for note in found.notes]
    assert kinds.count(("left-out", "")) == 1
    assert [path for kind, path in kinds if kind == "empty-label"] == [
        f"a/{number}.jpg" for number in (2, 3, 4)
    ]


def test_folders_within_tar_files_are_labels(tmp_path: Path, cache: Path) -> None:
    for split in ("train", "test"):
        write_tar(
            tmp_path / "tars" / split / "1.tar", {"oak/a.b.jpg": jpeg(1), "elm/c.JPG": jpeg(2)}
        )
    write_tar(tmp_path / "tars" / "train" / "2.tar", {"oak/a.b.jpg": jpeg(3)})
    assert scan(tmp_path / "tars").photos == (
        Photo("train/1/elm/c.JPG", "elm"),
        Photo("train/1/oak/a.b.jpg", "oak"),
        Photo("train/2/oak/a.b.jpg", "oak"),
        Photo("test/1/elm/c.JPG", "elm", split="test"),
        Photo("test/1/oak/a.b.jpg", "oak", split="test"),
    )


def test_of_several_pictures_in_a_sample_the_plain_one_is_used(tmp_path: Path, cache: Path) -> None:
    members = {"1.mask.png": jpeg(1), "1.jpg": jpeg(2), "1.cls": b"oak"}
    write_tar(tmp_path / "tars" / "1.tar", members)
    found = scan(tmp_path / "tars")
    assert found.photos == (Photo("1/1.jpg", "oak"),)
    assert [note.message for note in found.notes] == [
        "left out: 1 pictures beside the photo that their labels are of, such as masks"
    ]


def test_names_with_dots_keep_their_own_labels(tmp_path: Path, cache: Path) -> None:
    said = {"IMG.0001": "oak", "IMG.0002": "elm", "IMG_7.crop_000": "fir", "IMG_7.crop_001": "oak"}
    members = {}
    for number, (name, label) in enumerate(said.items()):
        members[f"{name}.jpg"] = jpeg(number)
        members[f"{name}.json"] = json.dumps({"label": label}).encode()
    members |= {"IMG_8.jpg": jpeg(8), "IMG_8.cls": b"fir", "IMG_8.crop.png": jpeg(9)}
    members |= {"IMG_8.crop.cls": b"elm", "IMG_9.left.jpg": jpeg(10), "IMG_9.right.jpg": jpeg(11)}
    members |= {"IMG_9.cls": b"yew", "IMG.0003.cls": b"yew", "IMG.0004.jpg": jpeg(12)}
    write_tar(tmp_path / "tars" / "1.tar", members)
    found = scan(tmp_path / "tars")
    labels = {photo.path.removeprefix("1/"): photo.label for photo in found.photos}
    assert labels == {f"{name}.jpg": label for name, label in said.items()} | {
        "IMG_8.jpg": "fir",
        "IMG_8.crop.png": "elm",
        "IMG_9.left.jpg": "yew",
        "IMG_9.right.jpg": "yew",
    }
    assert all(
        pixels.read(found.file(photo)) == members[photo.path.removeprefix("1/")]
        for photo in found.photos
    )
    notes = {note.kind: note for note in found.notes}
    assert notes["empty-label"].path == "1/IMG.0004.jpg"  # another photo's labels are not its own
    assert notes["samples"].message.startswith(
        "5 photos whose names hold dots have labels of their"
    )


def test_an_index_of_another_rule_is_made_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"IMG.0001.jpg": jpeg(1), "IMG.0001.cls": b"oak"}
    write_tar(tmp_path / "tars" / "1.tar", members)
    with monkeypatch.context() as patch:
        patch.setattr("fieldguide.storage.shards._RULE", 0)
        scan(tmp_path / "tars")
    made: list[Path] = []
    original = shards.write_index
    monkeypatch.setattr(
        shards, "write_index", lambda path, *a, **k: (made.append(path), original(path, *a, **k))
    )
    scan(tmp_path / "tars")
    scan(tmp_path / "tars")
    assert len(made) == 1


def test_what_cannot_be_used_is_noted(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tars" / "1.tar"
    write_tar(path, {"oak/1.jpg": jpeg(1)})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("oak/2.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("../3.jpg", "/4.jpg", "oak/1.jpg", "5.jpg", "oak/._6.jpg", "notes.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(jpeg(2))
            tar.addfile(member, io.BytesIO(jpeg(2)))
    found = scan(tmp_path / "tars")
    assert found.photos == (Photo("1/oak/1.jpg", "oak"),)
    assert pixels.read(found.file(found.photos[0])) == jpeg(1)
    notes = {(note.kind, note.path, note.message) for note in found.notes}
    assert notes == {
        ("empty-label", "1/5.jpg", "no label in the shard, left out"),
        ("left-out", "", "left out: 1 links, devices and sparse files in tar files"),
        ("left-out", "", "left out: 1 photos whose name stands twice in a tar file"),
        ("left-out", "", "left out: 2 files in tar files whose names lead out of them"),
    }
    assert all(isinstance(note, Note) for note in found.notes)


def test_tar_files_are_indexed_once_and_when_they_change(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tars"
    write_tar(place / "1.tar", {"oak/1.jpg": jpeg(1)})
    first = scan(place)
    (index,) = cache.glob(f"shards/*/{INDEX}")
    before = index.stat()
    assert scan(place) == first and index.stat() == before
    write_tar(place / "1.tar", {"oak/1.jpg": jpeg(2), "oak/2.jpg": jpeg(3)})
    again = scan(place)
    assert [pixels.read(again.file(photo)) for photo in again.photos] == [jpeg(2), jpeg(3)]


@pytest.mark.parametrize("damage", ["header", "cut", "cut at a file", "compressed"])
def test_a_damaged_tar_file_is_told(tmp_path: Path, cache: Path, damage: str) -> None:
    path = tmp_path / "tars" / "1.tar"
    write_tar(path, {"oak/1.jpg": jpeg(1), "oak/2.jpg": jpeg(2)})
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1]
    if damage == "header":
        data[second.offset] ^= 0xFF
    elif damage == "cut":
        del data[second.offset_data + 100 :]
    elif damage == "cut at a file":
        del data[second.offset :]
    else:
        data[:2] = b"\x1f\x8b"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"the tar file cannot be read: .*1\.tar"):
        scan(path.parent)
    assert not list(cache.glob(f"shards/*/{INDEX}"))


def test_a_folder_with_photos_beside_a_tar_file_is_a_folder_of_photos(tmp_path: Path) -> None:
    write_tar(tmp_path / "oak" / "backup.tar", {"oak/1.jpg": jpeg(1)})
    (tmp_path / "oak" / "1.jpg").write_bytes(jpeg(1))
    write_tar(tmp_path / "backup.tar", {"oak/1.jpg": jpeg(1)})
    (tmp_path / "elm").mkdir()
    (tmp_path / "elm" / "1.jpg").write_bytes(jpeg(2))
    assert [photo.path for photo in scan(tmp_path).photos] == ["elm/1.jpg", "oak/1.jpg"]


def test_without_photos_or_labels_the_reason_is_told(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "tars" / "1.tar", {"1.jpg": jpeg(1)})
    with pytest.raises(DataError, match="no labelled photographs in the shards of"):
        scan(tmp_path / "tars")


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_photo_below_no_index_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file not found"):
        pixels.read(tmp_path / "file" / "1.jpg")


def test_notes_in_parquet_files_beside_tar_files_are_no_shards(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "tars" / "00000.tar", {"oak/1.jpg": jpeg(1)})
    (tmp_path / "tars" / "00000.parquet").write_bytes(b"urls and captions")
    assert scan(tmp_path / "tars").photos == (Photo("00000/oak/1.jpg", "oak"),)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"a\.parquet` needs pyarrow") as caught:
        scan(tmp_path)
    assert caught.value.hint == "pip install 'fieldguide[parquet]'"


def test_other_photos_in_shards_are_noticed_on_another_machine(tmp_path: Path, cache: Path) -> None:
    for name, members in {"one": (1, 2, 3), "other": (1, 2, 4)}.items():
        photos = {
            f"{label}/{n}.jpg": jpeg(n + len(label) * 10)
            for n in members
            for label in ("elm", "lime")
        }
        write_tar(tmp_path / name / "1.tar", photos)
    one, other = scan(tmp_path / "one"), scan(tmp_path / "other")
    run = small_fit(one, tmp_path / "run", fold=0, epochs=1, warmup=0.0)
    assert places._fingerprint(run, one.root) == places._fingerprint(run, one.root)
    assert places._fingerprint(run, one.root) != places._fingerprint(run, other.root)


def test_tar_files_that_are_away_are_waited_for(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WAITS", (0.0,))
    members = {
        f"{label}/{n}.jpg": jpeg(n + len(label) * 10) for n in range(4) for label in ("elm", "lime")
    }
    write_tar(tmp_path / "tars" / "1.tar", members)
    steps: list[int] = []

    def vanish() -> None:
        steps.append(1)
        if len(steps) == 1:
            (tmp_path / "tars").rename(tmp_path / "away")

    watcher = Watcher(on_step=vanish)
    with pytest.raises(ResourceError, match=r"the photos' folder `.*tars` is gone"):
        small_fit(tmp_path / "tars", tmp_path / "run", watcher=watcher, cache="none")
