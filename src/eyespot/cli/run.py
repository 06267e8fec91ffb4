"""`eyespot run`: one prompt, one answer, streamed to stdout; what it took goes to stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

from eyespot.cli import options as o
from eyespot.cli.flags import flag


def command(
    model: o.ModelPath,
    prompt: Annotated[str, flag("-p", "--prompt", help="The user's text; - reads stdin.")],
    image: o.Image = None,
    view: o.View = None,
    video: o.Video = None,
    fps: o.Fps = None,
    max_frames: o.MaxFrames = None,
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
    text = sys.stdin.read(limits.PROMPT_CHARS + 1) if prompt == "-" else prompt
    asked: Any = text
    if video is not None:
        if raw or image or view:
            raise UsageError("--video goes with neither --raw nor --image nor --view")
        clip = {"video": video, "fps": fps, "max_frames": max_frames, "start": video_start, "end": video_end}
        asked = [{"role": "user", "content": [{"type": "video", **clip}, {"type": "text", "text": text}]}]
    elif view:
        if raw or image:
            raise UsageError("--view goes with neither --raw nor --image")
        seen = {"type": "views", "views": o.cameras(view)}
        asked = [{"role": "user", "content": [seen, {"type": "text", "text": text}]}]
    elif any(value is not None for value in (fps, max_frames, video_start, video_end)):
        raise UsageError("--fps, --max-frames, --video-start and --video-end are about a clip", expected="--video")
    if system is not None:
        turns = asked if isinstance(asked, list) else [{"role": "user", "content": text}]
        asked = [{"role": "system", "content": system}, *turns]
    settings = o.sampling(max_tokens, seed, temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n)
    settings |= o.seeing(max_tiles, image_tokens, image_ms, image_rule)
    settings["json_schema"] = json_schema
    with load(model, threads or 0, ctx_size, isa) as loaded:
        o.note_threads(loaded.engine.info)
        if prompt_cache is not None and os.path.exists(prompt_cache):
            loaded.load_prompt(prompt_cache)
        stream = loaded.stream(asked, image or (), raw, **settings)
        with interruptible(stream.cancel):
            for piece in stream:
                if not as_json:
                    o.show(piece, sys.stdout)
        answer = stream.answer
        if prompt_cache is not None and answer is not None:
            loaded.save_prompt(prompt_cache)
    if answer is None:
        raise EyespotError("there was no answer")
    o.line(json.dumps(answer.to_json(), ensure_ascii=False) if as_json else "", sys.stdout)
    for fault in answer.box_faults:
        o.line(f"eyespot: {fault}", sys.stderr)
    if draw is not None:
        o.drawn(answer, image or [], o.cameras(view or []), draw)
    if not no_stats:
        o.line(answer.stats(), sys.stderr)
    return INTERRUPTED if answer.stop_reason == "cancelled" else OK
