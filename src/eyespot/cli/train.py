"""`eyespot train RECIPE`: one stage of training; `eyespot train --check-data SET`: what is wrong with a set of data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eyespot.cli.distill import EXPORT, SET

if TYPE_CHECKING:
    from eyespot.train.data.check import Check


def command(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML file; docs/training.md explains its keys.")] = None,
    set: Annotated[list[str] | None, SET] = None,
    export: Annotated[bool, EXPORT] = False,
    check_data: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="The set to check: .jsonl, .json, .tar, a directory of shards, or FILE#NAME for one set of a meta "
            "file or dataset_info.json.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="internvl, meta, llava, swift, llama_factory or webdataset.  [default: by the set's marks]"),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where paths of pictures begin.  [default: beside the set, or as it says]")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json or a checkpoint, with its image rule: counts tokens.")
    ] = None,
    ctx_size: Annotated[
        int | None, typer.Option("-c", "--ctx-size", min=1, help="A longer sample is a fault; needs --tokenizer.")
    ] = None,
    max_tiles: Annotated[
        int | None, typer.Option(min=1, help="Most tiles of a sample's pictures.  [default: the model's]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read the headers of pictures, not the pixels.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count bad records, and call the rest good.")] = False,
    page: Annotated[Path, typer.Option(metavar="PNG", help="Where ten samples are drawn.")] = Path("samples.png"),
    no_page: Annotated[bool, typer.Option("--no-page", help="Draw no samples.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was found as JSON.")] = False,
) -> None:
    """Train a model by a recipe, or check a set of training data: every fault with file and line, token counts, and ten
    samples to look at."""
    from eyespot.cli.options import line
    from eyespot.errors import EyespotError, UsageError

    if (recipe is None) == (check_data is None):
        raise UsageError("nothing to train, or too much", expected="RECIPE, or --check-data SET")
    checking = {"--format": format, "--root": root, "--tokenizer": tokenizer, "--ctx-size": ctx_size,
                "--max-tiles": max_tiles, "--quick": quick or None, "--no-page": no_page or None}  # fmt: skip
    training = {"--set": set, "--export": export or None}
    idle = [flag for flag, given in (checking if recipe else training).items() if given is not None]
    if idle:
        raise UsageError(f"{', '.join(idle)} without effect here", expected="--check-data" if recipe else "RECIPE")
    if recipe is not None:
        from eyespot.cli.recipe import carry_out

        carry_out(recipe, set or (), skip_bad, export, as_json, teacher=False)
        return
    assert check_data is not None
    from eyespot.train.data.check import Check
    from eyespot.train.data.sets import open_set

    if tokenizer is None and (ctx_size is not None or max_tiles is not None):
        raise UsageError("--ctx-size and --max-tiles count tokens", expected="--tokenizer too")
    encoder = None
    if tokenizer is not None:
        from eyespot.train.data.encode import open_encoder

        encoder = open_encoder(tokenizer, max_tiles)
    check = Check(open_set(check_data, format, root), encoder, ctx_size, decode=not quick)
    found: list[dict[str, Any]] = []
    with _bar(as_json, check.rows) as progress:
        for fault in check.faults(progress):
            if as_json:
                found.append({"file": fault.place.file, "line": fault.place.line, "what": fault.what})
            else:
                line(str(fault), sys.stdout)
    drawn = bool(check.samples) and not no_page
    if drawn:
        from eyespot.train.data.page import draw

        draw(check.samples, page)
    if as_json:
        print(json.dumps({**check.summary(), "faults": found, "page": str(page) if drawn else None}))
    else:
        _show(check, page if drawn else None)
    if check.good == 0:
        raise EyespotError(f"{check_data}: no sound record", found=f"{check.bad} bad ones")
    if check.bad and not skip_bad:
        raise EyespotError(
            f"{check_data}: {check.bad} of {check.records} records are bad", expected="none, or --skip-bad"
        )


@contextmanager
def _bar(quiet: bool, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr when somebody is looking; rich honours NO_COLOR."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("records", total=total)
        yield lambda done: bar.update(task, completed=done)


def _show(check: Check, page: Path | None) -> None:
    from eyespot.cli.options import line
    from eyespot.cli.table import show_table

    found = check.summary()
    for warning in found["warnings"]:
        line(f"warning: {warning}", sys.stdout)
    for key, times in found["unused_keys"].items():
        line(f"warning: {key} of {times} records is not used", sys.stdout)
    repeated = f" in {found['samples']} samples" if found["samples"] != found["records"] else ""
    clips = f", {found['clips']} clips" if found["clips"] else ""
    print(f"{found['records']} records{repeated}, {found['pictures']} pictures{clips}")
    print(f"{found['good']} good, {found['bad']} bad")
    if found["lengths"]:
        headers = ("of a record", *next(iter(found["lengths"].values())))
        rows = [(NAMES[name], *counts.values()) for name, counts in found["lengths"].items()]
        show_table("tokens", headers, rows)
    if page is not None:
        line(f"{len(check.samples)} samples drawn: {page}", sys.stdout)


NAMES = {"tokens": "all", "learned": "learned (answers)", "image_tokens": "pictures"}
