"""Clips: times of films with a variable rate, rotation, parts, the models' rules, and files that are none."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eyespot import limits, video
from eyespot.errors import EyespotError, UsageError
from eyespot.video import open_clip

UNEVEN = [0, 40, 80, 200, 210, 600, 640, 1000, 1100, 1900]  # milliseconds


def film(path: Path, stamps: list[int], size: tuple[int, int] = (64, 48), codec: str = "mpeg4", turn: int = 0) -> Path:
    """A film whose frame i is grey 20 * i, shown from stamps[i] ms on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 4
        if turn:
            stream.set_display_rotation(turn)
        for i, stamp in enumerate(stamps):
            pixels = np.full((size[1], size[0], 3), 20 * i % 256, np.uint8)
            if turn:
                pixels[: size[1] // 2, : size[0] // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def greys(clip: video.Clip, numbers: list[int]) -> list[int]:
    """Which frames these are, by their pixels."""
    return [round(np.asarray(frame).mean() / 20) for frame in clip.read(numbers)]


# Films


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_times_of_a_variable_rate_are_the_files(tmp_path: Path, codec: str) -> None:
    clip = open_clip(film(tmp_path / "a.mkv", UNEVEN, codec=codec))
    assert clip.times == pytest.approx([t / 1000 for t in UNEVEN], abs=1e-6)
    assert clip.size == (64, 48)
    assert greys(clip, list(range(10))) == list(range(10))
    for chosen in ([9], [0, 9], [3, 4, 8], [5, 5], [2, 6, 9]):
        assert greys(clip, chosen) == chosen


REORDERED = [("ts", "libx264"), ("ts", "mpeg2video"), ("avi", "libx264"), ("avi", "mpeg4"), ("mpg", "mpeg2video")]


@pytest.mark.parametrize("frames_between", [0, 2])
@pytest.mark.parametrize(("kind", "codec"), REORDERED)
def test_frames_that_are_stored_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, codec: str, frames_between: int
) -> None:
    """Containers that are sought by decoding time, or have no time of showing: the frame is the one asked for, and
    found at once, not by beginning again."""
    path, noise = tmp_path / f"a.{kind}", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, frames_between
        stream.codec_context.thread_count = 1
        for i in range(40):
            # Rows and columns of blocks, of which number i is white; noise makes the film more than one read long.
            pixels = noise.integers(0, 60, (6, 8, 8, 8, 3), np.uint8)
            pixels[i // 8, :, i % 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.reshape(48, 64, 3), "rgb24")))
        container.mux(stream.encode())
    clip = open_clip(path)
    assert clip.times == pytest.approx([i / 25 for i in range(40)], abs=1e-3)
    opened = 0

    def counted(path: Path, opening: Any = video._opened) -> Any:
        nonlocal opened
        opened += 1
        return opening(path)

    monkeypatch.setattr(video, "_opened", counted)
    choices = ([0], [3, 20, 38], [13, 14], [25], [39], list(range(40)))
    for chosen in choices:
        frames = (np.asarray(frame).reshape(6, 8, 8, 8, 3).mean((1, 3, 4)) for frame in clip.read(chosen))
        assert [int(frame.argmax()) for frame in frames] == chosen
    assert opened == len(choices)


def test_a_clip_that_begins_late_begins_at_zero(tmp_path: Path) -> None:
    clip = open_clip(film(tmp_path / "a.mkv", [5000 + t for t in UNEVEN]))
    assert clip.times[0] == 0
    assert clip.times[-1] == pytest.approx(1.9)
    assert greys(clip, [0, 7]) == [0, 7]


@pytest.mark.parametrize(("turn", "corner"), [(90, (0, 1)), (-90, (1, 0)), (180, (1, 1))])
def test_rotation_is_honoured(tmp_path: Path, turn: int, corner: tuple[int, int]) -> None:
    """The white quarter of the stored frame stands left above; the film says how it is to be turned."""
    path = film(tmp_path / "a.mp4", [0, 40, 80], turn=turn)
    clip = open_clip(path)
    assert clip.size == ((48, 64) if turn % 180 else (64, 48))
    (frame,) = clip.read([0])
    pixels = np.asarray(frame).mean(-1)
    height, width = pixels.shape
    quarters = pixels.reshape(2, height // 2, 2, width // 2).mean((1, 3))
    brightest = np.unravel_index(quarters.argmax(), (2, 2))
    assert (brightest[1], brightest[0]) == corner  # column, row


def test_parts_of_a_film(tmp_path: Path) -> None:
    clip = open_clip(film(tmp_path / "a.mkv", UNEVEN))
    assert clip.within(None, None) == list(range(10))
    assert clip.within(0.1, 0.65) == [2, 3, 4, 5, 6]  # frame 2 is still shown at 0.1 s
    assert clip.within(0.6, 1.0) == [5, 6]
    with pytest.raises(UsageError, match="no frame in that time"):
        clip.within(99, None)
    with pytest.raises(UsageError, match="no frame in that time"):
        clip.within(1.5, 1.0)


# Which frames


@given(st.integers(1, 5000), st.floats(1, 120), st.floats(0.1, 30), st.integers(1, 768))
def test_qwens_frames_are_the_authors(total: int, rate: float, fps: float, most: int) -> None:
    """smart_nframes and torch.linspace(...).round() of qwen_vl_utils, written down anew."""
    found = video.qwen(total, rate, fps, 4, most)
    if total < 2:
        assert found == [0, 0]
        return
    low, high = math.ceil(4 / 2) * 2, max(math.floor(most / 2) * 2, 2)
    nframes = min(min(max(total / rate * fps, low), high), total)
    nframes = max(math.floor(nframes / 2) * 2, 2)
    assert found == np.linspace(0, total - 1, nframes).round().astype(int).tolist()
    assert len(found) % 2 == 0


@given(st.integers(1, 5000), st.integers(1, 32))
def test_internvls_frames_are_the_model_cards(total: int, count: int) -> None:
    segment = float(total - 1) / count
    indices = np.array([int((segment / 2) + np.round(segment * i)) for i in range(count)])
    assert video.segments(total, count) == np.minimum(indices, total - 1).tolist()


def test_evenly() -> None:
    assert video.evenly(3, 40) == [0, 1, 2]
    assert video.evenly(8, 2) == [2, 6]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.floats(0.5, 30))
def test_frames_at_a_rate_are_those_shown_then(steps: list[int], fps: float) -> None:
    times = np.cumsum([0, *steps]).astype(float) / 1000
    end = float(times[-1]) + 0.3
    found = video.at_rate(times.tolist(), list(range(len(times))), fps, end)
    due = [k / fps for k in range(int(end * fps) + 2) if k / fps < end]
    shown = {int(np.searchsorted(times, at + 2e-7, side="right")) - 1 for at in due}
    near = {i for i, t in enumerate(times) if abs(t * fps - round(t * fps)) < 1e-5}  # where a thousandth decides
    assert set(found) - near == shown - near


def test_a_frame_that_stays_is_shown_as_long(tmp_path: Path) -> None:
    stills = [Image.new("RGB", (6, 6), (40 * i, 0, 0)) for i in range(2)]
    stills[0].save(tmp_path / "a.gif", save_all=True, append_images=stills[1:], duration=[100, 10_000])
    clip = open_clip(tmp_path / "a.gif")
    assert video.at_rate(clip.times, [0, 1], 1.0, clip.ends([0, 1])) == [0, 1]
    assert clip.rate([0, 1]) == pytest.approx(2 / 10.1)
    assert clip.ends([0]) == pytest.approx(0.1)


# Directories, and what is no clip


def test_a_directory_has_the_rate_one_says(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "4.png").rename(tmp_path / "10.png")  # comes last all the same
    assert open_clip(tmp_path).times == (0, 1, 2, 3, 4)
    clip = open_clip(tmp_path, rate=10)
    assert clip.times == pytest.approx((0, 0.1, 0.2, 0.3, 0.4))
    assert [path.name for path in clip.read([1, 3, 4])] == ["1.png", "3.png", "10.png"]  # type: ignore[union-attr]


def test_what_is_no_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = film(tmp_path / "whole.mp4", UNEVEN).read_bytes()
    sound = tmp_path / "sound.wav"
    sound.write_bytes(
        b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\x08\0\0\0" + bytes(8)
    )
    cases = {
        "empty.mp4": b"", "text.mp4": b"not a film", "half.mp4": whole[: len(whole) // 3],
        "head.mkv": b"\x1aE\xdf\xa3" * 9,
    }  # fmt: skip
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EyespotError, match=name):
            list(open_clip(tmp_path / name).read([0]))
    with pytest.raises(EyespotError, match="no picture in this file"):
        open_clip(sound)
    (tmp_path / "wrong.jpg").write_bytes(whole)  # the name does not matter
    assert len(open_clip(tmp_path / "wrong.jpg").times) == 10
    with pytest.raises(UsageError, match="the path is wrong"):
        open_clip(tmp_path / "gone.mp4")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EyespotError, match="0 frames"):
        open_clip(tmp_path / "nothing")
    monkeypatch.setattr(limits, "FILM_FRAMES", 9)
    with pytest.raises(EyespotError, match="more than 9 frames"):
        open_clip(tmp_path / "whole.mp4")
    monkeypatch.setattr(limits, "FILM_FRAMES", 10)
    monkeypatch.setattr(limits, "IMAGE_PIXELS", 64 * 47)
    with pytest.raises(EyespotError, match="frames of 64x48 pixels"):
        open_clip(tmp_path / "whole.mp4")


