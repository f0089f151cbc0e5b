"""Forms of camera traps: what real tools wrote, and details by hand from published descriptions."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from photos import save

from fieldguide.errors import DataError
from fieldguide.photos import sources
from fieldguide.photos.catalog import videos_left
from fieldguide.photos.forms import camera_tables, camtrap_dp, camtraptools
from fieldguide.photos.forms import coco as coco_forms
from fieldguide.photos.forms.form import Form, with_events

WRITTEN = Path(__file__).parent / "forms"
FORMS = (*camtrap_dp.FORMS, *camtraptools.FORMS, *camera_tables.FORMS, *coco_forms.FORMS)
READERS = {known.name: known.read for known in FORMS}


def read(name: str, place: Path) -> Form:
    """The form read, with events; no other reader of the module takes it for its own."""
    form = READERS[name](place)
    assert form is not None
    assert [other for other in READERS if READERS[other](place) is not None] == [name]
    return with_events(form, 60.0)


def column(form: Form, name: str) -> list[str]:
    return [row[form.header.index(name)] for row in form.rows]


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return folder


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# --- Camtrap DP

MEDIA = "mediaID,deploymentID,timestamp,filePath,fileMediatype\n"
OBSERVATIONS = (
    "deploymentID,mediaID,eventID,eventStart,eventEnd,observationLevel,observationType,"
    "scientificName\n"
)
DEPLOYMENTS = "deploymentID,locationID\nd1,ridge\nd2,ridge\nd3,\n"


def package(folder: Path, media: str, observations: str, **resource: object) -> Path:
    tables = {"deployments": DEPLOYMENTS, "media": media, "observations": observations}
    write(folder, **tables)
    listed = [{"name": name, "path": f"{name}.csv"} for name in tables]
    listed[1] |= resource
    (folder / "datapackage.json").write_text(
        json.dumps(
            {"profile": "https://x/camtrap-dp/1.0/camtrap-dp-profile.json"} | {"resources": listed}
        )
    )
    return folder


def test_a_package_of_camtraptools() -> None:
    form = read("camtrap-dp", WRITTEN / "camtraptools")
    assert read("camtrap-dp", WRITTEN / "camtraptools" / "datapackage.json") == form
    paths = ["north/a.jpg", "north/b.jpg", "north/c.jpg", "south/a.jpg", "south/b.jpg"]
    assert column(form, "path") == paths
    names = ["Vulpes vulpes"] * 2 + ["blank"] + ["Capreolus capreolus"] * 2
    assert column(form, "label") == names
    assert column(form, "place") == ["ridge"] * 3 + ["stream"] * 2
    events = column(form, "event")
    assert len(set(events)) == 3 and events[0] == events[1] and events[3] == events[4]
    assert column(form, "time")[0] == "2021-06-01T05:00:00"
    assert "4 boxes of its own not used, which `--crop box` takes" in form.told
    boxes = READERS["camtrap-dp"](WRITTEN / "camtraptools", boxes=True)
    assert column(boxes, "box") == ["0.25 0.25 0.5 0.25"] * 4
    assert column(boxes, "label") == ["Vulpes vulpes"] * 2 + ["Capreolus capreolus"] * 2
    assert [row[0] for row in boxes.aside] == ["north/c.jpg"]
    assert set(column(form, "licence")) == {"CC-BY-4.0"}


def test_events_count_by_time_across_zones_and_media_win(tmp_path: Path) -> None:
    media = MEDIA + (
        "m1,d1,2020-05-30T04:57:37+02:00,a.jpg,image/jpeg\n"
        "m2,d1,2020-05-30T02:57:44Z,b.jpg,image/jpeg\n"
        "m3,d1,2020-05-30T04:57:40+02:00,c.jpg,image/jpeg\n"
        "m4,d1,2020-05-30T02:57:45Z,d.jpg,image/jpeg\n"
        "m5,d2,2020-05-30T02:57:40Z,e.jpg,image/jpeg\n"
        "m6,d1,2020-05-30T02:57:41Z,f.jpg,image/jpeg\n"
        "m7,d1,2020-05-30T02:57:42Z,g.mp4,video/mp4\n"
    )
    observed = OBSERVATIONS + (
        "d1,,e1,2020-05-30T02:57:37Z,2020-05-30T02:57:44Z,event,animal,Anas strepera\n"
        "d1,m3,e1,2020-05-30T02:57:37Z,2020-05-30T02:57:44Z,media,blank,\n"
        "d1,m6,e1,2020-05-30T02:57:37Z,2020-05-30T02:57:44Z,media,unclassified,\n"
    )
    form = read("camtrap-dp", package(tmp_path, media, observed))
    labels = dict(zip(column(form, "path"), column(form, "label"), strict=True))
    assert labels == {
        "a.jpg": "Anas strepera",
        "b.jpg": "Anas strepera",
        "c.jpg": "blank",
        "f.jpg": "Anas strepera",
    }
    assert set(column(form, "event")) == {"ridge/e1"}
    assert form.left_out is not None and sum(form.left_out.values()) == 3
    assert "3 photos with the label of the event they lie in" in form.told


def test_several_species_unknown_ones_and_unnamed_animals_are_left_out(tmp_path: Path) -> None:
    media = MEDIA + "".join(
        f"m{n},d3,2020-05-30T0{n}:00:00Z,{n}.jpg,image/jpeg\n" for n in range(6)
    )
    kinds = ["animal,Vulpes vulpes", "unknown,", "animal,", "animal,NA", "human,", "vehicle,"]
    lines = [f"d3,m{n},,,,media,{kind}\n" for n, kind in enumerate(kinds)]
    lines += ["d3,m0,,,,media,animal,Vulpes vulpes\n", "d3,m5,,,,media,blank,\n"]
    form = read("camtrap-dp", package(tmp_path, media, OBSERVATIONS + "".join(lines)))
    assert column(form, "label") == ["Vulpes vulpes", "human"]
    assert column(form, "place") == ["d3", "d3"]
    assert column(form, "event") == ["d3 2020-05-30 00:00:00", "d3 2020-05-30 04:00:00"]
    left = {why: number for why, number in (form.left_out or {}).items() if number}
    assert left == {
        "photos under several labels": 1,
        "photos unknown, unclassified or of animals without a name": 3,
    }


def test_photos_at_addresses_are_found_by_their_last_parts_or_left_out(tmp_path: Path) -> None:
    media = MEDIA + "".join(
        f"m{n},d1,2020-05-30T0{n}:00:00Z,https://host/assets/{n}/file,image/jpeg\n"
        for n in range(3)
    )
    observed = OBSERVATIONS + "".join(f"d1,m{n},,,,media,blank,\n" for n in range(3))
    form = read("camtrap-dp", package(tmp_path, media, observed))
    assert not form.rows
    assert "photos at addresses: download them first (3)" in form.told
    files(tmp_path, "0/file", "1/file", "2/file")
    assert column(read("camtrap-dp", tmp_path), "path") == ["0/file", "1/file", "2/file"]


def test_resources_keep_their_dialect_and_may_be_compressed(tmp_path: Path) -> None:
    media = (MEDIA + 'm1,d1,2020-05-30T00:00:00Z,"a, ""b"".jpg",image/jpeg\n').replace("\n", "\r\n")
    place = package(tmp_path, media, OBSERVATIONS + "d1,m1,,,,media,animal,Lynx lynx\n")
    assert column(read("camtrap-dp", place), "path") == ['a, "b".jpg']
    package(
        tmp_path,
        MEDIA.replace(",", ";") + "m1;d1;2020-05-30T00:00:00Z;'a; b.jpg';image/jpeg\n",
        "\ufeff" + OBSERVATIONS + "d1,m1,,,,media,animal,Lynx lynx\n",
        dialect={"delimiter": ";", "quoteChar": "'"},
        path="media.csv.gz",
    )
    data = (tmp_path / "media.csv").read_bytes()
    (tmp_path / "media.csv.gz").write_bytes(gzip.compress(data))
    assert column(read("camtrap-dp", tmp_path), "path") == ["a; b.jpg"]
    (tmp_path / "media.csv.gz").write_bytes(gzip.compress(data)[:-12])
    with pytest.raises(DataError, match=r"end-of-stream.*media\.csv\.gz"):
        READERS["camtrap-dp"](tmp_path)


ONE = "m1,d1,2020-05-30T00:00:00Z,a.jpg,image/jpeg\n"


@pytest.mark.parametrize(
    ("media", "observed", "message"),
    [
        ("m1,d9,2020-05-30T00:00:00Z,a.jpg,image/jpeg\n", "", "media, row 2: deploymentID `d9`"),
        ("m1,d1,2020-05-30 00:00,a.jpg,image/jpeg\n", "", "media, row 2: expected a time such as"),
        ("m1,d1,,,image/jpeg\n", "", "media, row 2: expected a filePath"),
        (ONE + ONE, "", "media, row 3: expected a mediaID of its own, found `m1`"),
        (ONE + "m2,d1\n", "", r"media\.csv, row 3: 2 cells, the header has 5"),
        (ONE, "d1,m1,,,,photo,blank,\n", "observations, row 2: expected observationLevel"),
        (ONE, "d1,m1,,,,media,bird,\n", "observations, row 2: expected an observationType"),
        (ONE, "d1,,,,,media,blank,\n", "observations, row 2: expected a mediaID"),
        (ONE, "d1,,e,,,event,blank,\n", "observations, row 2: expected a time such as"),
        (ONE, 'd1,m1,"e"x,,,media,blank,\n', r"observations\.csv, row 2: "),
    ],
)
def test_a_broken_package_is_refused(
    tmp_path: Path, media: str, observed: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        READERS["camtrap-dp"](package(tmp_path, MEDIA + media, OBSERVATIONS + observed))


def test_other_versions_and_missing_resources_are_refused(tmp_path: Path) -> None:
    place = package(tmp_path, MEDIA.replace("filePath", "file"), OBSERVATIONS)
    with pytest.raises(DataError, match=r"media\.csv: expected one column `filePath`, found none"):
        READERS["camtrap-dp"](place)
    for path in ("../media.csv", "/media.csv", "https://host/media.csv", ["media.csv"]):
        with pytest.raises(DataError, match="resource `media`, key `path`: expected"):
            READERS["camtrap-dp"](package(tmp_path, MEDIA, OBSERVATIONS, path=path))
    for described, said in (
        ({"dialect": {"delimiter": "::"}}, r"media\.csv: cannot be read as described"),
        ({"encoding": "utf-88"}, "unknown encoding: `utf-88`"),
    ):
        with pytest.raises(DataError, match=said):
            READERS["camtrap-dp"](package(tmp_path, MEDIA, OBSERVATIONS, **described))
    with pytest.raises(DataError, match="resource `media`: expected"):
        READERS["camtrap-dp"](package(tmp_path, MEDIA, OBSERVATIONS, name="pictures"))
    (tmp_path / "datapackage.json").write_text('{"profile": "https://x/camtrap-dp/0.6/p.json"}')
    with pytest.raises(DataError, match=r"expected Camtrap DP 1, found 0\.6"):
        READERS["camtrap-dp"](tmp_path)
    (tmp_path / "datapackage.json").write_text('{"profile": "tabular-data-package"}')
    assert READERS["camtrap-dp"](tmp_path) is None


# --- COCO Camera Traps


def test_coco_camera_traps_of_megadetector_utils(tmp_path: Path) -> None:
    shutil.copy(WRITTEN / "megadetector" / "cct.json", tmp_path)
    form = read("coco", tmp_path)
    assert form.name == "COCO Camera Traps" and form.base == tmp_path
    assert column(form, "path") == [f"deployment/{d}/i{n}.jpg" for n, d in enumerate("1112", 1)]
    assert column(form, "label") == ["empty", "jaguar", "jaguar", "agouti"]
    places = [f"project_7_deployment_DEP{d}" for d in "1112"]
    assert column(form, "place") == places
    events = column(form, "event")
    assert events[1] == events[2] and len(set(events)) == 3
    assert form.left_out == {"photos under several labels": 1, "photos without annotation": 0}
    files(tmp_path, "images/deployment/1/i1.jpg")
    moved = read("coco", tmp_path / "cct.json")
    assert moved.base == tmp_path / "images" and "photos lie in `images/`" in moved.told


def coco(place: Path, images: list, annotations: list, **more: object) -> Path:
    place.write_text(
        json.dumps(
            {"images": images, "annotations": annotations}
            | {"categories": [{"id": 1, "name": "fox"}, {"id": 2, "name": "élan"}]}
            | more
        ),
        encoding="utf-8",
    )
    return place


def test_coco_by_sequence_with_ids_as_numbers_and_text(tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "a\\1.jpg", "seq_id": "s", "location": 26},
        {"id": "2", "file_name": "a/2.jpg", "seq_id": "s", "location": "27"},
        {"id": 3, "file_name": "a/3.jpg", "seq_id": "s", "location": 26, "datetime": "dusk"},
        {"id": 4, "file_name": "a/4.jpg", "location": 26, "datetime": "2016:03:04 05:06:07"},
        {"id": 5, "file_name": "a/5.jpg", "location": 26, "datetime": "2016-03-04 05:07:07"},
        {"id": 6, "file_name": "a/6.avi", "location": 26},
        {"id": 7, "file_name": "a/7.jpg", "location": 26},
    ]
    annotations = [{"id": n, "image_id": str(n), "category_id": 1 + n % 2} for n in range(1, 7)]
    annotations += [
        {"id": 9, "image_id": 3.0, "category_id": "2"},
        {"image_id": 8, "category_id": 1},
    ]
    form = read("coco", coco(tmp_path / "x.json", images, annotations))
    assert column(form, "path") == ["a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg", "a/5.jpg"]
    assert column(form, "label") == ["élan", "fox", "élan", "fox", "élan"]
    late = "26 2016-03-04 05:06:07"
    assert column(form, "event") == ["26/s", "27/s", "26/s", late, late]
    assert column(form, "place") == ["26", "27", "26", "26", "26"]
    assert "1 time of no known form" in form.told
    assert Counter(form.left_out)["annotations of images that are not listed"] == 1
    assert Counter(form.left_out)["photos without annotation"] == 1


def test_objects_in_boxes_are_one_label_a_photo(tmp_path: Path) -> None:
    images = [
        {"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 50, "license": 4}
        for n in range(3)
    ]
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [10, 10, 20, 20]},
        {"id": 2, "image_id": 0, "category_id": 1, "bbox": [0, 0, 50, 50]},
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]},
        {"id": 4, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5]},
    ]
    licences = [{"id": 4, "name": "CC BY"}]
    form = read("coco", coco(tmp_path / "x.json", images, annotations, licenses=licences))
    assert form.name == "COCO" and form.header == ("path", "label", "licence")
    assert form.rows == (("0.jpg", "fox", "CC BY"),)
    assert form.left_out == {"photos under several labels": 1, "photos without annotation": 1}
    assert "4 boxes of its own not used" in form.told
    boxes = READERS["coco"](tmp_path / "x.json", boxes=True)
    assert boxes.header == ("path", "label", "box", "licence")
    assert [row[:3] for row in boxes.rows] == [
        ("0.jpg", "fox", "0.1 0.2 0.2 0.4"),
        ("0.jpg", "fox", "0 0 0.5 1"),
    ]
    left = {why: number for why, number in (boxes.left_out or {}).items() if number}
    assert left == {"boxes under several labels": 1, "photos without a box": 1}
    assert [row[0] for row in boxes.aside] == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([{"id": 1}], [], r"x\.json, images\[0\], key `file_name`: expected a path"),
        ([7], [], r"images\[0\]: expected an object, found 7"),
        ([{"id": 1, "file_name": "a"}] * 2, [], r"images\[1\], key `id`: .* found `1`"),
        ([], [{"image_id": 1, "category_id": 9}], r"annotations\[0\], key `category_id`: `9`"),
        ([], [{"image_id": [1], "category_id": 1}], r"annotations\[0\], key `image_id`"),
    ],
)
def test_broken_coco_is_refused(
    tmp_path: Path, images: list, annotations: list, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        READERS["coco"](coco(tmp_path / "x.json", images, annotations))


def test_coco_without_categories_or_with_two_files_is_refused(tmp_path: Path) -> None:
    place = coco(tmp_path / "x.json", [{"id": 1, "file_name": "a"}], [], categories=None)
    with pytest.raises(DataError, match="key `categories`: expected a list, found None"):
        READERS["coco"](place)
    coco(tmp_path / "y.json", [], [])
    with pytest.raises(DataError, match=r"several files of COCO: `x\.json`, `y\.json`"):
        READERS["coco"](tmp_path)


# --- MegaDetector


def test_results_of_megadetector_utils() -> None:
    form = read("megadetector", WRITTEN / "megadetector" / "md.json")
    assert form.header == ("path", "place", "confidence", "category")
    assert len(form.rows) == 5
    assert set(column(form, "place")) == {"deployment/1", "deployment/2"}
    assert form.rows[0][2:] == ("0.9", "empty")
    assert "no labels" in form.told
    boxes = READERS["megadetector"](WRITTEN / "megadetector" / "md.json", boxes=True)
    assert boxes.rows[0][2:] == ("0.125 0.125 0.25 0.25", "0.9", "empty")


def megadetector(place: Path, *images: object, **more: object) -> Path:
    data = {"images": images, "detection_categories": {"1": "animal", "2": "person"}} | more
    place.write_text(json.dumps(data))
    return place


def test_crops_failures_videos_and_times(tmp_path: Path) -> None:
    one = {"category": "2", "conf": 0.25, "bbox": [0, 0, 1, 1]}
    form = read(
        "megadetector",
        megadetector(
            tmp_path / "md.json",
            {"file": "c\\a.jpg.crop_000.jpg", "detections": []},
            {"file": "c/a.jpg.crop_001.jpg", "detections": [one]},
            {"file": "c/b.jpg", "detections": [], "datetime": "2020:01:01 00:00:00"},
            {"file": "d.jpg", "detections": [one], "datetime": "2020:01:01 00:00:05"},
            {"file": "e.jpg", "failure": "Failure image access", "detections": None},
            {"file": "f.mp4", "detections": []},
        ),
    )
    assert column(form, "event")[:2] == ["c/a.jpg.jpg"] * 2
    assert column(form, "place") == ["c", "c", "c", "."]
    assert column(form, "category") == ["", "person", "", "person"]
    left = Counter(form.left_out)
    assert left["photos that MegaDetector could not read"] == 1
    assert left[videos_left(["f.mp4"], tmp_path)] == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"detections": []}, r"images\[0\], key `file`: expected a path"),
        ({"file": "a.jpg"}, r"images\[0\], key `detections`: expected a list, found None"),
        (
            {"file": "a", "detections": [{"category": "9", "conf": 1}]},
            r"detections\[0\], key `category`: `9` is not in",
        ),
        (
            {"file": "a", "detections": [{"category": "1", "conf": "high"}]},
            r"detections\[0\], key `conf`: expected a number",
        ),
        (
            {"file": "a", "detections": [{"category": "1", "conf": 1, "bbox": [1, 2]}]},
            r"detections\[0\], key `bbox`: expected a box of four numbers",
        ),
    ],
)
def test_broken_results_are_refused(tmp_path: Path, image: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        READERS["megadetector"](megadetector(tmp_path / "md.json", image))


# --- Wildlife Insights, by hand from its data dictionary and the reader of megadetector-utils

WILDLIFE = (
    "project_id,deployment_id,image_id,filename,location,is_blank,class,order,family,genus,"
    "species,common_name,timestamp,sequence_id,license\n"
)


def test_a_download_read_by_megadetector_utils(tmp_path: Path) -> None:
    shutil.copy(WRITTEN / "megadetector" / "images_7.csv", tmp_path)
    files(tmp_path, "deployment/1/i2.jpg")
    form = read("wildlife-insights", tmp_path)
    assert column(form, "path") == [f"deployment/{d}/i{n}.jpg" for n, d in enumerate("1112", 1)]
    labels = ["blank", "Panthera onca", "Panthera onca", "Dasyprocta punctata"]
    assert column(form, "label") == labels
    assert column(form, "place") == ["7/DEP1"] * 3 + ["7/DEP2"]
    events = column(form, "event")
    assert events[1] == events[2] == "7/DEP1 2021-08-26 10:05:00" and len(set(events)) == 3
    assert column(form, "family") == ["", "Felidae", "Felidae", "Dasyproctidae"]
    assert "by the last 3 parts of location" in form.told


def test_names_that_repeat_in_deployments_are_found_by_deployment(tmp_path: Path) -> None:
    rows = [
        "1,D,i1,a.jpg,gs://b/i1.jpg,0,Mammalia,Carnivora,Felidae,,,Cat,2021-01-01 00:00:00,,CC0",
        "1,E,i2,a.jpg,gs://b/i2.jpg,0,,,,,,Vehicle,2021-01-01 00:00:30,,CC0",
        "2,D,i3,b.jpg,gs://b/i3.jpg,false,No CV Result,,,,,No CV Result,2021-01-01 00:00:00,,",
        "2,D,i4,c.jpg,gs://b/i4.jpg,0,,,,,,,2021-01-01 00:00:10,q1,",
        "2,D,i5,d.jpg,gs://b/i5.jpg,TRUE,,,,,,,2021-01-01 00:00:20,q2,",
        "2,D,i6,e.jpg,gs://b/i6.jpg,0,Mammalia,Rodentia,Cuniculidae,Cuniculus,paca,,bad,,",
    ]
    write(
        tmp_path,
        images=WILDLIFE + "\n".join(rows) + "\n",
        deployments="project_id,deployment_id,placename\n1,D,Site\n2,D,Site\n",
        sequences="project_id,sequence_id,is_blank,genus,species\n2,q1,0,Tapirus,Tapirus bairdii\n",
    )
    files(tmp_path, "D/a.jpg", "E/a.jpg")
    form = read("wildlife-insights", tmp_path)
    assert column(form, "path") == ["D/a.jpg", "E/a.jpg", "D/c.jpg", "D/d.jpg", "D/e.jpg"]
    labels = ["Felidae", "vehicle", "Tapirus bairdii", "blank", "Cuniculus paca"]
    assert column(form, "label") == labels
    assert column(form, "place") == ["1/Site", "1/E", "2/Site", "2/Site", "2/Site"]
    assert column(form, "event")[2:] == ["2/Site/q1", "2/Site/q2", ""]
    assert "1 row named above the species" in form.told
    assert "1 photo without time or place" in form.told
    assert Counter(form.left_out)["photos without a label"] == 1
    assert column(form, "licence") == ["CC0", "CC0", "", "", ""]


def test_a_download_without_a_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path, images="project_id,deployment_id,image_id,filename,timestamp\n1,D,i,a,b\n")
    with pytest.raises(DataError, match=r"images\.csv: expected one column `location`, found none"):
        READERS["wildlife-insights"](tmp_path)


# --- Timelapse, by hand from its reference guide


def test_timelapse_by_its_species_column(tmp_path: Path) -> None:
    write(
        tmp_path,
        data="\ufeffRootFolder,File,RelativePath,DateTime,DeleteFlag,Species,Animal,Note,place\r\n"
        'S,I1.JPG,A\\100,2016-03-04 05:06:07,false,"Fox, red",true,"a ""b""",x\r\n'
        "S,I2.JPG,A\\100,2016-03-04 05:07:07,false,Deer,true,,\r\n"
        "S,I1.JPG,B,2016-03-04 05:06:30,false,Deer,true,,\r\n"
        "S,I1.JPG,B,2016-03-04 05:06:30,false,Deer,true,again,\r\n"
        "S,I3.JPG,B,2016-03-04 05:08:00,TRUE,Deer,true,,\r\n"
        "S,I4.JPG,B,2016-03-04 05:08:00,false,,false,,\r\n"
        "S,I5.AVI,B,2016-03-04 05:08:00,false,Deer,false,,\r\n"
        "S,I6.JPG,,2016-03-04 05:08:00,false,Deer,false,,\r\n",
    )
    form = read("timelapse", tmp_path / "data.csv")
    assert column(form, "path") == ["A/100/I1.JPG", "A/100/I2.JPG", "B/I1.JPG", "I6.JPG"]
    assert column(form, "label") == ["Fox, red", "Deer", "Deer", "Deer"]
    assert column(form, "place") == ["A/100", "A/100", "B", "."]
    events = column(form, "event")
    assert events[0] == events[1] == "A/100 2016-03-04 05:06:07" and len(set(events)) == 3
    assert column(form, "Note") == ['a "b"', "", "", ""]
    assert column(form, "Timelapse place") == ["x", "", "", ""]
    left = {why: number for why, number in (form.left_out or {}).items() if number}
    assert left == {
        "rows with a DeleteFlag": 1,
        "photos without a label": 1,
        videos_left(["B/I5.AVI"], tmp_path): 1,
    }
    files(tmp_path, "S/A/100/I1.JPG")
    assert read("timelapse", tmp_path / "data.csv").base == tmp_path / "S"


