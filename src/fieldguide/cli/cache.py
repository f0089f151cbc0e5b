"""The command that shows, verifies and removes what is kept: cache. It never imports torch."""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table

from fieldguide.cli import terminal
from fieldguide.cli.app import app
from fieldguide.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from fieldguide.copies import Copy
    from fieldguide.store import Piece

DAY = 24 * 3600.0


@app.command
def cache(*, clear: bool = False, older_than: float | None = None, verify: bool = False) -> None:
    """List what is kept for later, decoded photos and copies from elsewhere, or remove it.

    Photos are decoded anew, and fetched anew from their address, when they are needed.
    FIELDGUIDE_CACHE names another folder for them.

    Parameters
    ----------
    clear
        Remove all that no process uses.
    older_than
        Remove what was not used for so many days.
    verify
        Read the copies through, and say which are damaged.
    """
    if clear and older_than is not None:
        raise UsageError("--clear removes all: leave --older-than out")
    if older_than is not None and not older_than >= 0:  # NaN too
        raise UsageError(f"--older-than is below 0 days: {older_than}")
    from fieldguide import caches, copies, store

    root = caches.root()
    if clear or older_than is not None:
        latest = time.time() - (older_than or 0) * DAY
        _remove(
            {
                folder: pieces
                for folder, pieces in store.stores(root).items()
                if clear or _last_used(pieces) <= latest
            },
            [copy for copy in copies.copies(root) if clear or copy.used <= latest],
        )
    found = copies.copies(root)
    _print_stores(root, store.stores(root))
    _print_copies(found)
    if verify:
        _verify(found)


def _remove(stores: "dict[Path, list[Piece]]", others: "Sequence[Copy]") -> None:
    """Remove stores and copies, and say on stderr what went and what stays, and why."""
    from fieldguide import copies
    from fieldguide.store import remove, shown_bytes

    gone = 0
    for folder, pieces in stores.items():
        reasons = {piece: remove(piece) for piece in pieces}
        gone += sum(piece.bytes for piece, reason in reasons.items() if not reason)
        for reason in sorted({reason for reason in reasons.values() if reason}):
            left = sum(piece.bytes for piece in pieces if reasons[piece] == reason)
            _tell_left(left, folder.name, reason)
    for copy in others:
        reason = copies.remove(copy)
        if reason:
            _tell_left(copy.bytes, _named(copy), reason)
        else:
            gone += copy.bytes
    terminal.stderr.print(f"removed {shown_bytes(gone)}")


def _tell_left(count: int, name: str, reason: str) -> None:
    from fieldguide.store import shown_bytes

    told = f"left {shown_bytes(count)} of `{name}`: {reason}"
    terminal.tell(told)


def _verify(found: "Sequence[Copy]") -> None:
    """Say on stderr what is damaged; ResourceError if anything is."""
    from fieldguide import copies

    damaged = {_named(copy): faults for copy in found if (faults := copies.faults(copy))}
    for name, faults in damaged.items():
        for fault in faults:
            terminal.tell(f"damaged: {name}: {fault}")
    if damaged:
        raise ResourceError(
            f"{len(damaged)} of {len(found)} copies are damaged",
            hint="--clear removes them; they are fetched or made again when they are needed",
        )
    terminal.stderr.print(f"{len(found)} copies are as they were written")


def _last_used(pieces: "list[Piece]") -> float:
    return max(piece.used for piece in pieces)


def _print_stores(root: Path, stores: "dict[Path, list[Piece]]") -> None:
    if not stores:
        terminal.stdout.print(f"no decoded photos are kept in {root}")
        return
    table = Table(Column("store", overflow="fold"), "photos", "size", "last used", box=None)
    for folder, pieces in stores.items():
        table.add_row(terminal.cell(folder.name), *_sums(pieces), _shown_time(_last_used(pieces)))
    if len(stores) > 1:
        table.add_row("total", *_sums([piece for pieces in stores.values() for piece in pieces]))
    terminal.stdout.print(table)
    terminal.stdout.print(f"they are kept in {root}")


def _print_copies(found: "Sequence[Copy]") -> None:
    if not found:
        return
    from fieldguide.store import shown_bytes

    table = Table(
        Column("copy of", overflow="fold"), "what", "files", "size", "last used", box=None
    )
    for copy in found:
        size, used = shown_bytes(copy.bytes), _shown_time(copy.used)
        table.add_row(terminal.cell(_named(copy)), copy.kind, f"{copy.files:,}", size, used)
    if len(found) > 1:
        count, total = sum(copy.files for copy in found), sum(copy.bytes for copy in found)
        table.add_row("all copies", "", f"{count:,}", shown_bytes(total))
    terminal.stdout.print(table)


def _named(copy: "Copy") -> str:
    return copy.source or copy.folder.name


def _shown_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _sums(pieces: "list[Piece]") -> tuple[str, str]:
    from fieldguide.store import shown_bytes

    photos = sum(piece.pictures for piece in pieces)
    return f"{photos:,}", shown_bytes(sum(piece.bytes for piece in pieces))
