"""A progress bar on stderr when somebody is looking, nothing elsewhere; rich honours NO_COLOR."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Told(Protocol):
    def __call__(self, done: int, total: int | None = None, /) -> None: ...


@contextmanager
def progress(label: str, total: int | None = None, quiet: bool = False) -> Iterator[Told]:
    """Yields what is to be called with what is done, of what in all. total: that, where it counts things and is known
    before; None: a share is shown instead."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    counts = TaskProgressColumn() if total is None else MofNCompleteColumn()
    columns = (TextColumn(label), BarColumn(), counts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, of = bar.add_task(label, total=total), total
        yield lambda done, total=None: bar.update(task, completed=done, total=of if total is None else total)
