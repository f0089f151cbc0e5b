"""What the search for copies finds, and what it takes for one: both figures of one function.

    python benchmarks/near_copies.py --photos ../shared/data/nature100 --number 300

Makes a copy of each of some photos by every transformation and looks for it among the originals, by
its pixels alone: names tell nothing. Then looks among all photos of the folder, where pairs of
different classes are certainly none, and among frames of fixed cameras: a photo with small animals
pasted anywhere, or nothing, each frame with light and noise of its own. Prints one table, and the
processor time of the search and of reading and decoding. It runs on older checkouts too
(PYTHONPATH).
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from fieldguide.photos.catalog import Catalog
from fieldguide.photos.folders import scan_unlabelled
from fieldguide.photos.inspect import inspect
from fieldguide.photos.near_copies import duplicates

Flip = Image.Transpose
Change = Callable[[Image.Image], Image.Image]
FRAMES = 12  # of each scene with animals, and as many without


def cropped(left: float, top: float, right: float, bottom: float) -> Change:
    """Return a crop by these shares of the sides."""

    def crop(photo: Image.Image) -> Image.Image:
        w, h = photo.size
        return photo.crop(
            (round(w * left), round(h * top), w - round(w * right), h - round(h * bottom))
        )

    return crop


def encoded(kind: str, quality: int) -> Change:
    """Return what a photo looks like after this compression."""

    def encode(photo: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        photo.save(buffer, kind, quality=quality)
        return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")

    return encode


def resized(scale: float) -> Change:
    """Return a photo of other size."""
    return lambda photo: photo.resize((round(photo.width * scale), round(photo.height * scale)))


def hue(photo: Image.Image) -> Image.Image:
    """Return a photo with its hues turned by 30°."""
    h, s, v = photo.convert("HSV").split()
    return Image.merge("HSV", (h.point(lambda x: (x + 21) % 256), s, v)).convert("RGB")


def brighter(factor: float) -> Change:
    """Return a photo of other brightness."""
    return lambda photo: ImageEnhance.Brightness(photo).enhance(factor)


CHANGES: dict[str, Change] = {
    **{f"JPEG {q}": encoded("JPEG", q) for q in (30, 50, 75, 95)},
    "WebP 60": encoded("WEBP", 60),
    **{f"resized {s:g}": resized(s) for s in (0.5, 0.7, 2, 4)},
    "mirrored": lambda p: p.transpose(Flip.FLIP_LEFT_RIGHT),
    "turned by 90°": lambda p: p.transpose(Flip.ROTATE_90),
    "turned by 180°": lambda p: p.transpose(Flip.ROTATE_180),
    "turned by 270°": lambda p: p.transpose(Flip.ROTATE_270),
    "mirrored and turned": lambda p: p.transpose(Flip.TRANSPOSE),
    **{f"cropped {s:.0%}, one side": cropped(s, 0, 0, 0) for s in (0.02, 0.05, 0.1, 0.2)},
    **{f"cropped {s:.0%}, two sides": cropped(s, s, 0, 0) for s in (0.02, 0.05, 0.1, 0.2)},
    **{f"cropped {s:.0%}, centred": cropped(*[s / 2] * 4) for s in (0.02, 0.05, 0.1, 0.2)},
    "rotated by 15°, black corners": lambda p: p.rotate(15),
    **{f"brightness {f - 1:+.0%}": brighter(f) for f in (1.1, 0.9, 1.2, 0.8, 1.4, 0.6)},
    "contrast +30%": lambda p: ImageEnhance.Contrast(p).enhance(1.3),
    "contrast -30%": lambda p: ImageEnhance.Contrast(p).enhance(0.7),
    "gray": lambda p: p.convert("L").convert("RGB"),
    "hue turned by 30°": hue,
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--number", type=int, default=300, help="photos that are copied")
    parser.add_argument("--scenes", type=int, default=20)
    options = parser.parse_args()
    everything = scan_unlabelled(options.photos)
    files = list(everything.files)
    copies = false_alarms(everything)
    draws = np.random.default_rng(0)
    single = np.setdiff1d(np.arange(len(files)), sorted(copies))
    chosen = [files[row] for row in draws.choice(single, options.number, replace=False)]
    with tempfile.TemporaryDirectory() as folder:
        recall(Path(folder), [Image.open(file).convert("RGB") for file in chosen])
    with tempfile.TemporaryDirectory() as folder:
        fixed_camera(Path(folder), files, options.scenes, draws)


def recall(folder: Path, originals: list[Image.Image]) -> None:
    """Print how many copies are found, for each transformation."""
    for name, change in CHANGES.items():
        place = folder / name.replace("/", "_")
        place.mkdir()
        for number, photo in enumerate(originals):
            photo.save(place / f"a{number:05}x.jpg", quality=95)
            change(photo).save(place / f"b{7919 * number % 99991:05}y.jpg", quality=85)
        catalog = scan_unlabelled(place)
        of = {f"a{n:05}x.jpg": n for n in range(len(originals))}
        of |= {f"b{7919 * n % 99991:05}y.jpg": n for n in range(len(originals))}
        number_of = [of[path] for path in catalog.table.column("path")]
        clusters, _, _ = searched(catalog)
        found = {number_of[a] for a, b in pairs(clusters) if number_of[a] == number_of[b]}
        wrong = sum(number_of[a] != number_of[b] for a, b in pairs(clusters))
        said = f"{name:32} {len(found) / len(originals):6.1%} of {len(originals)}"
        print(said + f"   ({wrong} pairs of different photos)" * (wrong > 0), flush=True)


def false_alarms(catalog: Catalog) -> set[int]:
    """Print the pairs among all photos, those of different classes by name, and the time.

    Return the photos that are in a pair.
    """
    clusters, look, search = searched(catalog)
    paths = list(catalog.table.column("path"))
    found = [(paths[one], paths[other]) for one, other in pairs(clusters)]
    wrong = [pair for pair in found if len({*map(class_of, pair)} - {"test"}) > 1]
    print(f"among {len(catalog):,} photos: {len(found)} pairs, {len(wrong)} of different classes")
    for one, other in wrong:
        print(f"  {one}  {other}")
    each = 1000 / len(catalog)
    said = f"reading and decoding {look * each:.2f}, search {search * each:.3f}"
    print(f"seconds of all cores for 1,000 photos: {said}")
    return {row for rows in clusters for row in rows}


def class_of(path: str) -> str:
    """Return the folder that a photo lies in."""
    return Path(path).parent.name


def fixed_camera(folder: Path, files: list[Path], scenes: int, draws: np.random.Generator) -> None:
    """Print what is taken for a copy among frames of one camera."""
    different = alike = wrong = same = largest = 0
    for scene in draws.choice(len(files), scenes, replace=False):
        place = folder / f"{scene}"
        place.mkdir()
        for number in range(2 * FRAMES):
            picture = frame(files, scene, number < FRAMES, draws)
            picture.save(place / f"{number:02}.jpg", quality=85)
        clusters, _, _ = searched(scan_unlabelled(place))
        largest = max([largest, *map(len, clusters)])
        empty = FRAMES * (FRAMES - 1) // 2
        alike += empty
        different += FRAMES * (2 * FRAMES - 1) - empty
        for one, _ in pairs(clusters):
            wrong += one < FRAMES
            same += one >= FRAMES
    print(f"fixed camera, {scenes} scenes of {2 * FRAMES} frames:")
    print(f"  pairs with a different animal called copies: {wrong} of {different}")
    print(f"  pairs that differ in light and noise alone:  {same} of {alike}")
    print(f"  largest cluster: {largest}")


def frame(files: list[Path], scene: int, animal: bool, draws: np.random.Generator) -> Image.Image:
    """Return a photo of 640 × 480, perhaps with an animal of 6 to 20 % of its width."""
    picture = Image.open(files[scene]).convert("RGB").resize((640, 480))
    if animal:
        beast = Image.open(files[draws.integers(len(files))]).convert("RGB")
        width = int(draws.integers(40, 128))
        beast = beast.resize((width, width * 6 // 7))
        place = int(draws.integers(0, 640 - width)), int(draws.integers(0, 480 - width))
        picture.paste(beast, place)
    picture = ImageEnhance.Brightness(picture).enhance(float(draws.uniform(0.85, 1.15)))
    noisy = np.asarray(picture) + draws.normal(0, 4, (480, 640, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def searched(catalog: Catalog) -> tuple[tuple[tuple[int, ...], ...], float, float]:
    """Return the clusters, the processor time of reading and that of the search."""
    begun = time.process_time()
    facts = inspect(catalog)
    read = time.process_time()
    clusters = duplicates(catalog, facts)
    return tuple(clusters), read - begun, time.process_time() - read


def pairs(clusters: tuple[tuple[int, ...], ...]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows in a cluster, ascending."""
    for rows in clusters:
        yield from combinations(rows, 2)


if __name__ == "__main__":
    main()