def test_timelapse_with_several_label_columns_names_none(tmp_path: Path) -> None:
    write(
        tmp_path,
        data="File;RelativePath;Folder;Date;Time;DeleteFlag;Species;Common name\n"
        "a.jpg;x;F;04-Mar-2016;05:06:07;false;Vulpes;Fox\n",
    )
    form = read("timelapse", tmp_path / "data.csv")
    assert form.header == ("path", "event", "place", "time", "Species", "Common name")
    assert form.rows[0][1:4] == ("x 2016-03-04 05:06:07", "x", "2016-03-04T05:06:07")
    assert "name one of `Species`, `Common name` by `--label-column`" in form.told
    write(tmp_path, none="File,RelativePath,DateTime,Note\na.jpg,x,2016-03-04 05:06:07,Fox\n")
    assert "name one of `Note` by `--label-column`" in read("timelapse", tmp_path / "none.csv").told
    save(tmp_path / "x" / "a.jpg", 1)
    for name, chosen in (("data", "Common name"), ("none", "Note")):
        with pytest.raises(DataError, match="nothing decides which column is the label") as caught:
            sources.read(tmp_path / f"{name}.csv")
        assert "--label-column" in caught.value.hint
        photos = sources.read(tmp_path / f"{name}.csv", label=chosen).photos
        assert [photo.label for photo in photos] == ["Fox"]


