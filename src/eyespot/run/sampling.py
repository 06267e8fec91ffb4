"""From logits to a token: penalty, temperature, top-k, top-p, min-p, then one draw from a seeded generator.

Numpy only; knows no engine (but that one may tell its best logits alone) and no tokenizer. The order is transformers':
repetition penalty, temperature, top-k, top-p, min-p. (Penalty and temperature commute, for both scale a logit by a
positive factor.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from eyespot import limits
from eyespot.errors import EyespotError
from eyespot.run.arguments import real, whole

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Scores(Protocol):
    """One row of logits that need not be copied whole: what eyespot.run.engine.Engine offers."""

    def top(self, k: int) -> tuple[npt.NDArray[np.int32], F32]: ...
    def logits(self) -> F32: ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to pick a token. The defaults take the most likely one.

    temperature: 0 = greedy. top_k: 0 = all. top_p: 1 = all. min_p: 0 = all; a share of the best token's probability.
    repetition_penalty: 1 = none; logits of tokens among the last `repetition_window` (0 = all of the sequence) are
    divided by it when positive, multiplied when negative (Keskar et al., 2019).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 0

    def __post_init__(self) -> None:
        for name, (kind, low, high) in BOUNDS.items():
            object.__setattr__(self, name, kind(name, getattr(self, name), low, high))


BOUNDS: dict[str, tuple[Callable[..., float], float, float]] = {
    "temperature": (real, 0, 100),
    "top_k": (whole, 0, limits.VOCAB),
    "top_p": (real, 0, 1),
    "min_p": (real, 0, 1),
    "repetition_penalty": (real, 0.01, 100),
    "repetition_window": (whole, 0, limits.CONTEXT),
}
BLOCK = 512
FEW = 64  # best logits to ask for where min_p decides how many stay
MOST = 256  # best logits that are cheaper to ask for than all


class Sampler:
    """Picks tokens for one answer. The same seed, logits and order of calls give the same tokens.

    banned: token ids never picked (the image token, which stands for features and not for text).
    """

    def __init__(self, sampling: Sampling, seed: int | None = None, banned: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self.seed = int.from_bytes(os.urandom(4), "little") if seed is None else whole("seed", seed, 0, (1 << 64) - 1)
        self._random: np.random.Generator | None = None  # made at the first draw: greedy answers do without the import
        self._banned = np.array(sorted(banned), np.int64)
        self._all = np.arange(0)  # every id; kept, for a fresh megabyte a token costs more than the exponentials

    def pick(self, logits: F32 | Scores, sequence: Sequence[int], allowed: Mask | None = None) -> int:
        """A token id for logits [vocab] after the ids of `sequence` (negative ones are no tokens and are skipped).
        allowed [vocab]: which tokens may be picked; None: all that are not banned."""
        ids, weights = self.distribution(logits, sequence, allowed)
        if len(ids) == 1:
            return int(ids[0])
        if self._random is None:
            self._random = np.random.Generator(np.random.PCG64(self.seed))
        starts = np.arange(0, len(ids), BLOCK)  # which block, then where in it: spares a running sum over all
        total = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
        mark = self._random.random() * total[-1]
        block = min(int(np.searchsorted(total, mark, side="right")), len(starts) - 1)
        inside = np.cumsum(weights[starts[block] : starts[block] + BLOCK], dtype=np.float64)
        at = int(np.searchsorted(inside, mark - (total[block] - inside[-1]), side="right"))
        return int(ids[starts[block] + min(at, len(inside) - 1)])

    def distribution(
        self, logits: F32 | Scores, sequence: Sequence[int], allowed: Mask | None = None
    ) -> tuple[I64, F32]:
        """Candidate ids and their weights, which are probabilities but for a common factor."""
        seen = self._seen(sequence)
        if not isinstance(logits, np.ndarray):
            if allowed is None and (few := self._few(logits, seen)) is not None:
                return few
            logits = logits.logits()
        if len(self._all) != len(logits):
            self._all = np.arange(len(logits))
        scores = self._penalized(self._all, logits, seen)
        if allowed is not None:
            scores = np.where(allowed, scores, np.float32(-np.inf))
            ids, weights = self._kept(self._all, scores, *self._floor(scores))
            return ids[weights > 0], weights[weights > 0]  # rounding must not pick one that is none
        return self._kept(self._all, scores, *self._floor(scores))

    def _few(self, logits: Scores, seen: I64) -> tuple[I64, F32] | None:
        """distribution() out of the best logits alone; None where those left out could count."""
        s = self.sampling
        if s.temperature == 0 or s.top_k == 1:
            stay = 1
        elif s.top_k:
            stay = s.top_k
        elif s.min_p > 0 and s.top_p == 1:
            stay = FEW
        else:
            return None
        wanted = stay + len(seen) + len(self._banned) + 1  # as many may fall below those that stay, and one is left out
        if wanted > MOST or s.repetition_penalty < 1:  # which may lift what was left out
            return None
        ids, best = logits.top(wanted)
        order = np.argsort(ids)
        candidates = ids[order].astype(np.int64)
        scores = self._penalized(candidates, best[order], seen)
        peak, floor = self._floor(scores)
        if len(ids) == wanted and not floor > best[-1]:
            return None
        return self._kept(candidates, scores, peak, floor)

    def _floor(self, scores: F32) -> tuple[np.float32, np.float32]:
        """The largest score, and one that no candidate is below as far as that takes no exponential."""
        s = self.sampling
        peak = scores[np.argmax(scores)]  # NaN is the largest of all
        if not math.isfinite(peak):
            raise EyespotError(
                "logits are not finite", found=float(peak), cause="the weights are damaged or overflow their scheme"
            )
        if s.temperature == 0 or s.top_k == 1:
            return peak, peak
        if 0 < s.top_k < len(scores):  # no sort: the k-th largest score tells who stays
            return peak, np.partition(scores, len(scores) - s.top_k)[len(scores) - s.top_k]
        if s.min_p > 0 and s.top_p == 1:  # prob >= min_p * best, in logits; spares the exponential of the others
            return peak, np.float32(float(peak) + s.temperature * math.log(s.min_p))
        return peak, np.float32(-np.inf)

    def _kept(self, ids: I64, scores: F32, peak: np.float32, floor: np.float32) -> tuple[I64, F32]:
        s = self.sampling
        if s.temperature == 0 or s.top_k == 1:
            return ids[[np.argmax(scores)]], np.ones(1, np.float32)  # the lowest id among equals
        if floor > -np.inf:
            kept = np.flatnonzero(scores >= floor)
            ids, scores = ids[kept], scores[kept]
        weights = np.exp((scores - peak) / np.float32(s.temperature))
        target = s.top_p * float(weights.sum(dtype=np.float64))
        if s.min_p > 0:
            kept = weights >= s.min_p  # the best weight is 1
            ids, weights = ids[kept], weights[kept]
        if s.top_p < 1:
            kept = _nucleus(weights, target)
            ids, weights = ids[kept], weights[kept]
        return ids, weights

    def _seen(self, sequence: Sequence[int]) -> I64:
        """The ids that the repetition penalty is for, rising."""
        s = self.sampling
        if s.repetition_penalty == 1:
            return np.zeros(0, np.int64)
        window = np.unique(np.asarray(sequence[-s.repetition_window :], np.int64))
        return window[window >= 0]

    def _penalized(self, ids: I64, logits: F32, seen: I64) -> F32:
        """`logits` of rising `ids` after the penalty, and without those that are banned."""
        if not len(seen) and not len(self._banned):
            return logits
        scores, penalty = logits.copy(), self.sampling.repetition_penalty
        at = _places(ids, seen)
        values = scores[at]
        scores[at] = np.where(values < 0, values * penalty, values / penalty)
        scores[_places(ids, self._banned)] = -np.inf
        return scores


def _places(ids: I64, some: I64) -> I64:
    """Where those of `some` that are among the rising `ids` stand there."""
    at = np.searchsorted(ids, some)
    at[at == len(ids)] = 0
    return at[ids[at] == some]


def _nucleus(weights: F32, target: float) -> npt.NDArray[np.int64]:
    """Places of the largest weights, best first, as few as sum to `target` (at least one). Sorts only a growing top."""
    size = 256
    while True:
        size = min(size, len(weights))
        floor = np.partition(weights, len(weights) - size)[len(weights) - size]
        top = np.flatnonzero(weights >= floor)
        order = top[np.argsort(-weights[top], kind="stable")]
        mass = np.cumsum(weights[order], dtype=np.float64)
        if mass[-1] >= target or size == len(weights):
            return order[: int(np.searchsorted(mass, target, side="left")) + 1]
        size *= 16
