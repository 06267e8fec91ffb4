"""MiniCPM 1B and 2B, and dense MiniCPM4 (MiniCPMForCausalLM): a Llama with scaled embeddings, residuals and logits.

Knows its config, tensor names, and prompt. Mixtures of experts and sparse attention are refused.
Source: the model authors' modeling_minicpm.
"""

from __future__ import annotations

from dataclasses import dataclass

from eyespot import limits
from eyespot.families import blocks
from eyespot.families.blocks import Built, Decoder, Layer, Names, Request, Sizes
from eyespot.families.config import Fields
from eyespot.families.rope import Rope, read_rope

END_TOKENS = ("<|im_end|>",)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "<用户>{{ message['content'] | trim }}<AI>{% else %}{{ message['content'] | trim }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class Config:
    sizes: Sizes
    rope: Rope
    scale_emb: float
    scale_depth: float
    dim_model_base: int

    @classmethod
    def read(cls, fields: Fields, ctx_size: int | None) -> Config:
        sizes = Sizes.read(fields)
        fields.only("attention_bias", (False,), False)
        fields.only("num_experts", (0,), 0)
        if "sparse_config" in fields:
            fields.refuse("sparse_config", "null")
        fields.ignore("sparse_config", "num_experts_per_tok", "scale_width", "mup_denominator", "rope_theta")
        return cls(
            sizes,
            read_rope(fields, sizes.head_dim, sizes.max_position_embeddings, ctx_size),
            fields.number("scale_emb", 1e-6, 1e6, 1.0),
            fields.number("scale_depth", 1e-6, 1e6, 1.0),
            fields.integer("dim_model_base", limits.DIM, default=1),
        )


def decoder(request: Request, fields: Fields, names: Names) -> Decoder:
    config = Config.read(fields, request.ctx_size)
    s = config.sizes

    def layer(n: int) -> Layer:
        return blocks.split_layer(s, f"{names.body}layers.{n}.")

    embed = f"{names.body}embed_tokens.weight"
    return Decoder(
        "minicpm", s, config.rope, names, layer,
        embed_tokens=embed,
        norm=f"{names.body}norm.weight",
        lm_head=blocks.head_source(fields, request.tensors, embed, f"{names.head}lm_head.weight", tied=True),
        embed_scale=config.scale_emb,
        residual_scale=config.scale_depth / s.num_hidden_layers**0.5,
        head_scale=config.dim_model_base / s.hidden_size,
        chat_template=CHAT_TEMPLATE,
        end_tokens=END_TOKENS,
    )  # fmt: skip


def build(request: Request) -> Built:
    return blocks.build_decoder(request, decoder(request, request.fields, Names()))
