"""Checkpoints of a training: OUT/checkpoint-N, each whole or not there, and all that is needed to go on bit by bit.

A checkpoint is three files: weights.safetensors (all parameters, float32), optimizer.safetensors (AdamW's moments and
step counts) and state.json (the recipe, and where each stream of data stands). Random numbers need no state: they are
drawn anew every step, from seed, step and process.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eyespot import tensorfile
from eyespot.errors import EyespotError
from eyespot.files import sync
from eyespot.tensorfile import TensorFile, read_json
from eyespot.train.recipe import FREE, Recipe, as_json
from eyespot.train.streams import State

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 1
STEPS = frozenset({"max_steps", "num_train_epochs"})
TEACHER = "teacher."  # parameters of a teacher are not the training's


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands. tokens, seconds: it took; loss: of the last step; streams: where each one stands;
    samples: of the set it learns from, 0 where that was not written down; skipped: bad records that were left out."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    streams: Mapping[int, State] = field(default_factory=dict)
    samples: int = 0
    skipped: tuple[str, ...] = ()


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A directory that gets its name when all its files are on the disk. EyespotError when the disk refuses."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        for file in part.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        sync(part)
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
            os.rename(part, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(part, path)
        sync(path.parent)
    except OSError as error:
        raise EyespotError(f"{path} cannot be written ({error.strerror or error})", cause="the disk is full?") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def whole(tensor: Tensor) -> Tensor:
    """A parameter or a moment, gathered from all processes where it is in slices; every process must ask."""
    gather = getattr(tensor, "full_tensor", None)
    return (gather() if gather else tensor).detach().cpu()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of float32 and bfloat16 tensors."""
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16"}
    shapes = {name: (kinds[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    chunks = (
        (n, (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).contiguous().numpy()) for n, t in tensors.items()
    )
    with open(path, "wb") as file:
        tensorfile.write(file, shapes, chunks, metadata or {})


def save(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, at: Progress, main: bool
) -> Path:
    """Writes OUT/checkpoint-STEP, removes the oldest beyond save_total_limit. All processes call it, `main` writes."""
    named = {n: p for n, p in model.named_parameters() if not n.startswith(TEACHER)}
    weights, moments = {}, {}
    for name, parameter in named.items():
        value = whole(parameter)
        if main:
            weights[name] = value
        state = optimizer.state.get(parameter, {})
        for key in sorted(state):
            value = whole(state[key])
            if main:
                moments[f"{key}.{name}"] = value.reshape(1) if value.dim() == 0 else value
    path = out / f"checkpoint-{at.step}"
    if not main:
        return path
    state = {
        "format": FORMAT,
        "step": at.step,
        "tokens": at.tokens,
        "seconds": at.seconds,
        "loss": at.loss,
        "samples": at.samples,
        "skipped": at.skipped,
        "streams": [[at.streams[n].read, list(at.streams[n].held)] for n in sorted(at.streams)],
        "recipe": as_json(recipe),
    }
    with atomic_directory(path) as part:
        write_tensors(part / WEIGHTS, weights)
        write_tensors(part / OPTIMIZER, moments)
        (part / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    for old in checkpoints(out)[: -recipe.save_total_limit]:
        gone = old.with_name(f".{old.name}.old")
        os.rename(old, gone)
        shutil.rmtree(gone, ignore_errors=True)
    return path


def checkpoints(out: Path) -> list[Path]:
    """Those in `out`, oldest first."""
    found = [p for p in out.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=step)


def step(checkpoint: Path) -> int:
    """How many steps a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def clean(out: Path) -> None:
    """Removes what a killed run left half done."""
    for rest in (*out.glob(".*.part"), *out.glob(".*.old")):
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)


def progress(path: Path, recipe: Recipe, streams: int) -> Progress:
    """Where the training of a checkpoint stood. EyespotError when its recipe was another, naming the keys."""
    state = read_json(path / STATE)
    try:
        theirs = state["recipe"]
        listed = [State(int(read), tuple(map(int, held))) for read, held in state["streams"]]
        took = int(state["step"]), int(state["tokens"]), float(state["seconds"]), float(state["loss"])
        skipped = tuple(map(str, state.get("skipped", ())))
        found = Progress(*took, dict(enumerate(listed)), int(state.get("samples", 0)), skipped)
        if state["format"] != FORMAT:
            raise EyespotError(f"{path / STATE}: another format", found=state["format"], expected=FORMAT)
    except (KeyError, TypeError, ValueError) as error:
        raise EyespotError(f"{path / STATE}: malformed ({error!r})") from None
    # Steps may be added where the rate of those behind does not depend on their number.
    grows = recipe.lr_scheduler_type == "constant_with_warmup" and (recipe.warmup_steps or not recipe.warmup_ratio)
    _compare(path, recipe, theirs, STEPS if grows else frozenset())
    if len(listed) != streams:
        raise EyespotError(
            f"{path}: the global batch has changed", found=streams, expected=len(listed),
            cause="per_device_train_batch_size x gradient_accumulation_steps x processes must stay",
        )  # fmt: skip
    return found


def check_recipe(path: Path, recipe: Recipe) -> None:
    """EyespotError when a checkpoint's recipe was another, but for the number of steps, naming the keys."""
    try:
        theirs = dict(read_json(path / STATE)["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise EyespotError(f"{path / STATE}: malformed ({error!r})") from None
    _compare(path, recipe, theirs, STEPS)


def _compare(path: Path, recipe: Recipe, theirs: Mapping[str, Any], free: Set[str]) -> None:
    """EyespotError where a checkpoint's recipe is another in more than the keys that are free to change."""
    ours = json.loads(json.dumps(as_json(recipe)))
    split = {"per_device_train_batch_size", "gradient_accumulation_steps"}  # only their product with processes counts
    changed = [k for k in sorted({*ours, *theirs} - free - split - FREE) if ours.get(k) != theirs.get(k)]
    if changed:
        was = ", ".join(f"{key}: {theirs.get(key)!r:.40} became {ours.get(key)!r:.40}" for key in changed)
        raise EyespotError(f"{path}: the recipe has changed", found=was, expected="the same, or another output_dir")


def load_weights(path: Path, model: nn.Module) -> None:
    """Puts a checkpoint's parameters into a model that is not sharded yet."""
    file = TensorFile(path / WEIGHTS)
    named = {n: p for n, p in model.named_parameters() if not n.startswith(TEACHER)}
    if set(named) != set(file.entries) or any(tuple(p.shape) != file.entries[n].shape for n, p in named.items()):
        raise EyespotError(
            f"{path}: the model has changed",
            cause="model_name_or_path leads to another one by now, or another eyespot wrote this",
        )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(torch.from_numpy(np.array(file.raw(name))))


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts AdamW's moments back, in slices where the parameters are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    file = TensorFile(path / OPTIMIZER)
    for name, parameter in model.named_parameters():
        state: dict[str, Any] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"{key}.{name}" not in file.entries:
                continue
            value = torch.from_numpy(np.array(file.raw(f"{key}.{name}")))
            if key == "step":
                state[key] = value.reshape(()).to(parameter.device if optimizer.defaults["fused"] else "cpu")
            elif isinstance(parameter, DTensor):
                state[key] = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            else:
                state[key] = value.to(parameter.device)
        if state:
            optimizer.state[parameter] = state
