"""Boxes drawn on a picture, with what they are about. Knows pixels, no model and no answer's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from eyespot.boxes import Corners

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


def draw(image: Image, found: Sequence[tuple[str, Corners]]) -> Image:
    """A copy of `image` with a frame for each (label, box in pixels), the label on its upper edge."""
    from PIL import ImageDraw, ImageFont

    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    line = max(2, round(min(image.size) / 160))
    font = ImageFont.load_default(max(10, round(min(image.size) / 24)))
    for i, (label, (x1, y1, x2, y2)) in enumerate(found):
        colour = COLOURS[i % len(COLOURS)]
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        if not label:
            continue
        _, _, width, height = pen.textbbox((0, 0), label, font)
        left = min(max(0, x1), max(0, image.width - width - 2 * line))
        top = y1 - height - line if y1 >= height + line else y1  # inside where there is no room above
        pen.rectangle((left, top, left + width + 2 * line, top + height + line), fill=colour)
        pen.text((left + line, top), label, "white", font)
    return drawn
