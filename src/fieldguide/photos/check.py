"""The faults of a collection of photographs, found before anything is trained on it.

They come from the facts of `inspect` and the copies of `near_copies`. Knows nothing of how folds
are made, of training or of how findings are shown.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from fieldguide.errors import DataError
from fieldguide.photos.catalog import TOO_SMALL, Catalog, Note, Photo, trainable_notes
from fieldguide.photos.crops import parted
from fieldguide.photos.families import families
from fieldguide.photos.folds import given_folds
from fieldguide.photos.inspect import Facts, as_records
from fieldguide.photos.near_copies import Clusters, duplicates, joined_groups
from fieldguide.photos.occasions import shared_events
from fieldguide.recipe import NearDuplicates
from fieldguide.storage import files
from fieldguide.storage.columns import Records
from fieldguide.words import count, quoted

T = TypeVar("T")
Finding = Note  # faults of photos have the same fields as oddities of their names


def usable(
    catalog: Catalog,
    facts: Sequence[Facts],
    *,
    clusters: Clusters | None = None,
    conflicts: Literal["keep", "drop"] = "keep",
    near: NearDuplicates = "group",
) -> tuple[Catalog, Clusters]:
    """Return the readable photos, with their SHA-256 filled in, and what no fold may divide.

    That are the clusters among them and, of crops, those of one photo or of its copies.
    `clusters` are those that `kept_together` found in `catalog`. `conflicts="drop"` also leaves out
    every training photo whose file has another label there too.
    """
    table = as_records(facts)
    clusters = kept_together(catalog, table, near) if clusters is None else clusters
    dropped: set[int] = set()
    for rows in _same_files(table) if conflicts == "drop" else ():
        training = [row for row in rows if catalog.photos[row].split == "train"]
        if len({catalog.photos[row].label for row in training}) > 1:
            dropped.update(training)
    kept = [row for row in _readable(table) if row not in dropped]
    photos = catalog.table.take(kept).with_column("sha256", table.column("sha256").take(kept))
    used = replace(catalog, photos=photos, occasions=None)
    if dropped:  # one that is gone may have linked two that stay
        stay = table.take(kept)
        return used, [*kept_together(used, stay, near), *of_one_photo(stay)]
    # Unreadable photos are in no cluster: all members stay, under other numbers.
    numbers = np.array(kept, dtype=np.int64)
    left = [tuple(np.searchsorted(numbers, cluster).tolist()) for cluster in clusters]
    return used, [*left, *of_one_photo(table.take(kept))]


def kept_together(catalog: Catalog, facts: Sequence[Facts], near: NearDuplicates) -> Clusters:
    """Return clusters of photos that no fold may divide: look-alikes, or copies of a file alone."""
    if near == "group":
        return duplicates(catalog, facts)
    return [tuple(rows) for rows in _same_files(as_records(facts))]


def of_one_photo(facts: Sequence[Facts]) -> Clusters:
    """Return the rows of crops of one photo, or of files with the same bytes."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, photo in enumerate(as_records(facts).column("photo")):
        if photo:
            rows_of[photo].append(row)
    return [tuple(rows) for rows in rows_of.values() if len(rows) > 1]


def _readable(facts: Records[Facts]) -> Iterator[int]:
    return (row for row, problem in enumerate(facts.column("problem")) if not problem)


def _same_files(facts: Records[Facts]) -> Iterable[list[int]]:
    """Return the rows of pictures whose files have the same bytes."""
    first_of: dict[str, int] = {}
    rows_of: dict[int, list[int]] = {}
    hashes = facts.column("sha256")
    for row in np.flatnonzero(facts.column("width")).tolist():
        first = first_of.setdefault(hashes[row], row)
        if first != row:
            rows_of.setdefault(first, [first]).append(row)
    return rows_of.values()


UNEVEN = 10  # times fewer photos than the largest class: then plain accuracy hides a class (taste)


