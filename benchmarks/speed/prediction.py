"""How fast photos are predicted: against an eager float32 timm loop, and by several networks."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import timm
import torch
from harness import Options, Row, Target, cost_of, in_turn, rates
from material import BATCH, collection, trained_run
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from fieldguide.merge import Weights
from fieldguide.predict import inference
from fieldguide.predict.card import Architecture

SIZE, LARGE_SIZE = 128, 224
MEMBERS = 3


def predict(options: Options) -> Iterator[Row]:
    """One network's and several networks' logits of photos in files."""
    usual = 128 if options.large else 1024
    photos = collection(options, options.photos or usual, large=options.large)
    run = trained_run(options, size=LARGE_SIZE if options.large else SIZE)
    ingredients = run.ingredients()
    architecture, [member] = ingredients.architecture, ingredients.fold_weights([0])
    one, several, peer = in_turn(
        [
            lambda: cost_of(partial(ours, architecture, [member], photos.files)),
            lambda: cost_of(partial(ours, architecture, [member] * MEMBERS, photos.files)),
            lambda: cost_of(partial(timm_loop, architecture, photos.files)),
        ],
        options.rounds,
    )
    name = f"{architecture.backbone}@{architecture.size} {architecture.precision}"
    a, b, m = (rates(costs, "cpu", len(photos.files)) for costs in (one, peer, several))
    what = f"{name}: inference.logits vs an eager float32 timm loop"
    yield Row("predict", what, a, b, "photos/s", "cpu", Target("≥", 2.3), photos=photos.about)
    what = f"{name}: ensemble of {MEMBERS} vs {MEMBERS} x one member"
    alone = tuple(rate / MEMBERS for rate in a)
    target = Target("≥", 1 / 0.9)  # at most 0.9 of the time
    yield Row("predict-ensemble", what, m, alone, "photos/s", "cpu", target, photos=photos.about)


def ours(architecture: Architecture, members: Sequence[Weights], files: Sequence[Path]) -> None:
    """All photos, start of the networks included."""
    for _ in inference.logits(architecture, members, files, inference.Machine(device="cpu")):
        pass


def timm_loop(architecture: Architecture, files: Sequence[Path]) -> None:
    """The same photos as timm's documentation shows it, in batches."""
    network = timm.create_model(architecture.backbone, num_classes=architecture.classes).eval()
    shape = (3, architecture.size, architecture.size)
    config = resolve_data_config({"input_size": shape}, model=network)  # type: ignore[no-untyped-call]
    transform = create_transform(**config)
    with torch.no_grad():
        for start in range(0, len(files), BATCH):
            pictures = [Image.open(path).convert("RGB") for path in files[start : start + BATCH]]
            network(torch.stack([transform(picture) for picture in pictures]))
