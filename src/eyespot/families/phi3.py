"""Phi-3 and Phi-3.5 mini language models (Phi3ForCausalLM): fused tensors, a sliding window, two sets of frequencies.

Knows its config, tensor names, and prompt. Source: transformers' models/phi3.
"""

from __future__ import annotations

from dataclasses import dataclass

from eyespot import limits
from eyespot.families import blocks
from eyespot.families.blocks import Built, Decoder, Layer, Names, Request, Sizes
from eyespot.families.config import Fields
from eyespot.families.rope import Rope, read_rope
from eyespot.program import Rows

END_TOKENS = ("<|end|>", "<|endoftext|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Config:
    sizes: Sizes
    rope: Rope
    window: int

    @classmethod
    def read(cls, fields: Fields, ctx_size: int | None) -> Config:
        sizes = Sizes.read(fields)
        rope = read_rope(fields, sizes.head_dim, sizes.max_position_embeddings, ctx_size, partial=True)
        fields.only("attention_bias", (False,), False)
        window = fields.integer("sliding_window", limits.CONTEXT, low=0, default=0)  # null or 0: none
        return cls(sizes, rope, blocks.effective_window(window, rope.max_position, ctx_size))


def decoder(request: Request, fields: Fields, names: Names) -> Decoder:
    config = Config.read(fields, request.ctx_size)
    s = config.sizes

    def layer(n: int) -> Layer:
        at = f"{names.body}layers.{n}."
        return Layer(
            f"{at}input_layernorm.weight",
            (Rows(f"{at}self_attn.qkv_proj.weight", 0, s.q_rows + 2 * s.kv_rows),),
            f"{at}self_attn.o_proj.weight",
            f"{at}post_attention_layernorm.weight",
            (Rows(f"{at}mlp.gate_up_proj.weight", 0, 2 * s.intermediate_size),),
            f"{at}mlp.down_proj.weight",
            window=config.window,
        )

    embed = f"{names.body}embed_tokens.weight"
    return Decoder(
        "phi3", s, config.rope, names, layer,
        embed_tokens=embed,
        norm=f"{names.body}norm.weight",
        lm_head=blocks.head_source(fields, request.tensors, embed, f"{names.head}lm_head.weight", tied=False),
        chat_template=CHAT_TEMPLATE,
        end_tokens=END_TOKENS,
    )  # fmt: skip


def build(request: Request) -> Built:
    return blocks.build_decoder(request, decoder(request, request.fields, Names()))
