import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fieldguide.photos.pixels import Reading
from fieldguide.storage import decoded
from fieldguide.storage.copies import remove
from fieldguide.storage.decoded import RECORD_BYTES, Store, folder_of, pieces

Pixels = NDArray[np.uint8]

posix_only = pytest.mark.skipif(os.name == "nt", reason="signals, forks, locks of files")


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def picture(number: int, height: int = 12, width: int = 9) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


SPACE = picture(0).nbytes + RECORD_BYTES


def there(kept: Store, number: int) -> bool:
    """Whether the picture is found; it must never be another one."""
    found = kept.get(key(number))
    assert found is None or np.array_equal(found, picture(number, *found.shape[:2]))
    return found is not None


def fill(folder: Path, numbers: range) -> None:
    with closing(Store(folder)) as kept:
        for number in numbers:
            kept.put(key(number), picture(number))


def only(folder: Path, kind: str) -> Path:
    (path,) = folder.glob(f"*.{kind}")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return definition(tmp_path / "cache", 64)


def definition(cache: Path, side: int) -> Path:
    return folder_of(cache, side=side, interpolation="bilinear", reading="refuse")


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "LOOK_SECONDS", 0.0)


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., Store]]:
    """Opens stores that are closed after the test."""
    with ExitStack() as all_closed:
        yield lambda where=folder, **options: all_closed.enter_context(
            closing(Store(where, **options))
        )


