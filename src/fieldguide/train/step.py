"""One step of one replica: gradients of a batch, in parts if need be, perhaps of several ranks.

Knows nothing of epochs, merges and checkpoints.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fieldguide.errors import ResourceError
from fieldguide.machine.device import autocast, is_out_of_memory
from fieldguide.machine.sync_batch_norm import Synchronised
from fieldguide.network.batch_norm import trained_statistics
from fieldguide.photos.augment import mix_batch
from fieldguide.photos.batches import Batch
from fieldguide.seeds import derive_seed
from fieldguide.train.evaluate import too_large
from fieldguide.train.job import FoldJob, Source
from fieldguide.train.replica import Replica
from fieldguide.train.state import Step


def train_step(
    job: FoldJob,
    replica: Replica,
    batch: Batch,
    seed: int,
    *,
    whole: int | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> Step | None:
    """Change the replica by one step; return None if its loss or a gradient was not finite.

    A step that fails or is not finite changes nothing, batch-norm statistics included. The batch is
    computed in `replica.parts`, twice as many after each shortage of memory, which `notice` is told
    of. Their gradients are added up: the same step, but that each part is normalised by its own
    statistics where there is batch norm.

    The ranks of the replica's team have a share each of a batch of `whole` photos, perhaps none,
    and add up their gradients. So they come to the same weights, and know alike what is not finite.
    Each finds by itself in how many parts its share fits into memory; the others wait for it.

    Raises `ResourceError` where memory does not suffice for a single photo, or runs out where ranks
    wait for each other.
    """
    whole = len(batch.photos) if whole is None else whole
    while True:
        statistics = [buffer.clone() for buffer in replica.network.buffers()]
        torch.manual_seed(seed)
        try:
            with _batch_norms_over(job, replica):
                loss, accuracy = _backward(job, replica, batch, whole)
            with _no_second_try(job, replica):
                loss, accuracy = _put_together(replica, batch, loss, accuracy, whole)
                finite = _update(replica, loss)
        except RuntimeError as error:
            _forget(replica, statistics)
            if not is_out_of_memory(error):
                raise
            if replica.parts >= len(batch.photos):
                raise too_large(job, batch.images.shape[-1]) from error
            replica.parts *= 2
            notice(f"memory ran out: each batch is now computed in {replica.parts} parts")
            continue
        if not finite:
            _restore(replica.network, statistics)
        replica.scaler.update()
        replica.optimizer.zero_grad()
        return Step(float(loss), float(accuracy)) if finite else None


def _update(replica: Replica, loss: Tensor) -> bool:
    """Change the weights by the gradients, if loss and gradients are finite; return whether."""
    replica.scaler.unscale_(replica.optimizer)
    gradients = [each.grad for each in replica.network.parameters() if each.grad is not None]
    finite = bool(torch.isfinite(loss + torch.nn.utils.get_total_norm(gradients)))
    if finite:
        replica.scaler.step(replica.optimizer)
    return finite


def _forget(replica: Replica, statistics: Sequence[Tensor]) -> None:
    """Change the replica: it is as before a step that failed."""
    _restore(replica.network, statistics)
    replica.optimizer.zero_grad()
    replica.scaler.update(replica.scaler.get_scale())  # forgets that gradients were unscaled


def _restore(network: nn.Module, buffers: Sequence[Tensor]) -> None:
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)


@contextmanager
def _batch_norms_over(job: FoldJob, replica: Replica) -> Iterator[None]:
    """While it is entered, batch norms look at all of the team's photos, if the recipe says so."""
    if replica.team.world == 1 or not job.recipe.sync_batch_norm:
        yield
        return
    with Synchronised(replica.team), _no_second_try(job, replica):
        yield


@contextmanager
def _no_second_try(job: FoldJob, replica: Replica) -> Iterator[None]:
    """For what ranks do together: where memory runs out on one, it cannot begin again alone."""
    try:
        yield
    except RuntimeError as error:
        if replica.team.world == 1 or not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"memory ran out on `{job.device}` where the ranks of a batch wait for each other",
            hint="begin a run with a larger `accumulate`, or more `batch_ranks`",
        ) from error


