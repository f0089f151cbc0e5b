import io
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import put

from fieldguide.errors import DataError, FieldguideError, UsageError
from fieldguide.photos import folders
from fieldguide.photos.folders import scan_unlabelled
from fieldguide.predict import inputs
from fieldguide.predict.inputs import Input


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def names(found: list[Input]) -> list[str]:
    return [each.name for each in found]


def problems(found: list[Input]) -> list[str]:
    return [each.problem for each in found]


def refused(kind: type[FieldguideError], *arguments: object, **options: object) -> FieldguideError:
    with pytest.raises(kind) as caught:
        inputs.read(*arguments, **options)  # type: ignore[arg-type]
    assert not caught.value.message.endswith(".")
    return caught.value


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


PRESENT = ["a.jpg", "b c.png", "d/ünïcode 名前.jpg", "d/👍.jpg", "d/e.f.webp"]
LINES = [*PRESENT, "a", "d\\e.f.webp", " a.jpg ", "gone.jpg", "d/gone", "x" * 300, "d"]

sources = st.lists(
    st.one_of(
        st.tuples(st.just("table"), st.lists(st.sampled_from([*LINES, "", "  "]), max_size=6)),
        st.tuples(st.just("list"), st.lists(st.sampled_from([*LINES, "", "  "]), max_size=6)),
        st.tuples(st.just("folder"), st.sampled_from([["."], ["d"]])),
        st.tuples(st.just("file"), st.sampled_from([["a.jpg"], ["gone.jpg"], ["odd"]])),
    ),
    max_size=5,
)


@given(sources)
def test_every_input_is_one_entry_in_order(
    tmp_path_factory: pytest.TempPathFactory, given_sources: list[tuple[str, list[str]]]
) -> None:
    root = put(tmp_path_factory.getbasetemp() / "mixture", *PRESENT, "odd")
    typed: list[str] = []
    expected: list[str] = []
    for number, (kind, lines) in enumerate(given_sources):
        if kind == "table":
            rows = "".join(f'1,"{line}"\n' for line in lines)
            typed.append(str(write(root / f"{number}.csv", f"n,path\n{rows}")))
            expected += lines
        elif kind == "list":
            typed.append(str(write(root / f"{number}.txt", "\n".join(lines))))
            expected += [line for line in lines if line.strip()]
        elif kind == "folder":
            typed.append(str(root / lines[0]))
            below = sorted(name for name in PRESENT if lines[0] in (".", name.split("/")[0]))
            front = typed[-1] + "/" if len(given_sources) > 1 else ""
            expected += [front + name.removeprefix(f"{lines[0]}/") for name in below]
        else:
            typed.append(str(root / lines[0]))
            expected.append(typed[-1])
    found = inputs.read(typed)
    assert names(found) == expected
    for each in found:
        assert (each.file is None) == bool(each.problem)
        assert each.file is None or each.file.is_file()
    missing = {"gone.jpg", "d/gone", "x" * 300, "d", "", "  ", str(root / "gone.jpg")}
    assert [each.name in missing for each in found] == [bool(each.problem) for each in found]


@given(st.sampled_from(PRESENT), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_however_it_is_spelled_a_path_is_the_same_file(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    absolute: bool,
    short: bool,
    windows: bool,
    decomposed: bool,
) -> None:
    root = put(tmp_path_factory.getbasetemp() / "spelling", *PRESENT)
    text = f"{root}/{name}" if absolute else name
    text = text.rpartition(".")[0] if short else text
    text = text.replace("/", "\\") if windows else text
    text = unicodedata.normalize("NFD", text) if decomposed else text
    for source in (write(root / "t.csv", f"path\n{text}\n"), write(root / "l.lst", text)):
        assert inputs.read(source) == [Input(text, root / name)]


def test_all_of_nothing(tmp_path: Path) -> None:
    assert inputs.read([]) == []
    assert inputs.read([write(tmp_path / "t.csv", "path,n\n"), write(tmp_path / "l.txt", "")]) == []


def test_a_folder_in_code_point_order_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "b.jpg", "B.PNG", "a/z.jpg", "é.jpg", "a.jpg", "a/deep/er/1.tif", "notes.txt")
    expected = ["B.PNG", "a.jpg", "a/deep/er/1.tif", "a/z.jpg", "b.jpg", "é.jpg"]
    found = inputs.read([tmp_path])
    assert names(found) == expected
    assert [each.file for each in found] == [tmp_path / name for name in expected]
    assert names(inputs.read([tmp_path], recursive=False)) == [n for n in expected if "/" not in n]
    assert tuple(p.path for p in scan_unlabelled(tmp_path).photos) == tuple(expected)

    entries = folders._Walk._entries
    monkeypatch.setattr(folders._Walk, "_entries", lambda *a: entries(*a)[::-1])
    assert inputs.read([tmp_path]) == found


