"""Qwen2 and Qwen2.5 language models (Qwen2ForCausalLM): biases on q, k, v, perhaps a sliding window above.

Knows its config, tensor names, and prompt. Source: transformers' models/qwen2.
"""

from __future__ import annotations

from dataclasses import dataclass

from eyespot import limits
from eyespot.families import blocks
from eyespot.families.blocks import Built, Decoder, Layer, Names, Request, Sizes
from eyespot.families.config import Fields
from eyespot.families.rope import Rope, read_rope

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Config:
    sizes: Sizes
    rope: Rope
    windows: tuple[int, ...]  # of each layer; 0 sees everything

    @classmethod
    def read(cls, fields: Fields, ctx_size: int | None) -> Config:
        sizes = Sizes.read(fields)
        rope = read_rope(fields, sizes.head_dim, sizes.max_position_embeddings, ctx_size)
        return cls(sizes, rope, _windows(fields, sizes, rope.max_position, ctx_size))


def _windows(fields: Fields, sizes: Sizes, reach: int, ctx_size: int | None) -> tuple[int, ...]:
    """transformers 5 writes layer_types; before it, layers from max_window_layers on slide."""
    layers = sizes.num_hidden_layers
    fields.ignore("layer_types", "max_window_layers", "sliding_window")
    if not fields.flag("use_sliding_window", False) or "sliding_window" not in fields:
        return (0,) * layers
    window = blocks.effective_window(fields.integer("sliding_window", limits.CONTEXT), reach, ctx_size)
    if "layer_types" not in fields:
        first = fields.integer("max_window_layers", limits.LAYERS, low=0, default=28)
        return tuple(window if n >= first else 0 for n in range(layers))
    types = fields.raw["layer_types"]
    known = {"full_attention": 0, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != layers or not all(isinstance(t, str) and t in known for t in types):
        fields.fault("layer_types", f"{layers} times full_attention or sliding_attention")
        return (0,) * layers
    return tuple(known[t] for t in types)


def decoder(request: Request, fields: Fields, names: Names) -> Decoder:
    config = Config.read(fields, request.ctx_size)

    def layer(n: int) -> Layer:
        return blocks.split_layer(config.sizes, f"{names.body}layers.{n}.", qkv_bias=True, window=config.windows[n])

    embed = f"{names.body}embed_tokens.weight"
    return Decoder(
        "qwen2", config.sizes, config.rope, names, layer,
        embed_tokens=embed,
        norm=f"{names.body}norm.weight",
        lm_head=blocks.head_source(fields, request.tensors, embed, f"{names.head}lm_head.weight", tied=False),
        chat_template=CHAT_TEMPLATE,
        end_tokens=END_TOKENS,
    )  # fmt: skip


def build(request: Request) -> Built:
    return blocks.build_decoder(request, decoder(request, request.fields, Names()))
