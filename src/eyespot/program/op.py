"""The ops a Program is made of: what each computes, what it takes, and the shape it gives.

One row of OPS is the whole contract of an op kind; reference.py and the engine implement the same rows.
Knows nothing about models, files or instruction sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from eyespot.errors import EyespotError

Attr = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Dim:
    """A row count known only at run time: `per` rows for each unit of symbol `of`.

    n: tokens of this call. o: rows whose logits are wanted. t: tiles. f: feature rows.
    """

    per: int
    of: str

    def __str__(self) -> str:
        return self.of if self.per == 1 else f"{self.per}*{self.of}"

    @classmethod
    def parse(cls, text: str) -> Dim:
        per, star, of = text.rpartition("*")
        if of not in SYMBOLS or (star and not (per.isdecimal() and 0 < len(per) < 8)) or (not star and per):
            raise EyespotError(
                "dimension is malformed", found=text, expected="'n', 'o', 't', 'f' or '<int>*' before one"
            )
        return cls(int(per) if star else 1, of)


SYMBOLS = ("n", "o", "t", "f")
Shape = tuple[int | Dim, ...]


def size(shape: Shape, units: Mapping[str, int]) -> int:
    """Elements of `shape` when each symbol has the value in `units`."""
    total = 1
    for d in shape:
        total *= d.per * units[d.of] if isinstance(d, Dim) else d
    return total


@dataclass(frozen=True, slots=True)
class Op:
    """One step: `output = kind(*inputs, **weights, **attrs)`. `weights`: role -> weight or constant."""

    kind: str
    output: str
    inputs: tuple[str, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Attr] = field(default_factory=dict)


class ShapeFault(Exception):
    """A shape rule is broken; verify() adds the op's name and raises EyespotError."""


def _need(condition: bool, fault: str) -> None:
    if not condition:
        raise ShapeFault(fault)


def _text(shape: Shape | None) -> str:
    return "none" if shape is None else f"[{', '.join(map(str, shape))}]"


class Args:
    """What a shape rule sees: input shapes by position, weight shapes by role (None when absent), attributes."""

    def __init__(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], attrs: Mapping[str, Attr]) -> None:
        self.inputs, self.weights, self.attrs = inputs, weights, attrs

    def matrix(self, i: int) -> tuple[int | Dim, int]:
        """Input `i` as (rows, columns)."""
        shape = self.inputs[i]
        _need(
            len(shape) == 2 and isinstance(shape[1], int), f"input {i} is {_text(shape)}, not a matrix [rows, columns]"
        )
        columns = shape[1]
        assert isinstance(columns, int)
        return shape[0], columns

    def weight(self, role: str, expected: Shape) -> None:
        """Weight `role`, when present, must have shape `expected`."""
        shape = self.weights.get(role)
        _need(shape is None or shape == expected, f"weight '{role}' is {_text(shape)}, expected {_text(expected)}")

    def integer(self, name: str, low: int = 0) -> int:
        value = self.attrs[name]
        _need(
            isinstance(value, int) and not isinstance(value, bool) and value >= low,
            f"attribute {name}={value!r}, expected an integer of at least {low}",
        )
        assert isinstance(value, int)
        return value

    def grouped(self, i: int, group: int) -> tuple[Dim, int]:
        """Input `i` as rows that come in whole groups of `group`: a tile's tokens."""
        rows, columns = self.matrix(i)
        _need(
            isinstance(rows, Dim) and rows.per % group == 0, f"input {i} has {rows} rows, not whole groups of {group}"
        )
        assert isinstance(rows, Dim)
        return rows, columns


def _embed(a: Args) -> Shape:
    table = a.weights["weight"]
    _need(len(table) == 2, f"table is {_text(table)}, expected [vocabulary, width]")
    return (a.inputs[0][0], table[1])


def _merge(a: Args) -> Shape:
    (_, width), (_, feature_width) = a.matrix(0), a.matrix(2)
    _need(width == feature_width, f"features are {feature_width} wide, hidden state is {width}")
    a.integer("token_id")
    return a.inputs[0]


def _linear(a: Args) -> Shape:
    rows, k = a.matrix(0)
    shape = a.weights["weight"]
    _need(len(shape) == 2 and shape[1] == k, f"weight is {_text(shape)}, expected [m, {k}]")
    a.weight("bias", (shape[0],))
    return (rows, shape[0])


def _norm(a: Args) -> Shape:
    _, width = a.matrix(0)
    a.weight("weight", (width,))
    a.weight("bias", (width,))
    return a.inputs[0]


