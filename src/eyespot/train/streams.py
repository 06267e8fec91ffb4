"""Records as packs of samples, in an order that is a function of the seed alone, so that a training finds its place.

Samples are dealt to G streams, one for each place in a global batch: stream v takes samples v, v + G, v + 2G ... of the
shuffled set and makes one pack a step. So the content of a step depends neither on how many processes share the streams
nor on how many workers read, and where a stream stands is a number and the few samples that did not fit yet.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from eyespot import images, limits
from eyespot.errors import EyespotError
from eyespot.resolution import Cut
from eyespot.train.data.encode import IGNORE, Encoder
from eyespot.train.data.record import BadRecord, Record, checked
from eyespot.train.data.sets import Dataset, Joined, open_set
from eyespot.train.data.video import expand
from eyespot.train.pixels import Eye
from eyespot.train.recipe import Recipe, Source
from eyespot.train.tasks import mixing

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
HELD = 4  # samples of a stream that may wait for a pack with room


@dataclass(frozen=True, slots=True)
class View:
    """How one model reads a record: the student's comes first, a teacher's after it. label: what patches are to say
    about a record's marks, i16 [t, ...]; None: nobody asks. max_length: tokens its model takes."""

    encoder: Encoder
    eye: Eye
    label: Callable[[Record, Sequence[Cut]], npt.NDArray[np.int16]] | None = None
    max_length: int = limits.CONTEXT


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as one model reads it: ids and labels [n]; tiles [t, size, size, 3] of bytes; patches: View.label's."""

    ids: list[int]
    labels: list[int]
    tiles: npt.NDArray[np.uint8]
    patches: npt.NDArray[np.int16] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One record, as every view reads it."""

    views: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class State:
    """Where a stream stands: how many of its samples it has read, and those of them that still wait for a pack."""

    read: int = 0
    held: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Pack:
    """Samples that share one row of a batch; `after`: the stream's state when they are used up. skipped: bad records
    met on the way, a line each. failure: a bad record that ends the training instead, in the place of samples."""

    stream: int
    samples: tuple[Sample, ...]
    after: State
    skipped: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class SceneSet:
    """The first `count` scenes of a seed, as a set of records; they are drawn when they are read."""

    source: Source
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"scenes {self.source.split} {self.source.seed}"

    def __len__(self) -> int:
        return self.source.scenes or 0

    def __getitem__(self, index: int) -> Record:
        return self._scenes[index].record()

    @property
    def _scenes(self) -> Any:
        return _scenes(_key(self.source))


def _key(source: Source) -> tuple[Any, ...]:
    tasks = None if source.tasks is None else tuple(source.tasks.items())
    return (source.seed, source.split, source.questions, tasks, source.sides)


@lru_cache(64)
def _scenes(key: tuple[Any, ...]) -> Any:
    try:
        from eyespot.train.scenes import Scenes
        from eyespot.train.scenes.canvas import SIDES
    except ModuleNotFoundError as error:
        raise EyespotError(f"the package {error.name} is missing", cause="pip install eyespot[train]") from None
    seed, split, questions, tasks, sides = key
    return Scenes(seed, split, questions, None if tasks is None else dict(tasks), sides or SIDES)


def open_data(recipe: Recipe) -> Dataset:
    """The set that a recipe trains on: its sources, one after the other, general data mixed in at mix_ratio."""
    data = _joined("data", recipe.data)
    if recipe.mix_ratio is None:
        return data
    return mixing.mix(_joined("general data", recipe.general_data), data, mixing.ratio(recipe.mix_ratio), recipe.seed)


def _joined(name: str, sources: Sequence[Source]) -> Dataset:
    parts: list[Dataset] = []
    for source in sources:
        if source.path is not None:
            parts.append(open_set(source.path, source.format, source.root))
        else:
            _scenes(_key(source))  # says now what is wrong with the settings
            parts.append(SceneSet(source))
    return parts[0] if len(parts) == 1 else Joined(name, parts)


@dataclass(frozen=True)
class Streams:
    """Makes packs. G: number of streams. max_tokens, max_tiles: of a pack, None: one sample is a pack. max_length: a
    longer sample is a bad record. skip_bad: the next sample takes a bad one's place, and it is told."""

    data: Dataset
    views: tuple[View, ...]
    count: int
    seed: int
    max_length: int
    max_tokens: int | None = None
    max_tiles: int = 48
    skip_bad: bool = False
    _order: dict[int, npt.NDArray[np.uint32]] = field(default_factory=dict, repr=False, compare=False)

    def packs(self, numbers: Sequence[int], states: Mapping[int, State]) -> Iterator[Pack]:
        """Endless: the next pack of each of the streams `numbers` by turns, from `states` on."""
        at = {number: states.get(number, State()) for number in numbers}
        kept: dict[int, dict[int, Sample]] = {number: {} for number in numbers}  # what waits, read already
        while True:
            for number in numbers:
                pack = self._next(number, at[number], kept[number])
                yield pack
                if pack.failure:
                    return
                at[number] = pack.after

    def _next(self, number: int, state: State, kept: dict[int, Sample]) -> Pack:
        """Packs first-fit: what waits comes first, then new samples, until no more may wait or one fills the pack."""
        taken: list[Sample] = []
        held: list[int] = []
        skipped: list[str] = []
        tokens = tiles = 0
        read, waiting = state.read, list(state.held)
        try:
            while True:
                new = not waiting
                index = read if new else waiting.pop(0)
                read += new
                sample = kept.pop(index, None) or self.sample(number + index * self.count, skipped if new else [])
                length, seen = len(sample.views[0].ids), len(sample.views[0].tiles)
                limit = self.max_tokens
                if not taken or (limit and tokens + length <= limit and tiles + seen <= self.max_tiles):
                    taken.append(sample)
                    tokens, tiles = tokens + length, tiles + seen
                else:
                    held.append(index)
                    kept[index] = sample
                if limit is None or tokens == limit or (not waiting and len(held) >= HELD):
                    break
        except EyespotError as error:
            return Pack(number, (), state, tuple(skipped), str(error))
        return Pack(number, tuple(taken), State(read, (*held, *waiting)), tuple(skipped))

    def sample(self, slot: int, skipped: list[str]) -> Sample:
        """The sample in place `slot` of the endless shuffled set; BadRecord, or the next sound one with skip_bad."""
        for at in range(slot, slot + len(self.data)):
            try:
                return self._read(at)
            except BadRecord as bad:
                if not self.skip_bad:
                    raise
                skipped.append(str(bad))
        raise EyespotError(f"{self.data.name}: no sound record", found=skipped[0])

    def _read(self, slot: int) -> Sample:
        epoch, place = divmod(slot, len(self.data))
        record = expand(checked(self.data[int(self._shuffled(epoch)[place])]))
        try:
            if record.sizes and (found := tuple(images.size(picture) for picture in record.images)) != record.sizes:
                raise BadRecord(record.place, [f"pictures of {found} pixels, the record says {record.sizes}"])
            rng = np.random.default_rng([self.seed, slot]) if record.data_augment else None
            views = tuple(self._seen(record, view, rng) for view in self.views)
        except BadRecord:
            raise
        except EyespotError as error:
            raise BadRecord(record.place, [str(error)]) from None
        return Sample(views)

    def _seen(self, record: Record, view: View, rng: np.random.Generator | None) -> Seen:
        encoded = view.encoder.encode(record)
        ours = view is self.views[0]
        most = self.max_length if ours else view.max_length
        if len(encoded.ids) > most:
            what = (
                f"{len(encoded.ids)} tokens{'' if ours else ' of the teacher'}, {encoded.image_tokens} of them pictures"
            )
            raise BadRecord(record.place, [f"{what}, expected at most {most}"])
        if all(label == IGNORE for label in encoded.labels):
            raise BadRecord(record.place, ["nothing to learn: no answer"])
        patches = view.label(record, encoded.tiles) if view.label else None
        return Seen(encoded.ids, encoded.labels, view.eye.tiles(record.images, encoded.tiles, rng), patches)

    def _shuffled(self, epoch: int) -> npt.NDArray[np.uint32]:
        """The order of an epoch; two epochs are kept, for streams cross over one by one."""
        if epoch not in self._order:
            order = np.arange(len(self.data), dtype=np.uint32)
            np.random.default_rng([self.seed, epoch]).shuffle(order)
            if len(self._order) > 1:
                self._order.pop(min(self._order))
            self._order[epoch] = order
        return self._order[epoch]


