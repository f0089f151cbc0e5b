"""One fold's training: replicas from one start, merged as they go. Read this first.

    merged = start;  one network, one optimiser a replica
    for each epoch:
        for each replica:
            load its weights (the merged ones, after a merge); one epoch with its own draws;
            evaluate
        every `merge_every` epochs, and at the last:
            merge the replicas that did not diverge; measure batch norm anew; evaluate
            keep these weights if they are the best (where a choice of epoch was asked for)
        save a checkpoint; stop?
    return the weights, the logits of the fold's test part, the history

A fold knows nothing of other folds. Every random draw comes from (seed, replica, epoch, what it
is for), so a fold trained alone, or resumed at any step, ends with the same bits as one trained
in sequence. Knows nothing of run folders.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from fieldguide import merge
from fieldguide.analysis import metrics
from fieldguide.errors import DataError, ResourceError, TrainingError, UsageError
from fieldguide.machine.controls import Controls, asked_to_stop
from fieldguide.machine.device import autocast, is_out_of_memory
from fieldguide.machine.ranks import ALONE, Ranks
from fieldguide.merge import Weights
from fieldguide.network.batch_norm import (
    RECALIBRATION_BATCH,
    RECALIBRATION_PHOTOS,
    has_batch_norm,
    recalibrate,
)
from fieldguide.network.network import backbone_anchor, load_weights, train_mode, weights_of
from fieldguide.photos.batches import Batch, Plan, evaluation_plan
from fieldguide.recipe import Recipe
from fieldguide.seeds import derive_seed
from fieldguide.train.evaluate import evaluate, evaluated_rows, too_large, watched_accuracy
from fieldguide.train.job import FoldJob, replica_steps
from fieldguide.train.optimize import (
    Moments,
    make_optimizer,
    moments_of,
    parameter_groups,
    rate_factor,
    set_moments,
    set_rates,
)
from fieldguide.train.state import FoldState, Row, Step, Tally, load_state, save_state
from fieldguide.train.step import train_step

# Photos that vanish during an epoch are replaced; with more than this share missing, the fit stops.
MISSING_SHARE = 0.01


@dataclass(frozen=True)
class FoldResult:
    """What a fold's training gives.

    `logits` (test photos, classes) are those of `weights`, from `chosen_epoch`; `epoch_logits`
    the merged model's after every merge (only where the fold's own test part chose the epoch).
    `replicas` are the weights before the last merge, if they were to be kept.
    """

    weights: Weights
    chosen_epoch: int
    logits: Float[np.ndarray, "n classes"]
    epoch_logits: Float[np.ndarray, "..."]
    history: list[Row]
    merges: list[Row]
    replicas: list[Weights]


def train_fold(
    job: FoldJob,
    folder: Path | None,
    controls: Controls | None = None,
    ranks: Ranks = ALONE,
) -> FoldResult:
    """Trains one fold, going on from the newest checkpoint in `folder` (None: no checkpoints).

    Changes the job's network. With `ranks` each team trains some of the replicas, the first rank
    writes the checkpoints, and all return the same. Raises `TrainingError` when every replica has
    diverged, and whatever `controls.check_stop` raises, on any rank, after a checkpoint.
    """
    controls = controls or Controls()
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        session = _Session(job, folder, controls, ranks)
        while not session.state.ended:
            session.run_epoch()
        return session.result()


class _Session:
    """The loop's moving parts: what checkpoints hold, and the optimisers of the one network.

    On several ranks it holds weights and moments of its `own` replicas, as do the other ranks of
    its team; of the others it knows those that are merged, at a merge.
    """

    def __init__(
        self, job: FoldJob, folder: Path | None, controls: Controls, ranks: Ranks = ALONE
    ) -> None:
        self.job, self.folder, self.controls, self.ranks = job, folder, controls, ranks
        self.team, self.peers = ranks.team, ranks.peers
        self.own = range(self.peers.rank, job.recipe.replicas, self.peers.world)
        self.state = _first_or_saved_state(job, folder, controls, self.own)
        _require_same_state(self.state, folder, ranks)
        self.optimizers = {replica: _optimizer(job) for replica in self.own}
        for replica, optimizer in self.optimizers.items():
            moments = _to(job.device, self.state.moments[replica])
            set_moments(optimizer, job.network.named_parameters(), moments)
        self.scaler = torch.GradScaler(job.device.type, enabled=job.precision == "float16")
        if self.state.scalers:
            saved = self.state.scalers[self.peers.rank % len(self.state.scalers)]
            self.scaler.load_state_dict(saved)
        self.replicas: list[Weights] = []
        self.replica_logits: Float[np.ndarray, "n classes"] | None = None  # of its last replica
        self.saved_at = time.monotonic()
        controls.on_resume(self.steps_done())

    def steps_done(self) -> int:
        """The steps before the state's position, over its own replicas."""
        state, steps = self.state, replica_steps(self.job.recipe, len(self.job.train))
        return sum(
            state.epoch * steps[n] + (steps[n] if n < state.replica else state.steps[n])
            for n in self.own
        )

    def run_epoch(self) -> None:
        """Every replica's epoch, then the merge if it is due."""
        state, recipe = self.state, self.job.recipe
        while state.replica < recipe.replicas:
            self.run_round()
        healthy = [n for n in range(recipe.replicas) if n not in state.diverged]
        if not healthy:
            raise self.divergence()
        state.ended = state.epoch + 1 == recipe.epochs
        if state.ended or (state.epoch + 1) % recipe.merge_every == 0:
            self.merge(healthy)
            state.ended |= self.out_of_patience()
        self.revive(state.diverged)
        state.begin_epoch(state.epoch + 1)
        if not state.ended:
            self.save()
            stop, _ = self.ranks.agree(asked_to_stop(self.controls), False)
            if stop:
                raise stop

    def run_round(self) -> None:
        """The epoch of a replica on each team, in step; their rows follow in order."""
        state, begin = self.state, self.state.replica - self.state.replica % self.peers.world
        end, replica = begin + self.peers.world, begin + self.peers.rank
        steps = replica_steps(self.job.recipe, len(self.job.train))
        # After all but its last step a rank looks whether any of them is to stop or save.
        looks = max(steps[n] - state.steps[n] for n in range(state.replica, end)) - 1
        row = None
        if replica >= state.replica:
            row = self.run_replica(replica, looks)
        else:  # it was done when another number of ranks saved
            for _ in range(looks):
                self.checkpoint_within_epoch()
        told = self.ranks.exchange((row, state.parts))
        state.parts = max(parts for _, parts in told)
        for number, (each, _) in enumerate(told[:: self.team.world], start=begin):
            if each is not None:
                self.note(number, each)
        state.replica = end

    def note(self, replica: int, row: Row) -> None:
        """Adds a replica's row to the history, and the replica to those that diverged."""
        if row["diverged"]:
            self.state.diverged.append(replica)
            self.controls.notice(
                f"fold {self.job.fold}: replica {replica + 1} diverged"
                f" in epoch {row['epoch']} at step {row['steps']}"
            )
        self.record(row)

    def run_replica(self, replica: int, looks: int) -> Row:
        """One replica's epoch, from its step on; weights go into the state. Returns its row."""
        state, network, tally = self.state, self.job.network, self.state.tallies[replica]
        started = time.monotonic() - tally.seconds
        load_weights(network, state.copies[replica])
        self.train_epoch(replica, looks, started)
        state.copies[replica] = weights_of(network)
        self.replica_logits = self.replica_evaluated(tally)
        row = _row(self.job, state, f"replica-{replica + 1}", tally, self.replica_logits)
        row["diverged"] |= tally.diverged or not _all_finite(state.copies[replica])
        return row | {"seconds": round(time.monotonic() - started, 3)}

    def replica_evaluated(self, tally: Tally) -> Float[np.ndarray, "n classes"] | None:
        """The logits of the replica under way, where its curve or the merged model's needs them."""
        recipe = self.job.recipe
        wanted = recipe.replica_curves or _merged_is_the_replica(recipe)
        if tally.diverged or not wanted:
            return None
        return evaluate(self.job, evaluated_rows(self.job), self.team)

    def train_epoch(self, replica: int, looks: int, started: float) -> None:
        """What is left of one replica's epoch, with so many looks at the other ranks."""
        job, state, recipe = self.job, self.state, self.job.recipe
        optimizer, tally = self.optimizers[replica], state.tallies[replica]
        plan = job.plan(replica, state.epoch)
        photos = sum(len(part) for part in plan.parts)
        train_mode(job.network)
        size = training_size(recipe, state.epoch)
        loader = job.loader if size == recipe.size else job.resized(size)
        todo = [] if tally.hopeless else self.own_share(plan)[state.steps[replica] :]
        looked = 0
        for batch in loader.batches(todo):
            step = state.steps[replica]
            done = state.epoch * len(plan) + step
            set_rates(optimizer, _rate_factor(recipe, done, len(plan)))
            seed = derive_seed(recipe.seed, "step", replica, state.epoch, step)
            whole = len(plan.parts[step])
            tally.add(self.step(optimizer, batch, seed, whole), whole)
            tally.missing += batch.missing
            _refuse_missing(tally, photos)  # before any checkpoint: they may come back
            state.steps[replica] += 1
            self.controls.on_step()
            if tally.hopeless:
                break
            if looked < looks:
                self.checkpoint_within_epoch(replica, started)
                looked += 1
        for _ in range(looked, looks):  # others go on
            self.checkpoint_within_epoch(replica, started)

    def own_share(self, plan: Plan) -> Plan:
        """What it computes of each batch beside the others of its team."""
        if not self.job.recipe.sync_batch_norm:
            return plan.shared(self.team.rank, self.team.world)
        fewest = min(len(part) for part in plan.parts)
        if fewest < self.team.world:
            raise UsageError(
                f"`sync_batch_norm` needs a photo of each batch on each of `batch_ranks` ="
                f" {self.team.world}, and one has {fewest} photos",
                hint="lower `batch_ranks`, or leave `sync_batch_norm` out",
            )
        return plan.shared(self.team.rank, self.team.world, least=1)

    def step(
        self, optimizer: torch.optim.Optimizer, batch: Batch, seed: int, whole: int
    ) -> Step | None:
        """A step in as many parts as the memory demands: twice as many after each failure.

        The batch is the team's share of one of `whole` photos.
        """
        while True:
            try:
                parts = max(self.state.parts, self.job.recipe.accumulate)
                return train_step(
                    self.job, optimizer, self.scaler, batch, seed, parts, self.team, whole
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                _refuse_single_photos(self.job, batch, parts, error)
                self.state.parts = 2 * parts
                self.controls.notice(
                    f"memory ran out: each batch is now computed in {2 * parts} parts"
                )

    def merge(self, healthy: Sequence[int]) -> None:
        """Merges, evaluates, gives the merged weights back, and keeps them if they are the best."""
        job, state, recipe = self.job, self.state, self.job.recipe
        started = time.monotonic()
        self.gather_copies()
        copies = [state.copies[n] for n in healthy]
        if recipe.keep_replicas:
            self.replicas = copies
        merged, moves = merge_copies(job, copies, state.merged)
        load_weights(job.network, self.stepped(merged))
        if recipe.merge != "none" and recipe.batch_norm == "recalibrate":
            recalibrate_network(job)
        state.merged = self.ranks.same(weights_of(job.network))
        load_weights(job.network, state.merged)
        state.copies = [state.merged] * recipe.replicas
        self.merge_moments(healthy)
        logits = self.replica_logits if _merged_is_the_replica(recipe) else None
        logits = evaluate(job, evaluated_rows(job), self.ranks) if logits is None else logits
        row = _row(job, state, "merged", Tally(), logits) | _means(moves)
        self.record(row | {"seconds": round(time.monotonic() - started, 3)})
        if not np.isfinite(logits).all():
            raise self.divergence("the merged model")
        state.merges += [
            {"fold": job.fold, "epoch": state.epoch + 1, "tensor": name, **vars(move)}
            for name, move in moves.items()
        ]
        self.choose(logits)

    def gather_copies(self) -> None:
        """Every replica's weights on every rank: a merge is then the same to the bit as alone."""
        for replica in self.own:
            begin = replica - self.peers.rank
            gathered = self.peers.gather(self.state.copies[replica])
            self.state.copies[begin : begin + self.peers.world] = gathered

    def stepped(self, merged: Weights) -> Weights:
        """The merged weights, or where an outer step from the last ones towards them leads."""
        state, recipe = self.state, self.job.recipe
        if recipe.outer == "none" or recipe.merge == "none":
            return merged
        parameters = dict(self.job.network.named_parameters())
        velocity = state.velocity or {n: torch.zeros_like(merged[n]) for n in parameters}
        stepped, state.velocity = merge.outer_step(
            state.merged,
            merged,
            velocity,
            rate=recipe.outer_rate,
            momentum=recipe.outer_momentum,
        )
        return stepped

    def choose(self, logits: Float[np.ndarray, "n classes"]) -> None:
        """Keeps the merged weights: without early stopping always, else if they score best."""
        job, state, stop = self.job, self.state, self.job.recipe.stop
        test = torch.from_numpy(logits[: len(job.test)].copy())
        if stop == "fold":
            state.epoch_logits.append(test.clone())
        score = None if stop == "none" else watched_accuracy(job, logits)
        if score is None or score > state.best_score:
            state.best_score = state.best_score if score is None else score
            state.chosen, state.chosen_epoch, state.logits = state.merged, state.epoch, test

    def out_of_patience(self) -> bool:
        """Whether early stopping has waited long enough for a better merged model."""
        state, recipe = self.state, self.job.recipe
        assert state.chosen_epoch is not None
        return recipe.stop != "none" and state.epoch - state.chosen_epoch >= recipe.patience

    def merge_moments(self, healthy: Sequence[int]) -> None:
        """What the recipe says becomes of the optimisers' moments at a merge."""
        how, named = self.job.recipe.moments, list(self.job.network.named_parameters())
        if how == "keep":
            return
        mean: Moments = {}
        if how == "average":
            found: dict[int, Moments] = {}
            for part in self.peers.exchange(self.own_moments()):
                found |= part
            mean = _to(self.job.device, _mean_moments([found[n] for n in healthy]))
        for optimizer in self.optimizers.values():
            set_moments(optimizer, named, mean)

    def own_moments(self) -> dict[int, Moments]:
        """The moments of its replicas; in main memory, where other ranks are to have them."""
        named = list(self.job.network.named_parameters())
        device = self.job.device if self.peers.world == 1 else torch.device("cpu")
        return {n: _to(device, moments_of(each, named)) for n, each in self.optimizers.items()}

    def revive(self, diverged: Sequence[int]) -> None:
        """Diverged replicas start anew from the last merged weights, without moments."""
        for replica in diverged:
            self.state.copies[replica] = self.state.merged
            if replica in self.optimizers:
                self.optimizers[replica].state.clear()

    def checkpoint_within_epoch(self, replica: int | None = None, started: float = 0.0) -> None:
        """Saves if it is time, or if the outside world wants to stop: then its error goes on up.

        The network's present weights are those of the `replica` under way, if one is.
        """
        due = time.monotonic() - self.saved_at > 60 * self.job.recipe.checkpoint_minutes
        stop, due = self.ranks.agree(asked_to_stop(self.controls), due)
        if stop or due:
            if replica is not None:
                self.state.tallies[replica].seconds = time.monotonic() - started
                self.state.copies[replica] = weights_of(self.job.network)
            self.save()
        if stop:
            raise stop

    def save(self) -> None:
        """Writes a checkpoint, if there is a folder for it."""
        if self.folder is not None and self.team.first:
            self.collect()
            if self.ranks.first:
                save_state(self.folder, self.state)
        self.saved_at = time.monotonic()

    def collect(self) -> None:
        """Puts moments into the state, and on the first rank what the others have come to."""
        state, peers, moments = self.state, self.peers, self.own_moments()
        state.moments = [moments.get(n, {}) for n in range(self.job.recipe.replicas)]
        parts = [] if peers.first else [_Part.of(state, n) for n in self.own]
        told = peers.collect((parts, self.scaler.state_dict()))
        state.scalers = [scaler for _, scaler in told]
        for parts, _ in told:
            for part in parts:
                part.put_into(state)

    def record(self, row: Row) -> None:
        """Adds a row to the history and tells the outside world."""
        self.state.history.append(row)
        self.controls.on_row(row)

    def divergence(self, what: str = "") -> TrainingError:
        """The error of a fold that cannot go on."""
        state = self.state
        what = what or f"replica {', '.join(str(n + 1) for n in state.diverged)}"
        return TrainingError(
            f"fold {self.job.fold}: training diverged: {what} in epoch {state.epoch + 1}"
            f" has no finite loss (last at step {_last_step(state)})",
            hint="begin a new run with lower backbone_rate and head_rate, or with precision"
            " `float32`; this one keeps its last good checkpoint, if it got that far",
        )

    def result(self) -> FoldResult:
        """The fold's result, from its final state."""
        state = self.state
        assert state.chosen is not None and state.logits is not None
        assert state.chosen_epoch is not None
        return FoldResult(
            weights=state.chosen,
            chosen_epoch=state.chosen_epoch,
            logits=state.logits.numpy(),
            epoch_logits=np.array([logits.numpy() for logits in state.epoch_logits]),
            history=state.history,
            merges=state.merges,
            replicas=self.replicas,
        )


def _all_finite(weights: Weights) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def _merged_is_the_replica(recipe: Recipe) -> bool:
    """Whether merging changes nothing, so that one evaluation does for both."""
    own = recipe.replicas == 1 and recipe.batch_norm == "average" and recipe.outer == "none"
    return recipe.merge == "none" or own


def merge_copies(
    job: FoldJob, copies: Sequence[Weights], last_merged: Weights
) -> tuple[Weights, Mapping[str, merge.Move]]:
    """The copies merged by the recipe's rule, and how far each tensor had moved from the anchor."""
    recipe = job.recipe
    start = job.start if recipe.anchor == "pretrained" else last_merged
    anchor = backbone_anchor(job.network, start)
    moves = merge.moves(copies, anchor)
    if recipe.merge == "none":
        return copies[0], moves
    return merge.RULES[recipe.merge](copies, anchor), moves


def recalibrate_network(job: FoldJob) -> None:
    """Changes the network: batch norm measured on some of the fold's training photos."""
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
            f"memory ran out on `{job.device}` while batch norm was measured"
            f" on {RECALIBRATION_BATCH} photos at once",
            hint="begin a run with batch_norm `average`",
        ) from error


