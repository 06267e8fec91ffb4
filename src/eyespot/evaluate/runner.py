"""Asks a model every question of a set and keeps each answer on disk at once, so that an interrupted run goes on.

Knows `generate(messages)` alone: messages in, a text or something with `.text` out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyespot.errors import Cancelled, EyespotError
from eyespot.evaluate.metrics import METRICS
from eyespot.evaluate.sets import Sample, fingerprint

Generate = Callable[[list[dict[str, Any]]], Any]
LINE_CHARS = 1 << 24


@dataclass(frozen=True, slots=True)
class Result:
    """error: what the model refused with, "" when it answered; a refusal scores 0."""

    id: str
    prediction: str
    score: float
    error: str = ""


def evaluate(
    generate: Generate,
    samples: Sequence[Sample],
    out: Path | None = None,
    model: str = "",
    done: Callable[[int], None] = lambda n: None,
) -> list[Result]:
    """A result for every sample, in order.

    out: file of answers, a header and then a JSON line each; what stands there is not asked again. model: tells whose
    answers they are. done: called with the number of answers. EyespotError when `out` belongs to other questions or to
    another model. Scores are worked out anew from the kept answers, so a mended metric costs no second run.
    """
    said = _kept(out, samples, model) if out is not None else {}
    results = []
    file = open(out, "a", encoding="utf-8") if out is not None else None  # noqa: SIM115 - closed below
    try:
        for i, sample in enumerate(samples):
            if sample.id not in said:
                said[sample.id] = _ask(generate, sample)
                if file is not None:
                    text, error = said[sample.id]
                    file.write(json.dumps({"id": sample.id, "prediction": text, "error": error}) + "\n")
                    file.flush()
            text, error = said[sample.id]
            score = 0.0 if error else METRICS[sample.metric](text, sample.answers)
            results.append(Result(sample.id, text, score, error))
            done(i + 1)
    finally:
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
            file.close()
    return results


def _ask(generate: Generate, sample: Sample) -> tuple[str, str]:
    """The answer and an error; a cancelled question is no answer."""
    try:
        answer = generate(sample.messages())
    except Cancelled:
        raise
    except EyespotError as error:
        return "", str(error)
    return (answer if isinstance(answer, str) else str(answer.text)), ""


def _kept(path: Path, samples: Sequence[Sample], model: str) -> dict[str, tuple[str, str]]:
    """Answers of an earlier run. A last line cut short by a crash is cut off the file."""
    header = {"eyespot": "answers", "questions": fingerprint(samples), "model": model}
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_size == 0:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(header) + "\n")
        return {}
    found: dict[str, tuple[str, str]] = {}
    whole, ids = 0, {sample.id for sample in samples}
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_CHARS), b"")):
            if not line.endswith(b"\n"):
                break
            row = _row(line)
            if number == 0 and row != header:
                raise EyespotError(
                    f"{path} holds answers of another run",
                    found=row,
                    expected=header,
                    cause="another set or model, other tasks; give another --out or remove it",
                )
            if number and row.get("id") not in ids:
                raise EyespotError(f"{path}: line {number + 1} answers no question of this set", found=row.get("id"))
            if number and not row.get("error"):  # what was refused, such as a picture that was missing, is asked again
                found[str(row["id"])] = str(row.get("prediction", "")), ""
            whole += len(line)
    if whole == 0:  # not even the header
        path.unlink()
        return _kept(path, samples, model)
    os.truncate(path, whole)
    return found


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {}
