"""Forms that labelling tools write, read as tables; most inputs are written by the tools."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fieldguide.errors import DataError
from fieldguide.photos.forms import labelling
from fieldguide.photos.forms.form import Form, label_column

WRITTEN = Path(__file__).parent / "forms"
FORMS = {known.name: known.read for known in labelling.FORMS}


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
    skipped = name == "json.json"  # the others do not hold photos whose annotations are all skipped
    assert column(form, "label") == STUDIO | ({"upload/1/abcd123a-j.jpg": ""} if skipped else {})
    assert form.base == tmp_path
    assert form.left_out == {
        "photos with several labels in one annotation": 1,
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
        "photos whose file several addresses lead to": 1,
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
