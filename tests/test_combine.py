import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fieldguide as fg
from fieldguide import merge
from fieldguide.analysis import metrics
from fieldguide.errors import DataError, UsageError
from fieldguide.merge import Weights
from fieldguide.predict import combine, inference
from fieldguide.predict.combine import Greedy, Ingredients, Outside
from fieldguide.predict.model import Machine

CPU = Machine("cpu", workers=0)


@pytest.fixture(scope="module")
def ingredients(trained: fg.Run) -> Ingredients:
    return trained.ingredients()


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def in_order(ingredients: Ingredients, folds: Sequence[int]) -> Ingredients:
    """The same run with its folds done in another order."""
    return replace(
        ingredients,
        judged={fold: ingredients.judged[fold] for fold in folds},
        targets={fold: ingredients.targets[fold] for fold in folds},
    )


def of_equal_folds(ingredients: Ingredients) -> Ingredients:
    """A run whose folds all ended with the weights of fold 0."""

    def weights(fold: int | None) -> Mapping[str, Any]:
        return ingredients.weights(None if fold is None else 0)

    return replace(ingredients, weights=weights)


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


def test_an_ensemble_has_every_fold_that_is_done(trained: fg.Run, ingredients: Ingredients) -> None:
    model = combine.ensemble(ingredients)
    for fold, weights in zip(trained.done, model.members, strict=True):
        for name, array in trained.weights(fold).items():
            np.testing.assert_array_equal(weights[name].numpy(), array)
    part = combine.ensemble(in_order(ingredients, [2, 0]))
    assert part.card.members == ("fold 2", "fold 0")
    assert equal(part.members[0], model.members[2])
    assert set(part.out_of_fold.members.tolist()) == {0, 1}
    assert len(part.out_of_fold.targets) == 16


def test_one_fold_is_that_fold_and_another_is_refused(
    trained: fg.Run, ingredients: Ingredients
) -> None:
    model = combine.one_fold(ingredients, 1)
    assert model.card.members == ("fold 1",)
    assert len(model.members) == 1
    with pytest.raises(UsageError, match="fold 3 is not trained") as error:
        combine.one_fold(ingredients, 3)
    assert "0, 1, 2" in error.value.hint


def test_the_temperature_is_fitted_out_of_fold_on_all_folds(
    trained: fg.Run, ingredients: Ingredients
) -> None:
    assert ingredients.temperature == trained.scores.temperature
    models = [combine.ensemble(ingredients), combine.one_fold(ingredients, 0)]
    models.append(combine.soup(ingredients, "soup", batch_norm="average"))
    assert {model.card.temperature for model in models} == {trained.scores.temperature}


def test_a_soup_is_the_mean_of_the_folds(ingredients: Ingredients) -> None:
    model = combine.soup(ingredients, "soup", batch_norm="average")
    copies = ingredients.fold_weights([0, 1, 2])
    assert len(model.members) == 1
    for name, tensor in model.members[0].items():
        stacked = torch.stack([copy[name] for copy in copies])
        if tensor.is_floating_point():
            expected = stacked.double().mean(dim=0).to(tensor.dtype)
        else:
            expected = stacked.amax(dim=0)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["soup", "greedy", "stock"])
def test_a_soup_of_equal_folds_is_that_fold(rule: Any, ingredients: Ingredients) -> None:
    alike = of_equal_folds(ingredients)
    model = combine.soup(alike, rule, batch_norm="average", machine=CPU)
    assert equal(model.members[0], alike.fold_weights([0])[0])


@pytest.mark.parametrize("rule", ["soup", "stock"])
@pytest.mark.parametrize("batch_norm", ["average", "recalibrate"])
def test_the_order_of_folds_does_not_matter(
    rule: Any, batch_norm: Any, ingredients: Ingredients
) -> None:
    one, other = (
        combine.soup(
            in_order(ingredients, folds), rule, batch_norm=batch_norm, machine=CPU
        ).members[0]
        for folds in ([0, 1, 2], [2, 0, 1])
    )
    assert equal(one, other)


