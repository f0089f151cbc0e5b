import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import small_fit
from numpy.typing import NDArray
from photos import chunk, encoded, photograph, png_header
from PIL import Image, TiffImagePlugin

from fieldguide import recipe as recipes
from fieldguide.errors import UnreadablePhoto, UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.photos import check, deep, inspect, pixels
from fieldguide.photos.folders import scan
from fieldguide.photos.pixels import Reading
from fieldguide.predict.classifier import Classifier

rng = np.random.default_rng(0)
COLOURS = np.asarray(photograph(1))  # 64 × 96 × 3, 8 bits
TWELVE_BITS = COLOURS.astype(np.uint16) * 16 + rng.integers(0, 16, COLOURS.shape, np.uint16)


def shown(data: bytes, **reading: object) -> NDArray[np.uint8]:
    return np.asarray(pixels.decode(data, reading=Reading(**reading)).image)


def png16(values: NDArray[np.uint16]) -> bytes:
    """A PNG of 16-bit colours, with transparency if there are four bands."""
    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = png_header(width, height, 16, 2 if bands == 3 else 6)
    return header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: NDArray[np.generic], **options: object) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def colours16() -> dict[str, bytes]:
    options = {"photometric": "rgb"}
    return {
        "png": png16(TWELVE_BITS),
        "little": tiff(TWELVE_BITS, byteorder="<", **options),
        "big": tiff(TWELVE_BITS, byteorder=">", **options),
        "deflate": tiff(TWELVE_BITS, byteorder="<", compression="zlib", **options),
        "deflate, big": tiff(TWELVE_BITS, byteorder=">", compression="zlib", **options),
    }


def test_16_bit_colours_keep_all_their_bits() -> None:
    for kind, data in colours16().items():
        assert np.array_equal(shown(data), TWELVE_BITS >> 8), kind
        exact = np.rint(TWELVE_BITS * (255 / 4095))
        assert np.array_equal(shown(data, tone=(0.0, 4095.0)), exact), kind
        own = shown(data, tone="own").astype(int)
        assert own.min() == 0 and own.max() == 255 and np.abs(own - exact).max() < 12, kind


def test_transparency_of_16_bit_colours_is_painted_white() -> None:
    alpha = np.full(COLOURS.shape[:2], 65535, np.uint16)
    alpha[:10] = 0
    data = png16(np.dstack([TWELVE_BITS, alpha]))
    toned = shown(data, tone=(0.0, 4095.0))
    assert (toned[:10] == 255).all()
    assert np.array_equal(toned[10:], np.rint(TWELVE_BITS[10:] * (255 / 4095)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_range_is_the_same_for_all_gray_photos(kind: str) -> None:
    values = rng.integers(28_800, 30_100, (40, 50)).astype(np.uint16)
    data = encoded(Image.fromarray(values), kind)
    assert len(np.unique(shown(data))) <= 7
    toned = shown(data, tone=(28_800.0, 30_100.0))[:, :, 0]
    assert np.array_equal(toned, np.rint((values - 28_800.0) * (255 / 1300)))
    brighter = encoded(Image.fromarray(values + np.uint16(260)), kind)
    moved = shown(brighter, tone=(28_800.0, 30_100.0))[:, :, 0].astype(int)
    assert np.median(moved - toned) == 51


def test_tone_changes_no_picture_of_8_bits() -> None:
    for kind in ("JPEG", "PNG", "TIFF", "GIF"):
        data = encoded(photograph(2), kind)
        assert np.array_equal(shown(data, tone=(0.0, 10.0), no_data=3.0), shown(data))


def with_gaps(tag: str | None) -> bytes:
    values = np.linspace(0, 1, 40 * 50, dtype=np.float32).reshape(40, 50)
    values[:, ::5] = -9999
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if tag is not None:
        tags[42113] = tag
        tags.tagtype[42113] = 2
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=tags)


@pytest.mark.parametrize(
    ("tag", "reading"),
    [("-9999", {}), ("-9999 \0", {}), (None, {"no_data": -9999.0}), ("7", {"no_data": -9999.0})],
)
def test_no_data_does_not_stretch_the_range(tag: str | None, reading: dict[str, float]) -> None:
    toned = shown(with_gaps(tag), **reading)[:, :, 0]
    assert (toned[:, ::5] == 0).all()
    assert len(np.unique(toned)) > 200
    assert len(np.unique(shown(with_gaps("nothing")))) == 2


def test_no_data_of_colours_is_in_all_bands() -> None:
    values = TWELVE_BITS.copy()
    values[:5], values[5:10, :, 0] = 4095, 4095
    toned = shown(png16(values), tone=(0.0, 4095.0), no_data=4095.0)
    assert (toned[:5] == 0).all()
    assert (toned[5:10, :, 0] == 255).all()


def test_a_band_that_is_no_transparency_is_left_out_and_told() -> None:
    infrared = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))
    frame = pixels.decode(encoded(Image.fromarray(np.dstack([COLOURS, infrared])), "TIFF"))
    assert np.array_equal(np.asarray(frame.image), COLOURS)
    assert frame.oddity == "band 4 is called transparency and is none: left out"
    cut_out = np.where(infrared > 128, 255, 0).astype(np.uint8)
    cut_out[:, 48] = 100  # a soft edge
    frame = pixels.decode(encoded(Image.fromarray(np.dstack([COLOURS, cut_out])), "TIFF"))
    assert (np.asarray(frame.image)[:, :40] == 255).all()
    assert frame.oddity == ""
    empty = np.zeros_like(cut_out)
    frame = pixels.decode(encoded(Image.fromarray(np.dstack([COLOURS, empty])), "TIFF"))
    assert np.array_equal(np.asarray(frame.image), COLOURS)
    unnamed = tiff(np.dstack([COLOURS, infrared]), photometric="rgb", extrasamples=[0])
    assert np.array_equal(shown(unnamed), COLOURS)
    assert pixels.decode(unnamed).oddity == "4 bands: the first three are used as colours"


