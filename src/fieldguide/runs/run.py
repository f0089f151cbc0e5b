"""What a run folder holds, written whole or not at all, and read back with its hashes checked.

    RUN/
      recipe.toml         every setting, resolved
      given.csv           path, label, group, split, fold of every photo, as they were read
      catalog.csv         path, label, group, split, fold, sha256 of every photo used
      environment.json    versions, device, command, seeds, weights and their licence
      start.safetensors   the weights that every replica of every fold starts from
      probe/0.safetensors a fold's head fitted to the start's features, and its logits, if wanted
      older/              of a run that goes on from an older one: catalog.csv, the photos known
                          then; oof.csv, what was predicted of them; 0.safetensors, a fold's start
      setup.json          hashes of all above, written last: the run exists
      folds/0/            weights.safetensors, history.csv, merges.csv, predictions.npz
                          manifest.json, written last: the fold is done; checkpoint/ while it is not
      oof.csv             out-of-fold predictions, one row a training photo, in catalog order
      summary.json        the scores
      taxonomy.csv        label and taxa of every class, if they were given (not in the manifest)
      manifest.json       hashes of all files, written last: the run is complete

All paths in it are relative: a run can be moved. Knows nothing of how folds are trained, nor of
torch: scores are read back without importing it.
"""

import csv
import difflib
import hashlib
import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fieldguide import recipe
from fieldguide.analysis import calibration, metrics, unknown
from fieldguide.analysis.promises import Kept
from fieldguide.analysis.taxa import Taxonomy, flat
from fieldguide.analysis.unknown import Worth
from fieldguide.errors import DataError, ResourceError, UsageError
from fieldguide.photos import catalog as catalogs
from fieldguide.photos import taxonomy as taxonomies
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.photos.folders import root_of
from fieldguide.photos.folds import Fold
from fieldguide.photos.groups import unit_of
from fieldguide.recipe import Recipe, ResolvedRecipe
from fieldguide.runs import scores as scoring
from fieldguide.runs.scores import Scores
from fieldguide.runs.trust import Trust, trust
from fieldguide.storage import files
from fieldguide.train.result import Arrays, TrainedFold

if TYPE_CHECKING:  # torch takes seconds, and most of a run is read without it
    from fieldguide.predict.classifier import Classifier
    from fieldguide.predict.combine import BatchNorm, Ingredients, Outside
    from fieldguide.predict.model import Machine

FORMAT = 1
SETUP = "setup.json"
GIVEN = "given.csv"
SETUP_FILES = ("recipe.toml", GIVEN, "catalog.csv", "environment.json", "start.safetensors")
FOLD_FILES = ("weights.safetensors", "history.csv", "merges.csv", "predictions.npz")
RESULT_FILES = ("oof.csv", "summary.json")
TAXONOMY = "taxonomy.csv"  # of the classes: given at any time
TAXONOMY_BEGUN = "taxonomy.begun"  # while the results are written anew with it
SOURCE = ("source_weight", "source_bias")  # in the first of them, for Co-Tuning
PROBE = "probe"  # folder of the heads that folds start from
OLDER = "older"  # folder of what is kept of the run that this one goes on from
TUNED: Final = "tuned"  # the merged model that `study.tuning` trains
COMBINATIONS = ("ensemble", "logits", "geometric", "soup", "greedy", "stock")
FINDINGS = "findings.csv"  # what the check found when the run was begun
_AT_ONCE = 10_000  # photos whose probabilities are in memory together: 80 kB a class
MODELS = "models"  # folder of merged models, written after the run

HISTORY = (
    "fold",
    "epoch",
    "model",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "ratio_mean",
    "angle_mean",
    "distance_mean",
    "steps",
    "skipped",
    "missing",
    "diverged",
    "parts",
    "seconds",
)
MERGES = ("fold", "epoch", "tensor", "angle", "ratio", "distance")


class Pooled(NamedTuple):
    """Photos that were judged by a fold that did not train on them.

    `photos` are their numbers in the catalog, `logits` those that nothing was chosen on.
    """

    photos: Int[np.ndarray, " n"]
    fold_of: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n classes"]


