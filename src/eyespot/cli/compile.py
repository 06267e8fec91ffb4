"""`eyespot compile`: flags into Options, a bar while it works, a summary when it is done. The work is in compile/."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eyespot.compile import CompileResult
    from eyespot.quantize.report import EngineLike


def command(
    source: Annotated[
        str, typer.Argument(help="A directory of safetensors, a .gguf file, a hub id org/name, or eyespot-nano.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Directory of the bundle.")] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="f32, f16, bf16, W8A16, W8A8 [-g32, -g64, -g128], W4A16, W4A8 [-g32, -g64, -g128] [-asym]: bits of "
            "Weights and of what they multiply, numbers that share a scale, a minimum beside it. The head of a 4-bit "
            "model takes 8 bits. 'gguf': every matrix as the GGUF file has it.  [default: W8A8-g32]"
        ),
    ] = None,
    vision_scheme: Annotated[
        str | None, typer.Option(help="Scheme of the vision part; W8A8 is the fast one.  [default: W8A8]")
    ] = None,
    kv_cache: Annotated[str, typer.Option(help="f16, int8 or f32.")] = "f16",
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Tokens of context.  [default: 1024; with eyes, one picture and 768]"),
    ] = None,
    prefill_chunk: Annotated[int, typer.Option(help="Most tokens of one prefill step.")] = 128,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side of a tile.  [default: the model's]")] = None,
    image_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a picture.")] = None,
    tensor_scheme: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX=SCHEME",
            help="Override for matching tensors, such as 'mlp.fc2=W8A16' or '^post/=f16'; first match wins.",
        ),
    ] = None,
    check: Annotated[str, typer.Option(help="Compare with float32: none, layers or full.")] = "none",
    check_prompt: Annotated[str, typer.Option(help="Text the check runs on.")] = "1+1=",
    min_cosine: Annotated[
        float | None, typer.Option(help="Fail, and write nothing, when a block is further from float32.")
    ] = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", min=1, help="Default: one a core.")] = None,
    dump: Annotated[
        str | None,
        typer.Option(metavar="PASS", help="Print the program after a pass (build, recipe, schedule) and stop."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
) -> None:
    """Compile a checkpoint into a bundle."""
    from eyespot.checkpoint import open_checkpoint
    from eyespot.cli.progress import progress
    from eyespot.compile import Options, compile_model, dump_after
    from eyespot.errors import UsageError

    default = Options()
    options = Options(
        scheme=scheme or default.scheme,
        vision_scheme=vision_scheme or default.vision_scheme,
        kv_cache=kv_cache,
        ctx_size=ctx_size,
        prefill_chunk=prefill_chunk,
        image_size=image_size,
        image_tokens=image_tokens,
        tensor_schemes=tuple(tensor_scheme or ()),
        check=check,
        check_prompt=check_prompt,
        min_cosine=min_cosine,
        threads=threads or 0,
    )
    if dump is not None:
        print(dump_after(open_checkpoint(source), options, dump))
        return
    if out is None:
        raise UsageError("no output given", expected="-o DIR")
    with progress("compiling", quiet=as_json) as done:
        result = compile_model(
            open_checkpoint(source), out, options, lambda path: _open_engine(path, threads or 0), done
        )
    for warning in result.warnings:
        print(f"eyespot: warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(_summary(result)))
    else:
        _show(result)


def _open_engine(path: Path, threads: int) -> EngineLike:
    from eyespot.run.engine import Engine

    return Engine(path, threads)


def _summary(result: CompileResult) -> dict[str, Any]:
    return {
        "bundle": str(result.path),
        "family": result.family,
        "bytes": result.bundle_bytes,
        "bits_per_weight": result.bits_per_weight,
        "schemes": {name: asdict(total) for name, total in result.schemes.items()},
        "arena_bytes": result.memory.arena_bytes,
        "kv_bytes": result.memory.kv_bytes,
        "ctx_size": result.memory.ctx,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
        "warnings": list(result.warnings),
        "report": result.report,
    }


def _show(result: CompileResult) -> None:
    from eyespot.cli.table import count, show_table, size

    memory = result.memory
    rows = [
        (
            name,
            total.weights,
            count(total.elements),
            size(total.bytes),
            f"{8 * total.bytes / total.elements:.2f}",
        )
        for name, total in result.schemes.items()
    ]
    show_table(f"{result.path}: {result.family}", ("scheme", "tensors", "weights", "bytes", "bits"), rows)
    print(f"bundle {size(result.bundle_bytes)}, {result.bits_per_weight:.2f} bits a weight")
    cache = f"{size(memory.kv_bytes)} {memory.kv_type} cache of {memory.ctx} tokens"
    print(f"memory {size(memory.arena_bytes)}, of it {cache}")
    print(f"took {result.seconds:.1f} s, peak memory {size(result.peak_bytes)}")
    if result.report is not None:
        show_report(result.report)


def show_report(report: Mapping[str, Any]) -> None:
    """Prints the accuracy report of a manifest."""
    from eyespot.cli.options import line
    from eyespot.cli.table import show_table

    rows = [
        (row["phase"], row["block"], f"{row['cosine']:.6f}", f"{row['relative_error']:.2e}") for row in report["blocks"]
    ]
    show_table(f"beside float32, {report['tokens']} tokens", ("phase", "block", "cosine", "relative error"), rows)
    print(f"lowest cosine {report['min_cosine']:.6f}")
    if worst := report.get("worst", []):
        blocks = ", ".join(f"{row['block']} ({row['phase']})" for row in worst)
        line(f"the error grows most at {blocks}", sys.stdout)
        line(f"a finer scheme for such a block: --tensor-scheme '{worst[0]['pattern']}=f16'", sys.stdout)
    if (best := report.get("next_token")) is not None:
        pairs = [
            (
                a["token"],
                repr(a["text"]),
                f"{a['probability']:.4f}",
                b["token"],
                repr(b["text"]),
                f"{b['probability']:.4f}",
            )
            for a, b in zip(best["float"], best["bundle"], strict=True)
        ]
        headers = ("float32", "", "probability", "bundle", "", "probability")
        show_table(f"likeliest tokens after {report['prompt']!r}", headers, pairs)
        print(f"KL divergence {best['kl']:.6f} nats")
