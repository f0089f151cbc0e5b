from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_photo
from fits import small_recipe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fieldguide as fg
from fieldguide.errors import DataError
from fieldguide.fitting.settings import resolve
from fieldguide.network.network import build_backbone
from fieldguide.study import preview


def resolved(**settings: object) -> fg.Recipe:
    recipe = small_recipe(**settings)
    return resolve(recipe, build_backbone(recipe.backbone, weights="none", seed=0))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int64)


def test_the_sheet_is_written_and_the_same_every_time(discs: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    catalog, recipe = fg.scan(discs), small_recipe(size="auto", eval_resize="auto")
    one = preview.preview(catalog, recipe, tmp_path / "one.png")
    other = preview.preview(catalog, recipe, str(tmp_path / "other.png"))
    assert one == tmp_path / "one.png" and one.read_bytes() == other.read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
    with Image.open(one) as image:
        assert image.format == "PNG" and image.width > 7 * preview.CELL


def test_weights_are_not_needed(discs: Path, tmp_path: Path) -> None:
    recipe = small_recipe(weights="pretrained")
    assert preview.preview(fg.scan(discs), recipe, tmp_path / "a.png").is_file()


def test_every_policy_has_a_band_and_the_recipes_is_marked(discs: Path) -> None:
    bands = list(preview.policy_bands(fg.scan(discs), resolved(augment="augmix")))
    assert [band.heading for band in bands] == [
        "augment = none",
        "augment = randaugment",
        "augment = trivialaugment",
        "augment = augmix (the recipe's)",
    ]
    assert {len(band.cells) for band in bands} == {1 + preview.DRAWS}
    plain = [pixels(band.cells[0].image) for band in bands]
    assert all(np.array_equal(image, plain[0]) for image in plain)


def test_draws_of_a_column_differ_by_the_policy_alone(discs: Path) -> None:
    """With nothing random before it, a column without a policy is one picture."""
    still = resolved(crop_scale=(1.0, 1.0), flip=0.0, color_jitter=0.0)
    none, rand, *_ = preview.policy_bands(fg.scan(discs), still)
    first = [pixels(cell.image) for cell in none.cells[1:]]
    assert all(np.array_equal(image, first[0]) for image in first)
    changed = [pixels(cell.image) for cell in rand.cells[1:]]
    assert any(not np.array_equal(image, first[0]) for image in changed)


def test_mixed_photos_tell_their_shares(discs: Path) -> None:
    none, *mixed = preview.mix_bands(fg.scan(discs), resolved(mix="cutmix"))
    assert [band.heading for band in mixed] == [
        "mix = mixup",
        "mix = mixup, another step",
        "mix = cutmix (the recipe's)",
        "mix = cutmix (the recipe's), another step",
    ]
    names = [cell.lines[0] for cell in none.cells]
    assert len(names) == preview.DRAWS and set(names) == {"amber", "blue", "crimson"}
    for band in mixed:
        for cell in band.cells:
            shares = [line.split(" % ") for line in cell.lines]
            if len(shares) > 1:
                assert sum(int(share) for share, _ in shares) == pytest.approx(100, abs=1)
            assert {pair[-1] for pair in shares} <= set(names)


def test_either_marks_both_mixings(discs: Path) -> None:
    bands = preview.mix_bands(fg.scan(discs), resolved(mix="either"))
    marked = [band.heading for band in bands if "recipe" in band.heading]
    assert len(marked) == 4 and all("(one of the recipe's two)" in heading for heading in marked)


def test_a_single_photo_is_not_mixed(tmp_path: Path) -> None:
    draw_photo(tmp_path / "a" / "1.jpg", (200, 0, 0), 1)
    (band,) = preview.mix_bands(fg.scan(tmp_path), resolved())
    assert band.heading == "mix = none" and len(band.cells) == 1


def test_photos_that_cannot_be_read_are_passed_over(discs: Path, tmp_path: Path) -> None:
    for number in range(6):
        draw_photo(tmp_path / "a" / f"{number}.jpg", (200, 0, 0), number)
        draw_photo(tmp_path / "b" / f"{number}.jpg", (0, 0, 200), 50 + number)
    for broken in list(tmp_path.rglob("*.jpg"))[:7]:
        broken.write_bytes(b"no picture")
    catalog = fg.scan(tmp_path)
    found = preview._readable(catalog, resolved(), 6)
    assert len(found) == 5
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no photo can be read for a preview: `.*jpg`: "):
        preview.preview(catalog, small_recipe(), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_photos_are_of_as_many_classes_as_there_are(discs: Path) -> None:
    catalog = fg.scan(discs)
    for seed in range(5):
        order = preview._varied(catalog, seed)
        assert sorted(order) == list(range(len(catalog)))
        for turn in range(0, len(order), 3):
            assert len({catalog.photos[n].label for n in order[turn : turn + 3]}) == 3


def test_odd_names_do_no_harm(tmp_path: Path) -> None:
    for number, name in enumerate(("line\nend", "🌻" + "x" * 200, "\u202eturned", "a\udcff")):
        draw_photo(tmp_path / "p" / name / "1.jpg", (200, 0, 0), number)
    assert preview.preview(fg.scan(tmp_path / "p"), small_recipe(), tmp_path / "a.png").is_file()


@given(st.text(max_size=60))
def test_a_legible_text_is_one_line_of_the_same_length(text: str) -> None:
    shown = preview.legible(text)
    assert len(shown) == len(text) and shown.isprintable()
    assert all(
        new in {old, "\N{REPLACEMENT CHARACTER}"} for old, new in zip(text, shown, strict=True)
    )


@given(st.text(max_size=60), st.integers(1, 70))
def test_a_fitted_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    shown = preview.fitted(text, len, width)
    assert len(shown) <= width
    if len(text) <= width:
        assert shown == text
    else:
        assert len(shown) == width
        head, _, tail = shown.partition("…")
        assert text.startswith(head) or "…" in text
        assert text.endswith(tail) or "…" in text
