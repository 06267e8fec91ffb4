"""ms-swift's rows: `{"messages": [{"role", "content"}], "images", "videos", "objects": {"ref", "bbox", "bbox_type"}}`.

`<ref-object>` and `<bbox>` in the text are filled from `objects`, in InternVL's words. Source: ms-swift 3's documents
on custom datasets. Knows one row; files of them are lines.py's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eyespot import boxes, images
from eyespot.boxes import Size
from eyespot.errors import EyespotError
from eyespot.train.data import fields
from eyespot.train.data.record import IMAGE, VIDEO, BadRecord, Place, Record, Turn, Video, marked

if TYPE_CHECKING:
    from eyespot.images import Source

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
KNOWN = {"id", "messages", "images", "videos", "objects"}
REFUSED = ("audios", "tools", "rejected_response", "rejected_messages")
REF, BBOX = "<ref-object>", "<bbox>"
# bbox_type -> what it calls the width and height of a picture; None: its pixels.
UNITS: dict[str, Size | None] = {"real": None, "norm1": (1, 1), "norm1000": (boxes.SCALE, boxes.SCALE)}


def read(row: Mapping[str, Any], place: Place, root: Path, given: tuple[Source, ...] | None = None) -> Record:
    """The record of one row; pictures are looked for from `root`, and opened for their size where boxes need it.
    given: the pictures, where the row's `images` shall not count.

    Pictures that no turn mentions come first in the first question, as in ms-swift. BadRecord names the fault.
    """
    for key in REFUSED:
        if row.get(key):
            raise fields.bad(place, f"{key} is not a key eyespot trains on")
    turns = fields.turns(row.get("messages"), place, "role", "content", ROLES)
    if any("loss" in message for message in row["messages"]):
        raise fields.bad(place, "'loss' of a message is not a key eyespot trains on")
    pictures = fields.paths(row.get("images"), place, root, "images") if given is None else given
    videos = fields.paths(row.get("videos"), place, root, "videos")
    if row.get("objects"):
        refs, found = objects(row["objects"], place, lambda at: images.size(pictures[at]), len(pictures))
        turns = fill(turns, refs, [placed.thousandths for placed in found], place)
    return Record(
        marked(marked(turns, VIDEO, len(videos)), IMAGE, len(pictures)),
        pictures,
        videos=tuple(map(Video, videos)),
        id=fields.identity(row),
        place=place,
        unused=fields.unused(row, KNOWN),
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """A box [x1, y1, x2, y2] in picture `owner` (from 0), in the unit that makes the picture `size` wide and high."""

    owner: int
    box: Sequence[float]
    size: Size

    @property
    def thousandths(self) -> tuple[int, int, int, int]:
        return boxes.to_thousandths(self.box, self.size)


def objects(raw: object, place: Place, size_of: Callable[[int], Size], pictures: int) -> tuple[list[str], list[Placed]]:
    """Names and boxes of an `objects`. size_of: of picture i of `pictures`, in pixels. BadRecord lists boxes without an
    area or outside their picture."""
    if not isinstance(raw, Mapping):
        raise fields.bad(place, "objects", raw, '{"ref": [...], "bbox": [...]}, as ms-swift 3 writes it')
    refs, found = raw.get("ref") or [], raw.get("bbox") or []
    kind, owners = raw.get("bbox_type") or "real", raw.get("image_id") or []
    if not isinstance(kind, str) or kind not in UNITS:
        raise fields.bad(place, "bbox_type", kind, ", ".join(UNITS))
    if not isinstance(refs, list) or not all(isinstance(ref, str) for ref in refs):
        raise fields.bad(place, "objects.ref", refs, "a list of texts")
    if not isinstance(found, list) or not isinstance(owners, list):
        raise fields.bad(place, "objects.bbox and image_id", raw, "lists")
    made, faults = [], []
    for number, box in enumerate(found):
        owner = owners[number] if number < len(owners) else 0
        if type(owner) is not int or not 0 <= owner < pictures:
            raise fields.bad(place, f"image_id {number + 1}", owner, f"a picture below {pictures}")
        if not isinstance(box, list) or len(box) != 4 or not all(type(n) in (int, float) for n in box):
            raise fields.bad(place, f"bbox {number + 1}", box, "[x1, y1, x2, y2]")
        try:
            size = UNITS[kind] or size_of(owner)
            boxes.check(box, size)
            made.append(Placed(owner, box, size))
        except EyespotError as error:
            faults.append(f"bbox {number + 1}: {error}")
    if faults:
        raise BadRecord(place, faults)
    return refs, made


def fill(
    turns: Sequence[Turn], refs: Sequence[str], found: Sequence[tuple[int, int, int, int]], place: Place
) -> list[Turn]:
    """The turns with `<ref>name</ref>` and `<box>[[...]]</box>` for each placeholder, in order."""
    names, places = iter(map(boxes.ref, refs)), iter(boxes.write([box]) for box in found)
    written = "".join(turn.text for turn in turns)
    for mark, given in ((REF, refs), (BBOX, found)):
        if written.count(mark) != len(given):
            raise fields.bad(place, f"{written.count(mark)} {mark} for {len(given)} of them in objects")
    marks = re.compile(f"{re.escape(REF)}|{re.escape(BBOX)}")
    return [
        Turn(turn.role, marks.sub(lambda mark: next(names if mark[0] == REF else places), turn.text)) for turn in turns
    ]
