"""The engine's one sequence, kept in step: which keys its cache holds, what of a new prompt is there already, and the
features of pictures, each encoded once. Knows prompts as keys, ids and pictures; knows no text.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eyespot.images import Picture
from eyespot.resolution import Cut
from eyespot.run.answer import ImageUse
from eyespot.run.processor import Placed, Prompt, Seen
from eyespot.run.timeline import Timeline

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
FEATURE_BYTES = 128 << 20  # ten pictures of 13 tiles for a language model of width 896


class EngineLike(Protocol):
    """What eyespot.run.engine.Engine offers; see native/include/eyespot.h."""

    @property
    def info(self) -> Mapping[str, Any]: ...
    @property
    def past(self) -> int: ...
    def encode(
        self, pixels: F32, places: I32 | None = None, windows: I32 | None = None, frames: I32 | None = None
    ) -> F32: ...
    def feed(self, tokens: npt.ArrayLike, features: F32 | None = None, positions: I32 | None = None) -> None: ...
    def top(self, k: int) -> tuple[npt.NDArray[np.int32], F32]: ...
    def logits(self) -> F32: ...
    def truncate(self, n: int) -> None: ...
    def release_eyes(self) -> None: ...
    def save(self, n: int) -> npt.NDArray[np.uint8]: ...
    def load(self, state: npt.NDArray[np.uint8], n: int) -> None: ...
    def cancel(self, on: bool = True) -> None: ...
    def close(self) -> None: ...


class Features:
    """Features by picture content and cut; forgets the least recently used beyond `limit` bytes."""

    def __init__(self, limit: int = FEATURE_BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[tuple[bytes, Cut], F32] = OrderedDict()

    def get(self, picture: Picture, cut: Cut) -> F32 | None:
        key = (picture.digest, cut)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, picture: Picture, cut: Cut, features: F32) -> None:
        self._kept[picture.digest, cut] = features
        self.bytes += features.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes


@dataclass(slots=True)
class Prefill:
    """What one prompt cost, in seconds and tokens."""

    reused: int = 0
    preprocess_s: float = 0.0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    images: tuple[ImageUse, ...] = ()


class Sequence:
    """seen: from a picture and its cut to what the engine encodes, call by call. short: whether memory is, so that
    the eyes' weights leave it once a prompt's pictures are encoded. overlap: pixels are prepared meanwhile."""

    def __init__(self, engine: EngineLike, seen: Callable[[Picture, Cut], Iterator[Seen]]) -> None:
        self.engine, self.features, self.timeline = engine, Features(), Timeline()
        self._seen, self.overlap = seen, True
        self.short: Callable[[], bool] = lambda: False
        self.keys: list[int] = []  # one for each token in the engine's cache

    @property
    def past(self) -> int:
        return len(self.keys)

    def prefill(self, prompt: Prompt, check: Callable[[], None]) -> Prefill:
        """Makes the sequence hold `prompt`; the engine then tells the logits after its last token.

        Goes on from the longest common prefix, which may end inside a picture. check: called before each long step,
        may raise. Whatever is raised, the keys stay true to the engine's cache.
        """
        cost = Prefill(reused=self._common(prompt))
        needed = [p for p in prompt.pictures if p.start + p.rows > cost.reused]
        rows, encoded = [], set()
        for placed in needed:
            features = self.features.get(placed.picture, placed.cut)
            if features is None:
                check()
                features = self._encode(placed.picture, placed.cut, cost)
                encoded.add(placed.start)
            rows.append(features[max(0, cost.reused - placed.start) :])
        cost.images = tuple(_use(p, p.start in encoded) for p in prompt.pictures)
        if encoded and self.short():
            self.engine.release_eyes()
        check()
        started = time.perf_counter()
        self.engine.truncate(cost.reused)
        keys = prompt.keys.tolist()
        try:
            with self.timeline.span("prefill", tokens=len(keys) - cost.reused):
                self.engine.feed(
                    prompt.ids[cost.reused :],
                    (rows[0] if len(rows) == 1 else np.concatenate(rows)) if rows else None,
                    None if prompt.positions is None else prompt.positions[cost.reused :],
                )
        finally:  # a cancelled prefill keeps whole chunks
            self.keys = keys[: self.engine.past]
        cost.prefill_s = time.perf_counter() - started
        return cost

    def look(self, picture: Picture, cut: Cut) -> None:
        """Encodes a picture before anybody asks about it."""
        if self.features.get(picture, cut) is None:
            self._encode(picture, cut, Prefill())
            if self.short():
                self.engine.release_eyes()

    def forget(self) -> None:
        """Begins anew."""
        self.engine.truncate(0)
        self.keys = []

    def decode(self, token: int) -> None:
        """Appends a token; the engine then tells the logits after it."""
        with self.timeline.span("decode"):
            self.engine.feed([token])
        self.keys.append(token)

    def _common(self, prompt: Prompt) -> int:
        """Tokens of `prompt` that stand in the cache; one at least is left to prefill, for its logits."""
        count = min(len(self.keys), len(prompt.keys) - 1)
        differ = np.flatnonzero(np.array(self.keys[:count], np.int64) != prompt.keys[:count])
        return int(differ[0]) if len(differ) else count

    def _encode(self, picture: Picture, cut: Cut, cost: Prefill) -> F32:
        parts = []
        started = time.perf_counter()
        made = self._seen(picture, cut)
        for seen in _ahead(made, self.timeline) if self.overlap else made:
            ready = time.perf_counter()
            with self.timeline.span("encode", tiles=len(seen.pixels)):
                rows = self.engine.encode(seen.pixels, seen.places, seen.windows, seen.frames)
            parts.append(rows if seen.order is None else rows[seen.order])
            cost.preprocess_s += ready - started
            started = time.perf_counter()
            cost.encode_s += started - ready
        features = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self.features.put(picture, cut, features)
        return features


def _ahead(made: Iterator[Seen], timeline: Timeline) -> Iterator[Seen]:
    """The same items, each made while the one before it is used."""
    from concurrent.futures import ThreadPoolExecutor

    def following() -> Seen | None:
        with timeline.span("prepare"):
            return next(made, None)

    with ThreadPoolExecutor(1, "pixels") as thread:
        later = thread.submit(following)
        while (item := later.result()) is not None:
            later = thread.submit(following)
            yield item


def _use(placed: Placed, encoded: bool) -> ImageUse:
    p, cut = placed.picture, placed.cut
    return ImageUse(p.name, p.width, p.height, cut.resized, cut.tiles, placed.rows, encoded, p.time)
