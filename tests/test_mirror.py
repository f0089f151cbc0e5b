"""Runs at an address: sent as they grow, gone on with on another machine."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from far import Far, contents, empty_store
from fits import SMALL, Killed, killer, results, small_recipe

import fieldguide as fg
from fieldguide import cli
from fieldguide.errors import ResourceError
from fieldguide.fitting.fit import fit
from fieldguide.fitting.progress import Watcher
from fieldguide.storage import addresses, files, mirror
from fieldguide.storage.mirror import mirrored, run_folder

RUN = "far://bucket/run"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets the test be another machine: one with a cache folder of its own."""

    def be(name: str) -> None:
        monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / name))

    be("first")
    with empty_store(monkeypatch):
        yield be


def there() -> dict[str, bytes]:
    return Far.files("/bucket/run")


def test_what_a_block_writes_is_sent_and_fetched(machine: Callable[[str], None]) -> None:
    with mirrored(RUN + "/") as folder:
        (folder / "folds" / "0").mkdir(parents=True)
        (folder / "folds" / "0" / "a").write_bytes(b"1")
        (folder / "b").write_bytes(b"2")
    assert there() == {"folds/0/a": b"1", "b": b"2"}
    machine("second")
    with mirrored(RUN) as second:
        assert second != folder and contents(second) == there()
        (second / "b").write_bytes(b"3")
        (second / "folds" / "0" / "a").unlink()
    assert there() == {"b": b"3"}
    assert contents(run_folder(RUN)) == {"b": b"3"}
    machine("first")
    Far.asked.clear()
    with mirrored(RUN) as first:
        assert first == folder and contents(first) == {"b": b"3"}
    assert [what for what, _ in Far.asked if what in {"get", "put"}] == ["get"]


def test_manifests_are_sent_last(tmp_path: Path) -> None:
    names = ["setup.json", "manifest.json", "folds/0/manifest.json", "folds/0/z", "z", "oof.csv"]
    with mirrored(RUN) as folder:
        for name in names:
            files.make_folder((folder / name).parent)
            (folder / name).write_text(name)
        (folder / ".0123456789abcdef.tmp").touch()
    sent = [path.removeprefix("/bucket/run/") for what, path in Far.asked if what == "put"]
    assert sent[:4] == [".probe", "folds/0/z", "oof.csv", "z"]
    assert sent[4:] == ["folds/0/manifest.json", "setup.json", "manifest.json"]


def test_an_error_in_the_block_is_raised_after_sending() -> None:
    with pytest.raises(Killed), mirrored(RUN) as folder:
        (folder / "checkpoint").write_bytes(b"1")
        raise Killed
    assert there() == {"checkpoint": b"1"}


def test_what_grows_is_sent_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "PERIOD", 0.01)
    with mirrored(RUN) as folder:
        (folder / "events.jsonl").write_bytes(b"1")
        _wait_for(b"1")
        (folder / "events.jsonl").write_bytes(b"12")
        _wait_for(b"12")


def _wait_for(content: bytes) -> None:
    """Until the sender has sent it; it has a minute, of which it needs a few milliseconds."""
    end = time.monotonic() + 60
    while there().get("events.jsonl") != content:
        assert time.monotonic() < end


def test_a_store_that_vanishes_hurts_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(what: str, path: str) -> None:
        raise OSError("network is unreachable")

    told: list[str] = []
    with pytest.raises(ResourceError) as caught, mirrored(RUN, told.append) as folder:
        (folder / "weights").write_bytes(b"1")
        monkeypatch.setattr(Far, "fault", staticmethod(gone))
    assert "network is unreachable" in caught.value.message
    assert str(folder) in caught.value.message
    assert told and "trying again" in told[0]
    assert contents(folder) == {"weights": b"1"} and not there()
    with pytest.raises(ResourceError, match=f"`{RUN}` cannot be reached"), mirrored(RUN):
        pass
    monkeypatch.setattr(Far, "fault", staticmethod(lambda what, path: None))
    with mirrored(RUN):
        pass
    assert there() == {"weights": b"1"}


def test_what_a_killed_command_had_sent_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(what: str, path: str) -> None:
        if what == "put" and path.endswith("weights"):
            raise Killed

    with mirrored(RUN) as folder:
        pass
    place = addresses.opened(RUN)
    (folder / "events.jsonl").write_bytes(b"1")
    (folder / "weights").write_bytes(b"1")
    monkeypatch.setattr(Far, "fault", staticmethod(killed))
    with pytest.raises(Killed):
        mirror.Mirror(place, folder.parent).push()
    assert there() == {"events.jsonl": b"1"}
    (folder / "events.jsonl").write_bytes(b"12")
    mirror.Mirror(place, folder.parent).pull()
    assert contents(folder) == {"events.jsonl": b"12", "weights": b"1"}


