"""The collection: photos by class, sizes, findings of the check, the folds, and a training batch.

Knows nothing of predictions.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import altair as alt
import numpy as np
from jaxtyping import Float, Int, UInt8
from markupsafe import Markup

from fieldguide.errors import DataError, FieldguideError, UnreadablePhoto
from fieldguide.photos import pixels
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.near_copies import FILES_LOOKED_FOR, LOOKED_FOR
from fieldguide.photos.tables import read_cells
from fieldguide.report import pictures
from fieldguide.report.page import figure, fragment, inline
from fieldguide.runs.run import FINDINGS, Run
from fieldguide.seeds import derive_seed
from fieldguide.storage import files
from fieldguide.words import percent

_FINDING_COLUMNS = ("kind", "path", "reason", "hint")

NAMED_BARS = 40  # classes whose bars can carry their names (taste)
LONG_TAIL = 20  # times fewer photos than the largest class: then bars need a logarithm (taste)
LOOKED_AT = 1000  # photos whose size is looked up: about a second, and enough for a histogram
BINS = 24
EXAMPLES = 24  # photos of the batch
EXAMPLE_SIDE = 112
NAMED_FILES = 10  # of one kind of finding


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shorter sides in pixels of some photos, and why others could not be read."""

    shorter_sides: tuple[int, ...]
    asked: int
    unreadable: Mapping[str, int]  # reason: photos


@dataclass(frozen=True, slots=True)
class Found:
    """A kind of finding of the check, its number, and examples: paths with reasons."""

    kind: str
    times: int
    such_as: tuple[tuple[str, str], ...]
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """The photos that a fold tests: their number, groups, classes, and extremes of a class."""

    fold: int
    photos: int
    groups: int
    classes: int  # with at least one photo
    fewest: int  # photos of a class
    most: int


def section(run: Run) -> Markup:
    """Return counts, sizes, findings, folds and a training batch."""
    counts = class_counts(run.catalog)
    sizes = look_at(run)
    found, told = findings(run)
    table = fold_table(run.catalog, run.classes, run.recipe.folds)
    examples, why_none = _examples(run)
    return fragment(
        "collection.html",
        read_as=run.environment.get("collection", ""),
        parts=part_counts(run.catalog),
        counts_chart=_counts_figure(counts),
        thin=counts[-1:-6:-1] if len(counts) > NAMED_BARS else [],
        sizes=sizes,
        sizes_chart=_sizes_figure(sizes, run) if sizes.shorter_sides else "",
        found=found,
        told=told,
        looked_for=FILES_LOOKED_FOR if run.recipe.near_duplicates == "off" else LOOKED_FOR,
        shares=fold_shares(run.catalog, table),
        apart=_apart(run.classes, table),
        examples=examples,
        why_none=why_none,
        recipe=run.recipe,
    )


# --- counts ---------------------------------------------------------------------------------------


def class_counts(catalog: Catalog) -> list[tuple[str, int]]:
    """Return classes with their training photos, the largest first, ties by name."""
    counts = Counter(photo.label or "" for photo in catalog.photos if photo.split == "train")
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def part_counts(catalog: Catalog) -> list[tuple[str, int, int]]:
    """Return each part of the collection that has photos, with its photos and classes."""
    parts = [(split, catalog.part(split)) for split in ("train", "val", "test")]
    return [
        (split, len(part), len({photo.label for photo in part.photos if photo.label is not None}))
        for split, part in parts
        if part.photos
    ]


def _counts_figure(counts: Sequence[tuple[str, int]]) -> Markup:
    most, least = counts[0], counts[-1]
    few = len(counts) <= NAMED_BARS
    return figure(
        counts_chart(counts),
        caption="Training photos of each class"
        + ("" if few else ", the largest class first; point at one for its name")
        + (" (logarithmic)" if _long_tailed(counts) else ""),
        description=f"Training photos of {len(counts)} classes, from {most[1]:,} of {most[0]}"
        f" down to {least[1]:,} of {least[0]}",
    )


def _long_tailed(counts: Sequence[tuple[str, int]]) -> bool:
    return counts[0][1] >= LONG_TAIL * counts[-1][1]


def counts_chart(counts: Sequence[tuple[str, int]]) -> alt.TopLevelMixin:
    """Draw bars with names, or for many classes by rank; points on a log scale for a long tail."""
    rows = [
        {"class": name, "photos": count, "rank": rank}
        for rank, (name, count) in enumerate(counts, start=1)
    ]
    long = _long_tailed(counts)
    scale = alt.Scale(type="log", nice=False, padding=8) if long else alt.Scale(zero=True)
    chart = alt.Chart(inline(rows))
    marked = chart.mark_point(filled=True, size=30) if long else chart.mark_bar()
    tooltip = [alt.Tooltip("class:N"), alt.Tooltip("photos:Q", format=",")]
    if len(counts) <= NAMED_BARS:
        drawn: alt.TopLevelMixin = marked.encode(
            x=alt.X("photos:Q", title="training photos", scale=scale),
            y=alt.Y("class:N", title=None, sort=None, axis=alt.Axis(labelLimit=160)),
            tooltip=tooltip,
        ).properties(height=alt.Step(18))
        return drawn
    ranks = alt.X(
        "rank:O",
        title="class, by number of photos",
        axis=alt.Axis(labels=False, ticks=False),
        scale=alt.Scale(paddingInner=0.1 if len(counts) <= 5 * NAMED_BARS else 0),
    )
    ranked: alt.TopLevelMixin = marked.encode(
        x=ranks, y=alt.Y("photos:Q", title="training photos", scale=scale), tooltip=tooltip
    ).properties(height=240)
    return ranked


