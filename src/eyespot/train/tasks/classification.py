"""Classification as multiple choice: the classes stand in the question, the answer is one of them, or its letter.

Mini-InternVL's form: picture, prefix, candidates, suffix. Knows labels, no picture.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from eyespot.errors import UsageError
from eyespot.train.data.record import IMAGE, Record, dialogue
from eyespot.train.tasks.annotation import Annotated

PREFIX = "Classify the image within one of the given classes:"
SUFFIX = "Answer with one word or short phrase."
LETTERED = "Answer with the option's letter from the given choices directly."


def multiple_choice(
    annotated: Annotated, labels: Sequence[str], rng: random.Random, choices: int = 0, letters: bool = False
) -> Record:
    """The question which of `labels` the picture shows.

    choices: how many of them are offered, the right one among them; 0: all. letters: they are lettered, and the
    answer is a letter. Their order is drawn from `rng`, so that no place is the right one more often.
    """
    if choices < 0 or choices == 1 or len(labels) < 2:
        raise UsageError("nothing to choose", found=f"{choices} of {len(labels)} classes", expected="2 or more; 0: all")
    others = [label for label in labels if label != annotated.label]
    wrong = rng.sample(others, min(choices - 1, len(others))) if choices else others
    offered = [annotated.label, *wrong]
    rng.shuffle(offered)
    if letters:
        if len(offered) > len(string.ascii_uppercase):
            raise UsageError("more classes than letters", found=len(offered), expected="--choices of at most 26")
        options = "\n".join(
            f"{letter}. {label}" for letter, label in zip(string.ascii_uppercase, offered, strict=False)
        )
        question = f"{IMAGE}\n{PREFIX}\n{options}\n{LETTERED}"
        answer = string.ascii_uppercase[offered.index(annotated.label)]
    else:
        question = f"{IMAGE}\n{PREFIX} {', '.join(offered)}. {SUFFIX}"
        answer = annotated.label
    return Record(dialogue(question, answer), (annotated.picture,), (annotated.size,), place=annotated.place)
