import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import small_fit
from hypothesis import given
from hypothesis import strategies as st

import fieldguide as fg
from fieldguide.errors import DataError
from fieldguide.photos import augment
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.report import collection
from fieldguide.runs.run import FINDINGS
from fieldguide.storage import files
from fieldguide.train import step as steps


def catalog_of(*photos: Photo) -> Catalog:
    return Catalog(Path("photos"), photos)


def photo(path: str, label: str | None = "a", **more: Any) -> Photo:
    return Photo(path, label, **more)


def test_classes_come_with_their_training_photos_the_most_first() -> None:
    photos = [photo(f"{n}", "abbccc"[n]) for n in range(6)] + [photo("v", "a", split="val")] * 9
    assert collection.class_counts(catalog_of(*photos)) == [("c", 3), ("b", 2), ("a", 1)]


def test_parts_without_photos_are_not_listed() -> None:
    found = collection.part_counts(catalog_of(photo("1"), photo("2", None, split="test")))
    assert found == [("train", 1, 1), ("test", 1, 0)]


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=60), st.integers(1, 30))
def test_bins_hold_every_size_once(values: list[int], most: int) -> None:
    bins = collection.binned(values, most)
    assert len(bins) <= most
    assert bins[0][0] == min(values) and bins[-1][1] == max(values) + 1
    assert [beyond for _, beyond, _ in bins[:-1]] == [first for first, _, _ in bins[1:]]
    for first, beyond, count in bins:
        assert first < beyond and count == sum(first <= value < beyond for value in values)


def test_sizes_are_those_of_upright_pictures_and_what_is_gone_is_counted(
    trained: fg.Run, tmp_path: Path
) -> None:
    sizes = collection.look_at(trained)
    assert sizes.asked == len(sizes.shorter_sides) == len(trained.catalog) and not sizes.unreadable
    assert set(sizes.shorter_sides) == {40}
    few = collection.look_at(trained, 5)
    assert len(few.shorter_sides) == few.asked == 5
    gone = collection.look_at(fg.Run(trained.folder, photos=tmp_path))
    assert gone.shorter_sides == () and gone.unreadable == {"file not found": len(trained.catalog)}


@pytest.mark.parametrize("classes", [2, 40, 41, 300])
@pytest.mark.parametrize("most", [3, 5000])
def test_every_class_is_in_the_chart(classes: int, most: int) -> None:
    counts = [("most", most), *((f"c{n}", 1) for n in range(classes - 1))]
    spec = collection.counts_chart(counts).to_dict()
    (rows,) = spec["datasets"].values()
    assert [(row["class"], row["photos"]) for row in rows] == counts
    across = "x" if classes <= 40 else "y"
    assert (spec["encoding"][across]["scale"].get("type") == "log") == (most == 5000)


def test_the_table_of_findings_is_shown_by_kind(trained: fg.Run, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    rows = [("unreadable", f"{n}.jpg", "truncated <b>", "bring it back") for n in range(12)]
    rows.insert(3, ("duplicate", 'x".jpg', "same as y", ""))
    files.write_csv(tmp_path / "run" / FINDINGS, ("kind", "path", "reason", "hint"), rows)
    run = fg.Run(tmp_path / "run")
    found, why = collection.findings(run)
    assert why == "" and [(kind.kind, kind.times) for kind in found] == [
        ("unreadable", 12),
        ("duplicate", 1),
    ]
    assert len(found[0].such_as) == 10 and found[0].hint == "bring it back"
    body = collection.section(run)
    assert "truncated &lt;b&gt;" in body and "x&#34;.jpg" in body


def test_an_empty_table_says_that_nothing_was_found(tmp_path: Path) -> None:
    files.write_csv(tmp_path / "f.csv", ("kind", "path", "reason", "hint"), [])
    assert collection.read_findings(tmp_path / "f.csv") == []
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="its columns are not kind, path, reason, hint"):
        collection.read_findings(tmp_path / "other.csv")


