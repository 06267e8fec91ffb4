"""verify(): a Program is well-formed, or one error says which op is not and why.

Runs after every pass that changes a Program, and on every program.json read back.
"""

from __future__ import annotations

from collections.abc import Mapping

from eyespot import limits
from eyespot.errors import EyespotError
from eyespot.program.op import OPS, Args, Op, Shape, ShapeFault
from eyespot.program.program import Program, Value, Weight


def infer(
    op: Op, values: Mapping[str, Value], weights: Mapping[str, Weight], constants: Mapping[str, tuple[float, ...]]
) -> Shape:
    """The output shape of `op`. EyespotError when the op breaks its row of OPS."""
    try:
        return _infer(op, values, weights, constants)
    except ShapeFault as fault:
        raise EyespotError(f"op '{op.output}' ({op.kind}): {fault}") from None


def _infer(
    op: Op, values: Mapping[str, Value], weights: Mapping[str, Weight], constants: Mapping[str, tuple[float, ...]]
) -> Shape:
    spec = OPS.get(op.kind)
    if spec is None:
        raise ShapeFault(f"unknown kind, expected one of {', '.join(OPS)}")
    if len(op.inputs) != spec.inputs:
        raise ShapeFault(f"{len(op.inputs)} inputs, expected {spec.inputs}")
    for name in op.inputs:
        if name not in values:
            raise ShapeFault(f"input '{name}' is not defined before it")
    roles = {role.rstrip("?"): role for role in spec.roles}
    for role in op.weights:
        if role not in roles:
            raise ShapeFault(f"weight role '{role}' is not among {sorted(roles)}")
    shapes: dict[str, Shape] = {}
    for role, declared in roles.items():
        weight = op.weights.get(role)
        if weight is None:
            if not declared.endswith("?"):
                raise ShapeFault(f"weight '{role}' is missing")
        elif weight in weights:
            shapes[role] = weights[weight].shape
        elif weight in constants:
            shapes[role] = (len(constants[weight]),)
        else:
            raise ShapeFault(f"weight '{weight}' is not declared")
    if set(op.attrs) != set(spec.attrs):
        raise ShapeFault(f"attributes {sorted(op.attrs)}, expected {sorted(spec.attrs)}")
    for key, kind in spec.attrs.items():
        if type(op.attrs[key]) is not kind:
            raise ShapeFault(f"attribute {key}={op.attrs[key]!r}, expected {kind.__name__}")
    return spec.shape(Args([values[n].shape for n in op.inputs], shapes, op.attrs))


def verify(program: Program) -> Program:
    """Checks names, order, shapes and parts of every graph; returns the same Program."""
    if "text" not in program.graphs:
        raise EyespotError("program has no graph 'text'", found=sorted(program.graphs))
    if sum(len(b.ops) for g in program.graphs.values() for b in g.blocks) > limits.OPS:
        raise EyespotError("program is too long", expected=f"at most {limits.OPS} ops")
    used: set[str] = set()
    for graph in program.graphs.values():
        values = {name: graph.values[name] for name in graph.inputs}
        ropes: set[tuple[object, ...]] = set()
        layers: set[object] = set()
        for block, op in graph.ops():
            shape = infer(op, values, program.weights, program.constants)
            if op.output in values:
                raise EyespotError(f"op '{op.output}' ({op.kind}): the value is defined twice")
            if graph.values.get(op.output) != Value(op.output, shape):
                raise EyespotError(f"op '{op.output}' ({op.kind}): recorded shape differs", expected=shape)
            values[op.output] = graph.values[op.output]
            for name in op.weights.values():
                used.add(name)
                weight = program.weights.get(name)
                if weight is not None and weight.part != block.part:
                    raise EyespotError(
                        f"weight '{name}' lies in part '{weight.part}' but block '{block.name}' is in '{block.part}'"
                    )
            if op.kind in ("rope", "rope_at"):
                ropes.add((op.weights["inv_freq"], op.weights.get("axis"), op.attrs["factor"]))
            if op.kind == "attention" and op.attrs["layer"] != -1:
                if op.attrs["layer"] in layers:
                    raise EyespotError(f"op '{op.output}': cache layer {op.attrs['layer']} is written twice")
                layers.add(op.attrs["layer"])
        if len(ropes) > 1:
            raise EyespotError(f"graph '{graph.name}': rope ops use {len(ropes)} tables, expected one")
        if layers != set(range(len(layers))):
            raise EyespotError(f"graph '{graph.name}': cache layers are not numbered 0..{len(layers) - 1}")
        for name in graph.outputs:
            if name not in values:
                raise EyespotError(f"graph '{graph.name}': output '{name}' is not defined")
    unused = sorted(set(program.weights) - used)
    if unused:
        raise EyespotError(f"weight '{unused[0]}' is declared but no op uses it (+{len(unused) - 1} more)")
    return program
