import csv
import errno
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.errors import ResourceError, UsageError
from fieldguide.storage import files

posix = pytest.mark.skipif(os.name == "nt", reason="permissions and signals are those of POSIX")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for data in (b"", b"one\0", b"two\r\n" * 100_000):
        files.write_bytes(path, data)
        assert contents(tmp_path) == {"a.bin": data}


def test_text_keeps_its_line_ends_and_the_bytes_of_file_names(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "ü\r\n\n名\r\udcff")
    assert (tmp_path / "a").read_bytes() == "ü\r\n\n名\r".encode() + b"\xff"


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        # Not the second halves of pairs after first ones: JSON joins them to one character.
        | st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udcff")),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_reads_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value


def test_json_is_for_people_too(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"Blüte": [1, "名前"]})
    assert (tmp_path / "a").read_text("utf-8") == '{\n  "Blüte": [\n    1,\n    "名前"\n  ]\n}\n'


def test_json_refuses_what_is_no_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", 1)
    for value in (float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            files.write_json(tmp_path / "a", [value])
    assert contents(tmp_path) == {"a": b"1\n"}


cells = (
    st.text()
    | st.text(alphabet='",\n\r\0 =\t;\ufeff', max_size=4)
    | st.text(alphabet="\\x5cf8\udcff")
)


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1)
    )
)
def test_csv_reads_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    files.write_csv(path, table[0], table[1:])
    with path.open(encoding="utf-8", newline="") as file:
        assert [list(map(files.unescaped, row)) for row in csv.reader(file)] == table


@given(st.text(alphabet="\\x5cf8A\udcff") | cells)
def test_escapes_give_every_text_back(text: str) -> None:
    assert files.unescaped(files.escaped(text)) == text
    files.escaped(text).encode()


def test_escapes_as_they_look() -> None:
    assert files.escaped("caf\udce9.jpg") == r"caf\xe9.jpg"
    assert files.escaped(r"a\b\x41é") == r"a\b\x41é"
    assert files.escaped(r"a\xe9") == r"a\x5cxe9"


def test_csv_as_it_looks(tmp_path: Path) -> None:
    rows = [[1, 0.1, None], ["a,b", 'say "x"', ""], ["two\nlines", "\r", "=1+1"]]
    files.write_csv(tmp_path / "a", ["path", "n", "note"], iter(rows))
    expected = 'path,n,note\n1,0.1,\n"a,b","say ""x""",\n"two\nlines","\r",=1+1\n'
    assert (tmp_path / "a").read_bytes() == expected.encode()


def test_csv_with_a_ragged_row_is_not_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(ValueError, match="row 2 has 1 cells, the header 2"):
        files.write_csv(tmp_path / "a", ["x", "y"], [["1", "2"], ["3"]])
    assert contents(tmp_path) == {"a": b"old"}


def test_a_name_of_full_length(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    files.write_text(path, "x")
    assert path.read_text() == "x"


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


WRITES: list[Callable[[Path], None]] = [
    lambda path: files.write_bytes(path, b"new"),
    lambda path: files.write_text(path, "new"),
    lambda path: files.write_json(path, "new"),
    lambda path: files.write_csv(path, ["new"], [["new"]] * 10_000),
]


def failing(error: BaseException, *, after: int = 0) -> Callable[..., None]:
    calls = iter(range(after))

    def fail(*_: object, **__: object) -> None:
        if next(calls, None) is None:
            raise error

    return fail


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), MemoryError()]
)
def test_a_failure_before_the_rename_leaves_the_old_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    step: str,
    error: BaseException,
) -> None:
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, step, failing(error))
    with pytest.raises(ResourceError if isinstance(error, OSError) else type(error)):
        write(tmp_path / "a")
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("write", WRITES)
def test_the_rename_comes_after_the_file_is_on_disk_and_before_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    steps: list[str] = []

    def note_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        if steps[-1] == "file":
            assert os.fstat(descriptor).st_size > 0  # nothing waits in a buffer

    def note_rename(source: str, target: str, rename: Callable[..., None] = os.replace) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename)
    write(tmp_path / "a")
    assert steps == (["file", "rename"] if os.name == "nt" else ["file", "rename", "folder"])


@posix
def test_a_folder_that_cannot_be_forced_to_disk_is_no_failure_but_a_broken_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.EINVAL, "Invalid argument"), after=1))
    files.write_text(tmp_path / "a", "new")
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.EIO, "Input/output error"), after=1))
    with pytest.raises(ResourceError, match="Input/output error"):
        files.write_text(tmp_path / "a", "newer")
    assert contents(tmp_path) == {"a": b"newer"}  # whole: it was renamed before


