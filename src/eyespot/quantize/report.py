"""What compiling cost in accuracy: the float32 reference and the engine side by side, by blocks and by tokens.

Knows Programs, callables and an engine seen through a Protocol; neither checkpoints nor bundles nor screens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eyespot.errors import EyespotError
from eyespot.program import Dim, Program
from eyespot.program.dump import weight_prefix
from eyespot.program.reference import Reference, Trace
from eyespot.quantize.formats import F32

BEST = 10  # tokens shown beside each other
WORST = 3  # blocks named
GRID = 4  # tokens a side of the picture shown to eyes of any resolution
I32 = npt.NDArray[np.int32]


class EngineLike(Protocol):
    """What is asked of an engine. tokens int32 [n], features float32 [f, d] -> logits float32 [want, vocabulary]."""

    def encode(self, *seen: Any) -> F32: ...

    def prefill(self, tokens: Any, features: F32 | None = None, want: int = 1) -> F32: ...

    def decode(self, token: int, /) -> F32: ...

    def trace(self, callback: Trace | None, /) -> None: ...

    def close(self) -> None: ...


class Blocks:
    """Collects what a trace says of each block; the engine may say it in several pieces, a chunk of rows each."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, str], list[F32]] = {}

    def __call__(self, graph: str, block: str, values: F32) -> None:
        self._pieces.setdefault((graph, block), []).append(np.array(values, np.float32))

    def take(self) -> dict[tuple[str, str], F32]:
        """Block -> its last value [rows, columns] since the last call."""
        whole = {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}
        self._pieces = {}
        return whole


def measure(
    program: Program, weights: Callable[[str], F32], engine: EngineLike, tokens: Sequence[int], picture: int
) -> tuple[dict[str, Any], F32, F32]:
    """Runs the same tokens through the float reference and the engine, then one more of the reference's choice.

    weights: float32 weights of `program` by name, as in the checkpoint. picture: most tokens of a synthetic picture
    that comes first; 0: none.
    Returns the report {"tokens", "blocks": [{"phase", "graph", "block", "cosine", "relative_error"}], "min_cosine",
    "worst": [{"phase", "block", "pattern"}]} and the logits [vocabulary] after the tokens, of the reference and of the
    engine. EyespotError when blocks differ.
    """
    truth, found = Blocks(), Blocks()
    reference = Reference(program, weights, trace=truth)
    engine.trace(found)
    rows: list[dict[str, Any]] = []
    features: tuple[F32 | None, F32 | None] = (None, None)
    if picture:
        seen = synthetic_picture(program, picture)
        features = reference.encode(*seen), engine.encode(*seen)
        rows += _compare("encode", truth.take(), found.take())
        tokens = [program.info.image_token_id] * len(features[0]) + list(tokens)
    ids = np.array(tokens, np.int32)
    expected, got = reference.prefill(ids, features[0])[-1], engine.prefill(ids, features[1])[-1]
    rows += _compare("prefill", truth.take(), found.take())
    text = np.arange(len(expected)) != program.info.image_token_id  # that one would ask for a picture
    following = int(np.where(text, expected, -np.inf).argmax())
    reference.decode(following)
    engine.decode(following)
    rows += _compare("decode", truth.take(), found.take())
    engine.trace(None)
    lowest = min(row["cosine"] for row in rows)
    return {"tokens": len(ids), "blocks": rows, "min_cosine": lowest, "worst": _worst(program, rows)}, expected, got


