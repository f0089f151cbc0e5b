"""Forms that labelling tools write, read as tables; most inputs are written by the tools."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fieldguide.errors import DataError
from fieldguide.photos.forms import hf_metadata, labelled_sets, labelling
from fieldguide.photos.forms.form import Form, label_column
from fieldguide.photos.forms.settle import spellings

WRITTEN = Path(__file__).parent / "forms"
FORMS = {
    known.name: known.read for known in (*labelling.FORMS, *labelled_sets.FORMS, *hf_metadata.FORMS)
}


def read(name: str, place: Path) -> Form:
    """The form of that name; no other form of labelling tools takes the place for its own."""
    taken = {other: form for other, reader in FORMS.items() if (form := reader(place)) is not None}
    assert list(taken) == [name]
    return taken[name]


def column(form: Form, name: str) -> dict[str, str]:
    """A column's values by path."""
    at = form.header.index(name)
    assert len({row[0] for row in form.rows}) == len(form.rows)
    return {row[0]: row[at] for row in form.rows}


def write(place: Path, content: object) -> Path:
    """A file with a text, or an object as JSON."""
    place.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    place.write_bytes(text.encode("utf-8"))
    return place


def files(base: Path, *names: str) -> None:
    """Empty files: no form reads its pictures."""
    for name in names:
        write(base / name, "")


# --- Label Studio ---------------------------------------------------------------------------------

STUDIO = {
    "a.jpg": "oak",
    "photos/cam one/b+.jpg": "elm",
    "c.jpg": "oak",
    "deep/dé.png": 'dogs "rose", wild',
    "abcd1237-g.jpg": "oak",
    "upload/1/abcd1238-h.jpg": "",
    "upload/1/abcd1239-i.jpg": "",
}


@pytest.mark.parametrize("name", ["json.json", "json_min.json", "csv.csv"])
def test_label_studios_exports_are_read_alike(tmp_path: Path, name: str) -> None:
    shutil.copy(WRITTEN / "label_studio" / f"one_control_{name}", tmp_path)
    files(tmp_path, "a.jpg", "photos/cam one/b+.jpg", "c.jpg", "deep/dé.png", "abcd1237-g.jpg")
    form = read("label-studio", tmp_path / f"one_control_{name}")
    assert read("label-studio", tmp_path) == form
    skipped = name == "json.json"  # the others do not hold photos whose annotations are all skipped
    assert column(form, "label") == STUDIO | ({"upload/1/abcd123a-j.jpg": ""} if skipped else {})
    assert form.base == tmp_path
    assert form.left_out == {
        "photos with several labels": 1,
        "photos whose annotations differ": 1,
    } | ({"skipped annotations": 2} if skipped else {})
    assert "3 files found by the end of an address" in form.told
    assert "1 file found without what uploading puts before a name" in form.told
    assert f"{3 if skipped else 2} photos without a label" in form.told
    if skipped:
        assert Counter(column(form, "camera").values()) == {"0": 4, "1": 4}


@pytest.mark.parametrize("name", ["json.json", "json_min.json", "csv.csv"])
def test_nothing_decides_between_two_controls(name: str) -> None:
    form = read("label-studio", WRITTEN / "label_studio" / f"two_controls_{name}")
    assert "label" not in form.header and "may each be the labels" in form.told
    assert sorted(column(form, "species").values()) == ["elm", "oak"]
    assert sorted(column(form, "quality").values()) == ["bad", "good"]
    assert label_column(form, "species") == "species"
    with pytest.raises(DataError, match=r"`species`(.|\n)*--label-column"):
        label_column(form)


def test_a_folder_of_several_exports_of_label_studio_is_refused(tmp_path: Path) -> None:
    for name in ("one_control_json.json", "one_control_csv.csv"):
        shutil.copy(WRITTEN / "label_studio" / name, tmp_path)
    with pytest.raises(DataError, match="several files of Label Studio: `one_control_csv"):
        read("label-studio", tmp_path)