def findings(
    catalog: Catalog,
    facts: Sequence[Facts],
    *,
    folds: int = 5,
    min_size: int = TOO_SMALL,
    clusters: Clusters | None = None,
    near: NearDuplicates = "group",
) -> list[Finding]:
    """Return all findings, fatal ones first.

    Fatal, so that a fit stops: fewer than two classes; a class that `val` has and `train` lacks; a
    class with more than half unreadable; one file under two labels in `train`; a class whose photos
    all lie in one group. Left to the user: unreadable files (they are left out), damaged and small
    pictures, names that are not UTF-8, copies (they stay in one fold), events and families by name
    that folds may divide, look-alikes under two labels, copies of `val` or `test` photos in
    `train`, thin classes, an imbalance beyond 1:10.

    `folds` is the number a fit would use, `min_size` the least shorter side in pixels. `clusters`
    are those of `kept_together`. With `near` of `warn` look-alikes are found and not grouped.
    """
    table = as_records(facts)
    together = kept_together(catalog, table, near) if clusters is None else clusters
    found_clusters = duplicates(catalog, table) if near == "warn" else together
    readable = replace(catalog, photos=catalog.table.take(_readable(table)))
    found = [*catalog.notes, *trainable_notes(readable)]
    found += _file_findings(catalog, table, min_size)
    found += _lost_classes(catalog, table)
    for cluster in found_clusters:
        photos = [catalog.photos[row] for row in cluster]
        hashes = [table[row].sha256 for row in cluster]
        if len({parted(photo.path)[0] for photo in photos}) > 1:  # else crops of one photo
            found += _copies(photos, hashes)
            found += _leaks(photos, hashes)
        found += _conflicts(photos, hashes)
    crops = of_one_photo(table)
    found += _copied_photos(catalog, crops)
    groups = joined_groups(catalog, [*together, *crops])
    found += _divided_groups(catalog, groups)
    found += shared_events(catalog, groups)
    found += _by_name(catalog.table.column("path"), groups)
    found += _class_findings(catalog, table, groups, folds)
    return sorted(found, key=lambda finding: not finding.fatal)


_RANGE_HINT = (
    "--tone percentile, or a range such as 0,4095, keeps more; a value that means no data is named"
    " with --no-data"
)


def _file_findings(catalog: Catalog, facts: Records[Facts], min_size: int) -> Iterator[Finding]:
    names = ("problem", "warning", "oddity", "width", "height")
    each = zip(*(facts.column(name) for name in names), strict=True)
    for row, (problem, warning, oddity, width, height) in enumerate(each):
        if not (problem or warning or oddity) and min(width, height) >= min_size:
            continue  # nearly all: their facts are not gathered
        path, fact = catalog.photos[row].path, facts[row]
        if fact.problem:
            kind = "truncated" if fact.problem == "truncated" else "unreadable"
            yield Finding(kind, path, fact.problem, fact.hint)
        elif fact.warning:
            yield Finding("damaged", path, fact.warning)
        if fact.oddity:
            bands = "band" in fact.oddity
            hint = _RANGE_HINT if "values lie" in fact.oddity else ""
            yield Finding("odd-bands" if bands else "narrow-range", path, fact.oddity, hint)
        if fact.fingerprint and min(fact.width, fact.height) < min_size:
            size = f"{fact.width} × {fact.height} pixels"
            yield Finding("too-small", path, f"{size}, the shorter side is below {min_size}")
    for path in catalog.table.column("path"):
        if not _is_unicode(path):
            message = r"the name is not UTF-8: tables hold its bytes as \xhh"
            yield Finding("odd-name", path, message, "rename it: other programs may not open it")
    frames = enumerate(facts.column("frames"))
    several = [catalog.photos[row].path for row, count in frames if count > 1]
    if several:
        message = f"files with several pictures; the first is used: {quoted(several)}"
        yield Finding("several-frames", several[0], message)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lost_classes(catalog: Catalog, facts: Records[Facts]) -> Iterator[Finding]:
    training = list(_training(catalog, facts.column("problem")))
    total = Counter(label for label, _ in training)
    lost = Counter(label for label, fault in training if fault)
    for label in sorted(lost):
        if 2 * lost[label] > total[label]:
            message = f"class `{label}`: {lost[label]} of {total[label]} photos cannot be read"
            hint = "mend or remove the files, or take the class out"
            yield Finding("class-lost", "", message, hint, fatal=True)