FLOATS = COLOURS.astype(np.float32) / 255
ODD = {
    "1 band of 64-bit floats": ((FLOATS[..., 0].astype(np.float64),), {}),
    "3 bands of 32-bit floats": ((FLOATS,), {"photometric": "rgb"}),
    "4 bands of 8-bit whole numbers": (
        (np.dstack([COLOURS, COLOURS[..., :1]]),),
        {"photometric": "minisblack", "planarconfig": "contig"},
    ),
    "5 bands of 16-bit whole numbers, each apart": (
        (np.moveaxis(np.dstack([COLOURS, COLOURS[..., :2]]), 2, 0).astype(np.uint16) * 257,),
        {"photometric": "minisblack", "planarconfig": "separate"},
    ),
}


@pytest.mark.parametrize("form", ODD)
def test_tiffs_that_pillow_cannot_read(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (values,), options = ODD[form]
    data = tiff(values, **options)
    frame = pixels.decode(data)
    expected = COLOURS if values.ndim == 3 else COLOURS[..., :1].repeat(3, axis=2)
    spread = 255 / np.ptp(expected) if values.dtype.kind == "f" else 1.0
    low = expected.min() if values.dtype.kind == "f" else 0
    assert np.abs(np.asarray(frame.image) - (expected - float(low)) * spread).max() <= 1
    assert bool(frame.oddity) == (form[0] in "45")
    with pytest.raises(UnreadablePhoto, match="too large: 96 × 64"):
        pixels.decode(data, reading=Reading(max_pixels=6143))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnreadablePhoto) as caught:
        pixels.decode(data)
    assert caught.value.message == f"a TIFF of {form} needs an extra"
    assert "fieldguide[tiff]" in caught.value.hint


