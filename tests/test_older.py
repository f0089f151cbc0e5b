import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_photo
from fits import SMALL, Killed, killer, results, small_recipe
from PIL import Image

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.errors import DataError, UsageError
from fieldguide.fitting import older as going_on
from fieldguide.fitting.fit import fit
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.older import Older
from fieldguide.fitting.prepare import prepare
from fieldguide.fitting.progress import Watcher
from fieldguide.machine.device import training_threads
from fieldguide.network.network import load_weights
from fieldguide.photos.augment import Normaliser
from fieldguide.photos.catalog import Photo, with_hashes
from fieldguide.report import verdict
from fieldguide.report.build import build
from fieldguide.storage import files
from fieldguide.study import holdout_scores
from fieldguide.train.evaluate import evaluate
from fieldguide.train.probe import STRENGTHS, Known, features_of, fit_head

SHORT: dict[str, Any] = {"replicas": 1, "mix": "none", "epochs": 1, "warmup": 0.0}


def go_on(photos: Path, out: Path, old: Path | None, **settings: Any) -> fg.Run:
    watcher = settings.pop("watcher", None)
    recipe = small_recipe(**SHORT | settings)
    return fit(fg.scan(photos), recipe, out, start_from=old, watcher=watcher)


@pytest.fixture(scope="module")
def old(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """A finished run of two folds; read only."""
    return go_on(discs, tmp_path_factory.mktemp("old") / "old", None)


@pytest.fixture(scope="module")
def grown(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same photos: one renamed, one relabelled, one gone; with new ones and a new class."""
    folder = shutil.copytree(discs, tmp_path_factory.mktemp("grown") / "photos")
    (folder / "amber/000.jpg").rename(folder / "amber/renamed.jpg")
    (folder / "amber/001.jpg").rename(folder / "blue/relabelled.jpg")
    (folder / "crimson/007.jpg").unlink()
    for number in range(4):
        draw_photo(folder / f"blue/new{number}.jpg", (30, 60, 220), 7000 + number)
        draw_photo(folder / f"drab/new{number}.jpg", (90, 90, 90), 8000 + number)
    return folder


@pytest.fixture(scope="module")
def went(old: fg.Run, grown: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """The run that goes on from the old one; read only."""
    return go_on(grown, tmp_path_factory.mktemp("went") / "new", old.folder)


def folds_by_content(run: fg.Run) -> dict[str, int | None]:
    return {photo.sha256: photo.fold for photo in run.catalog.photos}


def test_old_photos_keep_their_folds_and_new_ones_fill_up(old: fg.Run, went: fg.Run) -> None:
    before, now = folds_by_content(old), folds_by_content(went)
    kept = before.keys() & now.keys()
    assert len(kept) == 23
    assert all(before[key] == now[key] for key in kept)
    for label in ("blue", "drab"):
        counts = Counter(p.fold for p in went.catalog.photos if p.label == label)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_each_fold_starts_from_its_own_weights_which_never_saw_what_it_tests(
    old: fg.Run, went: fg.Run
) -> None:
    trained = [{old.catalog.photos[row].sha256 for row in fold.train} for fold in old.folds]
    for fold in went.folds:
        tested = {went.catalog.photos[row].sha256 for row in fold.test}
        assert not tested & trained[fold.index]
        start, logits = went.start(fold.index)
        weights = old.weights(fold.index)
        for name, array in weights.items():
            same = start[name] if array.shape == start[name].shape else start[name][:3]
            np.testing.assert_array_equal(same, array)  # drab is the last of four classes
        assert logits is not None
        job = fold_jobs(went, went.catalog.root)(fold.index)
        assert torch.equal(
            job.start["head.linear.bias"], torch.from_numpy(start["head.linear.bias"])
        )
    assert set(old.weights()) == set(went.weights())
    assert all(
        np.array_equal(old.weights()[n], w) for n, w in went.weights().items() if "head" not in n
    )


def test_rows_of_a_new_class_are_fitted_to_the_folds_own_training_photos(
    old: fg.Run, went: fg.Run
) -> None:
    for fold in went.folds:
        job = fold_jobs(went, went.catalog.root)(fold.index)
        load_weights(job.network, job.start)
        found = {
            part: features_of(
                job.network,
                job.loader,
                rows,
                normaliser=lambda: Normaliser(job.recipe.mean, job.recipe.std, job.device),  # noqa: B023
                device=job.device,
                precision=job.precision,
            )
            for part, rows in (("train", fold.train), ("test", fold.test))
        }
        weight, bias = (job.start[f"head.linear.{name}"] for name in ("weight", "bias"))
        free = torch.tensor([False, False, False, True])
        targets = torch.from_numpy(went.targets[fold.train])
        with training_threads(1):
            again = [
                fit_head(found["train"], targets, 4, strength, known=Known(weight, bias, free))
                for strength in STRENGTHS
            ]
        assert any(torch.equal(row.float(), weight) for row, _ in again)
        np.testing.assert_allclose(found["test"] @ weight.T + bias, job.start_logits, atol=1e-4)


def test_what_has_changed_is_told_and_recorded(old: fg.Run, grown: Path, tmp_path: Path) -> None:
    told: list[str] = []
    run = go_on(grown, tmp_path / "run", old.folder, watcher=Watcher(notice=told.append))
    assert "goes on from `old`: 23 photos of it (2 renamed, 1 relabelled), 8 new, 1 gone" in told
    assert "classes that are new: `drab`" in told
    assert any(each.startswith("to beat: ") and "by the weights of" in each for each in told)
    facts = run.environment["older"]
    assert (facts["known"], facts["new"], facts["gone"]) == (23, 8, 1)
    assert str(tmp_path) not in str(facts)


def test_the_report_pairs_old_photos_before_and_after(
    old: fg.Run, went: fg.Run, tmp_path: Path
) -> None:
    said = " ".join(verdict.told_after(went))
    assert "goes on from old" in said
    assert "On 23 photos of it accuracy went from" in said
    assert "with 4 classes instead of 3" in said
    assert "On 8 new photos it is" in said
    with (old.folder / "oof.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"] != "crimson/007.jpg"]
    wrong = sum(
        r["predicted"] != ("blue" if r["path"] == "amber/001.jpg" else r["label"]) for r in rows
    )
    assert f"from {100 * (1 - wrong / 23):.1f}" in said
    page = build(went, tmp_path / "report.html", heat_maps=False).read_text("utf-8")
    assert "On 8 new photos it is" in page and "This part could not be made" not in page


def test_a_killed_run_resumes_to_the_byte_without_the_older_one(
    old: fg.Run, grown: Path, went: fg.Run, tmp_path: Path
) -> None:
    copy = shutil.copytree(old.folder, tmp_path / "old")
    every = {"checkpoint_minutes": 1e-9}
    with pytest.raises(Killed):
        go_on(grown, tmp_path / "run", copy, **every, watcher=Watcher(on_step=killer(3)))
    shutil.rmtree(copy)
    assert results(go_on(grown, tmp_path / "run", copy, **every)) == results(went)


def test_a_run_has_one_start(
    old: fg.Run, went: fg.Run, discs: Path, grown: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(old.folder, tmp_path / "other")
    (other / "manifest.json").write_text((other / "manifest.json").read_text() + " ")
    with pytest.raises(UsageError, match="goes on from another run, `old`"):
        go_on(grown, went.folder, other)
    with pytest.raises(UsageError, match="goes on from no run"):
        go_on(discs, old.folder, went.folder)


def test_a_class_that_is_left_out_loses_its_row(old: fg.Run, discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    shutil.rmtree(photos / "amber")
    told: list[str] = []
    run = go_on(photos, tmp_path / "run", old.folder, watcher=Watcher(notice=told.append))
    assert "classes that are left out: `amber`" in told
    for fold in (0, 1):
        start, _ = run.start(fold)
        for name in ("head.linear.weight", "head.linear.bias"):
            np.testing.assert_array_equal(start[name], old.weights(fold)[name][1:])
    assert run.environment["older"]["gone"] == 8


def test_without_training_the_result_is_the_start(old: fg.Run, grown: Path, tmp_path: Path) -> None:
    run = go_on(grown, tmp_path / "run", old.folder, epochs=0, head_start="probe")
    for fold in (0, 1):
        start, logits = run.start(fold)
        assert all(np.array_equal(run.weights(fold)[name], start[name]) for name in start)
        np.testing.assert_array_equal(run.logits(fold), logits)


def test_heads_of_a_run_that_trained_none_are_fitted_again(
    discs: Path, grown: Path, tmp_path: Path
) -> None:
    instant = {"epochs": 0, "head_start": "probe"}
    old = go_on(discs, tmp_path / "old", None, **instant)
    run = go_on(grown, tmp_path / "run", old.folder, **instant)
    folds = [photo.fold for photo in run.catalog.photos]
    table = fg.scan(grown)
    same = table.of(table.table.with_column("fold", folds))
    alone = fit(same, small_recipe(**SHORT | instant), tmp_path / "alone")
    for fold in (0, 1):
        np.testing.assert_array_equal(alone.logits(fold), run.logits(fold))


@pytest.mark.parametrize("head", ["se", "attention"])
def test_other_heads_go_on_too(discs: Path, grown: Path, tmp_path: Path, head: str) -> None:
    old = go_on(discs, tmp_path / "old", None, head=head)
    run = go_on(grown, tmp_path / "run", old.folder, head=head)
    job = fold_jobs(run, grown)(0)
    load_weights(job.network, job.start)
    np.testing.assert_allclose(evaluate(job, job.test), run.start(0)[1], atol=1e-4)


def test_a_photo_that_comes_back_goes_to_the_fold_that_tested_it(
    old: fg.Run, went: fg.Run, grown: Path, discs: Path, tmp_path: Path
) -> None:
    photos = shutil.copytree(grown, tmp_path / "photos")
    shutil.copy(discs / "crimson/007.jpg", photos / "crimson/back.jpg")
    run = go_on(photos, tmp_path / "run", went.folder)
    back = {photo.path: photo for photo in run.catalog.photos}["crimson/back.jpg"]
    assert back.fold == folds_by_content(old)[back.sha256]
    assert run.environment["older"]["known"] == 32


def test_no_score_is_given_on_a_photo_that_only_the_older_run_has_trained_on(
    went: fg.Run, discs: Path
) -> None:
    gone = hashed(fg.scan(discs))
    last = gone.of([photo for photo in gone.photos if photo.path == "crimson/007.jpg"])
    with pytest.raises(DataError, match="1 of 1 photos were used by the folds in training"):
        holdout_scores._refuse_known(went, last, [photo.sha256 for photo in last.photos])


# --- places -------------------------------------------------------------------------------------


def placed(
    old: fg.Run, photos: Path | fg.Catalog, **settings: Any
) -> tuple[dict[str, Photo], list[str]]:
    """Where photos go beside an older run's, and what is told."""
    told: list[str] = []
    catalog = fg.scan(photos) if isinstance(photos, Path) else photos
    recipe = small_recipe(**SHORT | settings)
    found = prepare(catalog, recipe, Watcher(notice=told.append), Older(old))
    return {photo.path: photo for photo in found.photos}, told


def with_groups(folder: Path, groups: dict[str, str]) -> fg.Catalog:
    catalog = fg.scan(folder)
    paths = catalog.table.column("path")
    return catalog.of(catalog.table.with_column("group", [groups.get(path) for path in paths]))


def test_a_copy_of_an_old_photo_goes_to_its_fold(old: fg.Run, discs: Path, tmp_path: Path) -> None:
    photos, fold_of = shutil.copytree(discs, tmp_path / "photos"), {}
    for photo in old.catalog.photos[:6]:
        copy = f"{photo.label}/copy of {Path(photo.path).name}"
        with Image.open(discs / photo.path) as picture:
            picture.save(photos / copy, quality=70)
        fold_of[copy] = photo.fold
    found, _ = placed(old, photos)
    assert {path: found[path].fold for path in fold_of} == fold_of
    assert len({*fold_of.values()}) == 2


def hashed(catalog: fg.Catalog) -> fg.Catalog:
    return with_hashes(catalog, [files.sha256(path) for path in catalog.files])


def test_a_tie_is_left_out_and_told(old: fg.Run, discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    draw_photo(photos / "blue/tie.jpg", (30, 60, 220), 5000)
    draw_photo(photos / "blue/friend.jpg", (30, 60, 220), 5001)
    by_fold = [next(p.path for p in old.catalog.photos if p.fold == fold) for fold in (0, 1)]
    catalog = hashed(fg.scan(photos))
    paths = list(catalog.table.column("path"))
    clusters = [tuple(sorted(paths.index(path) for path in (*by_fold, "blue/tie.jpg")))]
    clusters += [tuple(sorted(paths.index(p) for p in (by_fold[1], "blue/friend.jpg")))]
    told: list[str] = []
    found, fixed = going_on.settled(Older(old), catalog, clusters, Watcher(notice=told.append))
    assert told == [
        "left out, as they belong together with photos of several folds: `blue/tie.jpg`"
    ]
    kept = {photo.path: photo for photo in found.photos}
    assert "blue/tie.jpg" not in kept
    assert fixed["blue/friend.jpg"] == 1
    assert kept["blue/friend.jpg"].group == kept[by_fold[1]].group != kept[by_fold[0]].group


def test_new_photos_of_a_group_go_to_its_fold_even_if_all_of_it_is_gone(
    discs: Path, tmp_path: Path
) -> None:
    groups = {
        f"{label}/00{n}.jpg": f"{label} {n // 2}"
        for label in ("amber", "blue", "crimson")
        for n in range(8)
    }
    old = fit(with_groups(discs, groups), small_recipe(**SHORT), tmp_path / "old")
    fold_of = {photo.path: photo.fold for photo in old.catalog.photos}
    photos = shutil.copytree(discs, tmp_path / "photos")
    for n in (0, 1):
        (photos / f"blue/00{n}.jpg").unlink()
    for n in range(4):
        draw_photo(photos / f"blue/new{n}.jpg", (30, 60, 220), 7000 + n)
    more = groups | {f"blue/new{n}.jpg": f"blue {n}" for n in range(4)}
    found, _ = placed(old, with_groups(photos, more))
    for n in range(4):
        assert found[f"blue/new{n}.jpg"].fold == fold_of[f"blue/00{2 * n}.jpg"]
    with pytest.raises(DataError, match="has photos in groups, these have none"):
        placed(old, photos)
    first = {fold: path for path, fold in fold_of.items() if path in found}
    across = more | dict.fromkeys(first.values(), "one")
    with pytest.raises(DataError, match="group `one` has photos in folds 0 and 1 of"):
        placed(old, with_groups(photos, across))


def test_a_changed_file_keeps_its_fold_by_its_path(
    old: fg.Run, discs: Path, tmp_path: Path
) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    for number in range(8):
        draw_photo(photos / f"blue/00{number}.jpg", (30, 60, 220), 9000 + number)
    found, _ = placed(old, photos)
    before = {photo.path: photo.fold for photo in old.catalog.photos}
    assert {path: photo.fold for path, photo in found.items()} == before


def test_photos_set_aside_stay_aside_and_parts_stay_parts(
    discs: Path, parts: Path, draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    old = go_on(discs, tmp_path / "old", None, holdout=0.25)
    aside = {photo.path for photo in old.catalog.photos if photo.split == "val"}
    assert aside
    photos = shutil.copytree(discs, tmp_path / "photos")
    draw_collection(photos, each=8, first=20)
    found, _ = placed(old, photos, holdout=0.25)
    now = {path for path, photo in found.items() if photo.split == "val"}
    assert aside <= now and 4 <= len(now - aside) <= 8
    assert not {path for path in now - aside if path in {p.path for p in old.catalog.photos}}
    # A photo of the user's own `val` part is not trained on, wherever it lies now.
    old = go_on(parts, tmp_path / "parted", None)
    photos = shutil.copytree(parts, tmp_path / "moved")
    for file in (photos / "val/blue").iterdir():
        file.rename(photos / "train/blue" / file.name)
    (photos / "train/blue/000.jpg").rename(photos / "val/blue/000.jpg")
    found, _ = placed(old, photos)
    assert found["train/blue/020.jpg"].split == "val"
    assert found["val/blue/000.jpg"].split == "train"


def test_a_tables_own_folds_must_be_those_of_the_older_run(old: fg.Run, discs: Path) -> None:
    catalog = fg.scan(discs)
    folds = [old.catalog.photos[row].fold for row in range(len(catalog))]
    same = catalog.of(catalog.table.with_column("fold", folds))
    assert {p.path: p.fold for p in placed(old, same)[0].values()} == {
        p.path: p.fold for p in old.catalog.photos
    }
    swapped = catalog.of(catalog.table.with_column("fold", [1 - (f or 0) for f in folds]))
    with pytest.raises(DataError, match=r"the table tests `amber/.*` in fold ., the older run in"):
        placed(old, swapped)
    more = catalog.of(catalog.table.with_column("fold", [0, 1, 2, 0, 1, 2, 0, 1] * 3))
    with pytest.raises(DataError, match="the table has 3 folds, the older run 2"):
        placed(old, more)


def test_photos_of_a_part_follow_no_copy_that_is_trained_on(parts: Path, tmp_path: Path) -> None:
    old = go_on(parts, tmp_path / "old", None)
    catalog = hashed(fg.scan(parts))
    paths = list(catalog.table.column("path"))
    aside = paths.index("val/blue/020.jpg")
    by_fold = [next(p.path for p in old.catalog.photos if p.fold == fold) for fold in (0, 1)]
    clusters = [tuple(sorted((aside, paths.index(path)))) for path in by_fold]
    found, fixed = going_on.settled(Older(old), catalog, clusters, Watcher())
    kept = {photo.path: photo for photo in found.photos}
    assert kept["val/blue/020.jpg"].split == "val"
    assert [fixed[path] for path in by_fold] == [0, 1]
    groups = [kept[path].group for path in by_fold]
    assert groups[0] != groups[1] and kept["val/blue/020.jpg"].group in groups


# --- what is refused ----------------------------------------------------------------------------


def test_other_photos_are_refused(
    old: fg.Run, draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no photo of"):
        placed(old, draw_collection(tmp_path / "others", first=50))


def test_a_fold_without_its_photos_is_refused(old: fg.Run, discs: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(discs, tmp_path / "photos")
    for photo in old.catalog.photos:
        if photo.fold == 1:
            (photos / photo.path).unlink()
    with pytest.raises(DataError, match="nothing is left for fold 1 to test"):
        placed(old, photos)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 3}, "`folds` is 2 there, 3 now"),
        ({"backbone": "test_efficientnet"}, "`backbone` is 'test_resnet' there"),
        ({"head": "se"}, "`head` is 'linear' there"),
    ],
)
def test_settings_that_weights_depend_on(
    old: fg.Run, grown: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        go_on(grown, tmp_path / "run", old.folder, **settings)


def test_one_network_for_all_folds_is_refused(old: fg.Run, grown: Path, tmp_path: Path) -> None:
    own = shutil.copytree(old.folder, tmp_path / "old")
    old.classifier("soup").save(own / "models/soup")
    old.classifier("ensemble").save(tmp_path / "classifier")
    for place in (
        "old/models/soup",
        "old/folds/0",
        "classifier",
        "old/folds/0/weights.safetensors",
    ):
        with pytest.raises(UsageError, match="is one network for all folds"):
            go_on(grown, tmp_path / "run", tmp_path / place)
    with pytest.raises(UsageError, match="is no run folder"):
        go_on(grown, tmp_path / "run", tmp_path / "nothing")


def test_weights_that_have_seen_the_photos_are_refused(
    old: fg.Run, discs: Path, draw_collection: Callable[..., Path], tmp_path: Path
) -> None:
    own = shutil.copytree(old.folder, tmp_path / "old")
    old.classifier("soup").save(tmp_path / "soup")
    for place in ("old/folds/0/weights.safetensors", "soup/member-0.safetensors"):
        with pytest.raises(UsageError, match=r"were trained on \d+ photos of these"):
            go_on(discs, tmp_path / "run", None, weights=str(tmp_path / place))
    assert go_on(discs, tmp_path / "first", None, weights=str(own / "start.safetensors")).complete
    others, told = draw_collection(tmp_path / "others", first=50), list[str]()
    watcher = Watcher(notice=told.append)
    inside = str(tmp_path / "old/folds/0/weights.safetensors")
    assert go_on(others, tmp_path / "a", None, weights=inside, watcher=watcher).complete
    assert not [each for each in told if "scores flatter" in each]
    inside = str(tmp_path / "soup/member-0.safetensors")
    assert go_on(others, tmp_path / "b", None, weights=inside, watcher=watcher).complete
    assert [each for each in told if "scores flatter" in each]


def test_a_run_that_is_unfinished_broken_or_chose_by_its_test_photos(
    old: fg.Run, discs: Path, grown: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(old.folder, tmp_path / "old")
    (own / "folds/1/weights.safetensors").write_bytes(b"other")
    with pytest.raises(fg.FieldguideError, match=r"folds/1/weights\.safetensors"):
        go_on(grown, tmp_path / "run", own)
    (own / "manifest.json").unlink()
    (own / "folds/1/manifest.json").unlink()
    with pytest.raises(UsageError, match="is not complete"):
        go_on(grown, tmp_path / "run", own)
    chosen = go_on(discs, tmp_path / "chosen", None, stop="fold")
    with pytest.raises(
        UsageError, match="chose each fold's epoch by the photos that the fold tests"
    ):
        go_on(grown, tmp_path / "run", chosen.folder)


# --- the command --------------------------------------------------------------------------------


def test_the_command_takes_the_settings_of_the_run(
    command: Callable[..., Any], old: fg.Run, grown: Path, tmp_path: Path, cache: Path
) -> None:
    own = shutil.copytree(old.folder, tmp_path / "old")
    typed = (
        "fit",
        grown,
        "--out",
        tmp_path / "run",
        "--from",
        own,
        "--no-report",
        "--device",
        "cpu",
    )
    said = command(*typed, "--backbone-rate", "2e-4")
    assert said.code == 0, said.err
    assert "but for backbone_rate 0.0002 instead of 0.0001" in said.err
    assert "On 23 photos of it accuracy went from" in said.err
    shutil.rmtree(own)
    again = command(*typed, "--backbone-rate", "2e-4")
    assert again.code == 0 and "nothing is left to do" in again.err
    said = command(*typed)
    assert said.code == 0 and "nothing is left to do" in said.err
    refused = command("fit", grown, "--out", tmp_path / "b", "--from", old.folder / "folds/0")
    assert refused.code == 2 and "is one network for all folds" in refused.err


def test_settings_that_follow_from_others_are_not_taken() -> None:
    there = small_recipe(mix="cutmix")
    assert recipes.taken(there, {})["eval_resize"] == SMALL["eval_resize"]
    assert "eval_resize" not in recipes.taken(there, {"size": 64})
    assert "mix" not in recipes.taken(there, {"epochs": 1})
    assert "device" not in recipes.taken(there, {})
