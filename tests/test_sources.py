from collections.abc import Callable
from pathlib import Path

import pytest
from photos import save

from fieldguide.errors import DataError, UsageError
from fieldguide.photos import sources
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.forms.form import Form, Known, table_of
from fieldguide.photos.forms.known import KNOWN


def one_hot(folder: Path) -> Path:
    for number in range(4):
        save(folder / f"{number}.jpg", number)
    rows = ["id,oak,elm,ash", "0,1,0,0", "1,0,1,0", "2,0,1,0", "3,0,1,1"]
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder / "labels.csv"


def labels(catalog: Catalog) -> dict[str, str | None]:
    return {photo.path: photo.label for photo in catalog.photos}


def test_a_form_is_recognised_and_told(tmp_path: Path) -> None:
    catalog = sources.read(one_hot(tmp_path))
    assert labels(catalog) == {"0.jpg": "oak", "1.jpg": "elm", "2.jpg": "elm"}
    assert catalog.told.startswith("form: ")
    assert "left out: " in catalog.told


def test_a_form_can_be_named_or_refused(tmp_path: Path) -> None:
    place = one_hot(tmp_path)
    assert labels(sources.read(place, form="one-hot")) == labels(sources.read(place))
    with pytest.raises(DataError, match="no column for the label"):
        sources.read(place, form="plain")
    with pytest.raises(UsageError, match="there is no format `onehot`") as caught:
        sources.read(place, form="onehot")
    assert "one-hot" in caught.value.hint
    with pytest.raises(UsageError, match="is not in the format `cub`"):
        sources.read(place, form="cub")


def test_options_that_a_form_does_not_have(tmp_path: Path) -> None:
    place = one_hot(tmp_path)
    for option in ({"encoding": "latin-1"}, {"labels_from": "folder:1"}):
        with pytest.raises(DataError, match="and this is of the form"):
            sources.read(place, **option)


def test_a_form_whose_label_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.jpg", 1)
    save(tmp_path / "b.jpg", 2)
    rows = [
        {
            "path": "a.jpg",
            "label": "x",
            "species": "oak",
            "event": "1",
            "place": "p",
            "split": "val",
        },
        {"path": "b.jpg", "label": "y", "species": "elm", "event": "2", "place": "p"},
    ]

    def read(place: Path) -> Form:
        return table_of("Made up", place, rows, rules=["a rule"], left_out={"nothing": 0, "one": 1})

    monkeypatch.setattr("fieldguide.photos.forms.known.KNOWN", (Known("made-up", read),))
    usual = sources.read(tmp_path)
    assert [(p.label, p.group, p.split) for p in usual.photos] == [
        ("x", "1", "val"),
        ("y", "2", "train"),
    ]
    assert usual.told.startswith("form: Made up (2 rows); a rule; left out: one (1); labels: ")
    assert set(labels(sources.read(tmp_path, label="species")).values()) == {"oak", "elm"}
    assert {p.group for p in sources.read(tmp_path, group="place").photos} == {"p"}
    assert {p.group for p in sources.read(tmp_path, group="none").photos} == {None}
    assert [n.kind for n in usual.notes] == ["shared-place"]


def test_names_of_forms_differ() -> None:
    names = [known.name for known in KNOWN]
    assert len(set(names)) == len(names)
    assert "plain" not in names


@pytest.mark.parametrize("group", [None, "folder:1"])
def test_the_plain_table_of_a_folder_reads_as_the_folder(
    command: Callable[..., object], tmp_path: Path, group: str | None
) -> None:
    for label in ("elm", "oak"):
        for number in range(2):
            save(tmp_path / "photos" / label / f"{number}.jpg", number)
    for out in (tmp_path / "t.csv", tmp_path / "photos" / "oak" / "t.csv"):
        flags = ["--group", group] if group else []
        command("table", tmp_path / "photos", "--out", out, *flags)
        whole = sources.read(tmp_path / "photos", group=group)
        again = sources.read(out)
        seen = [(c.file(p).resolve(), p.label, p.group) for c in (whole, again) for p in c.photos]
        assert sorted(seen[:4]) == sorted(seen[4:])


def test_the_plain_table_of_a_form(command: Callable[..., object], tmp_path: Path) -> None:
    place, out = one_hot(tmp_path / "in"), tmp_path / "out.csv"
    command("table", place, "--out", out)
    assert out.read_text().splitlines()[:2] == ["path,label", "in/0.jpg,oak"]
    found, before = sources.read(out), sources.read(place)
    assert {Path(path).name: label for path, label in labels(found).items()} == labels(before)
    answer = command("table", place, "--out", out)
    assert "is there already" in str(answer)
