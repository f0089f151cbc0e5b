import json
import shlex
from pathlib import Path

import pytest
from photos import put, save

from fieldguide.errors import DataError, UnreadablePhoto
from fieldguide.photos import check, inspect, pixels, sources
from fieldguide.photos.catalog import FRAMES, Catalog, is_video, videos_left
from fieldguide.predict import inputs

HEADS = {
    "mp4": b"\0\0\0\x18ftypmp42\0\0\0\0",
    "mov": b"\0\0\0\x08wide\0\0\0\0mdat",
    "avi": b"RIFF\x01\x02\x03\x04AVI LIST",
    "mkv": b"\x1aE\xdf\xa3\x9f\x42\x86",
    "mpg": b"\0\0\x01\xba\x44\0\x04",
    "ts": (b"G" + bytes(187)) * 3,
    "wmv": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "flv": b"FLV\x01\x05",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two classes of photos, two videos among them, one with odd signs in its name."""
    for number, label in enumerate(("elm", "oak")):
        save(tmp_path / label / "1.jpg", number)
    put(tmp_path, "elm/it's 5%.MP4", "oak/b.avi")
    return tmp_path


def notes_of(catalog: Catalog) -> list[str]:
    return [note.message for note in catalog.notes if note.kind == "videos"]


def test_the_command_that_takes_frames_is_of_the_video(tmp_path: Path) -> None:
    said = videos_left(["a b/it's 5%.MP4", "c.avi", "d.avi"], tmp_path)
    named, _, command = said.partition(": take frames, one a second by ")
    assert named == "videos such as `a b/it's 5%.MP4` and `c.avi`"
    words = shlex.split(command.strip("`"))
    base = f"{tmp_path}/a b/it's 5%"
    assert words == [
        "ffmpeg",
        "-i",
        f"{base}.MP4",
        "-vf",
        "fps=1",
        f"{base}".replace("%", "%%") + "_%04d.jpg",
    ]
    away = videos_left(["https://x.org/a/b.mp4"], tmp_path)
    assert away.endswith("ffmpeg -i https://x.org/a/b.mp4 -vf fps=1 b_%04d.jpg`")
    assert is_video("a.WebM") and not is_video("a.mp4/b") and not is_video("a.mp4.jpg")


def test_videos_of_a_folder_are_told(place: Path) -> None:
    catalog = sources.read(place)
    (message,) = notes_of(catalog)
    assert message == f"{videos_left(['elm/it' + chr(39) + 's 5%.MP4', 'oak/b.avi'], place)} (2)"
    assert f"left out: {message}" in catalog.told
    assert not [note for note in catalog.notes if note.kind == "other-files"]
    found = check.findings(catalog, inspect.inspect(catalog))
    assert [note.hint[:7] for note in found if note.kind == "videos"] == ["--group"]
    told: list[str] = []
    assert len(inputs.read(place, notice=told.append)) == 2
    assert told == [f"left out: {message}"]


def test_videos_of_a_table_are_told(place: Path) -> None:
    rows = "path,label\nelm/1.jpg,elm\noak/1.jpg,oak\noak/b.avi,oak\ngone.mov,oak\n"
    (place / "t.csv").write_text(rows)
    catalog = sources.read(place / "t.csv")
    assert len(catalog) == 2 and "`oak/b.avi` and `gone.mov`" in notes_of(catalog)[0]
    assert f"left out: {notes_of(catalog)[0]}" in catalog.told
    assert [each.problem for each in inputs.read(place / "t.csv")] == ["", "", "", "file not found"]


def test_videos_of_a_form_are_told(place: Path) -> None:
    lines = ["file_name,label", "elm/1.jpg,elm", "oak/1.jpg,oak", "oak/b.avi,oak"]
    (place / "metadata.csv").write_text("\n".join(lines))
    catalog = sources.read(place, form="hf-metadata")
    assert (
        len(catalog) == 2 and f"left out: {videos_left(['oak/b.avi'], place)} (1)" in catalog.told
    )


def test_a_source_of_videos_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    put(tmp_path, "elm/a.mp4", "oak/b.mp4")
    for read in (sources.read, inputs.read):
        with pytest.raises(DataError, match=r"no photographs below .*ffmpeg -i") as caught:
            read(tmp_path)
        assert caught.value.hint.startswith("--group")
    (tmp_path / "t.csv").write_text("path,label\nelm/a.mp4,elm\noak/b.mp4,oak\n")
    images = [{"id": n, "file_name": f"{n}.mp4"} for n in range(2)]
    named = [{"image_id": n, "category_id": 0} for n in range(2)]
    data = {"images": images, "annotations": named, "categories": [{"id": 0, "name": "elm"}]}
    (tmp_path / "c.json").write_text(json.dumps(data))
    for name in ("t.csv", "c.json"):
        with pytest.raises(DataError, match="ffmpeg -i") as caught:
            sources.read(tmp_path / name)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("ending", HEADS)
def test_videos_are_known_by_content(ending: str) -> None:
    with pytest.raises(UnreadablePhoto) as caught:
        pixels.decode(HEADS[ending] + bytes(600))
    assert caught.value.message == f"not an image (a video: take frames by {FRAMES})"
