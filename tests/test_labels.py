import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fits import resolved_recipe
from photos import encoded, photograph, save

from fieldguide.errors import ResourceError
from fieldguide.photos import check
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.folders import scan
from fieldguide.photos.inspect import inspect
from fieldguide.photos.pixels import Reading
from fieldguide.runs import run as runs
from fieldguide.runs.run import Run
from fieldguide.study import labels
from fieldguide.study.labels import doubts
from fieldguide.train.result import TrainedFold

SURE = 0.9


def checked(catalog: Catalog, fold_of: Callable[[int], int] = lambda row: row % 2) -> Catalog:
    """The catalog as a fit leaves it: with hashes, and a fold for each training photo."""
    usable, _ = check.usable(catalog, inspect(catalog))
    photos = tuple(
        replace(photo, fold=fold_of(row) if photo.split == "train" else None)
        for row, photo in enumerate(usable.photos)
    )
    return replace(usable, photos=photos)


def run_of(
    folder: Path,
    catalog: Catalog,
    believed: Sequence[str],
    *,
    done: Sequence[int] = (0, 1),
    truncated: str = "refuse",
) -> Run:
    """A run without training: each photo is `believed` to be a class, at 90 %."""
    settings = resolved_recipe(backbone="resnet18", folds=2, truncated=truncated)
    folder.mkdir()
    run = runs.create(folder, settings, catalog, catalog, {}, {"photos": str(catalog.root)})
    others = (1 - SURE) / (len(run.classes) - 1)
    probabilities = np.full((len(catalog), len(run.classes)), others)
    for row, label in enumerate(believed):
        probabilities[row, run.classes.index(label)] = SURE
    for fold in done:
        logits = np.log(probabilities[run.folds[fold].test]).astype(np.float32)
        runs.save_fold(run, fold, TrainedFold({}, 0, logits, np.empty((0, 0, 0)), [], [], []))
    return Run(folder)


def collection(root: Path, each: int = 8, names: Sequence[str] = ("ash", "elm", "oak")) -> Catalog:
    for number, name in enumerate(names):
        for index in range(each):
            save(root / name / f"{index}.jpg", 100 * number + index)
    return scan(root)


def true_labels(catalog: Catalog) -> list[str]:
    return [photo.label or "" for photo in catalog.photos]


@pytest.fixture
def photos(tmp_path: Path) -> Catalog:
    """Eight photos each of ash, elm and oak."""
    return checked(collection(tmp_path / "photos"))


@pytest.fixture
def swapped(photos: Catalog) -> tuple[Catalog, list[str]]:
    """The first oak is called ash, and what each photo shows."""
    shown = true_labels(photos)
    row = [photo.path for photo in photos.photos].index("oak/0.jpg")
    changed = replace(photos.photos[row], label="ash")
    return replace(photos, photos=(*photos.photos[:row], changed, *photos.photos[row + 1 :])), shown


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_swapped_label_is_found_and_told(
    tmp_path: Path, swapped: tuple[Catalog, list[str]]
) -> None:
    run = run_of(tmp_path / "run", *swapped)
    found = doubts(run)
    (doubt,) = found.ranked
    assert (doubt.path, doubt.label, doubt.suggested) == ("oak/0.jpg", "ash", "oak")
    assert doubt.reason == "`oak` at 90 %, its own label at 5 %"
    assert doubt.other == ""
    assert doubt.fold == next(p.fold for p in run.catalog.photos if p.path == "oak/0.jpg")
    assert doubt.given_probability == pytest.approx(0.05)
    assert doubt.suggested_probability == pytest.approx(0.9)
    assert found.ranked == (doubt,)
    assert (found.photos, found.folds, found.planned_folds, found.unseen) == (24, (0, 1), 2, 0)
    assert found.notes == ()


def test_right_labels_give_an_empty_table(tmp_path: Path, photos: Catalog) -> None:
    found = doubts(run_of(tmp_path / "run", photos, true_labels(photos)))
    labels.write(tmp_path / "labels.csv", found)
    assert found.ranked == ()
    assert (tmp_path / "labels.csv").read_text() == ",".join(labels.HEADER) + "\n"


