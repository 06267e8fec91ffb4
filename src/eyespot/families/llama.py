"""Llama-shaped language models (LlamaForCausalLM): Llama 2 and 3, SmolLM2, TinyLlama, and what a GGUF calls llama.

Knows its config and tensor names. Prompts differ from one Llama to the next, so the checkpoint must bring its template.
Source: transformers' models/llama.
"""

from __future__ import annotations

from dataclasses import dataclass

from eyespot.families import blocks
from eyespot.families.blocks import Built, Decoder, Layer, Names, Request, Sizes
from eyespot.families.config import Fields
from eyespot.families.rope import Rope, read_rope

END_TOKENS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class Config:
    sizes: Sizes
    rope: Rope
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def read(cls, fields: Fields, ctx_size: int | None) -> Config:
        sizes = Sizes.read(fields)
        fields.only("rope_interleaved", (False,), False)  # nanotron's; SmolLM2 carries it
        fields.ignore("is_llama_config", "transformers.js_config")
        return cls(
            sizes,
            read_rope(fields, sizes.head_dim, sizes.max_position_embeddings, ctx_size),
            fields.flag("attention_bias", False),
            fields.flag("mlp_bias", False),
        )


def decoder(request: Request, fields: Fields, names: Names) -> Decoder:
    config = Config.read(fields, request.ctx_size)
    bias = config.attention_bias

    def layer(n: int) -> Layer:
        return blocks.split_layer(
            config.sizes, f"{names.body}layers.{n}.", qkv_bias=bias, o_bias=bias, mlp_bias=config.mlp_bias
        )

    embed = f"{names.body}embed_tokens.weight"
    return Decoder(
        "llama", config.sizes, config.rope, names, layer,
        embed_tokens=embed,
        norm=f"{names.body}norm.weight",
        lm_head=blocks.head_source(fields, request.tensors, embed, f"{names.head}lm_head.weight", tied=False),
        end_tokens=END_TOKENS,
    )  # fmt: skip


def build(request: Request) -> Built:
    return blocks.build_decoder(request, decoder(request, request.fields, Names()))
