import csv
import itertools
import os
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.errors import DataError, FieldguideError, ResourceError, UsageError
from fieldguide.predict import inputs, tables
from fieldguide.predict.inputs import Input
from fieldguide.predict.submissions import Id, Submission, submission
from fieldguide.predict.tables import Counts, Layout, Predictions, write
from fieldguide.storage import files

CLASSES = ("oak", "elm", "ash")
EVIL = ("=cmd|'/C calc'!A0", 'a "b", c', "two\nlines", "\r", "../up", "<script>", "+1; -2", "@a| b")


def predicted(
    names: Sequence[str], classes: Sequence[str] = CLASSES, *, lost: Sequence[int] = ()
) -> Predictions:
    """Probabilities that depend on the photo's name alone, so that a mix-up shows."""
    rows = [np.random.default_rng(list(name.encode())).random(len(classes)) for name in names]
    values = np.array(rows).reshape(len(names), len(classes))
    values /= values.sum(axis=1, keepdims=True)
    values[list(lost)] = np.nan
    problems = tuple("empty file" if row in lost else "" for row in range(len(names)))
    sets = values > 0.9 / len(classes)
    return Predictions(tuple(names), problems, tuple(classes), values, sets)


def cut(whole: Predictions, places: Sequence[int]) -> list[Predictions]:
    """The same photos in chunks that end at `places`."""
    edges = [0, *sorted(min(place, len(whole)) for place in places), len(whole)]
    return [
        Predictions(
            whole.names[start:end],
            whole.problems[start:end],
            whole.classes,
            whole.probabilities[start:end],
            None if whole.sets is None else whole.sets[start:end],
        )
        for start, end in itertools.pairwise(edges)
    ]


def table(path: Path, separator: str = ",") -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter=separator, strict=True)
        return [list(map(files.unescaped, row)) for row in rows]


def columns(path: Path) -> dict[str, list[str]]:
    header, *rows = table(path)
    assert len(set(header)) == len(header)
    return {name: [row[number] for row in rows] for number, name in enumerate(header)}


some = st.integers(0, 9).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)) if n else st.just(set[int]()))
)


@given(some)
def test_labels_confidences_and_status(case: tuple[int, set[int]]) -> None:
    count, lost = case
    found = predicted([f"{n}.jpg" for n in range(count)], lost=sorted(lost))
    assert len(found) == len(found.labels) == len(found.confidences) == len(found.status) == count
    for row in range(count):
        values = found.probabilities[row].tolist()
        if row in lost:
            assert found.labels[row] is None and np.isnan(found.confidences[row])
            assert found.status[row] == "unreadable: empty file"
        else:
            assert found.labels[row] == CLASSES[values.index(max(values))]
            assert found.confidences[row] == max(values)
            assert found.status[row] == "ok"


def test_of_equal_classes_the_first_wins(tmp_path: Path) -> None:
    found = Predictions(("a",), ("",), CLASSES, np.array([[0.25, 0.375, 0.375]]))
    assert found.labels == ("elm",)
    found.to_csv(tmp_path / "p.csv", top=3)
    row = ["a", "elm", "0.375", "ash", "0.375", "oak", "0.25", "ok"]
    assert table(tmp_path / "p.csv")[1] == row
    many = tuple(f"{n:03d}" for n in range(100))  # few are sorted stably by any method
    values = np.tile([0.005, 0.015], (1, 50))
    Predictions(("a",), ("",), many, values).to_csv(tmp_path / "m.csv", top=100)
    assert table(tmp_path / "m.csv")[1][1:-1:2] == [*many[1::2], *many[::2]]


@given(some, st.lists(st.integers(0, 9), max_size=4))
def test_concatenating_undoes_cutting(case: tuple[int, set[int]], places: list[int]) -> None:
    whole = predicted([f"{n}.jpg" for n in range(case[0])], lost=sorted(case[1]))
    joined = Predictions.concatenate(iter(cut(whole, places)))
    assert (joined.names, joined.problems, joined.classes) == (
        whole.names,
        whole.problems,
        whole.classes,
    )
    np.testing.assert_array_equal(joined.probabilities, whole.probabilities)
    np.testing.assert_array_equal(joined.sets, whole.sets)


