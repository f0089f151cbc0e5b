"""A finished run that a new one goes on from, of a collection that has changed since.

Photos that it knew keep their folds, and each fold starts from the same fold's weights, which never
saw the photos that the fold tests. Knows nothing of how folds are trained.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fieldguide import recipe as recipes
from fieldguide.errors import DataError, UsageError
from fieldguide.fitting.progress import Watcher
from fieldguide.merge import Weights
from fieldguide.photos.catalog import Catalog, Photo, Split
from fieldguide.photos.near_copies import Clusters, joined_groups
from fieldguide.predict.card import CARD
from fieldguide.predict.classifier import Classifier, as_tensors
from fieldguide.recipe import Recipe
from fieldguide.runs import run as runs
from fieldguide.runs.run import Run
from fieldguide.storage import files
from fieldguide.words import count, listed, quoted

Place = tuple[Split, int | None]  # a part of the collection, and the fold that tests it there

SAME = ("folds", "backbone", "head", "weights")  # settings that weights and folds depend on


@dataclass(frozen=True, eq=False)
class Older:
    """A finished run, checked, that a new one goes on from."""

    run: Run

    @cached_property
    def photos(self) -> list[Photo]:
        """The photos of which it may be said what has seen them: its own, and of runs before it.

        With the groups that the user gave. Those without a label judged nothing: they are new.
        """
        given = self.run.given
        columns = (given.table.column(name) for name in ("path", "group")) if given else ((), ())
        group_of = dict(zip(*columns, strict=True))
        own = [
            Photo(p.path, p.label, group_of.get(p.path), p.split, p.fold, p.sha256)
            for p in self.run.catalog.photos
            if p.label is not None
        ]
        known = {photo.sha256 for photo in own}
        return own + [photo for photo in self.run.older_photos if photo.sha256 not in known]

    def first_backbone(self) -> Weights:
        """Return the backbone that all folds of the run began with, by its own names."""
        first = as_tensors(self.run.weights())
        start = "backbone."
        return {n.removeprefix(start): w for n, w in first.items() if n.startswith(start)}

    def matched(self, catalog: Catalog) -> list[Photo | None]:
        """Return what the run knew of each photo: by content, or by path if that has changed."""
        by_content, by_path = defaultdict[str, list[Photo]](list), dict[str, Photo]()
        here = set(catalog.table.column("sha256"))
        for old in self.photos:
            by_content[old.sha256].append(old)
            if old.sha256 not in here:
                by_path.setdefault(old.path, old)

        def match(photo: Photo) -> Photo | None:
            # Of files that lie in two parts, the same part counts, else that which is trained on.
            if photo.label is None:  # it judges nothing and is not trained on
                return None
            order = {"train": 1, photo.split: 0}
            same = by_content.get(photo.sha256, ())
            best = min(same, key=lambda old: order.get(old.split, 2), default=None)
            return best or by_path.get(photo.path)

        return [match(photo) for photo in catalog.photos]

    def facts(self, catalog: Catalog) -> dict[str, Any]:
        """Return what has changed since, as a new run of these photos keeps it."""
        matches = self.matched(catalog)
        pairs = [
            (old, new) for old, new in zip(matches, catalog.photos, strict=True) if old is not None
        ]
        here = {old.sha256 for old, _ in pairs}
        before, now = set(self.run.classes), set(catalog.classes)
        return {
            "name": self.run.folder.resolve().name,
            "manifest_sha256": files.sha256(self.run.folder / files.MANIFEST),
            "known": len(pairs),
            "new": sum(p.label is not None for p in catalog.photos) - len(pairs),
            "gone": sum(p.sha256 not in here for p in self.run.catalog.photos if p.label),
            "renamed": sum(old.path != new.path for old, new in pairs),
            "changed": sum(old.sha256 != new.sha256 for old, new in pairs),
            "relabelled": sum(old.label != new.label for old, new in pairs),
            "new_classes": sorted(now - before),
            "lost_classes": sorted(before - now),
        }


def opened(folder: str | Path, catalog: Catalog, recipe: Recipe) -> Older:
    """Return the older run in a folder, finished and unbroken, for a run of these settings.

    Raises `UsageError` for anything else, for a run whose epochs its test photos chose, and for
    settings or photos that its folds and weights do not fit.
    """
    run = require_run(Path(folder))
    run.require_complete()
    if run.recipe.stop == "fold":
        raise UsageError(
            f"`{folder}` chose each fold's epoch by the photos that the fold tests"
            " (`stop` = 'fold'): they would judge what goes on from the weights that they chose",
            hint="begin a run with `stop` = none or inner from the first weights",
        )
    different = [name for name in SAME if getattr(recipe, name) != getattr(run.recipe, name)]
    if different:
        said = [
            f"`{n}` is {getattr(run.recipe, n)!r} there, {getattr(recipe, n)!r} now"
            for n in different
        ]
        raise UsageError(
            f"what goes on from `{folder}` has its folds and its network: {'; '.join(said)}",
            hint="leave these settings out, or begin a run without an older one",
        )
    if run.crop != catalog.crop:
        raise UsageError(
            f"`{folder}` was trained on {run.crop or 'whole photos'}, these are"
            f" {catalog.crop or 'whole photos'}",
            hint="give --crop and --boxes as they were",
        )
    files.verify(run.folder)
    return Older(run)


def changes(facts: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return in sentences what a run goes on from, and what has changed since."""
    more = [f"{facts[name]:,} {name}" for name in ("renamed", "changed", "relabelled")]
    more = [each for each in more if not each.startswith("0 ")]
    said = [f"{count(facts['known'], 'photo')} of it" + (f" ({', '.join(more)})" if more else "")]
    said += [f"{facts[name]:,} {name}" for name in ("new", "gone") if facts[name]]
    found = [f"goes on from `{facts['name']}`: {', '.join(said)}"]
    if facts["gone"]:
        found.append("a new photo that is a copy of one that is gone cannot be recognised")
    for what, names in (("new", facts["new_classes"]), ("left out", facts["lost_classes"])):
        found += [f"classes that are {what}: {quoted(names)}"] if names else []
    if recipe.stop == "inner":
        found.append(
            "`stop` = 'inner' chooses epochs by photos that the folds' starts have seen: early ones"
            " look better than they are"
        )
    return found


