"""Numbers and names in words, for messages and pages. Knows nothing of the rest of the package."""

from collections.abc import Sequence

SHOWN = 5  # names that a message gives before it counts the rest (taste)

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Return a time in words, such as `3 h 5 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, such as `1 photo` or `1,200 photos`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def some_of(items: Sequence[str]) -> str:
    """Return the first five items and the number of the others."""
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN:,} more"


def listed(names: Sequence[str]) -> str:
    """Return the first five names in backticks and the number of the others."""
    return some_of([f"`{name}`" for name in names])


def shown_bytes(count: int) -> str:
    """Return a size in words, such as `12.3 GB` or `4.0 MB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def os_reason(error: OSError) -> str:
    """Return the system's words for an error, else the error's own message."""
    return error.strerror or str(error)
