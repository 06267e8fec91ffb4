"""What rows of every format have in common: texts, paths, turns and sizes, taken out of raw JSON and checked.

Knows no format. A fault is a BadRecord with the row's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from eyespot import limits
from eyespot.boxes import Size
from eyespot.errors import one_line
from eyespot.train.data.record import BadRecord, Place, Turn

Row = Mapping[str, Any]


def bad(place: Place, what: str, found: object = ..., expected: str | None = None) -> BadRecord:
    """A BadRecord of one fault: `what` is `found`, expected `expected`; what is left out is not said."""
    what += "" if found is ... else f" is {one_line(repr(found), 80)}"
    return BadRecord(place, [what if expected is None else f"{what}, expected {expected}"])


def identity(row: Row) -> str:
    """`id`, which formats give as a text or a number; "" without one."""
    return str(row["id"]) if isinstance(row.get("id"), str | int) else ""


def unused(row: Row, known: Set[str]) -> tuple[str, ...]:
    """Keys of the row that its reader does not know."""
    return tuple(key for key in row if key not in known)


def turns(raw: object, place: Place, role: str, text: str, roles: Mapping[str, str]) -> list[Turn]:
    """The turns of a conversation, each with the keys `role` and `text`. roles: its words for those of record.ROLES."""
    if not isinstance(raw, list) or not raw:
        raise bad(place, "the conversation", raw, "a list of turns")
    found = []
    for number, turn in enumerate(raw, 1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get(text), str):
            raise bad(place, f"turn {number}", turn, f'{{"{role}": ..., "{text}": text}}')
        speaker = turn.get(role)
        if not isinstance(speaker, str) or speaker not in roles:
            raise bad(place, f"turn {number}: {role}", speaker, ", ".join(roles))
        found.append(Turn(roles[speaker], turn[text]))
    return found


def paths(raw: object, place: Place, root: Path, key: str) -> tuple[Path, ...]:
    """A path, a list of them, or nothing; relative ones begin at `root`."""
    given: list[Any] = [] if raw is None else raw if isinstance(raw, list) else [raw]
    if len(given) > limits.IMAGES:
        raise bad(place, f"{len(given)} entries of {key}", ..., f"at most {limits.IMAGES}")
    for path in given:
        if not isinstance(path, str) or not path or "\0" in path or len(path) > 4096:
            raise bad(place, key, path, "a path or a list of paths")
        if path.startswith(("http://", "https://", "data:")):
            raise bad(place, key, path, "a file: nothing is downloaded here")
    return tuple(root / path for path in given)


def sizes(widths: object, heights: object, place: Place) -> tuple[Size, ...] | None:
    """Widths and heights, numbers or lists of them, as one tuple; None when the row states none."""
    if widths is None and heights is None:
        return None
    across = widths if isinstance(widths, list) else [widths]
    down = heights if isinstance(heights, list) else [heights]
    if len(across) != len(down) or not all(type(n) is int and 0 < n <= limits.DIM for n in (*across, *down)):
        raise bad(place, "width and height", (widths, heights), "as many whole numbers above 0 of each")
    return tuple(zip(across, down, strict=True))
