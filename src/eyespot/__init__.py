"""eyespot: pocket vision-language models, from a checkpoint to an answer on a small device.

`import eyespot` is light: each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eyespot.errors import Cancelled, EyespotError, UnsupportedModel, UsageError
    from eyespot.run.answer import Answer, ImageUse, Timings
    from eyespot.run.model import Model, Stream, load
    from eyespot.run.sampling import Sampling
    from eyespot.run.session import Session

__version__ = "0.1.0"

_HOME = {
    "Answer": "run.answer",
    "Cancelled": "errors",
    "EyespotError": "errors",
    "ImageUse": "run.answer",
    "Model": "run.model",
    "Sampling": "run.sampling",
    "Session": "run.session",
    "Stream": "run.model",
    "Timings": "run.answer",
    "UnsupportedModel": "errors",
    "UsageError": "errors",
    "load": "run.model",
}

__all__ = [
    "Answer", "Cancelled", "EyespotError", "ImageUse", "Model", "Sampling", "Session", "Stream", "Timings",
    "UnsupportedModel", "UsageError", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eyespot' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"eyespot.{_HOME[name]}"), name)
    globals()[name] = value
    return value
