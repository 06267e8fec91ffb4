"""Clips as pictures: `<video>` becomes `Frame1: <image>`, `Frame2: <image>` and so on, at most 40, evenly chosen.

What opens a clip stands in eyespot/video.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eyespot.errors import EyespotError, MissingPackage
from eyespot.train.data.record import VIDEO, BadRecord, Record, Turn, Video
from eyespot.video import evenly, open_clip, shrunk

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = 40  # Mini-InternVL's most


def expand(record: Record, most: int = FRAMES) -> Record:
    """The record with at most `most` frames in the place of its clips, one tile each, as InternVL trains on video.

    BadRecord when a clip cannot be read or the record's pictures and frames cannot be told apart.
    """
    if not record.videos:
        return record
    if record.images:
        raise BadRecord(record.place, ["pictures beside a clip, expected one of the two"])
    share = max(1, most // len(record.videos))
    try:
        clips = [frames(video, share) for video in record.videos]
    except MissingPackage:
        raise
    except EyespotError as error:
        raise BadRecord(record.place, [str(error)]) from None
    return replace(
        record,
        turns=captioned(record.turns, [len(clip) for clip in clips]),
        images=tuple(frame for clip in clips for frame in clip),
        sizes=None,
        videos=(),
        max_dynamic_patch=1,
    )


def captioned(turns: tuple[Turn, ...], counts: list[int]) -> tuple[Turn, ...]:
    """The turns with `Frame1: <image>` and so on, a line each, for the n-th VIDEO, which has counts[n] frames."""
    left = iter(counts)

    def lines(text: str) -> Iterator[str]:
        first, *rest = text.split(VIDEO)
        yield first
        for part in rest:
            yield "\n".join(f"Frame{i}: <image>" for i in range(1, next(left) + 1))
            yield part

    return tuple(Turn(t.role, "".join(lines(t.text))) if t.role == "user" else t for t in turns)


def frames(video: Video, most: int = FRAMES) -> list[Path | Image]:
    """At most `most` frames of a clip, in order: paths, or pictures taken from a film or an animation. EyespotError
    when there are none, or none can be read."""
    if video.clip is not None and video.path.is_dir():
        raise EyespotError(f"{video.path}: a directory of frames has no seconds", found=f"clip {list(video.clip)}")
    clip = open_clip(video.path)
    numbers = clip.within(*(video.clip or (None, None)))
    chosen = [numbers[i] for i in evenly(len(numbers), most)]
    found = clip.read(chosen)
    return [frame if isinstance(frame, Path) else shrunk(frame, len(chosen)) for frame in found]
