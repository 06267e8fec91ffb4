"""The memory plan: where in one arena each value, the KV cache, the rope tables and what kernels need beside them live.

Lifetimes come from the op list alone; knows no model and no kernel. `check` replays a plan to prove that nothing
is overwritten before its last reader, and shares no code with `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eyespot import limits
from eyespot.errors import EyespotError, UsageError
from eyespot.program import Dim, Graph, Op, Program, Shape, size
from eyespot.quantize.formats import SCHEMES

ALIGN = 64
PANEL = 16  # keys of a cache that lie side by side
A8_ALIGN = 128  # int8 rows are padded to whole multiples of the largest group
SPAN = 256  # keys whose softmax is summed apart
# Ops that may write over their first input: each output row needs that row alone, read before it is written.
IN_PLACE = {"rope", "rope_at", "add", "scale", "gelu", "position", "merge", "rms_norm", "layer_norm"}
KV_TYPES = {"f32": 4, "f16": 2, "int8": 1}  # bytes of one cached number
Place = tuple[int, int]  # offset, bytes


@dataclass(frozen=True, slots=True)
class KvLayer:
    offset: int
    bytes: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The `memory` object of program.json; all sizes in bytes, all offsets from the start of the arena."""

    units: Mapping[str, int]
    ctx: int
    arena_bytes: int
    kv_type: str
    kv_layers: tuple[KvLayer, ...]
    values: Mapping[str, Mapping[str, Place]]
    rope: Mapping[str, Place] = field(default_factory=dict)
    scratch: Place = (0, 0)
    group_kv: Place = (0, 0)
    partial: Place = (0, 0)

    @property
    def kv_bytes(self) -> int:
        return sum(layer.bytes for layer in self.kv_layers)

    def to_json(self) -> dict[str, Any]:
        return {
            "units": dict(self.units),
            "ctx": self.ctx,
            "arena_bytes": self.arena_bytes,
            "kv_cache": {
                "type": self.kv_type,
                "layers": [{k: getattr(layer, k) for k in KvLayer.__dataclass_fields__} for layer in self.kv_layers],
            },
            "values": {graph: {name: list(at) for name, at in values.items()} for graph, values in self.values.items()},
            "rope": {graph: list(at) for graph, at in self.rope.items()},
            "scratch": list(self.scratch),
            "group_kv": list(self.group_kv),
            "partial": list(self.partial),
        }


@dataclass(slots=True)
class Buffer:
    """Bytes that one value, or several handing over in place, hold from op `first` to op `last`, both included."""

    bytes: int
    first: int
    last: int
    names: list[str]
    offset: int = 0


def plan(program: Program, ctx: int, prefill_chunk: int, kv_type: str, tiles: int = 1) -> Memory:
    """The plan for contexts of `ctx` tokens, `prefill_chunk` rows a call, `tiles` a call of the eyes. UsageError for
    sizes out of bounds."""
    if not 1 <= ctx <= min(limits.CONTEXT, program.info.max_position):
        most = min(limits.CONTEXT, program.info.max_position)
        raise UsageError(
            "context size is out of range", found=ctx, expected=f"1 to {most}, what the model was made for"
        )
    if not 1 <= prefill_chunk <= limits.CHUNK_ROWS:
        raise UsageError("prefill chunk is out of range", found=prefill_chunk, expected=f"1 to {limits.CHUNK_ROWS}")
    if kv_type not in KV_TYPES:
        raise UsageError("unknown KV cache type", found=kv_type, expected=", ".join(KV_TYPES))
    if not 1 <= tiles <= limits.UNITS:
        raise UsageError("a picture has too many tokens", found=tiles, expected=f"at most {limits.UNITS} at once")
    units = {"n": min(prefill_chunk, ctx), "o": 1, "t": tiles}
    scratch: Place = (0, _scratch_bytes(program, units))
    group_kv: Place = (_up(scratch[1]), _group_kv_bytes(program, units))
    partial: Place = (group_kv[0] + _up(group_kv[1]), _partial_bytes(program, ctx))
    base = partial[0] + _up(partial[1])
    values: dict[str, dict[str, Place]] = {}
    rope: dict[str, Place] = {}
    top = base
    for graph in program.graphs.values():  # all from the same base: text and vision never run at once
        at = base
        if rope_bytes := _rope_bytes(graph, units):
            rope[graph.name] = (at, rope_bytes)
            at += _up(rope_bytes)
        buffers = _lifetimes(graph, units)
        top = max(top, at + _place(buffers))
        sizes = {name: _bytes(graph.values[name].shape, units) for b in buffers for name in b.names}
        where = {name: (at + b.offset, sizes[name]) for b in buffers for name in b.names}
        values[graph.name] = {name: where[name] for name in graph.values if name in where}
    layers = []
    for op in sorted(_cached(program), key=lambda op: int(op.attrs["layer"])):  # last: its far end may never be touched
        heads, dim = int(op.attrs["kv_heads"]), int(op.attrs["head_dim"])
        layers.append(KvLayer(top, _kv_bytes(heads, dim, ctx, kv_type), heads, dim))
        top += layers[-1].bytes
    if top > limits.ARENA_BYTES:
        raise EyespotError(
            "the plan needs too much memory",
            found=f"{top} bytes",
            expected=f"at most {limits.ARENA_BYTES}",
            cause="--ctx-size or --prefill-chunk is too large",
        )
    return check(program, Memory(units, ctx, top, kv_type, tuple(layers), values, rope, scratch, group_kv, partial))


