"""Compile: from a checkpoint to a bundle, through passes that can be seen and printed."""

from eyespot.compile.job import CheckpointLike, CompileResult, Options
from eyespot.compile.pipeline import DUMPABLE, PASSES, compile_model, dump_after

__all__ = ["DUMPABLE", "PASSES", "CheckpointLike", "CompileResult", "Options", "compile_model", "dump_after"]
