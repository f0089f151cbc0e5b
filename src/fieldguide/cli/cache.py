"""The command that lists, verifies and removes kept files: cache. It never imports torch."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby

from rich.table import Column, Table

from fieldguide.cli import terminal
from fieldguide.cli.app import app
from fieldguide.errors import ResourceError, UsageError
from fieldguide.storage import cache_folder
from fieldguide.storage.cache_folder import Kept
from fieldguide.words import shown_bytes


@app.command
def cache(*, clear: bool = False, older_than: float | None = None, verify: bool = False) -> None:
    """List or remove decoded photos, features of photos and copies of remote files.

    What was removed is decoded, computed or fetched again when it is needed.
    FIELDGUIDE_CACHE names another folder for them.

    Parameters
    ----------
    clear
        Remove all files that no process uses.
    older_than
        Remove files that were not used for this number of days.
    verify
        Read all copies and print which are damaged.
    """
    if clear and older_than is not None:
        raise UsageError("--clear removes all: leave --older-than out")
    if older_than is not None and not older_than >= 0:  # NaN too
        raise UsageError(f"--older-than is below 0 days: {older_than}")
    from fieldguide.storage import copies

    root = cache_folder.root()
    if clear or older_than is not None:
        latest = time.time() - 24 * 3600 * (older_than or 0)
        found = _grouped(copies.kept(root))
        _remove([group for group in found if clear or _last_used(group) <= latest])
    found = _grouped(copies.kept(root))
    stores = [group for group in found if group[0].kind == "decoded"]
    others = [group for group in found if group[0].kind != "decoded"]
    if stores:
        _print_table(stores, ("store", "photos"), "total")
        terminal.stdout.print(f"they are kept in {root}")
    else:
        terminal.stdout.print(f"no decoded photos are kept in {root}")
    if others:
        _print_table(others, ("copy of", "what", "files"), "all copies")
    if verify:
        _verify([copy for (copy,) in others])


def _grouped(found: Sequence[Kept]) -> list[list[Kept]]:
    """Return the shards of each store together, and each copy alone."""
    folders = groupby(found, lambda each: each.path.parent if each.kind == "decoded" else each.path)
    return [list(group) for _, group in folders]


def _remove(groups: Sequence[Sequence[Kept]]) -> None:
    """Remove kept files, and print to stderr what is left and why."""
    from fieldguide.storage import copies

    gone = 0
    for group in groups:
        left: Counter[str] = Counter()  # bytes, by the reason why they stay
        for each in group:
            left[copies.remove(each)] += each.bytes
        gone += left.pop("", 0)
        for reason, count in sorted(left.items()):
            terminal.tell(f"left {shown_bytes(count)} of `{group[0].name}`: {reason}")
    terminal.stderr.print(f"removed {shown_bytes(gone)}")


def _verify(found: Sequence[Kept]) -> None:
    """Print the damaged copies to stderr; raise `ResourceError` if there are any."""
    from fieldguide.storage import copies

    damaged = {copy.name: faults for copy in found if (faults := copies.faults(copy))}
    for name, faults in damaged.items():
        for fault in faults:
            terminal.tell(f"damaged: {name}: {fault}")
    if damaged:
        raise ResourceError(
            f"{len(damaged)} of {len(found)} copies are damaged",
            hint="--clear removes them; they are fetched or made again when needed",
        )
    terminal.stderr.print(f"{len(found)} copies are as they were written")


def _last_used(group: Sequence[Kept]) -> float:
    return max(each.used for each in group)


def _print_table(groups: Sequence[Sequence[Kept]], titles: Sequence[str], total: str) -> None:
    first, *more = titles
    table = Table(Column(first, overflow="fold"), *more, "size", "last used", box=None)
    for group in groups:
        kind = [str(group[0].kind)] if "what" in titles else []
        used = datetime.fromtimestamp(_last_used(group)).strftime("%Y-%m-%d %H:%M")
        table.add_row(terminal.cell(group[0].name), *kind, *_sums(group), used)
    if len(groups) > 1:
        blank = [""] if "what" in titles else []
        table.add_row(total, *blank, *_sums([each for group in groups for each in group]))
    terminal.stdout.print(table)


def _sums(group: Sequence[Kept]) -> tuple[str, str]:
    count, size = sum(each.count for each in group), sum(each.bytes for each in group)
    return f"{count:,}", shown_bytes(size)