def require_same_start(run: Run, folder: str | Path) -> None:
    """Raise `UsageError` for a run that did not begin from this older one; that may be gone."""
    older = run.environment.get("older")
    manifest = Path(folder) / files.MANIFEST
    if not older or (manifest.is_file() and files.sha256(manifest) != older["manifest_sha256"]):
        there = f"goes on from another run, `{older['name']}`" if older else "goes on from no run"
        raise UsageError(
            f"`{run.folder}` was begun before and {there}, not from `{folder}`",
            hint="name a new folder with --out",
        )


def settled(
    older: Older, catalog: Catalog, clusters: Clusters, watcher: Watcher
) -> tuple[Catalog, dict[str, int]]:
    """Return the photos with groups, old ones in their parts; and the folds of some, by path.

    Old photos keep their part and fold; what shares a group with them goes there too. A new photo
    that ties photos of several folds together is left out, and told. `clusters` are rows that no
    fold may divide. Raises `DataError` where no photo is known and where groups are others.
    """
    olds = older.matched(catalog)
    _refuse_other_groups(older, catalog, olds)
    rows = _Rows.of(older, catalog, olds)
    tied = rows.tied([*clusters, *rows.user_groups])
    kept, clusters = _without(tied, len(catalog), clusters)
    out = [catalog.photos[row].path for row in sorted(tied)]
    rows = rows.take(kept)
    clusters = rows.parted(clusters)
    tied = rows.tied(_alike(joined_groups(rows.catalog, clusters)))  # by several new photos
    kept, clusters = _without(tied, len(kept), clusters)
    out += [rows.catalog.photos[row].path for row in sorted(tied)]
    if out:
        watcher.notice(
            f"left out, as they belong together with photos of several folds: {quoted(out)}"
        )
    rows = rows.take(kept)
    return rows.settled(joined_groups(rows.catalog, clusters))


