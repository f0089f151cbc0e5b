import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from photos import encoded, photograph
from PIL import Image, ImageEnhance

from fieldguide.photos import pixels
from fieldguide.photos.agreement import Bytes, agree, coarse
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.inspect import Facts, look
from fieldguide.photos.near_copies import duplicates

SIZE = (320, 240)
TURNS = (None, *Image.Transpose)


def prints(folder: Path, *images: Image.Image) -> Bytes:
    return np.stack([np.frombuffer(fact.fingerprint, np.uint8) for fact in looked(folder, *images)])


def looked(folder: Path, *images: Image.Image) -> list[Facts]:
    for number, image in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(encoded(image, quality=80))
    return [look(folder / f"{number}.jpg") for number in range(len(images))]


def clusters_of(facts: list[Facts]) -> tuple[tuple[int, ...], ...]:
    return duplicates(Catalog(Path("x"), [Photo(f"{n}", "x") for n in range(len(facts))]), facts)


def cropped(image: Image.Image, *shares: float) -> Image.Image:
    left, top, right, bottom = shares
    w, h = image.size
    return image.crop((int(w * left), int(h * top), int(w * (1 - right)), int(h * (1 - bottom))))


def with_animal(scene: Image.Image, seed: int, x: int, y: int) -> Image.Image:
    frame = scene.copy()
    frame.paste(photograph(seed, (32, 30)), (x, y))
    return frame


@pytest.mark.parametrize("turn", TURNS)
def test_every_symmetry_of_the_square_is_a_copy(
    turn: Image.Transpose | None, tmp_path: Path
) -> None:
    images = [photograph(seed, SIZE) for seed in range(12)]
    turned = images if turn is None else [image.transpose(turn) for image in images]
    found = prints(tmp_path, *images, *turned)
    assert agree(found[:12], found[12:]).all()
    assert agree(found[12:], found[:12]).all()
    assert not agree(found[:11], found[13:]).any()


def test_coarse_cells_turn_with_the_picture(tmp_path: Path) -> None:
    image = photograph(1, SIZE)
    one, other = coarse(prints(tmp_path, image, image.transpose(Image.Transpose.ROTATE_90)))
    assert np.allclose(np.rot90(one.reshape(6, 6)), other.reshape(6, 6), atol=0.02)


@pytest.mark.parametrize("shares", [(0.1, 0, 0, 0), (0.1, 0.1, 0, 0), (0.05, 0.05, 0.05, 0.05)])
def test_a_crop_is_a_copy_turned_too(
    shares: tuple[float, float, float, float], tmp_path: Path
) -> None:
    images = [photograph(seed, SIZE) for seed in range(12)]
    crops = [cropped(image, *shares).transpose(Image.Transpose.ROTATE_270) for image in images]
    found = prints(tmp_path, *images, *crops)
    assert agree(found[:12], found[12:]).mean() >= 11 / 12
    assert agree(found[12:], found[:12]).mean() >= 11 / 12


def test_something_small_that_one_of_them_lacks_makes_no_copy(tmp_path: Path) -> None:
    scenes = [photograph(seed, SIZE) for seed in range(8)]
    animals = [with_animal(each, 50, 40 + 30 * n, 150) for n, each in enumerate(scenes)]
    others = [with_animal(each, 60, 200 - 20 * n, 60) for n, each in enumerate(scenes)]
    found = prints(tmp_path, *scenes, *animals, *others)
    assert not agree(found[:8], found[8:16]).any()
    assert not agree(found[8:16], found[16:]).any()


def test_light_and_noise_alone_cannot_be_told_from_a_copy(tmp_path: Path) -> None:
    scene = photograph(3, SIZE)
    draws = np.random.default_rng(0)
    noisy = np.asarray(ImageEnhance.Brightness(scene).enhance(0.95)) + draws.normal(
        0, 4, (240, 320, 1)
    )
    frame = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    assert agree(*np.split(prints(tmp_path, scene, frame), 2)).all()


def test_flat_pictures_are_copies_only_if_equally_bright(tmp_path: Path) -> None:
    sheets = [Image.new("RGB", SIZE, (level,) * 3) for level in (90, 90, 97)]
    sheets[1] = sheets[1].resize((90, 50))
    found = prints(tmp_path, *sheets)
    assert agree(found[:1], found[1:2]).all()
    assert not agree(found[:1], found[2:]).any()


def either(found: Bytes, one: int, other: int) -> bool:
    return any(agree(found[[a]], found[[b]]).all() for a, b in ((one, other), (other, one)))


def test_a_chain_is_cut_where_its_members_do_not_agree_with_the_middle(tmp_path: Path) -> None:
    """Windows that move over a wide picture: neighbours are crops of each other, ends are not."""
    wide = photograph(4, (960, 240))
    windows = [wide.crop((20 * n, 0, 20 * n + 320, 240)) for n in range(28)]
    facts = looked(tmp_path, *windows)
    found = np.stack([np.frombuffer(fact.fingerprint, np.uint8) for fact in facts])
    assert all(agree(found[[a]], found[[b]]).all() for a, b in pairwise(range(28)))
    assert not agree(found[:1], found[27:]).any()
    clusters = clusters_of(facts)
    assert len(clusters) > 1
    for cluster in clusters:
        rows = list(cluster)
        assert any(all(either(found, a, b) for b in rows if a != b) for a in rows)


def test_names_and_order_change_no_cluster(tmp_path: Path) -> None:
    wide = photograph(4, (960, 240))
    facts = looked(tmp_path, *(wide.crop((20 * n, 0, 20 * n + 320, 240)) for n in range(28)))
    expected = {frozenset(cluster) for cluster in clusters_of(facts)}
    order = random.Random(0).sample(range(28), 28)
    shuffled = clusters_of([facts[row] for row in order])
    assert {frozenset(order[row] for row in cluster) for cluster in shuffled} == expected


def test_pictures_are_decoded_to_a_fingerprint_of_648_bytes(tmp_path: Path) -> None:
    image = pixels.decode(encoded(photograph(1, SIZE)), shorter_side=128).image
    assert image.size == SIZE
    assert prints(tmp_path, photograph(1, SIZE)).shape == (1, 648)
