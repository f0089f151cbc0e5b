from pathlib import Path

import pytest
from fits import small_recipe

import fieldguide as fg
from fieldguide.compare import forecast
from fieldguide.compare.compare import compare
from fieldguide.compare.forecast import Cost, seconds_of
from fieldguide.compare.results import rebuilt
from fieldguide.compare.trials import trials
from fieldguide.errors import UsageError
from fieldguide.fitting.progress import Watcher

BASE = small_recipe(mix="none", replicas=1, merge="none", batch_norm="average")
SHORT = BASE.replace(epochs=1, warmup=0.0)


def test_the_forecast_counts_every_step_and_every_look() -> None:
    cost = Cost(step=2.0, photo=0.1)
    one = small_recipe(replicas=3, epochs=4, merge_every=3, batch_size=10, batch_norm="average")
    steps = 4 * 3 * (10 * 2.0)  # of 95 photos
    looks = (4 * 3 + 2) * 20 * 0.1
    assert seconds_of(one, [(95, 20)], cost) == pytest.approx(steps + looks)
    three = [(95, 20)] * 3
    assert seconds_of(one, three, cost) == pytest.approx(3 * (steps + looks))
    assert seconds_of(one, three, cost, at_once=2) == pytest.approx(2 * (steps + looks))
    again = one.replace(batch_norm="recalibrate")
    assert seconds_of(again, [(95, 20)], cost) == pytest.approx(steps + looks + 2 * 95 * 0.1)
    alone = one.replace(replicas=1, merge="none")
    assert seconds_of(alone, [(95, 20)], cost) == pytest.approx(4 * (20 + 2))


def test_what_does_not_fit_the_budget_is_left_out_in_order(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folds of 3 steps an epoch: the base takes 6 h, the others 12 h and 6 h."""
    monkeypatch.setattr(forecast, "measured", lambda *_: Cost(step=3600.0, photo=0.0))
    catalog, out = fg.scan(discs), tmp_path / "out"
    found = trials(SHORT, {"epochs": [2], "head": ["se"]}, one_at_a_time=True)
    with pytest.raises(UsageError, match=r"the budget of 2 h is too small: the base .* 6 h 0 min"):
        compare(catalog, found, out, budget_hours=2.0)
    messages: list[str] = []
    watcher = Watcher(notice=messages.append)
    done = compare(catalog, found, out, budget_hours=13.0, watcher=watcher)
    assert [row.status for row in done.rows] == ["complete", "not begun", "complete"]
    note = "epochs=2 is left out: it takes about 12 h 0 min, and 7 h 0 min of the budget are left"
    assert note in messages
    assert done.rows[1].note == note
    assert rebuilt(out) == done
    assert "forecast: 3 trials in all: 24 h 0 min" in messages
    assert not (out / "epochs-2").exists()
    later = compare(catalog, found, out, budget_hours=13.0)
    assert [row.status for row in later.rows] == ["complete"] * 3


def test_a_trial_for_which_time_ran_out_is_left_out(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "measured", lambda *_: Cost(step=1e-3, photo=0.0))
    messages: list[str] = []
    watcher = Watcher(notice=messages.append)
    found, hours = trials(SHORT, {"head": ["se"]}), 0.02 / 3600  # the forecast is of 0.012 s
    done = compare(fg.scan(discs), found, tmp_path / "out", budget_hours=hours, watcher=watcher)
    assert [row.status for row in done.rows] == ["complete", "not begun"]
    assert "head=se is left out" in messages[-1]
