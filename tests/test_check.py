import csv
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import NATURE, encoded, needs_photographs, photograph, save
from PIL import Image

from fieldguide.photos import check, groups, inspect, near_copies, pixels
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.check import Finding
from fieldguide.photos.folders import scan, scan_unlabelled
from fieldguide.photos.inspect import Facts
from fieldguide.photos.near_copies import duplicates, joined_groups
from fieldguide.photos.pixels import Reading
from fieldguide.photos.sources import read

KIND = "shared-event"


def collection(root: Path, **classes: range) -> Catalog:
    """One folder a class, a photograph for each seed."""
    for label, seeds in classes.items():
        for seed in seeds:
            save(root / label / f"{seed}.jpg", seed)
    return scan(root)


def rows(*photos: Photo) -> Catalog:
    return Catalog(Path("nowhere"), photos)


def seen(seed: int, **changes: object) -> Facts:
    """What a readable photograph of this seed would give, without a file."""
    draws = np.random.default_rng(seed)
    facts = Facts(f"{seed:064}", 96, 64, 1, fingerprint=draws.bytes(648))
    return replace(facts, **changes)  # type: ignore[arg-type]


def of_kind(found: list[Finding], kind: str) -> list[Finding]:
    return [finding for finding in found if finding.kind == kind]


def checked(photos: Catalog, **options: object) -> list[Finding]:
    return check.findings(photos, inspect.inspect(photos), **options)  # type: ignore[arg-type]


