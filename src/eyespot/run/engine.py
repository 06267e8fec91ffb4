"""The native engine for Python callers: one bundle, one sequence, errors as EyespotError.

A thin skin over eyespot._native. Knows tokens and arrays; text, pictures and sampling are its callers' business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from eyespot import _native, limits
from eyespot.errors import INTERRUPTED, UNSUPPORTED, USAGE, Cancelled, EyespotError, UnsupportedModel, UsageError
from eyespot.run.arguments import whole

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Trace = Callable[[str, str, F32], None]  # graph, block, the block's last value [rows, columns]

ERRORS: dict[int, type[EyespotError]] = {USAGE: UsageError, UNSUPPORTED: UnsupportedModel, INTERRUPTED: Cancelled}


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _native.Error as error:
        status, message = error.args
        raise ERRORS.get(status, EyespotError)(message) from None


def _array(value: object, dtype: type[np.float32] | type[np.int32], what: str) -> npt.NDArray[Any]:
    """`value` as a contiguous array of `dtype`. UsageError for what is no array of such numbers."""
    try:
        given = np.asarray(value)
        if dtype is np.int32:
            if given.size and given.dtype.kind not in "iu":
                raise UsageError(f"{what} are not integers", found=given.dtype)
            clipped = np.clip(given, -1, np.iinfo(np.int32).max)  # outside the vocabulary stays outside
            return np.ascontiguousarray(clipped, dtype=np.int32)
        return np.ascontiguousarray(given, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{what} are not an array of numbers", found=type(value).__name__) from None


def _placed(positions: npt.ArrayLike | None) -> I32 | None:
    return None if positions is None else _array(positions, np.int32, "positions")


def threads_for(asked: int, configured: int) -> int:
    """The engine's `threads`: what was asked for, else EYESPOT_THREADS (0: the engine reads it), else config.json's."""
    return asked or (0 if os.environ.get("EYESPOT_THREADS") else configured)


class Engine:
    """A bundle opened for running, and one sequence of tokens with its KV cache. Only cancel() may overlap a call.

    path: the bundle's directory. threads: 0 = EYESPOT_THREADS, else every processor this process may use. ctx_size: 0 =
    what the bundle was compiled for. isa: "" = the best this machine runs; another that it cannot run fails.
    Errors: UsageError for a bad argument or a closed engine, UnsupportedModel for ops, schemes or a format this engine
    does not know, Cancelled after cancel(), EyespotError for a damaged bundle or logits that are not finite.
    """

    def __init__(self, path: str | Path, threads: int = 0, ctx_size: int = 0, isa: str = "") -> None:
        threads = whole("threads", threads, 0, limits.THREADS)
        ctx_size = whole("ctx_size", ctx_size, 0, limits.CONTEXT)
        if not isinstance(isa, str):
            raise UsageError("isa is not a text", found=repr(isa), expected='"" for the best there is')
        directory = os.fspath(path)
        try:
            directory.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{directory}: the engine opens only paths that are UTF-8") from None
        with _translated():
            self._engine = _native.Engine(directory, threads, ctx_size, isa)
        self._info = self._engine.info

    @property
    def info(self) -> dict[str, Any]:
        """es_info of eyespot.h: sizes, threads, instruction set, bytes of arena, weights and cache."""
        return dict(self._info)

    @property
    def past(self) -> int:
        """Tokens in the sequence."""
        with _translated():
            return self._engine.past

    def encode(
        self,
        pixels: npt.ArrayLike,
        places: npt.ArrayLike | None = None,
        windows: npt.ArrayLike | None = None,
        frames: npt.ArrayLike | None = None,
    ) -> F32:
        """Features [tiles * tile_tokens, hidden_size] of normalized pixels [tiles, channels, tile_size, tile_size].

        places [patches, 2], windows, frames [patches]: of a model with tile_patches; see es_encode_at of eyespot.h.
        """
        beside = (
            None if value is None else _array(value, np.int32, name)
            for name, value in (("places", places), ("windows", windows), ("frames", frames))
        )
        with _translated():
            return self._engine.encode(_array(pixels, np.float32, "pixels"), *beside)

    def prefill(
        self,
        tokens: npt.ArrayLike,
        features: npt.ArrayLike | None = None,
        want: int = 1,
        positions: npt.ArrayLike | None = None,
    ) -> F32:
        """Appends tokens [n]; returns logits [want, vocab_size] after the last `want` of them.

        features: a row for each image token, in order, [rows, hidden_size]. positions [n, axes]: of a model with axes;
        None: they go on.
        """
        ids = _array(tokens, np.int32, "tokens")
        rows = None if features is None else _array(features, np.float32, "features")
        if ids.ndim != 1:
            raise UsageError("tokens are misshapen", found=ids.shape, expected="[n]")
        if not 0 <= want <= len(ids):
            raise UsageError("want is out of range", found=want, expected=f"0 to {len(ids)}")
        with _translated():
            return self._engine.prefill(ids, rows, want, _placed(positions))

    def decode(self, token: int) -> F32:
        """Appends one token; returns logits [vocab_size]."""
        if not 0 <= token < 1 << 31:
            raise UsageError("token is outside the vocabulary", found=token)
        with _translated():
            return self._engine.decode(int(token))

    def feed(
        self,
        tokens: npt.ArrayLike,
        features: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
    ) -> None:
        """prefill() that copies nothing out: ask top() or logits() what comes after the last token."""
        ids = _array(tokens, np.int32, "tokens")
        rows = None if features is None else _array(features, np.float32, "features")
        if ids.ndim != 1:
            raise UsageError("tokens are misshapen", found=ids.shape, expected="[n]")
        with _translated():
            self._engine.feed(ids, rows, _placed(positions))

    def top(self, k: int) -> tuple[I32, F32]:
        """Ids and logits of the best k after the last token (fewer where the vocabulary is smaller).

        The largest comes first, of equals the lowest id. k: 1 to limits.TOP.
        Errors: UsageError when the last prefill wanted no logits or failed, or a picture was encoded since.
        """
        k = whole("k", k, 1, limits.TOP)
        with _translated():
            return self._engine.top(min(k, self._info["vocab_size"]))

    def logits(self) -> F32:
        """Logits [vocab_size] after the last token; errors as of top()."""
        with _translated():
            return self._engine.logits()

    def profile(self, on: bool = True) -> None:
        """Starts from nothing to count what each op costs, or stops."""
        with _translated():
            self._engine.profile(on)

    def profiled(self) -> list[dict[str, Any]]:
        """es_op_cost of eyespot.h for every op, in the order of the program.

        Keys: graph, block, op, kind, numbers (of its products: float32, int16, int8, int4), calls,
        nanoseconds, bytes (weights, keys and values read), multiply_adds.
        """
        with _translated():
            return self._engine.profiled()

    def truncate(self, n: int) -> None:
        """Forgets all but the first n tokens."""
        if not 0 <= n < 1 << 31:
            raise UsageError("truncate is out of range", found=n, expected=f"0 to {self.past}")
        with _translated():
            self._engine.truncate(int(n))

    def release_eyes(self) -> None:
        """Lets go of the memory that the eyes' weights take, until the next picture."""
        with _translated():
            self._engine.release_eyes()

    def save(self, n: int) -> npt.NDArray[np.uint8]:
        """What the first n tokens have left in the cache, for load() of an engine of the same bundle and context."""
        with _translated():
            return self._engine.save(int(n))

    def load(self, state: npt.NDArray[np.uint8], n: int) -> None:
        """Goes on from n tokens that save() wrote. UsageError when they do not fit this engine."""
        with _translated():
            self._engine.load(np.ascontiguousarray(state, np.uint8), int(n))

    def cancel(self, on: bool = True) -> None:
        """From any thread: the running call, or else the next one, stops at its next block and raises Cancelled.

        on: False takes back a request that no call has met.
        """
        with _translated():
            self._engine.cancel(on)

    def trace(self, callback: Trace | None) -> None:
        """Calls `callback` with a copy of every block's last value, from the next call on; None ends it."""
        with _translated():
            self._engine.trace(callback)

    def close(self) -> None:
        """Frees everything; any later call but close() is a UsageError."""
        with _translated():
            self._engine.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
