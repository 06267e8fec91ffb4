"""Training that is interrupted, shared by processes, or given what is wrong: nothing is lost, nothing is hidden."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eyespot.errors import EyespotError, UnsupportedModel
from eyespot.tensorfile import TensorFile
from eyespot.train import checkpointing, stages
from eyespot.train.journal import entries
from eyespot.train.loop import Told
from eyespot.train.model import open_model
from eyespot.train.recipe import Recipe
from training import ENV, SCENES, TEXT, VISION, finished, losses, made, same, tune, weights

pytestmark = pytest.mark.usefixtures("one_thread")


# Interruption


NEW = {
    "vocab_size": 300, "vision_config": {**VISION, "image_size": 32, "patch_size": 8}, "text_config": TEXT,
}  # fmt: skip


class Killed(Exception):
    pass


def stopped_after(recipe: Recipe, step: int) -> None:
    def watch(told: Told) -> None:
        if told.step == step:
            raise Killed

    with pytest.raises(Killed):
        stages.run(recipe, watch)


PACKED = {"max_packed_tokens": 400, "max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("keys", [{}, PACKED, {"use_llm_lora": 2}], ids=["plain", "packed", "lora with dropout"])
def test_a_run_that_was_stopped_goes_on_bit_by_bit(tiny: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    keys = {"data": [SCENES], "max_steps": 5, **keys}
    whole = tune(tmp_path / "whole", tiny, tmp_path, **keys)
    model = finished(whole)
    for step in (3, 4):  # one past the checkpoint of step 2, one at that of step 4
        recipe = tune(tmp_path / f"stopped{step}", tiny, tmp_path, **keys)
        stopped_after(recipe, step)
        again = finished(recipe)
        assert same(model / "model.safetensors", again / "model.safetensors")
        for file in (checkpointing.WEIGHTS, checkpointing.OPTIMIZER):
            assert same(*(r.output_dir / "checkpoint-5" / file for r in (whole, recipe)))
        assert losses(whole) == losses(recipe)
    assert [p.name for p in checkpointing.checkpoints(whole.output_dir)] == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("workers", [0, 1])
def test_kill_9_at_any_moment(tiny: Path, tmp_path: Path, workers: int) -> None:
    """A process killed by the system, wherever it was by then, ends where an undisturbed one does; its workers end."""
    keys = {
        "data": [SCENES], "save_steps": 1, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1,
        "dataloader_num_workers": workers, "max_packed_tokens": 1000,  # so that a few packs are more than a pipe holds
    }  # fmt: skip
    recipe = tune(tmp_path / "run", tiny, tmp_path, **keys, max_steps=4000)
    command = [sys.executable, "-m", "eyespot", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while len(checkpointing.checkpoints(recipe.output_dir)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)  # a worker that lives on keeps the pipes open
    reached = int(checkpointing.checkpoints(recipe.output_dir)[-1].name.removeprefix("checkpoint-"))
    again = finished(tune(tmp_path / "run", tiny, tmp_path, **keys, max_steps=reached + 2))
    whole = tune(tmp_path / "whole", tiny, tmp_path, **keys, max_steps=reached + 2)
    assert same(finished(whole) / "model.safetensors", again / "model.safetensors")
    assert losses(whole) == losses(recipe)
    assert not list(recipe.output_dir.glob(".*"))


@pytest.mark.parametrize("moment", ["rename", "rmtree"])
def test_killed_between_saving_and_pruning(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The new checkpoint is whole, the oldest still there, or half gone: the next run goes on from the new one."""
    keys = {"data": [SCENES], "max_steps": 4, "save_steps": 1, "save_total_limit": 1}
    recipe = tune(tmp_path / "run", tiny, tmp_path, **keys)
    real = getattr(checkpointing.os if moment == "rename" else checkpointing.shutil, moment)

    def killed(path: Any, *rest: Any, **more: Any) -> Any:
        if Path(path).name in ("checkpoint-2", ".checkpoint-2.old"):
            raise Killed
        return real(path, *rest, **more)

    monkeypatch.setattr(checkpointing.os if moment == "rename" else checkpointing.shutil, moment, killed)
    with pytest.raises(Killed):
        stages.run(recipe)
    monkeypatch.undo()
    assert checkpointing.checkpoints(recipe.output_dir)[-1].name == "checkpoint-3"
    whole = tune(tmp_path / "whole", tiny, tmp_path, **keys)
    assert same(finished(whole) / "model.safetensors", finished(recipe) / "model.safetensors")
    assert [path.name for path in checkpointing.checkpoints(recipe.output_dir)] == ["checkpoint-4"]
    assert not list(recipe.output_dir.glob(".*"))