def task(image: object, **answers: str | list[str]) -> dict:
    result = [
        {
            "from_name": name,
            "type": "choices",
            "value": {"choices": [given] * isinstance(given, str) or given},
        }
        for name, given in answers.items()
    ]
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 1, "result": result}]}


def test_a_control_called_label_is_the_label_and_another_may_be_empty(tmp_path: Path) -> None:
    tasks = [
        task("x/1.jpg", path="p", label="oak"),
        task("x/2.jpg", label=""),
        task("x/1.jpg", label="oak"),
    ]
    form = read("label-studio", write(tmp_path / "e.json", tasks))
    assert column(form, "label") == {"x/1.jpg": "oak", "x/2.jpg": ""}
    assert column(form, "path_") == {"x/1.jpg": "p", "x/2.jpg": ""}
    assert "labels from `label` beside `path`" in form.told


def test_answers_that_differ_are_blank_where_nothing_decides_between_controls(
    tmp_path: Path,
) -> None:
    tasks = [task("1.jpg", a="x", b="y"), task("1.jpg", a="z", b="y")]
    form = read("label-studio", write(tmp_path / "e.json", tasks))
    assert form.header == ("path", "b") and column(form, "b") == {"1.jpg": "y"}
    assert "photos whose annotations differ: `a` without one (1)" in form.told


def test_a_file_that_several_addresses_lead_to_is_left_out(tmp_path: Path) -> None:
    files(tmp_path, "1.jpg", "2.jpg", "cam1/3.jpg", "cam2/3.jpg", ".hidden/4.jpg")
    assert spellings("http://[x/1%20.jpg#a") == ["[x/1 .jpg", "[x/1%20.jpg"]
    addresses = [
        "http://h/a/1.jpg",
        "http://h/b/1.jpg",
        "http://h/2.jpg",
        "3.jpg",
        "cam2/3.jpg",
        "4.jpg",
    ]
    tasks = [task(each, kind="oak") for each in addresses]
    form = read("label-studio", write(tmp_path / "e.json", tasks))
    assert column(form, "label") == {"2.jpg": "oak", "cam2/3.jpg": "oak", "4.jpg": "oak"}
    assert form.left_out == {
        "files that several photos would be": 1,
        "photos of a name that several files have": 1,
    }


def test_choices_of_regions_and_tasks_without_a_picture_are_counted(tmp_path: Path) -> None:
    tasks = [task("1.jpg", kind="oak"), task(None, kind="oak"), task("2.jpg", kind="elm")]
    tasks[2]["annotations"][0]["result"][0]["value"]["x"] = 3.5
    form = read("label-studio", write(tmp_path / "e.json", tasks))
    assert column(form, "label") == {"1.jpg": "oak", "2.jpg": ""}
    assert form.left_out == {
        "tasks without a picture": 1,
        "choices of regions instead of photos": 1,
    }


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda t: t[1].pop("data"), "task 2: `data`: expected an object"),
        (lambda t: t[1].update(annotations={}), "task 2: `annotations`: expected a list"),
        (lambda t: t[1]["data"].update(image=["2.jpg"]), "expected addresses of pictures"),
        (lambda t: t[1]["annotations"][0].update(result="x"), "task 2: `result`: expected a list"),
        (lambda t: t[1]["annotations"][0]["result"][0].pop("from_name"), "task 2: .*`from_name`"),
        (lambda t: t.insert(1, 3), "task 2: expected a task as an object, found 3"),
        (lambda t: t[0]["data"].update(thumb="t.png"), "`image` and `thumb` hold addresses"),
    ],
)
def test_a_broken_export_of_label_studio_is_refused(tmp_path: Path, broken, said: str) -> None:
    tasks = [task("1.jpg", kind="oak"), task("2.jpg", kind="elm")]
    broken(tasks)
    with pytest.raises(DataError, match=said):
        read("label-studio", write(tmp_path / "e.json", tasks))


