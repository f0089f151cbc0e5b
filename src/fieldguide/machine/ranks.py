"""Processes that train one fit together, each some of its replicas: ranks of torch.distributed.

    torchrun --nproc-per-node 2 -m fieldguide fit PHOTOS --out RUN        # on one machine

Ranks go through a fit in step: all of them make a call (`agree`, `exchange`, `gather` …) at the
same point. A process alone has the same calls, which then return their arguments. Weights go over
NCCL between GPUs that each belong to one rank, everything else over gloo.

Ranks come in teams: the ranks of a team train the same replicas and share each of their batches.
`team` are the ranks of the own team, `peers` one of each team, with all replicas between them.

A rank that fails leaves its error in the common store, and ends. The others find a connection
closed, look there, and end with the same error. Knows nothing of networks, replicas or run folders.
"""

import os
import pickle
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import ProcessGroup, Store
from torch.distributed.rendezvous import rendezvous

from fieldguide.errors import FieldguideError, ResourceError, Stopped, UsageError
from fieldguide.machine.controls import Controls, asked_to_stop
from fieldguide.machine.torchrun import Launch, launch
from fieldguide.words import first_line

T = TypeVar("T")
Weights = Mapping[str, Tensor]

# The wait for the other ranks to appear.
JOIN = timedelta(seconds=45)
# The wait for the others in training: more than a step, an evaluation or a first compilation takes.
# A process that ends is noticed at once, only a machine that vanishes is not.
STEP = timedelta(minutes=30)
# The wait for the first, which checks the photos (a million take hours) and tries steps.
SETUP = timedelta(hours=12)
# The first's wait at an error until all others have read it, if torchrun does not hold the store.
HEARD = timedelta(seconds=5)

_ERROR = "fieldguide/error"


@dataclass
class _Groups:
    """The channels to the other ranks, and the store of what they left for each other."""

    store: Store
    training: ProcessGroup
    setup: ProcessGroup
    nccl: ProcessGroup | None


