"""Program: the one description of a model that every later stage reads."""

from eyespot.program.build import Builder, Ref
from eyespot.program.dump import dump
from eyespot.program.op import OPS, Dim, Op, OpSpec, Shape, size
from eyespot.program.program import FORMAT, Block, Graph, Info, Program, Rows, Value, Weight
from eyespot.program.verify import verify

__all__ = [
    "FORMAT", "OPS", "Block", "Builder", "Dim", "Graph", "Info", "Op", "OpSpec", "Program", "Ref", "Rows", "Shape",
    "Value", "Weight", "dump", "size", "verify",
]  # fmt: skip
