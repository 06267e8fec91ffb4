"""Clips as frames with their times: films (PyAV), animated GIF and WebP, directories; and which frames are shown.

Ground floor: knows no model. Of a film the first frame is decoded, then what is asked for, each from its keyframe on.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eyespot import images, limits
from eyespot.errors import EyespotError, MissingPackage, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

STILLS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
MOVING = {".gif", ".webp"}
RATE = 1.0  # frames a second of a directory, when nobody says
UNTIMED = 100  # milliseconds of a frame of an animation that names none, as browsers show it


Key = tuple[int, int]  # of a keyframe: when it is shown, and when decoded, by which most containers are sought


@dataclass(frozen=True, slots=True)
class Clip:
    """times: when each frame begins, in seconds from the first, rising. end: when the last one ends. size: width and
    height as shown, (0, 0) where each frame is a file of its own. read(numbers) -> those frames, in rising order."""

    name: str
    times: tuple[float, ...]
    end: float
    size: tuple[int, int]
    read: Callable[[Sequence[int]], Iterator[Path | Image]]

    def ends(self, numbers: Sequence[int]) -> float:
        """When the last of these frames ends."""
        after = numbers[-1] + 1
        return self.times[after] if after < len(self.times) else self.end

    def rate(self, numbers: Sequence[int]) -> float:
        """Frames a second of a part, on average."""
        length = self.ends(numbers) - self.times[numbers[0]]
        return len(numbers) / length if length > 0 else RATE

    def steady(self, numbers: Sequence[int]) -> bool:
        """Whether the frames of a part follow each other at one rate."""
        steps = [self.times[b] - self.times[a] for a, b in itertools.pairwise(numbers)]
        return not steps or max(steps) - min(steps) <= 0.1 * max(steps)

    def within(self, start: float | None, end: float | None) -> list[int]:
        """Numbers of the frames that begin in [start, end) seconds; with a start, also the one that is shown then."""
        first = 0 if start is None else max(0, bisect_right(self.times, start) - 1)
        found = [i for i in range(first, len(self.times)) if end is None or self.times[i] < end]
        if not found or (start is not None and start >= self.end):
            raise UsageError(
                f"{self.name}: no frame in that time", found=[start or 0, self.end if end is None else end],
                expected=f"within 0 to {self.end:g} seconds",
            )  # fmt: skip
        return found


def open_clip(path: str | Path, rate: float | None = None) -> Clip:
    """The clip at `path`: a directory of pictures in the order of their names, an animation, or a film.

    rate: frames a second of a directory. UsageError for a path that leads nowhere; EyespotError for a clip without
    frames, one too large, and a film where PyAV is missing or cannot read it.
    """
    path = Path(path)
    if path.is_dir():
        return _directory(path, rate)
    if not path.exists():
        raise UsageError(f"clip '{path}' cannot be read (no such file or directory)", cause="the path is wrong")
    if not path.is_file():
        raise UsageError(f"clip '{path}' is not a file")
    if rate is not None:
        raise UsageError(f"{path.name}: a frame rate is for a directory of frames", cause="a film knows its own")
    return _animation(path) if path.suffix.lower() in MOVING else _film(path)


def _directory(path: Path, rate: float | None) -> Clip:
    try:
        names = sorted((entry for entry in path.iterdir() if entry.suffix.lower() in STILLS), key=_counted)
    except OSError as error:
        raise EyespotError(f"{path}: cannot be read ({error.strerror})") from None
    if not 0 < len(names) <= limits.VIDEO_FRAMES:
        raise EyespotError(f"{path}: {len(names)} frames", expected=f"1 to {limits.VIDEO_FRAMES}")
    each = 1 / (rate or RATE)
    times = tuple(i * each for i in range(len(names)))
    return Clip(path.name, times, len(names) * each, (0, 0), lambda numbers: iter([names[i] for i in numbers]))


def _counted(path: Path) -> list[tuple[int, str]]:
    """Orders frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def shrunk(image: Image, count: int) -> Image:
    """A frame of a clip, made smaller where `count` such frames would take more memory than a clip may."""
    most = limits.CLIP_PIXELS // count
    if image.width * image.height <= most:
        return image
    scale = math.sqrt(most / (image.width * image.height))
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def _animation(path: Path) -> Clip:
    """Each frame's size is checked before its pixels are read: it may be larger than the header says."""
    with _decoding(path):
        moving = images.opened(path)
        total = int(getattr(moving, "n_frames", 1))
        if total > limits.VIDEO_FRAMES:
            raise EyespotError(f"{path}: too large", found=f"{total} frames", expected=f"at most {limits.VIDEO_FRAMES}")
        times, at, pixels = [], 0.0, 0
        for i in range(total):
            moving.seek(i)
            pixels += moving.width * moving.height
            if pixels > limits.VIDEO_PIXELS or moving.width * moving.height > limits.IMAGE_PIXELS:
                raise EyespotError(f"{path}: too large", found=f"{total} frames, {moving.width}x{moving.height}")
            moving.load()  # a WebP tells how long a frame lasts when it is decoded
            times.append(at)
            at += (moving.info.get("duration") or UNTIMED) / 1000

    def read(numbers: Sequence[int]) -> Iterator[Image]:
        for number in numbers:
            with _decoding(path):
                moving.seek(number)
                frame = moving.convert("RGB")
            yield frame

    return Clip(path.name, tuple(times), at, moving.size, read)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except EyespotError:
        raise
    except Exception as error:  # Pillow's readers raise whatever comes up in a damaged file
        raise EyespotError(f"{path}: cannot be decoded ({error})", cause="cut off or corrupted") from None


