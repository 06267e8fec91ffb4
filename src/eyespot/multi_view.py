"""Six cameras as one picture: stitched 3 by 2 to 2688x896 with each one's name drawn, boxes mapped there and back.

Mini-InternVL's form: 12 tiles of 448 and a thumbnail. Ground floor: knows pictures and boxes, no model and no format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from eyespot import boxes, images
from eyespot.boxes import Corners, Size
from eyespot.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from eyespot.images import Source

VIEWS = ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")  # row by row
COLUMNS = 3
CELL = (896, 448)  # pixels of one camera
STITCHED = (COLUMNS * CELL[0], len(VIEWS) // COLUMNS * CELL[1])
MAGENTA, LETTER = (255, 0, 255), 50


def stitch(pictures: Mapping[str, Source]) -> Image:
    """The six VIEWS, each squeezed into its cell, with its name at the cell's left upper corner. RGB, 2688x896."""
    from PIL import Image, ImageDraw
    from PIL.Image import Resampling

    if set(pictures) != set(VIEWS):
        raise UsageError("not the six cameras", found=", ".join(sorted(map(str, pictures))), expected=", ".join(VIEWS))
    canvas = Image.new("RGB", STITCHED)
    pen = ImageDraw.Draw(canvas)
    for view in VIEWS:
        corner = _corner(view)
        canvas.paste(images.load(pictures[view]).image.resize(CELL, Resampling.BICUBIC), corner)
        pen.text(
            corner, view, fill=MAGENTA, font=_font(), stroke_width=1, stroke_fill=MAGENTA
        )  # the stroke makes it bold
    return canvas


def on_canvas(view: str, box: Sequence[float], size: Size) -> Corners:
    """A box in pixels of a camera whose picture is `size` wide and high, in those of the stitched picture."""
    (left, top), (x1, y1, x2, y2) = _corner(view), box
    across, down = CELL[0] / size[0], CELL[1] / size[1]
    return left + x1 * across, top + y1 * down, left + x2 * across, top + y2 * down


def off_canvas(box: Sequence[float], sizes: Mapping[str, Size]) -> tuple[str, Corners]:
    """The camera in which a box of the stitched picture, in pixels, has its middle, and the box in that camera's
    pixels, cut at its edges. sizes: width and height of each camera's picture."""
    x1, y1, x2, y2 = box
    column = min(int((x1 + x2) / 2 // CELL[0]), COLUMNS - 1)
    row = min(int((y1 + y2) / 2 // CELL[1]), len(VIEWS) // COLUMNS - 1)
    view = VIEWS[max(row, 0) * COLUMNS + max(column, 0)]
    (left, top), (width, height) = _corner(view), sizes[view]

    def along(at: float, start: int, cell: int, length: int) -> float:
        return min(max((at - start) / cell, 0.0), 1.0) * length

    return view, (
        along(x1, left, CELL[0], width),
        along(y1, top, CELL[1], height),
        along(x2, left, CELL[0], width),
        along(y2, top, CELL[1], height),
    )


def to_stitched(view: str, box: Sequence[float], size: Size) -> tuple[int, int, int, int]:
    """A box of a camera, as thousandths of the stitched picture. EyespotError when it leaves the camera's picture."""
    boxes.check(box, size)
    return boxes.to_thousandths(on_canvas(view, box, size), STITCHED)


def _corner(view: str) -> tuple[int, int]:
    row, column = divmod(VIEWS.index(view), COLUMNS)
    return column * CELL[0], row * CELL[1]


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(LETTER)
