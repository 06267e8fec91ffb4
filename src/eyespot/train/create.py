"""Stage create: a model that does not exist yet, random weights and its own tokenizer, as a checkpoint for the others.

Knows transformers' InternVL config and the files around it; the sizes are the recipe's.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from eyespot.checkpoint import local
from eyespot.errors import EyespotError
from eyespot.families.internvl import CONTEXT_TOKEN, HF_TEMPLATE, IMAGE_PROCESSOR, MEAN, STD
from eyespot.tensorfile import read_bytes
from eyespot.train.data.encode import tokenizer_of
from eyespot.train.data.sets import Dataset, Skipped, records
from eyespot.train.export import check, export
from eyespot.train.recipe import ModelConfig, Recipe
from eyespot.train.vocabulary import CHAT, PICTURES, english, spoken, train_tokenizer

END, PAD = CHAT[2], CHAT[0]


def create(recipe: Recipe, data: Dataset | None, out: Path) -> dict[str, int]:
    """Writes the model of recipe.model, or recipe.compose, to `out`; returns parameters, vocabulary, and how many bad
    records were left out.

    data: texts for the tokenizer. EyespotError for sizes that do not fit together, or a tokenizer without the marks of
    pictures and turns.
    """
    model, skipped = recipe.model, Skipped() if recipe.skip_bad else None
    if model is None:
        from eyespot.train.bluelm_v import compose

        assert recipe.compose is not None
        vlm, files = compose(recipe.compose, recipe.seed)
        check(vlm, files)
        export(vlm, files, out, "float32")
        return {"parameters": sum(p.numel() for p in vlm.parameters()), "vocabulary": vlm.config.text_config.vocab_size}
    if model.tokenizer_name_or_path is None:
        assert data is not None
        texts = (*spoken(records(data, range(len(data)), skipped)), *english())
        tokenizer = train_tokenizer(texts, model.vocab_size)
    else:
        path = local(model.tokenizer_name_or_path) / "tokenizer.json"
        tokenizer = tokenizer_of(read_bytes(path), path)
        if missing := [mark for mark in (*CHAT[1:], *PICTURES[:3]) if tokenizer.token_to_id(mark) is None]:
            raise EyespotError(f"{path}: the tokenizer lacks tokens", found=", ".join(missing))
    import transformers

    vocabulary = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    config = _config(model, tokenizer, vocabulary)
    torch.manual_seed(recipe.seed)
    try:
        vlm = transformers.InternVLForConditionalGeneration(config)
    except (ValueError, RuntimeError) as error:
        raise EyespotError(f"model: {error}") from None
    _begin(vlm)
    export(vlm, _files(model, tokenizer), out, "float32")
    made = {"parameters": sum(p.numel() for p in vlm.parameters()), "vocabulary": vocabulary}
    return made if skipped is None else made | {"skipped": skipped.total}


def _config(model: ModelConfig, tokenizer: Tokenizer, vocabulary: int) -> Any:
    import transformers

    eyes, text = model.vision_config, model.text_config
    factor = round(1 / model.downsample_ratio) if model.downsample_ratio else 0
    side = eyes.image_size // eyes.patch_size
    if not factor or abs(1 / factor - model.downsample_ratio) > 1e-6:
        raise EyespotError("model.downsample_ratio", found=model.downsample_ratio, expected="one over a whole number")
    if eyes.image_size % (eyes.patch_size * factor):
        raise EyespotError(
            "model.vision_config.image_size",
            found=eyes.image_size,
            expected=f"a multiple of {eyes.patch_size * factor}",
        )
    for name, width, heads in (
        ("vision_config", eyes.hidden_size, eyes.num_attention_heads),
        ("text_config", text.hidden_size, text.num_attention_heads),
        ("text_config.num_attention_heads", text.num_attention_heads, text.num_key_value_heads),
    ):
        if width % heads:
            raise EyespotError(f"model.{name}", found=f"{width} over {heads} heads", expected="a whole number each")
    ids = {"eos_token_id": tokenizer.token_to_id(END), "pad_token_id": tokenizer.token_to_id(PAD), "bos_token_id": None}
    tied = {"tie_word_embeddings": model.tie_word_embeddings}
    return transformers.InternVLConfig(
        vision_config=asdict(eyes),
        text_config={"model_type": "qwen2", "vocab_size": vocabulary, **asdict(text), **ids, **tied},
        image_token_id=tokenizer.token_to_id(CONTEXT_TOKEN),
        image_seq_length=(side // factor) ** 2,
        downsample_ratio=model.downsample_ratio,
        **tied,
    )


@torch.no_grad()
def _begin(vlm: Any) -> None:
    """Tables of places start at small random values: at zero all patches of one colour stay one for long."""
    embeddings = vlm.model.vision_tower.embeddings
    for table in (embeddings.position_embeddings, embeddings.cls_token):
        table.normal_(std=0.02)


def _files(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tokenizer's files, the template, and how pictures are cut."""
    side = model.vision_config.image_size
    end = tokenizer.token_to_id(END)
    pad = tokenizer.token_to_id(PAD)
    values: dict[str, Any] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": END,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.text_config.max_position_embeddings,
            "extra_special_tokens": {
                "start_image_token": PICTURES[0],
                "end_image_token": PICTURES[1],
                "context_image_token": PICTURES[2],
            },
        },
        "generation_config.json": {"eos_token_id": [i for i in (end, pad) if i is not None], "do_sample": False},
        "preprocessor_config.json": {
            "image_processor_type": IMAGE_PROCESSOR,
            "processor_class": "InternVLProcessor",
            "crop_to_patches": model.max_dynamic_patch > 1,
            "min_patches": 1,
            "max_patches": model.max_dynamic_patch,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(MEAN),
            "image_std": list(STD),
            "do_convert_rgb": True,
        },
    }
    found = {name: json.dumps(value, indent=2).encode() for name, value in values.items()}
    return {
        **found,
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "chat_template.jinja": HF_TEMPLATE.encode(),
    }
