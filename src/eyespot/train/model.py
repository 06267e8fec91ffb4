"""A model to be trained: opened from a checkpoint in transformers' layout, parts frozen, adapters in, sharded.

Knows transformers' InternVL, our BlueLM-V and their parts; how eyespot cuts pictures for it comes from `families`, so
that what is trained is what will run. Does not know what is learned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eyespot import families
from eyespot.checkpoint import open_checkpoint
from eyespot.errors import EyespotError, UnsupportedModel
from eyespot.train.data.encode import open_encoder, picture_config
from eyespot.train.pixels import Eye
from eyespot.train.recipe import Recipe
from eyespot.train.streams import View

INTERNVL, BLUELM_V = ARCHITECTURES = families.TRAINED
# Part of a name -> the part of the model, as InternVL's scripts call them.
PARTS = {"vision_tower.": "backbone", "multi_modal_projector.": "mlp", "language_model.": "llm", "lm_head.": "llm"}
LAYERS = ("InternVLVisionLayer", "SiglipEncoderLayer", "Qwen2DecoderLayer", "LlamaDecoderLayer", "Phi3DecoderLayer")
# Linear layers that take LoRA, as in InternVL's code; rank r, alpha 2r, dropout 0.05.
LLM_LORA = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
BACKBONE_LORA = (
    r".*vision_tower\.encoder\.layers?\.\d+\.((attention|self_attn)\.(([qkv]|out)_proj|projection_layer)|mlp\.fc[12])"
)
LORA_DROPOUT = 0.05
TABLES = ("cls_token", "position_embeddings", "position_embedding.weight")  # of the eyes; they do not decay


@dataclass
class Loaded:
    """vlm: a model of one of ARCHITECTURES in float32. view: how it reads records. files: its tokenizer and the
    like, by name, as they came. merge: puts adapters into the weights, when there are any; vlm is the plain model then.
    """

    vlm: Any
    view: View
    files: Mapping[str, bytes]
    max_length: int
    merge: Callable[[], Any] = field(default=lambda: None)


def open_model(path: Path, max_tiles: int | None = None) -> Loaded:
    """The model that `path` leads to, as in open_checkpoint. EyespotError for a broken one; UnsupportedModel for
    other layouts and models, and for what `eyespot compile` could not build."""
    checkpoint = open_checkpoint(path)
    path = checkpoint.path
    if not families.is_trained(checkpoint.config):
        raise UnsupportedModel(
            f"{path}: not a model that is trained here", found=checkpoint.config.get("architectures"),
            expected=" or ".join(ARCHITECTURES),
            cause="training takes transformers' own layout, '-hf' on the hub",
        )  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    built = families.build(checkpoint.config, shapes, image_processor=picture_config(checkpoint.files))
    rule = built.image
    if rule is None:
        raise UnsupportedModel(f"{path}: a model without eyes")
    eye = Eye(rule["size"], tuple(rule["mean"]), tuple(rule["std"]), rule["resample"])
    encoder = open_encoder(path, max_tiles)
    with quiet():
        try:
            vlm, info = _class(checkpoint.config["architectures"][0]).from_pretrained(
                path, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise EyespotError(f"{path}: cannot be loaded ({error})") from None
    if missing := sorted(info["missing_keys"]):
        raise EyespotError(f"{path}: {len(missing)} tensors are missing", found=", ".join(missing[:4]))
    vlm.config.use_cache = False
    longest = built.program.info.max_position
    return Loaded(vlm, View(encoder, eye, max_length=longest), checkpoint.files, longest)


def _class(name: str) -> Any:
    """transformers' InternVL, or our BlueLM-V."""
    import transformers

    if name == INTERNVL:
        return transformers.InternVLForConditionalGeneration
    from eyespot.train.bluelm_v import BlueLMVForConditionalGeneration

    return BlueLMVForConditionalGeneration


