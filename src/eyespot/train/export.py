"""A trained model as a Hugging Face checkpoint, which transformers and `eyespot compile` open; whole or not there.

Knows the files of transformers' layout. The tokenizer's and the like are carried as they came.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from eyespot import families
from eyespot.errors import EyespotError
from eyespot.tensorfile import TensorFile, read_json
from eyespot.train.checkpointing import atomic_directory, write_tensors
from eyespot.train.data.encode import picture_config
from eyespot.train.model import architecture

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def export(vlm: Any, files: Mapping[str, bytes], out: Path, dtype: str, step: int = 0) -> None:
    """Writes `vlm`, a model without adapters, and `files` to directory `out`.

    dtype: of the weights, bfloat16 or float32. step: of the training, for `exported`. A tied head is not stored.
    EyespotError when the disk is full.
    """
    config = _config(vlm, dtype)
    tensors = {name: value.detach().to(DTYPES[dtype]).contiguous() for name, value in vlm.state_dict().items()}
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    with atomic_directory(out) as part:
        write_tensors(part / "model.safetensors", tensors, {"format": "pt", "step": str(step)})
        for name, data in files.items():
            (part / name).write_bytes(data)
        (part / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _config(vlm: Any, dtype: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(vlm.config.to_json_string(use_diff=False))
    for inner in (config, config["text_config"], config["vision_config"]):
        for key in ("dtype", "torch_dtype", "_name_or_path"):
            inner.pop(key, None)
    config |= {"architectures": [architecture(vlm)], "torch_dtype": dtype, "use_cache": True}
    # transformers leaves a head of its own untied, whatever the config says: what is told is what is there.
    tied = vlm.lm_head.weight is vlm.get_input_embeddings().weight
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = tied
    return config


def check(vlm: Any, files: Mapping[str, bytes]) -> None:
    """EyespotError for a model that `eyespot compile` would not build: before it is written, or trained."""
    shapes = {name: tuple(value.shape) for name, value in vlm.state_dict().items()}
    families.build(_config(vlm, "float32"), shapes, image_processor=picture_config(files))


def exported(out: Path, files: Collection[str], dtype: str, step: int) -> bool:
    """Whether `out` holds a whole model of this step, with `files` beside it. False for a damaged one."""
    try:
        said = TensorFile(out / "model.safetensors").metadata.get("step")
        config = read_json(out / "config.json")
    except EyespotError:
        return False
    whole = isinstance(config, dict) and all((out / name).is_file() for name in files)
    return whole and (said, config.get("torch_dtype")) == (str(step), dtype)