# Films


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise MissingPackage(
            "films need PyAV", cause="pip install eyespot[video]; a directory of frames does without"
        ) from None
    av.logging.set_level(None)  # a level, be it PANIC, has decoder threads wait for Python's lock: a deadlock
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of a film."""
    av = _av()
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise EyespotError(f"{path.name}: there is no picture in this file", expected="a film")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise EyespotError(f"{path.name}: its pictures are in a code nobody here reads")
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= limits.IMAGE_PIXELS or max(width, height) > limits.IMAGE_SIDE:
                raise EyespotError(f"{path.name}: frames of {width}x{height} pixels",
                                   expected=f"1 to {limits.IMAGE_PIXELS} pixels")  # fmt: skip
            yield container, stream
    except (av.error.FFmpegError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise EyespotError(
            f"{path.name}: not a film eyespot reads ({told})", cause="another kind of file, cut off or corrupted"
        ) from None


def _film(path: Path) -> Clip:
    """Its packets are listed, only the first is decoded: times are the file's own, so a variable rate stays exact."""
    stamps: list[int] = []
    keys: list[Key] = []
    last = 0
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.pts is None or packet.is_discard:
                continue  # the end, or a packet that shows nothing
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            last = max(last, packet.pts + (packet.duration or 0))
            if len(stamps) > limits.FILM_FRAMES:
                raise EyespotError(
                    f"{path.name}: more than {limits.FILM_FRAMES} frames", cause="cut it: --video takes parts"
                )
        base, guessed = Fraction(stream.time_base), _guessed(container)
    if not stamps:
        raise EyespotError(f"{path.name}: a film of no frames", cause="zero length, or without times")
    stamps.sort()
    keys.sort()
    first = stamps[0]
    if guessed:  # such streams have a constant rate
        stamps = [first + round(i * (stamps[-1] - first) / max(1, len(stamps) - 1)) for i in range(len(stamps))]
    times = tuple(float((stamp - first) * base) for stamp in stamps)
    end = max(float((last - first) * base), times[-1])
    shown = next(_frames(path, stamps, keys, [0]))
    return Clip(path.name, times, end, shown.size, lambda numbers: _frames(path, stamps, keys, numbers))


