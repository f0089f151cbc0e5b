"""The demo's collection, drawn: look-alike flowers, butterflies and birds of invented species.

A species is a line of `SPECIES` and differs from its relatives in a detail or two. All else varies
as in real photographs: colour, pose, light, background, what stands in front, lens and sensor. A
specimen is drawn three times too large on a transparent sheet, which smooths its edges:

    specimen ──> shrunk ──> lit ─┐
    background ──> its shadow ───┴──> blades in front ──> camera ──> JPEG

Points are complex numbers, x to the right and y down, so turning is multiplying. Lengths are parts
of the specimen's size, angles radians, colours 0 to 255. Numbers without an origin are taste. Knows
nothing of catalogs, training or runs.
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

# Spelled out because the tests check types at run time, where `float` does not take 0.
Real = int | float
Point = int | float | complex

Colour = tuple[Real, Real, Real]
Palette = tuple[Colour, ...]
Points = NDArray[np.complexfloating]
Pixels = NDArray[np.floating]  # (height, width, channels)
Size = tuple[int, int]  # width, height in pixels

GOLD, PLUM, CREAM, INK = (232, 180, 40), (88, 34, 62), (243, 233, 208), (38, 30, 28)

# Every species of a kind wears any colour of its kind: colour alone says little.
PETALS = ((240, 236, 232), (236, 150, 180), (150, 110, 205), (120, 150, 225), (240, 205, 90))
WINGS = ((222, 130, 45), (160, 80, 45), (95, 125, 195), (225, 205, 150), (120, 95, 80))
PLUMAGE = ((125, 98, 72), (120, 122, 74), (96, 112, 130), (160, 96, 62), (176, 152, 110))
LEAVES = ((70, 112, 48), (96, 134, 58), (52, 92, 56), (124, 144, 70), (84, 104, 44))

SHORTEST, LONGEST = 140, 200  # sides of a photo in pixels
OVERSIZE = 3  # a specimen's sheet against its photo


@dataclass(frozen=True)
class Flower:
    """The details that tell a flower from its relatives."""

    petals: int = 5
    tip: Literal["round", "pointed", "notched"] = "round"
    width: Real = 1.0
    centre: Colour = GOLD
    stamens: int = 10


@dataclass(frozen=True)
class Butterfly:
    """The details that tell a butterfly from its relatives; eyespots are those of one wing."""

    fore_eyes: int = 1
    hind_eyes: int = 0
    pale_band: bool = False
    tails: bool = False
    feathery_antennae: bool = False


@dataclass(frozen=True)
class Bird:
    """The details that tell a bird from its relatives."""

    beak: Real = 0.24
    beak_bend: Real = 0.0
    tail: Real = 0.5
    forked: bool = False
    wing_bars: int = 1
    crest: Real = 0.0
    speckled: bool = False


Species = Flower | Butterfly | Bird

# How hard it is, on three draws of 240 of the 720 photos, trained on the rest: timm's `test_resnet`
# from random weights, 30 epochs at 64 pixels, names 0.89 to 0.91 of them, the nearest mean colour
# 0.10 to 0.13, chance 0.08.
SPECIES: Mapping[str, Species] = MappingProxyType(
    {
        "meadow-starwort": Flower(width=1.25),
        "notched-starwort": Flower(tip="notched", width=0.95),
        "dark-eyed-starwort": Flower(centre=PLUM, stamens=16),
        "six-petalled-starwort": Flower(petals=6, tip="pointed", width=0.85, stamens=12),
        "two-eyed-flitterwing": Butterfly(),
        "six-eyed-flitterwing": Butterfly(hind_eyes=2),
        "banded-flitterwing": Butterfly(pale_band=True, feathery_antennae=True),
        "tailed-flitterwing": Butterfly(fore_eyes=0, hind_eyes=1, tails=True),
        "common-thornpiper": Bird(),
        "crested-thornpiper": Bird(crest=0.48, beak=0.2, tail=0.6, wing_bars=2),
        "sickle-billed-thornpiper": Bird(beak=0.5, beak_bend=0.24, wing_bars=0),
        "fork-tailed-thornpiper": Bird(tail=0.95, forked=True, speckled=True),
    }
)


def draw_collection(
    folder: Path,
    *,
    photos_each: int = 60,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `photos_each` photos of every species to `folder`/species/NNN.jpg, over older ones.

    `progress` is called after each photo with the number of photos drawn so far.
    """
    for name in SPECIES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for done, (name, number) in enumerate(product(SPECIES, range(photos_each)), start=1):
        (folder / name / f"{number:03d}.jpg").write_bytes(draw_photo(name, number, seed=seed))
        if progress:
            progress(done)


