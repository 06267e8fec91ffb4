"""Boxes as text and back: InternVL's `<ref>name</ref><box>[[x1,y1,x2,y2], ...]</box>` in thousandths of the picture,
Qwen's JSON with bbox_2d and point_2d in pixels of what the model saw, and bare [x1,y1,x2,y2].

Knows numbers and text, no picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eyespot.errors import EyespotError, one_line

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2 from the left upper corner, x1 <= x2, y1 <= y2
Size = tuple[int, int]  # width, height in pixels
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """What an answer points at, in pixels of the picture that the user gave, set upright: (x1, y1) to (x2, y2) from its
    left upper corner; a point where the two are one. label: what it is said to be. picture: which one, from 0. view: of
    stitched cameras the one whose picture is meant."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    picture: int = 0
    view: str = ""

    @property
    def corners(self) -> Corners:
        return self.x1, self.y1, self.x2, self.y2


SCALE = 1000
REF = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)
BOX = re.compile(r"<box>(.*?)(</box>|$)", re.DOTALL)
ONE = r"\[\s*-?\d{1,9}(?:\s*,\s*-?\d{1,9}){3}\s*\]"
LIST = re.compile(rf"\[\s*{ONE}(?:\s*,\s*{ONE})*\s*\]")
FOUR = re.compile(r"-?\d+")


def to_thousandths(box: Sequence[float], size: Size) -> tuple[int, int, int, int]:
    """A box in pixels of a picture of `size`, as thousandths. EyespotError when it is none or leaves the picture."""
    check(box, size)
    (width, height), (x1, y1, x2, y2) = size, box
    return round(x1 / width * SCALE), round(y1 / height * SCALE), round(x2 / width * SCALE), round(y2 / height * SCALE)


def to_pixels(box: Sequence[float], size: Size) -> Corners:
    """A box in thousandths, as pixels of a picture of `size`."""
    (width, height), (x1, y1, x2, y2) = size, box
    return x1 * width / SCALE, y1 * height / SCALE, x2 * width / SCALE, y2 * height / SCALE


def check(box: Sequence[float], size: Size) -> None:
    """EyespotError unless `box` has an area and lies inside a picture of `size`."""
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):  # NaN fails too
        raise EyespotError("a box has no area", found=list(box), expected="x1 < x2 and y1 < y2")
    if x1 < 0 or y1 < 0 or x2 > size[0] or y2 > size[1]:
        raise EyespotError("a box leaves the picture", found=list(box), expected=f"within {size[0]}x{size[1]} pixels")


def write(boxes: Sequence[Sequence[int]]) -> str:
    """`<box>[[x1,y1,x2,y2], ...]</box>` of boxes in thousandths."""
    return f"<box>[{', '.join('[' + ','.join(map(str, box)) + ']' for box in boxes)}]</box>"


def ref(name: str) -> str:
    """`<ref>name</ref>`, what a box or a question is about."""
    return f"<ref>{name}</ref>"


def find(text: str) -> tuple[list[tuple[int, int, int, int]], list[str]]:
    """Boxes written in `text`, in thousandths and order, and the faults of those that are malformed or lie outside."""
    found: list[tuple[int, int, int, int]] = []
    faults: list[str] = []
    for match in BOX.finditer(text):
        boxes = _listed(match[1])
        if boxes is None or not match[2]:
            faults.append(f"malformed box {one_line(match[0], 80)!r}, expected <box>[[x1,y1,x2,y2]]</box>")
            continue
        for x1, y1, x2, y2 in boxes:
            if not (0 <= x1 <= x2 <= SCALE and 0 <= y1 <= y2 <= SCALE):
                faults.append(f"box [{x1},{y1},{x2},{y2}] leaves the picture, expected 0 <= x1 <= x2 <= {SCALE}")
            else:
                found.append((x1, y1, x2, y2))
    return found, faults


def _listed(inside: str) -> list[tuple[int, int, int, int]] | None:
    """The boxes of what stands between <box> and </box>; None where that is no list of them."""
    if not LIST.fullmatch(inside.strip()):
        return None
    numbers = map(int, FOUR.findall(inside))
    return list(zip(numbers, numbers, numbers, numbers, strict=True))