def test_predictions_are_named_in_a_line_without_their_numbers() -> None:
    many = Predictions(
        ("a", "b"), ("", ""), ("x", "y"), np.full((2, 2), 0.125), np.ones((2, 2), bool)
    )
    assert repr(many) == "Predictions(names=('a', 'b'))"


def test_what_does_not_fit_together_is_refused() -> None:
    values = np.full((2, 3), 1 / 3)
    with pytest.raises(AssertionError):
        Predictions(("a",), ("",), CLASSES, values)
    with pytest.raises(AssertionError):
        Predictions(("a", "b"), ("", "empty file"), CLASSES, values)
    values[1] = np.nan
    with pytest.raises(AssertionError):
        Predictions(("a", "b"), ("", ""), CLASSES, values)
    with pytest.raises(ValueError, match="no chunks"):
        Predictions.concatenate([])
    with pytest.raises(AssertionError):
        Predictions.concatenate([predicted(["a"]), predicted(["a"], ("x", "y"))])


def test_the_columns(tmp_path: Path) -> None:
    found = predicted(["a.jpg", "b.jpg", "c.jpg"], lost=[1])
    layout = Layout(top=2, probabilities=True, sets=True)
    assert write(tmp_path / "p.csv", [found], layout) == Counts(photos=3, unreadable=1)
    read = columns(tmp_path / "p.csv")
    names = [
        "path",
        "label",
        "confidence",
        "second",
        "second_confidence",
        "status",
        "set",
        "unsure",
    ]
    assert list(read) == [*names, "p:oak", "p:elm", "p:ash"]
    assert read["path"] == ["a.jpg", "b.jpg", "c.jpg"]
    assert read["status"] == ["ok", "unreadable: empty file", "ok"]
    for name in set(read) - {"path", "status"}:
        assert read[name][1] == ""
    assert found.sets is not None
    for row in (0, 2):
        by_class = dict(zip(CLASSES, found.probabilities[row].tolist(), strict=True))
        first, second, _ = sorted(CLASSES, key=lambda name: -by_class[name])
        assert (read["label"][row], read["second"][row]) == (first, second)
        assert read["confidence"][row] == f"{by_class[first]:.6g}"
        assert read["second_confidence"][row] == f"{by_class[second]:.6g}"
        assert [read[f"p:{name}"][row] for name in CLASSES] == [
            f"{by_class[name]:.6g}" for name in CLASSES
        ]
        members = [name for name in sorted(CLASSES, key=lambda n: -by_class[n])]
        members = [name for name in members if found.sets[row, CLASSES.index(name)]]
        assert read["set"][row] == "; ".join(members)
        assert read["unsure"][row] == ("no" if len(members) == 1 else "yes")


