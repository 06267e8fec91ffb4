"""Small pictures to paste: emoji, shapes and printed text at a size and an angle, cached where that pays.

Knows fonts and pixels; knows neither scenes nor questions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from eyespot.errors import EyespotError
from eyespot.train.scenes import vocabulary

RGB = tuple[int, int, int]

EMOJI_FONT = "NotoColorEmoji.ttf"  # Debian: fonts-noto-color-emoji
EMOJI_SIZE = 109  # the only size of that bitmap font
# Fonts that come with matplotlib, so that text looks the same on every machine.
TEXT_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneralBol.ttf",
)
LABEL_FONT = "DejaVuSans-Bold.ttf"
SEEN = 70.0  # distance of two colours that anyone tells apart; 441 is black to white
OPAQUE = 96  # alpha from which a pixel counts for a box


@dataclass(frozen=True, slots=True)
class Sprite:
    """mask: alpha [h, w], cropped to what is visible. fill: RGB picture of the same size, or one colour."""

    mask: Image.Image
    fill: Image.Image | RGB

    @property
    def width(self) -> int:
        return self.mask.width

    @property
    def height(self) -> int:
        return self.mask.height

    def paste(self, canvas: Image.Image, x: int, y: int) -> None:
        """Puts the left upper corner at (x, y)."""
        box = (x, y, x + self.width, y + self.height)
        canvas.paste(self.fill, box, self.mask)


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two RGB colours."""
    return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5)


# Emoji


@cache
def _emoji_font() -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(EMOJI_FONT, EMOJI_SIZE)
    except OSError:
        raise EyespotError(
            f"the font {EMOJI_FONT} is not on this machine", cause="apt-get install fonts-noto-color-emoji"
        ) from None


@cache
def full_emoji(char: str) -> Image.Image:
    """RGBA as the font has it, about 128 x 128, cropped."""
    image = Image.new("RGBA", (136, 136))
    ImageDraw.Draw(image).text((0, 0), char, font=_emoji_font(), embedded_color=True)
    box = image.getbbox()
    if box is None:
        raise EyespotError(f"{EMOJI_FONT} has no {vocabulary.cldr(char)}", cause="the font is older than this list")
    return image.crop(box)


@lru_cache(2048)
def emoji(char: str, size: int, angle: int = 0) -> Sprite:
    """size: pixels of its longer side before it is turned. angle: degrees, counter-clockwise."""
    full = full_emoji(char)
    scale = size / max(full.size)
    small = full.resize((max(1, round(full.width * scale)), max(1, round(full.height * scale))), Image.Resampling.BOX)
    if angle:
        small = small.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    small = small.crop(_visible(small.getchannel("A")))
    return Sprite(small.getchannel("A"), small.convert("RGB"))


@cache
def palette(char: str) -> tuple[tuple[float, RGB], ...]:
    """Up to eight colours of an emoji with their shares of its visible pixels, largest first."""
    full = full_emoji(char).resize((32, 32), Image.Resampling.BOX)
    alpha = full.getchannel("A").tobytes()
    pixels = full.convert("RGB").tobytes()
    seen = b"".join(pixels[3 * i : 3 * i + 3] for i in range(len(alpha)) if alpha[i] >= 200)
    few = Image.frombytes("RGB", (len(seen) // 3, 1), seen).quantize(8).convert("RGB")
    counted = sorted(few.getcolors(16) or [], key=lambda c: -c[0])
    return tuple((count / few.width, colour) for count, colour in counted if isinstance(colour, tuple))


def emoji_shows(char: str, ground: Sequence[float]) -> bool:
    """Whether at least two fifths of an emoji stand out from a background of this colour."""
    return sum(share for share, colour in palette(char) if distance(colour, ground) >= SEEN) >= 0.4


# Shapes

# Corners on the unit square.
POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": ((0.5, 0), (1, 0.9), (0, 0.9)),
    "diamond": ((0.5, 0), (0.85, 0.5), (0.5, 1), (0.15, 0.5)),
    "cross": tuple(
        (x / 3, y / 3)
        for x, y in ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1))
    ),
}


@lru_cache(1024)
def _shape_mask(shape: str, size: int, angle: int) -> Image.Image:
    side = 4 * size
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if shape in POLYGONS:
        draw.polygon([(x * (side - 1), y * (side - 1)) for x, y in POLYGONS[shape]], fill=255)
    elif shape == "heart":
        draw.pieslice((0, 0, side * 0.53, side * 0.53), 150, 360, fill=255)
        draw.pieslice((side * 0.47, 0, side - 1, side * 0.53), 180, 390, fill=255)
        draw.polygon([(0, side * 0.26), (side - 1, side * 0.26), (side * 0.94, side * 0.4), (side / 2, side * 0.95),
                      (side * 0.06, side * 0.4)], fill=255)  # fmt: skip
    else:
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            draw.ellipse((side * 0.28, side * 0.28, side * 0.72, side * 0.72), fill=0)
    if angle:
        mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    mask = mask.reduce(4)
    return mask.crop(_visible(mask))


def shape(kind: str, colour: RGB, size: int, angle: int = 0) -> Sprite:
    """A filled shape of SHAPES in one colour; size: pixels a side before it is turned."""
    return Sprite(_shape_mask(kind, size, angle), colour)


# Text


@cache
def _font_folder() -> Path:
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        raise EyespotError(
            "matplotlib, whose fonts print the words, is not installed", cause="pip install eyespot[train]"
        )
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"


@lru_cache(512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of TEXT_FONTS; size: pixels of an em."""
    try:
        return ImageFont.truetype(str(_font_folder() / name), size)
    except OSError as error:
        raise EyespotError(f"the font {name} cannot be read ({error})", cause="another matplotlib") from None


@lru_cache(4096)
def _text_mask(text: str, face: str, size: int, angle: int) -> Image.Image:
    used = font(face, size)
    left, top, right, bottom = used.getbbox(text)
    mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), text, font=used, fill=255)
    if angle:
        mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return mask.crop(_visible(mask))


@lru_cache(1 << 14)
def _extent(words: str, face: str) -> tuple[float, float, float, float]:
    """Box of a text at an em of 100 pixels."""
    return font(face, 100).getbbox(words)


@lru_cache(1 << 14)
def ends(words: str, face: str) -> tuple[float, ...]:
    """Where each letter of a line ends, in shares of its width."""
    used = font(face, 100)
    whole = used.getlength(words)
    return tuple(used.getlength(words[: i + 1]) / whole for i in range(len(words)))


def text(words: str, face: str, colour: RGB, width: int, height: int, angle: int = 0) -> Sprite:
    """A line of text in one colour, as large as fits into width x height pixels before it is turned."""
    left, top, right, bottom = _extent(words, face)
    size = int(100 * min(width / (right - left), height / (bottom - top)))
    return Sprite(_text_mask(words, face, max(size, 8), angle), colour)


_THRESHOLD = bytes(255 * (v >= OPAQUE) for v in range(256))


def _visible(alpha: Image.Image) -> tuple[int, int, int, int]:
    """The box of what counts as visible."""
    box = Image.frombytes("L", alpha.size, alpha.tobytes().translate(_THRESHOLD)).getbbox()
    return box or (0, 0, alpha.width, alpha.height)