def _frames(
    path: Path, stamps: Sequence[int], keys: Sequence[Key], numbers: Sequence[int], seeks: bool = True
) -> Iterator[Image]:
    """The frames of these numbers, which rise, of a film whose frames are shown at `stamps`; from the nearest keyframe
    on where that is further. seeks: or else from the beginning: where the container leads elsewhere."""
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        # AVI knows no times but the decoder's: a codec that shows frames in another order has only that order. Of an
        # MPEG program stream most packets have none, and what is guessed names two frames alike.
        ordered = _guessed(container) or (container.format.name == "avi" and stream.codec_context.has_b_frames)
        seeks = seeks and not ordered
        at: int | None = None  # of the last decoded frame
        frames: Iterator[Any] = container.decode(stream)
        frame: Any = None
        count = pixels = 0  # that were decoded
        for done, number in enumerate(numbers):
            stamp = number if ordered else stamps[number]
            key = bisect_right(keys, stamp, key=lambda k: k[0]) - 1
            sought = seeks and key >= 0 and (at is None or keys[key][0] > at)
            if sought:
                container.seek(keys[key][1], stream=stream, backward=True)
                frames, at = container.decode(stream), None
            while (at is None or at < stamp) and (frame := next(frames, None)) is not None:
                at = count if ordered else frame.pts
                count, pixels = count + 1, pixels + frame.width * frame.height
                if pixels > limits.FILM_PIXELS:
                    cause = (
                        "few keyframes: cut a part of it" if seeks else "it cannot be sought: remux it to mp4 or mkv"
                    )
                    raise EyespotError(f"{path.name}: too much to decode", cause=cause)
            if (frame is None or at != stamp) and sought:
                yield from _frames(path, stamps, keys, numbers[done:], seeks=False)
                return
            if frame is None or at != stamp:
                what = "cannot be decoded" if frame is None else "is missing"
                raise EyespotError(f"{path.name}: a frame {what}", cause="cut off or corrupted")
            image = frame.to_image()
            yield image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _guessed(container: Any) -> bool:
    """Whether most of a film's times are FFmpeg's guesses."""
    return bool(container.format.name == "mpeg")


# Which frames


def evenly(total: int, most: int) -> list[int]:
    """The middles of `most` equal parts of `total` frames; all of them when they are no more."""
    return list(range(total)) if total <= most else [(2 * i + 1) * total // (2 * most) for i in range(most)]


def segments(total: int, count: int = 8) -> list[int]:
    """InternVL's rule: `count` frames at the middles of equal segments, as its model cards compute them."""
    last = total - 1
    segment = last / count
    return [min(last, int(segment / 2 + round(segment * k))) for k in range(count)]


def qwen(total: int, rate: float, fps: float = 2.0, least: int = 4, most: int = 768) -> list[int]:
    """Qwen's rule: `fps` frames a second, at least `least`, at most `most`, an even number, evenly from first to last.

    Source: qwen_vl_utils' smart_nframes and its linspace. A clip of one frame shows it twice.
    """
    if total < 2:
        return [0, 0]
    floor = max(2, most // 2 * 2)
    wanted = min(max(total / rate * fps, -(-least // 2) * 2), floor, total)
    count = max(2, int(wanted) // 2 * 2)
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def at_rate(times: Sequence[float], numbers: Sequence[int], fps: float, end: float) -> list[int]:
    """Of the frames `numbers`, those shown at some whole multiple of 1 / fps seconds after the first one began, and
    before `end`, in seconds as times are."""
    begun = [(times[n] - times[numbers[0]]) * fps - 1e-6 for n in numbers]  # in units of 1 / fps
    last = (end - times[numbers[0]]) * fps - 1e-6
    ends = [*begun[1:], max(last, begun[-1] + 2e-6)]
    return [n for n, begin, end in zip(numbers, begun, ends, strict=True) if math.ceil(begin) < end]
