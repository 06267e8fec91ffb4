"""Objectives with a teacher: its hidden states for a vision encoder (stage 0), its logits for a whole model.

Sources: Mini-InternVL (arXiv 2410.16261) for negative cosine between hidden states of the last K layers, with what it
leaves open as settings; Hinton et al. (arXiv 1503.02531) for logits at a temperature.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.checkpoint import local
from eyespot.errors import EyespotError
from eyespot.families.internvl import MEAN, STD
from eyespot.tensorfile import read_json
from eyespot.train.model import Loaded, quiet
from eyespot.train.objective import Batch, Objective, cross_entropy, logits, look
from eyespot.train.pixels import Eye
from eyespot.train.recipe import Recipe
from eyespot.train.streams import View

HEADS = ("pooler.", "head.")  # of encoders, after the last hidden state: nobody learns from them


class Features(Objective):
    """Negative cosine between what the student's last layers and the teacher's say of each patch, and of the whole.

    pairs: (student's layer, teacher's layer), from 1. The teacher may have other widths, patches and picture sizes: its
    rows are pooled to the student's grid, and adapters take the student's width to the teacher's.
    """

    def __init__(self, loaded: Loaded, teacher: nn.Module, eye: Eye, pairs: Sequence[tuple[int, int]], adapter: str):
        super().__init__(loaded, "token")
        self.teacher = teacher.requires_grad_(False).eval()
        self.pairs = tuple(pairs)
        self.views = (loaded.view, View(loaded.view.encoder, eye))
        student: Any = self.vlm.model.vision_tower
        widths = student.config.hidden_size, int(teacher.config.hidden_size)  # type: ignore[union-attr,arg-type]
        if adapter == "none" and widths[0] != widths[1]:
            raise EyespotError(
                "width_adapter: none", found=f"widths {widths[0]} and {widths[1]}", expected="equal ones"
            )
        count = {"layer": len(self.pairs), "shared": 1, "none": 0}[adapter]
        self.adapters = nn.ModuleList(nn.Linear(*widths) for _ in range(count))

    def weight(self, batches: Sequence[Batch]) -> float:
        return float(len(batches[0].tiles))

    def forward(self, *batches: Batch) -> Tensor:
        seen = len(batches[0].tiles) > 0
        ours, theirs = (
            view.eye.normalized(batch.tiles if seen else batch.tiles.new_zeros((1, view.eye.size, view.eye.size, 3)))
            for view, batch in zip(self.views, batches, strict=True)
        )
        with torch.no_grad():
            taught = self.teacher(pixel_values=theirs, output_hidden_states=True).hidden_states
        said = self.vlm.model.vision_tower(pixel_values=ours, output_hidden_states=True).hidden_states
        total = said[-1].new_zeros((), dtype=torch.float32)
        for number, (s, t) in enumerate(self.pairs):
            rows, goal = matched(said[s], taught[t])
            if self.adapters:
                rows = self.adapters[number % len(self.adapters)](rows)
            total = total - F.cosine_similarity(rows.float(), goal.float(), dim=-1).mean(1).sum()
        return total / len(self.pairs) * seen


def matched(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [t, n, d] of two encoders, about the same places: patches on the student's grid, and before them the class
    token where both have one."""
    (grid, extra), (other, more) = _grid(ours), _grid(theirs)
    patches = theirs[:, more:]
    if grid != other:
        square = patches.transpose(1, 2).reshape(len(patches), -1, other, other).float()
        if grid < other:
            square = F.adaptive_avg_pool2d(square, grid)
        else:
            square = F.interpolate(square, size=(grid, grid), mode="bilinear", align_corners=False)
        patches = square.flatten(2).transpose(1, 2)
    if extra and more:
        return ours, torch.cat([theirs[:, :1].to(patches.dtype), patches], 1)
    return ours[:, extra:], patches


def _grid(rows: Tensor) -> tuple[int, int]:
    """Side of the square of patches, and the number of tokens before it (class and registers)."""
    side = int(rows.shape[1] ** 0.5)
    return side, rows.shape[1] - side * side


