"""Predictions in MegaDetector's batch form, which Timelapse, AddaxAI and camtraptools read.

A photo that was seen whole is one detection that fills it; one of crops has a detection a box. It
is version 1.4 of the form; camtraptools 0.8.1 imported 527 of 527 photos. Knows nothing of models.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fieldguide.analysis.taxa import Taxonomy
from fieldguide.photos.crops import parted
from fieldguide.predict.tables import NO_BOX, Predictions
from fieldguide.storage import files
from fieldguide.words import installed

# Fields of a taxon as SpeciesNet writes them, after an id and before the common name.
RANKS = ("class", "order", "family", "genus", "species")
SURE = 1.0  # of a box: which ones count was decided before; tools show those above 0.2 or more


class Results:
    """The images of a file of results, in order, while predictions come."""

    def __init__(self, classes: Sequence[str], taxonomy: Taxonomy | None, top: int) -> None:
        self.classes, self.taxonomy, self.top = classes, taxonomy, top
        self.detections: dict[str, list[dict[str, Any]]] = {}
        self.images: list[dict[str, Any]] = []

    def crops(self, chunks: Iterable[Predictions]) -> Iterator[Predictions]:
        """Yield predictions of crops or whole photos, kept as detections."""
        for chunk in chunks:
            for row, (name, problem) in enumerate(zip(chunk.names, chunk.problems, strict=True)):
                photo, crop = parted(name)
                if not problem:
                    found = self._detection(crop, chunk.probabilities[row])
                    self.detections.setdefault(photo, []).append(found)
            yield chunk

    def photos(self, chunks: Iterable[Predictions]) -> Iterator[Predictions]:
        """Yield predictions of photos, kept with their detections."""
        for chunk in chunks:
            for name, problem in zip(chunk.names, chunk.problems, strict=True):
                lost = problem not in ("", NO_BOX)
                kept: dict[str, Any] = {"failure": problem} if lost else {}
                self.images.append(
                    {
                        "file": name,
                        "detections": None if lost else self.detections.get(name, []),
                        **kept,
                    }
                )
            yield chunk

    def _detection(self, crop: str, probabilities: np.ndarray) -> dict[str, Any]:
        best = np.argsort(-probabilities, kind="stable")[: self.top].tolist()
        box = [float(side) for side in crop.split()[1:]] if crop else [0.0, 0.0, 1.0, 1.0]
        ranked = [[str(number), round(float(probabilities[number]), 5)] for number in best]
        return {"category": "1", "conf": SURE, "bbox": box, "classifications": ranked}

    def write(self, out: Path, model: str) -> None:
        """Write the results; `model` is what the classifier is called."""
        info = {
            "format_version": "1.4",
            "detector": "unknown",
            "classifier": f"fieldguide {installed()[1]}: {model}",
            "classification_completion_time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        }
        numbered = {str(number): name for number, name in enumerate(self.classes)}
        files.write_json(
            out,
            {
                "info": info,
                "detection_categories": {"1": "animal"},
                "classification_categories": numbered,
                "classification_category_descriptions": {
                    key: self._described(int(key)) for key in numbered
                },
                "images": self.images,
            },
        )

    def _described(self, number: int) -> str:
        """Return a class with its taxa in seven fields, of which the first, an id, is empty."""
        own = {}
        if self.taxonomy is not None:
            ranks = (rank.lower() for rank in self.taxonomy.ranks)
            own = dict(zip(ranks, self.taxonomy.taxa[number], strict=True))
        taxa = [own.get(rank, "").lower().replace(";", ",") for rank in RANKS]
        taxa[-1] = taxa[-1].rpartition(" ")[2]  # of a binomial the epithet
        return ";".join(["", *taxa, self.classes[number].replace(";", ",")])
