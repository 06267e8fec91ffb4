"""Tiny random models of every family, written as Hugging Face checkpoints with a real tokenizer, for everybody's tests.

Each function writes config.json, model.safetensors, the tokenizer's files and chat_template.jinja into `directory` and
returns the transformers model (float32, eval) that holds the same numbers: the truth to compare with. torch and
transformers are imported inside functions. The sizes are odd on purpose: nothing here fills whole SIMD lanes or groups.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IMAGE_TOKENS = (
    "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
)  # fmt: skip
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 60,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
VISION: dict[str, Any] = {
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
    "attention_bias": True,
}


@lru_cache
def corpus() -> tuple[str, ...]:
    """Lines of English: docstrings of the standard library."""
    owners = (str, bytes, dict, list, json, inspect, textwrap, json.JSONDecoder, textwrap.TextWrapper)
    docs = [inspect.getdoc(getattr(o, n, None)) or "" for o in owners for n in sorted(dir(o)) if not n.startswith("__")]
    return tuple(line for doc in docs for line in doc.splitlines() if line)


Marks = bool | tuple[str, ...]  # of pictures: none, InternVL's, or these


def _marks(images: Marks) -> tuple[str, ...]:
    return images if isinstance(images, tuple) else IMAGE_TOKENS if images else ()


@lru_cache
def tokenizer_json(images: Marks = False) -> str:
    """A byte-level BPE of 384 tokens; chat tokens follow, then those of pictures (True: InternVL's nine), last."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    names = CHAT_TOKENS + _marks(images)
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return tokenizer.to_str()


def token_ids(images: Marks = False) -> dict[str, int]:
    """The added tokens' ids."""
    return {t["content"]: t["id"] for t in json.loads(tokenizer_json(images))["added_tokens"]}


def vocab_size(images: Marks = False) -> int:
    return 384 + len(CHAT_TOKENS) + len(_marks(images))


def randomize(model: Any, seed: int) -> Any:
    """Every parameter drawn anew: norms and layer scales near 1, biases and tables not zero, so that no term hides."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if ("norm" in name and name.endswith("weight")) or "lambda" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * noise)
            elif "embed" in name and parameter.dim() != 4:
                parameter.copy_(0.3 * noise)  # small, or a tied model repeats its input
            else:
                parameter.copy_(noise * 1.5 / (parameter[0].numel() ** 0.5))
    return model.eval()


def write(
    directory: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    images: Marks = False,
    dtype: str = "float32",
    chat_template: str | None = CHATML,
) -> None:
    """The files of a checkpoint. Tensors are torch's, by checkpoint name; they are stored as `dtype`."""
    import torch
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ids = token_ids(images)
    stored = {k: v.detach().to(getattr(torch, dtype)).contiguous().clone() for k, v in tensors.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        **({"chat_template": chat_template} if chat_template else {}),
    }
    files: dict[str, Any] = {
        "config.json": {**config, "torch_dtype": dtype},
        "tokenizer_config.json": settings,
        "generation_config.json": {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "do_sample": False},
    }
    if images is True:
        files["preprocessor_config.json"] = {"crop_to_patches": True, "image_mean": MEAN, "image_std": STD}
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value, indent=2))
    (directory / "tokenizer.json").write_text(tokenizer_json(images), encoding="utf-8")
    if chat_template:
        (directory / "chat_template.jinja").write_text(chat_template)


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _rounded(model: Any, dtype: str) -> Any:
    """The model with its weights rounded as they will be stored, back in float32."""
    import torch

    return model.to(getattr(torch, dtype)).to(torch.float32)


def _text(architecture: str, model_type: str, seed: int, dtype: str, images: bool, settings: dict[str, Any]) -> Any:
    """A random transformers language model of TEXT's sizes."""
    import transformers

    ids = token_ids()
    given = {**TEXT, "vocab_size": vocab_size(images), "bos_token_id": None, **settings}
    given = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"], **given}
    config = transformers.AutoConfig.for_model(model_type, **given)
    config.architectures = [architecture]
    return _rounded(randomize(getattr(transformers, architecture)(config), seed), dtype)


def _config(model: Any) -> dict[str, Any]:
    """The config.json that transformers itself writes."""
    return {k: v for k, v in json.loads(model.config.to_json_string(use_diff=False)).items() if k != "dtype"}


def _weights(model: Any) -> dict[str, Any]:
    """Tensors as a checkpoint holds them: a tied head is not stored."""
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def tiny_qwen2(directory: str | Path, seed: int = 0, dtype: str = "float32", **settings: Any) -> Any:
    """Qwen2ForCausalLM, tied unless `settings` (config keys) say otherwise."""
    model = _text("Qwen2ForCausalLM", "qwen2", seed, dtype, False, {"tie_word_embeddings": True, **settings})
    write(directory, _config(model), _weights(model), dtype=dtype)
    return model


