"""What may stand in a picture: emoji and coloured shapes, chosen so that a split shows only pairs it may.

Knows names and looks, not spots or questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from eyespot.train.scenes import glyphs, split, vocabulary
from eyespot.train.scenes.canvas import Spot, ink
from eyespot.train.scenes.glyphs import RGB, Sprite
from eyespot.train.scenes.scene import Box

COLOUR_OF = {char: colour for colour, chars in vocabulary.COLOUR_OF.items() for char in chars}
SHAPE_SHARE = 0.22  # of things


@dataclass(frozen=True, slots=True)
class Thing:
    """name: the whole answer ("cat", "red circle"). noun: what a question calls it ("circle"), one of a kind in its
    picture. colour: "" where people would not agree."""

    name: str
    noun: str
    colour: str
    accepted: tuple[str, ...]
    char: str = ""
    rgb: RGB = (0, 0, 0)

    def sprite(self, size: int, angle: int) -> Sprite:
        if self.char:
            return glyphs.emoji(self.char, size, angle)
        return glyphs.shape(self.noun, self.rgb, size, angle)


@dataclass(frozen=True, slots=True)
class Item:
    """A thing where it stands; box in pixels, centre in shares of the side."""

    thing: Thing
    box: Box
    x: float
    y: float


def _emoji(char: str) -> Thing:
    return Thing(
        vocabulary.name(char), vocabulary.name(char), COLOUR_OF.get(char, ""), vocabulary.other_names(char), char
    )


def choose(rng: Random, which: str, ground: RGB, count: int, coloured: bool = False) -> list[Thing]:
    """`count` things of different nouns that stand out from `ground`.

    which: the split; in half of the pictures of the test split two of them were never together in training.
    coloured: the first has a colour.
    """
    surprise = which == "test" and count > 1 and rng.random() < 0.5
    while True:
        found: list[Thing] = []
        for _ in range(40 * count):
            thing = _any(rng, ground, coloured and not found)
            if thing is None or any(thing.noun == f.noun for f in found):
                continue
            if which != "test" and any(split.held_out_pair(thing.noun, f.noun) for f in found):
                continue
            if surprise and len(found) == 1 and not split.held_out_pair(thing.noun, found[0].noun):
                continue
            found.append(thing)
            if len(found) == count:
                return found


def shows(thing: Thing, ground: RGB) -> bool:
    """Whether a thing stands out from this background too."""
    return glyphs.emoji_shows(thing.char, ground) if thing.char else glyphs.distance(thing.rgb, ground) >= glyphs.SEEN


def absent(rng: Random, among: Sequence[Thing], count: int) -> list[str]:
    """Names of kinds that are not there."""
    nouns = {thing.noun for thing in among}
    found: list[str] = []
    while len(found) < count:
        name = vocabulary.name(rng.choice(vocabulary.EMOJI))
        if name not in nouns and name not in found:
            found.append(name)
    return found


def _any(rng: Random, ground: RGB, coloured: bool) -> Thing | None:
    """A thing, or None where the one drawn would not be seen."""
    if rng.random() < (0.5 if coloured else SHAPE_SHARE):
        shape = rng.choice(vocabulary.SHAPES)
        colour, rgb = ink(rng, ground)
        spelled = tuple(f"{s} {shape}" for s in vocabulary.SPELLINGS.get(colour, ()))
        return Thing(f"{colour} {shape}", shape, colour, (shape, *spelled), rgb=rgb)
    char = rng.choice(vocabulary.EMOJI)
    if (coloured and char not in COLOUR_OF) or not glyphs.emoji_shows(char, ground):
        return None
    return _emoji(char)


def put(rng: Random, canvas: Image.Image, thing: Thing, spot: Spot, angle: int | None = None) -> Item:
    """Draws a thing at a spot; angle None: a random one."""
    side = canvas.width
    if angle is None:
        angle = turn(rng, thing)
    size = max(8, int(spot.size * side * (0.84 if angle else 1)) // 2 * 2)  # even sizes: twice as many cache hits
    sprite = thing.sprite(size, angle)
    x = min(max(round(spot.x * side - sprite.width / 2), 0), side - sprite.width)
    y = min(max(round(spot.y * side - sprite.height / 2), 0), side - sprite.height)
    sprite.paste(canvas, x, y)
    box = (x, y, x + sprite.width, y + sprite.height)
    return Item(thing, box, (x + sprite.width / 2) / side, (y + sprite.height / 2) / side)


def turn(rng: Random, thing: Thing) -> int:
    """A random angle in degrees; shapes turn less, lest a square become a diamond."""
    return rng.choice((0, 0, 0, -30, -15, 15, 30) if thing.char else (0, 0, -15, 15))
