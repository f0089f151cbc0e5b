import csv
import json
from datetime import datetime
from pathlib import Path

import pytest
from photos import save
from PIL import Image

from fieldguide.cli import flags, training
from fieldguide.errors import DataError, FieldguideError, UsageError
from fieldguide.photos import groups, sources
from fieldguide.photos.catalog import Catalog


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes at two sites, in bursts of two, with EXIF and a table."""
    root = tmp_path_factory.mktemp("groups")
    rows = []
    for label in ("elm", "oak"):
        for site in ("s1", "s2"):
            for number in range(4):
                time = datetime(2026, 5, 1 + number // 2, 10, 0, 15 * number)
                path = root / "photos" / label / site / f"{number}.jpg"
                exif = Image.Exif()
                exif[0x010F] = "Acme"
                exif.get_ifd(0x8769)[0x9003] = time.strftime("%Y:%m:%d %H:%M:%S")
                save(path, number)
                Image.open(path).save(path, exif=exif)
                rows.append((path.relative_to(root).as_posix(), label, site, str(time)))
    with (root / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "site", "taken at"), *rows])
    return root


def groups_of(catalog: Catalog) -> int:
    return len({photo.group for photo in catalog.photos if photo.group is not None})


@pytest.mark.parametrize(
    ("group", "number", "told"),
    [
        (None, 0, "groups: none"),
        ("none", 0, "groups: none"),
        ("folder:1", 2, "groups: folder 1 of paths, 0 photos alone (2)"),
        ("folder:2", 2, "groups: folder 2 of paths"),
        ("event", 4, "groups: EXIF times within 60 s (4)"),
        ("stem:(.)", 4, "groups: file names by (.)"),
    ],
)
def test_groups_of_a_folder(place: Path, group: str | None, number: int, told: str) -> None:
    catalog = sources.read(place / "photos", group=group)
    assert groups_of(catalog) == number
    assert told in catalog.told


def test_the_gap_between_events(place: Path) -> None:
    assert groups_of(sources.read(place / "photos", group="event", event_gap=5.0)) == 8
    assert groups_of(sources.read(place / "photos", group="event", event_gap=2 * 86400.0)) == 2
    with pytest.raises(UsageError, match="not above 0"):
        sources.read(place / "photos", group="event", event_gap=0.0)


@pytest.mark.parametrize("group", [None, "none", "stem", "folder:2"])
def test_a_gap_that_changes_nothing_is_refused(place: Path, group: str | None) -> None:
    plain = table(place, "path,label,site,DateTime")
    for source in (place / "photos", plain):
        with pytest.raises(UsageError, match=f"changes nothing here: groups: {group or 'none'}\n"):
            sources.read(source, group=group, event_gap=60.0)
    named = table(place, "path,label,event,DateTime", "named.csv")
    for group in (None, "event", "event,label", "DateTime"):
        with pytest.raises(UsageError, match="changes nothing here: groups: column"):
            sources.read(named, group=group, event_gap=60.0)
    for gap, number in ((5.0, 8), (60.0, 4)):
        assert groups_of(sources.read(plain, group="event", event_gap=gap)) == number


@pytest.fixture(scope="module")
def trap(place: Path) -> Path:
    """Photos as COCO Camera Traps: one site with times alone, one that names its sequences."""
    images, annotations = [], []
    for number, (path, label, site, time) in enumerate(
        csv.reader((place / "t.csv").read_text().splitlines())
    ):
        if number:
            named = {"seq_id": f"q{label}"} if site == "s2" else {}
            images.append(
                {"id": number, "file_name": path, "location": site, "datetime": time, **named}
            )
            annotations.append({"image_id": number, "category_id": int(label == "oak")})
    categories = [{"id": 0, "name": "elm"}, {"id": 1, "name": "oak"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (place / "trap.json").write_text(json.dumps(data))
    return place / "trap.json"


def test_the_gap_between_events_of_a_form(trap: Path, tmp_path: Path) -> None:
    for gap, number in ((5.0, 4), (60.0, 2), (2 * 86400.0, 1)):
        for group in (None, "event"):
            catalog = sources.read(trap, group=group, event_gap=gap)
            assert groups_of(catalog) == number + 2
            assert f"events by times within {gap:g} s at a place (8 photos)" in catalog.told
        out = tmp_path / f"{gap:g}.csv"
        training.table(str(trap), out=out, columns=flags.Columns(event_gap=gap))
        assert (
            len({row["event"] for row in csv.DictReader(out.read_text().splitlines())})
            == number + 2
        )
    with pytest.raises(UsageError, match="changes nothing here: groups: column place"):
        sources.read(trap, group="place", event_gap=60.0)
    with pytest.raises(UsageError, match="not above 0"):
        sources.read(trap, event_gap=0.0)


def test_a_form_that_names_all_events_needs_no_gap(trap: Path) -> None:
    data = json.loads(trap.read_text())
    data["images"] = [image | {"seq_id": "q"} for image in data["images"]]
    named = trap.with_name("named.json")
    named.write_text(json.dumps(data))
    assert groups_of(sources.read(named)) == 2
    with pytest.raises(UsageError, match="changes nothing here: groups: column event"):
        sources.read(named, event_gap=60.0)


@pytest.mark.parametrize("group", ["place", "site", "folder:0", "folder:x", "folder:3", "stem:("])
def test_groups_that_a_folder_cannot_have(place: Path, group: str) -> None:
    with pytest.raises(UsageError) as caught:
        sources.read(place / "photos", group=group)
    assert caught.value.hint


def table(place: Path, header: str, name: str = "own.csv") -> Path:
    text = (place / "t.csv").read_text().partition("\n")[2]
    (place / name).write_text(f"{header}\n{text}")
    return place / name


@pytest.mark.parametrize(
    ("header", "group", "number", "told"),
    [
        ("path,label,site,taken at", None, 0, "groups: none"),
        ("path,label,Seq_ID,taken at", None, 2, "groups: column Seq_ID (2)"),
        ("path,label,observationID,x", None, 2, "groups: column observationID (2)"),
        ("path,label,observationID,x", "none", 0, "groups: none"),
        ("path,label,site,x", "place", 2, "groups: column site (2)"),
        ("path,label,site,x", "site,label", 4, "groups: column site + label (4)"),
        ("path,label,site,DateTime", "event", 4, "groups: column DateTime within 60 s at site (4)"),
        ("path,label,event,DateTime", "event", 2, "groups: column event (2)"),
        ("path,label,none,x", "none", 2, "groups: column none (2)"),
        ("path,label,site,x", "folder:3", 2, "groups: folder 3 of paths"),
    ],
)
def test_groups_of_a_table(
    place: Path, header: str, group: str | None, number: int, told: str
) -> None:
    catalog = sources.read(table(place, header), group=group)
    assert groups_of(catalog) == number
    assert told in catalog.told
    made_of = told.partition("column ")[2].partition(" (")[0]
    unused = catalog.told.partition("not used: ")[2]
    assert not any(name in unused for name in ("DateTime", "site") if name in made_of)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("place", "no column for the place"),
        ("event", "no column for the event"),
        ("sight", "no column `sight`"),
        ("label,sight", "no column `sight`"),
    ],
)
def test_groups_that_a_table_does_not_have(place: Path, group: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        sources.read(table(place, "path,label,where,when"), group=group)
    assert "columns found" in caught.value.message or caught.value.hint


def test_days_alone_are_no_times(place: Path, tmp_path: Path) -> None:
    rows = [f"{place}/photos/elm/s1/{n}.jpg,elm,2026-05-0{n + 1}" for n in range(2)]
    (tmp_path / "t.csv").write_text("path,label,date taken\n" + "\n".join(rows))
    with pytest.raises(DataError, match="no cell of `date taken` is a time of day"):
        sources.read(tmp_path / "t.csv", group="event")


def test_photos_without_times_are_no_events(tmp_path: Path) -> None:
    for label in ("a", "b"):
        save(tmp_path / label / "1.jpg", 1)
    with pytest.raises(DataError, match="EXIF when it was taken"):
        sources.read(tmp_path, group="event")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-01 10:11:12", datetime(2026, 5, 1, 10, 11, 12)),
        ("2026:05:01 10:11:12", datetime(2026, 5, 1, 10, 11, 12)),
        ("2026-05-01T10:11:12Z", datetime(2026, 5, 1, 10, 11, 12)),
        ("2026-05-01T10:11:12+02:00", datetime(2026, 5, 1, 8, 11, 12)),
        ("01-May-2026 10:11:12", datetime(2026, 5, 1, 10, 11, 12)),
        ("2026-05-01", None),
        ("0000:00:00 00:00:00", None),
        ("soon, or a little later", None),
        ("", None),
    ],
)
def test_times(text: str, expected: datetime | None) -> None:
    assert groups.time_of(text) == expected


def test_events_are_chains_at_one_place() -> None:
    minutes = [datetime(2026, 1, 1, 0, minute) for minute in (0, 1, 2, 5)]
    times = [minutes[3], minutes[0], None, minutes[1], minutes[2], minutes[0]]
    found = groups.events(times, ["a", "a", "a", "a", "a", "b"], 60.0)
    assert found[1] == found[3] == found[4] == "a 2026-01-01 00:00:00"
    assert found[2] is None and len({found[0], found[1], found[5]}) == 3


@pytest.mark.parametrize(
    ("labels_from", "classes"),
    [
        ("folder:1", ("elm", "oak")),
        ("folder:2", ("s1", "s2")),
        ("folder:2,1", ("s1 elm", "s1 oak", "s2 elm", "s2 oak")),
    ],
)
def test_labels_from_folders(place: Path, labels_from: str, classes: tuple[str, ...]) -> None:
    catalog = sources.read(place / "photos", labels_from=labels_from)
    assert catalog.classes == classes
    assert f"labels: {labels_from} (" in catalog.told


def test_splits_are_no_folders_of_labels(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("Quercus/robur", "Quercus/rubra", "Ulmus/minor"):
            save(tmp_path / split / name / "1.jpg", len(name))
    save(tmp_path / "train" / "Ulmus" / "loose.jpg", 9)
    catalog = sources.read(tmp_path, labels_from="folder:1,2", group="folder:1")
    assert catalog.classes == ("Quercus robur", "Quercus rubra", "Ulmus minor")
    assert {photo.group for photo in catalog.photos} == {"Quercus", "Ulmus"}
    assert "1 photo in fewer folders than folder:1,2" in [n.message for n in catalog.notes][-1]


@pytest.mark.parametrize("labels_from", ["2", "folder:0", "folder:7", "folder:1,", "stem"])
def test_labels_from_nothing(place: Path, labels_from: str) -> None:
    with pytest.raises(FieldguideError):
        sources.read(place / "photos", labels_from=labels_from)
    with pytest.raises(DataError, match="labels_from"):
        sources.read(place / "t.csv", labels_from="folder:1")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("labels: folders (2 classes: a 1, b 1); groups: none; split: none", "new photos, perhaps"),
        ("labels: x; groups: column Site (3); split: none", "photos of new places"),
        ("labels: x; groups: column seq_id (161)", "photos of new events"),
        ("labels: x; groups: column DateTime within 60 s at site (4)", "photos of new events"),
        ("labels: x; groups: EXIF times within 60 s (6)", "photos of new events"),
        ("labels: x; groups: column farm (6)", "photos of new groups (farm)"),
        ("", "new photos, perhaps"),
    ],
)
def test_what_a_score_holds_for(told: str, expected: str) -> None:
    assert groups.holds_for(told).startswith(expected)
    unit, _ = groups.unit_of(told)
    assert expected.startswith(f"photos of new {unit}s" if unit else "new photos, perhaps")
