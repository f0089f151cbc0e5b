import os
import sys
from pathlib import Path

import pytest

from fieldguide.errors import ResourceError
from fieldguide.storage.cache_folder import root, root_of, source_of, use

HOME = Path.home()


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, HOME / ".cache/fieldguide"),
        ("linux", {"XDG_CACHE_HOME": "/big"}, Path("/big/fieldguide")),
        ("linux", {"XDG_CACHE_HOME": "relative"}, HOME / ".cache/fieldguide"),
        ("linux", {"XDG_CACHE_HOME": "/big", "FIELDGUIDE_CACHE": "/own"}, Path("/own")),
        ("linux", {"FIELDGUIDE_CACHE": "~/own"}, HOME / "own"),
        ("linux", {"FIELDGUIDE_CACHE": "own"}, Path("own").absolute()),
        ("linux", {"FIELDGUIDE_CACHE": ""}, HOME / ".cache/fieldguide"),
        ("darwin", {"XDG_CACHE_HOME": "/big"}, HOME / "Library/Caches/fieldguide"),
        ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/fieldguide/Cache")),
        ("win32", {}, HOME / "AppData/Local/fieldguide/Cache"),
    ],
)
def test_the_root_is_where_the_platform_keeps_caches(
    platform: str, environment: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIELDGUIDE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert root() == expected


def test_no_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("could not determine home directory")

    for name in ("FIELDGUIDE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ResourceError, match="FIELDGUIDE_CACHE"):
        root()


def test_a_name_is_a_folder_and_auto_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", "/big")
    assert root_of("auto") == Path("/big")
    assert root_of("own") == Path("own").absolute()


def test_a_folder_says_what_it_holds_a_copy_of(tmp_path: Path) -> None:
    assert source_of(tmp_path) == ("", tmp_path.stat().st_mtime)
    use(tmp_path, "far://phötos")
    assert source_of(tmp_path)[0] == "far://phötos"
    (tmp_path / "source.txt").unlink()
    use(tmp_path, "elsewhere")
    assert source_of(tmp_path)[0] == "elsewhere"


def test_a_folder_that_cannot_be_written_is_used_in_silence(tmp_path: Path) -> None:
    use(tmp_path / "nowhere", "far://photos")
    assert not (tmp_path / "nowhere").exists()
