"""Boxes as text and back: `<box>[[x1,y1,x2,y2], ...]</box>`, whole thousandths of the picture's width and height.

The convention of InternVL and Mini-InternVL. Knows numbers and text, no picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eyespot.errors import EyespotError, one_line

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 from the left upper corner, x1 <= x2, y1 <= y2
Size = tuple[int, int]  # width, height in pixels

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


def to_pixels(box: Sequence[float], size: Size) -> Box:
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


def labelled(text: str, size: Size) -> list[tuple[str, Box]]:
    """(what it is about, box in pixels of a picture of `size`) for every well-formed box; "" without a <ref>."""
    found: list[tuple[str, Box]] = []
    label, at = "", 0
    for match in BOX.finditer(text):
        refs = REF.findall(text[at : match.start()])
        label, at = refs[-1] if refs else label, match.end()
        found += [(label, to_pixels(box, size)) for box in find(match[0])[0]]
    return found


def find(text: str) -> tuple[list[tuple[int, int, int, int]], list[str]]:
    """Boxes written in `text`, in thousandths and order, and the faults of those that are malformed or lie outside."""
    found: list[tuple[int, int, int, int]] = []
    faults: list[str] = []
    for match in BOX.finditer(text):
        if not match[2] or not LIST.fullmatch(match[1].strip()):
            faults.append(f"malformed box {one_line(match[0], 80)!r}, expected <box>[[x1,y1,x2,y2]]</box>")
            continue
        numbers = [int(n) for n in FOUR.findall(match[1])]
        for start in range(0, len(numbers), 4):
            x1, y1, x2, y2 = numbers[start : start + 4]
            if not (0 <= x1 <= x2 <= SCALE and 0 <= y1 <= y2 <= SCALE):
                faults.append(f"box [{x1},{y1},{x2},{y2}] leaves the picture, expected 0 <= x1 <= x2 <= {SCALE}")
            else:
                found.append((x1, y1, x2, y2))
    return found, faults
