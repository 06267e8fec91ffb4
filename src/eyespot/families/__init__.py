"""Families: one file a model family, each turning a foreign config into a Program, a prompt and an image rule.

build() is the only door. A family sees the raw config and the names and shapes of tensors, never a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eyespot import limits
from eyespot.errors import EyespotError, UnsupportedModel
from eyespot.families import bluelm_v, internlm2, internvl, llama, minicpm, phi3, qwen2, qwen2_5_vl
from eyespot.families.blocks import Built, Request
from eyespot.families.config import Fields, Findings
from eyespot.program import verify

__all__ = ["REGISTRY", "TRAINED", "Built", "build", "is_trained", "supported"]

REGISTRY: dict[str, Callable[[Request], Built]] = {
    "Qwen2ForCausalLM": qwen2.build,
    "LlamaForCausalLM": llama.build,
    "InternLM2ForCausalLM": internlm2.build,
    "Phi3ForCausalLM": phi3.build,
    "MiniCPMForCausalLM": minicpm.build,
    "InternVLChatModel": internvl.build,
    "InternVLForConditionalGeneration": internvl.build_hf,
    "Qwen2_5_VLForConditionalGeneration": qwen2_5_vl.build,
    "BlueLMVForConditionalGeneration": bluelm_v.build,
}

TRAINED = ("InternVLForConditionalGeneration", "BlueLMVForConditionalGeneration")  # of these, those that train/ takes


def is_trained(config: Mapping[str, Any]) -> bool:
    """Whether train/ takes a model of this config, as transformers lays it out."""
    return config.get("architectures") in [[name] for name in TRAINED]


def supported() -> tuple[str, ...]:
    """Architectures, as `architectures` in config.json names them."""
    return tuple(REGISTRY)


def build(
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    image_size: int | None = None,
    ctx_size: int | None = None,
    token_ids: Mapping[str, int] | None = None,
    image_processor: Mapping[str, Any] | None = None,
) -> Built:
    """The model that `config` (raw config.json) describes, verified.

    tensors: the checkpoint's names and shapes; which are there settles ties and naming variants, a missing one is the
    loader's to report. image_size: pixels a side of a tile, when not the checkpoint's. ctx_size: the context the bundle
    is made for, which settles rope rules that depend on it. token_ids: the tokenizer's added tokens.
    image_processor: preprocessor_config.json, raw.
    Raises UnsupportedModel for an architecture or a value no family builds, UsageError for sizes asked for that the
    model cannot take, EyespotError listing all faults of a config. Nothing is allocated before the config has passed.
    """
    if not isinstance(config, Mapping):
        raise EyespotError("config.json is not an object", found=type(config).__name__)
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise UnsupportedModel(
            "config.json names no architecture", found=_brief(config), expected=", ".join(REGISTRY),
            cause="a config of a part of a model, or of an adapter",
        )  # fmt: skip
    family = REGISTRY.get(named[0])
    if family is None:
        raise UnsupportedModel("no family here builds this architecture", found=named[0], expected=", ".join(REGISTRY))
    if len(tensors) > limits.TENSORS:
        raise EyespotError("too many tensors", found=len(tensors), expected=f"at most {limits.TENSORS}")
    fields = Fields(config, Findings(f"config.json of a {named[0]}"))
    built = family(Request(fields, tensors, image_size, ctx_size, token_ids or {}, image_processor or {}))
    verify(built.program)
    return built


def _brief(config: Mapping[str, Any]) -> str:
    model_type = config.get("model_type")
    return f"model_type {model_type}" if isinstance(model_type, str) else "neither architectures nor model_type"
