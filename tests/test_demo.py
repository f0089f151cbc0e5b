from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fieldguide.demo import (
    LONGEST,
    SHORTEST,
    SPECIES,
    Bird,
    Butterfly,
    Flower,
    Pen,
    bow,
    draw_collection,
    draw_photo,
    mirrored,
    smooth,
)

EACH = 6
SHEET = ImageDraw.Draw(Image.new("RGB", (1, 1)))
DETAILS = [  # in which a species differs from the plain one of its kind
    (name, field.name)
    for name, species in SPECIES.items()
    for field in fields(species)
    if getattr(species, field.name) != field.default
]


@pytest.fixture(scope="module")
def jpegs() -> dict[str, list[bytes]]:
    return {name: [draw_photo(name, number) for number in range(EACH)] for name in SPECIES}


@pytest.fixture(scope="module")
def photos(jpegs) -> dict[str, list[Image.Image]]:
    return {name: [opened(jpeg) for jpeg in jpegs[name]] for name in SPECIES}


def opened(jpeg: bytes) -> Image.Image:
    image = Image.open(BytesIO(jpeg))
    image.load()
    return image


def mean_colour(photo: Image.Image) -> NDArray[np.float64]:
    return np.asarray(photo).mean(axis=(0, 1))


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("each", [0, 1, 2])
def test_the_collection_is_the_first_photos_of_every_species_and_nothing_else(
    each: int, tmp_path: Path, jpegs
):
    draw_collection(tmp_path / "new" / "photos", photos_each=each)
    assert files_in(tmp_path) == {
        f"new/photos/{name}/{number:03d}.jpg": jpegs[name][number]
        for name in SPECIES
        for number in range(each)
    }


def test_the_seed_reaches_every_photo(tmp_path: Path):
    draw_collection(tmp_path, photos_each=1, seed=7)
    assert files_in(tmp_path) == {
        f"{name}/000.jpg": draw_photo(name, 0, seed=7) for name in SPECIES
    }


def test_drawing_leaves_the_global_generator_alone():
    before = np.random.get_state(legacy=False)
    draw_photo("meadow-starwort", 0)
    after = np.random.get_state(legacy=False)
    assert str(after) == str(before)


def test_every_species_number_and_seed_gives_another_photo(jpegs):
    drawn = [jpeg for of_species in jpegs.values() for jpeg in of_species]
    drawn += [draw_photo(name, 0, seed=1) for name in SPECIES]
    assert len(set(drawn)) == len(drawn)


def test_progress_counts_the_photos(tmp_path: Path):
    heard: list[int] = []
    draw_collection(tmp_path, photos_each=1, progress=heard.append)
    assert heard == list(range(1, len(SPECIES) + 1))


def test_the_species_are_at_least_twelve_in_three_kinds_and_all_distinct():
    assert len(SPECIES) >= 12
    assert len(set(SPECIES.values())) == len(SPECIES)
    assert {type(species) for species in SPECIES.values()} == {Flower, Butterfly, Bird}


def test_names_are_lower_case_words_joined_by_hyphens():
    assert all(word.isalpha() and word.islower() for name in SPECIES for word in name.split("-"))


def test_photos_are_rgb_jpegs_of_the_stated_sizes_and_of_many_shapes(photos):
    drawn = [photo for of_species in photos.values() for photo in of_species]
    assert {(photo.format, photo.mode) for photo in drawn} == {("JPEG", "RGB")}
    assert all(SHORTEST <= side <= LONGEST for photo in drawn for side in photo.size)
    assert len({photo.size for photo in drawn}) > len(drawn) / 2


def test_photos_are_neither_flat_nor_burnt_out(photos):
    for of_species in photos.values():
        for photo in of_species:
            pixels = np.asarray(photo)
            assert pixels.std() > 8
            assert ((pixels == 0) | (pixels == 255)).mean() < 0.5


def test_individuals_of_a_species_differ_in_colour_as_much_as_species_do(photos):
    colours = np.array([[mean_colour(photo) for photo in photos[name]] for name in SPECIES])
    within = colours.std(axis=1).mean()
    between = colours.mean(axis=1).std(axis=0).mean()
    assert within > between


def test_the_nearest_mean_colour_is_a_weak_classifier(photos):
    colours = np.array([[mean_colour(photo) for photo in photos[name]] for name in SPECIES])
    known, asked = colours[:, : EACH // 2].mean(axis=1), colours[:, EACH // 2 :]
    distance = np.linalg.norm(asked[:, :, None] - known, axis=-1)
    right = distance.argmin(axis=-1) == np.arange(len(SPECIES))[:, None]
    assert right.mean() < 0.35


@pytest.mark.parametrize(("name", "detail"), DETAILS)
def test_every_detail_by_itself_can_be_seen(
    name: str, detail: str, monkeypatch: pytest.MonkeyPatch
):
    plain = type(SPECIES[name])()
    detailed = replace(plain, **{detail: getattr(SPECIES[name], detail)})
    monkeypatch.setattr("fieldguide.demo.SPECIES", {name: plain})
    without = draw_photo(name, 0)
    monkeypatch.setattr("fieldguide.demo.SPECIES", {name: detailed})
    assert draw_photo(name, 0) != without


def test_no_detail_of_a_kind_is_the_same_in_all_its_species():
    for kind in (Flower, Butterfly, Bird):
        used = {detail for name, detail in DETAILS if isinstance(SPECIES[name], kind)}
        assert used == {field.name for field in fields(kind)}


def test_a_pen_turned_all_the_way_round_is_where_it_was():
    pen = Pen(SHEET, origin=3 + 4j, right=10, down=10j)
    turned = pen.at(0, turn=np.pi / 2).at(0, turn=3 * np.pi / 2)
    assert np.allclose([turned.right, turned.down], [pen.right, pen.down])


def test_a_pen_moves_in_its_own_frame():
    pen = Pen(SHEET, origin=100, right=10, down=10j).at(1, turn=np.pi / 2, wide=2)
    assert np.isclose(pen.origin, 110)
    assert np.isclose(pen.step(1), 20j)  # right, turned clockwise, is down
    assert np.isclose(pen.step(1j), -10)


def test_a_smooth_outline_passes_through_its_knots():
    knots = np.array([0, 1, 1 + 1j, 1j])
    assert np.array_equal(smooth(*knots)[::8], knots)


def test_a_smooth_outline_does_not_depend_on_where_it_starts():
    knots = [0, 1, 2 + 1j, 1j]
    assert np.allclose(np.roll(smooth(*knots), -8), smooth(*knots[1:], knots[0]))


def test_a_mirrored_outline_is_its_own_mirror_image():
    outline = mirrored(0, 0.3 + 0.2j, 0.7 + 0.1j, 1)
    distance = np.abs(outline.conj()[:, None] - outline)
    assert distance.min(axis=1).max() < 1e-12


def test_a_bow_runs_from_start_to_end_and_bends_half_way_to_the_third_point():
    points = bow(0, 1j, 2)
    assert points[0] == 0
    assert points[-1] == 2
    assert np.isclose(points.imag.max(), 0.5, atol=0.01)
