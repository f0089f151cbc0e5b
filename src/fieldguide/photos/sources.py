"""The catalog of whatever holds photos: a folder, a table, or an address of either.

Knows nothing of how folders and tables are read.
"""

from pathlib import Path

from fieldguide.errors import DataError
from fieldguide.photos.catalog import Catalog
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
    """The catalog of a folder (`scan`) or of a table (`read_table`, for which the options are).

    What is at an address, such as `s3://bucket/photos`, is fetched first: see `addresses.local`.
    Raises DataError, also where an option for tables is given with a folder.
    """
    place = addresses.local(source)
    if not place.is_dir():
        return read_table(
            place,
            path=path,
            label=label,
            group=group,
            split=split,
            fold=fold,
            root=root,
            encoding=encoding,
        )
    options = {"path": path, "label": label, "group": group, "split": split, "fold": fold}
    given = [
        name for name, value in {**options, "root": root, "encoding": encoding}.items() if value
    ]
    if given:
        raise DataError(
            f"`{given[0]}` is for tables, and this is a folder: {place}",
            hint=f"leave `{given[0]}` out, or give the CSV file instead of the folder",
        )
    return scan(place)
