"""The command that shows and removes decoded photos."""

import hashlib
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fieldguide import cli
from fieldguide.storage.decoded import Store, folder_of, kept

pytestmark = pytest.mark.usefixtures("plain_consoles")


@pytest.fixture
def root(tmp_path: Path, plain_consoles: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def key(number: int) -> str:
    return hashlib.sha256(bytes([number])).hexdigest()


def filled(root: Path, side: int, photos: int, days: float = 0.0) -> Path:
    """A store of black photos that was not used for so many days."""
    folder = folder_of(root, side=side, interpolation="bilinear", reading="refuse")
    with closing(Store(folder)) as opened:
        for number in range(photos):
            opened.put(key(number), np.zeros((500, 200, 3), np.uint8))
    for path in folder.iterdir():
        os.utime(path, (time.time() - days * 86400,) * 2)
    return folder


def test_stores_are_listed_with_their_total(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [filled(root, 64, photos=1), filled(root, 128, photos=4, days=3)]
    assert cli.run(["cache"]) == 0
    said = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in said.out.splitlines()}
    used = [time.strftime("%Y-%m-%d", time.localtime(time.time() - 86400 * d)) for d in (0, 3)]
    assert rows[folders[0].name][:4] == ["1", "0.3", "MB", used[0]]
    assert rows[folders[1].name][:4] == ["4", "1.2", "MB", used[1]]
    assert rows["total"] == ["5", "1.5", "MB"]
    assert str(root) in said.out and not said.err


def test_clear_removes_all_but_what_is_not_ours(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = filled(root, 64, photos=1), filled(root, 128, photos=1)
    strangers = [root / "probes.json", root / "photos" / "one.jpg", second / "notes.txt"]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("not decoded")
    assert cli.run(["cache", "--clear"]) == 0
    said = capsys.readouterr()
    assert said.out == f"no decoded photos are kept in {root}\n"
    assert said.err == "removed 0.6 MB\n"
    assert not first.exists()
    assert [path.read_text() for path in strangers] == ["not decoded"] * 3


def test_clear_leaves_what_is_used_and_says_so(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used, unused = filled(root, 64, photos=2), filled(root, 128, photos=1)
    with closing(Store(used)) as opened:
        picture = opened.get(key(1))
        assert picture is not None
        assert cli.run(["cache", "--clear"]) == 0
        said = capsys.readouterr()
        assert f"left 0.6 MB of `{used.name}`: a process uses it\n" in said.err
        assert "removed 0.3 MB" in said.err
        assert used.name in said.out and unused.name not in said.out
        assert picture.max() == 0
    del picture
    assert cli.run(["cache", "--clear"]) == 0
    assert not kept(root)


def test_only_what_is_old_is_removed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {days: filled(root, days, photos=1, days=days) for days in (1, 20, 40)}
    assert cli.run(["cache", "--older-than", "30"]) == 0
    assert {each.path.parent for each in kept(root)} == {folders[1], folders[20]}
    assert cli.run(["cache", "--older-than", "0.5"]) == 0
    assert not kept(root)
    assert "removed 0.6 MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clear", "--older-than", "3"], "leave --older-than out"),
        (["--older-than", "-1"], "below 0 days: -1.0"),
        (["--older-than", "nan"], "below 0 days: nan"),
    ],
)
def test_what_cannot_be_meant_removes_nothing(
    arguments: list[str], said: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(root, 64, photos=1, days=9)
    assert cli.run(["cache", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert kept(root)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--clear"]])
def test_the_command_does_not_import_torch(arguments: list[str], root: Path) -> None:
    filled(root, 64, photos=1)
    script = (
        "import sys\nfrom fieldguide.cli import run\n"
        "code = run(sys.argv[1:])\n"
        "heavy = {'torch', 'timm', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)\n"
    )
    subprocess.run([sys.executable, "-c", script, "cache", *arguments], check=True)
