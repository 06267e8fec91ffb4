"""How a picture of any size becomes what the eyes see, as pure functions of its size: one class a rule, one Cut out.

Sources: dynamic_preprocess of the InternVL model cards; LLaVA-NeXT's select_best_resolution and padding; BlueLM-V-3B
(arXiv 2411.10640), relaxed aspect-ratio matching; Qwen2.5-VL's smart_resize. Ground floor: sizes only, no pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, Protocol, Self

from eyespot.errors import EyespotError, UsageError

Size = tuple[int, int]  # width, height in pixels
Grid = tuple[int, int]  # columns, rows
Thumbnail = Literal["", "first", "last"]


@dataclass(frozen=True, slots=True)
class Cut:
    """The picture, resized to `resized`, stands at `at` on a black canvas, which is cut into columns x rows tiles of
    `tile` (width, height) in row-major order. thumbnail: the whole picture in one more tile, before or after them."""

    columns: int
    rows: int
    tile: Size
    resized: Size
    at: Size = (0, 0)
    thumbnail: Thumbnail = ""

    @property
    def tiles(self) -> int:
        return self.columns * self.rows + bool(self.thumbnail)

    @property
    def canvas(self) -> Size:
        return self.columns * self.tile[0], self.rows * self.tile[1]

    def enlargement(self, size: Size) -> float:
        """Pixels of the canvas for each pixel of a picture of `size`."""
        return self.canvas[0] * self.canvas[1] / (size[0] * size[1])

    def to_canvas(self, x: float, y: float, size: Size) -> tuple[float, float]:
        """A point of a picture of `size`, where the canvas has it."""
        return self.at[0] + x * self.resized[0] / size[0], self.at[1] + y * self.resized[1] / size[1]

    def to_picture(self, x: float, y: float, size: Size) -> tuple[float, float]:
        """A point of the canvas, where a picture of `size` has it; outside of it where the canvas is padding."""
        return (x - self.at[0]) * size[0] / self.resized[0], (y - self.at[1]) * size[1] / self.resized[1]

    def places(self) -> list[tuple[float, float, float, float]]:
        """Left, top, width, height of each tile, in shares of the picture: what it shows, in the tiles' order."""
        (width, height), (left, top) = self.resized, self.at
        w, h = self.tile[0] / width, self.tile[1] / height
        grid = [
            (c * w - left / width, r * h - top / height, w, h) for r in range(self.rows) for c in range(self.columns)
        ]
        whole = [(0.0, 0.0, 1.0, 1.0)] if self.thumbnail else []
        return [*whole, *grid] if self.thumbnail == "first" else [*grid, *whole]


