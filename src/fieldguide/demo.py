"""Draws the demo's collection: look-alike species of flowers, butterflies and birds that nobody will ever meet.

A species is a line of `SPECIES` and differs from its relatives in a detail or two. All else varies as
in real photographs: colour, pose, light, background, what stands in front, lens and sensor. A specimen
is drawn three times too large on a transparent sheet, shrunk, lit and laid onto a background:

    specimen ──> shrunk ──> lit ─┐
    background ──> its shadow ───┴──> blades in front ──> camera ──> JPEG

Points are complex numbers, x to the right and y down, so turning is multiplying. Lengths are parts of
the specimen's size, colours run from 0 to 255. Numbers without an origin are taste: chosen by looking.
Knows nothing of catalogs, training or runs.
"""

import zlib
from cmath import rect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from math import pi
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[float, float, float]
Points = NDArray[np.complex128]
Pixels = NDArray[np.float32]

GOLD, PLUM, CREAM, INK = (232, 180, 40), (88, 34, 62), (243, 233, 208), (38, 30, 28)


@dataclass(frozen=True)
class Flower:
    """What tells one flower from its relatives."""

    petals: int
    width: float  # of a petal, 1 is average
    tip: Literal["round", "pointed", "notched"]
    centre: Colour
    stamens: int


@dataclass(frozen=True)
class Butterfly:
    """What tells one butterfly from its relatives; eyespots are counted on one wing."""

    fore_eyes: int
    hind_eyes: int
    pale_band: bool
    tails: bool
    feathery: bool


@dataclass(frozen=True)
class Bird:
    """What tells one bird from its relatives; lengths are parts of the body's."""

    beak: float
    beak_curve: float
    tail: float
    forked: bool
    wing_bars: int
    crest: float
    speckled: bool


Species = Flower | Butterfly | Bird

SPECIES: Mapping[str, Species] = MappingProxyType(
    {
        # petals, their width and tip, colour of the centre, stamens
        "meadow-starwort": Flower(5, 1.25, "round", GOLD, 10),
        "notched-starwort": Flower(5, 0.95, "notched", GOLD, 10),
        "dark-eyed-starwort": Flower(5, 1.0, "round", PLUM, 16),
        "six-petalled-starwort": Flower(6, 0.85, "pointed", GOLD, 12),
        # eyespots on the fore wing and the hind wing, pale band, tails, feathery antennae
        "two-eyed-flitterwing": Butterfly(1, 0, False, False, False),
        "six-eyed-flitterwing": Butterfly(1, 2, False, False, False),
        "banded-flitterwing": Butterfly(1, 0, True, False, True),
        "tailed-flitterwing": Butterfly(0, 1, False, True, False),
        # beak and how far it bends, tail and whether it is forked, wing bars, crest, speckled breast
        "common-thornpiper": Bird(0.24, 0.0, 0.5, False, 1, 0.0, False),
        "crested-thornpiper": Bird(0.2, 0.0, 0.6, False, 2, 0.36, False),
        "sickle-billed-thornpiper": Bird(0.5, 0.24, 0.5, False, 0, 0.0, False),
        "fork-tailed-thornpiper": Bird(0.24, 0.0, 0.95, True, 1, 0.0, True),
    }
)

# Every species of a kind wears any of its colours: colour alone says little.
PETALS = ((240, 236, 232), (236, 150, 180), (150, 110, 205), (120, 150, 225), (240, 205, 90))
WINGS = ((222, 130, 45), (160, 80, 45), (95, 125, 195), (225, 205, 150), (120, 95, 80))
PLUMAGE = ((125, 98, 72), (120, 122, 74), (96, 112, 130), (160, 96, 62), (176, 152, 110))
LEAVES = ((70, 112, 48), (96, 134, 58), (52, 92, 56), (124, 144, 70), (84, 104, 44))

PHOTO_SIDES = (140, 200)  # pixels
OVERSIZE = 3  # a specimen's sheet against its photo: shrinking it smooths the edges


