"""Folders that are damaged or made up: each is refused in words, and nothing hangs or is written.

A mutator changes one key, cell, member or file at a time; hashes are made to agree again, so that
what is tested is the reading, not the hashes.
"""

import csv
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

import fieldguide as fg
from fieldguide.errors import FieldguideError, ResourceError, UsageError
from fieldguide.photos import pixels
from fieldguide.photos.folders import scan
from fieldguide.photos.pack import pack
from fieldguide.predict.classifier import Classifier
from fieldguide.storage import files
from fieldguide.storage.shards import INDEX

VALUES: tuple[Any, ...] = (None, -1, 0, 10**12, 1.5, "x", "", [], {}, True, [None], {"a": 1}, 1e308)
SECONDS = 60  # that one variant may take

Mutate = Callable[[Path, random.Random], None]


@pytest.fixture(autouse=True)
def no_variant_hangs() -> Iterator[None]:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("a variant hangs")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sealed(folder: Path) -> None:
    """Make every manifest of a folder agree with its files again, the innermost first."""
    for path in sorted(folder.rglob("*.json"), key=lambda path: (-len(path.parts), path.name)):
        if path.name in {"manifest.json", "setup.json"} and path.is_file():
            names = [name for name in files.read_manifest(path.parent, name=path.name)]
            there = [name for name in names if (path.parent / name).is_file()]
            files.write_manifest(path.parent, there, name=path.name)


def places_in(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3])
    for key, below in inner:
        yield (*above, key)
        if isinstance(below, dict | list):
            yield from places_in(below, (*above, key))


def other_json(path: Path, chance: random.Random) -> None:
    content = json.loads(path.read_bytes())
    *above, last = chance.choice([*places_in(content)])
    target = content
    for key in above:
        target = target[key]
    if chance.random() < 0.25:
        del target[last]
    else:
        target[last] = chance.choice(VALUES)
    path.write_text(json.dumps(content))


def other_cells(path: Path, chance: random.Random) -> None:
    rows = list(csv.reader(io.StringIO(path.read_text("utf-8"), newline="")))
    row = chance.choice(rows[:1] * 3 + rows) if rows else []
    if row and chance.random() < 0.8:
        row[chance.randrange(len(row))] = chance.choice(["", "x", "nan", "-1", "1e999", "9" * 30])
    elif row:
        row.pop()
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    path.write_text(out.getvalue(), "utf-8")


def other_settings(path: Path, chance: random.Random) -> None:
    lines = path.read_text("utf-8").splitlines()
    number = chance.choice([n for n, line in enumerate(lines) if "=" in line and line[0] != "#"])
    name = lines[number].partition("=")[0]
    value = chance.choice(["-1", "1000000000", '"x"', "[]", "nan", "true", '""', "{}", "="])
    lines[number] = f"{name}= {value}"
    path.write_text("\n".join(lines), "utf-8")


def other_tensors(path: Path, chance: random.Random) -> None:
    tensors = dict(load_tensors(path.read_bytes()))
    name = chance.choice(sorted(tensors))
    array = tensors[name]
    tensors[name] = chance.choice(
        [
            array.reshape(-1)[:-1],
            array[None],
            array.astype(np.float64 if array.dtype == np.float32 else np.float32),
            np.full_like(array, np.nan if array.dtype.kind == "f" else -7),
        ]
    )
    if chance.random() < 0.3:
        tensors[f"{name}.other"] = tensors.pop(name)
    path.write_bytes(save_tensors({key: np.ascontiguousarray(a) for key, a in tensors.items()}))


def other_arrays(path: Path, chance: random.Random) -> None:
    with np.load(path) as found:
        arrays: dict[str, Any] = dict(found)
    name = chance.choice(sorted(arrays))
    array = arrays[name]
    other = [array[..., None], array.reshape(-1)[:1], np.array("x"), np.full_like(array, 99)]
    arrays[name] = chance.choice([*other, array * np.nan])
    if chance.random() < 0.3:
        del arrays[name]
    writer = np.savez_compressed if chance.random() < 0.2 else np.savez
    with path.open("wb") as file:
        writer(file, **arrays)


