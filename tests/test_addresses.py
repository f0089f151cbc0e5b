"""Photos at addresses, from stores that answer and stores that do not."""

import errno
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from far import Far, contents, empty_store
from photos import encoded, photograph

from fieldguide import cli
from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.photos.catalog import Photo
from fieldguide.photos.folders import scan
from fieldguide.photos.sources import read
from fieldguide.photos.tables import read_table
from fieldguide.predict import inputs
from fieldguide.storage import addresses, cache_folder, files
from fieldguide.storage.addresses import is_address, local, token_of


@pytest.fixture(autouse=True)
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Far]]:
    """The store without a file, a cache folder without one, and no waits."""
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    with empty_store(monkeypatch):
        yield Far


def put(name: str, data: bytes | None = None) -> bytes:
    content = encoded(photograph(len(Far.store))) if data is None else data
    Far().pipe_file(f"far://photos/{name}", content)
    return content


def fetched() -> list[str]:
    found = [path.removeprefix("/photos/") for what, path in Far.asked if what == "get"]
    Far.asked.clear()
    return sorted(found)


def failing(monkeypatch: pytest.MonkeyPatch, what: str, times: int, error: BaseException) -> None:
    left = iter(range(times))

    def fault(asked: str, path: str) -> None:
        if asked == what and next(left, None) is not None:
            raise error

    monkeypatch.setattr(Far, "fault", staticmethod(fault))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/photos", True),
        ("memory://photos", True),
        ("abfs+x://photos", True),
        (r"c:\photos", False),
        ("c://photos", False),
        ("photos", False),
        ("photos/a://b", False),
        (Path("photos"), False),
    ],
)
def test_an_address_has_a_scheme(text: str | Path, expected: bool) -> None:
    assert is_address(text) == expected


def test_paths_stay_as_they_are() -> None:
    assert local("photos") == local(Path("photos")) == Path("photos")


def test_photos_are_fetched_once_and_when_they_change() -> None:
    names = ["elm/1.jpg", "oak/1.jpg", "oak/ü 2.jpg"]
    there = {name: put(name) for name in names}
    catalog = scan("far://photos/")
    assert [photo.path for photo in catalog.photos] == names
    assert catalog.root.is_relative_to(cache_folder.root())
    assert contents(catalog.root) == there and fetched() == names
    assert scan("far://photos") == catalog and fetched() == []
    there["elm/1.jpg"] = put("elm/1.jpg", there["oak/1.jpg"])
    there["elm/2.jpg"] = put("elm/2.jpg")
    Far().rm_file("far://photos/oak/1.jpg")
    del there["oak/1.jpg"]
    Far.asked.clear()
    assert contents(scan("far://photos").root) == there
    assert fetched() == ["elm/1.jpg", "elm/2.jpg"]


def test_a_class_that_is_gone_there_leaves_no_empty_folder() -> None:
    put("elm/1.jpg")
    put("oak/young/1.jpg")
    scan("far://photos")
    Far().rm("far://photos/oak", recursive=True)
    found = scan("far://photos")
    assert [photo.path for photo in found.photos] == ["elm/1.jpg"] and not found.notes
    assert not (found.root / "oak").exists()


def test_a_damaged_copy_is_fetched_again() -> None:
    there = {"elm/1.jpg": put("elm/1.jpg"), "oak/1.jpg": put("oak/1.jpg")}
    root = scan("far://photos").root
    (root / "elm" / "1.jpg").write_bytes(b"cut")
    (root / "oak" / "stranger.jpg").write_bytes(b"was never there")
    (root.parent / "files.json").write_text("no JSON")
    assert contents(scan("far://photos").root) == there


def test_tables_lists_and_single_photos(tmp_path: Path) -> None:
    photo = put("a/1.jpg")
    put("a/2.jpg")
    put("labels.csv", b"path,label\na/1.jpg,oak\na/2.jpg,elm\n")
    for found in (read("far://photos/labels.csv"), read_table("far://photos/labels.csv")):
        assert found.photos == (Photo("a/1.jpg", "oak"), Photo("a/2.jpg", "elm"))
    Far.asked.clear()
    (one,) = inputs.read("far://photos/a/1.jpg")
    assert one.name == "far://photos/a/1.jpg"
    assert one.file and one.file.read_bytes() == photo
    assert fetched() == ["a/1.jpg"]
    assert inputs.read("far://photos/a/1.jpg") == [one] and fetched() == []
    folder = inputs.read("far://photos/a")
    assert [each.name for each in folder] == ["1.jpg", "2.jpg"]


def test_a_folder_of_this_machine_may_have_an_address(discs: Path) -> None:
    assert scan(f"file://{discs}").photos == scan(discs).photos
    with pytest.raises(DataError, match="no such file or folder: file:///nowhere"):
        scan("file:///nowhere/at/all")


