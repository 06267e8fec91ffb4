"""What a stage minimizes: a sum over what is learned, and the weight it is divided by. Here: the answers' tokens.

Knows how packs become tensors and how InternVL turns those into logits; distill.py has the objectives with a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.train.data.encode import IGNORE
from eyespot.train.model import Loaded
from eyespot.train.pixels import Eye
from eyespot.train.streams import Pack, Seen, View

# Weight of each of a sample's n learned tokens, as in InternVL.
REDUCTIONS: dict[str, Callable[[int], float]] = {
    "token": lambda n: 1.0,
    "sample": lambda n: 1.0 / n,
    "square": lambda n: n**-0.5,
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Packs as tensors, a row each. Positions begin anew with every sample and with the padding: that keeps them apart.

    ids, positions i64 [b, n]; where bool [b, n]: the next token is learned; targets i64 [m]: that token, in the order
    of `where`; weights f32 [m]; tiles u8 [t, s, s, 3]. tokens: those that are no padding. patches i16 [t, ...]: where
    the view labels them.
    """

    ids: Tensor
    positions: Tensor
    where: Tensor
    targets: Tensor
    weights: Tensor
    tiles: Tensor
    tokens: int
    patches: Tensor

    def to(self, device: torch.device) -> Batch:
        names = ("ids", "positions", "where", "targets", "weights", "tiles", "patches")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def collate(rows: Sequence[Sequence[Seen]], reduction: str) -> Batch:
    """A batch of packs of samples, all as one model reads them."""
    longest = max(sum(len(seen.ids) for seen in row) for row in rows)
    ids, positions = np.zeros((2, len(rows), longest), np.int64)
    where = np.zeros((len(rows), longest), np.bool_)
    targets: list[int] = []
    weights: list[float] = []
    tokens = 0
    for r, row in enumerate(rows):
        at = 0
        for seen in row:
            end = at + len(seen.ids)
            ids[r, at:end], positions[r, at:end] = seen.ids, np.arange(end - at)
            learned = np.asarray(seen.labels[1:]) != IGNORE
            where[r, at : end - 1] = learned
            count = int(learned.sum())
            targets += [label for label in seen.labels[1:] if label != IGNORE]
            weights += [REDUCTIONS[reduction](max(count, 1))] * count
            at = end
        tokens += at
        positions[r, at:] = np.arange(longest - at)
    tiles = np.concatenate([seen.tiles for row in rows for seen in row])
    labelled = [seen.patches for row in rows for seen in row if seen.patches is not None]
    patches = torch.from_numpy(np.concatenate(labelled)) if labelled else torch.empty(0, dtype=torch.int16)
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(where), torch.tensor(targets),
        torch.tensor(weights, dtype=torch.float32), torch.from_numpy(tiles), tokens, patches,
    )  # fmt: skip


class Objective(nn.Module):
    """The sum over a batch that is minimized, with the model it trains. Base of all stages' objectives.

    views: how it wants records read. always_see: a batch without pictures shows an empty one to the eyes, for processes
    that share the parameters must all take part in gathering them.
    """

    views: tuple[View, ...]
    always_see = False

    def __init__(self, loaded: Loaded, reduction: str) -> None:
        super().__init__()
        self.vlm, self.reduction, self.views = loaded.vlm, reduction, (loaded.view,)

    def batches(self, packs: Sequence[Pack]) -> tuple[Batch, ...]:
        """One batch for each view."""
        return tuple(
            collate([[sample.views[v] for sample in pack.samples] for pack in packs], self.reduction)
            for v in range(len(self.views))
        )

    def train(self, mode: bool = True) -> Objective:
        """As a module's, but a teacher stays as it answers: without dropout."""
        super().train(mode)
        for name, module in self.named_children():
            if name == "teacher":
                module.eval()
        return self

    def weight(self, batches: Sequence[Batch]) -> float:
        """What the sum of `forward` is to be divided by, to be a mean."""
        return float(batches[0].weights.sum(dtype=torch.float64))


class Answers(Objective):
    """Cross entropy of the answers' tokens, each with its weight."""

    def forward(self, *batches: Batch) -> Tensor:
        (batch,) = batches
        return self.answers(batch, look(self.vlm, batch, self.views[0].eye, self.always_see))

    def answers(self, batch: Batch, looked: Any) -> Tensor:
        return (batch.weights * cross_entropy(logits(self.vlm, batch, looked), batch)).sum()


def cross_entropy(found: Tensor, batch: Batch) -> Tensor:
    """f32 [m]: of each learned token."""
    return F.cross_entropy(found, batch.targets, reduction="none")


def look(vlm: Any, batch: Batch, eye: Eye, always_see: bool = False) -> Any:
    """What the eyes make of a batch's tiles: last_hidden_state of the encoder, pooler_output of the projector. Without
    tiles None, or of an empty picture if they must always see."""
    if len(batch.tiles):
        return vlm.model.get_image_features(pixel_values=eye.normalized(batch.tiles))
    if not always_see:
        return None
    return vlm.model.get_image_features(pixel_values=eye.normalized(batch.tiles.new_zeros((1, eye.size, eye.size, 3))))


def logits(vlm: Any, batch: Batch, looked: Any) -> Tensor:
    """f32 [m, vocab]: predictions of the learned tokens alone; the head is never run on the rest. looked: by look()."""
    model = vlm.model
    rows = model.get_input_embeddings()(batch.ids)
    if looked is not None:
        features = looked.pooler_output.to(rows.dtype)
        if len(batch.tiles):
            rows = rows.masked_scatter((batch.ids == vlm.config.image_token_id)[..., None], features)
        else:
            rows = rows + 0 * features.sum()
    states = model.language_model(inputs_embeds=rows, position_ids=batch.positions, use_cache=False)
    found: Tensor = vlm.lm_head(states.last_hidden_state[batch.where]).float()
    return found
