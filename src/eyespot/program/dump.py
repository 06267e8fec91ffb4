"""A Program as text a person can read. Runs of blocks that differ only in their layer number are folded into one."""

from __future__ import annotations

import re
from itertools import groupby, takewhile

from eyespot.program.op import Attr, Op, Shape
from eyespot.program.program import Block, Graph, Program


def _shape(shape: Shape | tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _attr(key: str, value: Attr) -> str:
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"


def weight_prefix(program: Program, block: Block) -> str:
    """What the names of all weights of a block begin with, up to a dot."""
    names = [name.split(".")[:-1] for op in block.ops for name in op.weights.values() if name in program.weights]
    common = takewhile(lambda words: len(set(words)) == 1, zip(*names, strict=False)) if len(names) > 1 else ()
    return "".join(f"{words[0]}." for words in common)


def _arguments(program: Program, op: Op, block: Block, prefix: str) -> str:
    arguments = [name.removeprefix(f"{block.name}.") for name in op.inputs]
    for role, name in op.weights.items():
        weight = program.weights.get(name)
        stored = f"{weight.scheme}{_shape(weight.shape)}" if weight else f"constant[{len(program.constants[name])}]"
        arguments.append(f"{role}={name.removeprefix(prefix)} {stored}")
    return ", ".join(arguments + [_attr(k, v) for k, v in op.attrs.items()])


def _lines(program: Program, graph: Graph, block: Block) -> list[str]:
    """One line an op. Own values go without the block's name, weights without what all their names begin with."""
    prefix = weight_prefix(program, block)
    own = [op.output.removeprefix(f"{block.name}.") for op in block.ops]
    width = max(map(len, own), default=0)
    return [
        f"    {name:<{width}} = {op.kind}({_arguments(program, op, block, prefix)})"
        f" -> {_shape(graph.values[op.output].shape)}"
        for name, op in zip(own, block.ops, strict=True)
    ]


def _alike(program: Program, lines: list[str], block: Block) -> str:
    """The text of a block with its number, and the name of the block before it, taken out: equal for equal layers."""
    number = re.search(r"(\d+)$", block.name)
    if number is None:
        return block.name
    text = re.sub(r"\b(vision\.)?(layer_\d+|embed_tokens|embeddings)\.\w+", "before", "\n".join(lines))
    return re.sub(rf"\blayer={int(number[1])}\b", "layer=*", text) + re.sub(r"\d+", "*", weight_prefix(program, block))


def dump(program: Program) -> str:
    """Several lines: info, then each graph's inputs, blocks and outputs, each op with its shapes and schemes."""
    info = program.info
    head = f"program {program.family}: vocabulary {info.vocab_size}, width {info.hidden_size}"
    out = [f"{head}, positions {info.max_position}"]
    if info.tile_size:
        tile = f"{info.tile_size}x{info.tile_size} pixels, {info.tile_tokens} tokens"
        out.append(f"  pictures: tiles of {tile}, placed at token {info.image_token_id}")
    for graph in program.graphs.values():
        inputs = ", ".join(f"{n} {graph.values[n].dtype}{_shape(graph.values[n].shape)}" for n in graph.inputs)
        out.append(f"graph {graph.name}({inputs}):")
        texts = [(_lines(program, graph, b), b) for b in graph.blocks]
        for _, run in groupby(texts, key=lambda t: _alike(program, *t)):
            folded = list(run)
            lines, first = folded[0]
            also = f" .. {folded[-1][1].name} ({len(folded)} alike)" if len(folded) > 1 else ""
            prefix = weight_prefix(program, first)
            out.append(f"  block {first.name}{also}:" + (f"  # weights {prefix}*" if prefix else ""))
            out += lines
        out.append(f"  return {', '.join(graph.outputs)}")
    return "\n".join(out)
