"""Trainings at tiny size, for several test files: recipes from keys, and what a run left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eyespot.tensorfile import TensorFile
from eyespot.train import stages
from eyespot.train.journal import entries
from eyespot.train.recipe import Recipe, read_recipe

SRC = Path(__file__).parent.parent / "src"
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
SCENES = {"scenes": 40, "questions": 3, "sides": [64], "tasks": {"name": 1, "colour": 1, "compare": 1}}


def write_recipe(path: Path, **keys: Any) -> Path:
    path.write_text(yaml.safe_dump(keys))
    return path


def made(at: Path, **keys: Any) -> Recipe:
    """A recipe from keys, as a file would have them."""
    plain = {"report_to": [], "logging_steps": 1, "output_dir": str(at), **keys}
    at.parent.mkdir(parents=True, exist_ok=True)
    return read_recipe(write_recipe(at.with_suffix(".yaml"), **plain))


def tune(at: Path, tiny: Path, rows: Path, **keys: Any) -> Recipe:
    """A short training on the colours."""
    return made(at, **{
        "stage": "tune", "model_name_or_path": str(tiny), "data": [{"path": str(rows)}], "max_dynamic_patch": 1,
        "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-3, "save_steps": 2, "seed": 7,
        "torch_dtype": "float32", **keys,
    })  # fmt: skip


def losses(recipe: Recipe) -> list[float]:
    return [entry.loss for entry in entries(recipe.output_dir)]


def finished(recipe: Recipe) -> Path:
    """Runs a recipe; its model."""
    result = stages.run(recipe)
    assert result is not None
    return result.model


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    file = TensorFile(path)
    return {name: np.array(file.raw(name)) for name in file.entries}


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(np.array_equal(one[n].view(np.uint8), two[n].view(np.uint8)) for n in one)
