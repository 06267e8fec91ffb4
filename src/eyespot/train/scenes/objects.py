"""Pictures of emoji and coloured shapes: describe, name, count, colour, position, find, region, multiple choice.

Knows what may be asked about things that stand somewhere; text, charts and several pictures are made elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random

from PIL import Image

from eyespot.train.data.record import Mark
from eyespot.train.scenes import canvas, questions, split, things, vocabulary
from eyespot.train.scenes.questions import ask
from eyespot.train.scenes.scene import LETTERS, Question
from eyespot.train.scenes.things import Item

CELLS = 5  # of a picture of 160 pixels in tokens of 32
APART = 0.2  # of the side: two centres nearer than this are neither left nor right of each other
MOST_PAIRS = 4  # of things in one lesson about sides


@dataclass(frozen=True, slots=True)
class View:
    """A picture and what stands in it, left to right."""

    image: Image.Image
    items: tuple[Item, ...]

    @property
    def counts(self) -> Counter[str]:
        return Counter(item.thing.name for item in self.items)

    @property
    def marks(self) -> tuple[Mark, ...]:
        return tuple(Mark(item.thing.noun, item.thing.colour, item.box) for item in self.items)

    @property
    def alone(self) -> list[Item]:
        """The things that are there once."""
        counts = self.counts
        return [item for item in self.items if counts[item.thing.name] == 1]

    def single(self, rng: Random) -> Item | None:
        """A thing that is there once."""
        alone = self.alone
        return rng.choice(alone) if alone else None

    def pair(self, rng: Random) -> tuple[Item, Item] | None:
        """Two different things that are there once."""
        alone = self.alone
        if len(alone) < 2:
            return None
        a, b = rng.sample(alone, 2)
        return a, b


Maker = Callable[[Random, View], Question | None]

# task -> (fewest, most) things a picture that is made for it holds.
HOW_MANY = {
    "name": (1, 1),
    "grid": (1, 6),
    "places": (1, 5),
    "sides": (2, 4),
    "side": (2, 3),
    "whether": (2, 3),
    "counts": (2, 6),
    "describe": (1, 3),
    "count": (1, 6),
    "colour": (1, 4),
    "position": (2, 4),
    "find": (1, 5),
    "region": (2, 5),
    "choice": (1, 4),
    "options": (1, 4),
}


def draw(rng: Random, which: str, side: int, task: str) -> tuple[View, str, bool]:
    """A picture good for `task`, its layout key, and whether it shows what training never does."""
    count = rng.randint(*HOW_MANY[task])
    spots, key = layout(rng, which, count)
    image, ground = canvas.background(rng, side)
    kinds = count
    if task in ("count", "counts"):
        kinds = rng.randint(1, min(3, count))
    elif task == "describe":
        kinds = rng.randint(1, count)
    elif task == "places":
        kinds = rng.randint((count + 1) // 2, count)
    chosen = things.choose(rng, which, ground, kinds, coloured=task == "colour")
    shown = [*chosen, *(rng.choice(chosen) for _ in range(count - kinds))]
    rng.shuffle(shown)
    items = [things.put(rng, image, thing, spot) for thing, spot in zip(shown, spots, strict=True)]
    return view(image, items), key, split.novel(thing.noun for thing in chosen)


def layout(rng: Random, which: str, count: int) -> tuple[tuple[canvas.Spot, ...], str]:
    """Spots whose key belongs to the split."""
    while True:
        spots = canvas.scatter(rng, count)
        key = split.layout_key([[spot.key() for spot in spots]])
        if split.layout_fits(which, key):
            return spots, key


def view(image: Image.Image, items: list[Item]) -> View:
    return View(image, tuple(sorted(items, key=lambda item: item.x)))


# Questions. None: this one cannot be asked about this picture.


def describe(rng: Random, view: View) -> Question | None:
    if len(view.counts) > 3:
        return None
    parts = [vocabulary.phrase(name, count) for name, count in view.counts.items()]
    text = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return ask(rng, "describe", "describe", text)


def name(rng: Random, view: View) -> Question | None:
    if len(view.items) != 1:
        return None
    thing = view.items[0].thing
    return ask(rng, "name", "name", thing.name, thing.accepted)


def grid(rng: Random, view: View) -> Question | None:
    """A lesson: what covers the middle of each of CELLS x CELLS cells, row by row, "." for none. A model whose picture
    is so many tokens says for each what it shows: the densest thing to learn eyes from."""
    side = view.image.width / CELLS
    cells = []
    for i in range(CELLS * CELLS):
        x, y = (i % CELLS + 0.5) * side, (i // CELLS + 0.5) * side
        over = [t.thing.noun for t in view.items if t.box[0] <= x < t.box[2] and t.box[1] <= y < t.box[3]]
        cells.append(over[0] if over else ".")
    return ask(rng, "grid", "grid", " ".join(cells))


def places(rng: Random, view: View) -> Question | None:
    """A lesson: of each thing the tenths of the picture, across and down, where its middle lies; of several alike all,
    left to right. A model learns to look for what a word names, and how often it is there: two answers a thing that
    chance hardly gives, where a question about left and right gives one that chance gives half the time."""
    names = sorted(view.counts)
    rng.shuffle(names)
    said = []
    for name in names:
        alike = (item for item in view.items if item.thing.name == name)
        tenths = (f"{min(int(item.x * 10), 9)} {min(int(item.y * 10), 9)}" for item in alike)
        said.append(f"{name} {' '.join(tenths)}")
    return ask(rng, "places", "places", ", ".join(said), p=", ".join(names))


def sides(rng: Random, view: View) -> Question | None:
    """A lesson: of pairs of things on which side the first is of the second: what position asks, many times at once."""
    said = []
    for a, b in permutations(view.alone, 2):
        if words := " ".join(side for side, _ in _apart(a, b)):
            said.append((f"{a.thing.name} {b.thing.name}", words))
    if not said:
        return None
    said = rng.sample(said, min(len(said), MOST_PAIRS))
    answer = ", ".join(f"{pair} {words}" for pair, words in said)
    return ask(rng, "sides", "sides", answer, p=", ".join(pair for pair, _ in said))


def side(rng: Random, view: View) -> Question | None:
    """A lesson between sides and position: one pair, asked in a sentence, both sides answered without the names."""
    pair = view.pair(rng)
    words = pair and " ".join(side for side, _ in _apart(*pair))
    if pair is None or not words:
        return None
    return ask(rng, "side", "side", words, a=pair[0].thing.name, b=pair[1].thing.name)


def whether(rng: Random, view: View) -> Question | None:
    """A lesson: what position asks a quarter of the time, yes or no. Half of it is right by chance, and the rest wants
    both the side and a comparison with the one that is asked: nothing is learned of it before it comes often."""
    pair = view.pair(rng)
    apart = pair and _apart(*pair)
    if not pair or not apart:
        return None
    wording, answer = _is_it(rng, *rng.choice(apart))
    return ask(rng, "whether", wording, answer, a=pair[0].thing.name, b=pair[1].thing.name)


def counts(rng: Random, view: View) -> Question | None:
    """A lesson: how many there are of each of some kinds, of which some are not there; digits alone, as asked."""
    there = view.counts
    named = [*there, *things.absent(rng, [item.thing for item in view.items], rng.randint(0, 2))]
    named = rng.sample(named, rng.randint(1, len(named)))
    kinds = ", ".join(vocabulary.plural(name) for name in named)
    return ask(rng, "counts", "counts", " ".join(str(there[name]) for name in named), p=kinds)


def count(rng: Random, view: View) -> Question | None:
    counts = view.counts
    if len(view.items) > 1 and rng.random() < 0.15:
        return ask(rng, "count", "count all", *questions.number(len(view.items)))
    if rng.random() < 0.1:
        noun = things.absent(rng, [item.thing for item in view.items], 1)[0]
        return ask(rng, "count", "count", *questions.number(0), s=vocabulary.plural(noun))
    named = rng.choice(sorted(counts))
    return ask(rng, "count", "count", *questions.number(counts[named]), s=vocabulary.plural(named))


def colour(rng: Random, view: View) -> Question | None:
    """Of a noun that all its items share, so that one answer is right."""
    able = sorted({(item.thing.noun, item.thing.colour) for item in view.items if item.thing.colour})
    if not able:
        return None
    noun, shade = rng.choice(able)
    return ask(rng, "colour", "colour", shade, vocabulary.SPELLINGS.get(shade, ()), a=noun)


def position(rng: Random, view: View) -> Question | None:
    pair = view.pair(rng)
    if pair is None:
        return corner(rng, view)
    a, b = pair
    forms: list[tuple[str, str, tuple[str, ...]]] = []
    words = {"a": a.thing.name, "b": b.thing.name}
    for side, (low, high) in _apart(a, b):
        either = f"{low} {high}"
        forms += [(either, side, ()), (either, side, ()), (*_is_it(rng, side, (low, high)), ())]
        if len(view.items) == 2:
            forms.append((f"what {side}", a.thing.name, a.thing.accepted))
    if not forms:
        return None
    wording, answer, accepted = rng.choice(forms)
    return ask(rng, "position", wording, answer, accepted, **words)


def _apart(a: Item, b: Item) -> list[tuple[str, tuple[str, str]]]:
    """On which sides of `b` lies `a`, each with the two it could be; none where the two are level."""
    sides = []
    for far, low, high in ((a.x - b.x, "left", "right"), (a.y - b.y, "above", "below")):
        if abs(far) >= APART:
            sides.append((low if far < 0 else high, (low, high)))
    return sides


def _is_it(rng: Random, side: str, either: tuple[str, str]) -> tuple[str, str]:
    """The wording of a question about one of two sides, and its answer."""
    asked = rng.choice(either)
    return f"is it {asked}", "yes" if asked == side else "no"


def corner(rng: Random, view: View) -> Question | None:
    item = view.single(rng)
    if item is None or min(abs(item.x - 0.5), abs(item.y - 0.5)) < APART / 1.5:
        return None
    answer = f"{'top' if item.y < 0.5 else 'bottom'} {'left' if item.x < 0.5 else 'right'}"
    return ask(rng, "position", "corner", answer, (answer.replace("top", "upper").replace("bottom", "lower"),),
               a=item.thing.name)  # fmt: skip


def find(rng: Random, view: View) -> Question | None:
    item = view.single(rng)
    return None if item is None else questions.find(rng, item.thing.name, item.box, view.image.size)


def region(rng: Random, view: View) -> Question | None:
    item = rng.choice(view.items)
    where = questions.box_text(item.box, view.image.size)
    return ask(rng, "region", "region", item.thing.name, item.thing.accepted, box=where)


def choice(rng: Random, view: View) -> Question | None:
    right = rng.choice(view.items).thing
    wrong = things.absent(rng, [item.thing for item in view.items], 3)
    return questions.choice(rng, "choice", right.name, wrong)


def options(rng: Random, view: View) -> Question | None:
    """A lesson: several options by their letters, those that are named or those that are seen. What a multiple choice
    wants once a thing is known, the letter that stands before a word, is heard once a question there."""
    there = list(view.counts)
    room = min(4, len(LETTERS) - len(there))
    named = [*there, *things.absent(rng, [item.thing for item in view.items], rng.randint(2, room))]
    rng.shuffle(named)
    letter = {name: LETTERS[i] for i, name in enumerate(named)}
    listed = questions.listed(named)
    form = rng.choice(("letters", "names and letters", "letters seen"))
    if form == "letters seen":
        seen = " ".join(letter[name] for name in named if name in there)
        question = ask(rng, "options", form, seen)
        return replace(question, text=f"{question.text}\n{listed}\n{questions.CHOICES_END}")
    some = rng.sample(named, rng.randint(2, 3))
    told = ", ".join(f"{name} {letter[name]}" for name in some)
    answer = told if form == "names and letters" else " ".join(letter[name] for name in some)
    question = ask(rng, "options", form, answer, p=", ".join(some))
    return replace(question, text=f"{listed}\n{question.text}")


MAKERS: dict[str, Maker] = {
    "describe": describe,
    "name": name,
    "grid": grid,
    "places": places,
    "sides": sides,
    "side": side,
    "whether": whether,
    "counts": counts,
    "count": count,
    "colour": colour,
    "position": position,
    "find": find,
    "region": region,
    "choice": choice,
    "options": options,
}