def test_a_link_to_nothing_is_an_input_and_missing(tmp_path: Path) -> None:
    put(tmp_path, "b.jpg", "elsewhere/real.jpg")
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "elsewhere" / "real.jpg")
    (tmp_path / "d.txt").symlink_to(tmp_path / "gone")
    found = inputs.read([tmp_path], recursive=False)
    assert found == [
        Input("a.jpg", None, "file not found"),
        Input("b.jpg", tmp_path / "b.jpg"),
        Input("c.jpg", tmp_path / "c.jpg"),
    ]
    put(tmp_path / "only", "x")
    (tmp_path / "only" / "a.jpg").symlink_to(tmp_path / "gone")
    assert problems(inputs.read([tmp_path / "only"])) == ["file not found"]


def test_a_folder_that_cannot_be_listed_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def closed(place: Path) -> object:
        if Path(place).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    reason = "the folder cannot be read: permission denied"
    assert inputs.read([tmp_path]) == [
        Input("a", None, reason),
        Input("b/2.jpg", tmp_path / "b" / "2.jpg"),
    ]
    assert refused(DataError, [tmp_path / "a"]).message == f"{reason}: {tmp_path / 'a'}"


def test_a_folder_without_pictures_says_what_was_looked_for(tmp_path: Path) -> None:
    put(tmp_path, "a.nef", "b.nef", "c/d.xml")
    error = refused(DataError, [tmp_path])
    assert error.message == f"no photographs below {tmp_path}; found: 2 .nef, 1 .xml"
    assert ".jpg" in error.hint
    put(tmp_path / "c", "deep/1.jpg")
    refused(DataError, [tmp_path / "c"], recursive=False)


def test_several_folders_stand_in_front_of_their_files_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "one/a.jpg", "two/a.jpg", "two/b/c.jpg", "three.jpg")
    monkeypatch.chdir(tmp_path)
    found = inputs.read(["two", "./one/", "three.jpg", str(tmp_path / "one"), "two"])
    first = ["two/a.jpg", "two/b/c.jpg"]
    absolute = f"{tmp_path}/one/a.jpg"
    assert names(found) == [*first, "./one/a.jpg", "three.jpg", absolute, *first]
    assert all(each.file and each.file.samefile(each.name) for each in found)
    assert inputs.read("one") == inputs.read(["one"]) == inputs.read([Path("one")])