def test_a_broken_timelapse_table_is_refused(tmp_path: Path) -> None:
    head = "File,RelativePath,DateTime,Species\n"
    write(tmp_path, data=head + "a.jpg,x,2016-03-04 05:06:07\n")
    with pytest.raises(DataError, match=r"data\.csv, row 2: 3 cells, the header has 4"):
        READERS["timelapse"](tmp_path / "data.csv")
    (tmp_path / "data.csv").write_bytes(head.encode() + b"a.jpg,x,,Caf\xe9\n")
    with pytest.raises(DataError, match=r"data\.csv, row 2: not text in UTF-8"):
        READERS["timelapse"](tmp_path / "data.csv")


# --- iWildCam, by hand from the loader of WILDS 2.0.0


def test_iwildcam(tmp_path: Path) -> None:
    splits = ("train", "id_val", "val", "id_test", "test")
    lines = [
        f"{n},{split},{n % 2},{n // 2},2013-06-05 05:44:1{n},{n % 2},{n}.jpg\n"
        for n, split in enumerate(splits)
    ]
    header = ",split,location_remapped,sequence_remapped,datetime,y,filename\n"
    write(tmp_path, metadata=header + "".join(lines))
    assert set(column(read("iwildcam", tmp_path), "label")) == {"0", "1"}
    write(tmp_path, categories="y,category_id,name\n0,0,empty\n1,2,tayassu pecari\n")
    files(tmp_path, "train/0.jpg")
    form = read("iwildcam", tmp_path / "metadata.csv")
    assert form.base == tmp_path / "train"
    assert column(form, "split") == ["train", "val", "val", "test", "test"]
    assert Counter(column(form, "label")) == {"empty": 3, "tayassu pecari": 2}
    assert column(form, "place") == ["0", "1", "0", "1", "0"]
    assert column(form, "event") == ["0/0", "1/0", "0/1", "1/1", "0/2"]
    assert "id_val counts as val (1 row)" in form.told


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("train,1,7,a.jpg", r"metadata\.csv, row 2: y `7` is not in categories\.csv"),
        ("dev,1,0,a.jpg", r"metadata\.csv, row 2: expected a split of .* found `dev`"),
    ],
)
def test_broken_iwildcam_is_refused(tmp_path: Path, cells: str, message: str) -> None:
    write(
        tmp_path,
        metadata=f"split,location_remapped,y,filename\n{cells}\n",
        categories="y,name\n0,empty\n",
    )
    with pytest.raises(DataError, match=message):
        READERS["iwildcam"](tmp_path)


