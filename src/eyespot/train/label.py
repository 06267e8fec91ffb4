"""Stage label: each patch of a picture is told what it shows, so that eyes learn from nothing, without a word spoken.

Token labelling (Jiang et al., arXiv 2104.10858) with exact labels: scenes know what they drew where. A tenth of the
work of a question for each picture, and two hundred answers from it instead of one. Knows marks and patches; the heads
that name them are the stage's own and are not exported.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot import images
from eyespot.errors import EyespotError
from eyespot.resolution import Cut
from eyespot.train.data.record import BadRecord, Mark, Record
from eyespot.train.model import Loaded
from eyespot.train.objective import Answers, Batch, Objective, look
from eyespot.train.streams import View

NOTHING = 0  # the class of background; UNKNOWN: not learned
UNKNOWN = -1
BACKGROUND = 0.2  # weight of a patch of background: most are, and they are soon learned
PLACE = 0.1  # weight of a patch's row, and of its column
COLOUR = 0.4  # weight of each of the two colours of a patch beside that of the things that have them


@dataclass(frozen=True, slots=True)
class Marker:
    """Turns marks into classes. side: patches a tile has in a row; seen: the share of its side that they cover, for
    eyes whose patches leave a rest. what, colours: word -> class, from 1.

    strict: a record without marks is a bad one; else nothing is known of its patches.
    """

    side: int
    what: Mapping[str, int]
    colours: Mapping[str, int]
    strict: bool = True
    seen: float = 1.0

    def __call__(self, record: Record, cuts: Sequence[Cut]) -> npt.NDArray[np.int16]:
        """[t, side, side, 4]: the thing in the left and in the right half of each patch, as letters are narrower than
        patches, then the colours there.
        BadRecord where nobody knows what the pictures show, or a mark's word has no class."""
        if record.marks is None and not self.strict:
            return np.full((sum(cut.tiles for cut in cuts), self.side, self.side, 4), UNKNOWN, np.int16)
        if record.marks is None:
            raise BadRecord(record.place, ["nothing is known of where things are in its pictures"])
        unknown = {mark.what for marks in record.marks for mark in marks} - self.what.keys()
        if unknown:
            raise BadRecord(record.place, [f"marks of {sorted(unknown)[0]!r}, which has no class"])
        found = [
            self._tile(marks, images.size(picture), *place)
            for picture, marks, cut in zip(record.images, record.marks, cuts, strict=True)
            for place in cut.places()
        ]
        return np.stack(found) if found else np.empty((0, self.side, self.side, 4), np.int16)

    def _tile(
        self, marks: Sequence[Mark], size: tuple[int, int], left: float, top: float, width: float, height: float
    ) -> npt.NDArray[np.int16]:
        """Of the tile at (left, top) of so much of a picture, in shares of it."""
        n = self.side
        what, colours = np.full((2, n, 2 * n), NOTHING, np.int16)
        across, down = 2 * n / (width * self.seen), n / (height * self.seen)
        for mark in marks:
            x1, y1, x2, y2 = mark.box
            rows, high = _cells((y1 / size[1] - top) * down, (y2 / size[1] - top) * down)
            columns, wide = _cells((x1 / size[0] - left) * across, (x2 / size[0] - left) * across)
            there = np.s_[rows, columns]
            if (high and wide) or (what[there] == NOTHING).all():
                what[there] = self.what[mark.what]
                colours[there] = self.colours.get(mark.colour, UNKNOWN)
        return np.concatenate((what.reshape(n, n, 2), colours.reshape(n, n, 2)), -1)


def _cells(low: float, high: float) -> tuple[slice, bool]:
    """The cells, of side 1, whose middles lie in [low, high), and True; or where there is none, as the letter under a
    bar is lower than a patch, the cell in which the middle of low and high lies, and False."""
    start, stop = (max(0, ceil(end - 0.5)) for end in (low, high))
    if start < stop:
        return slice(start, stop), True
    middle = floor((low + high) / 2)
    return slice(max(0, middle), max(0, middle + 1)), False


