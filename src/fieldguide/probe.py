"""How to compute a fit's training steps: memory layout, precision, compilation, parts of a batch.

    real steps on copies of the network, in turn: A B, A B, … first in each precision,
    then with more photos in each layout; of each way the least time counts;
    the default stays, unless another way is clearly faster

What is chosen from which timings is a matter of pure functions; `Steps` takes the timings, for a
few seconds and for about a hundredth of the fit's own time at most. Which way is fastest depends on
the network (channels last makes most ResNets faster, and ResNeSt-200e 2.7 times slower on an RTX
3090 by timm's published rates), so that no global flag is right. Knows nothing of photos, folds or
the training loop.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt, TypeAdapter
from timm.layers.split_attn import SplitAttn
from torch import Tensor, nn

from fieldguide.device import (
    Layout,
    Precision,
    autocast,
    choose_precision,
    device_name,
    is_out_of_memory,
    memory_format,
)
from fieldguide.errors import ResourceError
from fieldguide.files import make_folder, write_json
from fieldguide.network import Network, train_mode
from fieldguide.optimize import make_optimizer, parameter_groups

Auto = Literal["auto"]

FORMAT = 1

MARGIN = 1.05  # times as fast another way must be, for each setting that it changes (taste)
SECONDS = 3.0  # for all timings together, where so few tell enough (taste) …
SHARE = 0.01  # … and no more of the fit's time, as its first steps predict it (taste)

# Each way runs once to warm up, then rounds are timed. On a CPU the photos of a step are as many as
# leave time for the wanted ones. All taste.
FEWEST_ROUNDS = 2
WANTED_ROUNDS = 3
MOST_ROUNDS = 10

# The fewest photos of a step: batch norm behind a global pool refuses a single one.
FEWEST_PHOTOS = 2

# Where the fit is long, steps on a CPU have so many even if they then take more than `SECONDS`: in
# steps of few photos layouts seem closer than they are. Channels last made resnet18 at 128 px 1.00,
# 1.13, 1.09 and 1.20 times as fast in steps of 2, 8, 16 and 32 photos, resnet50 at 224 px 1.19,
# 1.08, 1.44 and 1.60 times in those of 2, 4, 8 and 16 (one thread, Zen 5, shared machine).
ENOUGH_PHOTOS = 16

# On a GPU compiling is tried in fits that take longer, as the trial itself takes minutes (taste).
COMPILE_TRIAL_FROM = 1800.0


@dataclass(frozen=True)
class Way:
    """How a training step is computed."""

    layout: Layout
    precision: Precision
    compile: bool = False


@dataclass(frozen=True)
class Spent:
    """Seconds of a step: `compute` (forward, backward) grows with its photos, `update` does not."""

    compute: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.compute + self.update

    def per_photo(self, photos: int, batch_size: int) -> float:
        """Seconds a photo in steps of `batch_size`, as judged from this step of `photos`."""
        return self.compute / photos + self.update / batch_size


@dataclass(frozen=True)
class Timing:
    """A way, and the seconds that training takes for each photo in it."""

    way: Way
    seconds_per_photo: PositiveFloat


@dataclass(frozen=True)
class Measured:
    """Timings of the ways that fit into memory, and in how many parts of a batch the default does.

    On a CPU those that a first look ruled out are of steps with few photos, which take longer for
    each. Not all ways need be there: layouts are tried in the best precision and the default.
    `short`: memory ran out meanwhile, perhaps by another program's doing, so that it holds for this
    time only. `compile_seconds` is what compiling took where it was tried; without a compiled way
    in the table it failed.
    """

    table: tuple[Timing, ...] = ()
    parts: PositiveInt = 1
    short: bool = False
    compile_seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """What is to be trained: photos in all, over all steps, and in each of them.

    `whole`: steps are measured with all photos of a batch, as on a GPU, where memory may run out
    and small batches tell nothing; else with as many as there is time for.
    """

    batch_size: int
    photos_to_go: int
    whole: bool


@dataclass(frozen=True)
class Compiled:
    """What compiling brings, as a factor of speed, and the seconds that it takes."""

    gain: float
    seconds: float

    def pays(self, predicted: float) -> bool:
        """Whether a fit that takes so many seconds without it ends clearly earlier with it."""
        return self.gain >= MARGIN and predicted * (1 - 1 / self.gain) > self.seconds


# Measured on two cores (Zen 4): compiled, ResNeSts train 1.22 to 1.29 times as fast and plain
# ResNets no faster, after 100 to 900 s. The cautious end of both.
COMPILED_RESNEST = Compiled(gain=1.22, seconds=900.0)


@dataclass(frozen=True)
class Choice:
    """How to train: each batch in so many `parts`, and the timings behind the choice.

    `seconds_per_photo` is None where nothing was measured, and that without compiling where a
    compiled step was not.
    """

    layout: Layout
    precision: Precision
    compile: bool
    seconds_per_photo: float | None
    table: tuple[Timing, ...]
    parts: int


# From a way and a number of photos to the seconds of one real step; raises what torch raises.
Step = Callable[[Way, int], Spent]


def choose(
    network: Network,
    *,
    size: int,
    batch_size: int,
    classes: int,
    device: torch.device,
    layout: Layout | Auto = "auto",
    precision: str = "auto",
    compile: bool | Auto = "auto",
    steps_to_go: int,
    cache: Path | None,
) -> Choice:
    """The way to train what is not frozen of this network, on photos of `size` pixels a side.

    What is not `auto` is taken as given and not measured. Steps run on copies: the network and the
    global random state stay as they were. Timings are kept in the folder `cache`, if there is one;
    what they are worth is decided anew for the `steps_to_go`. A cache that cannot be read or
    written is done without. Raises `UsageError` for a precision that the device does not have.
    """
    ways = ways_to_try(layout, precision, device)
    whole = device.type != "cpu"
    hope = compile == "auto" and may_gain(network, device)
    task = Task(batch_size, batch_size * steps_to_go, whole)
    key = _key(network, ways, size=size, batch_size=batch_size, device=device)
    known = found = _read(cache, key)
    steps = Steps(network, size=size, classes=classes, device=device)
    with _random_state_kept(device):
        if found is None and (len(ways) > 1 or hope):
            found = measure(steps, ways, task)
        if found is not None and hope and whole:
            found = with_compiled(steps, ways[0], found, task)
    if found is not None and found != known and not found.short:
        _write(cache, key, found)
    found = found or Measured()
    on = hope and compiling_pays(found, ways[0], task) and (whole or _compiles(device))
    return choice(found, ways[0], compile=on if compile == "auto" else compile)


# --- from timings to a choice ---------------------------------------------------------------------


def ways_to_try(layout: Layout | Auto, precision: str, device: torch.device) -> tuple[Way, ...]:
    """All ways that the settings leave open, not compiled; the first is the default.

    float16 is taken on GPUs that multiply nothing better, without a trial of float32.
    """
    best = choose_precision(precision, device)
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last") if layout == "auto" else (layout,)
    precisions: tuple[Precision, ...] = (
        ("bfloat16", "float32") if precision == "auto" and best == "bfloat16" else (best,)
    )
    return tuple(Way(*pair) for pair in product(layouts, precisions))


def fastest(table: Sequence[Timing], default: Way) -> Timing | None:
    """The way that is worth leaving the default for, or the default; None for an empty table.

    The least of seconds · `MARGIN` ^ (settings that differ from the default's): noise does not
    flip a choice, and the fewer settings change the better.
    """

    def cost(timing: Timing) -> float:
        return timing.seconds_per_photo * MARGIN ** _departures(timing.way, default)

    return min((timing for timing in table if not timing.way.compile), key=cost, default=None)


def compiling_pays(found: Measured, default: Way, task: Task) -> bool:
    """Whether compiling saves more of the fit's time than it takes.

    By the trial where there was one, else by what was measured of ResNeSts on a CPU.
    """
    best = fastest(found.table, default)
    if best is None:
        return False
    compiled = COMPILED_RESNEST
    if task.whole:
        timing = _compiled_timing(found, best)
        if timing is None or found.compile_seconds is None:
            return False
        gain = best.seconds_per_photo / timing.seconds_per_photo
        compiled = Compiled(gain, found.compile_seconds)
    return compiled.pays(best.seconds_per_photo * task.photos_to_go)


def choice(found: Measured, default: Way, *, compile: bool) -> Choice:
    """What was measured, as a choice; without timings the default."""
    best = fastest(found.table, default)
    way = best.way if best else default
    timing = (best and compile and _compiled_timing(found, best)) or best
    return Choice(
        layout=way.layout,
        precision=way.precision,
        compile=compile,
        seconds_per_photo=timing.seconds_per_photo if timing else None,
        table=found.table,
        parts=found.parts,
    )


def timings(times: Mapping[Way, float]) -> tuple[Timing, ...]:
    """A table of seconds a photo by way."""
    return tuple(Timing(way, seconds) for way, seconds in times.items())


def _departures(way: Way, default: Way) -> int:
    pairs = zip(vars(way).values(), vars(default).values(), strict=True)
    return sum(own != other for own, other in pairs)


def _compiled_timing(found: Measured, best: Timing) -> Timing | None:
    way = replace(best.way, compile=True)
    return next((timing for timing in found.table if timing.way == way), None)


# --- from steps to timings ------------------------------------------------------------------------


def measure(step: Step, ways: Sequence[Way], task: Task) -> Measured | None:
    """Timings of the ways, the default's first; None where they would cost too much of the fit.

    Where the default way runs out of memory, parts are doubled until it fits; where two photos are
    still too many, what to do is left to the training. Other ways that do not fit are left out.
    """
    meter, default = _Meter(step), ways[0]
    least = 2 + (1 + FEWEST_ROUNDS) * len(ways)  # steps
    photos = task.batch_size if task.whole else min(FEWEST_PHOTOS, task.batch_size)
    if least * photos > SHARE * task.photos_to_go:
        return None
    fitting = _parts_that_fit(meter, default, photos)
    if fitting is None:
        return Measured(parts=task.batch_size, short=True)
    parts, first = fitting
    photos = -(-photos // parts)
    pace = first.per_photo(photos, task.batch_size)
    allowed = SHARE * pace * task.photos_to_go
    if least * first.total > allowed:
        return None
    times = {default: pace} | _compare(meter, ways, task, first, photos, allowed)
    return Measured(timings(times), parts, meter.short)


def _compare(
    meter: "_Meter", ways: Sequence[Way], task: Task, first: Spent, photos: int, allowed: float
) -> dict[Way, float]:
    """Least times: of precisions in the default layout, then of layouts in the best precision.

    The second look, at the default too, is at more photos on a CPU. `first` was spent on a step of
    `photos`, `allowed` is what all steps may take.
    """
    default, batch_size = ways[0], task.batch_size
    plain = [way for way in ways if way.layout == default.layout]
    times = least_times(meter, plain, photos, batch_size, 0.0) if len(plain) > 1 else {}
    best = fastest(timings(times), default)
    precision = best.way.precision if best else default.precision
    close = [way for way in ways if way == default or way.precision == precision]
    left = allowed - meter.used
    brief = min(left, SECONDS - meter.used)
    if not task.whole:
        enough = photos_for(left / len(close), first, photos, batch_size)
        photos = photos_for(brief / len(close), first, photos, batch_size)
        photos = max(photos, min(enough, ENOUGH_PHOTOS))
    return times | least_times(meter, close, photos, batch_size, meter.used + brief)


def photos_for(seconds: float, first: Spent, photos: int, most: int) -> int:
    """As many photos as let a way warm up and run `WANTED_ROUNDS` steps in so many seconds.

    `first` was spent on a step of `photos`; never fewer than those, nor more than `most`.
    """
    compute = seconds / (1 + WANTED_ROUNDS) - first.update
    return min(max(int(compute / first.compute * photos), photos), most)


def least_times(
    meter: "_Meter", ways: Sequence[Way], photos: int, batch_size: int, until: float
) -> dict[Way, float]:
    """The least time a photo of each way, over rounds in which all take their turn.

    After a step of each to warm up come `FEWEST_ROUNDS`, and more as long as the meter will not
    show more seconds than `until`. A way that runs out of memory is left out. What disturbs a step
    only makes it longer, so the least time is the step's own.
    """
    times = {way: math.inf for way in ways if meter.tried(way, photos)}
    last = 0.0
    for number in range(MOST_ROUNDS):
        if number >= FEWEST_ROUNDS and meter.used + last > until:
            break
        before = meter.used
        for way in tuple(times):
            found = meter.tried(way, photos)
            if found is None:
                del times[way]
            else:
                times[way] = min(times[way], found.per_photo(photos, batch_size))
        last = meter.used - before
    return times


class _Meter:
    """Steps, the seconds that they have used so far, and whether memory ran `short`."""

    def __init__(self, step: Step) -> None:
        self.step, self.used, self.short = step, 0.0, False

    def tried(self, way: Way, photos: int) -> Spent | None:
        """What a step took, or None if the memory ran out."""
        try:
            spent = self.step(way, photos)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.short = True
            return None
        self.used += spent.total
        return spent


def with_compiled(step: Step, default: Way, found: Measured, task: Task) -> Measured:
    """The same with a trial of compiling the best way, where the fit is long and none was made.

    The trial takes longer than `SHARE` may allow; what it compiles stays in torch's own cache.
    """
    best = fastest(found.table, default)
    if best is None or found.compile_seconds is not None:
        return found
    if best.seconds_per_photo * task.photos_to_go < COMPILE_TRIAL_FROM:
        return found
    way, photos = replace(best.way, compile=True), -(-task.batch_size // found.parts)
    try:
        first = step(way, photos)
    except Exception:  # whatever a compiler lacks here, training goes on without it
        return replace(found, compile_seconds=0.0)
    times = least_times(_Meter(step), (best.way, way), photos, task.batch_size, SECONDS)
    gains = [times[best.way] / times[way]] if len(times) == 2 else []
    compiled = tuple(Timing(way, best.seconds_per_photo / gain) for gain in gains)
    return replace(found, table=found.table + compiled, compile_seconds=first.total)


def _parts_that_fit(meter: _Meter, way: Way, photos: int) -> tuple[int, Spent] | None:
    """In how many parts, a power of two, so many photos fit, and what the second such step took.

    The first warms the way up, and leaves behind moments that take memory from then on.
    """
    parts = 1
    while parts == 1 or photos >= parts * FEWEST_PHOTOS:
        part = -(-photos // parts)
        if meter.tried(way, part) and (spent := meter.tried(way, part)):
            return parts, spent
        parts *= 2
    return None


# --- real steps -----------------------------------------------------------------------------------


class Steps:
    """Training steps on copies of a network, as a fit takes them: the one thing here with a clock.

    Pictures and labels are noise, and the rates are zero: weights do not run away meanwhile.
    """

    def __init__(self, network: Network, *, size: int, classes: int, device: torch.device) -> None:
        """Nothing is copied before the first step."""
        self.network, self.size, self.classes, self.device = network, size, classes, device
        self.trainees: dict[Layout, tuple[Network, torch.optim.Optimizer]] = {}
        self.compiled: dict[Layout, Callable[[Tensor], Tensor]] = {}
        self.images = torch.empty(0, 3, size, size, device=device)
        self.clock = _clock(device)

    def __call__(self, way: Way, photos: int) -> Spent:
        """The seconds of one step; changes the copies alone."""
        network, optimizer = self._trainee(way.layout)
        forward = self._compiled(way.layout) if way.compile else network
        images, labels = self._batch(photos, way.layout)
        scaler = torch.GradScaler(self.device.type, enabled=way.precision == "float16")
        optimizer.zero_grad()
        started = self._now()
        with autocast(self.device, way.precision):
            logits = forward(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        computed = self._now()
        scaler.step(optimizer)
        scaler.update()
        return Spent(computed - started, self._now() - computed)

    def _trainee(self, layout: Layout) -> tuple[Network, torch.optim.Optimizer]:
        if layout not in self.trainees:
            network = copy.deepcopy(self.network).to(self.device)
            network = network.to(memory_format=memory_format(layout))
            train_mode(network)
            groups = parameter_groups(
                network.backbone, network.head, backbone_rate=0.0, head_rate=0.0, weight_decay=0.0
            )
            self.trainees[layout] = network, make_optimizer(groups)
        return self.trainees[layout]

    def _compiled(self, layout: Layout) -> Callable[[Tensor], Tensor]:
        if layout not in self.compiled:
            self.compiled[layout] = torch.compile(self._trainee(layout)[0])
        return self.compiled[layout]

    def _batch(
        self, photos: int, layout: Layout
    ) -> tuple[Float[Tensor, "n 3 height width"], Int[Tensor, " n"]]:
        if len(self.images) < photos:
            shape = (photos, *self.images.shape[1:])
            self.images = torch.randn(shape, device=self.device)
        labels = torch.arange(photos, device=self.device) % self.classes
        return self.images[:photos].contiguous(memory_format=memory_format(layout)), labels

    def _now(self) -> float:
        """Seconds on the clock, when the device has done all it was told to."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return self.clock()


def may_gain(network: Network, device: torch.device) -> bool:
    """Whether compiling might make training faster: on CUDA; on a CPU for ResNeSts."""
    if device.type == "cpu":
        return any(isinstance(module, SplitAttn) for module in network.modules())
    return device.type == "cuda"


def _clock(device: torch.device) -> Callable[[], float]:
    """Wall time; for one thread of a CPU that thread's own, in which other programs do not count.

    Steps for a CPU alone run in the thread that takes them, backward ones too.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _compiles(device: torch.device) -> bool:
    """Whether there is a compiler that works, by a sum."""
    try:
        torch.compile(lambda number: number + 1)(torch.zeros(2, device=device))
    except Exception:  # no compiler, one that is too old, no headers, …
        return False
    return True


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


# --- the cache ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """A file of the cache: what was measured, and all that it depends on."""

    key: dict[str, Any]
    measured: Measured


_RECORD = TypeAdapter(_Record)


def _key(
    network: Network, ways: Sequence[Way], *, size: int, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """What timings depend on. The network counts by its modules and by what of it is trained."""
    trained = [name for name, tensor in network.named_parameters() if tensor.requires_grad]
    return {
        "format": FORMAT,
        "network": _digest(repr((network, trained))),
        "ways": [asdict(way) for way in ways],
        "size": size,
        "batch_size": batch_size,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file(cache: Path, key: Mapping[str, Any]) -> Path:
    return cache / f"probe-{_digest(repr(key))}.json"


def _read(cache: Path | None, key: Mapping[str, Any]) -> Measured | None:
    """What was measured with this key; None where that is not known, or the file is broken."""
    if cache is None:
        return None
    try:
        record = _RECORD.validate_json(_file(cache, key).read_bytes())
    except (OSError, ValueError):
        return None
    return record.measured if record.key == key else None


def _write(cache: Path | None, key: Mapping[str, Any], measured: Measured) -> None:
    if cache is None:
        return
    with suppress(ResourceError):  # a few seconds more the next time
        make_folder(cache)
        write_json(_file(cache, key), {"key": key, "measured": asdict(measured)})
