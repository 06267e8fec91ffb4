"""The stages in order: create, distil or label, align, tune, transfer. Each takes a checkpoint and leaves OUT/model.

Knows what a stage freezes and what it minimizes; the loop, the objectives and the files have modules of their own.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from eyespot.errors import EyespotError, UsageError
from eyespot.files import atomic
from eyespot.tensorfile import read_json
from eyespot.train import checkpointing
from eyespot.train.create import create
from eyespot.train.distill import Features, Logits, open_tower, pair_layers
from eyespot.train.export import export, exported
from eyespot.train.journal import plot
from eyespot.train.label import LabelledAnswers, Labels
from eyespot.train.loop import Ended, Watch, accelerator, fit
from eyespot.train.model import Loaded, open_model, prepare
from eyespot.train.objective import Answers, Objective
from eyespot.train.recipe import Recipe, as_json
from eyespot.train.streams import open_data

MODEL = "model"  # the exported checkpoint, in output_dir
RECIPE = "recipe.json"  # what stage create was asked for
# Stage -> parts whose weights stay, where the recipe does not say.
FROZEN = {
    "distil": {"backbone": False, "mlp": True, "llm": True},
    "label": {"backbone": False, "mlp": True, "llm": True},
    "align": {"backbone": True, "mlp": False, "llm": True},
    "tune": {"backbone": False, "mlp": False, "llm": False},
    "transfer": {"backbone": False, "mlp": False, "llm": False},
}


@dataclass(frozen=True, slots=True)
class Result:
    """model: the exported checkpoint. ended: how the training did; None where nothing was left to do, or of stage
    create, whose `made` has parameters and vocabulary. plot: of the loss."""

    model: Path
    ended: Ended | None = None
    made: dict[str, int] | None = None
    plot: Path | None = None


def run(recipe: Recipe, watch: Watch = lambda told: None) -> Result | None:
    """Does what a recipe says, from where an earlier run of it stopped; None in all processes but the main one.

    EyespotError when OUT holds another recipe's run, or when the training cannot go on; checkpoints stay whole.
    """
    out = recipe.output_dir
    model = out / MODEL
    if recipe.stage == "create":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("stage create is the work of one process", cause="run it without torchrun")
        if model.exists():
            _same(out, recipe)
            return Result(model)
        checkpointing.clean(_made(out))
        with atomic(out / RECIPE) as file:
            file.write(json.dumps(as_json(recipe), indent=1).encode())
        return Result(model, made=create(recipe, open_data(recipe) if recipe.data else None, model))
    acc = accelerator(recipe)
    try:
        if acc.is_main_process:
            checkpointing.clean(_made(out))
        acc.wait_for_everyone()
        loaded, objective = build(recipe)
        files, before = tuple(loaded.files), checkpointing.checkpoints(out)[-1:]
        ended = fit(recipe, objective, open_data(recipe), loaded.max_length, acc, watch)
        acc.wait_for_everyone()
        if not acc.is_main_process:
            return None
        del objective, loaded
        done = [ended.checkpoint] == before and exported(model, files, recipe.torch_dtype, ended.steps)
        if not done:  # what is done is left alone
            export_checkpoint(recipe, ended.checkpoint, model)
        return Result(model, ended, plot=plot(out))
    finally:
        acc.end_training()


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EyespotError(f"{out}: cannot be made ({error.strerror})") from None
    return out


def build(recipe: Recipe) -> tuple[Loaded, Objective]:
    """The model of a recipe, frozen and adapted as its stage wants, and what it minimizes."""
    assert recipe.model_name_or_path is not None
    torch.manual_seed(recipe.seed)  # new adapters are the same in every process, and each time
    loaded = open_model(recipe.model_name_or_path, recipe.max_dynamic_patch)
    asked = {"backbone": recipe.freeze_backbone, "mlp": recipe.freeze_mlp, "llm": recipe.freeze_llm}
    frozen = {part: FROZEN[recipe.stage][part] if asked[part] is None else bool(asked[part]) for part in asked}
    prepare(loaded, recipe, frozen)
    teacher = recipe.teacher_model_name_or_path
    eyes = recipe.stage in ("distil", "label")
    if eyes and (not (frozen["mlp"] and frozen["llm"]) or recipe.use_llm_lora):
        raise EyespotError(f"stage {recipe.stage} teaches the eyes alone", expected="freeze_mlp and freeze_llm")
    if recipe.stage == "label":
        return loaded, Labels(loaded)
    if recipe.stage == "distil":
        assert teacher is not None
        tower, eye, layers = open_tower(teacher, recipe.teacher_image_size)
        pairs = pair_layers(recipe, loaded.vlm.config.vision_config.num_hidden_layers, layers)
        return loaded, Features(loaded, tower, eye, pairs, recipe.width_adapter)
    if teacher is not None:
        known = open_model(teacher, recipe.max_dynamic_patch)
        return loaded, Logits(loaded, known, recipe.loss_reduction, recipe.kd_ratio, recipe.kd_temperature)
    if recipe.label_weight:
        return loaded, LabelledAnswers(loaded, recipe.loss_reduction, recipe.label_weight)
    return loaded, Answers(loaded, recipe.loss_reduction)


def export_checkpoint(recipe: Recipe, checkpoint: Path, out: Path) -> None:
    """Writes a checkpoint of this recipe's training as a model; adapters are merged. EyespotError when its recipe was
    another: what is around the weights comes from the recipe."""
    checkpointing.check_recipe(checkpoint, recipe)
    loaded, objective = build(recipe)
    checkpointing.load_weights(checkpoint, objective)
    loaded.merge()
    export(objective.vlm, loaded.files, out, recipe.torch_dtype, checkpointing.step(checkpoint))


def newest(recipe: Recipe) -> Path:
    """The newest checkpoint of a recipe's training. UsageError when there is none."""
    found = checkpointing.checkpoints(recipe.output_dir)
    if not found:
        raise UsageError(f"{recipe.output_dir}: no checkpoint yet")
    return found[-1]


def _same(out: Path, recipe: Recipe) -> None:
    """EyespotError when `out` holds a model made by another recipe."""
    if read_json(out / RECIPE) != json.loads(json.dumps(as_json(recipe))):
        raise EyespotError(f"{out} holds a model of another recipe", expected="another output_dir")