def test_damage_in_the_middle_is_an_error_or_a_frame(tmp_path: Path) -> None:
    whole = bytearray(film(tmp_path / "whole.mkv", UNEVEN).read_bytes())
    rng, told = np.random.default_rng(1), []
    for n in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 20):
            damaged[at] = int(rng.integers(256))
        path = tmp_path / f"{n}.mkv"
        path.write_bytes(damaged)
        try:
            clip = open_clip(path)
            for frame in clip.read(list(range(len(clip.times)))):
                assert frame.size == clip.size  # type: ignore[union-attr]
        except EyespotError as error:
            told.append(str(error))
    assert told  # most are broken
    assert not any("\n" in line for line in told)


STRESS = """
import faulthandler, random, sys
from eyespot.errors import EyespotError
from eyespot.video import open_clip

faulthandler.dump_traceback_later(60, exit=True)
whole, path, rng = open(sys.argv[1], "rb").read(), sys.argv[2], random.Random(2)
for _ in range(25):
    damaged = bytearray(whole)
    for _ in range(8):
        damaged[rng.randrange(8, len(damaged))] = rng.randrange(256)
    open(path, "wb").write(damaged)
    try:
        clip = open_clip(path)
        list(clip.read(range(0, len(clip.times), 7)))
    except EyespotError:
        pass
print("done")
"""


