"""What a compile is told, what it carries from pass to pass, and what it returns. Data only; passes.py has the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eyespot.bundle.settings import Settings
from eyespot.bundle.write import BundleWriter
from eyespot.compile.schedule import Memory
from eyespot.families import Built
from eyespot.program import Program
from eyespot.quantize.report import EngineLike

OpenEngine = Callable[[Path], EngineLike]
Progress = Callable[[int, int], None]  # weights' elements done, of all


class TensorLike(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class CheckpointLike(Protocol):
    """What compile asks of a checkpoint; see checkpoint/checkpoint.py, which it may not import."""

    @property
    def path(self) -> Path: ...

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> str: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorLike]: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    @property
    def files(self) -> Mapping[str, bytes]: ...

    def dtype(self, name: str) -> str: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]: ...

    def release(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose. None and 0 leave the choice to the model or the machine.

    scheme: of the language model's matrices; 'gguf': each as the file has it. The head of a 4-bit one takes 8 bits.
    ctx_size: tokens (None: 1024, with eyes room for the largest picture; never more than the model was made for).
    prefill_chunk: rows a call.
    image_size: pixels a side of a tile. image_tokens: most tokens of a picture.
    tensor_schemes: 'REGEX=SCHEME' overrides, first match wins.
    check: 'none', 'layers' or 'full'. min_cosine: every block must be at least this close to float32.
    """

    scheme: str = "W8A8-g32"
    vision_scheme: str = "W8A8"
    kv_cache: str = "f16"
    ctx_size: int | None = None
    prefill_chunk: int = 128
    image_size: int | None = None
    image_tokens: int | None = None
    tensor_schemes: tuple[str, ...] = ()
    check: str = "none"
    check_prompt: str = "1+1="
    min_cosine: float | None = None
    threads: int = 0


@dataclass(slots=True)
class Job:
    """One compile. A field without a value is set by the pass that makes it."""

    source: CheckpointLike
    out: Path
    options: Options
    exit: ExitStack
    open_engine: OpenEngine | None = None
    progress: Progress | None = None
    warnings: list[str] = field(default_factory=list)
    report: dict[str, Any] | None = None
    ctx_size: int = field(init=False)
    built: Built = field(init=False)
    program: Program = field(init=False)
    memory: Memory = field(init=False)
    settings: Settings = field(init=False)
    files: dict[str, bytes] = field(init=False)
    bundle: BundleWriter = field(init=False)


@dataclass(frozen=True, slots=True)
class SchemeTotal:
    """All weights of one scheme: how many, their elements, their bytes in the bundle."""

    weights: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CompileResult:
    """A sealed bundle. seconds: wall time; peak_bytes: the most memory this process held, ever."""

    path: Path
    family: str
    schemes: Mapping[str, SchemeTotal]
    bundle_bytes: int
    memory: Memory
    report: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    seconds: float
    peak_bytes: int

    @property
    def bits_per_weight(self) -> float:
        elements = sum(total.elements for total in self.schemes.values())
        return 8 * sum(total.bytes for total in self.schemes.values()) / elements
