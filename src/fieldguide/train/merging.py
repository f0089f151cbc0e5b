"""What happens at a merge: one network of a fold's replicas, judged, kept or not, and given back.

Knows nothing of steps, epochs and checkpoints.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from fieldguide import merge
from fieldguide.errors import ResourceError
from fieldguide.machine.device import autocast, is_out_of_memory
from fieldguide.merge import Weights
from fieldguide.network.batch_norm import (
    RECALIBRATION_BATCH,
    RECALIBRATION_PHOTOS,
    has_batch_norm,
    recalibrate,
)
from fieldguide.network.network import backbone_anchor, load_weights, weights_of
from fieldguide.photos.batches import evaluation_plan
from fieldguide.recipe import Recipe
from fieldguide.seeds import derive_seed
from fieldguide.train.evaluate import watched_accuracy
from fieldguide.train.job import FoldJob
from fieldguide.train.replica import Replica, mean_moments
from fieldguide.train.state import FoldState
from fieldguide.train.together import Replicas, Together


def merge_replicas(
    job: FoldJob, state: FoldState, replicas: Replicas, together: Together
) -> tuple[list[Weights], Mapping[str, merge.Move]]:
    """Change the state: replicas that did not diverge become one, whose weights all go on with.

    Returns the weights that were merged, and how far each tensor had moved from the anchor. The
    network has the merged weights.
    """
    healthy = state.healthy
    together.share_copies(state)
    copies = [state.copies[n] for n in healthy]
    merged, moves = merge_copies(job, copies, state.merged)
    load_weights(job.network, outer_step(job, state, merged))
    if job.recipe.merge != "none" and job.recipe.batch_norm == "recalibrate":
        recalibrate_network(job)
    state.merged = together.ranks.same(weights_of(job.network))
    load_weights(job.network, state.merged)
    state.copies = [state.merged] * job.recipe.replicas
    merge_moments(job, healthy, replicas, together)
    return copies, moves


def merge_copies(
    job: FoldJob, copies: Sequence[Weights], last_merged: Weights
) -> tuple[Weights, Mapping[str, merge.Move]]:
    """Return the copies merged by the recipe's rule, and each tensor's move from the anchor."""
    recipe = job.recipe
    start = job.start if recipe.anchor == "pretrained" else last_merged
    anchor = backbone_anchor(job.network, start)
    moves = merge.moves(copies, anchor)
    if recipe.merge == "none":
        return copies[0], moves
    return merge.RULES[recipe.merge](copies, anchor), moves


def outer_step(job: FoldJob, state: FoldState, merged: Weights) -> Weights:
    """Return the merged weights, or where an outer step from the last ones towards them leads.

    Changes the state's velocity.
    """
    recipe = job.recipe
    if recipe.outer == "none" or recipe.merge == "none":
        return merged
    parameters = dict(job.network.named_parameters())
    velocity = state.velocity or {n: torch.zeros_like(merged[n]) for n in parameters}
    stepped, state.velocity = merge.outer_step(
        state.merged,
        merged,
        velocity,
        rate=recipe.outer_rate,
        momentum=recipe.outer_momentum,
    )
    return stepped


def merge_moments(
    job: FoldJob, healthy: Sequence[int], replicas: Replicas, together: Together
) -> None:
    """Change the replicas' moments at a merge, as the recipe says."""
    if job.recipe.moments == "keep":
        return
    found = together.all_moments(replicas, job.device) if job.recipe.moments == "average" else {}
    mean = mean_moments([found[n] for n in healthy]) if found else {}
    for replica in replicas.values():
        replica.set_moments(mean)


def recalibrate_network(job: FoldJob) -> None:
    """Change the network: batch-norm statistics re-estimated on some of the training photos."""
    if not has_batch_norm(job.network):
        return
    draw = np.random.default_rng(derive_seed(job.recipe.seed, "recalibration", job.fold))
    # Shuffled: batches of few classes have statistics of their own, by which layers normalise.
    rows = draw.permutation(job.train)[:RECALIBRATION_PHOTOS]
    plan = evaluation_plan(rows, RECALIBRATION_BATCH)
    try:
        with autocast(job.device, job.precision):
            recalibrate(
                job.network, (job.normalise(batch.images) for batch in job.loader.batches(plan))
            )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"memory ran out on `{job.device}` while batch norm was re-estimated"
            f" on {RECALIBRATION_BATCH} photos at once",
            hint="begin a run with batch_norm `average`",
        ) from error


def choose(job: FoldJob, state: FoldState, logits: Float[np.ndarray, "n classes"]) -> None:
    """Change the state: the merged weights are kept, with early stopping if they score best."""
    stop = job.recipe.stop
    test = torch.from_numpy(logits[: len(job.test)].copy())
    if stop == "fold":
        state.epoch_logits.append(test.clone())
    score = None if stop == "none" else watched_accuracy(job, logits)
    if score is None or score > state.best_score:
        state.best_score = state.best_score if score is None else score
        state.chosen, state.chosen_epoch, state.logits = state.merged, state.epoch, test


def out_of_patience(recipe: Recipe, state: FoldState) -> bool:
    """Return whether early stopping has waited long enough for a better merged model."""
    assert state.chosen_epoch is not None
    return recipe.stop != "none" and state.epoch - state.chosen_epoch >= recipe.patience


def merged_is_the_replica(recipe: Recipe) -> bool:
    """Return whether merging changes nothing, so that one evaluation does for both."""
    own = recipe.replicas == 1 and recipe.batch_norm == "average" and recipe.outer == "none"
    return recipe.merge == "none" or own


def revive(state: FoldState, replicas: Mapping[int, Replica]) -> None:
    """Change diverged replicas: they start again from the last merged weights, without moments."""
    for number in state.diverged:
        state.copies[number] = state.merged
        if number in replicas:
            replicas[number].set_moments({})
