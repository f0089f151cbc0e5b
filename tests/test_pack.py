"""Packing, and everything that reads shards as it reads the folder they were packed from."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import draw_photo
from fits import Killed, killer, results, small_fit
from photos import save

from fieldguide import cli
from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.photos import pixels, sources
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.folders import scan, scan_unlabelled
from fieldguide.photos.inspect import inspect
from fieldguide.photos.pack import Packed, pack
from fieldguide.photos.tables import read_table
from fieldguide.predict import inputs
from fieldguide.runs import run as runs
from fieldguide.storage import files
from fieldguide.storage.shards import INDEX, opened


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def packed(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 discs in train and val, in shards of a few photos; read only."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    told = pack(scan(parts), out, shard_bytes=20_000)
    assert told == Packed(36, len(list(out.glob("*.tar"))), ())
    assert told.shards > 3
    return out


def test_shards_read_as_the_folder(parts: Path, packed: Path) -> None:
    there, here = scan(parts), scan(packed)
    assert here.photos == there.photos and here.classes == there.classes
    for one, other in zip(here.photos, there.photos, strict=True):
        assert pixels.read(here.file(one)) == pixels.read(there.file(other))
        assert pixels.sha256(here.file(one)) == files.sha256(there.file(other))
    assert inspect(here) == inspect(there)


def test_shards_are_tar_files_of_samples(parts: Path, packed: Path) -> None:
    seen: dict[str, bytes] = {}
    for path in sorted(packed.glob("*.tar")):
        assert path.stat().st_size <= 20_000 + 2 * tarfile.BLOCKSIZE
        with tarfile.open(path) as tar:
            names = tar.getnames()
            pairs = list(zip(names[::2], names[1::2], strict=True))
            for photo, about in pairs:
                assert photo.removesuffix(".jpg") == about.removesuffix(".json")
                said = json.loads(tar.extractfile(about).read())  # type: ignore[union-attr]
                seen[said["path"]] = tar.extractfile(photo).read()  # type: ignore[union-attr]
                assert said["label"] == said["path"].split("/")[1]
    assert seen == {p.path: (parts / p.path).read_bytes() for p in scan(parts).photos}


def test_each_shard_is_mixed(packed: Path) -> None:
    with tarfile.open(packed / "shard-000000.tar") as tar:
        said = [json.load(tar.extractfile(n)) for n in tar.getnames() if n.endswith(".json")]  # type: ignore[arg-type]
    assert len({each["label"] for each in said}) > 1


def test_packing_twice_gives_the_same_bytes(parts: Path, packed: Path, tmp_path: Path) -> None:
    pack(scan(parts), tmp_path / "again", shard_bytes=20_000)
    assert contents(tmp_path / "again") == contents(packed)
    pack(scan(packed), tmp_path / "from-shards", shard_bytes=20_000)
    assert contents(tmp_path / "from-shards") == contents(packed)


def test_a_fit_from_shards_equals_one_from_the_folder(
    parts: Path, packed: Path, tmp_path: Path
) -> None:
    folder = small_fit(parts, tmp_path / "folder")
    shards = small_fit(packed, tmp_path / "shards")
    assert results(shards) == results(folder)
    assert shards.catalog.photos == folder.catalog.photos
    moved = packed.rename(packed.with_name("moved"))
    try:
        found = runs.Run(shards.folder, photos=moved)
        assert pixels.read(found.catalog.file(found.catalog.photos[0]))
    finally:
        moved.rename(packed)


def test_a_fit_from_shards_side_by_side_and_resumed(packed: Path, tmp_path: Path) -> None:
    alone = small_fit(packed, tmp_path / "alone", cache="none")
    small_fit(packed, tmp_path / "parts", fold=1, cache="none")
    resumed = small_fit(packed, tmp_path / "parts", cache="none", workers=2)
    assert results(resumed) == results(alone)


def test_photos_in_the_order_of_shards_resume_to_the_same_bits(
    packed: Path, tmp_path: Path
) -> None:
    settings = {"order": "shards", "shuffle_buffer": 5, "epochs": 1, "warmup": 0}
    whole = small_fit(packed, tmp_path / "whole", **settings)
    for step in (1, 4, 8, 11):
        out, watcher = tmp_path / str(step), Watcher(on_step=killer(step))
        with pytest.raises(Killed):
            small_fit(packed, out, watcher=watcher, **settings, checkpoint_minutes=1e-9)
        assert results(small_fit(packed, out, **settings)) == results(whole), step
    mixed = small_fit(packed, tmp_path / "mixed", epochs=1, warmup=0)
    assert results(mixed) != results(whole)


def test_the_order_of_shards_needs_shards(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the photos are not in shards"):
        small_fit(parts, tmp_path / "run", order="shards")


def test_places_are_where_photos_lie(packed: Path) -> None:
    catalog = scan(packed)
    index = opened(catalog.root)
    for photo, (shard, offset) in zip(
        catalog.photos, index.places([photo.path for photo in catalog.photos]), strict=True
    ):
        entry = index.find(photo.path)
        assert entry and (entry.shard, entry.offset) == (shard, offset)
    with pytest.raises(DataError, match="`train/none` is none of the photos"):
        index.places(["train/none"])


def test_what_is_to_be_predicted_may_be_in_shards(packed: Path, parts: Path) -> None:
    found = inputs.read(packed)
    assert [each.name for each in found] == [each.name for each in inputs.read(parts)]
    assert all(each.file and pixels.read(each.file) for each in found)
    assert [p.path for p in scan_unlabelled(packed).photos] == [each.name for each in found]


def test_tables_keep_their_order_groups_and_folds(tmp_path: Path) -> None:
    outside = save(tmp_path / "elsewhere" / "z.jpg", 9)
    rows = ["path,label,group,split,fold"]
    for number in (5, 1, 3, 4):
        save(tmp_path / "photos" / f"{number}.JPG", number)
        rows.append(f"{number}.JPG,{'ab'[number % 2]},site {number},train,{number % 2}")
    rows.append(f"{outside},a,,val,")
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(rows))
    table = read_table(tmp_path / "photos" / "labels.csv")
    pack(table, tmp_path / "shards")
    inside = replace(table.photos[-1], path=outside.relative_to(outside.anchor).as_posix())
    assert scan(tmp_path / "shards").photos == (*table.photos[:-1], inside)


def test_a_photo_under_two_labels_stays_so(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", 1)
    photos = (Photo("a.jpg", "x"), Photo("a.jpg", "y"))
    pack(Catalog(tmp_path, photos), tmp_path / "shards")
    assert scan(tmp_path / "shards").photos == photos


def test_two_photos_under_one_path_are_refused(tmp_path: Path) -> None:
    there = save(tmp_path / "photos" / "a.jpg", 1)
    inside = there.relative_to(there.anchor).as_posix()
    save(tmp_path / "root" / inside, 2)
    photos = (Photo(str(there), "x"), Photo(inside, "x"))
    with pytest.raises(DataError, match="two photos would be packed as"):
        pack(Catalog(tmp_path / "root", photos), tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", 1)
    (tmp_path / "empty.jpg").touch()
    photos = tuple(Photo(name, "x") for name in ("a.jpg", "empty.jpg", "gone.jpg"))
    packed = pack(Catalog(tmp_path, photos), tmp_path / "shards")
    assert packed.left_out == (("empty.jpg", "empty file"), ("gone.jpg", "file not found")) or (
        packed.left_out == (("gone.jpg", "file not found"), ("empty.jpg", "empty file"))
    )
    assert [photo.path for photo in scan(tmp_path / "shards").photos] == ["a.jpg"]
    with pytest.raises(DataError, match="none of the 1 photos"):
        pack(Catalog(tmp_path, photos[1:2]), tmp_path / "nothing")


def test_interrupted_packing_leaves_nothing_that_looks_whole(
    parts: Path, packed: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        if done == 20:
            raise Stop

    out = tmp_path / "shards"
    with pytest.raises(Stop):
        pack(scan(parts), out, shard_bytes=20_000, progress=stop)
    assert not out.exists()
    assert not (tmp_path / "shards.part").exists()
    (tmp_path / "shards.part" / "folder").mkdir(parents=True)
    (tmp_path / "shards.part" / files.LOCK).touch()  # as a process that was killed leaves it
    pack(scan(parts), out, shard_bytes=20_000)
    assert contents(out) == contents(packed)
    assert not (tmp_path / "shards.part").exists()


def test_nothing_is_overwritten(parts: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        pack(scan(parts), packed)
    part = tmp_path / "shards.part"
    part.mkdir()
    with files.lock(part), pytest.raises(ResourceError, match="in use"):
        pack(scan(parts), tmp_path / "shards")


def test_a_missing_or_cut_shard_is_told(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    scan(tmp_path)
    (tmp_path / "shard-000001.tar").unlink()
    whole = tmp_path / "shard-000002.tar"
    whole.write_bytes(whole.read_bytes()[:-512])
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    size = whole.stat().st_size
    assert caught.value.message.splitlines()[1:] == [
        "  `shard-000001.tar`: missing",
        f"  `shard-000002.tar`: {size:,} bytes, indexed with {size + 512:,}",
    ]


def test_flipped_bytes_are_told_of_the_photo(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    changed = bytearray((packed / "shard-000000.tar").read_bytes())
    changed[700] ^= 1
    (tmp_path / "shard-000000.tar").write_bytes(changed)
    found = [fact.problem for fact in inspect(scan(tmp_path)) if fact.problem]
    assert found == ["`shard-000000.tar` holds other bytes than its index says"]


def test_a_shard_that_vanishes_is_told(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    catalog = scan(tmp_path)
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    facts = inspect(catalog)
    assert {fact.problem.replace("00000", "")[:13] for fact in facts} == {"the shard `sh"}
    with pytest.raises(OSError, match="is missing"):
        pixels.sha256(catalog.file(catalog.photos[0]))


@pytest.mark.parametrize("change", [b"", b"{}\n", b"no JSON\n", b'{"format": 2}\n'])
def test_a_damaged_index_is_told(packed: Path, tmp_path: Path, change: bytes) -> None:
    (tmp_path / INDEX).write_bytes(change)
    with pytest.raises(ResourceError, match="index of shards is damaged"):
        scan(tmp_path)


@pytest.mark.parametrize("where", ["line", "end"])
def test_a_damaged_line_of_an_index_is_told(packed: Path, tmp_path: Path, where: str) -> None:
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    lines = (packed / INDEX).read_bytes().splitlines(keepends=True)
    lines[3] = b"[1, 2]\n" if where == "line" else lines[3]
    (tmp_path / INDEX).write_bytes(b"".join(lines[: None if where == "line" else -1]))
    with pytest.raises(ResourceError, match="index of shards is damaged"):
        scan(tmp_path)


def test_odd_paths_are_found(tmp_path: Path) -> None:
    names = [
        "ü/名前 😀.jpg",
        'a "quoted", one.jpg',
        "new\nline.jpg",
        "\udcff.jpg",
        "a.jpg",
        "z/0.jpg",
    ]
    for number, name in enumerate(names):
        save(tmp_path / "photos" / name, number)
    catalog = Catalog(tmp_path / "photos", tuple(Photo(name, "x") for name in names))
    pack(catalog, tmp_path / "shards")
    found = scan(tmp_path / "shards")
    assert found.photos == catalog.photos
    for photo in found.photos:
        assert pixels.read(found.file(photo)) == pixels.read(catalog.file(photo))
    with pytest.raises(DataError, match="file not found"):
        pixels.read(found.root / "b.jpg")


def test_the_command(
    tmp_path: Path, plain_consoles: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        draw_photo(tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg", (9, 9, 9), number)
    (tmp_path / "photos" / "a" / "empty.jpg").touch()
    photos, out = str(tmp_path / "photos"), str(tmp_path / "shards")
    assert cli.run(["pack", photos, "--out", out, "--shard-mb", "0.003"]) == 0
    said = capsys.readouterr()
    assert said.out == f"4 photos in 4 shards: {out}\n"
    assert "left out: a/empty.jpg: empty file" in said.err
    assert cli.run(["pack", photos, "--out", out]) == 2
    assert cli.run(["pack", photos, "--out", photos + "/a/shards"]) == 2
    assert cli.run(["pack", photos, "--out", out + "2", "--shard-mb", "0"]) == 2
    assert cli.run(["check", out, "--folds", "2"]) == 0
    assert sources.read(out).photos == tuple(
        photo for photo in scan(photos).photos if "empty" not in photo.path
    )
