"""The loop every stage shares: packs into steps, one process or many, checkpoints, and what is told on the way.

Knows no stage: the objective says what is summed, the recipe how fast. Processes are accelerate's, slices of parameters
torch's FSDP2: accelerate's own preparation refuses a CPU, where the same code is to be proven.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from eyespot.errors import EyespotError
from eyespot.train import checkpointing
from eyespot.train.checkpointing import Progress
from eyespot.train.data.sets import Dataset
from eyespot.train.journal import Entry, Journal
from eyespot.train.model import groups, shard, trainable
from eyespot.train.objective import Batch, Objective
from eyespot.train.recipe import Recipe
from eyespot.train.streams import Pack, State, Streams, load


@dataclass(frozen=True, slots=True)
class Told:
    """What somebody who watches hears after each step. left: seconds, as far as one can tell."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    left: float
    note: str = ""


Watch = Callable[[Told], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a training ended: its last checkpoint and loss, the bad records it left out."""

    checkpoint: Path
    steps: int
    loss: float
    tokens: int
    seconds: float
    skipped: tuple[str, ...]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Of step number `step`, from 0, of `steps`: warmed up from nothing, then as lr_scheduler_type says."""
    warm = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * steps)
    if step < warm:
        return recipe.learning_rate * (step + 1) / (warm + 1)
    share = (step - warm) / max(1, steps - warm)
    match recipe.lr_scheduler_type:
        case "constant_with_warmup":
            return recipe.learning_rate
        case "linear":
            return recipe.learning_rate * (1 - share)
        case "cosine_with_min_lr":
            low = recipe.min_lr_rate
            return recipe.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def accelerator(recipe: Recipe) -> Accelerator:
    """The processes there are: one, or those torchrun started; on GPUs where there are some."""
    cuda = torch.cuda.is_available()
    bf16 = (cuda and torch.cuda.is_bf16_supported()) if recipe.bf16 == "auto" else recipe.bf16
    if cuda:
        torch.set_float32_matmul_precision("high")
    return Accelerator(cpu=not cuda, mixed_precision="bf16" if bf16 else "no")


def fit(recipe: Recipe, objective: Objective, data: Dataset, max_length: int, acc: Accelerator, watch: Watch) -> Ended:
    """Trains to the end of the recipe, from OUT's newest checkpoint on where there is one, and leaves one at the end.

    max_length: tokens the model takes. watch: hears every step, in the main process. EyespotError for a loss that is
    not finite, a bad record, a full disk: the last checkpoint stays as it was.
    """
    out, device = recipe.output_dir, acc.device
    packs_each = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    total = packs_each * acc.num_processes
    steps = recipe.max_steps or max(1, math.ceil(recipe.num_train_epochs * len(data) / total))
    newest = next(reversed(checkpointing.checkpoints(out)), None)
    _agree(acc, newest)
    at = Progress(streams={n: State() for n in range(total)}, samples=len(data))
    if newest is not None:
        at = checkpointing.progress(newest, recipe, total)
        if at.samples not in (0, len(data)):
            raise EyespotError(
                f"{newest}: the data has changed", found=f"{len(data)} samples", expected=at.samples,
                cause="a training goes on with the data it began with; give another output_dir",
            )  # fmt: skip
        checkpointing.load_weights(newest, objective)
    objective.to(device)
    if acc.num_processes > 1:
        objective.always_see = True
        shard(objective, acc.mixed_precision == "bf16")
    layers = objective.vlm.config.vision_config.num_hidden_layers
    optimizer = torch.optim.AdamW(
        groups(objective, recipe, layers), betas=(recipe.adam_beta1, recipe.adam_beta2), eps=recipe.adam_epsilon,
        fused=acc.num_processes == 1 or device.type == "cuda",
    )  # fmt: skip
    if newest is not None:
        checkpointing.load_optimizer(newest, objective, optimizer)
    own = range(acc.process_index * packs_each, (acc.process_index + 1) * packs_each)
    streams = Streams(
        data, objective.views, total, recipe.seed, _longest(recipe, max_length),
        recipe.max_packed_tokens, recipe.num_images_expected, recipe.skip_bad,
    )  # fmt: skip
    packs = load(streams, own, {n: at.streams[n] for n in own}, recipe.dataloader_num_workers)
    run = _Run(recipe, objective, optimizer, acc, steps, packs, list(own))
    return run.to_the_end(at, newest, watch)


def _agree(acc: Accelerator, newest: Path | None) -> None:
    """EyespotError when processes would go on from different checkpoints."""
    if acc.num_processes > 1:
        named: list[Any] = [None] * acc.num_processes
        torch.distributed.all_gather_object(named, newest and newest.name)
        if len(set(named)) > 1:
            found = ", ".join(str(name or "none") for name in dict.fromkeys(named))
            raise EyespotError("processes see different checkpoints", found=found,
                               expected="an output_dir that all machines share")  # fmt: skip


def _longest(recipe: Recipe, model: int) -> int:
    """Tokens a sample may have."""
    asked = recipe.max_seq_length or min(model, recipe.max_packed_tokens or model)
    if asked > model:
        raise EyespotError("max_seq_length is more than the model was made for", found=asked, expected=model)
    return asked