def test_facts_of_good_and_bad_files(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.jpg", 1, (90, 60))
    (tmp_path / "a" / "2.jpg").touch()
    (tmp_path / "a" / "3.jpg").write_text("<html>404</html>")
    data = encoded(photograph(4))
    (tmp_path / "a" / "4.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "a" / "5.jpg").write_bytes(data[:-2])
    found = scan(tmp_path)
    facts = inspect.inspect(found)
    problems = ["", "empty file", "not an image (HTML)", "truncated", ""]
    assert [fact.problem for fact in facts] == problems
    assert [bool(fact.fingerprint) for fact in facts] == [not problem for problem in problems]
    assert (facts[0].width, facts[0].height, facts[0].frames) == (90, 60, 1)
    assert facts[4].warning == "the last bytes are missing"
    assert [len(fact.sha256) for fact in facts] == [64, 0, 64, 64, 64]
    assert inspect.inspect(found, reading=Reading(truncated="keep"))[3].warning == "truncated"
    assert inspect.look(tmp_path / "gone.jpg").problem == "file not found"


def test_workers_change_nothing_and_progress_counts_every_photo(tmp_path: Path) -> None:
    found = collection(tmp_path, a=range(40), b=range(40, 70))
    counts: list[int] = []
    expected = inspect.inspect(found, workers=1, progress=counts.append)
    assert counts == sorted(counts)
    assert counts[-1] == len(found) == 70
    assert inspect.inspect(found, workers=4) == expected
    assert inspect.inspect(found.part("test")) == ()


def test_stopping_does_not_wait_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = collection(tmp_path, a=range(3))
    many = replace(found, photos=tuple(found.photos) * 1000)
    looked: list[Path] = []
    look = inspect.look
    monkeypatch.setattr(inspect, "look", lambda *a: looked.append(a[0]) or look(*a))

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect.inspect(many, workers=1, progress=stop)
    assert len(looked) < 1500


def copies(image: Image.Image) -> dict[str, bytes]:
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    resized = {
        scale: image.resize((round(image.width * scale), round(image.height * scale)))
        for scale in (0.5, 0.7, 0.9, 3.0)
    }
    return {
        **{f"quality {q}": encoded(image, quality=q) for q in (30, 50, 75, 95)},
        **{f"resized {scale}": encoded(small, quality=85) for scale, small in resized.items()},
        "png": encoded(image, "PNG"),
        "webp": encoded(image, "WEBP", quality=60),
        "mirrored": encoded(mirrored, quality=75),
        "mirrored and resized": encoded(mirrored.resize((333, 217)), quality=60),
    }


def facts_of(folder: Path, pictures: list[bytes]) -> tuple[Catalog, tuple[Facts, ...]]:
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(pictures):
        (folder / f"{number:04}.jpg").write_bytes(data)
    found = scan_unlabelled(folder)
    return found, inspect.inspect(found)


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    photos = rows(Photo("a/caf\udce9.jpg", "a"), Photo("a/café.jpg", "a"), Photo(r"b/\xe9", "b"))
    found = check.findings(photos, [seen(n) for n in range(3)])
    assert [finding.path for finding in of_kind(found, "odd-name")] == ["a/caf\udce9.jpg"]
    check.write_findings(tmp_path / "f.csv", of_kind(found, "odd-name"))
    assert rb"a/caf\xe9.jpg" in (tmp_path / "f.csv").read_bytes()


def test_copies_are_found_and_others_are_not(tmp_path: Path) -> None:
    images = [photograph(seed, (240, 160)) for seed in range(30)]
    sets = [list(copies(image).values()) for image in images]
    found, facts = facts_of(tmp_path / "p", [data for pictures in sets for data in pictures])
    each = len(sets[0])
    expected = tuple(tuple(range(n * each, (n + 1) * each)) for n in range(len(images)))
    assert duplicates(found, facts) == expected


@needs_photographs
def test_copies_of_real_photographs(tmp_path: Path) -> None:
    """Recall was 100 % on 500 of them; no false pair among all 6,834."""
    images = [pixels.load(path) for path in sorted(NATURE.glob("train/*/*_001.jpg"))[:40]]
    assert len(images) == 40
    sets = [list(copies(image).values()) for image in images]
    found, facts = facts_of(tmp_path / "p", [data for pictures in sets for data in pictures])
    clusters = duplicates(found, facts)
    each = len(sets[0])
    assert clusters == tuple(tuple(range(n * each, (n + 1) * each)) for n in range(len(images)))


def test_flat_backgrounds_do_not_make_copies(tmp_path: Path) -> None:
    """Small subjects on white: the hashes are much alike, the thumbnails are not."""
    pictures = []
    for seed in range(200):
        sheet = Image.new("RGB", (200, 200), "white")
        draws = random.Random(seed)
        subject = photograph(seed, (50, 40))
        sheet.paste(subject, (draws.randrange(150), draws.randrange(160)))
        pictures.append(encoded(sheet, quality=80))
    assert duplicates(*facts_of(tmp_path / "p", pictures)) == ()


def test_one_colour_is_not_another(tmp_path: Path) -> None:
    """Equal gray, different colour; and two grays."""
    colours = [(200, 60, 60), (60, 120, 117), (90, 90, 90), (97, 97, 97), (90, 90, 90)]
    sheets = [Image.new("RGB", (64, 64 + 8 * n), c) for n, c in enumerate(colours)]
    found, facts = facts_of(tmp_path / "p", [encoded(sheet, "PNG") for sheet in sheets])
    assert duplicates(found, facts) == ((2, 4),)


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_thumbnails_at_once_change_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    fingerprints = draws.integers(0, 256, (50, 648), dtype=np.uint8)
    fingerprints[20:40] = fingerprints[:20]
    rows = np.arange(len(fingerprints))
    whole = near_copies._near_pairs(fingerprints, rows)
    monkeypatch.setattr(near_copies, "_AT_ONCE", at_once)
    assert (
        len(whole) == 20 and near_copies._near_pairs(fingerprints, rows).tolist() == whole.tolist()
    )


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_equal_pictures_are_joined(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "_AT_ONCE", at_once)
    facts = [seen(n) for n in (5, 1, 2, 1, 3, 5, 1)] + [Facts(problem="empty file")] * 2
    photos = rows(*(Photo(f"{n}", None) for n in range(len(facts))))
    assert duplicates(photos, facts) == ((0, 5), (1, 3, 6))
    assert duplicates(rows(), ()) == ()


def test_many_photos_stay_quick() -> None:
    """All of noise have like features: the worst for tables, beside equal ones."""
    photos = tuple(Photo(f"{n}.jpg", None) for n in range(12_000))
    facts = [seen(n) for n in range(6_000)] + [seen(7, sha256=f"{n:064}") for n in range(6_000)]
    clusters = duplicates(Catalog(Path("x"), photos), facts)
    assert [len(cluster) for cluster in clusters] == [6_001]


def test_clusters_do_not_depend_on_the_order(tmp_path: Path) -> None:
    images = [photograph(seed, (120, 80)) for seed in range(6)]
    found, facts = facts_of(tmp_path / "p", [d for image in images for d in copies(image).values()])
    paths = {frozenset(found.photos[r].path for r in c) for c in duplicates(found, facts)}
    order = random.Random(1).sample(range(len(found)), len(found))
    shuffled = replace(found, photos=tuple(found.photos[r] for r in order))
    clusters = duplicates(shuffled, [facts[r] for r in order])
    assert {frozenset(shuffled.photos[r].path for r in c) for c in clusters} == paths


def groups_of(photos: Catalog, facts: Sequence[Facts]) -> Sequence[str]:
    return joined_groups(photos, duplicates(photos, facts))


def test_groups_join_specimens_and_copies() -> None:
    photos = rows(
        Photo("e", "x"),
        Photo("d", "x", group="s"),
        Photo("c", "x", group="s"),
        Photo("b", "x"),
        Photo("a", "x"),
    )
    facts = [seen(1), seen(2), seen(3), seen(3), seen(4)]
    assert groups_of(photos, facts) == ["e", "b", "b", "b", "a"]
    backwards = replace(photos, photos=photos.photos[::-1])
    assert groups_of(backwards, facts[::-1]) == ["a", "b", "b", "b", "e"]
    assert joined_groups(photos, [(0, 4)]) == ["a", "c", "c", "b", "a"]


def test_no_group_spans_two_names() -> None:
    draws = random.Random(0)
    for _ in range(20):
        photos = rows(
            *(Photo(f"{n}", "x", group=draws.choice([None, "g", "h", "i"])) for n in range(12))
        )
        facts = [seen(draws.randrange(8)) for _ in range(12)]
        names = groups_of(photos, facts)
        for one, other in combinations(range(12), 2):
            group = photos.photos[one].group
            together = group is not None and group == photos.photos[other].group
            if together or facts[one].fingerprint == facts[other].fingerprint:
                assert names[one] == names[other]


def test_a_good_collection_has_no_findings(tmp_path: Path) -> None:
    assert checked(collection(tmp_path, a=range(6), b=range(6, 12))) == []


def test_bad_files_are_reported_and_the_run_goes_on(tmp_path: Path) -> None:
    collection(tmp_path, a=range(6), b=range(6, 12))
    (tmp_path / "a" / "empty.jpg").touch()
    data = encoded(photograph(50))
    (tmp_path / "b" / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "b" / "end.jpg").write_bytes(encoded(photograph(51))[:-2])
    save(tmp_path / "b" / "tiny.jpg", 52, (40, 9))
    (tmp_path / "b" / "film.gif").write_bytes(
        encoded(photograph(53), "GIF", save_all=True, append_images=[photograph(54)])
    )
    found = checked(scan(tmp_path))
    assert {(f.kind, f.path, f.message) for f in found} == {
        ("unreadable", "a/empty.jpg", "empty file"),
        ("truncated", "b/cut.jpg", "truncated"),
        ("damaged", "b/end.jpg", "the last bytes are missing"),
        ("too-small", "b/tiny.jpg", "40 × 9 pixels, the shorter side is below 16"),
        (
            "several-frames",
            "b/film.gif",
            "files with several pictures; the first is used: `b/film.gif`",
        ),
    }
    assert not any(f.fatal for f in found)


def test_usable_photos_carry_their_hash(tmp_path: Path) -> None:
    found = collection(tmp_path, a=range(3), b=range(3, 6))
    (tmp_path / "a" / "0.jpg").write_bytes(b"")
    facts = inspect.inspect(found)
    kept, clusters = check.usable(found, facts)
    assert [p.path for p in kept.photos] == [p.path for p in found.photos[1:]]
    assert [p.sha256 for p in kept.photos] == [f.sha256 for f in facts[1:]]
    assert len(clusters) == 0


@pytest.mark.parametrize("conflicts", ["keep", "drop"])
def test_usable_clusters_are_those_of_the_photos_that_are_left(conflicts: Any) -> None:
    facts = [Facts("ab" * 32, problem="truncated")] + [seen(n) for n in (1, 2, 1, 3, 4, 4, 2)]
    facts.insert(5, Facts(problem="empty file"))
    labels = "xxxxxxyyy"  # two for the file of seed 2
    photos = rows(*(Photo(f"{n}", label) for n, label in enumerate(labels)))
    kept, clusters = check.usable(photos, facts, conflicts=conflicts)
    expected = {"keep": [(0, 2), (1, 6), (4, 5)], "drop": [(0, 1), (3, 4)]}[conflicts]
    assert list(clusters) == expected and len(kept) == {"keep": 7, "drop": 5}[conflicts]
    given = duplicates(photos, facts)
    assert check.usable(photos, facts, clusters=given, conflicts=conflicts) == (kept, clusters)


def test_notes_of_the_catalog_are_findings(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert [f.kind for f in checked(collection(tmp_path, a=range(6), b=range(6, 12)))] == [
        "empty-class"
    ]


def test_one_class_and_unknown_classes_are_fatal(tmp_path: Path) -> None:
    one = checked(collection(tmp_path / "one", a=range(6)))
    assert [(f.kind, f.fatal) for f in one] == [("one-class", True)]
    for n, path in enumerate(["train/a", "train/b", "val/lynx"]):
        for seed in range(6):
            save(tmp_path / "tree" / path / f"{seed}.jpg", 10 * n + seed)
    tree = checked(scan(tmp_path / "tree"))
    assert [(f.kind, f.fatal) for f in tree] == [("unknown-class", True)]
    assert "`lynx`" in tree[0].message


def test_a_class_of_which_most_is_unreadable_is_fatal() -> None:
    photos = rows(*(Photo(f"{label}/{n}", label) for label in "ab" for n in range(12)))
    bad = Facts(problem="empty file")
    for lost, fatal in ((6, False), (7, True)):
        facts = [bad if n < lost else seen(n) for n in range(24)]
        found = of_kind(check.findings(photos, facts), "class-lost")
        assert [f.message for f in found] == ["class `a`: 7 of 12 photos cannot be read"] * fatal
        assert all(f.fatal for f in found)


def test_copies_with_one_label_are_reported_once_each() -> None:
    photos = rows(*(Photo(f"{label}/{n}", label) for label in "ab" for n in range(7)))
    facts = [seen(n) for n in range(14)]
    facts[3], facts[5] = facts[1], replace(facts[1], sha256="f" * 64)
    found = check.findings(photos, facts)
    assert [(f.kind, f.path, f.message) for f in found] == [
        ("exact-duplicate", "a/3", "is the same file as a/1"),
        ("near-duplicate", "a/5", "looks like a/1"),
    ]


def test_one_file_under_two_labels_is_fatal_unless_dropped() -> None:
    photos = rows(*(Photo(f"{label}/{n}", label) for label in "ab" for n in range(7)))
    facts = [seen(n) for n in range(14)]
    facts[8] = facts[2]
    conflict = of_kind(check.findings(photos, facts), "conflicting-labels")
    assert [f.message for f in conflict] == [
        "one picture under several labels: `a` (a/2), `b` (b/1)"
    ]
    assert conflict[0].fatal
    kept, _ = check.usable(photos, facts, conflicts="drop")
    assert {"a/2", "b/1"} == {p.path for p in photos.photos} - {p.path for p in kept.photos}
    kept_facts = [fact for row, fact in enumerate(facts) if row not in (2, 8)]
    assert not any(f.fatal for f in check.findings(kept, kept_facts))


def test_look_alikes_under_two_labels_are_left_to_the_user() -> None:
    photos = rows(*(Photo(f"{label}/{n}", label) for label in "ab" for n in range(7)))
    facts = [seen(n) for n in range(14)]
    facts[8] = replace(facts[2], sha256="f" * 64)
    conflict = of_kind(check.findings(photos, facts), "conflicting-labels")
    assert [f.fatal for f in conflict] == [False]
    assert len(check.usable(photos, facts, conflicts="drop")[0]) == 14


def test_leaks_are_reported_with_pairs_and_are_not_fatal() -> None:
    photos = rows(
        *(Photo(f"{label}/{n}", label) for label in "ab" for n in range(6)),
        Photo("val/x", "a", split="val"),
        Photo("test/y", None, split="test"),
        Photo("test/z", None, split="test"),
    )
    facts = [seen(n) for n in range(12)]
    facts += [facts[3], replace(facts[4], sha256="f" * 64), seen(99)]
    found = check.findings(photos, facts)
    assert [(f.kind, f.path, f.message, f.fatal) for f in found] == [
        ("leak", "val/x", "in `val`, and is the same file as the training photo a/3", False),
        ("leak", "test/y", "in `test`, and looks like the training photo a/4", False),
    ]


@pytest.mark.parametrize(
    ("groups", "folds", "kind", "message"),
    [
        ([None] * 3, 3, None, ""),
        ([None] * 2, 5, "thin-class", "class `a` has 2 photos, fewer than folds = 5"),
        (
            ["g", "g", "h"],
            3,
            "thin-class",
            "class `a` has 3 photos in 2 groups, fewer than folds = 3",
        ),
        (["g"] * 9, 3, "single-group", "class `a`: all 9 photos lie in one group, that of a/0"),
        (
            [None],
            2,
            "single-group",
            "class `a` has 1 photo: the fold that tests it could not learn it",
        ),
    ],
)
def test_whether_folds_can_be_made(
    groups: list[str | None], folds: int, kind: str | None, message: str
) -> None:
    thin = [Photo(f"a/{n}", "a", group) for n, group in enumerate(groups)]
    photos = rows(*thin, *(Photo(f"b/{n}", "b") for n in range(9)))
    found = check.findings(photos, [seen(n) for n in range(len(photos))], folds=folds)
    assert [(f.kind, f.message) for f in found] == ([(kind, message)] if kind else [])
    assert all(f.fatal == (kind == "single-group") for f in found)


def test_the_users_folds_are_not_judged_by_ours() -> None:
    photos = rows(*(Photo(f"{label}/{n}", label, fold=n) for label in "ab" for n in range(2)))
    assert check.findings(photos, [seen(n) for n in range(4)], folds=5) == []


def test_events_of_a_folder_that_folds_may_divide(tmp_path: Path) -> None:
    for number in range(12):  # two a minute in the one folder, alone in the other
        for label, minute in (("elm", number // 2 * 5), ("oak", number * 5)):
            path = save(tmp_path / label / f"{number:02}.jpg", len(label) * 1000 + number)
            path = path.rename(path.with_name(f"{number:02}{label}.jpg"))
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9003] = f"2026:05:0{len(label)} 10:{minute:02}:0{number % 2}"
            exif[0x010F] = label
            Image.open(path).save(path, exif=exif)
    (found,) = of_kind(checked(scan(tmp_path)), KIND)
    assert found.message.startswith("50% of photos share their event (EXIF times within 60 s)")
    assert found.hint == "--group event keeps each event in one fold"
    for group in ("event", "folder:1"):
        assert not of_kind(checked(scan(tmp_path, group=group)), KIND)


@pytest.mark.parametrize(
    ("names", "share"),
    [
        ([f"IMG_20260501_10{n:02}{s:02}" for n in range(8) for s in (1, 7)], "100%"),
        ([f"2026-05-01 10-{n:02}-{s:02}" for n in range(8) for s in (1, 7)], "100%"),
        ([f"obs{n}_{k}" for n in range(6) for k in range(1, 3 - n % 2)], "67%"),
        ([f"IMG_{n:04}" for n in range(16)], ""),
        ([f"oak_{n}" for n in range(16)], ""),
        ([f"cam0_{n:02}" for n in range(16)], ""),
        ([f"2026-05-{n:02}" for n in range(1, 17)], ""),
        ([f"IMG_20260501_10{n:02}01" for n in range(16)], ""),
    ],
)
def test_events_by_names_that_folds_may_divide(names: list[str], share: str) -> None:
    labels = ["elm", "oak"] if share and "obs" not in names[0] else ["oak"]
    photos = [Photo(f"{each}/{name}.jpg", each) for each in labels for name in names]
    photos += [Photo(f"ash/{n}x.jpg", "ash", split="test") for n in range(3)]
    catalog = rows(*photos)
    found = of_kind(check.findings(catalog, [seen(n) for n in range(len(photos))]), KIND)
    assert [note.message[: len(share)] for note in found] == [share] * bool(share)
    for note in found:
        flag = note.hint.split("'")[1]
        grouped, _ = groups.grouped(catalog.table, flag)
        assert max(Counter(filter(None, grouped.column("group"))).values()) > 1
        kept = replace(catalog, photos=grouped)
        assert not of_kind(
            check.findings(kept, [seen(n) for n in range(len(photos))]), "shared-event"
        )


def test_events_of_a_table_that_folds_may_divide(tmp_path: Path) -> None:
    lines = ["path,label,site,DateTime,fold"]
    for number in range(8):
        for label in ("elm", "oak"):
            save(tmp_path / f"{label}{number}.jpg", len(lines))
            time = f"2026-05-01 10:{5 * (number // 2):02}:0{number % 2}"
            lines.append(f"{label}{number}.jpg,{label},{label},{time},{number // 2 % 2}")

    def found(columns: int, group: str | None = None) -> list[str]:
        cut = [",".join(line.split(",")[:columns]) for line in lines]
        (tmp_path / "t.csv").write_text("\n".join(cut))
        return [n.message for n in of_kind(checked(read(tmp_path / "t.csv", group=group)), KIND)]

    share = "100% of photos share their event (DateTime within 60 s at site) with others"
    assert [message.partition(":")[0] for message in found(4)] == [share]
    assert found(4, "event") == found(4, "place") == found(3) == []
    assert found(5) == []  # own folds keep events together
    lines[0] = lines[0].replace("fold", "event")
    assert "share their event (event)" in found(5, "none")[0]


def test_copies_that_stay_together_share_no_event_with_others() -> None:
    photos = [
        Photo(f"{label}/obs{n}{label}_{k}.jpg", label)
        for label in "ab"
        for n in range(4)
        for k in (1, 2)
    ]
    facts = [seen(n // 2) for n in range(len(photos))]
    assert not of_kind(check.findings(rows(*photos), facts), KIND)
    assert of_kind(check.findings(rows(*photos), [seen(n) for n in range(len(photos))]), KIND)


def test_imbalance_beyond_one_to_ten() -> None:
    for extra, kinds in ((0, []), (1, ["imbalance"])):
        names = [("a", n) for n in range(50 + extra)] + [("b", n) for n in range(5)]
        photos = rows(*(Photo(f"{label}/{n}", label) for label, n in names))
        found = check.findings(photos, [seen(n) for n in range(len(photos))], clusters=())
        assert [f.kind for f in found] == kinds


def test_fatal_findings_come_first() -> None:
    photos = rows(Photo("a/1", "a"), Photo("a/2", "a"), Photo("a/3", "a"))
    found = check.findings(photos, [Facts(problem="empty file"), seen(1), seen(2)])
    assert [f.fatal for f in found] == sorted((f.fatal for f in found), reverse=True)
    assert found[0].kind == "one-class"


def test_findings_are_written_for_spreadsheets(tmp_path: Path) -> None:
    texts = ["=cmd|' /C calc'!A0", "+1", "-x.jpg", "@a", "\tx", 'a "b", c\nd', "plain"]
    check.write_findings(tmp_path / "f.csv", [Finding("kind", text, text, "do") for text in texts])
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as file:
        header, *written = csv.reader(file)
    assert header == ["kind", "path", "reason", "hint"]
    expected = [f"'{text}" for text in texts[:5]] + texts[5:]
    assert written == [["kind", text, text, "do"] for text in expected]
