"""Co-Tuning: the classifier that came with the weights goes on being asked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import Answer
from fits import Killed, killer, results, small_fit
from safetensors.torch import save_file

import fieldguide as fg
from fieldguide import recipe as recipes
from fieldguide.errors import UsageError
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Watcher
from fieldguide.network.network import build_backbone, source_head
from fieldguide.train.job import Source
from fieldguide.train.step import source_loss

PROBED = {"head_start": "probe", "replicas": 1, "merge": "none", "batch_norm": "average"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the test network with a classifier of seven classes."""
    torch.manual_seed(1)
    body = timm.create_model("test_resnet", pretrained=False, num_classes=7)
    path = tmp_path_factory.mktemp("weights") / "source.safetensors"
    save_file(body.state_dict(), path)
    return path


def co_tuned(discs: Path, out: Path, weights: Path, **settings: object) -> fg.Run:
    asked = {**PROBED, "weights": str(weights), "co_tuning": 0.5, **settings}
    return small_fit(discs, out, **asked)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(discs: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    """A run with Co-Tuning; read only."""
    return co_tuned(discs, tmp_path_factory.mktemp("co") / "run", weights)


def test_the_loss_is_the_cross_entropy_with_what_the_source_says_of_our_classes() -> None:
    random = np.random.default_rng(0)
    weight, bias, features = random.normal(size=(4, 3)), random.normal(size=4), [[1.0, -2.0, 0.5]]
    relation = random.dirichlet(np.ones(4), size=2)
    source = Source(*(torch.tensor(each, dtype=torch.float32) for each in (weight, bias, relation)))
    shares = torch.tensor([[0.25, 0.75]])
    logits = np.array(features) @ weight.T + bias
    logs = logits - np.log(np.exp(logits).sum())
    expected = -(logs * (0.25 * relation[0] + 0.75 * relation[1])).sum()
    found = source_loss(source, torch.tensor(features), shares)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_fold_knows_the_source_by_its_own_training_photos(run: fg.Run, weights: Path) -> None:
    assert run.recipe.co_tuning == 0.5
    relations = []
    for fold in range(2):
        found = run.source(fold)
        assert found is not None
        weight, bias, relation = found
        assert weight.shape[0] == len(bias) == 7 and relation.shape == (3, 7)
        np.testing.assert_allclose(relation.sum(axis=1), 1, atol=1e-5)
        relations.append(relation)
        job = fold_jobs(run, run.catalog.root)(fold)
        assert job.source is not None
        np.testing.assert_array_equal(job.source.relation.numpy(), relation)
    assert not np.allclose(*relations)
    body = build_backbone("test_resnet", weights=str(weights), seed=0)
    head = source_head("test_resnet", body, str(weights))
    assert head is not None
    np.testing.assert_array_equal(head[0].numpy(), weight)


def test_it_changes_training_and_resumes_to_the_byte(
    run: fg.Run, discs: Path, weights: Path, tmp_path: Path
) -> None:
    plain = co_tuned(discs, tmp_path / "plain", weights, co_tuning=0.0)
    assert plain.source(0) is None and "relation" not in plain.probe(0)
    assert results(plain) != results(run)
    stop = Watcher(on_step=killer(4))
    with pytest.raises(Killed):
        co_tuned(discs, tmp_path / "killed", weights, watcher=stop)
    assert results(co_tuned(discs, tmp_path / "killed", weights)) == results(run)


@pytest.mark.parametrize("mix", ["none", "mixup"])
def test_it_works_with_mixing_and_parts(
    discs: Path, weights: Path, tmp_path: Path, mix: str
) -> None:
    whole = co_tuned(discs, tmp_path / "a", weights, mix=mix, accumulate=2)
    assert whole.complete and np.isfinite(whole.scores.log_loss)


def test_without_the_classifier_it_is_refused_or_left_out(
    discs: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="the classifier that came with the weights"):
        small_fit(discs, tmp_path / "a", **PROBED, co_tuning=0.5)  # type: ignore[arg-type]
    auto = small_fit(discs, tmp_path / "b", **PROBED, co_tuning="auto")  # type: ignore[arg-type]
    assert auto.recipe.co_tuning == 0
    again = small_fit(discs, tmp_path / "b", **PROBED, co_tuning="auto")  # type: ignore[arg-type]
    assert results(again) == results(auto)
    told: list[str] = []
    watcher = Watcher(notice=told.append)
    found = co_tuned(discs, tmp_path / "c", weights, co_tuning="auto", watcher=watcher)
    assert found.recipe.co_tuning == 0.5
    assert any("goes on telling the 7 classes" in each for each in told)
    with pytest.raises(UsageError, match="`co_tuning` needs"):
        recipes.build({"co_tuning": 0.5, "head": "se"})
    with pytest.raises(UsageError, match="`co_tuning` needs"):
        recipes.build({"co_tuning": 0.5, "head_start": "random"})


def test_a_run_that_goes_on_from_it_leaves_it_out(
    run: fg.Run, discs: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    said = command("fit", discs, "--out", tmp_path / "new", "--from", run.folder)
    assert said.code == 0, said.err
    assert "`co_tuning` is left out" in said.err
    new = fg.Run(tmp_path / "new")
    assert new.complete and new.recipe.co_tuning == 0
    assert command("fit", discs, "--out", new.folder, "--from", run.folder).code == 0