def draw_collection(
    folder: Path,
    *,
    photos_each: int = 60,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `photos_each` JPEGs of every species to `folder`/species/NNN.jpg, replacing what has that name.

    `progress` is called after each photo with the number of photos drawn so far.
    """
    for name in SPECIES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for done, (name, number) in enumerate(product(SPECIES, range(photos_each)), start=1):
        (folder / name / f"{number:03d}.jpg").write_bytes(draw_photo(name, number, seed=seed))
        if progress:
            progress(done)


def draw_photo(name: str, number: int, *, seed: int = 0) -> bytes:
    """One JPEG of a species of `SPECIES`; its bytes depend on the three arguments alone (both numbers ≥ 0)."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    width, height = (int(side) for side in rng.integers(*PHOTO_SIDES, 2, endpoint=True))
    light = rect(1.0, rng.uniform(0, 2 * pi))
    picture = draw_background(rng, width, height)
    picture = laid_on(picture, draw_specimen(rng, SPECIES[name], width, height), light, rng)
    return taken(covered(picture, rng), light, rng)


# The pen and its outlines


@dataclass(frozen=True)
class Pen:
    """Draws on a sheet in its own frame: `right` and `down` are the steps, in pixels, of one unit."""

    sheet: ImageDraw.ImageDraw
    origin: complex
    right: complex
    down: complex

    def at(self, where: complex, turn: float = 0.0, wide: float = 1.0, high: float = 1.0) -> "Pen":
        """A pen at `where` (units), turned clockwise (radians), its units stretched; < 0 mirrors."""
        right, down = rect(wide, turn), rect(high, turn + pi / 2)
        return Pen(self.sheet, self.place(where), self.step(right), self.step(down))

    def step(self, by: complex) -> complex:
        """How many pixels lie in so many units."""
        return by.real * self.right + by.imag * self.down

    def place(self, where: complex) -> complex:
        """The pixel of a point."""
        return self.origin + self.step(where)

    def fill(self, outline: Points, colour: Colour) -> None:
        """Fill a closed outline."""
        pixels = self.origin + outline.real * self.right + outline.imag * self.down
        self.sheet.polygon(pixels.view(np.float64).tolist(), fill=ink(colour))

    def round_off(
        self, outline: Points, colour: Colour, glow: float = 0.25, steps: int = 5
    ) -> None:
        """Fill an outline with a dark rim that brightens inwards, as if it bulged."""
        middle = outline.mean()
        for step in np.linspace(0, 1, steps):
            inner = middle + (outline - middle) * (1 - 0.7 * step)
            self.fill(inner, shaded(colour, 1 + glow * (step - 0.7)))

    def dot(self, where: complex, radius: float, colour: Colour) -> None:
        """Fill a circle."""
        self.fill(where + radius * CIRCLE, colour)

    def line(self, points: Points, colour: Colour, width: float, end: float = 1.0) -> None:
        """Draw along points; the line is `width` wide at first and `end` times that at last."""
        along = np.gradient(points)
        side = 0.5j * width * along / np.abs(along) * np.linspace(1, end, len(points))
        self.fill(np.concatenate([points + side, (points - side)[::-1]]), colour)


def smooth(*knots: complex) -> Points:
    """A closed outline through the knots: a Catmull-Rom spline, eight points between two knots."""
    here = np.array(knots)[:, None]
    before, after, beyond = (np.roll(here, shift, axis=0) for shift in (1, -1, -2))
    t = np.arange(8) / 8
    bend = 2 * before - 5 * here + 4 * after - beyond
    twist = 3 * (here - after) + beyond - before
    return (here + t / 2 * (after - before + t * (bend + t * twist))).ravel()


def mirrored(*half: complex) -> Points:
    """An outline that is symmetric about the x axis, from the knots on one side of it."""
    return smooth(*half, *(knot.conjugate() for knot in reversed(half) if knot.imag))


def curve(start: complex, by_way_of: complex, end: complex) -> Points:
    """Twelve points of a bow: a quadratic Bézier curve."""
    t = np.linspace(0, 1, 12)
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * by_way_of + t**2 * end


CIRCLE = np.exp(2j * pi * np.arange(24) / 24)
LEAF = mirrored(0, 0.3 + 0.2j, 0.65 + 0.16j, 1)


# Colours


def ink(colour: Colour) -> tuple[int, ...]:
    """A colour as Pillow takes it."""
    return tuple(round(min(max(part, 0), 255)) for part in colour)


def mixed(one: Colour, other: Colour, part: float) -> Colour:
    """`part` of the other colour in the one."""
    r, g, b = (a + part * (b - a) for a, b in zip(one, other, strict=True))
    return r, g, b


def shaded(colour: Colour, light: float) -> Colour:
    """The colour under so much light."""
    return mixed((0, 0, 0), colour, light)


def picked(rng: Generator, palette: tuple[Colour, ...]) -> Colour:
    """A colour somewhere between two of the palette, lighter or darker."""
    one, other = rng.choice(len(palette), 2, replace=False)
    return shaded(mixed(palette[one], palette[other], rng.uniform(0, 0.5)), rng.uniform(0.85, 1.1))


# Specimens


def draw_specimen(rng: Generator, species: Species, width: int, height: int) -> Image.Image:
    """One individual in its pose on a transparent sheet, shrunk to the photo: RGBa, premultiplied."""
    sheet = Image.new("RGBA", (width * OVERSIZE, height * OVERSIZE))
    centre = complex(*rng.normal(0.5, 0.04, 2) * sheet.size)
    unit = min(sheet.size) * rng.uniform(0.4, 0.54)
    pen = Pen(ImageDraw.Draw(sheet), centre, unit, 1j * unit)
    match species:
        case Flower():
            draw_flower(pen, rng, species)
        case Butterfly():
            draw_butterfly(pen, rng, species)
        case Bird():
            draw_bird(pen, rng, species)
    return sheet.convert("RGBa").reduce(OVERSIZE)


PETAL_OUTLINES = {
    "round": mirrored(0.05, 0.4 + 0.2j, 0.76 + 0.27j, 0.95 + 0.13j, 0.99),
    "pointed": mirrored(0.05, 0.35 + 0.21j, 0.62 + 0.22j, 0.85 + 0.1j, 1.05, 1.05),
    "notched": mirrored(0.05, 0.4 + 0.2j, 0.76 + 0.28j, 1.02 + 0.2j, 1.0 + 0.08j, 0.7),
}


def draw_flower(pen: Pen, rng: Generator, flower: Flower) -> None:
    """A flower seen from above and a little aside, on its stem."""
    green, colour = picked(rng, LEAVES), picked(rng, PETALS)
    draw_stem(pen, rng, green)
    head = pen.at(0, turn=rng.uniform(0, 2 * pi), high=rng.uniform(0.6, 1)).at(
        0, turn=rng.uniform(0, 2 * pi)
    )
    step = 2 * pi / flower.petals
    for number in range(flower.petals):
        head.at(0, turn=(number + 0.5) * step).fill(0.75 * LEAF, shaded(green, 0.8))
    for number in rng.permutation(flower.petals):
        draw_petal(head.at(0, turn=number * step + rng.normal(0, 0.07)), rng, flower, colour)
    draw_flower_centre(head, rng, flower)


def draw_stem(pen: Pen, rng: Generator, green: Colour) -> None:
    """A stem that bows out of the picture below, with two leaves."""
    bow = curve(0, rng.normal(0, 0.25) + 0.8j, rng.normal(0, 0.5) + 2.2j)
    pen.line(bow, shaded(green, 0.7), 0.07)
    pen.line(bow - 0.012, green, 0.035)
    for side in (-1, 1):
        draw_leaf(
            pen.at(bow[rng.integers(4, 8)], turn=pi / 2 - side * rng.uniform(0.6, 1.3)), green
        )


def draw_leaf(pen: Pen, green: Colour) -> None:
    """A leaf from the origin to 1, with its midrib."""
    pen.round_off(LEAF, green, steps=3)
    pen.line(np.linspace(0, 0.95, 4) + 0j, shaded(green, 1.2), 0.025, end=0.3)


def draw_petal(pen: Pen, rng: Generator, flower: Flower, colour: Colour) -> None:
    """A petal from the origin to about 1, paler outside, with veins."""
    petal = pen.at(0, wide=rng.normal(1, 0.05), high=flower.width * rng.normal(1, 0.06))
    outline, tone = PETAL_OUTLINES[flower.tip], shaded(colour, rng.normal(1, 0.04))
    petal.fill(1.03 * outline, shaded(tone, 0.66))
    petal.round_off(outline, tone, glow=0.16)
    for spread in (-0.16, -0.05, 0.05, 0.16):
        petal.line(
            curve(0.1, 0.4 + 0.5j * spread, 0.78 + 1j * spread), shaded(tone, 0.84), 0.02, end=0.2
        )


def draw_flower_centre(pen: Pen, rng: Generator, flower: Flower) -> None:
    """The disc and the stamens around it."""
    radius = rng.uniform(0.14, 0.19)
    for number in range(flower.stamens):
        tip = rect(radius * rng.uniform(1.25, 1.6), 2 * pi * number / flower.stamens)
        pen.line(np.array([0, tip]), mixed(flower.centre, CREAM, 0.6), 0.018)
        pen.dot(tip, 0.032, shaded(flower.centre, 0.8))
    pen.round_off(radius * CIRCLE, flower.centre, glow=0.5)


FORE_WING = smooth(
    0.03, 0.2 - 0.38j, 0.62 - 0.74j, 0.95 - 0.72j, 0.9 - 0.4j, 0.72 - 0.06j, 0.3 + 0.06j
)
HIND_WING = smooth(
    0.03, 0.4 - 0.1j, 0.7 + 0.06j, 0.72 + 0.36j, 0.5 + 0.62j, 0.24 + 0.58j, 0.1 + 0.3j
)
WING_TAIL = smooth(0.3 + 0.5j, 0.62 + 0.4j, 0.6 + 0.72j, 0.7 + 0.98j, 0.56 + 1.04j, 0.44 + 0.78j)
FORE_EYES = (0.66 - 0.46j, 0.58 - 0.2j)
HIND_EYES = (0.5 + 0.2j, 0.36 + 0.4j)


def draw_butterfly(pen: Pen, rng: Generator, butterfly: Butterfly) -> None:
    """A butterfly from above, its wings more or less open."""
    ground = picked(rng, WINGS)
    margin = mixed(shaded(ground, 0.35), INK, rng.uniform(0, 0.6))
    animal = pen.at(0, turn=rng.normal(0, 0.6))
    opening, lean = rng.uniform(0.62, 1), rng.uniform(0.82, 1)
    for side, wide in ((-1, opening), (1, opening * lean)):
        wings = animal.at(0, wide=side * wide, high=rng.normal(0.98, 0.03))
        draw_hind_wing(wings.at(0, turn=rng.normal(0, 0.06)), rng, butterfly, ground, margin)
        draw_fore_wing(wings.at(0, turn=rng.normal(0, 0.08)), rng, butterfly, ground, margin)
    draw_insect_body(animal, margin, feathery=butterfly.feathery)


def draw_fore_wing(
    pen: Pen, rng: Generator, kind: Butterfly, ground: Colour, margin: Colour
) -> None:
    """The right fore wing."""
    draw_wing(pen, FORE_WING, ground, margin, pale_band=kind.pale_band)
    for where in FORE_EYES[: kind.fore_eyes]:
        draw_eyespot(pen, rng, where, margin)


def draw_hind_wing(
    pen: Pen, rng: Generator, kind: Butterfly, ground: Colour, margin: Colour
) -> None:
    """The right hind wing."""
    if kind.tails:
        pen.fill(WING_TAIL, margin)
    draw_wing(pen, HIND_WING, shaded(ground, 0.93), margin, pale_band=kind.pale_band)
    for where in HIND_EYES[: kind.hind_eyes]:
        draw_eyespot(pen, rng, where, margin)


def draw_wing(
    pen: Pen, outline: Points, ground: Colour, margin: Colour, *, pale_band: bool
) -> None:
    """A wing: a dark margin, perhaps a pale band inside it, the ground, veins from the root."""
    pen.fill(outline, margin)
    if pale_band:
        pen.fill(0.92 * outline, mixed(ground, CREAM, 0.85))
        pen.fill(0.77 * outline, shaded(ground, 0.65))
    for step in np.linspace(0, 1, 5):
        pen.fill((0.9 - 0.16 * pale_band - 0.5 * step) * outline, shaded(ground, 1.05 - 0.3 * step))
    for tip in outline[10:46:6]:
        pen.line(curve(0, 0.45 * tip + 0.02j, 0.95 * tip), mixed(ground, margin, 0.5), 0.014)


def draw_eyespot(pen: Pen, rng: Generator, where: complex, margin: Colour) -> None:
    """A dark spot in a pale ring, with a glint."""
    radius = rng.uniform(0.085, 0.115)
    spot = where + complex(*rng.normal(0, 0.015, 2))
    pen.dot(spot, radius * 1.35, mixed(GOLD, CREAM, rng.uniform(0.2, 0.8)))
    pen.dot(spot, radius, margin)
    pen.dot(spot - 0.3 * radius * (1 + 1j), radius * 0.3, CREAM)


def draw_insect_body(pen: Pen, colour: Colour, *, feathery: bool) -> None:
    """Abdomen, thorax, head and antennae, which end in clubs or are feathery."""
    for side in (-1, 1):
        feeler = curve(-0.3j, side * 0.08 - 0.5j, side * 0.3 - 0.72j)
        pen.line(feeler, colour, 0.022)
        if feathery:
            draw_feathering(pen, feeler, colour)
        else:
            pen.dot(feeler[-1], 0.035, colour)
    pen.at(-0.1j, turn=pi / 2).round_off(
        mirrored(0, 0.2 + 0.07j, 0.5 + 0.06j, 0.72), colour, glow=0.8
    )
    pen.at(-0.08j, high=1.6).round_off(0.09 * CIRCLE, shaded(colour, 1.2), glow=0.8)
    pen.round_off(0.065 * CIRCLE - 0.27j, shaded(colour, 1.1), glow=0.8)


def draw_feathering(pen: Pen, feeler: Points, colour: Colour) -> None:
    """Barbs along the outer part of an antenna."""
    for where, along in zip(feeler[4:], np.gradient(feeler)[4:], strict=True):
        barb = 1j * along / abs(along) * 0.07
        pen.line(np.array([where - barb, where + barb]), colour, 0.02)


BIRD = smooth(
    *(
        0.57 - 0.46j,
        0.49 - 0.61j,
        0.3 - 0.67j,
        0.13 - 0.52j,
        -0.08 - 0.27j,
        -0.34 - 0.02j,
        -0.58 + 0.2j,
    ),
    *(-0.52 + 0.33j, -0.22 + 0.42j, 0.14 + 0.43j, 0.41 + 0.22j, 0.48 - 0.08j, 0.53 - 0.31j),
)
BELLY = smooth(
    0.5 - 0.3j,
    0.34 - 0.2j,
    0.2 + 0.14j,
    -0.2 + 0.3j,
    -0.48 + 0.31j,
    -0.2 + 0.4j,
    0.14 + 0.41j,
    0.39 + 0.21j,
)
BIRD_WING = smooth(
    0.2 - 0.2j, 0.02 - 0.22j, -0.3 + 0.02j, -0.72 + 0.32j, -0.3 + 0.24j, 0.08 + 0.18j, 0.24 + 0j
)


def draw_bird(pen: Pen, rng: Generator, bird: Bird) -> None:
    """A bird on a twig, from the side, facing left or right."""
    back = picked(rng, PLUMAGE)
    belly = mixed(back, CREAM, rng.uniform(0.4, 0.8))
    facing, plump = rng.choice([-1, 1]), rng.uniform(0.9, 1.12)
    animal = pen.at(0.2 * facing * (bird.tail - bird.beak), turn=rng.normal(0, 0.16)).at(
        0, wide=facing * rng.uniform(0.85, 1), high=plump
    )
    draw_tail(animal.at(-0.46 + 0.22j, turn=pi - rng.normal(0.5, 0.15)), bird, back)
    draw_twig_and_legs(pen.at(0.2 * facing * (bird.tail - bird.beak), wide=facing), rng)
    draw_crest(animal, bird.crest, back)
    animal.fill(1.015 * BIRD, shaded(back, 0.6))
    animal.round_off(BIRD, back, glow=0.2)
    animal.round_off(BELLY, belly, glow=0.12)
    draw_bird_wing(animal.at(0, turn=rng.normal(0, 0.05)), bird.wing_bars, back, belly)
    if bird.speckled:
        draw_speckles(animal, rng, shaded(back, 0.5))
    draw_face(animal.at(0.4 - 0.44j, turn=rng.normal(0, 0.15)), rng, bird, back)


def draw_tail(pen: Pen, bird: Bird, back: Colour) -> None:
    """Two or three tail feathers from the origin."""
    fork = 0.24 if bird.forked else 0.05
    for turn in (-fork, fork):
        feather = mirrored(0, 0.4 * bird.tail + 0.07j, 0.9 * bird.tail + 0.08j, bird.tail)
        pen.at(0, turn=turn).round_off(feather, shaded(back, 0.7), glow=0.3)


def draw_twig_and_legs(pen: Pen, rng: Generator) -> None:
    """A twig across the picture and two legs that stand on it."""
    bark, perch = shaded((104, 84, 66), rng.uniform(0.6, 1.2)), 0.62j
    twig = curve(
        -2.4 + perch + rng.normal(0, 0.4) * 1j, perch, 2.4 + perch + rng.normal(0, 0.4) * 1j
    )
    pen.line(twig, shaded(bark, 0.7), rng.uniform(0.1, 0.16), end=0.7)
    pen.line(twig - 0.015j, bark, 0.06, end=0.7)
    for hip in (-0.06, 0.1):
        pen.line(np.array([hip + 0.36j, hip + 0.05 + 0.6j]), (92, 66, 52), 0.035)


def draw_crest(pen: Pen, length: float, back: Colour) -> None:
    """Feathers that stand up behind the crown; none where the length is 0."""
    for turn in (-2.1, -2.35, -2.6) if length else ():
        feather = mirrored(0, 0.5 * (length + 0.12) + 0.05j, length + 0.12)
        pen.at(0.26 - 0.56j, turn=turn).fill(feather, shaded(back, 0.72))


def draw_speckles(pen: Pen, rng: Generator, colour: Colour) -> None:
    """Rows of drops from the throat to the belly."""
    for row, place in product((0.0, 0.1, 0.2), np.linspace(0, 1, 6)):
        along = (0.44 - row) + (-0.12 + 0.3 * row) * 1j + place * (-0.3 + 0.44j)
        drop = pen.at(along + complex(*rng.normal(0, 0.015, 2)), high=1.5)
        drop.dot(0, rng.uniform(0.022, 0.034), colour)


def draw_bird_wing(pen: Pen, bars: int, back: Colour, pale: Colour) -> None:
    """The folded wing with its flight feathers and pale bars."""
    dark = shaded(back, 0.72)
    pen.fill(1.03 * BIRD_WING, shaded(back, 0.5))
    pen.round_off(BIRD_WING, dark, glow=0.3)
    for drop in (0.0, 0.06, 0.12):
        pen.line(
            curve(-0.1 + 1j * drop, -0.3 + (drop + 0.1) * 1j, -0.62 + 0.3j),
            shaded(back, 0.5),
            0.018,
        )
    for number in range(bars):
        where = -0.2 * number
        pen.line(
            curve(0.1 - 0.2j + where * (1 - 0.8j), 0.12 + where, 0.04 + 0.17j + where * 0.8),
            pale,
            0.05,
        )


def draw_face(pen: Pen, rng: Generator, bird: Bird, back: Colour) -> None:
    """Beak, eye and the stripe through it; the origin is the middle of the head."""
    horn = mixed(INK, (190, 140, 70), rng.uniform(0, 0.7))
    tip = 0.15 + bird.beak + 1j * (0.04 + bird.beak_curve)
    upper, lower = (
        curve(0.12 - 0.07j, 0.2 + 0.6 * bird.beak - 0.05j, tip),
        curve(tip, 0.18 + 0.4 * bird.beak + 0.07j, 0.12 + 0.08j),
    )
    pen.fill(np.concatenate([upper, lower]), horn)
    pen.line(curve(0.12 + 0.01j, 0.18 + 0.5 * bird.beak + 0.01j, tip), shaded(horn, 0.6), 0.015)
    pen.line(curve(0.16 - 0.02j, 0.02 - 0.06j, -0.18 + 0.02j), shaded(back, 0.55), 0.05, end=0.4)
    pen.dot(0.03 - 0.05j, 0.05, INK)
    pen.dot(0.045 - 0.067j, 0.016, (255, 255, 255))


# The scene


def draw_background(rng: Generator, width: int, height: int) -> Image.Image:
    """Grass, sky, leaves, soil or a garden far out of focus."""
    scene = (grass, sky, foliage, soil, far_garden)[rng.integers(5)]
    return scene(rng, width, height).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.5)))