def test_truncated_photos_are_compared_where_the_fit_used_them(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    collection(root)
    data = encoded(photograph(0), quality=90)
    (root / "ash" / "0.jpg").write_bytes(data[: len(data) * 9 // 10])
    catalog = scan(root)
    kept, _ = check.usable(catalog, inspect(catalog, reading=Reading(truncated="keep")))
    kept = replace(kept, photos=tuple(replace(photo, fold=0) for photo in kept.photos))
    shown = true_labels(kept)
    assert doubts(run_of(tmp_path / "a", kept, shown, done=[0], truncated="keep")).unseen == 0
    assert doubts(run_of(tmp_path / "b", kept, shown, done=[0])).unseen == 1


def test_the_table_holds_labels_and_paths_exactly(tmp_path: Path) -> None:
    names = ('a "b", c', "=cmd|x", "01")
    catalog = checked(collection(tmp_path / "photos", names=names))
    shown = true_labels(catalog)
    first = replace(catalog.photos[0], label=names[0])
    catalog = replace(catalog, photos=(first, *catalog.photos[1:]))
    labels.write(tmp_path / "labels.csv", doubts(run_of(tmp_path / "run", catalog, shown)))
    (row,) = table(tmp_path / "labels.csv")
    assert tuple(row) == labels.HEADER
    assert row | {"reason": ""} == {
        "rank": "1",
        "path": first.path,
        "label": 'a "b", c',
        "suggested": shown[0],
        "given_probability": "0.05",
        "suggested_probability": "0.9",
        "fold": "0",
        "reason": "",
        "other": "",
    }


def test_photos_of_folds_that_are_not_done_are_left_out_and_that_is_said(
    tmp_path: Path, swapped: tuple[Catalog, list[str]]
) -> None:
    catalog, shown = swapped
    fold = next(photo.fold for photo in catalog.photos if photo.path == "oak/0.jpg")
    assert fold is not None
    found = doubts(run_of(tmp_path / "with", catalog, shown, done=[fold]))
    assert [doubt.path for doubt in found.ranked] == ["oak/0.jpg"]
    assert (found.photos, found.folds) == (12, (fold,))
    assert found.notes == ("1 of 2 folds is done: only its photos were looked at",)
    assert doubts(run_of(tmp_path / "without", catalog, shown, done=[1 - fold])).ranked == ()


def test_a_run_without_a_fold_is_refused(tmp_path: Path, photos: Catalog) -> None:
    run = run_of(tmp_path / "run", photos, true_labels(photos), done=[])
    with pytest.raises(ResourceError, match="is trained yet"):
        doubts(run)


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "under 0.01 %"),
        (0.000_2, "0.02 %"),
        (0.004, "0.4 %"),
        (0.009_6, "1 %"),
        (0.051, "5 %"),
        (0.97, "97 %"),
        (0.994_9, "99 %"),
        (0.995, "over 99 %"),
        (1.0, "over 99 %"),
    ],
)
def test_probabilities_in_words(probability: float, words: str) -> None:
    assert labels.percent(probability) == words


def with_look_alikes(root: Path) -> Catalog:
    """`elm/0` again as `oak/z`, encoded anew, and `ash/0` again under its own name."""
    collection(root)
    copy = photograph(100)  # the first elm
    (root / "oak" / "z.jpg").write_bytes(encoded(copy, quality=60))
    (root / "ash" / "again.jpg").write_bytes((root / "ash" / "0.jpg").read_bytes())
    return scan(root)


def test_pictures_under_two_labels_are_ranked_by_their_least_probable_label(
    tmp_path: Path,
) -> None:
    root = tmp_path / "photos"
    collection(root)
    for number in (0, 1):  # two ashes that are oaks too; only the second is believed to be one
        data = (root / "ash" / f"{number}.jpg").read_bytes()
        (root / "oak" / f"copy-{number}.jpg").write_bytes(data)
    catalog = checked(scan(root), lambda row: 0)
    shown = true_labels(catalog)
    shown[[photo.path for photo in catalog.photos].index("ash/1.jpg")] = "oak"
    found = doubts(run_of(tmp_path / "run", catalog, shown, done=[0]))
    assert [(doubt.path, doubt.label) for doubt in found.ranked] == [
        ("ash/1.jpg", "ash"),
        ("oak/copy-1.jpg", "oak"),
        ("ash/0.jpg", "ash"),
        ("oak/copy-0.jpg", "oak"),
    ]


def test_look_alikes_under_two_labels_come_first(tmp_path: Path) -> None:
    catalog = checked(with_look_alikes(tmp_path / "photos"), lambda row: 0)
    shown = ["elm" if photo.path == "oak/z.jpg" else photo.label or "" for photo in catalog.photos]
    ash = [photo.path for photo in catalog.photos].index("ash/3.jpg")
    shown[ash] = "oak"
    found = doubts(run_of(tmp_path / "run", catalog, shown, done=[0]))
    paths = [(doubt.path, doubt.suggested, doubt.other) for doubt in found.ranked]
    assert paths[:2] == [("oak/z.jpg", "elm", "elm/0.jpg"), ("elm/0.jpg", "oak", "oak/z.jpg")]
    assert paths[2:] == [("ash/3.jpg", "oak", "")]
    assert found.ranked[0].reason == "looks like elm/0.jpg, which is labelled `elm`"
    assert found.ranked[0].given_probability == pytest.approx(0.05)
    assert found.ranked[0].suggested_probability == pytest.approx(0.9)


