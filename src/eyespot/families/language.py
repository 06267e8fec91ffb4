"""The language models that stand behind eyes, by the names that their config inside a larger one goes by."""

from __future__ import annotations

from collections.abc import Callable

from eyespot.errors import UnsupportedModel
from eyespot.families import internlm2, llama, phi3, qwen2
from eyespot.families.blocks import Decoder, Names, Request
from eyespot.families.config import Fields

LANGUAGE: dict[str, Callable[[Request, Fields, Names], Decoder]] = {
    "Qwen2ForCausalLM": qwen2.decoder,
    "LlamaForCausalLM": llama.decoder,
    "InternLM2ForCausalLM": internlm2.decoder,
    "Phi3ForCausalLM": phi3.decoder,
}
MODEL_TYPES = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def language(request: Request, fields: Fields, names: Names, eyes: str) -> Decoder:
    """The language model inside, by its architecture, or, in transformers' own configs, by its model_type. eyes: the
    family that it stands behind, for what is said of an unknown one."""
    listed, model_type = fields.raw.get("architectures"), fields.raw.get("model_type")
    found = listed[0] if isinstance(listed, list) and listed else model_type
    found = found if isinstance(found, str) else "none"
    found = MODEL_TYPES.get(found, found)
    if found not in LANGUAGE:
        raise UnsupportedModel(
            f"{eyes} around a language model that no family here builds", found=found, expected=", ".join(LANGUAGE)
        )
    return LANGUAGE[found](request, fields, names)
