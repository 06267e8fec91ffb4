"""What a GGUF's keys and tensor names mean, said in Hugging Face terms: config.json, tensor names, row order.

One row of ARCHS per llama.cpp architecture. Knows no block format (gguf.py) and not how text is cut (tokenizer.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eyespot import limits
from eyespot.checkpoint.checkpoint import F32, Checkpoint, TensorInfo
from eyespot.checkpoint.gguf import GgufFile
from eyespot.checkpoint.tokenizer import gguf_tokenizer
from eyespot.errors import EyespotError, Faults, UnsupportedModel


@dataclass(frozen=True, slots=True)
class Arch:
    """How one llama.cpp architecture reads as a Hugging Face model.

    `pairs`: the converter stored q and k for rotary pairs (2i, 2i+1); Hugging Face wants halves (i, i + d/2).
    """

    architecture: str
    model_type: str
    pairs: bool
    names: Mapping[str, str] = field(default_factory=dict)  # beside NAMES


ARCHS = {
    "llama": Arch("LlamaForCausalLM", "llama", pairs=True),
    "qwen2": Arch("Qwen2ForCausalLM", "qwen2", pairs=False),
    "phi3": Arch("Phi3ForCausalLM", "phi3", pairs=False, names={"ffn_up": "mlp.gate_up_proj"}),
    "minicpm": Arch("MiniCPMForCausalLM", "minicpm", pairs=True),
    "internlm2": Arch("LlamaForCausalLM", "llama", pairs=True),  # with wqkv split by the converter it is a Llama
}
TABLES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BLOCK_NAME = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)", re.ASCII)
ROPE_FACTORS = {
    "rope_freqs.weight": "rope_freqs",
    "rope_factors_long.weight": "long",
    "rope_factors_short.weight": "short",
}
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")
CONTROL = 3  # tokenizer.ggml.token_type of a token that text never spells


class GgufStorage:
    """GGUF tensors under Hugging Face names, q and k rows put back into Hugging Face order."""

    def __init__(self, file: GgufFile, names: Mapping[str, str], heads: Mapping[str, int]) -> None:
        self._file, self._names, self._heads = file, names, heads  # _heads: how many, for tensors with rows in pairs

    def read(self, name: str, start: int, stop: int) -> F32:
        stored = self._names[name]
        heads = self._heads.get(name)
        if heads is None:
            return self._file.read(stored, start, stop)
        shape = self._file.tensors[stored].shape
        order = _paired_rows(start, stop, shape[0] // heads)
        if len(shape) == 1:
            return self._file.read(stored, 0, shape[0])[order]
        return self._file.read(stored, start, stop, order)

    def release(self, name: str) -> None:
        self._file.release(self._names[name])


def _paired_rows(start: int, stop: int, dim: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Where Hugging Face's rows [start, stop) lie when heads of `dim` rows hold pairs: (half p, pair j) at 2j + p."""
    rows = np.arange(start, stop)
    head, row = np.divmod(rows, dim)
    half, pair = np.divmod(row, dim // 2)
    return head * dim + 2 * pair + half


def open_gguf(path: Path) -> Checkpoint:
    """Opens one GGUF file of an architecture in ARCHS; UnsupportedModel for any other."""
    file = GgufFile(path)
    name = file.metadata.get("general.architecture")
    arch = ARCHS.get(name) if isinstance(name, str) else None
    if arch is None or not isinstance(name, str):
        raise UnsupportedModel(f"{path.name}: no mapping for this architecture", found=name, expected=", ".join(ARCHS))
    keys = _Keys(file, name)
    if keys.integer("split.count", 1, top=True) > 1:
        raise EyespotError(f"{path.name}: one part of several", expected="a single file (llama-gguf-split --merge)")
    if keys.integer("expert_count", 0):
        raise UnsupportedModel(f"{path.name}: a mixture of experts", found=f"{keys.integer('expert_count', 0)} experts")
    names = {_name(stored, arch): stored for stored in file.tensors if stored not in ROPE_FACTORS}
    if len(names) + sum(stored in ROPE_FACTORS for stored in file.tensors) != len(file.tensors):
        raise EyespotError(f"{path.name}: two tensors stand for the same weight")
    config = _config(keys, arch, names)
    tensors = {}
    for key, stored in names.items():
        tensor = file.tensors[stored]
        tensors[key] = TensorInfo(tensor.shape, tensor.block.name, path.name)
    heads = _heads(path.name, config, tensors) if arch.pairs else {}
    storage = GgufStorage(file, names, heads)
    return Checkpoint(path, path.name, "gguf", config, tensors, (), storage, lambda: _files(file, name, config))


def _name(stored: str, arch: Arch) -> str:
    """Hugging Face name of a tensor; one that is not known keeps its own, and the compiler reports it."""
    stem, _, kind = stored.rpartition(".")
    if stem in TABLES:
        return f"{TABLES[stem]}.{kind}"
    match = BLOCK_NAME.fullmatch(stored)
    known = match and (arch.names.get(match[2]) or NAMES.get(match[2]))
    return f"model.layers.{int(match[1])}.{known}.{match[3]}" if match and known else stored


def _heads(file: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    counts = {".q_proj.": config["num_attention_heads"], ".k_proj.": config["num_key_value_heads"]}
    heads = {}
    for name, info in tensors.items():
        for mark, count in counts.items():
            if f".self_attn{mark}" in name:
                if not 0 < count <= limits.HEADS or info.shape[0] % (2 * count):
                    raise EyespotError(f"{file}: '{name}' does not split into heads", found=f"{info.shape} by {count}")
                heads[name] = count
    return heads


class _Keys:
    """Typed look-ups of `ARCH.key`; faults are collected, so that a user sees all of them at once."""

    def __init__(self, file: GgufFile, arch: str) -> None:
        self.file, self.arch, self.faults = file, arch, Faults(file.path.name)

    def integer(self, key: str, default: int | None = None, top: bool = False) -> int:
        full = key if top else f"{self.arch}.{key}"
        value = self.file.metadata.get(full, default)
        if type(value) is not int:
            self.faults.add(f"{full} is {'missing' if value is None else 'not an integer'}")
            return default or 0
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.file.metadata.get(f"{self.arch}.{key}", default)
        if type(value) not in (int, float):
            self.faults.add(f"{self.arch}.{key} is {'missing' if value is None else 'not a number'}")
            return default or 0.0
        return _shortest(float(value))  # type: ignore[arg-type]

    def factors(self, name: str) -> list[float] | None:
        """A rope tensor as numbers; it is configuration, not a weight."""
        tensor = self.file.tensors.get(name)
        if tensor is None:
            return None
        if len(tensor.shape) != 1 or tensor.shape[0] > limits.DIM:
            self.faults.add(f"{name} is not a vector")
            return None
        return [_shortest(v) for v in self.file.read(name, 0, tensor.shape[0]).tolist()]


def _shortest(value: float) -> float:
    """The decimal a person wrote: GGUF holds float32, so 1e-5 would come back as 9.99999974e-06."""
    with np.errstate(over="ignore"):
        short = np.float32(value)
    return float(str(short)) if short == value else value


def _config(keys: _Keys, arch: Arch, names: Mapping[str, str]) -> dict[str, Any]:
    """config.json as the model's own repository would spell it. Raises EyespotError listing all missing keys."""
    table = keys.file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        keys.faults.add("token_embd.weight is missing or not a matrix")
    heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
    layers = keys.integer("block_count")
    config: dict[str, Any] = {
        "architectures": [arch.architecture],
        "model_type": arch.model_type,
        "vocab_size": table.shape[0] if table else 0,
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in names,
    }
    for key, stored in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        if f"tokenizer.ggml.{stored}_token_id" in keys.file.metadata:
            config[key] = keys.integer(f"tokenizer.ggml.{stored}_token_id", top=True)
    rotary = keys.integer("rope.dimension_count", 0)
    if arch.model_type == "llama":
        config["head_dim"] = keys.integer("attention.key_length", rotary or (hidden // heads if heads > 0 else 0))
        config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in names
        config["mlp_bias"] = "model.layers.0.mlp.down_proj.bias" in names
    if arch.model_type == "phi3":
        config["sliding_window"] = keys.integer("attention.sliding_window", 0) or None
        config["partial_rotary_factor"] = rotary * heads / hidden if rotary and hidden else 1.0
    if arch.model_type == "minicpm":  # files older than the keys are MiniCPM-2B's, with its scales
        config["scale_emb"] = keys.number("embedding_scale", 12.0)
        config["scale_depth"] = round(
            keys.number("residual_scale", 1.4 / max(layers, 1) ** 0.5) * max(layers, 0) ** 0.5, 6
        )
        logit_scale = keys.number("logit_scale", hidden / 256)
        config["dim_model_base"] = round(hidden / logit_scale) if 1e-6 < logit_scale < 1e6 else 0
    config |= _rope(keys, config)
    keys.faults.raise_if_any(cause="the file is corrupted, or was written by a converter older than GGUF version 2")
    return config


def _rope(keys: _Keys, config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope scaling in config.json's terms; `rope_freqs` divide the frequencies (Llama 3's rule, worked out)."""
    kind = keys.file.metadata.get(f"{keys.arch}.rope.scaling.type", "none")
    original = keys.integer("rope.scaling.original_context_length", config["max_position_embeddings"])
    llama3, long, short = (keys.factors(name) for name in ROPE_FACTORS)
    if long is not None and short is not None:
        scaling: dict[str, Any] = {
            "type": "longrope",
            "rope_type": "longrope",
            "long_factor": long,
            "short_factor": short,
        }
        return {
            "rope_scaling": scaling | {"original_max_position_embeddings": original},
            "original_max_position_embeddings": original,
        }
    if llama3 is not None:
        return {"rope_freqs": llama3}
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0))
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {}
    if kind == "linear":
        return {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        scaling = {"type": "yarn", "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        return {"rope_scaling": scaling}
    keys.faults.add(
        f"rope scaling '{kind}' without its factors" if kind == "longrope" else f"unknown rope scaling '{kind}'"
    )
    return {}


def _files(file: GgufFile, arch: str, config: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json and its companions, written out of the metadata under their Hugging Face names."""
    metadata, name = file.metadata, file.path.name
    if "tokenizer.ggml.model" not in metadata:
        return {}
    built = gguf_tokenizer(name, metadata, arch)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, stored in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{stored}_token_id")
        if type(token) is int and token in built.texts:
            settings[f"{role}_token"] = built.texts[token]
    settings |= {"add_bos_token": built.bos is not None, "model_max_length": config["max_position_embeddings"]}
    end = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]
    end += [i for i, text in built.texts.items() if text in END_TOKENS and built.types[i] == CONTROL]
    generation: dict[str, Any] = {"eos_token_id": sorted({i for i in end if type(i) is int and i in built.texts})}
    generation |= {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
    files = {
        "tokenizer.json": built.json,
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2).encode(),
        "generation_config.json": json.dumps(generation, indent=2).encode(),
    }
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        if len(template) > limits.TEMPLATE_CHARS:
            raise EyespotError(f"{name}: chat template too long", found=len(template), expected=limits.TEMPLATE_CHARS)
        files["chat_template.jinja"] = template.encode()
    return files
