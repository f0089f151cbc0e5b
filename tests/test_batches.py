import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photos import save
from PIL import Image
from reference_transforms import evaluation_transform
from torch import Tensor

from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.photos import decoding
from fieldguide.photos.augment import Augmentation
from fieldguide.photos.batches import (
    AHEAD,
    Batch,
    Draw,
    Loader,
    Pictures,
    Plan,
    epoch_steps,
    evaluation_plan,
    share_of,
    steps_in_epoch,
    streamed,
    training_plan,
)
from fieldguide.photos.decoding import Decoding, Picture
from fieldguide.photos.pixels import Reading
from fieldguide.photos.transforms import evaluation, training
from fieldguide.storage import files
from fieldguide.storage.decoded import Store

PHOTOS = 9
ROWS = np.arange(PHOTOS)
AUGMENTATION = Augmentation(
    size=16,
    interpolation="bilinear",
    crop_scale=(0.3, 1.0),
    flip=0.5,
    color_jitter=0.8,
    jitter=(0.2, 0.2, 0.2, 0.02),
    grayscale=0.2,
    policy="trivialaugment",
    erasing=0.3,
)


def pictures_of(folder: Path, count: int = PHOTOS) -> Pictures:
    found = [save(folder / f"{number}.jpg", seed=number, size=(24, 20)) for number in range(count)]
    return Pictures(
        found,
        training(AUGMENTATION, (0.5, 0.5, 0.5)),
        evaluation(16, 18, "bilinear"),
        Decoding(18, 18, "bilinear", Reading()),
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Nine photos; read only."""
    return pictures_of(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def fragile(tmp_path: Path) -> Pictures:
    """Nine photos that a test may remove."""
    return pictures_of(tmp_path)


def plan(seed: int = 0, replica: int = 0, epoch: int = 0, batch_size: int = 4) -> list[list[Draw]]:
    return list(training_plan(ROWS, batch_size, seed=seed, replica=replica, epoch=epoch))


def pixels(pictures: Pictures, draws: Sequence[list[Draw]], workers: int = 0) -> dict[int, Tensor]:
    """What each photo looks like."""
    return seen(Loader(pictures, workers).batches(draws))


def seen(batches: Iterator[Batch]) -> dict[int, Tensor]:
    return {
        int(photo): image
        for batch in batches
        for photo, image in zip(batch.photos, batch.images, strict=True)
    }


def equal(one: dict[int, Tensor], other: dict[int, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@given(st.integers(1, 300), st.integers(1, 70), st.integers(0, 3))
def test_an_epoch_has_every_row_once(count: int, batch_size: int, seed: int) -> None:
    rows = np.arange(count) * 3
    draws = training_plan(rows, batch_size, seed=seed, replica=0, epoch=0)
    assert sorted(draw.photo for part in draws for draw in part) == rows.tolist()


@given(st.integers(1, 300), st.integers(1, 70))
def test_batches_are_equal_within_one_and_none_has_a_single_photo(
    count: int, batch_size: int
) -> None:
    for draws in (
        training_plan(np.arange(count), batch_size, seed=0, replica=0, epoch=0),
        evaluation_plan(np.arange(count), batch_size),
    ):
        sizes = [len(part) for part in draws]
        assert len(sizes) == steps_in_epoch(count, batch_size)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= (3 if batch_size == 2 and count % 2 else batch_size)
        assert min(sizes) >= 2 or batch_size == 1 or count == 1


def test_batches_are_as_few_as_can_be() -> None:
    assert steps_in_epoch(128, 64) == 2
    assert steps_in_epoch(129, 64) == 3
    assert steps_in_epoch(5, 64) == 1
    assert steps_in_epoch(5, 2) == 2
    assert steps_in_epoch(5, 1) == 5


@given(st.integers(0, 200), st.integers(1, 70))
def test_evaluation_has_every_row_once_in_order_without_seeds(count: int, batch_size: int) -> None:
    draws = evaluation_plan(np.arange(count)[::-1], batch_size)
    flat = [draw for part in draws for draw in part]
    assert flat == [Draw(row, None) for row in reversed(range(count))]


def test_a_plan_depends_on_seed_replica_and_epoch_alone() -> None:
    assert plan() == plan()
    plans = [plan(), plan(seed=1), plan(replica=1), plan(epoch=1)]
    orders = {tuple(draw.photo for part in draws for draw in part) for draws in plans}
    seeds = {draw.seed for draws in plans for part in draws for draw in part}
    assert len(orders) == 4
    assert len(seeds) == 4 * PHOTOS


def test_the_seed_of_a_photo_depends_on_no_other_photo() -> None:
    fewer = training_plan(ROWS[3:], 2, seed=0, replica=1, epoch=2)
    all_ = training_plan(ROWS, 4, seed=0, replica=1, epoch=2)
    assert {draw for part in fewer for draw in part} <= {draw for part in all_ for draw in part}


def test_a_plan_leaves_the_rows_as_they_are() -> None:
    rows = ROWS.copy()
    training_plan(rows, 4, seed=0, replica=0, epoch=0)
    assert rows.tolist() == ROWS.tolist()


def places_of(shards: int, each: int, seed: int) -> np.ndarray:
    """Shard and offset of photos that lie mixed in shards."""
    mixed = np.random.default_rng(seed).permutation(shards * each)
    return np.stack([mixed // each, mixed % each * 512], axis=1)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 100), st.integers(0, 3))
def test_a_stream_has_every_row_once(shards: int, each: int, buffer: int, seed: int) -> None:
    rows = np.arange(shards * each)[seed::2] if shards * each > seed + 1 else np.arange(1)
    options = {"seed": seed, "replica": 0, "epoch": 0}
    draws = training_plan(rows, 4, **options, places=places_of(shards, each, seed), buffer=buffer)
    assert sorted(draw.photo for part in draws for draw in part) == rows.tolist()
    again = training_plan(rows, 4, **options, places=places_of(shards, each, seed), buffer=buffer)
    assert list(draws) == list(again)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 3))
def test_without_a_buffer_each_shard_is_read_from_start_to_end(
    shards: int, each: int, seed: int
) -> None:
    places = places_of(shards, each, seed)
    rows = np.arange(shards * each)
    order = streamed(rows, places, 1, np.random.default_rng(seed))
    shown = places[order].reshape(shards, each, 2)
    assert (shown[:, :, 0] == shown[:, :1, 0]).all()
    assert (np.diff(shown[:, :, 1], axis=1) > 0).all()


@given(st.integers(1, 30), st.integers(0, 3))
def test_a_row_comes_at_most_a_buffer_before_its_turn(buffer: int, seed: int) -> None:
    places = places_of(5, 12, seed)
    rows = np.arange(60)
    plain = streamed(rows, places, 1, np.random.default_rng(seed)).tolist()
    mixed = streamed(rows, places, buffer, np.random.default_rng(seed)).tolist()
    assert all(plain.index(row) < step + buffer for step, row in enumerate(mixed))


def test_the_order_of_shards_and_within_the_buffer_is_new_in_each_epoch() -> None:
    places, rows = places_of(8, 8, 0), np.arange(64)

    def order(buffer: int, **which: int) -> tuple[int, ...]:
        options = {"seed": 0, "replica": 0, "epoch": 0} | which
        draws = training_plan(rows, 8, **options, places=places, buffer=buffer)
        return tuple(draw.photo for part in draws for draw in part)

    for buffer in (1, 10, 64, 100):
        assert len({order(buffer, **{w: 1}) for w in ("seed", "replica", "epoch")}) == 3


def test_a_plan_is_made_as_it_is_asked_for() -> None:
    draws = training_plan(ROWS, 2, seed=0, replica=1, epoch=2)
    assert list(draws[2:]) == list(draws)[2:] and draws[1] == list(draws)[1]
    assert draws[-1] == list(draws)[-1] and len(draws[2:]) == len(draws) - 2
    seeds = iter(range(3))
    once = Plan([np.array([5, 6]), np.array([7]), np.array([8])], lambda row: next(seeds))
    assert once[1] == [Draw(7, 0)]
    assert once[0] == [Draw(5, 1), Draw(6, 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_asked_for(pictures: Pictures, workers: int) -> None:
    draws = plan()
    batches = list(Loader(pictures, workers).batches(draws))
    assert [batch.photos.tolist() for batch in batches] == [
        [d.photo for d in part] for part in draws
    ]
    assert all(batch.images.shape[1:] == (3, 16, 16) for batch in batches)
    assert all(batch.images.dtype == torch.uint8 for batch in batches)
    assert all(batch.missing == 0 for batch in batches)


def test_pixels_do_not_depend_on_the_order_or_on_the_batch(pictures: Pictures) -> None:
    other = [part[::-1] for part in plan(batch_size=2)][::-1]
    assert equal(pixels(pictures, plan()), pixels(pictures, other))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_resumed_at_any_step_shows_the_same(pictures: Pictures, workers: int) -> None:
    whole, loader = pixels(pictures, plan()), Loader(pictures, workers)
    for step in range(len(plan()) + 1):
        rest = seen(loader.batches(plan()[step:]))
        assert equal(rest, {photo: whole[photo] for photo in rest})


def test_evaluation_shows_the_evaluation_transform(pictures: Pictures) -> None:
    shown = pixels(pictures, evaluation_plan(ROWS, 4))
    for photo, file in enumerate(pictures.files):
        with Image.open(file) as picture:
            plain = evaluation_transform(16, 18, "bilinear")(picture.convert("RGB"))
            assert torch.equal(shown[photo], plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(pictures: Pictures, workers: int) -> None:
    before = torch.get_rng_state()
    for _ in Loader(pictures, workers).batches(plan()):
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_serves_one_plan_after_another_even_if_one_was_left(
    pictures: Pictures, workers: int
) -> None:
    loader = Loader(pictures, workers)
    next(loader.batches(plan(epoch=3)))
    assert equal(seen(loader.batches(plan())), pixels(pictures, plan()))
    assert equal(seen(loader.batches(plan(epoch=1))), pixels(pictures, plan(epoch=1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_vanished_training_photo_is_replaced_by_its_successor_and_counted(
    fragile: Pictures, workers: int
) -> None:
    draws, whole = plan(), pixels(fragile, plan())
    gone, successor = draws[1][0].photo, draws[1][1].photo
    fragile.files[gone].unlink()
    batches = list(Loader(fragile, workers).batches(draws))
    assert [batch.missing for batch in batches] == [0, 1, 0]
    assert batches[1].photos[:2].tolist() == [successor, successor]
    assert torch.equal(batches[1].images[0], whole[successor])
    assert [len(batch.photos) for batch in batches] == [len(part) for part in draws]


def test_the_last_photo_of_a_batch_is_replaced_by_the_first(fragile: Pictures) -> None:
    draws = plan()
    fragile.files[draws[0][-1].photo].unlink()
    batch = fragile[draws[0]]
    assert batch.photos[-1] == batch.photos[0] == draws[0][0].photo


def test_two_vanished_photos_in_a_row_are_both_replaced(fragile: Pictures) -> None:
    draws = training_plan(ROWS, PHOTOS, seed=0, replica=0, epoch=0)
    first, second, third, *_ = (draw.photo for draw in draws[0])
    fragile.files[first].unlink()
    fragile.files[second].write_bytes(b"no picture")
    batch = fragile[draws[0]]
    assert batch.missing == 2
    assert batch.photos[:3].tolist() == [third, third, third]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_vanished_photos_is_an_error_that_names_one(
    fragile: Pictures, workers: int
) -> None:
    draws = plan()
    for draw in draws[1]:
        fragile.files[draw.photo].unlink()
    batches = Loader(fragile, workers).batches(draws)
    assert len(next(batches).photos) == len(draws[0])
    with pytest.raises(DataError) as caught:
        next(batches)
    assert f"`{fragile.files[draws[1][0].photo]}`: file not found" in caught.value.message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_vanished_evaluation_photo_is_an_error_that_names_it(
    fragile: Pictures, workers: int
) -> None:
    fragile.files[5].unlink()
    batches = Loader(fragile, workers).batches(evaluation_plan(ROWS, 3))
    assert next(batches).photos.tolist() == [0, 1, 2]
    with pytest.raises(DataError) as caught:
        next(batches)
    assert f"`{fragile.files[5]}`: file not found" in caught.value.message
    assert caught.value.exit_code == 3


# --- photos that cannot be read, where that is allowed --------------------------------------------


def reasons(batches: list[Batch]) -> dict[int, str]:
    return dict(each for batch in batches for each in batch.unreadable)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_what_cannot_be_read_is_left_out_and_named_and_the_rest_stays(
    fragile: Pictures, workers: int, batch_size: int
) -> None:
    draws = evaluation_plan(ROWS, batch_size)
    whole = pixels(fragile, draws)
    fragile.files[0].write_bytes(b"")
    fragile.files[3].unlink()
    fragile.files[8].write_bytes(b"<html></html>")
    batches = list(Loader(replace(fragile, lenient=True), workers).batches(draws))
    assert len(batches) == len(draws)
    told = {0: "empty file", 3: "file not found", 8: "not an image (HTML)"}
    assert reasons(batches) == told
    left = [number for number in range(PHOTOS) if number not in told]
    assert torch.cat([batch.photos for batch in batches]).tolist() == left
    for batch, part in zip(batches, draws, strict=True):
        assert batch.missing == 0
        assert len(batch.photos) + len(batch.unreadable) == len(part)
        assert len(batch.images) == len(batch.photos)
        for photo, image in zip(batch.photos.tolist(), batch.images, strict=True):
            assert torch.equal(image, whole[photo])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [RuntimeError("my mistake"), FileNotFoundError("my mistake")])
def test_a_mistake_in_a_transform_stays_what_it_is(
    pictures: Pictures, error: Exception, workers: int
) -> None:
    def broken(picture: Picture, seed: int) -> Tensor:
        raise error

    with pytest.raises(type(error), match="my mistake"):
        next(Loader(replace(pictures, training=broken), workers).batches(plan()))


def test_threads_end_with_the_batches_or_with_whoever_wants_no_more(pictures: Pictures) -> None:
    before = threading.active_count()
    for _ in Loader(pictures, 2).batches(plan()):
        pass
    batches = Loader(pictures, 2).batches(plan() * 20)
    next(batches)
    assert before < threading.active_count() <= before + 2
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_threads_are_no_further_ahead_than_memory_allows(pictures: Pictures) -> None:
    asked: list[int] = []

    def counted(picture: Picture, seed: int) -> Tensor:
        asked.append(seed)
        return pictures.training(picture, seed)

    batches = Loader(replace(pictures, training=counted), 2).batches(plan(batch_size=1) * 50)
    next(batches)
    time.sleep(0.3)
    assert 1 <= len(asked) <= 1 + 2 * AHEAD
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_changes_no_pixel_and_saves_every_later_decode(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    plain = pixels(pictures, plan())
    store = Store(tmp_path / "store")
    keys = [files.sha256(path) for path in pictures.files]
    kept = replace(pictures, store=store, keys=keys)
    assert equal(pixels(kept, plan(), workers), plain)
    monkeypatch.setattr(decoding.pixels, "load", lambda *_, **__: pytest.fail("decoded again"))
    assert equal(pixels(kept, plan(), workers), plain)
    assert set(pixels(kept, evaluation_plan(ROWS, 4), workers)) == set(ROWS.tolist())
    store.close()


def test_photos_that_cannot_be_read_are_never_stored(fragile: Pictures, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    keys = [files.sha256(path) for path in fragile.files]
    fragile.files[3].unlink()
    batch = replace(fragile, store=store, keys=keys, lenient=True)[evaluation_plan(ROWS, 9)[0]]
    assert [photo for photo, _ in batch.unreadable] == [3]
    assert store.get(keys[3]) is None and store.get(keys[4]) is not None
    store.close()


def dealt(count: int, replicas: int, *, classes: int = 5, epoch: int = 0) -> list[np.ndarray]:
    targets = np.random.default_rng(1).integers(classes, size=2 * count)
    rows = np.arange(0, 2 * count, 2)
    return [
        share_of(rows, targets, seed=3, replica=replica, replicas=replicas, epoch=epoch)
        for replica in range(replicas)
    ]


@pytest.mark.parametrize(("count", "replicas"), [(40, 2), (41, 2), (43, 4), (7, 3), (12, 1)])
def test_shares_are_disjoint_and_the_whole_together_in_equal_parts(
    count: int, replicas: int
) -> None:
    shares = dealt(count, replicas)
    assert sorted(np.concatenate(shares).tolist()) == list(range(0, 2 * count, 2))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    steps = [len(training_plan(s, 4, seed=0, replica=0, epoch=0)) for s in shares]
    if count >= 2 * replicas:
        assert epoch_steps(count, 4, replicas=replicas, shares=True) == steps


def test_classes_are_spread_evenly_over_shares() -> None:
    targets = np.random.default_rng(1).integers(5, size=86)
    counts = np.array([np.bincount(targets[share], minlength=5) for share in dealt(43, 4)])
    assert np.ptp(counts, axis=0).max() <= 1


def test_shares_are_the_same_each_time_and_others_in_each_epoch() -> None:
    assert all(map(np.array_equal, dealt(40, 2), dealt(40, 2)))
    assert not np.array_equal(dealt(40, 2)[0], dealt(40, 2, epoch=1)[0])


def test_in_time_a_replica_sees_every_photo_also_of_rare_classes() -> None:
    targets = np.arange(8)  # one photo each
    rows = np.arange(8)
    seen = {
        int(row)
        for epoch in range(12)
        for row in share_of(rows, targets, seed=0, replica=0, replicas=2, epoch=epoch)
    }
    assert seen == set(range(8))


def test_shares_of_less_than_two_photos_are_refused() -> None:
    assert epoch_steps(6, 4, replicas=3, shares=True) == [1, 1, 1]
    assert epoch_steps(5, 4, replicas=3, shares=False) == [2, 2, 2]
    with pytest.raises(UsageError, match="fewer than 2 of 5 training photos") as caught:
        epoch_steps(5, 4, replicas=3, shares=True)
    assert "lower `replicas`" in caught.value.hint


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("photos", [1, 2, 5, 7, 16])
def test_ranks_share_a_batch_in_equal_parts_with_as_many_photos_at_least(
    photos: int, ranks: int, least: int
) -> None:
    plan = Plan([np.arange(photos), np.arange(photos) + 100], lambda row: row + 1)
    shares = [plan.shared(rank, ranks, least) for rank in range(ranks)]
    for step in range(len(plan)):
        assert [draw for share in shares for draw in share[step]] == plan[step]
        sizes = [len(share[step]) for share in shares]
        full = [size for size in sizes if size]
        assert sizes[: len(full)] == full
        assert len(full) == ranks or (len(full) + 1) * least > photos
        assert max(full) - min(full) <= 1 and min(full) >= min(photos, least)


def test_a_share_without_photos_is_an_empty_batch(pictures: Pictures) -> None:
    [batch] = Loader(pictures, 0).batches([[]])
    assert len(batch.images) == len(batch.photos) == batch.missing == 0


def test_a_folder_that_is_away_for_a_while_is_waited_for(
    fragile: Pictures, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WAITS", (0.0, 0.0, 0.0))
    folder, told = fragile.files[0].parent, list[str]()
    away = tmp_path_factory.mktemp("elsewhere") / "away"
    whole = fragile[plan()[0]]

    def notice(message: str) -> None:
        told.append(message)
        if len(told) == 2:  # first it is not there, then as a disk is that was unmounted
            shutil.rmtree(folder)
            away.rename(folder)
        else:
            folder.mkdir()

    waiting = replace(fragile, folder=folder, notice=notice)
    folder.rename(away)
    batch = waiting[plan()[0]]
    assert batch.missing == 0 and torch.equal(batch.images, whole.images)
    assert told == [f"`{folder}` is gone: looking again in 0 s"] * 2
    folder.rename(away)
    for_good = replace(waiting, notice=lambda message: None)
    with pytest.raises(ResourceError, match=r"the photos' folder .* is gone") as caught:
        for_good[plan()[0]]
    assert caught.value.exit_code == 4
