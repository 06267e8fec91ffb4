"""Builder: how a family writes a Program down. Names values, infers shapes as it goes, declares weights at their use.

b = Builder("qwen2")
with b.graph("text"):
    tokens = b.input("tokens", (Dim(1, "n"),), "i32")
    with b.block("embed_tokens"):
        x = b("embed", tokens, weight=b.weight("model.embed_tokens.weight", (vocab, width)))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eyespot.errors import EyespotError
from eyespot.program.op import Attr, Op, Shape
from eyespot.program.program import Block, Graph, Info, Program, Rows, Value, Weight
from eyespot.program.verify import infer


class Ref(str):
    """The name of a declared weight or constant; tells a weight argument from a string attribute."""


class Builder:
    def __init__(self, family: str) -> None:
        self.family = family
        self._graphs: dict[str, Graph] = {}
        self._weights: dict[str, Weight] = {}
        self._constants: dict[str, tuple[float, ...]] = {}
        self._values: dict[str, Value] = {}
        self._inputs: list[str] = []
        self._blocks: list[Block] = []
        self._ops: list[Op] | None = None
        self._block = self._part = ""
        self._outputs: tuple[str, ...] = ()

    @contextmanager
    def graph(self, name: str) -> Iterator[None]:
        """Opens graph `name`; call `outputs` before it closes."""
        self._values, self._inputs, self._blocks, self._outputs = {}, [], [], ()
        yield
        if not self._outputs:
            raise EyespotError(f"graph '{name}' names no output")
        self._graphs[name] = Graph(name, tuple(self._inputs), self._outputs, tuple(self._blocks), self._values)

    @contextmanager
    def block(self, name: str, part: str | None = None) -> Iterator[None]:
        """Opens block `name`; its weights go to file `part` (default: a file of the same name)."""
        self._block, self._part, self._ops = name, part or name, []
        yield
        self._blocks.append(Block(name, self._part, tuple(self._ops)))
        self._ops = None

    def input(self, name: str, shape: Shape, dtype: str = "f32") -> str:
        self._values[name] = Value(name, shape, dtype)
        self._inputs.append(name)
        return name

    def outputs(self, *names: str) -> None:
        self._outputs = names

    def weight(
        self, name: str, shape: tuple[int, ...], sources: Sequence[Rows | str] | None = None, transform: str = ""
    ) -> Ref:
        """Declares a weight of the open block. Sources default to the checkpoint tensor of the same name."""
        rows = tuple(Rows(s) if isinstance(s, str) else s for s in (sources or (name,)))
        if name in self._weights:
            raise EyespotError(f"weight '{name}' is declared twice")
        self._weights[name] = Weight(name, shape, self._part, rows, transform=transform)
        return Ref(name)

    def constant(self, name: str, values: Sequence[float]) -> Ref:
        """Declares a small float32 vector kept in program.json. Declaring the same values again is fine."""
        fixed = tuple(float(v) for v in values)
        if self._constants.setdefault(name, fixed) != fixed:
            raise EyespotError(f"constant '{name}' is declared twice with other values")
        return Ref(name)

    def __call__(self, kind: str, *inputs: str, out: str | None = None, **arguments: Ref | Attr | None) -> str:
        """Appends an op and returns its output's name. A Ref is a weight, None is left out, the rest are attributes."""
        if self._ops is None:
            raise EyespotError(f"op '{kind}' stands outside a block")
        weights = {k: str(v) for k, v in arguments.items() if isinstance(v, Ref)}
        attrs = {k: v for k, v in arguments.items() if v is not None and not isinstance(v, Ref)}
        name = f"{self._block}.{out or kind}"
        while name in self._values:
            name += "_"
        op = Op(kind, name, inputs, weights, attrs)
        self._values[name] = Value(name, infer(op, self._values, self._weights, self._constants))
        self._ops.append(op)
        return name

    def build(self, info: Info) -> Program:
        return Program(self.family, info, self._graphs, self._weights, self._constants)
