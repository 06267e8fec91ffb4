"""The one record every format becomes: turns of text, the pictures they speak of, and where it all came from.

Knows no format and no model; opens no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eyespot import boxes, limits
from eyespot.boxes import Size
from eyespot.errors import EyespotError

if TYPE_CHECKING:
    from eyespot.images import Source

IMAGE, VIDEO = "<image>", "<video>"  # stand in a user's text where the next picture or clip belongs
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands: a file, and its line (from 1) or its key in a shard."""

    file: str
    line: int | str = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Turn:
    """role: one of ROLES. text: a user's may hold IMAGE and VIDEO."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Video:
    """A directory of frames, an animation, or a film. clip: the part that is meant, in seconds; None: all."""

    path: Path
    clip: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """What a picture shows in a box: a thing or a letter, and its colour, "" where people would not agree on one.

    box: x1, y1, x2, y2 in pixels of the picture.
    """

    what: str
    colour: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Record:
    """One training sample: [system] then user and assistant by turns; the loss is on what the assistant says.

    images: in the order of their IMAGE in the text, as `eyespot.images.load` takes them: paths, bytes, PIL images.
    sizes: width and height of each, in pixels, where the row states them. Boxes in the text are in thousandths.
    max_dynamic_patch: most tiles of all its pictures together; None: the recipe's. data_augment: the pixels may be
    recompressed as JPEG. unused: keys of the row that no reader knows. asked: those that only `eyespot
    eval` knows, kept for the row that is written. marks: all that each picture shows, where that
    is known: the rest is background.
    """

    turns: tuple[Turn, ...]
    images: tuple[Source, ...] = ()
    sizes: tuple[Size, ...] | None = None
    videos: tuple[Video, ...] = ()
    id: str = ""
    place: Place = Place("memory")
    max_dynamic_patch: int | None = None
    data_augment: bool = False
    unused: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[tuple[Mark, ...], ...] | None = None


class BadRecord(EyespotError):
    """A record that cannot be trained on: the one line names file, line and all that is wrong with it."""

    def __init__(self, place: Place, faults: Sequence[str]) -> None:
        self.place, self.faults = place, tuple(faults)
        super().__init__(f"{place}: {', '.join(self.faults)}")


def dialogue(question: str, answer: str) -> tuple[Turn, Turn]:
    """One question and its answer."""
    return Turn("user", question), Turn("assistant", answer)


def marked(turns: Sequence[Turn], mark: str, count: int) -> tuple[Turn, ...]:
    """The turns with `count` marks, a line each, before the first question, where no turn has one."""
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None or any(mark in turn.text for turn in turns):
        return tuple(turns)
    return (*turns[:first], Turn("user", f"{mark}\n" * count + turns[first].text), *turns[first + 1 :])


def faults(record: Record) -> list[str]:
    """All that is wrong with the record itself, its files unopened: roles, placeholders, stated sizes, boxes."""
    found: list[str] = []
    roles = [turn.role for turn in record.turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or len(talk) % 2 or talk != ["user", "assistant"] * (len(talk) // 2):
        found.append(f"turns are {' '.join(roles[:8]) or 'none'}, expected [system] user assistant user assistant ...")
    for turn in record.turns:
        if turn.role != "user" and (IMAGE in turn.text or VIDEO in turn.text):
            found.append(f"{IMAGE} or {VIDEO} in a turn of the {turn.role}, expected in the user's only")
        if turn.role == "assistant" and not turn.text.strip():
            found.append("an empty answer")
        found += boxes.find(turn.text)[1]
    for mark, given in ((IMAGE, record.images), (VIDEO, record.videos)):
        written = sum(turn.text.count(mark) for turn in record.turns if turn.role == "user")
        if written != len(given):
            found.append(f"{written} {mark} for {len(given)} {mark[1:-1]}s")
        if len(given) > limits.IMAGES:
            found.append(f"{len(given)} {mark[1:-1]}s, expected at most {limits.IMAGES}")
    if record.sizes is not None and len(record.sizes) != len(record.images):
        found.append(f"{len(record.sizes)} widths and heights for {len(record.images)} images")
    return found


def checked(record: Record) -> Record:
    """`record` itself; BadRecord when it has faults."""
    if found := faults(record):
        raise BadRecord(record.place, found)
    return record
