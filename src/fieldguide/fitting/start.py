"""A run at its start: settings resolved, the first weights, how steps are computed, what was found.

Knows nothing of how folds are trained.
"""

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fieldguide import recipe as recipes
from fieldguide.errors import TrainingError, UsageError
from fieldguide.fitting.jobs import index_of
from fieldguide.fitting.older import Older, changes, require_unseen
from fieldguide.fitting.prepare import prepare
from fieldguide.fitting.probes import probes_of, starts_of
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.resume import RECORDED_PACKAGES
from fieldguide.fitting.settings import DRAWN_RATE, cache_of, lengthened, resolve, threads_of
from fieldguide.machine.device import (
    choose_device,
    choose_layouts,
    device_name,
    keep_freed_memory,
    training_threads,
)
from fieldguide.network.batch_norm import has_batch_norm
from fieldguide.network.feature_map import output_channels
from fieldguide.network.network import (
    Network,
    build_backbone,
    freeze,
    input_config,
    load_weights,
    source_head,
    weights_of,
    with_head,
)
from fieldguide.photos import check
from fieldguide.photos.catalog import Catalog
from fieldguide.photos.inspect import common_range
from fieldguide.photos.pixels import Reading
from fieldguide.recipe import Recipe, ResolvedRecipe
from fieldguide.runs import run as runs
from fieldguide.runs.run import Run
from fieldguide.storage import files
from fieldguide.train.job import replica_steps
from fieldguide.train.result import Arrays, arrays
from fieldguide.train.trial import Choice, Way, choose

# Photos × classes × channels up to which a number to beat is worth its time: half an hour of one
# core, as nature100 (5,359 × 100 × 512) takes 41 s (taste).
MOST_TO_BEAT = 10**10


def create(
    folder: Path,
    catalog: Catalog,
    recipe: Recipe,
    command: Sequence[str],
    watcher: Watcher,
    *,
    prepared: bool = False,
    instant: bool = False,
    older: Older | None = None,
) -> Run:
    """A run at its start: photos checked and put into folds, settings resolved, first weights.

    `instant`: heads are fitted to the untrained network's features even if no fold starts from
    them, as a number to beat. With an `older` run, the first weights are those that it began with,
    and each fold starts from its fold's.
    """
    if recipe.order == "shards":
        index_of(catalog.root)
    weights = "none" if older else recipe.weights
    backbone = build_backbone(
        recipe.backbone,
        weights=weights,
        head=recipe.head,
        seed=recipe.seed,
        tell=watcher.notice,
    )
    if older:
        load_weights(backbone, older.first_backbone())
    resolved = resolve(recipe, backbone)
    for message in recipes.without_effect(recipe) + _without_batch_norm(recipe, backbone):
        watcher.notice(message)
    found: list[check.Finding] = []

    def on_findings(told: Sequence[check.Finding]) -> None:
        found.extend(told)
        watcher.on_findings(told)

    listening = replace(watcher, on_findings=on_findings)
    used = catalog if prepared else prepare(catalog, recipe, listening, older)
    require_unseen(weights, used, watcher.notice)
    facts = older.facts(used) if older else {}
    for message in changes(facts, recipe) if older else ():
        watcher.notice(message)
    if not prepared:
        check.write_findings(folder / runs.FINDINGS, found)
    resolved = resolved.replace(
        folds=1 + max(fold or 0 for fold in used.table.column("fold")),
        tone=recorded_tone(recipe, used, watcher),
    )
    resolved = _long_enough(recipe, resolved, used, watcher)
    if resolved.eval_size > resolved.size:
        watcher.notice(
            f"photos are evaluated at {resolved.eval_size} pixels and trained on at"
            f" {resolved.size} (`eval_size`): a prediction takes"
            f" {(resolved.eval_size / resolved.size) ** 2:.1f} times as long"
        )
    network = with_head(
        backbone,
        recipe.head,
        classes=len(used.classes),
        dropout=recipe.dropout,
        seed=recipe.seed,
    )
    if recipe.head_start == "auto" and _takes_long(network, used):
        rate = DRAWN_RATE if recipe.head_rate == "auto" else recipe.head_rate
        left = {"co_tuning": 0.0} if recipe.co_tuning == "auto" else {}
        resolved = resolved.replace(head_start="random", head_rate=rate, **left)
        watcher.notice("heads start from a draw: with so many photos a regression takes long")
    source = None
    if resolved.co_tuning:
        if resolved.head_start == "probe":  # an older run's weights have no classifier
            source = source_head(recipe.backbone, backbone, weights)
        if source is None and recipe.co_tuning != "auto":
            raise UsageError(
                "`co_tuning` needs heads that are fitted and the classifier that came with the"
                " weights, which is not there",
                hint="leave `co_tuning` out, or take pretrained weights with their classifier",
            )
        if source is None:
            resolved = resolved.replace(co_tuning=0.0)
        else:
            watcher.notice(
                f"the network goes on telling the {len(source[1]):,} classes that its weights came"
                " with, beside the photos' own (`co_tuning`)"
            )
    freeze(network, resolved.freeze)
    if resolved.freeze and resolved.epochs:
        drawn = ", and stay as they were drawn: --freeze 0 trains them"
        watcher.notice(
            f"the first {resolved.freeze} stages of the backbone are not trained (`freeze`)"
            + drawn * (resolved.weights == "none")
        )
    start = arrays(weights_of(network))
    choice = _tried(recipe, resolved, network, used)
    _tell_choice(choice, watcher)
    resolved = resolved.replace(
        layout=choice.way.layout,
        precision=choice.way.precision,
        compile="on" if choice.way.compile else "off",
    )
    began = time.monotonic()
    probes, starts = [], []
    if older:
        starts = _starts(resolved, network, used, older, watcher)
    else:
        probes = _probes(resolved, network, used, watcher, instant, source)
    environment = _environment(catalog, resolved, network, command, older) | {
        "parts": choice.parts,
        "probe_seconds": round(time.monotonic() - began, 3) if probes or starts else 0.0,
        "probe": [
            {"way": asdict(way), "seconds_per_photo": seconds}
            for way, seconds in choice.table.items()
        ],
    }
    if older:
        environment |= {"older": facts}
    kept = (older.run, older.photos) if older else None
    return runs.create(folder, resolved, catalog, used, start, environment, probes, starts, kept)