def test_a_failure_inside_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a") as file:
        file.write(b"new" * 1_000_000)
        1 / 0  # noqa: B018 - any failure
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "write to"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "is a file"),
    ],
)
def test_a_disk_that_will_not_says_what_was_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", failing(OSError(number, os.strerror(number))))
    with pytest.raises(ResourceError) as caught:
        files.write_bytes(tmp_path / "a", b"x" * 12_345)
    assert caught.value.message == (
        f"cannot write {tmp_path / 'a'} (12,345 bytes needed): {os.strerror(number)}"
    )
    assert hint in caught.value.hint
    assert caught.value.exit_code == 4
    assert isinstance(caught.value.__cause__, OSError)
    assert contents(tmp_path) == {"a": b"old"}


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    out, part = tmp_path / "out", tmp_path / "out.part"
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)), files.new_folder(out) as folder:
            (folder / "a").write_text("half")
            raise error
        assert [*tmp_path.iterdir()] == []
    part.mkdir()
    (part / "photos").mkdir()  # of the user
    with pytest.raises(UsageError, match=r"out\.part` is there already"), files.new_folder(out):
        pass
    (part / files.LOCK).touch()  # of a process that was killed
    with files.new_folder(out) as folder:
        with pytest.raises(ResourceError, match="in use"), files.new_folder(out):
            pass
        (folder / "a").write_text("whole")
    assert contents(out) == {"a": b"whole"}
    assert not part.exists()
    with pytest.raises(UsageError, match="is there already"), files.new_folder(out):
        pass


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ResourceError) as caught:
        files.write_text(tmp_path / "file" / "a", "x")
    assert "is a file" in caught.value.hint
    with pytest.raises(ResourceError) as caught:
        files.write_text(tmp_path / "none" / "a", "x")
    assert caught.value.hint == "its folder is missing: create it, or bring it back"
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        files.write_text(tmp_path / "folder", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@posix
def test_a_kill_leaves_the_old_file_and_its_trace_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / ".mine.tmp").write_text("of somebody else")
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fieldguide.storage import files\n"
        "with files.replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new' * 100_000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "a"], check=False)
    assert done.returncode == -9
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3
    assert files.remove_temporaries(tmp_path) == 1
    assert files.remove_temporaries(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "a"]


def test_temporaries_of_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="none"):
        files.remove_temporaries(tmp_path / "none")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    (tmp_path / "folds" / "0").mkdir(parents=True)
    (tmp_path / "folds" / "0" / "w.bin").write_bytes(b"weights")
    (tmp_path / "ü.txt").write_bytes(b"")
    files.write_manifest(tmp_path, ["ü.txt", "folds/0/w.bin"])
    return tmp_path


def test_a_manifest_records_and_verifies(recorded: Path) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert json.loads((recorded / "manifest.json").read_text("utf-8")) == {
        "format": 1,
        "files": {
            "folds/0/w.bin": {"sha256": files.sha256(recorded / "folds/0/w.bin"), "bytes": 7},
            "ü.txt": {"sha256": empty, "bytes": 0},
        },
    }
    assert files.read_manifest(recorded)["ü.txt"] == files.Recorded(empty, 0)
    files.verify(recorded)
    files.verify(recorded, ["ü.txt"])


def test_a_manifest_is_the_same_whatever_the_order(recorded: Path) -> None:
    before = (recorded / "manifest.json").read_bytes()
    files.write_manifest(recorded, ["folds/0/w.bin", "ü.txt", "ü.txt"])
    assert (recorded / "manifest.json").read_bytes() == before


def test_every_file_that_changed_is_named(recorded: Path) -> None:
    (recorded / "folds/0/w.bin").write_bytes(b"weighty")
    (recorded / "ü.txt").write_bytes(b"longer")
    with pytest.raises(ResourceError) as caught:
        files.verify(recorded, ["ü.txt", "folds/0/w.bin", "new.txt"])
    assert "3 of 3 files" in caught.value.message
    assert "folds/0/w.bin: SHA-256 " in caught.value.message
    assert "ü.txt: 6 bytes, recorded 0" in caught.value.message
    assert "new.txt: not in the manifest" in caught.value.message
    (recorded / "ü.txt").unlink()
    with pytest.raises(ResourceError, match=r"2 of 2 files[^$]*ü.txt: missing"):
        files.verify(recorded)


