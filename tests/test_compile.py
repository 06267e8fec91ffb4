"""The memory plan keeps every value until it is read; a compile gives the checkpoint's weights, or nothing at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from eyespot import tensorfile
from eyespot.bundle import open_bundle
from eyespot.checkpoint import open_checkpoint
from eyespot.compile import Options, compile_model, dump_after
from eyespot.compile import weights as weights_module
from eyespot.compile.schedule import IN_PLACE, KV_TYPES, Memory, check, plan
from eyespot.errors import EyespotError, GateFailed, UsageError
from eyespot.program import Builder, Dim, Info, Program, size, verify
from eyespot.program.reference import RULES, Reference
from eyespot.program.transforms import materialize
from eyespot.quantize.formats import SCHEMES, unpack
from test_program import toy, weights
from test_quantize import Peer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Random graphs: values read again long after, ops that may work in place and ops that may not, two graphs."""
    b = Builder("random")
    width = draw(st.sampled_from([2, 6, 16]))

    def grow(values: list[str], block: str, steps: int) -> None:
        with b.block(block):
            for i in range(steps):
                x, y = draw(st.sampled_from(values)), draw(st.sampled_from(values))
                match draw(st.integers(0, 5)):
                    case 0:
                        x = b("gelu", x, tanh=False)
                    case 1:
                        x = b("add", x, y, alpha=0.5)
                    case 2:
                        x = b("scale", x, factor=0.75)
                    case 3:
                        x = b("rms_norm", x, weight=b.weight(f"{block}.{i}.norm", (width,)), eps=1e-5)
                    case 4:
                        x = b("linear", x, weight=b.weight(f"{block}.{i}.up", (2 * width, width)))
                        x = b("swiglu", x)
                    case 5:
                        x = b("linear", x, weight=b.weight(f"{block}.{i}.square", (width, width)))
                values.append(x)

    with b.graph("text"):
        tokens, rows = b.input("tokens", (Dim(1, "n"),), "i32"), b.input("rows", (Dim(1, "o"),), "i32")
        with b.block("embed_tokens"):
            values = [b("embed", tokens, weight=b.weight("table", (9, width)))]
        grow(values, "layer_00", draw(st.integers(0, 12)))
        with b.block("choose"):
            chosen = [b("select", draw(st.sampled_from(values)), rows) for _ in range(2)]
        grow(chosen, "post", draw(st.integers(0, 4)))
        with b.block("head"):
            out = b("head", chosen[-1], weight=b.weight("head", (9, width)))
        b.outputs(out)
    return verify(b.build(Info(9, width, 64)))


class Arena:
    """Runs a graph with every value in one block of bytes, where the plan says; NaN elsewhere."""

    def __init__(self, program: Program, memory: Memory, weights: dict[str, np.ndarray]) -> None:
        self.program, self.memory, self.weights = program, memory, weights
        self.bytes = np.full(memory.arena_bytes // 4 + 1, np.nan, np.float32)

    def view(self, graph: str, name: str, units: dict[str, int]) -> np.ndarray:
        offset, room = self.memory.values[graph][name]
        shape = self.program.graphs[graph].values[name].shape
        count = size(shape, units)
        assert count * 4 <= room
        flat = self.bytes[offset // 4 : offset // 4 + count]
        return flat.reshape([d.per * units[d.of] if isinstance(d, Dim) else d for d in shape])

    def run(self, tokens: list[int], wanted: list[int]) -> np.ndarray:
        graph, logits = self.program.graphs["text"], []
        looped = [
            op
            for _, op in graph.ops()
            if any(isinstance(d, Dim) and d.of == "o" for d in graph.values[op.output].shape)
        ]
        units = {"n": len(tokens), "o": 1, "t": 1}
        for op in (op for _, op in graph.ops() if op not in looped):
            self.step(op, units, {"tokens": np.array(tokens, np.int32)})
        for row in wanted:  # one wanted row at a time, as the plan's units say
            self.view("text", "rows", units).view(np.int32)[:] = row
            for op in looped:
                self.step(op, units, {"rows": self.view("text", "rows", units).view(np.int32)})
            logits.append(self.view("text", graph.outputs[0], units).copy())
        return np.concatenate(logits)

    def step(self, op: Any, units: dict[str, int], given: dict[str, np.ndarray]) -> None:
        inputs = [given[n] if n in given else self.view("text", n, units) for n in op.inputs]
        weights = {role: self.weights[name] for role, name in op.weights.items()}
        self.view("text", op.output, units)[:] = RULES[op.kind](None, op, inputs, weights)


@given(program=programs(), seed=st.integers(0, 1000))
@settings(max_examples=120, deadline=None)
def test_the_plan_keeps_every_value_until_it_is_read(program: Program, seed: int) -> None:
    memory = plan(program, 32, 5, "f16")  # which `check` has replayed
    w = {n: 0.5 * v for n, v in weights(program, seed).items()}
    tokens, wanted = [1, 8, 3, 3, 0], [4, 0, 2]
    found = Arena(program, memory, w).run(tokens, wanted)
    expected = Reference(program, w.__getitem__).prefill(tokens, want=5)[wanted]
    # a product of one row sums in another order; bytes overwritten would show as NaN or as another value altogether
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max()))


