"""Which metric scores which task, and what is said after its questions. A set may name other metrics in its rows."""

from __future__ import annotations

from dataclasses import dataclass

SHORT_ANSWER = " Answer the question using a single word or phrase."


@dataclass(frozen=True, slots=True)
class Task:
    """metric: a name of METRICS. suffix: goes after the question, as the benchmark's harness has it."""

    metric: str
    suffix: str = ""


TASKS = {
    # Our scenes (train/scenes), whose questions say all there is to say.
    "describe": Task("phrases"),
    "name": Task("exact_match"),
    "count": Task("exact_match"),
    "colour": Task("exact_match"),
    "position": Task("exact_match"),
    "read": Task("exact_text"),
    "read word": Task("exact_text"),
    "chart": Task("relaxed_accuracy"),
    "find": Task("iou_at_half"),
    "find word": Task("iou_at_half"),
    "region": Task("exact_match"),
    "choice": Task("option_letter"),
    "compare": Task("exact_match"),
    "motion": Task("exact_match"),
    "motion direction": Task("exact_match"),
    "traffic": Task("exact_match"),
    "traffic find": Task("iou_at_half"),
    # Public benchmarks.
    "docvqa": Task("anls", SHORT_ANSWER),
    "infovqa": Task("anls", SHORT_ANSWER),
    "chartqa": Task("relaxed_accuracy", SHORT_ANSWER),
    "textvqa": Task("textvqa_accuracy", SHORT_ANSWER),
    "vqa": Task("vqa_accuracy", SHORT_ANSWER),
    "ocrbench": Task("contains"),
    "ai2d": Task("option_letter"),
    "mmmu": Task("option_letter"),
    "mmbench": Task("option_letter"),
    "refcoco": Task("iou_at_half"),
}
DEFAULT = Task("exact_match")  # of a task that stands in no row above