def test_stock_lies_between_the_start_and_the_mean(ingredients: Ingredients) -> None:
    """Each backbone tensor on the line from one to the other; all else is the mean."""
    stock, mean = (
        combine.soup(ingredients, rule, batch_norm="average").members[0]
        for rule in ("stock", "soup")  # type: ignore[arg-type]
    )
    start = combine.as_tensors(ingredients.weights(None))
    anchored = {name for name in start if name.startswith("backbone.") and not _is_buffer(name)}
    for name in stock:
        if name not in anchored:
            assert torch.equal(stock[name], mean[name]), name
    shares = []
    for name in anchored:
        way, gone = (w[name].double() - start[name].double() for w in (mean, stock))
        share = float((way * gone).sum() / way.square().sum())
        torch.testing.assert_close(gone, share * way, rtol=1e-3, atol=1e-6)
        shares.append(share)
    assert min(shares) >= 0 and max(shares) <= 1
    assert min(shares) < 0.9  # or it could not be told from the mean
    expected, _ = merge.model_stock(
        ingredients.fold_weights([0, 1, 2]), {name: start[name] for name in anchored}
    )
    assert equal(stock, expected)


def _is_buffer(name: str) -> bool:
    return is_statistic(name) or name.endswith("num_batches_tracked")


@pytest.mark.parametrize("rule", ["soup", "greedy", "stock"])
def test_recalibration_changes_nothing_but_statistics(rule: Any, ingredients: Ingredients) -> None:
    plain, measured = (
        combine.soup(ingredients, rule, batch_norm=batch_norm, chosen=ALL, machine=CPU).members[0]
        for batch_norm in ("average", "recalibrate")  # type: ignore[arg-type]
    )
    for name, tensor in plain.items():
        assert torch.equal(measured[name], tensor) != is_statistic(name), name


ALL = Greedy((0, 1, 2), 1.0, np.zeros((12, 3), dtype=np.float32))


def test_sets_of_a_soup_are_calibrated_by_all_folds(ingredients: Ingredients) -> None:
    soup = combine.soup(ingredients, "soup", batch_norm="average").out_of_fold
    every = combine.ensemble(ingredients).out_of_fold
    assert set(soup.members.tolist()) == {0}
    np.testing.assert_array_equal(soup.split, every.split)
    np.testing.assert_array_equal(soup.targets, every.targets)


def test_batch_norm_is_measured_on_training_photos_alone(
    ingredients: Ingredients, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: Any = {"batch_norm": "recalibrate", "machine": CPU}
    combine.soup(ingredients, "soup", **measured)
    assert sorted(opened) == sorted(ingredients.training)
    assert opened != list(ingredients.training)  # photos of one class lie side by side there
    first = opened.copy()
    opened.clear()
    combine.soup(ingredients, "stock", **measured)
    assert opened == first
    opened.clear()
    monkeypatch.setattr(combine, "RECALIBRATION_PHOTOS", 7)
    combine.soup(ingredients, "soup", **measured)
    assert opened == first[:7]


def test_averaged_statistics_need_no_photos(ingredients: Ingredients, opened: list[Path]) -> None:
    for rule in combine.RULES:
        combine.soup(ingredients, rule, chosen=ALL)
    assert opened == []


@pytest.mark.parametrize("left", [0, 1, 11])
def test_training_photos_that_are_gone_are_an_error_with_ways_on(
    left: int, ingredients: Ingredients, tmp_path: Path
) -> None:
    gone = [tmp_path / path.name for path in ingredients.training[left:]]
    moved = replace(ingredients, training=(*ingredients.training[:left], *gone))
    with pytest.raises(DataError, match="gone") as error:
        combine.soup(moved, "soup", batch_norm="recalibrate", machine=CPU)
    assert str(tmp_path) in error.value.message
    assert "--photos-root" in error.value.hint and "without --batch-norm" in error.value.hint


def test_a_few_lost_training_photos_are_done_without(
    ingredients: Ingredients, tmp_path: Path
) -> None:
    few = replace(ingredients, training=(tmp_path / "gone.jpg", *ingredients.training[1:]))
    combine.soup(few, "soup", batch_norm="recalibrate", machine=CPU)


def test_a_lost_outside_photo_is_named(ingredients: Ingredients, tmp_path: Path) -> None:
    files = (*ingredients.outside.files[1:], tmp_path / "gone.jpg")
    lacking = replace(ingredients, outside=replace(ingredients.outside, files=files))
    with pytest.raises(DataError, match=r"1 of 12 photos .*gone\.jpg") as error:
        combine.soup(lacking, "greedy", batch_norm="average", machine=CPU)
    assert "--photos-root" in error.value.hint


def by_the_rule(order: Sequence[int], accuracy: Callable[[tuple[int, ...]], float]) -> set[int]:
    """Wortsman et al., recipe 1, read word by word."""
    soup: set[int] = set()
    best = -1.0
    for fold in order:
        tried = accuracy(tuple(sorted(soup | {fold})))
        if not soup or tried >= best:
            soup, best = soup | {fold}, tried
    return soup


@given(
    order=st.permutations(range(5)),
    values=st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_size=32, max_size=32),
)
def test_folds_are_added_while_that_does_no_harm(order: list[int], values: list[float]) -> None:
    def accuracy(folds: tuple[int, ...]) -> float:
        assert list(folds) == sorted(set(folds))  # one soup has one name
        return values[sum(1 << fold for fold in folds)]

    chosen = combine.add_greedily(order, accuracy)
    assert set(chosen) == by_the_rule(order, accuracy)
    assert list(chosen) == sorted(chosen)
    assert order[0] in chosen


