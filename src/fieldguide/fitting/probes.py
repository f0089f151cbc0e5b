"""The heads that a run's folds start from: fitted to features of each fold's own training photos.

Every photo goes through the network once for all folds, or not at all if the cache has its features
from a run before. Knows nothing of how folds are trained.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fieldguide.analysis import metrics, unknown
from fieldguide.errors import DataError
from fieldguide.fitting.features import kept_features
from fieldguide.fitting.jobs import parts_of
from fieldguide.fitting.progress import Watcher
from fieldguide.machine.cores import count_cores
from fieldguide.machine.device import (
    autocast,
    choose_device,
    training_threads,
)
from fieldguide.network.network import Network, last_linear, load_weights
from fieldguide.photos.catalog import Catalog, Photo, group_names
from fieldguide.photos.folds import Fold, inner_split
from fieldguide.recipe import ResolvedRecipe
from fieldguide.runs.run import SOURCE, Run, folds_of, targets_of
from fieldguide.seeds import derive_seed
from fieldguide.storage.columns import Records
from fieldguide.train.probe import (
    Features,
    Known,
    choose_strength,
    fit_head,
    without_classes,
)
from fieldguide.train.result import Arrays, arrays

ROOM = 1 << 30  # bytes: folds are fitted at once while copies of the features fit in (taste)

# The penalty is chosen on a quarter of a fold's training photos, set aside with whole groups; of
# small folds several times, until so many photos have been judged (taste).
ASIDE, JUDGED, MOST_SPLITS = 0.25, 500, 5

# Folds whose photos are judged by heads that do not know their classes: the first, until so many
# photos are (taste).
LEFT_OUT_PHOTOS = 1000

FEW = 256  # photos whose probabilities of the source's classes are held at once


def probes_of(
    recipe: ResolvedRecipe,
    network: Network,
    catalog: Catalog,
    watcher: Watcher,
    *,
    leave_out: bool = True,
    source: tuple[Tensor, Tensor] | None = None,
) -> list[Arrays]:
    """Return each fold's head as the run keeps it: `weight`, `bias`, `strength`, `logits`.

    The strength of the penalty is chosen within the fold's training photos, by the log loss of
    parts set aside. The logits are those of the fold's test part, in the run's arithmetic. The
    first folds also have `left_out` (photos, blocks), unless it is not wanted: the doubt about the
    test part's photos of heads that were fitted without a block of classes (`unknown.blocks`).
    With the classifier that came with the weights, `source`, they have the `relation` of their
    training photos' classes to its own (`train.job.Source`), and the first the classifier.
    Changes the network's device and layout. Raises `TrainingError` for features that are not
    finite.
    """
    rows = np.flatnonzero(np.array([split == "train" for split in catalog.table.column("split")]))
    features = kept_features(recipe, network, catalog, rows, watcher)
    seen = _Seen.of(recipe, catalog, rows, features)
    at_once = max(min(count_cores(), ROOM // features.nbytes), 1)
    folds, blocks = folds_of(catalog, recipe.folds), unknown.blocks(len(catalog.classes))
    before = np.cumsum([0, *(len(fold.test) for fold in folds)])
    some = folds[: int((before[:-1] < LEFT_OUT_PHOTOS).sum())] if leave_out and blocks else ()
    # One thread each: the number of cores changes no bit.
    with (
        training_threads(1),
        ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        probes = list(pool.map(seen.probe, folds))
        for fold in some:
            strength = float(probes[fold.index]["strength"])
            found = list(pool.map(partial(seen.left_out, fold, strength), blocks))
            probes[fold.index] = {**probes[fold.index], "left_out": np.stack(found, axis=1)}
        if source:
            relations = pool.map(partial(seen.relation, *source), folds)
            probes = [{**p, "relation": r} for p, r in zip(probes, relations, strict=True)]
            probes[0] = {**probes[0], **arrays(dict(zip(SOURCE, source, strict=True)))}
        return probes


def starts_of(
    recipe: ResolvedRecipe, network: Network, catalog: Catalog, older: Run, watcher: Watcher
) -> list[Arrays]:
    """Return each fold's start as the run keeps it: the older run's weights by name, and `logits`.

    The head has the rows of its classes that are left. Those of new classes, and all of an older
    run that trained none, are fitted beside them to what the fold's own network makes of the fold's
    training photos (`train.probe`). The logits are those of the fold's test part. Changes the
    network.
    """
    layer, ingredients = last_linear(network), older.ingredients()
    names = f"{layer}.weight", f"{layer}.bias"
    at = {name: number for number, name in enumerate(older.classes)}
    refit = older.recipe.epochs == 0
    free = torch.tensor([refit or name not in at for name in catalog.classes])
    old_rows = [at.get(name, 0) for name in catalog.classes]
    starts: list[Arrays] = []
    for fold in folds_of(catalog, recipe.folds):
        (weights,) = ingredients.fold_weights([fold.index])
        known = Known(weights[names[0]][old_rows], weights[names[1]][old_rows], free)
        load_weights(network, {**weights, names[0]: known.weight, names[1]: known.bias})
        train, _ = parts_of(recipe, catalog, fold)
        rows = np.union1d(train, fold.test) if free.any() else fold.test
        features = kept_features(recipe, network, catalog, rows, watcher)
        with training_threads(1):
            found = _Seen.of(recipe, catalog, rows, features).probe(fold, known)
        head = {names[0]: found["weight"], names[1]: found["bias"], "logits": found["logits"]}
        starts.append({**arrays(weights), **head})
    return starts


@dataclass(frozen=True, eq=False)
class _Seen:
    """The features of some photos of a catalog, from which folds' heads are fitted.

    `place` is each photo's row in `features`, or -1; `targets` is its class.
    """

    recipe: ResolvedRecipe
    catalog: Catalog
    place: NDArray[np.int64]
    features: Features
    targets: NDArray[np.int64]

    @staticmethod
    def of(
        recipe: ResolvedRecipe, catalog: Catalog, rows: NDArray[np.int64], features: Features
    ) -> "_Seen":
        """Return those of these rows of the catalog."""
        place = np.full(len(catalog), -1)
        place[rows] = np.arange(len(rows))
        return _Seen(recipe, catalog, place, features, targets_of(catalog))

    def probe(self, fold: Fold, known: Known | None = None) -> Arrays:
        """Return a fold's head, of which rows may be known, and its logits of the test part."""
        if known and not known.free.any():
            found = {"weight": known.weight, "bias": known.bias}
        else:
            found = self._fitted(fold, known)
        device = choose_device(self.recipe.device)
        with torch.inference_mode(), autocast(device, self.recipe.precision):
            tested = self.features[self.place[fold.test]].to(device)
            head = found["weight"].to(device), found["bias"].to(device)
            logits = torch.nn.functional.linear(tested, *head).float()
        return arrays(found | {"logits": logits})

    def _fitted(self, fold: Fold, known: Known | None) -> dict[str, Tensor]:
        train, own, weights = self._training(fold)
        seen, classes = self.features[self.place[train]], len(self.catalog.classes)
        seed = derive_seed(self.recipe.seed, "probe", fold.index)
        splits = _splits(self.catalog.table, train, seed)
        strength = choose_strength(seen, own, classes, splits, weights, known)
        weight, bias = fit_head(seen, own, classes, strength, weights, known)
        return {
            "weight": weight.float(),
            "bias": bias.float(),
            "strength": torch.tensor(strength, dtype=torch.float64),
        }

    def left_out(self, fold: Fold, strength: float, block: Sequence[int]) -> NDArray[np.float32]:
        """Return the doubt about a fold's test part of a head without a block of classes."""
        train, own, weights = self._training(fold)
        seen, classes = self.features[self.place[train]], len(self.catalog.classes)
        weight, bias = without_classes(seen, own, block, classes, strength, weights)
        logits = self.features[self.place[fold.test]].double() @ weight.T + bias
        return unknown.doubt(metrics.softmax(logits.numpy())).astype(np.float32)

    def relation(self, weight: Tensor, bias: Tensor, fold: Fold) -> NDArray[np.float32]:
        """Return the source's mean probabilities of each class's training photos, (classes, …)."""
        train, own, _ = self._training(fold)
        classes = len(self.catalog.classes)
        sums = torch.zeros(classes, len(weight), dtype=torch.float64)
        for start in range(0, len(train), FEW):  # sources may be 21,841
            rows = self.place[train[start : start + FEW]]
            found = torch.nn.functional.linear(self.features[rows], weight, bias).double()
            sums.index_add_(0, own[start : start + FEW], found.softmax(1))
        counts = torch.bincount(own, minlength=classes).clamp_min(1)
        relation: NDArray[np.float32] = (sums / counts[:, None]).float().numpy()
        return relation

    def _training(self, fold: Fold) -> tuple[NDArray[np.int64], Tensor, Tensor | None]:
        """Return the photos that a fold trains on, their classes and their weights."""
        train, _ = parts_of(self.recipe, self.catalog, fold)
        own = torch.from_numpy(self.targets[train])
        if self.recipe.class_weights == "none":
            return train, own, None
        classes = len(self.catalog.classes)
        counts = torch.bincount(own, minlength=classes).clamp_min(1)
        return train, own, len(own) / (classes * counts[own])


def _splits(
    photos: Records[Photo], train: NDArray[np.int64], seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return positions in `train` to fit to and to judge, several times if there are few.

    None where no group can be set aside: every class is one group.
    """
    own = photos.take(train.tolist())
    labels, paths, groups = own.column("label"), own.column("path"), group_names(own)
    splits: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    while len(splits) < MOST_SPLITS and sum(len(aside) for _, aside in splits) < JUDGED:
        try:
            split = inner_split(
                labels,
                paths,
                groups,
                np.arange(len(train)),
                share=ASIDE,
                seed=derive_seed(seed, len(splits)),
            )
        except DataError:
            break
        splits.append(split)
    return splits
