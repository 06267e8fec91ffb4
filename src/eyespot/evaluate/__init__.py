"""Evaluate: any `generate(messages)` on a set of questions, scored by the field's metrics. Knows no model."""

from eyespot.evaluate.metrics import METRICS
from eyespot.evaluate.report import Report, Row
from eyespot.evaluate.runner import Result, evaluate
from eyespot.evaluate.sets import Sample, load_set
from eyespot.evaluate.tasks import TASKS

__all__ = ["METRICS", "TASKS", "Report", "Result", "Row", "Sample", "evaluate", "load_set"]