class Run:
    """A run folder, finished or not. Reading a file checks its hash."""

    def __init__(self, folder: str | Path, photos: str | Path | None = None) -> None:
        """Open an existing run, whose photos lie in `photos` if they were moved.

        Raises `UsageError` where there is no run.
        """
        self.folder = Path(folder)
        self.photos = photos
        if not (self.folder / SETUP).is_file():
            raise UsageError(f"`{folder}` is no run folder: it has no {SETUP}")
        files.verify(self.folder, ("recipe.toml", "catalog.csv", "environment.json"), name=SETUP)

    @cached_property
    def recipe(self) -> ResolvedRecipe:
        """The settings, without `auto`."""
        with files.parsing(self.folder / "recipe.toml"):
            return recipe.load_resolved(self.folder / "recipe.toml")

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """Versions, device, command and what else would be needed to repeat the run."""
        path = self.folder / "environment.json"
        with files.parsing(path):
            content = self._read(path.name, self.folder, SETUP)
            found = _Environment.model_validate(json.loads(content))
            return Recorded(path, found.model_dump(exclude_unset=True))

    @cached_property
    def catalog(self) -> Catalog:
        """The photos, with the fold that tests each training photo."""
        root = root_of(Path(self.photos)) if self.photos else None
        root = root or Path(self.environment["photos"])
        path = self.folder / "catalog.csv"
        with files.parsing(path):
            found = catalogs.read_rows(path, root=root)
            folds = {fold for fold in found.table.column("fold") if fold is not None}
            if not (folds and folds <= {*range(self.recipe.folds)} and len(found.classes) > 1):
                raise ValueError(
                    f"{len(found.classes)} classes in folds {sorted(folds)[:9]}"
                    f" of {self.recipe.folds}"
                )
            return found

    @cached_property
    def given(self) -> Catalog | None:
        """The collection as it was read when the run was begun; None of an older version's run."""
        return given(self.folder, self.catalog.root, SETUP)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the network's outputs."""
        return self.catalog.classes

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Class number of every photo of the catalog; -1 where it has none of the classes."""
        return targets_of(self.catalog)

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """The folds as numbers of photos in the catalog."""
        return folds_of(self.catalog, self.recipe.folds)

    @property
    def complete(self) -> bool:
        """Whether every fold is trained and the results are written."""
        return (self.folder / files.MANIFEST).is_file() and not self.undone

    def require_complete(self) -> None:
        """Raise `UsageError` where folds are still to be trained."""
        if not self.complete:
            raise UsageError(
                f"`{self.folder}` is not complete: {len(self.done)} of {self.recipe.folds} folds"
                " are done",
                hint="finish it with the same fit command",
            )

    @property
    def done(self) -> list[int]:
        """The folds that are trained, and of a finished run not replaced by others since."""
        whole = (self.folder / files.MANIFEST).is_file()
        recorded = files.read_manifest(self.folder) if whole else {}
        manifests = {fold: f"folds/{fold}/{files.MANIFEST}" for fold in range(self.recipe.folds)}
        return [
            fold
            for fold, name in manifests.items()
            if (self.folder / name).is_file()
            and (not recorded or recorded[name].sha256 == files.sha256(self.folder / name))
        ]

    @property
    def undone(self) -> list[int]:
        """The folds that are still to be trained."""
        return sorted(set(range(self.recipe.folds)) - set(self.done))

    def fold_folder(self, fold: int) -> Path:
        """Return the folder of a fold's files."""
        return self.folder / "folds" / str(fold)

    def weights(self, fold: int | None = None) -> dict[str, NDArray[Any]]:
        """A fold's merged weights, or (None) those that all started from, by name."""
        if fold is None:
            return self._weights("start.safetensors", self.folder, SETUP)
        return self._weights("weights.safetensors", self.fold_folder(fold))

    def start(self, fold: int) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32] | None]:
        """Return the weights that a fold starts from, and their logits of its test part, if known.

        They differ from fold to fold in a head that was fitted, or altogether in a run that goes on
        from an older one.
        """
        if self.environment.get("older"):
            name = f"{OLDER}/{fold}.safetensors"
            with files.parsing(self.folder / name):
                found = self._weights(name, self.folder, SETUP)
                logits: NDArray[np.float32] = found.pop("logits")
                self._require_logits(logits, fold)
                return found, logits
        probe = self.probe(fold) if self.recipe.head_start == "probe" else {}
        head = {f"head.linear.{name}": probe[name] for name in ("weight", "bias") if probe}
        return self.weights() | head, probe.get("logits")

    def source(self, fold: int) -> "tuple[NDArray[np.float32], ...] | None":
        """Return what a fold's Co-Tuning needs (`train.job.Source`), if the recipe wants it."""
        if not self.recipe.co_tuning:
            return None
        first = self.probe(0)
        return (*(first[name] for name in SOURCE), self.probe(fold)["relation"])

    @cached_property
    def older_photos(self) -> Sequence[Photo]:
        """The photos that older runs have known, with the places and users' groups of then."""
        if not self.environment.get("older"):
            return ()
        files.verify(self.folder, [f"{OLDER}/catalog.csv"], name=SETUP)
        return catalogs.read_rows(self.folder / OLDER / "catalog.csv", self.catalog.root).photos

    @cached_property
    def predicted_before(self) -> dict[str, str]:
        """What the older run predicted out of fold, by SHA-256 of the photo."""
        if not self.environment.get("older"):
            return {}
        path = self.folder / OLDER / "oof.csv"
        with files.parsing(path):
            text = self._read(f"{OLDER}/oof.csv", self.folder, SETUP).decode()
            return dict(csv.reader(io.StringIO(text, newline=""), strict=True))

    @property
    def probed(self) -> bool:
        """Whether heads were fitted to the untrained network's features."""
        return f"{PROBE}/0.safetensors" in files.read_manifest(self.folder, name=SETUP)

    def probe(self, fold: int) -> dict[str, NDArray[Any]]:
        """Return a fold's fitted head: `weight`, `bias`, `strength`, and `logits` of its test part.

        The logits are those of the start, which no photo of the test part has changed. The first
        folds have also `left_out`, the doubt about these photos of heads without some classes.
        """
        name = f"{PROBE}/{fold}.safetensors"
        with files.parsing(self.folder / name):
            found = self._weights(name, self.folder, SETUP)
            if found["bias"].shape != (len(self.classes),) or not np.isfinite(found["bias"]).all():
                raise ValueError(f"bias of shape {found['bias'].shape}")
            self._require_logits(found["logits"], fold)
            shape = len(self.folds[fold].test), len(unknown.blocks(len(self.classes)))
            if "left_out" in found and found["left_out"].shape != shape:
                raise ValueError(f"doubts of shape {found['left_out'].shape}, not {shape}")
            return found

    def replicas(self, fold: int) -> list[dict[str, NDArray[Any]]]:
        """Each replica's weights before the fold's last merge; empty without `keep_replicas`."""
        folder = self.fold_folder(fold)
        names = sorted(name for name in files.read_manifest(folder) if name.startswith("replica-"))
        return [self._weights(name, folder) for name in names]

    def logits(self, fold: int) -> Float[np.ndarray, "n classes"]:
        """Logits of a fold's test part, as `folds[fold].test` orders it, from its saved weights."""
        logits: NDArray[np.float32] = self._predictions(fold)["logits"]
        return logits

    def epoch_logits(self, fold: int) -> Float[np.ndarray, "epochs n classes"]:
        """The same after every merge; empty but for `stop = fold`."""
        logits: NDArray[np.float32] = self._predictions(fold)["epoch_logits"]
        return logits

    @property
    def seconds(self) -> float:
        """Time spent in training, evaluating and merging the folds that are done, and in probes."""
        probed: float = self.environment.get("probe_seconds", 0.0)
        return round(probed + sum(float(row["seconds"]) for row in self._history()), 1)

    @property
    def parts(self) -> int:
        """Into how many parts batches had to be split, by a trial or in folds that are done."""
        found: int = self.environment["parts"]
        return max((int(row["parts"]) for row in self._history()), default=found)

    def _history(self) -> list[dict[str, str]]:
        return [row for fold in self.done for row in self.table(fold, "history.csv")]

    def table(self, fold: int, name: str) -> list[dict[str, str]]:
        """Return the rows of a fold's `history.csv` or `merges.csv`, as texts by column."""
        path = self.fold_folder(fold) / name
        with files.parsing(path):
            text = self._read(name, path.parent).decode()
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
            for row in rows:
                _require_numbers(row, HISTORY if name == "history.csv" else MERGES)
            return rows

    @cached_property
    def judged(self) -> dict[int, Float[np.ndarray, "n classes"]]:
        """Logits of each done fold's test part that nothing was chosen on, by fold.

        They are those of the saved weights, or with `stop = fold` cross-fitted: from the epoch that
        is best on average in the other folds.
        """
        if self.recipe.stop == "fold":
            logits = {fold: self.epoch_logits(fold) for fold in self.done}
            return scoring.cross_fitted(logits, self.by_fold(self.targets, logits))
        return {fold: self.logits(fold) for fold in self.done}

    @cached_property
    def pooled(self) -> Pooled:
        """The test parts of all done folds, one after the other."""
        _require_some_fold(self)
        tests = [self.folds[fold].test for fold in self.judged]
        return Pooled(
            np.concatenate(tests),
            np.repeat(list(self.judged), [len(test) for test in tests]),
            np.concatenate(list(self.judged.values())),
        )

    def by_fold(
        self, values: NDArray[np.int64], folds: Iterable[int]
    ) -> dict[int, NDArray[np.int64]]:
        """Return the catalog's values at the test part of each of these folds."""
        return {fold: values[self.folds[fold].test] for fold in folds}

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """The number of each photo's group; a photo in none is a group of its own."""
        names = catalogs.group_names(self.catalog.table)
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def unit(self) -> str:
        """What a group of the collection is: place, event or group; empty where it has none."""
        return unit_of(self.environment.get("collection", ""))[0]

    @cached_property
    def by_group(self) -> scoring.GroupScores | None:
        """Accuracy by the collection's groups, of photos in one; None where it has none, or one."""
        found = self._grouped()
        if found is None:
            return None
        logits, targets, names = found
        return scoring.by_group(logits.argmax(axis=1) == targets, names)

    @cached_property
    def by_event(self) -> scoring.EventScores | None:
        """Accuracy of one answer an event; None unless groups are events, which folds keep whole.

        Probabilities are scaled by the run's temperature, as those of `predict`.
        """
        found = self._grouped() if self.unit == "event" else None
        if found is None:
            return None
        logits, targets, names = found
        scaled = calibration.scaled(logits, self.scores.temperature)
        return scoring.by_event(scaled, targets, names)

    def listed(self, weights: Float[np.ndarray, " classes"]) -> scoring.ListedScores:
        """Return what it changes out of fold to weigh classes by how common they are (`predict`).

        Raises DataError where no photo is of a class with a weight.
        """
        photos, _, logits = self.pooled
        scaled = calibration.scaled(logits, self.scores.temperature)
        return scoring.listed(scaled, self.targets[photos], self.groups[photos], weights)

    def _grouped(self) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]] | None:
        """Return logits, classes and groups of photos in the collection's groups, if it has two."""
        if not self.unit:
            return None
        photos, _, logits = self.pooled
        table = (self.given or self.catalog).table  # the names of groups before copies joined them
        named = dict(zip(table.column("path"), table.column("group"), strict=True))
        paths = self.catalog.table.column("path")
        names = np.array([named[paths[photo]] or "" for photo in photos])
        known = names != ""
        if len(set(names[known])) < 2:
            return None
        return logits[known], self.targets[photos][known], names[known].tolist()

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The taxa of the classes, if they were given (`set_taxonomy`); else a tree of none."""
        path = self.folder / TAXONOMY
        if not path.is_file():
            return flat(len(self.classes))
        return taxonomies.read(path, self.classes, ordered=True)

    def set_taxonomy(
        self, table: str | Path, notice: Callable[[str], None] = lambda text: None
    ) -> None:
        """Keep the taxa of the classes in the run, read from a table: see `photos.taxonomy.read`.

        They change nothing of the training, and can be given again; the summary of a complete run
        is written anew. `notice` reports what was taken for what. Raises DataError for a table that
        does not fit.
        """
        found = taxonomies.read(table, self.classes, notice)
        with suppress(DataError):  # what stands there may be damaged
            if found == self.taxonomy and not (self.folder / TAXONOMY_BEGUN).exists():
                return
        with files.lock(self.folder):
            files.write_text(self.folder / TAXONOMY_BEGUN, "")  # a kill from here on is seen
            files.write_csv(self.folder / TAXONOMY, *taxonomies.table_of(found, self.classes))
            for name in ("taxonomy", "trust"):
                self.__dict__.pop(name, None)
            if not self.undone:
                finish(self)
            (self.folder / TAXONOMY_BEGUN).unlink()

    @cached_property
    def unknown(self) -> Worth | None:
        """How well photos of classes that were left out are told from known ones, by frozen heads.

        None where no heads were fitted without some classes: without features of a frozen network,
        of two classes, or in a run of an older version.
        """
        blocks, tested = unknown.blocks(len(self.classes)), []
        for fold in range(self.recipe.folds) if self.probed else ():
            doubts = self.probe(fold).get("left_out")
            if doubts is not None:
                targets = self.targets[self.folds[fold].test]
                tested += unknown.left_out(doubts, targets, blocks)
        if not tested:
            return None
        familiar, classes, known = (np.concatenate(each) for each in zip(*tested, strict=True))
        return unknown.worth(familiar, classes, known)

    @cached_property
    def outside(self) -> NDArray[np.int64]:
        """Labelled photos outside all folds that nothing was chosen on, as numbers in the catalog.

        They are the collection's `val` part and what `holdout` set aside, without photos of a group
        that is trained on (copies are), and none at all where `watch_val` let them choose epochs.
        """
        return np.empty(0, dtype=np.int64) if self.recipe.watch_val else self._apart("val")

    @cached_property
    def tested(self) -> NDArray[np.int64]:
        """Labelled photos of the collection's `test` part, as numbers in the catalog.

        Without those of a group that is trained on, and of no class of the run. Nothing is ever
        chosen on them.
        """
        return self._apart("test")

    def _apart(self, split: catalogs.Split) -> NDArray[np.int64]:
        """Return a part's photos of known classes that share no group with training photos."""
        photos = self.catalog.photos
        trained = {photo.group or photo.path for photo in photos if photo.split == "train"}
        free = [
            n
            for n, photo in enumerate(photos)
            if photo.split == split
            and self.targets[n] >= 0
            and (photo.group or photo.path) not in trained
        ]
        return np.array(free, dtype=np.int64)

    def models(self) -> dict[str, Path]:
        """The merged models that were written into the run, by name."""
        return {
            folder.parent.name: folder.parent
            for folder in sorted((self.folder / MODELS).glob(f"*/{files.MANIFEST}"))
            if folder.parent.suffix != ".part"  # a killed process left it
        }

    @property
    def crop(self) -> str:
        """The rule by which the photos are crops (`crops.Crop.name`); empty for whole photos."""
        crop: str = self.environment.get("crop", "")
        return crop

    def ingredients(self) -> "Ingredients":
        """What classifiers are made from. Raises `ResourceError` where no fold is done.

        Logits are those of the saved weights, also where `stop = fold` chose their epoch by the
        same photos: then they flatter a little, and differ from those that `scores` judges.
        """
        from fieldguide.predict.combine import Ingredients

        _require_some_fold(self)
        photos = self.catalog.photos
        judged = {fold: self.logits(fold) for fold in self.done}
        return Ingredients(
            recipe=self.recipe,
            classes=self.classes,
            weights=self.weights,
            judged=judged,
            targets=self.by_fold(self.targets, judged),
            groups=self.by_fold(self.groups, judged),
            taxonomy=self.taxonomy,
            training=tuple(self.catalog.file(p) for p in photos if p.split == "train"),
            outside=self.labelled(self.outside),
            license=self.environment["weights_license"],
            crop=self.crop,
            provenance=_provenance(self),
        )

    def labelled(self, rows: NDArray[np.int64]) -> "Outside":
        """Return the files, classes, groups and hashes of labelled photos outside the folds."""
        from fieldguide.predict.combine import Outside

        photos = [self.catalog.photos[n] for n in rows]
        return Outside(
            tuple(self.catalog.file(photo) for photo in photos),
            self.targets[rows],
            tuple(photo.group or photo.path for photo in photos),
            tuple(photo.sha256 for photo in photos),
        )

    def classifier(
        self,
        combine: str | int = "ensemble",
        *,
        batch_norm: "BatchNorm" = "average",
        machine: "Machine | None" = None,
    ) -> "Classifier":
        """A classifier from the folds that are done.

        `combine`: `ensemble` (mean of probabilities), `logits`, `geometric` (other means), a fold's
        number or `fold-0`, or one merged model: `soup`, `greedy`, `stock` (`predict.combine`).
        One that `fieldguide soup` wrote into the run is read from there, by its name; `tuned` is
        always one of these.
        Raises `UsageError` for anything else.
        """
        name = self.combination(combine)
        from fieldguide.predict import combine as combining
        from fieldguide.predict.classifier import Classifier
        from fieldguide.predict.model import Machine

        kept = self.models().get(combining.model_name(name, batch_norm))
        if kept:
            model = Classifier.load(kept)
            made = model.card.provenance["made"]["batch_norm"]
            if name not in combining.RULES or made == batch_norm:  # else an older version's
                return combining.as_of_now(model, self.ingredients())
        return combining.by_name(
            self.ingredients(), name, batch_norm=batch_norm, machine=machine or Machine()
        )

    def combination(self, combine: str | int) -> str:
        """The name of a way to combine folds; raises `UsageError` for none, without torch."""
        name = f"fold-{combine}" if isinstance(combine, int) else combine
        known = [*COMBINATIONS, *(f"fold-{fold}" for fold in self.done), *self.models()]
        if name not in known:
            if name == TUNED and self.recipe.epochs:
                raise UsageError(
                    "this run has no model `tuned` yet, which takes training",
                    hint=f"fieldguide soup {self.folder} --rule tuned",
                )
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" (did you mean `{close[0]}`?)" if close else ""
            raise UsageError(
                f"folds cannot be combined by `{combine}`{meant}",
                hint=f"one of {', '.join(dict.fromkeys(known))}",
            )
        return name

    @cached_property
    def scores(self) -> Scores:
        """Out-of-fold scores over the folds that are done."""
        _require_some_fold(self)
        chosen = self.recipe.stop == "fold"
        return scoring.out_of_fold(
            self.judged,
            self.by_fold(self.targets, self.judged),
            self.by_fold(self.groups, self.judged),
            saved={fold: self.logits(fold) for fold in self.judged} if chosen else None,
        )

    @cached_property
    def trust(self) -> Trust:
        """Which answers to trust, by taxa and by class, out of fold."""
        photos, fold_of, logits = self.pooled
        return trust(logits, self.targets[photos], self.groups[photos], fold_of, self.taxonomy)

    @cached_property
    def per_class(self) -> metrics.PerClass:
        """Out-of-fold precision, recall, F1 and number of photos of each class."""
        targets = self.by_fold(self.targets, self.judged)
        return metrics.per_class(
            *(np.concatenate(list(v.values())) for v in (self.judged, targets))
        )

    def _predictions(self, fold: int) -> dict[str, NDArray[Any]]:
        folder = self.fold_folder(fold)
        with files.parsing(folder / "predictions.npz"):
            arrays = read_arrays(self._read("predictions.npz", folder))
            self._require_logits(arrays["logits"], fold)
            for epoch in arrays["epoch_logits"]:
                self._require_logits(epoch, fold)
            return arrays

    def _require_logits(self, logits: NDArray[Any], fold: int) -> None:
        """Raise ValueError for what are no logits of the fold's test part."""
        shape = (len(self.folds[fold].test), len(self.classes))
        if logits.shape != shape:
            raise ValueError(f"logits of shape {logits.shape}, not {shape}")
        if not np.isfinite(logits).all():
            raise ValueError("logits that are no numbers")

    def _read(self, name: str, folder: Path, manifest: str = files.MANIFEST) -> bytes:
        return files.read_member(folder, name, manifest=manifest)

    def _weights(self, name: str, folder: Path, manifest: str = files.MANIFEST) -> dict[str, Any]:
        with files.parsing(folder / name):
            return load_tensors(self._read(name, folder, manifest))