def _put_together(
    replica: Replica, batch: Batch, loss: Tensor, accuracy: Tensor, whole: int
) -> tuple[Tensor, Tensor]:
    """Change gradients, statistics and the count of missing photos to those of the whole batch.

    Gradients are added up, running statistics averaged by the ranks' numbers of photos. Returns the
    whole batch's loss and accuracy. Norms' counters of batches stay each rank's own: the first's
    are kept.

    One message after the gradients, not torch's DistributedDataParallel: that sends from within the
    backward pass, so that a rank could neither do it again in more parts nor leave it out.
    """
    if replica.team.world == 1:
        return loss, accuracy
    trained = [each for each in replica.network.parameters() if each.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # this rank has no photos
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    statistics = trained_statistics(replica.network)
    for statistic in statistics:
        statistic.mul_(len(batch.photos) / whole)
    own = dict(enumerate([*gradients, *statistics]))
    measured = torch.stack([loss, accuracy, torch.full_like(loss, batch.missing)])
    totals = replica.team.total({str(n): tensor for n, tensor in own.items()} | {"step": measured})
    for number, tensor in own.items():
        tensor.copy_(totals[str(number)])
    loss, accuracy, missing = totals["step"]
    batch.missing = round(float(missing))
    return loss, accuracy


def _backward(job: FoldJob, replica: Replica, batch: Batch, whole: int) -> tuple[Tensor, Tensor]:
    """Change the gradients; return loss and accuracy of a batch computed in parts.

    They are means over the `whole` batch, to which each rank of the team adds its photos' part.
    """
    recipe, team = job.recipe, replica.team
    total, right = torch.zeros(2, device=job.device)
    replica.scaler.scale(total)  # has to be asked before gradients are unscaled
    if not len(batch.photos):
        return total, right
    targets = torch.from_numpy(job.targets)[batch.photos].to(job.device)
    images, shares = mix_batch(
        batch.images.to(job.device, non_blocking=True),
        targets,
        normalise=job.normalise,
        classes=job.classes,
        mix=recipe.mix if len(targets) > 1 else "none",
        alpha=recipe.mix_alpha,
    )
    images = images.contiguous(memory_format=job.normalise.layout)  # MixUp's are not
    if team.rank:  # dropout is each rank's own; boxes and shares of the mixing were the same
        torch.manual_seed(derive_seed(torch.initial_seed(), "rank", team.rank))
    # As many on every rank where they go through their norms together.
    most = whole // team.world if recipe.sync_batch_norm else len(images)
    parts = min(replica.parts, most)
    for part, part_shares in zip(
        images.tensor_split(parts), shares.tensor_split(parts), strict=True
    ):
        with autocast(job.device, job.precision):
            if job.source:
                logits, features = job.network(part, features=True)
            else:
                logits = job.network(part)
        loss = nn.functional.cross_entropy(
            logits.float(),
            part_shares,
            weight=job.class_weights,
            label_smoothing=recipe.label_smoothing,
        )
        if job.source:
            loss = loss + recipe.co_tuning * source_loss(job.source, features, part_shares)
        loss = loss * (len(part) / whole)
        replica.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        best = logits.detach().argmax(dim=1, keepdim=True)
        right += part_shares.gather(1, best).sum() / whole
    return total, right


def source_loss(
    source: Source, features: Float[Tensor, "n channels"], shares: Float[Tensor, "n classes"]
) -> Tensor:
    """Return the cross entropy of the source's classes, with those of our classes as targets.

    Source: You et al., "Co-Tuning for Transfer Learning", NeurIPS 2020, equation 4; but the
    source's classifier stays as it was, and what it says of our classes is its mean.
    """
    logits = nn.functional.linear(features.float(), source.weight, source.bias)
    return nn.functional.cross_entropy(logits, shares @ source.relation)
