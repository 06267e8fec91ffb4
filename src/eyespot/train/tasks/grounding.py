"""Grounding: `Detect <ref>X</ref>` is answered `<ref>X</ref><box>[[x1,y1,x2,y2], ...]</box>`, in thousandths.

Mini-InternVL's form. Knows boxes, opens no picture.
"""

from __future__ import annotations

from collections.abc import Iterator

from eyespot import boxes
from eyespot.train.data.record import IMAGE, Record, dialogue
from eyespot.train.tasks.annotation import Annotated


def detect(annotated: Annotated) -> Iterator[Record]:
    """A record for each name: all boxes that bear it are one answer, from left to right."""
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for thing in annotated.things:
        found.setdefault(thing.name, []).append(thing.box)
    for name, places in found.items():
        question, answer = f"{IMAGE}\nDetect {boxes.ref(name)}", boxes.ref(name) + boxes.write(sorted(places))
        yield Record(dialogue(question, answer), (annotated.picture,), (annotated.size,), place=annotated.place)
