"""A domain's set with general data beside it, at a given ratio, so that a transfer does not forget what it knew.

Mini-InternVL keeps 1 general sample to 4 of driving, 1 to 1 of medicine. Knows sets by length, reads no record.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from eyespot import limits
from eyespot.errors import EyespotError, UsageError
from eyespot.train.data.sets import Dataset, Joined, Picked


def ratio(text: str) -> Fraction:
    """`1:4`, general to domain, as a fraction. UsageError when it is none."""
    general, colon, domain = text.partition(":")
    if not (colon and general.isdecimal() and domain.isdecimal() and len(text) < 12 and int(domain)):
        raise UsageError("not a ratio", found=text, expected="GENERAL:DOMAIN, such as 1:4")
    return Fraction(int(general), int(domain))


def mix(general: Dataset, domain: Dataset, share: Fraction, seed: int) -> Joined:
    """All of `domain`, and of `general` as many samples as `share` says for each of those, drawn by `seed`.

    They are drawn without repetition; where there are too few, each comes equally often, or once more.
    """
    wanted = round(len(domain) * share)
    if wanted > limits.RECORDS:
        raise UsageError("too many general samples", found=wanted, expected=f"at most {limits.RECORDS}")
    if wanted and not len(general):
        raise EyespotError(f"{general.name}: the set is empty")
    passes, rest = divmod(wanted, len(general)) if wanted else (0, 0)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(general))[:rest])
    whole = np.tile(np.arange(len(general), dtype=np.int64), passes)
    return Joined(f"{general.name} and {domain.name}", [Picked(general, np.concatenate([whole, drawn])), domain])
