"""Schemes store what DESIGN.md's table says, recipes choose as told, reports measure what they claim."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyespot.errors import EyespotError, UsageError
from eyespot.program import Builder, Dim, Info, Program, Rows
from eyespot.program.reference import Reference
from eyespot.quantize import recipe, report
from eyespot.quantize.formats import LAYOUT, PANEL, SCHEMES, Scheme, pack, parse, stored_as, stored_bytes, unpack
from eyespot.tensorfile import STORED
from test_program import toy, weights

PACKED = [s for s in SCHEMES.values() if s.integer]
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 300))


def matrix(shape: tuple[int, ...], seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(shape).astype(np.float32) * np.float32(spread)
    rows[rng.random(shape[0]) < 0.1] = 0  # whole rows of zeros are legal
    return rows


def test_names() -> None:
    assert parse("w8a16").name == "W8A16"
    assert parse("W4A16").name == "W4A16-g64"
    assert parse("w4a8-ASYM").name == "W4A8-g64-asym"
    with pytest.raises(UsageError, match=r"found W3A16; expected f32, f16, bf16, W8A16, W8A8 \[-g32"):
        parse("W3A16")


def test_the_schemes_are_those_of_the_formula() -> None:
    grouped = [f"W{w}A{a}-g{g}" for w in (8, 4) for a in (16, 8) for g in (32, 64, 128)]
    names = {"W8A16", "W8A8", *grouped, *(f"{n}-asym" for n in grouped if n[1] == "4")}
    assert {s.name for s in PACKED} == names
    for scheme in PACKED:
        assert scheme.name.startswith(f"W{scheme.bits}A{scheme.activation_bits}")
        assert scheme.group == int(scheme.name.partition("-g")[2].removesuffix("-asym") or 0)
        assert scheme.asym == scheme.name.endswith("-asym")
    design = (Path(__file__).parent.parent / "DESIGN.md").read_text()
    assert f"Layout `{LAYOUT}`" in design


class Panels:
    """Packed bytes read one number at a time, as DESIGN.md says where each lies."""

    def __init__(self, stored: np.ndarray, scheme: Scheme, k: int) -> None:
        self.scheme, self.group = scheme, scheme.group or -(-k // 32) * 32
        self.scale_bytes = 2 if scheme.group else 4
        self.head = 16 * self.scale_bytes + 32 * scheme.asym
        self.groups = -(-k // self.group)
        self.panels = [row.tobytes() for row in stored]
        assert {len(p) for p in self.panels} == {self.groups * self._group_bytes()}

    def _group_bytes(self) -> int:
        return self.head + 16 * self.group * self.scheme.bits // 8

    def q(self, r: int, c: int) -> int:
        at, column = self._group(c) + self.head, c % self.group
        step, column = divmod(column, 32)
        if self.scheme.bits == 8:
            at += step * 512 + column // 4 * 64 + r % 16 * 4 + column % 4
            return int.from_bytes(self.panels[r // 16][at : at + 1], signed=True)
        byte = self.panels[r // 16][at + step * 256 + column // 8 * 64 + r % 16 * 4 + column % 4]
        return byte >> 4 if column % 8 >= 4 else byte & 15

    def scale(self, r: int, c: int) -> np.float32:
        at = self._group(c) + r % 16 * self.scale_bytes
        return np.float32(np.frombuffer(self.panels[r // 16], f"<f{self.scale_bytes}", 1, at)[0])

    def minimum(self, r: int, c: int) -> np.float32:
        at = self._group(c) + 32 + r % 16 * 2
        return np.float32(np.frombuffer(self.panels[r // 16], "<f2", 1, at)[0] if self.scheme.asym else 0)

    def value(self, r: int, c: int) -> np.float32:
        zero = 8 if self.scheme.bits == 4 and not self.scheme.asym else 0
        return np.float32(self.q(r, c) - zero) * self.scale(r, c) + self.minimum(r, c)

    def _group(self, c: int) -> int:
        return c // self.group * self._group_bytes()


@pytest.mark.parametrize("scheme", PACKED, ids=str)
@given(m=st.integers(1, 40), k=st.integers(1, 150), seed=st.integers(0, 1 << 30))
@settings(max_examples=8, deadline=None)
def test_every_number_lies_where_the_layout_says_and_is_the_nearest(scheme, m, k, seed) -> None:
    rows = matrix((m, k), seed)
    stored = pack(rows, scheme)
    assert (stored.dtype, ("U8", stored.shape)) == (np.uint8, stored_as((m, k), scheme))
    assert stored.nbytes == stored_bytes((m, k), scheme)
    panels, values = Panels(stored, scheme, k), unpack(stored, scheme, (m, k))
    low, high = (-127, 127) if scheme.bits == 8 else (0, 15)
    for r in range(m):
        for c in range(k):
            value, scale = panels.value(r, c), panels.scale(r, c)
            assert values[r, c] == value
            assert low <= panels.q(r, c) <= high
            step = value - scale * panels.q(r, c)
            ends = sorted((step + scale * low, step + scale * high))
            nearest = abs(scale) / 2 if ends[0] <= rows[r, c] <= ends[1] else min(abs(rows[r, c] - e) for e in ends)
            assert abs(rows[r, c] - value) <= nearest * 1.0001 + 1e-6 * np.abs(rows[r]).max()
    zero = 8 if scheme.bits == 4 and not scheme.asym else 0
    wide = panels.groups * panels.group
    for r, c in [(r, c) for r in range(len(stored) * 16) for c in range(wide) if r >= m or c >= k][::7]:
        assert panels.q(r, c) == zero
        if r >= m:
            assert panels.scale(r, c) == panels.minimum(r, c) == 0


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
@given(shape=SHAPES, seed=st.integers(0, 1 << 30), spread=st.sampled_from([1e-30, 1e-4, 1.0, 1000.0]))
@settings(max_examples=20, deadline=None)
def test_any_split_into_panels_gives_the_same_bytes(scheme, shape, seed, spread) -> None:
    rows = matrix(shape, seed, spread)
    whole = pack(rows, scheme)
    dtype, declared = stored_as(shape, scheme)
    assert (whole.dtype, whole.shape) == (np.dtype(STORED[dtype]), declared)
    assert whole.nbytes == stored_bytes(shape, scheme)
    cut = seed % -(-shape[0] // PANEL) * PANEL
    parts = [pack(part, scheme) for part in (rows[:cut], rows[cut:]) if part.size]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("scheme", PACKED, ids=str)
def test_scales_are_the_rules_of_the_design(scheme) -> None:
    rows = matrix((20, 200), 7) + np.float32(0.3)
    panels = Panels(pack(rows, scheme), scheme, 200)
    half = np.float16 if scheme.group else np.float32
    for r in range(20):
        for c in range(0, 200, panels.group):
            group = rows[r, c : c + panels.group]
            far = group[np.abs(group).argmax()]
            minimum = np.float32(half(group.min()))
            expected = (group.max() - minimum) / 15 if scheme.asym else far / -8 if scheme.bits == 4 else abs(far) / 127
            assert panels.scale(r, c) == np.float32(half(expected))
            assert panels.minimum(r, c) == (minimum if scheme.asym else 0)


def test_halves_round_to_even() -> None:
    rows = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    for name in ("W8A16", "W8A8-g32"):
        panels = Panels(pack(rows, SCHEMES[name]), SCHEMES[name], 6)
        assert [panels.q(0, c) for c in range(6)] == [127, 0, 2, 2, 0, -2]


def test_w4_uses_the_longer_side_for_the_extreme() -> None:
    scheme = SCHEMES["W4A16-g32"]
    for sign in (1, -1):
        rows = sign * np.array([[8, 7, -7, 0] + [0] * 28], np.float32)
        stored = pack(rows, scheme)
        assert Panels(stored, scheme, 32).scale(0, 0) == -sign
        assert unpack(stored, scheme, (1, 32))[0, :4].tolist() == rows[0, :4].tolist()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("spread", [1e-6, 1e-2, 100])
def test_a_twin_holds_the_numbers_of_its_gguf_type(kind: str, spread: float) -> None:
    quants = pytest.importorskip("gguf.quants")
    kind_of = pytest.importorskip("gguf").GGMLQuantizationType[kind]
    rows = (matrix((150, 96), 3) + np.float32(0.2)) * np.float32(spread)
    theirs = quants.dequantize(quants.quantize(rows, kind_of), kind_of)
    twin = SCHEMES[recipe.TWINS[kind]]
    np.testing.assert_array_equal(unpack(pack(theirs, twin), twin, theirs.shape), theirs)


def test_the_twins_hold_a_real_file(gguf: Path) -> None:
    """Every matrix of SmolLM2-135M-Instruct.Q4_1.gguf, bit for bit."""
    from eyespot.checkpoint import open_checkpoint

    checkpoint, kinds = open_checkpoint(gguf), Counter[str]()
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 2:
            kinds[info.dtype] += 1
            twin, rows = SCHEMES[recipe.TWINS[info.dtype]], checkpoint.read(name, 0, min(512, info.shape[0]))
            np.testing.assert_array_equal(unpack(pack(rows, twin), twin, rows.shape), rows, err_msg=name)
    assert kinds == {"Q4_1": 210, "Q8_0": 1}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused(scheme, bad) -> None:
    rows = np.ones((3, 70), np.float32)
    rows[1, 66] = bad
    with warnings.catch_warnings(), pytest.raises(EyespotError, match="not finite"):
        warnings.simplefilter("error")
        pack(rows, scheme)


@pytest.mark.parametrize(
    ("name", "value"),
    [("f16", 70000.0), ("bf16", 3.4e38), ("W4A16-g32", 1e6), ("W4A8-g32-asym", -1e5), ("W8A8-g64", 1e7)],
)
def test_overflow_is_refused(name, value) -> None:
    rows = np.full((2, 4), 1.0, np.float32)
    rows[0, 2] = value
    with pytest.raises(EyespotError, match="overflow"):
        pack(rows, parse(name))
    np.testing.assert_allclose(unpack(pack(rows, parse("W8A16")), parse("W8A16"), (2, 4))[0, 2], value, rtol=1e-6)


def test_tiny_rows_become_zeros_not_nan() -> None:
    rows = np.full((2, 8), 1e-39, np.float32)
    for scheme in PACKED:
        assert (unpack(pack(rows, scheme), scheme, (2, 8)) == 0).all()


def model() -> Program:
    """Eyes of one matrix, a table, one layer with q, k and v from three tensors, a head tied to the table."""
    b = Builder("toy")
    with b.graph("vision"):
        x = b.input("pixels", (Dim(1, "t"), 3, 2, 2))
        with b.block("vision.embeddings", "vision"):
            x = b("patches", x, patch=2)
            x = b("linear", x, weight=b.weight("eye.weight", (8, 12)), bias=b.weight("eye.bias", (8,)))
        b.outputs(x)
    with b.graph("text"):
        tokens, rows = b.input("tokens", (Dim(1, "n"),), "i32"), b.input("rows", (Dim(1, "o"),), "i32")
        features = b.input("features", (Dim(1, "f"), 8))
        with b.block("embed_tokens"):
            x = b("embed", tokens, weight=b.weight("embed_tokens.weight", (11, 8)))
            x = b("merge", x, tokens, features, token_id=9)
        with b.block("layer_00"):
            h = b("rms_norm", x, weight=b.weight("norm.weight", (8,)), eps=1e-6)
            qkv = [Rows(f"layers.0.{n}_proj.weight", 0, 8 if n == "q" else 4) for n in "qkv"]
            h = b("linear", h, weight=b.weight("layers.0.qkv_proj.weight", (16, 8), qkv))
            h = b("attention", h, heads=2, kv_heads=1, head_dim=4, scale=0.5, layer=0, group=0, window=0)
            x = b("add", x, h, alpha=1.0)
        with b.block("post"):
            x = b("head", b("select", x, rows), weight=b.weight("lm_head.weight", (11, 8), ["embed_tokens.weight"]))
        b.outputs(x)
    return b.build(Info(11, 8, 64, 9, 2, 1))


DEFAULTS = recipe.default_rules(parse("W4A16"), parse("W8A8"), parse("bf16"))


def schemes(*overrides: str) -> dict[str, str]:
    rules = [recipe.parse_rule(text) for text in overrides]
    return {w.name: w.scheme for w in recipe.assign(model(), [*rules, *DEFAULTS]).weights.values()}


def test_default_schemes() -> None:
    assert schemes() == {
        "eye.weight": "W8A8",
        "eye.bias": "f32",
        "embed_tokens.weight": "bf16",
        "norm.weight": "f32",
        "layers.0.qkv_proj.weight": "W4A16-g64",
        "lm_head.weight": "W8A16-g32",
    }


@pytest.mark.parametrize(
    ("layers", "head"),
    [("W4A8-g32-asym", "W8A8-g32"), ("W4A16-g128", "W8A16-g32"), ("W8A8", "W8A8"), ("f16", "f16"), ("f32", "f32")],
)
def test_the_head_of_a_4_bit_model_takes_8(layers: str, head: str) -> None:
    rules = recipe.default_rules(parse(layers), parse("W8A8"), parse("bf16"))
    assigned = recipe.assign(model(), rules).weights
    assert (assigned["layers.0.qkv_proj.weight"].scheme, assigned["lm_head.weight"].scheme) == (layers, head)
    first = recipe.parse_rule("lm_head=W4A8-g64")
    assert recipe.assign(model(), [first, *rules]).weights["lm_head.weight"].scheme == "W4A8-g64"


def test_twin_rules_go_by_what_the_file_has() -> None:
    stored = dict.fromkeys(("layers.0.q_proj.weight", "layers.0.k_proj.weight", "layers.0.v_proj.weight"), "Q4_1")
    stored["embed_tokens.weight"] = "Q8_0"

    def chosen() -> tuple[str, str, list[str]]:
        rules, told = recipe.twin_rules(model(), stored.__getitem__)
        assigned = recipe.assign(model(), [*rules, *DEFAULTS]).weights
        assert assigned["eye.weight"].scheme == "W8A8"  # no GGUF file has it
        return assigned["layers.0.qkv_proj.weight"].scheme, assigned["lm_head.weight"].scheme, told

    assert chosen() == ("W4A8-g32-asym", "W8A8-g32", [])
    stored["layers.0.v_proj.weight"] = "Q6_K"
    assert chosen() == ("W8A8-g32", "W8A8-g32", ["1 weights of Q4_1 and Q6_K have no exact twin: W8A8-g32"])
    stored.update(dict.fromkeys(stored, "F16"))
    assert chosen() == ("f16", "f16", [])


def test_the_first_match_wins_and_sources_match_too() -> None:
    assert schemes("v_proj=W8A16")["layers.0.qkv_proj.weight"] == "W8A16"
    assert schemes("^post/=f16", ".=f32") == dict.fromkeys(schemes(), "f32") | {"lm_head.weight": "f16"}
    assert schemes("^layer_00=bf16")["norm.weight"] == "f32"


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("v_prj=W8A16", r"matches no weight; expected a name such as .*v_proj"),
        ("^embed_tokens/=W8A16", "matches the token table embed_tokens/embed_tokens.weight"),
        ("norm=f16", "matches vectors only"),
        ("norm=W8A8", "matches vectors only"),
        ("o_proj", "REGEX=SCHEME"),
        ("(=f16", "not a regular expression"),
        ("v_proj=int8", "unknown scheme"),
        (
            "k_proj=f16 v_proj=f32",
            r"'v_proj=f32' comes too late.*found 'k_proj=f16' for layer_00/.*qkv_proj.*one scheme",
        ),
        ("proj=f16 qkv_proj=f32", r"'qkv_proj=f32' comes too late: earlier ones take all that it matches; found[^;]*$"),
        ("lm_head=f16 lm_head=f16", "'lm_head=f16' comes too late"),
        ("qkv_proj=f16 layer_00=bf16", "'layer_00=bf16' comes too late"),  # it is left with a norm, which stays f32
    ],
)
def test_bad_rules(rule, fault) -> None:
    with pytest.raises(UsageError, match=fault):
        schemes(*rule.split())


@pytest.mark.parametrize(
    ("rules", "warned"),
    [
        ("v_proj=f16", ["'v_proj=f16' goes to all of layer_00/layers.0.qkv_proj.weight, of which"]),
        (r"\.[qk]_proj=f16", [r"'\.[qk]_proj=f16' goes to all of layer_00/layers.0.qkv_proj.weight, of which"]),
        ("_proj=f16", []),
        (r"\.[qkv]_proj=f16", []),
        ("qkv_proj=f16", []),
        ("qkv_proj=f16 v_proj=f32", []),  # refused by assign
        ("embed_tokens=f16", []),
    ],
)
def test_a_rule_for_a_part_of_a_fused_weight_is_warned_about(rules, warned) -> None:
    found = recipe.split_matches(model(), [recipe.parse_rule(text) for text in rules.split()])
    assert len(found) == len(warned)
    assert all(text in line for text, line in zip(warned, found, strict=True))


def test_distance_and_kl() -> None:
    a, b = np.array([3.0, 4.0], np.float32), np.array([4.0, 3.0], np.float32)
    assert report.distance(a, b) == pytest.approx({"cosine": 24 / 25, "relative_error": math.sqrt(2) / 5})
    assert report.distance(a * 0, a * 0) == {"cosine": 1.0, "relative_error": 0.0}
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 50)).astype(np.float32)
    p, q = (
        np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(),
        np.exp(y.astype(float)) / np.exp(y.astype(float)).sum(),
    )
    best = report.best_tokens(x, y, str)
    assert best["kl"] == pytest.approx((p * np.log(p / q)).sum())
    assert [t["token"] for t in best["float"]] == np.argsort(-p)[:10].tolist()
    assert best["bundle"][0] == {
        "token": int(q.argmax()),
        "text": str(q.argmax()),
        "probability": pytest.approx(q.max()),
    }
    assert report.best_tokens(x, x + 5, str)["kl"] == pytest.approx(0, abs=1e-6)


class Peer:
    """A reference dressed as an engine that traces in pieces of two rows, as a chunked prefill does."""

    def __init__(self, program, weights) -> None:
        self.reference = Reference(program, weights)
        self.encode, self.prefill, self.decode = self.reference.encode, self.reference.prefill, self.reference.decode

    def trace(self, callback) -> None:
        def pieces(graph, block, values) -> None:
            for at in range(0, len(values), 2):
                callback(graph, block, values[at : at + 2])

        self.reference.trace = pieces if callback else None

    def close(self) -> None:
        pass


@pytest.mark.parametrize("picture", [False, True])
def test_measure_against_itself_and_against_a_rounded_self(picture) -> None:
    program = model()
    w = weights(program)
    found, expected, got = report.measure(program, w.__getitem__, Peer(program, w.__getitem__), [1, 2, 3], picture)
    assert found["min_cosine"] == pytest.approx(1)
    assert found["tokens"] == 3 + picture
    assert set(found) == {"tokens", "blocks", "min_cosine", "worst"}
    phases = [(r["phase"], r["block"]) for r in found["blocks"]]
    text = ["embed_tokens", "layer_00", "post"]
    assert phases == [("encode", "vision.embeddings")] * picture + [(p, b) for p in ("prefill", "decode") for b in text]
    np.testing.assert_array_equal(expected, got)
    rough = {n: np.round(v) for n, v in w.items()}
    worse, *_ = report.measure(program, w.__getitem__, Peer(program, rough.__getitem__), [1, 2, 3], picture)
    assert worse["min_cosine"] < 0.999
    assert all(row["relative_error"] > 0 for row in worse["blocks"])


def test_the_block_where_the_error_grows_is_named_and_found() -> None:
    """Later blocks only pass the error on; the pattern puts a finer scheme on that block's weights and no other's."""
    program = toy(3)
    w = weights(program)
    rough = w | {"model.layers.1.qkv_proj.weight": np.round(w["model.layers.1.qkv_proj.weight"])}
    found, *_ = report.measure(program, w.__getitem__, Peer(program, rough.__getitem__), [1, 2, 3], False)
    assert found["worst"][0]["block"] == "layer_01"
    assert found["worst"][0]["pattern"] == "^layer_01/"
    program = model()
    w = weights(program)
    rough = w | {"eye.weight": np.round(w["eye.weight"])}
    found, *_ = report.measure(program, w.__getitem__, Peer(program, rough.__getitem__), [1, 2, 3], True)
    eye = next(row for row in found["worst"] if row["block"] == "vision.embeddings")
    assert eye == {"phase": "encode", "block": "vision.embeddings", "pattern": r"^vision/eye\."}
    finer = recipe.parse_rule(f"{eye['pattern']}=f16")
    assigned = recipe.assign(program, [finer, *DEFAULTS]).weights.values()
    assert [x.name for x in assigned if x.scheme == "f16"] == ["eye.weight"]


def test_a_reference_that_overflows_passes_no_gate() -> None:
    """NaN is below no gate, so it must not become a cosine; and numpy says nothing of its own."""
    program = model()
    w = weights(program)
    broken = {**w, "eye.weight": w["eye.weight"] * np.float32(1e38)}
    with warnings.catch_warnings(), pytest.raises(EyespotError, match=r"encode, block .* the reference is not finite"):
        warnings.simplefilter("error")
        report.measure(program, broken.__getitem__, Peer(program, w.__getitem__), [1, 2], True)


def test_measure_names_the_block_it_cannot_compare() -> None:
    program, short = toy(2), toy(1)
    w = weights(program)
    with pytest.raises(EyespotError, match=r"block 'layer_01'.*found none"):
        report.measure(program, w.__getitem__, Peer(short, w.__getitem__), [1, 2], False)
    bad = w | {"model.layers.1.norm.weight": np.full(8, np.nan, np.float32)}

    class Silent(Peer):
        def __init__(self) -> None:
            super().__init__(replace(program, graphs=program.graphs), bad.__getitem__)
            self.prefill = lambda *a: self._swallow(*a)

        def _swallow(self, *arguments):
            with pytest.raises(EyespotError, match="not finite"):
                self.reference.prefill(*arguments)
            return np.zeros((1, 11), np.float32)

    with pytest.raises(EyespotError, match=r"block 'layer_01'.*found NaN or Inf"):
        report.measure(program, w.__getitem__, Silent(), [1, 2], False)
