"""`eyespot demo`: from the checkpoint in the package to answers about a picture, in seconds and without a download."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

MODEL = "eyespot-nano"
PICTURE = "example.png"  # beside the model's files
# Chosen because these answers are right; six of seven to the test split are. Its card has the scores.
QUESTIONS = ("Is the cat left of the guitar?", "What is left of the guitar?", "In which corner is the guitar?")
FIND = "guitar"


def command(
    image: Annotated[Path | None, typer.Option(help="Another picture; then with -p.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("-p", "--prompt", help="Another question; may be given again.")
    ] = None,
    find: Annotated[str, typer.Option(help="What to look for and draw a box around.")] = FIND,
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture with the box.")] = Path("eyespot-demo.png"),
    scheme: Annotated[str, typer.Option(help="As compile's.")] = "W8A8-g32",
    threads: Annotated[int, typer.Option("-t", "--threads", min=0, help="0: every processor.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Answers, boxes and times as JSON.")] = False,
) -> None:
    """Compile eyespot-nano, ask it three questions about a picture, find an object and draw its box."""
    from eyespot import images
    from eyespot.checkpoint import open_checkpoint
    from eyespot.checkpoint.source import EMBEDDED
    from eyespot.compile import Options, compile_model
    from eyespot.errors import UsageError
    from eyespot.run.draw import draw
    from eyespot.run.model import load

    checkpoint = EMBEDDED[MODEL]  # whatever the working directory has of that name
    picture = images.load(image or checkpoint / PICTURE)
    record: dict[str, object] = {"model": MODEL, "scheme": scheme, "picture": picture.name, "answers": []}
    told = (lambda text: None) if as_json else print
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        made = compile_model(open_checkpoint(checkpoint), Path(folder) / "bundle", Options(scheme=scheme))
        record |= {"bundle_bytes": made.bundle_bytes, "compile_s": time.perf_counter() - started}
        size = f"{made.bundle_bytes / 1e6:.1f} MB, {made.bits_per_weight:.1f} bits a weight"
        told(f"{MODEL}: compiled in {time.perf_counter() - started:.1f} s, {size}\n{picture.name}:")
        answers = []
        with load(made.path, threads) as model:
            asked = [*(prompt or QUESTIONS), *([f"Detect <ref>{find}</ref>"] if find else [])]
            for question in asked:
                answer = model.generate(question, images=[picture], temperature=0.0, max_tokens=64)
                answers.append({"question": question, **answer.to_json()})
                t = answer.timings
                speed = f"first token {1e3 * (t.first_token_s or 0):.0f} ms, {t.tokens_per_s or 0:.0f} tokens/s"
                kept = f", {t.reused_tokens} tokens from the cache" if t.reused_tokens else ""
                told(f"  {question}\n    {answer.text}    [{answer.image_tokens} image tokens{kept}, {speed}]")
    found = answer.boxes if find else ()
    if found:
        try:
            draw(picture.image, [(box.label, box.corners) for box in found]).save(out)
        except (OSError, ValueError) as error:
            raise UsageError(f"{out}: cannot be written ({error})", expected="a .png or .jpg in a directory") from None
        told(f"{out}: {find} at {', '.join(str([round(v) for v in box.corners]) for box in found)}, in pixels")
    elif find:
        print(f"eyespot: no box in the answer to {asked[-1]!r}", file=sys.stderr)
    if as_json:
        print(json.dumps(record | {"answers": answers, "drawn": str(out) if found else None}, ensure_ascii=False))
