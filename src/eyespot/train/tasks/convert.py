"""The converters by name: each turns a source into records, one at a time; what they take stands in TASKS.

Knows which task reads what; writes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from eyespot.errors import UsageError
from eyespot.train.data import video
from eyespot.train.data.record import BadRecord, Record, checked
from eyespot.train.data.sets import Dataset, Skipped, once, open_set, records
from eyespot.train.tasks import annotation, classification, grounding, mixing, multi_view, region
from eyespot.train.tasks.annotation import Annotated, Annotations

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What a conversion is asked for. skipped: counts bad records; None: the first one ends the conversion."""

    source: str
    format: str | None = None
    root: Path | None = None
    seed: int = 0
    choices: int = 0
    letters: bool = False
    drawn: bool = False
    most_frames: int = video.FRAMES
    general: str | None = None
    ratio: str | None = None
    skipped: Skipped | None = None


def convert(task: str, request: Request) -> Iterator[Record]:
    """The records of a task, sound ones only. UsageError for a task that TASKS lacks."""
    if task not in TASKS:
        raise UsageError(f"no conversion '{task}'", expected=", ".join(TASKS))
    return TASKS[task](request)


def _internvl(request: Request) -> Iterator[Record]:
    data = _open(request)
    return _sound(once(data), lambda at: [at[0][at[1]]], request.skipped)


def _frames(request: Request) -> Iterator[Record]:
    if request.most_frames < 1:
        raise UsageError("no frames", found=request.most_frames, expected="1 or more")
    data = _open(request)
    return _sound(once(data), lambda at: [video.expand(checked(at[0][at[1]]), request.most_frames)], request.skipped)


def _mix(request: Request) -> Iterator[Record]:
    if request.general is None or request.ratio is None:
        raise UsageError("mix takes --general and --ratio")
    mixed = mixing.mix(open_set(request.general), _open(request), mixing.ratio(request.ratio), request.seed)
    return records(mixed, range(len(mixed)), request.skipped)


def _multiple_choice(request: Request) -> Iterator[Record]:
    found = Annotations(request.source, request.root)
    labels = sorted({str(label) for i in range(len(found)) if (label := _label(found, i)) is not None})

    def ask(i: int) -> list[Record]:
        known = annotation.labelled(*found[i])
        rng = random.Random(f"{request.seed} {i}")  # its own: a bad row must not shift the draws of the others
        return [classification.multiple_choice(known, labels, rng, request.choices, request.letters)]

    return _sound(range(len(found)), ask, request.skipped)


def _label(found: Annotations, index: int) -> object:
    try:
        label = found[index][0].get("label")
    except BadRecord:
        return None  # told when its turn comes
    return label if isinstance(label, str) and label.strip() else None


def _grounding(request: Request) -> Iterator[Record]:
    return _annotated(request, annotation.grounded, grounding.detect)


def _region(request: Request) -> Iterator[Record]:
    return _annotated(request, annotation.grounded, region.drawn if request.drawn else region.written)


def _multi_view(request: Request) -> Iterator[Record]:
    return _annotated(request, multi_view.annotated, grounding.detect)


def _annotated(
    request: Request, read: Callable[..., Annotated], ask: Callable[[Annotated], Iterable[Record]]
) -> Iterator[Record]:
    found = Annotations(request.source, request.root)
    return _sound(range(len(found)), lambda i: ask(read(*found[i])), request.skipped)


def _open(request: Request) -> Dataset:
    return open_set(request.source, request.format, request.root)


def _sound(items: Iterable[T], make: Callable[[T], Iterable[Record]], skipped: Skipped | None) -> Iterator[Record]:
    for item in items:
        try:
            for record in make(item):
                yield checked(record)
        except BadRecord as bad:
            if skipped is None:
                raise
            skipped.add(bad)


TASKS: dict[str, Callable[[Request], Iterator[Record]]] = {
    "internvl": _internvl,
    "multiple-choice": _multiple_choice,
    "grounding": _grounding,
    "region": _region,
    "multi-view": _multi_view,
    "frames": _frames,
    "mix": _mix,
}
