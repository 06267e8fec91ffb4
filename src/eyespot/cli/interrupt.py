"""Ctrl-C stops an answer, or a line being typed, and the program goes on. Knows signals, no model.

Python runs its own signal handlers only between bytecodes, and a long prefill is one call. So the signal's byte in a
pipe wakes a thread, which can cancel the engine while the main thread is still inside it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible(cancel: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGINT calls `cancel` on another thread and raises nothing. Main thread only."""
    handler = signal.signal(signal.SIGINT, lambda *_: None)  # any Python handler makes C write the byte
    ours, signals = os.pipe()
    os.set_blocking(signals, False)  # as set_wakeup_fd demands

    def watch() -> None:
        while byte := os.read(ours, 1):
            if byte[0] == signal.SIGINT:
                cancel()

    watcher = threading.Thread(target=watch, daemon=True)
    wakeup = signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(signals)  # ends the watcher
        watcher.join()
        os.close(ours)
        signal.signal(signal.SIGINT, handler)  # at last, or one more Ctrl-C could leave the rest undone


@contextmanager
def interrupted_only_in(function: Callable[..., object]) -> Iterator[None]:
    """Within the block, SIGINT raises KeyboardInterrupt while `function` is on the stack. Main thread only.

    Python's own handler raises anywhere, also in the clause that handles the interrupt before: a second Ctrl-C soon
    after the first would end the program.
    """
    code = function.__code__

    def handle(number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None and at.f_code is not code:
            at = at.f_back
        if at is not None:
            # Not `raise`: input() runs handlers again with the first one's exception still set, and then a call that
            # returns, of the exception's class too, is a SystemError.
            signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
