"""Classes, photos and groups that are read from a sample of every known form, as a Markdown table.

    python benchmarks/forms.py [--before PATH_TO_SRC]
    python benchmarks/forms.py --images 1000000

`--before` reads the same by an older source tree, which prints what it refused. Samples are those
of tests/forms that the tools themselves wrote, and short ones by hand from published descriptions;
the photos that they list are drawn. `--images` prints instead what reading so many images and
annotations of COCO Camera Traps costs beside `json.load`: processor time and memory, each in a
process of its own, in turn, three times.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from fieldguide.errors import FieldguideError
from fieldguide.photos import sources
from fieldguide.words import count

WRITTEN = Path(__file__).parents[1] / "tests" / "forms"
# Of each form that a tool wrote: the tool, the folder below tests/forms, what to read in it.
BY_TOOLS = {
    "camtrap-dp": ("camtraptools 0.8.1", "camtraptools", ""),
    "camtraptools": ("camtraptools 0.8.1", "camtraptools_more", "crops.csv"),
    "coco": ("megadetector-utils 10.0.28", "megadetector", "cct.json"),
    "wildlife-insights": ("hand", "megadetector", "images_7.csv"),
    "megadetector": ("megadetector-utils 10.0.28", "megadetector", "md.json"),
    "darwin-core": ("dwcahandler 1.1.5", "dwcahandler", ""),
    "label-studio": ("label-studio-sdk 2.1.2", "label_studio", "one_control_json.json"),
    "cvat": ("datumaro 1.13.12", "datumaro/cvat", ""),
    "datumaro": ("datumaro 1.13.12", "datumaro/datumaro", ""),
    "datumaro-imagenet": ("datumaro 1.13.12", "datumaro/imagenet", ""),
    "imagenet-txt": ("datumaro 1.13.12", "datumaro/imagenet_txt", ""),
}
LEAF = {"obs_id": "1", "author": "A", "license": "cc", "organ": "leaf"}
MARKED = {"size": 1, "regions": [], "file_attributes": {"kind": "oak"}}
# Of each other form its files, `|` ends a line; and what to read, if not the folder.
BY_HAND: dict[str, tuple[dict[str, object], str]] = {
    "timelapse": (
        {
            "d.csv": "File,RelativePath,DateTime,DeleteFlag,Species"
            "|1.jpg,A,2016-03-04 05:06:07,false,fox|2.jpg,A,2016-03-04 05:06:09,false,fox"
            "|1.jpg,B,2016-03-04 05:06:07,false,deer"
        },
        "d.csv",
    ),
    "iwildcam": (
        {
            "metadata.csv": "split,location_remapped,sequence_remapped,datetime,y,filename"
            "|train,0,0,2013-06-05 05:44:00,0,1.jpg|train,0,0,2013-06-05 05:44:01,0,2.jpg"
            "|test,1,1,2013-06-05 05:44:00,1,3.jpg",
            "categories.csv": "y,name|0,empty|1,tayassu pecari",
        },
        "",
    ),
    "addaxai": (
        {
            "results_detections.csv": "absolute_path,relative_path,data_type,label,confidence,"
            "bbox_left,bbox_top,bbox_right,bbox_bottom,file_height,file_width,DateTimeOriginal"
            "|/x,c/1.jpg,img,deer,0.5,0,0,50,25,50,100,2024-01-13 10:00:00"
            "|/x,c/2.jpg,img,fox,0.5,0,0,50,25,50,100,2024-01-13 10:00:09"
        },
        "results_detections.csv",
    ),
    "plantnet": (
        {
            "plantnet300K_metadata.json": {
                "a": LEAF | {"species_id": "7", "split": "train"},
                "b": LEAF | {"species_id": "7", "split": "train"},
                "c": LEAF | {"species_id": "8", "split": "val", "obs_id": "2"},
            },
            "plantnet300K_species_id_2_name.json": {"7": "Lactuca virosa", "8": "Sedum acre"},
        },
        "",
    ),
    "inaturalist": (
        {
            "train.json": {
                "images": [
                    {"id": n, "file_name": f"train/{n}.jpg", "license": 1, "rights_holder": "A"}
                    for n in (1, 2)
                ],
                "categories": [
                    {
                        "id": n,
                        "name": f"Acer {n}",
                        "supercategory": "Plantae",
                        "image_dir_name": "x",
                    }
                    for n in (1, 2)
                ],
                "annotations": [{"id": n, "image_id": n, "category_id": n} for n in (1, 2)],
                "info": {"description": "", "version": "2021"},
                "licenses": [{"id": 1, "name": "CC0", "url": ""}],
            }
        },
        "train.json",
    ),
    "roboflow": (
        {
            "train/_classes.csv": "filename, oak, elm|my_jpg.rf.aaaaaaaaaaaaaaaa.jpg, 1, 0"
            "|my_jpg.rf.bbbbbbbbbbbbbbbb.jpg, 1, 0|c.jpg, 0, 1",
            "test/_classes.csv": "filename, oak, elm|d.jpg, 0, 1",
        },
        "",
    ),
    "via": ({"v.json": {f"{n}.jpg1": MARKED | {"filename": f"{n}.jpg"} for n in "ab"}}, "v.json"),
    "hf-metadata": (
        {
            "train/metadata.csv": "file_name,label|a.jpg,oak|b.jpg,elm",
            "test/metadata.csv": "file_name,label|c.jpg,oak",
        },
        "",
    ),
    "cub": (
        {
            "images.txt": "1 001.Albatross/A_1.jpg|2 002.Auk/B_2.jpg",
            "image_class_labels.txt": "1 1|2 2",
            "classes.txt": "1 001.Albatross|2 002.Auk",
            "train_test_split.txt": "1 1|2 0",
        },
        "",
    ),
    "fgvc-aircraft": (
        {
            "data/variants.txt": "707-320|F/A-18",
            **{
                f"data/images_{level}_{split}.txt": text
                for level in ("variant", "family")
                for split, text in (
                    ("train", "1 707-320"),
                    ("val", "2 F/A-18"),
                    ("test", "3 F/A-18"),
                )
            },
            "data/families.txt": "707-320|F/A-18",
        },
        "",
    ),
    "oxford-pets": (
        {
            "annotations/trainval.txt": "Abyssinian_1 1 1 1|american_bulldog_7 2 2 1",
            "annotations/test.txt": "Abyssinian_9 1 1 1",
            "images/Abyssinian_1.jpg": "",
        },
        "",
    ),
    "food-101": (
        {
            "meta/classes.txt": "apple_pie|ribs",
            "meta/labels.txt": "Apple pie|Ribs",
            "meta/train.txt": "apple_pie/1|ribs/1",
            "meta/test.txt": "apple_pie/2",
            "images/apple_pie/1.jpg": "",
        },
        "",
    ),
    "stanford-dogs": (
        {
            "Images/n1-Chihuahua/1.jpg": "",
            "train_list.mat": {
                "file_list": [["n1-Chihuahua/1.jpg"], ["n2-Boxer/2.jpg"]],
                "labels": [[1], [2]],
            },
            "test_list.mat": {"file_list": [["n2-Boxer/3.jpg"]], "labels": [[2]]},
        },
        "",
    ),
    "flowers-102": (
        {
            "jpg/image_00001.jpg": "",
            "imagelabels.mat": {"labels": [[7, 7, 1]]},
            "setid.mat": {"trnid": [[1]], "valid": [[2]], "tstid": [[3]]},
        },
        "",
    ),
    "stanford-cars": (
        {
            "cars_train/00001.jpg": "",
            "devkit/cars_meta.mat": {"class_names": [["Hummer", "Ram"]]},
            "devkit/cars_train_annos.mat": {"annotations": [(1, "00001.jpg"), (2, "00002.jpg")]},
        },
        "",
    ),
    "kaggle": (
        {"train.csv": "id,species|a,oak|b,elm", "train/a.jpg": "", "train/b.jpg": ""},
        "",
    ),
    "one-hot": (
        {"t.csv": "id,oak,elm|a,1,0|b,0,1|c,0,1", "a.jpg": "", "b.jpg": "", "c.jpg": ""},
        "t.csv",
    ),
}


def main() -> None:
    """Do what is asked: the table, the cost, or a part of them in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--cost", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read is not None:
        print(json.dumps([seen(Path(place)) for place in asked.read]))
        return
    if asked.cost is not None:
        cost(*asked.cost)
        return
    if asked.images is not None:
        against_json(asked.images)
        return
    table(asked.before)


