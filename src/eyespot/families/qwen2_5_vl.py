"""Qwen2.5-VL (Qwen2_5_VLForConditionalGeneration): eyes for pictures and films of any size, and Qwen2 with M-RoPE.

Knows both configs (the authors' flat one and transformers' nested one), both sets of names, windows and prompt.
Sources: the Qwen2.5-VL repository and report (arXiv 2502.13923), transformers' models/qwen2_5_vl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from eyespot import limits
from eyespot.errors import UsageError
from eyespot.families import blocks, qwen2
from eyespot.families.blocks import Built, Names, Request
from eyespot.families.config import Fields
from eyespot.families.eyes import added_token, normalization, tie_as_outside, width_and_heads
from eyespot.program import Builder, Dim, Info, Ref, Rows
from eyespot.resolution import Qwen

IMAGE_TOKEN, IMAGE_ID = "<|image_pad|>", 151655
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
NORM_EPS = 1e-6  # of every norm of the eyes; no config says it
THETA = 10_000.0  # of the eyes' rope
FRAMES = 2  # that a tile is of: a still picture twice
MOST_TOKENS = 1280  # of a picture, when nobody says: a megapixel; the model itself would take 16,384

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Vision:
    """The eyes' fields. full: numbers of the layers in which a frame's patches all see each other; in the others those
    of one window do. window: of tokens, a side."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    patch: int
    merge: int
    window: int
    full: frozenset[int]
    tokens_per_second: float

    @property
    def tile(self) -> int:
        """Pixels a side of a token."""
        return self.patch * self.merge

    @classmethod
    def read(cls, fields: Fields, hidden: int) -> Vision:
        """hidden: width of the language model, which the merger's must be."""
        width, heads = width_and_heads(fields, "num_heads", step=4)
        for key in ("in_channels", "in_chans"):
            fields.only(key, (3,), 3)
        fields.only("hidden_act", ("silu",), "silu")
        fields.only("temporal_patch_size", (FRAMES,), FRAMES)
        patch = fields.integer("patch_size", 64)
        fields.only("spatial_patch_size", (patch,), patch)
        merge = fields.only("spatial_merge_size", (2,), 2)  # a merged token is four rows that follow each other
        if fields.integer("out_hidden_size", limits.DIM) != hidden:
            fields.fault("out_hidden_size", f"{hidden}, the language model's width")
        layers = fields.integer("depth", limits.LAYERS)
        size = fields.integer("window_size", limits.IMAGE_SIDE)
        if size % (4 * patch * merge):  # or its keys would not fit the room that the plan gives them
            fields.fault("window_size", f"a multiple of {4 * patch * merge} pixels")
        listed = fields.raw.get("fullatt_block_indexes")
        fields.ignore("fullatt_block_indexes", "initializer_range", "rope_parameters")
        if not isinstance(listed, list | tuple) or not all(type(n) is int and 0 <= n < layers for n in listed):
            fields.fault("fullatt_block_indexes", f"numbers of {layers} layers")
            listed = ()
        return cls(
            width, fields.integer("intermediate_size", limits.DIM // 2), layers, heads, patch, merge,
            max(size // (patch * merge), 1), frozenset(listed), fields.number("tokens_per_second", 0, 1000, 2.0),
        )  # fmt: skip


def build(request: Request) -> Built:
    top, tensors = request.fields, request.tensors
    text = top.inner("text_config") if "text_config" in top else top
    root = "model.visual." if any(name.startswith("model.visual.") for name in tensors) else "visual."
    body = "model.language_model." if any(n.startswith("model.language_model.") for n in tensors) else "model."
    tie_as_outside(top, text)
    section = _section(text)
    decoder = qwen2.decoder(request, text, Names(body=body))
    sizes = decoder.sizes
    axis = tuple(axis for axis, count in enumerate(section) for _ in range(count))
    if len(axis) != decoder.rope.rotary_dim // 2:
        text.fault("rope_scaling", f"an mrope_section whose sum is {decoder.rope.rotary_dim // 2}")
    vision = Vision.read(top.inner("vision_config"), sizes.hidden_size)
    for key in ("vision_start_token_id", "vision_end_token_id", "vision_token_id", "video_token_id"):
        top.ignore(key)
    token = _image_token(request, sizes.vocab_size)
    rule, mean, std = _pictures(Fields(request.image_processor, top.findings, "image_processor."), vision)
    if request.image_size is not None:
        raise UsageError("--image-size is for tiles of one size", expected="--image-tokens: this model takes any size")
    top.findings.raise_if_any()
    b = Builder("qwen2_5_vl")
    vision_graph(b, vision, root, sizes.hidden_size)
    blocks.text_graph(b, replace(decoder, axis=axis), token)
    reach = blocks.check_context(request, decoder)
    image = {
        "rule": rule.name, **asdict(rule), "mean": list(mean), "std": list(std), "resample": "bicubic",
        "placeholder": IMAGE_TOKEN, "before": "", "token": IMAGE_TOKEN, "after": "",
    }  # fmt: skip
    info = Info(sizes.vocab_size, sizes.hidden_size, reach, token, vision.tile, 1, 3 * FRAMES)
    return Built(
        b.build(info),
        top.unknown(),
        chat_template=CHAT_TEMPLATE,
        eos=decoder.eos(request.token_ids),
        bos=None,
        image=image,
    )


def _section(text: Fields) -> tuple[int, ...]:
    """mrope_section: how many frequencies take each number of a position. The rest of its object is a plain rope."""
    key = "rope_scaling" if "rope_scaling" in text else "rope_parameters"
    raw = text.raw.get(key)
    section = raw.get("mrope_section") if isinstance(raw, Mapping) else None
    if not isinstance(section, list) or len(section) != 3 or not all(type(n) is int and 0 < n <= 128 for n in section):
        text.fault(key, "an object with mrope_section: three counts")
        return (1, 1, 1)
    assert isinstance(raw, Mapping)
    plain = {name: "default" if value == "mrope" else value for name, value in raw.items() if name != "mrope_section"}
    text.override(key, plain)
    return tuple(section)


def _image_token(request: Request, vocab_size: int) -> int:
    request.fields.ignore("image_token_id")
    if (found := added_token(request, IMAGE_TOKEN, vocab_size)) is not None:
        return found
    return request.fields.integer("image_token_id", vocab_size - 1, low=0, default=min(IMAGE_ID, vocab_size - 1))


def _pictures(fields: Fields, v: Vision) -> tuple[Qwen, Sequence[float], Sequence[float]]:
    """The resolution rule and the normalization of a preprocessor_config.json."""
    size = fields.raw.get("size")  # transformers 5 puts the bounds there
    bounds = Fields(size if isinstance(size, Mapping) else {}, fields.findings, f"{fields.where}size.")
    area = v.tile * v.tile
    least = fields.integer("min_pixels", limits.IMAGE_PIXELS, default=4 * area)
    least = bounds.integer("shortest_edge", limits.IMAGE_PIXELS, default=least)
    most = fields.integer("max_pixels", limits.IMAGE_PIXELS, default=16384 * area)
    most = bounds.integer("longest_edge", limits.IMAGE_PIXELS, default=most)
    if least > most:
        fields.fault("min_pixels", f"at most max_pixels, {most}")
    mean, std = normalization(fields, MEAN, STD)
    rule = Qwen(v.patch, v.merge, min(least, most), most, v.window, v.tokens_per_second)
    return rule.within(min(MOST_TOKENS, rule.most())), mean, std


def vision_graph(b: Builder, v: Vision, root: str, hidden: int) -> None:
    """Graph `vision`: one picture's tiles in the order of their windows -> features [t, hidden] in that order. Weights
    take the authors' names."""
    width, patches = v.hidden_size, v.merge * v.merge
    head_dim = width // v.heads
    wide = width * patches

    def linear(h: str, out: str, name: str, m: int, k: int, bias: bool = True) -> str:
        return blocks.linear(b, h, f"visual.{name}", f"{root}{name}", m, k, bias, out)

    def norm(h: str, name: str, out: str) -> str:
        return b("rms_norm", h, weight=b.weight(f"visual.{name}.weight", (width,), [f"{root}{name}.weight"]),
                 eps=NORM_EPS, out=out)  # fmt: skip

    quarter = head_dim // 4  # frequencies for rows, and as many for columns
    frequencies = [THETA ** (-2 * i / (head_dim // 2)) for i in range(quarter)]
    with b.graph("vision"):
        x = b.input("pixels", (Dim(1, "t"), 3 * FRAMES, v.tile, v.tile))
        rows = Dim(patches, "t")
        places = b.input("places", (rows, 2), "i32")
        windows, frames = b.input("windows", (rows,), "i32"), b.input("frames", (rows,), "i32")
        with b.block("vision.embeddings", "vision"):
            x = b("patches", x, patch=v.patch)
            x = linear(x, "patch_embed", "patch_embed.proj", width, 3 * FRAMES * v.patch * v.patch, bias=False)
        inv_freq: Ref = b.constant("vision.inv_freq", frequencies * 2)
        axis = b.constant("vision.axis", [0.0] * quarter + [1.0] * quarter)
        for n in range(v.layers):
            at = f"blocks.{n}."
            with b.block(f"vision.layer_{n:02d}", "vision"):
                h = norm(x, f"{at}norm1", "norm1")
                h = linear(h, "qkv", f"{at}attn.qkv", 3 * width, width)
                h = b("rope_at", h, places, inv_freq=inv_freq, axis=axis, heads=2 * v.heads, head_dim=head_dim,
                      rotary_dim=head_dim, factor=1.0)  # fmt: skip
                h = b("attention_runs", h, frames if n in v.full else windows, heads=v.heads, kv_heads=v.heads,
                      head_dim=head_dim, scale=float(head_dim**-0.5))  # fmt: skip
                h = linear(h, "proj", f"{at}attn.proj", width, width)
                x = b("add", x, h, alpha=1.0, out="attention_residual")
                h = norm(x, f"{at}norm2", "norm2")
                inner, source = v.intermediate_size, f"{root}{at}mlp."
                gate_up = {
                    kind: [Rows(f"{source}{half}_proj.{kind}", 0, inner) for half in ("gate", "up")]
                    for kind in ("weight", "bias")
                }
                w = b.weight(f"visual.{at}mlp.gate_up_proj.weight", (2 * inner, width), gate_up["weight"])
                c = b.weight(f"visual.{at}mlp.gate_up_proj.bias", (2 * inner,), gate_up["bias"])
                h = b("swiglu", b("linear", h, weight=w, bias=c, out="gate_up_proj"))
                h = linear(h, "down_proj", f"{at}mlp.down_proj", width, inner)
                x = b("add", x, h, alpha=1.0, out="mlp_residual")
        with b.block("vision.merger", "vision"):
            x = norm(x, "merger.ln_q", "ln_q")
            x = b("pixel_shuffle", x, side=v.merge, factor=v.merge)  # the four rows of a token, one after the other
            x = linear(x, "mlp_0", "merger.mlp.0", wide, wide)
            x = b("gelu", x, tanh=False)
            b.outputs(linear(x, "mlp_2", "merger.mlp.2", hidden, wide))
