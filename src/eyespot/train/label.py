"""Stage label: each patch of a picture is told what it shows, so that eyes learn from nothing, without a word spoken.

Token labelling (Jiang et al., arXiv 2104.10858) with exact labels: scenes know what they drew where. A tenth of the
work of a question for each picture, and two hundred answers from it instead of one. Knows marks and patches; the heads
that name them are the stage's own and are not exported.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot import images
from eyespot.errors import EyespotError
from eyespot.tiling import Tiling
from eyespot.train.data.record import BadRecord, Mark, Record
from eyespot.train.model import Loaded
from eyespot.train.objective import Batch, Objective

NOTHING = 0  # the class of background; UNKNOWN: not learned
UNKNOWN = -1
BACKGROUND = 0.2  # weight of a patch of background: most are, and they are soon learned
COLOUR = 0.5  # weight of the colour beside that of each of the two things a patch shows
POINTS = (0.25, 0.75)  # of a patch's width, at the middle of its height: letters are narrower than patches


@dataclass(frozen=True, slots=True)
class Marker:
    """Turns marks into classes. side: patches a tile has in a row. what, colours: word -> class, from 1."""

    side: int
    what: Mapping[str, int]
    colours: Mapping[str, int]

    def __call__(self, record: Record, cuts: Sequence[Tiling]) -> npt.NDArray[np.int16]:
        """[t, side, side, 3]: the thing in the left and in the right half of each patch, and the colour in its left.
        BadRecord where nobody knows what the pictures show, or a mark's word has no class."""
        if record.marks is None:
            raise BadRecord(record.place, ["nothing is known of where things are in its pictures"])
        unknown = {mark.what for marks in record.marks for mark in marks} - self.what.keys()
        if unknown:
            raise BadRecord(record.place, [f"marks of {sorted(unknown)[0]!r}, which has no class"])
        found = [
            self._tile(marks, images.size(picture), *place)
            for picture, marks, cut in zip(record.images, record.marks, cuts, strict=True)
            for place in _places(cut)
        ]
        return np.stack(found) if found else np.empty((0, self.side, self.side, 3), np.int16)

    def _tile(
        self, marks: Sequence[Mark], size: tuple[int, int], left: float, top: float, width: float, height: float
    ) -> npt.NDArray[np.int16]:
        """Of the tile at (left, top) of so much of a picture, in shares of it."""
        n = self.side
        labels = np.full((n, n, 3), NOTHING, np.int16)
        y = (top + height * (np.arange(n) + 0.5) / n) * size[1]
        for half, point in enumerate(POINTS):
            x = (left + width * (np.arange(n) + point) / n) * size[0]
            for mark in marks:
                x1, y1, x2, y2 = mark.box
                rows, columns = np.nonzero((y >= y1) & (y < y2))[0], np.nonzero((x >= x1) & (x < x2))[0]
                at = np.ix_(rows, columns)
                labels[*at, half] = self.what[mark.what]
                if half == 0:
                    labels[*at, 2] = self.colours.get(mark.colour, UNKNOWN)
        return labels


def _places(cut: Tiling) -> list[tuple[float, float, float, float]]:
    """Left, top, width and height of each tile in shares of the picture, its thumbnail last."""
    w, h = 1 / cut.columns, 1 / cut.rows
    grid = [(c * w, r * h, w, h) for r in range(cut.rows) for c in range(cut.columns)]
    return [*grid, (0.0, 0.0, 1.0, 1.0)] if cut.thumbnail else grid


class Labels(Objective):
    """Cross entropy of what each patch shows, read off the eyes' last layer by heads of its own."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded, "token")
        what, colours = classes()
        config = loaded.vlm.config.vision_config
        side = config.image_size[0] // config.patch_size[0]
        self.views = (replace(loaded.view, label=Marker(side, what, colours)),)
        width = config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(c)) for c in (what, what, colours))

    def weight(self, batches: Sequence[Batch]) -> float:
        labels = batches[0].patches
        return float(_weights(labels).sum(dtype=torch.float64))

    def forward(self, *batches: Batch) -> Tensor:
        (batch,) = batches
        seen = len(batch.tiles) > 0
        eye = self.views[0].eye
        tiles = batch.tiles if seen else batch.tiles.new_zeros((1, eye.size, eye.size, 3))
        tower: Any = self.vlm.model.vision_tower
        rows = tower(pixel_values=eye.normalized(tiles)).last_hidden_state[:, 1:]
        rows = F.layer_norm(rows, rows.shape[-1:])
        if not seen:
            return rows.sum() * 0
        labels = batch.patches.flatten(1, 2).long()
        weights = _weights(labels)
        total = rows.new_zeros((), dtype=torch.float32)
        for number, head in enumerate(self.heads):
            wanted = labels[..., number].flatten()
            losses = F.cross_entropy(head(rows).flatten(0, 1).float(), wanted, ignore_index=UNKNOWN, reduction="none")
            total = total + (losses * weights[..., number].flatten()).sum()
        return total


def _weights(labels: Tensor) -> Tensor:
    """Of each label [..., 3]."""
    weights = torch.where(labels == NOTHING, BACKGROUND, 1.0) * (labels != UNKNOWN)
    return weights * weights.new_tensor((1.0, 1.0, COLOUR))


def classes() -> tuple[dict[str, int], dict[str, int]]:
    """Word -> class of all that scenes mark: things, letters, digits and bars; and of colours."""
    try:
        from eyespot.train.scenes import charts, vocabulary
    except ModuleNotFoundError as error:
        raise EyespotError(f"the package {error.name} is missing", cause="pip install eyespot[train]") from None
    letters = (*string.digits, *string.ascii_letters)
    what = [*(vocabulary.name(char) for char in vocabulary.EMOJI), *vocabulary.SHAPES, *letters, charts.BAR]
    return {word: i for i, word in enumerate(what, 1)}, {word: i for i, word in enumerate(vocabulary.COLOURS, 1)}
