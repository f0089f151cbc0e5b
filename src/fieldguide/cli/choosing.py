"""The command that helps to choose a backbone: backbones."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fieldguide import recipe as recipes
from fieldguide.cli import flags, tables, terminal
from fieldguide.cli.app import app
from fieldguide.cli.display import Display
from fieldguide.cli.fitting import given_settings, watching
from fieldguide.errors import ResourceError, UsageError
from fieldguide.network.backbones import SELECTION, require_backbone
from fieldguide.storage import cache_folder

if TYPE_CHECKING:
    from fieldguide.study.ranking import Tried

# Settings that the candidates and the way of ranking them decide.
DECIDED = ("--backbone", "--weights", "--head", "--head-start", "--epochs")


@app.command
def backbones(
    what: Annotated[
        str | None,
        Parameter(
            help="Part of a name, such as convnext, or a pattern ('*' for all); with --try: PHOTOS,"
            " as `fit` takes them."
        ),
    ] = None,
    *,
    tried: Annotated[str | None, Parameter(name="--try")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    columns: flags.TableFlags = flags.Columns(),
    settings: flags.Flags | None = None,
) -> None:
    """List backbones, or rank some on PHOTOS.

    Without --try: a short selection, or all whose names contain WHAT, with the licence of their
    weights. With it: out-of-fold accuracy of a regression on each one's frozen features, and its
    speed here, in minutes. That ranks only roughly what fine-tuning gives.

    Parameters
    ----------
    tried
        The number of backbones to try, from the first of the selection on, or their names with
        commas between, each with a file of weights if there is one: resnet18=FILE,resnet50=FILE.
    as_json
        Print one JSON object instead of tables.
    """
    if tried is None:
        given = [*flags.given(columns), *(flags.given(settings) if settings else ())]
        flags.refuse(given, "for ranking backbones on photos", "add --try 5")
        _list(what, as_json)
    else:
        _rank(what, candidates(tried), as_json, columns, settings)


def _list(what: str | None, as_json: bool) -> None:
    """Print what there is, from the cache or else from timm."""
    from fieldguide.network import offers

    names = [*SELECTION] if what is None else offers.matching(what)
    if not names:
        photos = what is not None and Path(what).exists()
        raise UsageError(
            f"no backbone has `{what}` in its name",
            hint=f"to rank backbones on the photos in `{what}`, add --try 5"
            if photos
            else "a part of a name is enough, such as convnext",
        )
    try:
        root = None if os.environ.get("FIELDGUIDE_CACHE") == "none" else cache_folder.root()
    except ResourceError:
        root = None
    with Display(terminal.stderr) as display:
        found = offers.look_up(
            names, root, lambda: display.begin("asking timm", len(names)), display.reach
        )
    usable = [offer for offer in found if offer.weights and not offer.refused]
    if as_json:
        record = [asdict(each) | {"good_for": SELECTION.get(each.backbone, "")} for each in usable]
        print(json.dumps({"backbones": record}, indent=2))
        return
    tables.print_offers(terminal.stdout, usable, SELECTION if what is None else {})
    for offer in found:
        if what == offer.backbone and offer.refused:
            terminal.stdout.print(offer.refused)
    left = len(found) - len(usable)
    if left:
        terminal.stdout.print(f"{left} others of that name cannot be used or have no weights")
    if what is None:
        terminal.stdout.print(
            "more: `fieldguide backbones convnext` (a part of a name); on your photos:"
            " `fieldguide backbones PHOTOS --try 5`"
        )


def candidates(tried: str) -> list[tuple[str, str]]:
    """Return names and weights of the backbones to try; `UsageError` for what cannot be."""
    if tried.isdecimal():
        if not 1 <= int(tried) <= len(SELECTION):
            raise UsageError(
                f"--try is not 1 to {len(SELECTION)}, the size of the selection: {tried}",
                hint="name others: --try resnet50,convnext_tiny",
            )
        return [(name, "pretrained") for name in [*SELECTION][: int(tried)]]
    found: dict[str, str] = {}
    for each in tried.split(","):
        name, equals, file = each.strip().partition("=")
        require_backbone(name)
        if name in found:
            raise UsageError(f"--try names `{name}` twice")
        if equals and file != "none" and not recipes.weights_file(file)[0].is_file():
            raise UsageError(f"--try {each}: there is no such file")
        found[name] = file if equals else "pretrained"
    return [*found.items()]


def _rank(
    photos: str | None,
    tried: Sequence[tuple[str, str]],
    as_json: bool,
    columns: flags.Columns,
    settings: "flags.Flags | None",
) -> None:
    """Print the candidates by what they reach on the photos."""
    if photos is None:
        raise UsageError(
            "--try needs photos to try backbones on",
            hint="such as `fieldguide backbones PHOTOS --try 5`",
        )
    typed = flags.given(settings) if settings else {}
    flags.refuse([flag for flag in DECIDED if flag in typed], "decided by --try and the ranking")
    given = {
        name: value
        for name, value in given_settings(settings).items()
        if f"--{name.replace('_', '-')}" not in DECIDED
    }
    recipe = recipes.build(recipes.over(recipes.settings_of("instant"), given))
    catalog = columns.read(photos)
    from fieldguide.study import ranking  # brings torch

    with watching() as watcher:
        found = ranking.rank(
            catalog, [ranking.Candidate(*each) for each in tried], recipe, watcher()
        )
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    tables.print_ranking(terminal.stdout, found)
    terminal.stdout.print(
        "frozen features rank only roughly what fine-tuning gives; to know:"
        f" `{_after(photos, found.rows, dict(tried))}`"
    )


def _after(photos: str, rows: "Sequence[Tried]", weights: Mapping[str, str]) -> str:
    """Return the command that trains the best, or compares the best two if timm has the weights."""
    best = [row.backbone for row in rows if not row.note][:2]
    if len(best) == 2 and all(weights[name] == "pretrained" for name in best):
        return f"fieldguide compare {photos} --out DIR --vary backbone={','.join(best)}"
    return f"fieldguide fit {photos} --out RUN --backbone {best[0]} --weights {weights[best[0]]}"
