"""InternVL's rows: `{"id", "image", "width", "height", "conversations": [{"from": "human|gpt", "value"}]}`.

Source: internvl_chat of the InternVL repository. Knows one row; files of them are lines.py's and meta.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eyespot import limits
from eyespot.train.data import fields
from eyespot.train.data.record import IMAGE, VIDEO, Place, Record, Video, marked

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
KNOWN = {"id", "image", "video", "clip", "width", "height", "width_list", "height_list", "conversations"}
ASKED = {"task", "answers", "options", "metric", "novel"}  # of a row that is a question of `eyespot eval`
OWN = {"max_dynamic_patch", "data_augment"}  # of a meta file in InternVL; of a row too where eyespot wrote it


def read(row: Mapping[str, Any], place: Place, root: Path) -> Record:
    """The record of one row. image, video: a path or a list of them, from `root`. BadRecord names the fault.

    One picture that no turn mentions comes first in the first question, as in InternVL's own code.
    """
    record = plain(row, place, root)
    for mark, given in ((IMAGE, record.images), (VIDEO, record.videos)):
        if len(given) == 1:
            record = replace(record, turns=marked(record.turns, mark, 1))
    return record


def plain(row: Mapping[str, Any], place: Place, root: Path) -> Record:
    """The record of one row, the text as it stands."""
    lists = fields.sizes(row.get("width_list"), row.get("height_list"), place)
    single = fields.sizes(row.get("width"), row.get("height"), place)
    return Record(
        tuple(fields.turns(row.get("conversations"), place, "from", "value", ROLES)),
        fields.paths(row.get("image"), place, root, "image"),
        lists if lists is not None else single,
        tuple(
            Video(path, _clip(row.get("clip"), place)) for path in fields.paths(row.get("video"), place, root, "video")
        ),
        fields.identity(row),
        place,
        _most(row.get("max_dynamic_patch"), place),
        row.get("data_augment") is True,
        unused=fields.unused(row, KNOWN | OWN | ASKED),
        asked={key: row[key] for key in sorted(ASKED & row.keys())},
    )


def row(record: Record, images: list[str], videos: list[str]) -> dict[str, Any]:
    """The record as a row of this format; images, videos: the paths that stand for its own."""
    words = {ours: theirs for theirs, ours in ROLES.items()}
    made: dict[str, Any] = {"id": record.id} if record.id else {}
    for key, given in (("image", images), ("video", videos)):
        if given:
            made[key] = given[0] if len(given) == 1 else given
    if record.sizes is not None and len(record.sizes) == 1:
        made["width"], made["height"] = record.sizes[0]
    elif record.sizes:
        made["width_list"], made["height_list"] = (list(side) for side in zip(*record.sizes, strict=True))
    if record.videos and record.videos[0].clip is not None:
        made["clip"] = list(record.videos[0].clip)
    if record.max_dynamic_patch is not None:
        made["max_dynamic_patch"] = record.max_dynamic_patch
    if record.data_augment:
        made["data_augment"] = True
    made["conversations"] = [{"from": words[turn.role], "value": turn.text} for turn in record.turns]
    return {**made, **record.asked}


def _most(raw: object, place: Place) -> int | None:
    if raw is None or (type(raw) is int and 1 <= raw <= limits.TILES):
        return raw
    raise fields.bad(place, "max_dynamic_patch", raw, f"1 to {limits.TILES}")


def _clip(raw: object, place: Place) -> tuple[float, float] | None:
    if raw is None:
        return None
    if (
        not isinstance(raw, list)
        or len(raw) != 2
        or not all(type(n) in (int, float) for n in raw)
        or not 0 <= raw[0] < raw[1]
    ):
        raise fields.bad(place, "clip", raw, "[start, end] in seconds")
    return float(raw[0]), float(raw[1])