class Heads(nn.Module):
    """Reads off the eyes' last layer what each patch shows, and in which row and column it stands: eyes that are told
    names alone forget places, and a language model cannot say where a thing is that it sees."""

    def __init__(self, width: int, what: int, colours: int, side: int) -> None:
        super().__init__()
        self.names = nn.ModuleList(nn.Linear(width, 1 + count) for count in (what, what, colours, colours))
        self.places = nn.ModuleList(nn.Linear(width, side) for _ in range(2))

    def forward(self, states: Tensor, patches: Tensor) -> Tensor:
        """The sum of the weighted cross entropies. states [t, n, width], the patches' last;
        patches i16 [t, side, side, 4]."""
        labels = patches.flatten(1, 2).long()
        rows = F.layer_norm(states[:, -labels.shape[1] :], states.shape[-1:])  # a class token stands before them
        weights = _weights(labels)
        total = rows.new_zeros((), dtype=torch.float32)
        for number, head in enumerate(self.names):
            wanted = labels[..., number].flatten()
            losses = F.cross_entropy(head(rows).flatten(0, 1).float(), wanted, ignore_index=UNKNOWN, reduction="none")
            total = total + (losses * weights[..., number].flatten()).sum()
        tiles, side = patches.shape[:2]
        row = torch.arange(side, device=rows.device).repeat_interleave(side)
        for head, wanted in zip(self.places, (row, row.view(side, side).t().flatten()), strict=True):
            total = total + PLACE * F.cross_entropy(
                head(rows).flatten(0, 1).float(), wanted.repeat(tiles), reduction="sum"
            )
        return total


def _eyes(loaded: Loaded, strict: bool) -> tuple[View, Heads]:
    """How such an objective reads records, and its heads."""
    what, colours = classes()
    config = loaded.vlm.config.vision_config
    size, patch = (x if isinstance(x, int) else x[0] for x in (config.image_size, config.patch_size))
    side = size // patch
    view = replace(loaded.view, label=Marker(side, what, colours, strict, side * patch / size))
    return view, Heads(config.hidden_size, len(what), len(colours), side)


class Labels(Objective):
    """Cross entropy of what each patch shows."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded, "token")
        view, self.heads = _eyes(loaded, strict=True)
        self.views = (view,)

    def weight(self, batches: Sequence[Batch]) -> float:
        return float(_weights(batches[0].patches).sum(dtype=torch.float64))

    def forward(self, *batches: Batch) -> Tensor:
        (batch,) = batches
        looked = look(self.vlm, batch, self.views[0].eye, always_see=True)
        if not len(batch.tiles):
            return looked.last_hidden_state.sum() * 0
        total: Tensor = self.heads(looked.last_hidden_state, batch.patches)
        return total


class LabelledAnswers(Answers):
    """Cross entropy of the answers' tokens, and `share` times that of what each patch shows, where that is known."""

    def __init__(self, loaded: Loaded, reduction: str, share: float) -> None:
        super().__init__(loaded, reduction)
        view, self.heads = _eyes(loaded, strict=False)
        self.views, self.share = (view,), share

    def forward(self, *batches: Batch) -> Tensor:
        (batch,) = batches
        looked = look(self.vlm, batch, self.views[0].eye, self.always_see)
        total = self.answers(batch, looked)
        if not len(batch.tiles):  # all parameters take part, as processes that share them must
            return total + 0 * sum(p.sum() for p in self.heads.parameters())
        return total + self.share * self.heads(looked.last_hidden_state, batch.patches)


def _weights(labels: Tensor) -> Tensor:
    """Of each label [..., 4]."""
    weights = torch.where(labels == NOTHING, BACKGROUND, 1.0) * (labels != UNKNOWN)
    return weights * weights.new_tensor((1.0, 1.0, COLOUR, COLOUR))


def classes() -> tuple[dict[str, int], dict[str, int]]:
    """Word -> class of all that scenes mark: things, letters and digits; and of colours."""
    try:
        from eyespot.train.scenes import vocabulary
    except ModuleNotFoundError as error:
        raise EyespotError(f"the package {error.name} is missing", cause="pip install eyespot[train]") from None
    letters = (*string.digits, *string.ascii_letters)
    what = [*(vocabulary.name(char) for char in vocabulary.EMOJI), *vocabulary.SHAPES, *letters]
    return {word: i for i, word in enumerate(what, 1)}, {word: i for i, word in enumerate(vocabulary.COLOURS, 1)}
