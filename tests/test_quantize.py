"""Schemes store what DESIGN.md's table says, recipes choose as told, reports measure what they claim."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyespot.errors import EyespotError, UsageError
from eyespot.program import Builder, Dim, Info, Program, Rows
from eyespot.program.reference import Reference
from eyespot.quantize import recipe, report
from eyespot.quantize.formats import SCHEMES, absmax_scale, pack, parse, stored_bytes, tensors, unpack
from eyespot.tensorfile import STORED
from test_program import toy, weights

W8, W4 = SCHEMES["W8A16"], [s for s in SCHEMES.values() if s.bits == 4]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 300))


def matrix(shape: tuple[int, ...], seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(shape).astype(np.float32) * np.float32(spread)
    rows[rng.random(shape[0]) < 0.1] = 0  # whole rows of zeros are legal
    return rows


def test_names() -> None:
    assert parse("w8a16") is W8
    assert parse("W4A16").name == "W4A16-g64"
    with pytest.raises(UsageError, match=r"found W3A16; expected f32, f16, bf16, W8A16, W8A8, W4A16-g32"):
        parse("W3A16")


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
@given(shape=SHAPES, seed=st.integers(0, 1 << 30), spread=st.sampled_from([1e-30, 1e-4, 1.0, 1000.0]))
@settings(max_examples=40, deadline=None)
def test_any_split_into_rows_gives_the_same_bytes(scheme, shape, seed, spread) -> None:
    rows = matrix(shape, seed, spread)
    declared = tensors(shape, scheme)
    whole = pack(rows, scheme)
    assert {k: (v.dtype, v.shape) for k, v in whole.items()} == {
        k: (np.dtype(STORED[d]), s) for k, (d, s) in declared.items()
    }
    assert sum(v.nbytes for v in whole.values()) == stored_bytes(shape, scheme)
    cut = seed % shape[0] + 1
    for suffix, array in whole.items():
        parts = [
            pack(rows[:cut], scheme)[suffix],
            *([pack(rows[cut:], scheme)[suffix]] if rows[cut:].size else []),
        ]
        assert np.concatenate(parts).tobytes() == array.tobytes()


@given(shape=SHAPES, seed=st.integers(0, 1 << 30))
@settings(max_examples=50, deadline=None)
def test_w8_is_the_nearest_integer(shape, seed) -> None:
    rows = matrix(shape, seed)
    packed = pack(rows, W8)
    q, scale = packed[""].astype(np.float64), packed[".scale"].astype(np.float64)
    assert np.abs(q).max() <= 127
    np.testing.assert_allclose(scale, np.abs(rows).max(axis=1) / 127, rtol=1e-6)
    assert (np.abs(rows - q * scale[:, None]) <= scale[:, None] * 0.5001).all()
    np.testing.assert_array_equal(unpack(packed, W8, shape[1]), packed[""] * packed[".scale"][:, None])


@pytest.mark.parametrize("scheme", W4, ids=str)
@given(shape=SHAPES, seed=st.integers(0, 1 << 30))
@settings(max_examples=40, deadline=None)
def test_w4_is_the_nearest_point_of_its_grid(scheme, shape, seed) -> None:
    rows, (m, k) = matrix(shape, seed), shape
    packed = pack(rows, scheme)
    scale = packed[".scale"].astype(np.float64)
    for r in range(m):  # straight from the table: low nibble = even column, (nibble - 8) * scale[column // group]
        for c in range(k):
            byte = int(packed[""][r, c // 2])
            nibble = byte >> 4 if c % 2 else byte & 15
            s = scale[r, c // scheme.group]
            value = (nibble - 8) * s
            assert unpack(packed, scheme, k)[r, c] == np.float32(value)
            nearest = min(abs(rows[r, c] - i * s) for i in range(-8, 8))
            assert abs(rows[r, c] - value) <= nearest + 1e-6 * abs(rows[r, c])
    if k % 2:
        assert (packed[""][:, -1] >> 4 == 8).all()


def test_halves_round_to_even() -> None:
    rows = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    assert pack(rows, W8)[""].tolist() == [[127, 0, 2, 2, 0, -2]]


def test_w4_uses_the_longer_side_for_the_extreme() -> None:
    for sign in (1, -1):
        rows = sign * np.array([[8, 7, -7, 0] + [0] * 28], np.float32)
        packed = pack(rows, SCHEMES["W4A16-g32"])
        assert packed[".scale"].tolist() == [[-sign]]
        assert unpack(packed, SCHEMES["W4A16-g32"], 32)[0, :4].tolist() == rows[0, :4].tolist()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused(scheme, bad) -> None:
    rows = np.ones((3, 70), np.float32)
    rows[1, 66] = bad
    with pytest.raises(EyespotError, match="not finite"):
        pack(rows, scheme)


@pytest.mark.parametrize(("name", "value"), [("f16", 70000.0), ("bf16", 3.4e38), ("W4A16-g32", 1e6)])
def test_overflow_is_refused(name, value) -> None:
    rows = np.full((2, 4), 1.0, np.float32)
    rows[0, 2] = value
    with pytest.raises(EyespotError, match="overflow"):
        pack(rows, parse(name))
    assert pack(rows, W8)[".scale"][0] == np.float32(value / 127)


def test_tiny_rows_become_zeros_not_nan() -> None:
    rows = np.full((2, 8), 1e-39, np.float32)
    for scheme in SCHEMES.values():
        if scheme.integer:
            assert (unpack(pack(rows, scheme), scheme, 8) == 0).all()
            assert np.isfinite(absmax_scale(rows, scheme)).all()


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
        "lm_head.weight": "W4A16-g64",
    }


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
    phases = [(r["phase"], r["block"]) for r in found["blocks"]]
    text = ["embed_tokens", "layer_00", "post"]
    assert phases == [("encode", "vision.embeddings")] * picture + [(p, b) for p in ("prefill", "decode") for b in text]
    np.testing.assert_array_equal(expected, got)
    rough = {n: np.round(v) for n, v in w.items()}
    worse, *_ = report.measure(program, w.__getitem__, Peer(program, rough.__getitem__), [1, 2, 3], picture)
    assert worse["min_cosine"] < 0.999
    assert all(row["relative_error"] > 0 for row in worse["blocks"])


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
