"""Random checkpoints at the real sizes of real models, written tensor by tensor: for memory, speed and shape.


Tensor names and shapes are spelled out here and not taken from the families, so that a family's mistake shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from eyespot import tensorfile

Shapes = dict[str, tuple[int, ...]]

QWEN2_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "vocab_size": 151655,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 24,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "torch_dtype": "bfloat16",
}
INTERN_VIT_300M = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 448,
    "layer_norm_eps": 1e-6,
    "norm_type": "layer_norm",
    "hidden_act": "gelu",
    "qkv_bias": True,
    "qk_normalization": False,
}
INTERNVL2_1B = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 448,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 12,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "Hermes-2",
    "use_thumbnail": True,
    "torch_dtype": "bfloat16",
    "llm_config": QWEN2_05B,
    "vision_config": INTERN_VIT_300M,
}
LLAMA3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
QWEN2_5_VL_3B = {
    **QWEN2_05B,
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "vocab_size": 151936,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
SIGLIP_400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
# The language model's sizes are not published: 2.7 billion weights of this shape.
BLUELM_V_3B = {
    "architectures": ["BlueLMVForConditionalGeneration"],
    "model_type": "bluelm_v",
    "image_token_id": 100_002,
    "vision_config": SIGLIP_400M,
    "text_config": {
        **QWEN2_05B,
        "hidden_size": 2560,
        "intermediate_size": 8960,
        "num_hidden_layers": 30,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "vocab_size": 100_003,
        "bos_token_id": None,
        "eos_token_id": 100_001,
        "max_position_embeddings": 8192,
    },
}


def llm_shapes(config: dict, prefix: str = "") -> Shapes:
    """Tensors of a Llama- or Qwen2-type model in the order of the file."""
    d, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = d // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    shapes: Shapes = {f"{prefix}model.embed_tokens.weight": (vocab, d)}
    for i in range(config["num_hidden_layers"]):
        at = f"{prefix}model.layers.{i}."
        for name, rows in (("q", d), ("k", kv), ("v", kv)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, d)
            if config["model_type"] in ("qwen2", "qwen2_5_vl"):
                shapes[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{at}self_attn.o_proj.weight"] = (d, d)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (inner, d)
        shapes[f"{at}mlp.down_proj.weight"] = (d, inner)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (d,)
    shapes[f"{prefix}model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes[f"{prefix}lm_head.weight"] = (vocab, d)
    return shapes


def internvl_shapes(config: dict) -> Shapes:
    """Tensors of an InternVLChatModel under its original names."""
    vision, width = config["vision_config"], config["llm_config"]["hidden_size"]
    d, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    tokens = (vision["image_size"] // patch) ** 2 + 1
    at = "vision_model.embeddings."
    shapes: Shapes = {
        f"{at}class_embedding": (1, 1, d),
        f"{at}patch_embedding.weight": (d, 3, patch, patch),
        f"{at}patch_embedding.bias": (d,),
        f"{at}position_embedding": (1, tokens, d),
    }
    for i in range(vision["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{i}."
        linears = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (inner, d), "mlp.fc2": (d, inner)}
        for name, shape in linears.items():
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = shape, shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1", "ls2"):
            shapes[at + name] = (d,)
    for name, shape in {"mlp1.0": (4 * d,), "mlp1.1": (width, 4 * d), "mlp1.3": (width, width)}.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes | llm_shapes(config["llm_config"], "language_model.")


def qwen2_5_vl_shapes(config: dict) -> Shapes:
    """Tensors of a Qwen2.5-VL under its authors' names."""
    vision = config["vision_config"]
    d, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: Shapes = {"visual.patch_embed.proj.weight": (d, 3, 2, patch, patch)}
    for i in range(vision["depth"]):
        at = f"visual.blocks.{i}."
        linears = {
            "attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.gate_proj": (inner, d), "mlp.up_proj": (inner, d),
            "mlp.down_proj": (d, inner),
        }  # fmt: skip
        for name, shape in linears.items():
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = shape, shape[:1]
        shapes[f"{at}norm1.weight"] = shapes[f"{at}norm2.weight"] = (d,)
    shapes["visual.merger.ln_q.weight"] = (d,)
    for name, shape in {"0": (4 * d, 4 * d), "2": (vision["out_hidden_size"], 4 * d)}.items():
        shapes[f"visual.merger.mlp.{name}.weight"], shapes[f"visual.merger.mlp.{name}.bias"] = shape, shape[:1]
    return shapes | llm_shapes(config)


