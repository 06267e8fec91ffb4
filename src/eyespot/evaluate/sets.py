"""A set of questions: InternVL's jsonl, each row a question about its pictures and what is a right answer.

Beside InternVL's keys a row may have `task`, `answers` (all that is right), `options` (of a multiple choice, listed in
the question as "A. ..."), `metric` (of METRICS) and `novel`. Knows no model and opens no picture.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eyespot import limits
from eyespot.errors import EyespotError, UsageError
from eyespot.evaluate.metrics import METRICS
from eyespot.evaluate.tasks import DEFAULT, TASKS

IMAGE = "<image>"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUESTIONS = 1_000_000  # of one set
LINE_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """question: with an <image> where each picture belongs. group: rows that count as one question, all of them right
    or wrong (circular evaluation). novel: shows what training never did."""

    id: str
    task: str
    metric: str
    question: str
    answers: tuple[str, ...]
    images: tuple[Path, ...]
    options: tuple[str, ...] = ()
    novel: bool = False
    group: str = ""

    def messages(self) -> list[dict[str, Any]]:
        """One user message, its text cut where the pictures stand; joined with placeholders it is `question` again."""
        texts = self.question.split(IMAGE)
        parts: list[dict[str, Any]] = []
        for i, text in enumerate(texts):
            if text:
                parts.append({"type": "text", "text": text})
            if i < len(self.images):
                parts.append({"type": "image", "image": str(self.images[i])})
        return [{"role": "user", "content": parts}]


def load_set(path: str | Path, tasks: Iterable[str] = (), limit: int = 0, circular: bool = False) -> list[Sample]:
    """The questions of a jsonl, or of the only jsonl in a directory.

    tasks: only these. limit: at most so many of each task, the first ones; 0: all. circular: every multiple choice is
    asked with its options in each rotation (MMBench). Errors: UsageError for a wrong path or an empty choice,
    EyespotError naming file and line for a bad row.
    """
    file = _annotation(Path(path))
    wanted, seen, ids = set(tasks), Counter[str](), set[str]()
    samples: list[Sample] = []
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number in range(1, QUESTIONS + 2):
            line = lines.readline(LINE_CHARS + 1)
            if not line:
                break
            if number > QUESTIONS or len(line) > LINE_CHARS:
                raise EyespotError(f"{file}:{number}: the set or the line is too long")
            for sample in _samples(line, f"{file}:{number}", file.parent) if line.strip() else ():
                if sample.id in ids:
                    raise EyespotError(f"{file}:{number}: the id {sample.id} is there twice")
                ids.add(sample.id)
                seen[sample.task] += 1
                if (wanted and sample.task not in wanted) or (limit and seen[sample.task] > limit):
                    continue
                samples += rotations(sample) if circular else [sample]
    if not seen:
        raise UsageError(f"{file} has no question", cause="an empty set")
    if unknown := sorted(wanted - seen.keys()):
        raise UsageError(f"{file} has no such task", found=", ".join(unknown), expected=", ".join(sorted(seen)))
    return samples


def fingerprint(samples: Iterable[Sample]) -> str:
    """Changes with any question, answer or metric; not with the place of the pictures."""
    digest = hashlib.sha256()
    for s in samples:
        digest.update(repr((s.id, s.metric, s.question, s.answers, [p.name for p in s.images])).encode())
    return digest.hexdigest()[:16]


def rotations(sample: Sample) -> list[Sample]:
    """A multiple choice in every rotation of its options; any other question as it is."""
    n = len(sample.options)
    if n < 2:
        return [sample]
    right = LETTERS.index(sample.answers[0])
    listed = _listed(sample.options)
    turned = []
    for shift in range(n):
        options = sample.options[shift:] + sample.options[:shift]
        turned.append(
            replace(
                sample,
                id=f"{sample.id}~{shift}",
                question=sample.question.replace(listed, _listed(options)),
                answers=(LETTERS[(right - shift) % n],),
                options=options,
                group=sample.id,
            )
        )
    return turned


def _listed(options: tuple[str, ...]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def _annotation(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.jsonl"))
        if len(found) != 1:
            raise UsageError(
                f"{path} holds {len(found)} jsonl files", expected="one, or the path of the one that is meant"
            )
        return found[0]
    if not path.is_file():
        raise UsageError(f"no set at '{path}'", expected="a jsonl, or a directory with one")
    return path


def _samples(line: str, place: str, root: Path) -> Iterator[Sample]:
    """The questions of a row; more than one where its conversation goes on, each asked alone."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EyespotError(f"{place}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise EyespotError(f"{place}: a row is malformed", found=type(row).__name__, expected="an object")
    talk = row.get("conversations")
    if not isinstance(talk, list) or not talk or not all(isinstance(t, dict) for t in talk):
        raise EyespotError(f"{place}: no conversations", expected='[{"from": "human", "value": ...}, ...]')
    if "video" in row:
        raise EyespotError(f"{place}: a clip", expected="its frames as pictures", cause="eyespot convert-data frames")
    images = tuple(root / name for name in _texts(row, "image", place))
    said = [(t.get("from"), t.get("value")) for t in talk]
    if [who for who, _ in said] != ["human", "gpt"] * (len(said) // 2):
        raise EyespotError(f"{place}: turns out of order", found=[who for who, _ in said], expected="human, gpt, ...")
    if not all(isinstance(text, str) for _, text in said):
        raise EyespotError(f"{place}: a turn is not a text")
    before = ""
    for i in range(0, len(said), 2):
        question, answer = str(said[i][1]), str(said[i + 1][1])
        if i == 0:
            if len(images) == 1 and IMAGE not in question:  # as a training row means it
                question = f"{IMAGE}\n{question}"
            before = question[: question.rfind(IMAGE) + len(IMAGE)] + "\n" if IMAGE in question else ""
        else:
            question = before + question
        name = row["id"] if isinstance(row.get("id"), str | int) else place
        yield _sample(row, f"{name}" if len(said) == 2 else f"{name}-{i // 2}", question, answer, images, place)


def _sample(
    row: Mapping[str, Any], id: str, question: str, answer: str, images: tuple[Path, ...], place: str
) -> Sample:
    if question.count(IMAGE) != len(images) or len(images) > limits.IMAGES:
        raise EyespotError(f"{place}: {question.count(IMAGE)} {IMAGE} for {len(images)} pictures")
    task = row.get("task", "default")
    if not isinstance(task, str) or not task:
        raise EyespotError(f"{place}: the task is not a name")
    rule = TASKS.get(task, DEFAULT)
    metric = row.get("metric", rule.metric)
    if metric not in METRICS:
        raise EyespotError(f"{place}: unknown metric", found=metric, expected=", ".join(METRICS))
    options = tuple(_texts(row, "options", place))
    answers = tuple(_texts(row, "answers", place)) or (answer,)
    if options and (
        len(options) > len(LETTERS)
        or answers[0] not in LETTERS[: len(options)]
        or len(answers[0]) != 1
        or _listed(options) not in question
    ):
        raise EyespotError(
            f"{place}: the options are not those of the question", expected="A. ...\\nB. ... and a letter"
        )
    return Sample(id, task, metric, question + rule.suffix, answers, images, options, novel=row.get("novel") is True)


def _texts(row: Mapping[str, Any], key: str, place: str) -> list[str]:
    value = row.get(key, [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise EyespotError(f"{place}: '{key}' is malformed", expected="a text or a list of texts")
    return texts
