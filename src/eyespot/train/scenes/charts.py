"""Simple bar charts: values, the tallest and the shortest bar, how many, of which colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from random import Random

from PIL import Image, ImageDraw

from eyespot.train.data.record import Mark
from eyespot.train.scenes import canvas, glyphs, questions, split, vocabulary
from eyespot.train.scenes.glyphs import RGB, distance
from eyespot.train.scenes.questions import ask
from eyespot.train.scenes.scene import Question

MOST = 10  # the axis ends here
LABELS = ("A", "B", "C", "D", "E", "F", "K", "M", "N", "P", "R", "T", "X", "Y")
LABEL = 0.075  # of the side: em of the labels, 12 pixels of 160


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: int
    colour: str


@dataclass(frozen=True, slots=True)
class Chart:
    """marks: its bars, each by its letter, and the letters and digits beside them. A letter is as colourful as its bar,
    whatever its ink: eyes of which three labels share a token must join bar and letter before tokens are made."""

    image: Image.Image
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]


Maker = Callable[[Random, Chart], Question | None]


def draw(rng: Random, which: str, side: int, task: str) -> tuple[Chart, str, bool]:
    """A chart, its layout key (number of bars, frame, heights), and False: a chart is never novel."""
    while True:
        count = rng.randint(2, 5)
        left, top, bottom = rng.uniform(0.14, 0.2), rng.uniform(0.1, 0.2), rng.uniform(0.82, 0.88)
        values = [rng.randint(1, MOST) for _ in range(count)]
        key = split.layout_key([[(left, top, bottom)], [(v / 16,) for v in values]])
        if split.layout_fits(which, key):
            break
    ground: RGB = canvas.near(rng, rng.choice(((245, 245, 245), (235, 240, 250), (250, 245, 230), (35, 38, 45))), 5)
    dark = (20, 20, 20) if sum(ground) > 380 else (240, 240, 240)
    image = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(image)
    small = glyphs.font(glyphs.LABEL_FONT, max(9, round(LABEL * side)))
    room = 3 + ceil(small.size)  # of a line of writing, which is more than a frame's share of a small picture
    x0, x1 = max(4 + ceil(small.getlength(str(MOST))), round(left * side)), round(0.97 * side)
    y0, y1 = max(room, round(top * side)), min(side - room, round(bottom * side))
    marks: list[Mark] = []

    def write(at: tuple[float, float], text: str, anchor: str, shade: str) -> None:
        pen.text(at, text, font=small, fill=dark, anchor=anchor)
        x, top, right, bottom = pen.textbbox(at, text, font=small, anchor=anchor)
        each = (right - x) / len(text)
        marks.extend(Mark(c, shade, (x + i * each, top, x + (i + 1) * each, bottom)) for i, c in enumerate(text))

    ink = "black" if sum(dark) < 380 else "white"
    unit, printed = (y1 - y0) / MOST, rng.random() < 0.65
    step = 2 if not printed else 5
    for tick in range(0, MOST + 1, step):
        y = round(y1 - tick * unit)
        faint = tuple(round(0.8 * g + 0.2 * d) for g, d in zip(ground, dark, strict=True))
        pen.line((x0, y, x1, y), fill=dark if tick == 0 else faint)
        write((x0 - 3, y), str(tick), "rm", ink)
    pen.line((x0, y0, x0, y1), fill=dark)
    pitch = (x1 - x0) / count
    labels, bars = rng.sample(LABELS, count), []
    named = [n for n, c in vocabulary.COLOURS.items() if distance(c, ground) >= 110]
    shades = rng.sample(named, count) if rng.random() < 0.6 else [rng.choice(named)] * count
    for i, (label, value, shade) in enumerate(zip(labels, values, shades, strict=True)):
        middle, half = x0 + pitch * (i + 0.5), pitch * 0.33
        box = (round(middle - half), round(y1 - value * unit), round(middle + half), y1)
        pen.rectangle(box, fill=canvas.near(rng, vocabulary.COLOURS[shade], vocabulary.STRAY))
        marks.append(Mark(label, shade, box))
        write((middle, y1 + 3), label, "mt", shade)
        if printed:
            write((middle, box[1] - 2), str(value), "mb", shade)
        bars.append(Bar(label, value, shade))
    return Chart(image, tuple(bars), tuple(marks)), key, False


def value(rng: Random, chart: Chart) -> Question | None:
    """Of a bar, or which bar it is: the largest, the smallest, the larger of two."""
    order = sorted(chart.bars, key=lambda bar: bar.value)
    forms: list[tuple[str, str, dict[str, str]]] = []
    bar = rng.choice(chart.bars)
    forms += 3 * [("bar", str(bar.value), {"a": bar.label})]
    forms.append(("largest value", str(order[-1].value), {}))
    if order[-1].value > order[-2].value:
        forms.append(("tallest", order[-1].label, {}))
    if order[0].value < order[1].value:
        forms.append(("shortest", order[0].label, {}))
    a, b = rng.sample(chart.bars, 2)
    if a.value != b.value:
        forms.append(("more bar", (a if a.value > b.value else b).label, {"a": a.label, "b": b.label}))
    wording, answer, words = rng.choice(forms)
    return ask(rng, "chart", wording, answer, **words)


def count(rng: Random, chart: Chart) -> Question | None:
    return ask(rng, "count", "count bars", *questions.number(len(chart.bars)))


def colour(rng: Random, chart: Chart) -> Question | None:
    bar = rng.choice(chart.bars)
    return ask(rng, "colour", "colour", bar.colour, vocabulary.SPELLINGS.get(bar.colour, ()), a=f"bar {bar.label}")


def bars(rng: Random, chart: Chart) -> Question | None:
    """A lesson: the values or the colours of several bars, each to be found by its letter, in the order asked; or the
    letter, colour and value of all, left to right, where each is said beside the one it belongs to."""
    if rng.random() < 0.3:
        told = ", ".join(f"{bar.label} {bar.colour} {bar.value}" for bar in chart.bars)
        return ask(rng, "bars", "bars", told)
    asked = rng.sample(chart.bars, rng.randint(2, len(chart.bars)))
    labels = ", ".join(bar.label for bar in asked)
    if len({bar.colour for bar in chart.bars}) > 1 and rng.random() < 0.6:
        return ask(rng, "bars", "bar colours", " ".join(bar.colour for bar in asked), p=labels)
    return ask(rng, "bars", "bar values", " ".join(str(bar.value) for bar in asked), p=labels)


def order(rng: Random, chart: Chart) -> Question | None:
    """A lesson: the letters of the bars from high to low or from low to high, where no two are level. Its first letter
    is what a question about the tallest or the shortest asks."""
    if len({bar.value for bar in chart.bars}) < len(chart.bars):
        return None
    wording = rng.choice(("order", "order up"))
    ranked = sorted(chart.bars, key=lambda bar: bar.value, reverse=wording == "order")
    return ask(rng, "order", wording, " ".join(bar.label for bar in ranked))


MAKERS: dict[str, Maker] = {"chart": value, "count": count, "colour": colour, "bars": bars, "order": order}