def load(streams: Streams, numbers: Sequence[int], states: Mapping[int, State], workers: int) -> Iterator[Pack]:
    """The packs of `streams.packs`, read by so many processes ahead of their use. Their order and content is the same
    for any number of workers; where it does not divide the streams, fewer work."""
    workers = max(n for n in range(workers + 1) if n == 0 or len(numbers) % n == 0)
    if workers == 0:
        return streams.packs(numbers, states)
    shared = _Shared(streams, tuple(numbers), dict(states))
    return iter(
        DataLoader(
            shared,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4,
            worker_init_fn=partial(_end_with, os.getpid()),
        )
    )


def _end_with(training: int, _: int) -> None:
    """A worker whose training was killed would else wait for ever for somebody to take its packs, with all its memory.
    Linux alone can ask for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != training:  # it was killed before this was asked
            os._exit(1)


@dataclass(frozen=True)
class _Shared(IterableDataset[Pack]):
    """What each worker reads: every so many-th of the streams, so that their packs come in the streams' order."""

    streams: Streams
    numbers: tuple[int, ...]
    states: dict[int, State]

    def __iter__(self) -> Iterator[Pack]:
        info = get_worker_info()
        if info is None:
            return self.streams.packs(self.numbers, self.states)
        return self.streams.packs(self.numbers[info.id :: info.num_workers], self.states)
