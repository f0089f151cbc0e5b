"""The way from a picture file to upright RGB pixels: one definition for the whole package.

Every picture leaves here in mode RGB with 8 bits a channel, turned upright by its EXIF, first frame
only, on white where it was transparent. `Reading` says what becomes of more than 8 bits. Embedded
colour profiles are not applied, as in the training of the public backbones. JPEG and PNG lose their
metadata before Pillow sees them: a broken profile or EXIF block cannot stop, slow or warn. Pillow's
process-wide settings are not changed. A path or the bytes of a crop (`crops`) give that part of
the picture. Safe to call from many threads. Knows nothing of labels, folders, augmentation or
tensors.
"""

import hashlib
import importlib
import io
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from fieldguide.errors import UnreadablePhoto
from fieldguide.photos import crops, deep
from fieldguide.photos.catalog import FRAMES
from fieldguide.photos.deep import Range, Tone
from fieldguide.recipe import range_of
from fieldguide.storage import files, shards
from fieldguide.words import os_reason

Truncated = Literal["refuse", "keep"]

# Bytes of a file: 250 megapixels of 16-bit RGB without compression, rounded up (taste).
FILE_LIMIT = 2 << 30

# Errors of Pillow's readers on broken or crafted files, found by feeding them damaged ones.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@runtime_checkable
class Settings(Protocol):
    """The settings of a recipe or of a classifier's card that decide how files are read."""

    @property
    def truncated(self) -> Truncated: ...  # noqa: D102
    @property
    def tone(self) -> str: ...  # noqa: D102
    @property
    def no_data(self) -> float | Literal["tag"]: ...  # noqa: D102
    @property
    def max_megapixels(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Reading:
    """The rules from a file to pixels, the same in training, evaluation and prediction.

    `truncated="keep"` accepts a picture whose data end early or are damaged: the rest stays grey or
    black. `tone` maps more than 8 bits a channel, see `deep`; `no_data` is a value there that means
    none, besides a TIFF's own.
    """

    truncated: Truncated = "refuse"
    tone: Tone = "full"
    no_data: float | None = None
    max_pixels: int = 250_000_000  # 1 GB decoded (4 bytes a pixel in Pillow); phones reach 200

    @property
    def name(self) -> str:
        """The definition of the pixels, as the name of a folder that keeps them has it."""
        tone = ",".join(map(repr, self.tone)) if isinstance(self.tone, tuple) else self.tone
        told = {"tone": tone, "nodata": self.no_data}
        kept = [f"{name}={value}" for name, value in told.items() if value not in (None, "full")]
        return "-".join([self.truncated, *kept])

    @classmethod
    def of(cls, settings: Settings) -> "Reading":
        """Return the reading that settings ask for; percentiles not yet found are each photo's."""
        tone: Tone = "full" if settings.tone == "full" else range_of(settings.tone) or "own"
        no_data = None if settings.no_data == "tag" else settings.no_data
        return cls(settings.truncated, tone, no_data, settings.max_megapixels * 1_000_000)


# As much as there is, for people to look at.
SHOWN = Reading(truncated="keep", tone="own")


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded picture and the facts of its decoding."""

    image: Image.Image  # smaller than the size below after reduced decoding
    width: int  # pixels of the upright picture in the file
    height: int
    frames: int = 1
    warning: str = ""  # empty or a short reason
    oddity: str = ""  # empty, or what was taken for what
    span: Range | None = None  # of values of more than 8 bits, if `tone` is their own


def load(
    path: Path, *, shorter_side: int | None = None, reading: Reading = Reading()
) -> Image.Image:
    """Return the picture in a file, upright, RGB, 8 bits; see `decode`."""
    return decode(read(path), shorter_side=shorter_side, reading=reading).image


def read(path: Path) -> bytes:
    """Return all bytes of a photo's file; raise `UnreadablePhoto` if there are none."""
    try:
        data = _bytes_of(path)
    except OSError as error:
        reasons = {FileNotFoundError: "file not found", PermissionError: "permission denied"}
        raise UnreadablePhoto(reasons.get(type(error), os_reason(error).lower())) from error
    if not data:
        raise UnreadablePhoto("empty file")
    return data


def is_there(path: Path) -> bool:
    """Return whether the file of a photo or of a crop's photo is there, or the photo in a shard."""
    if path.is_file():
        return True
    try:
        return bool(read(path))
    except UnreadablePhoto:
        return False


def sha256(path: Path) -> str:
    """Return the SHA-256 of a photo's bytes in hexadecimal; OSError if they cannot be read."""
    try:
        return files.sha256(path)
    except (NotADirectoryError, FileNotFoundError):  # perhaps a crop, or in a shard
        return hashlib.sha256(_bytes_of(path)).hexdigest()


def _bytes_of(path: Path) -> bytes:
    """Return the bytes of a regular file, or of a photo in a shard."""
    try:
        status = path.stat()
    except (NotADirectoryError, FileNotFoundError):  # the latter on Windows, where a part is a file
        photo, crop = crops.parted(path.as_posix())
        return crops.headed(crop, read(Path(photo))) if crop else shards.read(path)
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise UnreadablePhoto("not a regular file")
    if status.st_size > FILE_LIMIT:
        raise UnreadablePhoto(f"too large: {status.st_size / 2**30:.1f} GiB")
    return path.read_bytes()


def decode(data: bytes, *, shorter_side: int | None = None, reading: Reading = Reading()) -> Frame:
    """Return the picture in the bytes of a file.

    `shorter_side` (pixels) allows faster decoding of a JPEG at 1/2, 1/4 or 1/8 of its size if its
    shorter side keeps that many pixels. A JPEG that lacks only its last bytes is always accepted,
    with a warning. Raises `UnreadablePhoto` with the reason. Formats: JPEG, PNG, GIF, BMP, TIFF,
    WebP, AVIF, JPEG 2000, PPM; HEIC with the extra `heic`, and TIFFs of 64-bit values, of colours
    in floats or of bands apart with the extra `tiff`.
    """
    part, data = crops.unpacked(data)
    kind = _kind(data)
    try:
        if kind == "JPEG":
            frame = _decode_jpeg(data, shorter_side, reading, part)
        elif kind == "PNG":
            frame = _decode_png(data, reading)
        elif kind == "HEIC":
            frame = _decode_heic(data, reading)
        else:
            frame = _decode_other(kind, data, reading)
    except _DECODER_ERRORS as error:
        raise UnreadablePhoto(_decoder_reason(error)) from error
    if part is None:
        return frame
    width, height = part.size(frame.width, frame.height)
    return replace(frame, image=part.of(frame.image), width=width, height=height)


# --- formats --------------------------------------------------------------------------------------


_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "WEBP": rb"(?s)RIFF....WEBP",
    "JPEG2000": rb"\x00\x00\x00\x0cjP {2}\r\n\x87\n|\xff\x4f\xff\x51",
    # header sizes that exist: 12, 40, 52, 56, 64, 108, 124
    "BMP": rb"(?s)BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00",
    "PPM": rb"P[1-6]\s",
}
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
}
_NOT_IMAGES = {
    "HTML": rb"(?i)<!doctype html|<html|<head|<body",
    "SVG": rb"(?i)(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg",
    "XML": rb"<\?xml",
    "a Git LFS pointer": rb"version https://git-lfs",
    "PDF": rb"%PDF",
    "a ZIP archive": rb"PK\x03\x04",
    "a Parquet file": rb"PAR1",
    # MP4 and MOV; AVI; Matroska and WebM; MPEG and its transport stream; ASF and WMV; FLV
    f"a video: take frames by {FRAMES}": (
        rb"(?s).{4}(ftyp|moov|mdat|wide)|RIFF.{4}AVI |\x1aE\xdf\xa3|\x00\x00\x01[\xb3\xba]"
        rb"|G.{187}G.{187}G|\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9|FLV\x01"
    ),
    "only zero bytes": rb"\x00+\Z",
    "text": rb"[\t\r\n -~\x80-\xff]+\Z",
}
_HINTS = {
    "a Git LFS pointer": "fetch the pictures with `git lfs pull`",
    "a ZIP archive": "unpack it first",
    "a Parquet file": "name the folder that it lies in",
}