# --- other tables of camtraptools


def test_crops_of_camtraptools(tmp_path: Path) -> None:
    shutil.copy(WRITTEN / "camtraptools_more" / "crops.csv", tmp_path)
    form = read("camtraptools", tmp_path)
    assert read("camtraptools", tmp_path / "crops.csv") == form and form.base == tmp_path
    assert form.header == ("path", "label", "event", "place", "split", "aiLabel")
    assert sorted(column(form, "label")) == [
        "Capreolus capreolus",
        "Vulpes vulpes",
        "deer",
        "red fox",
    ]
    assert {*column(form, "event")} == {"ridge/north-0001", "stream/south-0001"}
    assert {*column(form, "place")} == {"ridge", "stream"}
    assert form.rows[0][0].startswith(f"{form.rows[0][4]}/")


def test_labels_of_camtraptools(tmp_path: Path) -> None:
    form = read("camtraptools", WRITTEN / "camtraptools_more" / "labels.csv")
    paths = ["north/a.jpg", "north/b.jpg", "north/c.jpg", "south/a.jpg", "south/b.jpg"]
    assert column(form, "path") == paths
    names = ["red fox", "Vulpes vulpes", "blank", "Capreolus capreolus", "deer"]
    assert column(form, "label") == names
    assert column(form, "place") == ["north"] * 3 + ["south"] * 2