def test_without_the_table_the_catalog_tells_what_it_can() -> None:
    catalog = catalog_of(
        photo("1", "a", sha256="x", group="1"),
        photo("2", "b", sha256="x", group="1"),
        photo("3", "a", sha256="y", group="3"),
        photo("4", "a", sha256="y", group="3", split="val"),
        photo("5", "a", sha256="z"),
    )
    found = {kind.kind: kind for kind in collection.known_findings(catalog, 8)}
    assert {name: kind.times for name, kind in found.items()} == {
        "left-out": 3,
        "same-file": 2,
        "same-file-two-labels": 1,
        "groups": 2,
        "leaks": 1,
    }
    assert found["leaks"].such_as == (("3", "and 4"),)


def test_where_nothing_is_amiss_nothing_is_found() -> None:
    catalog = catalog_of(photo("1", sha256="x"), photo("2", "b", sha256="y", split="val"))
    assert collection.known_findings(catalog, 2) == []


def test_the_folds_share_all_training_photos(trained: fg.Run) -> None:
    table = collection.fold_table(trained.catalog, trained.classes, 3)
    assert table.sum() == sum(len(fold.test) for fold in trained.folds)
    for fold, row in zip(trained.folds, table, strict=True):
        assert row.tolist() == np.bincount(trained.targets[fold.test], minlength=3).tolist()
    for share, fold in zip(
        collection.fold_shares(trained.catalog, table), trained.folds, strict=True
    ):
        assert (share.photos, share.classes) == (len(fold.test), 3)
        assert share.fewest <= share.photos / 3 <= share.most
        assert 1 <= share.groups <= share.photos


def test_the_most_uneven_class_is_named() -> None:
    table = np.array([[3, 9, 1], [3, 2, 1], [4, 4, 0]])
    assert collection._apart(("a", "b", "c"), table) == ("b", 2, 9)


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup", "either"])
def test_the_batch_is_that_of_the_first_step_to_the_pixel(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mix: str
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(*given: Any, **more: Any) -> Any:
        mixed, shares = augment.mix_batch(*given, **more)
        seen.append((mixed.clone(), shares))  # its memory is used again
        return mixed, shares

    monkeypatch.setattr(steps, "mix_batch", watched)
    run = small_fit(
        discs, tmp_path / "run", mix=mix, augment="randaugment", epochs=1, warmup=0.0, erasing=0.5
    )
    state = torch.get_rng_state()
    images, shares = collection.training_batch(run)
    assert torch.equal(torch.get_rng_state(), state)
    mixed, expected = seen[0]
    assert run.recipe.mean != "auto" and run.recipe.std != "auto"
    mean, std = np.array(run.recipe.mean), np.array(run.recipe.std)
    pixels = 255 * (mixed.permute(0, 2, 3, 1).double().numpy() * std + mean)
    assert np.abs(pixels - images).max() <= 0.5001
    np.testing.assert_array_equal(shares, expected.numpy())


def test_names_are_harmless_and_legible(hostile: fg.Run) -> None:
    body = collection.section(hostile)
    outside = body.replace('<script type="application/json">', "")
    assert "<script" not in outside
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in body and "🌻" + "x" * 200 in body


def test_a_batch_is_shown_with_its_shares(hostile: fg.Run) -> None:
    body = collection.section(hostile)
    shown = body[body.index("A training batch") :]
    assert shown.count("<figure>") == shown.count("data:image/jpeg") == 4
    assert "N{NO" not in shown and "\N{NO-BREAK SPACE}% <bdi>" in shown


def test_without_photos_it_says_what_is_missing(hostile: fg.Run, tmp_path: Path) -> None:
    body = collection.section(fg.Run(hostile.folder, photos=tmp_path))
    assert "of the 24 photos looked at cannot be read now: file not found." in body
    assert "The first training batch cannot be drawn again: a photo cannot be read any more" in body
    assert "<img" not in body


def test_before_the_first_fold_there_is_all_of_it(hostile: fg.Run, tmp_path: Path) -> None:
    shutil.copytree(hostile.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "folds")
    assert collection.section(fg.Run(tmp_path / "run")).count("data:image/jpeg") == 4
