"""The sequence of an engine in a file, pictures included: what a long prompt left there, so that it need not be read
again. Knows the cache's keys and the file; what the engine's bytes mean is the engine's business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eyespot import limits, tensorfile
from eyespot.errors import EyespotError, UsageError
from eyespot.files import atomic
from eyespot.resolution import Cut

if TYPE_CHECKING:
    from eyespot.run.model import Model

KIND = "eyespot prompt cache 1"
STATE, KEYS = "state", "keys"


def save(model: Model, path: Path) -> int:
    """Writes what the model's sequence holds; the file gets its name when it is whole. Returns its tokens."""
    if not path.name:
        raise UsageError("the prompt cache has no name", found=str(path))
    keys = np.array(model.cache.keys, np.int64)
    state = model.engine.save(len(keys))
    pictures = json.dumps(model.processor.numbered(keys))
    facts = {
        "kind": KIND,
        "bundle": identity(model),
        "tokens": str(len(keys)),
        "pictures": pictures,
        "sha256": _hash(keys, state, pictures),
    }
    stored = {STATE: state, KEYS: keys.view(np.uint8)}
    shapes = {name: ("U8", array.shape) for name, array in stored.items()}
    order = tensorfile.layout(shapes, facts)[1]
    try:
        with atomic(path) as file:
            tensorfile.write(file, shapes, ((name, stored[name]) for name in order), facts)
    except OSError as error:
        raise UsageError(f"{path}: the prompt cache cannot be written ({error.strerror or error})") from None
    return len(keys)


def restore(model: Model, path: Path) -> int:
    """Makes the sequence what save() wrote; the next prompt goes on from what it has in common. Returns its tokens.

    EyespotError for a file that is none, is damaged, or is of another bundle, settings or context.
    """
    file = tensorfile.TensorFile(path)
    facts = file.metadata
    if facts.get("kind") != KIND:
        raise EyespotError(f"{path}: not a prompt cache", found=facts.get("kind", "no kind"), expected=KIND)
    if facts.get("bundle") != identity(model):
        raise EyespotError(f"{path}: the prompt cache of another model, or of another context size", cause="delete it")
    try:
        keys = np.array(file.raw(KEYS), np.uint8).view(np.int64)
        pictures = json.loads(facts["pictures"])
        if str(len(keys)) != facts["tokens"] or len(keys) > limits.CONTEXT:
            raise ValueError("tokens")
        state = file.raw(STATE)
        if _hash(keys, state, facts["pictures"]) != facts["sha256"]:
            raise ValueError("the hash differs")
        known = model.processor.numbers_for({int(n): _picture(p) for n, p in pictures.items()}, keys)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EyespotError(f"{path}: damaged ({type(error).__name__}: {error})", cause="delete it") from None
    model.cache.forget()
    model.engine.load(state, len(keys))
    model.cache.keys = known.tolist()
    return len(keys)


def _hash(keys: np.ndarray[Any, Any], state: np.ndarray[Any, Any], pictures: str) -> str:
    digest = hashlib.sha256(pictures.encode())
    digest.update(keys.data)
    digest.update(state.data)
    return digest.hexdigest()


def identity(model: Model) -> str:
    """Equal for equal bundles and settings at equal contexts."""
    digest = hashlib.sha256((model.bundle.path / "manifest.json").read_bytes())
    digest.update((model.bundle.path / "config.json").read_bytes())
    digest.update(b"%d" % model.ctx_size)
    return digest.hexdigest()


def _picture(raw: Mapping[str, Any]) -> tuple[bytes, Cut]:
    cut = raw["cut"]
    columns, rows = int(cut["columns"]), int(cut["rows"])
    sizes = {name: (int(cut[name][0]), int(cut[name][1])) for name in ("tile", "resized", "at")}
    return bytes.fromhex(raw["digest"]), Cut(columns, rows, **sizes, thumbnail=cut["thumbnail"])
