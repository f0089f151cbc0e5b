import os
import platform
import resource
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fieldguide.errors import ResourceError, UsageError
from fieldguide.machine.cores import count_cores
from fieldguide.machine.device import (
    autocast,
    choose_device,
    choose_devices,
    choose_precision,
    count_readers,
    count_threads,
    count_threads_beside,
    count_workers,
    device_name,
    fold_places,
    keep_freed_memory,
    training_threads,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def have(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"),
    [(False, False, "cpu"), (True, False, "cuda:0"), (False, True, "mps"), (True, True, "cuda:0")],
)
def test_auto_is_the_first_gpu_or_else_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, best: str
) -> None:
    have(monkeypatch, cuda=cuda, mps=mps)
    assert choose_device("auto") == torch.device(best)


def test_the_cpu_can_be_asked_for() -> None:
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["meta", "toaster", "", "cpu:x", "cuda:999"])
def test_a_device_that_cannot_be_used_is_named_with_the_way_out(name: str) -> None:
    with pytest.raises(ResourceError) as caught:
        choose_device(name)
    assert caught.value.message.startswith(f"device `{name}` cannot be used: ")
    assert "\n" not in caught.value.message
    assert "cpu" in caught.value.hint
    assert caught.value.exit_code == 4


def test_a_broken_driver_is_an_error_only_where_its_gpu_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\nmore lines")

    have(monkeypatch)
    monkeypatch.setattr(torch, "zeros", broken)
    assert choose_device("auto") == CPU
    with pytest.raises(ResourceError, match=r"`cuda` cannot be used: The NVIDIA driver .* too old"):
        choose_device("cuda")


@pytest.mark.parametrize(("hardware", "best"), [(True, "bfloat16"), (False, "float32")])
def test_auto_on_a_cpu_is_bfloat16_where_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, best: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: hardware)
    assert choose_precision("auto", CPU) == best


@pytest.mark.parametrize(("hardware", "best"), [(True, "bfloat16"), (False, "float16")])
def test_auto_on_a_gpu_is_half_as_wide(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, best: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: hardware)
    assert choose_precision("auto", CUDA) == best


def test_auto_elsewhere_is_full() -> None:
    assert choose_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_precision_asked_for_is_given(name: str) -> None:
    assert choose_precision(name, CPU) == name


def test_float16_needs_a_gpu() -> None:
    assert choose_precision("float16", CUDA) == "float16"
    with pytest.raises(UsageError, match="float16") as caught:
        choose_precision("float16", CPU)
    assert "bfloat16" in caught.value.hint


def test_an_unknown_precision_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="'float64' is not one of float32, bfloat16, float16"):
        choose_precision("float64", CPU)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_products_are_computed_in_the_precision_and_only_inside(name: str) -> None:
    matrix = torch.eye(2)
    with autocast(CPU, choose_precision(name, CPU)):
        assert (matrix @ matrix).dtype == getattr(torch, name)
    assert (matrix @ matrix).dtype == torch.float32


def test_a_cpu_has_a_name() -> None:
    assert device_name(CPU)


def cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("asked", [0, 1, 5, 40])
def test_a_number_of_processes_is_taken_at_its_word(asked: int, device: torch.device) -> None:
    assert count_workers(asked, device) == asked


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (2, 1), (4, 3), (9, 8), (128, 16)])
def test_a_gpu_is_fed_by_all_cores_but_one(
    count: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(monkeypatch, count)
    assert count_workers("auto", CUDA) == count_readers("auto", CUDA) == workers


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_a_cpu_trains_a_fold_on_every_core(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, count)
    assert count_workers("auto", CPU) == count
    assert fold_places("cpu", "auto") == (CPU,) * count
    assert fold_places("cpu", 0) == fold_places("cpu:1", "auto") == (CPU,)
    assert fold_places("cpu", 3) == fold_places("cpu:3", "auto") == (CPU,) * 3


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that exist in name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    zeros = torch.zeros

    def usable(*_: object, device: torch.device) -> torch.Tensor:
        if device.type == "cuda" and device.index not in range(3):
            raise RuntimeError("invalid device ordinal")
        return zeros(())

    monkeypatch.setattr(torch, "zeros", usable)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("auto", (0, 1, 2)), ("0,2", (0, 2)), ("cuda:1, cuda:0", (1, 0)), ("1", (1,))],
)
@pytest.mark.parametrize("workers", ["auto", 3])
def test_a_fold_is_trained_on_each_gpu_that_is_named(
    name: str, numbers: tuple[int, ...], workers: int | str, three_gpus: None
) -> None:
    named = tuple(torch.device("cuda", number) for number in numbers)
    assert choose_devices(name) == fold_places(name, workers) == named
    assert choose_device(name) == named[0]


@pytest.mark.parametrize("name", ["0,3", "cuda:7", "0,,1", ""])
def test_a_gpu_that_is_not_there_is_named(name: str, three_gpus: None) -> None:
    with pytest.raises(ResourceError, match=r"device `.*` cannot be used"):
        choose_devices(name)


def test_a_gpu_is_named_once(three_gpus: None) -> None:
    with pytest.raises(UsageError, match="names `cuda:0` more than once"):
        choose_devices("0,cuda:0")


def test_devices_are_of_one_kind(three_gpus: None) -> None:
    with pytest.raises(UsageError, match="`0,cpu` names devices of several kinds"):
        choose_devices("0,cpu")


def test_gpus_share_the_cores_that_feed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 16)
    assert [count_workers("auto", CUDA, gpus) for gpus in (1, 2, 4, 16)] == [15, 7, 3, 1]


@pytest.mark.parametrize(("count", "readers"), [(1, 1), (2, 1), (7, 1), (8, 2), (64, 16)])
def test_beside_predicting_on_a_cpu_one_thread_reads_for_four_cores(
    count: int, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(monkeypatch, count)
    assert count_readers("auto", CPU) == readers
    assert count_readers(3, CPU) == 3


def test_cores_are_counted_where_the_system_tells_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert count_cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores() == 1


@pytest.mark.parametrize("counted", [count_threads, count_threads_beside])
@pytest.mark.parametrize(
    ("count", "others", "threads"), [(8, 2, 3), (4, 2, 2), (4, 3, 1), (2, 5, 1), (8, 0, 3)]
)
def test_threads_are_shared_with_other_processes_and_leave_a_core_to_each_reader(
    count: int,
    others: int,
    threads: int,
    counted: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch was set to three threads, and is not given more."""
    cores(monkeypatch, count)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert counted(others) == threads


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), training_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_is_used_again() -> None:
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    keep_freed_memory()
    counts = []
    for _ in range(40):
        before = faults()
        torch.ones(16_000_000)  # 64 MB, 16,000 pages
        counts.append(faults() - before)
    # Small pieces may be cut from what was freed first: the heap grows a few times and settles.
    assert np.median(counts) < 1000
