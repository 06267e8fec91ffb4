"""Boxes: what models write, in the user's pixels; there and back through every rule, EXIF orientation and stitching."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eyespot import boxes, images, multi_view
from eyespot.boxes import Box
from eyespot.multi_view import STITCHED, VIEWS
from eyespot.resolution import Qwen
from test_resolution import RULES

TAGS = "<ref>a cat</ref><box>[[0,0,500,1000]]</box> and <ref>dogs</ref><box>[[1,2,3,4],[10,20,30,40]]</box>"
QWEN = [{"bbox_2d": [10, 20, 110, 220], "label": "cat"}, {"point_2d": [5, 6], "label": "eye"}]


def same(x: float, y: float) -> tuple[float, float]:
    return x, y


# What models write


def test_tags_are_thousandths() -> None:
    found, faults = boxes.read(TAGS, (200, 100))
    assert found == [
        Box(0, 0, 100, 100, "a cat"), Box(0.2, 0.2, 0.6, 0.4, "dogs"), Box(2, 2, 6, 4, "dogs"),
    ]  # fmt: skip
    assert faults == []
    assert boxes.read(TAGS, (200, 100), same)[0] == found  # whatever else the model uses
    assert boxes.read("<box>[[1,2,3,4]]</box>", (1000, 1000), picture=2)[0] == [Box(1, 2, 3, 4, "", 2)]
    assert boxes.read("no box, <ref>cat</ref>", (9, 9)) == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(QWEN),
        f"```json\n{json.dumps(QWEN, indent=1)}\n```",
        f"Here they are:\n```json\n{json.dumps(QWEN)}",
        json.dumps(QWEN)[:-1] + ', {"bbox_2d": [1, 2',  # cut off in the third
    ],
)
def test_json_is_pixels_of_what_the_model_saw(text: str) -> None:
    found, faults = boxes.read(text, (300, 300), lambda x, y: (2 * x, y / 2))
    assert found == [Box(20, 10, 220, 110, "cat"), Box(10, 3, 10, 3, "eye")]
    assert faults == []


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"objects": QWEN, "count": 2}),
        json.dumps({"answer": "two", "found": {"first": QWEN[0], "then": [QWEN[1]]}}),
        json.dumps([[QWEN[0]], [[QWEN[1]]]]),
        f"```json\n{json.dumps(QWEN[:1])}\n```\nand\n```json\n{json.dumps(QWEN[1:])}\n```",
        f"first {json.dumps(QWEN[0])} then {json.dumps(QWEN[1])}, see [above] or {{below}}.",
    ],
)
def test_json_at_any_depth(text: str) -> None:
    found, faults = boxes.read(text, (300, 300), same)
    assert found == [Box(10, 20, 110, 220, "cat"), Box(5, 6, 5, 6, "eye")]
    assert faults == []


def test_labels_may_hold_anything() -> None:
    odd = {"bbox_2d": [1, 2, 3, 4], "label": 'a {} "b" [c]'}
    assert boxes.read(f"Here: {json.dumps(odd)} and so on", (9, 9), same)[0] == [Box(1, 2, 3, 4, odd["label"])]


def test_one_object_and_no_label() -> None:
    assert boxes.read('It is {"bbox_2d": [1, 2, 3, 4.5]}', (9, 9), same)[0] == [Box(1, 2, 3, 4.5)]


def test_bare_boxes() -> None:
    assert boxes.read("at [10, 20, 30.5, 40] and [1,2,3]", (1000, 500))[0] == [Box(10, 10, 30.5, 20)]
    assert boxes.read("[10,20,30,40]", (100, 100), same)[0] == [Box(10, 20, 30, 40)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<box>[[0,0,1]]</box>", "malformed box"),
        ("<box>[[2000,0,3000,10]]</box>", r"box \[2000,0,3000,10\] lies outside the picture"),
        ("<box>[[500,0,400,10]]</box>", "corners crossed"),
        ('[{"bbox_2d": [1, 2, "x", 4]}]', "expected 4 numbers"),
        ('[{"bbox_2d": [1, 2, 3]}]', "expected 4 numbers"),
        ('[{"bbox_2d": [1e400, 2, 3, 4]}]', "expected 4 numbers"),
        ('[{"point_2d": [-5, -5]}]', "lies outside"),
        ('[{"bbox_2d": [1, 2', "none that can be read"),
    ],
)
def test_what_is_no_box_is_told(text: str, fault: str) -> None:
    import re

    found, faults = boxes.read(text, (100, 100), same)
    assert found == []
    assert len(faults) == 1
    assert re.search(fault, faults[0])


def test_a_box_is_cut_at_the_edges() -> None:
    assert boxes.read("<box>[[-50,900,500,1200]]</box>", (100, 100))[0] == [Box(0, 90, 50, 100)]


@pytest.mark.parametrize(
    "text",
    [
        "<box>" * 20_000,
        "[" * 100_000,
        '{"bbox_2d": ' * 20_000,
        "[1," * 50_000,
        '"bbox_2d"' + "[" * 70_000,
        '{"bbox_2d": ' + "[" * 2000 + "]" * 2000 + "}",
    ],
)
def test_hostile_answers_take_no_time(text: str) -> None:
    found, _ = boxes.read(text, (9, 9))
    assert found == []


# There and back


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=200, deadline=None)
@given(st.integers(4, 5000), st.integers(4, 5000), *(st.floats(0, 1) for _ in range(4)))
def test_there_and_back_within_a_pixel(
    name: str, width: int, height: int, a: float, b: float, c: float, d: float
) -> None:
    """A box of the upright picture, as the model would say it of what the rule makes of it, read back."""
    size, (x1, x2), (y1, y2) = (width, height), sorted((a * width, b * width)), sorted((c * height, d * height))
    rule = RULES[name]
    if max(size) > 200 * min(size):
        return
    cut = rule.cut(*size)
    if isinstance(rule, Qwen):
        corners = [round(v) for v in (*cut.to_canvas(x1, y1, size), *cut.to_canvas(x2, y2, size))]
        text = json.dumps([{"bbox_2d": corners, "label": "it"}])
        found, faults = boxes.read(text, size, lambda x, y: cut.to_picture(x, y, size))
        unit = [size[i] / cut.resized[i] for i in (0, 1)]  # what a whole number of the model's is worth
    else:
        corners = [round(1000 * v) for v in (x1 / width, y1 / height, x2 / width, y2 / height)]
        found, faults = boxes.read(f"<ref>it</ref><box>[{corners}]</box>", size)
        unit = [side / 1000 for side in size]
    assert (faults, len(found)) == ([], 1)
    for found_at, put in zip(found[0].corners, (x1, y1, x2, y2), strict=True):
        assert abs(found_at - put) <= max(1, max(unit) / 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_turned_pictures_in_the_files_own_pixels(orientation: int) -> None:
    """A red block is found in the stored pixels where the box of the upright picture says, mapped back."""
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[5:15, 30:50] = (255, 0, 0)
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "PNG", exif=exif)
    picture = images.load(buffer.getvalue())
    assert picture.orientation == orientation
    upright = np.asarray(picture.image)[..., 0] > 0
    rows, columns = np.flatnonzero(upright.any(1)), np.flatnonzero(upright.any(0))
    seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert images.to_stored(seen, picture) == (30, 5, 50, 15)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(VIEWS), st.integers(8, 2000), st.integers(8, 2000), *(st.floats(0.02, 0.98) for _ in range(4)))
def test_stitched_cameras_there_and_back(
    view: str, width: int, height: int, a: float, b: float, c: float, d: float
) -> None:
    (x1, x2), (y1, y2) = sorted((a * width, b * width)), sorted((c * height, d * height))
    if x2 - x1 < 1 or y2 - y1 < 1:
        return
    said = multi_view.to_stitched(view, (x1, y1, x2, y2), (width, height))
    camera, back = multi_view.off_canvas(boxes.to_pixels(said, STITCHED), dict.fromkeys(VIEWS, (width, height)))
    assert camera == view
    worth = max(3 * width, 2 * height) / 1000  # a thousandth of the stitched picture
    assert np.abs(np.subtract(back, (x1, y1, x2, y2))).max() <= max(1, worth / 2 + 1e-6)
