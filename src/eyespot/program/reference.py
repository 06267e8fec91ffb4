"""The reference interpreter: a Program run by numpy in float32. Slow, short, and the truth for every faster path.

It knows the rows of OPS and nothing else: no files, no families. Weights come from a callable, so they can be streamed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from eyespot.errors import EyespotError
from eyespot.program.op import Op
from eyespot.program.program import Block, Program

Array = npt.NDArray[Any]  # float32, but for tokens and rows (int32)
Weights = Callable[[str], Array]
Trace = Callable[[str, str, Array], None]  # graph, block, the block's last value [rows, columns]


def quantize_rows(x: Array, group: int = 0) -> Array:
    """`x` [..., k] after int8 rounding (absmax / 127, half to even) and back: as A8 and the int8 cache do.

    By groups of `group` columns, of which the last may be short; 0: by whole rows.
    """
    if 0 < group < x.shape[-1]:
        whole = x.shape[-1] // group * group
        groups = x[..., :whole].reshape(*x.shape[:-1], -1, group)
        rounded = [quantize_rows(groups).reshape(*x.shape[:-1], whole)]
        rounded += [quantize_rows(x[..., whole:])] if whole < x.shape[-1] else []
        return np.concatenate(rounded, axis=-1)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    scale = np.where(largest < 1e-30, 0, largest / np.float32(127))  # smaller ones have no float32 inverse: zero
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(x * inverse) * scale


KV_ROUND: dict[str, Callable[[Array], Array]] = {
    "f32": lambda x: x,
    "f16": lambda x: x.astype(np.float16).astype(np.float32),
    "int8": quantize_rows,
}


class Reference:
    """One model and one sequence.

    weights: name -> float32 array of the Program's shape (for a quantized model, dequantized).
    kv_type: how keys and values are rounded when cached: 'f32', 'f16' or 'int8'.
    """

    def __init__(self, program: Program, weights: Weights, kv_type: str = "f32", trace: Trace | None = None) -> None:
        self.program, self.weights, self.trace = program, weights, trace
        self._round = KV_ROUND[kv_type]
        self._keys: dict[int, Array] = {}  # cache layer -> [past, kv_heads, head_dim]
        self._values: dict[int, Array] = {}
        self._placed: list[int] = []  # the largest number of each token's position
        self.past = 0

    def encode(
        self, pixels: Array, places: Array | None = None, windows: Array | None = None, frames: Array | None = None
    ) -> Array:
        """Features [tile_tokens * t, width] of normalized pixels [t, channels, side, side]; see Program."""
        given: dict[str, Any] = {
            "pixels": np.asarray(pixels, np.float32), "places": places, "windows": windows, "frames": frames,
        }  # fmt: skip
        return self._run("vision", {name: given[name] for name in self.program.graphs["vision"].inputs})

    def prefill(
        self,
        tokens: npt.ArrayLike,
        features: Array | None = None,
        want: int = 1,
        positions: npt.ArrayLike | None = None,
    ) -> Array:
        """Appends tokens [n]; returns logits [want, vocabulary] after the last `want` of them. positions [n, 3]: of a
        model with M-RoPE; None: on from the largest so far."""
        ids = np.asarray(tokens, np.int32)
        given: dict[str, Array] = {"tokens": ids, "rows": np.arange(len(ids) - want, len(ids), dtype=np.int32)}
        if "features" in self.program.graphs["text"].inputs:
            width = self.program.info.hidden_size
            given["features"] = np.zeros((0, width), np.float32) if features is None else features
        if "positions" in self.program.graphs["text"].inputs:
            next_ = max(self._placed[: self.past], default=-1) + 1
            implied = np.repeat(np.arange(next_, next_ + len(ids))[:, None], 3, axis=1)
            given["positions"] = implied if positions is None else np.asarray(positions, np.int32)
            self._placed[self.past :] = given["positions"].max(axis=1).tolist()
        logits = self._run("text", given)
        self.past += len(ids)
        return logits

    def decode(self, token: int) -> Array:
        """Appends one token; returns logits [vocabulary]."""
        return self.prefill([token])[0]

    def truncate(self, n: int) -> None:
        """Forgets all but the first n tokens."""
        self._keys = {layer: k[:n] for layer, k in self._keys.items()}
        self._values = {layer: v[:n] for layer, v in self._values.items()}
        self.past = n

    def _run(self, name: str, given: Mapping[str, Array]) -> Array:
        graph = self.program.graphs[name]
        values: dict[str, Array] = dict(given)
        last_use = {v: op.output for _, op in graph.ops() for v in op.inputs}
        for block in graph.blocks:
            with np.errstate(all="ignore"):  # overflow is told by what comes out, in one line
                self._run_block(block, values, last_use, graph.outputs)
            if self.trace is not None and block.ops:
                self.trace(name, block.name, values[block.ops[-1].output].astype(np.float32, copy=False))
        return values[graph.outputs[0]].astype(np.float32, copy=False)

    def _run_block(
        self, block: Block, values: dict[str, Array], last_use: Mapping[str, str], keep: tuple[str, ...]
    ) -> None:
        for op in block.ops:
            inputs = [values[n] for n in op.inputs]
            weights = {role: self._weight(name) for role, name in op.weights.items()}
            if (group := self._int8_group(op)) is not None:
                inputs[0] = quantize_rows(inputs[0].astype(np.float32, copy=False), group)
            values[op.output] = RULES[op.kind](self, op, inputs, weights)
            for name in op.inputs:
                if last_use[name] == op.output and name not in keep:
                    values.pop(name, None)

    def _weight(self, name: str) -> Array:
        constant = self.program.constants.get(name)
        return np.array(constant, np.float32) if constant is not None else self.weights(name)

    def _int8_group(self, op: Op) -> int | None:
        """Columns of the input that are rounded to int8 together, 0 for a row; None where they stay float."""
        weight = self.program.weights.get(op.weights.get("weight", ""))
        scheme = re.fullmatch(r"W\dA8(?:-g(\d+))?(?:-asym)?", weight.scheme) if weight is not None else None
        return int(scheme[1] or 0) if scheme and op.kind in ("linear", "head") else None

    def _cached(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """The whole cache of `layer` with the new k, v [n, kv_heads, head_dim] appended after position past."""
        k, v = self._round(k), self._round(v)
        if self.past:
            k = np.concatenate([self._keys[layer][: self.past], k])
            v = np.concatenate([self._values[layer][: self.past], v])
        self._keys[layer], self._values[layer] = k, v
        return k, v


def _matmul(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    out: Array = x[0] @ w["weight"].T
    if "bias" in w:
        out += w["bias"]
    if op.kind == "head" and not np.isfinite(out).all():
        raise EyespotError("logits are not finite", cause="the weights or the input overflow float32")
    return out


def _embed(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    return w["weight"][x[0].astype(np.int64)]


def _merge(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    where = x[1] == op.attrs["token_id"]
    if int(where.sum()) != len(x[2]):
        raise EyespotError("image tokens and features disagree", found=int(where.sum()), expected=len(x[2]))
    out = x[0].copy()
    out[where] = x[2]
    return out


def _rms_norm(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    mean = np.mean(np.square(x[0]), axis=-1, keepdims=True)
    return x[0] / np.sqrt(mean + np.float32(op.attrs["eps"])) * w["weight"]


def _layer_norm(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    centred = x[0] - np.mean(x[0], axis=-1, keepdims=True)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(op.attrs["eps"])) * w["weight"] + w["bias"]


def _rope(ref: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    heads, dim, rotary = int(op.attrs["heads"]), int(op.attrs["head_dim"]), int(op.attrs["rotary_dim"])
    if op.kind == "rope_at":
        positions = x[1].astype(np.float32)[:, w["axis"].astype(np.int64)]  # [n, rotary / 2]
    else:
        positions = np.arange(ref.past, ref.past + len(x[0]), dtype=np.float32)[:, None]
    angle = (positions * w["inv_freq"]).astype(np.float32)[:, None, :]  # [n, 1, rotary / 2]
    cos, sin = np.cos(angle) * np.float32(op.attrs["factor"]), np.sin(angle) * np.float32(op.attrs["factor"])
    out = x[0].copy()
    rotated = out[:, : heads * dim].reshape(len(out), heads, dim)  # a view: slices of whole columns stay views
    a, b = rotated[..., : rotary // 2].copy(), rotated[..., rotary // 2 : rotary].copy()
    rotated[..., : rotary // 2] = a * cos - b * sin
    rotated[..., rotary // 2 : rotary] = b * cos + a * sin
    out[:, : heads * dim] = rotated.reshape(len(out), heads * dim)
    return out


def _softmax(scores: Array) -> Array:
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def _attention(ref: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    heads, kv_heads, dim = int(op.attrs["heads"]), int(op.attrs["kv_heads"]), int(op.attrs["head_dim"])
    rows = len(x[0])
    row = x[0].reshape(rows, heads + 2 * kv_heads, dim)
    q, k, v = row[:, :heads], row[:, heads : heads + kv_heads], row[:, heads + kv_heads :]
    group, layer, scale = int(op.attrs["group"]), int(op.attrs["layer"]), np.float32(op.attrs["scale"])
    if group:
        spans = [slice(at, at + group) for at in range(0, rows, group)]
        out = [_attend(q[s], k[s], v[s], scale, None) for s in spans]
        return np.concatenate(out) if out else np.zeros((0, heads * dim), np.float32)
    keys, values = ref._cached(layer, k, v)
    query, key = np.arange(ref.past, ref.past + rows)[:, None], np.arange(len(keys))[None, :]
    visible = key <= query
    if op.attrs["window"]:
        visible &= query - key < int(op.attrs["window"])
    return _attend(q, keys, values, scale, visible)


def _attention_runs(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    heads, kv_heads, dim = int(op.attrs["heads"]), int(op.attrs["kv_heads"]), int(op.attrs["head_dim"])
    row = x[0].reshape(len(x[0]), heads + 2 * kv_heads, dim)
    q, k, v = row[:, :heads], row[:, heads : heads + kv_heads], row[:, heads + kv_heads :]
    ends = [*(np.flatnonzero(np.diff(x[1])) + 1), len(row)]
    spans = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    return np.concatenate([_attend(q[s], k[s], v[s], np.float32(op.attrs["scale"]), None) for s in spans])


def _attend(q: Array, k: Array, v: Array, scale: np.float32, visible: Array | None) -> Array:
    """q [n, heads, d], k and v [m, kv_heads, d] -> [n, heads * d]; heads share keys in order, visible is [n, m]."""
    n, heads, dim = q.shape
    shared = heads // k.shape[1]
    out = np.empty((n, heads, dim), np.float32)
    for h in range(heads):  # head by head: a picture's scores for all heads at once would take gigabytes
        scores = (q[:, h] @ k[:, h // shared].T) * scale
        if visible is not None:
            scores = np.where(visible, scores, np.float32(-np.inf))
        out[:, h] = _softmax(scores) @ v[:, h // shared]
    return out.reshape(n, heads * dim)


@cache
def _erf_table() -> Array:
    """Values of erf at multiples of 1/512 up to 6; Taylor steps from them reach float64 accuracy."""
    return np.array([math.erf(i / 512) for i in range(6 * 512 + 2)])


def erf(x: Array) -> Array:
    """The error function, to 1e-15: three Taylor terms from the nearest of math.erf's values at multiples of 1/512."""
    z = np.minimum(np.abs(x.astype(np.float64)), 6.0)
    i = np.rint(z * 512)
    at = i / 512
    h = z - at
    slope = 2 / math.sqrt(math.pi) * np.exp(-at * at)
    taylor = h * (1 - h * (at - h * ((2 * at * at - 1) / 3 - h * (at * (2 * at * at - 3)) / 6)))
    return np.sign(x) * (_erf_table()[i.astype(np.int64)] + slope * taylor)


