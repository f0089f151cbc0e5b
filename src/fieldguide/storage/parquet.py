"""Photos inside Parquet files, one a row, as the Hugging Face Hub has them.

A column holds the bytes of the pictures, as `struct<bytes, path>` or plainly; others may hold their
labels. Numbers of classes get their names from the schema's metadata: `ClassLabel` of Hugging
Face's `datasets`. pyarrow is imported with the first file. Knows nothing of indexes and catalogs.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fieldguide.errors import DataError, UsageError
from fieldguide.storage.files import stays_inside
from fieldguide.words import first_line, simple_name

ENDING = ".parquet"

_PICTURES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes")
_AT_ONCE = 16  # rows: photos of 100 kB to 10 MB are then 2 to 160 MB (taste)
_BUFFER = 1 << 20  # bytes; without one, all pictures of a row group are read at once
_KINDS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}  # by the first bytes


class Row(NamedTuple):
    """A photo: its name within the file, and its values of `label`, `group` and `split`."""

    name: str
    says: Mapping[str, Any]
    data: bytes


class _Columns(NamedTuple):
    """The columns that are read. Those of pictures and their names may be a field of a struct."""

    picture: tuple[str, ...]
    path: tuple[str, ...] | None
    says: Mapping[str, str]  # `label`, `group` and `split`: the column, where there is one
    classes: Sequence[str] | None  # what the numbers in the column of labels stand for


def rows(path: Path, usual: Mapping[str, Sequence[str]], left_out: Counter[str]) -> Iterator[Row]:
    """Yield the photos of a Parquet file in the order of its rows; change `left_out`.

    `usual` are names of the columns for `label`, `group` and `split`, lower case, letters and
    digits alone. Photos have the file's names for them if those are relative and different, else
    the numbers of their rows. A label that is the number of no class is None. Raises UsageError
    without pyarrow, DataError for a file that is damaged or has no pictures.

    Memory: a page of the file, which others write as large as a row group, and a few photos.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            f"`{path}` needs pyarrow", hint="pip install 'fieldguide[parquet]'"
        ) from error
    with _telling_damage(path), parquet.ParquetFile(path, buffer_size=_BUFFER) as file:
        columns = _columns(path, file.schema_arrow, usual)
        names = _own_names(file, columns)
        wanted = [".".join(columns.picture), *columns.says.values()]
        for number, row in enumerate(_rows(file, wanted)):
            data = _at(row, columns.picture)
            if data is None:
                left_out["rows without the bytes of a picture"] += 1
                continue
            said = {role: only(row[column], left_out) for role, column in columns.says.items()}
            if columns.classes is not None and said["label"] is not None:
                said["label"] = _class_of(said["label"], columns.classes, left_out)
            name = names[number] if names else f"{number:08d}{_KINDS.get(data[:2], '')}"
            yield Row(name, said, data)


@contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, EOFError) as error:
        raise DataError(
            f"the Parquet file cannot be read: {path}: {first_line(error)}", hint="copy it again"
        ) from error


def _rows(file: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(_AT_ONCE, columns=columns, use_threads=False):
        yield from batch.to_pylist()


def _at(row: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        row = None if row is None else row[name]
    return row


def _class_of(number: int, names: Sequence[str], left_out: Counter[str]) -> str | None:
    if 0 <= number < len(names):
        return names[number]
    if number != -1:  # which says that there is no label
        left_out["labels that are the number of no class"] += 1
    return None


# --- columns --------------------------------------------------------------------------------------


def _columns(path: Path, schema: Any, usual: Mapping[str, Sequence[str]]) -> _Columns:
    from pyarrow import types

    def pictures(field: Any) -> bool:
        kind = field.type
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
        return _is_bytes(kind)

    found = {field.name: field for field in schema if pictures(field)}
    usually = [name for name in _PICTURES if name in found]
    if not usually and len(found) != 1:
        raise DataError(
            f"no column of pictures in {path}; columns found: "
            + ", ".join(f"`{field.name}` ({field.type})" for field in schema),
            hint="it is called `image` and holds bytes, or a struct of `bytes` and `path`",
        )
    picture = found[(usually or list(found))[0]]
    plain = {
        simple_name(field.name): field.name
        for field in schema
        if types.is_list(field.type) or not (types.is_nested(field.type) or _is_bytes(field.type))
    }
    says = {
        role: next(plain[name] for name in usual[role] if name in plain)
        for role in ("label", "group", "split")
        if any(name in plain for name in usual[role])
    }
    struct = types.is_struct(picture.type)
    named = struct and picture.type.get_field_index("path") >= 0
    return _Columns(
        (picture.name, "bytes") if struct else (picture.name,),
        (picture.name, "path") if named else None,
        says,
        _classes(schema, says["label"]) if "label" in says else None,
    )


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _classes(schema: Any, column: str) -> list[str] | None:
    """Return the class names in the metadata of Hugging Face; None if there are none."""
    from pyarrow import types

    try:
        said = json.loads((schema.metadata or {})[b"huggingface"])
        feature = said["info"]["features"][column]
        names = [str(name) for name in feature.get("feature", feature)["names"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    kind = schema.field(column).type
    return names if types.is_integer(kind.value_type if types.is_list(kind) else kind) else None


def only(value: Any, left_out: Counter[str]) -> Any:
    """Return a value, the only one of a list, or None; several and objects are counted."""
    if isinstance(value, list):
        if len(value) > 1:
            left_out["labels of photos that have several"] += 1
        value = value[0] if len(value) == 1 else None
    return None if isinstance(value, dict | list) else value


def _own_names(file: Any, columns: _Columns) -> list[str] | None:
    """Return the file's names of its photos; None unless each has its own relative path."""
    if columns.path is None:
        return None
    names = [_at(row, columns.path) for row in _rows(file, [".".join(columns.path)])]
    usable = all(  # written without `./` and `//`
        name and stays_inside(name) and PurePosixPath(name).as_posix() == name for name in names
    )
    return names if usable and len(set(names)) == len(names) else None
