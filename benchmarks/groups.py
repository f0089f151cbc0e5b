"""What groups do to the number: bursts at four places, and a fifth that no fold has seen.

Usage: python benchmarks/groups.py PHOTOS WEIGHTS [--seeds 3]

PHOTOS has a folder a class, such as ../shared/data/nature100/train. Of six classes each photo
becomes a burst of three frames (shifted by a few pixels, with noise and other light) at one of four
places. A place has a cast of its own, something in the foreground, and a favourite class, which
most of its photos are of. The fifth place shows other photos of the classes, all equally often.
Printed are accuracies out of fold without groups, by event and by place, the accuracy of the
ensemble at the fifth place, and their differences, paired by seed.
"""

import argparse
import csv
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fieldguide as fg

CLASSES, EACH, PLACES, SIDE = 6, 12, 4, 96
GROUPS = ("none", "event", "place")


def frame(photo: Image.Image, place: int, rng: np.random.Generator) -> Image.Image:
    """A photo as the camera of a place sees it: nearly the same at each call."""
    own = np.random.default_rng(1000 + place)
    cast, bars = own.uniform(0.5, 1.1, 3), own.integers(0, 2 * SIDE, 5)
    left, top = rng.integers(0, 5, 2)
    small = photo.resize((SIDE + 8, SIDE + 8)).crop((left, top, left + SIDE, top + SIDE))
    values = np.asarray(small).astype(float) * cast * rng.uniform(0.85, 1.15)
    for bar in bars:  # branches before the lens
        if bar < SIDE:
            values[:, bar : bar + 5] = own.uniform(0, 90, 3)
        else:
            values[bar - SIDE : bar - SIDE + 5] = own.uniform(0, 90, 3)
    values += rng.normal(0, 6, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def dress(photos: Path, out: Path, seed: int) -> tuple[Path, Path]:
    """Write the frames and two tables: of the four places, and of the fifth."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, str, str, str]] = []
    away: list[tuple[str, str]] = []
    folders = sorted(folder for folder in photos.iterdir() if folder.is_dir())
    for number, folder in enumerate(folders[:: len(folders) // CLASSES][:CLASSES]):
        files = sorted(folder.glob("*.jpg"))[: 2 * EACH]
        for at, file in enumerate(files):
            with Image.open(file) as opened:
                photo = opened.convert("RGB")
            known = at < EACH
            place = number % PLACES if rng.random() < 0.7 else int(rng.integers(PLACES))
            place = at if at < PLACES else place  # each class at every place
            for shot in range(3 if known else 1):
                path = out / "frames" / f"{number}_{at:02d}_{shot}.jpg"
                path.parent.mkdir(exist_ok=True, parents=True)
                frame(photo, place if known else PLACES, rng).save(path, quality=88)
                if known:
                    rows.append((str(path), folder.name, f"{number}-{at}", f"place {place}"))
                else:
                    away.append((str(path), folder.name))
    for name, header, lines in (
        ("near.csv", ("path", "label", "event", "place"), rows),
        ("away.csv", ("path", "label"), away),
    ):
        with (out / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
    return out / "near.csv", out / "away.csv"


def measure(photos: Path, weights: Path, seed: int) -> dict[str, tuple[float, float]]:
    """Return accuracies out of fold and at the fifth place, by groups."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        near, away = dress(photos, Path(folder), seed)
        unseen = fg.read_table(away)
        for group in GROUPS:
            recipe = fg.Recipe(
                backbone="resnet18", weights=str(weights), size=SIDE, eval_resize=SIDE,
                folds=2, epochs=4, batch_size=24, replicas=2, seed=seed, cache="none",
                head_start="random", head_rate=1e-3,
            )  # fmt: skip
            run = fg.fit(fg.read_table(near, group=group), recipe, out=Path(folder) / group)
            shown = run.classifier("ensemble").predict(unseen)
            labels = [photo.label for photo in unseen.photos]
            named = [shown.classes[best] for best in shown.probabilities.argmax(axis=1)]
            right = np.mean([a == b for a, b in zip(named, labels, strict=True)])
            found[group] = run.scores.accuracy, float(right)
            print(f"seed {seed}, groups {group}: {found[group]}", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    found = [measure(asked.photos, asked.weights, seed) for seed in range(asked.seeds)]
    print(f"{CLASSES} classes, {CLASSES * EACH} bursts of 3, n = {asked.seeds} seeds")
    print(f"torch {torch.__version__}, {platform.machine()}")
    for group in GROUPS:
        own, away = (np.array([each[group][at] for each in found]) for at in (0, 1))
        gap = own - away
        print(
            f"{group:6} out of fold {own.mean():.1%} ({own.min():.1%} to {own.max():.1%}),"
            f" fifth place {away.mean():.1%} ({away.min():.1%} to {away.max():.1%}),"
            f" too good by {100 * gap.mean():+.1f} ({', '.join(f'{100 * g:+.1f}' for g in gap)})"
        )


if __name__ == "__main__":
    main()
