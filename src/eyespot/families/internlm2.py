"""InternLM2 language models (InternLM2ForCausalLM): a Llama whose q, k, v lie woven together in one tensor.

Knows its config, tensor names, and prompt. `wqkv` has rows [kv_heads, heads a kv head + 2, head_dim]: each key head's
queries, then its key, then its value. Source: the model authors' modeling_internlm2.
"""

from __future__ import annotations

from dataclasses import dataclass

from eyespot import limits
from eyespot.families import blocks
from eyespot.families.blocks import Built, Decoder, Layer, Names, Request, Sizes, Sources
from eyespot.families.config import Fields
from eyespot.families.rope import Rope, read_rope
from eyespot.program import Rows

END_TOKENS = ("<|im_end|>",)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Config:
    sizes: Sizes
    rope: Rope
    bias: bool  # on wqkv and wo

    @classmethod
    def read(cls, fields: Fields, ctx_size: int | None) -> Config:
        sizes = Sizes.read(fields)
        if sizes.num_hidden_layers * sizes.num_key_value_heads > limits.OPS:  # each takes three row ranges
            fields.fault("num_key_value_heads", f"at most {limits.OPS} over all layers")
        rope = read_rope(fields, sizes.head_dim, sizes.max_position_embeddings, ctx_size)
        return cls(sizes, rope, fields.flag("bias", False))


def unweave(s: Sizes, tensor: str) -> Sources:
    """Row ranges of `wqkv` in the order all q, all k, all v."""
    q = s.q_rows // s.num_key_value_heads  # rows of the queries that share a key
    run = q + 2 * s.head_dim
    parts = ((0, q), (q, q + s.head_dim), (q + s.head_dim, run))
    return tuple(Rows(tensor, h * run + a, h * run + b) for a, b in parts for h in range(s.num_key_value_heads))


def decoder(request: Request, fields: Fields, names: Names) -> Decoder:
    config = Config.read(fields, request.ctx_size)
    s = config.sizes

    def layer(n: int) -> Layer:
        at = f"{names.body}layers.{n}."
        gate_up = tuple(Rows(f"{at}feed_forward.{w}.weight", 0, s.intermediate_size) for w in ("w1", "w3"))
        return Layer(
            f"{at}attention_norm.weight",
            unweave(s, f"{at}attention.wqkv.weight"),
            f"{at}attention.wo.weight",
            f"{at}ffn_norm.weight",
            gate_up,
            f"{at}feed_forward.w2.weight",
            qkv_bias=unweave(s, f"{at}attention.wqkv.bias") if config.bias else (),
            o_bias=f"{at}attention.wo.bias" if config.bias else "",
        )

    embed = f"{names.body}tok_embeddings.weight"
    return Decoder(
        "internlm2", s, config.rope, names, layer,
        embed_tokens=embed,
        norm=f"{names.body}norm.weight",
        lm_head=blocks.head_source(fields, request.tensors, embed, f"{names.head}output.weight", tied=False),
        chat_template=CHAT_TEMPLATE,
        end_tokens=END_TOKENS,
    )  # fmt: skip


def build(request: Request) -> Built:
    return blocks.build_decoder(request, decoder(request, request.fields, Names()))
