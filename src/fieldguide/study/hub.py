"""A network as timm and the Hugging Face Hub know it: `config.json` and `model.safetensors`.

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads it, with our sizes, licence and label
names. The temperature is divided out of the last layer, so that its softmax is calibrated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save as save_tensors
from torch import Tensor

from fieldguide.errors import ResourceError, UsageError
from fieldguide.photos.augment import normalise
from fieldguide.photos.decoding import centre
from fieldguide.predict import inference
from fieldguide.predict.classifier import Classifier
from fieldguide.storage import files
from fieldguide.words import first_line

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOLERANCE = 1e-5


def require_one(classifier: Classifier) -> None:
    """Raise `UsageError` for more than one network, or another head than timm's."""
    head = classifier.card.architecture.head
    if len(classifier.members) > 1:
        raise UsageError(
            "timm's form holds one network, and this is an ensemble",
            hint="--combine soup, or tuned, or fold-0",
        )
    if head != "linear":
        raise UsageError(f"timm's networks have linear heads, and this one's is `{head}`")


def write(place: Path, classifier: Classifier) -> list[str]:
    """Write the network's files to a folder, and return their names; see `require_one`."""
    own, card = classifier.card.architecture, classifier.card
    model: Any = timm.create_model(own.backbone, pretrained=False, num_classes=own.classes)
    given = model.pretrained_cfg
    if not isinstance(given["classifier"], str):
        raise UsageError(f"{own.backbone} has several last layers, which a run's does not")
    (weights,) = classifier.members
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in weights.items()
        if name.startswith("backbone.")
    }
    for kind in ("weight", "bias"):
        shape = model.get_parameter(f"{given['classifier']}.{kind}").shape
        tensors[f"{given['classifier']}.{kind}"] = (
            weights[f"head.linear.{kind}"] / card.temperature
        ).reshape(shape)
    config = {
        "architecture": own.backbone.partition(".")[0],
        "num_classes": own.classes,
        "num_features": int(model.num_features),
        "label_names": list(card.classes),
        "pretrained_cfg": {
            "tag": "fieldguide",
            "num_classes": own.classes,
            "input_size": [3, own.size, own.size],
            "interpolation": own.interpolation,
            "crop_mode": "center",
            # timm rounds size / crop_pct down, which is to be `eval_resize`.
            "crop_pct": own.size / (own.eval_resize + 0.5),
            "mean": list(own.mean),
            "std": list(own.std),
            "first_conv": given["first_conv"],
            "classifier": given["classifier"],
            "license": card.license or "unknown",
        },
    }
    content = {name: tensor.detach().contiguous() for name, tensor in sorted(tensors.items())}
    files.write_json(place / CONFIG, config)
    files.write_bytes(place / WEIGHTS, save_tensors(content))
    return [CONFIG, WEIGHTS]


def prove(
    place: Path, classifier: Classifier, squares: Sequence[UInt8[np.ndarray, "side side 3"]]
) -> None:
    """Raise `ResourceError` where timm reads another network from the folder than the run's."""
    own = classifier.card.architecture
    try:
        model = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    except Exception as error:  # whatever timm raises
        raise ResourceError(f"timm cannot read the network: {first_line(error)}") from error
    shown = [centre(each, own.size, own.size) for each in squares]
    expected = inference.logits_of(own, classifier.members, shown)[0]
    expected = expected / classifier.card.temperature
    found = _logits(model, shown, own)
    off, largest = np.abs(found - expected).max(), np.abs(expected).max()
    if not off <= TOLERANCE * (largest + 1):
        raise ResourceError(
            f"the network that timm reads differs from the run's: logits by up to {off:.3g};"
            " nothing was kept",
            hint=f"timm {timm.__version__} builds {own.backbone} otherwise than the run",
        )


@torch.inference_mode()
def _logits(
    model: Any, shown: Sequence[UInt8[np.ndarray, "size size 3"]], own: Any
) -> Float[np.ndarray, "n classes"]:
    images = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
    logits: Tensor = model(normalise(images, own.mean, own.std))
    found: np.ndarray = logits.numpy()
    return found