def clouded(rng: Generator, width: int, height: int, cells: tuple[int, ...]) -> Pixels:
    """Smooth noise of 0 to 1, (height, width, 1): a sum over grids of so many cells."""
    total = np.zeros((height, width), dtype=np.float32)
    for count in cells:
        grid = Image.fromarray(rng.random((count, count), dtype=np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(total / len(cells), 0, 1)[..., None]


def blend(one: Colour, other: Colour, part: Pixels) -> Image.Image:
    """A picture between two colours."""
    return as_picture(np.array(one) + part * (np.array(other) - np.array(one)))


def as_picture(pixels: NDArray[np.floating]) -> Image.Image:
    """Clipped and rounded to RGB."""
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def pen_on(picture: Image.Image) -> Pen:
    """A pen whose origin is the upper left corner and whose unit is the shorter side."""
    unit = min(picture.size)
    return Pen(ImageDraw.Draw(picture), 0, unit, 1j * unit)


def anywhere(rng: Generator) -> complex:
    """A point of the picture, or somewhat beyond its shorter side's end."""
    return complex(*rng.uniform(-0.1, 1.4, 2))


def grass(rng: Generator, width: int, height: int) -> Image.Image:
    """Blades from below, the near ones brighter."""
    picture = blend((38, 58, 28), (92, 118, 52), clouded(rng, width, height, (3, 6)))
    pen = pen_on(picture)
    for nearness in np.linspace(0.6, 1.15, 40):
        draw_blade(pen, rng, anywhere(rng) + 0.3j, nearness)
    return picture


def draw_blade(pen: Pen, rng: Generator, root: complex, light: float) -> None:
    """A blade of grass that grows up from its root."""
    tip = root + complex(rng.normal(0, 0.3), -rng.uniform(0.4, 1.0))
    colour = shaded(picked(rng, LEAVES), light)
    pen.line(
        curve(root, complex(root.real, (root.imag + tip.imag) / 2), tip),
        colour,
        rng.uniform(0.02, 0.06),
        end=0.1,
    )


def sky(rng: Generator, width: int, height: int) -> Image.Image:
    """Blue, paler downwards, with clouds."""
    veil = clouded(rng, width, height, (3, 5, 9)) * np.linspace(0.4, 1.4, height)[:, None, None]
    return blend((104, 152, 212), (232, 236, 240), veil)


def foliage(rng: Generator, width: int, height: int) -> Image.Image:
    """Leaves over each other, the deeper ones in shadow."""
    picture = blend((24, 38, 22), (60, 84, 40), clouded(rng, width, height, (4, 8)))
    pen = pen_on(picture)
    for nearness in np.linspace(0.5, 1.1, 26):
        length = rng.uniform(0.3, 0.6)
        leaf = pen.at(anywhere(rng), turn=rng.uniform(0, 2 * pi), wide=length, high=length)
        draw_leaf(leaf, shaded(picked(rng, LEAVES), nearness))
    return picture


def soil(rng: Generator, width: int, height: int) -> Image.Image:
    """Earth or sand with pebbles."""
    dark = shaded((112, 84, 60), rng.uniform(0.6, 1.3))
    picture = blend(dark, mixed(dark, CREAM, 0.5), clouded(rng, width, height, (5, 16, 60)))
    pen = pen_on(picture)
    for size in rng.uniform(0.01, 0.05, 30):
        pebble = pen.at(anywhere(rng), turn=rng.uniform(0, pi), high=rng.uniform(0.5, 0.9))
        pebble.round_off(size * CIRCLE, mixed(dark, CREAM, rng.uniform(0, 0.6)), steps=3)
    return picture


def far_garden(rng: Generator, width: int, height: int) -> Image.Image:
    """Discs of light and blossom before dusky green."""
    picture = blend((34, 52, 40), picked(rng, LEAVES), clouded(rng, width, height, (3, 4)))
    pen = pen_on(picture)
    for radius in rng.uniform(0.04, 0.14, 16):
        colour = picked(rng, (*LEAVES, *PETALS))
        pen.dot(anywhere(rng), radius, mixed((60, 80, 50), colour, rng.uniform(0.2, 0.7)))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4)))