def test_ranks_have_names_up_to_ten() -> None:
    header = Layout(top=12).header([str(n) for n in range(20)])
    assert header[:5] == ["path", "label", "confidence", "second", "second_confidence"]
    words = ["second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
    words += ["top11", "top12"]
    assert header[3:-1:2] == words
    assert header[4:-1:2] == [f"{word}_confidence" for word in words]
    assert header[-1] == "status"


@pytest.mark.parametrize("top", [1, 2, 3, 4, 100])
def test_top_ends_at_the_number_of_classes(tmp_path: Path, top: int) -> None:
    predicted(["a", "b"], lost=[0]).to_csv(tmp_path / "p.csv", top=top)
    shown = min(top, len(CLASSES))
    read = columns(tmp_path / "p.csv")
    assert len(read) == 1 + 2 * shown + 1 + 2
    assert len({read[name][1] for name in ("label", "second", "third") if name in read}) == min(
        shown, 3
    )


def test_no_top_is_refused() -> None:
    for top in (0, -1):
        with pytest.raises(UsageError, match=f"`top` is below 1: {top}"):
            Layout(top)


@pytest.mark.parametrize(("members", "unsure"), [([], "yes"), ([1], "no"), ([0, 1], "yes")])
def test_unsure_is_all_but_one_class(tmp_path: Path, members: list[int], unsure: str) -> None:
    sets = np.zeros((1, 3), bool)
    sets[0, members] = True
    found = Predictions(("a",), ("",), CLASSES, np.array([[0.25, 0.5, 0.25]]), sets)
    found.to_csv(tmp_path / "p.csv")
    assert columns(tmp_path / "p.csv")["unsure"] == [unsure]
    assert columns(tmp_path / "p.csv")["set"] == [{0: "", 1: "elm", 2: "elm; oak"}[len(members)]]


@given(st.sets(st.text("ab;|\t ", min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_set_splits_into_its_classes(classes: set[str]) -> None:
    ordered = sorted(classes)
    separator = tables.set_separator(ordered)
    assert separator.join(ordered).split(separator) == ordered


def test_the_separator_of_sets() -> None:
    cases = [["a;b|c"], ["a; b"], ["a; b", "c| d"], ["a; b", "c| d", "\t"]]
    assert [tables.set_separator(names) for names in cases] == ["; ", "| ", "\t", "|| "]
    assert tables.set_separator(["a; b", "|| ", "\t"]) == "||| "


@given(some, st.lists(st.integers(0, 9), max_size=4), st.integers(1, 4), st.booleans())
def test_how_photos_are_cut_into_chunks_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[int, set[int]],
    places: list[int],
    top: int,
    more: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = predicted([f"{n}.jpg" for n in range(case[0])], lost=sorted(case[1]))
    layout = Layout(top, probabilities=more, sets=more)
    counts = [
        write(folder / name, iter(chunks), layout, overwrite=True)
        for name, chunks in (("whole.csv", [whole]), ("cut.csv", cut(whole, places)))
    ]
    assert counts == [Counts(case[0], len(case[1]))] * 2
    assert (folder / "whole.csv").read_bytes() == (folder / "cut.csv").read_bytes()
    header, *rows = table(folder / "cut.csv")
    assert [row[0] for row in rows] == list(whole.names)
    assert {len(row) for row in rows} <= {len(header)}


texts = (
    st.text(max_size=6) | st.text(alphabet='",\n\r\0 =+-@\t;|', max_size=4) | st.just("\udcff\\xff")
)


@given(st.lists(texts, max_size=4), st.lists(texts, min_size=1, max_size=4, unique=True))
def test_names_and_classes_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], classes: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "exact.csv"
    values = np.random.default_rng(0).dirichlet(np.ones(len(classes)), len(names))
    found = Predictions(tuple(names), ("",) * len(names), tuple(classes), values)
    found.to_csv(path, probabilities=True, overwrite=True)
    header, *rows = table(path)
    assert header[-len(classes) :] == [f"p:{name}" for name in classes]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == list(found.labels)
    assert [[float(cell) for cell in row[-len(classes) :]] for row in rows] == [
        pytest.approx(value, rel=1e-5) for value in values.tolist()
    ]


def test_a_spreadsheet_finds_no_formula(tmp_path: Path) -> None:
    found = predicted([*EVIL, "-x.jpg", "plain.jpg"], EVIL)
    for name, spreadsheet in (("plain.csv", False), ("safe.csv", True)):
        layout = Layout(8, probabilities=True, sets=True, spreadsheet=spreadsheet)
        write(tmp_path / name, [found], layout)
    plain, safe = table(tmp_path / "plain.csv"), table(tmp_path / "safe.csv")
    assert [row[0] for row in plain[1:]] == list(found.names)
    changed = 0
    for row, guarded in zip(plain, safe, strict=True):
        for cell, other in zip(row, guarded, strict=True):
            assert not other.startswith(("=", "+", "-", "@", "\t", "\r"))
            assert other in (cell, f"'{cell}")
            changed += other != cell
    assert changed == sum(files.no_formula(cell) != cell for row in plain for cell in row) > 5


def test_real_inputs_have_a_row_each(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/é.jpg", "a/empty.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "t.csv").write_text("path\nin/b.jpg\nin/none.jpg\nin/b.jpg\n")
    asked = inputs.read([tmp_path / "in", tmp_path / "t.csv"])
    problems = tuple(each.problem for each in asked)
    lost = [row for row, problem in enumerate(problems) if problem]
    found = predicted([each.name for each in asked], lost=lost)
    found = Predictions(found.names, problems, CLASSES, found.probabilities)
    counts = write(tmp_path / "p.csv", cut(found, [2, 5]), Layout())
    read = columns(tmp_path / "p.csv")
    assert read["path"] == [each.name for each in asked]
    assert (counts.photos, counts.unreadable) == (7, 2)
    assert [status for status in read["status"] if status != "ok"] == [
        "unreadable: file not found"
    ] * 2


WHOLE = predicted([f"{n}.jpg" for n in range(40)])
CHUNKS = cut(WHOLE, [10, 20, 30])


def interrupted(error: BaseException, after: int) -> Iterator[Predictions]:
    yield from CHUNKS[:after]
    raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError("a broken disk"), DataError("not this one")]
)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_what_was_done_stays(tmp_path: Path, error: BaseException, after: int) -> None:
    write(tmp_path / "whole.csv", CHUNKS, Layout())
    lines = (tmp_path / "whole.csv").read_bytes().splitlines(keepends=True)
    out, part = tmp_path / "p.csv", tmp_path / "p.csv.part"
    with pytest.raises(type(error)) as caught:
        write(out, interrupted(error, after), Layout())
    assert caught.value is error
    assert not out.exists()
    assert part.exists() == bool(after)  # nothing is no result
    if after:
        assert part.read_bytes() == b"".join(lines[: 1 + 10 * after])
    write(out, CHUNKS, Layout())
    assert out.read_bytes() == b"".join(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "whole.csv"]


def untouchable() -> Iterator[Predictions]:
    pytest.fail("a chunk was taken")
    yield


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(UsageError, match=r"this file exists: .*p\.csv"):
        write(out, untouchable(), Layout())
    with pytest.raises(UsageError):
        WHOLE.to_csv(str(out))
    assert out.read_text() == "mine"
    WHOLE.to_csv(str(out), overwrite=True)
    assert len(table(out)) == 41
    (tmp_path / "link.csv").symlink_to("nowhere")
    with pytest.raises(UsageError):
        write(tmp_path / "link.csv", untouchable(), Layout())


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    def chunks() -> Iterator[Predictions]:
        yield from CHUNKS
        (tmp_path / "p.csv").write_text("another's")

    with pytest.raises(UsageError, match="this file exists"):
        write(tmp_path / "p.csv", chunks(), Layout())
    assert (tmp_path / "p.csv").read_text() == "another's"
    assert len(table(tmp_path / "p.csv.part")) == 41


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "p.csv"

    def chunks() -> Iterator[Predictions]:
        yield CHUNKS[0]
        write(out, CHUNKS, Layout())
        yield CHUNKS[1]

    with pytest.raises(ResourceError, match=r"another process writes p\.csv\.part too"):
        write(out, chunks(), Layout(), overwrite=True)
    assert len(table(out)) == 41


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no such folder"):
        write(tmp_path / "none" / "p.csv", untouchable(), Layout())
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="this is a folder"):
            write(tmp_path, untouchable(), Layout(), overwrite=overwrite)
    with pytest.raises(ResourceError, match="cannot write"):
        write(tmp_path / ("n" * 255), untouchable(), Layout())
    tables.require_free(tmp_path / "p.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    write(tmp_path / "whole.csv", CHUNKS, Layout())
    lines = (tmp_path / "whole.csv").read_bytes().splitlines(keepends=True)
    room = sum(map(len, lines[:25])) + 3  # in the middle of a row of the third chunk
    resource = pytest.importorskip("resource", reason="limits of a file's size are POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"cannot write .*p\.csv: "):
            write(tmp_path / "p.csv", CHUNKS, Layout())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "p.csv").exists()
    assert (tmp_path / "p.csv.part").read_bytes() == b"".join(lines[:21])


def test_the_file_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync
    seen = []

    def watched(descriptor: int) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write(tmp_path / "p.csv", CHUNKS, Layout())
    assert seen == [["p.csv.part"], ["p.csv"]]  # the file, then its folder


def test_no_photos_and_no_chunks(tmp_path: Path) -> None:
    assert write(tmp_path / "p.csv", [predicted([])], Layout()) == Counts(0, 0)
    assert table(tmp_path / "p.csv") == [Layout().header(CLASSES)]
    with pytest.raises(ValueError, match="no chunks"):
        write(tmp_path / "q.csv", [], Layout())
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_memory_does_not_grow_with_the_photos(tmp_path: Path) -> None:
    alive: list[weakref.ref[Predictions]] = []
    most = 0

    def chunks() -> Iterator[Predictions]:
        nonlocal most
        values = np.full((1000, 2), 0.5)
        for start in range(0, 100_000, 1000):
            names = tuple(f"{n}.jpg" for n in range(start, start + 1000))
            chunk = Predictions(names, ("",) * 1000, ("a", "b"), values)
            alive[:] = [reference for reference in alive if reference()] + [weakref.ref(chunk)]
            most = max(most, len(alive))
            yield chunk
            del chunk

    assert write(tmp_path / "p.csv", chunks(), Layout()) == Counts(100_000, 0)
    assert most <= 2  # the one in hand and the one before
    with (tmp_path / "p.csv").open() as file:
        assert [line.partition(",")[0] for line in file][1:] == [f"{n}.jpg" for n in range(100_000)]


def test_a_zip_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    archives = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        out = tmp_path / folder / "sübmission.csv"
        WHOLE.to_csv(out)
        os.utime(out, (1e9 + len(archives), 1e9))
        out.chmod(0o600 if archives else 0o644)
        packed = tables.write_zip(out)
        assert packed == tables.zip_path(out) == out.with_name("sübmission.csv.zip")
        archives.append(packed.read_bytes())
    assert archives[0] == archives[1]
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [out.name]
        assert archive.read(out.name) == out.read_bytes()
    assert len(archives[0]) < len(out.read_bytes())
    with pytest.raises(UsageError):
        tables.write_zip(out)
    assert tables.write_zip(out, overwrite=True).read_bytes() == archives[0]
    with pytest.raises(ResourceError):
        tables.write_zip(tmp_path / "none.csv")
    assert not (tmp_path / "none.csv.zip").exists()


def asked(*names: str) -> list[Input]:
    return [Input(name, Path("photos") / name) for name in names]


def sample_of(folder: Path, text: str, name: str = "sample.csv") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def refused(kind: type[FieldguideError], *arguments: object, **options: object) -> FieldguideError:
    with pytest.raises(kind) as caught:
        submission(*arguments, **options)  # type: ignore[arg-type]
    assert not caught.value.message.endswith(".")
    return caught.value


def written(
    out: Path, form: Submission, ordered: Sequence[Input], *, lost: Sequence[int] = ()
) -> list[list[str]]:
    found = predicted([each.name for each in ordered], lost=lost)
    assert write(out, cut(found, [2, 3]), form).photos == len(ordered)
    return table(out, form.separator)


@given(st.permutations(range(6)), st.permutations(range(6)), st.booleans())
def test_ids_and_order_are_the_samples_and_each_id_has_its_own_photo(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], ids: list[int], labels: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    photos = [asked(f"d/{n}.jpg")[0] for n in order]
    header = ["id", "label"] if labels else ["id", "ash", "oak", "elm"]
    rows = [[str(n), *["0"] * (len(header) - 1)] for n in ids]
    sample = sample_of(folder, "".join(",".join(row) + "\n" for row in [header, *rows]))
    form, ordered = submission(photos, CLASSES, sample=sample)
    (folder / "s.csv").unlink(missing_ok=True)
    lines = written(folder / "s.csv", form, ordered)
    assert lines[0] == header
    assert [line[0] for line in lines[1:]] == [str(n) for n in ids]
    for line in lines[1:]:
        own = predicted([f"d/{line[0]}.jpg"])
        values = dict(zip(CLASSES, own.probabilities[0].tolist(), strict=True))
        cells = [own.labels[0]] if labels else [f"{values[name]:.6g}" for name in header[1:]]
        assert line[1:] == cells


def test_an_unreadable_photo_keeps_its_row(tmp_path: Path) -> None:
    for name, header in (("l.csv", "id,label\n"), ("p.csv", "id,elm,ash,oak\n")):
        fill = ",x" * header.count(",")
        sample = sample_of(tmp_path, header + "".join(f"{n}.jpg{fill}\n" for n in (2, 0, 1)))
        form, ordered = submission(asked("0.jpg", "1.jpg", "2.jpg"), CLASSES, sample=sample)
        lines = written(tmp_path / name, form, ordered, lost=[1])
        assert [line[0] for line in lines[1:]] == ["2.jpg", "0.jpg", "1.jpg"]
        assert lines[2] == ["0.jpg", *[""] * header.count(",")]
        assert all(lines[1]) and all(lines[3])


@pytest.mark.parametrize(
    ("ids", "fits"),
    [
        ("d/a.jpg d/b.png", ["auto", "path"]),
        ("a.jpg b.png", ["auto", "name"]),
        ("a b", ["auto", "stem"]),
    ],
)
def test_what_an_id_may_be(tmp_path: Path, ids: str, fits: list[str]) -> None:
    sample = sample_of(tmp_path, "id,label\n" + "".join(f"{each},\n" for each in ids.split()))
    photos = asked("d/b.png", "d/a.jpg")
    kinds: list[Id] = ["auto", "path", "name", "stem"]
    for kind in kinds:
        if kind in fits:
            form, ordered = submission(photos, CLASSES, sample=sample, id=kind)
            assert ordered == photos[::-1]
            assert form.ids == tuple(ids.split())
        else:
            error = refused(DataError, photos, CLASSES, sample=sample, id=kind)
            assert "2 without a photo" in error.message and "2 photos without" in error.message


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ("test/0001.jpg test/0002.jpg", "behind an id's last `/`"),
        ("data/test/0001 data/test/0002", "behind an id's last `/`"),
        ("1 2", "without zeros in front"),
    ],
)
def test_ids_with_other_folders_or_of_whole_numbers(tmp_path: Path, ids: str, told: str) -> None:
    sample = sample_of(tmp_path, "id,label\n" + "".join(f"{each},\n" for each in ids.split()))
    photos, notices = asked("0002.jpg", "0001.jpg"), list[str]()
    form, ordered = submission(photos, CLASSES, sample=sample, notice=notices.append)
    assert (form.ids, ordered) == (tuple(ids.split()), photos[::-1])
    assert len(notices) == 1 and told in notices[0]
    refused(DataError, photos, CLASSES, sample=sample, id="path")


