"""Copies of what lies elsewhere: listed, verified, removed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from far import Far
from photos import encoded, photograph
from test_shards import write_tar

from fieldguide import cli
from fieldguide.photos.folders import scan
from fieldguide.predict import inputs
from fieldguide.storage import addresses, cache_folder, copies, files, mirror

PHOTOS, RUN = "far://photos", "far://bucket/run"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, plain_consoles: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no waits."""
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(addresses, "WAITS", (0.0,) * 5)
    monkeypatch.setattr(Far, "fault", staticmethod(lambda what, path: None))
    Far.store.clear()
    yield tmp_path / "cache"
    Far.store.clear()


def fetched() -> cache_folder.Kept:
    for name in ("elm/1.jpg", "oak/1.jpg"):
        Far().pipe_file(f"{PHOTOS}/{name}", encoded(photograph(len(name))))
    scan(PHOTOS)
    return next(copy for copy in copies.copies(cache_folder.root()) if copy.name == PHOTOS)


def run() -> cache_folder.Kept:
    with mirror.mirrored(RUN) as folder:
        (folder / "weights").write_bytes(b"12345")
        (folder / "recipe.toml").write_bytes(b"1")
        files.write_manifest(folder, ["weights"])
    return next(copy for copy in copies.copies(cache_folder.root()) if copy.kind == "run")


def indexed(tmp_path: Path) -> cache_folder.Kept:
    write_tar(tmp_path / "tars" / "1.tar", {"oak/1.jpg": encoded(photograph(1))})
    scan(tmp_path / "tars")
    return next(copy for copy in copies.copies(cache_folder.root()) if copy.kind == "shards")


def end_of_processes() -> None:
    """As if the processes that used copies had ended."""
    for descriptor in cache_folder._in_use.values():
        os.close(descriptor)
    cache_folder._in_use.clear()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_copies_are_listed_with_what_they_are_of(tmp_path: Path, root: Path) -> None:
    (root / "remote").mkdir(parents=True)
    (root / "remote" / "strangers").mkdir()
    (root / "remote" / ("0" * 32)).symlink_to(tmp_path, target_is_directory=True)
    made = [fetched(), run(), indexed(tmp_path)]
    assert copies.copies(root) == made
    assert [(copy.kind, copy.name) for copy in made] == [
        ("photos", PHOTOS),
        ("run", RUN),
        ("shards", str(tmp_path / "tars")),
    ]
    assert all(copy.bytes == size_of(copy.path) > 0 for copy in made)
    assert all(abs(copy.used - time.time()) < 600 for copy in made)
    assert not any(copies.faults(copy) for copy in made)


def test_a_single_photo_is_a_copy(root: Path) -> None:
    Far().pipe_file(f"{PHOTOS}/1.jpg", encoded(photograph(1)))
    inputs.read(f"{PHOTOS}/1.jpg")
    (copy,) = copies.copies(root)
    assert (copy.kind, copy.name) == ("photos", f"{PHOTOS}/1.jpg")
    assert not copies.faults(copy)


def test_using_a_copy_is_noted(root: Path) -> None:
    folder = fetched().path
    os.utime(folder / "source.txt", (0, 0))
    assert copies.copies(root)[0].used == 0
    scan(PHOTOS)
    assert copies.copies(root)[0].used > 0


def test_damage_is_found(tmp_path: Path) -> None:
    photos, sent, index = fetched(), run(), indexed(tmp_path)
    (photos.path / "files" / "elm" / "1.jpg").write_bytes(b"cut")
    (photos.path / "files" / "oak" / "1.jpg").unlink()
    said = copies.faults(photos)
    assert said[0].startswith("elm/1.jpg: 3 of ") and said[1:] == ["oak/1.jpg: missing"]
    (photos.path / "files.json").write_text("no JSON")
    assert "files.json cannot be read" in copies.faults(photos)[0]
    (photos.path / "files.json").write_text('{"elm/1.jpg": 3}')
    assert "files.json cannot be read" in copies.faults(photos)[0]
    (sent.path / "run" / "weights").write_bytes(b"12346")
    (fault,) = copies.faults(sent)
    assert "weights: SHA-256" in fault
    place = next(index.path.glob("photos.index"))
    place.write_bytes(place.read_bytes()[:-9])
    assert "the index of shards is damaged" in copies.faults(index)[0]


