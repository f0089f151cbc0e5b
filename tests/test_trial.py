from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.torch_version import TorchVersion

from fieldguide.errors import UsageError
from fieldguide.network.network import Network, build, freeze, weights_of
from fieldguide.train import trial
from fieldguide.train.trial import (
    ENOUGH_PHOTOS,
    MARGIN,
    SECONDS,
    SHARE,
    Choice,
    Step,
    Way,
    choose,
    fastest,
    measure,
    real_steps,
    ways_to_try,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")

PLAIN = Way("contiguous", "bfloat16")
FULL = Way("contiguous", "float32")
LAST = Way("channels_last", "bfloat16")
BOTH = Way("channels_last", "float32")
WAYS = (PLAIN, FULL, LAST, BOTH)
EVEN = dict.fromkeys(WAYS, 1e-3)

LONG = 10_000_000  # photos to go

SETTINGS: dict[str, Any] = {
    "size": 32,
    "batch_size": 8,
    "classes": 3,
    "device": CPU,
    "steps_to_go": 100_000,
    "cache": None,
}


def make(backbone: str = "test_resnet", *, head: str = "linear", classes: int = 3) -> Network:
    return build(backbone, weights="none", head=head, classes=classes, dropout=0.5, seed=0)


def never(way: Way, photos: int, done: int) -> bool:
    return False


class Machine:
    """A machine of made-up speed: seconds a photo by way, and an update that is the same for all.

    Memory is `short` for a way and photos after so many steps; steps of `broken` ways fail.
    """

    def __init__(
        self,
        speeds: dict[Way, float],
        *,
        update: float = 0.0,
        short: Callable[[Way, int, int], bool] = never,
        broken: tuple[Way, ...] = (),
    ) -> None:
        self.speeds, self.update, self.short, self.broken = speeds, update, short, broken
        self.steps: list[tuple[Way, int]] = []
        self.seconds = 0.0

    def __call__(self, way: Way, photos: int) -> tuple[float, float]:
        if self.short(way, photos, len(self.steps)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        if way in self.broken:
            raise RuntimeError("not implemented for 'BFloat16'")
        self.steps.append((way, photos))
        self.seconds += self.speeds[way] * photos + self.update
        return self.speeds[way] * photos, self.update


def measured(
    step: Step, to_go: int = LONG, *, batch: int = 64, gpu: bool = False
) -> tuple[dict[Way, float], int]:
    return measure(step, WAYS, batch, to_go, whole=gpu)


def test_the_default_stays_unless_another_is_clearly_faster() -> None:
    for gain, expected in ((0.5, PLAIN), (1.0, PLAIN), (1.04, PLAIN), (1.06, LAST), (3.0, LAST)):
        assert fastest({LAST: 1.0 / gain, PLAIN: 1.0}, PLAIN) == expected, gain
    assert fastest(EVEN, PLAIN) == PLAIN
    assert fastest({}, LAST) == LAST


def test_every_setting_that_changes_must_earn_its_margin() -> None:
    assert fastest({PLAIN: 1.0, LAST: 0.9, BOTH: 0.88}, PLAIN) == LAST
    assert fastest({PLAIN: 1.0, LAST: 0.9, BOTH: 0.8}, PLAIN) == BOTH
    compiled = replace(LAST, compile=True)
    assert fastest({PLAIN: 1.0, LAST: 0.9, compiled: 0.88}, PLAIN) == LAST
    assert fastest({PLAIN: 1.0, LAST: 0.9, compiled: 0.8}, PLAIN) == compiled


@given(
    st.lists(st.floats(0.001, 10), min_size=4, max_size=4),
    st.floats(0.01, 100),
    st.permutations(WAYS),
)
def test_a_choice_follows_ratios_and_not_the_order(
    seconds: list[float], factor: float, order: list[Way]
) -> None:
    table = dict(zip(WAYS, seconds, strict=True))
    best = table[fastest(table, PLAIN)]
    scaled = fastest({way: factor * table[way] for way in order}, PLAIN)
    assert table[scaled] == pytest.approx(best)
    assert best <= min(table[PLAIN], min(seconds) * MARGIN**2 * (1 + 1e-9))


def hardware(monkeypatch: pytest.MonkeyPatch, bfloat16: bool = True) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bfloat16)


@pytest.mark.parametrize(
    ("device", "bfloat16", "precisions"),
    [
        (CPU, True, ["bfloat16", "float32"]),
        (CPU, False, ["float32"]),
        (CUDA, True, ["bfloat16", "float32"]),
        (CUDA, False, ["float16"]),
        (MPS, False, ["float32"]),
    ],
)
def test_only_precisions_of_the_device_are_tried_the_default_first(
    device: torch.device, bfloat16: bool, precisions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware(monkeypatch, bfloat16)
    layouts: tuple[Any, ...] = ("contiguous", "channels_last")
    expected = tuple(Way(layout, precision) for layout in layouts for precision in precisions)
    assert ways_to_try("auto", "auto", device) == expected


def test_apples_gpus_train_contiguous_where_torch_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware(monkeypatch, bfloat16=False)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.13.1"))
    assert ways_to_try("auto", "float32", MPS) == (Way("contiguous", "float32"),)
    assert ways_to_try("channels_last", "float32", CPU) == (BOTH,)
    with pytest.raises(UsageError, match=r"trains wrongly on `mps` with torch 2\.13") as error:
        ways_to_try("channels_last", "float32", MPS)
    assert "2.14" in error.value.hint
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.14.0"))
    assert len(ways_to_try("auto", "float32", MPS)) == 2


def test_what_is_asked_for_is_the_only_way(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware(monkeypatch)
    assert ways_to_try("channels_last", "float32", CPU) == (BOTH,)
    assert ways_to_try("auto", "float32", CPU) == (FULL, BOTH)
    assert ways_to_try("channels_last", "auto", CPU) == (LAST, BOTH)
    with pytest.raises(UsageError, match="'float16' works on a GPU only"):
        choose(make(), **SETTINGS | {"precision": "float16"})


# --- measuring, on made-up machines ---------------------------------------------------------------


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_all_combinations_take_turns_and_speeds_are_found_as_they_are(gpu: bool) -> None:
    """On a processor with AMX, say: bfloat16 is fast channels last, and slow in the default."""
    speeds = {PLAIN: 0.04, FULL: 0.02, LAST: 0.01, BOTH: 0.03}
    machine = Machine(speeds, update=0.064)
    table, parts = measured(machine, gpu=gpu)
    assert table == pytest.approx({way: speed + 0.064 / 64 for way, speed in speeds.items()})
    assert list(table) == list(WAYS) and parts == 1
    assert fastest(table, PLAIN) == LAST
    assert [way for way, _ in machine.steps[:2]] == [PLAIN] * 2
    rounds, photos = machine.steps[2:], machine.steps[-1][1]
    assert len(rounds) >= 3 * len(WAYS)
    assert rounds == (len(rounds) // 4) * [(way, photos) for way in WAYS]
    assert photos == 64 if gpu else photos >= ENOUGH_PHOTOS


def test_one_disturbed_step_changes_nothing() -> None:
    machine = Machine(EVEN)

    def disturbed(way: Way, photos: int) -> tuple[float, float]:
        compute, update = machine(way, photos)
        return (9 if len(machine.steps) == 8 else 1) * compute, update

    assert measured(disturbed)[0] == pytest.approx(EVEN)


@pytest.mark.parametrize(
    ("pace", "to_go", "photos"),
    [(1e-5, LONG, 64), (1e-3, LONG, 64), (1.0, LONG, 16), (1.0, 5000, 2), (0.01, 20_000, 9)],
)
def test_photos_of_a_step_are_as_many_as_there_is_time_for(
    pace: float, to_go: int, photos: int
) -> None:
    machine = Machine(dict.fromkeys(WAYS, pace))
    measured(machine, to_go)
    assert machine.steps[-1][1] == photos
    assert machine.steps.count((LAST, photos)) >= 4  # to warm up, and three rounds
    assert machine.seconds <= max(SECONDS + 4 * pace, 5 * len(WAYS) * pace * ENOUGH_PHOTOS)


@given(
    st.floats(1e-4, 3.0),
    st.lists(st.floats(0.1, 3.0), min_size=3, max_size=3),
    st.integers(1, 256),
    st.integers(1, 10**6),
    st.booleans(),
)
def test_no_more_than_the_share_of_the_fit_goes_into_the_trial(
    pace: float, slower: list[float], batch: int, to_go: int, gpu: bool
) -> None:
    """Other ways may be three times as slow as the default, by whose pace time is planned."""
    paces = [pace, *(pace * factor for factor in slower)]
    machine = Machine(dict(zip(WAYS, paces, strict=True)))
    measured(machine, to_go, batch=batch, gpu=gpu)
    assert machine.seconds <= SHARE * to_go * pace * (1 + 1e-9)


def test_with_little_to_do_hardly_a_step_is_taken() -> None:
    machine = Machine(EVEN)
    assert measured(machine, 2000) == ({}, 1)
    assert machine.steps == []
    machine = Machine(EVEN, update=10.0)  # two photos a step pay the update of a whole batch
    assert measured(machine, 5000) == ({}, 1)
    assert len(machine.steps) == 2


# --- ways that fail, on made-up machines ----------------------------------------------------------


@pytest.mark.parametrize(("memory", "parts"), [(64, 1), (63, 2), (32, 2), (17, 4), (2, 32)])
def test_parts_are_doubled_until_one_fits(memory: int, parts: int) -> None:
    machine = Machine(EVEN, short=lambda way, photos, done: photos > memory)
    assert measured(machine, gpu=True) == (pytest.approx(EVEN), parts)
    assert {photos for _, photos in machine.steps} == {64 // parts}


def test_what_fits_once_must_fit_again_and_what_never_does_is_left_to_the_training() -> None:
    """Moments are made at the end of the first step, and stay."""
    filling = Machine(EVEN, short=lambda way, photos, done: done > 0 and photos > 32)
    assert measured(filling, gpu=True) == (pytest.approx(EVEN), 2)
    assert measured(Machine(EVEN, short=lambda *_: True), gpu=True) == ({}, 64)


@pytest.mark.parametrize(
    ("machine", "left"),
    [
        (Machine(EVEN, short=lambda way, *_: way == FULL), [PLAIN, LAST, BOTH]),
        (Machine(EVEN, short=lambda way, _, done: way == LAST and done > 9), [PLAIN, FULL, BOTH]),
        (Machine(EVEN, broken=(FULL,)), [PLAIN, LAST, BOTH]),
        (Machine(EVEN, broken=(PLAIN, LAST)), [FULL, BOTH]),
        (Machine(EVEN, broken=WAYS), []),
        (Machine(EVEN, short=lambda way, _, done: way == PLAIN and done > 2), []),
    ],
    ids=["memory", "later", "one", "default", "all", "default later"],
)
def test_a_way_that_fails_leaves_the_others(machine: Machine, left: list[Way]) -> None:
    """But nothing is left for another whose gain cannot be told."""
    table, parts = measured(machine, gpu=True)
    assert (list(table), parts) == (left, 1)


# --- real steps -----------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The copies that steps run on, each followed by its optimiser."""
    made: list[Any] = []
    train, make_optimizer = trial.train_mode, trial.make_optimizer
    monkeypatch.setattr(trial, "train_mode", lambda copied: (made.append(copied), train(copied)))

    def recorded(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        made.append(make_optimizer(groups))
        return made[-1]

    monkeypatch.setattr(trial, "make_optimizer", recorded)
    return made


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.layout}-{way.precision}")
def test_a_real_step_is_taken_as_asked_for(way: Way, made: list[Any]) -> None:
    network, seen = make(), []
    freeze(network, 2)
    first = network.get_submodule("backbone.conv1.0")
    first.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output.dtype)))
    step = real_steps(network, 32, 3, CPU)
    for _ in range(3):
        assert min(step(way, 5)) > 0
    images, dtype = seen[-1]
    assert images.shape == (5, 3, 32, 32) and dtype == getattr(torch, way.precision)
    assert images.stride()[1] == (1 if way.layout == "channels_last" else 1024)
    copied, optimizer = made
    assert copied is not network and copied.training
    kernel = copied.get_submodule("backbone.layer1.0.conv2").weight
    assert kernel.is_contiguous(memory_format=trial.devices.memory_format(way.layout))
    frozen = {name for name, tensor in network.named_parameters() if not tensor.requires_grad}
    assert frozen
    before = weights_of(network)
    for name, tensor in copied.named_parameters():
        assert torch.equal(tensor, before[name])  # the rates are zero
        assert (tensor.grad is None) == (name in frozen)
        # The fused optimiser of a CPU goes through memory in order, and is wrong if they differ.
        if tensor.grad is not None:
            assert tensor.grad.stride() == tensor.stride(), name
            assert optimizer.state[tensor]["exp_avg"].stride() == tensor.stride(), name


def test_a_compiled_way_runs_what_torch_compiles(
    made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    step = real_steps(make(), 32, 3, CPU)
    for _ in range(2):
        step(replace(LAST, compile=True), 4)
    assert compiled == [made[0]]


def test_a_way_without_finite_losses_fails() -> None:
    network = make()
    next(network.parameters()).data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        real_steps(network, 32, 3, CPU)(FULL, 4)


# --- choosing, with real steps --------------------------------------------------------------------


def test_the_fastest_is_chosen_and_everything_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware(monkeypatch)
    monkeypatch.setattr(trial, "SECONDS", 0.3)
    network = make()
    network.head.eval()
    for tensor in network.parameters():
        tensor.grad = torch.ones_like(tensor)
    before = weights_of(network)
    pointers = [tensor.data_ptr() for tensor in network.state_dict().values()]
    modes = [module.training for module in network.modules()]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    found = choose(network, **SETTINGS)
    assert list(found.table) == list(WAYS)
    assert found.way == fastest(found.table, PLAIN)
    assert found.seconds_per_photo == found.table[found.way] and found.parts == 1
    assert all(torch.equal(weights_of(network)[name], tensor) for name, tensor in before.items())
    assert [tensor.data_ptr() for tensor in network.state_dict().values()] == pointers
    assert [module.training for module in network.modules()] == modes
    grads = [tensor.grad for tensor in network.parameters()]
    assert all(grad is not None and grad.eq(1).all() for grad in grads)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def choose_on(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    network: Network | None = None,
    **changes: Any,
) -> Choice:
    """What is chosen on a made-up machine."""
    monkeypatch.setattr(trial, "real_steps", lambda *_: machine)
    hardware(monkeypatch)
    return choose(network or make(), **SETTINGS | changes)


@pytest.mark.parametrize("compile", [True, False, "auto"])
def test_what_is_given_is_not_measured_nor_is_a_little_fit(
    compile: bool | str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    way = replace(BOTH, compile=compile is True)
    given = {"layout": way.layout, "precision": way.precision, "compile": compile}
    machine = Machine({})
    assert choose_on(machine, monkeypatch, **given) == Choice(way, None, {}, 1)
    little = {"compile": compile, "steps_to_go": 20, "cache": tmp_path}
    way = replace(PLAIN, compile=compile is True)
    assert choose_on(machine, monkeypatch, **little) == Choice(way, None, {}, 1)
    assert list(tmp_path.iterdir()) == machine.steps == []


def choose_on_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, cache: Path | None = None, to_go: int = 10**6
) -> Choice:
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    monkeypatch.setattr(trial.devices, "device_name", lambda device: "made up")
    return choose_on(machine, monkeypatch, device=CUDA, cache=cache, steps_to_go=to_go)


COMPILED = replace(LAST, compile=True)


@pytest.mark.parametrize(("pace", "expected"), [(6e-4, COMPILED), (9.8e-4, LAST), (2e-3, LAST)])
def test_a_long_fit_on_a_gpu_is_compiled_if_that_is_clearly_faster(
    pace: float, expected: Way, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    speeds = dict.fromkeys(WAYS, 2e-3) | {LAST: 1e-3, COMPILED: pace}
    machine = Machine(speeds)
    found = choose_on_gpu(machine, monkeypatch, tmp_path)
    assert found.way == expected
    assert found.table == pytest.approx(speeds)
    assert found.seconds_per_photo == found.table[expected]
    silent = Machine({})
    assert choose_on_gpu(silent, monkeypatch, tmp_path) == found
    assert choose_on_gpu(silent, monkeypatch, tmp_path, to_go=10**5).way == LAST  # 800 s
    assert silent.steps == []
    assert choose_on_gpu(Machine(speeds), monkeypatch, to_go=10**5).table.keys() == {*WAYS}
    no_compiler = choose_on_gpu(Machine(speeds, broken=(COMPILED,)), monkeypatch)
    assert (no_compiler.way, no_compiler.table.keys()) == (LAST, {*WAYS})


@pytest.mark.parametrize("works", [True, False])
def test_a_resnest_in_a_long_fit_is_compiled_where_there_is_a_compiler(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiler(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        if not works:
            raise RuntimeError("no C++ compiler")
        return function

    def compiles(network: Network, steps_to_go: int, **changes: Any) -> bool:
        settings = {"layout": "contiguous", "precision": "float32", "steps_to_go": steps_to_go}
        return choose_on(machine, monkeypatch, network, **settings | changes).way.compile

    monkeypatch.setattr(torch, "compile", compiler)
    network, machine = make("resnest14d"), Machine(dict.fromkeys(WAYS, 0.01))
    assert compiles(network, 80_000) is works  # 6,400 s
    assert not compiles(network, 50_000)  # 4,000 s
    assert not compiles(network, 10**8, compile=False)
    assert not compiles(make(), 10**8)
    assert not trial.may_gain(network, MPS)


SPEEDS = {PLAIN: 0.01, FULL: 0.02, LAST: 0.005, BOTH: 0.02}


def cached(
    folder: Path, monkeypatch: pytest.MonkeyPatch, network: Network | None = None, **changes: Any
) -> tuple[Choice, int]:
    """What is chosen on a made-up machine, and how many steps it was asked for."""
    machine = Machine(SPEEDS)
    found = choose_on(machine, monkeypatch, network, **{"cache": folder} | changes)
    return found, len(machine.steps)


def test_a_second_fit_finds_the_timings_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "not" / "there yet"
    first, steps = cached(folder, monkeypatch)
    assert steps > 0 and first.way == LAST
    assert cached(folder, monkeypatch) == (first, 0)
    assert cached(folder, monkeypatch, steps_to_go=1) == (first, 0)  # even a little one


def test_timings_of_something_else_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, monkeypatch)
    frozen = make()
    freeze(frozen, 3)
    for network in (frozen, make("resnet18"), make(head="se"), make(classes=4)):
        assert cached(tmp_path, monkeypatch, network)[1] > 0
    for changes in ({"size": 64}, {"batch_size": 16}, {"layout": "contiguous"}):
        assert cached(tmp_path, monkeypatch, **changes)[1] > 0, changes
    found, steps = cached(tmp_path, monkeypatch, precision="float32")
    assert steps > 0 and found.table.keys() == {FULL, BOTH}
    for place, name, value in (
        (trial.devices, "device_name", lambda device: "another"),
        (torch, "get_num_threads", lambda: 99),
        (torch, "__version__", "99.0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            assert cached(tmp_path, patch)[1] > 0, name
    assert cached(tmp_path, monkeypatch)[1] == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"table": []}', b'[[{"layout": "fast"}, 1]]', b"[" * 10**5],
)
def test_a_broken_file_is_ignored_and_replaced(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = cached(tmp_path, monkeypatch)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (content, whole.replace(b"0.0", b"-1."), whole[:-9]):
        file.write_bytes(damaged)
        again, steps = cached(tmp_path, monkeypatch)
        assert again == first and steps > 0
        assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    found, steps = cached(tmp_path / "file", monkeypatch)
    assert found.way == LAST and steps > 0


def test_a_lack_of_memory_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorts = ((lambda _, photos, done: photos > 4, 2), (lambda way, *_: way == LAST, 1))
    for short, parts in shorts:
        machine = Machine(EVEN, short=short)
        assert choose_on_gpu(machine, monkeypatch, tmp_path, to_go=10**5).parts == parts
    assert list(tmp_path.iterdir()) == []
