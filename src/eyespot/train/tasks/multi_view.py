"""Questions about six cameras stitched to one picture. Rows: `{"views": {name: path}, "objects": {"ref", "bbox",
"view": [name, ...]}}`, boxes in pixels of their camera. How they are stitched stands in eyespot/multi_view.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eyespot import images
from eyespot.errors import EyespotError
from eyespot.multi_view import STITCHED, VIEWS, stitch, to_stitched
from eyespot.train.data import fields
from eyespot.train.data.record import BadRecord, Place
from eyespot.train.tasks.annotation import Annotated, Thing, placed


def annotated(row: Mapping[str, Any], place: Place, root: Path) -> Annotated:
    """The stitched picture of a row with its boxes. BadRecord names the fault."""
    raw = row.get("views")
    if not isinstance(raw, Mapping) or set(raw) != set(VIEWS):
        raise fields.bad(place, "views", raw if raw is None else sorted(map(str, raw)), ", ".join(VIEWS))
    pictures = dict(zip(VIEWS, fields.paths([raw[view] for view in VIEWS], place, root, "views"), strict=True))
    objects = row.get("objects")
    owners = objects.get("view") if isinstance(objects, Mapping) else None
    if not isinstance(objects, Mapping) or not isinstance(owners, list) or any(owner not in VIEWS for owner in owners):
        raise fields.bad(place, "objects.view", owners, "the camera of each box")
    given = objects.get("bbox")
    if not isinstance(given, list) or len(owners) != len(given):
        raise fields.bad(place, "objects.bbox", given, f"{len(owners)} boxes, one for each view")
    numbered = {"objects": {**objects, "image_id": [VIEWS.index(owner) for owner in owners]}}
    try:
        names, found = placed(numbered, place, lambda i: images.size(pictures[VIEWS[i]]), len(VIEWS))
        canvas = stitch(pictures)
    except BadRecord:
        raise
    except EyespotError as error:
        raise BadRecord(place, [str(error)]) from None
    there = (to_stitched(VIEWS[at.owner], at.box, at.size) for at in found)
    things = tuple(Thing(name, box) for name, box in zip(names, there, strict=True))
    return Annotated(canvas, STITCHED, place, things=things)