def test_a_flat_export_saved_by_a_spreadsheet_is_read_and_a_short_row_refused(
    tmp_path: Path,
) -> None:
    rows = "\ufeffannotation_id;annotator;choice;id;image;lead_time\r\n1;1;oak;1;a.jpg;2,5\r\n"
    place = write(tmp_path / "e.csv", rows)
    assert column(read("label-studio", place), "label") == {"a.jpg": "oak"}
    with pytest.raises(DataError, match=r"e.csv, row 3: expected 6 cells, found 2"):
        read("label-studio", write(place, rows + "2;1\r\n"))


# --- VGG Image Annotator --------------------------------------------------------------------------

# By hand, as VIA 2.0.12 writes its three files.
VIA_CSV = (
    "filename,file_size,file_attributes,region_count,region_id,"
    "region_shape_attributes,region_attributes\n"
    'a.jpg,10,"{""kind"":""dogs \\""rose\\""""}",2,0,"{""name"":""rect""}","{""part"":""leaf""}"\n'
    'a.jpg,10,"{""kind"":""dogs \\""rose\\""""}",2,1,"{""name"":""rect""}","{""part"":""stem""}"\n'
    'b é.jpg,11,"{""kind"":""elm""}",0,0,"{}","{}"\n'
    'c.jpg,12,"{}",0,0,"{}","{}"\n'
)


def marked(name: str, attributes: dict, *regions: dict) -> dict:
    shapes = [{"shape_attributes": {"name": "point"}, "region_attributes": r} for r in regions]
    return {"filename": name, "size": 3, "regions": shapes, "file_attributes": attributes}


def photos_of(*photos: dict) -> dict:
    return {f"{each['filename']}{each['size']}": each for each in photos}


def test_attributes_of_files_are_the_labels_of_vias_table(tmp_path: Path) -> None:
    form = read("via", write(tmp_path / "via.csv", VIA_CSV))
    assert column(form, "label") == {"a.jpg": 'dogs "rose"', "b é.jpg": "elm", "c.jpg": ""}
    assert "labels are attributes of files" in form.told
    with pytest.raises(DataError, match=r"via.csv, row 6: expected 7 cells, found 2"):
        read("via", write(tmp_path / "via.csv", VIA_CSV + "d.jpg,3\n"))
    with pytest.raises(DataError, match=r"via.csv, row 6: expected attributes as an object"):
        read("via", write(tmp_path / "via.csv", VIA_CSV + 'd.jpg,3,"{""kind"":",0,0,{},{}\n'))


def test_a_project_of_via_is_read_with_its_folder_and_options(tmp_path: Path) -> None:
    files(tmp_path, "pictures/a.jpg", "pictures/b.jpg")
    photos = photos_of(
        marked("a.jpg", {"kind": {"oak": True, "elm": False}}),
        marked("b.jpg", {"kind": {"oak": True, "elm": True}}),
        marked("https://example.com/x/c.jpg", {"kind": {}}),
    )
    project = {"_via_settings": {"core": {"default_filepath": "pictures/"}}}
    project["_via_img_metadata"] = photos
    form = read("via", write(tmp_path / "project.json", project))
    assert column(form, "label") == {"pictures/a.jpg": "oak", "https://example.com/x/c.jpg": ""}
    assert form.left_out == {"photos with several labels": 1}