def targets_of(catalog: Catalog) -> NDArray[np.int64]:
    """Return the class number of every photo; -1 where it has none of the classes."""
    numbers = {label: number for number, label in enumerate(catalog.classes)}
    return np.array([numbers.get(photo.label or "", -1) for photo in catalog.photos])


def folds_of(catalog: Catalog, folds: int) -> tuple[Fold, ...]:
    """Return the folds that a run's catalog names, as numbers of photos in it."""
    used = [photo.fold if photo.split == "train" else None for photo in catalog.photos]
    fold_of = np.array([-1 if fold is None else fold for fold in used])
    return tuple(
        Fold(
            index,
            np.flatnonzero((fold_of >= 0) & (fold_of != index)),
            np.flatnonzero(fold_of == index),
        )
        for index in range(folds)
    )


class Recorded(dict[str, Any]):
    """The environment of a run; ResourceError for what a damaged one lacks."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> Any:
        """Raise the error."""
        raise ResourceError(f"{self.path} is damaged: it lacks `{name}`")


class _Older(BaseModel, extra="allow", strict=True):
    """The older run that a run goes on from: its folder's name, and what has changed since."""

    name: str
    manifest_sha256: str
    known: NonNegativeInt = 0  # photos
    new: NonNegativeInt = 0
    gone: NonNegativeInt = 0
    renamed: NonNegativeInt = 0
    changed: NonNegativeInt = 0
    relabelled: NonNegativeInt = 0
    new_classes: list[str] = []
    lost_classes: list[str] = []