def other_bytes(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if chance.random() < 0.5:
        del data[chance.randrange(len(data) + 1) :]
    for _ in range(min(len(data), 3)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data)


def no_file(path: Path, chance: random.Random) -> None:
    path.unlink()
    kind = chance.randrange(3)
    if kind == 1:
        path.mkdir()
    if kind == 2:
        os.mkfifo(path)


FITTING: dict[str, Mutate] = {
    ".json": other_json,
    ".csv": other_cells,
    ".toml": other_settings,
    ".safetensors": other_tensors,
    ".npz": other_arrays,
}


def variants(folder: Path, count: int, use: Callable[[], object]) -> tuple[int, int]:
    """How many variants of the folder are used, and refused; all else fails the test."""
    chance = random.Random(count)
    members = sorted(path for path in folder.rglob("*") if path.is_file())
    members = [path for path in members if path.name not in {files.LOCK, "events.jsonl"}]
    original = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    used = refused = 0
    for number in range(count):
        path = members[number % len(members)]
        mutate = FITTING.get(path.suffix, other_bytes)
        if chance.random() < 0.25:
            mutate = chance.choice([other_bytes, no_file])
        mutate(path, chance)
        if path.name not in {"manifest.json", "setup.json"} and chance.random() < 0.9:
            sealed(folder)
        before = {each: each.stat().st_mtime_ns for each in folder.rglob("*")}
        signal.alarm(SECONDS)
        try:
            use()
            used += 1
        except FieldguideError as error:
            assert isinstance(error, ResourceError | UsageError), (mutate, path, error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"variant {number}: {mutate.__name__} of {path}") from error
        signal.alarm(0)
        assert {each: each.stat().st_mtime_ns for each in folder.rglob("*")} == before
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        for each, content in original.items():
            if not each.is_file() or each.read_bytes() != content:
                each.write_bytes(content)
    use()  # and what was not changed is good
    return used, refused


def test_made_up_classifiers_are_refused_in_words(
    trained: fg.Run, parts: Path, tmp_path: Path
) -> None:
    folder = trained.classifier().save(tmp_path / "classifier")
    photo = next(parts.rglob("*.jpg"))

    def use() -> None:
        answers = Classifier.load(folder).predict([photo])
        assert np.isfinite(answers.probabilities).all()

    used, refused = variants(folder, 200, use)
    assert refused > used


def read_whole(folder: Path) -> None:
    """Read all that commands take from a run."""
    run = fg.Run(folder)
    assert np.isfinite(run.scores.accuracy)
    assert run.per_class.support.sum() == run.scores.photos
    assert run.seconds >= 0 and run.parts > 0 and run.models() == {}
    _ = run.given, run.outside, run.groups
    for fold in run.done:
        run.table(fold, "merges.csv")
    run.weights()
    run.replicas(0)
    run.classifier()


def test_made_up_runs_are_refused_in_words(trained: fg.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    (folder / "report.html").unlink(missing_ok=True)
    used, refused = variants(folder, 240, lambda: read_whole(folder))
    assert refused > used


def test_a_run_of_a_thousand_million_folds_is_refused_at_once(
    trained: fg.Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    recipe = folder / "recipe.toml"
    text = recipe.read_text("utf-8")
    recipe.write_text(text.replace("\nfolds = 3", f"\nfolds = {10**9}"), "utf-8")
    sealed(folder)
    with pytest.raises(ResourceError, match="folds"):
        _ = fg.Run(folder).done


def test_an_empty_manifest_hides_no_member(trained: fg.Run, tmp_path: Path) -> None:
    folder = trained.classifier().save(tmp_path / "classifier")
    files.write_manifest(folder, [])
    with pytest.raises(ResourceError, match=r"classifier\.json.*not in the manifest"):
        Classifier.load(folder)


def test_made_up_indexes_of_shards_are_refused_in_words(parts: Path, tmp_path: Path) -> None:
    pack(scan(parts), tmp_path / "packed", shard_bytes=100_000)
    place = tmp_path / "packed" / INDEX
    whole = place.read_bytes()
    chance = random.Random(3)
    refused = 0
    for number in range(120):
        lines = whole.splitlines(keepends=True)
        row = 0 if number % 2 else chance.randrange(len(lines))
        content = json.loads(lines[row])
        target = chance.choice([*places_in(content)])
        inner = content
        for key in target[:-1]:
            inner = inner[key]
        inner[target[-1]] = chance.choice(VALUES)
        lines[row] = json.dumps(content).encode() + b"\n"
        place.write_bytes(b"".join(lines))
        os.utime(place, ns=(number, number))
        signal.alarm(SECONDS)
        try:
            found = scan(tmp_path / "packed")
            for photo in found.photos:
                pixels.read(found.file(photo))
        except (FieldguideError, OSError):
            refused += 1
        signal.alarm(0)
    assert refused > 40
