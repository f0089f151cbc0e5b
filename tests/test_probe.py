import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fieldguide.train import probe
from fieldguide.train.probe import STRENGTHS, UNJUDGED, Known, choose_strength, fit_head

CLASSES = 4


def drawn(photos: int = 240, channels: int = 12, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Correlated features away from zero, and classes that they tell with some noise."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(photos, channels)) @ rng.normal(size=(channels, channels)) + 5
    scores = mixed[:, :CLASSES] - 5 + noise * rng.normal(size=(photos, CLASSES))
    return torch.from_numpy(mixed).float(), torch.from_numpy(scores.argmax(axis=1))


def probabilities(features: Tensor, head: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = head
    return torch.softmax(features.double() @ weight.T + bias, dim=1)


@pytest.mark.parametrize("strength", [0.3, 10.0, 300.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_head_is_the_optimum_that_scikit_learn_finds(
    strength: float, balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ENOUGH", 1e-4)
    features, targets = drawn()
    scale = features.double().var(dim=0, correction=0).mean().sqrt()
    counts = torch.bincount(targets)
    weights = (len(targets) / (CLASSES * counts))[targets] if balanced else None
    reference = LogisticRegression(
        C=1 / strength, class_weight="balanced" if balanced else None, tol=1e-9, max_iter=10_000
    ).fit((features.double() / scale).numpy(), targets.numpy())
    expected = reference.predict_proba((features.double() / scale).numpy())
    found = probabilities(features, fit_head(features, targets, CLASSES, strength, weights))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_features_of_another_scale_and_origin_give_the_same_probabilities() -> None:
    features, targets = drawn()
    moved = 100 * features - 7
    one, other = (
        probabilities(each, fit_head(each, targets, CLASSES, 1.0)) for each in (features, moved)
    )
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_features_that_never_change_do_no_harm() -> None:
    features, targets = drawn()
    features[:, 3] = 2.5
    weight, bias = fit_head(features, targets, CLASSES, 1.0)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    weight, bias = fit_head(torch.full_like(features, 2.5), targets, CLASSES, 1.0)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()


def test_a_class_without_photos_is_unlikely_and_finite() -> None:
    features, targets = drawn()
    found = probabilities(features, fit_head(features, targets, CLASSES + 1, 1.0))
    assert torch.isfinite(found).all() and found[:, CLASSES].max() < 0.1


def test_photos_in_pieces_give_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = drawn()
    whole = fit_head(features, targets, CLASSES, 1.0)
    monkeypatch.setattr(probe, "_ROWS", 50)
    pieces = fit_head(features, targets, CLASSES, 1.0)
    torch.testing.assert_close(whole, pieces, atol=2e-3, rtol=1e-2)


def test_noise_wants_a_strong_penalty_and_clear_classes_a_weak_one() -> None:
    def chosen(noise: float) -> float:
        features, targets = drawn(noise=noise)
        rows = np.arange(len(targets))
        splits = [(rows[rows % 4 != n], rows[rows % 4 == n]) for n in range(3)]
        return choose_strength(features, targets, CLASSES, splits)

    assert chosen(0.0) < chosen(3.0) <= chosen(1000.0)
    assert {chosen(0.0), chosen(3.0)} <= {*STRENGTHS}


def test_without_photos_to_judge_by_the_strength_is_a_middle_one() -> None:
    assert choose_strength(*drawn(), CLASSES, []) == UNJUDGED


def test_rows_that_are_known_stay_and_the_others_are_the_optimum_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "ENOUGH", 1e-5)
    features, targets = drawn()
    weight, bias = fit_head(features, targets % 3, CLASSES, 1.0)
    free = torch.tensor([False, True, False, True])
    known = Known(weight.float(), bias.float(), free)
    found = fit_head(features, targets, CLASSES, 10.0, known=known)
    for row in (0, 2):
        assert torch.equal(found[0][row].float(), known.weight[row])
        assert found[1][row].float() == known.bias[row]
    scale = features.double().var(dim=0, correction=0).mean()
    head = [each.clone().requires_grad_() for each in found]
    logits = features.double() @ head[0].T + head[1]
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (loss + 5 * scale * head[0][free].square().sum()).backward()
    for each in head:
        assert each.grad is not None
        assert each.grad[free].abs().max() < 0.02 < each.grad[~free].abs().max()


def test_a_head_of_free_rows_alone_is_any_head() -> None:
    features, targets = drawn()
    nothing = Known(torch.zeros(CLASSES, 12), torch.zeros(CLASSES), torch.ones(CLASSES).bool())
    one = fit_head(features, targets, CLASSES, 3.0)
    other = fit_head(features, targets, CLASSES, 3.0, known=nothing)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
