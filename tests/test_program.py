"""Program: shapes are inferred, faults are named, the dump folds equal layers, the reference equals torch."""

import re
from dataclasses import replace

import numpy as np
import pytest

from eyespot.errors import EyespotError
from eyespot.program import OPS, Builder, Dim, Info, Program, Rows, dump, verify
from eyespot.program.reference import RULES, Reference, erf

N, OUT, T = Dim(1, "n"), Dim(1, "o"), Dim(1, "t")


def toy(layers: int = 3, width: int = 8, vocab: int = 11) -> Program:
    b = Builder("toy")
    with b.graph("text"):
        tokens, rows = b.input("tokens", (N,), "i32"), b.input("rows", (OUT,), "i32")
        with b.block("embed_tokens"):
            x = b("embed", tokens, weight=b.weight("model.embed_tokens.weight", (vocab, width)))
        for i in range(layers):
            with b.block(f"layer_{i:02d}"):
                name = f"model.layers.{i}"
                h = b("rms_norm", x, weight=b.weight(f"{name}.norm.weight", (width,)), eps=1e-6)
                qkv = b("linear", h, weight=b.weight(f"{name}.qkv_proj.weight", (2 * width, width)), out="qkv")
                inv_freq = b.constant("inv_freq", [1.0, 0.1])
                qkv = b("rope", qkv, inv_freq=inv_freq, heads=3, head_dim=4, rotary_dim=4, factor=1.0)
                h = b("attention", qkv, heads=2, kv_heads=1, head_dim=4, scale=0.5, layer=i, group=0, window=0)
                x = b("add", x, h, alpha=1.0)
        with b.block("post"):
            x = b("head", b("select", x, rows), weight=b.weight("lm_head.weight", (vocab, width)))
        b.outputs(x)
    return b.build(Info(vocab, width, 64))


def weights(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {w.name: rng.standard_normal(w.shape).astype(np.float32) for w in program.weights.values()}


def test_every_op_has_a_rule() -> None:
    assert set(OPS) == set(RULES)


def test_dump_folds_equal_layers() -> None:
    text = dump(verify(toy(12)))
    assert "block layer_00 .. layer_11 (12 alike):" in text
    assert "post.head" in text
    assert "layer_05" not in text


def test_dump_shows_the_layer_that_differs() -> None:
    program = toy(4)
    odd = program.weights["model.layers.2.qkv_proj.weight"]
    text = dump(replace(program, weights={**program.weights, odd.name: replace(odd, scheme="f16")}))
    assert re.findall(r"block (layer_\d+)", text) == ["layer_00", "layer_02", "layer_03"]


def test_parts_and_roles() -> None:
    program = toy(2)
    assert program.parts() == ["embed_tokens", "layer_00", "layer_01", "post"]
    assert program.roles()["lm_head.weight"] == {("head", "weight")}
    assert program.weights["lm_head.weight"].sources == (Rows("lm_head.weight"),)


@pytest.mark.parametrize(
    ("build", "fault"),
    [
        (lambda b, x: b("linear", x, weight=b.weight("w", (4, 9))), r"weight is \[4, 9\], expected \[m, 8\]"),
        (lambda b, x: b("linear", x, weight=b.weight("w", (4, 8)), bias=b.weight("b", (5,))), "'bias' is"),
        (lambda b, x: b("linear", x), "weight 'weight' is missing"),
        (lambda b, x: b("lnear", x), "unknown kind"),
        (lambda b, x: b("add", x), "1 inputs, expected 2"),
        (lambda b, x: b("gelu", "nothing", tanh=False), "not defined before it"),
        (lambda b, x: b("gelu", x, tanh=1), "expected bool"),
        (lambda b, x: b("gelu", x), "attributes"),
        (lambda b, x: b("slice", x, group=3, start=3), "leaves nothing"),
        (lambda b, x: b("slice", b("slice", x, group=1, start=0), group=5, start=1), "not whole groups of 5"),
        (
            lambda b, x: b("attention", x, heads=2, kv_heads=1, head_dim=3, scale=1.0, layer=0, group=0, window=0),
            "row is 8 wide",
        ),
        (
            lambda b, x: b("attention", x, heads=2, kv_heads=1, head_dim=2, scale=1.0, layer=0, group=1, window=0),
            "not both",
        ),
        (
            lambda b, x: b("rope", x, inv_freq=b.constant("f", [1.0]), heads=4, head_dim=4, rotary_dim=4, factor=1.0),
            "do not fit",
        ),
        (lambda b, x: b("pixel_shuffle", x, side=3, factor=2), "not whole groups of 9"),
    ],
)
def test_faults_are_named(build, fault: str) -> None:
    b = Builder("bad")
    with pytest.raises(EyespotError, match=fault), b.graph("text"):
        x = b.input("x", (Dim(6, "t"), 8))
        with b.block("layer_00"):
            b.outputs(build(b, x))


def test_verify_refuses_a_weight_in_two_parts_and_unused_ones() -> None:
    program = toy(1)
    head = program.weights["lm_head.weight"]
    with pytest.raises(EyespotError, match="lies in part 'layer_00' but block 'post'"):
        verify(replace(program, weights={**program.weights, head.name: replace(head, part="layer_00")}))
    with pytest.raises(EyespotError, match="no op uses it"):
        verify(replace(program, weights={**program.weights, "x": replace(head, name="x")}))


def test_chunks_and_truncation_do_not_change_the_reference() -> None:
    program = verify(toy())
    w = weights(program)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    whole = Reference(program, w.__getitem__).prefill(tokens, want=8)
    pieces = Reference(program, w.__getitem__)
    parts = [pieces.prefill(tokens[:3], want=3), pieces.prefill([7, 7], want=2)]
    pieces.truncate(3)
    parts = [parts[0], pieces.prefill(tokens[3:7], want=4), pieces.decode(tokens[7])[None]]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-5)


