"""eyespot through its Engine. Usage: run_eyespot.py BUNDLE THREADS [ISA]. Runs in the repository's environment."""

from __future__ import annotations

import sys
import time

import numpy as np

from eyespot.run.engine import Engine
from worker import pixels, serve, timed, tokens


class Contestant:
    def __init__(self, path: str, threads: int, isa: str = "") -> None:
        self.opened = path, threads, 0, isa
        self.shallow = Engine(*self.opened)
        self.deep: Engine | None = None

    def first(self, n: int) -> int:
        self.shallow.truncate(0)
        return int(self.shallow.prefill(tokens(n))[-1].argmax())

    def prefill(self, n: int) -> float:
        self.shallow.truncate(0)
        return timed(self.shallow.prefill, tokens(n))

    def decode(self, n: int, depth: int = 0) -> float:
        engine = self.shallow
        if depth:
            engine = self.deep = self.deep or Engine(*self.opened)
            if engine.past < depth:
                engine.truncate(0)
                engine.prefill(tokens(depth), want=0)
        engine.truncate(depth)
        return timed(lambda: [engine.decode(t) for t in tokens(n, depth)])

    def logits(self, ids: list[int], out: str) -> None:
        self.shallow.truncate(0)
        np.save(out, self.shallow.prefill(ids, want=len(ids)))

    def encode(self) -> float:
        return timed(self.shallow.encode, pixels())

    def features(self, out: str) -> None:
        np.save(out, self.shallow.encode(pixels()))

    def look(self, text: int) -> float:
        """Seconds from the pixels of one tile, with `text` tokens around it, to the logits of the first token."""
        picture, info = pixels(), self.shallow.info
        ids = tokens(text)
        ids[4:4] = [info["image_token_id"]] * info["tile_tokens"]
        self.shallow.truncate(0)
        start = time.perf_counter()
        self.shallow.prefill(ids, self.shallow.encode(picture))
        return time.perf_counter() - start

    def info(self) -> dict[str, object]:
        return self.shallow.info


if __name__ == "__main__":
    me = Contestant(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
    serve({n: getattr(me, n) for n in ("first", "prefill", "decode", "logits", "encode", "features", "look", "info")})