@pytest.mark.skipif(sys.platform != "linux", reason="names are text on other systems")
def test_names_that_are_no_utf_8(
    tmp_path: Path, standard_input: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = b"caf\xe9.jpg"
    name = os.fsdecode(raw)
    put(tmp_path, name)
    expected = [Input(name, tmp_path / name)]
    assert inputs.read([tmp_path]) == expected
    assert inputs.read(write(tmp_path / "list.txt", raw)) == expected
    assert inputs.read(tmp_path / name) == [Input(str(tmp_path / name), tmp_path / name)]
    monkeypatch.chdir(tmp_path)
    standard_input(raw + b"\n")
    assert inputs.read("-") == expected
    escaped = rb"caf\xe9.jpg"
    assert inputs.read(write(tmp_path / "list.txt", escaped)) == expected
    assert inputs.read(write(tmp_path / "table.csv", b"path\n" + escaped + b"\n")) == expected


def test_a_windows_folder_that_looks_like_an_escape(tmp_path: Path) -> None:
    put(tmp_path, "a/xe9/1.jpg")
    [found] = inputs.read(write(tmp_path / "table.csv", b"path\n" + rb"a\xe9\1.jpg" + b"\n"))
    assert found.file == tmp_path / "a/xe9/1.jpg"


def test_nothing_is_written_beside_the_photos(tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "a.jpg", "b/c.jpg")
    table = write(photos / "t.csv", "path\na.jpg\n")
    before = sorted(photos.rglob("*"))
    for folder in (photos, photos / "b"):
        folder.chmod(0o555)
    try:
        assert len(inputs.read([photos, table])) == 3
    finally:
        for folder in (photos, photos / "b"):
            folder.chmod(0o755)
    assert sorted(photos.rglob("*")) == before


def test_long_names(tmp_path: Path) -> None:
    name = "n" * 251 + ".jpg"
    put(tmp_path, name)
    assert names(inputs.read([tmp_path])) == [name]
    assert problems(inputs.read(write(tmp_path / "l.txt", f"{name}\nn{name}"))) == [
        "",
        "file not found",
    ]
    assert problems(inputs.read([f"{tmp_path}/n{name}"])) == ["file not found"]


def test_every_row_of_a_table_is_an_input(tmp_path: Path) -> None:
    put(tmp_path, "p/1.jpg", "p/2.jpg", "other.jpg")
    rows = "p/2.jpg,x\np/1.jpg,y\np/2.jpg,z\np/9.jpg,\n,q\n\np/1.jpg,y\n"
    found = inputs.read([write(tmp_path / "t.csv", f"path,note\n{rows}")])
    one, two = (tmp_path / "p" / name for name in ("1.jpg", "2.jpg"))
    assert found == [
        Input("p/2.jpg", two),
        Input("p/1.jpg", one),
        Input("p/2.jpg", two),
        Input("p/9.jpg", None, "file not found"),
        Input("", None, "no path"),
        Input("p/1.jpg", one),
    ]


def test_rows_of_missing_files_alone_are_inputs(tmp_path: Path) -> None:
    found = inputs.read([write(tmp_path / "t.csv", "image,label\na.jpg,oak\nb.jpg,elm\n")])
    assert problems(found) == ["file not found"] * 2


@pytest.mark.parametrize(
    ("name", "data", "encoding"),
    [
        ("t.csv", "\ufeffpath,n\r\nb/é,1.jpg,2\r\n".replace("b/é,1.jpg", '"b/é,1.jpg"'), None),
        ("t.csv", 'path;n\n"b/é,1.jpg";2\n', None),
        ("t.tsv", "path\tn\nb/é,1.jpg\t2\n", None),
        ("t.TAB", "path\tn\nb/é,1.jpg\t2\n", None),
        ("t.csv", "path|n\nb/é,1.jpg|2\n".encode("utf-16"), None),
        ("t.csv", 'path,n\n"b/é,1.jpg",2\n'.encode("latin-1"), "latin-1"),
        ("t.lst", "\ufeffb/é,1.jpg\r\n", None),
        ("t.txt", "b/é,1.jpg".encode("utf-16"), None),
        ("t.txt", "b/é,1.jpg".encode("latin-1"), "latin-1"),
    ],
)
def test_tables_and_lists_as_programs_write_them(
    tmp_path: Path, name: str, data: str | bytes, encoding: str | None
) -> None:
    put(tmp_path, "b/é,1.jpg")
    found = inputs.read(write(tmp_path / name, data), encoding=encoding)
    assert found == [Input("b/é,1.jpg", tmp_path / "b" / "é,1.jpg")]


def test_paths_start_at_the_table_or_at_root(tmp_path: Path) -> None:
    put(tmp_path, "photos/a.jpg", "lists/x")
    for name, front in (("t.csv", "path\n"), ("l.txt", "")):
        near = write(tmp_path / "lists" / name, f"{front}../photos/a.jpg\n")
        assert names(inputs.read([near])) == ["../photos/a.jpg"]
        assert inputs.read([near])[0].file == tmp_path / "photos" / "a.jpg"
        far = write(tmp_path / "lists" / name, f"{front}a.jpg\n")
        assert problems(inputs.read([far])) == ["file not found"]
        assert inputs.read([far], root=tmp_path / "photos") == [
            Input("a.jpg", tmp_path / "photos" / "a.jpg")
        ]
        error = refused(DataError, [far], root=tmp_path / "nowhere")
        assert error.message == f"no such folder: {tmp_path / 'nowhere'}"


def test_which_column(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    table = write(tmp_path / "t.csv", "where,other\na.jpg,x.jpg\n")
    assert names(inputs.read([table], path_column="where")) == ["a.jpg"]
    error = refused(DataError, [table], path_column="were")
    assert "`were`" in error.message and error.hint == "did you mean `where`?"
    assert "no column for the path" in refused(DataError, [table]).message
    empty = write(tmp_path / "e.csv", "where,other\n")
    assert inputs.read([empty]) == inputs.read([empty], path_column="where") == []
    refused(DataError, [empty], path_column="were")


def test_a_list_has_one_path_a_line(tmp_path: Path) -> None:
    put(tmp_path, "a b.jpg", "c,d.jpg", "path")
    text = "a b.jpg\n\n  \r\nc,d.jpg\r\npath\ngone.jpg\na b.jpg"
    found = inputs.read(write(tmp_path / "l.txt", text))
    assert names(found) == ["a b.jpg", "c,d.jpg", "path", "gone.jpg", "a b.jpg"]
    assert problems(found) == ["", "", "", "file not found", ""]


def test_standard_input_is_a_list(
    tmp_path: Path, standard_input: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.jpg", "b/c.jpg")
    monkeypatch.chdir(tmp_path)
    standard_input(b"b/c.jpg\na.jpg\n\n")
    assert names(inputs.read(["a.jpg", "-"])) == ["a.jpg", "b/c.jpg", "a.jpg"]
    standard_input("\ufeffb/c.jpg".encode("utf-16-le"))
    assert inputs.read("-") == [Input("b/c.jpg", tmp_path / "b" / "c.jpg")]
    standard_input(b"c.jpg")
    assert inputs.read("-", root=tmp_path / "b") == [Input("c.jpg", tmp_path / "b" / "c.jpg")]
    standard_input(b"a\0b")
    assert refused(DataError, "-").message.startswith("standard input, row 1: a NUL byte")
    assert "read once" in refused(UsageError, ["-", "a.jpg", "-"]).message


def test_what_is_named_is_an_input_whatever_its_ending(tmp_path: Path) -> None:
    put(tmp_path, "odd", "x.dat", ".hidden.jpg", "é.JPG")
    typed = [str(tmp_path / name) for name in ("odd", "x.dat", ".hidden.jpg", "é.JPG", "odd")]
    assert inputs.read(typed) == [Input(name, Path(name)) for name in typed]


def test_a_missing_picture_is_an_input_and_another_missing_name_a_typo(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    typed = [f"{tmp_path}/gone.JPG", f"{tmp_path}/link", f"{tmp_path}/a\0.jpg"]
    assert inputs.read(typed) == [Input(name, None, "file not found") for name in typed]
    for name in ("photso", "gone.csv", "gone.txt", "gone.dat"):
        error = refused(DataError, [tmp_path / name])
        assert error.message == f"no such file or folder: {tmp_path / name}"


def test_an_empty_name_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(put(tmp_path, "a.jpg"))
    assert "the name is empty" in refused(DataError, [""]).message


def test_a_typo_is_found_before_anything_is_read(
    tmp_path: Path, standard_input: Callable[[bytes], None]
) -> None:
    standard_input(b"a.jpg")
    refused(DataError, ["-", tmp_path / "typo"])
    assert sys.stdin.buffer.read() == b"a.jpg"


@pytest.mark.parametrize(
    ("source", "option", "value"),
    [
        ("folder", "root", "."),
        ("folder", "encoding", "latin-1"),
        ("folder", "path_column", "path"),
        ("folder/a.jpg", "root", "."),
        ("l.txt", "path_column", "path"),
        ("t.csv", "recursive", False),
    ],
)
def test_an_option_without_a_use_is_refused(
    tmp_path: Path, source: str, option: str, value: object
) -> None:
    put(tmp_path, "folder/a.jpg", "l.txt")
    write(tmp_path / "t.csv", "path\na.jpg\n")
    assert (
        f"`{option}` is for" in refused(UsageError, [tmp_path / source], **{option: value}).message
    )


def test_an_option_is_for_the_sources_that_have_a_use_for_it(tmp_path: Path) -> None:
    put(tmp_path, "folder/a.jpg", "folder/b/c.jpg")
    table = write(tmp_path / "t.csv", "x,path\na.jpg,no\n")
    options = {"root": tmp_path / "folder", "path_column": "x", "recursive": False}
    found = inputs.read([tmp_path / "folder", table], **options)  # type: ignore[arg-type]
    assert problems(found) == ["", ""] and names(found)[1] == "a.jpg"


def test_files_are_looked_at_no_more_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    look = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: (looks.append(a), look(*a, **k))[1])

    def count(source: Path) -> int:
        looks.clear()
        inputs.read([source])
        return len(looks)

    for number in (10, 200):
        put(tmp_path / str(number), *(f"{n}.jpg" for n in range(number)))
    assert count(tmp_path / "10") == count(tmp_path / "200")
    rows = {n: "".join(f"200/{each}.jpg\n" for each in range(n)) for n in (10, 200)}
    few, many = (count(write(tmp_path / f"l{n}.txt", rows[n])) for n in (10, 200))
    assert many - few == 190