def test_what_is_done_is_left_alone(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Neither trained nor written again; but a model of fewer steps, or of another type, is."""
    keys = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1}

    def written(**more: Any) -> tuple[int, str]:
        file = finished(tune(tmp_path / "run", tiny, rows, **keys | more)) / "model.safetensors"
        return file.stat().st_ino, TensorFile(file).metadata["step"]

    first = written(max_steps=2)
    assert written(max_steps=2) == first
    other = written(max_steps=2, torch_dtype="bfloat16")
    assert other[0] != first[0]
    model = tmp_path / "run" / "model"
    shutil.move(model, tmp_path / "aside")
    assert written(max_steps=3)[1] == "3"
    shutil.rmtree(model)
    shutil.move(tmp_path / "aside", model)  # as if killed before the third step's was written
    assert written(max_steps=3, torch_dtype="bfloat16")[1] == "3"
    for hurt in ("model.safetensors", "config.json", "tokenizer.json"):
        (model / hurt).write_bytes(b"[]") if hurt != "tokenizer.json" else (model / hurt).unlink()
        assert written(max_steps=3)[1] == "3"
        assert open_model(model).max_length == 1024
    for old in checkpointing.checkpoints(model.parent):
        shutil.rmtree(old)
    before = weights(model / "model.safetensors")
    written(max_steps=3, learning_rate=5e-2)  # trained anew: as many steps, another model
    after = weights(model / "model.safetensors")
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_changed_recipe_does_not_go_on(tiny: Path, rows: Path, tmp_path: Path) -> None:
    stopped_after(tune(tmp_path / "run", tiny, rows), 3)
    with pytest.raises(EyespotError, match=r"the recipe has changed; found learning_rate: 0\.001 became 0\.002"):
        stages.run(tune(tmp_path / "run", tiny, rows, learning_rate=2e-3))
    with pytest.raises(EyespotError, match="the global batch has changed; found 2; expected 4"):
        stages.run(tune(tmp_path / "run", tiny, rows, per_device_train_batch_size=2))
    finished(tune(tmp_path / "run", tiny, rows, per_device_train_batch_size=2, gradient_accumulation_steps=2))


def test_accumulated_batches_are_one_batch(tiny: Path, rows: Path, tmp_path: Path) -> None:
    one = tune(tmp_path / "one", tiny, rows)
    parts = tune(tmp_path / "parts", tiny, rows, per_device_train_batch_size=1, gradient_accumulation_steps=4,
                 grad_checkpoint=True)  # fmt: skip
    finished(one)
    finished(parts)
    assert losses(parts) == pytest.approx(losses(one), rel=1e-5)


def test_two_processes_are_one(tiny: Path, tmp_path: Path) -> None:
    """torchrun, gloo and FSDP2: the loss curve, gradients and weights of one process; then one goes on alone."""
    keys = {"data": [SCENES], "max_packed_tokens": 400, "max_steps": 4, "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 1}  # fmt: skip
    one = tune(tmp_path / "one", tiny, tmp_path, per_device_train_batch_size=4, **keys)
    two = tune(tmp_path / "two", tiny, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2, **keys)
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0",
         "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "-m", "eyespot", "train", tmp_path / "two.yaml"],
        env=ENV, text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    finished(one)
    found, expected = entries(two.output_dir), entries(one.output_dir)
    assert [e.loss for e in found] == pytest.approx([e.loss for e in expected], rel=1e-4)
    assert [e.grad_norm for e in found] == pytest.approx([e.grad_norm for e in expected], rel=1e-3)
    assert [e.tokens for e in found] == [e.tokens for e in expected]
    ours, theirs = (weights(r.output_dir / "checkpoint-4" / checkpointing.WEIGHTS) for r in (one, two))
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) < 1e-4
    alone = {"per_device_train_batch_size": 4, **keys, "max_steps": 6}
    finished(tune(tmp_path / "two", tiny, tmp_path, **alone))
    finished(tune(tmp_path / "six", tiny, tmp_path, **alone))
    assert losses(two) == pytest.approx([e.loss for e in entries(tmp_path / "six")], rel=1e-4)
    assert entries(two.output_dir)[: len(found)] == found  # it went on, it did not begin anew


def test_steps_may_be_added_only_where_the_rates_behind_stay(tiny: Path, rows: Path, tmp_path: Path) -> None:
    keys = {"lr_scheduler_type": "constant_with_warmup", "max_steps": 2}
    finished(tune(tmp_path / "run", tiny, rows, **keys))
    with pytest.raises(EyespotError, match="max_steps"):  # three in a hundred of more steps is a longer warmup
        stages.run(tune(tmp_path / "run", tiny, rows, **keys | {"max_steps": 3}))


def test_data_that_grew_is_not_gone_on_with(tiny: Path, rows: Path, tmp_path: Path) -> None:
    own = tmp_path / "rows"
    shutil.copytree(rows.parent, own)
    keys = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1}
    finished(tune(tmp_path / "run", tiny, own / rows.name, max_steps=2, **keys))
    lines = (own / rows.name).read_text()
    (own / rows.name).write_text(lines + lines.splitlines()[0] + "\n")
    with pytest.raises(EyespotError, match=r"the data has changed.*9 samples.*8"):
        stages.run(tune(tmp_path / "run", tiny, own / rows.name, max_steps=3, **keys))


def test_a_row_that_misstates_its_picture_is_bad(tiny: Path, rows: Path, tmp_path: Path) -> None:
    own = tmp_path / "rows"
    shutil.copytree(rows.parent, own)
    row = json.loads((own / rows.name).read_text().splitlines()[0])
    (own / rows.name).write_text(json.dumps(row | {"width": 400, "height": 40}) + "\n")
    with pytest.raises(EyespotError, match=r"set.jsonl:1: .*48, 40.*400, 40"):
        stages.run(tune(tmp_path / "run", tiny, own / rows.name, max_steps=1))


# What goes wrong


def test_a_loss_that_is_no_number(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = tune(tmp_path / "run", tiny, rows, learning_rate=1e5, max_grad_norm=0, warmup_steps=3, max_steps=40)
    with pytest.raises(EyespotError, match=r"step \d+: the loss is .*likely cause: a learning_rate too high") as error:
        stages.run(recipe)
    kept = checkpointing.checkpoints(recipe.output_dir)
    assert str(kept[-1]) in str(error.value) if kept else "no checkpoint" in str(error.value)
    for checkpoint in kept:
        assert all(np.isfinite(w).all() for w in weights(checkpoint / checkpointing.WEIGHTS).values())


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """The system refuses files larger than `size` bytes, as a full disk refuses them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = tune(tmp_path / "run", tiny, rows)
    stopped_after(recipe, 3)
    before = weights(recipe.output_dir / "checkpoint-2" / checkpointing.WEIGHTS)
    with file_limit(50_000), pytest.raises(EyespotError, match=r"checkpoint-4 cannot be written.*the disk is full"):
        stages.run(recipe)
    assert [p.name for p in recipe.output_dir.glob("*checkpoint*")] == ["checkpoint-2"]
    after = weights(recipe.output_dir / "checkpoint-2" / checkpointing.WEIGHTS)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    whole = tune(tmp_path / "whole", tiny, rows)
    assert same(finished(recipe) / "model.safetensors", finished(whole) / "model.safetensors")


def bring_pictures(rows: Path, to: Path) -> None:
    for picture in rows.parent.glob("*.png"):
        shutil.copyfile(picture, to / picture.name)


def test_a_bad_record_does_not_lose_the_run(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Stopped by a bad record one goes on with skip_bad, and ends where a run ends that had it from the start."""
    lines = rows.read_text().splitlines()[:12]
    bring_pictures(rows, tmp_path)
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join([*lines, lines[1].replace("<image>", "<image><image>")]) + "\n")
    keys = {"data": [{"path": str(path)}], "per_device_train_batch_size": 2, "save_steps": 1, "max_steps": 7, "seed": 3}
    recipe = tune(tmp_path / "run", tiny, path, **keys)
    with pytest.raises(EyespotError, match="skip_bad"):
        stages.run(recipe)
    reached = checkpointing.checkpoints(recipe.output_dir)
    assert reached  # it was not the first step
    again = stages.run(tune(tmp_path / "run", tiny, path, **keys, skip_bad=True))
    whole = stages.run(tune(tmp_path / "whole", tiny, path, **keys, skip_bad=True))
    assert again is not None
    assert again.ended is not None
    assert whole is not None
    assert whole.ended is not None
    assert same(again.model / "model.safetensors", whole.model / "model.safetensors")
    assert len(again.ended.skipped) == 1
    assert again.ended.skipped == whole.ended.skipped


def test_a_checkpoint_is_exported_by_its_own_recipe(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = tune(tmp_path / "run", tiny, rows, max_steps=1)
    finished(recipe)
    other = tune(tmp_path / "run", tiny, rows, max_steps=1, vision_select_layer=1)
    with pytest.raises(EyespotError, match="vision_select_layer: None became 1"):
        stages.export_checkpoint(other, stages.newest(other), tmp_path / "out")
    more = tune(tmp_path / "run", tiny, rows, max_steps=9)
    stages.export_checkpoint(more, stages.newest(more), tmp_path / "out")
    assert same(tmp_path / "out" / "model.safetensors", recipe.output_dir / "model" / "model.safetensors")


def test_bad_records(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Each ends the training with file and line, or is counted and left out; the last checkpoint stays."""
    good = rows.read_text().splitlines()
    bad = {
        "malformed": '{"image": "red.png", "conversations": [',
        "absent.png": good[0].replace("red.png", "absent.png"),
        "2 <image> for 1 images": good[1].replace("<image>", "<image><image>"),
        "leaves the picture": good[2].replace('"blue"', '"<box>[[1,1,2000,2]]</box>"'),
        "expected at most 64": good[3].replace("Which", "Which " + 80 * "very "),
    }
    bring_pictures(rows, tmp_path)
    for number, (word, line) in enumerate(bad.items()):
        path = tmp_path / f"bad{number}.jsonl"
        path.write_text("\n".join([*good[:4], line]) + "\n")
        recipe = tune(tmp_path / f"run{number}", tiny, path, per_device_train_batch_size=5, max_seq_length=64)
        with pytest.raises(EyespotError) as error:
            stages.run(recipe)
        assert f"{path}:5" in str(error.value)
        assert word in str(error.value) or word == "malformed"
        assert "skip_bad" in str(error.value)
    path.write_text("\n".join([*good[:3], *bad.values()]) + "\n")
    recipe = tune(tmp_path / "skipping", tiny, path, skip_bad=True, max_seq_length=64, dataloader_num_workers=2)
    result = stages.run(recipe)
    assert result is not None
    assert result.ended is not None
    assert len(result.ended.skipped) == 5
    again = stages.run(recipe)  # what is done is left alone, and still tells
    assert again is not None
    assert again.ended is not None
    assert again.ended.skipped == result.ended.skipped
    path.write_text(bad["2 <image> for 1 images"] + "\n")
    with pytest.raises(EyespotError, match="no sound record"):
        stages.run(tune(tmp_path / "none", tiny, path, skip_bad=True))
    with pytest.raises(EyespotError, match="2 <image> for 1 images"):
        stages.run(made(tmp_path / "new", stage="create", model=NEW, data=[{"path": str(path)}]))
    created = stages.run(made(tmp_path / "new", stage="create", model=NEW, data=[{"path": str(path)}], skip_bad=True))
    assert created is not None
    assert created.made is not None
    assert created.made["skipped"] == 1
    path.write_text("")
    with pytest.raises(EyespotError, match="the set is empty"):
        stages.run(tune(tmp_path / "empty", tiny, path))


def test_models_that_are_not_trained_here(tiny: Path, rows: Path, tmp_path: Path) -> None:
    import models

    models.tiny_internvl(tmp_path / "chat")
    with pytest.raises(UnsupportedModel, match=r"InternVLChatModel.*-hf"):
        stages.run(tune(tmp_path / "run", tmp_path / "chat", rows))
    with pytest.raises(EyespotError, match="max_seq_length is more than the model was made for; found 9999"):
        stages.run(tune(tmp_path / "run", tiny, rows, max_seq_length=9999))
    broken = tmp_path / "broken"
    models.tiny_internvl_hf(broken)
    kept = {n: t for n, t in weights(broken / "model.safetensors").items() if "linear_1" not in n}
    checkpointing.write_tensors(broken / "model.safetensors", {n: torch.from_numpy(t) for n, t in kept.items()})
    with pytest.raises(EyespotError, match="2 tensors are missing"):
        stages.run(tune(tmp_path / "run", broken, rows))
