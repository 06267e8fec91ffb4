"""InternVL 2, 2.5 and 3 with the 300M InternViT: its authors' files (InternVLChatModel) and transformers' ('-hf').

Knows both sets of names, the eyes, projector, prompt and image rule; the language model has a family of its own.
InternViT-6B (RMS norm, normalized q and k) is refused. Sources: the InternVL repository, transformers' models/internvl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eyespot import limits
from eyespot.errors import UsageError
from eyespot.families import blocks, eyes
from eyespot.families.blocks import Built, Decoder, Names, Request, Sources, VitLayer
from eyespot.families.config import Fields
from eyespot.families.language import language
from eyespot.program import Builder, Dim, Info, Rows

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
IMAGE_PROCESSOR = "GotOcr2ImageProcessor"  # transformers' InternVL uses this model's
DONE = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # by PIL's numbers
CONTEXT_TOKEN = "<IMG_CONTEXT>"
AFTER_CONTEXT = 7  # it and the six added after it end the vocabulary: <quad> </quad> <ref> </ref> <box> </box>

SYSTEM_1 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One of the conversation templates of InternVL's code: what opens a turn, and what ends it."""

    system: str
    turn: str = "<|im_start|>{{ message['role'] }}\n"
    assistant: str = "<|im_start|>assistant\n"
    system_turn: str = "<|im_start|>system\n"
    end: str = "<|im_end|>"
    begin: str = ""


CONVERSATIONS = {
    "Hermes-2": Conversation(SYSTEM_1),
    "internlm2-chat": Conversation(SYSTEM_1, begin="{{ bos_token }}"),  # that tokenizer puts <s> before every prompt
    "phi3-chat": Conversation(
        SYSTEM_1, "<|{{ message['role'] }}|>\n", "<|assistant|>\n", "<|system|>\n", "<|end|>", "{{ bos_token }}"
    ),
    "internvl2_5": Conversation(SYSTEM_2_5, end="<|im_end|>\n"),
}
# A picture is "<image>\n" where it stands; what numbers several is text before them.
CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)


def chat_template(c: Conversation, system: str) -> str:
    """Jinja of a conversation. A system message of the messages' own replaces `system`."""
    literal = "'" + system.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    opening = (
        "{% if messages[0]['role'] != 'system' %}" + c.system_turn + "{{ " + literal + " }}" + c.end + "{% endif %}"
    )
    return (
        f"{c.begin}{opening}"
        "{% for message in messages %}"
        f"{c.turn}{CONTENT}{c.end}"
        "{% endfor %}{% if add_generation_prompt %}"
        f"{c.assistant}"
        "{% endif %}"
    )


# transformers' own template has no system prompt and puts pictures where they stand in the message.
HF_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class VisionNames:
    """Checkpoint names of the eyes and the projector, after `root`; N is the layer number."""

    root: str
    class_embedding: str
    position_embedding: str
    patch_embedding: str
    layer: str
    qkv: tuple[str, ...]
    proj: str
    norm1: str
    norm2: str
    ls1: str
    ls2: str
    projector: tuple[str, str, str]


CHAT_NAMES = VisionNames(
    "vision_model.", "embeddings.class_embedding", "embeddings.position_embedding", "embeddings.patch_embedding",
    "encoder.layers.N.", ("attn.qkv",), "attn.proj", "norm1", "norm2", "ls1", "ls2", ("mlp1.0", "mlp1.1", "mlp1.3"),
)  # fmt: skip