class _Environment(BaseModel, extra="allow", strict=True):
    """The values of `environment.json` that are reckoned with or shown."""

    photos: str
    photos_found: NonNegativeInt = 0
    parts: PositiveInt = 1
    threads: int = Field(1, ge=1, le=4096)
    versions: dict[str, str] = {}
    command: list[str] = []
    collection: str = ""
    crop: str = ""
    weights_sha256: str = ""
    weights_license: str = ""
    probe_seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    started: str = ""
    platform: str = ""
    device: str = ""
    parameters: NonNegativeInt = 0
    older: _Older | None = None


def read_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file, which must be stored as they are: sizes are bounded."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise ValueError("compressed arrays")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _require_numbers(row: Mapping[str, str | None], columns: Sequence[str]) -> None:
    """Raise ValueError for a row that lacks a column or holds no number, where one belongs."""
    if {*row} != {*columns} or None in row.values():
        raise ValueError(f"columns {', '.join(map(str, row))}")
    if not all(row[name] for name in ("fold", "epoch", "seconds", "parts") if name in row):
        raise ValueError("a row without its number, seconds or parts")
    for name, text in row.items():
        if text and name not in {"model", "tensor", "diverged"} and not math.isfinite(float(text)):
            raise ValueError(f"`{name}` = {text}")