def _training(catalog: Catalog, values: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Yield (label, value) of labelled training photos, given a value for every photo."""
    labels, splits = (catalog.table.column(name) for name in ("label", "split"))
    for label, split, value in zip(labels, splits, values, strict=True):
        if split == "train" and label is not None:
            yield label, value


def _copies(photos: Sequence[Photo], hashes: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding for each photo but the first of each split."""
    first: dict[str, int] = {}
    for row, photo in enumerate(photos):
        other = first.setdefault(photo.split, row)
        if other != row:
            kind, verb = _likeness(hashes[row], hashes[other])
            yield Finding(kind, photo.path, f"{verb} {photos[other].path}")


def _copied_photos(catalog: Catalog, crops: Clusters) -> Iterator[Finding]:
    """Yield a finding for each file of crops but the first of those with the same bytes."""
    for rows in crops:
        first, *others = dict.fromkeys(parted(catalog.photos[row].path)[0] for row in rows)
        for other in others:
            yield Finding("exact-duplicate", other, f"is the same file as {first}")


def _divided_groups(catalog: Catalog, groups: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding if the user's own folds divide a group, or cannot be folds."""
    rows = [row for row, split in enumerate(catalog.table.column("split")) if split == "train"]
    own = [catalog.table.column("fold")[row] for row in rows]
    if any(fold is not None for fold in own):
        try:
            given_folds(own, [groups[row] for row in rows])
        except DataError as error:
            yield Finding("own-folds", "", error.message, error.hint, fatal=True)


def _likeness(one: str, other: str) -> tuple[str, str]:
    same = one == other
    return ("exact-duplicate", "is the same file as") if same else ("near-duplicate", "looks like")


def _leaks(photos: Sequence[Photo], hashes: Sequence[str]) -> Iterator[Finding]:
    training = [row for row, photo in enumerate(photos) if photo.split == "train"]
    for row, photo in enumerate(photos):
        if training and photo.split != "train":
            other = next((t for t in training if hashes[t] == hashes[row]), training[0])
            verb = _likeness(hashes[row], hashes[other])[1]
            message = f"in `{photo.split}`, and {verb} the training photo {photos[other].path}"
            yield Finding("leak", photo.path, message, "scores on this photo flatter the model")


def _conflicts(photos: Sequence[Photo], hashes: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding if labels differ: fatal for one file in the training part."""
    labelled = [(p, h) for p, h in zip(photos, hashes, strict=True) if p.label is not None]
    if len({p.label for p, _ in labelled}) < 2:
        return
    training = {(h, p.label) for p, h in labelled if p.split == "train"}
    fatal = len(training) > len({h for h, _ in training})
    where = ", ".join(f"`{p.label}` ({p.path})" for p, _ in labelled)
    what = "one picture" if fatal else "pictures that look the same"
    hint = "remove the wrong one, or drop all photos in conflict" if fatal else "look at both"
    message = f"{what} under several labels: {where}"
    yield Finding("conflicting-labels", labelled[0][0].path, message, hint, fatal)


def _by_name(paths: Sequence[str], groups: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding if there are families by name that folds may divide."""
    apart = [rows for rows in families(paths) if len({groups[row] for row in rows}) > 1]
    if apart:
        photos = sum(map(len, apart))
        message = (
            f"{count(len(apart), 'family')} of {photos:,} photos by their names, which"
            f" folds may divide, such as {quoted([paths[row] for row in apart[0]])}"
        )
        hint = "copies made before? --group stem keeps each family in one fold"
        yield Finding("families", paths[apart[0][0]], message, hint)


def _class_findings(
    catalog: Catalog, facts: Records[Facts], groups: Sequence[str], folds: int
) -> Iterator[Finding]:
    photos: Counter[str] = Counter()
    groups_of: dict[str, set[str]] = defaultdict(set)
    own_folds = False
    each = zip(facts.column("problem"), groups, catalog.table.column("fold"), strict=True)
    for label, (problem, group, fold) in _training(catalog, each):
        if not problem:
            photos[label] += 1
            own_folds |= fold is not None
            if len(groups_of[label]) < max(folds, 2):  # more are as good as any number
                groups_of[label].add(group)
    if not own_folds:
        for label in sorted(photos):
            yield from _thin(label, photos[label], sorted(groups_of[label]), folds)
    if photos:
        yield from _imbalance(photos)


def _thin(label: str, photos: int, groups: Sequence[str], folds: int) -> Iterator[Finding]:
    if photos == 1:
        message = f"class `{label}` has 1 photo: the fold that tests it could not learn it"
        yield Finding("single-group", "", message, "add photos, or take the class out", fatal=True)
    elif len(groups) == 1:
        message = f"class `{label}`: all {photos} photos lie in one group, that of {groups[0]}"
        hint = (
            "add photos of another specimen or site, or take the class out (--drop-thin-groups);"
            " of one fixed camera, whose photos all look alike: --near-duplicates warn"
        )
        yield Finding("single-group", "", message, hint, fatal=True)
    elif len(groups) < folds:
        few = photos < folds
        where = "" if few else f" in {len(groups)} groups"
        message = f"class `{label}` has {photos} photos{where}, fewer than folds = {folds}"
        hint = f"lower folds to {photos if few else len(groups)} or add photos"
        hint += "" if few else " of other groups"
        yield Finding("thin-class", "", message, hint)


def _imbalance(photos: Counter[str]) -> Iterator[Finding]:
    largest = max(sorted(photos), key=photos.__getitem__)
    smallest = min(sorted(photos), key=photos.__getitem__)
    if photos[largest] > UNEVEN * photos[smallest]:
        message = (
            f"class `{largest}` has {photos[largest]} photos and class `{smallest}`"
            f" {photos[smallest]}: more than {UNEVEN} to 1"
        )
        hint = "judge by macro F1 or balanced accuracy, and weigh the classes"
        yield Finding("imbalance", "", message, hint)


def write_findings(path: Path, found: Iterable[Finding]) -> None:
    """Write findings as CSV (kind, path, reason, hint); no cell is a formula to a spreadsheet."""
    rows = ([files.no_formula(c) for c in (f.kind, f.path, f.message, f.hint)] for f in found)
    files.write_csv(path, ("kind", "path", "reason", "hint"), rows)
