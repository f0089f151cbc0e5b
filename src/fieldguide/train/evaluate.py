"""Logits of a fold's photos under the network's present weights. Knows nothing of training."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from fieldguide.analysis import metrics
from fieldguide.errors import ResourceError
from fieldguide.machine.device import autocast, is_out_of_memory
from fieldguide.machine.ranks import ALONE, Ranks
from fieldguide.network.network import load_weights
from fieldguide.photos.batches import Draw, evaluation_plan
from fieldguide.train.job import FoldJob, IntArray


def evaluate(job: FoldJob, rows: IntArray, ranks: Ranks = ALONE) -> Float[np.ndarray, "n classes"]:
    """Return logits of photos under the network's weights, in the order of `rows`, in float32.

    Photos are seen by the evaluation transform; where memory runs out, in batches half as large.
    `ranks` with the same weights look at whole batches in turn: at each photo once, and in the
    batches of one that is alone.
    """
    load_weights(job.absorbed.network, job.absorbed.weights(job.network.state_dict()))
    plan = evaluation_plan(rows, job.recipe.batch_size)
    rank_of = np.repeat(np.arange(len(plan)) % ranks.world, [len(part) for part in plan])
    logits = np.empty((len(rows), job.classes), dtype=np.float32)
    for rank, found in enumerate(ranks.exchange(_evaluate(job, plan[ranks.rank :: ranks.world]))):
        logits[rank_of == rank] = found
    return logits


def _evaluate(job: FoldJob, plan: Sequence[Sequence[Draw]]) -> Float[np.ndarray, "n classes"]:
    while True:
        parts = [torch.empty((0, job.classes))]
        try:
            with torch.inference_mode(), autocast(job.device, job.precision):
                for batch in job.loader.batches(plan):
                    parts.append(job.absorbed.network(job.normalise(batch.images)).float().cpu())
            return torch.cat(parts).numpy()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if all(len(part) == 1 for part in plan):
                raise too_large(job, job.recipe.eval_size) from error
            plan = [half for part in plan for half in _halves(part)]


def _halves(part: Sequence[Draw]) -> list[Sequence[Draw]]:
    middle = -(-len(part) // 2)
    return [half for half in (part[:middle], part[middle:]) if half]


def evaluated_rows(job: FoldJob) -> IntArray:
    """Return the fold's test part, and after it what else is watched for stopping."""
    return np.concatenate([job.test, np.setdiff1d(job.watch, job.test)])


def watched_accuracy(job: FoldJob, logits: Float[np.ndarray, "n classes"]) -> float:
    """Return the accuracy on the watched photos among the evaluated ones."""
    rows = evaluated_rows(job)
    watched = np.isin(rows, job.watch)
    return metrics.accuracy(logits[watched], job.targets[rows[watched]])


def too_large(job: FoldJob, size: int) -> ResourceError:
    """Return the error of a device that cannot compute even one photo of `size` pixels."""
    return ResourceError(
        f"memory ran out on `{job.device}` for a single photo of {size} pixels"
        f" with {job.recipe.backbone}",
        hint="lower `size`, take a smaller `backbone`, or set precision to `bfloat16`",
    )