def test_a_fold_that_changes_nothing_is_added_and_one_that_harms_is_not() -> None:
    worth = {(0,): 0.5, (0, 1): 0.5, (0, 1, 2): 0.4, (0, 1, 3): 0.6}
    assert combine.add_greedily([0, 1, 2, 3], lambda folds: worth[folds]) == (0, 1, 3)
    assert combine.add_greedily([3], lambda folds: 0.0) == (3,)


def test_folds_are_tried_by_their_accuracy_out_of_fold(
    trained: fg.Run, ingredients: Ingredients
) -> None:
    order = combine.by_accuracy(ingredients)
    accuracies = [trained.scores.accuracy_per_fold[fold] for fold in order]
    assert accuracies == sorted(accuracies, reverse=True)
    assert sorted(order) == [0, 1, 2]
    right = np.eye(3, dtype=np.float32)[ingredients.targets[2]]
    wrong = -right
    told = replace(
        ingredients,
        judged={0: wrong, 1: right, 2: right},
        targets=dict.fromkeys(range(3), ingredients.targets[2]),
    )
    assert combine.by_accuracy(told) == [1, 2, 0]  # of equal ones the first comes first


def spoiled(ingredients: Ingredients, fold: int) -> Ingredients:
    """A run one of whose folds names the class after the right one, and is trusted most."""

    def weights(each: int | None) -> Mapping[str, Any]:
        found = dict(ingredients.weights(each))
        if each == fold:
            for name in (n for n in found if n.startswith("head.")):
                found[name] = 20 * np.roll(found[name], 1, axis=0)
        return found

    return replace(ingredients, weights=weights)


def test_greedy_chooses_by_the_outside_photos_and_by_nothing_else(
    ingredients: Ingredients, opened: list[Path]
) -> None:
    bad = spoiled(ingredients, combine.by_accuracy(ingredients)[-1])
    chosen = combine.greedy(bad, batch_norm="average", machine=CPU)
    assert set(opened) == set(ingredients.outside.files)
    outside = ingredients.outside

    def accuracy(folds: tuple[int, ...]) -> float:
        weights = merge.average(bad.fold_weights(folds))
        logits = combine.outside_logits(bad, [weights], outside, CPU)[0]
        return metrics.accuracy(logits, outside.targets)

    order = combine.by_accuracy(bad)
    assert set(chosen.folds) == by_the_rule(order, accuracy)
    assert order[-1] not in chosen.folds
    assert chosen.accuracy == accuracy(chosen.folds)
    model = combine.soup(bad, "greedy", batch_norm="average", machine=CPU)
    assert equal(model.members[0], merge.average(bad.fold_weights(chosen.folds)))
    made = model.card.provenance["made"]
    assert made["folds"] == list(chosen.folds)
    assert (made["chosen_on"], made["accuracy_where_chosen"]) == (12, chosen.accuracy)


