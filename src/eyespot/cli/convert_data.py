"""`eyespot convert-data TASK SOURCE -o OUT`: annotations and other formats become InternVL's jsonl."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    task: Annotated[
        str,
        typer.Argument(
            help="internvl: a set of any format. multiple-choice: rows {image, label}, or a directory for each class. "
            "grounding, region: rows {image, objects: {ref, bbox}}. multi-view: rows {views, objects}, six cameras "
            "stitched. frames: clips of a set become pictures. mix: a domain's set with general data beside it."
        ),
    ],
    source: Annotated[str, typer.Argument(help="The annotations, or the set.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The jsonl to write; pictures go to NAME_images/.")],
    format: Annotated[str | None, typer.Option(help="Format of a set.  [default: by its marks]")] = None,
    root: Annotated[Path | None, typer.Option(help="Where paths of pictures begin.  [default: beside SOURCE]")] = None,
    choices: Annotated[int, typer.Option(min=0, help="multiple-choice: classes offered; 0: all.")] = 0,
    letters: Annotated[bool, typer.Option("--letters", help="multiple-choice: answer with a letter.")] = False,
    drawn: Annotated[bool, typer.Option("--drawn", help="region: draw the box, do not write it.")] = False,
    max_frames: Annotated[int, typer.Option(min=1, help="frames: most of them in a record.")] = 40,
    general: Annotated[str | None, typer.Option(metavar="SET", help="mix: the general data.")] = None,
    ratio: Annotated[str | None, typer.Option(metavar="G:D", help="mix: general to domain, such as 1:4.")] = None,
    seed: Annotated[int, typer.Option("-s", "--seed", min=0, help="Same seed, same draws.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and count them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The counts as JSON.")] = False,
) -> None:
    """Turn annotations and other formats into training data: one jsonl that every trainer of InternVL reads."""
    from eyespot.cli.options import line
    from eyespot.train.data.sets import Skipped
    from eyespot.train.data.write import write_jsonl
    from eyespot.train.tasks.convert import Request, convert

    skipped = Skipped() if skip_bad else None
    request = Request(source, format, root, seed, choices, letters, drawn, max_frames, general, ratio, skipped)
    try:
        written = write_jsonl(convert(task, request), out, skipped)
    finally:
        for fault in skipped.shown if skipped else ():
            line(fault, sys.stderr)
    bad = skipped.total if skipped else 0
    if as_json:
        print(json.dumps({"output": str(out), "records": written, "skipped": bad}))
    else:
        line(f"{out}: {written} records" + (f", {bad} bad ones left out" if bad else ""), sys.stdout)
