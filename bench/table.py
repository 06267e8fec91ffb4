"""Medians, spreads, ratios and the markdown they are shown in; and the bars of issue 3, judged.

Knows numbers by row and contestant, and nothing about where they came from.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from contestants import Contestant

Values = Mapping[str, Mapping[Contestant, Sequence[float]]]  # row -> contestant -> one value a round
Reasons = Mapping[Contestant, str]  # why one did not run

HIGHER, LOWER = "≥", "≤"


@dataclass(frozen=True, slots=True)
class Bar:
    """ours / theirs must be HIGHER or LOWER than `limit`. bits 0: of any width. peer, form "": any."""

    work: str
    row: str
    sense: str
    limit: float
    bits: int = 0
    peer: str = ""
    form: str = ""
    quality: str = ""  # the row whose value may not be larger than theirs


BARS = (
    Bar("decode, Qwen2-0.5B, 4 bit", "tg64", HIGHER, 1.25, bits=4, quality="kl"),
    Bar("decode, Qwen2-0.5B, 8 bit", "tg64", HIGHER, 1.3, bits=8, peer="llama.cpp", form="Q8_0", quality="kl"),
    Bar("prefill 128, 4 bit", "pp128", HIGHER, 1.8, bits=4, peer="llama.cpp", quality="kl"),
    Bar("prefill 128, 8 bit", "pp128", HIGHER, 1.8, bits=8, peer="llama.cpp", quality="kl"),
    Bar("prefill 512, 4 bit", "pp512", HIGHER, 1.8, bits=4, peer="llama.cpp", quality="kl"),
    Bar("prefill 512, 8 bit", "pp512", HIGHER, 1.8, bits=8, peer="llama.cpp", quality="kl"),
    Bar("InternViT-300M, one tile", "vit", LOWER, 0.75, bits=8, peer="onnxruntime", quality="vit-error"),
    Bar("picture + 32 tokens to first token", "e2e", LOWER, 0.6),
    Bar("cold start to first token", "cold", LOWER, 0.25, peer="onnxruntime-genai"),
    Bar("decode, SmolLM2, the same file", "smollm2-tg64", HIGHER, 1.25, bits=4, form="Q4_1+Q8_0", quality="kl"),
    Bar("prefill, SmolLM2, the same file", "smollm2-pp128", HIGHER, 1.25, bits=4, form="Q4_1+Q8_0", quality="kl"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged bar; the contestants are None where none ran."""

    bar: Bar
    ours: Contestant | None
    theirs: Contestant | None
    ratio: float | None
    quality: tuple[float, float] | None  # ours, theirs

    @property
    def met(self) -> bool | None:
        """None: not to be judged, for a side did not run."""
        if self.ratio is None:
            return None
        fast = self.ratio >= self.bar.limit if self.bar.sense == HIGHER else self.ratio <= self.bar.limit
        return fast and (self.quality is None or self.quality[0] <= self.quality[1])


def judge(bar: Bar, values: Values, ours: str = "eyespot", suffix: str = "") -> Verdict:
    """The fastest peer the bar names, against the fastest of ours whose quality is no worse; where all are worse,
    against the fastest, and the bar is missed."""
    medians = {c: statistics.median(v) for c, v in values.get(bar.row, {}).items() if v}
    quality = {key(c): statistics.median(v) for c, v in values.get(bar.quality, {}).items() if v}
    best: Callable[..., Contestant] = max if bar.sense == HIGHER else min

    def fits(c: Contestant, peer: str, form: str) -> bool:
        return (not peer or c.peer == peer) and (not form or c.form == form) and bar.bits in (0, c.bits)

    named = bar.peer and bar.peer + suffix
    theirs = [c for c in medians if not c.ours and fits(c, named, bar.form)]
    candidates = [c for c in medians if c.peer == ours and fits(c, ours, "")]
    rival = best(theirs, key=medians.__getitem__) if theirs else None
    known = quality.get(key(rival)) if rival else None
    good = [c for c in candidates if known is None or quality.get(key(c), float("inf")) <= known]
    mine = best(good or candidates, key=medians.__getitem__) if candidates else None
    if rival is None or mine is None:
        return Verdict(bar, mine, rival, None, None)
    both = None if known is None or key(mine) not in quality else (quality[key(mine)], known)
    return Verdict(bar, mine, rival, medians[mine] / medians[rival], both)


def key(c: Contestant) -> tuple[str, str]:
    """What decides quality: the peer and its format, on whatever instruction set."""
    return c.peer.removesuffix("-avx2"), c.form


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def rows_table(
    row: str,
    unit: str,
    sense: str,
    values: Values,
    reasons: Reasons,
    entered: Sequence[Contestant],
    others: Mapping[Contestant, Sequence[float]],
) -> list[str]:
    """One row of the benchmark, a line a contestant; the ratio is to the best peer of the same bits.

    others: the share of the machine that other processes took while a value was measured.
    """
    measured = {c: v for c, v in values.get(row, {}).items() if v}
    medians = {c: statistics.median(v) for c, v in measured.items()}
    best: Callable[..., float] = max if sense == HIGHER else min
    lines = []
    for c in [*entered, *(c for c in measured if c not in entered)]:
        if c not in measured:
            lines.append(f"| {c} | not run: {reasons.get(c, 'its row was not asked for')} | | | | |")
            continue
        peers = [m for other, m in medians.items() if not other.ours and other.bits in (0, c.bits)]
        ratio = f"{medians[c] / best(peers):.2f}" if peers and best(peers) else ""  # float has no error
        disturbed = f"{statistics.median(others[c]):.0%}" if others.get(c) else ""
        figures = f"{number(medians[c])} | {number(best(measured[c]))} | {spread(measured[c]):.0%}"
        lines.append(f"| {c} | {figures} | {ratio} | {disturbed} |")
    head = f"| {row} ({unit}) | median | best | spread | / best peer, same bits | taken by others |"
    return [head, "|---|---|---|---|---|---|", *lines, ""]


def bars_table(values: Values, ours: str = "eyespot", suffix: str = "") -> list[str]:
    """BARS, judged: of `ours` against the peers named with `suffix` behind."""
    lines = [f"| work | bar | {ours} | peer | ratio | quality, ours / theirs | met |", "|---|---|---|---|---|---|---|"]
    for bar in BARS:
        v = judge(bar, values, ours, suffix)
        quality = "" if v.quality is None else f"{v.quality[0]:.4f} / {v.quality[1]:.4f}"
        ratio = "" if v.ratio is None else f"{v.ratio:.2f}"
        met = {None: "not run", True: "yes", False: "no"}[v.met]
        ours_form, theirs = v.ours.form if v.ours else "-", v.theirs or "-"
        lines.append(f"| {bar.work} | {bar.sense} {bar.limit} | {ours_form} | {theirs} | {ratio} | {quality} | {met} |")
    return [*lines, ""]


def number(value: float) -> str:
    """Three significant digits or more: 1234, 56.7, 0.0123."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.4g}"
