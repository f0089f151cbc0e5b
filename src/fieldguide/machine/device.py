"""The device and the precision of a fit. Knows nothing of the rest."""

import ctypes
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from fieldguide.errors import ResourceError, UsageError
from fieldguide.machine.cores import count_cores
from fieldguide.recipe import Layout, Precision
from fieldguide.words import first_line

# From glibc's malloc.h: the most blocks to map one by one, and the most free memory at the end.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1


def choose_device(name: str) -> torch.device:
    """Return the device of a name, the first of several, as `choose_devices`."""
    return choose_devices(name)[0]


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """Return the devices of a name: `auto` is every GPU, or else the CPU.

    `0,1` are the GPUs of these numbers, `cpu:2` is the CPU twice. Raises `ResourceError` for one
    that cannot be used, `UsageError` for a GPU that is named twice.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return tuple(torch.device("cuda", n) for n in range(torch.cuda.device_count()))
        return (torch.device("mps" if torch.backends.mps.is_available() else "cpu"),)
    cpus = re.fullmatch(r"cpu:([1-9]\d*)", name)
    if cpus:
        return (torch.device("cpu"),) * int(cpus[1])
    devices = tuple(_usable(part.strip()) for part in name.split(","))
    twice = [str(device) for device in devices if devices.count(device) > 1]
    if twice:
        raise UsageError(
            f"`{name}` names `{twice[0]}` more than once",
            hint="write `cpu:2` for two folds at the same time on the CPU",
        )
    if len({device.type for device in devices}) > 1:
        raise UsageError(f"`{name}` names devices of several kinds, on which results differ")
    return devices


def _usable(name: str) -> torch.device:
    """Return the device of a name of torch's, or of a GPU's number."""
    try:
        device = torch.device(f"cuda:{name}" if name.isdecimal() else name)
        torch.zeros((), device=device).item()  # some devices exist in name only: `meta`
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(
            f"device `{name}` cannot be used: {first_line(error)}",
            hint="leave out --device, or set it to `cpu`",
        ) from error
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision asked for, or for `auto` the device's best.

    `auto` is bfloat16 if the hardware multiplies it, float16 on older GPUs, else float32. Raises
    UsageError for an unknown name and for float16 on a CPU.
    """
    if name == "auto":
        if device.type == "cuda":
            return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return "bfloat16" if fast else "float32"
    if name == "float16" and device.type == "cpu":
        raise UsageError(
            "`precision` = 'float16' works on a GPU only",
            hint="on a CPU set precision to `bfloat16` or `float32`",
        )
    if name not in get_args(Precision):
        raise UsageError(f"`precision` = {name!r} is not one of {', '.join(get_args(Precision))}")
    return cast(Precision, name)


def memory_format(layout: Layout) -> torch.memory_format:
    """Return torch's name of the layout, for a network's and a batch's `to`."""
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


def count_workers(asked: int | str, device: torch.device, devices: int = 1) -> int:
    """Return the number of folds at a time on a CPU, or of threads that prepare photos for a GPU.

    `auto` is a fold for each core, or for each of `devices` GPUs its share of the cores less one,
    up to 16 (taste).
    """
    if isinstance(asked, int):
        return asked
    cores = count_cores()
    return cores if device.type == "cpu" else min(max(cores // devices - 1, 1), 16)


def fold_places(name: str, workers: int | str) -> tuple[torch.device, ...]:
    """Return a device for each fold trained at the same time: for `cpu` one for each worker."""
    devices = choose_devices(name)
    if devices[0].type == "cpu" and not name.startswith("cpu:"):
        return devices * max(count_workers(workers, devices[0]), 1)
    return devices


def count_threads(jobs: int) -> int:
    """Return torch's threads for each of n processes; OMP_NUM_THREADS may set fewer."""
    # Threads of one step wait for each other: one that shares its core slows all.
    return max(min(torch.get_num_threads(), count_cores() // max(jobs, 1)), 1)


def count_readers(asked: int | str, device: torch.device) -> int:
    """Return the threads that read photos for prediction; `auto` for a GPU as `count_workers`.

    On a CPU one thread for four cores keeps up with the network: a forward pass of resnet18 at
    128 px takes 4 ms a photo and core, reading one 0.4 ms.
    """
    if isinstance(asked, int):
        return asked
    return max(count_cores() // 4, 1) if device.type == "cpu" else count_workers("auto", device)


def count_threads_beside(readers: int) -> int:
    """Return the torch threads that leave each reader a core; OMP_NUM_THREADS may set fewer."""
    return max(min(torch.get_num_threads(), count_cores() - readers), 1)


@contextmanager
def training_threads(threads: int) -> Iterator[None]:
    """Set the number of torch's threads in the block; on a CPU the last bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_layouts(asked: Layout | Literal["auto"], device: torch.device) -> tuple[Layout, ...]:
    """Return the layouts that training may use, the default first.

    Raises `UsageError` for channels last on Apple's GPUs before torch 2.14: gradients are wrong.
    """
    wrong = device.type == "mps" and torch.__version__ < "2.14"
    if wrong and asked == "channels_last":
        raise UsageError(
            f"`layout` = 'channels_last' trains wrongly on `mps` with torch {torch.__version__}",
            hint="take torch 2.14 or newer, or `layout` = 'contiguous'",
        )
    if asked != "auto":
        return (asked,)
    return ("contiguous",) if wrong else ("contiguous", "channels_last")


@cache
def keep_freed_memory() -> None:
    """Change the process: glibc uses freed memory again, and does not give it back to the system.

    Else the system fills every large tensor with zeros at every step: 10 % of a step on a CPU.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def device_name(device: torch.device) -> str:
    """Return the device's model; of a processor, from Linux's own file or else from Python."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    information = Path("/proc/cpuinfo")
    text = information.read_text("utf-8") if information.is_file() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return a context of mixed precision, or one that does nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch could not allocate, on a GPU or in main memory."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