# What models say

FENCE = re.compile(r"```(?:json)?\s*(.*?)(?:```|$)", re.DOTALL)
BEGIN = re.compile(r"[\[{]")
MOST_BROKEN = 200  # brackets that begin no JSON, each of which may cost a look at all the rest
BARE = re.compile(r"\[\s*(-?\d{1,9}(?:\.\d{1,9})?)" + 3 * r"\s*,\s*(-?\d{1,9}(?:\.\d{1,9})?)" + r"\s*\]")
KEYS = {"bbox_2d": 4, "bbox": 4, "point_2d": 2}
MOST_TEXT = 1 << 16  # characters of an answer that are looked through


def read(
    text: str, size: Size, to_picture: Callable[[float, float], Point] | None = None, picture: int = 0
) -> tuple[list[Box], list[str]]:
    """Boxes and points that an answer about a picture of `size` names, and what is wrong with those left out.

    to_picture: from the coordinates the model uses in JSON and bare boxes to pixels of the picture; None: they are
    thousandths of it, as in <box>. A box that reaches beyond the picture is cut at its edges; one that lies outside is
    left out and told.
    """
    text = text[:MOST_TEXT]
    found: list[Box] = []
    faults: list[str] = []

    def per_mille(x: float, y: float) -> Point:
        return x * size[0] / SCALE, y * size[1] / SCALE

    def add(numbers: Sequence[float], label: str, place: Callable[[float, float], Point]) -> None:
        (x1, y1), (x2, y2) = place(*numbers[:2]), place(*numbers[-2:])
        shown = "[" + ",".join(f"{n:g}" for n in numbers) + "]"
        if x1 > x2 or y1 > y2:
            faults.append(f"box {shown} has its corners crossed")
        elif x2 < 0 or y2 < 0 or x1 > size[0] or y1 > size[1]:
            faults.append(f"box {shown} lies outside the picture")
        else:
            width, height = map(float, size)
            corners = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
            found.append(Box(*corners, label, picture))

    if "<box>" in text:
        label, at = "", 0
        for match in BOX.finditer(text):
            refs = REF.findall(text[at : match.start()])
            label, at = refs[-1].strip() if refs else label, match.end()
            boxes = _listed(match[1])
            if boxes is None:
                faults.append(f"malformed box {one_line(match[0], 80)!r}")
            for box in boxes or ():
                add(box, label, per_mille)
        return found, faults
    place = to_picture or per_mille
    if any(f'"{key}"' in text for key in KEYS):
        for entry in _objects(text):
            key = next(key for key in KEYS if key in entry)
            numbers = entry[key]
            if not (isinstance(numbers, list) and len(numbers) == KEYS[key] and all(map(_finite, numbers))):
                faults.append(f"{key} is {one_line(json.dumps(numbers), 60)}, expected {KEYS[key]} numbers")
                continue
            name = entry.get("label")
            add(numbers, name if isinstance(name, str) else "", place)
        if not found and not faults:
            faults.append("an answer that speaks of boxes has none that can be read: its JSON is cut off or malformed")
        return found, faults
    for match in BARE.finditer(text):
        add([float(n) for n in match.groups()], "", place)
    return found, faults


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer that have one of KEYS, at any depth: of its fences, or of all of it."""
    for part in FENCE.findall(text) or [text]:
        for value in _values(part):
            todo = [value]
            while todo:
                at = todo.pop()
                if isinstance(at, dict) and KEYS.keys() & at.keys():
                    yield at
                elif isinstance(at, dict | list):
                    todo += reversed(list(at.values()) if isinstance(at, dict) else at)


def _values(text: str) -> Iterator[Any]:
    """The JSON lists and objects in a text; of one that breaks off, those in it that are whole."""
    decoder, at, broken = json.JSONDecoder(), 0, 0
    while (begin := BEGIN.search(text, at)) is not None and broken < MOST_BROKEN:
        try:
            value, at = decoder.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            at, broken = begin.end(), broken + 1
        else:
            yield value
