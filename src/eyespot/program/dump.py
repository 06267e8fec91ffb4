"""A Program as text a person can read. Runs of blocks that differ only in their layer number are folded into one."""

from __future__ import annotations

import re
from itertools import groupby

from eyespot.program.op import Shape
from eyespot.program.program import Block, Graph, Program


def _shape(shape: Shape | tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _lines(program: Program, graph: Graph, block: Block) -> list[str]:
    lines = []
    width = max((len(op.output) for op in block.ops), default=0)
    for op in block.ops:
        arguments = list(op.inputs)
        for role, name in op.weights.items():
            weight = program.weights.get(name)
            storage = (
                f" {weight.scheme or 'unset'}{_shape(weight.shape)}"
                if weight
                else f" constant[{len(program.constants[name])}]"
            )
            arguments.append(f"{role}={name}{storage}")
        arguments += [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in op.attrs.items()]
        shape = _shape(graph.values[op.output].shape)
        lines.append(f"    {op.output:<{width}} = {op.kind}({', '.join(arguments)}) -> {shape}")
    return lines


def _pattern(lines: list[str], block: Block) -> str:
    """The block's text with its layer number taken out, so that equal layers compare equal."""
    number = re.search(r"(\d+)$", block.name)
    if number is None:
        return "\n".join(lines)
    layer = int(number.group(1))
    text = re.sub(rf"\blayers?[._]0*{layer}\b", "layer*", "\n".join(lines))
    text = (
        re.sub(rf"layer_0*{layer - 1}\.", "previous.", text)
        if layer
        else re.sub(r"\b(embed\w*|vision\.embeddings|merge)\.\w+", "previous.out", text)
    )
    return re.sub(rf"\blayer={layer}\b", "layer=*", re.sub(r"previous\.\w+", "previous.out", text))


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
        for _, run in groupby(texts, key=lambda t: _pattern(*t)):
            folded = list(run)
            lines, first = folded[0]
            also = f" .. {folded[-1][1].name} ({len(folded)} alike)" if len(folded) > 1 else ""
            out.append(f"  block {first.name}{also}:")
            out += lines
        out.append(f"  return {', '.join(graph.outputs)}")
    return "\n".join(out)