def table(before: Path | None) -> None:
    """Print the table, with what the older tree read if one is given."""
    from fieldguide.photos.forms.known import KNOWN  # which an older tree may not have

    with tempfile.TemporaryDirectory() as made:
        places = {known.name: sample(known.name, Path(made)) for known in KNOWN}
        columns = [[seen(place) for place in places.values()]]
        if before is not None:
            columns.append(read_by(before.resolve(), list(places.values())))
    names = ["form", "sample by", "read", "read before"][: 2 + len(columns)]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for name, *read in zip(places, *columns, strict=True):
        tool = BY_TOOLS[name][0] if name in BY_TOOLS else "hand"
        print(f"| `{name}` | {tool} | {' | '.join(read)} |")


def against_json(images: int) -> None:
    """Print what a form costs beside plain JSON, as ratios within one run."""
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "trap.json"
        file.write_text(json.dumps(trap(images)))
        for _ in range(3):
            found = []
            for way in ("json", "form"):
                command = [sys.executable, __file__, "--cost", way, str(file)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout))
            (plain, held), (seconds, most) = found
            print(f"json.load {plain:.1f} s, {held:.0f} MB; form {seconds:.1f} s, {most:.0f} MB;")
            print(f"  {seconds / plain:.1f} times the time, {most / held:.1f} times the memory")


