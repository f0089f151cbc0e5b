"""The augmentations of a recipe on a collection, as one PNG to look at before training.

One photo through every policy, and one batch through every mixing, both after the recipe's own
crops, flips and colours. Nothing is trained or downloaded. Knows nothing of runs.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fieldguide.errors import DataError, UnreadablePhoto
from fieldguide.fitting.jobs import pictures
from fieldguide.fitting.settings import resolve
from fieldguide.network.network import build_backbone
from fieldguide.photos import pixels
from fieldguide.photos.augment import Mix, Policy, mix_batch
from fieldguide.photos.batches import Draw, Pictures
from fieldguide.photos.catalog import Catalog, Photo
from fieldguide.recipe import Recipe, ResolvedRecipe
from fieldguide.seeds import derive_seed
from fieldguide.storage import files

DRAWS = 6  # of the photo under each policy, and photos of the batch (taste)
MIXED_DRAWS = 2  # of the batch under each mixing: shares differ from step to step
CELL = 176  # pixels of a picture on the sheet, whatever its size for the network (taste)
GAP = 12
FONT = 13
LINE = 17  # pixels from one line of text to the next
_MIXES: tuple[Mix, ...] = ("none", "mixup", "cutmix")  # `either` is one of the last two
_TRIES = 100  # photos that are tried before a collection counts as unreadable (taste)

_Colour: TypeAlias = tuple[int, int, int]
_PAPER, _INK, _SOFT = (255, 255, 255), (29, 35, 40), (88, 99, 107)


@dataclass(frozen=True)
class Cell:
    """One picture of the sheet and the lines under it."""

    image: Image.Image
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Band:
    """A row of the sheet under its heading."""

    heading: str
    cells: tuple[Cell, ...]


def preview(catalog: Catalog, recipe: Recipe, out: str | Path) -> Path:
    """Write the sheet as PNG, whole or not at all, over what was there, and return its path.

    The same photos and recipe give the same sheet. Raises `DataError` if no photo can be read,
    `ResourceError` if the file cannot be written.
    """
    backbone = build_backbone(recipe.backbone, weights="none", seed=recipe.seed)
    resolved = resolve(recipe, backbone)
    bands = [*policy_bands(catalog, resolved), *mix_bands(catalog, resolved)]
    buffer = io.BytesIO()
    sheet(_title(resolved), bands).save(buffer, "PNG")
    files.write_bytes(Path(out), buffer.getvalue())
    return Path(out)


def policy_bands(catalog: Catalog, recipe: ResolvedRecipe) -> Iterator[Band]:
    """Yield the photo as it is evaluated, then under every policy.

    Pictures below each other have the same crop, flip and colours before the policy.
    """
    photo = _readable(catalog, recipe, 1)[0]
    paths = [catalog.file(each) for each in catalog.photos]
    for policy in get_args(Policy):
        shown = pictures(recipe.replace(augment=policy), paths)
        plain = _drawn(shown, [Draw(photo, None)])
        seeds = [derive_seed(recipe.seed, "preview", number) for number in range(DRAWS)]
        changed = _drawn(shown, [Draw(photo, seed) for seed in seeds])
        cells = [_cell(plain[0], "as it is evaluated", _name(catalog.photos[photo]))]
        cells += [_cell(image, f"draw {n}") for n, image in enumerate(changed, start=1)]
        own = " (the recipe's)" if policy == recipe.augment else ""
        yield Band(f"augment = {policy}{own}", tuple(cells))


def mix_bands(catalog: Catalog, recipe: ResolvedRecipe) -> Iterator[Band]:
    """Yield a small batch as the recipe draws it, then mixed in every way, with its shares."""
    batch = _readable(catalog, recipe, DRAWS)
    names = sorted({_name(catalog.photos[n]) for n in batch})
    targets = torch.tensor([names.index(_name(catalog.photos[n])) for n in batch])
    draws = [Draw(n, derive_seed(recipe.seed, "preview", "batch", n)) for n in batch]
    paths = [catalog.file(photo) for photo in catalog.photos]
    images = _drawn(pictures(recipe, paths), draws)
    for mix in _MIXES if len(batch) > 1 else _MIXES[:1]:
        own = " (the recipe's)" if mix == recipe.mix else ""
        own = " (one of the recipe's two)" if mix != "none" and recipe.mix == "either" else own
        for number in range(1 if mix == "none" else MIXED_DRAWS):
            mixed, shares = _mixed(images, targets, len(names), mix, recipe, number)
            shown = zip(mixed, shares, strict=True)
            cells = tuple(_cell(image, *_shares(share, names)) for image, share in shown)
            yield Band(f"mix = {mix}{own}" + (", another step" if number else ""), cells)


def _mixed(
    images: UInt8[Tensor, "n 3 size size"],
    targets: Int[Tensor, " n"],
    classes: int,
    mix: Mix,
    recipe: Recipe,
    number: int,
) -> tuple[UInt8[Tensor, "n 3 size size"], Float[Tensor, "n classes"]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(recipe.seed, "preview", mix, number))
        mixed, shares = mix_batch(images, targets, classes=classes, mix=mix, alpha=recipe.mix_alpha)
    return mixed.round().clamp(0, 255).byte(), shares


# --- photos ---------------------------------------------------------------------------------------


def _readable(catalog: Catalog, recipe: Recipe, count: int) -> list[int]:
    """Return at most `count` random photos that can be read, of as many classes as there are."""
    found: list[int] = []
    reason = "there is none"
    for number in _varied(catalog, recipe.seed)[:_TRIES]:
        file = catalog.file(catalog.photos[number])
        try:
            pixels.load(file, shorter_side=1, reading=pixels.Reading.of(recipe))
            found.append(number)
        except UnreadablePhoto as error:
            reason = f"`{file}`: {error.message}"
        if len(found) == count:
            break
    if not found:
        raise DataError(f"no photo can be read for a preview: {reason}")
    return found


def _varied(catalog: Catalog, seed: int) -> list[int]:
    """Return the training photos (or all) shuffled: first one of each class, then the others."""
    training = [n for n, photo in enumerate(catalog.photos) if photo.split == "train"]
    draw = np.random.default_rng(derive_seed(seed, "preview"))
    order = draw.permutation(np.array(training or range(len(catalog)), dtype=np.int64)).tolist()
    earlier: Counter[str] = Counter()
    turn_of: dict[int, int] = {}
    for number in order:
        name = _name(catalog.photos[number])
        turn_of[number] = earlier[name]
        earlier[name] += 1
    return sorted(order, key=turn_of.__getitem__)


def _drawn(shown: Pictures, draws: Sequence[Draw]) -> UInt8[Tensor, "n 3 size size"]:
    with torch.random.fork_rng(devices=[]):
        return shown[draws].images


def _name(photo: Photo) -> str:
    return photo.label or "unlabelled"


# --- the sheet ------------------------------------------------------------------------------------


def sheet(title: Sequence[str], bands: Sequence[Band]) -> Image.Image:
    """Return the title's lines and the bands below each other."""
    columns = max(len(band.cells) for band in bands)
    width = GAP + columns * (CELL + GAP)
    heights = [
        LINE + CELL + 6 + max(len(cell.lines) for cell in band.cells) * LINE + GAP for band in bands
    ]
    top = GAP + len(title) * LINE + GAP
    image = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(title):
        colour = _INK if number == 0 else _SOFT
        _write(pen, (GAP, GAP + number * LINE), line, width - 2 * GAP, colour)
    for band, height in zip(bands, heights, strict=True):
        _draw_band(image, pen, band, top)
        top += height
    return image