@dataclass
class _Run:
    recipe: Recipe
    objective: Objective
    optimizer: torch.optim.Optimizer
    acc: Accelerator
    steps: int
    packs: Iterator[Pack]
    own: list[int]

    def to_the_end(self, at: Progress, newest: Path | None, watch: Watch) -> Ended:
        recipe, main = self.recipe, self.acc.is_main_process
        journal = Journal(recipe.output_dir, at.step, bool(recipe.report_to)) if main else None
        skipped = dict.fromkeys(at.skipped)
        loss, sums, since = at.loss, [0.0, 0.0], at.step
        self.objective.train()
        try:
            while at.step < self.steps:
                begun = time.perf_counter()
                rate = learning_rate(recipe, at.step, self.steps)
                packs = [self._pack(newest) for _ in self.own]
                for pack in packs:
                    skipped.update(dict.fromkeys(pack.skipped))
                loss, norm, tokens = self._step(packs, at.step, rate, newest)
                took = time.perf_counter() - begun
                streams = {**at.streams, **{pack.stream: pack.after for pack in packs}}
                at = replace(
                    at,
                    step=at.step + 1,
                    tokens=at.tokens + tokens,
                    seconds=at.seconds + took,
                    loss=loss,
                    streams=streams,
                )
                sums = [sums[0] + loss, sums[1] + norm]
                saving = at.step % recipe.save_steps == 0 or at.step == self.steps
                if saving or at.step % recipe.logging_steps == 0:
                    count = at.step - since
                    entry = Entry(at.step, sums[0] / count, rate, sums[1] / count, at.tokens, at.seconds)
                    sums, since = [0.0, 0.0], at.step
                    if journal is not None:
                        journal.add(entry)
                if saving:
                    known, left_out = self._everywhere(at.streams, tuple(skipped))
                    at = replace(at, streams=known, skipped=left_out)
                    newest = checkpointing.save(recipe.output_dir, self.objective, self.optimizer, recipe, at, main)
                    self.acc.wait_for_everyone()
                if main:
                    left = at.seconds / at.step * (self.steps - at.step)
                    watch(Told(at.step, self.steps, loss, tokens / took, left, f"saved {newest}" if saving else ""))
        finally:
            if journal is not None:
                journal.close()
        assert newest is not None
        return Ended(newest, at.step, loss, at.tokens, at.seconds, at.skipped)

    def _pack(self, newest: Path | None) -> Pack:
        pack = next(self.packs)
        if pack.failure:
            raise EyespotError(pack.failure, cause=f"{_kept(newest)}; skip_bad: true leaves bad records out")
        return pack

    def _step(self, packs: list[Pack], step: int, rate: float, newest: Path | None) -> tuple[float, float, int]:
        """One step of the optimizer. Returns the mean loss, the gradient's norm, and the tokens, of all processes."""
        recipe, acc, size = self.recipe, self.acc, self.recipe.per_device_train_batch_size
        torch.manual_seed(int(np.random.SeedSequence([recipe.seed, step, acc.process_index]).generate_state(1)[0]))
        packs = sorted(packs, key=_length)  # like with like: the sum is the same, the padding is less
        parts: list[tuple[Batch, ...]] = [
            self.objective.batches(packs[i : i + size]) for i in range(0, len(packs), size)
        ]
        sums = torch.tensor(
            [sum(self.objective.weight(part) for part in parts), float(sum(part[0].tokens for part in parts))],
            dtype=torch.float64,
        )
        weight, tokens = self._sum(sums)
        if not weight:
            raise EyespotError(f"step {step + 1}: nothing to learn", cause="records without pictures")
        total = 0.0
        for number, part in enumerate(parts):
            if acc.num_processes > 1:
                sharded: Any = self.objective
                sharded.set_requires_gradient_sync(number == len(parts) - 1)
            with acc.autocast():
                loss = self.objective(*(batch.to(acc.device) for batch in part)) / weight
            total += float(loss.detach())
            (loss * acc.num_processes).backward()  # for gradients are averaged over processes
        (total,) = self._sum(torch.tensor([total], dtype=torch.float64))
        norm = float(_norm(self.objective, recipe.max_grad_norm))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise EyespotError(
                f"step {step + 1}: the loss is {total}, the gradient's norm {norm}", expected="finite numbers",
                cause=f"a learning_rate too high for this model; {_kept(newest)}",
            )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm, int(tokens)

    def _sum(self, values: torch.Tensor) -> list[float]:
        """The sum over processes, exactly the same in each."""
        if self.acc.num_processes == 1:
            return values.tolist()
        every = self.acc.gather(values.to(self.acc.device)[None])
        found: list[float] = every.cpu().sum(0).tolist()
        return found

    def _everywhere(
        self, streams: Mapping[int, State], skipped: tuple[str, ...]
    ) -> tuple[Mapping[int, State], tuple[str, ...]]:
        """Where every stream of every process stands, and what any of them left out."""
        if self.acc.num_processes == 1:
            return streams, skipped
        every: list[Any] = [None] * self.acc.num_processes
        torch.distributed.all_gather_object(every, ({n: streams[n] for n in self.own}, skipped))
        return (
            {n: state for part, _ in every for n, state in part.items()},
            tuple(dict.fromkeys(text for _, part in every for text in part)),
        )


def _length(pack: Pack) -> int:
    return sum(len(sample.views[0].ids) for sample in pack.samples)


def _kept(newest: Path | None) -> str:
    return f"{newest} is whole" if newest is not None else "no checkpoint was written yet"


def _norm(model: nn.Module, most: float) -> torch.Tensor:
    """The gradient's norm over all parameters and processes; clips the gradient to `most` unless that is 0."""
    norm: Any = nn.utils.clip_grad_norm_([p for _, p in trainable(model)], most or math.inf)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
