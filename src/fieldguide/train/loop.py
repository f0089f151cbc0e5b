"""One fold's training: replicas from one start, merged as they go. Read this first.

    state = the newest checkpoint, or the start
    until the state has ended:
        for each replica:
            train an epoch: load its weights (the merged ones, after a merge), step, evaluate
        every `merge_every` epochs, and at the last:
            merge the replicas that did not diverge; re-estimate batch norm; evaluate
            keep these weights if they are the best (where a choice of epoch was asked for)
        save a checkpoint; stop?
    return the weights, the logits of the fold's test part, the history

A fold knows nothing of other folds. Every random draw comes from (seed, replica, epoch, what it
is for), so a fold trained alone, or resumed at any step, ends with the same bits as one trained
in sequence. Ranks of torch.distributed may train a replica each, or share one (`together`); a
process that is alone trains all. Knows nothing of run folders.
"""

import time
from pathlib import Path

import numpy as np
import torch

from fieldguide.errors import DataError, UsageError
from fieldguide.machine.controls import Controls
from fieldguide.machine.ranks import ALONE, Ranks
from fieldguide.merge import Weights
from fieldguide.network.network import load_weights, train_mode, weights_of
from fieldguide.photos.batches import Plan
from fieldguide.recipe import ResolvedRecipe
from fieldguide.seeds import derive_seed
from fieldguide.train.checkpoints import Checkpoints, newest_state
from fieldguide.train.evaluate import evaluate, evaluated_rows
from fieldguide.train.history import diverged, history_row, means, note, record
from fieldguide.train.job import FoldJob, Logits, replica_steps
from fieldguide.train.merging import (
    choose,
    merge_replicas,
    merged_is_the_replica,
    out_of_patience,
    revive,
)
from fieldguide.train.optimize import rate_factor, set_rates
from fieldguide.train.replica import Replica
from fieldguide.train.result import TrainedFold, arrays
from fieldguide.train.state import FoldState, Row, Tally
from fieldguide.train.step import train_step
from fieldguide.train.together import Together

# Photos that vanish during an epoch are replaced; with more than this share missing, the fit stops.
MISSING_SHARE = 0.01


def train_fold(
    job: FoldJob,
    folder: Path | None,
    controls: Controls | None = None,
    ranks: Ranks = ALONE,
) -> TrainedFold:
    """Train one fold, from the newest checkpoint in `folder` on (None: no checkpoints).

    Changes the job's network. With `ranks` each team trains some of the replicas, the first rank
    writes the checkpoints, and all return the same. Raises `TrainingError` when every replica has
    diverged, and whatever `controls.check_stop` raises, on any rank, after a checkpoint.
    """
    controls, recipe = controls or Controls(), job.recipe
    together = Together(ranks, recipe.replicas)
    steps = replica_steps(recipe, len(job.train))
    logits: Logits | None = None  # of the last replica
    kept: list[Weights] = []
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        state = newest_state(job, folder, controls, together)
        replicas = {n: begun_replica(job, state, n, ranks.team) for n in together.own}
        checkpoints = Checkpoints(folder, job, state, replicas, together, controls)
        controls.on_resume(sum(steps_done(state, steps, n) for n in together.own))
        if not recipe.epochs and not state.ended:
            keep_start(job, state, controls)
        while not state.ended:
            while state.replica < recipe.replicas:
                turn = together.turn(state, steps)
                row = None
                if turn.replica is None:
                    checkpoints.looks(turn.looks)
                else:
                    row, logits = train_epoch(job, state, turn.replica, turn.looks, checkpoints)
                for number, each in together.rows(turn, row, state):
                    note(job, state, number, each, controls)
                state.replica = turn.end
            if not state.healthy:
                raise diverged(job, state)
            state.ended = state.epoch + 1 == recipe.epochs
            if state.ended or (state.epoch + 1) % recipe.merge_every == 0:
                kept = merge_and_choose(job, state, checkpoints, logits)
                state.ended |= out_of_patience(recipe, state)
            revive(state, replicas)
            state.begin_epoch(state.epoch + 1)
            if not state.ended:
                checkpoints.save()
                ranks.stop_if_asked(controls)
    return result(state, kept)


def keep_start(job: FoldJob, state: FoldState, controls: Controls) -> None:
    """Change the state: the fold ends with its start, whose logits are known, as epoch 0."""
    assert job.start_logits is not None
    state.begin_epoch(-1)  # rows of the history count epochs from 1
    row = history_row(job, state, "merged", Tally(), job.start_logits)
    record(state, row | {"seconds": 0.0}, controls)
    choose(job, state, job.start_logits)
    state.ended = True


def begun_replica(job: FoldJob, state: FoldState, number: int, team: Ranks) -> Replica:
    """Return a replica as the state has it."""
    replica = Replica.of(job, team)
    replica.set_moments(state.moments[number])
    if state.scalers:
        replica.scaler.load_state_dict(state.scalers[number % len(state.scalers)])
    return replica


