"""The taxa of classes, read from a table: a taxonomy of its own or the collection's.

Knows nothing of runs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from fieldguide.analysis.taxa import LABEL, Taxonomy
from fieldguide.errors import DataError
from fieldguide.photos.groups import simplified
from fieldguide.photos.tables import BINOMIAL, RANKS, Table, read_cells, with_binomials
from fieldguide.words import count, some

Cells = Sequence[str]


def read(
    path: str | Path,
    classes: Sequence[str],
    notice: Callable[[str], None] = lambda text: None,
    *,
    ordered: bool = False,
) -> Taxonomy:
    """Return the taxonomy of these classes.

    The table has a row a class, or many that agree. The column of the classes is `label`, or the
    one that names most of them. The ranks are the columns with the usual names (kingdom, phylum,
    class, order, family, genus, species); of a table without them all other columns, the coarsest
    the one with the fewest taxa. With `ordered`, for what `table_of` gave, all columns are ranks as
    they stand. Empty cells say that a class has no such taxon, and what else is in the table is
    left out; `notice` reports what was taken for what. Raises DataError for classes that are
    missing, rows that contradict each other, and what is no tree.
    """
    dialect = {"delimiter": ","} if ordered else None  # as `table_of` is written
    table, known = with_binomials(read_cells(Path(path), dialect=dialect)), frozenset(classes)
    label = _label_column(table, classes, known)
    rows = [
        (number, _class_of(cells[label], known), [cell.strip() for cell in cells])
        for number, cells in table.rows
    ]
    own_rows = [cells for _, name, cells in rows if name is not None]
    ranks = _ranks(table, label, own_rows, ordered)
    taxa: dict[str, tuple[int, tuple[str, ...]]] = {}
    for number, name, cells in rows:
        if name is None:
            continue
        own = tuple(cells[column] for column in ranks)
        line, first = taxa.setdefault(name, (number, own))
        if own != first:
            raise DataError(
                f"{table.name}: rows {line} and {number} give {name} different taxa:"
                f" {' / '.join(first)} and {' / '.join(own)}"
            )
    if missing := [name for name in classes if name not in taxa]:
        raise DataError(
            f"{table.name}: {count(len(missing), 'class')} of {len(classes)} without a row, such as"
            f" {some(missing)}",
            hint="add a row for each; cells that are empty say that there is no such taxon",
        )
    names = [table.header[column] for column in ranks]
    extra = len({cells[label] for _, name, cells in rows if name is None} - {""})
    notice(
        f"taxonomy {table.name}: classes in `{table.header[label]}`, ranks"
        f" {' > '.join(names)}" + f"; {count(extra, 'other class')} left out" * bool(extra)
    )
    try:
        return Taxonomy(tuple(names), tuple(taxa[name][1] for name in classes))
    except ValueError as error:
        raise DataError(f"{table.name} is no tree: {error}") from error


def _label_column(table: Table, classes: Sequence[str], known: frozenset[str]) -> int:
    if LABEL in table.header:
        return table.header.index(LABEL)
    held = [
        len({_class_of(cells[column], known) for _, cells in table.rows} - {None})
        for column in range(len(table.header))
    ]
    if not any(held):
        raise DataError(
            f"{table.name}: no column names classes of the collection, such as `{classes[0]}`",
            hint=f"name them in a column `{LABEL}`",
        )
    return held.index(max(held))


def _class_of(cell: str, known: frozenset[str]) -> str | None:
    """Return the class that a cell names, with blanks around it or without."""
    return next((name for name in (cell, cell.strip()) if name in known), None)


def _ranks(table: Table, label: int, rows: Sequence[Cells], ordered: bool) -> list[int]:
    """Return the columns of the ranks, from the coarsest."""
    plain = simplified(table.header)
    epithets = BINOMIAL in table.header  # alone they name no species
    usual = [
        plain.index(rank)
        for rank in RANKS
        if rank in plain and plain.index(rank) != label and not (epithets and rank == "species")
    ]
    others = [column for column in range(len(table.header)) if column != label]
    if ordered:
        return others
    if usual:
        return usual
    if not others:
        raise DataError(
            f"{table.name}: no column of a rank beside `{table.header[label]}`",
            hint=f"add columns such as {', '.join(RANKS[3:6])}",
        )
    return sorted(others, key=lambda column: len({cells[column] for cells in rows} - {""}))


def table_of(taxonomy: Taxonomy, classes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table that `read` reads as this taxonomy."""
    rows = [[name, *taxa] for name, taxa in zip(classes, taxonomy.taxa, strict=True)]
    return [LABEL, *taxonomy.ranks], rows
