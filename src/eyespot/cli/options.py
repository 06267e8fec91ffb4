"""Flags that `run` and `chat` share, under the names people know from the field, and what they become."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from eyespot.cli.flags import flag

if TYPE_CHECKING:
    from eyespot.run.answer import Answer
    from eyespot.run.model import Options

ModelPath = Annotated[str, flag("-m", "--model", help="Directory of a bundle.")]
Image = Annotated[list[str] | None, flag("--image", metavar="PATH", help="A picture; may be given again.")]
Audio = Annotated[str | None, flag("--audio", metavar="FILE", help="A spoken instruction; comes after -p, if any.")]
AudioModel = Annotated[str | None, flag("--audio-model", metavar="DIR", help="A speech model of sherpa-onnx.")]
Video = Annotated[str | None, flag("--video", metavar="PATH", help="A film, an animation, or a directory of frames.")]
Fps = Annotated[float | None, flag("--fps", help="Frames a second to show of it.  [default: evenly; Qwen: 2]")]
MaxFrames = Annotated[
    int | None, flag("--max-frames", least=1, help="Most frames to show of it.  [default: 8; Qwen: 256]")
]
FrameRate = Annotated[float | None, flag("--frame-rate", help="Frames a second that a directory holds.  [default: 1]")]
VideoStart = Annotated[float | None, flag("--video-start", help="Seconds where the part to be shown begins.")]
VideoEnd = Annotated[float | None, flag("--video-end", help="Seconds where it ends.")]
View = Annotated[
    list[str] | None,
    flag("--view", metavar="CAMERA=PATH", help="One of six cameras, FRONT_LEFT to BACK_RIGHT, stitched to a picture."),
]
System = Annotated[str | None, flag("--system", help="System prompt instead of the model's own.")]
MaxTokens = Annotated[int, flag("-n", "--max-tokens", least=1, help="Most tokens of an answer.")]
CtxSize = Annotated[int, flag("-c", "--ctx-size", least=0, help="Tokens of context; 0: as compiled.")]
Threads = Annotated[
    int | None, flag("-t", "--threads", least=1, help="Default: EYESPOT_THREADS, or as config.json says.")
]
MaxTiles = Annotated[int | None, flag("--max-tiles", least=1, help="Most tiles of a picture; fewer take less context.")]
ImageTokens = Annotated[int | None, flag("--image-tokens", least=1, help="Most tokens of a picture.")]
ImageMs = Annotated[
    float | None, flag("--image-ms", help="Most milliseconds to encode a picture in; a tile is timed first.")
]
ImageRule = Annotated[
    str | None, flag("--image-rule", help="fixed, internvl, llava_next, bluelm_v instead of the model's own.")
]
Seed = Annotated[int | None, flag("-s", "--seed", least=0, help="Same seed, same answer.")]
Isa = Annotated[str, flag("--isa", help="Instruction set, such as scalar or avx2, instead of the best there is.")]
Temp = Annotated[float | None, flag("--temp", help="Temperature; 0: always the likeliest token.")]
TopK = Annotated[int | None, flag("--top-k", help="Keep the k likeliest tokens; 0: all.")]
TopP = Annotated[float | None, flag("--top-p", help="Keep the likeliest tokens up to this probability.")]
MinP = Annotated[float | None, flag("--min-p", help="Drop tokens below this share of the likeliest.")]
RepeatPenalty = Annotated[float | None, flag("--repeat-penalty", help="Above 1: say the same less often.")]
RepeatLastN = Annotated[int | None, flag("--repeat-last-n", help="Tokens the penalty looks at; 0: all.")]
JsonSchema = Annotated[
    str | None,
    flag("--json-schema", metavar="SCHEMA", help="Hold the answer to a JSON schema: a file, JSON, or boxes."),
]
Draw = Annotated[str | None, flag("--draw", metavar="PNG", help="Draw the boxes of the answer on the picture.")]
Trace = Annotated[str | None, flag("--trace", metavar="JSON", help="What ran when, as a Chrome trace.")]
PromptCache = Annotated[
    str | None,
    flag("--prompt-cache", metavar="FILE", help="Go on from this file if it is there, and write it for next time."),
]
Json = Annotated[bool, flag("--json", help="The answer as JSON on stdout.")]
NoStats = Annotated[bool, flag("--no-stats", help="No line of statistics on stderr.")]

CONTROLS = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def sampling(
    max_tokens: int,
    seed: int | None,
    temp: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repeat_penalty: float | None,
    repeat_last_n: int | None,
) -> Options:
    """The flags under the library's names; None leaves the bundle's own value."""
    return {
        "max_tokens": max_tokens,
        "seed": seed,
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repeat_penalty,
        "repetition_window": repeat_last_n,
    }


def seeing(max_tiles: int | None, image_tokens: int | None, image_ms: float | None, image_rule: str | None) -> Options:
    """The flags that say how pictures are cut, under the library's names."""
    return {"max_tiles": max_tiles, "image_tokens": image_tokens, "image_ms": image_ms, "image_rule": image_rule}


def cameras(views: list[str]) -> dict[str, str]:
    """Camera -> path, of --view."""
    from eyespot.errors import UsageError

    found: dict[str, str] = {}
    for view in views:
        name, equals, path = view.partition("=")
        if not equals or name in found:
            raise UsageError("--view", found=view, expected="CAMERA=PATH, each camera once")
        found[name] = path
    return found


def drawn(answer: Answer, images: list[str], views: Mapping[str, str], out: str) -> None:
    """Writes the picture that an answer's boxes are about, with the boxes; says so, or that there are none."""
    from eyespot import multi_view
    from eyespot.errors import UsageError
    from eyespot.images import load
    from eyespot.run.draw import draw

    found = [(box.label, box.corners) for box in answer.boxes]
    if views:
        loaded = {name: load(path) for name, path in views.items()}
        image = multi_view.stitch(loaded)
        sizes = {name: (camera.width, camera.height) for name, camera in loaded.items()}
        found = [(b.label, multi_view.on_canvas(b.view, b.corners, sizes[b.view])) for b in answer.boxes]
    else:
        image = load(images[answer.boxes[0].picture if answer.boxes else -1]).image
    try:
        draw(image, found).save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"{out}: cannot be written ({error})", expected="a .png or .jpg in a directory") from None
    count = len(answer.boxes)
    line(f"{out}: {count or 'no'} box{'es' * (count != 1)}", sys.stderr)


def note_threads(info: Mapping[str, Any]) -> None:
    """Says on stderr when an engine has more threads than there are processors, which it does not refuse."""
    threads, processors = info["threads"], info["processors"]
    if threads > processors:
        line(f"eyespot: note: {threads} threads on {processors} processors are slower than {processors}", sys.stderr)


def show(piece: str, out: Any) -> None:
    """Writes a piece of text at once. A terminal gets no control characters: no model or file must steer it."""
    out.write(piece.translate(CONTROLS) if out.isatty() else piece)
    out.flush()


def line(text: str, out: Any) -> None:
    """Writes a line, as show() does."""
    show(f"{text}\n", out)