def _kind(data: bytes) -> str:
    """Return the format by content, whatever the file's name."""
    head = data[:512]
    for kind, magic in _MAGIC.items():
        if re.match(magic, head):
            return kind
    if head[4:8] == b"ftyp":
        for kind, brands in _BRANDS.items():
            if any(brand in head[8:64] for brand in brands):
                return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip() or head
    for name, pattern in _NOT_IMAGES.items():
        if re.match(pattern, text):
            raise UnreadablePhoto(f"not an image ({name})", hint=_HINTS.get(name, ""))
    raise UnreadablePhoto("not an image")


def is_picture(path: Path) -> bool:
    """Return whether a file begins like a picture in a format that can be read."""
    try:
        with files.open_regular(path) as file:
            _kind(file.read(512))
    except (OSError, UnreadablePhoto):
        return False
    return True


def _decoder_reason(error: BaseException) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if any(word in text for word in ("truncated", "not large enough", "end of file", "not enough")):
        return "truncated"
    if isinstance(error, EOFError | IndexError | struct.error):  # the file ended inside a header
        return "truncated"
    return "damaged"


def _refuse_size(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise UnreadablePhoto(
            f"too large: {width} × {height} pixels",
            hint="make them smaller, or raise the limit with --max-megapixels of `fit`",
        )


# --- JPEG -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Jpeg:
    """A JPEG file without its metadata, taken apart where the picture data begin and end."""

    head: bytes  # all that a decoder needs, up to and with the header of the first scan
    body: bytes  # the picture data, and later scans, without the closing marker
    width: int
    height: int
    orientation: int
    one_pass: bool  # a single scan: rows are complete as soon as their data have come
    closed: bool  # the closing marker is there
    stray: bool  # a marker stands where none can: bits were flipped


# The decoder looks at most 8 bytes (one register) beyond the last code of an intact picture.
_FILLER = bytes(8)
_CLOSE = b"\xff\xd9"
# In picture data, FF is followed by 00 (a literal FF), FF (padding) or D0-D7 (restart).
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BETWEEN_SCANS = frozenset({0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
# Application data and comments; 0xE0 (JFIF) and 0xEE (Adobe) tell how colours are coded.
_METADATA = frozenset({0xFE, *range(0xE0, 0xF0)}) - {0xE0, 0xEE}


def _decode_jpeg(
    data: bytes, shorter_side: int | None, reading: Reading, part: crops.Part | None
) -> Frame:
    jpeg = _take_apart(data)
    _refuse_size(jpeg.width, jpeg.height, reading.max_pixels)
    upright = (jpeg.width, jpeg.height)[:: -1 if jpeg.orientation > 4 else 1]
    shortest = min(part.size(*upright) if part else upright)
    fitting = (s for s in (8, 4, 2) if shorter_side and shortest // s >= shorter_side)
    reduction = next(fitting, 1)
    image, early, complete = _decode_rows(jpeg, reduction)
    if not complete:
        warning = "damaged" if jpeg.closed or jpeg.stray else "truncated"
        if reading.truncated == "refuse":
            raise UnreadablePhoto(warning)
    elif not jpeg.closed:
        warning = "the last bytes are missing"
    else:
        warning = "damaged: data are left over after the last row" if early else ""
    frame = Frame(_rgb(image), jpeg.width, jpeg.height, 1, warning)
    return _upright(frame, jpeg.orientation)


def _take_apart(data: bytes) -> _Jpeg:
    """Read the segments of a JPEG file; raise `UnreadablePhoto` for incomplete headers."""
    kept = [data[:2]]
    orientation, frame, start = 0, b"", 0
    for code, segment, start in _segments(data):  # noqa: B007 - used below: where the data begin
        if code == 0xE1 and segment[4:10] == b"Exif\0\0" and not orientation:
            orientation = _exif_orientation(segment[10:])
        if code in _FRAME_MARKERS:
            frame = segment
        if code not in _METADATA:
            kept.append(segment)
    if len(frame) < 10:
        raise UnreadablePhoto("damaged")
    scan = kept[-1]
    height, width = struct.unpack(">HH", frame[5:9])
    one_pass = frame[1] in (0xC0, 0xC1) and scan[4] == frame[9]
    stop, closed, stray = _picture_end(data, start)
    body = data[start:stop] if closed else data[start:stop].rstrip(b"\xff")
    return _Jpeg(b"".join(kept), body, width, height, orientation or 1, one_pass, closed, stray)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield (marker, segment with its marker, end) up to and with the first scan's header."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0:
        code = data[position + 1] if position + 1 < len(data) else 0xD9
        if code in (0x00, 0x01, 0xFF) or 0xD0 <= code <= 0xD8:  # padding and lone markers
            position += 1 if code == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        if code == 0xD9 or end > len(data) or length < 2:
            break
        yield code, data[position:end], end
        if code == 0xDA:
            return
        position = end
    raise UnreadablePhoto("truncated")


def _picture_end(data: bytes, start: int) -> tuple[int, bool, bool]:
    """Return the end of the picture data, and whether a closing or a stray marker ends them."""
    position = start
    while found := _MARKER.search(data, position):
        code = data[found.end() - 1]
        if code == 0xD9:
            return found.start(), True, False
        if code not in _BETWEEN_SCANS:
            return found.start(), False, True
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return len(data), False, False


def _decode_rows(jpeg: _Jpeg, reduction: int) -> tuple[Image.Image, bool, bool]:
    """Return the stored picture, whether it ended before its data, and whether these sufficed.

    Pillow silently fills a picture that runs out of data with grey, but stops reading after the
    last row. So the data come in three portions (all but the last byte; that byte and a filler; the
    closing marker), and an intact picture takes exactly two.
    """
    if not jpeg.one_pass:  # nothing is painted before all scans have come
        return _decode_scans(jpeg, reduction)
    portions = _Portions((jpeg.head + jpeg.body[:-1], jpeg.body[-1:] + _FILLER, _CLOSE))
    picture = _fed(jpeg, reduction, portions)
    return picture, portions.taken == 1, portions.taken <= 2 and not jpeg.stray


def _decode_scans(jpeg: _Jpeg, reduction: int) -> tuple[Image.Image, bool, bool]:
    """Decode a JPEG of several scans. Without a closing marker, bytes behind the data decide.

    They cannot change a pixel after a complete last scan; else they count as more of the picture.
    """
    whole = jpeg.head + jpeg.body
    picture = _fed(jpeg, reduction, _Portions((whole + _CLOSE,)))
    if jpeg.closed or jpeg.stray:
        return picture, False, not jpeg.stray
    other = _fed(jpeg, reduction, _Portions((whole + bytes(range(64, 128)) + _CLOSE,)))
    return picture, False, other.tobytes() == picture.tobytes()


def _fed(jpeg: _Jpeg, reduction: int, portions: "_Portions") -> Image.Image:
    picture = JpegImageFile(io.BytesIO(jpeg.head))
    if reduction > 1:
        picture.draft(None, (jpeg.width // reduction, jpeg.height // reduction))
    picture.fp = portions
    picture.load()
    return picture


class _Portions(io.BytesIO):
    """A file that returns its next portion at each read, whatever the size asked for."""

    def __init__(self, portions: tuple[bytes, ...]) -> None:
        super().__init__()
        self._portions = portions
        self.taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next portion; empty after the last."""
        self.taken += 1
        return self._portions[self.taken - 1] if self.taken <= len(self._portions) else b""


# --- PNG ------------------------------------------------------------------------------------------


def _decode_png(data: bytes, reading: Reading) -> Frame:
    """Decode the chunks that make the pixels, without the others."""
    kept = [data[:8]]
    orientation, frames, intact, closed = 1, 1, True, False
    for name, content, checksum in _chunks(data):
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            right = zlib.crc32(name + content)
            intact &= checksum in (right, None)
            kept.append(struct.pack(">I", len(content)) + name + content + struct.pack(">I", right))
        elif name == b"eXIf":
            orientation = _exif_orientation(content) or 1
        elif name == b"acTL":
            frames = max(1, int.from_bytes(content[:4], "big"))
        closed |= name == b"IEND"
    if closed:
        kept.append(b"\0\0\0\0IEND\xaeB`\x82")
    if not intact and reading.truncated == "refuse":
        raise UnreadablePhoto("damaged")

    def opened() -> ImageFile.ImageFile:
        return PngImageFile(io.BytesIO(b"".join(kept)))

    frame = _frame(opened(), opened, reading)
    warning = frame.warning or ("" if closed else "the last bytes are missing")
    return _upright(replace(frame, frames=frames, warning=warning), orientation)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int | None]]:
    """Yield (name, content, checksum) of each chunk; no checksum if the file ends before it."""
    position = 8
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        start, end = position + 8, position + 8 + length
        whole = end + 4 <= len(data)
        yield name, data[start:end], int.from_bytes(data[end : end + 4], "big") if whole else None
        if name == b"IEND":
            return
        position = end + 4


# --- the others -----------------------------------------------------------------------------------


_PLUGINS = {
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "WEBP": "WebPImagePlugin",
    "AVIF": "AvifImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "PPM": "PpmImagePlugin",
}
_warnings_lock = threading.RLock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop Pillow's warnings about odd tags; one thread at a time, as filters are global."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode_other(kind: str, data: bytes, reading: Reading) -> Frame:
    # A TIFF reads more tags while loading, and turns the picture upright itself.
    with _quiet() if kind == "TIFF" else nullcontext():
        if kind == "TIFF" and not deep.is_plain_tiff(data):
            return _decode_odd_tiff(data, reading)
        try:
            picture = _open(kind, data)
        except _DECODER_ERRORS:
            if kind != "TIFF":
                raise
            return _decode_odd_tiff(data, reading)
        frame = _frame(picture, lambda: _open(kind, data), reading)
    exif = picture.info.get("exif", b"") if kind in ("WEBP", "AVIF") else b""
    orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0")) or 1
    # last, as counting frames moves through the file
    return _upright(replace(frame, frames=_frames(kind, data, picture)), orientation)


def _decode_odd_tiff(data: bytes, reading: Reading) -> Frame:
    """Decode a TIFF of a form that Pillow does not know."""
    found = deep.read_tiff(
        data, lambda width, height: _refuse_size(width, height, reading.max_pixels)
    )
    no_data = found.no_data | _given(reading)
    image = Image.fromarray(deep.to_bytes(found.values, reading.tone, no_data))
    own = reading.tone == "own" and found.values.dtype != np.uint8
    span = deep.span(found.values, no_data) if own else None
    frame = Frame(_rgb(image), *image.size, found.frames, oddity=found.oddity, span=span)
    return _upright(frame, found.orientation)


def _given(reading: Reading) -> frozenset[float]:
    return frozenset() if reading.no_data is None else frozenset({reading.no_data})


def _frame(
    picture: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile], reading: Reading
) -> Frame:
    """Decode an opened picture, which `again` opens anew, in place; return it as it is stored."""
    _refuse_size(*picture.size, reading.max_pixels)
    # Pillow compares the one value that is transparent with half of its bits.
    colour = deep.is_colour(picture)
    see_through = picture.info.pop("transparency", None) if colour else None
    deep_colour = colour and (reading.tone != "full" or see_through is not None)
    deep_gray = reading.tone != "full" and deep.is_gray_with_alpha(picture)
    warning = _load_pixels(picture, reading.truncated)
    image: Image.Image = picture
    span, oddity = None, ""
    if isinstance(picture, TiffImageFile):
        image, oddity = _without_odd_bands(picture)
    values = None
    if deep_colour or deep_gray:
        other = again()
        (deep.swap_bytes if deep_colour else deep.split_bytes)(other)
        _load_pixels(other, reading.truncated)
        values = deep.joined(picture, other) if deep_colour else deep.from_bytes(other)
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if isinstance(picture, TiffImageFile) and values.dtype == np.int32:
            values = values.view(np.uint32) if deep.is_unsigned(picture.tag_v2) else values
    if values is not None:
        tags = getattr(picture, "tag_v2", {})
        no_data = deep.no_data_of(tags) | _given(reading)
        span = deep.span(values, no_data) if reading.tone == "own" else None
        toned = deep.to_bytes(values, reading.tone, no_data)
        if see_through is not None:
            toned[(values == see_through).all(axis=-1)] = 255
        image = _toned(image, values, toned)
    return Frame(_rgb(image), *picture.size, warning=warning, oddity=oddity, span=span)


def _toned(image: Image.Image, values: deep.Values, toned: NDArray[np.uint8]) -> Image.Image:
    """Return values in 8 bits as a picture, with what is transparent in the one they come from."""
    if image.mode.startswith("I;16") and "transparency" in image.info:
        toned = np.where(values == image.info["transparency"], np.uint8(255), toned)
    result = Image.fromarray(toned)
    if image.mode == "RGBA":
        result = result.convert("RGB")
        result.putalpha(image.getchannel("A"))
    return result


def _without_odd_bands(picture: TiffImageFile) -> tuple[Image.Image, str]:
    """Return the picture of a TIFF, and what became of bands beside its colours.

    A band is transparency where the file says so and most of it is nothing or all: another one,
    such as near infrared, has values between.
    """
    bands, kept = picture.tag_v2.get(277, 1), picture.getbands()
    if kept[-1] in "Aa" and len(kept) > 1:
        counts = picture.getchannel(len(kept) - 1).histogram()
        if counts[0] < sum(counts) <= 2 * (counts[0] + counts[255]):
            return picture, ""
        parts = picture.split()[:-1]
        colours = parts[0] if len(parts) == 1 else Image.merge("RGB", parts)
        return colours, f"band {len(kept)} is called transparency and is none: left out"
    odd = picture.mode == "RGB" and bands > 3
    return picture, f"{bands} bands: the first three are used as colours" if odd else ""


def _open(kind: str, data: bytes) -> ImageFile.ImageFile:
    importlib.import_module(f"PIL.{_PLUGINS[kind]}")
    factory = Image.OPEN[kind][0]  # Image.open would add a warning about large pictures
    with _quiet():
        picture = factory(io.BytesIO(data), "")
    assert isinstance(picture, ImageFile.ImageFile)
    return picture


def _frames(kind: str, data: bytes, picture: ImageFile.ImageFile) -> int:
    """Return the number of pictures in the file; a damaged later one does not matter."""
    if not getattr(picture, "is_animated", False):
        return 1
    if kind not in ("GIF", "TIFF"):
        return int(getattr(picture, "n_frames", 1))
    try:
        again = _open(kind, data)  # counting moves through the file and disturbs what was loaded
        with _quiet():
            return int(getattr(again, "n_frames", 1))
    except _DECODER_ERRORS:
        return 1


def _load_pixels(picture: ImageFile.ImageFile, truncated: Truncated) -> str:
    """Decode in place; return a warning if a part is missing and kept, else an empty text."""
    try:
        picture.load()
    except _DECODER_ERRORS as error:
        reason = _decoder_reason(error)
        if truncated == "refuse" or picture._im is None:
            raise UnreadablePhoto(reason) from error
        picture.tile = []  # what was decoded so far stays
        return reason
    return ""


def _decode_heic(data: bytes, reading: Reading) -> Frame:
    try:
        import pillow_heif
    except ImportError as error:
        raise UnreadablePhoto(
            "HEIC needs an extra", hint="install `fieldguide[heic]`, or convert the photos to JPEG"
        ) from error
    container = pillow_heif.open_heif(io.BytesIO(data))
    width, height = container.size
    _refuse_size(width, height, reading.max_pixels)
    image = _rgb(container.to_pillow())  # libheif has turned it upright
    return Frame(image, image.width, image.height, len(container))


# --- orientation ----------------------------------------------------------------------------------


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _exif_orientation(exif: bytes) -> int:
    """Return 1 to 8 from the bytes of an EXIF block (a small TIFF file), 0 if it has none.

    Source: CIPA DC-008 (Exif 2.32), section 4.6.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 0
    start = struct.unpack_from(order + "I", exif, 4)[0]
    count = struct.unpack_from(order + "H", exif, start)[0] if start + 2 <= len(exif) else 0
    for entry in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
        if tag == 0x0112:  # Orientation
            return int(value) if kind == 3 and 1 <= value <= 8 else 0
    return 0


def _upright(frame: Frame, orientation: int) -> Frame:
    """Return the frame of a stored picture turned as EXIF says."""
    if orientation not in _TURNS:
        return frame
    width, height = (frame.width, frame.height)[:: -1 if orientation >= 5 else 1]
    return replace(
        frame, image=frame.image.transpose(_TURNS[orientation]), width=width, height=height
    )


# --- colours --------------------------------------------------------------------------------------


def _rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any of Pillow's modes of 8 bits as a viewer shows it."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    return image if image.mode == "RGB" else image.convert("RGB")
