"""CPU time a photo of `transforms` against torchvision's transforms.v2 on PIL pictures, in turn.

python benchmarks/augmentation.py --sizes 128 224 --rounds 7 --photos 64

Both get the same decoded photos and the same seeds, and give equal pixels but for rounding. Rows
named `alone` get photos of the size asked for, so that nothing is cropped or resized.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image

from fieldguide.photos import augment, transforms

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference_transforms import training_transform

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "nature100"
MEAN = (0.485, 0.456, 0.406)
MARGIN = 1.2  # shorter side of the decoded photos, over the size asked for

# The recipes' default colours, always applied, and nothing else.
PLAIN = augment.Augmentation(
    size=0,
    interpolation="bilinear",
    crop_scale=(0.35, 1.0),
    flip=0.5,
    color_jitter=0.0,
    jitter=(0.2, 0.2, 0.2, 0.02),
    grayscale=0.0,
    policy="none",
    erasing=0.0,
)
BICUBIC = replace(PLAIN, interpolation="bicubic")
WHOLE = replace(PLAIN, crop_scale=(1.0, 1.0), flip=0.0)
WHOLE_BICUBIC = replace(WHOLE, interpolation="bicubic")

CASES = {
    "crop, flip": PLAIN,
    "crop, flip, bicubic": BICUBIC,
    "crop, flip, jitter": replace(PLAIN, color_jitter=1.0),
    "crop, flip, randaugment": replace(PLAIN, policy="randaugment"),
    "crop, flip, randaugment, bicubic": replace(BICUBIC, policy="randaugment"),
    "crop, flip, trivialaugment": replace(PLAIN, policy="trivialaugment"),
    "crop, flip, augmix": replace(PLAIN, policy="augmix"),
    "jitter alone": replace(WHOLE, color_jitter=1.0),
    "randaugment alone": replace(WHOLE, policy="randaugment"),
    "randaugment alone, bicubic": replace(WHOLE_BICUBIC, policy="randaugment"),
    "trivialaugment alone": replace(WHOLE, policy="trivialaugment"),
    "augmix alone": replace(WHOLE, policy="augmix"),
}


@dataclass(frozen=True)
class Spread:
    """Median of the rounds, with the least and the most."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value a round."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.middle:8.3g} ({self.low:.3g} … {self.high:.3g})"


def pictures(count: int, side: int) -> list[Image.Image]:
    """Real photos with that shorter side where ../shared is, else composed ones of 4 : 3."""
    files = sorted(PHOTOS.rglob("*.jpg"))
    files = files[:: max(1, len(files) // count)]
    if files:
        opened = [Image.open(file).convert("RGB") for file in files[:count]]
        return [each.resize(_shorter(each.size, side)) for each in opened]
    draws = np.random.default_rng(0)
    coarse = [draws.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(each).resize((side * 4 // 3, side)) for each in coarse]


def _shorter(size: tuple[int, int], side: int) -> tuple[int, int]:
    return side * size[0] // min(size), side * size[1] // min(size)


def microseconds(change: Callable[[int, int], object], photos: int, seed: int) -> float:
    """CPU time a photo, of this whole process; photo and seed are passed by number."""
    started = time.process_time()
    for number in range(photos):
        change(number, seed * photos + number)
    return (time.process_time() - started) / photos * 1e6


def compared(
    settings: augment.Augmentation, photos: list[Image.Image], rounds: int
) -> tuple[Spread, Spread, Spread]:
    """v2, ours, and their ratio round by round."""
    arrays = [np.asarray(photo) for photo in photos]
    plain, ours = training_transform(settings, MEAN), transforms.training(settings, MEAN)

    def by_v2(number: int, seed: int) -> object:
        torch.manual_seed(seed)
        return plain(photos[number])

    def by_us(number: int, seed: int) -> object:
        return ours(arrays[number], seed)

    microseconds(by_v2, len(photos), 0), microseconds(by_us, len(photos), 0)  # warms caches
    pairs = [
        (microseconds(by_v2, len(photos), seed), microseconds(by_us, len(photos), seed))
        for seed in range(1, rounds + 1)
    ]
    return (
        Spread.of([first for first, _ in pairs]),
        Spread.of([second for _, second in pairs]),
        Spread.of([first / second for first, second in pairs]),
    )


def environment() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, one thread",
        "photos": "nature100" if PHOTOS.is_dir() else "composed",
    }


def main() -> None:
    """Prints a line a case, then the same as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        json.dumps(environment() | {"rounds": arguments.rounds, "photos a round": arguments.photos})
    )
    lines = []
    print(f"{'size':>4}  {'case':<34} {'v2 µs':>26} {'ours µs':>26} {'ratio':>26}")
    for size in arguments.sizes:
        decoded = pictures(arguments.photos, round(MARGIN * size))
        square = [each.resize((size, size)) for each in decoded]
        for case in arguments.cases:
            photos = square if "alone" in case else decoded
            settings = replace(CASES[case], size=size)
            found = compared(settings, photos, arguments.rounds)
            print(f"{size:>4}  {case:<34} " + " ".join(f"{each!s:>26}" for each in found))
            spreads = [
                {name: round(value, 2) for name, value in vars(each).items()} for each in found
            ]
            named = dict(zip(("v2_us", "ours_us", "ratio"), spreads, strict=True))
            lines.append({"size": size, "case": case} | named)
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