# --- sizes ----------------------------------------------------------------------------------------


def look_at(run: Run, most: int = LOOKED_AT) -> Sizes:
    """Measure the shorter sides of all photos, or of `most` drawn at random."""
    photos = run.catalog.photos
    chosen = np.arange(len(photos))
    if len(photos) > most:
        draw = np.random.default_rng(derive_seed(run.recipe.seed, "sizes"))
        chosen = np.sort(draw.choice(len(photos), most, replace=False))
    with ThreadPoolExecutor() as pool:
        found = list(
            pool.map(_shorter_side, [run.catalog.file(photos[n]) for n in chosen.tolist()])
        )
    return Sizes(
        tuple(side for side in found if isinstance(side, int)),
        len(chosen),
        Counter(reason for reason in found if isinstance(reason, str)),
    )


def _shorter_side(path: Path) -> int | str:
    """Return the shorter side in pixels, or why the photo cannot be read."""
    try:
        frame = pixels.decode(pixels.read(path), shorter_side=1, reading=pixels.SHOWN)
    except UnreadablePhoto as error:
        return error.message
    return min(frame.width, frame.height)


def binned(values: Sequence[int], bins: int = BINS) -> list[tuple[int, int, int]]:
    """Return (first, beyond the last, number) of ranges of whole numbers of about equal width."""
    low, high = min(values), max(values) + 1
    edges = np.unique(np.linspace(low, high, min(bins, high - low) + 1).round().astype(np.int64))
    counts, _ = np.histogram(np.array(values), edges)
    return [
        (int(first), int(beyond), int(count))
        for first, beyond, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _sizes_figure(sizes: Sizes, run: Run) -> Markup:
    sides, resize = sizes.shorter_sides, run.recipe.eval_resize
    of = "all" if len(sides) == len(run.catalog) else f"{len(sides):,} of the"
    return figure(
        sizes_chart(sides, resize),
        caption=f"Shorter side of {of} {len(run.catalog):,} photos; dashed: the {resize} pixels"
        " that it is resized to for evaluation",
        description=f"Shorter sides from {min(sides):,} to {max(sides):,} pixels,"
        f" half of them below {int(np.median(sides)):,}",
    )


def sizes_chart(sides: Sequence[int], resize: int) -> alt.TopLevelMixin:
    """Draw a histogram of shorter sides, with a line at the network's own size."""
    rows = [
        {"from": first, "below": beyond, "photos": count}
        for first, beyond, count in binned(sides)
        if count
    ]
    bars = (
        alt.Chart(inline(rows))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("from:Q", bin="binned", title="shorter side in pixels"),
            x2="below:Q",
            y=alt.Y("photos:Q", title="photos"),
            tooltip=["from:Q", "below:Q", alt.Tooltip("photos:Q", format=",")],
        )
    )
    rule = (
        alt.Chart(inline([{"resize": resize}]))
        .mark_rule(strokeDash=[6, 4], size=2)
        .encode(x="resize:Q")
    )
    return alt.layer(bars, rule).properties(height=200)


# --- findings of the check ------------------------------------------------------------------------


def findings(run: Run) -> tuple[list[Found], str]:
    """Return the findings before training, by kind, and why not from the table, if so."""
    place = run.folder / FINDINGS
    if place.is_file():
        try:
            return read_findings(place), ""
        except DataError as error:
            why = f"{FINDINGS} cannot be used: {error.message}"
    else:
        why = f"the run holds no {FINDINGS}"
    return known_findings(run.catalog, run.environment["photos_found"]), why


def read_findings(place: Path) -> list[Found]:
    """Read the table of findings by kind, in its order; raise `DataError` if it is none."""
    table = read_cells(place)
    if table.header != _FINDING_COLUMNS:
        raise DataError(f"its columns are not {', '.join(_FINDING_COLUMNS)}")
    alike: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for _, cells in table.rows:
        alike[cells[0]].append(tuple(map(files.as_written, cells)))
    return [
        Found(
            kind,
            len(rows),
            tuple((path, reason) for _, path, reason, _ in rows[:NAMED_FILES]),
            rows[0][3],
        )
        for kind, rows in alike.items()
    ]


