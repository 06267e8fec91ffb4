"""`eyespot inspect`: what is in a bundle or a checkpoint, without running it."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eyespot.bundle import Bundle
    from eyespot.program import Program


def command(
    path: Annotated[
        str | None, typer.Argument(help="A bundle, a directory of safetensors, a .gguf file, or a hub id.")
    ] = None,
    program: Annotated[bool, typer.Option("--program", help="Print the program, op by op.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of a bundle.")] = False,
    image: Annotated[
        Path | None, typer.Option(help="A picture: how each rule would cut it, for the eyes of a bundle or in general.")
    ] = None,
    image_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens it may take, with --image.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PNG", help="The sheet of --image.")] = Path("cuts.png"),
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """Show what a bundle or a checkpoint holds, or how pictures are cut."""
    from eyespot.errors import UsageError

    if image is not None:
        if program or verify:
            raise UsageError("--image shows a picture", expected="no --program and no --verify beside it")
        _cuts(image, path, image_tokens, out, as_json)
    elif path is None:
        raise UsageError("nothing to inspect", expected="a bundle, a checkpoint, or --image")
    elif os.path.exists(os.path.join(path, "manifest.json")):  # unlike Path.exists() it never raises
        _bundle(Path(path), program, verify, as_json)
    elif verify:
        raise UsageError(f"{path}: not a bundle, so there are no hashes to verify")
    else:
        _checkpoint(path, program, as_json)


def _cuts(image: Path, path: str | None, tokens: int | None, out: Path, as_json: bool) -> None:
    from eyespot import images
    from eyespot.bundle import open_bundle
    from eyespot.cli.options import line
    from eyespot.cli.table import show_table
    from eyespot.errors import UsageError
    from eyespot.run import cuts

    own = None
    if path is not None:
        settings = open_bundle(path).settings.image
        if settings is None:
            raise UsageError(f"{path}: this model has no eyes")
        own = settings.resolution
    picture = images.load(image)
    found, refused = cuts.ways(picture, cuts.rules(own), tokens)
    try:
        cuts.sheet(picture, found).save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"{out}: cannot be written ({error})", expected="a .png or .jpg in a directory") from None
    if as_json:
        facts = {
            "picture": picture.name,
            "size": [picture.width, picture.height],
            "refused": refused,
            "sheet": str(out),
        }
        print(json.dumps(facts | {"rules": [way.to_json() for way in found]}))
        return
    rows = [
        (way.rule, way.tokens, f"{way.cut.columns} x {way.cut.rows}", way.cut.thumbnail or "-",
         "{}x{}".format(*way.cut.resized), f"{way.enlargement:.2f}")
        for way in found
    ]  # fmt: skip
    headers = ("rule", "tokens", "tiles", "thumbnail", "resized to", "enlargement")
    show_table(f"{picture.name} {picture.width}x{picture.height}", headers, rows)
    for name, why in refused.items():
        line(f"{name}: {why}", sys.stdout)
    line(f"sheet: {out}", sys.stdout)


def _bundle(path: Path, with_program: bool, verify: bool, as_json: bool) -> None:
    from eyespot.bundle import open_bundle
    from eyespot.cli.compile import show_report
    from eyespot.cli.options import line
    from eyespot.cli.table import show_table, size
    from eyespot.errors import EyespotError
    from eyespot.program import Program, dump
    from eyespot.program import verify as verify_program

    bundle = open_bundle(path, verify=verify)
    program = verify_program(Program.from_json(bundle.program.raw))
    facts = _facts(bundle, program)
    if as_json:
        print(json.dumps(facts | ({"program": dump(program)} if with_program else {})))
        return
    if with_program:
        line(dump(program), sys.stdout)
        return
    source = bundle.manifest["source"]
    made = f"from {source.get('name', '?')}, by eyespot {bundle.manifest['eyespot']}"
    line(f"{path}: {program.family}, {made}", sys.stdout)
    rows = [(name, size(f["bytes"]), _counts(f["schemes"])) for name, f in facts["files"].items()]
    show_table("files" + (", hashes verified" if bundle.verified else ""), ("file", "bytes", "weights"), rows)
    memory = facts["memory"]
    show_table(
        f"memory {size(memory['arena'])}", ("of it", "bytes"), [(k, size(v)) for k, v in memory.items() if k != "arena"]
    )
    outline = bundle.program
    print(f"layout {facts['layout']}, {facts['bits_per_weight']:.2f} bits a weight, scales counted")
    print(f"context {outline.ctx} tokens, prefill {outline.prefill_chunk} at a time, {outline.kv_type} cache")
    if bundle.manifest["report"] is not None:
        try:
            show_report(bundle.manifest["report"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EyespotError(f"manifest.json: report is malformed ({type(error).__name__}: {error})") from None


def _facts(bundle: Bundle, program: Program) -> dict[str, Any]:
    """Everything shown, as JSON. Sizes in bytes."""
    schemes: dict[str, Counter[str]] = {}
    for weight in program.weights.values():
        schemes.setdefault(f"{weight.part}.safetensors", Counter())[weight.scheme] += 1
    return {
        "kind": "bundle",
        "family": program.family,
        "info": asdict(program.info),
        "source": bundle.manifest["source"],
        "eyespot": bundle.manifest["eyespot"],
        "verified": bundle.verified,
        "layout": bundle.program.raw.get("layout"),
        "bits_per_weight": _bits_per_weight(program),
        "files": {n: {"bytes": f.bytes, "schemes": dict(schemes.get(n, {}))} for n, f in bundle.files.items()},
        "memory": _memory(bundle),
        "settings": bundle.settings.to_json(),
        "report": bundle.manifest["report"],
    }


def _bits_per_weight(program: Program) -> float:
    """Bits in the parts, scales and filling included, for one number of the model."""
    from eyespot.errors import EyespotError
    from eyespot.quantize.formats import SCHEMES, stored_bytes

    total = elements = 0
    for weight in program.weights.values():
        if weight.scheme not in SCHEMES:
            raise EyespotError(f"program.json: weight '{weight.name}' has an unknown scheme", found=weight.scheme)
        total += stored_bytes(weight.shape, SCHEMES[weight.scheme])
        elements += prod(weight.shape)
    return 8 * total / max(elements, 1)


def _memory(bundle: Bundle) -> dict[str, int]:
    """What takes how many bytes of the arena. Values are those of the larger graph: text and vision share them."""
    from eyespot.errors import EyespotError

    memory = bundle.program.raw["memory"]
    try:
        spans = {
            g: max((o + n for o, n in v.values()), default=0) - min((o for o, _ in v.values()), default=0)
            for g, v in memory["values"].items()
        }
        return {
            "arena": bundle.program.arena_bytes,
            "kv_cache": sum(layer["bytes"] for layer in memory["kv_cache"]["layers"]),
            **{f"values of {graph}": span for graph, span in spans.items()},
            "rope": sum(n for _, n in memory["rope"].values()),
            "int8 rows": memory["scratch"][1],
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EyespotError(f"program.json: the memory plan is malformed ({type(error).__name__}: {error})") from None


def _checkpoint(path: str, with_program: bool, as_json: bool) -> None:
    from eyespot import families
    from eyespot.checkpoint import open_checkpoint
    from eyespot.cli.options import line
    from eyespot.cli.table import count, show_table
    from eyespot.compile.settings import added_tokens
    from eyespot.program import dump

    checkpoint = open_checkpoint(path)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    built = families.build(checkpoint.config, shapes, token_ids=added_tokens(checkpoint.files))
    dtypes: dict[str, list[int]] = {}
    for tensor in checkpoint.tensors.values():
        entry = dtypes.setdefault(tensor.dtype, [0, 0])
        entry[0] += 1
        entry[1] += prod(tensor.shape)
    weights = sum(elements for _, elements in dtypes.values())
    if as_json:
        facts = {
            "kind": "checkpoint",
            "format": checkpoint.format,
            "family": built.program.family,
            "info": asdict(built.program.info),
            "weights": weights,
            "dtypes": {dtype: {"tensors": tensors, "elements": n} for dtype, (tensors, n) in dtypes.items()},
            "files": {name: len(data) for name, data in checkpoint.files.items()},
            "unknown_keys": list(built.unknown_keys),
            "warnings": list(checkpoint.warnings),
        }
        print(json.dumps(facts | ({"program": dump(built.program)} if with_program else {})))
        return
    if with_program:
        line(dump(built.program), sys.stdout)
        return
    info = built.program.info
    eyes = f", tiles of {info.tile_size} pixels in {info.tile_tokens} tokens" if info.tile_size else ", no eyes"
    line(f"{path}: {checkpoint.format}, family {built.program.family}, {count(weights)} weights{eyes}", sys.stdout)
    print(f"vocabulary {info.vocab_size}, width {info.hidden_size}, positions {info.max_position}")
    rows = [(dtype, tensors, count(n)) for dtype, (tensors, n) in sorted(dtypes.items())]
    show_table("stored as", ("dtype", "tensors", "weights"), rows)
    line(f"side files: {', '.join(checkpoint.files) or 'none'}", sys.stdout)
    for warning in checkpoint.warnings:
        line(f"warning: {warning}", sys.stdout)


def _counts(schemes: dict[str, int]) -> str:
    return ", ".join(f"{tensors} {scheme}" for scheme, tensors in sorted(schemes.items()))