def _worst(program: Program, rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The blocks at which the error grows most, worst first, and what finds their weights in a tensor scheme.

    A block passes on the error it was given, so what counts is by how much the square of the relative error grows, from
    the picture on to the prompt. A decoded token tells nothing of its own: each layer meets the errors of its cache.
    """
    grows: dict[tuple[str, str, str], float] = {}
    given = 0.0
    for row in rows:
        if row["phase"] != "decode":
            error = row["relative_error"] ** 2
            grows[row["phase"], row["graph"], row["block"]] = error - given
            given = error
    order = sorted(grows, key=lambda at: -grows[at])[:WORST]
    return [
        {"phase": phase, "block": block, "pattern": _pattern(program, graph, block)} for phase, graph, block in order
    ]


def _pattern(program: Program, graph: str, name: str) -> str:
    """A regular expression that finds the weights of one block."""
    block = next(b for b in program.graphs[graph].blocks if b.name == name)
    return f"^{block.part}/" + ("" if block.part == name else re.escape(weight_prefix(program, block)))


def _compare(phase: str, truth: dict[tuple[str, str], F32], found: dict[tuple[str, str], F32]) -> list[dict[str, Any]]:
    rows = []
    for (graph, block), a in truth.items():
        b = found.get((graph, block))
        if not np.isfinite(a).all():  # no cosine would be below a gate
            raise EyespotError(
                f"check of {phase}, block '{block}': the reference is not finite",
                cause="the weights or the input overflow float32",
            )
        if b is None or b.shape != a.shape or not np.isfinite(b).all():
            raise EyespotError(
                f"check of {phase}, block '{block}': the engine's values cannot be compared",
                found="none" if b is None else "NaN or Inf" if b.shape == a.shape else b.shape,
                expected=f"{a.shape}, all finite",
            )
        rows.append({"phase": phase, "graph": graph, "block": block, **distance(a, b)})
    return rows


def distance(a: F32, b: F32) -> dict[str, float]:
    """Cosine of a and b as one long vector, and |a - b| / |a|; two zero vectors are equal."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    nx, ny = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if nx == 0 or ny == 0:
        return {"cosine": float(nx == ny), "relative_error": float(nx != ny)}
    return {"cosine": min(1.0, float(x @ y) / (nx * ny)), "relative_error": float(np.linalg.norm(x - y)) / nx}


def best_tokens(expected: F32, got: F32, text: Callable[[int], str]) -> dict[str, Any]:
    """The ten likeliest tokens by each of two logit vectors [vocabulary], and KL(expected || got) in nats."""
    p, q = _log_softmax(expected), _log_softmax(got)
    return {
        "kl": max(0.0, float(np.sum(np.exp(p) * (p - q)))),
        "float": _best(p, text),
        "bundle": _best(q, text),
    }


def _log_softmax(logits: F32) -> np.ndarray[Any, np.dtype[np.float64]]:
    x = logits.astype(np.float64)
    x -= x.max()
    log: np.ndarray[Any, np.dtype[np.float64]] = x - np.log(np.exp(x).sum())
    return log


def _best(log: np.ndarray[Any, np.dtype[np.float64]], text: Callable[[int], str]) -> list[dict[str, Any]]:
    order = np.argsort(-log, kind="stable")[:BEST]
    return [{"token": int(i), "text": text(int(i)), "probability": float(np.exp(log[i]))} for i in order]


def synthetic_picture(program: Program, most: int) -> tuple[F32 | I32, ...]:
    """What the eyes take of a picture in the range of normalized ones: waves of several lengths, an edge, some noise.

    A tile; or, where a tile is a token, a square of at most GRID x GRID and `most` of them in one window, with their
    places, windows and frames.
    """
    info, inputs = program.info, program.graphs["vision"].inputs
    count = min(GRID, math.isqrt(most)) if "places" in inputs else 1
    side = count * info.tile_size
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    waves = [np.sin(2 * np.pi * (f * x + g * y)) for f, g in ((1, 2), (5, -3), (11, 7))]
    noise = np.random.default_rng(0).standard_normal((3, side, side), dtype=np.float32)
    picture = (np.stack(waves) + (x > y) + 0.2 * noise).astype(np.float32)
    if "places" not in inputs:
        return (picture[None],)
    cut = picture.reshape(3, count, info.tile_size, count, info.tile_size).transpose(1, 3, 0, 2, 4)
    tiles = cut.reshape(count * count, 3, info.tile_size, info.tile_size)
    rows = program.graphs["vision"].values["places"].shape[0]
    patches = rows.per if isinstance(rows, Dim) else 1
    edge = math.isqrt(patches)
    tile, patch = np.divmod(np.arange(count * count * patches), patches)
    at = [edge * (tile // count) + patch // edge, edge * (tile % count) + patch % edge]
    same = np.zeros(len(tile), np.int32)
    pixels = np.repeat(tiles, info.tile_channels // 3, axis=1)  # a still picture: each channel's frames are alike
    return np.ascontiguousarray(pixels), np.stack(at, axis=1).astype(np.int32), same, same