class Ranks:
    """This process's rank among those that train together, and its calls to the others."""

    def __init__(
        self,
        place: Launch,
        groups: _Groups | None = None,
        team: "Ranks | None" = None,
        peers: "Ranks | None" = None,
    ) -> None:
        """Start alone unless there are `groups`, and as a team of one unless there is a `team`."""
        self.rank, self.world = place.rank, place.world
        self._groups, self._team, self._peers = groups, team, peers

    @property
    def team(self) -> "Ranks":
        """The ranks that share each batch of a replica with this one."""
        return self._team or ALONE

    @property
    def peers(self) -> "Ranks":
        """The ranks at the same position in the other teams, which train other replicas."""
        return self._peers or self

    @property
    def first(self) -> bool:
        """Return whether this rank writes files and messages."""
        return self.rank == 0

    def agree(self, stop: BaseException | None, due: bool) -> tuple[BaseException | None, bool]:
        """Return the error to stop with, if any rank has one, and whether any has something due."""
        if self._groups is None:
            return stop, due
        number = 0 if stop is None else signal.SIGTERM.value
        number = stop.exit_code - 128 if isinstance(stop, Stopped) else number
        largest = torch.tensor([number, int(due)])
        with self._reaching() as groups:
            dist.all_reduce(largest, dist.ReduceOp.MAX, groups.training)
        number, anywhere = largest.tolist()
        return stop or (Stopped(number) if number else None), bool(anywhere)

    def stop_if_asked(self, controls: Controls) -> None:
        """Raise what the outside world wants to stop with, on any rank."""
        stop, _ = self.agree(asked_to_stop(controls), False)
        if stop:
            raise stop

    def exchange(self, value: T) -> list[T]:
        """Return every rank's value, in order of the ranks."""
        if self._groups is None:
            return [value]
        values: list[Any] = [None] * self.world
        with self._reaching() as groups:
            dist.all_gather_object(values, value, groups.training)
        return values

    def collect(self, value: T) -> list[T]:
        """Return every rank's value, in order, to the first rank; nothing to the others."""
        if self._groups is None:
            return [value]
        values: list[Any] | None = [None] * self.world if self.first else None
        with self._reaching() as groups:
            dist.gather_object(value, values, group_dst=0, group=groups.training)
        return values or []

    def announce(self, value: T) -> T:
        """Return the first rank's value, for which the others may wait for hours."""
        if self._groups is None:
            return value
        values = [value]
        with self._reaching() as groups:
            dist.broadcast_object_list(values, src=0, group=groups.setup)
        return values[0]

    def gather(self, weights: Weights) -> list[dict[str, Tensor]]:
        """Return every rank's weights, alike in names, shapes and types; a message a type."""
        if self._groups is None:
            return [dict(weights)]
        copies: list[dict[str, Tensor]] = [{} for _ in range(self.world)]
        for flat, names in _flattened(weights):
            wire = self._sendable(flat)
            found = [torch.empty_like(wire) for _ in copies]
            with self._reaching() as groups:
                dist.all_gather(found, wire, self._group(groups, wire))
            for copy, each in zip(copies, found, strict=True):
                copy |= _cut(each.to(flat.device), names, weights)
        return [{name: copy[name] for name in weights} for copy in copies]

    def same(self, weights: Weights) -> dict[str, Tensor]:
        """Return the first rank's weights."""
        return self._received(
            weights, lambda flat, group: dist.broadcast(flat, group=group, group_src=0)
        )

    def total(self, tensors: Weights) -> dict[str, Tensor]:
        """Return the sum of every rank's tensors, alike in names, shapes and types."""
        return self._received(tensors, lambda flat, group: dist.all_reduce(flat, group=group))

    def _received(
        self, tensors: Weights, send: Callable[[Tensor, ProcessGroup], object]
    ) -> dict[str, Tensor]:
        """Return the tensors after `send`, which changes one message for each type."""
        if self._groups is None:
            return dict(tensors)
        received: dict[str, Tensor] = {}
        for flat, names in _flattened(tensors):
            wire = self._sendable(flat)
            with self._reaching() as groups:
                send(wire, self._group(groups, wire))
            received |= _cut(wire.to(flat.device), names, tensors)
        return {name: received[name] for name in tensors}

    def _sendable(self, flat: Tensor) -> Tensor:
        """Return the tensor as it is sent: without NCCL from main memory."""
        assert self._groups is not None
        return flat if self._groups.nccl is not None and flat.is_cuda else flat.cpu()

    def _group(self, groups: _Groups, flat: Tensor) -> ProcessGroup:
        """Return the group for a tensor; first ask gloo, as NCCL would wait for a dead rank."""
        if groups.nccl is None or not flat.is_cuda:
            return groups.training
        dist.barrier(groups.training)
        return groups.nccl

    @contextmanager
    def _reaching(self) -> Iterator[_Groups]:
        """Turn an error of the connection in the block into that of the rank that caused it."""
        assert self._groups is not None
        store = self._groups.store
        try:
            yield self._groups
        except RuntimeError as error:
            with suppress(RuntimeError):  # the store may have gone too
                if store.check([_ERROR]):
                    raise pickle.loads(bytes.fromhex(store.get(_ERROR).decode())) from error
            raise ResourceError(
                f"another rank has ended without a word, or does not answer: {_reason(error)}",
                hint="often memory ran out; the same command resumes from the last checkpoint",
            ) from error

    def leave(self, error: BaseException | None = None) -> None:
        """End the connections; leave an error of this rank for the others to find."""
        assert self._groups is not None
        store = self._groups.store
        self._groups = None
        if error is not None:
            with suppress(RuntimeError):
                if not isinstance(error, FieldguideError):
                    text = f"rank {self.rank} ended with {type(error).__name__}: {error}"
                    error = ResourceError(text)
                store.compare_set(_ERROR, "", pickle.dumps(error).hex())
        dist.destroy_process_group()  # from here on the others notice
        if error is not None:
            with suppress(RuntimeError):
                heard = [f"fieldguide/heard/{rank}" for rank in range(self.world)]
                store.set(heard[self.rank], "")
                if self.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                    store.wait(heard, HEARD)


ALONE = Ranks(Launch())


