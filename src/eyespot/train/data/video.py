"""Clips as pictures: `<video>` becomes `Frame1: <image>`, `Frame2: <image>` and so on, at most 40, evenly chosen.

Reads directories of frames and animated GIF or WebP; a film's container (mp4 and its like) is not opened here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eyespot import images, limits
from eyespot.errors import EyespotError
from eyespot.train.data.record import VIDEO, BadRecord, Record, Turn, Video

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = 40  # Mini-InternVL's most
STILLS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


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


def chosen(total: int, most: int) -> list[int]:
    """Frame numbers, the middles of `most` equal parts of `total` frames; all of them when they are no more."""
    return list(range(total)) if total <= most else [(2 * i + 1) * total // (2 * most) for i in range(most)]


def frames(video: Video, most: int = FRAMES) -> list[Path | Image]:
    """At most `most` frames of a clip, in order: paths, or pictures taken from an animation. EyespotError when there
    are none, or none can be read."""
    if video.path.is_dir():
        if video.clip is not None:
            raise EyespotError(f"{video.path}: a directory of frames has no seconds", found=f"clip {list(video.clip)}")
        try:
            names = sorted(entry for entry in video.path.iterdir() if entry.suffix.lower() in STILLS)
        except OSError as error:
            raise EyespotError(f"{video.path}: cannot be read ({error.strerror})") from None
        if not 0 < len(names) <= limits.VIDEO_FRAMES:
            raise EyespotError(f"{video.path}: {len(names)} frames", expected=f"1 to {limits.VIDEO_FRAMES}")
        return [names[i] for i in chosen(len(names), most)]
    if video.path.suffix.lower() not in (".gif", ".webp"):
        raise EyespotError(
            f"{video.path}: not a clip eyespot trains on", expected="a directory of frames, or an animated GIF or WebP"
        )
    return _animation(video, most)


def _animation(video: Video, most: int) -> list[Path | Image]:
    """Frames of an animation; its header is checked before a pixel is read."""
    moving = images.opened(video.path)
    found: list[Path | Image] = []
    try:
        total = int(getattr(moving, "n_frames", 1))
        if total > limits.VIDEO_FRAMES or total * moving.width * moving.height > limits.VIDEO_PIXELS:
            raise EyespotError(f"{video.path}: too large", found=f"{total} frames, {moving.width}x{moving.height}")
        wanted = list(range(total)) if video.clip is None else _within(moving, total, *video.clip)
        for i in chosen(len(wanted), most):
            moving.seek(wanted[i])
            found.append(moving.convert("RGB"))
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise EyespotError(f"{video.path}: cannot be decoded ({error})", cause="cut off or corrupted") from None
    if not found:
        raise EyespotError(f"{video.path}: no frame in the clip", found=video.clip, expected="[start, end] in seconds")
    return found


def _within(moving: Image, total: int, start: float, end: float) -> list[int]:
    """Numbers of the frames that begin in [start, end) seconds."""
    found, at = [], 0.0
    for i in range(total):
        if start <= at < end:
            found.append(i)
        moving.seek(i)
        at += moving.info.get("duration", 0) / 1000
    return found