def training_size(recipe: Recipe, epoch: int) -> int:
    """Pixels a side of training pictures in an epoch (from 0).

    Grows evenly from `first_size` to `size`, by multiples of 16: half a pixel of a ResNet's last
    stage. Source: progressive resizing, as in Tan, Le,
    "EfficientNetV2: Smaller Models and Faster Training", ICML 2021, section 4, without their
    growing regularisation.
    """
    assert recipe.size != "auto" and recipe.first_size != "auto"
    if epoch + 1 == recipe.epochs or recipe.first_size == recipe.size:
        return recipe.size
    grown = (recipe.size - recipe.first_size) * epoch / (recipe.epochs - 1)
    return min(recipe.first_size + round(grown / 16) * 16, recipe.size)


@dataclass
class _Part:
    """One replica's part of a state, as it goes from rank to rank. No weights: the merged ones."""

    replica: int
    steps: int
    tally: Tally
    weights: Weights | None
    moments: Moments

    @classmethod
    def of(cls, state: FoldState, replica: int) -> "_Part":
        copy = state.copies[replica]
        own = None if copy is state.merged else {name: w.cpu() for name, w in copy.items()}
        return cls(
            replica, state.steps[replica], state.tallies[replica], own, state.moments[replica]
        )

    def put_into(self, state: FoldState) -> None:
        """Changes the state."""
        number = self.replica
        state.steps[number], state.tallies[number] = self.steps, self.tally
        state.moments[number] = self.moments
        state.copies[number] = state.merged if self.weights is None else self.weights


