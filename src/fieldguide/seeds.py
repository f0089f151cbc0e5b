"""One integer seed from a fit's seed and the names of what it is for. Knows nothing of the rest.

Every random draw of a fit starts here, so that it depends on what is drawn (this photo, in this
epoch, for this replica) and never on earlier draws: not on the number of threads, on a resume, or
on which folds were trained before.
"""

import hashlib


def derive_seed(*names: int | str) -> int:
    """Return a seed in [0, 2^63), the same for the same names on every machine and Python."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