def _draw_band(image: Image.Image, pen: ImageDraw.ImageDraw, band: Band, top: int) -> None:
    """Change the image: draw a band from `top` on."""
    _write(pen, (GAP, top), band.heading, image.width - 2 * GAP, _INK)
    for number, cell in enumerate(band.cells):
        left = GAP + number * (CELL + GAP)
        image.paste(cell.image, (left, top + LINE))
        for row, line in enumerate(cell.lines):
            _write(pen, (left, top + LINE + CELL + 4 + row * LINE), line, CELL, _SOFT)


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, colour: _Colour
) -> None:
    """Change the image: write one line, cut where it would be too wide."""
    font = ImageFont.load_default(FONT)
    pen.text(place, fitted(legible(text), font.getlength, width), fill=colour, font=font)


def legible(text: str) -> str:
    """Return the text in one line: line ends, turns of direction and the like become `�`."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def fitted(text: str, measure: Callable[[str], float], width: int) -> str:
    """Return the text, or as much of its beginning and end as fits around an ellipsis."""
    if measure(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        cut = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if measure(cut) <= width:
            return cut
    return "…"


def _cell(image: UInt8[Tensor, "3 size size"], *lines: str) -> Cell:
    drawn = Image.fromarray(image.permute(1, 2, 0).numpy())
    smaller = drawn.width < CELL
    how = Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS
    return Cell(drawn.resize((CELL, CELL), how), lines)


def _shares(shares: Float[Tensor, " classes"], names: Sequence[str]) -> list[str]:
    """Return the classes that a picture counts as, the largest share first."""
    order = shares.argsort(descending=True, stable=True).tolist()
    named = {names[n]: float(shares[n]) for n in order if shares[n] > 0}
    if len(named) == 1:
        return list(named)
    return [f"{100 * share:.0f} % {name}" for name, share in named.items()]


def _title(recipe: Recipe) -> list[str]:
    """Return the recipe's changes before any policy or mixing, in words."""
    low, high = (f"{100 * share:.0f}" for share in recipe.crop_scale)
    strengths = ", ".join(f"{value:g}" for value in recipe.jitter)
    return [
        f"What the network would be shown: {recipe.size} by {recipe.size} pixels",
        f"crops of {low} to {high} % of the photo; mirrored: {recipe.flip:.0%};"
        f" colours changed: {recipe.color_jitter:.0%}, by up to {strengths}"
        " (brightness, contrast, saturation, hue)",
        f"without colour: {recipe.grayscale:.0%}; a box erased: {recipe.erasing:.0%};"
        f" shares of mixed photos: Beta({recipe.mix_alpha:g}, {recipe.mix_alpha:g})",
    ]