def laid_on(
    picture: Image.Image, specimen: Image.Image, light: complex, rng: Generator
) -> Image.Image:
    """The specimen, lit from one side, over the picture that carries its shadow."""
    layer = np.asarray(specimen).astype(np.float32)
    paint, cover = layer[..., :3], layer[..., 3:] / 255
    behind = np.asarray(picture) * (
        1 - rng.uniform(0.1, 0.6) * shadow(cover, light, rng.uniform(2, 12))
    )
    texture = 0.9 + 0.2 * clouded(rng, *picture.size, (24, 60))
    return as_picture(behind * (1 - cover) + paint * relief(cover, light) * texture)


def softened(mask: Pixels, radius: float) -> Pixels:
    """A mask of 0 to 1, (height, width, 1), out of focus."""
    picture = Image.fromarray(np.uint8(mask[..., 0] * 255))
    blurred = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.float32)[..., None] / 255


def shadow(cover: Pixels, light: complex, distance: float) -> Pixels:
    """How much of the light is kept from the ground; the farther, the softer (pixels)."""
    shift = -light * distance
    moved = np.roll(cover, (round(shift.imag), round(shift.real)), axis=(0, 1))
    return softened(moved, 1 + distance / 3)


def relief(cover: Pixels, light: complex) -> Pixels:
    """How bright a specimen is as if it bulged: its edges towards the light are brighter than 1."""
    down, right = np.gradient(softened(cover, 7)[..., 0])
    return 1 - 4 * (right * light.real + down * light.imag)[..., None]


