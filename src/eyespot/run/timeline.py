"""What ran when, on which thread, as a Chrome trace (chrome://tracing, Perfetto). Knows names and clocks only."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eyespot.errors import UsageError

EVENTS = 100_000  # the last ones are kept


class Timeline:
    """Collects spans from any thread."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)

    @contextmanager
    def span(self, name: str, **facts: Any) -> Iterator[None]:
        """What runs inside is one span; facts are shown with it."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.events.append(
                {
                    "name": name, "ph": "X", "pid": 1, "tid": threading.current_thread().name, "args": facts,
                    "ts": 1e6 * (begun - self.started), "dur": 1e6 * (time.perf_counter() - begun),
                }
            )  # fmt: skip

    def write(self, path: str | Path) -> None:
        """The trace. UsageError when it cannot be written."""
        try:
            Path(path).write_text(
                json.dumps({"traceEvents": list(self.events), "displayTimeUnit": "ms"}), encoding="utf-8"
            )
        except OSError as error:
            raise UsageError(f"{path}: the trace cannot be written ({error.strerror})") from None
