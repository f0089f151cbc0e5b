import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import small_fit, small_recipe
from hypothesis import given
from hypothesis import strategies as st

import fieldguide as fg
from fieldguide.errors import ResourceError, TrainingError, UsageError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Plan, Watcher
from fieldguide.machine.controls import Controls
from fieldguide.network.network import freeze
from fieldguide.photos.batches import training_plan
from fieldguide.study import find_rate as module
from fieldguide.study.find_rate import (
    EXPLODED,
    RANGES,
    Found,
    Sweep,
    advice,
    as_json,
    chart,
    find_rate,
    find_rates,
    has_exploded,
    read_sweep,
    smooth,
    write,
)
from fieldguide.train import step as steps
from fieldguide.train.job import FoldJob
from fieldguide.train.replica import Replica
from fieldguide.train.state import Step

# Small pictures that do not change can be learned within a sweep.
EASY: dict[str, Any] = {
    "epochs": 1,
    "warmup": 0.0,
    "batch_size": 6,
    "mix": "none",
    "color_jitter": 0.0,
    "crop_scale": (0.9, 1.0),
}
LOSSES = st.lists(st.floats(0.01, 100), min_size=2, max_size=60)
SHARES = st.floats(0, 0.99)


@pytest.fixture(scope="module")
def run(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    return small_fit(discs, tmp_path_factory.mktemp("rates") / "run", fold=0, **EASY)


@pytest.fixture
def job(run: fg.Run, discs: Path) -> FoldJob:
    return fold_jobs(run, discs)(0)


@pytest.fixture(scope="module")
def found(run: fg.Run, discs: Path) -> Found:
    return find_rates(fold_jobs(run, discs)(0), steps=40)


def sweep_of(losses: list[float], part: Any = "head") -> Sweep:
    return read_sweep(part, np.geomspace(1e-5, 1.0, len(losses)).tolist(), losses, "range")


@given(LOSSES, SHARES)
def test_the_smoothed_loss_is_the_weighted_mean_of_all_so_far(
    losses: list[float], share: float
) -> None:
    for step, mean in enumerate(smooth(losses, share)):
        weights = share ** np.arange(step, -1, -1.0)
        assert mean == pytest.approx(np.average(losses[: step + 1], weights=weights))


@given(st.integers(0, 1000), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_the_unit_of_the_loss_does_not_matter(seed: int, unit: float) -> None:
    """Powers of two: a product with them is exact, so that no tie is broken by rounding."""
    losses = np.random.default_rng(seed).uniform(1, 2, 40) * np.linspace(3, 1, 40)
    one, other = sweep_of(losses.tolist()), sweep_of((unit * losses).tolist())
    assert (one.lowest, one.steepest) == (other.lowest, other.steepest)
    assert has_exploded(one.losses) == has_exploded(other.losses)


@pytest.mark.parametrize("steps", [50, 100, 200])
@pytest.mark.parametrize("centre", [1e-3, 1e-2])
def test_the_steepest_fall_of_a_curve_with_one_is_found(steps: int, centre: float) -> None:
    rates = np.geomspace(1e-5, 1.0, steps)
    losses = 3 - np.tanh(3 * np.log10(rates / centre))
    lag = 9 * math.log10(rates[1] / rates[0])  # steps of the running mean: 0.9 / (1 - 0.9)
    steepest = sweep_of(losses.tolist()).steepest
    assert steepest is not None
    assert 0 <= math.log10(steepest / centre) <= lag + math.log10(rates[1] / rates[0])


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_least_smoothed_loss() -> None:
    rates = np.geomspace(1e-5, 1.0, 100)
    sweep = sweep_of((1 + np.log10(rates / 1e-2) ** 2).tolist())
    assert sweep.lowest == rates[np.argmin(sweep.smoothed)]
    assert sweep.suggestion == sweep.lowest / 10
    assert 1e-2 <= sweep.lowest < 4e-2  # the running mean comes late, by half a decade


@given(st.floats(0.1, 10), st.floats(0.01, 1))
def test_a_loss_that_never_falls_gives_no_suggestion(first: float, growth: float) -> None:
    sweep = sweep_of([first * (1 + growth * step) for step in range(30)])
    assert sweep.suggestion is sweep.lowest is sweep.steepest is None
    assert "nothing to suggest" in advice(Found(sweep, None, 1e-3, 1e-4))[0]


def test_mere_noise_rarely_gives_one() -> None:
    draws = np.random.default_rng(0)
    found = [sweep_of(draws.normal(3, 0.3, 100).tolist()).suggestion for _ in range(200)]
    assert sum(rate is not None for rate in found) <= 0.02 * 200


def test_exploded_is_four_times_the_least_smoothed_loss() -> None:
    steady = [1.0] * 50
    assert not has_exploded([*steady, 2.0])
    assert not has_exploded([*steady, 10 * EXPLODED - 10])  # (1 - 0.9) · 30 + 0.9 = 3.9
    assert has_exploded([*steady, 10 * EXPLODED - 8])
    assert not has_exploded([5.0])


def test_both_sweeps_learn_something_and_suggest_a_rate_within_their_ranges(found: Found) -> None:
    assert found.backbone is not None
    for sweep in (found.head, found.backbone):
        low, high = RANGES[sweep.part]
        assert sweep.rates[0] == pytest.approx(low) and sweep.rates[-1] <= high * 1.001
        assert len(sweep.rates) == len(sweep.losses) == len(sweep.smoothed) <= 40
        assert sweep.suggestion is not None and low / 10 < sweep.suggestion <= high / 10 * 1.001
        assert min(sweep.smoothed) < 0.8 * sweep.losses[0]


def test_the_network_is_left_as_it_was(job: FoldJob) -> None:
    def state() -> tuple[list[Any], ...]:
        network = job.network
        return (
            [tensor.clone() for tensor in network.state_dict().values()],
            [module.training for module in network.modules()],
            [tensor.requires_grad for tensor in network.parameters()],
        )

    freeze(job.network, 1)
    job.network.head.eval()
    weights, modes, trained = state()
    generator = torch.get_rng_state()
    find_rates(job, steps=25)
    weights_after, *rest = state()
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_after, strict=True))
    assert rest == [modes, trained]
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_heads_sweep_leaves_the_backbone_alone_and_the_other_moves_both(job: FoldJob) -> None:
    moved: list[tuple[bool, bool]] = []

    def look() -> None:
        weights = dict(job.network.named_parameters())
        changed = {name for name in weights if not torch.equal(weights[name], job.start[name])}
        moved.append(
            (
                any(name.startswith("backbone.") for name in changed),
                any(name.startswith("head.") for name in changed),
            )
        )

    found = find_rates(job, steps=30, controls=Controls(on_step=look))
    head = len(found.head.losses)
    assert set(moved[:head]) == {(False, True)}
    assert set(moved[head:]) == {(True, True)}