def train_epoch(
    job: FoldJob, state: FoldState, number: int, looks: int, checkpoints: Checkpoints
) -> tuple[Row, Logits | None]:
    """Train one replica's epoch, from its step on; its weights go into the state.

    Returns its row of the history, and its logits where a curve or the merged model needs them.
    After each of the first `looks` steps all ranks look whether to stop or save.
    """
    controls, replica = checkpoints.controls, checkpoints.replicas[number]
    tally = state.tallies[number]
    started = time.monotonic() - tally.seconds
    load_weights(job.network, state.copies[number])
    train_mode(job.network)
    replica.parts = max(state.parts, job.recipe.accumulate)
    plan = job.plan(number, state.epoch)
    photos, looked = sum(len(part) for part in plan.parts), 0
    todo = [] if tally.hopeless else own_share(job, plan, replica.team)[state.steps[number] :]
    for batch in job.loader.batches(todo):
        step = state.steps[number]
        set_rates(replica.optimizer, _rate_factor(job.recipe, state.epoch, step, len(plan)))
        seed = derive_seed(job.recipe.seed, "step", number, state.epoch, step)
        whole = len(plan.parts[step])
        done = train_step(job, replica, batch, seed, whole=whole, notice=controls.notice)
        tally.add(done, whole)
        tally.missing += batch.missing
        refuse_missing(tally, photos)  # before any checkpoint: they may come back
        state.parts, state.steps[number] = replica.parts, step + 1
        controls.on_step()
        if tally.hopeless:
            break
        if looked < looks:
            checkpoints.look(number, started)
            looked += 1
    checkpoints.looks(looks - looked, number, started)  # others go on
    state.copies[number] = weights_of(job.network)
    wanted = job.recipe.replica_curves or merged_is_the_replica(job.recipe)
    judged = wanted and not tally.diverged
    logits = evaluate(job, evaluated_rows(job), replica.team) if judged else None
    row = history_row(job, state, f"replica-{number + 1}", tally, logits)
    row["diverged"] |= tally.diverged or not _all_finite(state.copies[number])
    return row | {"seconds": round(time.monotonic() - started, 3)}, logits


def merge_and_choose(
    job: FoldJob, state: FoldState, checkpoints: Checkpoints, logits: Logits | None
) -> list[Weights]:
    """Merge the replicas into the state, evaluate, and keep the merged weights if they are best.

    `logits` are the last replica's, which are the merged model's where merging changes nothing.
    Returns the weights that were merged, if they are to be kept.
    """
    started = time.monotonic()
    together = checkpoints.together
    copies, moves = merge_replicas(job, state, checkpoints.replicas, together)
    if logits is None or not merged_is_the_replica(job.recipe):
        logits = evaluate(job, evaluated_rows(job), together.ranks)
    row = history_row(job, state, "merged", Tally(), logits) | means(moves)
    record(state, row | {"seconds": round(time.monotonic() - started, 3)}, checkpoints.controls)
    if not np.isfinite(logits).all():
        raise diverged(job, state, "the merged model")
    state.merges += [
        {"fold": job.fold, "epoch": state.epoch + 1, "tensor": name, **vars(move)}
        for name, move in moves.items()
    ]
    choose(job, state, logits)
    return copies if job.recipe.keep_replicas else []


def steps_done(state: FoldState, steps: list[int], replica: int) -> int:
    """Return the steps of a replica before the state's position."""
    ended = replica < state.replica
    return state.epoch * steps[replica] + (steps[replica] if ended else state.steps[replica])


def own_share(job: FoldJob, plan: Plan, team: Ranks) -> Plan:
    """Return what this rank computes of each batch beside the others of its team."""
    if not job.recipe.sync_batch_norm:
        return plan.shared(team.rank, team.world)
    fewest = min(len(part) for part in plan.parts)
    if fewest < team.world:
        raise UsageError(
            f"`sync_batch_norm` needs a photo of each batch on each of `batch_ranks` ="
            f" {team.world}, and one has {fewest} photos",
            hint="lower `batch_ranks`, or leave `sync_batch_norm` out",
        )
    return plan.shared(team.rank, team.world, least=1)


def _rate_factor(recipe: ResolvedRecipe, epoch: int, step: int, epoch_steps: int) -> float:
    return rate_factor(
        epoch * epoch_steps + step,
        recipe.epochs * epoch_steps,
        schedule=recipe.schedule,
        warmup=round(recipe.warmup * epoch_steps),
    )


def refuse_missing(tally: Tally, photos: int) -> None:
    """Raise `DataError` where too many of an epoch's photos could not be read any more."""
    if tally.missing > MISSING_SHARE * photos:
        raise DataError(
            f"{tally.missing} of {photos} training photos could not be read any more",
            hint="bring the photos back; the same command then resumes from the last checkpoint",
        )


def _all_finite(weights: Weights) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def result(state: FoldState, kept: list[Weights]) -> TrainedFold:
    """Return the fold's result, from its final state; `kept` are the replicas' last weights."""
    assert state.chosen is not None and state.logits is not None
    assert state.chosen_epoch is not None
    return TrainedFold(
        weights=arrays(state.chosen),
        chosen_epoch=state.chosen_epoch,
        logits=state.logits.numpy(),
        epoch_logits=np.array([logits.numpy() for logits in state.epoch_logits]),
        history=state.history,
        merges=state.merges,
        replicas=[arrays(weights) for weights in kept],
    )
