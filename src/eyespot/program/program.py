"""Program: one model as graphs of blocks of ops, the weights they name, and where those come from.

A part is one file of the bundle; a block is the unit of compiling, checking and streaming: a layer, the head.
Knows no family and no storage format: `Weight.scheme` is a name that quantize gives and the engine obeys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eyespot import limits
from eyespot.errors import EyespotError
from eyespot.program.op import Dim, Op, Shape

FORMAT = 1  # of program.json; the engine refuses another


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, stop) of the first axis of a checkpoint tensor; stop None = all rows."""

    tensor: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as the ops see it: the concatenation of its sources' rows, reshaped to `shape`.

    Several sources name their `stop`; a source with none is a whole tensor. `transform` names a row of transforms.py.
    """

    name: str
    shape: tuple[int, ...]
    part: str
    sources: tuple[Rows, ...] = ()
    scheme: str = ""
    transform: str = ""

    @property
    def label(self) -> str:
        """What recipe patterns see: the part, then the name."""
        return f"{self.part}/{self.name}"


@dataclass(frozen=True, slots=True)
class Value:
    name: str
    shape: Shape
    dtype: str = "f32"


@dataclass(frozen=True, slots=True)
class Block:
    name: str
    part: str
    ops: tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """`values` holds the inputs and every op's output, in order of definition."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    blocks: tuple[Block, ...]
    values: Mapping[str, Value]

    def ops(self) -> Iterator[tuple[Block, Op]]:
        for block in self.blocks:
            for op in block.ops:
                yield block, op


@dataclass(frozen=True, slots=True)
class Info:
    """Sizes the caller of an engine needs. image_token_id is -1 and the tile sizes are 0 for a model without eyes."""

    vocab_size: int
    hidden_size: int
    max_position: int
    image_token_id: int = -1
    tile_size: int = 0  # pixels a side
    tile_tokens: int = 0  # feature rows a tile
    tile_channels: int = 3  # 6 where a tile is of two frames


@dataclass(frozen=True, slots=True)
class Program:
    """graphs: 'text' (tokens [n], rows [o], with eyes also features [f, d] -> logits [o, vocab]) and,
    with eyes, 'vision' (pixels [t, channels, s, s] -> features [tile_tokens*t, d]).

    A model with M-RoPE also has text's positions i32 [n, 3]. Eyes for pictures of any size take one picture a call, as
    tiles of one token in the order of their windows, and also places i32 [p*t, 2] (row and column of each of a tile's p
    patches), windows and frames i32 [p*t] (numbers that never fall: patches with the same one see each other).
    """

    family: str
    info: Info
    graphs: Mapping[str, Graph]
    weights: Mapping[str, Weight]
    constants: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def parts(self) -> list[str]:
        """Part names in the order of the data."""
        order = [block.part for graph in self.graphs.values() for block in graph.blocks]
        return list(dict.fromkeys(order))

    def roles(self) -> dict[str, set[tuple[str, str]]]:
        """Weight name -> the (op kind, role) pairs under which ops use it."""
        uses: dict[str, set[tuple[str, str]]] = {name: set() for name in self.weights}
        for graph in self.graphs.values():
            for _, op in graph.ops():
                for role, name in op.weights.items():
                    if name in uses:
                        uses[name].add((op.kind, role))
        return uses

    def to_json(self) -> dict[str, Any]:
        """The `program.json` of a bundle, less its `memory` key. Sources stay behind: a bundle has no checkpoint."""
        return {
            "format": FORMAT,
            "family": self.family,
            "info": {k: getattr(self.info, k) for k in Info.__dataclass_fields__},
            "constants": {k: list(v) for k, v in self.constants.items()},
            "weights": {
                w.name: {"shape": list(w.shape), "part": w.part, "scheme": w.scheme} for w in self.weights.values()
            },
            "graphs": {g.name: _graph_json(g) for g in self.graphs.values()},
        }

    @classmethod
    def from_json(cls, raw: Any) -> Program:
        """The Program of a program.json, without sources, not verified. EyespotError when not of to_json's form."""
        try:
            if raw["format"] != FORMAT:
                raise EyespotError("program.json: unknown format", found=raw["format"], expected=FORMAT)
            weights = {
                _text(name): Weight(name, _sizes(w["shape"]), _text(w["part"]), scheme=_text(w["scheme"]))
                for name, w in raw["weights"].items()
            }
            constants = {_text(name): tuple(map(float, values)) for name, values in raw["constants"].items()}
            graphs = {_text(name): _parse_graph(name, graph) for name, graph in raw["graphs"].items()}
            info = Info(**{name: _whole(value) for name, value in raw["info"].items()})
            return cls(_text(raw["family"]), info, graphs, weights, constants)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EyespotError(f"program.json: malformed ({type(error).__name__}: {error})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def _sizes(shape: Any) -> tuple[int, ...]:
    sizes = tuple(map(_whole, shape))
    if len(sizes) > limits.RANK or not all(0 < d <= limits.TENSOR_ELEMENTS for d in sizes):
        raise ValueError(f"bad shape {shape}")
    return sizes


def _parse_shape(shape: Any) -> Shape:
    return tuple(Dim.parse(d) if isinstance(d, str) else _whole(d) for d in shape)


def _parse_graph(name: str, raw: Any) -> Graph:
    values = {_text(i["name"]): Value(i["name"], _parse_shape(i["shape"]), _text(i["dtype"])) for i in raw["inputs"]}
    inputs, blocks = tuple(values), []
    for block in raw["blocks"]:
        ops = []
        for op in block["ops"]:
            out, attrs = _text(op["out"]), {_text(k): v for k, v in op["attrs"].items()}
            if out in values:
                raise ValueError(f"value '{out}' is defined twice")
            values[out] = Value(out, _parse_shape(op["shape"]))
            weights = {_text(role): _text(weight) for role, weight in op["weights"].items()}
            ops.append(Op(_text(op["kind"]), out, tuple(map(_text, op["in"])), weights, attrs))
        blocks.append(Block(_text(block["name"]), _text(block["part"]), tuple(ops)))
    return Graph(name, inputs, tuple(map(_text, raw["outputs"])), tuple(blocks), values)


def _shape_json(shape: Shape) -> list[int | str]:
    return [str(d) if isinstance(d, Dim) else d for d in shape]


def _graph_json(graph: Graph) -> dict[str, Any]:
    values = graph.values
    return {
        "inputs": [{"name": n, "shape": _shape_json(values[n].shape), "dtype": values[n].dtype} for n in graph.inputs],
        "outputs": list(graph.outputs),
        "blocks": [
            {
                "name": b.name,
                "part": b.part,
                "ops": [
                    {
                        "kind": op.kind,
                        "out": op.output,
                        "shape": _shape_json(values[op.output].shape),
                        "in": list(op.inputs),
                        "weights": dict(op.weights),
                        "attrs": dict(op.attrs),
                    }
                    for op in b.ops
                ],
            }
            for b in graph.blocks
        ],
    }