def bluelm_v_shapes(config: dict) -> Shapes:
    """Tensors of a composed BlueLM-V."""
    vision, width = config["vision_config"], config["text_config"]["hidden_size"]
    d, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    at = "model.vision_tower.embeddings."
    shapes: Shapes = {
        f"{at}patch_embedding.weight": (d, 3, patch, patch),
        f"{at}patch_embedding.bias": (d,),
        f"{at}position_embedding.weight": ((vision["image_size"] // patch) ** 2, d),
    }
    for i in range(vision["num_hidden_layers"]):
        at = f"model.vision_tower.encoder.layers.{i}."
        linears = {f"self_attn.{x}_proj": (d, d) for x in ("q", "k", "v", "out")}
        for name, shape in {**linears, "mlp.fc1": (inner, d), "mlp.fc2": (d, inner)}.items():
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = shape, shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{at}{norm}.weight"] = shapes[f"{at}{norm}.bias"] = (d,)
    at = "model.multi_modal_projector."
    shapes[f"{at}layer_norm.weight"] = shapes[f"{at}layer_norm.bias"] = (4 * d,)
    for name, shape in {"linear_1": (width, 4 * d), "linear_2": (width, width)}.items():
        shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = shape, shape[:1]
    return shapes | llm_shapes(config["text_config"], "language_model.")


def _values(name: str, shape: tuple[int, ...], pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """bf16 bits. Norm weights near 1, LayerScale 0.1, the rest normal with deviation 0.02 cut from `pool` at random."""
    count = int(np.prod(shape))
    if ("norm" in name.rsplit(".", 2)[-2] and name.endswith("weight")) or name == "mlp1.0.weight":
        return tensorfile.f32_to_bf16(1 + 0.1 * rng.standard_normal(shape).astype(np.float32))
    if name.endswith((".ls1", ".ls2")):
        return np.full(shape, tensorfile.f32_to_bf16(np.float32([0.1]))[0])
    out = np.empty(count, np.uint16)
    for at in range(0, count, 1 << 18):
        start = int(rng.integers(len(pool) - (1 << 18)))
        out[at : at + (1 << 18)] = pool[start : start + min(1 << 18, count - at)]
    return out.reshape(shape)


def write_checkpoint(folder: Path, config: dict, shapes: Shapes, seed: int = 0, shard_bytes: int = 4 << 30) -> None:
    """config.json, tokenizer and sharded bf16 safetensors of random weights; memory stays near one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    pool = tensorfile.f32_to_bf16(0.02 * rng.standard_normal(1 << 24, dtype=np.float32))
    shards: list[Shapes] = [{}]
    for name, shape in shapes.items():
        if sum(2 * int(np.prod(s)) for s in shards[-1].values()) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    index = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        index |= dict.fromkeys(shard, file)
        chunks: Iterator = ((n, _values(n, s, pool, rng)) for n, s in shard.items())
        with open(folder / file, "wb") as out:
            tensorfile.write(out, {n: ("BF16", s) for n, s in shard.items()}, chunks, {"format": "pt"})
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_tokenizer(folder: Path, base: int, added: list[str], templated: bool = True) -> None:
    """A byte-level BPE of exactly `base` tokens, with merges like a real one, then the special tokens `added`.
    templated: with a chat template for texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {c: i for i, c in enumerate(alphabet)}, []
    pairs = [(a, b) for a in alphabet for b in alphabet]
    triples = ((a + b, c) for a, b in pairs for c in alphabet)
    for left, right in [*pairs, *(t for t, _ in zip(triples, range(base), strict=False))]:
        if len(vocab) == base:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    assert len(vocab) == base
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": added[-1] if len(added) < 3 else added[2]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | ({"chat_template": template} if templated else {}))
    )


QWEN_ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
INTERNVL_ADDED = [
    *QWEN_ADDED,
    *("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
]


def internvl2_1b(folder: Path, seed: int = 0) -> Path:
    write_checkpoint(folder, INTERNVL2_1B, internvl_shapes(INTERNVL2_1B), seed)
    write_tokenizer(folder, 151643, INTERNVL_ADDED)
    return folder


def qwen2_5_vl_3b(folder: Path, seed: int = 0) -> Path:
    write_checkpoint(folder, QWEN2_5_VL_3B, qwen2_5_vl_shapes(QWEN2_5_VL_3B), seed)
    marks = ("object_ref", "box", "quad", "vision")
    pairs = [f"<|{mark}_{end}|>" for mark in marks for end in ("start", "end")]
    write_tokenizer(folder, 151643, [*QWEN_ADDED, *pairs, "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"], False)
    return folder


def bluelm_v_3b(folder: Path, seed: int = 0) -> Path:
    write_checkpoint(folder, BLUELM_V_3B, bluelm_v_shapes(BLUELM_V_3B), seed)
    write_tokenizer(folder, 100_000, ["<|im_start|>", "<|im_end|>", "<image>"], False)
    return folder


def qwen2_05b(folder: Path, seed: int = 0) -> Path:
    write_checkpoint(folder, QWEN2_05B, llm_shapes(QWEN2_05B), seed)
    write_tokenizer(folder, 151643, QWEN_ADDED)
    return folder


def llama3_8b(folder: Path, seed: int = 0) -> Path:
    write_checkpoint(folder, LLAMA3_8B, llm_shapes(LLAMA3_8B), seed)
    write_tokenizer(folder, 128000, ["<|begin_of_text|>", "<|end_of_text|>"])
    return folder
