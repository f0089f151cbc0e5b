"""Published sets of fine-grained classes, as their archives unpack.

Labels stay as the set writes them, such as `001.Black_footed_Albatross` or `F/A-18`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fieldguide.errors import DataError, UsageError
from fieldguide.photos.forms.form import LABEL, PATH, SPLIT, Form, Known, table_of
from fieldguide.photos.tables import content_of, decoded
from fieldguide.words import count, quoted


class _Line(NamedTuple):
    """A line of a list: its file and row, its first word, and the rest."""

    where: str
    first: str
    rest: str


def read_cub(place: Path) -> Form | None:
    """Return the photos of CUB-200-2011 or NABirds, with their split for training and testing.

    Lists join by the photo's id, and `classes.txt` gives the labels; one name of several classes
    gets their numbers. NABirds' `hierarchy.txt` and `photographers.txt` become columns `parent` and
    `photographer`. Photos of one occasion are not told. Raises DataError for a photo without class
    or split, a class that is not listed, and an id twice; a label of no photo is left out.

    Source: Wah et al., The Caltech-UCSD Birds-200-2011 Dataset; Van Horn et al., Building a bird
    recognition app and large scale dataset with citizen scientists (2015), and their READMEs.
    """
    if not _holds(place, *(f"{name}.txt" for name in _BIRDS)):
        return None
    files = {name: place / f"{name}.txt" for name in (*_BIRDS, *_MAYBE_OF_BIRDS)}
    lists = {name: _by_first(file) for name, file in files.items() if file.is_file()}
    labels, splits = lists["image_class_labels"], lists.get("train_test_split")
    names = {number: line.rest for number, line in lists["classes"].items()}
    labelled = {line.rest for line in labels.values()}
    texts, rules = distinct({number: its for number, its in names.items() if number in labelled})
    parents = {child: names.get(up.rest, "") for child, up in lists.get("hierarchy", {}).items()}
    people = {each: line.rest for each, line in lists.get("photographers", {}).items()}
    rows = []
    for each, photo in lists["images"].items():
        number = _partner(labels, photo, "image_class_labels.txt")
        row = {PATH: photo.rest, LABEL: _known(texts, number, "classes.txt")}
        if splits is not None:
            row[SPLIT] = _one_of(_partner(splits, photo, "train_test_split.txt"), _SPLITS)
        row |= {"parent": parents.get(number.rest, ""), "photographer": people.get(each, "")}
        rows.append(row)
    return table_of(
        "NABirds" if "hierarchy" in lists else "CUB-200-2011",
        place / "images",
        rows,
        rules=["labels: classes.txt", *rules, *([] if splits else ["no train_test_split.txt"])],
        left_out={"labels of no photo": len(labels.keys() - lists["images"].keys())},
    )


def read_aircraft(place: Path) -> Form | None:
    """Return the photos of FGVC-Aircraft, labelled by variant; family and manufacturer beside it.

    `place` is the folder of `images_variant_train.txt`, or that which holds it as `data`. Raises
    DataError for a photo twice, or one of another split at another level.

    Source: Maji et al., Fine-Grained Visual Classification of Aircraft (2013), and its README.
    """
    if not (base := _first_with(place, ("", "data"), "images_variant_train.txt")):
        return None
    levels: dict[str, dict[str, _Line]] = {}
    splits: dict[str, str] = {}
    for level in ("variant", "family", "manufacturer"):
        lines = levels[level] = {}
        for split in ("train", "val", "test"):
            file = base / f"images_{level}_{split}.txt"
            for each, line in _by_first(file).items() if file.is_file() else ():
                if each in lines or splits.setdefault(each, split) != split:
                    raise DataError(f"{line.where}: photo `{each}` is in another list as well")
                lines[each] = line
    rows = [
        {PATH: f"{each}.jpg", LABEL: line.rest, SPLIT: splits[each]}
        | {level: lines[each].rest for level, lines in levels.items() if each in lines}
        for each, line in levels["variant"].items()
    ]
    rule = "labels: variants, or --label-column family or manufacturer"
    return table_of("FGVC-Aircraft", base / "images", rows, rules=[rule])


def read_pets(place: Path) -> Form | None:
    """Return the photos of Oxford-IIIT Pet, labelled by the breed in their names.

    `trainval.txt` is for training, `test.txt` for testing; without these, `list.txt` has all.
    Column `kind` is cat or dog. Raises DataError for a breed under two numbers, a photo twice.

    Source: Parkhi et al., Cats and Dogs (2012), annotations/README.
    """
    notes = place / "annotations"
    parts = {"train": notes / "trainval.txt", "test": notes / "test.txt"}
    if not parts["train"].is_file():
        parts = {"": notes / "list.txt"}
    if not all(map(Path.is_file, parts.values())) or not (place / "images").is_dir():
        return None
    rows: dict[str, dict[str, str]] = {}
    breeds: dict[str, str] = {}
    for split, file in parts.items():
        for line in _lines(file):
            numbers, breed = line.rest.split(), line.first.rpartition("_")[0]
            if len(numbers) != 3 or not breed or numbers[1] not in _KINDS:
                raise DataError(
                    f"{line.where}: expected `Breed_NUMBER CLASS KIND BREED`, KIND 1 (cat) or 2"
                    f" (dog), found `{line.first} {line.rest}`"
                )
            if breeds.setdefault(numbers[0], breed) != breed:
                other = breeds[numbers[0]]
                raise DataError(f"{line.where}: class {numbers[0]} is `{other}` and `{breed}`")
            if line.first in rows:
                raise DataError(f"{line.where}: photo `{line.first}` stands there twice")
            kind = _KINDS[numbers[1]]
            rows[line.first] = {PATH: f"{line.first}.jpg", LABEL: breed, SPLIT: split, "kind": kind}
    rule = "labels: file names without their numbers"
    return table_of("Oxford-IIIT Pet", place / "images", list(rows.values()), rules=[rule])


def read_food(place: Path) -> Form | None:
    """Return the photos of Food-101, labelled by their folders; `title` has names as for people.

    Raises DataError for a photo in both lists, and a class that `classes.txt` lacks.

    Source: Bossard et al., Food-101, Mining Discriminative Components with Random Forests (2014).
    """
    meta = place / "meta"
    if not _holds(meta, "train.txt", "test.txt", "classes.txt"):
        return None
    names = [line for _, line in _plain_lines(meta / "classes.txt")]
    labels = meta / "labels.txt"
    said = [line for _, line in _plain_lines(labels)] if labels.is_file() else [""] * len(names)
    if len(said) != len(names):
        raise DataError(f"labels.txt: {count(len(said), 'line')}, classes.txt has {len(names)}")
    titles = dict(zip(names, said, strict=True))
    rows: dict[str, dict[str, str]] = {}
    for split in ("train", "test"):
        for where, photo in _plain_lines(meta / f"{split}.txt"):
            name = photo.partition("/")[0]
            if name not in titles or photo in rows:
                why = "is in the lists twice" if photo in rows else "is of no class in classes.txt"
                raise DataError(f"{where}: `{photo}` {why}")
            rows[photo] = {PATH: f"{photo}.jpg", LABEL: name, SPLIT: split, "title": titles[name]}
    rule = "labels: folders, as in classes.txt"
    return table_of("Food-101", place / "images", list(rows.values()), rules=[rule])


def read_dogs(place: Path) -> Form | None:
    """Return the photos of Stanford Dogs by `train_list.mat` and `test_list.mat`; needs scipy.

    Labels are the folders, such as `n02085620-Chihuahua`. The lists lie beside `Images` or in
    `lists`. Raises DataError for a photo in both.

    Source: Khosla et al., Novel Dataset for Fine-Grained Image Categorization (2011).
    """
    lists = _first_with(place, ("", "lists"), "train_list.mat", "test_list.mat")
    if not lists or not (place / "Images").is_dir():
        return None
    rows: dict[str, dict[str, str]] = {}
    for split in ("train", "test"):
        file = lists / f"{split}_list.mat"
        for number, photo in enumerate(_mat(file, "file_list"), start=1):
            where = f"{file.name}, file_list({number})"
            folder, cut, _ = str(photo).partition("/")
            if not cut or photo in rows:
                why = "stands there twice" if cut else "is not `folder/photo`"
                raise DataError(f"{where}: `{photo}` {why}")
            rows[photo] = {PATH: photo, LABEL: folder, SPLIT: split}
    rule = "labels: folders"
    return table_of("Stanford Dogs", place / "Images", list(rows.values()), rules=[rule])


def read_flowers(place: Path) -> Form | None:
    """Return the photos of Oxford Flowers 102 by `imagelabels.mat` and `setid.mat`; needs scipy.

    Labels are numbers from 1, as the set names no class. Raises DataError for a photo in two parts
    or in none.

    Source: Nilsback and Zisserman, Automated flower classification over a large number of classes
    (2008); the parts are called `trnid`, `valid` and `tstid`.
    """
    if not _holds(place, "imagelabels.mat", "setid.mat") or not (place / "jpg").is_dir():
        return None
    labels = _mat(place / "imagelabels.mat", "labels")
    splits: dict[int, str] = {}
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        for photo in _mat(place / "setid.mat", key):
            if photo in splits or photo not in range(1, len(labels) + 1):
                why = "is in two parts" if photo in splits else f"is not of 1 to {len(labels)}"
                raise DataError(f"setid.mat, {key}: photo `{photo}` {why}")
            splits[photo] = split
    rows = [
        {PATH: f"image_{photo:05}.jpg", LABEL: f"{label:.0f}", SPLIT: splits.get(photo, "")}
        for photo, label in enumerate(labels, start=1)
    ]
    if missing := [row[PATH] for row in rows if not row[SPLIT]]:
        raise DataError(f"setid.mat: photos in no part: {quoted(missing)}")
    rule = "labels: numbers of classes, which have no names in the set"
    return table_of("Flowers 102", place / "jpg", rows, rules=[rule])


def read_cars(place: Path) -> Form | None:
    """Return the photos of Stanford Cars, labelled by `devkit/cars_meta.mat`; needs scipy.

    `cars_test_annos_withlabels.mat` beside `devkit` or in it has the labels for testing; without
    it the photos for testing are told of and not read. Raises DataError for a class that the names
    lack and a photo twice.

    Source: Krause et al., 3D Object Representations for Fine-Grained Categorization (2013), whose
    numbers of classes count from 1.
    """
    kit = place / "devkit"
    if not _holds(kit, "cars_meta.mat", "cars_train_annos.mat"):
        return None
    names = _mat(kit / "cars_meta.mat", "class_names")
    with_labels = "cars_test_annos_withlabels.mat"
    tested = _first_with(place, ("", "devkit"), with_labels)
    files = {"train": kit / "cars_train_annos.mat"} | (
        {"test": tested / with_labels} if tested else {}
    )
    rows: dict[str, dict[str, str]] = {}
    for split, file in files.items():
        for number, car in enumerate(_mat(file, "annotations"), start=1):
            where = f"{file.name}, annotations({number})"
            try:
                path, its = f"cars_{split}/{car['fname']}", int(car["class"])
            except (ValueError, IndexError, TypeError) as error:
                raise DataError(f"{where}: expected fields `fname` and `class`") from error
            if path in rows or not 1 <= its <= len(names):
                why = f"{path} again" if path in rows else f"class {its} of {len(names)}"
                raise DataError(f"{where}: {why}")
            rows[path] = {PATH: path, LABEL: str(names[its - 1]), SPLIT: split}
    rules = [
        "labels: cars_meta.mat",
        *([] if tested else [f"no {with_labels}: cars_test not read"]),
    ]
    return table_of("Stanford Cars", place, list(rows.values()), rules=rules)


_BIRDS = ("images", "image_class_labels", "classes")
_MAYBE_OF_BIRDS = ("train_test_split", "hierarchy", "photographers")
_SPLITS = {"1": "train", "0": "test"}
_KINDS = {"1": "cat", "2": "dog"}


def _holds(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _first_with(place: Path, folders: tuple[str, ...], *names: str) -> Path | None:
    """Return the first of these folders in a place that holds files of all names."""
    return next((place / each for each in folders if _holds(place / each, *names)), None)


def _plain_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield file and row in words, and the line, of lines that are not blank or comments."""
    text = decoded(content_of(file), file.name)
    for number, line in enumerate(text.split("\n"), start=1):
        if (line := line.strip()) and not line.startswith("#"):
            yield f"{file.name}, row {number}", line