@dataclass(frozen=True, eq=False)
class _Rows:
    """The photos of a catalogue, what the older run knew of each, and the places that they want."""

    catalog: Catalog
    olds: list[Photo | None]
    wanted: list[set[Place]]

    @staticmethod
    def of(older: Older, catalog: Catalog, olds: list[Photo | None]) -> "_Rows":
        if not any(olds):
            raise DataError(
                f"no photo of `{older.run.folder}` is among these",
                hint="begin a run without an older one; its folder of photos may be another",
            )
        fold_of_group = {p.group: p.fold for p in older.photos if p.group and p.split == "train"}
        wanted: list[set[Place]] = []
        for photo, old in zip(catalog.photos, olds, strict=True):
            if old is not None:  # of parts of the user's own nothing follows for others
                free = old.split == photo.split != "train"
                wanted.append(set() if free else {(old.split, old.fold)})
            else:
                inherited = fold_of_group.get(photo.group or "")
                free = inherited is None or photo.split != "train"
                wanted.append(set() if free else {("train", inherited)})
        return _Rows(catalog, olds, wanted)

    @property
    def user_groups(self) -> list[list[int]]:
        return _alike(self.catalog.table.column("group"))

    def take(self, kept: Collection[int]) -> "_Rows":
        return _Rows(
            self.catalog.of(self.catalog.table.take(kept)),
            [self.olds[row] for row in kept],
            [self.wanted[row] for row in kept],
        )

    def tied(self, sets: Iterable[Collection[int]]) -> set[int]:
        """Return new training photos that share sets of rows with photos of several places."""
        found = [set(places) for places in self.wanted]
        for rows in sets:
            places = set[Place]().union(*(self.wanted[row] for row in rows))
            for row in rows:
                found[row] |= places
        splits = self.catalog.table.column("split")
        return {
            row
            for row, places in enumerate(found)
            if len(places) > 1 and self.olds[row] is None and splits[row] == "train"
        }

    def parted(self, clusters: Clusters) -> Clusters:
        """Return the clusters, those of photos of several places in a part for each of these."""
        found: list[list[int]] = []
        for rows in clusters:
            parts = defaultdict[Place | None, list[int]](list)
            for row in rows:
                parts[min(self.wanted[row], key=str, default=None)].append(row)
            free = parts.pop(None, [])
            first, *others = [*parts.values()] or [[]]
            found += [free + first, *others]
        return [tuple(rows) for rows in found if len(rows) > 1]

    def settled(self, names: Iterable[str]) -> tuple[Catalog, dict[str, int]]:
        """Return the catalogue with these groups, of which none wants two places, and its folds."""
        groups, table = list(names), self.catalog.table
        splits, folds, paths = (list(table.column(n)) for n in ("split", "fold", "path"))
        fixed: dict[str, int] = {}
        for rows in _alike(groups):
            places = set[Place]().union(*(self.wanted[row] for row in rows))
            for row in rows if places else ():
                place = min(self.wanted[row] or places, key=str)
                if len(places) > 1:  # tied by photos of parts that are not trained on
                    groups[row] = min(paths[r] for r in rows if place in self.wanted[r])
                if self.wanted[row] or (self.olds[row] is None and splits[row] == "train"):
                    splits[row], fold = place
                    if fold is None:
                        folds[row] = None
                    else:
                        fixed[paths[row]] = fold
        for name, values in (("group", groups), ("split", splits), ("fold", folds)):
            table = table.with_column(name, values)
        return self.catalog.of(table), fixed


