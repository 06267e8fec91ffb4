"""What the generator makes: pictures with questions whose answers are exact.

Knows the training record and InternVL's row; does not know how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from eyespot.train.data.record import Mark, Place, Record, Turn

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels, x2 and y2 past the end

LETTERS = "ABCDEFGH"
FROM = {"user": "human", "assistant": "gpt"}  # InternVL's names


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer. accepted: other right answers. options: of a multiple choice, as the question lists
    them; the answer is a letter."""

    task: str
    text: str
    answer: str
    accepted: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def extras(self) -> dict[str, Any]:
        """What an evaluation wants beside the conversation."""
        found: dict[str, Any] = {"task": self.task, "answers": [self.answer, *self.accepted]}
        return {**found, "options": list(self.options)} if self.options else found


@dataclass(frozen=True, slots=True)
class Scene:
    """pictures: one; or two to compare; or the frames of a clip (frames=True). questions: about all of them.

    layout: where things stand, the key that decides the split. novel: shows what training never does: a pair of emoji
    kept back, or such a word. marks: what each picture shows and where; None where nobody wrote it down.
    """

    id: str
    pictures: tuple[Image.Image, ...]
    questions: tuple[Question, ...]
    layout: str
    novel: bool
    frames: bool = False
    marks: tuple[tuple[Mark, ...], ...] | None = None

    def placeholders(self) -> str:
        """What stands before the first question, as InternVL writes it."""
        if len(self.pictures) == 1:
            return "<image>\n"
        label = "Frame{}: " if self.frames else "Image-{}: "
        return "".join(f"{label.format(i)}<image>\n" for i in range(1, len(self.pictures) + 1))

    def record(self) -> Record:
        """The training sample: every question a turn, the pictures as they are in memory."""
        talk = tuple(Turn(*said) for said in self._talk(self.questions))
        return Record(talk, self.pictures, id=self.id, place=Place(self.id), marks=self.marks)

    def rows(self, files: Sequence[str]) -> Iterator[dict[str, Any]]:
        """InternVL's jsonl, a row for every question, each with what an evaluation wants beside the conversation.

        files: where the pictures are.
        """
        many = len(files) > 1
        sizes = {f"{side}{'_list' * many}": [getattr(p, side) for p in self.pictures] for side in ("width", "height")}
        for i, question in enumerate(self.questions):
            talk = [{"from": FROM[role], "value": text} for role, text in self._talk([question])]
            yield {
                "id": f"{self.id}-{i}",
                "image": list(files) if many else files[0],
                **(sizes if many else {side: value[0] for side, value in sizes.items()}),
                "conversations": talk,
                **question.extras(),
                "novel": self.novel,
            }

    def _talk(self, questions: Sequence[Question]) -> Iterator[tuple[str, str]]:
        """Role and text of each turn; the pictures stand before the first question."""
        before = self.placeholders()
        for question in questions:
            yield "user", before + question.text
            yield "assistant", question.answer
            before = ""
