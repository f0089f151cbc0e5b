"""The command that shows and removes decoded photos: cache. It never imports torch."""

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table

from fieldguide.cli import terminal
from fieldguide.cli.app import app
from fieldguide.errors import UsageError

if TYPE_CHECKING:
    from fieldguide.store import Piece

DAY = 24 * 3600.0


@app.command
def cache(*, clear: bool = False, older_than: float | None = None) -> None:
    """List the decoded photos that are kept for later fits, or remove them.

    What is removed is decoded anew when it is needed.
    FIELDGUIDE_CACHE names another folder for them.

    Parameters
    ----------
    clear
        Remove all that no process uses.
    older_than
        Remove what was not used for so many days.
    """
    if clear and older_than is not None:
        raise UsageError("--clear removes all: leave --older-than out")
    if older_than is not None and not older_than >= 0:  # NaN too
        raise UsageError(f"--older-than is below 0 days: {older_than}")
    from fieldguide import caches, store

    root = caches.root()
    if clear or older_than is not None:
        latest = time.time() - (older_than or 0) * DAY
        _remove(
            {
                folder: pieces
                for folder, pieces in store.stores(root).items()
                if clear or _last_used(pieces) <= latest
            }
        )
    _print_stores(root, store.stores(root))


def _remove(stores: "dict[Path, list[Piece]]") -> None:
    """Remove stores, and say on stderr what went and what stays, and why."""
    from fieldguide.store import remove, shown_bytes

    gone = 0
    for folder, pieces in stores.items():
        reasons = {piece: remove(piece) for piece in pieces}
        gone += sum(piece.bytes for piece, reason in reasons.items() if not reason)
        for reason in sorted({reason for reason in reasons.values() if reason}):
            left = sum(piece.bytes for piece in pieces if reasons[piece] == reason)
            told = f"left {shown_bytes(left)} of `{folder.name}`: {reason}"
            terminal.stderr.print(told, soft_wrap=True)
    terminal.stderr.print(f"removed {shown_bytes(gone)}")


def _last_used(pieces: "list[Piece]") -> float:
    return max(piece.used for piece in pieces)


def _print_stores(root: Path, stores: "dict[Path, list[Piece]]") -> None:
    if not stores:
        terminal.stdout.print(f"no decoded photos are kept in {root}")
        return
    table = Table(Column("store", overflow="fold"), "photos", "size", "last used", box=None)
    for folder, pieces in stores.items():
        used = datetime.fromtimestamp(_last_used(pieces)).strftime("%Y-%m-%d %H:%M")
        table.add_row(terminal.cell(folder.name), *_sums(pieces), used)
    if len(stores) > 1:
        table.add_row("total", *_sums([piece for pieces in stores.values() for piece in pieces]))
    terminal.stdout.print(table)
    terminal.stdout.print(f"they are kept in {root}")


def _sums(pieces: "list[Piece]") -> tuple[str, str]:
    from fieldguide.store import shown_bytes

    photos = sum(piece.pictures for piece in pieces)
    return f"{photos:,}", shown_bytes(sum(piece.bytes for piece in pieces))
