import io
import os
import random
import struct
import sys
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from photos import NATURE, chunk, distance, encoded, needs_photographs, photograph, png_header
from PIL import Image, ImageCms, ImageFile, ImageOps

from fieldguide.errors import UnreadablePhoto
from fieldguide.photos import pixels
from fieldguide.photos.pixels import Reading


def reason(data: bytes, **options: object) -> str:
    with pytest.raises(UnreadablePhoto) as caught:
        pixels.decode(data, **options)
    return caught.value.message


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def test_a_plain_jpeg_is_what_pillow_decodes() -> None:
    data = encoded(photograph(1))
    frame = pixels.decode(data)
    assert distance(frame.image, Image.open(io.BytesIO(data))) == 0
    assert (frame.width, frame.height, frame.frames, frame.warning) == (96, 64, 1, "")


def test_load_reads_a_file_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPG", "c.Jpeg", "d", "ünïcode 名前 🌿.jpg", "e.jpg."):
        (tmp_path / name).write_bytes(encoded(photograph(1), "PNG"))
        assert distance(pixels.load(tmp_path / name), photograph(1)) == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<!DOCTYPE html><html><title>404</title></html>", "not an image (HTML)"),
        (b"\xef\xbb\xbf\r\n <html>", "not an image (HTML)"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "not an image (SVG)"),
        (b"%PDF-1.7", "not an image (PDF)"),
        (b"PK\x03\x04rest", "not an image (a ZIP archive)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an image (a Git LFS pointer)"),
        (bytes(4096), "not an image (only zero bytes)"),
        (b"BMW and other words that begin like a bitmap", "not an image (text)"),
        (bytes([1, 2, 3, 4, 5]), "not an image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
    ],
)
def test_other_files_are_named_for_what_they_are(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    cases = {
        "empty.jpg": "empty file",
        "folder.jpg": "not a regular file",
        "no.jpg": "file not found",
    }
    for name, expected in cases.items():
        with pytest.raises(UnreadablePhoto, match=rf"^{expected}$"):
            pixels.load(tmp_path / name)

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UnreadablePhoto, match=r"^permission denied$"):
        pixels.load(tmp_path / "empty.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadablePhoto, match=r"^not a regular file$"):
        pixels.load(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_a_cut_jpeg_is_truncated_and_can_be_kept(progressive: bool, share: float) -> None:
    data = encoded(photograph(2, (320, 240)), quality=90, progressive=progressive)
    cut = data[: int(len(data) * share)]
    assert reason(cut) == "truncated"
    kept = pixels.decode(cut, reading=Reading(truncated="keep"))
    assert kept.warning == "truncated"
    assert kept.image.size == (320, 240)
    top = (0, 0, 320, 80)
    if not progressive:
        assert distance(kept.image.crop(top), pixels.decode(data).image.crop(top)) < 1


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("shorter_side", [None, 32])
def test_a_jpeg_without_its_closing_bytes_is_whole(
    progressive: bool, missing: int, shorter_side: int | None
) -> None:
    data = encoded(photograph(3, (161, 143)), progressive=progressive)
    frame = pixels.decode(data[:-missing], shorter_side=shorter_side)
    assert frame.warning == "the last bytes are missing"
    assert distance(frame.image, pixels.decode(data, shorter_side=shorter_side).image) == 0


@pytest.mark.parametrize("junk", [b"\0" * 99, b"camera maker's notes", encoded(photograph(9))])
def test_what_follows_the_closing_marker_does_not_matter(junk: bytes) -> None:
    data = encoded(photograph(4))
    frame = pixels.decode(data + junk)
    assert frame.warning == ""
    assert distance(frame.image, pixels.decode(data).image) == 0


def test_flipped_bits_are_reported() -> None:
    """Of 300 photographs with 30 flipped bits, 297 were: a flip may change one colour only."""
    data = encoded(photograph(5, (320, 240)), quality=90)
    start = data.rindex(b"\xff\xda") + 14
    noticed = 0
    for seed in range(50):
        draws, flipped = random.Random(seed), bytearray(data)
        for _ in range(30):
            flipped[draws.randrange(start, len(data) - 2)] ^= 1 << draws.randrange(8)
        try:
            noticed += pixels.decode(bytes(flipped)).warning != ""
        except UnreadablePhoto as error:
            noticed += error.message == "damaged"
    assert noticed >= 45


def test_a_stray_marker_means_damage() -> None:
    data = bytearray(encoded(photograph(5, (320, 240)), quality=90))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xc5"
    assert reason(bytes(data)) == "damaged"
    assert pixels.decode(bytes(data), reading=Reading(truncated="keep")).image.size == (320, 240)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("restart", [0, 1, 7])
def test_intact_jpegs_of_all_sizes_give_no_alarm(subsampling: str, restart: int) -> None:
    for seed in range(40):
        draws = random.Random(seed)
        size = (draws.randint(1, 70), draws.randint(1, 70))
        image = photograph(seed, size) if seed % 4 else Image.new("RGB", size, (seed, 99, 200))
        data = encoded(
            image,
            quality=draws.randint(5, 98),
            subsampling=subsampling,
            restart_marker_blocks=restart,
        )
        for shorter_side in (None, 8):
            frame = pixels.decode(data, shorter_side=shorter_side)
            assert frame.warning == "", (seed, size)
        gray = pixels.decode(encoded(image.convert("L"), quality=60))
        assert gray.warning == ""


@needs_photographs
def test_real_photographs_give_no_alarm() -> None:
    for path in sorted(NATURE.glob("train/*/*0.jpg"))[::10]:
        assert pixels.decode(path.read_bytes()).warning == ""


def test_damaged_png() -> None:
    data = encoded(photograph(6), "PNG")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    assert reason(bytes(flipped)) == "damaged"
    assert reason(data[: len(data) // 2]) == "truncated"
    kept = pixels.decode(data[: len(data) // 2], reading=Reading(truncated="keep"))
    assert kept.warning == "truncated"
    unclosed = pixels.decode(data[:-12])
    assert unclosed.warning == "the last bytes are missing"
    assert distance(unclosed.image, photograph(6)) == 0


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM", "PNG"])
def test_cut_files_of_every_kind_are_refused(kind: str) -> None:
    data = encoded(photograph(7), kind)
    for share in (0.02, 0.3, 0.7):
        assert reason(data[: int(len(data) * share) + 20]) in ("truncated", "damaged")


def test_random_damage_raises_nothing_else() -> None:
    """Any bytes give a picture or UnreadablePhoto, and no warning."""
    originals = [
        encoded(photograph(8), kind)
        for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM")
    ]
    draws = random.Random(0)
    for _ in range(400):
        data = bytearray(draws.choice(originals))
        for _ in range(draws.randint(1, 20)):
            data[draws.randrange(min(len(data), draws.choice((64, 10**6))))] = draws.randrange(256)
        for truncated in ("refuse", "keep"):
            try:
                image = pixels.decode(bytes(data), reading=Reading(truncated=truncated)).image
                assert image.mode == "RGB"
            except UnreadablePhoto as error:
                assert error.message


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    data = encoded(photograph(10), kind, exif=exif(orientation))
    frame = pixels.decode(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert distance(frame.image, expected) == 0
    assert (frame.width, frame.height) == expected.size
    assert expected.size == ((64, 96) if orientation >= 5 else (96, 64))


@pytest.mark.parametrize(
    "block", [exif(99), exif(0), b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_senseless_exif_is_ignored(block: bytes) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        frame = pixels.decode(encoded(photograph(10), kind, exif=block))
        assert (frame.width, frame.height, frame.warning) == (96, 64, "")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_by_257(kind: str) -> None:
    gray = np.asarray(photograph(11).convert("L"))
    data = encoded(Image.fromarray(gray.astype(np.uint16) * 257), kind)
    assert np.array_equal(np.asarray(pixels.decode(data).image)[:, :, 0], gray)


def test_float_is_scaled_by_its_own_range() -> None:
    gray = np.asarray(photograph(11).convert("L")).astype(np.float32)
    gray[0, 0], gray[0, 1] = 0, 255
    expected = np.rint(gray).astype(np.uint8)
    values = gray / 1000 - 3
    values[5, 5] = np.nan
    image = np.asarray(pixels.decode(encoded(Image.fromarray(values), "TIFF")).image)[:, :, 0]
    expected[5, 5] = 0
    assert np.abs(image.astype(int) - expected).max() <= 1
    constant = pixels.decode(encoded(Image.fromarray(np.full((9, 9), 0.5, np.float32)), "TIFF"))
    assert constant.image.getpixel((4, 4)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_colours_are_those_that_a_viewer_shows(mode: str) -> None:
    image = photograph(12)
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    decoded = pixels.decode(encoded(image.convert(mode), kind)).image
    assert decoded.mode == "RGB"
    assert distance(decoded, image.convert(mode).convert("RGB")) < 0.01


def test_lab_and_cmyk_jpeg() -> None:
    image = photograph(12)
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert distance(pixels.decode(encoded(lab, "TIFF")).image, image) < 3
    assert distance(pixels.decode(encoded(image.convert("CMYK"), quality=95)).image, image) < 5


def test_transparency_lies_on_white() -> None:
    rgba = Image.new("RGBA", (4, 1), (200, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    expected = [(200, 0, 0), (255, 255, 255), (127, 127, 127), (200, 0, 0)]
    for kind in ("PNG", "TIFF"):
        assert list(pixels.decode(encoded(rgba, kind)).image.get_flattened_data()) == expected
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([9, 9, 9, 70, 80, 90])
    palette.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        shown = pixels.decode(encoded(palette, kind, transparency=0)).image
        assert list(shown.get_flattened_data()) == [(255, 255, 255), (70, 80, 90)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_of_several_frames(kind: str) -> None:
    data = encoded(
        photograph(13), kind, save_all=True, append_images=[photograph(14), photograph(15)]
    )
    frame = pixels.decode(data)
    assert frame.frames == 3
    assert distance(frame.image, photograph(13)) < distance(frame.image, photograph(14)) / 3


@pytest.mark.parametrize("kind", ["BMP", "JPEG2000", "AVIF", "PPM", "WEBP", "TIFF", "GIF"])
def test_every_kind_loads(kind: str) -> None:
    assert distance(pixels.decode(encoded(photograph(16), kind)).image, photograph(16)) < 12


def test_heic_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnreadablePhoto) as caught:
        pixels.decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert "fieldguide[heic]" in caught.value.hint


def test_heic_with_the_extra() -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    buffer = io.BytesIO()
    heif.from_pillow(photograph(16, (128, 96))).save(buffer, quality=90)
    frame = pixels.decode(buffer.getvalue())
    assert (frame.width, frame.height) == (128, 96)
    assert distance(frame.image, photograph(16, (128, 96))) < 8


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_tiny_and_long_pictures(size: tuple[int, int], kind: str) -> None:
    data = encoded(Image.new("RGB", size, (10, 200, 90)), kind)
    for shorter_side in (None, 1, 224):
        image = pixels.decode(data, shorter_side=shorter_side).image
        assert min(image.size) >= 1
        assert image.getpixel((0, 0))[1] > 150


@pytest.mark.parametrize("shorter_side", [1, 20, 31, 32, 33, 64, 127, 128, 1000])
def test_reduced_decoding_keeps_the_shorter_side(shorter_side: int) -> None:
    data = encoded(photograph(17, (383, 257)), exif=exif(6))
    frame = pixels.decode(data, shorter_side=shorter_side)
    assert (frame.width, frame.height) == (257, 383)
    assert min(frame.image.size) >= min(shorter_side, 257)
    assert min(frame.image.size) < 2 * shorter_side + 1 or shorter_side <= 257 // 8
    assert distance(frame.image, pixels.decode(data, shorter_side=shorter_side).image) == 0


def test_reduced_decoding_shows_the_same_picture() -> None:
    data = encoded(photograph(17, (640, 480)))
    small = pixels.decode(data, shorter_side=60).image
    assert small.size == (80, 60)
    assert distance(small, pixels.decode(data).image.resize((80, 60), Image.Resampling.BOX)) < 2


def test_a_png_bomb_is_refused_before_memory_is_taken() -> None:
    rows = zlib.compress(bytes(16001 * 100), 9)
    bomb = png_header(16000, 16000, 8, 0) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    tracemalloc.start()
    assert reason(bomb) == "too large: 16000 × 16000 pixels"
    assert tracemalloc.get_traced_memory()[1] < 10 * len(bomb) + 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "WEBP", "PNG", "JPEG"])
def test_all_kinds_have_the_same_limit(kind: str) -> None:
    data = encoded(photograph(1), kind)
    limit = 96 * 64
    assert pixels.decode(data, reading=Reading(max_pixels=limit)).width == 96
    assert reason(data, reading=Reading(max_pixels=limit - 1)) == "too large: 96 × 64 pixels"


def test_baseline_and_progressive_jpegs_have_one_limit_however_reduced() -> None:
    for progressive in (False, True):
        data = encoded(photograph(18, (640, 480)), progressive=progressive)
        below = Reading(max_pixels=640 * 480 - 1)
        assert reason(data, shorter_side=60, reading=below) == "too large: 640 × 480 pixels"
        assert pixels.decode(data, shorter_side=60).image.size == (80, 60)


def test_pillows_own_limit_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    for kind in ("JPEG", "PNG", "TIFF", "BMP"):
        assert pixels.decode(encoded(photograph(1), kind)).image.size == (96, 64)


def test_broken_metadata_is_ignored() -> None:
    image = photograph(19)
    jpeg = encoded(image, icc_profile=b"not a profile" * 9000, comment=b"x" * 60000)
    app1 = (
        b"\xff\xe1"
        + struct.pack(">H", 65535)
        + b"http://ns.adobe.com/xap/1.0/\0".ljust(65533, b"x")
    )
    huge = jpeg[:2] + app1 * 100 + jpeg[2:]
    assert distance(pixels.decode(huge).image, Image.open(io.BytesIO(jpeg))) == 0
    png = encoded(image, "PNG")
    bomb = zlib.compress(bytes(80_000_000), 9)
    extras = (
        chunk(b"zTXt", b"Comment\0\0" + bomb)
        + chunk(b"iCCP", b"icc\0\0" + bomb)
        + b"\0\0\0\x04tEXtab\0c\0\0\0\0"  # with a wrong checksum
        + chunk(b"acTL", bytes(8))
    )
    assert distance(pixels.decode(png[:33] + extras + png[33:]).image, image) == 0


def test_odd_tiff_tags_do_not_warn() -> None:
    data = bytearray(encoded(photograph(19), "TIFF"))
    start = struct.unpack("<I", data[4:8])[0]
    entries = struct.unpack("<H", data[start : start + 2])[0]
    last = start + 2 + 12 * (entries - 1)
    data[last : last + 12] = struct.pack("<HHII", 0x9999, 2, 10**6, 10**9)  # lies outside the file
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pixels.decode(bytes(data))
        except UnreadablePhoto as error:
            assert error.message in ("truncated", "damaged")
    assert caught == []


def test_threads_agree_and_pillow_is_left_alone() -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    cases = [encoded(photograph(s), k) for s in range(3) for k in ("JPEG", "PNG", "TIFF", "GIF")]
    expected = [pixels.decode(data).image.tobytes() for data in cases]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            for number, data in enumerate(cases):
                half = data[: len(data) // 2]
                pixels.decode(encoded(photograph(1))[:-100], reading=Reading(truncated="keep"))
                with pytest.raises(UnreadablePhoto):
                    pixels.decode(half)
                if pixels.decode(data).image.tobytes() != expected[number]:
                    wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    after = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    assert after == before
