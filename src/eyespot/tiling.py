"""InternVL's dynamic tiling as pure functions: the size of a picture decides how many tiles of which grid it becomes.

Source: dynamic_preprocess of the InternVL model cards. Ground floor: knows sizes only, no pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Tiling:
    """columns x rows tiles of side x side pixels in row-major order, then the thumbnail, if any."""

    columns: int
    rows: int
    side: int
    thumbnail: bool

    @property
    def tiles(self) -> int:
        return self.columns * self.rows + self.thumbnail

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height in pixels of the resized picture that is cut into tiles."""
        return self.columns * self.side, self.rows * self.side


@cache
def grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of min_tiles to max_tiles tiles: fewest tiles first, among equals fewest columns first."""
    found = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


def choose(width: int, height: int, side: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """The grid whose aspect ratio is nearest the picture's.

    Among equally near ones (which need not have equal ratios: 9:4 is as far from 2:1 as from 5:2) a later, larger grid
    wins while its tiles cover less than twice the picture's area.
    """
    aspect, best, nearest = width / height, (1, 1), float("inf")
    for columns, rows in grids(min_tiles, max_tiles):
        distance = abs(aspect - columns / rows)
        tie = distance == nearest and width * height > 0.5 * side * side * columns * rows
        if distance < nearest or tie:
            best, nearest = (columns, rows), distance
    return best


def tile(width: int, height: int, side: int, min_tiles: int, max_tiles: int, thumbnail: bool) -> Tiling:
    """The tiling of a picture of width x height pixels; a single tile gets no thumbnail, for it would be the same."""
    columns, rows = choose(width, height, side, min_tiles, max_tiles)
    return Tiling(columns, rows, side, thumbnail and columns * rows > 1)