def test_attributes_of_regions_are_the_labels_where_files_have_none(tmp_path: Path) -> None:
    photos = photos_of(
        marked("a.jpg", {"kind": ""}, {"part": "leaf"}, {"part": "leaf"}),
        marked("b.jpg", {}, {"part": "leaf"}, {"part": "stem"}),
    )
    photos["c.jpg3"] = {
        **marked("c.jpg", {}),
        "regions": {"0": {"region_attributes": {"part": "x"}}},
    }
    form = read("via", write(tmp_path / "via.json", photos))
    assert column(form, "label") == {"a.jpg": "leaf", "c.jpg": "x"}
    assert form.left_out == {"photos with several labels": 1}
    with pytest.raises(DataError, match=r"project.json: `core`: expected an object"):
        broken = {"_via_settings": {"core": 3}, "_via_img_metadata": photos}
        read("via", write(tmp_path / "project.json", broken))
    photos["b.jpg3"]["regions"][0]["region_attributes"] = {"part": 3}
    with pytest.raises(DataError, match=r"via.json, `b.jpg3`: `part`: expected a text or options"):
        read("via", write(tmp_path / "via.json", photos))


def test_nothing_decides_between_two_attributes_of_files(tmp_path: Path) -> None:
    photos = photos_of(marked("a.jpg", {"kind": "oak", "split": "good"}))
    form = read("via", write(tmp_path / "via.json", photos))
    assert form.header == ("path", "kind", "split_") and form.rows == (("a.jpg", "oak", "good"),)


# --- Roboflow -------------------------------------------------------------------------------------

VERSIONS = [f"my_jpg.rf.{c * 32}.jpg" for c in "ab"]


def roboflow(base: Path) -> Path:
    """A folder by hand, from the description of Roboflow's "Multi-Label Classification CSV"."""
    rows = ["filename, dog rose, elm", f"{VERSIONS[0]}, 1, 0", f"{VERSIONS[1]}, 1, 0"]
    write(base / "train" / "_classes.csv", "\n".join([*rows, "c.jpg, 1, 1", "d.jpg, 0, 0", ""]))
    write(base / "valid" / "_classes.csv", '\ufefffilename, elm\r\n"e, 1.jpg", 1\r\n')
    write(base / "test" / "_classes.csv", "filename, elm\ne.jpg, 1\ne.jpg, 1\n")
    return base


def test_roboflows_tables_of_classes_are_read_by_part(tmp_path: Path) -> None:
    form = read("roboflow", roboflow(tmp_path))
    first, second = (f"train/{each}" for each in VERSIONS)
    labels = {first: "dog rose", second: "dog rose", "train/d.jpg": ""}
    assert column(form, "label") == labels | {"valid/e, 1.jpg": "elm", "test/e.jpg": "elm"}
    assert Counter(column(form, "split").values()) == {"train": 3, "val": 1, "test": 1}
    events = column(form, "event")
    assert events[first] == events[second] == "my_jpg" and set(events.values()) == {"my_jpg", ""}
    assert form.left_out == {"photos with several labels": 1}
    one = read("roboflow", tmp_path / "test" / "_classes.csv")
    assert (one.base, one.rows) == (tmp_path / "test", (("e.jpg", "elm"),))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("filename, a\nx.jpg, 1\ny.jpg, 2\n", r"test/_classes.csv, row 3: .*0 or 1"),
        ("filename, a\nx.jpg\n", "row 2: .* 1 times 0 or 1"),
        ('filename, a\nx.jpg, 1\n"y.jpg, 1\n', "test/_classes.csv: unexpected end of data"),
        ("file, a\nx.jpg, 1\n", "row 1: expected `filename`"),
        ("filename, a, a\nx.jpg, 1, 0\n", "row 1: .* each once"),
    ],
)
def test_a_broken_table_of_roboflow_is_refused(tmp_path: Path, text: str, said: str) -> None:
    write(roboflow(tmp_path) / "test" / "_classes.csv", text)
    with pytest.raises(DataError, match=said):
        read("roboflow", tmp_path)


# --- Datumaro, and CVAT as Datumaro writes it -----------------------------------------------------


def written(form: str, to: Path) -> Path:
    """What datumaro wrote, with empty files for its pictures."""
    place = to / form
    if (WRITTEN / "datumaro" / form).is_dir():
        shutil.copytree(WRITTEN / "datumaro" / form, place)
    files(place, *json.loads((WRITTEN / "datumaro" / "names.json").read_text("utf-8"))[form])
    return place


