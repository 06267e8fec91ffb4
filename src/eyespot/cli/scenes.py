"""`eyespot scenes`: draws a set of pictures with exact answers to disk. The drawing is in train/scenes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Argument(help="Directory of the set.")],
    split: Annotated[str, typer.Option(help="train, validation or test: no layout is in two of them.")] = "train",
    count: Annotated[int, typer.Option("-n", "--count", help="Scenes.")] = 1000,
    seed: Annotated[int, typer.Option("-s", "--seed", help="Same seed, same scenes.")] = 0,
    questions: Annotated[int, typer.Option(help="Most questions about one scene, a row each.")] = 1,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given again.")] = None,
    side: Annotated[list[int] | None, typer.Option(help="Pixels a side; may be given again.  [160 192 224]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, as JSON.")] = False,
) -> None:
    """Draw pictures with questions and exact answers: emoji, shapes, words, charts, pairs, clips."""
    from eyespot.cli.extras import needs
    from eyespot.cli.progress import progress

    with needs("train"):
        from eyespot.train.scenes import Scenes, files
        from eyespot.train.scenes.canvas import SIDES
    weights = None if task is None else dict.fromkeys(task, 1.0)
    scenes = Scenes(seed, split, questions, weights, tuple(side) if side else SIDES)
    with progress("drawing", count, as_json) as done:
        path = files.write(scenes, out, count, done)
    if as_json:
        print(json.dumps({"annotation": str(path), "root": str(out), "split": split, "scenes": count, "seed": seed}))
    else:
        print(f"{path}: {count} scenes", file=sys.stderr)