def _lines(file: Path) -> Iterator[_Line]:
    """Yield the lines of a list of first words and what they have; DataError for nothing."""
    for where, line in _plain_lines(file):
        first, *rest = line.split(maxsplit=1)
        if not rest:
            raise DataError(f"{where}: expected two words or more, found `{line}`")
        yield _Line(where, first, rest[0])


def _by_first(file: Path) -> dict[str, _Line]:
    """Return the lines of a list by their first words; DataError if two have the same."""
    found: dict[str, _Line] = {}
    for line in _lines(file):
        if line.first in found:
            raise DataError(f"{line.where}: `{line.first}` stands there twice")
        found[line.first] = line
    return found


def _partner(lines: Mapping[str, _Line], photo: _Line, file: str) -> _Line:
    if photo.first not in lines:
        raise DataError(f"{photo.where}: photo `{photo.first}` is not in {file}")
    return lines[photo.first]


def _known(names: Mapping[str, str], line: _Line, file: str) -> str:
    if line.rest not in names:
        raise DataError(f"{line.where}: class `{line.rest}` is not in {file}")
    return names[line.rest]


def _one_of(line: _Line, meanings: Mapping[str, str]) -> str:
    if line.rest not in meanings:
        raise DataError(f"{line.where}: expected 0 or 1, found `{line.rest}`")
    return meanings[line.rest]


