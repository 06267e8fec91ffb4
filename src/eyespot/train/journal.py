"""What a training tells: OUT/log.jsonl, tensorboard, and a plot of the loss. Knows numbers, not where they come from.

A line of log.jsonl is the mean since the line before. What was told after the checkpoint that a run goes on from is
forgotten, so the file is the same as if nothing had happened.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eyespot.errors import EyespotError
from eyespot.files import atomic
from eyespot.train.data.lines import Lines
from eyespot.train.data.record import BadRecord

LOG, PLOT = "log.jsonl", "loss.png"


@dataclass(frozen=True, slots=True)
class Entry:
    """Means over the steps since the last entry. tokens: of the whole training so far; seconds: the same."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float


class Journal:
    """Appends entries; `start` is the step the run goes on from."""

    def __init__(self, out: Path, start: int, tensorboard: bool) -> None:
        self.out = out
        kept = [entry for entry in entries(out) if entry.step <= start]
        with atomic(out / LOG) as file:
            file.writelines(_line(entry) for entry in kept)
        self.before = kept[-1] if kept else Entry(0, 0.0, 0.0, 0.0, 0, 0.0)
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise EyespotError(
                    "the package tensorboard is missing", cause="pip install eyespot[train], or report_to: []"
                ) from None
            self.board = SummaryWriter(str(out / "runs"), purge_step=start + 1)

    def add(self, entry: Entry) -> None:
        with open(self.out / LOG, "ab") as file:
            file.write(_line(entry))
        if self.board is not None:
            took = entry.seconds - self.before.seconds
            values = {"loss": entry.loss, "learning_rate": entry.learning_rate, "grad_norm": entry.grad_norm}
            if took > 0:
                values["tokens_per_second"] = (entry.tokens - self.before.tokens) / took
            for name, value in values.items():
                self.board.add_scalar(f"train/{name}", value, entry.step)
            self.board.flush()
        self.before = entry

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry)).encode() + b"\n"


def entries(out: Path) -> list[Entry]:
    """Those of OUT/log.jsonl; a line that a killed run left half written is left out."""
    if not (out / LOG).is_file():
        return []
    lines, found = Lines(out / LOG), []
    for index in range(len(lines)):
        try:
            found.append(Entry(**lines.row(index)))
        except (BadRecord, TypeError):
            continue
    return found


def plot(out: Path) -> Path | None:
    """Draws the loss and the learning rate over the steps to OUT/loss.png; None without two entries."""
    told = entries(out)
    if len(told) < 2:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    steps = [entry.step for entry in told]
    left.plot(steps, [entry.loss for entry in told], color="tab:blue", linewidth=1)
    left.set(xlabel="step", ylabel="loss", title=f"{out.name}: {told[-1].loss:.3f} after {told[-1].step} steps")
    left.grid(alpha=0.3)
    right = left.twinx()
    right.plot(steps, [entry.learning_rate for entry in told], color="tab:orange", linewidth=1, alpha=0.7)
    right.set_ylabel("learning rate", color="tab:orange")
    with atomic(out / PLOT) as file:
        figure.savefig(file, format="png", dpi=120)
    return out / PLOT