LABELS = {"a": "oak", "b": "elm", "my own é": "dog rose", "none": ""}


def test_datumaros_own_form(tmp_path: Path) -> None:
    form = read("datumaro", written("datumaro", tmp_path))
    found = {f"images/train/{name}.jpg": label for name, label in {**LABELS, "same": "oak"}.items()}
    found |= {"images/test/same.jpg": "elm", "images/test/deep_c.jpg": "elm"}
    assert column(form, "label") == found
    assert Counter(column(form, "split").values()) == {"train": 5, "test": 2}
    assert column(form, "camera")["images/train/a.jpg"] == "north"
    # The export writes `twice/d` and `twice_d` to one file.
    assert form.left_out == {
        "photos with several labels": 1,
        "files that several photos would be": 1,
    }
    one = read("datumaro", tmp_path / "datumaro" / "annotations" / "train.json")
    assert one.base == tmp_path / "datumaro" and len(one.rows) == 5


@pytest.mark.parametrize("name", ["imagenet_txt", "cvat"])
def test_namesakes_that_datumaro_overwrites_are_left_out(tmp_path: Path, name: str) -> None:
    form = read(name.replace("_", "-"), written(name, tmp_path))
    more = {"deep/c": "elm", "twice/d": "oak", "twice_d": "oak"}
    assert column(form, "label") == {
        f"images/{n}.jpg": label for n, label in (LABELS | more).items()
    }
    assert Counter(column(form, "split").values()) == {"train": 4, "test": 1, "val": 2}
    assert form.left_out is not None and sorted(form.left_out.values()) == [1, 1]


@pytest.mark.parametrize("name", ["imagenet", "imagenet_with_subset_dirs"])
def test_no_label_is_no_class_and_deep_folders_may_be_names(tmp_path: Path, name: str) -> None:
    place = written(name, tmp_path)
    form = read("datumaro-imagenet", place)
    assert "label" not in form.header and "`no_label` is no class" in form.told
    firsts = Counter(column(form, "first folder").values())
    assert firsts == {"oak": 5, "elm": 4, "dog rose": 1, "": 1}
    assert {"elm/deep", "oak/twice"} < {*column(form, "folders").values()}
    for deep in [*place.rglob("deep"), *place.rglob("twice")]:
        shutil.rmtree(deep)
    form = read("datumaro-imagenet", place)
    assert Counter(column(form, "label").values()) == {"oak": 4, "elm": 3, "dog rose": 1, "": 1}
    if name != "imagenet":
        assert Counter(column(form, "split").values()) == {"train": 7, "test": 1, "val": 1}


def test_a_folder_of_classes_alone_is_none_of_these_forms(tmp_path: Path) -> None:
    files(tmp_path, "oak/1.jpg", "elm/2.jpg", "notes.txt", "table.csv", "more.json", "a.xml")
    write(tmp_path / "metadata.parquet", "PAR1")
    write(tmp_path / "metadata.csv", "image_file_name,label\n1.jpg,oak\n")
    write(tmp_path / "train.xml", "<annotations><other/></annotations>")
    for place in (tmp_path, *tmp_path.glob("*.*")):
        assert [name for name, reader in FORMS.items() if reader(place)] == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda c: c["categories"].pop("label"), "train.json: expected `categories.label.labels`"),
        (lambda c: c["items"][1].pop("image"), "train.json, item 2: `image.path`: expected"),
        (
            lambda c: c["items"][0]["annotations"][0].update(label_id=3),
            "item 1: .* 3 labels, found 3",
        ),
        (
            lambda c: c["items"][0]["annotations"][0].update(label_id="0"),
            "item 1: `label_id`: expected",
        ),
        (lambda c: c.update(items={}), "train.json: `items`: expected a list"),
    ],
)
def test_a_broken_form_of_datumaro_is_refused(tmp_path: Path, broken, said: str) -> None:
    place = written("datumaro", tmp_path) / "annotations" / "train.json"
    content = json.loads(place.read_text("utf-8"))
    broken(content)
    write(place, content)
    with pytest.raises(DataError, match=said):
        read("datumaro", tmp_path / "datumaro")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x.jpg 3", "train.txt, line 1: expected one of 3 labels, found 3"),
        ("x.jpg oak", "train.txt, line 1: expected a path and numbers"),
        ('"x y.jpg 0', "train.txt, line 1: expected a path and numbers"),
    ],
)
def test_a_broken_list_of_imagenet_is_refused(tmp_path: Path, line: str, said: str) -> None:
    place = written("imagenet_txt", tmp_path)
    write(place / "train.txt", line + "\n")
    with pytest.raises(DataError, match=said):
        read("imagenet-txt", place)