class Rule(Protocol):
    """One way to cut pictures. name: its key in RULES. size: pixels a side of one of the engine's tiles, each of which
    is worth tokens_per_tile."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def tokens_per_tile(self) -> int: ...

    def cut(self, width: int, height: int) -> Cut:
        """How a picture of width x height pixels is cut. EyespotError for a size that the rule cannot take."""

    def tokens(self, cut: Cut) -> int:
        """Image tokens of a picture cut so."""

    def within(self, tokens: int) -> Rule:
        """The same rule, but no picture takes more than so many tokens. UsageError when not even the least fit."""

    def most(self) -> int:
        """Tokens of the picture that takes most."""


def _too_few(tokens: int, least: int) -> UsageError:
    return UsageError("too few image tokens", found=tokens, expected=f"at least {least}, what one picture takes")


@dataclass(frozen=True, slots=True)
class Fixed:
    """One square tile, whatever the picture's shape, as vendors' toolchains have it."""

    size: int
    tokens_per_tile: int

    name = "fixed"

    def cut(self, width: int, height: int) -> Cut:
        return Cut(1, 1, (self.size, self.size), (self.size, self.size))

    def tokens(self, cut: Cut) -> int:
        return self.tokens_per_tile

    def within(self, tokens: int) -> Fixed:
        if tokens < self.tokens_per_tile:
            raise _too_few(tokens, self.tokens_per_tile)
        return self

    def most(self) -> int:
        return self.tokens_per_tile


@dataclass(frozen=True, slots=True)
class InternVL:
    """Dynamic tiling of InternVL 1.5 and later: the grid whose shape is nearest, the picture stretched to fill it,
    a thumbnail last where there is more than one tile."""

    size: int
    tokens_per_tile: int
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    name = "internvl"

    def cut(self, width: int, height: int) -> Cut:
        columns, rows = nearest(width, height, self.size, self.min_tiles, self.max_tiles)
        canvas = columns * self.size, rows * self.size
        last: Thumbnail = "last" if self.thumbnail and columns * rows > 1 else ""
        return Cut(columns, rows, (self.size, self.size), canvas, thumbnail=last)

    def tokens(self, cut: Cut) -> int:
        return cut.tiles * self.tokens_per_tile

    def capped(self, tiles: int) -> InternVL:
        """With at most so many tiles, the thumbnail not counted."""
        return replace(self, min_tiles=min(self.min_tiles, tiles), max_tiles=tiles)

    def within(self, tokens: int) -> InternVL:
        fit = tokens // self.tokens_per_tile
        if fit < 1:
            raise _too_few(tokens, self.tokens_per_tile)
        most = fit - 1 if self.thumbnail and fit > 2 else 1 if self.thumbnail else fit
        return self.capped(min(most, self.max_tiles))

    def most(self) -> int:
        return (self.max_tiles + (self.thumbnail and self.max_tiles > 1)) * self.tokens_per_tile


@cache
def grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """All grids of min_tiles to max_tiles tiles: fewest tiles first, among equals fewest columns first."""
    found = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


def nearest(width: int, height: int, side: int, min_tiles: int, max_tiles: int) -> Grid:
    """The grid whose aspect ratio is nearest the picture's.

    Among equally near ones (which need not have equal ratios: 9:4 is as far from 2:1 as from 5:2) a later, larger grid
    wins while its tiles cover less than twice the picture's area.
    """
    aspect, best, least = width / height, (1, 1), float("inf")
    for columns, rows in grids(min_tiles, max_tiles):
        distance = abs(aspect - columns / rows)
        tie = distance == least and width * height > 0.5 * side * side * columns * rows
        if distance < least or tie:
            best, least = (columns, rows), distance
    return best


@dataclass(frozen=True, slots=True)
class Padded(ABC):
    """What rules share that choose one of several grids: the picture keeps its shape and stands in the middle of it.
    Of the candidates, in their order, each that is better than the best before it is taken."""

    size: int
    tokens_per_tile: int
    grids: tuple[Grid, ...]

    name: ClassVar[str]
    thumbnail: ClassVar[Thumbnail]

    @abstractmethod
    def better(self, kept: int, wasted: int, most: int, least: int | float) -> bool:
        """Whether one that keeps and wastes so many pixels beats the best so far, of `most` kept and `least` wasted."""

    def choose(self, width: int, height: int) -> Grid:
        best, most, least = self.grids[0], 0, math.inf
        for grid in self.grids:
            kept, wasted = _kept(width, height, self.size, grid)
            if self.better(kept, wasted, most, least):
                best, most, least = grid, kept, wasted
        return best

    def cut(self, width: int, height: int) -> Cut:
        """As large as it fits; one tile needs no thumbnail."""
        grid = self.choose(width, height)
        across, down = grid[0] * self.size, grid[1] * self.size
        if across / width < down / height:
            resized = across, max(1, min(math.ceil(height * (across / width)), down))
        else:
            resized = max(1, min(math.ceil(width * (down / height)), across)), down
        at = (across - resized[0]) // 2, (down - resized[1]) // 2
        return Cut(*grid, (self.size, self.size), resized, at, self.thumbnail if grid != (1, 1) else "")

    def tokens(self, cut: Cut) -> int:
        return cut.tiles * self.tokens_per_tile

    def within(self, tokens: int) -> Self:
        """One tile where no candidate fits, if that does."""
        found = tuple(grid for grid in self.grids if _tiles(grid) * self.tokens_per_tile <= tokens)
        if not found and tokens < self.tokens_per_tile:
            raise _too_few(tokens, self.tokens_per_tile)
        return replace(self, grids=found or ((1, 1),))

    def most(self) -> int:
        return max(map(_tiles, self.grids)) * self.tokens_per_tile

    @property
    def max_tiles(self) -> int:
        """Tiles of the largest candidate, the thumbnail not counted."""
        return max(columns * rows for columns, rows in self.grids)

    def capped(self, tiles: int) -> Self:
        """Without the candidates of more tiles, a thumbnail not counted; one tile where none is left."""
        return replace(self, grids=tuple(grid for grid in self.grids if grid[0] * grid[1] <= tiles) or ((1, 1),))


@dataclass(frozen=True, slots=True)
class LlavaNext(Padded):
    """LLaVA-NeXT's any resolution: the candidate that keeps most of the picture's pixels, then wastes least."""

    grids: tuple[Grid, ...] = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))

    name = "llava_next"
    thumbnail = "first"

    def better(self, kept: int, wasted: int, most: int, least: int | float) -> bool:
        return kept > most or (kept == most and wasted < least)


@dataclass(frozen=True, slots=True)
class BlueLMV(Padded):
    """BlueLM-V's relaxed matching: a larger candidate must keep more than the share `alpha` more of the picture, so
    that a picture one pixel too wide is not drawn four times as large. Where the thumbnail stands is not published."""

    grids: tuple[Grid, ...] = tuple((m, n) for m in range(4, 0, -1) for n in range(4, 0, -1))
    alpha: float = 0.1

    name = "bluelm_v"
    thumbnail = "last"

    def better(self, kept: int, wasted: int, most: int, least: int | float) -> bool:
        return kept - most > self.alpha * most or (most - kept < self.alpha * most and wasted < least)


def _kept(width: int, height: int, side: int, grid: Grid) -> tuple[int, int]:
    """Pixels of the picture that are still told apart on a canvas of so many tiles, and those of the canvas that tell
    nothing: "effective" and "wasted" resolution."""
    across, down = grid[0] * side, grid[1] * side
    scale = min(across / width, down / height)
    kept = min(max(1, int(width * scale)) * max(1, int(height * scale)), width * height)
    return kept, across * down - kept


def _tiles(grid: Grid) -> int:
    return grid[0] * grid[1] + (grid != (1, 1))


@dataclass(frozen=True, slots=True)
class Qwen:
    """Qwen's smart resize: the picture's own size, its sides rounded to whole tokens, scaled where it has too many or
    too few pixels. One tile of that size; `merge` x `merge` patches of `patch` pixels are a token.

    window: tokens a side of the windows within which patches see each other. tokens_per_second: of a film, in which its
    positions count.
    """

    patch: int = 14
    merge: int = 2
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16384 * 28 * 28
    window: int = 4
    tokens_per_second: float = 2.0

    name = "qwen2_5_vl"
    tokens_per_tile = 1  # of the engine's
    MOST_ASPECT = 200

    @property
    def size(self) -> int:
        """Pixels a side of a token."""
        return self.patch * self.merge

    def cut(self, width: int, height: int) -> Cut:
        if max(width, height) > self.MOST_ASPECT * min(width, height):
            raise EyespotError(
                "the picture is too narrow", found=f"{width}x{height} pixels",
                expected=f"sides of at most {self.MOST_ASPECT}:1", cause="Qwen's models take no narrower ones: crop it",
            )  # fmt: skip
        f = self.size
        w, h = max(f, round(width / f) * f), max(f, round(height / f) * f)
        if w * h > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            w, h = max(f, math.floor(width / shrink / f) * f), max(f, math.floor(height / shrink / f) * f)
        elif w * h < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            w, h = math.ceil(width * grow / f) * f, math.ceil(height * grow / f) * f
        if w * h > self.max_pixels:  # a side of one token can shrink no further: the budget holds, not the shape
            w, h = (self.max_pixels // h // f * f, h) if w > h else (w, self.max_pixels // w // f * f)
        return Cut(1, 1, (w, h), (w, h))

    def tokens(self, cut: Cut) -> int:
        return cut.tile[0] * cut.tile[1] // (self.size * self.size)

    def within(self, tokens: int) -> Qwen:
        if tokens < 1:
            raise _too_few(tokens, 1)
        most = min(self.max_pixels, tokens * self.size * self.size)
        return replace(self, min_pixels=min(self.min_pixels, most), max_pixels=most)

    def most(self) -> int:
        return self.max_pixels // (self.size * self.size)


RULES: dict[str, type[Fixed] | type[InternVL] | type[LlavaNext] | type[BlueLMV] | type[Qwen]] = {
    rule.name: rule for rule in (Fixed, InternVL, LlavaNext, BlueLMV, Qwen)
}
TILED = ("fixed", "internvl", "llava_next", "bluelm_v")  # rules for eyes that take square tiles


def other(rule: Rule, name: str) -> Rule:
    """The rule called `name`, for the same eyes as `rule`, with its own defaults. UsageError when they cannot."""
    if name == rule.name:
        return rule
    able = TILED if rule.name in TILED else (rule.name,)
    if name not in able:
        raise UsageError(f"no such rule for this model's pictures: {name!r:.40}", expected=", ".join(able))
    assert isinstance(rule, Fixed | InternVL | Padded)
    made: Rule = RULES[name](rule.size, rule.tokens_per_tile)
    return made


def capped(rule: Rule, tiles: int) -> Rule:
    """The same rule with at most so many tiles, a thumbnail not counted. UsageError where there are no tiles to count,
    or the rule needs more."""
    match rule:
        case InternVL() if rule.min_tiles <= tiles:
            return replace(rule, max_tiles=tiles)
        case Padded() if tiles == 1 or any(columns * rows <= tiles for columns, rows in rule.grids):
            return rule.capped(tiles)
        case Fixed():
            return rule
        case Qwen():
            raise UsageError("max_tiles: this model's pictures are not cut into tiles", expected="image_tokens")
    least = rule.min_tiles if isinstance(rule, InternVL) else 1
    raise UsageError("max_tiles", found=tiles, expected=f"at least {least}")
