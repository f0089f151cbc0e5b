"""The catalog of photos in a folder, a table, or an address of either.

Knows nothing of how folders and tables are read.
"""

from pathlib import Path

from fieldguide.errors import DataError
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.families import is_by_name
from fieldguide.photos.folders import scan
from fieldguide.photos.tables import read_table
from fieldguide.storage import addresses


def read(
    source: str | Path,
    *,
    path: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
    fold: str | None = None,
    root: str | Path | None = None,
    encoding: str | None = None,
) -> Catalog:
    """Return the catalog of a folder (`scan`) or of a table (`read_table`, with its options).

    `group` may be `stem` or `stem:REGEX` for both: groups by file name, see `families.grouped`.
    The content of an address, such as `s3://bucket/photos`, is fetched first: see
    `addresses.local`. Raises DataError, also for an option of tables given with a folder.
    """
    place = addresses.local(source)
    names = {"path": path, "label": label, "group": group, "split": split, "fold": fold}
    if not place.is_dir():
        return read_table(place, **names, root=root, encoding=encoding, labelled=True)
    if is_by_name(group):
        names["group"] = None
    options = {**names, "root": root, "encoding": encoding}
    given = [name for name, value in options.items() if value]
    if given:
        raise DataError(
            f"`{given[0]}` is for tables, and this is a folder: {place}",
            hint=f"leave `{given[0]}` out, or give the CSV file instead of the folder"
            + "; `stem` makes groups of a folder's file names" * (given[0] == "group"),
        )
    return scan(place, group=group)
