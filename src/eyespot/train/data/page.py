"""A page of samples for the eye: each record's pictures with its boxes drawn, and its text beside them, on one PNG.

Knows records and Pillow. Letters that Pillow's own font lacks come out as boxes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from eyespot import boxes, images
from eyespot.errors import EyespotError
from eyespot.files import atomic
from eyespot.train.data.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image

CARD = (840, 340)  # pixels of one record
SIDE = 320  # of its pictures together
COLUMNS, MARGIN, LETTER, LINES = 2, 10, 15, 17
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
SHOWN = 16  # pictures of a record
WORDS = {"system": "S", "user": "Q", "assistant": "A"}


def draw(records: Sequence[Record], out: Path) -> None:
    """Writes the page of these records to `out`."""
    from PIL import Image

    rows = ceil(len(records) / COLUMNS)
    page = Image.new("RGB", (COLUMNS * CARD[0], max(rows, 1) * CARD[1]), "white")
    for number, record in enumerate(records):
        page.paste(card(record), (number % COLUMNS * CARD[0], number // COLUMNS * CARD[1]))
    with atomic(out, parents=True) as file:
        page.save(file, "PNG")


def card(record: Record) -> Image:
    """One record: its pictures at the left, its text at the right."""
    from PIL import Image, ImageDraw, ImageFont

    made = Image.new("RGB", CARD, "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(LETTER)
    pen.rectangle((0, 0, CARD[0] - 1, CARD[1] - 1), outline="#cccccc")
    pictures = record.images[:SHOWN]
    found = [box for turn in record.turns for box in boxes.find(turn.text)[0]]
    across = max(1, ceil(sqrt(len(pictures))))
    side = SIDE // across
    for number, picture in enumerate(pictures):
        try:
            image = images.load(picture).image
        except EyespotError:  # found with --quick, which opens headers alone
            image = Image.new("RGB", (side, side), "#cccccc")
        seen = thumbnail(image, side - 4, found if len(pictures) == 1 else [])
        made.paste(seen, (MARGIN + number % across * side, MARGIN + number // across * side))
    left = 2 * MARGIN + (SIDE if pictures else 0)
    width = (CARD[0] - left - MARGIN) * 2 // LETTER  # letters of a line: half as wide as high, about
    more = len(record.images) - len(pictures)
    head = f"{Path(record.place.file).name}:{record.place.line} {record.id}" + (f" +{more} pictures" if more else "")
    text = [head[:width], *(line for turn in record.turns for line in _wrapped(turn.role, turn.text, width))]
    if len(text) > LINES:
        text = [*text[: LINES - 1], "..."]
    for number, line in enumerate(text):
        colour = "#888888" if number == 0 else "black"
        pen.text((left, MARGIN + number * (CARD[1] - 2 * MARGIN) / LINES), line, fill=colour, font=font)
    return made


def thumbnail(image: Image, side: int, found: Sequence[Sequence[int]]) -> Image:
    """The picture, at most `side` pixels wide and high, with boxes (in thousandths) drawn."""
    from PIL import ImageDraw

    seen = image.copy()
    seen.thumbnail((side, side))
    pen = ImageDraw.Draw(seen)
    for number, box in enumerate(found):
        pen.rectangle(
            boxes.to_pixels(box, (seen.width - 1, seen.height - 1)), outline=COLOURS[number % len(COLOURS)], width=2
        )
    return seen


def _wrapped(role: str, text: str, width: int) -> list[str]:
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text[:4000])
    lines = [part for line in printable.split("\n") for part in textwrap.wrap(line, width) or [""]]
    return [f"{WORDS.get(role, role)}: {line}" if number == 0 else f"   {line}" for number, line in enumerate(lines)]
