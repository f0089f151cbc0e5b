"""From a catalog to the photos that a fit trains on: checked, grouped, and put into folds.

Knows nothing of networks.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from fieldguide.errors import DataError
from fieldguide.fitting.older import Older, settled
from fieldguide.fitting.progress import Watcher
from fieldguide.photos import check
from fieldguide.photos.catalog import Catalog, group_names, require_trainable
from fieldguide.photos.folds import Fold, given_folds, inner_split, make_folds
from fieldguide.photos.inspect import inspect
from fieldguide.photos.near_copies import joined_groups
from fieldguide.photos.pixels import Reading
from fieldguide.recipe import Recipe
from fieldguide.seeds import derive_seed
from fieldguide.words import quoted

# Findings of the check that leave a photo out.
UNREADABLE = frozenset({"unreadable", "truncated"})


def prepare(
    catalog: Catalog, recipe: Recipe, watcher: Watcher, older: Older | None = None
) -> Catalog:
    """The photos that can be read, with content hash, group and fold.

    Those that an `older` run knew are where they were there. Raises `DataError` where they cannot
    be trained on.
    """
    catalog = _without_thin_classes(catalog, recipe.min_per_class, watcher)
    require_trainable(catalog)
    watcher.on_checking(len(catalog))
    facts = inspect(catalog, reading=Reading.of(recipe), progress=watcher.on_check)
    near = recipe.near_duplicates
    clusters = check.kept_together(catalog, facts, near)
    found = check.findings(catalog, facts, folds=recipe.folds, clusters=clusters, near=near)
    _refuse_fatal(found, recipe)
    watcher.on_findings(found)
    _tell(found, watcher)
    conflicts: Literal["keep", "drop"] = "drop" if recipe.conflicts == "drop" else "keep"
    used, left = check.usable(catalog, facts, clusters=clusters, conflicts=conflicts, near=near)
    del facts  # most of what a check takes
    fixed: dict[str, int] = {}
    if older is None:
        used = used.of(used.table.with_column("group", joined_groups(used, left)))
    else:
        used, fixed = settled(older, used, left, watcher)
    if recipe.drop_thin_groups:
        used = _without_single_groups(used, watcher)
    used = _without_thin_classes(used, recipe.min_per_class, watcher)
    require_trainable(used)
    return _with_folds(_with_holdout(used, recipe, fixed), recipe, watcher, fixed)


def _refuse_fatal(found: Sequence[check.Finding], recipe: Recipe) -> None:
    forgiven = {"conflicting-labels"} if recipe.conflicts == "drop" else set()
    forgiven |= {"single-group"} if recipe.drop_thin_groups else set()
    fatal = [finding for finding in found if finding.fatal and finding.kind not in forgiven]
    if fatal:
        lines = [f"  {f.path}: {f.message}" if f.path else f"  {f.message}" for f in fatal[:5]]
        raise DataError(
            f"these photos cannot be trained on, for {len(fatal)} reasons:\n" + "\n".join(lines),
            hint=fatal[0].hint or "`fieldguide check` lists everything that was found",
        )


def _tell(found: Sequence[check.Finding], watcher: Watcher) -> None:
    """What was found: files that cannot be read by name, the rest by number."""
    unreadable = [finding for finding in found if finding.kind in UNREADABLE]
    for finding in unreadable[:5]:
        watcher.notice(f"left out: {finding.path}: {finding.message}")
    if len(unreadable) > 5:
        watcher.notice(f"left out: {len(unreadable) - 5} more")
    counts = Counter(finding.kind for finding in found if finding.kind not in UNREADABLE)
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        watcher.notice(f"found: {kinds}; `fieldguide check` tells more")
    for finding in found:
        if finding.kind == "families":
            watcher.notice(f"{finding.message}; {finding.hint}")


def _without_single_groups(catalog: Catalog, watcher: Watcher) -> Catalog:
    """Return the catalog without classes whose training photos all lie in one group."""
    groups: dict[str | None, set[str]] = defaultdict(set)
    each = zip(catalog.photos, group_names(catalog.table), strict=True)
    for photo, group in each:
        if photo.split == "train" and photo.label is not None:
            groups[photo.label].add(group)
    thin = sorted(label for label, found in groups.items() if label and len(found) == 1)
    if thin:
        watcher.notice(f"left out, as their photos lie in one group: {quoted(thin)}")
    return _without(catalog, {*thin})


def _without(catalog: Catalog, thin: Container[str | None]) -> Catalog:
    labels = enumerate(catalog.table.column("label"))
    kept = (row for row, label in labels if label is None or label not in thin)
    return replace(catalog, photos=catalog.table.take(kept))


def _without_thin_classes(catalog: Catalog, least: int, watcher: Watcher) -> Catalog:
    counts = Counter(photo.label for photo in catalog.photos if photo.split == "train")
    thin = {label for label, count in counts.items() if count < least}
    if thin:
        watcher.notice(f"{len(thin)} classes with fewer than {least} photos are left out")
    return _without(catalog, thin)


def _with_holdout(catalog: Catalog, recipe: Recipe, fixed: Mapping[str, int]) -> Catalog:
    """The catalog with a share of its training photos moved to the `val` part, groups whole.

    Photos with a fixed fold stay; of few others, none may be left to move.
    """
    table = catalog.table
    splits, paths = list(table.column("split")), table.column("path")
    free = [row for row, s in enumerate(splits) if s == "train" and paths[row] not in fixed]
    if not (recipe.holdout and free):
        return catalog
    try:
        _, aside = inner_split(
            [label or "" for label in table.column("label")],
            paths,
            group_names(table),
            np.array(free),
            share=recipe.holdout,
            seed=derive_seed(recipe.seed, "holdout"),
        )
    except DataError:
        if fixed:
            return catalog
        raise
    folds = list(table.column("fold"))
    for row in aside.tolist():
        splits[row], folds[row] = "val", None
    moved = table.with_column("split", splits).with_column("fold", folds)
    return catalog.of(moved)


def _with_folds(
    catalog: Catalog, recipe: Recipe, watcher: Watcher, fixed: Mapping[str, int]
) -> Catalog:
    """The catalog with the fold that tests it for each training photo, some of them `fixed`."""
    table = catalog.table
    rows = [row for row, split in enumerate(table.column("split")) if split == "train"]
    training = table.take(rows)
    labels = [label or "" for label in training.column("label")]
    groups = group_names(training)
    if has_folds(catalog):
        made = given_folds(list(training.column("fold")), groups, labels=labels)
        _refuse_other_folds(training.column("path"), made, fixed, recipe.folds)
        watcher.notice(f"the table's own {len(made)} folds are used")
    else:
        keys = training.column("path")
        known = [fixed.get(key) for key in keys] if fixed else ()
        made = make_folds(labels, keys, groups, folds=recipe.folds, seed=recipe.seed, fixed=known)
    fold_of: list[int | None] = [None] * len(table)
    for fold in made:
        for position in fold.test.tolist():
            fold_of[rows[position]] = fold.index
    return catalog.of(table.with_column("fold", fold_of))


def _refuse_other_folds(
    paths: Sequence[str], made: Sequence[Fold], fixed: Mapping[str, int], folds: int
) -> None:
    """Raise `DataError` where a table's own folds are others than those that are fixed."""
    if fixed and len(made) != folds:
        raise DataError(
            f"the table has {len(made)} folds, the older run {folds}",
            hint="leave the fold column out, or give new photos one of the older run's folds",
        )
    for fold in made:
        for path in (paths[row] for row in fold.test.tolist()):
            if fixed.get(path, fold.index) != fold.index:
                raise DataError(
                    f"the table tests `{path}` in fold {fold.index}, the older run in fold"
                    f" {fixed[path]}",
                    hint="leave the fold column out, or give old photos the folds that they had",
                )


def has_folds(catalog: Catalog) -> bool:
    """Return whether a table brought folds of its own."""
    return any(fold is not None for fold in catalog.table.column("fold"))
