import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import Killed, killer, results, small_fit, small_recipe
from torch import Tensor

import fieldguide as fg
from fieldguide.errors import TrainingError, UsageError
from fieldguide.fitting import features as of_photos
from fieldguide.fitting import probes, start
from fieldguide.fitting.fit import fit
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Watcher
from fieldguide.machine.device import training_threads
from fieldguide.network.network import load_weights
from fieldguide.photos.augment import Normaliser
from fieldguide.photos.catalog import Photo
from fieldguide.report import verdict
from fieldguide.report.build import build
from fieldguide.study import landscape
from fieldguide.train.evaluate import evaluate
from fieldguide.train.job import FoldJob
from fieldguide.train.probe import features_of, fit_head

INSTANT = {"head_start": "probe", "epochs": 0, "replicas": 1, "batch_norm": "average"}


@pytest.fixture(scope="module")
def instant(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """A run of fitted heads alone; read only."""
    return small_fit(discs, tmp_path_factory.mktemp("instant") / "run", **INSTANT)


def features(job: FoldJob, rows: "np.ndarray") -> Tensor:
    def normaliser() -> Normaliser:
        return Normaliser(job.recipe.mean, job.recipe.std, job.device)

    load_weights(job.network, job.start)
    return features_of(
        job.network,
        job.loader,
        rows,
        normaliser=normaliser,
        device=job.device,
        precision=job.precision,
    )


def refuse(*_: object, **__: object) -> Tensor:
    raise AssertionError("features are computed")


def test_what_else_is_in_a_batch_changes_no_bit(instant: fg.Run, discs: Path) -> None:
    job = fold_jobs(instant, discs)(0)
    rows = np.arange(24)
    found = features(job, rows)
    assert torch.equal(features(job, rows[::-1].copy()), found.flip(0))
    assert torch.equal(features(job, rows[20:21]), found[20:21])


def test_features_are_what_the_linear_layer_sees(instant: fg.Run, discs: Path) -> None:
    job = fold_jobs(instant, discs)(0)
    seen: list[Tensor] = []
    found = features(job, job.test)
    linear = job.absorbed.network.get_submodule("head.linear")
    hook = linear.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    evaluate(job, job.test)
    hook.remove()
    torch.testing.assert_close(found, torch.cat(seen), atol=1e-5, rtol=1e-5)


def test_a_fold_that_is_not_trained_ends_with_its_start(instant: fg.Run, discs: Path) -> None:
    begun = instant.weights()
    for fold in instant.folds:
        weights, probe = instant.weights(fold.index), instant.probe(fold.index)
        job = fold_jobs(instant, discs)(fold.index)
        load_weights(job.network, {name: torch.from_numpy(w) for name, w in weights.items()})
        logits = evaluate(job, fold.test)
        np.testing.assert_allclose(instant.logits(fold.index), logits, atol=1e-4)
        np.testing.assert_array_equal(weights["head.linear.weight"], probe["weight"])
        assert all(
            np.array_equal(weights[name], begun[name]) for name in begun if "head" not in name
        )
        (row,) = instant.table(fold.index, "history.csv")
        assert (row["epoch"], row["model"], row["steps"]) == ("0", "merged", "0")
        assert instant.table(fold.index, "merges.csv") == []


def test_a_head_is_fitted_to_its_folds_own_training_photos(instant: fg.Run, discs: Path) -> None:
    for fold in instant.folds:
        job, probe = fold_jobs(instant, discs)(fold.index), instant.probe(fold.index)
        targets = torch.from_numpy(instant.targets[fold.train])
        with training_threads(1):
            weight, bias = fit_head(features(job, fold.train), targets, 3, float(probe["strength"]))
        np.testing.assert_array_equal(probe["weight"], weight.float().numpy())
        np.testing.assert_array_equal(probe["bias"], bias.float().numpy())


def test_groups_stay_together_where_the_penalty_is_chosen(instant: fg.Run) -> None:
    photos = [
        Photo(f"{n}.jpg", label=str(n % 3), group=f"g{n // 6}", split="train") for n in range(60)
    ]
    catalog = fg.Catalog(Path(), photos)
    train = np.arange(6, 60)
    splits = probes._splits(catalog.table, train, seed=1)
    assert len(splits) == probes.MOST_SPLITS
    for kept, aside in splits:
        assert sorted([*kept, *aside]) == [*range(54)] and len(aside)
        groups = [{photos[train[n]].group for n in part} for part in (kept, aside)]
        assert not groups[0] & groups[1]


def test_a_second_run_reads_the_features(
    instant: fg.Run, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_photos, "features_of", refuse)
    assert results(small_fit(discs, tmp_path / "run", **INSTANT)) == results(instant)
    with pytest.raises(AssertionError, match="features are computed"):
        small_fit(discs, tmp_path / "larger", **INSTANT | {"eval_resize": 40})


def test_without_a_cache_the_bits_are_the_same(
    instant: fg.Run, discs: Path, tmp_path: Path
) -> None:
    assert results(small_fit(discs, tmp_path / "run", **INSTANT, cache="none")) == results(instant)


def test_features_of_a_killed_run_are_not_computed_again(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    monkeypatch.setattr(of_photos, "PIECE", 16)
    told: list[int] = []
    kill = killer(0)
    stop = Watcher(on_features=told.append, on_check=lambda n: kill() if told and n == 24 else None)
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "run", **INSTANT, cache=cache, watcher=stop, seed=7)
    watcher = Watcher(on_features=told.append)
    assert small_fit(discs, tmp_path / "run", **INSTANT, cache=cache, watcher=watcher, seed=7)
    assert told == [24, 8]


def test_training_from_a_probe_resumes_to_the_byte(discs: Path, tmp_path: Path) -> None:
    settings = {"head_start": "probe", "merge": "model_stock", "checkpoint_minutes": 1e-9}
    whole = small_fit(discs, tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        small_fit(discs, tmp_path / "killed", **settings, watcher=Watcher(on_step=killer(9)))
    shutil.rmtree(tmp_path / "killed/folds/1", ignore_errors=True)
    assert results(small_fit(discs, tmp_path / "killed", **settings)) == results(whole)
    moved = whole.weights(0)["head.linear.weight"] - whole.probe(0)["weight"]
    drawn = whole.weights(0)["head.linear.weight"] - whole.weights()["head.linear.weight"]
    assert 0 < np.abs(moved).mean() < np.abs(drawn).mean()
    merged = {row["tensor"] for row in whole.table(0, "merges.csv")}
    assert merged and not [name for name in merged if name.startswith("head")]


def test_a_damaged_head_is_told(instant: fg.Run, tmp_path: Path) -> None:
    shutil.copytree(instant.folder, tmp_path / "run")
    (tmp_path / "run/probe/1.safetensors").write_bytes(b"other")
    with pytest.raises(fg.FieldguideError, match=r"1\.safetensors"):
        fg.Run(tmp_path / "run").probe(1)


def test_another_start_is_another_run(instant: fg.Run, discs: Path) -> None:
    with pytest.raises(UsageError, match="head_start: 'probe' there, 'random' now"):
        small_fit(discs, instant.folder, **INSTANT | {"head_start": "random", "epochs": 1})


def test_the_report_says_that_nothing_was_trained(instant: fg.Run, tmp_path: Path) -> None:
    page = build(instant, tmp_path / "report.html", heat_maps=False).read_text("utf-8")
    assert "there are no curves" in page
    assert "Nothing was merged: nothing was trained." in page
    assert "fieldguide landscape" not in page
    with pytest.raises(UsageError, match="nothing was trained in"):
        landscape.measure(instant, between="folds")
    assert "This part could not be made" not in page


def test_folds_merge_and_predict(instant: fg.Run, discs: Path) -> None:
    photos = sorted(discs.glob("*/*.jpg"))
    members = [instant.weights(fold.index) for fold in instant.folds]
    for name in ("ensemble", "soup", 1):
        assert len(instant.classifier(name).predict(photos[:2])) == 2
    (soup,) = instant.classifier("soup").members
    for name, tensor in soup.items():  # statistics too, that heads were fitted with
        np.testing.assert_allclose(tensor, np.mean([w[name] for w in members], axis=0), atol=1e-6)


def test_a_fit_tells_first_what_is_to_beat_and_the_report_what_it_gained(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    catalog, recipe = fg.scan(discs), small_recipe(replicas=1)
    watcher = Watcher(notice=told.append)
    run = fit(catalog, recipe, tmp_path / "run", instant=True, watcher=watcher)
    logits = np.concatenate([run.probe(fold.index)["logits"] for fold in run.folds])
    targets = np.concatenate([run.targets[fold.test] for fold in run.folds])
    reached = (logits.argmax(axis=1) == targets).mean()
    assert f"to beat: {reached:.1%} by a regression on the untrained network's features" in told
    gain = 100 * (run.scores.accuracy - reached)
    assert f"training gained {gain:+.1f} points".replace("-", "−") in verdict.gained(run)
    plain = fit(catalog, recipe, tmp_path / "plain")
    assert results(plain) == results(run) and not plain.probed
    assert verdict.gained(plain) == ""
    for high, harmed in ((0.1, False), (-0.1, True)):
        monkeypatch.setattr(verdict.paired, "difference", lambda *_, high=high: (-0.2, -0.3, high))
        assert ("So training did harm" in verdict.gained(run)) == harmed


def test_features_that_are_not_finite_are_no_start_and_no_number(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = lambda *_, **__: torch.full((24, 96), torch.nan)  # noqa: E731
    monkeypatch.setattr(of_photos, "features_of", nothing)
    with pytest.raises(TrainingError, match="not finite"):
        small_fit(discs, tmp_path / "run", **INSTANT, cache="none")
    told: list[str] = []
    recipe, watcher = small_recipe(epochs=1, cache="none"), Watcher(notice=told.append)
    assert not fit(fg.scan(discs), recipe, tmp_path / "b", instant=True, watcher=watcher).probed
    assert any("no number to beat: the untrained network's features" in each for each in told)


def test_a_number_to_beat_that_takes_long_is_left_out(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "MOST_TO_BEAT", 24 * 3 * 96 - 1)
    told: list[str] = []
    recipe, watcher = small_recipe(epochs=1, replicas=1), Watcher(notice=told.append)
    assert not fit(fg.scan(discs), recipe, tmp_path / "a", instant=True, watcher=watcher).probed
    assert "there is no number to beat: with so many photos a regression takes long" in told
    assert small_fit(discs, tmp_path / "b", **INSTANT).probed
