"""What families with eyes share: fields of a ViT of square tiles, the projector, the language model inside, pictures.

Knows no architecture by name, as `blocks` does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from eyespot import limits
from eyespot.families.blocks import BUFFERS, Decoder, Names, Request, linear
from eyespot.families.config import Fields
from eyespot.families.language import language
from eyespot.program import Builder

PROJECTOR_EPS = 1e-5  # torch.nn.LayerNorm's default, which every projector here leaves in place


@dataclass(frozen=True, slots=True)
class TileEyes:
    """A ViT that sees square tiles of one size. layers: those that run; image_size: of a tile, in pixels a side."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    layers: int
    heads: int
    patch: int
    eps: float
    tanh: bool
    image_size: int
    factor: int  # of the pixel shuffle

    @property
    def side(self) -> int:
        """Patches a row; pixels beyond the last whole patch are not seen."""
        return self.image_size // self.patch

    @property
    def tile_tokens(self) -> int:
        return (-(-self.side // self.factor)) ** 2


def width_and_heads(fields: Fields, heads_key: str = "num_attention_heads", step: int = 1) -> tuple[int, int]:
    """hidden_size and the heads, each of which is a multiple of `step` wide."""
    before = fields.faults
    width = fields.integer("hidden_size", limits.DIM // 3)
    heads = fields.integer(heads_key, limits.HEADS)
    if fields.faults == before and (width % heads or width // heads > limits.HEAD_DIM or width // heads % step):
        each = "each" if step == 1 else f"each a multiple of {step},"
        fields.fault("hidden_size", f"a multiple of {heads} heads, {each} at most {limits.HEAD_DIM} wide")
    return width, heads


def layers_that_run(fields: Fields, top: Fields, key: str, least: int) -> tuple[int, int]:
    """num_hidden_layers, and how many of them make the hidden state that `key` of `top` names, at least `least`."""
    before = fields.faults
    layers = fields.integer("num_hidden_layers", limits.LAYERS)
    chosen = top.integer(key, limits.LAYERS, -limits.LAYERS, default=-1)
    run = chosen if chosen >= 0 else layers + 1 + chosen
    if fields.faults == before and not least <= run <= layers:
        top.fault(key, f"a hidden state of {layers} layers")
    return layers, max(run, least)


def inner_language(request: Request, eyes: str) -> Decoder:
    """The language model of a checkpoint with transformers' names, old or new ones."""
    top, tensors = request.fields, request.tensors
    text = top.inner("text_config")
    bodies = ("model.language_model.", "language_model.model.", "model.language_model.model.")
    body = next((x for x in bodies if f"{x}embed_tokens.weight" in tensors), bodies[0])
    head = "language_model." if "language_model.lm_head.weight" in tensors else ""
    tie_as_outside(top, text)
    return language(request, text, Names("language_model.", body, head), eyes)


def tie_as_outside(top: Fields, text: Fields) -> None:
    """The outer tie_word_embeddings is the one transformers obeys."""
    if text is not top and "tie_word_embeddings" in top:
        text.override("tie_word_embeddings", top.flag("tie_word_embeddings"))


def added_token(request: Request, text: str, vocab_size: int) -> int | None:
    """The tokenizer's id of `text`; None where it has none."""
    found = request.token_ids.get(text)
    if found is not None and not 0 <= found < vocab_size:
        request.fields.findings.faults.add(f"{text} is token {found} of a vocabulary of {vocab_size}")
    return found


def normalization(
    fields: Fields, mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """image_mean and image_std of a preprocessor_config.json; `mean` and `std` where it has none."""
    if "image_mean" in fields:
        mean = fields.numbers("image_mean", 3, -100, 100)
    if "image_std" in fields:
        std = fields.numbers("image_std", 3, 1e-3, 100)
    return mean, std


def unused(*prefixes: str) -> tuple[str, ...]:
    """Built.unused_tensors: buffers, and all that begins with one of `prefixes`, such as layers that do not run."""
    return (*BUFFERS, *(re.escape(prefix) + ".*" for prefix in prefixes))


def projector(b: Builder, x: str, v: TileEyes, hidden: int, names: Sequence[str], sources: Sequence[str]) -> str:
    """Pixel shuffle (an odd side is filled up with zeros), then norm, linear, gelu, linear to rows of `hidden`. names,
    sources: of those three layers, in the Program and in the checkpoint."""
    wide = v.hidden_size * v.factor * v.factor
    x = b("pixel_shuffle", x, side=v.side, factor=v.factor)
    w, c = (b.weight(f"{names[0]}.{k}", (wide,), [f"{sources[0]}.{k}"]) for k in ("weight", "bias"))
    x = b("layer_norm", x, weight=w, bias=c, eps=PROJECTOR_EPS)
    x = linear(b, x, names[1], sources[1], hidden, wide, out="linear_1")
    return linear(b, b("gelu", x, tanh=False), names[2], sources[2], hidden, hidden, out="linear_2")
