"""Numbers, names and reasons in words, for messages and pages.

Knows nothing of what they are about.
"""

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Return a time such as `3 h 5 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int, noun: str) -> str:
    """Return a number and its noun, such as `1 photo` or `1,200 photos`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first of the names and the number of the others: `a, b, c and 2 more`."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