def test_reference_attention_and_rope_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    program = verify(toy(layers=1))
    w = weights(program, 1)
    tokens = [1, 2, 3, 4, 5]
    got = Reference(program, w.__getitem__).prefill(tokens, want=5)

    t = {k: torch.tensor(v, dtype=torch.float64) for k, v in w.items()}
    x = t["model.embed_tokens.weight"][tokens]
    h = torch.nn.functional.rms_norm(x, (8,), t["model.layers.0.norm.weight"], 1e-6)
    qkv = (h @ t["model.layers.0.qkv_proj.weight"].T).reshape(5, 4, 4)
    angle = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1], dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    complexed = torch.complex(qkv[:, :3, :2], qkv[:, :3, 2:]) * turn
    q, k = torch.cat([complexed.real, complexed.imag], -1).split([2, 1], 1)
    mixed = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), qkv[:, 3:].transpose(0, 1), is_causal=True, scale=0.5, enable_gqa=True
    )
    want = (x + mixed.transpose(0, 1).reshape(5, 8)) @ t["lm_head.weight"].T
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_window_limits_the_keys() -> None:
    program = toy(layers=1)
    w = weights(program, 2)
    graph = program.graphs["text"]
    blocks = tuple(
        replace(b, ops=tuple(replace(o, attrs={**o.attrs, "window": 2}) if o.kind == "attention" else o for o in b.ops))
        for b in graph.blocks
    )
    windowed = verify(replace(program, graphs={"text": replace(graph, blocks=blocks)}))
    one = Reference(windowed, w.__getitem__).prefill([1, 2, 3, 4])
    other = Reference(windowed, w.__getitem__).prefill([9, 8, 3, 4])
    np.testing.assert_array_equal(one, other)  # position 3 sees 2 and 3 alone
    assert not np.array_equal(one, Reference(program, w.__getitem__).prefill([1, 2, 3, 4]))


def test_erf() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(0, 2, 10_000)
    np.testing.assert_allclose(erf(x), torch.erf(torch.tensor(x)).numpy(), atol=3e-16)


def test_nan_logits_are_an_error() -> None:
    program = toy(layers=1)
    w = weights(program)
    w["lm_head.weight"][3, 3] = np.nan
    with pytest.raises(EyespotError, match="not finite"):
        Reference(program, w.__getitem__).prefill([1])


def test_vision_ops_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    side, patch, width = 8, 2, 6
    b = Builder("eye")
    with b.graph("vision"):
        pixels = b.input("pixels", (T, 3, side, side))
        with b.block("vision.embeddings", "vision"):
            x = b("linear", b("patches", pixels, patch=patch), weight=b.weight("conv", (width, 12)))
            x = b("concat", x, prefix=b.weight("cls", (1, width)), group=16)
            x = b("position", x, weight=b.weight("pos", (17, width)))
        with b.block("vision.projector", "vision"):
            x = b("slice", x, group=17, start=1)
            x = b("gelu", b("pixel_shuffle", x, side=4, factor=2), tanh=False)
            x = b("layer_norm", x, weight=b.weight("g", (24,)), bias=b.weight("b", (24,)), eps=1e-6)
        b.outputs(x)
    program = b.build(Info(1, 24, 1, 0, side, 4))
    w = weights(program, 3)
    rng = np.random.default_rng(4)
    picture = rng.standard_normal((2, 3, side, side)).astype(np.float32)
    got = Reference(program, w.__getitem__).encode(picture)

    t = {k: torch.tensor(v) for k, v in w.items()}
    conv = torch.nn.functional.conv2d(torch.tensor(picture), t["conv"].reshape(width, 3, patch, patch), stride=patch)
    x = conv.flatten(2).transpose(1, 2)
    x = torch.cat([t["cls"].expand(2, 1, width), x], 1) + t["pos"]
    x = x[:, 1:].reshape(2, 4, 4, width)
    x = x.view(2, 4, 2, width * 2).permute(0, 2, 1, 3).contiguous().view(2, 2, 2, width * 4).permute(0, 2, 1, 3)
    x = torch.nn.functional.gelu(x.reshape(8, 24))
    want = torch.nn.functional.layer_norm(x, (24,), t["g"], t["b"], 1e-6)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
