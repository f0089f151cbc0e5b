"""What a page says of the model that answers on it."""

from typing import Any

from fieldguide.predict.model import Model

COVERAGE = 0.95  # of the sets of classes on pages


def about(model: Model, *, explains: bool = False) -> dict[str, Any]:
    """Return what a page says of a model."""
    card = model.card
    provenance = card.provenance
    return {
        "classes": list(card.classes),
        "network": card.architecture.backbone,
        "members": list(card.members),
        "crop": card.crop,
        "accuracy": provenance.get("out_of_fold_accuracy"),
        "interval": provenance.get("out_of_fold_interval"),
        "photos": card.calibration.get("photos"),
        "coverage": COVERAGE,
        "explains": explains,
    }
