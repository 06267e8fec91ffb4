"""Recipes: all that is wrong with one is told at once; overrides, the repository's own, the learning rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eyespot.errors import EyespotError, UsageError
from eyespot.train.loop import learning_rate
from eyespot.train.recipe import Source, read_recipe
from training import SRC, made, write_recipe


def test_a_recipe_says_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path / "r.yaml", stage="tune", output_dir="x", learning_rat=1, seed="a", bf16="yes", warmup_ratio=2,
        data=[{"scene": 3}], model_name_or_path="m",
    )  # fmt: skip
    with pytest.raises(EyespotError) as error:
        read_recipe(path)
    for word in ("learning_rat (did you mean learning_rate?)", "seed is 'a'", "bf16 is 'yes'", "warmup_ratio is 2"):
        assert word in str(error.value)
    assert "unknown key data[0].scene (did you mean scenes?)" in str(error.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("stage: tune\noutput_dir: x\n", "model_name_or_path is missing, data is missing"),
        ("stage: tune\nstage: align\n", "r.yaml:2: not YAML (the key 'stage' is there twice)"),
        ("stage: [", "not YAML"),
        ("- 1\n", "not a recipe"),
        ("stage: create\noutput_dir: x\n", "expected either model or compose"),
        ("stage: distil\noutput_dir: x\nmodel_name_or_path: m\ndata: [{scenes: 1}]\n", "teacher_model_name_or_path"),
        ("stage: tune\noutput_dir: x\nmodel_name_or_path: m\ndata: [{}]\n", "data[0]: expected either path or scenes"),
        ("stage: tune\noutput_dir: x\nmodel_name_or_path: m\ndata: [{scenes: 1}]\nmix_ratio: 1:4\n", "go together"),
        (
            "stage: tune\noutput_dir: x\nmodel_name_or_path: m\ndata: [{scenes: 1}]\nmax_packed_tokens: 99\n",
            "max_steps is missing",
        ),
    ],
)
def test_recipes_that_are_none(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(EyespotError) as error:
        read_recipe(tmp_path / "r.yaml")
    assert word in str(error.value)


def test_overrides_win_and_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "stage: transfer\noutput_dir: x\nmodel_name_or_path: m\nlearning_rate: 1e-4\nmix_ratio: 1:4\n"
        "data: [{scenes: 8}]\ngeneral_data: [{scenes: 8}]\nlayer_pairing: [[1, 2]]\n"
    )
    recipe = read_recipe(path, ["max_steps=3", "data=[{scenes: 9}]", "bf16=false"])
    assert (recipe.learning_rate, recipe.mix_ratio, recipe.layer_pairing) == (1e-4, "1:4", ((1, 2),))
    assert (recipe.max_steps, recipe.data, recipe.bf16) == (3, (Source(scenes=9),), False)
    with pytest.raises(UsageError, match="KEY=VALUE"):
        read_recipe(path, ["max_steps"])
    with pytest.raises(UsageError, match="no such recipe"):
        read_recipe(tmp_path / "absent.yaml")


def test_the_recipes_of_the_repository_are_sound() -> None:
    found = sorted((SRC.parent / "recipes").rglob("*.yaml"))
    assert {path.stem for path in found} >= {"create", "align", "tune", "distil", "transfer"}
    for path in found:
        recipe = read_recipe(path)
        assert recipe.output_dir.parts[0] == "build"


def test_the_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    recipe = made(tmp_path / "r", stage="tune", model_name_or_path="m", data=[{"scenes": 1}], learning_rate=1.0)
    recipe = replace(recipe, warmup_ratio=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    low = replace(recipe, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=0.2)
    assert learning_rate(low, 100, 100) == pytest.approx(0.2)
    assert learning_rate(replace(recipe, lr_scheduler_type="linear"), 55, 100) == pytest.approx(0.5)
    assert learning_rate(replace(recipe, lr_scheduler_type="constant_with_warmup"), 99, 100) == 1.0