def test_bytes_from_parquet_files_are_compared(tmp_path: Path, root: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "set").mkdir()
    table = pa.table({"image": [encoded(photograph(1))], "label": ["oak"]})
    parquet.write_table(table, tmp_path / "set" / "a.parquet")
    scan(tmp_path / "set")
    (copy,) = copies.copies(root)
    assert not copies.faults(copy)
    (photos,) = copy.path.glob("*.photos")
    photos.write_bytes(bytes(photos.stat().st_size))
    (fault,) = copies.faults(copy)
    assert fault.startswith("a/00000000.jpg: ") and "holds other bytes" in fault


def test_what_is_not_used_is_removed(tmp_path: Path, root: Path) -> None:
    made = [fetched(), run(), indexed(tmp_path)]
    end_of_processes()
    assert [copies.remove(copy) for copy in made] == ["", "", ""]
    assert not copies.copies(root) and not size_of(root)
    assert fetched().count == made[0].count
    with mirror.mirrored(RUN) as folder:
        assert (folder / "weights").read_bytes() == b"12345"


@pytest.mark.skipif(os.name == "nt", reason="needs locks that are shared")
def test_what_another_process_uses_stays(root: Path) -> None:
    copy = fetched()
    assert copies.remove(copy) == "a process uses it"
    end_of_processes()
    script = (
        "import sys\nfrom pathlib import Path\nfrom fieldguide.storage import cache_folder\n"
        "cache_folder.use(Path(sys.argv[1]), 'there')\n"
        "print('used', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(copy.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout and other.stdout.readline() == "used\n"
        assert copies.remove(copy) == "a process uses it"
        assert copies.copies(root) != []
        other.communicate()
    assert copies.remove(copy) == ""


def test_what_is_being_written_stays(root: Path) -> None:
    copy = fetched()
    end_of_processes()
    with files.lock(copy.path):
        assert copies.remove(copy) == "a process uses it"
    assert copies.copies(root)


def test_a_run_that_was_not_sent_stays(root: Path) -> None:
    copy = run()
    end_of_processes()
    (copy.path / "run" / "weights").write_bytes(b"trained while nobody answered")
    assert copies.remove(copy) == "1 file of the run not sent yet: `fit` sends them"
    with mirror.mirrored(RUN):
        pass
    end_of_processes()
    assert copies.remove(copy) == ""


def test_an_interrupted_removal_is_gone_on_with(root: Path) -> None:
    copy = fetched()
    end_of_processes()
    copy.path.rename(copy.path.with_suffix(".gone"))
    (left,) = copies.copies(root)
    assert copies.remove(left) == "" and not copies.copies(root)


def test_the_command_lists_verifies_and_clears(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [fetched(), run(), indexed(tmp_path)]
    photos = made[0]
    end_of_processes()
    assert cli.run(["cache", "--verify"]) == 0
    said = capsys.readouterr()
    rows = [line.split()[:3] for line in said.out.splitlines()]
    assert [PHOTOS, "photos", f"{photos.count}"] in rows
    assert [RUN, "run", f"{made[1].count}"] in rows
    assert ["all", "copies", f"{sum(copy.count for copy in made)}"] in rows
    assert said.err == "3 copies are as they were written\n"
    (photos.path / "files" / "elm" / "1.jpg").unlink()
    assert cli.run(["cache", "--verify"]) == 4
    said = capsys.readouterr()
    assert f"damaged: {PHOTOS}: elm/1.jpg: missing\n" in said.err
    assert "1 of 3 copies are damaged" in said.err
    os.utime(photos.path / "source.txt", (0, 0))
    assert cli.run(["cache", "--older-than", "3"]) == 0
    assert [copy.kind for copy in copies.copies(root)] == ["run", "shards"]
    next(root.glob("runs/*/run/weights")).write_bytes(b"trained since")
    assert cli.run(["cache", "--clear"]) == 0
    said = capsys.readouterr()
    assert f"of `{RUN}`: 1 file of the run not sent yet" in said.err
    assert [copy.kind for copy in copies.copies(root)] == ["run"]


def test_what_was_fetched_again_after_an_interrupted_removal_is_removed(root: Path) -> None:
    copy = fetched()
    end_of_processes()
    left = copy.path.with_suffix(".gone")
    (left / "files").mkdir(parents=True)
    assert copies.remove(copy) == ""
    assert not copies.copies(root)