def hf_names(root: str) -> VisionNames:
    """transformers' names; `root` is "model.", or "" in early files."""
    return VisionNames(
        f"{root}vision_tower.", "embeddings.cls_token", "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection", "encoder.layer.N.",
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.projection_layer",
        "layernorm_before", "layernorm_after", "lambda_1", "lambda_2",
        tuple(f"{root}multi_modal_projector.{n}" for n in ("layer_norm", "linear_1", "linear_2")),  # type: ignore[arg-type]
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vision(eyes.TileEyes):
    """InternViT's fields, select_layer settled."""

    qkv_bias: bool

    @classmethod
    def read(cls, fields: Fields, top: Fields, keys: Mapping[str, str], image_size: int | None) -> Vision:
        """keys: this config's words for qkv_bias, qk_norm and select_layer. Sizes are asked for and never guessed: the
        defaults of the authors' class are InternViT-6B's."""
        hidden, heads = eyes.width_and_heads(fields)
        fields.only("norm_type", ("layer_norm",))
        fields.only(keys["qk_norm"], (False,))
        fields.only("num_channels", (3,), 3)
        fields.only("use_absolute_position_embeddings", (True,), True)
        fields.only("use_mean_pooling", (True,), True)
        fields.ignore("use_mask_token", "layer_scale_init_value")
        act = fields.only("hidden_act", ("gelu", "gelu_pytorch_tanh"))
        layers, run = eyes.layers_that_run(fields, top, keys["select_layer"], least=0)
        patch = square(fields, "patch_size", limits.IMAGE_SIDE)
        trained = square(fields, "image_size", limits.IMAGE_SIDE)
        size = trained if image_size is None else image_size
        ratio = top.number("downsample_ratio", 1 / 64, 1, 0.5)
        factor = round(1 / ratio)
        if abs(factor * ratio - 1) > 1e-6:
            top.fault("downsample_ratio", "one over a whole number")
        step = patch * factor
        if not 0 < size <= limits.IMAGE_SIDE or size % step or (size // patch) ** 2 >= limits.CONTEXT:
            if image_size is not None:
                raise UsageError(f"--image-size {image_size} does not fit the model", expected=f"a multiple of {step}")
            top.findings.faults.add(f"a picture of {size} pixels is not whole squares of {step}")
        if hidden * factor * factor > limits.DIM:
            top.fault("downsample_ratio", f"pixel shuffle rows of at most {limits.DIM}")
        return cls(
            hidden, fields.integer("intermediate_size", limits.DIM), layers, run, heads, patch,
            fields.number("layer_norm_eps", 0, 1), act == "gelu_pytorch_tanh", size, factor,
            fields.flag(keys["qkv_bias"]),
        )  # fmt: skip


def square(fields: Fields, key: str, high: int) -> int:
    """A side in pixels, given as one number or as two equal ones."""
    value = fields.raw.get(key)
    if isinstance(value, list) and len(value) == 2 and type(value[0]) is type(value[1]) is int and value[0] == value[1]:
        fields.ignore(key)
        return Fields({key: value[0]}, fields.findings, fields.where).integer(key, high)
    return fields.integer(key, high)


def vision_graph(b: Builder, v: Vision, names: VisionNames, hidden: int) -> None:
    """Graph `vision`: pixels [t, 3, s, s] -> features [tile_tokens * t, hidden]. Weights take the authors' names."""
    own, width, patches = CHAT_NAMES, v.hidden_size, v.side * v.side
    with b.graph("vision"):
        x = b.input("pixels", (Dim(1, "t"), 3, v.image_size, v.image_size))
        with b.block("vision.embeddings", "vision"):
            at, source = own.root, names.root
            x = b("patches", x, patch=v.patch)
            name, there = at + own.patch_embedding, source + names.patch_embedding
            x = blocks.linear(b, x, name, there, width, 3 * v.patch**2, out="patch_embedding")
            prefix = b.weight(at + own.class_embedding, (1, width), [source + names.class_embedding])
            x = b("concat", x, prefix=prefix, group=patches)
            table = b.weight(
                at + own.position_embedding,
                (patches + 1, width),
                [source + names.position_embedding],
                transform=f"resize_position:{v.side}",
            )
            x = b("position", x, weight=table)
        for n in range(v.layers):
            with b.block(f"vision.layer_{n:02d}", "vision"):
                x = blocks.vit_layer(b, vit_layer(v, names, n), x, own.root + own.layer.replace("N", str(n)))
        with b.block("vision.projector", "vision"):
            x = b("slice", x, group=patches + 1, start=1)
            b.outputs(eyes.projector(b, x, v, hidden, own.projector, names.projector))


def vit_layer(v: Vision, names: VisionNames, n: int) -> VitLayer:
    at = names.root + names.layer.replace("N", str(n))
    count = 3 * v.hidden_size // len(names.qkv)

    def rows(kind: str) -> Sources:
        return tuple(Rows(f"{at}{name}.{kind}", 0, count) for name in names.qkv)

    return VitLayer(
        v.hidden_size, v.intermediate_size, v.heads, v.side * v.side + 1, v.eps, v.tanh,
        norm1=at + names.norm1,
        qkv=rows("weight"),
        qkv_bias=rows("bias") if v.qkv_bias else (),
        proj=at + names.proj,
        ls1=at + names.ls1,
        norm2=at + names.norm2,
        fc1=f"{at}mlp.fc1",
        fc2=f"{at}mlp.fc2",
        ls2=at + names.ls2,
    )  # fmt: skip


def assemble(
    request: Request,
    vision: Vision,
    names: VisionNames,
    decoder: Decoder,
    image_token_id: int,
    tiles: Mapping[str, Any],
    template: str,
    template_wins: bool,
    warnings: Sequence[str] = (),
) -> Built:
    """Both graphs, once the config is known to be sound; `tiles` completes and overrides the image rule."""
    request.fields.findings.raise_if_any()
    b = Builder(f"internvl/{decoder.family}")
    vision_graph(b, vision, names, decoder.sizes.hidden_size)
    blocks.text_graph(b, decoder, image_token_id)
    s = decoder.sizes
    reach = blocks.check_context(request, decoder)
    info = Info(s.vocab_size, s.hidden_size, reach, image_token_id, vision.image_size, vision.tile_tokens)
    image = {
        "rule": "internvl",
        "size": vision.image_size,
        "mean": list(MEAN),
        "std": list(STD),
        "resample": "bicubic",
        **tiles,
        "tokens_per_tile": vision.tile_tokens,
        "before": "<img>",
        "token": CONTEXT_TOKEN,
        "after": "</img>",
    }
    rest = [names.root + names.layer.replace("N", str(n)) for n in range(vision.layers, vision.num_hidden_layers)]
    return Built(
        b.build(info),
        request.fields.unknown(),
        unused_tensors=(*eyes.unused(*rest), r".*embeddings\.mask_token"),
        chat_template=template,
        template_wins=template_wins,
        eos=decoder.eos(request.token_ids),
        bos=s.bos,
        image=image,
        warnings=tuple(warnings),
    )


def image_token(request: Request, keys: tuple[str, ...], vocab_size: int) -> int:
    """The tokenizer's id of <IMG_CONTEXT>; else the config's; else by the order in which the tokens were added."""
    fields = request.fields
    fields.ignore(*keys)
    if (found := eyes.added_token(request, CONTEXT_TOKEN, vocab_size)) is not None:
        return found
    for key in keys:
        if key in fields:
            return fields.integer(key, vocab_size - 1, low=0)
    return max(vocab_size - AFTER_CONTEXT, 0)


def build(request: Request) -> Built:
    """InternVLChatModel: the authors' files."""
    top = request.fields
    text = top.inner("llm_config")
    keys = {"qkv_bias": "qkv_bias", "qk_norm": "qk_normalization", "select_layer": "select_layer"}
    force = None if "force_image_size" not in top else square(top, "force_image_size", limits.IMAGE_SIDE)
    vision = Vision.read(
        top.inner("vision_config"), top, keys, request.image_size if request.image_size is not None else force
    )
    top.only("ps_version", ("v2",))
    top.only("pad2square", (False,), False)
    for key in ("use_backbone_lora", "use_llm_lora"):
        top.only(key, (0,), 0)
    top.ignore("force_image_size", "hidden_size", "tie_word_embeddings")  # the language model's own are meant
    decoder = language(request, text, Names("language_model.", "language_model.model.", "language_model."), "InternVL")
    token = image_token(request, ("img_context_token_id", "image_token_id"), decoder.sizes.vocab_size)
    dynamic = top.flag("dynamic_image_size", True)
    most = top.integer("max_dynamic_patch", limits.TILES, default=12)
    tiles = {
        "min_tiles": top.integer("min_dynamic_patch", most, default=1) if dynamic else 1,
        "max_tiles": most if dynamic else 1,
        "thumbnail": top.flag("use_thumbnail", True) and dynamic,
        "placeholder": "<image>",
    }
    top.ignore("min_dynamic_patch")
    conversation = CONVERSATIONS[top.only("template", tuple(CONVERSATIONS))]
    template = chat_template(conversation, top.text("system_message", conversation.system))
    return assemble(request, vision, CHAT_NAMES, decoder, token, tiles, template, template_wins=True)


def build_hf(request: Request) -> Built:
    """InternVLForConditionalGeneration: transformers' files, with or without the leading "model."."""
    top, tensors = request.fields, request.tensors
    keys = {"qkv_bias": "attention_bias", "qk_norm": "use_qk_norm", "select_layer": "vision_feature_layer"}
    vision = Vision.read(top.inner("vision_config"), top, keys, request.image_size)
    top.only("vision_feature_select_strategy", ("default",), "default")
    top.only("projector_hidden_act", ("gelu",), "gelu")
    root = "model." if any(name.startswith("model.vision_tower.") for name in tensors) else ""
    decoder = eyes.inner_language(request, "InternVL")
    token = image_token(request, ("image_token_id", "image_token_index"), decoder.sizes.vocab_size)
    tiles, warnings = picture_rule(Fields(request.image_processor, top.findings, "image_processor."))
    seen = top.integer("image_seq_length", limits.CONTEXT, default=vision.tile_tokens)
    asked = request.image_processor.get("size")
    if asked is not None and request.image_size is None:
        vision, heard = resized(vision, asked, seen)
        warnings += heard
    if seen != vision.tile_tokens and request.image_size is None:
        top.fault("image_seq_length", f"{vision.tile_tokens}, which the sizes give")
    return assemble(
        request, vision, hf_names(root), decoder, token, tiles, HF_TEMPLATE, template_wins=False, warnings=warnings
    )


def picture_rule(fields: Fields) -> tuple[dict[str, Any], list[str]]:
    """Image rule of a preprocessor_config.json, and warnings of what it says that is not done.

    crop_to_patches is not read: the files on the hub say false, and transformers' InternVLProcessor sets it to true.
    """
    raw, warnings = fields.raw, []
    kind = raw.get("image_processor_type")
    if kind is not None and not str(kind).startswith(IMAGE_PROCESSOR):
        warnings.append(f"image_processor_type {kind!r:.40} is not known: pictures are cut as by {IMAGE_PROCESSOR}")
    for key, done in DONE.items():
        value = done if raw.get(key) is None else raw[key]
        if type(value) not in (bool, int, float) or not done - 1e-6 <= value <= done + 1e-6:
            warnings.append(f"image_processor.{key} = {value!r:.40} is not done: {done} is")
    number = raw.get("resample")
    resample = RESAMPLE.get(number) if type(number) is int else None
    if resample is None and number is not None:
        warnings.append(f"image_processor.resample = {number!r:.40} is not done: pictures are resized bicubic")
    most = fields.integer("max_patches", limits.TILES, default=12)
    rule = {
        "min_tiles": fields.integer("min_patches", most, default=1),
        "max_tiles": most,
        "thumbnail": True,
        "placeholder": CONTEXT_TOKEN,
        "resample": resample or "bicubic",
    }
    rule["mean"], rule["std"] = map(list, eyes.normalization(fields, MEAN, STD))
    return rule, warnings


def resized(vision: Vision, asked: object, tokens: int) -> tuple[Vision, list[str]]:
    """The eyes for tiles of the size `asked`, if those make `tokens` each; else as they were, with a warning."""
    height, width = (asked.get("height"), asked.get("width")) if isinstance(asked, Mapping) else (None, None)
    if type(height) is int and height == width and 0 < height <= limits.IMAGE_SIDE:
        other = replace(vision, image_size=height)
        whole = height % (vision.patch * vision.factor) == 0 and other.side**2 < limits.CONTEXT
        if other == vision or (whole and other.tile_tokens == tokens):
            return other, []
    taken = f"tiles are {vision.image_size} pixels a side, which --image-size can change"
    return vision, [f"image_processor.size = {asked!r:.60} is not done: {taken}"]