def create(
    folder: Path,
    recipe_: Recipe,
    given: Catalog,
    catalog: Catalog,
    start: Arrays,
    environment: Mapping[str, Any],
    probes: Sequence[Arrays] = (),
    starts: Sequence[Arrays] = (),
    older: tuple[Run, Sequence[Photo]] | None = None,
) -> Run:
    """Write what a run starts from. The folder may hold an attempt that did not get so far.

    `probes` are the folds' heads, if they were fitted; `starts` the folds' weights, and `older` the
    run that they are from and all photos known then, where it goes on from one.
    """
    files.make_folder(folder / "folds")
    files.write_text(folder / "recipe.toml", recipe.to_toml(recipe_, comments=True))
    catalogs.write_rows(folder / GIVEN, given)
    catalogs.write_rows(folder / "catalog.csv", catalog)
    files.write_json(folder / "environment.json", {"format": FORMAT, **environment})
    files.write_bytes(folder / "start.safetensors", _serialised(start))
    names = []
    for place, each in ((PROBE, probes), (OLDER, starts)):
        if each:
            files.make_folder(folder / place)
        for fold, found in enumerate(each):
            names.append(f"{place}/{fold}.safetensors")
            files.write_bytes(folder / names[-1], _serialised(found))
    if older:
        run, photos = older
        names += [f"{OLDER}/catalog.csv", f"{OLDER}/oof.csv"]
        known = catalog.of(catalogs.in_columns(photos))
        catalogs.write_rows(folder / OLDER / "catalog.csv", known)
        files.write_csv(folder / OLDER / "oof.csv", ("sha256", "predicted"), _predicted(run))
    files.write_manifest(folder, [*SETUP_FILES, *names], name=SETUP)
    return Run(folder)


