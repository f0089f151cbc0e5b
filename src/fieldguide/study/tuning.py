"""The soup of a run's folds, trained a little more on all of their photos: one network for use.

No photo of the folds is kept from it, so that only others can judge it. Of many photos it trains as
a fold does. Of few, the first steps of AdamW, as long as the rate whatever the gradient, take more
of what the folds have learned than the photos can bring: then by descent, and for half as long.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fieldguide.errors import UsageError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Plan, Watcher
from fieldguide.fitting.settings import on_machine
from fieldguide.machine.device import count_threads, training_threads
from fieldguide.predict import combine
from fieldguide.predict.classifier import Classifier, as_tensors
from fieldguide.predict.inference import precision_used
from fieldguide.predict.model import Machine
from fieldguide.runs.run import TUNED, Run
from fieldguide.train.job import replica_steps
from fieldguide.train.loop import train_fold

# Of 1,000 photos descent is 1 point better, of 2,235 to 4,291 AdamW is by 0 to 2: docs/results.md.
MANY = 2000
RATE = 3e-3  # of descent, for all tensors


def tuned(
    run: Run,
    machine: Machine = Machine(),
    watcher: Watcher | None = None,
    checkpoints: Path | None = None,
) -> Classifier:
    """Return the folds' soup after some epochs of all their photos, from `checkpoints` on.

    Its temperature and known photos are those of the folds: it has none of its own. Raises
    `UsageError` where the folds trained nothing, and what training a fold raises.
    """
    if not run.recipe.epochs:
        raise UsageError(
            "this run's folds trained no backbone, and `tuned` goes on from what they trained",
            hint="begin a run with another recipe, such as quick",
        )
    watcher = watcher or Watcher()
    photos = np.sort(np.concatenate([fold.test for fold in run.folds]))
    soup = combine.soup(run.ingredients(), "soup")
    job = fold_jobs(run, run.catalog.root, on_machine(run.recipe, machine), watcher.notice)(0)
    few = len(photos) < MANY
    recipe = job.recipe.replace(
        mix="none",
        stop="none",
        replicas=1,
        batch_ranks=1,
        merge_every=1,
        outer="none",
        replica_curves=False,
        keep_replicas=False,
    )
    if few:
        recipe = recipe.replace(
            epochs=max(round(recipe.epochs / 2), 1),
            backbone_rate=RATE,
            head_rate=RATE,
            weight_decay=0.0,
        )
    job = replace(
        job,
        recipe=recipe,
        precision=precision_used(soup.card.architecture, machine),
        start=soup.members[0],
        start_logits=None,
        train=photos,
        test=photos[:1],  # it is judged elsewhere
        watch=photos[:0],
        optimizer="sgd" if few else "adamw",
    )
    watcher.on_plan(Plan((), recipe.epochs * replica_steps(recipe, len(photos))[0], recipe))
    silent = replace(watcher, on_row=lambda row: None)  # its one test photo says nothing
    with training_threads(count_threads(1)):
        weights = as_tensors(train_fold(job, checkpoints, silent).weights)
    made = {**soup.card.provenance["made"], "rule": TUNED, "epochs": recipe.epochs}
    provenance = {**soup.card.provenance, "made": made}
    card = replace(soup.card, members=(TUNED,), provenance=provenance)
    return replace(soup, card=card, members=({n: torch.clone(t) for n, t in weights.items()},))