def python(script: str, *arguments: object) -> str:
    """What a process of its own prints; it sees this file's functions."""
    done = subprocess.run(
        [sys.executable, "-c", f"from test_decoded import *\n{script}"]
        + [str(argument) for argument in arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


shapes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12)


@given(shapes)
@settings(max_examples=30)
def test_what_is_put_is_got_by_this_process_and_the_next(sizes: list[tuple[int, int]]) -> None:
    with TemporaryDirectory() as name:
        with closing(Store(Path(name))) as kept:
            for number, size in enumerate(sizes):
                assert kept.get(key(number)) is None
                kept.put(key(number), picture(number, *size))
                kept.put(key(number), picture(number + 1, *size))  # the first one stays
                assert there(kept, number)
        assert pieces(Path(name))[0].count == len(sizes)
        with closing(Store(Path(name))) as again:
            assert all(there(again, number) for number in range(len(sizes)))
            assert [again.get(key(n)).shape[:2] for n in range(len(sizes))] == sizes  # type: ignore[union-attr]


def test_a_picture_that_is_not_contiguous_keeps_its_pixels(opened: Callable[..., Store]) -> None:
    kept, whole = opened(), picture(1)
    kept.put(key(1), whole[::2, ::-1])
    assert np.array_equal(kept.get(key(1)), whole[::2, ::-1])  # type: ignore[arg-type]


def test_getting_copies_nothing_and_lets_nothing_be_changed(
    folder: Path, opened: Callable[..., Store]
) -> None:
    big = picture(1, 600, 500)
    with closing(Store(folder)) as writer:
        writer.put(key(1), big)
    kept = opened()
    tracemalloc.start()
    try:
        found = kept.get(key(1))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None and most < big.nbytes / 10
    with only(folder, "pixels").open("r+b") as file:  # the file is the picture's memory
        file.write(bytes([255 - big[0, 0, 0]]))
    assert found[0, 0, 0] == 255 - big[0, 0, 0]
    assert not found.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        found.flags.writeable = True


def test_a_closed_store_keeps_what_was_got_and_finds_nothing(folder: Path) -> None:
    kept = Store(folder)
    kept.put(key(1), picture(1))
    found = kept.get(key(1))
    kept.close()
    kept.put(key(2), picture(2))
    kept.close()
    assert np.array_equal(found, picture(1))  # type: ignore[arg-type]
    assert kept.get(key(1)) is None and kept.get(key(2)) is None
    assert pieces(folder)[0].count == 1


def test_looks_are_rare(
    folder: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0, time=time.time, monotonic=lambda: clock.now)
    monkeypatch.setattr(decoded, "time", clock)
    kept = opened()
    assert not there(kept, 1)
    for number in (1, 2, 3):
        fill(folder, range(number, number + 1))
        assert not there(kept, number)
        clock.now += decoded.LOOK_SECONDS
        assert there(kept, number)


def put_and_get(kept: Store, mine: int, parents: int) -> None:
    assert there(kept, parents)
    kept.put(key(mine), picture(mine))
    assert there(kept, mine)
    kept.close()


@pytest.mark.usefixtures("looks_at_once")
def test_a_spawned_process_shares_the_store(folder: Path, opened: Callable[..., Store]) -> None:
    kept = opened(notice=lambda message: None)  # no pickle holds a lambda
    kept.put(key(1), picture(1))
    child = multiprocessing.get_context("spawn").Process(target=put_and_get, args=(kept, 2, 1))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert there(kept, 2)
    assert len(pieces(folder)) == 2


def test_a_pickled_store_keeps_its_limit(folder: Path, opened: Callable[..., Store]) -> None:
    fill(folder, range(1))
    with closing(pickle.loads(pickle.dumps(opened(limit=1000)))) as copy:
        assert there(copy, 0)
        copy.put(key(1), picture(1, 40, 40))
    assert pieces(folder)[0].count == 1


FORKS = """
kept = Store(Path(sys.argv[1]))
kept.put(key(0), picture(0))
assert there(kept, 0)
done = threading.Event()

def work(numbers):
    for number in numbers:
        if done.is_set():
            break
        kept.put(key(number), picture(number))
        assert there(kept, number)

threads = [threading.Thread(target=work, args=(range(s, 10**6, 3),)) for s in (1000, 1001, 1002)]
for thread in threads:
    thread.start()
for child in range(1, 6):
    if not os.fork():  # while other threads hold locks and are in the middle of a record
        put_and_get(kept, child, 0)
        os._exit(0)
codes = [os.wait()[1] for child in range(5)]
done.set()
for thread in threads:
    thread.join()
kept.close()
assert codes == [0] * 5, codes
with closing(Store(Path(sys.argv[1]))) as fresh:
    assert all(there(fresh, number) for number in range(6))
    known = list(fresh._places.values())
    assert all(fresh._intact(place) for place in known)
    print(len(known), sum(piece.count for piece in pieces(Path(sys.argv[1]))))
"""


@posix_only
def test_forked_children_write_shards_of_their_own(folder: Path) -> None:
    whole, recorded = map(int, python(FORKS, folder).split())
    assert whole == recorded > 6
    assert len(pieces(folder)) >= 2


@pytest.mark.usefixtures("looks_at_once")
def test_a_child_does_not_learn_its_parents_pictures_twice(opened: Callable[..., Store]) -> None:
    kept = opened()
    for number in range(3):
        kept.put(key(number), picture(number))
    kept._in_child()
    assert not there(kept, 7)  # a look
    assert [place.other for place in kept._places.values()] == [None] * 3


def test_many_threads_at_once(opened: Callable[..., Store]) -> None:
    wrong, said = list[int](), list[str]()
    kept = opened(limit=40 * SPACE, notice=said.append)

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 60, 400).tolist():
            found = kept.get(key(number))
            if found is None:
                kept.put(key(number), picture(number))
            elif not np.array_equal(found, picture(number)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(there(kept, number) for number in range(60)) == 40
    assert sum(piece.count for piece in pieces(kept._folder)) == 40
    assert len(said) == 1


@posix_only
def test_short_runs_share_a_shard(folder: Path, opened: Callable[..., Store]) -> None:
    for number in range(5):
        fill(folder, range(number, number + 1))
    assert [piece.count for piece in pieces(folder)] == [5]
    kept = opened()
    assert all(there(kept, number) for number in range(5))


def test_a_large_shard_is_not_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "CONTINUED_BELOW", picture(0).nbytes)
    for number in range(3):
        fill(folder, range(number, number + 1))
    assert [piece.count for piece in pieces(folder)] == [1, 1, 1]


