"""Which layouts, pairs of emoji and words belong to which split. Knows keys only, nothing of pictures.

A key falls into one of eight buckets by a hash, so a split needs no list and never overlaps another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations

BUCKETS = 8
SPLITS = {"train": (0, 1, 2, 3, 4, 5), "validation": (6,), "test": (7,)}  # of layouts
HELD_OUT = 7  # bucket of the pairs of emoji and the words that only the test split shows


@lru_cache(1 << 16)
def bucket(key: str) -> int:
    return hashlib.blake2b(key.encode(), digest_size=2).digest()[0] % BUCKETS


def layout_key(pictures: Iterable[Iterable[tuple[float, ...]]]) -> str:
    """Of places given in shares of the picture's side: where things stand, to a sixteenth; not what stands there."""
    return "|".join(";".join(sorted(",".join(str(round(v * 16)) for v in place) for place in p)) for p in pictures)


def layout_fits(split: str, key: str) -> bool:
    return bucket(f"layout {key}") in SPLITS[split]


def held_out_pair(a: str, b: str) -> bool:
    """Whether two kinds together are shown by the test split alone."""
    return a != b and bucket("pair " + " ".join(sorted((a, b)))) == HELD_OUT


def held_out_word(word: str) -> bool:
    return bucket(f"word {word.lower()}") == HELD_OUT


def novel(kinds: Iterable[str]) -> bool:
    """Whether some two of these were never together in training."""
    return any(held_out_pair(a, b) for a, b in combinations(sorted(set(kinds)), 2))