def _predicted(run: Run) -> list[tuple[str, str]]:
    """Return the SHA-256 of a run's training photos, each with the class predicted out of fold."""
    photos = run.catalog.photos
    return [
        (photos[row].sha256, run.classes[answer])
        for fold, logits in run.judged.items()
        for row, answer in zip(run.folds[fold].test, logits.argmax(axis=1), strict=True)
    ]


def given(folder: Path, root: Path, manifest: str) -> Catalog | None:
    """Return the collection as `folder` keeps it; None if an older version began that folder."""
    if GIVEN not in files.read_manifest(folder, name=manifest):
        return None
    with files.parsing(folder / GIVEN):
        files.verify(folder, [GIVEN], name=manifest)
        return catalogs.read_rows(folder / GIVEN, root)


def save_fold(run: Run, fold: int, result: TrainedFold) -> None:
    """Write a fold's results, its manifest last, and remove its checkpoints."""
    folder = run.fold_folder(fold)
    files.make_folder_within(folder)
    files.write_bytes(folder / "weights.safetensors", _serialised(result.weights))
    files.write_csv(folder / "history.csv", HISTORY, _cells(result.history, HISTORY))
    files.write_csv(folder / "merges.csv", MERGES, _cells(result.merges, MERGES))
    files.write_bytes(folder / "predictions.npz", _packed(result))
    replicas = [f"replica-{n}.safetensors" for n in range(1, len(result.replicas) + 1)]
    for name, weights in zip(replicas, result.replicas, strict=True):
        files.write_bytes(folder / name, _serialised(weights))
    files.write_manifest(folder, [*FOLD_FILES, *replicas])
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def finish(run: Run) -> None:
    """Write the results of a run whose folds are all done, its manifest last."""
    write_oof(run)
    files.write_json(run.folder / "summary.json", summary(run))
    files.write_manifest(run.folder, _all_files(run))