def _require_same_state(state: FoldState, folder: Path | None, ranks: Ranks) -> None:
    """Raises `ResourceError` where ranks would go on from different places."""
    found = ranks.exchange((state.epoch, state.replica, state.steps, len(state.merges)))
    if any(each != found[0] for each in found):
        odd = next(rank for rank, each in enumerate(found) if each != found[0])
        raise ResourceError(
            f"rank {odd} finds another checkpoint in `{folder}` than rank 0",
            hint="the run folder must be the same one for all ranks",
        )


def _first_or_saved_state(
    job: FoldJob, folder: Path | None, controls: Controls, own: range
) -> FoldState:
    """Where to go on; of other ranks' replicas without the weights and moments."""
    state = load_state(folder, controls.notice) if folder else None
    if state is None:
        start = {name: tensor.to(job.device) for name, tensor in job.start.items()}
        replicas = job.recipe.replicas
        return FoldState(
            merged=start, copies=[start] * replicas, moments=[{}] * replicas, parts=job.parts
        )
    moved: dict[int, Weights] = {}

    def on_device(weights: Weights) -> Weights:
        key = id(weights)
        return moved.setdefault(key, {k: v.to(job.device) for k, v in weights.items()})

    state.merged, state.velocity = on_device(state.merged), on_device(state.velocity)
    state.copies = [
        on_device(copy) if n in own else state.merged for n, copy in enumerate(state.copies)
    ]
    state.moments = [each if n in own else {} for n, each in enumerate(state.moments)]
    state.chosen = on_device(state.chosen) if state.chosen is not None else None
    return state


