"""Two pictures to compare, and clips in which one thing moves. Knows things and spots; frames are whole pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image

from eyespot.train.scenes import canvas, split, things, vocabulary
from eyespot.train.scenes.canvas import Spot
from eyespot.train.scenes.questions import ask
from eyespot.train.scenes.scene import Question
from eyespot.train.scenes.things import Thing

FRAMES = 4
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ORDINALS = ("first", "second")


@dataclass(frozen=True, slots=True)
class Pair:
    """What stands in the first and in the second picture."""

    images: tuple[Image.Image, Image.Image]
    shown: tuple[tuple[Thing, ...], tuple[Thing, ...]]


@dataclass(frozen=True, slots=True)
class Clip:
    """direction: where `mover` goes, a key of DIRECTIONS."""

    images: tuple[Image.Image, ...]
    mover: Thing
    direction: str
    still: tuple[Thing, ...]


# Two pictures


def draw_pair(rng: Random, which: str, side: int, task: str) -> tuple[Pair, str, bool]:
    """Two pictures of the same things, or of one more, less or other, or of more of the same."""
    kind = rng.choice(("same", "other", "more", "count"))
    if kind == "count":
        counts = rng.sample(range(1, 5), 2)
    else:
        few = rng.randint(1, 2)
        counts = [few, few + (kind == "more")]
        rng.shuffle(counts)
    while True:
        spots = [canvas.scatter(rng, n) for n in counts]
        key = split.layout_key([[spot.key() for spot in p] for p in spots])
        if split.layout_fits(which, key):
            break
    grounds = [canvas.background(rng, side) for _ in counts]
    chosen = _choose(
        rng, which, grounds[0][1], grounds[1][1], 1 if kind == "count" else max(counts) + (kind == "other")
    )
    if kind == "count":
        shown = [chosen * n for n in counts]
    elif kind == "other":  # all but the last, and all but the one before
        shown = [chosen[:-1], [*chosen[:-2], chosen[-1]]]
    else:
        shown = [chosen[:n] for n in counts]
    for (image, _), own, places in zip(grounds, shown, spots, strict=True):
        for thing, spot in zip(own, places, strict=True):
            things.put(rng, image, thing, spot)
    pair = Pair((grounds[0][0], grounds[1][0]), (tuple(shown[0]), tuple(shown[1])))
    return pair, key, split.novel(thing.noun for thing in chosen)


def _choose(rng: Random, which: str, one: tuple[int, int, int], two: tuple[int, int, int], count: int) -> list[Thing]:
    """Things that are seen on both grounds."""
    while True:
        chosen = things.choose(rng, which, one, count)
        if all(things.shows(thing, two) for thing in chosen):
            return chosen


def compare(rng: Random, pair: Pair) -> Question | None:
    first, second = ({thing.name: thing for thing in shown} for shown in pair.shown)
    forms: list[tuple[str, str, tuple[str, ...], dict[str, str]]] = []
    alone = [(0, first[n]) for n in first if n not in second] + [(1, second[n]) for n in second if n not in first]
    for i, thing in alone:
        forms.append(("which picture", ORDINALS[i], (), {"p": vocabulary.phrase(thing.name)}))
        if sum(j == i for j, _ in alone) == 1:
            forms.append((f"only {ORDINALS[i]}", thing.name, thing.accepted, {}))
    lengths = [len(shown) for shown in pair.shown]
    if first.keys() == second.keys() and lengths[0] != lengths[1]:  # more of one kind
        words = {"s": vocabulary.plural(pair.shown[0][0].name)}
        forms.append(("which more", ORDINALS[lengths[1] > lengths[0]], (), words))
    else:
        forms.append(("same", "no" if alone else "yes", (), {}))
    wording, answer, accepted, words = rng.choice(forms)
    return ask(rng, "compare", wording, answer, accepted, **words)


# Clips


def draw_clip(rng: Random, which: str, side: int, task: str) -> tuple[Clip, str, bool]:
    """FRAMES pictures in which the first thing goes at least a third of the side, and up to two others stay."""
    still = rng.randint(0, 2)
    while True:
        direction = rng.choice(sorted(DIRECTIONS))
        path = _path(rng, direction)
        others = _beside(rng, path, still)
        if others is None:
            continue
        key = split.layout_key([[spot.key() for spot in (at, *others)] for at in (path[0], path[-1])])
        if split.layout_fits(which, key):
            break
    back, ground = canvas.background(rng, side)
    chosen = things.choose(rng, which, ground, 1 + still)
    for thing, spot in zip(chosen[1:], others, strict=True):
        things.put(rng, back, thing, spot)
    angle, images = things.turn(rng, chosen[0]), []
    for spot in path:
        image = back.copy()
        things.put(rng, image, chosen[0], spot, angle)
        images.append(image)
    return Clip(tuple(images), chosen[0], direction, tuple(chosen[1:])), key, split.novel(t.noun for t in chosen)


def _path(rng: Random, direction: str) -> list[Spot]:
    size, far = rng.uniform(0.24, 0.34), rng.uniform(0.36, 0.62)
    along, across = rng.uniform(size / 2, 1 - size / 2 - far), rng.uniform(size / 2, 1 - size / 2)
    dx, dy = DIRECTIONS[direction]
    steps = [along + far * i / (FRAMES - 1) for i in range(FRAMES)]
    if dx + dy < 0:
        steps.reverse()
    return [Spot(s, across, size) if dx else Spot(across, s, size) for s in steps]


def _beside(rng: Random, path: list[Spot], count: int) -> tuple[Spot, ...] | None:
    """Spots off the path; None where there was no room."""
    found: list[Spot] = []
    for _ in range(30):
        if len(found) == count:
            break
        size = rng.uniform(0.22, 0.3)
        spot = Spot(rng.uniform(size / 2, 1 - size / 2), rng.uniform(size / 2, 1 - size / 2), size)
        if all(max(abs(spot.x - p.x), abs(spot.y - p.y)) > 0.52 * (size + p.size) for p in [*path, *found]):
            found.append(spot)
    return tuple(found) if len(found) == count else None


def motion(rng: Random, clip: Clip) -> Question | None:
    form = rng.choice(("what", "where", "where", "direction"))
    if form == "what":
        return ask(rng, "motion", "what moves", clip.mover.name, clip.mover.accepted)
    if form == "direction":
        return ask(rng, "motion direction", "direction", clip.direction)
    return ask(rng, "motion direction", "where moves", clip.direction, a=clip.mover.name)


PAIR_MAKERS: dict[str, Callable[[Random, Pair], Question | None]] = {"compare": compare}
CLIP_MAKERS: dict[str, Callable[[Random, Clip], Question | None]] = {"motion": motion}
