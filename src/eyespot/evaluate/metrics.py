"""The field's metrics: a prediction and the right answers in, a score from 0 to 1 out.

Knows texts only: nothing of models, pictures or sets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from eyespot.evaluate.vqa_words import evalai, normalise

Metric = Callable[[str, Sequence[str]], float]

IOU = 0.5  # RefCOCO
TOLERANCE = 0.05  # ChartQA
THRESHOLD = 0.5  # ANLS: less similar than this scores nothing


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 for one of the answers, whatever its case, spaces or final full stop."""
    return float(_plain(prediction) in map(_plain, answers))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def exact_text(prediction: str, answers: Sequence[str]) -> float:
    """1 for one of the answers, letter by letter, case included; spaces are collapsed."""
    return float(" ".join(prediction.split()) in [" ".join(answer.split()) for answer in answers])


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest answer, 0 below one half (Biten et al. 2019; DocVQA).

    Case does not count and white space is collapsed.
    """
    said = " ".join(prediction.lower().split())
    best = 0.0
    for answer in answers:
        right = " ".join(answer.lower().split())
        longest = max(len(said), len(right))
        best = max(best, 1 - _levenshtein(said, right) / longest if longest else 1.0)
    return best if best >= THRESHOLD else 0.0  # the official script keeps one half itself


def _levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 for a number within 5 % of an answer, or for the same text in any case (ChartQA; Methani et al. 2020).

    A percentage is its hundredth; an answer of 0 must be met as text.
    """
    return float(any(_relaxed(prediction.strip(), answer.strip()) for answer in answers))


def _relaxed(said: str, right: str) -> bool:
    a, b = _number(said), _number(right)
    if a is not None and b:
        return abs(a - b) / abs(b) <= TOLERANCE
    return said.lower() == right.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the answers left out one at a time of min(1, matches / 3) (Antol et al. 2015).

    Both sides are normalised as the official script does. Fewer than two answers: equality.
    """
    return _agreement(normalise(prediction), [normalise(answer) for answer in answers])


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """vqa_accuracy with the words made alike as TextVQA's evaluator does (Singh et al. 2019)."""
    return _agreement(evalai(prediction), [evalai(answer) for answer in answers])


def _agreement(said: str, right: Sequence[str]) -> float:
    matches = right.count(said)
    if len(right) < 2:
        return float(matches > 0)
    without = [matches - (answer == said) for answer in right]
    return sum(min(1.0, count / 3) for count in without) / len(right)


# "B", "(B)", "B.", "B: a dog", "**B**", "Option B", "The answer is (B)", "Answer: B"
_LETTER_FIRST = re.compile(r"^\W*(?:option\s+)?\(?([A-Z])\)?(?![A-Za-z'])", re.IGNORECASE)
_LETTER_SAID = re.compile(
    r"\b(?:answer|option|choice)\b\W*(?:is\b)?\W*\(?(?-i:(?![ai][ \t]+\w))([A-Z])\b", re.IGNORECASE
)


def option_letter(prediction: str, answers: Sequence[str]) -> float:
    """1 when the letter that the prediction names is an answer's (AI2D, MMMU, MMBench)."""
    return float(letter(prediction) in {answer.strip().upper() for answer in answers})


def letter(prediction: str) -> str:
    """The option's letter that a text names, "" where there is none."""
    text = prediction.strip()
    said = _LETTER_SAID.search(text)
    first = _LETTER_FIRST.match(text)
    # "A dog", "I see": such a word is a letter only alone, before punctuation, or where the text says so.
    if first and not (first[1] in "AaIi" and re.match(r"[AaIi][ \t]+\w", text.lstrip("(*"))):
        return first[1].upper()
    return said[1].upper() if said else ""


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 when an answer is part of the prediction, in any case, line breaks as spaces (OCRBench)."""
    said = prediction.lower().strip().replace("\n", " ")
    return float(any(answer.lower().strip().replace("\n", " ") in said for answer in answers))


def iou_at_half(prediction: str, answers: Sequence[str]) -> float:
    """1 when the first box of the prediction and that of an answer share at least half of their union (RefCOCO)."""
    said = box(prediction)
    if said is None:
        return 0.0
    return float(any((right := box(answer)) is not None and iou(said, right) >= IOU for answer in answers))


Box = tuple[float, float, float, float]
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def box(text: str) -> Box | None:
    """The first [x1,y1,x2,y2] of a text, or None."""
    found = _BOX.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    return x1, y1, x2, y2


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 where one has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [max(0.0, x2 - x1) * max(0.0, y2 - y1) for x1, y1, x2, y2 in (a, b)]
    if width <= 0 or height <= 0 or not all(areas):
        return 0.0
    return width * height / (sum(areas) - width * height)


def phrases(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the things that a list names, "a cat, two dogs and a sun" in any order; the best of the answers."""
    said = _phrases(prediction)
    best = 0.0
    for answer in answers:
        right = _phrases(answer)
        best = max(best, 2 * len(said & right) / (len(said) + len(right)) if said or right else 0.0)
    return best


def _phrases(text: str) -> set[str]:
    return {part.strip() for part in re.split(r",| and ", _plain(text)) if part.strip()}


METRICS: dict[str, Metric] = {
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "vqa_accuracy": vqa_accuracy,
    "textvqa_accuracy": textvqa_accuracy,
    "option_letter": option_letter,
    "contains": contains,
    "iou_at_half": iou_at_half,
    "exact_match": exact_match,
    "exact_text": exact_text,
    "phrases": phrases,
}
