"""Where the user's cache folder is: for what can always be made or fetched again.

Knows nothing of what is kept there.
"""

import os
import sys
from pathlib import Path

from fieldguide.errors import ResourceError


def root() -> Path:
    """The folder of all stores: FIELDGUIDE_CACHE, else the usual place of the platform.

    It need not exist. ResourceError if the user has no home and FIELDGUIDE_CACHE is not set.
    """
    chosen = os.environ.get("FIELDGUIDE_CACHE", "")
    chosen = "" if chosen in {"auto", "none"} else chosen  # words of the setting `cache`
    try:
        return Path(chosen).expanduser().absolute() if chosen else _platform_root()
    except RuntimeError as error:  # pathlib found no home
        raise ResourceError(
            "there is no home folder for decoded photos",
            hint="let FIELDGUIDE_CACHE name a folder",
        ) from error


def root_of(name: str) -> Path:
    """The folder of that name; `auto` is the user's, see `root`."""
    return root() if name in {"", "auto"} else Path(name).expanduser().absolute()


def _platform_root() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / "fieldguide" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fieldguide"
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "fieldguide"
