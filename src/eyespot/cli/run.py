"""`eyespot run`: one prompt, one answer, streamed to stdout; what it took goes to stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

from eyespot.cli import options as o
from eyespot.cli.flags import flag

if TYPE_CHECKING:
    from eyespot.run.model import Model, Options


def command(
    model: o.ModelPath,
    prompt: Annotated[str | None, flag("-p", "--prompt", help="The user's text; - reads stdin.")] = None,
    image: o.Image = None,
    view: o.View = None,
    audio: o.Audio = None,
    audio_model: o.AudioModel = None,
    video: o.Video = None,
    fps: o.Fps = None,
    max_frames: o.MaxFrames = None,
    frame_rate: o.FrameRate = None,
    video_start: o.VideoStart = None,
    video_end: o.VideoEnd = None,
    system: o.System = None,
    raw: Annotated[bool, flag("--raw", help="Take the prompt as it is, without the chat template.")] = False,
    max_tokens: o.MaxTokens = 256,
    max_tiles: o.MaxTiles = None,
    image_tokens: o.ImageTokens = None,
    image_ms: o.ImageMs = None,
    image_rule: o.ImageRule = None,
    ctx_size: o.CtxSize = 0,
    threads: o.Threads = None,
    seed: o.Seed = None,
    temp: o.Temp = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repeat_penalty: o.RepeatPenalty = None,
    repeat_last_n: o.RepeatLastN = None,
    isa: o.Isa = "",
    json_schema: o.JsonSchema = None,
    draw: o.Draw = None,
    prompt_cache: o.PromptCache = None,
    trace: o.Trace = None,
    as_json: o.Json = False,
    no_stats: o.NoStats = False,
) -> int:
    """Answer one prompt, about text and pictures. Sampling flags left out come from the bundle's config.json."""
    from eyespot import limits
    from eyespot.cli.interrupt import interruptible
    from eyespot.errors import INTERRUPTED, OK, EyespotError, UsageError
    from eyespot.run.model import load

    if draw is not None and not image and not view:
        raise UsageError("--draw draws on a picture", expected="--image or --view too")
    if raw and system is not None:
        raise UsageError("--raw takes no --system", cause="a raw prompt has no turns")
    if prompt is None and audio is None:
        raise UsageError("nothing is asked", expected="-p, or --audio")
    if audio is not None and (audio_model is None or raw):
        raise UsageError("--audio is turned into the user's text", expected="--audio-model too, and no --raw")
    text = sys.stdin.read(limits.PROMPT_CHARS + 1) if prompt == "-" else prompt or ""
    if (video is not None) + bool(view) + bool(raw or image) > 1:
        raise UsageError(
            "--video and --view are what the question is about", expected="one, with no --image and no --raw"
        )
    clip = {"fps": fps, "max_frames": max_frames, "start": video_start, "end": video_end, "rate": frame_rate}
    if video is None and any(value is not None for value in clip.values()):
        raise UsageError(
            "--fps, --max-frames, --frame-rate, --video-start and --video-end are about a clip", expected="--video"
        )
    shown: dict[str, Any] | None = None
    if video is not None:
        shown = {"type": "video", "video": video, **clip}
    elif view:
        shown = {"type": "views", "views": o.cameras(view)}
    settings = o.sampling(max_tokens, seed, temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n)
    seeing = o.seeing(max_tiles, image_tokens, image_ms, image_rule)
    settings |= seeing
    settings["json_schema"] = json_schema
    with load(model, threads or 0, ctx_size, isa) as loaded:
        o.note_threads(loaded.engine.info)
        if prompt_cache is not None and os.path.exists(prompt_cache):
            loaded.load_prompt(prompt_cache)
        if audio is not None and audio_model is not None:
            said = _heard(loaded, audio, audio_model, image or [], seeing)
            text = f"{text}\n{said}" if text else said
        stream = loaded.stream(_asked(text, shown, system), image or (), raw, **settings)
        with interruptible(stream.cancel):
            for piece in stream:
                if not as_json:
                    o.show(piece, sys.stdout)
        answer = stream.answer
        if answer is None:
            raise EyespotError("there was no answer")
        # First what took long to make; the files below may fail.
        o.line(json.dumps(answer.to_json(), ensure_ascii=False) if as_json else "", sys.stdout)
        if trace is not None:
            loaded.cache.timeline.write(trace)
        if prompt_cache is not None:
            loaded.save_prompt(prompt_cache)
    for fault in answer.box_faults:
        o.line(f"eyespot: {fault}", sys.stderr)
    if draw is not None:
        o.drawn(answer, image or [], o.cameras(view or []), draw)
    if not no_stats:
        o.line(answer.stats(), sys.stderr)
    if json_schema is not None and answer.stop_reason in ("length", "context"):
        raise EyespotError(
            "the answer was cut off before it met the schema", found=f"{len(answer.tokens)} tokens",
            expected="a larger -n" if answer.stop_reason == "length" else "a larger context",
        )  # fmt: skip
    return INTERRUPTED if answer.stop_reason == "cancelled" else OK


def _asked(text: str, shown: dict[str, Any] | None, system: str | None) -> Any:
    """The prompt: a text alone, or messages where there is more to it."""
    if shown is None and system is None:
        return text
    content: Any = text if shown is None else [shown, {"type": "text", "text": text}]
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": content}]


def _heard(model: Model, audio: str, speech: str, images: list[str], seeing: Options) -> str:
    """What is said in a sound file; the pictures are encoded meanwhile."""
    from concurrent.futures import ThreadPoolExecutor

    from eyespot.run.speech import transcribe

    with ThreadPoolExecutor(1, "speech") as thread:
        later = thread.submit(transcribe, audio, speech)
        model.look(images, **seeing)
        said = later.result()
    o.line(f"heard: {said}", sys.stderr)
    return said