def covered(picture: Image.Image, rng: Generator) -> Image.Image:
    """The picture behind up to three blades of grass near the lens."""
    front = Image.new("RGBA", picture.size)
    pen = pen_on(front)
    for _ in range(rng.integers(0, 4)):
        draw_blade(pen, rng, complex(rng.uniform(0, 1.2), 1.3), rng.uniform(0.7, 1.3))
    blurred = front.convert("RGBa").filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2.5)))
    layer = np.asarray(blurred).astype(np.float32)
    return as_picture(np.asarray(picture) * (1 - layer[..., 3:] / 255) + layer[..., :3])


def taken(picture: Image.Image, light: complex, rng: Generator) -> bytes:
    """The JPEG a camera makes of the scene: uneven light, exposure, colour cast, focus, noise."""
    scene = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.1)))
    across = np.linspace(-1, 1, picture.width) * light.real
    along = np.linspace(-1, 1, picture.height) * light.imag
    glow = rng.uniform(0.85, 1.3) * (1 + rng.uniform(0, 0.25) * (across + along[:, None]))
    cast = rng.normal(1, 0.07, 3)
    grain = rng.standard_normal((picture.height, picture.width, 3), dtype=np.float32) * rng.uniform(
        1, 9
    )
    file = BytesIO()
    developed = as_picture(np.asarray(scene) * glow[..., None] * cast + grain)
    developed.save(file, "JPEG", quality=int(rng.integers(60, 93)))
    return file.getvalue()
