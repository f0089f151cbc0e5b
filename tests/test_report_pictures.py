import base64
import hashlib
import io
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import distance, encoded, photograph, save
from PIL import Image

from fieldguide.report import pictures


def shown(uri: str) -> Image.Image:
    head, _, text = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1000, 7), (96, 96), (40, 30)])
def test_a_thumbnail_is_the_whole_photo_within_the_side_and_never_enlarged(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    found = pictures.picture(save(tmp_path / "a.jpg", 1, size), 96)
    image = shown(found.uri)
    assert image.size == (found.width, found.height)
    assert max(image.size) == min(96, max(size))
    scale = max(image.size) / max(size)
    assert all(
        abs(got - max(scale * was, 1)) <= 1 for got, was in zip(image.size, size, strict=True)
    )
    whole = photograph(1, size).resize(image.size, Image.Resampling.LANCZOS)
    assert distance(image.convert("RGB"), whole) < 12


def test_a_thumbnail_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    (tmp_path / "a.jpg").write_bytes(encoded(photograph(1, (90, 60)), exif=exif))
    assert shown(pictures.picture(tmp_path / "a.jpg").uri).size == (60, 90)


def test_what_cannot_be_read_has_a_reason_instead(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    assert not pictures.picture(tmp_path / "gone.jpg").uri
    assert not pictures.picture(tmp_path / "text.jpg").uri
    gone = pictures.picture(tmp_path / "gone.jpg")
    assert (gone.uri, gone.reason) == ("", "file not found")


def test_a_file_that_has_changed_is_not_the_photo(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 1)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert pictures.picture(path, sha256=right).uri
    assert pictures.picture(path, sha256="0" * 64).reason == "the file has changed since"


def test_what_is_left_of_a_photo_is_shown(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 1)
    path.write_bytes(path.read_bytes()[:-200])
    assert pictures.picture(path).uri


def test_thumbnails_of_photographs_take_about_three_kilobytes(nature100: Path) -> None:
    paths = sorted(nature100.rglob("*.jpg"))[::400]
    sizes = [len(base64.b64decode(pictures.picture(p).uri.partition(",")[2])) for p in paths]
    assert np.mean(sizes) < 3200


def test_heat_is_brighter_where_there_is_more() -> None:
    pixels = np.full((64, 64, 3), 128, np.uint8)
    heat = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (8, 1))
    light = np.asarray(shown(pictures.overlay(pixels, heat, 64).uri).convert("L")).mean(axis=0)
    assert light[-4:].mean() > light[:4].mean() + 60
    assert np.all(np.diff(light[4:-4].reshape(-1, 8).mean(axis=1)) > 0)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_any_map_fits_over_any_picture(rows: int, columns: int, value: float) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    found = pictures.overlay(pixels, np.full((rows, columns), value, np.float32), 64)
    assert (found.width, found.height) == (30, 20)


def test_even_heat_gives_the_colour_of_its_value() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    for value, colour in ((0.0, (68, 1, 84)), (1.0, (253, 231, 37))):
        heat = np.full((2, 2), value, np.float32)
        got = np.asarray(shown(pictures.overlay(pixels, heat).uri).convert("RGB")).mean(axis=(0, 1))
        assert got == pytest.approx(0.6 * np.array(colour), abs=6)


HOSTILE = '"><script>alert(1)</script>'


def test_words_around_a_picture_are_harmless() -> None:
    picture = pictures.from_pixels(np.zeros((4, 4, 3), np.uint8))
    for html in (
        pictures.image(picture, HOSTILE, href=HOSTILE),
        pictures.image(pictures.Picture(reason=HOSTILE), "x", href="y"),
    ):
        assert "<script" not in html and "&lt;script&gt;" in html


def test_without_a_picture_there_is_no_link_but_the_reason() -> None:
    html = pictures.image(pictures.Picture(reason="file not found"), "a photo", href="a.jpg")
    assert "no picture: file not found" in html and "<a " not in html


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "b c#d?.jpg", "javascript:alert(1).jpg", 'x"y<z>.jpg', "é🌻\n.jpg", "50%25.jpg"],
)
def test_a_link_leads_to_the_file_and_nowhere_else(tmp_path: Path, name: str) -> None:
    file, page = tmp_path / "photos" / name, tmp_path / "runs" / "one"
    address = pictures.link(file, page)
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    assert Path(os.path.normpath(page / unquote(address))) == file
    assert not set(address) & set("\"'<> \n")


def test_a_name_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    assert pictures.link(file, tmp_path) == "caf%E9.jpg"


def test_a_photo_on_another_drive_has_a_whole_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, start: Path) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr("os.path.relpath", refuse)
    address = pictures.link(tmp_path / "a b.jpg", tmp_path)
    assert address == (tmp_path / "a b.jpg").as_uri() and address.startswith("file:///")
