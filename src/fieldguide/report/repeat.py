"""The facts needed to repeat a run: recipe, command, versions, photos, weights, time."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fieldguide import recipe as recipes
from fieldguide.report.page import fragment
from fieldguide.runs.run import SETUP, Run
from fieldguide.storage import files
from fieldguide.words import duration

# Words of licences that forbid commercial use: CC BY-NC, "non-commercial", "research only". They
# match whole words, as `nc` is also a part of other words.
_NON_COMMERCIAL = re.compile(r"\bnc\b|non.?commercial|research", re.IGNORECASE)
_UNTOLD = frozenset({"", "other", "unknown"})


@dataclass(frozen=True)
class License:
    """The licence of a run's first weights in words, and a warning if one is needed."""

    text: str
    warning: str = ""


def section(run: Run) -> Markup:
    """Return the records of the run."""
    known = run.environment
    used = [photo.sha256 for photo in run.catalog.photos if photo.split == "train"]
    return fragment(
        "repeat.html",
        command=command_line(known["command"]),
        toml=recipes.to_toml(run.recipe, comments=True),
        license=weights_license(run.recipe.weights, known["weights_license"]),
        weights=Path(run.recipe.weights).name,
        weights_sha256=known["weights_sha256"],
        photos=len(used),
        photos_found=known["photos_found"],
        photos_place=known["photos"],
        photos_sha256=content_hash(used),
        setup=files.read_manifest(run.folder, name=SETUP),
        environment=known,
        seconds=duration(run.seconds) if run.done else "",
        folds=len(run.done),
        planned=run.recipe.folds,
        replicas=run.recipe.replicas,
        each=duration(run.seconds / len(run.done)) if run.done else "",
    )


def command_line(command: Sequence[str], **flags: object) -> str:
    """Return the recorded command as it is typed, with some flags changed; empty without one.

    `epochs=20` sets `--epochs 20` in place of its own value; `fold=None` leaves out `--fold`.
    """
    if not command:
        return ""
    words = list(command[1:])
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        words = _without_flag(words, flag) if value is None else _with_flag(words, flag, str(value))
    return shlex.join(["fieldguide", *words])


def _with_flag(words: Sequence[str], flag: str, value: str) -> list[str]:
    """Return the words with the flag's value replaced, or the flag added at the end."""
    for place, word in enumerate(words):
        if word == flag:
            return [*words[: place + 1], value, *words[place + 2 :]]
        if word.startswith(f"{flag}="):
            return [*words[:place], f"{flag}={value}", *words[place + 1 :]]
    return [*words, flag, value]


def _without_flag(words: Sequence[str], flag: str) -> list[str]:
    kept = [word for word in words if not word.startswith(f"{flag}=")]
    return [*kept[: kept.index(flag)], *kept[kept.index(flag) + 2 :]] if flag in kept else kept


def weights_license(weights: str, license: str) -> License:
    """Return the known facts about the licence of the weights that a run began with."""
    if weights == "none":
        return License("none is needed: the network began with random weights")
    if license.lower() in _UNTOLD:
        return License(
            "unknown",
            "The licence of the weights that this network was trained from is not known, and it"
            " binds the trained network too: find it out before you share the network or sell its"
            " services.",
        )
    if _NON_COMMERCIAL.search(license.replace("_", "-")):
        return License(
            license,
            f"The weights that this network was trained from are under {license}, which does not"
            " allow commercial use. That holds for the trained network too.",
        )
    return License(license)


def content_hash(sha256: Sequence[str]) -> str:
    """Return one SHA-256 for a set of files in any order, as classifiers record it."""
    return hashlib.sha256("".join(sorted(sha256)).encode()).hexdigest()