def pair_layers(recipe: Recipe, student: int, teacher: int) -> list[tuple[int, int]]:
    """The pairs of layers that layer_pairing means, of encoders with so many layers. EyespotError when there are none.

    last: the student's last K with the teacher's last K, from the end. uniform: the student's last K, each with the
    teacher's layer at the same depth. Or a list of [student's, teacher's], from 1.
    """
    asked, k = recipe.layer_pairing, recipe.distill_layers
    if not isinstance(asked, str):
        if not asked or not all(1 <= s <= student and 1 <= t <= teacher for s, t in asked):
            raise EyespotError("layer_pairing", found=asked, expected=f"[1 to {student}, 1 to {teacher}] each")
        return list(asked)
    most = min(student, teacher) if asked == "last" else student
    if k > most:
        raise EyespotError("distill_layers", found=k, expected=f"at most {most}")
    if asked == "last":
        return [(student - i, teacher - i) for i in range(k)]
    return [(s, max(1, round(s * teacher / student))) for s in range(student - k + 1, student + 1)]


class Logits(Objective):
    """Cross entropy of the answers, and divergence from a teacher's predictions of them, mixed.

    Both models must cut an answer into the same tokens; pictures and templates may differ.
    """

    def __init__(self, loaded: Loaded, teacher: Loaded, reduction: str, ratio: float, temperature: float):
        super().__init__(loaded, reduction)
        self.teacher = teacher.vlm.requires_grad_(False).eval()
        self.views, self.ratio, self.temperature = (loaded.view, teacher.view), ratio, temperature
        sizes = [vlm.config.text_config.vocab_size for vlm in (self.vlm, self.teacher)]
        if sizes[0] != sizes[1]:
            raise EyespotError(
                "the teacher has another vocabulary", found=f"{sizes[1]} tokens", expected=f"{sizes[0]}, the student's"
            )

    def forward(self, *batches: Batch) -> Tensor:
        ours, theirs = batches
        if not torch.equal(ours.targets, theirs.targets):
            raise EyespotError("the teacher cuts answers into other tokens", cause="another tokenizer")
        with torch.no_grad():
            goal = logits(self.teacher, theirs, look(self.teacher, theirs, self.views[1].eye, self.always_see))
        found = logits(self.vlm, ours, look(self.vlm, ours, self.views[0].eye, self.always_see))
        t = self.temperature
        divergence = F.kl_div(
            F.log_softmax(found / t, -1), F.log_softmax(goal / t, -1), reduction="none", log_target=True
        ).sum(-1)
        mixed = (1 - self.ratio) * cross_entropy(found, ours) + self.ratio * t * t * divergence
        return (ours.weights * mixed).sum()


def open_tower(path: Path, size: int | None) -> tuple[nn.Module, Eye, int]:
    """The vision encoder of a checkpoint in transformers' layout, how it sees, and its number of layers: InternVL's, or
    any that AutoModel opens and that gives hidden states of square patches. size: of its pictures, when not its own."""
    import transformers

    path = local(path)
    config = read_json(path / "config.json")
    if not isinstance(config, Mapping):
        raise EyespotError(f"{path}: config.json is not an object")
    with quiet():
        try:
            model: Any
            model, info = transformers.AutoModel.from_pretrained(
                path, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise EyespotError(f"{path}: cannot be loaded ({error})") from None
    within = next((name for name in ("vision_tower", "vision_model") if hasattr(model, name)), None)
    tower, prefix = (getattr(model, within), f"{within}.") if within else (model, "")
    seen = {prefix + name for name in tower.state_dict() if not name.startswith(HEADS)}
    if missing := sorted(seen & set(info["missing_keys"])):
        raise EyespotError(f"{path}: {len(missing)} tensors of the eyes are missing", found=", ".join(missing[:4]))
    sides, layers = (getattr(tower.config, name, None) for name in ("image_size", "num_hidden_layers"))
    own = sides[0] if isinstance(sides, list | tuple) and sides else sides
    if not isinstance(own, int) or not isinstance(layers, int):
        raise EyespotError(
            f"{path}: no teacher for eyes", found=type(tower).__name__, expected="image_size and num_hidden_layers",
            cause="a model without eyes, or with eyes of any resolution",
        )  # fmt: skip
    processor = path / "preprocessor_config.json"
    rule = read_json(processor) if processor.is_file() else {}
    rule = rule if isinstance(rule, Mapping) else {}
    mean, std = (tuple(rule.get(key) or default) for key, default in (("image_mean", MEAN), ("image_std", STD)))
    if size not in (None, own) and "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
        tower.forward = functools.partial(tower.forward, interpolate_pos_encoding=True)
    return tower, Eye(size or own, mean, std), layers
