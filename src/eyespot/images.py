"""Pictures from paths, bytes or PIL, read as hostile input, into upright RGB with a content hash.

Ground floor: knows no model. How a picture is cut stands in resolution.py, its tiles are made here; what becomes of
their pixels is for others.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from eyespot import limits
from eyespot.errors import EyespotError, UsageError, one_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from eyespot.boxes import Corners
    from eyespot.resolution import Cut

    Source: TypeAlias = "str | Path | bytes | Image | Picture"  # what callers may give for a picture

EXIF_ORIENTATION = 0x0112
# EXIF value -> the member of PIL's Transpose that sets the picture upright (EXIF 2.32, 4.6.4).
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright RGB picture.

    digest: SHA-256 of its size and pixels, so equal pictures are equal however they came. orientation: EXIF's, by which
    it was set upright. time: of a clip's frame, in seconds from its beginning. frames: of a clip that is shown as one
    picture, an even number; times: of each pair of them, in seconds from the first. views: name, width and height of
    each camera that was stitched into it.
    """

    image: Image
    name: str
    digest: bytes
    orientation: int = 1
    time: float | None = None
    frames: tuple[Image, ...] = ()
    times: tuple[float, ...] = ()
    views: tuple[tuple[str, tuple[int, int]], ...] = ()

    @property
    def frame_pairs(self) -> int:
        return max(1, len(self.frames) // 2)

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height


def to_stored(corners: Corners, picture: Picture) -> Corners:
    """A box in pixels of the upright picture, in those of the file as it is stored, for readers that ignore EXIF."""
    width, height = picture.width, picture.height  # upright
    x1, y1, x2, y2 = corners
    match picture.orientation:
        case 2:
            return width - x2, y1, width - x1, y2
        case 3:
            return width - x2, height - y2, width - x1, height - y1
        case 4:
            return x1, height - y2, x2, height - y1
        case 5:
            return y1, x1, y2, x2
        case 6:
            return y1, width - x2, y2, width - x1
        case 7:
            return height - y2, width - x2, height - y1, width - x1
        case 8:
            return height - y2, x1, height - y1, x2
    return corners


def load(source: Source) -> Picture:
    """Reads a picture: JPEG, PNG, WebP, GIF (first frame) or BMP, from a path or bytes, or any PIL image.

    EXIF orientation is honoured. Transparency is dropped as the model authors do (`convert("RGB")`: a transparent
    pixel shows the colour stored under it). 16-bit grey keeps its high byte, where PIL alone would clip it to white.
    UsageError when the path leads to no file; EyespotError for anything that is not a whole picture within limits.py.
    """
    if isinstance(source, Picture):
        return source
    return _finish(*_opened(source))


def size(source: Source) -> tuple[int, int]:
    """Width and height in pixels of the upright picture, by its header alone. Fails as `load` does, but for pixels."""
    if isinstance(source, Picture):
        return source.width, source.height
    image = opened(source)
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def opened(source: str | Path | bytes | Image) -> Image:
    """The picture as PIL has it, its header read and checked and no pixel yet: for the frames of an animation."""
    image, name = _opened(source)
    _check_size(*image.size, name)
    return image


def tiles(image: Image, cut: Cut, resample: str = "bicubic") -> npt.NDArray[np.uint8]:
    """The tiles [t, height, width, 3] of an RGB picture that is cut so: resized once for the canvas, once for the
    thumbnail. resample: a name of PIL's, in any case."""
    import numpy as np
    from PIL import Image as pil

    method, (width, height) = pil.Resampling[resample.upper()], cut.tile
    canvas = image.resize(cut.resized, method)
    if cut.resized != cut.canvas:
        padded = pil.new("RGB", cut.canvas)
        padded.paste(canvas, cut.at)
        canvas = padded
    grid = np.asarray(canvas).reshape(cut.rows, height, cut.columns, width, 3).transpose(0, 2, 1, 3, 4)
    seen = np.empty((cut.tiles, height, width, 3), np.uint8)
    first = int(cut.thumbnail == "first")
    seen[first : first + cut.columns * cut.rows] = grid.reshape(-1, height, width, 3)
    if cut.thumbnail:
        seen[0 if first else -1] = np.asarray(image.resize(cut.tile, method))
    return seen


def _opened(source: str | Path | bytes | Image) -> tuple[Image, str]:
    """The picture, not yet decoded, and its name."""
    if isinstance(source, bytes | bytearray | memoryview):
        return _header(bytes(source[: limits.IMAGE_FILE_BYTES + 1]), "picture"), "picture"
    if isinstance(source, str | os.PathLike):
        name = one_line(Path(source).name)
        return _header(_read(Path(source)), name), name
    if not (hasattr(source, "getexif") and hasattr(source, "convert")):
        raise UsageError(
            "a picture has the wrong type", found=type(source).__name__, expected="a path, bytes or a PIL image"
        )
    return source, "picture"


def _read(path: Path) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe or a device might never end
                raise UsageError(f"picture '{path}' is not a file")
            return file.read(limits.IMAGE_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        wrong = isinstance(error, FileNotFoundError | NotADirectoryError | ValueError)
        raise UsageError(
            f"picture '{path}' cannot be read ({reason})", cause="the path is wrong" if wrong else None
        ) from None


def _jpeg() -> Any:
    from PIL.JpegImagePlugin import JpegImageFile

    return JpegImageFile


def _png() -> Any:
    from PIL.PngImagePlugin import PngImageFile

    return PngImageFile


def _gif() -> Any:
    from PIL.GifImagePlugin import GifImageFile

    return GifImageFile


def _bmp() -> Any:
    from PIL.BmpImagePlugin import BmpImageFile

    return BmpImageFile


def _webp() -> Any:
    from PIL.WebPImagePlugin import WebPImageFile

    return WebPImageFile


# First bytes -> reader. Not Image.open: its list of formats and its size warning belong to the whole process.
FORMATS: dict[bytes, Callable[[], Any]] = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"GIF87a": _gif,
    b"GIF89a": _gif,
    b"BM": _bmp,
    b"RIFF": _webp,
}


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height of a WebP file's canvas; its decoder allocates the canvas on opening. (0, 0): malformed."""

    def at(start: int, size: int) -> int:
        return int.from_bytes(head[start : start + size], "little")

    if len(head) < 30 or head[8:12] != b"WEBP":
        return 0, 0
    match head[12:16]:
        case b"VP8X":
            return at(24, 3) + 1, at(27, 3) + 1
        case b"VP8L":
            return (at(21, 4) & 0x3FFF) + 1, (at(21, 4) >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return at(26, 2) & 0x3FFF, at(28, 2) & 0x3FFF
    return 0, 0


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise EyespotError(f"{name}: not a picture", found=f"{width}x{height} pixels", cause="the file is corrupted")
    if width * height > limits.IMAGE_PIXELS or max(width, height) > limits.IMAGE_SIDE:
        raise EyespotError(
            f"{name}: the picture is too large",
            found=f"{width}x{height} pixels",
            expected=f"at most {limits.IMAGE_PIXELS / 1e6:.0f} megapixels and {limits.IMAGE_SIDE} a side",
        )


def _header(data: bytes, name: str) -> Image:
    """The picture in `data`, its header read and its pixels not yet."""
    if len(data) > limits.IMAGE_FILE_BYTES:
        raise EyespotError(
            f"{name}: the picture file is too large", expected=f"at most {limits.IMAGE_FILE_BYTES >> 20} MiB"
        )
    reader = next((reader for magic, reader in FORMATS.items() if data.startswith(magic)), None)
    if reader is None or (reader is _webp and data[8:12] != b"WEBP"):
        raise EyespotError(
            f"{name}: not a picture eyespot reads",
            found=f"{len(data)} bytes that begin with {data[:8]!r}" if data else "an empty file",
            expected="JPEG, PNG, WebP, GIF or BMP",
        )
    if reader is _webp:
        _check_size(*_webp_size(data[:32]), name)
    try:
        image: Image = reader()(io.BytesIO(data))
    except Exception as error:  # each reader has its own kinds of complaint
        raise EyespotError(f"{name}: the picture cannot be read ({error})", cause="the file is corrupted") from None
    return image


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block leaves a whole picture
        return 1


def _finish(image: Image, name: str) -> Picture:
    from PIL import Image as pil

    _check_size(*image.size, name)
    orientation = _orientation(image)
    try:
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = image.convert("I").point(lambda v: v * (1 / 256)).convert("L")
        rgb = image.convert("RGB")
        if orientation in UPRIGHT:
            rgb = rgb.transpose(pil.Transpose[UPRIGHT[orientation]])
        pixels = rgb.tobytes()
    except MemoryError:
        raise EyespotError(f"{name}: not enough memory for {image.width}x{image.height} pixels") from None
    except Exception as error:
        raise EyespotError(
            f"{name}: the picture cannot be decoded ({error})", cause="the file is cut off or corrupted"
        ) from None
    digest = hashlib.sha256(b"%dx%d " % rgb.size)
    digest.update(pixels)
    return Picture(rgb, name, digest.digest(), orientation if orientation in UPRIGHT else 1)