def _up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def _bytes(shape: Shape, units: Mapping[str, int]) -> int:
    if any(isinstance(d, Dim) and d.of not in units for d in shape):
        raise EyespotError("a value has as many rows as the caller likes", found=[str(d) for d in shape])
    return 4 * size(shape, units)


def _cached(program: Program) -> list[Op]:
    ops = [op for graph in program.graphs.values() for _, op in graph.ops()]
    return [op for op in ops if op.kind == "attention" and op.attrs["layer"] != -1]


def _kv_bytes(heads: int, dim: int, keys: int, kv_type: str) -> int:
    """K and V, and for int8 a float32 scale a key for each; every array has room for whole blocks of keys."""
    keys = -(-keys // PANEL) * PANEL
    scales = _up(4 * heads * keys) if kv_type == "int8" else 0
    return 2 * (_up(heads * keys * dim * KV_TYPES[kv_type]) + scales)


def _group_kv_bytes(program: Program, units: Mapping[str, int]) -> int:
    """float32 keys and values of all sequences of the op without a cache that needs most."""
    most = 0
    for graph in program.graphs.values():
        for _, op in graph.ops():
            rows = size(graph.values[op.output].shape[:1], units)
            if op.kind == "attention_runs":
                sequences, keys = 1, _run_keys(rows)
            elif op.kind == "attention" and op.attrs["group"]:
                keys = int(op.attrs["group"])
                sequences = rows // keys
            else:
                continue
            heads, dim = int(op.attrs["kv_heads"]), int(op.attrs["head_dim"])
            most = max(most, sequences * _kv_bytes(heads, dim, keys, "f32"))
    return most


def _run_keys(rows: int) -> int:
    """Keys that the runs of a picture of `rows` rows take: whole blocks for each, and only its last window is none."""
    return -(-rows // PANEL) * PANEL + PANEL


def _partial_bytes(program: Program, ctx: int) -> int:
    """Of every head and span of keys: the largest score, the total, the sums of one row, float32."""
    spans = -(-ctx // SPAN)
    heads = (int(op.attrs["heads"]) * (int(op.attrs["head_dim"]) + 2) for op in _cached(program))
    return 4 * spans * max(heads, default=0)


def _rope_bytes(graph: Graph, units: Mapping[str, int]) -> int:
    """cos and sin, float32 [rows][rotary_dim / 2] each."""
    rows = [
        size(graph.values[op.output].shape[:1], units) * int(op.attrs["rotary_dim"])
        for _, op in graph.ops()
        if op.kind in ("rope", "rope_at")
    ]
    return 4 * max(rows, default=0)


def _scratch_bytes(program: Program, units: Mapping[str, int]) -> int:
    """int8 rows, and a float32 scale and an int32 sum for each of their groups, of the A8 op that needs most."""
    most = 0
    for graph in program.graphs.values():
        for _, op in graph.ops():
            weight = program.weights.get(op.weights.get("weight", ""))
            scheme = SCHEMES.get(weight.scheme) if weight is not None and op.kind in ("linear", "head") else None
            if weight is not None and scheme is not None and scheme.activation_bits == 8:
                k = weight.shape[1]
                groups = -(-k // scheme.group) if scheme.group else 1
                rows = size(graph.values[op.output].shape[:1], units)
                most = max(most, rows * (-(-k // A8_ALIGN) * A8_ALIGN + 8 * groups))
    return most


def _looped(shape: Shape) -> bool:
    return any(isinstance(d, Dim) and d.of == "o" for d in shape)


def _lifetimes(graph: Graph, units: Mapping[str, int]) -> list[Buffer]:
    ops = [op for _, op in graph.ops()]
    last = {name: i for i, op in enumerate(ops) for name in op.inputs}
    last |= dict.fromkeys(graph.outputs, len(ops))
    # Ops over wanted rows run slice by slice, again and again: what they read from outside must outlive the last slice.
    loop = [i for i, op in enumerate(ops) if _looped(graph.values[op.output].shape)]
    if loop and loop[-1] - loop[0] + 1 != len(loop):
        raise EyespotError(f"graph '{graph.name}': ops over wanted rows do not stand together")
    buffers: list[Buffer] = []
    holds: dict[str, Buffer] = {}
    if "rows" in graph.inputs:  # the engine writes it, at a moment of its own
        buffers.append(Buffer(_bytes(graph.values["rows"].shape, units), 0, len(ops), ["rows"]))
    for i, op in enumerate(ops):
        shape = graph.values[op.output].shape
        dies = last.get(op.output, i)
        if loop and i < loop[0] <= dies:
            dies = max(dies, loop[-1])
        source = holds.get(op.inputs[0]) if op.kind in IN_PLACE else None
        if (
            source is not None
            and source.last == i
            and op.inputs[0] not in op.inputs[1:]
            and graph.values[op.inputs[0]].shape == shape
        ):
            source.last = dies
            source.names.append(op.output)
            holds[op.output] = source
            continue
        holds[op.output] = Buffer(_bytes(shape, units), i, dies, [op.output])
        buffers.append(holds[op.output])
    return buffers


def _place(buffers: list[Buffer]) -> int:
    """Gives each buffer the lowest free offset, the largest first; returns the bytes taken."""
    placed: list[Buffer] = []  # by offset
    for buffer in sorted(buffers, key=lambda b: (-b.bytes, b.first)):
        at = 0
        for other in placed:
            if other.first <= buffer.last and buffer.first <= other.last:
                if at + buffer.bytes <= other.offset:
                    break
                at = max(at, other.offset + _up(other.bytes))
        buffer.offset = at
        placed.append(buffer)
        placed.sort(key=lambda b: b.offset)
    return max((b.offset + _up(b.bytes) for b in buffers), default=0)


def check(program: Program, memory: Memory) -> Memory:
    """Replays every graph over the arena: each op must find its inputs whole, and may write over one only in place.

    Returns the plan; EyespotError names the first value lost, misplaced or left out.
    """
    for graph in program.graphs.values():
        places = memory.values.get(graph.name, {})
        fixed = {
            "scratch": memory.scratch,
            "group_kv": memory.group_kv,
            "partial": memory.partial,
            **{f"cache layer {i}": (kv.offset, kv.bytes) for i, kv in enumerate(memory.kv_layers)},
        }
        if graph.name in memory.rope:
            fixed["rope"] = memory.rope[graph.name]
        taken: dict[str, Place] = {}
        for name, place in fixed.items():
            _inside(name, place, memory)
            _apart(graph, name, place, taken)
            taken[name] = place
        for name, place in places.items():
            _inside(name, place, memory)
            _apart(graph, name, place, taken)
            if place[1] < 4 * size(graph.values[name].shape, memory.units):
                raise EyespotError(f"plan: value '{name}' has too few bytes", found=place[1])
        _replay(graph, places)
    return memory


def _inside(name: str, place: Place, memory: Memory) -> None:
    if place[0] % ALIGN or place[0] < 0 or place[0] + place[1] > memory.arena_bytes:
        raise EyespotError(f"plan: '{name}' lies outside the arena or misaligned", found=place)


def _meet(a: Place, b: Place) -> bool:
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def _apart(graph: Graph, name: str, place: Place, taken: Mapping[str, Place]) -> None:
    for other, at in taken.items():
        if _meet(place, at):
            raise EyespotError(f"plan of '{graph.name}': '{name}' overlaps {other}", found=f"{place} and {at}")


def _replay(graph: Graph, places: Mapping[str, Place]) -> None:
    whole: dict[str, Place] = {}  # values whose bytes are all still there

    def write(name: str) -> None:
        if name not in places:
            raise EyespotError(f"plan of '{graph.name}': value '{name}' has no place")
        for other in [n for n, at in whole.items() if _meet(at, places[name])]:
            del whole[other]
        whole[name] = places[name]

    for op in _steps(graph):
        if op is None:
            write("rows")
            continue
        for i, name in enumerate(op.inputs):
            if name in graph.inputs and name not in places:
                continue  # the caller's
            if name not in whole:
                raise EyespotError(f"plan of '{graph.name}': '{name}' is overwritten before op '{op.output}' reads it")
            in_place = i == 0 and op.kind in IN_PLACE and places.get(op.output) == places[name]
            if _meet(places[name], places.get(op.output, (0, 0))) and not in_place:
                raise EyespotError(f"plan of '{graph.name}': op '{op.output}' writes over its input '{name}'")
        write(op.output)
    for name in graph.outputs:
        if name not in whole and name not in graph.inputs:
            raise EyespotError(f"plan of '{graph.name}': output '{name}' is overwritten")


def _steps(graph: Graph) -> Iterator[Op | None]:
    """Ops in the order of a call with two slices of wanted rows; None where the engine writes `rows`."""
    looped = [op for _, op in graph.ops() if _looped(graph.values[op.output].shape)]
    rows = [None] if "rows" in graph.inputs else []
    yield from rows
    yield from (op for _, op in graph.ops() if op not in looped)
    for _ in range(2 if looped else 0):
        yield from rows
        yield from looped