def _alike(names: Iterable[str | None]) -> list[list[int]]:
    """Return the rows of each name that is one, of single rows too."""
    rows = defaultdict[str, list[int]](list)
    for row, name in enumerate(names):
        if name is not None:
            rows[name].append(row)
    return list(rows.values())


def _without(out: Collection[int], total: int, clusters: Clusters) -> tuple[list[int], Clusters]:
    """Return the rows that stay, and the clusters of them by their new numbers."""
    kept = [row for row in range(total) if row not in out]
    number = {row: new for new, row in enumerate(kept)}
    left = [tuple(number[row] for row in rows if row in number) for rows in clusters]
    return kept, [rows for rows in left if len(rows) > 1]


def _refuse_other_groups(older: Older, catalog: Catalog, olds: Sequence[Photo | None]) -> None:
    """Raise `DataError` where the older run kept other groups in one fold than are given now."""
    hint = "give --group and the table as they were, or begin a run without an older one"
    groups = catalog.table.column("group")
    if any(photo.group for photo in older.photos) and not any(groups):
        raise DataError(f"`{older.run.folder}` has photos in groups, these have none", hint=hint)
    for rows in _alike(groups):
        folds = sorted({old.fold for row in rows if (old := olds[row]) and old.fold is not None})
        if len(folds) > 1:
            raise DataError(
                f"group `{groups[rows[0]]}` has photos in folds {listed(list(map(str, folds)))}"
                f" of `{older.run.folder}`, which was begun with other groups",
                hint=hint,
            )


# --- one network for all folds --------------------------------------------------------------------


def _run_of(place: Path) -> Path | None:
    """Return the run's folder that a file or folder lies in, if it does."""
    return next((up for up in place.parents if (up / runs.SETUP).is_file()), None)


def require_run(place: Path) -> Run:
    """Return the run in a folder; raise `UsageError` for another thing, such as one network."""
    if (place / runs.SETUP).is_file():
        return Run(place)
    run = _run_of(place.resolve())
    if run or place.is_file() or (place / CARD).is_file():
        raise UsageError(
            f"`{place}` is one network for all folds, and was trained on photos that they test:"
            " each fold must start from weights that never saw its test photos",
            hint=f"name the run: {run}" if run else "name the folder of a finished run",
        )
    return Run(place)  # raises


def require_unseen(weights: str, catalog: Catalog, tell: Callable[[str], None]) -> None:
    """Raise `UsageError` for weights of a run that were trained on photos of the catalogue.

    `tell` is called where that cannot be known.
    """
    if weights in {"pretrained", "none"}:
        return
    file = recipes.weights_file(weights)[0].resolve()
    training = {p.sha256 for p in catalog.photos if p.split == "train"}
    folder, seen = _run_of(file), 0
    if folder and file != folder / "start.safetensors":
        older = Older(Run(folder))
        own = file.parent.name if file.parent.parent == folder / "folds" else ""
        trained = {p.sha256 for p in older.photos if p.split == "train" and str(p.fold) != own}
        seen = len(trained & training)
    elif (file.parent / CARD).is_file():
        known = Classifier.load(file.parent).card.provenance.get("training_photos_sha256")
        same = known == hashlib.sha256("".join(sorted(training)).encode()).hexdigest()
        seen = len(training) if same else 0
    if seen:
        raise UsageError(
            f"`weights` = {weights!r} were trained on {count(seen, 'photo')} of these: no fold"
            " could be judged by photos that its start has not seen",
            hint="start each fold from the same fold of a run: --from RUN",
        )
    if not folder and _is_own(file):
        tell(
            "the weights are of a network that was trained before: if it has seen some of these"
            " photos, scores flatter it"
        )


def _is_own(file: Path) -> bool:
    """Return whether a file holds a network with our names."""
    try:
        with safe_open(file, framework="np") as content:
            names = {name.partition(".")[0] for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return False
    return names == {"backbone", "head"}
