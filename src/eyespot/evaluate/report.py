"""Results by task: how many, the mean score and how sure it is. Knows numbers, not how they are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eyespot.evaluate.runner import Result
from eyespot.evaluate.sets import Sample

TOTAL, NOVEL = "all", "novel"


@dataclass(frozen=True, slots=True)
class Row:
    """score: mean, 0 to 1. low, high: its 95 % interval. errors: questions the model refused."""

    task: str
    metric: str
    count: int
    score: float
    low: float
    high: float
    errors: int


@dataclass(frozen=True, slots=True)
class Report:
    """One model on one set. rows: by task, then NOVEL (what training never showed; where a set says so) and TOTAL."""

    model: str
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "tasks": [asdict(row) for row in self.rows]}


def report(model: str, samples: Sequence[Sample], results: Sequence[Result]) -> Report:
    """Sums up. Samples of one group are one question, as good as its worst rotation."""
    single = list(_grouped(samples, results))
    tasks = list(dict.fromkeys(sample.task for sample, _, _ in single))
    rows = [_row(task, [s for s in single if s[0].task == task]) for task in tasks]
    novel = [s for s in single if s[0].novel]
    if novel and len(novel) < len(single):
        rows.append(_row(NOVEL, novel))
    return Report(model, (*rows, _row(TOTAL, single)))


Scored = tuple[Sample, float, bool]


def _grouped(samples: Sequence[Sample], results: Sequence[Result]) -> Iterable[Scored]:
    """(sample, score, refused) of each question."""
    worst: dict[str, Scored] = {}
    for sample, result in zip(samples, results, strict=True):
        key = sample.group or sample.id
        _, score, refused = worst.get(key, (sample, 1.0, False))
        worst[key] = worst.get(key, (sample,))[0], min(score, result.score), refused or bool(result.error)
    return worst.values()


def _row(task: str, scored: Sequence[Scored]) -> Row:
    metrics = sorted({sample.metric for sample, _, _ in scored})
    scores = [score for _, score, _ in scored]
    low, high = interval(scores)
    refused = sum(refused for _, _, refused in scored)
    return Row(
        task, metrics[0] if len(metrics) == 1 else "mixed", len(scores), sum(scores) / len(scores), low, high, refused
    )


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Wilson's method (1927), which stays honest near 0 and 1.

    The mean stands in the place of the share of hits; scores between 0 and 1 vary less than hits of the same mean.
    """
    n, z = len(scores), 1.96
    mean = sum(scores) / n
    centre, shrink = (mean + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
    half = shrink * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))  # at 0 and 1 rounding may miss it
