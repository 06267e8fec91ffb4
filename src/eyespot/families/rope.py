"""Rotary frequencies of a language model, every scaling rule of Hugging Face configs included, as one constant vector.

The rules end here: the Program carries finished frequencies and a factor. Source: transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eyespot import limits
from eyespot.families.config import Fields

THETA = 10_000.0  # when a config names none: Llama, Phi-3 and MiniCPM mean this


@dataclass(frozen=True, slots=True)
class Rope:
    """inv_freq [rotary_dim / 2]; cos and sin are multiplied by `factor`; max_position: how far the rule reaches."""

    inv_freq: tuple[float, ...]
    factor: float
    max_position: int

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.inv_freq)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a scaling rule may look at: its own object of the config, and sizes."""

    fields: Fields
    theta: float
    dim: int
    max_position: int
    ctx_size: int  # 0: not said, so none that calls for stretching
    original: int  # original_max_position_embeddings

    def frequencies(self, theta: float | None = None) -> list[float]:
        return [(theta or self.theta) ** (-i / self.dim) for i in range(0, self.dim, 2)]

    def scale(self) -> float:
        return self.fields.number("factor", 1e-3, 1e6)


Scaled = tuple[list[float], float, int]  # frequencies, factor, max_position


def _default(rule: _Rule) -> Scaled:
    rule.fields.ignore("factor")
    return rule.frequencies(), 1.0, rule.max_position


def _linear(rule: _Rule) -> Scaled:
    scale = rule.scale()
    return [f / scale for f in rule.frequencies()], 1.0, rule.max_position


def _dynamic(rule: _Rule) -> Scaled:
    """NTK: theta grows once the context is longer than the model's. transformers recomputes it as the sequence grows,
    which leaves cached keys rotated by older frequencies; here the context the bundle is made for settles it."""
    scale = rule.scale()
    length = max(rule.ctx_size, rule.max_position)
    growth = scale * length / rule.max_position - (scale - 1)
    theta = rule.theta * growth ** (rule.dim / max(rule.dim - 2, 1))
    reach = min(limits.CONTEXT, int(rule.max_position * max(scale, 1)))
    return rule.frequencies(theta), 1.0, reach


def _llama3(rule: _Rule) -> Scaled:
    scale = rule.scale()
    low, high = rule.fields.number("low_freq_factor", 1e-3, 1e6), rule.fields.number("high_freq_factor", 1e-3, 1e6)
    if high <= low:
        rule.fields.fault("high_freq_factor", f"more than low_freq_factor, {low:g}")
        return [], 1.0, 1

    def scaled(frequency: float) -> float:
        waves = rule.original * frequency / (2 * math.pi)
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        return (1 - smooth) * frequency / scale + smooth * frequency

    return [scaled(f) for f in rule.frequencies()], 1.0, rule.max_position


def _yarn(rule: _Rule) -> Scaled:
    fields = rule.fields
    scale = rule.scale()
    mscale, mscale_all = fields.number("mscale", 0, 1e3, 0.0), fields.number("mscale_all_dim", 0, 1e3, 0.0)
    fast, slow = fields.number("beta_fast", 1e-3, 1e6, 32.0), fields.number("beta_slow", 1e-3, 1e6, 1.0)

    def grown(by: float) -> float:
        return 0.1 * by * math.log(scale) + 1 if scale > 1 else 1.0

    suggested = grown(mscale) / grown(mscale_all) if mscale and mscale_all else grown(1)
    factor = fields.number("attention_factor", 1e-3, 1e3, suggested)
    if rule.theta <= 1:
        fields.fault("rope_theta", "more than 1 for yarn")
        return [], 1.0, 1

    def turning(rotations: float) -> float:  # the dimension that turns this often within the original context
        return rule.dim * math.log(rule.original / (rotations * 2 * math.pi)) / (2 * math.log(rule.theta))

    low, high = turning(fast), turning(slow)
    if fields.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rule.dim - 1)
    if low == high:
        high += 0.001
    ramp = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(rule.dim // 2)]
    mixed = [f / scale * r + f * (1 - r) for f, r in zip(rule.frequencies(), ramp, strict=True)]
    return mixed, factor, min(limits.CONTEXT, max(rule.max_position, int(rule.original * scale)))


def _longrope(rule: _Rule) -> Scaled:
    """Two sets of divisors: for contexts up to the original length, and for longer ones. transformers chooses by the
    length of the sequence so far, in the midst of a cache; here the context the bundle is made for settles it."""
    fields, half = rule.fields, rule.dim // 2
    short, long = (fields.numbers(key, half, 1e-3, 1e6) for key in ("short_factor", "long_factor"))
    scale = fields.number("factor", 1e-3, 1e6, rule.max_position / rule.original)
    suggested = 1.0
    if scale > 1 and rule.original > 1:
        suggested = math.sqrt(1 + math.log(scale) / math.log(rule.original))
    factor = fields.number("attention_factor", 1e-3, 1e3, suggested)
    divisors = long if rule.ctx_size > rule.original else short
    return [f / d for f, d in zip(rule.frequencies(), divisors, strict=False)], factor, rule.max_position


RULES: dict[str, Callable[[_Rule], Scaled]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its name in early Phi-3 configs
}


def read_rope(fields: Fields, head_dim: int, max_position: int, ctx_size: int | None, partial: bool = False) -> Rope:
    """Rope of a config in either form: `rope_theta` beside `rope_scaling`, or transformers 5's `rope_parameters`.

    partial: the family honours partial_rotary_factor; others refuse one below 1. `rope_freqs`, which only a GGUF
    carries, are finished divisors of the frequencies and replace any rule.
    """
    key = "rope_scaling" if "rope_scaling" in fields else "rope_parameters"
    fields.ignore("rope_scaling", "rope_parameters")
    inner = fields.inner(key) if key in fields else Fields({}, fields.findings)
    theta = fields.number("rope_theta", 1e-3, 1e12, THETA)
    theta = inner.number("rope_theta", 1e-3, 1e12, theta)
    portion = fields.number("partial_rotary_factor", 1e-3, 1, 1.0)
    portion = inner.number("partial_rotary_factor", 1e-3, 1, portion)
    if portion != 1 and not partial:
        fields.refuse("partial_rotary_factor", "1")
    original = inner.integer("original_max_position_embeddings", limits.CONTEXT, 1, max_position)
    original = fields.integer("original_max_position_embeddings", limits.CONTEXT, 1, original)
    dim = int(head_dim * portion)
    if dim < 2 or dim % 2:
        fields.fault("head_dim", f"an even rotary size of at least 2, not {dim}")
        return Rope((1.0,), 1.0, max_position)
    rule = _Rule(inner, theta, dim, max_position, ctx_size or 0, original)
    if "rope_freqs" in fields:
        divisors = fields.numbers("rope_freqs", dim // 2, 1e-3, 1e6)
        inner.ignore(*inner.raw)
        scaled: Scaled = [f / d for f, d in zip(rule.frequencies(), divisors, strict=False)], 1.0, max_position
    else:
        kind = inner.only("type", tuple(RULES), "default")
        kind = inner.only("rope_type", tuple(RULES), kind)
        if kind == "yarn" and "long_factor" in inner:
            kind = "longrope"  # Phi-3's config class reads its early "yarn" so
        scaled = RULES[kind](rule)
    inv_freq, factor, reach = scaled
    return Rope(tuple(float(np.float32(f)) for f in inv_freq), float(np.float32(factor)), reach)
