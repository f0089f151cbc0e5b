"""A trial of how to compute a fit's training steps: layout, precision, compilation.

    real steps on copies of the network, all ways in turn: A B C D, A B C D, …
    the least time of each counts; the default stays, unless another way is clearly faster

Layout and precision work together, and which way is fastest depends on network and machine:
channels last makes most ResNets faster, and ResNeSt-200e 2.7 times slower on an RTX 3090 (timm's
published rates). Knows nothing of photos, folds or the training loop.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache as cached
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveFloat, TypeAdapter
from timm.layers.split_attn import SplitAttn
from torch import Tensor, nn

from fieldguide.errors import ResourceError
from fieldguide.machine import device as devices
from fieldguide.network.network import Network, train_mode
from fieldguide.recipe import Layout, Precision
from fieldguide.storage.files import make_folder, write_bytes
from fieldguide.train.optimize import make_optimizer, parameter_groups

MARGIN = 1.05  # times as fast another way must be, for each setting that it changes (taste)
SHARE = 0.01  # of the fit's time, as its first steps predict it, goes into the trial (taste) …
SECONDS = 3.0  # … and no more than these, where so few tell enough (taste)
PLANNED_ROUNDS = 5  # that there must be time for: the first warms up, slower ways need more (taste)
WANTED_ROUNDS, MOST_ROUNDS = 3, 10  # more than wanted only within `SECONDS` (taste)
FEWEST_PHOTOS = 2  # of a step: batch norm behind a global pool refuses a single one

# Where the fit is long, steps on a CPU have so many even if they then take more than `SECONDS`:
# channels last made resnet50 at 224 px 1.19, 1.08, 1.44 and 1.60 times as fast in steps of 2, 4, 8
# and 16 photos, resnet18 at 128 px 1.00, 1.13 and 1.09 times in those of 2, 8 and 16 (one thread,
# Zen 5, shared machine).
ENOUGH_PHOTOS = 16

# Seconds of a fit that pay compiling: on CUDA a trial, which takes minutes (taste); on a CPU that
# of ResNeSts, 1.22 to 1.29 times as fast after 100 to 900 s (two cores, Zen 4; ResNets gain none).
COMPILE_FROM = {"cuda": 1800.0, "cpu": 5000.0}


@dataclass(frozen=True)
class Way:
    """How a training step is computed."""

    layout: Layout
    precision: Precision
    compile: bool = False


@dataclass(frozen=True)
class Choice:
    """How to train: each batch in so many `parts`; `table` holds seconds a photo of all timed."""

    way: Way
    seconds_per_photo: float | None
    table: Mapping[Way, float]
    parts: int


# From a way and a number of photos to a step's seconds: forward and backward, which grow with the
# photos, and update.
Step = Callable[[Way, int], tuple[float, float]]


def choose(
    network: Network,
    *,
    size: int,
    batch_size: int,
    classes: int,
    device: torch.device,
    layout: Layout | Literal["auto"] = "auto",
    precision: str = "auto",
    compile: bool | Literal["auto"] = "auto",
    steps_to_go: int,
    cache: Path | None,
) -> Choice:
    """Return the way to train what is not frozen of a network on `device`, with photos of `size`.

    What is not `auto` is taken as given and not measured. Steps run on copies: the network and the
    global random state stay as they were. The folder `cache` keeps timings, unless a way failed:
    memory may be short by another program's doing. Raises `UsageError` for a precision that the
    device does not have.
    """
    ways, photos_to_go = ways_to_try(layout, precision, device), batch_size * steps_to_go
    may_compile, parts = compile == "auto" and may_gain(network, device), 1
    file = cache and cache / _name(network, ways, size, batch_size, device)
    known = table = _read(file)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        step = real_steps(network, size, classes, device)
        if not known and (len(ways) > 1 or may_compile):
            whole = device.type != "cpu"
            table, parts = measure(step, ways, batch_size, photos_to_go, whole=whole)
        way = fastest({way: table[way] for way in table if not way.compile}, ways[0])
        long = may_compile and table.get(way, 0) * photos_to_go > COMPILE_FROM[device.type]
        if long and device.type == "cuda":
            pair, part = (way, replace(way, compile=True)), -(-batch_size // parts)
            if pair[1] not in table:
                table = table | measure(step, pair, part, photos_to_go, whole=True)[0]
            way = fastest(table, ways[0])
    if file and table != known and parts == 1 and table.keys() >= {*ways}:
        with suppress(ResourceError):  # a few seconds more the next time
            make_folder(file.parent)
            write_bytes(file, _TABLE.dump_json(tuple(table.items()), indent=1))
    compiled = compile is True or (long and device.type == "cpu" and _compiles())
    chosen = replace(way, compile=compiled or way.compile)
    return Choice(chosen, table.get(way), table, parts)


def ways_to_try(
    layout: Layout | Literal["auto"], precision: str, device: torch.device
) -> tuple[Way, ...]:
    """Return all ways that the settings leave open, not compiled; the first is the default.

    float16 is taken on GPUs that multiply nothing better, without a trial of float32.
    """
    best = devices.choose_precision(precision, device)
    both = precision == "auto" and best == "bfloat16"
    layouts = devices.choose_layouts(layout, device)
    precisions: tuple[Precision, ...] = ("bfloat16", "float32") if both else (best,)
    return tuple(Way(*pair) for pair in product(layouts, precisions))


def fastest(table: Mapping[Way, float], default: Way) -> Way:
    """Return the way that is worth leaving the default for, or the default.

    The least of seconds · `MARGIN` ^ (settings that differ from the default's): noise does not
    flip a choice, and the fewer settings change the better.
    """

    def cost(way: Way) -> float:
        return table[way] * MARGIN ** len(vars(way).items() - vars(default).items())

    return min(table, key=cost, default=default)


def measure(
    step: Step, ways: Sequence[Way], batch_size: int, photos_to_go: int, *, whole: bool
) -> tuple[dict[Way, float], int]:
    """Return seconds a photo of the ways that work, and in how many parts batches fit into memory.

    No seconds where the trial would take too much of the fit. `whole`: steps have all photos of a
    batch, as on a GPU, where small batches tell nothing. Parts are doubled until the first way, the
    default, fits; where two photos are still too many, what to do is left to the training.
    """
    photos, parts = batch_size if whole else min(FEWEST_PHOTOS, batch_size), 1
    while ways and (2 + PLANNED_ROUNDS * len(ways)) * photos <= SHARE * photos_to_go:
        try:
            step(ways[0], photos)  # to warm up, and moments take memory from here on
            compute, update = step(ways[0], photos)
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                ways = ways[1:]
            elif photos < 2 * FEWEST_PHOTOS:
                return {}, batch_size
            else:
                parts *= 2
                photos = -(-batch_size // parts)
            continue
        planned = PLANNED_ROUNDS * len(ways) * (compute + update)
        allowed = SHARE * photos_to_go * (compute / photos + update / batch_size)
        allowed -= 2 * (compute + update)
        if planned > allowed:
            break
        if not whole:
            seconds = min(allowed, max(SECONDS, planned * ENOUGH_PHOTOS / photos))
            photos = min(int(photos * seconds / planned), batch_size)
        return least_times(step, ways, photos, batch_size, allowed), parts
    return {}, parts


def least_times(
    step: Step, ways: Sequence[Way], photos: int, batch_size: int, allowed: float
) -> dict[Way, float]:
    """Return each way's least seconds a photo, over rounds in which all take their turn.

    After a round to warm up comes one more, and others while there is time. What disturbs a step
    only makes it longer. A way that fails is left out; without the first, the default, all are.
    """
    times, used = dict.fromkeys(ways, math.inf), 0.0
    for number in range(1 + MOST_ROUNDS):
        took = 0.0
        for way in tuple(times):
            try:
                compute, update = step(way, photos)
            except Exception:  # no memory, no such operation in a precision, no compiler, …
                del times[way]
                continue
            took += compute + update
            if number > 0:
                times[way] = min(times[way], compute / photos + update / batch_size)
        # The first round counts like the second: what it takes more, training takes as well.
        used = used + took if number > 1 else 2 * took
        limit = allowed if number < WANTED_ROUNDS else min(allowed, SECONDS)
        if number > 0 and used + took > limit:
            break
    return times if ways[0] in times else {}


def real_steps(network: Network, size: int, classes: int, device: torch.device) -> Step:
    """Return a function that takes and times a training step on copies of the network.

    Pictures are noise, and the rates are zero: weights do not run away meanwhile.
    """
    image = torch.randn(1, 3, size, size, device=device)
    # The time of a CPU's only thread is its own: other programs do not count.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter

    @cached
    def trainee(layout: Layout) -> tuple[Network, torch.optim.Optimizer]:
        copied = copy.deepcopy(network).to(memory_format=devices.memory_format(layout))
        train_mode(copied)
        parts = copied.backbone, copied.head
        groups = parameter_groups(*parts, backbone_rate=0.0, head_rate=0.0, weight_decay=0.0)
        return copied, make_optimizer(groups)

    @cached
    def compiled(layout: Layout) -> Callable[[Tensor], Tensor]:
        return torch.compile(trainee(layout)[0])

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return clock()

    def step(way: Way, photos: int) -> tuple[float, float]:
        forward, optimizer = trainee(way.layout)
        images = image.expand(photos, -1, -1, -1)
        images = images.contiguous(memory_format=devices.memory_format(way.layout))
        labels = torch.arange(photos, device=device) % classes
        scaler = torch.GradScaler(device.type, enabled=way.precision == "float16")
        optimizer.zero_grad()
        started = now()
        with devices.autocast(device, way.precision):
            logits = (compiled(way.layout) if way.compile else forward)(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        computed = now()
        scaler.step(optimizer)
        scaler.update()
        ended = now()
        if not loss.isfinite():
            raise RuntimeError("the loss is not finite")
        return computed - started, ended - computed

    return step


def may_gain(network: Network, device: torch.device) -> bool:
    """Return whether compiling might make training faster: on CUDA; on a CPU for ResNeSts."""
    if device.type == "cpu":
        return any(isinstance(module, SplitAttn) for module in network.modules())
    return device.type == "cuda"


def _compiles() -> bool:
    """Return whether there is a compiler for the CPU that works, by a sum."""
    try:
        torch.compile(lambda number: number + 1)(torch.zeros(2))
    except Exception:  # no compiler, one that is too old, no headers, …
        return False
    return True


_TABLE = TypeAdapter(tuple[tuple[Way, PositiveFloat], ...])


def _name(
    network: Network, ways: Sequence[Way], size: int, batch_size: int, device: torch.device
) -> str:
    """Return a file's name from all that timings depend on: modules, what is trained, machine, …"""
    trained = [name for name, tensor in network.named_parameters() if tensor.requires_grad]
    machine = devices.device_name(device), torch.get_num_threads(), torch.__version__
    text = repr((network, trained, ways, size, batch_size, machine))
    return f"probe-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _read(file: Path | None) -> dict[Way, float]:
    """Return the timings in a file of the cache; none where it is missing or broken."""
    try:
        return dict(_TABLE.validate_json(file.read_bytes())) if file else {}
    except (OSError, ValueError):
        return {}