def _rope(a: Args) -> Shape:
    _, width = a.matrix(0)
    heads, head_dim, rotary = a.integer("heads", 1), a.integer("head_dim", 2), a.integer("rotary_dim", 2)
    _need(rotary % 2 == 0 and rotary <= head_dim, f"rotary_dim {rotary} is odd or above head_dim {head_dim}")
    _need(heads * head_dim <= width, f"{heads} heads of {head_dim} do not fit a row of {width}")
    a.weight("inv_freq", (rotary // 2,))
    return a.inputs[0]


def _rope_at(a: Args) -> Shape:
    shape = _rope(a)
    positions = a.inputs[1]
    _need(
        len(positions) == 2 and positions[0] == shape[0] and isinstance(positions[1], int),
        f"positions are {_text(positions)}, expected [{shape[0]}, axes]",
    )
    a.weight("axis", a.weights["inv_freq"])
    return shape


def _heads(a: Args) -> tuple[int | Dim, int]:
    """Rows of q, k and v heads: how many, and how wide their output is."""
    rows, width = a.matrix(0)
    heads, kv_heads, head_dim = a.integer("heads", 1), a.integer("kv_heads", 1), a.integer("head_dim", 1)
    _need(heads % kv_heads == 0, f"{heads} heads do not share {kv_heads} key/value heads evenly")
    _need(
        width == (heads + 2 * kv_heads) * head_dim,
        f"row is {width} wide, expected ({heads} + 2 * {kv_heads}) * {head_dim}",
    )
    return rows, heads * head_dim


def _attention_runs(a: Args) -> Shape:
    rows, width = _heads(a)
    _need(a.inputs[1] == (rows,), f"runs are {_text(a.inputs[1])}, expected [{rows}]")
    return rows, width


def _attention(a: Args) -> Shape:
    rows, width = _heads(a)
    group, layer = a.integer("group"), a.integer("layer", -1)
    a.integer("window")
    _need((layer >= 0) != (group > 0), f"layer={layer} and group={group}: name a cache layer or a group, not both")
    if group:
        a.grouped(0, group)
    return rows, width


def _swiglu(a: Args) -> Shape:
    rows, width = a.matrix(0)
    _need(width % 2 == 0, f"row of {width} does not split into gate and up")
    return (rows, width // 2)


def _same(a: Args) -> Shape:
    a.matrix(0)
    return a.inputs[0]


def _add(a: Args) -> Shape:
    _, width = a.matrix(0)
    _need(a.inputs[0] == a.inputs[1], f"shapes differ: {_text(a.inputs[0])} and {_text(a.inputs[1])}")
    a.weight("scale", (width,))
    return a.inputs[0]


def _patches(a: Args) -> Shape:
    shape, patch = a.inputs[0], a.integer("patch", 1)
    _need(
        len(shape) == 4 and isinstance(shape[0], Dim),
        f"pixels are {_text(shape)}, expected [t, channels, height, width]",
    )
    tiles, channels, height, width = shape
    assert isinstance(tiles, Dim)
    assert isinstance(channels, int)
    assert isinstance(height, int)
    assert isinstance(width, int)
    _need(height >= patch and width >= patch, f"{width}x{height} pixels hold no patch of {patch}")
    return (Dim(tiles.per * (height // patch) * (width // patch), tiles.of), channels * patch * patch)


def _concat(a: Args) -> Shape:
    group = a.integer("group", 1)
    rows, width = a.grouped(0, group)
    a.weight("prefix", (1, width))
    return (Dim(rows.per // group * (group + 1), rows.of), width)


def _position(a: Args) -> Shape:
    table = a.weights["weight"]
    _need(
        len(table) == 2 and isinstance(table[0], int) and table[0] > 0,
        f"table is {_text(table)}, expected [group, width]",
    )
    group = table[0]
    assert isinstance(group, int)
    _, width = a.grouped(0, group)
    a.weight("weight", (group, width))
    return a.inputs[0]


def _slice(a: Args) -> Shape:
    group, start = a.integer("group", 1), a.integer("start")
    rows, width = a.grouped(0, group)
    _need(start < group, f"start {start} leaves nothing of a group of {group}")
    return (Dim(rows.per // group * (group - start), rows.of), width)


def _pixel_shuffle(a: Args) -> Shape:
    side, factor = a.integer("side", 1), a.integer("factor", 1)
    rows, width = a.grouped(0, side * side)
    across = -(-side // factor)
    return (Dim(rows.per // (side * side) * across * across, rows.of), width * factor * factor)


def _select(a: Args) -> Shape:
    _, width = a.matrix(0)
    return (a.inputs[1][0], width)


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One op kind. `inputs`: how many. `roles`: of weights, optional ones end in '?'. `attrs`: types, all required."""

    inputs: int
    shape: Callable[[Args], Shape]
    roles: tuple[str, ...] = ()
    attrs: Mapping[str, type] = field(default_factory=dict)
    text: str = ""


# r, n, o: rows. Every value is float32 but the graph's inputs that number something (int32). Weights' storage is the
# scheme's business.
OPS: dict[str, OpSpec] = {
    "embed": OpSpec(1, _embed, ("weight",), {}, "out[i] = weight[tokens[i]]"),
    "merge": OpSpec(
        3,
        _merge,
        (),
        {"token_id": int},
        "inputs x, tokens, features: the j-th row whose token is token_id becomes features[j]; counts must agree",
    ),
    "linear": OpSpec(1, _linear, ("weight", "bias?"), {}, "out = x @ weight.T + bias"),
    "head": OpSpec(
        1, _linear, ("weight", "bias?"), {}, "as linear, onto the vocabulary; NaN or Inf in the result is an error"
    ),
    "rms_norm": OpSpec(1, _norm, ("weight",), {"eps": float}, "out = x / sqrt(mean(x^2) + eps) * weight"),
    "layer_norm": OpSpec(
        1, _norm, ("weight", "bias"), {"eps": float}, "out = (x - mean) / sqrt(var + eps) * weight + bias"
    ),
    "rope": OpSpec(
        1,
        _rope,
        ("inv_freq",),
        {"heads": int, "head_dim": int, "rotary_dim": int, "factor": float},
        "rotates the first `heads` heads of each row, the rest passes. Angle = position * inv_freq[i] in float32; "
        "pair (i, i + rotary_dim/2); cos and sin are multiplied by factor. Position = cached tokens + row",
    ),
    "rope_at": OpSpec(
        2,
        _rope_at,
        ("inv_freq", "axis"),
        {"heads": int, "head_dim": int, "rotary_dim": int, "factor": float},
        "as rope, but row r stands at positions[r], a number for each axis: frequency i takes that of axis[i]",
    ),
    "attention_runs": OpSpec(
        2,
        _attention_runs,
        (),
        {"heads": int, "kv_heads": int, "head_dim": int, "scale": float},
        "rows as attention's, not causal, no cache: a row sees those that follow each other with its number in `runs`",
    ),
    "attention": OpSpec(
        1,
        _attention,
        (),
        {"heads": int, "kv_heads": int, "head_dim": int, "scale": float, "layer": int, "group": int, "window": int},
        "rows hold q heads, k heads, v heads. layer >= 0: causal, k and v are appended to that cache layer first, and "
        "window > 0 limits a query to the last `window` keys, itself included. group > 0: not causal, no cache, "
        "each run of `group` rows sees itself alone",
    ),
    "gelu": OpSpec(1, _same, (), {"tanh": bool}, "0.5 x (1 + erf(x / sqrt 2)), or its tanh form"),
    "swiglu": OpSpec(1, _swiglu, (), {}, "row = [gate, up]: out = gate * sigmoid(gate) * up"),
    "add": OpSpec(
        2, _add, ("scale?",), {"alpha": float}, "out = x + alpha * scale * y, scale per column (1 when absent)"
    ),
    "scale": OpSpec(1, _same, (), {"factor": float}, "out = factor * x"),
    "patches": OpSpec(
        1,
        _patches,
        (),
        {"patch": int},
        "pixels [t, c, h, w] -> one row a whole patch, row-major over the picture; inside a row channel, y, x",
    ),
    "concat": OpSpec(1, _concat, ("prefix",), {"group": int}, "puts the row `prefix` before each group of rows"),
    "position": OpSpec(1, _position, ("weight",), {}, "adds weight[i] to row i of every group of len(weight) rows"),
    "slice": OpSpec(1, _slice, (), {"group": int, "start": int}, "drops the first `start` rows of each group"),
    "pixel_shuffle": OpSpec(
        1,
        _pixel_shuffle,
        (),
        {"side": int, "factor": int},
        "each group is a side x side picture of rows; every factor x factor square becomes one row, "
        "inside it (dy, dx, channel), zeros beyond the picture; squares are row-major (InternVL's ps_version v2)",
    ),
    "select": OpSpec(2, _select, (), {}, "inputs x, rows: out[i] = x[rows[i]]"),
}
