"""How each resolution rule would cut a picture, on one sheet to look at. Knows rules and pixels, no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eyespot.errors import EyespotError
from eyespot.resolution import TILED, BlueLMV, Cut, Fixed, InternVL, LlavaNext, Qwen, Rule, other

if TYPE_CHECKING:
    from PIL.Image import Image

    from eyespot.images import Picture

# Each rule as the models that brought it have it.
AUTHORS: dict[str, Rule] = {
    "fixed": Fixed(448, 256),
    "internvl": InternVL(448, 256),
    "llava_next": LlavaNext(336, 576),
    "bluelm_v": BlueLMV(384, 196),
    "qwen2_5_vl": Qwen(),
}
CELL, SHOWN, CAPTION, GAP, COLUMNS = 420, 400, 74, 10, 3  # pixels
INK, LINE, EMPTY = "#202020", "#e6194b", "#404040"


@dataclass(frozen=True, slots=True)
class Way:
    """One rule's way with one picture. enlargement: pixels of the canvas for each of the picture."""

    rule: str
    cut: Cut
    tokens: int
    enlargement: float

    def caption(self) -> str:
        cut = self.cut
        grid = f"{cut.columns} x {cut.rows} of {cut.tile[0]}x{cut.tile[1]}"
        thumbnail = f" + thumbnail {cut.thumbnail}" if cut.thumbnail else ""
        size = "{}x{}".format(*cut.canvas)
        area = f"{size}, {self.enlargement:.2f} of the picture's area"
        return f"{self.rule}: {self.tokens} tokens\n{grid}{thumbnail}\n{area}"

    def to_json(self) -> dict[str, object]:
        cut = self.cut
        return {
            "rule": self.rule, "tokens": self.tokens, "columns": cut.columns, "rows": cut.rows, "tile": list(cut.tile),
            "thumbnail": cut.thumbnail, "resized": list(cut.resized), "at": list(cut.at), "canvas": list(cut.canvas),
            "enlargement": self.enlargement,
        }  # fmt: skip


def rules(own: Rule | None = None) -> dict[str, Rule]:
    """The rules to compare: the authors', or those that the eyes of `own` can take, its own first."""
    if own is None:
        return AUTHORS
    names = TILED if own.name in TILED else (own.name,)
    return {name: other(own, name) for name in (own.name, *names)}


def ways(picture: Picture, chosen: Mapping[str, Rule], tokens: int | None = None) -> tuple[list[Way], dict[str, str]]:
    """What each rule makes of a picture, within `tokens`, and why a rule cannot take it. EyespotError when none can."""
    size, found, refused = (picture.width, picture.height), [], {}
    for name, rule in chosen.items():
        try:
            rule = rule if tokens is None else rule.within(tokens)
            cut = rule.cut(*size)
        except EyespotError as error:
            refused[name] = str(error)
            if len(refused) == len(chosen):
                raise
        else:
            found.append(Way(name, cut, rule.tokens(cut), cut.enlargement(size)))
    return found, refused


def sheet(picture: Picture, found: list[Way]) -> Image:
    """A drawing of every way: the canvas with its tiles in red, padding dark, what it costs below."""
    from PIL import Image, ImageDraw, ImageFont

    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    page = Image.new("RGB", (columns * (CELL + GAP) + GAP, rows * (CELL + CAPTION + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    largest = max(max(way.cut.canvas) for way in found)
    for i, way in enumerate(found):
        left, top = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + CAPTION + GAP)
        cut = way.cut
        scale = SHOWN / largest  # one scale for all, so that sizes can be compared; nothing shrinks below a few pixels
        width, height = (max(8, round(side * scale)) for side in cut.canvas)
        across, down = width / cut.canvas[0], height / cut.canvas[1]
        page.paste(Image.new("RGB", (width, height), EMPTY), (left, top))
        shown = max(1, round(cut.resized[0] * across)), max(1, round(cut.resized[1] * down))
        page.paste(picture.image.resize(shown), (left + round(cut.at[0] * across), top + round(cut.at[1] * down)))
        for column in range(cut.columns + 1):
            x = left + min(round(column * width / cut.columns), width - 1)
            pen.line((x, top, x, top + height - 1), LINE, 2)
        for row in range(cut.rows + 1):
            y = top + min(round(row * height / cut.rows), height - 1)
            pen.line((left, y, left + width - 1, y), LINE, 2)
        pen.multiline_text((left, top + CELL), way.caption(), INK, font, spacing=4)
    return page
