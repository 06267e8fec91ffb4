"""The float model itself asked, through transformers: what a bundle's answers are held against.

Prompt and pixels are those of the training, which are those of the engine. Knows no set of questions and no score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eyespot.errors import EyespotError
from eyespot.train.data.encode import IGNORE
from eyespot.train.data.record import IMAGE, Record, dialogue
from eyespot.train.model import open_model, quiet

Generate = Callable[[Sequence[Mapping[str, Any]]], str]


def open_float(path: Path, max_tokens: int) -> Generate:
    """generate(messages) of the checkpoint in `path`, greedy, in float32, on a GPU where there is one.

    messages: one user message of parts {"type": "text", "text"} and {"type": "image", "image": path}. Errors:
    EyespotError for a broken checkpoint and for a prompt longer than the model's context.
    """
    loaded = open_model(path)
    encoder, eye = loaded.view.encoder, loaded.view.eye
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vlm = loaded.vlm.to(device).eval()
    vlm.config.use_cache = True
    end = encoder.tokenizer.token_to_id(encoder.end)

    def generate(messages: Sequence[Mapping[str, Any]]) -> str:
        parts = messages[-1]["content"]
        text = "".join(part["text"] if part["type"] == "text" else IMAGE for part in parts)
        pictures = tuple(Path(part["image"]) for part in parts if part["type"] == "image")
        # A training's pictures share their tiles; an engine gives each as many as the rule allows, and so is done here.
        record = Record(
            dialogue(text, "-"), pictures, max_dynamic_patch=encoder.rule.resolution.max_tiles * max(1, len(pictures))
        )
        coded = encoder.encode(record)
        ids = coded.ids[: next(i for i, label in enumerate(coded.labels) if label != IGNORE)]
        if len(ids) > loaded.max_length:
            raise EyespotError(
                "the prompt does not fit the context", found=len(ids), expected=f"at most {loaded.max_length}"
            )
        seen: dict[str, Any] = {}
        if pictures:
            tiles = torch.from_numpy(eye.tiles(pictures, coded.tiles)).to(device)
            seen["pixel_values"] = eye.normalized(tiles)
        given = torch.tensor([ids], device=device)
        with torch.inference_mode(), quiet():
            said = vlm.generate(
                input_ids=given, attention_mask=torch.ones_like(given), **seen, do_sample=False,
                max_new_tokens=max_tokens, eos_token_id=end, pad_token_id=end,
            )  # fmt: skip
        words = said[0, len(ids) :].tolist()
        if end in words:
            words = words[: words.index(end)]
        return str(encoder.tokenizer.decode(words, skip_special_tokens=False))  # <ref> and <box> are special

    return generate