def test_the_same_file_under_two_labels_is_called_so(tmp_path: Path) -> None:
    catalog = collection(tmp_path / "photos")
    data = (tmp_path / "photos" / "ash" / "0.jpg").read_bytes()
    (tmp_path / "photos" / "elm" / "0.jpg").write_bytes(data)
    catalog = checked(catalog, lambda row: 0)
    found = doubts(run_of(tmp_path / "run", catalog, true_labels(catalog), done=[0]))
    assert [doubt.reason for doubt in found.ranked] == [
        "is the same file as elm/0.jpg, which is labelled `elm`",
        "is the same file as ash/0.jpg, which is labelled `ash`",
    ]


def test_among_several_look_alikes_the_same_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    collection(root)
    (root / "elm" / "0.jpg").write_bytes(encoded(photograph(0), quality=50))
    (root / "oak" / "z.jpg").write_bytes((root / "ash" / "0.jpg").read_bytes())
    catalog = checked(scan(root), lambda row: 0)
    run = run_of(tmp_path / "run", catalog, true_labels(catalog), done=[0])
    named = {doubt.path: doubt.other for doubt in doubts(run).ranked}
    assert named == {"ash/0.jpg": "oak/z.jpg", "oak/z.jpg": "ash/0.jpg", "elm/0.jpg": "ash/0.jpg"}


def test_photos_of_other_parts_are_not_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    collection(root / "train")
    save(root / "val" / "oak" / "same.jpg", 0)  # the first ash
    save(root / "test" / "elm" / "same.jpg", 0)
    catalog = checked(scan(root))
    found = doubts(run_of(tmp_path / "run", catalog, true_labels(catalog)))
    assert (found.ranked, found.photos) == ((), 24)


def test_photos_that_are_gone_or_changed_are_told_and_still_judged(
    tmp_path: Path, swapped: tuple[Catalog, list[str]]
) -> None:
    catalog, shown = swapped
    run = run_of(tmp_path / "run", catalog, shown)
    before = doubts(run)
    catalog.file(catalog.photos[0]).unlink()
    save(catalog.file(catalog.photos[1]), 100)  # now it looks like the first elm
    found = doubts(run)
    assert found.ranked == before.ranked
    assert found.unseen == 2
    (note,) = found.notes
    assert note.startswith("2 of 24 photos are not there or not as they were")


def test_moved_photos_are_found_where_they_are_said_to_lie(tmp_path: Path) -> None:
    catalog = checked(with_look_alikes(tmp_path / "photos"), lambda row: 0)
    run = run_of(tmp_path / "run", catalog, true_labels(catalog), done=[0])
    here = doubts(run)
    (tmp_path / "photos").rename(tmp_path / "moved")
    gone, moved = doubts(run), doubts(Run(run.folder, photos=tmp_path / "moved"))
    assert moved == here
    assert sum(bool(doubt.other) for doubt in here.ranked) == 2
    assert not any(doubt.other for doubt in gone.ranked)
    assert gone.unseen == len(catalog)


def test_progress_counts_the_photos_that_are_read(tmp_path: Path, photos: Catalog) -> None:
    counts: list[int] = []
    doubts(run_of(tmp_path / "run", photos, true_labels(photos)), progress=counts.append)
    assert counts[-1] == 24


# --- from a real fit ------------------------------------------------------------------------------


def test_a_fit_gives_a_table_and_its_folder_stays_as_it_was(discs: Path, tmp_path: Path) -> None:
    from fits import small_fit

    run = small_fit(discs, tmp_path / "run", epochs=1, replicas=1)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    found = doubts(run)
    labels.write(run.folder / labels.TABLE, found)
    rows = table(run.folder / labels.TABLE)
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    names = {photo.path: photo for photo in run.catalog.photos}
    assert all(names[row["path"]].label == row["label"] != row["suggested"] for row in rows)
    assert all(str(names[row["path"]].fold) == row["fold"] for row in rows)
    assert {path: path.read_bytes() for path in before} == before
    assert runs.Run(run.folder).complete


def test_a_network_that_is_seldom_right_cannot_judge() -> None:
    one, other = (labels.Doubts((), 9, (0,), 1, 0, accuracy=share) for share in (0.07, 0.5))
    assert other.notes == ()
    assert "classifies 7% of the photos correctly: it cannot judge" in one.notes[0]