@given(program=programs(), data=st.data())
@settings(max_examples=120, deadline=None)
def test_a_plan_with_a_value_moved_onto_a_live_one_is_caught(program: Program, data: st.DataObject) -> None:
    memory = plan(program, 32, 5, "f16")
    graph = program.graphs["text"]
    op = data.draw(st.sampled_from([op for _, op in graph.ops() if op.kind in ("linear", "swiglu", "select", "head")]))
    victim = op.inputs[0]  # alive while `op` writes, and not one it may work upon
    moved = dict(memory.values["text"])
    moved[op.output] = (moved[victim][0], moved[op.output][1])
    with pytest.raises(EyespotError, match="plan"):
        check(program, replace(memory, values={"text": moved}))


def test_what_the_last_slice_reads_outlives_the_first() -> None:
    """The hidden state that `select` reads is needed for every wanted row, so logits may not lie on it."""
    program = toy(1, width=8, vocab=40)
    memory = plan(program, 32, 4, "f16")
    hidden, logits = memory.values["text"]["layer_00.add"], memory.values["text"]["post.head"]
    assert hidden[0] + hidden[1] <= logits[0] or logits[0] + logits[1] <= hidden[0]


def test_plan_of_a_model_with_eyes(tmp_path: Path) -> None:
    models.tiny_internvl(tmp_path / "c")
    options = Options(vision_scheme="W8A8", kv_cache="int8", ctx_size=50, prefill_chunk=64)
    compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", options)
    program = open_bundle(tmp_path / "b").program
    memory = program.raw["memory"]
    assert memory["units"] == {"n": 50, "o": 1, "t": 1}  # a chunk is no longer than the context
    text, vision = memory["values"]["text"], memory["values"]["vision"]
    assert set(text) == {op["out"] for b in program.raw["graphs"]["text"]["blocks"] for op in b["ops"]} | {"rows"}
    assert text["layer_01.qkv_proj"] == text["layer_01.rope"]  # in place
    starts = [min(offset for offset, _ in values.values()) for values in (text, vision)]
    assert max(starts) < min(max(o + n for o, n in values.values()) for values in (text, vision))  # they overlap
    head_dim, up = 10, lambda n: -(-n // 64) * 64
    layers = memory["kv_cache"]["layers"]
    assert len(layers) == 3
    assert {k: v for k, v in layers[0].items() if k != "offset"} == {
        "bytes": 2 * up(2 * 64 * head_dim) + 2 * up(4 * 2 * 64),  # room for whole blocks of 16 keys
        "kv_heads": 2,
        "head_dim": head_dim,
    }
    spans = sorted((layer["offset"], layer["bytes"]) for layer in layers)
    assert all(a[0] + a[1] <= b[0] for a, b in pairwise(spans))
    assert memory["rope"] == {"text": [memory["rope"]["text"][0], 4 * 50 * head_dim]}
    needed, shared = [], []
    for op in (op for graph in program.raw["graphs"].values() for block in graph["blocks"] for op in block["ops"]):
        rows = Dim.parse(op["shape"][0])
        count = rows.per * memory["units"][rows.of]
        if op["kind"] in ("linear", "head"):
            weight = program.raw["weights"][op["weights"]["weight"]]
            scheme, k = SCHEMES[weight["scheme"]], weight["shape"][1]
            assert scheme.activation_bits == 8  # W8A8-g32 and W8A8
            groups = -(-k // scheme.group) if scheme.group else 1
            needed.append(count * (-(-k // 128) * 128 + 8 * groups))
        if op["kind"] == "attention" and op["attrs"]["group"]:
            a = op["attrs"]
            keys = -(-a["group"] // 16) * 16
            shared.append(count // a["group"] * 2 * up(a["kv_heads"] * keys * a["head_dim"] * 4))
    assert memory["scratch"][1] == max(needed)
    assert memory["group_kv"][1] == max(shared)
    heads = next(
        op["attrs"]["heads"]
        for block in program.raw["graphs"]["text"]["blocks"]
        for op in block["ops"]
        if op["kind"] == "attention"
    )
    assert memory["partial"][1] == 4 * heads * (head_dim + 2)  # 50 tokens are one span
    for offset in [o for values in (text, vision) for o, _ in values.values()]:
        assert offset % 64 == 0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((0, 8, "f16"), "context size is out of range; found 0; expected 1 to 64"),
        ((65, 8, "f16"), "expected 1 to 64"),
        ((64, 0, "f16"), "prefill chunk"),
        ((64, 4097, "f16"), "prefill chunk"),
        ((64, 8, "int4"), "unknown KV cache type; found int4; expected f32, f16, int8"),
    ],
)
def test_plans_that_cannot_be_made(arguments: tuple, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        plan(toy(1), *arguments)


def test_kv_types_and_in_place_ops_are_those_of_the_design() -> None:
    design = (Path(__file__).parent.parent / "DESIGN.md").read_text()
    assert all(name in design for name in KV_TYPES)
    for op in IN_PLACE - {"rms_norm", "layer_norm"}:
        assert f"`{op}`" in design.split("share its bytes")[1].splitlines()[0]


class Stored:
    """The weights of a bundle, dequantized from its parts: what the engine multiplies with."""

    def __init__(self, path: Path) -> None:
        self.program = Program.from_json(json.loads((path / "program.json").read_text()))
        self.parts = {name: tensorfile.TensorFile(path / f"{name}.safetensors") for name in self.program.parts()}

    def __getitem__(self, name: str) -> np.ndarray:
        weight = self.program.weights[name]
        part, scheme = self.parts[weight.part], SCHEMES[weight.scheme]
        return unpack(part.raw(name), scheme, weight.shape).reshape(weight.shape)


def truth(checkpoint: Any) -> tuple[Program, dict[str, np.ndarray]]:
    from eyespot.families import build

    program = build(checkpoint.config, {k: v.shape for k, v in checkpoint.tensors.items()}).program
    return program, {w.name: materialize(w, checkpoint.read) for w in program.weights.values()}


GROUPED = {"W8A8-g32": 0.01, "W8A16-g32": 0.01, "W4A16-g64": 0.18, "W4A8-g32-asym": 0.12}
ERROR = {"f32": 0, "bf16": 4e-3, "W8A16": 0.02, "W8A8": 0.02, **GROUPED}


@pytest.mark.parametrize("family", models.TINY)
def test_every_family_compiles(tmp_path: Path, family: str) -> None:
    models.TINY[family](tmp_path / "c", seed=3, dtype="bfloat16")
    checkpoint = open_checkpoint(tmp_path / "c")
    program, w = truth(checkpoint)
    choices = (
        ("f32", "f32", {"f32"}),
        ("W8A16", "f16", {"W8A16"}),
        ("W8A8-g32", "f16", {"W8A8-g32"}),
        ("W4A16", "int8", {"W4A16-g64", "W8A16-g32"}),  # layers, head
        ("W4A8-g32-asym", "f16", {"W4A8-g32-asym", "W8A8-g32"}),
    )
    for scheme, kv, matrices in choices:
        options = Options(scheme=scheme, kv_cache=kv, vision_scheme="f32" if scheme == "f32" else "W8A8")
        result = compile_model(checkpoint, tmp_path / "b", options)
        bundle = open_bundle(tmp_path / "b", verify=True)
        stored = Stored(tmp_path / "b")
        verify(stored.program)
        used = set()
        for name, expected in w.items():
            kind = stored.program.weights[name].scheme
            used.add(kind)
            error = np.linalg.norm(stored[name] - expected) / np.linalg.norm(expected)
            assert error <= ERROR[kind], (name, kind, error)
        assert set(result.schemes) == used
        eyes = {"W8A8"} if "vision" in program.graphs else set()
        assert used == ({"f32"} if scheme == "f32" else {"f32", "bf16"} | matrices | eyes)
        assert result.bundle_bytes >= sum(total.bytes for total in result.schemes.values())
        assert not result.warnings
        tokens = [5, 6, 7, 1]
        got = Reference(stored.program, stored.__getitem__, kv).prefill(tokens)[0]
        expected = Reference(program, w.__getitem__).prefill(tokens)[0]
        cosine = got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)
        assert "W4" in scheme or cosine > (0.999999 if scheme == "f32" else 0.99)  # 4 bits are noise to random weights
    ids = models.token_ids(images="vision" in program.graphs)
    assert bundle.settings.stop_tokens == tuple(sorted((ids["<|im_end|>"], ids["<|endoftext|>"])))
    assert bundle.settings.sampling.temperature == 0
    assert (bundle.settings.image is not None) == ("vision" in program.graphs)
    assert bundle.tokenizer is not None
    assert bundle.chat_template is not None


def test_chunks_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of an odd number of rows, cut at panels of 16 rows, or not at all."""
    models.tiny_internvl(tmp_path / "c")
    options = Options(scheme="W4A8-g32-asym")
    for chunk in (1 << 20, 1):
        monkeypatch.setattr(weights_module, "CHUNK_ELEMENTS", chunk)
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / str(chunk), options)
    program = open_bundle(tmp_path / "1").program.raw
    assert any(w["shape"][0] % 16 for w in program["weights"].values() if w["scheme"].startswith("W"))
    for part in (tmp_path / "1").glob("*.safetensors"):
        assert part.read_bytes() == (tmp_path / str(1 << 20) / part.name).read_bytes(), part.name
        entries, _ = tensorfile.read_header(part)
        assert all(e.start % 32 == 0 for e in entries.values() if e.dtype == "U8" and len(e.shape) == 2)


def test_help_names_the_defaults() -> None:
    text = " ".join(eyespot("compile", "--help").stdout.replace("│", " ").split())
    for scheme in (Options().scheme, Options().vision_scheme):
        assert f"[default: {scheme}]" in text
    assert all(scheme.partition("-")[0] in text for scheme in SCHEMES)


def test_threads_do_not_change_a_byte(tmp_path: Path) -> None:
    models.tiny_internvl(tmp_path / "c")
    for threads in (1, 4):
        compile_model(
            open_checkpoint(tmp_path / "c"), tmp_path / str(threads), Options(threads=threads, scheme="W4A16-g32")
        )
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "4").iterdir())
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes(), name


def test_a8_and_settings_from_generation_config(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "eos_token_id": 386,
    }
    (tmp_path / "c" / "generation_config.json").write_text(json.dumps(generation))
    compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(scheme="W8A8", ctx_size=77))
    bundle = open_bundle(tmp_path / "b")
    sampling = bundle.settings.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (0.7, 0.8, 20, 1.05)
    assert bundle.settings.ctx_size == 77
    assert bundle.program.raw["memory"]["scratch"][1] > 0
    generation["top_p"] = 7
    (tmp_path / "c" / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(EyespotError, match=r"^generation_config.json: top_p; found 7; expected a number"):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options())


@pytest.mark.parametrize(
    ("given", "expected"), [({"top_k": 50.0}, 50), ({"top_k": -1}, 0), ({"top_k": -1.0}, 0), ({"top_k": None}, 0)]
)
def test_top_k_as_others_write_it(tmp_path: Path, given: dict, expected: int) -> None:
    models.tiny_qwen2(tmp_path / "c")
    (tmp_path / "c" / "generation_config.json").write_text(json.dumps({"do_sample": True, **given}))
    compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
    assert open_bundle(tmp_path / "b").settings.sampling.top_k == expected


@pytest.mark.parametrize("top_k", [-2, 1.5, True, "all"])
def test_faults_of_generation_config_are_its_own(tmp_path: Path, top_k: object) -> None:
    models.tiny_qwen2(tmp_path / "c")
    (tmp_path / "c" / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": top_k}))
    with pytest.raises(EyespotError, match=rf"^generation_config.json: top_k; found {top_k!r}; expected an integer"):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% if", r"line 1: "),
        ("{{ messages[0] }}\n{% endif %}", r"line 2: Encountered unknown tag 'endif'"),
        ("{{ " + "(" * 5000, ""),
    ],
)
def test_a_broken_chat_template_is_refused(tmp_path: Path, template: str, fault: str) -> None:
    models.tiny_qwen2(tmp_path / "c")
    (tmp_path / "c" / "chat_template.jinja").write_text(template)
    with pytest.raises(EyespotError, match=rf"^chat_template.jinja: not a Jinja template; found {fault}") as caught:
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_chat_templates_that_run_are_not_refused(tmp_path: Path) -> None:
    """Tags beside Jinja's own, and names that only the runtime knows."""
    from eyespot.run.template import Template

    models.tiny_qwen2(tmp_path / "c")
    template = (
        "{%- for m in messages -%}{% if loop.index > 9 %}{% break %}{% endif %}"
        "{%- generation -%}{{ m.content | tojson }}{%- endgeneration -%}{% endfor %}{{ strftime_now('%Y') if false }}"
    )
    (tmp_path / "c" / "chat_template.jinja").write_text(template)
    compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
    assert Template((tmp_path / "b" / "chat_template.jinja").read_text()).render([{"content": "a"}]) == '"a"'


@pytest.mark.parametrize(
    ("change", "ctx"),
    [
        ({}, 1024),  # 13 tiles of 4 tokens
        ({"vision": {"image_size": 224}}, 1792),  # 13 of 64
        ({"vision": {"image_size": 224}, "max_position_embeddings": 1500}, 1500),
    ],
)
def test_the_largest_picture_fits_the_default_context(tmp_path: Path, change: dict, ctx: int) -> None:
    models.tiny_internvl(tmp_path / "c", **change)
    checkpoint = open_checkpoint(tmp_path / "c")
    compile_model(checkpoint, tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    assert bundle.settings.ctx_size == bundle.program.ctx == ctx
    rule = bundle.settings.image
    assert rule is not None
    picture = rule.resolution.most()
    assert ctx == 1500 or 768 <= ctx - picture < 768 + 256
    compile_model(checkpoint, tmp_path / "b", Options(ctx_size=77))
    assert open_bundle(tmp_path / "b").program.ctx == 77


def test_rope_rules_go_by_the_default_context(tmp_path: Path) -> None:
    """The context that nobody named chooses between Phi-3's long and short divisors as one that was named does."""
    models.tiny_phi3(tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    factors = {"long_factor": [4.0] * 5, "short_factor": [1.0] * 5}
    config["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    config["original_max_position_embeddings"] = 512
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    constants = []
    for ctx_size in (None, 1024, 512):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(ctx_size=ctx_size))
        constants.append(json.loads((tmp_path / "b" / "program.json").read_text())["constants"])
    assert constants[0] == constants[1] != constants[2]


def test_the_manifest_names_the_source(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")
    checkpoint = replace(open_checkpoint(tmp_path / "c"), name="org/tiny@v1")
    compile_model(checkpoint, tmp_path / "b")
    assert open_bundle(tmp_path / "b").manifest["source"]["name"] == "org/tiny@v1"


def rewrite(folder: Path, change: Any) -> None:
    """Replaces the checkpoint's tensors by change(name -> array)."""
    file = tensorfile.TensorFile(folder / "model.safetensors")
    tensors = {name: file.raw(name).copy() for name in file.entries}
    tensors = change(tensors)
    with open(folder / "model.safetensors", "wb") as out:
        entries = {name: ("F32", array.shape) for name, array in tensors.items()}
        tensorfile.write(out, entries, tensors.items(), {"format": "pt"})


def test_all_missing_and_misshapen_tensors_are_told_at_once(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")

    def spoil(tensors: dict) -> dict:
        del tensors["model.norm.weight"]
        del tensors["model.layers.1.self_attn.k_proj.weight"]
        return tensors | {"model.layers.2.mlp.down_proj.weight": np.zeros((60, 99), np.float32)}

    rewrite(tmp_path / "c", spoil)
    with pytest.raises(EyespotError, match="is not a whole qwen2 checkpoint") as caught:
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
    for part in ("model.norm.weight", "layers.1.self_attn.k_proj.weight", "down_proj.weight' is [60, 99]"):
        assert part in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_tensors_nobody_knows_are_warned_about(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")
    odd = {
        "model.adapter.weight": np.zeros((2, 2), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32),
    }
    rewrite(tmp_path / "c", lambda tensors: tensors | odd)
    (warning,) = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b").warnings
    assert "model.adapter.weight" in warning
    assert "inv_freq" not in warning


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_weights_that_cannot_be_stored_are_named(tmp_path: Path, value: float) -> None:
    models.tiny_qwen2(tmp_path / "c")

    def spoil(tensors: dict) -> dict:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        return tensors

    compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
    before = sorted(p.name for p in tmp_path.iterdir())
    rewrite(tmp_path / "c", spoil)
    with pytest.raises(EyespotError, match=r"weight 'model.layers.1.mlp.gate_up_proj.weight', rows 0 to 200: weights"):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(scheme="W4A16"))
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    open_bundle(tmp_path / "b", verify=True)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")
    raw = json.loads((tmp_path / "c" / "tokenizer.json").read_text())
    raw["added_tokens"].append(raw["added_tokens"][-1] | {"id": 387, "content": "<|one too many|>"})
    (tmp_path / "c" / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(EyespotError, match="does not fit the vocabulary; found ids up to 387; expected ids below 387"):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
    (tmp_path / "c" / "tokenizer.json").write_text('{"added_tokens": [], "model": {"type": "magic"}}')
    with pytest.raises(EyespotError, match=r"tokenizer.json: not a tokenizer"):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
    (tmp_path / "c" / "tokenizer.json").unlink()
    result = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
    assert "there is no tokenizer" in result.warnings[0]


BAD_OPTIONS = [
    ({"scheme": "W2A16"}, "unknown scheme; found W2A16"),
    ({"vision_scheme": "int8"}, "unknown scheme"),
    ({"vision_scheme": "gguf"}, "unknown scheme"),
    ({"scheme": "gguf"}, "takes over what a GGUF file has; found safetensors files"),
    ({"kv_cache": "q8"}, "unknown KV cache"),
    ({"ctx_size": 4096}, "expected 1..2048"),
    ({"ctx_size": -1}, "ctx-size -1"),
    ({"prefill_chunk": 0}, "prefill chunk"),
    ({"image_size": 448}, "no eyes"),
    ({"image_size": 10**9}, "image size"),
    ({"threads": -1}, "threads"),
    ({"check": "some"}, "unknown check"),
    ({"check": "layers"}, "needs the engine"),
    ({"min_cosine": 0.9}, "cannot be honoured"),
    ({"tensor_schemes": ("nothing_like_it=f16",)}, "matches no weight"),
    ({"tensor_schemes": ("f16",)}, "REGEX=SCHEME"),
]


def test_bad_options(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    for options, fault in BAD_OPTIONS:
        with pytest.raises(UsageError, match=fault):
            compile_model(checkpoint, tmp_path / "b", Options(**options))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="never replaced"):
        compile_model(checkpoint, tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


class BundleEngine(Peer):
    """An engine in numpy: the reference over a bundle's dequantized weights."""

    def __init__(self, path: Path) -> None:
        stored = Stored(path)
        super().__init__(stored.program, stored.__getitem__)


@pytest.mark.parametrize("family", ["qwen2", "internvl"])
def test_check_reports_and_gates(tmp_path: Path, family: str) -> None:
    models.TINY[family](tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    out = tmp_path / "b"
    exact = Options(scheme="f32", vision_scheme="f32", check="full", min_cosine=0.999999)
    compile_model(checkpoint, out, exact, BundleEngine)
    report = open_bundle(out, verify=True).manifest["report"]
    assert report["min_cosine"] == pytest.approx(1)
    assert report["next_token"]["kl"] == pytest.approx(0, abs=1e-6)
    assert [t["token"] for t in report["next_token"]["float"]] == [t["token"] for t in report["next_token"]["bundle"]]
    assert {row["phase"] for row in report["blocks"]} == {"prefill", "decode"} | (
        {"encode"} if family == "internvl" else set()
    )

    good = compile_model(checkpoint, out, Options(check="layers", min_cosine=0.9), BundleEngine).report
    assert good is not None
    assert 0.9 < good["min_cosine"] < 0.99999
    assert "next_token" not in good
    fault = r"is too far from float32; found cosine 0.*at least 0.9999; .* --tensor-scheme '\^.*=f16' keeps it finer"
    with pytest.raises(GateFailed, match=fault):
        compile_model(checkpoint, out, Options(scheme="W4A16", check="layers", min_cosine=0.9999), BundleEngine)
    assert open_bundle(out, verify=True).manifest["source"]["options"]["scheme"] == Options().scheme  # the old one
    assert GateFailed.exit_code == 4
    compile_model(checkpoint, out, Options(check="full", check_prompt="x", ctx_size=4), BundleEngine)
    with pytest.raises(UsageError, match="check prompt does not fit"):
        compile_model(checkpoint, out, Options(check="full", check_prompt="a long one", ctx_size=2), BundleEngine)


def test_dump(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    assert "layer_00 .. layer_02 (3 alike)" in dump_after(checkpoint, Options(), "build")
    assert Options().scheme not in dump_after(checkpoint, Options(), "weights")
    assert f"{Options().scheme}[" in dump_after(checkpoint, Options(), "recipe")
    assert "W4A16-g64[" in dump_after(checkpoint, Options(scheme="W4A16"), "recipe")
    plan_text = dump_after(checkpoint, Options(), "schedule").split("\nmemory ")[1]
    assert json.loads(plan_text)["ctx"] == 1024
    with pytest.raises(UsageError, match="no such pass"):
        dump_after(checkpoint, Options(), "seal")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def eyespot(*arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(tensorfile.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "eyespot", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})


def test_command_line(tmp_path: Path) -> None:
    models.tiny_internvl(tmp_path / "c")
    out = tmp_path / "b"
    done = eyespot("compile", tmp_path / "c", "-o", out, "--tensor-scheme", "v_proj=W4A16-g32", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    (warning,) = summary["warnings"]
    assert "'v_proj=W4A16-g32' goes to all of layer_00/" in warning
    assert "(+2 more)" in warning
    assert set(summary["schemes"]) == {"W8A8-g32", "W8A8", "bf16", "f32", "W4A16-g32"}
    assert (
        summary["bytes"]
        == sum(f.bytes for n, f in open_bundle(out).files.items()) + (out / "config.json").stat().st_size
    )
    done = eyespot("inspect", out, "--json", "--verify", "--program")
    facts = json.loads(done.stdout)
    assert facts["verified"]
    assert facts["files"]["layer_00.safetensors"]["schemes"] == {"W4A16-g32": 1, "W8A8-g32": 3, "f32": 3}
    assert facts["layout"] == "r16q4"
    assert facts["bits_per_weight"] == pytest.approx(summary["bits_per_weight"])
    assert "layout r16q4, " in eyespot("inspect", out).stdout
    assert facts["memory"]["arena"] == summary["arena_bytes"]
    assert "block layer_00 .. layer_02" in facts["program"]
    text = eyespot("inspect", out).stdout
    assert "vision.safetensors" in text
    assert "\x1b" not in text  # no colours in a pipe
    facts = json.loads(eyespot("inspect", tmp_path / "c", "--json").stdout)
    assert facts["kind"] == "checkpoint"
    assert facts["dtypes"]["F32"]["tensors"] == len(open_checkpoint(tmp_path / "c").tensors)
    for arguments, code in (
        (("compile", tmp_path / "c"), 2),
        (("compile", tmp_path / "nowhere", "-o", tmp_path / "x"), 2),
        (("compile", tmp_path / "c", "-o", tmp_path / "x", "--scheme", "W9A9"), 2),
        (("compile", tmp_path / "c", "-o", tmp_path / "x", "--scheme", "gguf"), 2),
        (("compile", tmp_path / "c", "-o", tmp_path / "x", "--no-such-flag"), 2),
        (("inspect", tmp_path / "nowhere"), 2),
        (("inspect", tmp_path / "c", "--verify"), 2),
    ):
        done = eyespot(*arguments)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    (out / "post.safetensors").write_bytes(b"")
    done = eyespot("inspect", out)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps(config | {"architectures": ["GPT9"]}))
    assert eyespot("compile", tmp_path / "c", "-o", tmp_path / "x").returncode == 3
    assert not (tmp_path / "x").exists()


def test_the_engine_agrees_with_the_reference(tmp_path: Path) -> None:
    """The real engine opens an unsealed bundle and is close to float32, block by block; a gate is an exit code."""
    models.tiny_internvl(tmp_path / "c")
    arguments = ("compile", tmp_path / "c", "-o", tmp_path / "b", "--check", "full", "--json", "--scheme")
    done = eyespot(*arguments, "f32", "--vision-scheme", "f32", "--kv-cache", "f32", "--min-cosine", "0.999999")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"]["next_token"]["kl"] < 1e-6
    done = eyespot(*arguments, "W4A16", "--min-cosine", "0.9999")
    assert done.returncode == GateFailed.exit_code
    assert "is too far from float32; found cosine" in done.stderr
    assert open_bundle(tmp_path / "b", verify=True).manifest["source"]["options"]["scheme"] == "f32"


def test_a_check_that_overflows_is_one_line(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")
    rewrite(
        tmp_path / "c", lambda tensors: {n: t * np.float32(1e38) if "up_proj" in n else t for n, t in tensors.items()}
    )
    done = eyespot("compile", tmp_path / "c", "-o", tmp_path / "a" / "b", "--check", "layers", "--scheme", "f32")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "logits are not finite" in done.stderr
    assert not (tmp_path / "a").exists()


def test_a_killed_compile_leaves_the_old_bundle(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "c")
    out = tmp_path / "b"
    compile_model(open_checkpoint(tmp_path / "c"), out, Options(scheme="f32"))
    code = """
import os, signal, sys
from eyespot.checkpoint import open_checkpoint
from eyespot.compile import compile_model
die = int(sys.argv[3])
def progress(done, total):
    global die
    die -= 1
    if not die:
        os.kill(os.getpid(), signal.SIGKILL)
compile_model(open_checkpoint(sys.argv[1]), sys.argv[2], progress=progress)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(tensorfile.__file__).parents[1])}
    for moment in (1, 9, 23):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "c", out, str(moment)], env=env, capture_output=True
        )
        assert done.returncode == -9, done.stderr
        assert open_bundle(out, verify=True).manifest["source"]["options"]["scheme"] == "f32"
        assert len([p for p in tmp_path.iterdir() if p.name.startswith(".b.tmp-")]) == 1
    compile_model(open_checkpoint(tmp_path / "c"), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c", "cache"]
