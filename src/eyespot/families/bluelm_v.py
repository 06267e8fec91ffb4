"""BlueLM-V-3B's design (arXiv 2411.10640): SigLIP, a 2x2 token downsampler after VILA, any language model here.

Its checkpoint is not published, so the config and the names are eyespot's, in transformers' style, for models composed
of a SigLIP and a language model. What the paper leaves open is a setting: the layer of SigLIP that is taken
(vision_feature_layer), and where the thumbnail stands (last).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from eyespot import limits
from eyespot.errors import EyespotError, UsageError
from eyespot.families import blocks, eyes
from eyespot.families.blocks import Built, Request, VitLayer
from eyespot.families.config import Fields
from eyespot.program import Builder, Dim, Info, Rows
from eyespot.resolution import BlueLMV, Grid

MEAN = STD = (0.5, 0.5, 0.5)  # SigLIP's
IMAGE_TOKEN = "<image>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def siglip(fields: Fields, top: Fields) -> eyes.TileEyes:
    """SigLIP's fields."""
    hidden, heads = eyes.width_and_heads(fields)
    fields.only("num_channels", (3,), 3)
    fields.ignore("vision_use_head", "projection_size")
    layers, run = eyes.layers_that_run(fields, top, "vision_feature_layer", least=1)
    patch = fields.integer("patch_size", limits.IMAGE_SIDE)
    size = fields.integer("image_size", limits.IMAGE_SIDE)
    factor = top.integer("downsample", 8, default=2)
    if not 0 < size // max(patch, 1) <= 256:
        fields.fault("image_size", f"1 to 256 patches of {patch} pixels")
    if hidden * factor * factor > limits.DIM:
        top.fault("downsample", f"rows of at most {limits.DIM}")
    act = fields.only("hidden_act", ("gelu_pytorch_tanh", "gelu"), "gelu_pytorch_tanh")
    return eyes.TileEyes(
        hidden, fields.integer("intermediate_size", limits.DIM), layers, run, heads, patch,
        fields.number("layer_norm_eps", 0, 1, 1e-6), act == "gelu_pytorch_tanh", size, factor,
    )  # fmt: skip


def build(request: Request) -> Built:
    top, tensors = request.fields, request.tensors
    vision = siglip(top.inner("vision_config"), top)
    at = "embeddings.patch_embedding.weight"
    found = [n.removesuffix(at) for n in tensors if n.endswith(at)]
    root = found[0] if len(found) == 1 else "model.vision_tower."
    outer = "model." if any(n.startswith("model.multi_modal_projector.") for n in tensors) else ""
    decoder = eyes.inner_language(request, "BlueLM-V")
    sizes = decoder.sizes
    token, mark = _image_token(request, sizes.vocab_size)
    rule = BlueLMV(vision.image_size, vision.tile_tokens, _grids(top), top.number("alpha", 0, 1, 0.1))
    if request.image_size is not None:
        raise UsageError("--image-size: SigLIP's tiles have one size", found=request.image_size)
    top.findings.raise_if_any()
    b = Builder(f"bluelm_v/{decoder.family}")
    vision_graph(b, vision, root, outer, sizes.hidden_size)
    blocks.text_graph(b, decoder, token)
    reach = blocks.check_context(request, decoder)
    mean, std = eyes.normalization(Fields(request.image_processor, top.findings, "image_processor."), MEAN, STD)
    top.findings.raise_if_any()
    image: dict[str, Any] = {
        "rule": rule.name, **asdict(rule), "mean": list(mean), "std": list(std), "resample": "bicubic",
        "placeholder": mark, "before": "", "token": mark, "after": "",
    }  # fmt: skip
    image["grids"] = [list(grid) for grid in rule.grids]
    rest = [f"{root}encoder.layers.{n}." for n in range(vision.layers, vision.num_hidden_layers)]
    return Built(
        b.build(Info(sizes.vocab_size, sizes.hidden_size, reach, token, vision.image_size, vision.tile_tokens)),
        top.unknown(),
        unused_tensors=eyes.unused(*rest, f"{root}post_layernorm.", f"{root}head."),
        chat_template=CHAT_TEMPLATE.replace("IMAGE", mark),
        eos=decoder.eos(request.token_ids),
        bos=sizes.bos,
        image=image,
    )


def _grids(top: Fields) -> tuple[Grid, ...]:
    """Candidates, (columns, rows), the largest first; those of the paper's training where none are named."""
    raw = top.raw.get("image_grids")
    top.ignore("image_grids")
    if raw is None:
        return BlueLMV(1, 1).grids

    def grid(g: Any) -> bool:
        whole = isinstance(g, list) and len(g) == 2 and all(type(n) is int and n >= 1 for n in g)
        return whole and g[0] * g[1] <= limits.TILES

    fine = isinstance(raw, list) and 0 < len(raw) <= 1024 and all(map(grid, raw))
    if not fine:
        top.fault("image_grids", "a list of [columns, rows]")
        return ((1, 1),)
    return tuple((columns, rows) for columns, rows in raw)


def _image_token(request: Request, vocab_size: int) -> tuple[int, str]:
    """The id and the text of the token that stands for a picture."""
    fields = request.fields
    token = fields.integer(
        "image_token_id", vocab_size - 1, low=0, default=min(request.token_ids.get(IMAGE_TOKEN, 0), vocab_size - 1)
    )
    texts = {i: text for text, i in request.token_ids.items()}
    if request.token_ids and token not in texts:
        raise EyespotError("image_token_id is not an added token of the tokenizer", found=token,
                           expected=", ".join(f"{i} {t}" for i, t in sorted(texts.items())[:8]))  # fmt: skip
    return token, texts.get(token, IMAGE_TOKEN)


def vision_graph(b: Builder, v: eyes.TileEyes, root: str, outer: str, hidden: int) -> None:
    """Graph `vision`: pixels [t, 3, s, s] -> features [tile_tokens * t, hidden]."""
    width, patches, own = v.hidden_size, v.side * v.side, "vision_tower."
    with b.graph("vision"):
        x = b.input("pixels", (Dim(1, "t"), 3, v.image_size, v.image_size))
        with b.block("vision.embeddings", "vision"):
            at = "embeddings.patch_embedding"
            x = blocks.linear(b, b("patches", x, patch=v.patch), own + at, root + at, width, 3 * v.patch**2)
            at = "embeddings.position_embedding.weight"
            x = b("position", x, weight=b.weight(own + at, (patches, width), [root + at]))
        for n in range(v.layers):
            at = f"encoder.layers.{n}."
            source = root + at
            with b.block(f"vision.layer_{n:02d}", "vision"):
                layer = VitLayer(
                    width, v.intermediate_size, v.heads, patches, v.eps, v.tanh,
                    norm1=f"{source}layer_norm1",
                    qkv=tuple(Rows(f"{source}self_attn.{x}_proj.weight", 0, width) for x in "qkv"),
                    qkv_bias=tuple(Rows(f"{source}self_attn.{x}_proj.bias", 0, width) for x in "qkv"),
                    proj=f"{source}self_attn.out_proj",
                    ls1="",
                    norm2=f"{source}layer_norm2",
                    fc1=f"{source}mlp.fc1",
                    fc2=f"{source}mlp.fc2",
                    ls2="",
                )  # fmt: skip
                x = blocks.vit_layer(b, layer, x, own + at)
        with b.block("vision.projector", "vision"):
            names = [f"multi_modal_projector.{name}" for name in ("layer_norm", "linear_1", "linear_2")]
            b.outputs(eyes.projector(b, x, v, hidden, names, [outer + name for name in names]))