def test_a_package_of_camtraptools_that_was_not_exported_is_refused(tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "camtraptools", tmp_path, dirs_exist_ok=True)
    (tmp_path / "datapackage.json").unlink()
    with pytest.raises(DataError, match=r"without datapackage\.json") as caught:
        READERS["camtraptools"](tmp_path)
    assert "camtraptools export" in caught.value.hint


# --- AddaxAI, by hand from its export

ADDAX = (
    "absolute_path,relative_path,data_type,label,confidence,bbox_left,bbox_top,bbox_right,"
    "bbox_bottom,file_height,file_width\n"
)


def test_detections_of_addaxai(tmp_path: Path) -> None:
    write(
        tmp_path,
        results_detections=ADDAX + "/x,c/a.jpg,img,deer,0.5,0,0,50,25,50,100\n"
        "/x,c/a.jpg,img,fox,0.75,50,25,100,50,50,100\n",
    )
    form = read("addaxai", tmp_path / "results_detections.csv")
    assert form.header == ("path", "place", "confidence", "category")
    assert form.rows == (("c/a.jpg", "c", "0.75", "fox"),)
    boxes = READERS["addaxai"](tmp_path / "results_detections.csv", boxes=True)
    assert column(boxes, "box") == ["0 0 0.5 0.5", "0.5 0.5 0.5 0.5"]
    dated = [
        f"/x,c/{n}.jpg,img,fox,0.5,0,0,1,1,9,9,{time}\n"
        for n, time in enumerate(
            ("13/01/24 10:00:00", "2024-01-13 10:00:00", "", "01/02/24 10:00:00")
        )
    ]
    write(tmp_path, dated=ADDAX.replace("\n", ",DateTimeOriginal\n") + "".join(dated))
    form = read("addaxai", tmp_path / "dated.csv")
    assert column(form, "time") == ["", "2024-01-13T10:00:00", "", ""]
    assert "2 times of no known form, taken as none" in form.told
    assert "3 photos without time or place" in form.told
    write(tmp_path, bad=ADDAX + "/x,c/a.jpg,img,deer,0.5,0,0,50,25,0,100\n")
    with pytest.raises(DataError, match=r"bad\.csv, row 2: a box in a picture of no size"):
        READERS["addaxai"](tmp_path / "bad.csv")


# --- what is of no form


def test_other_sources_are_of_no_form(tmp_path: Path) -> None:
    files(tmp_path, "oak/1.jpg")
    write(tmp_path, labels="path,label\noak/1.jpg,oak\n", metadata="file_name,label\na,b\n")
    (tmp_path / "list.json").write_text('[{"image": "a.jpg"}]')
    (tmp_path / "other.json").write_text('{"annotations": {}, "items": []}')
    (tmp_path / "broken.csv").write_bytes(b"\xff\xfe\x00")
    places = [tmp_path, *tmp_path.iterdir(), tmp_path / "none"]
    for place in places:
        assert [name for name, reader in READERS.items() if reader(place)] == [], place