def trap(images: int) -> dict[str, object]:
    """Return COCO Camera Traps of 500 places, a photo a second in turn, each with a label."""
    start = datetime(2026, 1, 1)
    return {
        "categories": [{"id": n, "name": f"species {n}"} for n in range(50)],
        "images": [
            {
                "id": f"{n:08x}-21b2-11ea-a13a-137349068a90",
                "file_name": f"loc{n % 500}/{n:07d}.jpg",
                "location": f"loc{n % 500}",
                "datetime": str(start + timedelta(seconds=n)),
            }
            for n in range(images)
        ],
        "annotations": [
            {"id": n, "image_id": f"{n:08x}-21b2-11ea-a13a-137349068a90", "category_id": n % 50}
            for n in range(images)
        ],
    }


def cost(way: str, place: str) -> None:
    """Print processor seconds, and the most memory in MB above what the process began with."""
    from fieldguide.photos.forms.known import find

    before = most_held()
    begun = time.process_time()
    if way == "json":
        with Path(place).open(encoding="utf-8") as file:
            found = json.load(file)
    else:
        found = find(Path(place))
    seconds = time.process_time() - begun
    assert found
    print(json.dumps([seconds, most_held() - before]))


def most_held() -> float:
    """Return the most memory in MB that this process has held (Linux only)."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def seen(place: Path) -> str:
    """Return in words what is read from a place, or why it is refused."""
    photos = None
    try:
        with suppress(FieldguideError):  # of boxes, whose label must be chosen
            photos = sources.read(place, label="category")
        photos = photos or sources.read(place)
    except FieldguideError as error:
        said = (
            str(error)
            .partition("\n")[0]
            .replace(f"{place.parent}/", "")
            .translate({ord("|"): "/", ord("`"): "'"})
        )
        return f"refused: {said[:40].strip()}"
    table = photos.table
    classes = len({label for label in table.column("label") if label is not None})
    groups = len({group for group in table.column("group") if group is not None})
    return f"{count(classes, 'class')}, {count(len(table), 'photo')}, {count(groups, 'group')}"


def read_by(tree: Path, places: list[Path]) -> list[str]:
    """Return what another source tree reads, in a process of its own."""
    command = [sys.executable, __file__, "--read", json.dumps([str(place) for place in places])]
    surroundings = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def sample(name: str, made: Path) -> Path:
    """Write the sample of a form, with the photos that it lists; return what to read."""
    folder = made / name
    if name in BY_TOOLS:
        _, below, at = BY_TOOLS[name]
        source = WRITTEN / below
        listed = json.loads((WRITTEN / "datumaro" / "names.json").read_text("utf-8"))
        listed["dwcahandler"] = ["1.jpg", "2.jpg", *(f"HERB-{n}.jpg" for n in (3, 4, 5))]
        listed["label_studio"] = ["a.jpg", "photos/cam one/b+.jpg", "c.jpg", "deep/dé.png"]
        if at:
            folder.mkdir()
            shutil.copy(source / at, folder)
        elif source.is_dir():
            shutil.copytree(source, folder)
        for photo in listed.get(source.name, []):  # those without which it is not read
            if (
                name != "datumaro-imagenet" or photo.count("/") == 1
            ):  # deep ones need --label-column
                draw(folder / photo)
    else:
        contents, at = BY_HAND[name]
        for path, content in contents.items():
            write(folder / path, content)
    from fieldguide.photos.forms.known import find

    place = folder / at
    form = find(place, name)
    assert form is not None, name
    for row in form.rows:
        path = row[form.header.index("path")]
        if "://" not in path and not (form.base / path).exists():
            draw(form.base / path)
    return place


def write(path: Path, content: object) -> None:
    """Write a photo, a text, JSON, or arrays of MATLAB, by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        draw(path)
    elif path.suffix == ".mat":
        from scipy.io import savemat

        assert isinstance(content, dict)
        savemat(path, {key: array(value) for key, value in content.items()})
    else:
        text = content.replace("|", "\n") if isinstance(content, str) else json.dumps(content)
        path.write_text(f"{text}\n", encoding="utf-8")


def array(value: list) -> np.ndarray:
    """Return what MATLAB would save: records of tuples, cells of texts, numbers."""
    if isinstance(value[0], tuple):
        return np.array([value], dtype=[("class", object), ("fname", object)])
    return np.array(value, dtype=object if isinstance(value[0][0], str) else None)


def draw(path: Path) -> None:
    """Draw a photo like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode()) + sum(path.parent.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    if path.suffix.lower() in Image.registered_extensions():
        Image.fromarray(pixels).save(path)
    else:
        Image.fromarray(pixels).save(path, "JPEG")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
