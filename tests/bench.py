"""`make bench`: speed of a bundle, with the bytes moved beside it. Usage: bench.py BUNDLE [THREADS]"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eyespot.bundle.read import open_bundle
from eyespot.run.engine import Engine


def memory_rate(megabytes: int = 512) -> float:
    """GB/s at which one numpy sum reads memory: a floor for the machine's rate, measured in the same run."""
    data = np.ones(megabytes << 17)
    times = [timed(data.sum) for _ in range(5)]
    return data.nbytes / min(times) / 1e9


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(folder: str, threads: int = 0) -> None:
    start = time.perf_counter()
    engine = Engine(Path(folder), threads=threads)
    load = time.perf_counter() - start
    info = engine.info
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, min(1000, info["vocab_size"]), 128).tolist()

    def prefill() -> None:
        engine.truncate(0)
        engine.prefill(tokens)

    def decode() -> None:
        engine.truncate(128)
        for token in tokens[:32]:
            engine.decode(token)

    prefill(), decode()  # warm-up
    pp = [128 / timed(prefill) for _ in range(5)]
    tg = [32 / timed(decode) for _ in range(5)]
    parts = open_bundle(Path(folder)).files  # a token reads every layer and the head, but one row of the embedding
    moved = sum(f.bytes for name, f in parts.items() if name.startswith(("layer_", "post.")))
    rate = statistics.median(tg) * moved / 1e9
    print(f"{folder}: {info['isa']}, {info['threads']} threads, KV {info['kv_type']}, loaded in {load * 1e3:.0f} ms")
    print(f"  pp128  {statistics.median(pp):8.1f} token/s  (sd {statistics.stdev(pp):.1f})")
    print(f"  tg32   {statistics.median(tg):8.1f} token/s  (sd {statistics.stdev(tg):.1f})")
    print(f"  decode moves {rate:.1f} GB/s of weights; one thread here reads memory at {memory_rate():.1f} GB/s")
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1], *(int(a) for a in sys.argv[2:]))
