"""Methods: how the scales of a W scheme are chosen. Round to nearest is here; calibrated ones join METHODS beside it.

Knows rows of numbers; neither names nor files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eyespot.quantize.formats import F32, Scheme, absmax_scale, f16_scale, groups, pack, round_groups
from eyespot.tensorfile import Array

# Clipping the extreme of a group a little costs less than rounding the rest coarsely. On normal weights these two take
# the relative error of g64 from 0.0950 to 0.0913; a search over twenty factors stops at 0.0908.
SHRINK = (0.93, 0.85)


def rtn(rows: F32, scheme: Scheme) -> dict[str, Array]:
    """Rows [r, k] rounded to nearest. W4 groups take the best of three scales by squared error, others the plain."""
    return pack(rows, scheme, _searched(rows, scheme) if scheme.bits == 4 else None)


def _searched(rows: F32, scheme: Scheme) -> F32:
    grouped, scale = groups(rows, scheme.group), absmax_scale(rows, scheme)
    best, error = scale.copy(), _error(grouped, scale)
    for factor in SHRINK:
        tried = f16_scale(scale * np.float32(factor))
        now = _error(grouped, tried)
        better = now < error
        best[better], error[better] = tried[better], now[better]
    return best


def _error(grouped: F32, scale: F32) -> F32:
    """Squared error of each group [r, groups]."""
    q = round_groups(grouped, scale)
    q *= scale[..., None]
    q -= grouped
    error: F32 = np.einsum("rgi,rgi->rg", q, q)
    return error


METHODS: dict[str, Callable[[F32, Scheme], dict[str, Array]]] = {"rtn": rtn}
