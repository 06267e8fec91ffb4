"""From the checkpoint's rows to a Program's weight: concatenate, reshape, and the few transforms a family may name.

Knows no file format: `read(tensor, start, stop)` gives float32 rows of the first axis. Any range of a weight's rows can
be asked for alone, so that whoever stores a large matrix needs memory for a few rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isqrt, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from eyespot.errors import EyespotError
from eyespot.program.program import Rows, Weight

Array = npt.NDArray[Any]
Read = Callable[[str, int, int | None], Array]


def materialize(weight: Weight, read: Read, start: int = 0, stop: int | None = None) -> Array:
    """Rows [start, stop) of `weight` in float32, shape [stop - start, *weight.shape[1:]].

    Reads only the rows it needs, except for a weight with a transform, whose source is read whole.
    """
    stop = weight.shape[0] if stop is None else stop
    if not 0 <= start <= stop <= weight.shape[0]:
        raise EyespotError(f"weight '{weight.name}': no such rows", found=f"{start}:{stop}", expected=weight.shape[0])
    if weight.transform:
        name, _, argument = weight.transform.partition(":")
        whole = TRANSFORMS[name](read(weight.sources[0].tensor, 0, None), argument)
        return np.ascontiguousarray(_fit(weight, whole, weight.shape[0])[start:stop])
    pieces, at = [], 0
    for rows in weight.sources:
        count = (weight.shape[0] if rows.stop is None else rows.stop) - rows.start
        first, last = max(start - at, 0), min(stop - at, count)
        if first < last:
            pieces.append(read(rows.tensor, rows.start + first, rows.start + last))
        at += count
    whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return _fit(weight, whole, stop - start)


def _fit(weight: Weight, values: Array, rows: int) -> Array:
    shape = (rows, *weight.shape[1:])
    if values.size != prod(shape):
        raise EyespotError(f"weight '{weight.name}': wrong size", found=values.shape, expected=shape)
    return values.astype(np.float32, copy=False).reshape(shape)


def source_faults(weights: Iterable[Weight], tensors: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Why `tensors` (name -> shape) cannot feed `weights`: missing tensors, wrong shapes, rows that nobody uses."""
    faults: list[str] = []
    used: dict[str, list[Rows]] = {}
    for weight in weights:
        for rows in weight.sources:
            used.setdefault(rows.tensor, []).append(rows)
        missing = sorted({r.tensor for r in weight.sources} - set(tensors))
        faults += [f"'{tensor}' is missing" for tensor in missing]
        if not missing:
            faults += _shape_faults(weight, tensors)
    for tensor, ranges in used.items():
        if tensor in tensors and all(r.stop is not None for r in ranges):
            end = 0
            for rows in sorted(ranges, key=lambda r: r.start):
                end = max(end, rows.stop or 0) if rows.start <= end else -1
            if tensors[tensor][:1] != (end,):
                faults.append(f"'{tensor}' is {list(tensors[tensor])}, expected {end} rows")
    return list(dict.fromkeys(faults))


def _shape_faults(weight: Weight, tensors: Mapping[str, tuple[int, ...]]) -> list[str]:
    row = prod(weight.shape[1:])
    if weight.transform:
        shape = tensors[weight.sources[0].tensor]
        name = weight.transform.partition(":")[0]
        fault = SHAPES[name](shape, weight.shape)
        return [f"'{weight.sources[0].tensor}' is {list(shape)}, expected {fault}"] if fault else []
    faults = []
    for rows in weight.sources:
        shape = tensors[rows.tensor]
        if rows.stop is None:
            expected = str(list(weight.shape))
            wrong = prod(shape) != prod(weight.shape) or (shape[:1] != weight.shape[:1])
        else:
            expected = f"[{rows.stop}, {row}]" if len(weight.shape) > 1 else f"[{rows.stop}]"
            wrong = not shape or shape[0] < rows.stop or prod(shape[1:]) != row
        if wrong:
            faults.append(f"'{rows.tensor}' is {list(shape)}, expected {expected}")
    return faults


def _cubic(t: Array) -> tuple[Array, Array, Array, Array]:
    """Weights of the four neighbours of a point at `t` in [0, 1) after the second, Keys' kernel with a = -0.75."""
    a = -0.75

    def near(x: Array) -> Array:
        value: Array = ((a + 2) * x - (a + 3)) * x * x + 1
        return value

    def far(x: Array) -> Array:
        value: Array = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return value

    return far(t + 1), near(t), near(1 - t), far(2 - t)


def _cubic_matrix(old: int, new: int) -> Array:
    """[new, old]: bicubic interpolation of one axis, pixel centres at half steps, edges repeated, no antialiasing."""
    source = (np.arange(new) + 0.5) * (old / new) - 0.5
    base = np.floor(source)
    matrix = np.zeros((new, old))
    for offset, factor in zip((-1, 0, 1, 2), _cubic(source - base), strict=True):
        np.add.at(matrix, (np.arange(new), np.clip(base + offset, 0, old - 1).astype(np.int64)), factor)
    return matrix


def resize_position(table: Array, side: int) -> Array:
    """A class row and a square grid of position rows [..., 1 + g * g, width] -> [1 + side * side, width].

    Bicubic as PyTorch's interpolate(mode="bicubic", align_corners=False): what InternVL does for another picture size.
    """
    table = table.reshape(-1, table.shape[-1])
    old = isqrt(len(table) - 1)
    if old == side:
        return table
    matrix = _cubic_matrix(old, side)
    grid = table[1:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("yi,xj,ijc->yxc", matrix, matrix, grid, optimize=True).reshape(side * side, -1)
    return np.concatenate([table[:1], resized.astype(np.float32)])


def _position_shape(shape: tuple[int, ...], target: tuple[int, ...]) -> str:
    rows = shape[-2] if len(shape) >= 2 else 0
    square = rows > 1 and isqrt(rows - 1) ** 2 == rows - 1 and prod(shape[:-2]) == 1
    return "" if square and shape[-1] == target[-1] else f"[1, 1 + side * side, {target[-1]}]"


# Weight.transform is "name:argument".
TRANSFORMS: dict[str, Callable[[Array, str], Array]] = {
    "resize_position": lambda table, side: resize_position(table, int(side)),
}
SHAPES: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], str]] = {"resize_position": _position_shape}
