"""Storage schemes: how float32 rows of a weight become the bytes of a part, and float32 again.

Exactly what DESIGN.md says under "Schemes and storage", by round to nearest. Knows no model and no file; recipe.py
chooses schemes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from eyespot.errors import EyespotError, UsageError
from eyespot.tensorfile import ITEM_BYTES, Array, bf16_to_f32, f32_to_bf16

F32 = npt.NDArray[np.float32]

LAYOUT = "r16q4"  # of packed weights; program.json names it, an engine refuses any other
PANEL = 16  # rows side by side
STEP = 32  # columns are stored in multiples of these
SPELLING = re.compile(r"W([48])A(8|16)(?:-g(32|64|128))?(-asym)?")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one weight is stored and multiplied.

    bits: of a stored weight. activation_bits: of what it is multiplied with: 8 means rounded to int8 at run time, in
    the weight's groups; 16 that it stays float. group: columns that share a scale, 0 for a whole row. asym: a group
    has a minimum, too.
    """

    name: str
    bits: int
    activation_bits: int = 16
    group: int = 0
    asym: bool = False

    @property
    def integer(self) -> bool:
        """Integers with scales (the W schemes), packed, which only matrices of `linear` and `head` take."""
        return self.bits < 16

    def __str__(self) -> str:
        return self.name


def _spelled(name: str) -> Scheme:
    match = SPELLING.fullmatch(name)
    if match is None:
        return Scheme(name, 32 if name == "f32" else 16)
    bits, activation_bits, group, asym = match.groups()
    return Scheme(name, int(bits), int(activation_bits), int(group or 0), bool(asym))


SCHEMES: dict[str, Scheme] = {
    name: _spelled(name)
    for name in (
        *("f32", "f16", "bf16"),
        *("W8A16", "W8A16-g32", "W8A16-g64", "W8A16-g128"),
        *("W8A8", "W8A8-g32", "W8A8-g64", "W8A8-g128"),
        *("W4A16-g32", "W4A16-g64", "W4A16-g128", "W4A16-g32-asym", "W4A16-g64-asym", "W4A16-g128-asym"),
        *("W4A8-g32", "W4A8-g64", "W4A8-g128", "W4A8-g32-asym", "W4A8-g64-asym", "W4A8-g128-asym"),
    )
}
_ANY_CASE = {name.lower(): scheme for name, scheme in SCHEMES.items()} | {
    short.lower(): SCHEMES[short.replace("-asym", "") + "-g64" + ("-asym" if "asym" in short else "")]
    for short in ("W4A16", "W4A8", "W4A16-asym", "W4A8-asym")
}
NAMES = "f32, f16, bf16, W8A16, W8A8 [-g32, -g64, -g128], W4A16, W4A8 [-g32, -g64, -g128] [-asym]"


def parse(text: str) -> Scheme:
    """The scheme called `text`, in any letter case; 'W4A16' alone is W4A16-g64. UsageError lists the names."""
    scheme = _ANY_CASE.get(text.lower())
    if scheme is None:
        raise UsageError("unknown scheme", found=text, expected=NAMES)
    return scheme


