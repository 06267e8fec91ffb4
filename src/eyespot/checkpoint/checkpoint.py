"""The frozen record that later stages see, whatever file format it came from.

Knows names, shapes and row ranges; where the bytes lie and how they are decoded is the Storage's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eyespot.errors import EyespotError

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as stored: `dtype` is F32, F16, BF16 ... or a GGUF block type such as Q4_K; `file` is a plain name."""

    shape: tuple[int, ...]
    dtype: str
    file: str


class Storage(Protocol):
    """Decodes rows [start, stop) of a tensor; the range is already checked. Safe to call from several threads."""

    def read(self, name: str, start: int, stop: int) -> F32: ...

    def release(self, name: str) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. `tensors` are Hugging Face names; `config` is config.json as it came (or as GGUF says it).

    `name` is the file's or the directory's; org/name@revision of one that came from a hub. `warnings` are one-line
    findings that do not stop a compile. `files` is filled on first use.
    """

    path: Path
    name: str
    format: str  # "safetensors" or "gguf"
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    warnings: tuple[str, ...]
    storage: Storage = field(repr=False)
    load_files: Callable[[], dict[str, bytes]] = field(repr=False)

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """Files to carry along, by Hugging Face name; tokenizer.json is built when it comes in another form.

        Raises EyespotError for a tokenizer that cannot be read; holds no tokenizer.json when there is none.
        """
        return self.load_files()

    def dtype(self, name: str) -> str:
        """Stored dtype of a tensor."""
        return self._info(name).dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        """Rows [start, stop) of the first axis (a vector's elements), decoded to float32. Reads no other row."""
        shape = self._info(name).shape
        rows = shape[0] if shape else 1
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise EyespotError(
                f"tensor '{name}': no such rows", found=f"[{start}, {stop})", expected=f"within [0, {rows})"
            )
        return self.storage.read(name, start, stop)

    def release(self, name: str) -> None:
        """Gives a tensor's pages back to the system, so that walking a model does not grow the process by its size."""
        self._info(name)
        self.storage.release(name)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise EyespotError(f"tensor '{name}' is not in the checkpoint", found=f"{len(self.tensors)} other tensors")
        return info