def test_the_head_goes_on_at_its_suggestion_while_the_backbone_is_swept(
    job: FoldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[bool, set[float]]] = []
    original = module.train_step
    heads = {id(tensor) for tensor in job.network.head.parameters()}

    def spy(job: FoldJob, replica: Replica, *args: Any) -> Any:
        rates: dict[bool, set[float]] = {True: set(), False: set()}
        for group in replica.optimizer.param_groups:
            for tensor in group["params"]:
                rates[id(tensor) in heads].add(group["lr"])
        seen.append(rates)
        return original(job, replica, *args)

    monkeypatch.setattr(module, "train_step", spy)
    found = find_rates(job, steps=30)
    assert found.backbone is not None
    head, backbone = seen[: len(found.head.rates)], seen[len(found.head.rates) :]
    assert [rates[True] for rates in head] == [{rate} for rate in found.head.rates]
    assert all(rates[False] == set() for rates in head)
    assert all(rates[True] == {found.head.suggestion} for rates in backbone)
    assert [rates[False] for rates in backbone] == [{rate} for rate in found.backbone.rates]


def test_batches_are_those_of_a_fits_first_replica(job: FoldJob) -> None:
    seed, size = job.recipe.seed, job.recipe.batch_size
    epochs = [training_plan(job.train, size, seed=seed, replica=0, epoch=epoch) for epoch in (0, 1)]
    both = [*epochs[0], *epochs[1]]
    assert module._plan(job, len(both) - 1) == both[:-1]


def test_a_backbone_that_is_frozen_is_not_swept(job: FoldJob) -> None:
    freeze(job.network, 100)
    found = find_rates(job, steps=20)
    assert found.backbone is None
    assert len(advice(found)) == len(found.pairs) == 1
    assert as_json(found)["backbone"] is None


def fake_steps(losses: Callable[[int], float | None]) -> Callable[..., Step | None]:
    calls = iter(range(10_000))

    def step(*args: Any) -> Step | None:
        loss = losses(next(calls))
        return None if loss is None else Step(loss, 0.5)

    return step