def _optimizer(job: FoldJob) -> torch.optim.AdamW:
    return make_optimizer(
        parameter_groups(
            job.network.backbone,
            job.network.head,
            backbone_rate=job.recipe.backbone_rate,
            head_rate=job.recipe.head_rate,
            weight_decay=job.recipe.weight_decay,
        )
    )


def _rate_factor(recipe: Recipe, step: int, epoch_steps: int) -> float:
    return rate_factor(
        step,
        recipe.epochs * epoch_steps,
        schedule=recipe.schedule,
        warmup=round(recipe.warmup * epoch_steps),
    )


def _mean_moments(moments: Sequence[Moments]) -> Moments:
    return {
        name: merge.average([replica[name] for replica in moments])
        for name in moments[0]
        if all(name in replica for replica in moments)
    }


def _to(device: torch.device, moments: Moments) -> Moments:
    return {name: {k: v.to(device) for k, v in values.items()} for name, values in moments.items()}


def _row(
    job: FoldJob,
    state: FoldState,
    model: str,
    tally: Tally,
    logits: Float[np.ndarray, "n classes"] | None,
) -> Row:
    """One row of the history. What is not finite or not measured is None."""
    finite = logits is None or bool(np.isfinite(logits).all())
    row: Row = {
        "fold": job.fold,
        "epoch": state.epoch + 1,
        "model": model,
        "train_loss": tally.loss / tally.photos if tally.photos else None,
        "train_accuracy": tally.right / tally.photos if tally.photos else None,
        "test_loss": None,
        "test_accuracy": None,
        "steps": tally.steps,
        "skipped": tally.skipped,
        "missing": tally.missing,
        "diverged": not finite,
        "parts": max(state.parts, job.recipe.accumulate),
    }
    if logits is not None and finite:
        test, targets = logits[: len(job.test)], job.targets[job.test]
        row["test_loss"] = metrics.log_loss(metrics.softmax(test), targets)
        row["test_accuracy"] = metrics.accuracy(test, targets)
    return row


def _means(moves: Mapping[str, merge.Move]) -> Row:
    """Means over tensors, for the curves; every tensor's own figures are in the table of merges."""
    if not moves:
        return {}
    values = np.array([(move.ratio, move.angle, move.distance) for move in moves.values()])
    names = ("ratio_mean", "angle_mean", "distance_mean")
    return dict(zip(names, values.mean(axis=0).tolist(), strict=True))


def _last_step(state: FoldState) -> int:
    steps = [row["steps"] for row in state.history if row["epoch"] == state.epoch + 1]
    return max(steps, default=0)


def _refuse_single_photos(job: FoldJob, batch: Batch, parts: int, error: RuntimeError) -> None:
    if parts >= len(batch.photos):
        raise too_large(job) from error


def _refuse_missing(tally: Tally, photos: int) -> None:
    if tally.missing > MISSING_SHARE * photos:
        raise DataError(
            f"{tally.missing} of {photos} training photos could not be read any more",
            hint="bring the photos back; the same command then goes on from the last checkpoint",
        )