def stored_as(shape: tuple[int, ...], scheme: Scheme) -> tuple[str, tuple[int, ...]]:
    """(safetensors dtype, shape) of the tensor that a weight of `shape` becomes; W schemes take [m, k] only."""
    if not scheme.integer:
        return scheme.name.upper(), shape
    if len(shape) != 2:
        raise EyespotError(f"scheme {scheme} takes matrices only", found=list(shape))
    m, k = shape
    groups, columns = _groups(k, scheme)
    return "U8", (-(-m // PANEL), groups * (_head_bytes(scheme) + PANEL * columns * scheme.bits // 8))


def stored_bytes(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Bytes a weight takes in its part, scales and filling included, less alignment."""
    dtype, stored = stored_as(shape, scheme)
    return prod(stored) * ITEM_BYTES[dtype]


def _groups(k: int, scheme: Scheme) -> tuple[int, int]:
    """How many groups a row of k has, and columns of one, filling included."""
    return (-(-k // scheme.group), scheme.group) if scheme.group else (1, -(-k // STEP) * STEP)


def _head_bytes(scheme: Scheme) -> int:
    """Of the scales and minima that a group of a panel begins with."""
    return PANEL * ((2 if scheme.group else 4) + 2 * scheme.asym)


def pack(rows: F32, scheme: Scheme) -> Array:
    """Rows [r, ...] of a weight as stored; bf16 comes as its uint16 bits. W schemes: uint8 [panels, bytes of a panel].

    Every panel of 16 rows is packed by itself: any split into ranges of whole panels gives the same bytes. Rows past
    the last are filled up.
    Errors: EyespotError for NaN, Inf, or values that do not fit the scheme.
    """
    if not scheme.integer:
        return _pack_float(rows, scheme)
    r, k = rows.shape
    groups, columns = _groups(k, scheme)
    x = _panels(rows, groups, columns, fill_edge=scheme.asym)  # [panels, groups, columns / 4, 16 rows x 4 columns]
    scale, minimum = _scales(x, scheme)  # [panels, groups, 16]
    if minimum is not None:
        x -= np.repeat(minimum, 4, axis=2)[:, :, None]
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    x *= np.repeat(inverse, 4, axis=2)[:, :, None]
    np.rint(x, out=x)
    low, high, zero = RANGES[scheme.bits, scheme.asym]
    if scheme.group:  # else the scale is exact, and nothing lies outside
        np.clip(x, low, high, out=x)
    x += zero
    q: npt.NDArray[np.uint8] = x.astype(np.int8).view(np.uint8)
    if scheme.asym and (k < groups * columns or r % PANEL):
        _blank(q, r, k)
    if scheme.bits == 4:
        q = q[:, :, 0::2] | q[:, :, 1::2] << np.uint8(4)
    out = np.empty(stored_as((r, k), scheme)[1], np.uint8)
    grouped = out.reshape(len(out), groups, -1)
    heads = [scale.astype(np.float16 if scheme.group else np.float32)]
    heads += [] if minimum is None else [minimum.astype(np.float16)]
    at = _head_bytes(scheme)
    grouped[:, :, :at] = np.concatenate([head.view(np.uint8) for head in heads], axis=2)
    grouped[:, :, at:] = q.reshape(len(out), groups, -1)
    return out


# (bits, asym) -> least and greatest rounded number, and what stands for zero in storage.
RANGES = {(8, False): (-127, 127, 0), (4, False): (-8, 7, 8), (4, True): (0, 15, 0)}


def _panels(rows: F32, groups: int, columns: int, fill_edge: bool) -> F32:
    """Rows [r, k] as [panels, groups, columns / 4, 64]: four columns of 16 rows side by side, the order of storage.

    Filled up with zeros, which change no extreme of a scale; fill_edge: with a row's last number, which changes no
    minimum either.
    """
    r, k = rows.shape
    panels, wide = -(-r // PANEL), groups * columns
    if r < panels * PANEL or k < wide:
        filled = np.zeros((panels * PANEL, wide), np.float32)
        filled[:r, :k] = rows
        if fill_edge:
            filled[:r, k:] = rows[:, -1:]
        rows = filled
    fours = np.ascontiguousarray(rows).view(np.complex128)  # four float32 travel as one item: only moved, never read
    order = fours.reshape(panels, PANEL, groups, columns // 4).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(order).view(np.float32).reshape(panels, groups, columns // 4, 4 * PANEL)


def _over_columns(extreme: np.ufunc, x: F32) -> F32:
    """The extreme of each row of each group, [panels, groups, 16], of x as _panels gives it."""
    while (n := x.shape[2]) > 1:  # halves upon each other: numpy is slow along short axes
        folded: F32 = extreme(x[:, :, : n // 2], x[:, :, n // 2 : n // 2 * 2])
        if n % 2:
            extreme(folded[:, :, 0], x[:, :, -1], out=folded[:, :, 0])
        x = folded
    a, b, c, d = np.moveaxis(x.reshape(*x.shape[:2], PANEL, 4), -1, 0)
    found: F32 = extreme(extreme(a, b), extreme(c, d))
    return found


def _scales(x: F32, scheme: Scheme) -> tuple[F32, F32 | None]:
    """Scales and, asym alone, minima [panels, groups, 16] of x as _panels gives it, as storage will give them back.

    8 bit: absmax / 127. 4 bit: the value furthest from 0, which lands on -8, the longer side of a nibble's range.
    asym: what spreads 0..15 from the least to the greatest. These are the rules of GGUF's Q8_0, Q4_0 and Q4_1.
    """
    high, low = _over_columns(np.maximum, x), _over_columns(np.minimum, x)
    if scheme.asym:
        minimum = _as_f16(low)
        return _as_f16((high - minimum) / np.float32(15)), minimum
    if scheme.bits == 4:
        return _as_f16(np.where(high > -low, high, low) / np.float32(-8)), None
    absmax = np.maximum(high, -low)
    if scheme.group:
        return _as_f16(absmax / np.float32(127)), None
    _need_finite(absmax)
    return np.where(absmax < 1e-35, 0, absmax / np.float32(127)), None  # below that the scale is subnormal: zero


def _need_finite(values: npt.NDArray[np.floating[Any]]) -> None:
    if not np.isfinite(values).all():
        raise EyespotError("weights are not finite", cause="the checkpoint holds NaN or Inf")


def _as_f16(values: npt.NDArray[np.floating[Any]]) -> F32:
    """Scales as their float16 storage will give them back. EyespotError where they do not fit."""
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16)
    if not np.isfinite(stored).all():
        _need_finite(values)
        raise EyespotError(
            "weights overflow the scheme", found=f"a scale of {np.abs(values).max():g}", expected="at most 65504"
        )
    return stored.astype(np.float32)


def _blank(q: npt.NDArray[np.uint8], r: int, k: int) -> None:
    """Zeros where no row and no column stands: with a minimum they came out as what they were filled with."""
    panels, groups, fours, _ = q.shape
    where = q.reshape(panels, groups * fours, PANEL, 4)
    where[-1, :, r - (panels - 1) * PANEL :] = 0
    column = 4 * np.arange(groups * fours)[:, None] + np.arange(4)
    where.transpose(1, 3, 0, 2)[column >= k] = 0


def _pack_float(rows: F32, scheme: Scheme) -> Array:
    # max and min carry NaN and Inf along, without the temporary that isfinite(rows) would make
    high, low = (rows.max(), rows.min()) if rows.size else (0.0, 0.0)
    if not np.isfinite(high) or not np.isfinite(low):
        raise EyespotError("weights are not finite", cause="the checkpoint holds NaN or Inf")
    if scheme.name == "f32":
        return rows
    limit = 65504.0 if scheme.name == "f16" else 3.3895314e38
    if max(high, -low) > limit:
        raise EyespotError(f"weights overflow {scheme}", found=float(max(high, -low)), expected=f"at most {limit:g}")
    return rows.astype(np.float16) if scheme.name == "f16" else f32_to_bf16(rows)


def unpack(stored: npt.NDArray[Any], scheme: Scheme, shape: tuple[int, ...]) -> F32:
    """float32 values of a weight of `shape` from what `pack` made of it: what the engine multiplies with."""
    if scheme.name == "bf16":
        return bf16_to_f32(stored)
    if not scheme.integer:
        return stored.astype(np.float32)
    m, k = shape
    groups, columns = _groups(k, scheme)
    grouped, at = stored.reshape(len(stored), groups, -1), _head_bytes(scheme)
    heads = np.ascontiguousarray(grouped[:, :, :at]).view(np.float16 if scheme.group else np.float32).astype(np.float32)
    q = grouped[:, :, at:].reshape(len(stored), groups, -1, 4 * PANEL)
    if scheme.bits == 4:
        q = np.stack([q & 15, q >> 4], axis=3).reshape(len(stored), groups, -1, 4 * PANEL)
    x = (q.view(np.int8) if scheme.bits == 8 else q).astype(np.float32)
    x -= RANGES[scheme.bits, scheme.asym][2]
    x *= np.repeat(heads[:, :, :PANEL], 4, axis=2)[:, :, None]
    if scheme.asym:
        x += np.repeat(heads[:, :, PANEL:], 4, axis=2)[:, :, None]
    rows = x.reshape(len(stored), groups * columns // 4, PANEL, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(rows.reshape(-1, groups * columns)[:m, :k])