def draw_photo(name: str, number: int, *, seed: int = 0) -> bytes:
    """Return an RGB JPEG of one of `SPECIES`; its bytes depend on the arguments alone.

    `number` and `seed` are 0 or more.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    width, height = rng.integers(SHORTEST, LONGEST, 2, endpoint=True).tolist()
    light = rect(1, rng.uniform(0, 2 * pi))
    scene = draw_background(rng, (width, height))
    scene = laid_on(rng, scene, draw_specimen(rng, SPECIES[name], scene.size), light)
    return taken(rng, behind_blades(rng, scene), light)


@dataclass(frozen=True)
class Pen:
    """A pen with a frame of its own: `right` and `down` are its units as steps in pixels."""

    sheet: ImageDraw.ImageDraw
    origin: Point
    right: Point
    down: Point

    def at(self, where: Point, turn: Real = 0, wide: Real = 1, high: Real = 1) -> "Pen":
        """Return a pen at `where`, turned clockwise, its units stretched; below 0 mirrored."""
        right, down = rect(1, turn) * wide, rect(1, turn) * high * 1j
        return Pen(self.sheet, self.origin + self.step(where), self.step(right), self.step(down))

    def step(self, way: Point) -> Point:
        """Return a way in pixels."""
        return way.real * self.right + way.imag * self.down

    def fill(self, outline: Points, colour: Colour) -> None:
        """Fill a closed outline."""
        pixels = self.origin + outline.real * self.right + outline.imag * self.down
        fill = tuple(round(min(max(part, 0), 255)) for part in colour)
        self.sheet.polygon(pixels.view(np.float64).tolist(), fill=fill)

    def round_off(self, outline: Points, colour: Colour, bulge: Real = 0.25) -> None:
        """Fill a closed outline that brightens from its rim inwards."""
        middle = outline.mean()
        for depth in np.linspace(0, 1, 5):
            inner = middle + (outline - middle) * (1 - 0.7 * depth)
            self.fill(inner, shaded(colour, 1 + bulge * (depth - 0.7)))

    def dot(self, where: Point, radius: Real, colour: Colour) -> None:
        """Fill a circle."""
        self.fill(where + radius * CIRCLE, colour)

    def line(self, points: Points, colour: Colour, width: Real, end: Real = 1) -> None:
        """Draw a line along points, `width` wide at first and `end` times that at last."""
        along = np.gradient(points)
        side = 0.5j * width * along / np.abs(along) * np.linspace(1, end, len(points))
        self.fill(np.concatenate([points + side, (points - side)[::-1]]), colour)


def smooth(*knots: Point) -> Points:
    """Return a closed outline, eight points a knot: a Catmull-Rom spline through the knots."""
    here = np.array(knots, dtype=np.complex128)[:, None]
    before, after, beyond = (np.roll(here, shift, axis=0) for shift in (1, -1, -2))
    t = np.arange(8) / 8
    bend, twist = 2 * before - 5 * here + 4 * after - beyond, 3 * (here - after) + beyond - before
    outline: Points = here + t / 2 * (after - before + t * (bend + t * twist))
    return outline.ravel()


def traced(knots: str) -> Points:
    """Return a closed outline through the knots of a text such as `0,0 1,0 1,1`."""
    return smooth(*(complex(*map(float, knot.split(","))) for knot in knots.split()))


def mirrored(*half: Point) -> Points:
    """Return a closed outline, symmetric about the x axis, through knots on one side of it."""
    return smooth(*half, *(knot.conjugate() for knot in reversed(half) if knot.imag))


def bow(start: Point, by_way_of: Point, end: Point) -> Points:
    """Return twelve points along a quadratic Bézier curve."""
    t = np.linspace(0, 1, 12, dtype=np.complex128)
    points: Points = (1 - t) ** 2 * start + 2 * t * (1 - t) * by_way_of + t**2 * end
    return points


CIRCLE = np.exp(2j * pi * np.arange(24) / 24)
LEAF = mirrored(0, 0.3 + 0.2j, 0.65 + 0.16j, 1)


def mixed(one: Colour, other: Colour, part: Real) -> Colour:
    """Return the one colour with `part` of the other in it."""
    red, green, blue = (a + part * (b - a) for a, b in zip(one, other, strict=True))
    return red, green, blue


def shaded(colour: Colour, light: Real) -> Colour:
    """Return the colour with its light multiplied."""
    return mixed((0, 0, 0), colour, light)


def picked(rng: Generator, palette: Palette) -> Colour:
    """Return a colour between two of the palette, somewhat lighter or darker."""
    one, other = rng.choice(len(palette), 2, replace=False)
    return shaded(mixed(palette[one], palette[other], rng.uniform(0, 0.5)), rng.uniform(0.85, 1.1))


def draw_specimen(rng: Generator, species: Species, size: Size) -> Image.Image:
    """Draw one individual in its pose on a transparent sheet (`RGBa`: premultiplied)."""
    sheet = Image.new("RGBA", (size[0] * OVERSIZE, size[1] * OVERSIZE))
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
    """Draw a flower, seen from above and a little aside, on a stem with two leaves."""
    green, colour = picked(rng, LEAVES), picked(rng, PETALS)
    stem = bow(0, rng.normal(0, 0.25) + 0.8j, rng.normal(0, 0.5) + 2.2j)
    pen.line(stem, shaded(green, 0.7), 0.07)
    pen.line(stem - 0.012, green, 0.035)
    for side in (-1, 1):
        turn = pi / 2 - side * rng.uniform(0.6, 1.3)
        draw_leaf(pen.at(stem[rng.integers(4, 8)], turn), green)
    aside = pen.at(0, turn=rng.uniform(0, 2 * pi), high=rng.uniform(0.6, 1))
    head = aside.at(0, turn=rng.uniform(0, 2 * pi))
    apart = 2 * pi / flower.petals
    for number in range(flower.petals):
        head.at(0, turn=(number + 0.5) * apart).fill(0.75 * LEAF, shaded(green, 0.8))
    for number in rng.permutation(flower.petals):
        draw_petal(head.at(0, turn=number * apart + rng.normal(0, 0.07)), rng, flower, colour)
    draw_flower_centre(head, rng, flower)


def draw_leaf(pen: Pen, green: Colour) -> None:
    """Draw a leaf from 0 to 1, with its midrib."""
    pen.round_off(LEAF, green)
    pen.line(bow(0, 0.5, 0.95), shaded(green, 1.2), 0.025, end=0.3)


def draw_petal(pen: Pen, rng: Generator, flower: Flower, colour: Colour) -> None:
    """Draw a petal from 0 to about 1, with its veins."""
    petal = pen.at(0, wide=rng.normal(1, 0.05), high=flower.width * rng.normal(1, 0.06))
    outline, tone = PETAL_OUTLINES[flower.tip], shaded(colour, rng.normal(1, 0.04))
    petal.fill(1.03 * outline, shaded(tone, 0.66))
    petal.round_off(outline, tone, bulge=0.16)
    for aside in (-0.16j, -0.05j, 0.05j, 0.16j):
        petal.line(bow(0.1, 0.4 + aside / 2, 0.72 + aside), shaded(tone, 0.84), 0.02, end=0.2)


def draw_flower_centre(pen: Pen, rng: Generator, flower: Flower) -> None:
    """Draw the disc and the stamens around it."""
    radius = rng.uniform(0.14, 0.19)
    for number in range(flower.stamens):
        tip = rect(radius * rng.uniform(1.25, 1.6), 2 * pi * number / flower.stamens)
        pen.line(bow(0, tip / 2, tip), mixed(flower.centre, CREAM, 0.6), 0.018)
        pen.dot(tip, 0.032, shaded(flower.centre, 0.8))
    pen.round_off(radius * CIRCLE, flower.centre, bulge=0.5)


FORE_WING = traced(".03,0 .2,-.38 .62,-.74 .95,-.72 .9,-.4 .72,-.06 .3,.06")
HIND_WING = traced(".03,0 .4,-.1 .7,.06 .72,.36 .5,.62 .24,.58 .1,.3")
WING_TAIL = traced(".3,.5 .62,.4 .6,.72 .7,.98 .56,1.04 .44,.78")
FORE_EYES = (0.66 - 0.46j, 0.58 - 0.2j)
HIND_EYES = (0.5 + 0.2j, 0.36 + 0.4j)
ABDOMEN = mirrored(0, 0.2 + 0.07j, 0.5 + 0.06j, 0.72)


def draw_butterfly(pen: Pen, rng: Generator, butterfly: Butterfly) -> None:
    """Draw a butterfly from above, its wings more or less open."""
    ground = picked(rng, WINGS)
    dark = mixed(shaded(ground, 0.35), INK, rng.uniform(0, 0.6))
    animal = pen.at(0, turn=rng.normal(0, 0.6))
    opening, lean = rng.uniform(0.62, 1), rng.uniform(0.82, 1)
    for wide in (-opening, opening * lean):
        side = animal.at(0, wide=wide, high=rng.normal(0.98, 0.03))
        fore, hind = (side.at(0, turn=rng.normal(0, 0.07)) for _ in range(2))
        if butterfly.tails:
            hind.fill(WING_TAIL, dark)
        draw_wing(hind, HIND_WING, shaded(ground, 0.93), dark, pale_band=butterfly.pale_band)
        draw_eyespots(hind, rng, HIND_EYES[: butterfly.hind_eyes], dark)
        draw_wing(fore, FORE_WING, ground, dark, pale_band=butterfly.pale_band)
        draw_eyespots(fore, rng, FORE_EYES[: butterfly.fore_eyes], dark)
    draw_antennae(animal, dark, feathery=butterfly.feathery_antennae)
    animal.at(-0.1j, turn=pi / 2).round_off(ABDOMEN, dark, bulge=0.8)
    animal.at(-0.08j, high=1.6).round_off(0.09 * CIRCLE, shaded(dark, 1.2), bulge=0.8)
    animal.at(-0.27j).round_off(0.065 * CIRCLE, shaded(dark, 1.1), bulge=0.8)  # the head


def draw_wing(pen: Pen, wing: Points, ground: Colour, dark: Colour, *, pale_band: bool) -> None:
    """Draw a wing with a dark margin, perhaps a pale band within, and veins from its root."""
    pen.fill(wing, dark)
    if pale_band:
        pen.fill(0.92 * wing, mixed(ground, CREAM, 0.85))
        pen.fill(0.77 * wing, shaded(ground, 0.65))
    reach = 0.74 if pale_band else 0.9
    for depth in np.linspace(0, 1, 5):
        pen.fill((reach - 0.5 * depth) * wing, shaded(ground, 1.05 - 0.3 * depth))
    for tip in wing[10:46:6]:
        pen.line(bow(0, 0.45 * tip + 0.02j, 0.95 * tip), mixed(ground, dark, 0.5), 0.014)


def draw_eyespots(pen: Pen, rng: Generator, places: tuple[Point, ...], dark: Colour) -> None:
    """Draw dark spots in pale rings, with a glint."""
    ring = mixed(GOLD, CREAM, rng.uniform(0.2, 0.8))
    for place in places:
        spot = place + complex(*rng.normal(0, 0.015, 2))
        radius = rng.uniform(0.085, 0.115)
        pen.dot(spot, 1.35 * radius, ring)
        pen.dot(spot, radius, dark)
        pen.dot(spot - 0.3 * radius * (1 + 1j), 0.3 * radius, CREAM)


def draw_antennae(pen: Pen, colour: Colour, *, feathery: bool) -> None:
    """Draw two antennae that end in clubs, or are feathery."""
    for side in (-1, 1):
        antenna = bow(-0.3j, side * 0.08 - 0.5j, side * 0.3 - 0.72j)
        pen.line(antenna, colour, 0.022)
        for place in antenna[4:] if feathery else ():
            barb = 0.07 * rect(1, side * 0.6)
            pen.line(bow(place - barb, place, place + barb), colour, 0.02)
        if not feathery:
            pen.dot(antenna[-1], 0.035, colour)


BIRD_BODY = traced(
    ".57,-.46 .49,-.61 .3,-.67 .13,-.52 -.08,-.27 -.34,-.02 -.58,.2"  # the crown and down the back
    " -.52,.33 -.22,.42 .14,.43 .41,.22 .48,-.08 .53,-.31"  # the belly and up to the throat
)
BELLY = traced(".5,-.3 .34,-.2 .2,.14 -.2,.3 -.48,.31 -.2,.4 .14,.41 .39,.21")
BIRD_WING = traced(".2,-.2 .02,-.22 -.3,.02 -.72,.32 -.3,.24 .08,.18 .24,0")


def draw_bird(pen: Pen, rng: Generator, bird: Bird) -> None:
    """Draw a bird on a twig, from the side, facing left or right."""
    back = picked(rng, PLUMAGE)
    pale = mixed(back, CREAM, rng.uniform(0.4, 0.8))
    facing = rng.choice((-1.0, 1.0))
    perch = pen.at(0.2 * facing * (bird.tail - bird.beak), wide=facing)
    tilted = perch.at(0, turn=rng.normal(0, 0.16))
    animal = tilted.at(0, wide=rng.uniform(0.85, 1), high=rng.uniform(0.9, 1.12))
    tail = animal.at(-0.46 + 0.22j, turn=pi - rng.normal(0.5, 0.15))
    feather = mirrored(0, 0.4 * bird.tail + 0.07j, 0.9 * bird.tail + 0.08j, bird.tail)
    for turn in (-0.24, 0.24) if bird.forked else (-0.05, 0.05):
        tail.at(0, turn).round_off(feather, shaded(back, 0.7), bulge=0.3)
    draw_twig_and_legs(perch, rng)
    animal.fill(1.015 * BIRD_BODY, shaded(back, 0.6))
    animal.round_off(BIRD_BODY, back, bulge=0.2)
    animal.round_off(BELLY, pale, bulge=0.12)
    for turn in (-2.6, -2.35, -2.1) if bird.crest else ():
        feather = mirrored(0, 0.5 * bird.crest + 0.05j, bird.crest)
        animal.at(0.26 - 0.6j, turn).fill(feather, shaded(back, 0.72))
    # Speckles are three rows of drops from the throat to the belly.
    for row, along in product(range(3 if bird.speckled else 0), np.linspace(0, 1, 6)):
        place = 0.44 - 0.12j + row * (-0.1 + 0.03j) + along * (-0.3 + 0.44j)
        drop = animal.at(place + complex(*rng.normal(0, 0.015, 2)), high=1.5)
        drop.dot(0, rng.uniform(0.022, 0.034), shaded(back, 0.5))
    draw_bird_wing(animal.at(0, turn=rng.normal(0, 0.05)), bird.wing_bars, back, pale)
    draw_face(animal.at(0.4 - 0.44j, turn=rng.normal(0, 0.15)), rng, bird, back)


def draw_twig_and_legs(pen: Pen, rng: Generator) -> None:
    """Draw a twig across the picture and two legs that stand on it."""
    bark, foot = shaded((104, 84, 66), rng.uniform(0.6, 1.2)), 0.62j
    sag, half = rng.normal(0, 0.15) * 1j, 2.4 + rng.normal(0, 0.35) * 1j
    twig = bow(foot - sag - half, foot + sag, foot - sag + half)  # its middle is at the feet
    pen.line(twig, shaded(bark, 0.7), rng.uniform(0.1, 0.16), end=0.7)
    pen.line(twig - 0.015j, bark, 0.06, end=0.7)
    for hip in (-0.06 + 0.3j, 0.1 + 0.3j):
        pen.line(bow(hip, hip + 0.15j, hip + 0.05 + 0.3j), (92, 66, 52), 0.035)


def draw_bird_wing(pen: Pen, bars: int, back: Colour, pale: Colour) -> None:
    """Draw the closed wing with its flight feathers and pale bars."""
    pen.fill(1.03 * BIRD_WING, shaded(back, 0.5))
    pen.round_off(BIRD_WING, shaded(back, 0.72), bulge=0.3)
    for drop in (0, 0.06j, 0.12j):
        feather = bow(drop - 0.1, drop - 0.3 + 0.1j, -0.62 + 0.3j)
        pen.line(feather, shaded(back, 0.5), 0.018)
    for shift in 0.2 * np.arange(bars):
        top, end = 0.1 - 0.2j + shift * (-1 + 0.8j), 0.04 + 0.17j - 0.8 * shift
        pen.line(bow(top, 0.12 - shift, end), pale, 0.05)


def draw_face(pen: Pen, rng: Generator, bird: Bird, back: Colour) -> None:
    """Draw beak, eye and the stripe through it, around the middle of the head."""
    horn = mixed(INK, (190, 140, 70), rng.uniform(0, 0.7))
    tip = complex(0.15 + bird.beak, 0.04 + bird.beak_bend)
    ridge = bow(0.12 - 0.07j, 0.2 - 0.05j + 0.6 * bird.beak, tip)
    chin = bow(tip, 0.18 + 0.07j + 0.4 * bird.beak, 0.12 + 0.08j)
    pen.fill(np.concatenate([ridge, chin]), horn)
    pen.line(bow(0.12, 0.18 + 0.5 * bird.beak, tip), shaded(horn, 0.6), 0.015)
    pen.line(bow(0.16 - 0.02j, 0.02 - 0.06j, -0.18 + 0.02j), shaded(back, 0.55), 0.05, end=0.4)
    pen.dot(0.03 - 0.05j, 0.05, INK)
    pen.dot(0.045 - 0.067j, 0.016, (255, 255, 255))


def draw_background(rng: Generator, size: Size) -> Image.Image:
    """Draw grass, sky, leaves, soil or a garden far away, more or less out of focus."""
    draw = (grass, sky, foliage, soil, far_garden)[rng.integers(5)]
    return draw(rng, size).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.5)))


def grass(rng: Generator, size: Size) -> Image.Image:
    """Draw blades that overlap, the near ones brighter."""
    picture = blended((38, 58, 28), (92, 118, 52), clouded(rng, size, 3, 6))
    for light in np.linspace(0.6, 1.15, 40):
        draw_blade(pen_on(picture), rng, anywhere(rng) + 0.3j, light)
    return picture


def sky(rng: Generator, size: Size) -> Image.Image:
    """Draw blue with clouds, paler downwards."""
    veil = clouded(rng, size, 3, 5, 9) * np.linspace(0.4, 1.4, size[1])[:, None, None]
    return blended((104, 152, 212), (232, 236, 240), veil)


def foliage(rng: Generator, size: Size) -> Image.Image:
    """Draw leaves that overlap, the near ones brighter."""
    picture = blended((24, 38, 22), (60, 84, 40), clouded(rng, size, 4, 8))
    for light in np.linspace(0.5, 1.1, 26):
        length = rng.uniform(0.3, 0.6)
        leaf = pen_on(picture).at(anywhere(rng), rng.uniform(0, 2 * pi), length, length)
        draw_leaf(leaf, shaded(picked(rng, LEAVES), light))
    return picture


def soil(rng: Generator, size: Size) -> Image.Image:
    """Draw earth or sand with pebbles."""
    earth = shaded((112, 84, 60), rng.uniform(0.6, 1.3))
    picture = blended(earth, mixed(earth, CREAM, 0.5), clouded(rng, size, 5, 16, 60))
    for radius in rng.uniform(0.01, 0.05, 30):
        pebble = pen_on(picture).at(anywhere(rng), high=rng.uniform(0.5, 0.9))
        pebble.round_off(radius * CIRCLE, mixed(earth, CREAM, rng.uniform(0, 0.6)))
    return picture


def far_garden(rng: Generator, size: Size) -> Image.Image:
    """Draw discs of light and blossom before dusky green."""
    picture = blended((34, 52, 40), picked(rng, LEAVES), clouded(rng, size, 3, 4))
    for radius in rng.uniform(0.04, 0.14, 16):
        disc = mixed((60, 80, 50), picked(rng, LEAVES + PETALS), rng.uniform(0.2, 0.7))
        pen_on(picture).dot(anywhere(rng), radius, disc)
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4)))


def draw_blade(pen: Pen, rng: Generator, root: Point, light: Real) -> None:
    """Draw a blade of grass that grows up from its root."""
    colour, height = shaded(picked(rng, LEAVES), light), rng.uniform(0.4, 1)
    tip = root + complex(rng.normal(0, 0.3), -height)
    pen.line(bow(root, root - 0.5j * height, tip), colour, rng.uniform(0.02, 0.06), end=0.1)


def pen_on(picture: Image.Image) -> Pen:
    """Return a pen from the upper left corner, with the shorter side as its unit."""
    unit = min(picture.size)
    return Pen(ImageDraw.Draw(picture), 0, unit, 1j * unit)


def anywhere(rng: Generator) -> Point:
    """Return a point of the picture, or a little outside it."""
    return complex(*rng.uniform(-0.1, 1.4, 2))


def clouded(rng: Generator, size: Size, *grids: int) -> Pixels:
    """Return smooth noise of 0 to 1, one channel: the mean over grids of `grids` cells a side."""
    total = np.zeros(size[::-1], dtype=np.float32)
    for cells in grids:
        coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    return np.clip(total / len(grids), 0, 1)[..., None]


def blended(one: Colour, other: Colour, part: Pixels) -> Image.Image:
    """Return the one colour with `part` of the other in it, pixel by pixel."""
    return as_picture(np.array(one) + part * (np.array(other) - np.array(one)))


def as_picture(pixels: Pixels) -> Image.Image:
    """Return pixels rounded and clipped to RGB."""
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def over(layer: Image.Image, picture: Pixels, light: Pixels | Real = 1) -> Image.Image:
    """Return an `RGBa` layer, its light multiplied, over a picture."""
    pixels = np.asarray(layer, dtype=np.float32)
    return as_picture(picture * (1 - pixels[..., 3:] / 255) + pixels[..., :3] * light)


def softened(mask: Image.Image, radius: Real) -> Pixels:
    """Return a mask out of focus, 0 to 1, one channel."""
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(radius)))[..., None] / 255


def laid_on(
    rng: Generator, picture: Image.Image, specimen: Image.Image, light: Point
) -> Image.Image:
    """Return the specimen, lit from one side, over the picture that carries its shadow.

    The farther away the ground is, the softer the shadow. Edges that face the light are brighter.
    """
    mask = specimen.getchannel(3)
    depth, distance = rng.uniform(0.1, 0.6), rng.uniform(2, 12)  # the distance in pixels
    shift = -distance * light
    shadow = mask.rotate(0, translate=(round(shift.real), round(shift.imag)))
    behind = np.asarray(picture) * (1 - depth * softened(shadow, 1 + distance / 3))
    texture = 0.9 + 0.2 * clouded(rng, picture.size, 24, 60)
    down, right = np.gradient(softened(mask, 7), axis=(0, 1))
    relief = 1 - 4 * (right * light.real + down * light.imag)
    return over(specimen, behind, relief * texture)


def behind_blades(rng: Generator, picture: Image.Image) -> Image.Image:
    """Return the picture behind up to three blades of grass that are close to the lens."""
    front = Image.new("RGBA", picture.size)
    for _ in range(rng.integers(4)):
        draw_blade(pen_on(front), rng, rng.uniform(0, 1.2) + 1.3j, rng.uniform(0.7, 1.3))
    blur = ImageFilter.GaussianBlur(rng.uniform(0.6, 2.5))
    return over(front.convert("RGBa").filter(blur), np.asarray(picture, dtype=np.float32))


def taken(rng: Generator, scene: Image.Image, light: Point) -> bytes:
    """Return the JPEG of a camera: focus, uneven light, exposure, colour cast, grain."""
    seen = np.asarray(scene.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.1))))
    down, right = (np.linspace(-1, 1, side) for side in seen.shape[:2])
    uneven = 1 + rng.uniform(0, 0.25) * (right * light.real + down[:, None] * light.imag)
    exposure = rng.uniform(0.85, 1.3) * rng.normal(1, 0.07, 3)
    grain = rng.uniform(1, 9) * rng.standard_normal(seen.shape, dtype=np.float32)
    developed = as_picture(seen * uneven[..., None] * exposure + grain)
    file = BytesIO()
    developed.save(file, "JPEG", quality=int(rng.integers(60, 93)))
    return file.getvalue()