def write_oof(run: Run) -> None:
    """Write `oof.csv`: one row a training photo, in catalog order, with every probability.

    They are those that the scores judge: of the saved weights, or with `stop = fold` cross-fitted.
    """
    header = ["path", "label", "fold", "predicted", "confidence"]
    header += [f"p:{name}" for name in run.classes]
    files.write_csv(run.folder / "oof.csv", header, _judged_rows(run))


def _judged_rows(run: Run) -> Iterator[list[object]]:
    """The rows of `oof.csv`; never more probabilities in memory than those of some rows."""
    for start in range(0, len(run.catalog), _AT_ONCE):
        photos = run.catalog.photos[start : start + _AT_ONCE]
        probabilities = np.zeros((len(photos), len(run.classes)))
        for fold, logits in run.judged.items():
            test = run.folds[fold].test  # ascending
            first, end = np.searchsorted(test, (start, start + len(photos)))
            probabilities[test[first:end] - start] = metrics.softmax(logits[first:end])
        for photo, row in zip(photos, probabilities, strict=True):
            if photo.split == "train":
                yield [
                    photo.path,
                    photo.label,
                    photo.fold,
                    run.classes[int(row.argmax())],
                    f"{row.max():.6g}",
                    *(f"{value:.6g}" for value in row),
                ]


