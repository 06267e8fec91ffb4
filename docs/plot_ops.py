"""Draws where an answer's time goes: eyespot bench -m BUNDLE --rows e2e --ops -o json | python docs/plot_ops.py OUT.svg

Reads the JSON of `eyespot bench --ops` from stdin and needs matplotlib; knows no model and measures nothing.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

SHOWN = 12  # bars; what is left is one more
COLOURS = {"vision": "#4c72b0", "text, to the first token": "#dd8452", "text, after it": "#55a868"}


def shares(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Op name -> stage -> milliseconds, of the e2e rows; the stages are those of COLOURS."""
    first, whole = (next(row for row in rows if row["name"] == name) for name in ("e2e", "e2e@64"))
    spent: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COLOURS, 0.0))
    for row, sign in ((whole, 1), (first, -1)):
        for op in row["ops"]:
            if op["graph"] == "text":
                spent[op["name"]]["text, after it"] += sign * op["seconds"] * 1e3
    for op in first["ops"]:
        stage = "vision" if op["graph"] == "vision" else "text, to the first token"
        spent[op["name"]][stage] += op["seconds"] * 1e3
    return spent


def draw(report: dict[str, Any], out: str) -> None:
    """Writes the plot to `out`, whose ending names the format."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {
        "svg.hashsalt": "eyespot",
        "svg.fonttype": "none",
    }  # equal figures, equal files; text as text
    import matplotlib.pyplot as plt

    spent = shares(report["rows"])
    names = sorted(spent, key=lambda name: -sum(spent[name].values()))
    bars = [(name, spent[name]) for name in names[:SHOWN]]
    if names[SHOWN:]:
        rest = {stage: sum(spent[name][stage] for name in names[SHOWN:]) for stage in COLOURS}
        bars.append((f"{len(names) - SHOWN} others", rest))
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(bars) + 1.4), layout="constrained")
    left = [0.0] * len(bars)
    for stage, colour in COLOURS.items():
        widths = [max(0.0, spent[stage]) for _, spent in bars]
        axes.barh(range(len(bars)), widths, left=left, color=colour, label=f"{stage}: {sum(widths):.0f} ms")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    engine = report["engine"]
    axes.set_title(f"{report['bundle']}: a picture, 32 tokens, 64 back; {engine['isa']}, {engine['threads']} threads")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None} if out.endswith(".svg") else None)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    report = json.load(sys.stdin)
    if sum(row["name"] in ("e2e", "e2e@64") and "ops" in row for row in report["rows"]) != 2:
        print("plot_ops: no row e2e with ops: run `eyespot bench` with --ops", file=sys.stderr)
        return 2
    draw(report, arguments[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