def test_a_manifest_of_files_that_are_not_there_is_not_written(recorded: Path) -> None:
    before = contents(recorded / "folds" / "0")
    with pytest.raises(ResourceError, match=r"cannot read .*none"):
        files.write_manifest(recorded / "folds" / "0", ["w.bin", "none"])
    assert contents(recorded / "folds" / "0") == before


@pytest.mark.parametrize("name", ["../a", "/a", "", "a/../../b", "manifest.json"])
def test_a_manifest_of_names_that_lead_elsewhere(recorded: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        files.write_manifest(recorded, [name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ('{"format": 1, "files"', "is damaged"),
        ("[]", "no JSON object"),
        ("{}", "unknown format: `None`, not `1`"),
        ('{"format": 2, "files": {}}', "unknown format: `2`"),
        ('{"format": 1}', "lists no files"),
        ('{"format": 1, "files": {"a": 3}}', "entry `a`"),
        ('{"format": 1, "files": {"a": {"sha256": "0", "bytes": 1}}}', "entry `a`"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ResourceError, match=message):
        files.read_manifest(tmp_path)


def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    for name in ("../a", "/a", "a/../../b"):
        files.write_json(tmp_path / "manifest.json", {"format": 1, "files": {name: entry}})
        with pytest.raises(ResourceError, match="is damaged"):
            files.verify(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"no manifest.json in .*: it was not finished"):
        files.verify(tmp_path)


@contextmanager
def other_holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until its standard input is closed."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fieldguide.storage import files\n"
        "with files.lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with other_holder(tmp_path) as process:
        for _ in range(2):  # the first refusal does not harm the record
            with pytest.raises(ResourceError) as caught, files.lock(tmp_path):
                pass
            assert f"process {process.pid} on host {socket.gethostname()} since" in str(
                caught.value
            )
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        process.communicate("")
        assert process.returncode == 0
    with files.lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with other_holder(tmp_path) as process:
        process.kill()
        process.wait()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        with files.lock(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_one_process_holds_a_folder_once_at_a_time(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            files.lock(tmp_path),
            pytest.raises(ResourceError, match=f"is in use: process {os.getpid()} "),
            files.lock(tmp_path),
        ):
            pass
    assert contents(tmp_path) == {".lock": b""}


def test_a_failure_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.lock(tmp_path):
        1 / 0  # noqa: B018 - any failure
    with files.lock(tmp_path):
        pass


def test_a_holder_whose_record_cannot_be_read(tmp_path: Path) -> None:
    for record in ("", "{}", "[1]", "\0"):
        with files.lock(tmp_path):
            (tmp_path / ".lock").write_text(record)
            with (
                pytest.raises(ResourceError, match="is in use: another process"),
                files.lock(tmp_path),
            ):
                pass


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="not a folder"), files.lock(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ResourceError, match="cannot write"), files.lock(tmp_path):
        pass


def test_a_full_disk_does_not_unlock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_text", failing(error))
    with (
        files.lock(tmp_path),
        pytest.raises(ResourceError, match="in use: another process"),
        files.lock(tmp_path),
    ):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="temporary files have random names there")
def test_what_a_killed_writer_left_is_used_by_the_next(tmp_path: Path) -> None:
    with pytest.raises(ResourceError), files.replacing(tmp_path / "a") as file:
        raise OSError(errno.ENOSPC, "full")
    assert contents(tmp_path) == {}
    with files.replacing(tmp_path / "a") as file:
        left = Path(file.name) if isinstance(file.name, str) else next(tmp_path.iterdir())
    left.write_bytes(b"a longer text that a killed process left")
    files.write_text(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": b"new"}


@pytest.mark.skipif(sys.platform == "win32", reason="temporary files have random names there")
def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a") as one, files.replacing(tmp_path / "a") as other:
        one.write(b"one")
        other.write(b"other")
        assert len(contents(tmp_path)) == 2
    assert contents(tmp_path) == {"a": b"one"}  # which was renamed last


@pytest.mark.skipif(sys.platform == "win32", reason="temporary files have random names there")
def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"kept")
    with files.replacing(tmp_path / "a"):
        place = next(path for path in tmp_path.iterdir() if path.name.endswith(".tmp"))
    for link in (place.symlink_to, place.hardlink_to):
        link(tmp_path / "victim")
        files.write_text(tmp_path / "a", "new")
        assert (tmp_path / "victim").read_bytes() == b"kept"
        assert (tmp_path / "a").read_bytes() == b"new"
        place.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="temporary files have random names there")
def test_a_file_system_without_locks_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    files.write_text(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": b"new"}
