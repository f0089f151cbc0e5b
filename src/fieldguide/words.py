"""Numbers and names in words, for messages and pages.

Knows nothing of what it is that they tell of.
"""


def duration(seconds: float) -> str:
    """Such as `3 h 5 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