def test_ids_that_would_be_one_photo_are_refused(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, "id,label\na/1.jpg,\nb/1.jpg,\n")
    refused(DataError, asked("1.jpg", "2.jpg"), CLASSES, sample=sample)
    sample.write_text("id,label\n1,\n01,\n")
    refused(DataError, asked("001.jpg", "0001.jpg"), CLASSES, sample=sample)


def test_ids_in_another_unicode_form_and_without_an_ending_in_the_table(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, "id,label\ne\u0301.jpg,\n")
    form, ordered = submission(asked("\u00e9.jpg"), CLASSES, sample=sample)
    assert (form.ids, ordered) == (("e\u0301.jpg",), asked("\u00e9.jpg"))
    short = [Input("\u00e9", Path("\u00e9.jpg"))]
    assert submission(short, CLASSES, sample=sample)[1] == short


def test_missing_and_extra_photos_are_shown(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,\n" for n in range(8))
    sample = sample_of(tmp_path, f"id,label\n{rows}")
    photos = asked("7.jpg", "x.jpg", "y.jpg")
    error = refused(DataError, photos, CLASSES, sample=sample)
    assert error.message == (
        "sample.csv: of 8 ids 7 without a photo: `0.jpg`, `1.jpg`, `2.jpg`, `3.jpg`, `4.jpg`"
        " and 2 more; 2 photos without an id: `x.jpg`, `y.jpg`"
    )
    assert "names" in error.hint
    extra = refused(DataError, asked(*(f"{n}.jpg" for n in range(9))), CLASSES, sample=sample)
    assert extra.message == "sample.csv: of 8 ids 1 photo without an id: `8.jpg`"


def test_ids_that_stand_twice(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, "id,label\na,\nb,\na,\n")
    error = refused(DataError, asked("a.jpg", "b.jpg"), CLASSES, sample=sample)
    assert error.message == "sample.csv, row 4: the id `a` stands in row 2 too"
    sample = sample_of(tmp_path, "id,label\na,\n,x\n")
    error = refused(DataError, asked("a.jpg"), CLASSES, sample=sample)
    assert error.message == "sample.csv, row 3: the id is empty"
    sample = sample_of(tmp_path, "id,label\na,\n")
    photos = asked("one/a.jpg", "two/a.png")
    for options in ({"sample": sample}, {"columns": ("id", "label"), "id": "stem"}):
        error = refused(DataError, photos, CLASSES, **options)
        assert error.message == "two photos have the id `a`: one/a.jpg and two/a.png"
        assert error.hint == "use the whole path as id"
    error = refused(DataError, asked("a", "a"), CLASSES, columns=("i", "l"), id="path")
    assert error.hint == "give each photo once"
    error = refused(DataError, asked("x/a.jpg", "x/a.jpg"), CLASSES, sample=sample)
    assert error.hint == "give each photo once"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id", "sample.csv, row 1: no column for `oak`, `elm`, `ash`"),
        ("id,oak,elm", "sample.csv, row 1: no column for `ash`"),
        ("id,oak,elm,ash,fir", "sample.csv, row 1: no class is called `fir`"),
        ("id,oak,elm,Ash", "sample.csv, row 1: no column for `ash`; no class is called `Ash`"),
    ],
)
def test_columns_that_fit_neither_way(tmp_path: Path, header: str, message: str) -> None:
    sample = sample_of(tmp_path, f"{header}\na{',' * header.count(',')}\n")
    assert refused(DataError, asked("a"), CLASSES, sample=sample).message == message


