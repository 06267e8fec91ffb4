"""How each task asks, in several wordings, and the small helpers that make a Question. Knows words, not pictures.

{a}, {b}: nouns; {s}: a plural; {box}: <box>[[x1,y1,x2,y2]]</box> on 0 to 1000.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from eyespot import boxes
from eyespot.train.scenes import vocabulary
from eyespot.train.scenes.scene import LETTERS, Box, Question

ASK = {
    "describe": ("Describe the picture.", "Describe what you see.", "Describe the image briefly."),
    "name": ("What is this?", "What is shown?", "Name the object.", "What object is in the picture?"),
    "count": ("How many {s} are there?", "How many {s} do you see?", "Count the {s}."),
    "count all": ("How many objects are there?", "Count the objects.", "How many things are in the picture?"),
    "count bars": ("How many bars are there?", "Count the bars.", "How many bars does the chart have?"),
    "colour": ("What color is the {a}?", "What colour is the {a}?", "Which color does the {a} have?"),
    "colour word": ("What color is the text?", "What colour is the word?", "Which color is the text printed in?"),
    "left right": (
        "Is the {a} left or right of the {b}?",
        "Is the {a} to the left or right of the {b}?",
    ),
    "above below": (
        "Is the {a} above or below the {b}?",
        "Is the {a} higher or lower than the {b}? Say above or below.",
    ),
    "is it left": ("Is the {a} left of the {b}?", "Is the {a} to the left of the {b}?"),
    "is it right": ("Is the {a} right of the {b}?", "Is the {a} to the right of the {b}?"),
    "is it above": ("Is the {a} above the {b}?", "Is the {a} higher than the {b}?"),
    "is it below": ("Is the {a} below the {b}?", "Is the {a} lower than the {b}?"),
    "what left": ("What is left of the {b}?", "Name the object left of the {b}."),
    "what right": ("What is right of the {b}?", "Name the object right of the {b}."),
    "what above": ("What is above the {b}?", "Name the object above the {b}."),
    "what below": ("What is below the {b}?", "Name the object below the {b}."),
    "corner": ("In which corner is the {a}?", "Which corner is the {a} in?"),
    "grid": ("Read the grid.",),
    "spell": ("Spell the text.",),
    "places": ("Place {p}.",),
    "sides": ("Sides of {p}.",),
    "side": ("On which sides is the {a} of the {b}?", "Is the {a} left, right, above or below of the {b}?"),
    "counts": ("How many {p} are there?", "How many {p} do you see?", "Count the {p}."),
    "letters": ("Letters of {p}.",),
    "names and letters": ("Names and letters of {p}.",),
    "letters seen": ("What is in the picture?", "Which of these do you see?", "Which objects are shown?"),
    "order": ("Sort the bars from high to low.", "Which bars are the tallest, in order?"),
    "order up": ("Sort the bars from low to high.", "Which bars are the shortest, in order?"),
    "bars": ("Read the bars.",),
    "bar colours": ("What color are the bars {p}?", "What colour are the bars {p}?"),
    "bar values": ("What are the values of {p}?", "How high are the bars {p}?"),
    "read": ("Read the text.", "What does the text say?", "What is written here?", "What is the text in the picture?"),
    "read top": ("What is the top word?", "Read the top line.", "What is written at the top?"),
    "read bottom": ("What is the bottom word?", "Read the bottom line.", "What is written at the bottom?"),
    "bar": ("What is the value of {a}?", "How high is bar {a}?", "What value does {a} have?", "Read the value of {a}."),
    "tallest": ("Which bar is the tallest?", "Which bar has the largest value?", "Which is the highest bar?"),
    "shortest": ("Which bar is the shortest?", "Which bar has the smallest value?", "Which is the lowest bar?"),
    "largest value": ("What is the largest value?", "What is the highest value?"),
    "more bar": ("Which is larger, {a} or {b}?", "Which bar is higher, {a} or {b}?"),
    "find": (
        "Detect <ref>{a}</ref>",
        "Find the <ref>{a}</ref>",
        "Where is the <ref>{a}</ref>? Give its box.",
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>{a}</ref>",
    ),
    "region": (
        "What object is in this location{box}",
        "What is in {box}?",
        "Name the object at {box}",
    ),
    "choice": ("What is in the picture?", "Which of these do you see?", "Which object is shown?"),
    "which picture": ("Which picture shows {p}?", "In which picture do you see {p}?", "Which picture has {p}?"),
    "which more": ("Which picture has more {s}?", "In which picture are there more {s}?"),
    "same": ("Do both pictures show the same objects?", "Are the objects in both pictures the same?"),
    "only second": ("What is only in the second picture?", "What is new in the second picture?"),
    "only first": ("What is only in the first picture?", "What is missing in the second picture?"),
    "what moves": ("What moves?", "Which object is moving?", "What is moving in the clip?"),
    "where moves": ("Where does the {a} move?", "In which direction does the {a} move?", "Which way does the {a} go?"),
    "which camera": ("Which camera sees the {a}?", "On which camera is the {a}?"),
    "what sees": ("What does the {a} camera see?", "What is on the {a} camera?"),
    "ahead": ("Is the road ahead free?", "Is the front camera's road free?"),
    "how many cameras": ("How many cameras see {a}?", "On how many cameras is {a}?"),
    "direction": ("In which direction is the motion?", "Which way does it move?"),
}  # fmt: skip

CHOICE_END = "Answer with the letter."
CHOICES_END = "Answer with the letters."


def ask(
    rng: Random,
    task: str,
    wording: str,
    answer: str,
    accepted: tuple[str, ...] = (),
    /,
    **words: str,
) -> Question:
    """A question in one of its wordings."""
    return Question(task, rng.choice(ASK[wording]).format(**words), answer, accepted)


def number(value: int) -> tuple[str, tuple[str, ...]]:
    """A count as digits, and what else is right."""
    return str(value), (vocabulary.NUMBERS[value],) if value < len(vocabulary.NUMBERS) else ()


def choice(rng: Random, wording: str, right: str, wrong: list[str]) -> Question:
    """Four options, or as many as there are, and the letter of the right one."""
    options = [right, *wrong]
    rng.shuffle(options)
    question = f"{rng.choice(ASK[wording])}\n{listed(options)}\n{CHOICE_END}"
    return Question("choice", question, LETTERS[options.index(right)], options=tuple(options))


def listed(options: Sequence[str]) -> str:
    """Options by letter, a line each."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def box_text(box: Box, size: boxes.Size) -> str:
    """<box>[[x1,y1,x2,y2]]</box> of a box in pixels of a picture of `size`."""
    return boxes.write([boxes.to_thousandths(box, size)])


def find(rng: Random, noun: str, box: Box, size: boxes.Size, task: str = "find") -> Question:
    return ask(rng, task, "find", boxes.ref(noun) + box_text(box, size), a=noun)
