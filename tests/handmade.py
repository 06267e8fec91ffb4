"""Small bundles written by hand from DESIGN.md, for tests of the engine: every op kind, any scheme, any KV type.

Uses Builder, the packing of quantize.formats and tensorfile alone; the memory plan is made here, with nothing shared,
so that the engine is not tested against the compiler's own idea of it. Sizes are odd on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eyespot import tensorfile
from eyespot.program import Builder, Dim, Info, Op, Program, size, verify
from eyespot.program.reference import Reference
from eyespot.quantize import formats

N, O, T, F = Dim(1, "n"), Dim(1, "o"), Dim(1, "t"), Dim(1, "f")  # noqa: E741
VOCAB, WIDTH, HEADS, KV_HEADS, HEAD_DIM, INNER = 131, 44, 4, 2, 10, 54
IMAGE, SIDE, PATCH, EYE_WIDTH, EYE_HEADS = 130, 24, 4, 33, 3
TILE_TOKENS = 9  # 6 x 6 patches, shuffled 2 x 2


def program(eyes: bool = True, window: int = 0, layers: int = 2, vocab: int = VOCAB, any_size: bool = False) -> Program:
    """A decoder of two layers and, with eyes, a ViT; any_size: one for pictures of any size, and tokens with positions.
    Between the two forms every op kind of OPS."""
    b = Builder("handmade")
    if eyes:
        with b.graph("vision"):
            _vision_at(b) if any_size else _vision(b)
    with b.graph("text"):
        tokens, rows = b.input("tokens", (N,), "i32"), b.input("rows", (O,), "i32")
        features = b.input("features", (F, WIDTH)) if eyes else ""
        if any_size:
            b.input("positions", (N, 3), "i32")
        with b.block("embed_tokens"):
            x = b("embed", tokens, weight=b.weight("embed.weight", (vocab, WIDTH)))
            if eyes:
                x = b("merge", x, tokens, features, token_id=IMAGE)
            x = b("scale", x, factor=1.5)
        for i in range(layers):
            with b.block(f"layer_{i:02d}"):
                x = _layer(b, x, i, window, any_size)
        with b.block("post"):
            x = b("select", x, rows)
            x = b("rms_norm", x, weight=b.weight("norm.weight", (WIDTH,)), eps=1e-5)
            b.outputs(b("head", x, weight=b.weight("head.weight", (vocab, WIDTH))))
    if any_size:
        return b.build(Info(vocab, WIDTH, 1 << 15, IMAGE, 2 * PATCH, 1, 6))
    info = Info(vocab, WIDTH, 1 << 15, IMAGE, SIDE, TILE_TOKENS) if eyes else Info(vocab, WIDTH, 1 << 15)
    return b.build(info)


def _layer(b: Builder, x: str, i: int, window: int, placed: bool) -> str:
    def weight(name: str, *shape: int) -> Any:
        return b.weight(f"layers.{i}.{name}", shape)

    row = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    h = b("rms_norm", x, weight=weight("norm1.weight", WIDTH), eps=1e-5)
    h = b("linear", h, weight=weight("qkv.weight", row, WIDTH), bias=weight("qkv.bias", row))
    frequencies = b.constant("inv_freq", [0.5 / 10**j for j in range(4)])
    rope: dict[str, Any] = {"heads": HEADS + KV_HEADS, "head_dim": HEAD_DIM, "rotary_dim": 8, "factor": 1.1}
    if placed:
        h = b("rope_at", h, "positions", inv_freq=frequencies, axis=b.constant("axis", [0, 1, 1, 2]), **rope)
    else:
        h = b("rope", h, inv_freq=frequencies, **rope)
    h = b(
        "attention", h, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, scale=0.3, layer=i, group=0,
        window=window if i else 0,
    )  # fmt: skip
    h = b("linear", h, weight=weight("o.weight", WIDTH, HEADS * HEAD_DIM))
    x = b("add", x, h, alpha=0.7)
    h = b("rms_norm", x, weight=weight("norm2.weight", WIDTH), eps=1e-5)
    h = b("swiglu", b("linear", h, weight=weight("gate_up.weight", 2 * INNER, WIDTH)))
    return b("add", x, b("linear", h, weight=weight("down.weight", WIDTH, INNER)), alpha=1.0)


def _vision(b: Builder) -> None:
    grid = SIDE // PATCH
    group, d = grid * grid + 1, EYE_WIDTH // EYE_HEADS
    pixels = b.input("pixels", (T, 3, SIDE, SIDE))
    with b.block("vision.embeddings", "vision"):
        x = b("patches", pixels, patch=PATCH)
        x = b("linear", x, weight=b.weight("v.patch.weight", (EYE_WIDTH, 3 * PATCH**2)))
        x = b("concat", x, prefix=b.weight("v.class", (1, EYE_WIDTH)), group=grid * grid)
        x = b("position", x, weight=b.weight("v.position", (group, EYE_WIDTH)))
    for i in range(2):
        with b.block(f"vision.layer_{i:02d}", "vision"):

            def weight(name: str, *shape: int, i: int = i) -> Any:
                return b.weight(f"v.{i}.{name}", shape)

            norm = {"weight": weight("norm.weight", EYE_WIDTH), "bias": weight("norm.bias", EYE_WIDTH)}
            h = b("layer_norm", x, **norm, eps=1e-6)
            h = b("linear", h, weight=weight("qkv.weight", 3 * EYE_WIDTH, EYE_WIDTH))
            h = b(
                "attention", h, heads=EYE_HEADS, kv_heads=EYE_HEADS, head_dim=d, scale=d**-0.5, layer=-1, group=group,
                window=0,
            )  # fmt: skip
            h = b("linear", h, weight=weight("o.weight", EYE_WIDTH, EYE_WIDTH))
            x = b("add", x, h, scale=weight("ls.weight", EYE_WIDTH), alpha=1.0)
            h = b("linear", x, weight=weight("fc1.weight", 30, EYE_WIDTH), bias=weight("fc1.bias", 30))
            h = b("gelu", h, tanh=bool(i))
            x = b("add", x, b("linear", h, weight=weight("fc2.weight", EYE_WIDTH, 30)), alpha=1.0)
    with b.block("vision.projector", "vision"):
        x = b("pixel_shuffle", b("slice", x, group=group, start=1), side=grid, factor=2)
        b.outputs(b("linear", x, weight=b.weight("v.projector.weight", (WIDTH, 4 * EYE_WIDTH))))


def _vision_at(b: Builder) -> None:
    """Tiles of one token, four patches each; the first layer sees windows, the second frames."""
    d, rows = EYE_WIDTH // EYE_HEADS, Dim(4, "t")
    pixels, places = b.input("pixels", (T, 6, 2 * PATCH, 2 * PATCH)), b.input("places", (rows, 2), "i32")
    runs = b.input("windows", (rows,), "i32"), b.input("frames", (rows,), "i32")
    with b.block("vision.embeddings", "vision"):
        x = b("linear", b("patches", pixels, patch=PATCH), weight=b.weight("v.patch.weight", (EYE_WIDTH, 6 * PATCH**2)))
    for i in range(2):
        with b.block(f"vision.layer_{i:02d}", "vision"):
            h = b("linear", x, weight=b.weight(f"v.{i}.qkv.weight", (3 * EYE_WIDTH, EYE_WIDTH)))
            h = b(
                "rope_at", h, places, inv_freq=b.constant("v.inv_freq", [1.0, 0.1, 1.0, 0.1]),
                axis=b.constant("v.axis", [0, 0, 1, 1]), heads=2 * EYE_HEADS, head_dim=d, rotary_dim=8, factor=1.0,
            )  # fmt: skip
            h = b("attention_runs", h, runs[i], heads=EYE_HEADS, kv_heads=EYE_HEADS, head_dim=d, scale=d**-0.5)
            x = b("add", x, b("linear", h, weight=b.weight(f"v.{i}.o.weight", (EYE_WIDTH, EYE_WIDTH))), alpha=1.0)
    with b.block("vision.projector", "vision"):
        x = b("pixel_shuffle", x, side=2, factor=2)
        b.outputs(b("linear", x, weight=b.weight("v.projector.weight", (WIDTH, 4 * EYE_WIDTH))))


def with_schemes(built: Program, scheme: str, table: str = "f32") -> Program:
    """Every matrix of a linear or head in `scheme`, the embedding in `table`, the rest f32."""
    roles = built.roles()

    def of(name: str) -> str:
        kinds = roles[name]
        if kinds == {("embed", "weight")}:
            return table
        return scheme if all(use in {("linear", "weight"), ("head", "weight")} for use in kinds) else "f32"

    return verify(replace(built, weights={n: replace(w, scheme=of(n)) for n, w in built.weights.items()}))


def random_weights(built: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        n: (rng.standard_normal(w.shape) * (1.2 / np.sqrt(w.shape[-1]) if len(w.shape) > 1 else 0.2)
            + (1 if n.endswith(("norm1.weight", "norm2.weight", "norm.weight", "ls.weight")) else 0)).astype(np.float32)
        for n, w in built.weights.items()
    }  # fmt: skip


def plan(built: Program, units: dict[str, int], ctx: int, kv_type: str) -> dict[str, Any]:
    """The plan with no two things sharing a byte."""
    top = 0

    def place(count: int) -> list[int]:
        nonlocal top
        at, top = top, top + -(-count // 64) * 64
        return [at, count]

    layers, rope, scratch, group_kv, partial = [], {}, 0, 0, 0

    def cache(keys: int, op: Op, kind: str) -> int:
        """Bytes of K, V and their scales, for whole blocks of 16 keys."""
        heads, d, keys = int(op.attrs["kv_heads"]), int(op.attrs["head_dim"]), -(-keys // 16) * 16
        array = -(-heads * keys * d * {"f32": 4, "f16": 2, "int8": 1}[kind] // 64) * 64
        return 2 * (array + (-(-heads * keys * 4 // 64) * 64 if kind == "int8" else 0))

    values: dict[str, dict[str, list[int]]] = {}
    for graph in built.graphs.values():
        values[graph.name] = {}
        for _, op in graph.ops():
            shape = graph.values[op.output].shape
            values[graph.name][op.output] = place(4 * size(shape, units))
            if op.kind in ("linear", "head"):
                weight = built.weights[op.weights["weight"]]
                bits, _, rest = weight.scheme.partition("A8")
                if bits in ("W4", "W8"):
                    k, group = weight.shape[1], int("".join(filter(str.isdigit, rest)) or 0)
                    row = -(-k // 128) * 128 + 8 * (-(-k // group) if group else 1)
                    scratch = max(scratch, size(shape[:1], units) * row)
            if op.kind in ("rope", "rope_at") and graph.name not in rope:
                rope[graph.name] = place(size(shape[:1], units) * int(op.attrs["rotary_dim"]) * 4)
            if op.kind == "attention_runs":  # each run has whole blocks of keys, and one block more is allowed
                group_kv = max(group_kv, cache(-(-size(shape[:1], units) // 16) * 16 + 16, op, "f32"))
            if op.kind == "attention" and (group := int(op.attrs["group"])):
                group_kv = max(group_kv, size(shape[:1], units) // group * cache(group, op, "f32"))
            if op.kind == "attention" and op.attrs["layer"] != -1:
                at, count = place(cache(ctx, op, kv_type))
                heads, d = int(op.attrs["kv_heads"]), int(op.attrs["head_dim"])
                layers.append({"offset": at, "bytes": count, "kv_heads": heads, "head_dim": d})
                partial = max(partial, int(op.attrs["heads"]) * -(-ctx // 256) * (d + 2) * 4)
    beside = {"scratch": place(scratch), "group_kv": place(group_kv), "partial": place(partial)}
    return {
        "units": units, "ctx": ctx, "arena_bytes": top, "kv_cache": {"type": kv_type, "layers": layers},
        "values": values, "rope": rope, **beside,
    }  # fmt: skip


@dataclass
class Handmade:
    """A bundle on disk and the numbers in it, as the engine will see them."""

    path: Path
    program: Program
    seen: dict[str, np.ndarray]
    kv_type: str

    def reference(self, trace: Callable[..., None] | None = None) -> Reference:
        return Reference(self.program, self.seen.__getitem__, self.kv_type, trace)


def write(
    path: Path,
    built: Program,
    weights: dict[str, np.ndarray] | None = None,
    kv_type: str = "f32",
    ctx: int = 64,
    units: dict[str, int] | None = None,
    memory: dict[str, Any] | None = None,
) -> Handmade:
    weights = random_weights(built) if weights is None else weights
    units = units or {"n": 8, "o": 2, "t": 2}
    path.mkdir(parents=True)
    seen: dict[str, np.ndarray] = {}
    for part in built.parts():
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        chunks = []
        for weight in built.weights.values():
            if weight.part != part:
                continue
            scheme = formats.parse(weight.scheme)
            rows = weights[weight.name].reshape(-1, weight.shape[-1]) if len(weight.shape) > 1 else weights[weight.name]
            packed = formats.pack(rows, scheme) if scheme.name != "f32" else rows
            seen[weight.name] = formats.unpack(packed, scheme, rows.shape) if scheme.name != "f32" else rows
            seen[weight.name] = seen[weight.name].reshape(weight.shape)
            shapes[weight.name] = formats.stored_as(weight.shape, scheme)
            chunks.append((weight.name, packed))
        with open(path / f"{part}.safetensors", "wb") as file:
            tensorfile.write(file, shapes, chunks)
    text = {**built.to_json(), "layout": formats.LAYOUT, "memory": memory or plan(built, units, ctx, kv_type)}
    (path / "program.json").write_text(json.dumps(text))
    seal(path)
    return Handmade(path, built, seen, kv_type)


def seal(path: Path) -> None:
    """manifest.json over the files as they stand."""
    files = {f.name: {"bytes": f.stat().st_size, "sha256": ""} for f in path.iterdir() if f.name != "manifest.json"}
    (path / "manifest.json").write_text(
        json.dumps({"format": 2, "eyespot": "", "source": {}, "files": files, "report": None})
    )
