"""One epoch of another library's loader: prints seconds a photo, of the clock and of processors.

    python peer_loop.py fastai|dali PHOTOS SIZE BATCH

Runs in an interpreter that has the library; fieldguide need not be there. The first epoch is not
counted. Crop, mirror image and normalisation are those of `data.peer`, on the CPU, in one process.
"""

import sys
import time
from collections.abc import Callable

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Epoch = Callable[[], int]  # returns how many photos it saw


def main() -> None:
    """Measures the second epoch."""
    name, photos, size, batch_size = sys.argv[1:]
    epoch = {"fastai": fastai, "dali": dali}[name](photos, int(size), int(batch_size))
    epoch()
    wall, cpu = time.perf_counter(), time.process_time()
    seen = epoch()
    print((time.perf_counter() - wall) / seen, (time.process_time() - cpu) / seen)


def fastai(photos: str, size: int, batch_size: int) -> Epoch:
    """fastai's loaders: crop and flip of each picture, normalisation of the batch."""
    from fastai.vision.all import (  # type: ignore
        FlipItem,
        ImageDataLoaders,
        Normalize,
        RandomResizedCrop,
    )

    loaders = ImageDataLoaders.from_folder(
        photos,
        valid_pct=0.05,  # fastai wants some; they are not looked at
        item_tfms=[RandomResizedCrop(size, min_scale=0.08), FlipItem()],
        batch_tfms=[Normalize.from_stats(MEAN, STD)],
        bs=batch_size,
        num_workers=0,
        device="cpu",
    )
    return lambda: sum(len(images) for images, _ in loaders.train)


def dali(photos: str, size: int, batch_size: int) -> Epoch:
    """DALI's pipeline on the CPU with one thread; only what the crop needs is decoded."""
    from nvidia.dali import fn, pipeline_def, types  # type: ignore

    @pipeline_def(batch_size=batch_size, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline() -> object:
        jpegs, labels = fn.readers.file(file_root=photos, random_shuffle=True, name="photos")
        images = fn.decoders.image_random_crop(jpegs, device="cpu", random_area=[0.08, 1.0])
        images = fn.resize(images, resize_x=size, resize_y=size)
        normalised = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            mean=[255 * each for each in MEAN],
            std=[255 * each for each in STD],
            mirror=fn.random.coin_flip(),
        )
        return normalised, labels

    built = pipeline()
    built.build()
    steps = -(-built.epoch_size("photos") // batch_size)
    return lambda: sum(len(built.run()[0]) for _ in range(steps))


if __name__ == "__main__":
    main()
