"""BlueLM-V in torch, so that a SigLIP and a language model can be put together and trained; none is published.

What `families/bluelm_v.py` compiles, module for module, under transformers' names: the eyes, the 2x2 downsampler and
projector after VILA, the language model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from eyespot.checkpoint import open_checkpoint
from eyespot.errors import EyespotError, UnsupportedModel, one_line
from eyespot.families.bluelm_v import CHAT_TEMPLATE, IMAGE_TOKEN, MEAN, STD
from eyespot.families.language import LANGUAGE
from eyespot.train.data.encode import picture_config, tokenizer_of
from eyespot.train.model import quiet
from eyespot.train.recipe import ComposeConfig
from eyespot.train.vocabulary import CHAT

MARKS = CHAT[1:]  # of the chat template


class BlueLMVConfig(PreTrainedConfig):  # type: ignore[misc]
    """Fields as `families/bluelm_v.py` reads them."""

    model_type = "bluelm_v"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        text_config: Mapping[str, Any] | None = None,
        image_token_id: int = 0,
        vision_feature_layer: int = -1,
        downsample: int = 2,
        alpha: float = 0.1,
        image_grids: list[list[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        eyes, text = dict(vision_config or {}), dict(text_config or {"model_type": "qwen2"})
        self.vision_config = SiglipVisionConfig(**eyes)
        self.text_config = AutoConfig.for_model(text.pop("model_type"), **text)
        self.image_token_id, self.vision_feature_layer = image_token_id, vision_feature_layer
        self.downsample, self.alpha, self.image_grids = downsample, alpha, image_grids
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        own = super().to_dict()
        return {**own, "vision_config": self.vision_config.to_dict(), "text_config": self.text_config.to_dict()}


class Projector(nn.Module):
    """Rows of factor x factor neighbouring patches, an odd side filled up with zeros, through two layers."""

    def __init__(self, width: int, hidden: int, factor: int) -> None:
        super().__init__()
        self.factor, wide = factor, width * factor * factor
        self.layer_norm = nn.LayerNorm(wide)
        self.linear_1 = nn.Linear(wide, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor) -> Tensor:
        """[t, side * side, width] -> [t * tokens, hidden]."""
        f, (tiles, patches, width) = self.factor, states.shape
        side = round(patches**0.5)
        more = -side % f
        grid = F.pad(states.view(tiles, side, side, width), (0, 0, 0, more, 0, more))
        rows = torch.cat([grid[:, dy::f, dx::f] for dy in range(f) for dx in range(f)], dim=-1).flatten(0, 2)
        found: Tensor = self.linear_2(F.gelu(self.linear_1(self.layer_norm(rows))))
        return found


class BlueLMVModel(PreTrainedModel):  # type: ignore[misc]
    """The model without its head."""

    config_class = BlueLMVConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: BlueLMVConfig) -> None:
        super().__init__(config)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.vision_tower.post_layernorm = nn.Identity()  # what is taken is the hidden state before it
        hidden = config.text_config.hidden_size
        self.multi_modal_projector = Projector(config.vision_config.hidden_size, hidden, config.downsample)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.language_model.get_input_embeddings()
        return found

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """last_hidden_state [t, patches, width] of the layer that is taken, pooler_output [t * tokens, hidden]."""
        layer = self.config.vision_feature_layer
        seen = self.vision_tower(pixel_values=pixel_values, output_hidden_states=layer != -1)
        states = seen.last_hidden_state if layer == -1 else seen.hidden_states[layer]
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.multi_modal_projector(states))


class BlueLMVForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The model with its head."""

    config_class = BlueLMVConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012 - transformers'

    def __init__(self, config: BlueLMVConfig) -> None:
        super().__init__(config)
        self.model = BlueLMVModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        rows = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.model.get_image_features(pixel_values).pooler_output.to(rows.dtype)
            rows = rows.masked_scatter((input_ids == self.config.image_token_id)[..., None], features)
        said = self.model.language_model(
            inputs_embeds=rows, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )
        logits = self.lm_head(said.last_hidden_state[:, -logits_to_keep or None :])
        return CausalLMOutputWithPast(logits=logits, past_key_values=said.past_key_values)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Pictures go in with the prompt, once."""
        given: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        return given | ({"pixel_values": pixel_values} if is_first_iteration else {})


def compose(parts: ComposeConfig, seed: int) -> tuple[BlueLMVForConditionalGeneration, dict[str, bytes]]:
    """A SigLIP and a language model with a new projector between them, and the files of the tokenizer and the like.

    Layers of SigLIP behind the one that is taken are left out. EyespotError for a checkpoint that is none of that kind,
    and a language model without ChatML's tokens.
    """
    torch.manual_seed(seed)
    eyes = _load(SiglipVisionModel, parts.vision_model_name_or_path)
    text = _load(AutoModelForCausalLM, parts.text_model_name_or_path)
    named = text.config.architectures or [type(text).__name__]
    if named[0] not in LANGUAGE:
        raise UnsupportedModel(
            f"{parts.text_model_name_or_path}: a language model that no family here builds", found=named[0],
            expected=", ".join(LANGUAGE),
        )  # fmt: skip
    layers = eyes.config.num_hidden_layers
    run = parts.vision_feature_layer if parts.vision_feature_layer >= 0 else layers + 1 + parts.vision_feature_layer
    if not 0 < run <= layers:
        raise EyespotError(
            "compose.vision_feature_layer",
            found=parts.vision_feature_layer,
            expected=f"a hidden state of {layers} layers, not the embeddings",
        )
    files, token, vocabulary = _files(parts)
    if vocabulary > text.config.vocab_size:
        with quiet():
            text.resize_token_embeddings(vocabulary)
    config = BlueLMVConfig(
        vision_config=eyes.config.to_dict() | {"num_hidden_layers": run, "vision_use_head": False},
        text_config=text.config.to_dict(),
        image_token_id=token,
        downsample=parts.downsample,
        alpha=parts.alpha,
        image_grids=[list(grid) for grid in parts.image_grids] or None,
        tie_word_embeddings=text.config.tie_word_embeddings,
    )
    vlm = BlueLMVForConditionalGeneration(config)
    kept = vlm.model.vision_tower.state_dict()
    found = {name: value for name, value in eyes.state_dict().items() if name in kept}
    vlm.model.vision_tower.load_state_dict(found)
    vlm.model.language_model.load_state_dict(text.get_decoder().state_dict())
    vlm.lm_head.load_state_dict(text.get_output_embeddings().state_dict())
    vlm.tie_weights()
    return vlm, files


def _load(kind: Any, path: Path) -> Any:
    path = open_checkpoint(path).path  # what is damaged is told in our words
    with quiet():
        try:
            model, info = kind.from_pretrained(
                path, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # configs of all kinds reach code of all kinds
            raise EyespotError(f"{path}: cannot be loaded ({one_line(str(error), 200)})") from None
    if missing := sorted(info["missing_keys"]):
        raise EyespotError(
            f"{path}: {len(missing)} tensors are missing", found=", ".join(missing[:4]), cause=f"no {kind.__name__}"
        )
    return model


def _files(parts: ComposeConfig) -> tuple[dict[str, bytes], int, int]:
    """Files of the composed checkpoint, the id of the image token, and how many tokens there are with it."""
    path = parts.text_model_name_or_path
    files = dict(open_checkpoint(path).files)
    if "tokenizer.json" not in files:
        raise EyespotError(f"{path}: the checkpoint has no tokenizer")
    tokenizer = tokenizer_of(files["tokenizer.json"], path)
    if missing := [mark for mark in MARKS if tokenizer.token_to_id(mark) is None]:
        raise EyespotError(f"{path}: the tokenizer lacks tokens", found=", ".join(missing), expected=" ".join(MARKS))
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False)])
    token = tokenizer.token_to_id(IMAGE_TOKEN)
    assert token is not None
    normal = {"image_mean": list(MEAN), "image_std": list(STD), "resample": 3}  # SigLIP's, where it says nothing
    raw = normal | picture_config(open_checkpoint(parts.vision_model_name_or_path).files)
    files["tokenizer.json"] = tokenizer.to_str().encode()
    files["preprocessor_config.json"] = json.dumps(raw, indent=2).encode()
    files["chat_template.jinja"] = CHAT_TEMPLATE.replace("IMAGE", IMAGE_TOKEN).encode()
    vocabulary = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return files, token, vocabulary
