"""Storage schemes: which arrays a weight becomes in a part, how float32 rows are packed into them and unpacked again.

Exactly the storage table of DESIGN.md, by round to nearest. Knows no model and no file; recipe.py chooses schemes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eyespot.errors import EyespotError, UsageError
from eyespot.tensorfile import STORED, Array, bf16_to_f32, f32_to_bf16

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one weight is stored and multiplied.

    bits: of a stored weight. group: columns that share a scale, 0 for a whole row. A8 in a name: the op rounds its
    input rows to int8, too, which storage does not care about.
    """

    name: str
    bits: int
    group: int = 0

    @property
    def integer(self) -> bool:
        """Integers with scales (the W schemes), which only matrices of `linear` and `head` take."""
        return self.bits < 16

    def __str__(self) -> str:
        return self.name


SCHEMES: dict[str, Scheme] = {
    "f32": Scheme("f32", 32),
    "f16": Scheme("f16", 16),
    "bf16": Scheme("bf16", 16),
    "W8A16": Scheme("W8A16", 8),
    "W8A8": Scheme("W8A8", 8),
    "W4A16-g32": Scheme("W4A16-g32", 4, 32),
    "W4A16-g64": Scheme("W4A16-g64", 4, 64),
    "W4A16-g128": Scheme("W4A16-g128", 4, 128),
}
_SPELLED = {name.lower(): scheme for name, scheme in SCHEMES.items()} | {"w4a16": SCHEMES["W4A16-g64"]}


def parse(text: str) -> Scheme:
    """The scheme called `text`, in any letter case; 'W4A16' alone is W4A16-g64. UsageError lists the names."""
    scheme = _SPELLED.get(text.lower())
    if scheme is None:
        raise UsageError("unknown scheme", found=text, expected=", ".join(SCHEMES))
    return scheme


def tensors(shape: tuple[int, ...], scheme: Scheme) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Suffix -> (safetensors dtype, shape) of what a weight of `shape` is stored as; W schemes take [m, k] only."""
    if not scheme.integer:
        return {"": (scheme.name.upper(), shape)}
    if len(shape) != 2:
        raise EyespotError(f"scheme {scheme} takes matrices only", found=list(shape))
    m, k = shape
    if scheme.bits == 8:
        return {"": ("I8", (m, k)), ".scale": ("F32", (m,))}
    return {"": ("U8", (m, -(-k // 2))), ".scale": ("F16", (m, -(-k // scheme.group)))}


def stored_bytes(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Bytes a weight takes in its part, less alignment."""
    return sum(
        int(np.prod(dims, dtype=np.int64)) * np.dtype(STORED[dtype]).itemsize
        for dtype, dims in tensors(shape, scheme).values()
    )


def pack(rows: F32, scheme: Scheme) -> dict[str, Array]:
    """Rows [r, ...] of a weight as arrays by suffix. Rows are packed one by one: any split into ranges is equal.

    bf16 comes as its uint16 bits.
    Errors: EyespotError for NaN, Inf, or values that do not fit the scheme.
    """
    if not scheme.integer:
        return {"": _pack_float(rows, scheme)}
    scale = absmax_scale(rows, scheme)
    if scheme.bits == 8:
        divisor: F32 = np.where(scale > 0, scale, np.float32(1))  # a row of scale 0 holds nothing above 1e-35: zeros
        q: F32 = rows / divisor[:, None]
        return {"": np.rint(q, out=q).astype(np.int8), ".scale": scale}
    q = round_groups(groups(rows, scheme.group), scale)
    q += 8
    nibbles = q.astype(np.uint8).reshape(len(rows), -1)[:, : rows.shape[1] + rows.shape[1] % 2]
    if nibbles.shape[1] < rows.shape[1] + rows.shape[1] % 2:  # an odd row that ends a whole group
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)), constant_values=8)
    return {"": nibbles[:, 0::2] | nibbles[:, 1::2] << 4, ".scale": scale.astype(np.float16)}


def absmax_scale(rows: F32, scheme: Scheme) -> F32:
    """The plain scales of rows [r, k]. W8: absmax / 127, [r]. W4: the value furthest from 0 / -8, as f16, [r, groups].

    The signed extreme lands on -8, the longer side of a nibble's range, which symmetric scales would waste.
    Errors: EyespotError when a row holds NaN or Inf or its scale does not fit float16.
    """
    if scheme.bits == 8:
        absmax = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        if not np.isfinite(absmax).all():
            raise EyespotError("weights are not finite", cause="the checkpoint holds NaN or Inf")
        return np.where(absmax < 1e-35, 0, absmax / np.float32(127))  # below that the scale is subnormal: zero
    grouped = groups(rows, scheme.group)
    high, low = grouped.max(axis=2), grouped.min(axis=2)
    return f16_scale(np.where(high > -low, high, low) / np.float32(-8))


def f16_scale(scale: F32) -> F32:
    """Scales as their float16 storage will give them back. EyespotError where they do not fit."""
    with np.errstate(over="ignore"):
        stored = scale.astype(np.float16)
    if not np.isfinite(stored).all():
        fits = np.isfinite(scale).all()
        raise EyespotError(
            "weights overflow the scheme" if fits else "weights are not finite",
            found=float(np.abs(scale).max() * 8) if fits else None,
            expected="at most 524032, whose scale fits float16" if fits else None,
            cause=None if fits else "the checkpoint holds NaN or Inf",
        )
    return stored.astype(np.float32)


def groups(rows: F32, group: int) -> F32:
    """Rows [r, k] as [r, groups, group]; a short last group is filled with zeros, which change no extreme."""
    short = -rows.shape[1] % group
    if short:
        rows = np.pad(rows, ((0, 0), (0, short)))
    return rows.reshape(len(rows), -1, group)


def round_groups(grouped: F32, scale: F32) -> F32:
    """Integers -8..7 nearest to grouped [r, groups, group] / scale [r, groups], as float32; zero scales give zeros."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    q = grouped * inverse[..., None]
    np.rint(q, out=q)
    return np.clip(q, -8, 7, out=q)


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


def unpack(arrays: Mapping[str, Array], scheme: Scheme, columns: int) -> F32:
    """float32 values of stored rows, what the engine multiplies with; `columns` tells odd W4 rows from even ones."""
    data: npt.NDArray[Any] = arrays[""]
    if scheme.name == "bf16":
        return bf16_to_f32(data)
    if not scheme.integer:
        return data.astype(np.float32)
    scale = arrays[".scale"].astype(np.float32)
    if scheme.bits == 8:
        return data.astype(np.float32) * scale[:, None]
    q = np.empty((len(data), 2 * data.shape[1]), np.float32)
    q[:, 0::2], q[:, 1::2] = data & 15, data >> 4
    q -= 8
    return q[:, :columns] * np.repeat(scale, scheme.group, axis=1)[:, :columns]
