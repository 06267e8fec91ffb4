"""The loop every contestant runs: one JSON object a line on stdin, one back on stdout. Standard library only.

Knows no peer: an adapter hands it the calls it can answer. Whatever a library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(calls: dict[str, Callable[..., Any]]) -> None:
    """Answers {"call": NAME, **arguments} by {"result": ...} or {"error": TEXT} until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": calls[request.pop("call")](**request)}
        except Exception as error:  # the driver prints it as the row's reason
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)
    os._exit(0)  # no library's teardown is worth waiting for, or crashing in


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that call(*arguments) takes."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def tokens(n: int, start: int = 0) -> list[int]:
    """n token ids spread over the first 40,000 rows of the vocabulary, which every model here has."""
    return [(7919 * (start + i) + 1234) % 40_000 for i in range(n)]


def pixels(size: int = 448) -> Any:
    """A picture's normalized pixels, float32 [1, 3, size, size]: soft shapes, as in a photograph, and some grain."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = np.kron(rng.standard_normal((1, 3, size // 32, size // 32)), np.ones((32, 32)))
    return (shapes + 0.2 * rng.standard_normal((1, 3, size, size))).astype(np.float32)
