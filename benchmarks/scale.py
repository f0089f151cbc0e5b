"""Seconds and memory of everything before the first step, for a collection of many photos.

    python benchmarks/scale.py --photos 100000 --folder /big/disk/scale

Makes tar files of tiny photos that differ, 100 classes, indexes and packs them, then goes the way
of a fit to its first batch: catalog, check, copies, groups, folds, the run's table, an epoch's plan
(mixed, and by shards), the first batch. Prints one JSON line a stage: its seconds, those of all
cores together, the memory that the process holds after it and the most it held meanwhile, in MB,
both less what it held when it began with its modules loaded (Linux only). Of what it holds,
`mapped_mb` are pages of files (the index of shards), which processes share and the system takes
back at need. The folder takes about 6 kB a photo; what is there already is used again. `--keep`
leaves it there.
"""

import argparse
import io
import json
import os
import platform
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 100
TAR_PHOTOS = 50_000  # photos in each tar file that is to be indexed


def main() -> None:
    """Measures one stage after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    tars, shards = options.folder / "tars", options.folder / "shards"
    os.environ["FIELDGUIDE_CACHE"] = str(options.folder / "cache")
    if not tars.is_dir():
        make(tars, options.photos)
    try:
        measure(tars, shards, options.photos, options.batch_size)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder)


def make(tars: Path, photos: int) -> None:
    """Tar files with one folder a class."""
    begun = tars.with_name("begun")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for start in range(0, photos, TAR_PHOTOS):
        with tarfile.open(begun / f"{start // TAR_PHOTOS:04d}.tar", "w") as tar:
            for number in range(start, min(start + TAR_PHOTOS, photos)):
                member = tarfile.TarInfo(f"class-{number % CLASSES:03d}/{number:07d}.jpg")
                data = photo(draws, (4, 5) if number % 4 == 0 else (6, 7))
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                tar.members = []
    begun.replace(tars)


def photo(draws: np.random.Generator, grid: tuple[int, int]) -> bytes:
    """A picture of 40 × 32 pixels like no other, of a few colours.

    With a grid of 4 × 5 in every fourth and of 6 × 7 in the others, about as many pairs resemble
    each other at first sight as among 6,834 photographs of 100 species: 11,000 meetings in the
    check's tables, there 10,199.
    """
    colours = Image.fromarray(draws.integers(0, 256, (*grid, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    colours.resize((40, 32), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def measure(tars: Path, shards: Path, photos: int, batch_size: int) -> None:
    """One line a stage."""
    from fieldguide.photos import catalog as catalogs
    from fieldguide.photos import check, folds
    from fieldguide.photos.augment import Augmentation
    from fieldguide.photos.batches import Loader, Pictures, training_plan
    from fieldguide.photos.decoding import Decoding
    from fieldguide.photos.folders import scan
    from fieldguide.photos.inspect import inspect
    from fieldguide.photos.near_copies import duplicates, joined_groups
    from fieldguide.photos.pack import pack
    from fieldguide.photos.pixels import Reading
    from fieldguide.photos.transforms import evaluation, training
    from fieldguide.storage import shards as sharded

    first, first_mapped = memory("VmRSS"), memory("RssFile")

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        started, used = time.perf_counter(), time.process_time()
        yield
        figures = {
            "stage": name,
            "photos": photos,
            "seconds": round(time.perf_counter() - started, 3),
            "core_seconds": round(time.process_time() - used, 3),
            "held_mb": round(memory("VmRSS") - first),
            "peak_mb": round(memory("VmHWM") - first),
            "mapped_mb": round(memory("RssFile") - first_mapped),
        }
        print(json.dumps(figures | {"platform": platform.platform()}), flush=True)

    if not shards.is_dir():
        with stage("index tar files"):
            found = scan(tars)
        with stage("pack"):
            pack(found, shards)
        del found
    with stage("catalog"):
        catalog = scan(shards)
    with stage("check: read, decode, hash"):
        facts = inspect(catalog)
    with stage("check: copies"):
        clusters = duplicates(catalog, facts)
    with stage("check: findings"):
        check.findings(catalog, facts, folds=5, clusters=clusters)
    with stage("groups"):
        groups = joined_groups(catalog, clusters)
    with stage("hashes into the catalog"):
        catalog = catalogs.with_hashes(catalog, facts.column("sha256"))
    del facts, clusters
    labels, paths = (catalog.table.column(name) for name in ("label", "path"))
    with stage("folds"):
        made = folds.make_folds(labels, paths, groups, folds=5, seed=0)
    with stage("the run's table, written and read"):
        table = shards.with_name("catalog.csv")
        catalogs.write_rows(table, catalog)
        catalogs.read_rows(table, catalog.root)
    rows = made[0].train
    epoch = {"seed": 0, "replica": 0, "epoch": 0}
    with stage("plan of an epoch"):
        plan = training_plan(rows, batch_size, **epoch)
    with stage("places in shards"):
        places = sharded.opened(catalog.root).places(paths)
    with stage("plan of an epoch by shards"):
        training_plan(rows, batch_size, **epoch, places=places, buffer=10_000)
    pictures = Pictures(
        catalog.files,
        training(augmentation(Augmentation), (0.5, 0.5, 0.5)),
        evaluation(32, 36, "bilinear"),
        Decoding(64, 64, "bilinear", Reading()),
    )
    with stage("first batch"):
        next(Loader(pictures, 0).batches(plan))
    with stage("all draws of an epoch"):
        for _ in plan:
            pass


def augmentation(kind: type) -> object:
    """What a fit by default does to photos, on small ones."""
    return kind(
        size=32,
        interpolation="bilinear",
        crop_scale=(0.35, 1.0),
        flip=0.5,
        color_jitter=0.8,
        jitter=(0.2, 0.2, 0.2, 0.02),
        grayscale=0.0,
        policy="none",
        erasing=0.0,
    )


def memory(name: str) -> float:
    """`VmRSS`, what this process holds, `RssFile`, of it files, `VmHWM`, its most; in MB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    main()