@posix_only
def test_a_shard_is_continued_behind_what_was_torn(
    folder: Path, opened: Callable[..., Store]
) -> None:
    fill(folder, range(3))
    for kind in ("pixels", "index"):
        with only(folder, kind).open("ab") as file:
            file.write(b"torn")
    fill(folder, range(3, 6))
    kept = opened()
    assert all(there(kept, number) for number in range(6))
    assert len(pieces(folder)) == 1


WRITE_ON = """
kept = Store(Path(sys.argv[1]))
for number in range(10**6):
    kept.put(key(number), picture(number))
    print(number, flush=True)
"""


@posix_only
def test_a_killed_writer_leaves_all_that_it_put(folder: Path, opened: Callable[..., Store]) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", f"from test_decoded import *\n{WRITE_ON}", str(folder)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    with writer, writer.stdout:
        said = [int(writer.stdout.readline()) for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout]
    fill(folder, range(10**6, 10**6 + 3))
    kept = opened()
    assert all(there(kept, number) for number in [*said, *range(10**6, 10**6 + 3)])
    assert len(pieces(folder)) == 1


@given(st.data())
@settings(max_examples=40)
def test_a_flipped_bit_loses_one_picture_at_most(data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        fill(Path(name), range(6))
        path = only(Path(name), data.draw(st.sampled_from(["pixels", "index"])))
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        size = RECORD_BYTES if path.suffix == ".index" else picture(0).nbytes
        with closing(Store(Path(name))) as kept:
            assert [n for n in range(6) if not there(kept, n)] == [place // size]


@given(st.data())
@settings(max_examples=40)
def test_a_cut_file_loses_what_was_cut(data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        fill(Path(name), range(6))
        path = only(Path(name), data.draw(st.sampled_from(["pixels", "index"])))
        end = data.draw(st.integers(0, path.stat().st_size))
        os.truncate(path, end)
        size = RECORD_BYTES if path.suffix == ".index" else picture(0).nbytes
        with closing(Store(Path(name))) as kept:
            assert [n for n in range(6) if there(kept, n)] == list(range(end // size))


def test_a_damaged_picture_is_replaced_for_all(folder: Path, opened: Callable[..., Store]) -> None:
    fill(folder, range(2))
    path = only(folder, "pixels")
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    first = opened()
    assert not there(first, 0) and there(first, 1)
    first.put(key(0), picture(0))
    assert there(first, 0)
    assert there(opened(), 0)


@pytest.mark.usefixtures("looks_at_once")
def test_a_removed_shard_is_forgotten(folder: Path, opened: Callable[..., Store]) -> None:
    fill(folder, range(2))
    kept = opened()
    kept.get(key(7))
    shutil.rmtree(folder)
    assert not there(kept, 0)
    kept.put(key(0), picture(0))
    assert there(kept, 0)


class Full(io.FileIO):
    """A file on a disk that is full after a few bytes more."""

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        if len(data) > 10:
            return super().write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["pixels", "index"])
def test_a_disk_that_gets_full_leaves_a_sound_store(
    broken: str, folder: Path, opened: Callable[..., Store]
) -> None:
    fill(folder, range(2))
    said: list[str] = []
    kept = opened(notice=said.append)
    writer = kept._open_writer()
    sound = getattr(writer, broken)
    kept._writer = replace(writer, **{broken: Full(sound.name, "r+b")})
    sound.close()
    sizes = {path: path.stat().st_size for path in folder.iterdir() if broken in path.name}
    for number in range(2, 5):
        kept.put(key(number), picture(number))
    assert len(said) == 1 and "no space left on device" in said[0]
    assert sizes == {path: path.stat().st_size for path in sizes}
    kept.close()
    fill(folder, range(5, 7))
    again = opened()
    assert [n for n in range(7) if there(again, n)] == [0, 1, 5, 6]


def test_a_file_in_the_way_is_told_once(folder: Path, opened: Callable[..., Store]) -> None:
    folder.parent.write_text("a file")
    said: list[str] = []
    kept = opened(notice=said.append)
    for number in range(3):
        kept.put(key(number), picture(number))
        assert kept.get(key(number)) is None
    (message,) = said
    assert str(folder.parent) in message and "0.0 MB" in message
    assert "fieldguide cache --clear" in message and "FIELDGUIDE_CACHE" in message
    assert folder.parent.read_text() == "a file"


@pytest.mark.skipif(os.name == "nt" or not os.getuid(), reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_read(
    folder: Path, opened: Callable[..., Store]
) -> None:
    fill(folder, range(1))
    for path in (only(folder, "pixels"), only(folder, "index"), folder):
        path.chmod(0o500)
    said: list[str] = []
    kept = opened(notice=said.append)
    kept.put(key(1), picture(1))
    assert there(kept, 0) and len(said) == 1
    folder.chmod(0o700)


@given(st.integers(0, 8 * SPACE))
@settings(max_examples=20)
def test_the_limit_is_kept_and_used(limit: int) -> None:
    with TemporaryDirectory() as name:
        folder, said = Path(name) / "store", list[str]()
        with closing(Store(folder, limit=limit, notice=said.append)) as kept:
            for number in range(10):
                kept.put(key(number), picture(number))
            assert [n for n in range(10) if there(kept, n)] == list(range(limit // SPACE))
        assert len(said) == 1 and "limit" in said[0]
        assert sum(piece.bytes for piece in pieces(folder)) == limit // SPACE * SPACE


def test_a_part_of_the_disk_stays_free(
    folder: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk(_path: Path) -> SimpleNamespace:
        written = sum(piece.bytes for piece in pieces(folder))
        return SimpleNamespace(free=(2 << 30) + 3 * SPACE - written)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    said: list[str] = []
    kept = opened(notice=said.append)
    for number in range(5):
        kept.put(key(number), picture(number))
    assert [n for n in range(5) if there(kept, n)] == [0, 1, 2]
    assert len(said) == 1 and "would stay free" in said[0]


def aged(folder: Path, days: float) -> Path:
    """A store of two pictures that was not used for so many days."""
    fill(folder, range(2))
    for path in folder.iterdir():
        os.utime(path, (time.time() - days * 86400,) * 2)
    return folder


def test_what_was_unused_for_longest_makes_room(
    tmp_path: Path, opened: Callable[..., Store]
) -> None:
    ages = {side: aged(definition(tmp_path, side), days) for side, days in ((32, 2), (64, 9))}
    kept = opened(definition(tmp_path, 128), limit=5 * SPACE)
    for number in range(3):
        kept.put(key(number), picture(number))
    assert all(there(kept, number) for number in range(3))
    assert ages[32].is_dir() and not ages[64].exists()


def test_nothing_is_removed_where_it_would_not_suffice(
    tmp_path: Path, opened: Callable[..., Store]
) -> None:
    old = aged(definition(tmp_path, 32), 9)
    kept = opened(definition(tmp_path, 64), limit=SPACE // 2)
    kept.put(key(1), picture(1))
    assert not there(kept, 1) and pieces(old)


@posix_only
@pytest.mark.parametrize("use", ["reads", "writes"])
def test_what_a_process_uses_makes_no_room(
    use: str, tmp_path: Path, opened: Callable[..., Store]
) -> None:
    old = aged(definition(tmp_path, 32), 9)
    user = opened(old)
    if use == "reads":
        assert there(user, 0)
    else:
        user.put(key(7), picture(7))
    before = pieces(old)
    kept = opened(definition(tmp_path, 64), limit=(before[0].count + 1) * SPACE)
    for number in range(3):
        kept.put(key(number), picture(number))
    assert there(kept, 0) and not there(kept, 1)
    assert [piece.path for piece in pieces(old)] == [piece.path for piece in before]
    assert there(user, 1)


@pytest.mark.parametrize(("days", "stays"), [(0.5, True), (2, False)])
def test_the_own_store_makes_room_of_what_was_unused_for_a_day(
    days: float, stays: bool, folder: Path, opened: Callable[..., Store]
) -> None:
    (old,) = pieces(aged(folder, days))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded, "CONTINUED_BELOW", 0)
        kept = opened(limit=2 * SPACE)
        kept.put(key(5), picture(5))
    assert old.path.exists() is stays
    assert there(kept, 5) is not stays


def test_reading_counts_as_use_where_that_can_be_written(
    folder: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    aged(folder, 9)
    began = time.time()
    assert there(opened(), 0)
    assert pieces(folder)[0].used > began - 60
    monkeypatch.setattr(os, "utime", read_only)
    assert there(opened(), 0)


@posix_only
def test_a_shard_in_use_stays_until_its_last_picture_is_gone(folder: Path) -> None:
    fill(folder, range(1))
    kept = Store(folder)
    found = kept.get(key(0))
    (piece,) = pieces(folder)
    assert remove(piece) == "a process uses it"
    kept.close()
    assert remove(piece) == "a process uses it"
    assert np.array_equal(found, picture(0))  # type: ignore[arg-type]
    del found, kept
    assert remove(piece) == ""
    assert not folder.exists()


def test_a_store_that_nobody_refers_to_is_closed(folder: Path) -> None:
    kept = Store(folder)
    kept.put(key(0), picture(0))
    assert there(kept, 0)
    del kept  # an open file would warn
    assert [remove(piece) for piece in pieces(folder)] == [""]


@pytest.mark.parametrize("lost", ["pixels", "index"])
def test_half_a_shard_can_be_removed(lost: str, folder: Path) -> None:
    fill(folder, range(1))
    only(folder, lost).unlink()
    assert [remove(piece) for piece in pieces(folder)] == [""]
    assert not folder.exists()


def test_only_our_files_are_seen(tmp_path: Path, opened: Callable[..., Store]) -> None:
    own = definition(tmp_path / "cache", 64)
    other = definition(tmp_path / "elsewhere", 32)
    strange = own.parent / "strange"
    for folder in (own, other, strange):
        fill(folder, range(1))
    (own.parent / other.name).symlink_to(other, target_is_directory=True)
    (own / "0123456789abcdef.pixels").symlink_to(only(other, "pixels"))
    (own / "notes.pixels").write_text("not ours")
    (found,) = decoded.kept(own.parent)
    assert found.path.parent == own and remove(found) == ""
    left = sorted(path.name for path in own.iterdir())
    assert left == ["0123456789abcdef.pixels", "notes.pixels"]
    assert pieces(other) and pieces(strange)


def test_no_cache_has_no_stores_and_a_look_makes_none(
    folder: Path, opened: Callable[..., Store]
) -> None:
    assert decoded.kept(folder.parent) == pieces(folder) == []
    assert opened().get(key(1)) is None
    assert not folder.parent.exists()


def test_a_definition_is_in_the_name_of_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded.metadata, "version", lambda name: f"0.26.0+{name[0]}")
    versions = "pillow-0.26.0+p-torchvision-0.26.0+t"
    begin = f"pixels-{decoded.VERSION}"
    assert definition(Path("cache"), 64) == Path("cache", f"{begin}-64-bilinear-refuse-{versions}")
    full = folder_of(Path("cache"), side=None, interpolation="nearest_exact", reading="keep")
    assert full.name == f"{begin}-full-nearest_exact-keep-{versions}"
    tone = Reading(tone=(-5.0, 1e-3), no_data=-9999.0).name
    toned = folder_of(Path("cache"), side=None, interpolation="bilinear", reading=tone)
    assert "-bilinear-refuse-tone=-5.0,0.001-nodata=-9999.0-pillow" in toned.name