@pytest.mark.parametrize(
    ("text", "answered"),
    [
        ("id,label,Usage\nb,oak,Public\na,ash,Private\n", ["label"]),
        ("id,Usage,species\nb,Public,0\na,Private,0\n", ["species"]),
        ("id,kind,fold\nb,oak,1\na,ash,0\n", ["kind"]),
        ("id,label\nb,x\na,x\n", ["label"]),
        ("id,ash,Usage,oak,elm\nb,0,Public,0,1\na,0,Private,0,1\n", ["ash", "oak", "elm"]),
    ],
)
def test_columns_that_are_no_answers_are_kept_and_told(
    tmp_path: Path, text: str, answered: list[str]
) -> None:
    told: list[str] = []
    sample = sample_of(tmp_path, text)
    form, ordered = submission(asked("a", "b"), CLASSES, sample=sample, notice=told.append)
    lines, (header, *rows) = written(tmp_path / "s.csv", form, ordered), table(sample)
    kept = [name for name in header[1:] if name not in answered]
    assert lines[0] == header
    for line, row in zip(lines[1:], rows, strict=True):
        own = predicted([line[0]])
        values = {name: f"{p:.6g}" for name, p in zip(CLASSES, own.probabilities[0], strict=True)}
        filled = values if len(answered) > 1 else {answered[0]: own.labels[0]}
        assert dict(zip(header, line, strict=True)) == dict(zip(header, row, strict=True)) | filled
    assert bool(told) == bool(kept)
    assert all(f"`{name}`" in told[0].partition("kept")[2] for name in kept)


