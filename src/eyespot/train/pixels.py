"""Pictures as the model sees them in training: cut into tiles as at run time, bytes until the last moment.

Knows the image rule's numbers, not where the pictures come from. `run/processor.py` makes the same pixels for a bundle.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eyespot import images
from eyespot.resolution import Cut

if TYPE_CHECKING:
    from PIL.Image import Image

    from eyespot.images import Source

QUALITY = (75, 100)  # of the JPEG that data_augment makes of a picture, as in InternVL's training


@dataclass(frozen=True, slots=True)
class Eye:
    """size: pixels a side of a tile. mean, std: of each channel, on 0 to 1. resample: bicubic or bilinear."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str = "bicubic"

    def tiles(
        self, pictures: Sequence[Source], cuts: Sequence[Cut], rng: np.random.Generator | None = None
    ) -> npt.NDArray[np.uint8]:
        """All tiles [t, size, size, 3] of all pictures. rng: pictures are recompressed first, as JPEG of a random
        quality. cuts: of tiles of any size: a teacher's may be larger than its student's. EyespotError for a picture
        that cannot be read."""
        seen = [np.empty((0, self.size, self.size, 3), np.uint8)]
        for source, cut in zip(pictures, cuts, strict=True):
            image = images.load(source).image
            if rng is not None:
                image = _recompressed(image, int(rng.integers(QUALITY[0], QUALITY[1] + 1)))
            seen.append(images.tiles(image, self._scaled(cut), self.resample))
        return np.concatenate(seen)

    def _scaled(self, cut: Cut) -> Cut:
        """The same grid of tiles of this eye's size."""
        if cut.tile == (self.size, self.size):
            return cut
        scale = self.size / cut.tile[0]
        resized = max(1, round(cut.resized[0] * scale)), max(1, round(cut.resized[1] * scale))
        at = round(cut.at[0] * scale), round(cut.at[1] * scale)
        return replace(cut, tile=(self.size, self.size), resized=resized, at=at)

    def normalized(self, tiles: Any) -> Any:
        """Tiles [t, s, s, 3] of bytes, a tensor on any device, as float32 [t, 3, s, s]."""
        import torch

        values = tiles.permute(0, 3, 1, 2).to(torch.float32) / 255
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=tiles.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (values - mean) / std


def _recompressed(image: Image, quality: int) -> Image:
    from PIL import Image as pil

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return pil.open(buffer).convert("RGB")
