"""What crops by boxes bring: small animals in large pictures, seen whole and cut out.

Usage: python benchmarks/crops.py PHOTOS WEIGHTS [--seeds 3]

PHOTOS has a folder a class, such as ../shared/data/nature100/train. Each photo of six classes, a
quarter of the picture's height, lies somewhere in a blurred picture of another class, as an animal
does before a camera trap; its box is written as MegaDetector writes it, beside a weak one and one
of a person. Printed are accuracies out of fold of whole pictures and of crops, paired by seed.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fieldguide as fg

CLASSES, EACH, WIDTH, HEIGHT, SIDE = 6, 36, 640, 480, 96


def scenes(photos: Path, out: Path, seed: int) -> None:
    """Write the pictures, a folder a class, and `boxes.json`."""
    rng = np.random.default_rng(seed)
    folders = sorted(folder for folder in photos.iterdir() if folder.is_dir())
    step = len(folders) // CLASSES
    grounds = [file for folder in folders[1::step] for file in sorted(folder.glob("*.jpg"))[:9]]
    images = []
    for folder in folders[::step][:CLASSES]:
        (out / "photos" / folder.name).mkdir(parents=True)
        for file in sorted(folder.glob("*.jpg"))[:EACH]:
            with Image.open(grounds[rng.integers(len(grounds))]) as ground:
                scene = ground.convert("RGB").resize((24, 18)).resize((WIDTH, HEIGHT))
            with Image.open(file) as photo:
                animal = photo.convert("RGB")
            animal.thumbnail((HEIGHT // 4, HEIGHT // 4))
            left = int(rng.integers(WIDTH - animal.width))
            top = int(rng.integers(HEIGHT - animal.height))
            scene.paste(animal, (left, top))
            path = f"{folder.name}/{file.name}"
            scene.save(out / "photos" / path, quality=90)
            shares = left / WIDTH, top / HEIGHT, animal.width / WIDTH, animal.height / HEIGHT
            found = [
                {"category": "1", "conf": 0.9, "bbox": [round(share, 4) for share in shares]},
                {"category": "1", "conf": 0.1, "bbox": [0.4, 0.4, 0.2, 0.2]},
                {"category": "2", "conf": 0.9, "bbox": [0.1, 0.1, 0.2, 0.2]},
            ]
            images.append({"file": path, "detections": found})
    said = {"images": images, "detection_categories": {"1": "animal", "2": "person"}}
    (out / "boxes.json").write_text(json.dumps(said))


def measure(photos: Path, weights: Path, seed: int) -> tuple[float, float]:
    """Return the accuracies out of fold of whole pictures and of crops."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes(photos, folder, seed)
        recipe = fg.Recipe(
            backbone="resnet18", weights=str(weights), size=SIDE, eval_resize=SIDE, mix="none",
            folds=2, epochs=6, batch_size=24, replicas=1, merge="none", seed=seed, cache="none",
            head_start="random", head_rate=1e-3,
        )  # fmt: skip
        whole = fg.read(folder / "photos")
        crops = fg.read(folder / "photos", crop="box", boxes=folder / "boxes.json")
        found = [
            fg.fit(catalog, recipe, out=folder / f"run-{number}").scores.accuracy
            for number, catalog in enumerate((whole, crops))
        ]
    print(f"seed {seed}: whole {found[0]:.1%}, crops {found[1]:.1%}", flush=True)
    return found[0], found[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    found = np.array([measure(asked.photos, asked.weights, seed) for seed in range(asked.seeds)])
    gains = 100 * (found[:, 1] - found[:, 0])
    print(f"{CLASSES} classes, {CLASSES * EACH} pictures, n = {asked.seeds} seeds")
    print(f"torch {torch.__version__}, {platform.machine()}")
    print(f"whole {found[:, 0].mean():.1%}, crops {found[:, 1].mean():.1%}")
    print(f"gain {gains.mean():+.1f} points ({', '.join(f'{gain:+.1f}' for gain in gains)})")


if __name__ == "__main__":
    main()