def test_a_class_that_is_called_like_a_usual_extra_column_stays_a_class(tmp_path: Path) -> None:
    classes = ("Usage", "elm")
    sample = sample_of(tmp_path, "id,elm,Usage\na,0,1\n")
    form, _ = submission(asked("a"), classes, sample=sample)
    assert form.probabilities and not form.kept
    sample = sample_of(tmp_path, "id,label,Usage\na,x,Public\n")
    form, _ = submission(asked("a"), classes, sample=sample)
    assert not form.probabilities and form.kept == {"Usage": ("Public",)}


@pytest.mark.parametrize("text", ["id,one,other\na,x,y\n", "id,label,class\na,x,y\n"])
def test_two_columns_that_may_be_the_labels_are_refused(tmp_path: Path, text: str) -> None:
    error = refused(DataError, asked("a"), CLASSES, sample=sample_of(tmp_path, text))
    assert "no class is called" in error.message


@pytest.mark.parametrize(("name", "separator"), [("s.csv", ";"), ("s.tsv", "\t"), ("s.csv", ",")])
def test_the_separator_is_the_samples(tmp_path: Path, name: str, separator: str) -> None:
    text = "\ufeffid;label\r\nb.jpg;oak\r\na.jpg;oak\r\n".replace(";", separator)
    form, ordered = submission(
        asked("a.jpg", "b.jpg"), CLASSES, sample=sample_of(tmp_path, text, name)
    )
    assert form.separator == separator
    lines = written(tmp_path / "out.csv", form, ordered)
    assert lines[0] == ["id", "label"]
    assert [line[0] for line in lines] == ["id", "b.jpg", "a.jpg"]


