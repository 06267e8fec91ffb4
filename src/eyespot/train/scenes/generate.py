"""The seeded stream of scenes: sample i of a seed and a split is always the same, whatever came before it.

Knows which kind of picture serves which task; the kinds know how they are drawn and asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image

from eyespot.errors import UsageError
from eyespot.train.data.record import Mark
from eyespot.train.scenes import canvas, charts, objects, sequences, texts, traffic
from eyespot.train.scenes.scene import Question, Scene
from eyespot.train.scenes.split import SPLITS


@dataclass(frozen=True, slots=True)
class Kind:
    """draw(rng, split, side, task) -> (view, layout key, novel). makers: task -> question about a view, or None.
    marks: what stands where in each of its pictures, where that is known."""

    draw: Callable[[Random, str, int, str], tuple[Any, str, bool]]
    makers: Mapping[str, Callable[[Random, Any], Question | None]]
    pictures: Callable[[Any], tuple[Image.Image, ...]]
    frames: bool = False
    marks: Callable[[Any], tuple[tuple[Mark, ...], ...]] | None = None


KINDS = {
    "objects": Kind(objects.draw, objects.MAKERS, lambda view: (view.image,), marks=lambda view: (view.marks,)),
    "text": Kind(texts.draw, texts.MAKERS, lambda page: (page.image,), marks=lambda page: (page.marks,)),
    "chart": Kind(charts.draw, charts.MAKERS, lambda chart: (chart.image,), marks=lambda chart: (chart.marks,)),
    "pair": Kind(sequences.draw_pair, sequences.PAIR_MAKERS, lambda pair: pair.images),
    "road": Kind(traffic.draw, traffic.MAKERS, lambda road: (road.image,)),
    "clip": Kind(sequences.draw_clip, sequences.CLIP_MAKERS, lambda clip: clip.images, frames=True),
}

# task -> the kinds of picture that serve it; a kind named twice comes twice as often.
TASKS = {
    "describe": ("objects", "objects", "text"),
    "name": ("objects",),
    "count": ("objects", "objects", "objects", "chart"),
    "colour": ("objects", "objects", "text", "chart"),
    "position": ("objects", "objects", "objects", "text"),
    "read": ("text",),
    "chart": ("chart",),
    "find": ("objects", "objects", "text"),
    "region": ("objects",),
    "choice": ("objects",),
    "compare": ("pair",),
    "motion": ("clip",),
}
# Drawn only where they are asked for by name: lessons, which teach eyes and examine nobody, and domains.
BY_NAME = {
    "grid": ("objects",),
    "places": ("objects",),
    "sides": ("objects",),
    "side": ("objects",),
    "whether": ("objects",),
    "counts": ("objects",),
    "options": ("objects",),
    "bars": ("chart",),
    "order": ("chart",),
    "spell": ("text",),
    "traffic": ("road",),
}


class Scenes:
    """An endless sequence: scenes[i] for any i >= 0, each a pure function of (seed, split, i) and the settings here.

    split: "train", "validation" or "test"; see split.py. questions: most about one scene; the first is of the task
    that i was drawn for, the others are what else can be asked about the picture. tasks: weights; absent ones are
    never drawn, though they may come as further questions. sides: of the pictures, in pixels.
    Errors: UsageError for an unknown split or task.
    """

    def __init__(
        self,
        seed: int,
        split: str = "train",
        questions: int = 4,
        tasks: Mapping[str, float] | None = None,
        sides: tuple[int, ...] = canvas.SIDES,
    ) -> None:
        if split not in SPLITS:
            raise UsageError("unknown split", found=split, expected=", ".join(SPLITS))
        weights = dict.fromkeys(TASKS, 1.0) if tasks is None else dict(tasks)
        served = TASKS | BY_NAME
        if unknown := sorted(set(weights) - set(served)):
            raise UsageError("unknown task", found=unknown[0], expected=", ".join(served))
        if not weights or min(weights.values()) < 0 or not sum(weights.values()):
            raise UsageError("no task is drawn", expected="weights of at least 0, one above")
        if questions < 1 or not sides or min(sides) < 64 or max(sides) > 1024:
            raise UsageError("scenes need questions and a size", expected="1 question or more, 64 to 1024 pixels")
        self.seed, self.split, self.questions, self.sides = seed, split, questions, sides
        self._tasks, self._weights = list(weights), list(weights.values())

    def __getitem__(self, index: int) -> Scene:
        rng = Random(f"{self.seed}/{self.split}/{index}")
        task = rng.choices(self._tasks, self._weights)[0]
        side = rng.choice(self.sides)
        kind = KINDS[rng.choice((TASKS | BY_NAME)[task])]
        while True:
            view, layout, novel = kind.draw(rng, self.split, side, task)
            first = kind.makers[task](rng, view)
            if first is not None:
                break
        asked = [first, *self._more(rng, kind, view, first)]
        marks = kind.marks(view) if kind.marks else None
        name = f"{self.split}-{self.seed}-{index}"
        return Scene(name, kind.pictures(view), tuple(asked), layout, novel, kind.frames, marks)

    def _more(self, rng: Random, kind: Kind, view: Any, first: Question) -> Iterator[Question]:
        """Further questions, none about what was asked already; a lesson may give an answer twice."""

        def about(task: str, question: Question) -> tuple[str, str]:
            return task, question.text if task in BY_NAME else question.answer

        seen, left = {about(first.task, first)}, self.questions - 1
        able = [task for task in kind.makers if task in TASKS or task in self._tasks]
        for task in rng.choices(able, k=3 * left):
            question = kind.makers[task](rng, view)
            if question is None or about(task, question) in seen:
                continue
            if left == 0:
                return
            seen.add(about(task, question))
            left -= 1
            yield question