def known_findings(catalog: Catalog, photos_found: int) -> list[Found]:
    """Return findings from the catalog alone: photos left out, copies, groups, leaks."""
    left_out = photos_found - len(catalog)
    found = [Found("left-out", left_out, (), "their names were not kept")] if left_out > 0 else []
    same: dict[str, list[Photo]] = defaultdict(list)
    groups: dict[str, list[Photo]] = defaultdict(list)
    for photo in catalog.photos:
        groups[photo.group or photo.path].append(photo)
        if photo.sha256:
            same[photo.sha256].append(photo)
    copies = [photos for photos in same.values() if len(photos) > 1]
    at_odds = [photos for photos in copies if len({p.label for p in photos if p.label}) > 1]
    kinds = (("same-file", copies), ("same-file-two-labels", at_odds))
    found += [Found(kind, len(photos), _named(photos)) for kind, photos in kinds if photos]
    several = {name: photos for name, photos in groups.items() if len(photos) > 1}
    leaking = [  # with photos of training and of another part
        photos for photos in several.values() if len({p.split == "train" for p in photos}) > 1
    ]
    if several:
        hint = "photos of one group, such as copies, are tested by one fold"
        found.append(Found("groups", len(several), _named(list(several.values())), hint))
    if leaking:
        hint = "scores on these parts would be optimistic: such photos are left out of them"
        found.append(Found("leaks", len(leaking), _named(leaking), hint))
    return found


def _named(clusters: Sequence[Sequence[Photo]]) -> tuple[tuple[str, str], ...]:
    """Return the first photo of each cluster, and a text that names another."""
    return tuple(
        (photos[0].path, f"and {photos[1].path}" + (", …" if len(photos) > 2 else ""))
        for photos in clusters[:NAMED_FILES]
    )


# --- folds ----------------------------------------------------------------------------------------


def fold_table(
    catalog: Catalog, classes: Sequence[str], folds: int
) -> Int[np.ndarray, "folds classes"]:
    """Count the photos of each class that each fold tests."""
    numbers = {name: number for number, name in enumerate(classes)}
    table = np.zeros((folds, len(classes)), dtype=np.int64)
    for photo in catalog.photos:
        if photo.split == "train" and photo.fold is not None and photo.label is not None:
            table[photo.fold, numbers[photo.label]] += 1
    return table


def fold_shares(catalog: Catalog, table: Int[np.ndarray, "folds classes"]) -> list[Share]:
    """Return a row for each fold."""
    groups: dict[int, set[str]] = defaultdict(set)
    for photo in catalog.photos:
        if photo.split == "train" and photo.fold is not None:
            groups[photo.fold].add(photo.group or photo.path)
    return [
        Share(
            fold,
            int(row.sum()),
            len(groups[fold]),
            int(np.count_nonzero(row)),
            int(row.min()),
            int(row.max()),
        )
        for fold, row in enumerate(table)
    ]


def _apart(classes: Sequence[str], table: Int[np.ndarray, "folds classes"]) -> tuple[str, int, int]:
    """Return the class spread least evenly over the folds, its fewest and most photos in a fold."""
    number = int((table.max(axis=0) - table.min(axis=0)).argmax())
    return classes[number], int(table[:, number].min()), int(table[:, number].max())


# --- a training batch -----------------------------------------------------------------------------


def _examples(run: Run) -> tuple[list[tuple[Markup, list[tuple[str, str]]]], str]:
    """Return the first pictures that fold 0 trained on, or why there are none."""
    try:
        images, shares = training_batch(run)
    except FieldguideError as error:
        return [], error.message
    examples = []
    for values, weights in zip(images[:EXAMPLES], shares[:EXAMPLES], strict=True):
        order = [n for n in np.argsort(-weights) if weights[n] > 0]
        named = [(run.classes[n], percent(float(weights[n]), 0)) for n in order]
        text = "a training picture: " + ", ".join(f"{share} {name}" for name, share in named)
        picture = pictures.from_pixels(values, EXAMPLE_SIDE)
        examples.append((pictures.image(picture, text), named))
    return examples, ""


def training_batch(
    run: Run,
) -> tuple[UInt8[np.ndarray, "n size size 3"], Float[np.ndarray, "n classes"]]:
    """Return the first batch of fold 0, replica 1, epoch 1, to the pixel, and its targets.

    Raises `FieldguideError` if photos are gone or the run's start cannot be read.
    """
    import torch  # takes seconds, and so do the modules that need it

    from fieldguide.fitting.jobs import fold_jobs
    from fieldguide.photos.augment import mix_batch

    recipe = run.recipe
    # No GPU is worth starting for one batch.
    job = fold_jobs(run, run.catalog.root, recipe.replace(device="cpu", cache="none"))(0)
    plan = job.plan(0, 0)
    with torch.random.fork_rng(devices=[]):
        at_once = replace(job.loader.pictures, folder=None)  # a page waits for no disk that is away
        batch = next(replace(job.loader, pictures=at_once).batches(plan[:1]))
        torch.default_generator.manual_seed(derive_seed(recipe.seed, "step", 0, 0, 0))
        images, shares = mix_batch(
            batch.images,
            torch.from_numpy(job.targets)[batch.photos],
            normalise=job.normalise,
            classes=job.classes,
            mix=recipe.mix if len(batch.photos) > 1 else "none",
            alpha=recipe.mix_alpha,
        )
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    seen = (255 * (images * std + mean)).round().clamp(0, 255).byte()
    return seen.permute(0, 2, 3, 1).numpy(), shares.numpy()
