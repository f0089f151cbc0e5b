"""Crops by boxes: their rule, their pixels, and their way through fit and predict."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import COLORS, Answer, draw_photo
from fits import flags, small_fit
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shell import ON_CPU, table

import fieldguide as fg
from fieldguide.errors import DataError, UsageError
from fieldguide.photos import boxes as photo_boxes
from fieldguide.photos import check, crops, pixels, sources
from fieldguide.photos.crops import Box, Crop
from fieldguide.photos.inspect import inspect
from fieldguide.photos.near_copies import joined_groups
from fieldguide.predict.classifier import Classifier

PLAIN = Crop(tight=True, margin=0.0)


def shown(photo: Path, box: Box, rule: Crop = PLAIN, **options: object) -> Image.Image:
    return pixels.load(Path(rule.address(photo.as_posix(), box)), **options)


# --- the rule


def test_a_rule_is_named_by_one_text() -> None:
    assert Crop.of("box") == Crop()
    rule = Crop.of("box, largest,margin=0.25,confidence=0,tight")
    assert rule == Crop(largest=True, tight=True, margin=0.25, confidence=0.0)
    assert Crop.of(rule.name) == rule


@pytest.mark.parametrize(
    "text", ["", "boxes", "largest", "box,margin=2", "box,margin", "box,largest=1", "box,x", "box,"]
)
def test_other_texts_are_no_rule(text: str) -> None:
    with pytest.raises(UsageError, match="no rule of crops"):
        Crop.of(text)


def test_boxes_that_count() -> None:
    small, large = Box(0, 0, 0.1, 0.1), Box(0.5, 0, 0.4, 0.4)
    photos, boxes = ["a", "a", "b", "b", "b"], [small, large, large, None, small]
    sure = [0.9, 0.5, 0.19, math.nan, math.nan]
    assert crops.counting(photos, boxes, sure, Crop()) == [0, 1, 4]
    assert crops.counting(photos, boxes, sure, Crop(largest=True)) == [1, 4]
    assert crops.counting(photos, boxes, sure, Crop(confidence=0.0)) == [0, 1, 2, 4]


def test_a_box_ends_with_the_picture() -> None:
    assert crops.box_of("-0.1 0.5 0.3 0.9", "x") == pytest.approx((0, 0.5, 0.2, 0.5))
    for empty in ("0.5 0.5 0 0.1", "1.2 0 0.1 0.1"):
        assert crops.box_of(empty, "x") is None
    for odd in ("0.1 0.1 0.2", "a b c d", "0 0 nan 1", "0 0 inf 1", "0 0 60 50", "0.2 0.2 -0.1 1"):
        with pytest.raises(DataError, match="here: expected a box"):
            crops.box_of(odd, "here")


@given(st.tuples(*[st.floats(0, 1)] * 4), st.booleans(), st.floats(0, 1))
def test_an_address_says_photo_and_box(sides: tuple, tight: bool, margin: float) -> None:
    if (box := crops.box_of(" ".join(map(repr, sides)), "x")) is None:
        return
    address = Crop(tight=tight, margin=margin).address("a b/c.jpg", box)
    photo, name = crops.parted(address)
    assert photo == "a b/c.jpg" and crops.photo_of(Path(address)) == Path(photo)
    part, rest = crops.unpacked(crops.headed(name, b"rest"))
    assert rest == b"rest" and part is not None and part.square is not tight
    wide = 1 + 2 * margin
    assert part.box.width == pytest.approx(wide * box.width, abs=1e-5)
    assert part.box.left == pytest.approx(box.left - margin * box.width, abs=1e-5)


# --- pixels


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """A picture of 40 × 20 pixels whose red is the column and green the row."""
    y, x = np.mgrid[:20, :40]
    Image.fromarray(np.stack([x, y, x * 0], 2).astype(np.uint8)).save(tmp_path / "ramp.png")
    return tmp_path / "ramp.png"


def test_a_crop_is_the_box(ramp: Path) -> None:
    found = np.asarray(shown(ramp, Box(0.25, 0.5, 0.5, 0.25)))
    assert found.shape == (5, 20, 3)
    assert found[0, 0].tolist() == [10, 10, 0] and found[-1, -1].tolist() == [29, 14, 0]


def test_a_square_repeats_the_edge_and_distorts_nothing(ramp: Path) -> None:
    found = np.asarray(shown(ramp, Box(0.25, 0.0, 0.5, 0.5), Crop(margin=0.0)))
    assert found.shape == (20, 20, 3)
    assert found[:, 0, 0].tolist() == [10] * 20  # columns as they are
    assert found[:, 0, 1].tolist() == [0] * 5 + [*range(15)]  # 5 rows lie above the picture


def test_a_margin_widens_the_box(ramp: Path) -> None:
    found = np.asarray(shown(ramp, Box(0.5, 0.5, 0.25, 0.25), Crop(tight=True, margin=0.2)))
    assert found.shape == (7, 14, 3) and found[0, 0].tolist() == [18, 9, 0]


def test_shares_are_those_of_the_upright_picture(ramp: Path) -> None:
    turned = ramp.with_suffix(".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right: 20 × 40 pixels
    Image.open(ramp).save(turned, exif=exif, quality=100, subsampling=0)
    box = Box(0.5, 0.25, 0.5, 0.5)
    whole, part = np.asarray(pixels.load(turned)), np.asarray(shown(turned, box))
    assert whole.shape == (40, 20, 3)
    assert (part == whole[10:30, 10:]).all()


def test_reduced_decoding_keeps_the_pixels_of_the_crop(tmp_path: Path) -> None:
    Image.new("RGB", (800, 800), "teal").save(tmp_path / "a.jpg")
    box = Box(0.5, 0.5, 0.25, 0.25)
    assert shown(tmp_path / "a.jpg", box, shorter_side=100).size == (100, 100)
    assert shown(tmp_path / "a.jpg", box, shorter_side=101).size == (200, 200)


def test_a_crop_has_bytes_of_its_own_and_goes_with_its_photo(ramp: Path) -> None:
    one, two = (Path(PLAIN.address(ramp.as_posix(), Box(x, 0, 0.5, 1))) for x in (0, 0.5))
    assert len({pixels.sha256(path) for path in (one, two, ramp)}) == 3
    assert pixels.is_there(one)
    ramp.unlink()
    assert not pixels.is_there(one)
    with pytest.raises(fg.FieldguideError, match="file not found"):
        pixels.load(one)


# --- boxes in files of their own


def boxes_at(*paths: str) -> photo_boxes.Boxes:
    return photo_boxes.Boxes(
        "md.json", {path: [Box(0, 0, n / 10, 1)] for n, path in enumerate(paths, 1)}
    )


def found_for(photos: list[str], boxes: photo_boxes.Boxes, root: str = "/data/y") -> list:
    found = photo_boxes.found_for(photos, [Path(root)] * len(photos), boxes)
    return [own and round(10 * own[0].width) for own in found]


def test_paths_may_start_from_other_folders() -> None:
    boxes = boxes_at("a/1.jpg", "b/1.jpg")
    assert found_for(["b/1.jpg", "c/1.jpg"], boxes) == [2, None]
    assert found_for(["top/a/1.jpg", " a//1.jpg"], boxes_at("a/1.jpg", "top/a/1.jpg")) == [2, 1]
    assert found_for(["1.jpg"], boxes_at("x/y/1.jpg", "x/y/11.jpg", "x/z/1.jpg")) == [1]
    assert found_for(["a/1.jpg"], boxes_at("D:/else/a/1.jpg")) == [1]


def test_boxes_of_another_folder_are_not_taken() -> None:
    with pytest.raises(DataError, match="none of its 1 path is one of these photos"):
        found_for(["1.jpg"], boxes_at("x/z/1.jpg"))


def test_paths_that_leave_a_choice_are_refused() -> None:
    with pytest.raises(DataError, match=r"`1\.jpg` may be any of `/x/y/1\.jpg`, `/y/1\.jpg`"):
        found_for(["1.jpg"], boxes_at("/x/y/1.jpg", "/y/1.jpg"))
    with pytest.raises(DataError, match=r"`1\.jpg` may be `a/1\.jpg` or `b/1\.jpg`"):
        found_for(["a/1.jpg", "b/1.jpg"], boxes_at("1.jpg"))
    with pytest.raises(DataError, match="none of its 1 path is one of these photos"):
        found_for(["a/1.jpg"], boxes_at("2.jpg"))


# --- from photos with boxes to answers


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of six gray photos with a disc in a corner each, and their boxes.

    The first of each class has two discs; the last has no box that counts. The detections of a
    person and of low confidence are no crops.
    """
    folder = tmp_path_factory.mktemp("sites")
    rng = np.random.default_rng(0)
    images = []
    for number, (name, color) in enumerate(COLORS.items()):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(6):
            picture = Image.fromarray(rng.integers(90, 120, (120, 160, 3), dtype=np.uint8))
            found = []
            for left, top in ((10, 10), (100, 60))[: 2 if index == 0 else 1]:
                draw_photo(folder / "disc.jpg", color, 50 * number + index + left)
                picture.paste(Image.open(folder / "disc.jpg").resize((40, 40)), (left, top))
                box = [left / 160, top / 120, 40 / 160, 40 / 120]
                found.append({"category": "1", "conf": 0.9 if index < 5 else 0.1, "bbox": box})
            found.append({"category": "2", "conf": 0.9, "bbox": [0.5, 0.5, 0.2, 0.2]})
            path = f"{name}/{index}.png"
            picture.save(folder / "photos" / path)
            images.append({"file": path, "detections": found})
    data = {"images": images, "detection_categories": {"1": "animal", "2": "person"}}
    (folder / "md.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def crop_run(sites: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    catalog = sources.read(sites / "photos", boxes=sites / "md.json", crop="box,margin=0")
    return small_fit(catalog, tmp_path_factory.mktemp("crops") / "run", replicas=1, epochs=1)


def test_a_folder_and_a_file_of_boxes_give_crops(sites: Path) -> None:
    catalog = sources.read(sites / "photos", boxes=sites / "md.json")
    assert catalog.crop == "box,margin=0.1,confidence=0.2"
    assert len(catalog) == 18 and catalog.photos[0].path.startswith("amber/0.png/square ")
    groups = [photo.group for photo in catalog.photos if photo.label == "blue"]
    assert groups == ["blue/0.png"] * 2 + [f"blue/{n}.png" for n in range(1, 5)]
    assert "left out: 3 photos without a box that counts" in catalog.told
    assert "groups: photo (15)" in catalog.told
    largest = sources.read(sites / "photos", boxes=sites / "md.json", crop="box,largest")
    assert len(largest) == 15


def test_a_table_of_boxes_is_read_as_its_form(sites: Path, tmp_path: Path) -> None:
    rows = [("path", "label", "box", "confidence")]
    for image in json.loads((sites / "md.json").read_text())["images"]:
        for each in image["detections"]:
            if each["category"] == "1":
                box = " ".join(map(str, each["bbox"]))
                rows.append((image["file"], image["file"].split("/")[0], box, each["conf"]))
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    listed = fg.read(tmp_path / "boxes.csv", crop="box", root=sites / "photos")
    joined = fg.read(sites / "photos", boxes=sites / "md.json")
    key = {(photo.path, photo.label, photo.group) for photo in joined.photos}
    assert {(photo.path, photo.label, photo.group) for photo in listed.photos} == key
    by_table = fg.read(sites / "photos", boxes=tmp_path / "boxes.csv")
    assert {(photo.path, photo.label, photo.group) for photo in by_table.photos} == key
    by_name = fg.read(tmp_path / "boxes.csv", crop="box", root=sites / "photos", group="stem:^(.)")
    assert {photo.group for photo in by_name.photos} == set("01234")
    with pytest.raises(DataError, match=r"boxes\.csv: none of its boxes counts"):
        fg.read(tmp_path / "boxes.csv", crop="box,confidence=1", root=sites / "photos")


def test_sources_without_boxes_are_refused(sites: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder has no boxes"):
        fg.read(sites / "photos", crop="box")
    (tmp_path / "t.csv").write_text("path,label\nx.jpg,a\n")
    with pytest.raises(DataError, match=r"no column of boxes; columns found: `path`, `label`"):
        fg.read(tmp_path / "t.csv", crop="box")


def test_crops_of_a_photo_are_never_on_both_sides(crop_run: fg.Run) -> None:
    sides: dict[str, set] = {}
    for photo in crop_run.catalog.photos:
        sides.setdefault(crops.parted(photo.path)[0], set()).add(photo.fold)
    assert len(sides) == 15 and all(len(folds) == 1 for folds in sides.values())


def test_copies_of_a_photo_are_never_on_both_sides(sites: Path, tmp_path: Path) -> None:
    shutil.copytree(sites / "photos", tmp_path / "photos")
    rows = [("path", "label", "box", "group")]
    for number, path in enumerate(sorted((sites / "photos").glob("*/*.png"))):
        copy = path.with_name(f"copy-{path.name}").relative_to(sites / "photos")
        shutil.copy(path, tmp_path / "photos" / copy)
        label, name = path.parent.name, f"{path.parent.name}/{path.name}"
        rows.append((name, label, "0.0 0.0 0.4 0.5", f"a{number}"))
        rows.append((name, label, "0.5 0.5 0.5 0.5", f"b{number}"))
        rows.append((copy.as_posix(), label, "0.1 0.4 0.5 0.5", ""))
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    catalog = fg.read(tmp_path / "boxes.csv", crop="box", root=tmp_path / "photos")
    facts = inspect(catalog)
    found = check.findings(catalog, facts)
    copies = [each for each in found if each.kind == "exact-duplicate"]
    assert len(copies) == 18 and "is the same file as" in copies[0].message
    used, clusters = check.usable(catalog, facts, near="off")
    groups = joined_groups(used, clusters)
    by_photo: dict[str, set] = {}
    for photo, group in zip(used.photos, groups, strict=True):
        name = crops.parted(photo.path)[0].replace("copy-", "")
        by_photo.setdefault(name, set()).add(group)
    assert len(by_photo) == 18 and all(len(groups) == 1 for groups in by_photo.values())


def test_own_folds_that_divide_a_photo_are_found(sites: Path, tmp_path: Path) -> None:
    lines = ["path,label,box,fold"]
    for name in COLORS:
        for index in range(4):
            for fold, box in enumerate(("0 0 0.5 0.5", "0.5 0.5 0.5 0.5")):
                lines.append(f"{name}/{index}.png,{name},{box},{fold}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    catalog = fg.read(tmp_path / "t.csv", crop="box", root=sites / "photos")
    found = check.findings(catalog, inspect(catalog))
    assert [(each.kind, each.fatal) for each in found if each.fatal] == [("own-folds", True)]


def test_a_detector_that_found_nothing(
    crop_run: fg.Run, sites: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    data = json.loads((sites / "md.json").read_text())
    for image in data["images"]:
        image["detections"] = []
    data["images"][0] = {"file": "amber/0.png", "failure": "x", "detections": None}
    (tmp_path / "md.json").write_text(json.dumps(data))
    said = command("check", sites / "photos", "--boxes", tmp_path / "md.json")
    assert said.code == 3 and "none of its boxes counts" in said.err
    asked = ("predict", crop_run.folder, tmp_path / "md.json", "--root", sites / "photos")
    assert command(*asked, "--out", tmp_path / "p.csv", *ON_CPU).code == 0
    rows = table(tmp_path / "p.csv")
    assert [row["path"] for row in rows] == [f"{name}/{n}.png" for name in COLORS for n in range(6)]
    assert {row["status"] for row in rows} == {"no box that counts"}


def test_a_photo_that_the_boxes_do_not_name_is_seen_whole(
    crop_run: fg.Run, sites: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    data = json.loads((sites / "md.json").read_text())
    del data["images"][1:]
    (tmp_path / "md.json").write_text(json.dumps(data))
    asked = ("predict", crop_run.folder, sites / "photos", "--boxes", tmp_path / "md.json")
    said = command(*asked, "--out", tmp_path / "p.csv", *ON_CPU)
    assert "17 photos without known boxes will be seen whole" in said.err
    assert "and 2 boxes" in said.err


def test_answers_are_by_box_and_by_photo(
    crop_run: fg.Run, sites: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    out = tmp_path / "p.csv"
    asked = ("predict", crop_run.folder, sites / "photos", "--boxes", sites / "md.json")
    said = command(*asked, "--out", out, "--probabilities", *ON_CPU)
    assert said.code == 0 and "18 photos, 3 of them without a box" in said.err
    assert "seen whole" not in said.err
    photos, boxes = table(out), table(tmp_path / "p.boxes.csv")
    assert [row["path"] for row in photos] == [
        f"{name}/{n}.png" for name in COLORS for n in range(6)
    ]
    assert [row["status"] for row in photos] == [*["ok"] * 5, "no box that counts"] * 3
    assert len(boxes) == 18 and boxes[0]["box"] == "0.0625 0.08333 0.25 0.33333"
    assert [row["path"] for row in boxes[:3]] == ["amber/0.png"] * 2 + ["amber/1.png"]
    mean = sum(float(row["p:blue"]) for row in boxes[:2]) / 2
    assert float(photos[0]["p:blue"]) == pytest.approx(mean, rel=1e-4)
    assert photos[1]["p:blue"] == boxes[2]["p:blue"]
    out_of_form = tmp_path / "form.csv"
    asked = ("predict", crop_run.folder, sites / "md.json", "--root", sites / "photos")
    assert command(*asked, "--out", out_of_form, "--probabilities", *ON_CPU).code == 0
    assert out_of_form.read_bytes() == out.read_bytes()


def test_whole_photos_are_told(
    crop_run: fg.Run, sites: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    out = tmp_path / "p.csv"
    said = command("predict", crop_run.folder, sites / "photos", "--out", out, *ON_CPU)
    assert "was trained on crops (box,margin=0,confidence=0.2): 18 photos" in said.err
    assert {row["box"] for row in table(tmp_path / "p.boxes.csv")} == {""}


def test_a_saved_classifier_keeps_the_rule(crop_run: fg.Run, sites: Path, tmp_path: Path) -> None:
    crop_run.classifier().save(tmp_path / "classifier")
    loaded = Classifier.load(tmp_path / "classifier")
    assert loaded.card.crop == "box,margin=0,confidence=0.2"
    found = loaded.predict(sites / "photos", boxes=sites / "md.json")
    assert len(found) == 18 and found.status.count("no box that counts") == 3


def test_boxes_are_for_classifiers_of_crops(
    trained: fg.Run, sites: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    asked = ("predict", trained.folder, sites / "photos", "--boxes", sites / "md.json")
    said = command(*asked, "--out", tmp_path / "p.csv", *ON_CPU)
    assert said.code == 2 and "`boxes` is for classifiers of crops" in said.err
    said = command("score", trained.folder, sites / "photos", "--boxes", sites / "md.json", *ON_CPU)
    assert said.code == 2 and "--boxes is for runs of crops" in said.err


def test_other_crops_of_training_photos_are_no_new_ones(
    crop_run: fg.Run, sites: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    text = (sites / "md.json").read_text().replace("0.25,", "0.3,")
    (tmp_path / "md.json").write_text(text)
    asked = ("score", crop_run.folder, sites / "photos", "--boxes", tmp_path / "md.json")
    said = command(*asked, *ON_CPU)
    assert said.code == 3 and "all 18 photos look like training photos" in said.err


def test_a_fit_of_crops_resumes_and_crops_are_not_packed(
    sites: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    crop = ("--boxes", sites / "md.json", "--crop", "box,tight")
    asked = (
        "fit",
        sites / "photos",
        *crop,
        "--out",
        tmp_path / "run",
        *flags(replicas=1, epochs=1),
    )
    assert command(*asked, "--fold", "0", "--no-report").code == 0
    assert command(*asked).code == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert fg.Run(tmp_path / "run").crop == "box,tight,margin=0.1,confidence=0.2"
    said = command("pack", sites / "photos", *crop, "--out", tmp_path / "packed")
    assert said.code == 2 and "crops are not packed" in said.err
