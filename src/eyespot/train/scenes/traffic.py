"""A domain beside the general scenes: what six cameras of a car see, stitched as Mini-InternVL stitches them.

Each camera sees a road and at most one thing that takes part in traffic. Knows what may be asked about that; drawn only
where the task `traffic` is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from eyespot.multi_view import CELL, COLUMNS, VIEWS, stitch
from eyespot.train.scenes import canvas, glyphs, questions, split, vocabulary
from eyespot.train.scenes.questions import ask
from eyespot.train.scenes.scene import Box, Question

EMOJI = "🚗🚌🚕🚑🚜🚲🚚🛴🐶🐮⚽☂"
CAMERA = (CELL[0] // 4, CELL[1] // 4)  # pixels of one camera, before it is stitched
SIZE = (0.62, 0.86)  # of a thing, in heights of the camera


@dataclass(frozen=True, slots=True)
class Road:
    """seen: camera -> what it sees and where, in pixels of the whole picture."""

    image: Image.Image
    seen: dict[str, tuple[str, Box]]

    def single(self, rng: Random) -> str | None:
        """A camera that sees what no other does."""
        names = [name for name, _ in self.seen.values()]
        alone = [view for view, (name, _) in self.seen.items() if names.count(name) == 1]
        return rng.choice(alone) if alone else None


def draw(rng: Random, which: str, side: int, task: str) -> tuple[Road, str, bool]:
    """A picture of 3 x 2 cameras, as wide as three sides."""
    while True:
        views = sorted(rng.sample(VIEWS, rng.randint(2, 5)), key=VIEWS.index)
        spots = {view: (rng.uniform(0.3, 0.7), rng.uniform(*SIZE)) for view in views}
        key = split.layout_key([[(VIEWS.index(view), *spots[view]) for view in views]])
        if split.layout_fits(which, key):
            break
    cameras = {view: _road(rng) for view in VIEWS}
    few = rng.randint(1, 3) if rng.random() < 0.5 else len(views)
    while True:
        shown = rng.choices(rng.sample(EMOJI, few), k=len(views))
        novel = split.novel(vocabulary.name(char) for char in shown)
        if which == "test" or not novel:
            break
    seen: dict[str, tuple[str, Box]] = {}
    scale = 3 * side / (COLUMNS * CELL[0])
    for (view, (x, size)), char in zip(spots.items(), shown, strict=True):
        sprite = glyphs.emoji(char, int(size * CAMERA[1]) // 2 * 2, 0)
        left = round(x * CAMERA[0] - sprite.width / 2)
        top = CAMERA[1] - sprite.height - rng.randint(2, 6)
        sprite.paste(cameras[view], left, top)
        row, column = divmod(VIEWS.index(view), COLUMNS)
        grown = [4 * v for v in (left, top, left + sprite.width, top + sprite.height)]
        corner = (column * CELL[0], row * CELL[1]) * 2
        x1, y1, x2, y2 = (round((c + v) * scale) for c, v in zip(corner, grown, strict=True))
        seen[view] = (vocabulary.name(char), (x1, y1, x2, y2))
    image = stitch(cameras).resize((3 * side, side), Image.Resampling.BICUBIC)
    return Road(image, seen), key, novel


def _road(rng: Random) -> Image.Image:
    """Sky, land, and a road that narrows."""
    width, height = CAMERA
    light = rng.uniform(0.5, 1)
    sky, land, road = ((160, 195, 230), (110, 140, 90), (120, 120, 125))
    shade = [canvas.near(rng, (int(r * light), int(g * light), int(b * light)), 12) for r, g, b in (sky, land, road)]
    image = Image.new("RGB", CAMERA, shade[0])
    pen = ImageDraw.Draw(image)
    far = rng.uniform(0.35, 0.5) * height
    pen.rectangle((0, far, width, height), fill=shade[1])
    middle = rng.uniform(0.4, 0.6) * width
    pen.polygon([(middle - 10, far), (middle + 10, far), (0.95 * width, height), (0.05 * width, height)], fill=shade[2])
    return image


def camera(view: str) -> str:
    """As a person says it: "front left"."""
    return view.lower().replace("_", " ")


def traffic(rng: Random, road: Road) -> Question | None:
    """One of five forms; None where it cannot be asked about this road."""
    names = [name for name, _ in road.seen.values()]
    form = rng.choice(("which camera", "what sees", "what sees", "ahead", "how many", "find"))
    single = road.single(rng)
    if form in ("which camera", "find") and single is None:
        return None
    if form == "which camera" and single is not None:
        return ask(rng, "traffic", "which camera", camera(single), (single,), a=road.seen[single][0])
    if form == "find" and single is not None:
        return questions.find(rng, *road.seen[single], road.image.size, "traffic find")
    if form == "what sees":
        view = rng.choice(VIEWS)
        return ask(rng, "traffic", "what sees", road.seen[view][0] if view in road.seen else "nothing", a=camera(view))
    if form == "ahead":
        return ask(rng, "traffic", "ahead", "no" if "FRONT" in road.seen else "yes")
    name = rng.choice(names)
    return ask(rng, "traffic", "how many cameras", *questions.number(names.count(name)), a=vocabulary.phrase(name))


MAKERS: dict[str, Callable[[Random, Road], Question | None]] = {"traffic": traffic}