def _gelu(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    v = x[0]
    if op.attrs["tanh"]:
        inner = np.float32(math.sqrt(2 / math.pi)) * (v + np.float32(0.044715) * v * v * v)
        return np.float32(0.5) * v * (1 + np.tanh(inner))
    return (0.5 * v * (1 + erf(v / math.sqrt(2)))).astype(np.float32)


def _swiglu(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    gate, up = np.split(x[0], 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up  # exp may overflow to inf: the sigmoid is then 0, as it should be


def _add(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    y = x[1] * w["scale"] if "scale" in w else x[1]
    return x[0] + np.float32(op.attrs["alpha"]) * y


def _scale(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    return x[0] * np.float32(op.attrs["factor"])


def _patches(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    patch = int(op.attrs["patch"])
    t, c, height, width = x[0].shape
    whole = x[0][:, :, : height // patch * patch, : width // patch * patch]
    cut = whole.reshape(t, c, height // patch, patch, width // patch, patch)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, c * patch * patch)


def _concat(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    width = x[0].shape[1]
    groups = x[0].reshape(-1, int(op.attrs["group"]), width)
    prefix = np.broadcast_to(w["prefix"], (len(groups), 1, width))
    return np.concatenate([prefix, groups], axis=1).reshape(-1, width)


def _position(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    table = w["weight"]
    return (x[0].reshape(-1, *table.shape) + table).reshape(x[0].shape)


def _slice(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    width = x[0].shape[1]
    return x[0].reshape(-1, int(op.attrs["group"]), width)[:, int(op.attrs["start"]) :].reshape(-1, width)


def _pixel_shuffle(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    side, factor, width = int(op.attrs["side"]), int(op.attrs["factor"]), x[0].shape[1]
    more = -side % factor
    picture = np.pad(x[0].reshape(-1, side, side, width), ((0, 0), (0, more), (0, more), (0, 0)))
    across = (side + more) // factor
    squares = picture.reshape(-1, across, factor, across, factor, width)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(-1, factor * factor * width)


def _select(_: Reference, op: Op, x: list[Array], w: dict[str, Array]) -> Array:
    return x[0][x[1].astype(np.int64)]


RULES: dict[str, Callable[[Reference, Op, list[Array], dict[str, Array]], Array]] = {
    "embed": _embed,
    "merge": _merge,
    "linear": _matmul,
    "head": _matmul,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "rope": _rope,
    "rope_at": _rope,
    "attention_runs": _attention_runs,
    "attention": _attention,
    "gelu": _gelu,
    "swiglu": _swiglu,
    "add": _add,
    "scale": _scale,
    "patches": _patches,
    "concat": _concat,
    "position": _position,
    "slice": _slice,
    "pixel_shuffle": _pixel_shuffle,
    "select": _select,
}