def test_an_exploding_loss_ends_the_sweep(job: FoldJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train_step", fake_steps(lambda n: 1e9 if n % 30 == 29 else 2.0))
    found = find_rates(job, steps=60)
    assert found.backbone is not None
    assert found.head.ended == found.backbone.ended == "exploded"
    assert len(found.head.losses) == len(found.backbone.losses) == 30


def test_steps_that_are_not_finite_are_left_out_and_ten_in_a_row_end_the_sweep(
    job: FoldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {3, 4, *range(20, 30)}
    monkeypatch.setattr(module, "train_step", fake_steps(lambda n: None if n in bad else 1.0))
    head = find_rates(job, steps=60).head
    assert head.ended == "not finite"
    rates = np.geomspace(*RANGES["head"], 60).tolist()
    assert list(head.rates) == [rates[n] for n in range(20) if n not in bad]


def test_no_finite_loss_at_all_is_told(job: FoldJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train_step", fake_steps(lambda n: None))
    with pytest.raises(TrainingError, match="not finite at the least head rate, 1e-05"):
        find_rates(job, steps=30)


def test_where_memory_runs_out_batches_are_computed_in_parts(
    job: FoldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tried = steps._backward, []

    def backward(job: FoldJob, replica: Replica, batch: Any, whole: int) -> Any:
        tried.append(replica.parts)
        if replica.parts < least:
            raise torch.OutOfMemoryError("out of memory")
        whole_batch = replace(replica, parts=1)  # parts of one have no variance
        return original(job, whole_batch, batch, whole)

    monkeypatch.setattr(steps, "_backward", backward)
    least = 4
    find_rates(job, steps=20)
    assert tried[:4] == [1, 2, 4, 4]
    least = 1000
    with pytest.raises(ResourceError, match="single photo"):
        find_rates(job, steps=20)


def test_other_errors_are_no_matter_of_memory(
    job: FoldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("mat1 and mat2 do not fit")

    monkeypatch.setattr(module, "train_step", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        find_rates(job, steps=20)


class Enough(Exception):
    pass


def test_a_stop_leaves_network_and_disk_as_they_were(
    discs: Path, job: FoldJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise Enough

    before = {name: tensor.clone() for name, tensor in job.network.state_dict().items()}
    trained = [tensor.requires_grad for tensor in job.network.parameters()]
    with pytest.raises(Enough):
        find_rates(job, steps=20, controls=Controls(check_stop=stop))
    after = job.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [tensor.requires_grad for tensor in job.network.parameters()] == trained
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Enough):
        find_rate(fg.scan(discs), small_recipe(), watcher=Watcher(check_stop=stop))
    assert list(tmp_path.iterdir()) == []


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_from_photos_to_rates_without_a_trace(
    discs: Path, found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same photos, folds and start as the fit's, whose job `found` is from."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, plans, steps = listing(discs), [], []
    watcher = Watcher(on_plan=plans.append, on_step=lambda: steps.append(1))
    same = find_rate(fg.scan(discs), small_recipe(**EASY), steps=40, watcher=watcher)
    assert same == found
    assert listing(discs) == before
    assert list(tmp_path.iterdir()) == []
    plan: Plan = plans[0]
    assert plan.steps == 80
    assert len(steps) <= 80


def test_too_few_steps_are_refused_before_photos_are_read() -> None:
    nowhere = fg.Catalog(Path("nowhere"), ())
    with pytest.raises(UsageError, match="`steps` = 5: a range test needs at least 20"):
        find_rate(nowhere, small_recipe(), steps=5)


def test_the_advice_names_settings_suggestion_and_the_recipes_rate(found: Found) -> None:
    head, backbone = advice(found)
    assert found.backbone is not None and found.head.suggestion and found.backbone.suggestion
    assert head.startswith(f"head_rate: {found.head.suggestion:.1e} is suggested")
    assert backbone.startswith(f"backbone_rate: {found.backbone.suggestion:.1e} is suggested")
    assert head.endswith(f"the recipe has {small_recipe().head_rate:.1e}")


def test_a_loss_that_still_falls_at_the_end_of_the_range_is_told() -> None:
    sweep = sweep_of([30.0 - step for step in range(30)])
    assert "the end of the range" in advice(Found(sweep, None, 1e-3, 1e-4))[0]


def test_files_hold_the_sweeps_and_need_no_network(found: Found, tmp_path: Path) -> None:
    write(found, tmp_path / "rates")
    assert {path.name for path in (tmp_path / "rates").iterdir()} == {
        "rates.json",
        "rates.png",
        "rates.html",
    }
    record = json.loads((tmp_path / "rates" / "rates.json").read_text())
    assert record == json.loads(json.dumps(as_json(found)))
    assert record["head"]["losses"] == list(found.head.losses)
    assert record["head"]["suggestion"] == found.head.suggestion
    assert record["backbone"]["recipe"] == found.backbone_rate
    assert (tmp_path / "rates" / "rates.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "rates" / "rates.html").read_text("utf-8")
    assert 'src="http' not in page and 'href="http' not in page


def texts(found: Found) -> str:
    return json.dumps(chart(found).to_dict())


def test_the_chart_marks_both_rates_in_words(found: Found) -> None:
    drawn = texts(found)
    for sweep, rate in found.pairs:
        assert f"suggested {sweep.suggestion:.1e}" in drawn
        assert f"recipe {rate:.1e}" in drawn
        assert f"{sweep.part} rate" in drawn


def test_a_rate_that_was_not_tried_is_not_marked(found: Found) -> None:
    drawn = texts(replace(found, head_rate=1e-9))
    assert "recipe 1.0e-09" not in drawn
    assert f"recipe {found.backbone_rate:.1e}" in drawn
