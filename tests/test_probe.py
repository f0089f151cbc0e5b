import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fieldguide import probe
from fieldguide.errors import UsageError
from fieldguide.network import Network, build, freeze, weights_of
from fieldguide.probe import (
    ENOUGH_PHOTOS,
    MARGIN,
    SECONDS,
    SHARE,
    Choice,
    Compiled,
    Measured,
    Spent,
    Steps,
    Task,
    Timing,
    Way,
    choice,
    choose,
    compiling_pays,
    fastest,
    measure,
    photos_for,
    timings,
    ways_to_try,
    with_compiled,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")

PLAIN = Way("contiguous", "bfloat16")
LAST = Way("channels_last", "bfloat16")
FULL = Way("contiguous", "float32")
BOTH = Way("channels_last", "float32")
WAYS = (PLAIN, FULL, LAST, BOTH)

LONG = Task(batch_size=64, photos_to_go=10_000_000, whole=False)
GPU = replace(LONG, whole=True)

SETTINGS: dict[str, Any] = {
    "size": 32,
    "batch_size": 8,
    "classes": 3,
    "device": CPU,
    "steps_to_go": 100_000,
    "cache": None,
}


def make(backbone: str = "test_resnet", dropout: float = 0.5) -> Network:
    return build(backbone, weights="none", head="linear", classes=3, dropout=dropout, seed=0)


def table(**seconds: float) -> tuple[Timing, ...]:
    """Timings of `plain`, `last`, `full`, `both`."""
    ways = {"plain": PLAIN, "last": LAST, "full": FULL, "both": BOTH}
    return tuple(Timing(ways[name], value) for name, value in seconds.items())


class Machine:
    """A machine of made-up speed: seconds a photo by way, and an update that is the same for all.

    `memory` are photos that fit, `drift` what each step adds to the pace of all later ones.
    """

    def __init__(
        self,
        speeds: dict[Way, float],
        *,
        update: float = 0.0,
        memory: dict[Way, int] | int = 10**9,
        drift: float = 0.0,
    ) -> None:
        self.speeds, self.update, self.memory, self.drift = speeds, update, memory, drift
        self.steps: list[tuple[Way, int]] = []
        self.seconds = 0.0

    def __call__(self, way: Way, photos: int) -> Spent:
        limit = self.memory if isinstance(self.memory, int) else self.memory.get(way, 10**9)
        if photos > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        slower = 1 + self.drift * len(self.steps)
        self.steps.append((way, photos))
        spent = Spent(self.speeds[way] * photos * slower, self.update)
        self.seconds += spent.total
        return spent


def even(seconds: float = 0.01) -> dict[Way, float]:
    return dict.fromkeys(WAYS, seconds)


def measured(machine: Machine, task: Task = LONG, ways: tuple[Way, ...] = WAYS) -> Measured:
    found = measure(machine, ways, task)
    assert found is not None
    return found


# --- from timings to a choice ---------------------------------------------------------------------


def test_the_default_stays_unless_another_is_clearly_faster() -> None:
    for gain, expected in ((0.5, PLAIN), (1.0, PLAIN), (1.04, PLAIN), (1.06, LAST), (3.0, LAST)):
        best = fastest(table(plain=1.0, last=1.0 / gain), PLAIN)
        assert best is not None and best.way == expected, gain


def test_every_setting_that_changes_must_earn_its_margin() -> None:
    best = fastest(table(plain=1.0, last=0.9, both=0.88), PLAIN)
    assert best is not None and best.way == LAST
    best = fastest(table(plain=1.0, last=0.9, both=0.8), PLAIN)
    assert best is not None and best.way == BOTH


@given(
    st.lists(st.floats(0.001, 10), min_size=4, max_size=4),
    st.floats(0.01, 100),
    st.permutations(range(4)),
)
def test_a_choice_hangs_on_ratios_and_not_on_the_order(
    seconds: list[float], factor: float, order: list[int]
) -> None:
    rows = timings(dict(zip(WAYS, seconds, strict=True)))
    best = fastest(rows, PLAIN)
    scaled = fastest(
        [
            replace(row, seconds_per_photo=factor * row.seconds_per_photo)
            for row in (rows[number] for number in order)
        ],
        PLAIN,
    )
    assert best is not None and scaled is not None
    assert scaled.seconds_per_photo == pytest.approx(factor * best.seconds_per_photo)
    assert best.seconds_per_photo <= seconds[0]
    assert best.seconds_per_photo <= min(seconds) * MARGIN**2 * (1 + 1e-9)


def test_without_timings_the_default_is_taken_and_said_to_be_unmeasured() -> None:
    assert fastest((), PLAIN) is None
    assert choice(Measured(parts=4), LAST, compile=True) == Choice(
        "channels_last", "bfloat16", True, None, (), 4
    )


def test_a_choice_holds_the_best_way_and_all_timings() -> None:
    rows = table(plain=0.2, last=0.1)
    assert choice(Measured(rows, parts=2), PLAIN, compile=False) == Choice(
        "channels_last", "bfloat16", False, 0.1, rows, 2
    )


def test_a_compiled_step_that_was_timed_gives_the_seconds() -> None:
    rows = (*table(plain=0.2, last=0.1), Timing(replace(LAST, compile=True), 0.07))
    found = Measured(rows, compile_seconds=50.0)
    assert choice(found, PLAIN, compile=True).seconds_per_photo == 0.07
    assert choice(found, PLAIN, compile=False).seconds_per_photo == 0.1


# --- what is tried --------------------------------------------------------------------------------


def hardware(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
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
    device: torch.device, bfloat16: bool, precisions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware(monkeypatch, bfloat16)
    ways = ways_to_try("auto", "auto", device)
    assert [(way.layout, way.precision) for way in ways] == [
        (layout, precision)
        for layout in ("contiguous", "channels_last")
        for precision in precisions
    ]
    assert not any(way.compile for way in ways)


def test_what_is_asked_for_is_the_only_way(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware(monkeypatch, bfloat16=True)
    assert ways_to_try("channels_last", "float32", CPU) == (BOTH,)
    assert ways_to_try("auto", "float32", CPU) == (FULL, BOTH)
    assert ways_to_try("channels_last", "auto", CPU) == (LAST, BOTH)


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="'float16' works on a GPU only"):
        choose(make(), **SETTINGS | {"precision": "float16"})


# --- measuring, on made-up machines ---------------------------------------------------------------


@pytest.mark.parametrize("task", [LONG, GPU], ids=["cpu", "gpu"])
def test_speeds_are_found_as_they_are(task: Task) -> None:
    speeds = {PLAIN: 0.010, FULL: 0.020, LAST: 0.008, BOTH: 0.030}
    found = measured(Machine(speeds, update=0.064), task)
    assert [timing.way for timing in found.table] == [PLAIN, FULL, LAST]
    for timing in found.table:
        assert timing.seconds_per_photo == pytest.approx(speeds[timing.way] + 0.064 / 64)
    assert not found.short and found.parts == 1


def test_layouts_are_tried_in_the_precision_that_is_best() -> None:
    """bfloat16 that is only emulated, say."""
    found = measured(Machine({PLAIN: 0.04, FULL: 0.02, LAST: 0.03, BOTH: 0.01}))
    assert [timing.way for timing in found.table] == [PLAIN, FULL, BOTH]
    best = fastest(found.table, PLAIN)
    assert best is not None and best.way == BOTH


def test_ways_take_turns_and_the_default_takes_part_in_all() -> None:
    machine = Machine({PLAIN: 0.04, FULL: 0.02, LAST: 0.03, BOTH: 0.01})
    measured(machine)
    asked = [way for way, _ in machine.steps]
    assert asked[:8] == [PLAIN, PLAIN] + 3 * [PLAIN, FULL]
    rounds = asked[8:]
    assert len(rounds) >= 9
    assert rounds == (len(rounds) // 3) * [PLAIN, FULL, BOTH]


def test_what_is_given_leaves_fewer_ways() -> None:
    for ways in ((FULL, BOTH), (PLAIN, FULL), (LAST,)):
        machine = Machine(even())
        found = measured(machine, ways=ways)
        assert tuple(timing.way for timing in found.table) == ways
        assert {way for way, _ in machine.steps} == set(ways)


def test_a_machine_that_slows_down_meanwhile_keeps_the_default() -> None:
    found = measured(Machine(even(), drift=0.005))
    best = fastest(found.table, PLAIN)
    assert best is not None and best.way == PLAIN


def test_one_disturbed_step_changes_nothing() -> None:
    machine = Machine(even())

    def disturbed(way: Way, photos: int) -> Spent:
        spent = machine(way, photos)
        return replace(spent, compute=9 * spent.compute) if len(machine.steps) == 8 else spent

    found = measure(disturbed, WAYS, LONG)
    assert found is not None
    assert [timing.seconds_per_photo for timing in found.table] == pytest.approx([0.01] * 3)


@pytest.mark.parametrize("pace", [1e-5, 1e-3, 0.01])
def test_a_few_seconds_are_enough(pace: float) -> None:
    machine = Machine(even(pace), update=pace)
    measured(machine)
    assert machine.seconds <= SECONDS
    assert all(2 <= photos <= 64 for _, photos in machine.steps)


@pytest.mark.parametrize(
    ("pace", "photos_to_go", "photos"),
    [(1e-4, 10**7, 64), (1.0, 10**7, ENOUGH_PHOTOS), (1.0, 3000, 2), (0.01, 20_000, 23)],
)
def test_photos_of_a_step_are_as_many_as_there_is_time_for(
    pace: float, photos_to_go: int, photos: int
) -> None:
    machine = Machine(even(pace))
    measured(machine, replace(LONG, photos_to_go=photos_to_go))
    assert machine.steps[-1][1] == photos
    assert machine.steps.count((LAST, photos)) >= 3  # to warm up, and two rounds


@given(st.floats(1e-4, 3.0), st.integers(1, 256), st.integers(1, 10**6), st.booleans())
def test_no_more_than_the_share_of_the_fit_goes_into_the_probe(
    pace: float, batch_size: int, photos: int, whole: bool
) -> None:
    machine = Machine(even(pace))
    measure(machine, WAYS, Task(batch_size, photos, whole))
    assert machine.seconds <= SHARE * photos * pace * (1 + 1e-9)


def test_with_little_to_do_not_a_step_is_taken() -> None:
    machine = Machine(even())
    assert measure(machine, WAYS, replace(LONG, photos_to_go=2000)) is None
    assert machine.steps == []


def test_a_large_update_counts_against_the_fit_s_time() -> None:
    """Two photos a step would pay the update of a whole batch each time."""
    machine = Machine(even(1e-3), update=10.0)
    assert measure(machine, WAYS, replace(LONG, photos_to_go=3200)) is None
    assert machine.seconds < 2 * 10.1


@given(st.floats(0.01, 10), st.floats(0, 0.1), st.floats(1e-4, 1.0), st.integers(2, 64))
def test_photos_fit_into_the_time(seconds: float, update: float, pace: float, photos: int) -> None:
    found = photos_for(seconds, Spent(pace * photos, update), photos, 64)
    assert photos <= found <= 64
    if found > photos:
        assert 4 * (found * pace + update) <= seconds * (1 + 1e-9)


def test_a_gpu_is_measured_with_whole_batches() -> None:
    machine = Machine(even(1e-3))
    measured(machine, GPU)
    assert {photos for _, photos in machine.steps} == {64}


# --- memory, on made-up machines ------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "parts"), [(64, 1), (63, 2), (32, 2), (17, 4), (2, 32)])
def test_parts_are_doubled_until_one_fits(memory: int, parts: int) -> None:
    machine = Machine(even(1e-3), memory=memory)
    found = measured(machine, GPU)
    assert (found.parts, found.short) == (parts, parts > 1)
    assert len(found.table) == 3
    assert {photos for _, photos in machine.steps} == {64 // parts}


def test_what_fits_once_must_fit_again() -> None:
    """Moments are made at the end of the first step, and stay."""
    machine = Machine(even(1e-3))

    def filling(way: Way, photos: int) -> Spent:
        machine.memory = 64 if not machine.steps else 32
        return machine(way, photos)

    found = measure(filling, WAYS, GPU)
    assert found is not None and found.parts == 2


def test_what_never_fits_is_left_to_the_training() -> None:
    assert measured(Machine(even(), memory=1), GPU) == Measured(parts=64, short=True)


def test_other_ways_that_do_not_fit_are_left_out() -> None:
    machine = Machine(even(1e-3) | {FULL: 1e-4}, memory={FULL: 40, BOTH: 40})
    found = measured(machine, GPU)
    assert (found.parts, found.short) == (1, True)
    assert [timing.way for timing in found.table] == [PLAIN, LAST]


def test_a_way_that_fails_later_is_left_out_too() -> None:
    machine = Machine(even(1e-3))

    def filling(way: Way, photos: int) -> Spent:
        if way == LAST and (way, photos) in machine.steps:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return machine(way, photos)

    found = measure(filling, WAYS, LONG)
    assert found is not None and found.short
    assert [timing.way for timing in found.table] == [PLAIN, FULL]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(way: Way, photos: int) -> Spent:
        raise RuntimeError("my mistake")

    with pytest.raises(RuntimeError, match="my mistake"):
        measure(broken, WAYS, GPU)


# --- compiling, on made-up machines ---------------------------------------------------------------


def test_compiling_must_save_more_than_it_takes() -> None:
    compiled = Compiled(gain=2.0, seconds=100.0)
    assert not compiled.pays(199.0)
    assert compiled.pays(201.0)
    assert not Compiled(gain=1.02, seconds=0.1).pays(1e6)  # noise
    assert not Compiled(gain=0.5, seconds=0.1).pays(1e6)


def test_on_a_cpu_compiling_pays_in_long_fits_by_what_was_published() -> None:
    found, hour = Measured(table(plain=1.0)), 3600
    assert not compiling_pays(found, PLAIN, replace(LONG, photos_to_go=1 * hour))
    assert compiling_pays(found, PLAIN, replace(LONG, photos_to_go=2 * hour))
    assert not compiling_pays(Measured(), PLAIN, LONG)


def trial(compiled_speed: float, *, photos_to_go: int, warm_up: float = 100.0) -> Measured:
    """Of the best of two ways on a GPU."""
    way = replace(LAST, compile=True)
    machine = Machine({PLAIN: 0.01, LAST: 0.008, way: compiled_speed})

    def step(asked: Way, photos: int) -> Spent:
        spent = machine(asked, photos)
        first = asked == way and machine.steps.count((way, photos)) == 1
        return replace(spent, compute=spent.compute + warm_up) if first else spent

    found = Measured(table(plain=0.01, last=0.008))
    return with_compiled(step, PLAIN, found, replace(GPU, photos_to_go=photos_to_go))


def test_a_trial_of_compiling_tells_gain_and_cost() -> None:
    found = trial(0.004, photos_to_go=10**6)
    assert found.table[-1].way == replace(LAST, compile=True)
    assert found.table[-1].seconds_per_photo == pytest.approx(0.004)
    assert found.compile_seconds == pytest.approx(100.0, abs=1)
    assert compiling_pays(found, PLAIN, replace(GPU, photos_to_go=10**6))
    assert not compiling_pays(found, PLAIN, replace(GPU, photos_to_go=10**4))  # saves 40 s


def test_compiling_that_is_no_faster_stays_off() -> None:
    assert not compiling_pays(trial(0.0078, photos_to_go=10**8), PLAIN, GPU)
    assert not compiling_pays(trial(0.02, photos_to_go=10**8), PLAIN, GPU)


def test_short_fits_do_not_try_compiling_and_no_fit_tries_it_twice() -> None:
    assert trial(0.004, photos_to_go=1000).compile_seconds is None
    tried = trial(0.004, photos_to_go=10**6)
    machine = Machine({})
    assert with_compiled(machine, PLAIN, tried, GPU) is tried
    assert with_compiled(machine, PLAIN, Measured(), GPU) == Measured()
    assert machine.steps == []


def test_without_a_compiler_training_goes_on() -> None:
    def broken(way: Way, photos: int) -> Spent:
        raise ImportError("no triton")

    found = with_compiled(broken, PLAIN, Measured(table(plain=1.0)), GPU)
    assert found.table == table(plain=1.0) and found.compile_seconds is not None
    assert not compiling_pays(found, PLAIN, GPU)


def test_a_compiled_step_that_does_not_fit_is_not_chosen() -> None:
    way = replace(PLAIN, compile=True)
    machine = Machine({PLAIN: 0.01, way: 0.001}, memory={way: 0})
    found = with_compiled(machine, PLAIN, Measured(table(plain=0.01)), GPU)
    assert found.table == table(plain=0.01)
    assert not compiling_pays(found, PLAIN, GPU)


@pytest.mark.parametrize(
    ("backbone", "device", "may"),
    [
        ("test_resnet", CPU, False),
        ("resnest14d", CPU, True),
        ("test_resnet", CUDA, True),
        ("test_resnet", MPS, False),
    ],
)
def test_compiling_is_thought_of_where_it_helps(
    backbone: str, device: torch.device, may: bool
) -> None:
    assert probe.may_gain(make(backbone), device) == may


# --- real steps -----------------------------------------------------------------------------------


@pytest.fixture
def steps() -> Steps:
    return Steps(make(), size=32, classes=3, device=CPU)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.layout}-{way.precision}")
def test_a_real_step_takes_time_in_the_layout_and_precision_asked_for(
    way: Way, steps: Steps
) -> None:
    seen: list[tuple[Tensor, torch.dtype]] = []
    network, _ = steps._trainee(way.layout)
    first = network.get_submodule("backbone.conv1.0")
    first.register_forward_hook(lambda _, inputs, made: seen.append((inputs[0], made.dtype)))
    spent = steps(way, 5)
    assert spent.compute > 0 and spent.update > 0
    ((images, dtype),) = seen
    assert images.shape == (5, 3, 32, 32)
    assert dtype == getattr(torch, way.precision)
    strides = (3072, 1, 96, 3) if way.layout == "channels_last" else (3072, 1024, 32, 1)
    assert images.stride() == strides
    kernel = network.get_submodule("backbone.layer1.0.conv2").weight
    assert isinstance(kernel, Tensor)
    assert kernel.is_contiguous(memory_format=probe.memory_format(way.layout))
    assert network.training


def test_weights_stay_where_they_are_over_many_steps(steps: Steps) -> None:
    before = weights_of(steps.network)
    for _ in range(3):
        steps(PLAIN, 4)
    network, _ = steps._trainee("contiguous")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_parameters())


def test_what_is_frozen_is_not_trained_in_the_trial_either() -> None:
    network = make()
    freeze(network, 2)
    steps = Steps(network, size=32, classes=3, device=CPU)
    steps(FULL, 4)
    copied, _ = steps._trainee("contiguous")
    frozen = {name for name, tensor in network.named_parameters() if not tensor.requires_grad}
    assert frozen
    steps(FULL, 4)
    trained = {name for name, tensor in copied.named_parameters() if tensor.grad is not None}
    assert trained == {name for name, _ in network.named_parameters()} - frozen


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.layout}-{way.precision}")
def test_weights_gradients_and_moments_share_a_layout(way: Way, steps: Steps) -> None:
    """The fused optimiser of a CPU goes through memory in order, and is wrong if they do not."""
    steps(way, 4)
    network, optimizer = steps._trainee(way.layout)
    for name, tensor in network.named_parameters():
        assert tensor.grad is not None
        assert tensor.grad.stride() == tensor.stride(), name
        assert optimizer.state[tensor]["exp_avg"].stride() == tensor.stride(), name


def test_a_compiled_way_runs_what_torch_compiles(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    for _ in range(2):
        steps(replace(LAST, compile=True), 4)
    assert compiled == [steps._trainee("channels_last")[0]]


# --- choosing, with real steps --------------------------------------------------------------------


def test_the_network_and_the_random_state_are_left_as_they_were() -> None:
    network = make()
    network.backbone.train()
    network.head.eval()
    for tensor in network.parameters():
        tensor.grad = torch.ones_like(tensor)
    before = weights_of(network)
    pointers = [tensor.data_ptr() for tensor in network.state_dict().values()]
    modes = [module.training for module in network.modules()]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    found = choose(network, **SETTINGS)
    assert found.table
    assert all(torch.equal(weights_of(network)[name], tensor) for name, tensor in before.items())
    assert [tensor.data_ptr() for tensor in network.state_dict().values()] == pointers
    assert [module.training for module in network.modules()] == modes
    assert all(
        tensor.grad is not None and tensor.grad.eq(1).all() for tensor in network.parameters()
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_what_is_chosen_is_the_fastest_of_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware(monkeypatch, bfloat16=True)
    found = choose(make(), **SETTINGS)
    assert {PLAIN, FULL} < {timing.way for timing in found.table}
    best = fastest(found.table, PLAIN)
    assert best is not None
    assert (found.layout, found.precision) == (best.way.layout, best.way.precision)
    assert found.seconds_per_photo == best.seconds_per_photo
    assert (found.compile, found.parts) == (False, 1)


class Refused:
    """Steps that nobody may take."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, way: Way, photos: int) -> Spent:
        raise AssertionError("a step was taken")


def test_a_little_fit_is_not_probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "Steps", Refused)
    hardware(monkeypatch, bfloat16=True)
    found = choose(make(), **SETTINGS | {"steps_to_go": 20, "cache": tmp_path})
    assert found == Choice("contiguous", "bfloat16", False, None, (), 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compile", [True, False, "auto"])
def test_what_is_given_is_not_measured(
    compile: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "Steps", Refused)
    given: dict[str, Any] = {"layout": "channels_last", "precision": "float32", "compile": compile}
    found = choose(make(), **SETTINGS | given)
    assert found == Choice("channels_last", "float32", compile is True, None, (), 1)


def test_a_resnest_in_a_long_fit_is_compiled_where_there_is_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = SETTINGS | {"layout": "contiguous", "precision": "float32", "steps_to_go": 10**8}
    network = make("resnest14d")
    monkeypatch.setattr(probe, "Steps", lambda *_, **__: Machine({FULL: 0.01}))
    for there_is in (True, False):
        monkeypatch.setattr(probe, "_compiles", lambda device, there_is=there_is: there_is)
        assert choose(network, **settings).compile is there_is
        assert choose(network, **settings | {"steps_to_go": 1000}).compile is False
        assert choose(network, **settings | {"compile": False}).compile is False
        assert choose(make(), **settings).compile is False


def test_whether_there_is_a_compiler_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    assert not probe._compiles(CPU)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert probe._compiles(CPU)


# --- the cache ------------------------------------------------------------------------------------


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Choice, int]:
    """What is chosen on a made-up machine, and how many steps it was asked for."""
    machine = Machine({PLAIN: 0.01, FULL: 0.02, LAST: 0.005, BOTH: 0.02})
    monkeypatch.setattr(probe, "Steps", lambda *_, **__: machine)
    hardware(monkeypatch, bfloat16=True)
    network = changes.pop("network", None) or make()
    return choose(network, **SETTINGS | {"cache": folder} | changes), len(machine.steps)


def test_a_second_fit_finds_the_timings_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "not" / "there yet"
    first, steps = cached(folder, monkeypatch)
    assert steps > 0 and first.layout == "channels_last"
    assert cached(folder, monkeypatch) == (first, 0)
    assert cached(folder, monkeypatch, steps_to_go=1) == (first, 0)  # even a little one


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 64},
        {"batch_size": 16},
        {
            "classes": 4,
            "network": build(
                "test_resnet", weights="none", head="linear", classes=4, dropout=0.5, seed=0
            ),
        },
        {
            "network": build(
                "test_resnet", weights="none", head="se", classes=3, dropout=0.5, seed=0
            )
        },
        {"network": make("resnet18")},
        {"layout": "contiguous"},
        {"precision": "float32"},
    ],
    ids=["size", "batch", "classes", "head", "backbone", "layout", "precision"],
)
def test_timings_of_something_else_are_not_taken(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, monkeypatch)
    assert cached(tmp_path, monkeypatch, **changes)[1] > 0


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (probe, "device_name", lambda device: "another"),
        (torch, "get_num_threads", lambda: 99),
        (torch, "__version__", "99.0"),
    ],
)
def test_timings_of_another_machine_are_not_taken(
    place: object, name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, monkeypatch)
    monkeypatch.setattr(place, name, value)
    assert cached(tmp_path, monkeypatch)[1] > 0


def test_timings_of_a_frozen_backbone_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = make()
    freeze(frozen, 3)
    cached(tmp_path, monkeypatch)
    assert cached(tmp_path, monkeypatch, network=frozen)[1] > 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"key": {}, "measured": {"table": [], "parts": 1, "compile_seconds": null}}',
        b"[" * 100_000,
    ],
)
def test_a_broken_file_is_measured_anew_and_replaced(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = cached(tmp_path, monkeypatch)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    again, steps = cached(tmp_path, monkeypatch)
    assert again == first and steps > 0
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "value"), [("parts", 0), ("parts", "many"), ("table", [{"way": "fast"}])]
)
def test_a_file_with_values_that_cannot_be_is_broken(
    name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, monkeypatch)
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    record["measured"][name] = value
    file.write_text(json.dumps(record))
    assert cached(tmp_path, monkeypatch)[1] > 0


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    found, steps = cached(tmp_path / "file", monkeypatch)
    assert found.layout == "channels_last" and steps > 0


def test_a_lack_of_memory_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware(monkeypatch, bfloat16=True)
    for memory in (1, {LAST: 1}):
        machine = Machine(even(), memory=memory)
        monkeypatch.setattr(probe, "Steps", lambda *_, machine=machine, **__: machine)
        choose(make(), **SETTINGS | {"cache": tmp_path})
    assert list(tmp_path.iterdir()) == []