def test_nothing_at_an_address_is_told() -> None:
    with pytest.raises(DataError, match="no such file or folder: far://nothing"):
        scan("far://nothing")
    Far().mkdir("far://empty")
    with pytest.raises(DataError, match="no files at far://empty"):
        scan("far://empty")


@pytest.mark.parametrize("address", ["nonsense://photos", "adl://photos"])
def test_an_address_that_nothing_can_read_is_a_mistake(address: str) -> None:
    with pytest.raises(UsageError, match=rf"`{address}` cannot be read"):
        scan(address)


@pytest.mark.parametrize("what", ["info", "find", "get"])
def test_a_store_that_stays_away_is_told_and_one_that_comes_back_waited_for(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    put("elm/1.jpg")
    failing(monkeypatch, what, 99, TimeoutError("timed out"))
    with pytest.raises(ResourceError, match="`far://photos` cannot be reached: timed out"):
        scan("far://photos")
    failing(monkeypatch, what, 3, OSError("connection reset"))
    told: list[str] = []
    root = local("far://photos", notice=told.append)
    assert list(contents(root)) == ["elm/1.jpg"]
    if what != "info":  # the first answer is waited for in silence, for its time is limited
        message = "does not answer (connection reset): trying again in 0 s"
        assert told == [f"`far://photos` {message}"] * 3


def test_a_store_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(addresses, "REACH_SECONDS", 0.05)
    monkeypatch.setattr(Far, "fault", staticmethod(lambda what, path: over.wait()))
    with pytest.raises(
        ResourceError, match=r"`far://photos` cannot be reached: no answer in 0\.05"
    ):
        scan("far://photos")
    over.set()


def test_the_first_answer_is_waited_for_less_than_a_minute() -> None:
    assert addresses.REACH_SECONDS < 60


def test_what_may_not_be_read_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    put("elm/1.jpg")
    failing(monkeypatch, "get", 1, PermissionError("no key"))
    told: list[str] = []
    with pytest.raises(ResourceError, match="cannot be reached: no key"):
        local("far://photos", notice=told.append)
    assert not told


def test_a_full_disk_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    put("elm/1.jpg")
    failing(monkeypatch, "get", 1, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ResourceError, match=r"cannot write .*: No space left on device"):
        scan("far://photos")


def test_a_file_that_comes_short_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = put("elm/1.jpg")

    def short(self: Far, rpath: str, lpath: str) -> None:
        Path(lpath).write_bytes(whole[:10])

    monkeypatch.setattr(Far, "get_file", short)
    with pytest.raises(ResourceError, match=rf"elm/1\.jpg: 10 of {len(whole):,} bytes came"):
        scan("far://photos")
    assert not [path for path in cache_folder.root().rglob("1.jpg*")]


def test_an_interrupted_fetch_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {f"elm/{number}.jpg": put(f"elm/{number}.jpg") for number in range(40)}
    with pytest.raises(KeyboardInterrupt):
        local("far://photos", progress=lambda done, total: _interrupt(done))
    before = fetched()
    assert len(before) >= 5
    assert contents(scan("far://photos").root) == there
    assert not set(fetched()) & set(before)


def _interrupt(done: int) -> None:
    if done == 5:
        raise KeyboardInterrupt


def test_two_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    put("elm/1.jpg")
    root = scan("far://photos").root
    with files.lock(root.parent), pytest.raises(ResourceError, match="in use"):
        scan("far://photos")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"size": 1, "ETag": "a"}, {"size": 1, "ETag": "b"}),
        ({"size": 1, "ETag": "a"}, {"size": 2, "ETag": "a"}),
        ({"size": 1, "mtime": 1.5}, {"size": 1, "mtime": 2.5}),
    ],
)
def test_files_differ_by_size_mark_or_time(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert token_of(one) == token_of(dict(one)) != token_of(other)
    assert token_of(one | {"ETag": "x", "mtime": 1}) == token_of(one | {"ETag": "x", "mtime": 2})


def test_a_time_is_the_same_however_the_store_tells_it() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    assert token_of({"size": 1, "created": when}) == token_of(
        {"size": 1, "created": when.timestamp()}
    )


def test_check_reads_an_address(
    plain_consoles: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    for name in ("elm/1.jpg", "elm/2.jpg", "oak/1.jpg", "oak/2.jpg"):
        put(name)
    assert cli.run(["check", "far://photos", "--folds", "2"]) == 0
    said = capsys.readouterr()
    assert "fetching files: 4" in said.err and "nothing was found" in said.out
    assert cli.run(["check", "far://nowhere"]) == 3
    assert "no such file or folder: far://nowhere" in capsys.readouterr().err
