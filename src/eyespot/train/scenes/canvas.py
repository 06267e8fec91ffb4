"""Backgrounds, clutter and where things may stand. Knows colours and spots, not what is put there."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image, ImageChops, ImageDraw

from eyespot.train.scenes import vocabulary
from eyespot.train.scenes.glyphs import RGB, SEEN, distance

SIDES = (160, 192, 224)  # pixels; pictures are square, as the tiles of the models that will see them


@dataclass(frozen=True, slots=True)
class Spot:
    """A square: centre and side, in shares of the picture's side."""

    x: float
    y: float
    size: float

    def key(self) -> tuple[float, ...]:
        return (self.x, self.y, self.size)


def background(rng: Random, side: int) -> tuple[Image.Image, RGB]:
    """A picture of muted colours around one, and that colour."""
    hue, saturation = rng.random(), rng.uniform(0, 0.4)
    value = rng.choice((rng.uniform(0.12, 0.35), rng.uniform(0.7, 1), rng.uniform(0.8, 1)))
    base = _bytes(colorsys.hsv_to_rgb(hue, saturation, value))
    match rng.randrange(5):
        case 0:
            image = Image.new("RGB", (side, side), base)
        case 1:
            image = _cells(rng, base, 2, 24).resize((side, side), Image.Resampling.BILINEAR)
        case 2:
            image = _cells(rng, base, rng.randint(3, 6), 22).resize((side, side), Image.Resampling.BICUBIC)
        case 3:
            image = _stripes(rng, base, side)
        case _:
            image = _cells(rng, base, side // 2, 9).resize((side, side), Image.Resampling.NEAREST)
    if rng.random() < 0.4:
        _clutter(rng, image, base, side)
    return image, base


def _bytes(colour: tuple[float, float, float]) -> RGB:
    r, g, b = (round(255 * c) for c in colour)
    return r, g, b


def near(rng: Random, colour: RGB, stray: int) -> RGB:
    """A colour at most `stray` off in each channel."""
    r, g, b = (min(255, max(0, c + rng.randint(-stray, stray))) for c in colour)
    return r, g, b


def _cells(rng: Random, base: RGB, count: int, stray: int) -> Image.Image:
    """count x count pixels, each near the base colour."""
    noise = rng.randbytes(3 * count * count).translate(_noise_table(stray))
    cells = Image.frombytes("RGB", (count, count), noise)
    return ImageChops.add(cells, Image.new("RGB", cells.size, base), offset=-stray)


@cache
def _noise_table(stray: int) -> bytes:
    """Byte -> 0 to 2 * stray."""
    return bytes(2 * stray * v // 255 for v in range(256))


def _stripes(rng: Random, base: RGB, side: int) -> Image.Image:
    """Stripes or a chessboard in two near colours."""
    one, other, count = base, near(rng, base, 22), rng.randint(4, 14)
    columns, rows = rng.choice(((count, 1), (1, count), (count, count)))
    small = Image.new("RGB", (columns, rows))
    small.putdata([one if (i % columns + i // columns) % 2 else other for i in range(columns * rows)])
    return small.resize((side, side), Image.Resampling.NEAREST)


def _clutter(rng: Random, image: Image.Image, base: RGB, side: int) -> None:
    """A few faint lines, dots and frames that nobody would take for an object."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 8)):
        colour = near(rng, base, 26)
        x, y, far = rng.randrange(side), rng.randrange(side), side // 3
        x2, y2 = x + rng.randint(-far, far), y + rng.randint(-far, far)
        match rng.randrange(3):
            case 0:
                draw.line((x, y, x2, y2), fill=colour, width=rng.randint(1, 3))
            case 1:
                draw.ellipse((x, y, x + 3, y + 3), fill=colour)
            case _:
                draw.rectangle((min(x, x2), min(y, y2), max(x, x2), max(y, y2)), outline=colour)


def ink(rng: Random, ground: RGB, least: float = SEEN) -> tuple[str, RGB]:
    """A named colour that is seen on `ground`, and a shade of it."""
    names = [name for name, colour in vocabulary.COLOURS.items() if distance(colour, ground) >= least + 20]
    name = rng.choice(names)
    return name, near(rng, vocabulary.COLOURS[name], vocabulary.STRAY)


# Share of the side that one of n things takes: at least 32 pixels of 160, two patches of a small model.
SIZES = {
    1: (0.34, 0.85),
    2: (0.28, 0.44),
    3: (0.24, 0.36),
    4: (0.22, 0.32),
    5: (0.21, 0.28),
    6: (0.2, 0.25),
}


def scatter(rng: Random, count: int) -> tuple[Spot, ...]:
    """`count` spots that neither overlap nor leave the picture."""
    low, high = SIZES[count]
    while True:
        found: list[Spot] = []
        for _ in range(60):
            size = rng.uniform(low, high)
            x, y = rng.uniform(size / 2, 1 - size / 2), rng.uniform(size / 2, 1 - size / 2)
            if all(max(abs(x - p.x), abs(y - p.y)) > 0.52 * (size + p.size) for p in found):
                found.append(Spot(x, y, size))
                if len(found) == count:
                    return tuple(found)
