"""What families share: the request they answer, sizes of a language model, builders of decoder and ViT blocks.

Knows no architecture by name: a family says where its tensors stand and what its layers add to the common shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eyespot import limits
from eyespot.errors import UsageError
from eyespot.families.config import Fields
from eyespot.families.rope import Rope
from eyespot.program import Builder, Dim, Info, Program, Ref, Rows

# Buffers that old checkpoints carry and no inference needs.
BUFFERS = (r".*rotary_emb\.inv_freq", r".*\.position_ids", r".*\.num_batches_tracked", r".*\.masked_bias")


@dataclass(frozen=True, slots=True)
class Request:
    """What a family builds from. tensors: name -> shape, as the checkpoint has them. token_ids: of added tokens.
    image_processor: the checkpoint's preprocessor_config.json."""

    fields: Fields
    tensors: Mapping[str, tuple[int, ...]]
    image_size: int | None = None
    ctx_size: int | None = None
    token_ids: Mapping[str, int] = field(default_factory=dict)
    image_processor: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Built:
    """A model as its family describes it.

    unknown_keys: config keys nobody read. unused_tensors: regexes (full match) of checkpoint tensors that are known and
    not needed. chat_template: Jinja, for a checkpoint without one, or, if template_wins, in place of the checkpoint's,
    which belongs to the bare language model. eos: ids that end an answer. image: `image` of a bundle's config.json.
    warnings: what the checkpoint asks for and does not get.
    """

    program: Program
    unknown_keys: tuple[str, ...] = ()
    unused_tensors: tuple[str, ...] = BUFFERS
    chat_template: str | None = None
    template_wins: bool = False
    eos: tuple[int, ...] = ()
    bos: int | None = None
    image: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Names:
    """Where a language model stands: `prefix` of names in the Program, `body` and `head` in the checkpoint."""

    prefix: str = ""
    body: str = "model."
    head: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The fields every language model here has, under their Hugging Face names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    eos: tuple[int, ...]
    bos: int | None

    @classmethod
    def read(cls, fields: Fields) -> Sizes:
        before = fields.faults
        hidden = fields.integer("hidden_size", limits.DIM)
        heads = fields.integer("num_attention_heads", limits.HEADS)
        kv_heads = fields.integer("num_key_value_heads", limits.HEADS, default=heads)
        head_dim = fields.integer("head_dim", limits.HEAD_DIM, default=min(max(hidden // heads, 1), limits.HEAD_DIM))
        if fields.faults == before:  # else they would only be blamed a second time
            if "head_dim" not in fields and hidden != heads * head_dim:
                fields.fault("hidden_size", f"{heads} heads of at most {limits.HEAD_DIM}")
            if heads % kv_heads:
                fields.fault("num_key_value_heads", f"a divisor of {heads} heads")
            if (heads + 2 * kv_heads) * head_dim > limits.DIM:
                fields.fault("num_attention_heads", f"heads of {head_dim} that make rows of at most {limits.DIM}")
        fields.only("hidden_act", ("silu", "swish"), "silu")
        vocab_size = fields.integer("vocab_size", limits.VOCAB)
        bos = fields.ids("bos_token_id", vocab_size)
        return cls(
            vocab_size,
            hidden,
            fields.integer("intermediate_size", limits.DIM // 2),
            fields.integer("num_hidden_layers", limits.LAYERS),
            heads,
            kv_heads,
            head_dim,
            fields.number("rms_norm_eps", 0, 1),
            fields.integer("max_position_embeddings", limits.CONTEXT),
            fields.ids("eos_token_id", vocab_size),
            bos[0] if bos else None,
        )

    @property
    def q_rows(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        return self.num_key_value_heads * self.head_dim


Sources = tuple[Rows, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """Where the weights of one decoder layer come from, and how far back it sees (window 0: all the way)."""

    input_layernorm: str
    qkv: Sources
    o_proj: str
    post_attention_layernorm: str
    gate_up: Sources
    down_proj: str
    qkv_bias: Sources = ()
    o_bias: str = ""
    gate_up_bias: Sources = ()
    down_bias: str = ""
    window: int = 0


def split_layer(
    s: Sizes, at: str, *, qkv_bias: bool = False, o_bias: bool = False, mlp_bias: bool = False, window: int = 0
) -> Layer:
    """A layer with separate q, k, v and gate, up under their Llama names; `at` ends in a dot."""

    def rows(kind: str, **counts: int) -> Sources:
        return tuple(Rows(f"{at}{name}.{kind}", 0, count) for name, count in counts.items())

    attention, mlp = f"{at}self_attn.", f"{at}mlp."
    qkv = {"self_attn.q_proj": s.q_rows, "self_attn.k_proj": s.kv_rows, "self_attn.v_proj": s.kv_rows}
    gate_up = {"mlp.gate_proj": s.intermediate_size, "mlp.up_proj": s.intermediate_size}
    return Layer(
        f"{at}input_layernorm.weight",
        rows("weight", **qkv),
        f"{attention}o_proj.weight",
        f"{at}post_attention_layernorm.weight",
        rows("weight", **gate_up),
        f"{mlp}down_proj.weight",
        qkv_bias=rows("bias", **qkv) if qkv_bias else (),
        o_bias=f"{attention}o_proj.bias" if o_bias else "",
        gate_up_bias=rows("bias", **gate_up) if mlp_bias else (),
        down_bias=f"{mlp}down_proj.bias" if mlp_bias else "",
        window=window,
    )


def effective_window(window: int, max_position: int, ctx_size: int | None) -> int:
    """A window no shorter than the context hides nothing: 0 spares the engine the comparison."""
    return 0 if window >= (ctx_size or max_position) else window


@dataclass(frozen=True, slots=True)
class Decoder:
    """A language model without its eyes. Embeddings are multiplied by embed_scale, what each half of a layer adds by
    residual_scale, the last hidden state by head_scale."""

    family: str
    sizes: Sizes
    rope: Rope
    names: Names
    layer: Callable[[int], Layer]
    embed_tokens: str
    norm: str
    lm_head: str
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    head_scale: float = 1.0
    chat_template: str | None = None
    end_tokens: tuple[str, ...] = ()
    axis: tuple[int, ...] = ()  # M-RoPE: which of a position's three numbers each frequency takes

    def eos(self, token_ids: Mapping[str, int]) -> tuple[int, ...]:
        """Ids that end an answer: the config's, then those chat tokens the tokenizer has."""
        known = (token_ids[t] for t in self.end_tokens if t in token_ids)
        return tuple(dict.fromkeys((*self.sizes.eos, *known)))


def head_source(fields: Fields, tensors: Mapping[str, Any], embed: str, head: str, tied: bool) -> str:
    """The tensor the output head is made of. A head in the checkpoint counts, whatever the config says: InternVL2-1B
    says tied and is not. Without one, a tied head is the embedding table; an untied one is missed by the loader."""
    tied = fields.flag("tie_word_embeddings", tied)
    return embed if tied and head not in tensors else head


def build_decoder(request: Request, decoder: Decoder) -> Built:
    """A plain language model, its config read: raises what the config's reading found, then builds."""
    request.fields.findings.raise_if_any()
    b = Builder(decoder.family)
    text_graph(b, decoder)
    s = decoder.sizes
    program = b.build(Info(s.vocab_size, s.hidden_size, check_context(request, decoder)))
    return Built(
        program,
        request.fields.unknown(),
        chat_template=decoder.chat_template,
        eos=decoder.eos(request.token_ids),
        bos=s.bos,
    )


def check_context(request: Request, decoder: Decoder) -> int:
    """The longest context; UsageError when the one asked for is longer."""
    reach = decoder.rope.max_position
    if request.ctx_size is not None and not 0 < request.ctx_size <= reach:
        raise UsageError(
            f"--ctx-size {request.ctx_size} does not fit the model", expected=f"1..{reach} (max_position_embeddings)"
        )
    return reach


def text_graph(b: Builder, d: Decoder, image_token_id: int = -1) -> None:
    """Graph `text` of a pre-norm decoder: tokens [n], rows [o], with eyes features [f, hidden] -> logits [o, vocab]."""
    s = d.sizes
    with b.graph("text"):
        tokens = b.input("tokens", (Dim(1, "n"),), "i32")
        rows = b.input("rows", (Dim(1, "o"),), "i32")
        features = b.input("features", (Dim(1, "f"), s.hidden_size)) if image_token_id >= 0 else ""
        if d.axis:
            b.input("positions", (Dim(1, "n"), 3), "i32")
        with b.block("embed_tokens"):
            table = b.weight(
                f"{d.names.prefix}model.embed_tokens.weight", (s.vocab_size, s.hidden_size), [d.embed_tokens]
            )
            x = b("embed", tokens, weight=table)
            if d.embed_scale != 1:
                x = b("scale", x, factor=d.embed_scale)
            if features:
                x = b("merge", x, tokens, features, token_id=image_token_id)
        for n in range(s.num_hidden_layers):
            with b.block(f"layer_{n:02d}"):
                x = _decoder_layer(b, d, x, n)
        with b.block("post"):
            x = b("select", x, rows)
            norm = b.weight(f"{d.names.prefix}model.norm.weight", (s.hidden_size,), [d.norm])
            x = b("rms_norm", x, weight=norm, eps=s.rms_norm_eps, out="norm")
            if d.head_scale != 1:
                x = b("scale", x, factor=d.head_scale)
            head = b.weight(f"{d.names.prefix}lm_head.weight", (s.vocab_size, s.hidden_size), [d.lm_head])
            b.outputs(b("head", x, weight=head, out="logits"))


def _decoder_layer(b: Builder, d: Decoder, x: str, n: int) -> str:
    """norm, qkv, rope, attention, o, add; norm, gate and up, swiglu, down, add."""
    s, layer, at = d.sizes, d.layer(n), f"{d.names.prefix}model.layers.{n}."
    width, inner = s.hidden_size, s.intermediate_size

    def weight(name: str, shape: tuple[int, ...], sources: Sources | str) -> Ref | None:
        if not sources:
            return None
        return b.weight(at + name, shape, [sources] if isinstance(sources, str) else sources)

    def norm(h: str, name: str, source: str) -> str:
        return b("rms_norm", h, weight=weight(f"{name}.weight", (width,), source), eps=s.rms_norm_eps, out=name)

    def linear(h: str, name: str, m: int, k: int, sources: Sources | str, bias: Sources | str) -> str:
        w, c = weight(f"{name}.weight", (m, k), sources), weight(f"{name}.bias", (m,), bias)
        return b("linear", h, weight=w, bias=c, out=name.rpartition(".")[2])

    h = norm(x, "input_layernorm", layer.input_layernorm)
    h = linear(h, "self_attn.qkv_proj", s.q_rows + 2 * s.kv_rows, width, layer.qkv, layer.qkv_bias)
    h = b(
        *(("rope_at", h, "positions") if d.axis else ("rope", h)),
        inv_freq=b.constant("rope.inv_freq", d.rope.inv_freq),
        axis=b.constant("rope.axis", d.axis) if d.axis else None,
        heads=s.num_attention_heads + s.num_key_value_heads,  # q and k, not v
        head_dim=s.head_dim,
        rotary_dim=d.rope.rotary_dim,
        factor=d.rope.factor,
    )
    h = b(
        "attention",
        h,
        heads=s.num_attention_heads,
        kv_heads=s.num_key_value_heads,
        head_dim=s.head_dim,
        scale=float(s.head_dim**-0.5),
        layer=n,
        group=0,
        window=layer.window,
    )
    h = linear(h, "self_attn.o_proj", width, s.q_rows, layer.o_proj, layer.o_bias)
    x = b("add", x, h, alpha=d.residual_scale, out="attention_residual")
    h = norm(x, "post_attention_layernorm", layer.post_attention_layernorm)
    h = linear(h, "mlp.gate_up_proj", 2 * inner, width, layer.gate_up, layer.gate_up_bias)
    h = b("swiglu", h)
    h = linear(h, "mlp.down_proj", width, inner, layer.down_proj, layer.down_bias)
    return b("add", x, h, alpha=d.residual_scale, out="mlp_residual")


def linear(b: Builder, x: str, name: str, source: str, m: int, k: int, bias: bool = True, out: str = "") -> str:
    """A linear layer [m, k]: `name` in the Program, `source` in the checkpoint, `out` what its value is called."""
    w = b.weight(f"{name}.weight", (m, k), [f"{source}.weight"])
    c = b.weight(f"{name}.bias", (m,), [f"{source}.bias"]) if bias else None
    return b("linear", x, weight=w, bias=c, out=out or name.rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class VitLayer:
    """A pre-norm ViT layer: sizes, and the checkpoint's tensors (q, k, v as one or three; `ls`, where there are any,
    scale what is added)."""

    width: int
    intermediate: int
    heads: int
    tokens: int  # of a tile, the class row included
    eps: float
    tanh: bool
    norm1: str
    qkv: Sources
    qkv_bias: Sources
    proj: str
    ls1: str
    norm2: str
    fc1: str
    fc2: str
    ls2: str


def vit_layer(b: Builder, v: VitLayer, x: str, at: str) -> str:
    """norm, qkv, attention within a tile, proj, scaled add; norm, fc1, gelu, fc2, scaled add. `at`: Program names."""
    head_dim = v.width // v.heads

    def norm(h: str, name: str, source: str) -> str:
        w, c = (b.weight(f"{at}{name}.{k}", (v.width,), [f"{source}.{k}"]) for k in ("weight", "bias"))
        return b("layer_norm", h, weight=w, bias=c, eps=v.eps, out=name)

    def scaled_add(h: str, name: str, source: str) -> str:
        scale = b.weight(f"{at}{name}", (v.width,), [source]) if source else None
        return b("add", x, h, scale=scale, alpha=1.0, out=f"{name}_residual")

    h = norm(x, "norm1", v.norm1)
    qkv = b.weight(f"{at}attn.qkv.weight", (3 * v.width, v.width), v.qkv)
    bias = b.weight(f"{at}attn.qkv.bias", (3 * v.width,), v.qkv_bias) if v.qkv_bias else None
    h = b("linear", h, weight=qkv, bias=bias, out="qkv")
    h = b(
        "attention",
        h,
        heads=v.heads,
        kv_heads=v.heads,
        head_dim=head_dim,
        scale=float(head_dim**-0.5),
        layer=-1,
        group=v.tokens,
        window=0,
    )
    h = linear(b, h, f"{at}attn.proj", v.proj, v.width, v.width)
    x = scaled_add(h, "ls1", v.ls1)
    h = norm(x, "norm2", v.norm2)
    h = linear(b, h, f"{at}mlp.fc1", v.fc1, v.intermediate, v.width)
    h = b("gelu", h, tanh=v.tanh)
    h = linear(b, h, f"{at}mlp.fc2", v.fc2, v.width, v.intermediate)
    return scaled_add(h, "ls2", v.ls2)