def summary(run: Run) -> dict[str, Any]:
    """The machine-readable results."""
    scores = run.scores
    return {
        "format": FORMAT,
        "complete": run.done == list(range(run.recipe.folds)),
        "classes": len(run.classes),
        "photos": scores.photos,
        "collection": run.environment.get("collection", ""),  # older versions did not keep it
        "older": run.environment.get("older"),
        "folds": run.recipe.folds,
        "replicas": run.recipe.replicas,
        "accuracy": scores.accuracy,
        "accuracy_interval": list(scores.interval),
        "accuracy_per_fold": [scores.accuracy_per_fold[fold] for fold in run.done],
        "selected_accuracy": scores.selected_accuracy,
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
        "top_5_accuracy": scores.top_5_accuracy,
        "log_loss": scores.log_loss,
        "calibration_error": scores.calibration_error,
        "temperature": scores.temperature,
        "scaled_log_loss": scores.scaled_log_loss,
        "scaled_calibration_error": scores.scaled_calibration_error,
        "groups": None if run.by_group is None else {"unit": run.unit} | asdict(run.by_group),
        "events": None if run.by_event is None else asdict(run.by_event),
        "intervals": {name: list(interval) for name, interval in scores.intervals.items()},
        "unknown": None if run.unknown is None else asdict(run.unknown),
        "ranks": [asdict(rank) for rank in run.trust.ranks],
        "promise": asdict(run.trust.promise),
        "promise_kept": _record(run.trust.kept),
        "seconds": run.seconds,
    }


def _record(kept: Kept | None) -> dict[str, Any] | None:
    """Return what is kept of a promise, in JSON's values."""
    if kept is None:
        return None
    return asdict(kept) | {"right": kept.right if kept.answered else None}


def _require_some_fold(run: Run) -> None:
    if not run.done:
        raise ResourceError(
            f"no fold of `{run.folder}` is trained yet", hint="the same fit command resumes it"
        )


def _provenance(run: Run) -> dict[str, Any]:
    """Return the origin of a classifier, without paths of this machine."""
    known = run.environment
    accuracy, interval = scoring.accuracy(
        run.judged,
        run.by_fold(run.targets, run.judged),
        run.by_fold(run.groups, run.judged),
    )
    photos = [photo.sha256 for photo in run.catalog.photos if photo.split == "train"]
    recipe = run.recipe.model_dump(mode="json", exclude={"cache", "cluster"})
    return {
        "recipe": {**recipe, "weights": Path(run.recipe.weights).name},
        "older": known.get("older"),
        "training_photos": len(photos),
        "training_photos_sha256": hashlib.sha256("".join(sorted(photos)).encode()).hexdigest(),
        "versions": known["versions"],
        "weights_sha256": known["weights_sha256"],
        "out_of_fold_accuracy": accuracy,
        "out_of_fold_interval": list(interval),
    }


def _all_files(run: Run) -> list[str]:
    folds = [
        f"folds/{fold}/{name}"
        for fold in range(run.recipe.folds)
        for name in [*files.read_manifest(run.fold_folder(fold)), files.MANIFEST]
    ]
    setup = files.read_manifest(run.folder, name=SETUP)  # of an older version's run without `given`
    return [*setup, SETUP, *folds, *RESULT_FILES]


def _serialised(weights: Arrays) -> bytes:
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    return save_tensors(arrays, {"format": "pt"})


def _packed(result: TrainedFold) -> bytes:
    content = io.BytesIO()
    np.savez(
        content,
        logits=result.logits,
        epoch_logits=result.epoch_logits,
        chosen_epoch=np.array(result.chosen_epoch),
    )
    return content.getvalue()


def _cells(rows: Sequence[Mapping[str, Any]], header: Sequence[str]) -> list[list[object]]:
    """Rows in the header's order. None and what a row lacks become empty; floats keep 6 digits."""
    return [[_cell(row.get(name)) for name in header] for row in rows]


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