def test_each_half_is_judged_by_the_soup_that_the_other_half_chose(
    ingredients: Ingredients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With logits that tell of the soup they are from, and folds that are worth most in one half.

    Fold 0 is the first; fold 1 helps the first half and harms the second, fold 2 the other way.
    """
    outside = ingredients.outside
    first, second = combine.halves(outside.groups)[0]
    helped = {1: first, 2: second}

    def logits_of(folds: tuple[int, ...]) -> np.ndarray:
        scores = np.zeros((len(outside), 3), dtype=np.float32)
        scores[:, 0] = 0.001 * sum(1 << fold for fold in folds)  # which soup it is
        right = np.zeros(len(outside))
        for fold in set(folds) - {0}:
            right -= 1
            right[helped[fold]] += 2
        scores[np.arange(len(outside)), outside.targets] += right.astype(np.float32)
        return scores

    monkeypatch.setattr(combine, "by_accuracy", lambda ingredients: [0, 1, 2])
    monkeypatch.setattr(combine, "merged", lambda ingredients, folds, *rest: {"folds": folds})
    monkeypatch.setattr(
        combine,
        "outside_logits",
        lambda ingredients, members, outside, machine: np.stack(
            [logits_of(tuple(each["folds"])) for each in members]
        ),
    )
    chosen = combine.greedy(ingredients, batch_norm="average", machine=CPU)
    targets = outside.targets

    def choice(rows: np.ndarray) -> set[int]:
        return by_the_rule(
            [0, 1, 2], lambda folds: metrics.accuracy(logits_of(folds)[rows], targets[rows])
        )

    one, other = choice(first), choice(second)
    assert one != other  # or crossing them could not be told
    for judged, by in ((first, other), (second, one)):
        expected = logits_of(tuple(sorted(by)))[judged]
        np.testing.assert_array_equal(chosen.logits[judged], expected)


def test_greedy_needs_photos_outside_the_folds(ingredients: Ingredients) -> None:
    none = Outside((), np.empty(0, dtype=np.int64), (), ())
    with pytest.raises(DataError, match="this run has 0") as error:
        combine.soup(replace(ingredients, outside=none), "greedy", machine=CPU)
    assert "--holdout" in error.value.hint


def test_soups_are_merged_once_however_often_they_are_asked_about(
    ingredients: Ingredients, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    original = combine.merged

    def merged(ingredients: Ingredients, folds: Sequence[int], *rest: Any) -> Weights:
        asked.append(tuple(folds))
        return original(ingredients, folds, *rest)

    monkeypatch.setattr(combine, "merged", merged)
    combine.greedy(ingredients, batch_norm="average", machine=CPU)
    assert max(Counter(asked).values()) == 1


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30))
def test_halves_keep_groups_whole_and_judge_every_photo_once(groups: list[str]) -> None:
    if len(set(groups)) == 1:
        with pytest.raises(DataError, match="one group"):
            combine.halves(groups)
        return
    halves = combine.halves(groups)
    assert len(halves) == 2
    assert sorted(row for judged, _ in halves for row in judged) == list(range(len(groups)))
    for judged, by in halves:
        assert len(judged) and len(by)
        assert not {groups[row] for row in judged} & {groups[row] for row in by}
        assert sorted([*judged, *by]) == list(range(len(groups)))


def test_halves_are_drawn_from_the_names_of_groups_alone() -> None:
    groups = [f"photo {n}" for n in range(200)]
    first = {groups[row] for row in combine.halves(groups)[0][0]}
    assert 70 < len(first) < 130
    backwards = groups[::-1]
    assert {backwards[row] for row in combine.halves(backwards)[0][0]} == first
    more = [*groups, "photo 200"]
    assert {more[row] for row in combine.halves(more)[0][0]} - {"photo 200"} == first


def test_outside_logits_are_those_of_a_look_at_each_photo(ingredients: Ingredients) -> None:
    members = ingredients.fold_weights([0, 1, 2])
    found = combine.outside_logits(ingredients, members, ingredients.outside, CPU)
    expected, rows = inference.all_logits(
        ingredients.architecture, members, ingredients.outside.files, CPU
    )
    assert len(rows) == 12
    np.testing.assert_array_equal(found, expected)


def test_a_model_is_called_by_its_rule_and_what_became_of_batch_norm() -> None:
    assert combine.model_name("soup", "average") == "soup"
    assert combine.model_name("soup", "recalibrate") == "soup-recal"
    assert combine.model_name("ensemble", "recalibrate") == "ensemble"


def test_an_unknown_batch_norm_is_refused() -> None:
    """As users meet it: their types are not checked."""
    unchecked = inspect.unwrap(combine.model_name)
    with pytest.raises(UsageError, match="`batch_norm` is none of average, recalibrate: keep"):
        unchecked("soup", "keep")


def test_a_part_of_the_outside_photos_is_theirs_in_the_order_asked_for(
    ingredients: Ingredients,
) -> None:
    whole, rows = ingredients.outside, np.array([7, 0, 11])
    part = whole.part(rows)
    assert len(part) == 3
    assert part.files == tuple(whole.files[row] for row in (7, 0, 11))
    assert part.targets.tolist() == [whole.targets[row] for row in (7, 0, 11)]
    assert part.groups == tuple(whole.groups[row] for row in (7, 0, 11))
    assert part.hashes == tuple(whole.hashes[row] for row in (7, 0, 11))
    assert len(whole.part(np.arange(0))) == 0
