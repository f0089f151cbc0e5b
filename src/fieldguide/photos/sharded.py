"""The catalog of a folder of shards: the catalog that was packed.

Knows nothing of pixels, nor of how photos are packed.
"""

from pathlib import Path

from fieldguide.errors import DataError
from fieldguide.photos.catalog import (
    EXTENSIONS,
    SPLIT_FOLDERS,
    SPLITS,
    USUAL_NAMES,
    Catalog,
    Note,
    Photo,
    in_columns,
    similar_classes,
    told,
)
from fieldguide.storage import shards


def root_of(place: Path) -> Path:
    """Return the root of photos' paths: the folder itself, or the index of its shards."""
    index = index_of(place.resolve()) if place.is_dir() else None
    return index.path if index else place


def index_of(root: Path) -> shards.Index | None:
    """Return the index of a folder of shards; None for other folders."""
    return shards.find_index(root, EXTENSIONS, SPLIT_FOLDERS, USUAL_NAMES)


def read_shards(index: shards.Index) -> Catalog:
    """Return the photos in the order of the packed catalog, or else as from folders."""
    notes = [*left_out(index)]
    found = in_columns()
    rows: list[int | None] = []
    for entry in index.entries():
        if entry.label is None and entry.split != "test":
            notes.append(Note("empty-label", entry.path, "no label in the shard, left out"))
            continue
        split = SPLIT_FOLDERS[entry.split]
        found.append(Photo(entry.path, entry.label, entry.group, split, entry.fold))
        rows.append(entry.row)
    if not rows:
        raise DataError(
            f"no labelled photographs in the shards of {index.folder}",
            hint="tar files label them by folders, KEY.json or KEY.cls, Parquet files by a column"
            " such as `label`",
        )

    def turn(number: int) -> tuple[int, int, str, str]:
        if (row := rows[number]) is not None:
            return row, 0, "", ""
        photo = found[number]
        return 0, SPLITS.index(photo.split), photo.label or "", photo.path

    photos = found.take(sorted(range(len(rows)), key=turn))
    notes += similar_classes({each for each in photos.column("label") if each is not None})
    sources = dict.fromkeys(("label", "group", "split"), "shards")
    return Catalog(index.path, photos, tuple(notes), told(photos, sources))


def left_out(index: shards.Index) -> tuple[Note, ...]:
    """Return a note for what in the shards is no photo, or no sample by WebDataset's own rule."""
    return tuple(
        Note("left-out" if what.startswith("left out") else "samples", "", what)
        for what in index.notes
    )