@contextmanager
def joined(device: str, replicas: int, batch_ranks: int = 1) -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one, for the block; else stay alone.

    `device` is a recipe's; its GPU is that of its LOCAL_RANK. Each `batch_ranks` consecutive ranks
    are a team. Raises `UsageError` if ranks, teams and replicas do not fit, and `ResourceError` if
    the others are not found in 45 seconds. An error in the block ends the other ranks with it.
    """
    place = launch()
    _require_shares(place.world, replicas, batch_ranks)
    if place.world == 1:
        yield ALONE
        return
    on_gpu = _take_gpu(device, place)
    ranks = _join(place, on_gpu, batch_ranks)
    try:
        yield ranks
    except BaseException as error:
        ranks.leave(error)
        raise
    ranks.leave()


def _require_shares(world: int, replicas: int, batch_ranks: int) -> None:
    fitting = [n * batch_ranks for n in range(1, replicas + 1) if replicas % n == 0]
    start = f"start {' or '.join(map(str, fitting))} of them (torchrun --nproc-per-node)"
    if world % batch_ranks:
        raise UsageError(
            f"`batch_ranks` = {batch_ranks} does not divide the number of ranks: {world}",
            hint=start,
        )
    if replicas % (world // batch_ranks):
        teams = "" if batch_ranks == 1 else f" in teams of `batch_ranks` = {batch_ranks}"
        wider = "" if world % replicas else f", or share batches: --batch-ranks {world // replicas}"
        more = -(-replicas * batch_ranks // world) * world // batch_ranks
        raise UsageError(
            f"{world} ranks{teams} cannot share `replicas` = {replicas}: each must train as many",
            hint=f"{start}, or train {more} replicas{wider}",
        )


def _take_gpu(device: str, place: Launch) -> bool:
    """Change the process: `cuda` becomes the GPU of its local rank. Return whether there is one.

    Raises `UsageError` for a device that all ranks would share, `ResourceError` for too few GPUs.
    """
    if device not in {"auto", "cpu", "cuda", "mps"}:
        raise UsageError(
            f"`device` = '{device}' would be for every rank",
            hint="leave --device out: each rank takes the GPU of its LOCAL_RANK",
        )
    if device not in {"auto", "cuda"} or not torch.cuda.is_available():
        return False
    count = torch.cuda.device_count()
    if place.local >= count:
        raise ResourceError(
            f"rank {place.rank} has no GPU of its own: LOCAL_RANK = {place.local}, GPUs: {count}",
            hint=f"start {count} ranks on this machine, or set --device cpu",
        )
    torch.cuda.set_device(place.local)
    return True


def _join(place: Launch, on_gpu: bool, batch_ranks: int) -> Ranks:
    """Meet the other ranks at MASTER_ADDR and MASTER_PORT."""
    where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        store, rank, world = next(rendezvous("env://", timeout=JOIN))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=JOIN)
        everyone = range(world)
        groups = _groups(store, everyone, on_gpu)
        teams = [everyone[n : n + batch_ranks] for n in everyone[::batch_ranks]]
        peers = [everyone[n::batch_ranks] for n in range(batch_ranks)]
        if batch_ranks == 1:
            return Ranks(place, groups)
        parts = (_among(place, store, each, on_gpu) for each in (teams, peers))
        return Ranks(place, groups, *parts)
    except (RuntimeError, ValueError) as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        raise ResourceError(
            f"rank {place.rank} did not meet all {place.world} ranks at `{where}`"
            f" within {JOIN.seconds} seconds: {_reason(error)}",
            hint="MASTER_ADDR and MASTER_PORT name the machine and port of the first rank;"
            " torchrun sets them by --master-addr and --master-port",
        ) from error


def _among(place: Launch, store: Store, parts: Sequence[range], on_gpu: bool) -> Ranks:
    """Return this rank's part of all as ranks of their own. All call this, with equal parts."""
    made = [_groups(store, part, on_gpu) for part in parts if len(part) > 1]
    if not made:
        return ALONE
    part, groups = next(each for each in zip(parts, made, strict=True) if place.rank in each[0])
    return Ranks(Launch(part.index(place.rank), len(part)), groups)


def _groups(store: Store, members: range, on_gpu: bool) -> _Groups | None:
    """Return the groups of some ranks, None to others; all ranks have to call this."""
    training, setup = (_group("gloo", timeout, members) for timeout in (STEP, SETUP))
    nccl = _group("nccl", STEP, members) if on_gpu else None
    return _Groups(store, training, setup, nccl) if training and setup else None


def _group(backend: str, timeout: timedelta, members: range) -> ProcessGroup | None:
    group = dist.new_group(list(members), backend=backend, timeout=timeout)
    return group if isinstance(group, ProcessGroup) else None


def _reason(error: Exception) -> str:
    """Return the reason that torch or gloo gives, without source position and advice."""
    return re.sub(r"^\[[^]]*\] ", "", first_line(error)).partition(". ")[0]


def _flattened(weights: Weights) -> Iterator[tuple[Tensor, Sequence[str]]]:
    """Yield all tensors of a type as a new one with their names, for each type."""
    names: dict[torch.dtype, list[str]] = {}
    for name in sorted(weights):  # the order in a checkpoint is not that in a network
        names.setdefault(weights[name].dtype, []).append(name)
    for each in names.values():
        yield torch.cat([weights[name].reshape(-1) for name in each]), each


def _cut(flat: Tensor, names: Sequence[str], like: Weights) -> dict[str, Tensor]:
    """Return the tensors that were flattened, with the shapes of those in `like`."""
    pieces = torch.split(flat, [like[name].numel() for name in names])
    return {
        name: piece.clone().view(like[name].shape)
        for name, piece in zip(names, pieces, strict=True)
    }
