"""What is measured on: photos, weights, recipes, and runs that are made of them.

Photos are real ones from ../shared/data/nature100 if they are there, else composed. Knows nothing
of clocks.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Options
from PIL import Image

from fieldguide import Catalog, Recipe, scan
from fieldguide import recipe as recipes
from fieldguide.fitting.fit import fit
from fieldguide.fitting.jobs import fold_jobs
from fieldguide.fitting.progress import Watcher
from fieldguide.fitting.start import create
from fieldguide.runs.run import Run
from fieldguide.train.job import FoldJob

SHARED = Path(__file__).resolve().parents[3] / "shared"
NATURE = SHARED / "data" / "nature100" / "train"

# Photos of a class at least, so that each of ten folds has one.
CLASS_PHOTOS = 10
CLASSES = 100
BATCH = 64

# Pixels (width, height) of composed photos: as nature100's, a camera's, and for a quick look.
USUAL, LARGE, SMALL = (213, 160), (1024, 768), (60, 48)


@dataclass(frozen=True)
class Collection:
    """A folder with one folder a class, and what it holds in words."""

    root: Path
    about: str

    @property
    def files(self) -> list[Path]:
        """All photos, by name."""
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    @property
    def catalog(self) -> Catalog:
        """The photos as fieldguide reads them."""
        return scan(self.root)


def collection(options: Options, count: int, *, large: bool = False) -> Collection:
    """So many photos, real ones if they may be small and are there; made once in a session."""
    if options.quick:
        return composed(options, 30, LARGE if large else SMALL)
    if large or not NATURE.is_dir():
        return composed(options, count, LARGE if large else USUAL)
    root = options.folder / f"nature100-{count}"
    if not root.exists():
        for path in _spread(count):
            place = root / path.relative_to(NATURE)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return Collection(root, f"{count:,} of nature100, shorter side 160")


def _spread(count: int) -> list[Path]:
    """As many photos of each class, of fewer classes where there would be too few of each."""
    classes = sorted(NATURE.iterdir())[: _classes(count)]
    lists = [sorted(folder.iterdir()) for folder in classes]
    longest = max(len(photos) for photos in lists)
    ordered = [photos[n] for n in range(longest) for photos in lists if n < len(photos)]
    if len(ordered) < count:
        raise SystemExit(f"nature100 has {len(ordered)} photos in {len(lists)} classes: {count}")
    return ordered[:count]


def _classes(count: int) -> int:
    return min(CLASSES, max(count // CLASS_PHOTOS, 2))


def composed(options: Options, count: int, size: tuple[int, int]) -> Collection:
    """So many JPEGs like no other, drawn from their numbers; made once in a session."""
    width, height = size
    root = options.folder / f"composed-{count}-{width}x{height}"
    if not root.exists():
        classes = _classes(count)
        for number in range(count):
            folder = root / f"class-{number % classes:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            compose(number, size).save(folder / f"{number:06d}.jpg", quality=90)
    return Collection(root, f"{count:,} composed, {width} x {height}")


def compose(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture of soft colours with detail and a little grain."""
    draws = np.random.default_rng(number)
    width, height = size
    soft = _enlarged(draws.integers(0, 256, (6, 6, 3), dtype=np.uint8), size)
    detail = _enlarged(draws.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), size)
    grain = draws.integers(-6, 7, soft.shape)
    return Image.fromarray((0.75 * soft + 0.25 * detail + grain).clip(0, 255).astype(np.uint8))


def _enlarged(pixels: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


# --- recipes and what is made of them -------------------------------------------------------------


def weights_for(backbone: str) -> str:
    """A file of pretrained weights where there is one, else `none`: times are the same."""
    path = SHARED / "weights" / f"{backbone}_in1k.safetensors"
    return str(path) if path.is_file() else "none"


def recipe_of(options: Options, size: int, backbone: str = "resnet18", **settings: Any) -> Recipe:
    """A plain recipe for the CPU: crop, flip, no mixing. For a quick look all is tiny.

    Crops cover the share of a photo that torchvision's and timm's do.
    """
    if options.quick:
        size, backbone = 32, "test_resnet"
    resize = round(size / 0.875)
    plain = {
        "backbone": backbone,
        "weights": weights_for(backbone),
        "size": size,
        "eval_resize": resize,
        "stored_side": 2 * resize,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_scale": (0.08, 1.0),
        "color_jitter": 0.0,
        "mix": "none",
        "head_start": "random",
        "head_rate": 1e-3,
        "replicas": 2,
        "batch_size": 8 if options.quick else BATCH,
        "conflicts": "drop",
        "device": "cpu",
        "layout": options.layout,
        "warmup": 0.0,
    }
    return recipes.build(plain | settings)


def new_folder(options: Options) -> Path:
    """An empty folder that no other call gets."""
    return Path(tempfile.mkdtemp(dir=options.folder))


def first_job(options: Options, photos: Collection, recipe: Recipe) -> FoldJob:
    """The job of fold 0 of a run that is begun with these photos."""
    run = create(new_folder(options), photos.catalog, recipe, (), Watcher())
    return fold_jobs(run, photos.root)(0)


def trained_run(options: Options, backbone: str = "resnet18", size: int = 64) -> Run:
    """A run of two folds, trained as briefly as can be: its networks are as fast as any."""
    brief = recipe_of(options, size, backbone, folds=2, epochs=1, replicas=1, workers=1)
    return fit(collection(options, 40).catalog, brief, new_folder(options))


def saved(options: Options, recipe: Recipe) -> Path:
    """The recipe as a file for the command line."""
    path = new_folder(options) / "recipe.toml"
    path.write_text(recipes.to_toml(recipe), encoding="utf-8")
    return path
