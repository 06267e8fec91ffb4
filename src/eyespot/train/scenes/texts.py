"""Pictures of printed words and numbers: read them, name their colour, find them, say which stands above which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image

from eyespot.train.data.record import Mark
from eyespot.train.scenes import canvas, glyphs, questions, split, vocabulary
from eyespot.train.scenes.questions import ask
from eyespot.train.scenes.scene import Box, Question

HOW_MANY = {"read": (1, 3), "spell": (1, 2), "colour": (1, 1), "position": (2, 3), "find": (2, 3), "describe": (1, 2)}


@dataclass(frozen=True, slots=True)
class Line:
    """ends: where each letter ends, in shares of the line's width."""

    text: str
    colour: str
    box: Box
    ends: tuple[float, ...]

    @property
    def marks(self) -> Iterator[Mark]:
        """Each letter; of a line at an angle, about where it is."""
        left, top, right, bottom = self.box
        edges = [left + share * (right - left) for share in (0.0, *self.ends)]
        for letter, x1, x2 in zip(self.text, edges, edges[1:], strict=False):
            yield Mark(letter, self.colour, (x1, top, x2, bottom))


@dataclass(frozen=True, slots=True)
class Page:
    """Lines from top to bottom."""

    image: Image.Image
    lines: tuple[Line, ...]

    @property
    def marks(self) -> tuple[Mark, ...]:
        return tuple(mark for line in self.lines for mark in line.marks)


Maker = Callable[[Random, Page], Question | None]


def draw(rng: Random, which: str, side: int, task: str) -> tuple[Page, str, bool]:
    """A picture good for `task`, its layout key, and whether it shows a word that training never does."""
    bands, key = _layout(rng, which, rng.randint(*HOW_MANY[task]))
    image, ground = canvas.background(rng, side)
    face = rng.choice(glyphs.TEXT_FONTS)
    lines: list[Line] = []
    for x, y, width, height in bands:
        words = _words(rng, which, [line.text for line in lines])
        colour, rgb = canvas.ink(rng, ground, 120)
        angle = rng.choice((-8, -4, 4, 8)) if len(bands) == 1 and rng.random() < 0.3 else 0
        sprite = glyphs.text(words, face, rgb, int(width * side), int(height * side), angle)
        left = min(max(round(x * side - sprite.width / 2), 0), side - sprite.width)
        top = min(max(round(y * side - sprite.height / 2), 0), side - sprite.height)
        sprite.paste(image, left, top)
        box = (left, top, left + sprite.width, top + sprite.height)
        lines.append(Line(words, colour, box, glyphs.ends(words, face)))
    return Page(image, tuple(lines)), key, any(split.held_out_word(line.text) for line in lines)


def _layout(rng: Random, which: str, count: int) -> tuple[list[tuple[float, float, float, float]], str]:
    """Centre, width and height of the room of each line, in shares of the side."""
    while True:
        band, rooms = 1 / count, []
        for i in range(count):
            height = rng.uniform(0.16, min(0.4, 0.72 * band))
            width = rng.uniform(0.5, 0.94)
            x = rng.uniform(width / 2 + 0.02, 0.98 - width / 2)
            y = rng.uniform(i * band + height / 2 + 0.02, (i + 1) * band - height / 2 - 0.02)
            rooms.append((x, y, width, height))
        key = split.layout_key([rooms])
        if split.layout_fits(which, key):
            return rooms, key


def _words(rng: Random, which: str, taken: list[str]) -> str:
    """A common word, a made-up one or a number of up to six letters, which the split may show, unlike those taken."""
    while True:
        kind = rng.random()
        if kind < 0.2:
            found = str(rng.randrange(10 ** rng.randint(1, 4)))
        elif kind < 0.65:
            found = rng.choice(vocabulary.WORDS)
        else:
            syllables = (
                rng.choice(vocabulary.ONSETS) + rng.choice(vocabulary.VOWELS) for _ in range(rng.randint(1, 2))
            )
            found = "".join(syllables) + rng.choice(vocabulary.CODAS)
        if len(found) > 6 or found.lower() in (t.lower() for t in taken):
            continue
        if which != "test" and split.held_out_word(found):
            continue
        return rng.choice((found.lower(), found.lower(), found.upper(), found.title()))


def describe(rng: Random, page: Page) -> Question | None:
    if len(page.lines) > 2:
        return None
    parts = [f"the {'number' if line.text.isdigit() else 'word'} {line.text} in {line.colour}" for line in page.lines]
    return ask(rng, "describe", "describe", " and ".join(parts))


def read(rng: Random, page: Page) -> Question | None:
    if len(page.lines) > 1 and rng.random() < 0.5:
        which, line = rng.choice((("read top", page.lines[0]), ("read bottom", page.lines[-1])))
        return ask(rng, "read", which, line.text)
    text = " ".join(line.text for line in page.lines)
    return ask(rng, "read word" if text.isalpha() else "read", "read", text)


def spell(rng: Random, page: Page) -> Question | None:
    """A lesson: letter by letter, for a word may be one token."""
    return ask(rng, "spell", "spell", " / ".join(" ".join(line.text) for line in page.lines))


def colour(rng: Random, page: Page) -> Question | None:
    if len(page.lines) != 1:
        return None
    shade = page.lines[0].colour
    return ask(rng, "colour", "colour word", shade, vocabulary.SPELLINGS.get(shade, ()))


def position(rng: Random, page: Page) -> Question | None:
    if len(page.lines) < 2:
        return None
    i, j = rng.sample(range(len(page.lines)), 2)
    nouns = {"a": f"word {page.lines[i].text}", "b": f"word {page.lines[j].text}"}
    return ask(rng, "position", "above below", "above" if i < j else "below", **nouns)


def find(rng: Random, page: Page) -> Question | None:
    line = rng.choice(page.lines)
    return questions.find(rng, line.text, line.box, page.image.size, "find word")


MAKERS: dict[str, Maker] = {
    "describe": describe,
    "read": read,
    "spell": spell,
    "colour": colour,
    "position": position,
    "find": find,
}
