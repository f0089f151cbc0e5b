"""The catalog of photos in a folder, a table, a known form, or an address of any of these.

Knows nothing of how each is read.
"""

from pathlib import Path
from typing import TypeAlias

from fieldguide.errors import DataError, UsageError
from fieldguide.photos import boxes as photo_boxes
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.crops import Crop
from fieldguide.photos.folders import scan
from fieldguide.photos.forms import known
from fieldguide.photos.forms.form import EVENT, LABEL, PATH, Form, label_column
from fieldguide.photos.tables import Finder, Table, catalog_of, read_table
from fieldguide.storage import addresses

Names: TypeAlias = dict[str, str | None]


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
    form: str | None = None,
    labels_from: str | None = None,
    event_gap: float | None = None,
    crop: str | None = None,
    boxes: str | Path | None = None,
    labelled: bool = True,
) -> Catalog:
    """Return the catalog of a folder (`scan`), a table (`read_table`), or a known form.

    `form` names one of `forms.known`, or `plain`; without it a form is recognised by content. Its
    table has columns that `label` to `fold` may name. `group` and `event_gap` hold for all; a gap
    that changes no group is refused. With `crop` (`crops.Crop.of`) the photos are crops by the
    source's boxes, or those of the file `boxes`.
    The content of an address, such as `s3://bucket/photos`, is fetched first: see
    `addresses.local`. Raises DataError, also for an option that the source does not have.
    """
    place = addresses.local(source)
    names: Names = {"path": path, "label": label, "split": split, "fold": fold}
    if boxes is not None:
        rule = Crop.of(crop or "box")
        whole = read(
            place,
            **names,
            group=group,
            root=root,
            encoding=encoding,
            form=form,
            labels_from=labels_from,
            event_gap=event_gap,
            labelled=labelled,
        )
        return photo_boxes.cut(whole, photo_boxes.read(addresses.local(boxes), rule), rule)
    found = known.find(place, form, boxes=crop is not None, event_gap=event_gap)
    if found is not None:
        _refuse(place, f"of the form {found.name}", encoding=encoding, labels_from=labels_from)
        base = found.base if root is None else Path(root)
        return of_form(found, base, names, group, event_gap=event_gap, crop=crop, labelled=labelled)
    if not place.is_dir():
        _refuse(place, "a table", labels_from=labels_from)
        return read_table(
            place,
            **names,
            group=group,
            root=root,
            encoding=encoding,
            labelled=labelled,
            event_gap=event_gap,
            crop=crop,
        )
    if crop:
        raise UsageError(
            f"a folder has no boxes: {place}", hint="name the file that holds them with --boxes"
        )
    _refuse(place, "a folder", **names, root=root, encoding=encoding)
    return scan(place, group=group, labels_from=labels_from, event_gap=event_gap)


def plain(
    catalog: Catalog, form: Form | None, folder: Path
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of the table of a source, as it lies in `folder`.

    Of a form these are all its columns, and its rows of photos that are there.
    """

    def placed(path: str) -> str:
        place = catalog.root.resolve() / path
        return (place.relative_to(folder) if place.is_relative_to(folder) else place).as_posix()

    if form is None:
        header = ("path", "label", "group", "split", "fold")
        columns = [catalog.table.column(name) for name in header]
        used = [
            i for i, values in enumerate(columns) if i < 2 or any(v is not None for v in values)
        ]
        rows = zip(*(columns[i] for i in used), strict=True)
        return tuple(header[i] for i in used), [
            (placed(path), *("" if v is None else str(v) for v in rest)) for path, *rest in rows
        ]
    at, find = form.header.index(PATH), Finder(catalog.root.resolve()).find
    found = ((row, find(row[at])) for row in form.rows)
    return form.header, [
        (*row[:at], placed(path), *row[at + 1 :]) for row, path in found if path is not None
    ]


def of_form(
    form: Form,
    base: Path,
    names: Names,
    group: str | None = None,
    *,
    event_gap: float | None = None,
    crop: str | None = None,
    labelled: bool = True,
) -> Catalog:
    """Return the photos that a source in a known form lists."""
    if not form.rows:
        raise DataError(f"{form.name}: no photo is left; {form.told}")
    label = names["label"] or (LABEL if LABEL in form.header else None)
    if labelled and not (form.usual and label is None):
        label = label_column(form, label)
    wanted = {**names, "path": names["path"] or PATH, "label": label}
    table = Table(form.name, form.header, tuple(enumerate(form.rows, 1)))
    return catalog_of(
        table,
        base.resolve(),
        wanted,
        group,
        labelled=labelled,
        event_gap=event_gap,
        crop=crop,
        form=form.told,
        timed=EVENT if form.timed else "",
    )


def _refuse(place: Path, what: str, **options: object) -> None:
    """Raise DataError for an option that this source does not have."""
    for name, value in options.items():
        if value:
            use, instead = "tables", "the CSV file instead"
            if name == "labels_from":
                use, instead = "folders", "a folder of photos"
            raise DataError(
                f"`{name}` is for {use}, and this is {what}: {place}",
                hint=f"leave `{name}` out, or give {instead}",
            )