def distinct(names: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the names of classes, with the id where several have one name, and that in words."""
    numbers = Counter(names.values())
    several = [name for name, number in numbers.items() if number > 1]
    labels = {
        each: f"{name} ({each})" if numbers[name] > 1 else name for each, name in names.items()
    }
    return labels, [f"names of several classes get their ids: {quoted(several)}"] if several else []


def _mat(file: Path, key: str) -> list[Any]:
    """Return the values of an array in a MATLAB file as a flat list; UsageError without scipy."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UsageError(
            f"`{file}` needs scipy", hint="pip install scipy, or 'fieldguide[mat]'"
        ) from error
    try:
        found = loadmat(file, variable_names=[key], squeeze_me=True)
    except Exception as error:  # scipy has no common class for what damage leads to
        raise DataError(f"{file.name}: not a MATLAB file of version 5 to 7: {error}") from error
    if key not in found:
        raise DataError(f"{file.name}: expected an array `{key}`")
    return list(np.atleast_1d(found[key]).ravel())


FORMS = (
    Known("cub", read_cub),
    Known("fgvc-aircraft", read_aircraft),
    Known("oxford-pets", read_pets),
    Known("food-101", read_food),
    Known("stanford-dogs", read_dogs),
    Known("flowers-102", read_flowers),
    Known("stanford-cars", read_cars),
)
