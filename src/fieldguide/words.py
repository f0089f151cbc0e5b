"""Numbers, names and reasons in words, for messages and pages.

Knows nothing of what they are about.
"""

from collections.abc import Sequence
from importlib import metadata

LITE = "fieldguide-lite"  # the distribution without torch
SHOWN = 5  # names that a message gives before it counts the rest (taste)


def duration(seconds: float) -> str:
    """Return a time such as `3 h 5 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def percent(share: float, digits: int = 1) -> str:
    """Return a share such as `92.8 %`, with a space at which no line is broken."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def count(number: int, noun: str) -> str:
    """Return a number of things: `1 photo`, `1,200 photos`, `2 classes`, `3 copies`."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(("s", "x", "ch", "sh")) and noun != "epoch":
        return f"{number:,} {noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}s"


def simple_name(name: str) -> str:
    """Return the name of a column as usual names are compared: without case, blanks, `_`, `-`."""
    return "".join(c for c in name.casefold() if c.isalnum())


def listed(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first names and the number of the others: `a, b, c and 5 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def quoted(names: Sequence[str]) -> str:
    """Return the first five names in backticks and the number of the others."""
    return some([f"`{name}`" for name in names], SHOWN)


def shown_bytes(count: int) -> str:
    """Return a size such as `12.3 GB` or `4.0 MB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def os_reason(error: OSError) -> str:
    """Return the system's words for an error, else the error's own message."""
    return error.strerror or str(error)


def installed() -> tuple[str, str]:
    """Return the name and version of the installed distribution: `fieldguide`, or its lite one.

    Raises `PackageNotFoundError` where neither is.
    """
    try:
        return "fieldguide", metadata.version("fieldguide")
    except metadata.PackageNotFoundError:
        return LITE, metadata.version(LITE)
