"""Safetensors checkpoints: one file, or an index and the shards it names.

Knows that every tensor of the index must lie in its shard; knows no config and no tokenizer.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from eyespot import limits
from eyespot.checkpoint.checkpoint import F32, TensorInfo
from eyespot.errors import EyespotError, Faults
from eyespot.tensorfile import TensorFile, bf16_to_f32, read_json

INDEX = "model.safetensors.index.json"
PLAIN_NAME = re.compile(r"\w[\w.-]{0,250}\.safetensors", re.ASCII)  # no separators, no "..", nothing hidden
FLOATS = ("F32", "F16", "BF16")


class ShardStorage:
    """Memory-mapped shards; `owner` says which file holds a tensor."""

    def __init__(self, owner: dict[str, TensorFile]) -> None:
        self._owner = owner

    def read(self, name: str, start: int, stop: int) -> F32:
        file = self._owner[name]
        dtype = file.entries[name].dtype
        if dtype not in FLOATS:  # checked here, not at open: old checkpoints carry integer buffers that nobody reads
            raise EyespotError(f"{file.path.name}: tensor '{name}' has dtype {dtype}", expected=", ".join(FLOATS))
        raw = file.raw(name)
        rows = raw[start:stop] if raw.ndim else raw
        return np.asarray(bf16_to_f32(rows)) if dtype == "BF16" else rows.astype(np.float32)

    def release(self, name: str) -> None:
        self._owner[name].release(name)


def open_shards(directory: Path, name: str) -> tuple[dict[str, TensorInfo], ShardStorage, tuple[str, ...]]:
    """Tensors, storage and warnings of `name`, which is a safetensors file or the index of several."""
    warnings: list[str] = []
    if name != INDEX:
        file = TensorFile(directory / name)
        owner = dict.fromkeys(file.entries, file)
    else:
        owner = _open_index(directory, warnings)
    tensors = {}
    for key, file in owner.items():
        entry = file.entries[key]
        tensors[key] = TensorInfo(entry.shape, entry.dtype, file.path.name)
    if not tensors:
        raise EyespotError(f"{name}: holds no tensors")
    return tensors, ShardStorage(owner), tuple(warnings)


def _open_index(directory: Path, warnings: list[str]) -> dict[str, TensorFile]:
    index = read_json(directory / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or len(weight_map) > limits.TENSORS:
        raise EyespotError(f"{INDEX}: no usable weight_map", expected=f"an object of at most {limits.TENSORS} tensors")
    for key, shard in weight_map.items():
        if not isinstance(shard, str) or not PLAIN_NAME.fullmatch(shard):
            raise EyespotError(
                f"{INDEX}: tensor '{key}' names a bad file", found=shard, expected="a plain *.safetensors name"
            )
    names = sorted(set(weight_map.values()))
    if len(names) > limits.SHARDS:
        raise EyespotError(f"{INDEX}: too many shards", found=len(names), expected=f"at most {limits.SHARDS}")
    faults = Faults(INDEX)
    for name in names:
        if not (directory / name).is_file():
            faults.add(f"shard {name} is missing")
    faults.raise_if_any(cause="the download is incomplete")
    files = {name: TensorFile(directory / name) for name in names}
    for key, shard in weight_map.items():
        if key not in files[shard].entries:
            faults.add(f"tensor '{key}' is not in {shard}")
    seen: dict[str, str] = {}
    for name, file in files.items():
        extra = [key for key in file.entries if weight_map.get(key) != name]
        for key in file.entries:
            if seen.setdefault(key, name) != name:
                faults.add(f"tensor '{key}' is in both {seen[key]} and {name}")
        if extra:
            warnings.append(f"{name}: {len(extra)} tensors are not in the index: {', '.join(extra[:4])}")
    faults.raise_if_any(cause="index and shards are of different checkpoints")
    return {key: files[shard] for key, shard in weight_map.items()}
