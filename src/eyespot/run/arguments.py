"""Numbers a caller gives, numpy's scalars included, as plain ones within bounds. Knows no option and no default.

Apart from bundle/settings.py, whose numbers come from JSON and are named by their place in a file.
"""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

from eyespot.errors import UsageError


def whole(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int from low to high. UsageError when it is something else."""
    if not isinstance(value, bool):
        try:
            number = operator.index(value)
        except TypeError:
            number = low - 1
        if low <= number <= high:
            return number
    raise UsageError(f"{name} is out of range", found=repr(value), expected=f"a whole number from {low} to {high}")


def real(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float from low to high. UsageError when it is something else."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if number and low <= value <= high:  # NaN fails too
        return float(value)
    raise UsageError(f"{name} is out of range", found=repr(value), expected=f"a number from {low} to {high}")