def tiny_llama(directory: str | Path, seed: int = 0, dtype: str = "float32", **settings: Any) -> Any:
    model = _text("LlamaForCausalLM", "llama", seed, dtype, False, settings)
    write(directory, _config(model), _weights(model), dtype=dtype)
    return model


def tiny_phi3(directory: str | Path, seed: int = 0, dtype: str = "float32", **settings: Any) -> Any:
    model = _text("Phi3ForCausalLM", "phi3", seed, dtype, False, settings)
    write(directory, _config(model), _weights(model), dtype=dtype)
    return model


def tiny_minicpm(directory: str | Path, seed: int = 0, dtype: str = "float32", **settings: Any) -> Any:
    """MiniCPMForCausalLM: transformers' Granite has the same arithmetic under other names."""
    scale_emb, scale_depth, base = 12, 1.4, 20
    sizes = {**TEXT, **settings}
    multipliers = {
        "embedding_multiplier": scale_emb,
        "residual_multiplier": scale_depth / sizes["num_hidden_layers"] ** 0.5,
        "logits_scaling": sizes["hidden_size"] / base,
        "attention_multiplier": (sizes["hidden_size"] // sizes["num_attention_heads"]) ** -0.5,
    }
    settings = {"tie_word_embeddings": True, **multipliers, **settings}
    model = _text("GraniteForCausalLM", "granite", seed, dtype, False, settings)
    config = {k: v for k, v in _config(model).items() if k not in multipliers and k != "mlp_bias"}
    config |= {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}
    config |= {"scale_emb": scale_emb, "scale_depth": scale_depth, "dim_model_base": base}
    write(directory, config, _weights(model), dtype=dtype)
    return model


def pack_internlm2(tensors: Mapping[str, Any], heads: int, kv_heads: int, prefix: str = "") -> dict[str, Any]:
    """Llama tensors under InternLM2's names: q, k, v woven as [kv_heads, heads a kv head + 2, head_dim] in `wqkv`."""
    import torch

    plain = {
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
    }
    packed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            k, v = (tensors[name.replace(".q_proj.", f".{x}_proj.")] for x in "kv")
            rest = tensor.shape[1:]
            woven = [x.reshape(kv_heads, -1, len(tensor) // heads, *rest) for x in (tensor, k, v)]
            new = name.replace("self_attn.q_proj", "attention.wqkv")
            packed[prefix + new] = torch.cat(woven, dim=1).reshape(-1, *rest)
            continue
        new = name
        for old, internlm2 in plain.items():
            new = new.replace(old, internlm2)
        packed[prefix + new] = tensor
    return packed


def _internlm2_config(llama: dict[str, Any]) -> dict[str, Any]:
    """A Llama's config in InternLM2's words, rope in the form from before transformers 5."""
    left_out = ("attention_bias", "mlp_bias", "head_dim", "pretraining_tp", "rope_parameters")
    config = {key: value for key, value in llama.items() if key not in left_out}
    rope = dict(llama["rope_parameters"])
    config |= {"model_type": "internlm2", "bias": llama["attention_bias"], "rope_theta": rope.pop("rope_theta")}
    kind = rope.pop("rope_type")
    return config | {"rope_scaling": None if kind == "default" else {"type": kind, **rope}}


def tiny_internlm2(directory: str | Path, seed: int = 0, dtype: str = "float32", **settings: Any) -> Any:
    """InternLM2ForCausalLM; the model returned is the Llama with the same numbers."""
    bias = settings.pop("bias", False)
    model = _text("LlamaForCausalLM", "llama", seed, dtype, False, {"attention_bias": bias, **settings})
    config = _internlm2_config(_config(model)) | {"architectures": ["InternLM2ForCausalLM"]}
    packed = pack_internlm2(_weights(model), config["num_attention_heads"], config["num_key_value_heads"])
    write(directory, config, packed, dtype=dtype)
    return model


def _internvl(seed: int, dtype: str, llm: str, tie: bool, vision: Mapping[str, Any], settings: dict[str, Any]) -> Any:
    import transformers

    ids = token_ids(images=True)
    text = {**TEXT, "vocab_size": vocab_size(True), "bos_token_id": None, "tie_word_embeddings": tie, **settings}
    text = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"], **text}
    eyes = {**VISION, **vision}
    config = transformers.InternVLConfig(
        text_config={"model_type": llm, **text},
        vision_config=eyes,
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=(eyes["image_size"] // eyes["patch_size"] // 2) ** 2,
        tie_word_embeddings=tie,
    )
    config.architectures = ["InternVLForConditionalGeneration"]
    return _rounded(randomize(transformers.InternVLForConditionalGeneration(config), seed), dtype)


HF_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<IMG_CONTEXT>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_internvl_hf(
    directory: str | Path,
    seed: int = 0,
    dtype: str = "float32",
    llm: str = "qwen2",
    tie: bool = True,
    early_names: bool = False,
    vision: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """InternVLForConditionalGeneration in the '-hf' names, or those of early '-hf' files. `llm`: qwen2, llama, phi3."""
    model = _internvl(seed, dtype, llm, tie, vision or {}, settings)
    tensors = _weights(model)
    if early_names:
        tensors = {
            k.replace("model.language_model.", "language_model.model.")
            .replace("model.vision_tower", "vision_tower")
            .replace("model.multi_modal", "multi_modal")
            .replace("lm_head", "language_model.lm_head"): v
            for k, v in tensors.items()
        }
    write(directory, _config(model), tensors, images=True, dtype=dtype, chat_template=HF_TEMPLATE)
    return model


def internvl_chat_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """'-hf' tensors under the names of InternVLChatModel, q, k, v of the eyes stacked."""
    import torch

    renames = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.embeddings.cls_token": "vision_model.embeddings.class_embedding",
        "model.vision_tower.embeddings.position_embeddings": "vision_model.embeddings.position_embedding",
        "model.vision_tower.embeddings.patch_embeddings.projection": "vision_model.embeddings.patch_embedding",
        "model.vision_tower.encoder.layer.": "vision_model.encoder.layers.",
        "attention.projection_layer": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "lambda_1": "ls1",
        "lambda_2": "ls2",
        "model.multi_modal_projector.layer_norm": "mlp1.0",
        "model.multi_modal_projector.linear_1": "mlp1.1",
        "model.multi_modal_projector.linear_2": "mlp1.3",
    }
    chat: dict[str, Any] = {}
    for name, tensor in tensors.items():
        new = name
        if ".attention.q_proj." in name:
            tensor = torch.cat([tensors[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            new = name.replace("attention.q_proj", "attn.qkv")
        elif ".attention.k_proj." in name or ".attention.v_proj." in name:
            continue
        for old, plain in renames.items():
            new = new.replace(old, plain)
        chat[new] = tensor
    return chat


LLM_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def tiny_internvl(
    directory: str | Path,
    seed: int = 0,
    dtype: str = "float32",
    llm: str = "qwen2",
    tie: bool = True,
    template: str = "Hermes-2",
    vision: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """InternVLChatModel in its authors' names and config; no chat template. `llm`: qwen2, llama, internlm2, phi3."""
    model = _internvl(seed, dtype, "llama" if llm == "internlm2" else llm, tie, vision or {}, settings)
    tensors = internvl_chat_tensors(_weights(model))
    raw = _config(model)
    text, eyes = raw["text_config"], raw["vision_config"]
    if llm == "internlm2":
        text = _internlm2_config(text)
        inner = {k.removeprefix("language_model."): v for k, v in tensors.items() if k.startswith("language_model.")}
        outer = {k: v for k, v in tensors.items() if not k.startswith("language_model.")}
        packed = pack_internlm2(inner, text["num_attention_heads"], text["num_key_value_heads"], "language_model.")
        tensors = outer | packed
    config = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": eyes["image_size"][0],
        "llm_config": {
            **text,
            "architectures": [LLM_ARCHITECTURES[llm]],
            "model_type": llm,
        },
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": template,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_act": "gelu",
            "hidden_size": eyes["hidden_size"],
            "image_size": eyes["image_size"][0],
            "intermediate_size": eyes["intermediate_size"],
            "layer_norm_eps": eyes["layer_norm_eps"],
            "norm_type": "layer_norm",
            "num_attention_heads": eyes["num_attention_heads"],
            "num_hidden_layers": eyes["num_hidden_layers"],
            "patch_size": eyes["patch_size"][0],
            "qk_normalization": False,
            "qkv_bias": eyes["attention_bias"],
        },
    }
    write(directory, config, tensors, images=True, dtype=dtype, chat_template=None)
    return model


QWEN_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 48,
    "intermediate_size": 52,
    "num_heads": 3,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "tokens_per_second": 2,
}


def tiny_qwen2_5_vl(
    directory: str | Path,
    seed: int = 0,
    dtype: str = "float32",
    early_names: bool = False,
    vision: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Qwen2_5_VLForConditionalGeneration; early_names: the authors' flat config and names. No chat template."""
    import transformers

    ids = token_ids(QWEN_TOKENS)
    text = {**TEXT, "vocab_size": vocab_size(QWEN_TOKENS), "bos_token_id": None, "eos_token_id": ids["<|im_end|>"]}
    text |= {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "layer_types": None}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope, "tie_word_embeddings": True, **settings},
        vision_config={**QWEN_VISION, "out_hidden_size": 60, **(vision or {})},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    model = _rounded(randomize(transformers.Qwen2_5_VLForConditionalGeneration(config), seed), dtype)
    raw, tensors = _config(model), _weights(model)
    if early_names:
        inner = raw.pop("text_config")
        scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        left_out = ("rope_parameters", "model_type", "layer_types", "architectures")
        flat = {key: value for key, value in inner.items() if key not in left_out}
        raw = {**flat, **raw, "rope_theta": rope["rope_theta"], "rope_scaling": scaling}
        tensors = {
            name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
            for name, tensor in tensors.items()
        }
    write(directory, raw, tensors, images=QWEN_TOKENS, dtype=dtype, chat_template=None)
    return model


SIGLIP: dict[str, Any] = {
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 75,  # five patches a side and a rest, as SigLIP's 384 is 27 of 14 and a rest
    "patch_size": 14,
}
BLUELM_TOKENS = ("<image>",)


class BlueLMV:
    """The truth for a composed model: transformers' SigLIP and language model, and the paper's downsampler in torch."""

    def __init__(self, eyes: Any, llm: Any, layer: int) -> None:
        import torch

        width = 4 * eyes.config.hidden_size
        hidden = llm.config.hidden_size
        self.eyes, self.llm, self.layer = eyes, llm, layer
        self.projector = torch.nn.ModuleDict(
            {
                "layer_norm": torch.nn.LayerNorm(width),
                "linear_1": torch.nn.Linear(width, hidden),
                "linear_2": torch.nn.Linear(hidden, hidden),
            }
        )

    def features(self, pixels: Any) -> Any:
        """[t, 3, s, s] -> [t * tokens, hidden]: 2x2 neighbours side by side, an odd side filled up with zeros."""
        import torch

        states = self.eyes(pixel_values=pixels, output_hidden_states=True).hidden_states[self.layer]
        tiles, patches, width = states.shape
        side = int(patches**0.5)
        grid = torch.nn.functional.pad(states.reshape(tiles, side, side, width), (0, 0, 0, side % 2, 0, side % 2))
        rows = [grid[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
        wide = torch.cat(rows, dim=-1).reshape(-1, 4 * width)
        p = self.projector
        return p["linear_2"](torch.nn.functional.gelu(p["linear_1"](p["layer_norm"](wide))))

    def logits(self, ids: Any, features: Any, token: int) -> Any:
        rows = self.llm.get_input_embeddings()(ids).clone()
        rows[0, ids[0] == token] = features
        return self.llm(inputs_embeds=rows).logits[0]


def tiny_bluelm_v(
    directory: str | Path, seed: int = 0, dtype: str = "float32", layer: int = -1, **settings: Any
) -> BlueLMV:
    """BlueLMVForConditionalGeneration around a Qwen2. No chat template."""
    import transformers

    eyes = randomize(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIGLIP)), seed)
    llm = _text("Qwen2ForCausalLM", "qwen2", seed + 1, dtype, False, {"vocab_size": vocab_size(BLUELM_TOKENS)})
    truth = BlueLMV(_rounded(eyes, dtype), llm, layer)
    randomize(truth.projector, seed + 2)
    _rounded(truth.projector, dtype)
    tensors = {
        **{f"model.vision_tower.{name}": t for name, t in truth.eyes.state_dict().items()},
        **{f"model.multi_modal_projector.{name}": t for name, t in truth.projector.state_dict().items()},
        **{
            f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name: t
            for name, t in _weights(llm).items()
        },
    }
    config = {
        "architectures": ["BlueLMVForConditionalGeneration"],
        "model_type": "bluelm_v",
        "image_token_id": token_ids(BLUELM_TOKENS)["<image>"],
        "vision_feature_layer": layer,
        "vision_config": {"model_type": "siglip_vision_model", **SIGLIP},
        "text_config": _config(llm),
        "tie_word_embeddings": llm.config.tie_word_embeddings,
        **settings,
    }
    write(directory, config, tensors, images=BLUELM_TOKENS, dtype=dtype, chat_template=None)
    return truth


TINY: dict[str, Callable[..., Any]] = {
    "qwen2": tiny_qwen2,
    "llama": tiny_llama,
    "internlm2": tiny_internlm2,
    "phi3": tiny_phi3,
    "minicpm": tiny_minicpm,
    "internvl_hf": tiny_internvl_hf,
    "internvl": tiny_internvl,
}


def pixels(processor: Any, picture: Any, cut: Any) -> Any:
    """Pixels [tiles, 3, side, side] of all that a Processor shows of a picture."""
    import numpy as np

    return np.concatenate([seen.pixels for seen in processor.seen(picture, cut)])