def architecture(vlm: Any) -> str:
    """Which of ARCHITECTURES a model is, sharded or not."""
    return next(kind.__name__ for kind in type(vlm).__mro__ if kind.__name__ in ARCHITECTURES)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers tells on stderr what it loaded; what matters of that is checked here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def part(name: str) -> str:
    """backbone, mlp or llm; "" for a parameter that is not the model's, such as a width adapter."""
    return next((part for mark, part in PARTS.items() if mark in name), "")


def prepare(loaded: Loaded, recipe: Recipe, frozen: Mapping[str, bool]) -> None:
    """Freezes parts, puts in adapters and gradient checkpoints, compiles. frozen: part -> whether its weights stay."""
    vlm, ranks = loaded.vlm, {"llm": recipe.use_llm_lora, "backbone": recipe.use_backbone_lora}
    if recipe.vision_select_layer is not None:
        layers, asked = vlm.config.vision_config.num_hidden_layers, recipe.vision_select_layer
        least = 0 if architecture(vlm) == INTERNVL else 1  # BlueLM-V's family takes no embeddings for a hidden state
        if not least <= (asked if asked >= 0 else layers + 1 + asked) <= layers:
            raise EyespotError("vision_select_layer", found=asked, expected=f"a hidden state of {layers} layers")
        vlm.config.vision_feature_layer = recipe.vision_select_layer
    if any(ranks.values()):
        import peft

        targets = {"llm": LLM_LORA, "backbone": BACKBONE_LORA}
        chosen = [targets[name] for name, rank in ranks.items() if rank]
        config = peft.LoraConfig(
            r=max(ranks.values()),
            target_modules="|".join(chosen),
            rank_pattern={targets[name]: rank for name, rank in ranks.items() if rank},
            alpha_pattern={targets[name]: 2 * rank for name, rank in ranks.items() if rank},
            lora_dropout=LORA_DROPOUT,
        )
        adapted = peft.get_peft_model(vlm, config)
        loaded.vlm = adapted.get_base_model()
        loaded.merge = adapted.merge_and_unload
    for name, parameter in loaded.vlm.named_parameters():
        of = part(name)
        parameter.requires_grad_("lora_" in name or not (frozen[of] or ranks.get(of, 0)))
    loaded.vlm.set_attn_implementation(recipe.attn_implementation)
    if recipe.torch_compile:  # in place, so that parameters keep their names
        loaded.vlm.model.vision_tower.compile()
        loaded.vlm.model.language_model.compile(dynamic=True)
    if recipe.grad_checkpoint:
        loaded.vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not any(p.requires_grad for p in loaded.vlm.parameters()):
        raise EyespotError("nothing is left to train", cause="freeze_backbone, freeze_mlp and freeze_llm are all true")


def shard(model: nn.Module, bf16: bool) -> None:
    """FSDP2: every transformer layer is a unit, and the rest is one. Parameters become slices of this process."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    )
    for module in model.modules():
        if type(module).__name__ in LAYERS:
            fully_shard(module, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def groups(model: nn.Module, recipe: Recipe, vision_layers: int) -> list[dict[str, Any]]:
    """Parameter groups of AdamW: `scale` multiplies the learning rate, deeper ViT layers learn faster; vectors and
    tables of positions do not decay."""
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable(model):
        scale = recipe.vit_layer_decay_rate ** (vision_layers + 1 - _depth(name, vision_layers))
        decays = parameter.dim() > 1 and not name.endswith(TABLES)
        found.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": recipe.weight_decay if decays else 0.0}
        for (scale, decays), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def _depth(name: str, layers: int) -> int:
    """0 for the ViT's embeddings, n + 1 for its layer n, layers + 1 for all behind it."""
    if "vision_tower." not in name:
        return layers + 1
    found = re.search(r"vision_tower\.encoder\.layers?\.(\d+)\.", name)
    return int(found[1]) + 1 if found else 0


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that learn."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
