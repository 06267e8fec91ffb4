"""Looks at every record of a set before a training does: what is wrong, how long the samples are, what they hold.

Knows no format and prints nothing: faults come one by one, the sums at the end.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eyespot import images
from eyespot.boxes import Size
from eyespot.errors import EyespotError
from eyespot.train.data.encode import IGNORE, Encoder
from eyespot.train.data.record import BadRecord, Place, Record, checked
from eyespot.train.data.sets import Dataset, once
from eyespot.train.data.video import expand

if TYPE_CHECKING:
    from eyespot.images import Source

SAMPLES = 10  # records kept to be shown
REMEMBERED = 4096  # pictures of many questions are opened once


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with one record."""

    place: Place
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


class Check:
    """One pass over a set. Iterate `faults()`; the other members are true when it has ended.

    encoder: counts tokens; ctx_size: more of them than this is a fault; decode: pictures are decoded and not only
    their headers read.
    """

    def __init__(
        self, data: Dataset, encoder: Encoder | None = None, ctx_size: int | None = None, decode: bool = True
    ) -> None:
        self.data, self.encoder, self.ctx_size, self.decode = data, encoder, ctx_size, decode
        self.rows = sum(1 for _ in once(data))
        self.records = self.bad = self.pictures = self.clips = 0
        self.tokens, self.learned, self.image_tokens = array("i"), array("i"), array("i")
        self.unused: Counter[str] = Counter()  # keys that no reader knows -> records that have them
        self.samples: list[Record] = []  # sound ones, evenly spread over the set
        self._remembered = lru_cache(REMEMBERED)(self._size)

    @property
    def good(self) -> int:
        return self.records - self.bad

    def faults(self, progress: Callable[[int], None] = lambda done: None) -> Iterator[Fault]:
        """Every fault of every record, in the set's order. progress: hears how many of `rows` were looked at."""
        for data, index in once(self.data):
            progress(self.records)
            self.records += 1
            try:
                record = self._sound(data[index])
            except BadRecord as error:
                self.bad += 1
                yield from (Fault(error.place, what) for what in error.faults)
                continue
            if (self.records - 1) * SAMPLES >= len(self.samples) * self.rows:
                self.samples.append(record)

    def _sound(self, record: Record) -> Record:
        """The record, clips as frames, counted; BadRecord with all its faults when it has any."""
        self.unused.update(record.unused)
        self.pictures += len(record.images)
        self.clips += len(record.videos)
        record = expand(checked(record))
        found: list[str] = []
        sizes: list[Size] = []
        for number, picture in enumerate(record.images):
            try:
                size = self._remembered(picture) if isinstance(picture, Path) else self._size(picture)
            except EyespotError as error:
                found.append(str(error))
                continue
            sizes.append(size)
            if record.sizes is not None and record.sizes[number] != size:
                stated = "x".join(map(str, record.sizes[number]))
                found.append(f"picture {number + 1} is {size[0]}x{size[1]} pixels, the record says {stated}")
        if self.encoder is not None and not found:
            encoded = self.encoder.encode(replace(record, sizes=tuple(sizes)))
            length = len(encoded.ids)
            if self.ctx_size is not None and length > self.ctx_size:
                found.append(
                    f"{length} tokens, {encoded.image_tokens} of them pictures, expected at most {self.ctx_size}"
                )
            else:
                self.tokens.append(length)
                self.image_tokens.append(encoded.image_tokens)
                self.learned.append(sum(label != IGNORE for label in encoded.labels))
        if found:
            raise BadRecord(record.place, found)
        return record

    def _size(self, picture: Source) -> Size:
        """Width and height of a picture in pixels, which it proves to have when they are decoded."""
        if not self.decode:
            return images.size(picture)
        loaded = images.load(picture)
        return loaded.width, loaded.height

    def summary(self) -> dict[str, Any]:
        """What was found, as JSON. tokens, learned, image_tokens: of the sound records, when there was an encoder."""
        lengths = {"tokens": self.tokens, "learned": self.learned, "image_tokens": self.image_tokens}
        return {
            "records": self.records,
            "samples": len(self.data),
            "good": self.good,
            "bad": self.bad,
            "pictures": self.pictures,
            "clips": self.clips,
            "lengths": {name: spread(counts) for name, counts in lengths.items() if counts},
            "unused_keys": dict(self.unused),
            "warnings": list(self.data.warnings),
        }


def spread(counts: array[int]) -> dict[str, int]:
    """Least, median, 95th percentile, most and sum of whole numbers."""
    values = np.sort(np.frombuffer(counts, np.int32))
    at = {"min": 0, "median": len(values) // 2, "p95": len(values) * 95 // 100, "max": len(values) - 1}
    return {name: int(values[i]) for name, i in at.items()} | {"total": int(values.sum(dtype=np.int64))}