def test_damage_that_decoder_threads_tell_of_does_not_hang(tmp_path: Path) -> None:
    """Messages of FFmpeg's threads must not wait for the thread that waits for them."""
    whole = film(tmp_path / "whole.mp4", [40 * i for i in range(60)], codec="libx264")
    command = [sys.executable, "-c", STRESS, str(whole), str(tmp_path / "z.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def gif(path: Path, sizes: list[tuple[int, int]], duration: int | None = None) -> Path:
    frames = [Image.new("P", size, i + 1) for i, size in enumerate(sizes)]
    extra = {} if duration is None else {"duration": duration}
    frames[0].save(path, save_all=True, append_images=frames[1:], optimize=False, disposal=2, **extra)
    return path


def test_a_gif_cut_off_anywhere_is_an_error_or_a_clip(tmp_path: Path) -> None:
    whole, told = gif(tmp_path / "whole.gif", [(10, 10)] * 3, 50).read_bytes(), 0
    for length in range(len(whole)):
        (tmp_path / "cut.gif").write_bytes(whole[:length])
        try:
            clip = open_clip(tmp_path / "cut.gif")
            list(clip.read(range(len(clip.times))))
        except EyespotError:
            told += 1
    assert told > len(whole) / 4


def test_frames_larger_than_their_animation_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header says 10 x 10; the second frame's own descriptor says 400 x 400."""
    data = bytearray(gif(tmp_path / "a.gif", [(10, 10)] * 2, 50).read_bytes())
    second = data.index(b"\x2c", data.index(b"\x2c", 13) + 1)
    data[second + 5 : second + 9] = (400).to_bytes(2, "little") * 2
    (tmp_path / "b.gif").write_bytes(data)
    monkeypatch.setattr(limits, "IMAGE_PIXELS", 300 * 300)
    with pytest.raises(EyespotError, match="400x400"):
        open_clip(tmp_path / "b.gif")


def test_an_animation_without_durations_has_those_of_browsers(tmp_path: Path) -> None:
    clip = open_clip(gif(tmp_path / "a.gif", [(8, 8)] * 5))
    assert clip.times == pytest.approx((0, 0.1, 0.2, 0.3, 0.4))
    assert clip.end == pytest.approx(0.5)


def test_a_film_of_few_keyframes_is_not_decoded_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for lies behind all the rest: the bound is on what must be decoded, not on what is kept."""
    with av.open(str(tmp_path / "long.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 600
        for i in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, np.uint8), "rgb24")))
        container.mux(stream.encode())
    clip = open_clip(tmp_path / "long.mp4")
    assert len(clip.times) == 100
    monkeypatch.setattr(limits, "FILM_PIXELS", 50 * 64 * 48)
    assert len(list(clip.read([3, 40]))) == 2
    with pytest.raises(EyespotError, match="too much to decode"):
        list(clip.read([3, 99]))


def test_frames_of_a_large_film_are_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4K, eight frames: no more pixels than a clip may have, whatever its size, in a run and in a training."""
    from eyespot.train.data.record import Video
    from eyespot.train.data.video import frames

    path = film(tmp_path / "4k.mp4", [0, 40, 80, 120, 160, 200, 240, 280], (3840, 2160))
    monkeypatch.setattr(limits, "CLIP_PIXELS", 8 * 1_000_000)
    kept = frames(Video(path), 8)
    assert len(kept) == 8
    for frame in kept:
        assert isinstance(frame, Image.Image)
        assert 900_000 < frame.width * frame.height <= 1_000_000
        assert frame.width / frame.height == pytest.approx(16 / 9, rel=0.01)