def test_without_a_sample_the_columns_are_named(tmp_path: Path) -> None:
    photos = asked("d/b.jpg", "a.jpg")
    kinds: list[tuple[Id, list[str]]] = [
        ("auto", ["b.jpg", "a.jpg"]),
        ("name", ["b.jpg", "a.jpg"]),
        ("path", ["d/b.jpg", "a.jpg"]),
        ("stem", ["b", "a"]),
    ]
    for kind, ids in kinds:
        form, ordered = submission(photos, CLASSES, columns=("image", "species"), id=kind)
        assert ordered == photos
        lines = written(tmp_path / f"{kind}.csv", form, ordered)
        assert lines[0] == ["image", "species"]
        assert [line[0] for line in lines[1:]] == ids
        assert [line[1] for line in lines[1:]] == list(predicted(["d/b.jpg", "a.jpg"]).labels)


def test_a_sample_or_columns(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, "id,label\na,\n")
    refused(UsageError, asked("a"), CLASSES)
    refused(UsageError, asked("a"), CLASSES, sample=sample, columns=("id", "label"))
    refused(UsageError, asked("a"), CLASSES, columns=("id", "id"))
    refused(UsageError, asked("a"), CLASSES, columns=("id", ""))
    refused(DataError, asked("a"), CLASSES, sample=tmp_path / "none.csv")
    empty = sample_of(tmp_path, "id,label\n")
    assert submission([], CLASSES, sample=empty)[1] == []


def test_photos_in_another_order_than_the_ids_are_noticed(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, "id,label\nb,\na,\n")
    form, _ = submission(asked("a", "b"), CLASSES, sample=sample)
    with pytest.raises(AssertionError, match="another order"):
        write(tmp_path / "s.csv", [predicted(["a", "b"])], form)
    assert not (tmp_path / "s.csv").exists()