def test_odd_tiffs_that_are_damaged() -> None:
    data = tiff(FLOATS, photometric="rgb")
    for cut in (*range(4, 300, 7), len(data) // 2, len(data) - 9):
        with pytest.raises(UnreadablePhoto):
            pixels.decode(data[:cut])
    changed = np.random.default_rng(1)
    for _ in range(200):
        broken = bytearray(data)
        for place in changed.integers(0, 300, 3):
            broken[place] = changed.integers(256)
        try:
            assert pixels.decode(bytes(broken), reading=Reading(max_pixels=10**6)).image.size
        except UnreadablePhoto as error:
            assert error.message


def test_check_tells_which_photos_use_a_small_part_of_their_range(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for number in range(4):
        low = rng.integers(28_800, 30_100, (64, 96)).astype(np.uint16)
        Image.fromarray(low).save(tmp_path / "a" / f"{number}.png")
        (tmp_path / "b" / f"{number}.jpg").write_bytes(encoded(photograph(number)))
    (tmp_path / "b" / "dim.png").write_bytes(encoded(photograph(9).point(lambda v: v // 12), "PNG"))
    catalog = scan(tmp_path)
    facts = inspect.inspect(catalog)
    told = {f.path: f for f in check.findings(catalog, facts) if f.kind == "narrow-range"}
    assert sorted(told) == ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/dim.png"]
    assert told["a/0.png"].message.startswith("uses 6 of 256 levels, as most of its values lie")
    assert "--tone percentile" in told["a/0.png"].hint
    assert not any(f.kind == "near-duplicate" for f in check.findings(catalog, facts))
    low, high = inspect.common_range(catalog.files, Reading()) or (0, 0)
    assert 28_800 <= low < 28_810 and 30_090 < high <= 30_100
    stretched = inspect.inspect(catalog, reading=Reading(tone=(low, high)))
    assert [fact.oddity != "" for fact in stretched] == [False] * 8 + [True]
    useless = inspect.inspect(catalog, reading=Reading(tone=(0.0, 1.0)))
    assert useless[0].oddity.startswith("uses 1 of 256 levels")


def test_check_tells_of_bands(tmp_path: Path) -> None:
    infrared = np.dstack([COLOURS, np.roll(COLOURS[..., :1], 9)])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.tif").write_bytes(encoded(Image.fromarray(infrared), "TIFF"))
    catalog = scan(tmp_path)
    found = check.findings(catalog, inspect.inspect(catalog))
    assert [(f.path, f.fatal) for f in found if f.kind == "odd-bands"] == [("a/1.tif", False)]


def test_a_range_of_no_deep_photos_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(photograph(1), "PNG"))
    (tmp_path / "b.png").write_bytes(struct.pack("<I", 7))
    assert inspect.common_range([tmp_path / "a.png", tmp_path / "b.png"], Reading()) is None
    assert inspect.common_range([], Reading()) is None


def test_values_that_are_all_missing_or_equal_are_no_range() -> None:
    gone = np.full((3, 4), np.nan, np.float32)
    assert (deep.to_bytes(gone, "full") == 0).all()
    assert (deep.to_bytes(np.full((3, 4), 0.5), "own") == 128).all()


def thermal(folder: Path) -> Path:
    """Photos of 16 bits whose classes differ by a tenth of a percent of the range."""
    draw = np.random.default_rng(3)
    for label, warmer in (("animal", 400), ("empty", 0)):
        (folder / label).mkdir(parents=True)
        for number in range(8):
            values = draw.integers(29_000, 29_100, (48, 48)).astype(np.uint16)
            top, left = draw.integers(0, 16, 2)
            values[top : top + 32, left : left + 6 + 3 * number] += np.uint16(warmer)
            Image.fromarray(values).save(folder / label / f"{number}.png")
    return folder


def test_a_run_keeps_the_tone_that_it_found_and_predicts_by_it(tmp_path: Path) -> None:
    photos = thermal(tmp_path / "photos")
    run = small_fit(photos, tmp_path / "run", tone="percentile")
    low, high = recipes.range_of(run.recipe.tone) or (0, 0)
    assert 29_000 <= low < 29_010 and 29_480 < high < 29_500
    told: list[str] = []
    small_fit(photos, tmp_path / "run", tone="percentile", watcher=Watcher(notice=told.append))
    assert "is complete" in told[-1]
    for tone in ("full", "0,5"):
        with pytest.raises(UsageError, match="tone: 'percentile 29"):
            small_fit(photos, tmp_path / "run", tone=tone)
    run.classifier("ensemble").save(tmp_path / "classifier")
    card = Classifier.load(tmp_path / "classifier").card.architecture
    assert pixels.Reading.of(card) == Reading(tone=(low, high))


def test_a_percentile_without_deep_photos_is_told(discs: Path, tmp_path: Path) -> None:
    told: list[str] = []
    watcher = Watcher(notice=told.append)
    run = small_fit(discs, tmp_path / "run", fold=0, tone="percentile", watcher=watcher)
    assert any("`tone` has no effect" in message for message in told)
    assert run.recipe.tone == "percentile 0,65535"


SIGNED = (TWELVE_BITS[..., 0].astype(np.int32) - 2048).astype(np.int16)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("kind", ["i2", "i4", "u2", "u4", "f4", "f8"])
def test_tiffs_of_all_kinds_of_values_in_both_orders(
    kind: str, byteorder: str, compression: str | None
) -> None:
    values = (SIGNED if kind[0] != "u" else TWELVE_BITS[..., 0]).astype(kind)
    data = tiff(values, byteorder=byteorder, compression=compression, photometric="minisblack")
    low, high = float(values.min()), float(values.max())
    expected = np.rint((values.astype(float) - low) * (255 / (high - low)))
    assert np.abs(shown(data, tone=(low, high))[:, :, 0] - expected).max() <= 1


def test_unsigned_values_beyond_the_half_are_no_negative_ones() -> None:
    values = np.array([[0, 2**31 - 1], [2**31, 2**32 - 1]], np.uint32).repeat(9, 0).repeat(9, 1)
    toned = shown(tiff(values, photometric="minisblack"))[::9, ::9, 0]
    assert toned.tolist() == [[0, 127], [128, 255]]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_bands_that_lie_apart(photometric: str, compression: str | None) -> None:
    apart = np.moveaxis(TWELVE_BITS, -1, 0)
    options = {"photometric": photometric, "planarconfig": "separate", "compression": compression}
    expected = np.rint(TWELVE_BITS * (255 / 4095))
    assert np.abs(shown(tiff(apart, **options), tone=(0.0, 4095.0)) - expected).max() <= 1
    bytes_apart = (apart >> 4).astype(np.uint8)
    assert np.array_equal(shown(tiff(bytes_apart, **options)), TWELVE_BITS >> 4)


def test_white_may_be_zero_and_palettes_of_16_bits_are_refused() -> None:
    gray = TWELVE_BITS[..., 0] * np.uint16(16)
    white = shown(tiff(gray, photometric="miniswhite"))[:, :, 0]
    assert np.abs(white.astype(int) + np.rint(gray / 257)).max() <= 256
    colours = np.tile(np.arange(65536, dtype=np.uint16), (3, 1))
    with pytest.raises(UnreadablePhoto, match="colours other than RGB"):
        pixels.decode(tiff(gray, photometric="palette", colormap=colours))


def test_big_tiffs_and_pages() -> None:
    values = TWELVE_BITS[..., 0].astype(np.float64)
    assert len(np.unique(shown(tiff(values, bigtiff=True, photometric="minisblack")))) > 200
    pages = tiff(np.stack([values, values]), photometric="minisblack")
    assert pixels.decode(pages).frames == 2


def test_gray_with_transparency_of_16_bits() -> None:
    gray, alpha = TWELVE_BITS[..., 0], np.full(COLOURS.shape[:2], 65535, np.uint16)
    alpha[:10] = 0
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.dstack([gray, alpha]))
    data = png_header(96, 64, 16, 4) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(shown(data)[10:, :, 0], gray[10:] >> 8)
    toned = shown(data, tone=(0.0, 4095.0))
    assert (toned[:10] == 255).all()
    assert np.array_equal(toned[10:, :, 0], np.rint(gray[10:] * (255 / 4095)))


def test_the_transparent_colour_of_16_bits_is_compared_whole() -> None:
    values = TWELVE_BITS.copy()
    values[:5], values[5:10] = 300, (200, 100, 50)
    data = png16(values)
    for colour, white in ((300, slice(0, 5)), (0, slice(0, 0))):
        seen = data[:33] + chunk(b"tRNS", struct.pack(">HHH", colour, colour, colour)) + data[33:]
        toned = shown(seen, tone=(0.0, 4095.0))
        assert (toned[white] == 255).all()
        assert toned[7, 7].tolist() == [12, 6, 3]
        assert (shown(seen)[5:10] < 2).all()


def test_photos_without_data_do_not_change_the_range(tmp_path: Path) -> None:
    files = []
    for number in range(10):
        values = rng.uniform(280, 310, (20, 20)).astype(np.float32)
        values[:] = np.nan if number < 2 else values
        files.append(tmp_path / f"{number}.tif")
        files[-1].write_bytes(encoded(Image.fromarray(values), "TIFF"))
    assert inspect.common_range(files, Reading()) == inspect.common_range(files[2:], Reading())


@pytest.mark.parametrize("tone", ["", "x", "5", "5,1", "1,2,3", "nan,1", "percentile 3"])
def test_tones_that_are_none(tone: str) -> None:
    with pytest.raises(UsageError, match="neither full, percentile nor a range"):
        recipes.build({"tone": tone})


def test_check_reads_as_the_environment_says(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = thermal(tmp_path / "photos")
    assert "narrow-range" in command("check", photos).out
    monkeypatch.setenv("FIELDGUIDE_TONE", "29000,29500")
    assert "narrow-range" not in command("check", photos).out
    assert "narrow-range" in command("check", photos, "--tone", "full").out
    monkeypatch.setenv("FIELDGUIDE_TONE", "bad")
    assert command("check", photos).code == 2