def _without_batch_norm(recipe: Recipe, backbone: nn.Module) -> list[str]:
    """Return notes on settings of batch norm, if the network has none."""
    asked = {
        "batch_norm = 'recalibrate'": recipe.batch_norm == "recalibrate" and recipe.merge != "none",
        "sync_batch_norm": recipe.sync_batch_norm and recipe.batch_ranks > 1,
    }
    if has_batch_norm(backbone):
        return []
    name = recipe.backbone
    return [
        f"`{each}` has no effect: `{name}` has no batch norm" for each, on in asked.items() if on
    ]


def _takes_long(network: Network, used: Catalog) -> bool:
    """Return whether heads are too many numbers to be fitted unasked."""
    channels = output_channels(network.backbone)
    return len(used) * len(used.classes) * channels > MOST_TO_BEAT


def _probes(
    recipe: ResolvedRecipe,
    network: Network,
    used: Catalog,
    watcher: Watcher,
    instant: bool,
    source: tuple[Tensor, Tensor] | None,
) -> list[Arrays]:
    """Return the folds' fitted heads, if they are wanted, and tell what is to beat."""
    wanted = recipe.head_start == "probe"
    if instant and not wanted and _takes_long(network, used):
        watcher.notice("there is no number to beat: with so many photos a regression takes long")
        instant = False
    try:
        found = []
        if wanted or instant:
            found = probes_of(recipe, network, used, watcher, source=source)
    except TrainingError as error:
        if wanted:
            raise
        watcher.notice(f"there is no number to beat: {error.message}")
        return []
    if found and recipe.epochs:
        reached = _reached(recipe, used, found)
        watcher.notice(
            f"to beat: {reached:.1%} by a regression on the untrained network's features"
        )
    return found


def _starts(
    recipe: ResolvedRecipe, network: Network, used: Catalog, older: Older, watcher: Watcher
) -> list[Arrays]:
    """Return the folds' starts, from an older run's weights, and tell what is to beat."""
    found = starts_of(recipe, network, used, older.run, watcher)
    if recipe.epochs:
        reached = _reached(recipe, used, found)
        watcher.notice(f"to beat: {reached:.1%} by the weights of `{older.run.folder}`")
    return found


def _reached(recipe: Recipe, used: Catalog, found: Sequence[Arrays]) -> float:
    """Return the accuracy of each fold's logits of its test part."""
    targets, folds = runs.targets_of(used), runs.folds_of(used, recipe.folds)
    right = [p["logits"].argmax(1) == targets[f.test] for p, f in zip(found, folds, strict=True)]
    return float(np.concatenate(right).mean())


