"""How the VQA challenge makes two answers alike: the official rules, quirks included (visualqa.org/evaluation)."""

from __future__ import annotations

import re

# Contractions as they should be; what lacks an apostrophe is mended. A word that means something without it ("well",
# "were", "id", "shed", "wed", "hell", "shell", "ill") is left alone, as the official table leaves it.
_SINGLE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't somebody'd
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at
"""


def _without_one(word: str) -> list[str]:
    """The ways to leave out one apostrophe."""
    return [word[:i] + word[i + 1 :] for i, c in enumerate(word) if c == "'"]


CONTRACTIONS = {short: word for word in (_SINGLE + _DOUBLE).split() for short in _without_one(word)}
_COUNT = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(i) for i, word in enumerate(_COUNT.split())} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def evalai(answer: str) -> str:
    """As `normalise`, after what TextVQA's evaluator does to words first: commas and question marks vanish, 's stands
    alone. Source: EvalAIAnswerProcessor of the MMF project."""
    return normalise(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def normalise(answer: str) -> str:
    """Lower case, no articles or full stops, digits for number words, apostrophes mended, punctuation gone.

    Punctuation beside a space, or in a text with a comma between digits, vanishes; elsewhere it becomes a space.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    thousands = _THOUSANDS.search(text) is not None
    cleared = text
    for mark in PUNCTUATION:
        gone = f"{mark} " in text or f" {mark}" in text or thousands
        cleared = cleared.replace(mark, "" if gone else " ")
    words = _FULL_STOP.sub("", cleared).lower().split()
    numbered = (NUMBERS.get(word, word) for word in words)
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)
