"""Why a run answers as it does: where its network looked, and the training photos most alike.

Needs the run and its photos; knows nothing of HTTP.
"""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from fieldguide.network.network import Network, load_weights
from fieldguide.photos.augment import normalise
from fieldguide.photos.decoding import centre
from fieldguide.predict import combine
from fieldguide.predict.inference import template
from fieldguide.report import pictures
from fieldguide.runs.run import Run
from fieldguide.study import similar
from fieldguide.study.activation import grad_cam, scaled

SIDE = 192  # pixels of pictures
ALIKE = 4


@dataclass(eq=False)
class Explainer:
    """A run that explains, by the soup of its folds."""

    run: Run

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def explain(self, square: UInt8[np.ndarray, "side side 3"], label: str) -> dict[str, Any]:
        """Return where the network sees a class in a photo that was prepared, and what is alike.

        Pictures are data URIs. The first call looks at all training photos, unless the cache has
        their features. Raises `DataError` where these are gone.
        """
        with self._lock:
            known, rows = self._known
            size = self.run.recipe.eval_size
            shown = np.ascontiguousarray(centre(square, size, size))
            heat, features = self._looked(shown, self.run.classes.index(label))
            likes = similar.nearest(features, known, rows, ALIKE)
        return {
            "class": label,
            "heat": pictures.overlay(shown, heat, SIDE).uri,
            "similar": [self._like(each) for each in likes],
        }

    def _looked(
        self, shown: UInt8[np.ndarray, "size size 3"], label: int
    ) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, " channels"]]:
        """Return the heat of a class and the features of a picture."""
        recipe = self.run.recipe
        images = torch.from_numpy(shown).permute(2, 0, 1)[None]
        ready = normalise(images, recipe.mean, recipe.std)
        heat = scaled(grad_cam(self._network, ready, torch.tensor([label])))[0]
        with torch.inference_mode():
            _, features = self._network(ready, features=True)
        return heat.numpy(), features[0].numpy().astype(np.float64)

    def _like(self, like: similar.Like) -> dict[str, Any]:
        photo = self.run.catalog.photos[like.photo]
        shown = pictures.picture(self.run.catalog.file(photo), SIDE, sha256=photo.sha256)
        return {
            "path": photo.path,
            "class": photo.label,
            "similarity": like.similarity,
            "picture": shown.uri,
        }

    @cached_property
    def _network(self) -> Network:
        ingredients = self.run.ingredients()
        network = template(ingredients.architecture)
        load_weights(network, combine.soup(ingredients, "soup").members[0])
        return network.eval()

    @cached_property
    def _known(self) -> tuple[Float[np.ndarray, "n channels"], Any]:
        return similar.training_features(self.run)