def _long_enough(
    recipe: Recipe, resolved: ResolvedRecipe, used: Catalog, watcher: Watcher
) -> ResolvedRecipe:
    """Return the recipe with batches, epochs and mixing for its folds, and tell if they changed."""
    training = list(used.table.column("split")).count("train")
    found = lengthened(resolved, training - training // resolved.folds, recipe.mix)
    if (found.batch_size, found.epochs) != (recipe.batch_size, recipe.epochs):
        watcher.notice(
            f"few photos: batches of {found.batch_size} and {found.epochs} epochs instead of"
            f" {recipe.batch_size} and {recipe.epochs}, so that a replica makes at least"
            f" {found.min_steps} steps (`min_steps`)"
        )
    return found


def recorded_tone(recipe: Recipe, used: Catalog, watcher: Watcher) -> str:
    """Return the tone to record: one of percentiles with the range that they have in the photos."""
    if recipe.tone != recipes.PERCENTILE:
        return recipe.tone
    found = common_range([used.file(photo) for photo in used.photos], Reading.of(recipe))
    if found is None:
        watcher.notice("`tone` has no effect: no photo has more than 8 bits a channel")
    low, high = found or (0, 65535)
    if found:
        watcher.notice(f"values from {low:,.6g} to {high:,.6g} become 0 to 255")
    return f"{recipes.PERCENTILE} {low!r},{high!r}"


def _tried(recipe: Recipe, resolved: ResolvedRecipe, network: Network, used: Catalog) -> Choice:
    """How to compute the steps, by a trial on this machine of what the recipe leaves open.

    Without steps nothing is tried: of layouts, channels last is taken, in which resnet18 at 128 px
    takes 16 ms a photo where the other takes 23 (forward alone, a thread, EPYC).
    """
    device = choose_device(resolved.device)
    if not resolved.epochs:
        layout = choose_layouts(recipe.layout, device)[-1]
        return Choice(Way(layout, resolved.precision), None, {}, 1)
    training = sum(photo.split == "train" for photo in used.photos)
    steps = sum(replica_steps(resolved, training - training // resolved.folds))
    synchronised = resolved.sync_batch_norm and resolved.batch_ranks > 1
    keep_freed_memory()
    with training_threads(threads_of(resolved)):
        return choose(
            network.to(device),
            size=resolved.size,
            batch_size=-(-resolved.batch_size // resolved.batch_ranks),
            classes=len(used.classes),
            device=device,
            layout=recipe.layout,
            precision=recipe.precision,
            compile="auto"
            if recipe.compile == "auto" and not synchronised
            else recipe.compile == "on",
            steps_to_go=steps * resolved.epochs * resolved.folds,
            cache=cache_of(recipe),
        )


def _tell_choice(choice: Choice, watcher: Watcher) -> None:
    """What a trial has led to; nothing where none was needed."""
    if len(choice.table) > 1:
        way, slowest = choice.way, max(choice.table.values())
        assert choice.seconds_per_photo is not None
        compiled = ", compiled" if way.compile else ""
        watcher.notice(
            f"steps are computed in {way.precision}, {way.layout}{compiled}:"
            f" {1000 * choice.seconds_per_photo:.3g} ms a photo by a trial of"
            f" {len(choice.table)} ways, of which the slowest took {1000 * slowest:.3g} ms"
        )
    if choice.parts > 1:
        watcher.notice(f"memory is short: each batch is computed in {choice.parts} parts")


def _environment(
    catalog: Catalog,
    recipe: Recipe,
    network: Network,
    command: Sequence[str],
    older: Older | None,
) -> dict[str, Any]:
    """What a reader needs to repeat the run, beside recipe and photos."""
    config = input_config(network.backbone)
    device = choose_device(recipe.device)
    origin = {"weights": recipe.weights}
    if older:
        origin |= {n: older.run.environment[n] for n in ("weights_sha256", "weights_license")}
    else:
        origin["weights_sha256"] = _weights_sha256(recipe.weights)
        origin["weights_license"] = config.license if recipe.weights == "pretrained" else ""
    return {
        "photos": str(catalog.root.resolve()),
        "photos_found": len(catalog),
        "collection": catalog.told,
        "crop": catalog.crop,
        "command": list(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in RECORDED_PACKAGES},
        },
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": threads_of(recipe),
        "seed": recipe.seed,
        "parameters": sum(tensor.numel() for tensor in network.parameters()),
        **origin,
    }


def _weights_sha256(weights: str) -> str:
    return (
        "" if weights in {"pretrained", "none"} else files.sha256(recipes.weights_file(weights)[0])
    )