# --- CVAT -----------------------------------------------------------------------------------------

# By hand, from "XML annotation format" of CVAT's documentation, with parts as projects have them.
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><project><subsets>Train\nValidation</subsets></project></meta>
  <image id="0" name="cam1/1.jpg" subset="Train" task_id="1" width="6" height="4">
    <tag label="animal" source="manual"><attribute name="species">fox &amp; hare</attribute></tag>
  </image>
  <image id="1" name="cam2/1.jpg" subset="Validation" task_id="2" width="6" height="4">
    <tag label="bird" source="manual"/>
    <tag label="bird" source="auto"/>
    <box label="beak" xtl="0" ytl="0" xbr="1" ybr="1" occluded="0"/>
  </image>
  <image id="2" name="3.jpg" subset="Odd" task_id="2" width="6" height="4"></image>
  <image id="3" name="4.jpg" subset="Train" task_id="2" width="6" height="4">
    <tag label="animal"/><tag label="bird"/>
  </image>
</annotations>
"""


@pytest.mark.parametrize("folders", ["images/{part}/", "images/", "", None])
def test_cvats_tags_are_labels_wherever_photos_lie(tmp_path: Path, folders: str | None) -> None:
    place = write(tmp_path / "annotations.xml", CVAT)
    names = {"cam1/1.jpg": "Train", "cam2/1.jpg": "Validation", "3.jpg": "Odd", "4.jpg": "Train"}
    lie = {n: f"{'' if folders is None else folders.format(part=p)}{n}" for n, p in names.items()}
    if folders is not None:
        files(tmp_path, *lie.values())
    form = read("cvat", tmp_path)
    labels = {"cam1/1.jpg": "animal", "cam2/1.jpg": "bird", "3.jpg": ""}
    assert column(form, "label") == {lie[name]: label for name, label in labels.items()}
    assert list(column(form, "split").values()) == ["train", "val", ""]
    assert list(column(form, "subset").values()) == ["", "", "Odd"]
    assert column(form, "species")[lie["cam1/1.jpg"]] == "fox & hare"
    assert form.left_out == {"photos with several labels": 1}
    assert read("cvat", place).rows == form.rows


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</annotations>", "", "annotations.xml: not XML: .*line"),
        (' name="cam2/1.jpg"', "", "annotations.xml, image 2: `name`: expected a file name"),
        ('<tag label="bird" source="auto"/>', "<tag/>", "image 2: tag: `label`: expected a label"),
        ("<tag", "<box", "annotations.xml: expected images with a `tag`, found none"),
        ("<annotations>", "<!DOCTYPE a><annotations>", "without a document type"),
        ('<image id="2"', '<track id="0"></track><image id="2"', "annotations of a video"),
    ],
)
def test_a_broken_file_of_cvat_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = CVAT.replace(old, new)
    write(tmp_path / "annotations.xml", text.replace("</tag>", "</box>") if new == "<box" else text)
    with pytest.raises(DataError, match=said):
        read("cvat", tmp_path)


# --- Hugging Face ---------------------------------------------------------------------------------

# By hand, from the documentation of `datasets`, which has no writer of this form: its 5.2.0 reads
# folders such as these with the same parts, photos and columns.


def test_metadata_tables_beside_photos_are_read_by_part(tmp_path: Path) -> None:
    write(
        tmp_path / "train/metadata.csv",
        "\ufefffile_name,Species,site\r\na.jpg,oak,1\r\nb/c.jpg,,2\r\n",
    )
    lines = [
        {"file_name": "d.jpg", "Species": ["elm"], "site": 3, "objects": {"bbox": [[0, 0, 1, 1]]}},
        {"file_name": "e.jpg", "Species": ["elm", "oak"], "site": 3},
        {"file_name": "f.jpg", "Species": None},
    ]
    write(tmp_path / "test/metadata.jsonl", "\n".join(map(json.dumps, lines)))
    form = read("hf-metadata", tmp_path)
    labels = {"test/d.jpg": "elm", "test/f.jpg": "", "train/a.jpg": "oak", "train/b/c.jpg": ""}
    assert column(form, "label") == labels
    assert column(form, "split") == {path: path.partition("/")[0] for path in labels}
    assert column(form, "site")["train/a.jpg"] == "1" and column(form, "site")["test/d.jpg"] == "3"
    assert form.left_out == {"photos with several labels": 1}
    assert "labels from `Species` beside `site` and `folder`" in form.told


def test_a_column_of_metadata_may_be_the_labels_or_the_photos_folders_may(tmp_path: Path) -> None:
    write(tmp_path / "train/metadata.csv", "file_name,site\noak/a.jpg,1\nelm/b.jpg,2\n")
    form = read("hf-metadata", tmp_path)
    assert form.header == ("path", "split", "site", "folder")
    assert column(form, "folder") == {"train/oak/a.jpg": "oak", "train/elm/b.jpg": "elm"}
    write(tmp_path / "train/metadata.csv", "file_name\noak/a.jpg\nelm/b.jpg\n")
    assert sorted(column(read("hf-metadata", tmp_path), "label").values()) == ["elm", "oak"]


def test_nothing_decides_between_two_columns_of_metadata(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", "file_name,kind,text\na.jpg,oak,A tree.\n")
    form = read("hf-metadata", tmp_path)
    assert form.header == ("path", "kind", "text")
    write(tmp_path / "metadata.csv", "file_name,text,label\na.jpg,A tree.,0\n")
    assert column(read("hf-metadata", tmp_path), "label") == {"a.jpg": "0"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "metadata.csv",
            "file_name,label\na.jpg,x\nb.jpg\n",
            "metadata.csv, row 3: 1 cell, the header has 2",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg"}\n{"label": "x"}',
            "line 2: `file_name`: expected",
        ),
        ("metadata.jsonl", '{"file_name": "a.jpg"}\n{', "metadata.jsonl, line 2: not JSON"),
        ("metadata.jsonl", '["file_name"]', "metadata.jsonl, line 1: expected an object"),
    ],
)
def test_a_broken_table_of_metadata_is_refused(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    write(tmp_path / name, text)
    with pytest.raises(DataError, match=said):
        read("hf-metadata", tmp_path)


def test_two_tables_of_metadata_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", "file_name,label\na.jpg,x\n")
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.jpg", "label": "y"}')
    with pytest.raises(DataError, match=r"found metadata.csv and metadata.jsonl"):
        read("hf-metadata", tmp_path)


def test_metadata_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {"file_name": ["a.jpg", "b.jpg"], "label": [["oak"], ["oak", "elm"]]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "metadata.parquet")
    form = read("hf-metadata", tmp_path)
    assert column(form, "label") == {"a.jpg": "oak"}
    write(tmp_path / "metadata.parquet", "not, but it says file_name")
    with pytest.raises(DataError, match=r"metadata.parquet: not Parquet"):
        read("hf-metadata", tmp_path)
