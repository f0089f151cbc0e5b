from pathlib import Path

import numpy as np
import pytest

from fieldguide.storage import cache_folder, copies, features

KEYS = [f"{number:064x}" for number in (1, 0xABCDEF)]
VALUES = np.array([[1.5, -2.0, 3.0], [0.1, 0.2, 0.3]], dtype=np.float32)


def silent(message: str) -> None:
    raise AssertionError(message)


def test_what_was_written_is_read_by_photo(tmp_path: Path) -> None:
    folder = features.folder_of(tmp_path, "resnet18 at 128 px")
    assert features.read(folder, KEYS) == {}
    features.write(folder, KEYS[:1], VALUES[:1], silent)
    features.write(folder, KEYS[1:], VALUES[1:], silent)
    found = features.read(folder, KEYS)
    assert {*found} == {*KEYS}
    assert {*features.read(folder, KEYS[1:])} == {KEYS[1]}
    np.testing.assert_array_equal([found[key] for key in KEYS], VALUES)
    assert features.read(features.folder_of(tmp_path, "resnet18 at 160 px"), KEYS) == {}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_features_count_as_none(tmp_path: Path, damage: str) -> None:
    folder = features.folder_of(tmp_path, "any")
    features.write(folder, KEYS, VALUES, silent)
    (path,) = folder.glob("*.safetensors")
    content = path.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"cut": content[:-4], "changed": changed, "empty": b""}[damage])
    assert features.read(folder, KEYS) == {}


def test_a_full_disk_is_told_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = features.folder_of(tmp_path, "any")
    monkeypatch.setattr(features, "FREE_BYTES", 1 << 62)
    told: list[str] = []
    features.write(folder, KEYS, VALUES, told.append)
    assert told == ["features of photos are not kept: the disk is nearly full"]
    assert features.read(folder, KEYS) == {}


def test_they_are_listed_with_the_cache_and_removed_if_unused(tmp_path: Path) -> None:
    folder = features.folder_of(tmp_path, "resnet18 at 128 px")
    features.write(folder, KEYS, VALUES, silent)
    (listed,) = copies.kept(tmp_path)
    assert (listed.kind, listed.name, listed.count) == ("features", "resnet18 at 128 px", 2)
    assert copies.faults(listed) == []
    assert copies.remove(listed) == "a process uses it"  # this one
    other = cache_folder.folder_of(features.KIND, "of a process that ended", tmp_path)
    folder.rename(other)
    (other / "source.txt").unlink()
    (listed,) = copies.kept(tmp_path)
    assert copies.remove(listed) == "" and not other.exists()