def test_an_address_that_cannot_be_written_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: str, path: str) -> None:
        if what == "put":
            raise PermissionError("read only")

    monkeypatch.setattr(Far, "fault", staticmethod(refuse))
    with pytest.raises(ResourceError, match="read only"), mirrored(RUN):
        raise AssertionError("it was not told")


def test_folders_are_made_but_no_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mirrored(f"file://{tmp_path}/new/run") as folder:
        (folder / "weights").write_bytes(b"1")
    assert contents(tmp_path / "new") == {"run/weights": b"1"}
    made: list[str] = []
    monkeypatch.setattr(Far, "makedirs", lambda self, path, exist_ok: made.append(path))
    monkeypatch.setattr(mirror, "_WITH_BUCKETS", {"far"})
    with mirrored(RUN) as folder:
        (folder / "weights").write_bytes(b"1")
    assert there() == {"weights": b"1"}
    assert len(made) == [what for what, _ in Far.asked].count("put")  # the store's own, for each


def test_a_file_that_arrives_short_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    send, times = Far.put_file, iter(range(3))

    def short(self: Far, lpath: str, rpath: str) -> None:
        if next(times, None) is None:
            send(self, lpath, rpath)
        else:
            self.pipe_file(rpath, b"")

    monkeypatch.setattr(Far, "put_file", short)
    with mirrored(RUN) as folder:
        (folder / "weights").write_bytes(b"123")
    assert there() == {"weights": b"123"}


def test_a_run_that_was_removed_there_is_begun_anew() -> None:
    with mirrored(RUN) as folder:
        (folder / "setup.json").write_text("old")
    Far().rm("far://bucket/run", recursive=True)
    with mirrored(RUN) as folder:
        assert contents(folder) == {}


def test_a_store_that_does_not_answer_is_no_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with mirrored(RUN) as folder:
        (folder / "setup.json").write_text("a run")

    def gone(what: str, path: str) -> None:
        raise OSError("network is unreachable")

    place = addresses.opened(RUN)
    monkeypatch.setattr(Far, "fault", staticmethod(gone))
    with pytest.raises(ResourceError, match="cannot be reached"):
        mirror.Mirror(place, folder.parent).pull()
    assert contents(folder) == {"setup.json": b"a run"}


def test_two_at_a_time_are_refused() -> None:
    with mirrored(RUN), pytest.raises(ResourceError, match="in use"), mirrored(RUN):
        pass


def test_a_fit_at_an_address_goes_on_on_another_machine(
    discs: Path, tmp_path: Path, machine: Callable[[str], None]
) -> None:
    photos = fg.scan(discs)
    recipe = small_recipe(checkpoint_minutes=1e-9)
    whole = fit(photos, recipe, tmp_path / "whole")
    for step, name in ((4, "second"), (5, "third"), (6, "fourth")):
        with pytest.raises(Killed):
            fit(photos, recipe, RUN, watcher=Watcher(on_step=killer(step)))
        assert any("checkpoint" in path for path in there())
        machine(name)
    done = fit(photos, recipe, RUN)
    assert done.complete and results(done) == results(whole)
    assert there() == contents(done.folder)
    assert not any("checkpoint" in path for path in there())
    machine("fifth")
    told: list[str] = []
    assert fit(photos, recipe, RUN, watcher=Watcher(notice=told.append)).complete
    assert any("complete" in message for message in told)
    assert results(fg.Run(run_folder(RUN))) == results(whole)


def test_the_commands(
    discs: Path,
    tmp_path: Path,
    plain_consoles: None,
    capsys: pytest.CaptureFixture[str],
    machine: Callable[[str], None],
) -> None:
    machine("first")
    settings = SMALL | {"epochs": 1, "warmup": 0, "replicas": 1, "batch_norm": "average"}
    flags = [
        text
        for name, value in settings.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    assert cli.run(["fit", str(discs), "--out", RUN, "--no-report", *flags]) == 0
    assert json.loads(there()["summary.json"])["photos"] == 24
    table = tmp_path / "predictions.csv"
    assert cli.run(["predict", RUN, str(discs), "--out", str(table), "--device", "cpu"]) == 0
    assert len(table.read_text().splitlines()) == 25
    assert cli.run(["fit", str(discs), "--out", "nonsense://run", *flags]) == 2
    assert "Protocol not known: nonsense" in capsys.readouterr().err
